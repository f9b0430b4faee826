//! Caches and their keys.

use async_trait::async_trait;

use super::counters::PATHS_OF_CACHE;
use super::retention::ADD_AUDIT;
use super::settings::check_master_key;
use super::{journal_notes, outbox};
use crate::changes::Change;
use crate::columns::signed;
use crate::contract::{
    CACHE_KEYS_MAX, Cache, CacheId, CacheIndex, CacheKey, CachePatch, CacheSelection, CacheTotals,
    CacheVisibility, NarId, NewCache, UnixSeconds,
};
use crate::publish::records::Records;
use crate::rows::{names_column, read_caches, read_totals, read_visibilities};
use crate::sql::Argument::{
    Bytes, Flag, Number, OptionalBytes, OptionalFlag, OptionalNumber, OptionalText, Text,
};
use crate::sql::{Sql, Transaction, both};
use crate::sql_index::{Lock, SqlIndex, Write};
use crate::{Error, JobKind, Result, jobs};

const INSERT_CACHE: Sql = both!(
    "INSERT INTO caches (name, is_public, store_dir, priority, upstream_cache_key_names, created_at, allow_replacement)
     VALUES ($1, $2, $3, $4, $5, $6, $7)
     ON CONFLICT (name) WHERE deleted_at IS NULL DO NOTHING
     RETURNING id"
);

const INSERT_KEY: Sql = both!(
    "INSERT INTO cache_keys (cache, position, public_key, sealed_secret, active)
     VALUES ($1, (SELECT coalesce(max(position), 0) + 1 FROM cache_keys WHERE cache = $1), $2, $3, $4)"
);

// One row for each key, so that a cache and its keys are read in one statement and agree.
pub(crate) const FIND_CACHE: Sql = both!(
    "SELECT c.id, c.name, c.is_public, c.store_dir, c.priority, c.upstream_cache_key_names, c.retention_seconds,
         c.created_at, k.public_key, k.sealed_secret, k.active, c.allow_replacement, c.quota_bytes,
         c.keep_latest
     FROM caches AS c LEFT JOIN cache_keys AS k ON k.cache = c.id
     WHERE c.name = $1 AND c.deleted_at IS NULL
     ORDER BY k.position"
);

const LIST_CACHES: Sql = both!(
    "SELECT c.id, c.name, c.is_public, c.store_dir, c.priority, c.upstream_cache_key_names, c.retention_seconds,
         c.created_at, k.public_key, k.sealed_secret, k.active, c.allow_replacement, c.quota_bytes,
         c.keep_latest
     FROM caches AS c LEFT JOIN cache_keys AS k ON k.cache = c.id
     WHERE c.deleted_at IS NULL
     ORDER BY c.name, k.position"
);

// SQLite would take the index of all names, and then read the row of a private cache to refuse it.
const FIND_PUBLIC_CACHE: Sql = Sql {
    sqlite: "
        SELECT c.id, c.name, c.is_public, c.store_dir, c.priority, c.upstream_cache_key_names, c.retention_seconds,
            c.created_at, k.public_key, k.sealed_secret, k.active, c.allow_replacement, c.quota_bytes,
         c.keep_latest
        FROM caches AS c INDEXED BY public_caches_by_name LEFT JOIN cache_keys AS k ON k.cache = c.id
        WHERE c.name = $1 AND c.is_public AND c.deleted_at IS NULL
        ORDER BY k.position",
    postgres: "
        SELECT c.id, c.name, c.is_public, c.store_dir, c.priority, c.upstream_cache_key_names, c.retention_seconds,
            c.created_at, k.public_key, k.sealed_secret, k.active, c.allow_replacement, c.quota_bytes,
         c.keep_latest
        FROM caches AS c LEFT JOIN cache_keys AS k ON k.cache = c.id
        WHERE c.name = $1 AND c.is_public AND c.deleted_at IS NULL
        ORDER BY k.position",
};

const LIST_CACHES_AFTER: Sql = both!(
    "SELECT c.id, c.name, c.is_public, c.store_dir, c.priority, c.upstream_cache_key_names, c.retention_seconds,
         c.created_at, k.public_key, k.sealed_secret, k.active, c.allow_replacement, c.quota_bytes,
         c.keep_latest
     FROM caches AS c LEFT JOIN cache_keys AS k ON k.cache = c.id
     WHERE c.id IN (SELECT id FROM caches WHERE deleted_at IS NULL AND name > $1 ORDER BY name LIMIT $2)
     ORDER BY c.name, k.position"
);

