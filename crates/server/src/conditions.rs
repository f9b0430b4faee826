//! `Range`, `If-Range` and `If-None-Match`: what part of a representation a request wants, if any.
//!
//! Single ranges only, read as at the edge: a request for several gets the whole, which RFC 9110 allows and no Nix ever asks for.

use std::ops::Range;

use dormer_edge::Part;
use http::HeaderMap;
use http::header::{IF_NONE_MATCH, IF_RANGE, RANGE};

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
pub(crate) fn wanted(headers: &HeaderMap, etag: &str, size: u64) -> Wanted {
    let Some(range) = headers.get(RANGE).and_then(|value| value.to_str().ok()) else { return Wanted::Whole };
    let same = headers.get(IF_RANGE).is_none_or(|value| value.as_bytes() == etag.as_bytes());
    match Part::parse(range).filter(|_| same) {
        None => Wanted::Whole,
        Some(part) => part.of(size).map_or(Wanted::Outside, Wanted::Part),
    }
}

/// Whether the client has this representation already.
pub(crate) fn has_it_already(headers: &HeaderMap, etag: &str) -> bool {
    headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(range: &str) -> Wanted {
        wanted(&HeaderMap::from_iter([(RANGE, range.parse().unwrap())]), "\"x\"", 100)
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
    }

    #[test]
    fn ranges_that_begin_past_the_end_are_outside() {
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
    }

    #[test]
    fn a_range_of_another_representation_counts_as_none() {
        let ask = |if_range: &str| {
            let headers = HeaderMap::from_iter([
                (RANGE, "bytes=1-2".parse().unwrap()),
                (IF_RANGE, if_range.parse().unwrap()),
            ]);
            wanted(&headers, "\"x\"", 100)
        };
        assert_eq!(ask("\"x\""), Wanted::Part(1..3));
        for other in ["\"y\"", "W/\"x\"", "Sun, 06 Nov 1994 08:49:37 GMT"] {
            assert_eq!(ask(other), Wanted::Whole, "{other}");
        }
    }

    #[test]
    fn any_of_several_tags_may_match() {
        let has = |value: &str| {
            has_it_already(&HeaderMap::from_iter([(IF_NONE_MATCH, value.parse().unwrap())]), "\"x\"")
        };
        assert!(has("\"x\"") && has("W/\"x\"") && has("\"a\", \"x\"") && has("*"));
        assert!(!has("\"y\"") && !has("x") && !has(""));
    }
}
