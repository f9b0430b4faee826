//! What the journal needs: the present state of caches, objects, aliases and documents, what
//! changed besides objects, and how far the journal is.
//!
//! A note says that something besides an object changed. Unlike the outbox it has no order: the row
//! stays until the journal has written the state that it stands for, and a change meanwhile keeps
//! it (`changes`).

use std::borrow::Cow;

use async_trait::async_trait;
use dormer_format::{JOURNAL_BODY_BYTES_MAX, Recipe};
use dormer_nix::{NarHash, StorePathHash};

use super::KEYS_MAX;
use crate::columns::{array, corrupt, nar_hash, read_listing, recipe, signed, unsigned};
use crate::contract::{
    Cache, CacheId, CacheIndex as _, Object, OutboxPosition, Pin, StoredListing, UnixSeconds,
};
use crate::publish::records::{Records, records};
use crate::rows::{Row, read_caches, read_object, read_pin};
use crate::sql::Argument::{Bytes, Flag, List, Number, OptionalBytes, OptionalNumber, Text};
use crate::sql::{Sql, Transaction, both};
use crate::sql_index::{SqlIndex, Write};
use crate::{Error, Result};

/// A NAR with all that its row and listing say.
#[derive(Debug, Clone, PartialEq)]
pub struct JournaledNar {
    /// SHA-256 of the archive.
    pub hash: NarHash,
    /// Bytes of the archive.
    pub size: u64,
    /// How to rebuild it.
    pub recipe: Recipe,
    /// Its listing, unless it was lost.
    pub listing: Option<StoredListing>,
}

/// An object with its NAR.
#[derive(Debug, Clone, PartialEq)]
pub struct JournaledObject {
    /// The cache.
    pub cache: CacheId,
    /// The object.
    pub object: Object,
    /// When it was pushed first.
    pub created_at: UnixSeconds,
    /// Its NAR.
    pub nar: JournaledNar,
}

/// An upload alias with its NAR.
#[derive(Debug, Clone, PartialEq)]
pub struct JournaledAlias {
    /// The cache.
    pub cache: CacheId,
    /// File name below `nar/`.
    pub file_name: String,
    /// Compression that the name promises.
    pub compression: String,
    /// When it was made or used last.
    pub used_at: UnixSeconds,
    /// Its NAR.
    pub nar: JournaledNar,
}

/// A document with all that its row says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournaledDocument {
    /// The cache.
    pub cache: CacheId,
    /// Row number.
    pub id: i64,
    /// Address below the cache.
    pub name: String,
    /// Hash of the store path that it belongs to.
    pub owner: StorePathHash,
    /// When it was written.
    pub written_at: UnixSeconds,
    /// Bytes of the document.
    pub size: u64,
    /// How the body is compressed.
    pub encoding: Option<String>,
    /// The document, compressed or not; `None` if it is too large for the journal.
    pub body: Option<Vec<u8>>,
}

/// What besides objects can change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum JournalSubject {
    /// The named values of the installation.
    Settings,
    /// A cache with its keys.
    Cache(CacheId),
    /// An upload alias, by its file name.
    Alias(CacheId, String),
    /// A document, by its address below the cache.
    Document(CacheId, String),
    /// A pin, by its name and the hash of its path.
    Pin(CacheId, String, StorePathHash),
}

impl JournalSubject {
    fn columns(&self) -> (i64, i64, Cow<'_, str>) {
        match self {
            Self::Settings => (0, SETTINGS_KIND, "".into()),
            Self::Cache(cache) => (cache.0, CACHE_KIND, "".into()),
            Self::Alias(cache, name) => (cache.0, ALIAS_KIND, name.into()),
            Self::Document(cache, name) => (cache.0, DOCUMENT_KIND, name.into()),
            Self::Pin(cache, name, hash) => (cache.0, PIN_KIND, pin_key(name, hash).into()),
        }
    }
}

/// Kinds in the table of notes. The statements that note many at once name them too.
const SETTINGS_KIND: i64 = 0;
const CACHE_KIND: i64 = 1;
const ALIAS_KIND: i64 = 2;
const DOCUMENT_KIND: i64 = 3;
const PIN_KIND: i64 = 4;

/// Something besides an object that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalNote {
    /// What.
    pub subject: JournalSubject,
    changes: i64,
}

