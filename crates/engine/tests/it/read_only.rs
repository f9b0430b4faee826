//! Pulls while the database takes no writes, or takes them slowly.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{
    create_main, decompress, engine_over, hash_of, ingest, listing, path, push, served, settings,
};
use dormer_blobs::{Blobs, StoreBlobs};
use dormer_engine::{Clock, Engine, EngineSettings, MasterKey, SystemClock};
use dormer_index::{Index, NarQuery, PostgresIndex, PostgresOptions};
use dormer_testkit::services::Postgres;
use dormer_testkit::{Random, object_for, package_nar, rebuilt};
use prometheus::core::Collector;

/// Two hours later than the machine's clock: every object was last used more than an hour ago.
#[derive(Debug)]
struct TwoHoursLater;

impl Clock for TwoHoursLater {
    fn now(&self) -> i64 {
        SystemClock.now() + 7_200
    }
}

fn later(index: Arc<dyn Index>, blobs: &Arc<dyn Blobs>) -> Engine {
    let key = MasterKey::from_bytes([9; 32]);
    Engine::new(index, Arc::clone(blobs), key, settings(), Arc::new(TwoHoursLater))
}

async fn open(url: &str) -> Arc<dyn Index> {
    // The index repeats failed calls for as long as this; a short time keeps the test short.
    let acquire_timeout = Duration::from_secs(2);
    let options = PostgresOptions { connections_max: 4, acquire_timeout, ..PostgresOptions::default() };
    Arc::new(PostgresIndex::open(url, options).await.unwrap())
}

/// Uses with this outcome that the engine counted.
fn uses(engine: &Engine, outcome: &str) -> f64 {
    let families = engine.collect();
    let family = families.iter().find(|family| family.name() == "dormer_uses_total").unwrap();
    let metric = family.get_metric().iter().find(|metric| metric.get_label()[0].value() == outcome);
    metric.unwrap().get_counter().get_value()
}

/// Makes PostgreSQL refuse writes to these tables as a standby does.
/// (`default_transaction_read_only` would change nothing: the index begins its writing transactions
/// as `READ WRITE`.)
fn refuse_writes(url: &str) {
    let error =
        "RAISE EXCEPTION 'cannot execute % in a read-only transaction', TG_OP USING ERRCODE = '25006'";
    let function =
        format!("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {error}; END $$");
    Postgres::shared().sql(url, &function);
    for table in ["objects", "nars"] {
        let trigger = format!(
            "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON {table} EXECUTE FUNCTION refuse()"
        );
        Postgres::shared().sql(url, &trigger);
    }
}

async fn becomes(is_so: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < Duration::from_mins(2), "it never becomes so");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_database_serves_paths_that_were_used_long_ago() {
    let url = Postgres::shared().create_database();
    let blobs: Arc<dyn Blobs> = Arc::new(StoreBlobs::in_memory());
    let index = open(&url).await;
    let engine = engine_over(Arc::clone(&index), Arc::clone(&blobs), settings());
    let cache = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(4), 60_000, &[path(9)]);
    let twin = rebuilt(&nar, &path(9), &path(10));
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    push(&engine, &cache, &path(2), &twin).await.unwrap();
    let alias = ingest(&engine, &nar).await.unwrap();
    engine.commit_alias(&cache, alias, "file.nar.zst", "zstd").await.unwrap();

    // The chunks are healed at another level: the twin's next reader finds another tag than its row
    // has.
    for blob in blobs.list().await.unwrap() {
        blobs.delete(&blob).await.unwrap();
    }
    let other_level = EngineSettings { zstd_level: 19, ..settings() };
    let healer = engine_over(Arc::clone(&index), Arc::clone(&blobs), other_level);
    assert!(served(&healer, &cache, &nar, None).await.unwrap().is_none());
    push(&healer, &cache, &path(1), &nar).await.unwrap();

    refuse_writes(&url);
    let engine = later(Arc::clone(&index), &blobs);
    for (path, nar) in [(path(1), &nar), (path(2), &twin)] {
        assert!(engine.narinfo(&cache, &path.hash()).await.unwrap().is_some());
        assert_eq!(decompress(&served(&engine, &cache, nar, None).await.unwrap().unwrap()), *nar);
        assert!(listing(&engine, &cache, &path).await.unwrap().is_some());
    }
    assert!(engine.open_alias(&cache, "file.nar.zst").await.unwrap().is_some());
    becomes(async || uses(&engine, "lost") >= 1.0).await;
    assert!(uses(&engine, "written") < 1.0);
    // A pusher relies on "present", so this answer is not given without the write.
    assert!(engine.missing_paths(&cache, &[path(1).hash()]).await.is_err());

    Postgres::shared().sql(&url, "DROP FUNCTION refuse CASCADE");
    let engine = later(index, &blobs);
    assert!(engine.narinfo(&cache, &path(1).hash()).await.unwrap().is_some());
    becomes(async || uses(&engine, "written") >= 1.0).await;
    let found = engine.index().find_object(cache.id, &path(1).hash()).await.unwrap().unwrap();
    assert!(found.last_used_at > SystemClock.now() + 3_600, "the use is written in the background");
    assert!(engine.missing_paths(&cache, &[path(1).hash()]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_do_not_wait_for_a_locked_table() {
    let url = Postgres::shared().create_database();
    let blobs: Arc<dyn Blobs> = Arc::new(StoreBlobs::in_memory());
    let index = open(&url).await;
    let engine = later(Arc::clone(&index), &blobs);
    let cache = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(5), 60_000, &[path(9)]);
    let writer = engine_over(index, Arc::clone(&blobs), settings());
    for number in 0..50 {
        let ingested = ingest(&writer, &nar).await.unwrap();
        writer.commit_object(&cache, ingested, object_for(&path(number), &[])).await.unwrap();
    }

    // Readers go on beside this lock, writers wait for it.
    let lock = "BEGIN; LOCK TABLE objects, chunks, nars IN EXCLUSIVE MODE; SELECT pg_sleep(6); COMMIT";
    let locked_url = url.clone();
    let lock = std::thread::spawn(move || Postgres::shared().sql(&locked_url, lock));
    let is_locked =
        "SELECT count(*) FROM pg_locks WHERE mode = 'ExclusiveLock' AND relation = 'objects'::regclass";
    becomes(async || Postgres::shared().sql(&url, is_locked) == "1").await;
    let begun = Instant::now();
    for number in 0..50 {
        assert!(engine.narinfo(&cache, &path(number).hash()).await.unwrap().is_some());
    }
    let open = engine.open_nar(&cache, &NarQuery::Hash(hash_of(&nar))).await.unwrap();
    assert!(open.is_some());
    // Damage that a read finds is written down later.
    for blob in blobs.list().await.unwrap() {
        blobs.delete(&blob).await.unwrap();
    }
    assert!(!matches!(served(&engine, &cache, &nar, None).await, Ok(Some(_))));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert!(uses(&engine, "written") < 1.0);
    lock.join().unwrap();
    becomes(async || uses(&engine, "written") >= 50.0).await;
    becomes(async || engine.narinfo(&cache, &path(1).hash()).await.unwrap().is_none()).await;
}
