//! `/<cache>/<hash>/remove`: what the removal of a path does, before it happens.

use maud::html;

use crate::cache::way_below;
use crate::frame::{Frame, path_address};
use crate::parts::{first, size};
use crate::path::links;
use crate::text::{counted, shortened};

/// Referrers and pins that the page names.
const REFERRERS_SHOWN: usize = 40;
const PINS_SHOWN: usize = 8;

/// A path that may be removed.
#[derive(Debug, Clone)]
pub struct RemoveView {
    /// The cache.
    pub cache: String,
    /// The store folder.
    pub store_dir: String,
    /// `<hash>-<name>`.
    pub base_name: String,
    /// Bytes of its NAR, uncompressed.
    pub nar_bytes: u64,
    /// What refers to it, and whether there is more.
    pub referrers: (Vec<String>, bool),
    /// Names of its pins; `None` for visitors that may not know.
    pub pins: Option<Vec<String>>,
}

impl RemoveView {
    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let (hash, name) = self.base_name.split_once('-').unwrap_or((&self.base_name, ""));
        let address = path_address(&self.cache, hash);
        let (referrers, has_more) = &self.referrers;
        let mut way = way_below(&self.cache, address.clone(), name.to_owned());
        way.push((format!("{address}/remove"), "remove".to_owned()));
        let content = html! {
            h1 { "Remove " (name) "?" }
            p.store-path { code { (shortened(&self.store_dir, 200)) "/" (self.base_name) } }
            h2 { "What happens" }
            ul {
                li { "Its narinfo, its NAR of " (size(self.nar_bytes)) " in this cache and its upload go at once, also for clients that have begun to fetch it." }
                @if referrers.is_empty() {
                    li { "No other path in this cache needs it." }
                } @else {
                    li.bad {
                        (counted(referrers.len() as u64, "path", "paths")) @if *has_more { " and more" }
                        " in this cache "
                        @if referrers.len() == 1 && !has_more { "needs it. It stays, and clients cannot fetch it any more" }
                        @else { "need it. They stay, and clients cannot fetch them any more" }
                        " unless another cache has this path."
                    }
                }
                @if let Some(pins) = self.pins.as_ref().filter(|pins| !pins.is_empty()) {
                    li.bad {
                        "It is pinned as "
                        @let (shown, left) = first(pins, PINS_SHOWN);
                        @for (place, pin) in shown.iter().enumerate() { @if place > 0 { ", " } strong { (pin) } }
                        @if left > 0 { " and more" }
                        ". A pin does not stop a removal by hand."
                    }
                }
                li { "Bytes that nothing else needs leave the store after their grace, with a later collection." }
                li {
                    @if frame.visitor.subject().is_some() { "The audit names you." }
                    @else { "The audit has an entry. It names nobody, because your token has no subject." }
                    " A push brings the path back."
                }
            }
            form.inline method="post" action=(frame.link(&format!("{address}/remove"))) {
                (frame.form_token())
                button.danger { "Remove the path" }
                " " a href=(frame.link(&address)) { "Keep it" }
            }
            @if !referrers.is_empty() {
                section {
                    h2 { "Needed by" }
                    @let (shown, left) = first(referrers, REFERRERS_SHOWN);
                    (links(frame, &self.cache, shown))
                    @if *has_more || left > 0 { p { a href=(frame.link(&format!("{address}/referrers"))) { "All of them" } } }
                }
            }
        };
        frame.page(&format!("Remove {name}"), &way, &content)
    }
}
