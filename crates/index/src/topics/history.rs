//! History: what each cache and the whole installation held and did, day by day.
//!
//! Sizes come from the counters ([`counters`](super::counters)), activity from what a server
//! counted in memory. Nobody waits for either, and a crash loses some minutes of them.
//!
//! A day has sizes only if they differ from those before, or if nothing was written for
//! [`HISTORY_REPEATED_DAYS`]: a cache that rests costs a dozen rows a year. So a reader carries
//! sizes forward, and begins as many days early.

use super::stored_counts::STORED;
use crate::Result;
use crate::columns::signed;
use crate::contract::{
    CacheActivity, CacheId, Day, HISTORY_DAYS, HISTORY_REPEATED_DAYS, HistoryDay, PathCounts,
};
use crate::publish::records::{Records, records};
use crate::rows::Row;
use crate::sql::Argument::{Number, Text};
use crate::sql::{Sql, Transaction, both};

/// The cache that stands for the whole installation.
const INSTALLATION: i64 = 0;

// Two servers at once change the rows in the same order. A cache that is gone gets no row.
pub(crate) const ADD_ACTIVITY: Sql = records!(
    "INSERT INTO cache_days AS d (cache, day, pushes, pulls) SELECT k.cache, $1, k.pushes, k.pulls FROM",
    2 { cache: number 0, pushes: number 1, pulls: number 2 },
    "AS k WHERE k.cache = 0 OR EXISTS (SELECT 1 FROM caches AS c WHERE c.id = k.cache AND c.deleted_at IS NULL)
     ORDER BY k.cache
     ON CONFLICT (cache, day) DO UPDATE SET pushes = d.pushes + excluded.pushes, pulls = d.pulls + excluded.pulls"
);

pub(crate) const LAST_OF_PAGE: Sql = both!(
    "SELECT CAST(coalesce(max(p.id), 0) AS BIGINT) FROM
         (SELECT c.id FROM caches AS c WHERE c.id > $1 ORDER BY c.id LIMIT $2) AS p"
);

/// The caches behind `$1` up to `$2`, on day `$3`, if they hold something else than when it was
/// written last, at `$4` or later. A value and no EXISTS: PostgreSQL would join with the days of
/// all caches.
macro_rules! record_sizes {
    ($paths:literal, $bytes:literal) => {
        concat!(
            "INSERT INTO cache_days AS d (cache, day, paths, path_bytes)
             SELECT k.id, $3, k.paths, k.bytes FROM (SELECT c.id, ",
            $paths,
            " AS paths, ",
            $bytes,
            " AS bytes FROM caches AS c WHERE c.id > $1 AND c.id <= $2 AND c.deleted_at IS NULL) AS k
             WHERE coalesce((SELECT b.paths <> k.paths OR b.path_bytes <> k.bytes FROM cache_days AS b
                 WHERE b.cache = k.id AND b.day >= $4 AND b.day <= $3 AND b.paths IS NOT NULL
                 ORDER BY b.day DESC LIMIT 1), 1 = 1)
             ORDER BY k.id
             ON CONFLICT (cache, day) DO UPDATE SET paths = excluded.paths, path_bytes = excluded.path_bytes"
        )
    };
}
pub(crate) const RECORD_SIZES: Sql = Sql {
    sqlite: record_sizes!(
        "(SELECT coalesce(sum(n.paths), 0) FROM counters AS n WHERE n.cache = c.id)",
        "(SELECT coalesce(sum(n.path_bytes), 0) FROM counters AS n WHERE n.cache = c.id)"
    ),
    postgres: record_sizes!(
        "(SELECT coalesce(sum(u.paths), 0)::bigint FROM (
             SELECT n.paths FROM counters AS n WHERE n.cache = c.id
             UNION ALL SELECT n.paths FROM counter_changes AS n WHERE n.cache = c.id) AS u)",
        "(SELECT coalesce(sum(u.path_bytes), 0)::bigint FROM (
             SELECT n.path_bytes FROM counters AS n WHERE n.cache = c.id
             UNION ALL SELECT n.path_bytes FROM counter_changes AS n WHERE n.cache = c.id) AS u)"
    ),
};
const RECORD_INSTALLATION: Sql = both!(
    "INSERT INTO cache_days (cache, day, paths, path_bytes, stored_bytes) VALUES (0, $1, $2, $3, $4)
     ON CONFLICT (cache, day) DO UPDATE SET paths = excluded.paths, path_bytes = excluded.path_bytes,
         stored_bytes = excluded.stored_bytes"
);
// PostgreSQL would rather walk through the days of all caches than sort those of one.
pub(crate) const HISTORY: Sql = Sql {
    sqlite: "
        SELECT d.day, d.paths, d.path_bytes, d.stored_bytes, d.pushes, d.pulls FROM cache_days AS d
        WHERE d.cache = $1 AND d.day > $2 ORDER BY d.day LIMIT $3",
    postgres: "
        SELECT d.day, d.paths, d.path_bytes, d.stored_bytes, d.pushes, d.pulls FROM cache_days AS d
        WHERE d.cache = $1 AND d.day + 0 > $2 ORDER BY d.day + 0 LIMIT $3",
};
pub(crate) const TRIM: Sql = both!(
    "DELETE FROM cache_days WHERE (cache, day) IN
         (SELECT d.cache, d.day FROM cache_days AS d WHERE d.day <= $1 ORDER BY d.day LIMIT $2)"
);
pub(crate) const DELETE_HISTORY: Sql = both!("DELETE FROM cache_days WHERE cache = $1");

