//! A collection from its beginning to its end, in the order that the chapter in STORAGE.md argues
//! for.

use std::time::Instant;

use dormer_index::{JobIndex, JobKind, JobLease, UnixSeconds};
use dormer_nix::with_causes;

use super::collector::Collector;
use super::progress::CollectionPhase;
use super::report::CollectionReport;
use super::strays::Listing;
use super::turn::Turn;
use crate::Result;

/// Graces or aliases removed in one transaction.
const EXPIRE_ROWS: u32 = 1_024;

impl Collector {
    /// Opens a collection, takes its lease for `holder` and runs it. `None` if another process is
    /// running one.
    pub async fn run_now(
        &self,
        jobs: &dyn JobIndex,
        holder: &str,
        lease_seconds: i64,
    ) -> Result<Option<CollectionReport>> {
        let now = self.clock.now();
        self.index.open_collection(UnixSeconds::MAX, now).await?;
        let lease = jobs.lease_job(JobKind::Collect, holder, now, now + lease_seconds).await?;
        let Some(lease) = lease else { return Ok(None) };
        let outcome = self.run(&lease, lease_seconds).await;
        if let Err(error) = &outcome {
            // If this fails too, the lease ends by itself.
            let _ = jobs.fail_job(&lease, &with_causes(error), self.clock.now()).await;
        }
        outcome.map(Some)
    }

    /// Runs a collection under the lease of its job, to the end.
    pub(crate) async fn run(&self, lease: &JobLease, lease_seconds: i64) -> Result<CollectionReport> {
        let timer = Instant::now();
        let outcome = self.run_uncounted(lease, lease_seconds).await;
        self.metrics.count(&outcome, timer.elapsed(), self.clock.now());
        outcome
    }

    async fn run_uncounted(&self, lease: &JobLease, lease_seconds: i64) -> Result<CollectionReport> {
        let mut report = CollectionReport::default();
        let turn = &mut Turn {
            index: &*self.index,
            clock: &*self.clock,
            lease,
            lease_seconds,
            renewed: Instant::now(),
            renew_after: self.settings.renew_after,
            rows: 0,
            kept_before: self.kept_before().await,
            store_failures: 0,
        };
        self.progress.begin(CollectionPhase::Deleting);
        self.delete_objects(turn, &mut report).await?;
        self.progress.begin(CollectionPhase::Expiring);
        self.expire_names(turn, &mut report).await?;
        // The order matters: what is condemned below is judged by these marks.
        let (now, mut limits) = self.begin_marks();
        limits.kept_before = turn.kept_before;
        self.progress.begin(CollectionPhase::Marking);
        let marks = self.mark(turn, now, &mut report).await?;
        let live = self.live_packs(marks, Some(turn)).await?;
        self.progress.begin(CollectionPhase::Judging);
        self.judge_packs(turn, &live, &limits, &mut report).await?;
        let notes = self.spent_notes(turn, &live, now).await?;
        drop(live);
        self.progress.begin(CollectionPhase::Purging);
        let purging = self.purge(turn, &mut report).await?;
        self.progress.begin(CollectionPhase::Deleting);
        self.delete_objects(turn, &mut report).await?;
        let listing = self.list_if_due(turn, self.wants_listing(&purging).await?, &mut report).await?;
        self.end_purges(turn, &purging, listing == Listing::Believed, &mut report).await?;
        self.forget_notes(&notes).await?;
        if report.nars > 0 || report.removed.packs > 0 {
            self.index.reload_known_keys().await?;
        }
        let text = serde_json::to_string(&report).expect("numbers are JSON");
        self.index.finish_collection(lease, &text, listing != Listing::Skipped, self.clock.now()).await?;
        Ok(report)
    }

    async fn expire_names(&self, turn: &mut Turn<'_>, report: &mut CollectionReport) -> Result<()> {
        let now = self.clock.now();
        loop {
            let begun = Instant::now();
            let removed = self.index.expire_graces(EXPIRE_ROWS, now).await?;
            report.graces += removed;
            if removed == 0 {
                break;
            }
            turn.step(begun, removed).await?;
        }
        loop {
            let begun = Instant::now();
            let removed = self.index.expire_aliases(EXPIRE_ROWS, self.aliases_since(now)).await?;
            report.aliases += removed;
            if removed == 0 {
                return Ok(());
            }
            turn.step(begun, removed).await?;
        }
    }
}
