//! Stored bytes that went bad: reported, never served, healed by the next push.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::common::{self, Installation, create_main, decompress, engine_over, path, push, served, settings};
use async_trait::async_trait;
use bytes::Bytes;
use dormer_blobs::{BlobKey, Blobs};
use dormer_engine::{EngineSettings, Error};
use dormer_index::Index;
use dormer_testkit::{Random, object_for, package_nar};

/// For a store that answers at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// A real store whose reads can be made wrong.
#[derive(Debug)]
struct BadDisk {
    inner: Arc<dyn Blobs>,
    flips: AtomicBool,
    unreachable_reads: AtomicU32,
}

impl BadDisk {
    fn over(inner: &Arc<dyn Blobs>) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::clone(inner),
            flips: AtomicBool::new(false),
            unreachable_reads: AtomicU32::new(0),
        })
    }
}

#[async_trait]
impl Blobs for BadDisk {
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> dormer_blobs::Result<()> {
        self.inner.put(key, parts).await
    }
    async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> dormer_blobs::Result<Bytes> {
        let fails = |left: u32| left.checked_sub(1);
        if self.unreachable_reads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok() {
            let source = std::io::Error::other("unreachable");
            return Err(dormer_blobs::Error::Io { attempt: "read", key: key.to_string(), source });
        }
        let mut bytes = self.inner.get_range(key, range).await?.to_vec();
        if self.flips.load(Ordering::SeqCst) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
        }
        Ok(bytes.into())
    }
    async fn head(&self, key: &BlobKey) -> dormer_blobs::Result<u64> {
        self.inner.head(key).await
    }
    async fn delete(&self, key: &BlobKey) -> dormer_blobs::Result<()> {
        self.inner.delete(key).await
    }
    async fn list(&self) -> dormer_blobs::Result<Vec<BlobKey>> {
        self.inner.list().await
    }
}

#[tokio::test]
async fn a_changed_byte_is_never_served_and_the_next_push_heals_it() {
    let installation = Installation::new();
    let disk = BadDisk::over(&installation.blobs);
    let engine = engine_over(Arc::new(installation.index().await), disk.clone(), settings());
    let cache = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(1), 40_000, &[path(2)]);
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    engine.narinfo(&cache, &path(1).hash()).await.unwrap().expect("it is there");

    disk.flips.store(true, Ordering::SeqCst);
    assert!(matches!(served(&engine, &cache, &nar, None).await, Err(Error::Damaged { .. })));
    disk.flips.store(false, Ordering::SeqCst);
    assert!(engine.narinfo(&cache, &path(1).hash()).await.unwrap().is_none(), "it is missing now");
    assert_eq!(engine.missing_paths(&cache, &[path(1).hash()]).await.unwrap(), [path(1).hash()]);
    assert!(served(&engine, &cache, &nar, None).await.unwrap().is_none());

    push(&engine, &cache, &path(1), &nar).await.unwrap();
    assert!(engine.missing_paths(&cache, &[path(1).hash()]).await.unwrap().is_empty());
    assert_eq!(decompress(&served(&engine, &cache, &nar, None).await.unwrap().unwrap()), nar);
}

#[tokio::test]
async fn a_lost_pack_is_found_before_the_answer_begins_and_the_next_push_heals_it() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(2), 300_000, &[]);
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    for key in installation.blobs.list().await.unwrap() {
        installation.blobs.delete(&key).await.unwrap();
    }
    assert!(served(&engine, &cache, &nar, None).await.unwrap().is_none());
    assert!(engine.narinfo(&cache, &path(1).hash()).await.unwrap().is_none());
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    assert_eq!(decompress(&served(&engine, &cache, &nar, None).await.unwrap().unwrap()), nar);
}

#[tokio::test]
async fn a_store_that_is_unreachable_for_a_moment_damages_nothing() {
    let installation = Installation::new();
    let disk = BadDisk::over(&installation.blobs);
    let engine = engine_over(Arc::new(installation.index().await), disk.clone(), settings());
    let cache = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(3), 200_000, &[]);
    push(&engine, &cache, &path(1), &nar).await.unwrap();

    disk.unreachable_reads.store(2, Ordering::SeqCst);
    assert_eq!(decompress(&served(&engine, &cache, &nar, None).await.unwrap().unwrap()), nar);
    disk.unreachable_reads.store(1_000, Ordering::SeqCst);
    assert!(matches!(served(&engine, &cache, &nar, None).await, Err(Error::Blobs(_))));
    disk.unreachable_reads.store(0, Ordering::SeqCst);
    assert_eq!(decompress(&served(&engine, &cache, &nar, None).await.unwrap().unwrap()), nar);
}

