//! Pushes by chunks over HTTP.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use dormer_api::v2::{
    CommitEntry, CommitResponse, CommitResult, PartDigest, SessionResponse, decode_missing,
};
use dormer_api::{UploadPathResult, UploadPathResultKind};
use dormer_format::{ChunkParams, Encoder, RawChunk};
use dormer_testkit::{ChunkedNar, Random, part_of};
use serde_json::{Value, json};

use crate::common::{Reply, Server, admin, nar, nar_info, path, sized_nar, token, token_of, unzstd};

/// A session of a cache, by a token.
pub(crate) struct Session<'s> {
    server: &'s Server,
    token: String,
    cache: &'static str,
    id: String,
}

impl<'s> Session<'s> {
    pub(crate) fn new(server: &'s Server, token: &str, cache: &'static str, number: u8) -> Self {
        Self { server, token: token.to_owned(), cache, id: format!("{number:02x}").repeat(16) }
    }

    pub(crate) fn opened(server: &'s Server, token: &str, cache: &'static str, number: u8) -> Self {
        let session = Self::new(server, token, cache, number);
        let reply = session.open();
        assert_eq!(reply.status, 200, "{reply:?}");
        session
    }

    fn call(&self, method: &str, rest: &str, body: &[u8]) -> Reply {
        let (cache, id) = (self.cache, &self.id);
        let url = format!("/_api/v2/caches/{cache}/sessions/{id}{rest}");
        self.server.call(&self.token, method, &url, body)
    }

    pub(crate) fn open(&self) -> Reply {
        self.call("PUT", "", b"")
    }

    pub(crate) fn missing(&self, chunked: &ChunkedNar) -> Reply {
        let ids: Vec<u8> = chunked.manifest.chunks.iter().flat_map(|id| *id.as_bytes()).collect();
        self.call("POST", "/missing", &ids)
    }

    /// How many of the chunks the server asks for.
    fn count_missing(&self, chunked: &ChunkedNar) -> usize {
        let reply = self.missing(chunked);
        assert_eq!(reply.status, 200, "{reply:?}");
        let missing = decode_missing(&reply.body, chunked.chunks.len()).expect("a bit for each chunk");
        missing.into_iter().filter(|missing| *missing).count()
    }

    pub(crate) fn put(&self, digest: [u8; 32], part: &[u8]) -> Reply {
        self.call("PUT", &format!("/parts/{}", PartDigest::from_bytes(digest)), part)
    }

    pub(crate) fn commit(&self, body: &[u8]) -> Reply {
        self.call("POST", "/commit", body)
    }

    /// Commits entries until no result asks for that any more.
    fn commit_all(&self, entries: &[(Value, Vec<u8>)]) -> Vec<CommitResult> {
        let body = commit_body(entries);
        loop {
            let reply = self.commit(&body);
            assert_eq!(reply.status, 200, "{reply:?}");
            let response: CommitResponse = serde_json::from_slice(&reply.body).unwrap();
            assert_eq!(response.results.len(), entries.len());
            let is_pending =
                |result: &CommitResult| matches!(result, CommitResult::Verifying | CommitResult::Waiting);
            if !response.results.iter().any(is_pending) {
                return response.results;
            }
        }
    }
}

