//! Pages over published documents, with a folder in memory in place of a host.

use std::collections::BTreeMap;

use dormer_api::{CacheName, TokenClaims};
use dormer_nix::{StoreDir, nix32};
use dormer_pages::{PAGE_BYTES_MAX, PAGE_HEADERS};

use crate::answer::{Answer, Body};
use crate::error::{Error, Result};
use crate::page::{LOG_PAGE_BYTES_MAX, PageStep, hash_in, is_plain_origin};
use crate::rules::{Admission, Request, RequestPlan, plan};
use crate::state::{CacheState, Catalog};

const HASH: &str = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5";
const NAR_HASH: &str = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
const NOW: i64 = 1_800_000_000;

const LISTING: &str = r#"{"version":1,"root":{"type":"directory","entries":{
    "<script>alert(1)</script>":{"type":"symlink","target":"javascript:alert(1)"},
    "bin":{"type":"directory","entries":{"a b":{"type":"regular","size":17,"executable":true,"narOffset":400}}}}}}"#;

fn state(cache: &str, public: bool) -> CacheState {
    CacheState {
        version: 1,
        cache: cache.parse().unwrap(),
        public,
        store_dir: "/nix/store".to_owned(),
        priority: 41,
        public_keys: vec!["main-1:AAAA".to_owned()],
        object_count: 1_234,
        file_bytes: 3 << 20,
        published_at: NOW - 7_200,
        revoked: vec![],
    }
}

fn narinfo(more: &str) -> String {
    let nar = format!("nar/{NAR_HASH}-{}.nar.zst", nix32::encode(&[7; 16]));
    format!(
        "StorePath: /nix/store/{HASH}-hello-2.12\nURL: {nar}\nCompression: zstd\nFileSize: 2048\n\
         NarHash: sha256:{NAR_HASH}\nNarSize: 4096\n{more}"
    )
}

fn full() -> String {
    let other = HASH.replace('1', "2");
    narinfo(&format!(
        "References: {HASH}-hello-2.12 {other}-glibc-2.40\nDeriver: {HASH}-hello.drv\nSystem: <i>x</i>\n\
         Sig: main-1:BBBB\nSig: <b>other</b>:CCCC\n"
    ))
}

/// What a bucket holds, and the names that were looked for.
#[derive(Default)]
struct Bucket {
    objects: BTreeMap<String, Vec<u8>>,
    reads: Vec<String>,
}

impl Bucket {
    fn with(objects: &[(&str, &str)]) -> Self {
        let objects = objects.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()));
        Self { objects: objects.collect(), reads: Vec::new() }
    }

    fn full() -> Self {
        let log = format!("main/log/{HASH}-hello.drv");
        let (narinfo, listing) = (format!("main/{HASH}.narinfo"), format!("main/{HASH}.ls"));
        Self::with(&[
            (&narinfo, &full()),
            (&listing, LISTING),
            (&log, "\u{1b}[31merror\u{1b}[0m: <script>alert(1)</script>\n"),
        ])
    }

    /// As a host answers, and in pieces as a stream comes.
    fn answer(
        &mut self,
        request: &Request<'_>,
        state: Option<&CacheState>,
        claims: Option<&TokenClaims>,
    ) -> Result<Answer> {
        let visit = match plan(request) {
            RequestPlan::Answer(answer) => return Ok(answer),
            RequestPlan::Home(home) => return Ok(home.respond(None)),
            RequestPlan::Visit(visit) => visit,
        };
        let mut page = match visit.admit(state, claims, NOW) {
            Admission::Answer(answer) => return Ok(answer),
            Admission::Page(page) => page,
            Admission::Read(read) => panic!("{read:?} is no page"),
        };
        loop {
            let name = page.read().key().to_string();
            let found = self.objects.get(&name);
            if let Some(bytes) = found {
                bytes.chunks(50).any(|piece| page.feed(piece));
            }
            self.reads.push(name);
            match page.finish(found.is_some())? {
                PageStep::Answer(answer) => return Ok(answer),
                PageStep::Read(next) => page = next,
            }
        }
    }

    fn get(&mut self, path: &str) -> Answer {
        self.answer(&request(path), Some(&state("main", true)), None).unwrap()
    }
}

fn request(path: &str) -> Request<'_> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    Request {
        method: "GET",
        path,
        query,
        origin: Some("https://c.org"),
        knows_origin: true,
        shows_pages: true,
        ..Request::default()
    }
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
}

fn html(answer: &Answer) -> &str {
    match &answer.body {
        Body::Text(html) => html,
        other => panic!("{other:?} is no page"),
    }
}