#[tokio::test]
async fn an_unmounted_store_is_unavailable_and_nothing_is_damaged() {
    let installation = Installation::new();
    let root = installation.folder.path().join("store");
    let away = installation.folder.path().join("away");
    let open = async || {
        let blobs = Arc::new(dormer_blobs::LocalBlobs::open_existing(&root).unwrap());
        engine_over(Arc::new(installation.index().await), blobs, settings())
    };
    drop(dormer_blobs::LocalBlobs::open(&root).unwrap());
    let nar = package_nar(&mut Random::new(6), 100_000, &[path(2)]);
    {
        let engine = open().await;
        let cache = create_main(&engine).await;
        push(&engine, &cache, &path(1), &nar).await.unwrap();
    }
    // A new engine: nothing of the store is remembered.
    let engine = open().await;
    let cache = engine.find_cache("main").await.unwrap().unwrap();
    std::fs::rename(&root, &away).unwrap();
    std::fs::create_dir(&root).unwrap();
    for _ in 0..2 {
        let error = served(&engine, &cache, &nar, None).await.unwrap_err();
        assert!(matches!(error, Error::Blobs(dormer_blobs::Error::StoreGone { .. })), "{error:?}");
        assert_eq!(error.class(), dormer_engine::ErrorClass::Unavailable);
    }
    assert!(engine.check_store(PATIENCE).await.is_err());
    let other = package_nar(&mut Random::new(7), 10_000, &[]);
    assert!(push(&engine, &cache, &path(2), &other).await.is_err(), "and nothing is taken");
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "nothing is made in its place");
    assert!(engine.narinfo(&cache, &path(1).hash()).await.unwrap().is_some());
    assert!(engine.missing_paths(&cache, &[path(1).hash()]).await.unwrap().is_empty());

    std::fs::remove_dir(&root).unwrap();
    std::fs::rename(&away, &root).unwrap();
    engine.check_store(PATIENCE).await.unwrap();
    assert_eq!(decompress(&served(&engine, &cache, &nar, None).await.unwrap().unwrap()), nar);
    push(&engine, &cache, &path(2), &other).await.unwrap();
}

#[tokio::test]
async fn a_chunk_healed_at_another_level_changes_the_tag_of_the_other_nars_that_use_it() {
    let installation = Installation::new();
    let index: Arc<dyn Index> = Arc::new(installation.index().await);
    let disk = BadDisk::over(&installation.blobs);
    let engine = engine_over(Arc::clone(&index), disk.clone(), settings());
    let cache = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(4), 60_000, &[path(9)]);
    let twin = dormer_testkit::rebuilt(&nar, &path(9), &path(10));
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    push(&engine, &cache, &path(2), &twin).await.unwrap();
    let key = dormer_index::NarQuery::Hash(common::hash_of(&twin));
    let before = engine.open_nar(&cache, &key).await.unwrap().unwrap().tag();

    for blob in installation.blobs.list().await.unwrap() {
        installation.blobs.delete(&blob).await.unwrap();
    }
    let other_level = EngineSettings { zstd_level: 19, ..settings() };
    let engine = engine_over(index, disk, other_level);
    assert!(served(&engine, &cache, &nar, None).await.unwrap().is_none());
    let ingested = common::ingest(&engine, &nar).await.unwrap();
    engine.commit_object(&cache, ingested, object_for(&path(1), &[])).await.unwrap();

    // The twin was not pushed again, yet its chunks are sound: it is served, under the tag of its
    // present bytes.
    let open = engine.open_nar(&cache, &key).await.unwrap().expect("its chunks were healed");
    assert_ne!(open.tag(), before);
    let narinfo = engine.narinfo(&cache, &path(2).hash()).await.unwrap().unwrap();
    let narinfo = String::from_utf8(narinfo.to_vec()).unwrap();
    assert!(narinfo.contains(&open.tag().to_string()), "{narinfo}");
    let bytes = served(&engine, &cache, &twin, None).await.unwrap().unwrap();
    assert_eq!((decompress(&bytes), bytes.len() as u64), (twin, open.file_size()));
}

#[tokio::test]
async fn a_slow_reader_from_before_a_healing_push_does_not_take_it_back() {
    use futures::StreamExt;
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    // Long enough that the stream cannot have read it all ahead.
    let nar = package_nar(&mut Random::new(5), 16_000_000, &[]);
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    let key = dormer_index::NarQuery::Hash(common::hash_of(&nar));
    let mut slow = engine.open_nar(&cache, &key).await.unwrap().unwrap().stream(None).await.unwrap();
    slow.next().await.unwrap().unwrap();

    for blob in installation.blobs.list().await.unwrap() {
        installation.blobs.delete(&blob).await.unwrap();
    }
    // Another reader finds the damage, and the path is pushed again.
    let stream = engine.open_nar(&cache, &key).await.unwrap().unwrap().stream(None).await;
    assert!(matches!(stream.map(drop), Err(Error::Damaged { .. })));
    while engine.missing_paths(&cache, &[path(1).hash()]).await.unwrap().is_empty()
        || served(&engine, &cache, &nar, None).await.is_ok_and(|bytes| bytes.is_some())
    {
        tokio::task::yield_now().await;
    }
    push(&engine, &cache, &path(1), &nar).await.unwrap();

    assert_eq!(
        decompress(&served(&engine, &cache, &nar, None).await.unwrap().unwrap()),
        nar,
        "one push heals all of it"
    );

    let rest: Vec<_> = slow.collect().await;
    assert!(rest.iter().any(Result::is_err), "its bytes are gone");
    assert!(
        engine.missing_paths(&cache, &[path(1).hash()]).await.unwrap().is_empty(),
        "the healed path stays"
    );
}
