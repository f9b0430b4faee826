//! Garbage collection: what planning a collection over a large index costs, and what recompression
//! saves.
//!
//! An index is filled by the database itself, with rows like those of pushes: an object has one NAR
//! of five chunks, and one NAR in a hundred has lost its object. The plan runs in a process of its
//! own, so that its peak memory is that of a collection alone. The database's own CPU counts
//! separately: SQLite runs in the process, PostgreSQL beside it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use dormer_blobs::{Blobs, StoreBlobs};
use dormer_engine::{
    Clock, CollectSettings, CollectionPlan, Collector, CompactionTotals, CreateCache, Engine, EngineSettings,
    IngestRequest, MasterKey, SystemClock,
};
use dormer_format::RecipeBuilder;
use dormer_index::{
    CollectIndex, Index, NewCache, PackNumber, PostgresIndex, PostgresOptions, SqliteIndex, SqliteOptions,
};
use dormer_testkit::services::Postgres;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Connection as _, raw_sql};

use crate::corpus::Generation;
use crate::error::{Context, Error, Result};
use crate::measure::{peak_memory_bytes, process_cpu_seconds, tree_cpu_seconds};
use crate::report::{Table, megabytes, note};

/// Chunks in a pack, as pushes of packages leave them: 16 MB at 64 kB each.
const PACK_CHUNKS: u64 = 250;

/// NARs in one statement.
const BATCH: u64 = 20_000;

/// Seconds that everything is old.
const AGE: i64 = 60 * 86_400;

/// Of so many NARs, one has no name.
const UNNAMED_ONE_IN: u64 = 100;

/// The cache that is filled, in SQL.
const FIRST_CACHE: &str = "(SELECT min(id) FROM caches)";

/// How far two keys of one kind are apart, so that no two kinds meet.
const KEY_STEP: u64 = 400_000_000_000;

/// The kind of the keys of objects.
const PATH_HASHES: u64 = 3;

/// What a plan cost.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PlanCost {
    pub(crate) database: String,
    pub(crate) objects: u64,
    pub(crate) chunks: u64,
    /// Wall seconds, with the pauses that a plan makes.
    pub(crate) seconds: f64,
    /// CPU seconds of the process, with SQLite's.
    pub(crate) cpu_seconds: f64,
    /// CPU seconds of PostgreSQL.
    pub(crate) database_cpu_seconds: f64,
    /// Peak resident memory of the process.
    pub(crate) peak_bytes: u64,
    pub(crate) plan: CollectionPlan,
}

/// The costs of all plans.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct PlanCosts(pub(crate) Vec<PlanCost>);

impl PlanCosts {
    pub(crate) fn markdown(&self) -> String {
        let mut table = Table::new(&[
            "database",
            "objects",
            "chunks",
            "CPU s",
            "of it PostgreSQL",
            "wall s",
            "peak MB",
            "NARs to remove",
            "packs to condemn",
        ]);
        for cost in &self.0 {
            table.row(&[
                cost.database.clone(),
                cost.objects.to_string(),
                cost.chunks.to_string(),
                format!("{:.1}", cost.cpu_seconds + cost.database_cpu_seconds),
                format!("{:.1}", cost.database_cpu_seconds),
                format!("{:.1}", cost.seconds),
                megabytes(cost.peak_bytes),
                cost.plan.nars.to_string(),
                cost.plan.condemn.packs.to_string(),
            ]);
        }
        table.finish()
    }
}

/// Fills an index on each database and plans a collection over it.
pub(crate) fn measure(work: &Path, objects: u64, chunks: u64, on_postgres: bool) -> Result<PlanCosts> {
    let mut costs = PlanCosts::default();
    let folder = work.join("gc");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).context(|| format!("make {}", folder.display()))?;
    let file = folder.join("index.sqlite");
    let scale = Scale { objects, chunks: chunks / objects };
    runtime()?.block_on(scale.make_sqlite(&file))?;
    costs.0.push(plan_apart(&file.display().to_string(), scale, None)?);
    std::fs::remove_dir_all(&folder).context(|| format!("remove {}", folder.display()))?;
    if on_postgres {
        let server = Postgres::start_with(&["max_wal_size=4GB", "shared_buffers=256MB"]);
        let url = server.create_database();
        runtime()?.block_on(scale.make_postgres(&server, &url))?;
        costs.0.push(plan_apart(&url, scale, Some(server.process_id()))?);
    }
    Ok(costs)
}

