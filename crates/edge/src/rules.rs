//! The request rules: from a request to what is read, and from what was found to the answer.
//!
//! Invariants
//! - GET and HEAD, nothing else: whatever the path, another method is 405 and reads nothing.
//! - Nothing of a cache is looked up before [`Visit::admit`]: there is no other way to an
//!   [`EdgeKey`].
//! - Every "not here" is the same answer, byte for byte: for a private cache, for a cache that does
//!   not exist, for a name that no cache can have, for a missing object. Nix then asks the next
//!   cache. Addresses of pages have such an answer of their own, for people.
//! - Lives of private objects are for the client alone (`private`), and hosts key their own caches
//!   by [`EdgeKey`], never by a request's address, so that a query or a header cannot make or find
//!   another entry.

use dormer_api::{CacheName, TokenClaims, presented_token};

use crate::answer::{Answer, Body};
use crate::caching::{AnswerKind, Visibility};
use crate::conditions::{self, Part};
use crate::layout::{EdgeKey, MISS_SECONDS};
use crate::page::{self, Home, PageRead, PageStep, PageVisit, Query};
use crate::route::Route;
use crate::state::CacheState;
use crate::token::may_read;

/// The parts of a request that decide its answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// `GET`, `HEAD`, …
    pub method: &'a str,
    /// The path as it came, not decoded, without the query: [`plan`] decodes it.
    pub path: &'a str,
    /// The query as it came, without its question mark. Only pages look at it.
    pub query: &'a str,
    /// Header `Authorization`.
    pub authorization: Option<&'a str>,
    /// Header `Range`.
    pub range: Option<&'a str>,
    /// Header `If-Range`.
    pub if_range: Option<&'a str>,
    /// Header `If-None-Match`.
    pub if_none_match: Option<&'a str>,
    /// Scheme and host of the request, as in `https://cache.example.org`, if known. Only pages show
    /// it.
    pub origin: Option<&'a str>,
    /// Whether `origin` is the host's own address, and not what a client says. Only then may caches
    /// keep pages that show it: a shared cache would give one client's word to all others.
    pub knows_origin: bool,
    /// Whether the host shows pages. If not, only `/` answers, with a line of text.
    pub shows_pages: bool,
}

/// The next step of a request, before anything is read.
#[derive(Debug)]
pub enum RequestPlan {
    /// Answer without reading anything.
    Answer(Answer),
    /// The page at `/`: [`Home::respond`] makes it of the catalogue, if the catalogue exists.
    Home(Home),
    /// A page or an object of a cache: the cache's state document decides.
    Visit(Box<Visit>),
}

/// Reads a request.
pub fn plan(request: &Request<'_>) -> RequestPlan {
    let is_head = match request.method {
        "GET" => false,
        "HEAD" => true,
        _ => {
            let refused = Answer::new(405, AnswerKind::Process, Visibility::Public);
            let refused = refused.text("text/plain", "read only\n".to_owned(), false);
            return RequestPlan::Answer(refused.with("allow", "GET, HEAD"));
        }
    };
    let owned = |text: Option<&str>| text.filter(|text| text.len() <= CONDITION_BYTES_MAX).map(str::to_owned);
    // An over-long tag is no tag of ours, so the client has another representation.
    let if_range = request.if_range.map(|text| if text.len() <= CONDITION_BYTES_MAX { text } else { "" });
    let not_found = || RequestPlan::Answer(Answer::not_found(is_head));
    let Some(route) = Route::parse(request.path) else { return not_found() };
    if route.is_page() && !request.shows_pages {
        let is_home = matches!(route, Route::Home);
        return if is_home { RequestPlan::Answer(page::home_text(is_head)) } else { not_found() };
    }
    let query = || Query::parse(request.query);
    let origin = request.origin.filter(|origin| page::is_plain_origin(origin)).map(str::to_owned);
    // A query that no page asks for names no page.
    let no_page = || RequestPlan::Answer(Answer::no_page(&page::frame(request.path, 0), is_head));
    let (cache, target) = match route {
        Route::Health => {
            let alive = Answer::new(200, AnswerKind::Process, Visibility::Public);
            return RequestPlan::Answer(alive.text("text/plain", "alive\n".to_owned(), is_head));
        }
        Route::Asset(asset) => return RequestPlan::Answer(Answer::asset(asset, is_head)),
        Route::WithoutSlash(cache) => return RequestPlan::Answer(page::with_slash(&cache, is_head)),
        Route::Home => {
            return query().map_or_else(no_page, |query| RequestPlan::Home(Home { query, is_head }));
        }
        Route::Page(cache, route) => {
            let Some(query) = query() else { return no_page() };
            let path = request.path.to_owned();
            let knows_origin = request.knows_origin;
            (cache, Target::Page(PageVisit { route, query, path, origin, knows_origin, is_head }))
        }
        Route::Object(cache, key) => (cache, Target::Object(key)),
    };
    RequestPlan::Visit(Box::new(Visit {
        cache,
        target,
        is_head,
        token: request.authorization.and_then(presented_token),
        range: owned(request.range),
        if_range: if_range.map(str::to_owned),
        if_none_match: owned(request.if_none_match),
    }))
}

