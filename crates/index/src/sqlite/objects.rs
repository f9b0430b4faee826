//! Objects, graces and upload aliases: what names a NAR in a cache.

use dormer_nix::StorePathHash;
use sqlx::query;

use super::session::Write;
use super::{KEYS_MAX, SqliteIndex, get, hex_array, nars, outbox};
use crate::Result;
use crate::columns::{pack_references, pack_signatures};
use crate::contract::{Alias, CacheId, FoundObject, NarCommit, NarId, Removal, UnixSeconds};
use crate::key_filter::object_key;
use crate::merge::ObjectChange;
use crate::rows::{read_alias, read_found, read_use};

const TABLE: &str = "objects";

pub(super) const FIND_OBJECT: &str = "
    SELECT n.id, n.hash, n.size, n.file_size, n.tag, n.damaged_at, o.last_used_at,
        o.hash, o.name, o.refs, o.deriver, o.ca, o.sigs, o.system
    FROM objects AS o JOIN nars AS n ON n.id = o.nar
    WHERE o.cache = $1 AND o.hash = $2";

pub(super) const PRESENT_OBJECTS: &str = "
    SELECT o.hash, o.last_used_at
    FROM json_each($2) AS k CROSS JOIN objects AS o CROSS JOIN nars AS n
    WHERE o.cache = $1 AND o.hash = unhex(k.value) AND n.id = o.nar AND n.damaged_at IS NULL
        AND EXISTS (SELECT 1 FROM listings AS l WHERE l.nar = n.id)";

pub(super) const TOUCH_OBJECTS: &str = "
    UPDATE objects SET last_used_at = $3
    WHERE cache = $1 AND hash IN (SELECT unhex(value) FROM json_each($2)) AND last_used_at < $3";

const TOUCH_OBJECT: &str = "
    UPDATE objects SET last_used_at = $3 WHERE cache = $1 AND hash = $2 AND last_used_at < $3";

const WRITE_OBJECT: &str = "
    INSERT INTO objects (cache, hash, nar, created_at, last_used_at, name, deriver, ca, system, sigs, refs)
    VALUES ($1, $2, $3, $4, $4, $5, $6, $7, $8, $9, $10)
    ON CONFLICT (cache, hash) DO UPDATE SET
        created_at = CASE WHEN objects.nar = excluded.nar THEN objects.created_at ELSE excluded.created_at END,
        last_used_at = CASE WHEN objects.last_used_at < excluded.last_used_at
            THEN excluded.last_used_at ELSE objects.last_used_at END,
        nar = excluded.nar, name = excluded.name, deriver = excluded.deriver, ca = excluded.ca,
        system = excluded.system, sigs = excluded.sigs, refs = excluded.refs";

const DELETE_OBJECT: &str = "DELETE FROM objects WHERE cache = $1 AND hash = $2 RETURNING nar";

const WRITE_GRACE: &str = "
    INSERT INTO graces (cache, hash, nar, ends_at) VALUES ($1, $2, $3, $4)
    ON CONFLICT (cache, hash, nar) DO UPDATE SET
        ends_at = CASE WHEN graces.ends_at < excluded.ends_at THEN excluded.ends_at ELSE graces.ends_at END";

// The NAR of the object ($3), and those that the path had before.
pub(super) const DELETE_ALIASES_FOR_CAUSE: &str = "
    DELETE FROM aliases WHERE cache = $1 AND (nar = $3
        OR nar IN (SELECT g.nar FROM graces AS g WHERE g.cache = $1 AND g.hash = $2))";

pub(super) const DELETE_GRACES_FOR_CAUSE: &str = "
    DELETE FROM graces WHERE cache = $1 AND (hash = $2 OR nar = $3)";

pub(super) const FIND_ALIAS: &str = "
    SELECT n.id, n.hash, n.size, n.file_size, n.tag, n.damaged_at, a.compression
    FROM aliases AS a JOIN nars AS n ON n.id = a.nar
    WHERE a.cache = $1 AND a.file_name = $2 AND a.used_at > $3";

impl SqliteIndex {
    pub(super) async fn find_object_row(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
    ) -> Result<Option<FoundObject>> {
        if !self.object_filter.may_contain(object_key(cache.0, hash.as_bytes())) {
            return Ok(None);
        }
        let mut read = self.read("find an object").await?;
        let row = read.optional(query(FIND_OBJECT).bind(cache.0).bind(hash.as_bytes().as_slice())).await?;
        row.map(|row| read_found(&row)).transpose()
    }

