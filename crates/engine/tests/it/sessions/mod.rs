//! Pushes by chunks: what a session stores, what it may name, and what a caller can learn.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod checks;
mod disclosure;
mod refusals;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormer_blobs::{BlobKey, Blobs};
use dormer_engine::{
    CheckHold, ChunkedPath, Clock, Deduplication, Engine, EngineSettings, Error, MasterKey, PART_CHUNKS_MAX,
    PathOutcome, PushSession, Reader, Result, UPLOAD_BYTES, part_memory_bytes,
};
use dormer_format::{
    ChunkId, HoleFill, NarManifest, PackBuilder, PackId, RawChunk, RecipeBuilder, StoredChunk, checksum,
};
use dormer_index::{
    Cache, CacheVisibility, Index, JobIndex, NarQuery, PostgresIndex, PostgresOptions, SessionId,
};
use dormer_nix::{NarHash, StorePath};
use dormer_testkit::{
    ChunkedNar, FaultBlobs, FaultIndex, Faults, Random, check_invariants, farm_nar, object_for, package_nar,
    part_of, rebuilt,
};
use futures::FutureExt as _;

use crate::common::{
    Installation, create_cache, create_main, decompress, engine_over, hash_of, listing, new_database, path,
    push, served, settings,
};
use crate::jobs::TestClock;

/// Long enough for any check of a test, short enough to see that one hangs.
const PATIENCE: Duration = Duration::from_mins(1);

fn session_id(number: u8) -> SessionId {
    SessionId([number; 16])
}

fn all() -> Reader {
    Reader::of_everything()
}

/// May read the caches of these names, and no others.
fn only(names: &'static [&'static str]) -> Reader {
    Reader::of_some(move |cache: &CacheVisibility| names.contains(&cache.name.as_str()))
}

fn cut(nar: &[u8]) -> ChunkedNar {
    ChunkedNar::cut(nar, settings().chunk_params)
}

fn entry(path: &StorePath, nar: &[u8], manifest: &NarManifest) -> ChunkedPath {
    let manifest = manifest.encode();
    ChunkedPath {
        digest: NarHash::digest(&[path.to_string().as_bytes(), &manifest].concat()),
        object: object_for(path, &[]),
        nar_hash: hash_of(nar),
        nar_size: nar.len() as u64,
        manifest: manifest.into(),
    }
}

/// A caller's share, in bytes, as tests see it from outside.
#[derive(Default)]
struct Hold(Arc<AtomicU64>);

impl CheckHold for Hold {
    fn end_check(&mut self, bytes: u64) {
        self.0.store(bytes, Ordering::SeqCst);
    }
}

async fn open(engine: &Engine, cache: &Arc<Cache>, number: u8) -> PushSession {
    engine.open_session(Arc::clone(cache), session_id(number), "ci").await.expect("it is free")
}

async fn commit(
    engine: &Engine,
    session: &PushSession,
    reader: &Reader,
    paths: &[ChunkedPath],
) -> Result<Vec<PathOutcome>> {
    commit_within(engine, session, reader, paths, PATIENCE).await
}

async fn commit_within(
    engine: &Engine,
    session: &PushSession,
    reader: &Reader,
    paths: &[ChunkedPath],
    patience: Duration,
) -> Result<Vec<PathOutcome>> {
    let admit = |_| async { Box::new(Hold::default()) as Box<dyn CheckHold> }.boxed();
    engine.commit_paths(session, reader, paths, patience, &admit).await
}

/// Commits one path.
async fn commit_one(
    engine: &Engine,
    session: &PushSession,
    reader: &Reader,
    path: ChunkedPath,
) -> Result<PathOutcome> {
    Ok(commit(engine, session, reader, &[path]).await?.pop().expect("an outcome for each path"))
}

