//! What publishing records: which changes a run has followed, what is in a target, and what is
//! still to be brought there.
//!
//! Layer: port; the conventions are those of [`Index`](crate::Index). One program at a time may
//! write for a target. Every writing method takes the program's [`Lease`] and renews it. Once
//! another lease was given out, the method fails with [`Error::LeaseLost`](crate::Error::LeaseLost)
//! and changes nothing. The publisher writes rows *before* it writes to the target (as "may be
//! there") and again afterwards, so after a crash a row knows of every file in the target.

use std::ops::RangeInclusive;

use async_trait::async_trait;
use dormer_format::EncodingTag;
use dormer_nix::{BuildId, DocumentName, NarHash, StorePathHash};

use crate::Result;
use crate::contract::{CacheId, FoundObject, OutboxPosition, UnixSeconds};

/// Number of a target's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub i64);

/// The state of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishTarget {
    /// Row number.
    pub id: TargetId,
    /// Name, from the settings.
    pub name: String,
    /// Its location.
    pub location: String,
    /// Whether the rows were compared with what is there, since the target was made or moved there
    /// last.
    pub compared: bool,
    /// The outbox is followed up to here.
    pub cursor: OutboxPosition,
    /// Whether outbox rows behind the cursor were deleted before they were followed
    /// ([`JobIndex::trim_outbox`](crate::JobIndex::trim_outbox)).
    pub missed_changes: bool,
    /// The process that has the lease, or had it and ended without giving it back.
    pub holder: Option<String>,
    /// When that lease ends.
    pub lease_ends_at: UnixSeconds,
    /// When the last run ended.
    pub ran_at: Option<UnixSeconds>,
    /// Why the last run failed, if it did, and when.
    pub error: Option<(String, UnixSeconds)>,
}

/// A target, and how far it is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follower {
    /// The target.
    pub target: PublishTarget,
    /// When the oldest change was made that it has not followed.
    pub unseen_since: Option<UnixSeconds>,
    /// Caches that are published to it.
    pub caches: u64,
    /// Paths of theirs that are there.
    pub published: u64,
    /// Paths of theirs that have to be looked at.
    pub pending: u64,
    /// Since when the oldest of these waits.
    pub pending_since: Option<UnixSeconds>,
}

/// The right to write to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The target.
    pub target: TargetId,
    /// Grows with every lease of the target. Only the newest lease counts.
    pub fence: i64,
    /// Whether the lease before was given back. If not, its holder may still have requests under
    /// way.
    pub was_released: bool,
    /// When it ends. Every method that takes a lease puts the end off until this time: a holder
    /// that writes needs no other renewal, and a step that takes long does not lose its own lease.
    pub ends_at: UnixSeconds,
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
    /// How far the work over the whole cache has come, if there is such work: the cursor of a job
    /// ([`JobKind::ScanCache`](crate::JobKind::ScanCache)). Writing `None` leaves the job as it is.
    pub scan: Option<CacheScan>,
}

/// How far the work over a whole published cache has come. The work is done in this order, from any
/// of its parts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheScan {
    /// Comparing narinfos with the target's listing: done up to this last byte of their hashes.
    Narinfos(Option<u8>),
    /// Comparing NAR files, likewise.
    Nars(Option<u8>),
    /// Comparing documents: done up to this name below the cache.
    Documents(Option<String>),
    /// Noting what the cache had once, from the outbox: done up to this position.
    Past(OutboxPosition),
    /// Noting what the cache has: done up to this hash.
    Objects(Option<StorePathHash>),
    /// Noting what the target has of the cache, likewise.
    Published(Option<StorePathHash>),
}

impl CacheScan {
    /// Whether it compares what is written down with a listing of the target.
    pub fn is_comparison(&self) -> bool {
        matches!(self, Self::Narinfos(_) | Self::Nars(_) | Self::Documents(_))
    }

