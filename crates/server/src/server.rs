//! A server over one engine, and its two listeners: the one for clients and the one for operators.

use std::sync::Arc;

use dormer_engine::Engine;
use dormer_http_host::{Error, Listener, Peer, Probes, Service};
use dormer_index::PublishIndex;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;

use crate::app::App;
use crate::auth::Authenticator;
use crate::exchange::Watched;
use crate::forwarded::is_trusted;
use crate::metrics::{Metrics, RegisterError};
use crate::metrics_page::MetricsPage;
use crate::operations::Operations;
use crate::publish_metrics::PublishMetrics;
use crate::settings::ServerSettings;

/// A server that is ready to run. Clones are one server.
#[derive(Debug, Clone)]
pub struct Server {
    app: Arc<App>,
}

impl Server {
    /// Sets up everything that requests share.
    pub fn new(engine: Engine, authenticator: Authenticator, settings: ServerSettings) -> Self {
        Self { app: Arc::new(App::new(engine, authenticator, settings)) }
    }

    /// The server's counters. Other parts may add theirs.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.app.metrics
    }

    /// Shows at `/metrics` how far edge targets are behind, as the index knows it. Fails the second
    /// time.
    pub fn watch_publishing(&self, state: Arc<dyn PublishIndex>) -> Result<(), RegisterError> {
        let publishing = PublishMetrics::new(self.app.engine.clone(), state);
        self.app.metrics.register_publishing(publishing)
    }

    /// Shows operators these parts of the installation, on pages and by the API. The first call
    /// counts.
    pub fn watch_operations(&self, operations: Operations) {
        let _ = self.app.operations.set(operations);
    }

    /// Serves clients until `shutdown` is ready, then stops; see [`dormer_http_host::serve`].
    ///
    /// The compiler builds a boxed future where it is made. All that a request passes through is
    /// therefore built in this crate, whatever the binary's crate is built for.
    pub fn run(
        self,
        listener: Listener,
        shutdown: BoxFuture<'static, ()>,
    ) -> BoxFuture<'static, Result<(), Error>> {
        let settings = self.app.settings.host();
        Box::pin(dormer_http_host::serve(listener, self.app, settings, shutdown))
    }

    /// Serves operators `/metrics`, `/healthz` and `/readyz` for as long as the future is polled.
    pub fn serve_metrics(&self, listener: Listener) -> BoxFuture<'static, ()> {
        let page = MetricsPage::new(Arc::clone(&self.app));
        Box::pin(async move {
            let serving = dormer_http_host::serve(
                listener,
                Arc::new(page),
                MetricsPage::host_settings(),
                std::future::pending(),
            );
            // Without a shutdown, serving never ends.
            let _ = serving.await;
        })
    }
}

impl Service for App {
    type Body = Watched;

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Watched> {
        self.respond(request).await
    }

    async fn refuse(self: Arc<Self>, request: Request<Incoming>) -> Response<Watched> {
        self.turn_away(request).await
    }

    fn is_shared(&self, peer: &Peer) -> bool {
        peer.is_local() || is_trusted(Some(*peer), &self.settings.trusted_proxies)
    }

    fn probes(&self) -> &Probes {
        &self.probes
    }

    fn others_wait(&self) -> bool {
        self.engine.reads_wait()
    }

    fn connection_opened(&self) {
        self.metrics.http.connections.inc();
    }

    fn connection_closed(&self) {
        self.metrics.http.connections.dec();
    }
}
