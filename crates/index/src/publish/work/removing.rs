//! Before something is removed from a target, and after.

use dormer_format::EncodingTag;
use dormer_nix::{NarHash, StorePathHash};

use super::{KEYS_MAX, NOTE_PENDING, PAGE, for_each_nar, hold_lease, keys, nar_of, read_hash};
use crate::Result;
use crate::contract::{CacheId, UnixSeconds};
use crate::publish::contract::{Lease, TargetId};
use crate::publish::sql::{Argument, Sql, Transaction, both};
use crate::rows::Row as _;

use Argument::{Bytes, List, Number};

const NOTE_LOST: Sql = both!(
    "INSERT INTO publish_pending (target, cache, hash, since, lost) VALUES ($1, $2, $3, $4, $5)
     ON CONFLICT (target, cache, hash) DO UPDATE SET lost = excluded.lost"
);
const DELETE_REFS: Sql = both!("DELETE FROM publish_refs WHERE target = $1 AND cache = $2 AND referrer = $3");
const DELETE_OBJECT: Sql =
    both!("DELETE FROM publish_objects WHERE target = $1 AND cache = $2 AND hash = $3");
// By the NAR itself, or by the object that named it last: an intent may never have become more.
const LEAVE_NARS: Sql = both!(
    "UPDATE publish_nars SET delete_after = $6, path = $3
     WHERE target = $1 AND cache = $2 AND (nar = $4 AND tag = $5 OR path = $3) AND delete_after IS NULL
         AND NOT EXISTS (SELECT 1 FROM publish_objects AS o WHERE o.target = publish_nars.target
             AND o.cache = publish_nars.cache AND o.nar = publish_nars.nar AND o.tag = publish_nars.tag)"
);
const BEGIN_REMOVING: Sql = both!(
    "UPDATE publish_objects SET state = 2 WHERE target = $1 AND cache = $2 AND hash IN",
    list 3,
    ""
);
const FIND_REFERRERS: Sql = both!(
    "SELECT r.referrer, r.reference FROM publish_objects AS x
     JOIN publish_refs AS r ON r.target = x.target AND r.cache = x.cache AND r.reference = x.hash
     JOIN publish_objects AS u ON u.target = r.target AND u.cache = r.cache AND u.hash = r.referrer
     WHERE x.target = $1 AND x.cache = $2 AND x.state = 2 AND x.upstream = 0 AND u.state <> 2 LIMIT $3"
);
const REMOVABLE: Sql = both!(
    "SELECT x.hash FROM publish_objects AS x
     WHERE x.target = $1 AND x.cache = $2 AND x.state = 2 AND (x.upstream = 1 OR NOT EXISTS (
         SELECT 1 FROM publish_refs AS r JOIN publish_objects AS u
             ON u.target = r.target AND u.cache = r.cache AND u.hash = r.referrer
         WHERE r.target = x.target AND r.cache = x.cache AND r.reference = x.hash AND (u.state <> 2 OR $3 = 0)))
     LIMIT $4"
);
const SET_DEADLINE: Sql = both!(
    "UPDATE publish_nars SET delete_after = $5
     WHERE target = $1 AND cache = $2 AND nar = $3 AND tag = $4 AND delete_after IS NOT NULL"
);
const BEGIN_DELETING: Sql =
    both!("UPDATE publish_nars SET uploaded = 0 WHERE target = $1 AND cache = $2 AND nar = $3 AND tag = $4");
const FORGET_NAR: Sql = both!(
    "DELETE FROM publish_nars WHERE target = $1 AND cache = $2 AND nar = $3 AND tag = $4 AND delete_after IS NOT NULL"
);
const DRIFTED_OBJECT: Sql = both!(
    "UPDATE publish_objects SET state = 0, digest = $4, etag = NULL
     WHERE target = $1 AND cache = $2 AND hash = $3 AND state = 1"
);
const NOTE_NAMING: Sql = both!(
    "INSERT INTO publish_pending (target, cache, hash, since)
     SELECT o.target, o.cache, o.hash, $5 FROM publish_objects AS o
     WHERE o.target = $1 AND o.cache = $2 AND o.nar = $3 AND o.tag = $4
     ON CONFLICT (target, cache, hash) DO NOTHING"
);
const DRIFTED_NAMING: Sql = both!(
    "UPDATE publish_objects SET state = 0, digest = $5 WHERE target = $1 AND cache = $2 AND nar = $3 AND tag = $4 AND state = 1"
);

