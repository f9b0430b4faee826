//! Expiry: what goes, what stays, and that closures stay whole.

use super::fixtures::{NOW, cache, changes, nar_hash, object, path, path_hash, push};
use super::jobs::Both;
use crate::{
    AuditFilter, CacheId, CachePatch, CacheRules, CommitTarget, Error, ExpiryDefaults, ExpiryRule, JobKind,
    JobLease, KEEPERS_WINDOW, Keepers, ListedObject, NarCommit, NarQuery, NarSource, NewDocument, Object,
    ObjectOrder, ObjectPlace, Pin, Result, Use,
};
use dormer_nix::{BuildTrace, DocumentName, StorePath, TraceKey};
use std::collections::{BTreeMap, BTreeSet};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
const WEEK: i64 = 7 * DAY;
const GRACE: i64 = 30 * DAY;
/// The size of the first NAR as it is served; those after it have a byte more each.
const FILE_SIZE: u64 = 5_000;

const DEFAULTS: ExpiryDefaults =
    ExpiryDefaults { retention_seconds: 0, quota_bytes: 0, grace_seconds: GRACE, log_retention_seconds: 0 };

fn referring(number: u32, to: &[u32]) -> Object {
    Object { references: to.iter().map(|number| path(*number)).collect(), ..object(number) }
}

impl Both {
    async fn kept_cache(&self, patch: CachePatch) -> Result<CacheId> {
        let id = cache(&self.index, "main").await?;
        self.index.update_cache(id, &patch, NOW).await?;
        Ok(id)
    }

    /// A cache that keeps an unused path for a week.
    async fn weekly_cache(&self) -> Result<CacheId> {
        self.kept_cache(CachePatch { retention_seconds: Some(Some(WEEK)), ..CachePatch::default() }).await
    }

    async fn push_referring(&self, cache: CacheId, number: u32, to: &[u32]) -> Result<()> {
        push(&self.index, cache, number, CommitTarget::Object(referring(number, to))).await.map(drop)
    }

    async fn take(&self, now: i64) -> Result<Option<JobLease>> {
        self.jobs.lease_job(JobKind::ExpireCache, "a", now, now + 60).await
    }

    /// Runs all expire jobs that are due at `now`; returns how many rows they changed.
    async fn expire(&self, now: i64, limit: u32) -> Result<u64> {
        self.expire_with(&DEFAULTS, now, limit).await
    }

    async fn expire_with(&self, defaults: &ExpiryDefaults, now: i64, limit: u32) -> Result<u64> {
        let mut rows = 0;
        self.jobs.open_expire_jobs(defaults, now, now - HOUR).await?;
        while let Some(lease) = self.take(now).await? {
            loop {
                let step = self.jobs.expire_cache_step(&lease, defaults, limit, now, now + 60).await?;
                rows += step.rows;
                if step.is_last {
                    break;
                }
            }
        }
        Ok(rows)
    }

    /// Numbers of the paths that the cache has.
    async fn live(&self, cache: CacheId) -> Result<Vec<u32>> {
        let mut live = Vec::new();
        for number in 1..=40 {
            if self.index.find_object(cache, &path_hash(number)).await?.is_some() {
                live.push(number);
            }
        }
        Ok(live)
    }

    async fn is_readable(&self, cache: CacheId, number: u32, now: i64) -> Result<bool> {
        let key = NarQuery::Hash(nar_hash(number));
        Ok(self.index.find_nar_in_cache(cache, &key, now).await?.is_some())
    }
}

pub(super) async fn what_is_unused_expires_with_a_grace(both: Both) -> Result<()> {
    let main = both.weekly_cache().await?;
    let other = cache(&both.index, "other").await?;
    both.push_referring(main, 1, &[]).await?;
    both.push_referring(other, 1, &[]).await?;
    assert_eq!(both.expire(NOW + WEEK, 10).await?, 0, "not before the period is over");
    let before = changes(&both.index, main).await?.len();
    let now = NOW + WEEK + 2 * HOUR;
    assert_eq!(both.expire(now, 10).await?, 1);
    assert!(both.live(main).await?.is_empty());
    assert_eq!(both.live(other).await?, [1]);
    assert_eq!(changes(&both.index, main).await?[before..], [Some(path_hash(1))]);
    assert!(both.is_readable(main, 1, now + GRACE - 1).await?);
    assert!(!both.is_readable(main, 1, now + GRACE).await?);
    assert!(both.index.present_objects(main, &[path_hash(1)]).await?.is_empty());
    both.push_referring(main, 1, &[]).await?;
    assert_eq!(both.live(main).await?, [1], "it can be pushed again");
    Ok(())
}

pub(super) async fn a_cache_that_keeps_everything_has_no_job(both: Both) -> Result<()> {
    let main = cache(&both.index, "main").await?;
    both.push_referring(main, 1, &[]).await?;
    let now = NOW + 1000 * DAY;
    assert_eq!(both.jobs.open_expire_jobs(&DEFAULTS, now, now).await?, 0);
    let weekly = ExpiryDefaults { retention_seconds: WEEK, ..DEFAULTS };
    let never = CachePatch { retention_seconds: Some(Some(0)), ..CachePatch::default() };
    both.index.update_cache(main, &never, NOW).await?;
    assert_eq!(both.jobs.open_expire_jobs(&weekly, now, now).await?, 0, "0 keeps everything");
    let default = CachePatch { retention_seconds: Some(None), ..CachePatch::default() };
    both.index.update_cache(main, &default, NOW).await?;
    assert_eq!(both.jobs.open_expire_jobs(&weekly, now, now).await?, 1);
    assert_eq!(both.jobs.open_expire_jobs(&weekly, now, now).await?, 0, "it is open");
    let lease = both.take(now).await?.expect("it was opened");
    while !both.jobs.expire_cache_step(&lease, &weekly, 10, now, now + 60).await?.is_last {}
    assert!(both.live(main).await?.is_empty());
    assert_eq!(both.jobs.open_expire_jobs(&weekly, now + 5, now - 1).await?, 0, "it has just ended");
    assert_eq!(both.jobs.open_expire_jobs(&weekly, now + HOUR, now).await?, 1);
    let lease = both.take(now + HOUR).await?.expect("it was opened");
    both.index.delete_cache(main, None, now).await?;
    let step = both.jobs.expire_cache_step(&lease, &weekly, 10, now, now + 60).await?;
    assert!(step.is_last && step.rows == 0, "the cache went meanwhile");
    Ok(())
}

