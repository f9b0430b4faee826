//! The address of a cache, as it goes into `nix.conf`.
//!
//! Nix reads settings of a store from the query of its address: `?trusted=1` turns off the check of
//! signatures. Nix sends the token of the netrc file to the host of the address. So an address that
//! a server reports must be nothing but an address.

use std::fmt;
use std::str::FromStr;

use dormer_api::RedactedUrl;
use reqwest::Url;

use crate::endpoint::Endpoint;
use crate::error::{Error, Result};

/// An HTTP or HTTPS address without user info, query and fragment, and without a slash at the end.
/// `Display` writes the parsed address, so two readers cannot understand the text differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubstituterUrl(Url);

impl SubstituterUrl {
    /// Whether Nix would talk to another host than the one that the user chose.
    pub fn is_other_host(&self, endpoint: &Endpoint) -> bool {
        self.0.host_str() != endpoint.url().host_str()
    }

    /// Whether Nix would talk in plain text, while the user chose TLS.
    pub fn is_downgrade(&self, endpoint: &Endpoint) -> bool {
        self.0.scheme() == "http" && endpoint.url().scheme() == "https"
    }
}

impl FromStr for SubstituterUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |reason: &str| Error::SubstituterUrl {
            text: RedactedUrl::new(text).to_string(),
            reason: reason.to_owned(),
        };
        // The parser would drop line breaks and blanks without a word.
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("it has characters that no address can have"));
        }
        let url: Url = text.parse().map_err(|_| wrong("it is not a URL"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("it must begin with http:// or https://"));
        }
        // The parser takes quotes and semicolons, which a netrc file may read differently.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_[]:".contains(&byte);
        if !url.host_str().is_some_and(|host| host.bytes().all(is_plain)) {
            return Err(wrong("its host has characters that no host has"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("it must not have a user name or a password in it"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it must not have a ? or a # in it, because Nix reads settings from there"));
        }
        Ok(Self(url))
    }
}

impl fmt::Display for SubstituterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<SubstituterUrl> {
        text.parse()
    }

    #[test]
    fn addresses_are_written_back_in_one_form() {
        for (text, written) in [
            ("https://cache.example.org/main", "https://cache.example.org/main"),
            ("HTTPS://Cache.Example.org:443/main/", "https://cache.example.org/main"),
            ("http://[::1]:8080/a/../main", "http://[::1]:8080/main"),
            ("http:\\\\h\\main", "http://h/main"),
        ] {
            assert_eq!(read(text).unwrap().to_string(), written);
        }
    }

    #[test]
    fn whatever_is_more_than_an_address_is_refused() {
        for text in [
            "",
            "main",
            "ftp://h/main",
            "file:///nix/store",
            "s3://bucket",
            "ssh://h",
            "daemon",
            "http://h/x?trusted=1",
            "http://h/x?",
            "http://h/x#y",
            "http://ada@h/x",
            "http://ada:hunter2@h/x",
            "http://:hunter2@h/x",
            "http://h/x extra-substituters",
            "http://h/x\nsubstituters = evil",
            "http://h/\tx",
            "https://ä/x",
            "http://h;x=\"y\"/main",
            "http://",
        ] {
            let error = read(text).unwrap_err();
            assert!(matches!(error, Error::SubstituterUrl { .. }), "{text:?}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{text:?}");
        }
    }

    #[test]
    fn another_host_and_a_downgrade_are_noticed() {
        let endpoint: Endpoint = "https://cache.example.org/attic".parse().unwrap();
        for (text, is_other, is_downgrade) in [
            ("https://cache.example.org/main", false, false),
            ("https://CACHE.example.org:8443/main", false, false),
            ("http://cache.example.org/main", false, true),
            ("https://cdn.example.org/main", true, false),
            ("http://10.0.0.1:8080/main", true, true),
        ] {
            let url = read(text).unwrap();
            assert_eq!(
                (url.is_other_host(&endpoint), url.is_downgrade(&endpoint)),
                (is_other, is_downgrade),
                "{text}"
            );
        }
        let plain: Endpoint = "http://h".parse().unwrap();
        assert!(!read("http://h/main").unwrap().is_downgrade(&plain));
    }

    proptest::proptest! {
        /// The written address is one word for nix.conf, is read again as the same address, and has
        /// nothing in it that Nix reads as settings.
        #[test]
        fn a_written_address_is_only_an_address(text in "(https?://)?[a-z?#@:/ \\\\\n%.=é\\[\\]]{0,20}") {
            if let Ok(url) = read(&text) {
                let written = url.to_string();
                proptest::prop_assert!(written.bytes().all(|byte| byte.is_ascii_graphic()));
                proptest::prop_assert!(!written.contains(['?', '#']));
                proptest::prop_assert_eq!(read(&written).unwrap().to_string(), written);
            }
        }
    }
}
