//! Foreign bytes that no cache should take: each gets a clear error and leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::io::Write as _;

use dormer_tests::http::{self, Reply};
use dormer_tests::nars::{self, word, words};
use dormer_tests::{Lab, Nix};
use rand::{RngExt as _, SeedableRng as _};

fn upload(lab: &Lab, info: &str, nar: &[u8]) -> Reply {
    let bearer = format!("Bearer {}", lab.admin_token());
    let headers = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info", info)];
    http::request(lab.address(), "PUT", "/_api/v1/upload-path", &headers, nar)
}

fn put(lab: &Lab, path: &str, body: &[u8]) -> Reply {
    let bearer = format!("Bearer {}", lab.admin_token());
    http::request(lab.address(), "PUT", path, &[("Authorization", bearer.as_str())], body)
}

/// Refused as the caller's fault, with a reason, and without a word about the server's insides.
#[track_caller]
fn assert_refused(lab: &Lab, what: &str, reply: &Reply) {
    // 413 where something is longer than allowed.
    assert!([400, 413].contains(&reply.status), "{what}: {reply:?}");
    let text = reply.text();
    assert!(!text.trim().is_empty(), "{what}");
    // The API answers in Attic's form, the routes of Nix in plain words.
    if reply.header("content-type") == Some("application/json") {
        let body = reply.json();
        assert_eq!(
            (&body["code"], &body["error"]),
            (&reply.status.into(), &"RequestError".into()),
            "{what}: {body}"
        );
    }
    assert!(!text.contains(lab.data_folder().to_str().unwrap()), "{what} leaks a path: {text}");
}

/// Neither the narinfo nor the look-up knows the path.
#[track_caller]
fn assert_nothing_left(lab: &Lab, what: &str, path_hash: &str) {
    assert_eq!(lab.get(&format!("/main/{path_hash}.narinfo")).status, 404, "{what}");
    assert_eq!(lab.get(&format!("/main/nar/{path_hash}.nar")).status, 404, "{what}");
    let bearer = format!("Bearer {}", lab.admin_token());
    let body = format!(r#"{{"cache":"main","store_path_hashes":["{path_hash}"]}}"#);
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let missing =
        http::request(lab.address(), "POST", "/_api/v1/get-missing-paths", &headers, body.as_bytes());
    assert_eq!(missing.json()["missing_paths"], serde_json::json!([path_hash]), "{what}");
}

/// After all that, the server still takes what is good.
#[track_caller]
fn assert_still_works(lab: &Lab) {
    let nar = nars::file(b"good");
    assert_eq!(upload(lab, &nars::attic_info("main", &nar, "good"), &nar).status, 200);
    assert_eq!(lab.get(&format!("/main/{}.narinfo", nars::path_hash(&nar))).status, 200);
}

#[test]
fn malformed_nars_are_refused_although_hash_and_size_are_right() {
    let file = nars::file(b"some contents");
    let mut bad_padding = file.clone();
    let position = bad_padding.windows(8).position(|window| window == b"contents").unwrap();
    let end_of_contents = position + 8 + 8 + b"some contents".len();
    bad_padding[end_of_contents] = 1;
    let length_of = |length: u64| {
        let mut nar = words([b"nix-archive-1", b"(", b"type", b"regular", b"contents"]);
        nar.extend_from_slice(&length.to_le_bytes());
        nar.extend_from_slice(b"some contents\0\0\0");
        nar.extend(word(b")"));
        nar
    };
    let deep = {
        let mut nar = word(b"nix-archive-1");
        for _ in 0..100_000 {
            nar.extend(words([b"(", b"type", b"directory", b"entry", b"(", b"name", b"d", b"node"]));
        }
        nar
    };
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("of another kind", b"PK\x03\x04 this is a zip, not a NAR".to_vec()),
        ("cut in the magic", file[..10].to_vec()),
        ("cut in the contents", file[..position + 18].to_vec()),
        ("cut before the last word", file[..file.len() - 16].to_vec()),
        ("followed by more", [file.clone(), vec![0; 8]].concat()),
        ("twice", [file.clone(), file.clone()].concat()),
        ("with bad padding", bad_padding),
        ("with a length of 2^63", length_of(1 << 63)),
        ("with a length of 2^64 - 1", length_of(u64::MAX)),
        ("with a length beyond its end", length_of(1000)),
        ("with unsorted names", nars::directory(&[b"b", b"a"])),
        ("with one name twice", nars::directory(&[b"a", b"a"])),
        ("with the name .", nars::directory(&[b"."])),
        ("with the name ..", nars::directory(&[b".."])),
        ("with a slash in a name", nars::directory(&[b"a/b"])),
        ("with an absolute name", nars::directory(&[b"/etc"])),
        ("with an empty name", nars::directory(&[b""])),
        ("with a NUL in a name", nars::directory(&[b"a\0b"])),
        ("deeper than any file system", deep),
        ("with an unknown type", words([b"nix-archive-1", b"(", b"type", b"socket", b")"])),
    ];
    let lab = Lab::start();
    for (what, nar) in &table {
        let reply = upload(&lab, &nars::attic_info("main", nar, "bad"), nar);
        assert_refused(&lab, what, &reply);
        assert_nothing_left(&lab, what, &nars::path_hash(nar));
    }
    assert_still_works(&lab);
}

