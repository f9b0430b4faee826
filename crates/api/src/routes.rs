//! Every route of the API, as templates for the server's router and as builders for clients.
//!
//! Builders need no percent-encoding, but for the `?` in names of store paths: cache names and
//! hashes consist of characters that stand for themselves in a path. No cache name begins with `_`,
//! so `/_api/` can never be taken for a cache.

use std::fmt::Write as _;

use dormer_nix::{DocumentName, StorePath, StorePathHash};

use crate::v2::{PartDigest, SessionId};
use crate::{CacheName, PinName};

/// GET, POST, PATCH, DELETE: a cache's settings.
pub const CACHE_CONFIG: &str = "/_api/v1/cache-config/{cache}";
/// POST: which of these store path hashes does the cache lack?
pub const GET_MISSING_PATHS: &str = "/_api/v1/get-missing-paths";
/// PUT: one NAR with its metadata.
pub const UPLOAD_PATH: &str = "/_api/v1/upload-path";
/// GET: the caches that the caller may know of.
pub const V2_CACHES: &str = "/_api/v2/caches";
/// GET: what a cache says of one object. DELETE: take it out of the cache at once.
pub const V2_OBJECT: &str = "/_api/v2/caches/{cache}/objects/{hash}";
/// GET: what refers to an object, in pages. DELETE: take every object out of a cache that refers to
/// this one, directly or not.
pub const V2_REFERRERS: &str = "/_api/v2/caches/{cache}/objects/{hash}/referrers";
/// GET: how much of removed paths is still to be removed from the store.
pub const V2_PURGES: &str = "/_api/v2/caches/{cache}/purges";
/// GET and POST: what is in a cache, in pages.
pub const V2_OBJECTS: &str = "/_api/v2/caches/{cache}/objects";
/// GET: what a cache holds, in numbers.
pub const V2_CACHE_STATS: &str = "/_api/v2/caches/{cache}/stats";
/// GET: what the whole installation holds, in numbers.
pub const V2_STATS: &str = "/_api/v2/stats";
/// GET: what the server does at this moment.
pub const V2_STATUS: &str = "/_api/v2/status";
/// POST: a cache's pins, in pages.
pub const V2_PINS: &str = "/_api/v2/caches/{cache}/pins";
/// PUT: pin a path under a name. DELETE: remove the pins of a name.
pub const V2_PIN: &str = "/_api/v2/caches/{cache}/pins/{name}";
/// DELETE: remove the pin of one path.
pub const V2_PINNED_PATH: &str = "/_api/v2/caches/{cache}/pins/{name}/{hash}";
/// PUT: open a session of a push by chunks, or join it again.
pub const V2_SESSION: &str = "/_api/v2/caches/{cache}/sessions/{session}";
/// POST: which of these chunks does the server ask the session for?
pub const V2_SESSION_MISSING: &str = "/_api/v2/caches/{cache}/sessions/{session}/missing";
/// PUT: a pack of chunks.
pub const V2_SESSION_PART: &str = "/_api/v2/caches/{cache}/sessions/{session}/parts/{digest}";
/// POST: make paths of the chunks.
pub const V2_SESSION_COMMIT: &str = "/_api/v2/caches/{cache}/sessions/{session}/commit";
/// GET, HEAD, PUT: a NAR.
pub const NAR: &str = "/{cache}/nar/{file}";

/// GET, HEAD, PUT: the log of a derivation's build.
pub const BUILD_LOG: &str = "/{cache}/log/{derivation}";

/// [`BUILD_LOG`] of `cache` and `derivation`.
pub fn build_log(cache: &CacheName, derivation: &StorePath) -> String {
    let derivation = derivation.base_name().replace('?', "%3F");
    BUILD_LOG.replace("{cache}", cache.as_str()).replace("{derivation}", &derivation)
}

/// The address of a document of `cache`.
pub fn document(cache: &CacheName, name: &DocumentName) -> String {
    format!("/{cache}/{}", name.to_string().replace('?', "%3F"))
}

/// [`CACHE_CONFIG`] of `cache`.
pub fn cache_config(cache: &CacheName) -> String {
    CACHE_CONFIG.replace("{cache}", cache.as_str())
}

/// [`V2_CACHES`], from the first cache or from the one after this name on.
pub fn v2_caches(after: Option<&CacheName>) -> String {
    after.map_or_else(|| V2_CACHES.to_owned(), |after| format!("{V2_CACHES}?after={after}"))
}

/// [`V2_OBJECT`] of `cache` and `hash`.
pub fn v2_object(cache: &CacheName, hash: &StorePathHash) -> String {
    V2_OBJECT.replace("{cache}", cache.as_str()).replace("{hash}", &hash.to_string())
}

/// [`V2_REFERRERS`] of `cache` and `hash`.
pub fn v2_referrers(cache: &CacheName, hash: &StorePathHash) -> String {
    format!("{}/referrers", v2_object(cache, hash))
}

