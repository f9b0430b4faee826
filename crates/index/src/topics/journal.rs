//! The journal's own row and its lease, and what it reads: the present state of caches, objects,
//! aliases and documents. What a recovery writes back.

use async_trait::async_trait;
use dormer_format::JOURNAL_BODY_BYTES_MAX;
use dormer_nix::StorePathHash;

use super::{KEYS_MAX, journal_notes};
use crate::columns::{array, nar_hash, read_listing, recipe, signed, unsigned};
use crate::contract::{
    Cache, CacheId, CacheIndex as _, JournalIndex, JournalLease, JournalNote, JournalState, JournaledAlias,
    JournaledDocument, JournaledNar, JournaledObject, OutboxPosition, Pin, UnixSeconds,
};
use crate::rows::{Row, read_caches, read_object, read_pin};
use crate::sql::Argument::{Bytes, Flag, List, Number, OptionalBytes, OptionalNumber, Text};
use crate::sql::{Sql, Transaction, both};
use crate::sql_index::{SqlIndex, Write};
use crate::{Error, Result};

// The new fence ends a turn that goes on meanwhile: it would save the weight that it knows. Its
// lease is worth nothing then, so nobody has to wait for its end.
const ASK_FOR_SNAPSHOT: Sql = both!(
    "UPDATE journal SET segment_bytes = 4611686018427387904, fence = fence + 1, holder = NULL, lease_ends_at = 0
     WHERE lineage <> 0"
);

const FIND_CACHES: Sql = both!(
    "SELECT c.id, c.name, c.is_public, c.store_dir, c.priority, c.upstream_cache_key_names, c.retention_seconds,
         c.created_at, k.public_key, k.sealed_secret, k.active, c.allow_replacement, c.quota_bytes,
         c.keep_latest
     FROM caches AS c LEFT JOIN cache_keys AS k ON k.cache = c.id
     WHERE c.id = $1 AND c.deleted_at IS NULL ORDER BY k.position"
);

pub(crate) const OBJECTS: Sql = both!(
    "SELECT o.hash, o.name, o.refs, o.deriver, o.ca, o.sigs, o.system, o.extra, o.cache, o.created_at,
         n.hash, n.size, n.recipe, l.nar, l.size, l.body FROM",
    list 2,
    "AS k CROSS JOIN objects AS o JOIN nars AS n ON n.id = o.nar LEFT JOIN listings AS l ON l.nar = n.id
     WHERE o.cache = $1 AND o.hash = k.item"
);
pub(crate) const OBJECTS_AFTER: Sql = both!(
    "SELECT o.hash, o.name, o.refs, o.deriver, o.ca, o.sigs, o.system, o.extra, o.cache, o.created_at,
         n.hash, n.size, n.recipe, l.nar, l.size, l.body
     FROM objects AS o JOIN nars AS n ON n.id = o.nar LEFT JOIN listings AS l ON l.nar = n.id
     WHERE (o.cache, o.hash) > ($1, $2) ORDER BY o.cache, o.hash LIMIT $3"
);
pub(crate) const ALIAS: Sql = both!(
    "SELECT a.cache, a.file_name, a.compression, a.used_at, n.hash, n.size, n.recipe, l.nar, l.size, l.body
     FROM aliases AS a JOIN nars AS n ON n.id = a.nar LEFT JOIN listings AS l ON l.nar = n.id
     WHERE a.cache = $1 AND a.file_name = $2"
);
pub(crate) const ALIASES_AFTER: Sql = both!(
    "SELECT a.cache, a.file_name, a.compression, a.used_at, n.hash, n.size, n.recipe, l.nar, l.size, l.body
     FROM aliases AS a JOIN nars AS n ON n.id = a.nar LEFT JOIN listings AS l ON l.nar = n.id
     WHERE (a.cache, a.file_name) > ($1, $2) ORDER BY a.cache, a.file_name LIMIT $3"
);

