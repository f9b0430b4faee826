//! The server's API over HTTP: requests with time-outs, retries and clear errors.
//!
//! There are two kinds of time-out. The server must answer a small request within
//! [`HttpSettings::idle_timeout`]. An upload may take as long as it makes progress: it fails when
//! the connection took no byte and gave no answer for that time. So a server may work long on a
//! NAR, or let an upload wait its turn, and the client still notices a dead connection.
//!
//! After a broken connection, the client repeats every request that has no effect, or the same
//! effect, when repeated. It repeats creating and destroying a cache only if the request was not
//! sent, or was answered by 429 or 503. After a lost answer, a repetition could report a success as
//! a failure.

mod sessions;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use dormer_api::v2::{
    AddPinRequest, AddPinResponse, CacheStatsResponse, ListCachesResponse, ListObjectsRequest,
    ListObjectsResponse, ListPinsRequest, ListPinsResponse, ListReferrersResponse, ObjectResponse,
    PURGED_PATHS_MAX, PurgesResponse, RemovePathResponse, RemovePinsResponse, RemoveReferrersResponse,
    StatsResponse, StatusResponse,
};
use dormer_api::{
    CacheConfig, CacheName, CreateCacheRequest, ErrorBody, ErrorName, GetMissingPathsRequest,
    GetMissingPathsResponse, NarInfoForm, PinName, Secret, UploadPathNarInfo, UploadPathResult, headers,
    routes,
};
use dormer_nix::{BuildTrace, DocumentName, StorePath, StorePathHash};
use futures::{Stream, StreamExt as _, stream};
use reqwest::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, IF_NONE_MATCH, LOCATION,
};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::build_logs::BuildLog;
use crate::certificates::http_client;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::nar_stream::{NarFailure, OpenNar};
use crate::rate_limit::{RateLimit, turns};
use crate::redirects;
use crate::reporter::{Retry, RetryReporter, Silent, UploadReporter};
use crate::retry::{Passing, RetryPolicy, repeat, retry_after};
use crate::settings::process_variables;
use crate::token_expiry;

pub(crate) use sessions::{is_passing, path_refusal};

/// Longest answer that the client reads: a list of some 50,000 caches, or of 400,000 missing paths.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Most caches in a list, and most pages of it. A page of Dormer's has 100 caches.
const CACHES_MAX: usize = 1_000_000;
const CACHE_PAGES_MAX: usize = 10_000;

/// Longest error answer that the client reads. A longer one is not an error body of Dormer.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// Longest excerpt from an error answer that is not JSON, such as the page of a proxy.
const ERROR_CHARS_MAX: usize = 200;

/// Time-outs and retries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// Time limit for opening a connection, including TLS.
    pub connect_timeout: Duration,
    /// Longest time without progress on a connection. Longer than a server lets an upload wait its
    /// turn.
    pub idle_timeout: Duration,
    /// How often the client repeats requests.
    pub retry: RetryPolicy,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(3),
            retry: RetryPolicy::default(),
        }
    }
}

/// An upload that the server acknowledged.
#[derive(Debug, Clone, PartialEq)]
pub struct AcknowledgedUpload {
    /// The server's answer.
    pub result: UploadPathResult,
    /// Bytes of the NAR that the connection took, in all tries.
    pub bytes_sent: u64,
}

/// A file that is being downloaded.
#[derive(Debug)]
pub struct FileDownload {
    api: ApiClient,
    response: Response,
    action: String,
}

impl FileDownload {
    /// The next bytes; `None` at the end. An error if the connection ends before the file does.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        match tokio::time::timeout(self.api.settings.idle_timeout, self.response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(error)) => Err(self.api.broken(&self.action, Repeat::Always, error).error),
            Err(_) => Err(self.api.stalled(&self.action).error),
        }
    }
}

/// A client of one server. Cloning is cheap; clones share their connections.
#[derive(Clone)]
pub struct ApiClient {
    /// For GET: follows redirects to the same origin.
    reading: reqwest::Client,
    /// For everything else: follows no redirect.
    writing: reqwest::Client,
    endpoint: Endpoint,
    authorization: Option<HeaderValue>,
    /// When the token says that it expires.
    expiry: Option<SystemTime>,
    /// Whether metadata always stands in front of the NAR.
    forces_preamble: bool,
    /// For the bodies of uploads.
    rate_limit: Option<Arc<RateLimit>>,
    settings: Arc<HttpSettings>,
    reporter: Arc<dyn RetryReporter>,
}

