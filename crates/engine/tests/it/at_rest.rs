//! A whole installation as the first version left it on disk is still read: database, packs, sealed
//! keys, packed columns, and listings in a row and in chunks.
//!
//! `tests/golden/v1` was written by version 0.1.0 on the first schema. It is never written again: a
//! later format gets a folder beside it.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::common::{decompress, engine_over, hash_of, listing, path, settings};
use dormer_blobs::LocalBlobs;
use dormer_index::{NarQuery, SqliteIndex, SqliteOptions};
use futures::TryStreamExt;

fn golden() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1"))
}

/// Opening migrates and locks, so a copy is opened.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_first_version_stored_is_still_served_and_signed_alike() {
    let folder = tempfile::tempdir().unwrap();
    copy(golden(), folder.path());
    let index =
        SqliteIndex::open(&folder.path().join("index.sqlite"), SqliteOptions::default()).await.unwrap();
    let blobs = LocalBlobs::open_existing(folder.path().join("store")).unwrap();
    let engine = engine_over(Arc::new(index), Arc::new(blobs), settings());
    let cache = engine.find_cache("main").await.unwrap().unwrap();
    assert_eq!((cache.priority, cache.keys.len()), (41, 1));

    for number in [1, 2] {
        let narinfo = engine.narinfo(&cache, &path(number).hash()).await.unwrap().unwrap();
        let expected = fs::read_to_string(golden().join(format!("{number}.narinfo"))).unwrap();
        assert_eq!(String::from_utf8(narinfo.to_vec()).unwrap(), expected, "signatures and all");

        let open = engine.open_nar(&cache, &NarQuery::StorePath(path(number).hash())).await.unwrap().unwrap();
        let pieces: Vec<_> = open.stream(None).await.unwrap().try_collect().await.unwrap();
        let nar = decompress(&pieces.concat());
        assert!(expected.contains(&format!("NarHash: {}\n", hash_of(&nar))), "the archive itself");

        let json = listing(&engine, &cache, &path(number)).await.unwrap().unwrap();
        let expected = fs::read_to_string(golden().join(format!("{number}.ls.sha256"))).unwrap();
        assert_eq!(hash_of(&json).to_string(), expected.trim(), "a listing");
    }
}