/// The log of a derivation that no object names, and a trace of a path that never came.
async fn put_orphans(both: &Both, cache: CacheId, number: u32) -> Result<[DocumentName; 2]> {
    let derivation =
        StorePath::new(path_hash(number), &format!("package-{number}.drv")).expect("a good name");
    let log = DocumentName::Log(derivation.clone());
    let owner = derivation.hash();
    let document = NewDocument { name: log.clone(), owner, size: 1, encoding: None, body: vec![b'x'] };
    both.index.put_document(cache, &document, NOW).await?;
    let trace = BuildTrace {
        key: TraceKey::Derivation { derivation, output: "out".to_owned() },
        out_path: path(number),
        dependents: BTreeMap::new(),
        sigs: Vec::new(),
        is_keyed: false,
    };
    both.index.merge_trace(cache, &trace, &[], NOW).await?;
    Ok([log, DocumentName::Trace(trace.key)])
}

/// Nothing reads a trace whose path never came. A log is read by the name of its derivation.
pub(super) async fn logs_of_no_object_stay_where_everything_is_kept(both: Both) -> Result<()> {
    let main = cache(&both.index, "main").await?;
    both.push_referring(main, 1, &[]).await?;
    let orphans = put_orphans(&both, main, 21).await?;
    let are_there = async || -> Result<Vec<bool>> {
        let mut found = Vec::new();
        for name in &orphans {
            let is_there = both.index.find_document(main, name).await?.is_some();
            assert_eq!(both.index.has_document(main, name).await?, is_there);
            found.push(is_there);
        }
        Ok(found)
    };
    assert_eq!(both.expire(NOW + GRACE, 10).await?, 0, "their path may still come");
    assert_eq!(are_there().await?, [true, true]);
    assert_eq!(both.expire(NOW + GRACE + DAY, 10).await?, 1);
    assert_eq!(are_there().await?, [true, false]);
    assert_eq!(both.expire(NOW + 1_000 * DAY, 10).await?, 0);
    assert_eq!((are_there().await?, both.live(main).await?), (vec![true, false], vec![1]));
    let weekly = CachePatch { retention_seconds: Some(Some(2_000 * DAY)), ..CachePatch::default() };
    both.index.update_cache(main, &weekly, NOW).await?;
    assert_eq!(both.expire(NOW + 1_001 * DAY, 10).await?, 1, "a cache that forgets keeps no such log");
    assert_eq!((are_there().await?, both.live(main).await?), (vec![false, false], vec![1]));
    let default = CachePatch { retention_seconds: Some(None), ..CachePatch::default() };
    both.index.update_cache(main, &default, NOW).await?;
    let later = NOW + 1_002 * DAY;
    assert_eq!(both.jobs.open_expire_jobs(&DEFAULTS, later, later).await?, 0, "nothing is left to look at");
    Ok(())
}

/// Of logs that objects name, and of others, in a cache that keeps all its paths. Followers are
/// told, so that a log goes from the edge too.
pub(super) async fn logs_have_a_retention_of_their_own(both: Both) -> Result<()> {
    let main = cache(&both.index, "main").await?;
    let weekly = ExpiryDefaults { log_retention_seconds: WEEK, ..DEFAULTS };
    let mut logs = Vec::new();
    for number in [21, 22, 23] {
        let [log, trace] = put_orphans(&both, main, number).await?;
        let DocumentName::Log(derivation) = &log else { panic!("{log}") };
        if number < 23 {
            // Two outputs; the trace is of the first.
            for output in [number, number + 10] {
                let named = Object { deriver: Some(derivation.to_string()), ..object(output) };
                push(&both.index, main, output, CommitTarget::Object(named)).await?;
            }
        }
        logs.push((log, trace));
    }
    let are_there = async || -> Result<Vec<(bool, bool)>> {
        let mut found = Vec::new();
        for (log, trace) in &logs {
            let log = both.index.find_document(main, log).await?.is_some();
            found.push((log, both.index.find_document(main, trace).await?.is_some()));
        }
        Ok(found)
    };
    let before = changes(&both.index, main).await?.len();
    assert_eq!(both.expire_with(&weekly, NOW + WEEK, 10).await?, 0, "not before the period is over");
    // One comes again: it counts from then on.
    let (DocumentName::Log(derivation), body) = (logs[1].0.clone(), vec![b'y']) else { panic!("no log") };
    let (name, owner) = (logs[1].0.clone(), derivation.hash());
    let again = NewDocument { name, owner, size: 1, encoding: None, body };
    both.index.put_document(main, &again, NOW + DAY).await?;
    let told = changes(&both.index, main).await?.len();
    assert_eq!(told, before + 2);
    let live = both.live(main).await?;
    assert_eq!(both.expire_with(&weekly, NOW + WEEK + HOUR, 2).await?, 2, "in steps of two");
    assert_eq!(are_there().await?, [(false, true), (true, true), (false, true)]);
    let mut since: Vec<_> = changes(&both.index, main).await?.drain(told..).flatten().collect();
    since.sort_unstable();
    let mut outputs = [path_hash(21), path_hash(31)];
    outputs.sort_unstable();
    assert_eq!((since, both.live(main).await?), (outputs.to_vec(), live));
    assert_eq!(both.expire_with(&weekly, NOW + WEEK + DAY + 1, 2).await?, 1);
    assert_eq!(are_there().await?, [(false, true), (false, true), (false, true)]);
    Ok(())
}

pub(super) async fn documents_of_no_object_expire(both: Both) -> Result<()> {
    let main = both.weekly_cache().await?;
    let derivation = |number: u32| {
        StorePath::new(path_hash(number), &format!("package-{number}.drv")).expect("a good name")
    };
    let log = |number: u32| NewDocument {
        name: DocumentName::Log(derivation(number)),
        owner: path_hash(number),
        size: 1,
        encoding: None,
        body: vec![b'x'],
    };
    let trace = |number: u32| BuildTrace {
        key: TraceKey::Derivation { derivation: derivation(number), output: "out".to_owned() },
        out_path: path(number),
        dependents: BTreeMap::new(),
        sigs: Vec::new(),
        is_keyed: false,
    };
    for number in 1..=2 {
        let deriver = Some(derivation(number + 10).to_string());
        let object = Object { deriver, ..object(number) };
        push(&both.index, main, number, CommitTarget::Object(object)).await?;
        both.index.put_document(main, &log(number + 10), NOW).await?;
        both.index.merge_trace(main, &trace(number), &[], NOW).await?;
    }
    // Of paths that never came.
    for number in 21..=25 {
        both.index.put_document(main, &log(number), NOW).await?;
        both.index.merge_trace(main, &trace(number), &[], NOW).await?;
    }
    let has = async |number: u32| -> Result<(bool, bool)> {
        let (log, trace) =
            (DocumentName::Log(derivation(number + 10)), DocumentName::Trace(trace(number).key));
        let log = both.index.find_document(main, &log).await?.is_some();
        Ok((log, both.index.find_document(main, &trace).await?.is_some()))
    };
    let now = NOW + WEEK + DAY;
    both.index.touch_objects(main, &[path_hash(2)], Use::Pull, now - DAY).await?;
    assert_eq!(both.expire(now, 3).await?, 1, "path 1; its documents are younger than the grace");
    assert_eq!((has(1).await?, has(11).await?), ((true, true), (true, false)));
    let now = NOW + GRACE + 1;
    both.index.touch_objects(main, &[path_hash(2)], Use::Pull, now - DAY).await?;
    assert_eq!(both.expire(now, 3).await?, 2 + 10, "in steps of three");
    assert_eq!(
        (has(1).await?, has(2).await?, has(11).await?),
        ((false, false), (true, true), (false, false))
    );
    assert_eq!(both.expire(now + DAY, 3).await?, 0);
    Ok(())
}

