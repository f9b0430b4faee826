//! Importing: from a static cache into a cache of a server.
//!
//! An import is a push whose NARs come from a static cache instead of the local store. It goes
//! through the server's own API with a token, so that it works beside whatever the server is doing,
//! on any machine, and takes no step that a push does not take: the server reads, verifies,
//! deduplicates and commits each NAR as it does for every client.
//!
//! The paths are handled in batches. For each batch of roots, the import asks the server what it
//! lacks, reads the narinfos of these paths and of their references, and goes on until the closure
//! is known. Then it uploads the batch as a push does, references first. Build traces and logs
//! (`documents`) come after the paths.
//!
//! Invariants
//! - No path becomes visible before its references, as far as the source or the cache has them.
//!   What neither has belongs to an upstream.
//! - A path is imported only if a trusted key signed it, or if it proves itself by its content, or
//!   if the caller asked for unsigned paths. The server signs what it serves with the cache's own
//!   key: without this check, an import would make anybody's path a trusted one.
//! - One bad path stops only the paths that refer to it.
//! - Memory is bounded by the closure of [`ROOTS_PER_BATCH`] paths, and [`PATH_STATES_MAX`] hashes.

mod documents;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormer_api::{CacheConfig, CacheName};
use dormer_nix::{
    CacheInfo, ContentAddress, ContentProof, DocumentName, NARINFO_BYTES_MAX, NarInfo, PublicKey, Signature,
    StoreDir, StorePath, StorePathHash,
};
use futures::StreamExt as _;

use crate::api::ApiClient;
use crate::error::{Error, Result};
use crate::fetch_error::FetchError;
use crate::fetched_nar::FetchedNar;
use crate::nar_stream::OpenNar;
use crate::path_info::PathInfo;
use crate::push::{MISSING_PATHS_BATCH_MAX, NarSources, PushSummary, execute_push_from};
use crate::push_order::sort_largest_first;
use crate::push_plan::PushPlan;
use crate::reporter::PushReporter;
use crate::static_cache::StaticCache;

/// Paths of a listing that are handled together, with their closures.
const ROOTS_PER_BATCH: usize = 1_000;

/// Most hashes whose state is remembered: some 100 MB. A path that is forgotten is asked for
/// again.
const PATH_STATES_MAX: usize = 2_000_000;

/// Most failures that a summary names.
const FAILURES_NAMED_MAX: usize = 10_000;

/// Most signatures of a path or build trace that are tried: as many as the server takes.
const SIGNATURES_MAX: usize = 64;

/// Longest `nix-cache-info`.
const CACHE_INFO_BYTES_MAX: usize = 64 * 1024;

/// Which paths to import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportSource {
    /// All that a listing of the source finds.
    All,
    /// These paths and their closures.
    Closures(Vec<StorePathHash>),
}

/// How to import.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of the import by itself")]
pub struct ImportOptions {
    /// Keys whose signatures are trusted.
    pub trusted_keys: Vec<PublicKey>,
    /// Also import paths and build traces that no trusted key signed.
    pub allow_unsigned: bool,
    /// Import build traces too, from a source that can be listed.
    pub traces: bool,
    /// Import build logs too: all of a listing, or those of the named paths that are uploaded.
    pub logs: bool,
    /// Also import paths that an upstream key of the cache signed.
    pub ignore_upstream: bool,
    /// Number of concurrent uploads, at least one.
    pub jobs: usize,
    /// Only report what would be imported.
    pub dry_run: bool,
}

/// Receives the events of an import, and those of its uploads.
pub trait ImportReporter: PushReporter {
    /// A path would be imported: only in a dry run.
    fn path_planned(&self, _path: &StorePath, _nar_size: u64) {}
    /// A path cannot be imported. Failures of uploads come as
    /// [`PushReporter::path_failed`].
    fn path_refused(&self, _path: &str, _error: &FetchError) {}
    /// So many paths were found in the cache already, or left to an upstream.
    fn paths_skipped(&self, _count: u64) {}
    /// A build trace or log was not imported.
    fn document_failed(&self, _name: &DocumentName, _reason: &str) {}
    /// A build log is left out because it is too long.
    fn document_left_out(&self, _name: &DocumentName, _reason: &str) {}
}

/// A path that was not imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportFailure {
    /// The path, or its hash if no more is known.
    pub path: String,
    /// The reason.
    pub reason: String,
    /// Whether it was not tried, because of a path that it refers to or of the server.
    pub not_tried: bool,
}

