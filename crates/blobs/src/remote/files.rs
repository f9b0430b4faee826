//! A tree of files in a bucket: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage.
//!
//! Requests are counted where all of the store's are. Small files are tried again here, as [`Retrying`] does it; the parts of a
//! large one by the library, and if one is given up, whoever uploads it begins anew.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, Error as StoreError, MultipartUpload, ObjectStore, ObjectStoreExt as _,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use super::exchange::{Exchange, watched};
use super::open::{OpenError, RemoteSettings, build_anonymous, build_for_uploads};
use super::{Attempt, RemoteBlobs};
use crate::counters::Method;
use crate::files::{FileEntry, FileKind, FileUpload, Files, Stored};
use crate::retrying::{RetryPolicy, Retrying};
use crate::{Error, Result};

/// Larger files are uploaded in parts: one PUT holds all of its body in memory.
const SINGLE_PUT_MAX: u64 = 16 * 1024 * 1024;

/// Bytes of a part, unless the file is so large that there would be too many.
const PART_BYTES: u64 = 16 * 1024 * 1024;

/// Stores take 10,000 parts.
const PARTS_MAX: u64 = 9_000;

/// A tree of files in a bucket.
#[derive(Clone)]
pub struct RemoteFiles {
    blobs: RemoteBlobs,
    /// The same store, for uploads in parts.
    uploads: Arc<dyn ObjectStore>,
    anonymous: Option<Arc<dyn ObjectStore>>,
    retry: Arc<Retrying<()>>,
}

impl fmt::Debug for RemoteFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemoteFiles").field(&self.blobs).finish()
    }
}

