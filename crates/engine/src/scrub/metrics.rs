//! What scrubs of this process did.

use prometheus::core::{Collector as MetricSource, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::state::EndedScrub;
use crate::metrics::gauge_value;

/// Counters of the scrub.
#[derive(Debug, Clone)]
pub struct ScrubMetrics {
    bytes: IntCounter,
    damaged: IntCounterVec,
    last_damaged: IntGaugeVec,
    ended_at: IntGauge,
}

impl ScrubMetrics {
    pub(super) fn new() -> Self {
        let bytes = IntCounter::new("dormer_scrub_bytes_total", "Stored bytes that scrubs read and checked");
        let damaged =
            Opts::new("dormer_scrub_damaged_total", "Packs, chunks and NARs that scrubs found damaged");
        let last_damaged = Opts::new(
            "dormer_scrub_last_damaged",
            "Packs, chunks and NARs that the last scrub found damaged, whichever process ran it",
        );
        let ended_at = IntGauge::new(
            "dormer_scrub_last_end_timestamp_seconds",
            "When the last scrub ended, whichever process ran it; 0 before the first",
        );
        let metrics = Self {
            bytes: bytes.expect("well-formed names"),
            damaged: IntCounterVec::new(damaged, &["what"]).expect("well-formed names"),
            last_damaged: IntGaugeVec::new(last_damaged, &["what"]).expect("well-formed names"),
            ended_at: ended_at.expect("well-formed names"),
        };
        for what in ["pack", "chunk", "nar"] {
            metrics.damaged.with_label_values(&[what]);
            metrics.last_damaged.with_label_values(&[what]);
        }
        metrics
    }

    pub(super) fn count_read(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }

    pub(super) fn count_damage(&self, what: &str, count: u64) {
        self.damaged.with_label_values(&[what]).inc_by(count);
    }

    /// Shows the last scrub, which may be one of another process.
    pub(super) fn show(&self, last: &EndedScrub) {
        let report = &last.report;
        for (what, count) in [
            ("pack", report.packs_lost + report.packs_damaged),
            ("chunk", report.chunks_damaged),
            ("nar", report.nars_damaged),
        ] {
            self.last_damaged.with_label_values(&[what]).set(gauge_value(count));
        }
        self.ended_at.set(last.ended_at);
    }

    fn all(&self) -> [&dyn MetricSource; 4] {
        [&self.bytes, &self.damaged, &self.last_damaged, &self.ended_at]
    }
}

impl MetricSource for ScrubMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(MetricSource::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.all().into_iter().flat_map(MetricSource::collect).collect()
    }
}
