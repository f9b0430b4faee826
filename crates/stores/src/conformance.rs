//! What a [`Store`] promises, as code: it runs on memory, on a folder and on real servers, with and
//! without a policy.
//!
//! Each case panics with what is wrong. The store is left as the last case leaves it.

use std::future::Future;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::GetRange;

use crate::{Error, FileEntry, FileKind, Opened, Result, Store, Stored};

/// Runs every case on an empty store.
pub async fn run(store: &Store) {
    Box::pin(case("an empty store has nothing", an_empty_store_has_nothing(store))).await;
    // Before the uploads that are dropped: their parts are still being aborted when a call returns.
    case("calls are counted", calls_are_counted(store)).await;
    Box::pin(case("parts are one object", parts_are_one_object(store))).await;
    Box::pin(case("a second put replaces the first", a_second_put_replaces_the_first(store))).await;
    Box::pin(case("a file is created once", a_file_is_created_once(store))).await;
    Box::pin(case("a deleted object is gone, twice too", a_deleted_object_is_gone(store))).await;
    Box::pin(case("a listing is of one folder", a_listing_is_of_one_folder(store))).await;
    Box::pin(case("a listing is in the order of names", a_listing_is_in_the_order_of_names(store))).await;
    Box::pin(case("pages are a listing in order", pages_are_a_listing_in_order(store))).await;
    Box::pin(case("a listing tells what a put told", a_listing_tells_what_a_put_told(store))).await;
    Box::pin(case("a range is read up to the end", a_range_is_read_up_to_the_end(store))).await;
    Box::pin(case("a stream is what was asked for", a_stream_is_what_was_asked_for(store))).await;
    Box::pin(case("a large object arrives whole", a_large_object_arrives_whole(store))).await;
    Box::pin(case("an aborted upload leaves nothing", an_aborted_upload_leaves_nothing(store))).await;
    Box::pin(case("a dropped upload leaves nothing", a_dropped_upload_leaves_nothing(store))).await;
}

async fn case(name: &str, outcome: impl Future<Output = Result<()>>) {
    if let Err(error) = outcome.await {
        panic!("{name}: {error:?}");
    }
}

/// Bytes that differ at every place, so that a shifted read shows.
fn pattern(len: usize) -> Bytes {
    (0..len).map(|place| (place.wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0]).collect()
}

fn kind() -> FileKind {
    FileKind { content_type: "application/zstd", cache_control: "public, max-age=31536000".to_owned() }
}

async fn put(store: &Store, name: &str, content: &Bytes) -> Result<Stored> {
    store.put(name, &kind(), [content.clone()]).await
}

async fn listed(store: &Store, folder: &str) -> Result<Vec<FileEntry>> {
    store.list(folder).try_collect().await
}

async fn names(store: &Store, folder: &str) -> Result<Vec<String>> {
    store.list(folder).map_ok(|entry| entry.name).try_collect().await
}

async fn an_empty_store_has_nothing(store: &Store) -> Result<()> {
    let name = "main/nix-cache-info";
    assert_eq!(store.get(name).await?, None);
    assert_eq!(store.head(name).await?, None);
    assert!(store.open_object(name, None).await?.is_none());
    assert!(store.open_object(name, Some(GetRange::Bounded(0..1))).await?.is_none());
    assert!(matches!(store.get_up_to(name, 0..1).await, Err(Error::NotFound { .. })));
    assert_eq!(listed(store, "main").await?, []);
    assert!(!store.any_of_first("main", 1_000, |_| true).await?);
    Ok(())
}

async fn parts_are_one_object(store: &Store) -> Result<()> {
    let whole = pattern(300_000);
    let parts = [0..0, 0..1, 1..70_000, 70_000..70_000, 70_000..300_000].map(|range| whole.slice(range));
    store.put("parts/nar/a.nar.zst", &kind(), parts).await?;
    assert!(store.get("parts/nar/a.nar.zst").await?.as_ref() == Some(&whole), "other bytes");
    assert_eq!(store.head("parts/nar/a.nar.zst").await?.map(|meta| meta.size), Some(300_000));
    store.put("parts/empty", None, []).await?;
    assert_eq!(store.get("parts/empty").await?, Some(Bytes::new()));
    assert_eq!(store.head("parts/empty").await?.map(|meta| meta.size), Some(0));
    Ok(())
}

async fn a_second_put_replaces_the_first(store: &Store) -> Result<()> {
    let first = put(store, "replaced/file", &pattern(5_000)).await?;
    let second = put(store, "replaced/file", &pattern(3_000)).await?;
    assert!(store.get("replaced/file").await? == Some(pattern(3_000)), "other bytes");
    assert!(first.etag.is_none() || first.etag != second.etag, "{first:?}, {second:?}");
    Ok(())
}

