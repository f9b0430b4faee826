//! Packs and the chunks in them.
//!
//! Many keys go into one statement as arrays, and come back with their places. Rows are locked in the order of their ids,
//! so that racing packs wait for each other and never in a circle.

use std::collections::HashMap;

use dormer_format::{ChunkId, ChunkRun};
use sqlx::postgres::PgRow;
use sqlx::query;

use super::session::{Session, Statement};
use super::{KEYS_MAX, PostgresIndex, changes, outbox};
use crate::columns::{corrupt, signed, unsigned};
use crate::contract::{ChunkRow, NarId, NewNar, NewPack, PackNumber, UnixSeconds};
use crate::rows::{Row as _, read_chunk, read_position};
use crate::{Error, Result};

/// Chunks that a pack's numbers have room for.
const PACK_CHUNKS_MAX: usize = 65_536;

pub(super) const FIND_CHUNKS: &str = "
    SELECT k.n - 1, c.number, c.id, c.pack, p.id, c.start, c.checksum, c.layout
    FROM unnest($1::bytea[]) WITH ORDINALITY AS k (id, n)
    JOIN chunks AS c ON c.id = k.id
    JOIN packs AS p ON p.number = c.pack
    WHERE c.damaged_at IS NULL AND p.condemned_at IS NULL";

/// In the transaction that stores a pack: who came first stands, whatever became of it meanwhile.
pub(super) const FIND_WINNERS: &str = "
    SELECT k.n - 1, c.number, c.id, c.pack, p.id, c.start, c.checksum, c.layout
    FROM unnest($1::bytea[]) WITH ORDINALITY AS k (id, n)
    JOIN chunks AS c ON c.id = k.id
    JOIN packs AS p ON p.number = c.pack";

pub(super) const LOAD_CHUNKS: &str = "
    SELECT r.n, c.number, c.id, c.pack, p.id, c.start, c.checksum, c.layout
    FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS r (first, last, n)
    JOIN chunks AS c ON c.number BETWEEN r.first AND r.last
    JOIN packs AS p ON p.number = c.pack
    ORDER BY r.n, c.number";

// Repeating a commit whose answer was lost finds its own pack.
const INSERT_PACK: &str = "
    INSERT INTO packs (id, size, created_at, used_at) VALUES ($1, $2, $3, $3)
    ON CONFLICT (id) DO UPDATE SET used_at = excluded.used_at
    RETURNING number";

// A chunk that came first stays, unless nobody may use it: then its row, with its number, moves to this pack.
const INSERT_CHUNKS: &str = "
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
    RETURNING number, id";

// Counts those that are there; locked in order, and stamped only where the stamp is older. And the damaged chunks in them.
pub(super) const STAMP_PACKS: &str = "
    WITH held AS MATERIALIZED (
        SELECT p.number, p.used_at FROM packs AS p
        WHERE p.number = ANY ($2) AND p.condemned_at IS NULL
        ORDER BY p.number FOR NO KEY UPDATE),
    stamped AS (
        UPDATE packs SET used_at = $1 FROM held
        WHERE packs.number = held.number AND held.used_at < $1)
    SELECT count(*), ARRAY(
        SELECT c.number FROM held JOIN chunks AS c ON c.pack = held.number WHERE c.damaged_at IS NOT NULL)
    FROM held";

const MARK_NAR_DAMAGED: &str = "UPDATE nars SET damaged_at = $2 WHERE id = $1 AND damaged_at IS NULL";

pub(super) const MARK_CHUNKS_DAMAGED: &str = "
    WITH held AS MATERIALIZED (
        SELECT c.number FROM chunks AS c
        WHERE c.number = ANY ($1) AND c.damaged_at IS NULL
        ORDER BY c.id FOR NO KEY UPDATE)
    UPDATE chunks SET damaged_at = $2 FROM held WHERE chunks.number = held.number";

const FORGET_LISTING: &str = "DELETE FROM listings WHERE nar = $1";

const UPDATE_ENCODING: &str = "UPDATE nars SET tag = $2, file_size = $3 WHERE id = $1";

/// Stamps a new NAR's packs; fails with [`Error::PackGone`] if one of them, or a chunk that the NAR needs, may no longer be reused.
pub(super) async fn stamp(write: &mut Session<'_>, nar: &NewNar, at: UnixSeconds) -> Result<()> {
    let packs = nar.pack_numbers();
    let row = write.one(query(STAMP_PACKS).bind(at).bind(&packs)).await?;
    let stamped: i64 = row.column(0, "packs")?;
    let numbers: Vec<i64> = sqlx::Row::try_get(&row, 1).map_err(|error| corrupt("chunks", error))?;
    let damaged = numbers.into_iter().map(|number| unsigned("chunks", number)).collect::<Result<Vec<_>>>()?;
    let all = usize::try_from(stamped).ok() == Some(packs.len());
    if !all || nar.needs_any(&damaged) { Err(Error::PackGone) } else { Ok(()) }
}

impl PostgresIndex {
    pub(super) async fn find_chunk_rows(&self, ids: &[ChunkId]) -> Result<Vec<Option<ChunkRow>>> {
        assert!(ids.len() <= KEYS_MAX, "too many chunks in one look-up");
        let mut found = vec![None; ids.len()];
        if ids.is_empty() {
            return Ok(found);
        }
        let keys: Vec<&[u8]> = ids.iter().map(|id| id.as_bytes().as_slice()).collect();
        let mut read = self.read("find chunks").await?;
        let rows = read.all(query(FIND_CHUNKS).bind(keys)).await?;
        read.end().await?;
        for row in rows {
            found[read_position(&row)?] = Some(read_chunk(&row)?);
        }
        Ok(found)
    }

