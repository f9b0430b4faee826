//! Counts of requests to a store, as metrics.
//!
//! They count requests on the wire, where each one is made. Pages of a listing and requests for
//! credentials are included. Two numbers that are read one after the other may differ by a request
//! that ended in between.

use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts};

/// Upper bounds of the buckets of latencies, in seconds.
const LATENCY_BOUNDS: [f64; 13] =
    [0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// GET of an object, of a part of an object, or of a listing.
    Get,
    /// HEAD.
    Head,
    /// PUT.
    Put,
    /// DELETE.
    Delete,
    /// POST. Uploads in parts begin and end by a POST, and some services give out credentials by
    /// one.
    Post,
}

impl Method {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Get, Self::Head, Self::Put, Self::Delete, Self::Post];

    /// The name in lower case, as the label of a metric.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "get",
            Method::Head => "head",
            Method::Put => "put",
            Method::Delete => "delete",
            Method::Post => "post",
        }
    }
}

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// 429 or 503: the store asks for fewer requests.
    Throttled,
    /// Another 5xx: the store failed on its side.
    Broken,
    /// No answer: no connection, a broken connection, or a time-out.
    NoAnswer,
    /// 401, 403, or another 4xx that rejects the request. 404 and 416 are answers and not failures.
    Refused,
}

impl Failure {
    /// All ways to fail.
    pub const ALL: [Self; 4] = [Self::Throttled, Self::Broken, Self::NoAnswer, Self::Refused];

    /// The name in lower case, as the label of a metric.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Throttled => "throttled",
            Failure::Broken => "broken",
            Failure::NoAnswer => "no_answer",
            Failure::Refused => "refused",
        }
    }

    /// The failure that a status reports. `None` as the status means that no answer came.
    fn of(status: Option<u16>) -> Option<Self> {
        match status {
            None => Some(Self::NoAnswer),
            Some(429 | 503) => Some(Self::Throttled),
            Some(408 | 500..) => Some(Self::Broken),
            Some(404 | 416) => None,
            Some(400..) => Some(Self::Refused),
            Some(_) => None,
        }
    }
}

/// Requests to one store since the program started.
#[derive(Debug)]
pub struct Counters {
    requests: IntCounterVec,
    retries: IntCounterVec,
    failures: IntCounterVec,
    durations: HistogramVec,
    bytes_sent: IntCounter,
    bytes_received: IntCounter,
    limit: IntGauge,
}

impl Default for Counters {
    /// All at zero, with all labels present.
    fn default() -> Self {
        let this = Self {
            requests: counter_vec(
                "dormer_store_requests_total",
                "Requests to the object store, whatever came of them; none are counted for a local one",
                &["method"],
            ),
            retries: counter_vec(
                "dormer_store_retries_total",
                "Requests to the object store that repeated one which had failed",
                &["method"],
            ),
            failures: counter_vec(
                "dormer_store_failures_total",
                "Requests to the object store that failed: throttled (429, 503), broken (another 5xx), no_answer, refused (another 4xx)",
                &["method", "failure"],
            ),
            durations: HistogramVec::new(
                HistogramOpts::new(
                    "dormer_store_request_duration_seconds",
                    "Time from a request to the object store to the head of its answer",
                )
                .buckets(LATENCY_BOUNDS.to_vec()),
                &["method"],
            )
            .expect(WELL_FORMED),
            bytes_sent: IntCounter::new(
                "dormer_store_sent_bytes_total",
                "Bytes of packs sent to the object store",
            )
            .expect(WELL_FORMED),
            bytes_received: IntCounter::new(
                "dormer_store_received_bytes_total",
                "Bytes of packs read from the object store",
            )
            .expect(WELL_FORMED),
            limit: IntGauge::new(
                "dormer_store_requests_limit",
                "Requests to the object store that may run at once at present: fewer while it is busy",
            )
            .expect(WELL_FORMED),
        };
        for method in Method::ALL {
            this.requests.with_label_values(&[method.name()]);
            this.retries.with_label_values(&[method.name()]);
            this.durations.with_label_values(&[method.name()]);
            for failure in Failure::ALL {
                this.failures.with_label_values(&[method.name(), failure.name()]);
            }
        }
        this
    }
}

