//! What the engine counts. This file has the names, help texts and buckets; docs/METRICS.md is
//! generated from them.
//!
//! The counters come from the `prometheus` crate because a histogram of our own would be the same
//! thing again. They belong to an [`Engine`](crate::Engine), not to the process. The server decides
//! where it shows them.
//!
//! Labels are words of the program: nothing that a user chooses becomes a label, so the number of
//! series is bounded.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
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

/// The engine's counters.
#[derive(Debug)]
pub(crate) struct EngineMetrics {
    pub(crate) nars: IntCounterVec,
    pub(crate) nar_bytes: IntCounter,
    pub(crate) new_chunk_bytes: IntCounter,
    deduplicated: IntCounterVec,
    pub(crate) pack_bytes: Histogram,
    pub(crate) pack_uploads: Histogram,
    pub(crate) pack_wait: Histogram,
    pub(crate) pack_store: Histogram,
    pub(crate) pack_retries: IntCounterVec,
    pub(crate) packs_lost: IntCounter,
    pub(crate) narinfos: Narinfos,
    pub(crate) uses: Uses,
    pub(crate) encoding_failures: IntCounter,
    pub(crate) nars_damaged: IntCounter,
    pub(crate) read_retries: IntCounter,
    pub(crate) index_statements: IntCounter,
    pub(crate) index_repeats: IntCounter,
    pub(crate) index_failures: IntCounter,
    pub(crate) index_connections_open: IntGauge,
    pub(crate) packer_restarts: IntCounter,
    pub(crate) budgets: BudgetGauges,
    pub(crate) uploads_streaming: IntGauge,
    pub(crate) session_chunks: IntCounterVec,
    pub(crate) session_parts: IntCounter,
    pub(crate) session_part_bytes: IntCounter,
    pub(crate) session_checked_bytes: IntCounterVec,
    /// Describes the metrics of a store, which a local store lacks. A store over a network has
    /// counters of its own.
    store: dormer_blobs::Counters,
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
}

/// A count as a gauge takes it.
pub(crate) fn gauge_value(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// What became of uses that pulls reported.
#[derive(Debug)]
pub(crate) struct Uses {
    pub(crate) written: IntCounter,
    pub(crate) lost: IntCounter,
    all: IntCounterVec,
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

impl EngineMetrics {
    pub(crate) fn new() -> Self {
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
        let metrics = Self {
            uses: Uses {
                written: uses.with_label_values(&["written"]),
                lost: uses.with_label_values(&["lost"]),
                all: uses,
            },
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
            pack_bytes: histogram("dormer_pack_bytes", "Sizes of the packs that were stored", PACK_BYTES),
            pack_uploads: histogram(
                "dormer_pack_uploads",
                "Uploads that shared a pack: the size of a group commit",
                SHARES,
            ),
            pack_wait: histogram(
                "dormer_pack_wait_seconds",
                "How long the first upload that waited for a pack waited until it was sealed",
                WAIT_SECONDS,
            ),
            pack_store: histogram(
                "dormer_pack_store_seconds",
                "How long it took to store a pack and to commit its rows, or to give up, retries included",
                STORE_SECONDS,
            ),
            pack_retries: counters(
                "dormer_pack_retries_total",
                "Steps of storing a pack that failed and were tried again",
                "step",
            ),
            packs_lost: counter(
                "dormer_packs_lost_total",
                "Packs that could not be stored; their uploads were told to come back",
            ),
            narinfos: Narinfos {
                memory: narinfos.with_label_values(&["memory"]),
                index: narinfos.with_label_values(&["index"]),
                missing: narinfos.with_label_values(&["missing"]),
                all: narinfos,
            },
            encoding_failures: counter(
                "dormer_encoding_update_failures_total",
                "New encoding tags of healed NARs that the database did not take; the NARs are served all the same",
            ),
            nars_damaged: counter(
                "dormer_nars_damaged_total",
                "NARs found damaged by a read; the next push of each heals it",
            ),
            read_retries: counter(
                "dormer_read_retries_total",
                "Reads of stored bytes that failed and were tried again",
            ),
            index_statements: counter("dormer_index_statements_total", "SQL statements sent"),
            index_repeats: counter(
                "dormer_index_repeats_total",
                "Calls to the database that failed and were tried again",
            ),
            index_failures: counter(
                "dormer_index_failures_total",
                "Calls to the database that failed after all their tries",
            ),
            index_connections_open: gauge(
                "dormer_index_connections_open",
                "Connections to the database that are open now, used or idle",
            ),
            packer_restarts: counter(
                "dormer_packer_restarts_total",
                "Panics of the packing task, after which it started again: a defect; uploads that waited failed",
            ),
            budgets: BudgetGauges::new(),
            uploads_streaming: gauge(
                "dormer_uploads_streaming",
                "Uploads that are being received and stored now",
            ),
            session_chunks: counters(
                "dormer_session_chunks_total",
                "Chunks that pushes by chunks asked for, by the answer: present, or missing and to be sent",
                "answer",
            ),
            session_parts: counter(
                "dormer_session_parts_total",
                "Parts of pushes by chunks that were received and stored",
            ),
            session_part_bytes: counter(
                "dormer_session_part_bytes_total",
                "Bytes of those parts, compressed",
            ),
            session_checked_bytes: counters(
                "dormer_session_checked_bytes_total",
                "Bytes of NARs that were checked for pushes by chunks, uncompressed, by where they came from: memory, \
                 where a part had left them, or the store",
                "from",
            ),
            store: dormer_blobs::Counters::default(),
        };
        // Shown as zero from the start: a rate over a series that begins with its first event
        // misses that event.
        for (counters, labels) in [
            (&metrics.nars, ["false", "true"]),
            (&metrics.pack_retries, ["object", "rows"]),
            (&metrics.session_chunks, ["missing", "present"]),
            (&metrics.session_checked_bytes, ["memory", "store"]),
        ] {
            for label in labels {
                counters.with_label_values(&[label]);
            }
        }
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

    fn all(&self) -> [&dyn Collector; 28] {
        [
            &self.nars,
            &self.nar_bytes,
            &self.new_chunk_bytes,
            &self.deduplicated,
            &self.pack_bytes,
            &self.pack_uploads,
            &self.pack_wait,
            &self.pack_store,
            &self.pack_retries,
            &self.packs_lost,
            &self.narinfos.all,
            &self.uses.all,
            &self.encoding_failures,
            &self.nars_damaged,
            &self.read_retries,
            &self.index_statements,
            &self.index_repeats,
            &self.index_failures,
            &self.index_connections_open,
            &self.packer_restarts,
            &self.budgets.limit,
            &self.budgets.in_use,
            &self.budgets.waiting,
            &self.uploads_streaming,
            &self.session_chunks,
            &self.session_parts,
            &self.session_part_bytes,
            &self.session_checked_bytes,
        ]
    }
}

// The gauges are written when the metrics are collected.
impl Collector for crate::Engine {
    fn desc(&self) -> Vec<&Desc> {
        let own = self.metrics().all().into_iter().flat_map(Collector::desc);
        own.chain(self.metrics().store.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.write_gauges();
        let own = self.metrics().all().into_iter().flat_map(Collector::collect);
        own.chain(self.blobs().counters().map(Collector::collect).unwrap_or_default()).collect()
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
