//! Looking into a cache by the API: a path, what refers to it, names, and one file.

use dormer_nix::nar::{Node, encode_tree};
use serde_json::{Value, json};

use crate::common::{Reply, Server, admin, nar_info, path, token};

fn push(server: &Server, cache: &str, seed: u8, nar: &[u8], more: &Value) {
    let info = nar_info(cache, &path(seed), nar, more).to_string();
    let bearer = format!("Bearer {}", admin());
    let headers = [("X-Attic-Nar-Info", info.as_str()), ("Authorization", bearer.as_str())];
    let reply = server.request("PUT", "/_api/v1/upload-path", &headers, nar);
    assert_eq!(reply.status, 200, "{reply:?}");
}

fn object(cache: &str, seed: u8) -> String {
    format!("/_api/v2/caches/{cache}/objects/{}", path(seed).hash())
}

/// A NAR with files of many chunks, and one small file between them.
fn tree() -> (Vec<u8>, Vec<(String, Vec<u8>)>) {
    let large = |start: u32| -> Vec<u8> {
        (0..40_000_u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) ^ start).to_le_bytes()).collect()
    };
    let files = vec![
        ("bin/a".to_owned(), large(1)),
        ("bin/b".to_owned(), b"#!/bin/sh\n".to_vec()),
        ("bin/c d".to_owned(), large(7)),
        ("bin/empty".to_owned(), Vec::new()),
        ("bin/\u{e9}%".to_owned(), b"<script>".to_vec()),
    ];
    let bin = files
        .iter()
        .map(|(name, contents)| (name.as_bytes()["bin/".len()..].to_vec(), Node::file(contents.clone())));
    let root = Node::directory([
        (b"bin".to_vec(), Node::directory(bin)),
        (b"link".to_vec(), Node::symlink("bin/a")),
    ]);
    (encode_tree(&root), files)
}

fn escaped(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'/';
    let escape = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    name.bytes().map(escape).collect()
}

#[test]
fn one_file_comes_out_of_a_path_as_it_is() {
    let server = Server::start();
    let (nar, files) = tree();
    push(&server, "main", 1, &nar, &json!({}));
    let get = |file: &str| server.get(&format!("{}/file/{file}", object("main", 1)));
    for (name, contents) in &files {
        let reply = get(&escaped(name));
        assert_eq!((reply.status, &reply.body), (200, contents), "{name}");
        for (header, value) in [
            ("content-type", "application/octet-stream"),
            ("x-content-type-options", "nosniff"),
            ("cache-control", "private, no-store"),
            ("content-length", &contents.len().to_string()),
        ] {
            assert_eq!(reply.header(header), Some(value), "{name}: {header}");
        }
        let head = server.request("HEAD", &format!("{}/file/{}", object("main", 1), escaped(name)), &[], b"");
        let length = contents.len().to_string();
        assert_eq!((head.status, head.header("content-length")), (200, Some(length.as_str())), "{name}");
    }
    for (file, status) in [
        ("bin", 400),
        ("link", 400),
        ("bin/x", 404),
        ("bin/a/b", 404),
        ("link/x", 404),
        ("", 404),
        ("bin/", 404),
        ("bin/../bin/a", 404),
        ("bin/%2e%2e/bin/a", 404),
        ("bin%2Fa", 404),
        ("bin/%ff", 404),
        ("bin/%2", 404),
    ] {
        let reply = get(file);
        assert_eq!(reply.status, status, "{file}: {reply:?}");
    }
    assert!(get("link").text().contains("a link to bin/a"));
    assert_eq!(server.get(&format!("{}/file/bin/a", object("main", 2))).status, 404);
    assert_eq!(server.call(&admin(), "PUT", &format!("{}/file/bin/a", object("main", 1)), b"x").status, 405);
}

