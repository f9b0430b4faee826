//! One client must not stop the others: decoding, memory, turns.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use async_compression::tokio::bufread::{BzEncoder, LzmaEncoder};
use dormer_format::Compression;
use dormer_nix::nar::{Node, encode_tree};
use dormer_testkit::part_of;
use futures::FutureExt as _;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::common::{self, Reply, Server, admin, path, token};
use crate::routes::{pages, requests};
use crate::sessions::{Session, commit_body, cut};

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

/// Every request that has a body: of the protocols, the API and pages, with the status for a caller
/// that may not know the cache. Anybody may sign in and out.
fn requests_with_bodies() -> Vec<(&'static str, String, &'static str)> {
    let of_protocols = requests("team-a").into_iter().map(|asked| (asked.method, asked.address, "401"));
    let forms = pages("team-a").into_iter().chain([("POST", "/_dormer/collection".to_owned())]);
    let all: Vec<_> = of_protocols
        .chain(forms.map(|(method, address)| (method, address, "404")))
        .filter(|(method, ..)| ["PUT", "POST", "PATCH"].contains(method))
        .collect();
    assert!(all.len() >= 20, "{all:?}");
    all
}

#[test]
fn on_every_route_a_caller_without_permission_is_refused_before_its_body_comes() {
    let server = Server::start();
    let stranger = token(&json!({ "elsewhere": {} }));
    let reader = token(&json!({ "*": { "r": 1 } }));
    for (method, path, absent) in requests_with_bodies() {
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
            let status = answer.strip_prefix("HTTP/1.1 ").unwrap_or_default();
            assert!([absent, "403"].contains(&status), "{method} {path}: {answer}");
        }
    }
}

/// Sends the head of a request in chunked coding, and these bytes of its body.
fn half_a_request(
    server: &Server,
    token: &str,
    method: &str,
    path: &str,
    body: &[u8],
) -> std::net::TcpStream {
    let mut stream = server.connect();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
         Transfer-Encoding: chunked\r\n\r\n{:x}\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body, b"\r\n"].concat()).unwrap();
    stream
}

/// What any caller may do to the public cache `main`.
fn pusher(sub: &str) -> String {
    common::token_of(sub, &json!({ "main": { "r": 1, "w": 1 } }))
}

/// Waits until a request waits for its share of a budget.
fn until_some_wait(server: &Server, budget: &str) {
    until_waiting(server, budget, |count| count > 0);
}

/// Waits until enough requests wait for their shares of a budget.
fn until_waiting(server: &Server, budget: &str, is_enough: impl Fn(usize) -> bool) {
    let series = format!("dormer_budget_waiting{{budget=\"{budget}\"}}");
    common::until("so many wait", || is_enough(server.metric(&series)).then_some(()));
}

#[test]
fn bodies_that_come_slowly_hold_only_the_memory_of_their_bytes() {
    let server = Server::start();
    let question = json!({ "cache": "main", "store_path_hashes": [path(1).hash().to_string()] }).to_string();
    let (slow, other) = (pusher("slow"), pusher("other"));
    let half = question.as_bytes().split_at(20).0;
    let _held: Vec<_> =
        (0..20).map(|_| half_a_request(&server, &slow, "POST", "/_api/v1/get-missing-paths", half)).collect();
    let in_flight = || (server.metric("dormer_http_requests_in_flight") >= 20).then_some(());
    common::until("all are being read", in_flight);
    for token in [&other, &slow] {
        let begin = Instant::now();
        let reply = server.call(token, "POST", "/_api/v1/get-missing-paths", question.as_bytes());
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    }
}

