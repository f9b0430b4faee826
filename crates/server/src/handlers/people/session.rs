//! Sessions of browsers: a token in a cookie, and the proof that a form is ours.
//!
//! The cookie holds the token itself, so there is nothing to store, and every replica knows every
//! session. It counts for pages only: no address of the protocols or the API looks at cookies, so
//! no other site can use a visitor's browser against them.
//!
//! Invariants
//! - The token is never in an address, a page or a log.
//! - The cookie is `HttpOnly` and `SameSite=Strict`, ends with the token, and over HTTPS also
//!   `Secure` with the prefix `__Host-`, so that no other host can plant it.
//! - A form changes something only if the browser says that it came from this host, and if it
//!   brings a proof that only a page of the same session shows. Each alone would do.

use std::fmt::Write as _;

use dormer_edge::decode_form;
use dormer_http_host::brief;
use dormer_nix::NarHash;
use dormer_pages::SignInView;
use http::header::{HeaderName, ORIGIN, SET_COOKIE};
use http::{HeaderValue, Method, Response, StatusCode};

use super::show::query;
use super::{frame, page, see_other};
use crate::app::App;
use crate::body::Body;
use crate::call::Call;
use crate::failure::Failure;
use crate::handlers::small_body;
use crate::request_body::RequestBody;
use crate::session_cookie::{COOKIE_TOKEN_BYTES_MAX, cookie_name, is_https, own_address};

/// Longest body of a form, in bytes: the longest token and some.
const FORM_BYTES_MAX: usize = 40 * 1024;

static FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The fields of a form.
pub(crate) struct Form(Vec<(String, String)>);

impl Form {
    /// The value of a field, without the space around it.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.trim())
    }
}

/// What a form of a session has to bring: derived from the token, so that only its holder knows it,
/// and nobody learns the token from it.
pub(crate) fn form_token(token: &str) -> String {
    NarHash::digest(format!("a form of a dormer session\0{token}").as_bytes()).to_hex()
}

/// The form that takes a token.
pub(super) fn form(app: &App, call: &Call) -> Result<Response<Body>, Failure> {
    let view = SignInView { refused: None, back: query(call, "back")?.unwrap_or_default() };
    Ok(page(view.render(&frame(app, call))))
}

