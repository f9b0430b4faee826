//! Recipes: how to rebuild a NAR from its chunks and fills.
//!
//! Layer: format (pure). Byte table: docs/STORAGE.md, "Recipe".
//!
//! Invariants (of every recipe that `decode` returns)
//! - No run is empty. No chunk number exceeds 2^63 - 1, the limit of a database column. Counts do
//!   not overflow.
//! - Every fill run refers to a hash in the recipe.
//! - Its memory is at most 8 times its encoded bytes (a run of chunks takes 16 bytes, and at least
//!   two encoded).

use std::collections::HashMap;

use crate::FORMAT_VERSION;
use crate::error::{Error, Malformed, Result};
use crate::ids::{FILL_PACKED_BYTES, HoleFill};
use crate::wire::{Reader, put_varint, unzigzag, zigzag};

/// Largest chunk number.
const NUMBER_MAX: u64 = i64::MAX as u64;

/// Consecutive chunk numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkRun {
    /// First number.
    pub first: u64,
    /// How many numbers, at least one.
    pub count: u32,
}

/// Consecutive holes with the same fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FillRun {
    /// Index into the recipe's hashes.
    pub hash: u32,
    /// How many holes, at least one.
    pub count: u32,
}

/// How to rebuild a NAR: its chunks in order, and the fills of their holes in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recipe {
    /// The chunks.
    pub runs: Vec<ChunkRun>,
    /// The distinct fills.
    pub hashes: Vec<HoleFill>,
    /// Which hash fills which hole.
    pub fills: Vec<FillRun>,
}

impl Recipe {
    /// Number of all chunks.
    pub fn chunk_count(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }

    /// Number of all holes.
    pub fn hole_count(&self) -> u64 {
        self.fills.iter().map(|run| u64::from(run.count)).sum()
    }

    /// All chunk numbers, in order.
    pub fn chunk_numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs.iter().flat_map(|run| run.first..run.first.saturating_add(run.count.into()))
    }

    /// The fills of the holes, in order. `nth` and `skip` jump over whole runs.
    pub fn hole_fills(&self) -> HoleFills<'_> {
        HoleFills { hashes: &self.hashes, runs: self.fills.iter(), current: None }
    }

    /// Encodes the recipe in its compact form.
    ///
    pub fn encode(&self) -> Vec<u8> {
        let hash_bytes = self.hashes.len() * FILL_PACKED_BYTES;
        let mut out = Vec::with_capacity(8 + 5 * self.runs.len() + hash_bytes + 2 * self.fills.len());
        put_varint(&mut out, FORMAT_VERSION.into());
        put_varint(&mut out, self.runs.len() as u64);
        let mut expected = 0_u64;
        for run in &self.runs {
            // Most runs begin near the end of the previous run, so the difference is short.
            put_varint(&mut out, zigzag(run.first.wrapping_sub(expected).cast_signed()));
            put_varint(&mut out, run.count.into());
            expected = run.first.wrapping_add(run.count.into());
        }
        put_varint(&mut out, self.hashes.len() as u64);
        for hash in &self.hashes {
            out.extend_from_slice(&hash.pack());
        }
        put_varint(&mut out, self.fills.len() as u64);
        for run in &self.fills {
            // Most runs are one hole long. The lowest bit says whether a count follows.
            put_varint(&mut out, u64::from(run.hash) << 1 | u64::from(run.count != 1));
            if run.count != 1 {
                put_varint(&mut out, run.count.into());
            }
        }
        out
    }

    /// Reads a recipe that fills all of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::read(bytes).map_err(|source| Error::Recipe { source })
    }

    fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let version = reader.varint()?;
        if version != u64::from(FORMAT_VERSION) {
            return Err(Malformed::Version { version: u16::try_from(version).unwrap_or(u16::MAX) });
        }
        let runs = read_runs(&mut reader)?;
        let hashes: Vec<HoleFill> = (0..reader.count(FILL_PACKED_BYTES)?)
            .map(|_| reader.array().map(HoleFill::unpack))
            .collect::<Result<_, _>>()?;
        let fills = read_fills(&mut reader, &hashes)?;
        reader.finish()?;
        Ok(Self { runs, hashes, fills })
    }
}

