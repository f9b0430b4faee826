//! What has to be looked at, and what was removed.

use dormer_nix::StorePathHash;

use super::{DROP_PENDING, KEYS_MAX, NOTE_PENDING, after_bytes, hold_lease, keys, read_hash};
use crate::Result;
use crate::columns::array;
use crate::contract::{CacheId, OutboxPosition, UnixSeconds};
use crate::publish::contract::{Lease, PendingObject, TargetId};
use crate::publish::sql::{Argument, Sql, Transaction, both};
use crate::rows::Row as _;

use Argument::{Bytes, List, Number, Text};

const MOVE_CURSOR: Sql =
    both!("UPDATE publish_targets SET cursor_transaction = $2, cursor_number = $3 WHERE id = $1");
const NOTE_OBJECTS: Sql = both!(
    "INSERT INTO publish_pending (target, cache, hash, since)
     SELECT t.id, o.cache, o.hash, o.created_at FROM publish_targets AS t CROSS JOIN objects AS o
     WHERE t.id = $1 AND o.cache = $2
     ON CONFLICT (target, cache, hash) DO NOTHING"
);
const NOTE_PUBLISHED: Sql = both!(
    "INSERT INTO publish_pending (target, cache, hash, since)
     SELECT o.target, o.cache, o.hash, $3 FROM publish_objects AS o WHERE o.target = $1 AND o.cache = $2
     ON CONFLICT (target, cache, hash) DO NOTHING"
);
const PENDING: Sql = both!(
    "SELECT hash, since, lost, reason FROM publish_pending
     WHERE target = $1 AND cache = $2 AND (since > $3 OR since = $3 AND hash > $4)
     ORDER BY since, hash LIMIT $5"
);
const PENDING_ABSENT: Sql = both!(
    "SELECT p.hash FROM publish_pending AS p
     WHERE p.target = $1 AND p.cache = $2 AND p.hash > $3
         AND NOT EXISTS (SELECT 1 FROM objects AS o WHERE o.cache = p.cache AND o.hash = p.hash)
     ORDER BY p.hash LIMIT $4"
);
// What changed may have other references now, which are to be waited for anew.
const NOTE_CHANGED: Sql = both!(
    "INSERT INTO publish_pending (target, cache, hash, since) VALUES ($1, $2, $3, $4)
     ON CONFLICT (target, cache, hash) DO UPDATE SET
         since = CASE WHEN excluded.since > publish_pending.since THEN excluded.since ELSE publish_pending.since END"
);
const NOTE_WAITING: Sql =
    both!("UPDATE publish_pending SET reason = $4 WHERE target = $1 AND cache = $2 AND hash = $3");
const SET_LOST: Sql =
    both!("UPDATE publish_pending SET lost = $4 WHERE target = $1 AND cache = $2 AND hash = $3");
const NOTE_REMOVED: Sql = both!(
    "INSERT INTO publish_removed (target, cache, hash, at) SELECT t.id, $2, k.item, $4
     FROM", list 3, "AS k CROSS JOIN publish_targets AS t WHERE t.id = $1
     ON CONFLICT (target, cache, hash) DO UPDATE SET at = excluded.at"
);
const FIND_REMOVED: Sql = both!(
    "SELECT k.item FROM", list 3, "AS k
     WHERE EXISTS (SELECT 1 FROM publish_removed AS r WHERE r.target = $1 AND r.cache = $2 AND r.hash = k.item)
         OR EXISTS (SELECT 1 FROM publish_pending AS p WHERE p.target = $1 AND p.cache = $2 AND p.hash = k.item)"
);
const FORGET_REMOVED: Sql = both!("DELETE FROM publish_removed WHERE target = $1 AND cache = $2 AND at < $3");

pub(crate) async fn note_pending(
    tx: &mut impl Transaction,
    lease: &Lease,
    objects: &[(CacheId, StorePathHash, UnixSeconds)],
    cursor: Option<OutboxPosition>,
) -> Result<()> {
    hold_lease(tx, lease).await?;
    let note = if cursor.is_some() { NOTE_CHANGED } else { NOTE_PENDING };
    for (cache, hash, since) in objects {
        let arguments = [Number(lease.target.0), Number(cache.0), Bytes(hash.as_bytes()), Number(*since)];
        tx.run(note, &arguments).await?;
    }
    if let Some(cursor) = cursor {
        let arguments = [Number(lease.target.0), Number(cursor.transaction), Number(cursor.number)];
        tx.run(MOVE_CURSOR, &arguments).await?;
    }
    Ok(())
}

