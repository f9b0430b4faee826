//! The Cloudflare Worker: published caches from R2, read-only.
//!
//! `dormer-edge`, which `dormer edge serve` shares, decides every answer. This crate only reads a
//! bucket, remembers, and verifies signatures, each with the runtime's own means.
//!
//! Invariants
//! - Nothing of a cache is looked up, in R2 or in the data centre's cache, before the caller may
//!   read it.
//! - At most two requests to R2: the cache's state document (remembered for seconds) and the
//!   object. A page of files or of a log makes a third, because it also needs the narinfo, and so
//!   does a part that the object has not, because its answer tells the size.
//! - Bodies of objects are streams that pass from R2 to the client; no byte of one is copied into
//!   the module. Only pages copy the documents that they are made of, piece by piece.
//! - The Worker writes only to the data centre's cache.

mod documents;
mod runtime;
mod tokens;

use dormer_edge::{
    Admission, Answer, Body, EdgeKey, ObjectMeta, PageRead, PageStep, Part, Read, Request as EdgeRequest,
    RequestPlan, Visit, plan,
};
use js_sys::Promise;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;
use web_sys::{Headers, ReadableStream, Request, Response, ResponseInit};

use crate::runtime::{Cache, Context, R2Bucket, R2Object};

/// Largest answer that the data centre's cache takes, in bytes.
const CACHEABLE_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Holds the store's tag of a remembered object. `ETag` itself would make the cache answer
/// conditional requests by its own rules.
const STORE_ETAG: &str = "x-dormer-store-etag";

/// Holds the size of a remembered object.
const STORE_SIZE: &str = "x-dormer-store-size";

/// Answers a request. Called by `index.js`.
#[wasm_bindgen]
pub async fn serve(request: Request, environment: JsValue, context: Context) -> Result<Response, JsValue> {
    let host = Host::new(&request, &environment, &context);
    let answered = host.answer(&request).await;
    let (answer, body) = match answered {
        Ok(answered) => answered,
        Err(Failure { reason, is_head }) => {
            runtime::log_error(&reason);
            (Answer::unavailable(is_head), None)
        }
    };
    respond(&answer, body.as_ref())
}

/// Why R2 has no answer.
struct Failure {
    reason: String,
    is_head: bool,
}

/// An answer, and the stream of its body if that is an object's.
type Answered = (Answer, Option<ReadableStream>);

/// One request's surroundings.
struct Host<'a> {
    environment: &'a JsValue,
    context: &'a Context,
    /// Where objects lie in the bucket: empty, or ends with a slash.
    prefix: String,
    /// Scheme and host, as the client wrote them.
    origin: String,
    /// The path, neither decoded nor normalised, and without its query.
    path: String,
    /// The query, without its question mark.
    query: String,
}

impl<'a> Host<'a> {
    fn new(request: &Request, environment: &'a JsValue, context: &'a Context) -> Self {
        let url = request.url();
        let after_scheme = url.find("://").map_or(0, |at| at + 3);
        let path_at = url[after_scheme..].find(['/', '?', '#']).map_or(url.len(), |at| after_scheme + at);
        let path_end = url[path_at..].find(['?', '#']).map_or(url.len(), |at| path_at + at);
        let query = url[path_end..].strip_prefix('?').unwrap_or_default();
        let query = query.split('#').next().unwrap_or_default();
        let prefix = runtime::variable(environment, "BUCKET_PREFIX")
            .map(|prefix| format!("{}/", prefix.trim_matches('/')))
            .filter(|prefix| prefix != "/")
            .unwrap_or_default();
        Self {
            environment,
            context,
            prefix,
            origin: url[..path_at].to_owned(),
            path: url[path_at..path_end].to_owned(),
            query: query.to_owned(),
        }
    }

    fn name_of(&self, key: &EdgeKey) -> String {
        format!("{}{key}", self.prefix)
    }

    fn bucket(&self) -> Result<R2Bucket, String> {
        runtime::bucket(self.environment)
            .ok_or_else(|| "no R2 bucket is bound as BUCKET: see wrangler.toml".to_owned())
    }

