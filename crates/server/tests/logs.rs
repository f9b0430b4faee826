//! What the server logs. A program of its own, because the log of a process is global.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the failure")]

#[path = "it/common.rs"]
mod common;

use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex};

use common::{Reply, Server, admin, nar, path, sized_nar};
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

#[test]
fn a_request_is_found_again_by_its_id_in_every_line_and_no_line_has_a_secret() {
    let log = Log::start();
    let server = Server::start();
    let own = server.get("/main/nix-cache-info");
    assert_eq!(own.header("x-request-id").unwrap().len(), 16);
    let strange = server.request("GET", "/", &[("X-Request-Id", "a b")], b"");
    assert_ne!(strange.header("x-request-id"), Some("a b"));

    let token = admin();
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str()), ("X-Request-Id", "build-7/job-3")];
    let reply = server.request("PUT", "/main/nar/x.nar", &headers, &nar(1));
    assert_eq!((reply.status, reply.header("x-request-id")), (200, Some("build-7/job-3")));
    server.push("main", &path(1), &sized_nar(2, 12_000_000));
    let url = server.nar_url("main", &path(1));
    let mut bytes = std::fs::read(&server.packs()[0]).unwrap();
    let end = bytes.len() * 8 / 10;
    bytes[end..end + 10_000].fill(0);
    std::fs::write(&server.packs()[0], bytes).unwrap();
    let cut = server.request("GET", &url, &[("X-Request-Id", "reader-1")], b"");
    assert!(!cut.complete);
    let bad_token = format!("Bearer {token}x");
    server.request("PUT", "/main/nar/x.nar", &[("Authorization", &bad_token)], &nar(1));
    server.request(
        "POST",
        "/_api/v1/cache-config/new",
        &[("Authorization", &bearer)],
        br#"{"keypair": {"Keypair": "a:c2VjcmV0"}}"#,
    );

    // A cache that is deleted during an upload: the commit fails, so nothing was taken.
    let create = br#"{"keypair": "Generate", "is_public": true, "store_dir": "/nix/store", "priority": 41, "upstream_cache_key_names": []}"#;
    let created = server.call(&token, "POST", "/_api/v1/cache-config/gone", create);
    assert_eq!(created.status, 200, "{created:?}");
    let info = common::nar_info("gone", &path(3), &sized_nar(3, 300_000), &json!({})).to_string();
    let body = sized_nar(3, 300_000);
    let mut uploads = [
        ("upload-1", "/_api/v1/upload-path", format!("X-Attic-Nar-Info: {info}\r\n")),
        ("upload-2", "/gone/nar/x.nar", String::new()),
    ]
    .map(|(id, path, more)| {
        let mut upload = server.connect();
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer}\r\nX-Request-Id: {id}\r\n{more}\
             Connection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        upload.write_all(head.as_bytes()).unwrap();
        upload.write_all(&body[..100_000]).unwrap();
        upload
    });
    common::until("both have begun", || (server.metric("dormer_uploads_streaming") == 2).then_some(()));
    assert_eq!(server.call(&token, "DELETE", "/_api/v1/cache-config/gone", b"").status, 200);
    for upload in &mut uploads {
        upload.write_all(&body[100_000..]).unwrap();
        let mut answer = Vec::new();
        upload.read_to_end(&mut answer).unwrap();
        assert_eq!(Reply::parse(&answer, false).status, 404);
    }

    // A token that ends soon is logged with its subject.
    let long = common::token_of(&"s".repeat(2_000), &json!({"team-a": {"r": 1}}));
    assert_eq!(server.call(&long, "GET", "/team-a/nix-cache-info", b"").status, 200);
    let signed_in = server.request("POST", "/_dormer/sign-in", &[], format!("token={long}").as_bytes());
    assert_eq!(signed_in.status, 303, "{signed_in:?}");

    worst_requests(&server);

    let lines = common::until("what follows an answer is written, too", || {
        let lines = log.lines();
        lines.iter().any(|line| line.contains("cut an answer short")).then_some(lines)
    });
    for line in &lines {
        assert!(line.len() < 1_000, "{} bytes: {line}", line.len());
        let is_quiet = line.contains(" DEBUG ") || line.contains(" TRACE ");
        assert!(is_quiet || !line.contains("request.id=anonymous}"), "{line}");
    }
    for logged in ["a token in use ends", "signed in"] {
        assert!(lines.iter().any(|line| line.contains(logged)), "{logged}: {lines:#?}");
    }
    let of = |id: &str, text: &str| {
        lines.iter().any(|line| line.contains(&format!("request.id={id}}}")) && line.contains(text))
    };
    assert!(of("build-7/job-3", "took a NAR"), "{lines:#?}");
    assert!(!of("upload-1", "took a") && !of("upload-2", "took a"), "logged before the commit: {lines:#?}");
    assert!(of("upload-1", "request refused") && of("upload-2", "request refused"), "{lines:#?}");
    assert!(of("reader-1", "stored bytes are damaged"), "a line of the engine: {lines:#?}");
    assert!(of("reader-1", "cut an answer short"), "a line after the head was sent: {lines:#?}");
    let (_, secret_part) = token.split_once('.').unwrap();
    for secret in [secret_part, "c2VjcmV0", "Bearer", "Authorization"] {
        assert!(!lines.iter().any(|line| line.contains(secret)), "{secret}: {lines:#?}");
    }
}

/// Long text wherever a client can put it, with and without a token.
fn worst_requests(server: &Server) {
    let long = "a".repeat(60_000);
    let paths = [
        format!("/{long}"),
        format!("/main/{long}.narinfo"),
        format!("/main/nar/{long}"),
        format!("/main/log/{long}"),
        format!("/_api/{long}"),
        format!("/_api/v1/cache-config/{long}"),
        "/_api/v1/get-missing-paths".to_owned(),
        "/_api/v1/upload-path".to_owned(),
        "/_api/v1/cache-config/main".to_owned(),
        "/main/nix-cache-info".to_owned(),
        "/main/nar/x.nar".to_owned(),
        format!("/main/{}.narinfo", path(1).hash()),
    ];
    let bodies = [
        format!("StoreDir: /{long}"),
        format!("{{\"cache\": \"{long}\", \"keypair\": \"{long}\", \"{long}\": 1}}"),
        format!("{}\nURL: {long}", common::narinfo(&path(1), &nar(1), "x.nar", "none", "")),
    ];
    let bearer = format!("Bearer {}", admin());
    for path in &paths {
        for method in ["GET", "PUT", "POST", "PATCH", "DELETE", &long[..50_000]] {
            for body in &bodies {
                for more in
                    [("X-Other", "x"), ("Content-Encoding", &long[..1_000]), ("X-Attic-Nar-Info", "{")]
                {
                    let headers = [("X-Request-Id", "with-token"), ("Authorization", &bearer), more];
                    if !(method == "DELETE" && path.ends_with("/main")) {
                        server.request(method, path, &headers, body.as_bytes());
                    }
                    let headers = [("X-Request-Id", "anonymous"), more];
                    server.request(method, path, &headers, body.as_bytes());
                }
            }
        }
    }
}

/// All that is logged in this process, down to the smallest detail.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start() -> Self {
        let log = Self::default();
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(log.clone())
            .init();
        log
    }

    fn lines(&self) -> Vec<String> {
        String::from_utf8_lossy(&self.0.lock().unwrap()).lines().map(str::to_owned).collect()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
