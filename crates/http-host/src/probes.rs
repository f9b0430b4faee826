//! Whether this process can serve. Load balancers ask often, and anybody may ask.
//!
//! Invariants
//! - Being busy is not being away. A process is ready while the parts that it needs answer others,
//!   even if this question itself waits. Otherwise all replicas would leave service at once, when
//!   they are needed most.
//! - However many ask, the check runs at most once a second, and one run at a time.
//! - From the moment that the host is asked to stop, the answer is "no".

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long the outcome of a check is remembered.
const REMEMBERED: Duration = Duration::from_secs(1);

/// Seconds after which a refused client may ask again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("5");

/// A question about the process itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// `/healthz`: whether the process answers at all.
    Alive,
    /// `/readyz`: whether requests should be sent here.
    Ready,
}

impl Probe {
    /// Reads a path.
    pub fn parse(path: &str) -> Option<Self> {
        match path {
            "/healthz" => Some(Self::Alive),
            "/readyz" => Some(Self::Ready),
            _ => None,
        }
    }
}

/// Why the process is not ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not ready: {0}")]
pub struct NotReady(pub &'static str);

const STOPPING: NotReady = NotReady("the server is stopping");

/// A check under way. It limits its own time.
pub type CheckFuture = Pin<Box<dyn Future<Output = Result<(), NotReady>> + Send>>;

/// Answers to probes.
pub struct Probes {
    is_stopping: AtomicBool,
    check: Box<dyn Fn() -> CheckFuture + Send + Sync>,
    last: Arc<Mutex<Option<Outcome>>>,
}

#[derive(Debug, Clone, Copy)]
struct Outcome {
    at: Instant,
    result: Result<(), NotReady>,
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes").field("is_stopping", &self.is_stopping).finish_non_exhaustive()
    }
}

impl Probes {
    /// Asks `check` whether everything that the process needs is there.
    pub fn new(check: impl Fn() -> CheckFuture + Send + Sync + 'static) -> Self {
        Self { is_stopping: AtomicBool::new(false), check: Box::new(check), last: Arc::default() }
    }

    /// From now on the process is not ready, though it still serves.
    pub fn begin_stopping(&self) {
        self.is_stopping.store(true, Ordering::Release);
    }

    /// Whether the process was asked to stop.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Whether the process is ready, as of the last second.
    pub async fn check(&self) -> Result<(), NotReady> {
        if self.is_stopping() {
            return Err(STOPPING);
        }
        // A caller that comes during a check waits here for its outcome.
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some(outcome) = *last
            && outcome.at.elapsed() < REMEMBERED
        {
            return outcome.result;
        }
        let check = (self.check)();
        // A task of its own: if the client leaves, the next client does not start another check.
        let check = tokio::spawn(async move {
            let result = check.await;
            *last = Some(Outcome { at: Instant::now(), result });
            result
        });
        // The task neither panics nor is it aborted, unless the run time ends.
        check.await.unwrap_or(Err(STOPPING))
    }

    /// Answers a probe.
    pub async fn answer(&self, probe: Probe) -> Response<UnsyncBoxBody<Bytes, io::Error>> {
        match probe {
            Probe::Alive => text(StatusCode::OK, "ok\n"),
            Probe::Ready => match self.check().await {
                Ok(()) => text(StatusCode::OK, "ready\n"),
                Err(reason) => unavailable(format!("{reason}\n")),
            },
        }
    }

    /// The answer to a request for which no connection is free: only `/healthz` is answered as
    /// always.
    pub fn refuse(path: &str) -> Response<UnsyncBoxBody<Bytes, io::Error>> {
        match Probe::parse(path) {
            Some(Probe::Alive) => text(StatusCode::OK, "ok\n"),
            Some(Probe::Ready) | None => unavailable("too many connections at once\n"),
        }
    }
}

/// Plain text with a status, which no cache keeps.
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<UnsyncBoxBody<Bytes, io::Error>> {
    let body = Full::new(text.into()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn unavailable(reason: impl Into<Bytes>) -> Response<UnsyncBoxBody<Bytes, io::Error>> {
    let mut response = text(StatusCode::SERVICE_UNAVAILABLE, reason);
    response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn however_many_ask_a_check_runs_once_a_second() {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let probes = Probes::new(move || {
            let run = counted.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(500)).await;
                if run == 0 { Err(NotReady("the store does not answer")) } else { Ok(()) }
            })
        });
        let asked = futures::future::join_all((0..50).map(|_| probes.check())).await;
        assert!(asked.iter().all(|result| *result == Err(NotReady("the store does not answer"))));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        tokio::time::sleep(REMEMBERED).await;
        assert_eq!(probes.check().await, Ok(()));
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        probes.begin_stopping();
        assert_eq!(probes.check().await, Err(STOPPING));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_leaves_does_not_end_the_check() {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let probes = Probes::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Box::pin(async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                Ok(())
            })
        });
        let left = tokio::time::timeout(Duration::from_millis(10), probes.check()).await;
        assert!(left.is_err());
        assert_eq!(probes.check().await, Ok(()));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }
}
