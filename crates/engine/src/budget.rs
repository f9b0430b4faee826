//! Budgets: everything in the engine that a task may have to wait for, as one type.
//!
//! A budget counts bytes of memory, or turns to do something. A task takes a share before it uses
//! the memory or begins the work, and waits in line when too little is free. The share returns when
//! it is dropped. Each budget reports its limit, what is in use and how many tasks wait
//! (`dormer_budget_…`), so an operator sees what a stuck request waits for.
//!
//! Invariants
//! - The shares of a budget never exceed its limit. A task that asks for more than the limit gets
//!   the whole budget.
//! - Never wait for a second share of a budget while holding one that only you can return: two
//!   tasks could deadlock. A share that returns when a client has read its bytes is no such share.
//!
//! docs/ARCHITECTURE.md, "Memory", has the sum over all memory budgets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Error, Result};

/// Bytes of memory per permit. A semaphore of tokio holds 2^29 permits on 32-bit machines: 512 GiB
/// in KiB.
const MEMORY_UNIT: u64 = 1024;

/// Memory or turns for one purpose; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
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
}

/// The state of a budget at one moment, in bytes or turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BudgetUse {
    pub(crate) name: &'static str,
    pub(crate) limit: u64,
    pub(crate) in_use: u64,
    /// Tasks that wait for a share.
    pub(crate) waiting: u64,
}

/// A part of a budget, which returns to it when dropped.
#[derive(Debug)]
pub(crate) struct BudgetShare {
    permits: OwnedSemaphorePermit,
    unit: u64,
}

/// Counts a waiting task for as long as it lives, also when the task gives up.
#[derive(Debug)]
pub(crate) struct WaitCount<'a>(&'a AtomicUsize);

impl<'a> WaitCount<'a> {
    pub(crate) fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for WaitCount<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Budget {
    /// A budget of so many bytes, at least a KiB. [`Error::Busy`] names `busy` when nothing was
    /// free for `patience`.
    pub(crate) fn of_memory(
        name: &'static str,
        bytes_max: u64,
        patience: Duration,
        busy: &'static str,
    ) -> Self {
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
        Self { name, busy, patience, permits, permits_max, unit, waiting: Arc::default() }
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
    pub(crate) async fn take_at_last(&self, amount: u64) -> BudgetShare {
        let permits = u32::try_from(amount.div_ceil(self.unit)).unwrap_or(u32::MAX).min(self.permits_max);
        let _waiting = WaitCount::new(&self.waiting);
        let permits = Arc::clone(&self.permits).acquire_many_owned(permits).await;
        BudgetShare { permits: permits.expect("the semaphore is never closed"), unit: self.unit }
    }

    /// Takes one turn if one is free now.
    pub(crate) fn try_take_turn(&self) -> Option<BudgetShare> {
        let permits = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(BudgetShare { permits, unit: self.unit })
    }

    /// The budget's present state.
    pub(crate) fn present_use(&self) -> BudgetUse {
        let limit = u64::from(self.permits_max) * self.unit;
        BudgetUse {
            name: self.name,
            limit,
            in_use: limit.saturating_sub(self.free()),
            waiting: self.waiting.load(Ordering::Relaxed) as u64,
        }
    }

    /// Bytes or turns that are free now.
    pub(crate) fn free(&self) -> u64 {
        u64::try_from(self.permits.available_permits()).unwrap_or(u64::MAX).saturating_mul(self.unit)
    }

    /// Whether more than half of the budget is free: enough for work that is useful but not needed.
    pub(crate) fn is_half_free(&self) -> bool {
        self.permits.available_permits() > self.permits_max as usize / 2
    }
}

impl BudgetShare {
    /// Adds another share of the same budget.
    pub(crate) fn merge(&mut self, more: Self) {
        self.permits.merge(more.permits);
    }

    /// Returns what is not needed any more.
    pub(crate) fn shrink_to(&mut self, amount: u64) {
        let needed = usize::try_from(amount.div_ceil(self.unit)).unwrap_or(usize::MAX);
        drop(self.permits.split(self.permits.num_permits().saturating_sub(needed)));
    }
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
