//! What a caller can learn: by answers, counts, sizes and waits.

use super::*;

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
