//! A real server in this process, on a temporary folder, and HTTP as bytes on a socket.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "`it` and `logs` each use a part of this, and what fails here fails the test"
)]

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormer_blobs::{BlobKey, Blobs, LocalBlobs};
use dormer_engine::{CreateCache, Engine, EngineSettings, MasterKey, SystemClock};
use dormer_index::{Index, PostgresIndex, PostgresOptions, SqlIndex, SqliteIndex, SqliteOptions};
use dormer_nix::{NarHash, StorePath};
use dormer_server::{Authenticator, Metrics, ServerSettings, TokenBounds, TokenKey, TokenVerifier};
use dormer_testkit::create_postgres_index;
use dormer_testkit::services::Postgres;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// What tokens of these tests are signed with.
pub const SECRET: &[u8] = b"a secret of the tests, 32 bytes.";

/// What differs from the default in a test.
pub struct Options {
    pub engine: EngineSettings,
    pub server: ServerSettings,
    pub authenticator: Authenticator,
    pub master_key: [u8; 32],
    /// Whether the index is a PostgreSQL database.
    pub on_postgres: bool,
}

impl Default for Options {
    fn default() -> Self {
        let engine = EngineSettings {
            // Small chunks, so that small NARs have many.
            chunk_params: dormer_format::ChunkParams { min: 1024, avg: 4096, max: 16 * 1024 },
            zstd_level: 1,
            pack_wait: Duration::from_millis(2),
            session_grid: Duration::from_millis(1),
            ..EngineSettings::default()
        };
        Self {
            engine,
            server: ServerSettings::default(),
            authenticator: authenticator(&TokenKey::Hs256(SECRET.to_vec()), TokenBounds::default()),
            master_key: [9; 32],
            on_postgres: false,
        }
    }
}

/// A signature in form: nobody could verify it.
pub fn signature(key: &str, letter: &str) -> String {
    format!("{key}:{}A==", letter.repeat(85))
}

/// Takes tokens that this key verifies.
pub fn authenticator(key: &TokenKey, bounds: TokenBounds) -> Authenticator {
    Authenticator::new(TokenVerifier::new(key, bounds).unwrap())
}

/// A running server with a public cache `main` and a private one `team-a`.
pub struct Server {
    pub address: SocketAddr,
    pub folder: TempDir,
    pub engine: Engine,
    pub store: Arc<Unreliable>,
    pub metrics: Arc<Metrics>,
    served: dormer_server::Server,
    pub index: Arc<dyn Index>,
    pub publish: Arc<SqlIndex>,
    serving: Option<tokio::task::JoinHandle<Result<(), dormer_server::Error>>>,
    stop: Option<oneshot::Sender<()>>,
    runtime: Option<Runtime>,
}

impl Server {
    pub fn start() -> Self {
        Self::start_with(|_| ())
    }

    /// One over SQLite and one over PostgreSQL.
    pub fn on_each_database() -> [Self; 2] {
        [false, true].map(|on_postgres| Self::start_with(|options| options.on_postgres = on_postgres))
    }

