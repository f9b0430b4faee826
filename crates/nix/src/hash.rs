//! sha256 as Nix writes it, and a hasher for a NAR that streams by.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::nix32;
use crate::text::serde_as_string;

/// The sha256 of a NAR, or of a file that holds a NAR: `sha256:` and 52 characters of nix-base32.
///
/// Parsing accepts nix-base32, hex and base64 after `sha256:`, and base64 after `sha256-` (the form
/// that web pages use). Printing always uses nix-base32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NarHash([u8; 32]);

impl NarHash {
    /// Makes a hash from the bytes of the digest.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Hashes bytes in memory.
    pub fn digest(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// 52 characters of nix-base32 without the `sha256:`, as in the names of NAR files.
    pub fn to_nix32(&self) -> String {
        nix32::encode(&self.0)
    }

    /// Reads 52 characters of nix-base32 without the `sha256:`.
    pub fn from_nix32(text: &str) -> Result<Self> {
        nix32::decode_array(text).map(Self).map_err(|_| Error::hash(text))
    }

    /// 64 lower-case hex digits without the `sha256:`.
    pub fn to_hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
        self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }

    /// Reads 64 hex digits of either case, without the `sha256:`.
    pub fn from_hex(text: &str) -> Result<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(Error::hash(text));
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let nibble =
                |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
            let (Some(high), Some(low)) = (nibble(pair[0]), nibble(pair[1])) else {
                return Err(Error::hash(text));
            };
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }

    fn from_base64(text: &str) -> Result<Self> {
        let bytes = STANDARD.decode(text).map_err(|_| Error::hash(text))?;
        bytes.try_into().map(Self).map_err(|_| Error::hash(text))
    }
}

impl FromStr for NarHash {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let read = if let Some(digest) = text.strip_prefix("sha256:") {
            match digest.len() {
                64 => Self::from_hex(digest),
                52 => Self::from_nix32(digest),
                _ => Self::from_base64(digest),
            }
        } else if let Some(digest) = text.strip_prefix("sha256-") {
            Self::from_base64(digest)
        } else {
            return Err(Error::hash(text));
        };
        read.map_err(|_| Error::hash(text))
    }
}

impl fmt::Display for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.to_nix32())
    }
}

impl fmt::Debug for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

serde_as_string!(NarHash, "a sha256 hash");

/// Hashes and counts a NAR that streams by.
#[derive(Clone, Default)]
pub struct NarHasher {
    sha256: Sha256,
    size: u64,
}

impl NarHasher {
    /// Starts with no bytes hashed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece of the NAR; pieces can have any size.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.size += bytes.len() as u64;
    }

    /// Bytes taken so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The hash, and the number of bytes that it covers.
    pub fn finish(self) -> (NarHash, u64) {
        (NarHash(self.sha256.finalize().into()), self.size)
    }
}

impl fmt::Debug for NarHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NarHasher").field("size", &self.size).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::strategies;

    /// The sha256 of nothing, in the four forms that `nix hash
    /// to-base16|to-base32|to-base64|to-sri` prints.
    const EMPTY: [&str; 4] = [
        "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        "sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    ];

    #[test]
    fn every_form_reads_as_the_same_hash_and_writes_as_nix_base32() {
        for form in EMPTY {
            let hash: NarHash = form.parse().unwrap();
            assert_eq!(hash, NarHash::digest(b""));
            assert_eq!(hash.to_string(), EMPTY[0]);
        }
        assert_eq!(EMPTY[1].to_uppercase().replace("SHA", "sha").parse(), Ok(NarHash::digest(b"")));
    }

    #[test]
    fn nix_and_we_print_hashes_alike() {
        let vectors = include_str!("../tests/data/hash-vectors.txt").lines();
        let sha256: Vec<&str> = vectors.filter(|line| line.starts_with("sha256 ")).collect();
        assert_eq!(sha256.len(), 4);
        for line in sha256 {
            let fields: Vec<&str> = line.split(' ').collect();
            let hash: NarHash = fields[4].parse().unwrap();
            assert_eq!(hash.to_hex(), fields[1]);
            assert_eq!(hash.to_nix32(), fields[2]);
            assert_eq!(format!("sha256:{}", fields[3]).parse(), Ok(hash));
        }
    }

    #[test]
    fn other_algorithms_and_lengths_are_refused() {
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha256-",
            "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
            "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg==",
            "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c7",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85",
            "sha256:+3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha256:é3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85",
            "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU",
            "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=",
            " sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            "sha256:zmdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
        ] {
            assert!(text.parse::<NarHash>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parse_undoes_display(hash in strategies::nar_hash()) {
            prop_assert_eq!(hash.to_string().parse(), Ok(hash));
            prop_assert_eq!(format!("sha256:{}", hash.to_hex()).parse(), Ok(hash));
            prop_assert_eq!(NarHash::from_nix32(&hash.to_nix32()), Ok(hash));
            prop_assert_eq!(hash.to_hex(), hex::encode(hash.as_bytes()));
            let json = serde_json::to_string(&hash).unwrap();
            prop_assert_eq!(serde_json::from_str::<NarHash>(&json).unwrap(), hash);
        }

        #[test]
        fn the_hash_does_not_depend_on_how_the_bytes_are_cut(
            bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in any::<prop::sample::Index>(),
        ) {
            let (left, right) = bytes.split_at(cut.index(bytes.len() + 1));
            let mut hasher = NarHasher::new();
            hasher.update(left);
            hasher.update(right);
            prop_assert_eq!(hasher.finish(), (NarHash::digest(&bytes), bytes.len() as u64));
        }
    }
}
