//! Access: private caches, good and bad tokens, NARs shared between caches.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use dormer_tests::http::{self, Reply};
use dormer_tests::nars;
use dormer_tests::{Lab, LabOptions, Nix};
use serde_json::{Value, json};

const SECRET: [u8; 32] = [7; 32];

/// A lab whose token secret the test knows, so that it can forge.
fn lab_with_known_secret() -> Lab {
    let encoded = base64::engine::general_purpose::STANDARD.encode(SECRET);
    Lab::start_with(LabOptions {
        environment: vec![("ATTIC_SERVER_TOKEN_HS256_SECRET_BASE64".to_owned(), encoded)],
        ..LabOptions::default()
    })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims(expires: u64) -> Value {
    json!({
        "sub": "test",
        "exp": expires,
        "https://jwt.attic.rs/v1": { "caches": { "*": { "r": 1, "w": 1, "cc": 1 } } },
    })
}

fn sign(claims: &Value, secret: &[u8]) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(secret);
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).unwrap()
}

fn upload(lab: &Lab, token: &str, cache: &str, nar: &[u8]) -> Reply {
    let info = nars::attic_info(cache, nar, "path");
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info", info.as_str())];
    http::request(lab.address(), "PUT", "/_api/v1/upload-path", &headers, nar)
}

fn basic(token: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("whoever:{token}")))
}

#[test]
fn a_private_cache_serves_those_with_a_token_in_netrc_and_nobody_else() {
    let lab = Lab::start();
    lab.create_cache("secret", &[]);
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let all = builder.build("all", &[("salt", "private")]);
    builder.dormer(&["push", "secret", &all]).succeeds();

    let token = lab.token(&["--pull", "secret"]);
    let narinfo = format!("/secret/{}.narinfo", &all["/nix/store/".len()..][..32]);
    assert_eq!(http::get(lab.address(), &narinfo, None).status, 401);
    assert_eq!(http::get(lab.address(), "/secret/nix-cache-info", None).status, 401);
    for nix in Nix::ALL {
        let stranger = lab.machine(&format!("stranger-{}", nix.name()), nix);
        stranger.configure(&[lab.public_key("secret")]);
        stranger.substitute(&lab.cache_url("secret"), &all).fails();

        let member = lab.machine(&format!("member-{}", nix.name()), nix);
        member.configure(&[lab.public_key("secret")]);
        member.set_netrc(lab.address(), &token);
        member.substitute(&lab.cache_url("secret"), &all).succeeds();
        member.verify_all();
    }
}

#[test]
fn a_path_pushed_under_two_caches_is_stored_once_and_read_only_where_it_was_pushed() {
    let lab = Lab::start();
    for cache in ["one", "two", "three"] {
        lab.create_cache(cache, &[]);
    }
    let nar = nars::file("shared".repeat(50_000).as_bytes());
    let token = |caches: &[&str]| {
        let arguments: Vec<&str> =
            caches.iter().flat_map(|cache| ["--pull", *cache, "--push", *cache]).collect();
        lab.token(&arguments)
    };
    let stored_bytes = || lab.stored_bytes();

    assert_eq!(upload(&lab, &token(&["one"]), "one", &nar).json()["kind"], "Uploaded");
    let after_first = stored_bytes();
    assert!(after_first > 0, "packs were stored");
    // A token that may not pull from `one` must not learn that `one` has the path, but the bytes
    // are still stored only once.
    assert_eq!(upload(&lab, &token(&["two"]), "two", &nar).json()["kind"], "Uploaded");
    assert_eq!(stored_bytes(), after_first);
    // A token that may pull everything is told.
    assert_eq!(upload(&lab, &lab.admin_token(), "three", &nar).json()["kind"], "Deduplicated");
    assert_eq!(stored_bytes(), after_first);

    let hash = nars::path_hash(&nar);
    let narinfo = lab.get(&format!("/one/{hash}.narinfo")).text();
    let url = narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap().to_owned();
    for cache in ["one", "two", "three"] {
        let own = lab.token(&["--pull", cache]);
        let reply = http::get(lab.address(), &format!("/{cache}/{url}"), Some(&own));
        assert_eq!(reply.status, 200, "{cache}: {reply:?}");
        assert!(zstd::decode_all(reply.body.as_slice()).unwrap() == nar);
    }
    lab.create_cache("four", &[]);
    let four = lab.token(&["--pull", "four"]);
    assert_eq!(http::get(lab.address(), &format!("/four/{url}"), Some(&four)).status, 404);
    assert_eq!(http::get(lab.address(), &format!("/one/{url}"), Some(&four)).status, 401);
    assert_eq!(http::get(lab.address(), &format!("/four/{hash}.narinfo"), Some(&four)).status, 404);
}

