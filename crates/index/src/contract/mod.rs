//! The index contract: what every SQL back end must do, and nothing more.
//!
//! Layer: port. The engine is the only writer; adapters only translate to SQL. Invariants 1 to 6 of
//! docs/STORAGE.md rest on what the methods here promise about atomicity, so each method states it.
//!
//! Each topic has a file with its trait and what the trait speaks of; `topics/` has the statements.
//!
//! Conventions
//! - Every method is one transaction: all of its effect is durable when it returns `Ok`, none of it
//!   is visible after `Err` (an error after the commit was sent may leave the whole effect; every
//!   method may therefore be repeated).
//! - Time is an argument (`UnixSeconds`), so that tests own the clock.
//! - Look-ups of something that is not there are `Ok(None)`, never an error.

mod caches;
mod chunks;
mod counters;
mod documents;
mod journal;
mod nars;
mod objects;
mod outbox;
mod retention;
mod sessions;
mod settings;
mod stored_nars;

use std::time::Duration;

use async_trait::async_trait;

use crate::Result;

pub use caches::*;
pub use chunks::*;
pub use counters::*;
pub use documents::*;
pub use journal::*;
pub use nars::*;
pub use objects::*;
pub use outbox::*;
pub use retention::*;
pub use sessions::*;
pub use settings::*;
pub use stored_nars::*;

/// Seconds since 1970-01-01 UTC.
pub type UnixSeconds = i64;

macro_rules! row_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub i64);
    };
}
row_id!(/// Number of a cache's row.
    CacheId);
row_id!(/// Number of a NAR's row.
    NarId);
row_id!(/// Number of a pack's row; never given twice.
    PackNumber);

/// Longest that a ping waits.
pub const PING_MAX: Duration = Duration::from_secs(3);

/// Calls that the database failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallCounts {
    /// Tries that failed and were followed by another.
    pub repeats: u64,
    /// Calls that failed after all their tries.
    pub failures: u64,
}

/// How a database's connections are used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolUse {
    /// Open ones.
    pub open: usize,
    /// Those of them that nobody uses.
    pub idle: usize,
    /// Most that may be open.
    pub max: usize,
    /// Calls that wait for one.
    pub waiting: usize,
}

/// The index: all topics, and the database as a whole. A `dyn Index` has the methods of every
/// topic.
#[async_trait]
pub trait Index:
    SettingIndex
    + CacheIndex
    + ChunkIndex
    + NarIndex
    + ObjectIndex
    + RetentionIndex
    + DocumentIndex
    + OutboxIndex
    + CounterIndex
    + SessionIndex
{
    /// Answers when the database is reachable, within [`PING_MAX`]; it writes nothing. A database
    /// that answers other calls meanwhile is reachable, though it is too busy for this question.
    async fn ping(&self) -> Result<()>;
    /// Answers when the database is reachable and writable.
    async fn check_ready(&self) -> Result<()>;
    /// Waits for running calls, then closes the database. Later calls fail.
    async fn close(&self) -> Result<()>;
    /// Statements sent since the start, transaction control included (for metrics and benchmarks).
    fn statement_count(&self) -> u64;
    /// Calls that were repeated and given up since the start (for metrics).
    fn call_counts(&self) -> CallCounts;
    /// How its connections are used now (for metrics).
    fn pool_use(&self) -> PoolUse;
}
