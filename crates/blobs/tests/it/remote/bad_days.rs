//! Faults between us and a real server: 503, cut answers, lost answers, silence. Acknowledged
//! objects are there, bytes that are read are right, and everything else ends in an error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dormer_blobs::{Blobs as _, StoreBlobs, conformance};
use dormer_stores::{CallPolicy, Error, Failure, FileKind, Method, Opened, RetryPolicy, Store};
use dormer_testkit::services::{Fate, FaultProxy};
use futures::{StreamExt as _, TryStreamExt as _};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::support::{bare, fresh_key, pattern, reliable, seaweedfs, settings};

fn behind_a_proxy() -> (FaultProxy, dormer_stores::RemoteSettings) {
    let proxy = FaultProxy::start(seaweedfs().endpoint());
    let mut own = settings(seaweedfs().access(), &seaweedfs().new_bucket());
    own.endpoint = Some(proxy.endpoint());
    (proxy, own)
}

/// A number from 0 to 99 for each request, the same in each run.
fn dice(number: u64) -> u32 {
    SmallRng::seed_from_u64(number).random_range(0..100)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_holds_while_three_in_ten_requests_get_503() {
    let (proxy, own) = behind_a_proxy();
    proxy.set_plan(|_, number| match dice(number) {
        0..30 => Fate::Answer { status: 503, retry_after: None },
        _ => Fate::Pass,
    });
    let (store, bare) = reliable(&own);
    conformance::run(&*store).await;
    let counters = bare.store().counters();
    assert!(counters.failures(Method::Put, Failure::Throttled) > 0);
    assert!(counters.retries(Method::Put) >= counters.failures(Method::Put, Failure::Throttled));
    assert!(counters.limit() < 64, "fewer requests at once after the first 503");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_holds_on_a_line_that_breaks() {
    let (proxy, own) = behind_a_proxy();
    proxy.set_plan(|line, number| match dice(number) {
        0..10 if line.starts_with("GET") => Fate::CutAnswer(usize::try_from(number).unwrap() * 1_000),
        10..20 => Fate::LoseAnswer,
        20..30 => Fate::Drop,
        _ => Fate::Pass,
    });
    let (store, _) = reliable(&own);
    conformance::run(&*store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_answer_is_neither_damage_nor_bytes() {
    let (proxy, own) = behind_a_proxy();
    let store = bare(&own);
    let key = fresh_key();
    store.put(&key, &[pattern(1_000_000)]).await.unwrap();
    for bytes in [0, 1, 500_000, 899_999] {
        proxy.set_plan(move |_, _| Fate::CutAnswer(bytes));
        let error = store.get_range(&key, 100_000..1_000_000).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "after {bytes}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_parts_arrives_whole_though_parts_fail() {
    let (proxy, own) = behind_a_proxy();
    let files = Store::open(&own, &CallPolicy::default()).unwrap();
    let kind = FileKind { content_type: "application/zstd", cache_control: "public".to_owned() };
    let whole = pattern(40_000_000);
    let mut upload = files.begin_upload("main/large", &kind, whole.len() as u64).await.unwrap();
    // The first try of every part fails, each in another way.
    proxy.set_plan(|line, number| match number {
        _ if !line.starts_with("PUT") => Fate::Pass,
        0 => Fate::Answer { status: 503, retry_after: None },
        2 => Fate::Drop,
        4 => Fate::LoseAnswer,
        _ => Fate::Pass,
    });
    for part in whole.chunks(upload.part_bytes()) {
        upload.put_part(vec![part.to_vec().into()]).await.unwrap();
    }
    upload.finish().await.unwrap();
    proxy.set_plan(|_, _| Fate::Pass);
    assert!(files.get("main/large").await.unwrap().unwrap() == whole, "other bytes");
}

/// Otherwise a busy store would make a private cache public.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_refusal_says_that_the_bucket_is_private() {
    let (proxy, own) = behind_a_proxy();
    let files = Store::open(&own, &CallPolicy::default()).unwrap();
    let kind = FileKind { content_type: "text/plain", cache_control: "public".to_owned() };
    files.put("a", &kind, vec!["a".into()]).await.unwrap();
    for (status, told) in [
        (403, true),
        (401, true),
        (404, true),
        (400, true),
        (429, false),
        (408, false),
        (410, false),
        (503, false),
    ] {
        proxy.set_plan(move |_, _| Fate::Answer { status, retry_after: None });
        match files.is_public("a").await {
            Ok(public) => assert_eq!((public, told), (Some(false), true), "{status}"),
            Err(error) => assert!(!told, "{status}: {error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_says_when_to_come_back_is_believed() {
    let (proxy, own) = behind_a_proxy();
    let store = bare(&own);
    proxy.set_plan(|_, _| Fate::Answer { status: 429, retry_after: Some(7) });
    let error = store.put(&fresh_key(), &[pattern(3_000_000)]).await.unwrap_err();
    assert!(
        matches!(error, Error::Busy { retry_after: Some(after), .. } if after == Duration::from_secs(7)),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_404_that_is_not_the_stores_own_says_nothing_of_the_object() {
    let (proxy, own) = behind_a_proxy();
    let store = bare(&own);
    let key = fresh_key();
    store.put(&key, &[pattern(1_000)]).await.unwrap();
    assert!(matches!(store.get_range(&fresh_key(), 0..10).await, Err(Error::NotFound { .. })));
    assert!(matches!(store.head(&fresh_key()).await, Err(Error::NotFound { .. })));
    // The answer of a proxy whose backend is away.
    proxy.set_plan(|_, _| Fate::Answer { status: 404, retry_after: None });
    for error in [
        store.get_range(&key, 0..10).await.unwrap_err(),
        store.head(&key).await.unwrap_err(),
        store.delete(&key).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    }
    proxy.set_plan(|_, _| Fate::Pass);
    assert_eq!(store.head(&key).await.unwrap(), 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_used_up_all_the_time_is_tried_once_more() {
    let (proxy, mut own) = behind_a_proxy();
    own.request_timeout = Duration::from_secs(1);
    let retries = RetryPolicy { time_max: Duration::from_millis(100), ..RetryPolicy::default() };
    let retrying =
        StoreBlobs::open(&own, &CallPolicy { retries, requests_max: None, turn_wait: None }).unwrap();
    let key = fresh_key();
    retrying.put(&key, &[pattern(1_000)]).await.unwrap();
    let hung = AtomicBool::new(false);
    proxy.set_plan(move |_, _| {
        if hung.swap(true, Ordering::Relaxed) { Fate::Pass } else { Fate::Hang(Duration::from_secs(20)) }
    });
    assert_eq!(retrying.get_range(&key, 0..1_000).await.unwrap(), pattern(1_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_ends_with_the_time_out_and_counts_as_too_much_to_do() {
    let (proxy, mut own) = behind_a_proxy();
    own.request_timeout = Duration::from_secs(1);
    let store = bare(&own);
    proxy.set_plan(|_, _| Fate::Hang(Duration::from_secs(20)));
    let error = store.head(&fresh_key()).await.unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
}

/// A listing that fails half-way goes on behind the last name instead of beginning again.
#[tokio::test(flavor = "multi_thread")]
async fn a_listing_goes_on_where_it_broke() {
    let (proxy, own) = behind_a_proxy();
    let store = Store::open(&own, &CallPolicy::default()).unwrap();
    let names: Vec<String> = (0..1_500).map(|number| format!("main/{number:04}.narinfo")).collect();
    let puts = names.iter().map(|name| store.put(name, None, ["x".into()]));
    futures::stream::iter(puts).buffer_unordered(32).try_collect::<Vec<_>>().await.unwrap();
    proxy.set_plan(|_, number| match number {
        1 => Fate::CutAnswer(2_000),
        2 => Fate::Answer { status: 503, retry_after: None },
        _ => Fate::Pass,
    });
    let listed: Vec<String> = store.list("main").map_ok(|entry| entry.name).try_collect().await.unwrap();
    assert_eq!(listed, names);
    assert_eq!(store.counters().retries(Method::Get), 2);
}

/// Parts of an unfinished upload cost money for as long as the bucket keeps them.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_dropped_is_aborted() {
    let (proxy, own) = behind_a_proxy();
    let store = Store::open(&own, &CallPolicy::default()).unwrap();
    let mut upload = store.begin_upload("main/large", None, 40_000_000).await.unwrap();
    upload.put_part([pattern(upload.part_bytes())]).await.unwrap();
    drop(upload);
    let is_abort = |head: &String| head.starts_with("DELETE") && head.contains("uploadId=");
    for _ in 0..100 {
        if proxy.take_heads().iter().any(is_abort) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the upload was not aborted within 10 s");
}

/// A stream of a large NAR outlives a connection that breaks.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_where_its_connection_broke() {
    let (proxy, own) = behind_a_proxy();
    let store = Store::open(&own, &CallPolicy::default()).unwrap();
    let whole = pattern(3_000_000);
    store.put("main/nar/a", None, [whole.clone()]).await.unwrap();
    let first = AtomicBool::new(true);
    proxy.set_plan(move |_, _| {
        if first.swap(false, Ordering::Relaxed) { Fate::CutAnswer(1_000_000) } else { Fate::Pass }
    });
    let Some(Opened::Found(_, bytes)) = store.open_object("main/nar/a", None).await.unwrap() else {
        panic!("it is there")
    };
    let bytes: Vec<_> = bytes.try_collect().await.unwrap();
    assert!(bytes.concat() == whole, "other bytes");
}
