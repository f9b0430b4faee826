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
//! File names are bytes, but JSON is text. The writer replaces each sequence that is not UTF-8 with
//! U+FFFD, because newer versions of Nix fail on such a listing. Two names may then look alike. The
//! NAR itself stays as it is.

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
    serde_json::to_writer(json, &String::from_utf8_lossy(bytes))
        .expect("a string is valid JSON, and writing to a vector cannot fail");
}
