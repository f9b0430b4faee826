//! What is written down of objects and NAR files in a target.

use std::ops::RangeInclusive;

use async_trait::async_trait;
use dormer_format::EncodingTag;
use dormer_nix::{NarHash, StorePathHash};

use super::TargetId;
use crate::Result;
use crate::contract::{CacheId, FoundObject, UnixSeconds};

/// In place of the digest of a narinfo that a comparison found in the target, and that neither the
/// rows nor the lab know.
pub(crate) const FOUND: &[u8] = b"found";

/// The state of an object in a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishState {
    /// Its narinfo may be there.
    Writing,
    /// Its narinfo is there.
    Published,
    /// Its narinfo is being removed, and may be gone.
    Removing,
}

/// An object in a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedObject {
    /// Store hash.
    pub hash: StorePathHash,
    /// Its state.
    pub state: PublishState,
    /// The NAR that its narinfo names.
    pub nar: (NarHash, EncodingTag),
    /// Digest of the narinfo; empty before it was written.
    pub digest: Vec<u8>,
    /// The target's tag of the narinfo.
    pub etag: Option<String>,
    /// Whether an upstream key signed it: then readers find it elsewhere when it is removed here.
    pub upstream: bool,
}

impl PublishedObject {
    /// Whether a comparison found its narinfo in the target, and neither the rows nor the lab knew
    /// of it. No word of the lab says that it was removed for cause.
    pub fn was_found(&self) -> bool {
        self.digest == FOUND
    }
}

/// A NAR file in a target, below one cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedNar {
    /// The NAR and its encoding.
    pub nar: (NarHash, EncodingTag),
    /// Whether all of it is there.
    pub uploaded: bool,
    /// Bytes of the file.
    pub file_size: u64,
    /// SHA-256 of the file, once it was uploaded.
    pub file_hash: Option<NarHash>,
    /// The target's tag of it.
    pub etag: Option<String>,
    /// When it may be deleted, if nothing names it any more.
    pub delete_after: Option<UnixSeconds>,
}

/// Which objects a read is about.
#[derive(Debug, Clone)]
pub enum ObjectRows<'a> {
    /// These; at most 16,384.
    Of(&'a [StorePathHash]),
    /// A page of all in the order of the last bytes of their hashes, and of hashes among equals: as
    /// a listing of the target gives them, but for the order among equals.
    Page {
        /// Those with these last bytes.
        bytes: RangeInclusive<u8>,
        /// The page begins after this one.
        after: Option<StorePathHash>,
        /// Most of them.
        limit: u32,
    },
}

/// Which NAR files a read is about.
#[derive(Debug, Clone)]
pub enum NarRows<'a> {
    /// Those with these hashes, in any encoding; at most 16,384.
    Of(&'a [NarHash]),
    /// A page of all in the order of the last bytes of their hashes, then of hashes and tags.
    Page {
        /// Those with these last bytes.
        bytes: RangeInclusive<u8>,
        /// The page begins after this one.
        after: Option<(NarHash, EncodingTag)>,
        /// Most of them.
        limit: u32,
    },
    /// Those that may be deleted.
    Due {
        /// At this time.
        at: UnixSeconds,
        /// Most of them.
        limit: u32,
    },
}

/// Look-ups of objects in the lab and in a target. Each is one statement.
#[async_trait]
pub trait PublishedIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Those of these objects that the cache has, with damaged NARs too. At most 16,384.
    async fn find_objects(&self, cache: CacheId, hashes: &[StorePathHash]) -> Result<Vec<FoundObject>>;
    /// Objects that a row is written of.
    async fn published_objects(
        &self,
        target: TargetId,
        cache: CacheId,
        rows: ObjectRows<'_>,
    ) -> Result<Vec<PublishedObject>>;
    /// NAR files that a row is written of.
    async fn published_nars(
        &self,
        target: TargetId,
        cache: CacheId,
        rows: NarRows<'_>,
    ) -> Result<Vec<PublishedNar>>;
}
