//! Pages for people, of a cache with many paths: CPU, statements and bytes of each.
//!
//! A real server makes the cache; the database itself then fills it. The visitor may list the
//! cache, so its pages have everything that pages can have.

use std::path::Path;
use std::time::Duration;

use dormer_nix::nar::{Node, encode_tree};
use dormer_nix::{NarHash, StorePathHash};
use dormer_testkit::services::Postgres;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, raw_sql};

use crate::error::{Context, Error, Result};
use crate::measure::{Samples, tree_cpu_seconds, wall_of};
use crate::replicas::MASTER_KEY;
use crate::report::{Table, note};
use crate::server::{CACHE, Server};

/// Keys of neighbours are so far apart.
const KEY_STEP: u64 = 400_000_000_000;

/// Requests of each page, on one connection. CPU is told in hundredths of a second.
const REQUESTS: u32 = 200;

/// What one page costs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PageCost {
    database: String,
    page: String,
    /// CPU milliseconds of a request, of the server.
    server_ms: f64,
    /// CPU milliseconds of a request, of PostgreSQL.
    database_ms: f64,
    /// Wall milliseconds of a request.
    wall: Samples,
    statements: f64,
    bytes: usize,
}

/// The costs of all pages.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct PageCosts(Vec<PageCost>);

impl PageCosts {
    pub(crate) fn markdown(&self) -> String {
        let columns = ["database", "page", "CPU ms", "of it PostgreSQL", "wall ms", "statements", "bytes"];
        let mut table = Table::new(&columns);
        for cost in &self.0 {
            table.row(&[
                cost.database.clone(),
                cost.page.clone(),
                format!("{:.2}", cost.server_ms + cost.database_ms),
                format!("{:.2}", cost.database_ms),
                cost.wall.spread(2),
                format!("{:.1}", cost.statements),
                cost.bytes.to_string(),
            ]);
        }
        table.finish()
    }
}

/// Fills a cache on each database and asks for its pages.
pub(crate) fn measure(binary: &Path, work: &Path, objects: u64, on_postgres: bool) -> Result<PageCosts> {
    let mut costs = PageCosts::default();
    let data = work.join("pages");
    // No collection and no expiry runs beside.
    let quiet = ("DORMER_GARBAGE_COLLECTION_INTERVAL", "0s".to_owned());
    let environment = [quiet.clone()];
    drop(Server::start(binary, &data, true, &environment)?);
    note(&format!("filling {} with {objects} paths", data.display()));
    fill_sqlite(&data.join("index.sqlite"), objects)?;
    let server = Server::start(binary, &data, false, &environment)?;
    ask(&server, "SQLite", None, objects, &mut costs)?;
    drop(server);
    if on_postgres {
        let database = Postgres::start_with(&["max_wal_size=4GB", "shared_buffers=256MB"]);
        let url = database.create_database();
        let environment =
            [quiet, ("DORMER_DATABASE_URL", url.clone()), (MASTER_KEY.0, MASTER_KEY.1.to_owned())];
        drop(Server::start(binary, &data, true, &environment)?);
        note(&format!("filling {url} with {objects} paths"));
        // Triggers that look rows up one by one are off: what is measured comes later.
        database
            .sql(&url, &format!("SET session_replication_role = replica; {}", rows(&Postgresql, objects)));
        database.sql(&url, "VACUUM ANALYZE");
        let server = Server::start(binary, &data, false, &environment)?;
        ask(&server, "PostgreSQL", Some(database.process_id()), objects, &mut costs)?;
        drop(server);
    }
    std::fs::remove_dir_all(&data).context(|| format!("remove {}", data.display()))?;
    Ok(costs)
}

/// What the databases spell in their own ways.
trait Dialect {
    /// A table `n` of the numbers from 1 to `count`, before an `INSERT`.
    fn numbers(&self, count: u64) -> String;
    /// What an `INSERT` reads these numbers from.
    fn source_of_numbers(&self, count: u64) -> String;
    /// A key of so many bytes that ascends with a number.
    fn key(&self, number: &str, bytes: usize) -> String;
    fn empty(&self) -> &'static str;
    fn yes(&self) -> &'static str;
}