async fn a_file_is_created_once(store: &Store) -> Result<()> {
    let (first, second) = (pattern(10), pattern(11));
    store.create("created/file", &kind(), first.clone()).await?;
    assert_eq!(store.get("created/file").await?, Some(first.clone()));
    let kept = store.head("created/file").await?.and_then(|meta| meta.cache_control);
    assert_eq!(kept, (!store.is_folder()).then(|| kind().cache_control));
    store.create("created/file", &kind(), second.clone()).await?;
    let now = store.get("created/file").await?;
    // Some servers know no condition, and tell nobody.
    assert!(now == Some(first) || store.is_remote() && now == Some(second), "{now:?}");
    Ok(())
}

async fn a_deleted_object_is_gone(store: &Store) -> Result<()> {
    put(store, "deleted/file", &pattern(10)).await?;
    put(store, "deleted/other", &pattern(11)).await?;
    store.delete("deleted/file").await?;
    store.delete("deleted/file").await?;
    store.delete("deleted/never/there").await?;
    assert_eq!(store.get("deleted/file").await?, None);
    assert_eq!(store.head("deleted/file").await?, None);
    assert_eq!(names(store, "deleted").await?, ["deleted/other"]);
    Ok(())
}

async fn a_listing_is_of_one_folder(store: &Store) -> Result<()> {
    let own = ["folder/a", "folder/nar/b", "folder/nar/c"];
    for name in own.iter().chain(&["folder-2/a", "folde/a", "other/folder/a"]) {
        put(store, name, &pattern(name.len())).await?;
    }
    assert_eq!(names(store, "folder").await?, own);
    assert!(names(store, "").await?.contains(&"folder-2/a".to_owned()));
    assert!(store.any_of_first("folder", 1_000, |name| name.ends_with("/c")).await?);
    assert!(!store.any_of_first("folder", 2, |name| name.ends_with("/c")).await?);
    Ok(())
}

async fn a_listing_is_in_the_order_of_names(store: &Store) -> Result<()> {
    let names_of = |number: usize| match number % 3 {
        0 => format!("ordered/{number:05}.narinfo"),
        1 => format!("ordered/nar/{number:05}.nar.zst"),
        _ => format!("ordered/zz{number:05}"),
    };
    let mut all: Vec<String> = (0..120).map(|number| names_of(number * 7_919 % 120)).collect();
    futures::stream::iter(all.clone())
        .map(|name| async move { store.put(&name, None, ["x".into()]).await })
        .buffer_unordered(8)
        .try_collect::<Vec<_>>()
        .await?;
    all.sort_unstable();
    assert_eq!(names(store, "ordered").await?, all);
    Ok(())
}

/// Of what the last case left.
async fn pages_are_a_listing_in_order(store: &Store) -> Result<()> {
    let all = listed(store, "ordered").await?;
    for limit in [1, 7, 40, 120, 121] {
        let mut found: Vec<FileEntry> = Vec::new();
        loop {
            let after = found.last().map(|entry| entry.name.clone());
            let page = store.list_page("ordered", after.as_deref(), limit).await?;
            assert!(page.len() <= limit && (page.len() == limit || found.len() + page.len() == all.len()));
            if page.is_empty() {
                break;
            }
            found.extend(page);
        }
        assert_eq!(found, all, "{limit} a page");
    }
    assert_eq!(store.list_page("ordered", Some("ordered/zzz"), 10).await?, []);
    Ok(())
}

async fn a_listing_tells_what_a_put_told(store: &Store) -> Result<()> {
    for size in [0, 1, 100_000] {
        let stored = put(store, "told/file", &pattern(size)).await?;
        let [entry] = &listed(store, "told").await?[..] else { panic!("one object is there") };
        assert_eq!((entry.name.as_str(), entry.size), ("told/file", size as u64));
        assert_tags_agree(entry, &stored);
    }
    Ok(())
}

/// A store may give no tag. If it gives one and a listing gives another one, the object is damaged.
fn assert_tags_agree(entry: &FileEntry, stored: &Stored) {
    if let Some(etag) = &stored.etag {
        assert_eq!(entry.etag.as_ref(), Some(etag));
    }
}

async fn a_range_is_read_up_to_the_end(store: &Store) -> Result<()> {
    let whole = pattern(100_000);
    put(store, "ranges/file", &whole).await?;
    for (start, end) in [(0, 10), (0, 100_000), (0, 131_072), (99_999, 5_000_000), (70_000, 100_001)] {
        let got = store.get_up_to("ranges/file", start as u64..end as u64).await?;
        assert!(got == whole[start..end.min(100_000)], "range {start}..{end} has other bytes");
    }
    store.put("ranges/empty", None, []).await?;
    for (name, range) in [("ranges/file", 100_000..100_001), ("ranges/empty", 0..1)] {
        let got = store.get_up_to(name, range.clone()).await;
        assert!(matches!(got, Err(Error::Truncated { .. })), "{name} {range:?}: {got:?}");
    }
    Ok(())
}

