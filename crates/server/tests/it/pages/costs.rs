//! What pages cost the database.

use dormer_nix::nar::{Node, encode_tree};
use serde_json::json;

use super::{browse, push};
use crate::common::{Server, admin, nar, now, path, token};
use crate::routes::pages;

#[test]
fn the_first_page_and_those_of_a_cache_and_a_path_cost_four_statements_at_most() {
    let server = Server::start();
    for number in 1..=60 {
        let references: Vec<String> = (1..number).map(|other| path(other).to_string()).collect();
        push(&server, "main", &path(number), &nar(1), &json!({ "references": references }));
    }
    // Caches that a visitor may not know of cost no statement, however many there are.
    for number in 0..250 {
        let new = dormer_engine::CreateCache {
            name: format!("hidden-{number:03}"),
            is_public: false,
            store_dir: "/nix/store".to_owned(),
            priority: 41,
            upstream_cache_key_names: Vec::new(),
            secret_key: None,
            allow_replacement: false,
        };
        server.block_on(server.engine.create_cache(new)).unwrap();
    }
    let all = json!({"r": 1, "cq": 1});
    let member = token(&json!({"hidden-*": {}, "hidden-249": {"r": 1}, "m*": all, "t*": all}));
    let home = browse(&server, Some(&member), "/").text();
    for (name, is_there) in [("main", true), ("team-a", true), ("hidden-249", true), ("hidden-248", false)] {
        assert_eq!(home.contains(&format!("href=\"./{name}/\"")), is_there, "{name}");
    }
    let listed = server.call(&member, "GET", "/_api/v2/caches", b"").json();
    assert_eq!(listed["caches"].as_array().map(Vec::len), Some(3), "{listed}");
    // Of this one, nothing is remembered.
    let before = server.index.statement_count();
    assert_eq!(browse(&server, Some(&admin()), "/hidden-000/").status, 200);
    assert!(server.index.statement_count() - before <= 4);
    for session in [None, Some(member), Some(admin())] {
        for address in [
            "/".to_owned(),
            "/main/".to_owned(),
            format!("/main/{}", path(30).hash()),
            "/main/paths".to_owned(),
        ] {
            let before = server.index.statement_count();
            assert_eq!(browse(&server, session.as_deref(), &address).status, 200);
            let cost = server.index.statement_count() - before;
            assert!(cost <= 4, "{address} took {cost} statements");
        }
    }
}

/// Most statements of each page. One without a row here takes four.
fn statements_max(address: &str) -> u64 {
    match address {
        _ if address.ends_with("/closure") => 66,
        _ if address.contains("/files") => 8,
        _ => 4,
    }
}

#[test]
fn no_page_costs_more_than_its_bound_whatever_the_cache_holds() {
    let server = Server::start();
    let bin = Node::directory([(b"x".to_vec(), Node::file(b"a text".to_vec()))]);
    let derivation = format!("{}-hello.drv", path(8).hash());
    let tree = encode_tree(&Node::directory([(b"bin".to_vec(), bin)]));
    push(
        &server,
        "main",
        &path(1),
        &tree,
        &json!({ "deriver": derivation, "references": [path(9).to_string()] }),
    );
    let log = format!("/main/log/{derivation}");
    assert_eq!(server.call(&admin(), "PUT", &log, &b"a line\n".repeat(200_000)).status, 200);
    let main = server.block_on(server.engine.find_cache("main")).unwrap().unwrap();
    let rules = dormer_engine::UpdateCache {
        retention_seconds: Some(Some(86_400)),
        quota_bytes: Some(Some(1 << 40)),
        keep_latest: Some(Some(2)),
        ..dormer_engine::UpdateCache::default()
    };
    server.block_on(server.engine.update_cache(&main, rules)).unwrap();
    // A chain: each refers to the one before it.
    for number in 2..=90 {
        push(
            &server,
            "main",
            &path(number),
            &nar(1),
            &json!({ "references": [path(number - 1).to_string()] }),
        );
    }
    for number in [1, 5] {
        let pin = dormer_index::Pin {
            name: format!("pin-{number}"),
            path: path(number),
            created_at: now(),
            ends_at: None,
        };
        server.block_on(server.index.add_pin(main.id, &pin, None)).unwrap();
    }
    let longest = format!("/main/{}/closure", path(90).hash());
    let reads = pages("main").into_iter().filter(|(method, _)| *method == "GET");
    let more = ["/", "/main/paths?q=package*", "/main/paths?q=pack", "/main/paths?q=*age"].map(str::to_owned);
    let reads: Vec<String> = reads.map(|(_, address)| address).chain([longest.clone()]).chain(more).collect();
    let owner = token(&json!({"main": {"r": 1, "cq": 1, "d": 1}}));
    for session in [None, Some(owner), Some(admin())] {
        for address in &reads {
            // As for the first visitor after a while: a change makes the server forget.
            let no_change = dormer_engine::UpdateCache::default();
            server.block_on(server.engine.update_cache(&main, no_change)).unwrap();
            let before = server.index.statement_count();
            let reply = browse(&server, session.as_deref(), address);
            let cost = server.index.statement_count() - before;
            assert!(cost <= statements_max(address), "{address} took {cost} statements: {}", reply.status);
            assert!(
                *address != longest || reply.text().contains("larger than this page looks at"),
                "{}",
                reply.text()
            );
        }
    }
}