pub(crate) async fn begin_removing(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    hashes: &[StorePathHash],
    at: UnixSeconds,
) -> Result<u64> {
    hold_lease(tx, lease).await?;
    let (target, cache) = (Number(lease.target.0), Number(cache.0));
    for page in hashes.chunks(KEYS_MAX) {
        tx.run(BEGIN_REMOVING, &[target, cache, List(&keys(page))]).await?;
    }
    let mut taken_along = 0;
    loop {
        let rows = tx.rows(FIND_REFERRERS, &[target, cache, Number(PAGE)]).await?;
        if rows.is_empty() {
            return Ok(taken_along);
        }
        let mut referrers = Vec::with_capacity(rows.len());
        for row in &rows {
            let (referrer, reference): (&[u8], &[u8]) =
                (row.column(0, "publish_refs")?, row.column(1, "publish_refs")?);
            tx.run(NOTE_LOST, &[target, cache, Bytes(referrer), Number(at), Bytes(reference)]).await?;
            referrers.push(referrer);
        }
        referrers.sort_unstable();
        referrers.dedup();
        taken_along += tx.run(BEGIN_REMOVING, &[target, cache, List(&referrers)]).await?;
    }
}

pub(crate) async fn removable(
    tx: &mut impl Transaction,
    target: TargetId,
    cache: CacheId,
    any: bool,
    limit: u32,
) -> Result<Vec<StorePathHash>> {
    let arguments = [Number(target.0), Number(cache.0), Number(i64::from(any)), Number(i64::from(limit))];
    let rows = tx.rows(REMOVABLE, &arguments).await?;
    rows.iter().map(|row| read_hash(row, 0, "publish_objects")).collect()
}

pub(crate) async fn finish_removing(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    removed: &[(StorePathHash, UnixSeconds)],
) -> Result<()> {
    hold_lease(tx, lease).await?;
    let place = (lease.target, cache);
    let (target, cache) = (Number(lease.target.0), Number(cache.0));
    for (path, delete_after) in removed {
        let hash = Bytes(path.as_bytes());
        let before = nar_of(tx, place, path).await?;
        tx.run(DELETE_OBJECT, &[target, cache, hash]).await?;
        tx.run(DELETE_REFS, &[target, cache, hash]).await?;
        if let Some((nar, tag)) = before {
            let (nar, tag) = (Bytes(nar.as_bytes()), Bytes(tag.as_bytes()));
            tx.run(LEAVE_NARS, &[target, cache, hash, nar, tag, Number(*delete_after)]).await?;
        }
    }
    Ok(())
}

pub(crate) async fn set_nar_deadline(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    nars: &[(NarHash, EncodingTag)],
    at: UnixSeconds,
) -> Result<()> {
    hold_lease(tx, lease).await?;
    for (nar, tag) in nars {
        let arguments = [
            Number(lease.target.0),
            Number(cache.0),
            Bytes(nar.as_bytes()),
            Bytes(tag.as_bytes()),
            Number(at),
        ];
        tx.run(SET_DEADLINE, &arguments).await?;
    }
    Ok(())
}

pub(crate) async fn begin_deleting_nars(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    nars: &[(NarHash, EncodingTag)],
) -> Result<()> {
    hold_lease(tx, lease).await?;
    for_each_nar(tx, lease, cache, nars, BEGIN_DELETING).await
}

pub(crate) async fn forget_nars(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    nars: &[(NarHash, EncodingTag)],
) -> Result<()> {
    hold_lease(tx, lease).await?;
    for_each_nar(tx, lease, cache, nars, FORGET_NAR).await
}

pub(crate) async fn note_drift(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    objects: &[StorePathHash],
    nars: &[(NarHash, EncodingTag)],
    at: UnixSeconds,
) -> Result<()> {
    hold_lease(tx, lease).await?;
    for_each_nar(tx, lease, cache, nars, BEGIN_DELETING).await?;
    let (target, cache) = (Number(lease.target.0), Number(cache.0));
    for (nar, tag) in nars {
        let (nar, tag) = (Bytes(nar.as_bytes()), Bytes(tag.as_bytes()));
        tx.run(NOTE_NAMING, &[target, cache, nar, tag, Number(at)]).await?;
        tx.run(DRIFTED_NAMING, &[target, cache, nar, tag, Bytes(&[])]).await?;
    }
    for path in objects {
        let hash = Bytes(path.as_bytes());
        tx.run(DRIFTED_OBJECT, &[target, cache, hash, Bytes(&[])]).await?;
        tx.run(NOTE_PENDING, &[target, cache, hash, Number(at)]).await?;
    }
    Ok(())
}
