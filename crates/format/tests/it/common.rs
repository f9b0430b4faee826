//! What several tests share: a deterministic input with everything that chunking must distinguish.

use dormer_format::{ChunkParams, ChunkShape, Chunker, RawChunk, ShapeChunker};

/// The store folder of all inputs here.
pub(crate) const STORE_DIR: &str = "/nix/store";

const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// SplitMix64: the same numbers on every machine, from a few lines that never change.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, bound: u64) -> usize {
        usize::try_from(self.next() % bound).expect("below a bound of type usize")
    }

    pub(crate) fn hash(&mut self) -> [u8; 32] {
        std::array::from_fn(|_| ALPHABET[self.below(32)])
    }
}

/// About `len` bytes: noise, text, zeros, store paths with a few hashes, lists of paths, and texts
/// that only resemble a path.
pub(crate) fn sample(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let hashes: Vec<[u8; 32]> = (0..7).map(|_| dice.hash()).collect();
    let mut out = Vec::new();
    while out.len() < len {
        match dice.below(200) {
            0 => (0..dice.below(100)).for_each(|_| {
                out.extend_from_slice(b"/nix/store/");
                out.extend_from_slice(&dice.hash());
                out.extend_from_slice(b"-package-1.0\n");
            }),
            1..=4 => out.extend_from_slice(b"/nix/store/0123456789"),
            5..=9 => out.extend([b'e'; 40]),
            10..=20 => {
                out.extend_from_slice(b"/nix/store/");
                out.extend_from_slice(&hashes[dice.below(7)]);
                out.extend_from_slice(b"-package-1.0/lib/libpackage.so.1");
            }
            21..=40 => out.resize(out.len() + dice.below(3000), 0),
            41..=120 => (0..dice.below(400)).for_each(|word| {
                out.extend(format!("word {} of {word}\n", word * 7 % 50).bytes());
            }),
            _ => (0..dice.below(4000)).for_each(|_| out.push(dice.next().to_le_bytes()[0])),
        }
    }
    out
}

/// About `len` bytes with a store path every few hundred bytes, as in shell scripts and run-time
/// search paths.
pub(crate) fn dense_sample(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let hashes: Vec<[u8; 32]> = (0..5).map(|_| dice.hash()).collect();
    let mut out = Vec::new();
    while out.len() < len {
        (0..dice.below(150)).for_each(|_| out.push(dice.next().to_le_bytes()[0]));
        out.extend_from_slice(&b"export PATH=/usr/bin:/bin:\n".repeat(dice.below(8)));
        for _ in 0..dice.below(4) {
            out.extend_from_slice(b"/nix/store/");
            out.extend_from_slice(&hashes[dice.below(5)]);
        }
    }
    out
}

/// All chunks of an input that arrives in pieces of the given sizes, in turn. Their shapes are the
/// same without their bytes.
pub(crate) fn chunks_in_pieces(params: ChunkParams, bytes: &[u8], sizes: &[usize]) -> Vec<RawChunk> {
    let (mut out, mut shapes) = (Vec::new(), Vec::new());
    let mut chunker = Chunker::new(params, STORE_DIR);
    let mut shape_chunker = ShapeChunker::new(params, STORE_DIR);
    let mut rest = bytes;
    for &size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at(size.min(rest.len()));
        chunker.push(now, &mut out);
        shape_chunker.push(now, &mut shapes);
        rest = later;
    }
    chunker.finish(&mut out);
    shape_chunker.finish(&mut shapes);
    let shape = |chunk: &RawChunk| ChunkShape {
        raw_len: chunk.bytes.len(),
        holes: chunk.holes.clone(),
        fills: chunk.fills.clone(),
    };
    assert_eq!(out.iter().map(shape).collect::<Vec<_>>(), shapes);
    out
}

/// All chunks of an input that arrives at once.
pub(crate) fn chunks(params: ChunkParams, bytes: &[u8]) -> Vec<RawChunk> {
    chunks_in_pieces(params, bytes, &[bytes.len().max(1)])
}
