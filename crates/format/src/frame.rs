//! zstd frames: the one form in which bytes are stored and served.
//!
//! Layer: format (pure). Byte tables: docs/STORAGE.md, "Frame" and "Hole frame". The zstd format
//! itself is RFC 8878.
//!
//! Invariants
//! - A stored frame is single segment (so it needs no window), states its content size, and has no
//!   dictionary, no checksum and nothing after it. Decoders read a sequence of such frames as one
//!   stream.
//! - `validate_frame` walks a frame without decompressing it, and never trusts a length before
//!   checking it.

use bytes::Bytes;

use crate::error::{Error, Malformed, Result};
use crate::frame_size::{BLOCK_BYTES_MAX, HOLE_FRAME_BYTES, frame_bytes_max};
use crate::ids::HoleFill;
use crate::layout::ChunkLayout;
use crate::wire::Reader;

/// The first bytes of every zstd frame.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The descriptor bit of a frame with one segment and no window.
const SINGLE_SEGMENT: u8 = 1 << 5;
/// The only descriptor bits that a stored frame may set: the width of the content size, and the bit
/// above.
const DESCRIPTOR_ALLOWED: u8 = 0b1110_0000;

/// The served form of a hole: a frame with one raw block of the 32 characters.
pub fn hole_frame(fill: &HoleFill) -> [u8; HOLE_FRAME_BYTES] {
    // Magic, descriptor, content size 32, and a block header of 24 bits: last block (1), raw (0 <<
    // 1), 32 bytes (<< 3).
    const HEADER: [u8; 9] = [MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3], SINGLE_SEGMENT, 32, 0x01, 0x01, 0x00];
    let mut frame = [0; HOLE_FRAME_BYTES];
    frame[..HEADER.len()].copy_from_slice(&HEADER);
    frame[HEADER.len()..].copy_from_slice(fill.as_bytes());
    frame
}

/// Checks that `frame` is one frame of the stored form for a segment of `segment_bytes`, without
/// decompressing it.
///
/// Only decompression shows what the blocks contain: see [`Decoder`](crate::Decoder).
pub fn validate_frame(frame: &[u8], segment_bytes: usize) -> Result<()> {
    check_frame(frame, segment_bytes).map_err(|source| Error::Frame { source })
}

pub(crate) fn check_frame(frame: &[u8], segment_bytes: usize) -> Result<(), Malformed> {
    if frame.len() > frame_bytes_max(segment_bytes) {
        return Err(Malformed::OutOfBounds { what: "the length of a frame" });
    }
    let mut reader = Reader::new(frame);
    if reader.array()? != MAGIC {
        return Err(Malformed::Magic { part: "frame" });
    }
    let descriptor = reader.u8()?;
    // A window, a checksum, a dictionary and the reserved bits would each need data that is not
    // stored.
    if descriptor & !DESCRIPTOR_ALLOWED != 0 || descriptor & SINGLE_SEGMENT == 0 {
        return Err(Malformed::OutOfBounds { what: "the frame header descriptor" });
    }
    let content_size = match descriptor >> 6 {
        0 => u64::from(reader.u8()?),
        1 => u64::from(reader.u16()?) + 256,
        2 => u64::from(reader.u32()?),
        _ => reader.u64()?,
    };
    if content_size != segment_bytes as u64 || segment_bytes == 0 {
        return Err(Malformed::Mismatch { what: "the content size of a frame" });
    }
    check_blocks(&mut reader, segment_bytes)?;
    reader.finish()
}

