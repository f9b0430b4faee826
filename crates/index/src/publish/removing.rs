//! Before something is removed from a target, and after.

use std::collections::HashSet;

use async_trait::async_trait;
use dormer_nix::StorePathHash;

use super::KEYS_MAX;
use super::contract::{
    Lease, PublishedObject, ReferrersTaken, RemovablePage, Removals, RemovalsBegun, RemoveIndex, TargetId,
};
use super::pending::{DROP_PENDING, NOTE_REMOVED};
use super::published::{absent_of, published_of, served_nars};
use super::records::{Records, records};
use super::rows::{NarKey, after_bytes, keys, nar_records, read_hash};
use super::targets::hold_lease;
use crate::Result;
use crate::contract::{CacheId, UnixSeconds};
use crate::sql::{Argument, Sql, Transaction, both};
use crate::sql_index::SqlIndex;

use Argument::{Bytes, List, Number, Text};

/// Rows looked at together where there may be any number.
const PAGE: i64 = 4_000;

/// Objects whose referrers are looked for together.
const SPREADING_PAGE: i64 = 512;

pub(super) const NOTE_LOST: Sql = records!(
    "INSERT INTO publish_pending (target, cache, hash, since, lost)
     SELECT $1, $2, k.hash, $4, k.lost FROM", 3 { hash: bytes 0, lost: bytes 1 }, "AS k WHERE true
     ON CONFLICT (target, cache, hash) DO UPDATE SET lost = excluded.lost"
);
pub(super) const DELETE_REFS: Sql = both!(
    "DELETE FROM publish_refs WHERE (target, cache, referrer) IN
         (SELECT k.target, k.cache, k.item FROM",
    keyed 3,
    "AS k)"
);
// As in `FORGET_DOCUMENTS`: SQLite searches for all columns only if the first two are given by
// themselves.
pub(super) const DELETE_DOCUMENTS: Sql = Sql {
    sqlite: "
        DELETE FROM publish_documents WHERE target = $1 AND cache = $2 AND hash IN
            (SELECT k.item FROM (SELECT unhex(value) AS item FROM json_each($3)) AS k)",
    postgres: "
        DELETE FROM publish_documents WHERE (target, cache, hash) IN
            (SELECT k.target, k.cache, k.item FROM
                (SELECT $1::bigint AS target, $2::bigint AS cache, item
                    FROM unnest($3::bytea[]) AS l (item) OFFSET 0) AS k)",
};
pub(super) const DELETE_OBJECTS: Sql = both!(
    "DELETE FROM publish_objects WHERE (target, cache, hash) IN
         (SELECT k.target, k.cache, k.item FROM",
    keyed 3,
    "AS k)"
);
// The NAR that an object's row named. A scalar look-up: from NOT EXISTS, PostgreSQL may make a
// table of all rows of the cache.
pub(super) const LEAVE_NARS: Sql = records!(
    "UPDATE publish_nars SET delete_after = k.delete_after, path = k.hash FROM",
    keyed 3 { hash: bytes 0, nar: bytes 1, tag: bytes 2, delete_after: number 3 },
    "AS k WHERE publish_nars.target = k.target AND publish_nars.cache = k.cache AND publish_nars.nar = k.nar
         AND publish_nars.tag = k.tag AND publish_nars.delete_after IS NULL
         AND (SELECT o.hash FROM publish_objects AS o WHERE o.target = $1 AND o.cache = $2
             AND o.nar = publish_nars.nar AND o.tag = publish_nars.tag LIMIT 1) IS NULL"
);
// And those that it named last: an intent may never have become more.
pub(super) const LEAVE_NARS_OF: Sql = records!(
    "UPDATE publish_nars SET delete_after = k.delete_after FROM",
    keyed 3 { hash: bytes 0, nar: bytes 1, tag: bytes 2, delete_after: number 3 },
    "AS k WHERE publish_nars.target = k.target AND publish_nars.cache = k.cache AND publish_nars.path = k.hash
         AND publish_nars.delete_after IS NULL
         AND (SELECT o.hash FROM publish_objects AS o WHERE o.target = $1 AND o.cache = $2
             AND o.nar = publish_nars.nar AND o.tag = publish_nars.tag LIMIT 1) IS NULL"
);
pub(super) const BEGIN_REMOVING: Sql = both!(
    "UPDATE publish_objects SET state = 2, referrers_taken = 0, referrers_after = NULL WHERE (target, cache, hash) IN
         (SELECT k.target, k.cache, k.item FROM",
    keyed 3,
    "AS k)"
);
pub(super) const FIND_SPREADING: Sql = both!(
    "SELECT hash FROM publish_objects
     WHERE target = $1 AND cache = $2 AND state = 2 AND referrers_taken = 0 ORDER BY hash LIMIT $3"
);
// PostgreSQL looks each key up by itself: LATERAL with a limit, and scalar look-ups, are never
// joined in another order. With joins, and rows that nobody has counted, it compared every
// reference of the cache with every key. Only the primary key serves a comparison of the pair.
pub(super) const FIND_REFERRERS: Sql = Sql {
    sqlite: "
        SELECT r.referrer, r.reference FROM (SELECT unhex(value) AS item FROM json_each($3)) AS k
        CROSS JOIN publish_objects AS x CROSS JOIN publish_refs AS r CROSS JOIN publish_objects AS u
        WHERE x.target = $1 AND x.cache = $2 AND x.hash = k.item AND x.upstream = 0
            AND r.target = $1 AND r.cache = $2 AND r.reference = k.item AND r.referrer > coalesce(x.referrers_after, $5)
            AND u.target = $1 AND u.cache = $2 AND u.hash = r.referrer AND u.state <> 2
        LIMIT $4",
    postgres: "
        SELECT r.referrer, r.reference FROM unnest($3::bytea[]) AS k (item)
        CROSS JOIN LATERAL (
            SELECT coalesce(o.referrers_after, $5) AS after FROM publish_objects AS o
            WHERE o.target = $1 AND o.cache = $2 AND o.hash = k.item AND o.upstream = 0 OFFSET 0) AS x
        CROSS JOIN LATERAL (
            SELECT f.referrer, f.reference FROM publish_refs AS f
            WHERE f.target = $1 AND f.cache = $2 AND f.reference = k.item
                AND (f.reference, f.referrer) > (k.item, x.after)
                AND (SELECT u.state FROM publish_objects AS u
                    WHERE u.target = $1 AND u.cache = $2 AND u.hash = f.referrer) <> 2
            LIMIT $4) AS r
        LIMIT $4",
};
// One object with more referrers than a page: they are taken in the order of their hashes.
pub(super) const FIND_REFERRERS_OF: Sql = both!(
    "SELECT p.referrer, u.state
     FROM (SELECT r.referrer FROM publish_objects AS x CROSS JOIN publish_refs AS r
         WHERE x.target = $1 AND x.cache = $2 AND x.hash = $3 AND x.upstream = 0
             AND r.target = $1 AND r.cache = $2 AND r.reference = $3
             AND (r.reference, r.referrer) > ($3, coalesce(x.referrers_after, $4))
         ORDER BY r.reference, r.referrer LIMIT $5) AS p
     LEFT JOIN publish_objects AS u ON u.target = $1 AND u.cache = $2 AND u.hash = p.referrer AND u.state <> 2"
);
pub(super) const SET_AFTER: Sql =
    both!("UPDATE publish_objects SET referrers_after = $4 WHERE target = $1 AND cache = $2 AND hash = $3");
pub(super) const SET_TAKEN: Sql = both!(
    "UPDATE publish_objects SET referrers_taken = 1 WHERE (target, cache, hash) IN
         (SELECT k.target, k.cache, k.item FROM",
    keyed 3,
    "AS k)"
);
pub(super) const REMOVABLE: Sql = both!(
    "SELECT x.hash, CASE WHEN x.upstream = 1 OR NOT EXISTS (
         SELECT 1 FROM publish_refs AS r WHERE r.target = $1 AND r.cache = $2 AND r.reference = x.hash
             AND (r.reference, r.referrer) > (x.hash, '') AND (SELECT u.state <> 2 OR $3 = 0 FROM publish_objects AS u
                 WHERE u.target = $1 AND u.cache = $2 AND u.hash = r.referrer)
     ) THEN CAST(1 AS BIGINT) ELSE CAST(0 AS BIGINT) END
     FROM (SELECT hash, upstream FROM publish_objects
         WHERE target = $1 AND cache = $2 AND state = 2 AND referrers_taken = 1 AND hash > $4
         ORDER BY hash LIMIT $5) AS x"
);
// What the lab serves is what `find_nar_in_cache` finds.
pub(super) const END_GRACES: Sql = both!(
    "UPDATE publish_nars SET delete_after = $4
     WHERE delete_after IS NOT NULL
         AND NOT EXISTS (SELECT 1 FROM nars AS n WHERE n.hash = publish_nars.nar AND (
             EXISTS (SELECT 1 FROM objects AS o WHERE o.nar = n.id AND o.cache = $2)
             OR EXISTS (SELECT 1 FROM graces AS g WHERE g.nar = n.id AND g.cache = $2 AND g.ends_at > $4)
             OR EXISTS (SELECT 1 FROM aliases AS a WHERE a.nar = n.id AND a.cache = $2))
             AND EXISTS (SELECT 1 FROM caches WHERE id = $2 AND deleted_at IS NULL))
         AND (target, cache, path) IN (SELECT k.target, k.cache, k.item FROM",
    keyed 3,
    "AS k)"
);
pub(super) const BEGIN_DELETING: Sql = records!(
    "UPDATE publish_nars SET uploaded = 0 FROM", keyed 3 { nar: bytes 0, tag: bytes 1 }, "AS k
     WHERE publish_nars.target = k.target AND publish_nars.cache = k.cache AND publish_nars.nar = k.nar AND publish_nars.tag = k.tag"
);
pub(super) const FORGET_NARS: Sql = records!(
    "DELETE FROM publish_nars WHERE delete_after IS NOT NULL
     AND (target, cache, nar, tag) IN (SELECT k.target, k.cache, k.nar, k.tag FROM", keyed 3 { nar: bytes 0, tag: bytes 1 }, "AS k)"
);

#[async_trait]
impl RemoveIndex for SqlIndex {
    async fn begin_removing(
        &self,
        lease: &Lease,
        cache: CacheId,
        removals: &Removals,
        at: UnixSeconds,
    ) -> Result<RemovalsBegun> {
        let Removals { gone, replaced, kept } = removals;
        let all: Vec<StorePathHash> = [gone, replaced, kept].into_iter().flatten().copied().collect();
        assert!(all.len() <= KEYS_MAX, "too many objects in one call");
        self.write("begin to remove", async |mut tx| {
            hold_lease(&mut tx, lease).await?;
            let (target, id) = (Number(lease.target.0), Number(cache.0));
            let may_leave = &all[..gone.len() + replaced.len()];
            let there = published_of(&mut tx, (lease.target, cache), may_leave).await?;
            let served = served_nars(&mut tx, cache, &there, at).await?;
            let is_served = |row: &PublishedObject| served.contains(&row.nar.0);
            let gone: HashSet<&StorePathHash> = gone.iter().collect();
            let leaving: Vec<&PublishedObject> =
                there.iter().filter(|row| gone.contains(&row.hash) || !is_served(row)).collect();
            let mut begun = RemovalsBegun {
                leaving: leaving.len() as u64,
                unserved: leaving.iter().filter(|row| !is_served(row) && !row.was_found()).count() as u64,
                graces_ended: 0,
            };
            if !leaving.is_empty() {
                let leaving = keys(leaving.into_iter().map(|row| &row.hash));
                tx.run(BEGIN_REMOVING, &[target, id, List(&leaving)]).await?;
            }
            if !all.is_empty() {
                begun.graces_ended = tx.run(END_GRACES, &[target, id, List(&keys(&all)), Number(at)]).await?;
            }
            let there: HashSet<&StorePathHash> = there.iter().map(|row| &row.hash).collect();
            let settled = keys(gone.into_iter().filter(|hash| !there.contains(hash)));
            settle_removed(&mut tx, (target, id), &settled, at).await?;
            if !settled.is_empty() {
                tx.run(DROP_PENDING, &[target, id, List(&settled)]).await?;
            }
            Ok(begun)
        })
        .await
    }

    async fn take_referrers(&self, lease: &Lease, cache: CacheId, at: UnixSeconds) -> Result<ReferrersTaken> {
        self.write("take referrers along", async |mut tx| {
            let (target, cache) = (Number(lease.target.0), Number(cache.0));
            // Looked up first: most runs find nothing, and then write nothing.
            let spreading = tx.rows(FIND_SPREADING, &[target, cache, Number(SPREADING_PAGE)]).await?;
            hold_lease(&mut tx, lease).await?;
            if spreading.is_empty() {
                return Ok(ReferrersTaken::default());
            }
            let spreading: Vec<&[u8]> =
                spreading.iter().map(|row| row.column(0, "publish_objects")).collect::<Result<_>>()?;
            let rows =
                tx.rows(FIND_REFERRERS, &[target, cache, List(&spreading), Number(PAGE), Bytes(&[])]).await?;
            if i64::try_from(rows.len()).is_ok_and(|count| count < PAGE) {
                let referrers = rows
                    .iter()
                    .map(|row| Ok((row.column(0, "publish_refs")?, row.column(1, "publish_refs")?)))
                    .collect::<Result<_>>()?;
                let taken = take(&mut tx, target, cache, at, referrers).await?;
                tx.run(SET_TAKEN, &[target, cache, List(&spreading)]).await?;
                return Ok(ReferrersTaken { taken, more: true });
            }
            // Too many for one step: those of the first object only, after the last that was looked
            // at.
            let first = spreading[0];
            let arguments = [target, cache, Bytes(first), Bytes(&[]), Number(PAGE)];
            let rows = tx.rows(FIND_REFERRERS_OF, &arguments).await?;
            let (mut last, mut referrers): (&[u8], _) = (&[], Vec::new());
            for row in &rows {
                let referrer: &[u8] = row.column(0, "publish_refs")?;
                last = last.max(referrer);
                if row.column::<Option<i64>>(1, "publish_objects")?.is_some() {
                    referrers.push((referrer, first));
                }
            }
            let taken = take(&mut tx, target, cache, at, referrers).await?;
            if i64::try_from(rows.len()).is_ok_and(|count| count < PAGE) {
                tx.run(SET_TAKEN, &[target, cache, List(&[first])]).await?;
            } else {
                tx.run(SET_AFTER, &[target, cache, Bytes(first), Bytes(last)]).await?;
            }
            Ok(ReferrersTaken { taken, more: true })
        })
        .await
    }

    async fn removable(
        &self,
        target: TargetId,
        cache: CacheId,
        any: bool,
        after: Option<StorePathHash>,
        limit: u32,
    ) -> Result<RemovablePage> {
        self.read("find what to remove next", async |mut tx| {
            let arguments = [
                Number(target.0),
                Number(cache.0),
                Number(i64::from(any)),
                Bytes(after_bytes(after.as_ref())),
                Number(i64::from(limit)),
            ];
            let mut page = RemovablePage::default();
            for row in &tx.rows(REMOVABLE, &arguments).await? {
                let hash = read_hash(row, 0, "publish_objects")?;
                page.next = page.next.max(Some(hash));
                if row.column::<i64>(1, "publish_objects")? != 0 {
                    page.hashes.push(hash);
                }
            }
            page.hashes.sort_unstable();
            Ok(page)
        })
        .await
    }

    async fn finish_removing(
        &self,
        lease: &Lease,
        cache: CacheId,
        hashes: &[StorePathHash],
        grace_ends_at: UnixSeconds,
        at: UnixSeconds,
    ) -> Result<()> {
        assert!(hashes.len() <= KEYS_MAX, "too many objects in one call");
        self.write("note what was removed", async |mut tx| {
            hold_lease(&mut tx, lease).await?;
            let (target, id) = (Number(lease.target.0), Number(cache.0));
            let there = published_of(&mut tx, (lease.target, cache), hashes).await?;
            let served = served_nars(&mut tx, cache, &there, at).await?;
            // Those that were taken along are looked at again.
            let absent = absent_of(&mut tx, cache, hashes).await?;
            let is_absent: HashSet<&StorePathHash> = absent.iter().collect();
            // A referrer of an upstream's path finds that path elsewhere. Only rows count: a
            // repeated call finds none, and must not take such a path for removed.
            let removed = there.iter().filter(|row| !row.upstream && is_absent.contains(&row.hash));
            let removed = keys(removed.map(|row| &row.hash));
            settle_removed(&mut tx, (target, id), &removed, at).await?;
            if !absent.is_empty() {
                tx.run(DROP_PENDING, &[target, id, List(&keys(&absent))]).await?;
            }
            let all = keys(hashes);
            for delete in [DELETE_OBJECTS, DELETE_REFS, DELETE_DOCUMENTS] {
                tx.run(delete, &[target, id, List(&all)]).await?;
            }
            let mut records = Records::default();
            for row in &there {
                let has_grace = served.contains(&row.nar.0) || row.was_found();
                records.row().bytes(row.hash.as_bytes());
                records.bytes(row.nar.0.as_bytes()).bytes(row.nar.1.as_bytes());
                records.number(if has_grace { grace_ends_at } else { at });
            }
            let records = records.finish();
            tx.run(LEAVE_NARS, &[target, id, Text(&records)]).await?;
            tx.run(LEAVE_NARS_OF, &[target, id, Text(&records)]).await.map(drop)
        })
        .await
    }

    async fn begin_deleting_nars(&self, lease: &Lease, cache: CacheId, nars: &[NarKey]) -> Result<()> {
        self.write("begin to delete NARs", async |mut tx| {
            hold_lease(&mut tx, lease).await?;
            let nars = nar_records(nars);
            tx.run(BEGIN_DELETING, &[Number(lease.target.0), Number(cache.0), Text(&nars)]).await.map(drop)
        })
        .await
    }

    async fn finish_deleting_nars(&self, lease: &Lease, cache: CacheId, nars: &[NarKey]) -> Result<()> {
        self.write("forget deleted NARs", async |mut tx| {
            hold_lease(&mut tx, lease).await?;
            let nars = nar_records(nars);
            tx.run(FORGET_NARS, &[Number(lease.target.0), Number(cache.0), Text(&nars)]).await.map(drop)
        })
        .await
    }
}

/// Writes down that the cache has these objects no more.
async fn settle_removed(
    tx: &mut Transaction,
    (target, cache): (Argument<'_>, Argument<'_>),
    hashes: &[&[u8]],
    at: UnixSeconds,
) -> Result<()> {
    if hashes.is_empty() {
        return Ok(());
    }
    tx.run(NOTE_REMOVED, &[target, cache, List(hashes), Number(at)]).await.map(drop)
}

/// Writes down that these referrers, each with a reference that it loses, are being removed.
/// Returns how many are new.
async fn take(
    tx: &mut Transaction,
    target: Argument<'_>,
    cache: Argument<'_>,
    at: UnixSeconds,
    mut referrers: Vec<(&[u8], &[u8])>,
) -> Result<u64> {
    if referrers.is_empty() {
        return Ok(0);
    }
    // A path that loses several references is told of one of them.
    referrers.sort_unstable();
    referrers.dedup_by_key(|(referrer, _)| *referrer);
    let mut records = Records::default();
    for (referrer, reference) in &referrers {
        records.row().bytes(referrer).bytes(reference);
    }
    tx.run(NOTE_LOST, &[target, cache, Text(&records.finish()), Number(at)]).await?;
    let referrers: Vec<&[u8]> = referrers.into_iter().map(|(referrer, _)| referrer).collect();
    tx.run(BEGIN_REMOVING, &[target, cache, List(&referrers)]).await
}
