//! Packs: many chunks in one immutable object.
//!
//! Layer: format (pure). Byte tables: docs/STORAGE.md, "Pack".
//!
//! Invariants
//! - The packer writes a pack in one pass: header, frames back to back, table, trailer. The pack
//!   never changes afterwards.
//! - The table names every byte between header and table exactly once, so the index can be rebuilt
//!   from packs alone.
//! - The reader checks counts, lengths and checksums against the bytes before it uses them.

use std::ops::Range;

use bytes::Bytes;

use crate::FORMAT_VERSION;
use crate::codec::{StoredChunk, checksum};
use crate::error::{Error, Malformed, Result};
use crate::frame::check_stored;
use crate::ids::{ChunkId, PackId};
use crate::layout::ChunkLayout;
use crate::wire::Reader;

/// Size limit of a pack in bytes. 25 to 40 packs hold a gigabyte of software. One open pack and one
/// in flight stay well below a quarter of the memory that ingest may use.
pub const PACK_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Most chunks in a pack. Bounds the table, and the transaction that records the pack.
pub const PACK_CHUNKS_MAX: usize = 65_536;

/// Bytes of the header: magic, version, reserved, pack id.
pub const PACK_HEADER_BYTES: usize = 32;
/// Bytes of the trailer, which ends the pack.
pub const PACK_TRAILER_BYTES: usize = 64;

const HEADER_MAGIC: [u8; 8] = *b"DORMPACK";
const TRAILER_MAGIC: [u8; 8] = *b"KCAPMROD";

/// Bytes of the trailer that its hash covers: everything before the hash.
pub(crate) const TRAILER_HASHED_BYTES: usize = 24;
/// The shortest table entry: id, checksum, and a layout of three numbers.
const ENTRY_BYTES_MIN: usize = 32 + 8 + 3;

/// The place of a chunk in a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackEntry {
    /// The id of the chunk.
    pub id: ChunkId,
    /// Position of the chunk's first frame in the pack.
    pub offset: u64,
    /// How the stored bytes divide into frames.
    pub layout: ChunkLayout,
    /// XXH3-64 of the stored bytes.
    pub checksum: u64,
}

impl PackEntry {
    /// The range of the stored bytes in the pack.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.layout.stored_len())
    }
}

/// A finished pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pack {
    /// The pack's id, which determines the name of its object.
    pub id: PackId,
    /// The pack's bytes, in parts.
    pub parts: Vec<Bytes>,
    /// Number of bytes in all parts.
    pub size: u64,
    /// The pack's chunks, in the order of their offsets.
    pub entries: Vec<PackEntry>,
}

/// Collects chunks for one pack.
#[derive(Debug)]
pub struct PackBuilder {
    id: PackId,
    parts: Vec<Bytes>,
    entries: Vec<PackEntry>,
    /// The table without its count.
    table: Vec<u8>,
    /// Offset of the next chunk.
    offset: u64,
    hasher: blake3::Hasher,
}

impl PackBuilder {
    /// Starts a pack. The id must never have been used before.
    pub fn new(id: PackId) -> Self {
        let mut header = Vec::with_capacity(PACK_HEADER_BYTES);
        header.extend_from_slice(&HEADER_MAGIC);
        header.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        header.extend_from_slice(&[0; 6]);
        header.extend_from_slice(id.as_bytes());
        let mut hasher = blake3::Hasher::new();
        hasher.update(&header);
        let offset = header.len() as u64;
        Self { id, parts: vec![header.into()], entries: Vec::new(), table: Vec::new(), offset, hasher }
    }

    /// Whether the pack stays within its limits after adding this chunk. An empty pack accepts
    /// every chunk.
    pub fn has_room_for(&self, chunk: &StoredChunk) -> bool {
        // The layout of an entry takes at most five bytes a number.
        let numbers = 2 + chunk.layout.holes.len() + chunk.layout.frames.len();
        let entry_bytes_max = 40 + 5 * numbers;
        self.is_empty()
            || self.len() < PACK_CHUNKS_MAX
                && self.bytes() + (chunk.bytes.len() + entry_bytes_max) as u64 <= PACK_BYTES_MAX
    }

    /// Adds a chunk and returns its position. Call [`has_room_for`](Self::has_room_for) first.
    pub fn add(&mut self, chunk: StoredChunk) -> u32 {
        debug_assert!(self.has_room_for(&chunk), "a full pack must be sealed before the next chunk");
        debug_assert_eq!(chunk.bytes.len(), chunk.layout.stored_len() as usize, "layout of another chunk");
        let StoredChunk { id, layout, checksum, bytes } = chunk;
        let position = u32::try_from(self.entries.len()).expect("a pack holds at most 65,536 chunks");
        put_entry(&mut self.table, &id, checksum, &layout);
        self.hasher.update(&bytes);
        self.entries.push(PackEntry { id, offset: self.offset, layout, checksum });
        self.offset += bytes.len() as u64;
        self.parts.push(bytes);
        position
    }

