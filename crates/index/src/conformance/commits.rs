//! Commits of NARs.

use super::fixtures::{
    GRACE_SECONDS, NOW, Subject, alias, cache, changes, commit, committed, nar_hash, new_nar, object, outbox,
    outbox_since, pack, path, path_hash, push, push_object, recipe, signed_object, tag,
};
use crate::{
    CacheId, ChunkRow, CommitOutcome, CommitTarget, Error, NarCommit, NarId, NarQuery, NarSource, NewNar,
    Object, PackNumber, Removal, Result, StoredListing,
};

const DAY: i64 = 24 * 60 * 60;

fn source(nar: NewNar) -> NarSource {
    NarSource::New(Box::new(nar))
}

async fn commit_at(
    index: &Subject,
    cache: CacheId,
    nar: NarSource,
    target: CommitTarget,
    at: i64,
) -> Result<CommitOutcome> {
    index
        .commit_nar(&NarCommit {
            cache,
            nar,
            target,
            at,
            grace_seconds: GRACE_SECONDS,
            known_keys: Vec::new(),
        })
        .await
}

async fn rows_of(index: &Subject, number: u32) -> Result<Vec<ChunkRow>> {
    index.commit_pack(&pack(number, [number])).await
}

pub(super) async fn a_commit_makes_the_object_visible(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let rows = index.commit_pack(&pack(1, 0..5)).await?;
    assert_eq!(index.find_nar(&nar_hash(1)).await?, None);
    let new = new_nar(1, &rows);
    let nar = committed(&commit(&index, cache, source(new.clone()), CommitTarget::Object(object(1))).await?);
    let found = index.find_object(cache, &path_hash(1)).await?.expect("committed");
    assert_eq!(found.object, object(1));
    assert_eq!(found.last_used_at, NOW);
    assert_eq!(found.nar.id, nar);
    assert_eq!((found.nar.hash, found.nar.size, found.nar.file_size), (new.hash, new.size, new.file_size));
    assert_eq!((found.nar.tag, found.nar.damaged), (new.tag, false));
    assert_eq!(index.find_nar(&nar_hash(1)).await?, Some(found.nar));
    let whole = index.find_nar_in_cache(cache, &NarQuery::Hash(new.hash), NOW).await?.expect("committed");
    assert_eq!((whole.id, whole.recipe, whole.tag, whole.damaged), (nar, new.recipe, new.tag, false));
    assert_eq!(index.find_listing(nar).await?, Some(new.listing));
    assert_eq!(changes(&index, cache).await?, [Some(path_hash(1))]);
    assert_eq!(outbox(&index).await?[0].at, NOW);
    Ok(())
}

pub(super) async fn a_nar_is_shared_between_caches(index: Subject) -> Result<()> {
    let (a, b) = (cache(&index, "a").await?, cache(&index, "b").await?);
    let first = push_object(&index, a, 1).await?;
    let second = push_object(&index, b, 1).await?;
    assert_eq!(first, second);
    Ok(())
}

pub(super) async fn a_known_nar_is_named_without_its_bytes(index: Subject) -> Result<()> {
    let (a, b) = (cache(&index, "a").await?, cache(&index, "b").await?);
    let nar = push_object(&index, a, 1).await?;
    let outcome = commit(&index, b, NarSource::Known(nar), CommitTarget::Object(object(2))).await?;
    assert_eq!(outcome, CommitOutcome::Committed(nar));
    let found = index.find_object(b, &path_hash(2)).await?.expect("committed");
    assert_eq!((found.nar.id, found.nar.hash), (nar, nar_hash(1)));
    Ok(())
}

pub(super) async fn a_nar_that_is_gone_or_damaged_cannot_be_named(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let nar = push_object(&index, cache, 1).await?;
    index.mark_damaged(nar, &[], NOW).await?;
    for nar in [nar, NarId(9999)] {
        for target in [CommitTarget::Object(object(2)), CommitTarget::ObjectIfSame(object(2)), alias("f")] {
            let outcome = commit(&index, cache, NarSource::Known(nar), target).await;
            assert!(matches!(outcome, Err(Error::NarGone)), "{outcome:?}");
        }
    }
    assert_eq!(index.find_object(cache, &path_hash(2)).await?, None);
    Ok(())
}

