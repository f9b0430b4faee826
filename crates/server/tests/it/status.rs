//! One test for each row of the status table in docs/HTTP-API.md, and a test that the two agree.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use crate::common::{self, Reply, Server, admin, nar, path, sized_nar, token};
use crate::sessions::{self, Session};
use dormer_nix::nar::{Node, encode_tree};
use serde_json::json;

#[test]
fn every_row_of_the_table_has_its_test_and_every_test_its_row() {
    let document = include_str!("../../../../docs/HTTP-API.md");
    let table = document.split("\n## Status codes\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| ") && line.ends_with("` |"))
        .map(|line| line.trim_end_matches("` |").rsplit('`').next().unwrap())
        .collect();
    let tests: Vec<&str> = include_str!("status.rs")
        .split("#[test]\nfn ")
        .skip(2)
        .map(|test| test.split('(').next().unwrap())
        .collect();
    assert!(rows.len() > 20, "{rows:?}");
    assert_eq!(rows, tests);
}

#[test]
fn a_hit_is_200() {
    let server = Server::start();
    server.push("main", &path(1), &nar(1));
    for url in [format!("/main/{}.narinfo", path(1).hash()), server.nar_url("main", &path(1))] {
        for method in ["GET", "HEAD"] {
            assert_eq!(server.request(method, &url, &[], b"").status, 200);
        }
    }
}

#[test]
fn a_stored_part_is_204() {
    let server = Server::start();
    let session = Session::opened(&server, &admin(), "main", 1);
    let (digest, part) = sessions::cut(&nar(1)).part(3);
    assert_eq!(session.put(digest, &part).status, 204);
}

#[test]
fn a_range_is_206() {
    let server = Server::start();
    server.push("main", &path(1), &nar(1));
    let part = server.request("GET", &server.nar_url("main", &path(1)), &[("Range", "bytes=5-9")], b"");
    assert_eq!((part.status, part.body.len()), (206, 5));
}

#[test]
fn a_known_etag_is_304() {
    let server = Server::start();
    server.push("main", &path(1), &nar(1));
    let url = server.nar_url("main", &path(1));
    let etag = server.get(&url).header("etag").unwrap().to_owned();
    let reply = server.request("GET", &url, &[("If-None-Match", &etag)], b"");
    assert_eq!((reply.status, reply.body.len(), reply.header("etag")), (304, 0, Some(etag.as_str())));
    assert_eq!(server.request("GET", &url, &[("If-None-Match", "\"other\"")], b"").status, 200);
}

#[test]
fn bad_input_is_400() {
    let server = Server::start();
    let reply = server.call(&admin(), "PUT", "/main/nar/x.nar.xz", b"\xfd7zXZ\0 and then nothing");
    assert_eq!(reply.status, 400);
    assert!(reply.text().starts_with("decoding the body as xz"), "{reply:?}");
    let reply = server.call(&admin(), "POST", "/_api/v1/get-missing-paths", b"{");
    assert_eq!((reply.status, reply.json()["error"].as_str()), (400, Some("RequestError")));
}

#[test]
fn an_unknown_compression_is_400() {
    let server = Server::start();
    let reply = server.call(&admin(), "PUT", "/main/nar/x.nar.lzip", b"LZIP");
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("xz, zstd, bzip2, gzip, br, lz4, lzma or none"));
}

#[test]
fn a_wrong_part_or_commit_is_400_with_what_is_wrong() {
    let server = Server::start();
    let session = Session::opened(&server, &admin(), "main", 1);
    let (digest, part) = sessions::cut(&nar(1)).part(3);
    let mut changed = part.to_vec();
    changed[200] ^= 1;
    for (digest, part, says) in [
        ([3; 32], &part[..], "another digest than its address names"),
        (digest, &changed, "could not read the part as a pack"),
        (digest, &part[..100], "could not read the part as a pack"),
    ] {
        let reply = session.put(digest, part);
        assert_eq!((reply.status, reply.json()["error"].as_str()), (400, Some("RequestError")));
        assert!(reply.text().contains(says), "{reply:?}");
    }
    let reply = session.commit(b"abc");
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("could not read the body of a commit"), "{reply:?}");
}

