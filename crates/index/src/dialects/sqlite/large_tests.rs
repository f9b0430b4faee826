//! Look-ups in an index that is large: 5 million objects and 20 million chunks in the long run.

use std::io::Write as _;
use std::path::Path;

use sqlx::{AssertSqlSafe, Connection as _, raw_sql};

use super::tests::{look_ups_search_indexes, new_cache, open, raw};
use crate::synthetic::{
    CHUNKS, Columns, KEY_STEP, NARS, OBJECT_CHUNKS, OBJECTS, PACK_CHUNKS, PACKS, look_around, object_count,
};
use crate::{CacheId, CacheIndex as _, Index as _};

/// [`crate::synthetic::key`] in SQL; `number` is an expression.
fn key(kind: u64, number: &str, len: usize) -> String {
    let rest = "0".repeat(2 * len - 16);
    format!("unhex(printf('%016x', ({number}) * {KEY_STEP} + {kind}) || '{rest}')")
}

/// All rows, made by the database in one transaction that is not synced: what is measured is
/// looking up.
async fn fill(path: &Path, cache: CacheId, objects: u64) {
    let Columns { layout, recipe, refs, sigs } = Columns::new();
    let (cache, chunks) = (cache.0, objects * OBJECT_CHUNKS);
    let packs = chunks / PACK_CHUNKS;
    let now = 1_800_000_000;
    let upto = |count: u64| {
        format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})")
    };
    let sql = format!(
        "PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF; PRAGMA cache_size = -200000; BEGIN;
         {upto_packs} INSERT INTO packs (number, id, size, created_at, used_at)
             SELECT i, {pack_id}, 16000000, {now}, {now} FROM n;
         {upto_chunks} INSERT INTO chunks (number, id, pack, start, checksum, layout)
             SELECT ((i - 1) / {PACK_CHUNKS} + 1) * 65536 + (i - 1) % {PACK_CHUNKS}, {chunk_id},
                 (i - 1) / {PACK_CHUNKS} + 1, 32 + (i - 1) % {PACK_CHUNKS} * 60000, i, x'{layout}' FROM n;
         {upto_objects} INSERT INTO nars (id, hash, size, file_size, tag, recipe)
             SELECT i, {nar_hash}, 500000, 240000, substr({nar_hash}, 1, 16), x'{recipe}' FROM n;
         {upto_objects} INSERT INTO listings (nar, body) SELECT i, x'00' FROM n;
         {upto_objects} INSERT INTO objects (id, cache, hash, nar, created_at, last_used_at, name, sigs, refs)
             SELECT i, {cache}, {path_hash}, i, {now}, {now}, 'package', x'{sigs}', x'{refs}' FROM n;
         COMMIT;",
        upto_packs = upto(packs),
        upto_chunks = upto(chunks),
        upto_objects = upto(objects),
        pack_id = key(PACKS, "i", 16),
        chunk_id = key(CHUNKS, "i", 32),
        nar_hash = key(NARS, "i", 32),
        path_hash = key(OBJECTS, "i", 20),
    );
    let mut connection = raw(path).await;
    raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn look_ups_are_as_cheap_in_a_large_index() {
    let objects = object_count();
    for count in [objects / 10, objects] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.sqlite");
        let index = open(&path).await;
        let cache = index.create_cache(&new_cache("main")).await.unwrap();
        index.close().await.unwrap();
        drop(index);
        fill(&path, cache, count).await;
        let index = open(&path).await;
        look_ups_search_indexes(&index).await;
        let line = look_around(&index, cache, count).await;
        // Beside the tests' own output, which hides what a test prints that passes.
        let _ = writeln!(std::io::stderr(), "SQLite, {line}");
        index.close().await.unwrap();
    }
}
