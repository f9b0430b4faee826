//! What publishing remembers: which changes were followed, what lies in a target, and what is still to be brought there.
//!
//! Layer: port; the same conventions as [`Index`](crate::Index). One program at a time may write for a target: every writing
//! method takes the [`Lease`] it holds, and fails with [`Error::LeaseLost`](crate::Error::LeaseLost), without effect, once
//! another one was given out. Rows are written *before* the target is (as "may be there") and again when it is done, so after
//! a crash nothing lies in a target that no row knows of.

use async_trait::async_trait;
use dormer_format::EncodingTag;
use dormer_nix::{NarHash, StorePathHash};

use crate::Result;
use crate::contract::{CacheId, FoundObject, OutboxPosition, UnixSeconds};

/// Number of a target's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub i64);

/// A target as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishTarget {
    /// Row number.
    pub id: TargetId,
    /// Name, from the settings.
    pub name: String,
    /// Where it is.
    pub location: String,
    /// Up to where the outbox was followed.
    pub cursor: OutboxPosition,
    /// Who writes to it, if somebody does or ended without saying so.
    pub holder: Option<String>,
    /// When that one's lease ends.
    pub lease_ends_at: UnixSeconds,
    /// When a run ended last.
    pub ran_at: Option<UnixSeconds>,
    /// Why the last run failed, if it did, and when.
    pub error: Option<(String, UnixSeconds)>,
}

/// The right to write to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The target.
    pub target: TargetId,
    /// Grows with every lease of the target: an older one is worth nothing.
    pub fence: i64,
    /// Whether the one before was given back. If not, its holder may still have requests under way.
    pub was_released: bool,
}

/// A cache that is published to a target, or was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedCache {
    /// The cache; it may be deleted by now.
    pub cache: CacheId,
    /// Its name in the target.
    pub name: String,
    /// Digest of what every narinfo of it depends on.
    pub basis: Vec<u8>,
    /// Digest of the documents about it, as they were written last.
    pub document: Vec<u8>,
    /// When it was last written to.
    pub published_at: UnixSeconds,
}

/// Where an object stands in a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishState {
    /// Its narinfo may be there.
    Writing,
    /// Its narinfo is there.
    Published,
    /// Its narinfo is being removed, and may be gone.
    Removing,
}

/// An object in a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedObject {
    /// Store hash.
    pub hash: StorePathHash,
    /// Where it stands.
    pub state: PublishState,
    /// The NAR that its narinfo names.
    pub nar: (NarHash, EncodingTag),
    /// Digest of the narinfo; empty before it was written.
    pub digest: Vec<u8>,
    /// What the target said of the narinfo.
    pub etag: Option<String>,
    /// Whether an upstream key signed it: then it is found elsewhere when it goes here.
    pub upstream: bool,
}

/// A NAR file in a target, below one cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedNar {
    /// The NAR and its encoding.
    pub nar: (NarHash, EncodingTag),
    /// Whether all of it is there.
    pub uploaded: bool,
    /// Bytes of the file.
    pub file_size: u64,
    /// SHA-256 of the file, once it was uploaded.
    pub file_hash: Option<NarHash>,
    /// What the target said of it.
    pub etag: Option<String>,
    /// When it may be deleted, if nothing names it any more.
    pub delete_after: Option<UnixSeconds>,
}

/// An object that has to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingObject {
    /// Store hash.
    pub hash: StorePathHash,
    /// Since when.
    pub since: UnixSeconds,
    /// A reference that was removed under it.
    pub lost: Option<StorePathHash>,
    /// Why it waits.
    pub reason: Option<String>,
}

/// An object that is about to be written.
#[derive(Debug, Clone)]
pub struct PublishIntent {
    /// Store hash.
    pub hash: StorePathHash,
    /// The NAR that its narinfo will name.
    pub nar: (NarHash, EncodingTag),
    /// Bytes of that file.
    pub file_size: u64,
    /// What it refers to, itself left out.
    pub references: Vec<StorePathHash>,
}

/// An object whose narinfo was written.
#[derive(Debug, Clone)]
pub struct PublishDone {
    /// Store hash.
    pub hash: StorePathHash,
    /// The NAR that its narinfo names.
    pub nar: (NarHash, EncodingTag),
    /// Digest of the narinfo.
    pub digest: Vec<u8>,
    /// What the target said of it.
    pub etag: Option<String>,
    /// Whether an upstream key signed it.
    pub upstream: bool,
    /// What it refers to, itself left out.
    pub references: Vec<StorePathHash>,
}

/// What a target holds of a cache, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PublishCounts {
    /// Objects that are there.
    pub published: u64,
    /// Objects to look at.
    pub pending: u64,
    /// Since when the oldest of them waits.
    pub pending_since: Option<UnixSeconds>,
    /// NAR files that are there, those in grace included.
    pub nars: u64,
    /// Bytes of them.
    pub file_bytes: u64,
}