    /// The pack's id.
    pub fn id(&self) -> PackId {
        self.id
    }

    /// Number of chunks so far.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the pack has no chunks yet.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Size of the pack if it were finished now.
    pub fn bytes(&self) -> u64 {
        self.offset + (size_of::<u32>() + self.table.len() + PACK_TRAILER_BYTES) as u64
    }

    /// Seals the pack.
    pub fn finish(mut self) -> Pack {
        let count = u32::try_from(self.entries.len()).expect("a pack holds at most 65,536 chunks");
        let mut end = Vec::with_capacity(4 + self.table.len() + PACK_TRAILER_BYTES);
        end.extend_from_slice(&count.to_le_bytes());
        end.extend_from_slice(&self.table);
        let table_len = u32::try_from(end.len()).expect("65,536 entries of at most 700 bytes");
        let table_checksum = checksum(&end);
        end.extend_from_slice(&self.offset.to_le_bytes());
        end.extend_from_slice(&table_len.to_le_bytes());
        end.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        end.extend_from_slice(&[0; 2]);
        end.extend_from_slice(&table_checksum.to_le_bytes());
        self.hasher.update(&end);
        end.extend_from_slice(self.hasher.finalize().as_bytes());
        end.extend_from_slice(&TRAILER_MAGIC);
        let size = self.offset + end.len() as u64;
        self.parts.push(end.into());
        Pack { id: self.id, parts: self.parts, size, entries: self.entries }
    }
}

/// Appends an entry of the table.
pub(crate) fn put_entry(table: &mut Vec<u8>, id: &ChunkId, checksum: u64, layout: &ChunkLayout) {
    table.extend_from_slice(id.as_bytes());
    table.extend_from_slice(&checksum.to_le_bytes());
    layout.encode_to(table);
}

/// The last bytes of a pack; they locate the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackTrailer {
    /// Position of the table in the pack.
    pub table_offset: u64,
    /// Number of bytes in the table.
    pub table_len: u32,
    /// XXH3-64 of the table, so that the table can be verified without reading the whole pack.
    pub table_checksum: u64,
    /// BLAKE3 of all bytes of the pack before this digest.
    pub hash: [u8; 32],
}

impl PackTrailer {
    /// The range of the table in the pack.
    pub fn table_range(&self) -> Range<u64> {
        self.table_offset..self.table_offset + u64::from(self.table_len)
    }
}

/// Reads the first [`PACK_HEADER_BYTES`] of a pack.
pub fn read_header(header: &[u8; PACK_HEADER_BYTES]) -> Result<PackId> {
    check_header(header).map_err(|source| Error::Pack { source })
}

/// Reads the last [`PACK_TRAILER_BYTES`] of a pack of `pack_size` bytes. Needed to read the table
/// alone.
pub fn read_trailer(trailer: &[u8; PACK_TRAILER_BYTES], pack_size: u64) -> Result<PackTrailer> {
    check_trailer(trailer, pack_size).map_err(|source| Error::Pack { source })
}

/// Reads the table that a trailer locates. `table` holds [`PackTrailer::table_range`].
pub fn read_table(trailer: &PackTrailer, table: &[u8]) -> Result<Vec<PackEntry>> {
    check_table(trailer, table).map_err(|source| Error::Pack { source })
}

/// Reads a whole pack and verifies its hash, its table, and the checksum and frame form of every
/// chunk. The caller must verify the decompressed content.
pub fn read_pack(pack: &[u8]) -> Result<(PackId, Vec<PackEntry>)> {
    let (id, entries) = check_pack(pack).map_err(|source| Error::Pack { source })?;
    for (position, entry) in entries.iter().enumerate() {
        check_chunk(pack, entry).map_err(|source| Error::PackChunk { position, source })?;
    }
    Ok((id, entries))
}

fn check_pack(pack: &[u8]) -> Result<(PackId, Vec<PackEntry>), Malformed> {
    let header = pack.first_chunk().ok_or(Malformed::UnexpectedEnd)?;
    let (body, trailer_bytes) = pack.split_last_chunk().ok_or(Malformed::UnexpectedEnd)?;
    let id = check_header(header)?;
    let trailer = check_trailer(trailer_bytes, pack.len() as u64)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(body).update(&trailer_bytes[..TRAILER_HASHED_BYTES]);
    if hasher.finalize() != trailer.hash {
        return Err(Malformed::Checksum { what: "hash of a pack" });
    }
    // The trailer check ensured that the table lies between the header and the trailer.
    let table_offset = usize::try_from(trailer.table_offset).map_err(|_| Malformed::UnexpectedEnd)?;
    let table = body.get(table_offset..).ok_or(Malformed::UnexpectedEnd)?;
    Ok((id, check_table(&trailer, table)?))
}

