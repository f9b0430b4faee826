//! Expiry: what goes, what stays, and that closures stay whole.

use super::fixtures::{NOW, cache, changes, nar_hash, object, path, path_hash, push};
use super::jobs::Both;
use crate::{
    CacheId, CachePatch, CommitTarget, Error, ExpiryDefaults, JobKind, JobLease, NarKey, Object, Result, Use,
};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
const WEEK: i64 = 7 * DAY;
const GRACE: i64 = 30 * DAY;
/// The size of the first NAR as it is served; those after it have a byte more each.
const FILE_SIZE: u64 = 5_000;

const DEFAULTS: ExpiryDefaults =
    ExpiryDefaults { retention_seconds: 0, quota_bytes: 0, grace_seconds: GRACE };

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
        let mut rows = 0;
        self.jobs.open_expire_jobs(&DEFAULTS, now, now - HOUR).await?;
        while let Some(lease) = self.take(now).await? {
            loop {
                let step = self.jobs.expire_cache_step(&lease, &DEFAULTS, limit, now, now + 60).await?;
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
        let key = NarKey::Hash(nar_hash(number));
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
    both.index.delete_cache(main, now).await?;
    let step = both.jobs.expire_cache_step(&lease, &weekly, 10, now, now + 60).await?;
    assert!(step.is_last && step.rows == 0, "the cache went meanwhile");
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
            .commit_nar(&crate::NarCommit { cache: main, nar, target, at, grace_seconds: GRACE })
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
    assert!(step.is_last && step.rows == 4, "one step removes all: {step:?}");
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
    let step = both.jobs.expire_cache_step(&lease, &DEFAULTS, 2, now, now + 60).await?;
    assert!(step.is_last && step.rows == 0, "{step:?}");
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