    pub fn start_with(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::default();
        change(&mut options);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let folder = TempDir::new().unwrap();
        let packs = folder.path().join("storage");
        let store = Arc::new(Unreliable {
            inner: LocalBlobs::open(&packs).unwrap(),
            is_down: AtomicBool::new(false),
            is_hanging: AtomicBool::new(false),
            is_defective: AtomicBool::new(false),
        });
        let index = runtime.block_on(async {
            if options.on_postgres {
                let url = create_postgres_index(Postgres::shared()).await;
                let few = PostgresOptions { connections_max: 4, ..PostgresOptions::default() };
                PostgresIndex::open(&url, few).await.unwrap()
            } else {
                SqliteIndex::open(&folder.path().join("index.sqlite"), SqliteOptions::default())
                    .await
                    .unwrap()
            }
        });
        let publish = Arc::new(index);
        let index: Arc<dyn Index> = publish.clone();
        let blobs: Arc<dyn Blobs> = store.clone();
        let in_runtime = runtime.enter();
        let engine = Engine::new(
            Arc::clone(&index),
            blobs,
            MasterKey::from_bytes([9; 32]),
            options.engine.clone(),
            Arc::new(SystemClock),
        );
        for (name, is_public) in [("main", true), ("team-a", false)] {
            let new = CreateCache {
                name: name.to_owned(),
                is_public,
                store_dir: "/nix/store".to_owned(),
                priority: 41,
                upstream_cache_key_names: vec!["cache.nixos.org-1".to_owned()],
                secret_key: None,
                allow_replacement: false,
            };
            runtime.block_on(engine.create_cache(new)).unwrap();
        }
        // Another master key means another engine: the caches above were made with the right one.
        let served = if options.master_key == [9; 32] {
            engine.clone()
        } else {
            Engine::new(
                Arc::clone(&index),
                store.clone(),
                MasterKey::from_bytes(options.master_key),
                options.engine,
                Arc::new(SystemClock),
            )
        };
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = dormer_server::Server::new(served, options.authenticator, options.server);
        server.watch_publishing(publish.clone()).unwrap();
        let runner = dormer_engine::JobRunner::new(
            publish.clone(),
            Arc::new(SystemClock),
            "test".to_owned(),
            dormer_engine::JobSettings::default(),
        );
        server.metrics().register(Box::new(runner.metrics())).unwrap();
        server.metrics().register(Box::new(runner.stored_metrics())).unwrap();
        let collector = engine.collector(publish.clone(), None, 86_400);
        server.metrics().register(Box::new(collector.metrics())).unwrap();
        let scrubber = engine.scrubber(publish.clone());
        server.metrics().register(Box::new(scrubber.metrics())).unwrap();
        server.watch_operations(dormer_server::Operations::new(
            "test".to_owned(),
            publish.clone(),
            collector,
            scrubber,
        ));
        server.metrics().register(Box::new(dormer_engine::JournalMetrics::default())).unwrap();
        let metrics = Arc::clone(server.metrics());
        let serving = server.clone().run(
            listener.into(),
            Box::pin(async {
                stopped.await.ok();
            }),
        );
        let serving = Some(runtime.spawn(serving));
        drop(in_runtime);
        Self {
            address,
            folder,
            engine,
            store,
            index,
            publish,
            metrics,
            served: server,
            serving,
            stop: Some(stop),
            runtime: Some(runtime),
        }
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(future)
    }

    /// Asks the server to stop, without waiting.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until the server has stopped.
    pub fn stopped(&mut self) -> Result<(), dormer_server::Error> {
        let serving = self.serving.take().expect("it is waited for once");
        self.block_on(async { tokio::time::timeout(Duration::from_mins(1), serving).await.unwrap().unwrap() })
    }

    /// The value of a counter or gauge, with its labels as they are written: `name{label="x"}`.
    #[track_caller]
    pub fn metric(&self, series: &str) -> usize {
        let page = String::from_utf8(self.metrics.render().unwrap()).unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{series} is not in\n{page}")).parse().unwrap()
    }

    /// Serves the metrics; where.
    pub fn serve_metrics(&self) -> SocketAddr {
        let listener = self.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        self.runtime.as_ref().unwrap().spawn(self.served.serve_metrics(listener.into()));
        address
    }

    /// Sends these bytes on a connection of their own and reads until the server closes.
    #[track_caller]
    pub fn exchange(&self, request: &[u8]) -> Reply {
        let mut stream = self.connect();
        // A server that refuses may close before it has read all: its answer counts.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Reply::parse(&answer, request.starts_with(b"HEAD "))
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        stream
    }