/// 1 → 2 → 3, 1 → 4 (absent), 5 → 3.
async fn small_closures(both: &Both, cache: CacheId) -> Result<()> {
    both.push_referring(cache, 3, &[3]).await?;
    both.push_referring(cache, 2, &[3]).await?;
    both.push_referring(cache, 1, &[1, 2, 4]).await?;
    both.push_referring(cache, 5, &[3]).await
}

pub(super) async fn what_a_live_object_needs_stays(both: Both) -> Result<()> {
    let main = both.weekly_cache().await?;
    small_closures(&both, main).await?;
    let now = NOW + WEEK + DAY;
    both.index.touch_objects(main, &[path_hash(1)], Use::Pull, now - DAY).await?;
    assert_eq!(both.expire(now, 10).await?, 1);
    assert_eq!(both.live(main).await?, [1, 2, 3], "5 went; 1 keeps its closure");
    Ok(())
}

pub(super) async fn a_removed_referrer_frees_what_it_needed(both: Both) -> Result<()> {
    let main = both.weekly_cache().await?;
    small_closures(&both, main).await?;
    let removal = crate::Removal::WithGraceUntil(NOW + GRACE);
    both.index.remove_object(main, &path_hash(5), removal, NOW).await?;
    let now = NOW + WEEK + DAY;
    both.index.touch_objects(main, &[path_hash(2)], Use::Pull, now - DAY).await?;
    assert_eq!(both.expire(now, 10).await?, 1);
    assert_eq!(both.live(main).await?, [2, 3]);
    both.index.remove_object(main, &path_hash(2), removal, now).await?;
    assert_eq!(both.expire(now + DAY, 10).await?, 1);
    assert!(both.live(main).await?.is_empty());
    Ok(())
}

pub(super) async fn new_references_replace_those_of_before(both: Both) -> Result<()> {
    let main = both.weekly_cache().await?;
    small_closures(&both, main).await?;
    both.push_referring(main, 1, &[5]).await?;
    let now = NOW + WEEK + DAY;
    both.index.touch_objects(main, &[path_hash(1)], Use::Pull, now - DAY).await?;
    assert_eq!(both.expire(now, 10).await?, 1);
    assert_eq!(both.live(main).await?, [1, 3, 5], "1 needs 5 and no longer 2");
    Ok(())
}

pub(super) async fn a_pull_and_a_push_are_uses(both: Both) -> Result<()> {
    let main = both.weekly_cache().await?;
    for number in 1..=3 {
        both.push_referring(main, number, &[]).await?;
    }
    let now = NOW + WEEK + DAY;
    both.index.touch_objects(main, &[path_hash(1)], Use::Pull, now - DAY).await?;
    both.index.touch_objects(main, &[path_hash(2)], Use::Push, now - DAY).await?;
    let pushed = both.index.present_objects(main, &[path_hash(1)]).await?;
    assert_eq!(pushed, [(path_hash(1), NOW)], "a pull is no push");
    assert_eq!(both.expire(now, 10).await?, 1);
    assert_eq!(both.live(main).await?, [1, 2]);
    // A short period spares what was used within two hours.
    let short = CachePatch { retention_seconds: Some(Some(1)), ..CachePatch::default() };
    both.index.update_cache(main, &short, now).await?;
    both.index.touch_objects(main, &[path_hash(1)], Use::Pull, now + HOUR).await?;
    assert_eq!(both.expire(now + 3 * HOUR, 10).await?, 1);
    assert_eq!(both.live(main).await?, [1]);
    Ok(())
}

pub(super) async fn the_newest_of_a_name_are_kept(both: Both) -> Result<()> {
    let two = CachePatch { keep_latest: Some(Some(2)), ..CachePatch::default() };
    let main = both.kept_cache(two).await?;
    // Paths of one name, pushed one after another; 1 needs 2, and 20 has another name.
    for number in 1..=5 {
        let path = dormer_nix::StorePath::new(path_hash(number), "app").expect("a good name");
        let needed = dormer_nix::StorePath::new(path_hash(2), "app").expect("a good name");
        let references = if number == 1 { vec![needed] } else { Vec::new() };
        let object = Object { path, references, ..object(number) };
        let rows = both.index.commit_pack(&super::fixtures::pack(number, [number])).await?;
        let nar = crate::NarSource::New(Box::new(super::fixtures::new_nar(number, &rows)));
        // Number 1 is the newest.
        let at = if number == 1 { NOW + 10 } else { NOW + i64::from(number) };
        let target = CommitTarget::Object(object);
        both.index
            .commit_nar(&crate::NarCommit {
                cache: main,
                nar,
                target,
                at,
                grace_seconds: GRACE,
                known_keys: Vec::new(),
            })
            .await?;
    }
    both.push_referring(main, 20, &[]).await?;
    assert_eq!(both.expire(NOW + HOUR, 10).await?, 0, "all of them were used lately");
    assert_eq!(both.expire(NOW + 3 * HOUR, 10).await?, 2);
    assert_eq!(both.live(main).await?, [1, 2, 5, 20], "1 and 5 are the newest, and 1 needs 2");
    Ok(())
}

