//! Pushing: from store paths to a plan, from the plan to uploads and a summary.
//!
//! A plan is a value that a dry run prints. A plan leaves out paths that an upstream cache has
//! signed, because clients find them there, paths that the cache already has, and paths that the
//! user excluded (`push_filter`).
//!
//! The server does not require an order, and shows each path when it acknowledges the upload. So
//! the client keeps the order: a path starts only after its references (`push_order`). Pushing the
//! same paths again completes an interrupted push.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormer_api::{CacheConfig, CacheName, UploadPathResultKind};
use dormer_nix::{StorePath, StorePathHash};
use tokio::task::JoinSet;

use crate::api::{AcknowledgedUpload, ApiClient};
use crate::dump::{CaseHack, DumpError, dump_nar};
use crate::error::{Error, Result};
use crate::nar_stream::{NarSource, OpenNar};
use crate::nix_store::NixStore;
use crate::path_info::PathInfo;
use crate::push_filter::{Filtered, PushFilter};
use crate::push_order::{UploadQueue, sort_largest_first};
use crate::push_plan::{AddressedOutput, PlannedDeriver, PushPlan};
use crate::reporter::{PathDone, PushReporter, Retry, TransferId, UploadReporter};

/// Hashes in one request to the server: 175 KB of JSON.
pub const MISSING_PATHS_BATCH_MAX: usize = 5_000;

/// What to push, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushOptions {
    /// Also push the closure of the paths.
    pub closure: bool,
    /// Also push paths that an upstream cache has signed.
    pub ignore_upstream: bool,
    /// Number of concurrent uploads, at least one.
    pub jobs: usize,
    /// How file names in the store are read.
    pub case_hack: CaseHack,
    /// The folder with the store's files, if it is not the one in the names of paths.
    pub real_store_dir: Option<PathBuf>,
    /// What stays out of the cache.
    pub filter: PushFilter,
}

impl PushOptions {
    /// Where the files of a path are.
    pub(crate) fn file_path(&self, info: &PathInfo) -> PathBuf {
        match &self.real_store_dir {
            Some(folder) => folder.join(info.path.to_string()),
            None => PathBuf::from(info.absolute_path()),
        }
    }
}

impl Default for PushOptions {
    fn default() -> Self {
        Self {
            closure: true,
            ignore_upstream: false,
            jobs: 5,
            case_hack: CaseHack::default(),
            real_store_dir: None,
            filter: PushFilter::default(),
        }
    }
}

/// A path that could not be pushed.
#[derive(Debug)]
pub struct FailedPath {
    /// The path.
    pub path: StorePath,
    /// The reason.
    pub error: Error,
}

/// A path that was not tried because of the failure of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotTriedPath {
    /// The path.
    pub path: StorePath,
    /// The reference that failed. `None` if the failure would affect any path.
    pub failed_reference: Option<StorePath>,
}

/// What a push did.
#[derive(Debug, Default)]
pub struct PushSummary {
    /// Uploaded paths, in the order of their acknowledgements.
    pub pushed: Vec<PathDone>,
    /// Uploaded paths that are in the cache with another NAR or other references: another push came
    /// first, and the cache allows no replacement.
    pub kept: Vec<PathDone>,
    /// Paths that were not uploaded because of an error.
    pub failed: Vec<FailedPath>,
    /// Paths that were not tried, because an earlier error would affect them too.
    pub not_tried: Vec<NotTriedPath>,
    /// Paths that the cache already had.
    pub present: Vec<StorePath>,
    /// Paths that an upstream key signed.
    pub upstream: Vec<StorePath>,
    /// NAR bytes of the uploaded paths, as read from the disk.
    pub bytes_read: u64,
    /// Bytes that were sent, including repeated tries: NAR bytes with Attic's API, else the bodies
    /// of all requests of the session.
    pub bytes_sent: u64,
    /// NAR bytes of the uploaded paths that the server already had, as far as the server says so.
    pub bytes_saved: u64,
    /// Whether paths were pushed by chunks.
    pub by_chunks: bool,
    /// Duration of the push.
    pub elapsed: Duration,
}

