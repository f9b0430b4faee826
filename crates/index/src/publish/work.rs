//! The work of publishing's contract, in a transaction of either database.
//!
//! Invariants
//! - Every writing function begins with [`hold_lease`]: it locks the target's row, so a lease cannot change hands under it.
//! - A NAR row loses its deadline when something names it and gets one when nothing does any more; "names" is a row of
//!   `publish_objects`, whatever its state, or an intent that has begun.

use dormer_format::EncodingTag;
use dormer_nix::{NarHash, StorePathHash};

use super::contract::{
    Lease, PendingObject, PublishCounts, PublishDone, PublishIntent, PublishState, PublishTarget,
    PublishedCache, PublishedNar, PublishedObject, TargetId,
};
use super::sql::{Argument, Sql, Transaction, both};
use crate::columns::{array, corrupt, nar_hash, signed, tag, unsigned};
use crate::contract::{CacheId, FoundObject, OutboxPosition, UnixSeconds};
use crate::rows::{Row as _, read_found};
use crate::{Error, Result};

use Argument::{Bytes, List, Number, OptionalBytes, OptionalNumber, OptionalText, Text};

/// Most keys in one call.
const KEYS_MAX: usize = 16_384;

/// Rows looked at together where there may be any number.
const PAGE: i64 = 1_000;

const FIND_TARGET: Sql = both!(
    "SELECT id, name, location, cursor_transaction, cursor_number, holder, lease_ends_at, ran_at, error, error_at
     FROM publish_targets WHERE name = $1"
);
const LIST_TARGETS: Sql = both!(
    "SELECT id, name, location, cursor_transaction, cursor_number, holder, lease_ends_at, ran_at, error, error_at
     FROM publish_targets ORDER BY name"
);
const CREATE_TARGET: Sql = both!(
    "INSERT INTO publish_targets (name, location, fence, lease_ends_at, cursor_transaction, cursor_number)
     VALUES ($1, $2, 0, 0, 0, 0) ON CONFLICT (name) DO NOTHING"
);
const FIND_HOLDER: Sql = both!("SELECT holder FROM publish_targets WHERE id = $1");
// Looks again at what the row says by now: another one may have been faster.
const ACQUIRE: Sql = both!(
    "UPDATE publish_targets SET holder = $2, fence = fence + 1, lease_ends_at = $4
     WHERE id = $1 AND (holder IS NULL OR lease_ends_at <= $3) RETURNING fence"
);
const HOLD: Sql =
    both!("UPDATE publish_targets SET fence = fence WHERE id = $1 AND fence = $2 AND holder IS NOT NULL");
const RENEW: Sql = both!("UPDATE publish_targets SET lease_ends_at = $2 WHERE id = $1");
const RELEASE: Sql = both!(
    "UPDATE publish_targets SET holder = NULL, lease_ends_at = 0, ran_at = $2, error = $3, error_at = $4 WHERE id = $1"
);
const MOVE: Sql = both!("UPDATE publish_targets SET location = $2 WHERE id = $1");
const MOVE_CURSOR: Sql =
    both!("UPDATE publish_targets SET cursor_transaction = $2, cursor_number = $3 WHERE id = $1");

const NOTE_PENDING: Sql = both!(
    "INSERT INTO publish_pending (target, cache, hash, since) VALUES ($1, $2, $3, $4)
     ON CONFLICT (target, cache, hash) DO NOTHING"
);
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
const NOTE_WAITING: Sql =
    both!("UPDATE publish_pending SET reason = $4 WHERE target = $1 AND cache = $2 AND hash = $3");
const DROP_PENDING: Sql = both!(
    "DELETE FROM publish_pending WHERE target = $1 AND cache = $2 AND hash IN",
    list 3,
    ""
);
const NOTE_LOST: Sql = both!(
    "INSERT INTO publish_pending (target, cache, hash, since, lost) VALUES ($1, $2, $3, $4, $5)
     ON CONFLICT (target, cache, hash) DO UPDATE SET lost = excluded.lost"
);

