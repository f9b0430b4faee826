//! The index contract: what every SQL back end must do, and nothing more.
//!
//! Layer: port. The engine is the only writer; adapters only translate to SQL. Invariants 1 to 6 of
//! docs/STORAGE.md rest on what the methods here promise about atomicity, so each method states it.
//!
//! Conventions
//! - Every method is one transaction: all of its effect is durable when it returns `Ok`, none of it
//!   is visible after `Err` (an error after the commit was sent may leave the whole effect; every
//!   method may therefore be repeated).
//! - Time is an argument (`UnixSeconds`), so that tests own the clock.
//! - Look-ups of something that is not there are `Ok(None)`, never an error.

use std::time::Duration;

use async_trait::async_trait;
use dormer_format::{ChunkId, ChunkLayout, ChunkRun, EncodingTag, PackId, Recipe};
use dormer_nix::{BuildId, BuildTrace, DocumentName, NarHash, StorePath, StorePathHash};

use crate::Result;
use crate::changes::Changes;
use crate::jobs::ExpiryDefaults;

/// Seconds since 1970-01-01 UTC.
pub type UnixSeconds = i64;

macro_rules! row_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub i64);
    };
}
row_id!(/// Number of a cache's row.
    CacheId);
row_id!(/// Number of a NAR's row.
    NarId);
row_id!(/// Number of a pack's row; never given twice.
    PackNumber);

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

/// Where a chunk lives and how it is cut into frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRow {
    /// Its number, which recipes name; it never changes.
    pub number: u64,
    /// Its identity.
    pub id: ChunkId,
    /// The pack that holds it now.
    pub pack: PackNumber,
    /// That pack's id, from which the object's name follows.
    pub pack_id: PackId,
    /// First byte of its frames in the pack.
    pub offset: u64,
    /// Raw length, hole offsets and frame lengths.
    pub layout: ChunkLayout,
    /// XXH3-64 of its stored bytes.
    pub checksum: u64,
}

/// A stored pack, to be made known together with its chunks.
#[derive(Debug, Clone)]
pub struct NewPack {
    /// Its id.
    pub id: PackId,
    /// Size of the whole object in bytes.
    pub size: u64,
    /// Its chunks, in the order in which they lie in it; at most 65,536.
    pub chunks: Vec<NewChunk>,
    /// Now.
    pub created_at: UnixSeconds,
}

/// One chunk of a new pack.
#[derive(Debug, Clone)]
pub struct NewChunk {
    /// Its identity.
    pub id: ChunkId,
    /// First byte of its frames in the pack.
    pub offset: u64,
    /// Raw length, hole offsets and frame lengths.
    pub layout: ChunkLayout,
    /// XXH3-64 of its stored bytes.
    pub checksum: u64,
}

/// A NAR as the index knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Nar {
    /// Row number.
    pub id: NarId,
    /// SHA-256 of the archive.
    pub hash: NarHash,
    /// Bytes of the archive.
    pub size: u64,
    /// Bytes served: all frames and the frames of the holes.
    pub file_size: u64,
    /// Names the exact bytes that are served.
    pub tag: EncodingTag,
    /// How to rebuild it.
    pub recipe: Recipe,
    /// Set while a part of it is known to be unreadable.
    pub damaged: bool,
}

/// What a narinfo says of a NAR, without its recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarSummary {
    /// Row number.
    pub id: NarId,
    /// SHA-256 of the archive.
    pub hash: NarHash,
    /// Bytes of the archive.
    pub size: u64,
    /// Bytes served.
    pub file_size: u64,
    /// Names the exact bytes that are served.
    pub tag: EncodingTag,
    /// Set while a part of it is known to be unreadable.
    pub damaged: bool,
}

/// A listing at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredListing {
    /// The zstd-compressed JSON itself.
    Inline(Vec<u8>),
    /// Too large for a row: the JSON, stored as chunks. `size` is its length in bytes.
    Chunks {
        /// How to rebuild it; it has no holes.
        recipe: Recipe,
        /// Bytes of JSON.
        size: u64,
    },
}

/// A verified NAR to make known.
#[derive(Debug, Clone)]
pub struct NewNar {
    /// SHA-256 of the archive.
    pub hash: NarHash,
    /// Bytes of the archive.
    pub size: u64,
    /// Bytes served.
    pub file_size: u64,
    /// Names the exact bytes that are served.
    pub tag: EncodingTag,
    /// How to rebuild it.
    pub recipe: Recipe,
    /// Bytes of the archive in chunks with holes.
    pub holed_bytes: u64,
    /// Its listing.
    pub listing: StoredListing,
    /// Build ids of the debug files in it.
    pub build_ids: Vec<BuildId>,
    /// The packs that hold its chunks (and its listing's). The commit locks and stamps them, and
    /// fails with [`Error::PackGone`](crate::Error::PackGone) when one is condemned or deleted, or
    /// when one of the chunks is marked damaged.
    pub packs: Vec<PackNumber>,
}

