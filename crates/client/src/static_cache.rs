//! Static caches to read from: files with the names that Nix knows, behind any host.
//!
//! A folder or a bucket can be listed; an address on the web cannot. The command line brings
//! folders and buckets, this file the web.
//!
//! Invariants
//! - A token goes to the address that the user chose, and nowhere else. A narinfo that names a file
//!   of another host is refused.
//! - "Not there" is an answer of the source. A source that fails is an error, never "not there".

use std::fmt;
use std::io;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormer_api::{RedactedUrl, Secret};
use dormer_nix::{DocumentName, StorePathHash};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Response, StatusCode, Url};

use crate::api::bearer;
use crate::certificates::http_client;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::fetch_error::FetchError;
use crate::redirects;
use crate::retry::{RetryPolicy, repeat, retry_after};
use crate::settings::process_variables;

/// How long an answer may take to begin, and how long a body may stand still.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes on their way. An error of the source has the kind `ConnectionAborted`.
pub type FileStream = BoxStream<'static, io::Result<Bytes>>;

/// A static cache.
#[async_trait]
pub trait StaticCache: Send + Sync + fmt::Debug + 'static {
    /// Where it is, for people, without secrets.
    fn location(&self) -> String;
    /// Reads a small file of at most `bytes_max` bytes; `None` if it is not there. Tries again
    /// after a failure that may pass.
    async fn get(&self, name: &str, bytes_max: usize) -> Result<Option<Bytes>, FetchError>;
    /// Opens the file that a narinfo names by this URL. Tries once.
    async fn open(&self, url: &str) -> Result<FileStream, FetchError>;
    /// The hashes of all narinfos, in no order; `None` if the source cannot be listed.
    fn list(&self) -> Option<BoxStream<'static, Result<StorePathHash, FetchError>>>;
    /// The documents in one of [`DocumentName::FOLDERS`], in no order; `None` if the source cannot
    /// be listed.
    fn list_documents(&self, folder: &str) -> Option<BoxStream<'static, Result<DocumentName, FetchError>>>;
}

/// A static cache on the web.
#[derive(Clone)]
pub struct WebCache {
    http: reqwest::Client,
    base: Endpoint,
    authorization: Option<HeaderValue>,
    retry: RetryPolicy,
}

impl fmt::Debug for WebCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebCache").field("base", &self.base).finish_non_exhaustive()
    }
}

impl WebCache {
    /// The cache at `base`, such as `https://cache.nixos.org`. Requests carry `token`, as a Bearer
    /// token.
    pub fn new(base: Endpoint, token: Option<&Secret>) -> Result<Self> {
        let authorization = token.map(bearer).transpose()?;
        let redirects =
            if authorization.is_some() { redirects::to_same_origin() } else { redirects::without_secrets() };
        let http = http_client(base.is_encrypted(), &process_variables)?
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(IDLE_TIMEOUT)
            .redirect(redirects)
            .build()
            .map_err(Error::HttpClient)?;
        Ok(Self { http, base, authorization, retry: RetryPolicy::default() })
    }

    /// The same cache, asked by another policy.
    #[must_use]
    pub fn with_retries(self, retry: RetryPolicy) -> Self {
        Self { retry, ..self }
    }

    /// Sends a GET; `None` if the file is not there. A bucket without the right to list says 403 of
    /// a file that is not there, so Nix takes 403 as "not there", too.
    async fn ask(&self, url: Url, name: &str) -> Result<Option<Response>, FetchError> {
        let mut request = self.http.get(url);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let answer = request.send().await.map_err(|error| broken(name, error))?;
        match answer.status() {
            StatusCode::OK => Ok(Some(answer)),
            StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::FORBIDDEN => Ok(None),
            status => Err(FetchError::Status {
                name: name.to_owned(),
                status: status.as_u16(),
                retry_after: retry_after(answer.headers()),
            }),
        }
    }

