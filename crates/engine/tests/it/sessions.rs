//! Pushes by chunks: what a session stores, what it may name, and what a caller can learn.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

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
    Cache, CacheVisibility, Index, JobIndex, NarKey, PostgresIndex, PostgresOptions, SessionId,
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
    let admit = |_| async { Box::new(()) as CheckHold }.boxed();
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
        let key = NarKey::Hash(hash_of(&nar));
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
async fn what_an_object_of_a_readable_cache_uses_is_not_sent_again() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let (main, other) = (create_main(&engine).await, create_cache(&engine, "other").await);
    let session = open(&engine, &main, 1).await;
    let [first, second, third] = <[_; 3]>::try_from(nars()).unwrap();
    push(&engine, &other, &path(1), &first).await.unwrap();
    push(&engine, &main, &path(2), &second).await.unwrap();
    let ask = async |reader: Reader, nar: &[u8]| {
        let missing = engine.missing_chunks(&session, &reader, &cut(nar).manifest.chunks).await.unwrap();
        missing.iter().filter(|missing| **missing).count()
    };
    let count = cut(&first).chunks.len();
    assert_eq!(ask(only(&["other"]), &first).await, 0);
    // A rebuild has the same chunks.
    assert_eq!(ask(only(&["other"]), &third).await, 0);
    assert_eq!(ask(only(&["main"]), &first).await, count, "not those of a cache that is not readable");
    assert_eq!(ask(only(&["main"]), &second).await, 0);
    assert_eq!(ask(only(&[]), &second).await, cut(&second).chunks.len());
    assert_eq!(ask(all(), &first).await, 0);
    assert_eq!(ask(only(&["main", "other"]), &first).await, 0, "every cache there is");
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

/// A chunk with these stored bytes, whatever they are.
fn forged(id: ChunkId, raw_len: u32, bytes: Vec<u8>) -> StoredChunk {
    let frames = vec![u32::try_from(bytes.len()).unwrap()];
    StoredChunk {
        id,
        layout: dormer_format::ChunkLayout { raw_len, holes: Vec::new(), frames },
        checksum: checksum(&bytes),
        bytes: bytes.into(),
    }
}

