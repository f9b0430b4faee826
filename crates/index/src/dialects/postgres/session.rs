//! Connections and the statements that run on them: every statement is counted, bounded in time and
//! its failure named.
//!
//! Invariants
//! - A connection whose transaction did not end, or whose answer was not waited for, is closed and
//!   never used again.
//! - What may work later is told from what is a defect in one place ([`failed`]), and what may be
//!   repeated in another ([`effect`]).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sqlx::pool::{PoolConnection, PoolConnectionMetadata};
use sqlx::postgres::{PgArguments, PgPool, PgRow};
use sqlx::{AssertSqlSafe, query};

use super::notices;
use crate::access::{Access, Effect, Lock};
use crate::changes::Change;
use crate::rows::Row;
use crate::statement::{Argument, Column, Sql};
use crate::wait_count::WaitCount;
use crate::{Error, Result};

/// A statement with its parameters.
pub(crate) type Statement<'q> = sqlx::query::Query<'q, sqlx::Postgres, PgArguments>;

/// Longer idle connections are asked for a sign of life: firewalls and poolers forget them.
const IDLE_TRUSTED: Duration = Duration::from_secs(30);

/// What all sessions share.
#[derive(Debug)]
pub(crate) struct Shared {
    statements: AtomicU64,
    /// Statements that the server carried out.
    answers: AtomicU64,
    /// Calls that wait for a connection.
    waiting: AtomicUsize,
    /// Longest wait for an answer. The server ends a statement before that; this is for a server
    /// that went silent.
    answer_max: Duration,
    begun: Instant,
    /// When a connection was last found lost, in milliseconds since `begun`.
    lost_at_ms: AtomicU64,
    /// When a connection to a standby was last made, in milliseconds since `begun`, plus one. 0:
    /// never.
    standby_at_ms: AtomicU64,
    /// When a connection to a primary was last made, counted in the same way.
    primary_at_ms: AtomicU64,
    /// Since when all new connections led to standbys, counted in the same way. 0: the last one did
    /// not.
    standbys_since_ms: AtomicU64,
    /// Whether a pooler between us and the server gives every transaction another connection.
    pooled: bool,
    /// What a pooled transaction sets for itself.
    transaction_settings: String,
}

/// How long a process that knew a primary tries to reach one before it uses a standby.
const PRIMARY_SOUGHT: Duration = Duration::from_secs(3);

impl Shared {
    pub(super) fn new(answer_max: Duration, pooled: bool, transaction_settings: String) -> Self {
        Self {
            statements: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            answer_max,
            begun: Instant::now(),
            lost_at_ms: AtomicU64::new(0),
            standby_at_ms: AtomicU64::new(0),
            primary_at_ms: AtomicU64::new(0),
            standbys_since_ms: AtomicU64::new(0),
            pooled,
            transaction_settings,
        }
    }

    pub(crate) fn statement_count(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }

