//! Following: from the outbox to the objects that have to be looked at.

use std::collections::{HashMap, HashSet};

use dormer_index::{CacheId, CacheScan, NotedFrom, OutboxPosition};
use dormer_nix::StorePathHash;

use crate::Result;
use crate::publisher::{Publisher, Run};

/// Outbox rows followed at once.
const OUTBOX_PAGE: u32 = 1_000;

/// Objects of a cache by hash.
pub(crate) type Changed = HashMap<CacheId, HashSet<StorePathHash>>;

impl Publisher {
    /// What changed after a position. Nothing is written down.
    pub(crate) async fn changes_after(&self, mut cursor: OutboxPosition) -> Result<Changed> {
        let mut changed = Changed::new();
        loop {
            let rows = self.index().outbox_after(cursor, OUTBOX_PAGE).await?;
            let Some(last) = rows.last() else { return Ok(changed) };
            cursor = last.position;
            for row in rows {
                changed.entry(row.cache).or_default().extend(row.store_path_hash);
            }
        }
    }
}

/// A page of the outbox that was followed.
pub(crate) struct Followed {
    /// Its end.
    pub(crate) cursor: OutboxPosition,
    /// What changed in it.
    pub(crate) changed: Vec<(CacheId, StorePathHash)>,
}

impl Run<'_> {
    /// Notes what changed in these caches in the next page of the outbox. Returns `None` if there
    /// is none.
    pub(crate) async fn follow_page(
        &self,
        after: OutboxPosition,
        caches: &HashSet<CacheId>,
    ) -> Result<Option<Followed>> {
        let rows = self.publisher.index().outbox_after(after, OUTBOX_PAGE).await?;
        let Some(last) = rows.last() else { return Ok(None) };
        let cursor = last.position;
        let mut noted = HashSet::new();
        let mut marks = Vec::new();
        for row in &rows {
            if let Some(hash) = row.store_path_hash
                && caches.contains(&row.cache)
                && noted.insert((row.cache, hash))
            {
                marks.push((row.cache, hash, row.at));
            }
        }
        self.state().note_pending(&self.lease(), &marks, NotedFrom::Outbox(cursor)).await?;
        let changed = marks.into_iter().map(|(cache, hash, _)| (cache, hash)).collect();
        Ok(Some(Followed { cursor, changed }))
    }

    /// Notes a page of what a cache that is new here had before, so that what was removed from it
    /// is known. The outbox was followed up to `followed_to`. Returns where the scan goes on.
    pub(crate) async fn note_past(
        &self,
        cache: CacheId,
        after: OutboxPosition,
        followed_to: OutboxPosition,
    ) -> Result<CacheScan> {
        let rows = self.publisher.index().outbox_after(after, OUTBOX_PAGE).await?;
        let next = match rows.last() {
            Some(last) if last.position < followed_to => CacheScan::Past(last.position),
            _ => CacheScan::Objects(None),
        };
        let mut noted = HashSet::new();
        let marks: Vec<_> = rows
            .iter()
            .filter(|row| row.cache == cache)
            .filter_map(|row| Some((cache, row.store_path_hash?, row.at)))
            .filter(|(_, hash, _)| noted.insert(*hash))
            .collect();
        self.state().note_pending(&self.lease(), &marks, NotedFrom::Scan(cache, next.clone())).await?;
        Ok(next)
    }
}