/// Takes a token, and makes it a session.
pub(super) async fn sign_in(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
) -> Result<Response<Body>, Failure> {
    check_origin(app, call).map_err(|failure| match other_address(app, call) {
        Some(endpoint) => Failure::OtherAddress(endpoint),
        None => failure,
    })?;
    let form = read_form(app, call, body).await?;
    let token = form.field("token").unwrap_or_default();
    let back = form.field("back").unwrap_or_default();
    let refuse = |why: &str| {
        let view = SignInView { refused: Some(why.to_owned()), back: back.to_owned() };
        let mut response = page(view.render(&frame(app, call)));
        *response.status_mut() = StatusCode::FORBIDDEN;
        Ok(response)
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let claims = app.authenticator.verify(call, token, app.engine.now());
    let Some(claims) = claims.filter(|_| token.bytes().all(is_plain)) else {
        return refuse("This is no token that counts here now: it may have ended, or be for another server.");
    };
    if token.len() > COOKIE_TOKEN_BYTES_MAX {
        return refuse("This token is too long for a browser's cookie. Make one with fewer caches in it.");
    }
    let life = claims.exp.map(|end| end.saturating_sub(app.engine.now()).max(0));
    tracing::info!(subject = brief(claims.sub.as_deref().unwrap_or("")).as_ref(), "signed in");
    let location = format!("../{}", SignInView::way_back(back));
    Ok(with_cookie(app, call, see_other(&location), token, life))
}

/// Ends the session of this browser. A session whose token counts no more ends as well.
pub(super) async fn sign_out(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
) -> Result<Response<Body>, Failure> {
    if app.presented(call).is_some() {
        checked_form(app, call, body).await?;
    } else {
        check_origin(app, call)?;
    }
    Ok(with_cookie(app, call, see_other("../"), "", Some(0)))
}

fn with_cookie(
    app: &App,
    call: &Call,
    mut response: Response<Body>,
    token: &str,
    life: Option<i64>,
) -> Response<Body> {
    let is_https = is_https(app, call);
    let mut cookie = format!("{}={token}; Path=/; HttpOnly; SameSite=Strict", cookie_name(is_https));
    if is_https {
        cookie.push_str("; Secure");
    }
    if let Some(seconds) = life {
        let _ = write!(cookie, "; Max-Age={seconds}");
    }
    if let Ok(value) = HeaderValue::try_from(cookie) {
        response.headers_mut().insert(SET_COOKIE, value);
    }
    response
}

/// The fields of a form that a page of this session showed.
pub(super) async fn checked_form(app: &App, call: &Call, body: &mut RequestBody) -> Result<Form, Failure> {
    check_origin(app, call)?;
    let (token, _) = app.presented(call).ok_or(Failure::Unauthorized)?;
    let form = read_form(app, call, body).await?;
    if form.field("form_token") != Some(form_token(&token).as_str()) {
        return Err(Failure::ForeignForm);
    }
    Ok(form)
}

/// Whether the browser may have a session that it did not send: it keeps a `SameSite=Strict` cookie
/// back from whatever a page of another site leads to, and says so.
pub(super) fn may_be_kept_back(call: &Call) -> bool {
    let is_look = call.is_head() || call.method() == Method::GET;
    is_look && call.header(&FETCH_SITE).is_none_or(|site| site == "cross-site")
}

/// Refuses a form that another site sent. Browsers say where a form comes from, and no script can
/// change that.
fn check_origin(app: &App, call: &Call) -> Result<(), Failure> {
    let is_ours = match (call.header(&FETCH_SITE), call.header(ORIGIN)) {
        (Some(site), _) => site == "same-origin",
        (None, Some(origin)) => origin.eq_ignore_ascii_case(origin_of(&own_address(app, call))),
        // No browser: a program that brings its own token and proof.
        (None, None) => true,
    };
    if is_ours { Ok(()) } else { Err(Failure::ForeignForm) }
}

/// Scheme, host and port of an address.
fn origin_of(address: &str) -> &str {
    let after_scheme = address.find("://").map_or(0, |place| place + 3);
    let end = address[after_scheme..].find('/').map_or(address.len(), |place| after_scheme + place);
    &address[..end]
}

/// The address to sign in at, if the visitor is at another one of this server: the cookie counts at
/// one address alone.
fn other_address(app: &App, call: &Call) -> Option<String> {
    let endpoint = app.settings.api_endpoint.as_deref()?;
    let own = call.address(&app.settings.trusted_proxies);
    let is_own = call.header(ORIGIN).is_some_and(|origin| origin.eq_ignore_ascii_case(origin_of(&own)));
    is_own.then(|| endpoint.to_owned())
}

/// Anybody may send a form, so none is decoded.
async fn read_form(app: &App, call: &Call, body: &mut RequestBody) -> Result<Form, Failure> {
    small_body::refuse_coding(call, "no browser codes a form")?;
    let bytes = small_body::read(app, call, body, "the form", FORM_BYTES_MAX).await?.value;
    let text =
        std::str::from_utf8(&bytes).map_err(|_| Failure::BadRequest("the form is not text".to_owned()))?;
    let fields =
        decode_form(text).ok_or_else(|| Failure::BadRequest("the form cannot be read".to_owned()))?;
    Ok(Form(fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_of_a_form_does_not_tell_the_token() {
        assert_eq!(form_token("a.b.c"), form_token("a.b.c"));
        assert_ne!(form_token("a.b.c"), form_token("a.b.d"));
        assert!(!form_token("a.b.c").contains("a.b.c") && form_token("x").len() == 64);
    }
}
