//! Reading: a NAR is served by splicing stored frames and hole frames. No codec runs here.
//!
//! Algorithm: the recipe's chunk rows are loaded (1,024 at a time for a large NAR), neighbours in a pack are read
//! together, one read ahead; every chunk is checked against its XXH3-64 before any of its bytes leave. Over a network, where a
//! request costs money and a round trip, reads are larger, gather what lies in several packs, and small ones bring their
//! surroundings along, which are kept for the next one.
//!
//! Invariants
//! - Before the caller gets a stream, every pack it needs is known to exist and the first read is verified. Over a network a
//!   pack that was stored or read within a minute is known to exist, and no request asks for that alone if a read will tell.
//! - Memory is reserved before it is used: what a stream holds all the time when it begins, each read before it is carried
//!   out, until its last byte is sent. Reading ahead is left out while memory is scarce, so it never keeps others waiting.
//! - Bytes under a tag never change: the tag is recomputed from the rows that are served, and rows that are loaded later have
//!   to be the same still. When healing re-encoded a chunk,
//!   the NAR gets its new tag here, and callers that ask by the old one are told so by [`OpenNar::tag`].
//! - A stream ends early only with an error; the NAR is then marked damaged if bytes are missing or changed, and is
//!   missing to everybody until it is pushed again. A store that is merely unreachable marks nothing.

mod carry_out;
mod open;
mod plan;
mod small;

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use dormer_format::EncodingTag;
use dormer_index::ChunkRow;
use dormer_nix::NarHash;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, Stream};
use futures::{FutureExt, StreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

pub(crate) use self::carry_out::ReadFailure;
pub(crate) use self::open::{ENCODING_UPDATES_MAX, Plan, PlanKey};
pub(crate) use self::plan::windows;
use self::plan::{Limits, Next, ReadSource};
pub(crate) use self::small::SmallReads;
use crate::memory::Reservation;
use crate::metrics::Waiting;
use crate::{Engine, Error, Result};

/// Largest single read. Past 1 MiB a local read gains nothing and falls out of the second-level cache.
const READ_BYTES_MAX: u64 = 1024 * 1024;

/// Smallest limit for a read, however many readers there are.
const READ_BYTES_MIN: u64 = 64 * 1024;

/// Largest read over a network: 40 ms at 100 MB/s, about what a request takes anyway. Twice as much saves a tenth of the requests
/// of a closure, and a slow client would hold it for twice as long.
const REMOTE_READ_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What is read over in vain, at most: on a disk, and over a network.
const GAP_BYTES_MAX: u64 = 64 * 1024;
const REMOTE_GAP_BYTES_MAX: u64 = 256 * 1024;

/// Requests of one read. Updated packages are made of runs from two or three packs in turns.
const REMOTE_FETCHES_MAX: usize = 8;

/// Reads under way for one stream: one being sent, one ahead.
const READS_AHEAD: usize = 2;

/// A NAR that can be read: its packs were there a moment ago.
#[derive(Debug, Clone)]
pub struct OpenNar {
    engine: Engine,
    plan: Arc<Plan>,
}

impl OpenNar {
    /// SHA-256 of the archive.
    pub fn hash(&self) -> NarHash {
        self.plan.hash
    }

    /// Bytes of the archive.
    pub fn size(&self) -> u64 {
        self.plan.size
    }

    /// Bytes that are served.
    pub fn file_size(&self) -> u64 {
        self.plan.file_size
    }

    /// Names the exact bytes that are served.
    pub fn tag(&self) -> EncodingTag {
        self.plan.tag
    }

    /// Makes sure that every pack is there, for who will not read. [`Error::Damaged`] if one is not.
    pub async fn prove(&self) -> Result<()> {
        self.engine.prove_packs(&self.plan).await
    }

    /// Starts reading all bytes, or a range of them. The first read is verified, and every pack known to be there, when this
    /// returns.
    pub async fn stream(self, range: Option<Range<u64>>) -> Result<NarStream> {
        let size = self.plan.file_size;
        let range = range.unwrap_or(0..size);
        if range.start > range.end || range.end > size {
            return Err(Error::RangeOutside { start: range.start, end: range.end, size });
        }
        let turn = self.engine.read_turn().await?;
        let memory = self.engine.stream_memory().reserve(self.plan.stream_bytes()).await?;
        let mut stream = NarStream {
            source: ReadSource::new(&self.plan, range),
            reading: FuturesOrdered::new(),
            loading: None,
            ready: VecDeque::new(),
            ended: false,
            _active: Active::new(&self.engine),
            engine: self.engine,
            plan: self.plan,
            _turn: turn,
            _memory: memory,
        };
        if let Some(first) = stream.next().await {
            stream.ready.push_front(first?);
        }
        // After the first read, which has proven its packs.
        stream.engine.prove_packs(&stream.plan).await?;
        Ok(stream)
    }
}

/// The bytes of a NAR as they are served. An error means that the answer must be cut off, never ended cleanly. Who keeps the
/// pieces keeps their share of the memory for reads.
pub struct NarStream {
    engine: Engine,
    plan: Arc<Plan>,
    source: ReadSource,
    /// Reads under way, in order.
    reading: FuturesOrdered<BoxFuture<'static, Result<VecDeque<Bytes>>>>,
    /// The next window of rows under way.
    loading: Option<Task<Vec<ChunkRow>>>,
    ready: VecDeque<Bytes>,
    ended: bool,
    _active: Active,
    _turn: OwnedSemaphorePermit,
    _memory: Reservation,
}

/// Work that goes on while nobody asks for the stream's next bytes, and ends with the stream: a reader who takes nothing would
/// stop it anywhere, with a connection to the database or a turn at the store in its hands.
type Task<T> = AbortOnDropHandle<Result<T>>;

fn begin<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Task<T> {
    AbortOnDropHandle::new(tokio::spawn(work.in_current_span()))
}

fn ended<T>(outcome: Result<Result<T>, JoinError>) -> Result<T> {
    match outcome.map_err(JoinError::try_into_panic) {
        Ok(outcome) => outcome,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // Only a runtime that ends aborts what is still asked for.
        Err(Err(_)) => Err(Error::Busy { what: "downloads" }),
    }
}

/// Counts a stream among those that share the memory for reads.
struct Active(Arc<AtomicUsize>);

impl Active {
    fn new(engine: &Engine) -> Self {
        let count = Arc::clone(engine.active_reads());
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stream for NarStream {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(bytes)));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            while this.may_begin_read() {
                match this.source.next_read(&this.engine.read_limits()) {
                    Next::Read(read) => {
                        let read = this.engine.clone().read(Arc::clone(&this.plan), read);
                        // A disk has no turns to keep, and a task would cost a reader alone a tenth of its rate.
                        let is_remote = this.engine.blobs().is_remote();
                        this.reading.push_back(if is_remote {
                            begin(read).map(ended).boxed()
                        } else {
                            read.boxed()
                        });
                    }
                    Next::NeedsRows(window) => {
                        let load = this.engine.clone().load_window(Arc::clone(&this.plan), window);
                        this.loading = Some(begin(load));
                    }
                    Next::Loading | Next::End => break,
                }
            }
            if let Some(loading) = &mut this.loading
                && let Poll::Ready(rows) = Pin::new(loading).poll(context)
            {
                this.loading = None;
                match ended(rows) {
                    Ok(rows) => this.source.add_rows(rows.into()),
                    Err(error) => return this.fail(error),
                }
                continue;
            }
            match this.reading.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(pieces))) => this.ready = pieces,
                Poll::Ready(Some(Err(error))) => return this.fail(error),
                Poll::Ready(None) if this.loading.is_some() => return Poll::Pending,
                Poll::Ready(None) => this.ended = true,
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl NarStream {
    /// The read that is needed next always begins; others only while there is memory enough for everybody.
    fn may_begin_read(&self) -> bool {
        match self.reading.len() {
            0 => true,
            count => count < READS_AHEAD && self.engine.read_memory().is_half_free(),
        }
    }

    fn fail(&mut self, error: Error) -> Poll<Option<Result<Bytes>>> {
        self.ended = true;
        Poll::Ready(Some(Err(error)))
    }
}

