//! The engine: ingest and read, over an index and an object store.
//!
//! Layer: above the two ports, below publishing and the server. This is the only code that orders writes; docs/STORAGE.md
//! states the orders and the invariants that they keep, docs/ARCHITECTURE.md follows a push and a pull through it.

mod caches;
mod chunk_sink;
mod clock;
mod commit;
mod cpu;
mod error;
mod ingest;
mod ingest_listing;
mod listing;
mod master_key;
mod memory;
mod narinfo;
mod packer;
mod read;
mod settings;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use bytes::Bytes;
use dormer_blobs::Blobs;
use dormer_format::PackId;
use dormer_index::{Cache, Index, UnixSeconds};
use dormer_nix::{SecretKey, StorePathHash};
use moka::sync::Cache as Remembered;
use tokio::sync::Semaphore;

use crate::caches::REMEMBERED;
use crate::chunk_sink::Workshop;
use crate::cpu::CpuPool;
use crate::memory::Account;
use crate::narinfo::NarinfoKey;
use crate::packer::Packer;
use crate::read::{Plan, PlanKey};

pub use caches::{CreateCache, KeyChange, UpdateCache};
pub use clock::{Clock, SystemClock};
pub use error::{Error, ErrorClass, Result};
pub use ingest::{Deduplication, Ingest, IngestRequest, Ingested};
pub use listing::ListingStream;
pub use master_key::MasterKey;
pub use read::{NarStream, OpenNar};
pub use settings::{EngineSettings, UPLOAD_BYTES};

/// Memory for remembered narinfos, and for remembered read plans, in bytes each.
const REMEMBERED_BYTES: u64 = 4 * 1024 * 1024;

/// How long a pack counts as there after it was seen.
const PACK_PROOF: Duration = Duration::from_mins(1);

/// The engine; cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: EngineSettings,
    clock: Arc<dyn Clock>,
    blobs: Arc<dyn Blobs>,
    master_key: MasterKey,
    workshop: Workshop,
    upload_memory: Account,
    uploads_begun: AtomicU64,
    active_reads: Arc<AtomicUsize>,
    read_turns: Arc<Semaphore>,
    read_memory: Account,
    stream_memory: Account,
    caches: Remembered<String, Arc<Cache>>,
    unsealed_keys: Remembered<String, Arc<SecretKey>>,
    narinfos: Remembered<NarinfoKey, Bytes>,
    plans: Remembered<PlanKey, Arc<Plan>>,
    proven_packs: Remembered<PackId, ()>,
}

impl Engine {
    /// An engine on the current tokio run time.
    pub fn new(
        index: Arc<dyn Index>,
        blobs: Arc<dyn Blobs>,
        master_key: MasterKey,
        settings: EngineSettings,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let cpu = CpuPool::new(settings.cpu_threads, settings.zstd_level);
        let packer = Packer::start(
            Arc::clone(&index),
            Arc::clone(&blobs),
            Arc::clone(&clock),
            settings.pack_wait,
            settings.chunk_params.max,
        );
        let reads = |bytes| Account::new(bytes, settings.read_wait, "downloads");
        let stream_memory_bytes = settings.read_memory_bytes / 4;
        let inner = Inner {
            upload_memory: Account::new(settings.upload_memory_bytes_max, settings.upload_wait, "uploads"),
            uploads_begun: AtomicU64::new(0),
            active_reads: Arc::default(),
            read_turns: Arc::new(Semaphore::new(settings.reads_max)),
            read_memory: reads(settings.read_memory_bytes - stream_memory_bytes),
            stream_memory: reads(stream_memory_bytes),
            caches: Remembered::builder().max_capacity(4_096).time_to_live(REMEMBERED).build(),
            unsealed_keys: Remembered::builder().max_capacity(4_096).build(),
            narinfos: Remembered::builder()
                .max_capacity(REMEMBERED_BYTES)
                .weigher(|_, text: &Bytes| u32::try_from(text.len() + 128).unwrap_or(u32::MAX))
                .time_to_live(REMEMBERED)
                .build(),
            plans: Remembered::builder()
                .max_capacity(REMEMBERED_BYTES)
                .weigher(|_, plan: &Arc<Plan>| plan.weight())
                .time_to_live(REMEMBERED)
                .build(),
            proven_packs: Remembered::builder().max_capacity(16_384).time_to_live(PACK_PROOF).build(),
            workshop: Workshop { index, cpu, packer },
            settings,
            clock,
            blobs,
            master_key,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The index, for plain look-ups.
    pub fn index(&self) -> &Arc<dyn Index> {
        &self.inner.workshop.index
    }

    /// Limits and choices in force.
    pub fn settings(&self) -> &EngineSettings {
        &self.inner.settings
    }

    /// The time by the engine's clock.
    pub fn now(&self) -> UnixSeconds {
        self.inner.clock.now()
    }

    /// Answers when index and store can be used.
    pub async fn check_ready(&self) -> Result<()> {
        self.index().check_ready().await?;
        // Any name will do: that the store can say "not there" shows that it is reachable.
        let probe = dormer_blobs::BlobKey::Pack(PackId::from_bytes([0; 16]));
        match self.blobs().head(&probe).await {
            Ok(_) | Err(dormer_blobs::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn blobs(&self) -> &Arc<dyn Blobs> {
        &self.inner.blobs
    }

    fn master_key(&self) -> &MasterKey {
        &self.inner.master_key
    }

    fn workshop(&self) -> &Workshop {
        &self.inner.workshop
    }

    fn upload_memory(&self) -> &Account {
        &self.inner.upload_memory
    }

    /// For bytes under way to readers.
    fn read_memory(&self) -> &Account {
        &self.inner.read_memory
    }

    /// For what a stream holds from its beginning to its end.
    fn stream_memory(&self) -> &Account {
        &self.inner.stream_memory
    }

    fn uploads_begun(&self) -> &AtomicU64 {
        &self.inner.uploads_begun
    }

    fn active_reads(&self) -> &Arc<AtomicUsize> {
        &self.inner.active_reads
    }

    fn read_turns(&self) -> &Arc<Semaphore> {
        &self.inner.read_turns
    }

    fn remembered_caches(&self) -> &Remembered<String, Arc<Cache>> {
        &self.inner.caches
    }

    fn unsealed_keys(&self) -> &Remembered<String, Arc<SecretKey>> {
        &self.inner.unsealed_keys
    }

    fn remembered_narinfos(&self) -> &Remembered<NarinfoKey, Bytes> {
        &self.inner.narinfos
    }

    fn remembered_plans(&self) -> &Remembered<PlanKey, Arc<Plan>> {
        &self.inner.plans
    }

    fn proven_packs(&self) -> &Remembered<PackId, ()> {
        &self.inner.proven_packs
    }

    /// Forgets what was remembered about a path of a cache, after a change to it.
    fn forget_answers(&self, cache: &Cache, hash: &StorePathHash) {
        self.remembered_narinfos().invalidate(&(cache.id, *hash));
        // Plans are found by several keys; changes to objects that are being read are rare enough to forget them all.
        self.remembered_plans().invalidate_all();
    }

    fn forget_narinfos(&self) {
        self.remembered_narinfos().invalidate_all();
    }

    fn forget_cache(&self, cache: &Cache) {
        self.remembered_caches().invalidate(&cache.name);
        self.forget_narinfos();
        self.remembered_plans().invalidate_all();
    }
}