/// What an import did.
#[derive(Debug, Default)]
pub struct ImportSummary {
    /// Paths that were uploaded, or in a dry run would be.
    pub imported: u64,
    /// Paths that are in the cache with another NAR or other references.
    pub kept: u64,
    /// Paths that the cache already had.
    pub present: u64,
    /// Paths that an upstream key signed.
    pub upstream: u64,
    /// Paths that could not be imported.
    pub failed: u64,
    /// Those of them that nobody trusted signed.
    pub unsigned: u64,
    /// Paths that were not tried, because of a path that they refer to or of the server.
    pub not_tried: u64,
    /// Build traces that were uploaded, or in a dry run would be.
    pub traces: u64,
    /// Build traces that were left out because the cache lacks the path that they lead to.
    pub traces_without_path: u64,
    /// Build logs that were uploaded, or in a dry run would be.
    pub logs: u64,
    /// Build logs that were left out because they are longer than the server takes.
    pub logs_too_long: u64,
    /// Logs that the cache has already, and traces in whose place the cache keeps another one.
    pub documents_kept: u64,
    /// Build traces and logs that could not be imported.
    pub documents_failed: u64,
    /// The first failures.
    pub failures: Vec<ImportFailure>,
    /// NAR bytes that were uploaded, once for each path.
    pub bytes_read: u64,
    /// NAR bytes that were sent, including repeated tries.
    pub bytes_sent: u64,
    /// NAR bytes that the server already had, as far as it says so.
    pub bytes_saved: u64,
    /// Duration of the import.
    pub elapsed: Duration,
    /// Why the import ended early: the server, or this client's token.
    pub stopped_by: Option<Error>,
}

impl ImportSummary {
    fn fail(&mut self, path: String, reason: String, not_tried: bool) {
        if not_tried {
            self.not_tried += 1;
        } else {
            self.failed += 1;
        }
        if self.failures.len() < FAILURES_NAMED_MAX {
            self.failures.push(ImportFailure { path, reason, not_tried });
        }
    }
}

/// Imports paths of `source` into `cache`. `config` is the cache's configuration from the server.
/// An error means that nothing more was tried; the failure of a path is part of the summary.
pub async fn import(
    api: &ApiClient,
    source: Arc<dyn StaticCache>,
    cache: &CacheName,
    config: &CacheConfig,
    paths: ImportSource,
    options: ImportOptions,
    reporter: Arc<dyn ImportReporter>,
) -> Result<ImportSummary> {
    let started = Instant::now();
    let store_dir = check_cache_info(&*source, cache, config).await?;
    let upstream_key_names = match &config.upstream_cache_key_names {
        Some(names) if !options.ignore_upstream => names.clone(),
        _ => Vec::new(),
    };
    let is_whole = paths == ImportSource::All;
    let mut import = Import {
        api,
        is_whole,
        source: Arc::clone(&source),
        cache,
        store_dir,
        upstream_key_names,
        options,
        reporter,
        path_states: HashMap::new(),
        summary: ImportSummary::default(),
    };
    let mut flow = Flow::GoesOn;
    match paths {
        ImportSource::Closures(roots) => {
            for roots in roots.chunks(ROOTS_PER_BATCH) {
                flow = import.batch(roots, true).await?;
                if flow.is_stopped() {
                    break;
                }
            }
        }
        ImportSource::All => {
            let location = source.location();
            let Some(mut listing) = source.list() else { return Err(Error::NotListed { location }) };
            loop {
                let mut roots = Vec::with_capacity(ROOTS_PER_BATCH);
                while roots.len() < ROOTS_PER_BATCH
                    && let Some(hash) = listing.next().await
                {
                    let location = location.clone();
                    roots.push(hash.map_err(|source| Error::List { location, source })?);
                }
                if roots.is_empty() {
                    break;
                }
                flow = import.batch(&roots, false).await?;
                if flow.is_stopped() {
                    break;
                }
            }
        }
    }
    if !flow.is_stopped() {
        import.import_listed(is_whole).await?;
    }
    import.summary.elapsed = started.elapsed();
    Ok(import.summary)
}

/// Checks that there is a cache of the same store folder, and returns that folder.
async fn check_cache_info(
    source: &dyn StaticCache,
    cache: &CacheName,
    config: &CacheConfig,
) -> Result<StoreDir> {
    let location = source.location();
    let info = match source.get("nix-cache-info", CACHE_INFO_BYTES_MAX).await {
        Ok(Some(info)) => info,
        Ok(None) => return Err(Error::NoStaticCache { location }),
        Err(source) => return Err(Error::StaticCacheInfo { location, source }),
    };
    let theirs = CacheInfo::parse(&info).store_dir.unwrap_or_else(|| StoreDir::default().to_string());
    let ours = config.store_dir.clone().unwrap_or_default();
    if theirs == ours.as_str() {
        return Ok(ours);
    }
    let cache = cache.clone();
    Err(Error::SourceStoreDir { cache, cache_store_dir: ours, location, store_dir: theirs })
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PathState {
    /// The cache has it.
    InCache,
    /// An upstream has it, or nobody that is known here.
    Elsewhere,
    /// It could not be imported.
    Failed,
}

/// Whether the import goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    GoesOn,
    Stopped,
}