fn check_chunk(pack: &[u8], entry: &PackEntry) -> Result<(), Malformed> {
    let range = entry.range();
    let stored = usize::try_from(range.start)
        .ok()
        .zip(usize::try_from(range.end).ok())
        .and_then(|(start, end)| pack.get(start..end))
        .ok_or(Malformed::UnexpectedEnd)?;
    if checksum(stored) != entry.checksum {
        return Err(Malformed::Checksum { what: "checksum of a chunk" });
    }
    check_stored(stored, &entry.layout)
}

fn check_version(version: u16) -> Result<(), Malformed> {
    if version == FORMAT_VERSION { Ok(()) } else { Err(Malformed::Version { version }) }
}

fn check_header(header: &[u8; PACK_HEADER_BYTES]) -> Result<PackId, Malformed> {
    let mut reader = Reader::new(header);
    if reader.array()? != HEADER_MAGIC {
        return Err(Malformed::Magic { part: "pack" });
    }
    check_version(reader.u16()?)?;
    if reader.array()? != [0; 6] {
        return Err(Malformed::Reserved);
    }
    reader.array().map(PackId::from_bytes)
}

fn check_trailer(trailer: &[u8; PACK_TRAILER_BYTES], pack_size: u64) -> Result<PackTrailer, Malformed> {
    let mut reader = Reader::new(trailer);
    let table_offset = reader.u64()?;
    let table_len = reader.u32()?;
    let version = reader.u16()?;
    let reserved = reader.u16()?;
    let table_checksum = reader.u64()?;
    let hash = reader.array()?;
    // Checks the magic first: bytes that are not a trailer should be reported as such.
    if reader.array()? != TRAILER_MAGIC {
        return Err(Malformed::Magic { part: "trailer" });
    }
    check_version(version)?;
    if reserved != 0 {
        return Err(Malformed::Reserved);
    }
    let end = table_offset.checked_add(u64::from(table_len) + PACK_TRAILER_BYTES as u64);
    if table_offset < PACK_HEADER_BYTES as u64 || end != Some(pack_size) {
        return Err(Malformed::OutOfBounds { what: "the table" });
    }
    Ok(PackTrailer { table_offset, table_len, table_checksum, hash })
}

