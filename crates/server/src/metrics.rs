//! The server's counters, and the page that shows all counters of the process.
//!
//! Names, help texts and buckets of HTTP are here, those of the engine in the engine.
//! docs/METRICS.md is made from both.
//!
//! Cardinality is bounded: a label is a route's template, a known method, a status or the name of a
//! limit. No path, token or host becomes a label. A cache becomes one only where it is published,
//! up to a limit.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::figures::Figures;
use crate::process::Process;
use crate::publish_metrics::{PublishMetrics, TargetBacklog};
use crate::route::NARINFO;

/// Latencies, in seconds: a narinfo from memory takes 0.1 ms, a large upload minutes.
const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// All counters of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    described: Mutex<Vec<Described>>,
    pub(crate) http: HttpMetrics,
    publishing: OnceLock<PublishMetrics>,
}

/// One row of docs/METRICS.md.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Described {
    /// Its name; a counter's ends in `_total`.
    pub name: String,
    /// Its labels.
    pub labels: Vec<String>,
    /// What it means, with its unit.
    pub help: String,
}

/// A collector has names that are taken already: a defect of the program.
#[derive(Debug, thiserror::Error)]
#[error("failed to register metrics")]
pub struct RegisterError(#[from] prometheus::Error);

/// The counters of connections and requests.
#[derive(Debug)]
pub(crate) struct HttpMetrics {
    pub(crate) requests: IntCounterVec,
    pub(crate) seconds: HistogramVec,
    pub(crate) in_flight: IntGauge,
    pub(crate) connections: IntGauge,
    pub(crate) received_bytes: IntCounter,
    pub(crate) sent_bytes: IntCounter,
    pub(crate) cut: IntCounter,
    pub(crate) refused: IntCounterVec,
    pub(crate) narinfos: NarinfoMetrics,
}

/// The members of `requests` and `seconds` for the busiest route, so that they are not looked up
/// each time.
#[derive(Debug)]
pub(crate) struct NarinfoMetrics {
    pub(crate) hits: IntCounter,
    pub(crate) misses: IntCounter,
    pub(crate) seconds: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let requests = counters(
            "dormer_http_requests_total",
            "Requests that were answered",
            &["method", "route", "status"],
        );
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "dormer_http_request_duration_seconds",
                "Time from a request's head to the last byte of its answer being handed to the connection",
            )
            .buckets(SECONDS.to_vec()),
            &["method", "route"],
        )
        .expect(WELL_FORMED);
        let http = HttpMetrics {
            narinfos: NarinfoMetrics {
                hits: requests.with_label_values(&["GET", NARINFO, "200"]),
                misses: requests.with_label_values(&["GET", NARINFO, "404"]),
                seconds: seconds.with_label_values(&["GET", NARINFO]),
            },
            requests,
            seconds,
            in_flight: gauge("dormer_http_requests_in_flight", "Requests being answered now"),
            connections: gauge("dormer_http_connections", "Open connections now"),
            received_bytes: counter("dormer_http_received_bytes_total", "Bytes of requests' bodies"),
            sent_bytes: counter("dormer_http_sent_bytes_total", "Bytes of answers' bodies"),
            cut: counter(
                "dormer_http_answers_cut_total",
                "Answers cut short because their bytes turned out bad or unreachable after the 200",
            ),
            refused: counters(
                "dormer_http_refused_total",
                "Requests refused with 429 or 503 because of a limit, by the limit",
                &["limit"],
            ),
        };
        let build = IntGaugeVec::new(
            Opts::new("dormer_build_info", "1; the label says which version runs"),
            &["version"],
        )
        .expect(WELL_FORMED);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            registry: Registry::new(),
            described: Mutex::default(),
            http,
            publishing: OnceLock::new(),
        };
        for collector in metrics.http.collectors() {
            metrics.register(collector).expect(WELL_FORMED);
        }
        metrics.register(Box::new(build)).expect(WELL_FORMED);
        metrics.register(Box::new(Process::new())).expect(WELL_FORMED);
        metrics
    }

    /// Adds the counters of another part: the object store, the database's connections.
    pub fn register(&self, collector: Box<dyn Collector>) -> Result<(), RegisterError> {
        let described = collector.desc().into_iter().map(|desc| Described {
            name: desc.fq_name.clone(),
            labels: desc.variable_labels.clone(),
            help: desc.help.clone(),
        });
        let described: Vec<Described> = described.collect();
        self.registry.register(collector)?;
        self.described.lock().unwrap_or_else(PoisonError::into_inner).extend(described);
        Ok(())
    }

    /// Adds the gauges of edge targets.
    pub(crate) fn register_publishing(&self, publishing: PublishMetrics) -> Result<(), RegisterError> {
        self.register(Box::new(publishing.clone()))?;
        // A second one fails above, because its names are taken.
        let _ = self.publishing.set(publishing);
        Ok(())
    }

    /// Refreshes the gauges that come from the database, before a page is rendered. Never takes
    /// long.
    pub(crate) async fn refresh(&self) {
        if let Some(publishing) = self.publishing.get() {
            publishing.refresh().await;
        }
    }

    /// All metrics as they are now. [`Self::refresh`] brings those from the database up to date.
    pub(crate) fn figures(&self) -> Figures {
        Figures::new(self.registry.gather())
    }

    /// How far edge targets are behind, as of the last refresh; `None` if the database did not say.
    pub(crate) fn publishing(&self) -> Option<Arc<Vec<TargetBacklog>>> {
        self.publishing.get()?.shown()
    }

    /// All names, with their labels and meanings, in order.
    pub fn described(&self) -> Vec<Described> {
        let mut described = self.described.lock().unwrap_or_else(PoisonError::into_inner).clone();
        described.sort();
        described
    }

    /// The page, in Prometheus' text format.
    pub fn render(&self) -> Result<Vec<u8>, RegisterError> {
        let mut page = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut page)?;
        Ok(page)
    }
}

impl HttpMetrics {
    fn collectors(&self) -> [Box<dyn Collector>; 8] {
        [
            Box::new(self.requests.clone()),
            Box::new(self.seconds.clone()),
            Box::new(self.in_flight.clone()),
            Box::new(self.connections.clone()),
            Box::new(self.received_bytes.clone()),
            Box::new(self.sent_bytes.clone()),
            Box::new(self.cut.clone()),
            Box::new(self.refused.clone()),
        ]
    }
}

const WELL_FORMED: &str = "names, labels and buckets are written in this file, are well formed and differ";

fn counter(name: &str, help: &str) -> IntCounter {
    IntCounter::new(name, help).expect(WELL_FORMED)
}

fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), labels).expect(WELL_FORMED)
}

fn gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect(WELL_FORMED)
}
