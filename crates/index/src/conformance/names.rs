//! What names a NAR in a cache: objects, graces, aliases; and the outbox.

use super::fixtures::{
    GRACE_SECONDS, NOW, Subject, alias, cache, changes, chunk_id, commit, look_up_statements, nar_hash,
    object, outbox, path, path_hash, push, push_object,
};
use crate::{
    CacheId, CacheVisibility, CommitTarget, NarCommit, NarQuery, NarSource, Object, OutboxPosition, Removal,
    Result, Use,
};

async fn reads(index: &Subject, cache: CacheId, number: u32, now: i64) -> Result<bool> {
    Ok(index.find_nar_in_cache(cache, &NarQuery::Hash(nar_hash(number)), now).await?.is_some())
}

pub(super) async fn a_cache_reads_only_what_it_names(index: Subject) -> Result<()> {
    let (a, b) = (cache(&index, "a").await?, cache(&index, "b").await?);
    push_object(&index, a, 1).await?;
    push(&index, a, 2, alias("f")).await?;
    push_object(&index, a, 3).await?;
    index.remove_object(a, &path_hash(3), Removal::WithGraceUntil(NOW + 100), NOW).await?;
    for number in 1..=3 {
        assert!(reads(&index, a, number, NOW).await?, "NAR {number}");
        assert!(!reads(&index, b, number, NOW).await?, "NAR {number}");
        assert!(index.find_nar(&nar_hash(number)).await?.is_some(), "the engine may know it");
    }
    assert_eq!(index.find_alias(b, "f", 0).await?, None);
    assert_eq!(index.find_object(b, &path_hash(1)).await?, None);
    Ok(())
}

pub(super) async fn the_caches_of_a_nar_are_those_that_name_it(index: Subject) -> Result<()> {
    let nar = push_object(&index, cache(&index, "object").await?, 1).await?;
    let names = async |now| -> Result<Vec<String>> {
        let caches = index.list_caches_of_nar(nar, now).await?;
        Ok(caches.into_iter().map(|cache| cache.name).collect())
    };
    cache(&index, "none").await?;
    let aliased = cache(&index, "alias").await?;
    commit(&index, aliased, NarSource::Known(nar), alias("f")).await?;
    commit(&index, aliased, NarSource::Known(nar), alias("g")).await?;
    let grace = cache(&index, "grace").await?;
    commit(&index, grace, NarSource::Known(nar), CommitTarget::Object(object(2))).await?;
    index.remove_object(grace, &path_hash(2), Removal::WithGraceUntil(NOW + 100), NOW).await?;
    let gone = cache(&index, "gone").await?;
    commit(&index, gone, NarSource::Known(nar), CommitTarget::Object(object(1))).await?;
    assert_eq!(names(NOW).await?, ["alias", "gone", "grace", "object"]);
    index.delete_cache(gone, None, NOW).await?;
    assert_eq!(names(NOW + 101).await?, ["alias", "object"]);
    let patch = crate::CachePatch { is_public: Some(true), ..crate::CachePatch::default() };
    index.update_cache(aliased, &patch, NOW).await?;
    let visibility = |name: &str, is_public| CacheVisibility { name: name.to_owned(), is_public };
    let both = [visibility("alias", true), visibility("object", false)];
    assert_eq!(index.list_caches_of_nar(nar, NOW + 101).await?, both);
    Ok(())
}

pub(super) async fn a_nar_is_found_by_the_path_that_has_it(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let nar = push(&index, cache, 1, CommitTarget::Object(object(5))).await?;
    let found =
        index.find_nar_in_cache(cache, &NarQuery::StorePath(path_hash(5)), NOW).await?.expect("there");
    assert_eq!((found.id, found.hash), (nar, nar_hash(1)));
    assert_eq!(index.find_nar_in_cache(cache, &NarQuery::StorePath(path_hash(1)), NOW).await?, None);
    index.mark_damaged(nar, &[], NOW).await?;
    let found =
        index.find_nar_in_cache(cache, &NarQuery::StorePath(path_hash(5)), NOW).await?.expect("there");
    assert!(found.damaged, "damaged ones are returned, marked");
    Ok(())
}

pub(super) async fn an_alias_names_its_nar(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let nar = push(&index, cache, 1, alias("abc.nar.xz")).await?;
    let found = index.find_alias(cache, "abc.nar.xz", NOW - 1).await?.expect("there");
    assert_eq!((found.nar.id, found.nar.hash, found.compression.as_str()), (nar, nar_hash(1), "xz"));
    assert_eq!(index.find_alias(cache, "abc.nar", 0).await?, None);
    index.mark_damaged(nar, &[], NOW).await?;
    assert!(index.find_alias(cache, "abc.nar.xz", 0).await?.expect("there").nar.damaged);
    Ok(())
}

