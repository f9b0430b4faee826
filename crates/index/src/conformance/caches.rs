//! Settings, caches and their keys.

use super::fixtures::{
    NOW, Subject, alias, cache, commit, key, nar_hash, new_cache, object, outbox, path_hash, push,
    push_object,
};
use crate::{
    CACHE_KEYS_MAX, CacheId, CachePatch, CacheSelection, CacheTotals, CacheVisibility, CommitTarget, Error,
    MASTER_KEY_PROOF, NarQuery, NarSource, NewCache, PREVIOUS_KEY_PROOF, Removal, Result, SealedKey,
};

pub(super) async fn a_setting_is_created_once(index: Subject) -> Result<()> {
    assert_eq!(index.find_setting("secret").await?, None);
    assert_eq!(index.create_setting("secret", b"one\0").await?, b"one\0");
    assert_eq!(index.create_setting("secret", b"two").await?, b"one\0");
    assert_eq!(index.find_setting("secret").await?.as_deref(), Some(&b"one\0"[..]));
    assert_eq!(index.find_setting("other").await?, None);
    Ok(())
}

pub(super) async fn the_master_keys_proof_is_replaced_once(index: Subject) -> Result<()> {
    let with =
        |name: &str, proof: &[u8]| NewCache { master_key_proof: Some(proof.to_vec()), ..new_cache(name) };
    // Without a proof in the database, any key may seal.
    index.create_cache(&with("first", b"old")).await?;
    index.create_setting(MASTER_KEY_PROOF, b"old").await?;
    let cache = index.create_cache(&with("second", b"old")).await?;
    let refused = index.begin_rekey(b"other", b"new").await;
    assert!(matches!(refused, Err(Error::MasterKeyReplaced)), "{refused:?}");
    index.begin_rekey(b"old", b"new").await?;
    assert_eq!(index.find_setting(MASTER_KEY_PROOF).await?.as_deref(), Some(&b"new"[..]));
    assert_eq!(index.find_setting(PREVIOUS_KEY_PROOF).await?.as_deref(), Some(&b"old"[..]));
    // Nothing that the old key sealed comes after it.
    let refused = index.create_cache(&with("third", b"old")).await;
    assert!(matches!(refused, Err(Error::MasterKeyReplaced)), "{refused:?}");
    assert_eq!(index.find_cache("third").await?, None);
    let patch = |proof: &[u8]| CachePatch {
        replace_keys: Some(key("late")),
        master_key_proof: Some(proof.to_vec()),
        ..CachePatch::default()
    };
    let refused = index.update_cache(cache, &patch(b"old"), NOW).await;
    assert!(matches!(refused, Err(Error::MasterKeyReplaced)), "{refused:?}");
    assert_eq!(index.find_cache("second").await?.expect("it is there").keys.len(), 1);
    index.update_cache(cache, &patch(b"new"), NOW).await?;
    // One replacement at a time.
    let refused = index.begin_rekey(b"new", b"newer").await;
    assert!(matches!(refused, Err(Error::MasterKeyReplaced)), "{refused:?}");
    assert_eq!(index.find_setting(MASTER_KEY_PROOF).await?.as_deref(), Some(&b"new"[..]));
    index.end_rekey().await?;
    index.end_rekey().await?;
    assert_eq!(index.find_setting(PREVIOUS_KEY_PROOF).await?, None);
    index.begin_rekey(b"new", b"newer").await
}

