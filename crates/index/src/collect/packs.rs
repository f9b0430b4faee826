//! Packs: what they hold, and how they are condemned, spared and removed.

use dormer_format::PackId;

use super::contract::{PackRow, PackedChunk, PacksRemoved};
use super::doomed::{DOOM_REMOVED, LOST_ROW, keys};
use crate::Result;
use crate::columns::{array, corrupt, unsigned};
use crate::contract::{PackNumber, UnixSeconds};
use crate::rows::{Row, read_chunk, read_pack_id};
use crate::sql::Argument::{List, Number, Numbers};
use crate::sql::{Sql, Transaction, both};
use crate::topics::damage;

pub(super) const PAGE_PACKS: Sql = both!(
    "SELECT id, number, size, created_at, used_at, condemned_at, chunks, recompressed_level FROM packs
     WHERE number > $1 ORDER BY number LIMIT $2"
);
pub(crate) const COUNT_CHUNKS: Sql = Sql {
    sqlite: "SELECT count(*) FROM chunks WHERE pack IN (SELECT value FROM json_each($1))",
    postgres: "SELECT count(*) FROM chunks WHERE pack = ANY ($1)",
};
// The first column is not read; `read_chunk` begins at the second. With the plain column,
// PostgreSQL would walk through all chunks in the order of their numbers.
pub(crate) const PACK_CHUNKS: Sql = Sql {
    sqlite: "
        SELECT 0, c.number, c.id, c.pack, p.id, c.start, c.checksum, c.layout, c.damaged_at
        FROM packs AS p CROSS JOIN chunks AS c
        WHERE p.number = $1 AND c.pack = p.number AND c.number > $2 ORDER BY c.number LIMIT $3",
    postgres: "
        SELECT 0, c.number, c.id, c.pack, p.id, c.start, c.checksum, c.layout, c.damaged_at
        FROM packs AS p JOIN chunks AS c ON c.pack = p.number
        WHERE p.number = $1 AND c.number + 0 > $2 ORDER BY c.number + 0 LIMIT $3",
};

/// On PostgreSQL the lock comes first: it waits for commits, and the conditions are looked at again
/// when it is granted.
pub(crate) const CONDEMN_PACKS: Sql = Sql {
    sqlite: "
        UPDATE packs SET condemned_at = $2
        WHERE number IN (SELECT value FROM json_each($1)) AND condemned_at IS NULL
            AND created_at < $3 AND used_at < $4
        RETURNING number",
    postgres: "
        WITH held AS MATERIALIZED (
            SELECT p.number FROM packs AS p
            WHERE p.number = ANY ($1) AND p.condemned_at IS NULL AND p.created_at < $3 AND p.used_at < $4
            ORDER BY p.number FOR NO KEY UPDATE)
        UPDATE packs SET condemned_at = $2 FROM held WHERE packs.number = held.number
        RETURNING packs.number",
};
// Later than the last stamp, also if that is of another clock or of this second: a stamp that is
// not older keeps a pack.
pub(super) const CONDEMN_NOW: Sql = Sql {
    sqlite: "
        UPDATE packs SET condemned_at = CASE WHEN used_at >= $2 THEN used_at + 1 ELSE $2 END
        WHERE number IN (SELECT value FROM json_each($1)) AND condemned_at IS NULL",
    postgres: "
        WITH held AS MATERIALIZED (
            SELECT p.number FROM packs AS p
            WHERE p.number = ANY ($1) AND p.condemned_at IS NULL
            ORDER BY p.number FOR NO KEY UPDATE)
        UPDATE packs SET condemned_at = CASE WHEN used_at >= $2 THEN used_at + 1 ELSE $2 END
        FROM held WHERE packs.number = held.number",
};
pub(super) const SPARE_PACKS: Sql = Sql {
    sqlite: "
        UPDATE packs SET condemned_at = NULL
        WHERE number IN (SELECT value FROM json_each($1)) AND condemned_at IS NOT NULL",
    postgres: "
        UPDATE packs SET condemned_at = NULL WHERE number = ANY ($1) AND condemned_at IS NOT NULL",
};

/// Locks the packs that may go.
const HOLD_PACKS: Sql = Sql {
    sqlite: "
        SELECT id, number, size FROM packs
        WHERE number IN (SELECT value FROM json_each($1)) AND condemned_at < $2 AND used_at < condemned_at",
    postgres: "
        SELECT id, number, size FROM packs
        WHERE number = ANY ($1) AND condemned_at < $2 AND used_at < condemned_at
        ORDER BY number FOR UPDATE",
};
pub(crate) const DELETE_CHUNKS: Sql = Sql {
    sqlite: "DELETE FROM chunks WHERE pack IN (SELECT value FROM json_each($1))",
    postgres: "
        WITH held AS MATERIALIZED (
            SELECT c.number FROM chunks AS c WHERE c.pack = ANY ($1) ORDER BY c.id FOR UPDATE)
        DELETE FROM chunks USING held WHERE chunks.number = held.number",
};
const DELETE_PACKS: Sql = Sql {
    sqlite: "DELETE FROM packs WHERE number IN (SELECT value FROM json_each($1))",
    postgres: "DELETE FROM packs WHERE number = ANY ($1)",
};

/// Removes the rows of condemned packs, and notes their objects as doomed
/// ([`CollectIndex::remove_packs`](super::CollectIndex::remove_packs)).
pub(super) async fn remove(
    tx: &mut Transaction,
    packs: &[i64],
    condemned_before: UnixSeconds,
    at: UnixSeconds,
) -> Result<PacksRemoved> {
    let mut removed = PacksRemoved::default();
    let mut held = Vec::new();
    for row in tx.rows(HOLD_PACKS, &[Numbers(packs), Number(condemned_before)]).await? {
        removed.packs.push(read_pack_id(&row)?);
        held.push(row.column::<i64>(1, "packs")?);
        removed.bytes += unsigned("packs", row.column(2, "packs")?)?;
    }
    removed.chunks = tx.run(DELETE_CHUNKS, &[Numbers(&held)]).await?;
    // Damaged chunks may be among them.
    damage::note_healed(tx, at).await?;
    tx.run(DELETE_PACKS, &[Numbers(&held)]).await?;
    tx.run(DOOM_REMOVED, &[List(&keys(&removed.packs)), Number(at), Number(LOST_ROW)]).await?;
    Ok(removed)
}

/// Columns: those of a chunk, and its damage.
pub(super) fn read_packed(row: &Row) -> Result<PackedChunk> {
    let is_damaged = row.column::<Option<i64>>(8, "chunks")?.is_some();
    Ok(PackedChunk { row: read_chunk(row)?, is_damaged })
}

/// Columns: id, number, size, created_at, used_at, condemned_at, chunks, recompressed_level.
pub(crate) fn read_pack(row: &Row) -> Result<PackRow> {
    let table = "packs";
    Ok(PackRow {
        id: PackId::from_bytes(array(table, row.column(0, table)?)?),
        number: PackNumber(row.column(1, table)?),
        size: unsigned(table, row.column(2, table)?)?,
        created_at: row.column(3, table)?,
        used_at: row.column(4, table)?,
        condemned_at: row.column(5, table)?,
        chunks: row.column::<Option<i64>>(6, table)?.map(|chunks| unsigned(table, chunks)).transpose()?,
        recompressed_level: u8::try_from(row.column::<i64>(7, table)?)
            .map_err(|error| corrupt(table, error))?,
    })
}
