//! What the engine remembers between requests, and when it forgets.
//!
//! Invariants
//! - A miss is never remembered: Nix believes a miss for an hour.
//! - A remembered hit is at most 5 s old, even when no notice of a change arrives. An answer is
//!   remembered for [`REMEMBERED`], it may be made with settings of a cache that were remembered as
//!   long, and each of the two took at most [`LOOK_MAX`] to read.
//! - A notice of a change discards at once what it may concern, also the results of look-ups that
//!   began before the notice. A change of an object concerns its narinfo and the read plans of its
//!   cache, and no other cache.
//! - The plan of a large NAR is remembered for [`LARGE_PLAN_REMEMBERED`], but no answer rests on it
//!   alone: the index is asked for the NAR and its present tag before each use.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dormer_index::{Cache, CacheId, Change};
use dormer_nix::StorePathHash;

use crate::Engine;

/// How long the engine remembers settings of caches, narinfos and read plans.
pub(crate) const REMEMBERED: Duration = Duration::from_millis(1_500);

/// How long the engine remembers the plan of a large NAR. A client that resumes a download asks
/// again within minutes. A collection keeps packs for longer than that, over an hour, after their
/// chunks have moved: no remembered plan outlives the packs that it names.
pub(crate) const LARGE_PLAN_REMEMBERED: Duration = Duration::from_mins(10);

/// A result that took longer to read is not remembered.
const LOOK_MAX: Duration = Duration::from_secs(1);

const _: () = assert!(2 * (REMEMBERED.as_millis() + LOOK_MAX.as_millis()) <= 5_000);

/// Counts the changes that were noticed. Everything that is remembered belongs to a state of these
/// counts.
#[derive(Debug, Default)]
pub(crate) struct ChangeCounts(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Changes that may concern all caches.
    of_all: u64,
    /// Changes of objects, by cache.
    of_objects: HashMap<CacheId, u64>,
}

/// The changes that concern a cache, as counted at one moment: it names what was remembered since
/// the last of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CacheState {
    of_all: u64,
    of_objects: u64,
}

impl ChangeCounts {
    pub(crate) fn cache_state(&self, cache: CacheId) -> CacheState {
        let counts = self.lock();
        CacheState {
            of_all: counts.of_all,
            of_objects: counts.of_objects.get(&cache).copied().unwrap_or_default(),
        }
    }

    /// Changes that may concern all caches.
    pub(crate) fn of_all(&self) -> u64 {
        self.lock().of_all
    }

    fn note_object(&self, cache: CacheId) {
        *self.lock().of_objects.entry(cache).or_default() += 1;
    }

    fn note_all(&self) {
        self.lock().of_all += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A look-up in the index that has begun.
#[derive(Debug)]
pub(crate) struct Look {
    begun: Instant,
    seen: Seen,
}

#[derive(Debug)]
enum Seen {
    Settings { of_all: u64 },
    Objects(CacheId, CacheState),
}

impl Look {
    /// Whether the result may be remembered: it came quickly, and no change was noticed meanwhile.
    pub(crate) fn is_fresh(&self, engine: &Engine) -> bool {
        let counts = engine.change_counts();
        self.begun.elapsed() <= LOOK_MAX
            && match self.seen {
                Seen::Settings { of_all } => counts.of_all() == of_all,
                Seen::Objects(cache, state) => counts.cache_state(cache) == state,
            }
    }
}

impl Engine {
    /// Begins a look-up of a cache's settings whose result is to be remembered.
    pub(crate) fn look_at_settings(&self) -> Look {
        let of_all = self.change_counts().of_all();
        Look { begun: Instant::now(), seen: Seen::Settings { of_all } }
    }

    /// Begins a look-up of a cache's objects whose result is to be remembered.
    pub(crate) fn look_at_objects(&self, cache: CacheId) -> Look {
        let state = self.change_counts().cache_state(cache);
        Look { begun: Instant::now(), seen: Seen::Objects(cache, state) }
    }

    /// Listens for changes by other replicas, for as long as the engine lives.
    pub(crate) fn follow_changes(&self) {
        let mut changes = self.index().changes();
        let inner = std::sync::Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            while let Some(change) = changes.next().await {
                let Some(inner) = inner.upgrade() else { return };
                let engine = Engine { inner };
                engine.note_removal(change);
                engine.forget(change);
            }
        });
    }

    /// Notes that what is known of the chunks of a cache may be too much.
    fn note_removal(&self, change: Change) {
        match change {
            Change::Object(cache, _) | Change::Cache(cache) => self.readable().note_removal(Some(cache)),
            Change::Everything => self.readable().note_removal(None),
        }
    }

    // The counts change before anything is discarded, so that a look-up which began earlier puts
    // nothing back.
    fn forget(&self, change: Change) {
        match change {
            Change::Object(cache, hash) => {
                // A read plan is found under the state of its cache, so this discards the plans of
                // this cache. The notice does not say which NAR the object had.
                self.change_counts().note_object(cache);
                self.remembered_narinfos().invalidate(&(cache, hash));
            }
            // Caches are remembered by name, and there are few.
            Change::Cache(_) => self.forget_everything_of_caches(),
            Change::Everything => {
                self.forget_everything_of_caches();
                self.remembered_large_plans().invalidate_all();
                self.proven_packs().invalidate_all();
            }
        }
    }

    fn forget_everything_of_caches(&self) {
        self.change_counts().note_all();
        self.remembered_caches().invalidate_all();
        self.remembered_public_caches().invalidate_all();
        self.remembered_narinfos().invalidate_all();
        self.remembered_plans().invalidate_all();
    }

    /// Forgets what was remembered about a path of a cache, after a change to it.
    pub(crate) fn forget_answers(&self, cache: CacheId, hash: &StorePathHash) {
        self.forget(Change::Object(cache, *hash));
    }

    /// Forgets all narinfos and read plans, after a NAR was found damaged or got another encoding:
    /// any cache may have it.
    pub(crate) fn forget_nars(&self) {
        self.change_counts().note_all();
        self.remembered_narinfos().invalidate_all();
        self.forget_plans();
    }

    /// Forgets all read plans, after one of them turned out to be old.
    pub(crate) fn forget_plans(&self) {
        self.remembered_plans().invalidate_all();
        self.remembered_large_plans().invalidate_all();
    }

    pub(crate) fn forget_cache(&self, cache: &Cache) {
        self.forget(Change::Cache(cache.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_object_changes_the_state_of_its_cache_only() {
        let counts = ChangeCounts::default();
        let (one, other) = (CacheId(1), CacheId(2));
        let before = (counts.cache_state(one), counts.cache_state(other));
        counts.note_object(one);
        assert_ne!(counts.cache_state(one), before.0);
        assert_eq!(counts.cache_state(other), before.1);
        counts.note_all();
        assert_ne!(counts.cache_state(other), before.1);
    }
}
