//! The engine: ingest and read, over an index and an object store.
//!
//! Layer: above the two ports, below publishing and the server. This is the only code that orders writes; docs/STORAGE.md
//! states the orders and the invariants that they keep, docs/ARCHITECTURE.md follows a push and a pull through it.

mod caches;
mod chunk_sink;
mod clock;
mod coherence;
mod commit;
mod cpu;
mod error;
mod ingest;
mod ingest_listing;
mod listing;
mod master_key;
mod memory;
mod metrics;
mod narinfo;
mod packer;
mod read;
mod settings;
mod use_recorder;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dormer_blobs::Blobs;
use dormer_format::PackId;
use dormer_index::{Cache, Index, UnixSeconds};
use dormer_nix::SecretKey;
use moka::sync::Cache as Remembered;
use tokio::sync::Semaphore;

use crate::chunk_sink::Workshop;
use crate::coherence::REMEMBERED;
use crate::cpu::CpuPool;
use crate::memory::Account;
use crate::metrics::EngineMetrics;
use crate::narinfo::NarinfoKey;
use crate::packer::{Packer, Storage};
use crate::read::{ENCODING_UPDATES_MAX, Plan, PlanKey, SmallReads};
use crate::use_recorder::UseRecorder;

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
    metrics: Arc<EngineMetrics>,
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
    small_reads: SmallReads,
    uses: UseRecorder,
    encoding_updates: Arc<Semaphore>,
    /// Counts what was forgotten because of changes.
    changes_seen: AtomicU64,
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
        let metrics = Arc::new(EngineMetrics::new());
        let cpu = CpuPool::new(settings.cpu_threads, settings.zstd_level, Arc::clone(&metrics));
        let proven_packs = Remembered::builder().max_capacity(16_384).time_to_live(PACK_PROOF).build();
        let storage = Storage {
            index: Arc::clone(&index),
            blobs: Arc::clone(&blobs),
            clock: Arc::clone(&clock),
            metrics: Arc::clone(&metrics),
            proven_packs: proven_packs.clone(),
        };
        let packer = Packer::start(storage, settings.pack_wait, settings.chunk_params.max);
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
            proven_packs,
            small_reads: SmallReads::new(),
            encoding_updates: Arc::new(Semaphore::new(ENCODING_UPDATES_MAX)),
            uses: UseRecorder::start(Arc::clone(&index), Arc::clone(&clock), Arc::clone(&metrics)),
            workshop: Workshop { index, cpu, packer, metrics: Arc::clone(&metrics) },
            metrics,
            changes_seen: AtomicU64::new(0),
            settings,
            clock,
            blobs,
            master_key,
        };
        let engine = Self { inner: Arc::new(inner) };
        engine.follow_changes();
        engine
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

    /// Answers when the index can be reached.
    pub async fn check_index(&self) -> Result<()> {
        Ok(self.index().ping().await?)
    }

    /// Answers when the object store can be reached, within `patience`. One that answers others meanwhile can be, though it is
    /// too busy for this question.
    pub async fn check_store(&self, patience: Duration) -> Result<()> {
        // Any name will do: that the store can say "not there" shows that it is reachable.
        let probe = dormer_blobs::BlobKey::Pack(PackId::from_bytes([0; 16]));
        let answers = || self.blobs().counters().map_or(0, dormer_blobs::Counters::answers);
        let before = answers();
        match tokio::time::timeout(patience, self.blobs().head(&probe)).await {
            Ok(Ok(_) | Err(dormer_blobs::Error::NotFound { .. })) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) if answers() > before => Ok(()),
            Err(_) => Err(Error::StoreSilent { patience }),
        }
    }

    fn metrics(&self) -> &Arc<EngineMetrics> {
        &self.inner.metrics
    }

    /// Brings those counters up to date that are read elsewhere.
    fn write_gauges(&self) {
        let (metrics, inner) = (self.metrics(), &self.inner);
        let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        for (label, account) in [
            ("uploads", &inner.upload_memory),
            ("reads", &inner.read_memory),
            ("streams", &inner.stream_memory),
        ] {
            let standing = account.standing();
            metrics.memory.with_label_values(&[label]).set(gauge(standing.reserved));
            metrics.memory_max.with_label_values(&[label]).set(gauge(standing.max));
            metrics.memory_waiting.with_label_values(&[label]).set(gauge(standing.waiting as u64));
        }
        metrics.reads.set(gauge(inner.active_reads.load(Ordering::Relaxed) as u64));
        let (streaming, queued) = inner.workshop.packer.depths();
        metrics.uploads_streaming.set(gauge(streaming as u64));
        metrics.packer_queue.set(gauge(queued as u64));
        let pool = self.index().pool_use();
        metrics.index_connections.with_label_values(&["used"]).set(gauge((pool.open - pool.idle) as u64));
        metrics.index_connections.with_label_values(&["idle"]).set(gauge(pool.idle as u64));
        metrics.index_connections_max.set(gauge(pool.max as u64));
        metrics.index_waiting.set(gauge(pool.waiting as u64));
        let statements = self.index().statement_count();
        metrics.index_statements.inc_by(statements.saturating_sub(metrics.index_statements.get()));
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

    fn encoding_updates(&self) -> &Arc<Semaphore> {
        &self.inner.encoding_updates
    }

    fn uses(&self) -> &UseRecorder {
        &self.inner.uses
    }

    fn small_reads(&self) -> &SmallReads {
        &self.inner.small_reads
    }
}
