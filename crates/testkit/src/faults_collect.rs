//! A collector's index that crashes, by the same script as the store and the index of
//! [`faults`](crate::faults), and between whose calls others work.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use dormer_blobs::{BlobKey, Blobs};
use dormer_format::{ChunkRun, PackId};
use dormer_index::{
    CacheId, ChunkMove, CollectIndex, CompactedPack, DoomedPack, ExaminedPage, ExpiryDefaults, JobId,
    JobLease, LastCollection, MarkedNar, NarId, ObjectPlace, PackNumber, PackRow, PackedChunk, PacksRemoved,
    Purge, PurgeId, Result, RowlessPack, StampLimits, UnixSeconds,
};
use futures::future::BoxFuture;

use crate::faults::{Faults, Lie};

/// What others do just before a call; it gets the call's number.
type BeforeCall = Box<dyn Fn(u64) -> BoxFuture<'static, ()> + Send + Sync>;

/// A collector's index that crashes.
pub struct FaultCollect {
    inner: Arc<dyn CollectIndex>,
    /// The store that crashes by the same script.
    blobs: Arc<dyn Blobs>,
    faults: Arc<Faults>,
    calls: AtomicU64,
    meanwhile: Option<BeforeCall>,
}

impl fmt::Debug for FaultCollect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultCollect").field("faults", &self.faults).finish_non_exhaustive()
    }
}

macro_rules! write_step {
    ($self:ident, $call:expr) => {{
        $self.begin_call().await;
        crate::faults::write_step!($self, $call)
    }};
}

macro_rules! read_step {
    ($self:ident, $call:expr) => {{
        $self.begin_call().await;
        crate::faults::read_step!($self, $call)
    }};
}

impl FaultCollect {
    /// Wraps an index. `blobs` is the store that the same collector deletes from.
    pub fn new(inner: Arc<dyn CollectIndex>, blobs: Arc<dyn Blobs>, faults: Arc<Faults>) -> Self {
        Self { inner, blobs, faults, calls: AtomicU64::new(0), meanwhile: None }
    }