impl NewNar {
    /// The numbers of the packs, each once, in order.
    pub(crate) fn pack_numbers(&self) -> Vec<i64> {
        let mut numbers: Vec<i64> = self.packs.iter().map(|pack| pack.0).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// Whether the NAR or its listing is made of one of these chunks.
    pub(crate) fn needs_any(&self, chunks: &[u64]) -> bool {
        let listing = match &self.listing {
            StoredListing::Inline(_) => [].as_slice(),
            StoredListing::Chunks { recipe, .. } => &recipe.runs,
        };
        chunks.iter().any(|chunk| {
            let has = |run: &ChunkRun| chunk.checked_sub(run.first).is_some_and(|n| n < u64::from(run.count));
            self.recipe.runs.iter().chain(listing).any(has)
        })
    }
}

/// The NAR half of a commit.
#[derive(Debug, Clone)]
pub enum NarSource {
    /// A NAR that was just stored. If a sound row with this hash exists (a racing upload), that row
    /// wins and is used; if it is damaged or its listing is lost, its recipe, tag and listing are
    /// replaced and the damage is cleared.
    New(Box<NewNar>),
    /// A NAR that the index has. Fails with [`Error::NarGone`](crate::Error::NarGone) when it is no
    /// longer there or is damaged.
    Known(NarId),
}

/// One store path in one cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// The path, without the store folder.
    pub path: StorePath,
    /// Paths it refers to, itself included if it does; sorted.
    pub references: Vec<StorePath>,
    /// Base name of the derivation that made it.
    pub deriver: Option<String>,
    /// Content address, as the narinfo gives it.
    pub ca: Option<String>,
    /// Signatures it came with (`name:base64`), not ours.
    pub sigs: Vec<String>,
    /// System it was built for, if the pusher said.
    pub system: Option<String>,
    /// Fields of its narinfo that no part of Dormer knows: names and values.
    pub extra: Vec<(String, String)>,
}

/// What names a NAR in a commit.
#[derive(Debug, Clone)]
pub enum CommitTarget {
    /// An object: visible at once. Replaces what the cache had under this store hash; signatures of
    /// the same path with the same NAR and references are merged ([`NarCommit::known_keys`]). A
    /// replaced NAR stays readable for [`NarCommit::grace_seconds`].
    Object(Object),
    /// An object from a narinfo's PUT: like `Object`, but when the cache has this store hash with
    /// another NAR or other references, the first stays and [`CommitOutcome::Kept`] is returned,
    /// unless the first one's NAR is damaged. Of the same object, what the first one says of
    /// deriver, content address and system stays too.
    ObjectIfSame(Object),
    /// An upload alias. Replaces what the name stood for.
    Alias {
        /// File name below `nar/`.
        file_name: String,
        /// Compression that the name promises, as a narinfo spells it.
        compression: String,
    },
}

impl CommitTarget {
    /// Store hash of the object, unless it is an alias.
    pub fn path_hash(&self) -> Option<StorePathHash> {
        match self {
            Self::Object(object) | Self::ObjectIfSame(object) => Some(object.path.hash()),
            Self::Alias { .. } => None,
        }
    }
}

/// One commit: NAR, name, outbox row and pack stamps, in one transaction.
#[derive(Debug, Clone)]
pub struct NarCommit {
    /// The cache; [`Error::CacheGone`](crate::Error::CacheGone) if it was deleted meanwhile.
    pub cache: CacheId,
    /// The NAR.
    pub nar: NarSource,
    /// What names it.
    pub target: CommitTarget,
    /// Now.
    pub at: UnixSeconds,
    /// How long a NAR that the object had before stays readable.
    pub grace_seconds: i64,
    /// Names of keys whose signatures the caller has verified. Other signatures never displace
    /// theirs.
    pub known_keys: Vec<String>,
}

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitOutcome {
    /// The target is there and names this NAR.
    Committed(NarId),
    /// `ObjectIfSame` found another one, which stays.
    Kept,
}

/// What a reader asks a cache's NAR by. A NAR is found only through an object, a grace row or an
/// alias of that cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NarKey {
    /// Its own hash.
    Hash(NarHash),
    /// An object that has it (Attic's URL form).
    StorePath(StorePathHash),
}

/// An upload alias, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// Compression that the name promises, as a narinfo spells it.
    pub compression: String,
    /// The NAR.
    pub nar: NarSummary,
}

/// An object with the NAR it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundObject {
    /// The object.
    pub object: Object,
    /// Its NAR.
    pub nar: NarSummary,
    /// When it was last used, as far as is written down.
    pub last_used_at: UnixSeconds,
}

/// A place in the outbox. Places ascend; what a follower has not seen lies behind the last one that
/// it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct OutboxPosition {
    /// Transaction that wrote the row, where several write at once: their numbers become visible
    /// out of order.
    pub transaction: i64,
    /// Number of the row.
    pub number: i64,
}

