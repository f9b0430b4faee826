//! Pages for people: each handler reads what a page shows into a view model of `dormer-pages`.
//!
//! Invariants
//! - A page shows nothing that the API would not tell the same caller: the same look-ups behind the
//!   same permissions. A private cache looks like one that does not exist.
//! - Reading a page changes nothing, not even the time of the last use of a path.
//! - Only a form changes something, with the permission that the API asks for and a proof that the
//!   form is ours ([`session`]).
//! - The page of a cache or a path takes at most four statements, whatever the cache holds; that of
//!   a closure takes 66, one closure at a time for one caller.

pub(crate) mod session;

mod files;
mod forms;
mod operator;
mod show;

use bytes::Bytes;
use dormer_api::CacheName;
use dormer_edge::AnswerKind;
use dormer_pages::{
    ASSET_HEADERS, Asset, Frame, Note, OperatorPage, PAGE_HEADERS, ProblemView, Visitor, way_to_root,
};
use http::header::{HeaderName, LOCATION, VARY, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Response, StatusCode};

use crate::app::App;
use crate::body::{self, Body};
use crate::call::Call;
use crate::failure::Failure;
use crate::page_route::{PageRoute, PathPage};
use crate::request_body::RequestBody;
use crate::route::Route;

const HOME: &str = "This is a Dormer, a Nix binary cache.\n\n\
    Each cache is a folder here: use http(s)://<this address>/<cache> as a substituter.\n";

/// Answers a request for a page.
pub(crate) async fn respond(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    page: PageRoute,
) -> Result<Response<Body>, Failure> {
    if !app.settings.pages {
        return Err(Failure::NoRoute);
    }
    let method = if call.is_head() { &Method::GET } else { call.method() };
    match (method, page) {
        (&Method::GET, PageRoute::Asset(asset)) => Ok(file(asset)),
        (&Method::GET, PageRoute::SignIn) => session::form(app, call),
        (&Method::POST, PageRoute::SignIn) => session::sign_in(app, call, body).await,
        (&Method::POST, PageRoute::SignOut) => session::sign_out(app, call, body).await,
        (&Method::GET, PageRoute::OperatorWithoutSlash) => {
            Ok(redirect(StatusCode::PERMANENT_REDIRECT, OperatorPage::Overview.address()))
        }
        (method, PageRoute::Operator(page)) => operator::respond(app, call, body, method, page).await,
        // For other programs nothing is here, as ever: `/metrics` is on another listener.
        (_, PageRoute::CacheWithoutSlash(_)) if !wants_page(call) => Err(Failure::NoRoute),
        (&Method::GET, PageRoute::CacheWithoutSlash(cache)) => Ok(with_slash(&cache)),
        (&Method::GET, PageRoute::Cache(cache)) => show::cache(app, call, &cache).await,
        (&Method::GET, PageRoute::Paths(cache)) => show::paths(app, call, &cache).await,
        (&Method::GET, PageRoute::Pins(cache)) => show::pins(app, call, &cache).await,
        (&Method::GET, PageRoute::OfPath(cache, hash, page)) => match page {
            PathPage::Path => show::path(app, call, &cache, &hash).await,
            PathPage::Closure => show::closure(app, call, &cache, &hash).await,
            PathPage::References => show::references(app, call, &cache, &hash).await,
            PathPage::Referrers => show::all_referrers(app, call, &cache, &hash).await,
            PathPage::Files => files::files(app, call, &cache, &hash).await,
            PathPage::Log => show::log(app, call, &cache, &hash).await,
            PathPage::Remove => forms::consequences(app, call, &cache, &hash).await,
            PathPage::Pin | PathPage::Unpin => Err(Failure::MethodNotAllowed { allow: "POST" }),
        },
        (&Method::POST, PageRoute::OfPath(cache, hash, page)) => match page {
            PathPage::Pin => forms::pin(app, call, body, &cache, &hash).await,
            PathPage::Unpin => forms::unpin(app, call, body, &cache, &hash).await,
            PathPage::Remove => forms::remove(app, call, body, &cache, &hash).await,
            _ => Err(Failure::MethodNotAllowed { allow: "GET, HEAD" }),
        },
        (_, page) => Err(Failure::MethodNotAllowed { allow: page.allowed_methods() }),
    }
}

/// `/`: a page for browsers, and the text that it always was for all other programs.
pub(crate) async fn home(app: &App, call: &Call) -> Result<Response<Body>, Failure> {
    if app.settings.pages && wants_page(call) {
        return show::home(app, call).await;
    }
    let mut response = body::text(StatusCode::OK, HOME);
    if app.settings.pages {
        response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    }
    Ok(response)
}

/// Whether the caller names HTML among what it takes. Browsers do; curl and Nix take anything, and
/// name nothing.
fn wants_page(call: &Call) -> bool {
    call.header(http::header::ACCEPT).is_some_and(|accept| {
        let mut kinds = accept.split(',').map(|kind| kind.split(';').next().unwrap_or_default().trim());
        kinds.any(|kind| kind.eq_ignore_ascii_case("text/html"))
    })
}