    async fn answer(&self, request: &Request) -> Result<Answered, Failure> {
        let headers = request.headers();
        let header = |name: &str| headers.get(name).ok().flatten();
        let (authorization, range) = (header("authorization"), header("range"));
        let (if_range, if_none_match) = (header("if-range"), header("if-none-match"));
        let method = request.method();
        let is_head = method == "HEAD";
        let failed = |reason: String| Failure { reason, is_head };
        let planned = plan(&EdgeRequest {
            method: &method,
            path: &self.path,
            query: &self.query,
            authorization: authorization.as_deref(),
            range: range.as_deref(),
            if_range: if_range.as_deref(),
            if_none_match: if_none_match.as_deref(),
            origin: Some(&self.origin),
            // Cloudflare brings only requests for the hosts that lead to this Worker, and keeps an
            // answer under its whole address.
            knows_origin: true,
            shows_pages: !runtime::is_off(self.environment, "PAGES"),
        });
        match planned {
            RequestPlan::Answer(answer) => Ok((answer, None)),
            RequestPlan::Home(home) => {
                let bucket = self.bucket().map_err(failed)?;
                let name = self.name_of(&EdgeKey::Catalog);
                let catalog = documents::catalog(&bucket, &name).await.map_err(failed)?;
                Ok((home.respond(catalog.as_deref()), None))
            }
            RequestPlan::Visit(visit) => self.visit(*visit).await.map_err(failed),
        }
    }

    async fn visit(&self, visit: Visit) -> Result<Answered, String> {
        let bucket = self.bucket()?;
        let name = self.name_of(&EdgeKey::State(visit.cache().clone()));
        let state = documents::state(&bucket, &name).await?;
        let state = state.as_deref();
        let claims = match visit.token().filter(|_| visit.needs_token(state)) {
            Some(token) => tokens::verified(self.environment, token).await,
            None => None,
        };
        #[expect(clippy::cast_possible_truncation, reason = "milliseconds of this age of the world fit")]
        let now = (runtime::now_ms() / 1000.0) as i64;
        match visit.admit(state, claims.as_ref(), now) {
            Admission::Answer(answer) => Ok((answer, None)),
            Admission::Read(read) => {
                let answered = self.read(&bucket, &read).await?;
                self.count(read.key(), kind_of(read.key()), &answered.0);
                Ok(answered)
            }
            Admission::Page(page) => {
                let key = page.read().key().clone();
                let answer = self.page(&bucket, page).await?;
                self.count(&key, "page", &answer);
                Ok((answer, None))
            }
        }
    }

    /// Makes a page of the objects that it needs.
    async fn page(&self, bucket: &R2Bucket, mut page: Box<PageRead>) -> Result<Answer, String> {
        loop {
            let name = self.name_of(page.read().key());
            let (answer, body) = self.read(bucket, page.read()).await?;
            if let Some(body) = body {
                let failed = |error: JsValue| format!("{name} cannot be read: {error:?}");
                runtime::read_pieces(&body, |piece| page.feed(piece)).await.map_err(failed)?;
            }
            match page.finish(answer.status == 200).map_err(|error| error.to_string())? {
                PageStep::Answer(answer) => return Ok(answer),
                PageStep::Read(next) => page = next,
            }
        }
    }

    /// Whether answers are kept in the data centre's cache. Keeping an answer splits its body in
    /// two, which costs CPU for every byte. On workers.dev that cost would be for nothing: the
    /// cache keeps nothing there.
    fn remembers(&self) -> bool {
        !runtime::is_off(self.environment, "EDGE_CACHE") && !self.origin.ends_with(".workers.dev")
    }

