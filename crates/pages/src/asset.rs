//! The files that pages load: one style, one script, one icon. None comes from another host.

/// What a browser may do with a page. No inline script or style runs, nothing is loaded from or
/// sent to another host, and no other site may show the page in a frame.
pub const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The headers of every page, names in lower case: the same ones at every host.
pub const PAGE_HEADERS: [(&str, &str); 6] = [
    ("content-type", "text/html; charset=utf-8"),
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    // Browsers say where a form comes from only if this allows it.
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// The headers of an [`Asset`], beside its type.
pub const ASSET_HEADERS: [(&str, &str); 2] =
    [("x-content-type-options", "nosniff"), ("content-security-policy", "default-src 'none'")];

/// A file that pages load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asset {
    /// The style, for light and dark.
    Style,
    /// The script: copies texts, filters lists, and reads figures again. Pages work without it.
    Script,
    /// The icon.
    Icon,
}

impl Asset {
    /// Every file.
    pub const ALL: [Self; 3] = [Self::Style, Self::Script, Self::Icon];

    /// The folder of these files, below the root of the host.
    pub const FOLDER: &'static str = "_dormer/pages/";

    /// Its name in [`Asset::FOLDER`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Style => "style.css",
            Self::Script => "script.js",
            Self::Icon => "icon.svg",
        }
    }

    /// The file of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|asset| asset.name() == name)
    }

    /// Its `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Style => "text/css; charset=utf-8",
            Self::Script => "text/javascript; charset=utf-8",
            Self::Icon => "image/svg+xml",
        }
    }

    /// Its bytes.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Style => include_str!("style.css"),
            Self::Script => include_str!("script.js"),
            Self::Icon => include_str!("icon.svg"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_small_and_name_no_other_host() {
        for asset in Asset::ALL {
            assert_eq!(Asset::named(asset.name()), Some(asset));
            assert!(asset.text().len() < 16 * 1024, "{asset:?} has {} bytes", asset.text().len());
            let without_namespace = asset.text().replace("http://www.w3.org/2000/svg", "");
            assert!(!without_namespace.contains("//www") && !without_namespace.contains("http"), "{asset:?}");
            assert!(!asset.text().contains("@import") && !asset.text().contains("url("), "{asset:?}");
        }
        assert_eq!(Asset::named("other"), None);
    }

    #[test]
    fn the_policy_allows_nothing_inline_and_no_frame() {
        assert!(!POLICY.contains("unsafe") && !POLICY.contains('*'));
        for directive in ["default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"] {
            assert!(POLICY.contains(directive), "{directive}");
        }
    }
}
