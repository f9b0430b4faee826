//! The runner: takes leases, runs steps, and gives up what fails.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormer_index::{CounterIndex, Error as IndexError, JobIndex, JobKind, JobLease, JobStep, UnixSeconds};
use dormer_nix::{Backoff, with_causes};

use super::metrics::JobMetrics;
use super::settings::{ExpirySchedule, JobSettings};
use crate::activity::Activity;
use crate::collect::Collector;
use crate::pace::{StepSize, pause_after};
use crate::restarting::restarting;
use crate::scrub::Scrubber;
use crate::stored_metrics::StoredMetrics;
use crate::{Clock, Error, Result};

/// The kinds that this runner runs. Those of publishing belong to the holder of their target's
/// lease.
///
/// The scrub comes last: it takes hours, and gives its lease back so that the others get a turn.
const RUNNABLE: [JobKind; 6] = [
    JobKind::SpreadDamage,
    JobKind::DeleteCache,
    JobKind::ExpireCache,
    JobKind::Collect,
    JobKind::Recount,
    JobKind::Scrub,
];

/// How long a scrub works before other jobs get a turn.
const SCRUB_SLICE: Duration = Duration::from_secs(2);

/// How long giving a lease back, or writing the last activity, may take when the runner stops.
/// After that the lease has to end by itself.
pub(super) const RELEASE_MAX: Duration = Duration::from_millis(500);

/// A failed job is tried again after 2 s, 4 s and so on, but at least this often.
const RETRY: Backoff = Backoff { first: Duration::from_secs(2), max: Duration::from_mins(5) };

/// How often the runner looks for caches whose next expire job is due, at most.
const EXPIRY_LOOK: Duration = Duration::from_mins(1);

/// Runs jobs until it is told to stop.
#[derive(Debug)]
pub struct JobRunner {
    pub(super) jobs: Arc<dyn JobIndex>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: JobSettings,
    /// The name of this process in the table, for people.
    holder: String,
    held: Mutex<Option<JobLease>>,
    pub(super) collector: Option<Collector>,
    pub(super) scrubber: Option<Scrubber>,
    pub(super) counters: Option<Arc<dyn CounterIndex>>,
    pub(super) activity: Option<Arc<Activity>>,
    pub(super) stored: StoredMetrics,
    /// When the next collection may be due.
    collect_at: AtomicI64,
    metrics: JobMetrics,
}

impl JobRunner {
    /// A runner over an index. `holder` names this process to people; two processes may have the
    /// same name.
    pub fn new(
        jobs: Arc<dyn JobIndex>,
        clock: Arc<dyn Clock>,
        holder: String,
        settings: JobSettings,
    ) -> Self {
        Self {
            jobs,
            clock,
            settings,
            holder,
            held: Mutex::new(None),
            collector: None,
            scrubber: None,
            counters: None,
            activity: None,
            stored: StoredMetrics::new(),
            collect_at: AtomicI64::new(0),
            metrics: JobMetrics::new(),
        }
    }

    /// Runs collections too, and opens them when they are due.
    #[must_use]
    pub fn with_collector(self, collector: Collector) -> Self {
        Self { collector: Some(collector), ..self }
    }

    /// Runs scrubs too. They are opened by people.
    #[must_use]
    pub fn with_scrubber(self, scrubber: Scrubber) -> Self {
        Self { scrubber: Some(scrubber), ..self }
    }

    /// Shows what is stored in gauges, too.
    #[must_use]
    pub fn with_counters(self, counters: Arc<dyn CounterIndex>) -> Self {
        Self { counters: Some(counters), ..self }
    }

    /// Writes the history down, too: this activity, and what caches hold.
    #[must_use]
    pub fn with_history(self, activity: Arc<Activity>) -> Self {
        Self { activity: Some(activity), ..self }
    }

    /// The gauges of what is stored, as of the last minute.
    pub fn stored_metrics(&self) -> StoredMetrics {
        self.stored.clone()
    }

    /// The gauges of open jobs, as of the runner's last look.
    pub fn metrics(&self) -> JobMetrics {
        self.metrics.clone()
    }