/// How far the journal is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JournalState {
    /// Random number of this database's past; 0 before the first file.
    pub lineage: i64,
    /// Where files are written.
    pub generation: i64,
    /// Number of the last file under this lease or an earlier one.
    pub sequence: i64,
    /// Outbox rows up to here are written.
    pub cursor: OutboxPosition,
    /// Where the snapshot goes on; `None` if it is whole.
    pub snapshot: Option<Vec<u8>>,
    /// Files up to here (fence, sequence) are older than the snapshot.
    pub base: (i64, i64),
    /// Bytes of the snapshot so far.
    pub snapshot_bytes: i64,
    /// Bytes of the segments since the snapshot began.
    pub segment_bytes: i64,
    /// When a file was written last.
    pub written_at: UnixSeconds,
    /// The last fence that a lease has got. Nobody saves it.
    pub fence: i64,
}

/// Segments of this weight ask for a snapshot, whatever a snapshot weighs: see
/// [`JournalState::segment_bytes`].
pub const SNAPSHOT_WANTED: i64 = 1 << 62;

/// The right to write the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalLease {
    /// Grows with every lease; an older one is worth nothing.
    pub fence: i64,
}

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

const NOTE: Sql = both!(
    "INSERT INTO journal_notes (cache, kind, name, changes) VALUES ($1, $2, $3, 1)
     ON CONFLICT (cache, kind, name) DO UPDATE SET changes = journal_notes.changes + 1"
);
const NOTE_PINS: Sql = records!(
    "INSERT INTO journal_notes (cache, kind, name, changes) SELECT $1, 4, k.name, 1 FROM",
    2 { name: text 0 },
    "AS k WHERE 1 = 1 ON CONFLICT (cache, kind, name) DO UPDATE SET changes = journal_notes.changes + 1"
);
const NOTES: Sql =
    both!("SELECT cache, kind, name, changes FROM journal_notes ORDER BY cache, kind, name LIMIT $1");
const DROP_NOTE: Sql =
    both!("DELETE FROM journal_notes WHERE cache = $1 AND kind = $2 AND name = $3 AND changes = $4");

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

/// Notes that something besides an object changed.
pub(crate) async fn note(tx: &mut Transaction, subject: &JournalSubject) -> Result<()> {
    let (cache, kind, name) = subject.columns();
    tx.run(NOTE, &[Number(cache), Number(kind), Text(&name)]).await.map(drop)
}

/// Notes that a cache changed.
pub(crate) async fn note_cache(tx: &mut Transaction, cache: CacheId) -> Result<()> {
    note(tx, &JournalSubject::Cache(cache)).await
}

/// Notes that pins of a name changed, by the hashes of their paths: no hash twice.
pub(crate) async fn note_pins(
    tx: &mut Transaction,
    cache: CacheId,
    name: &str,
    hashes: &[StorePathHash],
) -> Result<()> {
    let mut keys: Vec<String> = hashes.iter().map(|hash| pin_key(name, hash)).collect();
    // Rows are locked in this order everywhere.
    keys.sort_unstable();
    let mut pins = Records::default();
    for key in &keys {
        pins.row().text(Some(key));
    }
    tx.run(NOTE_PINS, &[Number(cache.0), Text(&pins.finish())]).await.map(drop)
}

/// What a note calls a pin: the hash of its path, which has one length, and its name.
fn pin_key(name: &str, hash: &StorePathHash) -> String {
    format!("{hash}-{name}")
}

/// Reads back what [`pin_key`] wrote.
fn read_pin_key(key: &str) -> Option<(String, StorePathHash)> {
    let (hash, name) = key.split_once('-')?;
    Some((name.to_owned(), hash.parse().ok()?))
}