pub(super) async fn a_deleted_cache_takes_no_commit(index: Subject) -> Result<()> {
    let (gone, other) = (cache(&index, "gone").await?, cache(&index, "other").await?);
    let nar = push_object(&index, other, 1).await?;
    index.delete_cache(gone, None, NOW).await?;
    let rows = rows_of(&index, 2).await?;
    for source in [NarSource::Known(nar), source(new_nar(2, &rows))] {
        for target in [CommitTarget::Object(object(2)), alias("f")] {
            let outcome = commit(&index, gone, source.clone(), target).await;
            assert!(matches!(outcome, Err(Error::CacheGone)), "{outcome:?}");
        }
    }
    assert_eq!(index.find_nar(&nar_hash(2)).await?, None, "none of it is visible");
    Ok(())
}

pub(super) async fn a_missing_pack_fails_the_commit(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let mut nar = new_nar(1, &rows_of(&index, 1).await?);
    nar.packs.push(PackNumber(9999));
    let outcome = commit(&index, cache, source(nar), CommitTarget::Object(object(1))).await;
    assert!(matches!(outcome, Err(Error::PackGone)), "{outcome:?}");
    Ok(())
}

pub(super) async fn a_chunk_found_damaged_since_its_look_up_fails_the_commit(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let reader = push_object(&index, cache, 1).await?;
    let rows = index.commit_pack(&pack(20, 20..24)).await?;
    let (whole, first, second) = (new_nar(2, &rows), new_nar(3, &rows[..2]), new_nar(4, &rows[2..]));
    let mut listing = new_nar(5, &rows[..1]);
    listing.listing = StoredListing::Chunks { recipe: recipe(&rows[2..3]), size: 9 };
    // Somebody reads it between the look-up and the commit.
    index.mark_damaged(reader, &[rows[2].number], NOW).await?;
    for (number, nar) in [(2, &whole), (4, &second), (5, &listing)] {
        let target = CommitTarget::Object(object(number));
        let outcome = commit(&index, cache, source(nar.clone()), target).await;
        assert!(matches!(outcome, Err(Error::PackGone)), "{number}: {outcome:?}");
        assert_eq!(index.find_object(cache, &path_hash(number)).await?, None);
    }
    let outcome = commit(&index, cache, source(first), CommitTarget::Object(object(3))).await?;
    committed(&outcome);
    // Stored again, all of it can be named.
    index.commit_pack(&pack(21, [22])).await?;
    for (number, nar) in [(2, whole), (4, second), (5, listing)] {
        committed(&commit(&index, cache, source(nar), CommitTarget::Object(object(number))).await?);
    }
    Ok(())
}

pub(super) async fn a_failed_commit_leaves_nothing(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let mut nar = new_nar(1, &rows_of(&index, 1).await?);
    nar.packs.push(PackNumber(9999));
    for target in [CommitTarget::Object(object(1)), alias("f")] {
        assert!(commit(&index, cache, source(nar.clone()), target).await.is_err());
    }
    assert_eq!(index.find_nar(&nar_hash(1)).await?, None);
    assert_eq!(index.find_object(cache, &path_hash(1)).await?, None);
    assert_eq!(index.find_alias(cache, "f", 0).await?, None);
    assert_eq!(outbox(&index).await?, []);
    // And it can be done again, properly.
    push_object(&index, cache, 1).await?;
    Ok(())
}

pub(super) async fn a_sound_row_wins_over_a_second_upload(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let first = push_object(&index, cache, 1).await?;
    let mut second = new_nar(1, &rows_of(&index, 2).await?);
    second.tag = tag(77);
    // Its packs may even be gone: they are not needed.
    second.packs = vec![PackNumber(9999)];
    let outcome = commit(&index, cache, source(second), CommitTarget::Object(object(2))).await?;
    assert_eq!(outcome, CommitOutcome::Committed(first));
    assert_eq!(index.find_nar(&nar_hash(1)).await?.expect("there").tag, tag(1), "served bytes never change");
    Ok(())
}

pub(super) async fn a_damaged_nar_heals_in_place(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let first = push_object(&index, cache, 1).await?;
    index.mark_damaged(first, &[], NOW).await?;
    assert!(index.find_object(cache, &path_hash(1)).await?.expect("there").nar.damaged);
    let rows = rows_of(&index, 2).await?;
    let mut again = new_nar(1, &rows);
    again.tag = tag(2);
    again.file_size = 99;
    let outcome = commit(&index, cache, source(again.clone()), CommitTarget::Object(object(1))).await?;
    assert_eq!(outcome, CommitOutcome::Committed(first));
    let healed = index.find_nar_in_cache(cache, &NarQuery::Hash(nar_hash(1)), NOW).await?.expect("there");
    assert_eq!((healed.id, healed.tag, healed.file_size, healed.damaged), (first, tag(2), 99, false));
    assert_eq!(healed.recipe, again.recipe);
    Ok(())
}

