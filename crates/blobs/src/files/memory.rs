//! A tree of files in memory, which remembers what was done to it in order: for tests of orders.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::{FileEntry, FileKind, FileUpload, Files, Stored};
use crate::Result;

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

    async fn list(&self, folder: &str, found: &mut (dyn FnMut(FileEntry) + Send)) -> Result<()> {
        let mut inner = self.lock();
        inner.listings += 1;
        let prefix = format!("{folder}/");
        for (name, content) in inner.files.iter().filter(|(name, _)| name.starts_with(&prefix)) {
            found(FileEntry { name: name.clone(), size: content.len() as u64, etag: Some(etag(content)) });
        }
        Ok(())
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