/// Whether the answer to this request is a page, also if it fails.
pub(crate) fn shows_page(app: &App, call: &Call, route: Option<&Route<'_>>) -> bool {
    app.settings.pages
        && match route {
            Some(Route::Home | Route::Page(PageRoute::CacheWithoutSlash(_))) => wants_page(call),
            Some(Route::Page(page)) => !matches!(page, PageRoute::Asset(_)),
            _ => false,
        }
}

/// A failure as a page. What the visitor may not know of looks like what is not there, and no
/// browser asks for a password.
pub(crate) fn dress(app: &App, call: &Call, request: &str, mut response: Response<Body>) -> Response<Body> {
    let status = response.status();
    // Forms are for sessions: this one's has ended since its page was shown.
    let lost_session = call.method() == Method::POST
        && !call.path().starts_with("/_dormer/sign-")
        && app.presented(call).is_none();
    let view = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if lost_session => {
            if status == StatusCode::UNAUTHORIZED {
                *response.status_mut() = StatusCode::NOT_FOUND;
            }
            ProblemView::session_ended()
        }
        StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND => {
            *response.status_mut() = StatusCode::NOT_FOUND;
            ProblemView { from_elsewhere: session::may_be_kept_back(call), ..ProblemView::nothing_here() }
        }
        _ => ProblemView {
            title: status.canonical_reason().unwrap_or("Something went wrong").to_owned(),
            text: match response.body() {
                Body::Full(Some(text)) => String::from_utf8_lossy(text).trim_end().to_owned(),
                _ => String::new(),
            },
            request: Some(request.to_owned()),
            from_elsewhere: status == StatusCode::FORBIDDEN && session::may_be_kept_back(call),
        },
    };
    let html = view.render(&frame(app, call));
    response.headers_mut().remove(WWW_AUTHENTICATE);
    *response.body_mut() = Body::Full(Some(Bytes::from(html)));
    as_page(response)
}

/// What a page's frame says of the visitor.
fn frame(app: &App, call: &Call) -> Frame {
    let visitor = match app.presented(call) {
        None => Visitor::Anybody { may_sign_in: true },
        Some((token, claims)) => Visitor::SignedIn {
            subject: claims.sub.clone(),
            ends_at: claims.exp,
            form_token: session::form_token(&token),
        },
    };
    let path = call.path().strip_prefix('/').unwrap_or_default();
    // The page that showed the form: the address of a form itself is for no reader.
    let path = match path.rsplit_once('/') {
        Some((page, _)) if call.method() == Method::POST && !path.starts_with("_dormer/sign-") => page,
        _ => path,
    };
    let here = match call.query_text() {
        "" => path.to_owned(),
        query => format!("{path}?{query}"),
    };
    // A link of another site brings no session, so nobody else makes a page say what was done.
    let note = match visitor {
        Visitor::SignedIn { .. } => Note::in_query(call.query_text()),
        Visitor::Anybody { .. } => None,
    };
    Frame { root: way_to_root(call.path()), visitor, note, here, now: app.engine.now() }
}

fn page(html: String) -> Response<Body> {
    as_page(Response::new(Body::Full(Some(Bytes::from(html)))))
}

fn as_page(mut response: Response<Body>) -> Response<Body> {
    // A page depends on the visitor: no proxy and no browser keeps it.
    response.extensions_mut().insert(AnswerKind::Api);
    with_headers(response, &PAGE_HEADERS)
}

fn with_headers(mut response: Response<Body>, headers: &[(&'static str, &'static str)]) -> Response<Body> {
    for (name, value) in headers {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

fn file(asset: Asset) -> Response<Body> {
    with_headers(body::document(asset.content_type(), asset.text()), &ASSET_HEADERS)
}

/// Leads the browser on, with GET.
fn see_other(location: &str) -> Response<Body> {
    redirect(StatusCode::SEE_OTHER, location)
}

/// `location` is relative and made of escaped segments.
fn redirect(status: StatusCode, location: &str) -> Response<Body> {
    let mut response = body::text(status, "");
    *response.status_mut() = status;
    response.extensions_mut().insert(AnswerKind::Api);
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// The page of a cache has a slash at its end, so that its addresses are relative to it. The answer
/// is the same for every name.
fn with_slash(cache: &CacheName) -> Response<Body> {
    redirect(StatusCode::PERMANENT_REDIRECT, &dormer_pages::cache_address(cache.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_that_name_html_get_a_page() {
        let wants = |accept: &str| {
            let request = http::Request::builder().header("accept", accept).body(()).unwrap();
            wants_page(&Call::new(request.into_parts().0))
        };
        assert!(wants("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8") && wants("x/y, Text/HTML;q=0.1"));
        assert!(
            !wants("*/*") && !wants("text/*") && !wants("text/plain") && !wants("") && !wants("text/htmlx")
        );
    }
}
