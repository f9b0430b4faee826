//! A run under its lease: the lease is renewed with the cursor, and most of the time belongs to
//! others.

use std::time::{Duration, Instant};

use dormer_index::{JobLease, ScrubIndex};

use super::state::ScrubState;
use crate::lease_renewal::{LeaseRenewal, Leased};
use crate::pace::pause_after;
use crate::{Clock, Result};

/// Packs or NARs in one look-up.
pub(super) const PAGE: u32 = 64;

/// One scrub under one lease, and where it is.
pub(super) struct ScrubRun<'a> {
    pub(super) scrub: &'a dyn ScrubIndex,
    pub(super) clock: &'a dyn Clock,
    pub(super) lease: &'a JobLease,
    pub(super) lease_seconds: i64,
    pub(super) renewal: LeaseRenewal,
    pub(super) renewed: Instant,
    pub(super) begun: Instant,
    /// How long it works before other jobs get their turn.
    pub(super) slice: Duration,
    pub(super) state: ScrubState,
}

impl ScrubRun<'_> {
    /// Whether other jobs are to get their turn.
    pub(super) fn is_slice_over(&self) -> bool {
        self.begun.elapsed() >= self.slice
    }

    /// Leaves the rest of the time to others: as [`pause_after`] says, or under a limit until so
    /// many bytes are due, and at least as long as the work took.
    pub(super) async fn wait(&mut self, timer: Instant, bytes: u64) -> Result<()> {
        let took = timer.elapsed();
        let mut left = match self.state.options.bytes_per_second {
            Some(limit) => {
                let due = Duration::from_millis(bytes.saturating_mul(1_000) / limit.max(1));
                due.saturating_sub(took).max(took.min(pause_after(took)))
            }
            None => pause_after(took),
        };
        while left > self.renewal.after {
            tokio::time::sleep(self.renewal.after).await;
            left -= self.renewal.after;
            self.advance(0).await?;
        }
        tokio::time::sleep(left).await;
        Ok(())
    }

    /// Waits for a call to the store, which may take longer than the lease lasts.
    pub(super) async fn while_renewing<T>(&mut self, call: impl Future<Output = T>) -> Result<T> {
        let done = self.renewal.during(call, self).await?;
        if self.renewed.elapsed() >= self.renewal.after {
            self.advance(0).await?;
        }
        Ok(done)
    }

    /// Saves where the run is, and renews the lease.
    pub(super) async fn advance(&mut self, rows: u64) -> Result<()> {
        let now = self.clock.now();
        let ends_at = now + self.lease_seconds;
        self.scrub.advance_scrub(self.lease, &self.state.encode(), rows, now, ends_at).await?;
        self.renewed = Instant::now();
        Ok(())
    }
}

impl Leased for ScrubRun<'_> {
    async fn renew(&mut self) -> Result<()> {
        self.advance(0).await
    }
}
