//! Connections: accepted within a limit, served until they end or until the host is asked to stop.
//!
//! A stop takes three steps, so that no request fails because of it. First, readiness ends while
//! everything is still served. Then the host takes no more connections. Then the requests in flight
//! finish. Connections without a request end at once. Connections that have sent a part of their
//! first head get [`HEAD_WAIT_STOPPING`]. `shutdown_timeout` limits all of them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::listener::{Listener, Stream};
use crate::peer::Peer;
use crate::places::{Kept, Place, Places};
use crate::probes::Probes;
use crate::socket::Socket;

/// Bytes that a connection gathers before it writes. Some chunks between holes are small; one
/// system call takes several.
const WRITE_BUFFER_BYTES: usize = 256 * 1024;

/// Pause after an accept that failed for want of file descriptors: connections must end before
/// there are more.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections beyond the limit that are refused at the same time. More wait in the kernel's queue.
/// Each refused connection ends with its answer.
pub const REFUSED_MAX: usize = 64;

/// What one network may have of the connections: this part of them, so that the rest is free for
/// others.
const SHARE_NUMERATOR: usize = 3;
const SHARE_DENOMINATOR: usize = 4;

/// How long a new client waits for the place of a connection that was told to end.
const GIVE_UP_WAIT: Duration = Duration::from_secs(1);

/// How long a refused client counts as waiting for a place: clients come back after a few seconds.
const REFUSAL_COUNTS: Duration = Duration::from_secs(10);

/// How long a refused client may take to send its head.
const REFUSED_HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client that has sent a part of its first head may take for the rest once the host
/// takes no more connections. A head is one packet, or two on a slow line. Without this limit, a
/// client that sends half a head delays the stop by `header_timeout`.
const HEAD_WAIT_STOPPING: Duration = Duration::from_secs(5);

/// Limits of a host.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// Most connections at once. A later client takes the place of one that has waited long for a
    /// head; without such a connection it is answered 503. The same holds for a client whose
    /// address has three quarters of them already.
    pub connections_max: usize,
    /// Longest request line and headers together, in bytes.
    pub header_bytes_max: usize,
    /// How long a connection may take to send the head of a request, the wait between two requests
    /// included.
    pub header_timeout: Duration,
    /// How long a reader may take nothing of an answer.
    pub write_idle_timeout: Duration,
    /// How long the host goes on after it was asked to stop. Only `/readyz` changes, to "no", and
    /// each connection is closed after its next answer. Load balancers need this long to notice; 0
    /// fits where there are none.
    pub drain_delay: Duration,
    /// How long requests in flight may then take to finish.
    pub shutdown_timeout: Duration,
}

/// Says whether others wait for what an answer holds. A service puts it into the extensions of an
/// answer that holds more than [`Service::others_wait`] knows of, such as a turn.
#[derive(Clone)]
pub struct OthersWait(Arc<dyn Fn() -> bool + Send + Sync>);

impl OthersWait {
    /// Asks this each time that the reader of the answer takes next to nothing.
    pub fn new(ask: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }
}

impl std::fmt::Debug for OthersWait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OthersWait").finish_non_exhaustive()
    }
}

/// What a host serves.
pub trait Service: Send + Sync + 'static {
    /// The body of an answer. An error in the body cuts the connection.
    type Body: http_body::Body<Data = Bytes, Error = io::Error> + Send + Unpin + 'static;

    /// Answers a request. Failures are answers, too.
    fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;

    /// Answers a request that came when all connections were taken: 503, but 200 for `/healthz`. An
    /// orchestrator that restarts a busy process would take the connections of all others with it.
    /// The host closes the connection.
    fn refuse(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;

    /// Whether the process is ready; the host sets it to "no" when it begins to stop.
    fn probes(&self) -> &Probes;

    /// Whether requests wait for what each slow reader holds. Readers that take next to nothing are
    /// then cut, as they are while clients find no place. [`OthersWait`] is for what only some
    /// answers hold.
    fn others_wait(&self) -> bool {
        false
    }

    /// Whether many clients come from this other end, as they do from a proxy. It may then take
    /// all connections.
    fn is_shared(&self, peer: &Peer) -> bool {
        peer.is_local()
    }

    /// A connection begins.
    fn connection_opened(&self) {}

    /// A connection has ended.
    fn connection_closed(&self) {}
}