/// Longest conditional header that is looked at, in bytes. A longer `Range` or `If-None-Match`
/// counts as none, and a longer `If-Range` as that of another representation. Both are always
/// allowed.
const CONDITION_BYTES_MAX: usize = 1024;

/// A request for something of a cache, before the access rules of the cache are known.
#[derive(Debug)]
pub struct Visit {
    cache: CacheName,
    target: Target,
    is_head: bool,
    token: Option<String>,
    range: Option<String>,
    if_range: Option<String>,
    if_none_match: Option<String>,
}

/// What a visit is for.
#[derive(Debug)]
enum Target {
    Object(EdgeKey),
    Page(PageVisit),
}

/// The decision about a visit.
#[derive(Debug)]
pub enum Admission {
    /// Answer without reading anything more.
    Answer(Answer),
    /// The caller may read this.
    Read(Box<Read>),
    /// The caller may see this page, which is made of what is read for it.
    Page(Box<PageRead>),
}

impl Visit {
    /// The cache whose state document has to be read ([`EdgeKey::State`]).
    pub fn cache(&self) -> &CacheName {
        &self.cache
    }

    /// Whether it was a HEAD.
    pub fn is_head(&self) -> bool {
        self.is_head
    }

    /// The token that was presented.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Whether a token decides. Also for a cache that does not exist, so that the time of an answer
    /// does not tell whether a private cache exists.
    pub fn needs_token(&self, state: Option<&CacheState>) -> bool {
        state.is_none_or(|state| !state.public)
    }

    /// Decides. `claims` are those of the token, if its signature holds; `now` is in seconds since
    /// 1970 UTC.
    pub fn admit(self, state: Option<&CacheState>, claims: Option<&TokenClaims>, now: i64) -> Admission {
        let may = |state: &&CacheState| {
            state.cache == self.cache
                && (state.public || claims.is_some_and(|claims| may_read(claims, &self.cache, state, now)))
        };
        let Some(state) = state.filter(may) else {
            return Admission::Answer(match &self.target {
                Target::Object(_) => Answer::not_found(self.is_head),
                Target::Page(page) => page.refused(now),
            });
        };
        match self.target {
            Target::Page(page) => match page.admit(state, now) {
                PageStep::Answer(answer) => Admission::Answer(answer),
                PageStep::Read(page) => Admission::Page(page),
            },
            Target::Object(key) => {
                // Only NARs are worth resuming, and only their tags are known before they are
                // found.
                let part = tag_of(&key).filter(|_| !self.is_head).and_then(|tag| {
                    conditions::wanted_part(self.range.as_deref(), self.if_range.as_deref(), &tag)
                });
                Admission::Read(Box::new(Read {
                    key,
                    is_head: self.is_head,
                    visibility: state.visibility(),
                    part,
                    if_none_match: self.if_none_match,
                }))
            }
        }
    }
}