pub(super) async fn sealed_keys_are_listed_and_replaced_in_pages(index: Subject) -> Result<()> {
    for name in ["a", "b"] {
        let id = cache(&index, name).await?;
        let patch = CachePatch { replace_keys: Some(key(&format!("{name}-2"))), ..CachePatch::default() };
        index.update_cache(id, &patch, NOW).await?;
    }
    let mut keys: Vec<SealedKey> = Vec::new();
    loop {
        let page = index.list_sealed_keys(keys.last().map(|key| key.place), 3).await?;
        assert!(page.len() <= 3);
        if page.is_empty() {
            break;
        }
        keys.extend(page);
    }
    assert_eq!(keys.len(), 4, "the retired ones too");
    assert!(keys.iter().all(|key| !key.sealed_secret.is_empty() && key.public_key.contains(':')));
    let stale = SealedKey { sealed_secret: b"changed meanwhile".to_vec(), ..keys[1].clone() };
    let changes = [(keys[0].clone(), b"anew".to_vec()), (stale, b"never".to_vec())];
    index.replace_sealed_keys(&changes).await?;
    let after = index.list_sealed_keys(None, 100).await?;
    assert_eq!(after[0].sealed_secret, b"anew");
    assert_eq!(after[1..], keys[1..]);
    Ok(())
}

pub(super) async fn a_cache_comes_back_as_it_was_created(index: Subject) -> Result<()> {
    let new = new_cache("main");
    let id = index.create_cache(&new).await?;
    let found = index.find_cache("main").await?.expect("it was created");
    assert_eq!(found.id, id);
    assert_eq!(found.name, new.name);
    assert_eq!(found.is_public, new.is_public);
    assert_eq!(found.store_dir, new.store_dir);
    assert_eq!(found.priority, new.priority);
    assert_eq!(found.upstream_cache_key_names, new.upstream_cache_key_names);
    assert_eq!(found.retention_seconds, None);
    assert_eq!(found.keys, [new.key]);
    assert_eq!(found.created_at, NOW);
    assert_eq!(index.find_cache("Main").await?, None);
    assert_eq!(index.find_cache("").await?, None);
    Ok(())
}

pub(super) async fn a_name_is_taken_until_its_cache_is_deleted(index: Subject) -> Result<()> {
    let first = cache(&index, "main").await?;
    let taken = cache(&index, "main").await;
    assert!(matches!(&taken, Err(Error::CacheExists { name }) if name == "main"), "{taken:?}");
    assert_eq!(index.find_cache("main").await?.expect("the first").keys.len(), 1);
    index.delete_cache(first, None, NOW).await?;
    assert_eq!(index.find_cache("main").await?, None);
    assert_eq!(index.list_caches().await?, []);
    let second = cache(&index, "main").await?;
    assert_ne!(first, second);
    assert_eq!(index.find_cache("main").await?.map(|found| found.id), Some(second));
    Ok(())
}

