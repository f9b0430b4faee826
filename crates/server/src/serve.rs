//! Connections: accepted within a bound, served until they end or the server is asked to stop.
//!
//! Stopping is in three steps, so that no request fails of it: readiness goes down first, while everything is still served;
//! then no more connections are taken; then requests in flight finish. Connections without a request end at once, those that
//! have sent a part of their first one's head get [`HEAD_WAIT_STOPPING`], and `shutdown_timeout` is the limit for all.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dormer_engine::Engine;
use dormer_index::{Index, PublishIndex};
use futures::FutureExt as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use prometheus::IntGauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::app::App;
use crate::auth::Authenticator;
use crate::metrics::{Metrics, RegisterError};
use crate::publish_metrics::PublishMetrics;
use crate::settings::ServerSettings;
use crate::socket::Socket;

/// Bytes that a connection gathers before it writes: some chunks between holes are small, one system call takes several.
const WRITE_BUFFER_BYTES: usize = 256 * 1024;

/// Pause after an accept that failed for want of file descriptors: connections must end before there are more.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections beyond the most allowed that are being told so; more wait in the kernel's queue. Each ends with its answer.
pub const TURNED_AWAY_MAX: usize = 64;

/// How long one that is turned away may take to say what it wants.
const TURN_AWAY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client that has sent a part of its first head may take for the rest, once no more connections are taken: a head
/// is one packet, or two on a slow line. Without this limit, whoever sends half a head holds up the end for `header_timeout`.
const HEAD_WAIT_STOPPING: Duration = Duration::from_secs(5);

/// Why serving did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Requests in flight did not finish within `shutdown_timeout` and were cut. Nothing that was acknowledged is lost.
    #[error("cut {connections} connections whose requests did not end in time")]
    Cut {
        /// How many.
        connections: usize,
    },
}

/// A server that is ready to run.
#[derive(Debug)]
pub struct Server {
    app: Arc<App>,
}

/// Serves until `shutdown` is ready; see [`Server::run`].
pub async fn serve(
    listener: TcpListener,
    engine: Engine,
    authenticator: Authenticator,
    settings: ServerSettings,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    Server::new(engine, authenticator, settings).run(listener, shutdown).await
}

impl Server {
    /// Sets up what all requests share.
    pub fn new(engine: Engine, authenticator: Authenticator, settings: ServerSettings) -> Self {
        Self { app: Arc::new(App::new(engine, authenticator, settings)) }
    }

    /// What it counts; other parts may add what they count.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.app.metrics
    }

    /// Shows at [`serve_metrics`](crate::serve_metrics) how far edge targets are behind, as the index knows it. Fails the
    /// second time.
    pub fn watch_publishing(
        &self,
        index: Arc<dyn Index>,
        state: Arc<dyn PublishIndex>,
    ) -> Result<(), RegisterError> {
        let publishing = PublishMetrics::new(self.app.engine.clone(), index, state);
        self.app.metrics.register_publishing(publishing)
    }

    /// Serves until `shutdown` is ready; then stops: says that it is not ready and goes on for `drain_delay`, takes no
    /// more connections, and lets requests in flight finish within `shutdown_timeout`.
    pub async fn run(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let settings = &self.app.settings;
        let doors = Doors::new(settings.connections_max);
        let graceful = GracefulShutdown::new();
        let (stopping, _) = watch::channel(false);
        let mut stop = pin!(async {
            shutdown.await;
            self.app.health.begin_stopping();
            tracing::info!(
                seconds = settings.drain_delay.as_secs(),
                "stopping: not ready any more, connections are taken until load balancers know"
            );
            tokio::time::sleep(settings.drain_delay).await;
        });
        loop {
            let accepted = tokio::select! {
                accepted = doors.accept(&listener) => accepted,
                () = &mut stop => break,
            };
            match accepted {
                Ok((stream, place)) => self.spawn_connection(&graceful, &stopping, stream, place),
                Err(error) => pause_after(&error).await,
            }
        }
        // What is in the kernel's queue would be reset with the listener.
        while let Some(Ok((stream, place))) = doors.accept(&listener).now_or_never() {
            self.spawn_connection(&graceful, &stopping, stream, place);
        }
        drop(listener);
        tracing::info!(connections = graceful.count(), "taking no more connections");
        stopping.send_replace(true);
        match tokio::time::timeout(settings.shutdown_timeout, graceful.shutdown()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Error::Cut { connections: doors.taken() }),
        }
    }

    fn spawn_connection(
        &self,
        graceful: &GracefulShutdown,
        stopping: &watch::Sender<bool>,
        stream: TcpStream,
        place: Place,
    ) {
        let counted = Counted::new(&self.app.metrics.http.connections);
        let is_turned_away = matches!(place, Place::TurnedAway(_));
        let has_asked = Arc::new(AtomicBool::new(false));
        let connection =
            graceful.watch(connection(&self.app, stream, is_turned_away, Arc::clone(&has_asked)));
        let stopping = stopping.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    // Clients leave as they like; what matters was logged with its request.
                    tracing::debug!(%error, "connection ended");
                },
                () = head_is_late(stopping, &has_asked) => {
                    tracing::debug!("cut a connection that had sent half a head when the server stopped");
                }
            }
            drop((counted, place));
        });
    }
}

