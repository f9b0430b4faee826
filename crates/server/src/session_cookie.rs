//! The cookie with the token of a browser's session. What it may be used for, and how it is set and
//! forgotten, is in [`session`](crate::handlers::people::session).

use http::HeaderMap;
use http::header::COOKIE;

use crate::app::App;
use crate::call::Call;

/// Browsers drop a cookie of more than 4,096 bytes, name and attributes included.
pub(crate) const COOKIE_TOKEN_BYTES_MAX: usize = 3_800;

/// The token in the cookie of a request.
pub(crate) fn cookie_token(app: &App, call: &Call) -> Option<String> {
    let name = cookie_name(is_https(app, call));
    read_cookie(call.headers(), name)
}

fn read_cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let mut cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let token = cookies.find_map(|line| {
        let mut pairs = line.split(';').filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    })?;
    (1..=COOKIE_TOKEN_BYTES_MAX).contains(&token.len()).then(|| token.to_owned())
}

/// The address that the visitor's browser knows: what the operator says it is, else what the
/// request and trusted proxies say. A proxy that ends TLS need not be a trusted one.
pub(crate) fn own_address(app: &App, call: &Call) -> String {
    app.settings.api_endpoint.clone().unwrap_or_else(|| call.address(&app.settings.trusted_proxies))
}

pub(crate) fn is_https(app: &App, call: &Call) -> bool {
    own_address(app, call).starts_with("https:")
}

pub(crate) const fn cookie_name(is_https: bool) -> &'static str {
    if is_https { "__Host-dormer" } else { "dormer" }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let read = |cookies: &[&'static str]| {
            let lines = cookies.iter().map(|line| (COOKIE, HeaderValue::from_static(line)));
            read_cookie(&lines.collect(), "dormer")
        };
        assert_eq!(read(&["dormer=a.b.c"]).as_deref(), Some("a.b.c"));
        assert_eq!(read(&["x=1; dormer=a.b.c; y=2"]).as_deref(), Some("a.b.c"));
        assert_eq!(read(&["xdormer=a; dormers=b", "dormer=c"]).as_deref(), Some("c"));
        for none in [&["xdormer=a"][..], &["dormer="], &["dormer"], &[]] {
            assert_eq!(read(none), None, "{none:?}");
        }
    }
}
