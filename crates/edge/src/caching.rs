//! What clients, proxies and CDNs may keep of an answer: one table for all hosts.
//!
//! The server in the lab, `dormer edge serve` and the Worker take `Cache-Control` and `Vary` from
//! [`caching`], and the publisher writes the same lives beside the objects of a bucket. A proxy
//! between a client and any of them therefore sees one set of rules.
//!
//! Invariants
//! - Every answer has `Cache-Control`. Without it, proxies guess: Varnish keeps a 404 for two
//!   minutes, and Nix then remembers the miss for an hour.
//! - Only successes are kept. A miss or an error is `no-store`.
//! - An answer that depended on a token is `private`, and `Vary: Authorization` says so twice: a
//!   proxy that is told to ignore the first still keeps one copy for each token.
//! - A name whose bytes may change is never kept long, and a NAR under such a name never at all:
//!   a proxy would join ranges of two encodings.

/// What is answered, as far as its life depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// A page that is the same for all its readers, and what pages load.
    Page,
    /// `nix-cache-info`, a narinfo, a listing, a build log or a build trace: these may change or go
    /// at any time.
    Document,
    /// A NAR under the name that holds the tag of its present encoding: its bytes never change.
    CurrentNar,
    /// A NAR under any other name: an old tag, the hash of a store path, the name of an upload.
    OtherNar,
    /// The API, pages that depend on their visitor, and every request that writes.
    Api,
    /// Probes, counters, and addresses where nothing is.
    Process,
    /// The edge's own documents in its bucket, which have no address at a host.
    State,
}

impl AnswerKind {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Page, Self::Document, Self::CurrentNar, Self::OtherNar, Self::Api, Self::Process, Self::State];
}

/// Whether a token decided what is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// Everybody gets this answer.
    Public,
    /// The caller's token decided, or may have decided.
    Private,
}

/// What caches may do with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caching {
    /// The value of `Cache-Control`.
    pub cache_control: &'static str,
    /// The value of `Vary`, if the answer needs one.
    pub vary: Option<&'static str>,
}

