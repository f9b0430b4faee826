//! A store that does not do all that it is asked for, as under an object lock, on a disk with bad
//! sectors, or when it is full.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormer_blobs::{BlobKey, Blobs, Error, Result};

use crate::collect::Lab;

#[derive(Debug)]
pub(crate) struct OddStore {
    inner: Arc<dyn Blobs>,
    kept: Mutex<HashSet<BlobKey>>,
    deletions: Mutex<Vec<BlobKey>>,
    refuses_puts: AtomicBool,
    refuses_lists: AtomicBool,
    puts: AtomicUsize,
    lists: AtomicUsize,
    bad_sector: Mutex<Option<(BlobKey, u64)>>,
    pause: Duration,
}

impl OddStore {
    pub(crate) fn new(lab: &Lab) -> Arc<Self> {
        Self::over(&lab.installation.blobs)
    }

    pub(crate) fn over(store: &Arc<dyn Blobs>) -> Arc<Self> {
        Self::slow(store, Duration::ZERO)
    }

    /// Each request but a listing takes so long.
    pub(crate) fn slow(store: &Arc<dyn Blobs>, pause: Duration) -> Arc<Self> {
        Arc::new(Self {
            pause,
            inner: Arc::clone(store),
            bad_sector: Mutex::default(),
            kept: Mutex::default(),
            deletions: Mutex::default(),
            refuses_puts: AtomicBool::new(false),
            refuses_lists: AtomicBool::new(false),
            puts: AtomicUsize::new(0),
            lists: AtomicUsize::new(0),
        })
    }

    /// From now on these objects cannot be deleted, and no others.
    pub(crate) fn keep(&self, objects: impl IntoIterator<Item = BlobKey>) {
        *lock(&self.kept) = objects.into_iter().collect();
    }

    pub(crate) fn refuse_puts(&self, refuses: bool) {
        self.refuses_puts.store(refuses, Ordering::SeqCst);
    }

    pub(crate) fn refuse_lists(&self, refuses: bool) {
        self.refuses_lists.store(refuses, Ordering::SeqCst);
    }

    /// No read of this byte succeeds.
    pub(crate) fn break_at(&self, key: BlobKey, byte: u64) {
        *lock(&self.bad_sector) = Some((key, byte));
    }

    /// The objects that were to be deleted, in order.
    pub(crate) fn deletions(&self) -> Vec<BlobKey> {
        lock(&self.deletions).clone()
    }

    /// How many objects were to be stored.
    pub(crate) fn puts(&self) -> usize {
        self.puts.load(Ordering::SeqCst)
    }

    pub(crate) fn lists(&self) -> usize {
        self.lists.load(Ordering::SeqCst)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(attempt: &'static str, key: &str) -> Error {
    let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    Error::Io { attempt, key: key.to_owned(), source }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Blobs for OddStore {
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> Result<()> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        if self.refuses_puts.load(Ordering::SeqCst) {
            return Err(refused("store", &key.to_string()));
        }
        tokio::time::sleep(self.pause).await;
        self.inner.put(key, parts).await
    }
    async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        let bad = *lock(&self.bad_sector);
        if bad.is_some_and(|(bad, byte)| bad == *key && range.contains(&byte)) {
            let source = std::io::Error::from_raw_os_error(5);
            return Err(Error::Io { attempt: "read", key: key.to_string(), source });
        }
        tokio::time::sleep(self.pause).await;
        self.inner.get_range(key, range).await
    }
    async fn get_up_to(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        self.inner.get_up_to(key, range).await
    }
    async fn head(&self, key: &BlobKey) -> Result<u64> {
        self.inner.head(key).await
    }
    async fn delete(&self, key: &BlobKey) -> Result<()> {
        lock(&self.deletions).push(*key);
        if lock(&self.kept).contains(key) {
            return Err(refused("delete", &key.to_string()));
        }
        tokio::time::sleep(self.pause).await;
        self.inner.delete(key).await
    }
    async fn list(&self) -> Result<Vec<BlobKey>> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        if self.refuses_lists.load(Ordering::SeqCst) {
            return Err(refused("list", "packs/"));
        }
        self.inner.list().await
    }
    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }
    fn counters(&self) -> Option<&dormer_blobs::Counters> {
        self.inner.counters()
    }
}
