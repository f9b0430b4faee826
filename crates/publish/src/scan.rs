//! Work over a whole cache, in steps: comparing it with a listing, and noting all of it. Each step
//! writes down how far the scan has come, in the transaction of what it found, so that the next run
//! goes on from there.

use dormer_api::CacheName;
use dormer_index::{Cache, CacheScan, OutboxPosition, PublishedCache};

use crate::Result;
use crate::publisher::Run;
use crate::report::Counts;
use crate::turn::Turn;

/// Objects noted in one transaction: some tens of milliseconds, in which nobody else writes to
/// SQLite.
const NOTED_TOGETHER: u32 = 4_096;

impl Run<'_> {
    /// Carries a cache's scan on to its end. The outbox was followed up to `followed_to`. Returns
    /// what changed, and whether the scan has ended; if not, the turn of the cache is over.
    pub(crate) async fn scan_cache(
        &self,
        turn: &Turn<'_>,
        cache: &Cache,
        name: &CacheName,
        row: &mut PublishedCache,
        followed_to: OutboxPosition,
    ) -> Result<(Counts, bool)> {
        let mut counts = Counts::default();
        let mut has_stepped = false;
        while let Some(scan) = row.scan.clone() {
            // Each turn takes a step, however long that is.
            if self.publisher.is_stopping() || (has_stepped && turn.has_to_pause()) {
                return Ok((counts, false));
            }
            let kind = std::mem::discriminant(&scan);
            // The end of a comparison is not written down, so a turn goes on to what comes after
            // it.
            let compares = scan.is_comparison();
            row.scan = match scan {
                CacheScan::Narinfos(byte) => {
                    let (next, repaired) = self.compare_narinfos(cache, name, byte).await?;
                    counts.repaired += repaired;
                    Some(next)
                }
                CacheScan::Nars(byte) => {
                    let (next, repaired) = self.compare_nars(cache, name, byte).await?;
                    counts.repaired += repaired;
                    Some(next)
                }
                CacheScan::Documents(after) => {
                    let (next, repaired) = self.compare_documents(cache, name, after).await?;
                    counts.repaired += repaired;
                    Some(next)
                }
                CacheScan::Past(position) => Some(self.note_past(cache.id, position, followed_to).await?),
                CacheScan::Objects(_) | CacheScan::Published(_) => {
                    let (lease, now) = (self.lease(), self.now());
                    self.state().note_cache_step(&lease, cache.id, scan, NOTED_TOGETHER, now).await?
                }
            };
            let next = row.scan.as_ref().map(std::mem::discriminant);
            has_stepped |= !compares || next == Some(kind);
        }
        Ok((counts, true))
    }
}
