//! Runs every fuzz target over its corpus and over deterministic mutations of it.
//!
//! `DORMER_FUZZ_ROUNDS` sets the number of inputs per target (default 4,000). A failure names its
//! round, and the same round makes the same input again.

#![expect(clippy::disallowed_methods, reason = "only the crate itself is pure; its test reads files")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use dormer_nix::fuzz_targets;

const ROUNDS: u64 = 4000;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("reading the corpus {}: {error}", folder.display()))
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    // The order of a folder's entries differs between machines.
    //
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("the file can be read")).collect()
}

fn run(target: &str, check: fn(&[u8])) {
    let corpus = corpus(target);
    assert!(corpus.len() >= 5, "the corpus of {target} is nearly empty");
    let rounds =
        std::env::var("DORMER_FUZZ_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("a number"));
    for round in 0..rounds.max(corpus.len() as u64) {
        let input = fuzz_targets::mutated(&corpus, round);
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&input)));
        assert!(outcome.is_ok(), "target {target}, round {round}: {}", input.escape_ascii());
    }
}

#[test]
fn nar_holds_its_properties() {
    run("nar", fuzz_targets::fuzz_nar);
}

#[test]
fn narinfo_holds_its_properties() {
    run("narinfo", fuzz_targets::fuzz_narinfo);
}

#[test]
fn cache_info_holds_its_properties() {
    run("cache_info", fuzz_targets::fuzz_cache_info);
}

#[test]
fn listing_holds_its_properties() {
    run("listing", fuzz_targets::fuzz_listing);
}

#[test]
fn document_holds_its_properties() {
    run("document", fuzz_targets::fuzz_document);
}

#[test]
fn store_path_holds_its_properties() {
    run("store_path", fuzz_targets::fuzz_store_path);
}

#[test]
fn hash_holds_its_properties() {
    run("hash", fuzz_targets::fuzz_hash);
}

#[test]
fn signature_holds_its_properties() {
    run("signature", fuzz_targets::fuzz_signature);
}

#[test]
fn mutations_are_the_same_for_the_same_round_and_differ_between_rounds() {
    let corpus = corpus("nar");
    let inputs: std::collections::BTreeSet<Vec<u8>> =
        (0..1000).map(|round| fuzz_targets::mutated(&corpus, round)).collect();
    assert!(inputs.len() > 900, "{} of 1000 inputs differ", inputs.len());
    assert_eq!(fuzz_targets::mutated(&corpus, 999), fuzz_targets::mutated(&corpus, 999));
    assert!(fuzz_targets::mutated(&[], 5).len() < 64);
}
