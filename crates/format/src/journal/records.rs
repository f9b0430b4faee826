//! What the records of the journal say.

use dormer_nix::{NarHash, StorePath, StorePathHash};

use crate::ids::ChunkId;
use crate::manifest::NarManifest;

/// A thing and its present state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalRecord {
    /// A named value of the installation.
    Setting {
        /// Name.
        name: String,
        /// Value, sealed if it is secret.
        value: Vec<u8>,
    },
    /// A cache.
    Cache(JournalCache),
    /// A cache that was deleted.
    CacheGone {
        /// Its label.
        cache: u64,
    },
    /// A NAR of paths and aliases in the same file.
    Nar(JournalNar),
    /// A path in a cache.
    Path(JournalPath),
    /// An upload alias.
    Alias(JournalAlias),
    /// A document.
    Document(JournalDocument),
    /// More pins of a cache, whose record stands before in the same file.
    Pins {
        /// Its label.
        cache: u64,
        /// The pins.
        pins: Vec<JournalPin>,
    },
    /// A pin by itself.
    Pin {
        /// Label of its cache.
        cache: u64,
        /// The pin.
        pin: JournalPin,
    },
    /// A pin that was removed.
    PinGone {
        /// Label of its cache.
        cache: u64,
        /// Name.
        name: String,
        /// Hash of its path.
        hash: StorePathHash,
    },
}

/// A cache.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JournalCache {
    /// Label of the cache in this lineage.
    pub cache: u64,
    /// Name.
    pub name: String,
    /// Whether anybody may read it.
    pub is_public: bool,
    /// Store folder.
    pub store_dir: String,
    /// Priority.
    pub priority: i64,
    /// Names of upstream keys.
    pub upstream_key_names: Vec<String>,
    /// Seconds an unused object is kept.
    pub retention_seconds: Option<i64>,
    /// Most bytes of its NARs.
    pub quota_bytes: Option<i64>,
    /// Paths kept of a name.
    pub keep_latest: Option<i64>,
    /// Whether an upload may give a path another NAR.
    pub allow_replacement: bool,
    /// When it was created.
    pub created_at: i64,
    /// Its signing keys, oldest first.
    pub keys: Vec<JournalKey>,
    /// Its first pins. More of them follow as [`JournalRecord::Pins`].
    pub pins: Vec<JournalPin>,
}

/// A signing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalKey {
    /// Public key as Nix writes it.
    pub public_key: String,
    /// Secret key, sealed with the master key.
    pub sealed_secret: Vec<u8>,
    /// Whether it signs.
    pub active: bool,
}

/// A pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalPin {
    /// Name.
    pub name: String,
    /// The path.
    pub path: StorePath,
    /// When it was added.
    pub created_at: i64,
    /// When it ends.
    pub ends_at: Option<i64>,
}

/// A NAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalNar {
    /// SHA-256 of the archive.
    pub hash: NarHash,
    /// Bytes of the archive.
    pub size: u64,
    /// How to rebuild it.
    pub recipe: NarManifest,
    /// Its listing.
    pub listing: JournalListing,
}

/// A listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalListing {
    /// It was lost.
    Lost,
    /// The compressed JSON itself.
    Inline(Vec<u8>),
    /// In chunks, without holes.
    Chunks {
        /// The chunks, in order.
        chunks: Vec<ChunkId>,
        /// Bytes of JSON.
        size: u64,
    },
}

/// A path in a cache: its object, or the fact that it was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalPath {
    /// Label of the cache.
    pub cache: u64,
    /// Hash part of the path.
    pub hash: StorePathHash,
    /// Its object; `None` if it was removed.
    pub object: Option<JournalObject>,
}

/// An object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalObject {
    /// Name of the path, without its hash.
    pub name: String,
    /// Its NAR.
    pub nar: NarHash,
    /// Paths it refers to, itself included.
    pub references: Vec<StorePath>,
    /// Base name of the derivation.
    pub deriver: Option<String>,
    /// Content address.
    pub ca: Option<String>,
    /// System.
    pub system: Option<String>,
    /// Signatures it came with.
    pub signatures: Vec<String>,
    /// Fields of its narinfo that no part of Dormer knows: names and values.
    pub extra: Vec<(String, String)>,
    /// When it was pushed first.
    pub created_at: i64,
}

/// An upload alias: what it stands for, or that it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalAlias {
    /// Label of the cache.
    pub cache: u64,
    /// File name.
    pub file_name: String,
    /// NAR, compression and time of the last use.
    pub upload: Option<(NarHash, String, i64)>,
}

/// A document: its body, or that it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalDocument {
    /// Label of the cache.
    pub cache: u64,
    /// Address below the cache.
    pub name: String,
    /// What it holds; `None` if it was removed.
    pub content: Option<JournalContent>,
}

/// What a document holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalContent {
    /// Hash of the store path that it belongs to.
    pub owner: StorePathHash,
    /// When it was written.
    pub written_at: i64,
    /// Bytes of the document.
    pub size: u64,
    /// How the body is compressed; `None` is not at all.
    pub encoding: Option<String>,
    /// The document, compressed or not.
    pub body: Vec<u8>,
}
