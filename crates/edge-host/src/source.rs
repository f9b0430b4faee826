//! The place of a published layout: a folder, or a bucket.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use dormer_edge::{ObjectMeta, Part};
use dormer_stores::{ByteStream, CallPolicy, FileMeta, GetRange, OpenError, RetryPolicy, Store};
use futures::StreamExt as _;

/// Calls are repeated for less time than a host waits for its store, so that the reason of a
/// failure is logged.
const RETRY_TIME: Duration = Duration::from_secs(20);

/// Why a store has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store failed. A missing bucket is a failure, and never a missing object.
    #[error(transparent)]
    Store(#[from] dormer_stores::Error),
    /// The bytes of an object did not come in time, or are damaged.
    #[error("failed to read {name}")]
    Read {
        /// Name of the object in the layout.
        name: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A document that is larger than any that is published. It never counts as missing.
    #[error("{name} has {size} bytes, more than the {max} of any that is published")]
    TooLarge {
        /// Name of the document in the layout.
        name: String,
        /// Size in bytes.
        size: u64,
        /// The bound.
        max: usize,
    },
}

/// What a store said to a request for bytes.
pub(crate) enum Opened {
    /// There is no such object.
    Missing,
    /// The object is there, but the requested part of it is not.
    Outside(ObjectMeta),
    /// The object is there, and these are the requested bytes.
    Found(ObjectMeta, ByteStream),
}

/// A published layout.
#[derive(Debug, Clone)]
pub struct Source(Store);

impl Source {
    /// In a folder of this machine, which has to exist.
    pub fn folder(path: &Path) -> Result<Self, SourceError> {
        Ok(Self(Store::existing_folder(path)?))
    }

    /// In a bucket, by its address (`s3://bucket/prefix`, `gs://…`, `az://…`), with settings as the
    /// stores' own tools know them (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, …).
    pub fn bucket(
        url: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, SourceError> {
        let retries = RetryPolicy { time_max: RETRY_TIME, ..RetryPolicy::default() };
        let policy = CallPolicy { retries, requests_max: None, turn_wait: None };
        Ok(Self(Store::open_address(url, variables, &policy)?))
    }

    /// Whether reading goes over a network, so that keeping a copy pays.
    pub(crate) fn is_remote(&self) -> bool {
        self.0.is_remote()
    }

    /// Size and tag of an object.
    pub(crate) async fn head(&self, name: &str) -> Result<Option<ObjectMeta>, SourceError> {
        Ok(self.0.head(name).await?.map(meta_of))
    }

    /// Opens an object, or a part of it.
    pub(crate) async fn open(&self, name: &str, part: Option<Part>) -> Result<Opened, SourceError> {
        let range = part.map(|part| match part {
            Part::From(first) => GetRange::Offset(first),
            Part::Between(first, last) => GetRange::Bounded(first..last.saturating_add(1)),
            Part::Last(count) => GetRange::Suffix(count),
        });
        Ok(match self.0.open_object(name, range).await? {
            None => Opened::Missing,
            Some(dormer_stores::Opened::Outside(meta)) => Opened::Outside(meta_of(meta)),
            Some(dormer_stores::Opened::Found(meta, bytes)) => Opened::Found(meta_of(meta), bytes),
        })
    }

    /// Reads a small object whole; `None` if it is not there. An object of more than `bytes_max` is
    /// an error.
    pub(crate) async fn read(
        &self,
        name: &str,
        bytes_max: usize,
    ) -> Result<Option<(ObjectMeta, Bytes)>, SourceError> {
        let Opened::Found(meta, mut bytes) = self.open(name, None).await? else { return Ok(None) };
        if meta.size > bytes_max as u64 {
            return Err(SourceError::TooLarge { name: name.to_owned(), size: meta.size, max: bytes_max });
        }
        let mut all = Vec::new();
        while let Some(piece) = bytes.next().await {
            all.extend_from_slice(
                &piece.map_err(|source| SourceError::Read { name: name.to_owned(), source })?,
            );
        }
        Ok(Some((meta, all.into())))
    }
}

fn meta_of(meta: FileMeta) -> ObjectMeta {
    ObjectMeta { size: meta.size, etag: meta.etag }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_document_that_is_too_large_does_not_count_as_missing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x"), [0; 100]).unwrap();
        let source = Source::folder(folder.path()).unwrap();
        assert!(source.read("x", 100).await.unwrap().is_some());
        assert!(source.read("y", 100).await.unwrap().is_none());
        assert!(matches!(source.read("x", 99).await, Err(SourceError::TooLarge { size: 100, .. })));
    }
}
