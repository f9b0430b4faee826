//! Connections and the statements that run on them: every statement is counted, bounded in time and
//! its failure named.

use std::fmt::Write as _;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Connection as _, Database, SqlStr, query};
use sqlx_core::transaction::TransactionManager as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::contract::PoolUse;
use crate::rows::Row;
use crate::statement::{Argument, Column, Sql};
use crate::wait_count::WaitCount;
use crate::{Error, Result};

/// A statement with its parameters.
pub(crate) type Statement<'q> = sqlx::query::Query<'q, sqlx::Sqlite, SqliteArguments>;

type TransactionManager = <sqlx::Sqlite as Database>::TransactionManager;

/// What all sessions share.
#[derive(Debug)]
pub(crate) struct Shared {
    statements: AtomicU64,
    /// Statements that were carried out.
    answers: AtomicU64,
    /// Longest wait for a connection, and longest run of a statement.
    wait_max: Duration,
}

impl Shared {
    pub(super) fn new(wait_max: Duration) -> Self {
        Self { statements: AtomicU64::new(0), answers: AtomicU64::new(0), wait_max }
    }

    pub(crate) fn statement_count(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }

    pub(crate) fn answer_count(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Waits, but no longer than the bound.
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

/// Connections of one kind. sqlx's own pool pings a connection each time it comes back, which costs
/// as much as a look-up; a connection to a local file needs none.
#[derive(Debug)]
pub(super) struct Connections {
    idle: Mutex<Vec<SqliteConnection>>,
    turns: Arc<Semaphore>,
    count: u32,
    waiting: AtomicUsize,
}

impl Connections {
    pub(super) fn new(connections: Vec<SqliteConnection>) -> Self {
        let count = u32::try_from(connections.len()).expect("a handful");
        let turns = Arc::new(Semaphore::new(connections.len()));
        Self { turns, idle: Mutex::new(connections), count, waiting: AtomicUsize::new(0) }
    }

    /// How they are used now. All of them are open until they are closed.
    pub(super) fn pool_use(&self) -> PoolUse {
        let max = self.count as usize;
        let waiting = self.waiting.load(Ordering::Relaxed);
        PoolUse { open: max, idle: self.turns.available_permits(), max, waiting }
    }

    /// Closes all connections, waiting for those in use; later sessions fail.
    pub(super) async fn close(&self, shared: &Shared) -> Result<()> {
        let turns = async { self.turns.acquire_many(self.count).await.map_err(|_| sqlx::Error::PoolClosed) };
        let turns = shared.bounded("close the database", turns).await;
        self.turns.close();
        drop(turns);
        let connections = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        for connection in connections {
            shared.bounded("close the database", connection.close()).await?;
        }
        Ok(())
    }
}

/// A connection that is in use. It goes back when it is dropped.
#[derive(Debug)]
struct TakenConnection {
    /// `None` only while this is dropped.
    connection: Option<SqliteConnection>,
    home: Arc<Connections>,
    /// Given back after the connection.
    _turn: OwnedSemaphorePermit,
}

impl Drop for TakenConnection {
    fn drop(&mut self) {
        self.home.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(self.connection.take());
    }
}

impl Deref for TakenConnection {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        self.connection.as_ref().expect("taken only when dropped")
    }
}

impl DerefMut for TakenConnection {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.connection.as_mut().expect("taken only when dropped")
    }
}

/// A connection for one attempt, in or outside of a transaction.
#[derive(Debug)]
pub(crate) struct Session {
    connection: TakenConnection,
    shared: Arc<Shared>,
    /// What it is for; it ends the sentence "failed to …".
    pub(crate) attempt: &'static str,
    in_transaction: bool,
}

impl Session {
    /// Takes the next free connection; the call that waits longest gets it. `attempt` ends the
    /// sentence "failed to …".
    pub(super) async fn take(
        connections: &Arc<Connections>,
        shared: &Arc<Shared>,
        attempt: &'static str,
    ) -> Result<Self> {
        let waiting = WaitCount::new(&connections.waiting);
        let turn = Arc::clone(&connections.turns).acquire_owned();
        let turn = async { turn.await.map_err(|_| sqlx::Error::PoolClosed) };
        let turn = shared.bounded(attempt, turn).await?;
        drop(waiting);
        let connection = connections.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = Some(connection.expect("there is a connection for each turn"));
        let connection = TakenConnection { connection, home: Arc::clone(connections), _turn: turn };
        Ok(Self { connection, shared: Arc::clone(shared), attempt, in_transaction: false })
    }

    /// Begins a transaction that may write: it takes the write lock at once, so it never fails
    /// half-way for it.
    pub(super) async fn begin(mut self) -> Result<Self> {
        self.forget_ended_transaction().await?;
        // Also when this fails or is given up: a rollback without a transaction does nothing.
        self.in_transaction = true;
        let begin =
            TransactionManager::begin(&mut self.connection, Some(SqlStr::from_static("BEGIN IMMEDIATE")));
        self.shared.statement(self.attempt, begin).await?;
        Ok(self)
    }

