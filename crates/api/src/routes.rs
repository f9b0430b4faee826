//! Every route of the API, as templates for the server's router and as builders for clients.
//!
//! Builders need no percent-encoding: cache names and hashes consist of characters that stand for
//! themselves in a path. No cache name begins with `_`, so `/_api/` can never be taken for a cache.

use dormer_nix::StorePathHash;

use crate::CacheName;

/// GET, POST, PATCH, DELETE: a cache's settings.
pub const CACHE_CONFIG: &str = "/_api/v1/cache-config/{cache}";
/// POST: which of these store path hashes does the cache lack?
pub const GET_MISSING_PATHS: &str = "/_api/v1/get-missing-paths";
/// PUT: one NAR with its metadata.
pub const UPLOAD_PATH: &str = "/_api/v1/upload-path";
/// GET: the same answer as [`CACHE_CONFIG`], below the substituter's address.
pub const ATTIC_CACHE_INFO: &str = "/{cache}/attic-cache-info";
/// GET: the caches that the caller may know of.
pub const V2_CACHES: &str = "/_api/v2/caches";
/// DELETE: take one object out of a cache at once.
pub const V2_OBJECT: &str = "/_api/v2/caches/{cache}/objects/{hash}";
/// GET and PUT: Nix's own description of a cache.
pub const NIX_CACHE_INFO: &str = "/{cache}/nix-cache-info";
/// GET, HEAD, PUT: `<hash>.narinfo` and the other documents in a cache's top folder.
pub const CACHE_FILE: &str = "/{cache}/{file}";
/// GET, HEAD, PUT: a NAR.
pub const NAR: &str = "/{cache}/nar/{file}";

/// [`CACHE_CONFIG`] of `cache`.
pub fn cache_config(cache: &CacheName) -> String {
    CACHE_CONFIG.replace("{cache}", cache.as_str())
}

/// [`ATTIC_CACHE_INFO`] of `cache`.
pub fn attic_cache_info(cache: &CacheName) -> String {
    ATTIC_CACHE_INFO.replace("{cache}", cache.as_str())
}

/// [`V2_CACHES`], from the first cache or from the one after this name on.
pub fn v2_caches(after: Option<&CacheName>) -> String {
    after.map_or_else(|| V2_CACHES.to_owned(), |after| format!("{V2_CACHES}?after={after}"))
}

/// [`V2_OBJECT`] of `cache` and `hash`.
pub fn v2_object(cache: &CacheName, hash: &StorePathHash) -> String {
    V2_OBJECT.replace("{cache}", cache.as_str()).replace("{hash}", &hash.to_string())
}

/// The folder that is a cache to Nix: what stands in `substituters`, below the server's address.
pub fn substituter(cache: &CacheName) -> String {
    format!("/{cache}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builders_fill_the_templates() {
        let cache: CacheName = "team+a_1".parse().unwrap();
        let hash: StorePathHash = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5".parse().unwrap();
        assert_eq!(cache_config(&cache), "/_api/v1/cache-config/team+a_1");
        assert_eq!(attic_cache_info(&cache), "/team+a_1/attic-cache-info");
        assert_eq!(v2_object(&cache, &hash), format!("/_api/v2/caches/team+a_1/objects/{hash}"));
        assert_eq!(substituter(&cache), "/team+a_1");
    }
}
