//! What happens in a run, for programs that show it. Libraries draw nothing.

use std::ops::AddAssign;

use dormer_api::CacheName;
use dormer_nix::{StorePath, StorePathHash};

/// Receives what happens. Many tasks call it.
pub trait Reporter: Send + Sync {
    /// A NAR of so many bytes was sent.
    fn nar_uploaded(&self, _cache: &str, _bytes: u64) {}
    /// A path is in the target now.
    fn path_published(&self, _cache: &str, _path: &StorePath) {}
    /// A path is not in the target any more.
    fn path_removed(&self, _cache: &str, _hash: &StorePathHash) {}
    /// A run has so many paths of a cache to look at. Called only when that takes a while.
    fn backlog(&self, _cache: &str, _pending: u64) {}
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Reporter for Silent {}

/// What a run did to one cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheOutcome {
    /// The cache.
    pub cache: String,
    /// Narinfos that were written.
    pub published: u64,
    /// Paths that a run looked at and left as they were.
    pub unchanged: u64,
    /// Logs, traces and debug info that were written, or removed from paths that stay.
    pub documents: u64,
    /// Documents that were not written, because the target takes no names of that length.
    pub left_out: u64,
    /// Narinfos that were removed.
    pub removed: u64,
    /// NARs that were sent.
    pub nars_uploaded: u64,
    /// Bytes of these NARs.
    pub bytes_uploaded: u64,
    /// NARs that were deleted.
    pub nars_deleted: u64,
    /// Paths that wait for something; `dormer publish status` says for what.
    pub waiting: u64,
    /// Files of a reconciliation that were missing, damaged or not ours.
    pub repaired: u64,
    /// What the operator should know.
    pub note: Option<String>,
    /// Why the cache could not be published.
    pub error: Option<String>,
}

/// What a part of a run changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) published: u64,
    pub(crate) unchanged: u64,
    pub(crate) documents: u64,
    pub(crate) left_out: u64,
    pub(crate) removed: u64,
    pub(crate) nars_uploaded: u64,
    pub(crate) bytes_uploaded: u64,
    pub(crate) nars_deleted: u64,
    pub(crate) repaired: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.published += other.published;
        self.unchanged += other.unchanged;
        self.documents += other.documents;
        self.left_out += other.left_out;
        self.removed += other.removed;
        self.nars_uploaded += other.nars_uploaded;
        self.bytes_uploaded += other.bytes_uploaded;
        self.nars_deleted += other.nars_deleted;
        self.repaired += other.repaired;
    }
}

impl CacheOutcome {
    /// Of a cache of which nothing was done yet.
    pub(crate) fn of(name: &str) -> Self {
        Self { cache: name.to_owned(), ..Self::default() }
    }

    /// Adds what a part of the run changed.
    pub(crate) fn add(&mut self, counts: Counts) {
        self.published += counts.published;
        self.unchanged += counts.unchanged;
        self.documents += counts.documents;
        self.left_out += counts.left_out;
        self.removed += counts.removed;
        self.nars_uploaded += counts.nars_uploaded;
        self.bytes_uploaded += counts.bytes_uploaded;
        self.nars_deleted += counts.nars_deleted;
        self.repaired += counts.repaired;
    }

    /// Adds the result of a later turn.
    pub(crate) fn add_turn(&mut self, turn: Self) {
        self.published += turn.published;
        self.unchanged += turn.unchanged;
        self.documents += turn.documents;
        self.left_out += turn.left_out;
        self.removed += turn.removed;
        self.nars_uploaded += turn.nars_uploaded;
        self.bytes_uploaded += turn.bytes_uploaded;
        self.nars_deleted += turn.nars_deleted;
        self.repaired += turn.repaired;
        (self.waiting, self.note, self.error) = (turn.waiting, turn.note, turn.error);
    }

    /// Whether anything in the target changed.
    pub fn changed(&self) -> bool {
        let paths = self.published + self.removed + self.documents;
        paths + self.nars_uploaded + self.nars_deleted + self.repaired > 0
    }
}

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// For each cache, by name.
    pub caches: Vec<CacheOutcome>,
    /// Writes and deletions that were asked of the target.
    pub writes: u64,
    /// Listings and reads.
    pub listings: u64,
    /// Caches in the target that this lab neither publishes there nor has written down. Only a
    /// reconciliation looks for them.
    pub unknown: Vec<CacheName>,
}

impl Outcome {
    /// How many paths wait.
    pub fn waiting(&self) -> u64 {
        self.caches.iter().map(|cache| cache.waiting).sum()
    }
}

/// What a run would do to one cache, as far as that is known beforehand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preview {
    /// The cache.
    pub cache: String,
    /// Paths that would be published or published again, unless they wait for something.
    pub publish: u64,
    /// Bytes of their NARs' files, at most.
    pub bytes: u64,
    /// Paths that would be removed.
    pub remove: u64,
}
