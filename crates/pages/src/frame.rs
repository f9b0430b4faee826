//! What surrounds every page: head, way back, session, and the addresses of pages.

use std::fmt::Write as _;

use maud::{DOCTYPE, Markup, html};

use crate::asset::Asset;
use crate::sign_in::SignInView;
use crate::text::{date, shortened, visible_page};

/// No page is longer, in bytes.
pub const PAGE_BYTES_MAX: usize = 50_000;

/// What a page needs to know beside its view model.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The way from the page to the root of the host: `./`, `../`, `../../` and so on.
    pub root: String,
    /// The visitor.
    pub visitor: Visitor,
    /// What the visitor has just done, if a form led to this page.
    pub note: Option<Note>,
    /// The page's own address below the root, to come back to it after signing in.
    pub here: String,
    /// Seconds since 1970 UTC.
    pub now: i64,
}

/// What a form did, told by the page that the browser is led to. Its address names it, so it is one
/// of a few words: no link makes a page say anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// A path was pinned.
    Pinned,
    /// A pin was removed.
    Unpinned,
    /// A path was removed.
    Removed,
}

impl Note {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Pinned, Self::Unpinned, Self::Removed];

    /// The part of an address's query that names it.
    pub const fn parameter(self) -> &'static str {
        match self {
            Self::Pinned => "done=pinned",
            Self::Unpinned => "done=unpinned",
            Self::Removed => "done=removed",
        }
    }

    /// The note that a query names.
    pub fn in_query(query: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|note| query.split('&').any(|part| part == note.parameter()))
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Pinned => "The path is pinned.",
            Self::Unpinned => "The pin is removed.",
            Self::Removed => "The path is removed: this cache has it no longer.",
        }
    }
}

/// The reader of a page.
#[derive(Debug, Clone)]
pub enum Visitor {
    /// Anybody. `may_sign_in` is false where a host knows no sessions; such a host finds paths by
    /// their hash only.
    Anybody {
        /// Whether the page offers to sign in.
        may_sign_in: bool,
    },
    /// A visitor that has signed in.
    SignedIn {
        /// The user of the token.
        subject: Option<String>,
        /// When the token ends.
        ends_at: Option<i64>,
        /// What every form sends back, so that no other site can send it.
        form_token: String,
    },
}

impl Visitor {
    /// The user of the visitor's token.
    pub(crate) fn subject(&self) -> Option<&str> {
        match self {
            Self::Anybody { .. } => None,
            Self::SignedIn { subject, .. } => subject.as_deref(),
        }
    }

    /// What forms send back. Empty for visitors without forms.
    pub(crate) fn form_token(&self) -> &str {
        match self {
            Self::Anybody { .. } => "",
            Self::SignedIn { form_token, .. } => form_token,
        }
    }
}

/// The way from the page at this path of a host to the root. Relative, so that it is right below
/// any path of a proxy.
pub fn way_to_root(path: &str) -> String {
    match path.matches('/').count() {
        0 | 1 => "./".to_owned(),
        slashes => "../".repeat(slashes - 1),
    }
}

/// A step of the way back: its address below the root, and its name.
pub(crate) type Step = (String, String);

/// The address of a cache's page, below the root.
pub fn cache_address(cache: &str) -> String {
    format!("{}/", escape_segment(cache))
}

/// The address of a path's page, below the root.
pub fn path_address(cache: &str, hash: &str) -> String {
    format!("{}/{}", escape_segment(cache), escape_segment(hash))
}

/// The address of a file or folder in a path, below the root.
pub fn file_address<'a>(cache: &str, hash: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let mut address = path_address(cache, hash) + "/files/";
    for (place, name) in names.into_iter().enumerate() {
        if place > 0 {
            address.push('/');
        }
        address.push_str(&escape_segment(name));
    }
    address
}

/// A text as one segment of an address, or as a value of its query: everything that RFC 3986 does
/// not list as unreserved is escaped, so that no text ends the segment or begins a scheme.
pub fn escape_segment(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

impl Frame {
    /// Whether the host knows sessions. One that does not also finds paths by their hash only.
    pub(crate) fn has_sessions(&self) -> bool {
        !matches!(self.visitor, Visitor::Anybody { may_sign_in: false })
    }

    /// An address below the root, as the page writes it.
    pub(crate) fn link(&self, address: &str) -> String {
        format!("{}{address}", self.root)
    }

    /// A whole page.
    pub(crate) fn page(&self, title: &str, way: &[Step], content: &Markup) -> String {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width,initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (title) " · Dormer" }
                    link rel="icon" type="image/svg+xml" href=(self.asset(Asset::Icon));
                    link rel="stylesheet" href=(self.asset(Asset::Style));
                    script src=(self.asset(Asset::Script)) defer {}
                }
                body {
                    a.skip href="#main" { "Skip to content" }
                    header {
                        nav aria-label="Way back" {
                            a.brand href=(self.root) { img src=(self.asset(Asset::Icon)) alt="" width="20" height="20"; "Dormer" }
                            @for (place, (address, name)) in way.iter().enumerate() {
                                span.slash aria-hidden="true" { "/" }
                                @if place + 1 == way.len() {
                                    span aria-current="page" { (name) }
                                } @else {
                                    a href=(self.link(address)) { (name) }
                                }
                            }
                        }
                        (self.session())
                    }
                    main #main tabindex="-1" {
                        @if let Some(note) = self.note { p.note role="status" { (note.text()) } }
                        (content)
                    }
                    footer { "Served by Dormer, a Nix binary cache." }
                }
            }
        };
        // Every page ends here, so none hides anything.
        visible_page(&page.0)
    }

    fn asset(&self, asset: Asset) -> String {
        format!("{}{}{}", self.root, Asset::FOLDER, asset.name())
    }

    fn session(&self) -> Markup {
        html! {
            @match &self.visitor {
                Visitor::Anybody { may_sign_in: false } => {},
                Visitor::Anybody { may_sign_in: true } => {
                    a.button href=(self.link(&SignInView::address(&self.here))) { "Sign in" }
                },
                Visitor::SignedIn { subject, ends_at, .. } => {
                    form.session method="post" action=(self.link("_dormer/sign-out")) {
                        (self.form_token())
                        span.quiet {
                            "Signed in"
                            @if let Some(subject) = subject { " as " strong { (shortened(subject, 60)) } }
                            @if let Some(ends_at) = ends_at { " until " (date(*ends_at)) }
                        }
                        button { "Sign out" }
                    }
                },
            }
        }
    }

    /// The field that every form of a signed-in visitor has.
    pub(crate) fn form_token(&self) -> Markup {
        html! { input type="hidden" name="form_token" value=(self.visitor.form_token()); }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_the_root_is_as_long_as_the_path() {
        for (path, way) in
            [("/", "./"), ("/main", "./"), ("/main/", "../"), ("/main/x", "../"), ("/a/b/c/", "../../../")]
        {
            assert_eq!(way_to_root(path), way, "{path}");
        }
    }

    #[test]
    fn no_text_leads_out_of_its_segment() {
        assert_eq!(escape_segment("javascript:alert(1)//"), "javascript%3Aalert%281%29%2F%2F");
        assert_eq!(escape_segment("é\"<"), "%C3%A9%22%3C");
        assert_eq!(file_address("a+b", "h", ["x y", "..z"]), "a%2Bb/h/files/x%20y/..z");
        assert_eq!(cache_address("main"), "main/");
    }
}
