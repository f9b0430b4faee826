//! Counts of the changes that were noticed. Everything that is remembered belongs to a state of
//! these counts.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dormer_index::CacheId;

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

    pub(crate) fn note_object(&self, cache: CacheId) {
        *self.lock().of_objects.entry(cache).or_default() += 1;
    }

    pub(crate) fn note_all(&self) {
        self.lock().of_all += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
