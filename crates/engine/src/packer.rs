//! Group commit: chunks of concurrent uploads share packs.
//!
//! Algorithm: one task owns the open pack. Uploads send it encoded chunks and, when they have no more, say that they wait.
//! The open pack is sealed when it is full, when every upload in flight waits, or some time after the first one began to
//! wait, so a slow uploader stalls nobody: `pack_wait` for each upload that may still add to it, up to [`WAIT_SHARES_MAX`] of
//! them. With one slow uploader that is one `pack_wait`; with many it is worth waiting longer, since more share the pack.
//! Uploads that an early pack acknowledged come back with their next NARs within milliseconds, but not in the same one: the
//! next early pack waits a little for as many.
//! A sealed pack's chunks are ordered by upload and position, not by arrival: a NAR reads back as few long ranges although
//! it was uploaded beside others.
//!
//! Invariants
//! - Order of writes: the pack's object first, then its row with its chunk rows in one transaction (invariant 1).
//! - A chunk that was reserved is always settled, with a row or with an error, also when its encoder panics.
//! - A chunk belongs to the packer from its reservation on: an abandoned upload cannot take away what another waits for.
//! - Memory: one open pack, and at most [`STORING_MAX`] being stored; then the queue fills and uploads wait.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use dormer_blobs::{BlobKey, Blobs};
use dormer_format::{ChunkId, PACK_BYTES_MAX, PACK_CHUNKS_MAX, PackBuilder, PackEntry, PackId, StoredChunk};
use dormer_index::{ChunkRow, Index, NewChunk, NewPack};
use moka::sync::Cache as Remembered;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::metrics::EngineMetrics;
use crate::{Error, Result};

/// Packs being stored at once. Two keep the store busy while the next one fills.
const STORING_MAX: usize = 2;

/// Encoded chunks on their way to the packer: at most 8 × 0.5 MiB.
const QUEUE_CHUNKS: usize = 8;

/// The part of a `pack_wait` that an early pack waits for uploads to come back: 10 ms by default. A client that pushes one
/// path at a time never waits for it.
const RETURN_SHARE: u32 = 5;

/// A pack is full at this size. Larger ones, up to the format's limit, would save few requests and cost memory three times.
const PACK_BYTES: u64 = 24 * 1024 * 1024;
const _: () = assert!(PACK_BYTES <= PACK_BYTES_MAX);

/// Most memory of the packer, in bytes: the open pack, those being stored, and the queue.
pub(crate) const PACKER_BYTES_MAX: u64 = (1 + STORING_MAX as u64) * PACK_BYTES + 4 * 1024 * 1024;

/// How many uploads in flight lengthen the wait for an early pack: 8 × 50 ms by default.
const WAIT_SHARES_MAX: u32 = 8;

/// What the table and the trailer may take of a pack, so that frames stop short of its limit: a chunk's entry takes less
/// than 64 bytes but for those with many holes, and a full pack has about 300 chunks of 100 KiB.
const TABLE_BYTES: u64 = 1024 * 1024;

/// Tries to store a pack, and to commit its row, before its uploads are told to come back.
const TRIES: u32 = 4;

/// One chunk on its way into a pack.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    settled: OnceLock<Result<Box<ChunkRow>, String>>,
    sealed: AtomicBool,
}

impl Pending {
    /// The chunk's row, once its pack is durable; the reason, once that failed.
    pub(crate) fn row(&self) -> Option<Result<&ChunkRow>> {
        self.settled.get().map(|settled| match settled {
            Ok(row) => Ok(&**row),
            Err(reason) => Err(Error::PackLost(reason.clone())),
        })
    }
}

/// The answer to a reservation.
pub(crate) enum Reservation {
    /// Somebody else is storing this chunk.
    Taken(Arc<Pending>),
    /// It is the caller's to encode and [`add`](Packer::add).
    Yours(Reserved),
}

/// A chunk that its holder must deliver; dropped undelivered, it is settled as lost.
pub(crate) struct Reserved {
    id: ChunkId,
    pending: Arc<Pending>,
    packer: Packer,
    delivered: bool,
}

impl Reserved {
    pub(crate) fn id(&self) -> ChunkId {
        self.id
    }

    pub(crate) fn pending(&self) -> &Arc<Pending> {
        &self.pending
    }

    /// Settles the chunk as lost, for a reason.
    pub(crate) fn fail(mut self, reason: String) {
        self.delivered = true;
        self.packer.settle(&self.id, &self.pending, Err(reason));
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.delivered {
            self.packer.settle(&self.id, &self.pending, Err("its encoder died".to_owned()));
        }
    }
}

/// Where a chunk belongs among its pack's: upload, then position in the upload.
pub(crate) type Place = (u64, u64);

