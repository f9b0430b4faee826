//! Push by chunks: what `…/sessions` takes and answers.
//!
//! Layer: pure. The byte tables are in docs/HTTP-API.md, "Push by chunks". A pack and a NAR
//! manifest are bytes here: only the format crate reads them.
//!
//! Invariants
//! - The body of a commit has one spelling, and reading it copies nothing.
//! - No length is trusted before it was checked against the bytes.

use std::fmt;
use std::str::FromStr;

use dormer_nix::StoreDir;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, excerpt};
use crate::{ErrorBody, NAR_INFO_BYTES_MAX, UploadPathResult};

/// Version of the exchange, in [`SessionResponse::format`].
pub const SESSION_FORMAT: u32 = 1;

/// Bytes of a chunk's id in the body of `missing`.
pub const CHUNK_ID_BYTES: usize = 32;

/// Most positions in one [`CommitResult::Missing`].
pub const MISSING_POSITIONS_MAX: usize = 1_000;

/// The name of a session: 16 random bytes that the client chose. Written as 32 lower-case
/// hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId([u8; 16]);

impl SessionId {
    /// Wraps 16 bytes. For a new session, they must be fresh and random.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// The name of a part: the BLAKE3 in the trailer of its pack. Written as 64 lower-case hexadecimal
/// digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartDigest([u8; 32]);

impl PartDigest {
    /// Wraps the 32 bytes of a digest.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

macro_rules! hex_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                parse_hex(text).map(Self).ok_or_else(|| Error::SessionName { text: excerpt(text) })
            }
        }
    };
}

hex_text!(SessionId);
hex_text!(PartDigest);

fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// What the answer to PUT of a session has in every format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct SessionFormat {
    /// As in [`SessionResponse::format`].
    pub format: u32,
}

/// Answer to PUT of a session: how to cut and compress, and what fits a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionResponse {
    /// [`SESSION_FORMAT`]. It stands for the cuts and for every format of bytes.
    pub format: u32,
    /// The folder that the cache's paths live in. Store paths below it become holes.
    pub store_dir: StoreDir,
    /// Smallest chunk, in bytes.
    pub chunk_min: u32,
    /// Average chunk, in bytes.
    pub chunk_avg: u32,
    /// Largest chunk, in bytes.
    pub chunk_max: u32,
    /// The zstd level that the server would take.
    pub level: i32,
    /// Largest part, in bytes.
    pub part_bytes_max: u64,
    /// Most chunks of a part.
    #[serde(default = "part_chunks_max")]
    pub part_chunks_max: u32,
    /// Most chunks in one question for missing ones.
    pub missing_chunks_max: u32,
    /// Largest body of a commit, in bytes.
    pub commit_bytes_max: u64,
    /// Most paths in a commit.
    pub commit_paths_max: u32,
    /// When the session ends, in seconds since 1970.
    pub ends_at: i64,
}

/// What a server takes that does not say it.
fn part_chunks_max() -> u32 {
    4_096
}

/// Answer to a commit: one result per path, in the order of the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommitResponse {
    /// The results.
    pub results: Vec<CommitResult>,
}

/// What became of one path of a commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum CommitResult {
    /// The path is durable and visible.
    Committed(UploadPathResult),
    /// The server still reads and hashes the NAR, and goes on after the answer. Ask again.
    Verifying,
    /// The server did not begin with the path yet, or a reference that stands earlier in the
    /// request is not committed. Ask again.
    Waiting,
    /// The session may not use these chunks: they were never sent, or they are gone or damaged.
    Missing {
        /// Positions in the manifest, ascending; the first [`MISSING_POSITIONS_MAX`] of them.
        chunks: Vec<u64>,
    },
    /// The path cannot be committed as it is.
    Failed {
        /// What the API would answer to an upload.
        error: ErrorBody,
    },
    /// A state that a later server has. Only its path is concerned.
    #[serde(other)]
    Unknown,
}

/// One path of a commit, as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitEntry<'a> {
    /// The JSON of [`crate::UploadPathNarInfo`].
    pub info: &'a [u8],
    /// The NAR manifest.
    pub manifest: &'a [u8],
}

impl<'a> CommitEntry<'a> {
    /// Appends the entry to the body of a commit. [`Error::CommitBody`] if a length does not fit
    /// its 32 bits.
    pub fn encode_to(&self, out: &mut Vec<u8>) -> Result<()> {
        for bytes in [self.info, self.manifest] {
            let len =
                u32::try_from(bytes.len()).map_err(|_| Error::CommitBody { what: "an entry is too long" })?;
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Reads the whole body of a commit of at most `paths_max` paths. Refuses an empty body.
    pub fn decode_all(mut body: &'a [u8], paths_max: usize) -> Result<Vec<Self>> {
        let mut entries = Vec::new();
        while !body.is_empty() {
            if entries.len() == paths_max {
                return Err(Error::CommitBody { what: "it has too many paths" });
            }
            let info = take(&mut body)?;
            if info.len() > NAR_INFO_BYTES_MAX {
                let (bytes, max) = (info.len() as u64, NAR_INFO_BYTES_MAX as u64);
                return Err(Error::NarInfoTooLarge { bytes, max });
            }
            entries.push(Self { info, manifest: take(&mut body)? });
        }
        if entries.is_empty() { Err(Error::CommitBody { what: "it has no path" }) } else { Ok(entries) }
    }
}

fn take<'a>(body: &mut &'a [u8]) -> Result<&'a [u8]> {
    let end = Error::CommitBody { what: "it ends too early" };
    let Some((len, rest)) = body.split_first_chunk() else { return Err(end) };
    let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
    let Some((bytes, rest)) = rest.split_at_checked(len) else { return Err(end) };
    *body = rest;
    Ok(bytes)
}

