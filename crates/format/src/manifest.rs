//! NAR manifests: a recipe whose chunks are named by id, as a client sends it and the journal
//! keeps it.
//!
//! Layer: format (pure). Byte table: docs/STORAGE.md, "NAR manifest".
//!
//! Invariants (of every manifest that `decode` returns)
//! - The fills keep the rules of a recipe, and the recipe of the fills has no runs.
//! - A manifest has one spelling: it encodes to the bytes that it was read from.
//! - Memory is taken only for items whose bytes are there. It is at most 8 times the bytes.

use crate::FORMAT_VERSION;
use crate::error::{Error, Malformed, Result};
use crate::ids::ChunkId;
use crate::recipe::Recipe;
use crate::wire::{Reader, put_varint};

/// Bytes of a chunk's id.
const ID_BYTES: usize = 32;

/// How to rebuild a NAR from chunks that are named by id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NarManifest {
    /// The chunks, in order.
    pub chunks: Vec<ChunkId>,
    /// The fills of all holes. Its runs are empty.
    pub fills: Recipe,
}

impl NarManifest {
    /// Encodes the manifest: version, count of chunks, their ids, and the fills as a recipe without
    /// runs.
    pub fn encode(&self) -> Vec<u8> {
        let fills = encode_fills(&self.fills);
        let mut out = Vec::with_capacity(12 + ID_BYTES * self.chunks.len() + fills.len());
        put_varint(&mut out, FORMAT_VERSION.into());
        put_chunks(&mut out, &self.chunks);
        out.extend_from_slice(&fills);
        out
    }

    /// Reads a manifest that fills all of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let manifest = |source| Error::Manifest { source };
        let mut reader = Reader::new(bytes);
        read_version(&mut reader).map_err(manifest)?;
        let chunks = read_chunks(&mut reader).map_err(manifest)?;
        let rest = reader.take(reader.remaining()).map_err(manifest)?;
        Ok(Self { chunks, fills: decode_fills(rest)? })
    }

    /// Most memory for these bytes and for the manifest that [`decode`](Self::decode) reads from
    /// them. It reads the count of chunks alone, so it takes no memory and no time.
    pub fn memory_bytes(bytes: &[u8]) -> Result<u64> {
        let count = |bytes| {
            let mut reader = Reader::new(bytes);
            read_version(&mut reader)?;
            Ok((reader.count(ID_BYTES)?, reader.remaining()))
        };
        let (chunks, remaining) = count(bytes).map_err(|source| Error::Manifest { source })?;
        let id_bytes = ID_BYTES * chunks;
        // Ids take what they took encoded.
        Ok((bytes.len() + id_bytes + FILL_COPIES * (remaining - id_bytes)) as u64)
    }
}

/// Memory of decoded fills, in their bytes, at most: a recipe's bound.
const FILL_COPIES: usize = 8;

fn read_version(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    match reader.varint()? {
        version if version == u64::from(FORMAT_VERSION) => Ok(()),
        version => Err(Malformed::Version { version: u16::try_from(version).unwrap_or(u16::MAX) }),
    }
}

/// The fills alone, as a recipe without runs.
pub(crate) fn encode_fills(fills: &Recipe) -> Vec<u8> {
    Recipe { runs: Vec::new(), ..fills.clone() }.encode()
}

/// Reads what [`encode_fills`] wrote.
pub(crate) fn decode_fills(bytes: &[u8]) -> Result<Recipe> {
    let fills = Recipe::decode(bytes)?;
    if fills.runs.is_empty() {
        Ok(fills)
    } else {
        Err(Error::Manifest { source: Malformed::OutOfBounds { what: "the count of runs" } })
    }
}

/// Appends a count of chunks and their ids.
pub(crate) fn put_chunks(out: &mut Vec<u8>, chunks: &[ChunkId]) {
    put_varint(out, chunks.len() as u64);
    for chunk in chunks {
        out.extend_from_slice(chunk.as_bytes());
    }
}