#[test]
fn bodies_that_fill_a_pushers_share_stop_no_other_pusher() {
    let server = Server::start_with(|options| options.server.buffered_bytes_max = 4 * 1024 * 1024);
    let (slow, other) = (pusher("slow"), pusher("other"));
    let blanks = vec![b' '; 1024 * 1024];
    let _held: Vec<_> = (0..8)
        .map(|_| half_a_request(&server, &slow, "POST", "/_api/v1/get-missing-paths", &blanks))
        .collect();
    until_some_wait(&server, "body_memory");
    let question = json!({ "cache": "main", "store_path_hashes": [path(1).hash().to_string()] }).to_string();
    let begin = Instant::now();
    let reply = server.call(&other, "POST", "/_api/v1/get-missing-paths", question.as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn answers_that_wait_hold_no_more_than_their_callers_share() {
    let server = Server::start_with(|options| {
        options.server.buffered_bytes_max = 4 * 1024 * 1024;
        // No answer is given up meanwhile.
        options.engine.read_wait = Duration::from_mins(2);
    });
    // Other reads hold the memory that long answers are sent from.
    let held = server.block_on(async {
        let mut held = Vec::new();
        while let Some(memory) = server.engine.answer_memory(1024 * 1024).now_or_never() {
            held.push(memory.unwrap());
        }
        held
    });
    let hashes: Vec<String> = (0..20_000).map(|number| format!("{number:032}")).collect();
    let question = json!({ "cache": "main", "store_path_hashes": hashes }).to_string();
    let slow = pusher("slow");
    let ask = || {
        let mut stream =
            half_a_request(&server, &slow, "POST", "/_api/v1/get-missing-paths", question.as_bytes());
        stream.write_all(b"0\r\n\r\n").unwrap();
        stream
    };
    let mut waiting = vec![ask()];
    let queued = || server.metric("dormer_budget_waiting{budget=\"read_memory\"}");
    common::until("the first answer waits", || (queued() > 0).then_some(()));
    let of_callers = || server.metric("dormer_budget_in_use{budget=\"long_answer_memory\"}");
    common::until("a long answer counts for its caller", || (of_callers() > 700_000).then_some(()));
    waiting.extend((0..11).map(|_| ask()));
    // Each answer has 0.7 MB, and three of the four MiB are the caller's share.
    let is_answered = |stream: &std::net::TcpStream| {
        stream.set_nonblocking(true).unwrap();
        let is_answered = stream.peek(&mut [0]).is_ok();
        stream.set_nonblocking(false).unwrap();
        is_answered
    };
    // One that is neither answered nor waits is on its way.
    let all_but_four = || {
        let left = waiting.iter().filter(|stream| !is_answered(stream)).count();
        (left <= 4 && left == queued()).then_some(())
    };
    common::until("the others are told to come back", all_but_four);
    let (answered, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_answered);
    assert!(!waiting.is_empty(), "each answer was refused");
    let status = |mut stream: std::net::TcpStream| {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(answered.into_iter().all(|stream| status(stream) == "HTTP/1.1 503"));
    let begin = Instant::now();
    let small = json!({ "cache": "main", "store_path_hashes": [path(1).hash().to_string()] }).to_string();
    let reply = server.call(&pusher("other"), "POST", "/_api/v1/get-missing-paths", small.as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    drop(held);
    assert!(waiting.into_iter().all(|stream| status(stream) == "HTTP/1.1 200"), "an answer was lost");
}

#[test]
fn half_open_uploads_of_one_pusher_stop_no_other_pusher() {
    let (slow, other) = (pusher("slow"), pusher("other"));
    for compression in Compression::ALL {
        let server = Server::start();
        let half = half_with_largest_window(compression);
        let _held: Vec<_> = (0..UPLOADS_OF_A_SHARE)
            .map(|n| {
                half_a_request(
                    &server,
                    &slow,
                    "PUT",
                    &format!("/main/nar/{n}.nar.{}", suffix(compression)),
                    &half,
                )
            })
            .collect();
        until_some_wait(&server, "upload_memory_shares");
        let begin = Instant::now();
        let reply = server.call(&other, "PUT", "/main/nar/x.nar", &common::nar(2));
        assert_eq!(reply.status, 200, "{compression:?}: {reply:?}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{compression:?}: {:?}", begin.elapsed());
    }
}

/// More uploads than fit into the memory of one pusher.
const UPLOADS_OF_A_SHARE: usize = 20;

/// What a name of an upload ends with.
fn suffix(compression: Compression) -> &'static str {
    match compression {
        Compression::None | Compression::Lzma => compression.name(),
        Compression::Xz => "xz",
        Compression::Zstd => "zst",
        Compression::Bzip2 => "bz2",
        Compression::Gzip => "gz",
        Compression::Brotli => "br",
        Compression::Lz4 => "lz4",
    }
}

fn encoded(mut encoder: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(encoder.read_to_end(&mut bytes)).unwrap();
    bytes
}

/// The first part of an upload whose head names the largest window that is accepted. Most of them
/// hold the NAR as it is.
fn half_with_largest_window(compression: Compression) -> Vec<u8> {
    const MIB: u64 = 1024 * 1024;
    const WINDOW_BYTES: u32 = 128 << 20;
    let nar = common::sized_nar(1, 100_000);
    // Sizes of blocks are 64 KiB: the rest never comes.
    let (head, decoder_bytes) = match compression {
        Compression::None => (Vec::new(), 0),
        Compression::Zstd => (b"\x28\xb5\x2f\xfd\0\x88\0\0\x08".to_vec(), 129 * MIB),
        Compression::Xz => {
            let stream = b"\xfd7zXZ\0\0\0\xff\x12\xd9\x41";
            let block = b"\x02\0\x21\x01\x1e\0\0\0\x9b\x07\x51\x66\x01\xff\xff";
            ([&stream[..], block].concat(), 129 * MIB)
        }
        Compression::Lzma => {
            let mut bytes = encoded(LzmaEncoder::new(&nar[..]));
            bytes[1..5].copy_from_slice(&WINDOW_BYTES.to_le_bytes());
            (bytes, 129 * MIB)
        }
        Compression::Bzip2 => (encoded(BzEncoder::new(&nar[..])), 5 * MIB),
        Compression::Gzip => (b"\x1f\x8b\x08\0\0\0\0\0\0\xff\0\xff\xff\0\0".to_vec(), MIB),
        Compression::Brotli => (b"\x8f\xff\xff".to_vec(), (16 + 8) * MIB),
        Compression::Lz4 => (b"\x04\x22\x4d\x18\x60\x70\x73\0\0\x01\x80".to_vec(), 10 * MIB),
    };
    let mut half = [head, nar].concat();
    half.truncate(5000);
    assert_eq!(compression.decoder_bytes(&half), Ok(decoder_bytes), "{compression:?}");
    half
}

#[test]
fn a_commit_that_waits_for_memory_keeps_no_upload_waiting() {
    let server = Server::start();
    let half = half_with_largest_window(Compression::None);
    let slow = pusher("slow");
    let _held: Vec<_> = (0..UPLOADS_OF_A_SHARE)
        .map(|n| half_a_request(&server, &slow, "PUT", &format!("/main/nar/{n}.nar"), &half))
        .collect();
    until_some_wait(&server, "upload_memory_shares");
    // Garbage behind a beginning that is right: it says that the manifest has no chunk.
    let garbage = pusher("garbage");
    let session = Session::opened(&server, &garbage, "main", 1);
    let manifest = [&[1, 0][..], &vec![0xff; 14_900_000]].concat();
    let info = common::nar_info("main", &path(1), &common::nar(1), &json!({}));
    let body = commit_body(&[(info, manifest)]);
    std::thread::scope(|scope| {
        let commit = scope.spawn(|| session.commit(&body));
        let waiting = || server.metric("dormer_budget_waiting{budget=\"upload_memory\"}");
        common::until("its check waits", || (waiting() > 0).then_some(()));
        let begin = Instant::now();
        let reply = server.call(&pusher("other"), "PUT", "/main/nar/x.nar", &common::nar(2));
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        assert_eq!(commit.join().unwrap().status, 200);
    });
}

/// What waits for a reference may wait for long: it holds the memory of its pusher that it keeps,
/// and no turn.
#[test]
fn a_sound_nar_that_waits_for_a_reference_holds_a_little_memory_of_its_pusher_and_no_turn() {
    let server = Server::start();
    let session = Session::opened(&server, &pusher("slow"), "main", 1);
    let [absent, sent] = [common::nar(1), common::nar(2)];
    let (digest, part) = cut(&sent).part(3);
    assert_eq!(session.put(digest, &part).status, 204);
    let after = json!({ "references": [path(1).to_string()] });
    let entries = [(&absent, path(1), json!({})), (&sent, path(2), after)]
        .map(|(nar, path, more)| (common::nar_info("main", &path, nar, &more), cut(nar).manifest.encode()));
    let reply = session.commit(&commit_body(&entries)).json();
    let results = reply["results"].as_array().unwrap();
    assert_eq!(results[1]["state"], "waiting", "{reply}");
    let in_use = |budget: &str| server.metric(&format!("dormer_budget_in_use{{budget=\"{budget}\"}}"));
    assert_eq!(["check_shares", "uploads"].map(in_use), [0, 0]);
    let bytes = in_use("upload_memory_shares");
    assert!((1024..64 * 1024).contains(&bytes), "{bytes} bytes of a small recipe and listing");
}

#[test]
fn half_open_parts_of_some_pushers_stop_no_other_pusher() {
    let server = Server::start();
    let slow = [pusher("slow"), pusher("slower")];
    let bytes = vec![7; 2000];
    let held: Vec<_> = slow
        .iter()
        .zip(1..)
        .flat_map(|(token, number)| {
            Session::opened(&server, token, "main", number);
            let session = format!("/_api/v2/caches/main/sessions/{}", format!("{number:02x}").repeat(16));
            let part = |n: u8| format!("{session}/parts/{}", format!("{n:02x}").repeat(32));
            (0..10).map(|n| half_a_request(&server, token, "PUT", &part(n), &bytes)).collect::<Vec<_>>()
        })
        .collect();
    let in_flight = || (server.metric("dormer_http_requests_in_flight") >= held.len()).then_some(());
    common::until("all are being read", in_flight);
    let in_use = || server.metric("dormer_budget_in_use{budget=\"upload_memory\"}");
    common::until("their bytes have come", || (in_use() >= held.len() * bytes.len()).then_some(()));
    let of_pushers = server.metric("dormer_budget_in_use{budget=\"upload_memory_shares\"}");
    assert!(of_pushers >= held.len() * bytes.len(), "{of_pushers} bytes count for the pushers");
    assert!(in_use() < 1024 * 1024, "{} bytes for parts of which 2,000 have come", in_use());
    let begin = Instant::now();
    let other = Session::opened(&server, &pusher("other"), "main", 9);
    let chunked = cut(&common::nar(2));
    let mut encoder = dormer_format::Encoder::new(1).unwrap();
    let (digest, part) = part_of(chunked.chunks.iter().map(|chunk| encoder.encode(chunk).unwrap()));
    assert_eq!(other.put(digest, &part).status, 204);
    let reply = server.call(&pusher("other"), "PUT", "/main/nar/x.nar", &common::nar(2));
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

/// Sends the head of an upload with nearly 1 MiB of metadata before the NAR, then the metadata and
/// the first bytes of the NAR.
fn half_an_upload_with_long_metadata(
    server: &Server,
    token: &str,
    nar: &[u8],
) -> (std::net::TcpStream, usize) {
    let references: Vec<String> =
        (0..14_000).map(|number| format!("{}-{number:030}", path(2).hash())).collect();
    let info = common::nar_info("main", &path(1), nar, &json!({ "references": references })).to_string();
    assert!((900_000..1024 * 1024).contains(&info.len()), "{}", info.len());
    let head = format!(
        "PUT /_api/v1/upload-path HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
         X-Attic-Nar-Info-Preamble-Size: {}\r\nContent-Length: {}\r\n\r\n",
        info.len(),
        info.len() + nar.len()
    );
    let mut stream = server.connect();
    stream.write_all(&[head.as_bytes(), info.as_bytes(), &nar[..2000]].concat()).unwrap();
    (stream, info.len())
}

#[test]
fn metadata_before_a_nar_counts_as_memory_of_the_upload() {
    let server = Server::start();
    let nar = common::sized_nar(1, 100_000);
    let in_use = || server.metric("dormer_budget_in_use{budget=\"upload_memory\"}");
    let (_held, metadata_bytes) = half_an_upload_with_long_metadata(&server, &pusher("slow"), &nar);
    common::until("the upload has memory", || (in_use() > 0).then_some(()));
    let of_the_nar = nar.len() * 3 / 2 + 1024 * 1024;
    assert!(in_use() >= of_the_nar + metadata_bytes, "{} of {of_the_nar} and {metadata_bytes}", in_use());
}

#[test]
fn metadata_of_an_upload_that_waits_keeps_its_memory() {
    let server = Server::start_with(|options| options.server.buffered_bytes_max = 1024 * 1024);
    let slow = pusher("slow");
    let large = common::sized_nar(1, 100_000);
    let _held: Vec<_> = (0..UPLOADS_OF_A_SHARE)
        .map(|n| half_a_request(&server, &slow, "PUT", &format!("/main/nar/{n}.nar"), &large[..5000]))
        .collect();
    until_some_wait(&server, "upload_memory_shares");
    let _waits = half_an_upload_with_long_metadata(&server, &slow, &large);
    let in_flight = || (server.metric("dormer_http_requests_in_flight") > UPLOADS_OF_A_SHARE).then_some(());
    common::until("the upload is being read", in_flight);
    std::thread::sleep(Duration::from_secs(1));
    // The metadata goes beyond the pusher's share, so another long body of this pusher waits.
    let blanks = vec![b' '; 1024 * 1024];
    let _body = half_a_request(&server, &slow, "POST", "/_api/v1/get-missing-paths", &blanks);
    until_some_wait(&server, "body_memory");
}

#[test]
fn metadata_that_takes_the_last_memory_waits_for_a_short_time() {
    let server = Server::start_with(|options| options.server.buffered_bytes_max = 1024 * 1024);
    let (slow, slower) = (pusher("slow"), pusher("slower"));
    let large = common::sized_nar(1, 100_000);
    let _held: Vec<_> = (0..UPLOADS_OF_A_SHARE)
        .map(|n| half_a_request(&server, &slow, "PUT", &format!("/main/nar/{n}.nar"), &large[..5000]))
        .collect();
    until_some_wait(&server, "upload_memory_shares");
    // One goes beyond what there is for all, and waits for its pusher's other uploads.
    let all = 1024 * 1024;
    let in_use = || server.metric("dormer_budget_in_use{budget=\"body_memory\"}");
    let _first = half_an_upload_with_long_metadata(&server, &slow, &large);
    common::until("the metadata has come", || (in_use() >= all / 4 * 3).then_some(()));
    // The other takes the rest.
    let _second = half_an_upload_with_long_metadata(&server, &slower, &large);
    common::until("all is taken", || (in_use() == all).then_some(()));
    let begin = Instant::now();
    let question = json!({ "cache": "main", "store_path_hashes": [path(1).hash().to_string()] }).to_string();
    let reply = server.call(&pusher("other"), "POST", "/_api/v1/get-missing-paths", question.as_bytes());
    assert_eq!(reply.status, 200, "after {:?}: {reply:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(25), "{:?}", begin.elapsed());
}

#[test]
fn a_body_that_comes_byte_by_byte_is_given_up() {
    let server = Server::start_with(|options| options.server.body_idle_timeout = Duration::from_secs(1));
    let nar = common::nar(1);
    let mut upload = half_a_request(&server, &pusher("slow"), "PUT", "/main/nar/x.nar", &nar[..2000]);
    upload.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let begin = Instant::now();
    let mut answer = [0; 12];
    let mut bytes = nar[2000..].iter();
    // Never silent for as long as a body may pause.
    while upload.read_exact(&mut answer).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(20), "it goes on");
        let piece = [b"1\r\n".as_slice(), &[*bytes.next().unwrap()], b"\r\n"].concat();
        let _ = upload.write_all(&piece);
    }
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 408");
}

/// Longest wait beside readers that take nothing. They have 5 s, the server looks each second, and
/// as many of them as have a turn may come first: connections are limited to twice the turns.
const READER_WAIT_MAX: Duration = Duration::from_secs(16);

/// A reader that sends its request and takes nothing of the answer.
fn sleeping_reader(server: &Server, token: &str, path: &str) -> std::net::TcpStream {
    let mut stream = server.connect();
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

#[test]
fn readers_that_take_nothing_make_room_for_others() {
    // One server has too few turns, the other one too little memory.
    for (turns, memory) in [(32, 64 << 20), (512, 8 << 20)] {
        let server = Server::start_with(|options| {
            options.engine.reads_max = turns;
            options.engine.read_memory_bytes = memory;
            // Many small chunks would fill the memory for lists of chunks first.
            options.engine.chunk_params = dormer_format::ChunkParams::default();
        });
        server.push("main", &path(1), &common::sized_nar(1, 24_000_000));
        server.push("main", &path(2), &common::nar(2));
        let large = server.nar_url("main", &path(1));
        let _sleeping: Vec<_> = (0..64).map(|_| sleeping_reader(&server, "none", &large)).collect();
        let waiting = ["read_memory", "stream_memory", "streams"]
            .map(|budget| format!("dormer_budget_waiting{{budget=\"{budget}\"}}"));
        let some_wait = || waiting.iter().any(|series| server.metric(series) > 0).then_some(());
        common::until("the sleeping readers hold all there is", some_wait);
        let begin = Instant::now();
        let reply = server.get(&server.nar_url("main", &path(2)));
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(begin.elapsed() < READER_WAIT_MAX, "{turns} turns: {:?}", begin.elapsed());
    }
}

/// Pushes `path(1)` with everything about it long: its narinfo, its listing, a file and a log.
fn push_with_long_documents(server: &Server) {
    let links = (0..4_200).map(|n| (format!("l{n:05}").into_bytes(), Node::symlink("x".repeat(4_000))));
    let file: Vec<u8> =
        (0..3_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let bin = Node::directory([(b"x".to_vec(), Node::file(file))]);
    let nar = encode_tree(&Node::directory(links.chain([(b"bin".to_vec(), bin)])));
    let references: Vec<String> =
        (0..13_000).map(|number| format!("{}-{number:030}", path(2).hash())).collect();
    let info = common::nar_info("main", &path(1), &nar, &json!({ "references": references })).to_string();
    let (bearer, size) = (format!("Bearer {}", admin()), info.len().to_string());
    let headers = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info-Preamble-Size", size.as_str())];
    let reply = server.request("PUT", "/_api/v1/upload-path", &headers, &[info.as_bytes(), &nar].concat());
    assert_eq!(reply.status, 200, "{reply:?}");
    let log = format!("/main/log/{}-x.drv", path(1).hash());
    let reply = server.call(&admin(), "PUT", &log, &b"a line of a build log\n".repeat(600_000));
    assert_eq!(reply.status, 200, "{reply:?}");
}

/// Whatever a route sends, sleeping readers of it leave memory to readers of NARs, and its own to
/// other callers.
#[test]
fn readers_of_any_route_that_take_nothing_keep_nothing_from_other_callers() {
    let server = Server::start_with(|options| {
        options.engine.chunk_params = dormer_format::ChunkParams::default();
        options.server.log_bytes_max = 16 << 20;
    });
    push_with_long_documents(&server);
    server.push("main", &path(2), &common::nar(2));
    let of_protocols = requests("main").into_iter().map(|asked| (asked.method, asked.address));
    let reads = of_protocols.chain(pages("main")).filter(|(method, _)| *method == "GET");
    let small = server.nar_url("main", &path(2));
    let bob = pusher("bob");
    let mut long = Vec::new();
    for (_, address) in reads {
        let whole = server.call(&bob, "GET", &address, b"");
        if whole.body.len() < 256 * 1024 {
            continue;
        }
        let _sleeping: Vec<_> = (0..64).map(|_| sleeping_reader(&server, "none", &address)).collect();
        std::thread::sleep(Duration::from_millis(300));
        let begin = Instant::now();
        assert_eq!(server.call(&bob, "GET", &small, b"").status, 200, "a NAR beside {address}");
        // Readers of NARs share turns with each other.
        let limit = if address.contains("/nar/") { READER_WAIT_MAX } else { Duration::from_secs(4) };
        assert!(begin.elapsed() < limit, "a NAR beside {address}: {:?}", begin.elapsed());
        let begin = Instant::now();
        assert_eq!(server.call(&bob, "GET", &address, b"").status, whole.status, "{address}");
        assert!(begin.elapsed() < READER_WAIT_MAX, "{address}: {:?}", begin.elapsed());
        long.push(address);
    }
    assert!(long.len() >= 6, "too few routes have something long: {long:?}");
}

#[test]
fn readers_that_take_nothing_make_room_for_clients_that_find_no_place() {
    let server = Server::start_with(|options| options.server.connections_max = 4);
    server.push("main", &path(1), &common::sized_nar(1, 24_000_000));
    let large = server.nar_url("main", &path(1));
    let status = || server.get("/main/nix-cache-info").status;
    // A place is free a moment after its connection ended, so a reader may find none at first.
    let mut sleeping = Vec::new();
    common::until("the sleeping readers have all places", || {
        sleeping.push(sleeping_reader(&server, "none", &large));
        (status() == 503).then_some(())
    });
    let begin = Instant::now();
    common::until("a reader is cut", || (status() == 200).then_some(()));
    assert!(begin.elapsed() < READER_WAIT_MAX, "{:?}", begin.elapsed());
}

#[test]
fn slow_readers_of_uploads_do_not_keep_a_pusher_from_its_own() {
    let server = Server::start();
    let (slow, other) = (pusher("slow"), pusher("other"));
    let large = common::sized_nar(1, 24_000_000);
    // Uncompressed, so that more comes than the kernel keeps for a reader.
    assert_eq!(server.call(&slow, "PUT", "/main/nar/large.nar", &large).status, 200);
    let gzip = server.call(&other, "PUT", "/main/nar/small.nar", &common::nar(2));
    assert_eq!(gzip.status, 200, "{gzip:?}");
    let anonymous = server.get("/main/nar/small.nar");
    assert_eq!(anonymous.status, 401, "{anonymous:?}");
    let _sleeping: Vec<_> = (0..8).map(|_| sleeping_reader(&server, &slow, "/main/nar/large.nar")).collect();
    until_some_wait(&server, "reencodings");
    let begin = Instant::now();
    let reply = server.call(&other, "GET", "/main/nar/small.nar", b"");
    assert_eq!((reply.status, reply.body.len()), (200, common::nar(2).len()));
    assert!(begin.elapsed() < READER_WAIT_MAX, "{:?}", begin.elapsed());
}

/// A NAR of a folder with one large file and a small one.
fn folder_with_a_large_file() -> Vec<u8> {
    let large = (0..6_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes());
    let files = [("large", large.collect()), ("small", b"small".to_vec())];
    encode_tree(&Node::directory(files.map(|(name, bytes)| (name.as_bytes().to_vec(), Node::file(bytes)))))
}

#[test]
fn readers_of_files_that_take_nothing_keep_neither_files_nor_uploads_from_others() {
    let server = Server::start_with(|options| {
        options.engine.chunk_params = dormer_format::ChunkParams::default();
    });
    server.push("main", &path(1), &folder_with_a_large_file());
    let (slow, other) = (pusher("slow"), pusher("other"));
    let upload = server.call(&other, "PUT", "/main/nar/small.nar", &common::nar(2));
    assert_eq!(upload.status, 200, "{upload:?}");
    let file = |name: &str| format!("/_api/v2/caches/main/objects/{}/file/{name}", path(1).hash());
    let _sleeping: Vec<_> = (0..8).map(|_| sleeping_reader(&server, &slow, &file("large"))).collect();
    until_some_wait(&server, "files");
    let begin = Instant::now();
    let reply = server.call(&other, "GET", "/main/nar/small.nar", b"");
    assert_eq!(reply.status, 200, "{reply:?}");
    for reply in [server.get(&file("small")), server.call(&other, "GET", &file("small"), b"")] {
        assert_eq!((reply.status, reply.body.as_slice()), (200, b"small".as_slice()), "{reply:?}");
    }
    assert!(begin.elapsed() < Duration::from_secs(4), "a quarter is left: {:?}", begin.elapsed());
    let reply = server.call(&slow, "GET", &file("small"), b"");
    assert_eq!(reply.status, 200, "a sleeping reader is cut: {reply:?}");
}

/// Reads all that comes, and says whether the whole answer did.
fn is_whole(stream: &mut std::net::TcpStream) -> bool {
    let (mut got, mut piece) = (Vec::new(), vec![0; 256 * 1024]);
    loop {
        match stream.read(&mut piece) {
            Ok(count @ 1..) => got.extend_from_slice(&piece[..count]),
            _ => return false,
        }
        let Some(end) = got.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&got[..end]).to_lowercase();
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if got.len() - end - 4 == length.parse::<usize>().unwrap() {
            return true;
        }
    }
}

#[test]
fn a_caller_that_waits_for_its_own_turns_cuts_no_reader_of_another() {
    let server = Server::start_with(|options| {
        options.engine.chunk_params = dormer_format::ChunkParams::default();
    });
    server.push("main", &path(1), &folder_with_a_large_file());
    let file = format!("/_api/v2/caches/main/objects/{}/file/large", path(1).hash());
    let mut of_others = [(server.nar_url("main", &path(1)), "ada"), (file.clone(), "bob")]
        .map(|(address, name)| sleeping_reader(&server, &pusher(name), &address));
    // They have their turns, and are not among those that wait.
    for reader in &of_others {
        assert_eq!(reader.peek(&mut [0]).unwrap(), 1, "it is being answered");
    }
    // Six have a turn. When they are cut, the next ones take nothing either.
    let mut own: Vec<_> = (0..24).map(|_| sleeping_reader(&server, &pusher("slow"), &file)).collect();
    until_some_wait(&server, "files");
    std::thread::sleep(Duration::from_secs(8));
    assert!(of_others.iter_mut().all(is_whole), "a reader was cut that nobody waits for");
    let was_cut = own.iter_mut().any(|reader| !is_whole(reader));
    assert!(was_cut, "the caller's own readers make room");
}

/// A NAR of a folder of links, whose listing has some 16 MiB, and the name of the last entry.
fn folder_with_a_long_listing() -> (Vec<u8>, &'static str) {
    let links = (0..4_200).map(|n| (format!("l{n:05}").into_bytes(), Node::symlink("x".repeat(4_000))));
    let last = (b"z".to_vec(), Node::file(b"last".to_vec()));
    (encode_tree(&Node::directory(links.chain([last]))), "z")
}

#[test]
fn long_listings_are_read_in_turns_of_the_cpu_pool_and_stop_no_probe() {
    let server = Server::start_with(|options| {
        options.engine.chunk_params = dormer_format::ChunkParams::default();
        options.engine.cpu_threads = 1;
    });
    let (nar, last) = folder_with_a_long_listing();
    server.push("main", &path(1), &nar);
    server.push("main", &path(2), &folder_with_a_small_listing());
    let hash = path(1).hash();
    let page = format!("/main/{hash}/files/{last}");
    let file = format!("/_api/v2/caches/main/objects/{hash}/file/{last}");
    let (ada, bob) = (pusher("ada"), pusher("bob"));
    let replies = beside_probes(
        &server,
        &[&|| server.get(&file), &|| server.get(&page), &|| server.call(&ada, "GET", &file, b""), &|| {
            server.call(&bob, "GET", &page, b"")
        }],
    );
    assert!(replies.iter().all(|reply| reply.status == 200), "{:?}", replies[0]);
    let small = path(2).hash();
    for address in
        [file, page, format!("/main/{hash}.ls"), format!("/main/{small}.ls"), format!("/main/{small}/files/")]
    {
        // Without a turn no listing is decoded or searched, so none is on a thread that answers.
        let cpu = server.engine.cpu().clone();
        let (end, may_end) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let answered = std::thread::scope(|scope| {
            scope.spawn(|| {
                server.block_on(cpu.run(move || {
                    begun.send(()).unwrap();
                    may_end.recv().unwrap();
                }));
            });
            has_begun.recv().unwrap();
            let asked = scope.spawn(|| server.get(&address));
            std::thread::sleep(Duration::from_millis(200));
            let has_answered = asked.is_finished();
            end.send(()).unwrap();
            (has_answered, asked.join().unwrap().status)
        });
        assert_eq!(answered, (false, 200), "{address}");
    }
}

/// Signatures come with a narinfo, with the metadata in front of a NAR, with a commit and with a
/// build trace. Each signature in the name of a known key costs a hash of all the metadata.
#[test]
fn metadata_with_the_most_signatures_stops_no_probe_and_with_more_is_refused() {
    let server = Server::start();
    let nar = common::nar(1);
    assert_eq!(server.call(&admin(), "PUT", "/main/nar/x.nar", &nar).status, 200);
    let session = Session::opened(&server, &admin(), "main", 1);
    let (digest, part) = cut(&nar).part(3);
    assert_eq!(session.put(digest, &part).status, 204);
    let forged = format!("cache.nixos.org-1:{}==", "A".repeat(86));
    let references: Vec<String> =
        (0..13_000).map(|number| format!("{}-{number:030}", path(2).hash())).collect();
    let hash = "0123456789abcdef".repeat(4);
    for (count, status) in [(dormer_engine::SIGNATURES_MAX, 200), (dormer_engine::SIGNATURES_MAX + 1, 400)] {
        let sigs = vec![forged.as_str(); count];
        let info = |number| {
            let other = json!({ "references": references, "sigs": sigs });
            common::nar_info("main", &path(number), &nar, &other)
        };
        let lines = format!("Sig: {}\n", sigs.join("\nSig: "));
        let narinfo = common::narinfo(&path(3), &nar, "x.nar", "none", &lines);
        let narinfo = narinfo.replacen("References: ", &format!("References: {}", references.join(" ")), 1);
        let trace =
            json!({ "id": format!("sha256:{hash}!out"), "outPath": path(3).to_string(), "signatures": sigs });
        let manifest = cut(&nar).manifest.encode();
        let preamble = info(4).to_string();
        let upload = [preamble.as_bytes(), &nar].concat();
        let (bearer, size) = (format!("Bearer {}", admin()), preamble.len().to_string());
        let headers = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info-Preamble-Size", size.as_str())];
        let narinfo_place = format!("/main/{}.narinfo", path(3).hash());
        let trace_place = format!("/main/realisations/sha256:{hash}!out.doi");
        let commit = commit_body(&[(info(5), manifest)]);
        let replies = beside_probes(
            &server,
            &[
                &|| server.call(&admin(), "PUT", &narinfo_place, narinfo.as_bytes()),
                &|| server.call(&admin(), "PUT", &trace_place, trace.to_string().as_bytes()),
                &|| server.request("PUT", "/_api/v1/upload-path", &headers, &upload),
                &|| session.commit(&commit),
            ],
        );
        for reply in &replies[..3] {
            assert_eq!(reply.status, status, "{reply:?}");
            assert_eq!(reply.text().contains("signatures"), status == 400, "{reply:?}");
        }
        assert_eq!(replies[3].status, 200, "{:?}", replies[3]);
        assert_eq!(replies[3].text().contains("65 signatures"), status == 400, "{:?}", replies[3]);
    }
}

/// Each of these reads thousands of rows, or a long listing. Nothing is read before the turn: also
/// a request for a path that is not there waits.
#[test]
fn whatever_searches_waits_for_the_turn_of_its_caller() {
    let server = Server::start_with(|options| options.engine.cpu_threads = 1);
    server.push("main", &path(1), &folder_with_a_small_listing());
    let hash = path(1).hash();
    let object = format!("/_api/v2/caches/main/objects/{hash}");
    let pin = json!({ "store_path": path(1).to_string() }).to_string();
    let files = format!("/main/{hash}/files/");
    let of_admin: [(&str, String, &str); 4] = [
        ("GET", "/_api/v2/caches/main/objects?name=x".to_owned(), ""),
        ("GET", object.clone(), ""),
        ("GET", format!("{object}/file/a"), ""),
        ("PUT", "/_api/v2/caches/main/pins/p".to_owned(), &pin),
    ];
    let of_anybody =
        [object.clone(), format!("{object}/file/a"), format!("/main/{hash}/closure"), files.clone()];
    let absent = path(2).hash();
    let of_no_path = [
        format!("/_api/v2/caches/main/objects/{absent}"),
        format!("/_api/v2/caches/main/objects/{absent}/file/a"),
        format!("/main/{absent}/closure"),
        format!("/main/{absent}/files/"),
    ];
    let cpu = server.engine.cpu().clone();
    std::thread::scope(|scope| {
        // Within the scope, so that a failure ends the job.
        let (end, may_end) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let work = move || {
            begun.send(()).unwrap();
            let _ = may_end.recv();
        };
        scope.spawn(|| server.block_on(cpu.run(work)));
        has_begun.recv().unwrap();
        // One search of each caller has the turn, and waits for the CPU.
        let held = [
            scope.spawn(|| server.call(&admin(), "GET", &format!("{object}/file/a"), b"")),
            scope.spawn(|| server.get(&files)),
        ];
        let waits_for_cpu = || (server.metric("dormer_budget_waiting{budget=\"cpu\"}") == 2).then_some(());
        common::until("two searches have their turns", waits_for_cpu);
        let mut waiting = Vec::new();
        for (method, address, body) in &of_admin {
            waiting.push(scope.spawn(|| server.call(&admin(), method, address, body.as_bytes())));
        }
        for address in &of_anybody {
            waiting.push(scope.spawn(|| server.get(address)));
        }
        let of_no_path = of_no_path.each_ref().map(|address| scope.spawn(|| server.get(address)));
        let all = waiting.len() + of_no_path.len();
        until_waiting(&server, "searches", |count| count == all);
        end.send(()).unwrap();
        for reply in held.into_iter().chain(waiting) {
            assert_eq!(reply.join().unwrap().status, 200);
        }
        for reply in of_no_path {
            assert_eq!(reply.join().unwrap().status, 404);
        }
    });
    let long = format!("/_api/v2/caches/main/objects?name={}", "x".repeat(301));
    assert_eq!(server.call(&admin(), "GET", &long, b"").status, 400);
}

fn folder_with_a_small_listing() -> Vec<u8> {
    encode_tree(&Node::directory([(b"a".to_vec(), Node::file(b"a".to_vec()))]))
}

#[test]
fn half_sent_heads_starve_no_probe() {
    let server = Server::start_with(|options| options.server.connections_max = 32);
    let _held: Vec<_> = (0..128)
        .map(|_| {
            let mut half = server.connect();
            half.write_all(b"GET /main/nix-cache-info HTTP/1.1\r\nHost: ").unwrap();
            half
        })
        .collect();
    for _ in 0..20 {
        let begin = Instant::now();
        assert_eq!(server.get("/healthz").status, 200);
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    }
    let served = || Some(server.get("/main/nix-cache-info")).filter(|reply| reply.status == 200);
    common::until("halves that are a second old make room", served);
}

#[test]
fn settings_and_metadata_are_bounded() {
    let server = Server::start();
    let admin = admin();
    let config = |names: usize| {
        let names: Vec<String> = (0..names).map(|n| format!("key-{n}")).collect();
        json!({
            "keypair": "Generate", "is_public": true, "store_dir": "/nix/store", "priority": 41,
            "upstream_cache_key_names": names
        })
    };
    let send = |method: &str, cache: &str, body: &serde_json::Value| {
        let url = format!("/_api/v1/cache-config/{cache}");
        server.call(&admin, method, &url, body.to_string().as_bytes()).status
    };
    assert_eq!(send("POST", "many", &config(65)), 400);
    assert_eq!(send("POST", "many", &config(64)), 200);
    for (names, status) in [(65, 400), (64, 200)] {
        let patch = json!({ "upstream_cache_key_names": config(names)["upstream_cache_key_names"] });
        assert_eq!(send("PATCH", "many", &patch), status, "{names} names");
    }
    assert_eq!(send("PATCH", "many", &json!({ "upstream_cache_key_names": ["k".repeat(4_000)] })), 400);
    let new_key = json!({ "keypair": "Generate" });
    // A rotation always works. The oldest retired keys make room.
    for _ in 0..66 {
        assert_eq!(send("PATCH", "many", &new_key), 200);
    }
    let list = server.call(&admin, "GET", "/_api/v2/caches", b"").json();
    let caches = list["caches"].as_array().unwrap();
    let many = caches.iter().find(|cache| cache["name"] == "many").unwrap();
    assert!(
        many["public_keys"].as_array().is_some_and(|keys| !keys.is_empty() && keys.len() <= 64),
        "{many}"
    );

    let nar = common::nar(1);
    assert_eq!(server.call(&admin, "PUT", "/main/nar/x.nar", &nar).status, 200);
    let good_ca = format!("fixed:r:sha256:{}", dormer_nix::NarHash::digest(&nar).to_nix32());
    for (json_field, narinfo_field, good, bad) in [
        ("system", "System", "x".repeat(256), "x".repeat(257)),
        ("ca", "CA", good_ca.clone(), format!("{good_ca}x")),
        ("ca", "CA", good_ca.replace("fixed:r", "text"), "x".to_owned()),
    ] {
        for (text, status) in [(bad, 400), (good, 200)] {
            let info = common::nar_info("main", &path(1), &nar, &json!({ json_field: text })).to_string();
            let bearer = format!("Bearer {admin}");
            let headers = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info", info.as_str())];
            let reply = server.request("PUT", "/_api/v1/upload-path", &headers, &nar);
            assert_eq!(reply.status, status, "{json_field}: {reply:?}");
            assert!(status == 200 || reply.text().contains(narinfo_field), "{reply:?}");
            let more = format!("{narinfo_field}: {text}\n");
            let narinfo = common::narinfo(&path(2), &nar, "x.nar", "none", &more);
            let url = format!("/main/{}.narinfo", path(2).hash());
            let reply = server.call(&admin, "PUT", &url, narinfo.as_bytes());
            assert_eq!(reply.status, status, "{narinfo_field}: {reply:?}");
            assert!(status == 200 || reply.text().contains(narinfo_field), "{reply:?}");
        }
    }
}

#[test]
fn caches_are_listed_in_pages_that_name_no_hidden_cache() {
    let server = Server::start();
    for n in 0..330 {
        let new = dormer_engine::CreateCache {
            allow_replacement: false,
            name: format!("c{n:03}"),
            is_public: n % 3 == 0,
            store_dir: "/nix/store".to_owned(),
            priority: 41,
            upstream_cache_key_names: Vec::new(),
            secret_key: None,
        };
        server.block_on(server.engine.create_cache(new)).unwrap();
    }
    let all = |token: Option<&str>| {
        let mut names = Vec::new();
        let mut query = String::new();
        loop {
            let url = format!("/_api/v2/caches{query}");
            let reply = match token {
                Some(token) => server.call(token, "GET", &url, b""),
                None => server.get(&url),
            };
            let page = reply.json();
            let caches = page["caches"].as_array().unwrap();
            assert!(caches.len() <= 100, "{}", caches.len());
            names.extend(caches.iter().map(|cache| cache["name"].as_str().unwrap().to_owned()));
            let Some(next) = page["next"].as_str() else { return names };
            assert_eq!(Some(next), names.last().map(String::as_str), "the last one in the page");
            query = format!("?after={next}");
        }
    };
    let public = all(None);
    assert_eq!(public.len(), 111, "every third one, and main");
    assert!(public.is_sorted());
    assert_eq!(all(Some(&admin())).len(), 332);
    assert_eq!(server.get("/_api/v2/caches?after=-x").status, 400);
}
