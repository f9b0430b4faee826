//! The engine: ingest and read, over an index and an object store.
//!
//! Layer: above the two ports, below publishing and the server. This is the only code that orders
//! writes. docs/STORAGE.md states the orders and the invariants that they keep;
//! docs/ARCHITECTURE.md follows a push and a pull through the engine.

mod activity;
mod budget;
mod caches;
mod change_counts;
mod chunk_sink;
mod clock;
mod coherence;
mod collect;
mod commit;
mod cpu;
mod documents;
mod error;
mod exposition;
mod ingest;
mod ingest_listing;
mod jobs;
mod journal;
mod lease_renewal;
mod listing;
mod master_key;
mod metrics;
mod missing;
mod narinfo;
mod pace;
mod packer;
mod read;
mod rekey;
mod remembered;
mod restarting;
mod retention;
mod scrub;
mod seal_plan;
mod sessions;
mod settings;
mod stored_metrics;
mod use_recorder;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use bytes::Bytes;
use dormer_blobs::Blobs;
use dormer_format::PackId;
use dormer_index::{Cache, CollectIndex, Index, ScrubIndex, UnixSeconds};
use dormer_nix::SecretKey;
use moka::sync::Cache as Remembered;

use crate::budget::{Lent, OtherBudgets};
use crate::change_counts::ChangeCounts;
use crate::chunk_sink::IngestContext;
use crate::metrics::{EngineMetrics, gauge_value};
use crate::packer::{Packer, Storage};
use crate::read::{BlockCache, ReadPlan};
use crate::remembered::{
    LARGE_PLAN_REMEMBERED, LargePlanKey, NarinfoKey, PACK_PROOF, PlanKey, REMEMBERED, REMEMBERED_BYTES,
    REMEMBERED_CACHE_BYTES, cache_weight,
};
use crate::sessions::{DecodedChunks, ReadableChunks, Verifications};
use crate::use_recorder::UseRecorder;

pub use activity::{Activity, Taken};
pub use budget::{Budget, BudgetShare, BudgetUse};
pub use caches::{CreateCache, KeyChange, UpdateCache};
pub use clock::{Clock, SystemClock};
pub use collect::{
    CollectMetrics, CollectSettings, CollectionPhase, CollectionPlan, CollectionProgress, CollectionReport,
    Collector, CompactionTotals, EndedCollection, ExpiryTotals, PackTotals, Strays,
};
pub use commit::SIGNATURES_MAX;
pub use cpu::CpuPool;
pub use error::{Error, ErrorClass, Result};
pub use ingest::{Deduplication, Ingest, IngestRequest, Ingested, UploadMemory};
pub use jobs::{ExpirySchedule, JobMetrics, JobRunner, JobSettings, OutboxLimits};
pub use journal::{
    ComparedPasts, Journal, JournalMetrics, JournalSettings, KEEP_SECONDS, Recovered, Recovery,
    RecoveryEvent, RecoveryIndex, StoredJournal, keep_journal, kept_journals, release_kept_journals,
    renew_kept_journals, stored_journals,
};
pub use listing::ListingStream;
pub use master_key::MasterKey;
pub use missing::{Missing, find_missing};
pub use read::{NarStream, OpenNar, PartStream};
pub use rekey::{RekeyReport, rekey};
pub use retention::{Closure, LARGEST_PATHS, MissingPaths};
pub use scrub::{EndedScrub, FULL_PPM, ScrubMetrics, ScrubOptions, ScrubReport, ScrubState, Scrubber};
pub use sessions::{
    AdmitCheck, CheckHold, ChunkedPath, CommittedPath, MISSING_CHUNKS_MAX, PART_BYTES_MAX, PART_CHUNKS_MAX,
    PART_RAW_BYTES_MAX, PathOutcome, PushSession, Reader, part_memory_bytes,
};
pub use settings::{EngineSettings, UPLOAD_BYTES};
pub use stored_metrics::StoredMetrics;

/// More than any read of chunks takes. Documents and walks through closures may take more.
const LARGE_READ_BYTES: u64 = 8 * 1024 * 1024;

