//! Packs and the chunks in them.
//!
//! Many keys go into one statement as one parameter and come back with their places. On SQLite
//! `json_each` drives the join and each key is searched in an index (`CROSS JOIN` fixes that order;
//! a test reads the query plans). Cutting keys out of one blob with a recursive CTE was tried:
//! SQLite copies the blob for every key, 778 ms for 16,384 of them. On PostgreSQL rows are locked
//! in the order of their ids, so that racing packs wait for each other and never in a circle.

use std::collections::HashMap;

use async_trait::async_trait;
use dormer_format::{ChunkId, ChunkLayout, ChunkRun, PackId};

use super::counters::generation;
use super::{KEYS_MAX, damage};
use crate::changes::Change;
use crate::columns::{corrupt, signed, unsigned};
use crate::contract::{ChunkIndex, ChunkRow, NarId, NewChunk, NewNar, NewPack, PackNumber, UnixSeconds};
use crate::rows::{Row, read_chunk, read_position};
use crate::sql::Argument::{Bytes, List, Number, Numbers, Table};
use crate::sql::{Column, Sql, Transaction, both};
use crate::sql_index::SqlIndex;
use crate::{Error, Result};

/// Chunks that a pack's numbers have room for.
const PACK_CHUNKS_MAX: usize = 65_536;

pub(crate) const FIND_CHUNKS: Sql = Sql {
    sqlite: "
        SELECT k.key, c.number, c.id, c.pack, p.id, c.start, c.checksum, c.layout
        FROM json_each($1) AS k CROSS JOIN chunks AS c CROSS JOIN packs AS p
        WHERE c.id = unhex(k.value) AND p.number = c.pack
            AND c.damaged_at IS NULL AND p.condemned_at IS NULL",
    postgres: "
        SELECT k.n - 1, c.number, c.id, c.pack, p.id, c.start, c.checksum, c.layout
        FROM unnest($1::bytea[]) WITH ORDINALITY AS k (id, n)
        JOIN chunks AS c ON c.id = k.id
        JOIN packs AS p ON p.number = c.pack
        WHERE c.damaged_at IS NULL AND p.condemned_at IS NULL",
};

/// In the transaction that stores a pack: the chunk that came first stands, whatever became of it
/// meanwhile.
pub(crate) const FIND_WINNERS: Sql = Sql {
    sqlite: "
        SELECT k.key, c.number, c.id, c.pack, p.id, c.start, c.checksum, c.layout
        FROM json_each($1) AS k CROSS JOIN chunks AS c CROSS JOIN packs AS p
        WHERE c.id = unhex(k.value) AND p.number = c.pack",
    postgres: "
        SELECT k.n - 1, c.number, c.id, c.pack, p.id, c.start, c.checksum, c.layout
        FROM unnest($1::bytea[]) WITH ORDINALITY AS k (id, n)
        JOIN chunks AS c ON c.id = k.id
        JOIN packs AS p ON p.number = c.pack",
};

pub(crate) const LOAD_CHUNKS: Sql = Sql {
    sqlite: "
        SELECT r.key, c.number, c.id, c.pack, p.id, c.start, c.checksum, c.layout
        FROM json_each($1) AS r CROSS JOIN chunks AS c CROSS JOIN packs AS p
        WHERE c.number BETWEEN r.value ->> 0 AND r.value ->> 1 AND p.number = c.pack
        ORDER BY r.key, c.number",
    postgres: "
        SELECT r.n, c.number, c.id, c.pack, p.id, c.start, c.checksum, c.layout
        FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS r (first, last, n)
        JOIN chunks AS c ON c.number BETWEEN r.first AND r.last
        JOIN packs AS p ON p.number = c.pack
        ORDER BY r.n, c.number",
};

