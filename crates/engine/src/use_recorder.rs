//! Writes the uses of objects to the index in the background, so that no pull waits for a database
//! write.
//!
//! Algorithm: a pull puts the use into a bounded queue and answers. One task empties the queue
//! every [`GATHER`] and writes one batch per cache. When the queue is full or a write fails, the
//! uses are lost: they are counted and logged. The next pull of such a path reports the use again,
//! because the stored time is still old.
//!
//! Invariants
//! - [`UseRecorder::record`] never waits.
//! - Memory: at most [`QUEUE_USES`] uses of 32 bytes each in the queue and as many in the batch
//!   that is being written.
//! - The log holds at most one line about failed updates per [`LOG_PAUSE`], however many pulls
//!   there are.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormer_index::{CacheId, Index, Use};
use dormer_nix::StorePathHash;
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::metrics::EngineMetrics;

/// Uses that wait to be written.
const QUEUE_USES: usize = 16_384;

/// How long the task gathers uses before it writes them. A substitution of a closure asks for
/// hundreds of narinfos a second; they share one statement per cache.
const GATHER: Duration = Duration::from_millis(100);

/// Shortest time between two log lines about failed updates.
const LOG_PAUSE: Duration = Duration::from_mins(1);

type ObjectUse = (CacheId, StorePathHash);

/// Hands uses to the writing task.
#[derive(Debug)]
pub(crate) struct UseRecorder {
    queue: mpsc::Sender<ObjectUse>,
    metrics: Arc<EngineMetrics>,
}

impl UseRecorder {
    /// Starts the writing task on the current run time. The task writes what is queued and ends
    /// when the recorder is dropped.
    pub(crate) fn start(index: Arc<dyn Index>, clock: Arc<dyn Clock>, metrics: Arc<EngineMetrics>) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE_USES);
        let writer = Writer { index, clock, metrics: Arc::clone(&metrics), log: FailureLog::default() };
        tokio::spawn(writer.run(receiver));
        Self { queue, metrics }
    }

    /// Queues a use. Counts the use as lost when the queue is full: the database is slow or away,
    /// and the writer reports that.
    pub(crate) fn record(&self, cache: CacheId, hash: StorePathHash) {
        if self.queue.try_send((cache, hash)).is_err() {
            self.metrics.reads.uses.lost.inc();
        }
    }
}

struct Writer {
    index: Arc<dyn Index>,
    clock: Arc<dyn Clock>,
    metrics: Arc<EngineMetrics>,
    log: FailureLog,
}

impl Writer {
    async fn run(mut self, mut queue: mpsc::Receiver<ObjectUse>) {
        let mut uses = Vec::new();
        while queue.recv_many(&mut uses, QUEUE_USES).await > 0 {
            if !queue.is_closed() {
                tokio::time::sleep(GATHER).await;
            }
            while uses.len() < QUEUE_USES
                && let Ok(one_more) = queue.try_recv()
            {
                uses.push(one_more);
            }
            let mut by_cache: HashMap<CacheId, HashSet<StorePathHash>> = HashMap::new();
            for (cache, hash) in uses.drain(..) {
                by_cache.entry(cache).or_default().insert(hash);
            }
            for (cache, hashes) in by_cache {
                self.write(cache, &hashes.into_iter().collect::<Vec<_>>()).await;
            }
        }
    }

    async fn write(&mut self, cache: CacheId, hashes: &[StorePathHash]) {
        match self.index.touch_objects(cache, hashes, Use::Pull, self.clock.now()).await {
            Ok(()) => self.metrics.reads.uses.written.inc_by(hashes.len() as u64),
            Err(error) => {
                self.metrics.reads.uses.lost.inc_by(hashes.len() as u64);
                if let Some(uses_lost) = self.log.note(hashes.len(), Instant::now()) {
                    tracing::warn!(
                        use.count = uses_lost,
                        %error,
                        "failed to record when paths were last used; pulls are answered all the same"
                    );
                }
            }
        }
    }
}

/// Decides when a failure is logged.
#[derive(Debug, Default)]
struct FailureLog {
    logged_at: Option<Instant>,
    uses_lost: usize,
}

impl FailureLog {
    /// Adds lost uses. Returns how many were lost since the last line if it is time for another
    /// line.
    fn note(&mut self, uses_lost: usize, now: Instant) -> Option<usize> {
        self.uses_lost += uses_lost;
        if self.logged_at.is_some_and(|logged_at| now.duration_since(logged_at) < LOG_PAUSE) {
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.uses_lost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_logged_once_a_minute_with_their_sum() {
        let (mut log, begun) = (FailureLog::default(), Instant::now());
        assert_eq!(log.note(3, begun), Some(3));
        assert_eq!(log.note(4, begun + LOG_PAUSE / 2), None);
        assert_eq!(log.note(5, begun + LOG_PAUSE), Some(9));
        assert_eq!(log.note(1, begun + LOG_PAUSE * 3 / 2), None);
    }
}