/// Adds pushes and pulls to a day, for each cache and for the installation.
pub(crate) async fn add_activity(tx: &mut Transaction, day: Day, activity: &[CacheActivity]) -> Result<()> {
    let sum = |of: fn(&CacheActivity) -> u64| activity.iter().map(of).fold(0, u64::saturating_add);
    let mut rows = Records::default();
    rows.row().number(INSTALLATION).number(signed(sum(|of| of.pushes))).number(signed(sum(|of| of.pulls)));
    for of in activity {
        rows.row().number(of.cache.0).number(signed(of.pushes)).number(signed(of.pulls));
    }
    tx.run(ADD_ACTIVITY, &[Number(day.0), Text(&rows.finish())]).await.map(drop)
}

/// Writes down what a page of caches holds, and with the first page what the installation holds.
/// Returns the last cache of the page.
pub(crate) async fn record_sizes(
    tx: &mut Transaction,
    day: Day,
    after: CacheId,
    limit: u32,
) -> Result<Option<CacheId>> {
    if after.0 == INSTALLATION {
        let row = tx.one(STORED, &[]).await?;
        let stored: (i64, i64, i64) =
            (row.column(0, "counters")?, row.column(1, "counters")?, row.column(6, "counters")?);
        let arguments = [Number(day.0), Number(stored.0), Number(stored.1), Number(stored.2)];
        tx.run(RECORD_INSTALLATION, &arguments).await?;
    }
    let last: i64 =
        tx.one(LAST_OF_PAGE, &[Number(after.0), Number(limit.into())]).await?.column(0, "caches")?;
    if last == 0 {
        return Ok(None);
    }
    let since = day.0.saturating_sub(HISTORY_REPEATED_DAYS);
    tx.run(RECORD_SIZES, &[Number(after.0), Number(last), Number(day.0), Number(since)]).await?;
    Ok(Some(CacheId(last)))
}

/// Deletes days from before the history, at most `limit` rows.
pub(crate) async fn trim(tx: &mut Transaction, day: Day, limit: u32) -> Result<u64> {
    let before = day.0.saturating_sub(HISTORY_DAYS);
    tx.run(TRIM, &[Number(before), Number(limit.into())]).await
}

/// The days of a cache, or of the installation, after a day.
pub(crate) async fn read(
    tx: &mut Transaction,
    cache: Option<CacheId>,
    after: Day,
) -> Result<Vec<HistoryDay>> {
    let cache = cache.map_or(INSTALLATION, |cache| cache.0);
    let rows = tx.rows(HISTORY, &[Number(cache), Number(after.0), Number(HISTORY_DAYS)]).await?;
    rows.iter().map(read_day).collect()
}

fn read_day(row: &Row) -> Result<HistoryDay> {
    let count = |column: usize| row.column::<Option<i64>>(column, "cache_days");
    // A counter that somebody changed by hand may have been negative.
    let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
    Ok(HistoryDay {
        day: Day(row.column(0, "cache_days")?),
        counts: count(1)?
            .zip(count(2)?)
            .map(|(paths, bytes)| PathCounts { paths: unsigned(paths), bytes: unsigned(bytes) }),
        stored_bytes: count(3)?.map(unsigned),
        pushes: unsigned(row.column(4, "cache_days")?),
        pulls: unsigned(row.column(5, "cache_days")?),
    })
}