/// Pushes by chunks: asks, sends what is missing, commits.
async fn push_chunks(
    engine: &Engine,
    session: &PushSession,
    reader: &Reader,
    path: &StorePath,
    nar: &[u8],
) -> Result<()> {
    let chunked = cut(nar);
    let missing = engine.missing_chunks(session, reader, &chunked.manifest.chunks).await?;
    let send = chunked.stored(1).into_iter().zip(missing).filter(|(_, missing)| *missing);
    let send: Vec<StoredChunk> = send.map(|(chunk, _)| chunk).collect();
    if !send.is_empty() {
        let (digest, part) = part_of(send);
        engine.receive_part(session, reader, digest, part, ()).await?;
    }
    match commit_one(engine, session, reader, entry(path, nar, &chunked.manifest)).await? {
        PathOutcome::Committed(_) => Ok(()),
        PathOutcome::Failed(error) => Err(Error::CheckFailed(error)),
        other => panic!("nothing is missing: {other:?}"),
    }
}

fn nars() -> Vec<Vec<u8>> {
    let mut random = Random::new(42);
    let first = package_nar(&mut random, 90_000, &[path(100)]);
    let second = package_nar(&mut random, 30_000, &[]);
    let third = rebuilt(&first, &path(100), &path(101));
    vec![first, second, third]
}

async fn postgres_engine(url: &str, installation: &Installation) -> Engine {
    let index = PostgresIndex::open(url, PostgresOptions::default()).await.expect("the database answers");
    engine_over(Arc::new(index), Arc::clone(&installation.blobs), settings())
}

async fn both_apis_make_the_same_object(on_postgres: bool) {
    let by_nar = Installation::new();
    let by_nar = by_nar.engine().await;
    let main_by_nar = create_main(&by_nar).await;
    let installation = Installation::new();
    let engine = match new_database(on_postgres).await {
        Some(url) => postgres_engine(&url, &installation).await,
        None => installation.engine().await,
    };
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    for (number, nar) in (0..).zip(nars()) {
        push(&by_nar, &main_by_nar, &path(number), &nar).await.expect("a sound NAR");
        push_chunks(&engine, &session, &all(), &path(number), &nar).await.expect("a sound NAR");
        let key = NarQuery::Hash(hash_of(&nar));
        let open_by_nar = by_nar.open_nar(&main_by_nar, &key).await.unwrap().expect("it is there");
        let open = engine.open_nar(&main, &key).await.unwrap().expect("it is there");
        assert_eq!(open.tag(), open_by_nar.tag(), "the same chunks, frames and fills");
        let bytes = served(&engine, &main, &nar, None).await.unwrap().expect("it is there");
        assert_eq!(decompress(&bytes), nar);
        assert_eq!(
            listing(&engine, &main, &path(number)).await.unwrap(),
            listing(&by_nar, &main_by_nar, &path(number)).await.unwrap()
        );
    }
}

#[tokio::test]
async fn both_apis_make_the_same_object_on_sqlite() {
    both_apis_make_the_same_object(false).await;
}

#[tokio::test]
async fn both_apis_make_the_same_object_on_postgresql() {
    both_apis_make_the_same_object(true).await;
}

#[tokio::test]
async fn another_replica_takes_a_session_over() {
    let installation = Installation::new();
    let url = new_database(true).await.expect("wanted");
    let (a, b) = (postgres_engine(&url, &installation).await, postgres_engine(&url, &installation).await);
    let main = create_main(&a).await;
    let nar = &nars()[0];
    let chunked = cut(nar);
    let session = open(&a, &main, 1).await;
    let (digest, part) = chunked.part(1);
    let reader = only(&[]);
    a.receive_part(&session, &reader, digest, part, ()).await.unwrap();
    drop(a);

    let main = b.current_cache("main").await.unwrap().expect("it is there");
    let session = open(&b, &main, 1).await;
    let missing = b.missing_chunks(&session, &reader, &chunked.manifest.chunks).await.unwrap();
    assert!(!missing.contains(&true), "what one replica received the other knows");
    let outcome = commit_one(&b, &session, &reader, entry(&path(1), nar, &chunked.manifest)).await.unwrap();
    assert!(matches!(outcome, PathOutcome::Committed(_)), "{outcome:?}");
}

