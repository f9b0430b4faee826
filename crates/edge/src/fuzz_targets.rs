//! One checked property per parser of foreign bytes: a plain function that panics when the property
//! fails.
//!
//! Tests run them over `fuzz/corpus/edge_*` and mutations of it; a fuzzer can run them for longer
//! (`fuzz/README.md`).

use dormer_api::{TokenBounds, TokenClaims, presented_token};

use crate::{
    Admission, Answer, Body, CacheState, Catalog, EdgeKey, LabMark, ObjectMeta, PageRead, PageStep, Request,
    RequestPlan, SignedToken, decode_file_path, decode_path, plan,
};

/// Bytes of the object that is found.
const SIZE: u64 = 1_000;

/// A request: a line each for method, path and query, `Authorization`, `Range`, `If-Range` and
/// `If-None-Match`. A request outside of the protocol reads nothing. Without a token, a private
/// cache looks like none. Parts lie within the object, and lengths are those of the parts.
pub fn fuzz_request(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let mut next = || lines.next();
    let (method, address) = (next().unwrap_or_default(), next().unwrap_or_default());
    let (path, query) = address.split_once('?').unwrap_or((address, ""));
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
        query,
        authorization: header(),
        range: header(),
        if_range: header(),
        if_none_match: header(),
        origin: Some("https://cache.example.org"),
        knows_origin: true,
        shows_pages: true,
    };
    let is_head = method == "HEAD";
    let visit = || match plan(&request) {
        RequestPlan::Visit(visit) => Some(visit),
        RequestPlan::Home(home) => {
            assert_eq!((path, home.respond(None).status), ("/", 200));
            None
        }
        RequestPlan::Answer(answer) => {
            assert!(matches!(answer.status, 200 | 308 | 404 | 405), "{answer:?}");
            assert!(answer.status != 200 || path.starts_with("/_dormer/"));
            assert!(answer.status != 308 || !path[1..].contains('/'));
            None
        }
    };
    let Some(public) = visit() else { return };
    assert!(is_head || method == "GET");
    let cache = public.cache().clone();
    let Some(private) = visit() else { return };
    match private.admit(Some(&state(&cache, false)), None, 0) {
        Admission::Answer(answer) => assert_eq!(answer.status, 404),
        Admission::Read(_) | Admission::Page(_) => panic!("a private cache is read without a token"),
    }
    let read = match public.admit(Some(&state(&cache, true)), None, 0) {
        Admission::Answer(page) => {
            assert!(matches!(page.status, 200 | 303) && !has_outside_link(&page), "{page:?}");
            return;
        }
        Admission::Page(page) => {
            let narinfo = narinfo_of(&page);
            return check_page(*page, [narinfo.as_bytes(), data]);
        }
        Admission::Read(read) => read,
    };
    let decoded = decode_path(path).expect("a path that names an object is an address");
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

/// Whether an answer leads to another host.
fn has_outside_link(answer: &Answer) -> bool {
    let mut locations = answer.headers.iter().filter(|(name, _)| *name == "location");
    locations.any(|(_, location)| !location.starts_with("../"))
}

/// The narinfo of the path whose page is asked for.
fn narinfo_of(page: &PageRead) -> String {
    let EdgeKey::Narinfo(_, hash) = page.read().key() else { panic!("{page:?} begins with another object") };
    let (nar, tag) = ("0".repeat(52), "0".repeat(26));
    format!(
        "StorePath: /nix/store/{hash}-x\nURL: nar/{nar}-{tag}.nar.zst\nCompression: zstd\n\
         NarHash: sha256:{nar}\nNarSize: 8\nReferences: {hash}-x\nDeriver: {hash}-x.drv\n"
    )
}

/// A page about a path, made of these documents: no more of them are read, and the page is short
/// and leads to no other host.
fn check_page(page: PageRead, documents: [&[u8]; 2]) {
    let mut step = PageStep::Read(Box::new(page));
    for document in documents {
        let PageStep::Read(mut page) = step else { break };
        page.feed(document);
        let Ok(next) = page.finish(true) else { return };
        step = next;
    }
    let PageStep::Answer(answer) = step else { panic!("{step:?} after two documents") };
    assert!(matches!(answer.status, 200 | 303 | 404) && !has_outside_link(&answer), "{answer:?}");
    if let Body::Text(html) = &answer.body {
        assert!(html.len() <= dormer_pages::PAGE_BYTES_MAX, "{} bytes", html.len());
    }
}

/// What is published about a path, as foreign bytes: a narinfo, and behind an empty line a listing
/// or a log.
pub fn fuzz_page(data: &[u8]) {
    const HASH: &str = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5";
    let (narinfo, other) = match data.windows(2).position(|two| two == b"\n\n") {
        Some(place) => (&data[..=place], &data[place + 2..]),
        None => (data, &[][..]),
    };
    for rest in ["", "/log", "/files/", "/files/bin/x"] {
        let path = format!("/main/{HASH}{rest}");
        let request = Request { method: "GET", path: &path, shows_pages: true, ..Request::default() };
        let RequestPlan::Visit(visit) = plan(&request) else { panic!("{path} is no page") };
        let state = state(visit.cache(), true);
        match visit.admit(Some(&state), None, 0) {
            Admission::Page(page) => check_page(*page, [narinfo, other]),
            other => panic!("{path}: {other:?}"),
        }
    }
}

fn state(cache: &dormer_api::CacheName, public: bool) -> CacheState {
    CacheState {
        version: CacheState::VERSION,
        cache: cache.clone(),
        public,
        store_dir: "/nix/store".to_owned(),
        priority: 41,
        public_keys: Vec::new(),
        object_count: 0,
        file_bytes: 0,
        published_at: 0,
        revoked: Vec::new(),
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
    if let Ok(mark) = LabMark::parse(data) {
        assert_eq!(LabMark::parse(&mark.to_json()).expect("what we wrote, we read"), mark);
    }
    if let Ok(catalog) = Catalog::parse(data) {
        assert_eq!(Catalog::parse(&catalog.to_json()).expect("what we wrote, we read"), catalog);
    }
}
