//! The SQLite adapter: one file, one process.
//!
//! Invariants
//! - One connection writes, in transactions that take the write lock at once; the others only read. Commits are synced.
//! - A lock file keeps other processes out, so the filters of known keys are complete: what they call absent is absent.
//! - Every wait is bounded, and what may work later is told from what is a defect in one place ([`session::failed`]).

mod audit;
mod caches;
mod examine;
#[cfg(test)]
mod large_tests;
mod nars;
mod objects;
mod open;
mod outbox;
mod packs;
mod publish;
mod session;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dormer_format::{ChunkId, ChunkRun, EncodingTag};
use dormer_nix::{NarHash, StorePathHash};
use sqlx::query;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use self::session::{Connections, Loan, Meter, Session, failed};
use crate::changes::Changes;
use crate::columns::array;
use crate::contract::{
    Alias, Cache, CacheId, CachePatch, CacheTotals, CacheVisibility, ChunkRow, CommitOutcome, FoundObject,
    Index, Nar, NarCommit, NarId, NarKey, NarSummary, NewCache, NewPack, OutboxPosition, OutboxRow, PoolUse,
    Removal, StoredListing, UnixSeconds,
};
use crate::key_filter::{Key, KeyFilter, id_key, object_key};
use crate::rows::{Row as _, Value};
use crate::{MigrationPlan, Result};

/// Most keys in one call.
const KEYS_MAX: usize = 16_384;

/// How to run the database.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// Connections that read. Each has a thread and up to 2 MiB of cache.
    pub readers: usize,
    /// How long SQLite waits for a lock that another program (a backup) holds.
    pub busy_timeout: Duration,
    /// Longest wait for a connection, and longest run of a statement.
    pub wait_max: Duration,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self { readers: 4, busy_timeout: Duration::from_secs(10), wait_max: Duration::from_secs(30) }
    }
}

/// An index in a SQLite file.
#[derive(Debug)]
pub struct SqliteIndex {
    writer: Connections,
    readers: Connections,
    meter: Meter,
    chunk_filter: KeyFilter,
    nar_filter: KeyFilter,
    object_filter: KeyFilter,
    /// Held for as long as the database is open, unless it was opened beside another process. Last, so that it outlives the
    /// connections.
    _lock: Option<File>,
}