/// The tag that follows from a name. A NAR's name identifies its bytes, while stores differ in the
/// tags of uploads in parts.
fn tag_of(key: &EdgeKey) -> Option<String> {
    match key {
        EdgeKey::Nar(_, file) => Some(format!("\"{}\"", file.tag_text())),
        _ => None,
    }
}

/// An object that may be read.
#[derive(Debug)]
pub struct Read {
    key: EdgeKey,
    is_head: bool,
    visibility: Visibility,
    part: Option<Part>,
    if_none_match: Option<String>,
}

/// A store's description of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its size in bytes.
    pub size: u64,
    /// The store's own tag of its content, quoted, if it has one.
    pub etag: Option<String>,
}

impl Read {
    /// All of an object, for a host's own use.
    pub(crate) fn whole(key: EdgeKey, visibility: Visibility) -> Self {
        Self { key, is_head: false, visibility, part: None, if_none_match: None }
    }

    /// The object to look for.
    pub fn key(&self) -> &EdgeKey {
        &self.key
    }

    /// Whether the client wants only size and tag.
    pub fn is_head(&self) -> bool {
        self.is_head
    }

    /// The part that the client wants, if not all. A host asks its store for the part at once, and
    /// the store also tells the size of the whole. If the object has no such part, the host learns
    /// the size for [`Read::respond`].
    pub fn part(&self) -> Option<Part> {
        self.part
    }

    /// The answer, given what was found. With [`Body::Object`] the host sends these bytes of the
    /// object.
    pub fn respond(&self, found: Option<&ObjectMeta>) -> Answer {
        let Some(meta) = found else {
            return Answer { edge_seconds: MISS_SECONDS, ..Answer::not_found(self.is_head) };
        };
        let etag = tag_of(&self.key).or_else(|| meta.etag.clone());
        let answer = |status| {
            let answer = Answer::new(status, self.key.answer_kind(), self.visibility);
            etag.iter().fold(answer, |answer, etag| answer.with("etag", etag))
        };
        let known =
            etag.as_deref().is_some_and(|etag| conditions::client_has(self.if_none_match.as_deref(), etag));
        if known {
            return answer(304);
        }
        let size = meta.size;
        let (mut answer, range) = match self.part.map(|part| part.of(size)) {
            None => (answer(200), 0..size),
            Some(Some(range)) => {
                let value = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                (answer(206).with("content-range", value), range)
            }
            Some(None) => {
                let answer = Answer::new(416, self.key.answer_kind(), self.visibility);
                let answer = answer.text("text/plain", String::new(), self.is_head);
                return answer.with("content-range", format!("bytes */{size}"));
            }
        };
        if matches!(self.key, EdgeKey::Nar(..)) {
            answer = answer.with("accept-ranges", "bytes");
        }
        answer.edge_seconds = self.key.edge_seconds();
        answer.body = if self.is_head { Body::Empty } else { Body::Object(range.clone()) };
        answer
            .with("x-content-type-options", "nosniff")
            .with("content-type", self.key.content_type())
            .with("content-length", (range.end - range.start).to_string())
    }
}

#[cfg(test)]
mod tests {
    use dormer_nix::{DocumentName, nix32};

    use super::*;

    const HASH: &str = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5";
    const NOW: i64 = 1_800_000_000;

    fn state(cache: &str, public: bool) -> CacheState {
        CacheState {
            version: 1,
            cache: cache.parse().unwrap(),
            public,
            store_dir: "/nix/store".to_owned(),
            priority: 41,
            public_keys: vec!["main:AAAA".to_owned()],
            object_count: 1,
            file_bytes: 1,
            published_at: NOW,
            revoked: vec!["stolen".to_owned()],
        }
    }

    fn claims(json: &str) -> TokenClaims {
        TokenClaims::parse(json.as_bytes()).unwrap()
    }

