//! `Range`, `If-Range` and `If-None-Match`: what part of an object a request wants, if any.
//!
//! Single ranges only: a request for several gets the whole, which RFC 9110 allows and no Nix ever asks for.

use std::ops::Range;

/// What is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of it.
    Whole,
    /// These bytes, which are there.
    Part(Range<u64>),
    /// Bytes that are not there.
    Outside,
}

/// Reads the range that a GET asks for. A range of another representation (`If-Range`) and what is no range at all count
/// as none.
pub(crate) fn wanted(range: Option<&str>, if_range: Option<&str>, etag: Option<&str>, size: u64) -> Wanted {
    let Some(range) = range else { return Wanted::Whole };
    let same = if_range.is_none_or(|value| Some(value) == etag);
    if same { parse_range(range, size).unwrap_or(Wanted::Whole) } else { Wanted::Whole }
}

fn parse_range(value: &str, size: u64) -> Option<Wanted> {
    let (unit, spec) = value.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = spec.trim().split_once('-')?;
    let range = match (first, last) {
        ("", suffix) => size.saturating_sub(number(suffix)?)..size,
        (first, "") => number(first)?..size,
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            first..last.saturating_add(1).min(size)
        }
    };
    Some(if range.start < range.end { Wanted::Part(range) } else { Wanted::Outside })
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

    fn of(range: &str) -> Wanted {
        wanted(Some(range), None, Some("\"x\""), 100)
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
            assert_eq!(of(range), Wanted::Part(part), "{range}");
        }
        for range in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(of(range), Wanted::Outside, "{range}");
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
            assert_eq!(of(range), Wanted::Whole, "{range}");
        }
        let other = |if_range| wanted(Some("bytes=1-2"), Some(if_range), Some("\"x\""), 100);
        assert_eq!(other("\"x\""), Wanted::Part(1..3));
        assert_eq!(other("\"y\""), Wanted::Whole);
        assert_eq!(other("Sun, 06 Nov 1994 08:49:37 GMT"), Wanted::Whole);
        assert_eq!(wanted(Some("bytes=1-2"), Some("\"x\""), None, 100), Wanted::Whole);
    }

    #[test]
    fn any_of_several_tags_may_match() {
        let has = |value: &str| has_it_already(Some(value), "\"x\"");
        assert!(has("\"x\"") && has("W/\"x\"") && has("\"a\", \"x\"") && has("*"));
        assert!(!has("\"y\"") && !has("x") && !has("") && !has_it_already(None, "\"x\""));
    }
}
