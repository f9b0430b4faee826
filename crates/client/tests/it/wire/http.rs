//! What the client sends, and what it does when the server misbehaves.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::support::{Server, Step};
use dormer_api::v2::{AddPinRequest, ListObjectsRequest, ListPinsRequest, SortObjects};
use dormer_api::{
    CacheConfig, CacheName, CreateCacheRequest, ErrorName, Keypair, PinName, RetentionPeriod, Secret,
    UploadPathNarInfo, UploadPathResultKind,
};
use dormer_client::{
    ApiClient, BuildLog, CaseHack, DumpError, Error, HttpSettings, NarSource, Retry, RetryPolicy,
    RetryReporter, Silent, UploadReporter,
};
use dormer_nix::nar::{Node, encode_tree};
use dormer_nix::{BuildTrace, DocumentName, NarHash, StoreDir, StorePath, StorePathHash, TraceKey};
use futures::future::LocalBoxFuture;

const HASH: &str = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5";

/// Tries four times, quickly.
fn quick() -> HttpSettings {
    HttpSettings {
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(10),
        retry: RetryPolicy {
            tries_max: 4,
            wait_first: Duration::from_millis(20),
            wait_first_busy: Duration::from_millis(40),
            wait_max: Duration::from_millis(100),
            retry_after_max: Duration::from_secs(3),
        },
    }
}

fn client(server: &Server) -> ApiClient {
    ApiClient::new(server.address.parse().unwrap(), Some(&Secret::new("eyJ.t.k")), quick()).unwrap()
}

fn main_cache() -> CacheName {
    "main".parse().unwrap()
}

fn ok(body: &str) -> Step {
    Step::Answer(200, "", body.to_owned())
}