#[test]
fn what_is_no_file_is_400_with_what_it_is() {
    let server = Server::start();
    let folder = Node::directory([("bin", Node::directory([("tool", Node::file("x"))]))]);
    server.push("main", &path(1), &encode_tree(&folder));
    let get =
        |file: &str| server.get(&format!("/_api/v2/caches/main/objects/{}/file/{file}", path(1).hash()));
    assert_eq!(get("bin/tool").status, 200);
    let reply = get("bin");
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("a folder"), "{reply:?}");
}

#[test]
fn another_host_name_is_400() {
    let server =
        Server::start_with(|options| options.server.allowed_hosts = vec!["Cache.example.com".to_owned()]);
    let ask = |host: &str| {
        let request =
            format!("GET /main/nix-cache-info HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        server.exchange(request.as_bytes()).status
    };
    assert_eq!(ask("cache.example.com"), 200);
    assert_eq!(ask("evil.example.com"), 400);
}

#[test]
fn a_name_that_is_taken_is_400() {
    let server = Server::start();
    let body = json!({
        "keypair": "Generate", "is_public": true, "store_dir": "/nix/store", "priority": 41,
        "upstream_cache_key_names": []
    });
    let reply = server.call(&admin(), "POST", "/_api/v1/cache-config/main", body.to_string().as_bytes());
    assert_eq!((reply.status, reply.json()["error"].as_str()), (400, Some("CacheAlreadyExists")));
}

#[test]
fn no_permission_is_401_whether_the_cache_exists_or_not() {
    let server = Server::start();
    for cache in ["team-a", "team-b"] {
        let reply = server.get(&format!("/{cache}/nix-cache-info"));
        assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some("Basic realm=\"dormer\"")));
        let reply = server.get(&format!("/_api/v1/cache-config/{cache}"));
        assert_eq!((reply.status, reply.json()["error"].as_str()), (401, Some("Unauthorized")));
    }
}

#[test]
fn a_missing_permission_is_403() {
    let server = Server::start();
    let reader = token(&json!({"team-a": {"r": 1}}));
    assert_eq!(server.call(&reader, "PUT", "/team-a/nar/x.nar", &nar(1)).status, 403);
    let reply = server.call(&reader, "DELETE", "/_api/v1/cache-config/team-a", b"");
    assert_eq!((reply.status, reply.json()["error"].as_str()), (403, Some("AccessError")));
    // Everybody may pull from a public cache, so nobody is a stranger to it.
    assert_eq!(server.request("PUT", "/main/nar/x.nar", &[], &nar(1)).status, 403);
}

