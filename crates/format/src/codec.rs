//! Turns raw chunks into stored frames and back.
//!
//! Layer: format (pure). Only this module calls zstd. Writes encode; pushes by chunks, scrub,
//! healing and listings decode; reads of NARs do neither.
//!
//! Invariants
//! - Everything that `Encoder` makes passes `validate_frame`, at every size and level, compressible
//!   or not.
//! - One context and its buffer serve many chunks in turn: a new zstd context costs more than a
//!   small segment.

use std::io::Cursor;

use bytes::Bytes;
use twox_hash::XxHash3_64;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, WriteBuf, compress_bound};

use crate::chunker::{BLANK, RawChunk, fill_holes};
use crate::error::{Error, Malformed, Result};
use crate::frame::{check_frame, check_stored};
use crate::ids::{ChunkId, HoleFill};
use crate::layout::{ChunkLayout, check_holes, segments};

/// Base-2 logarithm of the largest zstd window. The window exceeds the largest chunk (slightly over
/// 4 MiB), so that every frame can be single segment. zstd shrinks the window to the segment, so
/// the size costs nothing.
const WINDOW_LOG: u32 = 23;

/// XXH3-64 of stored bytes. The server sends no chunk before its XXH3-64 matches.
pub fn checksum(stored: &[u8]) -> u64 {
    XxHash3_64::oneshot(stored)
}

/// A chunk in its stored form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChunk {
    /// The id of the chunk.
    pub id: ChunkId,
    /// How the stored bytes divide into frames.
    pub layout: ChunkLayout,
    /// XXH3-64 of the stored bytes.
    pub checksum: u64,
    /// The stored bytes: the frames of the chunk back to back, never empty.
    pub bytes: Bytes,
}

/// Most bytes of memory that an [`Encoder`] of this zstd level takes for chunks of up to
/// `chunk_max` bytes: the context, whose tables grow with both, and the buffer.
pub fn encoder_bytes_max(level: i32, chunk_max: u32) -> usize {
    const MIB: usize = 1024 * 1024;
    let chunk_max = usize::try_from(chunk_max).unwrap_or(usize::MAX);
    // Measured of zstd 1.5.7; levels below 1 are fast ones, and 0 is 3.
    let context_max = match level {
        ..=3 => 2 * MIB,
        4..=6 => 4 * MIB,
        7..=8 => 7 * MIB,
        9 => 13 * MIB,
        10..=11 => 25 * MIB,
        _ => 66 * MIB,
    };
    context_max.min(chunk_max.saturating_mul(18).saturating_add(MIB)).saturating_add(2 * chunk_max)
}