    /// Reads an object that the caller may read.
    async fn read(&self, bucket: &R2Bucket, read: &Read) -> Result<Answered, String> {
        if let Some(part) = read.part() {
            return self.read_part(bucket, read, part).await;
        }
        // Its own address for each object, and no header: nothing that a client sends makes or
        // finds another entry.
        let address = format!("{}/{}", self.origin, self.name_of(read.key()));
        let cache = if self.remembers() { Cache::open().await.ok() } else { None };
        if let Some(cache) = &cache
            && let Some(known) = cache.lookup(&address).await
        {
            return Ok(from_memory(read, &known));
        }
        let name = self.name_of(read.key());
        let failed = |error: JsValue| format!("{name} cannot be read: {error:?}");
        let promise =
            if read.is_head() { bucket.head(&name) } else { bucket.get(&name, &JsValue::UNDEFINED) };
        let object = runtime::found(promise.map_err(failed)?).await.map_err(failed)?;
        let meta = object.as_ref().map(meta_of);
        let answer = read.respond(meta.as_ref());
        let body = match (&answer.body, object) {
            (Body::Object(_), Some(object)) => Some(object.body()),
            // An object that is not wanted after all: R2 may stop reading it.
            (_, Some(object)) if !read.is_head() => {
                let _ = object.body().cancel();
                None
            }
            _ => None,
        };
        let Some(cache) = cache else { return Ok((answer, body)) };
        Ok(self.remembering(cache, address, answer, body, meta.as_ref()))
    }

    /// Remembers an answer on its way out. A failure costs the next reader a request to R2, and no
    /// more.
    fn remembering(
        &self,
        cache: Cache,
        address: String,
        answer: Answer,
        body: Option<ReadableStream>,
        meta: Option<&ObjectMeta>,
    ) -> Answered {
        let fits = meta.is_none_or(|meta| meta.size <= CACHEABLE_BYTES_MAX);
        let is_whole = meta.is_none() || body.is_some();
        if answer.edge_seconds == 0 || !fits || !is_whole {
            return (answer, body);
        }
        let (out, kept) = match body.as_ref().map(halves) {
            None => (None, None),
            Some(Some((out, kept))) => (Some(out), Some(kept)),
            Some(None) => return (answer, body),
        };
        let Ok(response) = remembered(&answer, meta, kept.as_ref()) else { return (answer, out) };
        self.context.wait_until(&future_to_promise(async move {
            if let Err(error) = cache.remember(&address, &response).await {
                runtime::log_error(&format!("{address} is not remembered: {error:?}"));
            }
            Ok(JsValue::UNDEFINED)
        }));
        (answer, out)
    }

    /// A part of a NAR comes from R2 itself: resumed downloads are rare, and R2 knows the size and
    /// has the part in one request.
    async fn read_part(&self, bucket: &R2Bucket, read: &Read, part: Part) -> Result<Answered, String> {
        #[expect(
            clippy::cast_precision_loss,
            reason = "no object has 2^53 bytes, and beyond it there is nothing to find"
        )]
        let number = |value: u64| JsValue::from_f64(value.min(1 << 53) as f64);
        let range = match part {
            Part::From(first) => runtime::object(&[("offset", number(first))]),
            Part::Between(first, last) => {
                let length = (last - first).saturating_add(1);
                runtime::object(&[("offset", number(first)), ("length", number(length))])
            }
            // R2 takes no part of no bytes.
            Part::Last(0) => return self.outside(bucket, read).await,
            Part::Last(count) => runtime::object(&[("suffix", number(count))]),
        };
        let name = self.name_of(read.key());
        let promise = bucket.get(&name, &runtime::object(&[("range", range)]));
        let object = match runtime::found(promise.map_err(|error| format!("{name}: {error:?}"))?).await {
            Ok(object) => object,
            Err(error) if is_outside(&error) => return self.outside(bucket, read).await,
            Err(error) => return Err(format!("{name} cannot be read: {error:?}")),
        };
        let answer = read.respond(object.as_ref().map(meta_of).as_ref());
        let body = object.map(|object| object.body());
        if !matches!(answer.body, Body::Object(_)) {
            if let Some(body) = body {
                let _ = body.cancel();
            }
            return Ok((answer, None));
        }
        Ok((answer, body))
    }

    /// The answer for a part that an object has not, with the size of what it has.
    async fn outside(&self, bucket: &R2Bucket, read: &Read) -> Result<Answered, String> {
        let name = self.name_of(read.key());
        let failed = |error: JsValue| format!("{name} cannot be read: {error:?}");
        let object = runtime::found(bucket.head(&name).map_err(failed)?).await.map_err(failed)?;
        let answer = read.respond(object.as_ref().map(meta_of).as_ref());
        // The object has grown since: the part is there by now, and its bytes were not asked for.
        if matches!(answer.body, Body::Object(_)) {
            return Err(format!("{name} changed between two requests"));
        }
        Ok((answer, None))
    }

    fn count(&self, key: &EdgeKey, kind: &str, answer: &Answer) {
        let cache = key.cache().map_or("", |cache| cache.as_str());
        #[expect(clippy::cast_precision_loss, reason = "a statistic")]
        let bytes = match &answer.body {
            Body::Object(range) => (range.end - range.start) as f64,
            Body::Text(text) => text.len() as f64,
            Body::Empty => 0.0,
        };
        runtime::count(self.environment, cache, &[kind], &[f64::from(answer.status), bytes]);
    }
}

