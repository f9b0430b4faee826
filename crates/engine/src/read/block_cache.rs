//! A cache of blocks for small reads over a network: a small read fetches the block around it,
//! which is kept for a while.
//!
//! Half of the NARs of a closure are smaller than 5 KiB and were pushed together. They lie side by
//! side in few packs, and clients fetch them together too. A request for each would cost more than
//! all their bytes.
//!
//! Invariants
//! - Callers get copies: no slice keeps a block alive, so the cache keeps no more than
//!   [`BLOCKS_BYTES_MAX`].
//! - Blocks are bytes, not chunks: the caller compares checksums, whether a block is fresh or not.
//!   Packs never change, and their names are never used twice, so a kept block never holds other
//!   bytes.
//! - A caller that needs a block which another caller is fetching waits for that fetch.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use dormer_blobs::{BlobKey, Blobs};
use dormer_format::PackId;
use moka::future::Cache;

use crate::remembered::PACK_PROOF;

/// Bytes of a block: about 1 ms at 100 MB/s, against 10 to 50 ms for a request. Blocks lie side by
/// side from a pack's first byte on.
pub(super) const BLOCK_BYTES: u64 = 128 * 1024;

/// Largest read that is served from a block.
const SMALL_BYTES_MAX: u64 = 32 * 1024;

/// Memory for kept blocks: the small NARs of two packs for a closure of a hundred packs.
pub(crate) const BLOCKS_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Whether a read is served from a block.
pub(super) fn is_small(bytes: &Range<u64>) -> bool {
    bytes.end - bytes.start <= SMALL_BYTES_MAX && bytes.start / BLOCK_BYTES == (bytes.end - 1) / BLOCK_BYTES
}

/// The kept blocks.
#[derive(Debug)]
pub(crate) struct BlockCache {
    blocks: Cache<(PackId, u64), Bytes>,
}

impl BlockCache {
    pub(crate) fn new() -> Self {
        let weight = |_: &(PackId, u64), block: &Bytes| u32::try_from(block.len() + 128).unwrap_or(u32::MAX);
        let blocks = Cache::builder()
            .max_capacity(BLOCKS_BYTES_MAX)
            .weigher(weight)
            // A read that a block serves counts as a proof that the pack exists.
            .time_to_live(PACK_PROOF)
            .build();
        Self { blocks }
    }

    /// Reads exactly a small range, from a kept block or by fetching its block.
    pub(super) async fn read(
        &self,
        blobs: &dyn Blobs,
        pack: PackId,
        bytes: Range<u64>,
    ) -> dormer_blobs::Result<Bytes> {
        let key = BlobKey::Pack(pack);
        let block_start = bytes.start / BLOCK_BYTES * BLOCK_BYTES;
        let fetch = blobs.get_up_to(&key, block_start..block_start + BLOCK_BYTES);
        let block = self.blocks.try_get_with((pack, block_start), fetch).await.map_err(own)?;
        let in_block = |position: u64| usize::try_from(position - block_start).expect("it lies in the block");
        let wanted = block.get(in_block(bytes.start)..in_block(bytes.end));
        let wanted = wanted.ok_or_else(|| dormer_blobs::Error::Truncated { key: key.to_string() })?;
        Ok(Bytes::copy_from_slice(wanted))
    }

    /// Forgets a block whose bytes turned out to be wrong.
    pub(super) async fn forget(&self, pack: PackId, bytes: &Range<u64>) {
        self.blocks.invalidate(&(pack, bytes.start / BLOCK_BYTES * BLOCK_BYTES)).await;
    }
}

/// All callers that waited for a block get the error of its fetch.
fn own(error: Arc<dormer_blobs::Error>) -> dormer_blobs::Error {
    use dormer_blobs::Error;
    Arc::try_unwrap(error).unwrap_or_else(|shared| match &*shared {
        Error::NotFound { key } => Error::NotFound { key: key.clone() },
        Error::Truncated { key } => Error::Truncated { key: key.clone() },
        Error::Busy { attempt, key, retry_after, .. } => Error::Busy {
            attempt,
            key: key.clone(),
            retry_after: *retry_after,
            source: shared.to_string().into(),
        },
        _ => Error::Unavailable {
            attempt: "read",
            key: "a block".to_owned(),
            source: Box::new(Shared(shared)),
        },
    })
}