enum Message {
    Add { place: Place, chunk: StoredChunk, pending: Arc<Pending> },
    Wait,
}

/// Handle of the packing task; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Packer {
    queue: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<HashMap<ChunkId, Arc<Pending>>>,
    /// Uploads that may still add chunks.
    streaming: AtomicUsize,
    /// Uploads that are not over: those, and those that wait for their packs.
    in_flight: AtomicUsize,
    /// The most that were in flight at once since the last early pack was sealed.
    in_flight_peak: AtomicUsize,
    /// Counts settlements, so that waiters look again.
    settlements: watch::Sender<u64>,
    pack_wait: Duration,
}

/// An upload, as the packer counts them: in flight while this lives, streaming until it says that it has no more chunks.
#[derive(Debug)]
pub(crate) struct Upload {
    shared: Arc<Shared>,
    streams: bool,
}

impl Upload {
    /// No more chunks will be added: from now on the upload only waits.
    pub(crate) fn end_stream(&mut self) {
        if std::mem::take(&mut self.streams) {
            self.shared.streaming.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.end_stream();
        self.shared.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Packer {
    /// Starts the packing task on the current run time. It ends when the last handle is dropped and its packs are stored.
    pub(crate) fn start(storage: Storage, pack_wait: Duration, chunk_bytes_max: u32) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE_CHUNKS);
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            streaming: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            in_flight_peak: AtomicUsize::new(0),
            settlements: watch::Sender::new(0),
            pack_wait,
        });
        let task = Task {
            shared: Arc::clone(&shared),
            storage,
            open: OpenPack::default(),
            storing: JoinSet::new(),
            partial_packs: 0,
            company: 0,
            // Incompressible chunks grow by a few bytes a frame, and a cut may move by a hole.
            chunk_bytes_max: u64::from(chunk_bytes_max) + 64 * 1024,
        };
        tokio::spawn(task.run(receiver));
        Self { queue, shared }
    }

    /// Counts an upload in.
    pub(crate) fn begin(&self) -> Upload {
        self.shared.streaming.fetch_add(1, Ordering::AcqRel);
        let in_flight = self.shared.in_flight.fetch_add(1, Ordering::AcqRel) + 1;
        self.shared.in_flight_peak.fetch_max(in_flight, Ordering::AcqRel);
        Upload { shared: Arc::clone(&self.shared), streams: true }
    }

    /// Uploads that may still add chunks, and chunks in the queue.
    pub(crate) fn depths(&self) -> (usize, usize) {
        (self.shared.streaming.load(Ordering::Relaxed), QUEUE_CHUNKS - self.queue.capacity())
    }

    /// The chunk, if somebody is storing it right now.
    pub(crate) fn find_pending(&self, id: &ChunkId) -> Option<Arc<Pending>> {
        self.shared.lock_pending().get(id).cloned()
    }

    /// Takes on storing a chunk, unless somebody else has.
    pub(crate) fn reserve(&self, id: ChunkId) -> Reservation {
        let mut all = self.shared.lock_pending();
        if let Some(taken) = all.get(&id) {
            return Reservation::Taken(Arc::clone(taken));
        }
        let pending = Arc::new(Pending::default());
        all.insert(id, Arc::clone(&pending));
        Reservation::Yours(Reserved { id, pending, packer: self.clone(), delivered: false })
    }

    /// Delivers a reserved chunk. Waits while too much is being stored.
    pub(crate) async fn add(&self, place: Place, chunk: StoredChunk, mut reserved: Reserved) {
        let pending = Arc::clone(&reserved.pending);
        if self.queue.send(Message::Add { place, chunk, pending }).await.is_ok() {
            reserved.delivered = true;
        }
    }

    /// Waits until all of these are settled, sealing the open pack early as the header of this file says.
    pub(crate) async fn wait_for(&self, all: impl Iterator<Item = &Arc<Pending>>) {
        let mut settlements = self.shared.settlements.subscribe();
        let mut said = false;
        for pending in all {
            loop {
                settlements.mark_unchanged();
                if pending.settled.get().is_some() {
                    break;
                }
                // Said again after each wait in vain: what this upload waits for may have been on another's way to the
                // packer the first time.
                if !said && !pending.sealed.load(Ordering::Acquire) {
                    if self.queue.send(Message::Wait).await.is_err() {
                        // Its task died: nobody will settle this chunk any more.
                        let _ = pending.settled.set(Err("packing has ended".to_owned()));
                        break;
                    }
                    said = true;
                }
                if tokio::time::timeout(self.shared.pack_wait * 2, settlements.changed()).await.is_err() {
                    said = false;
                }
            }
        }
    }

    fn settle(&self, id: &ChunkId, pending: &Pending, outcome: Result<Box<ChunkRow>, String>) {
        self.shared.settle([(id, pending, outcome)]);
    }
}

