//! What goes in comes out, and only that.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{
    Installation, create_cache, create_main, decompress, engine_over, hash_of, ingest, listing, path, push,
    served, settings,
};
use bytes::Bytes;
use dormer_blobs::BlobKey;
use dormer_engine::{Engine, EngineSettings, Error, IngestRequest, SIGNATURES_MAX};
use dormer_format::{
    ChunkId, ChunkLayout, HoleFill, PackId, RecipeBuilder, TagBuilder, checksum, hole_frame,
};
use dormer_index::{
    CommitTarget, Index, NarCommit, NarQuery, NarSource, NewChunk, NewNar, NewPack, Object, StoredListing,
};
use dormer_nix::{
    BuildTrace, DocumentName, NarInfo, PublicKey, SecretKey, StoreDir, StorePath, TraceKey, fingerprint,
};
use dormer_testkit::{Random, farm_nar, object_for, package_nar, rebuilt};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};

async fn tracked_blob_count(installation: &Installation) -> usize {
    installation.blobs.list().await.expect("a list").len()
}

#[tokio::test]
async fn a_pushed_nar_is_served_as_one_zstd_stream_of_the_announced_size() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(1), 300_000, &[path(2), path(3)]);
    push(&engine, &cache, &path(1), &nar).await.unwrap();

    let bytes = served(&engine, &cache, &nar, None).await.unwrap().expect("it is there");
    assert_eq!(decompress(&bytes), nar);

    let text = engine.narinfo(&cache, &path(1).hash()).await.unwrap().expect("it is there");
    let text = String::from_utf8(text.to_vec()).unwrap();
    let narinfo = NarInfo::parse(&text, &StoreDir::default()).unwrap();
    assert_eq!(narinfo.file_size, Some(bytes.len() as u64));
    assert_eq!((narinfo.nar_hash, narinfo.nar_size), (hash_of(&nar), nar.len() as u64));
    let message =
        fingerprint(&StoreDir::default(), &path(1), &narinfo.nar_hash, narinfo.nar_size, &narinfo.references);
    let key: PublicKey = cache.keys[0].public_key.parse().unwrap();
    key.verify(&message, &narinfo.sigs[0].parse().unwrap()).unwrap();
}

/// Neither zstd's frames nor anything else that a codec could read: what is not spliced as it lies
/// there cannot be served.
#[tokio::test]
async fn stored_bytes_are_served_as_they_are_and_no_codec_sees_them() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    let pack = PackId::from_bytes([5; 16]);
    let bytes: Vec<Bytes> = (1..=3).map(|n| Random::new(n).bytes(50_000).into()).collect();
    installation.blobs.put(&BlobKey::Pack(pack), &bytes).await.unwrap();
    let chunks = bytes.iter().enumerate().map(|(n, bytes)| NewChunk {
        id: ChunkId::from_bytes([u8::try_from(n).unwrap(); 32]),
        offset: 50_000 * n as u64,
        // A hole in the middle of what would be 60,032 bytes.
        layout: ChunkLayout { raw_len: 60_032, holes: vec![30_000], frames: vec![20_000, 30_000] },
        checksum: checksum(bytes),
    });
    let pack = NewPack { id: pack, size: 150_000, chunks: chunks.collect(), created_at: engine.now() };
    let rows = engine.index().commit_pack(&pack).await.unwrap();
    let fill = HoleFill::from_bytes(*b"0123456789abcdfghijklmnpqrsvwxyz").unwrap();
    let (mut recipe, mut tag) = (RecipeBuilder::new(), TagBuilder::new());
    for row in &rows {
        recipe.push_chunk(row.number);
        tag.push_chunk(&row.id, row.checksum, &row.layout);
        recipe.push_fill(&fill);
        tag.push_fill(&fill);
    }
    let file_size = rows.iter().map(|row| row.layout.spliced_len()).sum();
    let nar = NewNar {
        hash: hash_of(b"no archive"),
        size: 180_096,
        file_size,
        tag: tag.finish(),
        holed_bytes: 0,
        recipe: recipe.finish(),
        listing: StoredListing::Inline(Vec::new()),
        build_ids: Vec::new(),
        packs: rows.iter().map(|row| row.pack).collect(),
    };
    let commit = NarCommit {
        cache: cache.id,
        nar: NarSource::New(Box::new(nar)),
        target: CommitTarget::Object(object_for(&path(1), &[])),
        at: engine.now(),
        grace_seconds: 60,
        known_keys: Vec::new(),
    };
    engine.index().commit_nar(&commit).await.unwrap();

    let whole = served(&engine, &cache, b"no archive", None).await.unwrap().expect("it is there");
    let hole = hole_frame(&fill);
    let expected: Vec<u8> =
        bytes.iter().flat_map(|bytes| [&bytes[..20_000], &hole, &bytes[20_000..]].concat()).collect();
    assert!(whole == expected, "{} bytes as they are stored", expected.len());
    let part = served(&engine, &cache, b"no archive", Some(19_990..20_100)).await.unwrap().unwrap();
    assert_eq!(part, expected[19_990..20_100]);
}