    /// A request with these header lines and this body.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        for (name, value) in headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        if !matches!(method, "GET" | "HEAD") {
            write!(head, "Content-Length: {}\r\n", body.len()).unwrap();
        }
        head.push_str("\r\n");
        self.exchange(&[head.as_bytes(), body].concat())
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[], b"")
    }

    /// As the bearer of a token for these caches.
    #[track_caller]
    pub fn call(&self, token: &str, method: &str, path: &str, body: &[u8]) -> Reply {
        self.request(method, path, &[("Authorization", &format!("Bearer {token}"))], body)
    }

    /// Pushes a NAR by Attic's API.
    #[track_caller]
    pub fn push(&self, cache: &str, path: &StorePath, nar: &[u8]) -> Reply {
        let info = nar_info(cache, path, nar, &json!({})).to_string();
        let bearer = format!("Bearer {}", admin());
        let reply = self.request(
            "PUT",
            "/_api/v1/upload-path",
            &[("X-Attic-Nar-Info", &info), ("Authorization", &bearer)],
            nar,
        );
        assert_eq!(reply.status, 200, "{reply:?}");
        reply
    }

    /// The path of a NAR's present name, from its narinfo.
    #[track_caller]
    pub fn nar_url(&self, cache: &str, path: &StorePath) -> String {
        let narinfo = self.call(&admin(), "GET", &format!("/{cache}/{}.narinfo", path.hash()), b"");
        assert_eq!(narinfo.status, 200, "{narinfo:?}");
        let text = narinfo.text();
        let url = text.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
        format!("/{cache}/{url}")
    }

    /// The pack files, largest first.
    pub fn packs(&self) -> Vec<std::path::PathBuf> {
        let mut folders = vec![self.folder.path().join("storage")];
        let mut packs = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "pack") {
                    packs.push(path);
                }
            }
        }
        packs.sort_by_key(|path| std::cmp::Reverse(path.metadata().unwrap().len()));
        packs
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A store that can be switched off, with an error that names a file.
#[derive(Debug)]
pub struct Unreliable {
    inner: LocalBlobs,
    is_down: AtomicBool,
    is_hanging: AtomicBool,
    is_defective: AtomicBool,
}

impl Unreliable {
    /// From now on, reading panics.
    pub fn set_defective(&self, is_defective: bool) {
        self.is_defective.store(is_defective, Ordering::SeqCst);
    }

    pub fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::SeqCst);
    }

    /// From now on, the store answers no question after an object.
    pub fn set_hanging(&self, is_hanging: bool) {
        self.is_hanging.store(is_hanging, Ordering::SeqCst);
    }

    fn check(&self, attempt: &'static str) -> dormer_blobs::Result<()> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(dormer_blobs::Error::Io {
                attempt,
                key: "/secret/folder/of/packs".to_owned(),
                source: std::io::Error::other("/secret/device is on fire"),
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Blobs for Unreliable {
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> dormer_blobs::Result<()> {
        self.check("store")?;
        self.inner.put(key, parts).await
    }
    async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> dormer_blobs::Result<Bytes> {
        self.check("read")?;
        assert!(!self.is_defective.load(Ordering::SeqCst), "planted");
        self.inner.get_range(key, range).await
    }
    async fn head(&self, key: &BlobKey) -> dormer_blobs::Result<u64> {
        self.check("look for")?;
        if self.is_hanging.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.inner.head(key).await
    }
    async fn delete(&self, key: &BlobKey) -> dormer_blobs::Result<()> {
        self.inner.delete(key).await
    }
    async fn list(&self) -> dormer_blobs::Result<Vec<BlobKey>> {
        self.inner.list().await
    }
}

/// Sends these bytes and reads until the other side closes.
pub fn ask(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// An answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body is as long as was promised.
    pub complete: bool,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text: String = self.text().chars().take(600).collect();
        write!(f, "{} {:?} ({} bytes) {text}", self.status, self.headers, self.body.len())
    }
}

impl Reply {
    #[track_caller]
    pub fn parse(answer: &[u8], is_head: bool) -> Self {
        let end = answer
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(answer)));
        let head = std::str::from_utf8(&answer[..end]).unwrap();
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        if status == 100 {
            return Self::parse(&answer[end + 4..], is_head);
        }
        let headers: Vec<(String, String)> = head
            .split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let rest = &answer[end + 4..];
        let of = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        if of("x-request-id").is_some() {
            check_caching(status, of("cache-control"), of("vary"), of("x-attic-cache-visibility"));
        }
        let (body, complete) = if is_head {
            (rest.to_vec(), true)
        } else if of("transfer-encoding") == Some("chunked") {
            unchunk(rest)
        } else {
            let promised = of("content-length").map(|length| length.parse::<usize>().unwrap());
            (rest.to_vec(), promised.is_none_or(|length| length == rest.len()))
        };
        Self { status, headers, body, complete }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// What two callers can compare: all but the time and the request's id.
    pub fn without_noise(mut self) -> Self {
        self.headers.retain(|(name, _)| name != "date" && name != "x-request-id");
        self
    }
}

