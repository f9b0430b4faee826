//! Documents: those of the lab that belong to objects, and those in a target.

use async_trait::async_trait;
use dormer_nix::{BuildId, DocumentName, StorePathHash};

use super::{Lease, TargetId};
use crate::Result;
use crate::contract::{CacheId, UnixSeconds};

/// A document that the lab has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedDocument {
    /// The store path that it belongs to: a log's derivation, or what a trace's output became.
    pub owner: StorePathHash,
    /// Its address below the cache.
    pub name: DocumentName,
    /// Bytes of the document.
    pub size: u64,
    /// Digest of what is stored of it.
    pub digest: Vec<u8>,
}

/// What the lab has beside objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabDocuments {
    /// Logs and traces, the newest first.
    pub owned: Vec<OwnedDocument>,
    /// Debug files in the NARs of objects.
    pub build_ids: Vec<(StorePathHash, BuildId)>,
}

/// A document in a target, with one of the objects that it was published with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedDocument {
    /// The object.
    pub hash: StorePathHash,
    /// Its address below the cache.
    pub name: DocumentName,
    /// Digest of what it depended on when it was written; empty before it was written.
    pub digest: Vec<u8>,
    /// Digest of the file, and what the target said of it, likewise.
    pub file: Option<PublishedFile>,
}

/// A small file as it was written to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedFile {
    /// SHA-256 of its bytes.
    pub digest: Vec<u8>,
    /// The target's tag of it, if it gives any.
    pub etag: Option<String>,
}

/// Which documents a read is about.
#[derive(Debug, Clone, Copy)]
pub enum DocumentRows<'a> {
    /// Those of these objects; at most 16,384 objects.
    Of(&'a [StorePathHash]),
    /// A page of all in the order of names and objects.
    Page {
        /// The page begins after this name and object; a name without an object stands before all
        /// objects of that name.
        after: (&'a str, Option<StorePathHash>),
        /// The page ends with this name.
        through: &'a str,
        /// Most of them.
        limit: u32,
    },
}

/// Documents. They come and go with their objects: see [`BringIndex`](super::BringIndex) and
/// [`RemoveIndex`](super::RemoveIndex).
#[async_trait]
pub trait PublishedDocumentIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Documents of the lab that belong to the store paths `owners`, and build ids in the NARs of
    /// `objects`. At most 16,384 of each; of each kind at most `limit`, by one statement.
    async fn find_lab_documents(
        &self,
        cache: CacheId,
        owners: &[StorePathHash],
        objects: &[StorePathHash],
        limit: u32,
    ) -> Result<LabDocuments>;
    /// Documents that a row is written of.
    async fn published_documents(
        &self,
        target: TargetId,
        cache: CacheId,
        rows: DocumentRows<'_>,
    ) -> Result<Vec<PublishedDocument>>;
    /// Takes documents from objects, which goes on until the objects are published or removed.
    /// Returns those that no other object has: their files may be gone from now on. A link to debug
    /// info that another object has is written again, because it may lead to a NAR that goes.
    async fn take_documents(
        &self,
        lease: &Lease,
        cache: CacheId,
        documents: &[(StorePathHash, DocumentName)],
        at: UnixSeconds,
    ) -> Result<Vec<DocumentName>>;
}
