//! `/`: the caches that the visitor may see.

use maud::{Markup, html};

use crate::frame::{Frame, Visitor, cache_address, escape_segment};
use crate::operator::OperatorPage;
use crate::parts::{counting, moment, size, visibility};
use crate::picture::{PastDay, Savings, growth, savings};
use crate::text::number;

/// The first page of a host.
#[derive(Debug, Clone)]
pub struct HomeView {
    /// The caches, by name.
    pub caches: Vec<CacheRow>,
    /// The last name on this page, if more follow.
    pub next: Option<String>,
    /// Whether the host knows what the caches hold. If not, the page has their names only.
    pub has_figures: bool,
    /// Whether everything is counted. If not, the figures are too small.
    pub is_complete: bool,
    /// What the whole store saves, for visitors that may read every cache.
    pub savings: Option<Savings>,
    /// The days of the whole store, as in [`CacheView::history`](crate::CacheView::history), for the
    /// same visitors.
    pub history: Vec<PastDay>,
}

/// A cache in the list.
#[derive(Debug, Clone)]
pub struct CacheRow {
    /// Its name.
    pub name: String,
    /// Whether everybody may read it.
    pub is_public: bool,
    /// How many paths it has, and the bytes of their NARs, uncompressed; `None` if the visitor may
    /// not read it.
    pub counts: Option<(u64, u64)>,
    /// When its newest path came; `None` also if the visitor may not read it.
    pub newest_at: Option<i64>,
}

impl HomeView {
    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        self.page(frame, false)
    }

    /// The page for a visitor that may see the pages for operators: it leads there.
    pub fn render_for_operator(&self, frame: &Frame) -> String {
        self.page(frame, true)
    }

    fn page(&self, frame: &Frame, is_operator: bool) -> String {
        let content = html! {
            h1 { "Nix binary caches" }
            @if !self.is_complete { (counting()) }
            @if self.caches.is_empty() {
                p {
                    @match frame.visitor {
                        Visitor::Anybody { may_sign_in: true } => "There is no public cache here. Sign in to see those of your token.",
                        Visitor::Anybody { .. } => "There is no public cache here.",
                        Visitor::SignedIn { .. } => "There is no cache here that your token may see.",
                    }
                }
            } @else if !self.has_figures {
                ul { @for cache in &self.caches { li { a href=(frame.link(&cache_address(&cache.name))) { (cache.name) } } } }
                (self.more())
            } @else {
                table.wide {
                    thead { tr { th scope="col" { "Cache" } th scope="col" { "Readers" } th.figure scope="col" { "Paths" } th.figure scope="col" { "Size" } th scope="col" { "Last new path" } } }
                    tbody {
                        @for cache in &self.caches {
                            tr {
                                th scope="row" { (name(frame, cache)) }
                                td data-label="Readers" { (visibility(cache.is_public)) }
                                td.figure data-label="Paths" { @if let Some((paths, _)) = cache.counts { (number(paths)) } }
                                td.figure data-label="Size" { @if let Some((_, nar_bytes)) = cache.counts { (size(nar_bytes)) } }
                                td data-label="Last new path" { @if let Some(at) = cache.newest_at { (moment(frame, at)) } @else if cache.counts.is_some() { span.quiet { "none yet" } } @else { span.quiet { "your token may not read it" } } }
                            }
                        }
                    }
                }
                (self.more())
            }
            @if is_operator { p { a href=(frame.link(OperatorPage::Overview.address())) { "Operation: jobs, collections, publishing, damage and the audit" } } }
            @if let Some(of) = &self.savings {
                section {
                    h2 { "What the store saves" }
                    (savings(of))
                    (growth(&self.history))
                }
            }
        };
        frame.page("Nix binary caches", &[], &content)
    }

    fn more(&self) -> Markup {
        html! {
            @if let Some(next) = &self.next {
                p { a.button href={ "?after=" (escape_segment(next)) } { "More caches" } }
            }
        }
    }
}

/// The name of a cache, which leads to its page for those that may read it.
fn name(frame: &Frame, cache: &CacheRow) -> Markup {
    html! {
        @if cache.counts.is_some() { a href=(frame.link(&cache_address(&cache.name))) { (cache.name) } }
        @else { (cache.name) }
    }
}