impl OutboxPosition {
    /// Before the first row.
    pub const START: Self = Self { transaction: 0, number: 0 };
}

/// A row of the outbox: which object changed, never how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// Its place, ascending.
    pub position: OutboxPosition,
    /// The cache.
    pub cache: CacheId,
    /// The object, or `None` when the cache itself changed.
    pub store_path_hash: Option<StorePathHash>,
    /// When.
    pub at: UnixSeconds,
}

/// How an object is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A client reads it.
    Pull,
    /// A client has it, and would push it if the cache lacked it. Objects of a published cache
    /// expire by their last push.
    Push,
}

/// How an object is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Its NAR stays readable in this cache until then, for clients that remember the narinfo.
    WithGraceUntil(UnixSeconds),
    /// For cause: object, grace and alias go at once; also those of NARs that the path had before,
    /// and also when the object itself went earlier.
    ForCause,
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

/// Longest that a ping waits.
pub const PING_MAX: Duration = Duration::from_secs(3);

/// Totals for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheTotals {
    /// Objects in the cache.
    pub object_count: u64,
    /// Bytes of their NARs, uncompressed.
    pub nar_bytes: u64,
}

/// Calls that the database failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallCounts {
    /// Tries that failed and were followed by another.
    pub repeats: u64,
    /// Calls that failed after all their tries.
    pub failures: u64,
}

/// How a database's connections are used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolUse {
    /// Open ones.
    pub open: usize,
    /// Those of them that nobody uses.
    pub idle: usize,
    /// Most that may be open.
    pub max: usize,
    /// Calls that wait for one.
    pub waiting: usize,
}

/// Paths, and the bytes of their NARs, uncompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathCounts {
    /// Paths.
    pub paths: u64,
    /// Bytes of their NARs. A NAR counts once for each path.
    pub bytes: u64,
}

/// What the whole installation holds. The differences from one line to the next are what is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoredCounts {
    /// The paths of all caches, with those of deleted caches until a job has removed them.
    pub paths: PathCounts,
    /// Distinct NARs, with those that only a grace, an upload or nothing names.
    pub nars: u64,
    /// Bytes of these NARs, uncompressed.
    pub nar_bytes: u64,
    /// Those of them that lie in chunks with holes.
    pub nar_holed_bytes: u64,
    /// Packs, condemned ones too.
    pub packs: u64,
    /// Bytes of the packs in the store.
    pub pack_bytes: u64,
    /// Bytes of the chunks in the packs, uncompressed; those of large listings too.
    pub pack_raw_bytes: u64,
    /// Those of them that lie in chunks with holes.
    pub pack_holed_bytes: u64,
    /// Whether everything is counted. After an upgrade from a version that did not count, a job has
    /// to count what was there.
    pub is_complete: bool,
}

/// A cache at a glance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheGlance {
    /// The cache.
    pub cache: CacheId,
    /// What it holds.
    pub counts: PathCounts,
    /// When its newest path was pushed first.
    pub newest_at: Option<UnixSeconds>,
    /// Whether a target publishes it.
    pub is_published: bool,
    /// As in [`StoredCounts::is_complete`].
    pub is_complete: bool,
}

/// A day of the calendar in UTC, as days since 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(pub i64);

impl Day {
    /// The day of a time.
    pub fn of(at: UnixSeconds) -> Self {
        Self(at.div_euclid(86_400))
    }

    /// The day so many days before.
    #[must_use]
    pub fn before(self, days: i64) -> Self {
        Self(self.0.saturating_sub(days))
    }

    /// When it begins.
    pub fn begins_at(self) -> UnixSeconds {
        self.0.saturating_mul(86_400)
    }
}

/// Days that the history goes back.
pub const HISTORY_DAYS: i64 = 400;

/// What a cache holds is written down at least every so many days, also if it rests.
pub const HISTORY_REPEATED_DAYS: i64 = 30;

/// A day of a cache, or of the whole installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryDay {
    /// The day.
    pub day: Day,
    /// What was there in the end; `None` if that is what was there the day before, or if nothing
    /// wrote it down.
    pub counts: Option<PathCounts>,
    /// Bytes of the packs. Of the whole installation alone: packs belong to all caches.
    pub stored_bytes: Option<u64>,
    /// Paths that pushes committed.
    pub pushes: u64,
    /// Downloads of NARs that began at their first byte.
    pub pulls: u64,
}

/// Pushes and pulls of a cache that no history has yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheActivity {
    /// The cache.
    pub cache: CacheId,
    /// As in [`HistoryDay::pushes`].
    pub pushes: u64,
    /// As in [`HistoryDay::pulls`].
    pub pulls: u64,
}

