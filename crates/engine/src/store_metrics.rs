//! What is asked of an object store over a network, as metrics. The store counts for itself; here its counts are written down when
//! somebody looks. A local store has none.

use std::collections::HashMap;

use dormer_blobs::{Counters, Failure, LATENCY_BOUNDS, Method};
use prometheus::core::Desc;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// The names, in the order in which they are written.
const METRICS: [(&str, &str, &[&str]); 7] = [
    (
        "dormer_store_requests_total",
        "Requests to the object store, whatever came of them; none are counted for a local one",
        &["method"],
    ),
    (
        "dormer_store_retries_total",
        "Requests to the object store that repeated one which had failed",
        &["method"],
    ),
    (
        "dormer_store_failures_total",
        "Requests to the object store that failed: throttled (429, 503), broken (another 5xx), no_answer, refused (another 4xx)",
        &["method", "failure"],
    ),
    (
        "dormer_store_request_duration_seconds",
        "Time from a request to the object store to the head of its answer",
        &["method"],
    ),
    ("dormer_store_sent_bytes_total", "Bytes of packs sent to the object store", &[]),
    ("dormer_store_received_bytes_total", "Bytes of packs read from the object store", &[]),
    (
        "dormer_store_requests_limit",
        "Requests to the object store that may run at once at present: fewer while it is busy",
        &[],
    ),
];

/// Describes the metrics of a store.
#[derive(Debug)]
pub(crate) struct StoreMetrics(Vec<Desc>);

impl StoreMetrics {
    pub(crate) fn new() -> Self {
        let desc = |(name, help, labels): (&str, &str, &[&str])| {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            let desc = Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new());
            desc.expect("names and labels are written in this file and are well formed")
        };
        Self(METRICS.into_iter().map(desc).collect())
    }

    pub(crate) fn desc(&self) -> Vec<&Desc> {
        self.0.iter().collect()
    }

    /// What a store counted so far.
    pub(crate) fn collect(&self, counters: Option<&Counters>) -> Vec<MetricFamily> {
        let Some(counters) = counters else { return Vec::new() };
        let by_method = |count: &dyn Fn(Method) -> u64| {
            Method::ALL.map(|method| counted(&[("method", method.name())], count(method))).to_vec()
        };
        let failures = Method::ALL.into_iter().flat_map(|method| {
            Failure::ALL.map(|failure| {
                let labels = [("method", method.name()), ("failure", failure.name())];
                counted(&labels, counters.failures(method, failure))
            })
        });
        let latencies = Method::ALL.map(|method| latencies(counters, method));
        let mut limit = Metric::default();
        let mut gauge = Gauge::default();
        gauge.set_value(number(counters.limit()));
        limit.set_gauge(gauge);
        let metrics: [(MetricType, Vec<Metric>); 7] = [
            (MetricType::COUNTER, by_method(&|method| counters.requests(method))),
            (MetricType::COUNTER, by_method(&|method| counters.retries(method))),
            (MetricType::COUNTER, failures.collect()),
            (MetricType::HISTOGRAM, latencies.to_vec()),
            (MetricType::COUNTER, vec![counted(&[], counters.bytes_sent())]),
            (MetricType::COUNTER, vec![counted(&[], counters.bytes_received())]),
            (MetricType::GAUGE, vec![limit]),
        ];
        let family = |(desc, (kind, metrics)): (&Desc, (MetricType, Vec<Metric>))| {
            let mut family = MetricFamily::default();
            family.set_name(desc.fq_name.clone());
            family.set_help(desc.help.clone());
            family.set_field_type(kind);
            family.set_metric(metrics);
            family
        };
        self.0.iter().zip(metrics).map(family).collect()
    }
}

#[expect(clippy::cast_precision_loss, reason = "2^53 requests or bytes are far away")]
fn number(count: u64) -> f64 {
    count as f64
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let label = |(name, value): &(&str, &str)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value((*value).to_owned());
        label
    };
    let mut labels: Vec<LabelPair> = labels.iter().map(label).collect();
    labels.sort_by(|a, b| a.name().cmp(b.name()));
    let mut metric = Metric::default();
    metric.set_label(labels);
    metric
}

fn counted(labels: &[(&str, &str)], count: u64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(number(count));
    let mut metric = labelled(labels);
    metric.set_counter(counter);
    metric
}

fn latencies(counters: &Counters, method: Method) -> Metric {
    let mut cumulative = 0;
    let counts = counters.latencies(method);
    let buckets = LATENCY_BOUNDS.iter().zip(counts).map(|(bound, count)| {
        cumulative += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound.as_secs_f64());
        bucket.set_cumulative_count(cumulative);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(counts.iter().sum());
    histogram.set_sample_sum(counters.latency_sum(method).as_secs_f64());
    let mut metric = labelled(&[("method", method.name())]);
    metric.set_histogram(histogram);
    metric
}