const LIST_CACHES: Sql = both!(
    "SELECT cache, name, basis, document, published_at FROM publish_caches WHERE target = $1 ORDER BY cache"
);
const WRITE_CACHE: Sql = both!(
    "INSERT INTO publish_caches (target, cache, name, basis, document, published_at) VALUES ($1, $2, $3, $4, $5, $6)
     ON CONFLICT (target, cache) DO UPDATE SET name = excluded.name, basis = excluded.basis,
         document = excluded.document, published_at = excluded.published_at"
);
const FORGET_CACHE: [Sql; 5] = [
    both!("DELETE FROM publish_objects WHERE target = $1 AND cache = $2"),
    both!("DELETE FROM publish_refs WHERE target = $1 AND cache = $2"),
    both!("DELETE FROM publish_nars WHERE target = $1 AND cache = $2"),
    both!("DELETE FROM publish_pending WHERE target = $1 AND cache = $2"),
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

// CROSS JOIN: from the keys to their rows, never the other way round.
const FIND_OBJECTS: Sql = both!(
    "SELECT n.id, n.hash, n.size, n.file_size, n.tag, n.damaged_at, o.last_used_at,
        o.hash, o.name, o.refs, o.deriver, o.ca, o.sigs, o.system
     FROM", list 2, "AS k CROSS JOIN objects AS o CROSS JOIN nars AS n
     WHERE o.cache = $1 AND o.hash = k.item AND n.id = o.nar"
);
const FIND_PUBLISHED: Sql = both!(
    "SELECT o.hash, o.state, o.nar, o.tag, o.digest, o.etag, o.upstream FROM", list 3, "AS k CROSS JOIN publish_objects AS o
     WHERE o.target = $1 AND o.cache = $2 AND o.hash = k.item"
);
const LIST_PUBLISHED: Sql = both!(
    "SELECT o.hash, o.state, o.nar, o.tag, o.digest, o.etag, o.upstream FROM publish_objects AS o
     WHERE o.target = $1 AND o.cache = $2 AND o.hash > $3 ORDER BY o.hash LIMIT $4"
);
const FIND_NARS: Sql = both!(
    "SELECT n.nar, n.tag, n.uploaded, n.file_size, n.file_hash, n.etag, n.delete_after
     FROM", list 3, "AS k CROSS JOIN publish_nars AS n WHERE n.target = $1 AND n.cache = $2 AND n.nar = k.item"
);
const NARS_LEFT: Sql = both!(
    "SELECT n.nar, n.tag, n.uploaded, n.file_size, n.file_hash, n.etag, n.delete_after FROM publish_nars AS n
     WHERE n.target = $1 AND n.cache = $2 AND n.path = $3 AND n.delete_after IS NOT NULL"
);
const DUE_NARS: Sql = both!(
    "SELECT n.nar, n.tag, n.uploaded, n.file_size, n.file_hash, n.etag, n.delete_after FROM publish_nars AS n
     WHERE n.target = $1 AND n.cache = $2 AND n.delete_after <= $3
         AND NOT EXISTS (SELECT 1 FROM publish_objects AS o
             WHERE o.target = n.target AND o.cache = n.cache AND o.nar = n.nar AND o.tag = n.tag)
     ORDER BY n.delete_after LIMIT $4"
);

// What is there stays there while it is written anew.
const BEGIN_OBJECT: Sql = both!(
    "INSERT INTO publish_objects (target, cache, hash, state, nar, tag, digest, upstream)
     VALUES ($1, $2, $3, 0, $4, $5, $6, 0)
     ON CONFLICT (target, cache, hash) DO UPDATE SET
         state = CASE WHEN publish_objects.state = 1 THEN 1 ELSE 0 END"
);
const BEGIN_NAR: Sql = both!(
    "INSERT INTO publish_nars (target, cache, nar, tag, path, uploaded, file_size) VALUES ($1, $2, $3, $4, $5, 0, $6)
     ON CONFLICT (target, cache, nar, tag) DO UPDATE SET path = excluded.path, delete_after = NULL"
);
const ADD_REFS: Sql = both!(
    "INSERT INTO publish_refs (target, cache, reference, referrer) SELECT t.id, $2, k.item, $4
     FROM", list 3, "AS k CROSS JOIN publish_targets AS t WHERE t.id = $1
     ON CONFLICT (target, cache, reference, referrer) DO NOTHING"
);
const NOTE_UPLOADED: Sql = both!(
    "UPDATE publish_nars SET uploaded = 1, file_size = $5, file_hash = $6, etag = $7
     WHERE target = $1 AND cache = $2 AND nar = $3 AND tag = $4"
);
const FIND_NAR_OF: Sql =
    both!("SELECT nar, tag FROM publish_objects WHERE target = $1 AND cache = $2 AND hash = $3");
const FINISH_OBJECT: Sql = both!(
    "UPDATE publish_objects SET state = 1, nar = $4, tag = $5, digest = $6, etag = $7, upstream = $8
     WHERE target = $1 AND cache = $2 AND hash = $3"
);
const DROP_OLD_REFS: Sql = both!(
    "DELETE FROM publish_refs WHERE target = $1 AND cache = $2 AND referrer = $3 AND reference NOT IN",
    list 4,
    ""
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
const LEAVE_NAR: Sql = both!(
    "UPDATE publish_nars SET delete_after = $6, path = $3
     WHERE target = $1 AND cache = $2 AND nar = $4 AND tag = $5 AND delete_after IS NULL
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

type Place = (TargetId, CacheId);

/// Fails unless the lease is the one that counts, and keeps it so until the transaction ends.
async fn hold_lease(tx: &mut impl Transaction, lease: &Lease) -> Result<()> {
    let held = tx.run(HOLD, &[Number(lease.target.0), Number(lease.fence)]).await?;
    if held == 1 { Ok(()) } else { Err(Error::LeaseLost) }
}

// --- targets and leases ---------------------------------------------------------------------------------------------

pub(crate) async fn open_target(
    tx: &mut impl Transaction,
    name: &str,
    location: &str,
) -> Result<PublishTarget> {
    tx.run(CREATE_TARGET, &[Text(name), Text(location)]).await?;
    let rows = tx.rows(FIND_TARGET, &[Text(name)]).await?;
    read_target(rows.first().ok_or_else(|| corrupt("publish_targets", "a row that was just made is gone"))?)
}

pub(crate) async fn list_targets(tx: &mut impl Transaction) -> Result<Vec<PublishTarget>> {
    tx.rows(LIST_TARGETS, &[]).await?.iter().map(read_target).collect()
}

pub(crate) async fn acquire_lease(
    tx: &mut impl Transaction,
    target: TargetId,
    holder: &str,
    now: UnixSeconds,
    ends_at: UnixSeconds,
) -> Result<Option<Lease>> {
    let rows = tx.rows(FIND_HOLDER, &[Number(target.0)]).await?;
    let before: Option<String> = match rows.first() {
        Some(row) => row.column(0, "publish_targets")?,
        None => return Err(Error::LeaseLost),
    };
    let taken = tx.rows(ACQUIRE, &[Number(target.0), Text(holder), Number(now), Number(ends_at)]).await?;
    let Some(row) = taken.first() else { return Ok(None) };
    Ok(Some(Lease { target, fence: row.column(0, "publish_targets")?, was_released: before.is_none() }))
}

pub(crate) async fn renew_lease(
    tx: &mut impl Transaction,
    lease: &Lease,
    ends_at: UnixSeconds,
) -> Result<()> {
    hold_lease(tx, lease).await?;
    tx.run(RENEW, &[Number(lease.target.0), Number(ends_at)]).await.map(drop)
}

pub(crate) async fn release_lease(
    tx: &mut impl Transaction,
    lease: &Lease,
    at: UnixSeconds,
    error: Option<&str>,
) -> Result<()> {
    hold_lease(tx, lease).await?;
    let arguments =
        [Number(lease.target.0), Number(at), OptionalText(error), OptionalNumber(error.map(|_| at))];
    tx.run(RELEASE, &arguments).await.map(drop)
}

pub(crate) async fn move_target(tx: &mut impl Transaction, lease: &Lease, location: &str) -> Result<()> {
    hold_lease(tx, lease).await?;
    tx.run(MOVE, &[Number(lease.target.0), Text(location)]).await.map(drop)
}

// --- changes to look at ---------------------------------------------------------------------------------------------

pub(crate) async fn note_pending(
    tx: &mut impl Transaction,
    lease: &Lease,
    objects: &[(CacheId, StorePathHash, UnixSeconds)],
    cursor: Option<OutboxPosition>,
) -> Result<()> {
    hold_lease(tx, lease).await?;
    for (cache, hash, since) in objects {
        let arguments = [Number(lease.target.0), Number(cache.0), Bytes(hash.as_bytes()), Number(*since)];
        tx.run(NOTE_PENDING, &arguments).await?;
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

// --- caches ---------------------------------------------------------------------------------------------------------

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

// --- look-ups -------------------------------------------------------------------------------------------------------

pub(crate) async fn find_objects(
    tx: &mut impl Transaction,
    cache: CacheId,
    hashes: &[StorePathHash],
) -> Result<Vec<FoundObject>> {
    assert!(hashes.len() <= KEYS_MAX, "too many objects in one look-up");
    if hashes.is_empty() {
        return Ok(Vec::new());
    }
    let rows = tx.rows(FIND_OBJECTS, &[Number(cache.0), List(&keys(hashes))]).await?;
    rows.iter().map(read_found).collect()
}

pub(crate) async fn find_published(
    tx: &mut impl Transaction,
    target: TargetId,
    cache: CacheId,
    hashes: &[StorePathHash],
) -> Result<Vec<PublishedObject>> {
    assert!(hashes.len() <= KEYS_MAX, "too many objects in one look-up");
    if hashes.is_empty() {
        return Ok(Vec::new());
    }
    let rows = tx.rows(FIND_PUBLISHED, &[Number(target.0), Number(cache.0), List(&keys(hashes))]).await?;
    rows.iter().map(read_published).collect()
}

pub(crate) async fn list_published(
    tx: &mut impl Transaction,
    target: TargetId,
    cache: CacheId,
    after: Option<StorePathHash>,
    limit: u32,
) -> Result<Vec<PublishedObject>> {
    let arguments =
        [Number(target.0), Number(cache.0), Bytes(after_bytes(after.as_ref())), Number(i64::from(limit))];
    tx.rows(LIST_PUBLISHED, &arguments).await?.iter().map(read_published).collect()
}

pub(crate) async fn find_published_nars(
    tx: &mut impl Transaction,
    target: TargetId,
    cache: CacheId,
    nars: &[NarHash],
) -> Result<Vec<PublishedNar>> {
    assert!(nars.len() <= KEYS_MAX, "too many NARs in one look-up");
    if nars.is_empty() {
        return Ok(Vec::new());
    }
    let mut keys: Vec<&[u8]> = nars.iter().map(|nar| nar.as_bytes().as_slice()).collect();
    keys.sort_unstable();
    keys.dedup();
    let rows = tx.rows(FIND_NARS, &[Number(target.0), Number(cache.0), List(&keys)]).await?;
    rows.iter().map(read_published_nar).collect()
}

pub(crate) async fn nars_left_by(
    tx: &mut impl Transaction,
    target: TargetId,
    cache: CacheId,
    hash: &StorePathHash,
) -> Result<Vec<PublishedNar>> {
    let rows = tx.rows(NARS_LEFT, &[Number(target.0), Number(cache.0), Bytes(hash.as_bytes())]).await?;
    rows.iter().map(read_published_nar).collect()
}

pub(crate) async fn due_nars(
    tx: &mut impl Transaction,
    target: TargetId,
    cache: CacheId,
    now: UnixSeconds,
    limit: u32,
) -> Result<Vec<PublishedNar>> {
    let arguments = [Number(target.0), Number(cache.0), Number(now), Number(i64::from(limit))];
    tx.rows(DUE_NARS, &arguments).await?.iter().map(read_published_nar).collect()
}

// --- writing --------------------------------------------------------------------------------------------------------

pub(crate) async fn begin_publishing(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    intents: &[PublishIntent],
) -> Result<()> {
    hold_lease(tx, lease).await?;
    let (target, cache) = (Number(lease.target.0), Number(cache.0));
    for intent in intents {
        let (hash, nar, tag) =
            (Bytes(intent.hash.as_bytes()), Bytes(intent.nar.0.as_bytes()), Bytes(intent.nar.1.as_bytes()));
        tx.run(BEGIN_OBJECT, &[target, cache, hash, nar, tag, Bytes(&[])]).await?;
        tx.run(BEGIN_NAR, &[target, cache, nar, tag, hash, Number(signed(intent.file_size))]).await?;
        if !intent.references.is_empty() {
            tx.run(ADD_REFS, &[target, cache, List(&keys(&intent.references)), hash]).await?;
        }
    }
    Ok(())
}

pub(crate) async fn note_uploaded(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    nars: &[PublishedNar],
) -> Result<()> {
    hold_lease(tx, lease).await?;
    for nar in nars {
        let arguments = [
            Number(lease.target.0),
            Number(cache.0),
            Bytes(nar.nar.0.as_bytes()),
            Bytes(nar.nar.1.as_bytes()),
            Number(signed(nar.file_size)),
            OptionalBytes(nar.file_hash.as_ref().map(|hash| hash.as_bytes().as_slice())),
            OptionalText(nar.etag.as_deref()),
        ];
        tx.run(NOTE_UPLOADED, &arguments).await?;
    }
    Ok(())
}

pub(crate) async fn finish_publishing(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    done: &[PublishDone],
    delete_after: UnixSeconds,
) -> Result<()> {
    hold_lease(tx, lease).await?;
    let place = (lease.target, cache);
    let (target, cache) = (Number(lease.target.0), Number(cache.0));
    for done in done {
        let hash = Bytes(done.hash.as_bytes());
        let before = nar_of(tx, place, &done.hash).await?;
        let arguments = [
            target,
            cache,
            hash,
            Bytes(done.nar.0.as_bytes()),
            Bytes(done.nar.1.as_bytes()),
            Bytes(&done.digest),
            OptionalText(done.etag.as_deref()),
            Number(i64::from(done.upstream)),
        ];
        tx.run(FINISH_OBJECT, &arguments).await?;
        tx.run(DROP_OLD_REFS, &[target, cache, hash, List(&keys(&done.references))]).await?;
        if let Some((nar, tag)) = before.filter(|before| *before != done.nar) {
            let (nar, tag) = (Bytes(nar.as_bytes()), Bytes(tag.as_bytes()));
            tx.run(LEAVE_NAR, &[target, cache, hash, nar, tag, Number(delete_after)]).await?;
        }
        tx.run(DROP_PENDING, &[target, cache, List(&[done.hash.as_bytes()])]).await?;
    }
    Ok(())
}

// --- removing -------------------------------------------------------------------------------------------------------

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

// --- rows -----------------------------------------------------------------------------------------------------------

async fn for_each_nar(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    nars: &[(NarHash, EncodingTag)],
    sql: Sql,
) -> Result<()> {
    for (nar, tag) in nars {
        let arguments =
            [Number(lease.target.0), Number(cache.0), Bytes(nar.as_bytes()), Bytes(tag.as_bytes())];
        tx.run(sql, &arguments).await?;
    }
    Ok(())
}

async fn nar_of(
    tx: &mut impl Transaction,
    (target, cache): Place,
    hash: &StorePathHash,
) -> Result<Option<(NarHash, EncodingTag)>> {
    let rows = tx.rows(FIND_NAR_OF, &[Number(target.0), Number(cache.0), Bytes(hash.as_bytes())]).await?;
    rows.first().map(|row| read_nar(row, 0)).transpose()
}

async fn one<T: Transaction>(tx: &mut T, sql: Sql, arguments: &[Argument<'_>]) -> Result<T::Row> {
    let row = tx.rows(sql, arguments).await?.pop();
    row.ok_or_else(|| corrupt("publish_objects", "a count gave no row"))
}

fn keys(hashes: &[StorePathHash]) -> Vec<&[u8]> {
    hashes.iter().map(|hash| hash.as_bytes().as_slice()).collect()
}

/// Before all hashes, if there is none.
fn after_bytes(after: Option<&StorePathHash>) -> &[u8] {
    after.map_or(&[], |hash| hash.as_bytes().as_slice())
}

fn read_hash(row: &impl crate::rows::Row, column: usize, table: &'static str) -> Result<StorePathHash> {
    Ok(StorePathHash::from_bytes(array(table, row.column(column, table)?)?))
}

fn read_nar(row: &impl crate::rows::Row, first: usize) -> Result<(NarHash, EncodingTag)> {
    let table = "publish_nars";
    Ok((nar_hash(row.column(first, table)?)?, tag(row.column(first + 1, table)?)?))
}

fn read_target(row: &impl crate::rows::Row) -> Result<PublishTarget> {
    let table = "publish_targets";
    let (error, error_at): (Option<String>, Option<i64>) = (row.column(8, table)?, row.column(9, table)?);
    Ok(PublishTarget {
        id: TargetId(row.column(0, table)?),
        name: row.column(1, table)?,
        location: row.column(2, table)?,
        cursor: OutboxPosition { transaction: row.column(3, table)?, number: row.column(4, table)? },
        holder: row.column(5, table)?,
        lease_ends_at: row.column(6, table)?,
        ran_at: row.column(7, table)?,
        error: error.zip(error_at),
    })
}

fn read_published(row: &impl crate::rows::Row) -> Result<PublishedObject> {
    let table = "publish_objects";
    let state = match row.column::<i64>(1, table)? {
        0 => PublishState::Writing,
        1 => PublishState::Published,
        2 => PublishState::Removing,
        other => return Err(corrupt(table, format_args!("state {other}"))),
    };
    let upstream: i64 = row.column(6, table)?;
    Ok(PublishedObject {
        hash: read_hash(row, 0, table)?,
        state,
        nar: read_nar(row, 2)?,
        digest: row.column(4, table)?,
        etag: row.column(5, table)?,
        upstream: upstream != 0,
    })
}

fn read_published_nar(row: &impl crate::rows::Row) -> Result<PublishedNar> {
    let table = "publish_nars";
    let uploaded: i64 = row.column(2, table)?;
    let file_hash: Option<&[u8]> = row.column(4, table)?;
    Ok(PublishedNar {
        nar: read_nar(row, 0)?,
        uploaded: uploaded != 0,
        file_size: unsigned(table, row.column(3, table)?)?,
        file_hash: file_hash.map(nar_hash).transpose()?,
        etag: row.column(5, table)?,
        delete_after: row.column(6, table)?,
    })
}