/// Splits the body of `missing` into ids of chunks; `None` if it does not consist of whole ids.
pub fn read_chunk_ids(body: &[u8]) -> Option<impl ExactSizeIterator<Item = [u8; CHUNK_ID_BYTES]> + '_> {
    let (ids, rest) = body.as_chunks::<CHUNK_ID_BYTES>();
    rest.is_empty().then(|| ids.iter().copied())
}

/// The answer to `missing`: one bit per chunk, lowest first; 1 asks for the chunk. The unused bits
/// of the last byte are 0.
pub fn encode_missing(missing: impl IntoIterator<Item = bool>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (position, missing) in missing.into_iter().enumerate() {
        if position % 8 == 0 {
            bytes.push(0);
        }
        if let Some(last) = bytes.last_mut() {
            *last |= u8::from(missing) << (position % 8);
        }
    }
    bytes
}

/// Reads the answer for `count` chunks; `None` if it is another size or sets unused bits.
pub fn decode_missing(bytes: &[u8], count: usize) -> Option<Vec<bool>> {
    if bytes.len() != count.div_ceil(8) {
        return None;
    }
    let bit = |position: usize| bytes.get(position / 8).is_some_and(|byte| byte >> (position % 8) & 1 == 1);
    if (count..8 * bytes.len()).any(bit) {
        return None;
    }
    Some((0..count).map(bit).collect())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn commit_bodies_come_back_and_cut_ones_are_refused(
            entries in vec((vec(any::<u8>(), 0..40), vec(any::<u8>(), 0..40)), 1..6),
        ) {
            let entries: Vec<_> =
                entries.iter().map(|(info, manifest)| CommitEntry { info, manifest }).collect();
            let mut body = Vec::new();
            let mut ends = Vec::new();
            for entry in &entries {
                entry.encode_to(&mut body).unwrap();
                ends.push(body.len());
            }
            prop_assert_eq!(&CommitEntry::decode_all(&body, entries.len()).unwrap(), &entries);
            prop_assert!(CommitEntry::decode_all(&body, entries.len() - 1).is_err());
            for len in 0..body.len() {
                let whole = ends.contains(&len);
                prop_assert_eq!(CommitEntry::decode_all(&body[..len], 9).is_ok(), whole);
            }
        }

        #[test]
        fn bitmaps_come_back(missing in vec(any::<bool>(), 0..70)) {
            let bytes = encode_missing(missing.iter().copied());
            prop_assert_eq!(bytes.len(), missing.len().div_ceil(8));
            prop_assert_eq!(decode_missing(&bytes, missing.len()), Some(missing));
        }

        #[test]
        fn names_come_back(bytes: [u8; 32]) {
            let digest = PartDigest::from_bytes(bytes);
            prop_assert_eq!(digest.to_string().parse::<PartDigest>().unwrap(), digest);
            prop_assert!(digest.to_string().parse::<SessionId>().is_err());
        }
    }

    #[test]
    fn bitmaps_begin_with_the_lowest_bit() {
        let missing = [true, false, false, false, false, false, false, false, true, true];
        assert_eq!(encode_missing(missing), [1, 3]);
        assert_eq!(decode_missing(&[1, 3], 9), None, "a bit without a chunk");
        assert_eq!(decode_missing(&[1], 9), None, "too short");
        assert_eq!(decode_missing(&[1, 0, 0], 9), None, "too long");
    }

    #[test]
    fn ids_of_chunks_are_whole() {
        let body = [[1; 32], [2; 32]].concat();
        assert_eq!(read_chunk_ids(&body).unwrap().collect::<Vec<_>>(), [[1; 32], [2; 32]]);
        assert!(read_chunk_ids(&body[..63]).is_none());
        assert_eq!(read_chunk_ids(&[]).unwrap().len(), 0);
    }

    #[test]
    fn a_session_has_one_spelling() {
        let text = "00ff10ab00ff10ab00ff10ab00ff10ab";
        assert_eq!(text.parse::<SessionId>().unwrap().to_string(), text);
        for bad in ["", "00", &text.to_uppercase(), &text.replace('0', "g"), &format!("{text}0")] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad}");
        }
    }
}
