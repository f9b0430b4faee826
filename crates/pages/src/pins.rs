//! `/<cache>/pins`: what a cache keeps by name.

use maud::html;

use crate::cache::{below, way_below};
use crate::frame::{Frame, escape_segment, path_address};
use crate::parts::{moment, path_link};
use crate::path::PinRow;
use crate::text::date;

/// A page of pins.
#[derive(Debug, Clone)]
pub struct PinsView {
    /// The cache.
    pub cache: String,
    /// The pins, by name.
    pub pins: Vec<PinRow>,
    /// Where this page begins; `None` of the first one.
    pub after: Option<String>,
    /// Where the next page begins.
    pub next: Option<String>,
}

impl PinsView {
    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let address = below(&self.cache, "pins");
        let content = html! {
            h1 { "Pins of " (self.cache) }
            p { "A pin keeps its path, and everything that the path needs. The page of a path pins it." }
            @if self.pins.is_empty() {
                p role="status" { @if self.after.is_some() { "No more pins." } @else { "Nothing is pinned." } }
            } @else {
                table.wide data-filter {
                    thead { tr { th scope="col" { "Pin" } th scope="col" { "Path" } th scope="col" { "Since" } th scope="col" { "Until" } th scope="col" { span.unseen { "Remove" } } } }
                    tbody {
                        @for pin in &self.pins {
                            @let hash = pin.base_name.split_once('-').map_or("", |(hash, _)| hash);
                            tr {
                                th scope="row" { (pin.name) }
                                td data-label="Path" { (path_link(frame, &self.cache, &pin.base_name)) }
                                td data-label="Since" { (moment(frame, pin.created_at)) }
                                td data-label="Until" { @if let Some(at) = pin.ends_at { (date(at)) } @else { "for ever" } }
                                td {
                                    form method="post" action=(frame.link(&(path_address(&self.cache, hash) + "/unpin"))) {
                                        (frame.form_token())
                                        input type="hidden" name="name" value=(pin.name);
                                        input type="hidden" name="back" value="pins";
                                        @if let Some(after) = &self.after { input type="hidden" name="after" value=(after); }
                                        button aria-label={ "Remove the pin " (pin.name) } { "Remove" }
                                    }
                                }
                            }
                        }
                    }
                }
            }
            @if self.after.is_some() { p { a href=(frame.link(&address)) { "The first pins" } } }
            @if let Some(next) = &self.next { p { a.button rel="next" href={ "?after=" (escape_segment(next)) } { "More" } } }
        };
        frame.page(
            &format!("Pins of {}", self.cache),
            &way_below(&self.cache, address, "Pins".to_owned()),
            &content,
        )
    }
}
