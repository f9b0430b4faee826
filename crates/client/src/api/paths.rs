//! Requests about the paths of a cache.

use bytes::Bytes;
use dormer_api::v2::{
    ListObjectsRequest, ListObjectsResponse, ListReferrersResponse, ObjectResponse, PURGED_PATHS_MAX,
    PurgesResponse, RemovePathResponse, RemoveReferrersResponse,
};
use dormer_api::{CacheName, GetMissingPathsRequest, GetMissingPathsResponse, routes};
use dormer_nix::StorePathHash;
use reqwest::{Method, Response};

use super::{ApiClient, Repeat};
use crate::error::Result;

/// A file that is being downloaded.
#[derive(Debug)]
pub struct FileDownload {
    api: ApiClient,
    response: Response,
    action: String,
}

impl FileDownload {
    /// The next bytes; `None` at the end. An error if the connection ends before the file does.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        match tokio::time::timeout(self.api.settings.idle_timeout, self.response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(error)) => Err(self.api.broken(&self.action, Repeat::Always, error).error),
            Err(_) => Err(self.api.stalled(&self.action).error),
        }
    }
}

impl ApiClient {
    /// Returns those of `hashes` that the cache lacks. Ask for at most a few thousand at once,
    /// because servers limit the body.
    pub async fn get_missing_paths(
        &self,
        cache: &CacheName,
        hashes: Vec<StorePathHash>,
    ) -> Result<Vec<StorePathHash>> {
        let action = format!("asking cache {cache} what it lacks");
        let question = GetMissingPathsRequest { cache: cache.clone(), store_path_hashes: hashes };
        let request = || self.request(Method::POST, routes::GET_MISSING_PATHS).json(&question);
        let answer: GetMissingPathsResponse = self.ask(&action, Repeat::Always, request).await?;
        Ok(answer.missing_paths)
    }

    /// A page of what is in a cache.
    pub async fn list_objects(
        &self,
        cache: &CacheName,
        request: &ListObjectsRequest,
    ) -> Result<ListObjectsResponse> {
        let action = format!("listing cache {cache}");
        let route = routes::v2_objects(cache);
        self.ask(&action, Repeat::Always, || self.request(Method::POST, &route).json(request)).await
    }

    /// What a cache says of a path.
    pub async fn get_object(&self, cache: &CacheName, hash: &StorePathHash) -> Result<ObjectResponse> {
        let action = format!("looking up {hash} in cache {cache}");
        let route = routes::v2_object(cache, hash);
        self.ask(&action, Repeat::Always, || self.request(Method::GET, &route)).await
    }

    /// A page of what refers to a path.
    pub async fn list_referrers(
        &self,
        cache: &CacheName,
        hash: &StorePathHash,
        after: Option<&StorePathHash>,
    ) -> Result<ListReferrersResponse> {
        let action = format!("listing what refers to {hash} in cache {cache}");
        let query = after.map_or_else(String::new, |after| format!("?after={after}"));
        let route = routes::v2_referrers(cache, hash) + &query;
        self.ask(&action, Repeat::Always, || self.request(Method::GET, &route)).await
    }

    /// Removes a path from a cache at once. `removed` says whether the path was there.
    /// With `now`, a collection also removes its bytes from the store.
    pub async fn remove_path(
        &self,
        cache: &CacheName,
        hash: &StorePathHash,
        now: bool,
    ) -> Result<RemovePathResponse> {
        let action = format!("removing {hash} from cache {cache}");
        let route = with_now(routes::v2_object(cache, hash), now);
        self.ask(&action, Repeat::Always, || self.request(Method::DELETE, &route)).await
    }

    /// Removes what refers to a path, directly or not. Call it again while it says that there is
    /// more and removes something.
    pub async fn remove_referrers(
        &self,
        cache: &CacheName,
        hash: &StorePathHash,
        now: bool,
    ) -> Result<RemoveReferrersResponse> {
        let action = format!("removing what refers to {hash} from cache {cache}");
        let route = with_now(routes::v2_referrers(cache, hash), now);
        self.ask(&action, Repeat::Always, || self.request(Method::DELETE, &route)).await
    }

    /// How much of these removed paths is still to be removed from the store; of all removed paths
    /// if `None` is given, or more than one request may name. An older server always counts all.
    pub async fn count_purges(
        &self,
        cache: &CacheName,
        paths: Option<&[StorePathHash]>,
    ) -> Result<PurgesResponse> {
        let action = format!("asking which bytes of cache {cache} are still to be removed");
        let paths = paths.filter(|paths| paths.len() <= PURGED_PATHS_MAX).unwrap_or_default();
        let route = routes::v2_purges(cache, paths);
        self.ask(&action, Repeat::Always, || self.request(Method::GET, &route)).await
    }

    /// One file out of a path of a cache. It is repeated until the answer begins, and not after
    /// that.
    pub async fn get_file(
        &self,
        cache: &CacheName,
        hash: &StorePathHash,
        names: &[String],
    ) -> Result<FileDownload> {
        let action = format!("reading {} of {hash} in cache {cache}", names.join("/"));
        let route = routes::v2_file(cache, hash, names);
        let response = self
            .with_retries(&action, async || {
                let request = self.request(Method::GET, &route).send();
                let response = tokio::time::timeout(self.settings.idle_timeout, request).await;
                let stalled = || self.stalled(&action);
                let response = response.map_err(|_| stalled())?;
                let response = response.map_err(|error| self.broken(&action, Repeat::Always, error))?;
                self.check(&action, response).await
            })
            .await?;
        Ok(FileDownload { api: self.clone(), response, action })
    }
}

/// A route of a removal, by which the bytes go too or not.
fn with_now(route: String, now: bool) -> String {
    if now { format!("{route}?{}", routes::NOW_QUERY) } else { route }
}
