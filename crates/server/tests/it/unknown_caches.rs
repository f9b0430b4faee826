//! A private cache costs a caller without permissions what a cache costs that does not exist: the
//! same statements, so the time of an answer tells nothing.

use serde_json::json;

use crate::common::{Server, admin, nar, nar_info, path, token};

/// Every request that names a cache: method, address, headers and body.
fn requests(cache: &str) -> Vec<(&'static str, String, Option<String>, Vec<u8>)> {
    let hash = path(1).hash();
    let nar_hash = dormer_nix::NarHash::digest(&nar(1)).to_nix32();
    let tag = dormer_nix::nix32::encode(&[7; 16]);
    let documents = [
        "nix-cache-info".to_owned(),
        "attic-cache-info".to_owned(),
        format!("{hash}.narinfo"),
        format!("{hash}.ls"),
        format!("nar/{nar_hash}-{tag}.nar.zst"),
        format!("nar/{hash}.nar"),
        "nar/upload.nar.xz".to_owned(),
        format!("log/{hash}-x.drv"),
        format!("build-trace-v2/{hash}-x.drv/out.doi"),
        format!("realisations/sha256:{}!out.doi", "ab".repeat(32)),
        "debuginfo/0123456789abcdef0123456789abcdef01234567".to_owned(),
    ];
    let mut requests = Vec::new();
    for document in documents {
        for method in ["GET", "HEAD", "PUT"] {
            requests.push((method, format!("/{cache}/{document}"), None, Vec::new()));
        }
    }
    for method in ["GET", "POST", "PATCH", "DELETE"] {
        let body = json!({"is_public": true}).to_string().into_bytes();
        requests.push((method, format!("/_api/v1/cache-config/{cache}"), None, body));
    }
    for (method, rest, body) in [
        ("DELETE", format!("objects/{hash}"), json!(null)),
        ("DELETE", format!("objects/{hash}?now=true"), json!(null)),
        ("DELETE", format!("objects/{hash}/referrers"), json!(null)),
        ("GET", "purges".to_owned(), json!(null)),
        ("GET", "stats".to_owned(), json!(null)),
        ("POST", "objects".to_owned(), json!({"sort": "used"})),
        ("POST", "pins".to_owned(), json!({})),
        ("PUT", "pins/p".to_owned(), json!({"store_path": path(1).to_string()})),
        ("DELETE", "pins/p".to_owned(), json!(null)),
        ("DELETE", format!("pins/p/{hash}"), json!(null)),
    ] {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        requests.push((method, format!("/_api/v2/caches/{cache}/{rest}"), None, body));
    }
    let missing = json!({"cache": cache, "store_path_hashes": [hash.to_string()]}).to_string();
    requests.push(("POST", "/_api/v1/get-missing-paths".to_owned(), None, missing.into_bytes()));
    let info = nar_info(cache, &path(1), &nar(1), &json!({})).to_string();
    requests.push(("PUT", "/_api/v1/upload-path".to_owned(), Some(info), nar(1)));
    requests
}

#[test]
fn a_private_cache_costs_a_stranger_what_an_unknown_one_costs() {
    let server = Server::start();
    server.push("team-a", &path(1), &nar(1));
    let strangers = [
        None,
        Some("Bearer garbage".to_owned()),
        Some(format!("Bearer {}", token(&json!({"other": {"r": 1, "w": 1}})))),
    ];
    let member = token(&json!({"team-a": {"r": 1, "w": 1}}));
    for authorization in &strangers {
        for (private, unknown) in requests("team-a").into_iter().zip(requests("team-z")) {
            // Its member has just read it, so that the server remembers it as well as it can.
            let read = server.call(&member, "GET", "/team-a/nix-cache-info", b"");
            assert_eq!(read.status, 200);
            let ask = |(method, address, info, body): &(&str, String, Option<String>, Vec<u8>)| {
                let mut headers = Vec::new();
                headers.extend(authorization.as_deref().map(|value| ("Authorization", value)));
                headers.extend(info.as_deref().map(|value| ("X-Attic-Nar-Info", value)));
                let before = server.index.statement_count();
                let reply = server.request(method, address, &headers, body).without_noise();
                (reply, server.index.statement_count() - before)
            };
            let (private_reply, private_cost) = ask(&private);
            let (unknown_reply, unknown_cost) = ask(&unknown);
            let what = format!("{} {} with {authorization:?}", private.0, private.1);
            let takes_no_put = private.0 == "PUT" && private.1.ends_with("/attic-cache-info");
            assert_eq!(private_reply.status, if takes_no_put { 405 } else { 401 }, "{what}");
            assert_eq!(private_reply, unknown_reply, "{what}");
            assert_eq!(private_cost, unknown_cost, "{what}");
        }
    }
}

#[test]
fn public_caches_are_still_found_without_a_statement_and_by_anybody() {
    let server = Server::start();
    for reader in [None, Some(admin()), Some(token(&json!({"other": {"r": 1}})))] {
        let ask = || match &reader {
            Some(token) => server.call(token, "GET", "/main/nix-cache-info", b""),
            None => server.get("/main/nix-cache-info"),
        };
        assert_eq!(ask().status, 200);
        let before = server.index.statement_count();
        let reply = ask();
        assert_eq!((reply.status, reply.header("x-attic-cache-visibility")), (200, Some("public")));
        assert_eq!(server.index.statement_count(), before, "it is remembered");
    }
}

#[test]
fn a_cache_that_becomes_private_is_unknown_to_strangers_at_once() {
    let server = Server::start();
    let set = |is_public: bool| {
        let patch = json!({"is_public": is_public}).to_string();
        let reply = server.call(&admin(), "PATCH", "/_api/v1/cache-config/main", patch.as_bytes());
        assert_eq!(reply.status, 200);
    };
    assert_eq!(server.get("/main/nix-cache-info").status, 200);
    set(false);
    assert_eq!(server.get("/main/nix-cache-info").status, 401);
    assert!(!server.get("/_api/v2/caches").text().contains("main"));
    set(true);
    assert_eq!(server.get("/main/nix-cache-info").status, 200);
    assert!(server.get("/_api/v2/caches").text().contains("main"));
}
