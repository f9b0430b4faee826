//! What a change makes the engine forget, and what it does not.

use std::time::Duration;

use crate::common::{Installation, create_cache, create_main, hash_of, ingest, path, push};
use dormer_index::NarQuery;
use dormer_testkit::{Random, object_for, package_nar};
use futures::FutureExt as _;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_an_object_discards_the_read_plans_of_its_cache_only() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let (main, other) = (create_main(&engine).await, create_cache(&engine, "other").await);
    let nar = package_nar(&mut Random::new(1), 60_000, &[path(9)]);
    push(&engine, &main, &path(1), &nar).await.unwrap();
    let key = NarQuery::Hash(hash_of(&nar));
    let statements_of_open = async || {
        let before = engine.index().statement_count();
        engine.open_nar(&main, &key).await.unwrap().expect("the cache has it");
        engine.index().statement_count() - before
    };

    // A slow machine may need longer than plans are remembered, so the look is repeated.
    let mut kept = false;
    for _ in 0..20 {
        statements_of_open().await;
        push(&engine, &other, &path(2), &nar).await.unwrap();
        kept |= statements_of_open().await == 0;
    }
    assert!(kept, "a push to another cache discards no plan");
    for number in 3..6 {
        statements_of_open().await;
        push(&engine, &main, &path(number), &nar).await.unwrap();
        assert!(statements_of_open().await > 0, "a push to the same cache discards its plans");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_caller_leaves_is_finished_and_shows_at_once() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    let mut random = Random::new(2);
    let mut known = package_nar(&mut random, 60_000, &[path(9)]);
    push(&engine, &cache, &path(1), &known).await.unwrap();
    let mut left = 0;
    for _ in 0..10 {
        let new = package_nar(&mut random, 60_000, &[path(9)]);
        let ingested = ingest(&engine, &new).await.unwrap();
        let before = engine.narinfo(&cache, &path(1).hash()).await.unwrap().unwrap();
        // The caller looks at its call once and leaves.
        let commit = engine.commit_object(&cache, ingested, object_for(&path(1), &[]));
        left += u32::from(commit.now_or_never().is_none());

        let committed = async {
            while engine.index().find_object(cache.id, &path(1).hash()).await.unwrap().unwrap().nar.hash
                == hash_of(&known)
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), committed).await.expect("the commit is finished");
        // The commit's task forgets right after the commit: an old answer would stay for 1.5 s.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let after = engine.narinfo(&cache, &path(1).hash()).await.unwrap().unwrap();
        assert_ne!(after, before);
        known = new;
    }
    assert!(left > 0, "a commit takes a while");
}
