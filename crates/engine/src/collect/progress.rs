//! Where a collection is, for commands that show it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What a collection, or a plan of one, does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectionPhase {
    /// It deletes the objects of packs without a row. Also before the first step.
    Deleting = 0,
    /// It removes graces and upload aliases that are over.
    Expiring = 1,
    /// It reads which chunks NARs need.
    Marking = 2,
    /// It looks at packs, and compacts some.
    Judging = 3,
    /// It removes the bytes of paths that were removed with them.
    Purging = 4,
    /// It lists the store.
    Listing = 5,
}

impl CollectionPhase {
    const ALL: [Self; 6] =
        [Self::Deleting, Self::Expiring, Self::Marking, Self::Judging, Self::Purging, Self::Listing];
}

/// Where a collection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectionProgress {
    /// What it does.
    pub phase: CollectionPhase,
    /// NARs that it has read since the marks began.
    pub nars: u64,
    /// Packs that it has looked at.
    pub packs: u64,
}

/// What [`CollectionProgress`] is read from. Its parts need not agree with each other: it is shown
/// to people only.
#[derive(Debug, Default)]
pub(super) struct Progress {
    phase: AtomicU8,
    nars: AtomicU64,
    packs: AtomicU64,
}

impl Progress {
    pub(super) fn begin(&self, phase: CollectionPhase) {
        match phase {
            CollectionPhase::Marking => self.nars.store(0, Ordering::Relaxed),
            CollectionPhase::Judging => self.packs.store(0, Ordering::Relaxed),
            _ => {}
        }
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    pub(super) fn count_nars(&self, nars: usize) {
        self.nars.fetch_add(nars as u64, Ordering::Relaxed);
    }

    pub(super) fn count_packs(&self, packs: usize) {
        self.packs.fetch_add(packs as u64, Ordering::Relaxed);
    }

    pub(super) fn now(&self) -> CollectionProgress {
        let phase = usize::from(self.phase.load(Ordering::Relaxed));
        CollectionProgress {
            phase: CollectionPhase::ALL.get(phase).copied().unwrap_or(CollectionPhase::Deleting),
            nars: self.nars.load(Ordering::Relaxed),
            packs: self.packs.load(Ordering::Relaxed),
        }
    }
}
