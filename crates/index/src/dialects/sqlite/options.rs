//! How to run a SQLite database.

use std::time::Duration;

/// How to run the database.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// Connections that read. Each has a thread and up to 2 MiB of cache.
    pub readers: usize,
    /// How long SQLite waits for a lock that another program (a backup) holds.
    pub busy_timeout: Duration,
    /// Longest wait for a connection, and longest run of a statement.
    pub wait_max: Duration,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self { readers: 4, busy_timeout: Duration::from_secs(10), wait_max: Duration::from_secs(30) }
    }
}
