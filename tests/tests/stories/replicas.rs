//! Two replicas over PostgreSQL and S3, asked directly: what one of them was told, the other knows.

use std::time::{Duration, Instant};

use dormer_nix::NarHash;
use dormer_tests::http::{self, Reply};
use dormer_tests::{Lab, nars, times};

/// What docs/HTTP-API.md promises, that a hit is never older than 5 seconds, and the time of a busy
/// machine.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5 + 10);

fn upload(address: &str, token: &str, nar: &[u8]) -> Reply {
    let bearer = format!("Bearer {token}");
    let info = nars::attic_info("main", nar, "shared");
    let headers = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info", info.as_str())];
    http::request(address, "PUT", "/_api/v1/upload-path", &headers, nar)
}

#[test]
fn replicas_that_start_at_once_make_one_cache_with_one_key() {
    let lab = Lab::start_production();
    let token = lab.admin_token();
    let keys: Vec<String> = lab
        .replicas()
        .iter()
        .map(|replica| {
            http::get(replica, "/_api/v1/cache-config/main", Some(&token)).json()["public_key"].to_string()
        })
        .collect();
    assert_eq!(keys.len(), 2);
    assert!(keys[0].starts_with("\"main:") && keys[0] == keys[1], "{keys:?}");
}

#[test]
fn what_one_replica_acknowledged_the_other_serves_at_once() {
    let lab = Lab::start_production();
    let token = lab.admin_token();
    for round in 0..times(30) {
        let replicas = lab.replicas();
        let (written, read) = (replicas[round % 2], replicas[(round + 1) % 2]);
        let nar = nars::file(format!("round {round} ").repeat(1 + round * 1000).as_bytes());
        let narinfo = format!("/main/{}.narinfo", nars::path_hash(&nar));
        // A miss that is remembered would hide the path for as long.
        assert_eq!(http::get(read, &narinfo, None).status, 404);
        assert_eq!(upload(written, &token, &nar).status, 200);
        let found = http::get(read, &narinfo, None);
        assert_eq!(found.status, 200, "round {round}: {found:?}");
        let text = found.text();
        let url = text.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
        let body = http::get(read, &format!("/main/{url}"), None).body;
        assert_eq!(NarHash::digest(&zstd::decode_all(body.as_slice()).unwrap()), NarHash::digest(&nar));
    }
}

#[test]
fn settings_changed_at_one_replica_are_shown_by_the_other_at_once() {
    let lab = Lab::start_production();
    let bearer = format!("Bearer {}", lab.admin_token());
    let config = "/_api/v1/cache-config/main";
    let ask = |replica: &str, method: &str, path: &str, body: &str| {
        http::request(replica, method, path, &[("Authorization", &bearer)], body.as_bytes())
    };
    for round in 0..times(100) {
        let replicas = lab.replicas();
        let (changed, shown) = (replicas[round % 2], replicas[(round + 1) % 2]);
        // Now it remembers the settings as they were.
        assert_eq!(ask(shown, "GET", "/main/nix-cache-info", "").status, 200);
        let priority = 20 + round;
        assert_eq!(ask(changed, "PATCH", config, &format!(r#"{{"priority":{priority}}}"#)).status, 200);
        assert_eq!(ask(shown, "GET", config, "").json()["priority"], priority, "round {round}");
    }
}

#[test]
fn what_was_removed_at_one_replica_is_forgotten_by_the_other() {
    let lab = Lab::start_production();
    let token = lab.admin_token();
    let bearer = format!("Bearer {token}");
    let nar = nars::file(b"soon gone");
    let hash = nars::path_hash(&nar);
    let narinfo = format!("/main/{hash}.narinfo");
    assert_eq!(upload(lab.replicas()[0], &token, &nar).status, 200);
    let mut addresses = vec![narinfo.clone()];
    for replica in lab.replicas() {
        let found = http::get(replica, &narinfo, None);
        let text = found.text();
        let url = text.lines().find_map(|line| line.strip_prefix("URL: ")).expect("a narinfo has a URL");
        addresses.push(format!("/main/{url}"));
        assert_eq!(http::get(replica, &addresses[1], None).status, 200, "the replica remembers the NAR too");
    }
    lab.login();
    lab.dormer(&["cache", "remove-path", "main", &format!("/nix/store/{hash}-shared")]).succeeds();
    let begin = Instant::now();
    for replica in lab.replicas() {
        for address in &addresses {
            while http::get(replica, address, None).status != 404 {
                assert!(begin.elapsed() < FORGOTTEN_AFTER, "{replica} still serves {address}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
    // A cache that one replica destroyed is gone at the other, too.
    let destroyed = http::request(
        lab.replicas()[0],
        "DELETE",
        "/_api/v1/cache-config/main",
        &[("Authorization", &bearer)],
        b"",
    );
    assert_eq!(destroyed.status, 200, "{destroyed:?}");
    let begin = Instant::now();
    while http::get(lab.replicas()[1], "/main/nix-cache-info", Some(&token)).status == 200 {
        assert!(begin.elapsed() < FORGOTTEN_AFTER, "the other replica still serves a destroyed cache");
        std::thread::sleep(Duration::from_millis(50));
    }
}
