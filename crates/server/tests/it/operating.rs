//! What an operator relies on: health, an orderly end, ids that find a request again, limits of
//! patience.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use crate::common::{self, Reply, Server, admin, nar, path, sized_nar};
use serde_json::json;

#[test]
fn readiness_costs_a_server_nothing_however_often_it_is_asked() {
    let server = Server::start();
    let before = server.metric("dormer_index_statements_total");
    for _ in 0..200 {
        assert_eq!(server.get("/readyz").status, 200);
    }
    let statements = server.metric("dormer_index_statements_total") - before;
    assert!(statements < 100, "{statements} statements");
}

#[test]
fn a_store_that_hangs_makes_a_server_not_ready_in_time() {
    let server = Server::start();
    server.store.set_hanging(true);
    let reply = server.get("/readyz");
    assert_eq!((reply.status, reply.text().as_str()), (503, "not ready: the object store does not answer\n"));
    server.store.set_hanging(false);
    common::until("it is asked again", || Some(server.get("/readyz")).filter(|reply| reply.status == 200));
}

#[test]
fn requests_in_flight_end_well_when_a_server_stops() {
    let mut server = Server::start();
    let nar = sized_nar(1, 3_000_000);
    let mut upload = server.connect();
    let head = format!(
        "PUT /main/nar/1.nar HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n",
        admin(),
        nar.len()
    );
    upload.write_all(head.as_bytes()).unwrap();
    upload.write_all(&nar[..1_000_000]).unwrap();
    let streaming = || (server.metric("dormer_uploads_streaming") > 0).then_some(());
    common::until("the upload has begun", streaming);
    server.stop();
    common::until("nobody else comes in", || std::net::TcpStream::connect(server.address).err());
    upload.write_all(&nar[1_000_000..]).unwrap();
    let mut answer = Vec::new();
    upload.read_to_end(&mut answer).unwrap();
    let reply = Reply::parse(&answer, false);
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")), "{reply:?}");
    server.stopped().unwrap();
}

#[test]
fn requests_that_never_end_are_cut_when_a_server_stops() {
    let mut server =
        Server::start_with(|options| options.server.shutdown_timeout = Duration::from_millis(200));
    let mut upload = server.connect();
    let head = format!(
        "PUT /main/nar/1.nar HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 900000\r\n\r\n",
        admin()
    );
    upload.write_all(head.as_bytes()).unwrap();
    upload.write_all(&sized_nar(1, 900_000)[..100_000]).unwrap();
    common::until("the upload has begun", || (server.metric("dormer_uploads_streaming") > 0).then_some(()));
    server.stop();
    let error = server.stopped().unwrap_err();
    assert_eq!(error.to_string(), "cut 1 connections whose requests did not end in time");
}

#[test]
fn half_a_head_does_not_hold_up_a_server_that_stops() {
    // Much longer than the test would wait.
    let hour = Duration::from_hours(1);
    let mut server = Server::start_with(|options| {
        options.server.header_timeout = hour;
        options.server.shutdown_timeout = hour;
    });
    let half = b"GET /main/nix-cache-info HTTP/1.1\r\nHost: x\r\nX-Never: end";
    let mut first = server.connect();
    first.write_all(half).unwrap();
    let mut second = server.connect();
    second.write_all(b"GET /main/nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(second.read(&mut [0; 4096]).unwrap() > 0);
    second.write_all(half).unwrap();
    let silent = server.connect();
    common::until("all are taken", || (server.metric("dormer_http_connections") >= 3).then_some(()));
    server.stop();
    server.stopped().unwrap();
    for mut held in [first, second, silent] {
        let mut rest = Vec::new();
        // Closed or reset, but not held.
        let _ = held.read_to_end(&mut rest);
        assert_eq!(rest, b"", "nobody was answered");
    }
}

#[test]
fn a_connection_is_given_up_after_its_next_answer_when_a_server_stops() {
    let mut server = Server::start_with(|options| options.server.drain_delay = Duration::from_mins(1));
    let mut kept = server.connect();
    let ask = b"GET /main/nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n";
    kept.write_all(ask).unwrap();
    let mut piece = [0; 4096];
    let length = kept.read(&mut piece).unwrap();
    assert_eq!(Reply::parse(&piece[..length], false).header("connection"), None);
    server.stop();
    common::until("it heard of it", || Some(server.get("/readyz")).filter(|reply| reply.status == 503));
    kept.write_all(ask).unwrap();
    let mut answer = Vec::new();
    kept.read_to_end(&mut answer).unwrap();
    let reply = Reply::parse(&answer, false);
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
}

#[test]
fn a_reader_that_takes_nothing_loses_its_turn() {
    let server = Server::start_with(|options| {
        options.engine.reads_max = 1;
        options.server.write_idle_timeout = Duration::from_millis(200);
    });
    // More than the kernel buffers for a reader that sleeps.
    server.push("main", &path(1), &sized_nar(1, 24_000_000));
    server.push("main", &path(2), &nar(2));
    let mut sleeper = server.connect();
    let ask = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", server.nar_url("main", &path(1)));
    sleeper.write_all(ask.as_bytes()).unwrap();
    let in_use = "dormer_budget_in_use{budget=\"streams\"}";
    common::until("the reader has the only turn", || (server.metric(in_use) > 0).then_some(()));
    // Waits for the turn, which the sleeper loses.
    assert_eq!(server.get(&server.nar_url("main", &path(2))).status, 200);
    let mut rest = Vec::new();
    let _ = sleeper.read_to_end(&mut rest);
    assert!(rest.len() < 24_000_000, "the rest was not sent");
}

#[test]
fn a_defect_fails_its_request_and_nothing_else() {
    let server = Server::start();
    server.push("main", &path(1), &nar(1));
    let url = server.nar_url("main", &path(1));
    server.store.set_defective(true);
    let reply = server.get(&url);
    assert_eq!(reply.status, 500, "{reply:?}");
    assert!(
        reply.text().contains("under this request's id") && !reply.text().contains("planted"),
        "{reply:?}"
    );
    assert!(reply.header("x-request-id").is_some());
    server.store.set_defective(false);
    assert_eq!(server.get(&url).status, 200);
}

#[test]
fn a_caller_that_may_only_pull_takes_no_place_of_an_upload() {
    let server = Server::start_with(|options| {
        options.server.uploads_max = 1;
        options.engine.upload_wait = Duration::from_millis(100);
    });
    let reader = common::token(&json!({ "*": { "r": 1 } }));
    let mut slow = server.connect();
    let head = format!(
        "PUT /_api/v1/upload-path HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {reader}\r\n\
         X-Attic-Nar-Info-Preamble-Size: 500\r\nContent-Length: 900000\r\n\r\n{{"
    );
    slow.write_all(head.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(server.call(&admin(), "PUT", "/main/nar/2.nar", &nar(2)).status, 200);
    let info = common::nar_info("main", &path(1), &nar(1), &json!({})).to_string();
    let bearer = format!("Bearer {reader}");
    let headers = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info", info.as_str())];
    assert_eq!(server.request("PUT", "/_api/v1/upload-path", &headers, &nar(1)).status, 403);
}