#[tokio::test]
async fn every_range_is_a_slice_of_the_whole() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    let references: Vec<StorePath> = (2..40).map(path).collect();
    let nar = package_nar(&mut Random::new(2), 120_000, &references);
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    let whole = served(&engine, &cache, &nar, None).await.unwrap().unwrap();
    let size = whole.len() as u64;
    let mut random = Random::new(3);
    let mut ranges = vec![0..size, 0..0, size..size, 0..1, size - 1..size];
    ranges.extend((0..300).map(|_| {
        let start = random.next_u64() % size;
        start..start + 1 + random.next_u64() % (size - start)
    }));
    for range in ranges {
        let expected = &whole[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
        let got = served(&engine, &cache, &nar, Some(range.clone())).await.unwrap().unwrap();
        assert!(got == expected, "range {range:?}");
    }
    assert!(matches!(
        served(&engine, &cache, &nar, Some(0..size + 1)).await,
        Err(Error::RangeOutside { .. })
    ));
}

#[tokio::test]
async fn a_mass_rebuild_stores_no_new_chunk() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(4), 500_000, &[path(2), path(3)]);
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    let packs = tracked_blob_count(&installation).await;

    let new = rebuilt(&nar, &path(2), &path(77));
    assert_ne!(new, nar);
    let ingested = ingest(&engine, &new).await.unwrap();
    assert_eq!(ingested.new_chunk_bytes, 0);
    engine.commit_object(&cache, ingested, object_for(&path(5), &[])).await.unwrap();
    assert_eq!(tracked_blob_count(&installation).await, packs);
    assert_eq!(decompress(&served(&engine, &cache, &new, None).await.unwrap().unwrap()), new);
}

#[tokio::test]
async fn a_farm_of_thousands_of_symlinks_reads_back_with_its_listing() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    let mut random = Random::new(5);
    let targets: Vec<StorePath> = (0..6_000)
        .map(|number| {
            let mut hash = [0; 20];
            for byte in &mut hash {
                *byte = (random.next_u64() & 0xff) as u8;
            }
            format!("{}-target-{number}", dormer_nix::nix32::encode(&hash)).parse().unwrap()
        })
        .collect();
    let nar = farm_nar(&targets);
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    assert_eq!(decompress(&served(&engine, &cache, &nar, None).await.unwrap().unwrap()), nar);
    let listing = listing(&engine, &cache, &path(1)).await.unwrap().expect("a listing was kept");
    let listing = String::from_utf8(listing).unwrap();
    assert!(listing.starts_with(r#"{"version":1,"root":{"type":"directory""#), "{}", &listing[..80]);
    assert_eq!(listing.matches("symlink").count(), 6_000);
}

#[tokio::test]
async fn two_pushers_of_one_path_at_once_both_succeed_and_store_it_once() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(6), 2_000_000, &[]);
    let path = path(1);
    let (first, second) =
        tokio::join!(push(&engine, &cache, &path, &nar), push(&engine, &cache, &path, &nar));
    first.unwrap();
    second.unwrap();
    let stored: u64 = stored_bytes(&installation).await;
    assert!(stored < 2_000_000, "{stored} bytes for 2 MB that compress by half");
    assert_eq!(decompress(&served(&engine, &cache, &nar, None).await.unwrap().unwrap()), nar);
}

