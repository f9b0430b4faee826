//! Accounts of memory: whoever is about to hold much of it reserves it first, and waits his turn when there is not enough.
//!
//! Invariants
//! - What is reserved at once never exceeds the account; a wish for more than all of it is one for all of it.
//! - Who holds a reservation of an account waits for another one of the same account only if the first comes back without
//!   his doing: bytes that a client reads. So nobody waits for himself.
//!
//! docs/ARCHITECTURE.md, "Memory", has the sum over all accounts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Error, Result};

/// Bytes that may be held at once for one purpose; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    kib: Arc<Semaphore>,
    kib_max: u32,
    wait: Duration,
    /// What there are too many of when no turn comes.
    what: &'static str,
    waiting: Arc<AtomicUsize>,
}

/// How an account stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Bytes reserved now, and at most.
    pub(crate) reserved: u64,
    pub(crate) max: u64,
    /// Those who wait for a turn now.
    pub(crate) waiting: usize,
}

/// Counts one who waits, while it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A part of an account; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    kib: OwnedSemaphorePermit,
}

impl Reservation {
    /// Gives back what is not needed any more.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let needed = usize::try_from(bytes.div_ceil(1024)).unwrap_or(usize::MAX);
        drop(self.kib.split(self.kib.num_permits().saturating_sub(needed)));
    }
}

impl Account {
    /// An account of so many bytes, at least a KiB. [`Error::Busy`] names `what` when nothing became free for `wait`.
    pub(crate) fn new(bytes_max: u64, wait: Duration, what: &'static str) -> Self {
        let kib_max = u32::try_from(bytes_max / 1024).unwrap_or(u32::MAX).max(1);
        let permits = usize::try_from(kib_max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { kib: Arc::new(Semaphore::new(permits)), kib_max, wait, what, waiting: Arc::default() }
    }

    /// Reserves when the turn for it comes; first come, first served.
    pub(crate) async fn reserve(&self, bytes: u64) -> Result<Reservation> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(self.kib_max);
        let turn = Arc::clone(&self.kib).acquire_many_owned(kib);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        match tokio::time::timeout(self.wait, turn).await {
            Ok(permit) => Ok(Reservation { kib: permit.expect("the semaphore is never closed") }),
            Err(_) => Err(Error::Busy { what: self.what }),
        }
    }

    /// How it stands now.
    pub(crate) fn standing(&self) -> Standing {
        let max = u64::from(self.kib_max) * 1024;
        let waiting = self.waiting.load(Ordering::Relaxed);
        Standing { reserved: max.saturating_sub(self.free_bytes()), max, waiting }
    }

    /// Bytes that are free.
    pub(crate) fn free_bytes(&self) -> u64 {
        u64::try_from(self.kib.available_permits()).unwrap_or(u64::MAX).saturating_mul(1024)
    }

    /// Whether more than half of it is free: enough for what is useful but not needed.
    pub(crate) fn is_half_free(&self) -> bool {
        self.kib.available_permits() > self.kib_max as usize / 2
    }
}

/// Bytes whose reservation ends with their last clone.
pub(crate) fn hold(bytes: Bytes, reservation: &Arc<Reservation>) -> Bytes {
    struct Held {
        bytes: Bytes,
        _reservation: Arc<Reservation>,
    }
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    Bytes::from_owner(Held { bytes, _reservation: Arc::clone(reservation) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_account_is_never_overdrawn_and_a_wish_for_too_much_gets_all() {
        let account = Account::new(10 * 1024, Duration::from_millis(10), "tests");
        let all = account.reserve(1 << 40).await.unwrap();
        assert!(matches!(account.reserve(1).await, Err(Error::Busy { what: "tests" })));
        drop(all);
        let _half = account.reserve(5 * 1024).await.unwrap();
        assert_eq!(account.standing(), Standing { reserved: 5 * 1024, max: 10 * 1024, waiting: 0 });
        assert!(!account.is_half_free());
        let mut rest = account.reserve(5 * 1024).await.unwrap();
        rest.shrink_to(1024);
        assert_eq!(account.free_bytes(), 4 * 1024);
        rest.shrink_to(9 * 1024);
        assert_eq!(account.free_bytes(), 4 * 1024, "it never grows");
    }

    #[tokio::test]
    async fn held_bytes_keep_their_reservation_to_the_last_slice() {
        let account = Account::new(1024, Duration::ZERO, "tests");
        let reservation = Arc::new(account.reserve(1024).await.unwrap());
        let bytes = hold(Bytes::from_static(b"some bytes"), &reservation);
        drop(reservation);
        let slice = bytes.slice(5..);
        drop(bytes);
        assert!(account.reserve(1).await.is_err());
        assert_eq!(slice, "bytes");
        drop(slice);
        account.reserve(1).await.unwrap();
    }
}
