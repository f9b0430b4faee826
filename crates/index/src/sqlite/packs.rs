//! Packs and the chunks in them.
//!
//! Many keys go into one statement as one JSON parameter: `json_each` drives the join and each key is searched in an index
//! (`CROSS JOIN` fixes that order; a test reads the query plans). Cutting keys out of one blob with a recursive CTE was
//! tried: SQLite copies the blob for every key, 778 ms for 16,384 of them.

use std::collections::HashMap;
use std::fmt::Write as _;

use dormer_format::{ChunkId, ChunkRun};
use sqlx::query;
use sqlx::sqlite::SqliteRow;

use super::session::{Statement, Write};
use super::{KEYS_MAX, SqliteIndex, get, hex_array, outbox};
use crate::columns::{corrupt, signed};
use crate::contract::{ChunkRow, NarId, NewNar, NewPack, PackNumber, UnixSeconds};
use crate::key_filter::id_key;
use crate::rows::{read_chunk, read_position};
use crate::{Error, Result};

/// Chunks that a pack's numbers have room for.
const PACK_CHUNKS_MAX: usize = 65_536;

pub(super) const FIND_CHUNKS: &str = "
    SELECT k.key, c.number, c.id, c.pack, p.id, c.start, c.checksum, c.layout
    FROM json_each($1) AS k CROSS JOIN chunks AS c CROSS JOIN packs AS p
    WHERE c.id = unhex(k.value) AND p.number = c.pack
        AND c.damaged_at IS NULL AND p.condemned_at IS NULL";

pub(super) const LOAD_CHUNKS: &str = "
    SELECT r.key, c.number, c.id, c.pack, p.id, c.start, c.checksum, c.layout
    FROM json_each($1) AS r CROSS JOIN chunks AS c CROSS JOIN packs AS p
    WHERE c.number BETWEEN r.value ->> 0 AND r.value ->> 1 AND p.number = c.pack
    ORDER BY r.key, c.number";

// Repeating a commit whose answer was lost finds its own pack.
const INSERT_PACK: &str = "
    INSERT INTO packs (id, size, created_at, used_at) VALUES ($1, $2, $3, $3)
    ON CONFLICT (id) DO UPDATE SET used_at = excluded.used_at
    RETURNING number";

// A chunk that came first stays, unless nobody may use it: then its row, with its number, moves to this pack.
pub(super) const INSERT_CHUNKS: &str = "
    INSERT INTO chunks (number, id, pack, start, checksum, layout)
    SELECT $1 * 65536 + k.key, unhex(k.value ->> 0), $1, k.value ->> 1, k.value ->> 2, unhex(k.value ->> 3)
    FROM json_each($2) AS k WHERE true
    ON CONFLICT (id) DO UPDATE SET
        pack = excluded.pack, start = excluded.start, checksum = excluded.checksum, layout = excluded.layout,
        damaged_at = NULL
    WHERE chunks.damaged_at IS NOT NULL
        OR chunks.pack IN (SELECT p.number FROM packs AS p WHERE p.condemned_at IS NOT NULL)
    RETURNING number, id";

// A row for each pack that is there, with the numbers of its damaged chunks.
pub(super) const STAMP_PACKS: &str = "
    UPDATE packs SET used_at = CASE WHEN used_at < $1 THEN $1 ELSE used_at END
    WHERE number IN (SELECT value FROM json_each($2)) AND condemned_at IS NULL
    RETURNING (SELECT json_group_array(c.number) FROM chunks AS c
        WHERE c.pack = packs.number AND c.damaged_at IS NOT NULL)";

const MARK_NAR_DAMAGED: &str = "UPDATE nars SET damaged_at = $2 WHERE id = $1 AND damaged_at IS NULL";

pub(super) const MARK_CHUNKS_DAMAGED: &str = "
    UPDATE chunks SET damaged_at = $2
    WHERE number IN (SELECT value FROM json_each($1)) AND damaged_at IS NULL";

const FORGET_LISTING: &str = "DELETE FROM listings WHERE nar = $1";

const UPDATE_ENCODING: &str = "UPDATE nars SET tag = $2, file_size = $3 WHERE id = $1";

/// Stamps a new NAR's packs; fails with [`Error::PackGone`] if one of them, or a chunk that the NAR needs, may no longer be reused.
pub(super) async fn stamp(write: &mut Write<'_>, nar: &NewNar, at: UnixSeconds) -> Result<()> {
    let packs = nar.pack_numbers();
    let rows = write.all(query(STAMP_PACKS).bind(at).bind(number_array(&packs))).await?;
    let mut damaged: Vec<u64> = Vec::new();
    for row in &rows {
        let numbers: String = get(row, 0, "chunks")?;
        damaged.extend(serde_json::from_str::<Vec<u64>>(&numbers).map_err(|error| corrupt("chunks", error))?);
    }
    if rows.len() != packs.len() || nar.needs_any(&damaged) { Err(Error::PackGone) } else { Ok(()) }
}