#[tokio::test]
async fn what_is_no_sound_part_is_refused_and_stores_nothing() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    let raw = b"some bytes that compress compress compress".repeat(40);
    let len = u32::try_from(raw.len()).unwrap();
    let id = ChunkId::compute(&raw, &[]);
    let frame = |change: &dyn Fn(&mut zstd::bulk::Compressor<'_>)| {
        let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
        change(&mut compressor);
        compressor.compress(&raw).unwrap()
    };
    let sound = frame(&|_| {});
    // Not in a single segment, with a window of 1 MiB.
    let with_window = {
        let mut bytes = sound.clone();
        bytes[4] &= !0x20;
        bytes.insert(5, 0x50);
        assert_eq!(zstd::decode_all(&bytes[..]).unwrap(), raw, "zstd reads it");
        bytes
    };
    let with_checksum = frame(&|c| c.include_checksum(true).unwrap());
    // The descriptor names a dictionary of one byte, which follows it.
    let with_dictionary = {
        let mut bytes = sound.clone();
        bytes[4] |= 1;
        bytes.insert(5, 7);
        bytes
    };
    let bomb = {
        let zeros = vec![0; 1024 * 1024];
        forged(ChunkId::compute(&zeros, &[]), 1024 * 1024, zstd::bulk::compress(&zeros, 3).unwrap())
    };
    let of_raw_block = |raw: &[u8]| {
        let len = u32::try_from(raw.len()).unwrap();
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x60];
        frame.extend(u16::try_from(len - 256).unwrap().to_le_bytes());
        frame.extend(&(len << 3 | 1).to_le_bytes()[..3]);
        frame.extend(raw);
        assert_eq!(zstd::decode_all(&frame[..]).unwrap(), raw, "zstd reads it");
        forged(ChunkId::compute(raw, &[]), len, frame)
    };
    let mut trailing = sound.clone();
    trailing.push(0);
    let garbled = {
        let mut bytes = sound.clone();
        let last = bytes.len() - 3;
        bytes[last] ^= 0x55;
        bytes
    };
    for (what, chunk) in [
        ("a frame with a window", forged(id, len, with_window)),
        ("a frame with a checksum", forged(id, len, with_checksum)),
        ("a frame with a dictionary", forged(id, len, with_dictionary)),
        ("a frame of another size", forged(id, len + 1, sound.clone())),
        ("bytes behind the frame", forged(id, len, trailing)),
        ("a frame that is changed", forged(id, len, garbled)),
        ("a chunk under another one's id", forged(ChunkId::from_bytes([3; 32]), len, sound.clone())),
        ("a chunk larger than any cut", bomb),
        ("a chunk that is not compressed", of_raw_block(&raw)),
    ] {
        let (digest, part) = part_of([chunk]);
        let refused = engine.receive_part(&session, &all(), digest, part, ()).await;
        assert!(
            matches!(refused, Err(Error::MalformedPart(_) | Error::PartChunk { .. })),
            "{what}: {refused:?}"
        );
    }
    let (digest, part) = part_of([forged(id, len, sound)]);
    let other = engine.receive_part(&session, &all(), [9; 32], part.clone(), ()).await;
    assert!(matches!(other, Err(Error::PartDigest)), "{other:?}");
    let cut = engine.receive_part(&session, &all(), digest, part.slice(..part.len() - 1), ()).await;
    assert!(matches!(cut, Err(Error::MalformedPart(_))), "{cut:?}");
    // Chunks that are small as they are sent, and many.
    let zeros = |count: usize, bytes: u32| {
        let zeros = vec![0; bytes as usize];
        let chunk = forged(ChunkId::compute(&zeros, &[]), bytes, zstd::bulk::compress(&zeros, 1).unwrap());
        let mut pack = PackBuilder::new(PackId::from_bytes([1; 16]));
        for _ in 0..count {
            pack.add(chunk.clone());
        }
        let part = Bytes::from(pack.finish().parts.concat());
        (dormer_testkit::digest_of(&part), part)
    };
    let (many_digest, many) = zeros(PART_CHUNKS_MAX + 1, 1024);
    let refused = engine.receive_part(&session, &all(), many_digest, many, ()).await;
    assert!(matches!(refused, Err(Error::PartChunks { chunks: 4_097, .. })), "{refused:?}");
    // Or large in all, for a server that makes large chunks.
    let large = EngineSettings { chunk_params: EngineSettings::default().chunk_params, ..settings() };
    let other = Installation::new();
    let with_large = engine_over(Arc::new(other.index().await), Arc::clone(&other.blobs), large);
    let session_there = open(&with_large, &create_main(&with_large).await, 1).await;
    let (bomb_digest, bomb) = zeros(1_025, 512 * 1024);
    let refused = with_large.receive_part(&session_there, &all(), bomb_digest, bomb, ()).await;
    assert!(matches!(refused, Err(Error::PartTooLarge { .. })), "{refused:?}");

    assert_eq!(installation.blobs.list().await.unwrap(), []);
    engine.receive_part(&session, &all(), digest, part, ()).await.expect("the frame itself is sound");
    let mut random = Random::new(1);
    let noise: Vec<u8> = (0..250).flat_map(|_| random.next_u64().to_le_bytes()).collect();
    let (digest, part) = part_of([of_raw_block(&noise)]);
    engine.receive_part(&session, &all(), digest, part, ()).await.expect("noise cannot be compressed");
}