pub(super) async fn healing_is_told_to_every_cache(index: Subject) -> Result<()> {
    let (a, b) = (cache(&index, "a").await?, cache(&index, "b").await?);
    let nar = push_object(&index, a, 1).await?;
    commit(&index, b, NarSource::Known(nar), CommitTarget::Object(object(7))).await?;
    index.mark_damaged(nar, &[], NOW).await?;
    let before = outbox(&index).await?.last().expect("two commits").position;
    let again = source(new_nar(1, &rows_of(&index, 2).await?));
    commit(&index, a, again, alias("f")).await?;
    let mut rows: Vec<_> =
        outbox_since(&index, before).await?.into_iter().map(|row| (row.cache, row.store_path_hash)).collect();
    rows.sort_unstable();
    assert_eq!(rows, [(a, Some(path_hash(1))), (b, Some(path_hash(7)))]);
    Ok(())
}

pub(super) async fn an_object_replaces_what_was_there(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let mut first = signed_object(1, &["a:1"]);
    first.deriver = Some("old.drv".to_owned());
    push(&index, cache, 1, CommitTarget::Object(first)).await?;
    let mut second = signed_object(1, &["b:2"]);
    second.references = vec![path(1), path(5)];
    second.references.sort();
    let nar = push(&index, cache, 2, CommitTarget::Object(second.clone())).await?;
    let found = index.find_object(cache, &path_hash(1)).await?.expect("there");
    assert_eq!((found.object, found.nar.id), (second, nar));
    assert_eq!(index.cache_totals(cache).await?.object_count, 1);
    assert_eq!(changes(&index, cache).await?, [Some(path_hash(1)); 2]);
    Ok(())
}

pub(super) async fn a_replaced_nar_stays_readable_for_the_grace_of_the_commit(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let object = || CommitTarget::Object(object(1));
    for number in [1, 2, 3] {
        push_object(&index, cache, number).await?;
    }
    for (number, grace_seconds) in [(2, 30 * DAY), (3, 60)] {
        let nar = NarSource::Known(index.find_nar(&nar_hash(number)).await?.expect("there").id);
        index
            .commit_nar(&NarCommit {
                cache,
                nar,
                target: object(),
                at: NOW,
                grace_seconds,
                known_keys: Vec::new(),
            })
            .await?;
        index.remove_object(cache, &path_hash(number), Removal::WithGraceUntil(NOW), NOW).await?;
    }
    for (number, grace_seconds) in [(1, 30 * DAY), (2, 60)] {
        let key = NarQuery::Hash(nar_hash(number));
        assert!(index.find_nar_in_cache(cache, &key, NOW + grace_seconds - 1).await?.is_some());
        assert_eq!(index.find_nar_in_cache(cache, &key, NOW + grace_seconds).await?, None);
    }
    Ok(())
}

pub(super) async fn signatures_are_merged_old_ones_first(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    push(&index, cache, 1, CommitTarget::Object(signed_object(1, &["a:1", "b:2"]))).await?;
    push(&index, cache, 1, CommitTarget::Object(signed_object(1, &["c:3", "a:1"]))).await?;
    let found = index.find_object(cache, &path_hash(1)).await?.expect("there");
    assert_eq!(found.object.sigs, ["a:1", "b:2", "c:3"]);
    let many: Vec<String> = (0..30).map(|n| format!("m-{n}:x")).collect();
    let object = Object { sigs: many.clone(), ..object(1) };
    push(&index, cache, 1, CommitTarget::Object(object)).await?;
    let found = index.find_object(cache, &path_hash(1)).await?.expect("there").object.sigs;
    assert_eq!(found, many[14..], "the newest stay");
    // A signature that the caller has verified comes in, and no others displace it.
    let nar = NarSource::Known(index.find_nar(&nar_hash(1)).await?.expect("there").id);
    let known = |sigs: &[&str]| NarCommit {
        cache,
        nar: nar.clone(),
        target: CommitTarget::Object(signed_object(1, sigs)),
        at: NOW,
        grace_seconds: GRACE_SECONDS,
        known_keys: vec!["up-1".to_owned()],
    };
    index.commit_nar(&known(&["up-1:x"])).await?;
    for round in 0..2 {
        let others: Vec<String> = (0..16).map(|n| format!("{round}-{n}:x")).collect();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        index.commit_nar(&known(&others)).await?;
    }
    let found = index.find_object(cache, &path_hash(1)).await?.expect("there").object.sigs;
    assert_eq!((found.len(), found[0].as_str()), (17, "up-1:x"));
    Ok(())
}

