//! Objects on their way out of a target: referrers first, a narinfo before its NAR, and the NAR
//! after its grace.

use async_trait::async_trait;
use dormer_format::EncodingTag;
use dormer_nix::{NarHash, StorePathHash};

use super::{Lease, TargetId};
use crate::Result;
use crate::contract::{CacheId, UnixSeconds};

/// Objects that were looked at for removal. At most 16,384 together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removals {
    /// The cache has these no more. Those in the target are removed; the others need not be looked
    /// at any more.
    pub gone: Vec<StorePathHash>,
    /// The cache has these with another NAR. They are removed if the lab no longer serves the
    /// published one in the cache: they were removed for cause and pushed again.
    pub replaced: Vec<StorePathHash>,
    /// The cache has these. Only NARs that they named before may have to go.
    pub kept: Vec<StorePathHash>,
}

/// What [`begin_removing`](RemoveIndex::begin_removing) found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RemovalsBegun {
    /// Objects that are being removed from now on.
    pub leaving: u64,
    /// Those of them whose NARs the lab no longer serves in the cache, but for those that were only
    /// [found](super::PublishedObject::was_found).
    pub unserved: u64,
    /// NAR files whose grace ended, because the lab no longer serves them in the cache.
    pub graces_ended: u64,
}

impl RemovalsBegun {
    /// Whether something has to leave the target at once: it was removed for cause.
    pub fn is_urgent(&self) -> bool {
        self.unserved + self.graces_ended > 0
    }
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

/// The transitions of an object that goes, and those of its NAR.
#[async_trait]
pub trait RemoveIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Writes down that objects are being removed, and ends the graces of NAR files that one of
    /// `removals` named last, that nothing names any more, and that the lab serves no more in this
    /// cache. No object can go before [`Self::take_referrers`] has come to its end.
    async fn begin_removing(
        &self,
        lease: &Lease,
        cache: CacheId,
        removals: &Removals,
        at: UnixSeconds,
    ) -> Result<RemovalsBegun>;
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
    /// Writes down that the narinfos of these objects (at most 16,384) and all their documents are
    /// gone. Their NARs, if nothing else names them, may be deleted: after `grace_ends_at` if the
    /// lab still serves them in the cache or the narinfos were only
    /// [found](super::PublishedObject::was_found), else at once. Those that the cache does not have
    /// need not be looked at any more; unless an upstream signed them, they count as removed.
    async fn finish_removing(
        &self,
        lease: &Lease,
        cache: CacheId,
        hashes: &[StorePathHash],
        grace_ends_at: UnixSeconds,
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
    async fn finish_deleting_nars(
        &self,
        lease: &Lease,
        cache: CacheId,
        nars: &[(NarHash, EncodingTag)],
    ) -> Result<()>;
}
