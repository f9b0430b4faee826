//! Finds the chunks of a stream, for a caller that has its bytes: finds the holes, then cuts with
//! FastCDC as if the holes were blanked.
//!
//! Layer: format (pure). Spec: docs/STORAGE.md, "Holes" and "Chunks".
//!
//! Invariants
//! - The shapes depend only on the stream, the chunk sizes and the store folder, never on how the
//!   stream arrives in pieces.
//! - Nothing of the stream is kept, but for a few bytes that the next ones decide: they may turn
//!   out to be the beginning of a store path.
//!
//! This module has no loop over single bytes: `memchr` finds store paths, and `cutter` finds cuts.

use memchr::memmem;

use crate::chunker::{BLANK, ChunkParams};
use crate::cutter::Cutter;
use crate::ids::{HOLE_BYTES, HoleFill};
use crate::layout::{HOLES_MAX, STREAM_HOLES_MAX};

/// A chunk as cut, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkShape {
    /// How many bytes the chunk has.
    pub raw_len: usize,
    /// Offsets of the holes, ascending; none in a literal chunk.
    pub holes: Vec<u32>,
    /// The former contents of the holes, in the same order.
    pub fills: Vec<HoleFill>,
}

/// Cuts a stream into chunks of which nobody needs the bytes.
#[derive(Debug)]
pub struct ShapeChunker {
    cutter: Cutter,
    finder: memmem::Finder<'static>,
    /// The last bytes of the stream. They are not in `present`.
    undecided: Vec<u8>,
    /// The present chunk so far. It may have more holes than a chunk is stored with.
    present: ChunkShape,
    /// Number of holes that the stream may still have.
    holes_left: usize,
}

impl ShapeChunker {
    /// Makes a chunker for one stream, as [`Chunker::new`](crate::Chunker::new) does.
    ///
    /// # Panics
    /// If the sizes are not valid. Sizes come from settings, which are checked when they are read.
    pub fn new(params: ChunkParams, store_dir: &str) -> Self {
        params.validate().expect("chunk sizes are checked where they are set");
        Self {
            cutter: Cutter::new(params),
            finder: memmem::Finder::new(&format!("{store_dir}/")).into_owned(),
            undecided: Vec::new(),
            present: ChunkShape { raw_len: 0, holes: Vec::new(), fills: Vec::new() },
            holes_left: STREAM_HOLES_MAX,
        }
    }

    /// Takes the next bytes of the stream, and appends the chunks that they complete.
    pub fn push(&mut self, input: &[u8], out: &mut Vec<ChunkShape>) {
        // So many bytes more decide all those that are left.
        let deciding = &input[..input.len().min(self.finder.needle().len() + HOLE_BYTES)];
        let left = self.undecided.len();
        self.undecided.extend_from_slice(deciding);
        let joined = std::mem::take(&mut self.undecided);
        let taken = self.take(&joined, out);
        let rest = match taken.checked_sub(left) {
            Some(of_input) => {
                let rest = &input[of_input..];
                &rest[self.take(rest, out)..]
            }
            None => &joined[taken..],
        };
        self.undecided.extend_from_slice(rest);
    }

    /// Ends the stream, and appends its last chunks.
    pub fn finish(mut self, out: &mut Vec<ChunkShape>) {
        // They are too few for a hole.
        let undecided = std::mem::take(&mut self.undecided);
        let mut bytes = undecided.as_slice();
        while let Some(length) = self.cutter.push_last(bytes) {
            self.end_chunk(length, out);
            bytes = &bytes[length..];
        }
        if self.present.raw_len + bytes.len() > 0 {
            self.end_chunk(bytes.len(), out);
        }
    }

    /// Takes the bytes that later ones cannot change, from the front, and returns their number.
    fn take(&mut self, bytes: &[u8], out: &mut Vec<ChunkShape>) -> usize {
        let prefix_len = self.finder.needle().len();
        let (mut taken, mut searched) = (0, 0);
        while let Some(found) = self.finder.find(&bytes[searched..]) {
            let prefix_start = searched + found;
            let hole_start = prefix_start + prefix_len;
            let Some(hole) = bytes[hole_start..].first_chunk() else {
                self.take_plain(&bytes[taken..prefix_start], out);
                return prefix_start;
            };
            match HoleFill::from_bytes(*hole) {
                Some(fill) => {
                    self.take_plain(&bytes[taken..hole_start], out);
                    self.take_hole(fill, out);
                    taken = hole_start + HOLE_BYTES;
                    searched = taken;
                }
                None => searched = prefix_start + 1,
            }
        }
        // A prefix may begin in the last bytes. FastCDC does not look at the last byte of some
        // streams, so one stays in any case.
        let end = taken.max(bytes.len().saturating_sub(prefix_len.max(2) - 1));
        self.take_plain(&bytes[taken..end], out);
        end
    }

    /// Cuts bytes in which no hole begins.
    fn take_plain(&mut self, mut bytes: &[u8], out: &mut Vec<ChunkShape>) {
        while let Some(length) = self.cutter.push(bytes) {
            self.end_chunk(length, out);
            bytes = &bytes[length..];
        }
        self.present.raw_len += bytes.len();
    }

    /// Cuts a hole: before it, or behind it.
    fn take_hole(&mut self, fill: HoleFill, out: &mut Vec<ChunkShape>) {
        const BLANKS: [u8; HOLE_BYTES] = [BLANK; HOLE_BYTES];
        let mut cut = self.cutter.push(&BLANKS);
        if cut == Some(0) {
            self.end_chunk(0, out);
            cut = self.cutter.push(&BLANKS);
        }
        let start = u32::try_from(self.present.raw_len).expect("a chunk has at most 4 MiB");
        self.present.holes.push(start);
        self.present.fills.push(fill);
        if cut.is_some() {
            self.end_chunk(HOLE_BYTES, out);
        } else {
            self.present.raw_len += HOLE_BYTES;
        }
    }

    /// Ends the present chunk after so many bytes more.
    fn end_chunk(&mut self, bytes: usize, out: &mut Vec<ChunkShape>) {
        let next = ChunkShape { raw_len: 0, holes: Vec::new(), fills: Vec::new() };
        let mut chunk = std::mem::replace(&mut self.present, next);
        chunk.raw_len += bytes;
        let holes = chunk.holes.len();
        // A chunk that consists of one hole would have no stored bytes, so it is literal too.
        if holes > HOLES_MAX || holes > self.holes_left || chunk.raw_len == holes * HOLE_BYTES {
            (chunk.holes, chunk.fills) = (Vec::new(), Vec::new());
        }
        self.holes_left -= chunk.holes.len();
        out.push(chunk);
    }
}
