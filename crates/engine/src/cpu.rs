//! A bounded pool for hashing and compression.
//!
//! At most `cpu_threads` jobs run at once, whoever asks, so uploads cannot take the machine from the readers beyond that.
//! zstd contexts are reused: setting one up costs more than compressing a small chunk with it.

use std::sync::{Arc, Mutex, PoisonError};

use dormer_format::{ChunkId, Encoder, RawChunk, StoredChunk};
use tokio::sync::Semaphore;

use crate::metrics::{EngineMetrics, Waiting};
use crate::{Error, Result};

#[derive(Debug, Clone)]
pub(crate) struct CpuPool {
    shared: Arc<Shared>,
}

struct Shared {
    threads: usize,
    turns: Semaphore,
    encoders: Mutex<Vec<Encoder>>,
    zstd_level: i32,
    metrics: Arc<EngineMetrics>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuPool")
            .field("turns", &self.turns)
            .field("zstd_level", &self.zstd_level)
            .finish_non_exhaustive()
    }
}

impl CpuPool {
    pub(crate) fn new(threads: usize, zstd_level: i32, metrics: Arc<EngineMetrics>) -> Self {
        let threads = threads.max(1);
        let turns = Semaphore::new(threads);
        Self { shared: Arc::new(Shared { threads, turns, encoders: Mutex::default(), zstd_level, metrics }) }
    }

    /// Jobs that run at once.
    pub(crate) fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Runs CPU work when its turn comes. The work itself is never cancelled half-way.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let waiting = Waiting::new(&self.shared.metrics.cpu_jobs_waiting);
        let _turn = self.shared.turns.acquire().await.expect("the semaphore is never closed");
        drop(waiting);
        let _running = Waiting::new(&self.shared.metrics.cpu_jobs);
        match tokio::task::spawn_blocking(work).await {
            Ok(value) => value,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The run time is shutting down and takes this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Compresses chunks whose ids are known, in one job: waking a thread for each of them costs a tenth of the fast levels'
    /// work.
    pub(crate) async fn encode(&self, chunks: Vec<(ChunkId, RawChunk)>) -> Result<Vec<StoredChunk>> {
        let shared = Arc::clone(&self.shared);
        self.run(move || {
            let reused = shared.encoders.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut encoder = match reused {
                Some(encoder) => encoder,
                None => Encoder::new(shared.zstd_level).map_err(Error::Encode)?,
            };
            let stored = chunks.iter().map(|(id, chunk)| encoder.encode_as(*id, chunk));
            let stored = stored.collect::<Result<_, _>>().map_err(Error::Encode)?;
            shared.encoders.lock().unwrap_or_else(PoisonError::into_inner).push(encoder);
            Ok(stored)
        })
        .await
    }
}