#[test]
fn no_such_address_is_404() {
    let server = Server::start();
    let paths = [
        "/main",
        "/main/x",
        "/main/x/",
        "/main/../main/nix-cache-info",
        "/_x/nix-cache-info",
        "/main/nar/%2e%2e",
    ];
    for path in paths {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    let reply = server.get("/_api/v1/other");
    assert_eq!((reply.status, reply.json()["error"].as_str()), (404, Some("NotFound")));
}

#[test]
fn no_such_cache_is_404_for_callers_that_may_know() {
    let server = Server::start();
    let reader = token(&json!({"team-*": {"r": 1}}));
    let reply = server.call(&reader, "GET", "/_api/v1/cache-config/team-b", b"");
    assert_eq!((reply.status, reply.json()["error"].as_str()), (404, Some("NoSuchCache")));
    assert_eq!(server.call(&reader, "GET", "/team-b/nix-cache-info", b"").status, 404);
}

#[test]
fn a_miss_is_404() {
    let server = Server::start();
    server.push("team-a", &path(1), &nar(1));
    let nar_url = server.nar_url("team-a", &path(1)).replace("/team-a/", "/main/");
    for url in [
        format!("/main/{}.narinfo", path(1).hash()),
        format!("/main/{}.ls", path(1).hash()),
        format!("/main/nar/{}.nar", path(1).hash()),
        nar_url,
        "/main/nar/other.nar.xz".to_owned(),
        format!("/main/log/{}.drv", path(1)),
        format!("/main/realisations/sha256:{}!out.doi", "ab".repeat(32)),
        format!("/main/build-trace-v2/{}.drv/out.doi", path(1)),
        "/main/debuginfo/x".to_owned(),
        format!("/main/debuginfo/{}", "ab".repeat(20)),
    ] {
        for method in ["GET", "HEAD"] {
            assert_eq!(server.request(method, &url, &[], b"").status, 404, "{url}");
        }
    }
}

#[test]
fn a_damaged_nar_is_404() {
    let server = Server::start();
    server.push("main", &path(1), &nar(1));
    let url = server.nar_url("main", &path(1));
    for pack in server.packs() {
        let length = pack.metadata().unwrap().len();
        std::fs::write(&pack, vec![0; usize::try_from(length).unwrap()]).unwrap();
    }
    assert_eq!(server.get(&url).status, 404, "nothing was promised yet");
    assert_eq!(server.get(&format!("/main/{}.narinfo", path(1).hash())).status, 404);
    let body = json!({"cache": "main", "store_path_hashes": [path(1).hash().to_string()]}).to_string();
    let missing = server.call(&admin(), "POST", "/_api/v1/get-missing-paths", body.as_bytes()).json();
    assert_eq!(missing["missing_paths"].as_array().unwrap().len(), 1);
    server.push("main", &path(1), &nar(1));
    assert_eq!(common::unzstd(&server.get(&server.nar_url("main", &path(1))).body), nar(1));
}

#[test]
fn a_session_that_is_not_the_callers_is_404() {
    let server = Server::start();
    let _own = Session::opened(&server, &admin(), "main", 1);
    let other = common::token_of("another", &json!({"*": {"r": 1, "w": 1}}));
    for number in [1, 2] {
        let session = Session::new(&server, &other, "main", number);
        let reply = session.missing(&sessions::cut(&nar(1)));
        assert_eq!((reply.status, reply.json()["error"].as_str()), (404, Some("NotFound")), "{number}");
    }
    assert_eq!(Session::new(&server, &other, "main", 1).open().status, 404, "the name is taken");
}

#[test]
fn another_method_is_405() {
    let server = Server::start();
    for (method, path, allow) in [
        ("POST", "/main/nix-cache-info", "GET, HEAD, PUT"),
        ("DELETE", "/main/nar/x.nar", "GET, HEAD, PUT"),
        ("GET", "/_api/v1/upload-path", "PUT"),
        ("PUT", "/_api/v1/cache-config/main", "GET, HEAD, POST, PATCH, DELETE"),
        ("BREW", "/", "GET, HEAD"),
    ] {
        let reply = server.request(method, path, &[], b"");
        assert_eq!((reply.status, reply.header("allow")), (405, Some(allow)), "{method} {path}");
    }
}

#[test]
fn a_body_that_stalls_is_408() {
    let server = Server::start_with(|options| options.server.body_idle_timeout = Duration::from_millis(200));
    let mut stream = server.connect();
    let request = format!(
        "PUT /main/nar/x.nar HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 1000\r\n\r\nstart",
        admin()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(Reply::parse(&answer, false).status, 408);
}

#[test]
fn a_range_of_an_old_name_is_412() {
    let server = Server::start();
    server.push("main", &path(1), &nar(1));
    let (start, _) =
        server.nar_url("main", &path(1)).rsplit_once('-').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let old = format!("{start}-{}.nar.zst", dormer_format::TagBuilder::new().finish());
    assert_eq!(server.request("GET", &old, &[("Range", "bytes=100-")], b"").status, 412);
}

#[test]
fn a_log_that_is_to_stay_is_412() {
    let server = Server::start();
    let address = format!("/main/log/{}.drv", path(1));
    // A token that may push and not pull is told of it, too: so it is told of paths.
    let pusher = token(&json!({"main": {"w": 1}}));
    let bearer = format!("Bearer {pusher}");
    let put = |condition: &str, log: &[u8]| {
        let headers = [("Authorization", bearer.as_str()), ("If-None-Match", condition)];
        server.request("PUT", &address, &headers, log).status
    };
    assert_eq!((put("*", b"first"), server.get(&address).body), (200, b"first".to_vec()));
    assert_eq!((put("*", b"second"), server.get(&address).body), (412, b"first".to_vec()));
    // A tag names a representation, and an upload has none to compare.
    assert_eq!((put("\"x\"", b"third"), server.get(&address).body), (200, b"third".to_vec()));
}

#[test]
fn too_long_is_413() {
    let server = Server::start_with(|options| {
        options.engine.nar_bytes_max = 10_000;
        options.engine.listing_bytes_max = 10_000;
        options.server.json_bytes_max = 10_000;
        options.server.log_bytes_max = 10_000;
    });
    assert_eq!(server.call(&admin(), "PUT", "/main/nar/x.nar", &nar(1)).status, 413);
    let narinfo = format!("/main/{}.narinfo", path(1).hash());
    assert_eq!(server.call(&admin(), "PUT", &narinfo, &vec![b'x'; (1 << 20) + 1]).status, 413);
    let listing = format!("/main/{}.ls", path(1).hash());
    assert_eq!(server.call(&admin(), "PUT", &listing, &[b' '; 10_001]).status, 413);
    let reply = server.call(&admin(), "POST", "/_api/v1/get-missing-paths", &[b' '; 10_001]);
    assert_eq!((reply.status, reply.json()["code"].as_u64()), (413, Some(413)));
    let log = format!("/main/log/{}.drv", path(1));
    let reply = server.call(&admin(), "PUT", &log, &[b' '; 10_001]);
    assert_eq!(
        (reply.status, reply.text().as_str()),
        (413, "the build log is longer than 10000 bytes, the limit\n")
    );
    assert_eq!(server.get(&log).status, 404);
    let trace = format!("/main/build-trace-v2/{}.drv/out.doi", path(1));
    assert_eq!(server.call(&admin(), "PUT", &trace, &vec![b' '; 256 * 1024 + 1]).status, 413);
}

#[test]
fn an_unknown_content_encoding_is_415() {
    let server = Server::start();
    let bearer = format!("Bearer {}", admin());
    for (url, encoding) in [
        ("/main/nix-cache-info", "deflate"),
        ("/main/nar/x.nar", "gzip, br"),
        ("/_api/v1/upload-path", "gzip"),
    ] {
        let reply =
            server.request("PUT", url, &[("Authorization", &bearer), ("Content-Encoding", encoding)], b"x");
        assert_eq!(reply.status, 415, "{url}");
    }
}

#[test]
fn a_range_outside_is_416() {
    let server = Server::start();
    server.push("main", &path(1), &nar(1));
    let url = server.nar_url("main", &path(1));
    let size = server.get(&url).body.len();
    let reply = server.request("GET", &url, &[("Range", &format!("bytes={size}-"))], b"");
    assert_eq!(
        (reply.status, reply.header("content-range")),
        (416, Some(format!("bytes */{size}").as_str()))
    );
}

#[test]
fn too_long_headers_are_431() {
    let server = Server::start();
    let reply = server.request("GET", "/main/nix-cache-info", &[("X-Long", &"x".repeat(70_000))], b"");
    assert_eq!(reply.status, 431);
    assert_eq!(
        server.request("GET", "/main/nix-cache-info", &[("X-Long", &"x".repeat(30_000))], b"").status,
        200
    );
}

#[test]
fn a_token_that_pushes_too_fast_is_429() {
    let server = Server::start_with(|options| options.server.push_requests_per_second = 1);
    let push = |seed: u64| server.call(&admin(), "PUT", &format!("/main/nar/{seed}.nar"), &nar(seed));
    let refused =
        (0..100).map(push).find(|reply| reply.status != 200).expect("10 at once, then one a second");
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")), "{refused:?}");
    let other = common::token_of("another", &json!({"*": {"w": 1}}));
    assert_eq!(
        server.call(&other, "PUT", "/main/nar/x.nar", &nar(1)).status,
        200,
        "it has a rate of its own"
    );
    assert_eq!(server.get("/main/nix-cache-info").status, 200, "reading is not pushing");

    let server = Server::start_with(|options| options.server.push_bytes_per_second = 1_000);
    let info = common::nar_info("main", &path(1), &nar(1), &json!({})).to_string();
    let bearer = format!("Bearer {}", admin());
    let upload = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info", &info)];
    let push = || server.request("PUT", "/_api/v1/upload-path", &upload, &nar(1));
    assert_eq!(push().status, 200, "the upload that goes over the limit ends well");
    let refused = push();
    assert_eq!((refused.status, refused.json()["error"].as_str()), (429, Some("TooManyRequests")));
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    // 40 kB and some were pushed where 10 kB may come at once.
    assert!((20..=40).contains(&seconds), "{seconds}");
}

#[test]
fn too_many_sessions_are_429() {
    let server = Server::start();
    let open = |number: u32| {
        let url = format!("/_api/v2/caches/main/sessions/{number:032x}");
        server.call(&admin(), "PUT", &url, b"")
    };
    let refused = (1..1_000).map(open).find(|reply| reply.status != 200).expect("there is a limit");
    assert_eq!((refused.status, refused.json()["error"].as_str()), (429, Some("TooManySessions")));
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(open(1).status, 200, "an open one is joined");
}

#[test]
fn an_internal_error_is_500_and_says_nothing() {
    // The signing keys were sealed with another master key.
    let server = Server::start_with(|options| options.master_key = [1; 32]);
    server.push("main", &path(1), &nar(1));
    let reply = server.get(&format!("/main/{}.narinfo", path(1).hash()));
    assert_eq!(reply.status, 500);
    assert!(reply.text().starts_with("internal error"), "{reply:?}");
    assert!(!reply.text().contains("signing key") && !reply.text().contains("master"), "{reply:?}");
    assert_eq!(reply.header("x-request-id").unwrap().len(), 16);
}

#[test]
fn no_turn_in_time_is_503() {
    let server = Server::start_with(|options| {
        // One upload may have three quarters.
        options.engine.upload_memory_bytes_max = dormer_engine::UPLOAD_BYTES + (5 << 20);
        options.engine.upload_wait = Duration::from_millis(100);
        options.server.retry_after = Duration::from_secs(7);
    });
    let mut first = server.connect();
    let request = format!(
        "PUT /main/nar/1.nar HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 900000\r\n\r\n",
        admin()
    );
    first.write_all(request.as_bytes()).unwrap();
    first.write_all(&sized_nar(1, 900_000)[..100_000]).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let reply = server.call(&admin(), "PUT", "/main/nar/2.nar", &nar(2));
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("7")), "{reply:?}");
    drop(first);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(server.call(&admin(), "PUT", "/main/nar/2.nar", &nar(2)).status, 200);
}

