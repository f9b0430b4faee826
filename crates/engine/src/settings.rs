//! Every limit and waiting time of the engine, with its default and the reason for it.

use std::time::Duration;

use dormer_format::ChunkParams;

const MIB: u64 = 1024 * 1024;

/// Limits and choices of an [`Engine`](crate::Engine).
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// How NARs are cut. A change costs deduplication against stored chunks.
    pub chunk_params: ChunkParams,
    /// zstd level of new chunks; docs/PERFORMANCE.md has the table behind the default.
    pub zstd_level: i32,
    /// Threads that hash and compress at the same time.
    pub cpu_threads: usize,
    /// Memory for all uploads, in bytes. An upload takes [`UPLOAD_BYTES`] (less when its NAR is
    /// small, more when its decoder needs more) and waits when too little is free. Uploads with
    /// large windows have three quarters, each and together.
    pub upload_memory_bytes_max: u64,
    /// How long an upload waits for memory before the client is told to come back later.
    pub upload_wait: Duration,
    /// Largest NAR that the server accepts, in bytes.
    pub nar_bytes_max: u64,
    /// Largest listing that the server keeps, in bytes of JSON. A NAR with a larger one is stored
    /// without it.
    pub listing_bytes_max: usize,
    /// How long the first waiting upload waits for others to share its pack: this long for each
    /// upload in flight, up to 8.
    pub pack_wait: Duration,
    /// Seconds for which an upload alias resolves.
    pub alias_seconds: i64,
    /// Seconds for which a removed object's NAR stays readable.
    pub grace_seconds: i64,
    /// A use is written down when the stored time is older than this, in seconds. `missing_paths`
    /// writes the use before the answer; a pull leaves that to a background task.
    pub touch_after_seconds: i64,
    /// Memory for all reads, in bytes. Three quarters are for bytes on their way (many readers at
    /// once read in smaller pieces), one quarter for the state of streams: the list of chunks that
    /// each reads.
    pub read_memory_bytes: u64,
    /// Most NARs that are read at once; further readers wait, up to `read_wait`.
    pub reads_max: usize,
    /// How long a read waits for its turn and its memory.
    pub read_wait: Duration,
    /// Seconds after which a push by chunks ends: at most the longest upload that the collector
    /// allows for, so that it keeps the chunks that were sent.
    pub session_seconds: i64,
    /// Most parts of a push by chunks whose caller may not read everything: full ones hold 128 GiB.
    /// With more, it has ended, and its client goes on in a new one.
    pub session_parts_max: usize,
    /// The grid of a session's answers to callers that may not read everything: an answer leaves at
    /// a multiple of this since its request came, so that the time tells nothing of what others
    /// have. A look-up of 16,384 chunks takes 10 to 60 ms, and less if none is stored.
    pub session_grid: Duration,
}

/// Memory of one upload of a large NAR: a batch of chunks that gathers and one that is being
/// compressed (3 MiB each), the chunker's buffer (0.6 MiB), the listing (a chunker and two batches
/// of 0.5 MiB), queued chunks (0.5 MiB), and the body's frames in flight.
pub const UPLOAD_BYTES: u64 = 10 * MIB;

/// Memory of an upload in any compression with its default window, at most. An upload that takes
/// more is a large one.
pub(crate) const ORDINARY_UPLOAD_BYTES: u64 = 24 * MIB;

impl EngineSettings {
    /// Most memory of one upload, in bytes.
    pub(crate) fn upload_bytes_max(&self) -> u64 {
        crate::budget::large_bytes_max(self.upload_memory_bytes_max)
    }

    /// Checks of NARs that a push by chunks describes, at most so many at once.
    pub fn checks_max(&self) -> usize {
        2 * self.cpu_threads.max(1)
    }

    /// Most memory of all work at once, in bytes: the sum in docs/ARCHITECTURE.md, without the
    /// process itself.
    pub fn memory_bytes_max(&self) -> u64 {
        self.upload_memory_bytes_max
            + crate::packer::PACKER_BYTES_MAX
            + crate::collect::COMPACTION_BYTES_MAX
            + self.read_memory_bytes
            + 2 * crate::remembered::REMEMBERED_BYTES
    }
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            chunk_params: ChunkParams::default(),
            zstd_level: 6,
            cpu_threads: std::thread::available_parallelism().map_or(2, usize::from),
            // Three quarters are 144 MiB: one upload that takes the decoder of `zstd -22`.
            upload_memory_bytes_max: 192 * MIB,
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
            session_parts_max: 16_384,
            session_seconds: 86_400,
            session_grid: Duration::from_millis(250),
        }
    }
}
