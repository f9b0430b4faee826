//! The index over any SQL database: the one place where a call begins a session, repeats itself,
//! gives up, and is logged.
//!
//! Invariants
//! - Every call runs in one session of [`SqlIndex::read`] or one transaction of
//!   [`SqlIndex::write`].
//! - A write that fails leaves nothing: it is rolled back, also when the caller drops the call.
//! - A call is repeated only if its failed try had no effect, or if the same effect twice is
//!   harmless.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormer_nix::{Backoff, with_causes};

use crate::contract::CallCounts;
use crate::dialects::Database;
use crate::known_keys::KnownKeys;
use crate::sql::Transaction;
use crate::{Error, Result};

pub(crate) use crate::access::{Access, Effect, LOCK_LOG, Lock, log_key};

/// Most tries of one call.
const TRIES_MAX: u32 = 10;

/// Between the tries of one call.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(20), max: Duration::from_secs(1) };

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

/// The work of a call, its result left where the call finds it.
type Work<'w> =
    dyn Fn(Transaction) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'w>> + Send + Sync + 'w;

/// An index in a SQL database.
#[derive(Debug)]
pub struct SqlIndex {
    pub(crate) database: Database,
    /// Keys that are stored, for look-ups that need no statement.
    pub(crate) known: KnownKeys,
    repeats: AtomicU64,
    failures: AtomicU64,
}

impl SqlIndex {
    pub(crate) fn over(database: Database, known: KnownKeys) -> Self {
        Self { database, known, repeats: AtomicU64::new(0), failures: AtomicU64::new(0) }
    }

    /// Waits until the keys in the database were read: from then on a look-up of an unknown key
    /// costs no statement. PostgreSQL's are not read.
    pub async fn keys_loaded(&self) {
        if let Some(filters) = self.known.filters() {
            filters.loaded().await;
        }
    }

    /// Runs look-ups, again if the database was in the way. `attempt` ends the sentence "failed to
    /// …".
    pub(crate) async fn read<T, Fut>(
        &self,
        attempt: &'static str,
        work: impl Fn(Transaction) -> Fut + Send + Sync,
    ) -> Result<T>
    where
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        self.call(attempt, Access::Read, true, work).await
    }

    /// Runs a transaction, again if another transaction or a lost connection was in the way.
    pub(crate) async fn write<'w, T, Fut>(
        &self,
        write: impl Into<Write<'w>> + Send,
        work: impl Fn(Transaction) -> Fut + Send + Sync,
    ) -> Result<T>
    where
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        let Write { attempt, locks, same_twice } = write.into();
        self.call(attempt, Access::Write(locks), same_twice, work).await
    }

    /// Boxes the work, so that [`repeat`](Self::repeat) is compiled once and not for each call.
    async fn call<T, Fut>(
        &self,
        attempt: &'static str,
        access: Access<'_>,
        same_twice: bool,
        work: impl Fn(Transaction) -> Fut + Send + Sync,
    ) -> Result<T>
    where
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        let result = Mutex::new(None);
        self.repeat(attempt, access, same_twice, &|tx| {
            let (work, result) = (work(tx), &result);
            Box::pin(async move {
                let done = work.await?;
                *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
                Ok(())
            })
        })
        .await?;
        let result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(result.expect("the work has ended well"))
    }

    async fn repeat(
        &self,
        attempt: &'static str,
        access: Access<'_>,
        same_twice: bool,
        work: &Work<'_>,
    ) -> Result<()> {
        let begun = Instant::now();
        let mut tries = 1;
        loop {
            let error = match self.run_once(attempt, access, work).await {
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
            let pause = BACKOFF.spread_pause(tries, rand::random());
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

    async fn run_once(&self, attempt: &'static str, access: Access<'_>, work: &Work<'_>) -> Result<()> {
        let session = self.database.begin(attempt, access).await?;
        let home = Arc::new(Mutex::new(None));
        let done = work(Transaction::lend(session, &home)).await;
        let session = home.lock().unwrap_or_else(PoisonError::into_inner).take();
        let session = session.expect("the work has ended, which gives the session back");
        match done {
            Ok(()) => session.commit().await,
            Err(reason) => {
                session.roll_back().await;
                Err(reason)
            }
        }
    }

    /// How many calls were repeated and given up.
    pub(crate) fn counts(&self) -> CallCounts {
        CallCounts {
            repeats: self.repeats.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}
