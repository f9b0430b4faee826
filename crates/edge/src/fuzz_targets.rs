//! One checked property per parser of foreign bytes: a plain function that panics when the property
//! fails.
//!
//! Tests run them over `fuzz/corpus/edge_*` and mutations of it; a fuzzer can run them for longer
//! (`fuzz/README.md`).

use dormer_api::{TokenBounds, TokenClaims, presented_token};

use crate::{
    Admission, Answer, Body, CacheState, Catalog, EdgeKey, ObjectMeta, Request, RequestPlan, SignedToken,
    decode_file_path, decode_path, plan,
};

/// Bytes of the object that is found.
const SIZE: u64 = 1_000;

/// A request: a line each for method, path, `Authorization`, `Range`, `If-Range` and
/// `If-None-Match`. A request outside of the protocol reads nothing. Without a token, a private
/// cache looks like none. Parts lie within the object, and lengths are those of the parts.
pub fn fuzz_request(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let mut next = || lines.next();
    let (method, path) = (next().unwrap_or_default(), next().unwrap_or_default());
    let mut header = || next().filter(|value| !value.is_empty());
    if let Some(names) = decode_file_path(path) {
        assert_eq!(names.len(), path.split('/').count(), "no name becomes two");
        let leads_out =
            |name: &String| matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']);
        assert!(!names.iter().any(leads_out), "{names:?}");
    }
    let request = Request {
        method,
        path,
        authorization: header(),
        range: header(),
        if_range: header(),
        if_none_match: header(),
        origin: Some("https://cache.example.org"),
    };
    let is_head = method == "HEAD";
    let visit = || match plan(&request) {
        RequestPlan::Visit(visit) => Some(visit),
        RequestPlan::Home => {
            assert_eq!(path, "/");
            None
        }
        RequestPlan::Answer(answer) => {
            assert!(matches!(answer.status, 200 | 404 | 405), "{answer:?}");
            assert!(answer.status != 200 || path == "/_dormer/health");
            None
        }
    };
    let Some(public) = visit() else { return };
    assert!(is_head || method == "GET");
    let cache = public.cache().clone();
    let decoded = decode_path(path).expect("a path that names a cache is an address");
    let state = |is_public| CacheState {
        version: CacheState::VERSION,
        cache: cache.clone(),
        public: is_public,
        store_dir: "/nix/store".to_owned(),
        priority: 41,
        public_keys: Vec::new(),
        object_count: 0,
        file_bytes: 0,
        published_at: 0,
        revoked: Vec::new(),
    };
    let Some(private) = visit() else { return };
    match private.admit(Some(&state(false)), None, 0) {
        Admission::Answer(answer) => assert_eq!(answer, Answer::not_found(is_head)),
        Admission::Read(_) => panic!("a private cache is read without a token"),
    }
    let read = match public.admit(Some(&state(true)), None, 0) {
        Admission::Answer(page) => {
            assert_eq!((page.status, decoded.rsplit('/').next()), (200, Some(cache.as_str())));
            return;
        }
        Admission::Read(read) => read,
    };
    let (name, spelled) = (format!("/{}", read.key()), decoded.contains("/debuginfo/"));
    assert!(name == decoded || (spelled && name == format!("{decoded}.debug")), "{decoded}: two spellings");
    assert_eq!(EdgeKey::parse(&name[1..]).ok().as_ref(), Some(read.key()));
    assert_eq!(read.respond(None).status, 404);
    let answer = read.respond(Some(&ObjectMeta { size: SIZE, etag: Some("\"x\"".to_owned()) }));
    match &answer.body {
        Body::Object(range) => {
            assert!(range.start < range.end && range.end <= SIZE && !is_head);
            assert_eq!(answer.status, if *range == (0..SIZE) && read.part().is_none() { 200 } else { 206 });
            let length = (range.end - range.start).to_string();
            assert!(answer.headers.contains(&("content-length", length)));
        }
        Body::Empty => assert!(is_head || answer.status == 304),
        Body::Text(text) => assert!(answer.status == 416 && text.is_empty()),
    }
}

/// `Authorization` and the token in it: a token that was taken apart signs the text that it was.
pub fn fuzz_authorization(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(token) = presented_token(text) else { return };
    assert!(!token.is_empty());
    let Some(signed) = SignedToken::parse(&token) else { return };
    assert!(token.starts_with(&signed.message) && token.as_bytes()[signed.message.len()] == b'.');
    if let Some(claims) = signed.verified_claims(&TokenBounds::default()) {
        let json = serde_json::to_vec(&claims).expect("claims hold nothing that JSON cannot");
        assert_eq!(TokenClaims::parse(&json).expect("what we wrote, we read"), claims);
    }
}

/// The documents that the publisher writes: what was read is written so that it reads the same.
pub fn fuzz_documents(data: &[u8]) {
    if let Ok(state) = CacheState::parse(data) {
        assert_eq!(CacheState::parse(&state.to_json()).expect("what we wrote, we read"), state);
    }
    if let Ok(catalog) = Catalog::parse(data) {
        assert_eq!(Catalog::parse(&catalog.to_json()).expect("what we wrote, we read"), catalog);
    }
}
