//! The collector's statements.
//!
//! Why a removal cannot race a commit:
//! - *A NAR* goes only if its row is locked first and nothing names it when the next statement
//!   looks. A commit that names it holds its row (PostgreSQL: the foreign key's lock), and such a
//!   row is skipped. A commit that comes later finds no row, or fails on the foreign key and is
//!   repeated.
//! - *A pack* is condemned under a lock that waits for every commit that stamps it or holds it
//!   unstamped ([`STAMP_PACKS`](crate::topics::chunks::STAMP_PACKS)). Later commits refuse it.
//! - *A compaction* moves a chunk's row only if it is sound and lies where its bytes were read. A
//!   push that healed or moved the row meanwhile keeps it. What a commit that knows the old place
//!   stamps is argued in docs/STORAGE.md.
//! - *A chunk row* of a condemned pack may move to a new pack, with its number. The removal of a
//!   pack then finds the row elsewhere, and leaves it. Rows are locked in the order of their ids,
//!   like those of a new pack.

mod contract;

pub use contract::{
    ChunkMove, CollectIndex, CompactedPack, DoomedPack, ExaminedObject, ExaminedPage, LastCollection,
    MarkedNar, PackFate, PackRow, PackedChunk, PacksRemoved, Purge, PurgeId, RowlessPack, StampLimits,
};

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use dormer_format::{ChunkRun, PackId};

use crate::Result;
use crate::changes::Change;
use crate::columns::{array, corrupt, recipe, signed, unsigned};
use crate::contract::{CacheId, NarId, ObjectPlace, PackNumber, UnixSeconds};
use crate::jobs::{ExpiryDefaults, JobId, JobKind, JobLease, expire_cache, work};
use crate::rows::{Row, read_chunk, read_pack_id};
use crate::sql::Argument::{Bytes, Flag, List, Number, Numbers, Table, Text};
use crate::sql::{Column, Sql, Transaction, both};
use crate::sql_index::{SqlIndex, Write};
use crate::topics::chunks::{PackRowValues, insert_pack};
use crate::topics::damage;

/// The deadline of a doomed pack whose object is never deleted.
const NEVER: UnixSeconds = UnixSeconds::MAX;

/// What `doomed_packs.had_row` says of an object that a listing found, or to which no chunk moved.
const HAD_NO_ROW: i64 = 0;
/// Of a pack that had chunk rows and lost them at the time in `not_before`.
const LOST_ROW: i64 = 1;
/// Of a pack that a compaction noted before it stored it.
const NEW_PACK: i64 = 2;

// Locks the row: of racing callers one opens the job.
// A time in the future is that of a clock that was wrong.
const TAKE_TURN: Sql =
    both!("UPDATE last_collection SET opened_at = $2 WHERE opened_at <= $1 OR opened_at > $2");
const LAST: Sql = both!("SELECT opened_at, ended_at, listed_at, report FROM last_collection");
const LIST_NEXT_TIME: Sql = both!("UPDATE last_collection SET listed_at = 0 WHERE listed_at IS NOT NULL");
const FINISH: Sql = both!(
    "UPDATE last_collection SET ended_at = $1, report = $2,
         listed_at = CASE WHEN $3 THEN $1 ELSE listed_at END"
);

// `+ 0` is the expression of the index. PostgreSQL looks at the outer condition again when it has
// waited for a transaction that put the end off.
pub(crate) const EXPIRE_GRACES: Sql = both!(
    "DELETE FROM graces WHERE ends_at <= $1 AND (cache, hash, nar) IN
         (SELECT cache, hash, nar FROM graces WHERE ends_at + 0 <= $1 ORDER BY ends_at + 0 LIMIT $2)"
);
// Noted for the journal too; PostgreSQL does it with the deletion.
const NOTE_EXPIRED_ALIASES: Sql = Sql {
    sqlite: "
        INSERT INTO journal_notes (cache, kind, name, changes)
        SELECT cache, 2, file_name, 1 FROM aliases WHERE used_at + 0 <= $1 ORDER BY used_at + 0 LIMIT $2
        ON CONFLICT (cache, kind, name) DO UPDATE SET changes = journal_notes.changes + 1",
    postgres: Sql::NOTHING,
};
pub(crate) const EXPIRE_ALIASES: Sql = Sql {
    sqlite: "
        DELETE FROM aliases WHERE used_at <= $1 AND (cache, file_name) IN
            (SELECT cache, file_name FROM aliases WHERE used_at + 0 <= $1 ORDER BY used_at + 0 LIMIT $2)",
    postgres: "
        WITH gone AS (
            DELETE FROM aliases WHERE used_at <= $1 AND (cache, file_name) IN
                (SELECT cache, file_name FROM aliases WHERE used_at + 0 <= $1 ORDER BY used_at + 0 LIMIT $2)
            RETURNING cache, file_name)
        INSERT INTO journal_notes (cache, kind, name, changes) SELECT cache, 2, file_name, 1 FROM gone
        ON CONFLICT (cache, kind, name) DO UPDATE SET changes = journal_notes.changes + 1",
};