pub(crate) fn commit_body(entries: &[(Value, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (info, manifest) in entries {
        let info = info.to_string();
        CommitEntry { info: info.as_bytes(), manifest }.encode_to(&mut body).unwrap();
    }
    body
}

pub(crate) fn cut(nar: &[u8]) -> ChunkedNar {
    ChunkedNar::cut(nar, ChunkParams { min: 1024, avg: 4096, max: 16 * 1024 })
}

fn entry(cache: &str, number: u8, nar: &[u8]) -> (Value, Vec<u8>) {
    (nar_info(cache, &path(number), nar, &json!({})), cut(nar).manifest.encode())
}

#[test]
fn parts_are_as_large_as_the_settings_say_and_hold_one_chunk_in_any_case() {
    for (setting, chunk_max) in [(64 * 1024, 16 * 1024), (64 * 1024, 512 * 1024), (1 << 20, 4 << 20)] {
        let server = Server::start_with(|options| {
            options.server.part_bytes_max = setting;
            options.engine.chunk_params = ChunkParams { min: 4096, avg: 16 * 1024, max: chunk_max };
        });
        let session = Session::opened(&server, &admin(), "main", 1);
        let answer: SessionResponse = serde_json::from_slice(&session.open().body).unwrap();
        let max = usize::try_from(answer.part_bytes_max).unwrap();
        assert_eq!(max, setting.max(chunk_max as usize / 128 * 129 + 16 * 1024));
        assert_eq!(session.put([0; 32], &vec![0; max + 1]).status, 413);
        // Bytes that cannot be compressed.
        let mut random = Random::new(9);
        let bytes = (0..chunk_max / 8).flat_map(|_| random.next_u64().to_le_bytes()).collect();
        let chunk = RawChunk { bytes, holes: Vec::new(), fills: Vec::new() };
        let (digest, part) = part_of(vec![Encoder::new(1).unwrap().encode(&chunk).unwrap()]);
        assert!(part.len() > chunk_max as usize);
        assert_eq!(session.put(digest, &part).status, 204);
    }
}

#[test]
fn a_push_by_chunks_is_read_back() {
    let server = Server::start();
    let session = Session::opened(&server, &admin(), "main", 1);
    let answer: SessionResponse = serde_json::from_slice(&session.open().body).unwrap();
    assert_eq!((answer.format, answer.chunk_min, answer.chunk_max), (1, 1024, 16 * 1024));
    assert_eq!((answer.part_bytes_max, answer.missing_chunks_max), (8 * 1024 * 1024, 65_536));
    assert_eq!((answer.commit_bytes_max, answer.commit_paths_max), (24 * 1024 * 1024, 512));
    assert_eq!(answer.part_chunks_max, 4_096);
    assert_eq!(answer.store_dir.to_string(), "/nix/store");

    let (first, second) = (sized_nar(1, 700_000), nar(2));
    let mut chunks = Vec::new();
    for nar in [&first, &second] {
        let chunked = cut(nar);
        let reply = session.missing(&chunked);
        assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/octet-stream")));
        let missing = decode_missing(&reply.body, chunked.chunks.len()).unwrap();
        assert!(missing.iter().all(|missing| *missing));
        chunks.extend(chunked.stored(3));
    }
    let (digest, part) = part_of(chunks);
    for _ in 0..2 {
        let reply = session.put(digest, &part);
        assert_eq!((reply.status, reply.body.len()), (204, 0), "{reply:?}");
    }
    assert_eq!(session.count_missing(&cut(&first)), 0);

    let entries = [entry("main", 1, &first), entry("main", 2, &second), entry("main", 3, &first)];
    // The third has the NAR of the first: in one request, either may be the first to bring it.
    session.commit_all(&entries[..2]);
    let results = session.commit_all(&entries);
    let seen: Vec<_> = results
        .iter()
        .map(|result| match result {
            CommitResult::Committed(UploadPathResult { kind, frac_deduplicated, kept: false, .. }) => {
                (*kind, *frac_deduplicated)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(seen[0], (UploadPathResultKind::Uploaded, None));
    assert_eq!(seen[1], (UploadPathResultKind::Uploaded, None));
    for (number, nar) in [(1, &first), (2, &second), (3, &first)] {
        let reply = server.get(&server.nar_url("main", &path(number)));
        assert_eq!((reply.status, unzstd(&reply.body) == *nar), (200, true));
    }
    // The answer was lost: the same request gives the same results.
    assert_eq!(session.commit_all(&entries), results);
    // Both APIs agree on the path.
    let reply = server.push("main", &path(1), &first);
    assert_eq!(reply.json()["kind"], "Deduplicated");
}

#[test]
fn every_result_says_what_to_do() {
    let server = Server::start();
    let session = Session::opened(&server, &admin(), "main", 1);
    let (first, second) = (nar(1), nar(2));
    let (digest, part) = cut(&first).part(3);
    assert_eq!(session.put(digest, &part).status, 204);
    let wrong_hash =
        nar_info("main", &path(3), &first, &json!({"nar_hash": format!("sha256:{}", "0".repeat(64))}));
    let other_cache = nar_info("team-a", &path(4), &first, &json!({}));
    let manifest = cut(&first).manifest.encode();
    let results = session.commit_all(&[
        entry("main", 1, &first),
        entry("main", 2, &second),
        (wrong_hash, manifest.clone()),
        (other_cache, manifest.clone()),
        (json!({"cache": "main"}), manifest),
        (nar_info("main", &path(5), &first, &json!({})), b"no manifest".to_vec()),
    ]);
    assert!(matches!(&results[0], CommitResult::Committed(_)), "{results:?}");
    let all = (0..cut(&second).chunks.len() as u64).collect();
    assert_eq!(results[1], CommitResult::Missing { chunks: all });
    for (number, says) in [
        (2, "NAR hash mismatch"),
        (3, "another cache"),
        (4, "reading the upload metadata"),
        (5, "could not read the NAR manifest"),
    ] {
        let CommitResult::Failed { error } = &results[number] else { panic!("{:?}", results[number]) };
        assert_eq!((error.code, error.error.as_str()), (400, "RequestError"), "{error:?}");
        assert!(error.message.contains(says), "{error:?}");
    }
}

#[test]
fn what_refers_to_a_refused_path_waits() {
    let server = Server::start();
    let session = Session::opened(&server, &admin(), "main", 1);
    let bytes = nar(1);
    let (digest, part) = cut(&bytes).part(3);
    assert_eq!(session.put(digest, &part).status, 204);
    let manifest = cut(&bytes).manifest.encode();
    let entry_of = |info: Value| (info, manifest.clone());
    let after = |number: u8, references: &[u8]| {
        let references: Vec<_> = references.iter().map(|number| path(*number).to_string()).collect();
        entry_of(nar_info("main", &path(number), &bytes, &json!({ "references": references })))
    };
    for refused in [
        nar_info("team-a", &path(1), &bytes, &json!({})),
        nar_info("main", &path(1), &bytes, &json!({"sigs": ["no signature"]})),
        nar_info("main", &path(1), &bytes, &json!({"store_path_hash": "?"})),
        json!({"store_path_hash": path(1).hash().to_string()}),
    ] {
        let entries = [entry_of(refused), after(2, &[2, 1]), after(3, &[2]), after(4, &[4])];
        let is_settled = |result: &CommitResult| matches!(result, CommitResult::Committed(_));
        let results = loop {
            let reply = session.commit(&commit_body(&entries));
            assert_eq!(reply.status, 200, "{reply:?}");
            let response: CommitResponse = serde_json::from_slice(&reply.body).unwrap();
            if is_settled(&response.results[3]) {
                break response.results;
            }
        };
        assert!(matches!(&results[0], CommitResult::Failed { .. }), "{results:?}");
        assert_eq!(results[1..3], [CommitResult::Waiting, CommitResult::Waiting], "{results:?}");
        for number in [1, 2, 3] {
            assert_eq!(server.get(&format!("/main/{}.narinfo", path(number).hash())).status, 404);
        }
    }
    let results = session.commit_all(&[after(1, &[]), after(2, &[2, 1]), after(3, &[2])]);
    assert!(results.iter().all(|result| matches!(result, CommitResult::Committed(_))), "{results:?}");
}

#[test]
fn tenants_learn_nothing_of_each_other_and_do_not_share_sessions() {
    let server = Server::start();
    let team = |name: &str, sub: &str| token_of(sub, &json!({name: {"r": 1, "w": 1}}));
    let (alice, bob) = (team("team-a", "alice"), team("team-b", "bob"));
    let both = token_of("alice", &json!({"team-a": {"r": 1, "w": 1}, "team-b": {"w": 1}}));
    let secret = nar(7);
    let body = json!({
        "keypair": "Generate", "is_public": false, "store_dir": "/nix/store", "priority": 41,
        "upstream_cache_key_names": []
    });
    let body = body.to_string();
    assert_eq!(server.call(&admin(), "POST", "/_api/v1/cache-config/team-b", body.as_bytes()).status, 200);
    server.push("team-a", &path(1), &secret);
    let chunked = cut(&secret);
    let all = chunked.chunks.len();
    let own = Session::opened(&server, &alice, "team-a", 1);
    assert_eq!(own.count_missing(&chunked), 0, "an object of a cache that she may read");
    // The same caller, in a cache that it may not read, and by a token that may not read the first.
    let elsewhere = Session::opened(&server, &both, "team-b", 3);
    assert_eq!(elsewhere.count_missing(&chunked), 0, "what a token may read counts for any cache");
    let foreign = Session::opened(&server, &bob, "team-b", 2);
    assert_eq!(foreign.count_missing(&chunked), all);
    let results = foreign.commit_all(&[entry("team-b", 1, &secret)]);
    assert_eq!(results, [CommitResult::Missing { chunks: (0..all as u64).collect() }]);

    let (digest, part) = chunked.part(3);
    for id in [1, 3, 9] {
        let stolen = Session::new(&server, &bob, "team-b", id);
        let replies = [stolen.missing(&chunked), stolen.put(digest, &part), stolen.commit(b"")];
        for reply in replies {
            assert_eq!((reply.status, reply.json()["error"].as_str()), (404, Some("NotFound")), "{reply:?}");
        }
    }
    // A token without a permission on the cache does not even learn whether that exists.
    for cache in ["team-a", "main-x"] {
        let stranger = Session::new(&server, &bob, cache, 4);
        assert_eq!(stranger.open().status, 401, "{cache}");
    }
    let reader = token(&json!({"team-a": {"r": 1}}));
    assert_eq!(Session::new(&server, &reader, "team-a", 5).open().status, 403);
    assert_eq!(foreign.put(digest, &part).status, 204);
    let results = foreign.commit_all(&[entry("team-b", 1, &secret)]);
    let CommitResult::Committed(result) = &results[0] else { panic!("{results:?}") };
    assert_eq!((result.kind, result.frac_deduplicated), (UploadPathResultKind::Uploaded, None));
}

#[test]
fn bodies_that_are_no_requests_are_refused() {
    let server = Server::start();
    let session = Session::opened(&server, &admin(), "main", 1);
    let bad = |reply: Reply, says: &str| {
        assert_eq!(reply.status, 400, "{reply:?}");
        assert!(reply.text().contains(says), "{reply:?}");
    };
    bad(session.call("POST", "/missing", &[1; 33]), "32 bytes");
    bad(session.commit(b""), "no path");
    bad(session.commit(&[255, 255, 255, 127, 1]), "ends too early");
    bad(session.commit(&commit_body(&vec![(json!({}), vec![]); 513])), "too many paths");
    assert_eq!(session.call("POST", "/missing", &[]).status, 200);
    assert_eq!(session.call("POST", "/missing", &vec![0; 32 * 65_537]).status, 413);
    assert_eq!(session.put([0; 32], &vec![0; 8 * 1024 * 1024 + 1]).status, 413);
    assert_eq!(session.call("PUT", "/parts/xyz", b"").status, 404);
    for (method, rest) in
        [("POST", ""), ("GET", ""), ("PUT", "/missing"), ("PUT", "/commit"), ("GET", "/commit")]
    {
        assert_eq!(session.call(method, rest, b"").status, 405, "{method} {rest}");
    }
    // Nothing of that was stored, and the session works.
    assert_eq!(server.packs().len(), 0);
    let (digest, part) = cut(&nar(1)).part(3);
    assert_eq!(session.put(digest, &part).status, 204);
}
