//! Two engines on one database and one store: what one changes, the other answers.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{self, create_main, engine_over, ingest, path, push, served, settings};
use bytes::Bytes;
use dormer_blobs::{Blobs, StoreBlobs};
use dormer_engine::{Engine, KeyChange, UpdateCache};
use dormer_index::{Cache, PostgresIndex, PostgresOptions, Removal};
use dormer_nix::StorePath;
use dormer_testkit::services::Postgres;
use dormer_testkit::{Random, object_for, package_nar};

/// Longest wait for what has to happen at some time.
const PATIENCE: Duration = Duration::from_mins(1);

async fn replicas(transaction_pooler: bool) -> [Engine; 2] {
    let url = Postgres::shared().create_database();
    let blobs: Arc<dyn Blobs> = Arc::new(StoreBlobs::in_memory());
    let options = PostgresOptions { connections_max: 4, transaction_pooler, ..PostgresOptions::default() };
    let a = PostgresIndex::open(&url, options.clone()).await.expect("the index answers");
    let b = PostgresIndex::open(&url, options).await.expect("the index answers");
    [engine_over(Arc::new(a), Arc::clone(&blobs), settings()), engine_over(Arc::new(b), blobs, settings())]
}

async fn narinfo(engine: &Engine, path: &StorePath) -> Option<Bytes> {
    let cache = engine.find_cache("main").await.expect("the index answers").expect("it is there");
    engine.narinfo(&cache, &path.hash()).await.expect("the index answers")
}

/// Asks until the answer is right. In between, what is remembered is asked for again and again, as
/// users do.
async fn becomes(what: &str, is_so: impl AsyncFn() -> bool) {
    let asked = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn main_of(engine: &Engine) -> Arc<Cache> {
    engine.find_cache("main").await.expect("the index answers").expect("it is there")
}

async fn changes_show_at_the_other_replica(transaction_pooler: bool) {
    let [a, b] = replicas(transaction_pooler).await;
    let cache = create_main(&a).await;
    let mut random = Random::new(7);
    let (first, second) = (package_nar(&mut random, 20_000, &[]), package_nar(&mut random, 30_000, &[]));

    // A miss is never remembered: what is pushed to one is there at once at the other.
    for number in 0..10 {
        let path = path(number);
        assert_eq!(narinfo(&b, &path).await, None);
        push(&a, &cache, &path, &first).await.expect("the index answers");
        assert!(narinfo(&b, &path).await.is_some(), "a miss was remembered");
        let from_b = served(&b, &cache, &first, None).await.expect("the index answers");
        assert!(
            from_b.is_some() && from_b == served(&a, &cache, &first, None).await.expect("the index answers")
        );
    }

    let old = narinfo(&b, &path(0)).await.expect("the index answers");
    push(&a, &cache, &path(0), &second).await.expect("the index answers");
    becomes("another NAR", async || narinfo(&b, &path(0)).await.is_some_and(|now| now != old)).await;

    let ingested = ingest(&a, &second).await.expect("the index answers");
    let mut signed = object_for(&path(0), &[]);
    signed.sigs = vec!["other-1:abc".to_owned()];
    a.commit_object(&cache, ingested, signed).await.expect("the index answers");
    let has = |text: Option<Bytes>, part: &str| {
        text.is_some_and(|text| String::from_utf8_lossy(&text).contains(part))
    };
    becomes("a signature more", async || has(narinfo(&b, &path(0)).await, "other-1:abc")).await;

    let update = UpdateCache { new_key: Some(KeyChange::Generate), ..UpdateCache::default() };
    a.update_cache(main_of(&a).await.as_ref(), update).await.expect("the index answers");
    let key =
        main_of(&a).await.keys.iter().find(|key| key.active).expect("the index answers").public_key.clone();
    becomes("another key", async || {
        main_of(&b).await.keys.iter().any(|other| other.active && other.public_key == key)
    })
    .await;
    let with_new_key = narinfo(&a, &path(0)).await.expect("the index answers");
    becomes("a narinfo with it", async || narinfo(&b, &path(0)).await.as_ref() == Some(&with_new_key)).await;

    assert!(narinfo(&b, &path(1)).await.is_some());
    a.index()
        .remove_object(cache.id, &path(1).hash(), Removal::ForCause, a.now())
        .await
        .expect("the index answers");
    becomes("removed", async || narinfo(&b, &path(1)).await.is_none()).await;

    a.delete_cache(main_of(&a).await.as_ref(), None).await.expect("the index answers");
    becomes("deleted", async || b.find_cache("main").await.expect("the index answers").is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_show_at_the_other_replica_by_notice() {
    changes_show_at_the_other_replica(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_show_at_the_other_replica_without_notices() {
    changes_show_at_the_other_replica(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_push_the_same_paths_at_once() {
    let [a, b] = replicas(false).await;
    let cache = create_main(&a).await;
    let mut random = Random::new(8);
    let nars: Vec<Arc<Vec<u8>>> = (0..6).map(|_| Arc::new(package_nar(&mut random, 60_000, &[]))).collect();
    let mut pushes = tokio::task::JoinSet::new();
    for engine in [&a, &b, &a, &b] {
        for (number, nar) in (0..).zip(&nars) {
            let (engine, cache, nar) = (engine.clone(), Arc::clone(&cache), Arc::clone(nar));
            pushes.spawn(async move { push(&engine, &cache, &path(number), &nar).await });
        }
    }
    for pushed in pushes.join_all().await {
        pushed.unwrap();
    }
    for nar in &nars {
        let bytes = served(&b, &cache, nar, None).await.unwrap().expect("it was pushed");
        assert_eq!(common::decompress(&bytes), **nar);
    }
}