/// Plans in a new process; `server` is PostgreSQL's first process.
fn plan_apart(database: &str, scale: Scale, server: Option<u32>) -> Result<PlanCost> {
    note(&format!("planning over {} objects in {database}", scale.objects));
    let before = server.map_or(Ok(0.0), tree_cpu_seconds)?;
    let program = std::env::current_exe().context(|| "find this program".to_owned())?;
    let output = Command::new(program)
        .args(["gc-plan", database])
        .stderr(Stdio::inherit())
        .output()
        .context(|| "start the planner".to_owned())?;
    if !output.status.success() {
        return Err(Error::new(format!("the planner ended with {}", output.status)));
    }
    let after = server.map_or(Ok(0.0), tree_cpu_seconds)?;
    let mut cost: PlanCost =
        serde_json::from_slice(&output.stdout).context(|| "read the planner's answer".to_owned())?;
    let database = if server.is_some() { "PostgreSQL" } else { "SQLite" };
    cost.database = String::from(database);
    (cost.objects, cost.chunks) = (scale.objects, scale.objects * scale.chunks);
    cost.database_cpu_seconds = after - before;
    Ok(cost)
}

/// Plans a collection over an index, a file or a URL, and measures this process.
pub(crate) fn plan(database: &str) -> Result<PlanCost> {
    runtime()?.block_on(async {
        let index: Arc<dyn CollectIndex> = if database.contains("://") {
            Arc::new(
                PostgresIndex::open(database, PostgresOptions::default())
                    .await
                    .context(|| format!("open {database}"))?,
            )
        } else {
            Arc::new(
                SqliteIndex::open(PathBuf::from(database), SqliteOptions::default())
                    .await
                    .context(|| format!("open {database}"))?,
            )
        };
        let blobs: Arc<dyn Blobs> = Arc::new(StoreBlobs::in_memory());
        let collector = Collector::new(index, blobs, Arc::new(SystemClock), CollectSettings::default());
        // Opening SQLite reads all keys into filters: a server does that at its start.
        let me = std::process::id();
        let (begun, cpu) = (Instant::now(), process_cpu_seconds(me)?);
        let plan = collector.plan().await.context(|| "plan a collection".to_owned())?;
        Ok(PlanCost {
            database: String::new(),
            objects: 0,
            chunks: 0,
            seconds: begun.elapsed().as_secs_f64(),
            cpu_seconds: process_cpu_seconds(me)? - cpu,
            database_cpu_seconds: 0.0,
            peak_bytes: peak_memory_bytes(me)?,
            plan,
        })
    })
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context(|| "start a runtime".to_owned())
}

/// How much an index holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) objects: u64,
    /// Of each object.
    pub(crate) chunks: u64,
}

impl Scale {
    fn packs(self) -> u64 {
        (self.objects * self.chunks).div_ceil(PACK_CHUNKS)
    }

    /// The number of a chunk, counted over all packs from 0.
    fn chunk(place: u64) -> u64 {
        (place / PACK_CHUNKS + 1) * 65_536 + place % PACK_CHUNKS
    }

