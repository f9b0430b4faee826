//! A NAR as a push by chunks sends it.

use bytes::Bytes;
use dormer_format::{
    ChunkParams, Chunker, Encoder, NarManifest, PACK_TRAILER_BYTES, PackBuilder, PackId, RawChunk,
    RecipeBuilder, StoredChunk, read_trailer,
};

/// A NAR in chunks.
#[derive(Debug, Clone)]
pub struct ChunkedNar {
    /// Its chunks, in order.
    pub chunks: Vec<RawChunk>,
    /// How it is made of them.
    pub manifest: NarManifest,
}

impl ChunkedNar {
    /// Cuts a NAR as a server with these settings does.
    pub fn cut(nar: &[u8], params: ChunkParams) -> Self {
        let mut chunks = Vec::new();
        let mut chunker = Chunker::new(params, "/nix/store");
        chunker.push(nar, &mut chunks);
        chunker.finish(&mut chunks);
        Self::of(chunks)
    }

    /// These chunks, however they were cut.
    pub fn of(chunks: Vec<RawChunk>) -> Self {
        let mut fills = RecipeBuilder::new();
        for fill in chunks.iter().flat_map(|chunk| &chunk.fills) {
            fills.push_fill(fill);
        }
        let ids = chunks.iter().map(RawChunk::id).collect();
        Self { chunks, manifest: NarManifest { chunks: ids, fills: fills.finish() } }
    }

    /// All chunks, compressed.
    pub fn stored(&self, level: i32) -> Vec<StoredChunk> {
        let mut encoder = Encoder::new(level).expect("a level of zstd");
        self.chunks.iter().map(|chunk| encoder.encode(chunk).expect("a chunk that was cut")).collect()
    }

    /// All chunks in one part.
    pub fn part(&self, level: i32) -> ([u8; 32], Bytes) {
        part_of(self.stored(level))
    }
}

/// A part of these chunks, with its digest. The same chunks make the same part.
pub fn part_of(chunks: impl IntoIterator<Item = StoredChunk>) -> ([u8; 32], Bytes) {
    let mut pack = PackBuilder::new(PackId::from_bytes([7; 16]));
    for chunk in chunks {
        pack.add(chunk);
    }
    let bytes = pack.finish().parts.concat();
    (digest_of(&bytes), bytes.into())
}

/// The digest in the trailer of a part.
pub fn digest_of(part: &[u8]) -> [u8; 32] {
    let trailer: &[u8; PACK_TRAILER_BYTES] = part.last_chunk().expect("a pack has a trailer");
    read_trailer(trailer, part.len() as u64).expect("a pack has a sound trailer").hash
}
