//! Real HTTP caches before the lab, set up to keep all that they may.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::thread;
use std::time::{Duration, Instant};

use dormer_tests::http::{self, Reply};
use dormer_tests::{HttpProxy, Lab, nars};

/// How long a proxy may keep a narinfo, and the time of a busy machine.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60 + 15);

fn caches(lab: &Lab) -> [HttpProxy; 2] {
    [HttpProxy::nginx_cache(lab.address()), HttpProxy::varnish(lab.address())]
}

fn push(lab: &Lab, cache: &str, nar: &[u8]) {
    let info = nars::attic_info(cache, nar, "path");
    let bearer = format!("Bearer {}", lab.admin_token());
    let headers = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info", info.as_str())];
    let reply = http::request(lab.address(), "PUT", "/_api/v1/upload-path", &headers, nar);
    assert_eq!(reply.status, 200, "{reply:?}");
}

fn narinfo(cache: &str, nar: &[u8]) -> String {
    format!("/{cache}/{}.narinfo", nars::path_hash(nar))
}

fn nar_url(lab: &Lab, cache: &str, nar: &[u8]) -> String {
    let text = http::get(lab.address(), &narinfo(cache, nar), Some(&lab.admin_token())).text();
    format!("/{cache}/{}", text.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap())
}

/// Whether the proxy answered by itself.
fn is_from_memory(reply: &Reply) -> bool {
    reply.header("x-cache") == Some("HIT") || reply.header("age").is_some_and(|age| age != "0")
}

#[test]
fn a_private_cache_stays_private_behind_a_proxy_that_caches() {
    let lab = Lab::start();
    lab.create_cache("secret", &[]);
    let nar = nars::file("private".repeat(1000).as_bytes());
    push(&lab, "secret", &nar);
    let member = lab.token(&["--pull", "secret"]);
    let outsider = lab.token(&["--pull", "other"]);
    let hash = nars::path_hash(&nar);
    let addresses = [
        "/secret/nix-cache-info".to_owned(),
        narinfo("secret", &nar),
        format!("/secret/{hash}.ls"),
        nar_url(&lab, "secret", &nar),
        format!("/secret/nar/{hash}.nar"),
        "/secret/attic-cache-info".to_owned(),
        "/_api/v1/cache-config/secret".to_owned(),
    ];
    for proxy in caches(&lab) {
        for address in &addresses {
            let get = |token: Option<&str>| http::get(proxy.address(), address, token).status;
            let what = format!("{} {address}", proxy.name());
            for _ in 0..2 {
                assert_eq!(get(None), 401, "{what} without a token");
                assert_eq!(get(Some(&outsider)), 401, "{what} with another token");
                assert_eq!(get(Some(&member)), 200, "{what} with a token");
            }
        }
        // Lists differ from token to token.
        let list = |token: Option<&str>| http::get(proxy.address(), "/_api/v2/caches", token).text();
        assert!(list(Some(&member)).contains("secret"), "{}", proxy.name());
        assert!(!list(Some(&outsider)).contains("secret"), "{}", proxy.name());
        assert!(!list(None).contains("secret"), "{}", proxy.name());
    }
}

