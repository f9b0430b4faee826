//! What happens while publishing, for whoever shows it; libraries draw nothing.

use dormer_nix::{StorePath, StorePathHash};

/// Is told what happens. Called from many tasks.
pub trait Reporter: Send + Sync {
    /// A NAR of so many bytes was sent.
    fn nar_uploaded(&self, _cache: &str, _bytes: u64) {}
    /// A path is in the target now.
    fn path_published(&self, _cache: &str, _path: &StorePath) {}
    /// A path is not in the target any more.
    fn path_removed(&self, _cache: &str, _hash: &StorePathHash) {}
    /// So many paths of a cache are to be looked at: told of what takes a while.
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
    /// Paths that were looked at and are as they were.
    pub unchanged: u64,
    /// Narinfos that were removed.
    pub removed: u64,
    /// NARs that were sent.
    pub nars_uploaded: u64,
    /// Bytes of them.
    pub bytes_uploaded: u64,
    /// NARs that were deleted.
    pub nars_deleted: u64,
    /// Paths that wait for something; `dormer publish status` says for what.
    pub waiting: u64,
    /// Files of a reconciliation that were missing, damaged or not ours.
    pub repaired: u64,
    /// What should be known of it.
    pub note: Option<String>,
    /// Why it could not be published, if so.
    pub error: Option<String>,
}

impl CacheOutcome {
    /// Whether anything in the target changed.
    pub fn changed(&self) -> bool {
        self.published + self.removed + self.nars_uploaded + self.nars_deleted + self.repaired > 0
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
}

impl Outcome {
    /// Whether anything waits.
    pub fn waiting(&self) -> u64 {
        self.caches.iter().map(|cache| cache.waiting).sum()
    }
}

/// What a run would do to one cache, as far as can be said without doing it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preview {
    /// The cache.
    pub cache: String,
    /// Paths that would be published or published anew, unless they wait for something.
    pub publish: u64,
    /// Bytes of their NARs' files, at most.
    pub bytes: u64,
    /// Paths that would be removed.
    pub remove: u64,
}
