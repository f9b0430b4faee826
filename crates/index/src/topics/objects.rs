//! Objects, graces and upload aliases: what names a NAR in a cache.

use async_trait::async_trait;
use dormer_nix::{StorePath, StorePathHash};

use super::counters::generation;
use super::{KEYS_MAX, documents, journal_notes, outbox};
use crate::Result;
use crate::changes::Change;
use crate::columns::{pack_fields, pack_references, pack_signatures, store_path, unpack_references};
use crate::contract::{
    Alias, CacheId, FoundObject, JournalSubject, NarCommit, NarId, ObjectIndex, Removal, UnixSeconds, Use,
};
use crate::object_conflict::ObjectChange;
use crate::publish::records::{Records, records};
use crate::rows::{read_alias, read_found, read_use};
use crate::sql::Argument::{Bytes, Flag, List, Number, OptionalText, Text};
use crate::sql::{Sql, Transaction, both, damaged};
use crate::sql_index::{Lock, SqlIndex, Write};

macro_rules! find_object {
    ($more:literal) => {
        both!(concat!(
            "SELECT n.id, n.hash, n.size, n.file_size, n.tag, ",
            damaged!("n"),
            ", o.last_used_at,
                 o.hash, o.name, o.refs, o.deriver, o.ca, o.sigs, o.system, o.extra",
            $more,
            " FROM objects AS o JOIN nars AS n ON n.id = o.nar
             WHERE o.cache = $1 AND o.hash = $2
                 AND EXISTS (SELECT 1 FROM caches WHERE id = $1 AND deleted_at IS NULL)"
        ))
    };
}
pub(crate) const FIND_OBJECT: Sql = find_object!("");
// The name of a log is that of its derivation behind `log/`.
pub(crate) const FIND_OBJECT_AND_LOG: Sql = find_object!(
    ", EXISTS (SELECT 1 FROM documents AS l WHERE l.cache = $1 AND l.name = 'log/' || o.deriver)"
);

// CROSS JOIN: from the keys to their rows, never the other way round.
pub(crate) const PRESENT_OBJECTS: Sql = both!(
    "SELECT o.hash, o.pushed_at FROM", list 2, "AS k CROSS JOIN objects AS o CROSS JOIN nars AS n
     WHERE o.cache = $1 AND o.hash = k.item AND n.id = o.nar AND n.damaged_at IS NULL
         AND NOT EXISTS (SELECT 1 FROM damaged_nars AS d CROSS JOIN chunks AS dc
             WHERE d.nar = n.id AND dc.number = d.chunk AND dc.damaged_at IS NOT NULL)
         AND EXISTS (SELECT 1 FROM listings AS l WHERE l.nar = n.id)
         AND EXISTS (SELECT 1 FROM caches WHERE id = $1 AND deleted_at IS NULL)"
);

// On PostgreSQL locked in the order of their hashes: replicas record the same uses at the same
// time.
pub(crate) const TOUCH_OBJECTS: Sql = Sql {
    sqlite: "
        UPDATE objects SET last_used_at = max(last_used_at, $3),
            pushed_at = CASE WHEN $4 THEN max(pushed_at, $3) ELSE pushed_at END
        WHERE cache = $1 AND hash IN (SELECT unhex(value) FROM json_each($2))
            AND (last_used_at < $3 OR $4 AND pushed_at < $3)",
    postgres: "
        WITH held AS MATERIALIZED (
            SELECT o.id FROM objects AS o
            WHERE o.cache = $1 AND o.hash = ANY ($2) AND (o.last_used_at < $3 OR $4 AND o.pushed_at < $3)
            ORDER BY o.hash FOR NO KEY UPDATE)
        UPDATE objects SET last_used_at = greatest(objects.last_used_at, $3),
            pushed_at = CASE WHEN $4 THEN greatest(objects.pushed_at, $3) ELSE objects.pushed_at END
        FROM held WHERE objects.id = held.id",
};

// The last push is never later than the last use.
const TOUCH_OBJECT: Sql = both!(
    "UPDATE objects SET pushed_at = $3, last_used_at = CASE WHEN last_used_at < $3 THEN $3 ELSE last_used_at END
     WHERE cache = $1 AND hash = $2 AND pushed_at < $3"
);