/// Ended graces and aliases, and old logs, that are counted for a plan.
const ENDED_COUNTED: i64 = 100_000;

/// Counts no further than a limit: millions of graces may end together.
const COUNT_ENDED: Sql = both!(
    "SELECT (SELECT count(*) FROM (SELECT 1 FROM graces WHERE ends_at + 0 <= $1 LIMIT $3) AS g),
         (SELECT count(*) FROM (SELECT 1 FROM aliases WHERE used_at + 0 <= $2 LIMIT $3) AS a)"
);

/// Counts no further than a limit, and reads no bodies.
const COUNT_LOGS: Sql =
    both!("SELECT count(*) FROM (SELECT 1 FROM documents WHERE kind = 1 AND written_at < $1 LIMIT $2) AS d");

/// Bytes of recipes in one page of NARs to mark. A recipe has 1 MiB at most.
const MARK_BYTES_MAX: i64 = 2 << 20;

// A page of NARs to mark is read in ranges of numbers, each table by itself: one look at an index
// for each NAR would cost several times as much as walking through the range, and so would a row
// for each NAR on its way to this process.

/// The last NAR of a page: the one that so many come before, or the last of all.
pub(crate) const MARK_END: Sql = both!(
    "SELECT coalesce((SELECT id FROM nars WHERE id > $1 ORDER BY id LIMIT 1 OFFSET $2),
         (SELECT max(id) FROM nars WHERE id > $1))"
);
/// Bytes of its recipes. Both databases know a length without the bytes. Nearly all listings are in
/// their rows, and have no recipe; `size >= 0` is the condition of the index of the others.
pub(crate) const MARK_BYTES: Sql = both!(
    "SELECT CAST(coalesce((SELECT sum(length(recipe)) FROM nars WHERE id > $1 AND id <= $2), 0)
         + coalesce((SELECT sum(length(body)) FROM listings WHERE size >= 0 AND nar > $1 AND nar <= $2), 0)
         AS BIGINT)"
);
/// The same for each NAR, for a page that is too large.
pub(crate) const MARK_SIZES: Sql = both!(
    "SELECT n.id, CAST(length(n.recipe) + coalesce((SELECT length(l.body) FROM listings AS l
         WHERE l.nar = n.id AND l.size IS NOT NULL), 0) AS BIGINT)
     FROM nars AS n WHERE n.id > $1 ORDER BY n.id LIMIT $2"
);
/// All NARs of a page in one value: [`read_page`] takes it apart.
pub(crate) const MARK_RECIPES: Sql = Sql {
    sqlite: "
        SELECT unhex(group_concat(printf('%016x%016x%08x', id, size, length(recipe)) || hex(recipe), ''))
        FROM nars WHERE id > $1 AND id <= $2",
    postgres: "
        SELECT string_agg(int8send(id) || int8send(size) || int4send(length(recipe)) || recipe, '')
        FROM nars WHERE id > $1 AND id <= $2",
};
pub(crate) const MARK_LISTINGS: Sql =
    both!("SELECT nar, body FROM listings WHERE size >= 0 AND nar > $1 AND nar <= $2 ORDER BY nar");
// The range is said again for PostgreSQL, which does not conclude it from the equation.
pub(crate) const UNNAMED_NARS: Sql = both!(
    "SELECT n.id FROM nars AS n WHERE n.id > $1 AND n.id <= $2
         AND NOT EXISTS (SELECT 1 FROM objects AS o WHERE o.nar = n.id AND o.nar > $1 AND o.nar <= $2)
         AND NOT EXISTS (SELECT 1 FROM graces AS g
                         WHERE g.nar = n.id AND g.nar > $1 AND g.nar <= $2 AND g.ends_at > $3)
         AND NOT EXISTS (SELECT 1 FROM aliases AS a
                         WHERE a.nar = n.id AND a.nar > $1 AND a.nar <= $2 AND a.used_at > $4)"
);