#[test]
fn nobody_keeps_a_page_with_the_host_that_a_request_named() {
    for page in ["/main/", &format!("/main/{HASH}")] {
        for (knows_origin, kept) in [(true, "public, max-age=60"), (false, "no-store")] {
            let asked = Request { knows_origin, ..request(page) };
            let mut bucket = Bucket::full();
            let answer = bucket.answer(&asked, Some(&state("main", true)), None).unwrap();
            assert!(html(&answer).contains("https://c.org/main"), "{page}");
            assert_eq!(
                header(&answer, "cache-control"),
                Some(kept),
                "{page}: a client may have said the host"
            );
        }
    }
}

#[test]
fn only_what_is_a_host_is_shown_as_an_address() {
    for origin in ["https://cache.example.org", "http://127.0.0.1:8080", "http://[::1]:8080"] {
        assert!(is_plain_origin(origin), "{origin}");
    }
    for origin in ["", "https://", "https://a b", "https://a/b", "https://<b>", "ftp://a", "https://a\nb"] {
        assert!(!is_plain_origin(origin), "{origin}");
    }
    let long = format!("https://{}", "a".repeat(256));
    assert!(!is_plain_origin(&long));
    let unknown = Request { origin: Some("https://<b>"), ..request("/main/") };
    let page = Bucket::default().answer(&unknown, Some(&state("main", true)), None).unwrap();
    assert!(html(&page).contains("extra-substituters = https://this-host/main\n"));
}

#[test]
fn the_hash_of_a_path_is_found_in_whatever_names_the_path() {
    let store_dir: StoreDir = "/nix/store".parse().unwrap();
    let hash = Some(HASH.parse().unwrap());
    for text in [
        HASH.to_owned(),
        format!("{HASH}-hello"),
        format!("/nix/store/{HASH}-hello"),
        format!("/nix/store/{HASH}-hello/bin/hello"),
    ] {
        assert_eq!(hash_in(&text, &store_dir), hash, "{text}");
    }
    for text in ["", "hello", "/nix/store/", "/gnu/store/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-x", "../x"] {
        assert_eq!(hash_in(text, &store_dir), None, "{text}");
    }
}

#[test]
fn the_home_page_names_public_caches_in_parts() {
    let names: Vec<CacheName> = (0..120).map(|number| format!("c{number:03}").parse().unwrap()).collect();
    let catalog = Catalog::new(names);
    let home = |path: &str| match plan(&request(path)) {
        RequestPlan::Home(home) => home.respond(Some(&catalog)),
        other => panic!("{other:?}"),
    };
    let first = home("/");
    assert!(html(&first).contains("href=\"./c000/\"") && !html(&first).contains("c050"));
    assert!(html(&first).contains("href=\"?after=c049\""));
    let last = home("/?after=c099");
    assert!(html(&last).contains("c100") && html(&last).contains("c119") && !html(&last).contains("?after="));
    let none = Bucket::default().answer(&request("/"), None, None).unwrap();
    assert!(html(&none).contains("no public cache"));
}

#[test]
fn the_page_of_a_cache_needs_nothing_but_its_state() {
    let mut bucket = Bucket::full();
    let page = bucket.get("/main/");
    for text in [
        "extra-substituters = https://c.org/main\nextra-trusted-public-keys = main-1:AAAA\n",
        "1,234",
        "3.0 MiB",
        "2 hours ago",
        "hash or store path",
    ] {
        assert!(html(&page).contains(text), "{text} is not in {}", html(&page));
    }
    assert!(!html(&page).contains("Sign in") && !html(&page).contains("dormer push"));
    assert_eq!(header(&page, "cache-control"), Some("public, max-age=60"));
    for (name, value) in PAGE_HEADERS {
        assert_eq!(header(&page, name), Some(value), "{name}");
    }
    let leads = bucket.get("/main");
    assert_eq!((leads.status, header(&leads, "location")), (308, Some("main/")));
    assert_eq!(bucket.reads, Vec::<String>::new());
}

#[test]
fn a_path_is_looked_up_by_its_hash() {
    let mut bucket = Bucket::default();
    let found = bucket.get(&format!("/main/paths?q=+%2Fnix%2Fstore%2F{HASH}-hello%2Fbin"));
    assert_eq!((found.status, header(&found, "location")), (303, Some(format!("../main/{HASH}").as_str())));
    let page = bucket.get("/main/paths?q=%3Cscript%3E");
    assert_eq!(page.status, 200);
    assert!(html(&page).contains("&lt;script&gt;") && html(&page).contains("This is no hash"));
    for query in [
        "q=%zz",
        "q=%ff",
        "from=x",
        "after=../x",
        &format!("q={}", "x".repeat(301)),
        &format!("at={}", "x".repeat(301)),
        &"&".repeat(2_001),
    ] {
        assert_eq!(bucket.get(&format!("/main/paths?{query}")).status, 404, "{query}");
    }
    assert_eq!(bucket.reads, Vec::<String>::new());
}

