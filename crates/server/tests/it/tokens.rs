//! Tokens: what counts as one, and what does not.

use crate::common::{self, SECRET, Server, nar, now, path, sign, token};
use crate::routes::{Asked, requests};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use dormer_server::{TokenBounds, TokenKey};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

const RSA_SECRET: &[u8] = include_bytes!("../data/rsa-test-only.pem");
const RSA_PUBLIC: &[u8] = include_bytes!("../data/rsa-test-only.pub.pem");
const ED_SECRET: &[u8] = include_bytes!("../data/ed25519-test-only.pem");
const ED_PUBLIC: &[u8] = include_bytes!("../data/ed25519-test-only.pub.pem");

/// Claims that allow to read `team-a` for an hour, with some replaced; `null` removes one.
fn claims(other: &Value) -> Value {
    let mut claims = json!({
        "sub": "test", "exp": now() + 3600, "https://jwt.attic.rs/v1": {"caches": {"team-a": {"r": 1}}}
    });
    for (key, value) in other.as_object().expect("an object of claims") {
        claims[key] = value.clone();
    }
    if let Value::Object(claims) = &mut claims {
        claims.retain(|_, value| !value.is_null());
    }
    claims
}

fn hs256(other: &Value) -> String {
    sign(Algorithm::HS256, &EncodingKey::from_secret(SECRET), &claims(other))
}

/// A token put together by hand, with any header and signature.
fn by_hand(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{}", part(header), part(claims), URL_SAFE_NO_PAD.encode(signature))
}

/// What the private cache answers to this token.
fn status(server: &Server, authorization: &str) -> u16 {
    server.request("GET", "/team-a/nix-cache-info", &[("Authorization", authorization)], b"").status
}

fn status_of_token(server: &Server, token: &str) -> u16 {
    status(server, &format!("Bearer {token}"))
}

#[test]
fn a_valid_token_counts_as_bearer_and_as_password() {
    let server = Server::start();
    let token = hs256(&json!({}));
    assert_eq!(status_of_token(&server, &token), 200);
    assert_eq!(status(&server, &format!("bearer {token}")), 200);
    for user in ["", "anything", "with spaces"] {
        assert_eq!(status(&server, &format!("Basic {}", STANDARD.encode(format!("{user}:{token}")))), 200);
    }
    assert_eq!(status(&server, &format!("Basic {}", STANDARD.encode(&token))), 401, "no colon, no password");
    assert_eq!(status(&server, &token), 401, "no scheme");
}

#[test]
fn tokens_that_do_not_count_are_no_tokens() {
    let server = Server::start();
    let good = hs256(&json!({}));
    let (rest, signature) = good.rsplit_once('.').unwrap();
    let (header, payload) = rest.split_once('.').unwrap();
    let plain = |alg: &str| json!({"typ": "JWT", "alg": alg});
    let more = URL_SAFE_NO_PAD
        .encode(claims(&json!({"https://jwt.attic.rs/v1": {"caches": {"*": {"r": 1}}}})).to_string());
    for (what, token) in [
        ("expired", hs256(&json!({"exp": now() - 1}))),
        ("expired long ago", hs256(&json!({"exp": 0}))),
        ("not yet valid", hs256(&json!({"nbf": now() + 3600}))),
        ("another secret", sign(Algorithm::HS256, &EncodingKey::from_secret(b"guess"), &claims(&json!({})))),
        (
            "another algorithm of the family",
            sign(Algorithm::HS384, &EncodingKey::from_secret(SECRET), &claims(&json!({}))),
        ),
        ("alg none", by_hand(&plain("none"), &claims(&json!({})), b"")),
        ("alg None", by_hand(&plain("None"), &claims(&json!({})), b"")),
        ("no alg", by_hand(&json!({"typ": "JWT"}), &claims(&json!({})), b"")),
        ("no signature", format!("{header}.{payload}.")),
        ("no third part", format!("{header}.{payload}")),
        ("claims exchanged", format!("{header}.{more}.{signature}")),
        ("a part too many", format!("{good}.x")),
        (
            "a critical extension",
            by_hand(&json!({"alg": "HS256", "crit": ["x"], "x": 1}), &claims(&json!({})), b"x"),
        ),
        ("dates that are none", hs256(&json!({"exp": "tomorrow"}))),
        ("no permissions", hs256(&json!({"https://jwt.attic.rs/v1": null}))),
        ("another cache", hs256(&json!({"https://jwt.attic.rs/v1": {"caches": {"team-b": {"r": 1}}}}))),
        ("another letter case", hs256(&json!({"https://jwt.attic.rs/v1": {"caches": {"TEAM-A": {"r": 1}}}}))),
        (
            "an empty entry beats the pattern",
            hs256(&json!({"https://jwt.attic.rs/v1": {"caches": {"*": {"r": 1}, "team-a": {}}}})),
        ),
        ("garbage", "garbage".to_owned()),
        ("nothing", String::new()),
    ] {
        assert_eq!(status_of_token(&server, &token), 401, "{what}");
    }
    assert_eq!(status_of_token(&server, &good), 200, "the good one was remembered or not, it still counts");
}