pub(super) async fn other_references_drop_old_signatures(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    push(&index, cache, 1, CommitTarget::Object(signed_object(1, &["a:1"]))).await?;
    let mut other = signed_object(1, &["b:2"]);
    other.references = vec![path(9)];
    push(&index, cache, 1, CommitTarget::Object(other.clone())).await?;
    assert_eq!(index.find_object(cache, &path_hash(1)).await?.expect("there").object, other);
    Ok(())
}

pub(super) async fn the_first_narinfo_stays(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let first = signed_object(1, &["a:1"]);
    let nar = push(&index, cache, 1, CommitTarget::ObjectIfSame(first.clone())).await?;
    let other = source(new_nar(2, &rows_of(&index, 2).await?));
    let written = outbox(&index).await?.len();
    let outcome =
        commit(&index, cache, other, CommitTarget::ObjectIfSame(signed_object(1, &["b:2"]))).await?;
    assert_eq!(outcome, CommitOutcome::Kept);
    assert_eq!(index.find_nar(&nar_hash(2)).await?, None, "a refused commit stores nothing");
    let mut referring = signed_object(1, &["b:2"]);
    referring.references = vec![path(9)];
    let outcome = commit(&index, cache, NarSource::Known(nar), CommitTarget::ObjectIfSame(referring)).await?;
    assert_eq!(outcome, CommitOutcome::Kept);
    let found = index.find_object(cache, &path_hash(1)).await?.expect("there");
    assert_eq!((found.object, found.nar.id), (first, nar));
    assert_eq!(outbox(&index).await?.len(), written);
    Ok(())
}

pub(super) async fn a_damaged_first_narinfo_gives_way(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let damaged = push_object(&index, cache, 1).await?;
    index.mark_damaged(damaged, &[], NOW).await?;
    let nar = push(&index, cache, 2, CommitTarget::ObjectIfSame(object(1))).await?;
    let found = index.find_object(cache, &path_hash(1)).await?.expect("there");
    assert_eq!((found.nar.id, found.nar.damaged), (nar, false));
    Ok(())
}

pub(super) async fn the_same_narinfo_adds_its_signatures(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let mut first = signed_object(1, &["a:1"]);
    first.deriver = Some("first.drv".to_owned());
    let nar = push(&index, cache, 1, CommitTarget::ObjectIfSame(first.clone())).await?;
    let mut second = signed_object(1, &["b:2"]);
    second.deriver = Some("second.drv".to_owned());
    second.system = Some("x86_64-linux".to_owned());
    let outcome = commit(&index, cache, NarSource::Known(nar), CommitTarget::ObjectIfSame(second)).await?;
    assert_eq!(outcome, CommitOutcome::Committed(nar));
    let found = index.find_object(cache, &path_hash(1)).await?.expect("there").object;
    assert_eq!(found.sigs, ["a:1", "b:2"]);
    assert_eq!(found.deriver.as_deref(), Some("first.drv"), "the first stays");
    assert_eq!(found.system.as_deref(), Some("x86_64-linux"), "what it lacked is filled in");
    assert_eq!(changes(&index, cache).await?, [Some(path_hash(1)); 2]);
    Ok(())
}

pub(super) async fn a_repeated_commit_changes_nothing(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let nar = source(new_nar(1, &rows_of(&index, 1).await?));
    for target in [
        CommitTarget::Object(signed_object(1, &["a:1"])),
        CommitTarget::ObjectIfSame(signed_object(1, &["a:1"])),
    ] {
        for at in [NOW, NOW + 5, NOW + 3] {
            commit_at(&index, cache, nar.clone(), target.clone(), at).await?;
        }
    }
    let found = index.find_object(cache, &path_hash(1)).await?.expect("there");
    assert_eq!(found.object, signed_object(1, &["a:1"]));
    assert_eq!(found.last_used_at, NOW + 5, "but that it was used is written down");
    assert_eq!(changes(&index, cache).await?, [Some(path_hash(1))]);
    Ok(())
}

pub(super) async fn every_kind_of_listing_comes_back(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let rows = index.commit_pack(&pack(100, 100..110)).await?;
    let chunked = StoredListing::Chunks { recipe: recipe(&rows[5..]), size: 123_456 };
    let listings = [StoredListing::Inline(Vec::new()), StoredListing::Inline(vec![0; 100_000]), chunked];
    for (number, listing) in (0..).zip(listings) {
        let nar = NewNar { listing: listing.clone(), ..new_nar(number, &rows[..5]) };
        let id = committed(&commit(&index, cache, source(nar), CommitTarget::Object(object(number))).await?);
        assert_eq!(index.find_listing(id).await?, Some(listing));
    }
    assert_eq!(index.find_listing(NarId(9999)).await?, None);
    Ok(())
}