/// Compresses chunks one after another with one context.
pub struct Encoder {
    compressor: Compressor<'static>,
    /// Frames of the current chunk. The buffer keeps its capacity for the next one.
    scratch: Vec<u8>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Encoder {
    /// Makes an encoder for a zstd level.
    pub fn new(level: i32) -> Result<Self> {
        let set_up = || {
            let mut compressor = Compressor::new(level)?;
            compressor.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
            compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
            compressor.set_parameter(CParameter::ChecksumFlag(false))?;
            compressor.set_parameter(CParameter::DictIdFlag(false))?;
            Ok(compressor)
        };
        let compressor = set_up().map_err(|source| Error::SetUpCompressor { level, source })?;
        Ok(Self { compressor, scratch: Vec::new() })
    }

    /// Compresses a chunk and computes its id. Use [`encode_as`](Self::encode_as) if you know the
    /// id.
    pub fn encode(&mut self, chunk: &RawChunk) -> Result<StoredChunk> {
        self.encode_as(chunk.id(), chunk)
    }

    /// Compresses a chunk with a known id, from the look-up that found the chunk missing.
    pub fn encode_as(&mut self, id: ChunkId, chunk: &RawChunk) -> Result<StoredChunk> {
        let frames = self.compress(&chunk.bytes, &chunk.holes)?;
        let raw_len = u32::try_from(chunk.bytes.len()).expect("checked to be 4 MiB and a bit at most");
        // The copy is exactly as large as the stored bytes. They wait in memory until their pack is
        // full.
        let bytes = Bytes::copy_from_slice(&self.scratch);
        let layout = ChunkLayout { raw_len, holes: chunk.holes.clone(), frames };
        Ok(StoredChunk { id, layout, checksum: checksum(&bytes), bytes })
    }

    /// Returns how many stored bytes a chunk of these blanked bytes would have.
    pub fn stored_bytes(&mut self, blanked: &[u8], holes: &[u32]) -> Result<u64> {
        self.compress(blanked, holes)?;
        Ok(self.scratch.len() as u64)
    }

    /// Compresses the segments into `scratch`. Returns the lengths of their frames.
    fn compress(&mut self, blanked: &[u8], holes: &[u32]) -> Result<Vec<u32>> {
        check_holes(blanked.len(), holes).map_err(|source| Error::EncodeChunk { source })?;
        let mut frames = Vec::with_capacity(holes.len() + 1);
        self.scratch.clear();
        for segment in segments(blanked.len(), holes).filter(|segment| !segment.is_empty()) {
            let frame_len = self.append_frame(&blanked[segment])?;
            frames.push(u32::try_from(frame_len).expect("a frame is hardly longer than its segment"));
        }
        if frames.is_empty() {
            return Err(Error::EncodeChunk {
                source: Malformed::OutOfBounds { what: "the count of frames" },
            });
        }
        Ok(frames)
    }

    /// Compresses a segment and appends its frame to `scratch`. Returns the length of the frame.
    fn append_frame(&mut self, segment: &[u8]) -> Result<usize> {
        let start = self.scratch.len();
        self.scratch.reserve(compress_bound(segment.len()));
        let mut destination = Cursor::new(&mut self.scratch);
        destination.set_position(start as u64);
        self.compressor
            .compress_to_buffer(segment, &mut destination)
            .map_err(|source| Error::Compress { segment_bytes: segment.len(), source })
    }
}

/// Decompresses chunks one after another with one context.
pub struct Decoder {
    decompressor: Decompressor<'static>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    /// Makes a decoder.
    pub fn new() -> Result<Self> {
        let decompressor = Decompressor::new().map_err(|source| Error::SetUpDecompressor { source })?;
        Ok(Self { decompressor })
    }

    /// Returns the bytes of a chunk as they are in its NAR.
    pub fn decode(&mut self, stored: &[u8], layout: &ChunkLayout, fills: &[HoleFill]) -> Result<Vec<u8>> {
        check_fills(layout, fills)?;
        let mut bytes = self.decode_blanked(stored, layout)?;
        fill_holes(&mut bytes, &layout.holes, fills);
        Ok(bytes)
    }

    /// As [`decode`](Self::decode), into bytes of the caller: as many as the chunk has.
    pub fn decode_into(
        &mut self,
        stored: &[u8],
        layout: &ChunkLayout,
        fills: &[HoleFill],
        bytes: &mut [u8],
    ) -> Result<()> {
        check_fills(layout, fills)?;
        check_chunk(stored, layout)?;
        if bytes.len() != layout.raw_len as usize {
            return Err(Error::Chunk { source: Malformed::Mismatch { what: "the room for a chunk" } });
        }
        let mut rest = stored;
        for (frame, (segment, &frame_len)) in layout.segments().zip(&layout.frames).enumerate() {
            let (now, behind) = rest.split_at(frame_len as usize);
            let content_bytes = segment.len();
            self.decompress(now, &mut bytes[segment], content_bytes, frame)?;
            rest = behind;
        }
        fill_holes(bytes, &layout.holes, fills);
        Ok(())
    }

    /// Returns the blanked bytes of a chunk, as [`ChunkId::compute`] takes them.
    pub fn decode_blanked(&mut self, stored: &[u8], layout: &ChunkLayout) -> Result<Vec<u8>> {
        check_chunk(stored, layout)?;
        // Each frame is decompressed behind what there is, so no byte is written twice.
        let mut bytes = Vec::with_capacity(layout.raw_len as usize);
        let mut rest = stored;
        for (frame, (segment, &frame_len)) in layout.segments().zip(&layout.frames).enumerate() {
            let (now, behind) = rest.split_at(frame_len as usize);
            bytes.resize(segment.start, BLANK);
            let mut destination = Cursor::new(&mut bytes);
            destination.set_position(segment.start as u64);
            self.decompress(now, &mut destination, segment.len(), frame)?;
            rest = behind;
        }
        bytes.resize(layout.raw_len as usize, BLANK);
        Ok(bytes)
    }