#[tokio::test]
async fn a_manifest_that_is_not_that_of_its_nar_is_refused() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    let nar = &nars()[0];
    let chunked = cut(nar);
    let (digest, part) = chunked.part(1);
    engine.receive_part(&session, &all(), digest, part, ()).await.unwrap();
    let sound = entry(&path(1), nar, &chunked.manifest);
    let failure = async |path: ChunkedPath| match commit_one(&engine, &session, &all(), path).await.unwrap() {
        PathOutcome::Failed(error) => error,
        other => panic!("it should fail: {other:?}"),
    };
    let with = |manifest: &NarManifest| entry(&path(1), nar, manifest);

    let error = failure(ChunkedPath {
        nar_hash: NarHash::digest(b"other"),
        digest: NarHash::digest(b"1"),
        ..sound.clone()
    })
    .await;
    assert!(matches!(*error, Error::HashMismatch { .. }), "{error:?}");
    let error =
        failure(ChunkedPath { nar_size: sound.nar_size + 8, digest: NarHash::digest(b"2"), ..sound.clone() })
            .await;
    assert!(matches!(*error, Error::SizeMismatch { .. }), "{error:?}");

    let mut no_fills = chunked.manifest.clone();
    no_fills.fills = RecipeBuilder::new().finish();
    let error = failure(with(&no_fills)).await;
    assert!(matches!(*error, Error::FillMismatch { fills: 0, .. }), "{error:?}");
    let mut other_fills = chunked.manifest.clone();
    for hash in &mut other_fills.fills.hashes {
        *hash = HoleFill::from_bytes([b'7'; 32]).unwrap();
    }
    let error = failure(with(&other_fills)).await;
    assert!(matches!(*error, Error::HashMismatch { .. }), "{error:?}");

    let mut bytes = vec![1];
    bytes.extend([0x80, 0x80, 0x80, 0x80, 0x80, 0x20]);
    bytes.extend([7; 64]);
    let huge = ChunkedPath { manifest: bytes.into(), digest: NarHash::digest(b"3"), ..sound.clone() };
    let error = failure(huge).await;
    assert!(matches!(*error, Error::MalformedManifest(_)), "{error:?}");

    // The same bytes, cut elsewhere, by chunks that were all received.
    let mut chunks = chunked.chunks.clone();
    let literal = |bytes: &[u8]| RawChunk { bytes: bytes.to_vec(), holes: Vec::new(), fills: Vec::new() };
    let whole = chunks[0].restore();
    chunks.splice(0..1, [literal(&whole[..700]), literal(&whole[700..])]);
    let recut = ChunkedNar::of(chunks);
    let (digest, part) = recut.part(1);
    engine.receive_part(&session, &all(), digest, part, ()).await.unwrap();
    let error = failure(with(&recut.manifest)).await;
    assert!(matches!(*error, Error::CutMismatch { position: 0 }), "{error:?}");
    let narinfo = engine.narinfo(&main, &path(1).hash()).await.unwrap();
    assert!(narinfo.is_none(), "nothing is visible");

    let mut unknown = chunked.manifest.clone();
    unknown.chunks[2] = ChunkId::from_bytes([9; 32]);
    let outcome = commit_one(&engine, &session, &all(), with(&unknown)).await.unwrap();
    assert!(matches!(&outcome, PathOutcome::Missing(chunks) if *chunks == [2]), "{outcome:?}");
    let outcome = commit_one(&engine, &session, &all(), sound).await.unwrap();
    assert!(matches!(outcome, PathOutcome::Committed(_)), "{outcome:?}");
    // Cuts are checked for a NAR that the server has too: no answer tells whether it has it.
    let error = failure(with(&recut.manifest)).await;
    assert!(matches!(*error, Error::CutMismatch { position: 0 }), "{error:?}");
}

#[tokio::test]
async fn paths_become_visible_after_their_references() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    let nars = nars();
    let chunked: Vec<ChunkedNar> = nars.iter().map(|nar| cut(nar)).collect();
    let mut paths: Vec<ChunkedPath> = (0..)
        .zip(&nars)
        .zip(&chunked)
        .map(|((number, nar), chunked)| entry(&path(number), nar, &chunked.manifest))
        .collect();
    // The third refers to the first, which lacks its chunks.
    paths[2].object.references = vec![path(0)];
    let (digest, part) = chunked[1].part(1);
    engine.receive_part(&session, &only(&[]), digest, part, ()).await.unwrap();
    let outcomes = commit(&engine, &session, &only(&[]), &paths).await.unwrap();
    let is_as_expected = matches!(
        &outcomes[..],
        [PathOutcome::Missing(first), PathOutcome::Committed(_), PathOutcome::Missing(third)]
            if first.len() == chunked[0].chunks.len() && !third.is_empty()
    );
    assert!(is_as_expected, "{outcomes:?}");
    // Its chunks come, those of its reference do not: it waits.
    let (digest, part) = chunked[2].part(1);
    engine.receive_part(&session, &only(&[]), digest, part, ()).await.unwrap();
    paths[0].manifest = {
        let mut unknown = chunked[0].manifest.clone();
        unknown.chunks[0] = ChunkId::from_bytes([9; 32]);
        unknown.encode().into()
    };
    paths[0].digest = NarHash::digest(b"unknown");
    let outcomes = commit(&engine, &session, &only(&[]), &paths).await.unwrap();
    let is_as_expected =
        matches!(&outcomes[..], [PathOutcome::Missing(_), PathOutcome::Committed(_), PathOutcome::Waiting]);
    assert!(is_as_expected, "{outcomes:?}");
    assert!(engine.narinfo(&main, &path(2).hash()).await.unwrap().is_none());
    paths[0] = entry(&path(0), &nars[0], &chunked[0].manifest);
    let outcomes = commit(&engine, &session, &only(&[]), &paths).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, PathOutcome::Committed(_))), "{outcomes:?}");
}