pub(crate) async fn note_all_pending(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    at: UnixSeconds,
) -> Result<()> {
    hold_lease(tx, lease).await?;
    let (target, cache) = (Number(lease.target.0), Number(cache.0));
    tx.run(NOTE_OBJECTS, &[target, cache]).await?;
    tx.run(NOTE_PUBLISHED, &[target, cache, Number(at)]).await.map(drop)
}

pub(crate) async fn pending_objects(
    tx: &mut impl Transaction,
    target: TargetId,
    cache: CacheId,
    after: Option<(UnixSeconds, StorePathHash)>,
    limit: u32,
) -> Result<Vec<PendingObject>> {
    let (since, hash) = match &after {
        Some((since, hash)) => (*since, hash.as_bytes().as_slice()),
        None => (i64::MIN, [].as_slice()),
    };
    let arguments = [Number(target.0), Number(cache.0), Number(since), Bytes(hash), Number(i64::from(limit))];
    let rows = tx.rows(PENDING, &arguments).await?;
    rows.iter()
        .map(|row| {
            let table = "publish_pending";
            let lost: Option<&[u8]> = row.column(2, table)?;
            Ok(PendingObject {
                hash: read_hash(row, 0, table)?,
                since: row.column(1, table)?,
                lost: lost.map(|lost| array(table, lost).map(StorePathHash::from_bytes)).transpose()?,
                reason: row.column(3, table)?,
            })
        })
        .collect()
}

pub(crate) async fn pending_absent(
    tx: &mut impl Transaction,
    target: TargetId,
    cache: CacheId,
    after: Option<StorePathHash>,
    limit: u32,
) -> Result<Vec<StorePathHash>> {
    let arguments =
        [Number(target.0), Number(cache.0), Bytes(after_bytes(after.as_ref())), Number(i64::from(limit))];
    let rows = tx.rows(PENDING_ABSENT, &arguments).await?;
    rows.iter().map(|row| read_hash(row, 0, "publish_pending")).collect()
}

pub(crate) async fn note_waiting(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    reasons: &[(StorePathHash, String)],
) -> Result<()> {
    hold_lease(tx, lease).await?;
    for (hash, reason) in reasons {
        let arguments = [Number(lease.target.0), Number(cache.0), Bytes(hash.as_bytes()), Text(reason)];
        tx.run(NOTE_WAITING, &arguments).await?;
    }
    Ok(())
}

pub(crate) async fn note_lost(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    lost: &[(StorePathHash, StorePathHash)],
) -> Result<()> {
    hold_lease(tx, lease).await?;
    for (hash, reference) in lost {
        let (hash, reference) = (Bytes(hash.as_bytes()), Bytes(reference.as_bytes()));
        tx.run(SET_LOST, &[Number(lease.target.0), Number(cache.0), hash, reference]).await?;
    }
    Ok(())
}

pub(crate) async fn note_removed(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    hashes: &[StorePathHash],
    at: UnixSeconds,
) -> Result<()> {
    hold_lease(tx, lease).await?;
    let (target, cache) = (Number(lease.target.0), Number(cache.0));
    for page in hashes.chunks(KEYS_MAX) {
        let page = keys(page);
        tx.run(NOTE_REMOVED, &[target, cache, List(&page), Number(at)]).await?;
        tx.run(DROP_PENDING, &[target, cache, List(&page)]).await?;
    }
    Ok(())
}

pub(crate) async fn find_removed(
    tx: &mut impl Transaction,
    target: TargetId,
    cache: CacheId,
    hashes: &[StorePathHash],
) -> Result<Vec<StorePathHash>> {
    let arguments = [Number(target.0), Number(cache.0), List(&keys(hashes))];
    let rows = tx.rows(FIND_REMOVED, &arguments).await?;
    rows.iter().map(|row| read_hash(row, 0, "publish_removed")).collect()
}

pub(crate) async fn forget_removed(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    before: UnixSeconds,
) -> Result<()> {
    hold_lease(tx, lease).await?;
    tx.run(FORGET_REMOVED, &[Number(lease.target.0), Number(cache.0), Number(before)]).await.map(drop)
}

pub(crate) async fn drop_pending(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    hashes: &[StorePathHash],
) -> Result<()> {
    hold_lease(tx, lease).await?;
    for page in hashes.chunks(KEYS_MAX) {
        tx.run(DROP_PENDING, &[Number(lease.target.0), Number(cache.0), List(&keys(page))]).await?;
    }
    Ok(())
}
