//! Encoding tags: a short name for the exact bytes that are served for a NAR.
//!
//! Layer: format (pure). Byte table: docs/STORAGE.md, "Encoding tag".
//!
//! Invariants
//! - Equal tags mean equal served bytes: chunk ids fix the contents of the frames, layouts their
//!   lengths, checksums the compressed bytes themselves, and fills the holes.
//! - Chunks and fills are hashed separately, because ingest knows fills before it knows checksums.
//!   Only the order within each of the two matters.

use crate::ids::{ChunkId, EncodingTag, HoleFill};
use crate::layout::ChunkLayout;

/// BLAKE3 contexts. No other use of BLAKE3 gives these digests.
const CONTEXT_CHUNKS: &str = "dormer 2026 encoding tag v1, chunks";
const CONTEXT_FILLS: &str = "dormer 2026 encoding tag v1, fills";
const CONTEXT_TAG: &str = "dormer 2026 encoding tag v1, tag";

/// Computes the tag of one NAR.
#[derive(Debug, Clone)]
pub struct TagBuilder {
    chunks: blake3::Hasher,
    fills: blake3::Hasher,
    /// Layout bytes of the current chunk. The buffer keeps its capacity.
    scratch: Vec<u8>,
}

impl Default for TagBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl TagBuilder {
    /// Starts the tag of one NAR.
    pub fn new() -> Self {
        Self {
            chunks: blake3::Hasher::new_derive_key(CONTEXT_CHUNKS),
            fills: blake3::Hasher::new_derive_key(CONTEXT_FILLS),
            scratch: Vec::new(),
        }
    }

    /// Adds the next chunk of the NAR.
    pub fn push_chunk(&mut self, id: &ChunkId, checksum: u64, layout: &ChunkLayout) {
        // A layout marks its own end, so no two sequences of chunks give the same input.
        self.scratch.clear();
        self.scratch.extend_from_slice(id.as_bytes());
        self.scratch.extend_from_slice(&checksum.to_le_bytes());
        layout.encode_to(&mut self.scratch);
        self.chunks.update(&self.scratch);
    }

    /// Adds the next fill of the NAR.
    pub fn push_fill(&mut self, fill: &HoleFill) {
        self.fills.update(fill.as_bytes());
    }

    /// Finishes the tag.
    pub fn finish(self) -> EncodingTag {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT_TAG);
        hasher.update(self.chunks.finalize().as_bytes());
        hasher.update(self.fills.finalize().as_bytes());
        let mut tag = [0; 16];
        hasher.finalize_xof().fill(&mut tag);
        EncodingTag::from_bytes(tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Chunk = (ChunkId, u64, ChunkLayout);

    fn chunk(id: u8, checksum: u64, frames: &[u32]) -> Chunk {
        let holes = (1..frames.len()).map(|hole| u32::try_from(hole).unwrap() * 50).collect();
        (
            ChunkId::from_bytes([id; 32]),
            checksum,
            ChunkLayout { raw_len: 1000, holes, frames: frames.to_vec() },
        )
    }

    fn fill(character: u8) -> HoleFill {
        HoleFill::from_bytes([character; 32]).unwrap()
    }

    fn tag(chunks: &[Chunk], fills: &[HoleFill]) -> EncodingTag {
        let mut builder = TagBuilder::new();
        for (id, checksum, layout) in chunks {
            builder.push_chunk(id, *checksum, layout);
        }
        for fill in fills {
            builder.push_fill(fill);
        }
        builder.finish()
    }

    #[test]
    fn everything_that_changes_served_bytes_changes_the_tag() {
        let chunks = [chunk(1, 10, &[20, 30]), chunk(2, 11, &[40])];
        let mut tags = vec![
            tag(&chunks, &[fill(b'0')]),
            tag(&chunks, &[fill(b'1')]),
            tag(&chunks, &[]),
            tag(&chunks, &[fill(b'0'), fill(b'0')]),
            tag(&chunks[..1], &[fill(b'0')]),
            tag(&[chunks[1].clone(), chunks[0].clone()], &[fill(b'0')]),
            tag(&[chunk(3, 10, &[20, 30]), chunks[1].clone()], &[fill(b'0')]),
            tag(&[chunk(1, 12, &[20, 30]), chunks[1].clone()], &[fill(b'0')]),
            tag(&[chunk(1, 10, &[30, 20]), chunks[1].clone()], &[fill(b'0')]),
            tag(&[], &[]),
        ];
        let count = tags.len();
        tags.sort();
        tags.dedup();
        assert_eq!(tags.len(), count);
    }

    #[test]
    fn fills_may_come_before_or_after_their_chunks() {
        let (id, checksum, layout) = chunk(1, 10, &[20, 30]);
        let mut before = TagBuilder::new();
        before.push_fill(&fill(b'0'));
        before.push_chunk(&id, checksum, &layout);
        assert_eq!(before.finish(), tag(&[(id, checksum, layout)], &[fill(b'0')]));
    }
}
