//! The packs of the store become rows, by their tables.

use std::collections::HashSet;
use std::ops::Range;

use bytes::Bytes;
use dormer_blobs::{BlobKey, Store};
use dormer_format::{PACK_TRAILER_BYTES, PackEntry, PackId, read_table, read_trailer};
use dormer_index::{NewChunk, NewPack, UnixSeconds};
use dormer_nix::with_causes;
use futures::{StreamExt as _, TryStreamExt as _};

use super::recovery::Recovery;
use super::report::{RecoveryEvent, RecoveryIndex, Tell};
use crate::{Error, Result};

/// Bytes read from the end of a pack at first: the tables of nearly all packs fit.
const TAIL_BYTES: u64 = 64 * 1024;

/// Packs whose tables are read at once.
const PACKS_AT_ONCE: usize = 8;

/// Packs that the index is asked about at once.
const PACKS_PAGE: usize = 1_000;

/// Folder of the packs.
const PACKS: &str = "packs";

impl Recovery {
    /// Gives the packs of the store their rows. Those whose tables cannot be read are noted as
    /// packs that are never deleted, unless they have a deadline: an operator may still mend them.
    pub(super) async fn recover_packs(
        &mut self,
        into: &RecoveryIndex,
        now: UnixSeconds,
        tell: Tell<'_>,
    ) -> Result<()> {
        let mut packs = self.list_packs().await?;
        self.report.packs_found = packs.len() as u64;
        packs.sort_unstable_by_key(|pack| (std::cmp::Reverse(pack.modified_at), *pack.id.as_bytes()));
        for page in packs.chunks(PACKS_PAGE) {
            let ids: Vec<PackId> = page.iter().map(|pack| pack.id).collect();
            // Also those that a collection would delete: they may hold what the journal names.
            let new = into.collect.packs_without_row(&ids).await?;
            let new: HashSet<PackId> = new.into_iter().map(|pack| pack.id).collect();
            self.report.packs += (page.len() - new.len()) as u64;
            let store = self.store.clone();
            let mut tables = futures::stream::iter(page.iter().filter(|pack| new.contains(&pack.id)))
                .map(|pack| {
                    let store = &store;
                    async move { (pack, read_pack_table(store, pack).await) }
                })
                .buffered(PACKS_AT_ONCE);
            let mut unreadable = Vec::new();
            while let Some((pack, read)) = tables.next().await {
                match read {
                    Ok(entries) => {
                        let chunks = entries.into_iter().map(new_chunk).collect();
                        let pack = NewPack { id: pack.id, size: pack.size, chunks, created_at: now };
                        into.index.commit_pack(&pack).await?;
                        self.report.chunks += pack.chunks.len() as u64;
                        self.report.packs += 1;
                    }
                    Err(
                        error @ (Error::Pack { .. } | Error::Blobs(dormer_blobs::Error::Truncated { .. })),
                    ) => {
                        tracing::warn!(
                            pack.id = %pack.id,
                            error = with_causes(&error),
                            "the table of a pack cannot be read"
                        );
                        unreadable.push(pack.id);
                        self.report.unreadable_packs += 1;
                    }
                    // The store failed: that says nothing of the pack.
                    Err(error) => return Err(error),
                }
                tell(RecoveryEvent::Progress(&self.report));
            }
            into.collect.doom_packs(&unreadable, None).await?;
        }
        Ok(())
    }

    async fn list_packs(&self) -> Result<Vec<StoredPack>> {
        let mut packs = Vec::new();
        let mut entries = self.store.list(PACKS);
        while let Some(entry) = entries.try_next().await? {
            if let Some(BlobKey::Pack(id)) = BlobKey::parse(&entry.name) {
                packs.push(StoredPack { id, size: entry.size, modified_at: entry.modified_at });
            }
        }
        Ok(packs)
    }
}

/// A pack as the store lists it.
#[derive(Debug, Clone, Copy)]
struct StoredPack {
    id: PackId,
    size: u64,
    modified_at: i64,
}

/// The table of a pack, by one request nearly always.
async fn read_pack_table(store: &Store, pack: &StoredPack) -> Result<Vec<PackEntry>> {
    let (key, size) = (BlobKey::Pack(pack.id).to_string(), pack.size);
    let unreadable = |source| Error::Pack { key: key.clone(), source };
    let begin = size.saturating_sub(TAIL_BYTES);
    let tail = if size == 0 { Bytes::new() } else { read_exactly(store, &key, begin..size).await? };
    let Some(trailer) = tail.last_chunk::<PACK_TRAILER_BYTES>() else {
        return Err(dormer_blobs::Error::Truncated { key }.into());
    };
    let trailer = read_trailer(trailer, size).map_err(unreadable)?;
    let range = trailer.table_range();
    let table = if range.start >= begin {
        let at = |place: u64| usize::try_from(place - begin).expect("it lies in the tail");
        tail.slice(at(range.start)..at(range.end))
    } else {
        read_exactly(store, &key, range).await?
    };
    read_table(&trailer, &table).map_err(unreadable)
}

pub(super) async fn read_exactly(store: &Store, key: &str, range: Range<u64>) -> Result<Bytes> {
    let bytes = store.get_up_to(key, range.clone()).await?;
    if bytes.len() as u64 == range.end - range.start {
        Ok(bytes)
    } else {
        Err(dormer_blobs::Error::Truncated { key: key.to_owned() }.into())
    }
}

fn new_chunk(entry: PackEntry) -> NewChunk {
    NewChunk { id: entry.id, offset: entry.offset, layout: entry.layout, checksum: entry.checksum }
}