/// Why serving did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Requests in flight did not finish within `shutdown_timeout` and were cut. No acknowledged
    /// data is lost.
    #[error("cut {connections} connections whose requests did not end in time")]
    Cut {
        /// How many.
        connections: usize,
    },
}

/// Serves until `shutdown` is ready, then stops: says that it is not ready and goes on for
/// `drain_delay`, takes no more connections, and lets requests in flight finish within
/// `shutdown_timeout`.
pub async fn serve<S: Service>(
    listener: impl Into<Listener>,
    service: Arc<S>,
    settings: HostSettings,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let listener = listener.into();
    let slots = ConnectionSlots::new(settings.connections_max);
    let host = Host {
        service,
        settings,
        graceful: GracefulShutdown::new(),
        refusals: Arc::clone(&slots.refusals),
        stopping: watch::channel(false).0,
    };
    let mut stop = pin!(async {
        shutdown.await;
        host.service.probes().begin_stopping();
        let drain_delay = host.settings.drain_delay;
        tracing::info!(
            seconds = drain_delay.as_secs(),
            "stopping: not ready any more, connections are taken until load balancers know"
        );
        tokio::time::sleep(drain_delay).await;
    });
    loop {
        let accepted = tokio::select! {
            accepted = slots.accept(&listener) => accepted,
            () = &mut stop => break,
        };
        match accepted {
            // A stop does not interrupt this short wait: the client would be reset.
            Ok((stream, refused)) => host.spawn_connection(stream, refused, &slots).await,
            Err(error) => pause_after(&error).await,
        }
    }
    // Connections in the kernel's queue would be reset with the listener.
    while let Some(Ok((stream, refused))) = slots.accept(&listener).now_or_never() {
        host.spawn_connection(stream, refused, &slots).await;
    }
    drop(listener);
    tracing::info!(connections = host.graceful.count(), "taking no more connections");
    host.stopping.send_replace(true);
    match tokio::time::timeout(host.settings.shutdown_timeout, host.graceful.shutdown()).await {
        Ok(()) => Ok(()),
        Err(_) => Err(Error::Cut { connections: slots.taken() }),
    }
}

/// What all connections share.
struct Host<S> {
    service: Arc<S>,
    settings: HostSettings,
    graceful: GracefulShutdown,
    refusals: Arc<Refusals>,
    /// True once no more connections are taken.
    stopping: watch::Sender<bool>,
}

impl<S: Service> Host<S> {
    async fn spawn_connection(&self, stream: Stream, refused: OwnedSemaphorePermit, slots: &ConnectionSlots) {
        let peer = stream.peer().filter(|peer| !self.service.is_shared(peer));
        let network = peer.as_ref().and_then(Peer::network);
        // One that floods beyond its share gets no answer.
        let Some(slot) = slots.slot(refused, network).await else { return };
        let counted = Counted::new(Arc::clone(&self.service));
        let place = Arc::clone(&slot.place);
        let connection = self.graceful.watch(self.connection(stream, &slot));
        let stopping = self.stopping.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    // Clients leave as they like; failures are logged with their request.
                    tracing::debug!(%error, "connection ended");
                },
                () = place.given_up() => {
                    tracing::debug!("cut a connection that sent no head, for another client");
                }
                () = head_is_late(stopping, &place) => {
                    tracing::debug!("cut a connection that had sent half a head when the host stopped");
                }
            }
            drop((counted, slot));
        });
    }

    fn connection(
        &self,
        stream: Stream,
        slot: &Slot,
    ) -> impl GracefulConnection<Error = hyper::Error> + use<S> {
        // Without it, the last part of an answer waits up to 40 ms for the client's acknowledgement
        // of the first.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "failed to set TCP_NODELAY");
        }
        let peer = stream.peer();
        let (is_refused, place) = (slot.is_refused, Arc::clone(&slot.place));
        let settings = &self.settings;
        let service = Arc::clone(&self.service);
        // Of the answer that is being sent.
        let held: Arc<Mutex<Option<OthersWait>>> = Arc::default();
        let holds = Arc::clone(&held);
        let answer = service_fn(move |mut request: Request<Incoming>| {
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            let service = Arc::clone(&service);
            let answering = place.begin_answer();
            let holds = Arc::clone(&holds);
            async move {
                let mut response = if is_refused {
                    let mut response = service.refuse(request).await;
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    response
                } else {
                    service.answer(request).await
                };
                let of_answer = response.extensions_mut().remove();
                *holds.lock().unwrap_or_else(PoisonError::into_inner) = of_answer;
                Ok::<_, Infallible>(response.map(|body| Kept::new(body, answering)))
            }
        });
        let header_timeout = if is_refused {
            REFUSED_HEAD_TIMEOUT.min(settings.header_timeout)
        } else {
            settings.header_timeout
        };
        let (service, refusals) = (Arc::clone(&self.service), Arc::clone(&self.refusals));
        let network = slot.share.as_ref().map(|(_, network)| Arc::clone(network));
        let others_wait = Box::new(move || {
            refusals.go_on()
                || network.as_ref().is_some_and(|network| network.go_on())
                || service.others_wait()
                || held.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|held| (held.0)())
        });
        let socket = Socket::new(stream, settings.write_idle_timeout, others_wait);
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_header_size(settings.header_bytes_max)
            .max_buf_size(WRITE_BUFFER_BYTES.max(settings.header_bytes_max))
            .serve_connection(TokioIo::new(socket), answer)
    }
}

