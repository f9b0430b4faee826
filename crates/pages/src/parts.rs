//! Pieces that several pages share.

use maud::{Markup, html};

use crate::files::fitting;
use crate::frame::{Frame, path_address};
use crate::text::{bytes, date, is_hidden, machine_time, nix_string, number, shell_word, span};

/// Longest text to copy, in bytes of HTML.
const COPIED_BYTES_MAX: usize = 4_000;

/// A text to copy: of our own words and of foreign ones. A terminal would obey a control character
/// in a foreign word. With a mark that turns the text around, or a character without a shape, the
/// page would show another command than the one that is copied. No quoting helps against that, so a
/// text with such a word is not offered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Copied {
    text: String,
    has_hidden: bool,
}

impl Copied {
    pub(crate) fn own(mut self, text: &'static str) -> Self {
        self.text.push_str(text);
        self
    }

    /// A foreign word, as it is.
    pub(crate) fn plain(mut self, word: &str) -> Self {
        self.has_hidden |= word.chars().any(is_hidden);
        self.text.push_str(word);
        self
    }

    /// A foreign word for a shell, quoted where it has to be.
    pub(crate) fn shell(self, word: &str) -> Self {
        self.plain(&shell_word(word))
    }

    /// Foreign words, with spaces between.
    pub(crate) fn words<'a>(self, words: impl IntoIterator<Item = &'a str>) -> Self {
        words
            .into_iter()
            .enumerate()
            .fold(self, |all, (place, word)| all.own(if place > 0 { " " } else { "" }).plain(word))
    }

    /// Foreign words as a list of the Nix language.
    pub(crate) fn nix_list<'a>(self, words: impl IntoIterator<Item = &'a str>) -> Self {
        let list = words.into_iter().fold(self.own("[ "), |all, word| all.plain(&nix_string(word)).own(" "));
        list.own("]")
    }

    /// All of another text.
    pub(crate) fn then(mut self, other: &Self) -> Self {
        self.has_hidden |= other.has_hidden;
        self.text.push_str(&other.text);
        self
    }
}

/// A text to copy: the script adds a button.
pub(crate) fn copyable(what: &str, copied: &Copied) -> Markup {
    html! {
        @if copied.has_hidden {
            p.notice { "Here would be " (what) ", but a name in it has characters that a terminal obeys or nobody sees." }
        } @else if fitting(&copied.text, COPIED_BYTES_MAX).len() < copied.text.len() {
            p.notice { "Here would be " (what) ", but it is too long for a page." }
        } @else {
            div.copyable {
                pre { code { (copied.text) } }
                button.copy type="button" hidden data-copy aria-label={ "Copy " (what) } { "Copy" }
            }
        }
    }
}

/// The first of a list, and how many of it a page leaves out. Pages cut their lists with this
/// alone, and say what is left.
pub(crate) fn first<T>(all: &[T], most: usize) -> (&[T], u64) {
    let (shown, left) = all.split_at(all.len().min(most));
    (shown, left.len() as u64)
}

/// `And 3 more targets.`, if something is left.
pub(crate) fn and_more(left: u64, one: &str, many: &str) -> Markup {
    html! { @if left > 0 { "And " (number(left)) " more " (if left == 1 { one } else { many }) "." } }
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
