//! A limit of the calls that run at once, which adapts to the load that the store bears.
//!
//! Algorithm: additive increase, multiplicative decrease, as in TCP. When the store says that it is
//! busy, or does not answer in time, the limit is halved, once for all calls that were under way at
//! that moment. When as many calls as the limit allows have succeeded, it grows by one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::counters::Counters;
use crate::{Error, Result};

/// A limit of the calls that run at once.
#[derive(Debug)]
pub(crate) struct Limit {
    turns: Semaphore,
    state: Mutex<State>,
    max: usize,
    wait: Duration,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct State {
    /// Calls that may run at once.
    now: usize,
    /// Turns that are in use and are not given back, because the limit fell below the number in
    /// use.
    owed: usize,
    /// Calls that succeeded since the limit changed last.
    successes: usize,
    /// How often the limit was halved.
    halvings: u64,
}

/// What a call says of the load that the store bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    Fine,
    TooMuch,
    Unknown,
}

impl Limit {
    /// At most `max` calls at once (at least one), each of which waits no longer than `wait` for
    /// its turn.
    pub(crate) fn new(max: usize, wait: Duration, counters: Arc<Counters>) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        counters.limited(max);
        let state = State { now: max, owed: 0, successes: 0, halvings: 0 };
        Self { turns: Semaphore::new(max), state: Mutex::new(state), max, wait, counters }
    }

    /// Calls that may run at once now.
    #[cfg(test)]
    pub(crate) fn now(&self) -> usize {
        self.lock().now
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics half-way through a change, so a poisoned state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn and makes the call.
    pub(crate) async fn run<T>(
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
        let load = |outcome: &Result<T>| match outcome {
            Err(Error::Busy { .. }) => Load::TooMuch,
            Ok(_) | Err(Error::NotFound { .. } | Error::Truncated { .. }) => Load::Fine,
            // A refusal or a broken connection says nothing of how much the store bears.
            Err(_) => Load::Unknown,
        };
        self.make(turn.expect("the semaphore is never closed"), call, load).await
    }

    /// Waits for a turn, however long that takes, and makes one try of a request that the library
    /// repeats. Those before it end in time, because each has a time limit of its own.
    pub(crate) async fn run_try<T>(&self, attempt: impl Future<Output = T>, load: fn(&T) -> Load) -> T {
        let turn = self.turns.acquire().await.expect("the semaphore is never closed");
        self.make(turn, attempt, load).await
    }

    async fn make<T>(
        &self,
        turn: SemaphorePermit<'_>,
        call: impl Future<Output = T>,
        load: impl FnOnce(&T) -> Load,
    ) -> T {
        let halvings = self.lock().halvings;
        let outcome = call.await;
        self.learn(turn, load(&outcome), halvings);
        outcome
    }

    /// Learns from a call that began after so many halvings.
    fn learn(&self, turn: SemaphorePermit<'_>, load: Load, halvings: u64) {
        let mut state = self.lock();
        if load == Load::TooMuch {
            state.successes = 0;
            // Calls that were under way together all hear of the same trouble.
            if state.halvings == halvings && state.now > 1 {
                let halved = state.now / 2;
                state.owed += state.now - halved;
                state.now = halved;
                state.halvings += 1;
            }
        } else if load == Load::Fine {
            state.successes += 1;
            if state.successes >= state.now && state.now < self.max {
                state.now += 1;
                state.successes = 0;
                if state.owed > 0 {
                    state.owed -= 1;
                } else {
                    self.turns.add_permits(1);
                }
            }
        }
        self.counters.limited(state.now);
        if state.owed > 0 {
            state.owed -= 1;
            turn.forget();
        }
    }
}
