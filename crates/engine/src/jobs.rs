//! The job runner: takes up open jobs one after another, and runs their steps beside pushes and
//! reads.
//!
//! Invariants
//! - A step runs only under the job's lease, and renews the lease in its own transaction. A process
//!   that lost the lease changes nothing more.
//! - At least four fifths of the time belong to others, and the size of a step follows the time
//!   that steps take ([`StepSize`]). So a writer on SQLite waits for one short step at most.
//! - The runner stops at once when it is told to: a step in flight is rolled back, and the lease is
//!   given back.
//!
//! Any number of processes may run one over the same index: each job has one holder, and a job
//! whose holder is gone is taken up again when its lease ends.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormer_index::{
    CacheId, CounterIndex, Day, Error as IndexError, ExpiryDefaults, JobIndex, JobKind, JobLease, JobStep,
    UnixSeconds,
};
use dormer_nix::{Backoff, with_causes};
use prometheus::core::{Collector as MetricSource, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntGaugeVec, Opts};

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
const RELEASE_MAX: Duration = Duration::from_millis(500);

/// A failed job is tried again after 2 s, 4 s and so on, but at least this often.
const RETRY: Backoff = Backoff { first: Duration::from_secs(2), max: Duration::from_mins(5) };

/// How often the runner looks for caches whose next expire job is due, at most.
const EXPIRY_LOOK: Duration = Duration::from_mins(1);

/// How often the runner tends the counters of what is stored, and the outbox.
const TEND_EVERY: Duration = Duration::from_mins(1);

/// How often the runner writes down what caches hold, beside the first time on each day.
const SIZES_EVERY: Duration = Duration::from_hours(1);

/// Pages that the runner tends at once, of thousands of rows each. A minute of pushes leaves fewer.
const TENDED_PAGES_MAX: u32 = 64;

/// How a runner works.
#[derive(Debug, Clone)]
pub struct JobSettings {
    /// How long a lease lasts after the last step, in seconds. It must exceed the difference
    /// between the clocks of two replicas.
    pub lease_seconds: i64,
    /// How often the runner looks for open jobs, and reads the gauges.
    pub poll: Duration,
    /// Most rows in one step.
    pub step_rows_max: u32,
    /// When the runner opens expire jobs; `None` leaves that to others.
    pub expiry: Option<ExpirySchedule>,
    /// What is kept where a cache says nothing.
    pub expiry_defaults: ExpiryDefaults,
    /// How long after the end of a recount the next one is opened, in seconds; `None` leaves that,
    /// and the summing up of changes, to others.
    pub recount_seconds: Option<i64>,
    /// How long the outbox keeps changes; `None` leaves trimming it to others.
    pub outbox: Option<OutboxLimits>,
}

/// How long the outbox keeps changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxLimits {
    /// Every change is kept for so many seconds: a cache that is new to a target looks for what it
    /// had before.
    pub keep_seconds: i64,
    /// A change is kept for so many seconds at most, also if a target has not followed it.
    pub give_up_seconds: i64,
}

impl Default for OutboxLimits {
    /// 30 days, as long as publishing remembers removed paths, and 90 days.
    fn default() -> Self {
        Self { keep_seconds: 30 * 86_400, give_up_seconds: 90 * 86_400 }
    }
}

/// When caches are looked through for what they keep no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpirySchedule {
    /// How long after a cache's last expire job the next one is opened.
    pub interval: Duration,
}

impl Default for JobSettings {
    fn default() -> Self {
        Self {
            lease_seconds: 30,
            poll: Duration::from_secs(2),
            step_rows_max: 4_096,
            expiry: None,
            expiry_defaults: ExpiryDefaults {
                retention_seconds: 0,
                quota_bytes: 0,
                grace_seconds: 30 * 86_400,
                log_retention_seconds: 0,
            },
            recount_seconds: None,
            outbox: None,
        }
    }
}

