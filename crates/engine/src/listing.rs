//! Listings: read back as JSON.

use dormer_blobs::BlobKey;
use dormer_format::{Decoder, HoleFill, Recipe, checksum};
use dormer_index::{Cache, StoredListing};
use dormer_nix::StorePathHash;

use crate::{Engine, Error, Result};

impl Engine {
    /// The listing of a path's NAR, as JSON in Nix's `.ls` form. `None` when the cache lacks the path, or when its listing
    /// was larger than the server keeps.
    pub async fn listing(&self, cache: &Cache, hash: &StorePathHash) -> Result<Option<Vec<u8>>> {
        let Some(found) = self.index().find_object(cache.id, hash).await? else { return Ok(None) };
        match self.index().find_listing(found.nar.id).await? {
            None => Ok(None),
            Some(StoredListing::Inline(bytes)) if bytes.is_empty() => Ok(None),
            Some(StoredListing::Inline(bytes)) => {
                let limit = self.settings().listing_bytes_max;
                zstd::bulk::decompress(&bytes, limit).map(Some).map_err(Error::CompressListing)
            }
            Some(StoredListing::Chunks { recipe, size }) => {
                let damaged = || Error::Damaged { nar: found.nar.hash };
                self.read_listing(&recipe, size).await?.map(Some).ok_or_else(damaged)
            }
        }
    }

    /// `None` if the stored bytes are damaged.
    async fn read_listing(&self, recipe: &Recipe, size: u64) -> Result<Option<Vec<u8>>> {
        let mut json =
            Vec::with_capacity(usize::try_from(size).unwrap_or(0).min(self.settings().listing_bytes_max));
        let mut decoder = Decoder::new().map_err(Error::Encode)?;
        let mut fills = recipe.hole_fills();
        for row in self.index().load_chunks(&recipe.runs).await? {
            let end = row.offset + u64::from(row.layout.stored_len());
            let stored = self.blobs().get_range(&BlobKey::Pack(row.pack_id), row.offset..end).await?;
            let own: Vec<HoleFill> = fills.by_ref().take(row.layout.holes.len()).copied().collect();
            if checksum(&stored) != row.checksum {
                return Ok(None);
            }
            let Ok(raw) = decoder.decode(&stored, &row.layout, &own) else { return Ok(None) };
            json.extend_from_slice(&raw);
        }
        Ok((json.len() as u64 == size).then_some(json))
    }
}
