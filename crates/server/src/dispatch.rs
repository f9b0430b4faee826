//! The path of a request: route, handler, answer.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dormer_api::headers::{CACHE_VISIBILITY, CACHE_VISIBILITY_PUBLIC};
use dormer_edge::{AnswerKind, Caching, Visibility, caching};
use futures::FutureExt as _;
use http::header::{CACHE_CONTROL, CONNECTION, HeaderName, VARY};
use http::{HeaderValue, Method, Request, Response};
use hyper::body::Incoming;

use crate::app::App;
use crate::body::Body;
use crate::call::{Call, REQUEST_ID, RequestId};
use crate::exchange::{Exchange, Watched};
use crate::failure::Failure;
use crate::handlers::{
    attic, browse, caches, documents, nar, pages, people, retention, sessions, stats, status, upload,
};
use crate::long_answer::long_bytes;
use crate::page_route::PageRoute;
use crate::request_body::RequestBody;
use crate::route::Route;

static VISIBILITY: HeaderName = HeaderName::from_static(CACHE_VISIBILITY);

impl App {
    /// Answers a request. Failures are answers, too: this never fails.
    pub(crate) async fn respond(self: Arc<Self>, request: Request<Incoming>) -> Response<Watched> {
        let answer = async |call: &Call, body: &mut RequestBody, route: Option<Route<'_>>| {
            let answer = self.dispatch(call, body, route).await?;
            let Some(bytes) = long_bytes(call, &answer) else { return Ok(answer) };
            let again = async || {
                let route = call.decoded_path().and_then(Route::parse);
                self.dispatch(call, body, route).await
            };
            Box::pin(self.count_long(call, bytes, answer, again)).await
        };
        self.watched(request, answer).await
    }

    /// Answers a request that came when all connections were taken. The host closes the connection.
    pub(crate) async fn turn_away(self: Arc<Self>, request: Request<Incoming>) -> Response<Watched> {
        let answer = async |_: &Call, _: &mut RequestBody, route: Option<Route<'_>>| match route {
            // An orchestrator that restarts a busy process would take the others' connections with
            // it.
            Some(Route::Alive) => Ok(pages::alive()),
            _ => Err(Failure::Busy("connections")),
        };
        self.watched(request, answer).await
    }

    /// Runs `answer`, and adds what all answers have in common.
    async fn watched(
        &self,
        request: Request<Incoming>,
        answer: impl AsyncFnOnce(&Call, &mut RequestBody, Option<Route<'_>>) -> Result<Response<Body>, Failure>,
    ) -> Response<Watched> {
        let (parts, incoming) = request.into_parts();
        let id = RequestId::given(&parts.headers)
            .unwrap_or_else(|| RequestId::new(self.next_request.fetch_add(1, Ordering::Relaxed)));
        let mut body = RequestBody::new(incoming, &parts.headers, &self.settings, &self.metrics);
        let call = Call::new(parts);
        let route = call.decoded_path().and_then(Route::parse);
        let template = route.as_ref().map_or("none", Route::template);
        let read_kind = route.as_ref().map_or(AnswerKind::Document, Route::answer_kind);
        let shows_page = people::shows_page(self, &call, route.as_ref());
        if shows_page {
            call.allow_session();
        }
        let follows_accept =
            matches!(route, Some(Route::Home | Route::Page(PageRoute::CacheWithoutSlash(_))));
        let is_of_no_cache = route.as_ref().is_some_and(Route::is_of_no_cache);
        let mut exchange = Exchange::begin(&self.metrics, &call, id, template, self.settings.traces);
        // Handlers share only locks that no panic leaves half done, and the index. So a panic fails
        // this request alone.
        let answer = AssertUnwindSafe(answer(&call, &mut body, route)).catch_unwind();
        let mut response = match exchange.hold(answer).await.unwrap_or(Err(Failure::Panicked)) {
            Ok(response) => response,
            Err(failure) => {
                if let Some(limit) = failure.limit() {
                    self.metrics.http.refused.with_label_values(&[limit]).inc();
                }
                if !failure.is_everyday_miss(&call) {
                    exchange.open_span();
                }
                let has_token = self.claims(&call).is_some();
                let answer = exchange.span().in_scope(|| failure.answer(&call, &self.settings, has_token));
                if shows_page {
                    people::dress(self, &call, &exchange.id().to_string(), answer)
                } else {
                    answer
                }
            }
        };
        let kind = match response.extensions().get::<AnswerKind>() {
            Some(marked) => *marked,
            None if call.is_read() => read_kind,
            None => AnswerKind::Api,
        };
        let is_public = kind != AnswerKind::Api && (is_of_no_cache || call.is_about_public_cache());
        let visibility = if is_public { Visibility::Public } else { Visibility::Private };
        let Caching { cache_control, vary } = caching(kind, visibility, response.status().as_u16());
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(cache_control));
        let vary = match vary {
            // Pages take the cookie of a session for a token, and some addresses are pages for
            // browsers alone.
            Some(_) if shows_page && follows_accept => Some("accept, authorization, cookie"),
            Some(_) if shows_page => Some("authorization, cookie"),
            vary => vary,
        };
        if let Some(vary) = vary {
            headers.insert(VARY, HeaderValue::from_static(vary));
        }
        headers.insert(&REQUEST_ID, exchange.id().header_value());
        if call.is_about_public_cache() {
            headers.insert(&VISIBILITY, HeaderValue::from_static(CACHE_VISIBILITY_PUBLIC));
        }
        if body.is_unread() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
            body.linger();
        } else if self.probes.is_stopping() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let status = response.status();
        exchange.span().in_scope(|| {
            let (method, path) = (call.brief_method(), call.brief_path());
            tracing::debug!(method, path = path.as_ref(), status = status.as_u16(), "answered");
        });
        exchange.answered(status);
        response.map(|body| Watched::new(body, exchange))
    }

    async fn dispatch(
        &self,
        call: &Call,
        body: &mut RequestBody,
        route: Option<Route<'_>>,
    ) -> Result<Response<Body>, Failure> {
        let route = route.ok_or(Failure::NoRoute)?;
        if !matches!(route, Route::Alive | Route::Ready) {
            self.check_host(call)?;
        }
        match route {
            // First and unboxed: nearly all requests are these.
            Route::Narinfo(cache, hash) if call.is_read() => {
                documents::find_narinfo(self, call, &cache, &hash).await
            }
            route => Box::pin(self.dispatch_others(call, body, route)).await,
        }
    }

    async fn dispatch_others(
        &self,
        call: &Call,
        body: &mut RequestBody,
        route: Route<'_>,
    ) -> Result<Response<Body>, Failure> {
        let method = if call.is_head() { &Method::GET } else { call.method() };
        match (method, route) {
            (&Method::GET, Route::Home) => people::home(self, call).await,
            (&Method::GET, Route::Alive) => Ok(pages::alive()),
            (&Method::GET, Route::Ready) => pages::ready(self).await,
            (&Method::GET, Route::Stats) => pages::stats(self),

            (&Method::GET, Route::NixCacheInfo(cache)) => documents::nix_cache_info(self, call, &cache).await,
            (&Method::GET, Route::Listing(cache, hash)) => {
                documents::find_listing(self, call, &cache, &hash).await
            }
            (&Method::GET, Route::Nar(cache, file)) => nar::get_nar(self, call, &cache, file).await,
            (&Method::GET, Route::Document(cache, name)) => {
                documents::find_document(self, call, &cache, &name).await
            }

            (&Method::PUT, Route::NixCacheInfo(cache)) => {
                upload::put_cache_info(self, call, body, &cache).await
            }
            (&Method::PUT, Route::Narinfo(cache, hash)) => {
                upload::put_narinfo(self, call, body, &cache, &hash).await
            }
            (&Method::PUT, Route::Listing(cache, _)) => upload::put_listing(self, call, body, &cache).await,
            (&Method::PUT, Route::Nar(cache, file)) => {
                Box::pin(upload::put_nar(self, call, body, &cache, file)).await
            }
            (&Method::PUT, Route::Document(cache, name)) => {
                upload::put_document(self, call, body, &cache, name).await
            }

            (&Method::GET, Route::CacheConfig(cache) | Route::AtticCacheInfo(cache)) => {
                attic::show_cache(self, call, &cache).await
            }
            (&Method::POST, Route::CacheConfig(cache)) => attic::create_cache(self, call, body, &cache).await,
            (&Method::PATCH, Route::CacheConfig(cache)) => {
                attic::configure_cache(self, call, body, &cache).await
            }
            (&Method::DELETE, Route::CacheConfig(cache)) => attic::destroy_cache(self, call, &cache).await,
            (&Method::POST, Route::GetMissingPaths) => attic::get_missing_paths(self, call, body).await,
            (&Method::PUT, Route::UploadPath) => Box::pin(attic::upload_path(self, call, body)).await,

            (&Method::GET, Route::Caches) => caches::list_caches(self, call).await,
            (&Method::GET, Route::CacheStats(cache)) => stats::show_cache_stats(self, call, &cache).await,
            (&Method::GET, Route::StoredStats) => stats::show_stats(self, call).await,
            (&Method::GET, Route::Status) => status::show_status(self, call).await,
            (&Method::GET, Route::Object(cache, hash)) => {
                browse::find_object(self, call, &cache, &hash).await
            }
            (&Method::GET, Route::Referrers(cache, hash)) => {
                browse::list_referrers(self, call, &cache, &hash).await
            }
            (&Method::GET, Route::File(..)) if call.file_names().is_empty() => Err(Failure::NoRoute),
            (&Method::GET, Route::File(cache, hash)) => browse::get_file(self, call, &cache, &hash).await,
            (&Method::GET, Route::Objects(cache)) => browse::list_objects(self, call, &cache).await,
            (&Method::DELETE, Route::Object(cache, hash)) => {
                caches::remove_object(self, call, &cache, &hash).await
            }
            (&Method::DELETE, Route::Referrers(cache, hash)) => {
                retention::remove_referrers(self, call, &cache, &hash).await
            }
            (&Method::GET, Route::Purges(cache)) => caches::count_purges(self, call, &cache).await,
            (&Method::POST, Route::Objects(cache)) => retention::list_objects(self, call, body, &cache).await,
            (&Method::POST, Route::Pins(cache)) => retention::list_pins(self, call, body, &cache).await,
            (&Method::PUT, Route::Pin(cache, name)) => {
                retention::add_pin(self, call, body, &cache, &name).await
            }
            (&Method::DELETE, Route::Pin(cache, name)) => {
                retention::remove_pins(self, call, &cache, &name, None).await
            }
            (&Method::DELETE, Route::PinnedPath(cache, name, hash)) => {
                retention::remove_pins(self, call, &cache, &name, Some(&hash)).await
            }

            (&Method::PUT, Route::Session(cache, session)) => {
                sessions::open_session(self, call, body, &cache, session).await
            }
            (&Method::POST, Route::SessionMissing(cache, session)) => {
                sessions::find_missing_chunks(self, call, body, &cache, session).await
            }
            (&Method::PUT, Route::SessionPart(cache, session, digest)) => {
                Box::pin(sessions::put_part(self, call, body, &cache, session, digest)).await
            }
            (&Method::POST, Route::SessionCommit(cache, session)) => {
                Box::pin(sessions::commit_paths(self, call, body, &cache, session)).await
            }
            (_, Route::Page(page)) => people::respond(self, call, body, page).await,

            (_, route) => Err(Failure::MethodNotAllowed { allow: allowed_methods(&route) }),
        }
    }

    fn check_host(&self, call: &Call) -> Result<(), Failure> {
        let allowed = &self.settings.allowed_hosts;
        let is_allowed = allowed.is_empty()
            || call.host().is_some_and(|host| allowed.iter().any(|one| one.eq_ignore_ascii_case(host)));
        if is_allowed { Ok(()) } else { Err(Failure::BadHost) }
    }
}

fn allowed_methods(route: &Route<'_>) -> &'static str {
    match route {
        Route::Page(page) => page.allowed_methods(),
        Route::Home
        | Route::Alive
        | Route::Ready
        | Route::Stats
        | Route::Caches
        | Route::Purges(_)
        | Route::CacheStats(_)
        | Route::StoredStats
        | Route::Status
        | Route::AtticCacheInfo(_)
        | Route::File(..) => "GET, HEAD",
        Route::NixCacheInfo(_)
        | Route::Narinfo(..)
        | Route::Listing(..)
        | Route::Nar(..)
        | Route::Document(..) => "GET, HEAD, PUT",
        Route::CacheConfig(_) => "GET, HEAD, POST, PATCH, DELETE",
        Route::GetMissingPaths | Route::Pins(_) | Route::SessionMissing(..) | Route::SessionCommit(..) => {
            "POST"
        }
        Route::Objects(_) => "GET, HEAD, POST",
        Route::UploadPath | Route::Session(..) | Route::SessionPart(..) => "PUT",
        Route::Pin(..) => "PUT, DELETE",
        Route::Object(..) | Route::Referrers(..) => "GET, HEAD, DELETE",
        Route::PinnedPath(..) => "DELETE",
    }
}
