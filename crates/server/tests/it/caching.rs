//! `Cache-Control` and `Vary` of every route. `common::Reply::parse` checks the rules that hold of
//! every answer of every test.

use serde_json::json;

use crate::common::{Server, admin, nar, narinfo, path, token};
use crate::routes::{documents, requests};

const DOCUMENT: &str = "max-age=60";
const IMMUTABLE: &str = "immutable";
const NEVER: &str = "no-store";

/// Each address of both caches, as a reader with and without a token gets it.
#[test]
fn an_answer_that_depended_on_a_token_is_private_and_a_miss_is_never_kept() {
    let server = Server::start();
    for cache in ["main", "team-a"] {
        server.push(cache, &path(1), &nar(1));
        let file = format!("/{cache}/nar/upload.nar");
        assert_eq!(server.call(&admin(), "PUT", &file, &nar(2)).status, 200);
        let text = narinfo(&path(2), &nar(2), "upload.nar", "none", "");
        let address = format!("/{cache}/{}.narinfo", path(2).hash());
        assert_eq!(server.call(&admin(), "PUT", &address, text.as_bytes()).status, 200);
    }
    let present = server.nar_url("main", &path(1)).replace("/main/", "");
    let (stem, tag) = present.split_once('-').unwrap();
    let old = format!("{stem}-{}", tag.replacen(&tag[..1], if tag.starts_with('0') { "1" } else { "0" }, 1));
    let hash = path(1).hash();
    for (name, status, expected) in [
        ("nix-cache-info".to_owned(), 200, DOCUMENT),
        (format!("{hash}.narinfo"), 200, DOCUMENT),
        (format!("{hash}.ls"), 200, DOCUMENT),
        (format!("{}.narinfo", path(9).hash()), 404, NEVER),
        (format!("{}.ls", path(9).hash()), 404, NEVER),
        (present, 200, IMMUTABLE),
        (old, 200, NEVER),
        (format!("nar/{hash}.nar"), 200, NEVER),
        ("nar/upload.nar".to_owned(), 200, NEVER),
        ("nar/other.nar".to_owned(), 404, NEVER),
        ("attic-cache-info".to_owned(), 200, NEVER),
        (format!("log/{}.drv", path(9)), 404, NEVER),
        ("other".to_owned(), 404, NEVER),
    ] {
        for cache in ["main", "team-a"] {
            let address = format!("/{cache}/{name}");
            for method in ["GET", "HEAD"] {
                let reply = server.call(&admin(), method, &address, b"");
                assert_eq!(reply.status, status, "{address}: {reply:?}");
                let control = reply.header("cache-control").unwrap();
                assert!(control.contains(expected), "{method} {address}: {control}");
                let is_private = cache == "team-a" || matches!(name.as_str(), "attic-cache-info" | "other");
                assert_eq!(control.starts_with("private"), is_private, "{method} {address}: {control}");
                let stranger = server.request(method, &address, &[], b"");
                if cache == "main" {
                    let same = stranger.header("cache-control");
                    // Encoding an upload again is work, and only for callers with a token.
                    let costs = name == "nar/upload.nar" && method == "GET";
                    let status = if costs { 401 } else { status };
                    assert_eq!((stranger.status, same), (status, Some(control)), "{method} {address}");
                } else if name != "other" {
                    let refused = (stranger.status, stranger.header("cache-control"));
                    assert_eq!(refused, (401, Some("private, no-store")), "{method} {address}");
                }
            }
        }
    }
    for (method, address) in [
        ("GET", "/_api/v2/caches"),
        ("GET", "/_api/v2/status"),
        ("GET", "/_api/v1/cache-config/main"),
        ("POST", "/_api/v1/get-missing-paths"),
        ("PUT", "/_api/v1/upload-path"),
        ("PUT", "/main/nix-cache-info"),
        ("DELETE", "/_api/v2/caches/main/objects/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5"),
        ("POST", "/main/nix-cache-info"),
    ] {
        let reply = server.call(&admin(), method, address, b"");
        assert_eq!(reply.header("cache-control"), Some("private, no-store"), "{method} {address}: {reply:?}");
    }
    for (address, expected) in
        [("/", "public, max-age=60"), ("/healthz", NEVER), ("/readyz", NEVER), ("/_dormer/stats", NEVER)]
    {
        assert_eq!(server.get(address).header("cache-control"), Some(expected), "{address}");
    }
}

