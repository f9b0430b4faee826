//! A scrub beside a running server: what is damaged on disk is found before a reader finds it, and
//! one push heals every path that shares the damaged bytes.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::fs;
use std::time::{Duration, Instant};

use dormer_nix::NarHash;
use dormer_tests::http::{self, Reply};
use dormer_tests::{Lab, nars};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

fn push(lab: &Lab, nar: &[u8]) {
    let bearer = format!("Bearer {}", lab.admin_token());
    let info = nars::attic_info("main", nar, "pushed");
    let headers = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info", info.as_str())];
    let reply = http::request(lab.address(), "PUT", "/_api/v1/upload-path", &headers, nar);
    assert_eq!(reply.status, 200, "{reply:?}");
}

fn narinfo(lab: &Lab, nar: &[u8]) -> Reply {
    lab.get(&format!("/main/{}.narinfo", nars::path_hash(nar)))
}

fn statuses(lab: &Lab, nars: &[Vec<u8>]) -> Vec<u16> {
    nars.iter().map(|nar| narinfo(lab, nar).status).collect()
}

fn reads_back(lab: &Lab, nar: &[u8]) {
    let narinfo = narinfo(lab, nar);
    assert_eq!(narinfo.status, 200, "{narinfo:?}");
    let url = narinfo.text().lines().find_map(|line| line.strip_prefix("URL: ").map(str::to_owned)).unwrap();
    let reply = lab.get(&format!("/main/{url}"));
    assert!(reply.status == 200 && reply.complete, "{reply:?}");
    assert_eq!(NarHash::digest(&zstd::decode_all(reply.body.as_slice()).unwrap()), NarHash::digest(nar));
}

/// Waits until the server has looked which paths need the damaged bytes.
fn until(lab: &Lab, nars: &[Vec<u8>], expected: &[u16]) {
    let begun = Instant::now();
    while statuses(lab, nars) != expected {
        assert!(begun.elapsed() < Duration::from_mins(1), "{:?}\n{}", statuses(lab, nars), lab.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Three paths that differ in their last bytes only, so that they share nearly all chunks.
fn sharing() -> Vec<Vec<u8>> {
    let mut contents = vec![0; 2_400_000];
    SmallRng::seed_from_u64(8).fill(&mut contents[..]);
    let nar = |number: u8| {
        *contents.last_mut().unwrap() = number;
        nars::file(&contents)
    };
    (0..3).map(nar).collect()
}

fn scrub(lab: &Lab, expected: i32) -> String {
    let run = lab.server_command(&["scrub", "--full"]);
    assert_eq!(run.code(), Some(expected), "{run:?}\n{}", lab.log());
    run.stdout()
}

#[test]
fn what_a_scrub_finds_damaged_is_missing_and_one_push_heals_all_of_it() {
    let lab = Lab::start();
    let nars = sharing();
    for nar in &nars {
        push(&lab, nar);
    }
    let clean = scrub(&lab, 0);
    assert!(clean.contains("3 NARs"), "{clean}");

    // The first pack holds what they share.
    let first = lab.packs().into_iter().max_by_key(|pack| fs::metadata(pack).unwrap().len());
    let first = first.unwrap();
    let mut bytes = fs::read(&first).unwrap();
    bytes[40] ^= 0x20;
    fs::write(&first, bytes).unwrap();
    let found = scrub(&lab, 6);
    assert!(found.contains(".pack: 1 chunks are damaged"), "{found}");
    until(&lab, &nars, &[404, 404, 404]);
    push(&lab, &nars[1]);
    assert_eq!(statuses(&lab, &nars), [200, 200, 200]);
    for nar in &nars {
        reads_back(&lab, nar);
    }
    scrub(&lab, 0);

    // The pack goes as a whole.
    fs::remove_file(&first).unwrap();
    let found = scrub(&lab, 6);
    assert!(found.contains("missing or truncated"), "{found}");
    until(&lab, &nars, &[404, 404, 404]);
    // The first of them brought the whole pack.
    push(&lab, &nars[0]);
    assert_eq!(statuses(&lab, &nars), [200, 200, 200]);
    for nar in &nars {
        reads_back(&lab, nar);
    }
    scrub(&lab, 0);
}