impl Engine {
    /// How much one read may take at present, and how it may be put together.
    fn read_limits(&self) -> Limits {
        let readers = self.active_reads().load(Ordering::Relaxed).max(1) as u64;
        // A quarter of it is what streams hold all the time.
        let bytes = self.settings().read_memory_bytes / 4 * 3;
        let share = (bytes / readers / (READS_AHEAD as u64 + 1)).clamp(READ_BYTES_MIN, READ_BYTES_MAX);
        if !self.blobs().is_remote() {
            return Limits { bytes: share, memory_bytes: 2 * share, gap_bytes: GAP_BYTES_MAX, fetches: 1 };
        }
        // Large reads leave a quarter of the memory alone, so that slow readers who hold them stop nobody.
        let large = (bytes / 4 * 3 / readers).min(REMOTE_READ_BYTES_MAX);
        let has_room = self.read_memory().free_bytes() >= large + bytes / 4;
        let bytes = if has_room { large.max(share) } else { share };
        Limits { bytes, memory_bytes: bytes, gap_bytes: REMOTE_GAP_BYTES_MAX, fetches: REMOTE_FETCHES_MAX }
    }

    async fn read_turn(&self) -> Result<OwnedSemaphorePermit> {
        let turn = Arc::clone(self.read_turns()).acquire_owned();
        let _waiting = Waiting::new(&self.metrics().reads_waiting);
        match tokio::time::timeout(self.settings().read_wait, turn).await {
            Ok(permit) => Ok(permit.expect("the semaphore is never closed")),
            Err(_) => Err(Error::Busy { what: "downloads" }),
        }
    }
}
