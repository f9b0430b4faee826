//! Shares of memory and turns: what one caller may hold, and what all callers may hold together.
//!
//! A caller is a token's subject, or a network if there is no token. Its requests wait for each
//! other first and for other callers second, so a caller that asks for too much waits for itself.
//! Operators see both waits beside those for the engine's budgets (`dormer_budget_…`).
//!
//! Invariants
//! - A caller never holds more than three quarters of a budget, and all callers together never hold
//!   more than all of it, except for the last resort.
//! - The last resort: one request of each caller, and one of all requests, may grow beyond the
//!   limit. Otherwise requests that hold a part of the memory could wait for each other for ever.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dormer_engine::BudgetUse;
use dormer_http_host::OthersWait;
use dormer_index::WaitCount;
use futures::FutureExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes per permit of a budget of memory.
const MEMORY_UNIT: u64 = 1024;

/// What one caller may hold of any budget: this part of it, so that the rest is free for others.
const SHARE_NUMERATOR: usize = 3;
const SHARE_DENOMINATOR: usize = 4;

/// Names a caller: the issuer and the subject of its token, or its network if it has no token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Caller(pub(crate) String);

/// The shares of all callers in one budget.
#[derive(Debug)]
pub(crate) struct Shares {
    /// The budget's name in metrics.
    name: &'static str,
    unit: u64,
    /// What the budget has, also if it is handed out elsewhere.
    permits_max: usize,
    all: Arc<Level>,
    share_permits: usize,
    /// Requests that wait for a share, or for more.
    waiting: Arc<AtomicUsize>,
    callers: Mutex<HashMap<Caller, Weak<Level>>>,
}

/// Limits what is held at once.
#[derive(Debug)]
struct Level {
    permits: Arc<Semaphore>,
    permits_max: usize,
    /// The turn to go beyond the limit.
    last_resort: Arc<Semaphore>,
    /// Requests that wait to take a fixed share.
    waiting: AtomicUsize,
}

/// What a request holds of a level.
#[derive(Debug)]
struct Held {
    level: Arc<Level>,
    permits: Option<OwnedSemaphorePermit>,
    last_resort: Option<OwnedSemaphorePermit>,
}

/// What a request holds of a budget. It returns when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    unit: u64,
    waiting: Arc<AtomicUsize>,
    of_caller: Held,
    of_all: Held,
}

impl Shares {
    /// Memory, in bytes.
    pub(crate) fn of_memory(name: &'static str, bytes_max: u64) -> Self {
        Self::new(name, bytes_max / MEMORY_UNIT, MEMORY_UNIT)
    }

    /// Turns.
    pub(crate) fn of_turns(name: &'static str, turns_max: usize) -> Self {
        Self::new(name, turns_max as u64, 1)
    }

    /// Each caller's share of memory that is itself handed out elsewhere, in bytes.
    pub(crate) fn per_caller(name: &'static str, bytes_max: u64) -> Self {
        let all = Arc::new(Level::new(Semaphore::MAX_PERMITS));
        Self { all, ..Self::of_memory(name, bytes_max) }
    }

    /// Each caller's share of turns that are themselves handed out elsewhere.
    pub(crate) fn turns_per_caller(name: &'static str, turns_max: usize) -> Self {
        let all = Arc::new(Level::new(Semaphore::MAX_PERMITS));
        Self { all, ..Self::of_turns(name, turns_max) }
    }

    fn new(name: &'static str, permits_max: u64, unit: u64) -> Self {
        let all = Arc::new(Level::new(usize::try_from(permits_max).unwrap_or(usize::MAX).max(1)));
        let permits_max = all.permits_max;
        let share_permits = (permits_max * SHARE_NUMERATOR / SHARE_DENOMINATOR).max(1);
        let (waiting, callers) = (Arc::default(), Mutex::default());
        Self { name, unit, permits_max, all, share_permits, waiting, callers }
    }

    /// Tells the budget's state whenever it is asked.
    pub(crate) fn watch(&self) -> impl Fn() -> BudgetUse + Send + Sync + 'static + use<> {
        let (name, unit, permits_max) = (self.name, self.unit, self.permits_max);
        let (all, waiting) = (Arc::clone(&self.all), Arc::clone(&self.waiting));
        move || BudgetUse {
            name,
            limit: permits_max as u64 * unit,
            in_use: (all.permits_max - all.permits.available_permits()) as u64 * unit,
            waiting: waiting.load(Ordering::Relaxed) as u64,
        }
    }

    /// A share of nothing, to grow.
    pub(crate) fn begin(&self, caller: &Caller) -> Share {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let level = callers.get(caller).and_then(Weak::upgrade).unwrap_or_else(|| {
            // Only callers with requests in flight stay, and connections are limited.
            callers.retain(|_, level| level.strong_count() > 0);
            let level = Arc::new(Level::new(self.share_permits));
            callers.insert(caller.clone(), Arc::downgrade(&level));
            level
        });
        let (of_caller, of_all) = (Held::new(level), Held::new(Arc::clone(&self.all)));
        Share { unit: self.unit, waiting: Arc::clone(&self.waiting), of_caller, of_all }
    }

    /// The turn to go beyond the limit of all callers. At most one request has it, whichever memory
    /// it needs.
    pub(crate) async fn last_resort(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.all.last_resort).acquire_owned().await.expect(NEVER_CLOSED)
    }

    /// Takes a share of a fixed size when its turn comes; all there is, if that is less.
    pub(crate) async fn take(&self, caller: &Caller, amount: u64) -> Share {
        let mut share = self.begin(caller);
        let permits = share.permits(amount);
        let _waiting = WaitCount::new(&self.waiting);
        share.of_caller.take(permits).await;
        share.of_all.take(permits).await;
        share
    }
}

