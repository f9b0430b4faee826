//! Push by chunks: sends only the chunks that a cache lacks, compressed, for many paths at once.
//!
//! The client cuts NARs as the server does, asks which chunks are missing, and sends those in
//! *parts* within a *session*. It commits paths in batches, references first. docs/HTTP-API.md,
//! "Push by chunks", describes the requests, and docs/adr/0027-push-by-chunks-client.md the
//! decisions.
//!
//! Invariants
//! - Each NAR is read and cut once, and each chunk compressed once, for all targets that cut alike.
//!   A NAR is read again only if the server lost chunks of it.
//! - A chunk that several paths have is sent once.
//! - A path is committed only if its NAR has the hash that Nix told, and after its references.
//! - Memory is bounded, whatever the push (`pipeline`).
//! - A push that was killed is joined again: the session's name is on the disk before its first use
//!   (`session_file`).

mod commit_order;
mod cutter;
mod encoders;
mod known_chunks;
mod numbers;
mod part_builder;
mod pipeline;
mod session_file;
mod target;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use dormer_api::v2::SessionResponse;
use dormer_format::ChunkParams;
use dormer_nix::StorePath;

pub(crate) use self::part_builder::Part;
pub use self::session_file::session_folder;

use self::commit_order::PathGraph;
use self::numbers::{PathNumber, TargetSet};
use self::pipeline::{Pipeline, Work};
use self::session_file::SessionFile;
use self::target::{Stop, Target};
use crate::api::ApiClient;
use crate::error::{Error, Result};
use crate::path_info::PathInfo;
use crate::push::{FailedPath, NotTriedPath, PushOptions, PushSummary, execute_push};
use crate::push_order::closure_order;
use crate::push_plan::PushPlan;
use crate::reporter::PushReporter;

/// Most targets of one pass over the NARs.
const TARGETS_MAX: usize = TargetSet::BITS as usize;

/// How often a push goes on in a new session after one that ended. A session lasts a day.
const SESSIONS_MAX: usize = 3;

/// Threads for each stage unless the user says otherwise: more would take more memory, and a line
/// has hardly work for more.
const THREADS_DEFAULT_MAX: usize = 4;

/// A session that an earlier push left is joined only if it lasts at least this long.
const SESSION_SECONDS_MIN: i64 = 3600;

/// Most bytes of an entry in a commit apart from the ids of chunks: 1 MiB of metadata, 1 MiB of
/// fills.
const ENTRY_BYTES: u64 = 2 * 1024 * 1024;

/// Which API a push uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PushApi {
    /// Push by chunks if the server can, else Attic's API.
    #[default]
    Best,
    /// Attic's API: every NAR whole.
    Attic,
    /// Push by chunks, or an error.
    Chunks,
}

/// How chunks are made and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferOptions {
    /// Which API to use.
    pub api: PushApi,
    /// The zstd level; `None` for the server's own.
    pub compression_level: Option<i32>,
    /// Threads that read, and as many that compress; at least one. Memory limits both: at most
    /// eight read, and fewer compress at high levels.
    pub threads: usize,
    /// Most bytes of a part; `None` for the server's limit.
    pub part_bytes_max: Option<u64>,
    /// Where the names of sessions are kept, so that a push that was killed is joined again. `None`
    /// keeps none.
    pub session_folder: Option<PathBuf>,
}

impl Default for TransferOptions {
    fn default() -> Self {
        Self {
            api: PushApi::Best,
            compression_level: None,
            threads: default_threads(std::thread::available_parallelism().map_or(1, usize::from)),
            part_bytes_max: None,
            session_folder: None,
        }
    }
}

/// Threads for each stage on a machine with so many processors.
fn default_threads(processors: usize) -> usize {
    processors.min(THREADS_DEFAULT_MAX)
}

