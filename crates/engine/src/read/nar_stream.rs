//! A NAR as a stream of bytes: reads are begun ahead, and their pieces leave in order.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use dormer_index::ChunkRow;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesOrdered, Stream};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::plan::{Limits, Next, ReadPlan, ReadSource};
use crate::budget::BudgetShare;
use crate::{Engine, Error, Result};

/// Largest single read. Past 1 MiB a local read gains nothing and falls out of the second-level
/// cache.
const READ_BYTES_MAX: u64 = 1024 * 1024;

/// Smallest limit for a read, however many readers there are.
const READ_BYTES_MIN: u64 = 64 * 1024;

/// Largest read over a network: 40 ms at 100 MB/s, about what a request takes anyway. Twice as much
/// saves a tenth of the requests of a closure, and a slow client would hold it for twice as long.
const REMOTE_READ_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Most unused bytes between two chunks that one read covers: on a disk, and over a network.
const GAP_BYTES_MAX: u64 = 64 * 1024;
const REMOTE_GAP_BYTES_MAX: u64 = 256 * 1024;

/// Requests of one read. Updated packages are made of runs from two or three packs in turns.
const REMOTE_FETCHES_MAX: usize = 8;

/// Reads in progress for one stream: one that is being sent, one ahead.
const READS_AHEAD: usize = 2;

/// The bytes of a NAR as they are served. After an error the caller must cut off its answer, never
/// end it cleanly. The pieces keep their share of the memory for reads until they are dropped.
pub struct NarStream {
    pieces: BoxStream<'static, Result<Bytes>>,
}

impl Stream for NarStream {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pieces.poll_next_unpin(context)
    }
}

impl NarStream {
    /// Begins to read a range of a NAR. The first read is verified when this returns. The stream
    /// also holds `reader_bytes` of memory for what its reader keeps throughout.
    pub(super) async fn begin(
        engine: Engine,
        plan: Arc<ReadPlan>,
        range: Range<u64>,
        reader_bytes: u64,
    ) -> Result<Self> {
        let turn = engine.stream_turns().take(1).await?;
        let memory = engine.stream_memory().take(plan.stream_bytes() + reader_bytes).await?;
        let mut reader = NarReader {
            source: ReadSource::new(&plan, range),
            reads: FuturesOrdered::new(),
            loading: None,
            _active: ActiveRead::new(&engine),
            engine,
            plan,
            _turn: turn,
            _memory: memory,
        };
        let first = reader.next().await?.unwrap_or_default();
        let others = futures::stream::try_unfold(reader, async |mut reader| {
            reader.next().await.map(|pieces| pieces.map(|pieces| (pieces, reader)))
        });
        let reads = futures::stream::iter([Ok(first)]).chain(others);
        let pieces = reads
            .map_ok(|pieces| futures::stream::iter(pieces.into_iter().map(Ok::<_, Error>)))
            .try_flatten();
        Ok(Self { pieces: pieces.boxed() })
    }
}

/// The state of a stream. Its turn and its memory return when it ends.
struct NarReader {
    engine: Engine,
    plan: Arc<ReadPlan>,
    source: ReadSource,
    /// Reads in progress, in order.
    reads: FuturesOrdered<BoxFuture<'static, Result<VecDeque<Bytes>>>>,
    /// The next window of rows, while it is being loaded.
    loading: Option<Work<Vec<ChunkRow>>>,
    _active: ActiveRead,
    _turn: BudgetShare,
    _memory: BudgetShare,
}

impl NarReader {
    /// The pieces of the next read.
    async fn next(&mut self) -> Result<Option<VecDeque<Bytes>>> {
        loop {
            self.begin_reads();
            let Some(loading) = &mut self.loading else { return self.reads.next().await.transpose() };
            // Both go on side by side: rows for the next reads, and the reads before them.
            tokio::select! {
                biased;
                rows = loading => {
                    self.loading = None;
                    self.source.add_rows(ended(rows)?.into());
                }
                Some(pieces) = self.reads.next() => return pieces.map(Some),
            }
        }
    }

    /// Begins as many reads as there may be at present, and the loading of the rows that further
    /// reads need.
    fn begin_reads(&mut self) {
        while self.may_begin_read() {
            match self.source.next_read(&self.engine.read_limits()) {
                Next::Read(read) => {
                    let read = self.engine.clone().read(Arc::clone(&self.plan), read);
                    // A disk has no turns to keep, and a task would cost a single reader a tenth of
                    // its rate.
                    let is_remote = self.engine.blobs().is_remote();
                    self.reads.push_back(if is_remote {
                        begin(read).map(ended).boxed()
                    } else {
                        read.boxed()
                    });
                }
                Next::NeedsRows(window) => {
                    let load = self.engine.clone().load_window(Arc::clone(&self.plan), window);
                    self.loading = Some(begin(load));
                }
                Next::Loading | Next::End => return,
            }
        }
    }

    /// The read that is needed next always begins; further reads begin only while there is enough
    /// memory for all streams.
    fn may_begin_read(&self) -> bool {
        match self.reads.len() {
            0 => true,
            count => count < READS_AHEAD && self.engine.read_memory().is_half_free(),
        }
    }
}

/// Work that goes on while the client takes no bytes, and ends with the stream. Otherwise a client
/// that takes nothing could stop the work anywhere, while it holds a connection to the database or
/// a turn at the store.
type Work<T> = AbortOnDropHandle<Result<T>>;

fn begin<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Work<T> {
    AbortOnDropHandle::new(tokio::spawn(work.in_current_span()))
}

fn ended<T>(outcome: Result<Result<T>, JoinError>) -> Result<T> {
    match outcome.map_err(JoinError::try_into_panic) {
        Ok(outcome) => outcome,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // Only a run time that shuts down aborts work that is still awaited.
        Err(Err(_)) => Err(Error::Busy { what: "downloads" }),
    }
}

/// Counts a stream among those that share the memory for reads.
struct ActiveRead(Arc<AtomicUsize>);

impl ActiveRead {
    fn new(engine: &Engine) -> Self {
        let count = Arc::clone(engine.active_reads());
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for ActiveRead {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Engine {
    /// How much one read may take at present, and how it may be put together.
    pub(super) fn read_limits(&self) -> Limits {
        let readers = self.active_reads().load(Ordering::Relaxed).max(1) as u64;
        // Streams hold the other quarter all the time.
        let bytes = self.settings().read_memory_bytes / 4 * 3;
        let share = (bytes / readers / (READS_AHEAD as u64 + 1)).clamp(READ_BYTES_MIN, READ_BYTES_MAX);
        if !self.blobs().is_remote() {
            return Limits { bytes: share, memory_bytes: 2 * share, gap_bytes: GAP_BYTES_MAX, fetches: 1 };
        }
        // Large reads leave a quarter of the memory free, so that slow readers that hold them stop
        // no others.
        let large = (bytes / 4 * 3 / readers).min(REMOTE_READ_BYTES_MAX);
        let has_room = self.read_memory().free() >= large + bytes / 4;
        let bytes = if has_room { large.max(share) } else { share };
        Limits { bytes, memory_bytes: bytes, gap_bytes: REMOTE_GAP_BYTES_MAX, fetches: REMOTE_FETCHES_MAX }
    }
}