#[tokio::test]
async fn a_part_is_answered_again_and_its_chunks_are_stored_once() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    let (digest, part) = cut(&nars()[0]).part(1);
    for _ in 0..3 {
        engine.receive_part(&session, &all(), digest, part.clone(), ()).await.unwrap();
    }
    assert_eq!(installation.blobs.list().await.unwrap().len(), 1);
    let other = open(&engine, &main, 2).await;
    engine.receive_part(&other, &all(), digest, part, ()).await.unwrap();
    assert_eq!(installation.blobs.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn chunks_that_were_lost_are_asked_for_again_and_heal() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    let nar = &nars()[0];
    let chunked = cut(nar);
    let (digest, part) = chunked.part(1);
    engine.receive_part(&session, &all(), digest, part.clone(), ()).await.unwrap();
    for pack in installation.blobs.list().await.unwrap() {
        installation.blobs.delete(&pack).await.unwrap();
    }
    // Another process: the one that decoded the part would not read it back.
    drop((session, main, engine));
    let engine = installation.engine().await;
    let main = engine.current_cache("main").await.unwrap().expect("it was made before");
    let session = open(&engine, &main, 1).await;
    let path_1 = entry(&path(1), nar, &chunked.manifest);
    let outcome = commit_one(&engine, &session, &all(), path_1.clone()).await.unwrap();
    let PathOutcome::Missing(missing) = outcome else { panic!("the pack is lost: {outcome:?}") };
    assert_eq!(missing.len(), chunked.chunks.len());
    // The very same part is stored again, although the session has received it before.
    engine.receive_part(&session, &all(), digest, part, ()).await.unwrap();
    let outcome = commit_one(&engine, &session, &all(), path_1).await.unwrap();
    assert!(matches!(outcome, PathOutcome::Committed(_)), "{outcome:?}");
    assert_eq!(decompress(&served(&engine, &main, nar, None).await.unwrap().unwrap()), *nar);
}

#[tokio::test]
async fn a_session_belongs_to_its_caller_and_cache() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let (main, other) = (create_main(&engine).await, create_cache(&engine, "other").await);
    let session = open(&engine, &main, 1).await;
    assert_eq!(open(&engine, &main, 1).await.ends_at(), session.ends_at(), "it is joined");
    for (cache, subject) in [(&main, "mallory"), (&main, ""), (&other, "ci")] {
        let opened = engine.open_session(Arc::clone(cache), session_id(1), subject).await;
        assert!(matches!(opened, Err(Error::NoSession)), "{opened:?}");
        let found = engine.find_session(Arc::clone(cache), session_id(1), subject).await;
        let unknown = engine.find_session(Arc::clone(cache), session_id(2), subject).await;
        let same = matches!((&found, &unknown), (Err(Error::NoSession), Err(Error::NoSession)));
        assert!(same, "{found:?} {unknown:?}");
    }
    let mut number = 1_000_u128;
    let refused = loop {
        number += 1;
        let id = SessionId(number.to_le_bytes());
        match engine.open_session(Arc::clone(&main), id, "ci").await {
            Ok(_) => assert!(number < 2_000, "there is a limit"),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::TooManySessions { .. }), "{refused:?}");
    engine
        .open_session(Arc::clone(&main), session_id(200), "another")
        .await
        .expect("others are not limited by it");
}

