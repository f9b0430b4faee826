//! Pushes the due paths of one cache as one plan, and says what became of each.

use std::collections::{BTreeSet, HashMap};

use dormer_nix::{StorePath, StorePathHash};

use super::drain_contract::{DrainReporter, DrainTarget, DrainTargets, RootEnd};
use super::entry::QueuedCache;
use crate::build_traces::push_traces;
use crate::by_chunks::{PushTarget, execute_push_to};
use crate::error::{Error, Result};
use crate::nix_store::NixStore;
use crate::push::{MISSING_PATHS_BATCH_MAX, PushSummary, plan_push};
use crate::push_plan::{AddressedOutput, PushPlan};

/// Pushes the closures of `paths` as one plan. The result has no end for a path that was not tried
/// because of the failure that is returned with it.
pub(super) async fn push_batch(
    cache: &QueuedCache,
    paths: BTreeSet<StorePath>,
    targets: &dyn DrainTargets,
    store: &NixStore,
    reporter: &dyn DrainReporter,
) -> (HashMap<StorePath, RootEnd>, Option<Error>) {
    let mut roots = HashMap::new();
    let target = match targets.connect(cache, store).await {
        Ok(target) => target,
        Err(source) => return (roots, Some(Error::QueueTarget { cache: cache.to_string(), source })),
    };
    // A path that breaks the plan of all others is found by halving.
    let mut parts = vec![paths.into_iter().collect::<Vec<_>>()];
    while let Some(mut part) = parts.pop() {
        let Err(error) = push_part(cache, &part, &target, store, reporter, &mut roots).await else {
            continue;
        };
        if stops_all(&error) {
            return (roots, Some(error));
        }
        if part.len() > 1 {
            let rest = part.split_off(part.len() / 2);
            parts.extend([rest, part]);
        } else if let Some(path) = part.pop() {
            let end = RootEnd::Failed(dormer_nix::with_causes(&error));
            reporter.root_ended(cache, &path, &end);
            roots.insert(path, end);
        }
    }
    (roots, None)
}

/// Whether the failure concerns the server, or Nix as a whole, and not the paths.
fn stops_all(error: &Error) -> bool {
    error.is_fatal_for_push()
        || matches!(
            error.carried(),
            Error::QueueTarget { .. }
                | Error::NixMissing { .. }
                | Error::NixRun { .. }
                | Error::Answer { .. }
                | Error::AnswerTooLarge { .. }
                | Error::Refused { .. }
                | Error::Redirected { .. }
                | Error::Unavailable { .. }
        )
}

async fn push_part(
    cache: &QueuedCache,
    paths: &[StorePath],
    target: &DrainTarget,
    store: &NixStore,
    reporter: &dyn DrainReporter,
    roots: &mut HashMap<StorePath, RootEnd>,
) -> Result<()> {
    // This old and simple question fails only if Nix as a whole does.
    let invalid = store
        .invalid_paths(paths)
        .await
        .map_err(|source| Error::QueueTarget { cache: cache.to_string(), source: source.into() })?;
    let mut ends: HashMap<StorePath, RootEnd> = HashMap::new();
    if !invalid.is_empty() {
        let lacking = missing(target, &invalid).await?;
        ends.extend(invalid.iter().map(|path| {
            let end = if lacking.contains(&path.hash()) { RootEnd::Gone } else { RootEnd::Present };
            (path.clone(), end)
        }));
    }
    let valid: Vec<StorePath> = paths.iter().filter(|path| !invalid.contains(path)).cloned().collect();
    let mut stopped = None;
    if !valid.is_empty() {
        let config = target.api.get_cache_config(&target.cache).await?;
        let plan = plan_push(&target.api, store, &target.cache, &config, &valid, &target.options).await?;
        ends.extend(ends_of_plan(&plan));
        let (addressed, is_known) = (plan.addressed.clone(), plan.missing.is_empty());
        let push_target = PushTarget { api: target.api.clone(), plan };
        let reports = reporter.push_reporter(cache);
        let push = execute_push_to(vec![push_target], &target.options, &target.transfer, reports);
        let mut summary = push.await.pop().expect("each target has a summary");
        reporter.pushed(cache, &summary);
        ends.extend(ends_of_summary(&summary));
        let lost = summary.failed.iter().map(|failed| &failed.path);
        let lost: BTreeSet<&StorePath> =
            lost.chain(summary.not_tried.iter().map(|path| &path.path)).collect();
        // What is there has its closure there, and so have the traces.
        let addressed: Vec<AddressedOutput> =
            addressed.into_iter().filter(|output| !lost.contains(&output.path)).collect();
        stopped = stopper(&summary).map(|place| summary.failed.swap_remove(place).error);
        match push_traces(&target.api, store, &target.cache, &addressed, is_known).await {
            Ok(traces) => {
                for (name, error) in &traces.failed {
                    reporter.trace_failed(cache, &name.to_string(), &dormer_nix::with_causes(error));
                }
            }
            // A Nix that tells traces in another form keeps no path from leaving the queue.
            Err(error @ Error::NixTraces(_)) => {
                reporter.trace_failed(cache, "a build trace", &dormer_nix::with_causes(&error));
            }
            // The entries stay, and with them the reason to send the traces.
            Err(error) => {
                ends.clear();
                let failed = Error::QueueTarget { cache: cache.to_string(), source: error.into() };
                stopped.get_or_insert(failed);
            }
        }
    }
    for path in paths {
        if let Some(end) = ends.remove(path) {
            reporter.root_ended(cache, path, &end);
            roots.insert(path.clone(), end);
        }
    }
    stopped.map_or(Ok(()), Err)
}

