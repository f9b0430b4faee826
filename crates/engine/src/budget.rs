//! Budgets: everything that a task may have to wait for, as one type.
//! [`Engine::watch_budgets`](crate::Engine::watch_budgets) adds those of a program around it.
//!
//! A budget counts bytes of memory, or turns to do something. A task takes a share before it uses
//! the memory or begins the work, and waits in line when too little is free. The share returns when
//! it is dropped. Each budget of the engine reports its limit, what is in use and how many tasks
//! wait (`dormer_budget_…`), so an operator sees what a stuck request waits for.
//!
//! Invariants
//! - The shares of a budget never exceed its limit. A task that asks for more than the limit gets
//!   the whole budget.
//! - Never wait for a second share of a budget while holding one that only you can return: two
//!   tasks could deadlock. A share that returns when a client has read its bytes is no such share.
//! - Of a budget with a limit for large shares, all large ones together leave a quarter to small
//!   ones. A large one that cannot gather its share keeps small ones waiting for no longer than
//!   [`GATHERING_MAX`], and then lets them go first for as long.
//! - Lent memory keeps no task waiting: while one waits, nothing is lent, and what was lent before
//!   has come back. It counts as free.
//!
//! docs/ARCHITECTURE.md, "Memory", has the sum over all memory budgets.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dormer_index::WaitCount;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Error, Result};

/// Bytes of memory per permit. A semaphore of tokio holds 2^29 permits on 32-bit machines: 512 GiB
/// in KiB.
const MEMORY_UNIT: u64 = 1024;

/// What large shares may hold together: this part of a budget, so that the rest is for small ones.
const LARGE_NUMERATOR: u64 = 3;
const LARGE_DENOMINATOR: u64 = 4;

/// How long a large share gathers what is free before it returns that.
const GATHERING_MAX: Duration = Duration::from_secs(5);

/// Most bytes that large shares of a budget of so many bytes hold together.
pub(crate) fn large_bytes_max(bytes_max: u64) -> u64 {
    bytes_max / MEMORY_UNIT * LARGE_NUMERATOR / LARGE_DENOMINATOR * MEMORY_UNIT
}

/// Memory or turns for one purpose; clones share it.
#[derive(Debug, Clone)]
pub struct Budget {
    /// The budget's name in metrics.
    name: &'static str,
    /// What the error says there is too much of when a wait times out.
    busy: &'static str,
    patience: Duration,
    permits: Arc<Semaphore>,
    permits_max: u32,
    /// Bytes or turns per permit.
    unit: u64,
    waiting: Arc<AtomicUsize>,
    large: Option<LargeShares>,
    lent: Option<Arc<dyn Lent>>,
}

/// Holds memory of a budget for work that it makes cheaper, and gives it back when a task wants it.
pub(crate) trait Lent: std::fmt::Debug + Send + Sync {
    /// Bytes that are lent now.
    fn bytes(&self) -> u64;
    /// Gives back so many bytes or a little more, or all. Returns whether these were any.
    fn give_back(&self, bytes: u64) -> bool;
}

/// The limit of large shares.
#[derive(Debug, Clone)]
struct LargeShares {
    permits: Arc<Semaphore>,
    permits_max: u32,
    /// A share of more permits is a large one, and gathers them in pieces of so many.
    piece: u32,
    /// The turn to gather: two that hold a part each could wait for each other.
    turn: Arc<Semaphore>,
}

/// The state of a budget at one moment, in bytes or turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetUse {
    /// The budget's name in metrics.
    pub name: &'static str,
    /// All of it.
    pub limit: u64,
    /// What is taken.
    pub in_use: u64,
    /// Tasks that wait for a share.
    pub waiting: u64,
}

/// Tells the state of some budgets.
type BudgetUses = dyn Fn() -> Vec<BudgetUse> + Send + Sync;

/// The budgets of the program around the engine.
#[derive(Default)]
pub(crate) struct OtherBudgets(Mutex<Option<Box<BudgetUses>>>);

impl std::fmt::Debug for OtherBudgets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OtherBudgets").finish_non_exhaustive()
    }
}

impl OtherBudgets {
    pub(crate) fn set(&self, now: Box<BudgetUses>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    pub(crate) fn now(&self) -> Vec<BudgetUse> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|now| now()).unwrap_or_default()
    }
}