/// What is stored, in numbers that writes keep up to date: nothing is counted when somebody asks.
#[async_trait]
pub trait CounterIndex: Send + Sync + std::fmt::Debug + 'static {
    /// What a cache holds. One statement.
    async fn path_counts(&self, cache: CacheId) -> Result<PathCounts>;
    /// Each of these caches at a glance, in any order. One statement, which looks one path up for
    /// each cache.
    async fn glance_at_caches(&self, caches: &[CacheId]) -> Result<Vec<CacheGlance>>;
    /// What everything holds. One statement.
    async fn stored_counts(&self) -> Result<StoredCounts>;
    /// The days of a cache after one, or those of the whole installation, the oldest first: at most
    /// [`HISTORY_DAYS`]. Days without a change are left out. One statement.
    async fn history(&self, cache: Option<CacheId>, after: Day) -> Result<Vec<HistoryDay>>;
}

/// Named values of the installation.
#[async_trait]
pub trait SettingIndex: Send + Sync + std::fmt::Debug + 'static {
    /// A named value of the installation (sealed by the caller if it is secret).
    async fn find_setting(&self, name: &str) -> Result<Option<Vec<u8>>>;
    /// Stores a named value unless there is one; returns the one that is there now.
    async fn create_setting(&self, name: &str, value: &[u8]) -> Result<Vec<u8>>;
    /// Puts `after` in the place of the master key's proof `before`, and keeps `before` as the
    /// proof of the key before ([`PREVIOUS_KEY_PROOF`]). From then on no secret is sealed with that
    /// key. [`Error::MasterKeyReplaced`](crate::Error::MasterKeyReplaced) if another proof is
    /// there, or if a replacement is under way.
    async fn begin_rekey(&self, before: &[u8], after: &[u8]) -> Result<()>;
    /// The next `limit` sealed signing keys behind this place, those of retired keys too.
    async fn list_sealed_keys(&self, after: Option<SealedKeyPlace>, limit: u32) -> Result<Vec<SealedKey>>;
    /// Puts each second value in the place of the sealed key, if that is still the same. One
    /// transaction.
    async fn replace_sealed_keys(&self, keys: &[(SealedKey, Vec<u8>)]) -> Result<()>;
    /// Forgets the proof of the key before.
    async fn end_rekey(&self) -> Result<()>;
}

/// Name of the setting that proves which master key the secrets are sealed with.
pub const MASTER_KEY_PROOF: &str = "master-key-check";

/// Name of the setting that proves which master key some secrets may still be sealed with. It is
/// there while a replacement is under way.
pub const PREVIOUS_KEY_PROOF: &str = "master-key-check-previous";

/// The place of a sealed signing key in the order of [`SettingIndex::list_sealed_keys`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedKeyPlace {
    /// Its cache.
    pub cache: CacheId,
    /// Its number in the cache.
    pub position: i64,
}

/// A sealed signing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedKey {
    /// Its place.
    pub place: SealedKeyPlace,
    /// The public half, `name:base64`.
    pub public_key: String,
    /// The sealed secret half.
    pub sealed_secret: Vec<u8>,
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

/// Chunks and packs.
#[async_trait]
pub trait ChunkIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Finds chunks that may be reused: known, not damaged, in no condemned pack. One answer for
    /// each id, in order. At most 16,384 ids a call; at most one statement (none when an in-memory
    /// filter rules all of them out).
    async fn find_chunks(&self, ids: &[ChunkId]) -> Result<Vec<Option<ChunkRow>>>;
    /// Loads the chunks of runs, in order, whatever their state. At most 16,384 chunks a call.
    /// [`Error::ChunkGone`](crate::Error::ChunkGone) when a number is unknown.
    async fn load_chunks(&self, runs: &[ChunkRun]) -> Result<Vec<ChunkRow>>;
    /// Makes a stored pack and its chunks known, in one transaction, and returns for each chunk, in
    /// the order given, the row that now stands for its id: its own, or that of a racing pack which
    /// came first. The row of a chunk that was marked damaged, or lies in a condemned pack, is
    /// pointed at this pack and is sound again. Numbers of new rows follow the order given and are
    /// consecutive. Repeating a commit whose answer was lost returns the same rows.
    async fn commit_pack(&self, pack: &NewPack) -> Result<Vec<ChunkRow>>;
    /// Marks a NAR damaged, and those of its chunks that could not be read, so that neither is
    /// reused.
    async fn mark_damaged(&self, nar: NarId, chunks: &[u64], at: UnixSeconds) -> Result<()>;
    /// Forgets a NAR's listing that cannot be read, and marks those of its chunks that could not be
    /// read, so that they are not reused. The NAR itself stays readable, but counts as one that has
    /// to be stored again: see `find_nar`, `present_objects` and [`NarSource::New`].
    async fn mark_listing_lost(&self, nar: NarId, chunks: &[u64], at: UnixSeconds) -> Result<()>;
}

