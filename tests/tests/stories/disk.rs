//! A disk that is full, and one that gives back other bytes than it was given: the embedded
//! default.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::fs;
use std::io::Write as _;
use std::path::Path;

use dormer_nix::NarHash;
use dormer_tests::http::{self, Connection, Reply};
use dormer_tests::{Lab, LabOptions, Nix, nars};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

const MIB: usize = 1024 * 1024;

fn push(lab: &Lab, nar: &[u8]) -> Reply {
    let bearer = format!("Bearer {}", lab.admin_token());
    let info = nars::attic_info("main", nar, "pushed");
    let headers = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info", info.as_str())];
    http::request(lab.address(), "PUT", "/_api/v1/upload-path", &headers, nar)
}

fn noise(random: &mut SmallRng, bytes: usize) -> Vec<u8> {
    let mut contents = vec![0; bytes];
    random.fill(&mut contents[..]);
    nars::file(&contents)
}

fn narinfo(lab: &Lab, nar: &[u8]) -> Reply {
    lab.get(&format!("/main/{}.narinfo", nars::path_hash(nar)))
}

fn url_in(narinfo: &Reply) -> String {
    assert_eq!(narinfo.status, 200, "{narinfo:?}");
    narinfo.text().lines().find_map(|line| line.strip_prefix("URL: ")).unwrap().to_owned()
}

fn reads_back(lab: &Lab, nar: &[u8]) {
    let reply = lab.get(&format!("/main/{}", url_in(&narinfo(lab, nar))));
    assert!(reply.status == 200 && reply.complete, "{reply:?}");
    assert_eq!(NarHash::digest(&zstd::decode_all(reply.body.as_slice()).unwrap()), NarHash::digest(nar));
}

#[test]
fn a_full_disk_refuses_pushes_and_loses_nothing() {
    let lab = Lab::start_with(LabOptions { disk_bytes: Some(64 * MIB as u64), ..LabOptions::default() });
    let mut random = SmallRng::seed_from_u64(1);
    let filler = lab.data_folder().join("somebody-elses");
    fs::write(&filler, vec![1; 40 * MIB]).unwrap();

    let mut safe = Vec::new();
    let mut refused = Vec::new();
    while refused.len() < 5 {
        assert!(safe.len() < 100, "the disk never fills");
        let nar = noise(&mut random, 1_500_000);
        let reply = push(&lab, &nar);
        match reply.status {
            200 => safe.push(nar),
            503 => {
                assert!(reply.header("retry-after").is_some(), "{reply:?}");
                refused.push(nar);
            }
            _ => panic!("{reply:?}\n{}", lab.log()),
        }
    }
    assert!(safe.len() > 3, "only {} pushes fitted", safe.len());
    assert!(lab.log().contains("No space left on device"), "the log says why:\n{}", lab.log());
    // Reading goes on.
    for nar in &safe {
        reads_back(&lab, nar);
    }
    for nar in &refused {
        assert_eq!(narinfo(&lab, nar).status, 404);
    }

    fs::remove_file(filler).unwrap();
    for nar in &refused {
        let reply = push(&lab, nar);
        assert_eq!(reply.status, 200, "there is room again: {reply:?}\n{}", lab.log());
    }
    for nar in safe.iter().chain(&refused) {
        reads_back(&lab, nar);
    }
}

/// The way out of a full disk that docs/OPERATING.md, "A full bucket", describes: looking, the
/// reserve, and a removal.
#[test]
fn space_is_freed_on_a_full_disk_without_room_of_its_own() {
    let lab = Lab::start_with(LabOptions { disk_bytes: Some(64 * MIB as u64), ..LabOptions::default() });
    lab.login();
    let mut random = SmallRng::seed_from_u64(3);
    let [kept, large, another] = [1_500_000, 3_000_000, 1_500_000].map(|bytes| noise(&mut random, bytes));
    for nar in [&kept, &large] {
        assert_eq!(push(&lab, nar).status, 200);
    }
    let reserve = lab.data_folder().join("reserve");
    fs::write(&reserve, vec![1; 2 * MIB]).unwrap();
    let full = fill(&lab.data_folder().join("somebody-elses"));
    assert!(full.to_string().contains("No space left"), "{full}");
    let refused = push(&lab, &another);
    assert!(refused.status == 503 && refused.header("retry-after").is_some(), "{refused:?}");
    reads_back(&lab, &kept);

    // Looking needs no space: what is large, and what a collection would free.
    let listed = lab.dormer(&["cache", "ls", "main", "--sort", "size"]).succeeds();
    assert!(listed.lines().next().is_some_and(|line| line.contains(&nars::path_hash(&large))), "{listed}");
    lab.server_command(&["gc", "--dry-run"]).succeeds();
    // Changes need some for the database: here it lies on the full disk, too.
    let path = format!("/nix/store/{}-pushed", nars::path_hash(&large));
    let remove = ["cache", "remove-path", "main", &path, "--now"];
    let early = lab.dormer(&remove);
    assert_ne!(early.code(), Some(0), "{early}");
    fs::remove_file(&reserve).unwrap();
    lab.dormer(&remove).succeeds();
    assert_eq!(narinfo(&lab, &large).status, 404);

    let reply = push(&lab, &another);
    assert_eq!(reply.status, 200, "there is room again: {reply:?}\n{}", lab.log());
    for nar in [&kept, &another] {
        reads_back(&lab, nar);
    }
}