impl Shared {
    fn lock_pending(&self) -> std::sync::MutexGuard<'_, HashMap<ChunkId, Arc<Pending>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle<'a>(
        &self,
        outcomes: impl IntoIterator<Item = (&'a ChunkId, &'a Pending, Result<Box<ChunkRow>, String>)>,
    ) {
        {
            let mut all = self.lock_pending();
            for (id, pending, outcome) in outcomes {
                let _ = pending.settled.set(outcome);
                all.remove(id);
            }
        }
        self.settlements.send_modify(|count| *count += 1);
    }
}

#[derive(Default)]
struct OpenPack {
    chunks: Vec<(Place, StoredChunk, Arc<Pending>)>,
    bytes: u64,
    /// Whose chunks they are.
    uploads: BTreeSet<u64>,
    /// Since when an upload waits for it.
    waited_for_since: Option<Instant>,
}

struct Task {
    shared: Arc<Shared>,
    storage: Storage,
    open: OpenPack,
    storing: JoinSet<bool>,
    /// Packs being stored that were sealed before they were full.
    partial_packs: usize,
    /// Uploads that were in flight at once before the last early pack was sealed: as many are likely to come back with their
    /// next NARs.
    company: usize,
    /// Stored bytes of the largest chunk: how much room an open pack has left at least.
    chunk_bytes_max: u64,
}

impl Task {
    async fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        let mut open_to_uploads = true;
        while open_to_uploads || !self.storing.is_empty() {
            // Full packs go at once. Others one at a time: while one is being stored, the next collects more.
            if self.is_full() {
                if self.storing.len() < STORING_MAX {
                    self.seal(false);
                }
            } else if self.is_due() && self.may_seal_early() {
                self.seal(true);
            }
            let may_receive = open_to_uploads && !self.is_full();
            let deadline = self.deadline().filter(|_| !self.is_full() && self.may_seal_early());
            tokio::select! {
                message = queue.recv(), if may_receive => match message {
                    Some(message) => self.receive(message),
                    None => open_to_uploads = false,
                },
                Some(stored) = self.storing.join_next(), if !self.storing.is_empty() => {
                    if stored.unwrap_or(true) {
                        self.partial_packs = self.partial_packs.saturating_sub(1);
                    }
                },
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {},
            }
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Add { place, chunk, pending } => {
                self.open.bytes += chunk.bytes.len() as u64;
                // An upload has two places: its NAR's and its listing's.
                self.open.uploads.insert(place.0 / 2);
                self.open.chunks.push((place, chunk, pending));
            }
            Message::Wait if !self.open.chunks.is_empty() => {
                self.open.waited_for_since.get_or_insert_with(Instant::now);
            }
            Message::Wait => {}
        }
    }

    fn is_full(&self) -> bool {
        self.open.bytes + TABLE_BYTES + self.chunk_bytes_max > PACK_BYTES
            || self.open.chunks.len() >= PACK_CHUNKS_MAX
    }

    /// When the open pack is sealed at the latest, if an upload waits for it. Comes nearer as uploads end.
    fn deadline(&self) -> Option<Instant> {
        let streaming = self.shared.streaming.load(Ordering::Acquire);
        let shares = u32::try_from(streaming).unwrap_or(u32::MAX).min(WAIT_SHARES_MAX);
        let patience = if shares == 0 && self.open.uploads.len() < self.company {
            self.shared.pack_wait / RETURN_SHARE
        } else {
            self.shared.pack_wait * shares
        };
        self.open.waited_for_since.map(|since| since + patience)
    }

    fn is_due(&self) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= Instant::now())
    }

    fn may_seal_early(&self) -> bool {
        self.partial_packs == 0 && self.storing.len() < STORING_MAX
    }

    fn seal(&mut self, partial: bool) {
        let OpenPack { mut chunks, bytes, uploads, waited_for_since } = std::mem::take(&mut self.open);
        tracing::debug!(
            partial,
            bytes,
            uploads = uploads.len(),
            streaming = self.shared.streaming.load(Ordering::Relaxed),
            waited = ?waited_for_since.map(|since| since.elapsed()),
            "pack sealed"
        );
        if let Some(since) = waited_for_since {
            self.storage.metrics.pack_wait.observe(since.elapsed().as_secs_f64());
        }
        #[expect(clippy::cast_precision_loss, reason = "a few at most")]
        self.storage.metrics.pack_uploads.observe(uploads.len() as f64);
        if partial {
            let in_flight = self.shared.in_flight.load(Ordering::Acquire);
            self.company = self.shared.in_flight_peak.swap(in_flight, Ordering::AcqRel);
        }
        for (_, _, pending) in &chunks {
            pending.sealed.store(true, Ordering::Release);
        }
        chunks.sort_by_key(|(place, ..)| *place);
        self.partial_packs += usize::from(partial);
        let (shared, storage) = (Arc::clone(&self.shared), self.storage.clone());
        let metrics = Arc::clone(&storage.metrics);
        self.storing.spawn(async move {
            let (stored, pending): (Vec<_>, Vec<_>) =
                chunks.into_iter().map(|(_, chunk, pending)| (chunk, pending)).unzip();
            let ids: Vec<ChunkId> = stored.iter().map(|chunk| chunk.id).collect();
            // On a task of its own, so that a panic is an outcome like any other and nobody waits for ever.
            let outcome = match tokio::spawn(async move { storage.store(&stored).await }).await {
                Ok(Ok(rows)) => Ok(rows),
                Ok(Err(error)) => Err(describe(&error)),
                Err(panic) => Err(panic.to_string()),
            };
            if outcome.is_err() {
                metrics.packs_lost.inc();
            }
            match outcome {
                Ok(rows) => shared.settle(
                    ids.iter()
                        .zip(&pending)
                        .zip(rows)
                        .map(|((id, pending), row)| (id, &**pending, Ok(Box::new(row)))),
                ),
                Err(reason) => {
                    tracing::error!(chunk.count = ids.len(), reason, "pack lost");
                    shared.settle(
                        ids.iter().zip(&pending).map(|(id, pending)| (id, &**pending, Err(reason.clone()))),
                    );
                }
            }
            partial
        });
    }
}

