//! What the index says is stored and the store does not have: packs that are not there, and the
//! paths that need them. Reads only, for a person's question.
//!
//! Memory: the ids of all packs, and the numbers of the chunks that are missing. Objects are only
//! looked at if something is missing.

use std::collections::HashSet;
use std::time::Instant;

use dormer_blobs::{BlobKey, Store};
use dormer_format::{ChunkRun, PackId};
use dormer_index::{CacheId, JournaledObject, PackNumber, PackRow, StoredListing};
use dormer_nix::StorePath;
use futures::TryStreamExt as _;
use roaring::RoaringTreemap;

use crate::{RecoveryIndex, Result};

/// Packs, or chunks of a pack, read at once.
const ROWS_PAGE: u32 = 4_096;

/// Objects read at once, with their recipes.
const OBJECTS_PAGE: u32 = 200;

/// Paths that are named.
const PATHS_NAMED_MAX: usize = 20;

/// What is missing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Missing {
    /// Packs that the index names.
    pub packs_known: u64,
    /// Those of them that the store lacks.
    pub packs: Vec<PackId>,
    /// Their bytes.
    pub bytes: u64,
    /// Paths that need them, of all caches.
    pub paths: u64,
    /// The first of these.
    pub first_paths: Vec<(CacheId, StorePath)>,
    /// Whether all objects were looked at before the time was over.
    pub is_whole: bool,
}

/// Compares the packs of an index with a listing of its store. No objects are looked at after
/// `until`.
pub async fn find_missing(index: &RecoveryIndex, store: &Store, until: Instant) -> Result<Missing> {
    let mut missing = Missing { is_whole: true, ..Missing::default() };
    let mut stored = HashSet::new();
    let mut entries = store.list("packs");
    while let Some(entry) = entries.try_next().await? {
        if let Some(BlobKey::Pack(id)) = BlobKey::parse(&entry.name) {
            stored.insert(id);
        }
    }
    let (mut after, mut chunks) = (PackNumber(0), RoaringTreemap::new());
    loop {
        let page = index.collect.page_packs(after, ROWS_PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.number;
        missing.packs_known += page.len() as u64;
        for pack in page.iter().filter(|pack| !stored.contains(&pack.id)) {
            // A pack that was stored after the listing is not missing.
            if store.head(&BlobKey::Pack(pack.id).to_string()).await?.is_none() {
                missing.packs.push(pack.id);
                missing.bytes += pack.size;
                add_chunks(index, pack, &mut chunks).await?;
            }
        }
    }
    if !chunks.is_empty() {
        find_paths(index, &chunks, until, &mut missing).await?;
    }
    Ok(missing)
}

async fn add_chunks(index: &RecoveryIndex, pack: &PackRow, chunks: &mut RoaringTreemap) -> Result<()> {
    let mut after = None;
    loop {
        let page = index.collect.pack_chunks(pack.number, after, ROWS_PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.row.number);
        chunks.extend(page.iter().map(|chunk| chunk.row.number));
    }
}

async fn find_paths(
    index: &RecoveryIndex,
    chunks: &RoaringTreemap,
    until: Instant,
    missing: &mut Missing,
) -> Result<()> {
    let mut after = None;
    loop {
        if Instant::now() >= until {
            missing.is_whole = false;
            return Ok(());
        }
        let page = index.journal.journaled_objects_after(after, OBJECTS_PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some((last.cache, last.object.path.hash()));
        for object in page.into_iter().filter(|object| needs_any(object, chunks)) {
            missing.paths += 1;
            if missing.first_paths.len() < PATHS_NAMED_MAX {
                missing.first_paths.push((object.cache, object.object.path));
            }
        }
    }
}

fn needs_any(object: &JournaledObject, chunks: &RoaringTreemap) -> bool {
    let listing = match &object.nar.listing {
        Some(StoredListing::Chunks { recipe, .. }) => recipe.runs.as_slice(),
        _ => &[],
    };
    let has_any = |run: &ChunkRun| {
        let end = run.first + u64::from(run.count);
        chunks.rank(end.saturating_sub(1)) > run.first.checked_sub(1).map_or(0, |before| chunks.rank(before))
    };
    object.nar.recipe.runs.iter().chain(listing).any(|run| run.count > 0 && has_any(run))
}