impl SqliteIndex {
    pub(super) async fn find_chunk_rows(&self, ids: &[ChunkId]) -> Result<Vec<Option<ChunkRow>>> {
        assert!(ids.len() <= KEYS_MAX, "too many chunks in one look-up");
        let mut found = vec![None; ids.len()];
        let perhaps: Vec<usize> =
            (0..ids.len()).filter(|n| self.chunk_filter.may_contain(id_key(ids[*n].as_bytes()))).collect();
        if perhaps.is_empty() {
            return Ok(found);
        }
        let keys = hex_array(perhaps.iter().map(|n| ids[*n].as_bytes().as_slice()));
        let mut read = self.read("find chunks").await?;
        for row in read.all(query(FIND_CHUNKS).bind(keys)).await? {
            found[perhaps[read_position(&row)?]] = Some(read_chunk(&row)?);
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
        let mut read = self.read("load chunks").await?;
        let rows = read.all(query(LOAD_CHUNKS).bind(run_array(runs))).await?;
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
        let mut write = self.write("commit a pack").await?;
        let mut write = write.begin().await?;
        let insert = query(INSERT_PACK)
            .bind(pack.id.as_bytes().as_slice())
            .bind(signed(pack.size))
            .bind(pack.created_at);
        let number: i64 = get(&write.one(insert).await?, 0, "packs")?;
        let inserted = write.all(query(INSERT_CHUNKS).bind(number).bind(chunk_array(pack))).await?;

        let mut rows = own_rows(pack, number, &inserted)?;
        let lost: Vec<usize> = (0..rows.len()).filter(|n| rows[*n].is_none()).collect();
        if !lost.is_empty() {
            let keys = hex_array(lost.iter().map(|n| pack.chunks[*n].id.as_bytes().as_slice()));
            for row in write.all(query(FIND_CHUNKS).bind(keys)).await? {
                rows[lost[read_position(&row)?]] = Some(read_chunk(&row)?);
            }
        }
        for chunk in &pack.chunks {
            self.chunk_filter.insert(id_key(chunk.id.as_bytes()));
        }
        write.commit().await?;
        rows.into_iter().map(|row| row.ok_or_else(|| corrupt("chunks", "a new row is missing"))).collect()
    }

    pub(super) async fn mark_rows_damaged(&self, nar: NarId, chunks: &[u64], at: UnixSeconds) -> Result<()> {
        let statement = query(MARK_NAR_DAMAGED).bind(nar.0).bind(at);
        self.mark_chunks_damaged(statement, chunks, at).await
    }

    pub(super) async fn forget_listing_row(&self, nar: NarId, chunks: &[u64], at: UnixSeconds) -> Result<()> {
        self.mark_chunks_damaged(query(FORGET_LISTING).bind(nar.0), chunks, at).await
    }

    async fn mark_chunks_damaged(&self, first: Statement<'_>, chunks: &[u64], at: UnixSeconds) -> Result<()> {
        let mut write = self.write("mark damage").await?;
        let mut write = write.begin().await?;
        write.execute(first).await?;
        if !chunks.is_empty() {
            let numbers: Vec<i64> = chunks.iter().map(|number| signed(*number)).collect();
            write.execute(query(MARK_CHUNKS_DAMAGED).bind(number_array(&numbers)).bind(at)).await?;
        }
        write.commit().await
    }

    pub(super) async fn update_encoding_row(
        &self,
        nar: NarId,
        tag: &[u8],
        file_size: u64,
        at: UnixSeconds,
    ) -> Result<()> {
        let mut write = self.write("correct a NAR's encoding").await?;
        let mut write = write.begin().await?;
        let update = query(UPDATE_ENCODING).bind(nar.0).bind(tag).bind(signed(file_size));
        if write.execute(update).await? == 0 {
            return Err(Error::NarGone);
        }
        write.execute(outbox::insert_for_nar(nar, at)).await?;
        write.commit().await
    }
}

/// The rows that now lie in this pack, by place; the others are `None`.
fn own_rows(pack: &NewPack, number: i64, inserted: &[SqliteRow]) -> Result<Vec<Option<ChunkRow>>> {
    let mut numbers: HashMap<&[u8], u64> = HashMap::with_capacity(inserted.len());
    for row in inserted {
        numbers.insert(get(row, 1, "chunks")?, crate::columns::unsigned("chunks", get(row, 0, "chunks")?)?);
    }
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
    Ok(pack.chunks.iter().map(row).collect())
}

fn number_array(numbers: &[i64]) -> String {
    serde_json::to_string(numbers).expect("numbers are JSON")
}

/// `[[first, last], …]`
fn run_array(runs: &[ChunkRun]) -> String {
    let bounds: Vec<(u64, u64)> = runs
        .iter()
        .filter(|run| run.count > 0)
        .map(|run| (run.first, run.first + u64::from(run.count) - 1))
        .collect();
    serde_json::to_string(&bounds).expect("numbers are JSON")
}

/// `[["id", start, checksum, "layout"], …]`
fn chunk_array(pack: &NewPack) -> String {
    let mut json = String::with_capacity(2 + pack.chunks.len() * 140);
    json.push('[');
    for (n, chunk) in pack.chunks.iter().enumerate() {
        let comma = if n == 0 { "" } else { "," };
        let (id, layout) = (hex::encode(chunk.id.as_bytes()), hex::encode(chunk.layout.encode()));
        let (start, checksum) = (signed(chunk.offset), chunk.checksum.cast_signed());
        write!(json, r#"{comma}["{id}",{start},{checksum},"{layout}"]"#).expect("a string takes any text");
    }
    json.push(']');
    json
}