    pub(crate) fn answer_count(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Notes that a connection was lost: the others may be too.
    pub(super) fn note_loss(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.lost_at_ms.fetch_max(now, Ordering::Relaxed);
    }

    /// Notes that a new connection leads to a primary.
    pub(super) fn note_primary(&self) {
        self.primary_at_ms.store(self.now_ms(), Ordering::Relaxed);
        self.standbys_since_ms.store(0, Ordering::Relaxed);
    }

    /// Notes that a new connection leads to a standby. Returns whether it may be used: a process
    /// that knew a primary tries to reach one for a while, because a standby that lags says "not
    /// here" of what was just pushed.
    pub(super) fn accepts_standby(&self) -> bool {
        let now = self.now_ms();
        self.standby_at_ms.fetch_max(now, Ordering::Relaxed);
        if self.primary_at_ms.load(Ordering::Relaxed) == 0 {
            return true;
        }
        let since = self.standbys_since_ms.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        since.is_err_and(|since| Duration::from_millis(now.saturating_sub(since)) >= PRIMARY_SOUGHT)
    }

    /// Whether a connection was made before one to a primary was.
    pub(super) fn is_older_than_primary(&self, connection: &PoolConnectionMetadata) -> bool {
        let primary_at = Duration::from_millis(self.primary_at_ms.load(Ordering::Relaxed));
        self.begun.elapsed().saturating_sub(connection.age) <= primary_at
    }

    /// Milliseconds since `begun`, plus one.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Whether a connection may lead to a standby: one that was made with it or later did.
    pub(super) fn may_be_standby(&self, connection: &PoolConnectionMetadata) -> bool {
        let standby_at = Duration::from_millis(self.standby_at_ms.load(Ordering::Relaxed));
        let made = self.begun.elapsed().saturating_sub(connection.age);
        !standby_at.is_zero() && made <= standby_at
    }

    /// Whether an idle connection has to show that it still works before it is used. Asking each
    /// one every time would double the latency of a look-up.
    pub(super) fn doubts(&self, connection: &PoolConnectionMetadata) -> bool {
        let lost = Duration::from_millis(self.lost_at_ms.load(Ordering::Relaxed));
        let made = self.begun.elapsed().saturating_sub(connection.age);
        made <= lost || connection.idle_for > IDLE_TRUSTED
    }

    async fn statement<T>(
        &self,
        attempt: &'static str,
        work: impl Future<Output = sqlx::Result<T>>,
    ) -> Result<T> {
        self.statements.fetch_add(1, Ordering::Relaxed);
        let done = tokio::time::timeout(self.answer_max, work).await;
        let silent = || sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, SILENT));
        if matches!(done, Ok(Ok(_))) {
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
        done.unwrap_or_else(|_| Err(silent())).map_err(|source| failed(attempt, source))
    }
}

pub(super) const SILENT: &str = "the server does not answer";

/// A connection for one attempt, in or outside of a transaction.
#[derive(Debug)]
pub(crate) struct Session {
    connection: PoolConnection<sqlx::Postgres>,
    shared: Arc<Shared>,
    /// What it is for; it ends the sentence "failed to …".
    pub(crate) attempt: &'static str,
    in_transaction: bool,
    /// An answer was not waited for.
    broken: bool,
}

impl Session {
    /// Takes a connection, and begins a transaction unless it is for look-ups without a pooler.
    pub(super) async fn begin(
        pool: &PgPool,
        shared: &Arc<Shared>,
        attempt: &'static str,
        access: Access<'_>,
    ) -> Result<Self> {
        let waiting = WaitCount::new(&shared.waiting);
        let connection = pool.acquire().await.map_err(|source| failed(attempt, source))?;
        drop(waiting);
        let shared = Arc::clone(shared);
        let mut session = Self { connection, shared, attempt, in_transaction: false, broken: false };
        match access {
            Access::Read if session.shared.pooled => session.begin_transaction("READ ONLY", &[]).await?,
            Access::Read => {}
            Access::Write(locks) => session.begin_transaction("READ WRITE", locks).await?,
        }
        Ok(session)
    }

    /// One round trip for all of it. "Read committed" is said, not assumed: a snapshot for the
    /// whole transaction would be taken before the locks are granted, and show what was there
    /// before.
    async fn begin_transaction(&mut self, access: &str, locks: &[Lock]) -> Result<()> {
        let mut sql = format!("BEGIN ISOLATION LEVEL READ COMMITTED {access}");
        if self.shared.pooled {
            sql.push_str(&self.shared.transaction_settings);
        }
        for (n, lock) in locks.iter().enumerate() {
            sql.push_str(if n == 0 { ";SELECT " } else { "," });
            sql.push_str(&lock_sql(*lock));
        }
        if !locks.is_empty() {
            // Counted as two: so does the server.
            self.shared.statements.fetch_add(1, Ordering::Relaxed);
        }
        self.in_transaction = true;
        self.control(sql).await
    }

