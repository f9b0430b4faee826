//! A server is killed and comes back: calls wait for it, and no acknowledged object is lost.

use std::time::Duration;

use dormer_blobs::Blobs as _;
use dormer_stores::{Error, Method};
use dormer_testkit::services::{CephRgw, SeaweedFs};

use super::support::{bare, fresh_key, pattern, reliable, settings};

#[tokio::test(flavor = "multi_thread")]
async fn calls_wait_for_a_killed_seaweedfs() {
    let mut server = SeaweedFs::start();
    let own = settings(server.access(), &server.new_bucket());
    let (store, counted) = reliable(&own);
    let (before, during) = (fresh_key(), fresh_key());
    store.put(&before, &[pattern(2_000_000)]).await.unwrap();
    server.kill();
    let error = bare(&own).head(&before).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let calls = tokio::spawn({
        let store = std::sync::Arc::clone(&store);
        async move {
            let parts = [pattern(3_000_000)];
            let (put, got) = tokio::join!(store.put(&during, &parts), store.get_range(&before, 5..1_000_000));
            put.unwrap();
            got.unwrap()
        }
    });
    let server = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    });
    let got = tokio::time::timeout(Duration::from_mins(3), calls).await.unwrap().unwrap();
    assert_eq!(got, pattern(2_000_000)[5..1_000_000]);
    let _server = server.await.unwrap();
    assert_eq!(store.get_range(&during, 0..3_000_000).await.unwrap(), pattern(3_000_000));
    assert!(
        counted.store().counters().retries(Method::Put) > 0
            && counted.store().counters().retries(Method::Get) > 0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_wait_for_a_killed_ceph_gateway() {
    let mut server = CephRgw::start();
    let (store, counted) = reliable(&settings(server.access(), &server.new_bucket()));
    let keys: Vec<_> = (0..20).map(|_| fresh_key()).collect();
    for key in &keys {
        store.put(key, &[pattern(100_000)]).await.unwrap();
    }
    server.kill();
    let reads = tokio::spawn({
        let (store, keys) = (std::sync::Arc::clone(&store), keys.clone());
        async move {
            let reads = keys.iter().map(|key| store.get_range(key, 7..100_000));
            futures::future::try_join_all(reads).await.unwrap()
        }
    });
    let server = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    });
    let read = tokio::time::timeout(Duration::from_mins(3), reads).await.unwrap().unwrap();
    assert!(read.iter().all(|bytes| *bytes == pattern(100_000)[7..]));
    let _server = server.await.unwrap();
    assert!(counted.store().counters().retries(Method::Get) > 0);
    assert_eq!(store.list().await.unwrap().len(), keys.len());
}
