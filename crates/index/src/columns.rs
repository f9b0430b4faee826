//! How values become columns and come back. Shared by all adapters.
//!
//! A stored value that does not read back is [`Error::Corrupt`], with the table it lies in; nothing
//! here panics on it.

use std::fmt::Display;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dormer_format::{ChunkId, ChunkLayout, EncodingTag, PackId, Recipe};
use dormer_nix::{NarHash, StorePath, StorePathHash};

use crate::contract::{ChunkRow, PackNumber, StoredListing};
use crate::{Error, Result};

/// Bytes of an ed25519 signature.
const SIGNATURE_BYTES: usize = 64;

/// A value that does not read back.
pub(crate) fn corrupt(table: &'static str, what: impl Display) -> Error {
    Error::Corrupt { table, what: what.to_string() }
}

/// Exactly `N` bytes.
pub(crate) fn array<const N: usize>(table: &'static str, bytes: &[u8]) -> Result<[u8; N]> {
    bytes.try_into().map_err(|_| corrupt(table, format_args!("{} bytes instead of {N}", bytes.len())))
}

/// A number that is never negative. No size reaches 2^63.
pub(crate) fn unsigned(table: &'static str, number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| corrupt(table, "a negative number"))
}

/// The other way round.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).expect("sizes and numbers stay below 2^63")
}

/// A NAR's hash.
pub(crate) fn nar_hash(bytes: &[u8]) -> Result<NarHash> {
    Ok(NarHash::from_bytes(array("nars", bytes)?))
}

/// A NAR's tag.
pub(crate) fn tag(bytes: &[u8]) -> Result<EncodingTag> {
    Ok(EncodingTag::from_bytes(array("nars", bytes)?))
}

/// A recipe.
pub(crate) fn recipe(table: &'static str, bytes: &[u8]) -> Result<Recipe> {
    Recipe::decode(bytes).map_err(|error| corrupt(table, error))
}

/// The columns of a chunk and its pack, as they are stored.
pub(crate) struct ChunkColumns<'r> {
    pub(crate) number: i64,
    pub(crate) id: &'r [u8],
    pub(crate) pack: i64,
    pub(crate) pack_id: &'r [u8],
    pub(crate) start: i64,
    pub(crate) checksum: i64,
    pub(crate) layout: &'r [u8],
}

impl ChunkColumns<'_> {
    pub(crate) fn read(&self) -> Result<ChunkRow> {
        Ok(ChunkRow {
            number: unsigned("chunks", self.number)?,
            id: ChunkId::from_bytes(array("chunks", self.id)?),
            pack: PackNumber(self.pack),
            pack_id: PackId::from_bytes(array("packs", self.pack_id)?),
            offset: unsigned("chunks", self.start)?,
            layout: ChunkLayout::decode(self.layout).map_err(|error| corrupt("chunks", error))?,
            checksum: self.checksum.cast_unsigned(),
        })
    }
}

/// A listing's columns `size` and `body`.
pub(crate) fn listing_columns(listing: &StoredListing) -> (Option<i64>, Vec<u8>) {
    match listing {
        StoredListing::Inline(json) => (None, json.clone()),
        StoredListing::Chunks { recipe, size } => (Some(signed(*size)), recipe.encode()),
    }
}

/// The reverse of [`listing_columns`].
pub(crate) fn read_listing(size: Option<i64>, body: Vec<u8>) -> Result<StoredListing> {
    Ok(match size {
        None => StoredListing::Inline(body),
        Some(size) => {
            StoredListing::Chunks { recipe: recipe("listings", &body)?, size: unsigned("listings", size)? }
        }
    })
}

/// References: for each one the length of its name, its hash and its name; a reference to the path
/// itself is a single 0. Less than half of what JSON takes.
pub(crate) fn pack_references(path: &StorePath, references: &[StorePath]) -> Vec<u8> {
    let mut out = Vec::with_capacity(references.iter().map(|reference| 21 + reference.name().len()).sum());
    for reference in references {
        if reference == path {
            out.push(0);
            continue;
        }
        out.push(u8::try_from(reference.name().len()).expect("a name has at most 211 bytes"));
        out.extend(reference.hash().as_bytes());
        out.extend(reference.name().as_bytes());
    }
    out
}

/// The reverse of [`pack_references`].
pub(crate) fn unpack_references(path: &StorePath, packed: &[u8]) -> Result<Vec<StorePath>> {
    let mut reader = Reader { left: packed };
    let mut references = Vec::new();
    while let Some(len) = reader.next_byte() {
        if len == 0 {
            references.push(path.clone());
            continue;
        }
        let hash = reader.take(20)?;
        references.push(store_path(hash, reader.text(len.into())?)?);
    }
    Ok(references)
}

/// A path from its columns.
pub(crate) fn store_path(hash: &[u8], name: &str) -> Result<StorePath> {
    let hash = StorePathHash::from_bytes(array("objects", hash)?);
    StorePath::new(hash, name).map_err(|error| corrupt("objects", error))
}

