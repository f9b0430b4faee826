//! `Range`, `If-Range` and `If-None-Match`: what part of an object a request wants, if any.
//!
//! Single ranges only: a request for several gets the whole, which RFC 9110 allows and no Nix ever asks for.

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

/// The part that a GET asks for, of an object whose tag is known from its name. A part of another representation
/// (`If-Range`) and what is no range at all count as none.
pub(crate) fn wanted(range: Option<&str>, if_range: Option<&str>, etag: &str) -> Option<Part> {
    let same = if_range.is_none_or(|value| value == etag);
    range.filter(|_| same).and_then(Part::parse)
}

/// A decimal number; one too large for 64 bits is no less too large for us.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Whether the client has this representation already.
pub(crate) fn has_it_already(if_none_match: Option<&str>, etag: &str) -> bool {
    let strong = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
    let etag = strong(etag);
    if_none_match
        .is_some_and(|value| value.split(',').map(str::trim).any(|one| one == "*" || strong(one) == etag))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "\"x\"";

    fn of(range: &str) -> Option<Range<u64>> {
        wanted(Some(range), None, TAG).expect("a range").of(100)
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
            assert_eq!(wanted(Some(range), None, TAG), None, "{range}");
        }
        let other = |if_range| wanted(Some("bytes=1-2"), Some(if_range), TAG);
        assert_eq!(other(TAG), Some(Part::Between(1, 2)));
        assert_eq!(other("\"y\""), None);
        assert_eq!(other("Sun, 06 Nov 1994 08:49:37 GMT"), None);
    }

    #[test]
    fn any_of_several_tags_may_match() {
        let has = |value: &str| has_it_already(Some(value), "\"x\"");
        assert!(has("\"x\"") && has("W/\"x\"") && has("\"a\", \"x\"") && has("*"));
        assert!(!has("\"y\"") && !has("x") && !has("") && !has_it_already(None, "\"x\""));
    }
}
