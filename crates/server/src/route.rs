//! From a path to a typed route.
//!
//! A path, whose escapes were decoded ([`dormer_edge::decode_path`]), matches a route byte for byte
//! or not at all. No empty or dotted segment is skipped, so no path leads out of a cache.

use dormer_api::v2::{PartDigest, SessionId};
use dormer_api::{CacheName, PinName, routes};
use dormer_edge::AnswerKind;
use dormer_format::EncodingTag;
use dormer_nix::{DocumentName, NarHash, StorePathHash, TraceKey};

use crate::page_route::PageRoute;

/// The template of the busiest route.
pub(crate) const NARINFO: &str = "/{cache}/{hash}.narinfo";

/// Longest name of an uploaded NAR. Nix's are 52 characters and a suffix.
const UPLOAD_NAME_BYTES_MAX: usize = 200;

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    /// `/`
    Home,
    /// `/healthz`
    Alive,
    /// `/readyz`
    Ready,
    /// `/_dormer/stats`
    Stats,
    /// `/_api/v1/cache-config/{cache}`
    CacheConfig(CacheName),
    /// `/_api/v1/get-missing-paths`
    GetMissingPaths,
    /// `/_api/v1/upload-path`
    UploadPath,
    /// `/_api/v2/caches`
    Caches,
    /// `/_api/v2/caches/{cache}/objects/{hash}`
    Object(CacheName, StorePathHash),
    /// `/_api/v2/caches/{cache}/objects`
    Objects(CacheName),
    /// `/_api/v2/caches/{cache}/objects/{hash}/referrers`
    Referrers(CacheName, StorePathHash),
    /// `/_api/v2/caches/{cache}/objects/{hash}/file/{path}`; [`Call::file_names`] has the path.
    ///
    /// [`Call::file_names`]: crate::call::Call::file_names
    File(CacheName, StorePathHash),
    /// `/_api/v2/caches/{cache}/purges`
    Purges(CacheName),
    /// `/_api/v2/caches/{cache}/stats`
    CacheStats(CacheName),
    /// `/_api/v2/stats`
    StoredStats,
    /// `/_api/v2/status`
    Status,
    /// `/_api/v2/caches/{cache}/pins`
    Pins(CacheName),
    /// `/_api/v2/caches/{cache}/pins/{name}`
    Pin(CacheName, PinName),
    /// `/_api/v2/caches/{cache}/pins/{name}/{hash}`
    PinnedPath(CacheName, PinName, StorePathHash),
    /// `/_api/v2/caches/{cache}/sessions/{session}`
    Session(CacheName, SessionId),
    /// `/_api/v2/caches/{cache}/sessions/{session}/missing`
    SessionMissing(CacheName, SessionId),
    /// `/_api/v2/caches/{cache}/sessions/{session}/parts/{digest}`
    SessionPart(CacheName, SessionId, PartDigest),
    /// `/_api/v2/caches/{cache}/sessions/{session}/commit`
    SessionCommit(CacheName, SessionId),
    /// `/{cache}/attic-cache-info`
    AtticCacheInfo(CacheName),
    /// `/{cache}/nix-cache-info`
    NixCacheInfo(CacheName),
    /// `/{cache}/{hash}.narinfo`
    Narinfo(CacheName, StorePathHash),
    /// `/{cache}/{hash}.ls`
    Listing(CacheName, StorePathHash),
    /// `/{cache}/nar/…`
    Nar(CacheName, NarFile<'a>),
    /// `/{cache}/log/…`, `/{cache}/build-trace-v2/…`, `/{cache}/realisations/…`,
    /// `/{cache}/debuginfo/…`
    Document(CacheName, DocumentName),
    /// A page for people.
    Page(PageRoute),
}

/// A name below `nar/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NarFile<'a> {
    /// `<NarHash>-<tag>.nar.zst`, as our narinfos name it.
    Encoded(NarHash, EncodingTag),
    /// `<store hash>.nar`, as Attic's narinfos name it.
    StorePath(StorePathHash),
    /// Any other name: that of an upload.
    Upload(&'a str),
}

impl<'a> Route<'a> {
    /// Reads a decoded path. `None` if it matches no route.
    pub(crate) fn parse(path: &'a str) -> Option<Self> {
        Self::parse_protocol(path).or_else(|| PageRoute::parse(path).map(Self::Page))
    }