pub(super) async fn a_quota_takes_the_least_recently_used(both: Both) -> Result<()> {
    let quota = CachePatch { quota_bytes: Some(Some(4 * (FILE_SIZE + 100))), ..CachePatch::default() };
    let main = both.kept_cache(quota).await?;
    small_closures(&both, main).await?;
    assert_eq!(both.expire(NOW + DAY, 10).await?, 0, "four fit");
    for number in 6..=7 {
        both.push_referring(main, number, &[]).await?;
    }
    // From the least recently used on: 6, 1, 2, 5, 3, 7; 2 and 3 wait for their referrers.
    for (number, at) in [(1, 20), (2, 1), (3, 2), (5, 30), (6, 10), (7, 40)] {
        both.index.touch_objects(main, &[path_hash(number)], Use::Pull, NOW + at).await?;
    }
    let now = NOW + DAY;
    assert_eq!(both.expire(now + HOUR, 10).await?, 2, "6, then 1");
    assert_eq!(both.live(main).await?, [2, 3, 5, 7]);
    assert!(both.is_readable(main, 1, now + HOUR + DAY - 1).await?, "a day of grace");
    assert!(!both.is_readable(main, 1, now + HOUR + DAY).await?);
    let small = CachePatch { quota_bytes: Some(Some(1)), ..CachePatch::default() };
    both.index.update_cache(main, &small, now).await?;
    both.index.touch_objects(main, &[path_hash(5)], Use::Pull, now + 2 * HOUR).await?;
    both.expire(now + 3 * HOUR, 10).await?;
    assert_eq!(both.live(main).await?, [3, 5], "what was used lately stays whole, whatever the quota");
    Ok(())
}

/// A quota was too small by mistake, and is corrected while paths go.
pub(super) async fn a_quota_that_is_raised_ends_the_removals(both: Both) -> Result<()> {
    for (name, corrected) in [("raised", Some(9 * FILE_SIZE)), ("none", None)] {
        let quota = CachePatch { quota_bytes: Some(Some(1)), ..CachePatch::default() };
        let main = cache(&both.index, name).await?;
        both.index.update_cache(main, &quota, NOW).await?;
        for number in 1..=6 {
            both.push_referring(main, number, &[]).await?;
        }
        let now = NOW + DAY;
        both.jobs.open_expire_jobs(&DEFAULTS, now, now - HOUR).await?;
        let lease = both.take(now).await?.expect("a job is open");
        let mut removed = 0;
        while removed == 0 {
            removed = both.jobs.expire_cache_step(&lease, &DEFAULTS, 1, now, now + 60).await?.rows;
        }
        let patch = CachePatch { quota_bytes: Some(corrected), ..CachePatch::default() };
        both.index.update_cache(main, &patch, now).await?;
        while !both.jobs.expire_cache_step(&lease, &DEFAULTS, 1, now, now + 60).await?.is_last {}
        assert_eq!(both.live(main).await?.len() as u64, 6 - removed, "{name}: no other goes");
    }
    Ok(())
}

pub(super) async fn a_quota_counts_logs_and_traces(both: Both) -> Result<()> {
    let quota = CachePatch { quota_bytes: Some(Some(25_000)), ..CachePatch::default() };
    let main = both.kept_cache(quota).await?;
    let derivation: StorePath = format!("{}-x.drv", path_hash(9)).parse().expect("a store path");
    both.push_referring(main, 1, &[]).await?;
    let built = Object { deriver: Some(derivation.to_string()), ..object(2) };
    push(&both.index, main, 2, CommitTarget::Object(built)).await?;
    let (owner, encoding) = (derivation.hash(), Some("zstd".to_owned()));
    let log = DocumentName::Log(derivation.clone());
    let log = NewDocument { name: log, owner, size: 7_000, encoding, body: vec![0; 70] };
    both.index.put_document(main, &log, NOW).await?;
    let trace = BuildTrace {
        key: TraceKey::Derivation { derivation, output: "out".to_owned() },
        out_path: path(2),
        dependents: BTreeMap::new(),
        sigs: vec![format!("a:{}", "A".repeat(6_000))],
        is_keyed: false,
    };
    both.index.merge_trace(main, &trace, &[], NOW).await?;
    assert_eq!(both.expire(NOW + DAY, 10).await?, 0, "23,000 bytes fit");
    both.push_referring(main, 3, &[]).await?;
    assert_eq!(both.expire(NOW + 2 * DAY, 10).await?, 1, "28,000 do not; without log or trace, they would");
    assert_eq!(both.live(main).await?, [2, 3]);
    Ok(())
}

pub(super) async fn a_quota_cuts_graces_to_a_day_first(both: Both) -> Result<()> {
    let quota = CachePatch { quota_bytes: Some(Some(2 * (FILE_SIZE + 100))), ..CachePatch::default() };
    let main = both.kept_cache(quota).await?;
    for number in 1..=3 {
        both.push_referring(main, number, &[]).await?;
    }
    let removal = crate::Removal::WithGraceUntil(NOW + GRACE);
    both.index.remove_object(main, &path_hash(1), removal, NOW).await?;
    let now = NOW + 3 * HOUR;
    assert_eq!(both.expire(now, 10).await?, 1, "bytes in grace count, and the grace goes first");
    assert_eq!(both.live(main).await?, [2, 3]);
    assert!(both.is_readable(main, 1, now + DAY - 1).await?);
    assert!(!both.is_readable(main, 1, now + DAY).await?);
    assert_eq!(both.expire(now + 2 * HOUR, 10).await?, 0, "what ends within a day is as good as gone");
    Ok(())
}

pub(super) async fn a_lost_lease_expires_nothing(both: Both) -> Result<()> {
    let main = both.weekly_cache().await?;
    small_closures(&both, main).await?;
    let now = NOW + WEEK + DAY;
    both.jobs.open_expire_jobs(&DEFAULTS, now, now).await?;
    let lost = both.take(now).await?.expect("it was opened");
    let lease = both.take(now + 60).await?.expect("the lease has ended");
    let step = both.jobs.expire_cache_step(&lost, &DEFAULTS, 10, now, now + 600).await;
    assert!(matches!(step, Err(Error::JobLeaseLost)), "{step:?}");
    assert_eq!(both.live(main).await?, [1, 2, 3, 5]);
    let step = both.jobs.expire_cache_step(&lease, &DEFAULTS, 10, now, now + 600).await?;
    assert!(!step.is_last && step.rows == 4, "one step removes all objects: {step:?}");
    let step = both.jobs.expire_cache_step(&lease, &DEFAULTS, 10, now, now + 600).await?;
    assert!(step.is_last && step.rows == 0, "there are no documents: {step:?}");
    Ok(())
}

