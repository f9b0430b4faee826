//! Requests about caches and the whole installation.

use dormer_api::v2::{CacheStatsResponse, ListCachesResponse, StatsResponse, StatusResponse};
use dormer_api::{CacheConfig, CacheName, CreateCacheRequest, routes};
use reqwest::Method;

use super::{ApiClient, Repeat};
use crate::error::{Error, Result};

/// Most caches in a list, and most pages of it. A page of Dormer's has 100 caches.
const CACHES_MAX: usize = 1_000_000;
const CACHE_PAGES_MAX: usize = 10_000;

impl ApiClient {
    /// A cache's settings.
    pub async fn get_cache_config(&self, cache: &CacheName) -> Result<CacheConfig> {
        let action = format!("looking up cache {cache}");
        let route = routes::cache_config(cache);
        self.ask(&action, Repeat::Always, || self.request(Method::GET, &route)).await
    }

    /// Creates a cache.
    pub async fn create_cache(&self, cache: &CacheName, request: &CreateCacheRequest) -> Result<()> {
        let action = format!("creating cache {cache}");
        let route = routes::cache_config(cache);
        self.tell(&action, Repeat::IfNotSent, || self.request(Method::POST, &route).json(request)).await
    }

    /// Changes those settings of a cache that are `Some`.
    pub async fn configure_cache(&self, cache: &CacheName, patch: &CacheConfig) -> Result<()> {
        let action = format!("configuring cache {cache}");
        let route = routes::cache_config(cache);
        self.tell(&action, Repeat::Always, || self.request(Method::PATCH, &route).json(patch)).await
    }

    /// Destroys a cache.
    pub async fn destroy_cache(&self, cache: &CacheName) -> Result<()> {
        let action = format!("destroying cache {cache}");
        let route = routes::cache_config(cache);
        self.tell(&action, Repeat::IfNotSent, || self.request(Method::DELETE, &route)).await
    }

    /// The caches that this token may see.
    pub async fn list_caches(&self) -> Result<ListCachesResponse> {
        let action = "listing the caches";
        let mut all = ListCachesResponse { caches: Vec::new(), next: None };
        for _ in 0..CACHE_PAGES_MAX {
            let route = routes::v2_caches(all.next.as_ref());
            let request = || self.request(Method::GET, &route);
            let page: ListCachesResponse = self.ask(action, Repeat::Always, request).await?;
            all.caches.extend(page.caches);
            let Some(next) = page.next else { return Ok(ListCachesResponse { next: None, ..all }) };
            // A server lists the caches by name. One that goes back, or ignores `after`, would keep
            // the client for ever.
            if all.next.is_some_and(|last| next <= last) || all.caches.len() > CACHES_MAX {
                break;
            }
            all.next = Some(next);
        }
        Err(Error::EndlessList { action: action.to_owned() })
    }

    /// What a cache holds, and its last `days`.
    pub async fn cache_stats(&self, cache: &CacheName, days: u32) -> Result<CacheStatsResponse> {
        let action = format!("asking what cache {cache} holds");
        let route = format!("{}?days={days}", routes::v2_cache_stats(cache));
        self.ask(&action, Repeat::Always, || self.request(Method::GET, &route)).await
    }

    /// What the whole installation holds, and its last `days`.
    pub async fn stats(&self, days: u32) -> Result<StatsResponse> {
        let action = "asking what the server holds";
        let route = format!("{}?days={days}", routes::V2_STATS);
        self.ask(action, Repeat::Always, || self.request(Method::GET, &route)).await
    }

    /// What the server does at this moment.
    pub async fn status(&self) -> Result<StatusResponse> {
        let action = "asking what the server does";
        self.ask(action, Repeat::Always, || self.request(Method::GET, routes::V2_STATUS)).await
    }
}