pub(crate) const DOCUMENT: Sql = both!(
    "SELECT cache, id, name, owner, written_at, size, encoding, CASE WHEN length(body) <= $3 THEN body END
     FROM documents WHERE cache = $1 AND name = $2"
);
// Both databases know the length without the bytes.
pub(crate) const DOCUMENT_SIZES: Sql = both!(
    "SELECT CAST(length(body) AS BIGINT) FROM documents
     WHERE id > $1 ORDER BY id LIMIT $2"
);
pub(crate) const DOCUMENTS_AFTER: Sql = both!(
    "SELECT cache, id, name, owner, written_at, size, encoding, CASE WHEN length(body) <= $3 THEN body END
     FROM documents WHERE id > $1 ORDER BY id LIMIT $2"
);

/// Bytes of documents in one page of [`DOCUMENTS_AFTER`].
const DOCUMENT_BYTES_MAX: i64 = 4 << 20;

pub(crate) const FIND_PIN: Sql = both!(
    "SELECT name, hash, path_name, created_at, ends_at FROM pins WHERE cache = $1 AND name = $2 AND hash = $3"
);

// The end that followers may rely on: nothing shows up before it any more.
const OUTBOX_END: Sql = Sql {
    sqlite: "SELECT 0, coalesce(max(number), 0) FROM outbox",
    postgres: "
        SELECT coalesce(max(o.transaction), 0), coalesce(max(o.number), 0) FROM (
            SELECT transaction, number FROM outbox
            WHERE transaction < (SELECT base FROM outbox_base) + pg_snapshot_xmin(pg_current_snapshot())::text::bigint
            ORDER BY transaction DESC, number DESC LIMIT 1) AS o",
};

// The first of those that followers may not see yet: a transaction that began before is running.
pub(crate) const HIDDEN_CHANGE: Sql = Sql {
    sqlite: "SELECT at FROM outbox WHERE 0 = 1 LIMIT $1",
    postgres: "
        SELECT at FROM outbox
        WHERE transaction >= (SELECT base FROM outbox_base) + pg_snapshot_xmin(pg_current_snapshot())::text::bigint
        ORDER BY transaction, number LIMIT $1",
};

const STATE: Sql = both!(
    "SELECT lineage, generation, sequence, cursor_transaction, cursor_number, snapshot, base_fence,
         base_sequence, snapshot_bytes, segment_bytes, written_at, fence FROM journal"
);
const LEASE: Sql = both!(
    "UPDATE journal SET holder = $1, fence = fence + 1, lease_ends_at = $3 WHERE lease_ends_at <= $2 OR holder = $1
     RETURNING lineage, generation, sequence, cursor_transaction, cursor_number, snapshot, base_fence,
         base_sequence, snapshot_bytes, segment_bytes, written_at, fence"
);
const SAVE: Sql = both!(
    "UPDATE journal SET lineage = $2, generation = $3, sequence = $4, cursor_transaction = $5,
         cursor_number = $6, snapshot = $7, base_fence = $8, base_sequence = $9, snapshot_bytes = $10,
         segment_bytes = $11, written_at = $12, lease_ends_at = $13
     WHERE fence = $1 AND holder IS NOT NULL"
);
const RENEW: Sql = both!("UPDATE journal SET lease_ends_at = $2 WHERE fence = $1 AND holder IS NOT NULL");
const RELEASE: Sql =
    both!("UPDATE journal SET holder = NULL, lease_ends_at = 0 WHERE fence = $1 AND holder IS NOT NULL");

const RESTORE_CACHE: Sql = both!(
    "INSERT INTO caches (name, is_public, store_dir, priority, upstream_cache_key_names, created_at,
         allow_replacement, retention_seconds, quota_bytes, keep_latest)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
     ON CONFLICT (name) WHERE deleted_at IS NULL DO NOTHING RETURNING id"
);
const RESTORE_KEY: Sql = both!(
    "INSERT INTO cache_keys (cache, position, public_key, sealed_secret, active)
     VALUES ($1, (SELECT coalesce(max(position), 0) + 1 FROM cache_keys WHERE cache = $1), $2, $3, $4)"
);
const RESTORE_SETTING: Sql = both!(
    "INSERT INTO settings (name, value) VALUES ($1, $2)
     ON CONFLICT (name) DO UPDATE SET value = excluded.value"
);
const IS_EMPTY: Sql = both!(
    "SELECT CASE WHEN EXISTS (SELECT 1 FROM caches) OR EXISTS (SELECT 1 FROM nars)
         OR EXISTS (SELECT 1 FROM packs) THEN 0 ELSE 1 END"
);
const SETTINGS: Sql = both!("SELECT name, value FROM settings ORDER BY name");