/// Polls a future this many times, whenever it wakes, and then gives it up.
async fn polled<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let mut left = times;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

#[tokio::test]
async fn a_commit_whose_request_is_given_up_is_found_by_the_next_one() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    let nar = &nars()[1];
    let chunked = cut(nar);
    let (digest, part) = chunked.part(1);
    engine.receive_part(&session, &all(), digest, part, ()).await.unwrap();
    // Wherever the request waits.
    for polls in 1..200 {
        let path = entry(&path(polls), nar, &chunked.manifest);
        let paths = [path.clone()];
        let reader = all();
        let request = commit(&engine, &session, &reader, &paths);
        let is_given_up = polled(polls.into(), request).await.is_none();
        let again = async {
            loop {
                match commit_one(&engine, &session, &all(), path.clone()).await.unwrap() {
                    PathOutcome::Committed(_) => break,
                    PathOutcome::Waiting => tokio::time::sleep(Duration::from_millis(1)).await,
                    other => panic!("after {polls} polls: {other:?}"),
                }
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(30), again).await;
        assert!(found.is_ok(), "the request was given up after {polls} polls, and the next one waits");
        if !is_given_up {
            assert!(polls > 1, "a commit waits somewhere");
            return;
        }
    }
    panic!("no request came to its end");
}

#[tokio::test]
async fn a_check_begins_only_with_its_callers_shares_and_returns_them() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    let nar = &nars()[0];
    let chunked = cut(nar);
    let (digest, part) = chunked.part(1);
    engine.receive_part(&session, &all(), digest, part, ()).await.unwrap();
    let paths = [1, 2].map(|number| entry(&path(number), nar, &chunked.manifest));

    let none_free = |_| std::future::pending::<CheckHold>().boxed();
    let (reader, patience) = (all(), Duration::from_millis(20));
    let outcomes = engine.commit_paths(&session, &reader, &paths, patience, &none_free).await.unwrap();
    assert!(matches!(&outcomes[..], [PathOutcome::Waiting, PathOutcome::Waiting]), "{outcomes:?}");
    // Nothing goes on that holds a manifest: the check begins with the next request.
    let share = Arc::new(AtomicU64::new(0));
    let one = |bytes| {
        share.store(bytes, Ordering::SeqCst);
        std::future::ready(Box::new(Arc::clone(&share)) as CheckHold).boxed()
    };
    let outcomes = engine.commit_paths(&session, &all(), &paths[..1], PATIENCE, &one).await.unwrap();
    assert!(matches!(&outcomes[..], [PathOutcome::Committed(_)]), "{outcomes:?}");
    assert!(share.load(Ordering::SeqCst) > nar.len() as u64, "memory for the NAR");
    assert_eq!(Arc::strong_count(&share), 1, "a check that has ended holds nothing");
    let outcomes = engine.commit_paths(&session, &all(), &paths, Duration::ZERO, &none_free).await.unwrap();
    let is_as_expected = matches!(&outcomes[..], [PathOutcome::Committed(_), PathOutcome::Waiting]);
    assert!(is_as_expected, "what is done needs no share: {outcomes:?}");
}

#[tokio::test]
async fn a_check_that_was_told_of_is_kept_no_longer() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    let no_manifest = NarManifest { chunks: Vec::new(), fills: RecipeBuilder::new().finish() };
    let bad = entry(&path(1), b"a NAR", &no_manifest);
    let outcome = commit_one(&engine, &session, &all(), bad).await.unwrap();
    let PathOutcome::Failed(error) = outcome else { panic!("{outcome:?}") };
    let forgotten = async {
        while Arc::strong_count(&error) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), forgotten).await.expect("nothing keeps its error");
}