/// What the journal reads and writes in the index.
#[async_trait]
pub trait JournalIndex: Send + Sync + std::fmt::Debug + 'static {
    /// How far the journal is. One statement.
    async fn journal_state(&self) -> Result<JournalState>;
    /// Takes the lease for `holder` if the last one has ended at `now` or was its own, until
    /// `ends_at`. Two calls never get the same fence.
    async fn lease_journal(
        &self,
        holder: &str,
        now: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<Option<(JournalLease, JournalState)>>;
    /// Saves how far the journal is, forgets the notes that were written and did not change
    /// meanwhile, and renews the lease, in one transaction. [`Error::JobLeaseLost`], and no effect,
    /// if another process has taken the lease.
    async fn save_journal(
        &self,
        lease: &JournalLease,
        state: &JournalState,
        written: &[JournalNote],
        ends_at: UnixSeconds,
    ) -> Result<()>;
    /// Renews the lease until `ends_at`, and saves nothing. [`Error::JobLeaseLost`] if another
    /// process has taken it.
    async fn renew_journal(&self, lease: &JournalLease, ends_at: UnixSeconds) -> Result<()>;
    /// Gives the lease back.
    async fn release_journal(&self, lease: &JournalLease) -> Result<()>;
    /// Asks the journal's next turn for a snapshot, after which all older files go.
    async fn ask_for_snapshot(&self) -> Result<()>;
    /// The place behind the last outbox row that followers may rely on.
    async fn outbox_end(&self) -> Result<OutboxPosition>;
    /// When the oldest change was made that has ended, and that followers do not see yet, because
    /// an older transaction is running. `None` if they see all of them.
    async fn hidden_change(&self) -> Result<Option<UnixSeconds>>;
    /// What besides objects changed, the first `limit`.
    async fn journal_notes(&self, limit: u32) -> Result<Vec<JournalNote>>;
    /// A cache that is not deleted.
    async fn find_cache_by_id(&self, cache: CacheId) -> Result<Option<Cache>>;
    /// Those of these objects that are there.
    async fn journaled_objects(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<JournaledObject>>;
    /// Objects of all caches, by cache and hash, after one.
    async fn journaled_objects_after(
        &self,
        after: Option<(CacheId, StorePathHash)>,
        limit: u32,
    ) -> Result<Vec<JournaledObject>>;
    /// An alias.
    async fn journaled_alias(&self, cache: CacheId, file_name: &str) -> Result<Option<JournaledAlias>>;
    /// Aliases of all caches, by cache and file name, after one.
    async fn journaled_aliases_after(
        &self,
        after: (CacheId, &str),
        limit: u32,
    ) -> Result<Vec<JournaledAlias>>;
    /// A document.
    async fn journaled_document(&self, cache: CacheId, name: &str) -> Result<Option<JournaledDocument>>;
    /// Documents of all caches, by row number, after one: at most `limit`, and fewer if they are
    /// large.
    async fn journaled_documents_after(&self, after: i64, limit: u32) -> Result<Vec<JournaledDocument>>;
    /// A pin, also one that has ended.
    async fn journaled_pin(&self, cache: CacheId, name: &str, hash: &StorePathHash) -> Result<Option<Pin>>;
    /// All named values of the installation.
    async fn settings(&self) -> Result<Vec<(String, Vec<u8>)>>;
    /// Whether no cache, NAR or pack was ever made.
    async fn is_empty(&self) -> Result<bool>;
    /// Makes a cache with all its keys; the id in it is not used. A cache of the name that is there
    /// stays as it is.
    async fn restore_cache(&self, cache: &Cache) -> Result<CacheId>;
    /// Stores a named value, whatever there was.
    async fn restore_setting(&self, name: &str, value: &[u8]) -> Result<()>;
}

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
                let (cache, kind, name) = note.subject.columns();
                tx.run(DROP_NOTE, &[Number(cache), Number(kind), Text(&name), Number(note.changes)]).await?;
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
            tx.rows(NOTES, &[Number(limit.into())]).await?.iter().map(read_note).collect()
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
                note_cache(&mut tx, id).await?;
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

/// Columns: cache, kind, name, changes.
fn read_note(row: &Row) -> Result<JournalNote> {
    let table = "journal_notes";
    let (cache, name): (_, String) = (CacheId(row.column(0, table)?), row.column(2, table)?);
    let subject = match row.column::<i64>(1, table)? {
        SETTINGS_KIND => JournalSubject::Settings,
        CACHE_KIND => JournalSubject::Cache(cache),
        ALIAS_KIND => JournalSubject::Alias(cache, name),
        DOCUMENT_KIND => JournalSubject::Document(cache, name),
        PIN_KIND => {
            let pin = read_pin_key(&name).ok_or_else(|| corrupt(table, format_args!("a pin {name:?}")))?;
            JournalSubject::Pin(cache, pin.0, pin.1)
        }
        kind => return Err(corrupt(table, format_args!("a note of kind {kind}"))),
    };
    Ok(JournalNote { subject, changes: row.column(3, table)? })
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
