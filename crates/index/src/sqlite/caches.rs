//! Caches, their keys, and the settings of the installation.

use std::sync::atomic::Ordering;

use sqlx::query;

use super::SqliteIndex;
use super::outbox;
use crate::contract::{
    Cache, CacheId, CacheKey, CachePatch, CacheTotals, CacheVisibility, NarId, NewCache, PING_MAX,
    UnixSeconds,
};
use crate::rows::{Row as _, names_column, read_caches, read_totals, read_visibilities};
use crate::{Error, Result};

const FIND_SETTING: &str = "SELECT value FROM settings WHERE name = $1";

// The update changes nothing; without it there would be no row to return.
const CREATE_SETTING: &str = "
    INSERT INTO settings (name, value) VALUES ($1, $2)
    ON CONFLICT (name) DO UPDATE SET value = settings.value
    RETURNING value";

const INSERT_CACHE: &str = "
    INSERT INTO caches (name, is_public, store_dir, priority, upstream_cache_key_names, created_at)
    VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (name) WHERE deleted_at IS NULL DO NOTHING
    RETURNING id";

const INSERT_KEY: &str = "
    INSERT INTO cache_keys (cache, position, public_key, sealed_secret, active)
    VALUES ($1, (SELECT coalesce(max(position), 0) + 1 FROM cache_keys WHERE cache = $1), $2, $3, $4)";

// One row for each key, so that a cache and its keys are read in one statement and agree.
const FIND_CACHE: &str = "
    SELECT c.id, c.name, c.is_public, c.store_dir, c.priority, c.upstream_cache_key_names, c.retention_seconds,
        c.created_at, k.public_key, k.sealed_secret, k.active
    FROM caches AS c LEFT JOIN cache_keys AS k ON k.cache = c.id
    WHERE c.name = $1 AND c.deleted_at IS NULL
    ORDER BY k.position";

const LIST_CACHES: &str = "
    SELECT c.id, c.name, c.is_public, c.store_dir, c.priority, c.upstream_cache_key_names, c.retention_seconds,
        c.created_at, k.public_key, k.sealed_secret, k.active
    FROM caches AS c LEFT JOIN cache_keys AS k ON k.cache = c.id
    WHERE c.deleted_at IS NULL
    ORDER BY c.name, k.position";

const LIST_VISIBILITIES: &str = "SELECT DISTINCT name, is_public FROM caches ORDER BY name, is_public";

pub(super) const LIST_CACHES_OF_NAR: &str = "
    SELECT c.name, c.is_public FROM caches AS c
    WHERE c.deleted_at IS NULL AND c.id IN (
        SELECT o.cache FROM objects AS o WHERE o.nar = $1
        UNION SELECT g.cache FROM graces AS g WHERE g.nar = $1 AND g.ends_at > $2
        UNION SELECT a.cache FROM aliases AS a WHERE a.nar = $1)
    ORDER BY c.name";

const CACHE_TOTALS: &str = "
    SELECT count(*), coalesce(sum(n.size), 0)
    FROM objects AS o JOIN nars AS n ON n.id = o.nar
    WHERE o.cache = $1";

const UPDATE_CACHE: &str = "
    UPDATE caches SET
        is_public = coalesce($2, is_public),
        store_dir = coalesce($3, store_dir),
        priority = coalesce($4, priority),
        upstream_cache_key_names = coalesce($5, upstream_cache_key_names),
        retention_seconds = CASE WHEN $6 THEN $7 ELSE retention_seconds END
    WHERE id = $1 AND deleted_at IS NULL";

const RETIRE_KEYS: &str = "UPDATE cache_keys SET active = 0 WHERE cache = $1";

const DELETE_CACHE: &str = "UPDATE caches SET deleted_at = $2 WHERE id = $1 AND deleted_at IS NULL";

/// What goes with a cache.
const DELETE_CONTENTS: [&str; 4] = [
    "DELETE FROM objects WHERE cache = $1",
    "DELETE FROM graces WHERE cache = $1",
    "DELETE FROM aliases WHERE cache = $1",
    "DELETE FROM cache_keys WHERE cache = $1",
];

// A write of its own kind: beginning a transaction alone does not notice a full disk.
const CHECK_READY: &str = "
    INSERT INTO settings (name, value) VALUES ('index.ready-check', x'')
    ON CONFLICT (name) DO UPDATE SET value = excluded.value";

impl SqliteIndex {
    pub(super) async fn find_setting_row(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let mut read = self.read("find a setting").await?;
        let row = read.optional(query(FIND_SETTING).bind(name)).await?;
        row.map(|row| row.column(0, "settings")).transpose()
    }

    pub(super) async fn create_setting_row(&self, name: &str, value: &[u8]) -> Result<Vec<u8>> {
        let mut write = self.write("create a setting").await?;
        write.one(query(CREATE_SETTING).bind(name).bind(value)).await?.column(0, "settings")
    }