const WELL_FORMED: &str = "names and labels are written in this file and are well formed";

fn counter_vec(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), labels).expect(WELL_FORMED)
}

impl Counters {
    /// Requests of a kind, whatever came of them.
    pub fn requests(&self, method: Method) -> u64 {
        self.requests.with_label_values(&[method.name()]).get()
    }

    /// How many of these requests repeated a call that had failed.
    pub fn retries(&self, method: Method) -> u64 {
        self.retries.with_label_values(&[method.name()]).get()
    }

    /// How many of these requests failed in this way.
    pub fn failures(&self, method: Method, failure: Failure) -> u64 {
        self.failures.with_label_values(&[method.name(), failure.name()]).get()
    }

    /// Requests of all kinds that the store answered, failures excluded.
    pub fn answers(&self) -> u64 {
        let of = |method| {
            let failures: u64 = Failure::ALL.into_iter().map(|failure| self.failures(method, failure)).sum();
            self.requests(method).saturating_sub(failures)
        };
        Method::ALL.into_iter().map(of).sum()
    }

    /// Bytes of objects that were stored.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent.get()
    }

    /// Bytes of objects that were read.
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received.get()
    }

    /// Calls that may run at once at present; 0 without a limit.
    pub fn limit(&self) -> u64 {
        self.limit.get().unsigned_abs()
    }

    pub(crate) fn requested(&self, method: Method, latency: Duration, status: Option<u16>) {
        self.requests.with_label_values(&[method.name()]).inc();
        if let Some(failure) = Failure::of(status) {
            self.failures.with_label_values(&[method.name(), failure.name()]).inc();
        }
        self.durations.with_label_values(&[method.name()]).observe(latency.as_secs_f64());
    }

    pub(crate) fn retried(&self, method: Method) {
        self.retries.with_label_values(&[method.name()]).inc();
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.bytes_sent.inc_by(bytes as u64);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.bytes_received.inc_by(bytes as u64);
    }

    pub(crate) fn limited(&self, limit: usize) {
        self.limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
    }

    fn all(&self) -> [&dyn Collector; 7] {
        [
            &self.requests,
            &self.retries,
            &self.failures,
            &self.durations,
            &self.bytes_sent,
            &self.bytes_received,
            &self.limit,
        ]
    }
}

impl Collector for Counters {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.all().into_iter().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_failure_or_an_answer() {
        let counters = Counters::default();
        let statuses =
            [Some(200), Some(404), Some(416), Some(429), Some(503), Some(500), Some(408), Some(403), None];
        for status in statuses {
            counters.requested(Method::Get, Duration::from_millis(3), status);
        }
        let failures = Failure::ALL.map(|failure| counters.failures(Method::Get, failure));
        assert_eq!((failures, counters.answers()), ([2, 2, 1, 1], 3));
        let families = counters.collect();
        let latency = families.iter().find(|family| family.name().ends_with("_seconds")).unwrap();
        let get = latency.get_metric().iter().find(|metric| metric.get_label()[0].value() == "get").unwrap();
        let counts: Vec<u64> = get
            .get_histogram()
            .get_bucket()
            .iter()
            .map(prometheus::proto::Bucket::cumulative_count)
            .collect();
        assert_eq!(counts[..3], [0, 0, 9], "3 ms lie in the bucket that ends at 5 ms");
    }

    #[test]
    fn all_labels_are_present_before_the_first_request() {
        let counted: usize =
            Counters::default().collect().iter().map(|family| family.get_metric().len()).sum();
        assert_eq!(counted, 5 + 5 + 20 + 5 + 3);
    }
}