/// New tags and marks of damage that are being written at once. When there are more, the next read
/// of the NAR writes them.
const ENCODING_UPDATES_MAX: usize = 8;

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
    ingest: IngestContext,
    upload_memory: Budget,
    streams_begun: AtomicU64,
    active_reads: Arc<AtomicUsize>,
    stream_turns: Budget,
    read_memory: Budget,
    stream_memory: Budget,
    caches: Remembered<String, Arc<Cache>>,
    /// The public ones among them: a caller that may know of no others looks here alone.
    public_caches: Remembered<String, Arc<Cache>>,
    unsealed_keys: Remembered<String, Arc<SecretKey>>,
    narinfos: Remembered<NarinfoKey, Bytes>,
    plans: Remembered<PlanKey, Arc<ReadPlan>>,
    large_plans: Remembered<LargePlanKey, Arc<ReadPlan>>,
    proven_packs: Remembered<PackId, ()>,
    block_cache: BlockCache,
    uses: UseRecorder,
    activity: Arc<Activity>,
    encoding_updates: Budget,
    change_counts: ChangeCounts,
    readable: ReadableChunks,
    decoded: Arc<DecodedChunks>,
    verifications: Verifications,
    other_budgets: OtherBudgets,
}

/// A part of the memory for reads. It returns when it is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "held for its drop")]
pub struct AnswerMemory(BudgetShare);

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
        let cpu = CpuPool::new(settings.cpu_threads, settings.zstd_level);
        let proven_packs = Remembered::builder().max_capacity(16_384).time_to_live(PACK_PROOF).build();
        let storage = Storage {
            index: Arc::clone(&index),
            blobs: Arc::clone(&blobs),
            clock: Arc::clone(&clock),
            metrics: Arc::clone(&metrics),
            proven_packs: proven_packs.clone(),
        };
        let packer = Packer::start(storage, settings.pack_wait, settings.chunk_params.max);
        let for_reads = |name, bytes| Budget::of_memory(name, bytes, settings.read_wait, "downloads");
        let stream_memory_bytes = settings.read_memory_bytes / 4;
        let decoded: Arc<DecodedChunks> = Arc::default();
        let inner = Inner {
            upload_memory: Budget::of_memory(
                "upload_memory",
                settings.upload_memory_bytes_max,
                settings.upload_wait,
                "uploads",
            )
            .with_limit_for_large(settings::ORDINARY_UPLOAD_BYTES)
            .with_lent(Arc::clone(&decoded) as Arc<dyn Lent>),
            streams_begun: AtomicU64::new(0),
            active_reads: Arc::default(),
            stream_turns: Budget::of_turns("streams", settings.reads_max, settings.read_wait, "downloads"),
            read_memory: for_reads("read_memory", settings.read_memory_bytes - stream_memory_bytes)
                .with_limit_for_large(LARGE_READ_BYTES.min(settings.read_memory_bytes / 2)),
            stream_memory: for_reads("stream_memory", stream_memory_bytes),
            caches: remember_caches(),
            public_caches: remember_caches(),
            unsealed_keys: Remembered::builder()
                .max_capacity(REMEMBERED_CACHE_BYTES)
                .weigher(|key: &String, _| u32::try_from(2 * key.len() + 256).unwrap_or(u32::MAX))
                .build(),
            narinfos: Remembered::builder()
                .max_capacity(REMEMBERED_BYTES)
                .weigher(|_, text: &Bytes| u32::try_from(text.len() + 128).unwrap_or(u32::MAX))
                .time_to_live(REMEMBERED)
                .build(),
            plans: Remembered::builder()
                .max_capacity(REMEMBERED_BYTES / 2)
                .weigher(|_, plan: &Arc<ReadPlan>| plan.weight())
                .time_to_live(REMEMBERED)
                .build(),
            large_plans: Remembered::builder()
                .max_capacity(REMEMBERED_BYTES / 2)
                .weigher(|_, plan: &Arc<ReadPlan>| plan.weight())
                .time_to_live(LARGE_PLAN_REMEMBERED)
                .build(),
            proven_packs,
            block_cache: BlockCache::new(),
            encoding_updates: Budget::of_turns(
                "encoding_updates",
                ENCODING_UPDATES_MAX,
                Duration::ZERO,
                "updates",
            ),
            activity: Arc::default(),
            uses: UseRecorder::start(Arc::clone(&index), Arc::clone(&clock), Arc::clone(&metrics)),
            ingest: IngestContext { index, cpu, packer, metrics: Arc::clone(&metrics) },
            metrics,
            change_counts: ChangeCounts::default(),
            readable: ReadableChunks::default(),
            decoded,
            verifications: Verifications::new(settings.checks_max()),
            other_budgets: OtherBudgets::default(),
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
        &self.inner.ingest.index
    }

    /// A collector over the engine's store. `index` is the engine's own, by its other contract.
    pub fn collector(
        &self,
        index: Arc<dyn CollectIndex>,
        interval_seconds: Option<i64>,
        upload_seconds_max: i64,
    ) -> Collector {
        let settings = CollectSettings {
            interval_seconds,
            upload_seconds_max,
            alias_seconds: self.settings().alias_seconds,
            ..CollectSettings::default()
        };
        Collector::new(index, Arc::clone(self.blobs()), Arc::clone(&self.inner.clock), settings)
    }

    /// A scrub over the engine's store. `index` is the engine's own, by its other contract.
    pub fn scrubber(&self, index: Arc<dyn ScrubIndex>) -> Scrubber {
        let blobs = Arc::clone(self.blobs());
        Scrubber::new(Arc::clone(self.index()), index, blobs, Arc::clone(&self.inner.clock))
    }

    /// The limits and choices in force.
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

    /// Answers when the object store can be reached, within `patience`, and packs can be stored. A
    /// store that answers other requests meanwhile can be reached, although it is too busy for this
    /// one.
    pub async fn check_store(&self, patience: Duration) -> Result<()> {
        if !self.inner.ingest.packer.is_running() {
            return Err(Error::PackerDown);
        }
        // Any name will do: the answer "not there" shows that the store can be reached.
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

    /// Whether reads wait for what other reads hold: turns, or memory.
    pub fn reads_wait(&self) -> bool {
        let inner = &self.inner;
        let budgets = [&inner.read_memory, &inner.stream_memory, &inner.stream_turns];
        budgets.into_iter().any(|budget| budget.present_use().waiting > 0)
    }

    /// Memory of an answer that is sent from one piece, out of that for reads. [`Error::Busy`] if
    /// other reads hold all of it for too long.
    pub async fn answer_memory(&self, bytes: u64) -> Result<AnswerMemory> {
        self.read_memory().take(bytes).await.map(AnswerMemory)
    }

    /// Pushes and pulls that the history does not have yet.
    pub fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.inner.activity)
    }

    /// Counts a download of a NAR that begins, for the history.
    pub fn note_pull(&self, cache: &Cache) {
        self.inner.activity.note_pull(cache.id);
    }

    /// The threads for work that takes more than a moment of CPU.
    pub fn cpu(&self) -> &CpuPool {
        &self.inner.ingest.cpu
    }

    fn metrics(&self) -> &Arc<EngineMetrics> {
        &self.inner.metrics
    }

    /// Shows budgets of the program around the engine beside its own, in the same metrics. They
    /// take the place of those that were named before.
    pub fn watch_budgets(&self, now: impl Fn() -> Vec<BudgetUse> + Send + Sync + 'static) {
        self.inner.other_budgets.set(Box::new(now));
    }

    /// Everything that a task may wait for, and how many wait.
    fn budgets(&self) -> Vec<BudgetUse> {
        let inner = &self.inner;
        let pool = self.index().pool_use();
        let index_connections = BudgetUse {
            name: "index_connections",
            limit: pool.max as u64,
            in_use: (pool.open - pool.idle) as u64,
            waiting: pool.waiting as u64,
        };
        let of_engine = [
            inner.ingest.cpu.turns(),
            &inner.encoding_updates,
            &inner.read_memory,
            &inner.stream_memory,
            &inner.stream_turns,
            &inner.upload_memory,
            inner.verifications.turns(),
        ];
        let of_engine = of_engine.into_iter().map(Budget::present_use);
        let of_engine = of_engine.chain([index_connections, inner.ingest.packer.queue_use()]);
        of_engine.chain(inner.other_budgets.now()).collect()
    }

    /// Updates the counters whose values are kept elsewhere.
    fn write_gauges(&self) {
        let metrics = self.metrics();
        metrics.budgets.write(&self.budgets());
        metrics.pushes.streaming.set(gauge_value(self.inner.ingest.packer.streaming() as u64));
        metrics.index.connections_open.set(gauge_value(self.index().pool_use().open as u64));
        let calls = self.index().call_counts();
        for (counter, now) in [
            (&metrics.index.statements, self.index().statement_count()),
            (&metrics.index.repeats, calls.repeats),
            (&metrics.index.failures, calls.failures),
        ] {
            counter.inc_by(now.saturating_sub(counter.get()));
        }
    }

    fn blobs(&self) -> &Arc<dyn Blobs> {
        &self.inner.blobs
    }

    fn master_key(&self) -> &MasterKey {
        &self.inner.master_key
    }

    fn ingest_context(&self) -> &IngestContext {
        &self.inner.ingest
    }

    fn upload_memory(&self) -> &Budget {
        &self.inner.upload_memory
    }

    /// For bytes on their way to readers.
    fn read_memory(&self) -> &Budget {
        &self.inner.read_memory
    }

    /// For the state of streams, from beginning to end.
    fn stream_memory(&self) -> &Budget {
        &self.inner.stream_memory
    }

    fn streams_begun(&self) -> &AtomicU64 {
        &self.inner.streams_begun
    }

    fn active_reads(&self) -> &Arc<AtomicUsize> {
        &self.inner.active_reads
    }

    fn stream_turns(&self) -> &Budget {
        &self.inner.stream_turns
    }

    fn remembered_caches(&self) -> &Remembered<String, Arc<Cache>> {
        &self.inner.caches
    }

    fn remembered_public_caches(&self) -> &Remembered<String, Arc<Cache>> {
        &self.inner.public_caches
    }

    fn unsealed_keys(&self) -> &Remembered<String, Arc<SecretKey>> {
        &self.inner.unsealed_keys
    }

    fn remembered_narinfos(&self) -> &Remembered<NarinfoKey, Bytes> {
        &self.inner.narinfos
    }

    fn remembered_plans(&self) -> &Remembered<PlanKey, Arc<ReadPlan>> {
        &self.inner.plans
    }

    fn remembered_large_plans(&self) -> &Remembered<LargePlanKey, Arc<ReadPlan>> {
        &self.inner.large_plans
    }

    fn proven_packs(&self) -> &Remembered<PackId, ()> {
        &self.inner.proven_packs
    }

    fn encoding_updates(&self) -> &Budget {
        &self.inner.encoding_updates
    }

    fn uses(&self) -> &UseRecorder {
        &self.inner.uses
    }

    fn block_cache(&self) -> &BlockCache {
        &self.inner.block_cache
    }

    fn readable(&self) -> &ReadableChunks {
        &self.inner.readable
    }

    fn decoded_chunks(&self) -> &Arc<DecodedChunks> {
        &self.inner.decoded
    }

    fn verifications(&self) -> &Verifications {
        &self.inner.verifications
    }

    fn change_counts(&self) -> &ChangeCounts {
        &self.inner.change_counts
    }
}

/// Caches that are remembered by name, weighed in bytes.
fn remember_caches() -> Remembered<String, Arc<Cache>> {
    Remembered::builder()
        .max_capacity(REMEMBERED_CACHE_BYTES)
        .weigher(|name: &String, cache: &Arc<Cache>| cache_weight(name, cache))
        .time_to_live(REMEMBERED)
        .build()
}