#[test]
fn an_unknown_cache_and_one_that_is_not_ones_business_look_alike() {
    let lab = Lab::start();
    lab.create_cache("hidden", &[]);
    let outsider = lab.token(&["--pull", "other"]);
    for token in [None, Some(outsider.as_str()), Some("no token at all")] {
        let paths = ["nix-cache-info", "attic-cache-info", "00000000000000000000000000000000.narinfo"];
        for path in paths {
            let hidden = http::get(lab.address(), &format!("/hidden/{path}"), token);
            let unknown = http::get(lab.address(), &format!("/unknown/{path}"), token);
            assert_eq!((hidden.status, unknown.status), (401, 401), "{path}");
            assert_eq!(hidden.body, unknown.body, "{path}");
        }
    }
}

#[test]
fn a_token_is_taken_as_bearer_and_as_the_password_of_any_user() {
    let lab = lab_with_known_secret();
    lab.create_cache("private", &[]);
    let good = sign(&claims(now() + 60), &SECRET);
    let get = |value: &str| {
        http::request(lab.address(), "GET", "/private/nix-cache-info", &[("Authorization", value)], b"")
            .status
    };
    assert_eq!(get(&format!("Bearer {good}")), 200);
    assert_eq!(get(&basic(&good)), 200);
    assert_eq!(get(&format!("Digest {good}")), 401);
}

#[test]
fn bad_tokens_count_as_none() {
    let lab = lab_with_known_secret();
    lab.create_cache("private", &[]);
    let url_safe = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let good = sign(&claims(now() + 3600), &SECRET);
    let unsigned = format!(
        "{}.{}.",
        url_safe.encode(r#"{"typ":"JWT","alg":"none"}"#),
        url_safe.encode(claims(now() + 3600).to_string())
    );
    let mut not_yet = claims(now() + 7200);
    not_yet["nbf"] = json!(now() + 3600);
    let (head_and_body, signature) = good.rsplit_once('.').unwrap();
    let (head, body) = head_and_body.split_once('.').unwrap();
    let mut wider = claims(now() + 3600);
    wider["https://jwt.attic.rs/v1"]["caches"]["private"] = json!({ "r": 1, "w": 1, "d": 1, "cd": 1 });
    let rs256_head = url_safe.encode(r#"{"typ":"JWT","alg":"RS256"}"#);
    let bad = [
        ("expired", sign(&claims(now() - 3600), &SECRET)),
        ("not valid yet", sign(&not_yet, &SECRET)),
        ("signed with another secret", sign(&claims(now() + 3600), b"another secret")),
        ("unsigned", unsigned),
        ("with another body", format!("{head}.{}.{signature}", url_safe.encode(wider.to_string()))),
        ("with another algorithm named", format!("{rs256_head}.{body}.{signature}")),
        ("cut", good[..good.len() - 5].to_owned()),
        ("empty", String::new()),
        ("no token", "x.y.z".to_owned()),
    ];
    assert_eq!(http::get(lab.address(), "/private/nix-cache-info", Some(&good)).status, 200);
    for (what, token) in &bad {
        let read = http::get(lab.address(), "/private/nix-cache-info", Some(token));
        assert_eq!(read.status, 401, "a token that is {what} reads");
        let nar = nars::file(what.as_bytes());
        let write = upload(&lab, token, "private", &nar);
        assert_eq!(write.status, 401, "a token that is {what} writes: {write:?}");
        let public = http::get(lab.address(), "/main/nix-cache-info", Some(token));
        assert_eq!(public.status, 200, "a public cache needs no token, so a bad one does no harm");
        assert_eq!(lab_get(&lab, &good, &format!("/private/{}.narinfo", nars::path_hash(&nar))).status, 404);
    }
}

fn lab_get(lab: &Lab, token: &str, path: &str) -> Reply {
    http::get(lab.address(), path, Some(token))
}

#[test]
fn permissions_are_checked_one_by_one() {
    let lab = Lab::start();
    lab.create_cache("team-a", &[]);
    let nar = nars::file(b"one by one");
    let reader = lab.token(&["--pull", "team-*"]);
    let writer = lab.token(&["--pull", "team-*", "--push", "team-*"]);
    assert_eq!(upload(&lab, &reader, "team-a", &nar).status, 403);
    assert_eq!(upload(&lab, &writer, "team-a", &nar).status, 200);
    assert_eq!(upload(&lab, &writer, "main", &nar).status, 403, "main is public, so it may be known");
    let bearer = format!("Bearer {writer}");
    let destroy = http::request(
        lab.address(),
        "DELETE",
        "/_api/v1/cache-config/team-a",
        &[("Authorization", &bearer)],
        b"",
    );
    assert_eq!(destroy.status, 403, "{destroy:?}");
    assert_eq!(http::get(lab.address(), "/team-a/nix-cache-info", Some(&reader)).status, 200);
}