/// How much of a cache is in a target and how much waits, for those who only watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishBacklog {
    /// The target.
    pub target: TargetId,
    /// The cache's name in the target; two rows have the same one while what is left of a deleted cache is taken away.
    pub cache: String,
    /// Objects that are there.
    pub published: u64,
    /// Objects to look at.
    pub pending: u64,
    /// Since when the oldest of them waits.
    pub pending_since: Option<UnixSeconds>,
}

/// What publishing remembers.
#[async_trait]
pub trait PublishIndex: Send + Sync + std::fmt::Debug + 'static {
    // --- targets and leases -----------------------------------------------------------------------------------------

    /// The target of this name; made, at the start of the outbox, if there is none. Its location stays what it was.
    async fn open_target(&self, name: &str, location: &str) -> Result<PublishTarget>;
    /// All targets, by name.
    async fn list_targets(&self) -> Result<Vec<PublishTarget>>;
    /// Takes the lease of a target, for `holder`, until `ends_at`; `None` while another one's has not ended at `now`.
    async fn acquire_lease(
        &self,
        target: TargetId,
        holder: &str,
        now: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<Option<Lease>>;
    /// Puts the end of a lease off. Every other writing method fails like this one when it is lost.
    async fn renew_lease(&self, lease: &Lease, ends_at: UnixSeconds) -> Result<()>;
    /// Gives a lease back, and writes down how the run ended.
    async fn release_lease(&self, lease: &Lease, at: UnixSeconds, error: Option<&str>) -> Result<()>;
    /// Writes down that a target is somewhere else now.
    async fn move_target(&self, lease: &Lease, location: &str) -> Result<()>;

    // --- changes to look at -----------------------------------------------------------------------------------------

    /// Notes objects to look at, those that are noted already staying as they are, and moves the cursor if there is one: then they are
    /// changes, and what changed again since it was noted is noted since then.
    async fn note_pending(
        &self,
        lease: &Lease,
        objects: &[(CacheId, StorePathHash, UnixSeconds)],
        cursor: Option<OutboxPosition>,
    ) -> Result<()>;
    /// Notes every object that the cache has, or that the target has of it.
    async fn note_all_pending(&self, lease: &Lease, cache: CacheId, at: UnixSeconds) -> Result<()>;
    /// Objects to look at, oldest first, after a place in that order.
    async fn pending_objects(
        &self,
        target: TargetId,
        cache: CacheId,
        after: Option<(UnixSeconds, StorePathHash)>,
        limit: u32,
    ) -> Result<Vec<PendingObject>>;
    /// Those of them that the cache does not have, after a hash, in the order of hashes.
    async fn pending_absent(
        &self,
        target: TargetId,
        cache: CacheId,
        after: Option<StorePathHash>,
        limit: u32,
    ) -> Result<Vec<StorePathHash>>;
    /// Writes down why objects wait.
    async fn note_waiting(
        &self,
        lease: &Lease,
        cache: CacheId,
        reasons: &[(StorePathHash, String)],
    ) -> Result<()>;
    /// Writes down which reference objects wait for that was removed under them: it never counts as upstream's for them.
    async fn note_lost(
        &self,
        lease: &Lease,
        cache: CacheId,
        lost: &[(StorePathHash, StorePathHash)],
    ) -> Result<()>;
    /// Writes down that the cache has these no more, and that they need not be looked at.
    async fn note_removed(
        &self,
        lease: &Lease,
        cache: CacheId,
        hashes: &[StorePathHash],
        at: UnixSeconds,
    ) -> Result<()>;
    /// Those of these that the cache once had, if it has them no more: written down as removed and not published since, or still
    /// to be looked at, for one that was removed a moment ago is not written down yet. At most 16,384; one statement.
    async fn find_removed(
        &self,
        target: TargetId,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<StorePathHash>>;
    /// Forgets what was removed before this time.
    async fn forget_removed(&self, lease: &Lease, cache: CacheId, before: UnixSeconds) -> Result<()>;
    /// These need not be looked at any more.
    async fn drop_pending(&self, lease: &Lease, cache: CacheId, hashes: &[StorePathHash]) -> Result<()>;

    // --- caches -----------------------------------------------------------------------------------------------------

    /// Caches that are published to a target, or were.
    async fn published_caches(&self, target: TargetId) -> Result<Vec<PublishedCache>>;
    /// Writes one down.
    async fn write_published_cache(&self, lease: &Lease, cache: &PublishedCache) -> Result<()>;
    /// Forgets one, with everything that was written down of it.
    async fn forget_published_cache(&self, lease: &Lease, cache: CacheId) -> Result<()>;
    /// What a target holds of a cache.
    async fn publish_counts(&self, target: TargetId, cache: CacheId) -> Result<PublishCounts>;
    /// How much of each cache is in each target and how much waits, by target and name, at most `limit` rows; one statement,
    /// which reads an entry of an index for each object that is published.
    async fn publish_backlog(&self, limit: u32) -> Result<Vec<PublishBacklog>>;

    // --- look-ups ---------------------------------------------------------------------------------------------------

    /// Those of these objects that the cache has, with damaged NARs too. At most 16,384; one statement.
    async fn find_objects(&self, cache: CacheId, hashes: &[StorePathHash]) -> Result<Vec<FoundObject>>;
    /// Those of these objects that a row is written of. At most 16,384; one statement.
    async fn find_published(
        &self,
        target: TargetId,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<PublishedObject>>;
    /// A page of all objects that a row is written of, after a hash, in the order of hashes.
    async fn list_published(
        &self,
        target: TargetId,
        cache: CacheId,
        after: Option<StorePathHash>,
        limit: u32,
    ) -> Result<Vec<PublishedObject>>;
    /// What is written of NAR files with these hashes, in any encoding. At most 16,384; one statement.
    async fn find_published_nars(
        &self,
        target: TargetId,
        cache: CacheId,
        nars: &[NarHash],
    ) -> Result<Vec<PublishedNar>>;
    /// A page of all NAR files that a row is written of, after one, in the order of hashes and tags.
    async fn list_published_nars(
        &self,
        target: TargetId,
        cache: CacheId,
        after: Option<(NarHash, EncodingTag)>,
        limit: u32,
    ) -> Result<Vec<PublishedNar>>;
    /// NAR files that one of these objects named last and that nothing names any more. At most 16,384 objects; one statement.
    async fn nars_left_by(
        &self,
        target: TargetId,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<PublishedNar>>;
    /// NAR files that may be deleted at this time.
    async fn due_nars(
        &self,
        target: TargetId,
        cache: CacheId,
        now: UnixSeconds,
        limit: u32,
    ) -> Result<Vec<PublishedNar>>;

    // --- writing ----------------------------------------------------------------------------------------------------

    /// Writes down what is about to be written: each object's narinfo and NAR may be there from now on, and what it refers to
    /// counts as referred to. A NAR file that is there stays so, and its grace ends.
    async fn begin_publishing(&self, lease: &Lease, cache: CacheId, intents: &[PublishIntent]) -> Result<()>;
    /// Writes down NAR files that are there.
    async fn note_uploaded(&self, lease: &Lease, cache: CacheId, nars: &[PublishedNar]) -> Result<()>;
    /// Writes down narinfos that are there: the objects need not be looked at any more. A NAR that one of them named before,
    /// and nothing names now, may be deleted after `delete_after`.
    async fn finish_publishing(
        &self,
        lease: &Lease,
        cache: CacheId,
        done: &[PublishDone],
        delete_after: UnixSeconds,
    ) -> Result<()>;

    // --- removing ---------------------------------------------------------------------------------------------------

    /// Writes down that these objects are being removed, and with them, through all generations, whatever refers to them: that
    /// has to be looked at again, and knows which reference it lost. What refers to an object with an upstream signature stays.
    /// Returns how many more there were.
    async fn begin_removing(
        &self,
        lease: &Lease,
        cache: CacheId,
        hashes: &[StorePathHash],
        at: UnixSeconds,
    ) -> Result<u64>;
    /// Objects being removed to which nothing refers any more: they are the next. With `any`, those too to which only others
    /// refer that are being removed: when nothing else is left, they refer to each other.
    async fn removable(
        &self,
        target: TargetId,
        cache: CacheId,
        any: bool,
        limit: u32,
    ) -> Result<Vec<StorePathHash>>;
    /// Writes down that the narinfos of these objects are gone. Their NARs, if nothing else names them, may be deleted after
    /// the time given with each.
    async fn finish_removing(
        &self,
        lease: &Lease,
        cache: CacheId,
        removed: &[(StorePathHash, UnixSeconds)],
    ) -> Result<()>;
    /// Sets when NAR files may be deleted that nothing names.
    async fn set_nar_deadline(
        &self,
        lease: &Lease,
        cache: CacheId,
        nars: &[(NarHash, EncodingTag)],
        at: UnixSeconds,
    ) -> Result<()>;
    /// Writes down that NAR files are about to be deleted: from now on they may be gone.
    async fn begin_deleting_nars(
        &self,
        lease: &Lease,
        cache: CacheId,
        nars: &[(NarHash, EncodingTag)],
    ) -> Result<()>;
    /// Forgets NAR files that were deleted.
    async fn forget_nars(&self, lease: &Lease, cache: CacheId, nars: &[(NarHash, EncodingTag)])
    -> Result<()>;
    /// Writes down that narinfos (by object) and NAR files are not there, or not as they were written: found by a listing.
    /// What named them has to be looked at again.
    async fn note_drift(
        &self,
        lease: &Lease,
        cache: CacheId,
        objects: &[StorePathHash],
        nars: &[(NarHash, EncodingTag)],
        at: UnixSeconds,
    ) -> Result<()>;
}
