//! The job that looks which NARs need a damaged chunk.
//!
//! Nothing leads from a chunk to the NARs that need it: a row for each would be the largest table
//! of all, written by every push and read almost never. Damage is rare, so the job reads all
//! recipes instead, as the collector does, and adds a row of `damaged_nars` for each NAR and
//! damaged chunk.
//!
//! Algorithm
//! - A pass begins with the chunks that no pass has looked for: at most [`PASS_CHUNKS_MAX`]. Its
//!   first step locks their packs, so it waits for every commit that may have looked at these
//!   chunks before they were marked. Later commits see the mark. So the NARs that need the chunks
//!   are all there before the pass reads the first recipe.
//! - Chunks that are marked meanwhile belong to the next pass.
//! - When no chunk is left, the job looks through `damaged_nars` for chunks that were healed. It
//!   writes an outbox row for each object whose NAR is sound again, and for each whose NAR has a
//!   new tag. A NAR with many objects takes several steps, and its rows of damage stay meanwhile.
//! - Then it forgets the chunks that are sound, in pages too.
//!
//! Invariants
//! - A row of `damaged_nars` is added under a lock on its NAR, for the recipe that the NAR has
//!   then: a push that heals the NAR forgets the rows under the same lock.
//! - A crash leaves the cursor where it was. Each step may be repeated without harm.

use std::collections::{BTreeMap, BTreeSet};

use dormer_format::ChunkRun;

use super::contract::{JobLease, JobStep};
use super::work::{advance_job, finish_job, hold_job};
use crate::Result;
use crate::changes::Change;
use crate::collect::marks::page_end;
use crate::columns::{array, corrupt, recipe, unsigned};
use crate::contract::{NarId, UnixSeconds};
use crate::publish::records::{Records, records};
use crate::rows::Row;
use crate::sql::Argument::{Number, Numbers, Text};
use crate::sql::{Sql, Transaction, both};
use crate::topics::{damage, outbox};

/// Chunks that one pass looks for. Each step reads their numbers.
const PASS_CHUNKS_MAX: i64 = 16_384;

/// NARs in one step, or fewer if their recipes are large: usually a page has some 100 KiB of them.
const PAGE_NARS: u32 = 1_024;

/// Rows of damage in one step: each NAR among them may take a statement.
const PAGE_HEALED: u32 = 256;

