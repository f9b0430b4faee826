//! The listener of `/metrics`: apart from the other, so that what operators read is not on the internet.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::body::{self, Body};
use crate::metrics::Metrics;

/// Readers at once; more wait in the kernel's queue. A Prometheus or two ask every few seconds.
const READERS_MAX: usize = 16;

/// How long a reader may take for everything.
const READER_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves `/metrics` for as long as it is polled.
pub async fn serve_metrics(listener: TcpListener, metrics: Arc<Metrics>) -> Infallible {
    let readers = Arc::new(Semaphore::new(READERS_MAX));
    loop {
        let reader = Arc::clone(&readers).acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection for metrics");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let metrics = Arc::clone(&metrics);
                async move { Ok::<_, Infallible>(answer(&metrics, &request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Who left, or took too long, will come again.
            let _ = tokio::time::timeout(READER_TIMEOUT, connection).await;
            drop(reader);
        });
    }
}

async fn answer(metrics: &Metrics, request: &Request<Incoming>) -> Response<Body> {
    if request.uri().path() != "/metrics" {
        return body::text(StatusCode::NOT_FOUND, "there is only /metrics here\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = body::text(StatusCode::METHOD_NOT_ALLOWED, "this address is read with GET\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    metrics.refresh().await;
    match metrics.render() {
        Ok(page) => {
            let mut response = body::text(StatusCode::OK, page);
            let format = HeaderValue::from_static(prometheus::TEXT_FORMAT);
            response.headers_mut().insert(CONTENT_TYPE, format);
            response
        }
        Err(error) => {
            tracing::error!(error = crate::failure::with_causes(&error), "failed to write the metrics");
            body::text(StatusCode::INTERNAL_SERVER_ERROR, "internal error: the server's log has more\n")
        }
    }
}
