//! The SQLite dialect: one file, one process.
//!
//! Invariants
//! - One connection writes, in transactions that take the write lock at once; the others only read.
//!   Commits are synced.
//! - A lock file keeps other processes out, so what this process calls unknown is not stored.
//! - Every wait is bounded, and what may work later is told from what is a defect in one place
//!   ([`session::failed`]).

mod backup;
mod database;
mod examine;
mod index;
mod keys;
#[cfg(test)]
mod large_tests;
mod open;
mod options;
mod session;
#[cfg(test)]
mod tests;

pub use self::backup::DatabaseCopy;
pub(crate) use self::database::Sqlite;
pub use self::index::SqliteIndex;
pub use self::options::SqliteOptions;
pub(crate) use self::session::Session;