/// Counts a connection for as long as it lives, also if its task panics.
struct Counted<S: Service>(Arc<S>);

impl<S: Service> Counted<S> {
    fn new(service: Arc<S>) -> Self {
        service.connection_opened();
        Self(service)
    }
}

impl<S: Service> Drop for Counted<S> {
    fn drop(&mut self) {
        self.0.connection_closed();
    }
}

/// Ready when the host has been stopping for so long that it waits no longer for a head that began
/// before. Never ready for a connection that has sent a whole head: its request is in flight, or
/// hyper has closed it.
async fn head_is_late(mut stopping: watch::Receiver<bool>, place: &Place) {
    // An error means that the host itself is gone, and nothing waits for this connection.
    let _ = stopping.wait_for(|stopping| *stopping).await;
    tokio::time::sleep(HEAD_WAIT_STOPPING).await;
    if place.has_asked() {
        std::future::pending::<()>().await;
    }
}

/// Whether clients, all or those of a network, are refused because all their places are busy.
struct Refusals {
    places: Arc<Semaphore>,
    /// When the newest client was refused; `None` if it got a place.
    newest: Mutex<Option<Instant>>,
}

impl Refusals {
    fn new(places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), newest: Mutex::default() }
    }

    fn note(&self, is_refused: bool) {
        let newest = is_refused.then(Instant::now);
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = newest;
    }

    /// Whether another client would be refused, and the newest one was, not long ago.
    fn go_on(&self) -> bool {
        let newest = *self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        self.places.available_permits() == 0 && newest.is_some_and(|at| at.elapsed() < REFUSAL_COUNTS)
    }
}

/// Limits how many connections are open.
struct ConnectionSlots {
    served_max: usize,
    served: Arc<Semaphore>,
    refused: Arc<Semaphore>,
    refusals: Arc<Refusals>,
    shares: NetworkShares,
    places: Places,
    refused_places: Places,
}

/// How many connections each network may have.
struct NetworkShares {
    share: usize,
    networks: Mutex<HashMap<IpAddr, Weak<Refusals>>>,
}

impl NetworkShares {
    fn new(connections_max: usize) -> Self {
        let share = (connections_max * SHARE_NUMERATOR / SHARE_DENOMINATOR).max(1);
        Self { share, networks: Mutex::default() }
    }

    fn of(&self, network: IpAddr) -> Arc<Refusals> {
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        networks.get(&network).and_then(Weak::upgrade).unwrap_or_else(|| {
            // Only networks with open connections stay, and connections are limited.
            networks.retain(|_, refusals| refusals.strong_count() > 0);
            let refusals = Arc::new(Refusals::new(self.share));
            networks.insert(network, Arc::downgrade(&refusals));
            refusals
        })
    }
}

