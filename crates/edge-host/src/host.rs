//! Requests to a host of a published layout.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use dormer_api::CacheName;
use dormer_edge::{
    Admission, Answer, Body as EdgeBody, CacheState, Catalog, EdgeKey, Home, MISS_SECONDS, NARINFO_BYTES_MAX,
    ObjectMeta, PageRead, PageStep, Read, Request as EdgeRequest, RequestPlan, STATE_BYTES_MAX,
    STATE_SECONDS, TokenVerifier, Visit, plan,
};
use dormer_http_host::{Error, HostSettings, Listener, NotReady, Peer, Probe, Probes, Service, brief, serve};
use dormer_stores::ByteStream;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{
    AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use hyper::{Method, Request, Response, StatusCode};
use moka::sync::Cache as Memory;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::disk::DiskCache;
use crate::source::{Opened, Source, SourceError};

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Largest document that is remembered, in bytes. Nearly all narinfos and most listings are far
/// smaller.
const DOCUMENT_BYTES_MAX: u64 = 256 * 1024;

/// Limits of a host. The defaults fit a small machine.
#[derive(Debug, Clone)]
pub struct EdgeSettings {
    /// Limits of connections. A token of an OIDC issuer takes some KiB of a head.
    pub host: HostSettings,
    /// How long the store may take to begin to answer, and between two pieces of an object.
    pub store_timeout: Duration,
    /// Memory for remembered documents of a remote bucket, in bytes.
    pub document_bytes_max: u64,
    /// Whether browsers get pages.
    pub shows_pages: bool,
    /// The address of the host for clients: a scheme and a host. Without it, pages show the address
    /// of each request, and no cache may keep them.
    pub address: Option<String>,
}

impl Default for EdgeSettings {
    fn default() -> Self {
        Self {
            host: HostSettings {
                connections_max: 1_024,
                header_bytes_max: 64 * 1024,
                header_timeout: Duration::from_mins(1),
                write_idle_timeout: Duration::from_mins(1),
                drain_delay: Duration::ZERO,
                shutdown_timeout: Duration::from_secs(30),
            },
            store_timeout: Duration::from_secs(30),
            document_bytes_max: 32 * 1024 * 1024,
            shows_pages: true,
            address: None,
        }
    }
}

/// Pages that are made at once, each of a narinfo and a log in memory: below 150 MiB together.
/// Others wait, and files for Nix do not.
const PAGES_AT_ONCE: usize = 16;

/// Listings that are read for pages at once. One of 16 MiB takes a good part of a second of a core,
/// for a page of some kB, so readers of pages get no more than this of the machine.
const LISTINGS_AT_ONCE: usize = 2;

/// How long a readiness check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(4);

/// A value that is remembered until `end`.
#[derive(Clone)]
struct Until<T> {
    value: T,
    end: Instant,
}

impl<T: Clone> Until<T> {
    fn seconds(value: T, seconds: u32) -> Self {
        Self { value, end: Instant::now() + Duration::from_secs(seconds.into()) }
    }
}

fn recall<K, Q, T>(memory: &Memory<K, Until<T>>, key: &Q) -> Option<T>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static + std::borrow::Borrow<Q>,
    Q: std::hash::Hash + Eq + ?Sized,
    T: Clone + Send + Sync + 'static,
{
    memory.get(key).filter(|known| Instant::now() < known.end).map(|known| known.value)
}

type Document = Option<(ObjectMeta, Bytes)>;

/// A host of a published layout.
pub struct EdgeServer {
    source: Source,
    disk: Option<DiskCache>,
    verifier: Option<TokenVerifier>,
    settings: EdgeSettings,
    probes: Probes,
    states: Memory<CacheName, Until<Option<Arc<CacheState>>>>,
    documents: Memory<EdgeKey, Until<Document>>,
    page_turns: Semaphore,
    listing_turns: Semaphore,
}

impl std::fmt::Debug for EdgeServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EdgeServer").field("source", &self.source).finish_non_exhaustive()
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

impl EdgeServer {
    /// A host. Without a verifier no token counts, so nobody may read private caches. `disk` keeps
    /// NARs of a remote bucket.
    pub fn new(
        source: Source,
        disk: Option<DiskCache>,
        verifier: Option<TokenVerifier>,
        settings: EdgeSettings,
    ) -> Self {
        let documents = Memory::builder()
            .max_capacity(settings.document_bytes_max)
            .weigher(|_: &EdgeKey, known: &Until<Document>| {
                let bytes = known.value.as_ref().map_or(0, |(_, bytes)| bytes.len());
                u32::try_from(bytes + 256).unwrap_or(u32::MAX)
            })
            .build();
        let states = Memory::builder()
            .max_capacity(settings.document_bytes_max)
            .weigher(|_: &CacheName, known: &Until<Option<Arc<CacheState>>>| {
                u32::try_from(state_weight(known.value.as_deref())).unwrap_or(u32::MAX)
            })
            .time_to_live(Duration::from_secs(STATE_SECONDS.into()))
            .build();
        let asked = source.clone();
        let probes = Probes::new(move || Box::pin(check(asked.clone())));
        let page_turns = Semaphore::new(PAGES_AT_ONCE);
        let listing_turns = Semaphore::new(LISTINGS_AT_ONCE);
        Self { source, disk, verifier, settings, probes, states, documents, page_turns, listing_turns }
    }

    /// Serves until `shutdown` is ready; then takes no more connections and lets requests in flight
    /// finish.
    ///
    /// The compiler builds a boxed future where it is made: in this crate, whatever the binary's
    /// crate is built for.
    pub fn run(
        self,
        listener: Listener,
        shutdown: BoxFuture<'static, ()>,
    ) -> BoxFuture<'static, Result<(), Error>> {
        let settings = self.settings.host.clone();
        Box::pin(serve(listener, Arc::new(self), settings, shutdown))
    }

    async fn respond(&self, request: &Request<Incoming>) -> Response<Body> {
        let begin = Instant::now();
        let header = |name: HeaderName| joined(request.headers(), &name);
        let (authorization, if_none_match) = (header(AUTHORIZATION), header(IF_NONE_MATCH));
        let (range, if_range) = (header(RANGE), header(IF_RANGE));
        let known = self.settings.address.clone();
        let knows_origin = known.is_some();
        let origin = known.or_else(|| origin(request));
        let planned = plan(&EdgeRequest {
            origin: origin.as_deref(),
            knows_origin,
            method: request.method().as_str(),
            path: request.uri().path(),
            query: request.uri().query().unwrap_or_default(),
            authorization: authorization.as_deref(),
            range: range.as_deref(),
            // A value that is no text is no tag of ours.
            if_range: if_range.as_deref(),
            if_none_match: if_none_match.as_deref(),
            shows_pages: self.settings.shows_pages,
        });
        let is_head = request.method() == Method::HEAD;
        let answered = match planned {
            RequestPlan::Answer(answer) => Ok((answer, None)),
            RequestPlan::Home(home) => self.home(&home).await,
            RequestPlan::Visit(visit) => self.visit(*visit).await,
        };
        let (answer, bytes) = answered.unwrap_or_else(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "the store does not answer");
            (Answer::unavailable(is_head), None)
        });
        tracing::debug!(
            method = brief(request.method().as_str()).as_ref(),
            path = brief(request.uri().path()).as_ref(),
            status = answer.status,
            milliseconds = begin.elapsed().as_secs_f64() * 1e3,
            "answered"
        );
        to_response(answer, bytes)
    }

    async fn home(&self, home: &Home) -> Result<Answered, SourceError> {
        let found = self.document(&EdgeKey::Catalog).await?;
        let catalog =
            found.map(|(_, json)| Catalog::parse(&json)).transpose().map_err(damaged("catalogue"))?;
        Ok((home.respond(catalog.as_ref()), None))
    }

    async fn visit(&self, visit: Visit) -> Result<Answered, SourceError> {
        let state = self.state(visit.cache()).await?;
        let state = state.as_deref();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let token = visit.token().filter(|_| visit.needs_token(state));
        let claims = token.zip(self.verifier.as_ref()).and_then(|(token, verifier)| verifier.verify(token));
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let is_head = visit.is_head();
        match visit.admit(state, claims.as_ref(), now) {
            Admission::Answer(answer) => Ok((answer, None)),
            Admission::Read(read) => self.read(&read).await,
            Admission::Page(page) => {
                let Some(_turns) = self.page_turns(&page).await else {
                    return Ok((Answer::busy(is_head), None));
                };
                Ok((self.page(page).await?, None))
            }
        }
    }

    /// The turns that a page needs; `None` if they do not come in time. A page waits for a listing
    /// before it takes one of the turns of all pages, and before it reads anything.
    async fn page_turns(&self, page: &PageRead) -> Option<[Option<SemaphorePermit<'_>>; 2]> {
        let turns = async {
            let listing =
                if page.needs_listing() { Some(self.listing_turns.acquire().await.ok()?) } else { None };
            Some([listing, Some(self.page_turns.acquire().await.ok()?)])
        };
        tokio::time::timeout(self.settings.store_timeout, turns).await.ok()?
    }

    /// Makes a page of the objects that it needs.
    async fn page(&self, mut page: Box<PageRead>) -> Result<Answer, SourceError> {
        loop {
            let name = page.read().key().to_string();
            let (answer, bytes) = self.read(page.read()).await?;
            if let Some(mut bytes) = bytes {
                while let Some(piece) = bytes.next().await {
                    let piece = piece.map_err(|source| SourceError::Read { name: name.clone(), source })?;
                    if page.feed(&piece) {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
            match page.finish(answer.status == 200).map_err(damaged(&name))? {
                PageStep::Answer(answer) => return Ok(answer),
                PageStep::Read(next) => page = next,
            }
        }
    }

    async fn state(&self, cache: &CacheName) -> Result<Option<Arc<CacheState>>, SourceError> {
        if let Some(known) = recall(&self.states, cache) {
            return Ok(known);
        }
        let name = EdgeKey::State(cache.clone()).to_string();
        let found = self.within(self.source.read(&name, STATE_BYTES_MAX)).await?;
        let state = found.map(|(_, json)| CacheState::parse(&json)).transpose().map_err(damaged(&name))?;
        let state = state.map(Arc::new);
        // Present and absent documents are remembered equally long, so that the number of requests
        // to the store tells nobody whether a private cache exists.
        self.states.insert(cache.clone(), Until::seconds(state.clone(), STATE_SECONDS));
        Ok(state)
    }

    /// A small document, remembered if it comes over a network and is not large.
    async fn document(&self, key: &EdgeKey) -> Result<Document, SourceError> {
        if let Some(known) = recall(&self.documents, key) {
            return Ok(known);
        }
        let found = self.within(self.source.read(&key.to_string(), NARINFO_BYTES_MAX)).await?;
        let fits = found.as_ref().is_none_or(|(meta, _)| meta.size <= DOCUMENT_BYTES_MAX);
        if self.source.is_remote() && fits {
            let seconds = if found.is_some() { key.edge_seconds() } else { MISS_SECONDS };
            self.documents.insert(key.clone(), Until::seconds(found.clone(), seconds));
        }
        Ok(found)
    }

    /// Reads an object that the caller may read.
    async fn read(&self, read: &Read) -> Result<Answered, SourceError> {
        let key = read.key();
        let is_nar = matches!(key, EdgeKey::Nar(..));
        if let Some(disk) = self.disk.as_ref().filter(|_| is_nar)
            && let Some(opened) = disk.open_nar(key, read.part()).await
        {
            return Ok(answer_to(read, opened));
        }
        let name = key.to_string();
        if read.is_head() {
            let meta = self.within(self.source.head(&name)).await?;
            return Ok((read.respond(meta.as_ref()), None));
        }
        if self.source.is_remote() && matches!(key, EdgeKey::Narinfo(..) | EdgeKey::CacheInfo(_)) {
            let found = self.document(key).await?;
            let answer = read.respond(found.as_ref().map(|(meta, _)| meta));
            let bytes = found.map(|(_, bytes)| futures::stream::iter([Ok(bytes)]).boxed());
            return Ok((answer, bytes));
        }
        let opened = self.within(self.source.open(&name, read.part())).await?;
        let (answer, bytes) = answer_to(read, opened);
        let bytes = bytes.map(|bytes| with_timeout(bytes, self.settings.store_timeout));
        match (&self.disk, &answer.body, bytes) {
            (Some(disk), EdgeBody::Object(range), Some(bytes))
                if is_nar && read.part().is_none() && self.source.is_remote() =>
            {
                let kept = disk.keep(key, range.end, bytes).await;
                Ok((answer, Some(kept)))
            }
            (_, _, bytes) => Ok((answer, bytes)),
        }
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, SourceError>>) -> Result<T, SourceError> {
        let late =
            |_| SourceError::Read { name: "the store".to_owned(), source: io::ErrorKind::TimedOut.into() };
        tokio::time::timeout(self.settings.store_timeout, work).await.map_err(late)?
    }
}

impl Service for EdgeServer {
    type Body = Body;

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        match probe(&request) {
            Some(probe) => self.probes.answer(probe).await,
            None => self.respond(&request).await,
        }
    }

    async fn refuse(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        Probes::refuse(request.uri().path())
    }

    fn probes(&self) -> &Probes {
        &self.probes
    }
}

/// The values of a header as one, as the Worker's runtime gives them. Those that are no text count
/// as empty.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values: Vec<&str> =
        headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default()).collect();
    (!values.is_empty()).then(|| values.join(", "))
}

