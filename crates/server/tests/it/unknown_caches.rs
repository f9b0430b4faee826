//! A private cache costs a caller without permissions what a cache costs that does not exist: the
//! same statements, so the time of an answer tells nothing.

use serde_json::json;

use crate::common::{Server, admin, nar, path, token};
use crate::routes::{Asked, requests};

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
            let ask = |asked: &Asked| {
                let mut headers = Vec::new();
                headers.extend(authorization.as_deref().map(|value| ("Authorization", value)));
                headers.extend(asked.info.as_deref().map(|value| ("X-Attic-Nar-Info", value)));
                let before = server.index.statement_count();
                let reply =
                    server.request(asked.method, &asked.address, &headers, &asked.body).without_noise();
                (reply, server.index.statement_count() - before)
            };
            let (private_reply, private_cost) = ask(&private);
            let (unknown_reply, unknown_cost) = ask(&unknown);
            let what = format!("{} {} with {authorization:?}", private.method, private.address);
            assert_eq!(private_reply.status, 401, "{what}");
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