/// Locks the packs of the chunks that no pass has looked for.
pub(crate) const WAIT_FOR_COMMITS: Sql = Sql {
    sqlite: Sql::NOTHING,
    postgres: "
        SELECT p.number FROM packs AS p WHERE p.number = ANY (ARRAY(
            SELECT c.pack FROM (SELECT chunk FROM damaged_chunks WHERE walked = 0
                ORDER BY chunk LIMIT $1) AS d
            CROSS JOIN LATERAL (SELECT c.pack FROM chunks AS c WHERE c.number = d.chunk OFFSET 0) AS c))
        ORDER BY p.number FOR UPDATE",
};
const BEGIN_PASS: Sql = both!(
    "UPDATE damaged_chunks SET walked = 1
     WHERE chunk IN (SELECT chunk FROM damaged_chunks WHERE walked = 0 ORDER BY chunk LIMIT $1)"
);
const END_PASS: Sql = both!("UPDATE damaged_chunks SET walked = 2 WHERE walked = 1");
const LEFT: Sql = both!("SELECT chunk FROM damaged_chunks WHERE walked = 0 LIMIT 1");
const PASS_CHUNKS: Sql = both!("SELECT chunk FROM damaged_chunks WHERE walked = 1");
pub(crate) const PAGE: Sql = both!(
    "SELECT n.id, n.recipe, l.body FROM nars AS n
     LEFT JOIN listings AS l ON l.nar = n.id AND l.size IS NOT NULL
     WHERE n.id > $1 AND n.id <= $2 ORDER BY n.id"
);
/// The same of some NARs, which stay as they are until the transaction ends.
const HOLD: Sql = Sql {
    sqlite: "
        SELECT n.id, n.recipe, l.body FROM json_each($1) AS k CROSS JOIN nars AS n
        LEFT JOIN listings AS l ON l.nar = n.id AND l.size IS NOT NULL
        WHERE n.id = k.value",
    postgres: "
        SELECT n.id, n.recipe, l.body FROM nars AS n
        LEFT JOIN listings AS l ON l.nar = n.id AND l.size IS NOT NULL
        WHERE n.id = ANY ($1) ORDER BY n.id FOR SHARE OF n",
};
/// A page of the rows of damage; the last column says whether the chunk is damaged still.
const PAGE_DAMAGE: Sql = both!(
    "SELECT d.nar, d.chunk, CAST(CASE WHEN c.damaged_at IS NULL THEN 0 ELSE 1 END AS BIGINT)
     FROM damaged_nars AS d LEFT JOIN chunks AS c ON c.number = d.chunk
     WHERE (d.nar, d.chunk) > ($1, $2) ORDER BY d.nar, d.chunk LIMIT $3"
);
// Looks again: a chunk may have been marked since the page was read.
const FORGET_HEALED: Sql = records!(
    "DELETE FROM damaged_nars WHERE (nar, chunk) IN (SELECT k.nar, k.chunk FROM",
    1 { nar: number 0, chunk: number 1 }, "AS k)
     AND NOT EXISTS (SELECT 1 FROM chunks AS c WHERE c.number = damaged_nars.chunk AND c.damaged_at IS NOT NULL)"
);
/// The end of a page of damaged chunks.
const CHUNKS_END: Sql = both!(
    "SELECT max(d.chunk) FROM (SELECT chunk FROM damaged_chunks WHERE chunk > $1 ORDER BY chunk LIMIT $2) AS d"
);
const FORGET_CHUNKS: Sql = both!(
    "DELETE FROM damaged_chunks WHERE walked = 2 AND chunk > $1 AND chunk <= $2
     AND NOT EXISTS (SELECT 1 FROM chunks AS c WHERE c.number = damaged_chunks.chunk AND c.damaged_at IS NOT NULL)"
);

/// A NAR whose objects followers are to be told of, since the job passed it.
const TOLD_LEFT: Sql = both!("SELECT nar FROM damaged_nars WHERE chunk = $1 LIMIT 1");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cursor {
    /// A pass begins, if there are chunks for one.
    Begin,
    /// In a pass, after this NAR.
    Walk(i64),
    /// No chunk is left to look for; after this row of damage.
    Forget(i64, i64),
    /// In the objects of this NAR, after this cache and object.
    Tell(i64, i64, i64),
    /// No row of damage is left to look at; after this damaged chunk.
    Chunks(i64),
}

impl Cursor {
    fn encode(self) -> Vec<u8> {
        let (phase, numbers): (u8, &[i64]) = match &self {
            Self::Begin => (0, &[0, 0]),
            Self::Walk(nar) => (1, &[*nar, 0]),
            Self::Forget(nar, chunk) => (2, &[*nar, *chunk]),
            Self::Tell(nar, cache, object) => (3, &[*nar, *cache, *object]),
            Self::Chunks(chunk) => (4, &[*chunk]),
        };
        let numbers = numbers.iter().flat_map(|number| number.to_le_bytes());
        std::iter::once(phase).chain(numbers).collect()
    }

    fn decode(bytes: Option<&[u8]>) -> Result<Self> {
        let Some(bytes) = bytes else { return Ok(Self::Begin) };
        let bad = || corrupt("jobs", "a cursor past the end");
        let (phase, rest) = bytes.split_first().ok_or_else(bad)?;
        let numbers: Vec<i64> = rest
            .chunks(8)
            .map(|number| Ok(i64::from_le_bytes(array("jobs", number)?)))
            .collect::<Result<_>>()?;
        match (phase, &numbers[..]) {
            (0, _) => Ok(Self::Begin),
            (1, [nar, _]) => Ok(Self::Walk(*nar)),
            (2, [nar, chunk]) => Ok(Self::Forget(*nar, *chunk)),
            (3, [nar, cache, object]) => Ok(Self::Tell(*nar, *cache, *object)),
            (4, [chunk]) => Ok(Self::Chunks(*chunk)),
            _ => Err(bad()),
        }
    }
}

