//! Pushing: from store paths to a plan, from the plan to uploads and a summary.
//!
//! A plan is a value that a dry run prints. Paths are left out that an upstream cache has signed (clients find them
//! there) and that the cache has already. Large uploads start first: the last one to start should be a short one, or
//! everybody waits for it alone.
//!
//! The server does not ask for an order, and each upload is visible for itself as soon as it is acknowledged; pushing the
//! same paths again completes what was broken off.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormer_api::{CacheConfig, CacheName, UploadPathResultKind};
use dormer_nix::{StorePath, StorePathHash};
use tokio::task::JoinSet;

use crate::api::{ApiClient, Uploaded};
use crate::dump::CaseHack;
use crate::error::{Error, Result};
use crate::nar_stream::NarSource;
use crate::nix_store::NixStore;
use crate::path_info::PathInfo;
use crate::reporter::{PathDone, PushReporter, Retry, TransferId, UploadReporter};

/// Hashes in one question to the server: 175 KB of JSON.
pub const MISSING_PATHS_BATCH_MAX: usize = 5_000;

/// What to push, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushOptions {
    /// Also what the paths need.
    pub closure: bool,
    /// Push also what an upstream cache has signed.
    pub ignore_upstream: bool,
    /// Uploads at once; at least one.
    pub jobs: usize,
    /// How names in the store are read.
    pub case_hack: CaseHack,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self { closure: true, ignore_upstream: false, jobs: 5, case_hack: CaseHack::default() }
    }
}

/// What a push will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushPlan {
    /// The cache.
    pub cache: CacheName,
    /// To be uploaded, largest first.
    pub missing: Vec<PathInfo>,
    /// In the cache already.
    pub present: Vec<StorePath>,
    /// Signed by an upstream key, and so left out.
    pub upstream: Vec<StorePath>,
}

impl PushPlan {
    /// Sizes of the NARs to upload, in bytes.
    pub fn missing_bytes(&self) -> u64 {
        self.missing.iter().map(|info| info.nar_size).sum()
    }

    /// All paths that were considered.
    pub fn path_count(&self) -> usize {
        self.missing.len() + self.present.len() + self.upstream.len()
    }
}

/// A path that could not be pushed.
#[derive(Debug)]
pub struct FailedPath {
    /// The path.
    pub path: StorePath,
    /// Why.
    pub error: Error,
}

/// What a push did.
#[derive(Debug, Default)]
pub struct PushSummary {
    /// Uploaded, in the order in which they were acknowledged.
    pub pushed: Vec<PathDone>,
    /// Not uploaded because of an error.
    pub failed: Vec<FailedPath>,
    /// Not tried, because an earlier error would have met them too.
    pub not_tried: Vec<StorePath>,
    /// In the cache already.
    pub present: Vec<StorePath>,
    /// Signed by an upstream key.
    pub upstream: Vec<StorePath>,
    /// NAR bytes of what was pushed, as read from the disk.
    pub bytes_read: u64,
    /// NAR bytes that went over the wire, repeated tries included.
    pub bytes_sent: u64,
    /// NAR bytes of what was pushed that the server had already, as far as it said so.
    pub bytes_saved: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl PushSummary {
    /// Whether every path of the plan is in the cache now.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.not_tried.is_empty()
    }
}

/// Finds out what pushing `roots` means. `config` is the cache's, as the server gave it.
pub async fn plan_push(
    api: &ApiClient,
    store: &NixStore,
    cache: &CacheName,
    config: &CacheConfig,
    roots: &[StorePath],
    options: &PushOptions,
) -> Result<PushPlan> {
    let roots: Vec<StorePath> = roots.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect();
    let infos = store.path_infos(&roots, options.closure).await?;
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
    let mut lacking = BTreeSet::new();
    for batch in ours.chunks(MISSING_PATHS_BATCH_MAX) {
        let hashes: Vec<StorePathHash> = batch.iter().map(|info| info.path.hash()).collect();
        lacking.extend(api.get_missing_paths(cache, hashes).await?);
    }
    let (mut missing, present): (Vec<_>, Vec<_>) =
        ours.into_iter().partition(|info| lacking.contains(&info.path.hash()));
    missing.sort_by(|a, b| b.nar_size.cmp(&a.nar_size).then_with(|| a.path.cmp(&b.path)));
    Ok(PushPlan { cache: cache.clone(), missing, present: names(present), upstream: names(upstream) })
}