/// Reads what [`put_chunks`] wrote.
pub(crate) fn read_chunks(reader: &mut Reader<'_>) -> Result<Vec<ChunkId>, Malformed> {
    let count = reader.count(ID_BYTES)?;
    (0..count).map(|_| reader.array().map(ChunkId::from_bytes)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::ids::HoleFill;
    use crate::recipe::{ChunkRun, RecipeBuilder};

    fn manifest(chunks: &[u8], fills: &[u8]) -> NarManifest {
        let mut builder = RecipeBuilder::new();
        for &character in fills {
            builder.push_fill(&HoleFill::from_bytes([character; 32]).unwrap());
        }
        NarManifest {
            chunks: chunks.iter().map(|&byte| ChunkId::from_bytes([byte; 32])).collect(),
            fills: builder.finish(),
        }
    }

    proptest! {
        #[test]
        fn manifests_come_back(
            chunks in vec(any::<u8>(), 0..200),
            fills in vec(prop::sample::select(b"0123456789abcdfghijklmnpqrsvwxyz".to_vec()), 0..200),
        ) {
            let manifest = manifest(&chunks, &fills);
            let bytes = manifest.encode();
            prop_assert_eq!(&NarManifest::decode(&bytes).unwrap(), &manifest);
            let fills = &manifest.fills;
            let decoded = 32 * (manifest.chunks.len() + fills.hashes.len()) + 8 * fills.fills.len();
            let memory = NarManifest::memory_bytes(&bytes).unwrap();
            prop_assert!(memory >= (bytes.len() + decoded) as u64);
            prop_assert!(memory <= 9 * bytes.len() as u64);
            for len in 0..bytes.len() {
                prop_assert!(NarManifest::decode(&bytes[..len]).is_err());
            }
            prop_assert!(NarManifest::decode(&[&bytes[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_table() {
        let bytes = manifest(&[7, 8], b"0").encode();
        let fills = [&[1, 0, 1][..], &HoleFill::from_bytes([b'0'; 32]).unwrap().pack(), &[1, 0]].concat();
        assert_eq!(bytes, [&[1, 2][..], &[7; 32], &[8; 32], &fills].concat());
        assert_eq!(manifest(&[], b"").encode(), [1, 0, 1, 0, 0, 0], "the shortest");
    }

    #[test]
    fn other_versions_runs_and_hostile_counts_are_refused() {
        assert!(matches!(
            NarManifest::decode(&[2, 0, 1, 0, 0, 0]),
            Err(Error::Manifest { source: Malformed::Version { version: 2 } })
        ));
        assert!(NarManifest::memory_bytes(&[2, 0, 1, 0, 0, 0]).is_err());
        assert!(NarManifest::memory_bytes(&[1, 9, 1, 0, 0, 0]).is_err(), "nine ids are not there");
        let with_runs = Recipe { runs: vec![ChunkRun { first: 1, count: 1 }], ..Recipe::default() };
        let bytes = [&[1, 0][..], &with_runs.encode()].concat();
        assert!(matches!(
            NarManifest::decode(&bytes),
            Err(Error::Manifest { source: Malformed::OutOfBounds { .. } })
        ));
        // Manifests that carry runs by mistake are written without them.
        let manifest = NarManifest { chunks: Vec::new(), fills: with_runs };
        assert_eq!(manifest.encode(), [1, 0, 1, 0, 0, 0]);

        let mut bytes = vec![1];
        put_varint(&mut bytes, 1 << 40);
        bytes.extend_from_slice(&[0; 64]);
        assert!(matches!(
            NarManifest::decode(&bytes),
            Err(Error::Manifest { source: Malformed::UnexpectedEnd })
        ));
        // A fill whose characters are no hash has no spelling: 20 bytes hold exactly 32 characters.
        // A fill that names no hash is refused.
        let bytes = [1, 0, 1, 0, 0, 1, 0];
        assert!(matches!(NarManifest::decode(&bytes), Err(Error::Recipe { .. })));
    }
}
