//! The listener for operators: `/metrics` and the probes. It is apart from the clients' listener,
//! so that nobody on the internet reads it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormer_http_host::{HostSettings, Peer, Probe, Probes, Service, text};
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;

use crate::app::App;

/// Readers at once. One or two Prometheus servers and a prober ask every few seconds.
const READERS_MAX: usize = 16;

/// How long a reader may send nothing of a head, or take nothing of an answer.
const READER_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest head of a request, in bytes. Scrapers send a few short headers.
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// What the listener serves.
pub(crate) struct MetricsPage {
    app: Arc<App>,
}

impl MetricsPage {
    pub(crate) fn new(app: Arc<App>) -> Self {
        Self { app }
    }

    pub(crate) fn host_settings() -> HostSettings {
        HostSettings {
            connections_max: READERS_MAX,
            header_bytes_max: HEADER_BYTES_MAX,
            header_timeout: READER_TIMEOUT,
            write_idle_timeout: READER_TIMEOUT,
            drain_delay: Duration::ZERO,
            shutdown_timeout: Duration::ZERO,
        }
    }

    async fn respond(&self, request: &Request<Incoming>) -> Response<UnsyncBoxBody<Bytes, io::Error>> {
        let path = request.uri().path();
        let probe = Probe::parse(path);
        if probe.is_none() && path != "/metrics" {
            return text(StatusCode::NOT_FOUND, "there are only /metrics, /healthz and /readyz here\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "this address is read with GET\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match probe {
            Some(probe) => self.app.probes.answer(probe).await,
            None => self.page().await,
        }
    }

    async fn page(&self) -> Response<UnsyncBoxBody<Bytes, io::Error>> {
        let metrics = &self.app.metrics;
        metrics.refresh().await;
        match metrics.render() {
            Ok(page) => {
                let mut response = text(StatusCode::OK, page);
                let format = HeaderValue::from_static(prometheus::TEXT_FORMAT);
                response.headers_mut().insert(CONTENT_TYPE, format);
                response
            }
            Err(error) => {
                tracing::error!(error = dormer_nix::with_causes(&error), "failed to write the metrics");
                text(StatusCode::INTERNAL_SERVER_ERROR, "internal error: the server's log has more\n")
            }
        }
    }
}

impl Service for MetricsPage {
    type Body = UnsyncBoxBody<Bytes, io::Error>;

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Self::Body> {
        let mut response = self.respond(&request).await;
        // Readers come seconds apart; a connection that is kept meanwhile would take a place from
        // another reader.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }

    /// The probes and the scrapers of a cluster may come from one address.
    fn is_shared(&self, _peer: &Peer) -> bool {
        true
    }

    async fn refuse(self: Arc<Self>, request: Request<Incoming>) -> Response<Self::Body> {
        Probes::refuse(request.uri().path())
    }

    fn probes(&self) -> &Probes {
        &self.app.probes
    }
}