/// The hashes of `paths` that the cache lacks.
async fn missing(target: &DrainTarget, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePathHash>> {
    let hashes: Vec<StorePathHash> = paths.iter().map(StorePath::hash).collect();
    let mut lacking = BTreeSet::new();
    for batch in hashes.chunks(MISSING_PATHS_BATCH_MAX) {
        lacking.extend(target.api.get_missing_paths(&target.cache, batch.to_vec()).await?);
    }
    Ok(lacking)
}

/// What is certain before anything is sent.
fn ends_of_plan(plan: &PushPlan) -> HashMap<StorePath, RootEnd> {
    let mut ends = HashMap::new();
    for path in plan.present.iter().chain(&plan.upstream) {
        ends.insert(path.clone(), RootEnd::Present);
    }
    ends.extend(plan.left_out().into_iter().map(|(path, reason)| (path, RootEnd::LeftOut(reason))));
    ends
}

/// Whether the failure at a place concerns the server and not its path.
///
/// - A request for many paths, such as the opening of a session, fails for the first of them and
///   leaves the others without a failed reference: then the last failure ended the push, whatever
///   its kind.
/// - A server that refuses a path says so in an answer that can be read. Without one, no path is to
///   blame. By Attic's API, each path has a request of its own, so a server that took another path
///   of the same push works, and the failure is the path's.
fn is_of_server(summary: &PushSummary, place: usize) -> bool {
    let error = &summary.failed[place].error;
    let ended_early = summary.not_tried.iter().any(|path| path.failed_reference.is_none());
    let is_unexplained = matches!(
        error.carried(),
        Error::Answer { .. }
            | Error::AnswerTooLarge { .. }
            | Error::Redirected { .. }
            | Error::Unavailable { .. }
    );
    let took_another = !summary.pushed.is_empty() || !summary.kept.is_empty();
    error.is_fatal_for_push()
        || (ended_early && place + 1 == summary.failed.len())
        || (is_unexplained && (summary.by_chunks || !took_another))
}

/// The place of the failure that says best why the server's cache waits, if one does.
fn stopper(summary: &PushSummary) -> Option<usize> {
    let mut places = (0..summary.failed.len()).filter(|place| is_of_server(summary, *place));
    let first = places.clone().next();
    places.find(|place| summary.failed[*place].error.is_fatal_for_push()).or(first)
}

/// What became of the paths that were sent. A path that a failure of the server stopped has no end.
fn ends_of_summary(summary: &PushSummary) -> HashMap<StorePath, RootEnd> {
    let mut ends = HashMap::new();
    for done in summary.pushed.iter().chain(&summary.kept) {
        ends.insert(done.path.clone(), RootEnd::Pushed);
    }
    let mut reasons: HashMap<&StorePath, Option<String>> = HashMap::new();
    for (place, failed) in summary.failed.iter().enumerate() {
        let reason = (!is_of_server(summary, place)).then(|| dormer_nix::with_causes(&failed.error));
        if let Some(reason) = &reason {
            ends.insert(failed.path.clone(), RootEnd::Failed(reason.clone()));
        }
        reasons.insert(&failed.path, reason);
    }
    for not_tried in &summary.not_tried {
        let reference = not_tried.failed_reference.as_ref();
        let reason = reference.and_then(|path| Some((path, reasons.get(path)?.as_ref()?)));
        if let Some((reference, reason)) = reason {
            let reason = format!("its reference {reference} failed: {reason}");
            ends.insert(not_tried.path.clone(), RootEnd::Failed(reason));
        }
    }
    ends
}