async fn stored_bytes(installation: &Installation) -> u64 {
    let mut bytes = 0;
    for key in installation.blobs.list().await.expect("a list") {
        bytes += installation.blobs.head(&key).await.expect("it is listed");
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn small_uploads_at_once_share_packs_and_large_ones_lie_together() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    let mut pushes = tokio::task::JoinSet::new();
    for number in 0..32 {
        let (engine, cache) = (engine.clone(), Arc::clone(&cache));
        pushes.spawn(async move {
            let nar = package_nar(&mut Random::new(100 + u64::from(number)), 60_000, &[]);
            push(&engine, &cache, &path(number), &nar).await.unwrap();
            let nar = engine.open_nar(&cache, &NarQuery::Hash(hash_of(&nar))).await.unwrap().unwrap();
            engine.index().find_nar_in_cache(cache.id, &NarQuery::Hash(nar.hash()), 0).await.unwrap().unwrap()
        });
    }
    let nars = pushes.join_all().await;
    let packs = tracked_blob_count(&installation).await;
    assert!(packs <= 16, "{packs} packs for 32 uploads at once");
    let runs: usize = nars.iter().map(|nar| nar.recipe.runs.len()).sum();
    assert!(runs <= 64, "{runs} runs for 32 NARs: chunks of one NAR lie together");
}

#[tokio::test]
async fn a_slow_uploader_stalls_nobody() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    let slow = engine
        .begin_ingest(IngestRequest { store_dir: "/nix/store".into(), expected: None, extra_memory_bytes: 0 })
        .await
        .unwrap();
    let nar = package_nar(&mut Random::new(7), 50_000, &[]);
    tokio::time::timeout(Duration::from_secs(10), push(&engine, &cache, &path(1), &nar))
        .await
        .expect("it does not wait for the slow one")
        .unwrap();
    drop(slow);
}

#[tokio::test]
async fn what_an_abandoned_upload_was_storing_can_still_be_relied_on() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(8), 9_000_000, &[]);
    let request = IngestRequest { store_dir: "/nix/store".into(), expected: None, extra_memory_bytes: 0 };
    let mut abandoned = engine.begin_ingest(request).await.unwrap();
    abandoned.write(&nar[..8_500_000]).await.unwrap();
    let other = tokio::spawn({
        let (engine, cache, nar) = (engine.clone(), Arc::clone(&cache), nar.clone());
        async move { push(&engine, &cache, &path(1), &nar).await }
    });
    tokio::task::yield_now().await;
    drop(abandoned);
    tokio::time::timeout(Duration::from_secs(30), other).await.expect("it ends").unwrap().unwrap();
    assert_eq!(decompress(&served(&engine, &cache, &nar, None).await.unwrap().unwrap()), nar);
}

#[tokio::test]
async fn bad_input_is_refused_and_leaves_nothing_visible() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(9), 100_000, &[]);
    let good = (hash_of(&nar), nar.len() as u64);
    let try_with = async |bytes: &[u8], expected| {
        let request = IngestRequest { store_dir: "/nix/store".into(), expected, extra_memory_bytes: 0 };
        let mut ingest = engine.begin_ingest(request).await?;
        ingest.write(bytes).await?;
        ingest.finish().await
    };
    let other = hash_of(b"other");
    assert!(matches!(try_with(&nar, Some((other, good.1))).await, Err(Error::HashMismatch { .. })));
    assert!(matches!(try_with(&nar, Some((good.0, good.1 + 8))).await, Err(Error::SizeMismatch { .. })));
    assert!(matches!(try_with(&nar, Some((good.0, good.1 - 8))).await, Err(Error::SizeMismatch { .. })));
    assert!(matches!(try_with(&nar[..nar.len() - 8], Some(good)).await, Err(Error::MalformedNar(_))));
    assert!(matches!(try_with(b"no NAR at all", None).await, Err(Error::MalformedNar(_))));
    assert!(engine.open_nar(&cache, &NarQuery::Hash(good.0)).await.unwrap().is_none());
    // And for a NAR that is there: possession is proven with the right bytes only.
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    let mut wrong = nar.clone();
    wrong[50_000] ^= 1;
    assert!(matches!(try_with(&wrong, Some(good)).await, Err(Error::HashMismatch { .. })));
}

