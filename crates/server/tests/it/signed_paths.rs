//! What a holder of a push token cannot do to a path that is there: replace it, or keep genuine
//! signatures from it.

use dormer_nix::{NarHash, SecretKey, StoreDir, fingerprint};
use serde_json::{Value, json};

use crate::common::{Server, admin, nar, nar_info, narinfo, path, signature, token};

/// A key of cache `main` that the server has the public half of, and that is retired.
fn known_key(server: &Server) -> SecretKey {
    let key = SecretKey::generate("known-1", [3; 32]).expect("a name that Nix takes");
    for keypair in [json!({"Keypair": key.expose()}), json!("Generate")] {
        let patch = json!({"keypair": keypair}).to_string();
        let reply = server.call(&admin(), "PATCH", "/_api/v1/cache-config/main", patch.as_bytes());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    key
}

fn genuine(key: &SecretKey, nar: &[u8]) -> String {
    let (hash, size) = (NarHash::digest(nar), nar.len() as u64);
    key.sign(&fingerprint(&StoreDir::default(), &path(1), &hash, size, &[])).to_string()
}

/// Pushes path 1 with these signatures, both ways.
fn push_signed(server: &Server, sigs: &[String]) {
    let info = nar_info("main", &path(1), &nar(1), &json!({"sigs": sigs})).to_string();
    let bearer = format!("Bearer {}", admin());
    let headers = [("X-Attic-Nar-Info", info.as_str()), ("Authorization", bearer.as_str())];
    let reply = server.request("PUT", "/_api/v1/upload-path", &headers, &nar(1));
    assert_eq!(reply.status, 200, "{reply:?}");
    put_signed(server, sigs);
}

fn put_signed(server: &Server, sigs: &[String]) {
    assert_eq!(server.call(&admin(), "PUT", "/main/nar/1.nar", &nar(1)).status, 200);
    let lines: Vec<String> = sigs.iter().map(|sig| format!("Sig: {sig}\n")).collect();
    let text = narinfo(&path(1), &nar(1), "1.nar", "none", &lines.concat());
    let reply = server.call(&admin(), "PUT", &address(), text.as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
}

fn address() -> String {
    format!("/main/{}.narinfo", path(1).hash())
}

fn served(server: &Server) -> Vec<String> {
    let text = server.get(&address()).text();
    text.lines().filter_map(|line| line.strip_prefix("Sig: ")).map(str::to_owned).collect()
}

#[test]
fn bogus_signatures_keep_no_genuine_one_out_and_displace_none_of_a_known_key() {
    let server = Server::start();
    let known = genuine(&known_key(&server), &nar(1));
    let forged = signature("known-1", "B");
    // In the name of the key, in the names of sixteen others, and many in one name.
    let mut bogus: Vec<String> = (0..16).map(|n| signature(&format!("bogus-{n}"), "A")).collect();
    bogus.extend(["C", "D", "E", "F", "G"].map(|letter| signature("builder-1", letter)));
    bogus.push(forged.clone());
    push_signed(&server, &bogus);
    assert!(!served(&server).contains(&forged), "the key is known, and did not make it");
    let unknown = signature("builder-1", "Z");
    push_signed(&server, &[known.clone(), unknown.clone()]);
    assert!(served(&server).contains(&known) && served(&server).contains(&unknown), "{:?}", served(&server));
    let more: Vec<String> = (16..40).map(|n| signature(&format!("bogus-{n}"), "A")).collect();
    push_signed(&server, &more);
    assert!(served(&server).contains(&known), "{:?}", served(&server));
    // The genuine ones, sixteen others, and that of the cache's own key.
    assert!(served(&server).len() <= 18, "{}", served(&server).len());
}

#[test]
fn signatures_of_other_algorithms_are_kept_and_served() {
    let server = Server::start();
    // ECDSA and ML-DSA-65.
    let text = |name: &str, bytes: usize| {
        use base64::Engine as _;
        format!("{name}:{}", base64::engine::general_purpose::STANDARD.encode(vec![7; bytes]))
    };
    let sigs = [text("corp-ecdsa-1", 71), text("corp-mldsa-1", 3_309), text("corp-1", 64)];
    put_signed(&server, &sigs);
    for sig in &sigs {
        assert!(served(&server).contains(sig), "{sig}");
    }
    for bad in ["no-colon", "a:%%%", "a:", ":AAAA", "a b:AAAA"] {
        let info = nar_info("main", &path(1), &nar(1), &json!({"sigs": [bad]})).to_string();
        let bearer = format!("Bearer {}", admin());
        let headers = [("X-Attic-Nar-Info", info.as_str()), ("Authorization", bearer.as_str())];
        assert_eq!(server.request("PUT", "/_api/v1/upload-path", &headers, &nar(1)).status, 400, "{bad}");
    }
}

fn upload(server: &Server, number: u64, other: &Value) -> Value {
    let info = nar_info("main", &path(1), &nar(number), other).to_string();
    let bearer = format!("Bearer {}", token(&json!({"main": {"w": 1}})));
    let headers = [("X-Attic-Nar-Info", info.as_str()), ("Authorization", bearer.as_str())];
    let reply = server.request("PUT", "/_api/v1/upload-path", &headers, &nar(number));
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

#[test]
fn the_first_nar_of_a_path_stays_unless_the_cache_allows_replacement() {
    let server = Server::start();
    let has =
        |number: u64| server.get(&address()).text().contains(&NarHash::digest(&nar(number)).to_string());
    assert_eq!(upload(&server, 1, &json!({}))["kept"], Value::Null);
    assert_eq!(upload(&server, 2, &json!({}))["kept"], true, "the answer says so");
    assert!(has(1) && !has(2), "{}", server.get(&address()).text());
    let reference = json!({"references": [path(7).to_string()]});
    assert_eq!(upload(&server, 1, &reference)["kept"], true, "other references are another path, too");
    assert_eq!(upload(&server, 1, &json!({}))["kept"], Value::Null, "the same again is no replacement");

    let config = "/_api/v1/cache-config/main";
    let allow = json!({"allow_replacement": true}).to_string();
    assert_eq!(server.call(&admin(), "GET", config, b"").json()["allow_replacement"], false);
    let pusher = token(&json!({"main": {"w": 1, "r": 1, "cq": 1}}));
    assert_eq!(server.call(&pusher, "PATCH", config, allow.as_bytes()).status, 403);
    assert_eq!(server.call(&admin(), "PATCH", config, allow.as_bytes()).status, 200);
    assert_eq!(server.call(&admin(), "GET", config, b"").json()["allow_replacement"], true);
    assert_eq!(upload(&server, 2, &json!({}))["kept"], Value::Null);
    assert!(has(2) && !has(1), "{}", server.get(&address()).text());
}

#[test]
fn new_caches_forbid_replacement_unless_their_creator_allows_it() {
    let server = Server::start();
    for (name, more, expected) in [
        ("a", json!({}), false),
        ("b", json!({"allow_replacement": false}), false),
        ("c", json!({"allow_replacement": true}), true),
    ] {
        let mut create = json!({
            "keypair": "Generate", "is_public": true, "store_dir": "/nix/store", "priority": 41,
            "upstream_cache_key_names": [],
        });
        create.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let config = format!("/_api/v1/cache-config/{name}");
        assert_eq!(server.call(&admin(), "POST", &config, create.to_string().as_bytes()).status, 200);
        assert_eq!(server.call(&admin(), "GET", &config, b"").json()["allow_replacement"], expected);
    }
}
