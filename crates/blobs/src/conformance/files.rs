//! What the contract of [`Files`] promises, as code: every adapter runs it on an empty tree.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{case, pattern};
use crate::Result;
use crate::files::{FileEntry, FileKind, Files, Stored};

/// Runs every case on an empty tree.
pub async fn run(files: &dyn Files) {
    case("an empty tree has nothing", an_empty_tree_has_nothing(files)).await;
    case("parts are one file", parts_are_one_file(files)).await;
    case("a second put replaces the first", a_second_put_replaces_the_first(files)).await;
    case("a deleted file is gone, twice too", a_deleted_file_is_gone(files)).await;
    case("a listing is of one folder", a_listing_is_of_one_folder(files)).await;
    case("a listing tells what a put told", a_listing_tells_what_a_put_told(files)).await;
    case("a large file arrives whole", a_large_file_arrives_whole(files)).await;
    case("an upload that is given up leaves nothing", an_upload_given_up_leaves_nothing(files)).await;
    case("requests are counted", requests_are_counted(files)).await;
}

fn kind() -> FileKind {
    FileKind { content_type: "application/zstd", cache_control: "public, max-age=31536000".to_owned() }
}

async fn put(files: &dyn Files, name: &str, content: &Bytes) -> Result<Stored> {
    files.put(name, &kind(), vec![content.clone()]).await
}

async fn listed(files: &dyn Files, folder: &str) -> Result<BTreeMap<String, FileEntry>> {
    let mut found = BTreeMap::new();
    files
        .list(folder, &mut |entry| {
            let twice = found.insert(entry.name.clone(), entry);
            assert!(twice.is_none(), "listed twice: {twice:?}");
        })
        .await?;
    Ok(found)
}

async fn an_empty_tree_has_nothing(files: &dyn Files) -> Result<()> {
    assert_eq!(files.get("main/nix-cache-info").await?, None);
    assert_eq!(listed(files, "main").await?, BTreeMap::new());
    Ok(())
}

async fn parts_are_one_file(files: &dyn Files) -> Result<()> {
    let whole = pattern(300_000);
    let parts = [0..0, 0..1, 1..70_000, 70_000..70_000, 70_000..300_000].map(|range| whole.slice(range));
    files.put("parts/nar/a.nar.zst", &kind(), parts.to_vec()).await?;
    assert!(files.get("parts/nar/a.nar.zst").await?.as_ref() == Some(&whole), "other bytes");
    files.put("parts/empty", &kind(), Vec::new()).await?;
    assert_eq!(files.get("parts/empty").await?, Some(Bytes::new()));
    Ok(())
}

async fn a_second_put_replaces_the_first(files: &dyn Files) -> Result<()> {
    let first = put(files, "replaced/file", &pattern(5_000)).await?;
    let second = put(files, "replaced/file", &pattern(3_000)).await?;
    assert!(files.get("replaced/file").await? == Some(pattern(3_000)), "other bytes");
    assert!(first.etag.is_none() || first.etag != second.etag, "{first:?}, {second:?}");
    Ok(())
}

async fn a_deleted_file_is_gone(files: &dyn Files) -> Result<()> {
    put(files, "deleted/file", &pattern(10)).await?;
    put(files, "deleted/other", &pattern(11)).await?;
    files.delete("deleted/file").await?;
    files.delete("deleted/file").await?;
    files.delete("deleted/never/there").await?;
    assert_eq!(files.get("deleted/file").await?, None);
    assert_eq!(listed(files, "deleted").await?.into_keys().collect::<Vec<_>>(), ["deleted/other"]);
    Ok(())
}

async fn a_listing_is_of_one_folder(files: &dyn Files) -> Result<()> {
    let names = ["folder/a", "folder/nar/b", "folder/nar/c"];
    for name in names.iter().chain(&["folder-2/a", "folde/a", "other/folder/a"]) {
        put(files, name, &pattern(name.len())).await?;
    }
    assert_eq!(listed(files, "folder").await?.into_keys().collect::<Vec<_>>(), names);
    Ok(())
}

async fn a_listing_tells_what_a_put_told(files: &dyn Files) -> Result<()> {
    for size in [0, 1, 100_000] {
        let stored = put(files, "told/file", &pattern(size)).await?;
        let entry = listed(files, "told").await?.remove("told/file").expect("it is there");
        assert_eq!(entry.size, size as u64);
        assert_tags_agree(&entry, &stored);
    }
    Ok(())
}

/// A store may say nothing of a file. Else it is damaged when a listing says something else.
fn assert_tags_agree(entry: &FileEntry, stored: &Stored) {
    if let Some(etag) = &stored.etag {
        assert_eq!(entry.etag.as_ref(), Some(etag));
    }
}

/// Where one put takes everything, that is what takes it.
async fn a_large_file_arrives_whole(files: &dyn Files) -> Result<()> {
    let whole = pattern(40_000_000);
    let stored = if whole.len() as u64 > files.single_put_max() {
        let mut upload = files.begin_upload("large/nar/a", &kind(), whole.len() as u64).await?;
        for part in whole.chunks(upload.part_bytes()) {
            // Of pieces, as they come from the engine.
            let (first, second) = part.split_at(part.len() / 3);
            upload.put_part(vec![whole.slice_ref(first), whole.slice_ref(second)]).await?;
        }
        assert_eq!(files.get("large/nar/a").await?, None, "there before it is finished");
        assert_eq!(listed(files, "large").await?, BTreeMap::new(), "listed before it is finished");
        upload.finish().await?
    } else {
        put(files, "large/nar/a", &whole).await?
    };
    assert!(files.get("large/nar/a").await?.as_ref() == Some(&whole), "other bytes");
    let entry = listed(files, "large").await?.remove("large/nar/a").expect("it is there");
    assert_eq!(entry.size, whole.len() as u64);
    assert_tags_agree(&entry, &stored);
    Ok(())
}

async fn an_upload_given_up_leaves_nothing(files: &dyn Files) -> Result<()> {
    if files.single_put_max() == u64::MAX {
        return Ok(());
    }
    let mut upload = files.begin_upload("given-up/a", &kind(), 40_000_000).await?;
    upload.put_part(vec![pattern(upload.part_bytes())]).await?;
    upload.abort().await;
    assert_eq!(files.get("given-up/a").await?, None);
    assert_eq!(listed(files, "given-up").await?, BTreeMap::new());
    Ok(())
}

async fn requests_are_counted(files: &dyn Files) -> Result<()> {
    let (writes, listings) = files.requests();
    put(files, "counted/file", &pattern(10)).await?;
    files.delete("counted/file").await?;
    listed(files, "counted").await?;
    let after = files.requests();
    assert_eq!((after.0 - writes, after.1 > listings), (2, true));
    Ok(())
}
