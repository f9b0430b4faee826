//! A crash at any step, for a real index and a real object store.
//!
//! Every writing call is a step. At the chosen step, the call fails, and its effect is kept or
//! dropped. Every later call fails too: the process is dead. The test then opens the real index and
//! store again without the wrapper, as after a restart.
//!
//! A [`Lie`] plants a defect that breaks one invariant, to show that the tests catch it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use dormer_blobs::{BlobKey, Blobs};
use dormer_format::{ChunkId, ChunkRun, EncodingTag};
use dormer_index::{
    Alias, AuditEntry, AuditFilter, AuditPage, Cache, CacheGlance, CacheId, CacheIndex, CachePatch,
    CacheRecipe, CacheSelection, CacheTotals, CacheVisibility, CallCounts, Changes, ChunkIndex, ChunkRow,
    CommitOutcome, CommitTarget, CounterIndex, Day, DocumentIndex, Error as IndexError, ExpiryDefaults,
    ExtremeObjects, FoundObject, HistoryDay, Index, Keepers, ListedObject, Nar, NarCommit, NarId, NarIndex,
    NarQuery, NarSource, NarSummary, NewCache, NewDocument, NewPack, NewSession, ObjectIndex, ObjectOrder,
    ObjectPlace, ObjectReferences, OutboxIndex, OutboxPosition, OutboxRow, PackNumber, PathCounts, Pin,
    PoolUse, PurgeCounts, Removal, RemovedForCause, RetentionIndex, SealedKey, SealedKeyPlace, SessionEnd,
    SessionId, SessionIndex, SessionOpened, SessionPart, SettingIndex, StoredCounts, StoredDocument,
    StoredListing, TraceOutcome, UnixSeconds, Use,
};
use dormer_nix::{BuildId, BuildTrace, DocumentName, NarHash, StorePath, StorePathHash};

/// A planted defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// The store acknowledges a pack too early: the crash loses the last pack (breaks invariant 1).
    PutBeforeDurable,
    /// The index acknowledges chunk rows, but writes them only after the NAR row (breaks invariant
    /// 2).
    PackRowsAfterNar,
    /// The index makes the NAR visible under a hash that was not verified (breaks invariant 3).
    UnverifiedHash,
    /// The store deletes a pack while rows still need it (breaks invariant 4).
    DeleteBeforeUnreference,
    /// The index acknowledges the commit without making it (breaks invariant 5).
    CommitLost,
    /// The index forgets what an object refers to (breaks invariant 6).
    ReferencesForgotten,
    /// The collector deletes the objects of packs before their rows (breaks invariant 4).
    ObjectBeforeRow,
    /// The collector condemns packs without a look at their stamps (a live pack is condemned).
    StampsIgnored,
    /// The collector marks no chunk of a NAR that only a grace names (breaks invariant 2).
    GracesForgotten,
    /// A compaction moves chunks whose rows have changed since it read them (breaks invariant 1).
    MovesUnchecked,
    /// The index gives a target's lease to a process while another one has it.
    LeaseIgnored,
    /// The target acknowledges the PUT of a NAR and does not keep it.
    PutsDropped,
}

/// The script of one run. All wrappers of the run share it.
#[derive(Debug)]
pub struct Faults {
    steps: AtomicU64,
    crash_at: u64,
    effect_kept: bool,
    crashed: AtomicBool,
    deleted: Mutex<Vec<BlobKey>>,
    lie: Option<Lie>,
}

pub(crate) enum Fate {
    Run,
    /// The last call of this process.
    Die {
        effect_kept: bool,
    },
    Dead,
}

impl Faults {
    /// Dies at a step (the first is 0). The effect of that call is kept or dropped.
    pub fn crash_at(step: u64, effect_kept: bool) -> Arc<Self> {
        Self::new(step, effect_kept, None)
    }

    /// Dies like [`crash_at`](Self::crash_at), and plants a defect.
    pub fn crash_at_with(step: u64, effect_kept: bool, lie: Lie) -> Arc<Self> {
        Self::new(step, effect_kept, Some(lie))
    }

    fn new(crash_at: u64, effect_kept: bool, lie: Option<Lie>) -> Arc<Self> {
        let crashed = AtomicBool::new(false);
        Arc::new(Self {
            steps: AtomicU64::new(0),
            crash_at,
            effect_kept,
            crashed,
            deleted: Mutex::default(),
            lie,
        })
    }