/// The file with this path in an object of `cache`.
pub fn v2_file(cache: &CacheName, hash: &StorePathHash, names: &[String]) -> String {
    let mut route = format!("{}/file", v2_object(cache, hash));
    for name in names {
        route.push('/');
        for byte in name.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                route.push(char::from(byte));
            } else {
                let _ = write!(route, "%{byte:02X}");
            }
        }
    }
    route
}

/// The query of a DELETE below [`V2_OBJECT`] by which the bytes go too, without their grace.
pub const NOW_QUERY: &str = "now=true";

/// [`V2_PURGES`] of `cache`: of these paths, or of all if there are none.
pub fn v2_purges(cache: &CacheName, paths: &[StorePathHash]) -> String {
    let route = V2_PURGES.replace("{cache}", cache.as_str());
    if paths.is_empty() {
        return route;
    }
    let paths: Vec<String> = paths.iter().map(StorePathHash::to_string).collect();
    format!("{route}?{PATHS_QUERY}={}", paths.join(","))
}

/// The parameter of [`V2_PURGES`] that names paths by their hashes, with commas between them.
pub const PATHS_QUERY: &str = "paths";

/// [`V2_OBJECTS`] of `cache`.
pub fn v2_objects(cache: &CacheName) -> String {
    V2_OBJECTS.replace("{cache}", cache.as_str())
}

/// [`V2_CACHE_STATS`] of `cache`.
pub fn v2_cache_stats(cache: &CacheName) -> String {
    V2_CACHE_STATS.replace("{cache}", cache.as_str())
}

/// [`V2_PINS`] of `cache`.
pub fn v2_pins(cache: &CacheName) -> String {
    V2_PINS.replace("{cache}", cache.as_str())
}

/// [`V2_PIN`] of `cache` and `name`.
pub fn v2_pin(cache: &CacheName, name: &PinName) -> String {
    V2_PIN.replace("{cache}", cache.as_str()).replace("{name}", name.as_str())
}

/// [`V2_PINNED_PATH`] of `cache`, `name` and `hash`.
pub fn v2_pinned_path(cache: &CacheName, name: &PinName, hash: &StorePathHash) -> String {
    format!("{}/{hash}", v2_pin(cache, name))
}

/// [`V2_SESSION`] of `cache` and `session`.
pub fn v2_session(cache: &CacheName, session: &SessionId) -> String {
    V2_SESSION.replace("{cache}", cache.as_str()).replace("{session}", &session.to_string())
}

/// [`V2_SESSION_MISSING`] of `cache` and `session`.
pub fn v2_session_missing(cache: &CacheName, session: &SessionId) -> String {
    format!("{}/missing", v2_session(cache, session))
}

/// [`V2_SESSION_PART`] of `cache`, `session` and `digest`.
pub fn v2_session_part(cache: &CacheName, session: &SessionId, digest: &PartDigest) -> String {
    format!("{}/parts/{digest}", v2_session(cache, session))
}

/// [`V2_SESSION_COMMIT`] of `cache` and `session`.
pub fn v2_session_commit(cache: &CacheName, session: &SessionId) -> String {
    format!("{}/commit", v2_session(cache, session))
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
        assert_eq!(v2_object(&cache, &hash), format!("/_api/v2/caches/team+a_1/objects/{hash}"));
        assert_eq!(
            v2_referrers(&cache, &hash),
            V2_REFERRERS.replace("{cache}", "team+a_1").replace("{hash}", &hash.to_string())
        );
        assert_eq!(v2_purges(&cache, &[]), "/_api/v2/caches/team+a_1/purges");
        assert_eq!(
            v2_purges(&cache, &[hash, hash]),
            format!("/_api/v2/caches/team+a_1/purges?paths={hash},{hash}")
        );
        let name: PinName = "ci".parse().unwrap();
        assert_eq!(v2_pin(&cache, &name), "/_api/v2/caches/team+a_1/pins/ci");
        assert_eq!(v2_pinned_path(&cache, &name, &hash), format!("/_api/v2/caches/team+a_1/pins/ci/{hash}"));
        let session = SessionId::from_bytes([0xa5; 16]);
        let template = |route: &str| {
            let filled = route.replace("{cache}", "team+a_1").replace("{session}", &"a5".repeat(16));
            filled.replace("{digest}", &"0f".repeat(32))
        };
        assert_eq!(v2_session(&cache, &session), template(V2_SESSION));
        assert_eq!(v2_session_missing(&cache, &session), template(V2_SESSION_MISSING));
        let digest = PartDigest::from_bytes([0x0f; 32]);
        assert_eq!(v2_session_part(&cache, &session, &digest), template(V2_SESSION_PART));
        assert_eq!(v2_session_commit(&cache, &session), template(V2_SESSION_COMMIT));
        assert_eq!(substituter(&cache), "/team+a_1");
        let names = ["a b".to_owned(), "é%.x".to_owned()];
        assert_eq!(
            v2_file(&cache, &hash, &names),
            format!("/_api/v2/caches/team+a_1/objects/{hash}/file/a%20b/%C3%A9%25.x")
        );
        let derivation = format!("{hash}-a?b+c.drv").parse().unwrap();
        assert_eq!(build_log(&cache, &derivation), format!("/team+a_1/log/{hash}-a%3Fb+c.drv"));
    }
}
