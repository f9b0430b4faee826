//! `/_api/v2/`: what Attic's API lacks.

use serde::{Deserialize, Serialize};

use crate::{CacheName, RetentionPeriod};
use dormer_nix::StoreDir;

/// Answer to GET `caches`: every cache on which the caller has any permission, and the public ones;
/// by name, in pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListCachesResponse {
    /// One entry a cache.
    pub caches: Vec<CacheEntry>,
    /// There may be more: ask again for those `after` this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<CacheName>,
}

/// One cache in the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheEntry {
    /// Its name.
    pub name: CacheName,
    /// Whether anybody may read.
    pub is_public: bool,
    /// The folder that paths live in.
    pub store_dir: StoreDir,
    /// Lower is asked first.
    pub priority: i32,
    /// Keys whose paths clients need not push.
    pub upstream_cache_key_names: Vec<String>,
    /// How long unused objects are kept.
    pub retention_period: RetentionPeriod,
    /// Active signing keys, oldest first, as in `trusted-public-keys`.
    pub public_keys: Vec<String>,
}

/// Answer to DELETE of an object. A request that is sent again because the first answer was lost
/// finds nothing, which is no error: hence a flag instead of a 404.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovePathResponse {
    /// Whether the cache had the path.
    pub removed: bool,
}
