//! What a comparison of the rows with the target shows.

use async_trait::async_trait;
use dormer_format::EncodingTag;
use dormer_nix::{DocumentName, NarHash, StorePathHash};

use super::{CacheScan, Lease};
use crate::Result;
use crate::contract::{CacheId, UnixSeconds};

/// A narinfo in a target that no row names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundNarinfo {
    /// Store hash.
    pub hash: StorePathHash,
    /// The NAR that it names.
    pub nar: (NarHash, EncodingTag),
    /// Bytes of that file.
    pub file_size: u64,
    /// Digest of the narinfo, if this lab removed the object; `None` if the lab knows nothing of
    /// it.
    pub digest: Option<Vec<u8>>,
    /// The target's tag of it.
    pub etag: Option<String>,
    /// Whether an upstream key signed it.
    pub upstream: bool,
    /// Its references, without itself.
    pub references: Vec<StorePathHash>,
}

/// What was found in a target that is not as it was written down. What names it has to be looked at
/// again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drift {
    /// Narinfos, by object, that are missing or not as they were written.
    pub narinfos: Vec<StorePathHash>,
    /// NAR files, likewise.
    pub nars: Vec<(NarHash, EncodingTag)>,
    /// NAR files that are there with other headers than they should have. What names them stays
    /// published, and is written again with them.
    pub outdated_nars: Vec<(NarHash, EncodingTag)>,
    /// Documents with their objects, missing or not as they were written.
    pub documents: Vec<(StorePathHash, DocumentName)>,
    /// Narinfos that no row names. They count as published, so they leave like all that a lab
    /// removes.
    pub found_narinfos: Vec<FoundNarinfo>,
    /// NAR files that no row names, with their sizes. Those with a row stay as they are.
    pub found_nars: Vec<((NarHash, EncodingTag), u64)>,
    /// When a found NAR file may be deleted, unless an object names it by then.
    pub grace_ends_at: UnixSeconds,
}

/// The transition of what has drifted.
#[async_trait]
pub trait CompareIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Writes down what was found. With a `scan`, a listing showed it that was read so far.
    async fn note_drift(
        &self,
        lease: &Lease,
        cache: CacheId,
        drift: &Drift,
        at: UnixSeconds,
        scan: Option<CacheScan>,
    ) -> Result<()>;
}