// Repeating a commit whose answer was lost finds its own pack.
const INSERT_PACK: Sql = both!(concat!(
    "INSERT INTO packs (id, size, created_at, used_at, chunks, raw_bytes, holed_bytes, recompressed_level, counted)
     VALUES ($1, $2, $3, $3, $4, $5, $6, $7, ",
    generation!(),
    ")
     ON CONFLICT (id) DO UPDATE SET used_at = excluded.used_at
     RETURNING number"
));
/// The layouts of the chunks that lie in a pack.
pub(crate) const LAYOUTS_OF_PACK: Sql = both!("SELECT c.layout FROM chunks AS c WHERE c.pack = $1");

// A chunk that came first stays, unless nothing may use it: then its row, with its number, moves to
// this pack.
pub(crate) const INSERT_CHUNKS: Sql = Sql {
    sqlite: "
        INSERT INTO chunks (number, id, pack, start, checksum, layout)
        SELECT $1 * 65536 + k.key, unhex(k.value ->> 0), $1, k.value ->> 1, k.value ->> 2, unhex(k.value ->> 3)
        FROM json_each($2) AS k WHERE true
        ON CONFLICT (id) DO UPDATE SET
            pack = excluded.pack, start = excluded.start, checksum = excluded.checksum, layout = excluded.layout,
            damaged_at = NULL
        WHERE chunks.damaged_at IS NOT NULL
            OR chunks.pack IN (SELECT p.number FROM packs AS p WHERE p.condemned_at IS NOT NULL)
        RETURNING number, id",
    postgres: "
        INSERT INTO chunks (number, id, pack, start, checksum, layout)
        SELECT DISTINCT ON (k.id) $1::bigint * 65536 + k.n - 1, k.id, $1, k.start, k.checksum, k.layout
        FROM unnest($2::bytea[], $3::bigint[], $4::bigint[], $5::bytea[])
            WITH ORDINALITY AS k (id, start, checksum, layout, n)
        ORDER BY k.id, k.n
        ON CONFLICT (id) DO UPDATE SET
            pack = excluded.pack, start = excluded.start, checksum = excluded.checksum, layout = excluded.layout,
            damaged_at = NULL
        WHERE chunks.damaged_at IS NOT NULL
            OR EXISTS (SELECT 1 FROM packs AS p WHERE p.number = chunks.pack AND p.condemned_at IS NOT NULL)
        RETURNING number, id",
};

/// Gives a row for each pack that may be reused, with the numbers of its damaged chunks as a JSON
/// array.
///
/// On PostgreSQL a pack is stamped only if its stamp is older than ten minutes, under an exclusive
/// lock. A fresh pack gets a shared lock, so that commits which share packs run beside each other:
/// 16 connections did 128 commits a second when each stamped, and 1,069 to 1,452 since. The lock
/// keeps the collector from condemning a pack until the commit ends, and condemning looks again at
/// stamps and recipes after that. The lists of stale and fresh packs are taken once, before a lock
/// is waited for, so each pack stays in one of them.
pub(crate) const STAMP_PACKS: Sql = Sql {
    sqlite: "
        UPDATE packs SET used_at = CASE WHEN used_at < $1 THEN $1 ELSE used_at END
        WHERE number IN (SELECT value FROM json_each($2)) AND condemned_at IS NULL
        RETURNING (SELECT json_group_array(c.number) FROM chunks AS c INDEXED BY chunks_damaged
            WHERE c.pack = packs.number AND c.damaged_at IS NOT NULL)",
    postgres: "
        WITH stale AS MATERIALIZED (
            SELECT p.number FROM packs AS p
            WHERE p.condemned_at IS NULL AND p.number = ANY (ARRAY(
                SELECT s.number FROM packs AS s WHERE s.number = ANY ($2) AND s.used_at < $1 - 600))
            ORDER BY p.number FOR NO KEY UPDATE),
        stamped AS (
            UPDATE packs SET used_at = $1 FROM stale
            WHERE packs.number = stale.number AND packs.used_at < $1),
        fresh AS MATERIALIZED (
            SELECT p.number FROM packs AS p
            WHERE p.condemned_at IS NULL AND p.number = ANY (ARRAY(
                SELECT s.number FROM packs AS s WHERE s.number = ANY ($2) AND s.used_at >= $1 - 600))
            ORDER BY p.number FOR SHARE),
        held AS (SELECT number FROM stale UNION ALL SELECT number FROM fresh)
        SELECT (SELECT coalesce(json_agg(c.number), '[]')::text FROM chunks AS c
            WHERE c.pack = held.number AND c.damaged_at IS NOT NULL)
        FROM held",
};

/// Stamps a new NAR's packs. Fails with [`Error::PackGone`] if one of them, or a chunk that the NAR
/// needs, may no longer be reused.
pub(crate) async fn stamp_packs(tx: &mut Transaction, nar: &NewNar, at: UnixSeconds) -> Result<()> {
    let packs = nar.pack_numbers();
    let rows = tx.rows(STAMP_PACKS, &[Number(at), Numbers(&packs)]).await?;
    let mut damaged: Vec<u64> = Vec::new();
    for row in &rows {
        let numbers: String = row.column(0, "chunks")?;
        damaged.extend(serde_json::from_str::<Vec<u64>>(&numbers).map_err(|error| corrupt("chunks", error))?);
    }
    if rows.len() != packs.len() || nar.needs_any(&damaged) { Err(Error::PackGone) } else { Ok(()) }
}

#[async_trait]
impl ChunkIndex for SqlIndex {
    async fn find_chunks(&self, ids: &[ChunkId]) -> Result<Vec<Option<ChunkRow>>> {
        assert!(ids.len() <= KEYS_MAX, "too many chunks in one look-up");
        let possible: Vec<usize> = (0..ids.len()).filter(|n| self.known.may_have_chunk(&ids[*n])).collect();
        if possible.is_empty() {
            return Ok(vec![None; ids.len()]);
        }
        let keys: Vec<&[u8]> = possible.iter().map(|n| ids[*n].as_bytes().as_slice()).collect();
        self.read("find chunks", async |mut tx| {
            let mut found = vec![None; ids.len()];
            for row in tx.rows(FIND_CHUNKS, &[List(&keys)]).await? {
                found[possible[read_position(&row)?]] = Some(read_chunk(&row)?);
            }
            Ok(found)
        })
        .await
    }

    async fn load_chunks(&self, runs: &[ChunkRun]) -> Result<Vec<ChunkRow>> {
        let count: usize = runs.iter().map(|run| run.count as usize).sum();
        assert!(count <= KEYS_MAX, "too many chunks in one load");
        if count == 0 {
            return Ok(Vec::new());
        }
        let runs: Vec<&ChunkRun> = runs.iter().filter(|run| run.count > 0).collect();
        let first = runs.iter().map(|run| signed(run.first)).collect();
        let last = runs.iter().map(|run| signed(run.first) + i64::from(run.count) - 1).collect();
        let bounds = [Column::Numbers(first), Column::Numbers(last)];
        let rows = self.read("load chunks", async |mut tx| {
            tx.rows(LOAD_CHUNKS, &[Table(&bounds)]).await?.iter().map(read_chunk).collect::<Result<Vec<_>>>()
        });
        let mut rows = rows.await?.into_iter();
        let wanted = runs.iter().flat_map(|run| run.first..run.first + u64::from(run.count));
        wanted
            .map(|number| match rows.next() {
                Some(row) if row.number == number => Ok(row),
                _ => Err(Error::ChunkGone { number }),
            })
            .collect()
    }

    async fn commit_pack(&self, pack: &NewPack) -> Result<Vec<ChunkRow>> {
        assert!(pack.chunks.len() <= PACK_CHUNKS_MAX, "too many chunks in one pack");
        let encoded: Vec<Vec<u8>> = pack.chunks.iter().map(|chunk| chunk.layout.encode()).collect();
        let table = [
            Column::Bytes(pack.chunks.iter().map(|chunk| chunk.id.as_bytes().as_slice()).collect()),
            Column::Numbers(pack.chunks.iter().map(|chunk| signed(chunk.offset)).collect()),
            Column::Numbers(pack.chunks.iter().map(|chunk| chunk.checksum.cast_signed()).collect()),
            Column::Bytes(encoded.iter().map(Vec::as_slice).collect()),
        ];
        let layouts = || pack.chunks.iter().map(|chunk| &chunk.layout);
        let pack_row = PackRowValues {
            id: pack.id,
            size: pack.size,
            created_at: pack.created_at,
            chunks: pack.chunks.len(),
            raw_bytes: layouts().map(|layout| u64::from(layout.raw_len)).sum(),
            holed_bytes: layouts().map(ChunkLayout::holed_bytes).sum(),
            recompressed_level: 0,
        };
        self.write("commit a pack", async |mut tx| {
            let number = insert_pack(&mut tx, &pack_row).await?;
            let inserted = tx.rows(INSERT_CHUNKS, &[Number(number), Table(&table)]).await?;

            let (mut rows, moved) = own_rows(pack, number, &inserted)?;
            let lost: Vec<usize> = (0..rows.len()).filter(|n| rows[*n].is_none()).collect();
            if !lost.is_empty() {
                let keys: Vec<&[u8]> =
                    lost.iter().map(|n| pack.chunks[*n].id.as_bytes().as_slice()).collect();
                for row in tx.rows(FIND_WINNERS, &[List(&keys)]).await? {
                    rows[lost[read_position(&row)?]] = Some(read_chunk(&row)?);
                }
            }
            if moved {
                damage::note_healed(&mut tx, pack.created_at).await?;
                // Other replicas may remember where the chunk was.
                tx.announce(Change::Everything).await?;
            }
            self.known.add_chunks(pack.chunks.iter().map(|chunk| &chunk.id));
            rows.into_iter().map(|row| row.ok_or_else(|| corrupt("chunks", "a new row is missing"))).collect()
        })
        .await
    }

    async fn mark_damaged(&self, nar: NarId, chunks: &[u64], at: UnixSeconds) -> Result<()> {
        self.write("mark damage", async |mut tx| damage::mark_nar(&mut tx, nar, chunks, at).await).await
    }

    async fn mark_listing_lost(&self, nar: NarId, chunks: &[u64], at: UnixSeconds) -> Result<()> {
        self.write("forget a listing", async |mut tx| {
            damage::mark_chunks(&mut tx, chunks, at).await?;
            damage::forget_listings(&mut tx, &[nar]).await?;
            tx.announce(Change::Everything).await
        })
        .await
    }
}

/// What the row of a new pack says.
pub(crate) struct PackRowValues {
    pub(crate) id: PackId,
    /// Bytes of the object.
    pub(crate) size: u64,
    pub(crate) created_at: UnixSeconds,
    /// How many chunks the object has.
    pub(crate) chunks: usize,
    /// Raw bytes of these chunks.
    pub(crate) raw_bytes: u64,
    /// Those of them in chunks with holes.
    pub(crate) holed_bytes: u64,
    /// The least level that the chunks were recompressed at; 0: some were not.
    pub(crate) recompressed_level: u8,
}

/// Adds the row of a pack; returns its number.
pub(crate) async fn insert_pack(tx: &mut Transaction, pack: &PackRowValues) -> Result<i64> {
    let chunks = i64::try_from(pack.chunks).expect("a pack has at most 65,536 chunks");
    let row = [
        Bytes(pack.id.as_bytes()),
        Number(signed(pack.size)),
        Number(pack.created_at),
        Number(chunks),
        Number(signed(pack.raw_bytes)),
        Number(signed(pack.holed_bytes)),
        Number(pack.recompressed_level.into()),
    ];
    tx.one(INSERT_PACK, &row).await?.column(0, "packs")
}

/// The rows that now lie in this pack, by place, and whether one of them was in another pack
/// before. The rows that stayed elsewhere are `None`.
fn own_rows(pack: &NewPack, number: i64, inserted: &[Row]) -> Result<(Vec<Option<ChunkRow>>, bool)> {
    let mut numbers: HashMap<&[u8], u64> = HashMap::with_capacity(inserted.len());
    for row in inserted {
        numbers.insert(row.column(1, "chunks")?, unsigned("chunks", row.column(0, "chunks")?)?);
    }
    let moved = numbers.values().any(|own| own / PACK_CHUNKS_MAX as u64 != number.unsigned_abs());
    // Taken out, so that a chunk given twice has one row; the second place reads it again.
    let row = |chunk: &NewChunk| {
        numbers.remove(chunk.id.as_bytes().as_slice()).map(|own| ChunkRow {
            number: own,
            id: chunk.id,
            pack: PackNumber(number),
            pack_id: pack.id,
            offset: chunk.offset,
            layout: chunk.layout.clone(),
            checksum: chunk.checksum,
        })
    };
    Ok((pack.chunks.iter().map(row).collect(), moved))
}