    fn pull(cache: &str, more: &str) -> TokenClaims {
        claims(&format!(r#"{{"https://jwt.attic.rs/v1":{{"caches":{{"{cache}":{{"r":1}}}}}}{more}}}"#))
    }

    fn request<'a>(method: &'a str, path: &'a str) -> Request<'a> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        Request { method, path, query, shows_pages: true, ..Request::default() }
    }

    fn visit(request: &Request<'_>) -> Visit {
        match plan(request) {
            RequestPlan::Visit(visit) => *visit,
            other => panic!("{other:?}"),
        }
    }

    fn read(request: &Request<'_>) -> Read {
        match visit(request).admit(Some(&state("main", true)), None, NOW) {
            Admission::Read(read) => *read,
            other => panic!("{other:?}"),
        }
    }

    fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
        answer.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    fn refused(visit: Visit, state: Option<&CacheState>, claims: Option<&TokenClaims>) -> Answer {
        match visit.admit(state, claims, NOW) {
            Admission::Answer(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn other_methods_than_get_and_head_read_nothing_whatever_the_path() {
        for method in ["PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "", "PROPFIND"]
        {
            for path in ["/", "/main/nix-cache-info", "/../x", ""] {
                let RequestPlan::Answer(answer) = plan(&request(method, path)) else {
                    panic!("{method} {path}")
                };
                assert_eq!((answer.status, header(&answer, "allow")), (405, Some("GET, HEAD")));
            }
        }
    }

    #[test]
    fn every_kind_of_not_here_is_the_same_answer() {
        let expected = Answer::not_found(false);
        let path = format!("/secret/{HASH}.narinfo");
        let get = || visit(&request("GET", &path));
        let private = state("secret", false);
        let mut answers = vec![
            refused(get(), None, None),
            refused(get(), Some(&private), None),
            refused(get(), Some(&private), Some(&pull("other", ""))),
            refused(get(), Some(&private), Some(&pull("secret", &format!(r#","exp":{NOW}"#)))),
            refused(get(), Some(&private), Some(&pull("secret", &format!(r#","nbf":{}"#, NOW + 61)))),
            refused(get(), Some(&private), Some(&pull("secret", r#","jti":"stolen""#))),
            refused(
                get(),
                Some(&private),
                Some(&claims(r#"{"https://jwt.attic.rs/v1":{"caches":{"secret":{"w":1}}}}"#)),
            ),
            // Another cache's document in this one's place.
            refused(get(), Some(&state("main", true)), None),
        ];
        for path in ["/-bad/nix-cache-info", "/secret/other", "/secret/dormer-state.json"] {
            let RequestPlan::Answer(answer) = plan(&request("GET", path)) else { panic!("{path}") };
            answers.push(answer);
        }
        for answer in answers {
            assert_eq!(answer, expected);
        }
        // And of an object that is missing: what is sent is the same, too.
        let missing = read(&request("GET", &format!("/main/{HASH}.narinfo"))).respond(None);
        assert_eq!(
            (missing.status, &missing.headers, &missing.body),
            (404, &expected.headers, &expected.body)
        );
        assert_eq!(missing.edge_seconds, MISS_SECONDS);
    }

    /// A kind of file without a path here does not compile, or is not counted. Fails, as planted
    /// once, if `admit` lets anybody read documents. The Worker and the edge host use these rules.
    #[test]
    fn no_kind_of_file_of_a_private_cache_is_read_without_a_token() {
        let kind = |key: &EdgeKey| match key {
            EdgeKey::Catalog | EdgeKey::Lab | EdgeKey::State(_) => panic!("{key} is not for clients"),
            EdgeKey::CacheInfo(_) => "cache info",
            EdgeKey::Narinfo(..) => "narinfo",
            EdgeKey::Listing(..) => "listing",
            EdgeKey::Nar(..) => "NAR",
            EdgeKey::Document(_, DocumentName::Log(_)) => "log",
            EdgeKey::Document(_, DocumentName::Trace(_)) => "trace",
            EdgeKey::Document(_, DocumentName::DebugInfo(_)) => "debug info",
        };
        let (tag, old_trace) = (nix32::encode(&[7; 16]), "ab".repeat(32));
        let private = state("secret", false);
        let mut kinds = std::collections::BTreeSet::new();
        for path in [
            "nix-cache-info".to_owned(),
            format!("{HASH}.narinfo"),
            format!("{HASH}.ls"),
            format!("nar/0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73-{tag}.nar.zst"),
            format!("log/{HASH}-x.drv"),
            format!("build-trace-v2/{HASH}-x.drv/out.doi"),
            format!("realisations/sha256:{old_trace}!out.doi"),
            "debuginfo/00ab3f".to_owned(),
            "debuginfo/00ab3f.debug".to_owned(),
        ] {
            let path = format!("/secret/{path}");
            let visit = || visit(&request("GET", &path));
            let Target::Object(key) = visit().target else { panic!("{path} is no file") };
            kinds.insert(kind(&key));
            assert!(visit().needs_token(Some(&private)), "{path}");
            assert_eq!(refused(visit(), Some(&private), None), Answer::not_found(false), "{path}");
            let other = pull("other", "");
            assert_eq!(refused(visit(), Some(&private), Some(&other)), Answer::not_found(false), "{path}");
            let Admission::Read(_) = visit().admit(Some(&private), Some(&pull("secret", "")), NOW) else {
                panic!("{path} is refused to a reader")
            };
        }
        assert_eq!(kinds.len(), 7, "{kinds:?}");
    }

    #[test]
    fn a_token_opens_a_private_cache_and_keeps_it_out_of_shared_caches() {
        let path = format!("/secret/{HASH}.narinfo");
        let request = Request { authorization: Some("Bearer x.y.z"), ..request("GET", &path) };
        let visit = visit(&request);
        let private = state("secret", false);
        assert_eq!(visit.token(), Some("x.y.z"));
        assert!(visit.needs_token(Some(&private)) && visit.needs_token(None));
        assert!(!visit.needs_token(Some(&state("secret", true))));
        let claims = pull("sec*", &format!(r#","exp":{},"nbf":{},"jti":"sound""#, NOW + 1, NOW + 59));
        let Admission::Read(read) = visit.admit(Some(&private), Some(&claims), NOW) else {
            panic!("refused")
        };
        let answer = read.respond(Some(&ObjectMeta { size: 9, etag: Some("\"e\"".to_owned()) }));
        assert_eq!(answer.status, 200);
        assert!(header(&answer, "cache-control").unwrap().starts_with("private"));
        assert_eq!(header(&answer, "vary"), Some("authorization"));
    }

    /// Every answer that the rules can give for a cache, public and private.
    #[test]
    fn every_answer_says_what_caches_may_do_with_it() {
        let tag = nix32::encode(&[7; 16]);
        let nar = format!("/main/nar/0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73-{tag}.nar.zst");
        let meta = ObjectMeta { size: 100, etag: Some("\"e\"".to_owned()) };
        let token = pull("main", "");
        let mut statuses = std::collections::BTreeSet::new();
        for public in [true, false] {
            let state = state("main", public);
            for path in [
                "/main/".to_owned(),
                format!("/main/paths?q={HASH}"),
                "/main/nix-cache-info".to_owned(),
                format!("/main/{HASH}.narinfo"),
                format!("/main/{HASH}.ls"),
                nar.clone(),
            ] {
                for (range, if_none_match) in
                    [(None, None), (Some("bytes=1-2"), None), (Some("bytes=100-"), None), (None, Some("*"))]
                {
                    let asked = Request { range, if_none_match, knows_origin: true, ..request("GET", &path) };
                    let mut answers = vec![Answer::unavailable(false), Answer::not_found(false)];
                    match visit(&asked).admit(Some(&state), Some(&token), NOW) {
                        Admission::Answer(answer) => answers.push(answer),
                        Admission::Page(page) => panic!("{page:?}"),
                        Admission::Read(read) => {
                            answers.extend([read.respond(Some(&meta)), read.respond(None)]);
                        }
                    }
                    for answer in answers {
                        statuses.insert(answer.status);
                        let control = header(&answer, "cache-control").expect("every answer says it");
                        let is_private = control.starts_with("private");
                        assert!(public || is_private, "{path}: {answer:?}");
                        assert_eq!(is_private, header(&answer, "vary") == Some("authorization"), "{path}");
                        let is_kept = matches!(answer.status, 200 | 206 | 304);
                        assert_eq!(control.contains("no-store"), !is_kept, "{path}: {answer:?}");
                    }
                }
            }
        }
        assert_eq!(statuses.into_iter().collect::<Vec<_>>(), [200, 206, 303, 304, 404, 416, 503]);
    }

    #[test]
    fn a_nar_is_answered_whole_in_part_and_not_again() {
        let tag = nix32::encode(&[7; 16]);
        let path = format!("/main/nar/0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73-{tag}.nar.zst");
        let meta = ObjectMeta { size: 100, etag: Some("\"of the store\"".to_owned()) };
        let ask = |change: fn(&mut Request<'_>)| {
            let mut asked = request("GET", &path);
            change(&mut asked);
            read(&asked).respond(Some(&meta))
        };
        let whole = ask(|_| ());
        assert_eq!((whole.status, whole.body.clone()), (200, Body::Object(0..100)));
        let etag = format!("\"{tag}\"");
        for (name, value) in [
            ("etag", etag.as_str()),
            ("content-length", "100"),
            ("accept-ranges", "bytes"),
            ("content-type", "application/x-nix-nar"),
            ("cache-control", "public, max-age=31536000, s-maxage=604800, immutable"),
        ] {
            assert_eq!(header(&whole, name), Some(value), "{name}");
        }
        let part = ask(|asked| asked.range = Some("bytes=40-"));
        assert_eq!((part.status, part.body.clone()), (206, Body::Object(40..100)));
        assert_eq!(header(&part, "content-range"), Some("bytes 40-99/100"));
        assert_eq!(header(&part, "content-length"), Some("60"));
        let outside = ask(|asked| asked.range = Some("bytes=100-"));
        assert_eq!((outside.status, header(&outside, "content-range")), (416, Some("bytes */100")));
        for range in ["bytes=0-1,5-6", "bytes=x", "items=1-2"] {
            let asked = Request { range: Some(range), ..request("GET", &path) };
            assert_eq!(read(&asked).respond(Some(&meta)).status, 200, "{range}");
        }
        let long = format!("bytes=0-0{}", ",1-1".repeat(1000));
        let asked = Request { range: Some(&long), ..request("GET", &path) };
        assert_eq!(read(&asked).part(), None);
        let asked = Request { range: Some("bytes=5-6"), if_range: Some(&etag), ..request("GET", &path) };
        assert_eq!(read(&asked).part(), Some(Part::Between(5, 6)));
        let asked =
            Request { range: Some("bytes=5-6"), if_range: Some("\"other\""), ..request("GET", &path) };
        assert_eq!(read(&asked).respond(Some(&meta)).status, 200);

        let long = "x".repeat(CONDITION_BYTES_MAX + 1);
        let asked = Request { range: Some("bytes=5-6"), if_range: Some(&long), ..request("GET", &path) };
        assert_eq!(read(&asked).part(), None, "another representation");

        let asked = Request { if_none_match: Some(&etag), ..request("GET", &path) };
        let known = read(&asked).respond(Some(&meta));
        assert_eq!((known.status, known.body), (304, Body::Empty));

        let asked = Request { range: Some("bytes=1-2"), ..request("HEAD", &path) };
        let head = read(&asked).respond(Some(&meta));
        assert_eq!(
            (head.status, head.body.clone(), header(&head, "content-length")),
            (200, Body::Empty, Some("100"))
        );
    }

    #[test]
    fn health_is_answered_without_a_read() {
        let RequestPlan::Answer(health) = plan(&request("GET", "/_dormer/health")) else {
            panic!("no answer")
        };
        assert_eq!(health.status, 200);
    }
}
