//! One table of attacks for all hosts of the published layout: what must hold of the Worker must
//! hold of `dormer edge serve`.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Published;
use super::layout::{DOCUMENTS, HOSTILE};
use crate::http::{self, Reply};

/// A host of a layout with the public cache `main` and the private caches `secret` and `other`, in
/// which the token `stolen` is revoked.
pub struct Attacked<'a> {
    /// Host and port.
    pub address: &'a str,
    /// What it serves.
    pub published: &'a Published,
    /// Signs claims as the host believes them.
    pub sign: &'a dyn Fn(&Value) -> String,
    /// Tokens with believable claims that are signed in ways that the host must not believe.
    pub forged: Vec<String>,
    /// Names of what the host has read since the last call, if that can be told: checks that
    /// the host reads nothing without need.
    pub reads: &'a dyn Fn() -> Option<Vec<String>>,
    /// Whether the host knows its own address. If not, its pages show what the client says, and no
    /// cache may keep them.
    pub knows_address: bool,
}

impl std::fmt::Debug for Attacked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "attacked {}", self.address)
    }
}

/// Claims that allow to pull these caches.
pub(crate) fn pull(caches: &str, expires: i64) -> Value {
    json!({ "exp": expires, "https://jwt.attic.rs/v1": { "caches": { caches: { "r": 1 } } } })
}

/// Runs the whole table. Panics where an attack succeeds.
pub fn attack(host: &Attacked<'_>) {
    let reads = || (host.reads)().unwrap_or_default();
    reads();
    methods(host);
    assert_eq!(reads(), Vec::<String>::new(), "something was read for a method that is none");
    paths(host);
    // What stands before a host may have made another path of it, such as a slash of a backslash;
    // then the state document says no.
    let mut read = reads();
    read.retain(|name| !name.ends_with("/dormer-state.json"));
    assert_eq!(read, Vec::<String>::new(), "something was read for a path that is none");
    spellings(host);
    pages(host);
    ranges(host);
    tokens(host);
    headers(host);
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    i64::try_from(now.as_secs()).expect("it is before the end of time")
}

fn get(host: &Attacked<'_>, path: &str, headers: &[(&str, &str)]) -> Reply {
    http::ask(host.address, "GET", path, headers, b"")
}

/// What a client can tell one "not here" from another by.
fn told(reply: &Reply) -> (u16, Vec<(String, String)>, Vec<u8>) {
    let mut headers = reply.headers.clone();
    headers.retain(|(name, _)| name != "date");
    headers.sort();
    (reply.status, headers, reply.body.clone())
}

fn methods(host: &Attacked<'_>) {
    let nar = format!("/main/{}", host.published.some_nar("main"));
    for method in ["PUT", "POST", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "MKCOL", "COPY"] {
        for path in ["/", "/main/nix-cache-info", &nar, "/_api/v1/upload-path", "/secret/nix-cache-info"] {
            let reply = http::ask(host.address, method, path, &[], b"x");
            assert!(matches!(reply.status, 405 | 501 | 400), "{method} {path}: {reply:?}");
            if reply.status == 405 {
                assert_eq!(reply.header("allow"), Some("GET, HEAD"), "{method} {path}");
            }
        }
    }
    for (name, path) in host.published.files() {
        let before = path.metadata().expect("it is there").len();
        let reply = http::ask(host.address, "PUT", &format!("/{name}"), &[], b"owned");
        assert_eq!(reply.status, 405, "{name}");
        assert_eq!(path.metadata().expect("it is still there").len(), before);
    }
}

fn paths(host: &Attacked<'_>) {
    let missing = told(&get(host, "/main/no-such-document", &[]));
    assert_eq!(missing.0, 404);
    for header in [("cache-control", "private, no-store"), ("vary", "authorization")] {
        let has = |(name, value): &(String, String)| name == header.0 && value.eq_ignore_ascii_case(header.1);
        assert!(missing.1.iter().any(has), "{header:?} is not in {missing:?}");
    }
    for path in [
        "//main/nix-cache-info",
        "/main//nix-cache-info",
        "/main/nix-cache-info/",
        "/main/%6eix-cache-info",
        "/m%61in/nix-cache-info",
        "/main%2fnix-cache-info",
        "/main%252fnix-cache-info",
        "/main/../secret/dormer-state.json",
        "/main/%2e%2e/secret/dormer-state.json",
        "/main/%252e%252e/secret/dormer-state.json",
        "/main/..%2fsecret%2fdormer-state.json",
        "/main/nar/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/main/nar/../../../../etc/passwd",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "/main/..\\secret\\nix-cache-info",
        "/main/nix-cache-info%00.narinfo",
        "/main/dormer-state.json",
        "/secret/dormer-state.json",
        "/dormer-caches.json",
        "/dormer-caches.json?x",
        "/dormer-lab.json",
        "/main/nar/",
        "/main/nar/secret.nar.zst",
        "/main/1K8C1HIYSZ6AAKS2MPFC5K7XBBJPW5Z5.narinfo",
        "/_dormer/",
        "/_dormer/metrics",
        "/_api/v1/cache-config/main",
        "/main;x/nix-cache-info",
        "/main/nix-cache-info.",
        "/.git/config",
    ] {
        assert_eq!(told(&get(host, path, &[])), missing, "{path}");
    }
}