#[test]
fn no_place_for_another_upload_is_503() {
    let server = Server::start_with(|options| {
        options.server.uploads_max = 1;
        options.engine.upload_wait = Duration::from_millis(100);
    });
    let mut first = server.connect();
    let head = format!(
        "PUT /main/nar/1.nar HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 900000\r\n\r\nstart",
        admin()
    );
    first.write_all(head.as_bytes()).unwrap();
    let push = || server.call(&admin(), "PUT", "/main/nar/2.nar", &nar(2));
    let refused =
        common::until("the first upload has its turn", || Some(push()).filter(|reply| reply.status != 200));
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")), "{refused:?}");
    drop(first);
    common::until("its turn is free", || Some(push()).filter(|reply| reply.status == 200));
}

#[test]
fn no_place_for_another_connection_is_503() {
    let server = Server::start_with(|options| options.server.connections_max = 2);
    // A place is free a moment after its connection ended, so a connection may find none at first.
    let served = || {
        let (mut stream, mut head) = (server.connect(), [0; 1024]);
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let count = stream.read(&mut head).unwrap();
        head[..count].starts_with(b"HTTP/1.1 200 ").then_some(stream)
    };
    let taken = [(); 2].map(|()| common::until("it is served, and stays open", served));
    for _ in 0..100 {
        let refused = server.get("/main/nix-cache-info");
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")), "{refused:?}");
    }
    assert_eq!(server.get("/healthz").status, 200, "a full server is no dead one");
    drop(taken);
    common::until("a place is free", || Some(server.get("/")).filter(|reply| reply.status == 200));
}