struct Sqlite;
struct Postgresql;

impl Dialect for Sqlite {
    fn numbers(&self, count: u64) -> String {
        format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})")
    }
    fn source_of_numbers(&self, _: u64) -> String {
        "n".to_owned()
    }
    fn key(&self, number: &str, bytes: usize) -> String {
        format!("unhex(printf('%016x', ({number}) * {KEY_STEP}) || '{}')", "0".repeat(2 * bytes - 16))
    }
    fn empty(&self) -> &'static str {
        "x''"
    }
    fn yes(&self) -> &'static str {
        "1"
    }
}

impl Dialect for Postgresql {
    fn numbers(&self, _: u64) -> String {
        String::new()
    }
    fn source_of_numbers(&self, count: u64) -> String {
        format!("generate_series(1, {count}) AS n (i)")
    }
    fn key(&self, number: &str, bytes: usize) -> String {
        let rest = "0".repeat(2 * bytes - 16);
        format!("decode(lpad(to_hex(({number})::bigint * {KEY_STEP}), 16, '0') || '{rest}', 'hex')")
    }
    fn empty(&self) -> &'static str {
        "''"
    }
    fn yes(&self) -> &'static str {
        "true"
    }
}

/// Hash of the path of this number, as `Dialect::key` makes it.
fn hash_of(number: u64) -> StorePathHash {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&(number * KEY_STEP).to_be_bytes());
    StorePathHash::from_bytes(bytes)
}

/// Paths of the first cache, each with a NAR and a size of its own; a hundred of them refer to the
/// largest, and to the path behind it that [`push_rich`] pushes, which has pins of its own and of
/// paths that need it; fifty other caches, each with a few paths; and a year of history.
fn rows(dialect: &impl Dialect, objects: u64) -> String {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let (cache, empty) = ("(SELECT min(id) FROM caches)", dialect.empty());
    let (from, days) = (dialect.source_of_numbers(objects), dialect.source_of_numbers(365));
    let (numbers, hundred) = (dialect.numbers(objects), dialect.source_of_numbers(100));
    let (nar_hash, tag) = (dialect.key("i", 32), dialect.key("i", 16));
    let path_hash = dialect.key("i", 20);
    let largest = dialect.key(&objects.to_string(), 20);
    let rich = dialect.key(&(objects + 1).to_string(), 20);
    format!(
        "{numbers} INSERT INTO nars (hash, size, file_size, tag, recipe)
             SELECT {nar_hash}, 5000 + i, 2000 + i, {tag}, {empty} FROM {from};
         {numbers} INSERT INTO objects (cache, hash, nar, created_at, last_used_at, pushed_at, name, nar_size, sigs, refs)
             SELECT {cache}, {path_hash}, i, {now} - {objects} + i, {now} - i % 1000, {now}, 'package-' || i, 5000 + i,
                 {empty}, {empty} FROM {from};
         {hundred_numbers} INSERT INTO object_refs (cache, reference, referrer)
             SELECT {cache}, {largest}, {path_hash} FROM {hundred};
         {hundred_numbers} INSERT INTO object_refs (cache, reference, referrer)
             SELECT {cache}, {rich}, {path_hash} FROM {hundred};
         {hundred_numbers} INSERT INTO pins (cache, name, hash, path_name, created_at)
             SELECT {cache}, 'release-' || i, {path_hash}, 'package-' || i, {now} FROM {hundred};
         {hundred_numbers} INSERT INTO pins (cache, name, hash, path_name, created_at)
             SELECT {cache}, 'own-' || i, {rich}, 'rich-1.0', {now} FROM {hundred};
         UPDATE caches SET retention_seconds = 864000, quota_bytes = 1000000000000, keep_latest = 3;
         {hundred_numbers} INSERT INTO caches (name, is_public, store_dir, priority, upstream_cache_key_names, created_at)
             SELECT 'team-' || (100 + i), {yes}, '/nix/store', 40, '[]', {now} FROM {hundred} WHERE i <= 50;
         {hundred_numbers} INSERT INTO objects (cache, hash, nar, created_at, last_used_at, pushed_at, name, nar_size, sigs, refs)
             SELECT c.id, {path_hash}, i, {now}, {now}, {now}, 'package-' || i, 5000 + i, {empty}, {empty}
             FROM {hundred} CROSS JOIN caches AS c WHERE c.name LIKE 'team-%';
         INSERT INTO counters (cache, generation, paths, path_bytes)
             SELECT id, 1, 100, 500000 FROM caches WHERE name LIKE 'team-%'
             ON CONFLICT (cache, generation) DO UPDATE SET paths = excluded.paths, path_bytes = excluded.path_bytes;
         {day_numbers} INSERT INTO cache_days (cache, day, paths, path_bytes, pushes, pulls)
             SELECT {cache}, {today} - i, 1000000 - i * 2000, 5000000000 - 10000000 * CAST(i AS BIGINT), i % 7, i * 100 FROM {days};
         {day_numbers} INSERT INTO cache_days (cache, day, paths, path_bytes, stored_bytes, pushes, pulls)
             SELECT 0, {today} - i, 1000000 - i * 2000, 5000000000 - 10000000 * CAST(i AS BIGINT), 1000000000, i % 7, i FROM {days};
         INSERT INTO counters (cache, generation, paths, path_bytes) VALUES ({cache}, 1, {objects}, {bytes})
             ON CONFLICT (cache, generation) DO UPDATE SET paths = excluded.paths, path_bytes = excluded.path_bytes;",
        hundred_numbers = dialect.numbers(100),
        day_numbers = dialect.numbers(365),
        yes = dialect.yes(),
        today = now / 86_400,
        bytes = objects * 5_000 + objects * (objects + 1) / 2,
    )
}