    /// The objects that the process deleted.
    pub fn deleted(&self) -> Vec<BlobKey> {
        self.deleted.lock().expect("no test panics with it held").clone()
    }

    /// Whether the process reached the step and died.
    pub fn crashed(&self) -> bool {
        self.crashed.load(Ordering::SeqCst)
    }

    /// Number of steps so far.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::SeqCst)
    }

    pub(crate) fn step(&self) -> Fate {
        if self.crashed() {
            return Fate::Dead;
        }
        if self.steps.fetch_add(1, Ordering::SeqCst) == self.crash_at {
            self.crashed.store(true, Ordering::SeqCst);
            return Fate::Die { effect_kept: self.effect_kept };
        }
        Fate::Run
    }

    pub(crate) fn lies(&self, lie: Lie) -> bool {
        self.lie == Some(lie)
    }
}

/// An object store that crashes.
#[derive(Debug)]
pub struct FaultBlobs {
    inner: Arc<dyn Blobs>,
    faults: Arc<Faults>,
    unwritten: Mutex<Option<(BlobKey, Vec<Bytes>)>>,
}

impl FaultBlobs {
    /// Wraps a store.
    pub fn new(inner: Arc<dyn Blobs>, faults: Arc<Faults>) -> Self {
        Self { inner, faults, unwritten: Mutex::new(None) }
    }

    async fn delete_now(&self, key: &BlobKey) -> dormer_blobs::Result<()> {
        self.faults.deleted.lock().expect("no test panics with it held").push(*key);
        self.inner.delete(key).await
    }

    async fn put_late(&self, key: &BlobKey, parts: &[Bytes]) -> dormer_blobs::Result<()> {
        let before =
            self.unwritten.lock().expect("no test panics with it held").replace((*key, parts.to_vec()));
        match before {
            Some((key, parts)) => self.inner.put(&key, &parts).await,
            None => Ok(()),
        }
    }
}

fn dead_store() -> dormer_blobs::Error {
    dormer_blobs::Error::Io {
        attempt: "reach",
        key: "any object".to_owned(),
        source: std::io::Error::other("the process has crashed"),
    }
}

#[async_trait]
impl Blobs for FaultBlobs {
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> dormer_blobs::Result<()> {
        match self.faults.step() {
            Fate::Run if self.faults.lies(Lie::PutBeforeDurable) => self.put_late(key, parts).await,
            Fate::Run => {
                self.inner.put(key, parts).await?;
                if self.faults.lies(Lie::DeleteBeforeUnreference) {
                    self.delete_now(key).await?;
                }
                Ok(())
            }
            Fate::Die { effect_kept } => {
                if effect_kept {
                    self.inner.put(key, parts).await?;
                }
                Err(dead_store())
            }
            Fate::Dead => Err(dead_store()),
        }
    }

    async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> dormer_blobs::Result<Bytes> {
        if self.faults.crashed() { Err(dead_store()) } else { self.inner.get_range(key, range).await }
    }

    async fn head(&self, key: &BlobKey) -> dormer_blobs::Result<u64> {
        if self.faults.crashed() { Err(dead_store()) } else { self.inner.head(key).await }
    }

    async fn delete(&self, key: &BlobKey) -> dormer_blobs::Result<()> {
        match self.faults.step() {
            Fate::Run => self.delete_now(key).await,
            Fate::Die { effect_kept } => {
                if effect_kept {
                    self.delete_now(key).await?;
                }
                Err(dead_store())
            }
            Fate::Dead => Err(dead_store()),
        }
    }

    async fn list(&self) -> dormer_blobs::Result<Vec<BlobKey>> {
        if self.faults.crashed() { Err(dead_store()) } else { self.inner.list().await }
    }
}

/// An index that crashes.
#[derive(Debug)]
pub struct FaultIndex {
    inner: Arc<dyn Index>,
    faults: Arc<Faults>,
    unwritten: Mutex<Vec<NewPack>>,
}

impl FaultIndex {
    /// Wraps an index.
    pub fn new(inner: Arc<dyn Index>, faults: Arc<Faults>) -> Self {
        Self { inner, faults, unwritten: Mutex::default() }
    }