/// NARs, and the commit that makes one visible.
#[async_trait]
pub trait NarIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Finds a NAR by its hash, in any cache (for the engine's own use: never answer a client with
    /// it). Here `damaged` says that it has to be stored again: also when only its listing is lost.
    async fn find_nar(&self, hash: &NarHash) -> Result<Option<NarSummary>>;
    /// Finds a NAR with its recipe through an object, a grace row that has not ended, or an alias
    /// of this cache.
    async fn find_nar_in_cache(&self, cache: CacheId, key: &NarKey, now: UnixSeconds) -> Result<Option<Nar>>;
    /// A NAR's listing.
    async fn find_listing(&self, nar: NarId) -> Result<Option<StoredListing>>;
    /// Commits a NAR under a name; see [`NarCommit`]. Writes an outbox row for the object unless
    /// nothing about it changed; if a damaged NAR was replaced, one for every object that has it,
    /// in all caches: their tag is another one now.
    async fn commit_nar(&self, commit: &NarCommit) -> Result<CommitOutcome>;
    /// Corrects tag and size of a NAR whose chunks were re-encoded by healing, with an outbox row
    /// for every object that has it. [`Error::NarGone`](crate::Error::NarGone) if it is not there.
    async fn update_encoding(
        &self,
        nar: NarId,
        tag: &EncodingTag,
        file_size: u64,
        at: UnixSeconds,
    ) -> Result<()>;
}

/// Objects and upload aliases: what names a NAR in a cache.
#[async_trait]
pub trait ObjectIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Finds an object by its store hash. Damaged NARs are returned too, marked.
    async fn find_object(&self, cache: CacheId, hash: &StorePathHash) -> Result<Option<FoundObject>>;
    /// Which of these objects the cache has with a sound NAR and its listing, with the time of
    /// their last push ([`Use::Push`]). One statement, at most 16,384 hashes a call.
    async fn present_objects(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<(StorePathHash, UnixSeconds)>>;
    /// Records that objects were used. Never moves a time backwards.
    async fn touch_objects(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
        kind: Use,
        at: UnixSeconds,
    ) -> Result<()>;
    /// Removes an object, with its outbox row. `false` if it was not there; for cause there is an
    /// outbox row then, too.
    async fn remove_object(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        removal: Removal,
        at: UnixSeconds,
    ) -> Result<bool>;
    /// Finds an upload alias of this cache made or used after `since`.
    async fn find_alias(&self, cache: CacheId, file_name: &str, since: UnixSeconds) -> Result<Option<Alias>>;
}

/// A pin: a name in a cache that keeps a path, and with it all that the path refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Name; several paths may have it.
    pub name: String,
    /// The path, in the cache or not.
    pub path: StorePath,
    /// When it was added last.
    pub created_at: UnixSeconds,
    /// When it keeps the path no longer; `None` is never.
    pub ends_at: Option<UnixSeconds>,
}

/// A rule that lets an object go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpiryRule {
    /// The object is too old.
    Age,
    /// It is not among the newest of its name.
    Newer,
}

/// What a cache keeps, with the server's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheRules {
    /// How long the cache keeps an unused object; `None` is for ever.
    pub retention_seconds: Option<i64>,
    /// Most bytes of its NARs as served; `None` is any number.
    pub quota_bytes: Option<u64>,
    /// How many of a name it keeps; `None` is all.
    pub keep_latest: Option<u64>,
}

/// What the rules of a cache say of one of its objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRules {
    /// The rules.
    pub cache: CacheRules,
    /// Whether the cache is published: then the last push counts instead of the last use.
    pub is_published: bool,
    /// When the object's age began.
    pub counts_from: UnixSeconds,
    /// The last second for which the rules keep the object by itself, and the rule that ends it;
    /// `None` if only the quota may. Afterwards the next expire job removes the object, unless
    /// something keeps it.
    pub stays_until: Option<(UnixSeconds, ExpiryRule)>,
}

/// Objects that a look for the keepers of an object walks through at most, itself among them.
pub const KEEPERS_WINDOW: i64 = 128;

/// What the rules say of an object, and what keeps it whatever they say. Each list has at most the
/// limit of the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keepers {
    /// The rules.
    pub rules: ObjectRules,
    /// Its own pins that have not ended, by name.
    pub pins: Vec<Pin>,
    /// Objects that refer to it, by hash; itself left out.
    pub referrers: Vec<StorePath>,
    /// Pins of objects that refer to it, directly or not.
    pub pins_above: Vec<Pin>,
    /// Whether the look ended at its bound: more objects may refer to it.
    pub is_cut: bool,
}

/// Objects of a cache that stand out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtremeObjects {
    /// The largest, the largest first.
    pub largest: Vec<ListedObject>,
    /// The longest unused, the longest unused first.
    pub longest_unused: Vec<ListedObject>,
}

/// The order of [`RetentionIndex::list_objects`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectOrder {
    /// The longest unused first.
    Used,
    /// The oldest first.
    Age,
    /// The largest first.
    Size,
}