impl PushSummary {
    /// Adds what a later push of other paths of the same plan did.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.pushed.extend(other.pushed);
        self.kept.extend(other.kept);
        self.failed.extend(other.failed);
        self.not_tried.extend(other.not_tried);
        self.present.extend(other.present);
        self.upstream.extend(other.upstream);
        self.bytes_read += other.bytes_read;
        self.bytes_sent += other.bytes_sent;
        self.bytes_saved += other.bytes_saved;
    }

    /// Whether the cache now has every path of the plan.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.not_tried.is_empty()
    }
}

/// Finds out what pushing `roots` means. `config` is the cache's configuration from the server. The
/// plan leaves out roots that are not valid, and names them. It is an error if no root is valid.
pub async fn plan_push(
    api: &ApiClient,
    store: &NixStore,
    cache: &CacheName,
    config: &CacheConfig,
    roots: &[StorePath],
    options: &PushOptions,
) -> Result<PushPlan> {
    let roots: BTreeSet<StorePath> = roots.iter().cloned().collect();
    let (infos, invalid) =
        path_infos_of_valid(store, roots.iter().cloned().collect(), options.closure).await?;
    if let Some(cache_store_dir) = &config.store_dir
        && let Some(foreign) = infos.iter().find(|info| info.store_dir != *cache_store_dir)
    {
        return Err(Error::StoreDirMismatch {
            cache: cache.clone(),
            cache_store_dir: cache_store_dir.clone(),
            path: foreign.path.clone(),
            store_dir: foreign.store_dir.clone(),
        });
    }
    let key_names = match &config.upstream_cache_key_names {
        Some(key_names) if !options.ignore_upstream => key_names.as_slice(),
        _ => &[],
    };
    let (upstream, ours) = split_upstream(infos, key_names);
    let mut addressed: Vec<AddressedOutput> =
        ours.iter().filter_map(|info| AddressedOutput::of(info, &roots)).collect();
    let mut lacking = BTreeSet::new();
    for batch in ours.chunks(MISSING_PATHS_BATCH_MAX) {
        let hashes: Vec<StorePathHash> = batch.iter().map(|info| info.path.hash()).collect();
        lacking.extend(api.get_missing_paths(cache, hashes).await?);
    }
    for output in &mut addressed {
        output.is_new = lacking.contains(&output.path.hash());
    }
    let (mut missing, present): (Vec<_>, Vec<_>) =
        ours.into_iter().partition(|info| lacking.contains(&info.path.hash()));
    for info in missing.iter_mut().filter(|info| info.nar_size == 0) {
        // A path that cannot be read stays in the plan: its upload fails with the same error, which
        // stops only the paths that refer to it.
        info.nar_size = measure(info, options).await.unwrap_or(0);
    }
    sort_largest_first(&mut missing);
    let Filtered { sent: missing, excluded, incomplete } = options.filter.apply(missing, &present, &upstream);
    let left_out: BTreeSet<&StorePath> = excluded
        .iter()
        .map(|excluded| &excluded.path)
        .chain(incomplete.iter().map(|incomplete| &incomplete.path))
        .collect();
    addressed.retain(|output| !left_out.contains(&output.path));
    let derivers = derivers_of(&missing, &present);
    Ok(PushPlan {
        cache: cache.clone(),
        missing,
        excluded,
        incomplete,
        present: names(present),
        upstream: names(upstream),
        derivers,
        addressed,
        invalid,
    })
}