/// A part of a budget, which returns to it when dropped.
#[derive(Debug)]
pub struct BudgetShare {
    permits: OwnedSemaphorePermit,
    /// As many of those for large shares, if it is one.
    of_large: Option<OwnedSemaphorePermit>,
    unit: u64,
}

impl Budget {
    /// A budget of so many bytes, at least a KiB. [`Error::Busy`] names `busy` when nothing was
    /// free for `patience`.
    pub fn of_memory(name: &'static str, bytes_max: u64, patience: Duration, busy: &'static str) -> Self {
        Self::new(name, bytes_max / MEMORY_UNIT, MEMORY_UNIT, patience, busy)
    }

    /// A budget of so many turns, at least one.
    pub(crate) fn of_turns(
        name: &'static str,
        turns_max: usize,
        patience: Duration,
        busy: &'static str,
    ) -> Self {
        Self::new(name, turns_max as u64, 1, patience, busy)
    }

    fn new(name: &'static str, permits: u64, unit: u64, patience: Duration, busy: &'static str) -> Self {
        let permits_max = u32::try_from(permits).unwrap_or(u32::MAX).max(1);
        let permits = usize::try_from(permits_max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(permits));
        Self {
            name,
            busy,
            patience,
            permits,
            permits_max,
            unit,
            waiting: Arc::default(),
            large: None,
            lent: None,
        }
    }

    /// Limits shares of more than `piece_bytes` to three quarters of the budget, each and together.
    /// Such a share gathers in pieces, each in its turn, so that small ones go on meanwhile.
    pub(crate) fn with_limit_for_large(mut self, piece_bytes: u64) -> Self {
        let permits_max = large_bytes_max(u64::from(self.permits_max) * self.unit) / self.unit;
        let permits_max = u32::try_from(permits_max).unwrap_or(u32::MAX).max(1);
        let permits = usize::try_from(permits_max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let piece = u32::try_from(piece_bytes / self.unit).unwrap_or(u32::MAX).max(1);
        let (permits, turn) = (Arc::new(Semaphore::new(permits)), Arc::new(Semaphore::new(1)));
        self.large = Some(LargeShares { permits, permits_max, piece, turn });
        self
    }

    /// Names what [`try_lend`](Self::try_lend) lends memory to. It holds no clone of the budget.
    pub(crate) fn with_lent(mut self, lent: Arc<dyn Lent>) -> Self {
        self.lent = Some(lent);
        self
    }

    /// Whether a task waits: then nothing is lent, whatever is given back.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Lends what is free now, unless a task waits. The caller holds the lock that
    /// [`Lent::give_back`] takes: a task that begins to wait then finds what was lent.
    pub(crate) fn try_lend(&self, bytes: u64) -> Option<BudgetShare> {
        if self.is_waited_for() {
            return None;
        }
        let permits = u32::try_from(bytes.div_ceil(self.unit)).ok()?;
        let permits = Arc::clone(&self.permits).try_acquire_many_owned(permits).ok()?;
        Some(BudgetShare { permits, of_large: None, unit: self.unit })
    }

    /// Takes a share when its turn comes: first come, first served. [`Error::Busy`] when none came
    /// in time.
    pub(crate) async fn take(&self, amount: u64) -> Result<BudgetShare> {
        match tokio::time::timeout(self.patience, self.take_at_last(amount)).await {
            Ok(share) => Ok(share),
            Err(_) => Err(Error::Busy { what: self.busy }),
        }
    }

    /// Takes a share when its turn comes, however long that takes.
    pub async fn take_at_last(&self, amount: u64) -> BudgetShare {
        let permits = u32::try_from(amount.div_ceil(self.unit)).unwrap_or(u32::MAX).min(self.permits_max);
        let _waiting = WaitCount::new(&self.waiting);
        let Some(large) = self.large.as_ref().filter(|large| permits > large.piece) else {
            return BudgetShare { permits: self.acquire(permits).await, of_large: None, unit: self.unit };
        };
        let permits = permits.min(large.permits_max);
        let of_large = acquire(&large.permits, permits).await;
        loop {
            let _turn = acquire(&large.turn, 1).await;
            let gathered = self.gather(permits, large.piece);
            if let Ok(permits) = tokio::time::timeout(GATHERING_MAX, gathered).await {
                return BudgetShare { permits, of_large: Some(of_large), unit: self.unit };
            }
            tokio::time::sleep(GATHERING_MAX).await;
        }
    }

    async fn gather(&self, permits: u32, piece: u32) -> OwnedSemaphorePermit {
        let mut gathered = self.acquire(permits.min(piece)).await;
        let mut rest = permits.saturating_sub(piece);
        while rest > 0 {
            let next = rest.min(piece);
            gathered.merge(self.acquire(next).await);
            rest -= next;
        }
        gathered
    }

    /// Acquires permits, first of all what is lent. The caller counts as waiting.
    async fn acquire(&self, count: u32) -> OwnedSemaphorePermit {
        if let Some(lent) = &self.lent {
            loop {
                if let Ok(permits) = Arc::clone(&self.permits).try_acquire_many_owned(count) {
                    return permits;
                }
                let free = self.permits.available_permits() as u64;
                // Another task may take what comes back.
                if !lent.give_back(u64::from(count).saturating_sub(free).max(1) * self.unit) {
                    break;
                }
            }
        }
        acquire(&self.permits, count).await
    }

    /// Takes one turn if one is free now.
    pub(crate) fn try_take_turn(&self) -> Option<BudgetShare> {
        let permits = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(BudgetShare { permits, of_large: None, unit: self.unit })
    }

    /// The budget's present state.
    pub(crate) fn present_use(&self) -> BudgetUse {
        BudgetUse {
            name: self.name,
            limit: self.limit(),
            in_use: self.limit().saturating_sub(self.free()),
            waiting: self.waiting.load(Ordering::Relaxed) as u64,
        }
    }

    /// All bytes or turns.
    pub(crate) fn limit(&self) -> u64 {
        u64::from(self.permits_max) * self.unit
    }

    /// Bytes or turns that are free now.
    pub(crate) fn free(&self) -> u64 {
        let permits = u64::try_from(self.permits.available_permits()).unwrap_or(u64::MAX);
        permits.saturating_mul(self.unit).saturating_add(self.lent.as_ref().map_or(0, |lent| lent.bytes()))
    }

    /// Whether more than half of the budget is free: enough for work that is useful but not needed.
    pub(crate) fn is_half_free(&self) -> bool {
        self.free() > self.limit() / 2
    }
}

impl BudgetShare {
    /// Adds another share of the same budget.
    pub(crate) fn merge(&mut self, more: Self) {
        self.permits.merge(more.permits);
        self.of_large = match (self.of_large.take(), more.of_large) {
            (Some(mut held), Some(more)) => {
                held.merge(more);
                Some(held)
            }
            (held, more) => held.or(more),
        };
    }

