//! Recompression: stores the chunks of cold packs in fewer bytes, at a higher zstd level.
//!
//! A cold pack is rewritten like one with many dead chunks ([`super::compact`]), but its chunks
//! get new frames on the way. A chunk's id and number stay, so recipes stay. Its checksum and
//! layout change, so the tags of the NARs that need it change too, when they are opened next, as
//! after healing.
//!
//! Invariants
//! - A chunk gets new frames only if its old ones decode to the bytes of its id, and only if the
//!   new ones are fewer bytes.
//! - Every pack remembers the level that its chunks were compressed at, also one that a new pack
//!   would not make smaller. So no pack is recompressed twice at one level.
//! - One thread works, and pauses four times as long.

use bytes::Bytes;
use dormer_format::{Decoder, Encoder, RawChunk, StoredChunk};
use dormer_index::{ChunkRow, UnixSeconds};

use super::collection_run::CollectionRun;
use crate::cpu::blocking;
use crate::pace::pause_after;
use crate::{Error, Result};

/// Stored bytes that one collection recompresses at most, so that other jobs get their turn.
pub(super) const RUN_BYTES_MAX: u64 = 256 << 20;

/// Raw bytes that are recompressed between two looks at the lease.
const BATCH_BYTES: u64 = 2 << 20;

/// A new pack is worth its place only if it saves at least one byte in so many.
const WORTH_ONE_IN: u64 = 100;

/// What is recompressed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recompression {
    /// The zstd level.
    pub(crate) level: u8,
    /// Packs that were stored, and used by a commit for the last time, before this time are cold.
    pub(crate) cold_before: UnixSeconds,
}

/// Whether new packs of `new` bytes are worth writing in place of `old` bytes.
pub(super) fn is_worth(old: u64, new: u64) -> bool {
    old.saturating_sub(new) * WORTH_ONE_IN >= old.max(1)
}

/// The contexts of a recompression; they serve one chunk after the other.
pub(super) struct Recompressor {
    encoder: Encoder,
    decoder: Decoder,
}

impl Recompressor {
    pub(super) fn new(level: u8) -> Result<Self> {
        let encoder = Encoder::new(i32::from(level)).map_err(Error::Encode)?;
        let decoder = Decoder::new().map_err(Error::Encode)?;
        Ok(Self { encoder, decoder })
    }

    /// The chunk in fewer bytes, or as it is stored.
    fn shrink(&mut self, row: &ChunkRow, bytes: Bytes) -> StoredChunk {
        let shrunk = self.encode(row, &bytes);
        match shrunk {
            Some(shrunk) if shrunk.bytes.len() < bytes.len() => shrunk,
            _ => as_stored(row, bytes),
        }
    }

    /// The chunk in new frames. `None` if the old ones are not those of its id: they stay for a
    /// scrub to find.
    fn encode(&mut self, row: &ChunkRow, bytes: &[u8]) -> Option<StoredChunk> {
        let raw = self.decoder.decode_blanked(bytes, &row.layout).ok()?;
        let chunk = RawChunk { bytes: raw, holes: row.layout.holes.clone(), fills: Vec::new() };
        if chunk.id() != row.id {
            return None;
        }
        self.encoder.encode_as(row.id, &chunk).ok()
    }
}

/// The chunk as it is stored.
pub(super) fn as_stored(row: &ChunkRow, bytes: Bytes) -> StoredChunk {
    StoredChunk { id: row.id, layout: row.layout.clone(), checksum: row.checksum, bytes }
}

/// Recompresses chunks, in batches. Returns the contexts too, for the next ones.
pub(super) async fn recompress(
    collection: &mut CollectionRun<'_>,
    mut recompressor: Recompressor,
    chunks: Vec<(ChunkRow, Bytes)>,
) -> Result<(Recompressor, Vec<StoredChunk>)> {
    let mut done = Vec::with_capacity(chunks.len());
    let mut rest = chunks.into_iter().peekable();
    while rest.peek().is_some() {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES
            && let Some(chunk) = rest.next()
        {
            bytes += u64::from(chunk.0.layout.raw_len);
            batch.push(chunk);
        }
        let begun = std::time::Instant::now();
        let work = move || {
            let shrunk: Vec<StoredChunk> =
                batch.into_iter().map(|(row, bytes)| recompressor.shrink(&row, bytes)).collect();
            (recompressor, shrunk)
        };
        let (back, shrunk) = blocking(work).await;
        recompressor = back;
        done.extend(shrunk);
        collection.keep().await?;
        tokio::time::sleep(pause_after(begun.elapsed())).await;
    }
    Ok((recompressor, done))
}

#[cfg(test)]
mod tests {
    use dormer_format::{ChunkLayout, PackId};
    use dormer_index::PackNumber;

    use super::*;

    fn row(stored: &StoredChunk) -> ChunkRow {
        ChunkRow {
            number: 1,
            id: stored.id,
            pack: PackNumber(1),
            pack_id: PackId::from_bytes([1; 16]),
            offset: 32,
            layout: stored.layout.clone(),
            checksum: stored.checksum,
        }
    }

    #[test]
    fn a_chunk_gets_fewer_bytes_or_stays_as_it_is() {
        let words = (0..20_000_u32).flat_map(|n| format!("{} ", n.wrapping_mul(n) % 977).into_bytes());
        let mut bytes: Vec<u8> = words.collect();
        bytes[100..132].fill(b'e');
        let chunk = RawChunk { bytes: bytes.clone(), holes: vec![100], fills: Vec::new() };
        let fast = Encoder::new(1).unwrap().encode(&chunk).unwrap();
        let mut recompressor = Recompressor::new(19).unwrap();
        let small = recompressor.shrink(&row(&fast), fast.bytes.clone());
        assert!(small.bytes.len() < fast.bytes.len());
        assert_eq!((small.id, small.layout.raw_len), (fast.id, fast.layout.raw_len));
        assert_eq!(small.checksum, dormer_format::checksum(&small.bytes));
        let decoded = Decoder::new().unwrap().decode_blanked(&small.bytes, &small.layout).unwrap();
        assert_eq!(decoded, bytes);

        assert_eq!(recompressor.shrink(&row(&small), small.bytes.clone()), small, "nothing is gained");
        let other = ChunkRow { id: dormer_format::ChunkId::from_bytes([0; 32]), ..row(&fast) };
        assert_eq!(recompressor.shrink(&other, fast.bytes.clone()), as_stored(&other, fast.bytes.clone()));
        let layout = ChunkLayout { raw_len: 7, ..fast.layout.clone() };
        let broken = ChunkRow { layout, ..row(&fast) };
        assert_eq!(recompressor.shrink(&broken, fast.bytes.clone()), as_stored(&broken, fast.bytes));
    }

    #[test]
    fn a_pack_is_worth_a_new_one_for_a_hundredth() {
        assert!(is_worth(1_000, 990) && is_worth(1_000, 1));
        assert!(!is_worth(1_000, 991) && !is_worth(1_000, 1_000) && !is_worth(0, 0));
    }
}
