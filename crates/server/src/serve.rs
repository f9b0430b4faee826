//! Connections: accepted within a bound, served until they end or the server is asked to stop.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use dormer_engine::Engine;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::app::App;
use crate::auth::Authenticator;
use crate::settings::ServerSettings;
use crate::socket::Socket;

/// Bytes that a connection gathers before it writes: some chunks between holes are small, one system call takes several.
const WRITE_BUFFER_BYTES: usize = 256 * 1024;

/// Pause after an accept that failed for want of file descriptors: connections must end before there are more.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

/// Serves until `shutdown` is ready; then takes no more connections and lets requests in flight finish.
pub async fn serve(
    listener: TcpListener,
    engine: Engine,
    authenticator: Authenticator,
    settings: ServerSettings,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let connections_max = settings.connections_max.clamp(1, Semaphore::MAX_PERMITS);
    let places = Arc::new(Semaphore::new(connections_max));
    let shutdown_timeout = settings.shutdown_timeout;
    let app = Arc::new(App::new(engine, authenticator, settings));
    let graceful = GracefulShutdown::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            next = next => next,
            () = &mut shutdown => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        let connection = graceful.watch(connection(&app, stream));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                // Clients leave as they like; what matters was logged with its request.
                tracing::debug!(%error, "connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    let open = graceful.count();
    tracing::info!(connections = open, "stopping");
    match tokio::time::timeout(shutdown_timeout, graceful.shutdown()).await {
        Ok(()) => Ok(()),
        Err(_) => Err(Error::Cut { connections: connections_max - places.available_permits() }),
    }
}

fn connection(
    app: &Arc<App>,
    stream: TcpStream,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> + 'static {
    // Without it, the last part of an answer waits up to 40 ms for the client's acknowledgement of the first.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "failed to set TCP_NODELAY");
    }
    let settings = &app.settings;
    let socket = TokioIo::new(Socket::new(stream, settings.write_idle_timeout));
    let app_of_connection = Arc::clone(app);
    let service = service_fn(move |request| {
        let app = Arc::clone(&app_of_connection);
        async move { Ok::<_, Infallible>(app.respond(request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout)
        .max_header_size(settings.header_bytes_max)
        .max_buf_size(WRITE_BUFFER_BYTES.max(settings.header_bytes_max))
        .serve_connection(socket, service)
}

/// Errors of one connection are its own business; others mean that the process is out of something.
async fn pause_after(error: &std::io::Error) {
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