    /// As the cursor of a job.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let after = |tag: u8, bytes: &[u8]| [&[tag], bytes].concat();
        match self {
            Self::Narinfos(byte) => after(0, byte.as_slice()),
            Self::Nars(byte) => after(1, byte.as_slice()),
            Self::Past(position) => {
                after(2, &[position.transaction.to_be_bytes(), position.number.to_be_bytes()].concat())
            }
            Self::Objects(hash) => after(3, hash.as_ref().map_or(&[], |hash| hash.as_bytes())),
            Self::Published(hash) => after(4, hash.as_ref().map_or(&[], |hash| hash.as_bytes())),
            Self::Documents(name) => after(5, name.as_deref().unwrap_or_default().as_bytes()),
        }
    }

    /// The reverse of [`Self::encode`].
    pub(crate) fn decode(column: &[u8]) -> Option<Self> {
        let after = |scan: fn(Option<StorePathHash>) -> Self, rest: &[u8]| -> Option<Self> {
            match rest {
                [] => Some(scan(None)),
                hash => Some(scan(Some(StorePathHash::from_bytes(hash.try_into().ok()?)))),
            }
        };
        let (tag, rest) = column.split_first()?;
        Some(match (tag, rest) {
            (0, rest) if rest.len() < 2 => Self::Narinfos(rest.first().copied()),
            (1, rest) if rest.len() < 2 => Self::Nars(rest.first().copied()),
            (2, rest) => {
                let (transaction, number) = rest.split_first_chunk::<8>()?;
                Self::Past(OutboxPosition {
                    transaction: i64::from_be_bytes(*transaction),
                    number: i64::from_be_bytes(number.try_into().ok()?),
                })
            }
            (3, rest) => after(Self::Objects, rest)?,
            (4, rest) => after(Self::Published, rest)?,
            (5, []) => Self::Documents(None),
            (5, name) => Self::Documents(Some(std::str::from_utf8(name).ok()?.to_owned())),
            _ => return None,
        })
    }
}

/// What a call of [`PublishIndex::note_pending`] has read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotedFrom {
    /// A page of the outbox, up to this position. The objects are changes: what changed again since
    /// it was noted is noted since then.
    Outbox(OutboxPosition),
    /// A part of a cache's past; its scan goes on from here. Objects that are noted already stay as
    /// they are.
    Scan(CacheId, CacheScan),
    /// Nothing: these objects hold up others. Those that are noted already stay as they are.
    Referrers,
}

/// The verdicts on objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PendingVerdicts {
    /// These need not be looked at any more.
    pub done: Vec<StorePathHash>,
    /// The cache has these no more, and they need not be looked at.
    pub removed: Vec<StorePathHash>,
    /// These wait, with the reason.
    pub waiting: Vec<(StorePathHash, String)>,
    /// These wait for a reference that was removed under them: it never counts as upstream's for
    /// them.
    pub lost: Vec<(StorePathHash, StorePathHash)>,
}

impl PendingVerdicts {
    /// Whether there is nothing to write down.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty() && self.removed.is_empty() && self.waiting.is_empty() && self.lost.is_empty()
    }
}

/// A page of the objects to look at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AbsentPage {
    /// Those that the cache does not have.
    pub absent: Vec<StorePathHash>,
    /// The last object of the page: the next page begins after it. `None`: there is none.
    pub next: Option<StorePathHash>,
}

/// The result of a step of taking referrers along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReferrersTaken {
    /// Objects that are being removed from now on.
    pub taken: u64,
    /// Whether there is more to do.
    pub more: bool,
}

/// A page of the objects that are being removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RemovablePage {
    /// Those that can go.
    pub hashes: Vec<StorePathHash>,
    /// The last object of the page: the next page begins after it. `None`: there is none.
    pub next: Option<StorePathHash>,
}

