//! Turns a stream of bytes into chunks: blanks the holes, then cuts with FastCDC.
//!
//! Layer: format (pure). Spec: docs/STORAGE.md, "Holes" and "Chunks".
//!
//! Invariants
//! - Chunks depend only on the stream, the chunk sizes and the store folder, never on how the
//!   stream arrives in pieces.
//! - A hole never spans two chunks: a cut that falls into a hole moves to the end of the hole.
//! - Between two calls, the chunker keeps at most `BUFFER_CHUNKS` times the largest chunk (1 MiB by
//!   default), and 40 bytes for each hole in these bytes.
//!
//! The chunker copies each byte once into the buffer, and once from the buffer into its chunk. When
//! the buffer is full, the remaining bytes move to the front. A caller that wants only the chunks'
//! shapes saves all of these copies (`shape_chunker`). This module has no loop over single bytes:
//! `memchr` finds store paths, and `cutter` finds cuts.

use memchr::memmem;

use crate::cutter::Cutter;
use crate::error::{Error, Result};
use crate::ids::{ChunkId, HOLE_BYTES, HoleFill};
use crate::layout::{CHUNK_PARAM_MAX, HOLES_MAX, STREAM_HOLES_MAX};

/// The byte that blanks a hole. `e` is not a nix-base32 character, so no hash contains it.
pub const BLANK: u8 = b'e';

/// Size of the buffer, in largest chunks. With two, at most one byte moves to the front for each
/// byte that leaves. A larger buffer would cost memory in every upload, and space in the
/// processor's cache.
const BUFFER_CHUNKS: usize = 2;

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

/// A hole in the buffer.
#[derive(Debug)]
struct FoundHole {
    /// Where the hole starts in the buffer.
    start: usize,
    fill: HoleFill,
}

/// Whether a chunk with so many holes is stored without them.
pub(crate) fn is_literal(raw_len: usize, holes: usize, holes_left: usize) -> bool {
    // A chunk that consists of one hole would have no stored bytes.
    holes > HOLES_MAX || holes > holes_left || raw_len == holes * HOLE_BYTES
}

/// Cuts a stream into chunks.
#[derive(Debug)]
pub struct Chunker {
    cutter: Cutter,
    finder: memmem::Finder<'static>,
    /// Bytes of the stream, blanked up to `searched`. The buffer never grows over its first
    /// capacity.
    buffer: Vec<u8>,
    /// Start of the next chunk to cut.
    start: usize,
    /// All holes that start before this position are in `holes`.
    searched: usize,
    /// Bytes before this position are final: later input cannot turn them into a hole.
    decided: usize,
    /// Holes in the buffer, ascending. Those before `next_hole` are already in chunks.
    holes: Vec<FoundHole>,
    next_hole: usize,
    /// Number of holes that the stream may still have.
    holes_left: usize,
}

impl Chunker {
    /// Makes a chunker for one stream. It looks for store paths below `store_dir`, which has no
    /// slash at the end.
    ///
    /// # Panics
    /// If the sizes are not valid. Sizes come from settings, which are checked when they are read.
    pub fn new(params: ChunkParams, store_dir: &str) -> Self {
        params.validate().expect("chunk sizes are checked where they are set");
        let prefix = format!("{store_dir}/");
        // Room for the largest chunk, for a store path across its end, and for more bytes to cut.
        let capacity = BUFFER_CHUNKS * params.max as usize + prefix.len() + HOLE_BYTES;
        Self {
            cutter: Cutter::new(params),
            finder: memmem::Finder::new(prefix.as_bytes()).into_owned(),
            buffer: Vec::with_capacity(capacity),
            start: 0,
            searched: 0,
            decided: 0,
            holes: Vec::new(),
            next_hole: 0,
            holes_left: STREAM_HOLES_MAX,
        }
    }

