//! The index: what the cache knows, in SQL. Layer: port.
//!
//! ```text
//! Index ◄── SqliteIndex     one file, one process that writes
//!       ◄── PostgresIndex   a server, any number of replicas
//! ```
//!
//! [`conformance`] states what the contract promises as code; every adapter runs it. What adapters share: how values are
//! packed into columns (`columns`) and what a commit changes, given what is there (`merge`).

mod audit;
mod changes;
mod columns;
pub mod conformance;
mod contract;
mod error;
mod examination;
mod key_filter;
mod merge;
mod migrations;
mod postgres;
mod publish;
mod rows;
mod sqlite;
#[cfg(test)]
mod synthetic;
mod waiting;

pub use audit::Audit;
pub use changes::{Change, Changes};
pub use contract::*;
pub use error::{Error, Result};
pub use examination::Examination;
pub use migrations::{Migration, MigrationPlan};
pub use postgres::{PostgresIndex, PostgresOptions};
pub use publish::{
    Lease, PendingObject, PublishBacklog, PublishCounts, PublishDone, PublishIndex, PublishIntent,
    PublishState, PublishTarget, PublishedCache, PublishedNar, PublishedObject, TargetId,
};
pub use sqlite::{SqliteIndex, SqliteOptions};
