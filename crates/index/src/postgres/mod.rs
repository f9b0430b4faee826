//! The PostgreSQL adapter: a server, any number of replicas.
//!
//! Invariants
//! - Whatever two transactions have to agree on is locked before it is looked at; rows are locked in one order everywhere.
//! - A call that another transaction was in the way of is repeated here, with growing random pauses; so is one whose
//!   connection was lost, unless it may have been carried out and a second time would not be the same.
//! - Every wait is bounded: for a connection, a lock, a statement, an idle transaction, and for a server that went silent.
//! - Nothing is remembered between calls: other replicas write too.

mod audit;
mod backoff;
mod caches;
mod changes;
mod examine;
#[cfg(test)]
mod large_tests;
mod nars;
mod objects;
mod open;
mod outbox;
mod packs;
#[cfg(test)]
mod pooler_tests;
mod publish;
mod session;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use dormer_format::{ChunkId, ChunkRun, EncodingTag};
use dormer_nix::{NarHash, StorePathHash};
use sqlx::postgres::{PgPool, PgPoolOptions};
use tokio::task::AbortHandle;

use self::backoff::Backoff;
use self::session::{Lock, Meter, Session};
use crate::changes::{ChangeSender, Changes};
use crate::contract::{
    Alias, Cache, CacheId, CachePatch, CacheTotals, CacheVisibility, ChunkRow, CommitOutcome, FoundObject,
    Index, Nar, NarCommit, NarId, NarKey, NarSummary, NewCache, NewPack, OutboxPosition, OutboxRow, PING_MAX,
    PoolUse, Removal, StoredListing, UnixSeconds,
};
use crate::{Error, MigrationPlan, Result};

/// Most keys in one call.
const KEYS_MAX: usize = 16_384;

/// Most times that a call is made.
const TRIES_MAX: u32 = 10;

/// The server has this long to end a statement that ran out of time, before the connection is given up.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// How to use the server.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Most connections of this process; one more listens for changes.
    pub connections_max: u32,
    /// Longest wait for a free connection, and for a server that does not accept any.
    pub acquire_timeout: Duration,
    /// Longest run of a statement, and longest pause within a transaction.
    pub statement_timeout: Duration,
    /// Longest wait for what another transaction holds.
    pub lock_timeout: Duration,
    /// Whether a pooler gives every transaction another connection (PgBouncer's `pool_mode = transaction`). Nobody can
    /// listen for changes then, nothing is prepared, and every look-up is a transaction.
    pub transaction_pooler: bool,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            connections_max: 16,
            acquire_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(10),
            transaction_pooler: false,
        }
    }
}

/// An index in a PostgreSQL database.
#[derive(Debug)]
pub struct PostgresIndex {
    pool: PgPool,
    meter: Arc<Meter>,
    changes: ChangeSender,
    listener: Option<AbortHandle>,
    repeat_for: Duration,
}

impl PostgresIndex {
    /// Opens a database and brings its schema up to date. `url` is `postgresql://user:password@host:port/database`, with
    /// `sslmode` and the other parameters of libpq behind a `?`.
    pub async fn open(url: &str, options: PostgresOptions) -> Result<Self> {
        let connect = open::connect_options(url, &options)?;
        open::prepare(&connect, &options).await?;
        let settings = open::transaction_settings(&options);
        let answer_max = options.statement_timeout + SILENCE_MAX;
        let meter = Arc::new(Meter::new(answer_max, options.transaction_pooler, settings));
        let pool = open::pool_options(&options, &meter).connect_lazy_with(connect.clone());
        let changes = ChangeSender::new();
        let listener = (!options.transaction_pooler).then(|| {
            let one = PgPoolOptions::new().max_connections(1).acquire_timeout(options.acquire_timeout);
            let one = one.max_lifetime(None).idle_timeout(None).connect_lazy_with(connect);
            tokio::spawn(changes::listen(one, changes.clone())).abort_handle()
        });
        Ok(Self { pool, meter, changes, listener, repeat_for: options.acquire_timeout })
    }

