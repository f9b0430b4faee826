//! `/_api/v2/`: what Attic's API lacks.

mod sessions;
mod status;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{CacheName, RetentionPeriod};
use dormer_nix::{StoreDir, StorePathHash};

pub use sessions::{
    CHUNK_ID_BYTES, CommitEntry, CommitResponse, CommitResult, MISSING_POSITIONS_MAX, PartDigest,
    SESSION_FORMAT, SessionFormat, SessionId, SessionResponse, decode_missing, encode_missing,
    read_chunk_ids,
};
pub use status::{
    JobCounts, JobEntry, PushStatus, QueueStatus, ReadStatus, RequestStatus, StatusResponse, TargetEntry,
};

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
    /// Whether the path is a derivation of which the cache had the build log, which is gone too.
    /// Older servers remove no log so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed_log: bool,
    /// Whether a collection removes bytes of the path from the store: also those of a path that was
    /// removed before. Only in answers to requests with `now`; older servers never say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purging: Option<bool>,
}

/// Most paths in one GET of a cache's purges.
pub const PURGED_PATHS_MAX: usize = 100;

/// Answer to GET of a cache's purges: NARs of paths that were removed with their bytes. If the
/// request names paths, only their NARs count. Older servers count all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgesResponse {
    /// NARs that still have bytes to be removed. At 0, the bytes that only removed paths needed are
    /// gone from the store.
    pub waiting: u64,
    /// Those of them that no collection has tried yet.
    pub untried: u64,
}

/// Answer to DELETE of an object's referrers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveReferrersResponse {
    /// How many objects this request removed.
    pub removed: u64,
    /// Whether some are left: then the request is to be sent again.
    pub more: bool,
}

/// Body of POST `objects`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListObjectsRequest {
    /// The order.
    #[serde(default)]
    pub sort: SortObjects,
    /// `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// An order of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SortObjects {
    /// The longest unused first.
    #[default]
    Used,
    /// The oldest first.
    Age,
    /// The largest first.
    Size,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListObjectsResponse {
    /// One page.
    pub objects: Vec<ObjectEntry>,
    /// Where the next page begins; absent after the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Whether the name of a store path fits a pattern in which `*` stands for any text.
pub fn name_fits(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(first) else { return false };
    let mut middle: Vec<&str> = rest.split('*').collect();
    let last = middle.pop().unwrap_or_default();
    let mut left = name;
    for piece in middle {
        // The first place leaves the most to the pieces behind it.
        let Some((_, behind)) = left.split_once(piece) else { return false };
        left = behind;
    }
    left.ends_with(last)
}

/// Answer to GET of an object: its narinfo, and what the cache has of its closure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectResponse {
    /// `<hash>-<name>`.
    pub store_path: String,
    /// Address of the NAR, below the cache.
    pub url: String,
    /// How the NAR is compressed there.
    pub compression: String,
    /// Bytes of the NAR as it is downloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_size: Option<u64>,
    /// `sha256:` and the hash of the NAR in nix-base32.
    pub nar_hash: String,
    /// Bytes of the NAR, uncompressed.
    pub nar_size: u64,
    /// What it refers to, as `<hash>-<name>`.
    pub references: Vec<String>,
    /// The derivation that made it, as `<hash>-<name>.drv`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deriver: Option<String>,
    /// System that it was built for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Its content address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Signatures, the cache's own included.
    pub signatures: Vec<String>,
    /// Fields of the narinfo that the server does not know, such as `Provenance`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, String>,
    /// What the cache has of its closure.
    pub closure: ClosureEntry,
    /// The first page of what refers to it, for callers that may list the cache; the other pages
    /// are those of [`ListReferrersResponse`]. Older servers never say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub referrers: Option<Vec<String>>,
    /// The start of the next page of referrers. The last page has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_referrers: Option<StorePathHash>,
}

/// What a cache has of a closure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosureEntry {
    /// How many paths, the object itself included.
    pub paths: u64,
    /// Bytes of their NARs, uncompressed.
    pub nar_size: u64,
    /// Paths that the cache lacks. An upstream cache may have them.
    pub missing: u64,
    /// Whether all of the closure was counted: the server stops after some thousand paths.
    pub complete: bool,
}

