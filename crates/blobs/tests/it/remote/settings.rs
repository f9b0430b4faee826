//! Settings that are wrong are refused at once, with the store's name and without its secrets.

use std::time::Duration;

use dormer_blobs::Blobs as _;
use dormer_stores::{CallPolicy, Credentials, Error, GetRange, Method, RemoteSettings, Store};
use dormer_testkit::services::S3Access;

use super::support::{bare, ceph, fresh_key, pattern, reliable, seaweedfs, settings};

async fn is_refused(settings: &RemoteSettings) {
    let (store, bare) = reliable(settings);
    let files = Store::open(settings, &CallPolicy::default()).unwrap();
    let key = fresh_key();
    for error in [
        store.put(&key, &[pattern(1000)]).await.unwrap_err(),
        store.get_range(&key, 0..10).await.unwrap_err(),
        store.list().await.unwrap_err(),
        store.head(&key).await.unwrap_err(),
        bare.holds_attic_chunks().await.unwrap_err(),
        files.get("main/nix-cache-info").await.unwrap_err(),
        files.head("main/nix-cache-info").await.unwrap_err(),
        files.open_object("main/nix-cache-info", None).await.unwrap_err(),
        files.open_object("main/nix-cache-info", Some(GetRange::Suffix(10))).await.unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        assert!(text.contains(&settings.bucket), "{text}");
        assert!(text.contains(settings.endpoint.as_ref().unwrap()), "{text}");
        assert!(!format!("{error:?}").contains("testsecret"), "{error:?}");
    }
    for method in Method::ALL {
        assert_eq!(bare.store().counters().retries(method), 0, "a refused call is not repeated");
    }
}

async fn wrong_settings_are_refused(access: &S3Access) {
    let bucket = access.new_bucket();
    let right = settings(access, &bucket);

    let bucket = "nobody-made-this-bucket".to_owned();
    is_refused(&RemoteSettings { bucket, ..right.clone() }).await;

    let credentials = |id: &str, secret: &str| {
        Some(Credentials { access_key_id: id.to_owned(), secret_access_key: secret.to_owned() })
    };
    let mut wrong = right.clone();
    wrong.credentials = credentials(&access.access_key_id, "testsecret-of-another");
    is_refused(&wrong).await;

    let mut wrong = right.clone();
    wrong.credentials = credentials("nobody", &access.secret_access_key);
    is_refused(&wrong).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_refuses_wrong_settings() {
    wrong_settings_are_refused(seaweedfs().access()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ceph_refuses_wrong_settings() {
    wrong_settings_are_refused(ceph().access()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_attic_left_is_found_below_the_prefix_only() {
    let access = seaweedfs().access();
    let mut own = settings(access, &access.new_bucket());
    let store = bare(&own);
    assert!(!store.holds_attic_chunks().await.unwrap());
    store.put(&fresh_key(), &[pattern(10)]).await.unwrap();
    assert!(!store.holds_attic_chunks().await.unwrap());
    access.put_object(&own.bucket, "2b9d04a6-9b2b-4a4b-8a3f-0c1d2e3f4a5b.chunk", "theirs");
    assert!(store.holds_attic_chunks().await.unwrap());
    own.prefix = "dormer".to_owned();
    assert!(!bare(&own).holds_attic_chunks().await.unwrap(), "theirs is beside ours");
}

/// No process listens there. The settings may be right, so this is no refusal.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_where_nobody_listens_is_unavailable() {
    let access = S3Access {
        endpoint: format!("http://127.0.0.1:{}", dormer_testkit::services::free_port()),
        region: "us-east-1".to_owned(),
        access_key_id: "a".to_owned(),
        secret_access_key: "b".to_owned(),
    };
    let mut own = settings(&access, "bucket");
    own.connect_timeout = Duration::from_secs(1);
    let error = bare(&own).head(&fresh_key()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}