// Of a NAR that is gone by now the size is 0, and the reference to it fails.
const WRITE_OBJECT: Sql = both!(concat!(
    "INSERT INTO objects (cache, hash, nar, created_at, last_used_at, pushed_at, name, deriver, ca, system, sigs,
         refs, extra, nar_size, counted)
     VALUES ($1, $2, $3, $4, $4, $4, $5, $6, $7, $8, $9, $10, $11,
         coalesce((SELECT n.size FROM nars AS n WHERE n.id = $3), 0), ",
    generation!(),
    ")
     ON CONFLICT (cache, hash) DO UPDATE SET
         created_at = CASE WHEN objects.nar = excluded.nar THEN objects.created_at ELSE excluded.created_at END,
         last_used_at = CASE WHEN objects.last_used_at < excluded.last_used_at
             THEN excluded.last_used_at ELSE objects.last_used_at END,
         pushed_at = CASE WHEN objects.pushed_at < excluded.pushed_at THEN excluded.pushed_at ELSE objects.pushed_at END,
         nar_size = excluded.nar_size,
         nar = excluded.nar, name = excluded.name, deriver = excluded.deriver, ca = excluded.ca,
         system = excluded.system, sigs = excluded.sigs, refs = excluded.refs,
         extra = excluded.extra"
));

const DELETE_OBJECT: Sql = both!(
    "DELETE FROM objects WHERE cache = $1 AND hash = $2
         AND EXISTS (SELECT 1 FROM caches WHERE id = $1 AND deleted_at IS NULL)
     RETURNING nar, name, refs, deriver"
);

pub(crate) const ADD_REFS: Sql = both!(
    "INSERT INTO object_refs (cache, reference, referrer) SELECT $1, k.item, $2 FROM", list 3, "AS k WHERE true
     ON CONFLICT (cache, reference, referrer) DO NOTHING"
);

pub(crate) const DROP_REFS: Sql = records!(
    "DELETE FROM object_refs WHERE cache = $1
         AND (reference, referrer) IN (SELECT k.reference, k.referrer FROM", 2 { reference: bytes 0, referrer: bytes 1 }, "AS k)"
);

const WRITE_GRACE: Sql = both!(
    "INSERT INTO graces (cache, hash, nar, ends_at) VALUES ($1, $2, $3, $4)
     ON CONFLICT (cache, hash, nar) DO UPDATE SET
         ends_at = CASE WHEN graces.ends_at < excluded.ends_at THEN excluded.ends_at ELSE graces.ends_at END"
);

// A statement for each NAR that the path has or had: joined by OR, both databases would read all
// aliases of the cache. A path had few NARs in the time of a grace.
// The plus keeps SQLite from choosing the primary key, which begins with the cache.
pub(crate) const DELETE_ALIASES_OF_NAR: Sql = Sql {
    sqlite: "DELETE FROM aliases WHERE nar = $2 AND +cache = $1 RETURNING file_name",
    postgres: "DELETE FROM aliases WHERE nar = $2 AND cache = $1 RETURNING file_name",
};

pub(crate) const DELETE_GRACES_OF_NAR: Sql = Sql {
    sqlite: "DELETE FROM graces WHERE nar = $2 AND +cache = $1",
    postgres: "DELETE FROM graces WHERE nar = $2 AND cache = $1",
};

pub(crate) const DELETE_GRACES_OF_PATH: Sql =
    both!("DELETE FROM graces WHERE cache = $1 AND hash = $2 RETURNING nar");

pub(crate) const FIND_ALIAS: Sql = both!(concat!(
    "SELECT n.id, n.hash, n.size, n.file_size, n.tag, ",
    damaged!("n"),
    ", a.compression
     FROM aliases AS a JOIN nars AS n ON n.id = a.nar
     WHERE a.cache = $1 AND a.file_name = $2 AND a.used_at > $3
         AND EXISTS (SELECT 1 FROM caches WHERE id = $1 AND deleted_at IS NULL)"
));

