//! Chunk layouts: how a chunk's raw bytes divide into holes and segments, and the length of each
//! segment's frame.
//!
//! Layer: format (pure). Byte table: docs/STORAGE.md, "Chunk layout".
//!
//! Invariants (of every layout that `decode` returns)
//! - Holes ascend, do not overlap and lie inside the raw bytes; there are at most `HOLES_MAX`.
//! - There is one frame for each non-empty segment, and at least one: stored bytes are never empty.
//! - A frame is never longer than zstd's bound for its segment, so a hostile layout cannot claim
//!   large stored bytes.

use std::ops::Range;

use crate::error::{Error, Malformed, Result};
use crate::frame_size::{FRAME_BYTES_MIN, HOLE_FRAME_BYTES, frame_bytes_max};
use crate::ids::{HOLE_BYTES, HOLE_LEN};
use crate::wire::{Reader, put_varint};

/// Most holes in a chunk. A chunk with more is stored literally, because frames would cost more
/// than they save.
pub const HOLES_MAX: usize = 64;

/// Most holes in all chunks of one NAR; further chunks with holes are literal. This bounds a recipe
/// to about 1 MiB at rest, and 4 MiB while it is built, if every hole has a different fill. Real
/// packages stay far below: a chunk has one or two holes on average, so only gigabytes come close.
pub const STREAM_HOLES_MAX: usize = 32_768;

/// Upper bound for the largest chunk size in the settings.
pub(crate) const CHUNK_PARAM_MAX: u32 = 4 * 1024 * 1024;

/// Most raw bytes of any chunk: the upper bound, and the rest of a hole at the cut.
pub const CHUNK_BYTES_MAX: u32 = CHUNK_PARAM_MAX + HOLE_LEN - 1;

/// How a chunk divides into frames.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChunkLayout {
    /// Bytes of the chunk in its NAR, including holes.
    pub raw_len: u32,
    /// Offsets of the holes in the raw bytes, ascending.
    pub holes: Vec<u32>,
    /// Lengths of the stored frames, one for each non-empty segment, in order.
    pub frames: Vec<u32>,
}

impl ChunkLayout {
    /// Number of stored bytes: all frames.
    pub fn stored_len(&self) -> u32 {
        self.frames.iter().sum()
    }

    /// Raw bytes of a chunk with holes, 0 for one without. Such a chunk would be another one after
    /// each rebuild of what it refers to, if the holes were not blanked.
    pub fn holed_bytes(&self) -> u64 {
        if self.holes.is_empty() { 0 } else { u64::from(self.raw_len) }
    }

    /// Number of served bytes: all frames, and a frame for each hole.
    pub fn spliced_len(&self) -> u64 {
        u64::from(self.stored_len()) + (self.holes.len() * HOLE_FRAME_BYTES) as u64
    }

    /// The non-empty segments between the holes, as ranges of raw bytes, in order.
    pub fn segments(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        segments(self.raw_len as usize, &self.holes).filter(|segment| !segment.is_empty())
    }

    /// Checks the invariants in this module's head.
    pub fn validate(&self) -> Result<()> {
        self.check().map_err(|source| Error::Layout { source })
    }

    /// Encodes the layout in its one compact spelling.
    pub fn encode(&self) -> Vec<u8> {
        // Three bytes per length are nearly always enough: they hold lengths of up to 2 MiB.
        let mut out = Vec::with_capacity(4 + 3 * (self.holes.len() + self.frames.len() + 1));
        self.encode_to(&mut out);
        out
    }

    /// Appends the bytes of [`encode`](Self::encode). The encoding marks its own end.
    pub(crate) fn encode_to(&self, out: &mut Vec<u8>) {
        put_varint(out, self.raw_len.into());
        put_varint(out, self.holes.len() as u64);
        let mut free_from = 0;
        for &hole in &self.holes {
            put_varint(out, u64::from(hole.saturating_sub(free_from)));
            free_from = hole.saturating_add(HOLE_LEN);
        }
        for &frame in &self.frames {
            put_varint(out, frame.into());
        }
    }