/// The state of an object in a target.
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
    /// Its state.
    pub state: PublishState,
    /// The NAR that its narinfo names.
    pub nar: (NarHash, EncodingTag),
    /// Digest of the narinfo; empty before it was written.
    pub digest: Vec<u8>,
    /// The target's tag of the narinfo.
    pub etag: Option<String>,
    /// Whether an upstream key signed it: then readers find it elsewhere when it is removed here.
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
    /// The target's tag of it.
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
    /// Its references, without itself.
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
    /// The target's tag of it.
    pub etag: Option<String>,
    /// Whether an upstream key signed it.
    pub upstream: bool,
    /// Its references, without itself.
    pub references: Vec<StorePathHash>,
}

/// A document that the lab has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedDocument {
    /// The store path that it belongs to: a log's derivation, or what a trace's output became.
    pub owner: StorePathHash,
    /// Its address below the cache.
    pub name: DocumentName,
    /// Bytes of the document.
    pub size: u64,
    /// Digest of what is stored of it.
    pub digest: Vec<u8>,
}

/// A document in a target, with one of the objects that it was published with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedDocument {
    /// The object.
    pub hash: StorePathHash,
    /// Its address below the cache.
    pub name: DocumentName,
    /// Digest of what it depended on when it was written; empty before it was written.
    pub digest: Vec<u8>,
    /// Digest of the file, and what the target said of it, likewise.
    pub file: Option<PublishedFile>,
}

/// A small file as it was written to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedFile {
    /// SHA-256 of its bytes.
    pub digest: Vec<u8>,
    /// The target's tag of it, if it gives any.
    pub etag: Option<String>,
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

/// How much of a cache is in a target and how much waits, for metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishBacklog {
    /// The target.
    pub target: TargetId,
    /// The cache's name in the target; two rows have the same one while what is left of a deleted
    /// cache is taken away.
    pub cache: String,
    /// Objects that are there.
    pub published: u64,
    /// Objects to look at.
    pub pending: u64,
    /// Since when the oldest of them waits.
    pub pending_since: Option<UnixSeconds>,
    /// Its store hash.
    pub oldest: Option<StorePathHash>,
    /// What it waits for; `None` if no run has looked at it.
    pub reason: Option<String>,
}