    /// The hash in the store path of an object, counted from 0.
    pub(crate) fn path_hash(place: u64) -> String {
        let named = UNNAMED_ONE_IN - 1;
        let number = place / named * UNNAMED_ONE_IN + place % named + 1;
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&(number * KEY_STEP + PATH_HASHES).to_be_bytes());
        dormer_nix::StorePathHash::from_bytes(bytes).to_string()
    }

    /// Rows of NARs as JSON: number and recipe. All other columns follow from the number.
    fn nars(self, first: u64) -> String {
        let rows = (first..(first + BATCH).min(self.objects + 1)).map(|number| {
            let mut recipe = RecipeBuilder::new();
            for place in (number - 1) * self.chunks..number * self.chunks {
                recipe.push_chunk(Self::chunk(place));
            }
            format!("[{number},\"{}\"]", hex::encode(recipe.finish().encode()))
        });
        format!("[{}]", rows.collect::<Vec<_>>().join(","))
    }

    async fn make_sqlite(self, file: &Path) -> Result<()> {
        let index = SqliteIndex::open(file.to_owned(), SqliteOptions::default())
            .await
            .context(|| format!("make {}", file.display()))?;
        make_cache(&index).await?;
        index.close().await.context(|| "close the index".to_owned())?;
        drop(index);
        self.fill_sqlite(file).await
    }

    /// Fills the first cache of a database without paths.
    pub(crate) async fn fill_sqlite(self, file: &Path) -> Result<()> {
        let attempt = || format!("fill {}", file.display());
        let mut database = sqlx::SqliteConnection::connect(&format!("sqlite://{}", file.display()))
            .await
            .context(attempt)?;
        let then = SystemClock.now() - AGE;
        let upto = |count: u64| {
            format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})")
        };
        let key = |kind: u64, number: &str, bytes: usize| {
            let rest = "0".repeat(2 * bytes - 16);
            format!("unhex(printf('%016x', ({number}) * {KEY_STEP} + {kind}) || '{rest}')")
        };
        let Self { objects, .. } = self;
        let sql = format!(
            "PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF; PRAGMA cache_size = -200000; BEGIN;
             {packs} INSERT INTO packs (number, id, size, created_at, used_at, chunks)
                 SELECT i, {pack_id}, 16000000, {then}, {then}, {PACK_CHUNKS} FROM n;
             {chunks} INSERT INTO chunks (number, id, pack, start, checksum, layout)
                 SELECT ((i - 1) / {PACK_CHUNKS} + 1) * 65536 + (i - 1) % {PACK_CHUNKS}, {chunk_id},
                     (i - 1) / {PACK_CHUNKS} + 1, 32 + (i - 1) % {PACK_CHUNKS} * 64000, i, x'{layout}' FROM n;
             {nars} INSERT INTO objects (id, cache, hash, nar, created_at, last_used_at, name, sigs, refs)
                 SELECT i, {FIRST_CACHE}, {path_hash}, i, {then}, {then}, 'package', x'', x'' FROM n
                 WHERE i % {UNNAMED_ONE_IN} <> 0;
             {nars} INSERT INTO listings (nar, body) SELECT i, x'00' FROM n;",
            packs = upto(self.packs()),
            chunks = upto(objects * self.chunks),
            nars = upto(objects),
            pack_id = key(4, "i", 16),
            chunk_id = key(1, "i", 32),
            path_hash = key(PATH_HASHES, "i", 20),
            layout = hex::encode(layout()),
        );
        raw_sql(AssertSqlSafe(sql)).execute(&mut database).await.context(attempt)?;
        let insert = format!(
            "INSERT INTO nars (id, hash, size, file_size, tag, recipe)
             SELECT k.value ->> 0, {hash}, 500000, 240000, substr({hash}, 1, 16), unhex(k.value ->> 1)
             FROM json_each($1) AS k",
            hash = key(2, "k.value ->> 0", 32)
        );
        for first in (1..=objects).step_by(usize::try_from(BATCH).expect("it is small")) {
            let rows = self.nars(first);
            sqlx::query(AssertSqlSafe(insert.clone()))
                .bind(rows)
                .execute(&mut database)
                .await
                .context(attempt)?;
        }
        raw_sql("COMMIT").execute(&mut database).await.context(attempt)?;
        database.close().await.context(attempt)
    }

    async fn make_postgres(self, server: &Postgres, url: &str) -> Result<()> {
        let index =
            PostgresIndex::open(url, PostgresOptions::default()).await.context(|| format!("make {url}"))?;
        make_cache(&index).await?;
        index.close().await.context(|| "close the index".to_owned())?;
        self.fill_postgres(server, url).await
    }

    /// Fills the first cache of a database without paths.
    pub(crate) async fn fill_postgres(self, server: &Postgres, url: &str) -> Result<()> {
        let attempt = || format!("fill {url}");
        let then = SystemClock.now() - AGE;
        let key = |kind: u64, number: &str, bytes: usize| {
            let rest = "0".repeat(2 * bytes - 16);
            format!(
                "decode(lpad(to_hex(({number})::bigint * {KEY_STEP} + {kind}), 16, '0') || '{rest}', 'hex')"
            )
        };
        let Self { objects, .. } = self;
        let packs = self.packs();
        // Triggers that look rows up one by one are off: what is measured comes later.
        server.sql(
            url,
            &format!(
                "SET session_replication_role = replica;
                 INSERT INTO packs (id, size, created_at, used_at, chunks)
                     SELECT {pack_id}, 16000000, {then}, {then}, {PACK_CHUNKS} FROM generate_series(1, {packs}) AS i;
                 INSERT INTO chunks (number, pack, start, checksum, id, layout)
                     SELECT p::bigint * 65536 + i, p, 32 + i * 64000, i, {chunk_id}, '\\x{layout}'
                     FROM generate_series(1, {packs}) AS p, generate_series(0, {PACK_CHUNKS} - 1) AS i;
                 INSERT INTO objects (cache, nar, created_at, last_used_at, hash, name, sigs, refs)
                     SELECT {FIRST_CACHE}, i, {then}, {then}, {path_hash}, 'package', '', ''
                     FROM generate_series(1, {objects}) AS i WHERE i % {UNNAMED_ONE_IN} <> 0;
                 INSERT INTO listings (nar, body) SELECT i, '\\x00' FROM generate_series(1, {objects}) AS i;",
                pack_id = key(4, "i", 16),
                chunk_id = key(1, &format!("(p - 1)::bigint * {PACK_CHUNKS} + i + 1"), 32),
                path_hash = key(PATH_HASHES, "i", 20),
                layout = hex::encode(layout()),
            ),
        );
        let mut database = sqlx::PgConnection::connect(url).await.context(attempt)?;
        let insert = format!(
            "INSERT INTO nars (size, file_size, hash, tag, recipe)
             SELECT 500000, 240000, {hash}, substr({hash}, 1, 16), decode(k ->> 1, 'hex')
             FROM jsonb_array_elements($1::jsonb) AS k",
            hash = key(2, "(k ->> 0)", 32)
        );
        for first in (1..=objects).step_by(usize::try_from(BATCH).expect("it is small")) {
            let rows = self.nars(first);
            sqlx::query(AssertSqlSafe(insert.clone()))
                .bind(rows)
                .execute(&mut database)
                .await
                .context(attempt)?;
        }
        database.close().await.context(attempt)?;
        server.sql(url, "VACUUM ANALYZE");
        Ok(())
    }
}

