//! zstd frames: the one form in which bytes are stored and served.
//!
//! Layer: format (pure). Byte tables: docs/STORAGE.md, "Frame" and "Hole frame". The zstd format itself is RFC 8878.
//!
//! Invariants
//! - A stored frame is single segment (so no window is needed), gives its content size, has no dictionary and no
//!   checksum, and nothing behind it. Decoders read such frames one after the other as one stream.
//! - `validate_frame` walks a frame without decompressing it, and never trusts a length before checking it.

use bytes::Bytes;

use crate::error::{Error, Malformed, Result};
use crate::ids::{HOLE_BYTES, HoleFill};
use crate::layout::ChunkLayout;
use crate::wire::Reader;

/// First bytes of every zstd frame.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The descriptor bit that says: no window, the content is one segment.
const SINGLE_SEGMENT: u8 = 1 << 5;
/// The only descriptor bits that a stored frame may set: how wide the content size is, and the one above.
const DESCRIPTOR_ALLOWED: u8 = 0b1110_0000;
/// zstd's largest block.
const BLOCK_BYTES_MAX: usize = 128 * 1024;

/// Bytes of a hole's frame: magic, descriptor, content size, block header, and the 32 characters.
pub const HOLE_FRAME_BYTES: usize = 41;

/// Shortest possible frame: magic, descriptor, content size, block header, one byte.
pub(crate) const FRAME_BYTES_MIN: usize = 10;

/// Longest frame that is accepted for a segment: zstd's own bound on what it writes (`ZSTD_COMPRESSBOUND`).
pub(crate) const fn frame_bytes_max(segment_bytes: usize) -> usize {
    let small = if segment_bytes < BLOCK_BYTES_MAX { (BLOCK_BYTES_MAX - segment_bytes) >> 11 } else { 0 };
    segment_bytes + (segment_bytes >> 8) + small
}

/// The frame a hole is served as: one raw block of its 32 characters.
pub fn hole_frame(fill: &HoleFill) -> [u8; HOLE_FRAME_BYTES] {
    const HEADER: [u8; 9] = [
        MAGIC[0],
        MAGIC[1],
        MAGIC[2],
        MAGIC[3],
        SINGLE_SEGMENT,
        HOLE_BYTES as u8,
        // Block header, 24 bits: last block, type raw (0), 32 bytes.
        1 | (HOLE_BYTES as u8 & 31) << 3,
        (HOLE_BYTES >> 5) as u8,
        0,
    ];
    let mut frame = [0; HOLE_FRAME_BYTES];
    frame[..HEADER.len()].copy_from_slice(&HEADER);
    frame[HEADER.len()..].copy_from_slice(fill.as_bytes());
    frame
}

/// Checks that `frame` is one frame of the stored form for a segment of `segment_bytes`, without decompressing it.
///
/// What the blocks hold is only known when they are decompressed: see [`Decoder`](crate::Decoder).
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
    // Window, checksum, dictionary and reserved bits would each need something that is not stored.
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

/// Walks the blocks up to the last one.
fn check_blocks(reader: &mut Reader<'_>, segment_bytes: usize) -> Result<(), Malformed> {
    let block_bytes_max = segment_bytes.min(BLOCK_BYTES_MAX);
    // What compressed blocks become is not known here; plain ones alone must not exceed the segment.
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

/// Checks stored bytes against their layout: lengths, and the form of every frame.
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

/// Appends what is served for a chunk: its stored frames as they are, and a frame for each hole.
///
/// Nothing is copied but the fills. The parts together are [`ChunkLayout::spliced_len`] bytes. On an error nothing is
/// appended.
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
