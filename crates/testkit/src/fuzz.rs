//! Runs fuzz targets on stable Rust: over their corpus, and over mutations that are the same on
//! every machine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use dormer_nix::fuzz_targets::mutated;

/// Inputs for each target, which take a second or two. `DORMER_FUZZ_ROUNDS` overrides the number.
const ROUNDS: u64 = 4_000;

/// A corpus has at least this many inputs.
const CORPUS_MIN: usize = 5;

/// Runs a target over its corpus (`fuzz/corpus/<target>/`) and over mutations of it. Panics with
/// the input that breaks the target's property.
pub fn run_over_corpus(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("reading the corpus {}: {error}", folder.display()))
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    // The order of a folder's entries differs between machines.
    files.sort();
    let corpus: Vec<Vec<u8>> =
        files.iter().map(|file| std::fs::read(file).expect("the file can be read")).collect();
    assert!(corpus.len() >= CORPUS_MIN, "the corpus of {target} is nearly empty");
    let rounds =
        std::env::var("DORMER_FUZZ_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("a number"));
    for round in 0..rounds.max(corpus.len() as u64) {
        let input = mutated(&corpus, round);
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&input)));
        assert!(outcome.is_ok(), "target {target}, round {round}: {}", input.escape_ascii());
    }
}