/// An error of another caller's fetch.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Shared(Arc<dormer_blobs::Error>);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use dormer_blobs::{Error, Result, StoreBlobs};

    use super::*;

    /// A store in memory that counts reads, and is away if told so.
    #[derive(Debug, Default)]
    struct Counted {
        inner: StoreBlobs,
        reads: AtomicU32,
        is_away: std::sync::atomic::AtomicBool,
    }

    #[async_trait]
    impl Blobs for Counted {
        async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> Result<()> {
            self.inner.put(key, parts).await
        }
        async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
            self.reads.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            if self.is_away.load(Ordering::SeqCst) {
                return Err(Error::Unavailable {
                    attempt: "read",
                    key: key.to_string(),
                    source: "away".into(),
                });
            }
            self.inner.get_range(key, range).await
        }
        async fn head(&self, key: &BlobKey) -> Result<u64> {
            self.inner.head(key).await
        }
        async fn delete(&self, key: &BlobKey) -> Result<()> {
            self.inner.delete(key).await
        }
        async fn list(&self) -> Result<Vec<BlobKey>> {
            self.inner.list().await
        }
    }

    fn pack(number: u8) -> PackId {
        PackId::from_bytes([number; 16])
    }

    fn bytes(len: usize) -> Bytes {
        (0..len).map(|position| (position * 31 % 251).to_le_bytes()[0]).collect()
    }

    #[tokio::test]
    async fn neighbours_cost_one_request_also_when_they_are_asked_for_at_once() {
        let (store, cache) = (Counted::default(), BlockCache::new());
        let whole = bytes(200_000);
        store.put(&BlobKey::Pack(pack(1)), std::slice::from_ref(&whole)).await.unwrap();
        let read = |start: u64| cache.read(&store, pack(1), start..start + 1_000);
        let at_once = futures::future::try_join_all((0..20).map(|n| read(n * 5_000))).await.unwrap();
        for (n, got) in at_once.iter().enumerate() {
            assert_eq!(*got, whole[n * 5_000..n * 5_000 + 1_000]);
        }
        assert_eq!(store.reads.load(Ordering::SeqCst), 1);
        // The last block ends with the pack.
        assert_eq!(read(199_000).await.unwrap(), whole[199_000..]);
        assert_eq!(store.reads.load(Ordering::SeqCst), 2);
        assert!(matches!(read(199_500).await, Err(Error::Truncated { .. })));
        cache.forget(pack(1), &(10..20)).await;
        read(0).await.unwrap();
        assert_eq!(store.reads.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_failure_is_shared_by_all_callers_and_is_not_kept() {
        let (store, cache) = (Counted::default(), BlockCache::new());
        store.put(&BlobKey::Pack(pack(1)), &[bytes(1_000)]).await.unwrap();
        store.is_away.store(true, Ordering::SeqCst);
        let (a, b) = tokio::join!(cache.read(&store, pack(1), 0..10), cache.read(&store, pack(1), 20..30));
        assert!(matches!(a, Err(Error::Unavailable { .. })), "{a:?}");
        assert!(matches!(b, Err(Error::Unavailable { .. })), "{b:?}");
        store.is_away.store(false, Ordering::SeqCst);
        assert_eq!(cache.read(&store, pack(1), 20..30).await.unwrap(), bytes(1_000)[20..30]);
        let missing = cache.read(&store, pack(2), 0..10).await;
        assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
    }

    #[tokio::test]
    async fn the_cache_keeps_no_more_than_its_limit() {
        let (store, cache) = (Counted::default(), BlockCache::new());
        for number in 0..100 {
            store.put(&BlobKey::Pack(pack(number)), &[bytes(150_000)]).await.unwrap();
            cache.read(&store, pack(number), 5..6).await.unwrap();
        }
        cache.blocks.run_pending_tasks().await;
        assert!(cache.blocks.weighted_size() <= BLOCKS_BYTES_MAX);
        assert!(cache.blocks.entry_count() > 20);
    }

    #[test]
    fn a_read_is_small_if_one_block_holds_it() {
        assert!(is_small(&(0..SMALL_BYTES_MAX)));
        assert!(!is_small(&(0..SMALL_BYTES_MAX + 1)));
        assert!(is_small(&(BLOCK_BYTES - 1..BLOCK_BYTES)));
        assert!(!is_small(&(BLOCK_BYTES - 1..BLOCK_BYTES + 1)));
    }
}