fn read_runs(reader: &mut Reader<'_>) -> Result<Vec<ChunkRun>, Malformed> {
    let out_of_bounds = Malformed::OutOfBounds { what: "a run of chunks" };
    let run_count = reader.count(2)?;
    let mut runs = Vec::with_capacity(run_count);
    let mut expected = 0_u64;
    for _ in 0..run_count {
        let first = expected.checked_add_signed(unzigzag(reader.varint()?)).ok_or(out_of_bounds)?;
        let count = reader.varint_u32()?;
        // `first + count` may be one past the largest number. The sum always fits 64 bits.
        expected = first.checked_add(count.into()).ok_or(out_of_bounds)?;
        if count == 0 || expected > NUMBER_MAX + 1 {
            return Err(out_of_bounds);
        }
        runs.push(ChunkRun { first, count });
    }
    Ok(runs)
}

fn read_fills(reader: &mut Reader<'_>, hashes: &[HoleFill]) -> Result<Vec<FillRun>, Malformed> {
    let out_of_bounds = Malformed::OutOfBounds { what: "a run of fills" };
    let run_count = reader.count(1)?;
    let mut fills = Vec::with_capacity(run_count);
    for _ in 0..run_count {
        let head = reader.varint()?;
        let hash = u32::try_from(head >> 1).map_err(|_| out_of_bounds)?;
        // An explicit count of one would be a second spelling of no count.
        let count = if head & 1 == 0 { 1 } else { reader.varint_u32()? };
        if hash as usize >= hashes.len() || count == 0 || (head & 1 == 1 && count == 1) {
            return Err(out_of_bounds);
        }
        fills.push(FillRun { hash, count });
    }
    Ok(fills)
}

/// See [`Recipe::hole_fills`].
#[derive(Debug, Clone)]
pub struct HoleFills<'a> {
    hashes: &'a [HoleFill],
    runs: std::slice::Iter<'a, FillRun>,
    /// The current run, with its remaining holes.
    current: Option<FillRun>,
}

impl<'a> Iterator for HoleFills<'a> {
    type Item = &'a HoleFill;

    fn next(&mut self) -> Option<Self::Item> {
        self.nth(0)
    }

    fn nth(&mut self, mut skipped: usize) -> Option<Self::Item> {
        loop {
            let run = match self.current.take() {
                Some(run) => run,
                None => *self.runs.next()?,
            };
            let left = run.count as usize;
            if skipped < left {
                let count = u32::try_from(left - skipped - 1).expect("less than a 32-bit count");
                self.current = (count > 0).then_some(FillRun { hash: run.hash, count });
                return self.hashes.get(run.hash as usize);
            }
            skipped -= left;
        }
    }
}

/// Builds a recipe. Chunks and fills may be pushed in any interleaving.
#[derive(Debug, Clone, Default)]
pub struct RecipeBuilder {
    recipe: Recipe,
    known: HashMap<HoleFill, u32>,
}

impl RecipeBuilder {
    /// Starts the recipe of one NAR.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next chunk.
    pub fn push_chunk(&mut self, number: u64) {
        if let Some(run) = self.recipe.runs.last_mut()
            && run.first + u64::from(run.count) == number
            && run.count < u32::MAX
        {
            run.count += 1;
        } else {
            self.recipe.runs.push(ChunkRun { first: number, count: 1 });
        }
    }

    /// Adds the fill of the next hole.
    pub fn push_fill(&mut self, fill: &HoleFill) {
        if let Some(run) = self.recipe.fills.last_mut()
            && self.recipe.hashes[run.hash as usize] == *fill
            && run.count < u32::MAX
        {
            run.count += 1;
            return;
        }
        let hashes = &mut self.recipe.hashes;
        let hash = *self.known.entry(*fill).or_insert_with(|| {
            hashes.push(*fill);
            u32::try_from(hashes.len() - 1).expect("fewer than 2^32 distinct fills fit in memory")
        });
        self.recipe.fills.push(FillRun { hash, count: 1 });
    }