fn check_table(trailer: &PackTrailer, table: &[u8]) -> Result<Vec<PackEntry>, Malformed> {
    if table.len() != trailer.table_len as usize {
        return Err(Malformed::Mismatch { what: "the length of the table" });
    }
    if checksum(table) != trailer.table_checksum {
        return Err(Malformed::Checksum { what: "checksum of a table" });
    }
    let mut reader = Reader::new(table);
    let count = reader.u32()? as usize;
    if count > PACK_CHUNKS_MAX || count > reader.remaining() / ENTRY_BYTES_MIN {
        return Err(Malformed::OutOfBounds { what: "the count of chunks" });
    }
    let mut entries = Vec::with_capacity(count);
    let mut offset = PACK_HEADER_BYTES as u64;
    for _ in 0..count {
        let id = ChunkId::from_bytes(reader.array()?);
        let checksum = reader.u64()?;
        let layout = ChunkLayout::decode_from(&mut reader)?;
        let entry = PackEntry { id, offset, layout, checksum };
        offset = entry.range().end;
        entries.push(entry);
    }
    reader.finish()?;
    // Every byte between header and table belongs to a chunk.
    if offset != trailer.table_offset {
        return Err(Malformed::Mismatch { what: "the length of all chunks" });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunker::RawChunk;
    use crate::codec::Encoder;

    fn stored(count: usize) -> Vec<StoredChunk> {
        let mut encoder = Encoder::new(1).unwrap();
        let chunk = |seed: usize| {
            let bytes = format!("chunk {seed} ").repeat(20 + seed).into_bytes();
            RawChunk { bytes, holes: if seed % 2 == 1 { vec![8, 60] } else { vec![] }, fills: vec![] }
        };
        (0..count).map(|seed| encoder.encode(&chunk(seed)).unwrap()).collect()
    }

    fn packed(chunks: &[StoredChunk]) -> (Pack, Vec<u8>) {
        let mut builder = PackBuilder::new(PackId::from_bytes([7; 16]));
        for (position, chunk) in chunks.iter().enumerate() {
            assert!(builder.has_room_for(chunk));
            assert_eq!(builder.add(chunk.clone()) as usize, position);
        }
        let bytes = builder.bytes();
        let pack = builder.finish();
        assert_eq!(pack.size, bytes);
        let bytes = pack.parts.concat();
        assert_eq!(pack.size, bytes.len() as u64);
        (pack, bytes)
    }

    #[test]
    fn a_pack_reads_back_and_its_entries_lie_where_they_say() {
        for count in [0, 1, 2, 9] {
            let chunks = stored(count);
            let (pack, bytes) = packed(&chunks);
            assert_eq!(read_pack(&bytes).unwrap(), (pack.id, pack.entries.clone()));
            for (entry, chunk) in pack.entries.iter().zip(&chunks) {
                let range = usize::try_from(entry.range().start).unwrap()
                    ..usize::try_from(entry.range().end).unwrap();
                assert_eq!(bytes[range], chunk.bytes);
                assert_eq!(
                    (entry.id, entry.checksum, &entry.layout),
                    (chunk.id, chunk.checksum, &chunk.layout)
                );
            }
        }
    }

    #[test]
    fn the_table_can_be_read_alone() {
        let (pack, bytes) = packed(&stored(5));
        let trailer = read_trailer(bytes.last_chunk().unwrap(), pack.size).unwrap();
        let range = usize::try_from(trailer.table_range().start).unwrap()
            ..usize::try_from(trailer.table_range().end).unwrap();
        assert_eq!(read_table(&trailer, &bytes[range.clone()]).unwrap(), pack.entries);
        assert_eq!(read_header(bytes.first_chunk().unwrap()).unwrap(), pack.id);

        assert!(read_trailer(bytes.last_chunk().unwrap(), pack.size + 1).is_err());
        assert!(read_table(&trailer, &bytes[range.start..range.end - 1]).is_err());
        let mut table = bytes[range].to_vec();
        for bit in 0..table.len() * 8 {
            table[bit / 8] ^= 1 << (bit % 8);
            assert!(read_table(&trailer, &table).is_err());
            table[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_refused() {
        let (_, bytes) = packed(&stored(3));
        for len in 0..bytes.len() {
            assert!(read_pack(&bytes[..len]).is_err(), "cut to {len}");
        }
        assert!(read_pack(&[&bytes[..], &[0]].concat()).is_err());
        let mut changed = bytes;
        for bit in 0..changed.len() * 8 {
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(read_pack(&changed).is_err(), "bit {bit}");
            changed[bit / 8] ^= 1 << (bit % 8);
        }
        read_pack(&changed).unwrap();
    }

    #[test]
    fn a_table_that_lies_is_refused_even_with_sound_hashes() {
        type Lie = fn(&mut StoredChunk);
        let chunks = stored(2);
        let lies: [(&str, Lie); 3] = [
            ("a checksum of other bytes", |chunk| chunk.checksum ^= 1),
            ("frames that are cut elsewhere", |chunk| {
                chunk.layout.frames[0] -= 1;
                chunk.layout.frames[1] += 1;
            }),
            ("another raw length", |chunk| chunk.layout.raw_len += 1),
        ];
        for (what, lie) in lies {
            let mut chunks = chunks.clone();
            lie(&mut chunks[1]);
            let (_, bytes) = packed(&chunks);
            assert!(matches!(read_pack(&bytes), Err(Error::PackChunk { position: 1, .. })), "{what}");
        }
    }

    #[test]
    fn a_pack_is_sealed_below_its_limits() {
        let mut encoder = Encoder::new(1).unwrap();
        let mut noise = vec![0; 1_000_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let chunk = encoder.encode(&RawChunk { bytes: noise, holes: vec![], fills: vec![] }).unwrap();
        let mut builder = PackBuilder::new(PackId::from_bytes([1; 16]));
        while builder.has_room_for(&chunk) {
            builder.add(chunk.clone());
        }
        assert_eq!(builder.len(), 33);
        assert!(builder.finish().size <= PACK_BYTES_MAX);

        let small = &stored(1)[0];
        let mut builder = PackBuilder::new(PackId::from_bytes([1; 16]));
        while builder.has_room_for(small) {
            builder.add(small.clone());
        }
        assert_eq!(builder.len(), PACK_CHUNKS_MAX);
        let pack = builder.finish();
        assert!(pack.size <= PACK_BYTES_MAX);
        assert_eq!(read_pack(&pack.parts.concat()).unwrap().1, pack.entries);
    }
}
