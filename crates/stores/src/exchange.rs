//! What happened on the wire: counted for all calls, remembered for the call that is under way.
//!
//! The library tells neither the status nor `Retry-After` of a failed request, so this module
//! stands between the library and its HTTP client.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use reqwest::Certificate;

use crate::client::{Redirected, client};
use crate::counters::{Counters, Method};
use crate::limit::{Limit, Load};
use crate::window::WriteWindow;

tokio::task_local! {
    static LAST: Cell<Exchange>;
    static TRIES: TryRules;
}

/// The last answer to a call.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Exchange {
    /// Status of the answer; `None` if no answer came.
    pub(crate) status: Option<u16>,
    /// How long the store asks not to be called.
    pub(crate) retry_after: Option<Duration>,
    /// The store's clock.
    pub(crate) date: Option<SystemTime>,
    /// SHA-256 of the request's body, if the request was signed over it.
    pub(crate) body_sha256: Option<[u8; 32]>,
}

/// Runs a call and returns its last exchange.
pub(crate) async fn watched<T>(call: impl Future<Output = T>) -> (T, Exchange) {
    LAST.scope(Cell::new(Exchange::default()), async {
        let outcome = call.await;
        (outcome, LAST.with(Cell::get))
    })
    .await
}

/// Rules for each try of a request that the library repeats.
#[derive(Debug, Clone, Default)]
pub(crate) struct TryRules {
    /// No try begins once it is closed.
    pub(crate) window: Option<Arc<WriteWindow>>,
    /// Each try waits for its turn, and tells how much the store bears.
    pub(crate) limit: Option<Arc<Limit>>,
}

/// The same for a call whose requests the library repeats, by these rules.
pub(crate) async fn watched_by<T>(rules: TryRules, call: impl Future<Output = T>) -> (T, Exchange) {
    TRIES.scope(rules, watched(call)).await
}

/// Makes HTTP clients that count, and follow no redirect.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connector {
    pub(crate) counters: Arc<Counters>,
    /// Of the store's own authority.
    pub(crate) certificates: Vec<Certificate>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = HttpClient::new(client(options, &self.certificates)?);
        Ok(HttpClient::new(Watcher { client, counters: Arc::clone(&self.counters) }))
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
        let TryRules { window, limit } = TRIES.try_with(Clone::clone).unwrap_or_default();
        let attempt = self.execute(request, window.as_deref());
        match limit {
            Some(limit) => limit.run_try(attempt, load_of).await,
            None => attempt.await,
        }
    }
}

impl Watcher {
    async fn execute(
        &self,
        request: HttpRequest,
        window: Option<&WriteWindow>,
    ) -> Result<HttpResponse, HttpError> {
        let (method, begin) = (method_of(&request), Instant::now());
        let body_sha256 = request.headers().get("x-amz-content-sha256").and_then(|value| {
            let mut digest = [0; 32];
            // Where bodies are not signed, this header holds a word.
            hex::decode_to_slice(value.as_bytes(), &mut digest).ok().map(|()| digest)
        });
        if window.is_some_and(|window| !window.is_open()) {
            let closed = io::Error::other("the right to write ended before this try");
            return Err(HttpError::new(HttpErrorKind::Unknown, closed));
        }
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
                body_sha256,
            },
            Err(_) => Exchange::default(),
        };
        self.counters.requested(method, begin.elapsed(), exchange.status);
        // Requests for credentials may come from a task of the library's own, where no call is
        // watched.
        let _ = LAST.try_with(|last| last.set(exchange));
        match answer {
            Ok(response) => match Redirected::of(&response) {
                Some(redirected) => Err(HttpError::new(HttpErrorKind::Unknown, redirected)),
                None => Ok(response),
            },
            Err(error) => Err(error),
        }
    }
}

/// What a try says of the load that the store bears.
fn load_of(answer: &Result<HttpResponse, HttpError>) -> Load {
    match answer {
        Ok(response) => match response.status().as_u16() {
            429 | 503 => Load::TooMuch,
            200..=299 => Load::Fine,
            _ => Load::Unknown,
        },
        Err(error) if error.kind() == HttpErrorKind::Timeout => Load::TooMuch,
        Err(_) => Load::Unknown,
    }
}

fn method_of(request: &HttpRequest) -> Method {
    match request.method().as_str() {
        "HEAD" => Method::Head,
        "PUT" => Method::Put,
        "GET" => Method::Get,
        "DELETE" => Method::Delete,
        _ => Method::Post,
    }
}