    /// SQLite ends a transaction by itself when the disk is full or fails. The rollback fails then,
    /// and sqlx would count that transaction as open for ever, so that no other could begin. The
    /// rollback of one that begins here sets the count right.
    async fn forget_ended_transaction(&mut self) -> Result<()> {
        if TransactionManager::get_transaction_depth(&self.connection) == 0 {
            return Ok(());
        }
        // After a rollback that a dropped session has started.
        self.execute(query("SELECT 1")).await?;
        if TransactionManager::get_transaction_depth(&self.connection) > 0 {
            // This fails in a transaction that did not end, which the rollback ends then.
            let begun = self.execute(query("BEGIN")).await;
            let roll_back = TransactionManager::rollback(&mut self.connection);
            self.shared.statement(self.attempt, roll_back).await?;
            tracing::debug!(was_open = begun.is_err(), "a transaction that SQLite had ended is forgotten");
        }
        Ok(())
    }

    /// Ends the session and makes durable what it wrote.
    pub(crate) async fn commit(mut self) -> Result<()> {
        if self.in_transaction {
            let commit = TransactionManager::commit(&mut self.connection);
            self.shared.statement(self.attempt, commit).await?;
            self.in_transaction = false;
        }
        Ok(())
    }

    /// Ends the session and undoes what it wrote.
    pub(crate) async fn roll_back(mut self) {
        if self.in_transaction {
            let roll_back = TransactionManager::rollback(&mut self.connection);
            // If it fails, dropping the session tries again.
            self.in_transaction = self.shared.statement(self.attempt, roll_back).await.is_err();
        }
    }

    /// Runs a statement; returns how many rows it changed.
    pub(super) async fn execute(&mut self, statement: Statement<'_>) -> Result<u64> {
        let done = self.shared.statement(self.attempt, statement.execute(&mut *self.connection)).await?;
        Ok(done.rows_affected())
    }

    /// Runs a statement that gives rows.
    pub(super) async fn all(&mut self, statement: Statement<'_>) -> Result<Vec<SqliteRow>> {
        self.shared.statement(self.attempt, statement.fetch_all(&mut *self.connection)).await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.in_transaction {
            TransactionManager::start_rollback(&mut self.connection);
        }
    }
}

impl Session {
    pub(crate) async fn run(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> Result<u64> {
        if sql.sqlite == Sql::NOTHING {
            return Ok(0);
        }
        self.execute(bound(sql, arguments)).await
    }

    pub(crate) async fn rows(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> Result<Vec<Row>> {
        if sql.sqlite == Sql::NOTHING {
            return Ok(Vec::new());
        }
        Ok(self.all(bound(sql, arguments)).await?.into_iter().map(Row::Sqlite).collect())
    }
}

fn bound<'a>(sql: Sql, arguments: &[Argument<'a>]) -> Statement<'a> {
    let mut statement = query(sql.sqlite);
    for argument in arguments {
        statement = match *argument {
            Argument::Flag(flag) => statement.bind(flag),
            Argument::OptionalFlag(flag) => statement.bind(flag),
            Argument::Number(number) => statement.bind(number),
            Argument::OptionalNumber(number) => statement.bind(number),
            Argument::Bytes(bytes) => statement.bind(bytes),
            Argument::OptionalBytes(bytes) => statement.bind(bytes),
            Argument::Text(text) => statement.bind(text),
            Argument::OptionalText(text) => statement.bind(text),
            Argument::List(keys) => statement.bind(hex_array(keys)),
            Argument::Numbers(numbers) => {
                statement.bind(serde_json::to_string(numbers).expect("numbers are JSON"))
            }
            Argument::Table(columns) => statement.bind(row_array(columns)),
        };
    }
    statement
}

/// `["hex", …]`
fn hex_array(keys: &[&[u8]]) -> String {
    let mut json = String::from("[");
    for (n, key) in keys.iter().enumerate() {
        json.push_str(if n == 0 { "\"" } else { "\",\"" });
        json.push_str(&hex::encode(key));
    }
    json.push_str(if json.len() == 1 { "]" } else { "\"]" });
    json
}

/// `[["hex", number, …], …]`
fn row_array(columns: &[Column<'_>]) -> String {
    let count = match columns.first() {
        Some(Column::Numbers(numbers)) => numbers.len(),
        Some(Column::Bytes(bytes)) => bytes.len(),
        None => 0,
    };
    let mut json = String::with_capacity(2 + count * columns.len() * 35);
    json.push('[');
    for row in 0..count {
        json.push_str(if row == 0 { "[" } else { ",[" });
        for (n, column) in columns.iter().enumerate() {
            json.push_str(if n == 0 { "" } else { "," });
            match column {
                Column::Numbers(numbers) => write!(json, "{}", numbers[row]),
                Column::Bytes(bytes) => write!(json, "\"{}\"", hex::encode(bytes[row])),
            }
            .expect("a string takes any text");
        }
        json.push(']');
    }
    json.push(']');
    json
}

/// Tells what may work later from what is a defect.
pub(super) fn failed(attempt: &'static str, source: sqlx::Error) -> Error {
    /// Result codes of SQLite: busy, locked, out of memory, read-only, I/O error, full, cannot
    /// open.
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
