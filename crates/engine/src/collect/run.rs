//! A collection from its beginning to its end, in the order that the chapter in STORAGE.md argues
//! for.

use std::time::Instant;

use dormer_index::{JobIndex, JobKind, JobLease, UnixSeconds};
use dormer_nix::with_causes;

use super::collection_run::CollectionRun;
use super::collector::Collector;
use super::progress::CollectionPhase;
use super::report::CollectionReport;
use super::settings::CollectSettings;
use super::strays::Listing;
use crate::Result;
use crate::lease_renewal::LeaseRenewal;

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
        let CollectSettings { renew_after, stuck_after, .. } = self.settings;
        let renewal = LeaseRenewal::new(&*self.blobs, renew_after, stuck_after);
        let collection = &mut CollectionRun {
            index: &*self.index,
            clock: &*self.clock,
            lease,
            lease_seconds,
            renewed: Instant::now(),
            renewal,
            rows: 0,
            kept_before: None,
            store_failures: 0,
        };
        collection.kept_before = collection.while_renewing(self.kept_before()).await?;
        self.progress.begin(CollectionPhase::Deleting);
        self.delete_objects(collection, &mut report).await?;
        self.progress.begin(CollectionPhase::Expiring);
        self.expire_names(collection, &mut report).await?;
        // The order matters: what is condemned below is judged by these marks.
        let (now, mut limits) = self.begin_marks();
        limits.kept_before = collection.kept_before;
        self.progress.begin(CollectionPhase::Marking);
        let marks = self.mark(collection, now, &mut report).await?;
        let live = self.live_packs(marks, Some(collection)).await?;
        self.progress.begin(CollectionPhase::Judging);
        self.judge_packs(collection, &live, &limits, &mut report).await?;
        let notes = self.spent_notes(collection, &live, now).await?;
        drop(live);
        self.progress.begin(CollectionPhase::Purging);
        let purging = self.purge(collection, &mut report).await?;
        self.progress.begin(CollectionPhase::Deleting);
        self.delete_objects(collection, &mut report).await?;
        let listing = self.list_if_due(collection, self.wants_listing(&purging).await?, &mut report).await?;
        self.end_purges(collection, &purging, listing == Listing::Believed, &mut report).await?;
        self.forget_notes(&notes).await?;
        if report.nars > 0 || report.removed.packs > 0 {
            self.index.reload_known_keys().await?;
        }
        let text = serde_json::to_string(&report).expect("numbers are JSON");
        self.index.finish_collection(lease, &text, listing != Listing::Skipped, self.clock.now()).await?;
        Ok(report)
    }

    async fn expire_names(
        &self,
        collection: &mut CollectionRun<'_>,
        report: &mut CollectionReport,
    ) -> Result<()> {
        let now = self.clock.now();
        loop {
            let begun = Instant::now();
            let removed = self.index.expire_graces(EXPIRE_ROWS, now).await?;
            report.graces += removed;
            if removed == 0 {
                break;
            }
            collection.step(begun, removed).await?;
        }
        loop {
            let begun = Instant::now();
            let removed = self.index.expire_aliases(EXPIRE_ROWS, self.aliases_since(now)).await?;
            report.aliases += removed;
            if removed == 0 {
                return Ok(());
            }
            collection.step(begun, removed).await?;
        }
    }
}