/// Splits paths into those that one of `key_names` signed, and the others.
pub fn split_upstream(infos: Vec<PathInfo>, key_names: &[String]) -> (Vec<PathInfo>, Vec<PathInfo>) {
    infos.into_iter().partition(|info| info.is_signed_by(key_names))
}

fn names(infos: Vec<PathInfo>) -> Vec<StorePath> {
    infos.into_iter().map(|info| info.path).collect()
}

/// Uploads what the plan says is missing. Errors of single paths do not stop the others, unless they would meet them too;
/// all of them are in the summary.
pub async fn execute_push(
    api: &ApiClient,
    plan: PushPlan,
    options: &PushOptions,
    reporter: Arc<dyn PushReporter>,
) -> PushSummary {
    let started = Instant::now();
    reporter.plan_made(&plan);
    let PushPlan { cache, missing, present, upstream } = plan;
    let mut summary = PushSummary { present, upstream, ..PushSummary::default() };
    let mut waiting = missing.into_iter().enumerate();
    let mut stop = false;
    // Tasks, so that uploads share the cores; dropping the set aborts them.
    let mut running = JoinSet::new();
    loop {
        while !stop && running.len() < options.jobs.max(1) {
            let Some((id, info)) = waiting.next() else { break };
            reporter.path_started(id, &info.path, info.nar_size);
            let upload = Upload {
                api: api.clone(),
                cache: cache.clone(),
                case_hack: options.case_hack,
                reporter: Arc::clone(&reporter),
                id,
            };
            running.spawn(upload.run(info));
        }
        let Some(ended) = running.join_next().await else { break };
        // Nobody aborts single tasks, so this is a panic: one of our mistakes, to be passed on.
        let (id, info, uploaded) =
            ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        match uploaded {
            Ok(uploaded) => {
                let done = summary.count(info, &uploaded);
                reporter.path_done(id, &done);
                summary.pushed.push(done);
            }
            Err(error) => {
                reporter.path_failed(id, &info.path, &error);
                stop |= error.is_fatal_for_push();
                summary.failed.push(FailedPath { path: info.path, error });
            }
        }
    }
    summary.not_tried = waiting.map(|(_, info)| info.path).collect();
    summary.elapsed = started.elapsed();
    summary
}

impl PushSummary {
    fn count(&mut self, info: PathInfo, uploaded: &Uploaded) -> PathDone {
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
        }
    }
}

/// `fraction` is in 0 to 1, so the product fits; a figure for people, so rounding does not matter.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate between 0 and `bytes`"
)]
fn fraction_of(bytes: u64, fraction: f64) -> u64 {
    (bytes as f64 * fraction).round() as u64
}

/// One upload on its own task.
struct Upload {
    api: ApiClient,
    cache: CacheName,
    case_hack: CaseHack,
    reporter: Arc<dyn PushReporter>,
    id: TransferId,
}

impl Upload {
    async fn run(self, info: PathInfo) -> (TransferId, PathInfo, Result<Uploaded>) {
        let source = NarSource {
            path: PathBuf::from(info.absolute_path()),
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            case_hack: self.case_hack,
        };
        let uploaded = self.api.upload_path(&info.upload_info(&self.cache), &source, &self).await;
        (self.id, info, uploaded)
    }
}

impl UploadReporter for Upload {
    fn progress(&self, bytes: u64) {
        self.reporter.path_progress(self.id, bytes);
    }

    fn retrying(&self, retry: &Retry<'_>) {
        self.reporter.path_retrying(self.id, retry);
    }
}
