//! What a scrub checks of bytes in memory. Pure.

use std::collections::HashMap;

use dormer_format::{
    ChunkId, ChunkLayout, Decoder, HoleFill, PACK_HEADER_BYTES, PACK_TRAILER_BYTES, PackEntry, PackId,
    checksum, read_header, read_pack, read_table, read_trailer,
};
use dormer_index::ChunkRow;

/// What is wrong with a pack.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PackFindings {
    /// What is wrong with header, table or trailer, or what the table says.
    pub(super) whole: Option<String>,
    /// Numbers of the chunks that do not come back.
    pub(super) chunks: Vec<u64>,
}

/// Checks a pack and the chunks that the index has in it.
pub(super) fn check_pack(id: PackId, bytes: &[u8], rows: &[ChunkRow]) -> PackFindings {
    let mut findings = PackFindings::default();
    let mut decoder = Decoder::new().ok();
    for row in rows {
        let stored = usize::try_from(row.offset)
            .ok()
            .and_then(|start| bytes.get(start..)?.get(..row.layout.stored_len() as usize));
        let sound = stored.zip(decoder.as_mut()).is_some_and(|(stored, decoder)| {
            checksum(stored) == row.checksum
                && decoder
                    .decode_blanked(stored, &row.layout)
                    .is_ok_and(|raw| ChunkId::compute(&raw, &row.layout.holes) == row.id)
        });
        if !sound {
            findings.chunks.push(row.number);
        }
    }
    findings.whole = check_frame_of_pack(id, bytes, rows);
    findings
}

/// What is wrong with header, table or trailer. Chunks that no row needs any more may be damaged: a
/// push has stored them elsewhere.
fn check_frame_of_pack(id: PackId, bytes: &[u8], rows: &[ChunkRow]) -> Option<String> {
    let (named, entries) = match read_pack(bytes) {
        Ok(read) => read,
        Err(whole) => match read_parts(bytes) {
            Err(part) => return Some(part),
            // Damaged chunks explain the hash of the pack.
            Ok((named, entries)) if entries.iter().any(|entry| !is_sound(bytes, entry)) => (named, entries),
            Ok(_) => return Some(dormer_nix::with_causes(&whole)),
        },
    };
    if named != id {
        return Some(format!("the header names pack {named}"));
    }
    let entries: HashMap<ChunkId, PackEntry> = entries.into_iter().map(|entry| (entry.id, entry)).collect();
    let differs = rows.iter().find(|row| {
        entries.get(&row.id).is_none_or(|entry| {
            (entry.offset, entry.checksum, &entry.layout) != (row.offset, row.checksum, &row.layout)
        })
    });
    differs.map(|row| format!("the table says something else of chunk {}", row.number))
}

/// Header and table by themselves.
fn read_parts(bytes: &[u8]) -> Result<(PackId, Vec<PackEntry>), String> {
    let short = || "the pack is too short".to_owned();
    let header = bytes.first_chunk::<PACK_HEADER_BYTES>().ok_or_else(short)?;
    let trailer = bytes.last_chunk::<PACK_TRAILER_BYTES>().ok_or_else(short)?;
    let said = |error: dormer_format::Error| dormer_nix::with_causes(&error);
    let named = read_header(header).map_err(said)?;
    let trailer = read_trailer(trailer, bytes.len() as u64).map_err(said)?;
    let range = trailer.table_range();
    let range = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
    let table = range.and_then(|(start, end)| bytes.get(start..end)).ok_or_else(short)?;
    Ok((named, read_table(&trailer, table).map_err(said)?))
}

fn is_sound(bytes: &[u8], entry: &PackEntry) -> bool {
    let range = entry.range();
    let range = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
    let stored = range.and_then(|(start, end)| bytes.get(start..end));
    stored.is_some_and(|stored| checksum(stored) == entry.checksum)
}

/// The bytes of a chunk as they are in its NAR; `None` if one of its hashes is wrong.
pub(super) fn decode_chunk(
    stored: &[u8],
    id: ChunkId,
    expected: u64,
    layout: &ChunkLayout,
    fills: &[HoleFill],
) -> Option<Vec<u8>> {
    if checksum(stored) != expected {
        return None;
    }
    let mut decoder = Decoder::new().ok()?;
    let blanked = decoder.decode_blanked(stored, layout).ok()?;
    if ChunkId::compute(&blanked, &layout.holes) != id {
        return None;
    }
    decoder.decode(stored, layout, fills).ok()
}

#[cfg(test)]
mod tests {
    use dormer_format::{Encoder, PackBuilder, RawChunk};
    use dormer_index::PackNumber;

    use super::*;

    fn pack() -> (PackId, Vec<u8>, Vec<ChunkRow>) {
        let id = PackId::from_bytes([7; 16]);
        let mut builder = PackBuilder::new(id);
        let mut encoder = Encoder::new(3).unwrap();
        for byte in 0..3 {
            let chunk = RawChunk { bytes: vec![byte; 2_000], holes: vec![], fills: vec![] };
            builder.add(encoder.encode(&chunk).unwrap());
        }
        let pack = builder.finish();
        let rows = pack.entries.iter().zip(1..).map(|(entry, number)| ChunkRow {
            number,
            id: entry.id,
            pack: PackNumber(1),
            pack_id: id,
            offset: entry.offset,
            layout: entry.layout.clone(),
            checksum: entry.checksum,
        });
        let rows = rows.collect();
        (id, pack.parts.concat(), rows)
    }

    #[test]
    fn a_sound_pack_has_no_findings() {
        let (id, bytes, rows) = pack();
        assert_eq!(check_pack(id, &bytes, &rows), PackFindings::default());
    }

    #[test]
    fn any_flipped_bit_is_found_and_only_its_chunk_is_damaged() {
        let (id, bytes, rows) = pack();
        for position in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[position] ^= 1 << (position % 8);
            let findings = check_pack(id, &flipped, &rows);
            let at = position as u64;
            let hit =
                |row: &&ChunkRow| (row.offset..row.offset + u64::from(row.layout.stored_len())).contains(&at);
            let hit: Vec<u64> = rows.iter().filter(hit).map(|row| row.number).collect();
            assert_eq!(findings.whole.is_some(), hit.is_empty(), "byte {position}: {findings:?}");
            assert_eq!(findings.chunks, hit, "byte {position}");
            // When a push has stored the chunk elsewhere, nothing needs these bytes.
            let moved: Vec<ChunkRow> =
                rows.iter().filter(|row| !hit.contains(&row.number)).cloned().collect();
            assert_eq!(check_pack(id, &flipped, &moved).whole, findings.whole, "byte {position}");
        }
    }

    #[test]
    fn a_sound_pack_under_another_name_or_with_other_rows_is_found() {
        let (id, bytes, mut rows) = pack();
        let other = PackId::from_bytes([8; 16]);
        assert!(check_pack(other, &bytes, &rows).whole.is_some());
        rows[1].id = ChunkId::from_bytes([9; 32]);
        let findings = check_pack(id, &bytes, &rows);
        assert!(findings.whole.is_some());
        assert_eq!(findings.chunks, [2]);
    }
}