/// What proxies may keep of a success on a route. A new route has to be told about here.
fn life_of(route: &str) -> &'static str {
    match route {
        "NixCacheInfo" | "Narinfo" | "Listing" | "Document" => DOCUMENT,
        // The table asks by other names than the present one.
        "Nar" => NEVER,
        "CacheConfig" | "AtticCacheInfo" | "GetMissingPaths" | "UploadPath" | "Object" | "Objects"
        | "Referrers" | "File" | "Purges" | "CacheStats" | "Pins" | "Pin" | "PinnedPath" | "Session"
        | "SessionMissing" | "SessionPart" | "SessionCommit" => "private, no-store",
        other => panic!("the route {other} is new: what may a proxy keep of it?"),
    }
}

#[test]
fn every_route_says_what_proxies_may_keep() {
    let server = Server::start();
    let reader = token(&json!({ "*": { "r": 1 } }));
    let mut kept = 0;
    for cache in ["main", "team-a"] {
        server.push(cache, &path(1), &nar(1));
        for document in documents().iter().filter(|document| document.starts_with("log/")) {
            assert_eq!(server.call(&admin(), "PUT", &format!("/{cache}/{document}"), b"a log").status, 200);
        }
        for asked in requests(cache) {
            let is_read = matches!(asked.method, "GET" | "HEAD");
            // A reader changes nothing, so each request finds the same.
            for token in [None, Some(&reader), Some(&admin())].into_iter().take(if is_read { 3 } else { 2 }) {
                let bearer = token.map(|token| format!("Bearer {token}")).unwrap_or_default();
                let headers = [("Authorization", bearer.as_str())];
                let headers = if token.is_some() { &headers[..] } else { &[] };
                let reply = server.request(asked.method, &asked.address, headers, &asked.body);
                let control = reply.header("cache-control").unwrap();
                let what = format!("{} {} {}: {control}", asked.method, asked.address, reply.status);
                let life = life_of(asked.route);
                let may_keep = is_read && reply.status == 200 && life == DOCUMENT;
                assert_eq!(!control.contains(NEVER), may_keep, "{what}");
                assert!(!may_keep || control.contains(DOCUMENT), "{what}");
                let is_private = cache == "team-a" || !is_read || life.starts_with("private");
                assert!(!is_private || control.starts_with("private"), "{what}");
                let vary = reply.header("vary").unwrap_or_default();
                assert_eq!(vary.contains("authorization"), control.starts_with("private"), "{what}: {vary}");
                kept += usize::from(may_keep);
            }
        }
    }
    // Four kinds of documents, by GET and HEAD: three callers of one cache, two of the other.
    assert!(kept >= 4 * 2 * 5, "{kept}");
}

#[test]
fn parts_conditions_and_failures_have_the_life_of_their_address() {
    let server = Server::start();
    server.push("main", &path(1), &nar(1));
    let url = server.nar_url("main", &path(1));
    let ask = |headers: &[(&str, &str)]| server.request("GET", &url, headers, b"");
    for (headers, status, expected) in [
        (&[("Range", "bytes=1-2")][..], 206, IMMUTABLE),
        (&[("If-None-Match", "*")], 304, IMMUTABLE),
        (&[("Range", "bytes=99999999-")], 416, NEVER),
    ] {
        let reply = ask(headers);
        assert_eq!(reply.status, status);
        assert!(reply.header("cache-control").unwrap().contains(expected), "{reply:?}");
    }
    server.store.set_down(true);
    let down = ask(&[]);
    assert_eq!((down.status, down.header("cache-control")), (503, Some(NEVER)));
}