#[tokio::test]
async fn a_request_whose_time_is_up_commits_no_more_paths() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    let nar = &nars()[1];
    let chunked = cut(nar);
    let (digest, part) = chunked.part(1);
    engine.receive_part(&session, &all(), digest, part, ()).await.unwrap();
    let paths = [1, 2, 3].map(|number| entry(&path(number), nar, &chunked.manifest));
    let mut committed = 0;
    while committed < paths.len() {
        let outcomes = commit_within(&engine, &session, &all(), &paths, Duration::ZERO).await.unwrap();
        let is_committed = |outcome: &&PathOutcome| matches!(outcome, PathOutcome::Committed(_));
        let now = outcomes.iter().filter(is_committed).count();
        assert!(now <= committed + 1, "{outcomes:?}");
        committed = now;
        // Time for all checks to end, so that more could be committed at once.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_manifest_that_needs_all_memory_is_checked() {
    let installation = Installation::new();
    let little = EngineSettings { upload_memory_bytes_max: UPLOAD_BYTES, ..settings() };
    let index = Arc::new(installation.index().await);
    let engine = engine_over(index, Arc::clone(&installation.blobs), little);
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    // The upload alone takes all there is.
    let nar = package_nar(&mut Random::new(7), 7 * 1024 * 1024, &[]);
    let chunked = cut(&nar);
    let (digest, part) = chunked.part(1);
    engine.receive_part(&session, &all(), digest, part, ()).await.unwrap();
    let path = entry(&path(1), &nar, &chunked.manifest);
    let outcome = commit_one(&engine, &session, &all(), path).await.unwrap();
    assert!(matches!(outcome, PathOutcome::Committed(_)), "{outcome:?}");
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
                    index.audit().await.unwrap()
                }
                None => installation.index().await.audit().await.unwrap(),
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

/// What a tenant that may read nothing of another one learns: in one installation the other tenant
/// has all of these bytes, in the other installation nobody has. All answers must be the same.
#[tokio::test]
async fn no_answer_tells_what_another_tenant_has() {
    let (with, without) = (Installation::new(), Installation::new());
    let (with, without) = (with.engine().await, without.engine().await);
    // Without the rebuild, whose chunks are the caller's own after its first push.
    let nars = &nars()[..2];
    let mut answers = Vec::new();
    for (engine, has_it) in [(&with, true), (&without, false)] {
        let (victim, own) = (create_cache(engine, "victim").await, create_cache(engine, "own").await);
        let reader = only(&["own"]);
        if has_it {
            for (number, nar) in (0..).zip(nars) {
                push(engine, &victim, &path(number), nar).await.unwrap();
            }
            // By chunks too, in a session of the victim's.
            let session = open(engine, &victim, 9).await;
            push_chunks(engine, &session, &all(), &path(50), &nars[0]).await.unwrap();
        }
        let session = open(engine, &own, 1).await;
        let mut told: Vec<String> = Vec::new();
        for (number, nar) in (0..).zip(nars) {
            let chunked = cut(nar);
            // 1. Asks which chunks are missing.
            let missing = engine.missing_chunks(&session, &reader, &chunked.manifest.chunks).await;
            told.push(format!("{missing:?}"));
            // 2. Names chunks that it never sent.
            let path_of = entry(&path(number), nar, &chunked.manifest);
            told.push(format!("{:?}", commit_one(engine, &session, &reader, path_of.clone()).await));
            // 3. Names the NAR with wrong fills, and with the hash of another one.
            let wrong = ChunkedPath {
                nar_hash: NarHash::digest(b"other"),
                digest: NarHash::digest(&[number, 1]),
                ..path_of.clone()
            };
            told.push(format!("{:?}", commit_one(engine, &session, &reader, wrong).await));
            // 4. Sends all but one chunk, and names all.
            let mut stored = chunked.stored(1);
            let held_back = stored.pop().expect("a NAR has chunks");
            let (digest, part) = part_of(stored);
            told.push(format!("{:?}", engine.receive_part(&session, &reader, digest, part, ()).await));
            told.push(format!("{:?}", commit_one(engine, &session, &reader, path_of.clone()).await));
            // 5. Another session of the same caller knows nothing of the first one's chunks.
            let other = open(engine, &own, 2).await;
            let missing = engine.missing_chunks(&other, &reader, &chunked.manifest.chunks).await;
            told.push(format!("{missing:?}"));
            // 6. Cuts the NAR elsewhere: a known NAR fails like an unknown one.
            let mut chunks = chunked.chunks.clone();
            let whole = chunks[0].restore();
            let literal =
                |bytes: &[u8]| RawChunk { bytes: bytes.to_vec(), holes: Vec::new(), fills: Vec::new() };
            chunks.splice(0..1, [literal(&whole[..700]), literal(&whole[700..])]);
            let recut = ChunkedNar::of(chunks);
            let (digest, part) = recut.part(1);
            told.push(format!("{:?}", engine.receive_part(&session, &reader, digest, part, ()).await));
            let recut = entry(&path(number), nar, &recut.manifest);
            told.push(format!("{:?}", commit_one(engine, &session, &reader, recut).await));
            // 7. Sends the last chunk, and the path is taken: as a new one in both installations.
            let (digest, part) = part_of([held_back]);
            told.push(format!("{:?}", engine.receive_part(&session, &reader, digest, part, ()).await));
            told.push(format!("{:?}", commit_one(engine, &session, &reader, path_of).await));
        }
        answers.push(told);
    }
    let [with, without] = <[Vec<String>; 2]>::try_from(answers).unwrap();
    assert_eq!(with, without);
    // The table says nothing of answers that never came up.
    for kind in ["true", "Missing", "CutMismatch", "Committed", "Untold"] {
        assert!(with.iter().any(|answer| answer.contains(kind)), "no answer has {kind}");
    }
    let tells =
        |answer: &String| answer.contains("Whole") || answer.starts_with("Ok([") && answer.contains("false");
    assert!(!with.iter().any(tells), "{with:#?}");
}

