//! What does not fit into one window, one row or the memory there is.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::{
    self, Installation, create_main, decompress, engine_over, hash_of, listing, path, push, served, settings,
};
use async_trait::async_trait;
use bytes::Bytes;
use dormer_blobs::{BlobKey, Blobs};
use dormer_engine::{EngineSettings, Error, IngestRequest};
use dormer_index::{Index, NarQuery, StoredListing};
use dormer_nix::nar::{NarLimits, NarReader, Node, encode_tree};
use dormer_testkit::{Random, object_for, package_nar, rebuilt};
use futures::StreamExt;

/// Chunks so small that a megabyte has thousands.
fn tiny_chunks() -> EngineSettings {
    EngineSettings { chunk_params: dormer_format::ChunkParams { min: 64, avg: 256, max: 1024 }, ..settings() }
}

/// Many files, whose names and sizes do not compress well, so that the listing is large however it
/// is kept.
fn many_files(seed: u64, count: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        let name = format!("{:016x}{:016x}", random.next_u64(), random.next_u64());
        let node = if random.next_u64().is_multiple_of(4) {
            let target = path(random.next_u64().to_le_bytes()[0] % 200);
            Node::Symlink(format!("/nix/store/{target}/{:x}", random.next_u64()).into_bytes())
        } else {
            Node::file(vec![7; usize::from(random.next_u64().to_le_bytes()[0] % 8)])
        };
        entries.insert(name.into_bytes(), node);
    }
    encode_tree(&Node::Directory(entries))
}

fn listing_of(nar: &[u8]) -> Vec<u8> {
    let mut reader = NarReader::new(NarLimits::default());
    reader.feed(nar).expect("a good NAR");
    reader.finish().expect("a whole NAR").into_json().expect("it is within the limit")
}

#[tokio::test]
async fn a_listing_of_megabytes_is_stored_as_chunks_and_comes_back() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    let nar = many_files(1, 30_000);
    let expected = listing_of(&nar);
    assert!(expected.len() > 2_000_000, "{} bytes", expected.len());
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    let found = engine.index().find_object(cache.id, &path(1).hash()).await.unwrap().unwrap();
    let stored = engine.index().find_listing(found.nar.id).await.unwrap().unwrap();
    assert!(matches!(stored, StoredListing::Chunks { size, .. } if size == expected.len() as u64));
    assert!(listing(&engine, &cache, &path(1)).await.unwrap().unwrap() == expected);

    // Its store paths are holes, so that a rebuild has its chunks already.
    let ingested = common::ingest(&engine, &rebuilt(&nar, &path(9), &path(210))).await.unwrap();
    assert_eq!(ingested.new_chunk_bytes, 0);
    let packs = installation.blobs.list().await.unwrap().len();
    engine.commit_object(&cache, ingested, object_for(&path(2), &[])).await.unwrap();
    assert_eq!(installation.blobs.list().await.unwrap().len(), packs);
    let expected = listing_of(&rebuilt(&nar, &path(9), &path(210)));
    assert!(listing(&engine, &cache, &path(2)).await.unwrap().unwrap() == expected);
}

