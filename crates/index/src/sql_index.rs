//! The index over any SQL database: the one place where a call begins a session, repeats itself,
//! gives up, and is logged.
//!
//! Invariants
//! - Every call runs in one session of [`SqlIndex::read`] or one transaction of
//!   [`SqlIndex::write`].
//! - A write that fails leaves nothing: it is rolled back, also when the caller drops the call.
//! - A call is repeated only if its failed try had no effect, or if the same effect twice is
//!   harmless.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormer_nix::{NarHash, with_causes};

use crate::backoff::Backoff;
use crate::changes::{Change, Changes};
use crate::contract::{CallCounts, PoolUse};
use crate::known_keys::KnownKeys;
use crate::sql::{Argument, Sql, Transaction};
use crate::{Error, Result};

/// Most tries of one call.
const TRIES_MAX: u32 = 10;

/// What differs between the databases.
pub(crate) trait Dialect: Send + Sync + fmt::Debug + 'static {
    /// A connection in use. One that is dropped in the middle of a transaction rolls back.
    type Session: Transaction + 'static;

    /// Takes a connection, and begins what `access` asks for. `attempt` ends the sentence "failed
    /// to …".
    fn begin(
        &self,
        attempt: &'static str,
        access: Access<'_>,
    ) -> impl Future<Output = Result<Self::Session>> + Send;
    /// Ends a session and makes durable what it wrote.
    fn commit(&self, session: Self::Session) -> impl Future<Output = Result<()>> + Send;
    /// Ends a session and undoes what it wrote.
    fn roll_back(&self, session: Self::Session) -> impl Future<Output = ()> + Send;
    /// Says what a failed try may have left, and notes what the failure says about other
    /// connections.
    fn effect(&self, error: &Error) -> Effect;
    /// How long a call may go on trying.
    fn patience(&self) -> Duration;

    /// Reads all keys again, after many rows were removed: filters never forget a key.
    fn reload(&self, known: &KnownKeys) -> impl Future<Output = Result<()>> + Send;
    /// Closes all connections, waiting for those in use.
    fn close(&self) -> impl Future<Output = Result<()>> + Send;
    /// Changes from now on that other processes make.
    fn changes(&self) -> Changes;
    /// Statements sent since the start.
    fn statement_count(&self) -> u64;
    /// Statements that the database carried out.
    fn answer_count(&self) -> u64;
    /// How the connections are used now.
    fn pool_use(&self) -> PoolUse;
}

/// What a session is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Access<'a> {
    /// Look-ups.
    Read,
    /// A transaction that holds these locks from its first statement until it ends. What it looks
    /// up was committed before the locks were granted, and nothing that takes the same locks
    /// changes it meanwhile.
    Write(&'a [Lock]),
}

/// What a failed try may have left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing, and another try may work.
    None,
    /// All or nothing: the answer to the commit was lost.
    Unknown,
    /// Another try would fail in the same way.
    Refused,
}

/// What a transaction holds until it ends, so that two of them agree on what they found. A
/// transaction takes its locks in the order of this list. SQLite has one writer at a time and needs
/// none of them.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lock {
    /// The cache stays. Many transactions may hold this lock.
    CacheShared(i64),
    /// The cache changes or goes.
    Cache(i64),
    /// The row of a NAR, present or not: the first bytes of its hash. Two NARs may share a lock,
    /// which costs a wait.
    Nar(i64),
    /// The row of an object, present or not: the first bytes of its hash, mixed with its cache.
    Object(i64),
    /// The log of a derivation stays: an object that names the derivation is written. Many
    /// transactions may hold this lock. A removal takes it alone ([`LOCK_LOG`]) before it looks
    /// whether an object is left that names the derivation.
    LogShared(i64),
}

/// Takes the lock of a log alone. A removal knows the derivation only when it has the object, so it
/// takes this lock within its transaction. `$1` is the [`log_key`].
pub(crate) const LOCK_LOG: Sql = Sql { sqlite: Sql::NOTHING, postgres: "SELECT pg_advisory_xact_lock($1)" };

/// Sets the locks of logs apart from those of NARs and objects, which are numbers too.
const LOG_LOCKS: i64 = i64::from_be_bytes(*b"dormelog");

/// The key of the lock of a log, by the cache and the derivation as objects name it.
pub(crate) fn log_key(cache: i64, deriver: &str) -> i64 {
    first_number(NarHash::digest(deriver.as_bytes()).as_bytes()) ^ cache.rotate_right(16) ^ LOG_LOCKS
}

impl Lock {
    pub(crate) fn nar(hash: &[u8; 32]) -> Self {
        Self::Nar(first_number(hash))
    }

    pub(crate) fn object(cache: i64, hash: &[u8; 20]) -> Self {
        Self::Object(first_number(hash) ^ cache.rotate_right(16))
    }
}

fn first_number(hash: &[u8]) -> i64 {
    i64::from_le_bytes(*hash.first_chunk().expect("hashes are long enough"))
}

/// How a write runs. A name alone means: without locks, and repeated whenever that may help.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Write<'a> {
    attempt: &'static str,
    locks: &'a [Lock],
    same_twice: bool,
}

impl<'a> Write<'a> {
    /// With these locks.
    pub(crate) fn with_locks(self, locks: &'a [Lock]) -> Self {
        Self { locks, ..self }
    }

