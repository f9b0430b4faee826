//! One client must not stop the others: decoding, memory, turns.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::{self, Reply, Server, admin, path, token};

/// A bzip2 stream of nothing.
const EMPTY_MEMBER: &[u8] = b"BZh9\x17\x72\x45\x38\x50\x90\0\0\0\0";

/// Longest wait for `/healthz` beside a request that does its worst.
const LATENESS_MAX: Duration = Duration::from_secs(1);

/// Runs the requests at once, each on a thread, and asks for `/healthz` until all are answered.
#[track_caller]
fn beside_probes(server: &Server, requests: &[&(dyn Fn() -> Reply + Sync)]) -> Vec<Reply> {
    std::thread::scope(|scope| {
        let running: Vec<_> = requests.iter().map(|request| scope.spawn(request)).collect();
        let mut slowest = Duration::ZERO;
        while !running.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let begin = Instant::now();
            assert_eq!(server.get("/healthz").status, 200);
            slowest = slowest.max(begin.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(slowest < LATENESS_MAX, "a probe took {slowest:?}");
        running.into_iter().map(|request| request.join().unwrap()).collect()
    })
}

#[test]
fn members_that_decode_to_nothing_stop_nobody() {
    let server = Server::start();
    let body = EMPTY_MEMBER.repeat(60_000);
    let put = |name: &str| server.call(&admin(), "PUT", &format!("/main/nar/{name}.nar.bz2"), &body);
    for reply in beside_probes(&server, &[&|| put("e"), &|| put("f")]) {
        assert_eq!(reply.status, 400, "{reply:?}");
        assert!(reply.text().contains("decode to nothing"), "{reply:?}");
    }
}

#[test]
fn a_body_that_decodes_to_nothing_is_refused_before_or_while_it_is_decoded() {
    let server = Server::start();
    let body = EMPTY_MEMBER.repeat(4_000_000 / EMPTY_MEMBER.len());
    let ask = |caches: &serde_json::Value| {
        let bearer = format!("Bearer {}", common::token(caches));
        let headers = [("Authorization", bearer.as_str()), ("Content-Encoding", "bzip2")];
        server.request("POST", "/_api/v1/get-missing-paths", &headers, &body)
    };
    let begin = Instant::now();
    let replies = beside_probes(&server, &[&|| ask(&json!({})), &|| ask(&json!({ "main": { "w": 1 } }))]);
    assert_eq!(replies.iter().map(|reply| reply.status).collect::<Vec<_>>(), [401, 400], "{replies:?}");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

/// The routes that take a body, by their names in the dispatcher.
fn paths_with_bodies() -> Vec<(String, String)> {
    let hash = path(1).hash().to_string();
    let path_of = |route: &str| match route {
        "NixCacheInfo" => "/team-a/nix-cache-info".to_owned(),
        "Narinfo" => format!("/team-a/{hash}.narinfo"),
        "Listing" => format!("/team-a/{hash}.ls"),
        "Nar" => "/team-a/nar/x.nar".to_owned(),
        "NotKept" => "/team-a/log/x.drv".to_owned(),
        "CacheConfig" => "/_api/v1/cache-config/team-a".to_owned(),
        "GetMissingPaths" => "/_api/v1/get-missing-paths".to_owned(),
        "UploadPath" => "/_api/v1/upload-path".to_owned(),
        other => panic!("{other} takes a body: which path has it?"),
    };
    let arms: BTreeSet<(&str, &str)> = include_str!("../../src/dispatch.rs")
        .split("(&Method::")
        .skip(1)
        .map(|arm| arm.split_once(", Route::").unwrap())
        .filter(|(method, _)| ["PUT", "POST", "PATCH"].contains(method))
        .map(|(method, rest)| (method, rest.split(|c: char| !c.is_alphanumeric()).next().unwrap()))
        .collect();
    assert!(arms.len() >= 9, "{arms:?}");
    arms.into_iter().map(|(method, route)| (method.to_owned(), path_of(route))).collect()
}

#[test]
fn on_every_route_a_caller_without_permission_is_refused_before_its_body_comes() {
    let server = Server::start();
    let stranger = token(&json!({ "elsewhere": {} }));
    let reader = token(&json!({ "*": { "r": 1 } }));
    for (method, path) in paths_with_bodies() {
        for token in [None, Some(&stranger), Some(&reader)] {
            let mut stream = server.connect();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let bearer = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\n{bearer}X-Attic-Nar-Info-Preamble-Size: 500\r\n\
                 Content-Length: 900000\r\n\r\n{{"
            );
            stream.write_all(head.as_bytes()).unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
            let answer = String::from_utf8_lossy(&answer);
            assert!(["HTTP/1.1 401", "HTTP/1.1 403"].contains(&&*answer), "{method} {path}: {answer}");
        }
    }
}
