//! Attic's API as Attic's client speaks it: literal bytes, none of them made from our own types.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use dormer_tests::http::{self, Reply};
use dormer_tests::nars;
use dormer_tests::{Lab, Machine, Nix};
use serde_json::{Value, json};

/// What reqwest, Attic's HTTP library, sends beside what Attic asks for.
fn head(lab: &Lab, method: &str, path: &str, token: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nauthorization: Bearer {token}\r\nuser-agent: Attic/0.1.0 (attic)\r\naccept: */*\r\n\
         host: {}\r\nconnection: close\r\n",
        lab.address()
    )
}

fn call(lab: &Lab, method: &str, path: &str, token: &str, json: &str) -> Reply {
    let head = head(lab, method, path, token);
    let length = json.len();
    let request = format!("{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{json}");
    http::exchange(lab.address(), request.as_bytes())
}

/// An upload with its metadata in the header; the body is chunked, as Attic's always are.
fn upload(lab: &Lab, token: &str, info: &str, nar: &[u8]) -> Reply {
    let head = head(lab, "PUT", "/_api/v1/upload-path", token);
    let mut request =
        format!("{head}x-attic-nar-info: {info}\r\ntransfer-encoding: chunked\r\n\r\n").into_bytes();
    request.extend(http::chunked(nar));
    http::exchange(lab.address(), &request)
}

/// An upload with its metadata before the NAR, as Attic sends it from 4 KiB on.
fn upload_with_preamble(lab: &Lab, token: &str, info: &str, nar: &[u8]) -> Reply {
    let head = head(lab, "PUT", "/_api/v1/upload-path", token);
    let size = info.len();
    let mut request =
        format!("{head}x-attic-nar-info-preamble-size: {size}\r\ntransfer-encoding: chunked\r\n\r\n")
            .into_bytes();
    request.extend(http::chunked(&[info.as_bytes(), nar].concat()));
    http::exchange(lab.address(), &request)
}

/// The error body that Attic's client prints.
#[track_caller]
fn assert_error(reply: &Reply, code: u16, name: &str) {
    assert_eq!(reply.status, code, "{reply:?}");
    let body = reply.json();
    assert_eq!((&body["code"], &body["error"]), (&json!(code), &json!(name)), "{body}");
    assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    let mut keys: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["code", "error", "message"]);
}

/// The NAR that a cache serves for a path, decoded.
fn served_nar(lab: &Lab, cache: &str, hash: &str) -> Vec<u8> {
    let narinfo = lab.get(&format!("/{cache}/{hash}.narinfo"));
    assert_eq!(narinfo.status, 200, "{narinfo:?}");
    let text = narinfo.text();
    let url = text.lines().find_map(|line| line.strip_prefix("URL: ")).expect("a narinfo has a URL");
    let reply = lab.get(&format!("/{cache}/{url}"));
    assert!(reply.status == 200 && reply.complete, "{reply:?}");
    zstd::decode_all(reply.body.as_slice()).unwrap()
}

#[test]
fn an_upload_with_the_metadata_in_the_header_is_served_as_it_came() {
    let lab = Lab::start();
    let nar = nars::file("hello from attic\n".repeat(40_000).as_bytes());
    let reply = upload(&lab, &lab.admin_token(), &nars::attic_info("main", &nar, "hello"), &nar);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.json()["kind"], "Uploaded");
    assert!(reply.json()["file_size"].is_u64(), "{reply:?}");
    assert!(served_nar(&lab, "main", &nars::path_hash(&nar)) == nar);

    let again = upload(&lab, &lab.admin_token(), &nars::attic_info("main", &nar, "hello"), &nar);
    assert_eq!((again.status, &again.json()["kind"]), (200, &json!("Deduplicated")));
}

#[test]
fn an_upload_with_a_preamble_is_served_as_it_came() {
    let lab = Lab::start();
    let nar = nars::file(b"small");
    let hash = nars::path_hash(&nar);
    // Enough references to pass the 4 KiB from which Attic's client puts the metadata before the
    // NAR.
    let references: Vec<String> =
        (0..100).map(|n| format!("{n:032}-reference-number-{n}-with-a-long-name")).collect();
    let info = nars::attic_info("main", &nar, "small")
        .replace(r#""references":[]"#, &format!(r#""references":{}"#, json!(references)));
    assert!(info.len() > 4096);
    let reply = upload_with_preamble(&lab, &lab.admin_token(), &info, &nar);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(served_nar(&lab, "main", &hash) == nar);
    let narinfo = lab.get(&format!("/main/{hash}.narinfo")).text();
    let line = narinfo.lines().find_map(|line| line.strip_prefix("References: ")).unwrap();
    assert_eq!(line.split(' ').count(), 100);
}

#[test]
fn a_path_that_attic_pushed_is_substituted_by_nix() {
    let lab = Lab::start();
    let builder = lab.machine("builder", Nix::NEWEST);
    let script = builder.build("library", &[("salt", "attic")]);
    let nar = builder.command("nix-store", &["--dump", &script]).output().unwrap().stdout;
    let (hash, name) = script["/nix/store/".len()..].split_at(32);
    let info = nars::attic_info("main", &nar, &name[1..]).replace(&nars::path_hash(&nar), hash);
    let reply = upload(&lab, &lab.admin_token(), &info, &nar);
    assert_eq!(reply.status, 200, "{reply:?}");
    for nix in Nix::ALL {
        let machine = lab.machine(nix.name(), nix);
        machine.configure(&[lab.public_key("main")]);
        machine.substitute(&lab.cache_url("main"), &script).succeeds();
        machine.verify_all();
    }
}

#[test]
fn attics_name_of_a_nar_is_answered_without_ranges() {
    let lab = Lab::start();
    let nar = nars::file(&vec![7; 300_000]);
    let reply = upload(&lab, &lab.admin_token(), &nars::attic_info("main", &nar, "seven"), &nar);
    assert_eq!(reply.status, 200, "{reply:?}");
    let path = format!("/main/nar/{}.nar", nars::path_hash(&nar));
    let whole = lab.get(&path);
    assert_eq!((whole.status, whole.header("accept-ranges")), (200, None), "{whole:?}");
    assert!(zstd::decode_all(whole.body.as_slice()).unwrap() == nar);
    let part = http::request(lab.address(), "GET", &path, &[("Range", "bytes=10-")], b"");
    assert_eq!(part.status, 412, "{part:?}");
}

#[test]
fn get_missing_paths_names_what_is_not_there() {
    let lab = Lab::start();
    let nar = nars::file(b"present");
    let present = nars::path_hash(&nar);
    let absent = nars::path_hash(b"absent");
    upload(&lab, &lab.admin_token(), &nars::attic_info("main", &nar, "present"), &nar);
    let body = format!(r#"{{"cache":"main","store_path_hashes":["{present}","{absent}"]}}"#);
    let reply = call(&lab, "POST", "/_api/v1/get-missing-paths", &lab.admin_token(), &body);
    assert_eq!((reply.status, reply.json()), (200, json!({ "missing_paths": [absent] })));
}

#[test]
fn a_cache_is_created_shown_patched_and_destroyed() {
    let lab = Lab::start();
    let token = lab.admin_token();
    let path = "/_api/v1/cache-config/team-a";
    let create = r#"{"keypair":"Generate","is_public":false,"store_dir":"/nix/store","priority":41,"upstream_cache_key_names":["cache.nixos.org-1"]}"#;
    let reply = call(&lab, "POST", path, &token, create);
    assert_eq!((reply.status, reply.body.len()), (200, 0), "{reply:?}");
    assert_error(&call(&lab, "POST", path, &token, create), 400, "CacheAlreadyExists");

    let shown = lab.get(path);
    assert_eq!(shown.status, 200, "{shown:?}");
    let config = shown.json();
    let key = config["public_key"].as_str().unwrap().to_owned();
    assert!(key.starts_with("team-a:"), "{config}");
    let mut keys: Vec<_> = config.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "allow_replacement",
            "api_endpoint",
            "is_public",
            "priority",
            "public_key",
            "retention_period",
            "store_dir",
            "substituter_endpoint",
            "upstream_cache_key_names"
        ],
        "the secret key above all is not shown"
    );
    assert!(config["api_endpoint"].as_str().unwrap().ends_with('/'));
    assert_eq!(config["is_public"], false);
    assert_eq!(config["store_dir"], "/nix/store");
    assert_eq!(config["priority"], 41);
    assert_eq!(config["upstream_cache_key_names"], json!(["cache.nixos.org-1"]));
    assert_eq!(config["retention_period"], "Global");
    assert_eq!(lab.get("/team-a/attic-cache-info").json(), config, "the old name of the same thing");

    let patch = |body: &str| call(&lab, "PATCH", path, &token, body);
    assert_eq!(patch(r#"{"priority":30}"#).status, 200);
    assert_eq!(patch(r#"{"is_public":true}"#).status, 200);
    assert_eq!(patch(r#"{"retention_period":{"Period":7776000}}"#).status, 200);
    let config = lab.cache_config("team-a");
    assert_eq!(
        (&config["priority"], &config["is_public"], &config["retention_period"], &config["public_key"]),
        (&json!(30), &json!(true), &json!({ "Period": 7_776_000 }), &json!(key)),
        "a patch changes what it names and nothing else"
    );
    assert_eq!(patch(r#"{"retention_period":"Global"}"#).status, 200);
    assert_eq!(lab.cache_config("team-a")["retention_period"], "Global");
    assert_error(&patch("{}"), 400, "RequestError");

    assert_eq!(patch(r#"{"keypair":"Generate"}"#).status, 200);
    assert_ne!(lab.public_key("team-a"), key);
    // A key pair that Nix made: secret seed and public key, base64 after the name.
    let own =
        "own-1:nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2DXWpgBgrEKt9VL/tPJZAc6DuFy89qmIyWvAhpo9wdRGg==";
    assert_eq!(patch(&format!(r#"{{"keypair":{{"Keypair":"{own}"}}}}"#)).status, 200);
    assert_eq!(lab.public_key("team-a"), "own-1:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=");

    let destroyed = call(&lab, "DELETE", path, &token, "");
    assert_eq!(destroyed.status, 200, "{destroyed:?}");
    assert_error(&lab.get(path), 404, "NoSuchCache");
}

#[test]
fn a_public_cache_says_so_in_its_answers() {
    let lab = Lab::start();
    let reply = http::get(lab.address(), "/main/nix-cache-info", None);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.header("x-attic-cache-visibility"), Some("public"));
    let text = reply.text();
    for line in ["StoreDir: /nix/store", "WantMassQuery: 1", "Priority: "] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn errors_have_attics_names() {
    let lab = Lab::start();
    let admin = lab.admin_token();
    let nobody = http::get(lab.address(), "/_api/v1/cache-config/unknown", None);
    assert_error(&nobody, 401, "Unauthorized");
    // Nix shows the body of such an answer to its user, so it is a plain sentence.
    let miss = http::get(lab.address(), &format!("/main/{}.narinfo", nars::path_hash(b"nothing")), None);
    assert_eq!((miss.status, miss.text().trim()), (404, "the cache does not have this"));
    assert_error(&lab.get("/_api/v1/cache-config/unknown"), 404, "NoSuchCache");
    assert_error(&lab.get("/_api/v1/no-such-thing"), 404, "NotFound");
    assert_error(&call(&lab, "POST", "/_api/v1/get-missing-paths", &admin, "no json"), 400, "RequestError");

    // A token that may only pull knows that the cache exists.
    let reader = lab.token(&["--pull", "main"]);
    let missing = r#"{"cache":"main","store_path_hashes":[]}"#;
    let refused = call(&lab, "POST", "/_api/v1/get-missing-paths", &reader, missing);
    assert_error(&refused, 403, "AccessError");
}

#[test]
fn patching_the_retention_needs_its_own_permission() {
    let lab = Lab::start();
    let token = lab.token(&["--pull", "main", "--configure-cache", "main"]);
    let patch = |token: &str, body: &str| call(&lab, "PATCH", "/_api/v1/cache-config/main", token, body);
    assert_eq!(patch(&token, r#"{"priority":20}"#).status, 200);
    assert_error(&patch(&token, r#"{"retention_period":{"Period":1}}"#), 403, "AccessError");
    assert_eq!(lab.cache_config("main")["retention_period"], "Global");
    let token =
        lab.token(&["--pull", "main", "--configure-cache", "main", "--configure-cache-retention", "main"]);
    assert_eq!(patch(&token, r#"{"retention_period":{"Period":86400}}"#).status, 200);
}

#[test]
fn attics_client_settings_are_read_where_there_are_none_of_ours() {
    let lab = Lab::start();
    let machine: Machine = lab.machine("machine", Nix::NEWEST);
    let folder = machine.home().join(".config/attic");
    std::fs::create_dir_all(&folder).unwrap();
    let text = format!(
        "default-server = \"lab\"\n\n[servers.lab]\nendpoint = \"{}/\"\ntoken = \"{}\"\n",
        lab.url(),
        lab.admin_token()
    );
    std::fs::write(folder.join("config.toml"), text).unwrap();
    let empty = machine.build("empty", &[("salt", "settings")]);
    machine.dormer(&["push", "lab:main", &empty]).succeeds();
    assert_eq!(lab.get(&format!("/main/{}.narinfo", &empty["/nix/store/".len()..][..32])).status, 200);
}

#[test]
fn attics_token_variable_is_the_servers_key() {
    use base64::Engine as _;
    let secret = [42_u8; 64];
    let encoded = base64::engine::general_purpose::STANDARD.encode(secret);
    let lab = Lab::start_with(dormer_tests::LabOptions {
        environment: vec![("ATTIC_SERVER_TOKEN_HS256_SECRET_BASE64".to_owned(), encoded)],
        ..Default::default()
    });
    let claims: Value = json!({
        "sub": "ci",
        "exp": 4_102_444_800_u64,
        "https://jwt.attic.rs/v1": { "caches": { "ma*": { "r": 1, "w": 1 } } },
    });
    let key = jsonwebtoken::EncodingKey::from_secret(&secret);
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
    let nar = nars::file(b"by an old token");
    let reply = upload(&lab, &token, &nars::attic_info("main", &nar, "old"), &nar);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_error(
        &call(&lab, "PATCH", "/_api/v1/cache-config/main", &token, r#"{"priority":1}"#),
        403,
        "AccessError",
    );
}
