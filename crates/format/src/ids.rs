//! Identities: the names of a chunk, of a pack and of the exact bytes of a served NAR; and hole
//! fills.
//!
//! Layer: format (pure). Byte tables: docs/STORAGE.md, "Chunk id", "Encoding tag".

use std::fmt;
use std::str::FromStr;

use dormer_nix::nix32;

use crate::error::{Error, Result};

/// Bytes in a hole: the hash part of a store path in nix-base32.
pub const HOLE_BYTES: usize = 32;

/// The same number, for 32-bit offsets.
pub(crate) const HOLE_LEN: u32 = 32;

/// Bytes of a packed hole fill (5 bits a character).
pub(crate) const FILL_PACKED_BYTES: usize = 20;

/// Identity of a chunk: BLAKE3 over its blanked bytes and the offsets of its holes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId([u8; 32]);

impl ChunkId {
    /// Wraps the 32 bytes of an existing id.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Computes the id of a chunk from its blanked bytes and the offsets of its holes.
    ///
    /// BLAKE3(bytes || each offset as u32 LE || their count as u32 LE). Read from the end, the
    /// input parses in only one way. A hole and a literal run of `e` therefore never give the same
    /// id.
    pub fn compute(blanked: &[u8], holes: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(blanked);
        for hole in holes {
            hasher.update(&hole.to_le_bytes());
        }
        let count = u32::try_from(holes.len()).expect("a chunk has far fewer than 2^32 holes");
        hasher.update(&count.to_le_bytes());
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({self})")
    }
}

impl FromStr for ChunkId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_hex(text)
            .map(Self)
            .ok_or(Error::ParseId { what: "a chunk id", expected: "64 lower-case hexadecimal digits" })
    }
}

/// Identity of a pack: 16 random bytes that are never used twice, so that a delayed delete can
/// never hit a later upload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId([u8; 16]);

impl PackId {
    /// Wraps 16 bytes. For a new pack, they must be fresh and random.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackId({self})")
    }
}

impl FromStr for PackId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_hex(text)
            .map(Self)
            .ok_or(Error::ParseId { what: "a pack id", expected: "32 lower-case hexadecimal digits" })
    }
}

/// The name of the exact bytes that are served for a NAR: a digest over its stored frames and its
/// fills.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EncodingTag([u8; 16]);

impl EncodingTag {
    /// Wraps the 16 bytes of an existing tag.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for EncodingTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&nix32::encode(&self.0))
    }
}

impl fmt::Debug for EncodingTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncodingTag({self})")
    }
}

impl FromStr for EncodingTag {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let problem = Error::ParseId { what: "an encoding tag", expected: "26 nix-base32 characters" };
        // 16 bytes are 26 characters. The length is checked first, so that no large text is
        // decoded.
        if text.len() != 26 {
            return Err(problem);
        }
        match nix32::decode(text).ok().and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()) {
            Some(bytes) => Ok(Self(bytes)),
            None => Err(problem),
        }
    }
}

/// The former 32 characters of a hole, always nix-base32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HoleFill([u8; HOLE_BYTES]);

impl HoleFill {
    /// Takes 32 characters, if all of them are nix-base32.
    pub fn from_bytes(bytes: [u8; HOLE_BYTES]) -> Option<Self> {
        bytes.iter().all(|&byte| nix32::is_char(byte)).then_some(Self(bytes))
    }

    /// The 32 characters.
    pub const fn as_bytes(&self) -> &[u8; HOLE_BYTES] {
        &self.0
    }

    /// Packs the fill into 20 bytes: 5 bits a character, the first character lowest, bits in
    /// ascending order. Every value of the 20 bytes stands for a fill.
    pub(crate) fn pack(&self) -> [u8; FILL_PACKED_BYTES] {
        let mut packed = [0; FILL_PACKED_BYTES];
        for (group, characters) in packed.chunks_exact_mut(5).zip(self.0.chunks_exact(8)) {
            let mut bits = 0_u64;
            for &character in characters.iter().rev() {
                bits = bits << 5 | u64::from(digit(character));
            }
            group.copy_from_slice(&bits.to_le_bytes()[..5]);
        }
        packed
    }

    /// The inverse of [`pack`](Self::pack).
    pub(crate) fn unpack(packed: [u8; FILL_PACKED_BYTES]) -> Self {
        let mut fill = [0; HOLE_BYTES];
        for (group, characters) in packed.chunks_exact(5).zip(fill.chunks_exact_mut(8)) {
            let mut eight = [0; 8];
            eight[..5].copy_from_slice(group);
            let mut bits = u64::from_le_bytes(eight);
            for character in characters {
                *character = nix32::ALPHABET[(bits & 31) as usize];
                bits >>= 5;
            }
        }
        Self(fill)
    }
}

impl fmt::Display for HoleFill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&byte| fmt::Write::write_char(f, char::from(byte)))
    }
}

impl fmt::Debug for HoleFill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HoleFill({self})")
    }
}

/// Value of a nix-base32 character.
fn digit(character: u8) -> u8 {
    let position = nix32::ALPHABET.iter().position(|&known| known == character);
    u8::try_from(position.expect("a fill holds nix-base32 only")).expect("the alphabet has 32 characters")
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Accepts lower case only: an id has one spelling, because object names are compared as text.
fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_have_one_spelling() {
        let id = PackId::from_bytes(*b"\x00\x01\x0f\x10\xff\xab456789abcd");
        assert_eq!(id.to_string(), "00010f10ffab34353637383961626364");
        assert_eq!(id.to_string().parse::<PackId>().unwrap(), id);
        assert!(id.to_string().to_uppercase().parse::<PackId>().is_err());
        assert!(id.to_string()[1..].parse::<PackId>().is_err());
        assert!("é".repeat(16).parse::<PackId>().is_err());
    }

    #[test]
    fn a_fill_holds_nix_base32_only() {
        assert!(HoleFill::from_bytes(*b"0123456789abcdfghijklmnpqrsvwxyz").is_some());
        assert!(HoleFill::from_bytes(*b"0123456789abcdefghijklmnpqrsvwxy").is_none());
        assert!(HoleFill::from_bytes([0; 32]).is_none());
    }

    proptest! {
        #[test]
        fn packed_fills_come_back(packed: [u8; FILL_PACKED_BYTES]) {
            let fill = HoleFill::unpack(packed);
            prop_assert_eq!(HoleFill::from_bytes(*fill.as_bytes()), Some(fill));
            prop_assert_eq!(fill.pack(), packed);
        }

        #[test]
        fn printed_ids_parse_back(chunk: [u8; 32], pack: [u8; 16]) {
            let chunk = ChunkId::from_bytes(chunk);
            prop_assert_eq!(chunk.to_string().parse::<ChunkId>().unwrap(), chunk);
            let pack = PackId::from_bytes(pack);
            prop_assert_eq!(pack.to_string().parse::<PackId>().unwrap(), pack);
            let tag = EncodingTag::from_bytes(*pack.as_bytes());
            prop_assert_eq!(tag.to_string().len(), 26);
            prop_assert_eq!(tag.to_string().parse::<EncodingTag>().unwrap(), tag);
        }
    }
}