impl Flow {
    fn is_stopped(self) -> bool {
        self == Self::Stopped
    }
}

/// A path to upload, and where its NAR is.
#[derive(Debug)]
struct Planned {
    info: PathInfo,
    url: String,
    compression: String,
    proof: Option<ContentProof>,
}

struct Import<'a> {
    api: &'a ApiClient,
    /// Whether all of the source is imported, and not some closures.
    is_whole: bool,
    source: Arc<dyn StaticCache>,
    cache: &'a CacheName,
    store_dir: StoreDir,
    upstream_key_names: Vec<String>,
    options: ImportOptions,
    reporter: Arc<dyn ImportReporter>,
    path_states: HashMap<StorePathHash, PathState>,
    summary: ImportSummary,
}

impl Import<'_> {
    /// Imports these paths and what they refer to. `are_wanted`: the caller named them, so each of
    /// them has to be in the source or in the cache.
    async fn batch(&mut self, roots: &[StorePathHash], are_wanted: bool) -> Result<Flow> {
        if self.path_states.len() > PATH_STATES_MAX {
            self.path_states.clear();
        }
        let planned = self.look_at(roots, are_wanted).await?;
        let planned = self.without_broken_closures(planned);
        if self.options.dry_run {
            for planned in &planned {
                self.reporter.path_planned(&planned.info.path, planned.info.nar_size);
                self.path_states.insert(planned.info.path.hash(), PathState::InCache);
            }
            self.summary.imported += planned.len() as u64;
            return Ok(Flow::GoesOn);
        }
        let mut derivers = self.derivers_of(planned.iter().map(|planned| &planned.info));
        let flow = self.upload(planned).await;
        if flow.is_stopped() {
            return Ok(flow);
        }
        derivers.retain(|hash, _| self.path_states.get(hash) == Some(&PathState::InCache));
        let derivations: HashSet<StorePath> = derivers.into_values().collect();
        Ok(self.import_logs(derivations.into_iter().collect()).await)
    }

    /// Finds out what of a closure has to be uploaded.
    async fn look_at(&mut self, roots: &[StorePathHash], are_wanted: bool) -> Result<Vec<Planned>> {
        let wanted: HashSet<StorePathHash> = roots.iter().filter(|_| are_wanted).copied().collect();
        let mut planned = Vec::new();
        let mut seen: HashSet<StorePathHash> = HashSet::new();
        let mut next: Vec<StorePathHash> = roots.to_vec();
        loop {
            next.retain(|hash| !self.path_states.contains_key(hash) && seen.insert(*hash));
            if next.is_empty() {
                return Ok(planned);
            }
            let mut lacking: HashSet<StorePathHash> = HashSet::new();
            for hashes in next.chunks(MISSING_PATHS_BATCH_MAX) {
                lacking.extend(self.api.get_missing_paths(self.cache, hashes.to_vec()).await?);
            }
            let present = next.iter().filter(|hash| !lacking.contains(*hash));
            let before = self.path_states.len();
            self.path_states.extend(present.map(|hash| (*hash, PathState::InCache)));
            let present = (self.path_states.len() - before) as u64;
            self.summary.present += present;
            self.reporter.paths_skipped(present);
            next.retain(|hash| lacking.contains(hash));

            let concurrency = (self.options.jobs * 4).clamp(4, 64);
            let (source, store_dir) = (Arc::clone(&self.source), self.store_dir.clone());
            let (source, store_dir) = (&*source, &store_dir);
            let mut looks = futures::stream::iter(std::mem::take(&mut next))
                .map(|hash| async move { (hash, read_narinfo(source, store_dir, &hash).await) })
                .buffer_unordered(concurrency);
            // Each narinfo is judged when it comes, so that those that are refused take no memory.
            while let Some((hash, found)) = looks.next().await {
                match found {
                    Ok(None) if wanted.contains(&hash) => {
                        let name = format!("{hash}.narinfo");
                        self.refuse(hash, hash.to_string(), &FetchError::Missing { name });
                    }
                    Ok(None) => {
                        self.path_states.insert(hash, PathState::Elsewhere);
                    }
                    Err(error) => self.refuse(hash, hash.to_string(), &error),
                    Ok(Some(narinfo)) => {
                        if let Some(one) = self.judge(narinfo) {
                            next.extend(one.info.references.iter().map(StorePath::hash));
                            planned.push(one);
                        }
                    }
                }
            }
        }
    }

    fn refuse(&mut self, hash: StorePathHash, path: String, error: &FetchError) {
        self.path_states.insert(hash, PathState::Failed);
        self.reporter.path_refused(&path, error);
        self.summary.unsigned += u64::from(matches!(error, FetchError::Unsigned));
        self.summary.fail(path, dormer_nix::with_causes(error), false);
    }

    /// What to do with a path that the cache lacks: upload it, or leave it to an upstream, or
    /// refuse it.
    fn judge(&mut self, narinfo: NarInfo) -> Option<Planned> {
        let proof = content_proof(&narinfo, &self.store_dir);
        let keys = &self.options.trusted_keys;
        let is_signed =
            !keys.is_empty() && is_signed_by(&narinfo.sigs, &narinfo.fingerprint(&self.store_dir), keys);
        let info = PathInfo {
            store_dir: self.store_dir.clone(),
            path: narinfo.store_path,
            nar_hash: narinfo.nar_hash,
            nar_size: narinfo.nar_size,
            references: narinfo.references,
            deriver: narinfo.deriver,
            signatures: narinfo.sigs,
            ca: narinfo.ca,
            system: narinfo.system,
            extra: narinfo.extra,
        };
        let hash = info.path.hash();
        if info.is_signed_by(&self.upstream_key_names) {
            self.path_states.insert(hash, PathState::Elsewhere);
            self.summary.upstream += 1;
            self.reporter.paths_skipped(1);
            return None;
        }
        if !is_signed && proof.is_none() && !self.options.allow_unsigned {
            self.refuse(hash, info.absolute_path(), &FetchError::Unsigned);
            return None;
        }
        // A signature says more than a proof, and unsigned paths are wanted as they are.
        let proof = proof.filter(|_| !is_signed && !self.options.allow_unsigned);
        Some(Planned { info, url: narinfo.url, compression: narinfo.compression, proof })
    }

    /// Leaves out paths that lead to a path that failed.
    fn without_broken_closures(&mut self, planned: Vec<Planned>) -> Vec<Planned> {
        let places: HashMap<StorePathHash, usize> =
            planned.iter().enumerate().map(|(place, planned)| (planned.info.path.hash(), place)).collect();
        let mut referrers: Vec<Vec<usize>> = vec![Vec::new(); planned.len()];
        let mut broken: Vec<Option<StorePathHash>> = vec![None; planned.len()];
        let mut to_visit = Vec::new();
        for (place, one) in planned.iter().enumerate() {
            for reference in one.info.references.iter().map(StorePath::hash) {
                if let Some(&other) = places.get(&reference) {
                    referrers[other].push(place);
                } else if self.path_states.get(&reference) == Some(&PathState::Failed)
                    && broken[place].is_none()
                {
                    broken[place] = Some(reference);
                    to_visit.push(place);
                }
            }
        }
        while let Some(place) = to_visit.pop() {
            for &referrer in &referrers[place] {
                if broken[referrer].is_none() {
                    broken[referrer] = Some(planned[place].info.path.hash());
                    to_visit.push(referrer);
                }
            }
        }
        let mut whole = Vec::with_capacity(planned.len());
        for (one, broken) in planned.into_iter().zip(broken) {
            let Some(reference) = broken else {
                whole.push(one);
                continue;
            };
            self.path_states.insert(one.info.path.hash(), PathState::Failed);
            let reason = format!("it refers to {reference}, which could not be imported");
            self.summary.fail(one.info.absolute_path(), reason, true);
        }
        whole
    }

    async fn upload(&mut self, planned: Vec<Planned>) -> Flow {
        if planned.is_empty() {
            return Flow::GoesOn;
        }
        let mut nars = HashMap::with_capacity(planned.len());
        let mut missing = Vec::with_capacity(planned.len());
        for Planned { info, url, compression, proof } in planned {
            let nar = FetchedNar {
                cache: Arc::clone(&self.source),
                url,
                compression,
                nar_hash: info.nar_hash,
                nar_size: info.nar_size,
                proof,
            };
            nars.insert(info.path.clone(), nar);
            missing.push(info);
        }
        sort_largest_first(&mut missing);
        let plan = PushPlan {
            cache: self.cache.clone(),
            missing,
            excluded: Vec::new(),
            incomplete: Vec::new(),
            present: Vec::new(),
            upstream: Vec::new(),
            derivers: Vec::new(),
            addressed: Vec::new(),
            invalid: Vec::new(),
        };
        let reporter: Arc<dyn PushReporter> = Arc::clone(&self.reporter) as Arc<dyn PushReporter>;
        let pushed = execute_push_from(self.api, plan, self.options.jobs, &Fetched(nars), reporter).await;
        self.count(pushed)
    }

    fn count(&mut self, pushed: PushSummary) -> Flow {
        self.summary.imported += pushed.pushed.len() as u64;
        self.summary.kept += pushed.kept.len() as u64;
        self.summary.bytes_read += pushed.bytes_read;
        self.summary.bytes_sent += pushed.bytes_sent;
        self.summary.bytes_saved += pushed.bytes_saved;
        let done = pushed.pushed.iter().chain(&pushed.kept);
        self.path_states.extend(done.map(|done| (done.path.hash(), PathState::InCache)));
        let mut flow = Flow::GoesOn;
        for failed in pushed.failed {
            self.path_states.insert(failed.path.hash(), PathState::Failed);
            let reason = dormer_nix::with_causes(&failed.error);
            self.summary.fail(failed.path.to_absolute(&self.store_dir), reason, false);
            if failed.error.is_fatal_for_push() {
                flow = Flow::Stopped;
                self.summary.stopped_by.get_or_insert(failed.error);
            }
        }
        for skipped in pushed.not_tried {
            self.path_states.insert(skipped.path.hash(), PathState::Failed);
            let reason = match skipped.failed_reference {
                Some(reference) => format!("it refers to {reference}, which could not be imported"),
                None => "the import ended before it".to_owned(),
            };
            self.summary.fail(skipped.path.to_absolute(&self.store_dir), reason, true);
        }
        flow
    }
}

