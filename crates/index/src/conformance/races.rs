//! Calls that run at the same time.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::fixtures::{
    NOW, Subject, cache, chunk_id, commit, committed, nar_hash, new_nar, object, pack, path_hash, push,
    push_object, run, signed_object, tag,
};
use crate::{CommitTarget, Error, NarQuery, NarSource, Result};

/// Runs calls as tasks at once and returns what they gave, in no order.
async fn all<T, Fut>(calls: impl IntoIterator<Item = Fut>) -> Vec<T>
where
    T: Send + 'static,
    Fut: Future<Output = T> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for call in calls {
        tasks.spawn(call);
    }
    tasks.join_all().await
}

pub(super) async fn racing_packs_agree_on_every_chunk(index: Subject) -> Result<()> {
    let calls = (0..8).map(|number| {
        let index = Arc::clone(&index);
        // Every two neighbours share half of their chunks, in opposite orders.
        let mut chunks: Vec<u32> = (number * 50..number * 50 + 100).collect();
        if number % 2 == 1 {
            chunks.reverse();
        }
        async move { index.commit_pack(&pack(number, chunks)).await }
    });
    let answers = all(calls).await.into_iter().collect::<Result<Vec<_>>>()?;
    for row in answers.into_iter().flatten() {
        assert_eq!(index.find_chunks(&[row.id]).await?, [Some(row.clone())], "all were told of the same row");
        assert_eq!(index.load_chunks(&[run(row.number, 1)]).await?, [row]);
    }
    Ok(())
}

pub(super) async fn racing_commits_of_one_nar_agree(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let calls = (0..8).map(|number| {
        let index = Arc::clone(&index);
        async move {
            let rows = index.commit_pack(&pack(number, [number])).await?;
            let mut nar = new_nar(1, &rows);
            nar.tag = tag(number);
            let target = CommitTarget::Object(object(number));
            Ok(committed(&commit(&index, cache, NarSource::New(Box::new(nar)), target).await?))
        }
    });
    let ids: HashSet<_> = all(calls).await.into_iter().collect::<Result<_>>()?;
    assert_eq!(ids.len(), 1, "one row");
    assert_eq!(index.cache_totals(cache).await?.object_count, 8);
    let nar = index.find_nar_in_cache(cache, &NarQuery::Hash(nar_hash(1)), NOW).await?.expect("there");
    let rows = index.load_chunks(&nar.recipe.runs).await?;
    assert_eq!(nar.tag, (0..8).map(tag).find(|tag| *tag == nar.tag).expect("one of them"));
    let winner = (0..8).find(|number| chunk_id(*number) == rows[0].id).expect("one of them");
    assert_eq!(nar.tag, tag(winner), "recipe and tag are of the same upload");
    Ok(())
}

pub(super) async fn racing_objects_leave_one_of_them(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let calls = (1..=8).map(|number| {
        let index = Arc::clone(&index);
        async move {
            push(&index, cache, number, CommitTarget::Object(signed_object(99, &[&format!("k:{number}")])))
                .await
        }
    });
    all(calls).await.into_iter().collect::<Result<Vec<_>>>()?;
    let found = index.find_object(cache, &path_hash(99)).await?.expect("there");
    let winner = (1..=8).find(|number| nar_hash(*number) == found.nar.hash).expect("one of them");
    assert_eq!(found.object.sigs, [format!("k:{winner}")], "the object is whole");
    for number in 1..=8 {
        let key = NarQuery::Hash(nar_hash(number));
        assert!(index.find_nar_in_cache(cache, &key, NOW).await?.is_some(), "losers are in their grace");
    }
    Ok(())
}

pub(super) async fn racing_settings_agree(index: Subject) -> Result<()> {
    let calls = (0..8_u8).map(|number| {
        let index = Arc::clone(&index);
        async move { index.create_setting("secret", &[number]).await }
    });
    let values: HashSet<Vec<u8>> = all(calls).await.into_iter().collect::<Result<_>>()?;
    assert_eq!(values.len(), 1);
    assert_eq!(index.find_setting("secret").await?, values.into_iter().next());
    Ok(())
}

pub(super) async fn racing_creations_of_a_cache_leave_one(index: Subject) -> Result<()> {
    let calls = (0..8).map(|_| {
        let index = Arc::clone(&index);
        async move { cache(&index, "main").await }
    });
    let outcomes = all(calls).await;
    let created: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
    assert_eq!(created.len(), 1);
    assert!(
        outcomes.iter().all(|outcome| matches!(outcome, Ok(_) | Err(Error::CacheExists { .. }))),
        "{outcomes:?}"
    );
    assert_eq!(index.find_cache("main").await?.expect("there").id, *created[0]);
    Ok(())
}

pub(super) async fn commits_racing_a_deletion_leave_nothing(index: Subject) -> Result<()> {
    let id = cache(&index, "main").await?;
    let pushes = all((0..20).map(|number| {
        let index = Arc::clone(&index);
        async move { push_object(&index, id, number).await }
    }));
    let (deleted, outcomes) = tokio::join!(index.delete_cache(id, None, NOW), pushes);
    deleted?;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(_) | Err(Error::CacheGone))), "{outcomes:?}");
    for number in 0..20 {
        assert_eq!(index.find_object(id, &path_hash(number)).await?, None);
    }
    Ok(())
}

pub(super) async fn readers_see_whole_commits_only(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let done = Arc::new(AtomicBool::new(false));
    let readers = all((0..3).map(|_| {
        let (index, done) = (Arc::clone(&index), Arc::clone(&done));
        async move {
            let mut seen = 0_u32;
            while !done.load(Ordering::SeqCst) {
                for number in 0..30 {
                    let Some(found) = index.find_object(cache, &path_hash(number)).await? else { continue };
                    let key = NarQuery::Hash(found.nar.hash);
                    let nar = index.find_nar_in_cache(cache, &key, NOW).await?.expect("its object was seen");
                    let rows = index.load_chunks(&nar.recipe.runs).await?;
                    assert_eq!(rows[0].id, chunk_id(number));
                    assert!(index.find_listing(nar.id).await?.is_some());
                    seen += 1;
                }
                tokio::task::yield_now().await;
            }
            Ok(seen)
        }
    }));
    let writer = async {
        let mut outcome = Ok(());
        for number in 0..30 {
            outcome = outcome.and(push_object(&index, cache, number).await.map(drop));
        }
        // One more round of the readers sees everything.
        tokio::time::sleep(Duration::from_millis(20)).await;
        done.store(true, Ordering::SeqCst);
        outcome
    };
    let (written, seen) = tokio::join!(writer, readers);
    written?;
    let seen: u32 = seen.into_iter().collect::<Result<Vec<_>>>()?.into_iter().sum();
    assert!(seen > 0, "the readers read something");
    Ok(())
}

/// Callers may go away at any moment: what they began is whole or nothing, and the next call works.
pub(super) async fn a_dropped_call_harms_nobody(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    for number in 0..60_u32 {
        let patience = Duration::from_micros(u64::from(number) * 40);
        drop(tokio::time::timeout(patience, push_object(&index, cache, number)).await);
        let found = index.find_object(cache, &path_hash(number)).await?;
        if let Some(found) = found {
            assert_eq!(found.nar.hash, nar_hash(number));
            assert!(index.find_listing(found.nar.id).await?.is_some());
        }
    }
    for number in 0..60 {
        push_object(&index, cache, number).await?;
        assert!(index.find_object(cache, &path_hash(number)).await?.is_some());
    }
    assert_eq!(index.cache_totals(cache).await?.object_count, 60);
    Ok(())
}
