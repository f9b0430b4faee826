//! A NAR of the journal with the numbers that its chunks have now.

use std::sync::Arc;

use dormer_blobs::{BlobKey, Store};
use dormer_format::{ChunkId, Decoder, JournalListing, JournalNar, RecipeBuilder, TagBuilder, checksum};
use dormer_index::{ChunkRow, Index, NewNar, PackNumber, StoredListing};
use dormer_nix::nar::{LISTING_BYTES_MAX, listed_build_ids};
use dormer_nix::with_causes;

use super::packs::read_exactly;
use crate::ingest_listing::GATHERED_BYTES_MAX;
use crate::journal::files::CHUNKS_MAX;
use crate::{Error, Result};

/// A NAR with the numbers that its chunks have now.
pub(super) struct RestoredNar {
    pub(super) nar: NewNar,
    /// The listing is not in the store: the NAR is to be marked after its commit.
    pub(super) is_listing_lost: bool,
}

/// `None` if one of the NAR's chunks is not in the store, or if chunks and fills do not fit
/// together. A listing alone never loses a NAR: the next push brings it back.
pub(super) async fn restored_nar(
    index: &Arc<dyn Index>,
    store: &Store,
    nar: &JournalNar,
) -> Result<Option<RestoredNar>> {
    let Some(rows) = find_all(index, &nar.recipe.chunks).await? else { return Ok(None) };
    let (mut recipe, mut tag) = (RecipeBuilder::new(), TagBuilder::new());
    let (mut holes, mut raw_bytes, mut holed_bytes, mut file_size) = (0, 0, 0, 0);
    for row in &rows {
        recipe.push_chunk(row.number);
        tag.push_chunk(&row.id, row.checksum, &row.layout);
        holes += row.layout.holes.len() as u64;
        raw_bytes += u64::from(row.layout.raw_len);
        holed_bytes += row.layout.holed_bytes();
        file_size += row.layout.spliced_len();
    }
    if holes != nar.recipe.fills.hole_count() || raw_bytes != nar.size {
        return Ok(None);
    }
    for fill in nar.recipe.fills.hole_fills() {
        recipe.push_fill(fill);
        tag.push_fill(fill);
    }
    let mut packs: Vec<PackNumber> = rows.iter().map(|row| row.pack).collect();
    let mut build_ids = Vec::new();
    let listing = match &nar.listing {
        JournalListing::Lost => None,
        JournalListing::Inline(body) => {
            // A body that cannot be read is found, and marked as lost, by the first reader.
            if let Ok(json) = zstd::bulk::decompress(body, GATHERED_BYTES_MAX) {
                build_ids = listed_build_ids(&json);
            }
            Some(StoredListing::Inline(body.clone()))
        }
        JournalListing::Chunks { chunks, size } => match find_all(index, chunks).await? {
            Some(rows) => match read_listing(store, &rows, *size).await? {
                Some(json) => {
                    build_ids = listed_build_ids(&json);
                    let mut recipe = RecipeBuilder::new();
                    for row in &rows {
                        recipe.push_chunk(row.number);
                    }
                    packs.extend(rows.iter().map(|row| row.pack));
                    Some(StoredListing::Chunks { recipe: recipe.finish(), size: *size })
                }
                None => None,
            },
            None => None,
        },
    };
    let is_listing_lost = listing.is_none();
    let listing = listing.unwrap_or(StoredListing::Inline(Vec::new()));
    packs.sort_unstable();
    packs.dedup();
    let nar = NewNar {
        hash: nar.hash,
        size: nar.size,
        file_size,
        tag: tag.finish(),
        recipe: recipe.finish(),
        holed_bytes,
        listing,
        build_ids,
        packs,
    };
    Ok(Some(RestoredNar { nar, is_listing_lost }))
}

/// The JSON of a listing in chunks, at most [`LISTING_BYTES_MAX`]. It is empty if a chunk is
/// damaged: the first reader finds that, too. `None` if a pack is gone or short since its table was
/// read.
async fn read_listing(store: &Store, rows: &[ChunkRow], size: u64) -> Result<Option<Vec<u8>>> {
    let mut json = Vec::new();
    if size > LISTING_BYTES_MAX as u64 {
        return Ok(Some(json));
    }
    let mut decoder = Decoder::new().map_err(Error::Encode)?;
    for row in rows {
        let range = row.offset..row.offset + u64::from(row.layout.stored_len());
        let key = BlobKey::Pack(row.pack_id).to_string();
        let frames = match read_exactly(store, &key, range).await {
            Ok(frames) => frames,
            Err(Error::Blobs(
                error @ (dormer_blobs::Error::NotFound { .. } | dormer_blobs::Error::Truncated { .. }),
            )) => {
                tracing::warn!(error = with_causes(&error), "a listing is lost; its NAR is not");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if checksum(&frames) != row.checksum {
            return Ok(Some(Vec::new()));
        }
        let Ok(bytes) = decoder.decode(&frames, &row.layout, &[]) else { return Ok(Some(Vec::new())) };
        json.extend_from_slice(&bytes);
    }
    Ok(Some(json))
}

async fn find_all(index: &Arc<dyn Index>, chunks: &[ChunkId]) -> Result<Option<Vec<ChunkRow>>> {
    let mut rows = Vec::with_capacity(chunks.len());
    for batch in chunks.chunks(CHUNKS_MAX) {
        for found in index.find_chunks(batch).await? {
            let Some(row) = found else { return Ok(None) };
            rows.push(row);
        }
    }
    Ok(Some(rows))
}
