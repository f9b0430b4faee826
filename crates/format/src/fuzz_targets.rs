//! One checked property per parser of foreign bytes, as plain functions. For any input, a target
//! returns, or panics because a property is broken.
//!
//! The tests of every build run the targets over `fuzz/corpus/format_<target>/` and over mutations
//! of it. cargo-fuzz runs the same functions for as long as you like.
//!
//! Properties
//! - `layout`, `recipe`, `manifest`: an accepted input is written back as the same bytes, because
//!   there is one spelling. The value keeps the rules of its module, and takes memory in proportion
//!   to its bytes.
//! - `table`, `pack`: the entries of an accepted input cover its bytes without gap or overlap. A
//!   pack built from its chunks has the same bytes.
//! - `journal`: accepted records are written back as the same bytes; a file of them reads back, and
//!   a cut one gives a prefix of them.
//! - `name`: an id, a tag or the name of a journal file has one spelling.
//! - `frame`: the form check accepts a frame only if zstd reads exactly one frame of the stated
//!   size, and nothing after it.

use bytes::Bytes;

use crate::codec::{Decoder, StoredChunk, checksum};
use crate::frame::{splice, validate_frame};
use crate::frame_size::HOLE_FRAME_BYTES;
use crate::ids::{ChunkId, EncodingTag, HoleFill, PackId};
use crate::journal::{
    JournalFile, JournalHeader, JournalKind, JournalName, JournalRecord, JournalWriter, KeptJournal,
    put_record, read_records,
};
use crate::layout::{CHUNK_BYTES_MAX, ChunkLayout};
use crate::manifest::NarManifest;
use crate::pack::{
    PACK_HEADER_BYTES, PACK_TRAILER_BYTES, PackBuilder, PackEntry, PackTrailer, TRAILER_HASHED_BYTES,
    put_entry, read_header, read_pack, read_table, read_trailer,
};
use crate::recipe::{Recipe, RecipeBuilder};

/// How many chunk numbers and fills a target walks one by one; runs may stand for billions.
const WALK_MAX: usize = 10_000;

/// A whole pack: unchanged, and with hashes recomputed to match the rest.
pub fn fuzz_pack(data: &[u8]) {
    check_pack(data);
    if let Some(resealed) = resealed(data) {
        check_pack(&resealed);
    }
}

fn check_pack(data: &[u8]) {
    let Ok((id, entries)) = read_pack(data) else { return };
    let header = data.first_chunk().expect("a pack has a header");
    let trailer = data.last_chunk().expect("a pack has a trailer");
    assert_eq!(read_header(header).expect("the whole pack was read"), id);
    let trailer = read_trailer(trailer, data.len() as u64).expect("the whole pack was read");
    let table = &data[to_usize(trailer.table_offset)..data.len() - PACK_TRAILER_BYTES];
    assert_eq!(
        read_table(&trailer, table).expect("the whole pack was read"),
        entries,
        "the table alone says the same"
    );

    let mut builder = PackBuilder::new(id);
    for entry in &entries {
        builder.add(stored_chunk(data, entry));
    }
    let pack = builder.finish();
    assert_eq!(pack.entries, entries);
    assert_eq!(pack.parts.concat(), data, "the same chunks make the same pack");
}

/// A table, as a ranged read sees it: the bytes of the table, and a trailer that is correct except,
/// perhaps, for the table's position. The first four bytes give that position.
pub fn fuzz_table(data: &[u8]) {
    let Some((offset, table)) = data.split_first_chunk() else { return };
    let trailer = PackTrailer {
        table_offset: u32::from_le_bytes(*offset).into(),
        table_len: u32::try_from(table.len()).expect("inputs are small"),
        table_checksum: checksum(table),
        hash: [0; 32],
    };
    let Ok(entries) = read_table(&trailer, table) else { return };
    let mut offset = PACK_HEADER_BYTES as u64;
    for entry in &entries {
        assert_eq!(entry.offset, offset, "chunks lie back to back");
        entry.layout.validate().expect("a layout that was read keeps the rules");
        offset = entry.range().end;
    }
    assert_eq!(offset, trailer.table_offset, "chunks reach up to the table");
    assert_eq!(written_table(&entries), table, "a table has one spelling");
}

