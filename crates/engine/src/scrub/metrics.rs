//! What scrubs of this process did.

use dormer_index::UnixSeconds;
use prometheus::core::{Collector as MetricSource, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};

/// Counters of the scrub.
#[derive(Debug, Clone)]
pub struct ScrubMetrics {
    bytes: IntCounter,
    damaged: IntCounterVec,
    ended_at: IntGauge,
}

impl ScrubMetrics {
    pub(super) fn new() -> Self {
        let bytes = IntCounter::new("dormer_scrub_bytes_total", "Stored bytes that scrubs read and checked");
        let damaged =
            Opts::new("dormer_scrub_damaged_total", "Packs, chunks and NARs that scrubs found damaged");
        let ended_at = IntGauge::new(
            "dormer_scrub_last_end_timestamp_seconds",
            "When the last scrub ended in this process; 0 before the first",
        );
        let metrics = Self {
            bytes: bytes.expect("well-formed names"),
            damaged: IntCounterVec::new(damaged, &["what"]).expect("well-formed names"),
            ended_at: ended_at.expect("well-formed names"),
        };
        for what in ["pack", "chunk", "nar"] {
            metrics.damaged.with_label_values(&[what]);
        }
        metrics
    }

    pub(super) fn count_read(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }

    pub(super) fn count_damage(&self, what: &str, count: u64) {
        self.damaged.with_label_values(&[what]).inc_by(count);
    }

    pub(super) fn count_end(&self, now: UnixSeconds) {
        self.ended_at.set(now);
    }

    fn all(&self) -> [&dyn MetricSource; 3] {
        [&self.bytes, &self.damaged, &self.ended_at]
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
