//! `Range`, `If-Range` and `If-None-Match`: what part of an object a request wants, if any.
//!
//! Single ranges only: a request for several gets the whole, which RFC 9110 allows and no Nix ever
//! asks for.

use std::ops::Range;

/// A part of an object, asked for before its size is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// From this byte to the end.
    From(u64),
    /// From the first to the last, both included. The object may end before.
    Between(u64, u64),
    /// This many at the end, or all if there are fewer.
    Last(u64),
}

impl Part {
    /// Reads `Range`; `None` for what is no single range of bytes.
    pub fn parse(value: &str) -> Option<Self> {
        let (unit, spec) = value.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        match spec.trim().split_once('-')? {
            ("", suffix) => Some(Self::Last(number(suffix)?)),
            (first, "") => Some(Self::From(number(first)?)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// The bytes of an object of this size; `None` if it has none of them.
    pub fn of(self, size: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first) => first..size,
            Self::Between(first, last) => first..last.saturating_add(1).min(size),
            Self::Last(count) => size.saturating_sub(count)..size,
        };
        (range.start < range.end).then_some(range)
    }
}

/// The part that a GET asks for, of a representation whose tag is known. A range of another
/// representation (`If-Range`) and what is no single range count as none.
pub fn wanted_part(range: Option<&str>, if_range: Option<&str>, etag: &str) -> Option<Part> {
    let is_same = if_range.is_none_or(|value| value == etag);
    range.filter(|_| is_same).and_then(Part::parse)
}

/// A decimal number; one too large for 64 bits is no less too large for us.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Whether the client has this representation already. `if_none_match` holds the values of all such
/// headers.
pub fn client_has<'a>(if_none_match: impl IntoIterator<Item = &'a str>, etag: &str) -> bool {
    let without_weakness = |tag: &'a str| tag.strip_prefix("W/").unwrap_or(tag);
    let etag = etag.strip_prefix("W/").unwrap_or(etag);
    let mut tags = if_none_match.into_iter().flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || without_weakness(tag) == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "\"x\"";

    fn of(range: &str) -> Option<Range<u64>> {
        wanted_part(Some(range), None, TAG).expect("a range").of(100)
    }

    #[test]
    fn a_single_range_is_cut_to_what_is_there() {
        for (range, part) in [
            ("bytes=0-0", 0..1),
            ("bytes=0-", 0..100),
            ("bytes=10-19", 10..20),
            ("bytes=99-", 99..100),
            ("bytes=90-1000", 90..100),
            ("bytes=90-99999999999999999999999", 90..100),
            ("bytes=-1", 99..100),
            ("bytes=-1000", 0..100),
            ("Bytes = 5-6", 5..7),
        ] {
            assert_eq!(of(range), Some(part), "{range}");
        }
        for range in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(of(range), None, "{range}");
        }
    }

    #[test]
    fn what_is_no_single_range_counts_as_none() {
        for range in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-4",
            "bytes=0-1,3-4",
            "lines=0-1",
            "bytes=+1-2",
        ] {
            assert_eq!(wanted_part(Some(range), None, TAG), None, "{range}");
        }
        let other = |if_range| wanted_part(Some("bytes=1-2"), Some(if_range), TAG);
        assert_eq!(other(TAG), Some(Part::Between(1, 2)));
        for if_range in ["\"y\"", "W/\"x\"", "Sun, 06 Nov 1994 08:49:37 GMT", ""] {
            assert_eq!(other(if_range), None, "{if_range}");
        }
    }

    #[test]
    fn any_of_several_tags_may_match() {
        let has = |value: &str| client_has([value], "\"x\"");
        assert!(has("\"x\"") && has("W/\"x\"") && has("\"a\", \"x\"") && has("*"));
        assert!(client_has(["\"a\"", "\"x\""], "\"x\"") && client_has(["\"x\""], "W/\"x\""));
        assert!(!has("\"y\"") && !has("x") && !has("") && !client_has(None, "\"x\""));
    }
}