    pub(super) async fn create_cache_row(&self, cache: &NewCache) -> Result<CacheId> {
        let mut write = self.write("create a cache").await?;
        let mut write = write.begin().await?;
        let insert = query(INSERT_CACHE)
            .bind(&cache.name)
            .bind(cache.is_public)
            .bind(&cache.store_dir)
            .bind(cache.priority)
            .bind(names_column(&cache.upstream_cache_key_names))
            .bind(cache.created_at);
        let Some(row) = write.optional(insert).await? else {
            return Err(Error::CacheExists { name: cache.name.clone() });
        };
        let id: i64 = row.column(0, "caches")?;
        write.execute(insert_key(id, &cache.key)).await?;
        write.commit().await?;
        Ok(CacheId(id))
    }

    pub(super) async fn find_cache_row(&self, name: &str) -> Result<Option<Cache>> {
        let mut read = self.read("find a cache").await?;
        let rows = read.all(query(FIND_CACHE).bind(name)).await?;
        Ok(read_caches(&rows)?.pop())
    }

    pub(super) async fn list_cache_rows(&self) -> Result<Vec<Cache>> {
        let mut read = self.read("list caches").await?;
        read_caches(&read.all(query(LIST_CACHES)).await?)
    }

    pub(super) async fn list_visibility_rows(&self) -> Result<Vec<CacheVisibility>> {
        let mut read = self.read("list who may see what").await?;
        read_visibilities(&read.all(query(LIST_VISIBILITIES)).await?)
    }

    pub(super) async fn list_caches_of_nar_rows(
        &self,
        nar: NarId,
        now: UnixSeconds,
    ) -> Result<Vec<CacheVisibility>> {
        let mut read = self.read("list the caches of a NAR").await?;
        read_visibilities(&read.all(query(LIST_CACHES_OF_NAR).bind(nar.0).bind(now)).await?)
    }

    pub(super) async fn cache_totals_row(&self, cache: CacheId) -> Result<CacheTotals> {
        let mut read = self.read("sum up a cache").await?;
        read_totals(&read.one(query(CACHE_TOTALS).bind(cache.0)).await?)
    }

    pub(super) async fn update_cache_row(
        &self,
        cache: CacheId,
        patch: &CachePatch,
        at: UnixSeconds,
    ) -> Result<()> {
        let mut write = self.write("change a cache").await?;
        let mut write = write.begin().await?;
        let update = query(UPDATE_CACHE)
            .bind(cache.0)
            .bind(patch.is_public)
            .bind(patch.store_dir.as_deref())
            .bind(patch.priority)
            .bind(patch.upstream_cache_key_names.as_deref().map(names_column))
            .bind(patch.retention_seconds.is_some())
            .bind(patch.retention_seconds.flatten());
        if write.execute(update).await? == 0 {
            return Err(Error::CacheGone);
        }
        if let Some(key) = &patch.replace_keys {
            write.execute(query(RETIRE_KEYS).bind(cache.0)).await?;
            write.execute(insert_key(cache.0, key)).await?;
        }
        write.execute(outbox::insert(cache, None, at)).await?;
        write.commit().await
    }

    pub(super) async fn delete_cache_row(&self, cache: CacheId, at: UnixSeconds) -> Result<()> {
        let mut write = self.write("delete a cache").await?;
        let mut write = write.begin().await?;
        if write.execute(query(DELETE_CACHE).bind(cache.0).bind(at)).await? == 0 {
            return Ok(());
        }
        for statement in DELETE_CONTENTS {
            write.execute(query(statement).bind(cache.0)).await?;
        }
        write.execute(outbox::insert(cache, None, at)).await?;
        write.commit().await
    }

    pub(super) async fn ping_database(&self) -> Result<()> {
        const ATTEMPT: &str = "ask the database for a sign of life";
        let ping = async { self.read(ATTEMPT).await?.one(query("SELECT 1")).await.map(drop) };
        let answers = || self.meter.answers.load(Ordering::Relaxed);
        let before = answers();
        match tokio::time::timeout(PING_MAX, ping).await {
            Ok(answer) => answer,
            // All connections are taken, by calls that are answered.
            Err(_) if answers() > before => Ok(()),
            Err(_) => Err(super::failed(ATTEMPT, sqlx::Error::PoolTimedOut)),
        }
    }

    pub(super) async fn check_writable(&self) -> Result<()> {
        let mut write = self.write("check that the database is writable").await?;
        write.execute(query(CHECK_READY)).await.map(drop)
    }
}

fn insert_key(cache: i64, key: &CacheKey) -> super::session::Statement<'_> {
    query(INSERT_KEY).bind(cache).bind(&key.public_key).bind(key.sealed_secret.as_slice()).bind(key.active)
}