pub(super) async fn a_policy_that_changes_counts_at_once(both: Both) -> Result<()> {
    let main = both.weekly_cache().await?;
    for number in 1..=6 {
        both.push_referring(main, number, &[]).await?;
    }
    let now = NOW + WEEK + DAY;
    both.jobs.open_expire_jobs(&DEFAULTS, now, now).await?;
    let lease = both.take(now).await?.expect("it was opened");
    assert_eq!(both.jobs.expire_cache_step(&lease, &DEFAULTS, 2, now, now + 60).await?.rows, 2);
    let longer = CachePatch { retention_seconds: Some(Some(2 * WEEK)), ..CachePatch::default() };
    both.index.update_cache(main, &longer, now).await?;
    for is_last in [false, true] {
        let step = both.jobs.expire_cache_step(&lease, &DEFAULTS, 2, now, now + 60).await?;
        assert!(step.is_last == is_last && step.rows == 0, "objects, then documents: {step:?}");
    }
    assert_eq!(both.live(main).await?.len(), 4);
    Ok(())
}

/// A chain of twelve paths, a path with twelve references, and steps of one object: a step frees
/// more than it may remove, and another pass takes the rest.
pub(super) async fn small_steps_remove_the_same(both: Both) -> Result<()> {
    let main = both.weekly_cache().await?;
    both.push_referring(main, 12, &[]).await?;
    for number in (1..12).rev() {
        both.push_referring(main, number, &[number + 1]).await?;
    }
    let leaves: Vec<u32> = (20..32).collect();
    for number in &leaves {
        both.push_referring(main, *number, &[]).await?;
    }
    both.push_referring(main, 40, &leaves).await?;
    both.index.touch_objects(main, &[path_hash(25)], Use::Pull, NOW + WEEK).await?;
    assert_eq!(both.expire(NOW + WEEK + DAY, 1).await?, 12 + 12);
    assert_eq!(both.live(main).await?, [25]);
    // The references went with their referrers: nothing keeps what comes back.
    for number in [2, 25] {
        both.push_referring(main, number, &[]).await?;
    }
    assert_eq!(both.expire(NOW + 3 * WEEK, 10).await?, 2);
    assert!(both.live(main).await?.is_empty());
    Ok(())
}

fn pin(name: &str, number: u32, at: i64, ends_at: Option<i64>) -> Pin {
    Pin { name: name.to_owned(), path: path(number), created_at: at, ends_at }
}

pub(super) async fn a_pin_keeps_its_path_and_closure(both: Both) -> Result<()> {
    let main = both.weekly_cache().await?;
    small_closures(&both, main).await?;
    both.index.add_pin(main, &pin("release", 2, NOW, None), None).await?;
    both.index.add_pin(main, &pin("demo", 5, NOW, Some(NOW + 2 * WEEK)), None).await?;
    both.index.add_pin(main, &pin("absent", 30, NOW, None), None).await?;
    assert_eq!(both.expire(NOW + 2 * WEEK - 1, 10).await?, 1);
    assert_eq!(both.live(main).await?, [2, 3, 5]);
    assert_eq!(both.expire(NOW + 2 * WEEK + DAY, 10).await?, 1, "the pin of 5 has ended");
    assert_eq!(both.live(main).await?, [2, 3]);
    assert_eq!(both.index.remove_pins(main, "release", None).await?, 1);
    assert_eq!(both.index.remove_pins(main, "release", None).await?, 0, "again is no error");
    assert_eq!(both.expire(NOW + 3 * WEEK, 10).await?, 2);
    assert!(both.live(main).await?.is_empty());
    Ok(())
}

pub(super) async fn pins_come_by_name_and_the_newest_stay(both: Both) -> Result<()> {
    let (main, other) = (cache(&both.index, "main").await?, cache(&both.index, "other").await?);
    let index = &both.index;
    for number in 1..=3 {
        index.add_pin(main, &pin("b", number, NOW + i64::from(number), None), Some(2)).await?;
    }
    index.add_pin(main, &pin("a", 9, NOW, Some(NOW + 5)), None).await?;
    index.add_pin(other, &pin("b", 1, NOW, None), None).await?;
    let hashes = |pins: &[Pin]| {
        let mut hashes: Vec<_> = pins.iter().map(|pin| pin.path.hash()).collect();
        hashes.sort_unstable();
        hashes
    };
    let sorted = |numbers: &[u32]| {
        let mut hashes: Vec<_> = numbers.iter().map(|number| path_hash(*number)).collect();
        hashes.sort_unstable();
        hashes
    };
    let pins = index.list_pins(main, None, NOW, 10).await?;
    assert_eq!(pins[0], pin("a", 9, NOW, Some(NOW + 5)));
    assert_eq!(hashes(&pins[1..]), sorted(&[2, 3]), "1 is the third newest");
    let after = Some((pins[0].name.as_str(), &pins[0].path.hash()));
    let rest = index.list_pins(main, after, NOW, 1).await?;
    assert_eq!(rest, pins[1..2]);
    assert_eq!(index.list_pins(main, None, NOW + 5, 10).await?, pins[1..], "one has ended");
    let of_path = async |number, now| index.list_pins_of_path(main, &path_hash(number), now, 10).await;
    assert_eq!(of_path(9, NOW).await?, pins[..1]);
    assert_eq!(of_path(9, NOW + 5).await?, [], "it has ended");
    assert_eq!(of_path(1, NOW).await?, [], "it is no longer pinned here");
    assert_eq!(hashes(&of_path(2, NOW).await?), sorted(&[2]));
    // Renewed, 2 is the newest.
    index.add_pin(main, &pin("b", 2, NOW + 9, None), None).await?;
    index.add_pin(main, &pin("b", 4, NOW + 10, None), Some(2)).await?;
    assert_eq!(hashes(&index.list_pins(main, None, NOW + 9, 10).await?), sorted(&[2, 4]));
    assert_eq!(index.remove_pins(main, "b", Some(&path_hash(4))).await?, 1);
    assert_eq!(hashes(&index.list_pins(main, None, NOW + 9, 10).await?), sorted(&[2]));
    assert_eq!(index.list_pins(other, None, NOW, 10).await?.len(), 1);
    index.delete_cache(other, None, NOW).await?;
    let gone = index.add_pin(other, &pin("b", 1, NOW, None), None).await;
    assert!(matches!(gone, Err(Error::CacheGone)), "{gone:?}");
    Ok(())
}

