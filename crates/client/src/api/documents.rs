//! Requests about build logs and build traces.

use bytes::Bytes;
use dormer_api::{CacheName, routes};
use dormer_nix::{BuildTrace, DocumentName, StorePath};
use reqwest::Method;
use reqwest::header::{CONTENT_ENCODING, IF_NONE_MATCH};

use super::{ApiClient, ERROR_BYTES_MAX, Repeat, read_up_to};
use crate::build_logs::BuildLog;
use crate::error::{Error, Result};

impl ApiClient {
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
}