    /// Reads a layout that fills all of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        Self::decode_from(&mut reader)
            .and_then(|layout| reader.finish().map(|()| layout))
            .map_err(|source| Error::Layout { source })
    }

    /// Reads a layout from the front of the remaining bytes.
    pub(crate) fn decode_from(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let raw_len = reader.varint_u32()?;
        let hole_count = reader.count(1)?;
        if hole_count > HOLES_MAX {
            return Err(Malformed::OutOfBounds { what: "the count of holes" });
        }
        let mut holes = Vec::with_capacity(hole_count);
        let mut free_from = 0_u32;
        for _ in 0..hole_count {
            let out_of_bounds = Malformed::OutOfBounds { what: "a hole" };
            let hole = free_from.checked_add(reader.varint_u32()?).ok_or(out_of_bounds)?;
            free_from = hole.checked_add(HOLE_LEN).ok_or(out_of_bounds)?;
            holes.push(hole);
        }
        if raw_len > CHUNK_BYTES_MAX || free_from > raw_len {
            return Err(Malformed::OutOfBounds { what: "the raw length" });
        }
        let frame_count = segments(raw_len as usize, &holes).filter(|segment| !segment.is_empty()).count();
        let frames = (0..frame_count).map(|_| reader.varint_u32()).collect::<Result<_, _>>()?;
        let layout = Self { raw_len, holes, frames };
        layout.check()?;
        Ok(layout)
    }

    fn check(&self) -> Result<(), Malformed> {
        check_holes(self.raw_len as usize, &self.holes)?;
        let mut frames = self.frames.iter();
        for segment in self.segments() {
            let &frame = frames.next().ok_or(Malformed::Mismatch { what: "the count of frames" })?;
            if !(FRAME_BYTES_MIN..=frame_bytes_max(segment.len())).contains(&(frame as usize)) {
                return Err(Malformed::OutOfBounds { what: "the length of a frame" });
            }
        }
        match frames.next() {
            Some(_) => Err(Malformed::Mismatch { what: "the count of frames" }),
            None if self.frames.is_empty() => Err(Malformed::OutOfBounds { what: "the count of frames" }),
            None => Ok(()),
        }
    }
}

/// Checks that holes ascend, do not overlap and lie inside the raw bytes.
pub(crate) fn check_holes(raw_len: usize, holes: &[u32]) -> Result<(), Malformed> {
    if raw_len == 0 || raw_len > CHUNK_BYTES_MAX as usize {
        return Err(Malformed::OutOfBounds { what: "the raw length" });
    }
    if holes.len() > HOLES_MAX {
        return Err(Malformed::OutOfBounds { what: "the count of holes" });
    }
    let mut free_from = 0;
    for &hole in holes {
        if (hole as usize) < free_from || hole as usize + HOLE_BYTES > raw_len {
            return Err(Malformed::OutOfBounds { what: "a hole" });
        }
        free_from = hole as usize + HOLE_BYTES;
    }
    Ok(())
}

/// The segments before, between and after the holes, including empty ones. There is always one
/// segment more than holes.
pub(crate) fn segments(raw_len: usize, holes: &[u32]) -> impl Iterator<Item = Range<usize>> + '_ {
    let starts = std::iter::once(0).chain(holes.iter().map(|&hole| hole as usize + HOLE_BYTES));
    let ends = holes.iter().map(|&hole| hole as usize).chain(std::iter::once(raw_len));
    starts.zip(ends).map(|(start, end)| start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(raw_len: u32, holes: &[u32], frames: &[u32]) -> ChunkLayout {
        ChunkLayout { raw_len, holes: holes.to_vec(), frames: frames.to_vec() }
    }

    #[test]
    fn lengths_count_frames_and_holes() {
        let layout = layout(300, &[0, 100, 132], &[50, 40]);
        layout.validate().unwrap();
        assert_eq!(layout.stored_len(), 90);
        assert_eq!(layout.spliced_len(), 90 + 3 * 41);
        assert_eq!(layout.segments().collect::<Vec<_>>(), [32..100, 164..300]);
    }

    #[test]
    fn a_layout_without_holes_is_a_few_bytes() {
        assert_eq!(layout(131_072, &[], &[60_000]).encode().len(), 7);
    }

    #[test]
    fn layouts_that_break_a_rule_are_refused_in_memory_and_on_disk() {
        let rows = [
            ("nothing", layout(0, &[], &[])),
            ("nothing but a frame", layout(0, &[], &[20])),
            ("a hole and no frame", layout(32, &[0], &[])),
            ("too large", layout(CHUNK_BYTES_MAX + 1, &[], &[20])),
            ("a hole over the end", layout(100, &[69], &[20])),
            ("a hole far over the end", layout(100, &[u32::MAX], &[20])),
            ("overlapping holes", layout(200, &[10, 41], &[20, 20, 20])),
            ("descending holes", layout(200, &[80, 10], &[20, 20, 20])),
            ("too few frames", layout(200, &[50], &[20])),
            ("too many frames", layout(200, &[50], &[20, 20, 20])),
            ("a frame for an empty segment", layout(200, &[0], &[20, 20])),
            ("a frame shorter than a frame", layout(200, &[], &[9])),
            ("a frame longer than zstd makes", layout(200, &[], &[264])),
            ("too many holes", layout(4000, &(0..65).map(|hole| hole * 33).collect::<Vec<_>>(), &[10; 65])),
        ];
        for (what, layout) in rows {
            assert!(layout.validate().is_err(), "{what}");
            assert!(ChunkLayout::decode(&layout.encode()).is_err(), "{what}");
        }
        layout(200, &[], &[263]).validate().unwrap();
        layout(4000, &(0..64).map(|hole| hole * 33).collect::<Vec<_>>(), &[10; 64]).validate().unwrap();
    }

    #[test]
    fn cut_and_prolonged_layouts_are_refused() {
        let bytes = layout(300, &[0, 100, 132], &[50, 40]).encode();
        for len in 0..bytes.len() {
            assert!(ChunkLayout::decode(&bytes[..len]).is_err());
        }
        assert!(ChunkLayout::decode(&[&bytes[..], &[0]].concat()).is_err());
    }
}
