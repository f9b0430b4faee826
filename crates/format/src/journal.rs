//! Journal files: what the index holds, beside the packs, so that a lost index can be made anew.
//!
//! Layer: format (pure). Byte tables and the order of writes: docs/STORAGE.md, "Journal".
//!
//! Invariants
//! - A record says what *is*, never what changed. Of two records about the same thing, the one of
//!   the file with the later position counts, whichever process wrote it.
//! - Records name chunks by id, never by the index's numbers. Caches have a label, which is the
//!   same for all files of a lineage.
//! - A cache's record has all its pins. A pin that changes later has a record of its own.
//! - A path's or alias's NAR stands in the same file, so each file is useful by itself.
//! - A file that is cut at any byte gives the records of all blocks before the cut.
//! - Reading never trusts a length before checking it against the bytes it was given.

use std::fmt;

use dormer_nix::{NarHash, StorePath, StorePathHash};

use crate::codec::checksum;
use crate::error::{Error, Malformed, Result};
use crate::ids::ChunkId;
use crate::manifest::{NarManifest, decode_fills, encode_fills, put_chunks, read_chunks};
use crate::wire::{Reader, put_varint, unzigzag, zigzag};

const MAGIC: &[u8; 8] = b"DORMJRNL";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 56;
const BLOCK_HEADER_BYTES: usize = 16;

/// Raw bytes of records in a block, about; a record is never divided. The zstd window covers a
/// block, so that ids which several NARs share cost next to nothing.
const BLOCK_BYTES: usize = 1024 * 1024;

/// Largest document that a record may hold.
pub const JOURNAL_BODY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Largest raw block: the rest of one record may follow. A NAR with the most chunks and holes that
/// there can be stays below it, and so does the largest document.
const BLOCK_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Level of the blocks: most bytes are hashes, which no level compresses.
const LEVEL: i32 = 6;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JournalKind {
    /// The present state of what changed.
    Segment,
    /// A part of everything.
    Part,
    /// The sign that all parts of a snapshot are there. It has no records.
    End,
}

/// What all records of a file have in common, and which part of a snapshot the file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalHeader {
    /// What the file is.
    pub kind: JournalKind,
    /// Random number of the database's past: a database that was restored has another one.
    pub lineage: u64,
    /// The snapshot that the file belongs to or follows.
    pub generation: u64,
    /// The records are as new as this place of the outbox, or newer: transaction and number.
    pub position: (u64, u64),
    /// Of a part, its number in the snapshot, from 1; of an end, how many parts there are. 0 in
    /// segments, and in files of a time when nothing was numbered.
    pub number: u32,
}

/// A thing and its present state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalRecord {
    /// A named value of the installation.
    Setting {
        /// Name.
        name: String,
        /// Value, sealed if it is secret.
        value: Vec<u8>,
    },
    /// A cache.
    Cache(JournalCache),
    /// A cache that was deleted.
    CacheGone {
        /// Its label.
        cache: u64,
    },
    /// A NAR of paths and aliases in the same file.
    Nar(JournalNar),
    /// A path in a cache.
    Path(JournalPath),
    /// An upload alias.
    Alias(JournalAlias),
    /// A document.
    Document(JournalDocument),
    /// More pins of a cache, whose record stands before in the same file.
    Pins {
        /// Its label.
        cache: u64,
        /// The pins.
        pins: Vec<JournalPin>,
    },
    /// A pin by itself.
    Pin {
        /// Label of its cache.
        cache: u64,
        /// The pin.
        pin: JournalPin,
    },
    /// A pin that was removed.
    PinGone {
        /// Label of its cache.
        cache: u64,
        /// Name.
        name: String,
        /// Hash of its path.
        hash: StorePathHash,
    },
}