impl SqliteIndex {
    /// Opens a database, or makes it. Takes time in proportion to the rows of chunks, NARs and objects, whose keys it reads.
    pub async fn open(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Self> {
        let path = path.as_ref();
        // Before the lock: nothing is made beside a file that is not ours.
        open::inspect(path).await?;
        let lock = open::lock_soon(path).await?;
        if open::inspect(path).await? {
            open::create(path).await?;
        }
        let mut writer = open::connect(path, options.busy_timeout, true).await?;
        open::migrate(&mut writer).await?;
        // Under the write lock: what an earlier opener of this process still commits is waited for.
        begin_loading(&mut writer).await?;
        let chunk_filter = load_filter(&mut writer, &CHUNK_KEYS).await?;
        let nar_filter = load_filter(&mut writer, &NAR_KEYS).await?;
        let object_filter = load_filter(&mut writer, &OBJECT_KEYS).await?;
        end_loading(&mut writer).await?;
        Self::with(path, &options, writer, [chunk_filter, nar_filter, object_filter], Some(lock)).await
    }

    /// Opens a database beside a process that may have it open, or open it later, in full. For followers: they may write what
    /// they alone know (publishing's rows) and correct rows, but must not add chunks, NARs, objects or caches, which the other
    /// process would call absent. Fails with [`Error::SchemaTooOld`](crate::Error::SchemaTooOld) if the schema is older than
    /// ours and the other process is there, so that it cannot be changed.
    pub async fn open_beside(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Self> {
        let path = path.as_ref();
        if open::inspect(path).await? {
            return Err(failed(
                "open the database",
                std::io::Error::from(std::io::ErrorKind::NotFound).into(),
            ));
        }
        let mut writer = open::connect(path, options.busy_timeout, true).await?;
        // The lock is only taken when it is needed: a server that starts at this moment would be refused.
        if let Err(too_old) = open::check_schema(&mut writer).await {
            match open::lock(path) {
                Ok(_lock) => open::migrate(&mut writer).await?,
                Err(crate::Error::Locked { .. }) => return Err(too_old),
                Err(error) => return Err(error),
            }
        }
        let filters = [KeyFilter::everything(), KeyFilter::everything(), KeyFilter::everything()];
        Self::with(path, &options, writer, filters, None).await
    }

    async fn with(
        path: &Path,
        options: &SqliteOptions,
        writer: SqliteConnection,
        [chunk_filter, nar_filter, object_filter]: [KeyFilter; 3],
        lock: Option<File>,
    ) -> Result<Self> {
        let mut readers = Vec::with_capacity(options.readers.max(1));
        for _ in 0..options.readers.max(1) {
            readers.push(open::connect(path, options.busy_timeout, false).await?);
        }
        Ok(Self {
            writer: Connections::new(vec![writer]),
            readers: Connections::new(readers),
            meter: Meter {
                statements: AtomicU64::new(0),
                answers: AtomicU64::new(0),
                wait_max: options.wait_max,
            },
            chunk_filter,
            nar_filter,
            object_filter,
            _lock: lock,
        })
    }

    /// What [`open`](Self::open) would do to the schema of a file, or of a new one. Writes nothing and makes nothing.
    pub async fn plan_migration(path: impl AsRef<Path>) -> Result<MigrationPlan> {
        open::plan(path.as_ref()).await
    }

    async fn read(&self, attempt: &'static str) -> Result<Session<'_, Loan<'_>>> {
        self.readers.session(&self.meter, attempt).await
    }

    async fn write(&self, attempt: &'static str) -> Result<Session<'_, Loan<'_>>> {
        self.writer.session(&self.meter, attempt).await
    }
}

/// Rows read at once when filters are loaded.
const PAGE_ROWS: usize = 8192;

/// Where the keys of a filter come from.
struct Keys {
    table: &'static str,
    count: &'static str,
    /// Row number, cache (or 0) and key bytes of a page of rows after `$1`.
    page: &'static str,
    key: fn(i64, &[u8]) -> Result<Key>,
}

const CHUNK_KEYS: Keys = Keys {
    table: "chunks",
    count: "SELECT count(*) FROM chunks",
    page: "SELECT number, 0, id FROM chunks WHERE number > $1 ORDER BY number LIMIT $2",
    key: |_, id| Ok(id_key(&array("chunks", id)?)),
};

const NAR_KEYS: Keys = Keys {
    table: "nars",
    count: "SELECT count(*) FROM nars",
    page: "SELECT id, 0, hash FROM nars WHERE id > $1 ORDER BY id LIMIT $2",
    key: |_, hash| Ok(id_key(&array("nars", hash)?)),
};

const OBJECT_KEYS: Keys = Keys {
    table: "objects",
    count: "SELECT count(*) FROM objects",
    page: "SELECT id, cache, hash FROM objects WHERE id > $1 ORDER BY id LIMIT $2",
    key: |cache, hash| Ok(object_key(cache, &array("objects", hash)?)),
};

const LOAD: &str = "load the filter of known keys";

async fn begin_loading(connection: &mut SqliteConnection) -> Result<()> {
    query("BEGIN IMMEDIATE").execute(connection).await.map(drop).map_err(|error| failed(LOAD, error))
}

async fn end_loading(connection: &mut SqliteConnection) -> Result<()> {
    query("COMMIT").execute(connection).await.map(drop).map_err(|error| failed(LOAD, error))
}

async fn load_filter(connection: &mut SqliteConnection, keys: &Keys) -> Result<KeyFilter> {
    let count = query(keys.count).fetch_one(&mut *connection).await.map_err(|error| failed(LOAD, error))?;
    let count: i64 = get(&count, 0, keys.table)?;
    let filter = KeyFilter::with_room_for(usize::try_from(count).unwrap_or_default());
    let page_rows = i64::try_from(PAGE_ROWS).expect("a small number");
    let mut last = -1_i64;
    loop {
        let page = query(keys.page).bind(last).bind(page_rows).fetch_all(&mut *connection).await;
        let page = page.map_err(|error| failed(LOAD, error))?;
        for row in &page {
            last = get(row, 0, keys.table)?;
            filter.insert((keys.key)(get(row, 1, keys.table)?, get(row, 2, keys.table)?)?);
        }
        if page.len() < PAGE_ROWS {
            return Ok(filter);
        }
    }
}

/// A column's value.
fn get<'r, T: Value<'r>>(row: &'r SqliteRow, column: usize, table: &'static str) -> Result<T> {
    row.column(column, table)
}

/// `["hex", …]`: many keys as one parameter.
fn hex_array<'k>(keys: impl Iterator<Item = &'k [u8]>) -> String {
    let mut json = String::from("[");
    for (n, key) in keys.enumerate() {
        json.push_str(if n == 0 { "\"" } else { "\",\"" });
        json.push_str(&hex::encode(key));
    }
    json.push_str(if json.len() == 1 { "]" } else { "\"]" });
    json
}

#[async_trait]
impl Index for SqliteIndex {
    async fn find_setting(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.find_setting_row(name).await
    }
    async fn create_setting(&self, name: &str, value: &[u8]) -> Result<Vec<u8>> {
        self.create_setting_row(name, value).await
    }
    async fn create_cache(&self, cache: &NewCache) -> Result<CacheId> {
        self.create_cache_row(cache).await
    }
    async fn find_cache(&self, name: &str) -> Result<Option<Cache>> {
        self.find_cache_row(name).await
    }
    async fn list_caches(&self) -> Result<Vec<Cache>> {
        self.list_cache_rows().await
    }
    async fn list_visibilities(&self) -> Result<Vec<CacheVisibility>> {
        self.list_visibility_rows().await
    }
    async fn cache_totals(&self, cache: CacheId) -> Result<CacheTotals> {
        self.cache_totals_row(cache).await
    }
    async fn update_cache(&self, cache: CacheId, patch: &CachePatch, at: UnixSeconds) -> Result<()> {
        self.update_cache_row(cache, patch, at).await
    }
    async fn delete_cache(&self, cache: CacheId, at: UnixSeconds) -> Result<()> {
        self.delete_cache_row(cache, at).await
    }
    async fn find_chunks(&self, ids: &[ChunkId]) -> Result<Vec<Option<ChunkRow>>> {
        self.find_chunk_rows(ids).await
    }
    async fn load_chunks(&self, runs: &[ChunkRun]) -> Result<Vec<ChunkRow>> {
        self.load_chunk_rows(runs).await
    }
    async fn commit_pack(&self, pack: &NewPack) -> Result<Vec<ChunkRow>> {
        self.commit_pack_rows(pack).await
    }
    async fn mark_damaged(&self, nar: NarId, chunks: &[u64], at: UnixSeconds) -> Result<()> {
        self.mark_rows_damaged(nar, chunks, at).await
    }
    async fn mark_listing_lost(&self, nar: NarId, chunks: &[u64], at: UnixSeconds) -> Result<()> {
        self.forget_listing_row(nar, chunks, at).await
    }
    async fn update_encoding(
        &self,
        nar: NarId,
        tag: &EncodingTag,
        file_size: u64,
        at: UnixSeconds,
    ) -> Result<()> {
        self.update_encoding_row(nar, tag.as_bytes(), file_size, at).await
    }
    async fn find_nar(&self, hash: &NarHash) -> Result<Option<NarSummary>> {
        self.find_nar_row(hash).await
    }
    async fn list_caches_of_nar(&self, nar: NarId, now: UnixSeconds) -> Result<Vec<CacheVisibility>> {
        self.list_caches_of_nar_rows(nar, now).await
    }
    async fn find_nar_in_cache(&self, cache: CacheId, key: &NarKey, now: UnixSeconds) -> Result<Option<Nar>> {
        self.find_nar_row_in_cache(cache, key, now).await
    }
    async fn find_listing(&self, nar: NarId) -> Result<Option<StoredListing>> {
        self.find_listing_row(nar).await
    }
    async fn commit_nar(&self, commit: &NarCommit) -> Result<CommitOutcome> {
        self.commit_nar_rows(commit).await
    }
    async fn find_object(&self, cache: CacheId, hash: &StorePathHash) -> Result<Option<FoundObject>> {
        self.find_object_row(cache, hash).await
    }
    async fn present_objects(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<(StorePathHash, UnixSeconds)>> {
        self.present_object_rows(cache, hashes).await
    }
    async fn touch_objects(&self, cache: CacheId, hashes: &[StorePathHash], at: UnixSeconds) -> Result<()> {
        self.touch_object_rows(cache, hashes, at).await
    }
    async fn remove_object(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        removal: Removal,
        at: UnixSeconds,
    ) -> Result<bool> {
        self.remove_object_row(cache, hash, removal, at).await
    }
    async fn find_alias(&self, cache: CacheId, file_name: &str, since: UnixSeconds) -> Result<Option<Alias>> {
        self.find_alias_row(cache, file_name, since).await
    }
    async fn outbox_after(&self, position: OutboxPosition, limit: u32) -> Result<Vec<OutboxRow>> {
        self.outbox_rows_after(position, limit).await
    }
    fn changes(&self) -> Changes {
        // No other process writes, and whoever writes through this one knows what it did.
        Changes::none()
    }
    async fn ping(&self) -> Result<()> {
        self.ping_database().await
    }
    async fn check_ready(&self) -> Result<()> {
        self.check_writable().await
    }
    /// Also folds the log into the main file.
    async fn close(&self) -> Result<()> {
        self.readers.close(&self.meter).await?;
        self.writer.close(&self.meter).await
    }
    fn statement_count(&self) -> u64 {
        self.meter.statements.load(Ordering::Relaxed)
    }
    fn pool_use(&self) -> PoolUse {
        let (write, read) = (self.writer.pool_use(), self.readers.pool_use());
        PoolUse {
            open: write.open + read.open,
            idle: write.idle + read.idle,
            max: write.max + read.max,
            waiting: write.waiting + read.waiting,
        }
    }
}
