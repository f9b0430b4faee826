//! An object store in memory: for tests that need speed, not durability.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::contract::{BlobKey, Blobs};
use crate::{Error, Result};

/// An object store in memory.
#[derive(Debug, Default)]
pub struct MemoryBlobs {
    objects: Mutex<HashMap<BlobKey, Bytes>>,
}

impl MemoryBlobs {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn objects(&self) -> MutexGuard<'_, HashMap<BlobKey, Bytes>> {
        // No code panics half-way through a change, so a poisoned map is whole.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &BlobKey) -> Result<Bytes> {
        self.objects().get(key).cloned().ok_or_else(|| Error::NotFound { key: key.to_string() })
    }
}

#[async_trait]
impl Blobs for MemoryBlobs {
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> Result<()> {
        let object = parts.concat().into();
        self.objects().insert(*key, object);
        Ok(())
    }

    async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        let object = self.get(key)?;
        match (usize::try_from(range.start), usize::try_from(range.end)) {
            (Ok(start), Ok(end)) if end <= object.len() => Ok(object.slice(start..end)),
            _ => Err(Error::Truncated { key: key.to_string() }),
        }
    }

    async fn head(&self, key: &BlobKey) -> Result<u64> {
        Ok(self.get(key)?.len() as u64)
    }

    async fn delete(&self, key: &BlobKey) -> Result<()> {
        self.objects().remove(key);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<BlobKey>> {
        Ok(self.objects().keys().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_meets_the_contract() {
        crate::conformance::run(&MemoryBlobs::new()).await;
    }
}