#[tokio::test]
async fn a_nar_is_served_only_under_caches_that_have_it() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let (main, other) = (create_main(&engine).await, create_cache(&engine, "other").await);
    let nar = package_nar(&mut Random::new(10), 50_000, &[]);
    push(&engine, &main, &path(1), &nar).await.unwrap();
    assert!(served(&engine, &other, &nar, None).await.unwrap().is_none());

    let again = ingest(&engine, &nar).await.unwrap();
    assert!(again.known);
    engine.commit_object(&other, again, object_for(&path(1), &[])).await.unwrap();
    assert!(served(&engine, &other, &nar, None).await.unwrap().is_some());

    assert!(engine.remove_object(&other, &path(1).hash(), None).await.unwrap().was_there);
    assert!(!engine.remove_object(&other, &path(1).hash(), None).await.unwrap().was_there);
    assert!(served(&engine, &other, &nar, None).await.unwrap().is_none());
    assert!(engine.narinfo(&other, &path(1).hash()).await.unwrap().is_none());
    assert!(served(&engine, &main, &nar, None).await.unwrap().is_some());
}

#[tokio::test]
async fn a_narinfo_resolves_only_through_the_alias_it_names() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(11), 50_000, &[]);
    let (hash, size) = (hash_of(&nar), nar.len() as u64);
    let object = object_for(&path(1), &[]);
    let refused = engine.commit_narinfo(&cache, "abc.nar.xz", &hash, size, object.clone()).await;
    assert!(matches!(refused, Err(Error::NoAlias { .. })));

    let ingested = ingest(&engine, &nar).await.unwrap();
    engine.commit_alias(&cache, ingested, "abc.nar.xz", "xz").await.unwrap();
    assert!(engine.narinfo(&cache, &path(1).hash()).await.unwrap().is_none(), "an alias is no object");
    let refused = engine.commit_narinfo(&cache, "abc.nar.xz", &hash, size + 1, object.clone()).await;
    assert!(matches!(refused, Err(Error::NarMismatch { .. })));
    engine.commit_narinfo(&cache, "abc.nar.xz", &hash, size, object).await.unwrap();
    assert!(engine.narinfo(&cache, &path(1).hash()).await.unwrap().is_some());
    let (compression, open) = engine.open_alias(&cache, "abc.nar.xz").await.unwrap().unwrap();
    assert_eq!((compression.as_str(), open.hash()), ("xz", hash));
}

