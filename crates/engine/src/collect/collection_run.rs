//! A run under its lease, and the size of its steps: a run renews its lease between two steps, and
//! pauses after each one.

use std::time::Instant;

use dormer_index::{CollectIndex, JobLease, UnixSeconds};

use crate::lease_renewal::{LeaseRenewal, Leased};
use crate::pace::pause_after;
use crate::{Clock, Result};

/// NARs in one page: a page of recipes is some 400 KiB.
pub(super) const PAGE_NARS: u32 = 4_096;

/// Rows of packs, or of moved chunks, in one page.
pub(super) const PAGE_ROWS: u32 = 4_096;

/// NARs removed, or packs condemned, in one transaction.
pub(super) const CHANGE_ROWS: usize = 256;

/// Packs whose rows go in one transaction: some 800 chunk rows. A pack of tiny NARs may have
/// 65,536.
pub(super) const REMOVE_PACKS: usize = 4;

/// So many packs in a row that cannot be read or stored mean that the store fails.
const REWRITE_FAILURES_MAX: u32 = 2;

/// One collection: its lease, and where it is.
pub(super) struct CollectionRun<'a> {
    pub(super) index: &'a dyn CollectIndex,
    pub(super) clock: &'a dyn Clock,
    pub(super) lease: &'a JobLease,
    pub(super) lease_seconds: i64,
    pub(super) renewed: Instant,
    pub(super) renewal: LeaseRenewal,
    pub(super) rows: u64,
    /// Packs that were there by then stay for a journal that is kept, and so do those without rows.
    pub(super) kept_before: Option<UnixSeconds>,
    /// Packs in a row that could not be rewritten, because the store failed.
    pub(super) store_failures: u32,
}

impl CollectionRun<'_> {
    /// Whether this run leaves packs as they are, because the store fails.
    pub(super) fn is_store_down(&self) -> bool {
        self.store_failures >= REWRITE_FAILURES_MAX
    }

    /// Ends a step of some rows: renews the lease if that is due, and pauses.
    pub(super) async fn step(&mut self, begun: Instant, rows: u64) -> Result<()> {
        self.rows += rows;
        let took = begun.elapsed();
        if self.renewed.elapsed() >= self.renewal.after {
            self.renew().await?;
        }
        tokio::time::sleep(pause_after(took)).await;
        Ok(())
    }

    /// Renews the lease in the middle of a step, if that is due.
    pub(super) async fn keep(&mut self) -> Result<()> {
        if self.renewed.elapsed() >= self.renewal.after { self.renew().await } else { Ok(()) }
    }

    /// Waits for a call to the store, which may take longer than the lease lasts.
    pub(super) async fn while_renewing<T>(&mut self, call: impl Future<Output = T>) -> Result<T> {
        self.renewal.during(call, self).await
    }
}

impl Leased for CollectionRun<'_> {
    async fn renew(&mut self) -> Result<()> {
        let now = self.clock.now();
        let (rows, ends_at) = (std::mem::take(&mut self.rows), now + self.lease_seconds);
        self.index.advance_collection(self.lease, rows, now, ends_at).await?;
        self.renewed = Instant::now();
        Ok(())
    }
}
