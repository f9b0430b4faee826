//! A store that is asked no more at once than it bears.
//!
//! Algorithm: additive increase, multiplicative decrease, as TCP does it. When the store says that it is busy, or does not answer
//! in time, the limit is halved, once for all calls that were under way at that moment; when as many calls as it allows went
//! well, it grows by one.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::contract::{BlobKey, Blobs};
use crate::counters::Counters;
use crate::{Error, Result};

/// A store that is asked no more at once than it bears.
#[derive(Debug)]
pub struct Limited<B> {
    blobs: B,
    turns: Semaphore,
    limit: Mutex<Limit>,
    max: usize,
    wait: Duration,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct Limit {
    /// Calls at once.
    now: usize,
    /// Turns that are out and do not come back: the limit fell below what was given.
    owed: usize,
    /// Calls that went well since the limit changed last.
    successes: usize,
    /// How often it was halved.
    halvings: u64,
}

/// What a call says of the load that the store can bear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    Fine,
    TooMuch,
    Unknown,
}

impl<B> Limited<B> {
    /// Wraps a store: at most `max` calls at once (at least one), each of which waits no longer than `wait` for its turn.
    pub fn new(blobs: B, max: usize, wait: Duration, counters: Arc<Counters>) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        counters.limited(max);
        let limit = Limit { now: max, owed: 0, successes: 0, halvings: 0 };
        Self { blobs, turns: Semaphore::new(max), limit: Mutex::new(limit), max, wait, counters }
    }

    /// Calls that may run at once now.
    pub fn limit(&self) -> usize {
        self.lock().now
    }

    fn lock(&self) -> MutexGuard<'_, Limit> {
        self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run<T>(
        &self,
        attempt: &'static str,
        key: &str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let Ok(turn) = tokio::time::timeout(self.wait, self.turns.acquire()).await else {
            return Err(Error::Busy {
                attempt,
                key: key.to_owned(),
                retry_after: None,
                source: "too many requests are under way".into(),
            });
        };
        let turn = turn.expect("the semaphore is never closed");
        let halvings = self.lock().halvings;
        let outcome = call.await;
        let load = match &outcome {
            Err(Error::Busy { .. }) => Load::TooMuch,
            Ok(_) | Err(Error::NotFound { .. } | Error::Truncated { .. }) => Load::Fine,
            // A refusal or a cut line says nothing of how much the store can bear.
            Err(_) => Load::Unknown,
        };
        self.learn(turn, load, halvings);
        outcome
    }

    /// Learns from a call that began after so many halvings.
    fn learn(&self, turn: SemaphorePermit<'_>, load: Load, halvings: u64) {
        let mut limit = self.lock();
        if load == Load::TooMuch {
            limit.successes = 0;
            // Calls that were under way together all hear of the same trouble.
            if limit.halvings == halvings && limit.now > 1 {
                let halved = limit.now / 2;
                limit.owed += limit.now - halved;
                limit.now = halved;
                limit.halvings += 1;
            }
        } else if load == Load::Fine {
            limit.successes += 1;
            if limit.successes >= limit.now && limit.now < self.max {
                limit.now += 1;
                limit.successes = 0;
                if limit.owed > 0 {
                    limit.owed -= 1;
                } else {
                    self.turns.add_permits(1);
                }
            }
        }
        self.counters.limited(limit.now);
        if limit.owed > 0 {
            limit.owed -= 1;
            turn.forget();
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<B: Blobs> Blobs for Limited<B> {
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> Result<()> {
        self.run("store", &key.to_string(), self.blobs.put(key, parts)).await
    }

    async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        self.run("read", &key.to_string(), self.blobs.get_range(key, range)).await
    }

    async fn get_up_to(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        self.run("read", &key.to_string(), self.blobs.get_up_to(key, range)).await
    }

    async fn head(&self, key: &BlobKey) -> Result<u64> {
        self.run("find", &key.to_string(), self.blobs.head(key)).await
    }

    async fn delete(&self, key: &BlobKey) -> Result<()> {
        self.run("delete", &key.to_string(), self.blobs.delete(key)).await
    }

    async fn list(&self) -> Result<Vec<BlobKey>> {
        self.run("list", "", self.blobs.list()).await
    }

    fn is_remote(&self) -> bool {
        self.blobs.is_remote()
    }

    fn counters(&self) -> Option<&Counters> {
        self.blobs.counters()
    }
}