    /// Takes the next bytes of the stream, and appends the chunks that they complete.
    pub fn push(&mut self, mut input: &[u8], out: &mut Vec<RawChunk>) {
        while !input.is_empty() {
            let room = self.buffer.capacity() - self.buffer.len();
            let (now, later) = input.split_at(room.min(input.len()));
            self.buffer.extend_from_slice(now);
            input = later;
            // Searches and cuts only a full buffer, so that a stream in small pieces is cheap too.
            if self.buffer.len() == self.buffer.capacity() {
                self.find_holes();
                while self.decided - self.start >= self.cutter.max() {
                    out.push(self.cut());
                }
                self.move_to_front();
            }
        }
    }

    /// Ends the stream, and appends its last chunks.
    pub fn finish(mut self, out: &mut Vec<RawChunk>) {
        self.find_holes();
        self.decided = self.buffer.len();
        while self.start < self.decided {
            out.push(self.cut());
        }
    }

    /// Blanks the holes in the bytes that are not searched yet.
    fn find_holes(&mut self) {
        let prefix_len = self.finder.needle().len();
        while let Some(found) = self.finder.find(&self.buffer[self.searched..]) {
            let prefix_start = self.searched + found;
            let hole_start = prefix_start + prefix_len;
            let Some(hole) = self.buffer[hole_start..].first_chunk_mut::<HOLE_BYTES>() else {
                // The next bytes decide whether this is a hole. Until then, bytes from here on are
                // not final.
                self.searched = prefix_start;
                self.decided = hole_start;
                return;
            };
            match HoleFill::from_bytes(*hole) {
                Some(fill) => {
                    hole.fill(BLANK);
                    self.holes.push(FoundHole { start: hole_start, fill });
                    self.searched = hole_start + HOLE_BYTES;
                }
                None => self.searched = prefix_start + 1,
            }
        }
        // A prefix that begins in the last bytes has its hole after them.
        self.searched = self.searched.max(self.buffer.len().saturating_sub(prefix_len - 1));
        self.decided = self.buffer.len();
    }

    /// Cuts one chunk off the final bytes. They hold a largest chunk, or all that remains of the
    /// stream.
    fn cut(&mut self) -> RawChunk {
        let mut end = self.start + self.cutter.cut(&self.buffer[self.start..self.decided]);
        let first_hole = self.next_hole;
        while let Some(hole) = self.holes.get(self.next_hole).filter(|hole| hole.start < end) {
            end = end.max(hole.start + HOLE_BYTES);
            self.next_hole += 1;
        }
        let found = &self.holes[first_hole..self.next_hole];
        let mut bytes = self.buffer[self.start..end].to_vec();
        let offset =
            |hole: &FoundHole| u32::try_from(hole.start - self.start).expect("a chunk has at most 4 MiB");
        let mut holes: Vec<u32> = found.iter().map(offset).collect();
        let mut fills: Vec<HoleFill> = found.iter().map(|hole| hole.fill).collect();
        if is_literal(bytes.len(), found.len(), self.holes_left) {
            fill_holes(&mut bytes, &holes, &fills);
            (holes, fills) = (Vec::new(), Vec::new());
        }
        self.holes_left -= holes.len();
        self.start = end;
        RawChunk { bytes, holes, fills }
    }

    /// Moves the remaining bytes to the front, to make room for more.
    fn move_to_front(&mut self) {
        // A store path may begin in bytes that are already in a chunk, with its hole after them.
        let moved = self.start.min(self.searched);
        self.buffer.copy_within(moved.., 0);
        self.buffer.truncate(self.buffer.len() - moved);
        self.holes.drain(..self.next_hole);
        for hole in &mut self.holes {
            hole.start -= moved;
        }
        self.next_hole = 0;
        self.start -= moved;
        self.searched -= moved;
        self.decided -= moved;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape_chunker::{ChunkShape, ShapeChunker};

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
                assert!(chunker.holes.len() <= capacity / 35 + 1);
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
