//! Look-ups in an index that is large: 5 million objects and 20 million chunks in the long run.

use std::io::Write as _;

use dormer_testkit::services::Postgres as Server;
use sqlx::{AssertSqlSafe, Row as _, query};

use super::tests::{NOW, cache, look_ups_search_indexes, open};
use crate::access::Access;
use crate::synthetic::{
    CHUNKS, Columns, KEY_STEP, NARS, OBJECT_CHUNKS, OBJECTS, PACK_CHUNKS, PACKS, look_around, object_count,
};
use crate::topics::objects;
use crate::{CacheId, Index as _, SqlIndex};

/// [`crate::synthetic::key`] in SQL; `number` is an expression.
fn key(kind: u64, number: &str, len: usize) -> String {
    let rest = "0".repeat(2 * len - 16);
    format!("decode(lpad(to_hex(({number})::bigint * {KEY_STEP} + {kind}), 16, '0') || '{rest}', 'hex')")
}

/// All rows, made by the server. Triggers that look rows up one by one are off, and the unique keys
/// are checked when all is there: what is measured is looking up.
fn fill(server: &Server, url: &str, cache: CacheId, objects: u64) {
    let Columns { layout, recipe, refs, sigs } = Columns::new();
    let (cache, chunks) = (cache.0, objects * OBJECT_CHUNKS);
    let packs = chunks / PACK_CHUNKS;
    let sql = format!(
        "SET session_replication_role = replica; SET maintenance_work_mem = '512MB'; SET synchronous_commit = local;
         ALTER TABLE chunks DROP CONSTRAINT chunks_id_key;
         INSERT INTO packs (id, size, created_at, used_at)
             SELECT {pack_id}, 16000000, {NOW}, {NOW} FROM generate_series(1, {packs}) AS i;
         INSERT INTO chunks (number, pack, start, checksum, id, layout)
             SELECT p::bigint * 65536 + i, p, 32 + i * 60000, i, {chunk_id}, '\\x{layout}'
             FROM generate_series(1, {packs}) AS p, generate_series(0, {PACK_CHUNKS} - 1) AS i;
         ALTER TABLE chunks ADD CONSTRAINT chunks_id_key UNIQUE (id);
         INSERT INTO nars (size, file_size, hash, tag, recipe)
             SELECT 500000, 240000, {nar_hash}, substr({nar_hash}, 1, 16), '\\x{recipe}'
             FROM generate_series(1, {objects}) AS i;
         INSERT INTO listings (nar, body) SELECT i, '\\x00' FROM generate_series(1, {objects}) AS i;
         INSERT INTO objects (cache, nar, created_at, last_used_at, hash, name, sigs, refs)
             SELECT {cache}, i, {NOW}, {NOW}, {path_hash}, 'package', '\\x{sigs}', '\\x{refs}'
             FROM generate_series(1, {objects}) AS i;
         INSERT INTO caches (name, is_public, store_dir, priority, upstream_cache_key_names, created_at)
             SELECT 'other-' || i, true, '/nix/store', 40, '[]', {NOW} FROM generate_series(1, 1000) AS i;
         INSERT INTO cache_keys (cache, position, active, public_key, sealed_secret)
             SELECT id, 0, true, 'k:p', '\\x00' FROM caches WHERE id <> {cache};
         INSERT INTO aliases (cache, file_name, nar, used_at, compression)
             SELECT {cache}, i || '.nar.xz', i, {NOW}, 'xz' FROM generate_series(1, {objects} / 10) AS i;
         INSERT INTO graces (cache, hash, nar, ends_at)
             SELECT {cache}, {path_hash}, i, {NOW} FROM generate_series(1, {objects} / 10) AS i;
         INSERT INTO documents (cache, kind, owner, written_at, size, digest, name, body)
             SELECT {cache}, 1, {path_hash}, {NOW}, 1, '\\x00', 'log/' || i || '.drv', '\\x00'
             FROM generate_series(1, {objects} / 10) AS i;
         INSERT INTO documents (cache, kind, owner, written_at, size, digest, name, body)
             SELECT c.id, 1, {path_hash}, {NOW}, 1, '\\x00', 'log/' || i || '.drv', '\\x00'
             FROM caches AS c, generate_series(1, 20) AS i WHERE c.id <> {cache};
         INSERT INTO sessions (id, cache, subject, created_at, ends_at)
             SELECT substr({nar_hash}, 1, 16), {cache}, 'subject-' || i, {NOW}, {NOW} + 86400
             FROM generate_series(1, {objects} / 10) AS i;",
        pack_id = key(PACKS, "i", 16),
        chunk_id = key(CHUNKS, &format!("(p - 1)::bigint * {PACK_CHUNKS} + i + 1"), 32),
        nar_hash = key(NARS, "i", 32),
        path_hash = key(OBJECTS, "i", 20),
    );
    server.sql(url, &sql);
    server.sql(url, "VACUUM ANALYZE");
}

/// Pages that a look-up of one object touches.
async fn pages(index: &SqlIndex, cache: CacheId) -> u64 {
    let mut read = index.postgres_session(Access::Read).await;
    let hash = hex::encode(crate::synthetic::key(OBJECTS, 17, 20));
    let sql = objects::FIND_OBJECT
        .postgres
        .replace("$1", &cache.0.to_string())
        .replace("$2", &format!("'\\x{hash}'"));
    let explain = format!("EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF) {sql}");
    let rows = read.all(query(AssertSqlSafe(explain))).await.unwrap();
    let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let buffers =
        lines.iter().find(|line| line.contains("Buffers: shared")).expect("the first line counts all");
    buffers.split(['=', ' ']).filter_map(|word| word.parse::<u64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn look_ups_are_as_cheap_in_a_large_index() {
    // Its own server, so that millions of rows go with it.
    let server = Server::start_with(&["shared_buffers=256MB", "max_wal_size=2GB"]);
    let objects = object_count();
    for count in [objects / 10, objects] {
        let url = server.create_database();
        let index = open(&url).await;
        let cache = cache(&index, "main").await;
        fill(&server, &url, cache, count);
        look_ups_search_indexes(&index).await;
        let line = look_around(&index, cache, count).await;
        let pages = pages(&index, cache).await;
        // Beside the tests' own output, which hides what a test prints that passes.
        let _ = writeln!(std::io::stderr(), "PostgreSQL, {line} {pages} pages for an object");
        // Each index grows by a level when there are some hundred times as many rows.
        assert!(pages <= 16, "{pages} pages for one object of {count}");
        index.close().await.unwrap();
        server.sql("postgres", &format!("DROP DATABASE {}", url.rsplit('/').next().unwrap()));
    }
}
