//! What the journal of this process did.

use dormer_format::JournalKind;
use dormer_index::UnixSeconds;
use prometheus::core::{Collector as MetricSource, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};

/// Counters of the journal.
#[derive(Debug, Clone)]
pub struct JournalMetrics {
    files: IntCounterVec,
    bytes: IntCounterVec,
    failures: IntCounter,
    lag: IntGauge,
    pub(super) restarts: IntCounter,
}

impl Default for JournalMetrics {
    fn default() -> Self {
        let counters =
            |name, help| IntCounterVec::new(Opts::new(name, help), &["what"]).expect("well-formed names");
        let metrics = Self {
            files: counters("dormer_journal_files_total", "Files of the journal that this process wrote"),
            bytes: counters(
                "dormer_journal_bytes_total",
                "Bytes of the journal's files that this process wrote",
            ),
            failures: IntCounter::new(
                "dormer_journal_failures_total",
                "Failed tries to write the journal; each is tried again",
            )
            .expect("well-formed names"),
            lag: IntGauge::new(
                "dormer_journal_lag_seconds",
                "How old the oldest change may be that is not in the journal; 0 if every change is",
            )
            .expect("well-formed names"),
            restarts: IntCounter::new(
                "dormer_journal_restarts_total",
                "Panics of the task that writes the journal, after which it started again: a defect",
            )
            .expect("well-formed names"),
        };
        for what in ["segment", "snapshot"] {
            metrics.files.with_label_values(&[what]);
            metrics.bytes.with_label_values(&[what]);
        }
        metrics
    }
}

impl JournalMetrics {
    pub(super) fn count_file(&self, kind: JournalKind, bytes: u64) {
        let what = if kind == JournalKind::Segment { "segment" } else { "snapshot" };
        self.files.with_label_values(&[what]).inc();
        self.bytes.with_label_values(&[what]).inc_by(bytes);
    }

    pub(super) fn count_failure(&self) {
        self.failures.inc();
    }

    pub(super) fn set_lag(&self, seconds: UnixSeconds) {
        self.lag.set(seconds.max(0));
    }

    fn all(&self) -> [&dyn MetricSource; 5] {
        [&self.files, &self.bytes, &self.failures, &self.lag, &self.restarts]
    }
}

impl MetricSource for JournalMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(MetricSource::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.all().into_iter().flat_map(MetricSource::collect).collect()
    }
}
