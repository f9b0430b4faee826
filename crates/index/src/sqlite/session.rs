//! Connections and the statements that run on them: every statement is counted, bounded in time and its failure named.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Connection as _, Sqlite, Transaction};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::contract::PoolUse;
use crate::waiting::Waiting;
use crate::{Error, Result};

/// A statement with its parameters.
pub(super) type Statement<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

/// What all sessions share.
#[derive(Debug)]
pub(super) struct Meter {
    pub(super) statements: AtomicU64,
    /// Statements that were carried out.
    pub(super) answers: AtomicU64,
    /// Longest wait for a connection, and longest run of a statement.
    pub(super) wait_max: Duration,
}

impl Meter {
    /// Waits, but not for ever.
    async fn bounded<T>(
        &self,
        attempt: &'static str,
        work: impl Future<Output = sqlx::Result<T>>,
    ) -> Result<T> {
        let done = tokio::time::timeout(self.wait_max, work).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        done.map_err(|source| failed(attempt, source))
    }

    async fn statement<T>(
        &self,
        attempt: &'static str,
        work: impl Future<Output = sqlx::Result<T>>,
    ) -> Result<T> {
        self.statements.fetch_add(1, Ordering::Relaxed);
        let done = self.bounded(attempt, work).await;
        if done.is_ok() {
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
        done
    }
}

/// Connections of one kind. sqlx's own pool pings a connection each time it comes back, which costs as much as a look-up;
/// a connection to a local file needs none.
#[derive(Debug)]
pub(super) struct Connections {
    idle: Mutex<Vec<SqliteConnection>>,
    turns: Semaphore,
    count: u32,
    waiting: AtomicUsize,
}

impl Connections {
    pub(super) fn new(connections: Vec<SqliteConnection>) -> Self {
        let count = u32::try_from(connections.len()).expect("a handful");
        let turns = Semaphore::new(connections.len());
        Self { turns, idle: Mutex::new(connections), count, waiting: AtomicUsize::new(0) }
    }

    /// The next free connection; whoever waits longest gets it. `attempt` ends "failed to …".
    pub(super) async fn session<'a>(
        &'a self,
        meter: &'a Meter,
        attempt: &'static str,
    ) -> Result<Session<'a, Loan<'a>>> {
        let waiting = Waiting::new(&self.waiting);
        let turn = async { self.turns.acquire().await.map_err(|_| sqlx::Error::PoolClosed) };
        let turn = meter.bounded(attempt, turn).await?;
        drop(waiting);
        let connection = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = connection.expect("there is a connection for each turn");
        let loan = Loan { connection: Some(connection), home: self, _turn: turn };
        Ok(Session { connection: loan, meter, attempt })
    }

    /// How they are used now. All of them are open until they are closed.
    pub(super) fn pool_use(&self) -> PoolUse {
        let max = self.count as usize;
        let waiting = self.waiting.load(Ordering::Relaxed);
        PoolUse { open: max, idle: self.turns.available_permits(), max, waiting }
    }

    /// Closes all connections, waiting for those in use; later sessions fail.
    pub(super) async fn close(&self, meter: &Meter) -> Result<()> {
        let turns = async { self.turns.acquire_many(self.count).await.map_err(|_| sqlx::Error::PoolClosed) };
        let turns = meter.bounded("close the database", turns).await;
        self.turns.close();
        drop(turns);
        let connections = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        for connection in connections {
            meter.bounded("close the database", connection.close()).await?;
        }
        Ok(())
    }
}

/// A connection on loan.
#[derive(Debug)]
pub(super) struct Loan<'a> {
    /// `None` only while it is dropped.
    connection: Option<SqliteConnection>,
    home: &'a Connections,
    _turn: SemaphorePermit<'a>,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        // The turn is given back after this.
        self.home.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(self.connection.take());
    }
}

impl Deref for Loan<'_> {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        self.connection.as_ref().expect("taken only when dropped")
    }
}

impl DerefMut for Loan<'_> {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.connection.as_mut().expect("taken only when dropped")
    }
}

/// A connection, or a transaction on one, for one attempt.
#[derive(Debug)]
pub(super) struct Session<'a, C> {
    connection: C,
    meter: &'a Meter,
    attempt: &'static str,
}

/// A transaction. Dropping it rolls back.
pub(super) type Write<'a> = Session<'a, Transaction<'a, Sqlite>>;

impl<C: DerefMut<Target = SqliteConnection>> Session<'_, C> {
    /// Runs a statement; returns how many rows it changed.
    pub(super) async fn execute(&mut self, statement: Statement<'_>) -> Result<u64> {
        let done = self.meter.statement(self.attempt, statement.execute(&mut *self.connection)).await?;
        Ok(done.rows_affected())
    }

    /// Runs a statement that gives at most one row. All rows are read, so that a statement which also writes runs to its end.
    pub(super) async fn optional(&mut self, statement: Statement<'_>) -> Result<Option<SqliteRow>> {
        Ok(self.all(statement).await?.pop())
    }

    /// Runs a statement that gives exactly one row.
    pub(super) async fn one(&mut self, statement: Statement<'_>) -> Result<SqliteRow> {
        let row = self.optional(statement).await?;
        row.ok_or_else(|| failed(self.attempt, sqlx::Error::RowNotFound))
    }

    /// Runs a statement that gives rows.
    pub(super) async fn all(&mut self, statement: Statement<'_>) -> Result<Vec<SqliteRow>> {
        self.meter.statement(self.attempt, statement.fetch_all(&mut *self.connection)).await
    }

    /// Begins a transaction that may write: it takes the write lock at once, so it never fails half-way for it.
    pub(super) async fn begin(&mut self) -> Result<Write<'_>> {
        let begin = self.connection.begin_with("BEGIN IMMEDIATE");
        let connection = self.meter.statement(self.attempt, begin).await?;
        Ok(Session { connection, meter: self.meter, attempt: self.attempt })
    }
}

impl Write<'_> {
    /// Makes it durable.
    pub(super) async fn commit(self) -> Result<()> {
        self.meter.statement(self.attempt, self.connection.commit()).await
    }
}

/// Tells what may work later from what is a defect.
pub(super) fn failed(attempt: &'static str, source: sqlx::Error) -> Error {
    /// Result codes of SQLite: busy, locked, out of memory, read-only, I/O error, full, cannot open.
    const UNAVAILABLE: [i32; 7] = [5, 6, 7, 8, 10, 13, 14];
    let unavailable = match &source {
        sqlx::Error::Database(error) => {
            let code = error.code().and_then(|code| code.parse::<i32>().ok());
            // The low byte is the primary code; the rest says more.
            code.is_some_and(|code| UNAVAILABLE.contains(&(code & 0xff)))
        }
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    };
    if unavailable { Error::Unavailable { attempt, source } } else { Error::Database { attempt, source } }
}