/// What publishing remembers.
#[async_trait]
pub trait PublishIndex: Send + Sync + std::fmt::Debug + 'static {
    // --- targets and leases ----------------------------------------------------------------------

    /// The target of this name. A target that is not there is made, at the start of the outbox and
    /// not compared; one that is stays where it is.
    async fn open_target(&self, name: &str, location: &str) -> Result<PublishTarget>;
    /// All targets, by name.
    async fn list_targets(&self) -> Result<Vec<PublishTarget>>;
    /// All targets, by name, and how far each is behind. One statement, which reads an entry of an
    /// index for each cache in each target.
    async fn list_followers(&self) -> Result<Vec<Follower>>;
    /// Takes the lease of a target, for `holder`, until `ends_at`; `None` while another one's has
    /// not ended at `now`.
    async fn acquire_lease(
        &self,
        target: TargetId,
        holder: &str,
        now: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<Option<Lease>>;
    /// Puts the end of a lease off until its `ends_at`. Every other writing method does the same,
    /// and fails like this one when the lease is lost.
    async fn renew_lease(&self, lease: &Lease) -> Result<()>;
    /// Gives a lease back, and writes down how the run ended.
    async fn release_lease(&self, lease: &Lease, at: UnixSeconds, error: Option<&str>) -> Result<()>;
    /// Writes down where a target is, and whether its rows were compared with what is there. Of
    /// another location than before, no comparison that had begun counts.
    async fn move_target(&self, lease: &Lease, location: &str, compared: bool) -> Result<()>;

    /// Writes down that whole caches are compared in place of the changes that the target missed.
    async fn clear_missed_changes(&self, lease: &Lease) -> Result<()>;

    // --- changes to look at ----------------------------------------------------------------------

    /// Notes objects to look at, and how far their source was read.
    async fn note_pending(
        &self,
        lease: &Lease,
        objects: &[(CacheId, StorePathHash, UnixSeconds)],
        from: NotedFrom,
    ) -> Result<()>;
    /// Notes the next `limit` objects that the cache has, or that the target has of it, and how far
    /// the scan has come. Returns where it goes on; `None` when it has come to its end.
    ///
    /// # Panics
    /// If the scan is not at one of these two parts.
    async fn note_cache_step(
        &self,
        lease: &Lease,
        cache: CacheId,
        scan: CacheScan,
        limit: u32,
        at: UnixSeconds,
    ) -> Result<Option<CacheScan>>;
    /// Objects to look at, oldest first, after a place in that order.
    async fn pending_objects(
        &self,
        target: TargetId,
        cache: CacheId,
        after: Option<(UnixSeconds, StorePathHash)>,
        limit: u32,
    ) -> Result<Vec<PendingObject>>;
    /// Which of the next `limit` objects to look at, in the order of hashes, the cache does not
    /// have.
    async fn pending_absent(
        &self,
        target: TargetId,
        cache: CacheId,
        after: Option<StorePathHash>,
        limit: u32,
    ) -> Result<AbsentPage>;
    /// Writes down the verdicts on objects.
    async fn settle_pending(
        &self,
        lease: &Lease,
        cache: CacheId,
        verdicts: &PendingVerdicts,
        at: UnixSeconds,
    ) -> Result<()>;
    /// Those of these that the cache once had, if it has them no more: written down as removed and
    /// not published since, or still to be looked at, for one that was removed a moment ago is not
    /// written down yet. At most 16,384; one statement.
    async fn find_removed(
        &self,
        target: TargetId,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<StorePathHash>>;
    /// Forgets what was removed before this time, at most `limit` objects. Returns how many.
    async fn forget_removed(
        &self,
        lease: &Lease,
        cache: CacheId,
        before: UnixSeconds,
        limit: u32,
    ) -> Result<u64>;

    // --- caches ----------------------------------------------------------------------------------

    /// Caches that are published to a target, or were.
    async fn published_caches(&self, target: TargetId) -> Result<Vec<PublishedCache>>;
    /// Writes one down.
    async fn write_published_cache(
        &self,
        lease: &Lease,
        cache: &PublishedCache,
        at: UnixSeconds,
    ) -> Result<()>;
    /// Forgets one, with everything that was written down of it, at most `limit` rows of each kind.
    /// Returns whether all is gone; the cache's own row goes last.
    async fn forget_published_cache(&self, lease: &Lease, cache: CacheId, limit: u32) -> Result<bool>;
    /// Forgets what has to be looked at in a cache, at most `limit` objects, and at last the scan
    /// of the cache. Returns whether all is gone.
    async fn forget_pending(&self, lease: &Lease, cache: CacheId, limit: u32) -> Result<bool>;
    /// What a target holds of a cache.
    async fn publish_counts(&self, target: TargetId, cache: CacheId) -> Result<PublishCounts>;
    /// How much of each cache is in each target and how much waits, by target and name, at most
    /// `limit` rows; one statement, which reads an entry of an index for each object that is
    /// published.
    async fn publish_backlog(&self, limit: u32) -> Result<Vec<PublishBacklog>>;

    // --- look-ups --------------------------------------------------------------------------------

    /// Those of these objects that the cache has, with damaged NARs too. At most 16,384; one
    /// statement.
    async fn find_objects(&self, cache: CacheId, hashes: &[StorePathHash]) -> Result<Vec<FoundObject>>;
    /// Those of these NARs that the lab serves in the cache: through an object, a grace that has
    /// not ended, or an alias. At most 16,384; one statement.
    async fn find_served_nars(
        &self,
        cache: CacheId,
        nars: &[NarHash],
        now: UnixSeconds,
    ) -> Result<Vec<NarHash>>;
    /// Those of these objects that a row is written of. At most 16,384; one statement.
    async fn find_published(
        &self,
        target: TargetId,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<PublishedObject>>;
    /// A page of all objects that a row is written of, after a hash, in the order of the last bytes
    /// of their hashes, and of hashes among equals: as a listing of the target gives them, but for
    /// the order among equals. Those with last bytes in `bytes`.
    async fn list_published(
        &self,
        target: TargetId,
        cache: CacheId,
        bytes: RangeInclusive<u8>,
        after: Option<StorePathHash>,
        limit: u32,
    ) -> Result<Vec<PublishedObject>>;
    /// What is written of NAR files with these hashes, in any encoding. At most 16,384; one
    /// statement.
    async fn find_published_nars(
        &self,
        target: TargetId,
        cache: CacheId,
        nars: &[NarHash],
    ) -> Result<Vec<PublishedNar>>;
    /// A page of all NAR files that a row is written of, after one, in the order of the last bytes
    /// of their hashes, then of hashes and tags. Those with last bytes in `bytes`.
    async fn list_published_nars(
        &self,
        target: TargetId,
        cache: CacheId,
        bytes: RangeInclusive<u8>,
        after: Option<(NarHash, EncodingTag)>,
        limit: u32,
    ) -> Result<Vec<PublishedNar>>;
    /// NAR files that may be deleted at this time.
    async fn due_nars(
        &self,
        target: TargetId,
        cache: CacheId,
        now: UnixSeconds,
        limit: u32,
    ) -> Result<Vec<PublishedNar>>;

    // --- documents -------------------------------------------------------------------------------

    /// Documents of the lab that belong to these store paths (at most 16,384), the newest first, at
    /// most `limit`. One statement.
    async fn find_owned_documents(
        &self,
        cache: CacheId,
        owners: &[StorePathHash],
        limit: u32,
    ) -> Result<Vec<OwnedDocument>>;
    /// Build ids of the debug files in the NARs of these objects (at most 16,384), at most `limit`.
    /// One statement.
    async fn find_build_ids(
        &self,
        cache: CacheId,
        objects: &[StorePathHash],
        limit: u32,
    ) -> Result<Vec<(StorePathHash, BuildId)>>;
    /// Documents that may be in the target with these objects. At most 16,384 objects; one
    /// statement.
    async fn find_published_documents(
        &self,
        target: TargetId,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<PublishedDocument>>;
    /// A page of all documents that a row is written of, in the order of names and objects. The
    /// page begins after the name and object in `after`; a name without an object stands before all
    /// objects of that name. It ends with the name `through`.
    async fn list_published_documents(
        &self,
        target: TargetId,
        cache: CacheId,
        after: (&str, Option<StorePathHash>),
        through: &str,
        limit: u32,
    ) -> Result<Vec<PublishedDocument>>;
    /// Those of these documents that may be in the target with another object than the one given,
    /// with such an object.
    async fn find_needed_documents(
        &self,
        target: TargetId,
        cache: CacheId,
        documents: &[(StorePathHash, DocumentName)],
    ) -> Result<Vec<(StorePathHash, DocumentName)>>;
    /// Writes down documents that may be there from now on, or that are there.
    async fn write_published_documents(
        &self,
        lease: &Lease,
        cache: CacheId,
        documents: &[PublishedDocument],
    ) -> Result<()>;
    /// Forgets documents that are gone, or that an object no longer has.
    async fn forget_published_documents(
        &self,
        lease: &Lease,
        cache: CacheId,
        documents: &[(StorePathHash, DocumentName)],
    ) -> Result<()>;

    /// Writes down that documents are not there, or not as they should be. Their objects have to be
    /// looked at again. With a `scan`, a listing showed it that was read so far.
    async fn note_document_drift(
        &self,
        lease: &Lease,
        cache: CacheId,
        documents: &[(StorePathHash, DocumentName)],
        at: UnixSeconds,
        scan: Option<CacheScan>,
    ) -> Result<()>;

    // --- writing ---------------------------------------------------------------------------------

    /// Writes down what is about to be written: each object's narinfo and NAR may be there from now
    /// on, and what it refers to counts as referred to. A NAR file that is there stays so, and its
    /// grace ends.
    async fn begin_publishing(&self, lease: &Lease, cache: CacheId, intents: &[PublishIntent]) -> Result<()>;
    /// Writes down NAR files that are there.
    async fn note_uploaded(&self, lease: &Lease, cache: CacheId, nars: &[PublishedNar]) -> Result<()>;
    /// Writes down NAR files, with their sizes, that a listing found and no row names: they may be
    /// deleted after `delete_after`, unless an object names them by then. Those with a row stay as
    /// they are.
    async fn note_found_nars(
        &self,
        lease: &Lease,
        cache: CacheId,
        nars: &[((NarHash, EncodingTag), u64)],
        delete_after: UnixSeconds,
    ) -> Result<()>;
    /// Writes down narinfos that a listing found and no row names, as if they had been published,
    /// and that they have to be looked at. All of it is one step: a row that says only half would
    /// be one of a path that the lab began to write.
    async fn note_found_narinfos(
        &self,
        lease: &Lease,
        cache: CacheId,
        intents: &[PublishIntent],
        found: &[PublishDone],
        at: UnixSeconds,
    ) -> Result<()>;
    /// Writes down narinfos that are there: the objects need not be looked at any more. A NAR that
    /// one of them named before, and nothing names now, may be deleted after `delete_after`.
    async fn finish_publishing(
        &self,
        lease: &Lease,
        cache: CacheId,
        done: &[PublishDone],
        delete_after: UnixSeconds,
    ) -> Result<()>;

    // --- removing --------------------------------------------------------------------------------

    /// Writes down that these objects are being removed. None of them can go before
    /// [`Self::take_referrers`] has come to its end.
    async fn begin_removing(&self, lease: &Lease, cache: CacheId, hashes: &[StorePathHash]) -> Result<()>;
    /// Writes down that what refers to objects being removed is being removed too: a step of that,
    /// which is to be repeated until there is no more, through all generations. What is taken along
    /// has to be looked at again, and knows which reference it lost. What refers to an object with
    /// an upstream signature stays.
    async fn take_referrers(&self, lease: &Lease, cache: CacheId, at: UnixSeconds) -> Result<ReferrersTaken>;
    /// Which of the next `limit` objects being removed, in the order of hashes, nothing refers to
    /// any more: they are the next. With `any`, those too to which only others refer that are being
    /// removed: when nothing else is left, they refer to each other.
    async fn removable(
        &self,
        target: TargetId,
        cache: CacheId,
        any: bool,
        after: Option<StorePathHash>,
        limit: u32,
    ) -> Result<RemovablePage>;
    /// Writes down that the narinfos of these objects are gone. Their NARs, if nothing else names
    /// them, may be deleted after the time given with each.
    async fn finish_removing(
        &self,
        lease: &Lease,
        cache: CacheId,
        removed: &[(StorePathHash, UnixSeconds)],
    ) -> Result<()>;
    /// Lets NAR files go at this time that one of these objects named last, that nothing names any
    /// more, and that the lab serves no more in this cache. Returns how many there are. At most
    /// 16,384 objects; one statement.
    async fn end_graces(
        &self,
        lease: &Lease,
        cache: CacheId,
        hashes: &[StorePathHash],
        at: UnixSeconds,
    ) -> Result<u64>;
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
    /// Writes down that narinfos (by object) and NAR files are not there, or not as they were
    /// written: found by a listing that was read as far as `scan` says. What named them has to be
    /// looked at again.
    async fn note_drift(
        &self,
        lease: &Lease,
        cache: CacheId,
        objects: &[StorePathHash],
        nars: &[(NarHash, EncodingTag)],
        at: UnixSeconds,
        scan: CacheScan,
    ) -> Result<()>;
    /// Writes down that NAR files, and the narinfos that name them, are to be written again with
    /// other headers. Unlike after [`note_drift`](PublishIndex::note_drift), they are there, and
    /// what names them stays published.
    async fn note_other_headers(
        &self,
        lease: &Lease,
        cache: CacheId,
        nars: &[(NarHash, EncodingTag)],
        at: UnixSeconds,
        scan: CacheScan,
    ) -> Result<()>;
}