/// Held by a connection while it lives.
struct Slot {
    _permit: OwnedSemaphorePermit,
    /// The part of its network's share, and whether others of the network are refused.
    share: Option<(OwnedSemaphorePermit, Arc<Refusals>)>,
    place: Arc<Place>,
    is_refused: bool,
}

impl ConnectionSlots {
    fn new(connections_max: usize) -> Self {
        let served_max = connections_max.clamp(1, Semaphore::MAX_PERMITS);
        let refusals = Arc::new(Refusals::new(served_max));
        Self {
            served_max,
            served: Arc::clone(&refusals.places),
            refusals,
            shares: NetworkShares::new(served_max),
            refused: Arc::new(Semaphore::new(REFUSED_MAX)),
            places: Places::new(),
            refused_places: Places::new(),
        }
    }

    /// The next connection, with leave to refuse it.
    async fn accept(&self, listener: &Listener) -> io::Result<(Stream, OwnedSemaphorePermit)> {
        let refused = self.leave_to_refuse().await;
        let stream = listener.accept().await?;
        Ok((stream, refused))
    }

    async fn leave_to_refuse(&self) -> OwnedSemaphorePermit {
        loop {
            if self.refused.available_permits() == 0 {
                self.refused_places.give_up_oldest(None);
            }
            let leave = Arc::clone(&self.refused).acquire_owned();
            if let Ok(leave) = tokio::time::timeout(GIVE_UP_WAIT, leave).await {
                return leave.expect("the semaphore is never closed");
            }
        }
    }

    /// A slot for a new connection, which is refused if no slot to serve it is free, or none that
    /// its network may have, and no connection that waits for a head makes room. `None` if its
    /// network has its share, and half of those that can be refused at once are there: otherwise
    /// its refusals would keep other networks waiting.
    async fn slot(&self, refused: OwnedSemaphorePermit, network: Option<IpAddr>) -> Option<Slot> {
        let refuse = |refused| Slot {
            _permit: refused,
            share: None,
            place: self.refused_places.take(None),
            is_refused: true,
        };
        let mut share = None;
        if let Some(network) = network {
            let of_network = self.shares.of(network);
            let permit = self.serve(&of_network.places, Some(network)).await;
            of_network.note(permit.is_none());
            let Some(permit) = permit else {
                let has_room = self.refused.available_permits() >= REFUSED_MAX / 2;
                return has_room.then(|| refuse(refused));
            };
            share = Some((permit, of_network));
        }
        let served = self.serve(&self.served, None).await;
        self.refusals.note(served.is_none());
        Some(match served {
            Some(permit) => {
                Slot { _permit: permit, share, place: self.places.take(network), is_refused: false }
            }
            None => refuse(refused),
        })
    }

    /// Takes a permit, if need be that of the connection (of this network) that has waited longest
    /// for a head.
    async fn serve(&self, permits: &Arc<Semaphore>, network: Option<IpAddr>) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
            return Some(permit);
        }
        if !self.places.give_up_oldest(network) {
            return None;
        }
        // The connection's task ends as soon as it runs.
        let freed = Arc::clone(permits).acquire_owned();
        tokio::time::timeout(GIVE_UP_WAIT, freed).await.ok()?.ok()
    }

    fn taken(&self) -> usize {
        let refused = REFUSED_MAX - self.refused.available_permits();
        self.served_max - self.served.available_permits() + refused
    }
}

