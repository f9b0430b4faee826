//! What collections cost and leave: requests to the store, and bytes in it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormer_blobs::{BlobKey, Blobs, Result};
use dormer_engine::{Clock, JobRunner, JobSettings};
use dormer_testkit::{Random, package_nar, rebuilt};

use crate::collect::{ANSWERS, Lab, OLD};
use crate::common::{create_main, path, push};
use crate::jobs::until;

/// A store that counts its calls: each is a request over a network.
#[derive(Debug)]
struct Counting {
    inner: Arc<dyn Blobs>,
    deletes: AtomicU64,
    others: AtomicU64,
}

#[async_trait]
impl Blobs for Counting {
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> Result<()> {
        self.others.fetch_add(1, Ordering::Relaxed);
        self.inner.put(key, parts).await
    }
    async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        self.others.fetch_add(1, Ordering::Relaxed);
        self.inner.get_range(key, range).await
    }
    async fn head(&self, key: &BlobKey) -> Result<u64> {
        self.others.fetch_add(1, Ordering::Relaxed);
        self.inner.head(key).await
    }
    async fn delete(&self, key: &BlobKey) -> Result<()> {
        self.deletes.fetch_add(1, Ordering::Relaxed);
        self.inner.delete(key).await
    }
    async fn list(&self) -> Result<Vec<BlobKey>> {
        self.others.fetch_add(1, Ordering::Relaxed);
        self.inner.list().await
    }
}

async fn stored_bytes(blobs: &dyn Blobs) -> u64 {
    let mut bytes = 0;
    for key in blobs.list().await.expect(ANSWERS) {
        bytes += blobs.head(&key).await.expect(ANSWERS);
    }
    bytes
}

#[tokio::test]
async fn a_cache_that_is_deleted_whole_costs_one_request_for_each_pack() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    for number in 0..20 {
        let nar = package_nar(&mut Random::new(number.into()), 30_000, &[]);
        push(&process.engine, &cache, &path(number), &nar).await.expect(ANSWERS);
    }
    let packs = lab.installation.blobs.list().await.expect(ANSWERS).len() as u64;
    process.engine.delete_cache(&cache, None).await.expect(ANSWERS);
    let jobs = &process.contracts.jobs;
    let settings = JobSettings { poll: Duration::from_millis(5), ..JobSettings::default() };
    let clock = Arc::clone(&lab.clock) as Arc<dyn Clock>;
    let runner = JobRunner::new(Arc::clone(jobs), clock, "server".to_owned(), settings);
    let is_done = async || jobs.list_jobs(None, 1).await.expect(ANSWERS).is_empty();
    runner.run(until("the cache is deleted", is_done)).await;
    let inner = Arc::clone(&lab.installation.blobs);
    let counting = Arc::new(Counting { inner, deletes: AtomicU64::new(0), others: AtomicU64::new(0) });
    let collector =
        lab.collector(Arc::clone(&process.contracts.collect), Arc::clone(&counting) as Arc<dyn Blobs>);
    let mut runs = 0;
    while !lab.installation.blobs.list().await.expect(ANSWERS).is_empty() {
        lab.pass(OLD);
        collector.run_now(&*process.contracts.jobs, "test", 30).await.expect(ANSWERS);
        runs += 1;
        assert!(runs <= 2, "a collection condemns, and the next one deletes");
    }
    assert_eq!(counting.deletes.load(Ordering::Relaxed), packs);
    assert_eq!(counting.others.load(Ordering::Relaxed), runs, "these collections list, each once");
}

/// Ten times, all packages are rebuilt with other references, and some of them have new content.
/// The two newest generations stay. Returns the bytes that are stored then, and those that a store
/// needs that never had anything else.
async fn rebuilds(new_packages: u8) -> (u64, u64) {
    const PACKAGES: u8 = 10;
    let generation = |number: u8| -> Vec<Vec<u8>> {
        let package = |package: u8| {
            let is_new = number > package && package < new_packages;
            let mut random = Random::new(u64::from(package) + if is_new { 1_000 } else { 0 });
            let nar = package_nar(&mut random, 60_000, &[path(200)]);
            rebuilt(&nar, &path(200), &path(100 + number))
        };
        (0..PACKAGES).map(package).collect()
    };
    let place = |number: u8, package: usize| path(number * PACKAGES + u8::try_from(package).expect("few"));
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    for number in 0..=10 {
        for (package, nar) in generation(number).iter().enumerate() {
            push(&process.engine, &cache, &place(number, package), nar).await.expect(ANSWERS);
            if number >= 2 {
                let old = place(number - 2, package).hash();
                process.engine.remove_object(&cache, &old, None).await.expect(ANSWERS);
            }
        }
        lab.pass(OLD);
        lab.collect(&process).await;
    }
    for _ in 0..3 {
        lab.pass(OLD);
        lab.collect(&process).await;
    }
    let bytes = stored_bytes(&*lab.installation.blobs).await;

    let fresh = Lab::new(false).await;
    let alone = fresh.open().await;
    let only = create_main(&alone.engine).await;
    for number in 9..=10 {
        for (package, nar) in generation(number).iter().enumerate() {
            push(&alone.engine, &only, &place(number, package), nar).await.expect(ANSWERS);
            process.reads_back(nar, "it is among the newest two").await;
        }
    }
    let needed = stored_bytes(&*fresh.installation.blobs).await;
    (bytes, needed)
}

#[tokio::test]
async fn ten_mass_rebuilds_leave_little_more_than_the_newest_two_need() {
    let (bytes, needed) = rebuilds(0).await;
    assert!(bytes * 100 <= needed * 115, "{bytes} bytes are stored, {needed} are needed");
}

/// Packs that are less than half dead are compacted, too, while much of the store is dead.
#[tokio::test]
async fn ten_rebuilds_with_new_contents_leave_little_more_than_the_newest_two_need() {
    for new_packages in [5, 10] {
        let (bytes, needed) = rebuilds(new_packages).await;
        assert!(bytes * 100 <= needed * 115, "{bytes} bytes are stored, {needed} are needed");
    }
}