/// The NARs of a batch.
struct Fetched(HashMap<StorePath, FetchedNar>);

impl NarSources for Fetched {
    fn source_of(&self, info: &PathInfo) -> Box<dyn OpenNar> {
        let nar = self.0.get(&info.path).expect("every planned path has its NAR");
        Box::new(nar.clone())
    }
}

async fn read_narinfo(
    source: &dyn StaticCache,
    store_dir: &StoreDir,
    hash: &StorePathHash,
) -> Result<Option<NarInfo>, FetchError> {
    let Some(text) = source.get(&format!("{hash}.narinfo"), NARINFO_BYTES_MAX).await? else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&text).map_err(|_| FetchError::NotText)?;
    let narinfo = NarInfo::parse(text, store_dir).map_err(FetchError::Narinfo)?;
    if narinfo.store_path.hash() != *hash {
        return Err(FetchError::OtherPath { path: narinfo.store_path.to_absolute(store_dir) });
    }
    Ok(Some(narinfo))
}

/// Whether one of the keys made one of the signatures. Only signatures that name one of the keys
/// are tried, and at most [`SIGNATURES_MAX`] of them.
fn is_signed_by(sigs: &[String], text: &str, keys: &[PublicKey]) -> bool {
    let names_a_key = |sig: &Signature| keys.iter().any(|key| key.name() == sig.key_name());
    sigs.iter()
        .filter_map(|sig| sig.parse().ok())
        .filter(names_a_key)
        .take(SIGNATURES_MAX)
        .any(|sig| keys.iter().any(|key| key.verify(text, &sig).is_ok()))
}

/// What proves the path's contents, if its name follows from them.
fn content_proof(narinfo: &NarInfo, store_dir: &StoreDir) -> Option<ContentProof> {
    let address: ContentAddress = narinfo.ca.as_deref()?.parse().ok()?;
    address.makes(&narinfo.store_path, store_dir, &narinfo.references)
}

#[cfg(test)]
mod tests {
    use dormer_nix::SecretKey;

    use super::*;

    #[test]
    fn a_bounded_number_of_signatures_is_tried() {
        let ours = SecretKey::generate("ours", [1; 32]).unwrap();
        let keys = [ours.public_key()];
        let good = ours.sign("text").to_string();
        let after = |name: &str, seed: u8, count: usize| {
            let bad = SecretKey::generate(name, [seed; 32]).unwrap().sign("text").to_string();
            let mut sigs = vec![bad; count];
            sigs.push(good.clone());
            is_signed_by(&sigs, "text", &keys)
        };
        assert!(after("ours", 2, SIGNATURES_MAX - 1));
        assert!(!after("ours", 2, SIGNATURES_MAX));
        assert!(after("theirs", 2, 1_000), "those of other names do not count");
        assert!(!is_signed_by(std::slice::from_ref(&good), "other", &keys));
    }
}