fn fill_sqlite(file: &Path, objects: u64) -> Result<()> {
    let attempt = || format!("fill {}", file.display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(attempt)?;
    runtime.block_on(async {
        let mut database =
            sqlx::SqliteConnection::connect(&format!("sqlite://{}", file.display())).await.context(attempt)?;
        let sql = format!(
            "PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF; PRAGMA cache_size = -200000; BEGIN; {} COMMIT;
             PRAGMA wal_checkpoint(TRUNCATE);",
            rows(&Sqlite, objects)
        );
        raw_sql(AssertSqlSafe(sql)).execute(&mut database).await.context(attempt)?;
        database.close().await.context(attempt)
    })
}

/// Pushes a path with everything that a path can have: references, a deriver, its log, signatures
/// and a provenance. Returns its hash.
fn push_rich(server: &Server, objects: u64) -> Result<String> {
    let nar = encode_tree(&Node::file(b"a text".to_vec()));
    let hash = hash_of(objects + 1);
    let named = |number: u64| format!("{}-package-{number}", hash_of(number));
    let derivation = format!("{}-rich-1.0.drv", hash_of(objects + 2));
    let signature = |number: u32| format!("key-{number}:{}A==", "S".repeat(85));
    let info = json!({
        "cache": CACHE, "store_path_hash": hash.to_string(), "store_path": format!("/nix/store/{hash}-rich-1.0"),
        "references": (200..260).map(named).collect::<Vec<_>>(), "system": "x86_64-linux", "deriver": derivation,
        "sigs": (0..16).map(signature).collect::<Vec<_>>(), "ca": null,
        "extra": [["Provenance", "{\"type\":\"flake\",\"url\":\"git+https://example.org/x?rev=1\"}"]],
        "nar_hash": format!("sha256:{}", NarHash::digest(&nar).to_hex()), "nar_size": nar.len(),
    });
    let mut connection = server.connect()?;
    let headers = format!("X-Attic-Nar-Info: {info}\r\n");
    let log = b"a line of a log\n".repeat(1_000);
    for (address, headers, mut body) in [
        ("/_api/v1/upload-path".to_owned(), headers.as_str(), &nar[..]),
        (format!("/{CACHE}/log/{derivation}"), "", &log[..]),
    ] {
        let (status, answer) = connection.put_chunked(&address, headers, &[], &mut body)?;
        if status != 200 {
            let answer = String::from_utf8_lossy(&answer);
            return Err(Error::new(format!("{address} is answered with {status}: {answer}")));
        }
    }
    Ok(hash.to_string())
}

/// Waits until the server does nothing by itself: after a start, jobs count what was filled in.
fn wait_for_rest(server: &Server) -> Result<()> {
    let mut before = server.cpu_seconds()?;
    for _ in 0..240 {
        std::thread::sleep(Duration::from_millis(500));
        let now = server.cpu_seconds()?;
        if now - before <= 0.01 {
            return Ok(());
        }
        before = now;
    }
    Err(Error::new("the server never rests"))
}

/// Asks for each page again and again. `server` is PostgreSQL's first process.
fn ask(
    server: &Server,
    database: &str,
    process: Option<u32>,
    objects: u64,
    costs: &mut PageCosts,
) -> Result<()> {
    let rich = push_rich(server, objects)?;
    wait_for_rest(server)?;
    let mut connection = server.connect()?;
    let mut get = |address: &str| -> Result<String> {
        let (status, body) = connection.get_page(address)?;
        if status != 200 {
            return Err(Error::new(format!("{address} is answered with {status}")));
        }
        String::from_utf8(body).context(|| format!("read {address}"))
    };
    // The largest path, which has referrers, comes first.
    let list = get("/main/paths")?;
    let hash =
        list.split("href=\"../main/").filter_map(|rest| rest.get(..32)).find(|hash| !hash.contains('"'));
    let hash = hash.ok_or_else(|| Error::new("the list of paths names none"))?.to_owned();
    let name = format!("package-{objects}");
    for (page, address) in [
        ("home, 50 caches", "/".to_owned()),
        ("a cache", "/main/".to_owned()),
        ("a path with referrers", format!("/main/{hash}")),
        ("a path with all that a path can have", format!("/main/{rich}")),
        ("its references", format!("/main/{rich}/references")),
        ("its log", format!("/main/{rich}/log")),
        ("pins", "/main/pins".to_owned()),
        ("paths by size", "/main/paths".to_owned()),
        ("a search by prefix, a full page", "/main/paths?q=package-99*".to_owned()),
        ("a search by prefix, one path", format!("/main/paths?q={name}*")),
        ("a search by prefix, nothing", "/main/paths?q=no-such-name*".to_owned()),
        ("a search that finds at once", format!("/main/paths?q={name}")),
        ("a search that finds nothing", "/main/paths?q=no-such-name".to_owned()),
        ("operation", "/_dormer/".to_owned()),
    ] {
        let bytes = get(&address)?.len();
        let database_cpu = || process.map_or(Ok(0.0), tree_cpu_seconds);
        let before = (server.cpu_seconds()?, database_cpu()?, server.index_statements()?.unwrap_or(0));
        let mut wall = Samples::default();
        for _ in 0..REQUESTS {
            let (seconds, _) = wall_of(|| get(&address))?;
            wall.push(seconds * 1_000.0);
        }
        let after = (server.cpu_seconds()?, database_cpu()?, server.index_statements()?.unwrap_or(0));
        let each = |total: f64| total / f64::from(REQUESTS);
        costs.0.push(PageCost {
            database: database.to_owned(),
            page: page.to_owned(),
            server_ms: each(after.0 - before.0) * 1_000.0,
            database_ms: each(after.1 - before.1) * 1_000.0,
            wall,
            statements: each((after.2 - before.2) as f64),
            bytes,
        });
    }
    Ok(())
}