/// A cache to push to.
#[derive(Debug)]
pub struct PushTarget {
    /// A client of its server.
    pub api: ApiClient,
    /// What it lacks.
    pub plan: PushPlan,
}

/// A target with an open session.
struct OpenTarget {
    /// Place among the summaries.
    place: usize,
    api: ApiClient,
    plan: PushPlan,
    session: SessionFile,
    limits: SessionResponse,
}

/// Pushes to several caches, and reads each NAR once for all that cut alike. Each cache gets its
/// own summary, in the order of `targets`; the failure of one does not stop the others.
///
/// A server without push by chunks gets every NAR whole, by Attic's API.
pub async fn execute_push_to(
    targets: Vec<PushTarget>,
    options: &PushOptions,
    transfer: &TransferOptions,
    reporter: Arc<dyn PushReporter>,
) -> Vec<PushSummary> {
    let started = Instant::now();
    let mut summaries: Vec<PushSummary> = targets.iter().map(|_| PushSummary::default()).collect();
    let mut open_targets = Vec::new();
    for (place, PushTarget { api, plan }) in targets.into_iter().enumerate() {
        match open(&api, &plan, transfer, &*reporter).await {
            Ok(Some((session, limits))) => {
                reporter.plan_made(&plan);
                open_targets.push(OpenTarget { place, api, plan, session, limits });
            }
            Ok(None) => summaries[place] = execute_push(&api, plan, options, Arc::clone(&reporter)).await,
            Err(error) => summaries[place] = failed_push(plan, error, &*reporter),
        }
    }
    for group in alike(open_targets) {
        push_group(group, options, transfer, &reporter, &mut summaries).await;
    }
    for summary in &mut summaries {
        summary.elapsed = started.elapsed();
    }
    summaries
}

/// Opens a session for a plan. `None` if Attic's API has to do, or if there is nothing to push.
async fn open(
    api: &ApiClient,
    plan: &PushPlan,
    transfer: &TransferOptions,
    reporter: &dyn PushReporter,
) -> Result<Option<(SessionFile, SessionResponse)>> {
    if transfer.api == PushApi::Attic || plan.missing.is_empty() {
        return Ok(None);
    }
    let mut session = SessionFile::open(transfer.session_folder.as_deref(), api.endpoint(), &plan.cache);
    loop {
        let must = transfer.api == PushApi::Chunks;
        let limits = match api.open_session(&plan.cache, &session.id(), must).await {
            // Jobs without a disk of their own leave a session each. Attic's API needs none.
            Err(error) if !must && error.is_too_many_sessions() => {
                reporter.falls_back(&plan.cache, &dormer_nix::with_causes(&error));
                return Ok(None);
            }
            Err(Error::NoChunkApi { .. }) if !must => {
                reporter.falls_back(&plan.cache, OTHER_CUTS);
                return Ok(None);
            }
            limits => limits?,
        };
        match limits {
            // The session is over, or belongs to another token of this user.
            None if session.is_old() => session.renew(),
            Some(limits) if session.is_old() && seconds_left(&limits) < SESSION_SECONDS_MIN => {
                session.renew();
            }
            Some(limits) if is_understood(&limits, plan) => return Ok(Some((session, limits))),
            Some(_) | None if must => {
                return Err(Error::NoChunkApi { endpoint: api.endpoint().to_string() });
            }
            Some(_) => {
                reporter.falls_back(&plan.cache, OTHER_CUTS);
                return Ok(None);
            }
            None => return Ok(None),
        }
    }
}

/// Why a push sends whole NARs to a server of another version.
const OTHER_CUTS: &str = "the server cuts NARs in a way that this version does not know";

fn seconds_left(limits: &SessionResponse) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    limits.ends_at.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX))
}

/// Whether this client cuts as the server does.
fn is_understood(limits: &SessionResponse, plan: &PushPlan) -> bool {
    params_of(limits).is_some() && plan.missing.iter().all(|info| info.store_dir == limits.store_dir)
}

