//! Trees of named files as publishing still sees them: a trait over [`Store`] and a tree in memory
//! that remembers events.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use dormer_stores::{Store, Upload};

use crate::{FileEntry, FileKind, Result, Stored};

/// Files listed together.
const PAGE: usize = 10_000;

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
    /// The first `limit` files whose names begin with `<folder>/` and come after `after`, in the
    /// order of their names' bytes.
    async fn list_page(&self, folder: &str, after: Option<&str>, limit: usize) -> Result<Vec<FileEntry>>;
    /// Gives every file whose name begins with `<folder>/` to `found`, in the order of names.
    async fn list(&self, folder: &str, found: &mut (dyn FnMut(FileEntry) + Send)) -> Result<()> {
        let mut after: Option<String> = None;
        loop {
            let page = self.list_page(folder, after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.name.clone());
            page.into_iter().for_each(&mut *found);
        }
    }
    /// Deletes what writes that never finished left below `<folder>/`, a day after. Returns the
    /// number of deleted files.
    async fn delete_abandoned(&self, folder: &str) -> Result<u64>;
    /// Whether this file, which is there, can be read without credentials; `None` if that cannot be
    /// told.
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

#[async_trait]
impl Files for Store {
    fn location(&self) -> String {
        self.location().to_owned()
    }

    fn single_put_max(&self) -> u64 {
        self.single_put_max()
    }

    async fn put(&self, name: &str, kind: &FileKind, parts: Vec<Bytes>) -> Result<Stored> {
        self.put(name, kind, parts).await
    }

    async fn begin_upload(&self, name: &str, kind: &FileKind, size: u64) -> Result<Box<dyn FileUpload>> {
        Ok(Box::new(self.begin_upload(name, kind, size).await?))
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        self.get(name).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.delete(name).await
    }

    async fn list_page(&self, folder: &str, after: Option<&str>, limit: usize) -> Result<Vec<FileEntry>> {
        self.list_page(folder, after, limit).await
    }

    async fn delete_abandoned(&self, folder: &str) -> Result<u64> {
        self.delete_abandoned(folder).await
    }

    async fn is_public(&self, name: &str) -> Result<Option<bool>> {
        self.is_public(name).await
    }

    fn requests(&self) -> (u64, u64) {
        self.requests()
    }
}

#[async_trait]
impl FileUpload for Upload {
    fn part_bytes(&self) -> usize {
        self.part_bytes()
    }

    async fn put_part(&mut self, part: Vec<Bytes>) -> Result<()> {
        self.put_part(part).await
    }

    async fn finish(self: Box<Self>) -> Result<Stored> {
        (*self).finish().await
    }

    async fn abort(self: Box<Self>) {
        (*self).abort().await;
    }
}

/// Something that changed the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileEvent {
    /// A file was written, with this content.
    Put(String, Bytes),
    /// A file was deleted.
    Delete(String),
}

/// A tree of files in memory.
#[derive(Debug)]
pub struct MemoryFiles {
    location: String,
    single_put_max: u64,
    inner: Arc<Mutex<Inner>>,
    public: bool,
}

impl Default for MemoryFiles {
    fn default() -> Self {
        Self::at("memory")
    }
}

#[derive(Debug, Default)]
struct Inner {
    files: BTreeMap<String, Bytes>,
    events: Vec<FileEvent>,
    listings: u64,
}

impl MemoryFiles {
    /// An empty tree that nobody else can read.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty tree that says that it is there.
    pub fn at(location: &str) -> Self {
        let location = location.to_owned();
        Self { location, single_put_max: u64::MAX, inner: Arc::default(), public: false }
    }

    /// An empty tree that takes files over so many bytes in parts of as many.
    pub fn in_parts_of(bytes: u64) -> Self {
        Self { single_put_max: bytes, ..Self::default() }
    }

    /// An empty tree that anybody can read.
    pub fn readable_by_anybody() -> Self {
        Self { public: true, ..Self::default() }
    }

    /// All files.
    pub fn files(&self) -> BTreeMap<String, Bytes> {
        self.lock().files.clone()
    }

    /// What was done so far.
    pub fn events(&self) -> Vec<FileEvent> {
        self.lock().events.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    // No code panics half-way through a change, so a poisoned map is whole.
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn put(&mut self, name: &str, content: Bytes) -> Stored {
        let stored = Stored { etag: Some(etag(&content)), sha256: None };
        self.events.push(FileEvent::Put(name.to_owned(), content.clone()));
        self.files.insert(name.to_owned(), content);
        stored
    }
}

fn etag(content: &Bytes) -> String {
    format!(
        "\"{:x}-{:x}\"",
        content.len(),
        content.iter().fold(5_381_u64, |hash, byte| { hash.wrapping_mul(33) ^ u64::from(*byte) })
    )
}

#[async_trait]
impl Files for MemoryFiles {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn single_put_max(&self) -> u64 {
        self.single_put_max
    }

    async fn put(&self, name: &str, _kind: &FileKind, parts: Vec<Bytes>) -> Result<Stored> {
        Ok(self.lock().put(name, Bytes::from(parts.concat())))
    }

    async fn begin_upload(&self, name: &str, _kind: &FileKind, _size: u64) -> Result<Box<dyn FileUpload>> {
        let part_bytes = usize::try_from(self.single_put_max).unwrap_or(usize::MAX);
        let inner = Arc::clone(&self.inner);
        Ok(Box::new(MemoryUpload { inner, name: name.to_owned(), part_bytes, parts: Vec::new() }))
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        Ok(self.lock().files.get(name).cloned())
    }

    async fn delete(&self, name: &str) -> Result<()> {
        let mut inner = self.lock();
        inner.events.push(FileEvent::Delete(name.to_owned()));
        inner.files.remove(name);
        Ok(())
    }

    async fn list_page(&self, folder: &str, after: Option<&str>, limit: usize) -> Result<Vec<FileEntry>> {
        let mut inner = self.lock();
        inner.listings += 1;
        let prefix = format!("{folder}/");
        let files = inner.files.iter().filter(|(name, _)| name.starts_with(&prefix));
        Ok(files
            .filter(|(name, _)| after.is_none_or(|after| name.as_str() > after))
            .take(limit)
            .map(|(name, content)| FileEntry {
                name: name.clone(),
                size: content.len() as u64,
                etag: Some(etag(content)),
            })
            .collect())
    }

    async fn delete_abandoned(&self, _folder: &str) -> Result<u64> {
        Ok(0)
    }

    async fn is_public(&self, _name: &str) -> Result<Option<bool>> {
        Ok(Some(self.public))
    }

    fn requests(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.events.len() as u64, inner.listings)
    }
}

#[derive(Debug)]
struct MemoryUpload {
    inner: Arc<Mutex<Inner>>,
    name: String,
    part_bytes: usize,
    parts: Vec<Bytes>,
}

#[async_trait]
impl FileUpload for MemoryUpload {
    fn part_bytes(&self) -> usize {
        self.part_bytes
    }

    async fn put_part(&mut self, part: Vec<Bytes>) -> Result<()> {
        self.parts.extend(part);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<Stored> {
        Ok(lock(&self.inner).put(&self.name, Bytes::from(self.parts.concat())))
    }

    async fn abort(self: Box<Self>) {}
}
