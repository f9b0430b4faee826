//! Golden files pin version 1 of every format at rest: every released version stays readable, and
//! cuts, ids, layouts, recipes and tags are the same on every machine.
//!
//! Frames are the exception, because another version of zstd may compress better. The test
//! therefore reads and verifies the golden pack, but writes and compares only our parts of it:
//! header, table and trailer. `DORMER_WRITE_GOLDEN=1` writes the files, which is right only for a
//! new format version.

#![expect(clippy::disallowed_methods, reason = "only the crate itself is pure; its test reads files")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::common::{chunks, dense_sample, sample};
use bytes::Bytes;
use dormer_format::{
    ChunkLayout, ChunkParams, ChunkRun, Decoder, Encoder, FillRun, HoleFill, NarManifest, PackBuilder,
    PackId, RawChunk, Recipe, RecipeBuilder, StoredChunk, TagBuilder, read_pack,
};

const SEED: u64 = 20_260_101;
const PACK_ID: PackId = PackId::from_bytes(*b"golden pack no 1");

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Compares with a golden file, or writes the file when asked to.
fn check(name: &str, bytes: &[u8]) {
    let path = golden(name);
    if std::env::var_os("DORMER_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    let expected = std::fs::read(&path).unwrap();
    assert!(expected == bytes, "{name} differs: {} bytes there, {} here", expected.len(), bytes.len());
}

/// The chunks of the golden pack: small ones, some with holes, some literal.
fn pack_chunks() -> Vec<RawChunk> {
    chunks(ChunkParams::new(1024, 4096, 16_384).unwrap(), &dense_sample(SEED, 60_000))
}

fn cuts(params: ChunkParams, bytes: &[u8]) -> String {
    let mut text =
        format!("# {} bytes, chunks of {}/{}/{}\n", bytes.len(), params.min, params.avg, params.max);
    for chunk in chunks(params, bytes) {
        writeln!(text, "{} {} {:?}", chunk.id(), chunk.bytes.len(), chunk.holes).unwrap();
    }
    text
}

#[test]
fn cuts_and_chunk_ids_of_version_1_do_not_change() {
    let bytes = sample(SEED, 2_000_000);
    assert_eq!(
        blake3::hash(&bytes).to_hex().as_str(),
        "00535fa1566753f7cd2fee878a06be2a55843b44f4a96e45c61a7ee98ecdb635",
        "the sample itself changed"
    );
    let default = cuts(ChunkParams::default(), &bytes);
    assert!(default.contains(", "), "some chunk has several holes");
    check("cuts-32-128-512.txt", default.as_bytes());
    let small = cuts(ChunkParams::new(1024, 4096, 16_384).unwrap(), &dense_sample(SEED, 200_000));
    check("cuts-1-4-16.txt", small.as_bytes());
}

#[test]
fn a_pack_of_version_1_reads_back_to_its_chunks() {
    let path = golden("v1.pack");
    if std::env::var_os("DORMER_WRITE_GOLDEN").is_some() {
        let mut encoder = Encoder::new(3).unwrap();
        let mut builder = PackBuilder::new(PACK_ID);
        for chunk in pack_chunks() {
            builder.add(encoder.encode(&chunk).unwrap());
        }
        std::fs::write(&path, builder.finish().parts.concat()).unwrap();
    }
    let pack = Bytes::from(std::fs::read(path).unwrap());
    let (id, entries) = read_pack(&pack).unwrap();
    assert_eq!(id, PACK_ID);

    let expected = pack_chunks();
    assert_eq!(entries.len(), expected.len());
    let mut decoder = Decoder::new().unwrap();
    let mut builder = PackBuilder::new(id);
    let mut tag = TagBuilder::new();
    for (entry, chunk) in entries.iter().zip(&expected) {
        let range =
            usize::try_from(entry.range().start).unwrap()..usize::try_from(entry.range().end).unwrap();
        let bytes = pack.slice(range);
        assert_eq!((entry.id, &entry.layout.holes), (chunk.id(), &chunk.holes));
        assert!(decoder.decode(&bytes, &entry.layout, &chunk.fills).unwrap() == chunk.restore());
        tag.push_chunk(&entry.id, entry.checksum, &entry.layout);
        for fill in &chunk.fills {
            tag.push_fill(fill);
        }
        builder.add(StoredChunk {
            id: entry.id,
            layout: entry.layout.clone(),
            checksum: entry.checksum,
            bytes,
        });
    }
    assert!(
        builder.finish().parts.concat() == pack,
        "the same chunks make the same header, table and trailer"
    );
    check("v1.tag", tag.finish().to_string().as_bytes());
}

#[test]
fn a_recipe_of_version_1_does_not_change() {
    let mut builder = RecipeBuilder::new();
    // A reused chunk, a fresh run, a step back, a number of 63 bits.
    for number in [7, 1000, 1001, 1002, 1003, 500, i64::MAX.cast_unsigned()] {
        builder.push_chunk(number);
    }
    let fills: Vec<HoleFill> = pack_chunks().into_iter().flat_map(|chunk| chunk.fills).collect();
    assert!(fills.len() > 20);
    for fill in &fills {
        builder.push_fill(fill);
    }
    let recipe = builder.finish();
    check("v1.recipe", &recipe.encode());
    assert_eq!(Recipe::decode(&std::fs::read(golden("v1.recipe")).unwrap()).unwrap(), recipe);

    // Written by hand, after the byte table of docs/STORAGE.md.
    let by_hand = [&[1, 2, 14, 1, 0x86, 0x02, 2, 1][..], &[0; 20], &[2, 0, 1, 3]];
    let recipe = Recipe::decode(&by_hand.concat()).unwrap();
    assert_eq!(
        recipe.runs,
        [ChunkRun { first: 7, count: 1 }, ChunkRun { first: 139, count: 2 }].map(|run| run)
    );
    assert_eq!(recipe.fills, [FillRun { hash: 0, count: 1 }, FillRun { hash: 0, count: 3 }]);
}

#[test]
fn a_manifest_of_version_1_does_not_change() {
    let chunks = pack_chunks();
    let mut fills = RecipeBuilder::new();
    for fill in chunks.iter().flat_map(|chunk| &chunk.fills) {
        fills.push_fill(fill);
    }
    let chunks = chunks.iter().map(RawChunk::id).collect();
    let manifest = NarManifest { chunks, fills: fills.finish() };
    check("v1.manifest", &manifest.encode());
    assert_eq!(NarManifest::decode(&std::fs::read(golden("v1.manifest")).unwrap()).unwrap(), manifest);

    // Written by hand, after the byte table of docs/STORAGE.md: two chunks, one hash, two holes.
    let by_hand = [&[1, 2][..], &[7; 32], &[8; 32], &[1, 0, 1], &[0; 20], &[1, 1, 2]].concat();
    let manifest = NarManifest::decode(&by_hand).unwrap();
    assert_eq!(manifest.chunks.iter().map(|id| id.as_bytes()[0]).collect::<Vec<_>>(), [7, 8]);
    assert_eq!(manifest.fills.fills, [FillRun { hash: 0, count: 2 }]);
}

#[test]
fn a_layout_of_version_1_does_not_change() {
    let layouts = [
        ChunkLayout { raw_len: 131_072, holes: vec![], frames: vec![60_000] },
        ChunkLayout { raw_len: 300, holes: vec![0, 100, 132], frames: vec![50, 40] },
        ChunkLayout { raw_len: 524_319, holes: vec![524_287], frames: vec![524_288] },
    ];
    let text: String = layouts.iter().map(|layout| hex::encode(layout.encode()) + "\n").collect();
    check("v1.layouts", text.as_bytes());
    for (line, layout) in std::fs::read_to_string(golden("v1.layouts")).unwrap().lines().zip(layouts) {
        assert_eq!(ChunkLayout::decode(&hex::decode(line).unwrap()).unwrap(), layout);
    }
    // Written by hand: raw length 300, three holes with gaps 0, 68 and 0, two frames.
    assert_eq!(ChunkLayout::decode(&[0xac, 0x02, 3, 0, 68, 0, 50, 40]).unwrap().holes, [0, 100, 132]);
}