fn params_of(limits: &SessionResponse) -> Option<ChunkParams> {
    ChunkParams::new(limits.chunk_min, limits.chunk_avg, limits.chunk_max).ok()
}

/// Groups of targets that cut alike.
fn alike(targets: Vec<OpenTarget>) -> Vec<Vec<OpenTarget>> {
    let cuts = |limits: &SessionResponse| {
        (limits.store_dir.clone(), limits.chunk_min, limits.chunk_avg, limits.chunk_max)
    };
    let mut groups: Vec<Vec<OpenTarget>> = Vec::new();
    for target in targets {
        let alike = |group: &&mut Vec<OpenTarget>| {
            group.len() < TARGETS_MAX && cuts(&group[0].limits) == cuts(&target.limits)
        };
        match groups.iter_mut().find(alike) {
            Some(group) => group.push(target),
            None => groups.push(vec![target]),
        }
    }
    groups
}

/// The summary of a plan before anything was pushed.
fn begun_summary(plan: &mut PushPlan) -> PushSummary {
    let invalid = std::mem::take(&mut plan.invalid).into_iter().map(|path| {
        let error = Error::InvalidPath { path: path.to_string() };
        FailedPath { path, error }
    });
    PushSummary {
        failed: invalid.collect(),
        present: std::mem::take(&mut plan.present),
        upstream: std::mem::take(&mut plan.upstream),
        by_chunks: true,
        ..PushSummary::default()
    }
}

/// The summary of a push that failed before its first path.
fn failed_push(mut plan: PushPlan, error: Error, reporter: &dyn PushReporter) -> PushSummary {
    reporter.plan_made(&plan);
    let error = error.of_whole_push();
    let mut summary = begun_summary(&mut plan);
    let mut paths = closure_order(plan.missing).into_iter().map(|info| info.path);
    if let Some(path) = paths.next() {
        reporter.path_failed(0, &path, &error);
        summary.failed.push(FailedPath { path, error });
    }
    summary.not_tried.extend(paths.map(|path| NotTriedPath { path, failed_reference: None }));
    summary
}

/// Pushes to targets that cut alike.
async fn push_group(
    group: Vec<OpenTarget>,
    options: &PushOptions,
    transfer: &TransferOptions,
    reporter: &Arc<dyn PushReporter>,
    summaries: &mut [PushSummary],
) {
    let mut whole = Vec::new();
    let mut group: Vec<OpenTarget> = group
        .into_iter()
        .map(|mut target| {
            summaries[target.place] = begun_summary(&mut target.plan);
            let (chunked, too_large) =
                split_too_large(std::mem::take(&mut target.plan.missing), &target.limits);
            target.plan.missing = chunked;
            target.plan.derivers.clear();
            // What else a plan holds is in the summary already.
            let rest = PushPlan { missing: too_large, ..target.plan.clone() };
            whole.push((target.place, target.api.clone(), rest));
            target
        })
        .collect();
    for sessions_left in (0..SESSIONS_MAX).rev() {
        let ended = push_once(group, options, transfer, reporter, summaries).await;
        group = Vec::new();
        for (mut target, rest) in ended {
            let action = format!("pushing to cache {}", target.plan.cache);
            let error = Error::SessionEnded { action };
            target.plan.missing = rest;
            if sessions_left == 0 {
                let summary = failed_push(target.plan, error, &**reporter);
                summaries[target.place].absorb(summary);
                continue;
            }
            target.session.renew();
            match target.api.open_session(&target.plan.cache, &target.session.id(), true).await {
                Ok(Some(limits)) => {
                    target.limits = limits;
                    group.push(target);
                }
                Ok(None) => summaries[target.place].absorb(failed_push(target.plan, error, &**reporter)),
                Err(error) => summaries[target.place].absorb(failed_push(target.plan, error, &**reporter)),
            }
        }
        if group.is_empty() {
            break;
        }
    }
    for (place, api, mut plan) in whole {
        drop_lost(&mut plan, &mut summaries[place]);
        if !plan.missing.is_empty() {
            let summary = execute_push(&api, plan, options, Arc::clone(reporter)).await;
            summaries[place].absorb(summary);
        }
    }
}

