//! Tests of what is SQLite's own: the file, its settings, its query plans and its size.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dormer_format::{ChunkId, EncodingTag};
use dormer_nix::{NarHash, StorePathHash};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _, query};

use super::*;
use crate::access::Access;
use crate::collect;
use crate::jobs::expire_cache;
use crate::sql::Sql;
use crate::topics::{caches, chunks, damage, documents, journal, nars, objects, retention, sessions};
use crate::*;

const NOW: UnixSeconds = 1_800_000_000;

pub(super) async fn open(path: &Path) -> SqlIndex {
    let index = SqliteIndex::open(path, SqliteOptions::default()).await.unwrap();
    index.keys_loaded().await;
    index
}

/// New indexes in a folder that goes with the value. They are copies, so that not each of them runs
/// every migration.
struct Fresh {
    folder: tempfile::TempDir,
    number: AtomicU32,
}

impl Fresh {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), number: AtomicU32::new(0) }
    }

    fn open(&self) -> impl Future<Output = Arc<SqlIndex>> + use<> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.path().join(format!("{number}.sqlite"));
        async move {
            dormer_testkit::place_sqlite_index(&path).await;
            Arc::new(open(&path).await)
        }
    }
}

pub(super) async fn raw(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.unwrap()
}

/// The connection that writes, outside of a transaction.
async fn write_connection(index: &SqlIndex) -> Session {
    Session::take(&index.sqlite().writer, &index.sqlite().shared, "test").await.unwrap()
}