#[test]
fn a_nar_that_is_not_what_its_metadata_says_is_refused() {
    let lab = Lab::start();
    let nar = nars::file(&vec![b'x'; 700_000]);
    let other = nars::file(b"other");
    let hash = nars::path_hash(&nar);
    let size = format!(r#""nar_size":{}"#, nar.len());
    let good = nars::attic_info("main", &nar, "lies");
    let table = [
        ("wrong hash", good.replace(&nars::nar_hash_hex(&nar), &nars::nar_hash_hex(&other))),
        ("too small a size", good.replace(&size, &format!(r#""nar_size":{}"#, nar.len() - 1))),
        ("too large a size", good.replace(&size, &format!(r#""nar_size":{}"#, nar.len() + 1))),
        ("a size of zero", good.replace(&size, r#""nar_size":0"#)),
        ("a negative size", good.replace(&size, r#""nar_size":-1"#)),
        ("no hash", good.replace("nar_hash", "other_hash")),
        ("another algorithm", good.replace("sha256:", "md5:")),
        (
            "a hash that does not fit the path",
            good.replace(&format!("/nix/store/{hash}"), &format!("/nix/store/{}", "0".repeat(32))),
        ),
        ("a foreign store", good.replace("/nix/store/", "/gnu/store/")),
        ("no store", good.replace("/nix/store/", "")),
        ("a path below a store path", good.replace("-lies\"", "-lies/bin\"")),
        ("a way out of the store", good.replace("/nix/store/", "/nix/store/../../etc/")),
        ("a name with a space", good.replace("-lies\"", "-li es\"")),
        ("a name that is too long", good.replace("-lies\"", &format!("-{}\"", "l".repeat(212)))),
        ("a letter that nix-base32 lacks", good.replace(&hash, &format!("e{}", &hash[1..]))),
        (
            "a reference that is none",
            good.replace(r#""references":[]"#, r#""references":["../../etc/passwd"]"#),
        ),
        ("a line break in a field", good.replace(r#""ca":null"#, r#""ca":"fixed:x\nSig: forged:AAAA""#)),
        ("no JSON", "{".to_owned()),
        ("no metadata", String::new()),
    ];
    for (what, info) in &table {
        assert_ne!(info, &good, "{what} changes nothing");
        let reply = upload(&lab, info, &nar);
        assert_refused(&lab, what, &reply);
        assert_nothing_left(&lab, what, &hash);
    }
    let reply = upload(&lab, &good, &nar);
    assert_eq!(reply.status, 200, "the same bytes with the truth are taken: {reply:?}");
}

#[test]
fn a_path_that_is_pushed_with_other_bytes_never_mixes_the_two() {
    let lab = Lab::start();
    let nar = nars::file(b"first");
    let hash = nars::path_hash(&nar);
    assert_eq!(upload(&lab, &nars::attic_info("main", &nar, "path"), &nar).status, 200);
    let url_of = |text: &str| text.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap().to_owned();
    let old_url = url_of(&lab.get(&format!("/main/{hash}.narinfo")).text());

    let other = nars::file(b"second");
    let info = nars::attic_info("main", &other, "path").replace(&nars::path_hash(&other), &hash);
    let kept = upload(&lab, &info, &other);
    assert_eq!((kept.status, kept.json()["kept"].as_bool()), (200, Some(true)));
    assert_eq!(url_of(&lab.get(&format!("/main/{hash}.narinfo")).text()), old_url);
    // Attic's client asks first what is missing, so this upload is deliberate: where the cache
    // allows it, the new path replaces the old one.
    lab.login();
    lab.dormer(&["cache", "configure", "main", "--allow-replacement"]).succeeds();
    assert_eq!(upload(&lab, &info, &other).json()["kept"].as_bool(), None);
    let narinfo = lab.get(&format!("/main/{hash}.narinfo")).text();
    assert!(narinfo.contains(&format!("NarHash: {}\n", dormer_nix::NarHash::digest(&other))), "{narinfo}");
    let served = |url: &str| zstd::decode_all(lab.get(&format!("/main/{url}")).body.as_slice()).unwrap();
    assert!(served(&url_of(&narinfo)) == other);
    assert!(served(&old_url) == nar, "a client that remembers the old narinfo gets the old bytes");
}

#[test]
fn preambles_that_are_too_large_or_no_number_are_refused() {
    let lab = Lab::start();
    let nar = nars::file(b"preamble");
    let info = nars::attic_info("main", &nar, "preamble");
    let bearer = format!("Bearer {}", lab.admin_token());
    let two_mib = 2 * 1024 * 1024;
    let padded = format!("{info}{}", " ".repeat(two_mib - info.len()));
    let table: [(&str, String, Vec<u8>); 6] = [
        ("larger than the limit", two_mib.to_string(), [padded.as_bytes(), &nar].concat()),
        ("of 2^64 - 1 bytes", u64::MAX.to_string(), [info.as_bytes(), &nar].concat()),
        ("larger than the body", "100000".to_owned(), [info.as_bytes(), &nar].concat()),
        ("of zero bytes", "0".to_owned(), [info.as_bytes(), &nar].concat()),
        ("negative", "-1".to_owned(), [info.as_bytes(), &nar].concat()),
        ("no number", "many".to_owned(), [info.as_bytes(), &nar].concat()),
    ];
    for (what, size, body) in &table {
        let headers = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info-Preamble-Size", size.as_str())];
        let reply = http::request(lab.address(), "PUT", "/_api/v1/upload-path", &headers, body);
        assert_refused(&lab, what, &reply);
        assert_nothing_left(&lab, what, &nars::path_hash(&nar));
    }
    assert_still_works(&lab);
}

#[test]
fn paths_that_climb_reach_nothing() {
    let lab = Lab::start();
    let secret = lab.admin_token();
    let hash = "0".repeat(32);
    let table = [
        "/../admin-token".to_owned(),
        "/main/../../admin-token".to_owned(),
        "/main/nar/../../../admin-token".to_owned(),
        "/main/%2e%2e/%2e%2e/admin-token".to_owned(),
        "/main/nar/..%2f..%2f..%2fadmin-token".to_owned(),
        "/main/nar/%2fetc%2fpasswd".to_owned(),
        "//etc/passwd".to_owned(),
        "/main/nar/....//....//admin-token".to_owned(),
        format!("/main/{hash}.narinfo%00.txt"),
        format!("/main/..%2f{hash}.narinfo"),
        "/..%2fdata/nix-cache-info".to_owned(),
        "/main/log/..%2f..%2fadmin-token".to_owned(),
        "/_api/v1/cache-config/..%2f..%2fmain".to_owned(),
        "/_api/v1/cache-config/%00".to_owned(),
        "/main/nar/".to_owned(),
        "/main/nar/%ff%fe.nar".to_owned(),
    ];
    for path in &table {
        let before: Vec<_> = names(&lab.data_folder());
        for reply in [lab.get(path), put(&lab, path, b"body")] {
            assert!((400..500).contains(&reply.status) || reply.status == 501, "{path}: {reply:?}");
            assert!(!reply.text().contains(&secret) && !reply.text().contains("root:"), "{path}: {reply:?}");
        }
        assert_eq!(names(&lab.data_folder()), before, "{path} made a file");
    }
    assert_still_works(&lab);
}

fn names(folder: &std::path::Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        // SQLite's own side files come and go.
        .filter(|name| !name.to_string_lossy().contains("-wal") && !name.to_string_lossy().contains("-shm"))
        .collect();
    names.sort();
    names
}

#[test]
fn bodies_that_are_not_what_their_name_says_are_refused() {
    let lab = Lab::start();
    let mut noise = vec![0; 100_000];
    rand::rngs::SmallRng::seed_from_u64(1).fill(&mut noise[..]);
    let nar = nars::file(&noise);
    let zstd = zstd::encode_all(nar.as_slice(), 1).unwrap();
    let file_hash = "1".repeat(52);
    let table: Vec<(&str, &str, Vec<u8>)> = vec![
        ("noise as xz", ".nar.xz", noise.clone()),
        ("noise as zstd", ".nar.zst", noise.clone()),
        ("noise as bzip2", ".nar.bz2", noise.clone()),
        ("noise as gzip", ".nar.gz", noise.clone()),
        ("noise as brotli", ".nar.br", noise.clone()),
        ("noise as lz4", ".nar.lz4", noise.clone()),
        ("noise as a NAR", ".nar", noise.clone()),
        ("noise under an unknown suffix", ".nar.lz", noise.clone()),
        ("nothing as xz", ".nar.xz", Vec::new()),
        ("nothing as zstd", ".nar.zst", Vec::new()),
        ("a cut zstd", ".nar.zst", zstd[..zstd.len() / 2].to_vec()),
        ("zstd with noise behind it", ".nar.zst", [zstd.clone(), noise.clone()].concat()),
        ("zstd of no NAR", ".nar.zst", zstd::encode_all(noise.as_slice(), 1).unwrap()),
        ("zstd as xz", ".nar.xz", zstd.clone()),
    ];
    for (what, suffix, body) in &table {
        let path = format!("/main/nar/{file_hash}{suffix}");
        assert_refused(&lab, what, &put(&lab, &path, body));
        assert_eq!(lab.get(&path).status, 404, "{what}");
    }
    let unknown = put(&lab, &format!("/main/nar/{file_hash}.nar.lz"), &noise).text();
    for known in ["xz", "zstd", "bzip2", "gzip", "br", "lz4", "none"] {
        assert!(unknown.contains(known), "the answer names what is taken: {unknown}");
    }
    assert_still_works(&lab);
}

/// 200 GiB of zeros in a file of a NAR, as zstd of some megabytes: one frame of zeros, many times.
fn bomb() -> Vec<u8> {
    const FRAME_BYTES: u64 = 64 * 1024 * 1024;
    const FRAMES: u64 = 3200;
    let mut head = words([b"nix-archive-1", b"(", b"type", b"regular", b"contents"]);
    head.extend_from_slice(&(FRAME_BYTES * FRAMES).to_le_bytes());
    let mut bomb = zstd::encode_all(head.as_slice(), 1).unwrap();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let zeros = vec![0; 1024 * 1024];
    for _ in 0..FRAME_BYTES / zeros.len() as u64 {
        encoder.write_all(&zeros).unwrap();
    }
    let frame = encoder.finish().unwrap();
    for _ in 0..FRAMES {
        bomb.extend_from_slice(&frame);
    }
    bomb.extend(zstd::encode_all(word(b")").as_slice(), 1).unwrap());
    bomb
}

#[test]
fn a_decompression_bomb_is_refused_before_it_goes_off() {
    let mut lab = Lab::start();
    let bomb = bomb();
    let path = format!("/main/nar/{}.nar.zst", "2".repeat(52));
    let start = std::time::Instant::now();
    let reply = put(&lab, &path, &bomb);
    assert!((400..500).contains(&reply.status), "{reply:?}");
    assert!(start.elapsed().as_secs() < 120, "it took {:?}", start.elapsed());
    assert_eq!(lab.get(&path).status, 404);
    assert!(lab.is_alive() && lab.peak_memory_bytes() < 256 * 1024 * 1024);
    assert_still_works(&lab);
}

#[test]
fn a_narinfo_that_swells_when_it_is_decoded_is_refused() {
    let mut lab = Lab::start();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let spaces = vec![b' '; 1024 * 1024];
    for _ in 0..4096 {
        encoder.write_all(&spaces).unwrap();
    }
    let body = encoder.finish().unwrap();
    let bearer = format!("Bearer {}", lab.admin_token());
    let headers = [("Authorization", bearer.as_str()), ("Content-Encoding", "zstd")];
    let path = format!("/main/{}.narinfo", "0".repeat(32));
    let reply = http::request(lab.address(), "PUT", &path, &headers, &body);
    assert!((400..500).contains(&reply.status), "{reply:?}");
    assert_eq!(lab.get(&path).status, 404);
    assert!(lab.is_alive() && lab.peak_memory_bytes() < 256 * 1024 * 1024);
    assert_still_works(&lab);
}

#[test]
fn a_narinfo_needs_the_nar_that_it_speaks_of() {
    let lab = Lab::start();
    let nar = nars::file(b"narinfo");
    let hash = nars::path_hash(&nar);
    let file_hash = "3".repeat(52);
    let nar_hash = dormer_nix::NarHash::digest(&nar);
    let size = nar.len();
    let narinfo = format!(
        "StorePath: /nix/store/{hash}-narinfo\nURL: nar/{file_hash}.nar\nCompression: none\nNarHash: {nar_hash}\nNarSize: {size}\nReferences: \n"
    );
    let path = format!("/main/{hash}.narinfo");
    assert_refused(&lab, "a narinfo without its NAR", &put(&lab, &path, narinfo.as_bytes()));
    assert_eq!(put(&lab, &format!("/main/nar/{file_hash}.nar"), &nar).status / 100, 2);
    let other_hash = dormer_nix::NarHash::digest(b"other").to_string();
    let table = [
        ("another hash", narinfo.replace(&nar_hash.to_string(), &other_hash)),
        ("another size", narinfo.replace(&format!("NarSize: {size}"), "NarSize: 1")),
        ("another path", narinfo.replace(&format!("store/{hash}"), &format!("store/{}", "0".repeat(32)))),
        ("a foreign store", narinfo.replace("/nix/store", "/gnu/store")),
        ("a URL elsewhere", narinfo.replace("URL: nar/", "URL: http://example.org/nar/")),
        ("a URL that climbs", narinfo.replace("URL: nar/", "URL: ../two/nar/")),
        ("no URL", narinfo.replace("URL: ", "Other: ")),
        ("two hashes", format!("{narinfo}NarHash: {other_hash}\n")),
        ("no narinfo", "hello".to_owned()),
        ("no text", "\u{0}\u{1}".to_owned()),
        ("nothing", String::new()),
    ];
    for (what, text) in &table {
        assert_refused(&lab, what, &put(&lab, &path, text.as_bytes()));
        assert_eq!(lab.get(&path).status, 404, "{what}");
    }
    assert_eq!(put(&lab, &path, narinfo.as_bytes()).status / 100, 2);
    assert_eq!(lab.get(&path).status, 200);
    assert_eq!(put(&lab, &path, narinfo.as_bytes()).status / 100, 2, "a second time does no harm");
}

#[test]
fn a_path_that_does_not_exist_is_an_error_of_the_client_and_pushes_nothing() {
    let lab = Lab::start();
    let machine = lab.machine("machine", Nix::NEWEST);
    machine.login(&lab);
    let path = format!("/nix/store/{}-nowhere", "0".repeat(32));
    let said = machine.dormer(&["push", "main", &path]).fails();
    assert!(said.contains("nowhere"), "{said}");
    let empty = machine.build("empty", &[("salt", "unknown-cache")]);
    machine.dormer(&["push", "no-such-cache", &empty]).fails();
}

#[test]
fn invalid_paths_in_a_list_do_not_stop_the_others_with_any_nix() {
    let lab = Lab::start();
    for nix in Nix::ALL {
        let machine = lab.machine(nix.name(), nix);
        machine.login(&lab);
        let salt = format!("beside-invalid-{}", nix.name());
        let all = machine.build("all", &[("salt", &salt)]);
        let nowhere = format!("/nix/store/{}-nowhere", "0".repeat(32));
        let gone = format!("/nix/store/{}-gone.drv", "1".repeat(32));
        for more in [&["--no-closure"][..], &[]] {
            let mut arguments = vec!["push", "main", &nowhere, "/tmp", &all, &gone];
            arguments.extend(more);
            let pushed = machine.dormer(&arguments);
            assert_eq!(pushed.code(), Some(3), "{pushed}");
            let said = pushed.fails();
            for wrong in [nowhere.as_str(), gone.as_str(), "/tmp is not in the store"] {
                assert!(said.contains(wrong), "{nix:?}: {wrong}: {said}");
            }
        }
        for path in machine.closure(&all) {
            let narinfo = format!("/main/{}.narinfo", &path["/nix/store/".len()..][..32]);
            assert_eq!(lab.get(&narinfo).status, 200, "{nix:?}: {path}");
        }
    }
}
