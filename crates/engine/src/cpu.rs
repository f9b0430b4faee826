//! A bounded pool for hashing and compression.
//!
//! At most `cpu_threads` jobs run at once, so uploads leave the rest of the machine to the readers.
//! The pool reuses zstd contexts: setting one up costs more than compressing a small chunk with it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dormer_format::{ChunkId, Encoder, RawChunk, StoredChunk};

use crate::budget::Budget;
use crate::{Error, Result};

/// The pool; clones share it.
#[derive(Debug, Clone)]
pub struct CpuPool {
    turns: Budget,
    threads: usize,
    encoders: Arc<Encoders>,
}

/// Encoders that no job uses now.
struct Encoders {
    idle: Mutex<Vec<Encoder>>,
    zstd_level: i32,
}

impl std::fmt::Debug for Encoders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoders").field("zstd_level", &self.zstd_level).finish_non_exhaustive()
    }
}

impl CpuPool {
    /// A pool of so many threads, at least one, that compresses at this level.
    pub fn new(threads: usize, zstd_level: i32) -> Self {
        let threads = threads.max(1);
        // Jobs belong to uploads that hold memory already, and each job is short: they wait without
        // a limit.
        let turns = Budget::of_turns("cpu", threads, Duration::MAX, "jobs");
        Self { turns, threads, encoders: Arc::new(Encoders { idle: Mutex::default(), zstd_level }) }
    }

    /// Jobs that run at once.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// What jobs wait for.
    pub(crate) fn turns(&self) -> &Budget {
        &self.turns
    }

    /// Runs CPU work when its turn comes. The work is never cancelled half-way, and it keeps its
    /// turn until it ends, also when the caller leaves.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let turn = self.turns.take_at_last(1).await;
        let job = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        match job.await {
            Ok(value) => value,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The run time is shutting down and takes this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Compresses chunks whose ids are known in one job: waking a thread for each chunk costs a
    /// tenth of the work of the fast levels.
    pub(crate) async fn encode(&self, chunks: Vec<(ChunkId, RawChunk)>) -> Result<Vec<StoredChunk>> {
        let encoders = Arc::clone(&self.encoders);
        self.run(move || {
            let reused = encoders.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut encoder = match reused {
                Some(encoder) => encoder,
                None => Encoder::new(encoders.zstd_level).map_err(Error::Encode)?,
            };
            let stored = chunks.iter().map(|(id, chunk)| encoder.encode_as(*id, chunk));
            let stored = stored.collect::<Result<_, _>>().map_err(Error::Encode)?;
            encoders.idle.lock().unwrap_or_else(PoisonError::into_inner).push(encoder);
            Ok(stored)
        })
        .await
    }
}

/// Runs work that takes more than a moment of CPU.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The run time is shutting down and takes the caller with it.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_job_whose_caller_left_keeps_its_turn_until_it_ends() {
        let pool = CpuPool::new(1, 1);
        let (begun, has_begun) = mpsc::channel();
        let (end, may_end) = mpsc::channel::<()>();
        let caller = tokio::spawn({
            let pool = pool.clone();
            async move {
                pool.run(move || {
                    begun.send(()).expect("the test waits");
                    let _ = may_end.recv();
                })
                .await;
            }
        });
        tokio::task::spawn_blocking(move || has_begun.recv()).await.unwrap().unwrap();
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        assert_eq!(pool.turns().free(), 0, "the job still runs");
        end.send(()).unwrap();
        assert_eq!(pool.run(|| 7).await, 7);
    }
}