/// What `nix` knows about the valid roots, and the roots that are not valid.
async fn path_infos_of_valid(
    store: &NixStore,
    roots: Vec<StorePath>,
    closure: bool,
) -> Result<(Vec<PathInfo>, Vec<StorePath>)> {
    let failure = match store.path_infos(&roots, closure).await {
        Ok(infos) => return Ok((infos, Vec::new())),
        Err(failure) => failure,
    };
    // Nix fails as a whole if one path is not valid, and names only the first.
    let invalid = match store.invalid_paths(&roots).await {
        Ok(invalid) if !invalid.is_empty() => invalid,
        _ => return Err(failure),
    };
    let valid: Vec<StorePath> = roots.into_iter().filter(|root| !invalid.contains(root)).collect();
    if valid.is_empty() {
        return Err(failure);
    }
    Ok((store.path_infos(&valid, closure).await?, invalid.into_iter().collect()))
}

/// The derivations that made these paths, each once.
fn derivers_of(sent: &[PathInfo], present: &[PathInfo]) -> Vec<PlannedDeriver> {
    let mut derivers: BTreeMap<&StorePath, bool> = BTreeMap::new();
    for (infos, is_sent) in [(present, false), (sent, true)] {
        for derivation in infos.iter().filter_map(|info| info.deriver.as_ref()) {
            *derivers.entry(derivation).or_default() |= is_sent;
        }
    }
    let of =
        |(derivation, is_new): (&StorePath, bool)| PlannedDeriver { derivation: derivation.clone(), is_new };
    derivers.into_iter().map(of).collect()
}

/// The size of a NAR that Nix does not know.
async fn measure(info: &PathInfo, options: &PushOptions) -> Result<u64> {
    let (path, case_hack) = (options.file_path(info), options.case_hack);
    let file = path.clone();
    let measured = tokio::task::spawn_blocking(move || dump_nar(&file, case_hack, |_| Ok(()))).await;
    let source = match measured {
        Ok(Ok(bytes)) => return Ok(bytes),
        Ok(Err(error)) => error,
        Err(error) => DumpError::Thread(error),
    };
    Err(Error::Dump { path: path.display().to_string(), source })
}

/// Splits paths into those that one of `key_names` signed, and the others.
pub fn split_upstream(infos: Vec<PathInfo>, key_names: &[String]) -> (Vec<PathInfo>, Vec<PathInfo>) {
    infos.into_iter().partition(|info| info.is_signed_by(key_names))
}

fn names(infos: Vec<PathInfo>) -> Vec<StorePath> {
    infos.into_iter().map(|info| info.path).collect()
}

/// Uploads the missing paths of the plan, each after its references. The error of one path stops
/// only the paths that refer to it, unless it would affect the others too. The summary contains all
/// errors.
pub async fn execute_push(
    api: &ApiClient,
    plan: PushPlan,
    options: &PushOptions,
    reporter: Arc<dyn PushReporter>,
) -> PushSummary {
    let sources = DiskSources(options.clone());
    execute_push_from(api, plan, options.jobs, &sources, reporter).await
}

/// Where the NARs of a push come from.
pub(crate) trait NarSources: Sync {
    /// The NAR of a planned path.
    fn source_of(&self, info: &PathInfo) -> Box<dyn OpenNar>;
}

/// The local store.
struct DiskSources(PushOptions);

impl NarSources for DiskSources {
    fn source_of(&self, info: &PathInfo) -> Box<dyn OpenNar> {
        Box::new(NarSource {
            path: self.0.file_path(info),
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            case_hack: self.0.case_hack,
        })
    }
}