/// An error with its sources, in one line.
fn describe(error: &(dyn std::error::Error + Send + Sync + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

/// Makes packs durable and known.
#[derive(Clone)]
pub(crate) struct Storage {
    pub(crate) index: Arc<dyn Index>,
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<EngineMetrics>,
    /// Packs that are known to be there.
    pub(crate) proven_packs: Remembered<PackId, ()>,
}

impl Storage {
    /// Bytes first, rows second. One row for each chunk, in order.
    async fn store(&self, chunks: &[StoredChunk]) -> Result<Vec<ChunkRow>> {
        let timer = self.metrics.pack_store.start_timer();
        let mut attempt = 1;
        let (id, size, entries) = loop {
            // A new name for each attempt: one that failed may still have left its object, and names are never used twice.
            let id = PackId::from_bytes(rand::random());
            let mut builder = PackBuilder::new(id);
            for chunk in chunks {
                builder.add(chunk.clone());
            }
            let pack = builder.finish();
            match self.blobs.put(&BlobKey::Pack(id), &pack.parts).await {
                Ok(()) => {
                    // Locally nothing is known without looking; see `Engine::note_proof`.
                    if self.blobs.is_remote() {
                        self.proven_packs.insert(id, ());
                    }
                    break (id, pack.size, pack.entries);
                }
                Err(error) if error.is_worth_a_retry() && attempt < TRIES => {
                    self.metrics.pack_retries.with_label_values(&["object"]).inc();
                    back_off("pack", id, &error, attempt).await;
                }
                Err(error) => return Err(error.into()),
            }
            attempt += 1;
        };
        let chunks = entries.into_iter().map(new_chunk).collect();
        let pack = NewPack { id, size, chunks, created_at: self.clock.now() };
        let mut attempt = 1;
        loop {
            match self.index.commit_pack(&pack).await {
                Ok(rows) => {
                    timer.observe_duration();
                    #[expect(clippy::cast_precision_loss, reason = "at most 32 MiB")]
                    self.metrics.pack_bytes.observe(size as f64);
                    return Ok(rows);
                }
                Err(error @ dormer_index::Error::Unavailable { .. }) if attempt < TRIES => {
                    self.metrics.pack_retries.with_label_values(&["rows"]).inc();
                    back_off("pack row", id, &error, attempt).await;
                }
                Err(error) => return Err(error.into()),
            }
            attempt += 1;
        }
    }
}

fn new_chunk(entry: PackEntry) -> NewChunk {
    NewChunk { id: entry.id, offset: entry.offset, layout: entry.layout, checksum: entry.checksum }
}

/// 100, 200, 400 ms, each with up to as much again at random.
async fn back_off(
    what: &str,
    id: PackId,
    error: &(dyn std::error::Error + Send + Sync + 'static),
    attempt: u32,
) {
    let base = 100 * 2u64.pow(attempt - 1);
    let pause = Duration::from_millis(base + rand::random_range(0..=base));
    tracing::warn!(pack.id = %id, attempt, error = describe(error), "failed to store {what}, trying again");
    tokio::time::sleep(pause).await;
}
