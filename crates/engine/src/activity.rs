//! Pushes and pulls of each cache that the history does not have yet: counted in memory, and
//! written by the job runner once a minute
//! ([`JobRunner::with_history`](crate::JobRunner::with_history)). So no push and no pull takes a
//! statement more, and a process that is killed loses a minute of them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use dormer_index::{CacheActivity, CacheId};

/// Caches that are counted at once. Those beyond are not, until the next minute.
const CACHES_MAX: usize = 16_384;

/// What is counted now.
#[derive(Debug, Default)]
pub struct Activity {
    counts: Mutex<HashMap<CacheId, Counts>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    pushes: u64,
    pulls: u64,
}

/// What was taken to be written. Dropped before it was written, it counts again: also when the
/// caller gave up.
#[derive(Debug)]
pub struct Taken<'a> {
    activity: &'a Activity,
    all: Vec<CacheActivity>,
}

impl Taken<'_> {
    /// All of it, in the order of the caches.
    pub fn all(&self) -> &[CacheActivity] {
        &self.all
    }

    /// Says that it was written.
    pub(crate) fn forget(mut self) {
        self.all.clear();
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        for of in &self.all {
            self.activity.add(of.cache, Counts { pushes: of.pushes, pulls: of.pulls });
        }
    }
}

impl Activity {
    pub(crate) fn note_push(&self, cache: CacheId) {
        self.add(cache, Counts { pushes: 1, pulls: 0 });
    }

    pub(crate) fn note_pull(&self, cache: CacheId) {
        self.add(cache, Counts { pushes: 0, pulls: 1 });
    }

    /// Takes everything, in the order of the caches. What is not forgotten counts again.
    pub fn take(&self) -> Taken<'_> {
        let counts = std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        let activity =
            |(cache, of): (CacheId, Counts)| CacheActivity { cache, pushes: of.pushes, pulls: of.pulls };
        let mut taken: Vec<CacheActivity> = counts.into_iter().map(activity).collect();
        taken.sort_unstable_by_key(|of| of.cache);
        Taken { activity: self, all: taken }
    }

    fn add(&self, cache: CacheId, more: Counts) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= CACHES_MAX && !counts.contains_key(&cache) {
            return;
        }
        let of = counts.entry(cache).or_default();
        of.pushes = of.pushes.saturating_add(more.pushes);
        of.pulls = of.pulls.saturating_add(more.pulls);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_and_not_written_counts_again() {
        let activity = Activity::default();
        activity.note_push(CacheId(2));
        activity.note_pull(CacheId(1));
        let taken = activity.take();
        let of = |cache, pushes, pulls| CacheActivity { cache: CacheId(cache), pushes, pulls };
        assert_eq!(taken.all(), [of(1, 0, 1), of(2, 1, 0)]);
        assert_eq!(activity.take().all(), []);
        activity.note_pull(CacheId(1));
        drop(taken);
        let taken = activity.take();
        assert_eq!(taken.all(), [of(1, 0, 2), of(2, 1, 0)]);
        taken.forget();
        assert_eq!(activity.take().all(), []);
    }

    #[test]
    fn no_more_caches_are_counted_than_memory_is_for() {
        let activity = Activity::default();
        for cache in 0..=i64::try_from(CACHES_MAX).unwrap() {
            activity.note_pull(CacheId(cache));
        }
        activity.note_pull(CacheId(0));
        let taken = activity.take();
        assert_eq!((taken.all().len(), taken.all()[0].pulls), (CACHES_MAX, 2));
    }
}