fn failure(status: u16, name: &str) -> Step {
    Step::Answer(
        status,
        "",
        format!(r#"{{"code":{status},"error":"{name}","message":"words of the server"}}"#),
    )
}

const UPLOADED: &str = r#"{"kind":"Uploaded","file_size":99,"frac_deduplicated":0.5}"#;

/// A token that may not pull is not told whether the cache has a log, so the request that sends the
/// log says that the present one stays.
#[tokio::test]
async fn a_log_that_is_there_stays_when_one_is_added() {
    let refused = failure(403, "AccessError");
    let server = Server::scripted([refused, ok(""), failure(412, "RequestError"), ok("")]).await;
    let (api, cache) = (client(&server), main_cache());
    let derivation = format!("{HASH}-hello.drv").parse().unwrap();
    let log = || BuildLog { bytes: b"built\n".to_vec(), encoding: Some("zstd") };
    assert!(!api.has_log(&cache, &derivation).await.unwrap());
    assert!(api.add_log(&cache, &derivation, log()).await.unwrap());
    assert!(!api.add_log(&cache, &derivation, log()).await.unwrap(), "the cache keeps its own");
    api.put_log(&cache, &derivation, log()).await.unwrap();
    let requests = server.requests();
    let sent: Vec<_> = requests[1..].iter().map(|put| (&*put.line, put.header("if-none-match"))).collect();
    let line = format!("PUT /main/log/{derivation} HTTP/1.1");
    assert_eq!(sent, [(&*line, Some("*")), (&*line, Some("*")), (&*line, None)]);
}

#[tokio::test]
async fn requests_look_as_attics_client_sends_them() {
    let server = Server::scripted([
        ok(r#"{"is_public":false,"retention_period":"Global"}"#),
        ok(""),
        ok(""),
        ok(""),
        ok(&format!(r#"{{"missing_paths":["{HASH}"]}}"#)),
        ok(r#"{"caches":[],"next":"main"}"#),
        ok(r#"{"caches":[]}"#),
        ok(r#"{"removed":false}"#),
    ])
    .await;
    let (api, cache) = (client(&server), main_cache());
    let hash: StorePathHash = HASH.parse().unwrap();
    let config = api.get_cache_config(&cache).await.unwrap();
    assert_eq!(config.retention_period, Some(RetentionPeriod::Global));
    let create = CreateCacheRequest {
        keypair: Keypair::Generate,
        is_public: true,
        store_dir: StoreDir::default(),
        priority: 41,
        upstream_cache_key_names: vec!["cache.nixos.org-1".to_owned()],
        allow_replacement: false,
    };
    api.create_cache(&cache, &create).await.unwrap();
    let patch = CacheConfig { retention_period: Some(RetentionPeriod::Period(60)), ..CacheConfig::default() };
    api.configure_cache(&cache, &patch).await.unwrap();
    api.destroy_cache(&cache).await.unwrap();
    assert_eq!(api.get_missing_paths(&cache, vec![hash]).await.unwrap(), [hash]);
    assert!(api.list_caches().await.unwrap().caches.is_empty());
    assert!(!api.remove_path(&cache, &hash, false).await.unwrap().removed);

    let requests = server.requests();
    let sent: Vec<(&str, &str)> = requests
        .iter()
        .map(|request| (request.line.as_str(), std::str::from_utf8(&request.body).unwrap()))
        .collect();
    assert_eq!(
        sent,
        [
            ("GET /_api/v1/cache-config/main HTTP/1.1", ""),
            (
                "POST /_api/v1/cache-config/main HTTP/1.1",
                concat!(
                    r#"{"keypair":"Generate","is_public":true,"store_dir":"/nix/store","priority":41,"#,
                    r#""upstream_cache_key_names":["cache.nixos.org-1"]}"#
                )
            ),
            ("PATCH /_api/v1/cache-config/main HTTP/1.1", r#"{"retention_period":{"Period":60}}"#),
            ("DELETE /_api/v1/cache-config/main HTTP/1.1", ""),
            (
                "POST /_api/v1/get-missing-paths HTTP/1.1",
                r#"{"cache":"main","store_path_hashes":["1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5"]}"#
            ),
            ("GET /_api/v2/caches HTTP/1.1", ""),
            ("GET /_api/v2/caches?after=main HTTP/1.1", ""),
            ("DELETE /_api/v2/caches/main/objects/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5 HTTP/1.1", ""),
        ]
    );
    for request in &requests {
        assert_eq!(request.header("authorization"), Some("Bearer eyJ.t.k"));
        assert!(request.header("user-agent").unwrap().starts_with("dormer/"));
    }
}

#[tokio::test]
async fn a_list_of_caches_that_does_not_go_forward_is_an_error() {
    // Names of the pages, in turn, and how many pages the client reads.
    for (names, pages) in [(&["main"][..], 2), (&["b", "a"], 2), (&["a", "b"], 3)] {
        let answer =
            move |number: usize| ok(&format!(r#"{{"caches":[],"next":"{}"}}"#, names[number % names.len()]));
        let server = Server::answering(move |number, _| answer(number)).await;
        let api = client(&server);
        let listed = tokio::time::timeout(Duration::from_secs(20), api.list_caches()).await;
        let listed = listed.expect("the list ends");
        assert!(matches!(listed, Err(Error::EndlessList { .. })), "{names:?}: {listed:?}");
        assert_eq!(server.requests().len(), pages, "{names:?}");
    }
}

/// The answer of a server, and the error that it must become.
type Case = (Step, fn(&Error) -> bool);

#[tokio::test]
async fn refusals_are_told_apart_and_keep_the_servers_words() {
    let cases: [Case; 8] = [
        (failure(401, "Unauthorized"), |error| matches!(error, Error::Unauthorized { with_token: true, .. })),
        (failure(403, "AccessError"), |error| matches!(error, Error::Forbidden { .. })),
        (failure(404, "NoSuchCache"), |error| matches!(error, Error::NoSuchCache { .. })),
        (failure(400, "CacheAlreadyExists"), |error| matches!(error, Error::CacheExists { .. })),
        (failure(404, "NoSuchObject"), |error| {
            matches!(error, Error::Refused { status: 404, name: Some(ErrorName::NoSuchObject), .. })
        }),
        (failure(400, "SomethingNew"), |error| {
            matches!(error, Error::Refused { status: 400, name: None, .. })
        }),
        (failure(413, "words of the server"), |error| matches!(error, Error::Refused { status: 413, .. })),
        (Step::Answer(405, "", "words of the server".to_owned()), |error| {
            matches!(error, Error::Refused { status: 405, .. })
        }),
    ];
    for (step, expected) in cases {
        let server = Server::scripted([step.clone()]).await;
        let error = client(&server).get_cache_config(&main_cache()).await.unwrap_err();
        assert!(expected(&error), "{step:?}: {error:?}");
        assert!(error.to_string().contains("words of the server"), "{error}");
        assert_eq!(server.requests().len(), 1, "{step:?} was tried again");
    }
}

#[tokio::test]
async fn an_answer_from_something_else_is_an_error() {
    let server = Server::scripted([ok("<html>Welcome!</html>")]).await;
    let error = client(&server).get_cache_config(&main_cache()).await.unwrap_err();
    assert!(matches!(error, Error::Answer { .. }));
}

/// Keeps the reported events.
#[derive(Default)]
struct Log {
    waits: Mutex<Vec<(u32, Duration)>>,
    bytes: Mutex<u64>,
}

impl RetryReporter for Log {
    fn retrying(&self, retry: &Retry<'_>) {
        assert_eq!(retry.tries_max, 4);
        self.waits.lock().unwrap().push((retry.tries, retry.wait));
    }
}

impl UploadReporter for Log {
    fn progress(&self, bytes: u64) {
        *self.bytes.lock().unwrap() += bytes;
    }

    fn retrying(&self, retry: &Retry<'_>) {
        RetryReporter::retrying(self, retry);
    }
}

#[tokio::test]
async fn passing_failures_are_tried_again_and_reported() {
    let server = Server::scripted([
        Step::HangUp,
        failure(500, "InternalServerError"),
        failure(503, "ServiceUnavailable"),
        ok(r#"{"missing_paths":[]}"#),
    ])
    .await;
    let log = Arc::new(Log::default());
    let api = client(&server).with_retry_reporter(log.clone());
    api.get_missing_paths(&main_cache(), vec![HASH.parse().unwrap()]).await.unwrap();
    let tries: Vec<u32> = log.waits.lock().unwrap().iter().map(|(tries, _)| *tries).collect();
    assert_eq!(tries, [1, 2, 3]);
    let requests = server.requests();
    assert_eq!(requests.len(), 4);
    assert!(requests.iter().all(|request| request.body == requests[0].body));
}

#[tokio::test]
async fn tries_come_to_an_end() {
    let server = Server::scripted([failure(503, "ServiceUnavailable")]).await;
    let error = client(&server).list_caches().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { status: 503, tries: 4, .. }), "{error:?}");
    assert_eq!(server.requests().len(), 4);

    // Nobody listens on this port: it was free a moment ago.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let api = ApiClient::new(address.parse().unwrap(), None, quick()).unwrap();
    let error = api.list_caches().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { tries: 4, .. }), "{error:?}");
    assert!(error.is_fatal_for_push());
}

#[tokio::test]
async fn retry_after_is_obeyed() {
    for status in [429, 503] {
        let server = Server::scripted([
            Step::Answer(status, "Retry-After: 1\r\n", String::new()),
            ok(r#"{"caches":[]}"#),
        ])
        .await;
        client(&server).list_caches().await.unwrap();
        let requests = server.requests();
        let pause = requests[1].at.duration_since(requests[0].at);
        assert!(pause >= Duration::from_secs(1), "came back to a {status} after {pause:?}");
    }
    // Longer than the client is willing to wait, so it gives up at once instead of coming early.
    let server = Server::scripted([Step::Answer(503, "Retry-After: 3600\r\n", String::new())]).await;
    let started = Instant::now();
    assert!(matches!(client(&server).list_caches().await, Err(Error::Unavailable { tries: 1, .. })));
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn creating_and_destroying_are_not_repeated_when_they_may_have_been_done() {
    let create = CreateCacheRequest {
        keypair: Keypair::Generate,
        is_public: false,
        store_dir: StoreDir::default(),
        priority: 41,
        upstream_cache_key_names: Vec::new(),
        allow_replacement: false,
    };
    for step in [Step::HangUp, failure(500, "InternalServerError"), failure(502, "")] {
        let server = Server::scripted([step, ok("")]).await;
        assert!(client(&server).create_cache(&main_cache(), &create).await.is_err());
        assert_eq!(server.requests().len(), 1);
        let server = Server::scripted([Step::HangUp, ok("")]).await;
        assert!(client(&server).destroy_cache(&main_cache()).await.is_err());
        assert_eq!(server.requests().len(), 1);
    }
    let server = Server::scripted([failure(503, "ServiceUnavailable"), ok("")]).await;
    client(&server).create_cache(&main_cache(), &create).await.unwrap();
    assert_eq!(server.requests().len(), 2);
}

/// A file on the disk, its NAR, and what an upload of it needs.
struct Package {
    _folder: tempfile::TempDir,
    nar: Vec<u8>,
    source: NarSource,
    info: UploadPathNarInfo,
}

fn package(length: usize) -> Package {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("package");
    let contents = [b"some contents, ".repeat(length / 15), vec![7; length % 15]].concat();
    std::fs::write(&path, &contents).unwrap();
    let nar = encode_tree(&Node::file(contents));
    let (nar_hash, nar_size) = (NarHash::digest(&nar), nar.len() as u64);
    let info = UploadPathNarInfo {
        cache: main_cache(),
        store_path_hash: HASH.parse().unwrap(),
        store_path: format!("/nix/store/{HASH}-package"),
        references: Vec::new(),
        system: None,
        deriver: None,
        sigs: Vec::new(),
        ca: None,
        nar_hash,
        nar_size,
        extra: Vec::new(),
    };
    let source = NarSource { path, nar_hash, nar_size, case_hack: CaseHack::Keep };
    Package { _folder: folder, nar, source, info }
}

#[tokio::test]
async fn an_upload_is_metadata_in_a_header_and_the_nar_in_chunks() {
    let package = package(1_000_000);
    let server = Server::scripted([ok(UPLOADED)]).await;
    let log = Log::default();
    let uploaded = client(&server).upload_path(&package.info, &package.source, &log).await.unwrap();
    assert_eq!(uploaded.result.kind, UploadPathResultKind::Uploaded);
    assert_eq!(uploaded.bytes_sent, package.nar.len() as u64);
    assert_eq!(*log.bytes.lock().unwrap(), package.nar.len() as u64);
    let request = &server.requests()[0];
    assert_eq!(request.line, "PUT /_api/v1/upload-path HTTP/1.1");
    assert_eq!(request.header("transfer-encoding"), Some("chunked"));
    assert_eq!(request.header("content-length"), None);
    assert_eq!(request.header("x-attic-nar-info-preamble-size"), None);
    let hex = package.info.nar_hash.to_hex();
    assert_eq!(
        request.header("x-attic-nar-info").unwrap(),
        format!(
            concat!(
                r#"{{"cache":"main","store_path_hash":"{HASH}","store_path":"/nix/store/{HASH}-package","references":[],"#,
                r#""system":null,"deriver":null,"sigs":[],"ca":null,"nar_hash":"sha256:{hex}","nar_size":{size}}}"#
            ),
            HASH = HASH,
            hex = hex,
            size = package.nar.len()
        )
    );
    assert!(request.body == package.nar && request.is_whole);
}

#[tokio::test]
async fn long_metadata_goes_in_front_of_the_nar() {
    let mut package = package(1000);
    package.info.references = vec![format!("{HASH}-package"); 100];
    let server = Server::scripted([ok(UPLOADED)]).await;
    client(&server).upload_path(&package.info, &package.source, &Silent).await.unwrap();
    let request = &server.requests()[0];
    assert_eq!(request.header("x-attic-nar-info"), None);
    let size: usize = request.header("x-attic-nar-info-preamble-size").unwrap().parse().unwrap();
    assert!(size >= 4096);
    assert!(request.body[..size].starts_with(br#"{"cache":"main","store_path_hash":"#));
    assert!(request.body[..size].ends_with(b"}") && request.body[size..] == package.nar);
}

#[tokio::test]
async fn a_broken_upload_starts_again_from_the_disk() {
    let package = package(5_000_000);
    let server = Server::scripted([
        Step::HangUpAfter(100_000),
        failure(503, "ServiceUnavailable"),
        Step::HangUp,
        ok(UPLOADED),
    ])
    .await;
    let log = Log::default();
    let uploaded = client(&server).upload_path(&package.info, &package.source, &log).await.unwrap();
    assert_eq!(log.waits.lock().unwrap().len(), 3);
    let requests = server.requests();
    assert_eq!(requests.len(), 4);
    assert!(!requests[0].is_whole);
    assert!(requests[1..].iter().all(|request| request.body == package.nar && request.is_whole));
    assert!(uploaded.bytes_sent >= 3 * package.nar.len() as u64);
    assert_eq!(uploaded.bytes_sent, *log.bytes.lock().unwrap());
}

#[tokio::test]
async fn an_upload_that_is_refused_is_not_repeated() {
    let package = package(5_000_000);
    for step in [
        failure(400, "RequestError"),
        Step::AnswerEarly(403, r#"{"code":403,"error":"AccessError","message":"no"}"#.to_owned()),
    ] {
        let server = Server::scripted([step]).await;
        let error = client(&server).upload_path(&package.info, &package.source, &Silent).await.unwrap_err();
        assert!(matches!(error, Error::Refused { status: 400, .. } | Error::Forbidden { .. }), "{error:?}");
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_server_that_knows_the_nar_need_not_read_it() {
    let package = package(5_000_000);
    let server = Server::scripted([Step::AnswerEarly(200, r#"{"kind":"Deduplicated"}"#.to_owned())]).await;
    let uploaded = client(&server).upload_path(&package.info, &package.source, &Silent).await.unwrap();
    assert_eq!(uploaded.result.kind, UploadPathResultKind::Deduplicated);
}

#[tokio::test]
async fn a_damaged_path_is_named_and_never_sent_whole() {
    let package = package(20_000_000);
    let mut contents = std::fs::read(&package.source.path).unwrap();
    contents[600_000] ^= 1;
    std::fs::write(&package.source.path, contents).unwrap();
    let server = Server::scripted([ok(UPLOADED)]).await;
    let error = client(&server).upload_path(&package.info, &package.source, &Silent).await.unwrap_err();
    assert!(matches!(&error, Error::Dump { source: DumpError::Damaged { .. }, .. }), "{error:?}");
    assert!(error.to_string().contains(package.source.path.to_str().unwrap()));
    assert!(!error.is_fatal_for_push());
    // The server notices the hang-up a moment later. It must not have seen a proper end.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert!(!requests[0].is_whole && requests[0].body.len() < package.nar.len());
}

#[tokio::test]
async fn a_connection_on_which_nothing_moves_is_given_up() {
    let settings = HttpSettings {
        idle_timeout: Duration::from_millis(300),
        retry: RetryPolicy { tries_max: 2, ..quick().retry },
        ..quick()
    };
    // Larger than what socket buffers hold.
    let package = package(40_000_000);
    let server = Server::scripted([Step::Stall]).await;
    let api = ApiClient::new(server.address.parse().unwrap(), None, settings).unwrap();
    let started = Instant::now();
    let error = api.upload_path(&package.info, &package.source, &Silent).await.unwrap_err();
    assert!(matches!(error, Error::Stalled { .. }), "{error:?}");
    assert!(matches!(api.list_caches().await, Err(Error::Unreachable { tries: 2, .. })));
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn a_refusal_names_the_request_so_that_the_servers_log_can_be_searched() {
    let refusal = Step::Answer(400, "X-Request-Id: 0123456789abcdef\r\n", "words of the server".to_owned());
    let server = Server::scripted([refusal]).await;
    let error = client(&server).get_cache_config(&main_cache()).await.unwrap_err();
    assert!(error.to_string().ends_with("words of the server (request 0123456789abcdef)"), "{error}");
}

/// A redirect of this status to an address.
fn redirect(status: u16, to: &str) -> Step {
    let header: &'static str = Box::leak(format!("Location: {to}\r\n").into_boxed_str());
    Step::Answer(status, header, String::new())
}

/// Runs one method of the client.
type Method = fn(&ApiClient) -> LocalBoxFuture<'_, Result<(), Error>>;

fn hash() -> StorePathHash {
    HASH.parse().unwrap()
}

fn derivation() -> StorePath {
    format!("{HASH}-hello.drv").parse().unwrap()
}

fn pin_name() -> PinName {
    "p".parse().unwrap()
}

fn log() -> BuildLog {
    BuildLog { bytes: b"built\n".to_vec(), encoding: None }
}

fn secret_cache() -> CreateCacheRequest {
    CreateCacheRequest {
        keypair: Keypair::Keypair(Secret::new("main:SECRETKEY")),
        is_public: false,
        store_dir: StoreDir::default(),
        priority: 41,
        upstream_cache_key_names: Vec::new(),
        allow_replacement: false,
    }
}

fn by_use() -> ListObjectsRequest {
    ListObjectsRequest { sort: SortObjects::Used, after: None }
}

fn build_trace() -> BuildTrace {
    BuildTrace {
        key: TraceKey::Hash { hash: "0".repeat(64), output: "out".to_owned() },
        out_path: derivation(),
        dependents: std::collections::BTreeMap::new(),
        sigs: Vec::new(),
        is_keyed: false,
    }
}

/// Every public method of the client that asks the server, and whether it sends GET.
const METHODS: [(&str, bool, Method); 24] = [
    ("get_cache_config", true, |api| {
        Box::pin(async move { api.get_cache_config(&main_cache()).await.map(drop) })
    }),
    ("create_cache", false, |api| {
        Box::pin(async move { api.create_cache(&main_cache(), &secret_cache()).await })
    }),
    ("configure_cache", false, |api| {
        Box::pin(async move { api.configure_cache(&main_cache(), &CacheConfig::default()).await })
    }),
    ("destroy_cache", false, |api| Box::pin(async move { api.destroy_cache(&main_cache()).await })),
    ("get_missing_paths", false, |api| {
        Box::pin(async move { api.get_missing_paths(&main_cache(), vec![hash()]).await.map(drop) })
    }),
    ("list_caches", true, |api| Box::pin(async move { api.list_caches().await.map(drop) })),
    ("remove_path", false, |api| {
        Box::pin(async move { api.remove_path(&main_cache(), &hash(), false).await.map(drop) })
    }),
    ("remove_referrers", false, |api| {
        Box::pin(async move { api.remove_referrers(&main_cache(), &hash(), false).await.map(drop) })
    }),
    ("count_purges", true, |api| {
        Box::pin(async move { api.count_purges(&main_cache(), Some(&[hash()])).await.map(drop) })
    }),
    ("get_object", true, |api| {
        Box::pin(async move { api.get_object(&main_cache(), &hash()).await.map(drop) })
    }),
    ("list_referrers", true, |api| {
        Box::pin(async move { api.list_referrers(&main_cache(), &hash(), None).await.map(drop) })
    }),
    ("get_file", true, |api| {
        Box::pin(async move { api.get_file(&main_cache(), &hash(), &["f".to_owned()]).await.map(drop) })
    }),
    ("list_objects", false, |api| {
        Box::pin(async move { api.list_objects(&main_cache(), &by_use()).await.map(drop) })
    }),
    ("cache_stats", true, |api| Box::pin(async move { api.cache_stats(&main_cache(), 1).await.map(drop) })),
    ("stats", true, |api| Box::pin(async move { api.stats(1).await.map(drop) })),
    ("status", true, |api| Box::pin(async move { api.status().await.map(drop) })),
    ("add_pin", false, |api| {
        let request =
            AddPinRequest { store_path: derivation().to_string(), keep_for_seconds: None, keep: None };
        Box::pin(async move { api.add_pin(&main_cache(), &pin_name(), &request).await.map(drop) })
    }),
    ("put_log", false, |api| Box::pin(async move { api.put_log(&main_cache(), &derivation(), log()).await })),
    ("add_log", false, |api| {
        Box::pin(async move { api.add_log(&main_cache(), &derivation(), log()).await.map(drop) })
    }),
    ("put_trace", false, |api| {
        Box::pin(async move { api.put_trace(&main_cache(), &build_trace()).await.map(drop) })
    }),
    ("has_log", false, |api| {
        Box::pin(async move { api.has_log(&main_cache(), &derivation()).await.map(drop) })
    }),
    ("has_document", false, |api| {
        let name = DocumentName::Log(derivation());
        Box::pin(async move { api.has_document(&main_cache(), &name).await.map(drop) })
    }),
    ("list_pins", false, |api| {
        Box::pin(async move { api.list_pins(&main_cache(), &ListPinsRequest::default()).await.map(drop) })
    }),
    ("remove_pins", false, |api| {
        Box::pin(async move { api.remove_pins(&main_cache(), &pin_name(), None).await.map(drop) })
    }),
];

/// `next` reads on in an answer, and `upload_path` has a body of its own kind: see the test.
const OTHER_METHODS: [&str; 2] = ["next", "upload_path"];

#[test]
fn every_method_of_the_client_is_in_the_table() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = std::fs::read_dir(folder.join("api")).unwrap().map(|file| file.unwrap().path());
    let sources: String =
        files.chain([folder.join("api.rs")]).map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let in_source = sources.lines().filter_map(|line| line.trim_start().strip_prefix("pub async fn "));
    let mut in_source: Vec<&str> = in_source.filter_map(|rest| rest.split(['(', '<']).next()).collect();
    let mut in_table: Vec<&str> = METHODS.iter().map(|(name, ..)| *name).chain(OTHER_METHODS).collect();
    in_source.sort_unstable();
    in_table.sort_unstable();
    assert_eq!(in_table, in_source);
}

#[tokio::test]
async fn no_redirect_carries_anything_to_another_origin() {
    let package = package(100);
    let secret = Secret::new("eyJ.t.k");
    for status in [301, 302, 303, 307, 308] {
        for (name, is_get, method) in METHODS {
            // To another server and to another path of the same one, with a token and without.
            let other = Server::scripted([ok("{}")]).await;
            let elsewhere = format!("{}/_api/v2/caches", other.address);
            for (to, token) in
                [(elsewhere.as_str(), Some(&secret)), ("/here", Some(&secret)), (&elsewhere, None)]
            {
                let server = Server::scripted([redirect(status, to), failure(400, "RequestError")]).await;
                let api = ApiClient::new(server.address.parse().unwrap(), token, quick()).unwrap();
                let error = method(&api).await.expect_err(name);
                let follows = is_get && to.starts_with('/');
                assert_eq!(server.requests().len(), if follows { 2 } else { 1 }, "{status} {name} {to}");
                assert_eq!(error.to_string().contains(to), !follows, "{status} {name} {to}: {error}");
            }
            assert!(other.requests().is_empty(), "{status} {name}");
        }
        let other = Server::scripted([ok(UPLOADED)]).await;
        let server = Server::scripted([redirect(status, &other.address)]).await;
        let error = client(&server).upload_path(&package.info, &package.source, &Silent).await.unwrap_err();
        assert!(error.to_string().contains(&other.address), "{error}");
        assert!(other.requests().is_empty());
        // The token that Nix would send stays, too.
        let server = Server::scripted([redirect(status, &other.address)]).await;
        let timeout = Duration::from_secs(5);
        let seen = dormer_client::probe(&server.address, Some(&Secret::new("t")), timeout).await.unwrap();
        assert_eq!(seen.status, status);
        assert!(other.requests().is_empty());
        // Without a secret, a probe goes where Nix would go.
        let seen = dormer_client::probe(&server.address, None, timeout).await.unwrap();
        assert_eq!((seen.status, other.requests().len()), (200, 1));
    }
}

#[tokio::test]
async fn redirects_come_to_an_end() {
    let server = Server::scripted([redirect(302, "/again")]).await;
    let error = client(&server).list_caches().await.unwrap_err();
    assert!(matches!(error, Error::Redirected { status: 302, .. }), "{error:?}");
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn a_preamble_can_be_forced() {
    let package = package(1000);
    let server = Server::scripted([ok(UPLOADED)]).await;
    let api = client(&server).with_forced_preamble(true);
    api.upload_path(&package.info, &package.source, &Silent).await.unwrap();
    let request = &server.requests()[0];
    assert_eq!(request.header("x-attic-nar-info"), None);
    let size: usize = request.header("x-attic-nar-info-preamble-size").unwrap().parse().unwrap();
    assert!(request.body[..size].starts_with(b"{") && request.body[size..] == package.nar);
}

#[tokio::test]
async fn no_token_and_a_token_that_does_not_count_and_a_missing_permission_are_told_apart() {
    // `{"exp":784111777}`, which was in 1994.
    let expired = Secret::new("e30.eyJleHAiOjc4NDExMTc3N30.c2ln");
    for (status, token, words) in [
        (401, None, "without a token"),
        (401, Some(&expired), "it expired on Sun, 06 Nov 1994 08:49:37 GMT"),
        (403, Some(&expired), "does not permit this"),
    ] {
        let server = Server::scripted([failure(status, "Unauthorized")]).await;
        let api = ApiClient::new(server.address.parse().unwrap(), token, quick()).unwrap();
        let error = api.list_caches().await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}
