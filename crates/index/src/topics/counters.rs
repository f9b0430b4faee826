//! Counters: what a cache and the whole installation hold, without counting.
//!
//! Triggers of the schema keep the counters, in the transaction of each change, so no writer can
//! forget them and no push takes a statement more. On SQLite one connection writes, and the
//! triggers change the counters in place. On PostgreSQL they add rows to `counter_changes`: an
//! addition waits for nobody, where a row of counters that each push changed would make all pushes
//! to a cache wait for each other. [`fold`] sums these rows up.
//!
//! What is asked for is the sum over both tables and all generations (`jobs/recount.rs`), so it is
//! right at every moment.

use async_trait::async_trait;

use super::history;
use super::stored_counts::STORED;
use crate::Result;
use crate::contract::{
    CacheGlance, CacheId, CounterIndex, Day, HistoryDay, PathCounts, StoredCounts, UnixSeconds,
};
use crate::rows::Row;
use crate::sql::Argument::{Number, Numbers};
use crate::sql::{Sql, Transaction, both};
use crate::sql_index::SqlIndex;

/// The generation that new rows are counted in. On PostgreSQL it stays so until the transaction
/// ends.
macro_rules! generation {
    () => {
        "(SELECT s.generation FROM counting AS s)"
    };
}
pub(crate) use generation;

/// Rows of `counter_changes` that one fold sums up.
pub(crate) const FOLD_ROWS: i64 = 16_384;

pub(crate) const PATHS_OF_CACHE: Sql = Sql {
    sqlite: "SELECT coalesce(sum(paths), 0), coalesce(sum(path_bytes), 0) FROM counters WHERE cache = $1",
    postgres: "
        SELECT coalesce(sum(k.paths), 0)::bigint, coalesce(sum(k.path_bytes), 0)::bigint FROM (
            SELECT c.paths, c.path_bytes FROM counters AS c WHERE c.cache = $1
            UNION ALL SELECT c.paths, c.path_bytes FROM counter_changes AS c WHERE c.cache = $1) AS k",
};
/// The newest path is the end of an index: one step for each cache.
pub(crate) const GLANCE: Sql = Sql {
    sqlite: "
        SELECT k.value,
            (SELECT coalesce(sum(c.paths), 0) FROM counters AS c WHERE c.cache = k.value),
            (SELECT coalesce(sum(c.path_bytes), 0) FROM counters AS c WHERE c.cache = k.value),
            (SELECT o.created_at FROM objects AS o WHERE o.cache = k.value ORDER BY o.created_at DESC LIMIT 1),
            EXISTS (SELECT 1 FROM publish_caches AS p WHERE p.cache = k.value),
            (SELECT counted_at FROM counter_state)
        FROM json_each($1) AS k",
    postgres: "
        SELECT k.item, s.paths, s.path_bytes,
            (SELECT o.created_at FROM objects AS o WHERE o.cache = k.item ORDER BY o.created_at DESC LIMIT 1),
            EXISTS (SELECT 1 FROM publish_caches AS p WHERE p.cache = k.item),
            (SELECT counted_at FROM counter_state)
        FROM unnest($1::bigint[]) AS k (item) CROSS JOIN LATERAL (
            SELECT coalesce(sum(u.paths), 0)::bigint AS paths, coalesce(sum(u.path_bytes), 0)::bigint AS path_bytes
            FROM (SELECT c.paths, c.path_bytes FROM counters AS c WHERE c.cache = k.item
                UNION ALL SELECT c.paths, c.path_bytes FROM counter_changes AS c WHERE c.cache = k.item) AS u) AS s",
};
// Two folds at once take different rows, and change the counters in the same order.
const FOLD: Sql = Sql {
    sqlite: Sql::NOTHING,
    postgres: "
        WITH taken AS MATERIALIZED (
            DELETE FROM counter_changes WHERE id IN (
                SELECT c.id FROM counter_changes AS c ORDER BY c.id LIMIT $1 FOR UPDATE SKIP LOCKED)
            RETURNING cache, generation, paths, path_bytes, nars, nar_bytes, nar_holed_bytes, packs, pack_bytes,
                pack_raw_bytes, pack_holed_bytes),
        folded AS (
        INSERT INTO counters AS k (cache, generation, paths, path_bytes, nars, nar_bytes, nar_holed_bytes, packs,
            pack_bytes, pack_raw_bytes, pack_holed_bytes)
        SELECT cache, generation, sum(paths), sum(path_bytes), sum(nars), sum(nar_bytes), sum(nar_holed_bytes),
            sum(packs), sum(pack_bytes), sum(pack_raw_bytes), sum(pack_holed_bytes)
        FROM taken GROUP BY cache, generation ORDER BY cache, generation
        ON CONFLICT (cache, generation) DO UPDATE SET paths = k.paths + excluded.paths,
            path_bytes = k.path_bytes + excluded.path_bytes, nars = k.nars + excluded.nars,
            nar_bytes = k.nar_bytes + excluded.nar_bytes,
            nar_holed_bytes = k.nar_holed_bytes + excluded.nar_holed_bytes,
            packs = k.packs + excluded.packs, pack_bytes = k.pack_bytes + excluded.pack_bytes,
            pack_raw_bytes = k.pack_raw_bytes + excluded.pack_raw_bytes,
            pack_holed_bytes = k.pack_holed_bytes + excluded.pack_holed_bytes)
        SELECT count(*) FROM taken",
};
const HAS_CHANGES: Sql =
    Sql { sqlite: Sql::NOTHING, postgres: "SELECT c.id FROM counter_changes AS c ORDER BY c.id LIMIT 1" };
