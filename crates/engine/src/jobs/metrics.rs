//! The gauges of open jobs.

use dormer_index::{JobBacklog, JobKind, UnixSeconds};
use prometheus::core::{Collector as MetricSource, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntGaugeVec, Opts};

/// How many jobs are open, how far they are and how old.
#[derive(Debug, Clone)]
pub struct JobMetrics {
    jobs: IntGaugeVec,
    rows: IntGaugeVec,
    oldest: IntGaugeVec,
    failures: IntGaugeVec,
    pub(super) restarts: IntCounter,
}

impl JobMetrics {
    pub(super) fn new() -> Self {
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

    pub(super) fn write(&self, backlog: &[JobBacklog], now: UnixSeconds, is_known: bool) {
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