/// A cache.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JournalCache {
    /// Label of the cache in this lineage.
    pub cache: u64,
    /// Name.
    pub name: String,
    /// Whether anybody may read it.
    pub is_public: bool,
    /// Store folder.
    pub store_dir: String,
    /// Priority.
    pub priority: i64,
    /// Names of upstream keys.
    pub upstream_key_names: Vec<String>,
    /// Seconds an unused object is kept.
    pub retention_seconds: Option<i64>,
    /// Most bytes of its NARs.
    pub quota_bytes: Option<i64>,
    /// Paths kept of a name.
    pub keep_latest: Option<i64>,
    /// Whether an upload may give a path another NAR.
    pub allow_replacement: bool,
    /// When it was created.
    pub created_at: i64,
    /// Its signing keys, oldest first.
    pub keys: Vec<JournalKey>,
    /// Its first pins. More of them follow as [`JournalRecord::Pins`].
    pub pins: Vec<JournalPin>,
}

/// A signing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalKey {
    /// Public key as Nix writes it.
    pub public_key: String,
    /// Secret key, sealed with the master key.
    pub sealed_secret: Vec<u8>,
    /// Whether it signs.
    pub active: bool,
}

/// A pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalPin {
    /// Name.
    pub name: String,
    /// The path.
    pub path: StorePath,
    /// When it was added.
    pub created_at: i64,
    /// When it ends.
    pub ends_at: Option<i64>,
}

/// A NAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalNar {
    /// SHA-256 of the archive.
    pub hash: NarHash,
    /// Bytes of the archive.
    pub size: u64,
    /// How to rebuild it.
    pub recipe: NarManifest,
    /// Its listing.
    pub listing: JournalListing,
}

/// A listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalListing {
    /// It was lost.
    Lost,
    /// The compressed JSON itself.
    Inline(Vec<u8>),
    /// In chunks, without holes.
    Chunks {
        /// The chunks, in order.
        chunks: Vec<ChunkId>,
        /// Bytes of JSON.
        size: u64,
    },
}

/// A path in a cache: its object, or the fact that it was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalPath {
    /// Label of the cache.
    pub cache: u64,
    /// Hash part of the path.
    pub hash: StorePathHash,
    /// Its object; `None` if it was removed.
    pub object: Option<JournalObject>,
}

/// An object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalObject {
    /// Name of the path, without its hash.
    pub name: String,
    /// Its NAR.
    pub nar: NarHash,
    /// Paths it refers to, itself included.
    pub references: Vec<StorePath>,
    /// Base name of the derivation.
    pub deriver: Option<String>,
    /// Content address.
    pub ca: Option<String>,
    /// System.
    pub system: Option<String>,
    /// Signatures it came with.
    pub signatures: Vec<String>,
    /// Fields of its narinfo that no part of Dormer knows: names and values.
    pub extra: Vec<(String, String)>,
    /// When it was pushed first.
    pub created_at: i64,
}

/// An upload alias: what it stands for, or that it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalAlias {
    /// Label of the cache.
    pub cache: u64,
    /// File name.
    pub file_name: String,
    /// NAR, compression and time of the last use.
    pub upload: Option<(NarHash, String, i64)>,
}

/// A document: its body, or that it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalDocument {
    /// Label of the cache.
    pub cache: u64,
    /// Address below the cache.
    pub name: String,
    /// What it holds; `None` if it was removed.
    pub content: Option<JournalContent>,
}

/// What a document holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalContent {
    /// Hash of the store path that it belongs to.
    pub owner: StorePathHash,
    /// When it was written.
    pub written_at: i64,
    /// Bytes of the document.
    pub size: u64,
    /// How the body is compressed; `None` is not at all.
    pub encoding: Option<String>,
    /// The document, compressed or not.
    pub body: Vec<u8>,
}

/// Writes a file in blocks. Holds a block and the finished blocks.
#[derive(Debug)]
pub struct JournalWriter {
    out: Vec<u8>,
    block: Vec<u8>,
    blocks: u32,
    records: u64,
}