/// Nix 2.34 escapes what earlier versions send as it is.
fn spellings(host: &Attacked<'_>) {
    let types = ["text/plain; charset=utf-8", "application/json", "application/json"];
    for (name, content_type) in DOCUMENTS.into_iter().zip(types) {
        let mut escaped = name.to_owned();
        for (plain, escape) in [("+", "%2B"), ("=", "%3d"), (":", "%3A"), ("!", "%21")] {
            escaped = escaped.replace(plain, escape);
        }
        // Clients also ask for debug info without `.debug`.
        for spelled in [name, &escaped, name.strip_suffix(".debug").unwrap_or(name)] {
            let reply = get(host, &format!("/main/{spelled}"), &[]);
            assert_eq!((reply.status, reply.text().as_str()), (200, "{\"of\": \"main\"}"), "{spelled}");
            assert_eq!(reply.header("content-type"), Some(content_type), "{spelled}");
            assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{spelled}");
        }
        for bad in [escaped.replace("%2B", "%252B"), escaped.replace('.', "%2e"), escaped.replace('/', "%2F")]
        {
            if bad != escaped {
                assert_eq!(get(host, &format!("/main/{bad}"), &[]).status, 404, "{bad}");
            }
        }
    }
}

/// Pages about a cache, below it.
fn page_addresses() -> [String; 7] {
    let of_path = |rest: &str| format!("{HOSTILE}{rest}");
    [
        String::new(),
        "paths".to_owned(),
        "paths?q=%3Cscript%3Ealert%281%29%3C%2Fscript%3E".to_owned(),
        of_path(""),
        of_path("/files/"),
        of_path("/files/%3Cscript%3Ealert%281%29"),
        of_path("/log"),
    ]
}

/// Whatever the documents hold, pages are text under the one policy, and cost little.
fn pages(host: &Attacked<'_>) {
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                  connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
    let reads = || (host.reads)().unwrap_or_default();
    for rest in page_addresses() {
        reads();
        let page = get(host, &format!("/main/{rest}"), &[]);
        let read = reads();
        assert!(read.len() <= 3, "{rest} reads {read:?}");
        let html = page.text();
        for bad in ["<script>alert", "<img src=x", "href=\"javascript:", "\u{1b}"] {
            assert!(!html.contains(bad), "{rest}: {bad} in {html}");
        }
        assert_eq!((page.status, page.complete), (200, true), "{rest}: {page:?}");
        for (name, value) in [
            ("content-security-policy", policy),
            ("content-type", "text/html; charset=utf-8"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "same-origin"),
            ("cache-control", if host.knows_address { "public, max-age=60" } else { "no-store" }),
        ] {
            assert_eq!(page.header(name), Some(value), "{rest}: {page:?}");
        }
    }
    let listed = get(host, &format!("/main/{HOSTILE}/files/"), &[]).text();
    assert!(
        listed.contains("&lt;script&gt;alert(1)") && listed.contains("href=\"javascript%3Aalert"),
        "{listed}"
    );
    // The same for every name, and nothing is read for it.
    reads();
    for cache in ["main", "secret", "absent"] {
        let leads = get(host, &format!("/{cache}"), &[]);
        assert_eq!((leads.status, leads.header("location")), (308, Some(format!("{cache}/").as_str())));
    }
    let found = get(host, &format!("/main/paths?q=/nix/store/{HOSTILE}-x"), &[]);
    assert_eq!((found.status, found.header("location")), (303, Some(format!("../main/{HOSTILE}").as_str())));
    let style = get(host, "/_dormer/pages/style.css", &[]);
    assert_eq!((style.status, style.header("content-type")), (200, Some("text/css; charset=utf-8")));
    assert!((host.reads)().is_none_or(|read| read.is_empty()), "something was read for these");
}