#[tokio::test]
async fn a_session_ends_and_its_rows_are_swept_in_pages() {
    let installation = Installation::new();
    let index = Arc::new(installation.index().await);
    let clock = Arc::new(TestClock(1_800_000_000.into()));
    let engine = Engine::new(
        Arc::clone(&index) as Arc<dyn Index>,
        Arc::clone(&installation.blobs),
        MasterKey::from_bytes([9; 32]),
        settings(),
        Arc::clone(&clock) as Arc<dyn Clock>,
    );
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    let chunked = cut(&nars()[0]);
    for chunk in chunked.stored(1) {
        let (digest, part) = part_of([chunk]);
        engine.receive_part(&session, &all(), digest, part, ()).await.unwrap();
    }
    let day = settings().session_seconds;
    assert_eq!(session.ends_at(), engine.now() + day);
    clock.0.fetch_add(day - 1, Ordering::SeqCst);
    engine.find_session(Arc::clone(&main), session_id(1), "ci").await.expect("it lasts");
    assert_eq!(index.sweep_sessions(engine.now(), 100).await.unwrap(), 0);

    clock.0.fetch_add(1, Ordering::SeqCst);
    let found = engine.find_session(Arc::clone(&main), session_id(1), "ci").await;
    assert!(matches!(found, Err(Error::NoSession)), "{found:?}");
    let opened = engine.open_session(Arc::clone(&main), session_id(1), "ci").await;
    assert!(matches!(opened, Err(Error::NoSession)), "the client takes a new name: {opened:?}");
    let (digest, part) = part_of(cut(&nars()[1]).stored(1));
    let late = engine.receive_part(&session, &all(), digest, part, ()).await;
    assert!(matches!(late, Err(Error::NoSession)), "a part that was on its way: {late:?}");
    assert_eq!(index.sweep_sessions(engine.now(), 100).await.unwrap(), 0, "not before no request uses it");

    clock.0.fetch_add(3_600, Ordering::SeqCst);
    let mut swept = Vec::new();
    loop {
        match index.sweep_sessions(engine.now(), 5).await.unwrap() {
            0 => break,
            rows => swept.push(rows),
        }
    }
    let rows = u64::try_from(chunked.chunks.len()).unwrap() + 1;
    assert_eq!(swept.iter().sum::<u64>(), rows, "each part, and the session");
    assert!(swept.iter().all(|rows| *rows <= 5), "{swept:?}");
    open(&engine, &main, 1).await;
}

