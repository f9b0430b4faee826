//! Objects that have to be looked at: noted, then settled by a verdict.

use async_trait::async_trait;
use dormer_nix::StorePathHash;

use super::{CacheScan, Lease, TargetId};
use crate::Result;
use crate::contract::{CacheId, OutboxPosition, UnixSeconds};

/// What a call of [`PendingIndex::note_pending`] has read to its end.
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

/// A page of the objects to look at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AbsentPage {
    /// Those that the cache does not have.
    pub absent: Vec<StorePathHash>,
    /// The last object of the page: the next page begins after it. `None`: there is none.
    pub next: Option<StorePathHash>,
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

/// What has to be looked at, and what was removed.
#[async_trait]
pub trait PendingIndex: Send + Sync + std::fmt::Debug + 'static {
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
}