fn ranges(host: &Attacked<'_>) {
    let name = host.published.some_nar("main");
    let path = format!("/main/{name}");
    let bytes = std::fs::read(host.published.path().join("main").join(&name)).expect("it is there");
    let size = bytes.len();
    let whole = get(host, &path, &[]);
    assert_eq!((whole.status, whole.body == bytes, whole.complete), (200, true, true), "{whole:?}");
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert_eq!(whole.header("content-length"), Some(size.to_string().as_str()));
    let etag = whole.header("etag").expect("a NAR has a tag").to_owned();
    // Twice, for what the first may have left in a cache.
    for _ in 0..2 {
        for (range, wanted) in [
            ("bytes=0-".to_owned(), 0..size),
            ("bytes=0-0".to_owned(), 0..1),
            (format!("bytes={}-", size - 1), size - 1..size),
            (format!("bytes=7-{}", size * 2), 7..size),
            ("bytes=5-99999999999999999999999999".to_owned(), 5..size),
            ("bytes=-3".to_owned(), size - 3..size),
            (format!("bytes=-{}", size * 2), 0..size),
        ] {
            let part = get(host, &path, &[("Range", &range), ("If-Range", &etag)]);
            assert_eq!((part.status, part.complete), (206, true), "{range}: {part:?}");
            assert_eq!(part.body, bytes[wanted.clone()], "{range}");
            let expected = format!("bytes {}-{}/{size}", wanted.start, wanted.end - 1);
            assert_eq!(part.header("content-range"), Some(expected.as_str()), "{range}");
        }
        for range in [
            "bytes=0-1,4-5".to_owned(),
            format!("bytes=0-0{}", ",2-3".repeat(500)),
            "bytes=5-4".to_owned(),
            "bytes=a-b".to_owned(),
            "bytes=-".to_owned(),
            "bytes".to_owned(),
            "lines=1-2".to_owned(),
            "bytes=+1-2".to_owned(),
        ] {
            let reply = get(host, &path, &[("Range", &range)]);
            assert_eq!((reply.status, reply.body == bytes), (200, true), "{range}");
        }
        for range in
            [format!("bytes={size}-"), "bytes=99999999999999999999999-".to_owned(), "bytes=-0".to_owned()]
        {
            let reply = get(host, &path, &[("Range", &range)]);
            assert_eq!((reply.status, reply.body.len()), (416, 0), "{range}: {reply:?}");
            let whole = format!("bytes */{size}");
            assert_eq!(reply.header("content-range"), Some(whole.as_str()), "{range}: {reply:?}");
        }
        // Two of a header are one with two values.
        let twice = get(host, &path, &[("Range", "bytes=0-0"), ("Range", "bytes=2-3")]);
        assert_eq!((twice.status, twice.body == bytes), (200, true), "{twice:?}");
        let twice = [("Range", "bytes=1-"), ("If-Range", etag.as_str()), ("If-Range", "\"stale\"")];
        assert_eq!(get(host, &path, &twice).status, 200);
        for other in [("\"other\"", etag.as_str()), (etag.as_str(), "\"other\"")] {
            let known = get(host, &path, &[("If-None-Match", other.0), ("If-None-Match", other.1)]);
            assert_eq!((known.status, known.body.len()), (304, 0), "{known:?}");
        }
        let stale = get(host, &path, &[("Range", "bytes=1-"), ("If-Range", "\"stale\"")]);
        assert_eq!((stale.status, stale.body == bytes), (200, true));
        let known = get(host, &path, &[("If-None-Match", &etag)]);
        assert_eq!((known.status, known.body.len()), (304, 0), "{known:?}");
        let head = http::ask(host.address, "HEAD", &path, &[("Range", "bytes=1-2")], b"");
        assert_eq!(
            (head.status, head.header("content-length")),
            (200, Some(size.to_string().as_str())),
            "{head:?}"
        );
    }
    let absent = path.replace(".nar.zst", "x.nar.zst");
    assert_eq!(get(host, &absent, &[("Range", "bytes=0-")]).status, 404);
}

