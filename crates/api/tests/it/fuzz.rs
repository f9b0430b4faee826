//! Runs the fuzz targets over their corpus and over mutations of it, the same ones every time.

#![expect(clippy::disallowed_methods, reason = "only the crate itself is pure; its test reads files")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::path::Path;

use dormer_api::fuzz_targets;
use dormer_nix::fuzz_targets::mutated;

/// Mutations of a target's corpus, well under a second. `DORMER_FUZZ_ROUNDS` says otherwise.
const ROUNDS: u64 = 20_000;

fn rounds() -> u64 {
    std::env::var("DORMER_FUZZ_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("a number"))
}

fn run(corpus: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(corpus);
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let files: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(files.len() >= 3, "the corpus {} is all but empty", folder.display());
    for round in 0..rounds().max(files.len() as u64) {
        target(&mutated(&files, round));
    }
}

#[test]
fn token_claims() {
    run("api_token_claims", fuzz_targets::fuzz_token_claims);
}

#[test]
fn nar_info_preambles() {
    run("api_nar_info_preamble", fuzz_targets::fuzz_nar_info_preamble);
}

#[test]
fn cache_names() {
    run("api_cache_name", fuzz_targets::fuzz_cache_name);
}

#[test]
fn commits() {
    run("api_commit", fuzz_targets::fuzz_commit);
}
