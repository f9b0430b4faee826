//! The scrubber of this process: what it works on, and how its runs begin, go on and end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dormer_blobs::Blobs;
use dormer_index::{Index, JobId, JobIndex, JobKind, JobLease, ScrubIndex};
use dormer_nix::with_causes;

use super::metrics::ScrubMetrics;
use super::scrub_run::ScrubRun;
use super::state::{EndedScrub, Phase, ScrubOptions, ScrubReport, ScrubState};
use crate::lease_renewal::{LeaseRenewal, STUCK_AFTER};
use crate::{Clock, Error, Result};

/// The lease is renewed at least so often while the store or a limit of bytes makes the run wait.
const RENEW_AFTER: Duration = Duration::from_secs(3);

/// Reads stored bytes again and checks every hash. Clones share their counters.
#[derive(Debug, Clone)]
pub struct Scrubber {
    pub(super) index: Arc<dyn Index>,
    pub(super) scrub: Arc<dyn ScrubIndex>,
    pub(super) blobs: Arc<dyn Blobs>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: ScrubMetrics,
    renewal: LeaseRenewal,
}

impl Scrubber {
    /// A scrub over an index, by its two contracts, and its store.
    pub fn new(
        index: Arc<dyn Index>,
        scrub: Arc<dyn ScrubIndex>,
        blobs: Arc<dyn Blobs>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let renewal = LeaseRenewal::new(&*blobs, RENEW_AFTER, STUCK_AFTER);
        Self { index, scrub, blobs, clock, metrics: ScrubMetrics::new(), renewal }
    }

    /// The same with other times: the lease is renewed so often, and no more during a longer call
    /// to a folder.
    #[must_use]
    pub fn renewing(self, renew_after: Duration, stuck_after: Duration) -> Self {
        let renewal = LeaseRenewal::new(&*self.blobs, renew_after, stuck_after);
        Self { renewal, ..self }
    }

    /// The counters of this process.
    pub fn metrics(&self) -> ScrubMetrics {
        self.metrics.clone()
    }

    /// Opens a run. `false` if one is open already, which goes on with its own options.
    pub async fn open(&self, options: ScrubOptions) -> Result<(JobId, bool)> {
        let state = ScrubState::new(options, rand::random());
        Ok(self.scrub.open_scrub(&state.encode(), self.clock.now()).await?)
    }

    /// Where an open run is; `None` if it has ended.
    pub async fn state(&self, job: JobId) -> Result<Option<ScrubState>> {
        let cursor = self.scrub.scrub_cursor(job).await?;
        cursor.map(|cursor| ScrubState::decode(&cursor)).transpose()
    }

    /// The report of the last run that ended, if it is this one.
    pub async fn report(&self, job: JobId) -> Result<Option<ScrubReport>> {
        let last = self.scrub.last_scrub().await?;
        if last.job != Some(job) {
            return Ok(None);
        }
        read_report(&last.report).map(Some)
    }

    /// The last run that ended, whichever process ran it.
    pub async fn last(&self) -> Result<Option<EndedScrub>> {
        let last = self.scrub.last_scrub().await?;
        let Some(ended_at) = last.ended_at else { return Ok(None) };
        Ok(Some(EndedScrub { ended_at, report: read_report(&last.report)? }))
    }

    /// Shows the last run that ended in the gauges of this process.
    pub(crate) async fn show_last(&self) -> Result<()> {
        if let Some(last) = self.last().await? {
            self.metrics.show(&last);
        }
        Ok(())
    }

    /// Takes the lease of the open run for `holder` and works for about `slice`. Then it gives the
    /// lease back, unless the run has ended. `false` if another process holds the lease.
    pub async fn work_now(
        &self,
        jobs: &dyn JobIndex,
        holder: &str,
        lease_seconds: i64,
        slice: Duration,
    ) -> Result<bool> {
        let now = self.clock.now();
        let lease = jobs.lease_job(JobKind::Scrub, holder, now, now + lease_seconds).await?;
        let Some(lease) = lease else { return Ok(false) };
        match self.work(&lease, lease_seconds, slice).await {
            Ok(true) => Ok(true),
            Ok(false) => Ok(jobs.release_job(&lease).await.map(|()| true)?),
            Err(error) => {
                // If this fails too, the lease ends by itself.
                let _ = jobs.fail_job(&lease, &with_causes(&error), self.clock.now()).await;
                Err(error)
            }
        }
    }

    /// Works under a lease until the run has ended (`true`), or for about `slice`.
    pub(crate) async fn work(&self, lease: &JobLease, lease_seconds: i64, slice: Duration) -> Result<bool> {
        let Some(state) = self.state(lease.job).await? else { return Ok(true) };
        let begun = Instant::now();
        let run = &mut ScrubRun {
            scrub: &*self.scrub,
            clock: &*self.clock,
            lease,
            lease_seconds,
            renewal: self.renewal,
            renewed: begun,
            begun,
            slice,
            state,
        };
        loop {
            let ended = match run.state.phase {
                Phase::Packs => self.packs(run).await?,
                Phase::Nars => self.nars(run).await?,
            };
            match (ended, run.state.phase) {
                (false, _) => return Ok(false),
                (true, Phase::Packs) => (run.state.phase, run.state.after) = (Phase::Nars, 0),
                (true, Phase::Nars) => {
                    let text = serde_json::to_string(&run.state.report).expect("numbers and texts are JSON");
                    self.scrub.finish_scrub(lease, &text, self.clock.now()).await?;
                    return Ok(true);
                }
            }
        }
    }
}

fn read_report(text: &str) -> Result<ScrubReport> {
    serde_json::from_str(text).map_err(|error| {
        Error::Index(dormer_index::Error::Corrupt { table: "last_scrub", what: error.to_string() })
    })
}
