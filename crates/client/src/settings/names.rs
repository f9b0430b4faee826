//! The names that users give to servers and caches.

use std::fmt;
use std::str::FromStr;

use dormer_api::CacheName;
use serde::{Deserialize, Serialize};

use crate::endpoint::Endpoint;
use crate::error::{Error, Result};

/// The user's name for a server. It has the same characters as the name of a cache.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServerName(CacheName);

impl ServerName {
    /// The name.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The environment variable with a token for this server only.
    pub fn token_variable(&self) -> String {
        let sign = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        format!("DORMER_TOKEN_{}", self.as_str().chars().map(sign).collect::<String>())
    }

    /// A name for a server that no settings name: its host, with `-` for other signs.
    pub(super) fn of_host(endpoint: &Endpoint) -> Self {
        /// Longest name of a server.
        const NAME_CHARS_MAX: usize = 50;
        let sign = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let name: String = endpoint
            .host()
            .trim_matches(['[', ']', ':', '.'])
            .chars()
            .take(NAME_CHARS_MAX)
            .map(sign)
            .collect();
        name.parse().unwrap_or_else(|_| "server".parse().expect("a valid name"))
    }
}

impl FromStr for ServerName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(Self).map_err(|_| Error::ServerName { text: text.to_owned() })
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A cache as a user names it: `cache` on the default server, or `server:cache`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CacheRef {
    /// The server; `None` is the default one.
    pub server: Option<ServerName>,
    /// The cache.
    pub cache: CacheName,
}

impl FromStr for CacheRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let malformed = || Error::CacheRef { text: text.to_owned() };
        let (server, cache) = match text.split_once(':') {
            Some((server, cache)) => (Some(server.parse().map_err(|_| malformed())?), cache),
            None => (None, text),
        };
        Ok(Self { server, cache: cache.parse().map_err(|_| malformed())? })
    }
}

impl TryFrom<String> for CacheRef {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<CacheRef> for String {
    fn from(cache: CacheRef) -> Self {
        cache.to_string()
    }
}

impl fmt::Display for CacheRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server {
            Some(server) => write!(f, "{server}:{}", self.cache),
            None => self.cache.fmt(f),
        }
    }
}
