//! What truly differs between the databases: opening, sessions, locks, notices, limits and
//! examination.
//!
//! [`Database`] and [`Session`] choose between the two. They are no type parameters: then every
//! topic would be compiled once for each database (`docs/adr/0012-build-time.md`).

pub(crate) mod postgres;
pub(crate) mod sqlite;

use std::time::Duration;

use self::postgres::Postgres;
use self::sqlite::Sqlite;
use crate::access::{Access, Effect};
use crate::changes::{Change, Changes};
use crate::contract::PoolUse;
use crate::known_keys::KnownKeys;
use crate::rows::Row;
use crate::statement::{Argument, Sql};
use crate::{Error, Result};

/// A database and the connections to it.
#[derive(Debug)]
pub(crate) enum Database {
    Sqlite(Sqlite),
    Postgres(Postgres),
}

impl Database {
    /// Takes a connection, and begins what `access` asks for. `attempt` ends the sentence "failed
    /// to …".
    pub(crate) async fn begin(&self, attempt: &'static str, access: Access<'_>) -> Result<Session> {
        Ok(match self {
            Self::Sqlite(database) => Session::Sqlite(database.begin(attempt, access).await?),
            Self::Postgres(database) => Session::Postgres(database.begin(attempt, access).await?),
        })
    }

    /// Says what a failed try may have left, and notes what the failure says about other
    /// connections.
    pub(crate) fn effect(&self, error: &Error) -> Effect {
        match self {
            // SQLite itself waits for a lock that another program holds, and nothing else is in the
            // way.
            Self::Sqlite(_) => Effect::Refused,
            Self::Postgres(database) => database.effect(error),
        }
    }

    /// How long a call may go on trying.
    pub(crate) fn patience(&self) -> Duration {
        match self {
            Self::Sqlite(_) => Duration::ZERO,
            Self::Postgres(database) => database.patience,
        }
    }

    /// Reads all keys again, after many rows were removed: filters never forget a key.
    pub(crate) async fn reload(&self, known: &KnownKeys) -> Result<()> {
        match (self, known.filters()) {
            (Self::Sqlite(database), Some(filters)) => database.load_keys(&filters).await,
            // Nothing is remembered between calls.
            _ => Ok(()),
        }
    }

    /// Closes all connections, waiting for those in use.
    pub(crate) async fn close(&self) -> Result<()> {
        match self {
            Self::Sqlite(database) => database.close().await,
            Self::Postgres(database) => {
                database.close().await;
                Ok(())
            }
        }
    }

    /// Changes from now on that other processes make.
    pub(crate) fn changes(&self) -> Changes {
        match self {
            // No other process writes, and a caller that writes through this one knows what it did.
            Self::Sqlite(_) => Changes::none(),
            Self::Postgres(database) => database.changes.subscribe(),
        }
    }

    /// Statements sent since the start.
    pub(crate) fn statement_count(&self) -> u64 {
        match self {
            Self::Sqlite(database) => database.shared.statement_count(),
            Self::Postgres(database) => database.shared.statement_count(),
        }
    }

    /// Statements that the database carried out.
    pub(crate) fn answer_count(&self) -> u64 {
        match self {
            Self::Sqlite(database) => database.shared.answer_count(),
            Self::Postgres(database) => database.shared.answer_count(),
        }
    }

    /// How the connections are used now.
    pub(crate) fn pool_use(&self) -> PoolUse {
        match self {
            Self::Sqlite(database) => database.pool_use(),
            Self::Postgres(database) => database.pool_use(),
        }
    }
}

/// A connection in use, in or outside of a transaction. One that is dropped in the middle of a
/// transaction rolls back.
#[derive(Debug)]
pub(crate) enum Session {
    Sqlite(sqlite::Session),
    Postgres(postgres::Session),
}

impl Session {
    /// What the session is for; it ends the sentence "failed to …".
    pub(crate) fn attempt(&self) -> &'static str {
        match self {
            Self::Sqlite(session) => session.attempt,
            Self::Postgres(session) => session.attempt,
        }
    }

    /// Runs a statement and returns how many rows it changed.
    pub(crate) async fn run(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> Result<u64> {
        match self {
            Self::Sqlite(session) => session.run(sql, arguments).await,
            Self::Postgres(session) => session.run(sql, arguments).await,
        }
    }

    /// Runs a statement that gives rows.
    pub(crate) async fn rows(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite(session) => session.rows(sql, arguments).await,
            Self::Postgres(session) => session.rows(sql, arguments).await,
        }
    }

    /// Tells other replicas of a change when the transaction commits. SQLite has no other replicas.
    pub(crate) async fn announce(&mut self, change: Change) -> Result<()> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(session) => session.announce(change).await,
        }
    }

    /// Ends the session and makes durable what it wrote.
    pub(crate) async fn commit(self) -> Result<()> {
        match self {
            Self::Sqlite(session) => session.commit().await,
            Self::Postgres(session) => session.commit().await,
        }
    }

    /// Ends the session and undoes what it wrote.
    pub(crate) async fn roll_back(self) {
        match self {
            Self::Sqlite(session) => session.roll_back().await,
            Self::Postgres(session) => session.roll_back().await,
        }
    }
}
