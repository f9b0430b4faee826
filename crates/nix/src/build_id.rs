//! Build ids: how debug info is found for a program.
//!
//! A linker writes the build id into a program, and tools put the debug info that they strip from
//! the program into `lib/debug/.build-id/<2 digits>/<other digits>.debug` of another output. A
//! cache answers `debuginfo/<build id>.debug` with a link to that file: a NAR, and the path in it.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::text::excerpt;

/// Fewest and most bytes of a build id. Linkers write 8 to 20.
const BYTES: std::ops::RangeInclusive<usize> = 2..=64;

/// Where debug files are in a NAR.
const FOLDER: &str = "lib/debug/.build-id/";

/// Behind a debug file's name.
const SUFFIX: &str = ".debug";

/// The build id of a program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuildId(Vec<u8>);

impl BuildId {
    /// From its bytes; an error if no linker writes so few or so many.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let id = Self(bytes.to_vec());
        if BYTES.contains(&bytes.len()) { Ok(id) } else { Err(Error::document_name(&id.to_string())) }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path of the debug file in its NAR.
    pub fn debug_file(&self) -> String {
        let digits = self.to_string();
        let (first, rest) = digits.split_at(2);
        format!("{FOLDER}{first}/{rest}{SUFFIX}")
    }

    /// From the names of a debug file and its folder: `<2 digits>`, `<other digits>.debug`.
    pub(crate) fn of_debug_file(folder: &[u8], file: &[u8]) -> Option<Self> {
        let rest = file.strip_suffix(SUFFIX.as_bytes()).filter(|_| folder.len() == 2)?;
        std::str::from_utf8(&[folder, rest].concat()).ok()?.parse().ok()
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for BuildId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let bytes = pairs.iter().map(|[high, low]| Some((digit(*high)? << 4) | digit(*low)?));
        let bytes: Option<Vec<u8>> = bytes.collect::<Option<_>>().filter(|_| rest.is_empty());
        let id = bytes.filter(|bytes| BYTES.contains(&bytes.len())).map(Self);
        id.ok_or_else(|| Error::document_name(&excerpt(text)))
    }
}

/// What `debuginfo/<build id>.debug` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DebugLink {
    /// The NAR's address, from the folder `debuginfo`.
    pub archive: String,
    /// The path in it.
    pub member: String,
}

impl DebugLink {
    /// The link to a file of the NAR with this name below `nar/`.
    pub fn new(build_id: &BuildId, nar_file: &str) -> Self {
        Self { archive: format!("../nar/{nar_file}"), member: build_id.debug_file() }
    }

    /// As JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("two texts are JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "00ab3f2d5c6e7f8091a2b3c4d5e6f708192a3b4c";

    #[test]
    fn an_id_names_its_file_and_back() {
        let id: BuildId = ID.parse().unwrap();
        assert_eq!(id.to_string(), ID);
        assert_eq!(BuildId::from_bytes(id.as_bytes()), Ok(id.clone()));
        let file = format!("{}.debug", &ID[2..]);
        assert_eq!(id.debug_file(), format!("lib/debug/.build-id/00/{file}"));
        assert_eq!(BuildId::of_debug_file(b"00", file.as_bytes()), Some(id.clone()));
        assert_eq!(
            DebugLink::new(&id, "x.nar.zst").to_json(),
            format!(r#"{{"archive":"../nar/x.nar.zst","member":"lib/debug/.build-id/00/{file}"}}"#)
        );
    }

    #[test]
    fn no_other_text_is_an_id() {
        for text in ["", "ab", "abc", "AB34", "ab3g", "ab/4", "../..", &"ab".repeat(65), "é3"] {
            assert!(text.parse::<BuildId>().is_err(), "{text}");
        }
        for (folder, file) in
            [("ab", "cd"), ("ab", ".debug"), ("a", "bcd.debug"), ("abc", "d.debug"), ("", "abcd.debug")]
        {
            assert_eq!(BuildId::of_debug_file(folder.as_bytes(), file.as_bytes()), None, "{folder}/{file}");
        }
    }
}