    fn parse_protocol(path: &'a str) -> Option<Self> {
        let mut segments = path.strip_prefix('/')?.split('/');
        let first = segments.next()?;
        let rest = [segments.next(), segments.next(), segments.next(), segments.next(), segments.next()];
        match (first, rest) {
            ("", [None, ..]) => Some(Self::Home),
            ("healthz", [None, ..]) => Some(Self::Alive),
            ("readyz", [None, ..]) => Some(Self::Ready),
            ("_dormer", [Some("stats"), None, ..]) => Some(Self::Stats),
            ("_api", [Some("v1"), Some("get-missing-paths"), None, ..]) => Some(Self::GetMissingPaths),
            ("_api", [Some("v1"), Some("upload-path"), None, ..]) => Some(Self::UploadPath),
            ("_api", [Some("v1"), Some("cache-config"), Some(cache), None, _]) => {
                Some(Self::CacheConfig(cache.parse().ok()?))
            }
            ("_api", [Some("v2"), Some("caches"), None, ..]) => Some(Self::Caches),
            ("_api", [Some("v2"), Some("caches"), Some(cache), Some("objects"), Some(hash)]) => {
                let (cache, hash) = (cache.parse().ok()?, hash.parse().ok()?);
                match (segments.next(), segments.next()) {
                    (None, _) => Some(Self::Object(cache, hash)),
                    (Some("referrers"), None) => Some(Self::Referrers(cache, hash)),
                    (Some("file"), None) => Some(Self::File(cache, hash)),
                    _ => None,
                }
            }
            ("_api", [Some("v2"), Some("caches"), Some(cache), Some("objects"), None]) => {
                Some(Self::Objects(cache.parse().ok()?))
            }
            ("_api", [Some("v2"), Some("caches"), Some(cache), Some("purges"), None]) => {
                Some(Self::Purges(cache.parse().ok()?))
            }
            ("_api", [Some("v2"), Some("stats"), None, ..]) => Some(Self::StoredStats),
            ("_api", [Some("v2"), Some("status"), None, ..]) => Some(Self::Status),
            ("_api", [Some("v2"), Some("caches"), Some(cache), Some("stats"), None]) => {
                Some(Self::CacheStats(cache.parse().ok()?))
            }
            ("_api", [Some("v2"), Some("caches"), Some(cache), Some("pins"), None]) => {
                Some(Self::Pins(cache.parse().ok()?))
            }
            ("_api", [Some("v2"), Some("caches"), Some(cache), Some("pins"), Some(name)]) => {
                let (cache, name) = (cache.parse().ok()?, name.parse().ok()?);
                match (segments.next(), segments.next()) {
                    (None, _) => Some(Self::Pin(cache, name)),
                    (Some(hash), None) => Some(Self::PinnedPath(cache, name, hash.parse().ok()?)),
                    _ => None,
                }
            }
            ("_api", [Some("v2"), Some("caches"), Some(cache), Some("sessions"), Some(session)]) => {
                let (cache, session) = (cache.parse().ok()?, session.parse().ok()?);
                match (segments.next(), segments.next(), segments.next()) {
                    (None, ..) => Some(Self::Session(cache, session)),
                    (Some("missing"), None, _) => Some(Self::SessionMissing(cache, session)),
                    (Some("commit"), None, _) => Some(Self::SessionCommit(cache, session)),
                    (Some("parts"), Some(digest), None) => {
                        Some(Self::SessionPart(cache, session, digest.parse().ok()?))
                    }
                    _ => None,
                }
            }
            (cache, [Some(file), None, ..]) => Self::parse_document(cache, file),
            (cache, [Some("nar"), Some(file), None, ..]) => {
                let cache = cache.parse().ok()?;
                Some(Self::Nar(cache, NarFile::parse(file)?))
            }
            (cache, _) => {
                let address = path.strip_prefix('/')?.strip_prefix(cache)?.strip_prefix('/')?;
                Some(Self::Document(cache.parse().ok()?, DocumentName::of_address(address).ok()?))
            }
        }
    }