    /// The rows that the pack would get, without writing any.
    fn rows_to_be(pack: &NewPack) -> Vec<ChunkRow> {
        let number = PackNumber(1);
        let row = |(position, chunk): (u64, &dormer_index::NewChunk)| ChunkRow {
            number: 65_536 + position,
            id: chunk.id,
            pack: number,
            pack_id: pack.id,
            offset: chunk.offset,
            layout: chunk.layout.clone(),
            checksum: chunk.checksum,
        };
        (0..).zip(&pack.chunks).map(row).collect()
    }
}

/// What every call of a crashed process fails with.
pub(crate) fn dead_index() -> IndexError {
    IndexError::Corrupt { table: "all", what: "the process has crashed".to_owned() }
}

/// Runs a writing call according to the script.
macro_rules! write_step {
    ($self:ident, $call:expr) => {
        match $self.faults.step() {
            $crate::faults::Fate::Run => $call.await,
            $crate::faults::Fate::Die { effect_kept } => {
                if effect_kept {
                    let _ = $call.await;
                }
                Err($crate::faults::dead_index())
            }
            $crate::faults::Fate::Dead => Err($crate::faults::dead_index()),
        }
    };
}

/// Runs a reading call while the process lives.
macro_rules! read_step {
    ($self:ident, $call:expr) => {
        if $self.faults.crashed() { Err($crate::faults::dead_index()) } else { $call.await }
    };
}
pub(crate) use {read_step, write_step};

