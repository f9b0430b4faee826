//! What has to be looked at, and what was removed.

use async_trait::async_trait;
use dormer_nix::StorePathHash;

use super::KEYS_MAX;
use super::caches::move_scan;
use super::contract::{
    AbsentPage, CacheScan, Lease, NotedFrom, PendingIndex, PendingObject, PendingVerdicts, TargetId,
};
use super::records::{Records, records};
use super::rows::{AFTER_ALL_KEYS, after_bytes, keys, read_hash};
use super::targets::hold_lease;
use crate::Result;
use crate::columns::array;
use crate::contract::{CacheId, UnixSeconds};
use crate::rows::Row;
use crate::sql::{Argument, Sql, Transaction, both};
use crate::sql_index::SqlIndex;

use Argument::{Bytes, List, Number, Text};

pub(super) const MOVE_CURSOR: Sql =
    both!("UPDATE publish_targets SET cursor_transaction = $2, cursor_number = $3 WHERE id = $1");
// The last hash of a page: what is noted then is a range of an index, whatever the planner knows.
pub(super) const LAST_OBJECT: Sql =
    both!("SELECT hash FROM objects WHERE cache = $1 AND hash > $2 ORDER BY hash LIMIT 1 OFFSET $3");
pub(super) const NOTE_OBJECTS: Sql = both!(
    "INSERT INTO publish_pending (target, cache, hash, since)
     SELECT $1, o.cache, o.hash, o.created_at FROM objects AS o WHERE o.cache = $2 AND o.hash > $3 AND o.hash <= $4
         AND EXISTS (SELECT 1 FROM caches WHERE id = $2 AND deleted_at IS NULL)
     ON CONFLICT (target, cache, hash) DO NOTHING"
);
pub(super) const LAST_PUBLISHED: Sql = both!(
    "SELECT hash FROM publish_objects WHERE target = $1 AND cache = $2 AND hash > $3 ORDER BY hash LIMIT 1 OFFSET $4"
);
pub(super) const NOTE_PUBLISHED: Sql = both!(
    "INSERT INTO publish_pending (target, cache, hash, since)
     SELECT o.target, o.cache, o.hash, $5 FROM publish_objects AS o
     WHERE o.target = $1 AND o.cache = $2 AND o.hash > $3 AND o.hash <= $4
     ON CONFLICT (target, cache, hash) DO NOTHING"
);
pub(super) const PENDING: Sql = both!(
    "SELECT hash, since, lost, reason FROM publish_pending
     WHERE target = $1 AND cache = $2 AND (since, hash) > ($3, $4)
     ORDER BY since, hash LIMIT $5"
);
// What is there is told too: the page ends after so many rows, not after so many that are absent.
pub(super) const PENDING_ABSENT: Sql = both!(
    "SELECT p.hash, o.cache
     FROM (SELECT hash FROM publish_pending WHERE target = $1 AND cache = $2 AND hash > $3 ORDER BY hash LIMIT $4) AS p
     LEFT JOIN objects AS o ON o.cache = $2 AND o.hash = p.hash
         AND EXISTS (SELECT 1 FROM caches WHERE id = $2 AND deleted_at IS NULL)"
);
pub(super) const NOTE_PENDING: Sql = records!(
    "INSERT INTO publish_pending (target, cache, hash, since)
     SELECT $1, k.cache, k.hash, min(k.since) FROM", 2 { cache: number 0, hash: bytes 1, since: number 2 }, "AS k
     WHERE true GROUP BY k.cache, k.hash
     ON CONFLICT (target, cache, hash) DO NOTHING"
);
// What changed may have other references now, which are to be waited for again.
pub(super) const NOTE_CHANGED: Sql = records!(
    "INSERT INTO publish_pending (target, cache, hash, since)
     SELECT $1, k.cache, k.hash, max(k.since) FROM", 2 { cache: number 0, hash: bytes 1, since: number 2 }, "AS k
     WHERE true GROUP BY k.cache, k.hash
     ON CONFLICT (target, cache, hash) DO UPDATE SET reason = NULL,
         since = CASE WHEN excluded.since > publish_pending.since THEN excluded.since ELSE publish_pending.since END"
);
pub(super) const NOTE_WAITING: Sql = records!(
    "UPDATE publish_pending SET reason = k.reason FROM", keyed 3 { hash: bytes 0, reason: text 1 }, "AS k
     WHERE publish_pending.target = k.target AND publish_pending.cache = k.cache AND publish_pending.hash = k.hash"
);
pub(super) const SET_LOST: Sql = records!(
    "UPDATE publish_pending SET lost = k.lost FROM", keyed 3 { hash: bytes 0, lost: bytes 1 }, "AS k
     WHERE publish_pending.target = k.target AND publish_pending.cache = k.cache AND publish_pending.hash = k.hash"
);
pub(super) const NOTE_REMOVED: Sql = both!(
    "INSERT INTO publish_removed (target, cache, hash, at) SELECT t.id, $2, k.item, $4
     FROM", list 3, "AS k CROSS JOIN publish_targets AS t WHERE t.id = $1
     ON CONFLICT (target, cache, hash) DO UPDATE SET at = excluded.at"
);
// Scalar look-ups: from EXISTS, PostgreSQL makes a table of all rows of the cache.
pub(super) const FIND_REMOVED: Sql = both!(
    "SELECT k.item FROM", list 3, "AS k
     WHERE (SELECT r.at FROM publish_removed AS r WHERE r.target = $1 AND r.cache = $2 AND r.hash = k.item) IS NOT NULL
         OR (SELECT p.since FROM publish_pending AS p
             WHERE p.target = $1 AND p.cache = $2 AND p.hash = k.item) IS NOT NULL"
);
pub(super) const DROP_PENDING: Sql = both!(
    "DELETE FROM publish_pending WHERE (target, cache, hash) IN
         (SELECT k.target, k.cache, k.item FROM",
    keyed 3,
    "AS k)"
);

#[async_trait]
impl PendingIndex for SqlIndex {
    async fn note_pending(
        &self,
        lease: &Lease,
        objects: &[(CacheId, StorePathHash, UnixSeconds)],
        from: NotedFrom,
    ) -> Result<()> {
        self.write("note what to publish", async |mut tx| {
            hold_lease(&mut tx, lease).await?;
            let note = if matches!(from, NotedFrom::Outbox(_)) { NOTE_CHANGED } else { NOTE_PENDING };
            if !objects.is_empty() {
                note_objects(&mut tx, lease, objects, note).await?;
            }
            match &from {
                NotedFrom::Outbox(cursor) => {
                    let arguments =
                        [Number(lease.target.0), Number(cursor.transaction), Number(cursor.number)];
                    tx.run(MOVE_CURSOR, &arguments).await.map(drop)
                }
                NotedFrom::Scan(cache, scan) => {
                    move_scan(&mut tx, lease, *cache, Some(scan), objects.len() as u64, None).await
                }
                NotedFrom::Referrers => Ok(()),
            }
        })
        .await
    }

    async fn note_cache_step(
        &self,
        lease: &Lease,
        cache: CacheId,
        scan: CacheScan,
        limit: u32,
        at: UnixSeconds,
    ) -> Result<Option<CacheScan>> {
        self.write("note a cache to publish", async |mut tx| {
            hold_lease(&mut tx, lease).await?;
            let (target, id, offset) =
                (Number(lease.target.0), Number(cache.0), Number(i64::from(limit.max(1)) - 1));
            let rows;
            let next = match &scan {
                CacheScan::Objects(after) => {
                    let after = Bytes(after_bytes(after.as_ref()));
                    let last = last_of(&tx.rows(LAST_OBJECT, &[id, after, offset]).await?)?;
                    rows = tx.run(NOTE_OBJECTS, &[target, id, after, through(last.as_ref())]).await?;
                    Some(last.map_or(CacheScan::Published(None), |last| CacheScan::Objects(Some(last))))
                }
                CacheScan::Published(after) => {
                    let after = Bytes(after_bytes(after.as_ref()));
                    let last = last_of(&tx.rows(LAST_PUBLISHED, &[target, id, after, offset]).await?)?;
                    rows = tx
                        .run(NOTE_PUBLISHED, &[target, id, after, through(last.as_ref()), Number(at)])
                        .await?;
                    last.map(|last| CacheScan::Published(Some(last)))
                }
                CacheScan::Narinfos(_)
                | CacheScan::Nars(_)
                | CacheScan::Documents(_)
                | CacheScan::Past(_) => {
                    panic!("a scan at {scan:?} notes nothing")
                }
            };
            move_scan(&mut tx, lease, cache, next.as_ref(), rows, Some(at)).await?;
            Ok(next)
        })
        .await
    }

    async fn pending_objects(
        &self,
        target: TargetId,
        cache: CacheId,
        after: Option<(UnixSeconds, StorePathHash)>,
        limit: u32,
    ) -> Result<Vec<PendingObject>> {
        self.read("list what to publish", async |mut tx| {
            let (since, hash) = match &after {
                Some((since, hash)) => (*since, hash.as_bytes().as_slice()),
                None => (i64::MIN, [].as_slice()),
            };
            let arguments =
                [Number(target.0), Number(cache.0), Number(since), Bytes(hash), Number(i64::from(limit))];
            let rows = tx.rows(PENDING, &arguments).await?;
            rows.iter()
                .map(|row| {
                    let table = "publish_pending";
                    let lost: Option<&[u8]> = row.column(2, table)?;
                    Ok(PendingObject {
                        hash: read_hash(row, 0, table)?,
                        since: row.column(1, table)?,
                        lost: lost
                            .map(|lost| array(table, lost).map(StorePathHash::from_bytes))
                            .transpose()?,
                        reason: row.column(3, table)?,
                    })
                })
                .collect()
        })
        .await
    }

    async fn pending_absent(
        &self,
        target: TargetId,
        cache: CacheId,
        after: Option<StorePathHash>,
        limit: u32,
    ) -> Result<AbsentPage> {
        self.read("list what to remove", async |mut tx| {
            let arguments = [
                Number(target.0),
                Number(cache.0),
                Bytes(after_bytes(after.as_ref())),
                Number(i64::from(limit)),
            ];
            let mut page = AbsentPage::default();
            for row in &tx.rows(PENDING_ABSENT, &arguments).await? {
                let hash = read_hash(row, 0, "publish_pending")?;
                page.next = page.next.max(Some(hash));
                if row.column::<Option<i64>>(1, "objects")?.is_none() {
                    page.absent.push(hash);
                }
            }
            page.absent.sort_unstable();
            Ok(page)
        })
        .await
    }

    async fn settle_pending(
        &self,
        lease: &Lease,
        cache: CacheId,
        verdicts: &PendingVerdicts,
        at: UnixSeconds,
    ) -> Result<()> {
        self.write("note what became of objects", async |mut tx| {
            hold_lease(&mut tx, lease).await?;
            let (target, cache) = (Number(lease.target.0), Number(cache.0));
            let PendingVerdicts { done, removed, waiting, lost } = verdicts;
            for page in removed.chunks(KEYS_MAX) {
                tx.run(NOTE_REMOVED, &[target, cache, List(&keys(page)), Number(at)]).await?;
            }
            for page in done.chunks(KEYS_MAX).chain(removed.chunks(KEYS_MAX)) {
                tx.run(DROP_PENDING, &[target, cache, List(&keys(page))]).await?;
            }
            if !lost.is_empty() {
                let mut records = Records::default();
                for (hash, reference) in lost {
                    records.row().bytes(hash.as_bytes()).bytes(reference.as_bytes());
                }
                tx.run(SET_LOST, &[target, cache, Text(&records.finish())]).await?;
            }
            if !waiting.is_empty() {
                let mut records = Records::default();
                for (hash, reason) in waiting {
                    records.row().bytes(hash.as_bytes()).text(Some(reason));
                }
                tx.run(NOTE_WAITING, &[target, cache, Text(&records.finish())]).await?;
            }
            Ok(())
        })
        .await
    }

    async fn find_removed(
        &self,
        target: TargetId,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<StorePathHash>> {
        self.read("find what was removed", async |mut tx| {
            let arguments = [Number(target.0), Number(cache.0), List(&keys(hashes))];
            let rows = tx.rows(FIND_REMOVED, &arguments).await?;
            rows.iter().map(|row| read_hash(row, 0, "publish_removed")).collect()
        })
        .await
    }
}

pub(super) async fn note_objects(
    tx: &mut Transaction,
    lease: &Lease,
    objects: &[(CacheId, StorePathHash, UnixSeconds)],
    note: Sql,
) -> Result<()> {
    let mut records = Records::default();
    for (cache, hash, since) in objects {
        records.row().number(cache.0).bytes(hash.as_bytes()).number(*since);
    }
    tx.run(note, &[Number(lease.target.0), Text(&records.finish())]).await.map(drop)
}

/// The last hash of a page; `None` if the page has none, because it goes to the end.
fn last_of(rows: &[Row]) -> Result<Option<StorePathHash>> {
    rows.first().map(|row| read_hash(row, 0, "objects")).transpose()
}

fn through(last: Option<&StorePathHash>) -> Argument<'_> {
    Bytes(last.map_or(AFTER_ALL_KEYS, |last| last.as_bytes()))
}
