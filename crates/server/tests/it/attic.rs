//! Attic's client, as it speaks: requests are literal bytes, not built from our own types.

use crate::common::{self, Server, admin, chunked, nar, path, sized_nar, token, unzstd};
use dormer_nix::NarHash;
use serde_json::{Value, json};

/// A request as reqwest writes it, with its headers in lower case.
fn literal(server: &Server, token: &str, line: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{line} HTTP/1.1\r\nauthorization: Bearer {token}\r\n{headers}user-agent: Attic/0.1.0 (reqwest)\r\naccept: */*\r\n\
         host: {}\r\nconnection: close\r\n\r\n",
        server.address
    );
    [head.as_bytes(), body].concat()
}

fn json_request(server: &Server, token: &str, line: &str, body: &str) -> common::Reply {
    let headers = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    server.exchange(&literal(server, token, line, &headers, body.as_bytes()))
}

/// Metadata as Attic's client writes it: compact, fields in this order, what is unknown as null.
fn info(cache: &str, path: &dormer_nix::StorePath, nar: &[u8], references: &str) -> String {
    format!(
        r#"{{"cache":"{cache}","store_path_hash":"{}","store_path":"/nix/store/{path}","references":[{references}],"system":null,"deriver":"{}-package.drv","sigs":["upstream.example.org-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="],"ca":null,"nar_hash":"sha256:{}","nar_size":{}}}"#,
        path.hash(),
        common::path(99).hash(),
        NarHash::digest(nar).to_hex(),
        nar.len()
    )
}

fn upload_with_header(server: &Server, token: &str, info: &str, nar: &[u8]) -> common::Reply {
    let headers = format!("x-attic-nar-info: {info}\r\ntransfer-encoding: chunked\r\n");
    server.exchange(&literal(server, token, "PUT /_api/v1/upload-path", &headers, &chunked(nar)))
}

fn upload_with_preamble(server: &Server, token: &str, info: &str, nar: &[u8]) -> common::Reply {
    let headers = format!("x-attic-nar-info-preamble-size: {}\r\ntransfer-encoding: chunked\r\n", info.len());
    let body = chunked(&[info.as_bytes(), nar].concat());
    server.exchange(&literal(server, token, "PUT /_api/v1/upload-path", &headers, &body))
}

/// Status, and the error's name and code as Attic has them.
#[track_caller]
fn assert_error(reply: &common::Reply, status: u16, name: &str) {
    let body = reply.json();
    assert_eq!((reply.status, body["error"].as_str()), (status, Some(name)), "{reply:?}");
    assert_eq!(body["code"], status);
    assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()));
    let fields = body.as_object().map_or(0, serde_json::Map::len);
    assert_eq!(fields, 3, "code, error and message only: {body}");
}

#[test]
fn a_cache_lives_from_create_to_destroy() {
    let server = Server::start();
    let admin = admin();
    let created = json_request(
        &server,
        &admin,
        "POST /_api/v1/cache-config/new",
        r#"{"keypair":"Generate","is_public":false,"store_dir":"/nix/store","priority":41,"upstream_cache_key_names":["cache.nixos.org-1"]}"#,
    );
    assert_eq!((created.status, created.body.len()), (200, 0), "{created:?}");

    let shown = server.exchange(&literal(&server, &admin, "GET /_api/v1/cache-config/new", "", b""));
    let config = shown.json();
    assert!(config["public_key"].as_str().unwrap().starts_with("new:"), "{config}");
    assert_eq!(config.get("keypair"), None);
    assert_eq!(
        config,
        json!({
            "allow_replacement": false,
            "substituter_endpoint": format!("http://{}/new", server.address),
            "api_endpoint": format!("http://{}/", server.address),
            "public_key": config["public_key"],
            "is_public": false,
            "store_dir": "/nix/store",
            "priority": 41,
            "upstream_cache_key_names": ["cache.nixos.org-1"],
            "retention_period": "Global",
        })
    );
    assert_eq!(server.call(&admin, "GET", "/new/attic-cache-info", b"").json(), config);

    let again = json_request(
        &server,
        &admin,
        "POST /_api/v1/cache-config/new",
        r#"{"keypair":"Generate","is_public":false,"store_dir":"/nix/store","priority":41,"upstream_cache_key_names":[]}"#,
    );
    assert_error(&again, 400, "CacheAlreadyExists");

    let destroyed = server.exchange(&literal(&server, &admin, "DELETE /_api/v1/cache-config/new", "", b""));
    assert_eq!((destroyed.status, destroyed.body.len()), (200, 0));
    let gone = server.exchange(&literal(&server, &admin, "GET /_api/v1/cache-config/new", "", b""));
    assert_error(&gone, 404, "NoSuchCache");
}

#[test]
fn a_patch_changes_what_it_names_and_nothing_else() {
    let server = Server::start();
    let admin = admin();
    let patch = |body: &str| json_request(&server, &admin, "PATCH /_api/v1/cache-config/team-a", body);
    let show = || server.call(&admin, "GET", "/_api/v1/cache-config/team-a", b"").json();
    let mut expected = show();
    let mut changed = |field: &str, value: Value| {
        expected[field] = value;
        assert_eq!(show(), expected, "after a change of {field}");
    };

    assert_eq!(patch(r#"{"priority":7}"#).status, 200);
    changed("priority", json!(7));
    assert_eq!(patch(r#"{"is_public":true}"#).status, 200);
    changed("is_public", json!(true));
    assert_eq!(patch(r#"{"is_public":false,"upstream_cache_key_names":[]}"#).status, 200);
    expected["is_public"] = json!(false);
    let mut changed = |field: &str, value: Value| {
        expected[field] = value;
        assert_eq!(show(), expected, "after a change of {field}");
    };
    changed("upstream_cache_key_names", json!([]));
    assert_eq!(patch(r#"{"retention_period":{"Period":2592000}}"#).status, 200);
    changed("retention_period", json!({"Period": 2_592_000}));
    assert_eq!(patch(r#"{"retention_period":"Global"}"#).status, 200);
    changed("retention_period", json!("Global"));
    assert_eq!(patch(r#"{"store_dir":"/gnu/store"}"#).status, 200);
    changed("store_dir", json!("/gnu/store"));
    assert_eq!(patch(r#"{"store_dir":"/nix/store"}"#).status, 200);
    changed("store_dir", json!("/nix/store"));
    // Paths of one store folder are none of another.
    server.push("team-a", &path(1), &nar(1));
    let refused = patch(r#"{"store_dir":"/gnu/store"}"#);
    assert_error(&refused, 400, "RequestError");
    assert!(refused.text().contains("create another cache for /gnu/store"), "{refused:?}");
    assert_eq!(patch(r#"{"store_dir":"/nix/store"}"#).status, 200, "that is what it has");
    changed("store_dir", json!("/nix/store"));

    let old_key = show()["public_key"].clone();
    assert_eq!(patch(r#"{"keypair":"Generate"}"#).status, 200);
    let new_key = show()["public_key"].clone();
    assert_ne!(new_key, old_key);
    assert!(new_key.as_str().unwrap().starts_with("team-a:"));

    let secret = dormer_nix::SecretKey::generate("mine-1", [3; 32]).unwrap();
    assert_eq!(patch(&format!(r#"{{"keypair":{{"Keypair":"{}"}}}}"#, secret.expose())).status, 200);
    assert_eq!(show()["public_key"], secret.public_key().to_string());
}

#[test]
fn names_that_no_key_can_have_are_refused() {
    let server = Server::start();
    let admin = admin();
    for name in ["", "a b", "a:b", "a\\u0000b", "a\\nb"] {
        let patch = format!(r#"{{"upstream_cache_key_names":["{name}"]}}"#);
        let reply = json_request(&server, &admin, "PATCH /_api/v1/cache-config/team-a", &patch);
        assert_error(&reply, 400, "RequestError");
        let create = format!(
            r#"{{"keypair":"Generate","is_public":false,"store_dir":"/nix/store","priority":41,"upstream_cache_key_names":["{name}"]}}"#
        );
        let reply = json_request(&server, &admin, "POST /_api/v1/cache-config/team-n", &create);
        assert_error(&reply, 400, "RequestError");
    }
}

#[test]
fn a_patch_that_cannot_be_read_changes_nothing_and_repeats_no_secret() {
    let server = Server::start();
    let admin = admin();
    let before = server.call(&admin, "GET", "/_api/v1/cache-config/main", b"").json();
    for body in [
        "{}",
        r#"{"public_key":"x"}"#,
        r#"{"priority":"high"}"#,
        r#"{"store_dir":"nix/store"}"#,
        r#"{"store_dir":"/nix/../etc"}"#,
        r#"{"retention_period":{"Period":-1}}"#,
        r#"{"retention_period":"Never"}"#,
        r#"{"keypair":{"Keypair":"mine:hunter2"}}"#,
        r#"{"keypair":"Keep"}"#,
        r#"{"priority":1"#,
        "",
    ] {
        let reply = json_request(&server, &admin, "PATCH /_api/v1/cache-config/main", body);
        assert_error(&reply, 400, "RequestError");
        assert!(!reply.text().contains("hunter2"), "{reply:?}");
    }
    assert_eq!(server.call(&admin, "GET", "/_api/v1/cache-config/main", b"").json(), before);
}

#[test]
fn each_setting_needs_its_own_permission() {
    let server = Server::start();
    let patch = |permissions: Value, body: &str| {
        let token = token(&json!({"team-a": permissions}));
        json_request(&server, &token, "PATCH /_api/v1/cache-config/team-a", body)
    };
    let retention = r#"{"retention_period":{"Period":1}}"#;
    let both = r#"{"priority":1,"retention_period":{"Period":1}}"#;
    assert_error(&patch(json!({"r": 1, "w": 1}), r#"{"priority":1}"#), 403, "AccessError");
    assert_error(&patch(json!({"cr": 1}), retention), 403, "AccessError");
    assert_error(&patch(json!({"cr": 1}), both), 403, "AccessError");
    assert_error(&patch(json!({"cq": 1}), both), 403, "AccessError");
    assert_error(&patch(json!({"cq": 1}), r#"{"priority":1}"#), 403, "AccessError");
    assert_eq!(patch(json!({"cq": 1}), retention).status, 200);
    assert_eq!(patch(json!({"cr": 1}), r#"{"priority":1}"#).status, 200);
    assert_eq!(patch(json!({"cr": 1, "cq": 1}), both).status, 200);
}

#[test]
fn get_missing_paths_names_what_is_missing() {
    let server = Server::start();
    server.push("team-a", &path(1), &nar(1));
    let pusher = token(&json!({"team-a": {"w": 1}}));
    let body =
        format!(r#"{{"cache":"team-a","store_path_hashes":["{}","{}"]}}"#, path(1).hash(), path(2).hash());
    let reply = json_request(&server, &pusher, "POST /_api/v1/get-missing-paths", &body);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.json(), json!({"missing_paths": [path(2).hash().to_string()]}));

    let of_another = body.replace("team-a", "main");
    assert_error(
        &json_request(&server, &pusher, "POST /_api/v1/get-missing-paths", &of_another),
        403,
        "AccessError",
    );
    for bad in [r#"{"cache":"team-a","store_path_hashes":["short"]}"#, r#"{"cache":"team-a"}"#, "[]"] {
        assert_error(
            &json_request(&server, &pusher, "POST /_api/v1/get-missing-paths", bad),
            400,
            "RequestError",
        );
    }
}

#[test]
fn an_upload_in_header_form_is_served_with_all_it_said() {
    let server = Server::start();
    let (path, nar) = (path(1), nar(1));
    let references = format!("\"{}\",\"{}\"", common::path(2), path);
    let reply = upload_with_header(&server, &admin(), &info("main", &path, &nar, &references), &nar);
    assert_eq!(reply.status, 200, "{reply:?}");
    let result = reply.json();
    assert_eq!(result["kind"], "Uploaded");
    assert!(result["file_size"].as_u64().is_some_and(|size| size > 0 && size < nar.len() as u64), "{result}");

    let narinfo = server.get(&format!("/main/{}.narinfo", path.hash()));
    assert_eq!(narinfo.status, 200);
    assert_eq!(narinfo.header("x-attic-cache-visibility"), Some("public"));
    let text = narinfo.text();
    let parsed = dormer_nix::NarInfo::parse(&text, &"/nix/store".parse().unwrap()).unwrap();
    assert_eq!(parsed.store_path, path);
    assert_eq!((parsed.nar_hash, parsed.nar_size), (NarHash::digest(&nar), nar.len() as u64));
    assert_eq!(parsed.references, [path.clone(), common::path(2)]);
    assert_eq!(parsed.deriver.unwrap().name(), "package.drv");
    assert_eq!(parsed.file_size, result["file_size"].as_u64());
    assert_eq!(
        parsed.sigs[0],
        "upstream.example.org-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="
    );

    let key: dormer_nix::PublicKey =
        server.get("/main/attic-cache-info").json()["public_key"].as_str().unwrap().parse().unwrap();
    let message = dormer_nix::fingerprint(
        &"/nix/store".parse().unwrap(),
        &path,
        &parsed.nar_hash,
        parsed.nar_size,
        &parsed.references,
    );
    key.verify(&message, &parsed.sigs[1].parse().unwrap()).unwrap();

    let served = server.get(&format!("/main/{}", parsed.url));
    assert_eq!((served.status, served.complete), (200, true));
    assert_eq!(unzstd(&served.body), nar);
}

#[test]
fn an_upload_in_preamble_form_is_the_same() {
    let server = Server::start();
    let (path, nar) = (path(1), nar(1));
    // Over 4 KiB, as metadata is when Attic's client chooses this form.
    let references: Vec<String> = (2..120).map(|number| format!("\"{}\"", common::path(number))).collect();
    let info = info("main", &path, &nar, &references.join(","));
    assert!(info.len() > 4096);
    let reply = upload_with_preamble(&server, &admin(), &info, &nar);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.json()["kind"], "Uploaded");
    let served = server.get(&server.nar_url("main", &path));
    assert_eq!(unzstd(&served.body), nar);
    let narinfo = server.get(&format!("/main/{}.narinfo", path.hash())).text();
    assert_eq!(
        narinfo.lines().find(|line| line.starts_with("References: ")).unwrap().split(' ').count(),
        119
    );
}

#[test]
fn uploads_that_are_wrong_change_nothing() {
    let server = Server::start();
    let admin = admin();
    let (path, nar) = (path(1), nar(1));
    let good = info("main", &path, &nar, "");
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replace(from, to)
    };
    let hash = path.hash().to_string();
    let other = common::path(7).hash().to_string();
    let mut padded = nar.clone();
    padded.push(0);
    let mut unpadded = nar.clone();
    *unpadded.last_mut().unwrap() ^= 1;
    for (what, info, nar) in [
        ("another hash", with(&NarHash::digest(&nar).to_hex(), &NarHash::digest(b"").to_hex()), nar.clone()),
        ("a smaller size", with(&format!("\"nar_size\":{}", nar.len()), "\"nar_size\":100"), nar.clone()),
        ("a larger size", with(&format!("\"nar_size\":{}", nar.len()), "\"nar_size\":1000000"), nar.clone()),
        ("size 0", with(&format!("\"nar_size\":{}", nar.len()), "\"nar_size\":0"), Vec::new()),
        ("a negative size", with(&format!("\"nar_size\":{}", nar.len()), "\"nar_size\":-1"), nar.clone()),
        ("a cut NAR", good.clone(), nar[..nar.len() - 8].to_vec()),
        ("a byte too many", good.clone(), padded),
        ("a changed byte", good.clone(), unpadded),
        ("no NAR", good.clone(), b"not a nar".to_vec()),
        (
            "two hashes",
            with(&format!("\"store_path_hash\":\"{hash}\""), &format!("\"store_path_hash\":\"{other}\"")),
            nar.clone(),
        ),
        ("another store", with("/nix/store/", "/gnu/store/"), nar.clone()),
        ("a path below the store path", with("-package-1\"", "-package-1/bin\""), nar.clone()),
        ("a way out", with("/nix/store/", "/nix/store/../"), nar.clone()),
        ("a reference that is none", with("\"references\":[]", "\"references\":[\"x\"]"), nar.clone()),
        (
            "a second line in a signature",
            with(
                "upstream.example.org-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==",
                "a:b\\nURL: http://elsewhere",
            ),
            nar.clone(),
        ),
        ("a second line in the content address", with("\"ca\":null", "\"ca\":\"x\\nSig: y\""), nar.clone()),
        (
            "a signature that is none",
            with(
                "\"sigs\":[\"upstream.example.org-1:",
                "\"sigs\":[\"no signature\",\"upstream.example.org-1:",
            ),
            nar.clone(),
        ),
        (
            "a field missing",
            with(
                "\"sigs\":[\"upstream.example.org-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==\"],",
                "",
            ),
            nar.clone(),
        ),
        ("no JSON", "{".to_owned(), nar.clone()),
        ("a cache's name that is none", with("\"main\"", "\"../main\""), nar.clone()),
    ] {
        let by_header = upload_with_header(&server, &admin, &info, &nar);
        let by_preamble = upload_with_preamble(&server, &admin, &info, &nar);
        for reply in [by_header, by_preamble] {
            assert_eq!(reply.status, 400, "{what}: {reply:?}");
            assert_error(&reply, 400, "RequestError");
        }
        assert_eq!(server.get(&format!("/main/{hash}.narinfo")).status, 404, "{what}");
    }
    assert_eq!(
        upload_with_header(&server, &admin, &good, &nar).status,
        200,
        "the good one still goes through"
    );
}

#[test]
fn the_headers_of_celler_mean_the_same() {
    let server = Server::start();
    let bearer = format!("Bearer {}", admin());
    for (number, in_body) in [(1_u8, false), (2, true)] {
        let nar = nar(number.into());
        let info = common::nar_info("main", &path(number), &nar, &json!({})).to_string();
        let length = info.len().to_string();
        let (header, body) = if in_body {
            (("X-Celler-Nar-Info-Preamble-Size", length.as_str()), [info.as_bytes(), &nar].concat())
        } else {
            (("X-Celler-Nar-Info", info.as_str()), nar)
        };
        let headers = [("Authorization", bearer.as_str()), header];
        let reply = server.request("PUT", "/_api/v1/upload-path", &headers, &body);
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(server.get(&format!("/main/{}.narinfo", path(number).hash())).status, 200);
    }
}

#[test]
fn a_preamble_must_be_as_long_as_it_says_and_no_longer_than_allowed() {
    let server = Server::start();
    let (path, nar) = (path(1), nar(1));
    let info = info("main", &path, &nar, "");
    let upload = |size: &str, body: &[u8]| {
        let headers = format!("x-attic-nar-info-preamble-size: {size}\r\ntransfer-encoding: chunked\r\n");
        server.exchange(&literal(&server, &admin(), "PUT /_api/v1/upload-path", &headers, &chunked(body)))
    };
    let body = [info.as_bytes(), &nar].concat();
    for size in ["", "x", "-1", "0x10", "1.5", &(info.len() - 1).to_string(), "0"] {
        assert_error(&upload(size, &body), 400, "RequestError");
    }
    assert_error(&upload(&info.len().to_string(), &info.as_bytes()[..100]), 400, "RequestError");
    for size in ["1048577", "99999999999999999999999999"] {
        assert_error(&upload(size, &body), 413, "RequestError");
    }
    let neither = literal(&server, &admin(), "PUT /_api/v1/upload-path", "content-length: 0\r\n", b"");
    assert_error(&server.exchange(&neither), 400, "RequestError");
    assert_eq!(upload(&info.len().to_string(), &body).status, 200);
}

#[test]
fn a_connection_that_breaks_leaves_nothing() {
    use std::io::Write as _;
    let server = Server::start();
    let (path, nar) = (path(1), sized_nar(1, 500_000));
    let headers =
        format!("x-attic-nar-info: {}\r\ntransfer-encoding: chunked\r\n", info("main", &path, &nar, ""));
    let request = literal(&server, &admin(), "PUT /_api/v1/upload-path", &headers, &chunked(&nar));
    let mut stream = server.connect();
    stream.write_all(&request[..request.len() / 2]).unwrap();
    drop(stream);
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(server.get(&format!("/main/{}.narinfo", path.hash())).status, 404);
    let again = upload_with_header(&server, &admin(), &info("main", &path, &nar, ""), &nar);
    assert_eq!(again.status, 200, "{again:?}");
}

#[test]
fn deduplication_is_told_only_of_what_the_token_may_pull() {
    let server = Server::start();
    let nar = nar(1);
    let first = upload_with_header(&server, &admin(), &info("team-a", &path(1), &nar, ""), &nar);
    assert_eq!(first.json()["kind"], "Uploaded");

    // Another tenant, without the right to pull from team-a, is told nothing.
    let tenant = token(&json!({"main": {"r": 1, "w": 1}}));
    let other = upload_with_header(&server, &tenant, &info("main", &path(1), &nar, ""), &nar).json();
    let fresh_nar = common::nar(2);
    let fresh =
        upload_with_header(&server, &tenant, &info("main", &path(2), &fresh_nar, ""), &fresh_nar).json();
    let fields = |result: &Value| result.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(other["kind"], "Uploaded");
    assert_eq!(fields(&other), fields(&fresh), "a known NAR looks like a new one");

    // That tenant is told of what its own cache has.
    let again = upload_with_header(&server, &tenant, &info("main", &path(3), &nar, ""), &nar).json();
    assert_eq!(
        (again["kind"].as_str(), again["frac_deduplicated"].as_f64()),
        (Some("Deduplicated"), Some(1.0))
    );
    // A token that may push but not pull is told nothing.
    let pusher = token(&json!({"team-a": {"w": 1}}));
    let hidden = common::nar(18);
    upload_with_header(&server, &admin(), &info("team-a", &path(5), &hidden, ""), &hidden);
    let again = upload_with_header(&server, &pusher, &info("team-a", &path(4), &hidden, ""), &hidden).json();
    assert_eq!(fields(&again), fields(&fresh));
    assert_eq!(again["kind"], "Uploaded");
    // Every cache counts that the tenant may pull: by its token, or because the cache is public.
    let reader = token(&json!({"main": {"w": 1, "r": 1}, "team-a": {"r": 1}}));
    let elsewhere = common::nar(7);
    upload_with_header(&server, &admin(), &info("team-a", &path(6), &elsewhere, ""), &elsewhere);
    let known =
        upload_with_header(&server, &reader, &info("main", &path(6), &elsewhere, ""), &elsewhere).json();
    assert_eq!(
        (known["kind"].as_str(), known["frac_deduplicated"].as_f64()),
        (Some("Deduplicated"), Some(1.0))
    );
    let stranger = token(&json!({"team-b": {"w": 1}}));
    let new = r#"{"keypair":"Generate","is_public":false,"store_dir":"/nix/store","priority":41,"upstream_cache_key_names":[]}"#;
    json_request(&server, &admin(), "POST /_api/v1/cache-config/team-b", new);
    let public =
        upload_with_header(&server, &stranger, &info("team-b", &path(6), &elsewhere, ""), &elsewhere);
    assert_eq!(public.json()["kind"], "Deduplicated", "it is in main, which is public");
    // Only a token that may pull all caches is told of parts of a NAR.
    let part = common::nar(8);
    let told = upload_with_header(&server, &reader, &info("main", &path(7), &part, ""), &part).json();
    assert_eq!(fields(&told), fields(&fresh), "the token may not read team-b");
    let all_of_them = token(&json!({"main": {"w": 1, "r": 1}, "team-*": {"r": 1}}));
    let part = common::nar(9);
    let told = upload_with_header(&server, &all_of_them, &info("main", &path(8), &part, ""), &part).json();
    assert!(told["frac_deduplicated"].is_f64(), "{told}");
    // A token that may pull everything gets the true values.
    let all = upload_with_header(&server, &admin(), &info("team-a", &path(5), &nar, ""), &nar).json();
    assert_eq!((all["kind"].as_str(), all["frac_deduplicated"].as_f64()), (Some("Deduplicated"), Some(1.0)));
}

#[test]
fn endpoints_are_as_configured_or_as_the_proxy_says() {
    let server = Server::start();
    let info = server.request("GET", "/main/attic-cache-info", &[("X-Forwarded-Proto", "https")], b"").json();
    assert_eq!(info["api_endpoint"], format!("https://{}/", server.address));
    let reported = [
        ("X-Forwarded-Proto", "https, http"),
        ("X-Forwarded-Host", "cache.example.com, inner"),
        ("X-Forwarded-Prefix", "/nix/"),
    ];
    let info = server.request("GET", "/main/attic-cache-info", &reported, b"").json();
    assert_eq!(info["api_endpoint"], "https://cache.example.com/nix/");
    assert_eq!(info["substituter_endpoint"], "https://cache.example.com/nix/main");
    let standard = [("Forwarded", "for=192.0.2.1;host=cache.example.com;proto=https, host=inner")];
    let info = server.request("GET", "/main/attic-cache-info", &standard, b"").json();
    assert_eq!(info["substituter_endpoint"], "https://cache.example.com/main");

    // Anybody else can report what they like.
    let server = Server::start_with(|options| {
        options.server.trusted_proxies = vec!["192.0.2.0/24".parse().unwrap()];
    });
    for headers in [&reported[..], &standard] {
        let info = server.request("GET", "/main/attic-cache-info", headers, b"").json();
        assert_eq!(info["api_endpoint"], format!("http://{}/", server.address));
    }

    let server = Server::start_with(|options| {
        options.server.api_endpoint = Some("https://cache.example.com/".to_owned());
        options.server.substituter_endpoint = Some("https://cdn.example.com/nix/".to_owned());
    });
    let info = server.get("/main/attic-cache-info").json();
    assert_eq!(info["api_endpoint"], "https://cache.example.com/");
    assert_eq!(info["substituter_endpoint"], "https://cdn.example.com/nix/main");
}

#[test]
fn caches_are_listed_and_paths_removed_by_the_second_version() {
    let server = Server::start();
    server.push("team-a", &path(1), &nar(1));
    let list = |token: Option<&str>| {
        let reply = match token {
            Some(token) => server.call(token, "GET", "/_api/v2/caches", b""),
            None => server.get("/_api/v2/caches"),
        };
        let caches = reply.json()["caches"].as_array().unwrap().clone();
        caches.iter().map(|cache| cache["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(list(None), ["main"]);
    assert_eq!(list(Some(&token(&json!({"team-*": {"w": 1}})))), ["main", "team-a"]);
    assert_error(&server.call("no.such.token", "GET", "/_api/v2/caches", b""), 401, "Unauthorized");

    let narinfo = format!("/team-a/{}.narinfo", path(1).hash());
    let nar_url = server.nar_url("team-a", &path(1));
    let object = format!("/_api/v2/caches/team-a/objects/{}", path(1).hash());
    assert_error(
        &server.call(&token(&json!({"team-a": {"r": 1, "w": 1}})), "DELETE", &object, b""),
        403,
        "AccessError",
    );
    let deleter = token(&json!({"team-a": {"d": 1}}));
    assert_eq!(server.call(&deleter, "DELETE", &object, b"").json(), json!({"removed": true}));
    assert_eq!(server.call(&deleter, "DELETE", &object, b"").json(), json!({"removed": false}));
    assert_eq!(server.call(&admin(), "GET", &narinfo, b"").status, 404);
    assert_eq!(server.call(&admin(), "GET", &nar_url, b"").status, 404);
    server.push("team-a", &path(1), &nar(1));
    assert_eq!(server.call(&admin(), "GET", &narinfo, b"").status, 200);
}

#[test]
fn what_a_cache_holds_is_told_and_paths_are_named_to_its_owner_only() {
    let server = Server::start();
    server.push("team-a", &path(1), &nar(1));
    server.push("team-a", &path(2), &nar(2));
    server.push("main", &path(1), &nar(1));
    let stats = "/_api/v2/caches/team-a/stats";
    let reader = token(&json!({"team-a": {"r": 1}}));
    let told = server.call(&reader, "GET", stats, b"").json();
    let bytes = nar(1).len() + nar(2).len();
    assert_eq!(told, json!({"paths": 2, "nar_bytes": bytes, "complete": true}));
    let owner = token(&json!({"team-a": {"r": 1, "cq": 1}}));
    let told = server.call(&owner, "GET", stats, b"").json();
    assert_eq!(told["largest"].as_array().unwrap().len(), 2, "{told}");
    assert_eq!(told["longest_unused"].as_array().unwrap().len(), 2, "{told}");
    assert_error(&server.call(&token(&json!({"team-a": {"w": 1}})), "GET", stats, b""), 403, "AccessError");

    assert_eq!(server.get("/_api/v2/stats").status, 401);
    assert_error(&server.call(&owner, "GET", "/_api/v2/stats", b""), 403, "AccessError");
    let all = server.call(&admin(), "GET", "/_api/v2/stats", b"").json();
    assert_eq!(
        (&all["paths"], &all["nars"], &all["complete"]),
        (&json!(3), &json!(2), &json!(true)),
        "{all}"
    );
    let number = |name: &str| all[name].as_i64().unwrap_or_else(|| panic!("{name}: {all}"));
    assert_eq!(number("path_bytes"), i64::try_from(bytes + nar(1).len()).unwrap());
    assert_eq!(number("saved_by_same_nars"), i64::try_from(nar(1).len()).unwrap());
    let saved =
        ["saved_by_same_nars", "saved_by_chunks", "saved_by_holes", "saved_by_compression"].map(number);
    assert_eq!(saved.iter().sum::<i64>(), number("path_bytes") - number("stored_bytes"));
    assert!(number("stored_bytes") > 0 && number("packs") > 0, "{all}");
}

#[test]
fn retention_is_set_pins_added_and_objects_listed_by_the_second_version() {
    let server = Server::start();
    server.push("team-a", &path(1), &nar(1));
    server.push("team-a", &path(2), &nar(2));
    let keeper = token(&json!({"team-a": {"cq": 1}}));
    let reader = token(&json!({"team-a": {"r": 1, "w": 1, "cr": 1}}));
    let config = "/_api/v1/cache-config/team-a";
    let patch = br#"{"quota":{"Bytes":200000000000},"keep_latest":3}"#;
    assert_error(&server.call(&reader, "PATCH", config, patch), 403, "AccessError");
    assert_eq!(server.call(&keeper, "PATCH", config, patch).status, 200);
    let shown = server.call(&admin(), "GET", config, b"").json();
    assert_eq!((&shown["quota"], &shown["keep_latest"]), (&json!({"Bytes": 200_000_000_000_u64}), &json!(3)));
    let patch = br#"{"quota":"Global","keep_latest":0}"#;
    assert_eq!(server.call(&keeper, "PATCH", config, patch).status, 200);
    let shown = server.call(&admin(), "GET", config, b"").json();
    assert_eq!((&shown["quota"], &shown["keep_latest"]), (&json!(null), &json!(null)));

    let objects = "/_api/v2/caches/team-a/objects";
    assert_error(&server.call(&reader, "POST", objects, b"{}"), 403, "AccessError");
    let listed = server.call(&keeper, "POST", objects, br#"{"sort":"size"}"#).json();
    let names: Vec<_> =
        listed["objects"].as_array().unwrap().iter().map(|object| object["store_path"].clone()).collect();
    assert_eq!(names.len(), 2, "{listed}");
    assert!(names.contains(&json!(path(1).to_string())) && listed.get("next").is_none(), "{listed}");
    assert_eq!(server.call(&keeper, "POST", objects, br#"{"after":"x"}"#).status, 400);

    let pin = "/_api/v2/caches/team-a/pins/release";
    let body = |number| format!(r#"{{"store_path":"{}","keep":1}}"#, path(number));
    assert_error(&server.call(&reader, "PUT", pin, body(1).as_bytes()), 403, "AccessError");
    let added = server.call(&keeper, "PUT", pin, body(9).as_bytes()).json();
    assert_eq!(added, json!({"missing": [path(9).to_string()], "complete": true}));
    let added = server.call(&keeper, "PUT", pin, body(1).as_bytes()).json();
    assert_eq!(added, json!({"missing": [], "complete": true}));
    let bad = format!(r#"{{"store_path":"{}","keep":0}}"#, path(1));
    assert_eq!(server.call(&keeper, "PUT", pin, bad.as_bytes()).status, 400);
    let pins = server.call(&keeper, "POST", "/_api/v2/caches/team-a/pins", b"{}").json();
    assert_eq!(pins["pins"].as_array().unwrap().len(), 1, "{pins}");
    assert_eq!(pins["pins"][0]["store_path"], json!(path(1).to_string()));
    let one = format!("{pin}/{}", path(1).hash());
    assert_eq!(server.call(&keeper, "DELETE", &one, b"").json(), json!({"removed": 1}));
    assert_eq!(server.call(&keeper, "DELETE", pin, b"").json(), json!({"removed": 0}));

    let referrers = format!("{objects}/{}/referrers", path(1).hash());
    assert_error(&server.call(&keeper, "DELETE", &referrers, b""), 403, "AccessError");
    let deleter = token(&json!({"team-a": {"d": 1}}));
    let removed = server.call(&deleter, "DELETE", &referrers, b"").json();
    assert_eq!(removed, json!({"removed": 0, "more": false}));

    let (object, purges) = (format!("{objects}/{}", path(1).hash()), "/_api/v2/caches/team-a/purges");
    assert_error(&server.call(&keeper, "GET", purges, b""), 403, "AccessError");
    assert_eq!(server.call(&deleter, "DELETE", &format!("{object}?now=yes"), b"").status, 400);
    assert_eq!(server.call(&deleter, "GET", purges, b"").json(), json!({"waiting": 0, "untried": 0}));
    let removed = server.call(&deleter, "DELETE", &format!("{object}?now=true"), b"").json();
    assert_eq!(removed, json!({"removed": true, "purging": true}));
    assert_eq!(server.call(&deleter, "GET", purges, b"").json(), json!({"waiting": 1, "untried": 1}));
    let counted = |numbers: &[u8]| {
        let paths: Vec<String> = numbers.iter().map(|number| path(*number).hash().to_string()).collect();
        server.call(&deleter, "GET", &format!("{purges}?paths={}", paths.join(",")), b"")
    };
    assert_eq!(counted(&[2, 99]).json(), json!({"waiting": 0, "untried": 0}), "others wait");
    assert_eq!(counted(&[2, 1, 1]).json(), json!({"waiting": 1, "untried": 1}));
    assert_eq!([counted(&[1; 100]).status, counted(&[1; 101]).status, counted(&[]).status], [200, 400, 400]);
    let absent = format!("{objects}/{}?now=true", path(99).hash());
    let removed = server.call(&deleter, "DELETE", &absent, b"").json();
    assert_eq!(removed, json!({"removed": false, "purging": false}), "nobody knows its bytes");
}