pub(super) async fn an_alias_is_replaced_by_a_later_upload(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    push(&index, cache, 1, alias("f")).await?;
    let target = CommitTarget::Alias { file_name: "f".to_owned(), compression: "zstd".to_owned() };
    let second = push(&index, cache, 2, target).await?;
    let found = index.find_alias(cache, "f", 0).await?.expect("there");
    assert_eq!((found.nar.id, found.compression.as_str()), (second, "zstd"));
    Ok(())
}

pub(super) async fn old_aliases_are_not_found(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let nar = push(&index, cache, 1, alias("f")).await?;
    assert!(index.find_alias(cache, "f", NOW - 1).await?.is_some());
    assert_eq!(index.find_alias(cache, "f", NOW).await?, None);
    let nar = NarSource::Known(nar);
    let again = NarCommit {
        cache,
        nar,
        target: alias("f"),
        at: NOW + 10,
        grace_seconds: GRACE_SECONDS,
        known_keys: Vec::new(),
    };
    index.commit_nar(&again).await?;
    assert!(index.find_alias(cache, "f", NOW + 9).await?.is_some());
    Ok(())
}

pub(super) async fn an_alias_writes_no_outbox_row(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    push(&index, cache, 1, alias("f")).await?;
    assert_eq!(outbox(&index).await?, []);
    Ok(())
}

pub(super) async fn a_removed_object_is_gone_but_its_nar_stays_for_the_grace(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    push_object(&index, cache, 1).await?;
    let grace = Removal::WithGraceUntil(NOW + 100);
    assert!(index.remove_object(cache, &path_hash(1), grace, NOW + 1).await?);
    assert_eq!(index.find_object(cache, &path_hash(1)).await?, None);
    assert_eq!(index.present_objects(cache, &[path_hash(1)]).await?, []);
    assert_eq!(index.find_nar_in_cache(cache, &NarQuery::StorePath(path_hash(1)), NOW).await?, None);
    assert!(reads(&index, cache, 1, NOW + 99).await?);
    assert!(!reads(&index, cache, 1, NOW + 100).await?);
    assert_eq!(changes(&index, cache).await?, [Some(path_hash(1)); 2]);
    assert!(!index.remove_object(cache, &path_hash(1), grace, NOW + 2).await?, "it was not there");
    assert!(!index.remove_object(cache, &path_hash(2), grace, NOW + 2).await?, "it never was");
    assert_eq!(changes(&index, cache).await?.len(), 2);
    Ok(())
}

pub(super) async fn removal_for_cause_takes_everything(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let nar = push(&index, cache, 1, alias("f")).await?;
    commit(&index, cache, NarSource::Known(nar), CommitTarget::ObjectIfSame(object(1))).await?;
    // What the path had before is just as bad.
    push(&index, cache, 2, alias("g")).await?;
    push(&index, cache, 2, CommitTarget::Object(object(1))).await?;
    push(&index, cache, 3, alias("innocent")).await?;
    assert!(index.remove_object(cache, &path_hash(1), Removal::ForCause, NOW).await?);
    for number in 1..=2 {
        assert!(!reads(&index, cache, number, NOW).await?, "NAR {number}");
    }
    assert_eq!(index.find_alias(cache, "f", 0).await?, None);
    assert_eq!(index.find_alias(cache, "g", 0).await?, None);
    assert!(index.find_alias(cache, "innocent", 0).await?.is_some());
    assert_eq!(changes(&index, cache).await?.last(), Some(&Some(path_hash(1))));
    Ok(())
}

pub(super) async fn removal_for_cause_ends_a_grace_that_began_before(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    push(&index, cache, 1, alias("f")).await?;
    push_object(&index, cache, 1).await?;
    index.remove_object(cache, &path_hash(1), Removal::WithGraceUntil(NOW + 100), NOW).await?;
    assert!(!index.remove_object(cache, &path_hash(1), Removal::ForCause, NOW).await?);
    assert!(!reads(&index, cache, 1, NOW).await?);
    assert_eq!(index.find_alias(cache, "f", 0).await?, None);
    let hash = Some(path_hash(1));
    assert_eq!(changes(&index, cache).await?, [hash, hash, hash], "pushed, removed, and removed for cause");
    Ok(())
}

pub(super) async fn removal_in_one_cache_leaves_the_others(index: Subject) -> Result<()> {
    let (a, b) = (cache(&index, "a").await?, cache(&index, "b").await?);
    let nar = push_object(&index, a, 1).await?;
    commit(&index, b, NarSource::Known(nar), CommitTarget::Object(object(1))).await?;
    commit(&index, b, NarSource::Known(nar), alias("f")).await?;
    index.remove_object(a, &path_hash(1), Removal::ForCause, NOW).await?;
    assert!(index.find_object(b, &path_hash(1)).await?.is_some());
    assert!(index.find_alias(b, "f", 0).await?.is_some());
    assert!(reads(&index, b, 1, NOW).await?);
    Ok(())
}