/// An object as people list it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    /// Store path.
    pub path: StorePath,
    /// Bytes of its NAR, uncompressed.
    pub nar_size: u64,
    /// When it was pushed first.
    pub created_at: UnixSeconds,
    /// When it was last used, as far as is written down.
    pub last_used_at: UnixSeconds,
    /// Its place in the order that it was listed in.
    pub place: ObjectPlace,
}

/// A place in an order of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectPlace {
    /// Time or size.
    pub value: i64,
    /// Row number.
    pub id: i64,
}

/// What a removal for cause found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RemovedForCause {
    /// Whether the object was there.
    pub was_there: bool,
    /// Whether the cache had the log of a build of the path, which is a derivation then.
    pub had_log: bool,
    /// Whether the collector removes bytes of the path: it was asked to, and knows which they are.
    pub is_purged: bool,
}

/// NARs of removed paths whose bytes are to be removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PurgeCounts {
    /// All of them.
    pub waiting: u64,
    /// Those that no collection has tried yet.
    pub untried: u64,
}

/// Something that a person did and that cannot be undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// Number, ascending.
    pub number: i64,
    /// When.
    pub at: UnixSeconds,
    /// Subject of the token, if it names one.
    pub subject: Option<String>,
    /// What was done, in a word or two.
    pub action: String,
    /// In which cache.
    pub cache: CacheId,
    /// To which path. `None`: to the cache.
    pub store_path_hash: Option<StorePathHash>,
}

/// Which entries of the audit are wanted. A field that is `None` leaves none out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Those in a cache that has or had this name.
    pub cache: Option<String>,
    /// Those of this action.
    pub action: Option<String>,
    /// Those of this subject.
    pub subject: Option<String>,
    /// Those of subjects that begin so.
    pub subject_start: Option<String>,
}

/// A page of the audit, the newest entry first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditPage {
    /// The entries, each with the name of its cache. A deleted cache keeps its name.
    pub entries: Vec<(AuditEntry, Option<String>)>,
    /// What `before` has to be for the next page; `None` after the last one.
    pub next: Option<i64>,
}

/// Most entries of the audit that one page looks at.
pub const AUDIT_WINDOW: i64 = 10_000;

/// How large an object is, and what it refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectReferences {
    /// The object.
    pub hash: StorePathHash,
    /// Bytes of its NAR, uncompressed.
    pub nar_size: u64,
    /// What it refers to, itself left out. `None` if those of the others are long: ask again.
    pub references: Option<Vec<StorePath>>,
}

/// What a cache keeps by hand, and what is in it.
#[async_trait]
pub trait RetentionIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Adds a pin, or renews the one of the same name and path. With `keep`, only so many paths of
    /// the name stay pinned, the newest. [`Error::CacheGone`](crate::Error::CacheGone) if the cache
    /// is not there.
    async fn add_pin(&self, cache: CacheId, pin: &Pin, keep: Option<u32>) -> Result<()>;
    /// Removes the pins of a name, or only that of one path; returns how many there were.
    async fn remove_pins(&self, cache: CacheId, name: &str, hash: Option<&StorePathHash>) -> Result<u64>;
    /// Pins that have not ended, after a name and hash, by name and hash.
    async fn list_pins(
        &self,
        cache: CacheId,
        after: Option<(&str, &StorePathHash)>,
        now: UnixSeconds,
        limit: u32,
    ) -> Result<Vec<Pin>>;
    /// What the rules of a cache say of an object, and what keeps it whatever they say; `None` if
    /// it is not there. Two statements, whose work [`KEEPERS_WINDOW`] and `limit` bound.
    async fn find_keepers(
        &self,
        cache: &Cache,
        hash: &StorePathHash,
        defaults: &ExpiryDefaults,
        now: UnixSeconds,
        limit: u32,
    ) -> Result<Option<Keepers>>;
    /// Pins of one path that have not ended, by name.
    async fn list_pins_of_path(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        now: UnixSeconds,
        limit: u32,
    ) -> Result<Vec<Pin>>;
    /// How large these objects are and what they refer to; one that the cache lacks is left out. At
    /// most 16,384 hashes a call. References are read until they have so many bytes, which those of
    /// one object may exceed: at least those of one object are read, if the bytes are not 0.
    async fn find_references(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
        bytes_max: u64,
    ) -> Result<Vec<ObjectReferences>>;
    /// A page of the objects that refer to a path, after one of them, by hash; itself left out. The
    /// path need not be there.
    async fn list_referrers(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        after: Option<&StorePathHash>,
        limit: u32,
    ) -> Result<Vec<StorePath>>;
    /// Some of the objects that refer to a path, itself left out; the path need not be there.
    async fn find_referrers(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        limit: u32,
    ) -> Result<Vec<StorePathHash>>;
    /// The first objects of a cache by size and by use: the largest, and the longest unused. One
    /// statement.
    async fn list_extremes(&self, cache: CacheId, limit: u32) -> Result<ExtremeObjects>;
    /// Objects after a place of the same order.
    async fn list_objects(
        &self,
        cache: CacheId,
        order: ObjectOrder,
        after: Option<ObjectPlace>,
        limit: u32,
    ) -> Result<Vec<ListedObject>>;
    /// Objects whose name begins with a text, after a name and a place of this order: by the bytes
    /// of the name, then by age. `after` names an object that begins with the text, too. Upper and
    /// lower case differ.
    async fn list_objects_by_name(
        &self,
        cache: CacheId,
        prefix: &str,
        after: Option<(&str, ObjectPlace)>,
        limit: u32,
    ) -> Result<Vec<ListedObject>>;
    /// Removes an object as [`Removal::ForCause`] does, with an audit entry in the same
    /// transaction, also if it was not there. If the path is a derivation, the logs of its builds
    /// go too, with an outbox row for each object that names it. The same transaction notes the
    /// object's NAR, and the NARs of its graces. With `purge`, the collector removes the bytes that
    /// nothing else needs without their grace, and a collection is opened: bytes of these NARs, and
    /// of those that an earlier removal of the same path noted and that are still in the store.
    async fn remove_for_cause(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        subject: Option<&str>,
        purge: bool,
        at: UnixSeconds,
    ) -> Result<RemovedForCause>;
    /// How many NARs of removed paths of a cache still have bytes to be removed, and how many of
    /// these no collection has tried yet.
    async fn count_purges(&self, cache: CacheId) -> Result<PurgeCounts>;
    /// Entries after a number, in order.
    async fn audit_after(&self, number: i64, limit: u32) -> Result<Vec<AuditEntry>>;
    /// At most `limit` entries before a number that fit a filter, the newest first. One statement,
    /// which looks at [`AUDIT_WINDOW`] entries at most: a page may have fewer entries than `limit`,
    /// or none, and a `next`.
    async fn audit_before(&self, before: i64, filter: &AuditFilter, limit: u32) -> Result<AuditPage>;
}

