//! A scrub's index that crashes, by the same script as the index of [`faults`](crate::faults).

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use dormer_format::EncodingTag;
use dormer_index::{
    ChunkRow, JobId, JobLease, LastScrub, Nar, NarId, PackNumber, PackRow, Result, ScrubIndex, UnixSeconds,
};

use crate::faults::{Faults, read_step, write_step};

/// A scrub's index that crashes.
pub struct FaultScrub {
    inner: Arc<dyn ScrubIndex>,
    faults: Arc<Faults>,
}

impl fmt::Debug for FaultScrub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultScrub").field("faults", &self.faults).finish_non_exhaustive()
    }
}

impl FaultScrub {
    /// Wraps an index.
    pub fn new(inner: Arc<dyn ScrubIndex>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ScrubIndex for FaultScrub {
    async fn open_scrub(&self, cursor: &[u8], at: UnixSeconds) -> Result<(JobId, bool)> {
        write_step!(self, self.inner.open_scrub(cursor, at))
    }
    async fn scrub_cursor(&self, job: JobId) -> Result<Option<Vec<u8>>> {
        read_step!(self, self.inner.scrub_cursor(job))
    }
    async fn advance_scrub(
        &self,
        lease: &JobLease,
        cursor: &[u8],
        rows: u64,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<()> {
        write_step!(self, self.inner.advance_scrub(lease, cursor, rows, at, ends_at))
    }
    async fn finish_scrub(&self, lease: &JobLease, report: &str, at: UnixSeconds) -> Result<()> {
        write_step!(self, self.inner.finish_scrub(lease, report, at))
    }
    async fn last_scrub(&self) -> Result<LastScrub> {
        read_step!(self, self.inner.last_scrub())
    }
    async fn scrub_packs(&self, after: PackNumber, limit: u32) -> Result<Vec<PackRow>> {
        read_step!(self, self.inner.scrub_packs(after, limit))
    }
    async fn chunks_of_pack(&self, pack: PackNumber) -> Result<Vec<ChunkRow>> {
        read_step!(self, self.inner.chunks_of_pack(pack))
    }
    async fn scrub_nars(&self, after: NarId, limit: u32) -> Result<Vec<Nar>> {
        read_step!(self, self.inner.scrub_nars(after, limit))
    }
    async fn mark_chunks(&self, pack: PackNumber, chunks: &[u64], at: UnixSeconds) -> Result<u64> {
        write_step!(self, self.inner.mark_chunks(pack, chunks, at))
    }
    async fn mark_nar(&self, nar: NarId, tag: &EncodingTag, at: UnixSeconds) -> Result<bool> {
        write_step!(self, self.inner.mark_nar(nar, tag, at))
    }
}
