//! The state of targets: what is published, what waits and why. Reads the index only.

use dormer_index::{Index, PublishIndex, UnixSeconds};
use dormer_nix::StorePathHash;

use crate::Result;

/// A target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetStatus {
    /// Its name.
    pub name: String,
    /// Its location.
    pub location: String,
    /// The process that has the lease, or had it and ended without giving it back.
    pub holder: Option<String>,
    /// When the last run ended.
    pub ran_at: Option<UnixSeconds>,
    /// Why the last run failed, if it did, and when.
    pub error: Option<(String, UnixSeconds)>,
    /// Changes in the lab that no run has looked at; at most 10,000 are counted.
    pub unseen: u64,
    /// When the oldest of them was made.
    pub unseen_since: Option<UnixSeconds>,
    /// Its caches.
    pub caches: Vec<CacheStatus>,
}

/// A cache in a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheStatus {
    /// Its name.
    pub name: String,
    /// Paths that are there.
    pub published: u64,
    /// Bytes of their NARs' files, those in grace included.
    pub file_bytes: u64,
    /// Paths to look at.
    pub pending: u64,
    /// When the oldest of them was noted.
    pub pending_since: Option<UnixSeconds>,
    /// When something was last written.
    pub published_at: UnixSeconds,
    /// The oldest of those that wait, with the reason.
    pub waiting: Vec<WaitingPath>,
}

/// A path that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingPath {
    /// Its store hash.
    pub hash: StorePathHash,
    /// Since when.
    pub since: UnixSeconds,
    /// What it waits for.
    pub reason: Option<String>,
}

/// Most changes counted.
const UNSEEN_MAX: u32 = 10_000;

/// The state of all targets that were ever published to. Names at most `waiting_max` waiting paths
/// of each cache.
pub async fn status(
    index: &dyn Index,
    state: &dyn PublishIndex,
    waiting_max: u32,
) -> Result<Vec<TargetStatus>> {
    let mut statuses = Vec::new();
    for target in state.list_targets().await? {
        let mut caches = Vec::new();
        for cache in state.published_caches(target.id).await? {
            let counts = state.publish_counts(target.id, cache.cache).await?;
            let pending = state.pending_objects(target.id, cache.cache, None, waiting_max).await?;
            caches.push(CacheStatus {
                name: cache.name,
                published: counts.published,
                file_bytes: counts.file_bytes,
                pending: counts.pending,
                pending_since: counts.pending_since,
                published_at: cache.published_at,
                waiting: pending
                    .into_iter()
                    .map(|row| WaitingPath { hash: row.hash, since: row.since, reason: row.reason })
                    .collect(),
            });
        }
        let unseen = index.outbox_after(target.cursor, UNSEEN_MAX).await?;
        statuses.push(TargetStatus {
            name: target.name,
            location: target.location,
            holder: target.holder,
            ran_at: target.ran_at,
            error: target.error,
            unseen: unseen.len() as u64,
            unseen_since: unseen.first().map(|row| row.at),
            caches,
        });
    }
    Ok(statuses)
}
