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
//! - The plan of a large NAR is remembered for `LARGE_PLAN_REMEMBERED`, but no answer rests on it
//!   alone: the index is asked for the NAR and its present tag before each use.

use std::time::{Duration, Instant};

use dormer_index::{Cache, CacheId, Change};
use dormer_nix::StorePathHash;

use crate::Engine;
use crate::change_counts::CacheState;
use crate::remembered::REMEMBERED;

/// A result that took longer to read is not remembered.
const LOOK_MAX: Duration = Duration::from_secs(1);

const _: () = assert!(2 * (REMEMBERED.as_millis() + LOOK_MAX.as_millis()) <= 5_000);

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
