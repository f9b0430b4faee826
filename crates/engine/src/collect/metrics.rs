//! What collections of this process did.

use std::time::Duration;

use dormer_index::UnixSeconds;
use prometheus::core::{Collector as MetricSource, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};

use super::report::{CollectionReport, EndedCollection};
use crate::Result;
use crate::metrics::gauge_value;

/// Counters of the collector.
#[derive(Debug, Clone)]
pub struct CollectMetrics {
    runs: IntCounterVec,
    nars: IntCounter,
    packs: IntCounterVec,
    bytes: IntCounter,
    chunks: IntCounter,
    compacted_bytes: IntCounterVec,
    delete_failures: IntCounter,
    waiting_bytes: IntGauge,
    strays_kept: IntGauge,
    purges_left: IntGauge,
    oldest_purge: IntGauge,
    seconds: IntGauge,
    succeeded_at: IntGauge,
}

impl CollectMetrics {
    pub(super) fn new() -> Self {
        let counter = |name, help| IntCounter::new(name, help).expect("well-formed names");
        let counters = |name, help, label| {
            IntCounterVec::new(Opts::new(name, help), &[label]).expect("well-formed names")
        };
        let gauge = |name, help| IntGauge::new(name, help).expect("well-formed names");
        let metrics = Self {
            runs: counters("dormer_gc_runs_total", "Collections, by how they ended", "outcome"),
            nars: counter("dormer_gc_nars_removed_total", "NARs without a name that were removed"),
            packs: counters("dormer_gc_packs_total", "Packs that collections condemned or removed", "what"),
            bytes: counter("dormer_gc_freed_bytes_total", "Bytes of the packs that were removed"),
            chunks: counter("dormer_gc_chunks_removed_total", "Chunk rows that went with their packs"),
            compacted_bytes: counters(
                "dormer_gc_compacted_bytes_total",
                "Bytes that compactions read from old packs and wrote into new ones",
                "what",
            ),
            delete_failures: counter(
                "dormer_gc_delete_failures_total",
                "Packs that the store did not delete; a later collection tries again",
            ),
            waiting_bytes: gauge(
                "dormer_gc_condemned_bytes",
                "Bytes of condemned packs whose grace was not over at the last collection, whichever process ran it",
            ),
            strays_kept: gauge(
                "dormer_gc_strays_kept",
                "Packs without a row that the last listing did not let go, whichever process listed: they are most of the store, or older than its database",
            ),
            purges_left: gauge(
                "dormer_gc_purges_left",
                "Paths that were removed with --now and whose bytes the last collection had to leave, whichever process ran it",
            ),
            oldest_purge: gauge(
                "dormer_gc_oldest_purge_timestamp_seconds",
                "When the first of the paths was removed that dormer_gc_purges_left counts; 0 if there is none",
            ),
            seconds: gauge("dormer_gc_last_duration_seconds", "How long the last collection took"),
            succeeded_at: gauge(
                "dormer_gc_last_success_timestamp_seconds",
                "When the last collection ended well, whichever process ran it; 0 before the first",
            ),
        };
        for outcome in ["done", "failed"] {
            metrics.runs.with_label_values(&[outcome]);
        }
        for what in ["condemned", "removed", "stray", "compacted"] {
            metrics.packs.with_label_values(&[what]);
        }
        for what in ["read", "written"] {
            metrics.compacted_bytes.with_label_values(&[what]);
        }
        metrics
    }

    pub(super) fn count(&self, outcome: &Result<CollectionReport>, took: Duration, now: UnixSeconds) {
        self.seconds.set(gauge_value(took.as_secs()));
        let Ok(report) = outcome else {
            self.runs.with_label_values(&["failed"]).inc();
            return;
        };
        self.runs.with_label_values(&["done"]).inc();
        self.nars.inc_by(report.nars);
        self.bytes.inc_by(report.removed.bytes);
        self.chunks.inc_by(report.removed.chunks);
        for (what, packs) in [
            ("condemned", report.condemned.packs),
            ("removed", report.removed.packs),
            ("stray", report.strays_found),
            ("compacted", report.compacted.packs),
        ] {
            self.packs.with_label_values(&[what]).inc_by(packs);
        }
        let compacted = &report.compacted;
        for (what, bytes) in [("read", compacted.bytes_read), ("written", compacted.bytes_written)] {
            self.compacted_bytes.with_label_values(&[what]).inc_by(bytes);
        }
        self.show(&EndedCollection { ended_at: now, report: *report });
    }

    /// Shows the last collection, which may be one of another process.
    pub(super) fn show(&self, last: &EndedCollection) {
        let report = &last.report;
        let rewritten = report.compacted.bytes + report.recompressed.bytes;
        self.waiting_bytes.set(gauge_value(report.waiting.bytes + report.condemned.bytes + rewritten));
        self.strays_kept.set(gauge_value(report.strays_kept));
        self.purges_left.set(gauge_value(report.purges_left));
        self.oldest_purge.set(report.oldest_purge.unwrap_or(0));
        self.succeeded_at.set(last.ended_at);
    }

    pub(super) fn count_delete_failure(&self) {
        self.delete_failures.inc();
    }

    fn all(&self) -> [&dyn MetricSource; 13] {
        [
            &self.runs,
            &self.nars,
            &self.packs,
            &self.bytes,
            &self.chunks,
            &self.compacted_bytes,
            &self.delete_failures,
            &self.waiting_bytes,
            &self.strays_kept,
            &self.purges_left,
            &self.oldest_purge,
            &self.seconds,
            &self.succeeded_at,
        ]
    }
}

impl MetricSource for CollectMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(MetricSource::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.all().into_iter().flat_map(MetricSource::collect).collect()
    }
}
