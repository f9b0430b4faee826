//! The job that counts everything anew, beside pushes: for what an older Dormer stored, and so that
//! counters which somebody changed by hand are right again.
//!
//! Algorithm
//! - Every object, NAR and pack says in which *generation* it was counted (`counted`), and the
//!   counters of a generation are the sum over its rows. Triggers keep it so.
//! - The job begins a new generation. Rows that are written from then on belong to it. The job
//!   moves all others to it, page by page; a trigger takes each row out of its old counters and
//!   adds it to the new ones. So the sum over all generations is right at every moment, whatever
//!   others do.
//! - In the end no row is left in an older generation. What its counters still say is wrong, and
//!   goes.
//!
//! On PostgreSQL every transaction that looks the generation up holds a shared lock until it ends,
//! and the first step takes that lock alone. So it waits for these transactions, and no row of the
//! old generation appears behind the job's cursor.
//!
//! The cursor is a byte for the table, and the last row.

use dormer_format::{ChunkLayout, ChunkRun};

use super::contract::{JobLease, JobStep};
use super::work::{advance_job, finish_job, hold_job};
use crate::Result;
use crate::columns::{array, corrupt, recipe, signed};
use crate::contract::UnixSeconds;
use crate::publish::records::{Records, records};
use crate::rows::read_chunk;
use crate::sql::Argument::{Number, Table, Text};
use crate::sql::{Column, Sql, Transaction, both};
use crate::topics::chunks::{LAYOUTS_OF_PACK, LOAD_CHUNKS};
use crate::topics::counters::{fold, generation};

/// Rows of one step: each of them is written.
const PAGE_ROWS: u32 = 512;

/// Packs of one step. Commits that use them wait for the step.
const PAGE_PACKS: u32 = 64;

/// Chunks that one step looks at, where an older Dormer did not write down the sizes.
const PAGE_CHUNKS: u64 = 16_384;

// The lock that `counter_generation()` takes shared.
const WAIT_FOR_WRITERS: Sql =
    Sql { sqlite: Sql::NOTHING, postgres: "SELECT pg_advisory_xact_lock(1146049095, 0)::text" };
const BEGIN: Sql = both!("UPDATE counter_state SET generation = generation + 1");
pub(crate) const LAST_OBJECT: Sql = both!(
    "SELECT CAST(coalesce(max(p.id), 0) AS BIGINT) FROM
         (SELECT o.id FROM objects AS o WHERE o.id > $1 ORDER BY o.id LIMIT $2) AS p"
);
// On PostgreSQL locked in the order of their hashes, as uses and expiry lock them.
pub(crate) const MOVE_OBJECTS: Sql = Sql {
    sqlite: concat!("UPDATE objects SET counted = ", generation!(), " WHERE id > $1 AND id <= $2"),
    postgres: concat!(
        "WITH held AS MATERIALIZED (
            SELECT o.id FROM objects AS o WHERE o.id > $1 AND o.id <= $2 ORDER BY o.hash FOR NO KEY UPDATE)
        UPDATE objects SET counted = ",
        generation!(),
        " FROM held WHERE objects.id = held.id"
    ),
};
pub(crate) const NARS: Sql = Sql {
    sqlite: "SELECT n.id, n.holed_bytes, n.recipe FROM nars AS n WHERE n.id > $1 ORDER BY n.id LIMIT $2",
    postgres: "
        SELECT n.id, n.holed_bytes, n.recipe FROM nars AS n WHERE n.id > $1 ORDER BY n.id LIMIT $2
        FOR NO KEY UPDATE",
};
const MOVE_NARS: Sql = records!(
    concat!("UPDATE nars SET counted = ", generation!(), ", holed_bytes = k.holed FROM"),
    1 { id: number 0, holed: number 1 }, "AS k WHERE nars.id = k.id"
);
pub(crate) const PACKS: Sql = Sql {
    sqlite: "SELECT p.number, p.raw_bytes, p.holed_bytes FROM packs AS p WHERE p.number > $1 ORDER BY p.number LIMIT $2",
    postgres: "
        SELECT p.number, p.raw_bytes, p.holed_bytes FROM packs AS p WHERE p.number > $1
        ORDER BY p.number LIMIT $2 FOR NO KEY UPDATE",
};
const MOVE_PACKS: Sql = records!(
    concat!("UPDATE packs SET counted = ", generation!(), ", raw_bytes = k.raw, holed_bytes = k.holed FROM"),
    1 { number: number 0, raw: number 1, holed: number 2 }, "AS k WHERE packs.number = k.number"
);
const DROP_COUNTERS: Sql = both!(concat!("DELETE FROM counters WHERE generation < ", generation!()));
const DROP_CHANGES: Sql = Sql {
    sqlite: Sql::NOTHING,
    postgres: concat!("DELETE FROM counter_changes WHERE generation < ", generation!()),
};
const END: Sql = both!("UPDATE counter_state SET counted_at = $1");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Begin = 0,
    Objects = 1,
    Nars = 2,
    Packs = 3,
}

const PHASES: [Phase; 4] = [Phase::Begin, Phase::Objects, Phase::Nars, Phase::Packs];

fn decode(cursor: Option<&[u8]>) -> Result<(Phase, i64)> {
    let Some(cursor) = cursor else { return Ok((Phase::Begin, 0)) };
    let cursor: [u8; 9] = array("jobs", cursor)?;
    let [phase, after @ ..] = cursor;
    let phase = PHASES.get(usize::from(phase)).ok_or_else(|| corrupt("jobs", "a cursor past the end"))?;
    Ok((*phase, i64::from_le_bytes(after)))
}

fn encode(phase: Phase, after: i64) -> Vec<u8> {
    [&[phase as u8][..], &after.to_le_bytes()].concat()
}