/// Which of the two counts depends on the reader, and the issuer may have meant the other.
#[test]
fn a_token_with_a_key_twice_counts_as_none() {
    let server = Server::start();
    let signed = |permissions: &str| {
        let claims = format!(r#"{{"https://jwt.attic.rs/v1":{{"caches":{{"team-a":{permissions}}}}}}}"#);
        let message =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#), URL_SAFE_NO_PAD.encode(claims));
        let key = EncodingKey::from_secret(SECRET);
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        format!("{message}.{signature}")
    };
    assert_eq!(status_of_token(&server, &signed(r#"{"r":1}"#)), 200);
    for permissions in [r#"{"r":1,"r":0}"#, r#"{"r":0,"r":1}"#, r#"{"r":1,"w":1,"w":1}"#] {
        assert_eq!(status_of_token(&server, &signed(permissions)), 401, "{permissions}");
    }
}

#[test]
fn a_bad_token_counts_as_none_and_a_public_cache_needs_none() {
    let server = Server::start();
    let reply = server.request("GET", "/main/nix-cache-info", &[("Authorization", "Bearer garbage")], b"");
    assert_eq!(reply.status, 200);
}

#[test]
fn a_remembered_token_still_expires() {
    let server = Server::start();
    let token = hs256(&json!({"exp": now() + 2}));
    assert_eq!(status_of_token(&server, &token), 200);
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(status_of_token(&server, &token), 401);
}

#[test]
fn a_token_without_end_is_valid_as_atticd_has_it() {
    let server = Server::start();
    assert_eq!(status_of_token(&server, &hs256(&json!({"exp": null}))), 200);
}

#[test]
fn another_permission_than_reading_does_not_read() {
    let server = Server::start();
    let token = token(&json!({"team-a": {"w": 1}}));
    assert_eq!(status_of_token(&server, &token), 403);
}

#[test]
fn rs256_tokens_are_verified_with_either_half_of_the_key() {
    let secret = EncodingKey::from_rsa_pem(RSA_SECRET).unwrap();
    for key in [TokenKey::Rs256Public(RSA_PUBLIC.to_vec()), TokenKey::Rs256Secret(RSA_SECRET.to_vec())] {
        let server = Server::start_with(|options| {
            options.authenticator = common::authenticator(&key, TokenBounds::default());
        });
        assert_eq!(status_of_token(&server, &sign(Algorithm::RS256, &secret, &claims(&json!({})))), 200);
        let expired = claims(&json!({"exp": now() - 1}));
        assert_eq!(status_of_token(&server, &sign(Algorithm::RS256, &secret, &expired)), 401);
        for other in [Algorithm::RS384, Algorithm::RS512, Algorithm::PS256] {
            assert_eq!(
                status_of_token(&server, &sign(other, &secret, &claims(&json!({})))),
                401,
                "{other:?}"
            );
        }
        // The public key is no secret: a signature that uses it as one must not count.
        let der = RSA_PUBLIC
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.starts_with(b"-"))
            .collect::<Vec<_>>()
            .concat();
        for public in [RSA_PUBLIC, RSA_PUBLIC.trim_ascii_end(), &STANDARD.decode(der).unwrap()] {
            let forged = sign(Algorithm::HS256, &EncodingKey::from_secret(public), &claims(&json!({})));
            assert_eq!(status_of_token(&server, &forged), 401);
        }
        let none = by_hand(&json!({"alg": "none"}), &claims(&json!({})), b"");
        assert_eq!(status_of_token(&server, &none), 401);
    }
}

#[test]
fn eddsa_tokens_are_verified() {
    let key = TokenKey::EdDsaPublic(ED_PUBLIC.to_vec());
    let authenticator = common::authenticator(&key, TokenBounds::default());
    let server = Server::start_with(|options| options.authenticator = authenticator);
    let secret = EncodingKey::from_ed_pem(ED_SECRET).unwrap();
    assert_eq!(status_of_token(&server, &sign(Algorithm::EdDSA, &secret, &claims(&json!({})))), 200);
    let forged = sign(Algorithm::HS256, &EncodingKey::from_secret(ED_PUBLIC), &claims(&json!({})));
    assert_eq!(status_of_token(&server, &forged), 401);
}

#[test]
fn bound_issuer_and_audiences_must_match() {
    let server = Server::start_with(|options| {
        let bounds =
            TokenBounds { issuer: Some("ours".to_owned()), audiences: vec!["a".to_owned(), "b".to_owned()] };
        options.authenticator = common::authenticator(&TokenKey::Hs256(SECRET.to_vec()), bounds);
    });
    for (expected, other) in [
        (200, json!({"iss": "ours", "aud": "a"})),
        (200, json!({"iss": "ours", "aud": ["x", "b"]})),
        (401, json!({"iss": "theirs", "aud": "a"})),
        (401, json!({"aud": "a"})),
        (401, json!({"iss": "ours", "aud": "x"})),
        (401, json!({"iss": "ours", "aud": []})),
        (401, json!({"iss": "ours"})),
        (401, json!({"iss": ["ours"], "aud": "a"})),
    ] {
        assert_eq!(status_of_token(&server, &hs256(&other)), expected, "{other}");
    }
}

#[test]
fn a_private_cache_looks_like_one_that_is_not_there() {
    let server = Server::start();
    server.push("team-a", &path(1), &nar(1));
    let there = server.nar_url("team-a", &path(1)).replace("/team-a/", "");
    let callers =
        [None, Some(token(&json!({"other": {"r": 1, "w": 1, "cc": 1, "d": 1, "cr": 1, "cq": 1, "cd": 1}})))];
    for caller in &callers {
        let bearer = caller.as_ref().map(|token| format!("Bearer {token}"));
        let headers: Vec<(&str, &str)> =
            bearer.iter().map(|value| ("Authorization", value.as_str())).collect();
        let ask = |asked: &Asked| {
            let info = asked.info.iter().map(|info| ("X-Attic-Nar-Info", info.as_str()));
            let headers: Vec<_> = headers.iter().copied().chain(info).collect();
            server.request(asked.method, &asked.address, &headers, &asked.body).without_noise()
        };
        let nar_of = |cache: &str| Asked {
            route: "Nar",
            method: "GET",
            address: format!("/{cache}/{there}"),
            info: None,
            body: Vec::new(),
        };
        let pairs = requests("team-a").into_iter().zip(requests("team-b"));
        for (there, not_there) in pairs.chain([(nar_of("team-a"), nar_of("team-b"))]) {
            let (private, absent) = (ask(&there), ask(&not_there));
            assert_eq!(private.status, 401, "{there:?}: {private:?}");
            assert_eq!(private, absent, "{there:?}");
            let says =
                if caller.is_some() { "the token that was sent does not count" } else { "none was sent" };
            assert!(there.method == "HEAD" || private.text().contains(says), "{there:?}: {private:?}");
        }
        let listed = server.request("GET", "/_api/v2/caches", &headers, b"").json();
        assert_eq!(listed["caches"].as_array().unwrap().len(), 1, "{listed}");
    }
}
