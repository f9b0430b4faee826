//! The index: what the cache knows, in SQL. Layer: port.
//!
//! ```text
//! Index ◄── SqliteIndex   one file, one process that writes
//! ```
//!
//! [`conformance`] states what the contract promises as code; every adapter runs it. What adapters share: how values are
//! packed into columns (`columns`) and what a commit changes, given what is there (`merge`).

mod columns;
pub mod conformance;
mod contract;
mod error;
mod examination;
mod key_filter;
mod merge;
mod sqlite;

pub use contract::*;
pub use error::{Error, Result};
pub use examination::Examination;
pub use sqlite::{Audit, SqliteIndex, SqliteOptions};