impl Share {
    /// Says whether requests wait to take what this one holds: those of its caller, and those of
    /// others if all is taken. Others that wait for their own share are no such requests.
    pub(crate) fn others_wait(&self) -> OthersWait {
        let levels = [&self.of_caller, &self.of_all].map(|held| Arc::clone(&held.level));
        OthersWait::new(move || levels.iter().any(|level| level.waiting.load(Ordering::Relaxed) > 0))
    }

    /// Takes more, when there is more. Returns whether others now wait for this request alone,
    /// because it goes beyond a limit.
    pub(crate) async fn grow(&mut self, amount: u64) -> bool {
        if self.of_all.last_resort.is_some() {
            // It must not wait for its caller's other requests, which may wait for it.
            return true;
        }
        let permits = self.permits(amount);
        let _waiting = WaitCount::new(&self.waiting);
        self.of_caller.grow(permits).await;
        self.of_all.grow(permits).await;
        self.of_caller.last_resort.is_some() || self.of_all.last_resort.is_some()
    }

    /// Whether it goes beyond the limit of all callers.
    pub(crate) fn is_last_resort(&self) -> bool {
        self.of_all.last_resort.is_some()
    }

    /// Returns what is not needed any more.
    pub(crate) fn shrink_to(&mut self, amount: u64) {
        let needed = self.permits(amount) as usize;
        for held in [&mut self.of_caller, &mut self.of_all] {
            held.shrink_to(needed);
        }
    }

    fn permits(&self, amount: u64) -> u32 {
        u32::try_from(amount.div_ceil(self.unit)).unwrap_or(u32::MAX)
    }
}

impl Level {
    fn new(permits_max: usize) -> Self {
        let permits_max = permits_max.min(Semaphore::MAX_PERMITS);
        Self {
            permits: Arc::new(Semaphore::new(permits_max)),
            permits_max,
            last_resort: Arc::new(Semaphore::new(1)),
            waiting: AtomicUsize::new(0),
        }
    }
}

const NEVER_CLOSED: &str = "the semaphores are never closed";

impl Held {
    fn new(level: Arc<Level>) -> Self {
        Self { level, permits: None, last_resort: None }
    }

    async fn take(&mut self, permits: u32) {
        let permits = permits.min(u32::try_from(self.level.permits_max).unwrap_or(u32::MAX));
        let mut taken = pin!(Arc::clone(&self.level.permits).acquire_many_owned(permits));
        let permits = if let Some(permits) = taken.as_mut().now_or_never() {
            permits
        } else {
            let _waiting = WaitCount::new(&self.level.waiting);
            taken.await
        };
        self.add(permits.expect(NEVER_CLOSED));
    }

    async fn grow(&mut self, permits: u32) {
        if self.last_resort.is_some() {
            return;
        }
        let (free, last_resort) = (Arc::clone(&self.level.permits), Arc::clone(&self.level.last_resort));
        tokio::select! {
            biased;
            permits = free.acquire_many_owned(permits) => self.add(permits.expect(NEVER_CLOSED)),
            turn = last_resort.acquire_owned() => self.last_resort = Some(turn.expect(NEVER_CLOSED)),
        }
    }

    fn shrink_to(&mut self, needed: usize) {
        if let Some(permits) = &mut self.permits {
            drop(permits.split(permits.num_permits().saturating_sub(needed)));
        }
    }

