//! Targets, and the right to write to one.

use async_trait::async_trait;

use crate::Result;
use crate::contract::{OutboxPosition, UnixSeconds};

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
    /// When the oldest change was made that it has not followed.
    pub unseen_since: Option<UnixSeconds>,
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

/// Targets and their leases.
#[async_trait]
pub trait TargetIndex: Send + Sync + std::fmt::Debug + 'static {
    /// The target of this name. A target that is not there is made, at the start of the outbox and
    /// not compared; one that is stays where it is.
    async fn open_target(&self, name: &str, location: &str) -> Result<PublishTarget>;
    /// All targets, by name. One statement.
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
}