/// One pass over the NARs. Returns the targets with sessions that ended, and what they still lack.
async fn push_once(
    group: Vec<OpenTarget>,
    options: &PushOptions,
    transfer: &TransferOptions,
    reporter: &Arc<dyn PushReporter>,
    summaries: &mut [PushSummary],
) -> Vec<(OpenTarget, Vec<PathInfo>)> {
    let Some(first) = group.first() else { return Vec::new() };
    let Some(params) = params_of(&first.limits) else { return Vec::new() };
    let (store_dir, level) =
        (first.limits.store_dir.to_string(), group.iter().map(|it| it.limits.level).max());
    let (paths, graph) = all_paths(&group);
    let paths = Arc::new(paths);
    let mut plans = Vec::new();
    let count = group.len();
    let targets = group.into_iter().map(|OpenTarget { place, api, plan, session, limits }| {
        let wanted: HashSet<&StorePath> = plan.missing.iter().map(|info| &info.path).collect();
        let wants = paths.iter().map(|info| wanted.contains(&info.path)).collect();
        let part_bytes_max = transfer.part_bytes_max.unwrap_or(u64::MAX).min(limits.part_bytes_max);
        let work = (Arc::clone(&paths), Arc::clone(&graph), wants);
        let cache = plan.cache.clone();
        plans.push((place, plan));
        Target::new(api, cache, session, limits, work, (part_bytes_max, count), Arc::clone(reporter))
    });
    let targets: Vec<Target> = targets.collect();
    let work = Work {
        files: paths.iter().map(|info| options.file_path(info)).collect(),
        paths: Arc::clone(&paths),
        case_hack: options.case_hack,
        params,
        store_dir,
        level: transfer.compression_level.or(level).unwrap_or_default(),
        threads: transfer.threads.max(1),
        jobs: options.jobs.max(1),
        reporter: Arc::clone(reporter),
    };
    let mut ended = Vec::new();
    for (target, (place, plan)) in Pipeline::new(work, targets).run().await.into_iter().zip(plans) {
        let rest = target.rest();
        let Target { api, session, limits, stop, summary, .. } = target;
        summaries[place].absorb(summary);
        if matches!(stop, Some(Stop::SessionEnded)) {
            ended.push((OpenTarget { place, api, plan, session, limits }, rest));
        }
    }
    ended
}

/// The paths that some target lacks, each once and after its references, and their graph.
fn all_paths(group: &[OpenTarget]) -> (Vec<PathInfo>, Arc<PathGraph>) {
    let mut seen = BTreeSet::new();
    let all = group.iter().flat_map(|target| &target.plan.missing);
    let paths = closure_order(all.filter(|info| seen.insert(info.path.clone())).cloned().collect());
    let numbers: HashMap<&StorePath, PathNumber> =
        paths.iter().enumerate().map(|(number, info)| (&info.path, number)).collect();
    let references = |info: &PathInfo| {
        let planned: BTreeSet<PathNumber> =
            info.references.iter().filter_map(|path| numbers.get(path).copied()).collect();
        planned.into_iter().collect()
    };
    let graph = PathGraph::new(paths.iter().map(references).collect());
    (paths, Arc::new(graph))
}

