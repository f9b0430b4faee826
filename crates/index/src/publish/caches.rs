//! Caches that are published to a target.

use async_trait::async_trait;
use dormer_nix::StorePathHash;

use super::contract::{
    CacheScan, Forget, Lease, PublishBacklog, PublishCounts, PublishedCache, PublishedCacheIndex, TargetId,
};
use super::rows::AFTER_ALL_KEYS;
use super::targets::hold_lease;
use crate::Result;
use crate::columns::{array, corrupt, signed, unsigned};
use crate::contract::{CacheId, UnixSeconds};
use crate::sql::{Argument, Sql, Transaction, both};
use crate::sql_index::SqlIndex;

use Argument::{Bytes, List, Number, OptionalNumber, Text};

pub(super) const LIST_CACHES: Sql = both!(
    "SELECT c.cache, c.name, c.basis, c.document, c.published_at, j.cursor
     FROM publish_caches AS c LEFT JOIN jobs AS j
         ON j.kind = 'scan-cache' AND coalesce(j.cache, 0) = c.cache AND coalesce(j.target, 0) = c.target
     WHERE c.target = $1 ORDER BY c.cache"
);
pub(super) const WRITE_CACHE: Sql = both!(
    "INSERT INTO publish_caches (target, cache, name, basis, document, published_at) VALUES ($1, $2, $3, $4, $5, $6)
     ON CONFLICT (target, cache) DO UPDATE SET name = excluded.name, basis = excluded.basis,
         document = excluded.document, published_at = excluded.published_at"
);
pub(super) const FORGET_CACHE: Sql = both!("DELETE FROM publish_caches WHERE target = $1 AND cache = $2");
/// The rows that say what has to be looked at. One of [`FORGET_ROWS`].
const FORGET_PENDING: (Sql, Sql) = (
    both!(
        "SELECT hash, hash FROM publish_pending WHERE target = $1 AND cache = $2 ORDER BY hash LIMIT 1 OFFSET $3"
    ),
    both!("DELETE FROM publish_pending WHERE target = $1 AND cache = $2 AND hash <= $3 AND $4 = $4"),
);
/// For each kind of row: finds the last key of a page, and deletes up to it. A range of the primary
/// key, whatever the planner knows.
pub(super) const FORGET_ROWS: [(Sql, Sql); 6] = [
    (
        both!(
            "SELECT hash, hash FROM publish_objects WHERE target = $1 AND cache = $2 ORDER BY hash LIMIT 1 OFFSET $3"
        ),
        both!("DELETE FROM publish_objects WHERE target = $1 AND cache = $2 AND hash <= $3 AND $4 = $4"),
    ),
    (
        both!(
            "SELECT reference, referrer FROM publish_refs WHERE target = $1 AND cache = $2
             ORDER BY reference, referrer LIMIT 1 OFFSET $3"
        ),
        both!(
            "DELETE FROM publish_refs WHERE target = $1 AND cache = $2 AND (reference, referrer) <= ($3, $4)"
        ),
    ),
    (
        both!(
            "SELECT nar, tag FROM publish_nars WHERE target = $1 AND cache = $2 ORDER BY nar, tag LIMIT 1 OFFSET $3"
        ),
        both!("DELETE FROM publish_nars WHERE target = $1 AND cache = $2 AND (nar, tag) <= ($3, $4)"),
    ),
    FORGET_PENDING,
    (
        both!(
            "SELECT hash, hash FROM publish_removed WHERE target = $1 AND cache = $2 ORDER BY hash LIMIT 1 OFFSET $3"
        ),
        both!("DELETE FROM publish_removed WHERE target = $1 AND cache = $2 AND hash <= $3 AND $4 = $4"),
    ),
    (
        both!(
            "SELECT hash, hash FROM publish_documents WHERE target = $1 AND cache = $2 ORDER BY hash LIMIT 1 OFFSET $3"
        ),
        both!("DELETE FROM publish_documents WHERE target = $1 AND cache = $2 AND hash <= $3 AND $4 = $4"),
    ),
];
// A scan is a job of its cache and target. The lease of the target fences its steps.
pub(super) const OPEN_SCAN: Sql = both!(
    "INSERT INTO jobs (kind, cache, target, cursor, done, fence, lease_ends_at, failures, created_at)
     VALUES ('scan-cache', $2, $1, $3, 0, 0, 0, 0, $4)
     ON CONFLICT (kind, coalesce(cache, 0), coalesce(target, 0)) DO UPDATE SET cursor = excluded.cursor"
);
pub(super) const MOVE_SCAN: Sql = both!(
    "UPDATE jobs SET cursor = $3, done = done + $4, stepped_at = coalesce($5, stepped_at)
     WHERE kind = 'scan-cache' AND coalesce(cache, 0) = $2 AND coalesce(target, 0) = $1"
);
pub(super) const END_SCAN: Sql = both!(
    "DELETE FROM jobs WHERE kind = 'scan-cache' AND coalesce(cache, 0) = $2 AND coalesce(target, 0) = $1"
);
pub(super) const FORGET_COUNTS: Sql = both!("DELETE FROM publish_counts WHERE target = $1 AND cache = $2");
pub(super) const COUNTS: Sql = both!(
    "SELECT k.published, k.pending, k.nars, k.file_bytes,
        (SELECT min(since) FROM publish_pending AS p WHERE p.target = $1 AND p.cache = $2)
     FROM publish_counts AS k WHERE k.target = $1 AND k.cache = $2"
);
pub(super) const LIST_BACKLOG: Sql = both!(
    "SELECT c.target, c.name, coalesce(k.published, 0), coalesce(k.pending, 0),
        (SELECT min(since) FROM publish_pending AS p WHERE p.target = c.target AND p.cache = c.cache),
        (SELECT p.hash FROM publish_pending AS p WHERE p.target = c.target AND p.cache = c.cache
            ORDER BY p.since, p.hash LIMIT 1),
        (SELECT p.reason FROM publish_pending AS p WHERE p.target = c.target AND p.cache = c.cache
            ORDER BY p.since, p.hash LIMIT 1)
     FROM publish_caches AS c LEFT JOIN publish_counts AS k ON k.target = c.target AND k.cache = c.cache
     ORDER BY c.target, c.name, c.cache LIMIT $1"
);
pub(super) const OLD_REMOVED: Sql = both!(
    "SELECT hash FROM publish_removed WHERE target = $1 AND cache = $2 AND at < $3 ORDER BY at LIMIT $4"
);
pub(super) const FORGET_REMOVED: Sql = both!(
    "DELETE FROM publish_removed WHERE (target, cache, hash) IN
         (SELECT k.target, k.cache, k.item FROM",
    keyed 3,
    "AS k)"
);

#[async_trait]
impl PublishedCacheIndex for SqlIndex {
    async fn published_caches(&self, target: TargetId) -> Result<Vec<PublishedCache>> {
        self.read("list published caches", async |mut tx| {
            let table = "publish_caches";
            let rows = tx.rows(LIST_CACHES, &[Number(target.0)]).await?;
            rows.iter()
                .map(|row| {
                    Ok(PublishedCache {
                        cache: CacheId(row.column(0, table)?),
                        name: row.column(1, table)?,
                        basis: row.column(2, table)?,
                        document: row.column(3, table)?,
                        published_at: row.column(4, table)?,
                        scan: row
                            .column::<Option<&[u8]>>(5, "jobs")?
                            .map(|scan| {
                                CacheScan::decode(scan).ok_or_else(|| corrupt("jobs", "an unknown scan"))
                            })
                            .transpose()?,
                    })
                })
                .collect()
        })
        .await
    }

    async fn write_published_cache(
        &self,
        lease: &Lease,
        cache: &PublishedCache,
        at: UnixSeconds,
    ) -> Result<()> {
        self.write("write a published cache", async |mut tx| {
            hold_lease(&mut tx, lease).await?;
            let arguments = [
                Number(lease.target.0),
                Number(cache.cache.0),
                Text(&cache.name),
                Bytes(&cache.basis),
                Bytes(&cache.document),
                Number(cache.published_at),
            ];
            tx.run(WRITE_CACHE, &arguments).await?;
            if let Some(scan) = &cache.scan {
                let scan = scan.encode();
                let arguments = [Number(lease.target.0), Number(cache.cache.0), Bytes(&scan), Number(at)];
                tx.run(OPEN_SCAN, &arguments).await?;
            }
            Ok(())
        })
        .await
    }

    async fn forget_rows(&self, lease: &Lease, cache: CacheId, rows: Forget, limit: u32) -> Result<bool> {
        self.write("forget rows of a cache", async |mut tx| {
            if let Forget::RemovedBefore(time) = rows {
                return forget_removed(&mut tx, lease, cache, time, limit).await;
            }
            hold_lease(&mut tx, lease).await?;
            let (target, cache) = (Number(lease.target.0), Number(cache.0));
            let kinds: &[(Sql, Sql)] = if rows == Forget::All { &FORGET_ROWS } else { &[FORGET_PENDING] };
            let mut all_gone = true;
            for kind in kinds {
                all_gone &= forget_kind(&mut tx, *kind, (target, cache), limit).await?;
            }
            if all_gone {
                tx.run(END_SCAN, &[target, cache]).await?;
            }
            if all_gone && rows == Forget::All {
                tx.run(FORGET_COUNTS, &[target, cache]).await?;
                tx.run(FORGET_CACHE, &[target, cache]).await?;
            }
            Ok(all_gone)
        })
        .await
    }

    async fn publish_counts(&self, target: TargetId, cache: CacheId) -> Result<PublishCounts> {
        self.read("count what is published", async |mut tx| {
            let table = "publish_counts";
            let row = tx.optional(COUNTS, &[Number(target.0), Number(cache.0)]).await?;
            let Some(row) = row else { return Ok(PublishCounts::default()) };
            Ok(PublishCounts {
                published: unsigned(table, row.column(0, table)?)?,
                pending: unsigned(table, row.column(1, table)?)?,
                nars: unsigned(table, row.column(2, table)?)?,
                file_bytes: unsigned(table, row.column(3, table)?)?,
                pending_since: row.column(4, table)?,
            })
        })
        .await
    }

    async fn publish_backlog(&self, limit: u32) -> Result<Vec<PublishBacklog>> {
        self.read("count what waits to be published", async |mut tx| {
            let rows = tx.rows(LIST_BACKLOG, &[Number(i64::from(limit))]).await?;
            rows.iter()
                .map(|row| {
                    let oldest: Option<&[u8]> = row.column(5, "publish_pending")?;
                    Ok(PublishBacklog {
                        target: TargetId(row.column(0, "publish_caches")?),
                        cache: row.column(1, "publish_caches")?,
                        published: unsigned("publish_objects", row.column(2, "publish_objects")?)?,
                        pending: unsigned("publish_pending", row.column(3, "publish_pending")?)?,
                        pending_since: row.column(4, "publish_pending")?,
                        oldest: oldest
                            .map(|hash| array("publish_pending", hash).map(StorePathHash::from_bytes))
                            .transpose()?,
                        reason: row.column(6, "publish_pending")?,
                    })
                })
                .collect()
        })
        .await
    }
}

async fn forget_removed(
    tx: &mut Transaction,
    lease: &Lease,
    cache: CacheId,
    before: UnixSeconds,
    limit: u32,
) -> Result<bool> {
    let (target, cache) = (Number(lease.target.0), Number(cache.0));
    // Looked up first: most runs find nothing, and then write nothing.
    let rows = tx.rows(OLD_REMOVED, &[target, cache, Number(before), Number(i64::from(limit))]).await?;
    hold_lease(tx, lease).await?;
    if rows.is_empty() {
        return Ok(true);
    }
    let old: Vec<&[u8]> = rows.iter().map(|row| row.column(0, "publish_removed")).collect::<Result<_>>()?;
    tx.run(FORGET_REMOVED, &[target, cache, List(&old)]).await?;
    Ok(rows.len() < limit as usize)
}

/// Forgets a page of rows of one kind. Returns whether it was the last one.
async fn forget_kind(
    tx: &mut Transaction,
    (find_last, delete): (Sql, Sql),
    (target, cache): (Argument<'_>, Argument<'_>),
    limit: u32,
) -> Result<bool> {
    let rows = tx.rows(find_last, &[target, cache, Number(i64::from(limit.max(1)) - 1)]).await?;
    let last: Option<(Vec<u8>, Vec<u8>)> = match rows.first() {
        Some(row) => Some((row.column(0, "publish_caches")?, row.column(1, "publish_caches")?)),
        None => None,
    };
    let (first, second) = match &last {
        Some((first, second)) => (first.as_slice(), second.as_slice()),
        None => (AFTER_ALL_KEYS, AFTER_ALL_KEYS),
    };
    tx.run(delete, &[target, cache, Bytes(first), Bytes(second)]).await?;
    Ok(last.is_none())
}

/// Moves a scan behind the step that noted `rows` rows; without a place to go on, the scan ends.
pub(super) async fn move_scan(
    tx: &mut Transaction,
    lease: &Lease,
    cache: CacheId,
    scan: Option<&CacheScan>,
    rows: u64,
    at: Option<UnixSeconds>,
) -> Result<()> {
    let (target, cache) = (Number(lease.target.0), Number(cache.0));
    let Some(scan) = scan else { return tx.run(END_SCAN, &[target, cache]).await.map(drop) };
    let scan = scan.encode();
    tx.run(MOVE_SCAN, &[target, cache, Bytes(&scan), Number(signed(rows)), OptionalNumber(at)])
        .await
        .map(drop)
}
