//! Caches and their keys.

use async_trait::async_trait;

use super::{CacheId, NarId, UnixSeconds};
use crate::Result;

/// Most signing keys of a cache, retired ones included: they are loaded with each cache. A new key
/// takes the place of the oldest retired one.
pub const CACHE_KEYS_MAX: i64 = 64;

/// One cache: a named tenant, with its signing keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Row number.
    pub id: CacheId,
    /// Name, unique among the caches that are not deleted.
    pub name: String,
    /// Whether anybody may read it.
    pub is_public: bool,
    /// Store folder that its paths live in, `/nix/store` nearly always.
    pub store_dir: String,
    /// Priority announced in `nix-cache-info`; lower is asked first.
    pub priority: i32,
    /// Names of keys whose paths clients need not push.
    pub upstream_cache_key_names: Vec<String>,
    /// Seconds an unused object is kept; `None` means the server's default.
    pub retention_seconds: Option<i64>,
    /// Most bytes of its NARs as served; `None` means the server's default, and 0 no quota.
    pub quota_bytes: Option<u64>,
    /// Only the newest so many paths of a name are kept; `None` keeps all.
    pub keep_latest: Option<u32>,
    /// Signing keys, oldest first.
    pub keys: Vec<CacheKey>,
    /// When it was created.
    pub created_at: UnixSeconds,
    /// Whether an upload may give a path another NAR.
    pub allow_replacement: bool,
}

/// A signing key of a cache. The secret half is sealed by the caller; the index never sees it in
/// clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheKey {
    /// Public key as Nix writes it: `name:base64`.
    pub public_key: String,
    /// Secret key, sealed with the master key.
    pub sealed_secret: Vec<u8>,
    /// Whether narinfos are signed with it; a retired key stays listed.
    pub active: bool,
}

/// A cache to create.
#[derive(Debug, Clone)]
pub struct NewCache {
    /// Name, unique among the caches that are not deleted.
    pub name: String,
    /// Whether anybody may read it.
    pub is_public: bool,
    /// Store folder.
    pub store_dir: String,
    /// Priority.
    pub priority: i32,
    /// Names of upstream keys.
    pub upstream_cache_key_names: Vec<String>,
    /// Its first signing key.
    pub key: CacheKey,
    /// Now.
    pub created_at: UnixSeconds,
    /// Whether an upload may give a path another NAR.
    pub allow_replacement: bool,
    /// The proof of the master key that sealed the key, if the installation has one. If another
    /// proof is stored by then, nothing is created
    /// ([`Error::MasterKeyReplaced`](crate::Error::MasterKeyReplaced)).
    pub master_key_proof: Option<Vec<u8>>,
}

/// Changes to a cache; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
pub struct CachePatch {
    /// Visibility.
    pub is_public: Option<bool>,
    /// Store folder.
    pub store_dir: Option<String>,
    /// Priority.
    pub priority: Option<i32>,
    /// Names of upstream keys.
    pub upstream_cache_key_names: Option<Vec<String>>,
    /// Retention; `Some(None)` goes back to the server's default.
    pub retention_seconds: Option<Option<i64>>,
    /// Quota; `Some(None)` goes back to the server's default.
    pub quota_bytes: Option<Option<u64>>,
    /// Paths kept of a name; `Some(None)` keeps all.
    pub keep_latest: Option<Option<u32>>,
    /// A new key that replaces all active ones (they are retired, not deleted).
    pub replace_keys: Option<CacheKey>,
    /// The proof of the master key that sealed the new key: see [`NewCache::master_key_proof`].
    pub master_key_proof: Option<Vec<u8>>,
    /// Whether an upload may give a path another NAR.
    pub allow_replacement: Option<bool>,
}

/// A cache's name and whether everybody may read it. Both decide which callers may learn of its
/// contents.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CacheVisibility {
    /// Name.
    pub name: String,
    /// Whether anybody may read it, or might when it was deleted.
    pub is_public: bool,
}

/// Totals for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheTotals {
    /// Objects in the cache.
    pub object_count: u64,
    /// Bytes of their NARs, uncompressed.
    pub nar_bytes: u64,
}

/// Which caches a list has.
#[derive(Debug, Clone, Copy)]
pub enum CacheSelection<'a> {
    /// All of them.
    All,
    /// The public ones. Private ones cost nothing.
    Public,
    /// The public ones, and those whose own name, or else the first pattern that fits, is `true`.
    /// In a pattern, `*` stands for any text; its other characters are those of names.
    Allowed(&'a [(&'a str, bool)]),
}

/// Caches and their keys.
#[async_trait]
pub trait CacheIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Creates a cache. [`Error::CacheExists`](crate::Error::CacheExists) if the name is taken.
    async fn create_cache(&self, cache: &NewCache) -> Result<CacheId>;
    /// Finds a cache that is not deleted.
    async fn find_cache(&self, name: &str) -> Result<Option<Cache>>;
    /// Finds a public cache that is not deleted. For a caller that may know of no other: a private
    /// cache costs what a cache costs that does not exist.
    async fn find_public_cache(&self, name: &str) -> Result<Option<Cache>>;
    /// All caches that are not deleted, by name.
    async fn list_caches(&self) -> Result<Vec<Cache>>;
    /// The next `limit` caches of a selection that are not deleted, by name, after this name. One
    /// statement.
    async fn list_caches_after(
        &self,
        name: &str,
        selection: CacheSelection<'_>,
        limit: u32,
    ) -> Result<Vec<Cache>>;
    /// Every cache that may have left bytes behind, deleted ones too, each once, by name. A token
    /// that may read all of these may be told what is stored.
    async fn list_visibilities(&self) -> Result<Vec<CacheVisibility>>;
    /// The caches that are not deleted and have this NAR through an object, a grace row that has
    /// not ended or an alias, by name.
    async fn list_caches_of_nar(&self, nar: NarId, now: UnixSeconds) -> Result<Vec<CacheVisibility>>;
    /// Objects and bytes of a cache.
    async fn cache_totals(&self, cache: CacheId) -> Result<CacheTotals>;
    /// Changes a cache, with an outbox row. [`Error::CacheGone`](crate::Error::CacheGone) if it is
    /// not there; [`Error::CacheNotEmpty`](crate::Error::CacheNotEmpty) if the patch names another
    /// store folder and the cache has objects, whose names and holes are of the old folder.
    async fn update_cache(&self, cache: CacheId, patch: &CachePatch, at: UnixSeconds) -> Result<()>;
    /// Deletes a cache, with an outbox row and an audit row that names `subject`. At once its name
    /// is free, its keys are gone, no look-up finds its objects, graces and aliases, and no commit
    /// adds any. The rows themselves stay until the job that this opens has removed them
    /// ([`JobKind::DeleteCache`](crate::JobKind::DeleteCache)), so the call takes as long for a
    /// large cache as for an empty one. Deleting a cache that does not exist is `Ok` and has no
    /// effect.
    async fn delete_cache(&self, cache: CacheId, subject: Option<&str>, at: UnixSeconds) -> Result<()>;
}
