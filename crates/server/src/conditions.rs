//! `Range`, `If-Range` and `If-None-Match` of a request, read as at the edge; and `If-None-Match`
//! of an upload.

use std::ops::Range;

use dormer_edge::{client_has, wanted_part};
use http::HeaderMap;
use http::header::{IF_NONE_MATCH, IF_RANGE, RANGE};

/// The part of a representation that a request wants.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of it.
    Whole,
    /// These bytes, which exist.
    Part(Range<u64>),
    /// Bytes that do not exist.
    Outside,
}

/// Reads the range that a GET asks for.
pub(crate) fn wanted(headers: &HeaderMap, etag: &str, size: u64) -> Wanted {
    // Two of a header are one with two values: that is no single range, and no tag. Neither is a
    // value that is no text.
    let single = |name| {
        let mut values = headers.get_all(name).iter();
        let first = values.next()?;
        Some(first.to_str().ok().filter(|_| values.next().is_none()).unwrap_or_default())
    };
    let (range, if_range) = (single(RANGE), single(IF_RANGE));
    match wanted_part(range, if_range, etag) {
        None => Wanted::Whole,
        Some(part) => part.of(size).map_or(Wanted::Outside, Wanted::Part),
    }
}

/// Whether an upload must not take the place of anything: `If-None-Match: *`.
pub(crate) fn wants_new_place(headers: &HeaderMap) -> bool {
    headers.get_all(IF_NONE_MATCH).iter().any(|value| value.as_bytes().trim_ascii() == b"*")
}

/// Whether the client has this representation already.
pub(crate) fn has_it_already(headers: &HeaderMap, etag: &str) -> bool {
    client_has(headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()), etag)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn ask(range: &str, if_range: Option<&[u8]>) -> Wanted {
        let mut headers = HeaderMap::from_iter([(RANGE, range.parse().unwrap())]);
        if let Some(value) = if_range {
            headers.insert(IF_RANGE, HeaderValue::from_bytes(value).unwrap());
        }
        wanted(&headers, "\"x\"", 100)
    }

    #[test]
    fn a_range_is_a_part_or_outside_or_none() {
        assert_eq!(wanted(&HeaderMap::new(), "\"x\"", 100), Wanted::Whole);
        assert_eq!(ask("bytes=90-1000", None), Wanted::Part(90..100));
        assert_eq!(ask("bytes=-1000", None), Wanted::Part(0..100));
        for range in ["bytes=100-", "bytes=100-200", "bytes=-0"] {
            assert_eq!(ask(range, None), Wanted::Outside, "{range}");
        }
        for range in ["", "bytes=5-4", "bytes=0-1,3-4", "lines=0-1"] {
            assert_eq!(ask(range, None), Wanted::Whole, "{range}");
        }
    }

    #[test]
    fn a_range_of_another_representation_counts_as_none() {
        assert_eq!(ask("bytes=1-2", Some(b"\"x\"")), Wanted::Part(1..3));
        for other in [&b"\"y\""[..], b"W/\"x\"", b"Sun, 06 Nov 1994 08:49:37 GMT", b"\"\xff\"", b""] {
            assert_eq!(ask("bytes=1-2", Some(other)), Wanted::Whole, "{other:?}");
        }
    }

    #[test]
    fn two_ranges_and_two_tags_count_as_none() {
        let with = |more| {
            let values = [(RANGE, "bytes=1-2"), (IF_RANGE, "\"x\"")];
            let mut headers: HeaderMap =
                values.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
            for (name, value) in more {
                headers.append(name, HeaderValue::from_static(value));
            }
            wanted(&headers, "\"x\"", 100)
        };
        assert_eq!(with(vec![]), Wanted::Part(1..3));
        assert_eq!(with(vec![(RANGE, "bytes=4-5")]), Wanted::Whole);
        assert_eq!(with(vec![(IF_RANGE, "\"x\"")]), Wanted::Whole);
    }

    #[test]
    fn any_tag_of_any_header_may_match() {
        let mut headers = HeaderMap::new();
        assert!(!has_it_already(&headers, "\"x\""));
        for value in [&b"\"\xff\""[..], b"\"a\", \"b\"", b"W/\"x\""] {
            headers.append(IF_NONE_MATCH, HeaderValue::from_bytes(value).unwrap());
        }
        assert!(has_it_already(&headers, "\"x\"") && !has_it_already(&headers, "\"y\""));
    }
}