/// A store whose writes wait until the test lets them go.
#[derive(Debug)]
struct GatedStore {
    inner: Arc<dyn Blobs>,
    is_open: AtomicBool,
    waiting: AtomicUsize,
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
        let (is_open, waiting) = (AtomicBool::new(true), AtomicUsize::new(0));
        Arc::new(Self { inner: Arc::clone(&installation.blobs), is_open, waiting })
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

#[tokio::test]
async fn a_part_waits_for_the_store_whether_its_chunks_are_known_or_not() {
    let installation = Installation::new();
    let store = GatedStore::new(&installation);
    let index = Arc::new(installation.index().await);
    let engine = engine_over(index, Arc::clone(&store) as Arc<dyn Blobs>, settings());
    let (victim, own) = (create_cache(&engine, "victim").await, create_cache(&engine, "own").await);
    let [known, new, _] = <[_; 3]>::try_from(nars()).unwrap();
    push(&engine, &victim, &path(1), &known).await.unwrap();
    let session = open(&engine, &own, 1).await;
    store.is_open.store(false, Ordering::SeqCst);
    for (what, nar) in [("chunks that another tenant has", &known), ("new chunks", &new)] {
        let before = store.waiting.load(Ordering::SeqCst);
        let (digest, part) = cut(nar).part(1);
        let (engine, session) = (engine.clone(), session.clone());
        let received =
            tokio::spawn(
                async move { engine.receive_part(&session, &only(&["own"]), digest, part, ()).await },
            );
        while store.waiting.load(Ordering::SeqCst) == before {
            assert!(!received.is_finished(), "{what} were answered without a look at the store");
            tokio::task::yield_now().await;
        }
        assert!(!received.is_finished(), "{what}");
        store.is_open.store(true, Ordering::SeqCst);
        received.await.unwrap().unwrap();
        store.is_open.store(false, Ordering::SeqCst);
    }
    // A caller that may read everything is told, and nothing is stored.
    let before = store.waiting.load(Ordering::SeqCst);
    let other = open(&engine, &own, 2).await;
    let (digest, part) = cut(&known).part(1);
    engine.receive_part(&other, &all(), digest, part, ()).await.unwrap();
    assert_eq!(store.waiting.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn a_commit_waits_for_its_listing_whether_the_nar_is_known_or_not() {
    let installation = Installation::new();
    let store = GatedStore::new(&installation);
    let index = Arc::new(installation.index().await);
    let engine = engine_over(index, Arc::clone(&store) as Arc<dyn Blobs>, settings());
    let (victim, own) = (create_cache(&engine, "victim").await, create_cache(&engine, "own").await);
    let mut random = Random::new(11);
    // So many names that their listing is kept as chunks.
    let mut farm = || {
        let name = |bytes: Vec<u8>| {
            let hash: [u8; 20] = bytes.try_into().unwrap();
            format!("{}-x", dormer_nix::nix32::encode(&hash)).parse::<StorePath>().unwrap()
        };
        farm_nar(&(0..4_000).map(|_| name(random.bytes(20))).collect::<Vec<_>>())
    };
    let (known, new) = (farm(), farm());
    push(&engine, &victim, &path(1), &known).await.unwrap();
    let session = open(&engine, &own, 1).await;
    for (number, what, nar) in [(2, "a NAR that another tenant has", &known), (3, "a new NAR", &new)] {
        let chunked = cut(nar);
        let (digest, part) = chunked.part(1);
        engine.receive_part(&session, &only(&["own"]), digest, part, ()).await.unwrap();
        store.is_open.store(false, Ordering::SeqCst);
        let before = store.waiting.load(Ordering::SeqCst);
        let path = entry(&path(number), nar, &chunked.manifest);
        let (engine, session) = (engine.clone(), session.clone());
        let committed =
            tokio::spawn(async move { commit_one(&engine, &session, &only(&["own"]), path).await });
        while store.waiting.load(Ordering::SeqCst) == before {
            assert!(!committed.is_finished(), "{what} was committed without a look at the store");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(!committed.is_finished(), "{what}");
        store.is_open.store(true, Ordering::SeqCst);
        let outcome = committed.await.unwrap().unwrap();
        assert!(matches!(outcome, PathOutcome::Committed(_)), "{what}: {outcome:?}");
    }
}

#[tokio::test]
async fn an_answer_waits_for_the_grid_unless_the_caller_may_read_everything() {
    let installation = Installation::new();
    let grid = Duration::from_millis(300);
    let with_grid = EngineSettings { session_grid: grid, ..settings() };
    let index = Arc::new(installation.index().await);
    let engine = engine_over(index, Arc::clone(&installation.blobs), with_grid);
    let (main, _other) = (create_main(&engine).await, create_cache(&engine, "other").await);
    let session = open(&engine, &main, 1).await;
    let chunked = cut(&nars()[0]);
    let (digest, part) = chunked.part(1);
    let path = entry(&path(1), &nars()[0], &chunked.manifest);
    let reader = only(&["main"]);
    // Only that no answer comes earlier: how much later one comes depends on the machine.
    for request in 0..3 {
        let begun = tokio::time::Instant::now();
        match request {
            0 => drop(engine.missing_chunks(&session, &reader, &chunked.manifest.chunks).await.unwrap()),
            1 => engine.receive_part(&session, &reader, digest, part.clone(), ()).await.unwrap(),
            _ => drop(commit_one(&engine, &session, &reader, path.clone()).await.unwrap()),
        }
        assert!(begun.elapsed() >= grid, "request {request}");
    }
}

#[tokio::test]
async fn what_was_received_counts_as_deduplicated_only_if_the_caller_may_know() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let (main, other) = (create_main(&engine).await, create_cache(&engine, "other").await);
    let nar = &nars()[0];
    push(&engine, &other, &path(1), nar).await.unwrap();
    let session = open(&engine, &main, 1).await;
    let chunked = cut(nar);
    let (digest, part) = chunked.part(1);
    engine.receive_part(&session, &only(&["main"]), digest, part, ()).await.unwrap();
    for (number, reader, expected) in [
        (2, only(&["main"]), Deduplication::Untold),
        (3, only(&["other"]), Deduplication::Whole),
        (4, all(), Deduplication::Whole),
    ] {
        // Another cache each time: the first commit makes the NAR one of the pusher's own.
        let cache = if number == 2 { &main } else { &other };
        let session = if number == 2 { session.clone() } else { open(&engine, cache, number).await };
        let path = entry(&path(number), nar, &chunked.manifest);
        let outcome = commit_one(&engine, &session, &reader, path).await.unwrap();
        let PathOutcome::Committed(committed) = outcome else { panic!("{outcome:?}") };
        assert_eq!(committed.deduplication, expected, "path {number}");
    }
}