    /// Ends the session and makes durable what it wrote.
    pub(crate) async fn commit(mut self) -> Result<()> {
        if !self.in_transaction {
            return Ok(());
        }
        let done = self.control("COMMIT".to_owned()).await;
        self.in_transaction = done.is_err();
        done.map_err(answer_lost)
    }

    /// Ends the session and undoes what it wrote. A connection that did not answer is closed, which
    /// does the same.
    pub(crate) async fn roll_back(mut self) {
        if self.in_transaction && !self.broken {
            self.in_transaction = self.control("ROLLBACK".to_owned()).await.is_err();
        }
    }

    async fn control(&mut self, sql: String) -> Result<()> {
        self.broken = true;
        let control = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *self.connection);
        let done = self.shared.statement(self.attempt, control).await;
        self.broken = done.is_err();
        done.map(drop)
    }

    /// Runs a statement; returns how many rows it changed.
    pub(super) async fn execute(&mut self, statement: Statement<'_>) -> Result<u64> {
        let statement = if self.shared.pooled { statement.persistent(false) } else { statement };
        // Until it is answered: a caller that gives up waiting must not put the connection back,
        // where the pool would wait instead.
        self.broken = true;
        let work = statement.execute(&mut *self.connection);
        let done = self.shared.statement(self.attempt, work).await;
        self.broken = done.as_ref().is_err_and(is_lost);
        Ok(done?.rows_affected())
    }

    /// Runs a statement that gives rows.
    pub(super) async fn all(&mut self, statement: Statement<'_>) -> Result<Vec<PgRow>> {
        let statement = if self.shared.pooled { statement.persistent(false) } else { statement };
        self.broken = true;
        let work = statement.fetch_all(&mut *self.connection);
        let done = self.shared.statement(self.attempt, work).await;
        self.broken = done.as_ref().is_err_and(is_lost);
        done
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.in_transaction || self.broken {
            self.connection.close_on_drop();
        }
    }
}

impl Session {
    pub(crate) async fn run(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> Result<u64> {
        if sql.postgres == Sql::NOTHING {
            return Ok(0);
        }
        self.execute(bound(sql, arguments)).await
    }

    pub(crate) async fn rows(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> Result<Vec<Row>> {
        if sql.postgres == Sql::NOTHING {
            return Ok(Vec::new());
        }
        Ok(self.all(bound(sql, arguments)).await?.into_iter().map(Row::Postgres).collect())
    }

    pub(crate) async fn announce(&mut self, change: Change) -> Result<()> {
        let announcement = query(notices::TELL).bind(notices::CHANNEL).bind(notices::encode(change));
        self.execute(announcement).await.map(drop)
    }
}

fn bound<'a>(sql: Sql, arguments: &[Argument<'a>]) -> Statement<'a> {
    // A prepared statement keeps the plan that it got when its tables were small, until PostgreSQL
    // analyses them. Publishing fills its tables within seconds, and takes many rows with each
    // statement, so it can afford a new plan for each.
    let mut statement = query(sql.postgres).persistent(!sql.postgres.contains(" publish_"));
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
            Argument::List(keys) => statement.bind(keys),
            Argument::Numbers(numbers) => statement.bind(numbers),
            Argument::Table(columns) => columns.iter().fold(statement, |statement, column| match column {
                Column::Numbers(numbers) => statement.bind(numbers.as_slice()),
                Column::Bytes(bytes) => statement.bind(bytes.as_slice()),
            }),
        };
    }
    statement
}

/// First half of the key of a cache's lock, so that locks of other programs in the same database
/// are others.
const CACHE_LOCKS: i32 = 0x444f_5243;

