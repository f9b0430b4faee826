//! Caches that are published to a target.

use super::{hold_lease, one};
use crate::Result;
use crate::columns::unsigned;
use crate::contract::CacheId;
use crate::publish::contract::{Lease, PublishBacklog, PublishCounts, PublishedCache, TargetId};
use crate::publish::sql::{Argument, Sql, Transaction, both};
use crate::rows::Row as _;

use Argument::{Bytes, Number, Text};

const LIST_CACHES: Sql = both!(
    "SELECT cache, name, basis, document, published_at FROM publish_caches WHERE target = $1 ORDER BY cache"
);
const WRITE_CACHE: Sql = both!(
    "INSERT INTO publish_caches (target, cache, name, basis, document, published_at) VALUES ($1, $2, $3, $4, $5, $6)
     ON CONFLICT (target, cache) DO UPDATE SET name = excluded.name, basis = excluded.basis,
         document = excluded.document, published_at = excluded.published_at"
);
const FORGET_CACHE: [Sql; 6] = [
    both!("DELETE FROM publish_objects WHERE target = $1 AND cache = $2"),
    both!("DELETE FROM publish_refs WHERE target = $1 AND cache = $2"),
    both!("DELETE FROM publish_nars WHERE target = $1 AND cache = $2"),
    both!("DELETE FROM publish_pending WHERE target = $1 AND cache = $2"),
    both!("DELETE FROM publish_removed WHERE target = $1 AND cache = $2"),
    both!("DELETE FROM publish_caches WHERE target = $1 AND cache = $2"),
];
const COUNT_OBJECTS: Sql =
    both!("SELECT count(*) FROM publish_objects WHERE target = $1 AND cache = $2 AND state = 1");
const COUNT_PENDING: Sql =
    both!("SELECT count(*), min(since) FROM publish_pending WHERE target = $1 AND cache = $2");
const COUNT_NARS: Sql = Sql {
    sqlite: "SELECT count(*), coalesce(sum(file_size), 0) FROM publish_nars
        WHERE target = $1 AND cache = $2 AND uploaded = 1",
    // A sum of BIGINT is NUMERIC there.
    postgres: "SELECT count(*), coalesce(sum(file_size), 0)::bigint FROM publish_nars
        WHERE target = $1 AND cache = $2 AND uploaded = 1",
};
const LIST_BACKLOG: Sql = both!(
    "SELECT c.target, c.name,
        (SELECT count(*) FROM publish_objects o WHERE o.target = c.target AND o.cache = c.cache AND o.state = 1),
        (SELECT count(*) FROM publish_pending p WHERE p.target = c.target AND p.cache = c.cache),
        (SELECT min(since) FROM publish_pending p WHERE p.target = c.target AND p.cache = c.cache)
     FROM publish_caches c ORDER BY c.target, c.name, c.cache LIMIT $1"
);

pub(crate) async fn published_caches(
    tx: &mut impl Transaction,
    target: TargetId,
) -> Result<Vec<PublishedCache>> {
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
            })
        })
        .collect()
}

pub(crate) async fn write_published_cache(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: &PublishedCache,
) -> Result<()> {
    hold_lease(tx, lease).await?;
    let arguments = [
        Number(lease.target.0),
        Number(cache.cache.0),
        Text(&cache.name),
        Bytes(&cache.basis),
        Bytes(&cache.document),
        Number(cache.published_at),
    ];
    tx.run(WRITE_CACHE, &arguments).await.map(drop)
}

pub(crate) async fn forget_published_cache(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
) -> Result<()> {
    hold_lease(tx, lease).await?;
    for sql in FORGET_CACHE {
        tx.run(sql, &[Number(lease.target.0), Number(cache.0)]).await?;
    }
    Ok(())
}

pub(crate) async fn publish_counts(
    tx: &mut impl Transaction,
    target: TargetId,
    cache: CacheId,
) -> Result<PublishCounts> {
    let place = [Number(target.0), Number(cache.0)];
    let objects = one(tx, COUNT_OBJECTS, &place).await?;
    let pending = one(tx, COUNT_PENDING, &place).await?;
    let nars = one(tx, COUNT_NARS, &place).await?;
    Ok(PublishCounts {
        published: unsigned("publish_objects", objects.column(0, "publish_objects")?)?,
        pending: unsigned("publish_pending", pending.column(0, "publish_pending")?)?,
        pending_since: pending.column(1, "publish_pending")?,
        nars: unsigned("publish_nars", nars.column(0, "publish_nars")?)?,
        file_bytes: unsigned("publish_nars", nars.column(1, "publish_nars")?)?,
    })
}

pub(crate) async fn publish_backlog(tx: &mut impl Transaction, limit: u32) -> Result<Vec<PublishBacklog>> {
    let rows = tx.rows(LIST_BACKLOG, &[Number(i64::from(limit))]).await?;
    rows.iter()
        .map(|row| {
            Ok(PublishBacklog {
                target: TargetId(row.column(0, "publish_caches")?),
                cache: row.column(1, "publish_caches")?,
                published: unsigned("publish_objects", row.column(2, "publish_objects")?)?,
                pending: unsigned("publish_pending", row.column(3, "publish_pending")?)?,
                pending_since: row.column(4, "publish_pending")?,
            })
        })
        .collect()
}
