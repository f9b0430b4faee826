//! What the engine counts. This file has the names, help texts and buckets; docs/METRICS.md is
//! generated from them.
//!
//! The counters come from the `prometheus` crate because a histogram of our own would be the same
//! thing again. They belong to an [`Engine`](crate::Engine), not to the process. The server decides
//! where it shows them.
//!
//! Labels are words of the program: nothing that a user chooses becomes a label, so the number of
//! series is bounded.

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use crate::budget::BudgetUse;

/// Pack sizes, in bytes: 64 KiB to 32 MiB, the largest there are.
const PACK_BYTES: &[f64] =
    &[65_536.0, 262_144.0, 1_048_576.0, 2_097_152.0, 4_194_304.0, 8_388_608.0, 16_777_216.0, 33_554_432.0];

/// Waiting for other uploads, in seconds: 50 ms is one `pack_wait`, 400 ms the longest wait by
/// default.
const WAIT_SECONDS: &[f64] = &[0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 2.0];

/// Storing a pack, in seconds: a local disk takes about 10 ms, an object store up to seconds,
/// retries longer.
const STORE_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Uploads that share a pack.
const SHARES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// The engine's counters, by topic.
#[derive(Debug)]
pub(crate) struct EngineMetrics {
    pub(crate) pushes: PushMetrics,
    pub(crate) packs: PackMetrics,
    pub(crate) reads: ReadMetrics,
    pub(crate) index: IndexMetrics,
    pub(crate) budgets: BudgetGauges,
    pub(crate) sessions: SessionMetrics,
    /// Describes the metrics of a store, which a local store lacks. A store over a network has
    /// counters of its own.
    pub(crate) store: dormer_blobs::Counters,
}

impl EngineMetrics {
    pub(crate) fn new() -> Self {
        Self {
            pushes: PushMetrics::new(),
            packs: PackMetrics::new(),
            reads: ReadMetrics::new(),
            index: IndexMetrics::new(),
            budgets: BudgetGauges::new(),
            sessions: SessionMetrics::new(),
            store: dormer_blobs::Counters::default(),
        }
    }

    /// All of them, but for those of the store.
    pub(crate) fn all(&self) -> impl Iterator<Item = &dyn Collector> {
        let pushes = self.pushes.all().into_iter().chain(self.packs.all()).chain(self.sessions.all());
        pushes.chain(self.reads.all()).chain(self.index.all()).chain(self.budgets.all())
    }
}

/// NARs that were pushed, in whatever way.
#[derive(Debug)]
pub(crate) struct PushMetrics {
    pub(crate) nars: IntCounterVec,
    pub(crate) nar_bytes: IntCounter,
    pub(crate) new_chunk_bytes: IntCounter,
    deduplicated: IntCounterVec,
    pub(crate) streaming: IntGauge,
}

/// Why the engine did not store bytes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deduplicated {
    /// The server had the whole NAR.
    Nar,
    /// The server had the chunk, which names no store path.
    PlainChunk,
    /// The server had the chunk, which names store paths: without holes it would differ after each
    /// rebuild of those.
    ChunkWithHoles,
}

impl PushMetrics {
    fn new() -> Self {
        let metrics = Self {
            nars: counters(
                "dormer_nars_received_total",
                "NARs that were received whole and verified, by whether they were new",
                "known",
            ),
            nar_bytes: counter("dormer_nar_bytes_received_total", "Bytes of those NARs, uncompressed"),
            new_chunk_bytes: counter(
                "dormer_chunk_bytes_new_total",
                "Bytes of chunks that were stored because no upload had brought them before, uncompressed",
            ),
            deduplicated: counters(
                "dormer_deduplicated_bytes_total",
                "Bytes that were not stored again, uncompressed, because this was there: the nar, a plain chunk, or a \
                 chunk with holes (one that names store paths and would be another one after each rebuild of those)",
                "by",
            ),
            streaming: gauge("dormer_uploads_streaming", "Uploads that are being received and stored now"),
        };
        show_zero(&metrics.nars, &["false", "true"]);
        for by in [Deduplicated::Nar, Deduplicated::PlainChunk, Deduplicated::ChunkWithHoles] {
            metrics.count_deduplicated(by, 0);
        }
        metrics
    }

    pub(crate) fn count_deduplicated(&self, by: Deduplicated, bytes: u64) {
        let label = match by {
            Deduplicated::Nar => "nar",
            Deduplicated::PlainChunk => "plain_chunk",
            Deduplicated::ChunkWithHoles => "chunk_with_holes",
        };
        self.deduplicated.with_label_values(&[label]).inc_by(bytes);
    }

