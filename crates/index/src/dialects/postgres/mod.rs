//! The PostgreSQL dialect: a server, any number of replicas.
//!
//! Invariants
//! - What two transactions have to agree on is locked before it is looked at; rows are locked in
//!   one order everywhere.
//! - A call that another transaction was in the way of is repeated, with growing random pauses; so
//!   is one whose connection was lost, unless it may have been carried out and a second time would
//!   not be the same.
//! - Every wait is bounded: for a connection, a lock, a statement, an idle transaction, and for a
//!   server that went silent.
//! - Nothing is remembered between calls: other replicas write too.

mod database;
mod examine;
mod index;
#[cfg(test)]
mod large_tests;
mod notices;
mod open;
mod options;
#[cfg(test)]
mod pooler_tests;
mod session;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;

pub(crate) use self::database::Postgres;
pub use self::index::PostgresIndex;
pub use self::options::PostgresOptions;
pub(crate) use self::session::Session;
