//! What is counted: that it is counted, that Prometheus likes it, and that docs/METRICS.md has all
//! of it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::common::{self, Server, admin, nar, path};
use dormer_index::{
    BringIndex as _, NotedFrom, OutboxPosition, PendingIndex as _, PublishDone, PublishIntent,
    PublishedCache, PublishedCacheIndex as _, TargetIndex as _,
};
use dormer_nix::NarHash;

#[test]
fn probes_are_answered_beside_the_metrics_too() {
    let mut server = Server::start_with(|options| options.server.drain_delay = Duration::from_mins(1));
    let address = server.serve_metrics();
    let get = |path: &str| {
        let answer = common::ask(address, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        let reply = common::Reply::parse(&answer, false);
        (reply.status, reply.text())
    };
    assert_eq!(get("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(get("/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(get("/main/nix-cache-info").0, 404);
    server.stop();
    common::until("it is not ready any more", || (get("/readyz").0 == 503).then_some(()));
    assert_eq!(get("/readyz"), (503, "not ready: the server is stopping\n".to_owned()));
    assert_eq!(get("/healthz").0, 200);
}

#[test]
fn requests_are_counted_by_route_and_status_and_not_by_path() {
    let server = Server::start();
    server.push("main", &path(1), &nar(1));
    let url = server.nar_url("main", &path(1));
    let size = server.get(&url).body.len();
    for number in 2..20 {
        server.get(&format!("/main/{}.narinfo", path(number).hash()));
        server.get(&format!("/nobody-{number}/nix-cache-info"));
        server.get(&format!("/nothing/at/all/{number}"));
        server.request(&format!("M{number}"), "/", &[], b"");
    }
    let requests = |method: &str, route: &str, status: &str| {
        let labels = format!("method=\"{method}\",route=\"{route}\",status=\"{status}\"");
        common::until("answers are counted when they are sent", || {
            Some(server.metric(&format!("dormer_http_requests_total{{{labels}}}"))).filter(|count| *count > 0)
        })
    };
    assert!(requests("PUT", "/_api/v1/upload-path", "200") >= 1);
    assert!(requests("GET", "/{cache}/nar/{hash}-{tag}.nar.zst", "200") >= 1);
    common::until("all are counted", || {
        (requests("GET", "/{cache}/{hash}.narinfo", "404") >= 18).then_some(())
    });
    common::until("all are counted", || (requests("OTHER", "/", "405") >= 18).then_some(()));
    assert!(requests("GET", "none", "404") >= 1);
    assert!(server.metric("dormer_http_sent_bytes_total") >= size);
    assert!(server.metric("dormer_http_received_bytes_total") >= nar(1).len());
    assert!(server.metric("dormer_build_info{version=\"0.1.0\"}") >= 1);
    let page = String::from_utf8(server.metrics.render().unwrap()).unwrap();
    for foreign in ["nobody-7", "at/all", "M7", path(1).hash().to_string().as_str(), "main"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert!(page.lines().count() < 1_000, "{} lines", page.lines().count());
}

#[test]
fn what_deduplication_saves_is_counted() {
    let server = Server::start();
    // Two packages that differ in nothing but the store paths that they name, and one of them
    // twice.
    let rebuilt = |bytes: &[u8]| {
        let old = path(200).hash().to_string();
        let new = path(201).hash().to_string();
        let text = bytes.to_vec();
        let mut out = text.clone();
        for at in 0..text.len() - old.len() {
            if &text[at..at + old.len()] == old.as_bytes() {
                out[at..at + old.len()].copy_from_slice(new.as_bytes());
            }
        }
        out
    };
    let first = nar(1);
    let second = rebuilt(&first);
    assert_ne!(first, second);
    server.push("main", &path(1), &first);
    assert!(server.metric("dormer_deduplicated_bytes_total{by=\"chunk_with_holes\"}") == 0);
    server.push("main", &path(2), &second);
    assert!(server.metric("dormer_deduplicated_bytes_total{by=\"chunk_with_holes\"}") > 0);
    assert!(server.metric("dormer_deduplicated_bytes_total{by=\"plain_chunk\"}") > 0);
    server.push("main", &path(3), &second);
    assert_eq!(server.metric("dormer_deduplicated_bytes_total{by=\"nar\"}"), second.len());
    assert_eq!(server.metric("dormer_nars_received_total{known=\"true\"}"), 1);
    assert_eq!(server.metric("dormer_nars_received_total{known=\"false\"}"), 2);
    let all = 2 * first.len() + second.len();
    assert_eq!(server.metric("dormer_nar_bytes_received_total"), all);
    assert!(server.metric("dormer_pack_bytes_count") >= 1);
    assert!(server.metric("dormer_pack_store_seconds_count") >= 1);
    assert!(server.metric("dormer_pack_uploads_count") >= 1);
    assert!(server.metric("dormer_index_statements_total") > 10);
}

#[test]
fn the_page_has_an_address_of_its_own_and_prometheus_likes_it() {
    let server = Server::start();
    server.push("main", &path(1), &nar(1));
    server.call(&admin(), "PUT", "/main/nar/x.nar", &nar(2));
    assert_eq!(server.get("/metrics").status, 404, "not where everybody is");
    let address = server.serve_metrics();
    let get = |path: &str| {
        let answer = common::ask(address, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        common::Reply::parse(&answer, false)
    };
    assert_eq!(get("/").status, 404);
    let page = get("/metrics");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/plain; version=0.0.4")));

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let parts = std::env::var_os("DORMER_PARTS").map_or_else(|| root.join("target/parts"), PathBuf::from);
    let program = parts.join("prometheus/usr/bin/promtool");
    let mut promtool = Command::new(&program)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; scripts/get-services.sh brings it", program.display()));
    std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), &page.body).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{}", page.text());
}

#[test]
fn how_far_edge_targets_are_behind_is_on_the_page() {
    const LAG: &str = "dormer_publish_lag_seconds{target=\"edge\"} ";
    const PLACE: &str = "{cache=\"main\",target=\"edge\"}";

    let server = Server::start();
    let address = server.serve_metrics();
    let publishing = || {
        let answer = common::ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let page = common::Reply::parse(&answer, false).text();
        let lines = page.lines().filter(|line| line.starts_with("dormer_publish_"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let shows = |what: &str, lines: &[&str]| {
        common::until(what, || lines.iter().all(|line| publishing().iter().any(|l| l == line)).then_some(()));
    };
    let lag = || publishing().iter().find_map(|line| line.strip_prefix(LAG)?.parse::<i64>().ok());
    let pending = |count| format!("dormer_publish_pending_paths{PLACE} {count}");
    let published = |count| format!("dormer_publish_published_paths{PLACE} {count}");

    assert_eq!(publishing(), [""; 0], "there is no target");
    server.push("main", &path(1), &nar(1));
    let (state, now) = (&server.publish, common::now());
    let end = server.block_on(server.index.outbox_after(OutboxPosition::START, 1_000)).unwrap();
    let end = end.last().unwrap().position;
    let cache = server.block_on(server.engine.find_cache("main")).unwrap().unwrap().id;
    let hash = path(1).hash();
    let lease = server.block_on(async {
        let target = state.open_target("edge", "s3://bucket").await.unwrap();
        let lease = state.acquire_lease(target.id, "me", now, now + 3_600).await.unwrap().unwrap();
        let main = PublishedCache {
            cache,
            name: "main".to_owned(),
            basis: Vec::new(),
            document: Vec::new(),
            published_at: now,
            scan: None,
        };
        state.write_published_cache(&lease, &main, now).await.unwrap();
        state.note_pending(&lease, &[(cache, hash, now - 5_000)], NotedFrom::Outbox(end)).await.unwrap();
        lease
    });
    shows("a path waits", &[&pending(1), &published(0)]);
    assert!((5_000..6_000).contains(&lag().unwrap()), "since then it waits");

    let nar_name = (NarHash::digest(b"any"), dormer_format::EncodingTag::from_bytes([1; 16]));
    server.block_on(async {
        let intent = PublishIntent {
            hash,
            nar: nar_name,
            file_size: 1,
            references: Vec::new(),
            documents: Vec::new(),
        };
        state.begin_publishing(&lease, cache, &[intent]).await.unwrap();
        let done = PublishDone {
            hash,
            nar: nar_name,
            digest: vec![1; 32],
            etag: None,
            upstream: false,
            references: Vec::new(),
            documents: Vec::new(),
            stale_documents: Vec::new(),
        };
        state.finish_publishing(&lease, cache, &[done], now).await.unwrap();
    });
    shows("nothing waits", &[&pending(0), &published(1), &format!("{LAG}0")]);

    server.push("main", &path(2), &nar(2));
    common::until("a change that nobody looked at counts", || lag().filter(|seconds| *seconds > 0));
    shows("it is not in the target's own list yet", &[&pending(0), &published(1)]);

    server.block_on(server.index.close()).unwrap();
    common::until("what cannot be asked for is not shown", || publishing().is_empty().then_some(()));
}

#[test]
fn requests_with_a_token_that_ends_are_counted() {
    const DAY: i64 = 24 * 60 * 60;
    let server = Server::start();
    let now = common::now();
    let ask = |claims: serde_json::Value| {
        let token = common::sign(
            jsonwebtoken::Algorithm::HS256,
            &jsonwebtoken::EncodingKey::from_secret(common::SECRET),
            &claims,
        );
        let bearer = format!("Bearer {token}");
        server.request("GET", "/_api/v1/cache-config/main", &[("Authorization", &bearer)], b"").status
    };
    // A job's token, one with a year to go, one that ends, and one that has ended.
    assert_eq!(ask(serde_json::json!({"exp": now + 60, "iat": now})), 200);
    assert_eq!(ask(serde_json::json!({"exp": now + 365 * DAY, "iat": now})), 200);
    let counted =
        |ends: &str| server.metric(&format!("dormer_ending_token_requests_total{{ends=\"{ends}\"}}"));
    assert_eq!(["14d", "1d", "ended"].map(counted), [0; 3]);
    assert_eq!(ask(serde_json::json!({"exp": now + 5 * DAY, "iat": now - 100 * DAY})), 200);
    assert_eq!(ask(serde_json::json!({"exp": now - DAY})), 200);
    assert!(counted("14d") > 0 && counted("1d") == 0 && counted("ended") > 0);
}

/// Renew with `DORMER_RENEW=1 cargo test -p dormer-server metrics::`.
#[test]
fn the_reference_of_metrics_is_made_from_the_code() {
    let server = Server::start();
    let mut table = String::from("| name | labels | meaning |\n|---|---|---|\n");
    for metric in Arc::clone(&server.metrics).described() {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(table, "| `{}` | {} | {} |", metric.name, labels.join(", "), metric.help);
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/METRICS.md");
    let page = std::fs::read_to_string(&file).unwrap();
    let marker = "<!-- from here on made by `cargo test -p dormer-server metrics::` -->\n\n";
    let (before, written) = page.split_once(marker).expect("the marker stands in docs/METRICS.md");
    if std::env::var_os("DORMER_RENEW").is_some() {
        std::fs::write(&file, format!("{before}{marker}{table}")).unwrap();
    } else {
        assert!(written == table, "docs/METRICS.md is out of date: run it with DORMER_RENEW=1");
    }
}
