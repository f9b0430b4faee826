//! What the engine counts. Names, help texts and buckets stand here; docs/METRICS.md is made from them.
//!
//! The counters are the `prometheus` crate's because a histogram of our own would be the same thing again; they belong to
//! an [`Engine`](crate::Engine), not to the process, and who shows them, and how, is the server's business.
//!
//! Labels are words from this file: nothing that a user chooses becomes one, so their number is bounded.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

/// Pack sizes, in bytes: 64 KiB to 32 MiB, the largest there are.
const PACK_BYTES: &[f64] =
    &[65_536.0, 262_144.0, 1_048_576.0, 2_097_152.0, 4_194_304.0, 8_388_608.0, 16_777_216.0, 33_554_432.0];

/// Waiting for company, in seconds: 50 ms is one `pack_wait`, 400 ms the longest by default.
const WAIT_SECONDS: &[f64] = &[0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 2.0];

/// Storing a pack, in seconds: a local disk takes some 10 ms, an object store up to seconds, retries longer.
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
    pub(crate) index_connections: IntGaugeVec,
    pub(crate) index_connections_max: IntGauge,
    pub(crate) index_waiting: IntGauge,
    pub(crate) uploads_streaming: IntGauge,
    pub(crate) memory: IntGaugeVec,
    pub(crate) memory_max: IntGaugeVec,
    pub(crate) memory_waiting: IntGaugeVec,
    pub(crate) reads: IntGauge,
    pub(crate) reads_waiting: IntGauge,
    pub(crate) cpu_jobs: IntGauge,
    pub(crate) cpu_jobs_waiting: IntGauge,
    pub(crate) packer_queue: IntGauge,
    /// Describes the metrics of a store, which a local store lacks. A store over a network has counters of its own.
    store: dormer_blobs::Counters,
}

/// Where narinfos came from. Each counter is looked up once: they are counted a hundred thousand times a second.
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

/// Why bytes were not stored again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deduplicated {
    /// The whole NAR was there.
    Nar,
    /// The chunk was there, and it names no store path.
    PlainChunk,
    /// The chunk was there, and it names store paths: without holes it would be another one after each rebuild of those.
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
                "Bytes of chunks that were stored because nobody had brought them before, uncompressed",
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
            index_connections: gauges(
                "dormer_index_connections",
                "Connections to the database now, used or idle",
                "state",
            ),
            index_connections_max: gauge(
                "dormer_index_connections_limit",
                "Most connections to the database at once",
            ),
            index_waiting: gauge(
                "dormer_index_waiting",
                "Calls that wait for a connection to the database now",
            ),
            uploads_streaming: gauge(
                "dormer_uploads_streaming",
                "Uploads that are being received and stored now",
            ),
            memory: gauges(
                "dormer_memory_reserved_bytes",
                "Memory that is reserved now for uploads, for reads of stored bytes, for streams of NARs",
                "for",
            ),
            memory_max: gauges(
                "dormer_memory_limit_bytes",
                "Most memory that may be reserved for each",
                "for",
            ),
            memory_waiting: gauges(
                "dormer_memory_waiting",
                "Those who wait for memory now, by what for",
                "for",
            ),
            reads: gauge("dormer_reads", "NARs being read now"),
            reads_waiting: gauge("dormer_reads_waiting", "Reads that wait for their turn now"),
            cpu_jobs: gauge("dormer_cpu_jobs", "Jobs of hashing and compression that run now"),
            cpu_jobs_waiting: gauge("dormer_cpu_jobs_waiting", "Jobs that wait for a CPU now"),
            packer_queue: gauge("dormer_packer_queue_chunks", "Chunks on their way to the open pack now"),
            store: dormer_blobs::Counters::default(),
        };
        // Shown as zero before they happen: a rate over a series that begins with its first event misses that event.
        for (counters, labels) in
            [(&metrics.nars, ["false", "true"]), (&metrics.pack_retries, ["object", "rows"])]
        {
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
            &self.index_connections,
            &self.index_connections_max,
            &self.index_waiting,
            &self.uploads_streaming,
            &self.memory,
            &self.memory_max,
            &self.memory_waiting,
            &self.reads,
            &self.reads_waiting,
            &self.cpu_jobs,
            &self.cpu_jobs_waiting,
            &self.packer_queue,
        ]
    }
}

// The gauges among these are written when somebody looks.
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

/// Counts who waits, for as long as it lives.
pub(crate) struct Waiting(IntGauge);

impl Waiting {
    pub(crate) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
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
