//! Pins, lists of what is in a cache, and removals by hand. What expires by itself is a job
//! (`jobs/expire_cache`).

use async_trait::async_trait;
use dormer_nix::{StorePath, StorePathHash};

use super::{KEYS_MAX, documents, journal_notes, objects};
use crate::columns::{array, store_path, unpack_references, unsigned};
use crate::contract::{
    AUDIT_WINDOW, AuditEntry, AuditFilter, AuditPage, Cache, CacheId, ExtremeObjects, KEEPERS_WINDOW,
    Keepers, ListedObject, ObjectOrder, ObjectPlace, ObjectReferences, Pin, PurgeCounts, Removal,
    RemovedForCause, RetentionIndex, UnixSeconds,
};
use crate::jobs::{ExpiryDefaults, JobKind, expire_cache, work};
use crate::rows::{Row, read_pin};
use crate::sql::Argument::{Bytes, List, Number, OptionalNumber, OptionalText, Text};
use crate::sql::{Sql, both};
use crate::sql_index::{Lock, SqlIndex, Write};
use crate::{Error, Result};

// The newest of a name has the highest row number: a pin that is renewed is a new row.
const REMOVE_PIN: Sql = both!("DELETE FROM pins WHERE cache = $1 AND name = $2 AND hash = $3 RETURNING hash");
const REMOVE_PINS: Sql = both!("DELETE FROM pins WHERE cache = $1 AND name = $2 RETURNING hash");
const ADD_PIN: Sql = both!(
    "INSERT INTO pins (cache, name, hash, path_name, created_at, ends_at)
     SELECT c.id, $2, $3, $4, $5, $6 FROM caches AS c WHERE c.id = $1 AND c.deleted_at IS NULL"
);
const REMOVE_ENDED: Sql =
    both!("DELETE FROM pins WHERE cache = $1 AND name = $2 AND ends_at <= $3 RETURNING hash");
const KEEP_NEWEST: Sql = both!(
    "DELETE FROM pins WHERE cache = $1 AND name = $2 AND id NOT IN (
         SELECT p.id FROM pins AS p WHERE p.cache = $1 AND p.name = $2 ORDER BY p.id DESC LIMIT $3)
     RETURNING hash"
);
pub(crate) const LIST_PINS: Sql = both!(
    "SELECT name, hash, path_name, created_at, ends_at FROM pins
     WHERE cache = $1 AND (name, hash) > ($2, $3) AND (ends_at IS NULL OR ends_at > $4)
     ORDER BY name, hash LIMIT $5"
);
// A path has few pins and a cache many. Ordered by the bare name, a database would read all pins of
// the cache in the order of an index.
pub(crate) const LIST_PINS_OF_PATH: Sql = both!(
    "SELECT name, hash, path_name, created_at, ends_at FROM pins
     WHERE cache = $1 AND hash = $2 AND (ends_at IS NULL OR ends_at > $3) ORDER BY name || '' LIMIT $4"
);
// The lengths are read first, without the references, to know which of them are read.
pub(crate) const FIND_REFERENCES: Sql = both!(
    "SELECT o.hash, o.name, CASE WHEN asked.before < $3 THEN o.refs END, o.nar_size FROM
         (SELECT l.hash, SUM(l.bytes) OVER (ORDER BY l.hash) - l.bytes AS before FROM
             (SELECT o.hash, length(o.refs) AS bytes FROM", list 2, "AS k CROSS JOIN objects AS o
              WHERE o.cache = $1 AND o.hash = k.item) AS l) AS asked
         CROSS JOIN objects AS o
     WHERE o.cache = $1 AND o.hash = asked.hash"
);
pub(crate) const FIND_REFERRERS: Sql =
    both!("SELECT referrer FROM object_refs WHERE cache = $1 AND reference = $2 ORDER BY referrer LIMIT $3");

