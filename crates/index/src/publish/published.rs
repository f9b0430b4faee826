//! What is written down of objects and of NAR files.

use std::collections::HashSet;

use async_trait::async_trait;
use dormer_nix::{NarHash, StorePathHash};

use super::KEYS_MAX;
use super::contract::{NarRows, ObjectRows, PublishedIndex, PublishedNar, PublishedObject, TargetId};
use super::rows::{NarKey, after_bytes, keys, read_hash, read_nar, read_published, read_published_nar};
use crate::Result;
use crate::columns::nar_hash;
use crate::contract::{CacheId, FoundObject, UnixSeconds};
use crate::rows::read_found;
use crate::sql::{Argument, Sql, Transaction, both, damaged};
use crate::sql_index::SqlIndex;

use Argument::{Bytes, List, Number};

// CROSS JOIN: from the keys to their rows, never the other way round.
pub(super) const FIND_OBJECTS: Sql = both!(
    concat!("SELECT n.id, n.hash, n.size, n.file_size, n.tag, ", damaged!("n"), ", o.last_used_at,
        o.hash, o.name, o.refs, o.deriver, o.ca, o.sigs, o.system, o.extra
     FROM"), list 2, "AS k CROSS JOIN objects AS o CROSS JOIN nars AS n
     WHERE o.cache = $1 AND o.hash = k.item AND n.id = o.nar
         AND EXISTS (SELECT 1 FROM caches WHERE id = $1 AND deleted_at IS NULL)"
);
pub(super) const FIND_PUBLISHED: Sql = both!(
    "SELECT o.hash, o.state, o.nar, o.tag, o.digest, o.etag, o.upstream FROM", keyed 3, "AS k CROSS JOIN publish_objects AS o
     WHERE o.target = k.target AND o.cache = k.cache AND o.hash = k.item"
);
// SQLite cannot begin a range of an index of expressions with a row of values. It reads the rest of
// the first byte's rows and the rows of the bytes behind it, a page of each; `in_name_order` makes
// one page of both.
pub(super) const LIST_PUBLISHED: Sql = Sql {
    sqlite: "
        SELECT * FROM (
            SELECT o.hash, o.state, o.nar, o.tag, o.digest, o.etag, o.upstream FROM publish_objects AS o
            WHERE o.target * 4294967296 + o.cache = $1 * 4294967296 + $2
                AND substr(o.hash, 20, 1) = $3 AND o.hash > $4
            ORDER BY o.hash LIMIT $6) AS p
        UNION ALL SELECT * FROM (
            SELECT o.hash, o.state, o.nar, o.tag, o.digest, o.etag, o.upstream FROM publish_objects AS o
            WHERE o.target * 4294967296 + o.cache = $1 * 4294967296 + $2
                AND substr(o.hash, 20, 1) > $3 AND substr(o.hash, 20, 1) <= $5
            ORDER BY substr(o.hash, 20, 1), o.hash LIMIT $6) AS p",
    postgres: "
        SELECT o.hash, o.state, o.nar, o.tag, o.digest, o.etag, o.upstream FROM publish_objects AS o
        WHERE o.target * 4294967296 + o.cache = $1 * 4294967296 + $2
            AND (substr(o.hash, 20, 1), o.hash) > ($3, $4) AND substr(o.hash, 20, 1) <= $5
        ORDER BY substr(o.hash, 20, 1), o.hash LIMIT $6",
};
pub(super) const FIND_NARS: Sql = both!(
    "SELECT n.nar, n.tag, n.uploaded, n.file_size, n.file_hash, n.etag, n.delete_after
     FROM", keyed 3, "AS k CROSS JOIN publish_nars AS n
     WHERE n.target = k.target AND n.cache = k.cache AND n.nar = k.item"
);
pub(super) const LIST_NARS: Sql = Sql {
    sqlite: "
        SELECT * FROM (
            SELECT n.nar, n.tag, n.uploaded, n.file_size, n.file_hash, n.etag, n.delete_after
            FROM publish_nars AS n
            WHERE n.target * 4294967296 + n.cache = $1 * 4294967296 + $2
                AND substr(n.nar, 32, 1) = $3 AND (n.nar, n.tag) > ($4, $5)
            ORDER BY n.nar, n.tag LIMIT $7) AS p
        UNION ALL SELECT * FROM (
            SELECT n.nar, n.tag, n.uploaded, n.file_size, n.file_hash, n.etag, n.delete_after
            FROM publish_nars AS n
            WHERE n.target * 4294967296 + n.cache = $1 * 4294967296 + $2
                AND substr(n.nar, 32, 1) > $3 AND substr(n.nar, 32, 1) <= $6
            ORDER BY substr(n.nar, 32, 1), n.nar, n.tag LIMIT $7) AS p",
    postgres: "
        SELECT n.nar, n.tag, n.uploaded, n.file_size, n.file_hash, n.etag, n.delete_after
        FROM publish_nars AS n
        WHERE n.target * 4294967296 + n.cache = $1 * 4294967296 + $2
            AND (substr(n.nar, 32, 1), n.nar, n.tag) > ($3, $4, $5) AND substr(n.nar, 32, 1) <= $6
        ORDER BY substr(n.nar, 32, 1), n.nar, n.tag LIMIT $7",
};
// What the lab serves is what `find_nar_in_cache` finds.
pub(super) const FIND_SERVED: Sql = both!(
    "SELECT n.hash FROM", list 2, "AS k CROSS JOIN nars AS n
     WHERE n.hash = k.item AND EXISTS (
         SELECT 1 FROM objects AS o WHERE o.nar = n.id AND o.cache = $1
         UNION ALL SELECT 1 FROM graces AS g WHERE g.nar = n.id AND g.cache = $1 AND g.ends_at > $3
         UNION ALL SELECT 1 FROM aliases AS a WHERE a.nar = n.id AND a.cache = $1)
         AND EXISTS (SELECT 1 FROM caches WHERE id = $1 AND deleted_at IS NULL)"
);
pub(super) const DUE_NARS: Sql = both!(
    "SELECT n.nar, n.tag, n.uploaded, n.file_size, n.file_hash, n.etag, n.delete_after FROM publish_nars AS n
     WHERE n.target = $1 AND n.cache = $2 AND n.delete_after <= $3
         AND NOT EXISTS (SELECT 1 FROM publish_objects AS o
             WHERE o.target = n.target AND o.cache = n.cache AND o.nar = n.nar AND o.tag = n.tag)
     ORDER BY n.delete_after LIMIT $4"
);
pub(super) const FIND_NARS_OF: Sql = both!(
    "SELECT o.hash, o.nar, o.tag FROM", keyed 3, "AS k CROSS JOIN publish_objects AS o
     WHERE o.target = k.target AND o.cache = k.cache AND o.hash = k.item"
);
// Scalar look-ups: from NOT EXISTS, PostgreSQL may make a table of all objects of the cache.
pub(super) const FIND_ABSENT: Sql = both!(
    "SELECT k.item FROM", list 2, "AS k
     WHERE (SELECT o.id FROM objects AS o WHERE o.cache = $1 AND o.hash = k.item) IS NULL
         OR (SELECT c.id FROM caches AS c WHERE c.id = $1 AND c.deleted_at IS NULL) IS NULL"
);

#[async_trait]
impl PublishedIndex for SqlIndex {
    async fn find_objects(&self, cache: CacheId, hashes: &[StorePathHash]) -> Result<Vec<FoundObject>> {
        assert!(hashes.len() <= KEYS_MAX, "too many objects in one look-up");
        if hashes.is_empty() {
            return Ok(Vec::new());
        }
        self.read("find objects", async |mut tx| {
            let rows = tx.rows(FIND_OBJECTS, &[Number(cache.0), List(&keys(hashes))]).await?;
            rows.iter().map(read_found).collect()
        })
        .await
    }

    async fn published_objects(
        &self,
        target: TargetId,
        cache: CacheId,
        rows: ObjectRows<'_>,
    ) -> Result<Vec<PublishedObject>> {
        self.read("find published objects", async |mut tx| match &rows {
            ObjectRows::Of(hashes) => published_of(&mut tx, (target, cache), hashes).await,
            ObjectRows::Page { bytes, after, limit } => {
                let hash = after_bytes(after.as_ref());
                // Before all rows that begin with the first byte, if there is no row to go on
                // after.
                let first = [hash.last().copied().unwrap_or(*bytes.start())];
                let arguments = [
                    Number(target.0),
                    Number(cache.0),
                    Bytes(&first),
                    Bytes(hash),
                    Bytes(std::slice::from_ref(bytes.end())),
                    Number(i64::from(*limit)),
                ];
                let rows = tx.rows(LIST_PUBLISHED, &arguments).await?;
                let page: Result<Vec<_>> = rows.iter().map(read_published).collect();
                Ok(in_name_order(page?, *limit, |row| (row.hash.as_bytes()[19], row.hash)))
            }
        })
        .await
    }

    async fn published_nars(
        &self,
        target: TargetId,
        cache: CacheId,
        rows: NarRows<'_>,
    ) -> Result<Vec<PublishedNar>> {
        let (target, cache) = (Number(target.0), Number(cache.0));
        self.read("find published NARs", async |mut tx| match &rows {
            NarRows::Of(nars) => {
                assert!(nars.len() <= KEYS_MAX, "too many NARs in one look-up");
                let mut keys: Vec<&[u8]> = nars.iter().map(|nar| nar.as_bytes().as_slice()).collect();
                keys.sort_unstable();
                keys.dedup();
                let rows = tx.rows(FIND_NARS, &[target, cache, List(&keys)]).await?;
                rows.iter().map(read_published_nar).collect()
            }
            NarRows::Page { bytes, after, limit } => {
                let (nar, tag): (&[u8], &[u8]) = match after {
                    Some((nar, tag)) => (nar.as_bytes(), tag.as_bytes()),
                    None => (&[], &[]),
                };
                // Before all rows that begin with the first byte, if there is no row to go on
                // after.
                let first = [nar.last().copied().unwrap_or(*bytes.start())];
                let arguments = [
                    target,
                    cache,
                    Bytes(&first),
                    Bytes(nar),
                    Bytes(tag),
                    Bytes(std::slice::from_ref(bytes.end())),
                    Number(i64::from(*limit)),
                ];
                let rows = tx.rows(LIST_NARS, &arguments).await?;
                let page: Result<Vec<_>> = rows.iter().map(read_published_nar).collect();
                Ok(in_name_order(page?, *limit, |row| (row.nar.0.as_bytes()[31], row.nar)))
            }
            NarRows::Due { at, limit } => {
                let arguments = [target, cache, Number(*at), Number(i64::from(*limit))];
                tx.rows(DUE_NARS, &arguments).await?.iter().map(read_published_nar).collect()
            }
        })
        .await
    }
}

/// The rows of these objects.
pub(super) async fn published_of(
    tx: &mut Transaction,
    (target, cache): (TargetId, CacheId),
    hashes: &[StorePathHash],
) -> Result<Vec<PublishedObject>> {
    assert!(hashes.len() <= KEYS_MAX, "too many objects in one look-up");
    if hashes.is_empty() {
        return Ok(Vec::new());
    }
    let rows = tx.rows(FIND_PUBLISHED, &[Number(target.0), Number(cache.0), List(&keys(hashes))]).await?;
    rows.iter().map(read_published).collect()
}

/// The NARs that the rows of these objects name.
pub(super) async fn nars_of(
    tx: &mut Transaction,
    (target, cache): (TargetId, CacheId),
    hashes: &[&[u8]],
) -> Result<Vec<(StorePathHash, NarKey)>> {
    let rows = tx.rows(FIND_NARS_OF, &[Number(target.0), Number(cache.0), List(hashes)]).await?;
    rows.iter().map(|row| Ok((read_hash(row, 0, "publish_objects")?, read_nar(row, 1)?))).collect()
}

/// Those of the NARs of these objects that the lab serves in the cache at this time: through an
/// object, a grace that has not ended, or an alias.
pub(super) async fn served_nars(
    tx: &mut Transaction,
    cache: CacheId,
    objects: &[PublishedObject],
    now: UnixSeconds,
) -> Result<HashSet<NarHash>> {
    if objects.is_empty() {
        return Ok(HashSet::new());
    }
    let nars: HashSet<&[u8]> = objects.iter().map(|object| object.nar.0.as_bytes().as_slice()).collect();
    let nars: Vec<&[u8]> = nars.into_iter().collect();
    let rows = tx.rows(FIND_SERVED, &[Number(cache.0), List(&nars), Number(now)]).await?;
    rows.iter().map(|row| nar_hash(row.column(0, "nars")?)).collect()
}

/// Those of these objects that the cache does not have.
pub(super) async fn absent_of(
    tx: &mut Transaction,
    cache: CacheId,
    hashes: &[StorePathHash],
) -> Result<HashSet<StorePathHash>> {
    let rows = tx.rows(FIND_ABSENT, &[Number(cache.0), List(&keys(hashes))]).await?;
    rows.iter().map(|row| read_hash(row, 0, "objects")).collect()
}

/// The first `limit` rows of up to two pages, in the order of names: a name begins with the last
/// byte of its hash.
fn in_name_order<T, K: Ord>(mut rows: Vec<T>, limit: u32, key: impl FnMut(&T) -> K) -> Vec<T> {
    rows.sort_by_key(key);
    rows.truncate(limit as usize);
    rows
}