/// Signatures: for each one the length of the key's name, the name and 64 bytes; what has another
/// form is a single 0, its length (u32 LE) and its text.
pub(crate) fn pack_signatures(signatures: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    for signature in signatures {
        if let Some((len, name, bytes)) = split_signature(signature) {
            out.push(len);
            out.extend(name.as_bytes());
            out.extend(bytes);
        } else {
            let len = u32::try_from(signature.len()).expect("a signature is far shorter than 4 GiB");
            out.push(0);
            out.extend(len.to_le_bytes());
            out.extend(signature.as_bytes());
        }
    }
    out
}

/// The reverse of [`pack_signatures`].
pub(crate) fn unpack_signatures(packed: &[u8]) -> Result<Vec<String>> {
    let mut reader = Reader { left: packed };
    let mut signatures = Vec::new();
    while let Some(len) = reader.next_byte() {
        signatures.push(if len == 0 {
            let len = u32::from_le_bytes(array("objects", reader.take(4)?)?);
            reader.text(len as usize)?.to_owned()
        } else {
            let name = reader.text(len.into())?;
            format!("{name}:{}", STANDARD.encode(reader.take(SIGNATURE_BYTES)?))
        });
    }
    Ok(signatures)
}

/// Length of the key's name, the name and the bytes, if that is all there is to say about a
/// signature.
fn split_signature(signature: &str) -> Option<(u8, &str, Vec<u8>)> {
    let (name, encoded) = signature.split_once(':')?;
    let len = u8::try_from(name.len()).ok().filter(|len| *len > 0)?;
    let bytes = STANDARD.decode(encoded).ok().filter(|bytes| bytes.len() == SIGNATURE_BYTES)?;
    (STANDARD.encode(&bytes) == encoded).then_some((len, name, bytes))
}

/// Fields of a narinfo, one a line: `name: value`.
pub(crate) fn pack_fields(fields: &[(String, String)]) -> Option<String> {
    let lines: Vec<String> = fields.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    (!lines.is_empty()).then(|| lines.concat())
}

/// The reverse of [`pack_fields`].
pub(crate) fn unpack_fields(packed: Option<&str>) -> Vec<(String, String)> {
    let fields = packed.unwrap_or_default().lines().filter_map(|line| line.split_once(": "));
    fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Walks through a packed column of `objects`.
struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    fn next_byte(&mut self) -> Option<u8> {
        let (first, rest) = self.left.split_first()?;
        self.left = rest;
        Some(*first)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .left
            .split_at_checked(len)
            .ok_or_else(|| corrupt("objects", "a packed list is cut short"))?;
        self.left = rest;
        Ok(taken)
    }

    fn text(&mut self, len: usize) -> Result<&'a str> {
        std::str::from_utf8(self.take(len)?).map_err(|error| corrupt("objects", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(byte: u8, name: &str) -> StorePath {
        StorePath::new(StorePathHash::from_bytes([byte; 20]), name).unwrap()
    }

    #[test]
    fn references_come_back_and_a_self_reference_takes_a_byte() {
        let own = path(1, "own");
        let references = [path(0, "a"), own.clone(), path(2, &"n".repeat(211))];
        let packed = pack_references(&own, &references);
        assert_eq!(packed.len(), 22 + 1 + 232);
        assert_eq!(unpack_references(&own, &packed).unwrap(), references);
        assert_eq!(unpack_references(&own, &[]).unwrap(), []);
    }

    #[test]
    fn signatures_of_any_form_come_back() {
        let sound = format!("cache.example.org-1:{}", STANDARD.encode([7; 64]));
        let unpadded = sound.trim_end_matches('=').to_owned();
        let signatures = [
            sound.clone(),
            unpadded,
            String::new(),
            "no colon".to_owned(),
            format!(":{}", STANDARD.encode([7; 64])),
            format!("{}:{}", "n".repeat(300), STANDARD.encode([7; 64])),
            format!("short:{}", STANDARD.encode([7; 63])),
        ];
        let packed = pack_signatures(&signatures);
        assert_eq!(unpack_signatures(&packed).unwrap(), signatures);
        assert_eq!(pack_signatures(&[sound]).len(), 1 + "cache.example.org-1".len() + 64);
    }

    #[test]
    fn damaged_columns_are_errors() {
        let own = path(1, "own");
        let packed = pack_references(&own, &[path(0, "abc")]);
        for len in 1..packed.len() {
            assert!(matches!(unpack_references(&own, &packed[..len]), Err(Error::Corrupt { .. })), "{len}");
        }
        let mut bad_name = packed;
        *bad_name.last_mut().unwrap() = b'/';
        assert!(unpack_references(&own, &bad_name).is_err());
        let packed = pack_signatures(&["text".to_owned(), format!("k:{}", STANDARD.encode([7; 64]))]);
        // Where a list ends, any whole prefix is a list too.
        for len in (1..packed.len()).filter(|len| *len != 9) {
            assert!(unpack_signatures(&packed[..len]).is_err(), "{len}");
        }
        assert!(unsigned("nars", -1).is_err());
        assert!(nar_hash(&[0; 31]).is_err());
    }
}