pub(super) async fn references_are_found_in_both_directions(both: Both) -> Result<()> {
    let main = cache(&both.index, "main").await?;
    small_closures(&both, main).await?;
    let asked = [path_hash(1), path_hash(3), path_hash(4)];
    let found = both.index.find_references(main, &asked, 1_000).await?;
    assert!(found.iter().all(|found| found.nar_size > 10_000), "{found:?}");
    let found: BTreeMap<_, _> = found.into_iter().map(|found| (found.hash, found.references)).collect();
    assert_eq!(found.len(), 2, "4 is not there");
    assert_eq!(found[&path_hash(1)], Some(vec![path(2), path(4)]), "without itself");
    assert_eq!(found[&path_hash(3)], Some(Vec::new()));
    // Two have references: those of the first are read, however long they are, and no others.
    let asked = [path_hash(1), path_hash(2)];
    let all = both.index.find_references(main, &asked, 1_000).await?;
    assert!(
        all.iter().all(|found| found.references.as_ref().is_some_and(|found| !found.is_empty())),
        "{all:?}"
    );
    let mut some = both.index.find_references(main, &asked, 1).await?;
    some.sort_unstable_by_key(|found| found.hash);
    assert!(some[0].references.is_some() && some[1].references.is_none(), "{some:?}");
    assert!(some.iter().all(|found| found.nar_size > 10_000), "{some:?}");
    let none = both.index.find_references(main, &asked, 0).await?;
    assert!(none.len() == 2 && none.iter().all(|found| found.references.is_none()), "{none:?}");
    let mut referrers = both.index.find_referrers(main, &path_hash(3), 10).await?;
    referrers.sort_unstable();
    let mut expected = [path_hash(2), path_hash(5)];
    expected.sort_unstable();
    assert_eq!(referrers, expected);
    assert_eq!(both.index.find_referrers(main, &path_hash(4), 10).await?, [path_hash(1)], "4 is not there");
    assert_eq!(both.index.find_referrers(main, &path_hash(3), 1).await?.len(), 1);
    // The same, page by page.
    let (mut pages, mut after) = (Vec::new(), None);
    while let Some(path) = both.index.list_referrers(main, &path_hash(3), after.as_ref(), 1).await?.pop() {
        after = Some(path.hash());
        pages.push(path);
    }
    assert_eq!(pages.iter().map(StorePath::hash).collect::<Vec<_>>(), expected);
    assert_eq!(both.index.list_referrers(main, &path_hash(9), None, 9).await?, []);
    Ok(())
}

pub(super) async fn objects_are_listed_in_every_order(both: Both) -> Result<()> {
    let main = cache(&both.index, "main").await?;
    for number in 1..=4 {
        both.push_referring(main, number, &[]).await?;
    }
    for (number, at) in [(1, 3), (2, 9), (3, 1), (4, 3)] {
        both.index.touch_objects(main, &[path_hash(number)], Use::Pull, NOW + at).await?;
    }
    for (order, expected) in [
        (ObjectOrder::Used, [3, 1, 4, 2]),
        (ObjectOrder::Age, [1, 2, 3, 4]),
        (ObjectOrder::Size, [4, 3, 2, 1]),
    ] {
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = both.index.list_objects(main, order, after, 3).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.place);
            listed.extend(page);
        }
        let paths: Vec<_> = listed.iter().map(|object| object.path.clone()).collect();
        assert_eq!(paths, expected.map(path), "{order:?}");
        let second = listed.iter().find(|object| object.path == path(2)).expect("it is listed");
        assert_eq!((second.nar_size, second.created_at, second.last_used_at), (10_002, NOW, NOW + 9));
    }
    let extremes = both.index.list_extremes(main, 2).await?;
    let largest = both.index.list_objects(main, ObjectOrder::Size, None, 2).await?;
    let longest_unused = both.index.list_objects(main, ObjectOrder::Used, None, 2).await?;
    assert_eq!((extremes.largest, extremes.longest_unused), (largest, longest_unused));
    both.index.delete_cache(main, None, NOW).await?;
    assert_eq!(both.index.list_objects(main, ObjectOrder::Age, None, 3).await?, []);
    Ok(())
}

/// Names that begin with a text, in the order of their bytes whatever the database's own order is.
pub(super) async fn objects_are_listed_by_the_begin_of_their_name(both: Both) -> Result<()> {
    let (main, other) = (cache(&both.index, "main").await?, cache(&both.index, "other").await?);
    // In most collations, signs and case count less than letters, so other names come between.
    let names = ["curl-8", "curl.8", "curl8", "Curl-8", "curl", "cur", "cus", "curl-8", "curl_8"];
    for (number, name) in (1..).zip(names) {
        let named =
            Object { path: StorePath::new(path_hash(number), name).expect("a name"), ..object(number) };
        push(&both.index, main, number, CommitTarget::Object(named)).await?;
    }
    both.push_referring(other, 20, &[]).await?;
    let found = async |prefix: &str, size: u32| {
        let (mut listed, mut after) = (Vec::<ListedObject>::new(), None);
        loop {
            let place = after.as_ref().map(|(name, place): &(String, ObjectPlace)| (name.as_str(), *place));
            let page = both.index.list_objects_by_name(main, prefix, place, size).await?;
            let Some(last) = page.last() else { break };
            after = Some((last.path.name().to_owned(), last.place));
            listed.extend(page);
        }
        Result::Ok(listed.iter().map(|object| object.path.name().to_owned()).collect::<Vec<_>>())
    };
    let expected = ["curl", "curl-8", "curl-8", "curl.8", "curl8", "curl_8"];
    for size in [1, 2, 100] {
        assert_eq!(found("curl", size).await?, expected, "{size} at a time");
    }
    assert_eq!(found("Curl", 9).await?, ["Curl-8"]);
    assert_eq!(found("cur", 9).await?.len(), 7);
    assert_eq!(found("", 3).await?.len(), 9);
    for nothing in ["url", "curl-8-", "cür", "cur\0", "cur\n"] {
        assert!(found(nothing, 9).await?.is_empty(), "{nothing:?}");
    }
    both.index.delete_cache(main, None, NOW).await?;
    assert!(found("curl", 9).await?.is_empty());
    Ok(())
}

impl Both {
    /// What keeps a path, as the cache is now.
    async fn keepers(&self, number: u32, now: i64, limit: u32) -> Result<Option<Keepers>> {
        let cache = self.index.find_cache("main").await?.expect("it is there");
        self.index.find_keepers(&cache, &path_hash(number), &DEFAULTS, now, limit).await
    }
}