/// The layout of every chunk.
fn layout() -> Vec<u8> {
    dormer_format::ChunkLayout { raw_len: 131_072, holes: Vec::new(), frames: vec![64_000] }.encode()
}

async fn make_cache(index: &dyn Index) -> Result<()> {
    let cache = NewCache {
        master_key_proof: None,
        name: "main".to_owned(),
        is_public: true,
        store_dir: "/nix/store".to_owned(),
        priority: 40,
        upstream_cache_key_names: Vec::new(),
        key: dormer_index::CacheKey {
            public_key: "k:p".to_owned(),
            sealed_secret: vec![0; 60],
            active: true,
        },
        created_at: SystemClock.now(),
        allow_replacement: true,
    };
    index.create_cache(&cache).await.map(drop).context(|| "make a cache".to_owned())
}

/// The result of recompression at one level.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Recompressed {
    pub(crate) level: u8,
    /// Bytes of the packs before.
    pub(crate) before: u64,
    /// Bytes of the packs after.
    pub(crate) after: u64,
    /// CPU seconds of all collections.
    pub(crate) cpu_seconds: f64,
    /// Collections that it took.
    pub(crate) runs: u32,
    pub(crate) totals: CompactionTotals,
}

/// The result of recompression.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Recompression(pub(crate) Vec<Recompressed>);

impl Recompression {
    pub(crate) fn markdown(&self) -> String {
        let mut table =
            Table::new(&["level", "MB before", "MB after", "saved", "CPU s", "MB a CPU s", "collections"]);
        for done in &self.0 {
            table.row(&[
                done.level.to_string(),
                megabytes(done.before),
                megabytes(done.after),
                format!("{:.1} %", 100.0 * (1.0 - done.after as f64 / done.before as f64)),
                format!("{:.0}", done.cpu_seconds),
                format!("{:.2}", done.before as f64 / 1e6 / done.cpu_seconds),
                done.runs.to_string(),
            ]);
        }
        table.finish()
    }
}

