//! Pieces that several pages share.

use maud::{Markup, html};

use crate::frame::{Frame, path_address};
use crate::text::{bytes, date, machine_time, number, span};

/// A text to copy: the script adds a button.
pub(crate) fn copyable(what: &str, text: &str) -> Markup {
    html! {
        div.copyable {
            pre { code { (text) } }
            button.copy type="button" hidden data-copy aria-label={ "Copy " (what) } { "Copy" }
        }
    }
}

/// A time, with how long ago it was.
pub(crate) fn moment(frame: &Frame, seconds: i64) -> Markup {
    let distance = seconds.saturating_sub(frame.now);
    html! {
        time datetime=(machine_time(seconds)) title=(date(seconds)) {
            @if distance > 0 { "in " (span(distance)) } @else { (span(distance)) " ago" }
        }
    }
}

/// A time with its date as text, where there is room for both.
pub(crate) fn exact_moment(frame: &Frame, seconds: i64) -> Markup {
    html! { (moment(frame, seconds)) ", " (date(seconds)) }
}

/// A size with its bytes as text, where there is room for both.
pub(crate) fn exact_size(count: u64) -> Markup {
    html! { (bytes(count)) @if count >= 1024 { " " span.quiet { "(" (number(count)) " bytes)" } } }
}

/// A size, with its bytes for those that want them.
pub(crate) fn size(count: u64) -> Markup {
    html! { span title={ (count) " bytes" } { (bytes(count)) } }
}

/// For figures that leave out what was not counted yet.
pub(crate) fn counting() -> Markup {
    html! {
        p.notice role="status" { "The server still counts what was here before an upgrade. Until it is done, numbers of paths, sizes and savings are not complete." }
    }
}

/// A link to the page of a store path, `<hash>-<name>`.
pub(crate) fn path_link(frame: &Frame, cache: &str, base_name: &str) -> Markup {
    let (hash, name) = base_name.split_once('-').unwrap_or((base_name, ""));
    html! {
        a.path href=(frame.link(&path_address(cache, hash))) {
            span.name { (if name.is_empty() { hash } else { name }) }
            " " span.hash { (hash.get(..8).unwrap_or(hash)) }
        }
    }
}

/// Whether everybody may read a cache.
pub(crate) fn visibility(is_public: bool) -> Markup {
    html! {
        @if is_public { span.tag { "public" } } @else { span.tag.private { "private" } }
    }
}
