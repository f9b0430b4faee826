//! Objects on their way into a target: an intent, the NAR, the narinfo with its documents.

use async_trait::async_trait;
use dormer_format::EncodingTag;
use dormer_nix::{DocumentName, NarHash, StorePathHash};

use super::{Lease, PublishedFile, PublishedNar};
use crate::Result;
use crate::contract::{CacheId, UnixSeconds};

/// An object that is about to be written.
#[derive(Debug, Clone)]
pub struct PublishIntent {
    /// Store hash.
    pub hash: StorePathHash,
    /// The NAR that its narinfo will name.
    pub nar: (NarHash, EncodingTag),
    /// Bytes of that file.
    pub file_size: u64,
    /// Its references, without itself.
    pub references: Vec<StorePathHash>,
    /// Documents that will be written after its narinfo.
    pub documents: Vec<DocumentName>,
}

/// A document that was written to a target with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenDocument {
    /// Its address below the cache.
    pub name: DocumentName,
    /// Digest of what it depended on.
    pub digest: Vec<u8>,
    /// The file.
    pub file: PublishedFile,
}

/// An object whose narinfo was written.
#[derive(Debug, Clone)]
pub struct PublishDone {
    /// Store hash.
    pub hash: StorePathHash,
    /// The NAR that its narinfo names.
    pub nar: (NarHash, EncodingTag),
    /// Digest of the narinfo.
    pub digest: Vec<u8>,
    /// The target's tag of it.
    pub etag: Option<String>,
    /// Whether an upstream key signed it.
    pub upstream: bool,
    /// Its references, without itself.
    pub references: Vec<StorePathHash>,
    /// Its documents that were written, or that another object has and that are as they should be.
    pub documents: Vec<WrittenDocument>,
    /// Documents that it has no more. Their files are gone, unless another object has them.
    pub stale_documents: Vec<DocumentName>,
}

/// The transitions of an object that comes.
#[async_trait]
pub trait BringIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Writes down what is about to be written: each object's narinfo, NAR and documents may be
    /// there from now on, and what it refers to counts as referred to. A NAR file that is there
    /// stays so, and its grace ends.
    async fn begin_publishing(&self, lease: &Lease, cache: CacheId, intents: &[PublishIntent]) -> Result<()>;
    /// Writes down NAR files that are there.
    async fn note_uploaded(&self, lease: &Lease, cache: CacheId, nars: &[PublishedNar]) -> Result<()>;
    /// Writes down narinfos and documents that are there: the objects need not be looked at any
    /// more. A NAR that one of them named before, and nothing names now, may be deleted after
    /// `delete_after`.
    async fn finish_publishing(
        &self,
        lease: &Lease,
        cache: CacheId,
        done: &[PublishDone],
        delete_after: UnixSeconds,
    ) -> Result<()>;
}