/// Runs one step.
pub(crate) async fn spread_damage_step(
    tx: &mut Transaction,
    lease: &JobLease,
    limit: u32,
    at: UnixSeconds,
    ends_at: UnixSeconds,
) -> Result<JobStep> {
    let progress = hold_job(tx, lease).await?;
    let limit = limit.max(1);
    let (next, rows) = match Cursor::decode(progress.cursor.as_deref())? {
        Cursor::Begin => (Some(begin_pass(tx).await?), 0),
        Cursor::Walk(after) => walk(tx, after, limit.min(PAGE_NARS)).await?,
        Cursor::Forget(nar, chunk) => forget_healed(tx, nar, chunk, limit.min(PAGE_HEALED), at).await?,
        Cursor::Tell(nar, cache, object) => {
            tell(tx, nar, (cache, object), limit.min(outbox::NAR_PAGE), at).await?
        }
        Cursor::Chunks(after) => forget_chunks(tx, after, limit).await?,
    };
    match next {
        Some(cursor) => advance_job(tx, lease, &cursor.encode(), rows, at, ends_at).await?,
        None => finish_job(tx, lease).await?,
    }
    Ok(JobStep { rows, is_last: next.is_none() })
}

async fn begin_pass(tx: &mut Transaction) -> Result<Cursor> {
    tx.rows(WAIT_FOR_COMMITS, &[Number(PASS_CHUNKS_MAX)]).await?;
    let chunks = tx.run(BEGIN_PASS, &[Number(PASS_CHUNKS_MAX)]).await?;
    Ok(if chunks == 0 { Cursor::Forget(0, 0) } else { Cursor::Walk(0) })
}

/// A NAR with what it needs of the damaged chunks.
struct Needy {
    nar: NarId,
    chunks: Vec<u64>,
    listing: bool,
}

async fn walk(tx: &mut Transaction, after: i64, limit: u32) -> Result<(Option<Cursor>, u64)> {
    let damaged = tx.rows(PASS_CHUNKS, &[]).await?;
    let damaged = damaged.iter().map(|row| unsigned("damaged_chunks", row.column(0, "damaged_chunks")?));
    let damaged: BTreeSet<u64> = damaged.collect::<Result<_>>()?;
    let Some(last) = page_end(tx, after, limit).await? else {
        tx.run(END_PASS, &[]).await?;
        return Ok((Some(Cursor::Begin), 0));
    };
    let page = tx.rows(PAGE, &[Number(after), Number(last)]).await?;
    let needy = needy(&page, &damaged)?;
    let rows = needy.len() as u64;
    if !needy.is_empty() {
        let ids: Vec<i64> = needy.iter().map(|needy| needy.nar.0).collect();
        let held = tx.rows(HOLD, &[Numbers(&ids)]).await?;
        let mut lost = Vec::new();
        for needy in self::needy(&held, &damaged)? {
            if !needy.chunks.is_empty() {
                damage::note_nar(tx, needy.nar, &needy.chunks).await?;
            }
            if needy.listing {
                lost.push(needy.nar);
            }
        }
        damage::forget_listings(tx, &lost).await?;
        tx.announce(Change::Everything).await?;
    }
    Ok((Some(Cursor::Walk(last)), rows))
}