    fn parse_document(cache: &str, file: &str) -> Option<Self> {
        if let Some(hash) = file.strip_suffix(".narinfo") {
            return Some(Self::Narinfo(cache.parse().ok()?, hash.parse().ok()?));
        }
        if let Some(hash) = file.strip_suffix(".ls") {
            return Some(Self::Listing(cache.parse().ok()?, hash.parse().ok()?));
        }
        match file {
            "nix-cache-info" => Some(Self::NixCacheInfo(cache.parse().ok()?)),
            "attic-cache-info" => Some(Self::AtticCacheInfo(cache.parse().ok()?)),
            _ => None,
        }
    }

    /// The route as a template, for metrics and traces: there are few templates.
    pub(crate) fn template(&self) -> &'static str {
        match self {
            Self::Home => "/",
            Self::Alive => "/healthz",
            Self::Ready => "/readyz",
            Self::Stats => "/_dormer/stats",
            Self::CacheConfig(_) => "/_api/v1/cache-config/{cache}",
            Self::GetMissingPaths => "/_api/v1/get-missing-paths",
            Self::UploadPath => "/_api/v1/upload-path",
            Self::Caches => "/_api/v2/caches",
            Self::Object(..) => "/_api/v2/caches/{cache}/objects/{hash}",
            Self::File(..) => "/_api/v2/caches/{cache}/objects/{hash}/file/{path}",
            Self::Objects(_) => "/_api/v2/caches/{cache}/objects",
            Self::Referrers(..) => "/_api/v2/caches/{cache}/objects/{hash}/referrers",
            Self::Purges(_) => "/_api/v2/caches/{cache}/purges",
            Self::CacheStats(_) => "/_api/v2/caches/{cache}/stats",
            Self::StoredStats => "/_api/v2/stats",
            Self::Status => routes::V2_STATUS,
            Self::Pins(_) => "/_api/v2/caches/{cache}/pins",
            Self::Pin(..) => "/_api/v2/caches/{cache}/pins/{name}",
            Self::PinnedPath(..) => "/_api/v2/caches/{cache}/pins/{name}/{hash}",
            Self::Session(..) => routes::V2_SESSION,
            Self::SessionMissing(..) => routes::V2_SESSION_MISSING,
            Self::SessionPart(..) => routes::V2_SESSION_PART,
            Self::SessionCommit(..) => routes::V2_SESSION_COMMIT,
            Self::AtticCacheInfo(_) => "/{cache}/attic-cache-info",
            Self::NixCacheInfo(_) => "/{cache}/nix-cache-info",
            Self::Narinfo(..) => NARINFO,
            Self::Listing(..) => "/{cache}/{hash}.ls",
            Self::Nar(_, NarFile::Encoded(..)) => "/{cache}/nar/{hash}-{tag}.nar.zst",
            Self::Nar(_, NarFile::StorePath(_)) => "/{cache}/nar/{hash}.nar",
            Self::Nar(_, NarFile::Upload(_)) => "/{cache}/nar/{file}",
            Self::Document(_, DocumentName::Log(_)) => "/{cache}/log/{derivation}",
            Self::Document(_, DocumentName::Trace(TraceKey::Derivation { .. })) => {
                "/{cache}/build-trace-v2/{derivation}/{output}.doi"
            }
            Self::Document(_, DocumentName::Trace(TraceKey::Hash { .. })) => "/{cache}/realisations/{id}.doi",
            Self::Document(_, DocumentName::DebugInfo(_)) => "/{cache}/debuginfo/{build_id}.debug",
            Self::Page(page) => page.template(),
        }
    }

    /// What a read of this route answers, as far as the life of its answer depends on it.
    pub(crate) fn answer_kind(&self) -> AnswerKind {
        match self {
            // The handler marks its answer if it depends on the visitor.
            Self::Home | Self::Page(PageRoute::Asset(_)) => AnswerKind::Page,
            Self::Alive | Self::Ready | Self::Stats => AnswerKind::Process,
            Self::CacheConfig(_)
            | Self::GetMissingPaths
            | Self::UploadPath
            | Self::Caches
            | Self::Object(..)
            | Self::Objects(_)
            | Self::Referrers(..)
            | Self::File(..)
            | Self::Purges(_)
            | Self::CacheStats(_)
            | Self::StoredStats
            | Self::Status
            | Self::Pins(_)
            | Self::Pin(..)
            | Self::PinnedPath(..)
            | Self::Session(..)
            | Self::SessionMissing(..)
            | Self::SessionPart(..)
            | Self::SessionCommit(..)
            | Self::AtticCacheInfo(_)
            | Self::Page(_) => AnswerKind::Api,
            Self::NixCacheInfo(_) | Self::Narinfo(..) | Self::Listing(..) | Self::Document(..) => {
                AnswerKind::Document
            }
            // The handler knows which name is the present one, and marks its answer.
            Self::Nar(..) => AnswerKind::OtherNar,
        }
    }

    /// Whether every caller gets the same answer, whatever its token.
    pub(crate) fn is_of_no_cache(&self) -> bool {
        matches!(self, Self::Home | Self::Alive | Self::Ready | Self::Stats | Self::Page(PageRoute::Asset(_)))
    }

    /// Whether errors are answered as JSON, with Attic's names.
    pub(crate) fn is_api(path: &str) -> bool {
        path.starts_with("/_api/") || path.ends_with("/attic-cache-info")
    }
}