/// Runs one step.
pub(crate) async fn recount_step(
    tx: &mut Transaction,
    lease: &JobLease,
    limit: u32,
    at: UnixSeconds,
    ends_at: UnixSeconds,
) -> Result<JobStep> {
    let progress = hold_job(tx, lease).await?;
    let (phase, after) = decode(progress.cursor.as_deref())?;
    let limit = limit.clamp(1, PAGE_ROWS);
    let moved = match phase {
        Phase::Begin => {
            tx.rows(WAIT_FOR_WRITERS, &[]).await?;
            tx.run(BEGIN, &[]).await?;
            None
        }
        Phase::Objects => move_objects(tx, after, limit).await?,
        Phase::Nars => move_nars(tx, after, limit).await?,
        Phase::Packs => move_packs(tx, after, limit.min(PAGE_PACKS)).await?,
    };
    fold(tx).await?;
    let (next, rows) = match (moved, phase) {
        (Some((last, rows)), phase) => (Some((phase, last)), rows),
        (None, Phase::Begin) => (Some((Phase::Objects, 0)), 0),
        (None, Phase::Objects) => (Some((Phase::Nars, 0)), 0),
        (None, Phase::Nars) => (Some((Phase::Packs, 0)), 0),
        (None, Phase::Packs) => (None, 0),
    };
    if let Some((phase, last)) = next {
        advance_job(tx, lease, &encode(phase, last), rows, at, ends_at).await?;
    } else {
        tx.run(DROP_COUNTERS, &[]).await?;
        tx.run(DROP_CHANGES, &[]).await?;
        tx.run(END, &[Number(at)]).await?;
        finish_job(tx, lease).await?;
    }
    Ok(JobStep { rows, is_last: next.is_none() })
}

/// The last row of a page and how many rows it has; `None` at the end.
type Moved = Option<(i64, u64)>;

async fn move_objects(tx: &mut Transaction, after: i64, limit: u32) -> Result<Moved> {
    let last: i64 =
        tx.one(LAST_OBJECT, &[Number(after), Number(limit.into())]).await?.column(0, "objects")?;
    if last == 0 {
        return Ok(None);
    }
    let rows = tx.run(MOVE_OBJECTS, &[Number(after), Number(last)]).await?;
    Ok(Some((last, rows)))
}

async fn move_nars(tx: &mut Transaction, after: i64, limit: u32) -> Result<Moved> {
    let page = tx.rows(NARS, &[Number(after), Number(limit.into())]).await?;
    let (mut moved, mut chunks) = (Records::default(), 0);
    let (mut last, mut rows) = (None, 0);
    for row in &page {
        let id: i64 = row.column(0, "nars")?;
        let holed = if let Some(holed) = row.column::<Option<i64>>(1, "nars")? {
            holed
        } else {
            let recipe = recipe("nars", row.column(2, "nars")?)?;
            chunks += recipe.chunk_count();
            holed_bytes(tx, &recipe.runs).await?
        };
        moved.row().number(id).number(holed);
        (last, rows) = (Some(id), rows + 1);
        if chunks >= PAGE_CHUNKS {
            break;
        }
    }
    let Some(last) = last else { return Ok(None) };
    tx.run(MOVE_NARS, &[Text(&moved.finish())]).await?;
    Ok(Some((last, rows)))
}

/// Bytes of a NAR in chunks with holes.
async fn holed_bytes(tx: &mut Transaction, runs: &[ChunkRun]) -> Result<i64> {
    let mut holed = 0;
    for run in runs {
        let mut first = run.first;
        let end = run.first + u64::from(run.count);
        while first < end {
            let last = end.min(first + PAGE_CHUNKS) - 1;
            let bounds = [Column::Numbers(vec![signed(first)]), Column::Numbers(vec![signed(last)])];
            for row in tx.rows(LOAD_CHUNKS, &[Table(&bounds)]).await? {
                holed += read_chunk(&row)?.layout.holed_bytes();
            }
            first = last + 1;
        }
    }
    Ok(signed(holed))
}

async fn move_packs(tx: &mut Transaction, after: i64, limit: u32) -> Result<Moved> {
    let page = tx.rows(PACKS, &[Number(after), Number(limit.into())]).await?;
    let (mut moved, mut chunks) = (Records::default(), 0);
    let (mut last, mut rows) = (None, 0);
    for row in &page {
        let number: i64 = row.column(0, "packs")?;
        let known: (Option<i64>, Option<i64>) = (row.column(1, "packs")?, row.column(2, "packs")?);
        let (raw, holed) = if let (Some(raw), Some(holed)) = known {
            (raw, holed)
        } else {
            let (mut raw, mut holed) = (0, 0);
            for row in tx.rows(LAYOUTS_OF_PACK, &[Number(number)]).await? {
                let layout = ChunkLayout::decode(row.column(0, "chunks")?);
                let layout = layout.map_err(|error| corrupt("chunks", error))?;
                raw += u64::from(layout.raw_len);
                holed += layout.holed_bytes();
                chunks += 1;
            }
            (signed(raw), signed(holed))
        };
        moved.row().number(number).number(raw).number(holed);
        (last, rows) = (Some(number), rows + 1);
        if chunks >= PAGE_CHUNKS {
            break;
        }
    }
    let Some(last) = last else { return Ok(None) };
    tx.run(MOVE_PACKS, &[Text(&moved.finish())]).await?;
    Ok(Some((last, rows)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back() {
        for phase in PHASES {
            assert_eq!(decode(Some(&encode(phase, 7))).unwrap(), (phase, 7));
        }
        assert_eq!(decode(None).unwrap(), (Phase::Begin, 0));
        assert!(decode(Some(&[])).is_err());
        assert!(decode(Some(&[4; 9])).is_err());
    }
}