/// Pushes by chunks until the process dies, and again after a restart.
async fn survives_a_crash(on_postgres: bool, steps_min: u64) {
    let nars = nars();
    // In the usual run every other step, and fewer where each takes a database of its own.
    let is_long = std::env::var_os("DORMER_TEST_LONG").is_some();
    let stride = if is_long {
        1
    } else if on_postgres {
        5
    } else {
        2
    };
    for (effect_kept, first) in [(false, 0), (true, stride - 1)] {
        for step in (first..).step_by(usize::try_from(stride).unwrap()) {
            let installation = Installation::new();
            let url = new_database(on_postgres).await;
            let index = async || -> Arc<dyn Index> {
                match &url {
                    Some(url) => {
                        let index = PostgresIndex::open(url, PostgresOptions::default()).await.unwrap();
                        Arc::new(index) as Arc<dyn Index>
                    }
                    None => Arc::new(installation.index().await),
                }
            };
            let over = |index, blobs| engine_over(index, blobs, settings());
            let prepared = over(index().await, Arc::clone(&installation.blobs));
            create_main(&prepared).await;
            drop(prepared);

            let faults = Faults::crash_at(step, effect_kept);
            let faulty = over(
                Arc::new(FaultIndex::new(index().await, Arc::clone(&faults))),
                Arc::new(FaultBlobs::new(Arc::clone(&installation.blobs), Arc::clone(&faults))),
            );
            let when = format!("after a crash at step {step}, effect kept: {effect_kept}");
            let mut acknowledged = Vec::new();
            if let Ok(Some(main)) = faulty.current_cache("main").await
                && let Ok(session) = faulty.open_session(main, session_id(1), "ci").await
            {
                for (number, nar) in (0..).zip(&nars) {
                    if push_chunks(&faulty, &session, &only(&[]), &path(number), nar).await.is_ok() {
                        acknowledged.push(hash_of(nar));
                    }
                }
            }
            drop(faulty);
            let audit = async || match &url {
                Some(url) => {
                    let index = PostgresIndex::open(url, PostgresOptions::default()).await.unwrap();
                    index.inventory().await.unwrap()
                }
                None => installation.index().await.inventory().await.unwrap(),
            };
            let violations =
                check_invariants(audit().await, &*installation.blobs, &acknowledged, &faults.deleted()).await;
            assert_eq!(violations, [], "{when}");

            // The client joins its session again, and sends what the server lacks.
            let engine = over(index().await, Arc::clone(&installation.blobs));
            let main = engine.current_cache("main").await.unwrap().expect("it was made before");
            let session = open(&engine, &main, 1).await;
            for (number, nar) in (0..).zip(&nars) {
                push_chunks(&engine, &session, &only(&[]), &path(number), nar)
                    .await
                    .unwrap_or_else(|error| panic!("{error:?} again, {when}"));
                let bytes = served(&engine, &main, nar, None).await.unwrap().expect("it is there");
                assert_eq!(decompress(&bytes), *nar, "{when}");
            }
            drop((session, main, engine));
            if !faults.crashed() {
                assert!(step >= steps_min, "only {step} steps");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_push_by_chunks_is_survived() {
    // Opening, and for each of three NARs: a pack and its rows, a part, a commit. The third brings
    // no chunk.
    survives_a_crash(false, 9).await;
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_push_by_chunks_is_survived_on_postgresql() {
    survives_a_crash(true, 9).await;
}

/// A store whose writes wait until the test lets them go, and whose reads are counted.
#[derive(Debug)]
struct GatedStore {
    inner: Arc<dyn Blobs>,
    is_open: AtomicBool,
    waiting: AtomicUsize,
    reads: AtomicUsize,
}

#[async_trait]
impl Blobs for GatedStore {
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> dormer_blobs::Result<()> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while !self.is_open.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.inner.put(key, parts).await
    }
    async fn get_range(&self, key: &BlobKey, range: std::ops::Range<u64>) -> dormer_blobs::Result<Bytes> {
        self.reads.fetch_add(1, Ordering::SeqCst);
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

impl GatedStore {
    fn new(installation: &Installation) -> Arc<Self> {
        let (is_open, waiting, reads) = (AtomicBool::new(true), AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { inner: Arc::clone(&installation.blobs), is_open, waiting, reads })
    }
}

#[tokio::test]
async fn a_part_keeps_its_memory_until_its_work_has_ended() {
    let installation = Installation::new();
    let store = GatedStore::new(&installation);
    let index = Arc::new(installation.index().await);
    let engine = engine_over(index, Arc::clone(&store) as Arc<dyn Blobs>, settings());
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    store.is_open.store(false, Ordering::SeqCst);
    let (digest, part) = cut(&nars()[0]).part(1);
    let memory = Arc::new(());
    let request = tokio::spawn({
        let (engine, session, memory) = (engine.clone(), session.clone(), Arc::clone(&memory));
        async move { engine.receive_part(&session, &all(), digest, part, memory).await }
    });
    while store.waiting.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    assert_eq!(Arc::strong_count(&memory), 2, "the work goes on, with the bytes of the part");
    store.is_open.store(true, Ordering::SeqCst);
    while Arc::strong_count(&memory) > 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn what_a_session_sent_is_read_back_only_if_memory_was_wanted() {
    let installation = Installation::new();
    let store = GatedStore::new(&installation);
    let index = Arc::new(installation.index().await);
    let little = EngineSettings { upload_memory_bytes_max: UPLOAD_BYTES, ..settings() };
    let engine = engine_over(index, Arc::clone(&store) as Arc<dyn Blobs>, little);
    let main = create_main(&engine).await;
    let nars = nars();
    let session = open(&engine, &main, 1).await;
    push_chunks(&engine, &session, &only(&[]), &path(0), &nars[0]).await.unwrap();
    assert_eq!(store.reads.load(Ordering::SeqCst), 0, "all of it was in memory");
    // The chunks of another session, although they are the same, and those whose memory is wanted.
    let other = open(&engine, &main, 2).await;
    push_chunks(&engine, &other, &all(), &path(1), &nars[0]).await.unwrap();
    let reads = store.reads.load(Ordering::SeqCst);
    assert!(reads > 0, "the other session sent nothing");
    let chunked = cut(&nars[1]);
    let (digest, part) = chunked.part(1);
    engine.receive_part(&session, &only(&[]), digest, part, ()).await.unwrap();
    let mut memory = engine.begin_upload_memory();
    let everything = memory.grow(UPLOAD_BYTES);
    tokio::time::timeout(PATIENCE, everything).await.expect("nothing keeps memory for later");
    drop(memory);
    let path = entry(&path(2), &nars[1], &chunked.manifest);
    let outcome = commit_one(&engine, &session, &only(&[]), path).await.unwrap();
    assert!(matches!(outcome, PathOutcome::Committed(_)), "{outcome:?}");
    assert!(store.reads.load(Ordering::SeqCst) > reads, "it was given up");
    assert_eq!(decompress(&served(&engine, &main, &nars[1], None).await.unwrap().unwrap()), nars[1]);
}

/// Every second chunk is in memory, and the others were stored by a session before.
#[tokio::test]
async fn a_check_takes_chunks_from_memory_and_from_the_store_in_turns() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let main = create_main(&engine).await;
    let nar = &nars()[0];
    let session = open(&engine, &main, 1).await;
    push_chunks(&engine, &session, &all(), &path(0), nar).await.unwrap();
    let chunked = cut(nar);
    assert!(chunked.chunks.len() > 4, "{} chunks", chunked.chunks.len());
    for sent_from in [0_u8, 1] {
        let session = open(&engine, &main, 2 + sent_from).await;
        let sent = chunked.stored(1).into_iter().skip(sent_from.into()).step_by(2);
        let (digest, part) = part_of(sent);
        engine.receive_part(&session, &all(), digest, part, ()).await.unwrap();
        let path = entry(&path(1 + sent_from), nar, &chunked.manifest);
        let outcome = commit_one(&engine, &session, &all(), path).await.unwrap();
        assert!(matches!(outcome, PathOutcome::Committed(_)), "{outcome:?}");
    }
    assert_eq!(decompress(&served(&engine, &main, nar, None).await.unwrap().unwrap()), *nar);
}

#[tokio::test]
async fn a_part_of_as_many_chunks_as_may_be_is_taken_and_its_memory_counted() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    let chunks: Vec<RawChunk> = (0..PART_CHUNKS_MAX as u64)
        .map(|number| RawChunk { bytes: number.to_le_bytes().to_vec(), holes: Vec::new(), fills: Vec::new() })
        .collect();
    let chunked = ChunkedNar::of(chunks);
    let (digest, part) = chunked.part(1);
    let (full, of_this) = (part_memory_bytes(8 << 20), part_memory_bytes(part.len() as u64));
    assert_eq!(full, (8 + 2 + 4) << 20, "the part, what every part takes, and 4,096 chunks");
    assert_eq!(of_this, part.len() as u64 + (6 << 20), "small chunks take it as well");
    assert_eq!(part_memory_bytes(4_800), 4_800 + (2 << 20) + 100 * 1024, "a small part takes less");
    engine.receive_part(&session, &only(&[]), digest, part, ()).await.unwrap();
    let missing = engine.missing_chunks(&session, &only(&[]), &chunked.manifest.chunks).await.unwrap();
    assert!(!missing.contains(&true));
}

#[tokio::test]
async fn a_session_of_too_many_parts_has_ended() {
    let installation = Installation::new();
    let few = EngineSettings { session_parts_max: 33, ..settings() };
    let index = Arc::new(installation.index().await);
    let engine = engine_over(index, Arc::clone(&installation.blobs), few);
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    let chunk =
        |number: u64| RawChunk { bytes: number.to_le_bytes().to_vec(), holes: Vec::new(), fills: Vec::new() };
    let ids: Vec<ChunkId> = (0..34).map(|number| chunk(number).id()).collect();
    for number in 0..34 {
        if number == 33 {
            let missing = engine.missing_chunks(&session, &only(&[]), &ids).await.unwrap();
            assert_eq!(missing, [vec![false; 33], vec![true]].concat(), "from two pages");
        }
        let (digest, part) = ChunkedNar::of(vec![chunk(number)]).part(1);
        engine.receive_part(&session, &only(&[]), digest, part, ()).await.unwrap();
    }
    let asked = engine.missing_chunks(&session, &only(&[]), &ids).await;
    assert!(matches!(asked, Err(Error::NoSession)), "{asked:?}");
}