    pub(super) async fn present_object_rows(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<(StorePathHash, UnixSeconds)>> {
        assert!(hashes.len() <= KEYS_MAX, "too many objects in one look-up");
        let perhaps: Vec<&[u8]> = hashes
            .iter()
            .filter(|hash| self.object_filter.may_contain(object_key(cache.0, hash.as_bytes())))
            .map(|hash| hash.as_bytes().as_slice())
            .collect();
        if perhaps.is_empty() {
            return Ok(Vec::new());
        }
        let mut read = self.read("look which objects are present").await?;
        let keys = hex_array(perhaps.into_iter());
        let rows = read.all(query(PRESENT_OBJECTS).bind(cache.0).bind(keys)).await?;
        rows.iter().map(read_use).collect()
    }

    pub(super) async fn touch_object_rows(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
        at: UnixSeconds,
    ) -> Result<()> {
        if hashes.is_empty() {
            return Ok(());
        }
        let keys = hex_array(hashes.iter().map(|hash| hash.as_bytes().as_slice()));
        let mut write = self.write("write down uses").await?;
        write.execute(query(TOUCH_OBJECTS).bind(cache.0).bind(keys).bind(at)).await.map(drop)
    }

    pub(super) async fn remove_object_row(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        removal: Removal,
        at: UnixSeconds,
    ) -> Result<bool> {
        let hash_bytes = hash.as_bytes().as_slice();
        let mut write = self.write("remove an object").await?;
        let mut write = write.begin().await?;
        let removed = write.optional(query(DELETE_OBJECT).bind(cache.0).bind(hash_bytes)).await?;
        let nar: Option<i64> = removed.map(|row| get(&row, 0, TABLE)).transpose()?;
        match (removal, nar) {
            (Removal::WithGraceUntil(ends_at), Some(nar)) => {
                write.execute(write_grace(cache, hash, NarId(nar), ends_at)).await?;
            }
            (Removal::WithGraceUntil(_), None) => {}
            // Also when the object went before: its grace ends now.
            (Removal::ForCause, nar) => {
                for statement in [DELETE_ALIASES_FOR_CAUSE, DELETE_GRACES_FOR_CAUSE] {
                    write.execute(query(statement).bind(cache.0).bind(hash_bytes).bind(nar)).await?;
                }
            }
        }
        // Also when the object went before: followers have to know that its grace is over.
        if nar.is_some() || removal == Removal::ForCause {
            write.execute(outbox::insert(cache, Some(hash), at)).await?;
        }
        write.commit().await?;
        Ok(nar.is_some())
    }

    pub(super) async fn find_alias_row(
        &self,
        cache: CacheId,
        file_name: &str,
        since: UnixSeconds,
    ) -> Result<Option<Alias>> {
        let mut read = self.read("find an upload alias").await?;
        let row = read.optional(query(FIND_ALIAS).bind(cache.0).bind(file_name).bind(since)).await?;
        row.map(|row| read_alias(&row)).transpose()
    }
}

/// Carries out a change; returns whether a reader can see it.
pub(super) async fn write(
    write: &mut Write<'_>,
    commit: &NarCommit,
    nar: NarId,
    change: ObjectChange,
) -> Result<bool> {
    let (object, replaced) = match change {
        ObjectChange::Keep => return Ok(false),
        ObjectChange::Touch => {
            let hash = commit.target.path_hash();
            let hash = hash.as_ref().map(|hash| hash.as_bytes().as_slice());
            write.execute(query(TOUCH_OBJECT).bind(commit.cache.0).bind(hash).bind(commit.at)).await?;
            return Ok(false);
        }
        ObjectChange::Write { object, replaced } => (object, replaced),
    };
    let hash = object.path.hash();
    let statement = query(WRITE_OBJECT)
        .bind(commit.cache.0)
        .bind(hash.as_bytes().as_slice())
        .bind(nar.0)
        .bind(commit.at)
        .bind(object.path.name())
        .bind(object.deriver.as_deref())
        .bind(object.ca.as_deref())
        .bind(object.system.as_deref())
        .bind(pack_signatures(&object.sigs))
        .bind(pack_references(&object.path, &object.references));
    write.execute(statement).await?;
    if let Some(replaced) = replaced {
        write.execute(write_grace(commit.cache, &hash, replaced, nars::grace_end(commit.at))).await?;
    }
    Ok(true)
}

fn write_grace(
    cache: CacheId,
    hash: &StorePathHash,
    nar: NarId,
    ends_at: UnixSeconds,
) -> super::session::Statement<'_> {
    query(WRITE_GRACE).bind(cache.0).bind(hash.as_bytes().as_slice()).bind(nar.0).bind(ends_at)
}
