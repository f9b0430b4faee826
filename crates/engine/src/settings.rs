//! Every limit and waiting time of the engine, with its default and the reason for it.

use std::time::Duration;

use dormer_format::ChunkParams;

const MIB: u64 = 1024 * 1024;

/// Limits and choices of an [`Engine`](crate::Engine).
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// How NARs are cut. Changing it costs deduplication against what is already stored.
    pub chunk_params: ChunkParams,
    /// zstd level of new chunks; docs/PERFORMANCE.md has the table that the default was chosen from.
    pub zstd_level: i32,
    /// Threads that hash and compress at the same time.
    pub cpu_threads: usize,
    /// Memory for uploads in all, in bytes. An upload takes [`UPLOAD_BYTES`] (less when its NAR is small, more when its
    /// decoder needs it) and waits its turn when there is not enough.
    pub upload_memory_bytes_max: u64,
    /// How long an upload waits for its turn before it is told to come back later.
    pub upload_wait: Duration,
    /// Largest NAR taken, in bytes.
    pub nar_bytes_max: u64,
    /// Largest listing kept, in bytes of JSON; a NAR with a larger one is stored without it.
    pub listing_bytes_max: usize,
    /// How long the first waiting upload waits for others to share its pack: for each of those in flight, up to 8 times this.
    pub pack_wait: Duration,
    /// Seconds for which an upload alias resolves.
    pub alias_seconds: i64,
    /// Seconds for which a removed object's NAR stays readable.
    pub grace_seconds: i64,
    /// A use is written down when the stored time is older than this, in seconds. `missing_paths` writes the use before
    /// the answer; a pull leaves that to a background task.
    pub touch_after_seconds: i64,
    /// Memory for reads in all, in bytes. Three quarters are for bytes under way (many readers at once read in smaller
    /// pieces), one quarter for what streams hold all the time: which chunks they read.
    pub read_memory_bytes: u64,
    /// Most NARs being read at once; more wait, up to `read_wait`.
    pub reads_max: usize,
    /// How long a read waits for its turn.
    pub read_wait: Duration,
}

/// Memory that one upload of a large NAR takes: a batch of chunks being gathered and one being compressed (3 MiB each),
/// the chunker's buffer (1.1 MiB), as much again for its listing (a chunker and two batches of 0.5 MiB), what is known of
/// chunks on their way (0.5 MiB), and the body's frames in flight.
pub const UPLOAD_BYTES: u64 = 10 * MIB;

impl EngineSettings {
    /// Most memory for all that is done at once, in bytes: the sum in docs/ARCHITECTURE.md, without the process itself.
    pub fn memory_bytes_max(&self) -> u64 {
        self.upload_memory_bytes_max
            + crate::packer::PACKER_BYTES_MAX
            + self.read_memory_bytes
            + 2 * crate::REMEMBERED_BYTES
    }
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            chunk_params: ChunkParams::default(),
            zstd_level: 6,
            cpu_threads: std::thread::available_parallelism().map_or(2, usize::from),
            // Eight large NARs at once, or one that takes the decoder of `xz -9`.
            upload_memory_bytes_max: 8 * UPLOAD_BYTES,
            upload_wait: Duration::from_mins(1),
            nar_bytes_max: 64 * 1024 * MIB,
            listing_bytes_max: 64 * 1024 * 1024,
            pack_wait: Duration::from_millis(50),
            // As long as Nix remembers a narinfo that it pushed or fetched.
            alias_seconds: 30 * 86_400,
            grace_seconds: 30 * 86_400,
            touch_after_seconds: 3_600,
            read_memory_bytes: 64 * MIB,
            reads_max: 512,
            read_wait: Duration::from_secs(30),
        }
    }
}
