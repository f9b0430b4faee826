//! Parts: packs of chunks that are small enough for one request.

use bytes::Bytes;
use dormer_api::v2::PartDigest;
use dormer_format::{ChunkId, PACK_TRAILER_BYTES, PackBuilder, PackId, StoredChunk, read_trailer};
use rand::Rng as _;

/// Most raw bytes of the chunks of a part, which the server decodes before it answers. It refuses
/// parts of twice as many.
const RAW_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Most chunks of a part. A server takes memory for each.
const CHUNKS_MAX: usize = 4096;

/// A pack that is ready to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// The name of the part.
    pub(crate) digest: PartDigest,
    /// The bytes.
    pub(crate) pieces: Vec<Bytes>,
    /// Number of all bytes.
    pub(crate) size: u64,
    /// The chunks in it.
    pub(crate) chunks: Vec<ChunkId>,
}

/// Collects chunks for parts of at most `bytes_max` bytes. A chunk that is larger gets a part of
/// its own.
#[derive(Debug)]
pub(super) struct PartBuilder {
    bytes_max: u64,
    pack: Option<PackBuilder>,
    chunks: Vec<ChunkId>,
    raw_bytes: u64,
}

impl PartBuilder {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, pack: None, chunks: Vec::new(), raw_bytes: 0 }
    }

    /// Adds a chunk. Returns the part that was full without it.
    pub(super) fn add(&mut self, chunk: StoredChunk) -> Option<Part> {
        let full = if self.has_room_for(&chunk) { None } else { self.finish() };
        self.chunks.push(chunk.id);
        self.raw_bytes += u64::from(chunk.layout.raw_len);
        self.pack.get_or_insert_with(new_pack).add(chunk);
        full
    }

    fn has_room_for(&self, chunk: &StoredChunk) -> bool {
        let Some(pack) = &self.pack else { return true };
        // Five bytes for each number of the layout at most.
        let numbers = 2 + chunk.layout.holes.len() + chunk.layout.frames.len();
        let bytes = chunk.bytes.len() + 40 + 5 * numbers;
        pack.has_room_for(chunk)
            && self.chunks.len() < CHUNKS_MAX
            && pack.bytes() + bytes as u64 <= self.bytes_max
            && self.raw_bytes + u64::from(chunk.layout.raw_len) <= RAW_BYTES_MAX
    }

    /// The part of the chunks so far, if there are any.
    pub(super) fn finish(&mut self) -> Option<Part> {
        let pack = self.pack.take()?.finish();
        let end = pack.parts.last().and_then(|end| end.last_chunk::<PACK_TRAILER_BYTES>());
        let trailer = read_trailer(end.expect("a pack ends with its trailer"), pack.size);
        let digest = PartDigest::from_bytes(trailer.expect("the trailer is our own").hash);
        let chunks = std::mem::take(&mut self.chunks);
        self.raw_bytes = 0;
        Some(Part { digest, pieces: pack.parts, size: pack.size, chunks })
    }

    /// Bytes of the chunks so far.
    pub(super) fn bytes(&self) -> u64 {
        self.pack.as_ref().map_or(0, PackBuilder::bytes)
    }
}

fn new_pack() -> PackBuilder {
    let mut id = [0; 16];
    rand::rng().fill_bytes(&mut id);
    PackBuilder::new(PackId::from_bytes(id))
}

#[cfg(test)]
mod tests {
    use dormer_format::{Encoder, RawChunk, read_pack};

    use super::*;

    fn stored(number: u8, bytes: usize) -> StoredChunk {
        let mut random = dormer_testkit::Random::new(number.into());
        let chunk = RawChunk { bytes: random.bytes(bytes), holes: Vec::new(), fills: Vec::new() };
        Encoder::new(1).unwrap().encode(&chunk).unwrap()
    }

    #[test]
    fn parts_hold_all_chunks_in_order_within_their_size() {
        const MAX: u64 = 100_000;
        let mut builder = PartBuilder::new(MAX);
        let chunks: Vec<StoredChunk> = (0..40).map(|number| stored(number, 30_000)).collect();
        let mut parts: Vec<Part> = chunks.iter().filter_map(|chunk| builder.add(chunk.clone())).collect();
        assert!(builder.bytes() > 0);
        parts.extend(builder.finish());
        assert_eq!(builder.bytes(), 0);
        assert!(builder.finish().is_none());
        let mut ids = Vec::new();
        for part in &parts {
            let bytes = part.pieces.concat();
            assert_eq!(bytes.len() as u64, part.size);
            assert!(part.size <= MAX && part.size > MAX / 2, "{}", part.size);
            let (_, entries) = read_pack(&bytes).unwrap();
            assert_eq!(entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), part.chunks);
            let hash = blake3_of_trailer(&bytes);
            assert_eq!(part.digest.as_bytes(), &hash);
            ids.extend(part.chunks.iter().copied());
        }
        assert_eq!(ids, chunks.iter().map(|chunk| chunk.id).collect::<Vec<_>>());
    }

    #[test]
    fn parts_have_a_limit_of_chunks() {
        let mut builder = PartBuilder::new(8 << 20);
        let chunk = stored(1, 10);
        assert!((0..CHUNKS_MAX).all(|_| builder.add(chunk.clone()).is_none()));
        assert_eq!(builder.add(chunk).unwrap().chunks.len(), CHUNKS_MAX);
        assert_eq!(builder.finish().unwrap().chunks.len(), 1);
    }

    #[test]
    fn parts_are_no_bombs() {
        let mut builder = PartBuilder::new(8 << 20);
        let mut encoder = Encoder::new(1).unwrap();
        let mut raw_bytes = 0;
        for number in 0..80_u8 {
            let chunk = RawChunk { bytes: vec![number; 4 << 20], holes: Vec::new(), fills: Vec::new() };
            if let Some(part) = builder.add(encoder.encode(&chunk).unwrap()) {
                assert!(raw_bytes <= RAW_BYTES_MAX && part.size < 1 << 20, "{raw_bytes}");
                return;
            }
            raw_bytes += 4 << 20;
        }
        panic!("80 chunks of 4 MiB went into one part");
    }

    #[test]
    fn a_chunk_larger_than_a_part_is_a_part_of_its_own() {
        let mut builder = PartBuilder::new(1000);
        assert!(builder.add(stored(1, 30_000)).is_none());
        let first = builder.add(stored(2, 30_000)).unwrap();
        assert_eq!(first.chunks.len(), 1);
        assert_eq!(builder.finish().unwrap().chunks.len(), 1);
    }

    /// The 32 bytes before the magic at the end, by the table in docs/STORAGE.md.
    fn blake3_of_trailer(pack: &[u8]) -> [u8; 32] {
        pack[pack.len() - 40..pack.len() - 8].try_into().unwrap()
    }
}