    pub(super) async fn load_chunk_rows(&self, runs: &[ChunkRun]) -> Result<Vec<ChunkRow>> {
        let wanted = runs.iter().flat_map(|run| run.first..run.first + u64::from(run.count));
        let count: usize = runs.iter().map(|run| run.count as usize).sum();
        assert!(count <= KEYS_MAX, "too many chunks in one load");
        if count == 0 {
            return Ok(Vec::new());
        }
        let runs: Vec<&ChunkRun> = runs.iter().filter(|run| run.count > 0).collect();
        let first: Vec<i64> = runs.iter().map(|run| signed(run.first)).collect();
        let last: Vec<i64> = runs.iter().map(|run| signed(run.first) + i64::from(run.count) - 1).collect();
        let mut read = self.read("load chunks").await?;
        let rows = read.all(query(LOAD_CHUNKS).bind(first).bind(last)).await?;
        read.end().await?;
        let mut rows = rows.iter().map(read_chunk);
        wanted
            .map(|number| match rows.next().transpose()? {
                Some(row) if row.number == number => Ok(row),
                _ => Err(Error::ChunkGone { number }),
            })
            .collect()
    }

    pub(super) async fn commit_pack_rows(&self, pack: &NewPack) -> Result<Vec<ChunkRow>> {
        assert!(pack.chunks.len() <= PACK_CHUNKS_MAX, "too many chunks in one pack");
        let mut write = self.write("commit a pack", &[]).await?;
        let insert = query(INSERT_PACK)
            .bind(pack.id.as_bytes().as_slice())
            .bind(signed(pack.size))
            .bind(pack.created_at);
        let number: i64 = write.one(insert).await?.column(0, "packs")?;
        let inserted = write.all(insert_chunks(number, pack)).await?;

        let (mut rows, moved) = own_rows(pack, number, &inserted)?;
        let lost: Vec<usize> = (0..rows.len()).filter(|n| rows[*n].is_none()).collect();
        if !lost.is_empty() {
            let keys: Vec<&[u8]> = lost.iter().map(|n| pack.chunks[*n].id.as_bytes().as_slice()).collect();
            for row in write.all(query(FIND_WINNERS).bind(keys)).await? {
                rows[lost[read_position(&row)?]] = Some(read_chunk(&row)?);
            }
        }
        if moved {
            // Others may remember where the chunk was.
            write.execute(changes::tell_everything()).await?;
        }
        write.commit().await?;
        rows.into_iter().map(|row| row.ok_or_else(|| corrupt("chunks", "a new row is missing"))).collect()
    }

    pub(super) async fn mark_rows_damaged(&self, nar: NarId, chunks: &[u64], at: UnixSeconds) -> Result<()> {
        let write = self.write("mark damage", &[]).await?;
        mark_chunks_damaged(write, query(MARK_NAR_DAMAGED).bind(nar.0).bind(at), chunks, at).await
    }

    pub(super) async fn forget_listing_row(&self, nar: NarId, chunks: &[u64], at: UnixSeconds) -> Result<()> {
        let write = self.write("forget a listing", &[]).await?;
        mark_chunks_damaged(write, query(FORGET_LISTING).bind(nar.0), chunks, at).await
    }

    pub(super) async fn update_encoding_row(
        &self,
        nar: NarId,
        tag: &[u8],
        file_size: u64,
        at: UnixSeconds,
    ) -> Result<()> {
        let mut write = self.write("correct a NAR's encoding", &[]).await?;
        let update = query(UPDATE_ENCODING).bind(nar.0).bind(tag).bind(signed(file_size));
        if write.execute(update).await? == 0 {
            return Err(write.give_up(Error::NarGone).await);
        }
        write.execute(outbox::insert_for_nar(nar, at)).await?;
        write.execute(changes::tell_everything()).await?;
        write.commit().await
    }
}

async fn mark_chunks_damaged(
    mut write: Session<'_>,
    first: Statement<'_>,
    chunks: &[u64],
    at: UnixSeconds,
) -> Result<()> {
    // Chunks before NARs, as everywhere: a healing upload locks them in this order.
    if !chunks.is_empty() {
        let numbers: Vec<i64> = chunks.iter().map(|number| signed(*number)).collect();
        write.execute(query(MARK_CHUNKS_DAMAGED).bind(numbers).bind(at)).await?;
    }
    write.execute(first).await?;
    write.execute(changes::tell_everything()).await?;
    write.commit().await
}

fn insert_chunks(number: i64, pack: &NewPack) -> Statement<'_> {
    let chunks = &pack.chunks;
    query(INSERT_CHUNKS)
        .bind(number)
        .bind(chunks.iter().map(|chunk| chunk.id.as_bytes().as_slice()).collect::<Vec<_>>())
        .bind(chunks.iter().map(|chunk| signed(chunk.offset)).collect::<Vec<_>>())
        .bind(chunks.iter().map(|chunk| chunk.checksum.cast_signed()).collect::<Vec<_>>())
        .bind(chunks.iter().map(|chunk| chunk.layout.encode()).collect::<Vec<_>>())
}

/// The rows that now lie in this pack, by place, and whether one of them was there before; the others are `None`.
fn own_rows(pack: &NewPack, number: i64, inserted: &[PgRow]) -> Result<(Vec<Option<ChunkRow>>, bool)> {
    let mut numbers: HashMap<&[u8], u64> = HashMap::with_capacity(inserted.len());
    for row in inserted {
        numbers.insert(row.column(1, "chunks")?, unsigned("chunks", row.column(0, "chunks")?)?);
    }
    let moved = numbers.values().any(|own| own / PACK_CHUNKS_MAX as u64 != number.unsigned_abs());
    // Taken out, so that a chunk given twice has one row; the second place reads it again.
    let row = |chunk: &crate::NewChunk| {
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