    /// What [`open`](Self::open) would do to the schema. Writes nothing.
    pub async fn plan_migration(url: &str, options: &PostgresOptions) -> Result<MigrationPlan> {
        open::plan(&open::connect_options(url, options)?, options).await
    }

    /// Where a URL leads, for people: without user and password. Fails if it is none.
    pub fn name_of(url: &str) -> Result<String> {
        open::name_of(url)
    }

    fn stop_listening(&self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
    }

    async fn read(&self, attempt: &'static str) -> Result<Session<'_>> {
        Session::read(&self.pool, &self.meter, attempt).await
    }

    async fn write(&self, attempt: &'static str, locks: &[Lock]) -> Result<Session<'_>> {
        Session::write(&self.pool, &self.meter, attempt, locks).await
    }

    /// Makes a call, again if another transaction was in its way or its connection was lost. For calls that are the same
    /// done twice.
    async fn again<T, Fut>(&self, call: impl Fn() -> Fut + Send + Sync) -> Result<T>
    where
        Fut: Future<Output = Result<T>> + Send,
    {
        self.repeat(true, call).await
    }

    /// The same for calls that must not be made again if they may have had their effect.
    async fn again_unless_done<T, Fut>(&self, call: impl Fn() -> Fut + Send + Sync) -> Result<T>
    where
        Fut: Future<Output = Result<T>> + Send,
    {
        self.repeat(false, call).await
    }

    async fn repeat<T, Fut>(&self, same_twice: bool, call: impl Fn() -> Fut + Send + Sync) -> Result<T>
    where
        Fut: Future<Output = Result<T>> + Send,
    {
        let begin = Instant::now();
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        let mut tries = 0;
        loop {
            let error = match call().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if session::is_lost(&error) {
                self.meter.note_loss();
            }
            tries += 1;
            let may_repeat = session::may_repeat(&error) || same_twice && session::may_be_done(&error);
            if !may_repeat || tries == TRIES_MAX || begin.elapsed() > self.repeat_for {
                return Err(error);
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }
}

impl Drop for PostgresIndex {
    fn drop(&mut self) {
        self.stop_listening();
    }
}

#[async_trait]
impl Index for PostgresIndex {
    async fn find_setting(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.again(|| self.find_setting_row(name)).await
    }
    async fn create_setting(&self, name: &str, value: &[u8]) -> Result<Vec<u8>> {
        self.again(|| self.create_setting_row(name, value)).await
    }
    async fn create_cache(&self, cache: &NewCache) -> Result<CacheId> {
        self.again_unless_done(|| self.create_cache_row(cache)).await
    }
    async fn find_cache(&self, name: &str) -> Result<Option<Cache>> {
        self.again(|| self.find_cache_row(name)).await
    }
    async fn list_caches(&self) -> Result<Vec<Cache>> {
        self.again(|| self.list_cache_rows()).await
    }
    async fn list_visibilities(&self) -> Result<Vec<CacheVisibility>> {
        self.again(|| self.list_visibility_rows()).await
    }
    async fn cache_totals(&self, cache: CacheId) -> Result<CacheTotals> {
        self.again(|| self.cache_totals_row(cache)).await
    }
    async fn update_cache(&self, cache: CacheId, patch: &CachePatch, at: UnixSeconds) -> Result<()> {
        self.again_unless_done(|| self.update_cache_row(cache, patch, at)).await
    }
    async fn delete_cache(&self, cache: CacheId, at: UnixSeconds) -> Result<()> {
        self.again(|| self.delete_cache_row(cache, at)).await
    }
    async fn find_chunks(&self, ids: &[ChunkId]) -> Result<Vec<Option<ChunkRow>>> {
        self.again(|| self.find_chunk_rows(ids)).await
    }
    async fn load_chunks(&self, runs: &[ChunkRun]) -> Result<Vec<ChunkRow>> {
        self.again(|| self.load_chunk_rows(runs)).await
    }
    async fn commit_pack(&self, pack: &NewPack) -> Result<Vec<ChunkRow>> {
        self.again(|| self.commit_pack_rows(pack)).await
    }
    async fn mark_damaged(&self, nar: NarId, chunks: &[u64], at: UnixSeconds) -> Result<()> {
        self.again(|| self.mark_rows_damaged(nar, chunks, at)).await
    }
    async fn mark_listing_lost(&self, nar: NarId, chunks: &[u64], at: UnixSeconds) -> Result<()> {
        self.again(|| self.forget_listing_row(nar, chunks, at)).await
    }
    async fn update_encoding(
        &self,
        nar: NarId,
        tag: &EncodingTag,
        file_size: u64,
        at: UnixSeconds,
    ) -> Result<()> {
        self.again(|| self.update_encoding_row(nar, tag.as_bytes(), file_size, at)).await
    }
    async fn find_nar(&self, hash: &NarHash) -> Result<Option<NarSummary>> {
        self.again(|| self.find_nar_row(hash)).await
    }
    async fn list_caches_of_nar(&self, nar: NarId, now: UnixSeconds) -> Result<Vec<CacheVisibility>> {
        self.again(|| self.list_caches_of_nar_rows(nar, now)).await
    }
    async fn find_nar_in_cache(&self, cache: CacheId, key: &NarKey, now: UnixSeconds) -> Result<Option<Nar>> {
        self.again(|| self.find_nar_row_in_cache(cache, key, now)).await
    }
    async fn find_listing(&self, nar: NarId) -> Result<Option<StoredListing>> {
        self.again(|| self.find_listing_row(nar)).await
    }
    async fn commit_nar(&self, commit: &NarCommit) -> Result<CommitOutcome> {
        self.again(|| self.commit_nar_rows(commit)).await
    }
    async fn find_object(&self, cache: CacheId, hash: &StorePathHash) -> Result<Option<FoundObject>> {
        self.again(|| self.find_object_row(cache, hash)).await
    }
    async fn present_objects(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<(StorePathHash, UnixSeconds)>> {
        self.again(|| self.present_object_rows(cache, hashes)).await
    }
    async fn touch_objects(&self, cache: CacheId, hashes: &[StorePathHash], at: UnixSeconds) -> Result<()> {
        self.again(|| self.touch_object_rows(cache, hashes, at)).await
    }
    async fn remove_object(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        removal: Removal,
        at: UnixSeconds,
    ) -> Result<bool> {
        self.again_unless_done(|| self.remove_object_row(cache, hash, removal, at)).await
    }
    async fn find_alias(&self, cache: CacheId, file_name: &str, since: UnixSeconds) -> Result<Option<Alias>> {
        self.again(|| self.find_alias_row(cache, file_name, since)).await
    }
    async fn outbox_after(&self, position: OutboxPosition, limit: u32) -> Result<Vec<OutboxRow>> {
        self.again(|| self.outbox_rows_after(position, limit)).await
    }
    fn changes(&self) -> Changes {
        self.changes.subscribe()
    }
    async fn ping(&self) -> Result<()> {
        let before = self.meter.answer_count();
        let timed_out = |_| Err(session::failed(caches::PING, sqlx::Error::PoolTimedOut));
        let answer = tokio::time::timeout(PING_MAX, self.again(|| self.ping_server())).await;
        match answer.unwrap_or_else(timed_out) {
            // All connections are taken, by calls that are answered.
            Err(Error::Unavailable { source: sqlx::Error::PoolTimedOut, .. })
                if self.meter.answer_count() > before =>
            {
                Ok(())
            }
            answer => answer,
        }
    }
    async fn check_ready(&self) -> Result<()> {
        self.again(|| self.check_writable()).await
    }
    async fn close(&self) -> Result<()> {
        self.stop_listening();
        // What runs ends by its own time-outs.
        self.pool.close().await;
        Ok(())
    }
    fn statement_count(&self) -> u64 {
        self.meter.statement_count()
    }
    fn pool_use(&self) -> PoolUse {
        let (open, idle) = (self.pool.size() as usize, self.pool.num_idle());
        let max = self.pool.options().get_max_connections() as usize;
        // Two numbers, read one after the other.
        PoolUse { open, idle: idle.min(open), max, waiting: self.meter.waiting() }
    }
}
