//! What is stored and what was done, in numbers that writes keep up to date.

use async_trait::async_trait;

use super::{CacheId, UnixSeconds};
use crate::Result;

/// Paths, and the bytes of their NARs, uncompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathCounts {
    /// Paths.
    pub paths: u64,
    /// Bytes of their NARs. A NAR counts once for each path.
    pub bytes: u64,
}

/// What the whole installation holds. The differences from one line to the next are what is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoredCounts {
    /// The paths of all caches, with those of deleted caches until a job has removed them.
    pub paths: PathCounts,
    /// Distinct NARs, with those that only a grace, an upload or nothing names.
    pub nars: u64,
    /// Bytes of these NARs, uncompressed.
    pub nar_bytes: u64,
    /// Those of them that lie in chunks with holes.
    pub nar_holed_bytes: u64,
    /// Packs, condemned ones too.
    pub packs: u64,
    /// Bytes of the packs in the store.
    pub pack_bytes: u64,
    /// Bytes of the chunks in the packs, uncompressed; those of large listings too.
    pub pack_raw_bytes: u64,
    /// Those of them that lie in chunks with holes.
    pub pack_holed_bytes: u64,
    /// Whether everything is counted. After an upgrade from a version that did not count, a job has
    /// to count what was there.
    pub is_complete: bool,
}

/// A cache at a glance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheGlance {
    /// The cache.
    pub cache: CacheId,
    /// What it holds.
    pub counts: PathCounts,
    /// When its newest path was pushed first.
    pub newest_at: Option<UnixSeconds>,
    /// Whether a target publishes it.
    pub is_published: bool,
    /// As in [`StoredCounts::is_complete`].
    pub is_complete: bool,
}

/// A day of the calendar in UTC, as days since 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(pub i64);

impl Day {
    /// The day of a time.
    pub fn of(at: UnixSeconds) -> Self {
        Self(at.div_euclid(86_400))
    }

    /// The day so many days before.
    #[must_use]
    pub fn before(self, days: i64) -> Self {
        Self(self.0.saturating_sub(days))
    }

    /// When it begins.
    pub fn begins_at(self) -> UnixSeconds {
        self.0.saturating_mul(86_400)
    }
}

/// Days that the history goes back.
pub const HISTORY_DAYS: i64 = 400;

/// What a cache holds is written down at least every so many days, also if it rests.
pub const HISTORY_REPEATED_DAYS: i64 = 30;

/// A day of a cache, or of the whole installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryDay {
    /// The day.
    pub day: Day,
    /// What was there in the end; `None` if that is what was there the day before, or if nothing
    /// wrote it down.
    pub counts: Option<PathCounts>,
    /// Bytes of the packs. Of the whole installation alone: packs belong to all caches.
    pub stored_bytes: Option<u64>,
    /// Paths that pushes committed.
    pub pushes: u64,
    /// Downloads of NARs that began at their first byte.
    pub pulls: u64,
}

/// Pushes and pulls of a cache that no history has yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheActivity {
    /// The cache.
    pub cache: CacheId,
    /// As in [`HistoryDay::pushes`].
    pub pushes: u64,
    /// As in [`HistoryDay::pulls`].
    pub pulls: u64,
}

/// What is stored, in numbers that writes keep up to date: nothing is counted when somebody asks.
#[async_trait]
pub trait CounterIndex: Send + Sync + std::fmt::Debug + 'static {
    /// What a cache holds. One statement.
    async fn path_counts(&self, cache: CacheId) -> Result<PathCounts>;
    /// Each of these caches at a glance, in any order. One statement, which looks one path up for
    /// each cache.
    async fn glance_at_caches(&self, caches: &[CacheId]) -> Result<Vec<CacheGlance>>;
    /// What everything holds. One statement.
    async fn stored_counts(&self) -> Result<StoredCounts>;
    /// The days of a cache after one, or those of the whole installation, the oldest first: at most
    /// [`HISTORY_DAYS`]. Days without a change are left out. One statement.
    async fn history(&self, cache: Option<CacheId>, after: Day) -> Result<Vec<HistoryDay>>;
}
