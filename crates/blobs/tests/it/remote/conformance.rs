//! What the contract promises, on two real servers, bare and wrapped, with and without a prefix;
//! and what goes over the wire.

use dormer_blobs::{Blobs as _, conformance};
use dormer_stores::{CallPolicy, FileKind, RemoteSettings, Store};
use dormer_testkit::services::{Fate, FaultProxy, S3Access};
use sha2::{Digest as _, Sha256};

use super::support::{bare, ceph, fresh_key, pattern, reliable, seaweedfs, settings};

async fn meets_the_contract(access: &S3Access) {
    let own = settings(access, &access.new_bucket());
    conformance::run(&bare(&own)).await;

    let shared = settings(access, &access.new_bucket());
    let shared = RemoteSettings { prefix: "team/nix".to_owned(), ..shared };
    access.put_object(&shared.bucket, "packs/00/README", "not ours");
    access.put_object(&shared.bucket, "other/packs/00/00000000000000000000000000000000.pack", "not ours");
    let (store, _) = reliable(&shared);
    conformance::run(&*store).await;

    for prefix in ["", "team/edge"] {
        let own = RemoteSettings { prefix: prefix.to_owned(), ..settings(access, &access.new_bucket()) };
        access.put_object(&own.bucket, "folder/not/ours", "not ours");
        let files = Store::open(&own, &CallPolicy::default()).unwrap();
        if prefix.is_empty() {
            files.delete("folder/not/ours").await.unwrap();
        }
        dormer_stores::conformance::run(&files).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_meets_the_contract() {
    meets_the_contract(seaweedfs().access()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ceph_meets_the_contract() {
    meets_the_contract(ceph().access()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_of_many_pages_are_whole() {
    let access = ceph().access();
    let store = bare(&settings(access, &access.new_bucket()));
    // A page has 1,000 names.
    let keys: Vec<_> = (0..1_100).map(|_| fresh_key()).collect();
    for some in keys.chunks(100) {
        let puts = some.iter().map(|key| async { store.put(key, &["x".into()]).await });
        futures::future::try_join_all(puts).await.unwrap();
    }
    let listed: std::collections::HashSet<_> = store.list().await.unwrap().into_iter().collect();
    assert_eq!(listed, keys.into_iter().collect());
}

/// The publisher needs the SHA-256 of a file, and need not compute it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_put_tells_the_hash_that_it_was_signed_over() {
    let proxy = FaultProxy::start(seaweedfs().endpoint());
    let own = RemoteSettings {
        endpoint: Some(proxy.endpoint()),
        ..settings(seaweedfs().access(), &seaweedfs().new_bucket())
    };
    let files = Store::open(&own, &CallPolicy::default()).unwrap();
    // The same holds for a repeated put.
    proxy.set_plan(|_, number| if number % 2 == 0 { Fate::LoseAnswer } else { Fate::Pass });
    let kind = FileKind { content_type: "application/zstd", cache_control: "public".to_owned() };
    for size in [0, 1, 1_000_000] {
        let content = pattern(size);
        let parts = vec![content.slice(..size / 3), content.slice(size / 3..)];
        let stored = files.put("main/nar/a.nar.zst", &kind, parts).await.unwrap();
        assert_eq!(stored.sha256, Some(Sha256::digest(&content).into()), "{size} bytes");
    }
}

/// Some servers reject checksum headers, streaming signatures and conditions.
#[tokio::test(flavor = "multi_thread")]
async fn requests_are_plain() {
    let proxy = FaultProxy::start(seaweedfs().endpoint());
    let mut own = settings(seaweedfs().access(), &seaweedfs().new_bucket());
    own.endpoint = Some(proxy.endpoint());
    let store = bare(&own);
    let key = fresh_key();
    let parts: Vec<_> = (0..300).map(|n| pattern(n * 100)).collect();
    store.put(&key, &parts).await.unwrap();
    store.get_range(&key, 5..100_000).await.unwrap();
    store.head(&key).await.unwrap();
    store.list().await.unwrap();
    store.delete(&key).await.unwrap();
    let heads = proxy.take_heads();
    let methods: Vec<&str> = heads.iter().filter_map(|head| head.split(' ').next()).collect();
    assert_eq!(methods, ["PUT", "GET", "HEAD", "GET", "DELETE"], "one request a call");
    for head in &heads {
        let head = head.to_ascii_lowercase();
        for unwanted in [
            "checksum",
            "content-md5",
            "streaming",
            "trailer",
            "if-none-match",
            "if-match",
            "transfer-encoding",
        ] {
            assert!(!head.contains(unwanted), "{head}");
        }
        let digest = head.lines().find_map(|line| line.strip_prefix("x-amz-content-sha256: ")).unwrap();
        assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{digest}");
    }
    assert!(heads[0].to_ascii_lowercase().contains("content-length: 4485000"), "{}", heads[0]);
}
