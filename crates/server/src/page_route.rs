//! Addresses of pages. None of them is an address of the protocols: a page of a path has the path's
//! hash without a suffix, where Nix asks for `<hash>.narinfo`.

use dormer_api::CacheName;
use dormer_nix::StorePathHash;
use dormer_pages::{Asset, OperatorPage};

/// What the address of a page names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PageRoute {
    /// `/_dormer/pages/{file}`
    Asset(Asset),
    /// `/_dormer/sign-in`
    SignIn,
    /// `/_dormer/sign-out`
    SignOut,
    /// `/_dormer`: leads to the next. No cache has such a name.
    OperatorWithoutSlash,
    /// `/_dormer/`, and what is below it for operators.
    Operator(OperatorPage),
    /// `/{cache}`: leads to the next.
    CacheWithoutSlash(CacheName),
    /// `/{cache}/`
    Cache(CacheName),
    /// `/{cache}/paths`
    Paths(CacheName),
    /// `/{cache}/pins`
    Pins(CacheName),
    /// `/{cache}/{hash}`, and what is below it.
    OfPath(CacheName, StorePathHash, PathPage),
}

/// A page about a store path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathPage {
    /// The path itself.
    Path,
    /// `…/closure`
    Closure,
    /// `…/references`
    References,
    /// `…/referrers`
    Referrers,
    /// `…/files/{path}`; [`Call::file_names`](crate::call::Call::file_names) has the path.
    Files,
    /// `…/log`
    Log,
    /// `…/pin`: a form.
    Pin,
    /// `…/unpin`: a form.
    Unpin,
    /// `…/remove`: the consequences, and a form.
    Remove,
}

impl PathPage {
    const NAMED: [(&'static str, Self); 8] = [
        ("closure", Self::Closure),
        ("references", Self::References),
        ("referrers", Self::Referrers),
        ("files", Self::Files),
        ("log", Self::Log),
        ("pin", Self::Pin),
        ("unpin", Self::Unpin),
        ("remove", Self::Remove),
    ];
}

impl PageRoute {
    /// Reads a decoded path. `None` if it is no page's.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let path = path.strip_prefix('/')?;
        match path {
            "_dormer/sign-in" => return Some(Self::SignIn),
            "_dormer/sign-out" => return Some(Self::SignOut),
            "_dormer" => return Some(Self::OperatorWithoutSlash),
            _ => {}
        }
        if let Some(page) = OperatorPage::ALL.into_iter().find(|page| page.address() == path) {
            return Some(Self::Operator(page));
        }
        if let Some(file) = path.strip_prefix(Asset::FOLDER) {
            return Asset::named(file).map(Self::Asset);
        }
        let Some((cache, rest)) = path.split_once('/') else {
            return Some(Self::CacheWithoutSlash(path.parse().ok()?));
        };
        let cache: CacheName = cache.parse().ok()?;
        match rest {
            "" => return Some(Self::Cache(cache)),
            "paths" => return Some(Self::Paths(cache)),
            "pins" => return Some(Self::Pins(cache)),
            _ => {}
        }
        let (hash, page) = match rest.split_once('/') {
            None => (rest, PathPage::Path),
            Some((hash, name)) => {
                let (_, page) = PathPage::NAMED.into_iter().find(|(known, _)| *known == name)?;
                (hash, page)
            }
        };
        Some(Self::OfPath(cache, hash.parse().ok()?, page))
    }

    /// The route as a template.
    pub(crate) fn template(&self) -> &'static str {
        match self {
            Self::Asset(_) => "/_dormer/pages/{file}",
            Self::SignIn => "/_dormer/sign-in",
            Self::SignOut => "/_dormer/sign-out",
            Self::OperatorWithoutSlash => "/_dormer",
            Self::Operator(page) => match page {
                OperatorPage::Overview => "/_dormer/",
                OperatorPage::Jobs => "/_dormer/jobs",
                OperatorPage::Collection => "/_dormer/collection",
                OperatorPage::Publishing => "/_dormer/publishing",
                OperatorPage::Damage => "/_dormer/damage",
                OperatorPage::Audit => "/_dormer/audit",
            },
            Self::CacheWithoutSlash(_) => "/{cache}",
            Self::Cache(_) => "/{cache}/",
            Self::Paths(_) => "/{cache}/paths",
            Self::Pins(_) => "/{cache}/pins",
            Self::OfPath(_, _, page) => match page {
                PathPage::Path => "/{cache}/{hash}",
                PathPage::Closure => "/{cache}/{hash}/closure",
                PathPage::References => "/{cache}/{hash}/references",
                PathPage::Referrers => "/{cache}/{hash}/referrers",
                PathPage::Files => "/{cache}/{hash}/files/{path}",
                PathPage::Log => "/{cache}/{hash}/log",
                PathPage::Pin => "/{cache}/{hash}/pin",
                PathPage::Unpin => "/{cache}/{hash}/unpin",
                PathPage::Remove => "/{cache}/{hash}/remove",
            },
        }
    }

    /// The methods that the page takes.
    pub(crate) fn allowed_methods(&self) -> &'static str {
        match self {
            Self::SignIn
            | Self::Operator(OperatorPage::Collection)
            | Self::OfPath(_, _, PathPage::Remove) => "GET, HEAD, POST",
            Self::SignOut | Self::OfPath(_, _, PathPage::Pin | PathPage::Unpin) => "POST",
            _ => "GET, HEAD",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Route;

    const HASH: &str = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5";

    #[test]
    fn every_page_is_read_back_and_is_no_address_of_a_protocol() {
        let main = || "main".parse::<CacheName>().unwrap();
        let of_path = |page| PageRoute::OfPath(main(), HASH.parse().unwrap(), page);
        let mut pages = vec![
            ("/_dormer/pages/style.css".to_owned(), PageRoute::Asset(Asset::Style)),
            ("/_dormer/sign-in".to_owned(), PageRoute::SignIn),
            ("/_dormer/sign-out".to_owned(), PageRoute::SignOut),
            ("/_dormer".to_owned(), PageRoute::OperatorWithoutSlash),
            ("/main".to_owned(), PageRoute::CacheWithoutSlash(main())),
            ("/main/".to_owned(), PageRoute::Cache(main())),
            ("/main/paths".to_owned(), PageRoute::Paths(main())),
            ("/main/pins".to_owned(), PageRoute::Pins(main())),
            (format!("/main/{HASH}"), of_path(PathPage::Path)),
        ];
        for page in OperatorPage::ALL {
            pages.push((format!("/{}", page.address()), PageRoute::Operator(page)));
        }
        for (name, page) in PathPage::NAMED {
            pages.push((format!("/main/{HASH}/{name}"), of_path(page)));
        }
        for (path, page) in pages {
            assert_eq!(PageRoute::parse(&path).as_ref(), Some(&page), "{path}");
            assert_eq!(Route::parse(&path), Some(Route::Page(page)), "{path}");
        }
    }

    #[test]
    fn what_is_no_page_is_none() {
        for path in [
            "",
            "/",
            "main",
            "//",
            "/main//",
            "/main/paths/",
            "/main/other",
            "/_dormer/other",
            "/_dormer/jobs/",
            "/_dormer/pages/",
            "/_dormer/pages/other.css",
            "/_dormer/pages/../sign-in",
            "/-main/",
            "/main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z",
            "/main/1K8C1HIYSZ6AAKS2MPFC5K7XBBJPW5Z5",
            "/main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5/",
            "/main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5/other",
            "/main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5/files/x",
        ] {
            assert_eq!(PageRoute::parse(path), None, "{path}");
        }
    }
}