/// The table: kind of answer × visibility × status.
///
/// A shared cache keeps a NAR for a week only, because a NAR that was removed for cause must
/// disappear; it then asks again with the NAR's tag.
pub fn caching(kind: AnswerKind, visibility: Visibility, status: u16) -> Caching {
    use AnswerKind::{Api, CurrentNar, Document, OtherNar, Page, Process, State};
    use Visibility::{Private, Public};
    let is_success = matches!(status, 200 | 206 | 304);
    let cache_control = match (kind, visibility) {
        (Page | Document, Public) if is_success => "public, max-age=60",
        (Page | Document, Private) if is_success => "private, max-age=60",
        (CurrentNar, Public) if is_success => "public, max-age=31536000, s-maxage=604800, immutable",
        (CurrentNar, Private) if is_success => "private, max-age=31536000, immutable",
        (State, Public) if is_success => "public, max-age=30",
        (State, Private) if is_success => "private, max-age=30",
        (Page | Document | CurrentNar | OtherNar | Api | Process | State, Public) => "no-store",
        (Page | Document | CurrentNar | OtherNar | Api | Process | State, Private) => "private, no-store",
    };
    let vary = match visibility {
        Public => None,
        Private => Some("authorization"),
    };
    Caching { cache_control, vary }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{EdgeKey, NarFile, STATE_SECONDS};

    const STATUSES: [u16; 20] =
        [100, 200, 201, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 405, 412, 416, 429, 500, 501, 503];

    /// A directive's number.
    fn seconds(control: &str, name: &str) -> Option<u32> {
        control
            .split(", ")
            .find_map(|directive| directive.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    }

    #[test]
    fn what_depended_on_a_token_is_for_its_bearer_alone() {
        for kind in AnswerKind::ALL {
            for status in STATUSES {
                let private = caching(kind, Visibility::Private, status);
                assert!(private.cache_control.starts_with("private"), "{kind:?} {status}");
                assert!(!private.cache_control.contains("s-maxage"), "{kind:?} {status}");
                assert_eq!(private.vary, Some("authorization"), "{kind:?} {status}");
                let public = caching(kind, Visibility::Public, status);
                assert!(!public.cache_control.contains("private"), "{kind:?} {status}");
                assert_eq!(public.vary, None, "{kind:?} {status}");
            }
        }
    }

    #[test]
    fn misses_errors_and_the_api_are_never_kept() {
        for kind in AnswerKind::ALL {
            for visibility in [Visibility::Public, Visibility::Private] {
                for status in STATUSES {
                    let control = caching(kind, visibility, status).cache_control;
                    let is_kept = !control.contains("no-store");
                    let may_be_kept = matches!(status, 200 | 206 | 304)
                        && !matches!(kind, AnswerKind::OtherNar | AnswerKind::Api | AnswerKind::Process);
                    assert_eq!(is_kept, may_be_kept, "{kind:?} {visibility:?} {status}: {control}");
                    assert_eq!(is_kept, seconds(control, "max-age").is_some(), "{control}");
                }
            }
        }
    }

    /// One row for each kind. A new kind needs a row here, and so one in the document.
    #[test]
    fn the_document_has_this_table() {
        let document = include_str!("../../../docs/HTTP-API.md");
        for kind in AnswerKind::ALL {
            let what = match kind {
                AnswerKind::Page => "pages of the edge, the text at `/`, style and script of pages",
                AnswerKind::Document => "`nix-cache-info`, narinfos, listings, build logs and traces",
                AnswerKind::CurrentNar => "a NAR under its present name",
                AnswerKind::OtherNar => "a NAR under another name",
                AnswerKind::Api => "the API, the lab's pages, and every request that writes",
                AnswerKind::Process => "probes, counters",
                AnswerKind::State => "the edge's own documents in a bucket",
            };
            let value = |visibility| caching(kind, visibility, 200).cache_control;
            let (public, private) = (value(Visibility::Public), value(Visibility::Private));
            let row = format!("| {what} | `{public}` | `{private}` |");
            assert!(document.contains(&row), "docs/HTTP-API.md lacks: {row}");
        }
        let value = |visibility| caching(AnswerKind::Document, visibility, 404).cache_control;
        let (public, private) = (value(Visibility::Public), value(Visibility::Private));
        let row = format!("| misses and errors | `{public}` | `{private}` |");
        assert!(document.contains(&row), "docs/HTTP-API.md lacks: {row}");
    }

    #[test]
    fn only_bytes_that_never_change_are_immutable_and_the_others_are_short_lived() {
        for kind in AnswerKind::ALL {
            for visibility in [Visibility::Public, Visibility::Private] {
                let control = caching(kind, visibility, 200).cache_control;
                assert_eq!(control.contains("immutable"), kind == AnswerKind::CurrentNar, "{control}");
                let life = seconds(control, "max-age").unwrap_or(0);
                assert!(kind == AnswerKind::CurrentNar || life <= 60, "{kind:?}: {control}");
            }
        }
    }

    /// The lives in the texts above are those that hosts of the layout use for their own memory.
    #[test]
    fn no_proxy_keeps_an_object_longer_than_a_host_does() {
        let cache = || "main".parse::<dormer_api::CacheName>().unwrap();
        let hash = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5".parse().unwrap();
        let nar = NarFile { hash: dormer_nix::NarHash::from_bytes([1; 32]), tag: [2; 16] };
        let document =
            dormer_nix::DocumentName::Log("1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-x.drv".parse().unwrap());
        // A new kind of name does not compile here, and needs a place in the chain.
        let after = |key: &EdgeKey| match key {
            EdgeKey::Catalog => Some(EdgeKey::Lab),
            EdgeKey::Lab => Some(EdgeKey::State(cache())),
            EdgeKey::State(_) => Some(EdgeKey::CacheInfo(cache())),
            EdgeKey::CacheInfo(_) => Some(EdgeKey::Narinfo(cache(), hash)),
            EdgeKey::Narinfo(..) => Some(EdgeKey::Listing(cache(), hash)),
            EdgeKey::Listing(..) => Some(EdgeKey::Nar(cache(), nar)),
            EdgeKey::Nar(..) => Some(EdgeKey::Document(cache(), document.clone())),
            EdgeKey::Document(..) => None,
        };
        for key in std::iter::successors(Some(EdgeKey::Catalog), after) {
            let control = caching(key.answer_kind(), Visibility::Public, 200).cache_control;
            let shared = seconds(control, "s-maxage").or_else(|| seconds(control, "max-age")).unwrap();
            assert!(shared <= key.edge_seconds(), "{key}: {control}");
        }
        let state = caching(AnswerKind::State, Visibility::Public, 200).cache_control;
        assert_eq!(seconds(state, "max-age"), Some(STATE_SECONDS));
    }
}
