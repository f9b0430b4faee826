//! Packs in a [`Store`]: in a bucket, or in memory for tests that need speed and no durability.
//!
//! Invariants
//! - A pack is one put. There are no uploads in parts, so none to clean up, and no conditional
//!   requests.
//! - Retries, limits and error classification are the store's.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use dormer_stores::{CallPolicy, Counters, OpenError, RemoteSettings, Store};
use futures::TryStreamExt as _;

use crate::contract::{BlobKey, Blobs};
use crate::{Error, Result};

/// Where names of packs begin.
const PACKS: &str = "packs";

/// One page of a listing.
const ENTRIES_SEARCHED_MAX: usize = 1_000;

/// Packs in a store.
#[derive(Debug, Clone)]
pub struct StoreBlobs {
    store: Store,
}

impl StoreBlobs {
    /// Opens a bucket. Nothing is sent to its store yet.
    pub fn open(settings: &RemoteSettings, policy: &CallPolicy) -> std::result::Result<Self, OpenError> {
        Ok(Self::new(Store::open(settings, policy)?))
    }

    /// Keeps packs in this store.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// An empty store in memory.
    pub fn in_memory() -> Self {
        Self::new(Store::in_memory())
    }

    /// The store that the packs are in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether Attic left something below the prefix: `<uuid>.chunk` objects. Looks at one page of
    /// a listing.
    pub async fn holds_attic_chunks(&self) -> Result<bool> {
        self.store.any_of_first("", ENTRIES_SEARCHED_MAX, |name| has_extension(name, "chunk")).await
    }

    /// Whether there are packs below the prefix, written by any installation. Looks at one page of
    /// a listing.
    pub async fn holds_packs(&self) -> Result<bool> {
        self.store.any_of_first(PACKS, ENTRIES_SEARCHED_MAX, |name| has_extension(name, "pack")).await
    }
}

/// An empty store in memory.
impl Default for StoreBlobs {
    fn default() -> Self {
        Self::in_memory()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Blobs for StoreBlobs {
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> Result<()> {
        self.store.put(&key.to_string(), None, parts.iter().cloned()).await.map(|_| ())
    }

    async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        let size = range.end - range.start;
        let bytes = self.get_up_to(key, range).await?;
        if bytes.len() as u64 == size { Ok(bytes) } else { Err(Error::Truncated { key: key.to_string() }) }
    }

    async fn get_up_to(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        self.store.get_up_to(&key.to_string(), range).await
    }

    async fn head(&self, key: &BlobKey) -> Result<u64> {
        let key = key.to_string();
        match self.store.head(&key).await? {
            Some(meta) => Ok(meta.size),
            None => Err(Error::NotFound { key }),
        }
    }

    async fn delete(&self, key: &BlobKey) -> Result<()> {
        self.store.delete(&key.to_string()).await
    }

    async fn list(&self) -> Result<Vec<BlobKey>> {
        let entries = self.store.list("");
        entries.try_filter_map(|entry| async move { Ok(BlobKey::parse(&entry.name)) }).try_collect().await
    }

    fn is_remote(&self) -> bool {
        self.store.is_remote()
    }

    fn counters(&self) -> Option<&Counters> {
        self.is_remote().then(|| &**self.store.counters())
    }
}

/// Whether a file's name ends with an extension. Names of stores are case-sensitive.
fn has_extension(name: &str, extension: &str) -> bool {
    std::path::Path::new(name).extension().is_some_and(|found| found == extension)
}

#[cfg(test)]
mod tests {
    use dormer_stores::RetryPolicy;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn memory_meets_the_contract_with_and_without_a_policy() {
        crate::conformance::run(&StoreBlobs::in_memory()).await;
        let policy = CallPolicy { retries: RetryPolicy::default(), requests_max: Some(3), turn_wait: None };
        crate::conformance::run(&StoreBlobs::new(Store::in_memory().with_policy(&policy))).await;
    }
}