/// Runs jobs until it is told to stop.
#[derive(Debug)]
pub struct JobRunner {
    jobs: Arc<dyn JobIndex>,
    clock: Arc<dyn Clock>,
    settings: JobSettings,
    /// The name of this process in the table, for people.
    holder: String,
    held: Mutex<Option<JobLease>>,
    collector: Option<Collector>,
    scrubber: Option<Scrubber>,
    counters: Option<Arc<dyn CounterIndex>>,
    activity: Option<Arc<Activity>>,
    stored: StoredMetrics,
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

    /// What has to be done every minute, also while a job runs that takes days.
    async fn tend(&self) {
        let mut sizes_at = None;
        loop {
            self.tend_counters().await;
            self.show_last_runs().await;
            self.write_activity().await;
            self.write_sizes(&mut sizes_at).await;
            self.trim_outbox().await;
            self.sweep_sessions().await;
            tokio::time::sleep(TEND_EVERY).await;
        }
    }

    /// Sums up changes of counters, opens a recount that is due, and reads the gauges.
    async fn tend_counters(&self) {
        if let Some(seconds) = self.settings.recount_seconds {
            let now = self.clock.now();
            for _ in 0..TENDED_PAGES_MAX {
                match self.jobs.tend_counters(now, now.saturating_sub(seconds)).await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        let error = with_causes(&error);
                        tracing::warn!(error, "failed to tend the counters; the runner tries again");
                        break;
                    }
                }
            }
        }
        if let Some(counters) = &self.counters {
            // What could not be asked for is not shown.
            self.stored.write(counters.stored_counts().await.ok().as_ref());
        }
    }

    /// Shows in gauges what the last collection and the last scrub found. A command or another
    /// replica may have run them.
    async fn show_last_runs(&self) {
        let shown = async {
            if let Some(collector) = &self.collector {
                collector.show_last().await?;
            }
            if let Some(scrubber) = &self.scrubber {
                scrubber.show_last().await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = shown.await {
            let error = with_causes(&error);
            tracing::warn!(error, "failed to read the last collection and scrub; the runner tries again");
        }
    }

    /// Writes down the pushes and pulls since the last time. Where the answer of the database was
    /// lost, a minute may count twice: nobody is harmed by that, and a database that is away for an
    /// hour loses nothing.
    async fn write_activity(&self) {
        let Some(activity) = &self.activity else { return };
        let taken = activity.take();
        match self.jobs.add_activity(Day::of(self.clock.now()), taken.all()).await {
            Ok(()) => taken.forget(),
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!(error, "failed to write down pushes and pulls; the runner tries again");
            }
        }
    }

    /// Writes down the pushes and pulls of the requests that ended after [`run`](Self::run) had.
    pub async fn finish(&self) {
        if tokio::time::timeout(RELEASE_MAX, self.write_activity()).await.is_err() {
            tracing::warn!("no time to write down the last pushes and pulls");
        }
    }

    /// Writes down what caches hold if it is time for that, and deletes what is too old. Several
    /// servers write the same.
    async fn write_sizes(&self, written_at: &mut Option<(Instant, Day)>) {
        let today = Day::of(self.clock.now());
        let is_fresh = |(at, day): (Instant, Day)| day == today && at.elapsed() < SIZES_EVERY;
        if self.activity.is_none() || written_at.is_some_and(is_fresh) {
            return;
        }
        let written = async {
            let mut after = Some(CacheId(0));
            while let Some(last) = after {
                after = self.jobs.record_sizes(today, last, self.settings.step_rows_max).await?;
            }
            for _ in 0..TENDED_PAGES_MAX {
                if self.jobs.trim_history(today, self.settings.step_rows_max).await? == 0 {
                    break;
                }
            }
            Ok::<_, IndexError>(())
        };
        match written.await {
            Ok(()) => *written_at = Some((Instant::now(), today)),
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!(error, "failed to write down what caches hold; the runner tries again");
            }
        }
    }

    /// Deletes the rows of the outbox that nobody needs any more.
    async fn trim_outbox(&self) {
        let Some(OutboxLimits { keep_seconds, give_up_seconds }) = self.settings.outbox else { return };
        let now = self.clock.now();
        let (keep_since, give_up_before) =
            (now.saturating_sub(keep_seconds), now.saturating_sub(give_up_seconds));
        for _ in 0..TENDED_PAGES_MAX {
            match self.jobs.trim_outbox(keep_since, give_up_before, self.settings.step_rows_max).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::warn!(error, "failed to trim the outbox; the runner tries again");
                    break;
                }
            }
        }
    }

    /// Deletes what is left of pushes by chunks that ended.
    async fn sweep_sessions(&self) {
        for _ in 0..TENDED_PAGES_MAX {
            match self.jobs.sweep_sessions(self.clock.now(), self.settings.step_rows_max).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::warn!(error, "failed to sweep sessions; the runner tries again");
                    break;
                }
            }
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