impl fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiClient")
            .field("endpoint", &self.endpoint)
            .field("with_token", &self.authorization.is_some())
            .finish_non_exhaustive()
    }
}

/// When the client may repeat a request after its connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Always,
    IfNotSent,
}

/// One failed try.
struct Failure {
    error: Error,
    passing: Option<Passing>,
}

impl ApiClient {
    /// A client for the server at `endpoint`. It sends `token` with every request.
    pub fn new(endpoint: Endpoint, token: Option<&Secret>, settings: HttpSettings) -> Result<Self> {
        let authorization = token.map(bearer).transpose()?;
        let http = |redirects| build(&endpoint, &settings, redirects);
        let (reading, writing) = (http(redirects::to_same_origin())?, http(Policy::none())?);
        Ok(Self {
            reading,
            writing,
            endpoint,
            authorization,
            expiry: token.and_then(token_expiry::token_expiry),
            forces_preamble: false,
            rate_limit: None,
            settings: Arc::new(settings),
            reporter: Arc::new(Silent),
        })
    }

    /// Sends the metadata of every upload in front of the NAR instead of in a header, for proxies
    /// with little room for headers.
    pub fn with_forced_preamble(mut self, forces_preamble: bool) -> Self {
        self.forces_preamble = forces_preamble;
        self
    }

    /// Sends the bodies of uploads within this limit, which clients may share.
    pub fn with_rate_limit(mut self, rate_limit: Option<Arc<RateLimit>>) -> Self {
        self.rate_limit = rate_limit;
        self
    }

    /// Tells `reporter` about requests that are tried again. Each upload has its own reporter.
    pub fn with_retry_reporter(mut self, reporter: Arc<dyn RetryReporter>) -> Self {
        self.reporter = reporter;
        self
    }

    /// The server's address.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// A cache's settings.
    pub async fn get_cache_config(&self, cache: &CacheName) -> Result<CacheConfig> {
        let action = format!("looking up cache {cache}");
        let route = routes::cache_config(cache);
        self.ask(&action, Repeat::Always, || self.request(Method::GET, &route)).await
    }

    /// Creates a cache.
    pub async fn create_cache(&self, cache: &CacheName, request: &CreateCacheRequest) -> Result<()> {
        let action = format!("creating cache {cache}");
        let route = routes::cache_config(cache);
        self.tell(&action, Repeat::IfNotSent, || self.request(Method::POST, &route).json(request)).await
    }

    /// Changes those settings of a cache that are `Some`.
    pub async fn configure_cache(&self, cache: &CacheName, patch: &CacheConfig) -> Result<()> {
        let action = format!("configuring cache {cache}");
        let route = routes::cache_config(cache);
        self.tell(&action, Repeat::Always, || self.request(Method::PATCH, &route).json(patch)).await
    }

    /// Destroys a cache.
    pub async fn destroy_cache(&self, cache: &CacheName) -> Result<()> {
        let action = format!("destroying cache {cache}");
        let route = routes::cache_config(cache);
        self.tell(&action, Repeat::IfNotSent, || self.request(Method::DELETE, &route)).await
    }

    /// Returns those of `hashes` that the cache lacks. Ask for at most a few thousand at once,
    /// because servers limit the body.
    pub async fn get_missing_paths(
        &self,
        cache: &CacheName,
        hashes: Vec<StorePathHash>,
    ) -> Result<Vec<StorePathHash>> {
        let action = format!("asking cache {cache} what it lacks");
        let question = GetMissingPathsRequest { cache: cache.clone(), store_path_hashes: hashes };
        let request = || self.request(Method::POST, routes::GET_MISSING_PATHS).json(&question);
        let answer: GetMissingPathsResponse = self.ask(&action, Repeat::Always, request).await?;
        Ok(answer.missing_paths)
    }