/// The NARs of a page that need a damaged chunk. Columns: id, recipe, recipe of its listing.
fn needy(page: &[Row], damaged: &BTreeSet<u64>) -> Result<Vec<Needy>> {
    let in_runs = |runs: Vec<ChunkRun>| -> Vec<u64> {
        let mut found: Vec<u64> = runs
            .iter()
            .flat_map(|run| damaged.range(run.first..run.first + u64::from(run.count)))
            .copied()
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    let mut all = Vec::new();
    for row in page {
        let chunks = in_runs(recipe("nars", row.column(1, "nars")?)?.runs);
        let listing = match row.column::<Option<&[u8]>>(2, "listings")? {
            Some(body) => !in_runs(recipe("listings", body)?.runs).is_empty(),
            None => false,
        };
        if listing || !chunks.is_empty() {
            all.push(Needy { nar: NarId(row.column(0, "nars")?), chunks, listing });
        }
    }
    Ok(all)
}

async fn forget_healed(
    tx: &mut Transaction,
    nar: i64,
    chunk: i64,
    limit: u32,
    at: UnixSeconds,
) -> Result<(Option<Cursor>, u64)> {
    let table = "damaged_nars";
    let page = tx.rows(PAGE_DAMAGE, &[Number(nar), Number(chunk), Number(limit.into())]).await?;
    let Some(last) = page.last() else { return Ok((Some(Cursor::Chunks(i64::MIN)), 0)) };
    let mut next = Cursor::Forget(last.column(0, table)?, last.column(1, table)?);
    let mut healed: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for row in &page {
        if row.column::<i64>(2, table)? == 0 {
            healed.entry(row.column(0, table)?).or_default().push(row.column(1, table)?);
        }
    }
    if healed.is_empty() {
        return Ok((Some(next), 0));
    }
    // One of the NARs may need another damaged chunk. A row too many harms nobody.
    let (mut told, mut room) = (Records::default(), outbox::NAR_PAGE.min(limit));
    for (nar, chunks) in healed {
        // The cursor stands for the rows of a NAR that is told of in pages. A row that comes
        // meanwhile begins anew with the first page.
        for chunk in chunks {
            told.row().number(nar).number(chunk);
        }
        let noted = outbox::note_page(tx, NarId(nar), (0, 0), room, at).await?;
        if let Some((cache, object)) = noted.next {
            next = Cursor::Tell(nar, cache, object);
            break;
        }
        room -= noted.objects;
    }
    let forgotten = tx.run(FORGET_HEALED, &[Text(&told.finish())]).await?;
    Ok((Some(next), forgotten))
}

/// Tells followers of a page of the objects with a NAR. After the last page, the job looks for rows
/// of the NAR that came meanwhile.
async fn tell(
    tx: &mut Transaction,
    nar: i64,
    after: (i64, i64),
    limit: u32,
    at: UnixSeconds,
) -> Result<(Option<Cursor>, u64)> {
    let noted = outbox::note_page(tx, NarId(nar), after, limit, at).await?;
    Ok(match noted.next {
        Some((cache, object)) => (Some(Cursor::Tell(nar, cache, object)), 0),
        None => (Some(Cursor::Forget(nar, i64::MIN)), 0),
    })
}

async fn forget_chunks(tx: &mut Transaction, after: i64, limit: u32) -> Result<(Option<Cursor>, u64)> {
    let end = tx.one(CHUNKS_END, &[Number(after), Number(limit.into())]).await?;
    if let Some(end) = end.column::<Option<i64>>(0, "damaged_chunks")? {
        let forgotten = tx.run(FORGET_CHUNKS, &[Number(after), Number(end)]).await?;
        return Ok((Some(Cursor::Chunks(end)), forgotten));
    }
    // What was marked or noted meanwhile opened no job of its own.
    let next = if !tx.rows(LEFT, &[]).await?.is_empty() {
        Some(Cursor::Begin)
    } else if !tx.rows(TOLD_LEFT, &[Number(damage::TELL)]).await?.is_empty() {
        Some(Cursor::Forget(0, 0))
    } else {
        None
    };
    Ok((next, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back() {
        let later = [Cursor::Tell(1, 2, i64::MAX), Cursor::Chunks(i64::MIN)];
        for cursor in [Cursor::Begin, Cursor::Walk(7), Cursor::Forget(8, 9)].into_iter().chain(later) {
            assert_eq!(Cursor::decode(Some(&cursor.encode())).unwrap(), cursor);
        }
        assert_eq!(Cursor::decode(None).unwrap(), Cursor::Begin);
        assert!(Cursor::decode(Some(&[])).is_err());
        assert!(Cursor::decode(Some(&[3; 17])).is_err());
        assert!(Cursor::decode(Some(&[3; 20])).is_err());
    }
}