/// How many jobs are open, how far they are and how old.
#[derive(Debug, Clone)]
pub struct JobMetrics {
    jobs: IntGaugeVec,
    rows: IntGaugeVec,
    oldest: IntGaugeVec,
    failures: IntGaugeVec,
    restarts: IntCounter,
}

impl JobMetrics {
    fn new() -> Self {
        let gauge = |name, help, labels: &[&str]| {
            IntGaugeVec::new(Opts::new(name, help), labels).expect("well-formed names")
        };
        Self {
            jobs: gauge(
                "dormer_jobs",
                "Jobs over whole caches or targets that are open, by whether a process holds them",
                &["kind", "state"],
            ),
            rows: gauge("dormer_job_rows_done", "Rows that the open jobs have done so far", &["kind"]),
            oldest: gauge(
                "dormer_job_oldest_age_seconds",
                "Age of the oldest open job; 0 if there is none",
                &["kind"],
            ),
            failures: gauge(
                "dormer_job_failures",
                "Steps of an open job that failed in a row, of the job with the most; a good step ends the row",
                &["kind"],
            ),
            restarts: IntCounter::new(
                "dormer_job_runner_restarts_total",
                "Panics of the job runner or of its upkeep, after which it started again: a defect",
            )
            .expect("well-formed names"),
        }
    }

    fn write(&self, backlog: &[dormer_index::JobBacklog], now: UnixSeconds, is_known: bool) {
        if !is_known {
            [&self.jobs, &self.rows, &self.oldest, &self.failures].into_iter().for_each(IntGaugeVec::reset);
            return;
        }
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        // Kinds that a newer Dormer knows are left out: labels are words of this program.
        for kind in JobKind::ALL.map(JobKind::as_str) {
            let counted = backlog.iter().find(|counted| counted.kind == kind);
            let (running, waiting) = counted.map_or((0, 0), |counted| (counted.running, counted.waiting));
            self.jobs.with_label_values(&[kind, "running"]).set(number(running));
            self.jobs.with_label_values(&[kind, "waiting"]).set(number(waiting));
            self.rows.with_label_values(&[kind]).set(number(counted.map_or(0, |counted| counted.rows_done)));
            let age = counted.map_or(0, |counted| (now - counted.oldest_created_at).max(0));
            self.oldest.with_label_values(&[kind]).set(age);
            let failures = counted.map_or(0, |counted| counted.failures_max);
            self.failures.with_label_values(&[kind]).set(number(failures));
        }
    }

    fn all(&self) -> [&dyn MetricSource; 5] {
        [&self.jobs, &self.rows, &self.oldest, &self.failures, &self.restarts]
    }
}

impl MetricSource for JobMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(MetricSource::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.all().into_iter().flat_map(MetricSource::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_spaced_out_up_to_a_bound() {
        assert_eq!([0, 1, 2, 6, 7, 8, 1_000].map(retry_seconds), [2, 4, 8, 128, 256, 300, 300]);
    }
}