#[test]
fn a_miss_ends_with_the_push_and_a_hit_a_minute_after_the_removal() {
    let lab = Lab::start();
    let proxies = caches(&lab);
    let nar = nars::file("public".repeat(1000).as_bytes());
    let narinfo = narinfo("main", &nar);
    let ask = |proxy: &HttpProxy, address: &str| http::get(proxy.address(), address, None);
    for proxy in &proxies {
        for _ in 0..2 {
            assert_eq!(ask(proxy, &narinfo).status, 404, "{}", proxy.name());
        }
    }
    push(&lab, "main", &nar);
    let url = nar_url(&lab, "main", &nar);
    for proxy in &proxies {
        for address in [&narinfo, &url] {
            let first = ask(proxy, address);
            assert_eq!(first.status, 200, "{} {address}: the miss is remembered", proxy.name());
            thread::sleep(Duration::from_millis(1100));
            let second = ask(proxy, address);
            assert_eq!((second.status, second.body == first.body), (200, true));
            assert!(is_from_memory(&second), "{} {address} caches nothing: {second:?}", proxy.name());
        }
    }
    let bearer = format!("Bearer {}", lab.admin_token());
    let object = format!("/_api/v2/caches/main/objects/{}", nars::path_hash(&nar));
    // Through a proxy, as a user might.
    let headers = [("Authorization", bearer.as_str())];
    let removed = http::request(proxies[0].address(), "DELETE", &object, &headers, b"");
    assert_eq!(removed.status, 200, "{removed:?}");
    let begin = Instant::now();
    for proxy in &proxies {
        while ask(proxy, &narinfo).status != 404 {
            let name = proxy.name();
            assert!(begin.elapsed() < FORGOTTEN_AFTER, "{name} still serves what was removed");
            thread::sleep(Duration::from_millis(500));
        }
    }
    push(&lab, "main", &nar);
    for proxy in &proxies {
        assert_eq!(ask(proxy, &narinfo).status, 200, "{}: what was removed can come back", proxy.name());
    }
}

#[test]
fn a_proxy_keeps_nothing_of_a_damaged_nar() {
    let mut lab = Lab::start();
    let proxies = caches(&lab);
    let mut random = 1_u64;
    let noise: Vec<u8> = (0..4_000_000)
        .map(|_| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 56) as u8
        })
        .collect();
    let nar = nars::file(&noise);
    push(&lab, "main", &nar);
    let url = nar_url(&lab, "main", &nar);
    let sound = http::get(lab.address(), &url, None).body;
    // A server may hold the old file open.
    lab.kill();
    let inspection = lab.inspection();
    // The only large NAR has the largest pack.
    let (pack, _) = inspection.packs()[0];
    let mut bytes = inspection.read(&pack);
    let place = bytes.len() / 2;
    bytes[place] ^= 0x20;
    inspection.overwrite(&pack, bytes);
    lab.restart();

    let part = |proxy: &HttpProxy, range: &str| {
        http::request(proxy.address(), "GET", &url, &[("Range", range)], b"")
    };
    // In the middle of the bad bytes: a whole 206 of them must not exist, anywhere.
    let last = sound.len() - 1;
    let ranges = [(1_000_000, 3_000_000), (0, last), (last - 100, last)];
    for proxy in &proxies {
        for (first, end) in ranges {
            let reply = part(proxy, &format!("bytes={first}-{end}"));
            let is_sound = reply.complete && matches!(reply.status, 200 | 206);
            assert!(!is_sound || reply.body == sound[first..=end], "{}: bad bytes", proxy.name());
        }
    }
    assert_eq!(http::get(lab.address(), &narinfo("main", &nar), None).status, 404, "it is known as damaged");
    for proxy in &proxies {
        assert_eq!(http::get(proxy.address(), &narinfo("main", &nar), None).status, 404, "{}", proxy.name());
    }
    push(&lab, "main", &nar);
    let healed_url = nar_url(&lab, "main", &nar);
    let healed = http::get(lab.address(), &healed_url, None).body;
    assert!(healed_url != url || healed == sound, "one name, other bytes");
    assert!(zstd::decode_all(healed.as_slice()).unwrap() == nar);
    for proxy in &proxies {
        for (first, end) in [(1_000_000, 3_000_000), (0, healed.len() - 1)] {
            let range = format!("bytes={first}-{end}");
            let part = http::request(proxy.address(), "GET", &healed_url, &[("Range", &range)], b"");
            assert_eq!((part.status, part.complete), (206, true), "{} {range}", proxy.name());
            assert!(part.body == healed[first..=end], "{} {range}: other bytes", proxy.name());
        }
        assert!(http::get(proxy.address(), &healed_url, None).body == healed, "{}", proxy.name());
    }
}