#[tokio::test]
async fn uploads_wait_their_turn_for_memory_and_are_told_when_none_comes() {
    let installation = Installation::new();
    let few = EngineSettings {
        upload_memory_bytes_max: dormer_engine::UPLOAD_BYTES,
        upload_wait: Duration::from_millis(50),
        ..settings()
    };
    let index: Arc<dyn Index> = Arc::new(installation.index().await);
    let engine: Engine = engine_over(index, Arc::clone(&installation.blobs), few);
    let request = IngestRequest { store_dir: "/nix/store".into(), expected: None, extra_memory_bytes: 0 };
    let first = engine.begin_ingest(request.clone()).await.unwrap();
    assert!(matches!(engine.begin_ingest(request.clone()).await, Err(Error::Busy { .. })));
    drop(first);
    engine.begin_ingest(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_at_once_of_the_same_contents_store_each_chunk_once() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let cache = create_main(&engine).await;
    let shared = Random::new(55).bytes(12_000_000);
    let mut pushes = tokio::task::JoinSet::new();
    for number in 0..8 {
        let (engine, cache) = (engine.clone(), Arc::clone(&cache));
        // Other archives with the same file in them: the same chunks but for the first and the
        // last.
        let nar = dormer_nix::nar::encode_tree(&dormer_nix::nar::Node::Directory(
            [
                (format!("a{number}").into_bytes(), dormer_nix::nar::Node::file(vec![number; 100])),
                (b"b".to_vec(), dormer_nix::nar::Node::file(shared.clone())),
            ]
            .into(),
        ));
        pushes.spawn(async move { push(&engine, &cache, &path(number), &nar).await.unwrap() });
    }
    pushes.join_all().await;
    let stored = stored_bytes(&installation).await;
    assert!(stored < 9_000_000, "{stored} bytes for 12 MB that compress by half, eight times");
}

/// Without a turn no signature is verified, so none is on the thread that asks. Each hashes all
/// metadata of its path, and anybody with a token to push may send many.
#[tokio::test]
async fn signatures_are_verified_in_turns_of_the_cpu_pool_only() {
    let installation = Installation::new();
    let index: Arc<dyn Index> = Arc::new(installation.index().await);
    let one_thread = EngineSettings { cpu_threads: 1, ..settings() };
    let engine = engine_over(index, Arc::clone(&installation.blobs), one_thread);
    let cache = create_main(&engine).await;
    // Of the form of a signature, but made by another key.
    let forger = SecretKey::generate("cache.nixos.org-1", [1; 32]).unwrap();
    let forged = forger.sign("something else").to_string();
    for (count, is_taken) in [(SIGNATURES_MAX, true), (SIGNATURES_MAX + 1, false)] {
        let signed =
            |number: u8| Object { sigs: vec![forged.clone(); count], ..object_for(&path(number), &[]) };
        let nar = package_nar(&mut Random::new(count as u64), 1_000, &[]);
        let (hash, size) = (hash_of(&nar), nar.len() as u64);
        engine.commit_alias(&cache, ingest(&engine, &nar).await.unwrap(), "x.nar", "none").await.unwrap();
        let ingested = ingest(&engine, &nar).await.unwrap();
        let key = TraceKey::Hash { hash: "0".repeat(64), output: count.to_string() };
        let trace = BuildTrace {
            key: key.clone(),
            out_path: path(3),
            dependents: std::collections::BTreeMap::new(),
            sigs: vec![forged.clone(); count],
            is_keyed: false,
        };

        let (end, may_end) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let other_work = tokio::spawn({
            let engine = engine.clone();
            async move {
                let work = move || {
                    begun.send(()).unwrap();
                    may_end.recv().unwrap();
                };
                engine.cpu().run(work).await;
            }
        });
        has_begun.await.unwrap();
        // Every way in which signatures come: a push commits an object, also one by chunks.
        let of_push = engine.commit_object(&cache, ingested, signed(1)).map(|done| done.map(drop));
        let of_put =
            engine.commit_narinfo(&cache, "x.nar", &hash, size, signed(2)).map(|done| done.map(drop));
        let of_trace = engine.put_trace(&cache, trace).map(|done| done.map(drop));
        let mut ways: FuturesUnordered<BoxFuture<'_, Result<(), Error>>> =
            [of_push.boxed(), of_put.boxed(), of_trace.boxed()].into_iter().collect();
        let early = tokio::time::timeout(Duration::from_millis(300), ways.next()).await;
        match (is_taken, early) {
            (true, early) => assert!(early.is_err(), "signatures are verified without a turn: {early:?}"),
            (false, early) => {
                let refused = early.expect("no turn is needed to count them").unwrap();
                assert!(matches!(refused, Err(Error::TooManySignatures { .. })), "{refused:?}");
            }
        }
        end.send(()).unwrap();
        other_work.await.unwrap();
        while let Some(done) = ways.next().await {
            assert_eq!(done.is_ok(), is_taken, "{done:?}");
        }
        if is_taken {
            for number in [1, 2] {
                let text = engine.narinfo(&cache, &path(number).hash()).await.unwrap().expect("it is there");
                assert!(!String::from_utf8(text.to_vec()).unwrap().contains(&forged));
            }
            let served = engine.document(&cache, &DocumentName::Trace(key)).await.unwrap().unwrap();
            assert!(!String::from_utf8(served.to_vec()).unwrap().contains(&forged));
        }
    }
}
