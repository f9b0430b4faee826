//! Runs every fuzz target over its corpus and over deterministic mutations of it.
//!
//! `DORMER_FUZZ_ROUNDS` sets the number of inputs per target (default 4,000). A failure names its
//! round, and the same round makes the same input again. `DORMER_WRITE_CORPUS=1` writes the seeds
//! of this file into the corpora.

#![expect(clippy::disallowed_methods, reason = "only the crate itself is pure; its test reads files")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::common::{chunks, dense_sample};
use dormer_format::{
    ChunkParams, Encoder, NarManifest, PackBuilder, PackId, PackTrailer, RawChunk, RecipeBuilder,
    fuzz_targets, hole_frame, read_trailer,
};
use dormer_nix::fuzz_targets::mutated;

const ROUNDS: u64 = 4000;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(format!("format_{target}"))
}

fn corpus(target: &str, seeds: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let folder = folder(target);
    if std::env::var_os("DORMER_WRITE_CORPUS").is_some() {
        std::fs::create_dir_all(&folder).expect("the folder can be made");
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number:02}")), seed).expect("the file can be written");
        }
    }
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("reading the corpus {}: {error}", folder.display()))
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    // The order of a folder's entries differs between machines.
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("the file can be read")).collect()
}

fn run(target: &str, seeds: &[Vec<u8>], check: fn(&[u8])) {
    let corpus = corpus(target, seeds);
    assert!(corpus.len() >= 5, "the corpus of {target} is nearly empty");
    let rounds =
        std::env::var("DORMER_FUZZ_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("a number"));
    for round in 0..rounds.max(corpus.len() as u64) {
        let input = mutated(&corpus, round);
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&input)));
        assert!(outcome.is_ok(), "target {target}, round {round}: {}", input.escape_ascii());
    }
}

fn some_chunks(seed: u64) -> Vec<RawChunk> {
    chunks(ChunkParams::new(64, 256, 1024).unwrap(), &dense_sample(seed, 2500))
}

fn some_packs() -> Vec<Vec<u8>> {
    let mut encoder = Encoder::new(3).unwrap();
    (0..6)
        .map(|seed: u8| {
            let mut builder = PackBuilder::new(PackId::from_bytes([seed; 16]));
            // The first pack is empty.
            for chunk in some_chunks(seed.into()).iter().take(seed.into()) {
                builder.add(encoder.encode(chunk).unwrap());
            }
            builder.finish().parts.concat()
        })
        .collect()
}

#[test]
fn pack_holds_its_properties() {
    run("pack", &some_packs(), fuzz_targets::fuzz_pack);
}

#[test]
fn table_holds_its_properties() {
    let table = |pack: &Vec<u8>| {
        let trailer: PackTrailer = read_trailer(pack.last_chunk().unwrap(), pack.len() as u64).unwrap();
        let range = trailer.table_range();
        let offset = u32::try_from(range.start).unwrap();
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        [&offset.to_le_bytes()[..], &pack[range]].concat()
    };
    let seeds: Vec<Vec<u8>> = some_packs().iter().map(table).collect();
    run("table", &seeds, fuzz_targets::fuzz_table);
}

#[test]
fn recipe_holds_its_properties() {
    let mut seeds: Vec<Vec<u8>> = (0..8)
        .map(|seed| {
            let mut builder = RecipeBuilder::new();
            for (position, chunk) in some_chunks(seed).iter().enumerate() {
                builder.push_chunk(1000 * seed + position as u64 / 3);
                for fill in &chunk.fills {
                    builder.push_fill(fill);
                }
            }
            builder.finish().encode()
        })
        .collect();
    // Counts that the following bytes cannot hold.
    seeds.push(vec![1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
    seeds.push(vec![1, 1, 0, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0]);
    run("recipe", &seeds, fuzz_targets::fuzz_recipe);
}

#[test]
fn manifest_holds_its_properties() {
    let mut seeds: Vec<Vec<u8>> = (0..6)
        .map(|seed| {
            let mut fills = RecipeBuilder::new();
            let chunks = some_chunks(seed);
            for fill in chunks.iter().flat_map(|chunk| &chunk.fills) {
                fills.push_fill(fill);
            }
            let chunks = chunks.iter().map(RawChunk::id).collect();
            NarManifest { chunks, fills: fills.finish() }.encode()
        })
        .collect();
    // No chunk, 2^40 chunks, and fills with a run of chunks.
    seeds.push(vec![1, 0, 1, 0, 0, 0]);
    seeds.push([&[1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20][..], &[7; 64]].concat());
    seeds.push(vec![1, 0, 1, 1, 0, 1, 0, 0]);
    run("manifest", &seeds, fuzz_targets::fuzz_manifest);
}

#[test]
fn journal_holds_its_properties() {
    let records = crate::journal::every_record();
    let mut seeds: Vec<Vec<u8>> =
        records.iter().map(|record| fuzz_targets::journal_records(std::slice::from_ref(record))).collect();
    seeds.push(fuzz_targets::journal_records(&records));
    run("journal", &seeds, fuzz_targets::fuzz_journal);
}

#[test]
fn layout_holds_its_properties() {
    let mut encoder = Encoder::new(3).unwrap();
    let seeds: Vec<Vec<u8>> = (0..4)
        .flat_map(some_chunks)
        .take(16)
        .map(|chunk| encoder.encode(&chunk).unwrap().layout.encode())
        .collect();
    run("layout", &seeds, fuzz_targets::fuzz_layout);
}

#[test]
fn frame_holds_its_properties() {
    let with_length =
        |len: usize, frame: &[u8]| [&u32::try_from(len).unwrap().to_le_bytes()[..], frame].concat();
    let mut encoder = Encoder::new(3).unwrap();
    let mut seeds: Vec<Vec<u8>> = (0..4)
        .flat_map(some_chunks)
        .take(10)
        .map(|chunk| RawChunk { holes: vec![], fills: vec![], ..chunk })
        .map(|chunk| with_length(chunk.bytes.len(), &encoder.encode(&chunk).unwrap().bytes))
        .collect();
    seeds.extend(
        some_chunks(1).iter().flat_map(|chunk| &chunk.fills).take(1).map(|f| with_length(32, &hole_frame(f))),
    );
    let zeros = RawChunk { bytes: vec![0; 300_000], holes: vec![], fills: vec![] };
    seeds.push(with_length(300_000, &encoder.encode(&zeros).unwrap().bytes));
    seeds.push(with_length(9, &zstd::encode_all(&b"streamed "[..], 3).unwrap()));
    run("frame", &seeds, fuzz_targets::fuzz_frame);
}

#[test]
fn name_holds_its_properties() {
    run("name", &[], fuzz_targets::fuzz_name);
}
