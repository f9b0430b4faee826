//! Runs the fuzz targets over their corpus and over mutations of it, the same ones every time.

#![expect(clippy::disallowed_methods, reason = "only the crate itself is pure; its test reads files")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::path::Path;

use dormer_api::fuzz_targets;

/// Mutations of a target's corpus, well under a second. `DORMER_FUZZ_ROUNDS` says otherwise.
const ROUNDS: u64 = 20_000;

fn rounds() -> u64 {
    std::env::var("DORMER_FUZZ_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("a number"))
}

/// SplitMix64: enough randomness to mutate bytes, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }
}

/// One to four edits: a bit, a byte, a cut, a copied range, a piece of another file.
fn mutate(seed: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut data = seed.to_vec();
    for _ in 0..=random.below(4) {
        if data.is_empty() {
            data.extend_from_slice(other);
            continue;
        }
        let at = random.below(data.len());
        match random.below(6) {
            0 => data[at] ^= 1 << random.below(8),
            1 => data[at] = b"\0\"{}[]:,*01-_+e9\xff\n"[random.below(17)],
            2 => data.truncate(at),
            3 => {
                let end = at + random.below(data.len() - at + 1);
                data.drain(at..end);
            }
            4 => {
                let end = at + random.below((data.len() - at).min(64) + 1);
                let copy = data[at..end].to_vec();
                let to = random.below(data.len());
                data.splice(to..to, copy);
            }
            _ => {
                let from = random.below(other.len() + 1);
                let end = from + random.below((other.len() - from).min(64) + 1);
                data.splice(at..at, other[from..end].iter().copied());
            }
        }
    }
    data
}

fn run(corpus: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(corpus);
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let files: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(files.len() >= 3, "the corpus {} is all but empty", folder.display());
    let mut random = Random(0xd0_4e_e4);
    for (index, file) in files.iter().enumerate() {
        target(file);
        for _ in 0..rounds().div_ceil(files.len() as u64) {
            let other = &files[(index + 1) % files.len()];
            target(&mutate(file, other, &mut random));
        }
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