#[tokio::test]
async fn a_listing_over_the_limit_is_left_out_and_the_path_is_there() {
    let installation = Installation::new();
    let index: Arc<dyn Index> = Arc::new(installation.index().await);
    let small = EngineSettings { listing_bytes_max: 1_500_000, ..settings() };
    let engine = engine_over(index, Arc::clone(&installation.blobs), small);
    let cache = create_main(&engine).await;
    let nar = many_files(2, 20_000);
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    assert!(listing(&engine, &cache, &path(1)).await.unwrap().is_none());
    assert_eq!(decompress(&served(&engine, &cache, &nar, None).await.unwrap().unwrap()), nar);
    assert!(engine.missing_paths(&cache, &[path(1).hash()]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_damaged_listing_takes_nothing_with_it_and_the_next_push_heals_it() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    // The NAR's own chunks are in packs of their own: it shares none with its listing.
    let nar = many_files(3, 20_000);
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    let found = engine.index().find_object(cache.id, &path(1).hash()).await.unwrap().unwrap();
    let stored = engine.index().find_listing(found.nar.id).await.unwrap().unwrap();
    let StoredListing::Chunks { recipe, .. } = stored else { panic!("it is stored as chunks") };
    let rows = engine.index().load_chunks(&recipe.runs[..1]).await.unwrap();
    let bad = BadRange::over(&installation.blobs, rows[0].pack_id, rows[0].offset);
    drop(engine);

    let index: Arc<dyn Index> = Arc::new(installation.index().await);
    let engine = engine_over(index, bad, settings());
    let cache = engine.find_cache("main").await.unwrap().unwrap();
    assert!(matches!(listing(&engine, &cache, &path(1)).await, Err(Error::Damaged { .. })));
    assert!(listing(&engine, &cache, &path(1)).await.unwrap().is_none(), "it is not here any more");
    assert!(engine.narinfo(&cache, &path(1).hash()).await.unwrap().is_some());
    assert_eq!(decompress(&served(&engine, &cache, &nar, None).await.unwrap().unwrap()), nar);
    let missing = engine.missing_paths(&cache, &[path(1).hash()]).await.unwrap();
    assert_eq!(missing, [path(1).hash()], "a pusher that asks is told to push");

    push(&engine, &cache, &path(1), &nar).await.unwrap();
    assert!(engine.missing_paths(&cache, &[path(1).hash()]).await.unwrap().is_empty());
    assert!(listing(&engine, &cache, &path(1)).await.unwrap().unwrap() == listing_of(&nar));
    assert_eq!(decompress(&served(&engine, &cache, &nar, None).await.unwrap().unwrap()), nar);
}

/// A real store, one byte of which reads back wrong.
#[derive(Debug)]
struct BadRange {
    inner: Arc<dyn Blobs>,
    key: BlobKey,
    byte: u64,
}

impl BadRange {
    fn over(inner: &Arc<dyn Blobs>, pack: dormer_format::PackId, byte: u64) -> Arc<Self> {
        Arc::new(Self { inner: Arc::clone(inner), key: BlobKey::Pack(pack), byte })
    }
}

#[async_trait]
impl Blobs for BadRange {
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> dormer_blobs::Result<()> {
        self.inner.put(key, parts).await
    }
    async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> dormer_blobs::Result<Bytes> {
        let bytes = self.inner.get_range(key, range.clone()).await?;
        if *key != self.key || !range.contains(&self.byte) {
            return Ok(bytes);
        }
        let mut bytes = bytes.to_vec();
        bytes[usize::try_from(self.byte - range.start).expect("it lies in the range")] ^= 1;
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
async fn a_nar_of_several_windows_reads_back_in_any_part() {
    let installation = Installation::new();
    let index: Arc<dyn Index> = Arc::new(installation.index().await);
    let engine = engine_over(index, Arc::clone(&installation.blobs), tiny_chunks());
    let cache = create_main(&engine).await;
    let references: Vec<_> = (2..200).map(path).collect();
    let nar = package_nar(&mut Random::new(4), 1_200_000, &references);
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    let found = engine.index().find_nar_in_cache(cache.id, &NarQuery::Hash(hash_of(&nar)), 0).await;
    let chunks = found.unwrap().unwrap().recipe.chunk_count();
    assert!(chunks > 3 * 1_024, "only {chunks} chunks");
    let whole = served(&engine, &cache, &nar, None).await.unwrap().unwrap();
    assert_eq!(decompress(&whole), nar);
    let mut random = Random::new(5);
    let size = whole.len() as u64;
    for _ in 0..60 {
        let start = random.next_u64() % size;
        let end = (start + 1 + random.next_u64() % 200_000).min(size);
        let expected = &whole[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()];
        let got = served(&engine, &cache, &nar, Some(start..end)).await.unwrap().unwrap();
        assert!(got == expected, "range {start}..{end}");
    }
}

/// A client that resumes a download does not pay again for what is before its range, whatever is
/// pushed meanwhile.
#[tokio::test]
async fn a_range_of_a_large_nar_costs_few_statements_after_a_push_to_its_cache() {
    let installation = Installation::new();
    let index: Arc<dyn Index> = Arc::new(installation.index().await);
    let engine = engine_over(Arc::clone(&index), Arc::clone(&installation.blobs), tiny_chunks());
    let cache = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(10), 1_500_000, &[path(9)]);
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    let before = index.statement_count();
    let whole = served(&engine, &cache, &nar, None).await.unwrap().unwrap();
    let windows = index.statement_count() - before;
    assert!(windows > 6, "only {windows} statements");

    let other = package_nar(&mut Random::new(11), 1_000, &[]);
    push(&engine, &cache, &path(2), &other).await.unwrap();
    let before = index.statement_count();
    let size = whole.len() as u64;
    let got = served(&engine, &cache, &nar, Some(size - 10..size)).await.unwrap().unwrap();
    assert_eq!(got, whole[whole.len() - 10..]);
    assert_eq!(index.statement_count() - before, 2, "the NAR, and the last window");
}

#[tokio::test]
async fn bytes_of_two_encodings_are_never_joined() {
    let installation = Installation::new();
    let index: Arc<dyn Index> = Arc::new(installation.index().await);
    let engine = engine_over(Arc::clone(&index), Arc::clone(&installation.blobs), tiny_chunks());
    let cache = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(6), 1_200_000, &[path(9)]);
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    let key = NarQuery::Hash(hash_of(&nar));
    let before = engine.open_nar(&cache, &key).await.unwrap().unwrap();
    let mut slow = before.clone().stream(None).await.unwrap();
    slow.next().await.unwrap().unwrap();

    // A server that compresses otherwise heals the last chunk with other frames.
    let found = index.find_nar_in_cache(cache.id, &key, 0).await.unwrap().unwrap();
    let last = found.recipe.chunk_numbers().last().unwrap();
    index.mark_damaged(found.id, &[last], 0).await.unwrap();
    let otherwise = EngineSettings { zstd_level: 19, ..tiny_chunks() };
    let healer = engine_over(index, Arc::clone(&installation.blobs), otherwise);
    push(&healer, &cache, &path(1), &nar).await.unwrap();
    let after = healer.open_nar(&cache, &key).await.unwrap().unwrap();
    assert_ne!(after.tag(), before.tag());

    let rest: Vec<_> = slow.collect().await;
    assert!(matches!(rest.last(), Some(Err(Error::Reencoded { .. }))), "it is cut, not mixed");
    let again = before.stream(None).await.unwrap().collect::<Vec<_>>().await;
    assert!(again.iter().any(Result::is_err));
    let reopened = engine.open_nar(&cache, &key).await.unwrap().unwrap();
    assert_eq!(reopened.tag(), after.tag(), "the plan that it remembered is not used");
    assert_eq!(decompress(&served(&healer, &cache, &nar, None).await.unwrap().unwrap()), nar);
    assert!(healer.missing_paths(&cache, &[path(1).hash()]).await.unwrap().is_empty(), "nothing is damaged");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_share_little_memory_and_stalled_ones_keep_nobody_waiting() {
    let installation = Installation::new();
    let little = EngineSettings {
        read_memory_bytes: 4 * 1024 * 1024,
        chunk_params: dormer_format::ChunkParams::default(),
        ..settings()
    };
    let index: Arc<dyn Index> = Arc::new(installation.index().await);
    let engine = engine_over(index, Arc::clone(&installation.blobs), little);
    let cache = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(7), 20_000_000, &[path(3), path(4)]);
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    let open = engine.open_nar(&cache, &NarQuery::Hash(hash_of(&nar))).await.unwrap().unwrap();
    let mut stalled = open.clone().stream(None).await.unwrap();
    let piece = stalled.next().await.unwrap().unwrap();

    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let open = open.clone();
        readers.spawn(async move {
            // Pieces are dropped as they come: kept ones would keep their memory.
            let pieces = open.stream(None).await.unwrap();
            pieces.map(|piece| piece.unwrap().len() as u64).fold(0, async |sum, len| sum + len).await
        });
    }
    let sizes = tokio::time::timeout(Duration::from_mins(2), readers.join_all()).await;
    let sizes = sizes.expect("nobody waits for ever");
    assert!(sizes.iter().all(|size| *size == open.file_size()));
    drop((stalled, piece));
}

/// A real store that is slow and that serves one read at a time.
#[derive(Debug)]
struct Slow {
    inner: Arc<dyn Blobs>,
    turns: tokio::sync::Semaphore,
}

#[async_trait]
impl Blobs for Slow {
    fn is_remote(&self) -> bool {
        true
    }
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> dormer_blobs::Result<()> {
        self.inner.put(key, parts).await
    }
    async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> dormer_blobs::Result<Bytes> {
        let turn = tokio::time::timeout(Duration::from_secs(10), self.turns.acquire()).await;
        let Ok(_turn) = turn else {
            let source = "no turn within 10 s".into();
            return Err(dormer_blobs::Error::Busy {
                attempt: "read",
                key: key.to_string(),
                retry_after: None,
                source,
            });
        };
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.inner.get_range(key, range).await
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

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_nothing_keeps_no_turn_at_the_store() {
    let installation = Installation::new();
    let index: Arc<dyn Index> = Arc::new(installation.index().await);
    let slow = Slow { inner: Arc::clone(&installation.blobs), turns: tokio::sync::Semaphore::new(1) };
    let settings = EngineSettings { chunk_params: dormer_format::ChunkParams::default(), ..settings() };
    let engine = engine_over(index, Arc::new(slow), settings);
    let cache = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(9), 8_000_000, &[]);
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    let open = engine.open_nar(&cache, &NarQuery::Hash(hash_of(&nar))).await.unwrap().unwrap();
    // Each takes its first piece, whose read had another one begin behind it, and then nothing
    // more.
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let mut stream = open.clone().stream(None).await.unwrap();
        stream.next().await.unwrap().unwrap();
        stalled.push(stream);
    }
    let pieces: Vec<_> = open.clone().stream(None).await.unwrap().collect().await;
    assert!(pieces.iter().all(Result::is_ok));
    // And those that had stopped go on.
    for stream in stalled {
        assert!(stream.collect::<Vec<_>>().await.iter().all(Result::is_ok));
    }
}

/// A real store that stores nothing until it is let.
#[derive(Debug)]
struct Gate {
    inner: Arc<dyn Blobs>,
    open: tokio::sync::watch::Sender<bool>,
    puts: AtomicUsize,
}

#[async_trait]
impl Blobs for Gate {
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> dormer_blobs::Result<()> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        self.open.subscribe().wait_for(|open| *open).await.expect("the gate outlives its test");
        self.inner.put(key, parts).await
    }
    async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> dormer_blobs::Result<Bytes> {
        self.inner.get_range(key, range).await
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

#[tokio::test(flavor = "multi_thread")]
async fn a_new_chunk_before_known_ones_does_not_let_them_pile_up() {
    let installation = Installation::new();
    let index: Arc<dyn Index> = Arc::new(installation.index().await);
    let gate = Arc::new(Gate {
        inner: Arc::clone(&installation.blobs),
        open: tokio::sync::watch::Sender::new(true),
        puts: AtomicUsize::new(0),
    });
    let engine = engine_over(index, gate.clone(), tiny_chunks());
    let cache = create_main(&engine).await;
    let shared = Random::new(8).bytes(4_000_000);
    let nar = |first: u8| {
        let entries =
            [(b"a".to_vec(), Node::file(vec![first; 5_000])), (b"b".to_vec(), Node::file(shared.clone()))];
        encode_tree(&Node::Directory(entries.into()))
    };
    push(&engine, &cache, &path(1), &nar(1)).await.unwrap();

    // The second NAR differs in its first chunks, and their pack is not being stored.
    gate.open.send_replace(false);
    let second = nar(2);
    let taken = Arc::new(AtomicUsize::new(0));
    let request = IngestRequest {
        store_dir: "/nix/store".to_owned(),
        expected: Some((hash_of(&second), second.len() as u64)),
        extra_memory_bytes: 0,
    };
    let mut ingest = engine.begin_ingest(request).await.unwrap();
    let upload = tokio::spawn({
        let (second, taken) = (second.clone(), Arc::clone(&taken));
        async move {
            for piece in second.chunks(10_000) {
                ingest.write(piece).await?;
                taken.fetch_add(piece.len(), Ordering::SeqCst);
            }
            ingest.finish().await
        }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(taken.load(Ordering::SeqCst) < second.len(), "it waits for its first pack");
    gate.open.send_replace(true);
    let ingested = tokio::time::timeout(Duration::from_mins(1), upload).await.expect("it goes on");
    let ingested = ingested.unwrap().unwrap();
    assert!(ingested.new_chunk_bytes < 20_000, "{} new bytes", ingested.new_chunk_bytes);
    engine.commit_object(&cache, ingested, object_for(&path(2), &[])).await.unwrap();
    assert_eq!(decompress(&served(&engine, &cache, &second, None).await.unwrap().unwrap()), second);
}

/// Connections that take nothing hold the answers that they asked for, and one may have MiBs.
#[tokio::test]
async fn memory_of_answers_is_a_part_of_that_for_reads() {
    let installation = Installation::new();
    let limits =
        EngineSettings { read_memory_bytes: 4 << 20, read_wait: Duration::from_millis(50), ..settings() };
    let engine = engine_over(Arc::new(installation.index().await), Arc::clone(&installation.blobs), limits);
    let mut held = Vec::new();
    let refused = loop {
        match engine.answer_memory(1 << 20).await {
            Ok(memory) => held.push(memory),
            Err(error) => break error,
        }
        assert!(held.len() < 10, "answers of a MiB without a limit");
    };
    assert!(matches!(refused, Error::Busy { .. }), "{refused:?}");
    held.pop();
    assert!(engine.answer_memory(1 << 20).await.is_ok(), "one was sent");
}
