//! Caches that are published to a target, and the work over a whole one.

use async_trait::async_trait;
use dormer_nix::StorePathHash;

use super::{Lease, TargetId};
use crate::Result;
use crate::contract::{CacheId, OutboxPosition, UnixSeconds};

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

/// Rows of a cache that are forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forget {
    /// What was removed before this time.
    RemovedBefore(UnixSeconds),
    /// What has to be looked at, and at last the scan of the cache: the cache is set aside.
    Pending,
    /// Everything. The cache's own row goes last.
    All,
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

/// What is written down of published caches as a whole.
#[async_trait]
pub trait PublishedCacheIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Caches that are published to a target, or were.
    async fn published_caches(&self, target: TargetId) -> Result<Vec<PublishedCache>>;
    /// Writes one down.
    async fn write_published_cache(
        &self,
        lease: &Lease,
        cache: &PublishedCache,
        at: UnixSeconds,
    ) -> Result<()>;
    /// Forgets rows of a cache, at most `limit` of each kind. Returns whether all of them are gone.
    async fn forget_rows(&self, lease: &Lease, cache: CacheId, rows: Forget, limit: u32) -> Result<bool>;
    /// What a target holds of a cache.
    async fn publish_counts(&self, target: TargetId, cache: CacheId) -> Result<PublishCounts>;
    /// How much of each cache is in each target and how much waits, by target and name, at most
    /// `limit` rows; one statement, which reads an entry of an index for each object that is
    /// published.
    async fn publish_backlog(&self, limit: u32) -> Result<Vec<PublishBacklog>>;
}
