//! Small reads over a network: the block around them is fetched, and kept for a while.
//!
//! Half of the NARs of a closure are smaller than 5 KiB and were pushed together, so they lie side by side in few packs, and they are
//! fetched together too. A request for each would cost more than all of their bytes.
//!
//! Invariants
//! - What is handed out is a copy: nobody's slice keeps a block alive, so no more than [`BLOCKS_BYTES_MAX`] is kept.
//! - Blocks are bytes, not chunks: who reads compares checksums, whether a block is fresh or not. Packs never change, and their
//!   names are never used twice, so that a kept block is never of something else.
//! - Who asks for a block that another one is fetching waits for that one.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use dormer_blobs::{BlobKey, Blobs};
use dormer_format::PackId;
use moka::future::Cache;

use crate::PACK_PROOF;

/// What is fetched at once: about 1 ms at 100 MB/s, against 10 to 50 for a request. Blocks lie side by side from a pack's first byte on.
pub(super) const BLOCK_BYTES: u64 = 128 * 1024;

/// Largest read that is made out of a block.
const SMALL_BYTES_MAX: u64 = 32 * 1024;

/// Memory for blocks that are kept: two packs' worth of small NARs for a closure of a hundred packs.
pub(crate) const BLOCKS_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Whether a read is made out of a block.
pub(super) fn is_small(bytes: &Range<u64>) -> bool {
    bytes.end - bytes.start <= SMALL_BYTES_MAX && bytes.start / BLOCK_BYTES == (bytes.end - 1) / BLOCK_BYTES
}

/// The blocks that are kept.
#[derive(Debug)]
pub(crate) struct SmallReads {
    blocks: Cache<(PackId, u64), Bytes>,
}

impl SmallReads {
    pub(crate) fn new() -> Self {
        let weight = |_: &(PackId, u64), block: &Bytes| u32::try_from(block.len() + 128).unwrap_or(u32::MAX);
        let blocks = Cache::builder()
            .max_capacity(BLOCKS_BYTES_MAX)
            .weigher(weight)
            // What is served from a block counts as a proof that its pack is there.
            .time_to_live(PACK_PROOF)
            .build();
        Self { blocks }
    }

    /// Reads a small range, exactly, from what is kept or through its block.
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
        let place = |position: u64| usize::try_from(position - block_start).expect("it lies in the block");
        let wanted = block.get(place(bytes.start)..place(bytes.end));
        let wanted = wanted.ok_or_else(|| dormer_blobs::Error::Truncated { key: key.to_string() })?;
        Ok(Bytes::copy_from_slice(wanted))
    }

    /// Forgets a block whose bytes turned out to be wrong.
    pub(super) async fn forget(&self, pack: PackId, bytes: &Range<u64>) {
        self.blocks.invalidate(&(pack, bytes.start / BLOCK_BYTES * BLOCK_BYTES)).await;
    }
}

/// Everybody who waited for a block gets the error of the one who fetched it.
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

/// An error of somebody else's call.
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
        (0..len).map(|place| (place * 31 % 251).to_le_bytes()[0]).collect()
    }

    #[tokio::test]
    async fn neighbours_cost_one_request_also_when_they_are_asked_for_at_once() {
        let (store, small) = (Counted::default(), SmallReads::new());
        let whole = bytes(200_000);
        store.put(&BlobKey::Pack(pack(1)), std::slice::from_ref(&whole)).await.unwrap();
        let read = |start: u64| small.read(&store, pack(1), start..start + 1_000);
        let at_once = futures::future::try_join_all((0..20).map(|n| read(n * 5_000))).await.unwrap();
        for (n, got) in at_once.iter().enumerate() {
            assert_eq!(*got, whole[n * 5_000..n * 5_000 + 1_000]);
        }
        assert_eq!(store.reads.load(Ordering::SeqCst), 1);
        // The last block ends with the pack.
        assert_eq!(read(199_000).await.unwrap(), whole[199_000..]);
        assert_eq!(store.reads.load(Ordering::SeqCst), 2);
        assert!(matches!(read(199_500).await, Err(Error::Truncated { .. })));
        small.forget(pack(1), &(10..20)).await;
        read(0).await.unwrap();
        assert_eq!(store.reads.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_failure_is_everybodys_and_is_not_kept() {
        let (store, small) = (Counted::default(), SmallReads::new());
        store.put(&BlobKey::Pack(pack(1)), &[bytes(1_000)]).await.unwrap();
        store.is_away.store(true, Ordering::SeqCst);
        let (a, b) = tokio::join!(small.read(&store, pack(1), 0..10), small.read(&store, pack(1), 20..30));
        assert!(matches!(a, Err(Error::Unavailable { .. })), "{a:?}");
        assert!(matches!(b, Err(Error::Unavailable { .. })), "{b:?}");
        store.is_away.store(false, Ordering::SeqCst);
        assert_eq!(small.read(&store, pack(1), 20..30).await.unwrap(), bytes(1_000)[20..30]);
        let missing = small.read(&store, pack(2), 0..10).await;
        assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
    }

    #[tokio::test]
    async fn no_more_is_kept_than_there_is_memory_for() {
        let (store, small) = (Counted::default(), SmallReads::new());
        for number in 0..100 {
            store.put(&BlobKey::Pack(pack(number)), &[bytes(150_000)]).await.unwrap();
            small.read(&store, pack(number), 5..6).await.unwrap();
        }
        small.blocks.run_pending_tasks().await;
        assert!(small.blocks.weighted_size() <= BLOCKS_BYTES_MAX);
        assert!(small.blocks.entry_count() > 20);
    }

    #[test]
    fn a_read_is_small_if_one_block_holds_it() {
        assert!(is_small(&(0..SMALL_BYTES_MAX)));
        assert!(!is_small(&(0..SMALL_BYTES_MAX + 1)));
        assert!(is_small(&(BLOCK_BYTES - 1..BLOCK_BYTES)));
        assert!(!is_small(&(BLOCK_BYTES - 1..BLOCK_BYTES + 1)));
    }
}
