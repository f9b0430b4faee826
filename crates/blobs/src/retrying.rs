//! A store whose calls are tried again.
//!
//! Only failures that may pass are: a store that is busy or does not answer. Each pause is random between nothing and twice the
//! last one's bound ("full jitter"), so that many servers do not come back in step; a store that says when to come back is
//! believed, up to a bound. The turn at the store is given back meanwhile, and a read that was cut is made again as a whole: it is a
//! few MiB at most. Every call of the contract may be repeated: objects never change.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::contract::{BlobKey, Blobs};
use crate::counters::{Counters, Method};
use crate::{Error, Result};

/// How often and how long a call is tried.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Tries of one call, the first included.
    pub tries_max: u32,
    /// No try begins later than this after the first one did, but for a second one; zero means that nothing is tried again.
    pub time_max: Duration,
    /// Bound of the first pause; it doubles from pause to pause.
    pub first_pause: Duration,
    /// Bound of every pause.
    pub pause_max: Duration,
}

impl Default for RetryPolicy {
    /// Rides out 20 s without a store: the time counts, the tries are a bound for stores that fail at once.
    fn default() -> Self {
        Self {
            tries_max: 40,
            time_max: Duration::from_secs(45),
            first_pause: Duration::from_millis(100),
            pause_max: Duration::from_secs(8),
        }
    }
}

/// A store whose calls are tried again.
#[derive(Debug)]
pub struct Retrying<B> {
    blobs: B,
    policy: RetryPolicy,
    counters: Arc<Counters>,
}

impl<B> Retrying<B> {
    /// Wraps a store.
    pub fn new(blobs: B, policy: RetryPolicy, counters: Arc<Counters>) -> Self {
        Self { blobs, policy, counters }
    }

    pub(crate) async fn retry<T, F: Future<Output = Result<T>> + Send>(
        &self,
        method: Method,
        call: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        let begin = Instant::now();
        let mut bound = self.policy.first_pause;
        for attempt in 1.. {
            let error = match call().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let asked_for = match &error {
                Error::Busy { retry_after, .. } => *retry_after,
                Error::Unavailable { .. } => None,
                _ => return Err(error),
            };
            let jitter = bound.mul_f64(rand::random_range(0.0..1.0));
            let pause = asked_for.unwrap_or_default().min(self.policy.pause_max).max(jitter);
            // One that ran into its time-out may have used up all the time there is: it is tried once more all the same.
            let is_late = begin.elapsed() + pause > self.policy.time_max;
            let is_last = is_late && (attempt > 1 || self.policy.time_max.is_zero());
            if attempt >= self.policy.tries_max || is_last {
                return Err(error);
            }
            tracing::warn!(store.method = method.name(), attempt, ?pause, error = %error, "a request to the store failed, trying again");
            tokio::time::sleep(pause).await;
            self.counters.retried(method);
            bound = (bound * 2).min(self.policy.pause_max);
        }
        unreachable!("the loop ends by returning");
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<B: Blobs> Blobs for Retrying<B> {
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> Result<()> {
        self.retry(Method::Put, || self.blobs.put(key, parts)).await
    }

    async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        self.retry(Method::Get, || self.blobs.get_range(key, range.clone())).await
    }

    async fn get_up_to(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        self.retry(Method::Get, || self.blobs.get_up_to(key, range.clone())).await
    }

    async fn head(&self, key: &BlobKey) -> Result<u64> {
        self.retry(Method::Head, || self.blobs.head(key)).await
    }

    async fn delete(&self, key: &BlobKey) -> Result<()> {
        self.retry(Method::Delete, || self.blobs.delete(key)).await
    }

    async fn list(&self) -> Result<Vec<BlobKey>> {
        self.retry(Method::Get, || self.blobs.list()).await
    }

    fn is_remote(&self) -> bool {
        self.blobs.is_remote()
    }

    fn counters(&self) -> Option<&Counters> {
        self.blobs.counters()
    }
}