/// A recipe.
pub fn fuzz_recipe(data: &[u8]) {
    let Ok(recipe) = Recipe::decode(data) else { return };
    assert_eq!(recipe.encode(), data, "a recipe has one spelling");
    assert!(recipe.runs.len() + recipe.hashes.len() + recipe.fills.len() <= data.len());
    assert!(recipe.runs.iter().all(|run| run.count > 0));

    let numbers: Vec<u64> = recipe.chunk_numbers().take(WALK_MAX).collect();
    let fills: Vec<HoleFill> = recipe.hole_fills().take(WALK_MAX).copied().collect();
    assert_eq!(fills.len() as u64, recipe.hole_count().min(WALK_MAX as u64), "every hole has a fill");
    let mut builder = RecipeBuilder::new();
    for &number in &numbers {
        builder.push_chunk(number);
    }
    for fill in &fills {
        builder.push_fill(fill);
    }
    let rebuilt = builder.finish();
    assert!(rebuilt.chunk_numbers().eq(numbers));
    assert!(rebuilt.hole_fills().eq(&fills));
    assert_eq!(Recipe::decode(&rebuilt.encode()).expect("what the builder makes is sound"), rebuilt);
}

/// A NAR manifest.
pub fn fuzz_manifest(data: &[u8]) {
    let Ok(manifest) = NarManifest::decode(data) else { return };
    assert_eq!(manifest.encode(), data, "a manifest has one spelling");
    assert!(manifest.chunks.len() <= data.len() / 32, "no more chunks than there are ids");
    assert!(manifest.fills.runs.is_empty());
    let walked = manifest.fills.hole_fills().take(WALK_MAX).count() as u64;
    assert_eq!(walked, manifest.fills.hole_count().min(WALK_MAX as u64), "every hole has a fill");
}

/// The records of a block of a journal file, and the same bytes as a file.
pub fn fuzz_journal(data: &[u8]) {
    if let Ok(file) = JournalFile::read(data) {
        assert!(!file.is_whole || data.len() >= 56 + 16, "a whole file has a header and an end");
    }
    let mut records = Vec::new();
    if read_records(data, &mut records).is_err() {
        return;
    }
    assert_eq!(journal_records(&records), data, "a record has one spelling");
    let header =
        JournalHeader { kind: JournalKind::Part, lineage: 1, generation: 2, position: (3, 4), number: 5 };
    let mut writer = JournalWriter::new(&header);
    for record in &records {
        writer.push(record).expect("there is memory for a compressor");
    }
    let bytes = writer.finish().expect("there is memory for a compressor");
    let whole = JournalFile::read(&bytes).expect("what was written can be read");
    assert!(whole.is_whole && whole.header == header && whole.records == records);
    let cut = JournalFile::read(&bytes[..56 + (bytes.len() - 56) / 2]).expect("the header is whole");
    assert!(!cut.is_whole && records.starts_with(&cut.records), "a cut leaves a prefix");
}

/// The text of an id, of a tag, or the name of a journal file.
pub fn fuzz_name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let spelled = [
        text.parse().map(|id: ChunkId| id.to_string()).ok(),
        text.parse().map(|id: PackId| id.to_string()).ok(),
        text.parse().map(|tag: EncodingTag| tag.to_string()).ok(),
        JournalName::parse(text).map(|name| name.to_string()),
        KeptJournal::parse(text).map(|mark| mark.to_string()),
    ];
    assert!(spelled.into_iter().flatten().all(|spelled| spelled == text));
}

/// The bytes of records in a block: seeds for [`fuzz_journal`].
pub fn journal_records(records: &[JournalRecord]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        put_record(&mut bytes, record);
    }
    bytes
}

