//! FastCDC's cuts, searched in several places side by side.
//!
//! Layer: format (pure). Spec: docs/STORAGE.md, "Chunks".
//!
//! Algorithm: each byte shifts the gear hash by a bit, so a hash depends on the last 64 bytes
//! alone. A search of one byte after the other waits for each hash before it begins the next one.
//! So a block is divided into lanes, and the search of each lane begins with the hash of the 64
//! bytes before it: the processor works on several hashes at once. A block with a cut in it, and
//! the rest behind the last block, are searched byte by byte.
//!
//! Invariant: the cuts are those of `fastcdc::v2020::cut`, for all bytes and all valid sizes.

use std::borrow::Cow;

use fastcdc::v2020::{self, Normalization};

use crate::chunker::ChunkParams;

/// Bytes that a hash depends on.
const HASHED_BYTES: usize = 64;

/// Lanes of a block. With four, the processor is busy; more would not fit into its registers.
const LANES: usize = 4;

/// Bytes of a lane. The hash before a lane costs 1/16 of the lane, and a block with a cut in it is
/// searched twice.
const LANE_BYTES: usize = 1024;

/// Cuts a stream, chunk by chunk.
#[derive(Debug)]
pub(crate) struct Cutter {
    params: ChunkParams,
    /// What each byte adds to the hash.
    gear: Cow<'static, [u64]>,
    mask_small: u64,
    mask_large: u64,
    /// Bytes of the present chunk so far.
    len: usize,
    /// The hash of the last of them, if they are more than the smallest chunk.
    hash: u64,
}

impl Cutter {
    /// A cutter for valid sizes.
    pub(crate) fn new(params: ChunkParams) -> Self {
        let (mask_small, mask_large) = v2020::select_masks(params.avg as usize, Normalization::Level1);
        let (gear, _) = v2020::get_gear_with_seed(0);
        Self { params, gear, mask_small, mask_large, len: 0, hash: 0 }
    }

    /// Takes the next bytes of a stream that goes on behind them. If the present chunk ends in
    /// them, returns how many of them it has: the caller pushes the others again.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Option<usize> {
        let ChunkParams { min, avg, max } = self.params;
        let [min, avg, max] =
            [min, avg, max].map(|size| (size as usize).saturating_sub(self.len).min(bytes.len()));
        let found = self.find(&bytes[min..avg], self.mask_small).map(|place| min + place);
        let found = found.or_else(|| Some(avg + self.find(&bytes[avg..max], self.mask_large)?));
        let found = found.or((max < bytes.len()).then_some(max));
        match found {
            Some(_) => self.restart(),
            None => self.len += bytes.len(),
        }
        found
    }

    /// As [`push`](Self::push), for the last bytes of the stream.
    pub(crate) fn push_last(&mut self, bytes: &[u8]) -> Option<usize> {
        // FastCDC takes two bytes at a time: it does not look at the last one of an odd number.
        let ignored = ((self.len + bytes.len()) % 2).min(bytes.len());
        let looked_at = bytes.len() - ignored;
        let found = self.push(&bytes[..looked_at]);
        if found.is_some() || ignored == 0 {
            return found;
        }
        if self.len == self.params.max as usize {
            self.restart();
            return Some(looked_at);
        }
        self.len += ignored;
        None
    }

    fn restart(&mut self) {
        (self.len, self.hash) = (0, 0);
    }

    /// Goes on with these bytes. Returns the place of the first one whose hash has no bit of the
    /// mask.
    fn find(&mut self, bytes: &[u8], mask: u64) -> Option<usize> {
        let gear = self.gear.first_chunk().expect("there is a number for each byte");
        let mut place = 0;
        while let Some(block) = bytes[place..].first_chunk()
            && let Some(hash) = pass(gear, self.hash, block, mask)
        {
            self.hash = hash;
            place += block.len();
        }
        let behind = bytes[place..].iter().position(|&byte| {
            self.hash = next(gear, self.hash, byte);
            self.hash & mask == 0
        });
        behind.map(|behind| place + behind)
    }
}