    fn all(&self) -> [&dyn Collector; 5] {
        [&self.nars, &self.nar_bytes, &self.new_chunk_bytes, &self.deduplicated, &self.streaming]
    }
}

/// Packs on their way into the store.
#[derive(Debug)]
pub(crate) struct PackMetrics {
    pub(crate) bytes: Histogram,
    pub(crate) uploads: Histogram,
    pub(crate) wait_seconds: Histogram,
    pub(crate) store_seconds: Histogram,
    pub(crate) retries: IntCounterVec,
    pub(crate) lost: IntCounter,
    pub(crate) packer_restarts: IntCounter,
}

impl PackMetrics {
    fn new() -> Self {
        let metrics = Self {
            bytes: histogram("dormer_pack_bytes", "Sizes of the packs that were stored", PACK_BYTES),
            uploads: histogram(
                "dormer_pack_uploads",
                "Uploads that shared a pack: the size of a group commit",
                SHARES,
            ),
            wait_seconds: histogram(
                "dormer_pack_wait_seconds",
                "How long the first upload that waited for a pack waited until it was sealed",
                WAIT_SECONDS,
            ),
            store_seconds: histogram(
                "dormer_pack_store_seconds",
                "How long it took to store a pack and to commit its rows, or to give up, retries included",
                STORE_SECONDS,
            ),
            retries: counters(
                "dormer_pack_retries_total",
                "Steps of storing a pack that failed and were tried again",
                "step",
            ),
            lost: counter(
                "dormer_packs_lost_total",
                "Packs that could not be stored; their uploads were told to come back",
            ),
            packer_restarts: counter(
                "dormer_packer_restarts_total",
                "Panics of the packing task, after which it started again: a defect; uploads that waited failed",
            ),
        };
        show_zero(&metrics.retries, &["object", "rows"]);
        metrics
    }

    fn all(&self) -> [&dyn Collector; 7] {
        [
            &self.bytes,
            &self.uploads,
            &self.wait_seconds,
            &self.store_seconds,
            &self.retries,
            &self.lost,
            &self.packer_restarts,
        ]
    }
}

/// Narinfos and NARs that were asked for.
#[derive(Debug)]
pub(crate) struct ReadMetrics {
    pub(crate) narinfos: Narinfos,
    pub(crate) uses: Uses,
    pub(crate) encoding_failures: IntCounter,
    pub(crate) nars_damaged: IntCounter,
    pub(crate) retries: IntCounter,
}

/// Where narinfos came from. Each counter is looked up once: the engine counts a hundred thousand
/// narinfos a second.
#[derive(Debug)]
pub(crate) struct Narinfos {
    pub(crate) memory: IntCounter,
    pub(crate) index: IntCounter,
    pub(crate) missing: IntCounter,
    all: IntCounterVec,
}

/// What became of uses that pulls reported.
#[derive(Debug)]
pub(crate) struct Uses {
    pub(crate) written: IntCounter,
    pub(crate) lost: IntCounter,
    all: IntCounterVec,
}

impl ReadMetrics {
    fn new() -> Self {
        let narinfos = counters(
            "dormer_narinfos_total",
            "Narinfos asked for, by where the answer came from: memory, the index, or missing",
            "from",
        );
        let uses = counters(
            "dormer_uses_total",
            "Times of last use that pulls reported, by outcome: written, or lost because the database did not take them; \
             pulls are answered either way",
            "outcome",
        );
        Self {
            narinfos: Narinfos {
                memory: narinfos.with_label_values(&["memory"]),
                index: narinfos.with_label_values(&["index"]),
                missing: narinfos.with_label_values(&["missing"]),
                all: narinfos,
            },
            uses: Uses {
                written: uses.with_label_values(&["written"]),
                lost: uses.with_label_values(&["lost"]),
                all: uses,
            },
            encoding_failures: counter(
                "dormer_encoding_update_failures_total",
                "New encoding tags of healed NARs that the database did not take; the NARs are served all the same",
            ),
            nars_damaged: counter(
                "dormer_nars_damaged_total",
                "NARs found damaged by a read; the next push of each heals it",
            ),
            retries: counter(
                "dormer_read_retries_total",
                "Reads of stored bytes that failed and were tried again",
            ),
        }
    }

    fn all(&self) -> [&dyn Collector; 5] {
        [&self.narinfos.all, &self.uses.all, &self.encoding_failures, &self.nars_damaged, &self.retries]
    }
}