#[test]
fn a_path_is_described_with_its_closure() {
    let server = Server::start();
    let (nar, _) = tree();
    push(&server, "main", 1, &nar, &json!({}));
    let refers_to = |seeds: &[u8]| -> Value {
        json!({"references": seeds.iter().map(|seed| path(*seed).to_string()).collect::<Vec<_>>()})
    };
    push(&server, "main", 2, &nar, &refers_to(&[1, 2, 9]));
    push(&server, "main", 3, &nar, &refers_to(&[2]));
    let reply = server.get(&object("main", 3));
    assert_eq!(reply.status, 200, "{reply:?}");
    let found = reply.json();
    assert_eq!(found["store_path"], path(3).to_string());
    assert_eq!(found["nar_size"], nar.len());
    assert_eq!(found["references"], json!([path(2).to_string()]));
    assert_eq!(found["compression"], "zstd");
    assert_eq!(
        found["closure"],
        json!({"paths": 3, "nar_size": 3 * nar.len(), "missing": 1, "complete": true})
    );
    assert_eq!(server.get(&object("main", 4)).status, 404);
}

#[test]
fn what_refers_to_a_path_and_names_are_for_the_owner() {
    let server = Server::start();
    let (nar, _) = tree();
    push(&server, "main", 1, &nar, &json!({}));
    for seed in 2..=4 {
        push(&server, "main", seed, &nar, &json!({"references": [path(1).to_string()]}));
    }
    let referrers = format!("{}/referrers", object("main", 1));
    let found = server.call(&admin(), "GET", &referrers, b"").json();
    let mut expected: Vec<String> = (2..=4).map(|seed| path(seed).to_string()).collect();
    expected.sort();
    assert_eq!(found, json!({ "referrers": expected }));
    let after = format!("{referrers}?after={}", &expected[0][..32]);
    assert_eq!(server.call(&admin(), "GET", &after, b"").json(), json!({ "referrers": expected[1..] }));
    let described = server.call(&admin(), "GET", &object("main", 1), b"").json();
    assert_eq!((&described["referrers"], &described["next_referrers"]), (&json!(expected), &Value::Null));
    let last = server.call(&admin(), "GET", &object("main", 4), b"").json();
    assert_eq!(last["referrers"], json!([]));
    // A reader learns of no path that it cannot name.
    for described in [
        server.get(&object("main", 1)),
        server.call(&token(&json!({"main": {"r": 1}})), "GET", &object("main", 1), b""),
    ] {
        assert_eq!((described.status, described.json().get("referrers")), (200, None));
    }

    let named = |pattern: &str| -> Vec<String> {
        let address = format!("/_api/v2/caches/main/objects?name={pattern}&sort=age");
        let reply = server.call(&admin(), "GET", &address, b"");
        assert_eq!(reply.status, 200, "{reply:?}");
        let objects = reply.json()["objects"].as_array().unwrap().clone();
        objects.iter().map(|object| object["store_path"].as_str().unwrap().to_owned()).collect()
    };
    let name = path(2).name().to_owned();
    assert!(named(&name).contains(&path(2).to_string()));
    assert_eq!(named("*").len(), 4);
    assert_eq!(named("no-such-*"), Vec::<String>::new());
    for bad in ["name=a/b", "sort=x", "after=x"] {
        let address = format!("/_api/v2/caches/main/objects?{bad}");
        assert_eq!(server.call(&admin(), "GET", &address, b"").status, 400, "{bad}");
    }
    // A reader of a public cache learns no names.
    let reader = token(&json!({"main": {"r": 1, "w": 1}}));
    for address in [referrers.as_str(), "/_api/v2/caches/main/objects?name=*"] {
        assert_eq!(server.get(address).status, 403, "{address}");
        assert_eq!(server.call(&reader, "GET", address, b"").status, 403, "{address}");
    }
}

#[test]
fn a_private_cache_is_looked_into_by_its_readers_alone() {
    let server = Server::start();
    let (nar, _) = tree();
    push(&server, "team-a", 1, &nar, &json!({}));
    let reader = token(&json!({"team-a": {"r": 1}}));
    let stranger = token(&json!({"main": {"r": 1}}));
    for address in [object("team-a", 1), format!("{}/file/bin/b", object("team-a", 1))] {
        let refused = |reply: Reply| {
            assert_eq!(reply.status, 401, "{address}: {reply:?}");
            assert!(!reply.text().contains("/bin/sh") && !reply.text().contains("nar_hash"));
        };
        refused(server.get(&address));
        refused(server.call(&stranger, "GET", &address, b""));
        assert_eq!(server.call(&reader, "GET", &address, b"").status, 200, "{address}");
    }
}