impl JournalWriter {
    /// Begins a file.
    pub fn new(header: &JournalHeader) -> Self {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.push(match header.kind {
            JournalKind::Segment => 1,
            JournalKind::Part => 2,
            JournalKind::End => 3,
        });
        out.push(0);
        out.extend_from_slice(&header.number.to_le_bytes());
        for number in [header.lineage, header.generation, header.position.0, header.position.1] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let sum = checksum(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        Self { out, block: Vec::new(), blocks: 0, records: 0 }
    }

    /// Adds a record. A record that is too large for a block is refused, and the file holds what it
    /// held.
    pub fn push(&mut self, record: &JournalRecord) -> Result<()> {
        let before = self.block.len();
        put_record(&mut self.block, record);
        if self.block.len() > BLOCK_BYTES_MAX && before > 0 {
            // It may fit into a block of its own.
            let record = self.block.split_off(before);
            self.end_block()?;
            self.block = record;
        }
        if self.block.len() > BLOCK_BYTES_MAX {
            self.block.clear();
            return Err(Error::Journal {
                source: Malformed::OutOfBounds { what: "the bytes of a journal record" },
            });
        }
        self.records += 1;
        if self.block.len() >= BLOCK_BYTES { self.end_block() } else { Ok(()) }
    }

    /// Bytes so far, about.
    pub fn bytes(&self) -> usize {
        self.out.len() + self.block.len()
    }

    /// Records so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The whole file.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.end_block()?;
        let count = self.blocks.to_le_bytes();
        self.out.extend_from_slice(&[0; 4]);
        self.out.extend_from_slice(&count);
        self.out.extend_from_slice(&checksum(&count).to_le_bytes());
        Ok(self.out)
    }

    fn end_block(&mut self) -> Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let raw = std::mem::take(&mut self.block);
        let frame = zstd::bulk::compress(&raw, LEVEL)
            .map_err(|source| Error::Compress { segment_bytes: raw.len(), source })?;
        let length =
            |bytes: &[u8]| u32::try_from(bytes.len()).expect("a block is far below 4 GiB").to_le_bytes();
        self.out.extend_from_slice(&length(&frame));
        self.out.extend_from_slice(&length(&raw));
        self.out.extend_from_slice(&checksum(&frame).to_le_bytes());
        self.out.extend_from_slice(&frame);
        self.blocks += 1;
        Ok(())
    }
}

/// What was read from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalFile {
    /// Its header.
    pub header: JournalHeader,
    /// The records of all blocks before the cut, or all records.
    pub records: Vec<JournalRecord>,
    /// Whether the file reached its end. If not, it was cut or damaged, and records may be missing.
    pub is_whole: bool,
}

impl JournalFile {
    /// Reads a file, as far as it goes. Fails if not even the header can be read, or if a block
    /// that matches its checksum holds something unknown.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        Self::read_file(bytes).map_err(|source| Error::Journal { source })
    }

    fn read_file(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let header = read_header(bytes, &mut reader)?;
        let mut file = Self { header, records: Vec::new(), is_whole: false };
        let mut blocks = 0;
        while let Some(block) = next_block(&mut reader) {
            match block {
                Block::Records(raw) => read_records(&raw, &mut file.records)?,
                Block::End { count } => {
                    file.is_whole = count == blocks && reader.remaining() == 0;
                    break;
                }
            }
            blocks += 1;
        }
        Ok(file)
    }
}

enum Block {
    Records(Vec<u8>),
    End { count: u32 },
}

fn read_header(bytes: &[u8], reader: &mut Reader<'_>) -> Result<JournalHeader, Malformed> {
    if reader.array::<8>()? != *MAGIC {
        return Err(Malformed::Magic { part: "journal" });
    }
    let version = reader.u16()?;
    if version != VERSION {
        return Err(Malformed::Version { version });
    }
    let kind = match reader.u8()? {
        1 => JournalKind::Segment,
        2 => JournalKind::Part,
        3 => JournalKind::End,
        _ => return Err(Malformed::OutOfBounds { what: "the kind of a journal file" }),
    };
    if reader.u8()? != 0 {
        return Err(Malformed::Reserved);
    }
    let number = reader.u32()?;
    let (lineage, generation) = (reader.u64()?, reader.u64()?);
    let position = (reader.u64()?, reader.u64()?);
    if reader.u64()? != checksum(&bytes[..HEADER_BYTES - 8]) {
        return Err(Malformed::Checksum { what: "checksum of the header" });
    }
    Ok(JournalHeader { kind, lineage, generation, position, number })
}