/// Walks over the blocks up to the last one.
fn check_blocks(reader: &mut Reader<'_>, segment_bytes: usize) -> Result<(), Malformed> {
    let block_bytes_max = segment_bytes.min(BLOCK_BYTES_MAX);
    // The size of compressed blocks' content is unknown here. The plain blocks alone must not
    // exceed the segment.
    let mut plain_bytes = 0;
    loop {
        let [low, middle, high] = reader.array()?;
        let header = u32::from_le_bytes([low, middle, high, 0]);
        let block_bytes = (header >> 3) as usize;
        if block_bytes > block_bytes_max {
            return Err(Malformed::OutOfBounds { what: "the length of a block" });
        }
        match header >> 1 & 3 {
            0 => {
                plain_bytes += block_bytes;
                reader.take(block_bytes)?;
            }
            1 => {
                plain_bytes += block_bytes;
                reader.take(1)?;
            }
            2 => {
                reader.take(block_bytes)?;
            }
            _ => return Err(Malformed::OutOfBounds { what: "the type of a block" }),
        }
        if plain_bytes > segment_bytes {
            return Err(Malformed::Mismatch { what: "the content size of a frame" });
        }
        if header & 1 == 1 {
            return Ok(());
        }
    }
}

/// Checks stored bytes against their layout: the lengths, and the form of every frame.
pub(crate) fn check_stored(stored: &[u8], layout: &ChunkLayout) -> Result<(), Malformed> {
    if stored.len() != layout.stored_len() as usize {
        return Err(Malformed::Mismatch { what: "the length of the stored bytes" });
    }
    let mut rest = stored;
    for (segment, &frame_len) in layout.segments().zip(&layout.frames) {
        let (frame, behind) = rest.split_at(frame_len as usize);
        check_frame(frame, segment.len())?;
        rest = behind;
    }
    Ok(())
}

