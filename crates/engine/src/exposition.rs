//! The engine as a source of metrics.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use crate::Engine;

// The gauges are written when the metrics are collected.
impl Collector for Engine {
    fn desc(&self) -> Vec<&Desc> {
        let own = self.metrics().all().flat_map(Collector::desc);
        own.chain(self.metrics().store.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.write_gauges();
        let own = self.metrics().all().flat_map(Collector::collect);
        own.chain(self.blobs().counters().map(Collector::collect).unwrap_or_default()).collect()
    }
}
