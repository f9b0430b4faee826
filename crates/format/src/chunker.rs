//! Turns a stream of bytes into chunks: what `shape_chunker` cuts, with its bytes.
//!
//! Layer: format (pure). Spec: docs/STORAGE.md, "Holes" and "Chunks".
//!
//! Invariants
//! - Chunks depend only on the stream, the chunk sizes and the store folder, never on how the
//!   stream arrives in pieces.
//! - A hole never spans two chunks: a cut that falls into a hole moves to the end of the hole.
//! - Between two calls, the chunker keeps at most the largest chunk and `STEP_BYTES` (0.6 MiB by
//!   default), and 36 bytes for each hole in these bytes.
//!
//! The chunker copies each byte once into the buffer, and once from the buffer into its chunk. What
//! is left of a step moves to the front.

use crate::error::{Error, Result};
use crate::ids::{ChunkId, HOLE_BYTES, HoleFill};
use crate::layout::CHUNK_PARAM_MAX;
use crate::shape_chunker::{ChunkShape, ShapeChunker};

/// The byte that blanks a hole. `e` is not a nix-base32 character, so no hash contains it.
pub const BLANK: u8 = b'e';

/// Bytes that are searched and cut at once: enough that a stream in small pieces is cheap too, and
/// few enough that they stay in the processor's cache.
const STEP_BYTES: usize = 64 * 1024;

/// The sizes for cutting chunks, in bytes. All are even, because FastCDC advances by two bytes at a
/// time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkParams {
    /// No cut before this many bytes. Only the last chunk of a stream is smaller.
    pub min: u32,
    /// The size that most chunks come close to.
    pub avg: u32,
    /// FastCDC forces a cut here.
    pub max: u32,
}

impl Default for ChunkParams {
    fn default() -> Self {
        Self { min: 32 * 1024, avg: 128 * 1024, max: 512 * 1024 }
    }
}

impl ChunkParams {
    /// Takes sizes, and refuses those that FastCDC cannot work with.
    pub fn new(min: u32, avg: u32, max: u32) -> Result<Self> {
        let params = Self { min, avg, max };
        params.validate()?;
        Ok(params)
    }

    /// Checks sizes that the caller filled in directly.
    pub fn validate(&self) -> Result<()> {
        let Self { min, avg, max } = *self;
        let even = [min, avg, max].iter().all(|size| size % 2 == 0);
        // The lower bounds are those of fastcdc. It would accept larger maxima, but a chunk must
        // stay small compared to a pack.
        let bounded = (64..=1024 * 1024).contains(&min)
            && (256..=2 * 1024 * 1024).contains(&avg)
            && (1024..=CHUNK_PARAM_MAX).contains(&max);
        if even && bounded && min < avg && avg < max {
            Ok(())
        } else {
            Err(Error::ChunkParams { min, avg, max })
        }
    }
}

/// A chunk as cut: its blanked bytes, and the former contents of its holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawChunk {
    /// The bytes, with `e` in the holes. A literal chunk has no holes and is not blanked.
    pub bytes: Vec<u8>,
    /// Offsets of the holes, ascending.
    pub holes: Vec<u32>,
    /// The former contents of the holes, in the same order.
    pub fills: Vec<HoleFill>,
}

impl RawChunk {
    /// Computes the chunk's identity: one BLAKE3 of its bytes.
    pub fn id(&self) -> ChunkId {
        ChunkId::compute(&self.bytes, &self.holes)
    }

    /// The original bytes of the stream.
    pub fn restore(&self) -> Vec<u8> {
        self.clone().into_restored()
    }

    /// As [`restore`](Self::restore), without a copy.
    pub fn into_restored(mut self) -> Vec<u8> {
        fill_holes(&mut self.bytes, &self.holes, &self.fills);
        self.bytes
    }
}

/// Writes the fills into the holes, which lie inside `bytes`.
pub(crate) fn fill_holes(bytes: &mut [u8], holes: &[u32], fills: &[HoleFill]) {
    for (&hole, fill) in holes.iter().zip(fills) {
        bytes[hole as usize..][..HOLE_BYTES].copy_from_slice(fill.as_bytes());
    }
}

/// Cuts a stream into chunks.
#[derive(Debug)]
pub struct Chunker {
    shapes: ShapeChunker,
    /// Bytes of the stream from the present chunk on. It never grows over its first capacity.
    buffer: Vec<u8>,
    /// Number of bytes at its front that `shapes` has taken.
    searched: usize,
}

impl Chunker {
    /// Makes a chunker for one stream. It looks for store paths below `store_dir`, which has no
    /// slash at the end.
    ///
    /// # Panics
    /// If the sizes are not valid. Sizes come from settings, which are checked when they are read.
    pub fn new(params: ChunkParams, store_dir: &str) -> Self {
        // Room for the largest chunk, for a store path across its end, and for a step.
        let capacity = params.max as usize + store_dir.len() + 1 + HOLE_BYTES + STEP_BYTES;
        Self {
            shapes: ShapeChunker::new(params, store_dir),
            buffer: Vec::with_capacity(capacity),
            searched: 0,
        }
    }