#[async_trait]
impl JournalIndex for SqlIndex {
    async fn journal_state(&self) -> Result<JournalState> {
        self.read("read how far the journal is", async |mut tx| read_state(&tx.one(STATE, &[]).await?)).await
    }

    async fn lease_journal(
        &self,
        holder: &str,
        now: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<Option<(JournalLease, JournalState)>> {
        self.write(Write::from("take the journal's lease").unless_done(), async |mut tx| {
            let row = tx.optional(LEASE, &[Text(holder), Number(now), Number(ends_at)]).await?;
            let Some(row) = row else { return Ok(None) };
            Ok(Some((JournalLease { fence: row.column(11, TABLE)? }, read_state(&row)?)))
        })
        .await
    }

    async fn save_journal(
        &self,
        lease: &JournalLease,
        state: &JournalState,
        written: &[JournalNote],
        ends_at: UnixSeconds,
    ) -> Result<()> {
        let row = [
            Number(lease.fence),
            Number(state.lineage),
            Number(state.generation),
            Number(state.sequence),
            Number(state.cursor.transaction),
            Number(state.cursor.number),
            OptionalBytes(state.snapshot.as_deref()),
            Number(state.base.0),
            Number(state.base.1),
            Number(state.snapshot_bytes),
            Number(state.segment_bytes),
            Number(state.written_at),
            Number(ends_at),
        ];
        self.write("save how far the journal is", async |mut tx| {
            if tx.run(SAVE, &row).await? == 0 {
                return Err(Error::JobLeaseLost);
            }
            for note in written {
                journal_notes::drop_note(&mut tx, note).await?;
            }
            Ok(())
        })
        .await
    }

    async fn renew_journal(&self, lease: &JournalLease, ends_at: UnixSeconds) -> Result<()> {
        self.write("renew the journal's lease", async |mut tx| {
            let renewed = tx.run(RENEW, &[Number(lease.fence), Number(ends_at)]).await?;
            if renewed == 0 { Err(Error::JobLeaseLost) } else { Ok(()) }
        })
        .await
    }

    async fn release_journal(&self, lease: &JournalLease) -> Result<()> {
        self.write("give the journal's lease back", async |mut tx| {
            tx.run(RELEASE, &[Number(lease.fence)]).await.map(drop)
        })
        .await
    }

    async fn ask_for_snapshot(&self) -> Result<()> {
        self.write("ask for a snapshot of the journal", async |mut tx| ask_for_snapshot(&mut tx).await).await
    }

    async fn outbox_end(&self) -> Result<OutboxPosition> {
        self.read("find the outbox's end", async |mut tx| {
            let row = tx.one(OUTBOX_END, &[]).await?;
            Ok(OutboxPosition { transaction: row.column(0, "outbox")?, number: row.column(1, "outbox")? })
        })
        .await
    }

    async fn hidden_change(&self) -> Result<Option<UnixSeconds>> {
        self.read("look for changes that nobody sees yet", async |mut tx| {
            let row = tx.optional(HIDDEN_CHANGE, &[Number(1)]).await?;
            row.map(|row| row.column(0, "outbox")).transpose()
        })
        .await
    }

    async fn journal_notes(&self, limit: u32) -> Result<Vec<JournalNote>> {
        self.read("read what changed for the journal", async |mut tx| {
            journal_notes::notes(&mut tx, limit).await
        })
        .await
    }

    async fn find_cache_by_id(&self, cache: CacheId) -> Result<Option<Cache>> {
        self.read("find a cache by its number", async |mut tx| {
            Ok(read_caches(&tx.rows(FIND_CACHES, &[Number(cache.0)]).await?)?.pop())
        })
        .await
    }

    async fn journaled_objects(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<JournaledObject>> {
        assert!(hashes.len() <= KEYS_MAX, "too many objects in one look-up");
        let keys: Vec<&[u8]> = hashes.iter().map(|hash| hash.as_bytes().as_slice()).collect();
        self.read("read objects for the journal", async |mut tx| {
            tx.rows(OBJECTS, &[Number(cache.0), List(&keys)]).await?.iter().map(read_journaled).collect()
        })
        .await
    }

    async fn journaled_objects_after(
        &self,
        after: Option<(CacheId, StorePathHash)>,
        limit: u32,
    ) -> Result<Vec<JournaledObject>> {
        let (cache, hash) = match &after {
            Some((cache, hash)) => (cache.0, hash.as_bytes().as_slice()),
            None => (0, [].as_slice()),
        };
        let page = [Number(cache), Bytes(hash), Number(limit.into())];
        self.read("read a page of objects for the journal", async |mut tx| {
            tx.rows(OBJECTS_AFTER, &page).await?.iter().map(read_journaled).collect()
        })
        .await
    }

    async fn journaled_alias(&self, cache: CacheId, file_name: &str) -> Result<Option<JournaledAlias>> {
        self.read("read an alias for the journal", async |mut tx| {
            let row = tx.optional(ALIAS, &[Number(cache.0), Text(file_name)]).await?;
            row.map(|row| read_journaled_alias(&row)).transpose()
        })
        .await
    }

    async fn journaled_aliases_after(
        &self,
        after: (CacheId, &str),
        limit: u32,
    ) -> Result<Vec<JournaledAlias>> {
        let page = [Number(after.0.0), Text(after.1), Number(limit.into())];
        self.read("read a page of aliases for the journal", async |mut tx| {
            tx.rows(ALIASES_AFTER, &page).await?.iter().map(read_journaled_alias).collect()
        })
        .await
    }

    async fn journaled_document(&self, cache: CacheId, name: &str) -> Result<Option<JournaledDocument>> {
        let key = [Number(cache.0), Text(name), Number(signed(JOURNAL_BODY_BYTES_MAX as u64))];
        self.read("read a document for the journal", async |mut tx| {
            tx.optional(DOCUMENT, &key).await?.map(|row| read_document(&row)).transpose()
        })
        .await
    }

    async fn journaled_documents_after(&self, after: i64, limit: u32) -> Result<Vec<JournaledDocument>> {
        let after = Number(after);
        self.read("read a page of documents for the journal", async |mut tx| {
            let sizes = tx.rows(DOCUMENT_SIZES, &[after, Number(limit.into())]).await?;
            let (mut bytes, mut fitting) = (0, 0);
            for size in &sizes {
                bytes += size.column::<i64>(0, "documents")?;
                // The first one always fits.
                if bytes > DOCUMENT_BYTES_MAX && fitting > 0 {
                    break;
                }
                fitting += 1;
            }
            let largest = Number(signed(JOURNAL_BODY_BYTES_MAX as u64));
            let page = [after, Number(fitting), largest];
            tx.rows(DOCUMENTS_AFTER, &page).await?.iter().map(read_document).collect()
        })
        .await
    }

    async fn journaled_pin(&self, cache: CacheId, name: &str, hash: &StorePathHash) -> Result<Option<Pin>> {
        let key = [Number(cache.0), Text(name), Bytes(hash.as_bytes())];
        self.read("read a pin for the journal", async |mut tx| {
            tx.optional(FIND_PIN, &key).await?.map(|row| read_pin(&row)).transpose()
        })
        .await
    }

    async fn settings(&self) -> Result<Vec<(String, Vec<u8>)>> {
        self.read("read all settings", async |mut tx| {
            let rows = tx.rows(SETTINGS, &[]).await?;
            rows.iter().map(|row| Ok((row.column(0, "settings")?, row.column(1, "settings")?))).collect()
        })
        .await
    }

    async fn is_empty(&self) -> Result<bool> {
        self.read("look whether the database is empty", async |mut tx| {
            Ok(tx.one(IS_EMPTY, &[]).await?.column::<i32>(0, "caches")? == 1)
        })
        .await
    }

    async fn restore_cache(&self, cache: &Cache) -> Result<CacheId> {
        let names = crate::rows::names_column(&cache.upstream_cache_key_names);
        let row = [
            Text(&cache.name),
            Flag(cache.is_public),
            Text(&cache.store_dir),
            Number(cache.priority.into()),
            Text(&names),
            Number(cache.created_at),
            Flag(cache.allow_replacement),
            OptionalNumber(cache.retention_seconds),
            OptionalNumber(cache.quota_bytes.map(signed)),
            OptionalNumber(cache.keep_latest.map(i64::from)),
        ];
        let made = self
            .write("restore a cache", async |mut tx| {
                let Some(inserted) = tx.optional(RESTORE_CACHE, &row).await? else { return Ok(None) };
                let id = CacheId(inserted.column(0, "caches")?);
                for key in &cache.keys {
                    let key =
                        [Number(id.0), Text(&key.public_key), Bytes(&key.sealed_secret), Flag(key.active)];
                    tx.run(RESTORE_KEY, &key).await?;
                }
                journal_notes::note_cache(&mut tx, id).await?;
                Ok(Some(id))
            })
            .await?;
        match made {
            Some(id) => Ok(id),
            None => self.find_cache(&cache.name).await?.map(|cache| cache.id).ok_or(Error::CacheGone),
        }
    }

    async fn restore_setting(&self, name: &str, value: &[u8]) -> Result<()> {
        self.write("restore a setting", async |mut tx| {
            tx.run(RESTORE_SETTING, &[Text(name), Bytes(value)]).await.map(drop)
        })
        .await
    }
}

const TABLE: &str = "journal";

/// Asks the journal's next turn for a snapshot, after which all older files go.
pub(crate) async fn ask_for_snapshot(tx: &mut Transaction) -> Result<()> {
    tx.run(ASK_FOR_SNAPSHOT, &[]).await.map(drop)
}

/// Columns: those of [`STATE`].
fn read_state(row: &Row) -> Result<JournalState> {
    Ok(JournalState {
        lineage: row.column(0, TABLE)?,
        generation: row.column(1, TABLE)?,
        sequence: row.column(2, TABLE)?,
        cursor: OutboxPosition { transaction: row.column(3, TABLE)?, number: row.column(4, TABLE)? },
        snapshot: row.column(5, TABLE)?,
        base: (row.column(6, TABLE)?, row.column(7, TABLE)?),
        snapshot_bytes: row.column(8, TABLE)?,
        segment_bytes: row.column(9, TABLE)?,
        written_at: row.column(10, TABLE)?,
        fence: row.column(11, TABLE)?,
    })
}

/// Columns: cache, row number, name, owner, time, size, encoding, body.
fn read_document(row: &Row) -> Result<JournaledDocument> {
    let table = "documents";
    Ok(JournaledDocument {
        cache: CacheId(row.column(0, table)?),
        id: row.column(1, table)?,
        name: row.column(2, table)?,
        owner: StorePathHash::from_bytes(array(table, row.column(3, table)?)?),
        written_at: row.column(4, table)?,
        size: unsigned(table, row.column(5, table)?)?,
        encoding: row.column(6, table)?,
        body: row.column(7, table)?,
    })
}

/// Columns: those of an object, cache, creation, those of a NAR.
fn read_journaled(row: &Row) -> Result<JournaledObject> {
    Ok(JournaledObject {
        cache: CacheId(row.column(8, "objects")?),
        object: read_object(row, 0)?,
        created_at: row.column(9, "objects")?,
        nar: read_journaled_nar(row, 10)?,
    })
}

/// Columns: cache, file name, compression, use, those of a NAR.
fn read_journaled_alias(row: &Row) -> Result<JournaledAlias> {
    let table = "aliases";
    Ok(JournaledAlias {
        cache: CacheId(row.column(0, table)?),
        file_name: row.column(1, table)?,
        compression: row.column(2, table)?,
        used_at: row.column(3, table)?,
        nar: read_journaled_nar(row, 4)?,
    })
}

/// Columns from `first` on: hash, size, recipe, the listing's NAR, size and body.
fn read_journaled_nar(row: &Row, first: usize) -> Result<JournaledNar> {
    let has_listing: Option<i64> = row.column(first + 3, "listings")?;
    let listing = match has_listing {
        Some(_) => {
            Some(read_listing(row.column(first + 4, "listings")?, row.column(first + 5, "listings")?)?)
        }
        None => None,
    };
    Ok(JournaledNar {
        hash: nar_hash(row.column(first, "nars")?)?,
        size: unsigned("nars", row.column(first + 1, "nars")?)?,
        recipe: recipe("nars", row.column(first + 2, "nars")?)?,
        listing,
    })
}