pub(super) async fn a_healed_nar_has_the_new_listing(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let rows = rows_of(&index, 1).await?;
    let chunked =
        NewNar { listing: StoredListing::Chunks { recipe: recipe(&rows), size: 5 }, ..new_nar(1, &rows) };
    let nar = committed(&commit(&index, cache, source(chunked), CommitTarget::Object(object(1))).await?);
    index.mark_damaged(nar, &[], NOW).await?;
    let inline = NewNar { listing: StoredListing::Inline(vec![1]), ..new_nar(1, &rows) };
    commit(&index, cache, source(inline), CommitTarget::Object(object(1))).await?;
    assert_eq!(index.find_listing(nar).await?, Some(StoredListing::Inline(vec![1])));
    Ok(())
}

pub(super) async fn a_lost_listing_makes_the_next_push_store_the_nar_again(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let rows = index.commit_pack(&pack(1, 0..4)).await?;
    let chunked = NewNar {
        listing: StoredListing::Chunks { recipe: recipe(&rows[2..]), size: 5 },
        ..new_nar(1, &rows)
    };
    let nar =
        committed(&commit(&index, cache, source(chunked.clone()), CommitTarget::Object(object(1))).await?);
    index.mark_listing_lost(nar, &[rows[3].number], NOW).await?;

    assert_eq!(index.find_listing(nar).await?, None);
    let found = index.find_object(cache, &path_hash(1)).await?.expect("the NAR itself is sound");
    assert!(!found.nar.damaged);
    let whole = index.find_nar_in_cache(cache, &NarQuery::Hash(nar_hash(1)), NOW).await?.expect("as said");
    assert!(!whole.damaged);
    assert!(
        index.find_nar(&nar_hash(1)).await?.expect("there").damaged,
        "for a pusher that could store it again"
    );
    assert_eq!(index.present_objects(cache, &[path_hash(1)]).await?, []);
    let ids = rows.iter().map(|row| row.id).collect::<Vec<_>>();
    let reusable: Vec<bool> = index.find_chunks(&ids).await?.iter().map(Option::is_some).collect();
    assert_eq!(reusable, [true, true, true, false]);
    let again = commit(&index, cache, NarSource::Known(nar), alias("f")).await?;
    assert_eq!(again, CommitOutcome::Committed(nar), "it can still be named");

    index.commit_pack(&pack(2, [3])).await?;
    let healed = commit(&index, cache, source(chunked.clone()), CommitTarget::Object(object(1))).await?;
    assert_eq!(healed, CommitOutcome::Committed(nar));
    assert_eq!(index.find_listing(nar).await?, Some(chunked.listing));
    assert!(!index.find_nar(&nar_hash(1)).await?.expect("there").damaged);
    assert_eq!(index.present_objects(cache, &[path_hash(1)]).await?.len(), 1);
    Ok(())
}

pub(super) async fn a_corrected_encoding_is_told_to_every_cache(index: Subject) -> Result<()> {
    let (a, b) = (cache(&index, "a").await?, cache(&index, "b").await?);
    let nar = push_object(&index, a, 1).await?;
    commit(&index, b, NarSource::Known(nar), CommitTarget::Object(object(2))).await?;
    let before = outbox(&index).await?.last().expect("two commits").position;
    index.update_encoding(nar, &tag(9), 4321, NOW).await?;
    let found = index.find_object(b, &path_hash(2)).await?.expect("there").nar;
    assert_eq!((found.tag, found.file_size, found.size), (tag(9), 4321, 10_001));
    let told = outbox_since(&index, before).await?;
    assert_eq!(told.len(), 2);
    assert!(told.iter().all(|row| row.at == NOW));
    assert!(matches!(index.update_encoding(NarId(9999), &tag(9), 1, NOW).await, Err(Error::NarGone)));
    Ok(())
}

pub(super) async fn a_commit_costs_at_most_eight_statements(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let rows = index.commit_pack(&pack(1, 0..100)).await?;
    let nar = source(new_nar(1, &rows));
    for target in
        [CommitTarget::Object(object(1)), CommitTarget::ObjectIfSame(signed_object(1, &["a:1"])), alias("f")]
    {
        let before = index.statement_count();
        commit(&index, cache, nar.clone(), target).await?;
        let count = index.statement_count() - before;
        assert!((2..=8).contains(&count), "{count} statements");
    }
    Ok(())
}
