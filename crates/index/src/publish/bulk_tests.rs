//! Publishing a large cache: 200,000 objects in every run, 5 million in the long run. Calls end
//! within the lease of their holder, and no statement runs into its limit.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormer_nix::StorePathHash;
use dormer_testkit::services::Postgres;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, raw_sql};

use crate::synthetic::{Columns, KEY_STEP, NARS, OBJECTS, path_hash};
use crate::{
    CacheId, CacheKey, CacheScan, Forget, Index, Lease, NarRows, NewCache, NotedFrom, ObjectRows,
    OutboxPosition, PendingVerdicts, PostgresIndex, PostgresOptions, PublishDone, PublishIndex,
    PublishIntent, PublishedNar, Removals, SqliteIndex, SqliteOptions,
};

const NOW: i64 = 1_800_000_000;

/// A holder renews its lease with every write, so no call may take longer.
const LEASE: Duration = Duration::from_secs(1);
const STATEMENT: Duration = Duration::from_secs(2);

/// Rows noted or looked through in one call; objects in one page.
const STEP: u32 = 4_096;
const PAGE: u32 = 1_024;
/// Objects removed together.
const REMOVED_PAGE: u32 = 512;

fn object_count() -> u64 {
    if std::env::var_os("DORMER_TEST_LONG").is_some() { 5_000_000 } else { 200_000 }
}