/// What every answer of every test must say to caches between server and client.
#[track_caller]
fn check_caching(status: u16, control: Option<&str>, vary: Option<&str>, visibility: Option<&str>) {
    let control = control.unwrap_or_else(|| panic!("a {status} without Cache-Control"));
    let is_private = control.starts_with("private");
    let names_authorization =
        vary.is_some_and(|vary| vary.split(", ").any(|header| header == "authorization"));
    assert_eq!(names_authorization, is_private, "{status}: {control}, {vary:?}");
    assert!(control.contains("no-store") || matches!(status, 200 | 206 | 304), "{status}: {control}");
    // Of what is not about a public cache, only the line at `/` may be kept by everybody.
    assert!(!control.contains("immutable") || is_private || visibility == Some("public"), "{control}");
}

fn unchunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return (body, true);
        }
        let Some(piece) = rest.get(end + 2..end + 2 + size) else { break };
        body.extend_from_slice(piece);
        let Some(after) = rest.get(end + 4 + size..) else { break };
        rest = after;
    }
    (body, false)
}

/// A body in chunked coding, cut where nothing else is cut.
pub fn chunked(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in body.chunks(777) {
        bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        bytes.extend_from_slice(piece);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

/// Looks every 20 ms until there is something; fails after a minute.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = std::time::Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < Duration::from_mins(1), "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap()
}

/// Signs claims.
pub fn sign(algorithm: Algorithm, key: &EncodingKey, claims: &Value) -> String {
    jsonwebtoken::encode(&Header::new(algorithm), claims, key).unwrap()
}

/// A token that is valid for an hour and gives these permissions.
pub fn token(caches: &Value) -> String {
    token_of("test", caches)
}

/// The same, made for somebody.
pub fn token_of(sub: &str, caches: &Value) -> String {
    let claims = json!({"sub": sub, "exp": now() + 3600, "https://jwt.attic.rs/v1": {"caches": caches}});
    sign(Algorithm::HS256, &EncodingKey::from_secret(SECRET), &claims)
}

/// A token with this value of Attic's claim.
pub fn token_with(access: &Value) -> String {
    let claims = json!({"sub": "test", "exp": now() + 3600, "https://jwt.attic.rs/v1": access});
    sign(Algorithm::HS256, &EncodingKey::from_secret(SECRET), &claims)
}

/// A token that may do everything.
pub fn admin() -> String {
    token(&json!({"*": {"r": 1, "w": 1, "d": 1, "cc": 1, "cr": 1, "cq": 1, "cd": 1}}))
}

/// A store path.
pub fn path(number: u8) -> StorePath {
    format!("{}-package-{number}", dormer_nix::nix32::encode(&[number; 20])).parse().unwrap()
}

/// A small package that refers to path 200.
pub fn nar(seed: u64) -> Vec<u8> {
    sized_nar(seed, 40_000)
}

pub fn sized_nar(seed: u64, bytes: usize) -> Vec<u8> {
    dormer_testkit::package_nar(&mut dormer_testkit::Random::new(seed), bytes, &[path(200)])
}

/// Metadata of an upload as Attic writes it, with some fields replaced.
pub fn nar_info(cache: &str, path: &StorePath, nar: &[u8], other: &Value) -> Value {
    let mut info = json!({
        "cache": cache,
        "store_path_hash": path.hash().to_string(),
        "store_path": format!("/nix/store/{path}"),
        "references": [],
        "system": null,
        "deriver": null,
        "sigs": [],
        "ca": null,
        "nar_hash": format!("sha256:{}", NarHash::digest(nar).to_hex()),
        "nar_size": nar.len(),
    });
    for (key, value) in other.as_object().unwrap() {
        info[key] = value.clone();
    }
    info
}

/// A narinfo as Nix writes it.
pub fn narinfo(path: &StorePath, nar: &[u8], file_name: &str, compression: &str, more: &str) -> String {
    format!(
        "StorePath: /nix/store/{path}\nURL: nar/{file_name}\nCompression: {compression}\nNarHash: {}\nNarSize: {}\n\
         References: \n{more}",
        NarHash::digest(nar),
        nar.len()
    )
}

/// What any zstd decoder makes of served bytes.
pub fn unzstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::decode_all(bytes).unwrap()
}