// A time in the future is that of a clock that was wrong.
const OPEN_DUE: Sql = both!(
    "INSERT INTO jobs (kind, cache, target, done, fence, lease_ends_at, failures, created_at)
     SELECT 'recount', NULL, NULL, 0, 0, 0, 0, $1 FROM counter_state AS s
     WHERE s.counted_at IS NULL OR s.counted_at <= $2 OR s.counted_at > $1
     ON CONFLICT (kind, coalesce(cache, 0), coalesce(target, 0)) DO NOTHING"
);

/// Sums up changes of counters, at most [`FOLD_ROWS`]. Returns whether more of them may be left.
pub(crate) async fn fold(tx: &mut Transaction) -> Result<bool> {
    if tx.rows(HAS_CHANGES, &[]).await?.is_empty() {
        return Ok(false);
    }
    let taken: i64 = tx.one(FOLD, &[Number(FOLD_ROWS)]).await?.column(0, "counter_changes")?;
    Ok(taken == FOLD_ROWS)
}

/// Opens a recount if the last one ended at `since` or before.
pub(crate) async fn open_recount_if_due(
    tx: &mut Transaction,
    at: UnixSeconds,
    since: UnixSeconds,
) -> Result<()> {
    tx.run(OPEN_DUE, &[Number(at), Number(since)]).await.map(drop)
}

#[async_trait]
impl CounterIndex for SqlIndex {
    async fn path_counts(&self, cache: CacheId) -> Result<PathCounts> {
        self.read("look up what a cache holds", async |mut tx| {
            let row = tx.one(PATHS_OF_CACHE, &[Number(cache.0)]).await?;
            Ok(PathCounts { paths: counter(&row, 0)?, bytes: counter(&row, 1)? })
        })
        .await
    }

    async fn glance_at_caches(&self, caches: &[CacheId]) -> Result<Vec<CacheGlance>> {
        if caches.is_empty() {
            return Ok(Vec::new());
        }
        let numbers: Vec<i64> = caches.iter().map(|cache| cache.0).collect();
        self.read("look up what caches hold", async |mut tx| {
            let rows = tx.rows(GLANCE, &[Numbers(&numbers)]).await?;
            let glance = |row: &_| {
                Ok(CacheGlance {
                    cache: CacheId(Row::column(row, 0, "counters")?),
                    counts: PathCounts { paths: counter(row, 1)?, bytes: counter(row, 2)? },
                    newest_at: Row::column(row, 3, "objects")?,
                    is_published: Row::column(row, 4, "publish_caches")?,
                    is_complete: Row::column::<Option<i64>>(row, 5, "counter_state")?.is_some(),
                })
            };
            rows.iter().map(glance).collect()
        })
        .await
    }

    async fn stored_counts(&self) -> Result<StoredCounts> {
        self.read("look up what is stored", async |mut tx| {
            let row = tx.one(STORED, &[]).await?;
            Ok(StoredCounts {
                paths: PathCounts { paths: counter(&row, 0)?, bytes: counter(&row, 1)? },
                nars: counter(&row, 2)?,
                nar_bytes: counter(&row, 3)?,
                nar_holed_bytes: counter(&row, 4)?,
                packs: counter(&row, 5)?,
                pack_bytes: counter(&row, 6)?,
                pack_raw_bytes: counter(&row, 7)?,
                pack_holed_bytes: counter(&row, 8)?,
                is_complete: row.column::<Option<i64>>(9, "counter_state")?.is_some(),
            })
        })
        .await
    }

    async fn history(&self, cache: Option<CacheId>, after: Day) -> Result<Vec<HistoryDay>> {
        self.read("read a history", async |mut tx| history::read(&mut tx, cache, after).await).await
    }
}

/// A counter that somebody changed by hand may be negative until the next recount.
fn counter(row: &Row, column: usize) -> Result<u64> {
    let value: i64 = row.column(column, "counters")?;
    Ok(u64::try_from(value).unwrap_or(0))
}
