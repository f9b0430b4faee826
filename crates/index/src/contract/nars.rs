//! New NARs, and the commit that makes one visible.

use async_trait::async_trait;
use dormer_format::{ChunkRun, EncodingTag, Recipe};
use dormer_nix::{BuildId, NarHash, StorePathHash};

use super::{CacheId, Nar, NarId, NarSummary, Object, PackNumber, UnixSeconds};
use crate::Result;

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
pub enum NarQuery {
    /// Its own hash.
    Hash(NarHash),
    /// An object that has it (Attic's URL form).
    StorePath(StorePathHash),
}

/// NARs, and the commit that makes one visible.
#[async_trait]
pub trait NarIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Finds a NAR by its hash, in any cache (for the engine's own use: never answer a client with
    /// it). Here `damaged` says that it has to be stored again: also when only its listing is lost.
    async fn find_nar(&self, hash: &NarHash) -> Result<Option<NarSummary>>;
    /// Finds a NAR with its recipe through an object, a grace row that has not ended, or an alias
    /// of this cache.
    async fn find_nar_in_cache(
        &self,
        cache: CacheId,
        key: &NarQuery,
        now: UnixSeconds,
    ) -> Result<Option<Nar>>;
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
