//! `/<cache>/paths`: the paths of a cache, and the search for one.

use maud::{Markup, html};

use crate::cache::{below, search_hint, way_below};
use crate::frame::{Frame, escape_segment};
use crate::parts::{moment, path_link, size};
use crate::text::{number, shortened};

/// The order of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SortedBy {
    /// The longest unused first.
    Used,
    /// The oldest first.
    Age,
    /// The largest first.
    Size,
}

impl SortedBy {
    /// Every order.
    pub const ALL: [Self; 3] = [Self::Size, Self::Used, Self::Age];

    /// The order of this name in an address.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|order| order.name() == name)
    }

    /// Its name in an address.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Age => "age",
            Self::Size => "size",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Used => "longest unused first",
            Self::Age => "oldest first",
            Self::Size => "largest first",
        }
    }
}

/// A path in a list.
#[derive(Debug, Clone)]
pub struct PathRow {
    /// `<hash>-<name>`.
    pub base_name: String,
    /// Bytes of its NAR, uncompressed.
    pub nar_bytes: u64,
    /// When it was pushed first.
    pub created_at: i64,
    /// When it was last used.
    pub used_at: i64,
}

/// Paths of a cache.
#[derive(Debug, Clone)]
pub struct PathsView {
    /// The cache.
    pub cache: String,
    /// What was searched for; empty for all paths.
    pub query: String,
    /// The order.
    pub sort: SortedBy,
    /// The paths; `None` for visitors that may not list them.
    pub paths: Option<Vec<PathRow>>,
    /// Where the next page begins.
    pub next: Option<String>,
    /// How many paths a search by name looked through, if it ended before the page was full and
    /// others are left: `next` goes on with those.
    pub looked_through: Option<u64>,
    /// Why the search found nothing, in other words than "nothing".
    pub notice: Option<String>,
}

impl PathsView {
    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let address = below(&self.cache, "paths");
        let content = html! {
            h1 { "Paths of " (self.cache) }
            form.search method="get" action=(frame.link(&address)) role="search" {
                label for="q" { "Find a path" }
                input #q type="search" name="q" value=(shortened(&self.query, 300)) maxlength="300" placeholder=(search_hint(frame)) autocomplete="off" spellcheck="false";
                @if self.paths.is_some() && self.sort != SortedBy::Size { input type="hidden" name="sort" value=(self.sort.name()); }
                button { "Search" }
            }
            @if let Some(notice) = &self.notice { p.notice role="status" { (shortened(notice, 400)) } }
            @match &self.paths {
                None if !frame.has_sessions() => p { "The hash of a path, or the whole path, leads to its page. This host lists no names." },
                None => p { "The hash of a path, or the whole path, leads to its page. Names are listed for visitors with a token that may delete paths here or configure retention." },
                Some(paths) => (self.table(frame, paths)),
            }
        };
        frame.page(
            &format!("Paths of {}", self.cache),
            &way_below(&self.cache, address, "Paths".to_owned()),
            &content,
        )
    }

    fn table(&self, frame: &Frame, paths: &[PathRow]) -> Markup {
        let with = |sort: SortedBy, after: Option<&str>| {
            let mut query = format!("?sort={}", sort.name());
            if !self.query.is_empty() {
                query = format!("{query}&q={}", escape_segment(&shortened(&self.query, 300)));
            }
            after.map_or(query.clone(), |after| format!("{query}&after={}", escape_segment(after)))
        };
        html! {
            p.orders {
                @for sort in SortedBy::ALL {
                    @if sort == self.sort { strong { (sort.title()) } } @else { a href=(with(sort, None)) { (sort.title()) } }
                    " "
                }
            }
            @if let Some(count) = self.looked_through {
                p.note role="status" {
                    @if self.query.contains('*') { "The search is not over: it" }
                    @else { "Names that begin with the text come first. For other names, the search is not over: it" }
                    " looked through " (number(count)) " paths, the " (self.sort.title()) ". "
                    @if paths.is_empty() { "Nothing fits so far." }
                }
            } @else if paths.is_empty() && self.notice.is_none() {
                p role="status" { "Nothing here." }
            }
            @if !paths.is_empty() {
                table.wide data-filter {
                    thead { tr { th scope="col" { "Path" } th.figure scope="col" { "Size" } th scope="col" { "First pushed" } th scope="col" { "Last used" } } }
                    tbody {
                        @for path in paths {
                            tr {
                                th scope="row" { (path_link(frame, &self.cache, &path.base_name)) }
                                td.figure data-label="Size" { (size(path.nar_bytes)) }
                                td data-label="First pushed" { (moment(frame, path.created_at)) }
                                td data-label="Last used" { (moment(frame, path.used_at)) }
                            }
                        }
                    }
                }
            }
            @if let Some(next) = &self.next { p { a.button rel="next" href=(with(self.sort, Some(next))) { @if self.looked_through.is_some() { "Search on" } @else { "More" } } } }
        }
    }
}