// From the path to its referrers, in the order of the key.
pub(crate) const LIST_REFERRERS: Sql = both!(
    "SELECT r.referrer, o.name FROM object_refs AS r CROSS JOIN objects AS o
     WHERE r.cache = $1 AND r.reference = $2 AND r.referrer > $3 AND o.cache = r.cache AND o.hash = r.referrer
         AND EXISTS (SELECT 1 FROM caches WHERE id = $1 AND deleted_at IS NULL)
     ORDER BY r.referrer LIMIT $4"
);

/// What keeps an object, as rows of four kinds: its pins (0), the one that ends last first, its
/// referrers (1), the pins of
/// objects above it (2), and how many objects the look walked through (3). `$1` is the cache, `$2`
/// the object, `$3` is now, `$4` how many objects are walked through, `$5` the limit of each kind.
/// `$above` names these objects, the object itself among them, and `$pins` the pins of each.
macro_rules! keepers {
    ($above:literal, $pins:literal) => {
        concat!(
            $above,
            "
             SELECT 0, own.hash, own.path_name, own.name, own.created_at, own.ends_at FROM (
                 SELECT p.hash, p.path_name, p.name, p.created_at, p.ends_at FROM pins AS p
                 WHERE p.cache = $1 AND p.hash = $2 AND (p.ends_at IS NULL OR p.ends_at > $3)
                 ORDER BY p.ends_at IS NULL DESC, p.ends_at DESC, p.name LIMIT $5) AS own
             UNION ALL SELECT 1, direct.referrer, direct.name, NULL, NULL, NULL FROM (
                 SELECT r.referrer, o.name FROM object_refs AS r CROSS JOIN objects AS o
                 WHERE r.cache = $1 AND r.reference = $2 AND o.cache = r.cache AND o.hash = r.referrer
                 ORDER BY r.referrer LIMIT $5) AS direct
             UNION ALL SELECT 2, pinned.hash, pinned.path_name, pinned.name, pinned.created_at, pinned.ends_at
             FROM (
                 SELECT p.hash, p.path_name, p.name, p.created_at, p.ends_at
                 FROM (SELECT hash FROM above LIMIT $4) AS near CROSS JOIN ",
            $pins,
            " AS p
                 WHERE p.cache = $1 AND p.hash = near.hash AND p.hash <> $2
                     AND (p.ends_at IS NULL OR p.ends_at > $3) LIMIT $5) AS pinned
             UNION ALL SELECT 3, NULL, NULL, NULL, (SELECT count(*) FROM (SELECT hash FROM above LIMIT $4) AS near), NULL"
        )
    };
}
// The nearest are walked through first. PostgreSQL makes only as many rows of a recursion as are
// asked for, and the OFFSET keeps it from reading all pins of the cache at once. SQLite would
// gather all referrers of an object before it takes the first one, so it gets the end of the range.
pub(crate) const FIND_KEEPERS: Sql = Sql {
    sqlite: keepers!(
        "WITH RECURSIVE above (hash) AS (
             SELECT $2 UNION
             SELECT r.referrer FROM above AS last CROSS JOIN object_refs AS r
             WHERE r.cache = $1 AND r.reference = last.hash AND r.referrer < coalesce(
                 (SELECT f.referrer FROM object_refs AS f WHERE f.cache = $1 AND f.reference = last.hash
                 ORDER BY f.referrer LIMIT 1 OFFSET $4), x'ffffffffffffffffffffffffffffffffffffffffff')
             LIMIT $4)",
        "pins"
    ),
    postgres: keepers!(
        "WITH RECURSIVE above (hash) AS (
             SELECT $2::bytea UNION
             SELECT r.referrer FROM above AS last CROSS JOIN LATERAL (
                 SELECT f.referrer FROM object_refs AS f WHERE f.cache = $1 AND f.reference = last.hash
                 ORDER BY f.referrer LIMIT $4) AS r)",
        "LATERAL (SELECT q.* FROM pins AS q WHERE q.cache = $1 AND q.hash = near.hash OFFSET 0)"
    ),
};