fn tokens(host: &Attacked<'_>) {
    let cache_info = "/secret/nix-cache-info";
    let narinfo = host.published.files().into_iter().find_map(|(name, _)| {
        (name.starts_with("secret/") && name.ends_with(".narinfo")).then(|| format!("/{name}"))
    });
    let narinfo = narinfo.expect("a path was published");
    let nar = format!("/secret/{}", host.published.some_nar("secret"));
    let absent = told(&get(host, "/absent/nix-cache-info", &[]));
    assert_eq!(absent.0, 404);
    let good = (host.sign)(&pull("secret", now() + 600));
    let bearer = |token: &str| format!("Bearer {token}");
    let basic = |token: &str| format!("Basic {}", STANDARD.encode(format!("any:{token}")));
    // First, readers with access ask, so that every memory is filled before the others ask.
    let [log, trace, debug_info] = DOCUMENTS.map(|name| format!("/secret/{name}"));
    let pages = page_addresses().map(|rest| format!("/secret/{rest}"));
    let objects = [cache_info, &narinfo, &nar, &log, &trace, &debug_info];
    for path in objects.into_iter().chain(pages.iter().map(String::as_str)) {
        for authorization in [bearer(&good), basic(&good)] {
            let reply = get(host, path, &[("Authorization", &authorization)]);
            assert_eq!(reply.status, 200, "{path}: {reply:?}");
            let control = reply.header("cache-control").unwrap_or_default();
            assert!(control.starts_with("private"), "{path} may be kept by anybody: {control}");
            let vary = reply.header("vary").unwrap_or_default().to_ascii_lowercase();
            assert!(vary.contains("authorization"), "{path} is kept for another token: {reply:?}");
        }
    }
    let mut bad = host.forged.clone();
    bad.extend([
        (host.sign)(&pull("secret", now() - 1)),
        (host.sign)(&pull("other", now() + 600)),
        (host.sign)(&json!({ "exp": now() + 600 })),
        (host.sign)(&json!({ "exp": now() + 600, "nbf": now() + 300, "https://jwt.attic.rs/v1": { "caches": { "*": { "r": 1 } } } })),
        (host.sign)(&json!({ "exp": now() + 600, "jti": "stolen", "https://jwt.attic.rs/v1": { "caches": { "*": { "r": 1 } } } })),
        (host.sign)(&json!({ "exp": now() + 600, "https://jwt.attic.rs/v1": { "caches": { "*": { "r": 1 }, "secret": { "w": 1 } } } })),
        format!("{good}x"),
        good[..good.len() - 4].to_owned(),
        good.replacen('.', "..", 1),
        good.rsplit_once('.').expect("a token has a signature").0.to_owned() + ".",
        String::from("x"),
        "a".repeat(20_000),
    ]);
    for path in objects.into_iter().chain(pages.iter().map(String::as_str)) {
        // Pages have an answer of their own, in which the way to the root is relative.
        let is_page = !objects.contains(&path);
        let absent = if is_page {
            told(&get(host, &path.replacen("secret", "absent", 1), &[]))
        } else {
            absent.clone()
        };
        assert_eq!(absent.0, 404, "{path}");
        assert_eq!(told(&get(host, path, &[])), absent, "{path} without a token");
        for token in &bad {
            // Pages take tokens from where objects do, so one form is enough for them.
            for authorization in [bearer(token), basic(token)].into_iter().skip(usize::from(is_page)) {
                let reply = get(host, path, &[("Authorization", &authorization)]);
                assert_eq!(told(&reply), absent, "{path} with {token}");
            }
        }
        // A private cache's parts, conditions and queries are no other way in.
        for more in [("Range", "bytes=0-1"), ("If-None-Match", "*"), ("X-Forwarded-Authorization", &good)] {
            assert_eq!(told(&get(host, path, &[more])), absent, "{path} with {more:?}");
        }
        let query = if path.contains('?') { '&' } else { '?' };
        assert_eq!(told(&get(host, &format!("{path}{query}token={good}"), &[])), absent);
        let cookie = format!("dormer={good}; __Host-dormer={good}");
        assert_eq!(told(&get(host, path, &[("Cookie", &cookie)])), absent, "{path} with a cookie");
    }
    // A NAR is there through its own cache only.
    let stranger = nar.replace("/secret/", "/main/");
    assert_eq!(get(host, &stranger, &[]).status, 404);
    let home = get(host, "/", &[]);
    assert!(home.text().contains("main") && !home.text().contains("secret"), "{home:?}");
}

fn headers(host: &Attacked<'_>) {
    let huge = "a".repeat(48 * 1024);
    for name in ["Authorization", "If-None-Match", "Range", "If-Range", "X-Anything", "Cookie"] {
        let reply = get(host, "/secret/nix-cache-info", &[(name, &huge)]);
        assert!(matches!(reply.status, 404 | 400 | 413 | 431), "{name}: {reply:?}");
        let reply = get(host, "/main/nix-cache-info", &[(name, &huge)]);
        assert!(matches!(reply.status, 200 | 400 | 413 | 431), "{name}: {reply:?}");
    }
    let many: Vec<(String, String)> = (0..60).map(|number| (format!("X-{number}"), "x".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(get(host, "/main/nix-cache-info", &many).status, 200);
    assert_eq!(get(host, "/_dormer/health", &[]).status, 200);
}