/// The address of this host as the client says it. A proxy in front speaks TLS, and says so; only
/// one on this machine is believed.
fn origin<B>(request: &Request<B>) -> Option<String> {
    let header = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let is_trusted = request.extensions().get().is_some_and(Peer::is_local);
    let scheme = if is_trusted && header(FORWARDED_PROTO) == Some("https") { "https" } else { "http" };
    Some(format!("{scheme}://{}", header(HOST)?))
}

/// The edge's rules refuse other methods than these, whatever the path.
fn probe(request: &Request<Incoming>) -> Option<Probe> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    Probe::parse(request.uri().path()).filter(|_| is_read)
}

/// Whether the store answers. The check reads the catalogue, because each publisher writes one. A
/// store without a catalogue answers too.
async fn check(source: Source) -> Result<(), NotReady> {
    let name = EdgeKey::Catalog.to_string();
    let found = tokio::time::timeout(CHECK_TIMEOUT, source.head(&name)).await;
    match found {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the store does not answer");
        }
        Err(_) => tracing::warn!("the store does not answer within {} s", CHECK_TIMEOUT.as_secs()),
    }
    Err(NotReady("the store does not answer"))
}

/// What a remembered state document takes in memory, in bytes. Names of no cache take next to
/// nothing.
fn state_weight(state: Option<&CacheState>) -> usize {
    // Beside its bytes, a text in a list takes its place in the list and that of an allocation.
    let texts = |texts: &[String]| texts.iter().map(|text| 64 + text.len()).sum::<usize>();
    let held =
        state.map_or(0, |state| state.store_dir.len() + texts(&state.public_keys) + texts(&state.revoked));
    512 + held
}