macro_rules! list {
    ($value:literal, $after:literal, $order:literal) => {
        both!(concat!(
            "SELECT hash, name, nar_size, created_at, last_used_at, ",
            $value,
            ", id FROM objects
             WHERE cache = $1 AND (",
            $value,
            ", id) ",
            $after,
            " ($2, $3)
                 AND EXISTS (SELECT 1 FROM caches WHERE id = $1 AND deleted_at IS NULL)
             ORDER BY ",
            $value,
            $order,
            ", id",
            $order,
            " LIMIT $4"
        ))
    };
}
pub(crate) const LIST_BY_USE: Sql = list!("last_used_at", ">", "");
pub(crate) const LIST_BY_AGE: Sql = list!("created_at", ">", "");
pub(crate) const LIST_BY_SIZE: Sql = list!("nar_size", "<", " DESC");
/// Names that begin with a text, in the order of their bytes: `$2` to `$4` are the place before the
/// first one, and every such name is below `$5`.
macro_rules! list_by_name {
    ($collation:literal) => {
        concat!(
            "SELECT hash, name, nar_size, created_at, last_used_at, created_at, id FROM objects
             WHERE cache = $1 AND (name",
            $collation,
            ", created_at, id) > ($2, $3, $4) AND name",
            $collation,
            " < $5
                 AND EXISTS (SELECT 1 FROM caches WHERE id = $1 AND deleted_at IS NULL)
             ORDER BY name",
            $collation,
            ", created_at, id LIMIT $6"
        )
    };
}
pub(crate) const LIST_BY_NAME: Sql =
    Sql { sqlite: list_by_name!(""), postgres: list_by_name!(" COLLATE \"C\"") };
// The ends of two indexes. The first column tells which one.
pub(crate) const LIST_EXTREMES: Sql = both!(
    "SELECT largest.* FROM (SELECT 0, hash, name, nar_size, created_at, last_used_at, nar_size, id FROM objects
         WHERE cache = $1 ORDER BY nar_size DESC, id DESC LIMIT $2) AS largest
     UNION ALL SELECT unused.* FROM (SELECT 1, hash, name, nar_size, created_at, last_used_at, last_used_at, id FROM objects
         WHERE cache = $1 ORDER BY last_used_at, id LIMIT $2) AS unused"
);

pub(crate) const NOTE_PURGES: Sql = both!(
    "INSERT INTO purges (cache, hash, asked_at, is_asked, recipe, listing)
     SELECT $1, $2, $3, $4, n.recipe, CASE WHEN l.size IS NOT NULL THEN l.body END
     FROM (SELECT o.nar FROM objects AS o WHERE o.cache = $1 AND o.hash = $2
         UNION SELECT g.nar FROM graces AS g WHERE g.cache = $1 AND g.hash = $2) AS named
     JOIN nars AS n ON n.id = named.nar LEFT JOIN listings AS l ON l.nar = n.id"
);
// The bytes of earlier removals of the path. Those that a collection had to leave are tried again.
const ASK_PURGES: Sql =
    both!("UPDATE purges SET is_asked = 1, tried_at = NULL WHERE cache = $1 AND hash = $2");
const COUNT_PURGES: Sql =
    both!("SELECT count(*), count(*) - count(tried_at) FROM purges WHERE cache = $1 AND is_asked = 1");
const COUNT_PURGES_OF: Sql = both!(
    "SELECT count(*), count(*) - count(tried_at) FROM purges WHERE cache = $1 AND is_asked = 1 AND hash IN",
    list 2,
    ""
);

pub(super) const ADD_AUDIT: Sql =
    both!("INSERT INTO audit (at, subject, action, cache, hash) VALUES ($1, $2, $3, $4, $5)");
const AUDIT_AFTER: Sql = both!(
    "SELECT number, at, subject, action, cache, hash FROM audit WHERE number > $1 ORDER BY number LIMIT $2"
);
/// The first column is the newest number of the window, also if no entry in the window fits. The
/// window is a range of the primary key.
const AUDIT_BEFORE: Sql = both!(
    "SELECT top.newest, a.number, a.at, a.subject, a.action, a.cache, a.hash,
         (SELECT c.name FROM caches AS c WHERE c.id = a.cache)
     FROM (SELECT coalesce(max(number), 0) AS newest FROM audit WHERE number < $1) AS top
     LEFT JOIN audit AS a ON a.number <= top.newest AND a.number > top.newest - $2
         AND (CAST($3 AS TEXT) IS NULL
             OR EXISTS (SELECT 1 FROM caches AS c WHERE c.id = a.cache AND c.name = CAST($3 AS TEXT)))
         AND (CAST($4 AS TEXT) IS NULL OR a.action = CAST($4 AS TEXT))
         AND (CAST($5 AS TEXT) IS NULL OR a.subject = CAST($5 AS TEXT))
         AND (CAST($6 AS TEXT) IS NULL OR substr(a.subject, 1, length(CAST($6 AS TEXT))) = CAST($6 AS TEXT))
     ORDER BY a.number DESC LIMIT $7"
);

#[async_trait]
impl RetentionIndex for SqlIndex {
    async fn add_pin(&self, cache: CacheId, pin: &Pin, keep: Option<u32>) -> Result<()> {
        let hash = pin.path.hash();
        let key = [Number(cache.0), Text(&pin.name), Bytes(hash.as_bytes())];
        let [id, name, hash] = key;
        let row =
            [id, name, hash, Text(pin.path.name()), Number(pin.created_at), OptionalNumber(pin.ends_at)];
        // No expire job looks for pins meanwhile, and two calls do not both count.
        self.write(Write::from("add a pin").with_locks(&[Lock::Cache(cache.0)]), async |mut tx| {
            tx.rows(REMOVE_PIN, &key).await?;
            let ended = tx.rows(REMOVE_ENDED, &[id, name, Number(pin.created_at)]).await?;
            let mut changed = read_hashes(&ended, "pins")?;
            if tx.run(ADD_PIN, &row).await? == 0 {
                return Err(Error::CacheGone);
            }
            changed.push(pin.path.hash());
            if let Some(keep) = keep {
                let older = tx.rows(KEEP_NEWEST, &[id, name, Number(keep.max(1).into())]).await?;
                changed.extend(read_hashes(&older, "pins")?);
            }
            journal_notes::note_pins(&mut tx, cache, &pin.name, &changed).await
        })
        .await
    }

    async fn remove_pins(&self, cache: CacheId, name: &str, hash: Option<&StorePathHash>) -> Result<u64> {
        self.write(Write::from("remove pins").unless_done(), async |mut tx| {
            let removed = match hash {
                Some(hash) => {
                    tx.rows(REMOVE_PIN, &[Number(cache.0), Text(name), Bytes(hash.as_bytes())]).await?
                }
                None => tx.rows(REMOVE_PINS, &[Number(cache.0), Text(name)]).await?,
            };
            if !removed.is_empty() {
                journal_notes::note_pins(&mut tx, cache, name, &read_hashes(&removed, "pins")?).await?;
            }
            Ok(removed.len() as u64)
        })
        .await
    }

    async fn list_pins(
        &self,
        cache: CacheId,
        after: Option<(&str, &StorePathHash)>,
        now: UnixSeconds,
        limit: u32,
    ) -> Result<Vec<Pin>> {
        let (name, hash) = after.map_or(("", &[][..]), |(name, hash)| (name, hash.as_bytes().as_slice()));
        let page = [Number(cache.0), Text(name), Bytes(hash), Number(now), Number(limit.into())];
        self.read("list pins", async |mut tx| tx.rows(LIST_PINS, &page).await?.iter().map(read_pin).collect())
            .await
    }

    async fn find_keepers(
        &self,
        cache: &Cache,
        hash: &StorePathHash,
        defaults: &ExpiryDefaults,
        now: UnixSeconds,
        limit: u32,
    ) -> Result<Option<Keepers>> {
        let key = [
            Number(cache.id.0),
            Bytes(hash.as_bytes()),
            Number(now),
            Number(KEEPERS_WINDOW),
            Number(limit.into()),
        ];
        self.read("find what keeps an object", async |mut tx| {
            let rules = expire_cache::examine_one(&mut tx, cache, hash, defaults, now).await?;
            let Some(rules) = rules else { return Ok(None) };
            let (pins, referrers, pins_above) = (Vec::new(), Vec::new(), Vec::new());
            let mut found = Keepers { rules, pins, referrers, pins_above, is_cut: false };
            for row in &tx.rows(FIND_KEEPERS, &key).await? {
                let path = || store_path(row.column(1, "object_refs")?, row.column(2, "objects")?);
                match row.column::<i32>(0, "pins")? {
                    0 => found.pins.push(read_keeping_pin(row)?),
                    1 => found.referrers.push(path()?),
                    2 => found.pins_above.push(read_keeping_pin(row)?),
                    _ => found.is_cut = row.column::<i64>(4, "object_refs")? >= KEEPERS_WINDOW,
                }
            }
            Ok(Some(found))
        })
        .await
    }

    async fn list_pins_of_path(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        now: UnixSeconds,
        limit: u32,
    ) -> Result<Vec<Pin>> {
        let key = [Number(cache.0), Bytes(hash.as_bytes()), Number(now), Number(limit.into())];
        self.read("list the pins of a path", async |mut tx| {
            tx.rows(LIST_PINS_OF_PATH, &key).await?.iter().map(read_pin).collect()
        })
        .await
    }

    async fn find_references(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
        bytes_max: u64,
    ) -> Result<Vec<ObjectReferences>> {
        assert!(hashes.len() <= KEYS_MAX, "too many objects in one look-up");
        if hashes.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<&[u8]> = hashes.iter().map(|hash| hash.as_bytes().as_slice()).collect();
        self.read("find references", async |mut tx| {
            let bytes_max = i64::try_from(bytes_max).unwrap_or(i64::MAX);
            let rows = tx.rows(FIND_REFERENCES, &[Number(cache.0), List(&keys), Number(bytes_max)]).await?;
            rows.iter().map(read_references).collect()
        })
        .await
    }

    async fn list_referrers(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        after: Option<&StorePathHash>,
        limit: u32,
    ) -> Result<Vec<StorePath>> {
        let after: &[u8] = after.map_or(&[], |hash| hash.as_bytes());
        let key = [Number(cache.0), Bytes(hash.as_bytes()), Bytes(after), Number(limit.into())];
        self.read("list referrers", async |mut tx| {
            let rows = tx.rows(LIST_REFERRERS, &key).await?;
            rows.iter()
                .map(|row| store_path(row.column(0, "object_refs")?, row.column(1, "objects")?))
                .collect()
        })
        .await
    }

    async fn find_referrers(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        limit: u32,
    ) -> Result<Vec<StorePathHash>> {
        let key = [Number(cache.0), Bytes(hash.as_bytes()), Number(limit.into())];
        self.read("find referrers", async |mut tx| {
            let rows = tx.rows(FIND_REFERRERS, &key).await?;
            read_hashes(&rows, "object_refs")
        })
        .await
    }

    async fn list_extremes(&self, cache: CacheId, limit: u32) -> Result<ExtremeObjects> {
        self.read("list the largest objects and the longest unused", async |mut tx| {
            let mut found = ExtremeObjects::default();
            for row in &tx.rows(LIST_EXTREMES, &[Number(cache.0), Number(limit.into())]).await? {
                let list = match row.column::<i32>(0, "objects")? {
                    0 => &mut found.largest,
                    _ => &mut found.longest_unused,
                };
                list.push(read_listed(row, 1)?);
            }
            Ok(found)
        })
        .await
    }

    async fn list_objects(
        &self,
        cache: CacheId,
        order: ObjectOrder,
        after: Option<ObjectPlace>,
        limit: u32,
    ) -> Result<Vec<ListedObject>> {
        let (sql, start) = match order {
            ObjectOrder::Used => (LIST_BY_USE, ObjectPlace { value: i64::MIN, id: i64::MIN }),
            ObjectOrder::Age => (LIST_BY_AGE, ObjectPlace { value: i64::MIN, id: i64::MIN }),
            ObjectOrder::Size => (LIST_BY_SIZE, ObjectPlace { value: i64::MAX, id: i64::MAX }),
        };
        let ObjectPlace { value, id } = after.unwrap_or(start);
        let page = [Number(cache.0), Number(value), Number(id), Number(limit.into())];
        self.read("list objects", async |mut tx| {
            tx.rows(sql, &page).await?.iter().map(|row| read_listed(row, 0)).collect()
        })
        .await
    }

    async fn list_objects_by_name(
        &self,
        cache: CacheId,
        prefix: &str,
        after: Option<(&str, ObjectPlace)>,
        limit: u32,
    ) -> Result<Vec<ListedObject>> {
        // Names of paths are printable ASCII. Some databases refuse other texts.
        if !prefix
            .bytes()
            .chain(after.map_or("", |(name, _)| name).bytes())
            .all(|byte| byte.is_ascii_graphic())
        {
            return Ok(Vec::new());
        }
        let (name, ObjectPlace { value, id }) =
            after.unwrap_or((prefix, ObjectPlace { value: i64::MIN, id: i64::MIN }));
        let end = format!("{prefix}\x7f");
        let page = [Number(cache.0), Text(name), Number(value), Number(id), Text(&end), Number(limit.into())];
        self.read("list objects by name", async |mut tx| {
            tx.rows(LIST_BY_NAME, &page).await?.iter().map(|row| read_listed(row, 0)).collect()
        })
        .await
    }

    async fn remove_for_cause(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        subject: Option<&str>,
        purge: bool,
        at: UnixSeconds,
    ) -> Result<RemovedForCause> {
        let locks = [Lock::CacheShared(cache.0), Lock::object(cache.0, hash.as_bytes())];
        let write = Write::from("remove an object for cause").unless_done().with_locks(&locks);
        let bytes = Bytes(hash.as_bytes());
        let entry = [Number(at), OptionalText(subject), Text("remove path"), Number(cache.0), bytes];
        self.write(write, async |mut tx| {
            // Without `purge` too: nothing else says later which bytes the path had.
            let note = [Number(cache.0), bytes, Number(at), Number(purge.into())];
            let mut noted = tx.run(NOTE_PURGES, &note).await?;
            if purge {
                noted += tx.run(ASK_PURGES, &note[..2]).await?;
                work::open_job(&mut tx, JobKind::Collect, None, None, at).await?;
            }
            let was_there = objects::remove(&mut tx, cache, hash, Removal::ForCause, at).await?;
            let had_log = documents::forget_logs(&mut tx, cache, hash, at).await?;
            tx.run(ADD_AUDIT, &entry).await?;
            Ok(RemovedForCause { was_there, had_log, is_purged: purge && noted > 0 })
        })
        .await
    }

    async fn count_purges(&self, cache: CacheId, paths: Option<&[StorePathHash]>) -> Result<PurgeCounts> {
        let keys: Option<Vec<&[u8]>> =
            paths.map(|paths| paths.iter().map(|hash| hash.as_bytes().as_slice()).collect());
        self.read("count what is to be purged", async |mut tx| {
            let row = match &keys {
                Some(keys) => tx.one(COUNT_PURGES_OF, &[Number(cache.0), List(keys)]).await?,
                None => tx.one(COUNT_PURGES, &[Number(cache.0)]).await?,
            };
            Ok(PurgeCounts {
                waiting: unsigned("purges", row.column(0, "purges")?)?,
                untried: unsigned("purges", row.column(1, "purges")?)?,
            })
        })
        .await
    }

    async fn audit_after(&self, number: i64, limit: u32) -> Result<Vec<AuditEntry>> {
        self.read("read the audit", async |mut tx| {
            let rows = tx.rows(AUDIT_AFTER, &[Number(number), Number(limit.into())]).await?;
            rows.iter().map(|row| read_audit(row, 0)).collect()
        })
        .await
    }

    async fn audit_before(&self, before: i64, filter: &AuditFilter, limit: u32) -> Result<AuditPage> {
        let AuditFilter { cache, action, subject, subject_start } = filter;
        let arguments = [
            Number(before),
            Number(AUDIT_WINDOW),
            OptionalText(cache.as_deref()),
            OptionalText(action.as_deref()),
            OptionalText(subject.as_deref()),
            OptionalText(subject_start.as_deref()),
            Number(limit.into()),
        ];
        self.read("read the audit", async |mut tx| {
            let rows = tx.rows(AUDIT_BEFORE, &arguments).await?;
            let mut page = AuditPage::default();
            let mut newest = 0_i64;
            for row in &rows {
                newest = row.column(0, "audit")?;
                if row.column::<Option<i64>>(1, "audit")?.is_some() {
                    page.entries.push((read_audit(row, 1)?, row.column(7, "caches")?));
                }
            }
            let oldest = page.entries.last().filter(|_| page.entries.len() == limit as usize);
            let next = oldest.map_or(newest.saturating_sub(AUDIT_WINDOW) + 1, |(entry, _)| entry.number);
            // Numbers begin at 1, so there is nothing before 1.
            page.next = Some(next).filter(|next| *next > 1);
            Ok(page)
        })
        .await
    }
}

/// Columns: hash.
fn read_hashes(rows: &[Row], table: &'static str) -> Result<Vec<StorePathHash>> {
    rows.iter().map(|row| Ok(StorePathHash::from_bytes(array(table, row.column(0, table)?)?))).collect()
}

/// Columns after the kind: hash, name of the path, name, creation, end.
fn read_keeping_pin(row: &Row) -> Result<Pin> {
    let table = "pins";
    Ok(Pin {
        name: row.column(3, table)?,
        path: store_path(row.column(1, table)?, row.column(2, table)?)?,
        created_at: row.column(4, table)?,
        ends_at: row.column(5, table)?,
    })
}

/// Columns: hash, name, references, size.
fn read_references(row: &Row) -> Result<ObjectReferences> {
    let table = "objects";
    let path = store_path(row.column(0, table)?, row.column(1, table)?)?;
    let packed = row.column::<Option<&[u8]>>(2, table)?;
    let mut references = packed.map(|packed| unpack_references(&path, packed)).transpose()?;
    if let Some(references) = &mut references {
        references.retain(|reference| *reference != path);
    }
    let nar_size = unsigned(table, row.column(3, table)?)?;
    Ok(ObjectReferences { hash: path.hash(), nar_size, references })
}

/// Columns from `first` on: hash, name, size, creation, last use, value of the order, row number.
fn read_listed(row: &Row, first: usize) -> Result<ListedObject> {
    let table = "objects";
    Ok(ListedObject {
        path: store_path(row.column(first, table)?, row.column(first + 1, table)?)?,
        nar_size: unsigned(table, row.column(first + 2, table)?)?,
        created_at: row.column(first + 3, table)?,
        last_used_at: row.column(first + 4, table)?,
        place: ObjectPlace { value: row.column(first + 5, table)?, id: row.column(first + 6, table)? },
    })
}

/// Columns from `first` on: number, time, subject, action, cache, hash.
fn read_audit(row: &Row, first: usize) -> Result<AuditEntry> {
    let table = "audit";
    let hash: Option<&[u8]> = row.column(first + 5, table)?;
    Ok(AuditEntry {
        number: row.column(first, table)?,
        at: row.column(first + 1, table)?,
        subject: row.column(first + 2, table)?,
        action: row.column(first + 3, table)?,
        cache: CacheId(row.column(first + 4, table)?),
        store_path_hash: hash.map(|hash| array(table, hash).map(StorePathHash::from_bytes)).transpose()?,
    })
}
