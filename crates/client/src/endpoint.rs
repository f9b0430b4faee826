//! The address of a server.

use std::fmt;
use std::str::FromStr;

use dormer_api::{CacheName, RedactedUrl};
use reqwest::Url;

use crate::error::{Error, Result};

/// The address of a server: an HTTP or HTTPS URL, perhaps with a base path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint(Url);

impl Endpoint {
    /// Whether tokens would travel unprotected: over plain HTTP to another machine.
    pub fn is_plain_text(&self) -> bool {
        let here = self.0.host_str().is_some_and(|host| {
            let host = host.trim_matches(['[', ']']);
            host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
        });
        self.0.scheme() == "http" && !here
    }

    pub(crate) fn url(&self) -> &Url {
        &self.0
    }

    /// The address without its last segment, and this segment, if it could be the name of a cache.
    pub fn split_cache(&self) -> Option<(Self, CacheName)> {
        let (base, last) = self.0.path().trim_end_matches('/').rsplit_once('/')?;
        let mut url = self.0.clone();
        url.set_path(&format!("{base}/"));
        Some((Self(url), last.parse().ok()?))
    }

    /// The host's name or address.
    pub(crate) fn host(&self) -> &str {
        self.0.host_str().expect("an address of http or https has a host")
    }

    /// Whether the connection needs certificates.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// The address of a route, with or without a slash at its beginning.
    pub fn join(&self, route: &str) -> String {
        format!("{}{}", self.0, route.trim_start_matches('/'))
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |text: &str, reason: &str| Error::Endpoint {
            text: RedactedUrl::new(text).to_string(),
            reason: reason.to_owned(),
        };
        let mut url: Url = text.trim().parse().map_err(|_| wrong(text, "it is not a URL"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong(text, "log in with a token instead of a user name in the address"));
        }
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong(text, "it must begin with http:// or https://"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong(text, "it must not have a ? or a # in it"));
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(Self(url))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use dormer_api::routes;

    use super::*;

    #[test]
    fn endpoints_are_http_addresses_with_a_slash_at_the_end() {
        let read = |text: &str| text.parse::<Endpoint>().map(|endpoint| endpoint.to_string());
        assert_eq!(read("http://localhost:8080").unwrap(), "http://localhost:8080/");
        assert_eq!(read(" https://Example.org/attic \n").unwrap(), "https://example.org/attic/");
        assert_eq!(read("https://example.org/attic/").unwrap(), "https://example.org/attic/");
        for text in ["", "localhost:8080", "example.org", "ftp://a", "http://", "http://a/?q", "http://a/#f"]
        {
            assert!(matches!(read(text), Err(Error::Endpoint { .. })), "{text:?}");
        }
        for text in [
            "https://user:hunter2@example.org",
            "https://user:hunter2@exa mple",
            "ftp://hunter2@h",
            "https://h/?token=hunter2",
        ] {
            let error = read(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn routes_are_joined_below_the_endpoints_path() {
        let endpoint: Endpoint = "https://example.org/attic".parse().unwrap();
        assert_eq!(
            endpoint.join(&routes::cache_config(&"a+b".parse().unwrap())),
            "https://example.org/attic/_api/v1/cache-config/a+b"
        );
    }

    #[test]
    fn the_name_of_a_cache_is_the_last_segment() {
        let split = |text: &str| {
            let endpoint: Endpoint = text.parse().unwrap();
            endpoint.split_cache().map(|(server, cache)| (server.to_string(), cache.to_string()))
        };
        let parts = |server: &str, cache: &str| Some((server.to_owned(), cache.to_owned()));
        assert_eq!(split("http://a/main"), parts("http://a/", "main"));
        assert_eq!(split("http://a/base/main/"), parts("http://a/base/", "main"));
        assert_eq!(split("http://a/"), None);
        assert_eq!(split("http://a/_api"), None);
    }

    #[test]
    fn plain_text_is_what_others_can_read() {
        let plain = |text: &str| text.parse::<Endpoint>().unwrap().is_plain_text();
        assert!(
            plain("http://example.org") && plain("http://10.0.0.1:8080") && plain("http://[2001:db8::1]/")
        );
        assert!(!plain("https://example.org"));
        assert!(!plain("http://localhost:8080") && !plain("http://127.0.0.1") && !plain("http://[::1]:8080"));
    }
}