pub(super) async fn caches_are_listed_by_name(index: Subject) -> Result<()> {
    assert_eq!(index.list_caches().await?, []);
    for name in ["b", "c", "a"] {
        cache(&index, name).await?;
    }
    let listed = index.list_caches().await?;
    assert_eq!(listed.iter().map(|cache| cache.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    for (after, limit, page) in
        [("", 2, &listed[..2]), ("", 9, &listed[..]), ("b", 2, &listed[2..]), ("c", 2, &[])]
    {
        assert_eq!(
            index.list_caches_after(after, CacheSelection::All, limit).await?,
            page,
            "{limit} after {after:?}"
        );
    }
    let mut public = Vec::new();
    for found in listed {
        assert_eq!(Some(&found), index.find_cache(&found.name).await?.as_ref());
        let expected = Some(&found).filter(|found| found.is_public);
        assert_eq!(index.find_public_cache(&found.name).await?.as_ref(), expected);
        public.extend(expected.cloned());
    }
    assert_eq!(index.list_caches_after("", CacheSelection::Public, 9).await?, public);
    Ok(())
}

pub(super) async fn a_list_has_what_its_patterns_allow(index: Subject) -> Result<()> {
    for name in ["a_b", "axb", "public", "team-a", "team-b", "team-b-old", "Team-a", "x+y"] {
        let id = cache(&index, name).await?;
        let patch = CachePatch { is_public: Some(name == "public"), ..CachePatch::default() };
        index.update_cache(id, &patch, NOW).await?;
    }
    let before = index.statement_count();
    for (patterns, after, expected) in [
        (&[][..], "", &["public"][..]),
        (&[("team-*", true)], "", &["public", "team-a", "team-b", "team-b-old"]),
        (&[("team-*", true)], "team-a", &["team-b", "team-b-old"]),
        (&[("*", true)], "public", &["team-a", "team-b", "team-b-old", "x+y"]),
        (&[("team-b", true)], "", &["public", "team-b"]),
        (&[("a_b", true), ("x+*", true)], "", &["a_b", "public", "x+y"]),
        // The first that fits decides.
        (&[("team-b*", false), ("*a", true), ("team-*", true)], "", &["Team-a", "public", "team-a"]),
        (&[("team-b*", false), ("*", true), ("team-b", true)], "team-a", &["team-b", "x+y"]),
        (&[("public", false), ("*-*-*", true)], "", &["public", "team-b-old"]),
    ] {
        let found = index.list_caches_after(after, CacheSelection::Allowed(patterns), 9).await?;
        let names: Vec<&str> = found.iter().map(|cache| cache.name.as_str()).collect();
        assert_eq!(names, expected, "{patterns:?} after {after:?}");
        assert!(found.iter().all(|cache| cache.keys.len() == 1), "{found:?}");
        let first = index.list_caches_after(after, CacheSelection::Allowed(patterns), 1).await?;
        assert_eq!(first, found[..1]);
    }
    assert!(
        index.statement_count() - before <= 3 * 18,
        "a statement for each list, in a transaction if need be"
    );
    Ok(())
}

pub(super) async fn a_patch_changes_what_it_names_and_nothing_else(index: Subject) -> Result<()> {
    let id = cache(&index, "main").await?;
    let other = cache(&index, "other").await?;
    let mut expected = index.find_cache("main").await?.expect("created");
    index.update_cache(id, &CachePatch::default(), NOW).await?;
    assert_eq!(index.find_cache("main").await?.as_ref(), Some(&expected));

    let patch =
        CachePatch { is_public: Some(true), retention_seconds: Some(Some(5)), ..CachePatch::default() };
    let patch = CachePatch { quota_bytes: Some(Some(6)), keep_latest: Some(Some(7)), ..patch };
    index.update_cache(id, &patch, NOW).await?;
    expected.is_public = true;
    expected.retention_seconds = Some(5);
    (expected.quota_bytes, expected.keep_latest) = (Some(6), Some(7));
    assert_eq!(index.find_public_cache("main").await?.as_ref(), Some(&expected));
    assert_eq!(index.list_caches_after("", CacheSelection::Public, 9).await?, [expected.clone()]);
    assert_eq!(index.find_cache("main").await?.as_ref(), Some(&expected));

    let patch = CachePatch {
        master_key_proof: None,
        is_public: Some(false),
        store_dir: Some("/gnu/store".to_owned()),
        priority: Some(-3),
        upstream_cache_key_names: Some(Vec::new()),
        retention_seconds: Some(None),
        quota_bytes: Some(None),
        keep_latest: Some(None),
        replace_keys: None,
        allow_replacement: Some(true),
    };
    index.update_cache(id, &patch, NOW).await?;
    expected.is_public = false;
    "/gnu/store".clone_into(&mut expected.store_dir);
    expected.priority = -3;
    expected.upstream_cache_key_names = Vec::new();
    expected.retention_seconds = None;
    (expected.quota_bytes, expected.keep_latest) = (None, None);
    expected.allow_replacement = true;
    assert_eq!(index.find_public_cache("main").await?, None, "it is private now");
    assert_eq!(index.find_cache("main").await?.as_ref(), Some(&expected));
    let untouched = index.find_cache("other").await?.expect("created");
    assert_eq!((untouched.id, untouched.priority), (other, 41));
    Ok(())
}

pub(super) async fn replaced_keys_stay_listed(index: Subject) -> Result<()> {
    let id = cache(&index, "main").await?;
    for name in ["second", "third"] {
        let patch = CachePatch { replace_keys: Some(key(name)), ..CachePatch::default() };
        index.update_cache(id, &patch, NOW).await?;
    }
    let keys = index.find_cache("main").await?.expect("created").keys;
    let states: Vec<_> = keys.iter().map(|key| (key.sealed_secret.as_slice(), key.active)).collect();
    assert_eq!(states, [(&b"main"[..], false), (b"second", false), (b"third", true)]);
    Ok(())
}

pub(super) async fn a_cache_with_all_its_keys_forgets_the_oldest(index: Subject) -> Result<()> {
    let id = cache(&index, "main").await?;
    let other = cache(&index, "other").await?;
    let keys_max = usize::try_from(CACHE_KEYS_MAX).expect("a small number");
    let mut newest = Vec::new();
    for number in 0..keys_max + 3 {
        let key = key(&format!("main-{number}"));
        newest.push(key.public_key.clone());
        let patch = CachePatch { replace_keys: Some(key), ..CachePatch::default() };
        index.update_cache(id, &patch, NOW).await?;
        let keys = index.find_cache("main").await?.expect("it was created").keys;
        assert_eq!(keys.len(), keys_max.min(number + 2));
        assert_eq!(keys.iter().filter(|key| key.active).count(), 1);
    }
    let keys = index.find_cache("main").await?.expect("it was created").keys;
    let listed: Vec<&String> = keys.iter().map(|key| &key.public_key).collect();
    assert_eq!(listed, newest[3..].iter().collect::<Vec<_>>());
    assert!(keys.last().is_some_and(|key| key.active));
    assert_eq!(
        index.list_caches().await?.iter().find(|cache| cache.id == other).map(|cache| cache.keys.len()),
        Some(1)
    );
    Ok(())
}

pub(super) async fn a_cache_that_is_gone_takes_no_change(index: Subject) -> Result<()> {
    let gone = cache(&index, "main").await?;
    index.delete_cache(gone, None, NOW).await?;
    let written = outbox(&index).await?.len();
    for id in [gone, CacheId(9999)] {
        let patch =
            CachePatch { is_public: Some(true), replace_keys: Some(key("k")), ..CachePatch::default() };
        assert!(matches!(index.update_cache(id, &patch, NOW).await, Err(Error::CacheGone)));
        index.delete_cache(id, None, NOW).await?;
    }
    assert_eq!(outbox(&index).await?.len(), written, "nothing changed");
    Ok(())
}

pub(super) async fn a_cache_with_objects_keeps_its_store_folder(index: Subject) -> Result<()> {
    let id = cache(&index, "main").await?;
    let store_dir = |store_dir: &str| CachePatch {
        store_dir: Some(store_dir.to_owned()),
        priority: Some(7),
        ..CachePatch::default()
    };
    index.update_cache(id, &store_dir("/gnu/store"), NOW).await?;
    push_object(&index, id, 1).await?;
    let written = outbox(&index).await?.len();
    let patch = CachePatch { priority: Some(8), ..store_dir("/nix/store") };
    assert!(matches!(index.update_cache(id, &patch, NOW).await, Err(Error::CacheNotEmpty)));
    let found = index.find_cache("main").await?.expect("there");
    assert_eq!((found.store_dir.as_str(), found.priority), ("/gnu/store", 7), "nothing of it changed");
    assert_eq!(outbox(&index).await?.len(), written);
    let same = CachePatch { priority: Some(8), ..store_dir("/gnu/store") };
    index.update_cache(id, &same, NOW).await?;
    index.remove_object(id, &path_hash(1), Removal::ForCause, NOW).await?;
    index.update_cache(id, &store_dir("/nix/store"), NOW).await
}

pub(super) async fn deleting_a_cache_takes_its_contents(index: Subject) -> Result<()> {
    let (id, other) = (cache(&index, "main").await?, cache(&index, "other").await?);
    let nar = push_object(&index, id, 1).await?;
    push_object(&index, id, 2).await?;
    index.remove_object(id, &path_hash(2), crate::Removal::WithGraceUntil(NOW + 100), NOW).await?;
    push(&index, id, 3, alias("f.nar.xz")).await?;
    commit(&index, other, NarSource::Known(nar), CommitTarget::Object(object(1))).await?;

    index.delete_cache(id, None, NOW).await?;
    assert_eq!(index.find_object(id, &path_hash(1)).await?, None);
    assert_eq!(index.present_objects(id, &[path_hash(1)]).await?, []);
    for number in 1..=3 {
        assert_eq!(index.find_nar_in_cache(id, &NarQuery::Hash(nar_hash(number)), NOW).await?, None);
    }
    assert_eq!(index.find_nar_in_cache(id, &NarQuery::StorePath(path_hash(1)), NOW).await?, None);
    assert_eq!(index.find_alias(id, "f.nar.xz", 0).await?, None);
    assert_eq!(index.cache_totals(id).await?, CacheTotals::default());
    assert!(index.find_object(other, &path_hash(1)).await?.is_some(), "the other cache keeps its own");
    Ok(())
}

pub(super) async fn a_cache_created_again_is_empty(index: Subject) -> Result<()> {
    let first = cache(&index, "main").await?;
    let nar = push_object(&index, first, 1).await?;
    index.delete_cache(first, None, NOW).await?;
    let second = cache(&index, "main").await?;
    assert_eq!(index.find_object(second, &path_hash(1)).await?, None);
    commit(&index, second, NarSource::Known(nar), CommitTarget::Object(object(1))).await?;
    assert!(index.find_object(second, &path_hash(1)).await?.is_some());
    assert_eq!(index.present_objects(second, &[path_hash(1)]).await?, [(path_hash(1), NOW)]);
    assert_eq!(index.find_object(first, &path_hash(1)).await?, None);
    Ok(())
}

pub(super) async fn totals_count_the_objects_of_one_cache(index: Subject) -> Result<()> {
    let (id, other) = (cache(&index, "main").await?, cache(&index, "other").await?);
    assert_eq!(index.cache_totals(id).await?, CacheTotals::default());
    push_object(&index, id, 1).await?;
    let nar = push_object(&index, id, 2).await?;
    commit(&index, id, NarSource::Known(nar), CommitTarget::Object(object(3))).await?;
    push_object(&index, other, 4).await?;
    push(&index, id, 5, alias("a")).await?;
    let totals = index.cache_totals(id).await?;
    assert_eq!(totals, CacheTotals { object_count: 3, nar_bytes: 10_001 + 10_002 + 10_002 });
    Ok(())
}

pub(super) async fn visibilities_outlive_their_caches(index: Subject) -> Result<()> {
    assert_eq!(index.list_visibilities().await?, []);
    let gone = cache(&index, "gone").await?;
    let public = CachePatch { is_public: Some(true), ..CachePatch::default() };
    let shown = cache(&index, "shown").await?;
    index.update_cache(shown, &public, NOW).await?;
    index.delete_cache(gone, None, NOW).await?;
    let again = cache(&index, "gone").await?;
    let visibility = |name: &str, is_public| CacheVisibility { name: name.to_owned(), is_public };
    assert_eq!(index.list_visibilities().await?, [visibility("gone", false), visibility("shown", true)]);
    index.update_cache(again, &public, NOW).await?;
    let all = [visibility("gone", false), visibility("gone", true), visibility("shown", true)];
    assert_eq!(index.list_visibilities().await?, all, "what the first one held was never public");
    Ok(())
}

pub(super) async fn changes_of_a_cache_are_in_the_outbox(index: Subject) -> Result<()> {
    let id = cache(&index, "main").await?;
    let patch = CachePatch { priority: Some(1), ..CachePatch::default() };
    index.update_cache(id, &patch, NOW + 1).await?;
    index.delete_cache(id, None, NOW + 2).await?;
    let rows = outbox(&index).await?;
    let rows: Vec<_> = rows.iter().map(|row| (row.cache, row.store_path_hash, row.at)).collect();
    assert_eq!(rows, [(id, None, NOW + 1), (id, None, NOW + 2)]);
    Ok(())
}