    /// Finishes the recipe.
    pub fn finish(self) -> Recipe {
        self.recipe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(character: u8) -> HoleFill {
        HoleFill::from_bytes([character; 32]).unwrap()
    }

    fn built(chunks: &[u64], fills: &[u8]) -> Recipe {
        let mut builder = RecipeBuilder::new();
        for &number in chunks {
            builder.push_chunk(number);
        }
        for &character in fills {
            builder.push_fill(&fill(character));
        }
        builder.finish()
    }

    #[test]
    fn the_builder_joins_what_follows_on_each_other() {
        let recipe = built(&[5, 6, 7, 3, 4, 4], b"00010");
        assert_eq!(
            recipe.runs,
            [
                ChunkRun { first: 5, count: 3 },
                ChunkRun { first: 3, count: 2 },
                ChunkRun { first: 4, count: 1 }
            ]
        );
        assert_eq!(recipe.hashes, [fill(b'0'), fill(b'1')]);
        let expected = [(0, 3), (1, 1), (0, 1)].map(|(hash, count)| FillRun { hash, count });
        assert_eq!(recipe.fills, expected);
        assert_eq!((recipe.chunk_count(), recipe.hole_count()), (6, 5));
        assert_eq!(recipe.chunk_numbers().collect::<Vec<_>>(), [5, 6, 7, 3, 4, 4]);
    }

    #[test]
    fn fills_come_back_in_order_and_can_be_skipped() {
        let characters = b"0001022zzz0";
        let recipe = built(&[], characters);
        let expected: Vec<_> = characters.iter().map(|&character| fill(character)).collect();
        assert_eq!(recipe.hole_fills().copied().collect::<Vec<_>>(), expected);
        for skipped in 0..=expected.len() + 1 {
            let rest: Vec<_> = recipe.hole_fills().skip(skipped).copied().collect();
            assert_eq!(rest, expected[skipped.min(expected.len())..]);
        }
    }

    #[test]
    fn a_fresh_nar_takes_a_few_bytes() {
        let numbers: Vec<u64> = (100_000..108_000).collect();
        assert_eq!(built(&numbers, b"").encode().len(), 9);
        assert_eq!(built(&numbers, b"0").encode().len(), 9 + 20 + 1);
    }

    #[test]
    fn recipes_that_break_a_rule_are_refused() {
        let run = |first, count| ChunkRun { first, count };
        let recipe = |runs: &[ChunkRun], hashes: usize, fills: &[(u32, u32)]| Recipe {
            runs: runs.to_vec(),
            hashes: vec![fill(b'0'); hashes],
            fills: fills.iter().map(|&(hash, count)| FillRun { hash, count }).collect(),
        };
        for (what, recipe) in [
            ("an empty run of chunks", recipe(&[run(3, 0)], 0, &[])),
            ("a number that no column holds", recipe(&[run(NUMBER_MAX, 2)], 0, &[])),
            ("a number over 64 bits", recipe(&[run(u64::MAX, 2)], 0, &[])),
            ("a fill that is not there", recipe(&[run(3, 1)], 1, &[(1, 1)])),
            ("an empty run of fills", recipe(&[run(3, 1)], 1, &[(0, 0)])),
        ] {
            assert!(Recipe::decode(&recipe.encode()).is_err(), "{what}");
        }
        let largest = recipe(&[run(NUMBER_MAX, 1), run(0, u32::MAX)], 1, &[(0, u32::MAX)]);
        assert_eq!(Recipe::decode(&largest.encode()).unwrap(), largest);
    }

    #[test]
    fn other_versions_and_second_spellings_are_refused() {
        let bytes = built(&[1, 2], b"0").encode();
        assert_eq!(bytes[..4], [1, 1, 2, 2], "version, one run, first (zigzag), count");
        let mut other = bytes.clone();
        other[0] = 2;
        assert!(matches!(
            Recipe::decode(&other),
            Err(Error::Recipe { source: Malformed::Version { version: 2 } })
        ));
        let mut spelled_out = bytes.clone();
        *spelled_out.last_mut().unwrap() |= 1;
        spelled_out.push(1);
        assert!(Recipe::decode(&spelled_out).is_err(), "a count of one is not written");
        for len in 0..bytes.len() {
            assert!(Recipe::decode(&bytes[..len]).is_err());
        }
        assert!(Recipe::decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn a_hostile_count_allocates_nothing() {
        let mut bytes = vec![1];
        put_varint(&mut bytes, u64::MAX >> 8);
        assert!(Recipe::decode(&bytes).is_err());
    }
}