/// A document to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDocument {
    /// Its address below the cache.
    pub name: DocumentName,
    /// The store path that it belongs to: a log's derivation, or what a trace's output became.
    pub owner: StorePathHash,
    /// Bytes of the document.
    pub size: u64,
    /// How the body is compressed, as `Content-Encoding` says it.
    pub encoding: Option<String>,
    /// The document, compressed or not.
    pub body: Vec<u8>,
}

/// A document at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDocument {
    /// Bytes of the document.
    pub size: u64,
    /// How the body is compressed.
    pub encoding: Option<String>,
    /// The document, compressed or not.
    pub body: Vec<u8>,
}

/// What storing a build trace did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceOutcome {
    /// It is there now, or has more signatures now.
    Written,
    /// It was there, with these signatures.
    Unchanged,
    /// The output is this other path according to the trace that was there first, which stays.
    Kept(StorePath),
    /// It is not there: its path has 1,024 traces.
    Full,
}

/// Documents: what belongs to a cache beside its objects. A log belongs to the objects that name
/// its derivation, a trace to the object that the output became. [`ObjectIndex::remove_object`] and
/// [`RetentionIndex::remove_for_cause`] forget what belonged to the removed object alone.
#[async_trait]
pub trait DocumentIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Stores a document in the place of the one of the same name, with an outbox row for each
    /// object that it belongs to. [`Error::CacheGone`](crate::Error::CacheGone) if the cache is not
    /// there. At most three statements, transaction control and locks excluded.
    ///
    /// # Panics
    /// If the name is that of debug info, which is in NARs.
    async fn put_document(&self, cache: CacheId, document: &NewDocument, at: UnixSeconds) -> Result<()>;
    /// The same, unless a document of this name is there, which stays; returns whether it is stored
    /// now.
    async fn add_document(&self, cache: CacheId, document: &NewDocument, at: UnixSeconds) -> Result<bool>;
    /// Stores a build trace, or adds its signatures to the one of the same key and path, within the
    /// limits for objects ([`NarCommit::known_keys`]). Where the cache has the key with another
    /// path, the first stays, unless the cache has the new path and lacks the first. With an outbox
    /// row for the object of the path, if anything changed.
    /// [`Error::CacheGone`](crate::Error::CacheGone) if the cache is not there.
    async fn merge_trace(
        &self,
        cache: CacheId,
        trace: &BuildTrace,
        known_keys: &[String],
        at: UnixSeconds,
    ) -> Result<TraceOutcome>;
    /// Finds a document. One statement. Debug info is no document here: see
    /// [`Self::find_debug_nar`].
    async fn find_document(&self, cache: CacheId, name: &DocumentName) -> Result<Option<StoredDocument>>;
    /// Whether a document is there. One statement, which reads no body. The caller has looked the
    /// cache up.
    async fn has_document(&self, cache: CacheId, name: &DocumentName) -> Result<bool>;
    /// The newest sound NAR of an object of the cache that has the debug file with this build id.
    /// One statement.
    async fn find_debug_nar(
        &self,
        cache: CacheId,
        build_id: &BuildId,
    ) -> Result<Option<(NarHash, EncodingTag)>>;
}