/// An error of one connection concerns nobody else. Other errors mean that the process has run out
/// of something.
async fn pause_after(error: &io::Error) {
    use io::ErrorKind;
    let is_of_one_connection = matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
    );
    if !is_of_one_connection {
        tracing::warn!(%error, "failed to accept a connection");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use http::StatusCode;
    use http_body_util::combinators::UnsyncBoxBody;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tokio::sync::{Notify, oneshot};

    use super::*;
    use crate::probes::{Probe, text};

    /// Answers probes, and everything else once `go` says so.
    struct Gate {
        probes: Probes,
        go: Notify,
        open: AtomicUsize,
        /// Whether each address of this machine is a client of its own.
        has_clients: AtomicBool,
    }

    impl Service for Gate {
        type Body = UnsyncBoxBody<Bytes, io::Error>;

        async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Self::Body> {
            if let Some(probe) = Probe::parse(request.uri().path()) {
                return self.probes.answer(probe).await;
            }
            self.go.notified().await;
            text(StatusCode::OK, "answered\n")
        }

        async fn refuse(self: Arc<Self>, request: Request<Incoming>) -> Response<Self::Body> {
            Probes::refuse(request.uri().path())
        }

        fn probes(&self) -> &Probes {
            &self.probes
        }

        fn is_shared(&self, peer: &Peer) -> bool {
            !self.has_clients.load(Ordering::SeqCst) && peer.is_local()
        }

        fn connection_opened(&self) {
            self.open.fetch_add(1, Ordering::SeqCst);
        }

        fn connection_closed(&self) {
            self.open.fetch_sub(1, Ordering::SeqCst);
        }
    }

    struct Running {
        gate: Arc<Gate>,
        address: std::net::SocketAddr,
        stop: oneshot::Sender<()>,
        serving: tokio::task::JoinHandle<Result<(), Error>>,
    }

    async fn start(change: impl FnOnce(&mut HostSettings)) -> Running {
        let mut settings = HostSettings {
            connections_max: 1,
            header_bytes_max: 16 * 1024,
            header_timeout: Duration::from_mins(1),
            write_idle_timeout: Duration::from_mins(1),
            drain_delay: Duration::ZERO,
            shutdown_timeout: Duration::from_mins(1),
        };
        change(&mut settings);
        let probes = Probes::new(|| Box::pin(async { Ok(()) }));
        let gate = Arc::new(Gate {
            probes,
            go: Notify::new(),
            open: AtomicUsize::new(0),
            has_clients: AtomicBool::new(false),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = serve(listener, Arc::clone(&gate), settings, async {
            let _ = stopped.await;
        });
        Running { gate, address, stop, serving: tokio::spawn(serving) }
    }

    impl Running {
        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        async fn ask(&self, path: &str) -> String {
            let mut stream = self.connect().await;
            send(&mut stream, path).await;
            rest(stream).await
        }
    }

    async fn send(stream: &mut TcpStream, path: &str) {
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
    }

    async fn rest(mut stream: TcpStream) -> String {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_full_host_refuses_but_says_that_it_is_alive() {
        let running = start(|_| ()).await;
        let mut first = running.connect().await;
        send(&mut first, "/").await;
        let refused = running.ask("/").await;
        assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: "), "{refused}");
        assert!(refused.contains("connection: close"), "{refused}");
        assert!(running.ask("/readyz").await.starts_with("HTTP/1.1 503 "));
        assert!(running.ask("/healthz").await.starts_with("HTTP/1.1 200 "));
        running.gate.go.notify_one();
        assert!(rest(first).await.ends_with("answered\n"));
    }

    #[tokio::test]
    async fn half_a_head_makes_room_for_another_client() {
        let running = start(|settings| settings.connections_max = 3).await;
        let mut busy = running.connect().await;
        send(&mut busy, "/").await;
        let mut halves = Vec::new();
        for _ in 0..2 + REFUSED_MAX {
            let mut half = running.connect().await;
            half.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap();
            halves.push(half);
        }
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let begin = std::time::Instant::now();
        for _ in 0..10 {
            assert!(running.ask("/readyz").await.ends_with("ready\n"), "served, not refused");
        }
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
        assert_eq!(rest(halves.swap_remove(0)).await, "", "the oldest one was closed");
        running.gate.go.notify_one();
        assert!(rest(busy).await.ends_with("answered\n"), "a request in flight keeps its place");
    }

    #[tokio::test]
    async fn one_address_leaves_a_quarter_of_the_connections_to_others() {
        let running = start(|settings| settings.connections_max = 4).await;
        let from = async |address: &str| {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(address.parse().unwrap()).unwrap();
            socket.connect(running.address).await.unwrap()
        };
        let ask = async |address: &str| {
            let mut stream = from(address).await;
            send(&mut stream, "/readyz").await;
            rest(stream).await
        };
        running.gate.has_clients.store(true, Ordering::SeqCst);
        let mut busy = Vec::new();
        for _ in 0..2 {
            let mut stream = from("127.0.0.2:0").await;
            send(&mut stream, "/").await;
            busy.push(stream);
        }
        let mut half = from("127.0.0.2:0").await;
        half.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        assert!(ask("127.0.0.2:0").await.starts_with("HTTP/1.1 503 "), "it has three of four");
        assert!(ask("127.0.0.3:0").await.ends_with("ready\n"));
        // Its own connection makes room for it, as soon as that has waited long for a head.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        assert!(ask("127.0.0.2:0").await.ends_with("ready\n"));
        assert_eq!(rest(half).await, "");
        // A proxy may take all of them.
        running.gate.has_clients.store(false, Ordering::SeqCst);
        for _ in 0..2 {
            let mut stream = from("127.0.0.2:0").await;
            send(&mut stream, "/").await;
            busy.push(stream);
        }
        assert!(ask("127.0.0.3:0").await.starts_with("HTTP/1.1 503 "), "all are taken");
        let go = async {
            loop {
                running.gate.go.notify_one();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let ended = async {
            for stream in busy {
                assert!(rest(stream).await.ends_with("answered\n"));
            }
        };
        tokio::select! {
            () = ended => {}
            () = go => {}
        }
        assert!(ask("127.0.0.3:0").await.ends_with("ready\n"));
    }

    #[tokio::test]
    async fn at_its_share_a_network_cuts_its_slow_readers_and_a_flood_of_it_gets_no_answer() {
        let slots = ConnectionSlots::new(4);
        let take = async |last: u8| {
            let network = IpAddr::from([192, 0, 2, last]);
            slots.slot(slots.leave_to_refuse().await, Some(network)).await
        };
        let cuts = |slot: &Slot| slot.share.as_ref().is_some_and(|(_, network)| network.go_on());
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(take(1).await.unwrap());
        }
        assert!(held.iter().all(|slot| !slot.is_refused && !cuts(slot)));
        let mut refused = vec![take(1).await.unwrap()];
        assert!(refused[0].is_refused && held.iter().all(cuts));
        for _ in 0..REFUSED_MAX {
            refused.extend(take(1).await);
        }
        assert!(refused.len() <= REFUSED_MAX / 2 + 1, "{}", refused.len());
        let other = take(2).await.unwrap();
        assert!(!other.is_refused && !cuts(&other));
    }

    #[tokio::test]
    async fn a_stop_ends_readiness_then_connections_and_no_request() {
        let running = start(|settings| {
            settings.connections_max = 8;
            settings.drain_delay = Duration::from_millis(300);
        })
        .await;
        assert!(running.ask("/readyz").await.ends_with("ready\n"));
        let mut in_flight = running.connect().await;
        send(&mut in_flight, "/").await;
        assert!(running.ask("/healthz").await.starts_with("HTTP/1.1 200 "));
        running.stop.send(()).unwrap();
        while !running.gate.probes.is_stopping() {
            tokio::task::yield_now().await;
        }
        let address = running.address;
        let mut late = TcpStream::connect(address).await.unwrap();
        send(&mut late, "/readyz").await;
        let late = rest(late).await;
        assert!(
            late.starts_with("HTTP/1.1 503 ") && late.ends_with("not ready: the server is stopping\n"),
            "{late}"
        );
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!running.serving.is_finished());
        running.gate.go.notify_one();
        assert!(rest(in_flight).await.ends_with("answered\n"));
        running.serving.await.unwrap().unwrap();
        assert_eq!(running.gate.open.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn requests_that_never_end_are_cut_and_counted() {
        let running = start(|settings| settings.shutdown_timeout = Duration::from_millis(50)).await;
        let mut stuck = running.connect().await;
        send(&mut stuck, "/").await;
        assert!(running.ask("/healthz").await.starts_with("HTTP/1.1 200 "));
        running.stop.send(()).unwrap();
        let error = running.serving.await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Cut { connections: 1 }), "{error}");
    }

    #[tokio::test]
    async fn a_client_that_sends_no_head_is_cut() {
        let running = start(|settings| settings.header_timeout = Duration::from_millis(50)).await;
        let mut slow = running.connect().await;
        slow.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let answer = rest(slow).await;
        assert!(!answer.contains("200"), "{answer}");
    }
}