/// Appends the served form of a chunk: its stored frames unchanged, and a frame for each hole.
///
/// Only the fills are copied. The parts together have [`ChunkLayout::spliced_len`] bytes. On an
/// error, nothing is appended.
pub fn splice(stored: &Bytes, layout: &ChunkLayout, fills: &[HoleFill], out: &mut Vec<Bytes>) -> Result<()> {
    if stored.len() != layout.stored_len() as usize {
        return Err(Error::Chunk { source: Malformed::Mismatch { what: "the length of the stored bytes" } });
    }
    if fills.len() != layout.holes.len() {
        return Err(Error::Chunk { source: Malformed::Mismatch { what: "the count of fills" } });
    }
    if fills.is_empty() {
        out.push(stored.clone());
        return Ok(());
    }
    // One allocation for all hole frames of the chunk.
    let mut hole_frames = Bytes::from(fills.iter().flat_map(hole_frame).collect::<Vec<u8>>());
    let mut frames = layout.frames.iter();
    let mut stored = stored.clone();
    for segment in crate::layout::segments(layout.raw_len as usize, &layout.holes) {
        if !segment.is_empty() {
            let frame_len = *frames.next().unwrap_or(&0) as usize;
            out.push(stored.split_to(frame_len.min(stored.len())));
        }
        if !hole_frames.is_empty() {
            out.push(hole_frames.split_to(HOLE_FRAME_BYTES));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::HOLE_BYTES;

    fn fill() -> HoleFill {
        HoleFill::from_bytes(*b"0123456789abcdfghijklmnpqrsvwxyz").unwrap()
    }

    #[test]
    fn a_hole_frame_is_what_zstd_reads_as_the_fill() {
        let frame = hole_frame(&fill());
        validate_frame(&frame, HOLE_BYTES).unwrap();
        assert_eq!(zstd::decode_all(&frame[..]).unwrap(), fill().as_bytes());
    }

    #[test]
    fn the_bound_on_frames_is_zstds_own() {
        for bytes in [1, 100, 1000, 100_000, 131_071, 131_072, 131_073, 600_000, 4_194_335] {
            assert_eq!(frame_bytes_max(bytes), zstd::zstd_safe::compress_bound(bytes));
        }
    }

    #[test]
    fn frames_of_another_form_are_refused() {
        use zstd::zstd_safe::CParameter;
        let segment = b"a segment of sixty-four bytes, which are just enough for a frame".repeat(5);
        let compress = |parameter: CParameter| {
            let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
            compressor.set_parameter(parameter).unwrap();
            compressor.compress(&segment).unwrap()
        };
        let good = compress(CParameter::ContentSizeFlag(true));
        validate_frame(&good, segment.len()).unwrap();

        let changed = |position: usize, to: u8| {
            let mut frame = good.clone();
            frame[position] = to;
            frame
        };
        // Magic, descriptor (content size in two bytes), window of 1 KiB, content size - 256, one
        // raw block of 320 bytes.
        let header = [0x28, 0xb5, 0x2f, 0xfd, 0x40, 0x00, 64, 0, 0x01, 0x0a, 0];
        let windowed = [&header[..], &segment].concat();
        assert_eq!(zstd::decode_all(&windowed[..]).unwrap(), segment, "the row below is sound zstd");
        let rows: Vec<(&str, Vec<u8>, usize)> = vec![
            ("a checksum", compress(CParameter::ChecksumFlag(true)), segment.len()),
            ("no content size", compress(CParameter::ContentSizeFlag(false)), segment.len()),
            ("a window", windowed, segment.len()),
            ("a content size that is too large", good.clone(), segment.len() - 1),
            ("a content size that is too small", good.clone(), segment.len() + 1),
            ("a dictionary", changed(4, good[4] | 1), segment.len()),
            ("a reserved bit", changed(4, good[4] | 8), segment.len()),
            ("an unused bit", changed(4, good[4] | 16), segment.len()),
            ("another magic", changed(0, 0x29), segment.len()),
            ("a byte behind it", [&good[..], &[0]].concat(), segment.len()),
            ("a frame behind it", [&good[..], &good].concat(), 2 * segment.len()),
            ("a skippable frame behind it", [&good[..], b"\x50\x2a\x4d\x18\0\0\0\0"].concat(), segment.len()),
            ("a skippable frame", b"\x50\x2a\x4d\x18\x04\0\0\0abcd".to_vec(), 4),
            ("a block of the reserved type", b"\x28\xb5\x2f\xfd\x20\x01\x0f\0\0a".to_vec(), 1),
            ("an endless row of empty blocks", [&b"\x28\xb5\x2f\xfd\x20\x01"[..], &[0; 300]].concat(), 1),
            (
                "plain blocks longer than the content",
                b"\x28\xb5\x2f\xfd\x20\x01\x08\0\0a\x09\0\0a".to_vec(),
                1,
            ),
            ("a block longer than the content", b"\x28\xb5\x2f\xfd\x20\x01\x11\0\0aa".to_vec(), 1),
            ("no content", b"\x28\xb5\x2f\xfd\x20\0\x01\0\0".to_vec(), 0),
        ];
        for (what, frame, segment_bytes) in rows {
            assert!(validate_frame(&frame, segment_bytes).is_err(), "{what}");
        }
        for len in 0..good.len() {
            assert!(validate_frame(&good[..len], segment.len()).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn splicing_what_does_not_belong_together_is_refused() {
        let layout = ChunkLayout { raw_len: 132, holes: vec![50], frames: vec![20, 30] };
        let stored = Bytes::from(vec![0; 50]);
        let mut out = Vec::new();
        assert!(splice(&stored.slice(1..), &layout, &[fill()], &mut out).is_err());
        assert!(splice(&stored, &layout, &[], &mut out).is_err());
        assert!(splice(&stored, &layout, &[fill(), fill()], &mut out).is_err());
        assert!(out.is_empty());
        splice(&stored, &layout, &[fill()], &mut out).unwrap();
        assert_eq!(out.iter().map(Bytes::len).collect::<Vec<_>>(), [20, 41, 30]);
    }

    #[test]
    fn a_chunk_without_holes_is_one_slice_of_the_same_memory() {
        let layout = ChunkLayout { raw_len: 100, holes: vec![], frames: vec![50] };
        let stored = Bytes::from(vec![0; 50]);
        let mut out = Vec::new();
        splice(&stored, &layout, &[], &mut out).unwrap();
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].as_ptr(), stored.as_ptr());
    }
}