fn lock_sql(lock: Lock) -> String {
    // The lower half of a cache's number tells apart 4 billion caches; two that share a lock would
    // only wait.
    let half = |number: i64| i32::from_le_bytes(*number.to_le_bytes().first_chunk().expect("8 bytes"));
    match lock {
        Lock::CacheShared(cache) => format!("pg_advisory_xact_lock_shared({CACHE_LOCKS},{})", half(cache)),
        Lock::Cache(cache) => format!("pg_advisory_xact_lock({CACHE_LOCKS},{})", half(cache)),
        Lock::Nar(key) | Lock::Object(key) => format!("pg_advisory_xact_lock({key})"),
        Lock::LogShared(key) => format!("pg_advisory_xact_lock_shared({key})"),
    }
}

/// The answer to a COMMIT was lost: it may have been carried out.
#[derive(Debug, thiserror::Error)]
#[error("the answer to a commit was lost")]
struct AnswerLost(#[source] sqlx::Error);

fn answer_lost(error: Error) -> Error {
    match error {
        Error::Unavailable { attempt, source } if source_is_lost(&source) => {
            Error::Unavailable { attempt, source: sqlx::Error::Io(io::Error::other(AnswerLost(source))) }
        }
        error => error,
    }
}

/// What a failed try may have left.
pub(super) fn effect(error: &Error) -> Effect {
    if is_answer_lost(error) {
        Effect::Unknown
    } else if is_lost(error) || is_conflict(error) {
        Effect::None
    } else {
        Effect::Refused
    }
}

fn is_answer_lost(error: &Error) -> bool {
    let Error::Unavailable { source: sqlx::Error::Io(error), .. } = error else { return false };
    error.get_ref().and_then(|inner| inner.downcast_ref::<AnswerLost>()).is_some()
}

/// Whether the connection is gone.
pub(super) fn is_lost(error: &Error) -> bool {
    match error {
        Error::Unavailable { source, .. } | Error::Database { source, .. } => source_is_lost(source),
        _ => false,
    }
}

fn source_is_lost(source: &sqlx::Error) -> bool {
    match source {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        // Connection exceptions; and the server is shut down, crashed, or starts.
        sqlx::Error::Database(_) => {
            code(source).starts_with("08")
                || ["57P01", "57P02", "57P03", "57P05", "25P03"].contains(&&*code(source))
        }
        _ => false,
    }
}

/// Whether another transaction was in the way: a deadlock, a serialization failure, a row that came
/// or went meanwhile.
fn is_conflict(error: &Error) -> bool {
    match error {
        Error::Unavailable { source, .. } | Error::Database { source, .. } => {
            ["40001", "40P01", "23503", "23505"].contains(&&*code(source))
        }
        _ => false,
    }
}

/// The server's five characters for what went wrong, or nothing.
fn code(source: &sqlx::Error) -> String {
    source.as_database_error().and_then(sqlx::error::DatabaseError::code).unwrap_or_default().into_owned()
}

/// Tells what may work later from what is a defect.
pub(super) fn failed(attempt: &'static str, source: sqlx::Error) -> Error {
    /// Connection exceptions, transactions rolled back, insufficient resources (disk full, too many
    /// connections), operator intervention (time-out, shut down), system errors; a wrong password
    /// or a database that went: both change without us.
    const UNAVAILABLE_CLASSES: [&str; 7] = ["08", "28", "3D", "40", "53", "57", "58"];
    /// A lock was not granted in time; the server is a standby; a pooler's own errors have no code
    /// of their own.
    const UNAVAILABLE: [&str; 4] = ["55P03", "25006", "25P03", "55006"];
    let unavailable = match &source {
        sqlx::Error::Database(error) => {
            let code = code(&source);
            UNAVAILABLE_CLASSES.iter().any(|class| code.starts_with(class))
                || UNAVAILABLE.contains(&code.as_str())
                // A standby refuses a writing transaction as a feature that it lacks.
                || (code == "0A000" && error.message().contains("recovery"))
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    };
    if unavailable { Error::Unavailable { attempt, source } } else { Error::Database { attempt, source } }
}
