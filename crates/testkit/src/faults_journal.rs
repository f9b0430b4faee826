//! The journal's memory in the index that crashes, by the same script as the store and the index of
//! [`faults`](crate::faults).

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use dormer_index::{
    Cache, CacheId, JournalIndex, JournalLease, JournalNote, JournalState, JournaledAlias, JournaledDocument,
    JournaledObject, OutboxPosition, Pin, Result, UnixSeconds,
};
use dormer_nix::StorePathHash;

use crate::faults::{Faults, read_step, write_step};

/// The journal's part of an index that crashes.
pub struct FaultJournal {
    inner: Arc<dyn JournalIndex>,
    faults: Arc<Faults>,
}

impl fmt::Debug for FaultJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultJournal").field("faults", &self.faults).finish_non_exhaustive()
    }
}

impl FaultJournal {
    /// Wraps an index.
    pub fn new(inner: Arc<dyn JournalIndex>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl JournalIndex for FaultJournal {
    async fn journal_state(&self) -> Result<JournalState> {
        read_step!(self, self.inner.journal_state())
    }
    async fn lease_journal(
        &self,
        holder: &str,
        now: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<Option<(JournalLease, JournalState)>> {
        write_step!(self, self.inner.lease_journal(holder, now, ends_at))
    }
    async fn save_journal(
        &self,
        lease: &JournalLease,
        state: &JournalState,
        written: &[JournalNote],
        ends_at: UnixSeconds,
    ) -> Result<()> {
        write_step!(self, self.inner.save_journal(lease, state, written, ends_at))
    }
    async fn renew_journal(&self, lease: &JournalLease, ends_at: UnixSeconds) -> Result<()> {
        write_step!(self, self.inner.renew_journal(lease, ends_at))
    }
    async fn release_journal(&self, lease: &JournalLease) -> Result<()> {
        write_step!(self, self.inner.release_journal(lease))
    }
    async fn ask_for_snapshot(&self) -> Result<()> {
        write_step!(self, self.inner.ask_for_snapshot())
    }
    async fn outbox_end(&self) -> Result<OutboxPosition> {
        read_step!(self, self.inner.outbox_end())
    }
    async fn hidden_change(&self) -> Result<Option<UnixSeconds>> {
        read_step!(self, self.inner.hidden_change())
    }
    async fn journal_notes(&self, limit: u32) -> Result<Vec<JournalNote>> {
        read_step!(self, self.inner.journal_notes(limit))
    }
    async fn find_cache_by_id(&self, cache: CacheId) -> Result<Option<Cache>> {
        read_step!(self, self.inner.find_cache_by_id(cache))
    }
    async fn journaled_objects(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<JournaledObject>> {
        read_step!(self, self.inner.journaled_objects(cache, hashes))
    }
    async fn journaled_objects_after(
        &self,
        after: Option<(CacheId, StorePathHash)>,
        limit: u32,
    ) -> Result<Vec<JournaledObject>> {
        read_step!(self, self.inner.journaled_objects_after(after, limit))
    }
    async fn journaled_alias(&self, cache: CacheId, file_name: &str) -> Result<Option<JournaledAlias>> {
        read_step!(self, self.inner.journaled_alias(cache, file_name))
    }
    async fn journaled_aliases_after(
        &self,
        after: (CacheId, &str),
        limit: u32,
    ) -> Result<Vec<JournaledAlias>> {
        read_step!(self, self.inner.journaled_aliases_after(after, limit))
    }
    async fn journaled_document(&self, cache: CacheId, name: &str) -> Result<Option<JournaledDocument>> {
        read_step!(self, self.inner.journaled_document(cache, name))
    }
    async fn journaled_documents_after(&self, after: i64, limit: u32) -> Result<Vec<JournaledDocument>> {
        read_step!(self, self.inner.journaled_documents_after(after, limit))
    }
    async fn journaled_pin(&self, cache: CacheId, name: &str, hash: &StorePathHash) -> Result<Option<Pin>> {
        read_step!(self, self.inner.journaled_pin(cache, name, hash))
    }
    async fn settings(&self) -> Result<Vec<(String, Vec<u8>)>> {
        read_step!(self, self.inner.settings())
    }
    async fn is_empty(&self) -> Result<bool> {
        read_step!(self, self.inner.is_empty())
    }
    async fn restore_cache(&self, cache: &Cache) -> Result<CacheId> {
        write_step!(self, self.inner.restore_cache(cache))
    }
    async fn restore_setting(&self, name: &str, value: &[u8]) -> Result<()> {
        write_step!(self, self.inner.restore_setting(name, value))
    }
}
