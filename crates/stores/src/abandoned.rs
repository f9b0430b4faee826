//! Staged files that a crash left in a folder.
//!
//! The library writes `<name>#<number>` beside an object, syncs it and renames it. A crash in
//! between leaves that file. No listing shows it, and no name of an object looks like it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use crate::store::{Medium, Store};
use crate::{Error, Result};

/// No write takes longer.
const ABANDONED_AFTER: Duration = Duration::from_hours(24);

impl Store {
    /// Deletes what writes that never finished left below `<folder>/`, a day after. Buckets hide
    /// unfinished writes and delete them by a rule, so there is nothing to do for a bucket. Returns
    /// the number of deleted files.
    pub async fn delete_abandoned(&self, folder: &str) -> Result<u64> {
        let Medium::Folder { root, .. } = &self.parts().medium else { return Ok(0) };
        let path = root.join(folder);
        let deleted = tokio::task::spawn_blocking(move || delete_below(&path, ABANDONED_AFTER)).await;
        deleted.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(|source| Error::Io {
            attempt: "delete abandoned files below",
            key: folder.to_owned(),
            source,
        })
    }
}

fn delete_below(folder: &Path, age: Duration) -> io::Result<u64> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut deleted = 0;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            deleted += delete_below(&entry.path(), age)?;
        } else if entry.file_name().to_str().is_some_and(is_staged) {
            // Another run may rename or delete the file at any moment.
            let modified = match entry.metadata() {
                Ok(metadata) => metadata.modified()?,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if modified.elapsed().unwrap_or_default() >= age {
                tracing::info!(path = %entry.path().display(), "deleting what an interrupted write left");
                match fs::remove_file(entry.path()) {
                    Ok(()) => deleted += 1,
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(deleted)
}

pub(crate) fn is_staged(name: &str) -> bool {
    name.rsplit_once('#')
        .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;

    #[tokio::test]
    async fn staged_files_are_deleted_a_day_later_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::folder(folder.path()).unwrap();
        store.put("main/nar/a.nar.zst", None, ["whole".into()]).await.unwrap();
        // A process that dies drops nothing, so this one forgets its upload.
        let mut upload = store.begin_upload("main/nar/b.nar.zst", None, 40_000_000).await.unwrap();
        upload.put_part(["half".into()]).await.unwrap();
        std::mem::forget(upload);
        let nars = folder.path().join("main/nar");
        let count = || fs::read_dir(&nars).unwrap().count();
        assert_eq!(count(), 2, "the library stages files beside the object; this crate relies on it");
        assert_eq!(store.delete_abandoned("main").await.unwrap(), 0, "another run may be writing");
        assert_eq!(delete_below(folder.path(), Duration::ZERO).unwrap(), 1);
        assert_eq!(count(), 1);
        let listed: Vec<String> = store.list("main").map_ok(|entry| entry.name).try_collect().await.unwrap();
        assert_eq!(listed, ["main/nar/a.nar.zst"]);
        assert_eq!(store.delete_abandoned("never-written").await.unwrap(), 0);
    }
}
