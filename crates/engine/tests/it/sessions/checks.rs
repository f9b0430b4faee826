//! How commits wait: for references, for turns and memory, and for requests that ask again.

use super::*;

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

    let none_free = |_| std::future::pending::<Box<dyn CheckHold>>().boxed();
    let (reader, patience) = (all(), Duration::from_millis(20));
    let outcomes = engine.commit_paths(&session, &reader, &paths, patience, &none_free).await.unwrap();
    assert!(matches!(&outcomes[..], [PathOutcome::Waiting, PathOutcome::Waiting]), "{outcomes:?}");
    // Nothing goes on that holds a manifest: the check begins with the next request.
    let (taken, share) = (AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
    let one = |bytes| {
        share.store(bytes, Ordering::SeqCst);
        taken.store(bytes, Ordering::SeqCst);
        std::future::ready(Box::new(Hold(Arc::clone(&share))) as Box<dyn CheckHold>).boxed()
    };
    let outcomes = engine.commit_paths(&session, &all(), &paths[..1], PATIENCE, &one).await.unwrap();
    assert!(matches!(&outcomes[..], [PathOutcome::Committed(_)]), "{outcomes:?}");
    assert!(taken.load(Ordering::SeqCst) > nar.len() as u64, "memory for the NAR");
    assert_eq!(Arc::strong_count(&share), 1, "a check that was committed holds nothing");
    let outcomes = engine.commit_paths(&session, &all(), &paths, Duration::ZERO, &none_free).await.unwrap();
    let is_as_expected = matches!(&outcomes[..], [PathOutcome::Committed(_), PathOutcome::Waiting]);
    assert!(is_as_expected, "what is done needs no share: {outcomes:?}");
}

#[tokio::test]
async fn a_sound_nar_that_waits_for_its_commit_counts_for_its_caller() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    let nars = nars();
    let chunked = [cut(&nars[0]), cut(&nars[1])];
    let (digest, part) = chunked[1].part(1);
    engine.receive_part(&session, &only(&[]), digest, part, ()).await.unwrap();
    // The second refers to the first, whose chunks never come.
    let mut paths = [0, 1].map(|number: u8| {
        let at = usize::from(number);
        entry(&path(number), &nars[at], &chunked[at].manifest)
    });
    paths[1].object.references = vec![path(0)];
    let share = Arc::new(AtomicU64::new(u64::MAX));
    let admit = |_| std::future::ready(Box::new(Hold(Arc::clone(&share))) as Box<dyn CheckHold>).boxed();
    let outcomes = engine.commit_paths(&session, &only(&[]), &paths, PATIENCE, &admit).await.unwrap();
    assert!(matches!(&outcomes[..], [PathOutcome::Missing(_), PathOutcome::Waiting]), "{outcomes:?}");
    assert_eq!(Arc::strong_count(&share), 2, "the NAR that waits has its share");
    let bytes = share.load(Ordering::SeqCst);
    assert!((1024..64 * 1024).contains(&bytes), "{bytes} bytes of a small recipe and listing");
    paths[1].object.references.clear();
    let outcomes = engine.commit_paths(&session, &only(&[]), &paths[1..], PATIENCE, &admit).await.unwrap();
    assert!(matches!(&outcomes[..], [PathOutcome::Committed(_)]), "{outcomes:?}");
    assert_eq!(Arc::strong_count(&share), 1, "it was committed");
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