/// The NARs that no commit is naming right now.
const HOLD_NARS: Sql = Sql {
    sqlite: "SELECT value FROM json_each($1)",
    postgres: "SELECT n.id FROM nars AS n WHERE n.id = ANY ($1) ORDER BY n.id FOR UPDATE SKIP LOCKED",
};
pub(crate) const DELETE_NARS: Sql = Sql {
    sqlite: "
        DELETE FROM nars WHERE id IN (SELECT value FROM json_each($1))
            AND NOT EXISTS (SELECT 1 FROM objects AS o WHERE o.nar = nars.id)
            AND NOT EXISTS (SELECT 1 FROM graces AS g WHERE g.nar = nars.id)
            AND NOT EXISTS (SELECT 1 FROM aliases AS a WHERE a.nar = nars.id)
        RETURNING id",
    postgres: "
        DELETE FROM nars WHERE id = ANY ($1) AND NOT EXISTS (
            SELECT 1 FROM objects AS o WHERE o.nar = nars.id
            UNION ALL SELECT 1 FROM graces AS g WHERE g.nar = nars.id
            UNION ALL SELECT 1 FROM aliases AS a WHERE a.nar = nars.id)
        RETURNING id",
};

pub(crate) const MOVED_CHUNKS: Sql = both!(
    "SELECT number, pack FROM chunks WHERE pack <> number / 65536 AND number > $1 ORDER BY number LIMIT $2"
);
const PAGE_PACKS: Sql = both!(
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
const NOTE_RECOMPRESSED: Sql = Sql {
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
const CONDEMN_NOW: Sql = Sql {
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
// Those that were never tried come first, then those that waited longest: no purge stays untried
// because others have to wait.
const OPEN_PURGES: Sql = both!(
    "SELECT id, asked_at, recipe, listing FROM purges WHERE is_asked = 1
     ORDER BY coalesce(tried_at, 0), id LIMIT $1"
);
const PURGE_NOTES: Sql = both!(
    "SELECT id, asked_at, recipe, listing FROM purges WHERE is_asked = 0 AND id > $1 ORDER BY id LIMIT $2"
);
pub(crate) const FIND_PLACES: Sql =
    both!("SELECT number, pack FROM chunks WHERE number > $1 AND number <= $2 ORDER BY number LIMIT $3");
const UNTRIED_PURGE: Sql = both!("SELECT 1 FROM purges WHERE is_asked = 1 AND tried_at IS NULL LIMIT 1");
const CLOSE_PURGES: Sql = Sql {
    sqlite: "DELETE FROM purges WHERE id IN (SELECT value FROM json_each($1))",
    postgres: "DELETE FROM purges WHERE id = ANY ($1)",
};
// One that was asked for meanwhile stays.
const FORGET_NOTES: Sql = Sql {
    sqlite: "DELETE FROM purges WHERE is_asked = 0 AND id IN (SELECT value FROM json_each($1))",
    postgres: "DELETE FROM purges WHERE is_asked = 0 AND id = ANY ($1)",
};
const NOTE_TRIED: Sql = Sql {
    sqlite: "UPDATE purges SET tried_at = $2 WHERE id IN (SELECT value FROM json_each($1))",
    postgres: "UPDATE purges SET tried_at = $2 WHERE id = ANY ($1)",
};
const SPARE_PACKS: Sql = Sql {
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

const PACKS_WITH_ROW: Sql =
    both!("SELECT p.id FROM", list 1, "AS k CROSS JOIN packs AS p WHERE p.id = k.item");
const PACKS_ON_LIST: Sql = both!(
    "SELECT d.id, d.not_before FROM", list 1, "AS k CROSS JOIN doomed_packs AS d WHERE d.id = k.item"
);
const DOOM_STRAYS: Sql = both!(
    "INSERT INTO doomed_packs (id, not_before) SELECT k.item, $2 FROM", list 1,
    "AS k WHERE NOT EXISTS (SELECT 1 FROM packs AS p WHERE p.id = k.item)
     ON CONFLICT (id) DO NOTHING"
);
// A listing may have found the object before the pack got its row.
const DOOM_REMOVED: Sql = both!(
    "INSERT INTO doomed_packs (id, not_before, had_row) SELECT k.item, $2, $3 FROM", list 1,
    "AS k WHERE true ON CONFLICT (id) DO UPDATE SET not_before = excluded.not_before, had_row = excluded.had_row"
);
const DOOMED: Sql = both!(
    "SELECT d.id, d.not_before, d.had_row FROM doomed_packs AS d WHERE (d.not_before, d.id) > ($1, $2)
         AND d.not_before <= $3
         AND NOT EXISTS (SELECT 1 FROM packs AS p WHERE p.id = d.id)
     ORDER BY d.not_before, d.id LIMIT $4"
);
const COPIES: Sql = both!(
    "SELECT d.not_before FROM doomed_packs AS d
     WHERE d.not_before < 9223372036854775807 AND (d.had_row <> 1 OR d.not_before >= $1)
         AND NOT EXISTS (SELECT 1 FROM packs AS p WHERE p.id = d.id) LIMIT 1"
);
const DOOM_NEW_PACK: Sql = both!(
    "INSERT INTO doomed_packs (id, not_before, had_row) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING"
);
const HASTEN_NEW_PACKS: Sql = both!(
    "UPDATE doomed_packs SET not_before = $3 WHERE had_row = $1 AND not_before > $3 AND not_before <= $2"
);
const RELEASE: Sql = both!(
    "UPDATE doomed_packs SET not_before = $2
     WHERE not_before = 9223372036854775807 AND id IN (SELECT k.item FROM", list 1, "AS k)"
);
const FORGET_DOOMED: Sql = both!("DELETE FROM doomed_packs WHERE id IN (SELECT k.item FROM", list 1, "AS k)");

#[async_trait]
impl CollectIndex for SqlIndex {
    async fn open_collection(&self, due_before: UnixSeconds, at: UnixSeconds) -> Result<Option<JobId>> {
        self.write(Write::from("open a collection").unless_done(), async |mut tx| {
            if tx.run(TAKE_TURN, &[Number(due_before), Number(at)]).await? == 0 {
                return Ok(None);
            }
            let job = work::open_job(&mut tx, JobKind::Collect, None, None, at).await?;
            if due_before == UnixSeconds::MAX {
                // Somebody asks for it now, and not for what an earlier try found.
                work::try_now(&mut tx, job).await?;
            }
            Ok(Some(job))
        })
        .await
    }

    async fn last_collection(&self) -> Result<LastCollection> {
        let table = "last_collection";
        self.read("look at the last collection", async |mut tx| {
            let row = tx.one(LAST, &[]).await?;
            Ok(LastCollection {
                opened_at: row.column(0, table)?,
                ended_at: row.column(1, table)?,
                listed_at: row.column(2, table)?,
                report: row.column(3, table)?,
            })
        })
        .await
    }

    async fn list_next_time(&self) -> Result<()> {
        self.write("make a listing due", async |mut tx| tx.run(LIST_NEXT_TIME, &[]).await.map(drop)).await
    }

    async fn advance_collection(
        &self,
        lease: &JobLease,
        rows: u64,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<()> {
        self.write(Write::from("go on with a collection").unless_done(), async |mut tx| {
            work::hold_job(&mut tx, lease).await?;
            work::advance_job(&mut tx, lease, &[], rows, at, ends_at).await
        })
        .await
    }

    async fn finish_collection(
        &self,
        lease: &JobLease,
        report: &str,
        listed: bool,
        at: UnixSeconds,
    ) -> Result<()> {
        self.write(Write::from("end a collection").unless_done(), async |mut tx| {
            work::hold_job(&mut tx, lease).await?;
            tx.run(FINISH, &[Number(at), Text(report), Flag(listed)]).await?;
            work::finish_job(&mut tx, lease).await?;
            // A path was removed with its bytes while this collection ran.
            if tx.optional(UNTRIED_PURGE, &[]).await?.is_some() {
                work::open_job(&mut tx, JobKind::Collect, None, None, at).await?;
            }
            Ok(())
        })
        .await
    }

    async fn expire_graces(&self, limit: u32, at: UnixSeconds) -> Result<u64> {
        self.write("remove graces that are over", async |mut tx| {
            tx.run(EXPIRE_GRACES, &[Number(at), Number(limit.into())]).await
        })
        .await
    }

    async fn expire_aliases(&self, limit: u32, used_until: UnixSeconds) -> Result<u64> {
        self.write("remove old upload aliases", async |mut tx| {
            let page = [Number(used_until), Number(limit.into())];
            tx.run(NOTE_EXPIRED_ALIASES, &page).await?;
            tx.run(EXPIRE_ALIASES, &page).await
        })
        .await
    }

    async fn count_ended(&self, at: UnixSeconds, used_until: UnixSeconds) -> Result<(u64, u64)> {
        self.read("count what is over", async |mut tx| {
            let row = tx.one(COUNT_ENDED, &[Number(at), Number(used_until), Number(ENDED_COUNTED)]).await?;
            Ok((
                unsigned("graces", row.column(0, "graces")?)?,
                unsigned("aliases", row.column(1, "aliases")?)?,
            ))
        })
        .await
    }

    async fn count_logs(&self, written_before: UnixSeconds) -> Result<u64> {
        self.read("count logs", async |mut tx| {
            unsigned(
                "documents",
                tx.one(COUNT_LOGS, &[Number(written_before), Number(ENDED_COUNTED)])
                    .await?
                    .column(0, "documents")?,
            )
        })
        .await
    }

    async fn caches_with_rules(
        &self,
        defaults: &ExpiryDefaults,
        after: CacheId,
        limit: u32,
    ) -> Result<Vec<CacheId>> {
        self.read("find caches with rules", async |mut tx| {
            expire_cache::caches_with_rules(&mut tx, defaults, after, limit).await
        })
        .await
    }

    async fn examine_objects(
        &self,
        cache: CacheId,
        defaults: &ExpiryDefaults,
        after: Option<ObjectPlace>,
        limit: u32,
        at: UnixSeconds,
    ) -> Result<ExaminedPage> {
        self.read("look what may expire", async |mut tx| {
            expire_cache::examine_page(&mut tx, cache, defaults, after, limit, at).await
        })
        .await
    }

    async fn mark_nars(
        &self,
        after: NarId,
        limit: u32,
        now: UnixSeconds,
        aliases_since: UnixSeconds,
    ) -> Result<Vec<MarkedNar>> {
        self.read("read the recipes of NARs", async |mut tx| {
            let mut after = after.0;
            while let Some(last) = page_end(&mut tx, after, limit).await? {
                let range = [Number(after), Number(last)];
                let packed = tx.one(MARK_RECIPES, &range).await?;
                let mut page =
                    packed.column::<Option<&[u8]>>(0, "nars")?.map_or(Ok(Vec::new()), read_page)?;
                for row in tx.rows(MARK_LISTINGS, &range).await? {
                    let nar = NarId(row.column(0, "listings")?);
                    if let Ok(place) = page.binary_search_by_key(&nar, |nar| nar.id) {
                        page[place].runs.extend(recipe("listings", row.column(1, "listings")?)?.runs);
                    }
                }
                // Last: a name that a commit gave meanwhile counts.
                let range = [range[0], range[1], Number(now), Number(aliases_since)];
                for row in tx.rows(UNNAMED_NARS, &range).await? {
                    let nar = NarId(row.column(0, "nars")?);
                    if let Ok(place) = page.binary_search_by_key(&nar, |nar| nar.id) {
                        page[place].is_named = false;
                    }
                }
                if !page.is_empty() {
                    return Ok(page);
                }
                // All of them were removed meanwhile, which is not the end.
                after = last;
            }
            Ok(Vec::new())
        })
        .await
    }

    async fn delete_nars(&self, nars: &[NarId]) -> Result<Vec<NarId>> {
        let ids: Vec<i64> = nars.iter().map(|nar| nar.0).collect();
        self.write("remove NARs without a name", async |mut tx| {
            let held = tx.rows(HOLD_NARS, &[Numbers(&ids)]).await?;
            let held = held.iter().map(|row| row.column(0, "nars")).collect::<Result<Vec<i64>>>()?;
            let deleted = tx.rows(DELETE_NARS, &[Numbers(&held)]).await?;
            deleted.iter().map(|row| row.column(0, "nars").map(NarId)).collect()
        })
        .await
    }

    async fn moved_chunks(&self, after: u64, limit: u32) -> Result<Vec<(u64, PackNumber)>> {
        self.read("read which chunks moved", async |mut tx| {
            let page = [Number(signed(after)), Number(limit.into())];
            let rows = tx.rows(MOVED_CHUNKS, &page).await?;
            let read = |row: &_| {
                let row: &_ = row;
                let number = unsigned("chunks", Row::column(row, 0, "chunks")?)?;
                Ok((number, PackNumber(Row::column(row, 1, "chunks")?)))
            };
            rows.iter().map(read).collect()
        })
        .await
    }

    async fn page_packs(&self, after: PackNumber, limit: u32) -> Result<Vec<PackRow>> {
        self.read("read a page of packs", async |mut tx| {
            let page = [Number(after.0), Number(limit.into())];
            tx.rows(PAGE_PACKS, &page).await?.iter().map(read_pack).collect()
        })
        .await
    }

    async fn count_chunks(&self, packs: &[PackNumber]) -> Result<u64> {
        let packs = numbers(packs);
        self.read("count the chunks of packs", async |mut tx| {
            unsigned("chunks", tx.one(COUNT_CHUNKS, &[Numbers(&packs)]).await?.column(0, "chunks")?)
        })
        .await
    }

    async fn pack_chunks(
        &self,
        pack: PackNumber,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<PackedChunk>> {
        self.read("read the chunks of a pack", async |mut tx| {
            let page = [Number(pack.0), Number(after.map_or(-1, signed)), Number(limit.into())];
            tx.rows(PACK_CHUNKS, &page).await?.iter().map(read_packed).collect()
        })
        .await
    }

    async fn move_chunks(
        &self,
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
        self.write(Write::from("move chunks to a new pack").unless_done(), async |mut tx| {
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
            let number = insert_pack(&mut tx, &row).await?;
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
        })
        .await
    }

    async fn note_recompressed(&self, packs: &[PackNumber], level: u8) -> Result<()> {
        let packs = numbers(packs);
        self.write("note what was recompressed", async |mut tx| {
            tx.run(NOTE_RECOMPRESSED, &[Numbers(&packs), Number(level.into())]).await.map(drop)
        })
        .await
    }

    async fn mark_chunks_damaged(&self, pack: PackNumber, chunks: &[u64], at: UnixSeconds) -> Result<u64> {
        self.write("mark damaged chunks", async |mut tx| {
            damage::mark_chunks_of_pack(&mut tx, pack, chunks, at).await
        })
        .await
    }

    async fn condemn_packs(
        &self,
        packs: &[PackNumber],
        limits: StampLimits,
        at: UnixSeconds,
    ) -> Result<Vec<PackNumber>> {
        let packs = numbers(packs);
        self.write("condemn packs", async |mut tx| {
            let StampLimits { created_before, used_before } = limits;
            let condemned = [Numbers(&packs), Number(at), Number(created_before), Number(used_before)];
            let condemned = tx.rows(CONDEMN_PACKS, &condemned).await?;
            condemned.iter().map(|row| row.column(0, "packs").map(PackNumber)).collect()
        })
        .await
    }

    async fn condemn_now(&self, packs: &[PackNumber], at: UnixSeconds) -> Result<()> {
        let packs = numbers(packs);
        self.write("condemn packs at once", async |mut tx| {
            tx.run(CONDEMN_NOW, &[Numbers(&packs), Number(at)]).await.map(drop)
        })
        .await
    }

    async fn open_purges(&self, limit: u32) -> Result<Vec<Purge>> {
        self.read("look what is to be purged", async |mut tx| {
            tx.rows(OPEN_PURGES, &[Number(limit.into())]).await?.iter().map(read_purge).collect()
        })
        .await
    }

    async fn purge_notes(&self, after: PurgeId, limit: u32) -> Result<Vec<Purge>> {
        self.read("look what may still be purged", async |mut tx| {
            let page = [Number(after.0), Number(limit.into())];
            tx.rows(PURGE_NOTES, &page).await?.iter().map(read_purge).collect()
        })
        .await
    }

    async fn forget_purge_notes(&self, notes: &[PurgeId]) -> Result<()> {
        let notes: Vec<i64> = notes.iter().map(|note| note.0).collect();
        self.write("forget what was removed", async |mut tx| {
            tx.run(FORGET_NOTES, &[Numbers(&notes)]).await.map(drop)
        })
        .await
    }

    async fn find_places(
        &self,
        run: &ChunkRun,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<(u64, PackNumber)>> {
        let end = signed(run.first) + i64::from(run.count);
        let page =
            [Number(after.map_or(signed(run.first) - 1, signed)), Number(end - 1), Number(limit.into())];
        self.read("find where chunks lie", async |mut tx| {
            tx.rows(FIND_PLACES, &page).await?.iter().map(read_place).collect()
        })
        .await
    }

    async fn end_purges(&self, purges: &[PurgeId], is_done: bool, at: UnixSeconds) -> Result<()> {
        let purges: Vec<i64> = purges.iter().map(|purge| purge.0).collect();
        self.write("end purges", async |mut tx| {
            let ended = if is_done {
                tx.run(CLOSE_PURGES, &[Numbers(&purges)]).await
            } else {
                tx.run(NOTE_TRIED, &[Numbers(&purges), Number(at)]).await
            };
            ended.map(drop)
        })
        .await
    }

    async fn spare_packs(&self, packs: &[PackNumber]) -> Result<u64> {
        let packs = numbers(packs);
        self.write("spare condemned packs", async |mut tx| tx.run(SPARE_PACKS, &[Numbers(&packs)]).await)
            .await
    }

    async fn remove_packs(
        &self,
        packs: &[PackNumber],
        condemned_before: UnixSeconds,
        at: UnixSeconds,
    ) -> Result<PacksRemoved> {
        let packs = numbers(packs);
        self.write(Write::from("remove condemned packs").unless_done(), async |mut tx| {
            let mut removed = PacksRemoved::default();
            let mut held = Vec::new();
            for row in tx.rows(HOLD_PACKS, &[Numbers(&packs), Number(condemned_before)]).await? {
                removed.packs.push(read_pack_id(&row)?);
                held.push(row.column::<i64>(1, "packs")?);
                removed.bytes += unsigned("packs", row.column(2, "packs")?)?;
            }
            removed.chunks = tx.run(DELETE_CHUNKS, &[Numbers(&held)]).await?;
            // Damaged chunks may be among them.
            damage::note_healed(&mut tx, at).await?;
            tx.run(DELETE_PACKS, &[Numbers(&held)]).await?;
            tx.run(DOOM_REMOVED, &[List(&keys(&removed.packs)), Number(at), Number(LOST_ROW)]).await?;
            Ok(removed)
        })
        .await
    }

    async fn packs_without_row(&self, packs: &[PackId]) -> Result<Vec<RowlessPack>> {
        assert!(packs.len() <= crate::topics::KEYS_MAX, "too many packs in one look-up");
        let keys = keys(packs);
        self.read("find packs without a row", async |mut tx| {
            let rows = tx.rows(PACKS_WITH_ROW, &[List(&keys)]).await?;
            let known = rows.iter().map(read_pack_id).collect::<Result<HashSet<_>>>()?;
            let mut noted = HashMap::new();
            for row in tx.rows(PACKS_ON_LIST, &[List(&keys)]).await? {
                let not_before: UnixSeconds = row.column(1, "doomed packs")?;
                let fate = if not_before == NEVER { PackFate::Kept } else { PackFate::Doomed };
                noted.insert(read_pack_id(&row)?, fate);
            }
            let without = packs.iter().filter(|pack| !known.contains(pack));
            Ok(without
                .map(|id| RowlessPack { id: *id, fate: noted.get(id).copied().unwrap_or(PackFate::Open) })
                .collect())
        })
        .await
    }

    async fn doom_packs(&self, packs: &[PackId], not_before: Option<UnixSeconds>) -> Result<u64> {
        let keys = keys(packs);
        self.write("note packs without a row", async |mut tx| {
            tx.run(DOOM_STRAYS, &[List(&keys), Number(not_before.unwrap_or(NEVER))]).await
        })
        .await
    }

    async fn release_packs(&self, packs: &[PackId], not_before: UnixSeconds) -> Result<u64> {
        let keys = keys(packs);
        self.write("let packs go that were kept", async |mut tx| {
            tx.run(RELEASE, &[List(&keys), Number(not_before)]).await
        })
        .await
    }

    async fn doomed_packs(
        &self,
        after: Option<DoomedPack>,
        limit: u32,
        at: UnixSeconds,
    ) -> Result<Vec<DoomedPack>> {
        let since = after.map_or(UnixSeconds::MIN, |pack| pack.not_before);
        let after: &[u8] = after.as_ref().map_or(&[], |pack| pack.id.as_bytes());
        let page = [Number(since), Bytes(after), Number(at), Number(limit.into())];
        self.read("look which packs to delete", async |mut tx| {
            tx.rows(DOOMED, &page).await?.iter().map(read_doomed).collect()
        })
        .await
    }

    async fn may_have_copies(&self, since: Option<UnixSeconds>) -> Result<bool> {
        let since = Number(since.unwrap_or(UnixSeconds::MIN));
        self.read("look for objects that are not deleted", async |mut tx| {
            Ok(tx.optional(COPIES, &[since]).await?.is_some())
        })
        .await
    }

    async fn doom_new_pack(&self, pack: PackId, not_before: UnixSeconds) -> Result<()> {
        self.write("note a new pack", async |mut tx| {
            let row = [Bytes(pack.as_bytes()), Number(not_before), Number(NEW_PACK)];
            tx.run(DOOM_NEW_PACK, &row).await.map(drop)
        })
        .await
    }

    async fn hasten_new_packs(&self, deadline_max: UnixSeconds, at: UnixSeconds) -> Result<u64> {
        self.write("let new packs without a row go", async |mut tx| {
            tx.run(HASTEN_NEW_PACKS, &[Number(NEW_PACK), Number(deadline_max), Number(at)]).await
        })
        .await
    }

    async fn forget_doomed(&self, packs: &[PackId]) -> Result<()> {
        let keys = keys(packs);
        self.write("forget deleted packs", async |mut tx| {
            tx.run(FORGET_DOOMED, &[List(&keys)]).await.map(drop)
        })
        .await
    }

    async fn reload_known_keys(&self) -> Result<()> {
        self.database.reload(&self.known).await
    }
}

fn numbers(packs: &[PackNumber]) -> Vec<i64> {
    packs.iter().map(|pack| pack.0).collect()
}

fn keys(packs: &[PackId]) -> Vec<&[u8]> {
    packs.iter().map(|pack| pack.as_bytes().as_slice()).collect()
}

/// The last NAR of the page after one: of at most `limit` NARs, or fewer if their recipes are
/// large. `None` at the end.
pub(crate) async fn page_end(tx: &mut Transaction, after: i64, limit: u32) -> Result<Option<i64>> {
    let end = tx.one(MARK_END, &[Number(after), Number(i64::from(limit) - 1)]).await?;
    let Some(last) = end.column::<Option<i64>>(0, "nars")? else { return Ok(None) };
    let bytes: i64 = tx.one(MARK_BYTES, &[Number(after), Number(last)]).await?.column(0, "nars")?;
    if bytes <= MARK_BYTES_MAX {
        return Ok(Some(last));
    }
    let page = [Number(after), Number(limit.into())];
    let (mut end, mut bytes) = (None, 0);
    for row in tx.rows(MARK_SIZES, &page).await? {
        bytes += row.column::<i64>(1, "nars")?;
        // The first one always fits.
        if bytes > MARK_BYTES_MAX && end.is_some() {
            break;
        }
        end = Some(row.column(0, "nars")?);
    }
    Ok(end)
}

/// The NARs of a page, by number. For each, in any order, the value has the id, the size and the
/// length of the recipe, all big-endian, and then the recipe. All NARs count as named until another
/// statement tells otherwise.
fn read_page(packed: &[u8]) -> Result<Vec<MarkedNar>> {
    let cut = || corrupt("nars", "a page of recipes is cut");
    let mut page = Vec::new();
    let mut rest = packed;
    while !rest.is_empty() {
        let (id, after) = rest.split_first_chunk().ok_or_else(cut)?;
        let (size, after) = after.split_first_chunk().ok_or_else(cut)?;
        let (length, after) = after.split_first_chunk().ok_or_else(cut)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).expect("32 bits fit");
        let (bytes, after) = after.split_at_checked(length).ok_or_else(cut)?;
        page.push(MarkedNar {
            id: NarId(i64::from_be_bytes(*id)),
            size: unsigned("nars", i64::from_be_bytes(*size))?,
            is_named: true,
            runs: recipe("nars", bytes)?.runs,
        });
        rest = after;
    }
    page.sort_unstable_by_key(|nar| nar.id);
    Ok(page)
}

/// Columns: number, time, recipe, recipe of the listing.
fn read_purge(row: &Row) -> Result<Purge> {
    let mut runs = recipe("purges", row.column(2, "purges")?)?.runs;
    if let Some(listing) = row.column::<Option<&[u8]>>(3, "purges")? {
        runs.extend(recipe("purges", listing)?.runs);
    }
    Ok(Purge { id: PurgeId(row.column(0, "purges")?), removed_at: row.column(1, "purges")?, runs })
}

/// Columns: id, time.
fn read_doomed(row: &Row) -> Result<DoomedPack> {
    let table = "doomed_packs";
    // A compaction may have moved chunks into a pack that it noted after this database was copied.
    let is_stray = row.column::<i64>(2, table)? != LOST_ROW;
    Ok(DoomedPack { id: read_pack_id(row)?, not_before: row.column(1, table)?, is_stray })
}

/// Columns: number of a chunk, its pack.
fn read_place(row: &Row) -> Result<(u64, PackNumber)> {
    Ok((unsigned("chunks", row.column(0, "chunks")?)?, PackNumber(row.column(1, "chunks")?)))
}

/// Columns: those of a chunk, and its damage.
fn read_packed(row: &Row) -> Result<PackedChunk> {
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
