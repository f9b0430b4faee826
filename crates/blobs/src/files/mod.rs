//! Trees of named files: what is published to. Another contract than [`Blobs`](crate::Blobs): names are text, files carry a
//! media type, and some are overwritten.
//!
//! - `put` is atomic: a reader sees the whole old file or the whole new one. After `Ok` it survives a crash; after `Err` the
//!   new one may be there, whole, or come a moment later.
//! - A file over [`Files::single_put_max`] is uploaded in parts; it is there when the upload is finished, and not before.
//! - Nothing on a hot path lists.

mod folder;
mod memory;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use crate::Result;

pub use folder::FolderFiles;
pub use memory::{FileEvent, MemoryFiles};

/// What a file is, for those who serve it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileKind {
    /// `Content-Type`.
    pub content_type: &'static str,
    /// `Cache-Control`.
    pub cache_control: String,
}

/// A file that was found by a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// What the store says of its content.
    pub etag: Option<String>,
}

/// What the store said of a file that was written: compared with what a listing says later.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    /// The store's tag of its content.
    pub etag: Option<String>,
    /// SHA-256 of the whole file, where the request was signed over it. Whoever wants it anyway need not hash again.
    pub sha256: Option<[u8; 32]>,
}

/// A tree of files.
#[async_trait]
pub trait Files: Send + Sync + fmt::Debug + 'static {
    /// Where it is, for people, without secrets.
    fn location(&self) -> String;
    /// Largest file that one `put` takes, in bytes.
    fn single_put_max(&self) -> u64;
    /// Writes a file made of these parts.
    async fn put(&self, name: &str, kind: &FileKind, parts: Vec<Bytes>) -> Result<Stored>;
    /// Begins a large file of `size` bytes.
    async fn begin_upload(&self, name: &str, kind: &FileKind, size: u64) -> Result<Box<dyn FileUpload>>;
    /// Reads a small file; `None` if it is not there.
    async fn get(&self, name: &str) -> Result<Option<Bytes>>;
    /// Deletes a file. Deleting what is not there is `Ok`.
    async fn delete(&self, name: &str) -> Result<()>;
    /// Gives every file whose name begins with `<folder>/` to `found`, in no order.
    async fn list(&self, folder: &str, found: &mut (dyn FnMut(FileEntry) + Send)) -> Result<()>;
    /// Whether this file, which is there, can be read without credentials; `None` if that cannot be told.
    async fn is_public(&self, name: &str) -> Result<Option<bool>>;
    /// Requests made so far, listings apart: (writes and deletions, listings).
    fn requests(&self) -> (u64, u64);
}

/// A large file that is being uploaded.
#[async_trait]
pub trait FileUpload: Send + fmt::Debug {
    /// Bytes of each part but the last one.
    fn part_bytes(&self) -> usize;
    /// Uploads the next part.
    async fn put_part(&mut self, part: Vec<Bytes>) -> Result<()>;
    /// Puts the file in its place.
    async fn finish(self: Box<Self>) -> Result<Stored>;
    /// Gives up; what was uploaded goes.
    async fn abort(self: Box<Self>);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test]
    async fn trees_meet_the_contract() {
        conformance::files::run(&MemoryFiles::new()).await;
        conformance::files::run(&MemoryFiles::in_parts_of(1024 * 1024)).await;
        let folder = tempfile::tempdir().unwrap();
        conformance::files::run(&FolderFiles::open(folder.path().join("a/b")).unwrap()).await;
    }
}
