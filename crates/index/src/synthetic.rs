//! Rows for tests of large indexes: made by the database itself, by formulas of their numbers, so
//! that their keys can be told without reading them.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::time::Instant;

use dormer_format::{ChunkId, ChunkLayout, ChunkRun, RecipeBuilder};
use dormer_nix::{NarHash, StorePath, StorePathHash};

use crate::columns::{pack_references, pack_signatures};
use crate::{CacheId, Index};

/// Objects in the index: in the long run as many as the largest caches have.
pub(crate) fn object_count() -> u64 {
    if std::env::var_os("DORMER_TEST_LONG").is_some() { 5_000_000 } else { 20_000 }
}

/// Chunks in each pack.
pub(crate) const PACK_CHUNKS: u64 = 250;

/// Chunks of each object.
pub(crate) const OBJECT_CHUNKS: u64 = 4;

/// Look-ups of each kind.
const SAMPLES: u64 = 200;

/// What all rows have in common, as hexadecimal.
pub(crate) struct Columns {
    pub(crate) layout: String,
    pub(crate) recipe: String,
    pub(crate) refs: String,
    pub(crate) sigs: String,
}

impl Columns {
    pub(crate) fn new() -> Self {
        let layout = ChunkLayout { raw_len: 131_072, holes: vec![], frames: vec![60_000] };
        let mut recipe = RecipeBuilder::new();
        (0..OBJECT_CHUNKS).for_each(|chunk| recipe.push_chunk(65_536 + chunk));
        let path = StorePath::new(StorePathHash::from_bytes([0; 20]), "package").expect("a good name");
        Self {
            layout: hex::encode(layout.encode()),
            recipe: hex::encode(recipe.finish().encode()),
            refs: hex::encode(pack_references(&path, &[])),
            sigs: hex::encode(pack_signatures(&[])),
        }
    }
}

/// The key of a row, in `len` bytes, from its kind and number: spread over the whole range of keys,
/// and the same in both databases' SQL. Keys ascend with numbers, which makes filling an index fast
/// and looking up no faster.
pub(crate) fn key(kind: u64, number: u64, len: usize) -> Vec<u8> {
    let mut key = (number * KEY_STEP + kind).to_be_bytes().to_vec();
    key.resize(len, 0);
    key
}

/// The distance between two keys. Numbers up to 23 million stay within 63 bits.
pub(crate) const KEY_STEP: u64 = 400_000_000_000;

pub(crate) const CHUNKS: u64 = 1;
pub(crate) const NARS: u64 = 2;
pub(crate) const OBJECTS: u64 = 3;
pub(crate) const PACKS: u64 = 4;

pub(crate) fn path_hash(number: u64) -> StorePathHash {
    StorePathHash::from_bytes(key(OBJECTS, number, 20).try_into().expect("20 bytes"))
}

fn nar_hash(number: u64) -> NarHash {
    NarHash::from_bytes(key(NARS, number, 32).try_into().expect("32 bytes"))
}

fn chunk_id(number: u64) -> ChunkId {
    ChunkId::from_bytes(key(CHUNKS, number, 32).try_into().expect("32 bytes"))
}

/// Looks things up all over an index of so many objects, and checks what is found and by how many
/// statements. Returns a line for people: what each kind took, in microseconds (the median).
pub(crate) async fn look_around(index: &dyn Index, cache: CacheId, objects: u64) -> String {
    let chunks = objects * OBJECT_CHUNKS;
    let mut line = format!("{objects} objects, {chunks} chunks:");
    let mut note = |what: &str, mut took: Vec<u128>| {
        took.sort_unstable();
        let _ = write!(line, " {what} {} µs;", took[took.len() / 2]);
    };
    let nth = |sample: u64, of: u64| 1 + sample * 7_919 % of;
    let mut took = Vec::new();
    for sample in 0..SAMPLES {
        let before = (Instant::now(), index.statement_count());
        let found = index.find_object(cache, &path_hash(nth(sample, objects))).await.expect("it answers");
        took.push(before.0.elapsed().as_micros());
        assert!(found.is_some(), "object {}", nth(sample, objects));
        assert_eq!(index.statement_count() - before.1, 1);
    }
    note("an object", std::mem::take(&mut took));
    for sample in 0..SAMPLES {
        let before = (Instant::now(), index.statement_count());
        assert_eq!(
            index.find_object(cache, &path_hash(objects + 1 + sample)).await.expect("it answers"),
            None
        );
        took.push(before.0.elapsed().as_micros());
        assert!(index.statement_count() - before.1 <= 1);
    }
    note("a miss", std::mem::take(&mut took));
    for sample in 0..SAMPLES {
        let before = Instant::now();
        let found = index.find_nar(&nar_hash(nth(sample, objects))).await.expect("it answers");
        took.push(before.elapsed().as_micros());
        assert!(found.is_some_and(|nar| !nar.damaged));
    }
    note("a NAR", std::mem::take(&mut took));
    for sample in 0..SAMPLES / 10 {
        // A batch of a push: half of it is known.
        let ids: Vec<ChunkId> = (0..96)
            .map(|n| chunk_id(if n % 2 == 0 { nth(sample * 97 + n, chunks) } else { chunks + n }))
            .collect();
        let before = (Instant::now(), index.statement_count());
        let found = index.find_chunks(&ids).await.expect("it answers");
        took.push(before.0.elapsed().as_micros());
        assert_eq!(found.iter().flatten().count(), 48);
        assert_eq!(index.statement_count() - before.1, 1);
    }
    note("96 chunks", std::mem::take(&mut took));
    for sample in 0..SAMPLES / 10 {
        let pack = nth(sample, chunks / PACK_CHUNKS);
        let runs =
            [ChunkRun { first: pack * 65_536 + 10, count: 100 }, ChunkRun { first: 65_536, count: 20 }];
        let before = (Instant::now(), index.statement_count());
        assert_eq!(index.load_chunks(&runs).await.expect("it answers").len(), 120);
        took.push(before.0.elapsed().as_micros());
        assert_eq!(index.statement_count() - before.1, 1);
    }
    note("two runs of chunks", std::mem::take(&mut took));
    for sample in 0..5 {
        let hashes: Vec<StorePathHash> = (0..10_000)
            .map(|n| path_hash(nth(sample * 10_007 + n, objects) + (n % 2) * 2 * objects))
            .collect();
        let before = (Instant::now(), index.statement_count());
        let present = index.present_objects(cache, &hashes).await.expect("it answers");
        took.push(before.0.elapsed().as_micros());
        assert_eq!(index.statement_count() - before.1, 1, "10,000 paths are one question");
        let present: HashSet<StorePathHash> = present.into_iter().map(|(hash, _)| hash).collect();
        assert_eq!(present, hashes.iter().copied().step_by(2).collect());
    }
    note("which of 10,000 paths are there", took);
    line
}
