//! From a path to what it names: escapes are decoded once ([`decode_path`]), and then every byte
//! counts. No empty or dotted segment is skipped.

use dormer_api::CacheName;

use crate::layout::EdgeKey;
use crate::spelling::decode_path;

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/`
    Home,
    /// `/_dormer/health`
    Health,
    /// `/{cache}`: a page for people.
    Page(CacheName),
    /// A document or a NAR of a cache.
    Object(CacheName, EdgeKey),
}

impl Route {
    /// Reads a path, without its query. The edge's own documents have no address.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let path = decode_path(path)?;
        let name = path.strip_prefix('/')?;
        match name {
            "" => return Some(Self::Home),
            "_dormer/health" => return Some(Self::Health),
            _ => {}
        }
        if !name.contains('/') {
            return Some(Self::Page(name.parse().ok()?));
        }
        let key = EdgeKey::of_address(name).ok()?;
        match &key {
            EdgeKey::Catalog | EdgeKey::State(_) => None,
            EdgeKey::CacheInfo(cache)
            | EdgeKey::Narinfo(cache, _)
            | EdgeKey::Listing(cache, _)
            | EdgeKey::Document(cache, _)
            | EdgeKey::Nar(cache, _) => Some(Self::Object(cache.clone(), key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5";

    #[test]
    fn documents_of_the_protocol_are_found() {
        assert_eq!(Route::parse("/"), Some(Route::Home));
        assert_eq!(Route::parse("/_dormer/health"), Some(Route::Health));
        assert!(matches!(Route::parse("/main"), Some(Route::Page(_))));
        for path in
            ["/main/nix-cache-info".to_owned(), format!("/main/{HASH}.narinfo"), format!("/main/{HASH}.ls")]
        {
            assert!(matches!(Route::parse(&path), Some(Route::Object(..))), "{path}");
        }
    }

    #[test]
    fn there_is_no_second_spelling_and_no_way_out() {
        for path in [
            "",
            "*",
            "main/nix-cache-info",
            "//nix-cache-info",
            "/main/",
            "/main//nix-cache-info",
            "/main/nix-cache-info/",
            "/main/./nix-cache-info",
            "/x/../main/nix-cache-info",
            "/main/%6eix-cache-info",
            "/m%61in/nix-cache-info",
            "/main%2fnix-cache-info",
            "/main/nar/..%2f..%2fetc%2fpasswd",
            "/main/nar/%252e%252e",
            "/../etc/passwd",
            "/main\\..\\x",
            "/main/nix-cache-info?x",
            "/main/nix-cache-info#x",
            "/main/dormer-state.json",
            "/dormer-caches.json",
            "/main/1K8C1HIYSZ6AAKS2MPFC5K7XBBJPW5Z5.narinfo",
            "/main/nar/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5.nar",
            "/_dormer/health/",
            "/_dormer/stats",
            "/main/log/x.drv",
            "/é",
            "/main\0",
        ] {
            assert_eq!(Route::parse(path), None, "{path}");
        }
    }
}
