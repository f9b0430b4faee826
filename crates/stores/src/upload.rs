//! Large objects, which are uploaded in parts.

use std::fmt;

use bytes::Bytes;
use object_store::{MultipartUpload, ObjectStore as _, PutMultipartOptions, PutPayload, PutResult};

use crate::Result;
use crate::exchange::watched_by;
use crate::store::{FileKind, Store, Stored};

/// Stores take 10,000 parts.
const PARTS_MAX: u64 = 9_000;

impl Store {
    /// Begins an object of `size` bytes. It is there when the upload is finished, and not before.
    pub async fn begin_upload<'a>(
        &self,
        name: &str,
        kind: impl Into<Option<&'a FileKind>>,
        size: u64,
    ) -> Result<Upload> {
        let part_bytes = self.single_put_max().max(size.div_ceil(PARTS_MAX));
        let path = self.path(name);
        let attributes = self.attributes(kind.into());
        let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
        self.check_window("write", name)?;
        self.count_write();
        let begin = self.parts().resuming.put_multipart_opts(&path, options);
        let (begun, exchange) = watched_by(self.try_rules(), begin).await;
        let upload = begun.map_err(|error| self.failed("write", name, error, &exchange))?;
        Ok(Upload {
            store: self.clone(),
            name: name.to_owned(),
            parts: Some(upload),
            part_bytes: usize::try_from(part_bytes).unwrap_or(usize::MAX),
        })
    }
}

/// A large object that is being uploaded.
///
/// The library repeats failed parts. If it gives up, the caller begins the whole object again. An
/// upload that is dropped before it is finished is aborted in the background.
pub struct Upload {
    store: Store,
    name: String,
    /// `None` once the upload is finished or aborted.
    parts: Option<Box<dyn MultipartUpload>>,
    part_bytes: usize,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Upload {
    /// Bytes of each part but the last one.
    pub fn part_bytes(&self) -> usize {
        self.part_bytes
    }

    fn upload(&mut self) -> &mut Box<dyn MultipartUpload> {
        self.parts.as_mut().expect("an upload is consumed by finishing or aborting it")
    }

    /// Uploads the next part.
    pub async fn put_part(&mut self, part: impl IntoIterator<Item = Bytes>) -> Result<()> {
        self.store.check_window("write a part of", &self.name)?;
        let payload: PutPayload = part.into_iter().collect();
        let length = payload.content_length();
        let put = self.upload().put_part(payload);
        let (put, exchange) = watched_by(self.store.try_rules(), put).await;
        put.map_err(|error| self.store.failed("write a part of", &self.name, error, &exchange))?;
        self.store.counters().sent(length);
        Ok(())
    }

    /// Puts the object in its place. After a failure, nothing of the upload is left open: a process
    /// that ends next would have no time to give it up in the background.
    pub async fn finish(mut self) -> Result<Stored> {
        match self.complete().await {
            // Each part was signed by itself, so no hash of the whole is known.
            Ok(stored) => {
                self.parts = None;
                Ok(Stored { etag: self.store.etag_of(stored), sha256: None })
            }
            Err(error) => {
                self.abort().await;
                Err(error)
            }
        }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.store.check_window("write", &self.name)?;
        let store = self.store.clone();
        let (finished, exchange) = watched_by(store.try_rules(), self.upload().complete()).await;
        finished.map_err(|error| store.failed("write", &self.name, error, &exchange))
    }

    /// Gives up: the parts so far are deleted, as far as the store answers. A rule of the bucket
    /// deletes unfinished uploads otherwise.
    pub async fn abort(mut self) {
        if let Some(upload) = self.parts.take() {
            abort(upload, &self.name).await;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(upload) = self.parts.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let name = std::mem::take(&mut self.name);
            runtime.spawn(async move { abort(upload, &name).await });
        }
    }
}

async fn abort(mut upload: Box<dyn MultipartUpload>, name: &str) {
    if let Err(error) = upload.abort().await {
        tracing::warn!(file.name = %name, %error, "failed to abort an upload");
    }
}