    /// The caches that this token may see.
    pub async fn list_caches(&self) -> Result<ListCachesResponse> {
        let action = "listing the caches";
        let mut all = ListCachesResponse { caches: Vec::new(), next: None };
        for _ in 0..CACHE_PAGES_MAX {
            let route = routes::v2_caches(all.next.as_ref());
            let request = || self.request(Method::GET, &route);
            let page: ListCachesResponse = self.ask(action, Repeat::Always, request).await?;
            all.caches.extend(page.caches);
            let Some(next) = page.next else { return Ok(ListCachesResponse { next: None, ..all }) };
            // A server lists the caches by name. One that goes back, or ignores `after`, would keep
            // the client for ever.
            if all.next.is_some_and(|last| next <= last) || all.caches.len() > CACHES_MAX {
                break;
            }
            all.next = Some(next);
        }
        Err(Error::EndlessList { action: action.to_owned() })
    }

    /// Removes a path from a cache at once. `removed` says whether the path was there.
    /// With `now`, a collection also removes its bytes from the store.
    pub async fn remove_path(
        &self,
        cache: &CacheName,
        hash: &StorePathHash,
        now: bool,
    ) -> Result<RemovePathResponse> {
        let action = format!("removing {hash} from cache {cache}");
        let route = with_now(routes::v2_object(cache, hash), now);
        self.ask(&action, Repeat::Always, || self.request(Method::DELETE, &route)).await
    }

    /// Removes what refers to a path, directly or not. Call it again while it says that there is
    /// more and removes something.
    pub async fn remove_referrers(
        &self,
        cache: &CacheName,
        hash: &StorePathHash,
        now: bool,
    ) -> Result<RemoveReferrersResponse> {
        let action = format!("removing what refers to {hash} from cache {cache}");
        let route = with_now(routes::v2_referrers(cache, hash), now);
        self.ask(&action, Repeat::Always, || self.request(Method::DELETE, &route)).await
    }

    /// How much of these removed paths is still to be removed from the store. An older server
    /// counts all paths of the cache.
    pub async fn count_purges(&self, cache: &CacheName, paths: &[StorePathHash]) -> Result<PurgesResponse> {
        let action = format!("asking which bytes of cache {cache} are still to be removed");
        let mut all = PurgesResponse { waiting: 0, untried: 0 };
        for paths in paths.chunks(PURGED_PATHS_MAX) {
            let route = routes::v2_purges(cache, paths);
            let PurgesResponse { waiting, untried } =
                self.ask(&action, Repeat::Always, || self.request(Method::GET, &route)).await?;
            all.waiting = all.waiting.saturating_add(waiting);
            all.untried = all.untried.saturating_add(untried);
        }
        Ok(all)
    }

    /// What a cache says of a path.
    pub async fn get_object(&self, cache: &CacheName, hash: &StorePathHash) -> Result<ObjectResponse> {
        let action = format!("looking up {hash} in cache {cache}");
        let route = routes::v2_object(cache, hash);
        self.ask(&action, Repeat::Always, || self.request(Method::GET, &route)).await
    }

    /// A page of what refers to a path.
    pub async fn list_referrers(
        &self,
        cache: &CacheName,
        hash: &StorePathHash,
        after: Option<&StorePathHash>,
    ) -> Result<ListReferrersResponse> {
        let action = format!("listing what refers to {hash} in cache {cache}");
        let query = after.map_or_else(String::new, |after| format!("?after={after}"));
        let route = routes::v2_referrers(cache, hash) + &query;
        self.ask(&action, Repeat::Always, || self.request(Method::GET, &route)).await
    }

    /// One file out of a path of a cache. It is repeated until the answer begins, and not after
    /// that.
    pub async fn get_file(
        &self,
        cache: &CacheName,
        hash: &StorePathHash,
        names: &[String],
    ) -> Result<FileDownload> {
        let action = format!("reading {} of {hash} in cache {cache}", names.join("/"));
        let route = routes::v2_file(cache, hash, names);
        let response = self
            .with_retries(&action, async || {
                let request = self.request(Method::GET, &route).send();
                let response = tokio::time::timeout(self.settings.idle_timeout, request).await;
                let stalled = || self.stalled(&action);
                let response = response.map_err(|_| stalled())?;
                let response = response.map_err(|error| self.broken(&action, Repeat::Always, error))?;
                self.check(&action, response).await
            })
            .await?;
        Ok(FileDownload { api: self.clone(), response, action })
    }