/// The next block; `None` where the file is cut or damaged.
fn next_block(reader: &mut Reader<'_>) -> Option<Block> {
    if reader.remaining() < BLOCK_HEADER_BYTES {
        return None;
    }
    let (length, raw_length, sum) = (reader.u32().ok()?, reader.u32().ok()?, reader.u64().ok()?);
    if length == 0 {
        return (sum == checksum(&raw_length.to_le_bytes())).then_some(Block::End { count: raw_length });
    }
    let frame = reader.take(usize::try_from(length).ok()?).ok()?;
    let raw_length = usize::try_from(raw_length).ok().filter(|length| *length <= BLOCK_BYTES_MAX)?;
    if checksum(frame) != sum {
        return None;
    }
    // The length is a claim, which the frame itself must make too before memory is taken.
    if zstd::zstd_safe::get_frame_content_size(frame).ok()?? != raw_length as u64 {
        return None;
    }
    zstd::bulk::decompress(frame, raw_length).ok().map(Block::Records)
}

/// Reads the records of a block, which has one spelling.
pub(crate) fn read_records(raw: &[u8], records: &mut Vec<JournalRecord>) -> Result<(), Malformed> {
    let mut reader = Reader::new(raw);
    while reader.remaining() > 0 {
        records.push(read_record(&mut reader)?);
    }
    Ok(())
}

/// Appends a record to a block.
pub(crate) fn put_record(out: &mut Vec<u8>, record: &JournalRecord) {
    match record {
        JournalRecord::Setting { name, value } => {
            out.push(1);
            put_bytes(out, name.as_bytes());
            put_bytes(out, value);
        }
        JournalRecord::Cache(cache) => {
            out.push(2);
            put_cache(out, cache);
        }
        JournalRecord::CacheGone { cache } => {
            out.push(3);
            put_varint(out, *cache);
        }
        JournalRecord::Nar(nar) => {
            out.push(4);
            out.extend_from_slice(nar.hash.as_bytes());
            put_varint(out, nar.size);
            put_chunks(out, &nar.recipe.chunks);
            put_bytes(out, &encode_fills(&nar.recipe.fills));
            match &nar.listing {
                JournalListing::Lost => out.push(0),
                JournalListing::Inline(body) => {
                    out.push(1);
                    put_bytes(out, body);
                }
                JournalListing::Chunks { chunks, size } => {
                    out.push(2);
                    put_varint(out, *size);
                    put_chunks(out, chunks);
                }
            }
        }
        JournalRecord::Path(path) => {
            out.push(5);
            put_varint(out, path.cache);
            out.extend_from_slice(path.hash.as_bytes());
            put_option(out, path.object.as_ref(), put_object);
        }
        JournalRecord::Alias(alias) => {
            out.push(6);
            put_varint(out, alias.cache);
            put_bytes(out, alias.file_name.as_bytes());
            put_option(out, alias.upload.as_ref(), |out, (nar, compression, used_at)| {
                out.extend_from_slice(nar.as_bytes());
                put_bytes(out, compression.as_bytes());
                put_number(out, *used_at);
            });
        }
        JournalRecord::Document(document) => {
            out.push(7);
            put_varint(out, document.cache);
            put_bytes(out, document.name.as_bytes());
            put_option(out, document.content.as_ref(), |out, content| {
                out.extend_from_slice(content.owner.as_bytes());
                put_number(out, content.written_at);
                put_varint(out, content.size);
                put_option(out, content.encoding.as_ref(), |out, text| put_bytes(out, text.as_bytes()));
                put_bytes(out, &content.body);
            });
        }
        JournalRecord::Pins { cache, pins } => {
            out.push(8);
            put_varint(out, *cache);
            put_pins(out, pins);
        }
        JournalRecord::Pin { cache, pin } => {
            out.push(9);
            put_varint(out, *cache);
            put_pin(out, pin);
        }
        JournalRecord::PinGone { cache, name, hash } => {
            out.push(10);
            put_varint(out, *cache);
            put_bytes(out, name.as_bytes());
            out.extend_from_slice(hash.as_bytes());
        }
    }
}

