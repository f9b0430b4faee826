//! How to use a PostgreSQL server.

use std::time::Duration;

/// How to use the server.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Most connections of this process; one more listens for changes.
    pub connections_max: u32,
    /// Longest wait for a free connection, and for a server that does not accept any.
    pub acquire_timeout: Duration,
    /// Longest run of a statement, and longest pause within a transaction.
    pub statement_timeout: Duration,
    /// Longest wait for what another transaction holds.
    pub lock_timeout: Duration,
    /// Whether a pooler gives every transaction another connection (PgBouncer's
    /// `pool_mode = transaction`). Then no process can listen for changes, nothing is prepared, and
    /// every look-up is a transaction.
    pub transaction_pooler: bool,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            connections_max: 16,
            acquire_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(10),
            transaction_pooler: false,
        }
    }
}