    fn stalled(&self, action: &str) -> Failure {
        let seconds = self.settings.idle_timeout.as_secs();
        let error = Error::Stalled { action: action.to_owned(), seconds };
        Failure { error, passing: Some(Passing::Broken) }
    }

    /// A page of what is in a cache.
    pub async fn list_objects(
        &self,
        cache: &CacheName,
        request: &ListObjectsRequest,
    ) -> Result<ListObjectsResponse> {
        let action = format!("listing cache {cache}");
        let route = routes::v2_objects(cache);
        self.ask(&action, Repeat::Always, || self.request(Method::POST, &route).json(request)).await
    }

    /// What a cache holds, and its last `days`.
    pub async fn cache_stats(&self, cache: &CacheName, days: u32) -> Result<CacheStatsResponse> {
        let action = format!("asking what cache {cache} holds");
        let route = format!("{}?days={days}", routes::v2_cache_stats(cache));
        self.ask(&action, Repeat::Always, || self.request(Method::GET, &route)).await
    }

    /// What the whole installation holds, and its last `days`.
    pub async fn stats(&self, days: u32) -> Result<StatsResponse> {
        let action = "asking what the server holds";
        let route = format!("{}?days={days}", routes::V2_STATS);
        self.ask(action, Repeat::Always, || self.request(Method::GET, &route)).await
    }

    /// What the server does at this moment.
    pub async fn status(&self) -> Result<StatusResponse> {
        let action = "asking what the server does";
        self.ask(action, Repeat::Always, || self.request(Method::GET, routes::V2_STATUS)).await
    }

    /// Pins a path under a name.
    pub async fn add_pin(
        &self,
        cache: &CacheName,
        name: &PinName,
        request: &AddPinRequest,
    ) -> Result<AddPinResponse> {
        let action = format!("adding a pin to cache {cache}");
        let route = routes::v2_pin(cache, name);
        self.ask(&action, Repeat::Always, || self.request(Method::PUT, &route).json(request)).await
    }

    /// Stores the log of a derivation's build, in the place of the one that is there.
    pub async fn put_log(&self, cache: &CacheName, derivation: &StorePath, log: BuildLog) -> Result<()> {
        self.send_log(cache, derivation, log, false).await
    }

