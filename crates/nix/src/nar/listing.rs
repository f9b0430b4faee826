//! The listing of a NAR, as Nix serves it beside the narinfo (`<hash>.ls`). The reader writes the
//! listing while the NAR streams by.
//!
//! ```json
//! {"version":1,"root":{"type":"directory","entries":{
//!   "bin":{"type":"directory","entries":{"hello":{"type":"regular","size":7,"executable":true,"narOffset":400}}},
//!   "lib":{"type":"symlink","target":"/nix/store/…"}}}}
//! ```
//!
//! `narOffset` is the position of the file's first byte in the NAR. `executable` appears only when
//! true. Bytes go straight from the parser to the text; no tree is kept.
//!
//! File names are bytes, but JSON is text. The writer replaces each byte that is not UTF-8 with
//! U+FFFD and the byte in hexadecimal, so that different names stay different. There is no example
//! to follow: newer versions of Nix write no listing of such a NAR, and fail on one with the bytes
//! in it. The NAR itself stays as it is.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The listing of one NAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listing {
    /// The listing as JSON, without the parts that [`super::NarReader::take_listing`] already took.
    Json(Vec<u8>),
    /// The listing would exceed [`super::NarLimits::listing_bytes_max`]. The NAR is still valid.
    TooLarge,
}

impl Listing {
    /// The JSON, if the listing was kept.
    pub fn json(&self) -> Option<&[u8]> {
        match self {
            Self::Json(json) => Some(json),
            Self::TooLarge => None,
        }
    }

    /// The JSON, if the listing was kept.
    pub fn into_json(self) -> Option<Vec<u8>> {
        match self {
            Self::Json(json) => Some(json),
            Self::TooLarge => None,
        }
    }
}

/// Writes a listing with one call per fact, in the order of the NAR. The caller ensures correct
/// nesting.
#[derive(Debug)]
pub(super) struct ListingWriter {
    /// `None` after the listing grew over the limit.
    json: Option<Vec<u8>>,
    /// Number of bytes that were already taken.
    taken: usize,
    bytes_max: usize,
}

impl ListingWriter {
    pub(super) fn new(bytes_max: usize) -> Self {
        let mut writer = Self { json: (bytes_max > 0).then(Vec::new), taken: 0, bytes_max };
        writer.write(|json| json.extend_from_slice(br#"{"version":1,"root":"#));
        writer
    }

    pub(super) fn file(&mut self, size: u64, executable: bool, nar_offset: u64) {
        self.write(|json| {
            json.extend_from_slice(br#"{"type":"regular","size":"#);
            json.extend_from_slice(size.to_string().as_bytes());
            if executable {
                json.extend_from_slice(br#","executable":true"#);
            }
            json.extend_from_slice(br#","narOffset":"#);
            json.extend_from_slice(nar_offset.to_string().as_bytes());
            json.push(b'}');
        });
    }

    pub(super) fn symlink(&mut self, target: &[u8]) {
        self.write(|json| {
            json.extend_from_slice(br#"{"type":"symlink","target":"#);
            push_string(json, target);
            json.push(b'}');
        });
    }

    pub(super) fn start_directory(&mut self) {
        self.write(|json| json.extend_from_slice(br#"{"type":"directory","entries":{"#));
    }

    pub(super) fn entry(&mut self, name: &[u8], first: bool) {
        self.write(|json| {
            if !first {
                json.push(b',');
            }
            push_string(json, name);
            json.push(b':');
        });
    }

    pub(super) fn end_directory(&mut self) {
        self.write(|json| json.extend_from_slice(b"}}"));
    }

    /// Takes the part that is written so far, if it has at least `bytes_min` bytes.
    pub(super) fn take(&mut self, bytes_min: usize) -> Option<Vec<u8>> {
        let json = self.json.as_mut().filter(|json| json.len() >= bytes_min.max(1))?;
        self.taken += json.len();
        Some(std::mem::take(json))
    }

    pub(super) fn finish(mut self) -> Listing {
        self.write(|json| json.push(b'}'));
        self.json.map_or(Listing::TooLarge, Listing::Json)
    }

    /// Every fact goes through here. The text exceeds the limit by one name at most before it is
    /// dropped.
    fn write(&mut self, fact: impl FnOnce(&mut Vec<u8>)) {
        if let Some(json) = &mut self.json {
            fact(json);
            if self.taken + json.len() > self.bytes_max {
                self.json = None;
            }
        }
    }
}

fn push_string(json: &mut Vec<u8>, bytes: &[u8]) {
    serde_json::to_writer(json, &as_text(bytes))
        .expect("a string is valid JSON, and writing to a vector cannot fail");
}

/// The bytes as text, with a mark for each byte that is not UTF-8.
pub(crate) fn as_text(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(text, "{}{byte:02x}", char::REPLACEMENT_CHARACTER);
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_utf_8_stay_distinct() {
        assert_eq!(as_text("naïve".as_bytes()), "naïve");
        assert_eq!(as_text(b"na\xefve"), "na\u{fffd}efve");
        assert_eq!(as_text(b"\xf0\x9f\x98"), "\u{fffd}f0\u{fffd}9f\u{fffd}98");
        let names =
            [&b"a\xff"[..], b"a\xfe", b"a\xff\xfe", b"a\xfe\xff", b"\xffa", "a\u{fffd}".as_bytes(), b"a"];
        let texts: std::collections::BTreeSet<_> = names.iter().map(|name| as_text(name)).collect();
        assert_eq!(texts.len(), names.len());
    }
}