#[async_trait]
impl ObjectIndex for SqlIndex {
    async fn find_object(&self, cache: CacheId, hash: &StorePathHash) -> Result<Option<FoundObject>> {
        if !self.known.may_have_object(cache, hash) {
            return Ok(None);
        }
        self.read("find an object", async |mut tx| {
            let row = tx.optional(FIND_OBJECT, &[Number(cache.0), Bytes(hash.as_bytes())]).await?;
            row.map(|row| read_found(&row)).transpose()
        })
        .await
    }

    async fn find_object_and_log(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
    ) -> Result<Option<(FoundObject, bool)>> {
        if !self.known.may_have_object(cache, hash) {
            return Ok(None);
        }
        self.read("find an object and its log", async |mut tx| {
            let row = tx.optional(FIND_OBJECT_AND_LOG, &[Number(cache.0), Bytes(hash.as_bytes())]).await?;
            row.map(|row| Ok((read_found(&row)?, row.column(15, "documents")?))).transpose()
        })
        .await
    }

    async fn present_objects(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<(StorePathHash, UnixSeconds)>> {
        assert!(hashes.len() <= KEYS_MAX, "too many objects in one look-up");
        let possible = hashes.iter().filter(|hash| self.known.may_have_object(cache, hash));
        let mut keys: Vec<&[u8]> = possible.map(|hash| hash.as_bytes().as_slice()).collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        keys.sort_unstable();
        keys.dedup();
        self.read("look which objects are present", async |mut tx| {
            tx.rows(PRESENT_OBJECTS, &[Number(cache.0), List(&keys)]).await?.iter().map(read_use).collect()
        })
        .await
    }

    async fn touch_objects(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
        kind: Use,
        at: UnixSeconds,
    ) -> Result<()> {
        if hashes.is_empty() {
            return Ok(());
        }
        let keys: Vec<&[u8]> = hashes.iter().map(|hash| hash.as_bytes().as_slice()).collect();
        self.write("record uses", async |mut tx| {
            let touch = [Number(cache.0), List(&keys), Number(at), Flag(kind == Use::Push)];
            tx.run(TOUCH_OBJECTS, &touch).await.map(drop)
        })
        .await
    }

    async fn remove_object(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        removal: Removal,
        at: UnixSeconds,
    ) -> Result<bool> {
        let locks = [Lock::CacheShared(cache.0), Lock::object(cache.0, hash.as_bytes())];
        let write = Write::from("remove an object").unless_done().with_locks(&locks);
        self.write(write, async |mut tx| remove(&mut tx, cache, hash, removal, at).await).await
    }

    async fn find_alias(&self, cache: CacheId, file_name: &str, since: UnixSeconds) -> Result<Option<Alias>> {
        self.read("find an upload alias", async |mut tx| {
            let row = tx.optional(FIND_ALIAS, &[Number(cache.0), Text(file_name), Number(since)]).await?;
            row.map(|row| read_alias(&row)).transpose()
        })
        .await
    }
}

/// Removes an object; returns whether it was there. The caller holds the locks.
pub(crate) async fn remove(
    tx: &mut Transaction,
    cache: CacheId,
    hash: &StorePathHash,
    removal: Removal,
    at: UnixSeconds,
) -> Result<bool> {
    let path = [Number(cache.0), Bytes(hash.as_bytes())];
    let (mut nar, mut deriver) = (None, None);
    if let Some(row) = tx.optional(DELETE_OBJECT, &path).await? {
        nar = Some(row.column::<i64>(0, "objects")?);
        deriver = row.column::<Option<String>>(3, "objects")?;
        let path = store_path(hash.as_bytes(), row.column(1, "objects")?)?;
        let references = unpack_references(&path, row.column(2, "objects")?)?;
        let pairs: Vec<_> = references.iter().map(|reference| (reference.hash(), *hash)).collect();
        drop_refs(tx, cache, &pairs).await?;
    }
    documents::forget(tx, cache, hash, deriver.as_deref()).await?;
    match (removal, nar) {
        (Removal::WithGraceUntil(ends_at), Some(nar)) => {
            write_grace(tx, cache, hash, NarId(nar), ends_at).await?;
        }
        (Removal::WithGraceUntil(_), None) => {}
        // Also when the object went before: its grace ends now.
        (Removal::ForCause, nar) => {
            if let Some(nar) = nar {
                tx.run(DELETE_GRACES_OF_NAR, &[Number(cache.0), Number(nar)]).await?;
            }
            let mut nars: Vec<i64> = nar.into_iter().collect();
            for row in tx.rows(DELETE_GRACES_OF_PATH, &path).await? {
                nars.push(row.column(0, "graces")?);
            }
            for nar in nars {
                for row in tx.rows(DELETE_ALIASES_OF_NAR, &[Number(cache.0), Number(nar)]).await? {
                    journal_notes::note(tx, &JournalSubject::Alias(cache, row.column(0, "aliases")?)).await?;
                }
            }
        }
    }
    // Also when the object went before: followers have to know that its grace is over.
    if nar.is_some() || removal == Removal::ForCause {
        outbox::note_change(tx, cache, Some(hash), at).await?;
        tx.announce(Change::Object(cache, *hash)).await?;
    }
    Ok(nar.is_some())
}

/// Forgets that paths refer to others: pairs of the path referred to and its referrer.
pub(crate) async fn drop_refs(
    tx: &mut Transaction,
    cache: CacheId,
    pairs: &[(StorePathHash, StorePathHash)],
) -> Result<()> {
    if pairs.is_empty() {
        return Ok(());
    }
    let mut records = Records::default();
    for (reference, referrer) in pairs {
        records.row().bytes(reference.as_bytes()).bytes(referrer.as_bytes());
    }
    tx.run(DROP_REFS, &[Number(cache.0), Text(&records.finish())]).await.map(drop)
}

/// Carries out a change; returns whether a reader can see it.
pub(crate) async fn write(
    tx: &mut Transaction,
    commit: &NarCommit,
    nar: NarId,
    change: ObjectChange,
) -> Result<bool> {
    let cache = Number(commit.cache.0);
    let (object, replaced, old_references) = match change {
        ObjectChange::Keep => return Ok(false),
        ObjectChange::Touch(hash) => {
            tx.run(TOUCH_OBJECT, &[cache, Bytes(hash.as_bytes()), Number(commit.at)]).await?;
            return Ok(false);
        }
        ObjectChange::Write { object, replaced, old_references } => (object, replaced, old_references),
    };
    let hash = object.path.hash();
    let extra = pack_fields(&object.extra);
    let (sigs, refs) = (pack_signatures(&object.sigs), pack_references(&object.path, &object.references));
    let row = [
        cache,
        Bytes(hash.as_bytes()),
        Number(nar.0),
        Number(commit.at),
        Text(object.path.name()),
        OptionalText(object.deriver.as_deref()),
        OptionalText(object.ca.as_deref()),
        OptionalText(object.system.as_deref()),
        Bytes(&sigs),
        Bytes(&refs),
        OptionalText(extra.as_deref()),
    ];
    tx.run(WRITE_OBJECT, &row).await?;
    let lost = old_references.iter().filter(|reference| !object.references.contains(reference));
    let lost: Vec<_> = lost.map(|reference| (reference.hash(), hash)).collect();
    drop_refs(tx, commit.cache, &lost).await?;
    let added = object.references.iter().filter(|reference| !old_references.contains(reference));
    let added: Vec<_> = added.map(StorePath::hash).filter(|reference| *reference != hash).collect();
    if !added.is_empty() {
        let keys: Vec<&[u8]> = added.iter().map(|reference| reference.as_bytes().as_slice()).collect();
        tx.run(ADD_REFS, &[cache, Bytes(hash.as_bytes()), List(&keys)]).await?;
    }
    if let Some(replaced) = replaced {
        let ends_at = commit.at.saturating_add(commit.grace_seconds);
        write_grace(tx, commit.cache, &hash, replaced, ends_at).await?;
    }
    Ok(true)
}

async fn write_grace(
    tx: &mut Transaction,
    cache: CacheId,
    hash: &StorePathHash,
    nar: NarId,
    ends_at: UnixSeconds,
) -> Result<()> {
    let row = [Number(cache.0), Bytes(hash.as_bytes()), Number(nar.0), Number(ends_at)];
    tx.run(WRITE_GRACE, &row).await.map(drop)
}