#[test]
fn the_page_of_a_path_shows_what_the_narinfo_says() {
    let mut bucket = Bucket::full();
    let page = bucket.get(&format!("/main/{HASH}"));
    assert_eq!(page.status, 200);
    let other = HASH.replace('1', "2");
    for text in [
        "4.0 KiB",
        "2.0 KiB",
        "&lt;i&gt;x&lt;/i&gt;",
        "&lt;b&gt;other&lt;/b&gt;:CCCC",
        "Signed here with",
        "1 other path",
        &format!("href=\"../main/{other}\""),
        &format!("nix copy --from https://c.org/main /nix/store/{HASH}-hello-2.12"),
        &format!("href=\"../main/nar/{NAR_HASH}-"),
        &format!("href=\"../main/{HASH}/log\""),
    ] {
        assert!(html(&page).contains(text), "{text} is not in {}", html(&page));
    }
    for text in ["main-1:BBBB", "Closure", "How long it stays", "<b>", "Pin"] {
        assert!(!html(&page).contains(text), "{text} is in {}", html(&page));
    }
    assert_eq!(bucket.reads, [format!("main/{HASH}.narinfo")]);
    let head = Request { method: "HEAD", ..request("/main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5") };
    let head = bucket.answer(&head, Some(&state("main", true)), None).unwrap();
    assert_eq!((head.status, head.body.clone()), (200, Body::Empty));
    assert_eq!(header(&head, "content-length"), Some(html(&page).len().to_string().as_str()));
}

#[test]
fn the_files_of_a_path_are_browsed_and_come_out_of_the_nar() {
    let mut bucket = Bucket::full();
    let at = |rest: &str| format!("/main/{HASH}/files{rest}");
    let root = bucket.get(&at("/"));
    assert_eq!(root.status, 200);
    assert!(html(&root).contains("&lt;script&gt;alert(1)") && html(&root).contains("href=\"bin/\""));
    assert!(!html(&root).contains("<script>") && !html(&root).contains("href=\"javascript"));
    assert_eq!(bucket.reads, [format!("main/{HASH}.narinfo"), format!("main/{HASH}.ls")]);
    let file = bucket.get(&at("/bin/a%20b"));
    for text in [
        "17 bytes",
        ", a program",
        &format!("nix store cat --store https://c.org/main '/nix/store/{HASH}-hello-2.12/bin/a b'"),
        "The NAR with it",
    ] {
        assert!(html(&file).contains(text), "{text} is not in {}", html(&file));
    }
    for (path, location) in [
        (at(""), format!("../../main/{HASH}/files/")),
        (at("/bin"), format!("../../../main/{HASH}/files/bin/")),
        (at("/bin/a%20b/"), format!("../../../../../main/{HASH}/files/bin/a%20b")),
    ] {
        let leads = bucket.get(&path);
        assert_eq!((leads.status, header(&leads, "location")), (303, Some(location.as_str())), "{path}");
    }
    assert!(html(&bucket.get(&at("/?from=1"))).contains("href=\"bin/\""));
    assert!(html(&bucket.get(&at("/?at=bin"))).contains("href=\"bin/\""));
    assert!(!html(&bucket.get(&at("/?at=bio"))).contains("href=\"bin/\""));
    assert_eq!(bucket.get(&at("/bin/none")).status, 404);
    bucket.objects.remove(&format!("main/{HASH}.ls"));
    let unlisted = bucket.get(&at("/"));
    assert_eq!((unlisted.status, header(&unlisted, "cache-control")), (404, Some("private, no-store")));
    assert!(html(&unlisted).contains("not listed here"));
}