/// A use that is older than an hour is written with the next pull, which a full disk prevents.
#[test]
fn a_full_disk_stops_no_pull_of_paths_that_were_long_unused_not_even_after_a_restart() {
    let mut lab = Lab::start_with(LabOptions { disk_bytes: Some(64 * MIB as u64), ..LabOptions::default() });
    let mut random = SmallRng::seed_from_u64(2);
    let pushed: Vec<Vec<u8>> = (0..3).map(|_| noise(&mut random, 1_500_000)).collect();
    for nar in &pushed {
        assert_eq!(push(&lab, nar).status, 200);
    }
    lab.kill();
    lab.sql("UPDATE objects SET last_used_at = last_used_at - 86400");
    lab.restart();
    let filler = lab.data_folder().join("somebody-elses");
    let full = fill(&filler);
    assert!(full.to_string().contains("No space left"), "{full}");
    lab.kill();
    fill(&filler);
    lab.restart();
    for nar in &pushed {
        reads_back(&lab, nar);
    }
    let refused = noise(&mut random, 1_500_000);
    assert_eq!(push(&lab, &refused).status, 503, "the disk is full");
    // The next pulls do not wait for the failed writes either.
    for nar in &pushed {
        reads_back(&lab, nar);
    }
    fs::remove_file(filler).unwrap();
    assert_eq!(push(&lab, &refused).status, 200, "there is room again\n{}", lab.log());
    reads_back(&lab, &refused);
}

/// Writes until the disk is full, and returns what the system says then.
fn fill(file: &Path) -> std::io::Error {
    let mut file = fs::File::options().append(true).create(true).open(file).unwrap();
    loop {
        if let Err(full) = file.write_all(&[1; 4096]) {
            return full;
        }
    }
}

#[test]
fn a_pack_that_went_bad_is_reported_never_served_and_healed_by_the_next_push() {
    let lab = Lab::start();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let path = builder.build("noise", &[("salt", "bad-disk"), ("megabytes", "20")]);
    builder.dormer(&["push", "main", &path, "--no-closure"]).succeeds();
    let hash = &path["/nix/store/".len()..][..32];
    let narinfo = format!("/main/{hash}.narinfo");
    let url = format!("/main/{}", url_in(&lab.get(&narinfo)));

    // One byte of the second half: the first chunks are right, so the answer begins.
    let mut bad = lab.packs();
    bad.sort_by_key(|pack| std::cmp::Reverse(fs::metadata(pack).unwrap().len()));
    let mut bytes = fs::read(&bad[0]).unwrap();
    let place = bytes.len() * 3 / 4;
    bytes[place] ^= 0x20;
    fs::write(&bad[0], bytes).unwrap();

    let head = format!("GET {url} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", lab.address());
    let answer = Connection::open(lab.address()).unwrap().exchange(head.as_bytes());
    if let Ok(whole) = answer {
        assert_eq!(whole.status, 404, "never whole and wrong: {whole:?}");
    }
    assert!(lab.log().contains("damaged"), "it is reported:\n{}", lab.log());
    assert_eq!(lab.get(&narinfo).status, 404, "missing to everybody");

    builder.dormer(&["push", "main", &path, "--no-closure"]).succeeds();
    let puller = lab.machine("puller", Nix::NEWEST);
    puller.configure(&[lab.public_key("main")]);
    puller.substitute(&lab.cache_url("main"), &path).succeeds();
    puller.verify_all();
}