type Outcome<T> = dormer_index::Result<T>;

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl SettingIndex for FaultIndex {
    async fn find_setting(&self, name: &str) -> Outcome<Option<Vec<u8>>> {
        read_step!(self, self.inner.find_setting(name))
    }
    async fn create_setting(&self, name: &str, value: &[u8]) -> Outcome<Vec<u8>> {
        write_step!(self, self.inner.create_setting(name, value))
    }
    async fn begin_rekey(&self, before: &[u8], after: &[u8]) -> Outcome<()> {
        write_step!(self, self.inner.begin_rekey(before, after))
    }
    async fn list_sealed_keys(&self, after: Option<SealedKeyPlace>, limit: u32) -> Outcome<Vec<SealedKey>> {
        read_step!(self, self.inner.list_sealed_keys(after, limit))
    }
    async fn replace_sealed_keys(&self, keys: &[(SealedKey, Vec<u8>)]) -> Outcome<()> {
        write_step!(self, self.inner.replace_sealed_keys(keys))
    }
    async fn end_rekey(&self) -> Outcome<()> {
        write_step!(self, self.inner.end_rekey())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl CacheIndex for FaultIndex {
    async fn create_cache(&self, cache: &NewCache) -> Outcome<CacheId> {
        write_step!(self, self.inner.create_cache(cache))
    }
    async fn find_cache(&self, name: &str) -> Outcome<Option<Cache>> {
        read_step!(self, self.inner.find_cache(name))
    }
    async fn find_public_cache(&self, name: &str) -> Outcome<Option<Cache>> {
        read_step!(self, self.inner.find_public_cache(name))
    }
    async fn list_caches(&self) -> Outcome<Vec<Cache>> {
        read_step!(self, self.inner.list_caches())
    }
    async fn list_caches_after(
        &self,
        name: &str,
        selection: CacheSelection<'_>,
        limit: u32,
    ) -> Outcome<Vec<Cache>> {
        read_step!(self, self.inner.list_caches_after(name, selection, limit))
    }
    async fn list_visibilities(&self) -> Outcome<Vec<CacheVisibility>> {
        read_step!(self, self.inner.list_visibilities())
    }
    async fn list_caches_of_nar(&self, nar: NarId, now: UnixSeconds) -> Outcome<Vec<CacheVisibility>> {
        read_step!(self, self.inner.list_caches_of_nar(nar, now))
    }
    async fn cache_totals(&self, cache: CacheId) -> Outcome<CacheTotals> {
        read_step!(self, self.inner.cache_totals(cache))
    }
    async fn update_cache(&self, cache: CacheId, patch: &CachePatch, at: UnixSeconds) -> Outcome<()> {
        write_step!(self, self.inner.update_cache(cache, patch, at))
    }
    async fn delete_cache(&self, cache: CacheId, subject: Option<&str>, at: UnixSeconds) -> Outcome<()> {
        write_step!(self, self.inner.delete_cache(cache, subject, at))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ChunkIndex for FaultIndex {
    async fn find_chunks(&self, ids: &[ChunkId]) -> Outcome<Vec<Option<ChunkRow>>> {
        read_step!(self, self.inner.find_chunks(ids))
    }
    async fn load_chunks(&self, runs: &[ChunkRun]) -> Outcome<Vec<ChunkRow>> {
        read_step!(self, self.inner.load_chunks(runs))
    }
    async fn commit_pack(&self, pack: &NewPack) -> Outcome<Vec<ChunkRow>> {
        if self.faults.lies(Lie::PackRowsAfterNar) && !self.faults.crashed() {
            self.unwritten.lock().expect("no test panics with it held").push(pack.clone());
            return Ok(Self::rows_to_be(pack));
        }
        write_step!(self, self.inner.commit_pack(pack))
    }
    async fn mark_damaged(&self, nar: NarId, chunks: &[u64], at: UnixSeconds) -> Outcome<()> {
        write_step!(self, self.inner.mark_damaged(nar, chunks, at))
    }
    async fn mark_listing_lost(&self, nar: NarId, chunks: &[u64], at: UnixSeconds) -> Outcome<()> {
        write_step!(self, self.inner.mark_listing_lost(nar, chunks, at))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl CounterIndex for FaultIndex {
    async fn path_counts(&self, cache: CacheId) -> Outcome<PathCounts> {
        read_step!(self, self.inner.path_counts(cache))
    }
    async fn glance_at_caches(&self, caches: &[CacheId]) -> Outcome<Vec<CacheGlance>> {
        read_step!(self, self.inner.glance_at_caches(caches))
    }
    async fn stored_counts(&self) -> Outcome<StoredCounts> {
        read_step!(self, self.inner.stored_counts())
    }
    async fn history(&self, cache: Option<CacheId>, after: Day) -> Outcome<Vec<HistoryDay>> {
        read_step!(self, self.inner.history(cache, after))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl SessionIndex for FaultIndex {
    async fn open_session(&self, session: &NewSession, sessions_max: u32) -> Outcome<SessionOpened> {
        write_step!(self, self.inner.open_session(session, sessions_max))
    }
    async fn find_session(
        &self,
        session: &SessionId,
        cache: CacheId,
        subject: &str,
        now: UnixSeconds,
    ) -> Outcome<Option<SessionEnd>> {
        read_step!(self, self.inner.find_session(session, cache, subject, now))
    }
    async fn add_part(&self, session: &SessionId, part: &SessionPart, now: UnixSeconds) -> Outcome<bool> {
        write_step!(self, self.inner.add_part(session, part, now))
    }
    async fn find_part(&self, session: &SessionId, digest: &[u8; 32]) -> Outcome<Option<SessionPart>> {
        read_step!(self, self.inner.find_part(session, digest))
    }
    async fn parts_after(
        &self,
        session: &SessionId,
        after: Option<&[u8; 32]>,
        limit: u32,
    ) -> Outcome<Vec<SessionPart>> {
        read_step!(self, self.inner.parts_after(session, after, limit))
    }
    async fn recipes_after(
        &self,
        cache: CacheId,
        after: Option<ObjectPlace>,
        limit: u32,
    ) -> Outcome<Vec<CacheRecipe>> {
        read_step!(self, self.inner.recipes_after(cache, after, limit))
    }
    async fn mark_chunks_damaged(&self, pack: PackNumber, chunks: &[u64], at: UnixSeconds) -> Outcome<u64> {
        write_step!(self, self.inner.mark_chunks_damaged(pack, chunks, at))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl NarIndex for FaultIndex {
    async fn find_nar(&self, hash: &NarHash) -> Outcome<Option<NarSummary>> {
        read_step!(self, self.inner.find_nar(hash))
    }
    async fn find_nar_in_cache(
        &self,
        cache: CacheId,
        key: &NarQuery,
        now: UnixSeconds,
    ) -> Outcome<Option<Nar>> {
        read_step!(self, self.inner.find_nar_in_cache(cache, key, now))
    }
    async fn find_listing(&self, nar: NarId) -> Outcome<Option<StoredListing>> {
        read_step!(self, self.inner.find_listing(nar))
    }
    async fn commit_nar(&self, commit: &NarCommit) -> Outcome<CommitOutcome> {
        let mut commit = commit.clone();
        if self.faults.lies(Lie::CommitLost) && !self.faults.crashed() {
            return Ok(CommitOutcome::Committed(NarId(1)));
        }
        if self.faults.lies(Lie::UnverifiedHash)
            && let NarSource::New(nar) = &mut commit.nar
        {
            let mut bytes = *nar.hash.as_bytes();
            bytes[0] ^= 1;
            nar.hash = NarHash::from_bytes(bytes);
        }
        if self.faults.lies(Lie::ReferencesForgotten)
            && let CommitTarget::Object(object) = &mut commit.target
        {
            object.references.clear();
        }
        if self.faults.lies(Lie::PackRowsAfterNar)
            && let NarSource::New(nar) = &mut commit.nar
        {
            nar.packs.clear();
        }
        let outcome = write_step!(self, self.inner.commit_nar(&commit));
        if self.faults.lies(Lie::PackRowsAfterNar) {
            let late = std::mem::take(&mut *self.unwritten.lock().expect("no test panics with it held"));
            for pack in late {
                write_step!(self, self.inner.commit_pack(&pack))?;
            }
        }
        outcome
    }
    async fn update_encoding(
        &self,
        nar: NarId,
        tag: &EncodingTag,
        file_size: u64,
        at: UnixSeconds,
    ) -> Outcome<()> {
        write_step!(self, self.inner.update_encoding(nar, tag, file_size, at))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectIndex for FaultIndex {
    async fn find_object(&self, cache: CacheId, hash: &StorePathHash) -> Outcome<Option<FoundObject>> {
        read_step!(self, self.inner.find_object(cache, hash))
    }
    async fn find_object_and_log(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
    ) -> Outcome<Option<(FoundObject, bool)>> {
        read_step!(self, self.inner.find_object_and_log(cache, hash))
    }
    async fn present_objects(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Outcome<Vec<(StorePathHash, UnixSeconds)>> {
        read_step!(self, self.inner.present_objects(cache, hashes))
    }
    async fn touch_objects(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
        kind: Use,
        at: UnixSeconds,
    ) -> Outcome<()> {
        write_step!(self, self.inner.touch_objects(cache, hashes, kind, at))
    }
    async fn remove_object(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        removal: Removal,
        at: UnixSeconds,
    ) -> Outcome<bool> {
        write_step!(self, self.inner.remove_object(cache, hash, removal, at))
    }
    async fn find_alias(
        &self,
        cache: CacheId,
        file_name: &str,
        since: UnixSeconds,
    ) -> Outcome<Option<Alias>> {
        read_step!(self, self.inner.find_alias(cache, file_name, since))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DocumentIndex for FaultIndex {
    async fn put_document(&self, cache: CacheId, document: &NewDocument, at: UnixSeconds) -> Outcome<()> {
        write_step!(self, self.inner.put_document(cache, document, at))
    }
    async fn add_document(&self, cache: CacheId, document: &NewDocument, at: UnixSeconds) -> Outcome<bool> {
        write_step!(self, self.inner.add_document(cache, document, at))
    }
    async fn merge_trace(
        &self,
        cache: CacheId,
        trace: &BuildTrace,
        known_keys: &[String],
        at: UnixSeconds,
    ) -> Outcome<TraceOutcome> {
        write_step!(self, self.inner.merge_trace(cache, trace, known_keys, at))
    }
    async fn find_document(&self, cache: CacheId, name: &DocumentName) -> Outcome<Option<StoredDocument>> {
        read_step!(self, self.inner.find_document(cache, name))
    }
    async fn has_document(&self, cache: CacheId, name: &DocumentName) -> Outcome<bool> {
        read_step!(self, self.inner.has_document(cache, name))
    }
    async fn find_debug_nar(
        &self,
        cache: CacheId,
        build_id: &BuildId,
    ) -> Outcome<Option<(NarHash, EncodingTag)>> {
        read_step!(self, self.inner.find_debug_nar(cache, build_id))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl RetentionIndex for FaultIndex {
    async fn add_pin(&self, cache: CacheId, pin: &Pin, keep: Option<u32>) -> Outcome<()> {
        write_step!(self, self.inner.add_pin(cache, pin, keep))
    }
    async fn remove_pins(&self, cache: CacheId, name: &str, hash: Option<&StorePathHash>) -> Outcome<u64> {
        write_step!(self, self.inner.remove_pins(cache, name, hash))
    }
    async fn list_pins(
        &self,
        cache: CacheId,
        after: Option<(&str, &StorePathHash)>,
        now: UnixSeconds,
        limit: u32,
    ) -> Outcome<Vec<Pin>> {
        read_step!(self, self.inner.list_pins(cache, after, now, limit))
    }
    async fn find_keepers(
        &self,
        cache: &Cache,
        hash: &StorePathHash,
        defaults: &ExpiryDefaults,
        now: UnixSeconds,
        limit: u32,
    ) -> Outcome<Option<Keepers>> {
        read_step!(self, self.inner.find_keepers(cache, hash, defaults, now, limit))
    }
    async fn list_extremes(&self, cache: CacheId, limit: u32) -> Outcome<ExtremeObjects> {
        read_step!(self, self.inner.list_extremes(cache, limit))
    }
    async fn list_pins_of_path(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        now: UnixSeconds,
        limit: u32,
    ) -> Outcome<Vec<Pin>> {
        read_step!(self, self.inner.list_pins_of_path(cache, hash, now, limit))
    }
    async fn find_references(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
        bytes_max: u64,
    ) -> Outcome<Vec<ObjectReferences>> {
        read_step!(self, self.inner.find_references(cache, hashes, bytes_max))
    }
    async fn list_referrers(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        after: Option<&StorePathHash>,
        limit: u32,
    ) -> Outcome<Vec<StorePath>> {
        read_step!(self, self.inner.list_referrers(cache, hash, after, limit))
    }
    async fn find_referrers(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        limit: u32,
    ) -> Outcome<Vec<StorePathHash>> {
        read_step!(self, self.inner.find_referrers(cache, hash, limit))
    }
    async fn list_objects(
        &self,
        cache: CacheId,
        order: ObjectOrder,
        after: Option<ObjectPlace>,
        limit: u32,
    ) -> Outcome<Vec<ListedObject>> {
        read_step!(self, self.inner.list_objects(cache, order, after, limit))
    }
    async fn list_objects_by_name(
        &self,
        cache: CacheId,
        prefix: &str,
        after: Option<(&str, ObjectPlace)>,
        limit: u32,
    ) -> Outcome<Vec<ListedObject>> {
        read_step!(self, self.inner.list_objects_by_name(cache, prefix, after, limit))
    }
    async fn remove_for_cause(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        subject: Option<&str>,
        purge: bool,
        at: UnixSeconds,
    ) -> Outcome<RemovedForCause> {
        write_step!(self, self.inner.remove_for_cause(cache, hash, subject, purge, at))
    }
    async fn count_purges(&self, cache: CacheId, paths: Option<&[StorePathHash]>) -> Outcome<PurgeCounts> {
        read_step!(self, self.inner.count_purges(cache, paths))
    }
    async fn audit_after(&self, number: i64, limit: u32) -> Outcome<Vec<AuditEntry>> {
        read_step!(self, self.inner.audit_after(number, limit))
    }
    async fn audit_before(&self, before: i64, filter: &AuditFilter, limit: u32) -> Outcome<AuditPage> {
        read_step!(self, self.inner.audit_before(before, filter, limit))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl OutboxIndex for FaultIndex {
    async fn outbox_after(&self, position: OutboxPosition, limit: u32) -> Outcome<Vec<OutboxRow>> {
        read_step!(self, self.inner.outbox_after(position, limit))
    }
    fn changes(&self) -> Changes {
        self.inner.changes()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Index for FaultIndex {
    async fn ping(&self) -> Outcome<()> {
        read_step!(self, self.inner.ping())
    }
    async fn check_ready(&self) -> Outcome<()> {
        read_step!(self, self.inner.check_ready())
    }
    async fn close(&self) -> Outcome<()> {
        self.inner.close().await
    }
    fn statement_count(&self) -> u64 {
        self.inner.statement_count()
    }
    fn call_counts(&self) -> CallCounts {
        self.inner.call_counts()
    }
    fn pool_use(&self) -> PoolUse {
        self.inner.pool_use()
    }
}
