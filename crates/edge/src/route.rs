//! From a path to what it names: escapes are decoded once ([`decode_path`]), and then every byte
//! counts. No empty or dotted segment is skipped.

use dormer_api::CacheName;
use dormer_nix::StorePathHash;
use dormer_pages::Asset;

use crate::layout::EdgeKey;
use crate::spelling::{decode_file_path, decode_path, split_files};

/// Folders above a file that has a page.
const DEPTH_MAX: usize = 64;

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/`
    Home,
    /// `/_dormer/health`
    Health,
    /// `/_dormer/pages/{file}`
    Asset(Asset),
    /// `/{cache}`: leads to the cache's page.
    WithoutSlash(CacheName),
    /// A page about a cache.
    Page(CacheName, PageRoute),
    /// A document or a NAR of a cache.
    Object(CacheName, EdgeKey),
}

/// A page about a cache. None has an address of the protocol: where Nix asks for `{hash}.narinfo`,
/// the page of a path has the hash without a suffix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PageRoute {
    /// `/{cache}/`
    Cache,
    /// `/{cache}/paths`: finds a path by its hash.
    Paths,
    /// `/{cache}/{hash}`, and what is below it.
    OfPath(StorePathHash, PathPage),
}

/// A page about a store path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PathPage {
    /// The path itself.
    Path,
    /// `…/references`
    References,
    /// `…/files/{names}`
    Files {
        /// The names that lead to the file or folder.
        names: Vec<String>,
        /// Whether the address ends with a slash, as those of folders do.
        has_slash: bool,
    },
    /// `…/log`
    Log,
}

impl Route {
    /// Reads a path, without its query. The edge's own documents have no address.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        if let Some((address, names)) = split_files(path) {
            return files(path, address, names);
        }
        let path = decode_path(path)?;
        let name = path.strip_prefix('/')?;
        match name {
            "" => return Some(Self::Home),
            "_dormer/health" => return Some(Self::Health),
            _ => {}
        }
        if let Some(file) = name.strip_prefix(Asset::FOLDER) {
            return Asset::named(file).map(Self::Asset);
        }
        let Some((cache, rest)) = name.split_once('/') else {
            return Some(Self::WithoutSlash(name.parse().ok()?));
        };
        if let Some(page) = PageRoute::parse(rest) {
            return Some(Self::Page(cache.parse().ok()?, page));
        }
        let key = EdgeKey::of_address(name).ok()?;
        match &key {
            EdgeKey::Catalog | EdgeKey::Lab | EdgeKey::State(_) => None,
            EdgeKey::CacheInfo(cache)
            | EdgeKey::Narinfo(cache, _)
            | EdgeKey::Listing(cache, _)
            | EdgeKey::Document(cache, _)
            | EdgeKey::Nar(cache, _) => Some(Self::Object(cache.clone(), key)),
        }
    }

    /// Whether this is the address of a page, whether the page exists or not.
    pub(crate) fn is_page(&self) -> bool {
        matches!(self, Self::Home | Self::Asset(_) | Self::WithoutSlash(_) | Self::Page(..))
    }
}

impl PageRoute {
    /// Reads what stands behind the cache. The files of a path are read before anything is decoded.
    fn parse(rest: &str) -> Option<Self> {
        match rest {
            "" => return Some(Self::Cache),
            "paths" => return Some(Self::Paths),
            _ => {}
        }
        let (hash, page) = match rest.split_once('/') {
            None => (rest, PathPage::Path),
            Some((hash, "references")) => (hash, PathPage::References),
            Some((hash, "log")) => (hash, PathPage::Log),
            Some((hash, "files")) => (hash, PathPage::Files { names: Vec::new(), has_slash: false }),
            Some(_) => return None,
        };
        Some(Self::OfPath(hash.parse().ok()?, page))
    }
}

/// The page of a file or folder.
fn files(path: &str, address: &str, names: &str) -> Option<Route> {
    let address = decode_path(address)?;
    let (cache, rest) = address.strip_prefix('/')?.split_once('/')?;
    let hash = rest.strip_suffix("/files")?;
    let names = if names.is_empty() { Vec::new() } else { decode_file_path(names)? };
    if names.len() > DEPTH_MAX {
        return None;
    }
    let page = PathPage::Files { names, has_slash: path.ends_with('/') };
    Some(Route::Page(cache.parse().ok()?, PageRoute::OfPath(hash.parse().ok()?, page)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5";

    #[test]
    fn documents_of_the_protocol_are_found() {
        assert_eq!(Route::parse("/"), Some(Route::Home));
        assert_eq!(Route::parse("/_dormer/health"), Some(Route::Health));
        assert!(matches!(Route::parse("/main"), Some(Route::WithoutSlash(_))));
        for path in
            ["/main/nix-cache-info".to_owned(), format!("/main/{HASH}.narinfo"), format!("/main/{HASH}.ls")]
        {
            assert!(matches!(Route::parse(&path), Some(Route::Object(..))), "{path}");
        }
    }

    #[test]
    fn pages_have_the_addresses_that_they_have_in_the_lab() {
        let of_path = |page| PageRoute::OfPath(HASH.parse().unwrap(), page);
        let files = |names: &[&str], has_slash| {
            let names = names.iter().map(|&name| name.to_owned()).collect();
            of_path(PathPage::Files { names, has_slash })
        };
        for (path, page) in [
            (String::new(), PageRoute::Cache),
            ("paths".to_owned(), PageRoute::Paths),
            (HASH.to_owned(), of_path(PathPage::Path)),
            (format!("{HASH}/references"), of_path(PathPage::References)),
            (format!("{HASH}/log"), of_path(PathPage::Log)),
            (format!("{HASH}/files"), files(&[], false)),
            (format!("{HASH}/files/"), files(&[], true)),
            (format!("{HASH}/files/bin/"), files(&["bin"], true)),
            (format!("{HASH}/files/a%20b/%3Cb%3E"), files(&["a b", "<b>"], false)),
        ] {
            let expected = Route::Page("a+b".parse().unwrap(), page);
            assert!(expected.is_page());
            for cache in ["a+b", "a%2Bb"] {
                assert_eq!(Route::parse(&format!("/{cache}/{path}")).as_ref(), Some(&expected), "{path}");
            }
        }
        assert_eq!(Route::parse("/_dormer/pages/style.css"), Some(Route::Asset(Asset::Style)));
        let deep = |depth: usize| format!("/main/{HASH}/files{}", "/x".repeat(depth));
        assert!(Route::parse(&deep(DEPTH_MAX)).is_some() && Route::parse(&deep(DEPTH_MAX + 1)).is_none());
    }

    #[test]
    fn there_is_no_second_spelling_and_no_way_out() {
        for path in [
            "",
            "*",
            "main/nix-cache-info",
            "//nix-cache-info",
            "/main//",
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
            "/dormer-lab.json",
            "/main/1K8C1HIYSZ6AAKS2MPFC5K7XBBJPW5Z5",
            "/main/1K8C1HIYSZ6AAKS2MPFC5K7XBBJPW5Z5.narinfo",
            "/main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5/",
            "/main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5/closure",
            "/main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5/referrers",
            "/main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5/log/",
            "/main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5/files//",
            "/main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5/files/../log",
            "/main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5/files/a%2fb",
            "/m%61in/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5/files/a",
            "/main/nar/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5.nar",
            "/main/paths/",
            "/main/pins",
            "/_dormer/health/",
            "/_dormer/stats",
            "/_dormer/pages/",
            "/_dormer/pages/other.css",
            "/_dormer/sign-in",
            "/main/log/x.drv",
            "/é",
            "/main\0",
        ] {
            assert_eq!(Route::parse(path), None, "{path}");
        }
    }
}
