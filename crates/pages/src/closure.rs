//! `/<cache>/<hash>/closure`: what a path drags along.

use maud::html;

use crate::cache::way_below;
use crate::frame::{Frame, path_address};
use crate::parts::{and_more, first, size};
use crate::path::links;
use crate::picture::{SizedPath, sizes};
use crate::text::counted;

/// Paths that the picture shows, and missing ones that the page names.
const LARGEST_SHOWN: usize = 20;
const MISSING_SHOWN: usize = 20;

/// A closure.
#[derive(Debug, Clone)]
pub struct ClosureView {
    /// The cache.
    pub cache: String,
    /// `<hash>-<name>` of the path.
    pub base_name: String,
    /// Paths that the cache has.
    pub paths: u64,
    /// Bytes of their NARs, uncompressed.
    pub nar_bytes: u64,
    /// The largest ones, largest first.
    pub largest: Vec<SizedPath>,
    /// Paths that the cache lacks.
    pub missing: Vec<String>,
    /// Whether the whole closure was looked at.
    pub is_complete: bool,
}

impl ClosureView {
    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let (hash, name) = self.base_name.split_once('-').unwrap_or((&self.base_name, ""));
        let address = path_address(&self.cache, hash);
        let mut way = way_below(&self.cache, address.clone(), name.to_owned());
        way.push((address + "/closure", "closure".to_owned()));
        let content = html! {
            h1 { "Closure of " (name) }
            p { "Everything that a machine needs to use the path." }
            @if !self.is_complete { p.notice role="status" { "The closure is larger than this page looks at: the figures are of a part of it." } }
            dl.facts {
                div { dt { "Paths here" } dd { (counted(self.paths, "path", "paths")) } }
                div { dt { "Size" } dd { (size(self.nar_bytes)) } }
                div { dt { "From other caches" } dd { (counted(self.missing.len() as u64, "path", "paths")) } }
            }
            @if !self.largest.is_empty() {
                section {
                    h2 { "Largest members" }
                    @let (largest, _) = first(&self.largest, LARGEST_SHOWN);
                    (sizes(frame, &self.cache, "Sizes of the NARs, uncompressed", largest))
                }
            }
            @if !self.missing.is_empty() {
                section {
                    h2 { "Not in this cache" }
                    p { "Clients get these from other caches, such as cache.nixos.org." }
                    @let (missing, left) = first(&self.missing, MISSING_SHOWN);
                    (links(frame, &self.cache, missing))
                    @if left > 0 { p { (and_more(left, "path", "paths")) } }
                }
            }
        };
        frame.page(&format!("Closure of {name}"), &way, &content)
    }
}
