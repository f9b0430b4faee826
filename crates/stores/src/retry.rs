//! Repeating calls that failed for a reason that may pass: the store is busy or does not answer.
//!
//! Pauses double ([`Backoff`]). `Retry-After` is respected, up to a bound. A call that pauses holds
//! no turn at the store. A read that was cut is made again as a whole: it is a few MiB at most.
//! Every call may be repeated, because the same name is written with the same bytes or by one
//! writer.

use std::sync::Arc;
use std::time::Duration;

use dormer_nix::Backoff;
use tokio::time::Instant;

use crate::counters::{Counters, Method};
use crate::{Error, Result};

/// How often and how long a call is repeated.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Tries of one call, the first one included.
    pub tries_max: u32,
    /// No try begins later than this after the first one, except a second one. Zero means that
    /// nothing is repeated.
    pub time_max: Duration,
    /// Bound of the first pause. It doubles from pause to pause.
    pub first_pause: Duration,
    /// Bound of every pause.
    pub pause_max: Duration,
}

impl Default for RetryPolicy {
    /// Rides out 20 s without a store. The time decides; the number of tries is a bound for stores
    /// that fail at once.
    fn default() -> Self {
        Self {
            tries_max: 40,
            time_max: Duration::from_secs(45),
            first_pause: Duration::from_millis(100),
            pause_max: Duration::from_secs(8),
        }
    }
}

impl RetryPolicy {
    /// Tries everything once.
    pub fn once() -> Self {
        Self { tries_max: 1, time_max: Duration::ZERO, ..Self::default() }
    }
}

/// Repeats calls by a policy and counts the repetitions.
#[derive(Debug, Clone)]
pub(crate) struct Retries {
    policy: RetryPolicy,
    counters: Arc<Counters>,
}

impl Retries {
    pub(crate) fn new(policy: RetryPolicy, counters: Arc<Counters>) -> Self {
        Self { policy, counters }
    }

    /// Makes a call until it succeeds, fails for good, or the policy ends.
    pub(crate) async fn run<T, F: Future<Output = Result<T>> + Send>(
        &self,
        method: Method,
        call: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        let mut tries = self.begin(method);
        loop {
            match call().await {
                Ok(value) => return Ok(value),
                Err(error) => tries.pause_after(error).await?,
            }
        }
    }

    /// Begins the tries of a call that the caller repeats.
    pub(crate) fn begin(&self, method: Method) -> Tries {
        Tries { retries: self.clone(), method, begin: Instant::now(), failed: 0 }
    }
}

/// The tries of one call.
#[derive(Debug)]
pub(crate) struct Tries {
    retries: Retries,
    method: Method,
    begin: Instant,
    failed: u32,
}

impl Tries {
    /// Waits before the next try, or returns the error if there is to be none.
    pub(crate) async fn pause_after(&mut self, error: Error) -> Result<()> {
        let policy = &self.retries.policy;
        self.failed += 1;
        let asked_for = match &error {
            Error::Busy { retry_after, .. } => *retry_after,
            Error::Unavailable { .. } => None,
            _ => return Err(error),
        };
        let backoff = Backoff { first: policy.first_pause, max: policy.pause_max };
        let own = backoff.spread_pause(self.failed, rand::random());
        let pause = asked_for.unwrap_or_default().min(policy.pause_max).max(own);
        // A call that ran into its time-out may have used up all the time. It is repeated once all
        // the same.
        let is_late = self.begin.elapsed() + pause > policy.time_max;
        let is_last = is_late && (self.failed > 1 || policy.time_max.is_zero());
        if self.failed >= policy.tries_max || is_last {
            return Err(error);
        }
        tracing::warn!(
            store.method = self.method.name(),
            attempt = self.failed,
            ?pause,
            error = %error,
            "a request to the store failed, trying again"
        );
        tokio::time::sleep(pause).await;
        self.retries.counters.retried(self.method);
        Ok(())
    }
}