    async fn get_once(&self, name: &str, bytes_max: usize) -> Result<Option<Bytes>, FetchError> {
        let url = self.address(name)?;
        let Some(mut answer) = self.ask(url, name).await? else { return Ok(None) };
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|error| broken(name, error))? {
            if bytes.len() + piece.len() > bytes_max {
                return Err(FetchError::TooLarge { name: name.to_owned(), max: bytes_max });
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Some(bytes.into()))
    }

    /// The address of a file. It has to lie on the same host.
    fn address(&self, name: &str) -> Result<Url, FetchError> {
        let base = self.base.url();
        let foreign = || FetchError::Foreign { url: RedactedUrl::new(name).to_string() };
        let url = base.join(name).map_err(|_| foreign())?;
        if url.origin() == base.origin() { Ok(url) } else { Err(foreign()) }
    }
}

fn broken(name: &str, error: reqwest::Error) -> FetchError {
    let is_passing = !error.is_builder() && !error.is_redirect();
    FetchError::Source { name: name.to_owned(), is_passing, source: Box::new(error.without_url()) }
}

#[async_trait]
impl StaticCache for WebCache {
    fn location(&self) -> String {
        self.base.to_string()
    }

    async fn get(&self, name: &str, bytes_max: usize) -> Result<Option<Bytes>, FetchError> {
        let pause = |tries, error: FetchError| async move {
            let Some(wait) = error.passing().and_then(|passing| self.retry.wait(tries, passing)) else {
                return Err(error);
            };
            tracing::debug!(name, tries, error = &error as &dyn std::error::Error, "asking the source again");
            tokio::time::sleep(wait).await;
            Ok(())
        };
        repeat(|| self.get_once(name, bytes_max), pause).await
    }

    async fn open(&self, url: &str) -> Result<FileStream, FetchError> {
        let missing = || FetchError::Missing { name: url.to_owned() };
        let answer = self.ask(self.address(url)?, url).await?.ok_or_else(missing)?;
        let aborted =
            |error: reqwest::Error| io::Error::new(io::ErrorKind::ConnectionAborted, error.without_url());
        Ok(answer.bytes_stream().map(move |piece| piece.map_err(aborted)).boxed())
    }

    fn list(&self) -> Option<BoxStream<'static, Result<StorePathHash, FetchError>>> {
        None
    }

    fn list_documents(&self, _folder: &str) -> Option<BoxStream<'static, Result<DocumentName, FetchError>>> {
        None
    }
}

/// The name of a file below a folder or prefix, from the URL in a narinfo. An address with a
/// scheme, and a path that begins elsewhere or leads upwards, are foreign.
pub fn file_name_in_cache(url: &str) -> Result<&str, FetchError> {
    let is_plain = |part: &str| !matches!(part, "" | "." | "..");
    if !url.contains(['?', '#', '\\', '%', '\0']) && !url.contains("://") && url.split('/').all(is_plain) {
        return Ok(url);
    }
    Err(FetchError::Foreign { url: RedactedUrl::new(url).to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narinfo_cannot_name_a_file_of_another_host_or_folder() {
        for name in ["nar/a.nar.xz", "a.nar", "x/y/z"] {
            assert_eq!(file_name_in_cache(name).unwrap(), name);
        }
        for name in ["", "/etc/passwd", "../x", "nar/../../x", "nar//x", "https://x/y", "nar/a?b", "nar/%2e"]
        {
            assert!(file_name_in_cache(name).is_err(), "{name}");
        }
        let cache = WebCache::new("http://cache.example/main".parse().unwrap(), None).unwrap();
        let address = |name: &str| cache.address(name).map(|url| url.to_string());
        assert_eq!(address("nar/a.nar.xz").unwrap(), "http://cache.example/main/nar/a.nar.xz");
        assert_eq!(address("http://cache.example/nar/a").unwrap(), "http://cache.example/nar/a");
        for name in ["https://cache.example/a", "//other.example/a", "http://cache.example:81/a", "file:///a"]
        {
            assert!(matches!(address(name), Err(FetchError::Foreign { .. })), "{name}");
        }
    }
}