/// Calls to the database.
#[derive(Debug)]
pub(crate) struct IndexMetrics {
    pub(crate) statements: IntCounter,
    pub(crate) repeats: IntCounter,
    pub(crate) failures: IntCounter,
    pub(crate) connections_open: IntGauge,
}

impl IndexMetrics {
    fn new() -> Self {
        Self {
            statements: counter("dormer_index_statements_total", "SQL statements sent"),
            repeats: counter(
                "dormer_index_repeats_total",
                "Calls to the database that failed and were tried again",
            ),
            failures: counter(
                "dormer_index_failures_total",
                "Calls to the database that failed after all their tries",
            ),
            connections_open: gauge(
                "dormer_index_connections_open",
                "Connections to the database that are open now, used or idle",
            ),
        }
    }

    fn all(&self) -> [&dyn Collector; 4] {
        [&self.statements, &self.repeats, &self.failures, &self.connections_open]
    }
}

/// Pushes by chunks.
#[derive(Debug)]
pub(crate) struct SessionMetrics {
    pub(crate) chunks: IntCounterVec,
    pub(crate) parts: IntCounter,
    pub(crate) part_bytes: IntCounter,
    pub(crate) checked_bytes: IntCounterVec,
}

impl SessionMetrics {
    fn new() -> Self {
        let metrics = Self {
            chunks: counters(
                "dormer_session_chunks_total",
                "Chunks that pushes by chunks asked for, by the answer: present, or missing and to be sent",
                "answer",
            ),
            parts: counter(
                "dormer_session_parts_total",
                "Parts of pushes by chunks that were received and stored",
            ),
            part_bytes: counter("dormer_session_part_bytes_total", "Bytes of those parts, compressed"),
            checked_bytes: counters(
                "dormer_session_checked_bytes_total",
                "Bytes of NARs that were checked for pushes by chunks, uncompressed, by where they came from: memory, \
                 where a part had left them, or the store",
                "from",
            ),
        };
        show_zero(&metrics.chunks, &["missing", "present"]);
        show_zero(&metrics.checked_bytes, &["memory", "store"]);
        metrics
    }

    fn all(&self) -> [&dyn Collector; 4] {
        [&self.chunks, &self.parts, &self.part_bytes, &self.checked_bytes]
    }
}

/// What tasks wait for: one series per budget in each family.
#[derive(Debug)]
pub(crate) struct BudgetGauges {
    limit: IntGaugeVec,
    in_use: IntGaugeVec,
    waiting: IntGaugeVec,
}

impl BudgetGauges {
    fn new() -> Self {
        Self {
            limit: gauges(
                "dormer_budget_limit",
                "Size of each budget: bytes for those named memory, else jobs, turns, connections or chunks",
                "budget",
            ),
            in_use: gauges("dormer_budget_in_use", "The part of each budget that is taken now", "budget"),
            waiting: gauges(
                "dormer_budget_waiting",
                "Tasks that wait for a share of each budget now: what a stuck request waits for",
                "budget",
            ),
        }
    }

    pub(crate) fn write(&self, budgets: &[BudgetUse]) {
        for budget in budgets {
            let families = [(&self.limit, budget.limit), (&self.in_use, budget.in_use)];
            for (family, value) in families.into_iter().chain([(&self.waiting, budget.waiting)]) {
                family.with_label_values(&[budget.name]).set(gauge_value(value));
            }
        }
    }

    fn all(&self) -> [&dyn Collector; 3] {
        [&self.limit, &self.in_use, &self.waiting]
    }
}

/// A count as a gauge takes it.
pub(crate) fn gauge_value(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Shows series as zero from the start: a rate over a series that begins with its first event
/// misses that event.
fn show_zero(family: &IntCounterVec, labels: &[&str]) {
    for label in labels {
        family.with_label_values(&[label]);
    }
}

const WELL_FORMED: &str = "names, labels and buckets are written in this file and are well formed";

fn counter(name: &str, help: &str) -> IntCounter {
    IntCounter::new(name, help).expect(WELL_FORMED)
}

fn counters(name: &str, help: &str, label: &str) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), &[label]).expect(WELL_FORMED)
}

fn gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect(WELL_FORMED)
}

fn gauges(name: &str, help: &str, label: &str) -> IntGaugeVec {
    IntGaugeVec::new(Opts::new(name, help), &[label]).expect(WELL_FORMED)
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> Histogram {
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())).expect(WELL_FORMED)
}