/// The last second that is told is the last one for which the job keeps the path.
pub(super) async fn what_keeps_an_object_is_told_as_the_job_decides(both: Both) -> Result<()> {
    let main = cache(&both.index, "main").await?;
    small_closures(&both, main).await?;
    assert_eq!(both.keepers(9, NOW, 9).await?, None, "it is not there");
    let kept = both.keepers(1, NOW, 9).await?.expect("it is there");
    let nothing = CacheRules { retention_seconds: None, quota_bytes: None, keep_latest: None };
    assert_eq!((kept.rules.stays_until, kept.rules.cache), (None, nothing));
    assert!(kept.pins.is_empty() && kept.pins_above.is_empty() && kept.referrers.is_empty() && !kept.is_cut);

    let patch = CachePatch {
        retention_seconds: Some(Some(WEEK)),
        quota_bytes: Some(Some(1 << 40)),
        keep_latest: Some(Some(1)),
        ..CachePatch::default()
    };
    both.index.update_cache(main, &patch, NOW).await?;
    let pin = |name: &str, number, ends_at| Pin {
        name: name.to_owned(),
        path: path(number),
        created_at: NOW,
        ends_at,
    };
    let pins = [pin("own", 3, Some(NOW + 9)), pin("root", 1, Some(NOW + HOUR))];
    for pin in &pins {
        both.index.add_pin(main, pin, None).await?;
    }
    let kept = both.keepers(3, NOW, 9).await?.expect("it is there");
    assert_eq!((&kept.pins[..], &kept.pins_above[..]), (&pins[..1], &pins[1..]), "1 needs it by 2");
    let mut referrers = vec![path(2), path(5)];
    referrers.sort_unstable_by_key(StorePath::hash);
    assert_eq!(kept.referrers, referrers);
    let rules = &kept.rules;
    let all = CacheRules { retention_seconds: Some(WEEK), quota_bytes: Some(1 << 40), keep_latest: Some(1) };
    assert_eq!(rules.cache, all);
    assert_eq!((rules.is_published, rules.counts_from), (false, NOW));
    assert_eq!(rules.stays_until, Some((NOW + WEEK, ExpiryRule::Age)));
    let later = both.keepers(3, NOW + 9, 1).await?.expect("it is there");
    assert!(later.pins.is_empty() && later.referrers.len() == 1, "a pin has ended; one of each kind");
    let later = both.keepers(3, NOW + HOUR, 9).await?.expect("it is there");
    assert!(later.pins_above.is_empty(), "the other one has ended too");

    // The pin that keeps it longest is told, however many there are.
    for (name, ends_at) in [("a", Some(NOW + DAY)), ("b", Some(NOW + 3 * DAY)), ("c", Some(NOW + DAY))] {
        both.index.add_pin(main, &pin(name, 5, ends_at), None).await?;
    }
    let longest = async |limit| {
        let kept = both.keepers(5, NOW, limit).await.map(|kept| kept.expect("it is there"));
        kept.map(|kept| kept.pins.into_iter().map(|pin| pin.name).collect::<Vec<_>>())
    };
    assert_eq!(longest(9).await?, ["b", "a", "c"]);
    both.index.add_pin(main, &pin("z", 5, None), None).await?;
    assert_eq!(longest(2).await?, ["z", "b"], "one without an end keeps it longest");
    for name in ["a", "b", "c", "z"] {
        assert_eq!(both.index.remove_pins(main, name, None).await?, 1);
    }

    // One of its name is newer: it goes as soon as it is spared no longer.
    let newer =
        Object { path: StorePath::new(path_hash(31), "package-1").expect("a good name"), ..object(31) };
    push(&both.index, main, 31, CommitTarget::Object(newer)).await?;
    let (until, rule) =
        both.keepers(1, NOW, 9).await?.expect("it is there").rules.stays_until.expect("an end");
    assert!(rule == ExpiryRule::Newer && until < NOW + DAY, "{until}");
    assert_eq!(both.expire(until, 10).await?, 0, "the last second");
    assert_eq!(both.expire(until + HOUR, 10).await?, 1, "it goes after that");
    assert_eq!(both.keepers(1, NOW, 9).await?, None);
    Ok(())
}

pub(super) async fn a_look_for_keepers_is_bounded(both: Both) -> Result<()> {
    let main = cache(&both.index, "main").await?;
    both.push_referring(main, 1, &[]).await?;
    // A chain that is longer than the look, and a pin at its end.
    let last = u32::try_from(KEEPERS_WINDOW).expect("it is small") + 1;
    for number in 2..=last {
        both.push_referring(main, number, &[number - 1]).await?;
    }
    let pin = Pin { name: "far".to_owned(), path: path(last), created_at: NOW, ends_at: None };
    both.index.add_pin(main, &pin, None).await?;
    let of = async |number| both.keepers(number, NOW, 9).await.map(|found| found.expect("it is there"));
    let (first, third) = (of(1).await?, of(3).await?);
    assert!(first.is_cut && first.pins_above.is_empty(), "{first:?}");
    assert!(!third.is_cut && third.pins_above == [pin], "{third:?}");
    assert_eq!(first.referrers, [path(2)]);
    Ok(())
}

pub(super) async fn a_removal_by_hand_is_in_the_audit(both: Both) -> Result<()> {
    let main = cache(&both.index, "main").await?;
    small_closures(&both, main).await?;
    assert!(both.index.remove_for_cause(main, &path_hash(2), Some("ada"), false, NOW + 1).await?.was_there);
    assert!(
        !both.index.remove_for_cause(main, &path_hash(2), None, false, NOW + 2).await?.was_there,
        "again is no error"
    );
    assert_eq!(both.live(main).await?, [1, 3, 5]);
    assert!(!both.is_readable(main, 2, NOW + 1).await?, "no grace");
    let audit = both.index.audit_after(0, 10).await?;
    let seen: Vec<_> = audit.iter().map(|entry| (entry.at - NOW, entry.subject.as_deref())).collect();
    assert_eq!(seen, [(1, Some("ada")), (2, None)]);
    assert!(audit.iter().all(|entry| {
        (entry.action.as_str(), entry.cache, entry.store_path_hash)
            == ("remove path", main, Some(path_hash(2)))
    }));
    assert_eq!(both.index.audit_after(audit[0].number, 1).await?, audit[1..]);

    both.index.delete_cache(main, Some("bob"), NOW + 3).await?;
    both.index.delete_cache(main, None, NOW + 4).await?;
    let deleted = both.index.audit_after(audit[1].number, 10).await?;
    let seen: Vec<_> = deleted
        .iter()
        .map(|entry| (entry.action.as_str(), entry.cache, entry.subject.as_deref(), entry.store_path_hash))
        .collect();
    assert_eq!(seen, [("delete cache", main, Some("bob"), None)], "once, and it outlives the cache");

    // Newest first, in pages, by cache, action and actor.
    let numbers: Vec<i64> = audit.iter().chain(&deleted).map(|entry| entry.number).collect();
    let [first, second, third] = numbers[..] else { panic!("three entries: {numbers:?}") };
    let by = |cache: Option<&str>, action: Option<&str>, subject: Option<&str>| AuditFilter {
        cache: cache.map(str::to_owned),
        action: action.map(str::to_owned),
        subject: subject.map(str::to_owned),
        subject_start: None,
    };
    let of_start =
        |start: &str| AuditFilter { subject_start: Some(start.to_owned()), ..AuditFilter::default() };
    for (filter, expected) in [
        (of_start("a"), vec![first]),
        (of_start("ada"), vec![first]),
        (of_start("da"), vec![]),
        (of_start("a%"), vec![]),
        (of_start("adam"), vec![]),
        (by(None, None, None), vec![third, second, first]),
        (by(Some("main"), None, None), vec![third, second, first]),
        (by(Some("mai"), None, None), vec![]),
        (by(None, Some("remove path"), None), vec![second, first]),
        (by(Some("main"), Some("remove path"), Some("ada")), vec![first]),
        (by(None, Some("delete cache"), Some("ada")), vec![]),
    ] {
        let page = both.index.audit_before(i64::MAX, &filter, 10).await?;
        let found: Vec<i64> = page.entries.iter().map(|(entry, _)| entry.number).collect();
        assert_eq!((found, page.next), (expected, None), "{filter:?}");
        assert!(page.entries.iter().all(|(_, name)| name.as_deref() == Some("main")), "{filter:?}");
    }
    let page = both.index.audit_before(i64::MAX, &AuditFilter::default(), 2).await?;
    assert_eq!((page.entries.len(), page.next), (2, Some(second)));
    let rest = both.index.audit_before(second, &AuditFilter::default(), 2).await?;
    assert_eq!((rest.entries[0].0.number, rest.entries.len(), rest.next), (first, 1, None));
    Ok(())
}

