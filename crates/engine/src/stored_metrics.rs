//! What is stored, in gauges.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormer_index::StoredCounts;
use prometheus::core::{Collector as MetricSource, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts};

use crate::metrics::gauge_value;

/// What the whole installation holds: the same in every replica.
#[derive(Debug, Clone)]
pub struct StoredMetrics {
    counts: IntGaugeVec,
    bytes: IntGaugeVec,
    /// Held while the gauges are written or read, so that nobody sees half of them.
    gauges: Arc<Mutex<()>>,
}

impl StoredMetrics {
    pub(crate) fn new() -> Self {
        let gauge =
            |name, help| IntGaugeVec::new(Opts::new(name, help), &["what"]).expect("well-formed names");
        Self {
            counts: gauge(
                "dormer_stored",
                "Paths, NARs and packs that the installation holds, a minute ago at most",
            ),
            bytes: gauge(
                "dormer_stored_bytes",
                "Bytes of these: paths (a NAR for each path), nars (each once), chunks (in packs, uncompressed), packs (in the store), and what of nars and chunks lies in chunks with holes",
            ),
            gauges: Arc::default(),
        }
    }

    /// Shows these counts, or nothing.
    pub(crate) fn write(&self, counts: Option<&StoredCounts>) {
        let _held = self.hold();
        self.counts.reset();
        self.bytes.reset();
        // A part of it would look like all of it.
        let Some(counts) = counts.filter(|counts| counts.is_complete) else { return };
        for (what, count) in [("paths", counts.paths.paths), ("nars", counts.nars), ("packs", counts.packs)] {
            self.counts.with_label_values(&[what]).set(gauge_value(count));
        }
        for (what, bytes) in [
            ("paths", counts.paths.bytes),
            ("nars", counts.nar_bytes),
            ("nars_with_holes", counts.nar_holed_bytes),
            ("chunks", counts.pack_raw_bytes),
            ("chunks_with_holes", counts.pack_holed_bytes),
            ("packs", counts.pack_bytes),
        ] {
            self.bytes.with_label_values(&[what]).set(gauge_value(bytes));
        }
    }

    fn hold(&self) -> MutexGuard<'_, ()> {
        self.gauges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MetricSource for StoredMetrics {
    fn desc(&self) -> Vec<&Desc> {
        [&self.counts, &self.bytes].into_iter().flat_map(MetricSource::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _held = self.hold();
        [&self.counts, &self.bytes].into_iter().flat_map(MetricSource::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_counted_yet_is_not_shown() {
        let metrics = StoredMetrics::new();
        let series = || metrics.collect().iter().map(|family| family.get_metric().len()).sum::<usize>();
        let counts = StoredCounts { is_complete: true, ..StoredCounts::default() };
        metrics.write(Some(&counts));
        assert_eq!(series(), 9);
        metrics.write(Some(&StoredCounts { is_complete: false, ..counts }));
        assert_eq!(series(), 0);
        metrics.write(Some(&counts));
        metrics.write(None);
        assert_eq!(series(), 0);
    }
}
