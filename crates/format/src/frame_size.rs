//! How long frames are.

/// The largest block of zstd.
pub(crate) const BLOCK_BYTES_MAX: usize = 128 * 1024;

/// Bytes of a hole's frame: magic, descriptor, content size, block header, and the 32 characters.
pub const HOLE_FRAME_BYTES: usize = 41;

/// The shortest possible frame: magic, descriptor, content size, block header, one byte.
pub(crate) const FRAME_BYTES_MIN: usize = 10;

/// The longest accepted frame for a segment: zstd's own bound for what it writes
/// (`ZSTD_COMPRESSBOUND`).
pub(crate) const fn frame_bytes_max(segment_bytes: usize) -> usize {
    let small = if segment_bytes < BLOCK_BYTES_MAX { (BLOCK_BYTES_MAX - segment_bytes) >> 11 } else { 0 };
    segment_bytes + (segment_bytes >> 8) + small
}