    /// Not repeated if the failed try may have had its effect: a second one would not be the same.
    pub(crate) fn unless_done(self) -> Self {
        Self { same_twice: false, ..self }
    }
}

impl From<&'static str> for Write<'_> {
    fn from(attempt: &'static str) -> Self {
        Self { attempt, locks: &[], same_twice: true }
    }
}

/// An index in a SQL database.
#[derive(Debug)]
pub struct SqlIndex<D> {
    pub(crate) database: D,
    /// Keys that are stored, for look-ups that need no statement.
    pub(crate) known: KnownKeys,
    repeats: AtomicU64,
    failures: AtomicU64,
}

#[expect(private_bounds, reason = "the dialects are sealed: callers name SqliteIndex and PostgresIndex")]
impl<D: Dialect> SqlIndex<D> {
    pub(crate) fn over(database: D, known: KnownKeys) -> Self {
        Self { database, known, repeats: AtomicU64::new(0), failures: AtomicU64::new(0) }
    }

    /// Runs look-ups, again if the database was in the way. `attempt` ends the sentence "failed to
    /// …".
    pub(crate) async fn read<T, Fut>(
        &self,
        attempt: &'static str,
        work: impl Fn(Lent<D::Session>) -> Fut + Send + Sync,
    ) -> Result<T>
    where
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        self.repeat(attempt, Access::Read, true, work).await
    }

    /// Runs a transaction, again if another transaction or a lost connection was in the way.
    pub(crate) async fn write<'w, T, Fut>(
        &self,
        write: impl Into<Write<'w>> + Send,
        work: impl Fn(Lent<D::Session>) -> Fut + Send + Sync,
    ) -> Result<T>
    where
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        let Write { attempt, locks, same_twice } = write.into();
        self.repeat(attempt, Access::Write(locks), same_twice, work).await
    }

    async fn repeat<T, Fut>(
        &self,
        attempt: &'static str,
        access: Access<'_>,
        same_twice: bool,
        work: impl Fn(Lent<D::Session>) -> Fut + Send + Sync,
    ) -> Result<T>
    where
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        let begun = Instant::now();
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        let mut tries = 1;
        loop {
            let error = match self.run_once(attempt, access, &work).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let may_repeat = match self.database.effect(&error) {
                Effect::None => true,
                Effect::Unknown => same_twice,
                Effect::Refused => false,
            };
            let is_failure = matches!(error, Error::Unavailable { .. } | Error::Database { .. });
            if !may_repeat || tries == TRIES_MAX || begun.elapsed() > self.database.patience() {
                if is_failure {
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    let (error, waited_ms) = (with_causes(&error), begun.elapsed().as_millis());
                    tracing::warn!(
                        index.attempt = attempt,
                        index.tries = tries,
                        waited_ms,
                        error,
                        "a call of the database failed"
                    );
                }
                return Err(error);
            }
            let pause = backoff.next();
            self.repeats.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(
                index.attempt = attempt,
                index.tries = tries,
                pause_ms = pause.as_millis(),
                error = with_causes(&error),
                "a call of the database is repeated"
            );
            tries += 1;
            tokio::time::sleep(pause).await;
        }
    }

    async fn run_once<T, Fut>(
        &self,
        attempt: &'static str,
        access: Access<'_>,
        work: &(impl Fn(Lent<D::Session>) -> Fut + Send + Sync),
    ) -> Result<T>
    where
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        let session = self.database.begin(attempt, access).await?;
        let home = Arc::new(Mutex::new(None));
        let done = work(Lent { session: Some(session), home: Arc::clone(&home) }).await;
        let session = home.lock().unwrap_or_else(PoisonError::into_inner).take();
        let session = session.expect("the work has ended, which gives the session back");
        match done {
            Ok(done) => {
                self.database.commit(session).await?;
                Ok(done)
            }
            Err(reason) => {
                self.database.roll_back(session).await;
                Err(reason)
            }
        }
    }

    /// A session for tests.
    #[cfg(test)]
    pub(crate) async fn session(&self, access: Access<'_>) -> D::Session {
        self.database.begin("test", access).await.expect("the database answers")
    }

    /// How many calls were repeated and given up.
    pub(crate) fn counts(&self) -> CallCounts {
        CallCounts {
            repeats: self.repeats.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}

/// A session that is lent to the work of one call. It goes back when it is dropped, so the work has
/// nothing to return but its result.
#[derive(Debug)]
pub(crate) struct Lent<S> {
    /// `None` only while this is dropped.
    session: Option<S>,
    home: Arc<Mutex<Option<S>>>,
}

impl<S> Lent<S> {
    fn session(&mut self) -> &mut S {
        self.session.as_mut().expect("taken only when dropped")
    }
}

impl<S> Drop for Lent<S> {
    fn drop(&mut self) {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = self.session.take();
    }
}

impl<S: Transaction> Transaction for Lent<S> {
    type Row = S::Row;

    fn attempt(&self) -> &'static str {
        self.session.as_ref().expect("taken only when dropped").attempt()
    }

    async fn run(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> Result<u64> {
        self.session().run(sql, arguments).await
    }

    async fn rows(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> Result<Vec<S::Row>> {
        self.session().rows(sql, arguments).await
    }

    async fn announce(&mut self, change: Change) -> Result<()> {
        self.session().announce(change).await
    }
}
