//! What pushes and pulls cost the index, counted in statements: the same however much is there.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::sync::Arc;

use crate::common::{Installation, create_main, decompress, engine_over, path, push, served, settings};
use dormer_blobs::{Blobs, StoreBlobs};
use dormer_engine::Engine;
use dormer_index::{Cache, CommitTarget, Index, NarCommit, NarSource, PostgresIndex, PostgresOptions};
use dormer_nix::{StorePath, StorePathHash};
use dormer_testkit::services::Postgres;
use dormer_testkit::{Random, object_for, package_nar};

/// Statements of one push, one re-push, one pull, one narinfo, one miss, and a question after
/// 10,000 paths.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    push: u64,
    push_again: u64,
    pull: u64,
    narinfo: u64,
    miss: u64,
    question: u64,
}

async fn counted(engine: &Engine, work: impl Future<Output = ()>) -> u64 {
    let before = engine.index().statement_count();
    work.await;
    engine.index().statement_count() - before
}

async fn cost(engine: &Engine, cache: &Arc<Cache>, number: u8) -> Cost {
    let nar = package_nar(&mut Random::new(u64::from(number)), 100_000, &[path(number)]);
    let path = path(number);
    let asked: Vec<StorePathHash> = (0..10_000_u32)
        .map(|n| if n == 7 { path.hash() } else { number_hash(u64::from(n) << 32 | u64::from(number)) })
        .collect();
    let absent = number_hash(u64::MAX - u64::from(number));
    Cost {
        push: counted(engine, async { push(engine, cache, &path, &nar).await.unwrap() }).await,
        push_again: counted(engine, async { push(engine, cache, &path, &nar).await.unwrap() }).await,
        pull: counted(engine, async {
            assert_eq!(decompress(&served(engine, cache, &nar, None).await.unwrap().unwrap()), nar);
        })
        .await,
        narinfo: counted(engine, async {
            assert!(engine.narinfo(cache, &path.hash()).await.unwrap().is_some());
        })
        .await,
        miss: counted(engine, async { assert!(engine.narinfo(cache, &absent).await.unwrap().is_none()) })
            .await,
        question: counted(engine, async {
            assert_eq!(engine.missing_paths(cache, &asked).await.unwrap().len(), 9_999);
        })
        .await,
    }
}

fn number_hash(number: u64) -> StorePathHash {
    let mut bytes = [7; 20];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    StorePathHash::from_bytes(bytes)
}

/// Names the first path's NAR by so many more objects.
async fn add_objects(engine: &Engine, cache: &Cache, count: u64) {
    let found = engine.index().find_object(cache.id, &path(1).hash()).await.unwrap().unwrap();
    for number in 0..count {
        let path = StorePath::new(number_hash(number << 8 | 0xff), "another").unwrap();
        let target = CommitTarget::Object(object_for(&path, &[]));
        let nar = NarSource::Known(found.nar.id);
        engine
            .index()
            .commit_nar(&NarCommit {
                cache: cache.id,
                nar,
                target,
                at: engine.now(),
                grace_seconds: 60,
                known_keys: Vec::new(),
            })
            .await
            .unwrap();
    }
}

async fn costs_do_not_grow(index: Arc<dyn Index>) {
    let blobs: Arc<dyn Blobs> = Arc::new(StoreBlobs::in_memory());
    let engine = engine_over(index, blobs, settings());
    let cache = create_main(&engine).await;
    // The first one finds nothing at all, and prepares statements.
    cost(&engine, &cache, 1).await;
    add_objects(&engine, &cache, 60).await;
    let few = cost(&engine, &cache, 2).await;
    add_objects(&engine, &cache, 660).await;
    let many = cost(&engine, &cache, 3).await;
    assert_eq!(few, many);
    assert!(many.push <= 14, "{many:?}");
    assert!(many.pull <= 2 && many.narinfo <= 1 && many.miss <= 1, "{many:?}");
    assert_eq!(many.question, 1, "10,000 paths are one question");
    large_nars_cost_by_their_bytes(&engine, &cache).await;
}

/// ADR 11: 14 statements, one for every 3 MiB looked up, and at most six for every pack.
async fn large_nars_cost_by_their_bytes(engine: &Engine, cache: &Arc<Cache>) {
    const SIZE: usize = 20_000_000;
    let most = 14 + SIZE.div_ceil(3 << 20) as u64 + 6 * (SIZE.div_ceil(24 << 20) as u64 + 1);
    let first = package_nar(&mut Random::new(4), SIZE, &[path(4)]);
    // Another build: every chunk with a reference has other fills, and some bytes are new.
    let mut second = package_nar(&mut Random::new(4), SIZE, &[path(5)]);
    let quarter = second.len() / 4;
    second[quarter..quarter + 64].fill(b'x');
    for (number, nar) in [(4, &first), (5, &second)] {
        let statements =
            counted(engine, async { push(engine, cache, &path(number), nar).await.unwrap() }).await;
        assert!(statements <= most, "{statements} > {most}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn costs_do_not_grow_with_what_is_there_on_sqlite() {
    let installation = Installation::new();
    costs_do_not_grow(Arc::new(installation.index().await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn costs_do_not_grow_with_what_is_there_on_postgresql() {
    let url = Postgres::shared().create_database();
    let options = PostgresOptions { connections_max: 4, ..PostgresOptions::default() };
    costs_do_not_grow(Arc::new(PostgresIndex::open(&url, options).await.unwrap())).await;
}