#[test]
fn a_log_is_shown_and_a_long_one_is_the_text_itself() {
    let mut bucket = Bucket::full();
    let path = format!("/main/{HASH}/log");
    let page = bucket.get(&path);
    assert!(
        html(&page).contains("<span class=\"t1\">error</span>: &lt;script&gt;alert(1)"),
        "{}",
        html(&page)
    );
    let log = format!("main/log/{HASH}-hello.drv");
    assert_eq!(bucket.reads, [format!("main/{HASH}.narinfo"), log.clone()]);
    bucket.objects.insert(log.clone(), vec![b'x'; LOG_PAGE_BYTES_MAX]);
    let longest = bucket.get(&path);
    assert!(longest.status == 200 && html(&longest).len() <= PAGE_BYTES_MAX);
    bucket.objects.insert(log.clone(), vec![b'x'; LOG_PAGE_BYTES_MAX + 1]);
    let leads = bucket.get(&path);
    let location = format!("../../{log}");
    assert_eq!((leads.status, header(&leads, "location")), (303, Some(location.as_str())));
    bucket.objects.remove(&log);
    assert_eq!(bucket.get(&path).status, 404);
    let unbuilt = format!("main/{HASH}.narinfo");
    bucket.objects.insert(unbuilt, narinfo("").into_bytes());
    assert!(html(&bucket.get(&path)).contains("No build log"));
}

#[test]
fn a_page_of_a_private_cache_looks_like_one_of_no_cache() {
    let mut bucket = Bucket::full();
    let private = state("main", false);
    let claims = r#"{"https://jwt.attic.rs/v1":{"caches":{"main":{"r":1}}}}"#;
    let claims = TokenClaims::parse(claims.as_bytes()).unwrap();
    let of_path = ["", "/references", "/references?from=1", "/log", "/files/bin/"];
    let of_path = of_path.map(|rest| format!("{HASH}{rest}"));
    for rest in ["", "paths", "paths?q=x"].into_iter().chain(of_path.iter().map(String::as_str)) {
        let (path, reads) = (format!("/main/{rest}"), bucket.reads.len());
        let absent = bucket.answer(&request(&path), None, None).unwrap();
        let hidden = bucket.answer(&request(&path), Some(&private), None).unwrap();
        let other = bucket.answer(&request(&path), Some(&state("other", true)), None).unwrap();
        assert_eq!((absent.status, bucket.reads.len()), (404, reads), "{path}");
        assert_eq!((&hidden, &other), (&absent, &absent), "{path}");
        assert!(html(&absent).contains("Nothing here"));
        let shown = bucket.answer(&request(&path), Some(&private), Some(&claims)).unwrap();
        assert_eq!((shown.status, header(&shown, "vary")), (200, Some("authorization")), "{path}");
        assert_eq!(header(&shown, "cache-control"), Some("private, max-age=60"), "{path}");
        // No browser sends a token to the addresses of the protocol.
        assert!(!html(&shown).contains(".narinfo\"") && !html(&shown).contains(".nar.zst"), "{path}");
    }
    // A path that is not there looks the same to those that may read the cache.
    bucket.objects.clear();
    let path = format!("/main/{HASH}");
    let absent = bucket.answer(&request(&path), None, None).unwrap();
    assert_eq!(bucket.get(&path), absent);
}

#[test]
fn a_narinfo_that_is_not_that_of_its_path_is_an_error_and_never_a_page() {
    let name = format!("main/{HASH}.narinfo");
    let other = full().replace(&format!("store/{HASH}"), &format!("store/{}", HASH.replace('1', "2")));
    let elsewhere = full().replace("URL: nar/", "URL: https://evil.example/nar/");
    for text in ["", "x", &full()[..100], &other, &elsewhere, &full().repeat(2)] {
        let mut bucket = Bucket::with(&[(&name, text)]);
        for rest in ["", "/log", "/files/"] {
            let path = format!("/main/{HASH}{rest}");
            let made = bucket.answer(&request(&path), Some(&state("main", true)), None);
            assert!(matches!(made, Err(Error::Narinfo { .. })), "{text}: {made:?}");
        }
    }
}

#[test]
fn style_and_script_are_there_and_without_pages_none_of_them_is() {
    for asset in ["style.css", "script.js", "icon.svg"] {
        let path = format!("/_dormer/pages/{asset}");
        let file = Bucket::default().answer(&request(&path), None, None).unwrap();
        assert_eq!((file.status, header(&file, "cache-control")), (200, Some("public, max-age=60")));
        assert_eq!(header(&file, "content-security-policy"), Some("default-src 'none'"));
    }
    let without = |path: &str| {
        let asked = Request { shows_pages: false, ..request(path) };
        Bucket::full().answer(&asked, Some(&state("main", true)), None).unwrap()
    };
    let home = without("/");
    assert_eq!((home.status, header(&home, "content-type")), (200, Some("text/plain; charset=utf-8")));
    for path in [
        "/main",
        "/main/",
        "/main/paths",
        "/_dormer/pages/style.css",
        "/main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5",
    ] {
        assert_eq!(without(path), Answer::not_found(false), "{path}");
    }
}
