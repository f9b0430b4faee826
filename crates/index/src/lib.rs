//! The index: what the cache knows, in SQL. Layer: port.
//!
//! ```text
//! Index ◄── SqliteIndex     SqliteIndex: one file, one process that writes
//!       ◄── PostgresIndex   PostgresIndex: a server, any number of replicas
//! ```
//!
//! The contract has one trait for each topic, and [`Index`] bundles them. `topics` holds each
//! statement once, with both dialects' text side by side where they differ; [`SqlIndex`] begins,
//! repeats and ends every call; `dialects` hold only what truly differs. `conformance` states what
//! the contract promises as code; every dialect runs it. It is there with the feature
//! `conformance`.

mod access;
mod changes;
mod collect;
mod columns;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod contract;
mod dialects;
mod error;
mod examination;
mod jobs;
mod key_filter;
mod known_keys;
mod migrations;
mod object_conflict;
mod open_index;
mod publish;
mod rows;
mod scrub;
mod sql;
mod sql_index;
mod statement;
#[cfg(test)]
mod synthetic;
mod topics;
mod wait_count;

pub use changes::{Change, Changes};
pub use collect::{
    ChunkMove, CollectIndex, CompactedPack, DoomedPack, ExaminedObject, ExaminedPage, LastCollection,
    MarkedNar, PackFate, PackRow, PackedChunk, PacksRemoved, Purge, PurgeId, RowlessPack, StampLimits,
};
pub use contract::*;
pub use dialects::postgres::{PostgresIndex, PostgresOptions};
pub use dialects::sqlite::{DatabaseCopy, SqliteIndex, SqliteOptions};
pub use error::{Error, Result};
pub use examination::Examination;
pub use jobs::{ExpiryDefaults, Job, JobBacklog, JobId, JobIndex, JobKind, JobLease, JobStep, JobsByNeed};
pub use migrations::{Migration, MigrationPlan};
pub use open_index::OpenIndex;
pub use publish::*;
pub use scrub::{LastScrub, ScrubIndex};
pub use sql_index::SqlIndex;
#[cfg(any(test, feature = "inventory"))]
pub use topics::inventory::Inventory;
pub use wait_count::WaitCount;