async fn a_stream_is_what_was_asked_for(store: &Store) -> Result<()> {
    let whole = pattern(1_000_000);
    put(store, "streams/file", &whole).await?;
    let told = store.head("streams/file").await?.expect("it is there");
    let ranges = [
        (None, 0..1_000_000),
        (Some(GetRange::Bounded(5..900_000)), 5..900_000),
        (Some(GetRange::Bounded(999_999..2_000_000)), 999_999..1_000_000),
        (Some(GetRange::Offset(400_000)), 400_000..1_000_000),
        (Some(GetRange::Suffix(7)), 999_993..1_000_000),
        (Some(GetRange::Suffix(2_000_000)), 0..1_000_000),
    ];
    for (range, expected) in ranges {
        let opened = store.open_object("streams/file", range.clone()).await?;
        let Some(Opened::Found(meta, bytes)) = opened else { panic!("{range:?}: {opened:?}") };
        assert_eq!(meta, told, "{range:?}");
        let bytes: Vec<Bytes> = bytes.try_collect().await.expect("nothing breaks");
        assert!(bytes.concat() == whole[expected], "{range:?} has other bytes");
    }
    for range in [GetRange::Bounded(1_000_000..1_000_001), GetRange::Offset(1_000_000)] {
        let opened = store.open_object("streams/file", Some(range.clone())).await?;
        assert!(matches!(opened, Some(Opened::Outside(meta)) if meta == told), "{range:?}");
    }
    Ok(())
}

async fn a_large_object_arrives_whole(store: &Store) -> Result<()> {
    let whole = pattern(40_000_000);
    let mut upload = store.begin_upload("large/nar/a", &kind(), whole.len() as u64).await?;
    for part in whole.chunks(upload.part_bytes()) {
        // Of pieces, as they come from the engine.
        let (first, second) = part.split_at(part.len() / 3);
        upload.put_part([whole.slice_ref(first), whole.slice_ref(second)]).await?;
    }
    assert_eq!(store.get("large/nar/a").await?, None, "there before it is finished");
    assert_eq!(listed(store, "large").await?, [], "listed before it is finished");
    let stored = upload.finish().await?;
    assert!(store.get("large/nar/a").await?.as_ref() == Some(&whole), "other bytes");
    let [entry] = &listed(store, "large").await?[..] else { panic!("one object is there") };
    assert_eq!(entry.size, whole.len() as u64);
    assert_tags_agree(entry, &stored);
    Ok(())
}

async fn an_aborted_upload_leaves_nothing(store: &Store) -> Result<()> {
    let mut upload = store.begin_upload("aborted/a", &kind(), 40_000_000).await?;
    upload.put_part([pattern(upload.part_bytes())]).await?;
    upload.abort().await;
    assert_eq!(store.get("aborted/a").await?, None);
    assert_eq!(listed(store, "aborted").await?, []);
    Ok(())
}

async fn a_dropped_upload_leaves_nothing(store: &Store) -> Result<()> {
    let mut upload = store.begin_upload("dropped/a", &kind(), 40_000_000).await?;
    upload.put_part([pattern(upload.part_bytes())]).await?;
    drop(upload);
    assert_eq!(store.get("dropped/a").await?, None);
    assert_eq!(listed(store, "dropped").await?, []);
    Ok(())
}

async fn calls_are_counted(store: &Store) -> Result<()> {
    let (writes, listings) = store.requests();
    put(store, "counted/file", &pattern(10)).await?;
    store.delete("counted/file").await?;
    listed(store, "counted").await?;
    let after = store.requests();
    assert_eq!((after.0 - writes, after.1 > listings), (2, true));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CallPolicy, RetryPolicy};

    #[tokio::test(flavor = "multi_thread")]
    async fn memory_meets_the_contract_with_and_without_a_policy() {
        run(&Store::in_memory()).await;
        let policy = CallPolicy { retries: RetryPolicy::default(), requests_max: Some(3), turn_wait: None };
        run(&Store::in_memory().with_policy(&policy).in_parts_of(1024 * 1024)).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_folder_meets_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        // Names that URLs escape.
        run(&Store::folder(folder.path().join("a b/c%20d/ü")).unwrap()).await;
        run(&Store::existing_folder(folder.path()).unwrap().in_parts_of(1024 * 1024)).await;
    }

    #[tokio::test]
    async fn a_missing_folder_is_not_a_missing_file() {
        let folder = tempfile::tempdir().unwrap();
        let (root, away) = (folder.path().join("root"), folder.path().join("away"));
        assert!(matches!(Store::existing_folder(&root), Err(crate::OpenError::Folder { .. })));
        std::fs::create_dir(&root).unwrap();
        let store = Store::existing_folder(&root).unwrap();
        assert_eq!(store.get("main/x").await.unwrap(), None);
        std::fs::rename(&root, &away).unwrap();
        for error in [
            store.get("main/x").await.unwrap_err(),
            store.head("main/x").await.unwrap_err(),
            store.open_object("main/x", None).await.unwrap_err(),
            store.open_object("main/x", Some(GetRange::Suffix(1))).await.unwrap_err(),
        ] {
            assert!(matches!(error, Error::FolderGone { .. }), "{error:?}");
        }
    }
}