/// An answer, and where the bytes of its body come from.
type Answered = (Answer, Option<ByteStream>);

fn answer_to(read: &Read, opened: Opened) -> Answered {
    match opened {
        Opened::Missing => (read.respond(None), None),
        Opened::Outside(meta) => (read.respond(Some(&meta)), None),
        Opened::Found(meta, bytes) => (read.respond(Some(&meta)), Some(bytes)),
    }
}

fn damaged(name: &str) -> impl FnOnce(dormer_edge::Error) -> SourceError {
    let name = name.to_owned();
    move |error| SourceError::Read { name, source: io::Error::new(io::ErrorKind::InvalidData, error) }
}

/// Ends when the store pauses for too long; the connection is then cut short of its Content-Length.
fn with_timeout(bytes: ByteStream, limit: Duration) -> ByteStream {
    let pieces = futures::stream::unfold(Some(bytes), move |bytes| async move {
        let mut bytes = bytes?;
        match tokio::time::timeout(limit, bytes.next()).await {
            Ok(piece) => Some((piece?, Some(bytes))),
            Err(_) => Some((Err(io::ErrorKind::TimedOut.into()), None)),
        }
    });
    Box::pin(pieces)
}

fn to_response(answer: Answer, bytes: Option<ByteStream>) -> Response<Body> {
    let body = match (answer.body, bytes) {
        (EdgeBody::Object(_), Some(bytes)) => {
            StreamBody::new(bytes.map(|piece| piece.map(Frame::data))).boxed_unsync()
        }
        (EdgeBody::Text(text), _) => {
            Full::from(text).map_err(|never: Infallible| match never {}).boxed_unsync()
        }
        (EdgeBody::Empty | EdgeBody::Object(_), _) => {
            Full::default().map_err(|never: Infallible| match never {}).boxed_unsync()
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in answer.headers {
        match HeaderValue::try_from(value) {
            Ok(value) => {
                response.headers_mut().append(HeaderName::from_static(name), value);
            }
            // A store's tag with a line break in it.
            Err(error) => tracing::warn!(%error, name, "left out a header"),
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_proxy_on_this_machine_says_the_scheme() {
        let tcp = |address: &str| Some(Peer::Tcp(address.parse().unwrap()));
        for (peer, expected) in [
            (None, "http://edge"),
            (tcp("192.0.2.1:80"), "http://edge"),
            (tcp("[2001:db8::1]:80"), "http://edge"),
            (tcp("127.0.0.1:80"), "https://edge"),
            (tcp("[::1]:80"), "https://edge"),
            (tcp("[::ffff:127.0.0.1]:80"), "https://edge"),
            (Some(Peer::Unix), "https://edge"),
        ] {
            let mut request =
                Request::builder().header(HOST, "edge").header(FORWARDED_PROTO, "https").body(()).unwrap();
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            assert_eq!(origin(&request).as_deref(), Some(expected), "{peer:?}");
        }
    }

    fn state() -> CacheState {
        CacheState {
            version: CacheState::VERSION,
            cache: "main".parse().unwrap(),
            public: true,
            store_dir: "/nix/store".to_owned(),
            priority: 40,
            public_keys: Vec::new(),
            object_count: 1,
            file_bytes: 1,
            published_at: 1,
            revoked: Vec::new(),
        }
    }

    #[test]
    fn a_remembered_state_weighs_no_less_than_its_document() {
        let text = "x".repeat(100_000);
        for state in [
            state(),
            CacheState { store_dir: text.clone(), ..state() },
            CacheState { public_keys: vec![text.clone()], ..state() },
            CacheState { revoked: vec![text], ..state() },
            CacheState { revoked: vec![String::new(); 10_000], ..state() },
            CacheState { public_keys: vec![String::new(); 10_000], ..state() },
        ] {
            let lists = (state.revoked.len() + state.public_keys.len()) * size_of::<String>();
            let weight = state_weight(Some(&state));
            assert!(weight >= state.to_json().len().max(lists), "{weight}");
        }
    }

    #[tokio::test]
    async fn pages_that_wait_for_a_listing_keep_no_other_page_waiting() {
        const HASH: &str = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5";
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("main")).unwrap();
        std::fs::write(folder.path().join("main/dormer-state.json"), state().to_json()).unwrap();
        let nar = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        let narinfo = format!(
            "StorePath: /nix/store/{HASH}-a\nURL: nar/{nar}-00000000000000000000000000.nar.zst\n\
             Compression: zstd\nNarHash: sha256:{nar}\nNarSize: 120\nReferences: \n"
        );
        std::fs::write(folder.path().join(format!("main/{HASH}.narinfo")), narinfo).unwrap();
        let settings = EdgeSettings { store_timeout: Duration::from_secs(2), ..EdgeSettings::default() };
        let server = EdgeServer::new(Source::folder(folder.path()).unwrap(), None, None, settings);
        let visit = async |rest: &str| {
            let path = format!("/main/{HASH}{rest}");
            let request =
                EdgeRequest { method: "GET", path: &path, shows_pages: true, ..EdgeRequest::default() };
            let RequestPlan::Visit(visit) = plan(&request) else { panic!("{path} is no page") };
            server.visit(*visit).await.unwrap().0
        };
        let others = server.listing_turns.acquire_many(u32::try_from(LISTINGS_AT_ONCE).unwrap()).await;
        let mut waiting: Vec<_> = (0..PAGES_AT_ONCE).map(|_| Box::pin(visit("/files/"))).collect();
        let waits =
            tokio::time::timeout(Duration::from_millis(500), futures::future::select_all(waiting.iter_mut()));
        assert!(waits.await.is_err(), "a page of files did not wait");
        assert_eq!(server.page_turns.available_permits(), PAGES_AT_ONCE);
        assert_eq!(visit("").await.status, 200);
        for answer in futures::future::join_all(waiting).await {
            assert_eq!(answer.status, 503);
            assert_eq!(answer.body, Answer::busy(false).body);
        }
        drop(others);
        assert_eq!(visit("/files/").await.status, 404, "there is no listing");
    }

    #[tokio::test]
    async fn the_largest_narinfo_that_is_published_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let server =
            EdgeServer::new(Source::folder(folder.path()).unwrap(), None, None, EdgeSettings::default());
        let hash = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5";
        let key = EdgeKey::parse(&format!("main/{hash}.narinfo")).unwrap();
        std::fs::create_dir(folder.path().join("main")).unwrap();
        // The largest that the server takes, with one more signature.
        let text = vec![b'x'; 4 * 1024 * 1024 + 100];
        std::fs::write(folder.path().join(key.to_string()), &text).unwrap();
        let (meta, bytes) = server.document(&key).await.unwrap().unwrap();
        assert_eq!((meta.size, bytes.len()), (text.len() as u64, text.len()));
    }
}