    /// Takes the next bytes of the stream, and appends the chunks that they complete.
    pub fn push(&mut self, mut input: &[u8], out: &mut Vec<RawChunk>) {
        while !input.is_empty() {
            let room = self.searched + STEP_BYTES - self.buffer.len();
            let (now, later) = input.split_at(room.min(input.len()));
            self.buffer.extend_from_slice(now);
            input = later;
            if now.len() == room {
                let mut shapes = Vec::new();
                self.shapes.push(&self.buffer[self.searched..], &mut shapes);
                let taken = take_chunks(&self.buffer, shapes, out);
                self.buffer.drain(..taken);
                self.searched = self.buffer.len();
            }
        }
    }

    /// Ends the stream, and appends its last chunks.
    pub fn finish(self, out: &mut Vec<RawChunk>) {
        let Self { shapes: mut chunker, buffer, searched } = self;
        let mut shapes = Vec::new();
        chunker.push(&buffer[searched..], &mut shapes);
        chunker.finish(&mut shapes);
        take_chunks(&buffer, shapes, out);
    }
}

/// Makes chunks of the bytes at the front, and returns the number of these bytes.
fn take_chunks(bytes: &[u8], shapes: Vec<ChunkShape>, out: &mut Vec<RawChunk>) -> usize {
    let mut start = 0;
    for ChunkShape { raw_len, holes, fills } in shapes {
        let mut bytes = bytes[start..start + raw_len].to_vec();
        for &hole in &holes {
            bytes[hole as usize..][..HOLE_BYTES].fill(BLANK);
        }
        out.push(RawChunk { bytes, holes, fills });
        start += raw_len;
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{HOLES_MAX, STREAM_HOLES_MAX};

    const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

    /// The chunks of a stream. Each test that cuts one thus compares both ways to cut.
    fn chunks(params: ChunkParams, store_dir: &str, bytes: &[u8]) -> Vec<RawChunk> {
        let (mut out, mut shapes) = (Vec::new(), Vec::new());
        let mut chunker = Chunker::new(params, store_dir);
        chunker.push(bytes, &mut out);
        chunker.finish(&mut out);
        let mut chunker = ShapeChunker::new(params, store_dir);
        for piece in bytes.chunks(1_000) {
            chunker.push(piece, &mut shapes);
        }
        chunker.finish(&mut shapes);
        let shape = |chunk: &RawChunk| ChunkShape {
            raw_len: chunk.bytes.len(),
            holes: chunk.holes.clone(),
            fills: chunk.fills.clone(),
        };
        assert_eq!(out.iter().map(shape).collect::<Vec<_>>(), shapes);
        out
    }

    fn one(store_dir: &str, text: &str) -> RawChunk {
        let mut chunks = chunks(ChunkParams::default(), store_dir, text.as_bytes());
        assert_eq!(chunks.len(), 1, "a short text is one chunk");
        chunks.pop().unwrap()
    }

    #[test]
    fn a_store_path_leaves_a_hole() {
        let text = format!("see /nix/store/{HASH}-bash/bin/sh");
        let chunk = one("/nix/store", &text);
        assert_eq!(chunk.bytes, text.replace(HASH, &"e".repeat(32)).into_bytes());
        assert_eq!(chunk.holes, [15]);
        assert_eq!(chunk.fills, [HoleFill::from_bytes(HASH.as_bytes().try_into().unwrap()).unwrap()]);
        assert_eq!(chunk.restore(), text.into_bytes());
    }

    #[test]
    fn what_only_resembles_a_store_path_stays() {
        for text in [
            format!("/nix/store/{}", &HASH[..31]),
            format!("/nix/store{HASH}/"),
            format!("/gnu/store/{HASH}"),
            format!("/nix/store/{}", HASH.replace('d', "e")),
            format!("/nix/store/{}", HASH.to_uppercase()),
            format!("/nix/store/.{}", &HASH[1..]),
        ] {
            let chunk = one("/nix/store", &text);
            assert_eq!((chunk.bytes, chunk.holes.len()), (text.into_bytes(), 0));
        }
    }

    #[test]
    fn a_store_path_right_behind_a_false_one_is_found() {
        // The prefix "/a/a/" overlaps itself, so the search may advance by one byte only.
        let chunk = one("/a/a", &format!("/a/a/a/{HASH}"));
        assert_eq!(chunk.holes, [7]);
        let chunk = one("/nix/store", &format!("/nix/store/nix/store/{HASH}/nix/store/{HASH}"));
        assert_eq!(chunk.holes, [21, 64]);
    }

    #[test]
    fn a_hole_and_literal_blanks_have_different_ids() {
        let with_hole = one("/nix/store", &format!("/nix/store/{HASH}-a"));
        let literal = one("/nix/store", &format!("/nix/store/{}-a", "e".repeat(32)));
        assert_eq!(with_hole.bytes, literal.bytes);
        assert_ne!(with_hole.id(), literal.id());
    }

    #[test]
    fn a_chunk_that_ends_like_a_list_of_holes_has_another_id() {
        let bytes = b"text".to_vec();
        let with_hole = ChunkId::compute(&bytes, &[7]);
        let mut forged = bytes;
        forged.extend_from_slice(&7_u32.to_le_bytes());
        forged.extend_from_slice(&1_u32.to_le_bytes());
        assert_ne!(ChunkId::compute(&forged, &[]), with_hole);
        assert_ne!(ChunkId::compute(&forged[..8], &[]), with_hole);
    }

    #[test]
    fn more_holes_than_allowed_make_a_chunk_literal() {
        for (count, expected) in [(HOLES_MAX, HOLES_MAX), (HOLES_MAX + 1, 0)] {
            let text = format!("/nix/store/{HASH}-x\n").repeat(count);
            let chunk = one("/nix/store", &text);
            assert_eq!(chunk.holes.len(), expected);
            assert_eq!(chunk.fills.len(), expected);
            assert_eq!(chunk.restore(), text.into_bytes());
        }
    }

    #[test]
    fn a_stream_with_too_many_holes_goes_on_literally() {
        let params = ChunkParams::new(64, 256, 1024).unwrap();
        // Some bytes between two paths keep each chunk below the limit of a chunk.
        let text = format!("/s/{HASH}{}", "\0".repeat(40)).repeat(STREAM_HOLES_MAX + 500);
        let chunks = chunks(params, "/s", text.as_bytes());
        let holes: usize = chunks.iter().map(|chunk| chunk.holes.len()).sum();
        assert!((STREAM_HOLES_MAX - HOLES_MAX..=STREAM_HOLES_MAX).contains(&holes), "{holes}");
        assert!(chunks.last().unwrap().holes.is_empty());
        assert_eq!(chunks.iter().flat_map(RawChunk::restore).collect::<Vec<_>>(), text.into_bytes());
    }

    #[test]
    fn a_cut_in_a_hole_moves_to_its_end_and_nothing_is_ever_empty() {
        // With such a large average, only the maximum cuts. A store path lies at every distance
        // from it.
        const MAX: usize = 65_536;
        let params = ChunkParams::new(64, 32_768, 65_536).unwrap();
        for lead in MAX - 80..MAX + 20 {
            let text = format!("{}/s/{HASH}{}", "\0".repeat(lead), "\0".repeat(3000));
            let chunks = chunks(params, "/s", text.as_bytes());
            let hole = lead + 3;
            let moved = hole < MAX && MAX < hole + 32;
            assert_eq!(chunks[0].bytes.len(), if moved { hole + 32 } else { MAX }, "lead {lead}");
            assert_eq!(chunks.iter().map(|chunk| chunk.holes.len()).sum::<usize>(), 1, "lead {lead}");
            assert_eq!(chunks.iter().flat_map(RawChunk::restore).collect::<Vec<_>>(), text.into_bytes());
        }
    }

    #[test]
    fn a_chunk_of_nothing_but_a_hole_is_literal() {
        // The cut at the maximum falls right before the hole, and the stream ends right after it.
        let params = ChunkParams::new(64, 256, 1024).unwrap();
        let text = format!("{}/s/{HASH}", "\0".repeat(1021));
        let chunks = chunks(params, "/s", text.as_bytes());
        assert_eq!(chunks.len(), 2);
        assert_eq!((chunks[1].bytes.as_slice(), chunks[1].holes.len()), (HASH.as_bytes(), 0));
    }

    #[test]
    fn an_empty_stream_has_no_chunks() {
        assert!(chunks(ChunkParams::default(), "/nix/store", b"").is_empty());
    }

    #[test]
    fn the_buffer_never_grows() {
        let params = ChunkParams::new(64, 256, 1024).unwrap();
        let mut chunker = Chunker::new(params, "/s");
        let capacity = chunker.buffer.capacity();
        let text = format!("/s/{HASH}-name\0\0\0").repeat(1000);
        for piece in [1, 7, 5000, 4096, 20_000] {
            for piece in text.as_bytes().chunks(piece) {
                chunker.push(piece, &mut Vec::new());
                assert_eq!(chunker.buffer.capacity(), capacity);
            }
        }
    }

    #[test]
    fn sizes_that_fastcdc_cannot_work_with_are_refused() {
        for (min, avg, max) in [
            (0, 0, 0),
            (63, 256, 1024),
            (62, 256, 1024),
            (64, 255, 1024),
            (64, 256, 1023),
            (1024, 256, 4096),
            (64, 2048, 2048),
            (1024, 4096, 8 * 1024 * 1024),
            (1024, 4 * 1024 * 1024, 4 * 1024 * 1024),
        ] {
            assert!(ChunkParams::new(min, avg, max).is_err(), "{min}/{avg}/{max}");
        }
        ChunkParams::new(64, 256, 1024).unwrap();
        ChunkParams::new(1024 * 1024, 2 * 1024 * 1024, 4 * 1024 * 1024).unwrap();
        ChunkParams::default().validate().unwrap();
    }
}