async fn execute(path: &Path, sql: &'static str) {
    let mut connection = raw(path).await;
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

pub(super) fn new_cache(name: &str) -> NewCache {
    NewCache {
        master_key_proof: None,
        name: name.to_owned(),
        is_public: true,
        store_dir: "/nix/store".to_owned(),
        priority: 40,
        upstream_cache_key_names: Vec::new(),
        key: CacheKey { public_key: "k:p".to_owned(), sealed_secret: vec![0; 60], active: true },
        created_at: NOW,
        allow_replacement: true,
    }
}

fn new_pack(count: u32) -> NewPack {
    NewPack {
        id: dormer_format::PackId::from_bytes(rand::random()),
        size: 32 << 20,
        created_at: NOW,
        chunks: (0..count)
            .map(|n| NewChunk {
                id: ChunkId::from_bytes(rand::random()),
                offset: u64::from(n) * 40_000,
                layout: dormer_format::ChunkLayout { raw_len: 130_000, holes: vec![], frames: vec![40_000] },
                checksum: rand::random(),
            })
            .collect(),
    }
}

fn new_object(name: &str, references: u32) -> Object {
    let path =
        |name: &str| dormer_nix::StorePath::new(StorePathHash::from_bytes(rand::random()), name).unwrap();
    let mut references: Vec<_> = (0..references).map(|n| path(&format!("some-dependency-1.2.{n}"))).collect();
    references.sort();
    Object {
        path: path(name),
        references,
        deriver: Some(format!("1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-{name}.drv")),
        ca: None,
        sigs: vec![format!("cache.example.org-1:{}==", "A".repeat(86))],
        system: Some("x86_64-linux".to_owned()),
        extra: Vec::new(),
    }
}

fn new_nar(rows: &[ChunkRow], listing_bytes: usize) -> NewNar {
    let mut recipe = dormer_format::RecipeBuilder::new();
    for row in rows {
        recipe.push_chunk(row.number);
    }
    let mut packs: Vec<PackNumber> = rows.iter().map(|row| row.pack).collect();
    packs.dedup();
    NewNar {
        hash: NarHash::from_bytes(rand::random()),
        size: 130_000 * rows.len() as u64,
        file_size: 40_000 * rows.len() as u64,
        tag: EncodingTag::from_bytes(rand::random()),
        holed_bytes: 0,
        recipe: recipe.finish(),
        listing: StoredListing::Inline(vec![7; listing_bytes]),
        build_ids: Vec::new(),
        packs,
    }
}

fn commit(cache: CacheId, nar: NewNar, object: &Object) -> NarCommit {
    NarCommit {
        cache,
        nar: NarSource::New(Box::new(nar)),
        target: CommitTarget::Object(object.clone()),
        at: NOW,
        grace_seconds: 60,
        known_keys: Vec::new(),
    }
}

/// There is one writer at a time: a removal sees the object of a commit that began before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_stays_for_an_object_whose_commit_has_not_ended() {
    let fresh = Fresh::new();
    let index = fresh.open().await;
    let main = index.create_cache(&new_cache("main")).await.unwrap();
    let rows = index.commit_pack(&new_pack(1)).await.unwrap();
    let object = new_object("hello", 0);
    index.commit_nar(&commit(main, new_nar(&rows, 10), &object)).await.unwrap();
    let derivation: dormer_nix::StorePath = object.deriver.as_deref().unwrap().parse().unwrap();
    let (name, owner) = (dormer_nix::DocumentName::Log(derivation.clone()), derivation.hash());
    let log = NewDocument { name: name.clone(), owner, size: 5, encoding: None, body: b"built".to_vec() };
    index.put_document(main, &log, NOW).await.unwrap();

    let mut unfinished = index.sqlite_session(Access::Write(&[])).await;
    let second = "INSERT INTO objects (cache, hash, nar, created_at, last_used_at, name, deriver, sigs, refs,
            nar_size, counted)
        SELECT cache, zeroblob(20), nar, created_at, last_used_at, name, deriver, sigs, refs, nar_size, counted
        FROM objects";
    assert_eq!(unfinished.execute(query(second)).await.unwrap(), 1);
    let removal = tokio::spawn({
        let (index, hash) = (Arc::clone(&index), object.path.hash());
        async move { index.remove_object(main, &hash, Removal::WithGraceUntil(NOW + 1_000), NOW).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!removal.is_finished(), "it waits for the commit");
    unfinished.commit().await.unwrap();
    assert!(removal.await.unwrap().unwrap());
    assert!(index.find_document(main, &name).await.unwrap().is_some(), "the second object names it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_meets_the_contract() {
    let fresh = Fresh::new();
    crate::conformance::run(|| {
        let opened = fresh.open();
        async { opened.await as Arc<dyn Index> }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_remembers_what_is_published() {
    let fresh = Fresh::new();
    crate::conformance::run_publish(|| fresh.open()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_runs_jobs() {
    let fresh = Fresh::new();
    crate::conformance::run_jobs(|| fresh.open()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_serves_a_collector() {
    let fresh = Fresh::new();
    crate::conformance::run_collect(|| fresh.open()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_serves_a_scrub() {
    let fresh = Fresh::new();
    crate::conformance::run_scrub(|| fresh.open()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_counts() {
    let fresh = Fresh::new();
    crate::conformance::run_counters(|| fresh.open()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_serves_the_journal() {
    let fresh = Fresh::new();
    crate::conformance::run_journal(|| fresh.open()).await;
}

/// What an older Dormer stored, and counters that somebody changed: a recount makes both right.
#[tokio::test]
async fn a_recount_counts_what_was_there_and_forgets_what_was_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let index = open(&path).await;
    let cache = index.create_cache(&new_cache("main")).await.unwrap();
    let rows = index.commit_pack(&new_pack(1)).await.unwrap();
    let target = CommitTarget::Alias { file_name: "f".to_owned(), compression: "xz".to_owned() };
    let holed_bytes = rows.iter().map(|row| row.layout.holed_bytes()).sum();
    let nar = NarSource::New(Box::new(NewNar { holed_bytes, ..new_nar(&rows, 10) }));
    index
        .commit_nar(&NarCommit { cache, nar, target, at: NOW, grace_seconds: 60, known_keys: Vec::new() })
        .await
        .unwrap();
    let right = index.stored_counts().await.unwrap();
    assert!(right.is_complete && right.nars == 1 && right.packs == 1, "{right:?}");
    let recount = async || {
        index.open_job(JobKind::Recount, None, None, NOW).await.unwrap();
        let lease = index.lease_job(JobKind::Recount, "a", NOW, NOW + 60).await.unwrap().unwrap();
        while !index.recount_step(&lease, 1, NOW, NOW + 60).await.unwrap().is_last {}
        index.stored_counts().await.unwrap()
    };
    execute(&path, "UPDATE counters SET packs = packs + 7, nar_bytes = 1").await;
    assert_ne!(index.stored_counts().await.unwrap(), right);
    assert_eq!(recount().await, right);

    for old in [
        "UPDATE nars SET counted = 0, holed_bytes = NULL",
        "UPDATE packs SET counted = 0, raw_bytes = NULL, holed_bytes = NULL",
        "DELETE FROM counters",
        "UPDATE counter_state SET generation = 1, counted_at = NULL",
    ] {
        execute(&path, old).await;
    }
    let old = index.stored_counts().await.unwrap();
    assert_eq!((old.is_complete, old.nars), (false, 0));
    assert!(!index.glance_at_caches(&[cache]).await.unwrap()[0].is_complete);
    assert_eq!(recount().await, right);
}

/// A trigger fails one statement of the last step: either all of the step stays or none of it.
#[tokio::test]
async fn the_last_step_and_the_end_of_its_job_are_one_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let index = open(&path).await;
    let cache = index.create_cache(&new_cache("main")).await.unwrap();
    let rows = index.commit_pack(&new_pack(1)).await.unwrap();
    let target = CommitTarget::Alias { file_name: "f".to_owned(), compression: "xz".to_owned() };
    let nar = NarSource::New(Box::new(new_nar(&rows, 10)));
    index
        .commit_nar(&NarCommit { cache, nar, target, at: NOW, grace_seconds: 60, known_keys: Vec::new() })
        .await
        .unwrap();
    index.delete_cache(cache, None, NOW).await.unwrap();
    let lease = index.lease_job(JobKind::DeleteCache, "a", NOW, NOW + 60).await.unwrap().unwrap();
    let step = || index.delete_cache_step(&lease, 10, NOW, NOW + 60);
    let session = "INSERT INTO sessions (id, cache, subject, created_at, ends_at)
                   VALUES (x'00112233445566778899aabbccddeeff', 1, '', 0, 1)";
    execute(&path, session).await;
    for _ in ["objects", "graces", "aliases", "references", "pins", "documents"] {
        assert!(!step().await.unwrap().is_last);
    }
    let fail = "CREATE TRIGGER fail BEFORE DELETE ON jobs BEGIN SELECT RAISE(ABORT, 'planted'); END";
    execute(&path, fail).await;
    assert!(step().await.is_err());
    execute(&path, "DROP TRIGGER fail").await;
    let last = step().await.unwrap();
    assert_eq!((last.rows, last.is_last), (1, true), "the session was still open");
    assert_eq!(index.list_jobs(None, 10).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_answers_in_time_in_a_large_cache() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteOptions { wait_max: crate::conformance::bulk::CALL_MAX, ..SqliteOptions::default() };
    let index = SqliteIndex::open(folder.path().join("index.sqlite"), options).await.unwrap();
    let index = Arc::new(index);
    crate::conformance::bulk::run_bulk(&index).await.unwrap();
    index.close().await.unwrap();
}

/// While the keys load every answer is "maybe", and nothing that is stored meanwhile is missed; the
/// same when they are loaded again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_load_beside_writes_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let index = open(&path).await;
    let mut rows = index.commit_pack(&new_pack(30_000)).await.unwrap();
    index.close().await.unwrap();
    drop(index);
    let index = Arc::new(SqliteIndex::open(&path, SqliteOptions::default()).await.unwrap());
    let reload = async {
        for _ in 0..3 {
            index.reload_known_keys().await.unwrap();
        }
    };
    let write = async {
        let mut rows = Vec::new();
        for _ in 0..50 {
            rows.extend(index.commit_pack(&new_pack(20)).await.unwrap());
        }
        rows
    };
    let ((), new) = tokio::join!(reload, write);
    rows.extend(new);
    index.keys_loaded().await;
    for rows in rows.chunks(10_000) {
        let ids: Vec<ChunkId> = rows.iter().map(|row| row.id).collect();
        assert!(index.find_chunks(&ids).await.unwrap().iter().all(Option::is_some), "none is called absent");
    }
    let before = index.statement_count();
    index.find_chunks(&[ChunkId::from_bytes(rand::random())]).await.unwrap();
    assert_eq!(index.statement_count(), before, "an unknown key costs no statement");
}

#[tokio::test]
async fn a_follower_opens_it_beside_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let beside = || SqliteIndex::open_beside(&path, SqliteOptions::default());
    assert!(beside().await.is_err(), "it makes none");
    let server = open(&path).await;
    let cache = server.create_cache(&new_cache("main")).await.unwrap();
    let follower = beside().await.unwrap();
    let object = new_object("hello", 3);
    let rows = server.commit_pack(&new_pack(3)).await.unwrap();
    server.commit_nar(&commit(cache, new_nar(&rows, 10), &object)).await.unwrap();
    let found = follower.find_object(cache, &object.path.hash()).await.unwrap();
    assert_eq!(found.unwrap().object, object, "what another process adds is found");
    let target = crate::TargetIndex::open_target(&follower, "edge", "there").await.unwrap();
    assert_eq!(crate::TargetIndex::list_targets(&server).await.unwrap(), [target]);
    server.close().await.unwrap();
    drop(server);
    // And the other way round.
    let server = open(&path).await;
    assert!(server.find_cache("main").await.unwrap().is_some());
    execute(&path, "DELETE FROM _sqlx_migrations WHERE version > 1").await;
    let refused = beside().await;
    let newest = open::schema_version();
    assert!(
        matches!(refused, Err(Error::SchemaTooOld { found: 1, known }) if known == newest),
        "{refused:?}"
    );
}

#[tokio::test]
async fn caches_from_before_the_setting_still_allow_replacement() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let index = open(&path).await;
    index.close().await.unwrap();
    drop(index);
    execute(
        &path,
        "DROP INDEX public_caches_by_name; ALTER TABLE caches DROP COLUMN allow_replacement;
         DELETE FROM _sqlx_migrations WHERE version = 9;
         INSERT INTO caches (name, is_public, store_dir, priority, upstream_cache_key_names, created_at)
             VALUES ('old', 1, '/nix/store', 40, '[]', 1)",
    )
    .await;
    let index = open(&path).await;
    index.create_cache(&NewCache { allow_replacement: false, ..new_cache("new") }).await.unwrap();
    for (name, expected) in [("old", true), ("new", false)] {
        assert_eq!(index.find_cache(name).await.unwrap().unwrap().allow_replacement, expected, "{name}");
    }
}

#[tokio::test]
async fn durability_is_on_in_every_connection() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder.path().join("index.sqlite")).await;
    let mut connections = Vec::new();
    for _ in 0..SqliteOptions::default().readers {
        connections.push((index.sqlite_session(Access::Read).await, "1"));
    }
    connections.push((write_connection(&index).await, "0"));
    for (connection, query_only) in &mut connections {
        for (pragma, expected) in [
            ("PRAGMA journal_mode", "wal"),
            ("PRAGMA synchronous", "2"),
            ("PRAGMA foreign_keys", "1"),
            ("PRAGMA busy_timeout", "10000"),
            ("PRAGMA fullfsync", "1"),
            ("PRAGMA checkpoint_fullfsync", "1"),
            ("PRAGMA query_only", *query_only),
        ] {
            let rows = connection.all(query(pragma)).await.unwrap();
            let value = rows[0].try_get_unchecked::<String, _>(0).unwrap();
            assert_eq!(value, expected, "{pragma}");
        }
    }
}

#[tokio::test]
async fn a_reopened_index_has_everything_and_its_filters_know_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let index = open(&path).await;
    let cache = index.create_cache(&new_cache("main")).await.unwrap();
    let rows = index.commit_pack(&new_pack(20_000)).await.unwrap();
    let object = new_object("hello", 3);
    let nar = new_nar(&rows[..50], 100);
    index.commit_nar(&commit(cache, nar.clone(), &object)).await.unwrap();
    index.create_setting("s", b"v").await.unwrap();
    let before = index.inventory().await.unwrap();
    index.close().await.unwrap();
    assert!(matches!(index.find_cache("main").await, Err(Error::Unavailable { .. })), "closed is closed");
    assert!(!path.with_extension("sqlite-wal").exists(), "the log was folded into the file");
    drop(index);

    // Once after an orderly end, once after none at all.
    for _ in 0..2 {
        let index = open(&path).await;
        assert_eq!(index.find_cache("main").await.unwrap().unwrap().id, cache);
        assert_eq!(index.find_setting("s").await.unwrap().unwrap(), b"v");
        let found = index.find_object(cache, &object.path.hash()).await.unwrap().unwrap();
        assert_eq!((found.object, found.nar.hash), (object.clone(), nar.hash));
        assert!(index.find_nar(&nar.hash).await.unwrap().is_some());
        let ids: Vec<ChunkId> = rows.iter().map(|row| row.id).take(16_384).collect();
        let chunks = index.find_chunks(&ids).await.unwrap();
        assert!(chunks.iter().zip(&rows).all(|(found, row)| found.as_ref() == Some(row)));
        assert_eq!(index.find_chunks(&[rows[19_999].id]).await.unwrap(), [Some(rows[19_999].clone())]);
        assert_eq!(index.inventory().await.unwrap(), before);
    }
}

#[tokio::test]
async fn a_second_process_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let first = open(&path).await;
    let second = SqliteIndex::open(&path, SqliteOptions::default()).await;
    assert!(matches!(&second, Err(Error::Locked { path }) if path.ends_with("index.sqlite")), "{second:?}");
    drop(first);
    open(&path).await;
}

#[tokio::test]
async fn looking_at_a_database_finds_what_is_there_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    let nothing = SqliteIndex::examine(&path, "s").await.unwrap();
    assert_eq!((nothing.schema, nothing.in_use, files()), (None, false, 0));

    let index = open(&path).await;
    index.create_setting("s", b"v").await.unwrap();
    let used = SqliteIndex::examine(&path, "s").await.unwrap();
    assert!(used.in_use && used.schema == Some(used.schema_known), "{used:?}");
    assert_eq!(used.setting.as_deref(), Some(&b"v"[..]), "also what is in the log only");
    // Still ours to write, and after an orderly end nothing is left beside the file.
    index.create_setting("t", b"w").await.unwrap();
    index.close().await.unwrap();
    drop(index);
    let count = files();
    let found = SqliteIndex::examine(&path, "t").await.unwrap();
    assert_eq!((found.in_use, found.setting.as_deref()), (false, Some(&b"w"[..])));
    assert!(found.program.starts_with("SQLite 3."), "{found:?}");
    assert_eq!(files(), count);
    assert_eq!(SqliteIndex::examine(&path, "u").await.unwrap().setting, None);
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    open(&path).await.close().await.unwrap();
    execute(
        &path,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (7777, 'later', 1, x'', 0)",
    )
    .await;
    let refused = SqliteIndex::open(&path, SqliteOptions::default()).await;
    let newest = open::schema_version();
    assert!(
        matches!(refused, Err(Error::SchemaTooNew { found: 7777, known }) if known == newest),
        "{refused:?}"
    );
    let looked_at = SqliteIndex::examine(&path, "").await;
    assert!(
        matches!(looked_at, Err(Error::SchemaTooNew { found: 7777, known }) if known == newest),
        "{looked_at:?}"
    );
}

#[tokio::test]
async fn the_database_of_attic_is_refused_and_not_touched() {
    for journal in ["PRAGMA journal_mode = DELETE", "PRAGMA journal_mode = WAL"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.db");
        execute(&path, journal).await;
        execute(
            &path,
            "CREATE TABLE cache (id INTEGER); CREATE TABLE nar (id INTEGER); CREATE TABLE chunk (id INTEGER);
             CREATE TABLE object (id INTEGER); CREATE TABLE chunkref (id INTEGER);
             CREATE TABLE seaql_migrations (version TEXT); INSERT INTO cache VALUES (1);",
        )
        .await;
        let before = (std::fs::read(&path).unwrap(), std::fs::metadata(&path).unwrap().modified().unwrap());
        let refused = SqliteIndex::open(&path, SqliteOptions::default()).await;
        assert!(
            matches!(&refused, Err(Error::ForeignDatabase { owner, .. }) if owner == "Attic"),
            "{refused:?}"
        );
        let after = (std::fs::read(&path).unwrap(), std::fs::metadata(&path).unwrap().modified().unwrap());
        assert!(before == after, "not a byte of it changed");
        let files: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(files, ["server.db"], "no file was made beside it");
    }
}

#[tokio::test]
async fn files_of_other_programs_are_refused_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "dear diary").unwrap();
    let database = folder.path().join("other.sqlite");
    execute(&database, "CREATE TABLE packs (id INTEGER)").await;
    for path in [text, database] {
        let before = std::fs::read(&path).unwrap();
        let refused = SqliteIndex::open(&path, SqliteOptions::default()).await;
        assert!(
            matches!(&refused, Err(Error::ForeignDatabase { owner, .. }) if owner == "another program"),
            "{refused:?}"
        );
        assert!(std::fs::read(&path).unwrap() == before);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[tokio::test]
async fn an_empty_file_becomes_ours() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    std::fs::write(&path, "").unwrap();
    drop(open(&path).await);
    let header = std::fs::read(&path).unwrap();
    assert_eq!(&header[68..72], b"DORM", "the mark is in the main file, not only in the log");
    open(&path).await;
}

#[tokio::test]
async fn chunks_in_condemned_packs_are_not_reused_and_move_when_stored_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let index = open(&path).await;
    let cache = index.create_cache(&new_cache("main")).await.unwrap();
    let pack = new_pack(3);
    let rows = index.commit_pack(&pack).await.unwrap();
    execute(&path, "UPDATE packs SET condemned_at = 5").await;
    assert_eq!(index.find_chunks(&[rows[0].id]).await.unwrap(), [None]);
    let refused = index.commit_nar(&commit(cache, new_nar(&rows, 1), &new_object("a", 0))).await;
    assert!(matches!(refused, Err(Error::PackGone)), "{refused:?}");

    let mut again = new_pack(0);
    again.chunks.clone_from(&pack.chunks);
    let moved = index.commit_pack(&again).await.unwrap();
    assert!(moved.iter().all(|row| row.pack_id == again.id));
    assert!(moved.iter().zip(&rows).all(|(row, old)| row.number == old.number));
    index.commit_nar(&commit(cache, new_nar(&moved, 1), &new_object("a", 0))).await.unwrap();
}

#[tokio::test]
async fn a_commit_stamps_its_packs_and_never_backwards() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let index = open(&path).await;
    let cache = index.create_cache(&new_cache("main")).await.unwrap();
    let rows = index.commit_pack(&new_pack(3)).await.unwrap();
    index.commit_pack(&new_pack(1)).await.unwrap();
    for (at, stamp) in [(NOW + 100, NOW + 100), (NOW + 50, NOW + 100)] {
        let commit = NarCommit { at, ..commit(cache, new_nar(&rows, 1), &new_object("a", 0)) };
        index.commit_nar(&commit).await.unwrap();
        let mut raw = raw(&path).await;
        let stamps = query("SELECT used_at FROM packs ORDER BY number").fetch_all(&mut raw).await.unwrap();
        let stamps: Vec<i64> = stamps.iter().map(|row| row.get(0)).collect();
        assert_eq!(stamps, [stamp, NOW], "the pack that was not used keeps its stamp");
    }
}

#[tokio::test]
async fn a_full_or_busy_database_may_work_later_and_a_defect_may_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let options = SqliteOptions {
        busy_timeout: Duration::from_millis(50),
        wait_max: Duration::from_millis(500),
        ..SqliteOptions::default()
    };
    let index = SqliteIndex::open(&path, options).await.unwrap();
    let cache = index.create_cache(&new_cache("main")).await.unwrap();

    // Another program holds the write lock.
    let mut other = raw(&path).await;
    query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    assert!(matches!(index.check_ready().await, Err(Error::Unavailable { .. })));
    assert!(matches!(index.commit_pack(&new_pack(1)).await, Err(Error::Unavailable { .. })));
    assert!(index.find_cache("main").await.unwrap().is_some(), "reading goes on");
    query("ROLLBACK").execute(&mut other).await.unwrap();
    index.check_ready().await.unwrap();

    // The one writing connection is taken for too long.
    let held = write_connection(&index).await;
    let waited = index.touch_objects(cache, &[StorePathHash::from_bytes([0; 20])], Use::Pull, NOW).await;
    assert!(matches!(waited, Err(Error::Unavailable { .. })), "{waited:?}");
    drop(held);

    // The disk is full.
    let mut writer = write_connection(&index).await;
    writer.execute(query("PRAGMA max_page_count = 1")).await.unwrap();
    drop(writer);
    let full = index.commit_pack(&new_pack(2000)).await;
    assert!(matches!(full, Err(Error::Unavailable { .. })), "{full:?}");
    let mut writer = write_connection(&index).await;
    writer.execute(query("PRAGMA max_page_count = 1000000")).await.unwrap();
    drop(writer);
    index.commit_pack(&new_pack(2000)).await.unwrap();

    // A statement that cannot work.
    let mut writer = write_connection(&index).await;
    let defect = writer.execute(query("SELECT nonsense")).await;
    assert!(matches!(defect, Err(Error::Database { .. })), "{defect:?}");
}

#[tokio::test]
async fn corrupt_rows_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let index = open(&path).await;
    let cache = index.create_cache(&new_cache("main")).await.unwrap();
    let rows = index.commit_pack(&new_pack(1)).await.unwrap();
    let (nar, object) = (new_nar(&rows, 1), new_object("a", 1));
    index.commit_nar(&commit(cache, nar.clone(), &object)).await.unwrap();
    execute(
        &path,
        "UPDATE nars SET recipe = x'ff'; UPDATE objects SET refs = x'05'; UPDATE chunks SET layout = x''",
    )
    .await;
    let key = NarQuery::Hash(nar.hash);
    assert!(matches!(
        index.find_nar_in_cache(cache, &key, NOW).await,
        Err(Error::Corrupt { table: "nars", .. })
    ));
    let found = index.find_object(cache, &object.path.hash()).await;
    assert!(matches!(found, Err(Error::Corrupt { table: "objects", .. })), "{found:?}");
    let found = index.find_chunks(&[rows[0].id]).await;
    assert!(matches!(found, Err(Error::Corrupt { table: "chunks", .. })), "{found:?}");
}

/// The plan of a statement, without planning statistics: as a young database sees it.
async fn plan(index: &SqlIndex, sql: Sql) -> Vec<String> {
    let mut read = index.sqlite_session(Access::Read).await;
    let sql = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", sql.sqlite));
    read.all(query(sql)).await.unwrap().iter().map(|row| row.get("detail")).collect()
}

#[tokio::test]
async fn every_look_up_searches_an_index_and_scans_no_table() {
    let folder = tempfile::tempdir().unwrap();
    look_ups_search_indexes(&open(&folder.path().join("index.sqlite")).await).await;
}

/// However many rows there are, and whether the planner has counted them or not.
pub(super) async fn look_ups_search_indexes(index: &SqlIndex) {
    for (sql, searches) in [
        (
            chunks::FIND_CHUNKS,
            [
                "SEARCH c USING INDEX sqlite_autoindex_chunks_1 (id=?)",
                "SEARCH p USING INTEGER PRIMARY KEY (rowid=?)",
            ]
            .as_slice(),
        ),
        (
            chunks::LOAD_CHUNKS,
            &[
                "SEARCH c USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
                "SEARCH p USING INTEGER PRIMARY KEY (rowid=?)",
            ],
        ),
        (
            chunks::STAMP_PACKS,
            &[
                "SEARCH packs USING INTEGER PRIMARY KEY (rowid=?)",
                "SEARCH c USING INDEX chunks_damaged (pack=?)",
            ],
        ),
        (damage::MARK_CHUNKS, &["SEARCH chunks USING INTEGER PRIMARY KEY (rowid=?)"]),
        (
            nars::FIND_NAR_BY_HASH,
            &[
                "SEARCH n USING INDEX sqlite_autoindex_nars_1 (hash=?)",
                "SEARCH o USING COVERING INDEX objects_by_nar (nar=? AND cache=?)",
            ],
        ),
        (
            nars::FIND_NAR,
            &[
                "SEARCH n USING INDEX sqlite_autoindex_nars_1 (hash=?)",
                "SEARCH l USING INTEGER PRIMARY KEY (rowid=?) LEFT-JOIN",
            ],
        ),
        (
            caches::LIST_CACHES_OF_NAR,
            &[
                "SEARCH o USING COVERING INDEX objects_by_nar (nar=?)",
                "SEARCH g USING INDEX graces_by_nar (nar=?)",
                "SEARCH a USING COVERING INDEX aliases_by_nar (nar=?)",
            ],
        ),
        (
            nars::FIND_NAR_BY_PATH,
            &[
                "SEARCH o USING INDEX sqlite_autoindex_objects_1 (cache=? AND hash=?)",
                "SEARCH n USING INTEGER PRIMARY KEY (rowid=?)",
            ],
        ),
        (
            nars::LOOK_BY_HASH,
            &[
                "SEARCH n USING INDEX sqlite_autoindex_nars_1 (hash=?) LEFT-JOIN",
                "SEARCH o USING INDEX sqlite_autoindex_objects_1 (cache=? AND hash=?) LEFT-JOIN",
            ],
        ),
        (
            nars::LOOK_BY_ID,
            &[
                "SEARCH n USING INTEGER PRIMARY KEY (rowid=?) LEFT-JOIN",
                "SEARCH m USING INTEGER PRIMARY KEY (rowid=?) LEFT-JOIN",
            ],
        ),
        (
            objects::FIND_OBJECT,
            &[
                "SEARCH o USING INDEX sqlite_autoindex_objects_1 (cache=? AND hash=?)",
                "SEARCH n USING INTEGER PRIMARY KEY (rowid=?)",
            ],
        ),
        (
            objects::FIND_OBJECT_AND_LOG,
            &[
                "SEARCH o USING INDEX sqlite_autoindex_objects_1 (cache=? AND hash=?)",
                "SEARCH n USING INTEGER PRIMARY KEY (rowid=?)",
                "SEARCH l USING COVERING INDEX documents_by_name (cache=? AND name=?)",
            ],
        ),
        (
            objects::PRESENT_OBJECTS,
            &[
                "SEARCH o USING INDEX sqlite_autoindex_objects_1 (cache=? AND hash=?)",
                "SEARCH n USING INTEGER PRIMARY KEY (rowid=?)",
            ],
        ),
        (
            objects::TOUCH_OBJECTS,
            &["SEARCH objects USING INDEX sqlite_autoindex_objects_1 (cache=? AND hash=?)"],
        ),
        (
            expire_cache::examined::EXAMINE_PAGE,
            &[
                "SEARCH o USING INDEX objects_by_use (cache=? AND last_used_at>? AND last_used_at<?)",
                "SEARCH n USING INTEGER PRIMARY KEY (rowid=?)",
                "SEARCH r USING PRIMARY KEY (cache=? AND reference=?)",
                "SEARCH p USING INDEX pins_by_path (cache=? AND hash=?)",
                "SEARCH m USING COVERING INDEX objects_by_name (cache=? AND name=? AND created_at>?)",
            ],
        ),
        (
            expire_cache::examined::EXAMINE_FREED,
            &[
                "SEARCH o USING INDEX sqlite_autoindex_objects_1 (cache=? AND hash=?)",
                "SEARCH n USING INTEGER PRIMARY KEY (rowid=?)",
            ],
        ),
        (
            expire_cache::examined::EXAMINE_ONE,
            &[
                "SEARCH o USING INDEX sqlite_autoindex_objects_1 (cache=? AND hash=?)",
                "SEARCH n USING INTEGER PRIMARY KEY (rowid=?)",
                "SEARCH m USING COVERING INDEX objects_by_name (cache=? AND name=? AND created_at>?)",
            ],
        ),
        (
            expire_cache::objects::DELETE_OBJECTS,
            &["SEARCH objects USING INDEX sqlite_autoindex_objects_1 (cache=? AND hash=?)"],
        ),
        (
            expire_cache::examined::SUM_OBJECTS,
            &[
                "SEARCH o USING INDEX sqlite_autoindex_objects_1 (cache=? AND hash>?)",
                "SEARCH n USING INTEGER PRIMARY KEY (rowid=?)",
                "SEARCH d USING INDEX documents_by_owner (cache=? AND owner=?)",
                "SEARCH l USING INDEX documents_by_name (cache=? AND name=?)",
            ],
        ),
        (
            expire_cache::quota::SUM_GRACES,
            &[
                "SEARCH g USING PRIMARY KEY (cache=? AND (hash,nar)>(?,?))",
                "SEARCH n USING INTEGER PRIMARY KEY (rowid=?)",
            ],
        ),
        (journal::FIND_PIN, &["SEARCH pins USING INDEX pins_by_name (cache=? AND name=? AND hash=?)"]),
        (retention::LIST_PINS, &["SEARCH pins USING INDEX pins_by_name (cache=? AND (name,hash)>(?,?))"]),
        (retention::LIST_PINS_OF_PATH, &["SEARCH pins USING INDEX pins_by_path (cache=? AND hash=?)"]),
        (
            retention::FIND_REFERENCES,
            &["SEARCH o USING INDEX sqlite_autoindex_objects_1 (cache=? AND hash=?)"],
        ),
        (retention::FIND_REFERRERS, &["SEARCH object_refs USING PRIMARY KEY (cache=? AND reference=?)"]),
        (
            retention::FIND_KEEPERS,
            &[
                "SEARCH p USING INDEX pins_by_path (cache=? AND hash=?)",
                "SEARCH r USING PRIMARY KEY (cache=? AND reference=?)",
                "SEARCH o USING INDEX sqlite_autoindex_objects_1 (cache=? AND hash=?)",
            ],
        ),
        (
            retention::LIST_EXTREMES,
            &[
                "SEARCH objects USING INDEX objects_by_size (cache=?)",
                "SEARCH objects USING INDEX objects_by_use (cache=?)",
            ],
        ),
        (retention::LIST_BY_USE, &["SEARCH objects USING INDEX objects_by_use (cache=? AND last_used_at>?)"]),
        (retention::LIST_BY_AGE, &["SEARCH objects USING INDEX objects_by_age (cache=? AND created_at>?)"]),
        (retention::LIST_BY_SIZE, &["SEARCH objects USING INDEX objects_by_size (cache=? AND nar_size<?)"]),
        (
            retention::LIST_BY_NAME,
            &["SEARCH objects USING INDEX objects_by_name (cache=? AND (name,created_at)>(?,?) AND name<?)"],
        ),
        (sessions::FIND, &["SEARCH sessions USING PRIMARY KEY (id=?)"]),
        (
            sessions::OPEN,
            &[
                "SEARCH c USING INTEGER PRIMARY KEY (rowid=?)",
                "SEARCH s USING COVERING INDEX sessions_by_subject (subject=? AND ends_at>?)",
            ],
        ),
        (
            sessions::MAKE_ROOM,
            &[
                "SEARCH sessions USING PRIMARY KEY (id=?)",
                "SEARCH sessions USING INDEX sessions_by_subject (subject=? AND ends_at>?)",
            ],
        ),
        (sessions::ADD_PART, &["SEARCH s USING PRIMARY KEY (id=?)"]),
        (sessions::FIND_PART, &["SEARCH session_parts USING PRIMARY KEY (session=? AND digest=?)"]),
        (sessions::PARTS_AFTER, &["SEARCH session_parts USING PRIMARY KEY (session=? AND digest>?)"]),
        (
            sessions::RECIPES_AFTER,
            &[
                "SEARCH o USING INDEX objects_by_age (cache=? AND created_at>?)",
                "SEARCH n USING INTEGER PRIMARY KEY (rowid=?)",
            ],
        ),
        (
            sessions::SWEEP_PARTS,
            &[
                "SEARCH session_parts USING PRIMARY KEY (session=? AND digest=?)",
                "SEARCH p USING PRIMARY KEY (session=?)",
            ],
        ),
        (sessions::FIRST_ENDED, &["SEARCH sessions USING COVERING INDEX sessions_by_end (ends_at<?)"]),
        (sessions::SWEEP_SESSION, &["SEARCH sessions USING PRIMARY KEY (id=?)"]),
        (documents::FIND, &["SEARCH documents USING INDEX documents_by_name (cache=? AND name=?)"]),
        (documents::HAS, &["SEARCH d USING COVERING INDEX documents_by_name (cache=? AND name=?)"]),
        (
            documents::LOOK,
            &[
                "SEARCH d USING INDEX documents_by_name (cache=? AND name=?) LEFT-JOIN",
                "SEARCH t USING COVERING INDEX documents_by_owner (cache=? AND owner=?)",
            ],
        ),
        (
            documents::FORGET,
            &[
                "SEARCH documents USING INDEX documents_by_owner (cache=? AND owner=?)",
                "SEARCH o USING COVERING INDEX objects_by_deriver (cache=? AND deriver=?)",
            ],
        ),
        (
            expire_cache::documents::EXAMINE_DOCUMENTS,
            &[
                "SEARCH d USING INDEX documents_by_number (cache=? AND id>?)",
                "SEARCH o USING COVERING INDEX objects_by_deriver (cache=? AND deriver=?)",
                "SEARCH o USING COVERING INDEX sqlite_autoindex_objects_1 (cache=? AND hash=?)",
            ],
        ),
        (
            expire_cache::documents::DELETE_DOCUMENTS,
            &["SEARCH documents USING INTEGER PRIMARY KEY (rowid=?)"],
        ),
        (documents::OUTPUTS, &["SEARCH o USING INDEX objects_by_deriver (cache=? AND deriver=?)"]),
        (
            documents::FIND_DEBUG_NAR,
            &[
                "SEARCH build_ids USING PRIMARY KEY (build_id>? AND (build_id,nar)<(?,?))",
                "SEARCH n USING INTEGER PRIMARY KEY (rowid=?)",
                "SEARCH o USING COVERING INDEX objects_by_nar (nar=? AND cache=?)",
            ],
        ),
        (documents::FIND_LOGS, &["SEARCH documents USING INDEX documents_by_owner (cache=? AND owner=?)"]),
        (documents::DELETE_LOGS, &["SEARCH documents USING INDEX documents_by_owner (cache=? AND owner=?)"]),
        (
            journal::OBJECTS,
            &[
                "SEARCH o USING INDEX sqlite_autoindex_objects_1 (cache=? AND hash=?)",
                "SEARCH n USING INTEGER PRIMARY KEY (rowid=?)",
                "SEARCH l USING INTEGER PRIMARY KEY (rowid=?) LEFT-JOIN",
            ],
        ),
        (
            journal::OBJECTS_AFTER,
            &[
                "SEARCH o USING INDEX sqlite_autoindex_objects_1 ((cache,hash)>(?,?))",
                "SEARCH n USING INTEGER PRIMARY KEY (rowid=?)",
                "SEARCH l USING INTEGER PRIMARY KEY (rowid=?) LEFT-JOIN",
            ],
        ),
        (journal::ALIAS, &["SEARCH a USING PRIMARY KEY (cache=? AND file_name=?)"]),
        (journal::ALIASES_AFTER, &["SEARCH a USING PRIMARY KEY ((cache,file_name)>(?,?))"]),
        (journal::DOCUMENT, &["SEARCH documents USING INDEX documents_by_name (cache=? AND name=?)"]),
        (journal::DOCUMENT_SIZES, &["SEARCH documents USING INTEGER PRIMARY KEY (rowid>?)"]),
        (journal::DOCUMENTS_AFTER, &["SEARCH documents USING INTEGER PRIMARY KEY (rowid>?)"]),
        (objects::FIND_ALIAS, &["SEARCH a USING PRIMARY KEY (cache=? AND file_name=?)"]),
        (objects::DELETE_ALIASES_OF_NAR, &["SEARCH aliases USING INDEX aliases_by_nar (nar=?)"]),
        (objects::DELETE_GRACES_OF_NAR, &["SEARCH graces USING INDEX graces_by_nar (nar=?)"]),
        (objects::DELETE_GRACES_OF_PATH, &["SEARCH graces USING PRIMARY KEY (cache=? AND hash=?)"]),
        (collect::ended::EXPIRE_GRACES, &["SEARCH graces USING COVERING INDEX graces_to_expire (<expr><?)"]),
        (
            collect::ended::EXPIRE_ALIASES,
            &["SEARCH aliases USING COVERING INDEX aliases_to_expire (<expr><?)"],
        ),
        (collect::marks::MARK_END, &["SEARCH nars USING INTEGER PRIMARY KEY (rowid>?)"]),
        (
            collect::marks::MARK_BYTES,
            &[
                "SEARCH nars USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
                "SEARCH listings USING INDEX listings_in_chunks (nar>? AND nar<?)",
            ],
        ),
        (collect::marks::MARK_SIZES, &["SEARCH n USING INTEGER PRIMARY KEY (rowid>?)"]),
        (collect::marks::MARK_RECIPES, &["SEARCH nars USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"]),
        (
            collect::marks::MARK_LISTINGS,
            &["SEARCH listings USING INDEX listings_in_chunks (nar>? AND nar<?)"],
        ),
        (
            collect::marks::UNNAMED_NARS,
            &[
                "SEARCH n USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
                "SEARCH o USING COVERING INDEX objects_by_nar (nar=?)",
            ],
        ),
        (
            collect::marks::DELETE_NARS,
            &[
                "SEARCH nars USING INTEGER PRIMARY KEY (rowid=?)",
                "SEARCH o USING COVERING INDEX objects_by_nar (nar=?)",
            ],
        ),
        (collect::marks::MOVED_CHUNKS, &["SEARCH chunks USING COVERING INDEX chunks_moved (number>?)"]),
        (collect::packs::COUNT_CHUNKS, &["SEARCH chunks USING COVERING INDEX chunks_by_pack (pack=?)"]),
        (collect::packs::PACK_CHUNKS, &["SEARCH c USING INDEX chunks_by_pack (pack=? AND rowid>?)"]),
        (collect::moves::MOVE_CHUNKS, &["SEARCH chunks USING INTEGER PRIMARY KEY (rowid=?)"]),
        (collect::moves::REFRAME_CHUNKS, &["SEARCH chunks USING INTEGER PRIMARY KEY (rowid=?)"]),
        (collect::packs::CONDEMN_PACKS, &["SEARCH packs USING INTEGER PRIMARY KEY (rowid=?)"]),
        (collect::packs::DELETE_CHUNKS, &["SEARCH chunks USING COVERING INDEX chunks_by_pack (pack=?)"]),
    ] {
        let plan = plan(index, sql).await;
        for search in searches {
            assert!(plan.iter().any(|step| step == search), "{search} is not in {plan:#?}");
        }
        for step in plan.iter().filter(|step| step.starts_with("SCAN")) {
            // Results with a limit, and the few caches that are published.
            let small = [
                "one",
                "newer",
                "newest",
                "found LEFT-JOIN",
                "own",
                "direct",
                "pinned",
                "near",
                "last",
                "above",
                "largest",
                "unused",
                "published",
                "asked",
            ];
            // What a window function goes over has no name: other steps read it.
            let harmless = step.contains("VIRTUAL TABLE")
                || step.starts_with("SCAN (subquery-")
                || step.contains("CONSTANT ROW")
                || small.iter().any(|name| *step == format!("SCAN {name}"));
            assert!(harmless, "{step} in {plan:#?}");
        }
    }
}

/// What the first upload of a gigabyte leaves: the figures that docs/STORAGE.md promises.
#[tokio::test]
async fn twelve_thousand_chunks_and_650_objects_take_at_most_4_mb_and_few_statements() {
    const NARS: usize = 650;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let index = open(&path).await;
    let cache = index.create_cache(&new_cache("main")).await.unwrap();
    let mut rows = Vec::new();
    let mut pack_statements = 0;
    for _ in 0..24 {
        let mut pack = new_pack(500);
        for (n, chunk) in pack.chunks.iter_mut().enumerate() {
            // About one chunk in three has holes, four of them.
            if n % 3 == 0 {
                chunk.layout.holes = vec![1000, 20_000, 60_000, 100_000];
                chunk.layout.frames = vec![300, 6_000, 12_000, 12_000, 9_000];
            }
        }
        let before = index.statement_count();
        rows.extend(index.commit_pack(&pack).await.unwrap());
        pack_statements = pack_statements.max(index.statement_count() - before);
    }
    let mut statements = 0;
    for (n, chunks) in rows.chunks(rows.len().div_ceil(NARS)).enumerate() {
        let ids: Vec<ChunkId> = chunks.iter().map(|row| row.id).collect();
        let nar = new_nar(chunks, 0);
        let before = index.statement_count();
        assert!(index.find_nar(&nar.hash).await.unwrap().is_none());
        assert!(index.find_chunks(&ids).await.unwrap().iter().all(Option::is_some));
        let object = new_object(&format!("package-number-{n}-1.0"), 8);
        index.commit_nar(&commit(cache, nar, &object)).await.unwrap();
        statements = statements.max(index.statement_count() - before);
    }
    index.close().await.unwrap();
    let bytes = std::fs::metadata(&path).unwrap().len();
    println!("{bytes} bytes, {pack_statements} statements a pack, {statements} statements a NAR");
    assert!(bytes <= 4_000_000, "{bytes} bytes");
    assert!(pack_statements <= 4, "{pack_statements} statements for a new pack");
    assert!(statements <= 10, "{statements} statements for a NAR: two look-ups and the commit");
}

#[tokio::test]
async fn what_nobody_has_costs_no_statement() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder.path().join("index.sqlite")).await;
    let cache = index.create_cache(&new_cache("main")).await.unwrap();
    let rows = index.commit_pack(&new_pack(5000)).await.unwrap();
    index.commit_nar(&commit(cache, new_nar(&rows, 1), &new_object("a", 0))).await.unwrap();
    let before = index.statement_count();
    for _ in 0..1000 {
        index.find_chunks(&[ChunkId::from_bytes(rand::random())]).await.unwrap();
        index.find_object(cache, &StorePathHash::from_bytes(rand::random())).await.unwrap();
        index.find_nar(&NarHash::from_bytes(rand::random())).await.unwrap();
    }
    // The filters are nearly empty: a false answer has a chance of one in many millions.
    assert_eq!(index.statement_count(), before);
}
