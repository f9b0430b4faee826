//! Build logs, build traces and debug info.

use async_trait::async_trait;
use dormer_format::EncodingTag;
use dormer_nix::{BuildId, BuildTrace, DocumentName, NarHash, StorePath, StorePathHash};

use super::{CacheId, UnixSeconds};
use crate::Result;

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
/// its derivation, a trace to the object that the output became. [`remove_object`] and
/// [`remove_for_cause`] forget what belonged to the removed object alone.
///
/// [`remove_object`]: crate::ObjectIndex::remove_object
/// [`remove_for_cause`]: crate::RetentionIndex::remove_for_cause
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
    /// limits for objects ([`known_keys`](crate::NarCommit::known_keys)). Where the cache has the
    /// key with another path, the first stays, unless the cache has the new path and lacks the
    /// first. With an outbox row for the object of the path, if anything changed.
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