/// The log of what changed, and notices to other replicas.
#[async_trait]
pub trait OutboxIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Rows after a place, in order. No row ever shows up before one that was returned; so a row
    /// may show up a moment after its commit: not before every older transaction has ended.
    async fn outbox_after(&self, position: OutboxPosition, limit: u32) -> Result<Vec<OutboxRow>>;
    /// Changes from now on that make a remembered hit stale, whichever replica made them. A notice
    /// may be lost, so nothing may be remembered for long without asking again.
    fn changes(&self) -> Changes;
}

/// The name of a session: random bytes that its client chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

/// A session to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSession {
    /// Its name.
    pub id: SessionId,
    /// The cache that it pushes to.
    pub cache: CacheId,
    /// Subject of the caller's token; empty if the token has none.
    pub subject: String,
    /// Now.
    pub created_at: UnixSeconds,
    /// When it ends.
    pub ends_at: UnixSeconds,
}

/// A session that lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionEnd {
    /// When it ends.
    pub ends_at: UnixSeconds,
}

/// What opening a session did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionOpened {
    /// It is open, since now or since before.
    Open(SessionEnd),
    /// The name is that of another caller, cache or time.
    NotYours,
    /// The subject has too many sessions that last, and all are young.
    TooMany,
}

/// A part that a session received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionPart {
    /// The digest of its bytes.
    pub digest: [u8; 32],
    /// The numbers of its chunks, ascending.
    pub chunks: Vec<ChunkRun>,
}

/// What an object of a cache is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRecipe {
    /// The object's place in the order of age.
    pub place: ObjectPlace,
    /// The chunks of its NAR.
    pub runs: Vec<ChunkRun>,
}

/// Sessions: pushes by chunks in progress.
#[async_trait]
pub trait SessionIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Opens a session, or finds it open. A subject has at most `sessions_max` that last; racing
    /// openings may pass this by a few. At the limit the subject's oldest session ends, if it is
    /// an hour old. [`Error::CacheGone`](crate::Error::CacheGone) if the cache
    /// is not there. Opening twice is the same as once.
    async fn open_session(&self, session: &NewSession, sessions_max: u32) -> Result<SessionOpened>;
    /// Finds a session of this cache and subject that lasts. One statement.
    async fn find_session(
        &self,
        session: &SessionId,
        cache: CacheId,
        subject: &str,
        now: UnixSeconds,
    ) -> Result<Option<SessionEnd>>;
    /// Notes that a session received a part, whose chunks are stored. `false`: it has ended.
    async fn add_part(&self, session: &SessionId, part: &SessionPart, now: UnixSeconds) -> Result<bool>;
    /// Finds a part that a session received. One statement.
    async fn find_part(&self, session: &SessionId, digest: &[u8; 32]) -> Result<Option<SessionPart>>;
    /// A page of the parts of a session, by digest, after one of them.
    async fn parts_after(
        &self,
        session: &SessionId,
        after: Option<&[u8; 32]>,
        limit: u32,
    ) -> Result<Vec<SessionPart>>;
    /// A page of what the objects of a cache are made of, the oldest first, after a place. Objects
    /// may appear before a place that was read: their commit took a while.
    async fn recipes_after(
        &self,
        cache: CacheId,
        after: Option<ObjectPlace>,
        limit: u32,
    ) -> Result<Vec<CacheRecipe>>;
    /// Marks chunks that could not be read, and that lie in this pack still, so that they are not
    /// reused; the job that this opens looks which NARs need them. Returns how many were sound
    /// before.
    async fn mark_chunks_damaged(&self, pack: PackNumber, chunks: &[u64], at: UnixSeconds) -> Result<u64>;
}

/// The index: all topics, and the database as a whole. A `dyn Index` has the methods of every
/// topic.
#[async_trait]
pub trait Index:
    SettingIndex
    + CacheIndex
    + ChunkIndex
    + NarIndex
    + ObjectIndex
    + RetentionIndex
    + DocumentIndex
    + OutboxIndex
    + CounterIndex
    + SessionIndex
{
    /// Answers when the database is reachable, within [`PING_MAX`]; it writes nothing. A database
    /// that answers other calls meanwhile is reachable, though it is too busy for this question.
    async fn ping(&self) -> Result<()>;
    /// Answers when the database is reachable and writable.
    async fn check_ready(&self) -> Result<()>;
    /// Waits for running calls, then closes the database. Later calls fail.
    async fn close(&self) -> Result<()>;
    /// Statements sent since the start, transaction control included (for metrics and benchmarks).
    fn statement_count(&self) -> u64;
    /// Calls that were repeated and given up since the start (for metrics).
    fn call_counts(&self) -> CallCounts;
    /// How its connections are used now (for metrics).
    fn pool_use(&self) -> PoolUse;
}