fn put_cache(out: &mut Vec<u8>, cache: &JournalCache) {
    put_varint(out, cache.cache);
    put_bytes(out, cache.name.as_bytes());
    out.push(u8::from(cache.is_public));
    put_bytes(out, cache.store_dir.as_bytes());
    put_number(out, cache.priority);
    put_texts(out, &cache.upstream_key_names);
    for number in [cache.retention_seconds, cache.quota_bytes, cache.keep_latest] {
        put_option(out, number.as_ref(), |out, number| put_number(out, *number));
    }
    out.push(u8::from(cache.allow_replacement));
    put_number(out, cache.created_at);
    put_varint(out, cache.keys.len() as u64);
    for key in &cache.keys {
        put_bytes(out, key.public_key.as_bytes());
        put_bytes(out, &key.sealed_secret);
        out.push(u8::from(key.active));
    }
    put_pins(out, &cache.pins);
}

fn put_pins(out: &mut Vec<u8>, pins: &[JournalPin]) {
    put_varint(out, pins.len() as u64);
    for pin in pins {
        put_pin(out, pin);
    }
}

fn put_pin(out: &mut Vec<u8>, pin: &JournalPin) {
    put_bytes(out, pin.name.as_bytes());
    put_path(out, &pin.path);
    put_number(out, pin.created_at);
    put_option(out, pin.ends_at.as_ref(), |out, number| put_number(out, *number));
}

fn put_object(out: &mut Vec<u8>, object: &JournalObject) {
    put_bytes(out, object.name.as_bytes());
    out.extend_from_slice(object.nar.as_bytes());
    put_varint(out, object.references.len() as u64);
    for reference in &object.references {
        put_path(out, reference);
    }
    for text in [&object.deriver, &object.ca, &object.system] {
        put_option(out, text.as_ref(), |out, text| put_bytes(out, text.as_bytes()));
    }
    put_texts(out, &object.signatures);
    put_varint(out, object.extra.len() as u64);
    for (name, value) in &object.extra {
        put_bytes(out, name.as_bytes());
        put_bytes(out, value.as_bytes());
    }
    put_number(out, object.created_at);
}

fn put_path(out: &mut Vec<u8>, path: &StorePath) {
    out.extend_from_slice(path.hash().as_bytes());
    put_bytes(out, path.name().as_bytes());
}

