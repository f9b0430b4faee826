//! Opens the store of the settings. Checks that the store has this database's packs, and no data of
//! another program.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use dormer_blobs::{Blobs, LocalBlobs, StoreBlobs};
use dormer_index::{Index, ObjectOrder};
use dormer_nix::StorePathHash;
use dormer_stores::CallPolicy;

use crate::error::{Error, Result};
use crate::settings::Settings;

/// Opens the store of the settings. Asks a remote store once, so that a mistyped key shows at the
/// start instead of at the first push. A store that does not answer may answer later, so that does
/// not stop the start.
pub(super) async fn open_store(
    settings: &Settings,
    index: &dyn Index,
    was_started: bool,
    warnings: &mut Vec<String>,
) -> Result<Arc<dyn Blobs>> {
    let Some(remote) = &settings.remote_storage else {
        let path = &settings.storage_path;
        let store = if was_started { LocalBlobs::open_existing(path) } else { LocalBlobs::open(path) };
        return Ok(Arc::new(store?));
    };
    let policy = CallPolicy { retries: remote.retries.clone(), requests_max: Some(remote.requests_max) };
    let blobs = StoreBlobs::open(&remote.store, &policy)?;
    // Asked once: a store that does not answer is no reason to wait with the start.
    let store = StoreBlobs::new(blobs.store().bare());
    match store.holds_attic_chunks().await {
        // A server that never ran has stored nothing. If this listing fails, the listing before has
        // already reported it.
        Ok(false) if !was_started && store.holds_packs().await.unwrap_or(false) => {
            warnings.push(packs_without_index(&store.store().location()));
        }
        // The bucket or prefix was mistyped. If the server started, it would mark every requested
        // NAR as damaged, for all replicas.
        Ok(false)
            if was_started && !store.holds_packs().await.unwrap_or(true) && holds_objects(index).await? =>
        {
            return Err(Error::EmptyBucket { store: store.store().location().to_owned() });
        }
        Ok(false) => {}
        Ok(true) => {
            return Err(Error::ForeignBucket { store: store.store().location().to_owned(), owner: "Attic" });
        }
        Err(error @ dormer_blobs::Error::Refused { .. }) => return Err(error.into()),
        Err(error) => warnings.push(format!(
            "{} does not answer yet ({}); pushes and reads wait for it",
            store.store().location(),
            Error::chain_of(&error)
        )),
    }
    Ok(Arc::new(blobs))
}

/// Whether there are sound objects, and therefore packs. Looks at the first thousands of each
/// cache.
async fn holds_objects(index: &dyn Index) -> Result<bool> {
    const PAGES: usize = 10;
    for cache in index.list_caches().await? {
        let mut after = None;
        for _ in 0..PAGES {
            let page = index.list_objects(cache.id, ObjectOrder::Age, after, 1_000).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.place);
            let hashes: Vec<StorePathHash> = page.iter().map(|object| object.path.hash()).collect();
            if !index.present_objects(cache.id, &hashes).await?.is_empty() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

pub(super) fn packs_without_index(store: &dyn std::fmt::Display) -> String {
    format!("{store} holds packs that the new index does not know; was the database lost?")
}

/// Attic's folders resemble ours: one with a database, one with many files.
pub(crate) fn refuse_foreign_folders(settings: &Settings) -> Result<()> {
    let owner = "Attic";
    // `atticd` makes this file when it runs without settings.
    if settings.data_dir.join("server.db").exists() {
        return Err(Error::ForeignFolder { path: settings.data_dir.clone(), owner });
    }
    // By default, `storage` of a data folder and `storage.path` are the same.
    for path in [settings.storage_path.clone(), settings.data_dir.clone()] {
        if holds_chunk_files(&path, 3).map_err(Error::io("look into", &path))? {
            return Err(Error::ForeignFolder { path, owner });
        }
    }
    Ok(())
}

/// Most entries to inspect. A store of Attic is recognisable early, and a folder of millions of
/// other files must not delay the start.
const ENTRIES_MAX: usize = 1_000;

/// Attic's store has `<uuid>.chunk` files: at its top in older versions, two folders down in newer
/// ones.
fn holds_chunk_files(folder: &Path, depth: usize) -> io::Result<bool> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    let mut subfolders = Vec::new();
    for entry in entries.take(ENTRIES_MAX) {
        let entry = entry?;
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "chunk") {
            return Ok(true);
        }
        // Skips Dormer's packs: at most 256 folders with nothing but packs.
        let is_ours = entry.file_name() == "packs";
        if !is_ours && depth > 1 && entry.file_type()?.is_dir() {
            subfolders.push(path);
        }
    }
    // Chunks fill all folders of a level evenly, so a few folders are enough.
    for subfolder in subfolders.into_iter().take(16) {
        if holds_chunk_files(&subfolder, depth - 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}
