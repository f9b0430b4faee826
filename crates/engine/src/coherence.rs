//! What is remembered between requests, and when it is forgotten.
//!
//! Invariants
//! - That something is missing is never remembered: Nix believes it for an hour.
//! - A hit is at most 5 s old, whatever becomes of notices: an answer is remembered for [`REMEMBERED`], it may be made with
//!   a cache's settings that were remembered as long, and each of the two took at most [`LOOK_MAX`] to read.
//! - A notice of a change takes what is remembered away at once, also from look-ups that began before it came.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dormer_index::{Cache, Change};
use dormer_nix::StorePathHash;

use crate::Engine;

/// How long settings of caches, narinfos and read plans are remembered.
pub(crate) const REMEMBERED: Duration = Duration::from_millis(1_500);

/// What took longer to read is not remembered.
const LOOK_MAX: Duration = Duration::from_secs(1);

const _: () = assert!(2 * (REMEMBERED.as_millis() + LOOK_MAX.as_millis()) <= 5_000);

/// A look at the index that has begun.
#[derive(Debug)]
pub(crate) struct Look {
    begun: Instant,
    changes_seen: u64,
}

impl Look {
    /// Whether what was found may be remembered: it was quick, and no change was noticed meanwhile.
    pub(crate) fn is_fresh(&self, engine: &Engine) -> bool {
        self.begun.elapsed() <= LOOK_MAX
            && engine.inner.changes_seen.load(Ordering::SeqCst) == self.changes_seen
    }
}

impl Engine {
    /// Begins a look at the index whose outcome is to be remembered.
    pub(crate) fn look(&self) -> Look {
        Look { begun: Instant::now(), changes_seen: self.inner.changes_seen.load(Ordering::SeqCst) }
    }

    /// Listens for changes that others make, for as long as the engine lives.
    pub(crate) fn follow_changes(&self) {
        let mut changes = self.index().changes();
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            while let Some(change) = changes.next().await {
                let Some(inner) = inner.upgrade() else { return };
                Engine { inner }.forget(change);
            }
        });
    }

    fn forget(&self, change: Change) {
        match change {
            Change::Object(cache, hash) => {
                self.note_change();
                self.remembered_narinfos().invalidate(&(cache, hash));
                // Plans are found by several keys; changes to objects that are being read are rare enough to forget all.
                self.remembered_plans().invalidate_all();
            }
            // Found by their names, and few.
            Change::Cache(_) => self.forget_everything_of_caches(),
            Change::Everything => {
                self.forget_everything_of_caches();
                self.proven_packs().invalidate_all();
            }
        }
    }

    fn forget_everything_of_caches(&self) {
        self.note_change();
        self.remembered_caches().invalidate_all();
        self.remembered_narinfos().invalidate_all();
        self.remembered_plans().invalidate_all();
    }

    /// Forgets what was remembered about a path of a cache, after a change to it.
    pub(crate) fn forget_answers(&self, cache: &Cache, hash: &StorePathHash) {
        self.forget(Change::Object(cache.id, *hash));
    }

    pub(crate) fn forget_narinfos(&self) {
        self.note_change();
        self.remembered_narinfos().invalidate_all();
    }

    pub(crate) fn forget_cache(&self, cache: &Cache) {
        self.forget(Change::Cache(cache.id));
    }

    /// Before anything is taken away, so that a look which began earlier puts nothing back.
    fn note_change(&self) {
        self.inner.changes_seen.fetch_add(1, Ordering::SeqCst);
    }
}