impl RemoteFiles {
    /// Sets a store up. Nothing is sent to it yet.
    pub fn open(settings: &RemoteSettings, policy: RetryPolicy) -> std::result::Result<Self, OpenError> {
        let blobs = RemoteBlobs::open(settings)?;
        let uploads = build_for_uploads(settings, &policy, &blobs)?;
        let retry = Arc::new(Retrying::new((), policy, Arc::clone(blobs.counters())));
        Ok(Self { blobs, uploads, anonymous: build_anonymous(settings)?, retry })
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.blobs.prefix.clone(), Path::join)
    }

    fn failed(&self, verb: &'static str, name: &str, error: StoreError, exchange: &Exchange) -> Error {
        Attempt { verb, key: name.to_owned(), name: &self.blobs.name }.failed(error, exchange)
    }

    async fn put_once(&self, name: &str, kind: &FileKind, payload: PutPayload) -> Result<Stored> {
        let options = PutOptions { attributes: attributes(kind), ..PutOptions::default() };
        let length = payload.content_length();
        let path = self.path(name);
        let (stored, exchange) = watched(self.blobs.store.put_opts(&path, payload, options)).await;
        let stored = stored.map_err(|error| self.failed("write", name, error, &exchange))?;
        self.blobs.counters.sent(length);
        Ok(Stored { etag: told(stored), sha256: exchange.body_sha256 })
    }

    async fn get_once(&self, name: &str) -> Result<Option<Bytes>> {
        let path = self.path(name);
        let (read, exchange) = watched(async { self.blobs.store.get(&path).await?.bytes().await }).await;
        match read.map_err(|error| self.failed("read", name, error, &exchange)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn delete_once(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        let (deleted, exchange) = watched(self.blobs.store.delete(&path)).await;
        match deleted.map_err(|error| self.failed("delete", name, error, &exchange)) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn attributes(kind: &FileKind) -> Attributes {
    Attributes::from_iter([
        (Attribute::ContentType, kind.content_type.to_owned()),
        (Attribute::CacheControl, kind.cache_control.clone()),
    ])
}

/// Ceph says nothing of a file in parts when it is finished, in as many letters.
fn told(stored: PutResult) -> Option<String> {
    stored.e_tag.filter(|etag| !etag.is_empty())
}

#[async_trait]
impl Files for RemoteFiles {
    fn location(&self) -> String {
        self.blobs.name().to_owned()
    }

    fn single_put_max(&self) -> u64 {
        SINGLE_PUT_MAX
    }

    async fn put(&self, name: &str, kind: &FileKind, parts: Vec<Bytes>) -> Result<Stored> {
        let payload: PutPayload = parts.into_iter().filter(|part| !part.is_empty()).collect();
        self.retry.retry(Method::Put, || self.put_once(name, kind, payload.clone())).await
    }

    async fn begin_upload(&self, name: &str, kind: &FileKind, size: u64) -> Result<Box<dyn FileUpload>> {
        let part_bytes = PART_BYTES.max(size.div_ceil(PARTS_MAX));
        let path = self.path(name);
        let options = PutMultipartOptions { attributes: attributes(kind), ..PutMultipartOptions::default() };
        let (begun, exchange) = watched(self.uploads.put_multipart_opts(&path, options)).await;
        let upload = begun.map_err(|error| self.failed("write", name, error, &exchange))?;
        Ok(Box::new(RemoteUpload {
            files: self.clone(),
            name: name.to_owned(),
            upload,
            part_bytes: usize::try_from(part_bytes).unwrap_or(usize::MAX),
        }))
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        self.retry.retry(Method::Get, || self.get_once(name)).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.retry.retry(Method::Delete, || self.delete_once(name)).await
    }

    async fn list(&self, folder: &str, found: &mut (dyn FnMut(FileEntry) + Send)) -> Result<()> {
        let path = self.path(folder);
        let (listed, exchange) = watched(async {
            let mut entries = self.blobs.store.list(Some(&path));
            while let Some(entry) = entries.try_next().await? {
                let name = entry
                    .location
                    .prefix_match(&self.blobs.prefix)
                    .map(|parts| parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"));
                if let Some(name) = name {
                    found(FileEntry { name, size: entry.size, etag: entry.e_tag });
                }
            }
            Ok(())
        })
        .await;
        listed.map_err(|error| self.failed("list", folder, error, &exchange))
    }

    async fn is_public(&self, name: &str) -> Result<Option<bool>> {
        let Some(anonymous) = &self.anonymous else { return Ok(None) };
        let path = self.path(name);
        let (read, exchange) = watched(anonymous.get(&path)).await;
        match read {
            Ok(_) => Ok(Some(true)),
            // R2 says 400, Azure 409, and 404 is how some hide what is private. Any other word is about something else: too many
            // requests say nothing of what one more would be told.
            Err(_) if matches!(exchange.status, Some(400 | 401 | 403 | 404 | 409)) => Ok(Some(false)),
            Err(error) => Err(self.failed("read without credentials", name, error, &exchange)),
        }
    }

    fn requests(&self) -> (u64, u64) {
        let counters = self.blobs.counters();
        let writes = [Method::Put, Method::Delete, Method::Post].map(|method| counters.requests(method));
        (writes.iter().sum(), counters.requests(Method::Get))
    }
}

struct RemoteUpload {
    files: RemoteFiles,
    name: String,
    upload: Box<dyn MultipartUpload>,
    part_bytes: usize,
}

impl fmt::Debug for RemoteUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteUpload").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl FileUpload for RemoteUpload {
    fn part_bytes(&self) -> usize {
        self.part_bytes
    }

    async fn put_part(&mut self, part: Vec<Bytes>) -> Result<()> {
        let payload: PutPayload = part.into_iter().collect();
        let length = payload.content_length();
        let (put, exchange) = watched(self.upload.put_part(payload)).await;
        put.map_err(|error| self.files.failed("write a part of", &self.name, error, &exchange))?;
        self.files.blobs.counters.sent(length);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<Stored> {
        let (finished, exchange) = watched(self.upload.complete()).await;
        // Each part was signed by itself.
        finished
            .map(|stored| Stored { etag: told(stored), sha256: None })
            .map_err(|error| self.files.failed("write", &self.name, error, &exchange))
    }

    async fn abort(mut self: Box<Self>) {
        // Best effort: stores clear away unfinished uploads by a rule of the bucket.
        if let Err(error) = self.upload.abort().await {
            tracing::warn!(file.name = %self.name, %error, "failed to give up an upload");
        }
    }
}