fn kind_of(key: &EdgeKey) -> &'static str {
    match key {
        EdgeKey::Narinfo(..) => "narinfo",
        EdgeKey::Nar(..) => "nar",
        EdgeKey::Listing(..) => "ls",
        EdgeKey::Document(..) => "document",
        _ => "other",
    }
}

fn meta_of(object: &R2Object) -> ObjectMeta {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a size is a whole number below 2^53"
    )]
    let size = object.size() as u64;
    ObjectMeta { size, etag: Some(object.http_etag()) }
}

/// R2's error for a part that an object has not.
fn is_outside(error: &JsValue) -> bool {
    let message = js_sys::Reflect::get(error, &"message".into()).ok().and_then(|text| text.as_string());
    // "get: The requested range is not satisfiable (10039)"
    message.is_some_and(|message| message.contains("(10039)"))
}

/// Two streams of one. The runtime copies between them by itself.
fn halves(stream: &ReadableStream) -> Option<(ReadableStream, ReadableStream)> {
    let both = stream.tee();
    Some((both.get(0).dyn_into().ok()?, both.get(1).dyn_into().ok()?))
}

/// An answer as the data centre's cache keeps it, without what is for one client only.
fn remembered(
    answer: &Answer,
    meta: Option<&ObjectMeta>,
    body: Option<&ReadableStream>,
) -> Result<Response, JsValue> {
    let headers = Headers::new()?;
    headers.set("cache-control", &format!("public, max-age={}", answer.edge_seconds))?;
    if let Some(meta) = meta {
        headers.set(STORE_SIZE, &meta.size.to_string())?;
        if let Some(etag) = &meta.etag {
            headers.set(STORE_ETAG, etag)?;
        }
    }
    let init = ResponseInit::new();
    init.set_status(answer.status);
    init.set_headers(&headers);
    Response::new_with_opt_readable_stream_and_init(body, &init)
}

/// Answers from what was remembered.
fn from_memory(read: &Read, known: &Response) -> Answered {
    let headers = known.headers();
    let header = |name: &str| headers.get(name).ok().flatten();
    let size = header(STORE_SIZE).and_then(|size| size.parse().ok());
    let meta = size.map(|size| ObjectMeta { size, etag: header(STORE_ETAG) });
    let answer = read.respond(meta.as_ref());
    let body = known.body();
    if matches!(answer.body, Body::Object(_)) {
        return (answer, body);
    }
    if let Some(body) = body {
        let _: Promise = body.cancel();
    }
    (answer, None)
}

fn respond(answer: &Answer, body: Option<&ReadableStream>) -> Result<Response, JsValue> {
    let headers = Headers::new()?;
    for (name, value) in &answer.headers {
        headers.set(name, value)?;
    }
    let init = ResponseInit::new();
    init.set_status(answer.status);
    init.set_headers(&headers);
    match &answer.body {
        Body::Text(text) => Response::new_with_opt_str_and_init(Some(text), &init),
        Body::Empty | Body::Object(_) => Response::new_with_opt_readable_stream_and_init(body, &init),
    }
}
