//! Encoding tags: a short name for the exact bytes that are served for a NAR.
//!
//! Layer: format (pure). Byte table: docs/STORAGE.md, "Encoding tag".
//!
//! Invariants
//! - Equal tags mean equal served bytes: chunk ids fix what is in the frames, layouts their lengths, checksums the
//!   compressed bytes themselves, and fills the holes.
//! - Chunks and fills are hashed apart, because ingest knows fills before it knows checksums; only the order within
//!   each of the two matters.

use crate::ids::{ChunkId, EncodingTag, HoleFill};
use crate::layout::ChunkLayout;

/// BLAKE3 contexts: no other use of BLAKE3 gives these digests.
const CONTEXT_CHUNKS: &str = "dormer 2026 encoding tag v1, chunks";
const CONTEXT_FILLS: &str = "dormer 2026 encoding tag v1, fills";
const CONTEXT_TAG: &str = "dormer 2026 encoding tag v1, tag";

/// Computes the tag of one NAR.
#[derive(Debug, Clone)]
pub struct TagBuilder {
    chunks: blake3::Hasher,
    fills: blake3::Hasher,
    /// Layout bytes of the chunk at hand; kept for its capacity.
    scratch: Vec<u8>,
}

impl Default for TagBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl TagBuilder {
    /// Starts a NAR.
    pub fn new() -> Self {
        Self {
            chunks: blake3::Hasher::new_derive_key(CONTEXT_CHUNKS),
            fills: blake3::Hasher::new_derive_key(CONTEXT_FILLS),
            scratch: Vec::new(),
        }
    }

    /// Adds the next chunk of the NAR.
    pub fn push_chunk(&mut self, id: &ChunkId, checksum: u64, layout: &ChunkLayout) {
        // A layout says itself where it ends, so no two sequences of chunks give the same input.
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

    /// Ends the NAR.
    pub fn finish(self) -> EncodingTag {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT_TAG);
        hasher.update(self.chunks.finalize().as_bytes());
        hasher.update(self.fills.finalize().as_bytes());
        let mut tag = [0; 16];
        hasher.finalize_xof().fill(&mut tag);
        EncodingTag::from_bytes(tag)
    }
}