/// A chunk's layout.
pub fn fuzz_layout(data: &[u8]) {
    let Ok(layout) = ChunkLayout::decode(data) else { return };
    assert_eq!(layout.encode(), data, "a layout has one spelling");
    layout.validate().expect("a layout that was read keeps the rules");
    let covered: usize = layout.segments().map(|segment| segment.len()).sum();
    assert_eq!(covered + layout.holes.len() * crate::HOLE_BYTES, layout.raw_len as usize);

    let stored = Bytes::from(vec![0; layout.stored_len() as usize]);
    let fills = vec![HoleFill::from_bytes([b'0'; 32]).expect("zeros are nix-base32"); layout.holes.len()];
    let mut parts = Vec::new();
    splice(&stored, &layout, &fills, &mut parts).expect("they fit each other");
    assert!(parts.iter().all(|part| !part.is_empty()), "no empty part is ever sent");
    assert_eq!(parts.iter().map(|part| part.len() as u64).sum::<u64>(), layout.spliced_len());
    assert_eq!(parts.len(), layout.frames.len() + layout.holes.len());
    assert!(
        parts.iter().map(Bytes::len).filter(|&len| len == HOLE_FRAME_BYTES).count() >= layout.holes.len()
    );
}

/// A frame from a client, for a segment. The first four bytes give the segment's length.
pub fn fuzz_frame(data: &[u8]) {
    let Some((segment_bytes, frame)) = data.split_first_chunk() else { return };
    let segment_bytes = u32::from_le_bytes(*segment_bytes).min(CHUNK_BYTES_MAX) as usize;
    if validate_frame(frame, segment_bytes).is_err() {
        return;
    }
    let content_size = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten();
    assert_eq!(content_size, Some(segment_bytes as u64), "zstd reads the same content size");
    let frame_len = zstd::zstd_safe::find_frame_compressed_size(frame).ok();
    assert_eq!(frame_len, Some(frame.len()), "zstd finds the same end");

    let mut segment = vec![0; segment_bytes];
    let mut decoder = Decoder::new().expect("there is memory for a decoder");
    if decoder.decode_frame(frame, &mut segment).is_ok() {
        let streamed = zstd::decode_all(frame).expect("a streaming decoder takes it too");
        assert_eq!(streamed, segment, "all decoders agree");
    }
}

fn stored_chunk(pack: &[u8], entry: &PackEntry) -> StoredChunk {
    let range = entry.range();
    let bytes = Bytes::copy_from_slice(&pack[to_usize(range.start)..to_usize(range.end)]);
    StoredChunk { id: entry.id, layout: entry.layout.clone(), checksum: entry.checksum, bytes }
}

/// The table of a pack of these chunks.
fn written_table(entries: &[PackEntry]) -> Vec<u8> {
    let count = u32::try_from(entries.len()).expect("a table that was read has at most 65,536 entries");
    let mut table = count.to_le_bytes().to_vec();
    for entry in entries {
        put_entry(&mut table, &entry.id, entry.checksum, &entry.layout);
    }
    table
}

/// The same bytes with the trailer's checksum and hash recomputed, so that mutations get past the
/// hashes.
fn resealed(data: &[u8]) -> Option<Vec<u8>> {
    let body_len = data.len().checked_sub(PACK_TRAILER_BYTES)?;
    let (body, trailer) = data.split_at(body_len);
    let table_offset = usize::try_from(u64::from_le_bytes(*trailer.first_chunk()?)).ok()?;
    let mut sealed = body.to_vec();
    sealed.extend_from_slice(&trailer[..16]);
    sealed.extend_from_slice(&checksum(body.get(table_offset..)?).to_le_bytes());
    debug_assert_eq!(sealed.len(), body_len + TRAILER_HASHED_BYTES);
    sealed.extend_from_slice(blake3::hash(&sealed).as_bytes());
    sealed.extend_from_slice(&trailer[PACK_TRAILER_BYTES - 8..]);
    Some(sealed)
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("checked against bytes in memory")
}
