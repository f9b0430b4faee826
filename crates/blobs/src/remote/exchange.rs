//! What happened on the wire: counted for all calls, remembered for the one that is under way.
//!
//! The library tells neither the status nor `Retry-After` of a failed request, so we stand between it and its HTTP client.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};

tokio::task_local! {
    static LAST: Cell<Exchange>;
}

/// The last answer of a call.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Exchange {
    /// Its status; none if no answer came.
    pub(super) status: Option<u16>,
    /// How long the store wants to be left alone.
    pub(super) retry_after: Option<Duration>,
    /// The store's clock.
    pub(super) date: Option<SystemTime>,
}

/// Runs a call and tells its last exchange.
pub(super) async fn watched<T>(call: impl Future<Output = T>) -> (T, Exchange) {
    LAST.scope(Cell::new(Exchange::default()), async {
        let outcome = call.await;
        (outcome, LAST.with(Cell::get))
    })
    .await
}

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// GET of an object or a part of it, and of listings.
    Get,
    /// HEAD.
    Head,
    /// PUT.
    Put,
    /// DELETE, and POST where a store deletes by it.
    Delete,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Get, Self::Head, Self::Put, Self::Delete];

    /// In lower case, as a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "get",
            Method::Head => "head",
            Method::Put => "put",
            Method::Delete => "delete",
        }
    }

    fn of(request: &HttpRequest) -> Self {
        match request.method().as_str() {
            "HEAD" => Method::Head,
            "PUT" => Method::Put,
            "GET" => Method::Get,
            _ => Method::Delete,
        }
    }
}

/// Requests to a store, from the start of the program on.
#[derive(Debug, Default)]
pub struct Counters {
    requests: [AtomicU64; 4],
    failures: [AtomicU64; 4],
    throttled: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
}

impl Counters {
    /// Requests of a kind, whatever came of them.
    pub fn requests(&self, method: Method) -> u64 {
        self.requests[method as usize].load(Ordering::Relaxed)
    }

    /// Requests of a kind that had no answer, or one of 5xx, 408 or 429.
    pub fn failures(&self, method: Method) -> u64 {
        self.failures[method as usize].load(Ordering::Relaxed)
    }

    /// Answers of 429 and 503.
    pub fn throttled(&self) -> u64 {
        self.throttled.load(Ordering::Relaxed)
    }

    /// Bytes of objects that were stored.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::Relaxed)
    }

    /// Bytes of objects that were read.
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received.load(Ordering::Relaxed)
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.bytes_received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Makes clients that count.
#[derive(Debug)]
pub(super) struct Connector(pub(super) Arc<Counters>);

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Watcher { client, counters: Arc::clone(&self.0) }))
    }
}

#[derive(Debug)]
struct Watcher {
    client: HttpClient,
    counters: Arc<Counters>,
}

#[async_trait]
impl HttpService for Watcher {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let method = Method::of(&request);
        self.counters.requests[method as usize].fetch_add(1, Ordering::Relaxed);
        let answer = self.client.execute(request).await;
        let exchange = match &answer {
            Ok(response) => Exchange {
                status: Some(response.status().as_u16()),
                retry_after: response
                    .headers()
                    .get("retry-after")
                    .and_then(|value| value.to_str().ok()?.parse().ok())
                    .map(Duration::from_secs),
                date: response
                    .headers()
                    .get("date")
                    .and_then(|value| httpdate::parse_http_date(value.to_str().ok()?).ok()),
            },
            Err(_) => Exchange::default(),
        };
        if exchange.status.is_none_or(|status| matches!(status, 408 | 429 | 500..)) {
            self.counters.failures[method as usize].fetch_add(1, Ordering::Relaxed);
        }
        if matches!(exchange.status, Some(429 | 503)) {
            self.counters.throttled.fetch_add(1, Ordering::Relaxed);
        }
        // Requests for credentials may come from a task of the library's own.
        let _ = LAST.try_with(|last| last.set(exchange));
        answer
    }
}
