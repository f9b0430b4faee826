//! What was asked of a store: plain numbers, for whoever shows them.
//!
//! They count requests on the wire, where each is made: pages of a listing, and requests for credentials, too. Numbers that are
//! read one after the other may differ by a request that ended in between.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets of latencies; what took longer is in one more.
pub const LATENCY_BOUNDS: [Duration; 13] = [
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// GET of an object or a part of it, and of listings.
    Get,
    /// HEAD.
    Head,
    /// PUT.
    Put,
    /// DELETE.
    Delete,
    /// POST: uploads in parts begin and end by it, and some give out credentials.
    Post,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Get, Self::Head, Self::Put, Self::Delete, Self::Post];

    /// In lower case, as a metric's label.
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
    /// Another 5xx: the store has an error of its own.
    Broken,
    /// No answer: no connection, one that broke, or not in time.
    NoAnswer,
    /// 401, 403, or another 4xx that says something about the request. 404 and 416 are no failures.
    Refused,
}

impl Failure {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Throttled, Self::Broken, Self::NoAnswer, Self::Refused];

    /// In lower case, as a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Throttled => "throttled",
            Failure::Broken => "broken",
            Failure::NoAnswer => "no_answer",
            Failure::Refused => "refused",
        }
    }

    /// What a status says; none for an answer that never came.
    pub(crate) fn of(status: Option<u16>) -> Option<Self> {
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

/// Requests to a store, from the start of the program on. Shared by the store and its wrappers.
#[derive(Debug, Default)]
pub struct Counters {
    methods: [OfMethod; Method::ALL.len()],
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    limit: AtomicU64,
}

#[derive(Debug, Default)]
struct OfMethod {
    requests: AtomicU64,
    retries: AtomicU64,
    failures: [AtomicU64; Failure::ALL.len()],
    latencies: [AtomicU64; LATENCY_BOUNDS.len() + 1],
    latency_micros: AtomicU64,
}

impl Counters {
    /// Requests of a kind, whatever came of them.
    pub fn requests(&self, method: Method) -> u64 {
        read(&self.of(method).requests)
    }

    /// How many of them repeated a call that had failed.
    pub fn retries(&self, method: Method) -> u64 {
        read(&self.of(method).retries)
    }

    /// How many of them failed in this way.
    pub fn failures(&self, method: Method, failure: Failure) -> u64 {
        read(&self.of(method).failures[failure as usize])
    }

    /// Requests of all kinds that were answered, and not by a failure.
    pub fn answers(&self) -> u64 {
        let of = |counts: &OfMethod| {
            let failures: u64 = counts.failures.iter().map(read).sum();
            read(&counts.requests).saturating_sub(failures)
        };
        self.methods.iter().map(of).sum()
    }

    /// Requests by the time until the head of their answer was there, in the buckets of [`LATENCY_BOUNDS`] and one for what took
    /// longer. Not cumulative.
    pub fn latencies(&self, method: Method) -> [u64; LATENCY_BOUNDS.len() + 1] {
        self.of(method).latencies.each_ref().map(read)
    }

    /// Sum of those times.
    pub fn latency_sum(&self, method: Method) -> Duration {
        Duration::from_micros(read(&self.of(method).latency_micros))
    }

    /// Bytes of objects that were stored.
    pub fn bytes_sent(&self) -> u64 {
        read(&self.bytes_sent)
    }

    /// Bytes of objects that were read.
    pub fn bytes_received(&self) -> u64 {
        read(&self.bytes_received)
    }

    /// Calls that may run at once at present; 0 without a limit.
    pub fn limit(&self) -> u64 {
        read(&self.limit)
    }

    pub(crate) fn requested(&self, method: Method, latency: Duration, status: Option<u16>) {
        let counts = self.of(method);
        counts.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(failure) = Failure::of(status) {
            counts.failures[failure as usize].fetch_add(1, Ordering::Relaxed);
        }
        let bucket = LATENCY_BOUNDS.partition_point(|bound| *bound < latency);
        counts.latencies[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        counts.latency_micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub(crate) fn retried(&self, method: Method) {
        self.of(method).retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.bytes_received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn limited(&self, limit: usize) {
        self.limit.store(limit as u64, Ordering::Relaxed);
    }

    fn of(&self, method: Method) -> &OfMethod {
        &self.methods[method as usize]
    }
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