/// What a cache should hold, worked out again after each action by marking all that is live.
#[derive(Default)]
struct Model {
    /// References and last use of each object.
    objects: BTreeMap<u32, (Vec<u32>, i64)>,
    pinned: BTreeSet<u32>,
}

impl Model {
    /// What has to be there at `now`, and what alone may be there after a whole expire job.
    fn live(&self, now: i64) -> BTreeSet<u32> {
        let is_root =
            |number: &u32, last_used_at: i64| self.pinned.contains(number) || last_used_at >= now - WEEK;
        let roots = self.objects.iter().filter(|(number, (_, used))| is_root(number, *used));
        let mut next: Vec<u32> = roots.map(|(number, _)| *number).collect();
        let mut live = BTreeSet::new();
        while let Some(number) = next.pop() {
            if let Some((references, _)) = self.objects.get(&number)
                && live.insert(number)
            {
                next.extend(references);
            }
        }
        live
    }
}

/// Pushes, uses, pins and steps of expire jobs in any order. Whatever the order, what is live stays
/// after every step, every reference of an object is there, and a job that runs alone leaves
/// nothing else.
pub(super) async fn random_histories_keep_closures_whole(both: Both) -> Result<()> {
    let main = both.weekly_cache().await?;
    let mut state = 0x5eed_u64;
    let mut random = move |below: u32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(state >> 33).expect("31 bits") % below
    };
    let (mut model, mut now, mut lease) = (Model::default(), NOW, None::<JobLease>);
    let mut expired = 0;
    for action in 0..400 {
        now += i64::from(random(20)) * HOUR;
        let number = 1 + random(24);
        match random(10) {
            0..=4 => {
                let there: Vec<u32> =
                    model.objects.keys().copied().filter(|other| *other != number).collect();
                let count = if there.is_empty() { 0 } else { random(4) };
                // No circles: a path refers to paths of lower numbers.
                let mut references: Vec<u32> = (0..count)
                    .map(|_| there[random(u32::try_from(there.len()).expect("few")) as usize])
                    .collect();
                references.retain(|other| *other < number);
                references.sort_unstable();
                references.dedup();
                let nar = if let Some(nar) = both.index.find_nar(&nar_hash(number)).await? {
                    NarSource::Known(nar.id)
                } else {
                    let rows = both.index.commit_pack(&super::fixtures::pack(number, [number])).await?;
                    NarSource::New(Box::new(super::fixtures::new_nar(number, &rows)))
                };
                let target = CommitTarget::Object(referring(number, &references));
                both.index
                    .commit_nar(&NarCommit {
                        cache: main,
                        nar,
                        target,
                        at: now,
                        grace_seconds: GRACE,
                        known_keys: Vec::new(),
                    })
                    .await?;
                model.objects.insert(number, (references, now));
            }
            5 => {
                both.index.touch_objects(main, &[path_hash(number)], Use::Pull, now).await?;
                if let Some((_, used)) = model.objects.get_mut(&number) {
                    *used = now;
                }
            }
            6 => {
                both.index.add_pin(main, &pin("p", number, now, None), None).await?;
                model.pinned.insert(number);
            }
            7 => {
                both.index.remove_pins(main, "p", Some(&path_hash(number))).await?;
                model.pinned.remove(&number);
            }
            // A step of a job that others act beside.
            8 => {
                both.jobs.open_expire_jobs(&DEFAULTS, now, now).await?;
                lease = both.jobs.lease_job(JobKind::ExpireCache, "a", now, now + 1).await?.or(lease);
                if let Some(held) = lease {
                    let step =
                        both.jobs.expire_cache_step(&held, &DEFAULTS, 1 + random(3), now, now + 1).await?;
                    expired += step.rows;
                    lease = (!step.is_last).then_some(held);
                }
            }
            // A whole job.
            _ => {
                let before = model.live(now);
                for limit in [2, 1 + random(9)] {
                    // The first run may go on with a job that has passed some objects.
                    lease = None;
                    now += 2;
                    both.jobs.open_expire_jobs(&DEFAULTS, now, now).await?;
                    expired += both.expire(now, limit).await?;
                }
                let left: BTreeSet<u32> = both.live(main).await?.into_iter().collect();
                assert!(model.live(now).is_subset(&before), "time passes");
                assert_eq!(left, model.live(now), "after action {action}");
            }
        }
        let there: BTreeSet<u32> = both.live(main).await?.into_iter().collect();
        let lost: Vec<_> = model.live(now).difference(&there).copied().collect();
        assert_eq!(lost, [0; 0], "action {action} removed what is live");
        model.objects.retain(|number, _| there.contains(number));
        for (number, (references, _)) in &model.objects {
            assert!(references.iter().all(|other| there.contains(other)), "{number} after action {action}");
        }
    }
    assert!(expired > 30, "only {expired} objects expired");
    Ok(())
}