    /// Decompresses one frame into a segment. The content must fill the segment exactly.
    pub fn decode_frame(&mut self, frame: &[u8], segment: &mut [u8]) -> Result<()> {
        check_frame(frame, segment.len()).map_err(|source| Error::Frame { source })?;
        let content_bytes = segment.len();
        self.decompress(frame, segment, content_bytes, 0)
    }

    /// Decompresses a frame that must have so many bytes of content.
    fn decompress(
        &mut self,
        frame: &[u8],
        destination: &mut (impl WriteBuf + ?Sized),
        content_bytes: usize,
        position: usize,
    ) -> Result<()> {
        let written = self
            .decompressor
            .decompress_to_buffer(frame, destination)
            .map_err(|source| Error::Decompress { frame: position, source })?;
        if written == content_bytes {
            Ok(())
        } else {
            Err(Error::Chunk { source: Malformed::Mismatch { what: "the content size of a frame" } })
        }
    }
}

fn check_fills(layout: &ChunkLayout, fills: &[HoleFill]) -> Result<()> {
    if fills.len() == layout.holes.len() {
        Ok(())
    } else {
        Err(Error::Chunk { source: Malformed::Mismatch { what: "the count of fills" } })
    }
}

/// Checks a layout, and stored bytes against it, without decompressing them.
fn check_chunk(stored: &[u8], layout: &ChunkLayout) -> Result<()> {
    layout.validate()?;
    check_stored(stored, layout).map_err(|source| Error::Chunk { source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::validate_frame;
    use crate::frame_size::frame_bytes_max;
    use crate::ids::HOLE_BYTES;

    /// Bytes that no compressor can shrink.
    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    fn text(len: usize) -> Vec<u8> {
        b"Nix is a tool that takes a unique approach. ".iter().copied().cycle().take(len).collect()
    }

    fn literal(bytes: Vec<u8>) -> RawChunk {
        RawChunk { bytes, holes: Vec::new(), fills: Vec::new() }
    }

    #[test]
    fn frames_have_the_stored_form_at_every_size_and_level() {
        let sizes =
            (1..=300).chain([511, 512, 1023, 1024, 1025, 16_383, 16_384, 65_535, 65_536, 65_791, 65_792]);
        let sizes =
            sizes.chain([131_071, 131_072, 131_073, 262_144, 262_145, 524_288, 524_289, 614_400, 4_194_335]);
        let mut decoder = Decoder::new().unwrap();
        let mut encoders: Vec<_> = [1, 2, 3, 6, 9].map(|level| Encoder::new(level).unwrap()).into();
        for size in sizes {
            for bytes in [noise(size), text(size), vec![0; size]] {
                let chunk = literal(bytes);
                // The slow levels run once at each end of the scale: this is a test of headers, not
                // of zstd.
                let levels = if size > 600_000 { 3 } else { encoders.len() };
                for encoder in &mut encoders[..levels] {
                    let stored = encoder.encode(&chunk).unwrap();
                    validate_frame(&stored.bytes, size).unwrap();
                    assert!(stored.bytes.len() <= frame_bytes_max(size));
                    stored.layout.validate().unwrap();
                    assert_eq!(decoder.decode(&stored.bytes, &stored.layout, &[]).unwrap(), chunk.bytes);
                }
            }
        }
    }

    #[test]
    fn an_encoder_takes_no_more_memory_than_is_told() {
        for chunk_max in [64 * 1024, 512 * 1024, 4 * 1024 * 1024] {
            for level in
                [-5, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]
            {
                let mut encoder = Encoder::new(level).unwrap();
                // zstd chooses other tables for small segments.
                for len in [chunk_max / 16, chunk_max / 2, chunk_max] {
                    encoder.encode(&literal(vec![0; len])).unwrap();
                    let memory = encoder.compressor.context_mut().sizeof() + encoder.scratch.capacity();
                    let told = encoder_bytes_max(level, u32::try_from(chunk_max).unwrap());
                    assert!(memory <= told, "level {level}, {len} bytes: {memory} > {told}");
                }
            }
        }
    }

    #[test]
    fn chunks_that_cannot_be_stored_are_refused() {
        let mut encoder = Encoder::new(1).unwrap();
        let with_holes =
            |len, holes: &[u32]| RawChunk { bytes: text(len), holes: holes.to_vec(), fills: Vec::new() };
        for (what, chunk) in [
            ("empty", literal(Vec::new())),
            ("too large", literal(vec![0; crate::CHUNK_BYTES_MAX as usize + 1])),
            ("nothing but a hole", with_holes(32, &[0])),
            ("a hole over the end", with_holes(100, &[69])),
            ("overlapping holes", with_holes(100, &[0, 31])),
            ("too many holes", with_holes(33 * 65, &(0..65).map(|hole| hole * 33).collect::<Vec<_>>())),
        ] {
            assert!(encoder.encode(&chunk).is_err(), "{what}");
        }
        // The encoder still works after an error.
        encoder.encode(&literal(text(100))).unwrap();
    }

    #[test]
    fn stored_bytes_that_are_not_the_layouts_are_refused() {
        let mut decoder = Decoder::new().unwrap();
        let chunk = RawChunk { bytes: text(2000), holes: vec![100, 700], fills: Vec::new() };
        let stored = Encoder::new(3).unwrap().encode(&chunk).unwrap();
        let fill = HoleFill::from_bytes([b'0'; 32]).unwrap();
        let decode = |decoder: &mut Decoder, bytes: &[u8]| decoder.decode(bytes, &stored.layout, &[fill; 2]);
        decode(&mut decoder, &stored.bytes).unwrap();
        assert!(decoder.decode(&stored.bytes, &stored.layout, &[fill]).is_err());
        for len in 0..stored.bytes.len() {
            assert!(decode(&mut decoder, &stored.bytes[..len]).is_err());
        }
        let swapped = ChunkLayout {
            frames: stored.layout.frames.iter().rev().copied().collect(),
            ..stored.layout.clone()
        };
        assert!(decoder.decode(&stored.bytes, &swapped, &[fill; 2]).is_err());
        // A flipped bit is refused or changes the bytes. Other bytes never have the same checksum.
        for bit in 0..stored.bytes.len() * 8 {
            let mut bytes = stored.bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(checksum(&bytes), stored.checksum);
            if let Ok(decoded) = decode(&mut decoder, &bytes) {
                assert_eq!(decoded.len(), chunk.bytes.len());
            }
        }
    }

    #[test]
    fn a_decoded_chunk_has_the_id_it_was_stored_under() {
        let mut bytes = text(5000);
        bytes[70..102].fill(b'e');
        let chunk =
            RawChunk { bytes, holes: vec![70], fills: vec![HoleFill::from_bytes([b'z'; 32]).unwrap()] };
        let stored = Encoder::new(3).unwrap().encode(&chunk).unwrap();
        let mut decoder = Decoder::new().unwrap();
        let blanked = decoder.decode_blanked(&stored.bytes, &stored.layout).unwrap();
        assert_eq!(ChunkId::compute(&blanked, &stored.layout.holes), stored.id);
        assert_eq!(decoder.decode(&stored.bytes, &stored.layout, &chunk.fills).unwrap(), chunk.restore());
    }

    #[test]
    fn a_used_buffer_leaves_nothing_in_a_chunk() {
        let holes = vec![0, 100, 468];
        let mut bytes = text(500);
        for &hole in &holes {
            bytes[hole as usize..][..HOLE_BYTES].fill(BLANK);
        }
        let fills = vec![HoleFill::from_bytes([b'z'; 32]).unwrap(); 3];
        let chunk = RawChunk { bytes, holes, fills };
        let stored = Encoder::new(3).unwrap().encode(&chunk).unwrap();
        assert_eq!(
            Encoder::new(3).unwrap().stored_bytes(&chunk.bytes, &chunk.holes).unwrap(),
            stored.bytes.len() as u64
        );
        let mut decoder = Decoder::new().unwrap();
        let mut used = vec![b'#'; 500];
        decoder.decode_into(&stored.bytes, &stored.layout, &chunk.fills, &mut used).unwrap();
        assert_eq!(used, chunk.restore());
        assert_eq!(decoder.decode(&stored.bytes, &stored.layout, &chunk.fills).unwrap(), used);
        assert_eq!(decoder.decode_blanked(&stored.bytes, &stored.layout).unwrap(), chunk.bytes);
        for len in [0, 499, 501] {
            let mut room = vec![0; len];
            let decoded = decoder.decode_into(&stored.bytes, &stored.layout, &chunk.fills, &mut room);
            assert!(decoded.is_err(), "{len}");
        }
    }
}
