//! Whether this process can serve: asked by load balancers, often and by anybody.
//!
//! Invariants
//! - Being busy is not being away: while database and store answer others, the server is ready, though the question itself waits.
//!   Otherwise all replicas would go out of service at once, when they are needed most.
//! - However many ask, database and store are asked at most once a second, by one question at a time.
//! - The answer comes within [`CHECK_TIMEOUT`], also when database or store hang.
//! - From the moment the server was asked to stop the answer is "no".

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dormer_engine::Engine;
use dormer_index::PING_MAX;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long an answer is remembered.
const REMEMBERED: Duration = Duration::from_secs(1);

/// How long the store has to answer somebody, as the database has.
const STORE_PATIENCE: Duration = PING_MAX;

/// Longest check, both at the same time; whatever they wait in.
const CHECK_TIMEOUT: Duration = Duration::from_secs(4);

const _: () = assert!(PING_MAX.as_millis() < CHECK_TIMEOUT.as_millis());

/// What is not ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotReady {
    #[error("not ready: the server is stopping")]
    Stopping,
    #[error("not ready: the database does not answer")]
    Database,
    #[error("not ready: the object store does not answer")]
    Store,
    #[error("not ready: neither the database nor the object store answers")]
    DatabaseAndStore,
}

/// Whether the server is ready.
#[derive(Debug, Default)]
pub(crate) struct Health {
    is_stopping: AtomicBool,
    last: Arc<Mutex<Option<Answer>>>,
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    at: Instant,
    outcome: Result<(), NotReady>,
}

impl Health {
    /// From now on the server is not ready, though it still serves.
    pub(crate) fn begin_stopping(&self) {
        self.is_stopping.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Whether database and store answer, as of the last second.
    pub(crate) async fn check(&self, engine: &Engine) -> Result<(), NotReady> {
        if self.is_stopping() {
            return Err(NotReady::Stopping);
        }
        // Whoever comes while a check is under way waits for its outcome here, at most as long as a check may take.
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some(answer) = *last
            && answer.at.elapsed() < REMEMBERED
        {
            return answer.outcome;
        }
        let engine = engine.clone();
        // A task of its own: a client that leaves does not make the next one ask anew.
        let check = tokio::spawn(async move {
            let outcome = ask(&engine).await;
            *last = Some(Answer { at: Instant::now(), outcome });
            outcome
        });
        // It neither panics nor is it aborted, unless the run time ends.
        check.await.unwrap_or(Err(NotReady::Stopping))
    }
}

async fn ask(engine: &Engine) -> Result<(), NotReady> {
    let in_time =
        async |what, check: &mut (dyn Future<Output = dormer_engine::Result<()>> + Send + Unpin)| {
            match tokio::time::timeout(CHECK_TIMEOUT, check).await {
                Ok(Ok(())) => true,
                Ok(Err(error)) => {
                    tracing::warn!(error = crate::failure::with_causes(&error), "the {what} does not answer");
                    false
                }
                Err(_) => {
                    tracing::warn!("the {what} does not answer within {} s", CHECK_TIMEOUT.as_secs());
                    false
                }
            }
        };
    let mut index = Box::pin(engine.check_index());
    let mut store = Box::pin(engine.check_store(STORE_PATIENCE));
    let (index, store) = tokio::join!(in_time("database", &mut index), in_time("object store", &mut store));
    match (index, store) {
        (true, true) => Ok(()),
        (false, true) => Err(NotReady::Database),
        (true, false) => Err(NotReady::Store),
        (false, false) => Err(NotReady::DatabaseAndStore),
    }
}