    /// Stores the log of a derivation's build unless the cache has one. Returns `false` if the
    /// cache keeps the log that it has.
    pub async fn add_log(&self, cache: &CacheName, derivation: &StorePath, log: BuildLog) -> Result<bool> {
        match self.send_log(cache, derivation, log, true).await {
            Ok(()) => Ok(true),
            // Also if the answer to a first try was lost, which may have stored it.
            Err(Error::Refused { status: 412, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn send_log(
        &self,
        cache: &CacheName,
        derivation: &StorePath,
        log: BuildLog,
        keeps_present: bool,
    ) -> Result<()> {
        let action = format!("uploading the build log of {derivation} to cache {cache}");
        let route = routes::build_log(cache, derivation);
        let (bytes, encoding) = (Bytes::from(log.bytes), log.encoding);
        let request = || {
            let mut request = self.request(Method::PUT, &route).body(bytes.clone());
            if let Some(encoding) = encoding {
                request = request.header(CONTENT_ENCODING, encoding);
            }
            if keeps_present {
                request = request.header(IF_NONE_MATCH, "*");
            }
            request
        };
        self.tell(&action, Repeat::Always, request).await
    }

    /// Stores a build trace, or adds its signatures to the one that is there. Returns `false` if
    /// the cache keeps the trace that it has, because that one leads to another path.
    pub async fn put_trace(&self, cache: &CacheName, trace: &BuildTrace) -> Result<bool> {
        let name = DocumentName::Trace(trace.key.clone());
        let action = format!("uploading {name} to cache {cache}");
        let route = routes::document(cache, &name);
        let json = Bytes::from(trace.to_json(&[]));
        let request = || self.request(Method::PUT, &route).body(json.clone());
        self.with_retries(&action, async || {
            let mut response = self.send(&action, Repeat::Always, request()).await?;
            // The answer is empty, unless the cache keeps its own or has no room for more.
            let said = read_up_to(&mut response, ERROR_BYTES_MAX).await;
            let said = said.map_err(|error| self.broken(&action, Repeat::Always, error))?;
            Ok(said.is_empty())
        })
        .await
    }

    /// Whether a cache has a log of a derivation's build. A token that may not read the cache is
    /// told that it has none.
    pub async fn has_log(&self, cache: &CacheName, derivation: &StorePath) -> Result<bool> {
        self.has_document(cache, &DocumentName::Log(derivation.clone())).await
    }

    /// Whether a cache has a document. A token that may not read the cache is told that it has
    /// none.
    pub async fn has_document(&self, cache: &CacheName, name: &DocumentName) -> Result<bool> {
        let action = format!("looking for {name} in cache {cache}");
        let route = routes::document(cache, name);
        let asked = self.tell(&action, Repeat::Always, || self.request(Method::HEAD, &route)).await;
        match asked {
            Ok(()) => Ok(true),
            Err(
                Error::Refused { status: 404, .. }
                | Error::NoSuchCache { .. }
                | Error::Unauthorized { .. }
                | Error::Forbidden { .. },
            ) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A page of a cache's pins.
    pub async fn list_pins(&self, cache: &CacheName, request: &ListPinsRequest) -> Result<ListPinsResponse> {
        let action = format!("listing the pins of cache {cache}");
        let route = routes::v2_pins(cache);
        self.ask(&action, Repeat::Always, || self.request(Method::POST, &route).json(request)).await
    }

    /// Removes the pins of a name, or only that of one path.
    pub async fn remove_pins(
        &self,
        cache: &CacheName,
        name: &PinName,
        hash: Option<&StorePathHash>,
    ) -> Result<RemovePinsResponse> {
        let action = format!("removing pins from cache {cache}");
        let route = match hash {
            Some(hash) => routes::v2_pinned_path(cache, name, hash),
            None => routes::v2_pin(cache, name),
        };
        self.ask(&action, Repeat::Always, || self.request(Method::DELETE, &route)).await
    }

    /// Uploads one NAR. Each try reads the NAR from its beginning.
    pub async fn upload_path(
        &self,
        info: &UploadPathNarInfo,
        source: &dyn OpenNar,
        reporter: &dyn UploadReporter,
    ) -> Result<AcknowledgedUpload> {
        let action = format!("uploading {}", info.store_path);
        let form = info.encode().map_err(|source| {
            match info.store_path.rsplit('/').next().unwrap_or("").parse() {
                Ok(path) => Error::Describe { path, source },
                Err(_) => Error::InvalidPath { path: info.store_path.clone() },
            }
        })?;
        let form = match form {
            NarInfoForm::Header(json) if self.forces_preamble => NarInfoForm::Preamble(json.into_bytes()),
            form => form,
        };
        let bytes_sent = AtomicU64::new(0);
        let mut tries = 0;
        loop {
            tries += 1;
            let failure = match self.try_upload(&action, &form, source, reporter, &bytes_sent).await {
                Ok(result) => return Ok(AcknowledgedUpload { result, bytes_sent: bytes_sent.into_inner() }),
                Err(failure) => failure,
            };
            self.pause(&action, tries, failure, |retry| reporter.retrying(retry)).await?;
        }
    }

    async fn try_upload(
        &self,
        action: &str,
        form: &NarInfoForm,
        source: &dyn OpenNar,
        reporter: &dyn UploadReporter,
        bytes_sent: &AtomicU64,
    ) -> Result<UploadPathResult, Failure> {
        let (nar, outcome) = source.open();
        let taken = Arc::new(AtomicU64::new(0));
        let body = counted(limited(nar, self.rate_limit.clone()), Arc::clone(&taken));
        let request =
            self.request(Method::PUT, routes::UPLOAD_PATH).header(CONTENT_TYPE, "application/octet-stream");
        let request = match form {
            NarInfoForm::Header(json) => {
                request.header(headers::NAR_INFO, json).body(reqwest::Body::wrap_stream(body))
            }
            NarInfoForm::Preamble(json) => {
                let preamble = Bytes::copy_from_slice(json);
                request
                    .header(headers::NAR_INFO_PREAMBLE_SIZE, json.len())
                    .body(reqwest::Body::wrap_stream(stream::iter([Ok(preamble)]).chain(body)))
            }
        };
        let exchange = async {
            let response =
                request.send().await.map_err(|error| self.broken(action, Repeat::Always, error))?;
            let response = self.check(action, response).await?;
            self.read(action, response).await
        };
        let answer = self.watch(action, exchange, &taken, reporter, bytes_sent).await;
        // A stalled connection keeps its body. Asking for the outcome takes the NAR away from the
        // connection. A broken disk, source or path also breaks the request, and is the better
        // explanation.
        match (answer, outcome.failure().await) {
            (Ok(result), _) => Ok(result),
            (Err(_), Some(NarFailure::Dump(dump))) => {
                let error = Error::Dump { path: source.name(), source: dump };
                Err(Failure { error, passing: None })
            }
            (Err(_), Some(NarFailure::Fetch(fetch))) => {
                let passing = fetch.passing();
                Err(Failure { error: Error::Fetch { source: fetch }, passing })
            }
            (Err(failure), None) => Err(failure),
        }
    }

    /// Runs an exchange as long as the connection takes bytes, and reports these bytes.
    async fn watch<T>(
        &self,
        action: &str,
        exchange: impl Future<Output = Result<T, Failure>>,
        taken: &AtomicU64,
        reporter: &dyn UploadReporter,
        bytes_sent: &AtomicU64,
    ) -> Result<T, Failure> {
        /// Five reports a second for each transfer are smooth enough for a progress bar.
        const LOOK: Duration = Duration::from_millis(200);
        let mut seen = 0;
        let mut moved = Instant::now();
        let report = |seen: &mut u64| {
            let bytes = taken.load(Ordering::Relaxed) - *seen;
            if bytes > 0 {
                *seen += bytes;
                bytes_sent.fetch_add(bytes, Ordering::Relaxed);
                reporter.progress(bytes);
            }
            bytes > 0
        };
        let mut exchange = std::pin::pin!(exchange);
        loop {
            match tokio::time::timeout(LOOK.min(self.settings.idle_timeout), &mut exchange).await {
                Ok(answer) => {
                    report(&mut seen);
                    return answer;
                }
                Err(_) if report(&mut seen) => moved = Instant::now(),
                Err(_) if moved.elapsed() >= self.settings.idle_timeout => {
                    let seconds = self.settings.idle_timeout.as_secs();
                    let error = Error::Stalled { action: action.to_owned(), seconds };
                    return Err(Failure { error, passing: Some(Passing::Broken) });
                }
                Err(_) => {}
            }
        }
    }

    /// Sends a request and reads the body of the answer.
    async fn ask<T: DeserializeOwned>(
        &self,
        action: &str,
        repeat: Repeat,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<T> {
        self.with_retries(action, async || {
            let response = self.send(action, repeat, request()).await?;
            self.read(action, response).await
        })
        .await
    }

    /// Sends a request and ignores the body of the answer.
    async fn tell(&self, action: &str, repeat: Repeat, request: impl Fn() -> RequestBuilder) -> Result<()> {
        self.with_retries(action, async || self.send(action, repeat, request()).await.map(drop)).await
    }

    async fn with_retries<T>(
        &self,
        action: &str,
        attempt: impl AsyncFn() -> Result<T, Failure>,
    ) -> Result<T> {
        repeat(
            || attempt(),
            |tries, failure| self.pause(action, tries, failure, |retry| self.reporter.retrying(retry)),
        )
        .await
    }

    /// Waits before the next try, or returns the error if no try is left.
    async fn pause(
        &self,
        action: &str,
        tries: u32,
        failure: Failure,
        report: impl FnOnce(&Retry<'_>),
    ) -> Result<()> {
        let policy = &self.settings.retry;
        let error = failure.error.after(tries);
        let Some(wait) = failure.passing.and_then(|passing| policy.wait(tries, passing)) else {
            return Err(error);
        };
        tracing::debug!(
            action,
            tries,
            wait_ms = wait.as_millis(),
            error = &error as &dyn std::error::Error,
            "trying again"
        );
        report(&Retry { action, tries, tries_max: policy.tries_max, wait, error: &error });
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn request(&self, method: Method, route: &str) -> RequestBuilder {
        let http = if method == Method::GET { &self.reading } else { &self.writing };
        let request = http.request(method, self.endpoint.join(route));
        match &self.authorization {
            Some(authorization) => request.header(AUTHORIZATION, authorization.clone()),
            None => request,
        }
    }

    async fn send(&self, action: &str, repeat: Repeat, request: RequestBuilder) -> Result<Response, Failure> {
        let request = request.timeout(self.settings.idle_timeout);
        let response = request.send().await.map_err(|error| self.broken(action, repeat, error))?;
        let response = self.check(action, response).await;
        response.map_err(|failure| match (repeat, failure.passing) {
            // 500, 502 and similar answers may come after the request took effect.
            (Repeat::IfNotSent, Some(Passing::Broken)) => Failure { passing: None, ..failure },
            _ => failure,
        })
    }

    fn broken(&self, action: &str, repeat: Repeat, source: reqwest::Error) -> Failure {
        let sent = !source.is_connect();
        // A malformed request stays malformed.
        let hopeless = source.is_builder() || (sent && repeat == Repeat::IfNotSent);
        let endpoint = self.endpoint.to_string();
        // Drops the URL, because the action describes the request better.
        let source = source.without_url();
        let error = Error::Unreachable { action: action.to_owned(), endpoint, tries: 1, source };
        Failure { error, passing: (!hopeless).then_some(Passing::Broken) }
    }

    /// Turns every answer that is not a success into an error.
    async fn check(&self, action: &str, mut response: Response) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let header = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let retry_after = retry_after(response.headers());
        let request_id = header(HeaderName::from_static(headers::REQUEST_ID))
            .map(|id| format!(" (request {})", printable(id)));
        let location = header(LOCATION).map(printable);
        let body = read_up_to(&mut response, ERROR_BYTES_MAX).await.unwrap_or_default();
        let (name, message) = describe(status, &body);
        // The server's log says more about the request under this id.
        let message = message + request_id.as_deref().unwrap_or_default();
        let passing = Passing::of_status(status.as_u16(), retry_after);
        let action = action.to_owned();
        let error = match (status.as_u16(), name) {
            (_, Some(ErrorName::NoSuchCache)) => Error::NoSuchCache { action, message },
            (_, Some(ErrorName::CacheAlreadyExists)) => Error::CacheExists { action, message },
            (401, _) => Error::Unauthorized {
                action,
                with_token: self.authorization.is_some(),
                expiry: self.expiry.map(|expiry| token_expiry::describe(expiry, SystemTime::now())),
                message,
            },
            (403, _) => Error::Forbidden { action, message },
            (status, name) if passing.is_some() => {
                Error::Unavailable { action, status, name, tries: 1, retry_after, message }
            }
            (status, name) => match location.filter(|_| (300..400).contains(&status)) {
                Some(location) => Error::Redirected { action, status, location },
                None => Error::Refused { action, status, name, message },
            },
        };
        Err(Failure { error, passing })
    }

    async fn read<T: DeserializeOwned>(&self, action: &str, response: Response) -> Result<T, Failure> {
        let body = self.read_body(action, response).await?;
        decode(action, &body).map_err(|error| Failure { error, passing: None })
    }

    async fn read_body(&self, action: &str, mut response: Response) -> Result<Vec<u8>, Failure> {
        let body = read_up_to(&mut response, ANSWER_BYTES_MAX + 1)
            .await
            .map_err(|error| self.broken(action, Repeat::Always, error))?;
        if body.len() > ANSWER_BYTES_MAX {
            let error = Error::AnswerTooLarge { action: action.to_owned(), max: ANSWER_BYTES_MAX };
            return Err(Failure { error, passing: None });
        }
        Ok(body)
    }
}

fn decode<T: DeserializeOwned>(action: &str, body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|source| Error::Answer { action: action.to_owned(), source })
}

impl Error {
    /// Records the number of tries.
    fn after(mut self, done: u32) -> Self {
        if let Self::Unreachable { tries, .. } | Self::Unavailable { tries, .. } = &mut self {
            *tries = done;
        }
        self
    }
}

fn build(endpoint: &Endpoint, settings: &HttpSettings, redirects: Policy) -> Result<reqwest::Client> {
    let builder = http_client(endpoint.is_encrypted(), &process_variables)?
        .connect_timeout(settings.connect_timeout)
        .redirect(redirects);
    // An upload that was given up leaves its connection to the kernel, which would keep trying for
    // a quarter of an hour. This limit is twice our own time-out, so that our clearer error comes
    // first.
    #[cfg(target_os = "linux")]
    let builder = builder.tcp_user_timeout(settings.idle_timeout * 2);
    builder.build().map_err(Error::HttpClient)
}

pub(crate) fn bearer(token: &Secret) -> Result<HeaderValue> {
    // A token is base64 and dots. Any other byte is a mistake, and could end the header early.
    let valid = |byte: u8| byte.is_ascii_graphic();
    if token.expose().is_empty() || !token.expose().bytes().all(valid) {
        return Err(Error::MalformedToken);
    }
    let text = Secret::new(format!("Bearer {}", token.expose()));
    let mut value = HeaderValue::from_str(text.expose()).map_err(|_| Error::MalformedToken)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Counts the bytes that the connection takes.
fn counted(
    nar: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    taken: Arc<AtomicU64>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    nar.inspect(move |piece| {
        if let Ok(piece) = piece {
            taken.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    })
}

/// Hands out bytes as the limit permits.
fn limited(
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    limit: Option<Arc<RateLimit>>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let Some(limit) = limit else { return pieces.left_stream() };
    let in_turns = pieces.flat_map(|piece| match piece {
        Ok(bytes) => stream::iter(turns(bytes).map(Ok)).left_stream(),
        Err(error) => stream::iter([Err(error)]).right_stream(),
    });
    let wait = move |piece: io::Result<Bytes>| {
        let limit = Arc::clone(&limit);
        async move {
            if let Ok(bytes) = &piece {
                limit.take(bytes.len()).await;
            }
            piece
        }
    };
    in_turns.then(wait).right_stream()
}

async fn read_up_to(response: &mut Response, max: usize) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        let room = max - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
        if body.len() == max {
            break;
        }
    }
    Ok(body)
}

/// The name and the message of an error, from Dormer's error body or from any other body.
fn describe(status: StatusCode, body: &[u8]) -> (Option<ErrorName>, String) {
    if let Ok(body) = serde_json::from_slice::<ErrorBody>(body) {
        let message = printable(if body.message.is_empty() { &body.error } else { &body.message });
        return (body.name(), message);
    }
    let text = printable(&String::from_utf8_lossy(body));
    let reason = status.canonical_reason().unwrap_or("an unknown status");
    (None, if text.is_empty() || text.starts_with('<') { reason.to_owned() } else { text })
}

/// Foreign text on one line, without control characters that a terminal would obey.
fn printable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().take(ERROR_CHARS_MAX).map(clean).collect()
}

/// A route of a removal, by which the bytes go too or not.
fn with_now(route: String, now: bool) -> String {
    if now { format!("{route}?{}", routes::NOW_QUERY) } else { route }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_cannot_be_sent_are_refused_and_not_shown() {
        assert!(bearer(&Secret::new("eyJ.a-b_c.d")).is_ok_and(|value| value.is_sensitive()));
        for text in ["", "a b", "a\r\nX: y", "é"] {
            let error = bearer(&Secret::new(text)).unwrap_err();
            assert!(matches!(error, Error::MalformedToken), "{text:?}");
        }
    }

    #[test]
    fn error_bodies_become_one_printable_line() {
        let describe = |body: &str| describe(StatusCode::BAD_GATEWAY, body.as_bytes());
        assert_eq!(
            describe(r#"{"code":404,"error":"NoSuchObject","message":"no\u001b[31m such\nobject"}"#),
            (Some(ErrorName::NoSuchObject), "no [31m such object".to_owned())
        );
        assert_eq!(describe("<html><h1>502</h1>"), (None, "Bad Gateway".to_owned()));
        assert_eq!(describe(""), (None, "Bad Gateway".to_owned()));
        assert_eq!(describe("upstream died"), (None, "upstream died".to_owned()));
        assert_eq!(describe(&"x".repeat(1000)).1.len(), ERROR_CHARS_MAX);
    }
}