fn put_texts(out: &mut Vec<u8>, texts: &[String]) {
    put_varint(out, texts.len() as u64);
    for text in texts {
        put_bytes(out, text.as_bytes());
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_number(out: &mut Vec<u8>, number: i64) {
    put_varint(out, zigzag(number));
}

fn put_option<T>(out: &mut Vec<u8>, value: Option<&T>, put: impl FnOnce(&mut Vec<u8>, &T)) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

fn read_record(reader: &mut Reader<'_>) -> Result<JournalRecord, Malformed> {
    Ok(match reader.u8()? {
        1 => JournalRecord::Setting { name: read_text(reader)?, value: read_bytes(reader)?.to_vec() },
        2 => JournalRecord::Cache(read_cache(reader)?),
        3 => JournalRecord::CacheGone { cache: reader.varint()? },
        4 => JournalRecord::Nar(read_nar(reader)?),
        5 => JournalRecord::Path(JournalPath {
            cache: reader.varint()?,
            hash: StorePathHash::from_bytes(reader.array()?),
            object: read_option(reader, read_object)?,
        }),
        6 => JournalRecord::Alias(JournalAlias {
            cache: reader.varint()?,
            file_name: read_text(reader)?,
            upload: read_option(reader, |reader| {
                Ok((NarHash::from_bytes(reader.array()?), read_text(reader)?, read_number(reader)?))
            })?,
        }),
        7 => JournalRecord::Document(JournalDocument {
            cache: reader.varint()?,
            name: read_text(reader)?,
            content: read_option(reader, |reader| {
                Ok(JournalContent {
                    owner: StorePathHash::from_bytes(reader.array()?),
                    written_at: read_number(reader)?,
                    size: reader.varint()?,
                    encoding: read_option(reader, read_text)?,
                    body: read_bytes(reader)?.to_vec(),
                })
            })?,
        }),
        8 => JournalRecord::Pins { cache: reader.varint()?, pins: read_pins(reader)? },
        9 => JournalRecord::Pin { cache: reader.varint()?, pin: read_pin(reader)? },
        10 => JournalRecord::PinGone {
            cache: reader.varint()?,
            name: read_text(reader)?,
            hash: StorePathHash::from_bytes(reader.array()?),
        },
        _ => return Err(Malformed::OutOfBounds { what: "the kind of a journal record" }),
    })
}

fn read_cache(reader: &mut Reader<'_>) -> Result<JournalCache, Malformed> {
    Ok(JournalCache {
        cache: reader.varint()?,
        name: read_text(reader)?,
        is_public: read_flag(reader)?,
        store_dir: read_text(reader)?,
        priority: read_number(reader)?,
        upstream_key_names: read_list(reader, 1, read_text)?,
        retention_seconds: read_option(reader, read_number)?,
        quota_bytes: read_option(reader, read_number)?,
        keep_latest: read_option(reader, read_number)?,
        allow_replacement: read_flag(reader)?,
        created_at: read_number(reader)?,
        keys: read_list(reader, 3, |reader| {
            Ok(JournalKey {
                public_key: read_text(reader)?,
                sealed_secret: read_bytes(reader)?.to_vec(),
                active: read_flag(reader)?,
            })
        })?,
        pins: read_pins(reader)?,
    })
}

fn read_pins(reader: &mut Reader<'_>) -> Result<Vec<JournalPin>, Malformed> {
    read_list(reader, 24, read_pin)
}

fn read_pin(reader: &mut Reader<'_>) -> Result<JournalPin, Malformed> {
    Ok(JournalPin {
        name: read_text(reader)?,
        path: read_path(reader)?,
        created_at: read_number(reader)?,
        ends_at: read_option(reader, read_number)?,
    })
}

fn read_nar(reader: &mut Reader<'_>) -> Result<JournalNar, Malformed> {
    let hash = NarHash::from_bytes(reader.array()?);
    let size = reader.varint()?;
    let chunks = read_chunks(reader)?;
    let bad = Malformed::OutOfBounds { what: "the fills of a journal's NAR" };
    let fills = decode_fills(read_bytes(reader)?).map_err(|_| bad)?;
    let listing = match reader.u8()? {
        0 => JournalListing::Lost,
        1 => JournalListing::Inline(read_bytes(reader)?.to_vec()),
        2 => {
            let size = reader.varint()?;
            JournalListing::Chunks { chunks: read_chunks(reader)?, size }
        }
        _ => return Err(Malformed::OutOfBounds { what: "the kind of a listing" }),
    };
    Ok(JournalNar { hash, size, recipe: NarManifest { chunks, fills }, listing })
}

fn read_object(reader: &mut Reader<'_>) -> Result<JournalObject, Malformed> {
    Ok(JournalObject {
        name: read_text(reader)?,
        nar: NarHash::from_bytes(reader.array()?),
        references: read_list(reader, 21, read_path)?,
        deriver: read_option(reader, read_text)?,
        ca: read_option(reader, read_text)?,
        system: read_option(reader, read_text)?,
        signatures: read_list(reader, 1, read_text)?,
        extra: read_list(reader, 2, |reader| Ok((read_text(reader)?, read_text(reader)?)))?,
        created_at: read_number(reader)?,
    })
}

fn read_path(reader: &mut Reader<'_>) -> Result<StorePath, Malformed> {
    let hash = StorePathHash::from_bytes(reader.array()?);
    StorePath::new(hash, &read_text(reader)?)
        .map_err(|_| Malformed::OutOfBounds { what: "the name of a path" })
}

/// A list of items of at least `bytes_each` bytes.
fn read_list<'r, T>(
    reader: &mut Reader<'r>,
    bytes_each: usize,
    mut read: impl FnMut(&mut Reader<'r>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let count = reader.count(bytes_each)?;
    // Not reserved: an item takes far more memory than the bytes that claim it.
    (0..count).map(|_| read(reader)).collect()
}

fn read_bytes<'r>(reader: &mut Reader<'r>) -> Result<&'r [u8], Malformed> {
    let length = reader.count(1)?;
    reader.take(length)
}