    /// Runs jobs until `shutdown` is ready; returns within a second after that.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = shutdown => {}
            ((), ()) = async {
                tokio::join!(
                    restarting("jobs", &self.metrics.restarts, || self.work()),
                    restarting("upkeep", &self.metrics.restarts, || self.tend()),
                )
            } => {}
        }
        self.finish().await;
        let held = self.hold(None);
        let Some(lease) = held else { return };
        match tokio::time::timeout(RELEASE_MAX, self.jobs.release_job(&lease)).await {
            // A last step may have been committed although its answer was not waited for.
            Ok(Ok(()) | Err(IndexError::JobLeaseLost)) => {}
            Ok(Err(error)) => tracing::warn!(
                job.id = lease.job.0,
                error = &error as &dyn std::error::Error,
                "failed to give a job's lease back; another process can take the job up when it ends"
            ),
            Err(_) => tracing::warn!(
                job.id = lease.job.0,
                "no time to give a job's lease back; another process can take the job up when it ends"
            ),
        }
    }

    async fn work(&self) {
        let mut failures = 0;
        let mut opened_at = None;
        loop {
            self.open_expire_jobs(&mut opened_at).await;
            let next = async {
                self.open_collection_if_due().await?;
                Ok::<_, Error>(self.next_job().await?)
            };
            let pause = match next.await {
                Ok(Some((kind, lease))) => {
                    failures = 0;
                    match (kind, &self.collector, &self.scrubber) {
                        (JobKind::Collect, Some(collector), _) => {
                            self.run_collection(collector, &lease).await;
                        }
                        (JobKind::Scrub, _, Some(scrubber)) => self.run_scrub(scrubber, &lease).await,
                        _ => self.run_job(kind, &lease).await,
                    }
                    continue;
                }
                Ok(None) => {
                    failures = 0;
                    self.settings.poll
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "failed to look for open jobs; the runner looks again"
                    );
                    self.settings.poll.saturating_mul(1 << failures.min(5))
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Opens the expire jobs that are due, if it is time to look for them.
    async fn open_expire_jobs(&self, opened_at: &mut Option<Instant>) {
        let Some(ExpirySchedule { interval }) = self.settings.expiry else { return };
        if opened_at.is_some_and(|opened_at| opened_at.elapsed() < interval.min(EXPIRY_LOOK)) {
            return;
        }
        *opened_at = Some(Instant::now());
        let now = self.clock.now();
        let since = now.saturating_sub(UnixSeconds::try_from(interval.as_secs()).unwrap_or(UnixSeconds::MAX));
        if let Err(error) = self.jobs.open_expire_jobs(&self.settings.expiry_defaults, now, since).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "failed to open expire jobs; the runner tries again"
            );
        }
    }

    async fn open_collection_if_due(&self) -> Result<()> {
        let Some(collector) = &self.collector else { return Ok(()) };
        if self.clock.now() < self.collect_at.load(Ordering::Relaxed) {
            return Ok(());
        }
        let next = collector.open_if_due().await?;
        self.collect_at.store(next.unwrap_or(UnixSeconds::MAX), Ordering::Relaxed);
        Ok(())
    }

    /// Takes the lease of a job, if one is open that nobody holds.
    async fn next_job(&self) -> dormer_index::Result<Option<(JobKind, JobLease)>> {
        let waiting = self.look().await?;
        let may_run = |kind: &JobKind| match kind {
            JobKind::Collect => self.collector.is_some(),
            JobKind::Scrub => self.scrubber.is_some(),
            _ => true,
        };
        for kind in RUNNABLE.into_iter().filter(|kind| waiting.contains(kind) && may_run(kind)) {
            let now = self.clock.now();
            let ends_at = now + self.settings.lease_seconds;
            if let Some(lease) = self.jobs.lease_job(kind, &self.holder, now, ends_at).await? {
                self.hold(Some(lease));
                return Ok(Some((kind, lease)));
            }
        }
        Ok(None)
    }

    /// Reads the gauges, and returns the kinds of which a job waits. It writes nothing.
    async fn look(&self) -> dormer_index::Result<Vec<JobKind>> {
        let now = self.clock.now();
        let backlog = self.jobs.job_backlog(now).await;
        // What could not be asked for is not shown.
        let counted = backlog.as_ref().map_or(&[][..], |backlog| backlog.as_slice());
        self.metrics.write(counted, now, backlog.is_ok());
        let waiting = |kind: &JobKind| {
            counted.iter().any(|counted| counted.kind == kind.as_str() && counted.waiting > 0)
        };
        let waiting = JobKind::ALL.into_iter().filter(waiting).collect();
        backlog.map(|_| waiting)
    }

    /// Runs a job's steps until it is done, fails or is lost.
    async fn run_job(&self, kind: JobKind, lease: &JobLease) {
        let cache = lease.cache.map(|cache| cache.0);
        let (id, kind_name) = (lease.job.0, kind.as_str());
        tracing::info!(job.id = id, job.kind = kind_name, cache.id = cache, "a job is taken up");
        let mut size = StepSize::new(self.settings.step_rows_max);
        let mut rows = 0;
        let mut looked_at = Instant::now();
        loop {
            let begun = Instant::now();
            match self.step(kind, lease, size.rows).await {
                Ok(step) if step.is_last => {
                    rows += step.rows;
                    tracing::info!(
                        job.id = id,
                        job.kind = kind_name,
                        cache.id = cache,
                        rows,
                        "a job is done"
                    );
                    break;
                }
                Ok(step) => rows += step.rows,
                Err(IndexError::JobLeaseLost) => {
                    tracing::info!(job.id = id, job.kind = kind_name, rows, "a job's lease was lost");
                    break;
                }
                Err(error) => {
                    self.give_up(kind, lease, &error).await;
                    break;
                }
            }
            let took = begun.elapsed();
            size = size.after(took);
            tokio::time::sleep(pause_after(took)).await;
            if looked_at.elapsed() >= self.settings.poll {
                // Only for the gauges; the step says by itself when the database fails.
                let _ = self.look().await;
                looked_at = Instant::now();
            }
        }
        self.hold(None);
    }

    /// Runs a collection until it is done, fails or is lost.
    async fn run_collection(&self, collector: &Collector, lease: &JobLease) {
        tracing::info!(job.id = lease.job.0, job.kind = JobKind::Collect.as_str(), "a job is taken up");
        match collector.run(lease, self.settings.lease_seconds).await {
            Ok(report) => {
                tracing::info!(
                    job.id = lease.job.0,
                    job.kind = JobKind::Collect.as_str(),
                    nars = report.nars,
                    packs_condemned = report.condemned.packs,
                    packs_removed = report.removed.packs,
                    bytes_freed = report.removed.bytes,
                    "a job is done"
                );
            }
            Err(Error::Index(IndexError::JobLeaseLost)) => {
                tracing::info!(job.id = lease.job.0, "the lease of a collection was lost");
            }
            Err(error) => self.give_up(JobKind::Collect, lease, &error).await,
        }
        self.hold(None);
    }

    /// Runs a scrub for a while, and gives its lease back.
    async fn run_scrub(&self, scrubber: &Scrubber, lease: &JobLease) {
        match scrubber.work(lease, self.settings.lease_seconds, SCRUB_SLICE).await {
            Ok(true) => {
                tracing::info!(job.id = lease.job.0, job.kind = JobKind::Scrub.as_str(), "a job is done");
            }
            Ok(false) => {
                if let Err(error) = self.jobs.release_job(lease).await {
                    let error = with_causes(&error);
                    tracing::warn!(job.id = lease.job.0, error, "failed to give a scrub's lease back");
                }
            }
            Err(Error::Index(IndexError::JobLeaseLost)) => {
                tracing::info!(job.id = lease.job.0, "the lease of a scrub was lost");
            }
            Err(error) => self.give_up(JobKind::Scrub, lease, &error).await,
        }
        self.hold(None);
    }

    async fn step(&self, kind: JobKind, lease: &JobLease, rows: u32) -> dormer_index::Result<JobStep> {
        let now = self.clock.now();
        let ends_at = now + self.settings.lease_seconds;
        match kind {
            JobKind::DeleteCache => self.jobs.delete_cache_step(lease, rows, now, ends_at).await,
            JobKind::ExpireCache => {
                let defaults = &self.settings.expiry_defaults;
                self.jobs.expire_cache_step(lease, defaults, rows, now, ends_at).await
            }
            JobKind::SpreadDamage => self.jobs.spread_damage_step(lease, rows, now, ends_at).await,
            JobKind::Recount => self.jobs.recount_step(lease, rows, now, ends_at).await,
            JobKind::ScanCache | JobKind::Collect | JobKind::Scrub => {
                unreachable!("such a job has no step of this kind")
            }
        }
    }

    /// Writes down why a step failed. If that fails too, the lease has to end by itself.
    async fn give_up(&self, kind: JobKind, lease: &JobLease, error: &(dyn std::error::Error + Sync)) {
        let seconds = retry_seconds(lease.failures);
        tracing::warn!(
            job.id = lease.job.0,
            job.kind = kind.as_str(),
            retry_seconds = seconds,
            error = with_causes(error),
            "a step of a job failed"
        );
        let text = with_causes(error);
        let noted = self.jobs.fail_job(lease, &text, self.clock.now() + seconds).await;
        if let Err(error) = noted {
            tracing::debug!(error = &error as &dyn std::error::Error, "failed to note why a job failed");
        }
    }

    /// Remembers the lease to give back at the end; returns the one before.
    fn hold(&self, lease: Option<JobLease>) -> Option<JobLease> {
        std::mem::replace(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner), lease)
    }
}

/// The pause after a failed step, when so many before it failed too.
fn retry_seconds(failures: u64) -> UnixSeconds {
    let failed = u32::try_from(failures).unwrap_or(u32::MAX).saturating_add(1);
    UnixSeconds::try_from(RETRY.bound(failed).as_secs()).unwrap_or(UnixSeconds::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_spaced_out_up_to_a_bound() {
        assert_eq!([0, 1, 2, 6, 7, 8, 1_000].map(retry_seconds), [2, 4, 8, 128, 256, 300, 300]);
    }
}