pub(super) async fn an_object_removed_and_pushed_again_is_there(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let nar = push_object(&index, cache, 1).await?;
    for removal in [Removal::WithGraceUntil(NOW + 100), Removal::ForCause] {
        assert!(index.remove_object(cache, &path_hash(1), removal, NOW).await?);
        commit(&index, cache, NarSource::Known(nar), CommitTarget::Object(object(1))).await?;
        assert!(index.find_object(cache, &path_hash(1)).await?.is_some());
        assert!(reads(&index, cache, 1, NOW + 1000).await?);
    }
    Ok(())
}

pub(super) async fn present_objects_leaves_out_the_damaged_and_the_absent(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    for number in 1..=3 {
        push_object(&index, cache, number).await?;
    }
    let damaged = index.find_nar(&nar_hash(2)).await?.expect("there").id;
    index.mark_damaged(damaged, &[], NOW).await?;
    index.touch_objects(cache, &[path_hash(3)], Use::Push, NOW + 60).await?;
    let asked: Vec<_> = (0..16_384).map(path_hash).collect();
    let one = look_up_statements(&index).await?;
    let before = index.statement_count();
    let mut present = index.present_objects(cache, &asked).await?;
    assert_eq!(index.statement_count() - before, one);
    present.sort_unstable();
    let mut expected = [(path_hash(1), NOW), (path_hash(3), NOW + 60)];
    expected.sort_unstable();
    assert_eq!(present, expected);
    assert_eq!(index.present_objects(cache, &[]).await?, []);
    Ok(())
}

pub(super) async fn touching_never_goes_back_in_time(index: Subject) -> Result<()> {
    let (a, b) = (cache(&index, "a").await?, cache(&index, "b").await?);
    let nar = push_object(&index, a, 1).await?;
    commit(&index, b, NarSource::Known(nar), CommitTarget::Object(object(1))).await?;
    for (at, expected) in [(NOW - 50, NOW), (NOW + 50, NOW + 50), (NOW + 20, NOW + 50)] {
        index.touch_objects(a, &[path_hash(1), path_hash(99)], Use::Push, at).await?;
        assert_eq!(index.find_object(a, &path_hash(1)).await?.expect("there").last_used_at, expected);
    }
    assert_eq!(index.find_object(b, &path_hash(1)).await?.expect("there").last_used_at, NOW);
    let written = outbox(&index).await?.len();
    index.touch_objects(a, &[], Use::Pull, NOW + 99).await?;
    assert_eq!(outbox(&index).await?.len(), written, "a use is no change");
    Ok(())
}

pub(super) async fn what_is_absent_costs_no_statement_or_one(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    push_object(&index, cache, 1).await?;
    let one = look_up_statements(&index).await?;
    let before = index.statement_count();
    for number in 100..200 {
        assert_eq!(index.find_object(cache, &path_hash(number)).await?, None);
        assert_eq!(index.find_chunks(&[chunk_id(number)]).await?, [None]);
        assert_eq!(index.find_nar(&nar_hash(number)).await?, None);
    }
    assert!(index.statement_count() - before <= 300 * one);
    Ok(())
}

pub(super) async fn every_field_of_an_object_comes_back(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let mut references: Vec<_> = (1..200).map(path).collect();
    references.sort();
    let whole = Object {
        path: path(7),
        references,
        deriver: Some("1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-é.drv".to_owned()),
        ca: Some("fixed:r:sha256:x".to_owned()),
        sigs: vec![format!("cache.example.org-1:{}==", "A".repeat(86)), "odd".to_owned(), String::new()],
        system: Some("aarch64-linux".to_owned()),
        extra: vec![
            ("Provenance".to_owned(), "{\"a\": \"b: c\"}".to_owned()),
            ("X".to_owned(), "é".to_owned()),
        ],
    };
    push(&index, cache, 1, CommitTarget::Object(whole.clone())).await?;
    assert_eq!(index.find_object(cache, &path_hash(7)).await?.expect("there").object, whole);
    Ok(())
}

pub(super) async fn the_outbox_is_ordered_and_resumable(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    for number in 1..=5 {
        push_object(&index, cache, number).await?;
    }
    let all = outbox(&index).await?;
    assert_eq!(all.len(), 5);
    assert!(all.iter().zip(&all[1..]).all(|(row, next)| row.position < next.position));
    let expected: Vec<_> = (1..=5).map(|number| Some(path_hash(number))).collect();
    assert_eq!(all.iter().map(|row| row.store_path_hash).collect::<Vec<_>>(), expected);
    assert_eq!(index.outbox_after(OutboxPosition::START, 2).await?, all[..2]);
    assert_eq!(index.outbox_after(all[1].position, 2).await?, all[2..4]);
    let rest = index.outbox_after(all[4].position, 100).await?;
    assert!(rest.iter().all(|row| row.cache != cache), "{rest:?}");
    Ok(())
}

pub(super) async fn the_index_is_ready(index: Subject) -> Result<()> {
    index.ping().await?;
    index.check_ready().await?;
    index.check_ready().await?;
    index.ping().await?;
    assert!(index.statement_count() > 0);
    Ok(())
}
