//! Two replicas on one database.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::fixtures::{
    NOW, Subject, cache, chunk_id, commit, committed, nar_hash, new_nar, object, pack, path_hash, push,
    push_object, run, signed_object, tag,
};
use crate::{
    CachePatch, Change, Changes, CommitTarget, Error, NarQuery, NarSource, OutboxPosition, Removal, Result,
};

/// Longest wait for a notice.
const PATIENCE: Duration = Duration::from_mins(1);

/// Waits for a notice that covers a change.
async fn hears(changes: &mut Changes, change: Change) {
    let heard = async {
        loop {
            match changes.next().await {
                Some(heard) if heard == change => return true,
                Some(_) => {}
                None => return false,
            }
        }
    };
    let heard = tokio::time::timeout(PATIENCE, heard).await;
    assert_eq!(heard, Ok(true), "{change:?} was never told");
}

/// A replica hears nothing before its connection stands; then it is told to forget everything.
async fn listening(index: &Subject, other: &Subject) -> Result<Changes> {
    let mut changes = index.changes();
    let probe = cache(other, "probe").await?;
    let heard = async {
        loop {
            other.update_cache(probe, &CachePatch::default(), NOW).await?;
            let next = tokio::time::timeout(Duration::from_millis(200), changes.next()).await;
            if next == Ok(Some(Change::Cache(probe))) {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.expect("a replica begins to listen")?;
    Ok(changes)
}

pub(super) async fn what_one_writes_the_other_reads_at_once(a: Subject, b: Subject) -> Result<()> {
    let id = cache(&a, "main").await?;
    assert_eq!(b.find_cache("main").await?.map(|cache| cache.id), Some(id));
    assert_eq!(b.find_object(id, &path_hash(1)).await?, None);
    for number in 1..20 {
        let (writer, reader) = if number % 2 == 0 { (&a, &b) } else { (&b, &a) };
        assert_eq!(reader.present_objects(id, &[path_hash(number)]).await?, []);
        let nar = push_object(writer, id, number).await?;
        assert_eq!(reader.find_object(id, &path_hash(number)).await?.expect("pushed").nar.id, nar);
        assert!(reader.find_chunks(&[chunk_id(number)]).await?[0].is_some());
        assert_eq!(reader.present_objects(id, &[path_hash(number)]).await?.len(), 1);
    }
    assert!(matches!(cache(&b, "main").await, Err(Error::CacheExists { .. })));
    b.delete_cache(id, None, NOW).await?;
    assert_eq!(a.find_cache("main").await?, None);
    assert!(matches!(push_object(&a, id, 50).await, Err(Error::CacheGone)));
    Ok(())
}

pub(super) async fn changes_are_told_to_the_other(a: Subject, b: Subject) -> Result<()> {
    let id = cache(&a, "main").await?;
    let nar = push_object(&a, id, 1).await?;
    push_object(&a, id, 2).await?;
    let mut changes = listening(&b, &a).await?;

    commit(&a, id, NarSource::Known(nar), CommitTarget::Object(signed_object(1, &["k:1"]))).await?;
    hears(&mut changes, Change::Object(id, path_hash(1))).await;
    a.remove_object(id, &path_hash(2), Removal::WithGraceUntil(NOW + 1), NOW).await?;
    hears(&mut changes, Change::Object(id, path_hash(2))).await;
    a.remove_object(id, &path_hash(2), Removal::ForCause, NOW).await?;
    hears(&mut changes, Change::Object(id, path_hash(2))).await;
    a.mark_damaged(nar, &[], NOW).await?;
    hears(&mut changes, Change::Everything).await;
    let rows = a.commit_pack(&pack(77, [77])).await?;
    commit(&a, id, NarSource::New(Box::new(new_nar(1, &rows))), CommitTarget::Object(object(1))).await?;
    hears(&mut changes, Change::Everything).await;
    a.mark_damaged(nar, &[rows[0].number], NOW).await?;
    hears(&mut changes, Change::Everything).await;
    a.commit_pack(&pack(78, [77])).await?;
    hears(&mut changes, Change::Everything).await;
    a.update_encoding(nar, &tag(9), 1, NOW).await?;
    hears(&mut changes, Change::Everything).await;
    a.mark_listing_lost(nar, &[], NOW).await?;
    hears(&mut changes, Change::Everything).await;
    a.update_cache(id, &CachePatch::default(), NOW).await?;
    hears(&mut changes, Change::Cache(id)).await;
    a.delete_cache(id, None, NOW).await?;
    hears(&mut changes, Change::Cache(id)).await;
    Ok(())
}

pub(super) async fn new_objects_are_no_news(a: Subject, b: Subject) -> Result<()> {
    let id = cache(&a, "main").await?;
    let mut changes = listening(&b, &a).await?;
    for number in 1..10 {
        push_object(&a, id, number).await?;
    }
    a.touch_objects(id, &[path_hash(1)], crate::Use::Push, NOW + 100).await?;
    a.update_cache(id, &CachePatch::default(), NOW).await?;
    let next = async {
        loop {
            // Late notices of the wait for a listener.
            match changes.next().await {
                Some(Change::Cache(other)) if other != id => {}
                next => return next,
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, next).await, Ok(Some(Change::Cache(id))));
    Ok(())
}

pub(super) async fn racing_packs_of_two_replicas_agree(a: Subject, b: Subject) -> Result<()> {
    let mut calls = JoinSet::new();
    for number in 0..16 {
        let index = Arc::clone(if number % 2 == 0 { &a } else { &b });
        let mut chunks: Vec<u32> = (number * 20..number * 20 + 100).collect();
        if number % 4 >= 2 {
            chunks.reverse();
        }
        calls.spawn(async move { index.commit_pack(&pack(number, chunks)).await });
    }
    let answers = calls.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
    for row in answers.into_iter().flatten() {
        assert_eq!(a.find_chunks(&[row.id]).await?, [Some(row.clone())], "all were told of the same row");
        assert_eq!(b.load_chunks(&[run(row.number, 1)]).await?, [row]);
    }
    Ok(())
}

pub(super) async fn racing_commits_of_two_replicas_agree(a: Subject, b: Subject) -> Result<()> {
    let id = cache(&a, "main").await?;
    let mut calls = JoinSet::new();
    for number in 0..16 {
        let index = Arc::clone(if number % 2 == 0 { &a } else { &b });
        calls.spawn(async move {
            // One NAR under many paths, and many NARs under one path.
            let rows = index.commit_pack(&pack(number, [number])).await?;
            let mut nar = new_nar(1000, &rows);
            nar.tag = tag(number);
            let target = CommitTarget::Object(object(number));
            let shared = committed(&commit(&index, id, NarSource::New(Box::new(nar)), target).await?);
            let signature = format!("k:{number}");
            push(&index, id, 100 + number, CommitTarget::Object(signed_object(99, &[&signature]))).await?;
            Ok(shared)
        });
    }
    let nars: HashSet<_> = calls.join_all().await.into_iter().collect::<Result<_>>()?;
    assert_eq!(nars.len(), 1, "one row");
    let shared = a.find_nar_in_cache(id, &NarQuery::Hash(nar_hash(1000)), NOW).await?.expect("there");
    let rows = b.load_chunks(&shared.recipe.runs).await?;
    let winner = (0..16).find(|number| chunk_id(*number) == rows[0].id).expect("one of them");
    assert_eq!(shared.tag, tag(winner), "recipe and tag are of the same upload");
    let found = b.find_object(id, &path_hash(99)).await?.expect("there");
    let winner = (0..16).find(|number| nar_hash(100 + number) == found.nar.hash).expect("one of them");
    assert_eq!(found.object.sigs, [format!("k:{winner}")], "the object is whole");
    for number in 0..16 {
        let key = NarQuery::Hash(nar_hash(100 + number));
        assert!(a.find_nar_in_cache(id, &key, NOW).await?.is_some(), "losers are in their grace");
    }
    Ok(())
}

pub(super) async fn signatures_of_racing_pushes_are_all_kept(a: Subject, b: Subject) -> Result<()> {
    let id = cache(&a, "main").await?;
    let nar = push_object(&a, id, 1).await?;
    let mut calls = JoinSet::new();
    for number in 0..12 {
        let index = Arc::clone(if number % 2 == 0 { &a } else { &b });
        calls.spawn(async move {
            let object = signed_object(1, &[&format!("k{number}:s")]);
            commit(&index, id, NarSource::Known(nar), CommitTarget::ObjectIfSame(object)).await
        });
    }
    calls.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
    let mut sigs = b.find_object(id, &path_hash(1)).await?.expect("there").object.sigs;
    sigs.sort();
    let mut expected: Vec<String> = (0..12).map(|number| format!("k{number}:s")).collect();
    expected.sort();
    assert_eq!(sigs, expected);
    Ok(())
}

pub(super) async fn racing_first_starts_agree(a: Subject, b: Subject) -> Result<()> {
    let settings = tokio::join!(a.create_setting("key", b"a"), b.create_setting("key", b"b"));
    assert_eq!(settings.0?, settings.1?);
    let caches = tokio::join!(cache(&a, "main"), cache(&b, "main"));
    assert!(
        matches!(caches, (Ok(_), Err(Error::CacheExists { .. })) | (Err(Error::CacheExists { .. }), Ok(_))),
        "{caches:?}"
    );
    Ok(())
}

/// A follower that reads while both write sees every row once, in an order that holds.
pub(super) async fn a_follower_misses_nothing(a: Subject, b: Subject) -> Result<()> {
    const OBJECTS: u32 = 120;
    let id = cache(&a, "main").await?;
    let mut calls = JoinSet::new();
    for writer in 0..6 {
        let index = Arc::clone(if writer % 2 == 0 { &a } else { &b });
        calls.spawn(async move {
            for number in (writer..OBJECTS).step_by(6) {
                push_object(&index, id, number).await?;
            }
            Ok::<(), Error>(())
        });
    }
    let follow = async {
        let mut position = OutboxPosition::START;
        let mut seen = Vec::new();
        while seen.len() < OBJECTS as usize {
            for row in b.outbox_after(position, 7).await? {
                assert!(row.position > position, "rows ascend");
                position = row.position;
                seen.extend(row.store_path_hash);
            }
            tokio::task::yield_now().await;
        }
        Ok::<_, Error>(seen)
    };
    let (written, followed) = tokio::join!(calls.join_all(), tokio::time::timeout(PATIENCE, follow));
    written.into_iter().collect::<Result<Vec<()>>>()?;
    let seen = followed.expect("the follower sees every row in the end")?;
    let seen: HashSet<_> = seen.into_iter().collect();
    assert_eq!(seen, (0..OBJECTS).map(path_hash).collect());
    Ok(())
}