const LIST_PUBLIC_CACHES_AFTER: Sql = both!(
    "SELECT c.id, c.name, c.is_public, c.store_dir, c.priority, c.upstream_cache_key_names, c.retention_seconds,
         c.created_at, k.public_key, k.sealed_secret, k.active, c.allow_replacement, c.quota_bytes,
         c.keep_latest
     FROM caches AS c LEFT JOIN cache_keys AS k ON k.cache = c.id
     WHERE c.id IN (SELECT id FROM caches WHERE is_public AND deleted_at IS NULL AND name > $1 ORDER BY name LIMIT $2)
     ORDER BY c.name, k.position"
);

/// Both texts differ in how the rules are unfolded, and in how a name is compared with a pattern. A
/// rule without a star is looked up, and only one with a star is compared with each name.
macro_rules! list_allowed {
    ($rules:literal, $fits:literal) => {
        concat!(
            "WITH rules AS MATERIALIZED (",
            $rules,
            "), patterns AS MATERIALIZED (SELECT r.place, r.pattern, r.allowed FROM rules AS r WHERE r.is_exact = 0)
            SELECT c.id, c.name, c.is_public, c.store_dir, c.priority, c.upstream_cache_key_names, c.retention_seconds,
                c.created_at, k.public_key, k.sealed_secret, k.active, c.allow_replacement, c.quota_bytes,
                c.keep_latest
            FROM caches AS c LEFT JOIN cache_keys AS k ON k.cache = c.id
            WHERE c.id IN (
                SELECT v.id FROM caches AS v WHERE v.deleted_at IS NULL AND v.name > $1 AND (v.is_public OR CASE
                    WHEN v.name IN (SELECT r.name FROM rules AS r WHERE r.is_exact = 1)
                    THEN v.name IN (SELECT r.name FROM rules AS r WHERE r.is_exact = 1 AND r.allowed = 1)
                    ELSE coalesce((SELECT r.allowed FROM patterns AS r WHERE ",
            $fits,
            " ORDER BY r.place LIMIT 1), 0) = 1 END)
                ORDER BY v.name LIMIT $2)
            ORDER BY c.name, k.position"
        )
    };
}
// The characters of a pattern are those of names and `*`: of these, only `_` means something to
// LIKE.
pub(crate) const LIST_ALLOWED_CACHES_AFTER: Sql = Sql {
    sqlite: list_allowed!(
        "SELECT key AS place, value ->> 0 AS name, value ->> 0 AS pattern, value ->> 1 AS allowed, value ->> 2 AS is_exact
         FROM json_each($3)",
        "v.name GLOB r.pattern"
    ),
    postgres: list_allowed!(
        "SELECT l.place, l.value ->> 0 AS name, replace(replace(l.value ->> 0, '_', '\\_'), '*', '%') AS pattern,
             (l.value ->> 1)::bigint AS allowed, (l.value ->> 2)::bigint AS is_exact
         FROM json_array_elements($3::json) WITH ORDINALITY AS l (value, place)",
        "v.name LIKE r.pattern"
    ),
};

const LIST_VISIBILITIES: Sql = both!("SELECT DISTINCT name, is_public FROM caches ORDER BY name, is_public");

pub(crate) const LIST_CACHES_OF_NAR: Sql = both!(
    "SELECT c.name, c.is_public FROM caches AS c
     WHERE c.deleted_at IS NULL AND c.id IN (
         SELECT o.cache FROM objects AS o WHERE o.nar = $1
         UNION SELECT g.cache FROM graces AS g WHERE g.nar = $1 AND g.ends_at > $2
         UNION SELECT a.cache FROM aliases AS a WHERE a.nar = $1)
     ORDER BY c.name"
);

// The condition and the change are one statement, under the cache's lock: no commit comes between
// them.
pub(crate) const UPDATE_CACHE: Sql = both!(
    "UPDATE caches SET
         is_public = coalesce($2, is_public),
         store_dir = coalesce($3, store_dir),
         priority = coalesce($4, priority),
         upstream_cache_key_names = coalesce($5, upstream_cache_key_names),
         retention_seconds = CASE WHEN $6 THEN $7 ELSE retention_seconds END,
         allow_replacement = coalesce($8, allow_replacement),
         quota_bytes = CASE WHEN $9 THEN $10 ELSE quota_bytes END,
         keep_latest = CASE WHEN $11 THEN $12 ELSE keep_latest END
     WHERE id = $1 AND deleted_at IS NULL AND (coalesce($3, store_dir) = store_dir
         OR NOT EXISTS (SELECT 1 FROM objects AS o WHERE o.cache = $1))"
);

const CACHE_EXISTS: Sql = both!("SELECT id FROM caches WHERE id = $1 AND deleted_at IS NULL");

const RETIRE_KEYS: Sql = both!("UPDATE cache_keys SET active = $2 WHERE cache = $1");

// Positions ascend by one, so these are all but the newest keys.
const DELETE_OLDEST_KEYS: Sql = both!(
    "DELETE FROM cache_keys WHERE cache = $1
         AND position <= (SELECT max(position) FROM cache_keys WHERE cache = $1) - $2"
);

const DELETE_CACHE: Sql = both!("UPDATE caches SET deleted_at = $2 WHERE id = $1 AND deleted_at IS NULL");

const DELETE_KEYS: Sql = both!("DELETE FROM cache_keys WHERE cache = $1");

#[async_trait]
impl CacheIndex for SqlIndex {
    async fn create_cache(&self, cache: &NewCache) -> Result<CacheId> {
        let names = names_column(&cache.upstream_cache_key_names);
        let row = [
            Text(&cache.name),
            Flag(cache.is_public),
            Text(&cache.store_dir),
            Number(cache.priority.into()),
            Text(&names),
            Number(cache.created_at),
            Flag(cache.allow_replacement),
        ];
        self.write(Write::from("create a cache").unless_done(), async |mut tx| {
            check_master_key(&mut tx, cache.master_key_proof.as_deref()).await?;
            let inserted = tx.optional(INSERT_CACHE, &row).await?;
            let inserted = inserted.ok_or_else(|| Error::CacheExists { name: cache.name.clone() })?;
            let id = CacheId(inserted.column(0, "caches")?);
            insert_key(&mut tx, id, &cache.key).await?;
            journal_notes::note_cache(&mut tx, id).await?;
            Ok(id)
        })
        .await
    }

    async fn find_cache(&self, name: &str) -> Result<Option<Cache>> {
        self.read("find a cache", async |mut tx| {
            Ok(read_caches(&tx.rows(FIND_CACHE, &[Text(name)]).await?)?.pop())
        })
        .await
    }

    async fn list_caches(&self) -> Result<Vec<Cache>> {
        self.read("list caches", async |mut tx| read_caches(&tx.rows(LIST_CACHES, &[]).await?)).await
    }

    async fn find_public_cache(&self, name: &str) -> Result<Option<Cache>> {
        self.read("find a public cache", async |mut tx| {
            Ok(read_caches(&tx.rows(FIND_PUBLIC_CACHE, &[Text(name)]).await?)?.pop())
        })
        .await
    }

    async fn list_caches_after(
        &self,
        name: &str,
        selection: CacheSelection<'_>,
        limit: u32,
    ) -> Result<Vec<Cache>> {
        let (name, limit) = (Text(name), Number(limit.into()));
        let mut rules = Records::default();
        if let CacheSelection::Allowed(all) = selection {
            for (pattern, is_allowed) in all {
                let is_exact = !pattern.contains('*');
                rules.row().text(Some(pattern)).number((*is_allowed).into()).number(is_exact.into());
            }
        }
        let rules = rules.finish();
        self.read("list a page of caches", async |mut tx| {
            let rows = match selection {
                CacheSelection::All => tx.rows(LIST_CACHES_AFTER, &[name, limit]).await?,
                CacheSelection::Public => tx.rows(LIST_PUBLIC_CACHES_AFTER, &[name, limit]).await?,
                CacheSelection::Allowed(_) => {
                    tx.rows(LIST_ALLOWED_CACHES_AFTER, &[name, limit, Text(&rules)]).await?
                }
            };
            read_caches(&rows)
        })
        .await
    }

    async fn list_visibilities(&self) -> Result<Vec<CacheVisibility>> {
        self.read("list what is public", async |mut tx| {
            read_visibilities(&tx.rows(LIST_VISIBILITIES, &[]).await?)
        })
        .await
    }

    async fn list_caches_of_nar(&self, nar: NarId, now: UnixSeconds) -> Result<Vec<CacheVisibility>> {
        self.read("list the caches of a NAR", async |mut tx| {
            read_visibilities(&tx.rows(LIST_CACHES_OF_NAR, &[Number(nar.0), Number(now)]).await?)
        })
        .await
    }

    async fn cache_totals(&self, cache: CacheId) -> Result<CacheTotals> {
        self.read("sum up a cache", async |mut tx| {
            // The counters are right at every moment, and nothing grows with the cache. Those of a
            // deleted cache go with its objects, bit by bit.
            if tx.optional(CACHE_EXISTS, &[Number(cache.0)]).await?.is_none() {
                return Ok(CacheTotals::default());
            }
            read_totals(&tx.one(PATHS_OF_CACHE, &[Number(cache.0)]).await?)
        })
        .await
    }

    async fn update_cache(&self, cache: CacheId, patch: &CachePatch, at: UnixSeconds) -> Result<()> {
        let names = patch.upstream_cache_key_names.as_deref().map(names_column);
        let change = [
            Number(cache.0),
            OptionalFlag(patch.is_public),
            OptionalText(patch.store_dir.as_deref()),
            OptionalNumber(patch.priority.map(Into::into)),
            OptionalText(names.as_deref()),
            Flag(patch.retention_seconds.is_some()),
            OptionalNumber(patch.retention_seconds.flatten()),
            OptionalFlag(patch.allow_replacement),
            Flag(patch.quota_bytes.is_some()),
            OptionalNumber(patch.quota_bytes.flatten().map(signed)),
            Flag(patch.keep_latest.is_some()),
            OptionalNumber(patch.keep_latest.flatten().map(Into::into)),
        ];
        let write = Write::from("change a cache").unless_done();
        self.write(write.with_locks(&[Lock::Cache(cache.0)]), async |mut tx| {
            check_master_key(&mut tx, patch.master_key_proof.as_deref()).await?;
            if tx.run(UPDATE_CACHE, &change).await? == 0 {
                let exists = tx.optional(CACHE_EXISTS, &[Number(cache.0)]).await?.is_some();
                return Err(if exists { Error::CacheNotEmpty } else { Error::CacheGone });
            }
            if let Some(key) = &patch.replace_keys {
                tx.run(RETIRE_KEYS, &[Number(cache.0), Flag(false)]).await?;
                // One place is for the new key.
                tx.run(DELETE_OLDEST_KEYS, &[Number(cache.0), Number(CACHE_KEYS_MAX - 1)]).await?;
                insert_key(&mut tx, cache, key).await?;
            }
            outbox::note_change(&mut tx, cache, None, at).await?;
            tx.announce(Change::Cache(cache)).await
        })
        .await
    }

    async fn delete_cache(&self, cache: CacheId, subject: Option<&str>, at: UnixSeconds) -> Result<()> {
        let write = Write::from("delete a cache");
        let entry =
            [Number(at), OptionalText(subject), Text("delete cache"), Number(cache.0), OptionalBytes(None)];
        self.write(write.with_locks(&[Lock::Cache(cache.0)]), async |mut tx| {
            if tx.run(DELETE_CACHE, &[Number(cache.0), Number(at)]).await? == 0 {
                return Ok(());
            }
            tx.run(ADD_AUDIT, &entry).await?;
            tx.run(DELETE_KEYS, &[Number(cache.0)]).await?;
            jobs::work::open_job(&mut tx, JobKind::DeleteCache, Some(cache), None, at).await?;
            outbox::note_change(&mut tx, cache, None, at).await?;
            tx.announce(Change::Cache(cache)).await
        })
        .await
    }
}

async fn insert_key(tx: &mut Transaction, cache: CacheId, key: &CacheKey) -> Result<()> {
    let row = [Number(cache.0), Text(&key.public_key), Bytes(&key.sealed_secret), Flag(key.active)];
    tx.run(INSERT_KEY, &row).await.map(drop)
}