/// How long the calls of each kind took.
#[derive(Default)]
struct Calls(Vec<(&'static str, Vec<Duration>)>);

impl Calls {
    async fn time<T>(&mut self, what: &'static str, call: impl Future<Output = crate::Result<T>>) -> T {
        let begin = Instant::now();
        let done = call.await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let took = begin.elapsed();
        match self.0.iter_mut().find(|(name, _)| *name == what) {
            Some((_, all)) => all.push(took),
            None => self.0.push((what, vec![took])),
        }
        done
    }

    /// Checks each kind of call against the lease, and returns the longest of each kind. A busy
    /// machine delays single calls; a call that grows with the cache is slow every time. The median
    /// tells the two apart, and the database ends any statement that runs into its limit.
    fn check(mut self) -> String {
        let mut longest = Vec::new();
        for (what, all) in &mut self.0 {
            all.sort_unstable();
            let median = all[all.len() / 2];
            assert!(median < LEASE, "{what} takes {median:?}");
            longest.push(format!("{what} {} ms", all.last().map_or(0, Duration::as_millis)));
        }
        longest.join(", ")
    }
}

/// `objects` paths in the cache and in the target, each with a NAR. In the target, each but the
/// first refers to the first, and to the one with half its number.
fn fill(numbers: &str, cache: CacheId, key: fn(u64, &str, usize) -> String) -> String {
    let Columns { recipe, refs, sigs, .. } = Columns::new();
    let (hash, nar) = (key(OBJECTS, "i", 20), key(NARS, "i", 32));
    let cache = cache.0;
    format!(
        "INSERT INTO nars (size, file_size, hash, tag, recipe)
             {numbers} SELECT 500000, 240000, {nar}, substr({nar}, 1, 16), {recipe} FROM n;
         INSERT INTO objects (cache, nar, created_at, last_used_at, hash, name, sigs, refs)
             SELECT {cache}, id, {NOW} - id % 1000, {NOW}, substr(hash, 1, 20), 'package', {sigs}, {refs} FROM nars;
         INSERT INTO publish_objects (target, cache, hash, state, nar, tag, digest, upstream)
             {numbers} SELECT 1, {cache}, {hash}, 1, {nar}, substr({nar}, 1, 16), {nar}, 0 FROM n;
         INSERT INTO publish_nars (target, cache, nar, tag, path, uploaded, file_size)
             {numbers} SELECT 1, {cache}, {nar}, substr({nar}, 1, 16), {hash}, 1, 240000 FROM n;
         INSERT INTO publish_refs (target, cache, reference, referrer)
             {numbers} SELECT 1, {cache}, {first}, {hash} FROM n WHERE i > 1;
         INSERT INTO publish_refs (target, cache, reference, referrer)
             {numbers} SELECT 1, {cache}, {half}, {hash} FROM n WHERE i > 3;
         INSERT INTO publish_removed (target, cache, hash, at) {numbers} SELECT 1, {cache}, {hash}, 7 FROM n;",
        recipe = bytes(key, &recipe),
        sigs = bytes(key, &sigs),
        refs = bytes(key, &refs),
        first = key(OBJECTS, "1", 20),
        half = key(OBJECTS, "(i / 2)", 20),
    )
}

/// The same for PostgreSQL.
pub(super) fn fill_postgres(objects: u64, cache: CacheId) -> String {
    let numbers = format!("WITH n (i) AS (SELECT i FROM generate_series(1, {objects}) AS g (i))");
    let sql = fill(&numbers, cache, postgres_key);
    // A replica checks no references and runs no triggers.
    format!(
        "SET session_replication_role = replica; SET synchronous_commit = off; {sql}
         INSERT INTO publish_counts (target, cache, published, nars, file_bytes)
             VALUES (1, {cache}, {objects}, {objects}, 240000::bigint * {objects});",
        cache = cache.0
    )
}

/// A literal of the database that `key` is for.
fn bytes(key: fn(u64, &str, usize) -> String, hex: &str) -> String {
    if key(0, "0", 8).starts_with("unhex") { format!("x'{hex}'") } else { format!("'\\x{hex}'::bytea") }
}

fn sqlite_key(kind: u64, number: &str, len: usize) -> String {
    let rest = "0".repeat(2 * len - 16);
    format!("unhex(printf('%016x', ({number}) * {KEY_STEP} + {kind}) || '{rest}')")
}

fn postgres_key(kind: u64, number: &str, len: usize) -> String {
    let rest = "0".repeat(2 * len - 16);
    format!("decode(lpad(to_hex(({number})::bigint * {KEY_STEP} + {kind}), 16, '0') || '{rest}', 'hex')")
}

async fn prepare(index: &(impl Index + PublishIndex)) -> (CacheId, Lease) {
    let cache = NewCache {
        master_key_proof: None,
        name: "main".to_owned(),
        is_public: true,
        store_dir: "/nix/store".to_owned(),
        priority: 40,
        upstream_cache_key_names: vec![],
        key: CacheKey { public_key: "main-1:key".to_owned(), sealed_secret: vec![1], active: true },
        created_at: NOW,
        allow_replacement: true,
    };
    let cache = index.create_cache(&cache).await.unwrap();
    let target = index.open_target("edge", "memory").await.unwrap();
    assert_eq!(target.id.0, 1);
    (cache, index.acquire_lease(target.id, "me", NOW, NOW + 1).await.unwrap().unwrap())
}

/// What a run does with a whole cache, page by page.
async fn publish_all(name: &str, index: &dyn PublishIndex, cache: CacheId, lease: Lease, objects: u64) {
    let mut calls = Calls::default();
    let begin = Instant::now();
    let target = lease.target;
    let mut scan = Some(CacheScan::Objects(None));
    while let Some(at) = scan {
        scan = calls.time("note a step", index.note_cache_step(&lease, cache, at, STEP, NOW)).await;
    }
    // The target has the same objects under other hashes: all of those are absent.
    let counts = calls.time("count", index.publish_counts(target, cache)).await;
    assert_eq!((counts.pending, counts.published), (2 * objects, objects));
    let noted = begin.elapsed();
    let mut after = None;
    let mut seen = 0;
    loop {
        let page = calls.time("page of pending", index.pending_objects(target, cache, after, PAGE)).await;
        let Some(last) = page.last() else { break };
        after = Some((last.since, last.hash));
        seen += page.len() as u64;
    }
    assert_eq!(seen, 2 * objects);
    let (mut after, mut absent) = (None, 0);
    loop {
        let page = calls.time("page of absent", index.pending_absent(target, cache, after, STEP)).await;
        if page.next.is_none() {
            break;
        }
        after = page.next;
        absent += page.absent.len() as u64;
    }
    assert_eq!(absent, objects);
    let (mut after, mut listed, mut all) = (None, 0, Vec::new());
    loop {
        let rows = ObjectRows::Page { bytes: 0..=255, after, limit: 2 * PAGE };
        let list = index.published_objects(target, cache, rows);
        let page = calls.time("page in the order of names", list).await;
        let Some(last) = page.last() else { break };
        after = Some(last.hash);
        listed += page.len() as u64;
        all.extend(page.iter().map(|row| row.hash));
    }
    assert_eq!(listed, objects);
    let (mut after, mut listed) = (None, 0);
    loop {
        let rows = NarRows::Page { bytes: 0..=255, after, limit: 2 * PAGE };
        let list = index.published_nars(target, cache, rows);
        let page = calls.time("page of NARs", list).await;
        let Some(last) = page.last() else { break };
        after = Some(last.nar);
        listed += page.len() as u64;
    }
    assert_eq!(listed, objects);
    // Bringing a page of paths.
    let intents: Vec<PublishIntent> = index
        .published_objects(target, cache, ObjectRows::Page { bytes: 0..=255, after: None, limit: PAGE })
        .await
        .unwrap()
        .iter()
        .map(|row| PublishIntent {
            hash: row.hash,
            nar: row.nar,
            file_size: 7,
            references: if row.hash == path_hash(1) { vec![] } else { vec![path_hash(1)] },
            documents: vec![],
        })
        .collect();
    calls.time("begin a page", index.begin_publishing(&lease, cache, &intents)).await;
    let uploaded: Vec<_> = intents.iter().map(uploaded).collect();
    calls.time("note uploads", index.note_uploaded(&lease, cache, &uploaded)).await;
    let done: Vec<_> = intents.iter().map(done).collect();
    calls.time("finish a page", index.finish_publishing(&lease, cache, &done, NOW)).await;
    let verdicts = PendingVerdicts {
        waiting: all[1_000..1_500].iter().map(|hash| (*hash, "waits".to_owned())).collect(),
        lost: all[1_500..2_000].iter().map(|hash| (*hash, all[0])).collect(),
        ..PendingVerdicts::default()
    };
    calls.time("settle a page", index.settle_pending(&lease, cache, &verdicts, NOW)).await;
    let changes: Vec<_> = all.iter().take(1_000).map(|hash| (cache, *hash, NOW)).collect();
    let position = NotedFrom::Outbox(OutboxPosition { transaction: 1, number: 1 });
    calls.time("note a page of the outbox", index.note_pending(&lease, &changes, position)).await;
    let old = Forget::RemovedBefore(NOW);
    while !calls.time("forget old removals", index.forget_rows(&lease, cache, old, STEP)).await {}
    let removed = remove_with_all_referrers(&mut calls, index, cache, &lease, path_hash(1)).await;
    assert_eq!(removed, objects);
    let begin = Instant::now();
    while !calls.time("forget a step", index.forget_rows(&lease, cache, Forget::All, STEP)).await {}
    let forgotten = begin.elapsed();
    assert_eq!(index.publish_counts(target, cache).await.unwrap(), crate::PublishCounts::default());
    let longest = calls.check();
    // Beside the tests' own output, which hides what a test prints that passes.
    let _ = writeln!(
        std::io::stderr(),
        "{name}, {objects} objects: noted in {noted:?}, forgotten in {forgotten:?}; longest: {longest}"
    );
}

fn uploaded(intent: &PublishIntent) -> PublishedNar {
    let file_size = intent.file_size;
    PublishedNar {
        nar: intent.nar,
        uploaded: true,
        file_size,
        file_hash: None,
        etag: None,
        delete_after: None,
    }
}

fn done(intent: &PublishIntent) -> PublishDone {
    PublishDone {
        hash: intent.hash,
        nar: intent.nar,
        digest: vec![7],
        etag: None,
        upstream: false,
        references: intent.references.clone(),
        documents: vec![],
        stale_documents: vec![],
    }
}

/// Removes a path that all others refer to, and therefore all others. Returns how many went.
async fn remove_with_all_referrers(
    calls: &mut Calls,
    index: &dyn PublishIndex,
    cache: CacheId,
    lease: &Lease,
    path: StorePathHash,
) -> u64 {
    let removals = Removals { gone: vec![path], ..Removals::default() };
    calls.time("begin to remove", index.begin_removing(lease, cache, &removals, NOW)).await;
    while calls.time("take referrers", index.take_referrers(lease, cache, NOW)).await.more {}
    // In each pass go those that nothing refers to any more.
    let mut removed = 0;
    loop {
        let (mut after, before) = (None, removed);
        loop {
            let list = index.removable(lease.target, cache, false, after, REMOVED_PAGE);
            let page = calls.time("page of removable", list).await;
            if page.next.is_none() {
                break;
            }
            after = page.next;
            removed += page.hashes.len() as u64;
            calls.time("remove a page", index.finish_removing(lease, cache, &page.hashes, NOW, NOW)).await;
        }
        if removed == before {
            return removed;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_cache_is_published_from_sqlite_within_every_limit() {
    let objects = object_count();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let options = || SqliteOptions { wait_max: STATEMENT, ..SqliteOptions::default() };
    let index = SqliteIndex::open(&path, options()).await.unwrap();
    let (cache, lease) = prepare(&index).await;
    index.close().await.unwrap();
    drop(index);
    let mut connection = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    let numbers =
        format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {objects})");
    let sql = fill(&numbers, cache, sqlite_key);
    let sql = format!("PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF; BEGIN; {sql} COMMIT;");
    raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    // Otherwise the first commit would wait until the system has written all of it.
    std::fs::File::open(&path).unwrap().sync_all().unwrap();
    let index: Arc<dyn PublishIndex> = Arc::new(SqliteIndex::open(&path, options()).await.unwrap());
    publish_all("SQLite", &*index, cache, lease, objects).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_cache_is_published_from_postgresql_within_every_limit() {
    let objects = object_count();
    // Its own server, so that its rows go with it.
    let server = Postgres::start_with(&["shared_buffers=256MB", "max_wal_size=2GB"]);
    let url = server.create_database();
    let options = PostgresOptions { statement_timeout: STATEMENT, ..PostgresOptions::default() };
    let index = PostgresIndex::open(&url, options).await.unwrap();
    let (cache, lease) = prepare(&index).await;
    server.sql(&url, &fill_postgres(objects, cache));
    publish_all("PostgreSQL", &index, cache, lease, objects).await;
}