/// Splits off the paths whose manifests may not fit a commit, and those that refer to them: they go
/// by Attic's API. With the server's defaults, these are NARs of more than 22 GiB.
fn split_too_large(missing: Vec<PathInfo>, limits: &SessionResponse) -> (Vec<PathInfo>, Vec<PathInfo>) {
    let fits = |info: &PathInfo| {
        let chunks = info.nar_size / u64::from(limits.chunk_min.max(1)) + 1;
        chunks.saturating_mul(32).saturating_add(ENTRY_BYTES) <= limits.commit_bytes_max
    };
    if missing.iter().all(fits) {
        return (missing, Vec::new());
    }
    let mut too_large = HashSet::new();
    closure_order(missing).into_iter().partition(|info| {
        let is_chunked = fits(info) && !info.references.iter().any(|path| too_large.contains(path));
        if !is_chunked {
            too_large.insert(info.path.clone());
        }
        is_chunked
    })
}

/// Takes out of a plan what refers to paths that failed, directly or through paths that were not
/// tried.
fn drop_lost(plan: &mut PushPlan, summary: &mut PushSummary) {
    // What is lost, and the failure that it is lost with.
    let failed = summary.failed.iter().map(|failed| (failed.path.clone(), Some(failed.path.clone())));
    let not_tried = summary.not_tried.iter();
    let not_tried = not_tried.map(|skipped| (skipped.path.clone(), skipped.failed_reference.clone()));
    let mut lost: HashMap<StorePath, Option<StorePath>> = failed.chain(not_tried).collect();
    let stopped = summary.failed.iter().any(|failed| failed.error.is_fatal_for_push());
    let mut kept = Vec::new();
    for info in closure_order(std::mem::take(&mut plan.missing)) {
        let lost_with = info.references.iter().find_map(|path| lost.get(path).cloned());
        if stopped || lost_with.is_some() {
            let failed_reference = lost_with.flatten();
            lost.insert(info.path.clone(), failed_reference.clone());
            summary.not_tried.push(NotTriedPath { path: info.path, failed_reference });
        } else {
            kept.push(info);
        }
    }
    plan.missing = kept;
}

#[cfg(test)]
mod tests {
    use dormer_nix::NarHash;

    use super::*;

    fn info(name: &str, references: &[&PathInfo]) -> PathInfo {
        PathInfo {
            store_dir: "/nix/store".parse().unwrap(),
            path: format!("{}-{name}", "0".repeat(32)).parse().unwrap(),
            nar_hash: NarHash::digest(b""),
            nar_size: 1000,
            references: references.iter().map(|info| info.path.clone()).collect(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
            system: None,
            extra: Vec::new(),
        }
    }

    fn plan(missing: Vec<PathInfo>) -> PushPlan {
        PushPlan {
            cache: "main".parse().unwrap(),
            missing,
            excluded: Vec::new(),
            incomplete: Vec::new(),
            present: Vec::new(),
            upstream: Vec::new(),
            derivers: Vec::new(),
            addressed: Vec::new(),
            invalid: Vec::new(),
        }
    }

    #[test]
    fn what_is_lost_names_the_path_that_failed() {
        let failed = info("failed", &[]);
        let skipped = info("skipped", &[&failed]);
        let next = info("next", &[&skipped]);
        let last = info("last", &[&next]);
        let other = info("other", &[]);
        let error = Error::Refused { action: String::new(), status: 400, name: None, message: String::new() };
        let mut summary = PushSummary {
            failed: vec![FailedPath { path: failed.path.clone(), error }],
            not_tried: vec![NotTriedPath { path: skipped.path, failed_reference: Some(failed.path.clone()) }],
            ..PushSummary::default()
        };
        let mut plan = plan(vec![last, other.clone(), next]);
        drop_lost(&mut plan, &mut summary);
        assert_eq!(plan.missing, [other]);
        let names: Vec<_> = summary.not_tried.iter().map(|skipped| &skipped.failed_reference).collect();
        assert_eq!(names, [&Some(failed.path.clone()), &Some(failed.path.clone()), &Some(failed.path)]);
    }

    #[test]
    fn many_processors_do_not_take_more_memory_by_default() {
        assert_eq!([1, 4, 5, 256].map(default_threads), [1, 4, 4, 4]);
    }
}