    fn add(&mut self, more: OwnedSemaphorePermit) {
        match &mut self.permits {
            Some(permits) => permits.merge(more),
            None => self.permits = Some(more),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str) -> Caller {
        Caller(name.to_owned())
    }

    #[tokio::test]
    async fn a_caller_leaves_a_quarter_to_others() {
        let shares = Shares::of_turns("tests", 8);
        let (ada, bob) = (caller("ada"), caller("bob"));
        let mut held = Vec::new();
        for _ in 0..6 {
            held.push(shares.take(&ada, 1).now_or_never().expect("a turn is free"));
        }
        assert!(shares.take(&ada, 1).now_or_never().is_none(), "six of eight are a share");
        let two = [shares.take(&bob, 1).now_or_never(), shares.take(&bob, 1).now_or_never()];
        assert!(two.iter().all(Option::is_some));
        assert!(shares.take(&bob, 1).now_or_never().is_none(), "all are taken");
        held.pop();
        assert!(shares.take(&bob, 1).now_or_never().is_some());
        drop((held, two));
        assert!(shares.take(&ada, 100).now_or_never().is_some(), "too much is all there is");
        shares.begin(&bob);
        assert_eq!(shares.callers.lock().unwrap().len(), 1, "only callers that hold something stay");
    }

    #[tokio::test]
    async fn of_turns_that_are_handed_out_elsewhere_each_caller_has_three_quarters() {
        let shares = Shares::turns_per_caller("tests", 4);
        let (ada, bob) = (caller("ada"), caller("bob"));
        let take = |caller| shares.take(caller, 1).now_or_never();
        let held = [take(&ada), take(&ada), take(&ada), take(&bob), take(&bob), take(&bob)];
        assert!(held.iter().all(Option::is_some));
        assert!(take(&ada).is_none() && take(&bob).is_none());
    }

    #[tokio::test]
    async fn what_a_share_returns_is_free_for_its_caller_and_for_all() {
        let shares = Shares::of_turns("tests", 8);
        let (ada, bob) = (caller("ada"), caller("bob"));
        let mut held = shares.take(&ada, 6).await;
        held.shrink_to(2);
        held.shrink_to(5);
        let more = shares.take(&ada, 4).now_or_never().expect("four came back to the caller");
        assert!(shares.take(&ada, 1).now_or_never().is_none());
        assert!(shares.take(&bob, 3).now_or_never().is_none());
        drop(more);
        assert!(shares.take(&bob, 6).now_or_never().is_some(), "and to all");
    }

    #[tokio::test]
    async fn an_operator_sees_what_is_held_and_how_many_wait_for_their_own_share_and_for_all() {
        let shares = Shares::of_memory("tests", 8 * 1024);
        let now = shares.watch();
        let state = |in_use, waiting| BudgetUse { name: "tests", limit: 8 * 1024, in_use, waiting };
        let mut held = shares.take(&caller("ada"), 6 * 1024).await;
        assert_eq!(now(), state(6 * 1024, 0));
        let (ada, bob) = (caller("ada"), caller("bob"));
        let mut own = Box::pin(shares.take(&ada, 1));
        let mut other = Box::pin(shares.take(&bob, 3 * 1024));
        assert!(futures::poll!(own.as_mut()).is_pending() && futures::poll!(other.as_mut()).is_pending());
        // What is free is kept for the first that waits for all.
        assert_eq!(now(), state(8 * 1024, 2));
        drop((own, other));
        assert_eq!(now(), state(6 * 1024, 0), "those that gave up wait no more");
        held.shrink_to(1024);
        assert_eq!(now(), state(1024, 0));
        // A budget that is handed out elsewhere.
        let shares = Shares::per_caller("tests", 8 * 1024);
        let _held = [shares.take(&ada, 6 * 1024).await, shares.take(&bob, 6 * 1024).await];
        assert_eq!(shares.watch()(), state(12 * 1024, 0));
    }

    #[tokio::test]
    async fn shares_that_grow_never_wait_for_each_other() {
        const MIB: u64 = 1024 * 1024;
        let shares = Shares::of_memory("tests", 16 * MIB);
        let requests = ["ada", "ada", "ada", "bob", "cy"].map(|name| {
            let mut share = shares.begin(&caller(name));
            async move {
                for _ in 0..16 {
                    share.grow(MIB).await;
                    tokio::task::yield_now().await;
                }
            }
        });
        // Each of five needs all there is.
        let all = futures::future::join_all(requests);
        tokio::time::timeout(std::time::Duration::from_secs(10), all).await.expect("all of them end");
        let mut one = shares.begin(&caller("ada"));
        assert!(!one.grow(12 * MIB).await);
        assert!(one.grow(MIB).await, "beyond the caller's share");
    }

    #[tokio::test]
    async fn a_caller_that_fills_its_share_stops_no_other() {
        const MIB: u64 = 1024 * 1024;
        let shares = Shares::of_memory("tests", 16 * MIB);
        let mut held = Vec::new();
        for _ in 0..12 {
            let mut share = shares.begin(&caller("ada"));
            assert!(!share.grow(MIB).now_or_never().expect("within the share"));
            held.push(share);
        }
        let mut beyond = shares.begin(&caller("ada"));
        assert!(beyond.grow(MIB).now_or_never().expect("the last resort is free"));
        let mut waits = shares.begin(&caller("ada"));
        assert!(waits.grow(MIB).now_or_never().is_none());
        let mut other = shares.begin(&caller("bob"));
        assert!(!other.grow(3 * MIB).now_or_never().expect("a quarter is free"));
    }
}