    /// The same, and others do something before each call.
    #[must_use]
    pub fn with_meanwhile(
        self,
        meanwhile: impl Fn(u64) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        Self { meanwhile: Some(Box::new(meanwhile)), ..self }
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    async fn begin_call(&self) {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        if let Some(meanwhile) = &self.meanwhile {
            meanwhile(number).await;
        }
    }

    /// Says of chunks that they were read where they lie now, so that no check finds a change.
    async fn pretend_unchanged(&self, chunks: &mut [ChunkMove]) -> Result<()> {
        for pack in self.inner.page_packs(PackNumber(0), u32::MAX >> 1).await? {
            for PackedChunk { row, .. } in self.inner.pack_chunks(pack.number, None, u32::MAX >> 1).await? {
                for chunk in chunks.iter_mut().filter(|chunk| chunk.number == row.number) {
                    (chunk.from, chunk.from_offset, chunk.checksum) = (row.pack, row.offset, row.checksum);
                }
            }
        }
        Ok(())
    }

    /// Deletes the objects of packs whose rows are there.
    async fn delete_objects_of(&self, packs: &[PackNumber]) -> Result<()> {
        for row in self.inner.page_packs(PackNumber(0), u32::MAX >> 1).await? {
            if packs.contains(&row.number) {
                // A crash in here is the next call's to report.
                let _ = self.blobs.delete(&BlobKey::Pack(row.id)).await;
            }
        }
        Ok(())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl CollectIndex for FaultCollect {
    async fn open_collection(&self, due_before: UnixSeconds, at: UnixSeconds) -> Result<Option<JobId>> {
        write_step!(self, self.inner.open_collection(due_before, at))
    }
    async fn last_collection(&self) -> Result<LastCollection> {
        read_step!(self, self.inner.last_collection())
    }
    async fn note_first_listing(&self) -> Result<()> {
        write_step!(self, self.inner.note_first_listing())
    }
    async fn list_next_time(&self) -> Result<()> {
        write_step!(self, self.inner.list_next_time())
    }
    async fn advance_collection(
        &self,
        lease: &JobLease,
        rows: u64,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<()> {
        write_step!(self, self.inner.advance_collection(lease, rows, at, ends_at))
    }
    async fn finish_collection(
        &self,
        lease: &JobLease,
        report: &str,
        listed: bool,
        at: UnixSeconds,
    ) -> Result<()> {
        write_step!(self, self.inner.finish_collection(lease, report, listed, at))
    }
    async fn expire_graces(&self, limit: u32, at: UnixSeconds) -> Result<u64> {
        write_step!(self, self.inner.expire_graces(limit, at))
    }
    async fn expire_aliases(&self, limit: u32, used_until: UnixSeconds) -> Result<u64> {
        write_step!(self, self.inner.expire_aliases(limit, used_until))
    }
    async fn mark_nars(
        &self,
        after: NarId,
        limit: u32,
        now: UnixSeconds,
        aliases_since: UnixSeconds,
    ) -> Result<Vec<MarkedNar>> {
        let mut page = read_step!(self, self.inner.mark_nars(after, limit, now, aliases_since))?;
        if self.faults.lies(Lie::GracesForgotten) {
            // As if every grace were over.
            let graceless = self.inner.mark_nars(after, limit, UnixSeconds::MAX, aliases_since).await?;
            for nar in &mut page {
                if !graceless.iter().any(|other| other.id == nar.id && other.is_named) {
                    nar.runs.clear();
                }
            }
        }
        Ok(page)
    }
    async fn delete_nars(&self, nars: &[NarId]) -> Result<Vec<NarId>> {
        write_step!(self, self.inner.delete_nars(nars))
    }
    async fn moved_chunks(&self, after: u64, limit: u32) -> Result<Vec<(u64, PackNumber)>> {
        read_step!(self, self.inner.moved_chunks(after, limit))
    }
    async fn page_packs(&self, after: PackNumber, limit: u32) -> Result<Vec<PackRow>> {
        read_step!(self, self.inner.page_packs(after, limit))
    }
    async fn count_chunks(&self, packs: &[PackNumber]) -> Result<u64> {
        read_step!(self, self.inner.count_chunks(packs))
    }
    async fn pack_chunks(
        &self,
        pack: PackNumber,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<PackedChunk>> {
        read_step!(self, self.inner.pack_chunks(pack, after, limit))
    }
    async fn move_chunks(
        &self,
        pack: &CompactedPack,
        at: UnixSeconds,
        doomed_after: UnixSeconds,
    ) -> Result<Vec<u64>> {
        if self.faults.lies(Lie::MovesUnchecked) {
            self.begin_call().await;
            let mut pack = pack.clone();
            self.pretend_unchanged(&mut pack.chunks).await?;
            return self.inner.move_chunks(&pack, at, doomed_after).await;
        }
        write_step!(self, self.inner.move_chunks(pack, at, doomed_after))
    }
    async fn note_recompressed(&self, packs: &[PackNumber], level: u8) -> Result<()> {
        write_step!(self, self.inner.note_recompressed(packs, level))
    }
    async fn mark_chunks_damaged(&self, pack: PackNumber, chunks: &[u64], at: UnixSeconds) -> Result<u64> {
        write_step!(self, self.inner.mark_chunks_damaged(pack, chunks, at))
    }
    async fn condemn_packs(
        &self,
        packs: &[PackNumber],
        limits: StampLimits,
        at: UnixSeconds,
    ) -> Result<Vec<PackNumber>> {
        let limits = if self.faults.lies(Lie::StampsIgnored) {
            StampLimits { created_before: UnixSeconds::MAX, used_before: UnixSeconds::MAX }
        } else {
            limits
        };
        write_step!(self, self.inner.condemn_packs(packs, limits, at))
    }
    async fn condemn_now(&self, packs: &[PackNumber], at: UnixSeconds) -> Result<()> {
        write_step!(self, self.inner.condemn_now(packs, at))
    }
    async fn open_purges(&self, limit: u32) -> Result<Vec<Purge>> {
        read_step!(self, self.inner.open_purges(limit))
    }
    async fn purge_notes(&self, after: PurgeId, limit: u32) -> Result<Vec<Purge>> {
        read_step!(self, self.inner.purge_notes(after, limit))
    }
    async fn forget_purge_notes(&self, notes: &[PurgeId]) -> Result<()> {
        write_step!(self, self.inner.forget_purge_notes(notes))
    }
    async fn find_places(
        &self,
        run: &ChunkRun,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<(u64, PackNumber)>> {
        read_step!(self, self.inner.find_places(run, after, limit))
    }
    async fn end_purges(&self, purges: &[PurgeId], is_done: bool, at: UnixSeconds) -> Result<()> {
        write_step!(self, self.inner.end_purges(purges, is_done, at))
    }
    async fn spare_packs(&self, packs: &[PackNumber]) -> Result<u64> {
        write_step!(self, self.inner.spare_packs(packs))
    }
    async fn remove_packs(
        &self,
        packs: &[PackNumber],
        condemned_before: UnixSeconds,
        at: UnixSeconds,
    ) -> Result<PacksRemoved> {
        if self.faults.lies(Lie::ObjectBeforeRow) && !self.faults.crashed() {
            self.delete_objects_of(packs).await?;
        }
        write_step!(self, self.inner.remove_packs(packs, condemned_before, at))
    }
    async fn packs_without_row(&self, packs: &[PackId]) -> Result<Vec<RowlessPack>> {
        read_step!(self, self.inner.packs_without_row(packs))
    }
    async fn doom_packs(&self, packs: &[PackId], not_before: Option<UnixSeconds>) -> Result<u64> {
        write_step!(self, self.inner.doom_packs(packs, not_before))
    }
    async fn count_ended(&self, at: UnixSeconds, used_until: UnixSeconds) -> Result<(u64, u64)> {
        read_step!(self, self.inner.count_ended(at, used_until))
    }
    async fn count_logs(&self, written_before: UnixSeconds) -> Result<u64> {
        read_step!(self, self.inner.count_logs(written_before))
    }
    async fn caches_with_rules(
        &self,
        defaults: &ExpiryDefaults,
        after: CacheId,
        limit: u32,
    ) -> Result<Vec<CacheId>> {
        read_step!(self, self.inner.caches_with_rules(defaults, after, limit))
    }
    async fn examine_objects(
        &self,
        cache: CacheId,
        defaults: &ExpiryDefaults,
        after: Option<ObjectPlace>,
        limit: u32,
        at: UnixSeconds,
    ) -> Result<ExaminedPage> {
        read_step!(self, self.inner.examine_objects(cache, defaults, after, limit, at))
    }
    async fn release_packs(&self, packs: &[PackId], not_before: UnixSeconds) -> Result<u64> {
        write_step!(self, self.inner.release_packs(packs, not_before))
    }
    async fn doomed_packs(
        &self,
        after: Option<DoomedPack>,
        limit: u32,
        at: UnixSeconds,
    ) -> Result<Vec<DoomedPack>> {
        read_step!(self, self.inner.doomed_packs(after, limit, at))
    }
    async fn may_have_copies(&self, since: Option<UnixSeconds>) -> Result<bool> {
        read_step!(self, self.inner.may_have_copies(since))
    }
    async fn doom_new_pack(&self, pack: PackId, not_before: UnixSeconds) -> Result<()> {
        write_step!(self, self.inner.doom_new_pack(pack, not_before))
    }
    async fn hasten_new_packs(&self, deadline_max: UnixSeconds, at: UnixSeconds) -> Result<u64> {
        write_step!(self, self.inner.hasten_new_packs(deadline_max, at))
    }
    async fn forget_doomed(&self, packs: &[PackId]) -> Result<()> {
        write_step!(self, self.inner.forget_doomed(packs))
    }
    async fn reload_known_keys(&self) -> Result<()> {
        read_step!(self, self.inner.reload_known_keys())
    }
}