fn read_text(reader: &mut Reader<'_>) -> Result<String, Malformed> {
    let bytes = read_bytes(reader)?.to_vec();
    String::from_utf8(bytes).map_err(|_| Malformed::OutOfBounds { what: "a text of a journal record" })
}

fn read_number(reader: &mut Reader<'_>) -> Result<i64, Malformed> {
    reader.varint().map(unzigzag)
}

fn read_flag(reader: &mut Reader<'_>) -> Result<bool, Malformed> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed::OutOfBounds { what: "a flag of a journal record" }),
    }
}

fn read_option<'r, T>(
    reader: &mut Reader<'r>,
    read: impl FnOnce(&mut Reader<'r>) -> Result<T, Malformed>,
) -> Result<Option<T>, Malformed> {
    if read_flag(reader)? { read(reader).map(Some) } else { Ok(None) }
}

/// Folder of all journal files.
pub const JOURNAL_FOLDER: &str = "journal";

/// Folder of the marks that keep generations.
pub const KEPT_FOLDER: &str = "journal/kept";

/// Name of a journal file. Names carry a random number, so none is ever used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct JournalName {
    /// The snapshot that the file belongs to or follows.
    pub generation: u64,
    /// What the file is.
    pub kind: JournalKind,
    /// The position of a segment's records.
    pub position: (u64, u64),
    /// A random number.
    pub random: u64,
}

impl JournalName {
    /// Reads a name back; `None` for what is no name of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(JOURNAL_FOLDER)?.strip_prefix('/')?.split('/');
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let generation = number(parts.next()?)?;
        let mut words = parts.next()?.split('-');
        let kind = match words.next()? {
            "segment" => JournalKind::Segment,
            "part" => JournalKind::Part,
            "end" => JournalKind::End,
            _ => return None,
        };
        let position = (number(words.next()?)?, number(words.next()?)?);
        let parsed = Self { generation, kind, position, random: number(words.next()?)? };
        (parsed.to_string() == name).then_some(parsed)
    }
}

impl fmt::Display for JournalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            JournalKind::Segment => "segment",
            JournalKind::Part => "part",
            JournalKind::End => "end",
        };
        let (generation, (transaction, number)) = (self.generation, self.position);
        write!(
            f,
            "{JOURNAL_FOLDER}/{generation:016x}/{kind}-{transaction:016x}-{number:016x}-{:016x}",
            self.random
        )
    }
}

/// A mark in the store: these generations stay, although a later snapshot is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeptJournal {
    /// The last generation of them.
    pub through: u64,
    /// The first: a recovery of them begins with its snapshot.
    pub first: u64,
    /// When the mark was made, in seconds since 1970.
    pub since: i64,
}

impl KeptJournal {
    /// Reads the name of a mark back. Returns `None` for any other name.
    pub fn parse(name: &str) -> Option<Self> {
        let mut numbers = name.strip_prefix(KEPT_FOLDER)?.strip_prefix('/')?.split('-');
        let mut next = || u64::from_str_radix(numbers.next()?, 16).ok();
        let parsed = Self { first: next()?, through: next()?, since: next()?.cast_signed() };
        (parsed.to_string() == name).then_some(parsed)
    }

    /// Whether a generation is one of these.
    pub fn has(&self, generation: u64) -> bool {
        (self.first..=self.through).contains(&generation)
    }
}

impl fmt::Display for KeptJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, through, since } = self;
        write!(f, "{KEPT_FOLDER}/{first:016x}-{through:016x}-{since:016x}")
    }
}
