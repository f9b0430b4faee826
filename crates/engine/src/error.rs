//! Why an engine call failed, and what kind of failure it is. The server maps errors to HTTP
//! statuses.

use dormer_nix::NarHash;
use dormer_nix::nar::NarError;

/// Result of an engine call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// The input is wrong; the same input will fail again.
    BadInput,
    /// The requested thing is not here.
    Missing,
    /// The thing exists already.
    Conflict,
    /// The server is at a limit; the same call will work later.
    Busy,
    /// The database or the store cannot be reached, or something vanished meanwhile; the same call
    /// may work later.
    Unavailable,
    /// A defect or damaged data.
    Internal,
}

/// Why an engine call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not a NAR.
    #[error("malformed NAR")]
    MalformedNar(#[source] NarError),
    /// The NAR's hash differs from the announced one.
    #[error("NAR hash mismatch: announced {expected}, got {got}")]
    HashMismatch {
        /// Announced.
        expected: NarHash,
        /// Computed.
        got: NarHash,
    },
    /// The NAR's size differs from the announced one.
    #[error("NAR size mismatch: announced {expected} bytes, got {got}")]
    SizeMismatch {
        /// Announced.
        expected: u64,
        /// Counted.
        got: u64,
    },
    /// The NAR is larger than this server accepts.
    #[error("NAR is larger than {limit} bytes, the limit of this server")]
    NarTooLarge {
        /// Limit in bytes.
        limit: u64,
    },
    /// The NAR is not cut into the chunks that its manifest names: chunk sizes, holes or versions
    /// differ.
    #[error("the NAR is not made of the chunks that its manifest names: they differ at chunk {position}")]
    CutMismatch {
        /// Position of the first chunk that differs, from zero.
        position: u64,
    },
    /// A NAR manifest cannot be read.
    #[error("could not read the NAR manifest")]
    MalformedManifest(#[source] dormer_format::Error),
    /// A manifest does not fill the holes of its chunks.
    #[error("the manifest has {fills} fills, and its chunks have {holes} holes")]
    FillMismatch {
        /// Fills in the manifest.
        fills: u64,
        /// Holes in its chunks.
        holes: u64,
    },
    /// A part of a session is not a pack of sound chunks.
    #[error("could not read the part as a pack")]
    MalformedPart(#[source] dormer_format::Error),
    /// A chunk of a part breaks a rule, or has another id.
    #[error("chunk {position} of the part {what}")]
    PartChunk {
        /// Position of the chunk in the part, from zero.
        position: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The digest in a part's address is not that of its bytes.
    #[error("the part's bytes have another digest than its address names")]
    PartDigest,
    /// The chunks of a part are too large in all.
    #[error("the chunks of the part have {bytes} bytes, more than the {max} allowed")]
    PartTooLarge {
        /// Their raw bytes.
        bytes: u64,
        /// Most raw bytes.
        max: u64,
    },
    /// A part has too many chunks.
    #[error("the part has {chunks} chunks, more than the {max} allowed")]
    PartChunks {
        /// How many it has.
        chunks: u64,
        /// Most chunks.
        max: u64,
    },
    /// A check of a NAR ended without a result: a defect.
    #[error("the check of the NAR ended without a result")]
    CheckLost,
    /// A check of a NAR could not reach a part of the server. Several callers may wait for it.
    #[error(transparent)]
    CheckFailed(std::sync::Arc<Error>),
    /// The session is unknown to the caller, or has ended.
    #[error("there is no such session: take a new one")]
    NoSession,
    /// The caller has too many sessions that have not ended.
    #[error("this token has {max} sessions that have not ended, the most there may be")]
    TooManySessions {
        /// Most sessions.
        max: u32,
    },
    /// The budget had no free share in time.
    #[error("too many {what} at once, none ended in time")]
    Busy {
        /// What the server has too many of.
        what: &'static str,
    },
    /// The upload's decoder needs more memory than one upload may have.
    #[error(
        "taking this upload needs {needed} bytes of memory, more than the {limit} that one may have: \
         compress it with a smaller window, or raise limits.upload-memory"
    )]
    DecoderTooLarge {
        /// Bytes that the decoder needs.
        needed: u64,
        /// Bytes that one upload may have.
        limit: u64,
    },
    /// A store path or a build trace came with too many signatures.
    #[error("{count} signatures, more than the {max} that are taken")]
    TooManySignatures {
        /// How many came.
        count: usize,
        /// How many are taken.
        max: usize,
    },
    /// A narinfo names a file that was not uploaded to this cache.
    #[error("no NAR was uploaded as '{file_name}'")]
    NoAlias {
        /// The name.
        file_name: String,
    },
    /// A narinfo does not match the NAR that its URL names.
    #[error("narinfo does not match the uploaded NAR: it says {said}, the NAR has {has}")]
    NarMismatch {
        /// Hash and size in the narinfo.
        said: String,
        /// Hash and size of the NAR.
        has: String,
    },
    /// The store folder of a cache that holds paths cannot change.
    #[error(
        "cache '{cache}' holds store paths of {store_dir}, so its store folder cannot change: create another cache for {wanted}"
    )]
    StoreDirInUse {
        /// The cache.
        cache: String,
        /// Its store folder.
        store_dir: String,
        /// The requested store folder.
        wanted: String,
    },
    /// Stored bytes are missing or changed. The path counts as missing until it is pushed again.
    #[error("stored bytes of NAR {nar} are damaged")]
    Damaged {
        /// The NAR.
        nar: NarHash,
    },
    /// A chunk got other frames while the NAR was being read; the NAR can be read under another
    /// tag.
    #[error("NAR {nar} was encoded anew while it was being read")]
    Reencoded {
        /// The NAR.
        nar: NarHash,
    },
    /// The range does not lie within the NAR's served bytes.
    #[error("range {start}..{end} does not lie within {size} bytes")]
    RangeOutside {
        /// First byte.
        start: u64,
        /// One after the last byte.
        end: u64,
        /// Bytes there are.
        size: u64,
    },
    /// A pack that an upload depends on could not be stored.
    #[error("failed to store a pack: {0}")]
    PackLost(String),
    /// The packing task is starting again after a panic.
    #[error("the packing task is starting again after a panic")]
    PackerDown,
    /// Another replacement of the master key was begun and not finished.
    #[error("a replacement of the master key was begun with another key and is not finished")]
    RekeyUnfinished,
    /// A secret cannot be unsealed with the master keys of this process.
    #[error("{what} is sealed with another master key than this process has")]
    Sealed {
        /// Which secret.
        what: String,
    },
    /// A stored signing key cannot be read.
    #[error("signing key of cache '{cache}' is unreadable")]
    SigningKey {
        /// The cache.
        cache: String,
    },
    /// Compression failed: a defect.
    #[error("failed to encode a chunk")]
    Encode(#[source] dormer_format::Error),
    /// The table of a pack cannot be read.
    #[error("the table of {key} cannot be read")]
    Pack {
        /// Name of the pack.
        key: String,
        /// Why.
        #[source]
        source: dormer_format::Error,
    },
    /// Compressing a listing failed: a defect.
    #[error("failed to compress a listing")]
    CompressListing(#[source] std::io::Error),
    /// Compressing a document failed: a defect.
    #[error("failed to compress a document")]
    CompressDocument(#[source] std::io::Error),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] dormer_index::Error),
    /// The object store answered no request for this long.
    #[error("the object store has not answered for {} s", patience.as_secs_f64())]
    StoreSilent {
        /// How long the caller waited.
        patience: std::time::Duration,
    },
    /// The object store failed.
    #[error(transparent)]
    Blobs(#[from] dormer_blobs::Error),
}

impl Error {
    /// What kind of failure this is.
    pub fn class(&self) -> ErrorClass {
        use dormer_index::Error as Index;
        match self {
            Self::MalformedNar(_)
            | Self::HashMismatch { .. }
            | Self::SizeMismatch { .. }
            | Self::NarTooLarge { .. }
            | Self::DecoderTooLarge { .. }
            | Self::TooManySignatures { .. }
            | Self::NoAlias { .. }
            | Self::NarMismatch { .. }
            | Self::StoreDirInUse { .. }
            | Self::CutMismatch { .. }
            | Self::FillMismatch { .. }
            | Self::MalformedManifest(_)
            | Self::MalformedPart(_)
            | Self::PartChunk { .. }
            | Self::PartDigest
            | Self::PartTooLarge { .. }
            | Self::PartChunks { .. }
            | Self::RangeOutside { .. } => ErrorClass::BadInput,
            Self::Busy { .. } | Self::TooManySessions { .. } => ErrorClass::Busy,
            Self::Damaged { .. } | Self::NoSession => ErrorClass::Missing,
            Self::PackLost(_)
            | Self::PackerDown
            | Self::Reencoded { .. }
            | Self::StoreSilent { .. }
            | Self::Blobs(_) => ErrorClass::Unavailable,
            Self::Index(error) => match error {
                Index::CacheExists { .. } => ErrorClass::Conflict,
                Index::CacheGone => ErrorClass::Missing,
                Index::PackGone | Index::NarGone | Index::MasterKeyReplaced | Index::Unavailable { .. } => {
                    ErrorClass::Unavailable
                }
                _ => ErrorClass::Internal,
            },
            Self::CheckFailed(error) => error.class(),
            Self::CheckLost
            | Self::RekeyUnfinished
            | Self::Sealed { .. }
            | Self::SigningKey { .. }
            | Self::Encode(_)
            | Self::Pack { .. }
            | Self::CompressListing(_)
            | Self::CompressDocument(_) => ErrorClass::Internal,
        }
    }
}