/// One in a gauge for as long as it lives, also if its task panics.
struct Counted(IntGauge);

impl Counted {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Ready when the server has been stopping for so long that a head which was begun before is not waited for any more. Never for
/// a connection that has sent a whole head: its request is in flight, or hyper has closed it.
async fn head_is_late(mut stopping: watch::Receiver<bool>, has_asked: &AtomicBool) {
    // An error means that the server itself is gone, and with it who would wait.
    let _ = stopping.wait_for(|stopping| *stopping).await;
    tokio::time::sleep(HEAD_WAIT_STOPPING).await;
    if has_asked.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
}

/// Who may come in.
struct Doors {
    places_max: usize,
    places: Arc<Semaphore>,
    turned_away: Arc<Semaphore>,
}

/// Held by a connection while it lives.
enum Place {
    Served(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit),
    TurnedAway(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit),
}

impl Doors {
    fn new(connections_max: usize) -> Self {
        let places_max = connections_max.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            places_max,
            places: Arc::new(Semaphore::new(places_max)),
            turned_away: Arc::new(Semaphore::new(TURNED_AWAY_MAX)),
        }
    }

    /// The next connection, with a place if there is one.
    async fn accept(&self, listener: &TcpListener) -> std::io::Result<(TcpStream, Place)> {
        let away = Arc::clone(&self.turned_away).acquire_owned().await;
        let away = away.expect("the semaphore is never closed");
        let (stream, _) = listener.accept().await?;
        let place = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => Place::Served(place),
            Err(_) => Place::TurnedAway(away),
        };
        Ok((stream, place))
    }

    fn taken(&self) -> usize {
        let away = TURNED_AWAY_MAX - self.turned_away.available_permits();
        self.places_max - self.places.available_permits() + away
    }
}

fn connection(
    app: &Arc<App>,
    stream: TcpStream,
    is_turned_away: bool,
    has_asked: Arc<AtomicBool>,
) -> impl GracefulConnection<Error = hyper::Error> + 'static {
    // Without it, the last part of an answer waits up to 40 ms for the client's acknowledgement of the first.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "failed to set TCP_NODELAY");
    }
    let settings = &app.settings;
    let socket = TokioIo::new(Socket::new(stream, settings.write_idle_timeout));
    let app_of_connection = Arc::clone(app);
    let service = service_fn(move |request| {
        let app = Arc::clone(&app_of_connection);
        has_asked.store(true, Ordering::SeqCst);
        async move {
            let response =
                if is_turned_away { app.turn_away(request).await } else { app.respond(request).await };
            Ok::<_, Infallible>(response)
        }
    });
    let header_timeout =
        if is_turned_away { TURN_AWAY_TIMEOUT.min(settings.header_timeout) } else { settings.header_timeout };
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_header_size(settings.header_bytes_max)
        .max_buf_size(WRITE_BUFFER_BYTES.max(settings.header_bytes_max))
        .serve_connection(socket, service)
}

/// Errors of one connection are its own business; others mean that the process is out of something.
pub(crate) async fn pause_after(error: &std::io::Error) {
    use std::io::ErrorKind;
    let of_one_connection = matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
    );
    if !of_one_connection {
        tracing::warn!(%error, "failed to accept a connection");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}