impl<'a> NarFile<'a> {
    /// Reads a name below `nar/`.
    pub(crate) fn parse(file: &'a str) -> Option<Self> {
        Self::parse_encoded(file).or_else(|| Self::parse_store_path(file)).or_else(|| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._=".contains(&byte);
            let is_name = (1..=UPLOAD_NAME_BYTES_MAX).contains(&file.len())
                && !file.starts_with('.')
                && file.bytes().all(allowed);
            is_name.then_some(Self::Upload(file))
        })
    }

    fn parse_encoded(file: &str) -> Option<Self> {
        let name: dormer_edge::NarFile = file.parse().ok()?;
        Some(Self::Encoded(name.hash, EncodingTag::from_bytes(name.tag)))
    }

    fn parse_store_path(file: &str) -> Option<Self> {
        Some(Self::StorePath(file.strip_suffix(".nar")?.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5";
    const NAR_HASH: &str = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";

    fn tag() -> EncodingTag {
        dormer_format::TagBuilder::new().finish()
    }

    #[test]
    fn every_route_is_read_back() {
        let main = || "main".parse::<CacheName>().unwrap();
        let hash: StorePathHash = HASH.parse().unwrap();
        let encoded = format!("/main/nar/{NAR_HASH}-{}.nar.zst", tag());
        let document = |address: &str| format!("/main/{address}");
        let (log, trace) = (format!("log/{HASH}-x.drv"), format!("build-trace-v2/{HASH}-x.drv/out.doi"));
        let realisation = format!("realisations/sha256:{}!out.doi", "ab".repeat(32));
        let session = |rest: &str| format!("/_api/v2/caches/main/sessions/{}{rest}", "a5".repeat(16));
        let debug_info = || Route::Document(main(), DocumentName::DebugInfo("00ab".parse().unwrap()));
        for (path, route) in [
            ("/", Route::Home),
            ("/healthz", Route::Alive),
            ("/readyz", Route::Ready),
            ("/_dormer/stats", Route::Stats),
            ("/_api/v1/cache-config/main", Route::CacheConfig(main())),
            ("/_api/v1/get-missing-paths", Route::GetMissingPaths),
            ("/_api/v1/upload-path", Route::UploadPath),
            ("/_api/v2/caches", Route::Caches),
            (&format!("/_api/v2/caches/main/objects/{HASH}"), Route::Object(main(), hash)),
            ("/_api/v2/caches/main/objects", Route::Objects(main())),
            (&format!("/_api/v2/caches/main/objects/{HASH}/referrers"), Route::Referrers(main(), hash)),
            (&format!("/_api/v2/caches/main/objects/{HASH}/file"), Route::File(main(), hash)),
            ("/_api/v2/caches/main/purges", Route::Purges(main())),
            ("/_api/v2/caches/main/stats", Route::CacheStats(main())),
            ("/_api/v2/status", Route::Status),
            ("/_api/v2/stats", Route::StoredStats),
            ("/_api/v2/caches/main/pins", Route::Pins(main())),
            ("/_api/v2/caches/main/pins/ci", Route::Pin(main(), "ci".parse().unwrap())),
            (
                &format!("/_api/v2/caches/main/pins/ci/{HASH}"),
                Route::PinnedPath(main(), "ci".parse().unwrap(), hash),
            ),
            (&session(""), Route::Session(main(), SessionId::from_bytes([0xa5; 16]))),
            (&session("/missing"), Route::SessionMissing(main(), SessionId::from_bytes([0xa5; 16]))),
            (&session("/commit"), Route::SessionCommit(main(), SessionId::from_bytes([0xa5; 16]))),
            (
                &session(&format!("/parts/{}", "0f".repeat(32))),
                Route::SessionPart(
                    main(),
                    SessionId::from_bytes([0xa5; 16]),
                    PartDigest::from_bytes([0x0f; 32]),
                ),
            ),
            ("/main/attic-cache-info", Route::AtticCacheInfo(main())),
            ("/main/nix-cache-info", Route::NixCacheInfo(main())),
            (&format!("/main/{HASH}.narinfo"), Route::Narinfo(main(), hash)),
            (&format!("/main/{HASH}.ls"), Route::Listing(main(), hash)),
            (&format!("/main/nar/{HASH}.nar"), Route::Nar(main(), NarFile::StorePath(hash))),
            (&encoded, Route::Nar(main(), NarFile::Encoded(NarHash::from_nix32(NAR_HASH).unwrap(), tag()))),
            ("/main/nar/abc.nar.xz", Route::Nar(main(), NarFile::Upload("abc.nar.xz"))),
            (&document(&log), Route::Document(main(), log.parse().unwrap())),
            (&document(&trace), Route::Document(main(), trace.parse().unwrap())),
            (&document(&realisation), Route::Document(main(), realisation.parse().unwrap())),
            ("/main/debuginfo/00ab.debug", debug_info()),
            ("/main/debuginfo/00ab", debug_info()),
        ] {
            assert_eq!(Route::parse(path), Some(route), "{path}");
        }
    }

    #[test]
    fn there_is_no_second_spelling_and_no_way_out() {
        for path in [
            "",
            "*",
            "main/nix-cache-info",
            "//nix-cache-info",
            "/main//nix-cache-info",
            "/main/nix-cache-info/",
            "/main/./nix-cache-info",
            "/x/../main/nix-cache-info",
            "/main/%6eix-cache-info",
            "/m%61in/nix-cache-info",
            "/../etc/passwd",
            "/main/nar/..",
            "/main/nar/../nix-cache-info",
            "/main/nar/..%2f..%2fetc%2fpasswd",
            "/main/nar/.hidden",
            "/main/nar/",
            "/main/nar/a/b",
            "/main/nar/a b",
            "/main/nar/é",
            "/main/HASH.narinfo",
            "/main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z.narinfo",
            "/main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5zE.narinfo",
            "/main/1K8C1HIYSZ6AAKS2MPFC5K7XBBJPW5Z5.narinfo",
            "/main/../1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5.narinfo",
            "/_api/v1/cache-config/_x",
            "/_api/v1/cache-config/a/b",
            "/_api/v1/cache-config/",
            "/_api/v2/caches/main/objects/",
            "/_api/v2/caches/main/objects/x",
            "/_api/v2/caches/main/objects/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5/referrers/x",
            "/_api/v2/caches/main/purges/",
            "/_api/v2/caches/main/pins/",
            "/_api/v2/caches/main/pins/_x",
            "/_api/v2/caches/main/pins/ci/x",
            "/_api/v2/caches/main/pins/ci/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5/x",
            "/_api/v2/caches/main/objects/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5/x",
            "/_api/v2/caches/main/sessions",
            "/_api/v2/caches/main/sessions/",
            "/_api/v2/caches/main/sessions/a5",
            "/_api/v2/caches/main/sessions/A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5",
            "/_api/v2/caches/main/sessions/a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5/",
            "/_api/v2/caches/main/sessions/a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5/x",
            "/_api/v2/caches/main/sessions/a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5/missing/x",
            "/_api/v2/caches/main/sessions/a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5/parts",
            "/_api/v2/caches/main/sessions/a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5/parts/a5",
            "/_api/nix-cache-info",
            "/-main/nix-cache-info",
            "/main/other",
            "/main/other/x",
            "/main/log/x.drv",
            "/main/log/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-x",
            "/main/log/../nix-cache-info",
            "/main/build-trace-v2/a/b.doi",
            "/main/realisations/sha256:x!out.doi",
            "/main/realisations/",
        ] {
            assert_eq!(Route::parse(path), None, "{path}");
        }
        assert_eq!(Route::parse(&format!("/{}/nix-cache-info", "a".repeat(51))), None);
        assert_eq!(Route::parse(&format!("/main/nar/{}", "a".repeat(201))), None);
    }
}