/// Uploads the missing paths of the plan as [`execute_push`] does, with NARs from `sources`.
pub(crate) async fn execute_push_from(
    api: &ApiClient,
    plan: PushPlan,
    jobs: usize,
    sources: &dyn NarSources,
    reporter: Arc<dyn PushReporter>,
) -> PushSummary {
    let started = Instant::now();
    reporter.plan_made(&plan);
    let PushPlan { cache, missing, present, upstream, invalid, .. } = plan;
    let invalid = invalid.into_iter().map(|path| {
        let error = Error::InvalidPath { path: path.to_string() };
        FailedPath { path, error }
    });
    let mut summary = PushSummary { failed: invalid.collect(), present, upstream, ..PushSummary::default() };
    let mut queue = UploadQueue::new(missing);
    let mut started_count: TransferId = 0;
    let mut stop = false;
    // Each upload is a task, so that uploads share the cores. Dropping the set aborts the tasks.
    let mut running = JoinSet::new();
    loop {
        while !stop && running.len() < jobs.max(1) {
            let Some((number, info)) = queue.next() else { break };
            let id = started_count;
            started_count += 1;
            reporter.path_started(id, &info.path, info.nar_size);
            let upload = PathUpload {
                api: api.clone(),
                cache: cache.clone(),
                source: sources.source_of(&info),
                reporter: Arc::clone(&reporter),
                id,
            };
            running.spawn(async move { (number, upload.run(info).await) });
        }
        let Some(ended) = running.join_next().await else { break };
        // Nothing aborts single tasks, so this is a panic in our code. It is passed on.
        let (number, (id, info, uploaded)) =
            ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        match uploaded {
            Ok(uploaded) => {
                let done = summary.count(info, &uploaded);
                reporter.path_done(id, &done);
                if done.kept {
                    summary.kept.push(done);
                } else {
                    summary.pushed.push(done);
                }
                queue.acknowledge(number);
            }
            Err(error) => {
                reporter.path_failed(id, &info.path, &error);
                stop |= error.is_fatal_for_push();
                let failed_reference = Some(info.path.clone());
                let referrers = queue.fail(number).into_iter();
                summary.not_tried.extend(
                    referrers.map(|path| NotTriedPath { path, failed_reference: failed_reference.clone() }),
                );
                summary.failed.push(FailedPath { path: info.path, error });
            }
        }
    }
    let rest = queue.into_rest().into_iter();
    summary.not_tried.extend(rest.map(|path| NotTriedPath { path, failed_reference: None }));
    summary.elapsed = started.elapsed();
    summary
}

impl PushSummary {
    fn count(&mut self, info: PathInfo, uploaded: &AcknowledgedUpload) -> PathDone {
        let result = &uploaded.result;
        let known = match (result.frac_deduplicated, result.kind) {
            (Some(fraction), _) => fraction.clamp(0.0, 1.0),
            (None, UploadPathResultKind::Deduplicated) => 1.0,
            (None, _) => 0.0,
        };
        self.bytes_read += info.nar_size;
        self.bytes_sent += uploaded.bytes_sent;
        self.bytes_saved += fraction_of(info.nar_size, known);
        PathDone {
            path: info.path,
            nar_size: info.nar_size,
            kind: result.kind,
            file_size: result.file_size,
            frac_deduplicated: result.frac_deduplicated,
            kept: result.kept,
        }
    }
}

/// `fraction` is in 0 to 1, so the product fits. The figure is for people, so rounding does not
/// matter.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate between 0 and `bytes`"
)]
fn fraction_of(bytes: u64, fraction: f64) -> u64 {
    (bytes as f64 * fraction).round() as u64
}

/// One upload in its own task.
struct PathUpload {
    api: ApiClient,
    cache: CacheName,
    source: Box<dyn OpenNar>,
    reporter: Arc<dyn PushReporter>,
    id: TransferId,
}

impl PathUpload {
    async fn run(self, info: PathInfo) -> (TransferId, PathInfo, Result<AcknowledgedUpload>) {
        let info_to_send = info.upload_info(&self.cache);
        let uploaded = self.api.upload_path(&info_to_send, &*self.source, &self).await;
        (self.id, info, uploaded)
    }
}

impl UploadReporter for PathUpload {
    fn progress(&self, bytes: u64) {
        self.reporter.path_progress(self.id, bytes);
        self.reporter.sent(bytes);
    }

    fn retrying(&self, retry: &Retry<'_>) {
        self.reporter.path_retrying(self.id, retry);
    }
}