/// A clock that stands still.
#[derive(Debug)]
struct StandingClock(i64);

impl Clock for StandingClock {
    fn now(&self) -> i64 {
        self.0
    }
}

/// Stores NARs at the server's level, and recompresses them at each of these levels in turn.
pub(crate) fn recompress(
    generation: &Generation,
    work: &Path,
    first: i32,
    levels: &[u8],
) -> Result<Recompression> {
    let mut all = Recompression::default();
    for level in levels {
        let folder = work.join("recompress");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).context(|| format!("make {}", folder.display()))?;
        all.0.push(runtime()?.block_on(recompress_at(generation, &folder, first, *level))?);
        note(&format!("level {level}: done"));
        std::fs::remove_dir_all(&folder).context(|| format!("remove {}", folder.display()))?;
    }
    Ok(all)
}

async fn recompress_at(
    generation: &Generation,
    folder: &Path,
    first: i32,
    level: u8,
) -> Result<Recompressed> {
    let index = SqliteIndex::open(folder.join("index.sqlite"), SqliteOptions::default())
        .await
        .context(|| "make an index".to_owned())?;
    let index = Arc::new(index);
    let blobs: Arc<dyn Blobs> = Arc::new(StoreBlobs::in_memory());
    let settings = EngineSettings { zstd_level: first, ..EngineSettings::default() };
    let engine = Engine::new(
        Arc::clone(&index) as Arc<dyn Index>,
        Arc::clone(&blobs),
        MasterKey::from_bytes([9; 32]),
        settings,
        Arc::new(SystemClock),
    );
    let failed = || "push a NAR".to_owned();
    let cache = CreateCache {
        name: "main".to_owned(),
        is_public: true,
        store_dir: "/nix/store".to_owned(),
        priority: 40,
        upstream_cache_key_names: Vec::new(),
        secret_key: None,
        allow_replacement: true,
    };
    let cache = engine.create_cache(cache).await.context(failed)?;
    let mut nar = Vec::new();
    for (number, entry) in generation.entries.iter().enumerate() {
        generation.read(entry, &mut nar)?;
        let request =
            IngestRequest { store_dir: "/nix/store".to_owned(), expected: None, extra_memory_bytes: 0 };
        let mut ingest = engine.begin_ingest(request).await.context(failed)?;
        for piece in nar.chunks(1 << 20) {
            ingest.write(piece).await.context(failed)?;
        }
        let ingested = ingest.finish().await.context(failed)?;
        engine.commit_alias(&cache, ingested, &format!("{number}.nar.xz"), "xz").await.context(failed)?;
    }
    let stored = async || -> Result<u64> {
        let packs = index.page_packs(PackNumber(0), 100_000).await.context(|| "list packs".to_owned())?;
        Ok(packs.iter().filter(|pack| pack.condemned_at.is_none()).map(|pack| pack.size).sum())
    };
    let before = stored().await?;
    let settings = CollectSettings {
        recompress_level: Some(level),
        alias_seconds: 400 * 86_400,
        ..CollectSettings::default()
    };
    let clock = Arc::new(StandingClock(SystemClock.now() + AGE));
    let collector = Collector::new(Arc::clone(&index) as Arc<dyn CollectIndex>, blobs, clock, settings);
    let (cpu, mut runs, mut totals) =
        (process_cpu_seconds(std::process::id())?, 0, CompactionTotals::default());
    loop {
        let report = collector.run_now(&*index, "bench", 3_600).await.context(|| "collect".to_owned())?;
        let done = report.ok_or_else(|| Error::new("another process collects"))?.recompressed;
        runs += 1;
        if done.bytes_read == 0 {
            break;
        }
        totals.packs += done.packs;
        totals.bytes += done.bytes;
        totals.packs_written += done.packs_written;
        totals.chunks += done.chunks;
        totals.bytes_read += done.bytes_read;
        totals.bytes_written += done.bytes_written;
        totals.requests += done.requests;
    }
    let cpu_seconds = process_cpu_seconds(std::process::id())? - cpu;
    Ok(Recompressed { level, before, after: stored().await?, cpu_seconds, runs, totals })
}