    /// Its bytes or turns.
    pub(crate) fn amount(&self) -> u64 {
        self.permits.num_permits() as u64 * self.unit
    }

    /// Returns what is not needed any more.
    pub(crate) fn shrink_to(&mut self, amount: u64) {
        let needed = usize::try_from(amount.div_ceil(self.unit)).unwrap_or(usize::MAX);
        for permits in [Some(&mut self.permits), self.of_large.as_mut()].into_iter().flatten() {
            drop(permits.split(permits.num_permits().saturating_sub(needed)));
        }
    }
}

async fn acquire(permits: &Arc<Semaphore>, count: u32) -> OwnedSemaphorePermit {
    Arc::clone(permits).acquire_many_owned(count).await.expect("the semaphore is never closed")
}

/// Bytes that keep their share of a memory budget until their last clone is dropped.
pub(crate) fn hold(bytes: Bytes, share: &Arc<BudgetShare>) -> Bytes {
    struct Held {
        bytes: Bytes,
        _share: Arc<BudgetShare>,
    }
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    Bytes::from_owner(Held { bytes, _share: Arc::clone(share) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_budget_is_never_exceeded_and_a_request_for_too_much_gets_all() {
        let budget = Budget::of_memory("tests", 10 * 1024, Duration::from_millis(10), "tests");
        let all = budget.take(1 << 40).await.unwrap();
        assert!(matches!(budget.take(1).await, Err(Error::Busy { what: "tests" })));
        assert_eq!(budget.present_use().waiting, 0, "a task that gave up waits no more");
        drop(all);
        let _half = budget.take(5 * 1024).await.unwrap();
        let expected = BudgetUse { name: "tests", limit: 10 * 1024, in_use: 5 * 1024, waiting: 0 };
        assert_eq!(budget.present_use(), expected);
        assert!(!budget.is_half_free());
        let mut rest = budget.take(5 * 1024).await.unwrap();
        rest.shrink_to(1024);
        assert_eq!(budget.free(), 4 * 1024);
        rest.shrink_to(9 * 1024);
        assert_eq!(budget.free(), 4 * 1024, "it never grows");
    }

    #[tokio::test(start_paused = true)]
    async fn large_shares_hold_up_no_small_one_and_get_theirs_when_small_ones_end() {
        const KIB: u64 = 1024;
        let budget = Budget::of_memory("tests", 64 * KIB, Duration::from_secs(1), "tests");
        let budget = budget.with_limit_for_large(4 * KIB);
        let take = |kib: u64| {
            let budget = budget.clone();
            tokio::spawn(async move { budget.take(kib * KIB).await })
        };
        // More than large ones may hold is all that they may hold.
        let large = budget.take(1 << 40).await.unwrap();
        assert_eq!(budget.free(), 16 * KIB);
        // The next large one waits for the first one, and keeps nothing of the last quarter.
        let waits = take(5);
        tokio::task::yield_now().await;
        let small = budget.take(16 * KIB / 4).await.unwrap();
        assert!(matches!(waits.await.unwrap(), Err(Error::Busy { .. })));
        drop((large, small));
        assert_eq!(budget.free(), 64 * KIB, "one that gave up holds nothing");

        // Small ones hold 56 of 64 KiB and do not end: a large one keeps others waiting a while.
        let patient = Budget { patience: Duration::from_mins(1), ..budget.clone() };
        let held: Vec<_> = futures::future::join_all((0..14).map(|_| patient.take(4 * KIB))).await;
        let large = tokio::spawn({
            let budget = patient.clone();
            async move { budget.take(48 * KIB).await }
        });
        tokio::task::yield_now().await;
        for _ in 0..3 {
            let begun = tokio::time::Instant::now();
            patient.take(4 * KIB).await.unwrap();
            assert!(begun.elapsed() <= GATHERING_MAX, "{:?}", begun.elapsed());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(matches!(large.await.unwrap(), Err(Error::Busy { .. })));
        assert_eq!(budget.free(), 8 * KIB);
        drop(held);

        // Of 64 KiB small ones hold 56: a large one gathers what is left, piece by piece.
        let mut held = Vec::new();
        for _ in 0..14 {
            held.push(budget.take(4 * KIB).await.unwrap());
        }
        let gathers = take(48);
        let small: Vec<_> = (0..20).map(|_| take(4)).collect();
        let ends = tokio::spawn(async move {
            while held.pop().is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        for small in small {
            drop(small.await.unwrap().unwrap());
        }
        ends.await.unwrap();
        let mut large = gathers.await.unwrap().unwrap();
        assert_eq!(budget.free(), 16 * KIB);
        large.shrink_to(KIB);
        assert_eq!(budget.free(), 63 * KIB);
        let next = budget.take(47 * KIB).await.unwrap();
        assert_eq!(budget.free(), 16 * KIB, "what a large one returned is for the next one");
        drop((large, next));
        assert_eq!(budget.free(), 64 * KIB);
    }

    #[tokio::test]
    async fn turns_are_counted_one_by_one_and_waiting_tasks_are_seen() {
        let budget = Budget::of_turns("tests", 2, Duration::from_mins(1), "tests");
        let (first, second) = (budget.take(1).await.unwrap(), budget.try_take_turn().unwrap());
        assert!(budget.try_take_turn().is_none());
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.take(1).await.map(drop) }
        });
        while budget.present_use().waiting == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(budget.present_use(), BudgetUse { name: "tests", limit: 2, in_use: 2, waiting: 1 });
        drop(first);
        waiting.await.unwrap().unwrap();
        drop(second);
        assert_eq!(budget.free(), 2);
    }

    #[tokio::test]
    async fn held_bytes_keep_their_share_to_the_last_slice() {
        let budget = Budget::of_memory("tests", 1024, Duration::ZERO, "tests");
        let share = Arc::new(budget.take(1024).await.unwrap());
        let bytes = hold(Bytes::from_static(b"some bytes"), &share);
        drop(share);
        let slice = bytes.slice(5..);
        drop(bytes);
        assert!(budget.take(1).await.is_err());
        assert_eq!(slice, "bytes");
        drop(slice);
        budget.take(1).await.unwrap();
    }
}
