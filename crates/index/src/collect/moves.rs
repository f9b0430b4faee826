//! Chunks that a compaction moves to a new pack.

use super::contract::{ChunkMove, CompactedPack};
use super::doomed::{DOOM_REMOVED, HAD_NO_ROW};
use crate::Result;
use crate::changes::Change;
use crate::columns::{signed, unsigned};
use crate::contract::UnixSeconds;
use crate::sql::Argument::{Bytes, List, Number, Table};
use crate::sql::{Column, Sql, Transaction, both};
use crate::topics::chunks::{PackRowValues, insert_pack};

// A pack that is never deleted has its deadline at the end of time.
const TAKE_OFF_DOOMED: Sql =
    both!("DELETE FROM doomed_packs WHERE id = $1 AND not_before > $2 AND not_before < 9223372036854775807");
/// The chunks that are sound and lie where they were read. On PostgreSQL the locks come first, in
/// the order of the chunks' ids as everywhere, and the conditions are looked at again when they are
/// granted.
pub(crate) const MOVE_CHUNKS: Sql = Sql {
    sqlite: "
        UPDATE chunks SET pack = $1, start = k.value ->> 4 FROM json_each($2) AS k
        WHERE chunks.number = k.value ->> 0 AND +chunks.pack = k.value ->> 1
            AND chunks.start = k.value ->> 2 AND chunks.checksum = k.value ->> 3
            AND chunks.damaged_at IS NULL
        RETURNING number",
    postgres: "
        WITH held AS MATERIALIZED (
            SELECT c.number, k.start
            FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
                AS k (number, source, place, checksum, start)
            JOIN chunks AS c ON c.number = k.number
            WHERE c.pack = k.source AND c.start = k.place AND c.checksum = k.checksum
                AND c.damaged_at IS NULL
            ORDER BY c.id FOR NO KEY UPDATE OF c)
        UPDATE chunks SET pack = $1, start = held.start FROM held WHERE chunks.number = held.number
        RETURNING chunks.number",
};
/// The same for chunks that get new frames.
pub(crate) const REFRAME_CHUNKS: Sql = Sql {
    sqlite: "
        UPDATE chunks SET pack = $1, start = k.value ->> 4, checksum = k.value ->> 5, layout = unhex(k.value ->> 6)
        FROM json_each($2) AS k
        WHERE chunks.number = k.value ->> 0 AND +chunks.pack = k.value ->> 1
            AND chunks.start = k.value ->> 2 AND chunks.checksum = k.value ->> 3
            AND chunks.damaged_at IS NULL
        RETURNING number",
    postgres: "
        WITH held AS MATERIALIZED (
            SELECT c.number, k.start, k.new_checksum, k.layout
            FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
                $8::bytea[]) AS k (number, source, place, checksum, start, new_checksum, layout)
            JOIN chunks AS c ON c.number = k.number
            WHERE c.pack = k.source AND c.start = k.place AND c.checksum = k.checksum
                AND c.damaged_at IS NULL
            ORDER BY c.id FOR NO KEY UPDATE OF c)
        UPDATE chunks SET pack = $1, start = held.start, checksum = held.new_checksum, layout = held.layout
        FROM held WHERE chunks.number = held.number
        RETURNING chunks.number",
};
// Stamps are locked in the order of numbers everywhere.
pub(super) const NOTE_RECOMPRESSED: Sql = Sql {
    sqlite: "
        UPDATE packs SET recompressed_level = $2
        WHERE number IN (SELECT value FROM json_each($1)) AND recompressed_level < $2",
    postgres: "
        WITH held AS MATERIALIZED (
            SELECT p.number FROM packs AS p WHERE p.number = ANY ($1) AND p.recompressed_level < $2
            ORDER BY p.number FOR NO KEY UPDATE)
        UPDATE packs SET recompressed_level = $2 FROM held WHERE packs.number = held.number",
};
const DELETE_PACK: Sql = both!("DELETE FROM packs WHERE number = $1");

/// Moves chunks to a pack that was just stored, and gives it a row
/// ([`CollectIndex::move_chunks`](super::CollectIndex::move_chunks)). Returns which ones moved.
pub(super) async fn move_to_pack(
    tx: &mut Transaction,
    pack: &CompactedPack,
    at: UnixSeconds,
    doomed_after: UnixSeconds,
) -> Result<Vec<u64>> {
    let column = |value: fn(&ChunkMove) -> i64| Column::Numbers(pack.chunks.iter().map(value).collect());
    let mut table = vec![
        column(|chunk| signed(chunk.number)),
        column(|chunk| chunk.from.0),
        column(|chunk| signed(chunk.from_offset)),
        column(|chunk| chunk.checksum.cast_signed()),
        column(|chunk| signed(chunk.offset)),
    ];
    let new_frames = pack.new_frames.as_deref();
    assert!(new_frames.is_none_or(|frames| frames.len() == pack.chunks.len()), "frames for each chunk");
    let layouts: Vec<Vec<u8>> =
        new_frames.unwrap_or_default().iter().map(|(_, layout)| layout.encode()).collect();
    if let Some(frames) = new_frames {
        table.push(Column::Numbers(frames.iter().map(|(checksum, _)| checksum.cast_signed()).collect()));
        table.push(Column::Bytes(layouts.iter().map(Vec::as_slice).collect()));
    }
    let move_chunks = if new_frames.is_some() { REFRAME_CHUNKS } else { MOVE_CHUNKS };
    let id = pack.id.as_bytes();
    if tx.run(TAKE_OFF_DOOMED, &[Bytes(id), Number(doomed_after)]).await? == 0 {
        return Ok(Vec::new());
    }
    let row = PackRowValues {
        id: pack.id,
        size: pack.size,
        created_at: at,
        chunks: pack.chunks.len(),
        raw_bytes: pack.raw_bytes,
        holed_bytes: pack.holed_bytes,
        recompressed_level: pack.recompressed_level,
    };
    let number = insert_pack(tx, &row).await?;
    let moved = tx.rows(move_chunks, &[Number(number), Table(&table)]).await?;
    if new_frames.is_some() {
        // Other replicas may remember the frames: they would give NARs their old tags back.
        tx.announce(Change::Everything).await?;
    }
    if moved.is_empty() {
        tx.run(DELETE_PACK, &[Number(number)]).await?;
        tx.run(DOOM_REMOVED, &[List(&[id]), Number(at), Number(HAD_NO_ROW)]).await?;
    }
    moved.iter().map(|row| unsigned("chunks", row.column(0, "chunks")?)).collect()
}
