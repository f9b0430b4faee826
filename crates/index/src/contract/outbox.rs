//! The outbox: which objects changed, in an order that followers can rely on.

use async_trait::async_trait;
use dormer_nix::StorePathHash;

use super::{CacheId, UnixSeconds};
use crate::Result;
use crate::changes::Changes;

/// A place in the outbox. Places ascend; what a follower has not seen lies behind the last one that
/// it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct OutboxPosition {
    /// Transaction that wrote the row, where several write at once: their numbers become visible
    /// out of order.
    pub transaction: i64,
    /// Number of the row.
    pub number: i64,
}

impl OutboxPosition {
    /// Before the first row.
    pub const START: Self = Self { transaction: 0, number: 0 };
}

/// A row of the outbox: which object changed, never how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// Its place, ascending.
    pub position: OutboxPosition,
    /// The cache.
    pub cache: CacheId,
    /// The object, or `None` when the cache itself changed.
    pub store_path_hash: Option<StorePathHash>,
    /// When.
    pub at: UnixSeconds,
}

/// The log of what changed, and notices to other replicas.
#[async_trait]
pub trait OutboxIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Rows after a place, in order. No row ever shows up before one that was returned; so a row
    /// may show up a moment after its commit: not before every older transaction has ended.
    async fn outbox_after(&self, position: OutboxPosition, limit: u32) -> Result<Vec<OutboxRow>>;
    /// Changes from now on that make a remembered hit stale, whichever replica made them. A notice
    /// may be lost, so nothing may be remembered for long without asking again.
    fn changes(&self) -> Changes;
}