/// The hash after one more byte.
fn next(gear: &[u64; 256], hash: u64, byte: u8) -> u64 {
    (hash << 1).wrapping_add(gear[usize::from(byte)])
}

/// The hash after a block; `None` if there is a cut in the block.
fn pass(gear: &[u64; 256], hash: u64, block: &[u8; LANES * LANE_BYTES], mask: u64) -> Option<u64> {
    let mut hashes = [hash; LANES];
    for (lane, hash) in hashes.iter_mut().enumerate().skip(1) {
        let before = &block[lane * LANE_BYTES - HASHED_BYTES..lane * LANE_BYTES];
        *hash = before.iter().fold(0, |hash, &byte| next(gear, hash, byte));
    }
    for at in 0..LANE_BYTES {
        for (lane, hash) in hashes.iter_mut().enumerate() {
            *hash = next(gear, *hash, block[lane * LANE_BYTES + at]);
            if *hash & mask == 0 {
                return None;
            }
        }
    }
    Some(hashes[LANES - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK_BYTES: usize = LANES * LANE_BYTES;

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    /// The cut, which must be that of the crate.
    fn cut(params: ChunkParams, bytes: &[u8]) -> usize {
        let ChunkParams { min, avg, max } = params;
        let theirs = v2020::FastCDC::new(bytes, min as usize, avg as usize, max as usize);
        let (_, expected) = theirs.cut(0, bytes.len());
        let ours = Cutter::new(params).push_last(bytes).unwrap_or(bytes.len());
        assert_eq!(ours, expected, "{params:?}, {} bytes", bytes.len());
        ours
    }

    #[test]
    fn streams_are_cut_as_the_crate_cuts_them() {
        let text = b"see /nix/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-bash/bin/sh ".repeat(20_000);
        for bytes in [noise(3_000_000), text, vec![0; 1_500_000]] {
            for (min, avg, max) in [(64, 256, 1024), (1024, 8192, 65_536), (32_768, 131_072, 524_288)] {
                let params = ChunkParams::new(min, avg, max).unwrap();
                let mut rest = &bytes[..bytes.len().min(100 * avg as usize)];
                while !rest.is_empty() {
                    rest = &rest[cut(params, rest)..];
                }
            }
        }
    }

    #[test]
    fn a_stream_may_end_anywhere() {
        let bytes = noise(100_000);
        let params = ChunkParams::new(64, 32_768, 65_536).unwrap();
        let edges = [64, 64 + BLOCK_BYTES, 32_768, 32_768 + BLOCK_BYTES, 65_536];
        for edge in edges {
            for len in edge - 3..edge + 6 {
                cut(params, &bytes[..len]);
                // Nothing but the size cuts zeros.
                assert_eq!(cut(params, &vec![0; len]), len.min(65_536));
            }
        }
    }

    #[test]
    fn a_cut_is_found_at_every_place_of_a_block() {
        let params = ChunkParams::default();
        let min = params.min as usize;
        let bytes = noise(4 * 1024 * 1024);
        let Cutter { gear, mask_small, .. } = Cutter::new(params);
        let gear = gear.first_chunk().unwrap();
        let mut hash = 0;
        // The first byte that cuts, far enough behind the beginning.
        let from = 100_000;
        let first = bytes[from..].iter().position(|&byte| {
            hash = next(gear, hash, byte);
            hash & mask_small == 0
        });
        let first = from + first.expect("one byte in some 260,000 cuts");
        for lane in 0..LANES {
            for place in (0..2 * HASHED_BYTES).chain([LANE_BYTES / 2, LANE_BYTES - 1]) {
                // In the second block that is searched.
                let length = min + BLOCK_BYTES + lane * LANE_BYTES + place;
                assert_eq!(cut(params, &bytes[first - length..]), length, "lane {lane}, place {place}");
            }
        }
    }
}