/// Answer to GET of an object's referrers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListReferrersResponse {
    /// One page, as `<hash>-<name>`.
    pub referrers: Vec<String>,
    /// What `after` has to be for the next page; absent after the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<StorePathHash>,
}

/// One object in the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectEntry {
    /// `<hash>-<name>`.
    pub store_path: String,
    /// Bytes of its NAR, uncompressed.
    pub nar_size: u64,
    /// When it was pushed, in seconds since 1970.
    pub created_at: i64,
    /// When it was last used, in seconds since 1970.
    pub last_used_at: i64,
}

/// Body of PUT of a pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddPinRequest {
    /// `<hash>-<name>`.
    pub store_path: String,
    /// How long the pin lasts; for ever without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_for_seconds: Option<u32>,
    /// How many paths of the name stay pinned, the newest; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddPinResponse {
    /// Paths of the closure that the cache lacks, as `<hash>-<name>`. An upstream cache may have
    /// them.
    pub missing: Vec<String>,
    /// Whether the whole closure was looked at; a very large one is not.
    pub complete: bool,
}

/// Body of POST `pins`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListPinsRequest {
    /// The last pin of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<PinEntry>,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListPinsResponse {
    /// One page, by name.
    pub pins: Vec<PinEntry>,
    /// Whether more follow.
    pub more: bool,
}

/// One pin in the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinEntry {
    /// Its name.
    pub name: String,
    /// `<hash>-<name>`.
    pub store_path: String,
    /// When it was added, in seconds since 1970.
    pub created_at: i64,
    /// When it ends, in seconds since 1970; never without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<i64>,
}

/// Answer to DELETE of pins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovePinsResponse {
    /// How many there were.
    pub removed: u64,
}

/// Answer to GET of a cache's `stats`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatsResponse {
    /// Paths in the cache.
    pub paths: u64,
    /// Bytes of their NARs, uncompressed.
    pub nar_bytes: u64,
    /// Whether everything is counted; after an upgrade a job may have to count what was there.
    pub complete: bool,
    /// The largest paths. Only for a caller that may list the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest: Option<Vec<ObjectEntry>>,
    /// The longest unused paths. Only for a caller that may list the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_unused: Option<Vec<ObjectEntry>>,
    /// The last days, the oldest first. Only for a request that asks for `days`; older servers
    /// never have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<Vec<HistoryEntry>>,
}

/// A day of a cache, or of the whole installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// When the day begins, in UTC.
    pub begins_at: i64,
    /// Paths in the end of the day; today, those of now.
    pub paths: u64,
    /// Bytes of their NARs, uncompressed.
    pub nar_bytes: u64,
    /// Bytes of the packs. Only of the whole installation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
    /// Paths that were pushed on that day. Only for a caller that may list the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushes: Option<u64>,
    /// Downloads of NARs that began on that day. Only for a caller that may list the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulls: Option<u64>,
}

/// Answer to GET `stats`: what the whole installation holds. The four lines of savings add up to
/// what the store does not have to hold: `path_bytes` less `stored_bytes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsResponse {
    /// Paths in all caches.
    pub paths: u64,
    /// Bytes of their NARs, uncompressed; a NAR counts for each path.
    pub path_bytes: u64,
    /// Distinct NARs.
    pub nars: u64,
    /// Packs in the store.
    pub packs: u64,
    /// Bytes of the packs.
    pub stored_bytes: u64,
    /// What is saved by whole NARs that several paths or caches have. Negative while NARs are
    /// stored that no path has: those in grace, for example.
    pub saved_by_same_nars: i64,
    /// What is saved by equal chunks without holes, in different NARs.
    pub saved_by_chunks: i64,
    /// What is saved by equal chunks with holes: most of them would differ without holes.
    pub saved_by_holes: i64,
    /// What is saved by compression.
    pub saved_by_compression: i64,
    /// Whether everything is counted; after an upgrade a job may have to count what was there.
    pub complete: bool,
    /// The last days, as in [`CacheStatsResponse::history`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<Vec<HistoryEntry>>,
}