#[test]
fn a_server_that_is_stopping_is_not_ready() {
    let mut server = Server::start_with(|options| options.server.drain_delay = Duration::from_mins(1));
    assert_eq!(server.get("/readyz").status, 200);
    server.stop();
    let reply =
        common::until("it heard of it", || Some(server.get("/readyz")).filter(|reply| reply.status != 200));
    assert_eq!((reply.status, reply.text().as_str()), (503, "not ready: the server is stopping\n"));
    assert_eq!(reply.header("retry-after"), Some("5"));
    assert_eq!(server.get("/main/nix-cache-info").status, 200, "a client that has not noticed yet is served");
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn an_unreachable_store_is_503_and_says_nothing() {
    let server = Server::start();
    server.push("main", &path(1), &nar(1));
    let url = server.nar_url("main", &path(1));
    server.store.set_down(true);
    let bearer = format!("Bearer {}", admin());
    let info = common::nar_info("main", &path(2), &nar(2), &json!({})).to_string();
    let upload = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info", &info)];
    for reply in [
        server.get(&url),
        server.call(&admin(), "PUT", "/main/nar/2.nar", &nar(2)),
        server.request("PUT", "/_api/v1/upload-path", &upload, &nar(2)),
    ] {
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("5")), "{reply:?}");
        assert!(
            !reply.text().contains("/secret")
                && !reply.text().contains(server.folder.path().to_str().unwrap())
        );
    }
    assert_eq!(server.get("/healthz").status, 200);
    let ready = server.get("/readyz");
    assert_eq!((ready.status, ready.text().as_str()), (503, "not ready: the object store does not answer\n"));
    server.store.set_down(false);
    assert_eq!(server.get(&url).status, 200, "an outage is no damage");
    common::until("it is asked again", || Some(server.get("/readyz")).filter(|reply| reply.status == 200));
}

#[test]
fn bytes_that_turn_out_bad_cut_the_connection() {
    let server = Server::start();
    let nar = sized_nar(1, 12_000_000);
    server.push("main", &path(1), &nar);
    let url = server.nar_url("main", &path(1));
    let promised = server.get(&url).body.len();
    let pack = server.packs().remove(0);
    let mut bytes = std::fs::read(&pack).unwrap();
    let last_chunks = bytes.len() * 8 / 10;
    bytes[last_chunks..last_chunks + 10_000].fill(0);
    std::fs::write(&pack, bytes).unwrap();

    let reply = server.get(&url);
    assert_eq!(reply.status, 200, "the first bytes were sound");
    assert!(!reply.complete && !reply.body.is_empty() && reply.body.len() < promised, "{reply:?}");
    assert_eq!(server.get(&format!("/main/{}.narinfo", path(1).hash())).status, 404, "and now it is known");
}
