//! Group commit: chunks of concurrent uploads share packs.
//!
//! Algorithm: one task owns the open pack. Uploads send it encoded chunks, and tell it when they
//! have no more and wait. The task seals the open pack when [`SealPlan`] says so. Chunks in a
//! sealed pack are ordered by upload and position, not by arrival, so a NAR reads back in few long
//! ranges although it was uploaded beside others.
//!
//! Invariants
//! - Order of writes: the pack's object first, then its row and its chunk rows in one transaction
//!   (invariant 1).
//! - Every claimed chunk is settled, with a row or with an error, also when its encoder or the
//!   packing task panics.
//! - A chunk belongs to the packer from its claim on: an abandoned upload cannot take away a chunk
//!   that another upload waits for.
//! - Memory: one open pack, and at most [`STORING_MAX`] that are being stored; then the queue fills
//!   and uploads wait.
//!
//! A panic of the packing task is a defect, but not a reason to stop serving. All uploads that wait
//! for an unsealed pack fail with [`Error::PackLost`], which clients repeat. The task starts again
//! with an empty pack, and the metric `dormer_packer_restarts_total` and the log tell the operator.
//! After a panic the task pauses for [`RESTART_PAUSE`], so a panic that repeats does not take a
//! CPU, and [`Packer::is_running`] (readiness) answers no meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use dormer_blobs::{BlobKey, Blobs};
use dormer_format::{ChunkId, PackBuilder, PackEntry, PackId, StoredChunk};
use dormer_index::{ChunkRow, Index, NewChunk, NewPack, WaitCount};
use dormer_nix::with_causes;
use futures::FutureExt as _;
use moka::sync::Cache as Remembered;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::budget::BudgetUse;
use crate::clock::Clock;
use crate::metrics::EngineMetrics;
use crate::pace::back_off;
use crate::seal_plan::{PACK_BYTES, PackerState, STORING_MAX, SealLimits, SealPlan};
use crate::{Error, Result};

/// Encoded chunks on their way to the packer: at most 8 × 0.5 MiB.
const QUEUE_CHUNKS: usize = 8;

/// Pause of the packing task after a panic.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Most memory of the packer, in bytes: the open pack, those being stored, and the queue.
pub(crate) const PACKER_BYTES_MAX: u64 = (1 + STORING_MAX as u64) * PACK_BYTES + 4 * 1024 * 1024;

/// Attempts to store a pack, and to commit its row, before its uploads are told to come back.
const TRIES: u32 = 4;

/// One chunk on its way into a pack.
#[derive(Debug, Default)]
pub(crate) struct PendingChunk {
    settled: OnceLock<Result<Box<ChunkRow>, String>>,
    sealed: AtomicBool,
}

impl PendingChunk {
    /// The chunk's row, once its pack is durable; the reason, once that failed.
    pub(crate) fn row(&self) -> Option<Result<&ChunkRow>> {
        self.settled.get().map(|settled| match settled {
            Ok(row) => Ok(&**row),
            Err(reason) => Err(Error::PackLost(reason.clone())),
        })
    }
}

/// The answer to a claim.
pub(crate) enum Claim {
    /// Another upload is storing this chunk.
    Taken(Arc<PendingChunk>),
    /// The caller has to encode the chunk and [`add`](Packer::add) it.
    Yours(ClaimedChunk),
}

/// A chunk that its holder must deliver. A chunk that is dropped undelivered is settled as lost.
pub(crate) struct ClaimedChunk {
    id: ChunkId,
    pending: Arc<PendingChunk>,
    packer: Packer,
    delivered: bool,
}

impl ClaimedChunk {
    pub(crate) fn id(&self) -> ChunkId {
        self.id
    }

    pub(crate) fn pending(&self) -> &Arc<PendingChunk> {
        &self.pending
    }

    /// Settles the chunk as lost, for a reason.
    pub(crate) fn fail(mut self, reason: String) {
        self.delivered = true;
        self.packer.shared.settle([(&self.id, &*self.pending, Err(reason))]);
    }
}

impl Drop for ClaimedChunk {
    fn drop(&mut self) {
        if !self.delivered {
            let lost = Err("its encoder died".to_owned());
            self.packer.shared.settle([(&self.id, &*self.pending, lost)]);
        }
    }
}

/// Where a chunk belongs in its pack: chunks are ordered by stream, then by position in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PackSlot {
    /// Number of the stream. Each upload has two: its NAR has an even number, its listing the next
    /// one.
    pub(crate) stream: u64,
    pub(crate) position: u64,
}

impl PackSlot {
    /// Number of the upload that brought the chunk.
    fn upload(self) -> u64 {
        self.stream / 2
    }
}

enum Message {
    Add {
        slot: PackSlot,
        chunk: StoredChunk,
        pending: Arc<PendingChunk>,
    },
    /// An upload waits for the open pack.
    Wait,
    #[cfg(test)]
    Panic,
}

/// Handle of the packing task; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Packer {
    queue: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<HashMap<ChunkId, Arc<PendingChunk>>>,
    /// Uploads that may still add chunks.
    streaming: AtomicUsize,
    /// Uploads that are not over: those, and those that wait for their packs.
    in_flight: AtomicUsize,
    /// The most that were in flight at once since the last early pack was sealed.
    in_flight_peak: AtomicUsize,
    /// Counts settlements, so that waiters look again.
    settlements: watch::Sender<u64>,
    /// Tasks that wait until the queue takes their chunk.
    adding: AtomicUsize,
    is_running: AtomicBool,
    pack_wait: Duration,
}

/// The packer counts an upload by this value: in flight while the value lives, streaming until
/// `end_stream`.
#[derive(Debug)]
pub(crate) struct CountedUpload {
    shared: Arc<Shared>,
    streams: bool,
}

impl CountedUpload {
    /// Says that the upload adds no more chunks: from now on it only waits.
    pub(crate) fn end_stream(&mut self) {
        if std::mem::take(&mut self.streams) {
            self.shared.streaming.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for CountedUpload {
    fn drop(&mut self) {
        self.end_stream();
        self.shared.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Packer {
    /// Starts the packing task on the current run time. The task ends when the last handle is
    /// dropped and its packs are stored.
    pub(crate) fn start(storage: Storage, pack_wait: Duration, chunk_bytes_max: u32) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE_CHUNKS);
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            streaming: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            in_flight_peak: AtomicUsize::new(0),
            settlements: watch::Sender::new(0),
            adding: AtomicUsize::new(0),
            is_running: AtomicBool::new(true),
            pack_wait,
        });
        // Incompressible chunks grow by a few bytes a frame, and a cut may move by a hole.
        let limits = SealLimits { pack_wait, chunk_bytes_max: u64::from(chunk_bytes_max) + 64 * 1024 };
        let task = PackingTask {
            shared: Arc::clone(&shared),
            storage,
            limits,
            open: OpenPack::default(),
            storing: JoinSet::new(),
            storing_early: 0,
            returning: 0,
        };
        tokio::spawn(task.run(receiver));
        Self { queue, shared }
    }

    /// Counts an upload that begins.
    pub(crate) fn begin(&self) -> CountedUpload {
        self.shared.streaming.fetch_add(1, Ordering::AcqRel);
        let in_flight = self.shared.in_flight.fetch_add(1, Ordering::AcqRel) + 1;
        self.shared.in_flight_peak.fetch_max(in_flight, Ordering::AcqRel);
        CountedUpload { shared: Arc::clone(&self.shared), streams: true }
    }

    /// Uploads that may still add chunks.
    pub(crate) fn streaming(&self) -> usize {
        self.shared.streaming.load(Ordering::Relaxed)
    }

    /// The queue to the packing task, as a budget: chunks in it, and tasks that wait until it takes
    /// theirs.
    pub(crate) fn queue_use(&self) -> BudgetUse {
        BudgetUse {
            name: "packer_queue",
            limit: QUEUE_CHUNKS as u64,
            in_use: (QUEUE_CHUNKS - self.queue.capacity()) as u64,
            waiting: self.shared.adding.load(Ordering::Relaxed) as u64,
        }
    }

    /// `false` in the pause after a panic of the packing task.
    pub(crate) fn is_running(&self) -> bool {
        self.shared.is_running.load(Ordering::Acquire)
    }

    /// The chunk, if an upload is storing it right now.
    pub(crate) fn find_pending(&self, id: &ChunkId) -> Option<Arc<PendingChunk>> {
        self.shared.lock_pending().get(id).cloned()
    }

    /// Claims a chunk to store it, unless another upload has.
    pub(crate) fn claim(&self, id: ChunkId) -> Claim {
        let mut all = self.shared.lock_pending();
        if let Some(taken) = all.get(&id) {
            return Claim::Taken(Arc::clone(taken));
        }
        let pending = Arc::new(PendingChunk::default());
        all.insert(id, Arc::clone(&pending));
        Claim::Yours(ClaimedChunk { id, pending, packer: self.clone(), delivered: false })
    }

    /// Delivers a claimed chunk. Waits while too much is being stored.
    pub(crate) async fn add(&self, slot: PackSlot, chunk: StoredChunk, mut claimed: ClaimedChunk) {
        let pending = Arc::clone(&claimed.pending);
        let _waiting = WaitCount::new(&self.shared.adding);
        if self.queue.send(Message::Add { slot, chunk, pending }).await.is_ok() {
            claimed.delivered = true;
        }
    }

    /// Waits until all of these are settled. The packing task may seal the open pack early for the
    /// caller.
    pub(crate) async fn wait_for(&self, all: impl Iterator<Item = &Arc<PendingChunk>>) {
        let mut settlements = self.shared.settlements.subscribe();
        let mut said_wait = false;
        for pending in all {
            loop {
                settlements.mark_unchanged();
                if pending.settled.get().is_some() {
                    break;
                }
                // Repeats `Wait` after a time-out: the chunk may have been on its way to the packer
                // the first time.
                if !said_wait && !pending.sealed.load(Ordering::Acquire) {
                    if self.queue.send(Message::Wait).await.is_err() {
                        // The run time is shutting down: no task will settle this chunk.
                        let _ = pending.settled.set(Err("packing has ended".to_owned()));
                        break;
                    }
                    said_wait = true;
                }
                if tokio::time::timeout(self.shared.pack_wait * 2, settlements.changed()).await.is_err() {
                    said_wait = false;
                }
            }
        }
    }
}

impl Shared {
    fn lock_pending(&self) -> std::sync::MutexGuard<'_, HashMap<ChunkId, Arc<PendingChunk>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle<'a>(
        &self,
        outcomes: impl IntoIterator<Item = (&'a ChunkId, &'a PendingChunk, Result<Box<ChunkRow>, String>)>,
    ) {
        {
            let mut all = self.lock_pending();
            for (id, pending, outcome) in outcomes {
                let _ = pending.settled.set(outcome);
                // After a panic of the packing task, another upload may have claimed the chunk
                // again.
                if all.get(id).is_some_and(|present| std::ptr::eq(Arc::as_ptr(present), pending)) {
                    all.remove(id);
                }
            }
        }
        self.settlements.send_modify(|count| *count += 1);
    }

    /// Settles every chunk as lost that is in no sealed pack: sealed packs are stored by tasks of
    /// their own.
    fn fail_unsealed(&self, reason: &str) {
        self.lock_pending().retain(|_, pending| {
            let is_sealed = pending.sealed.load(Ordering::Acquire);
            if !is_sealed {
                let _ = pending.settled.set(Err(reason.to_owned()));
            }
            is_sealed
        });
        self.settlements.send_modify(|count| *count += 1);
    }
}

#[derive(Default)]
struct OpenPack {
    chunks: Vec<(PackSlot, StoredChunk, Arc<PendingChunk>)>,
    bytes: u64,
    /// The uploads that brought the chunks.
    uploads: BTreeSet<u64>,
    /// When the first upload began to wait for this pack.
    waited_for_since: Option<Instant>,
}

struct PackingTask {
    shared: Arc<Shared>,
    storage: Storage,
    limits: SealLimits,
    open: OpenPack,
    /// Packs that are being stored. Each returns whether it was sealed early.
    storing: JoinSet<bool>,
    storing_early: usize,
    /// Uploads that were in flight at once before the last early pack was sealed. As many are
    /// likely to return with their next NARs.
    returning: usize,
}

impl PackingTask {
    async fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        // The state is sound after a panic: the open pack is replaced, and packs that are being
        // stored are tasks of their own.
        while std::panic::AssertUnwindSafe(self.pack(&mut queue)).catch_unwind().await.is_err() {
            self.shared.is_running.store(false, Ordering::Release);
            self.storage.metrics.packs.packer_restarts.inc();
            self.open = OpenPack::default();
            let reason = "the packing task panicked";
            self.shared.fail_unsealed(reason);
            tracing::error!("{reason}: uploads that waited for it failed; it starts again");
            tokio::time::sleep(RESTART_PAUSE).await;
            self.shared.is_running.store(true, Ordering::Release);
        }
    }

    async fn pack(&mut self, queue: &mut mpsc::Receiver<Message>) {
        let mut open_to_uploads = true;
        while open_to_uploads || !self.storing.is_empty() {
            let due = match SealPlan::new(&self.state(), &self.limits) {
                SealPlan::SealFull => {
                    self.seal(false);
                    continue;
                }
                SealPlan::SealEarly => {
                    self.seal(true);
                    continue;
                }
                SealPlan::AwaitStore => None,
                SealPlan::Collect(rest) => Some(rest.map(|rest| Instant::now() + rest)),
            };
            let may_receive = open_to_uploads && due.is_some();
            let deadline = due.flatten();
            tokio::select! {
                message = queue.recv(), if may_receive => match message {
                    Some(message) => self.receive(message),
                    None => open_to_uploads = false,
                },
                Some(stored) = self.storing.join_next(), if !self.storing.is_empty() => {
                    if stored.unwrap_or(true) {
                        self.storing_early = self.storing_early.saturating_sub(1);
                    }
                },
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {},
            }
        }
    }

    fn state(&self) -> PackerState {
        PackerState {
            bytes: self.open.bytes,
            chunks: self.open.chunks.len(),
            uploads: self.open.uploads.len(),
            waited: self.open.waited_for_since.map(|since| since.elapsed()),
            streaming: self.shared.streaming.load(Ordering::Acquire),
            returning: self.returning,
            storing: self.storing.len(),
            storing_early: self.storing_early,
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Add { slot, chunk, pending } => {
                self.open.bytes += chunk.bytes.len() as u64;
                self.open.uploads.insert(slot.upload());
                self.open.chunks.push((slot, chunk, pending));
            }
            Message::Wait if !self.open.chunks.is_empty() => {
                self.open.waited_for_since.get_or_insert_with(Instant::now);
            }
            Message::Wait => {}
            #[cfg(test)]
            Message::Panic => panic!("asked for by a test"),
        }
    }

    fn seal(&mut self, early: bool) {
        let OpenPack { mut chunks, bytes, uploads, waited_for_since } = std::mem::take(&mut self.open);
        tracing::debug!(
            early,
            bytes,
            uploads = uploads.len(),
            streaming = self.shared.streaming.load(Ordering::Relaxed),
            waited = ?waited_for_since.map(|since| since.elapsed()),
            "pack sealed"
        );
        if let Some(since) = waited_for_since {
            self.storage.metrics.packs.wait_seconds.observe(since.elapsed().as_secs_f64());
        }
        #[expect(clippy::cast_precision_loss, reason = "a few at most")]
        self.storage.metrics.packs.uploads.observe(uploads.len() as f64);
        if early {
            let in_flight = self.shared.in_flight.load(Ordering::Acquire);
            self.returning = self.shared.in_flight_peak.swap(in_flight, Ordering::AcqRel);
        }
        for (_, _, pending) in &chunks {
            pending.sealed.store(true, Ordering::Release);
        }
        chunks.sort_by_key(|(slot, ..)| *slot);
        self.storing_early += usize::from(early);
        let (shared, storage) = (Arc::clone(&self.shared), self.storage.clone());
        let metrics = Arc::clone(&storage.metrics);
        self.storing.spawn(async move {
            let (stored, pending): (Vec<_>, Vec<_>) =
                chunks.into_iter().map(|(_, chunk, pending)| (chunk, pending)).unzip();
            let ids: Vec<ChunkId> = stored.iter().map(|chunk| chunk.id).collect();
            // On a task of its own, so that a panic is an outcome like any other and no upload
            // waits for ever.
            let outcome = match tokio::spawn(async move { storage.store(&stored).await }).await {
                Ok(Ok(rows)) => Ok(rows),
                Ok(Err(error)) => Err(with_causes(&error)),
                Err(panic) => Err(panic.to_string()),
            };
            if outcome.is_err() {
                metrics.packs.lost.inc();
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
            early
        });
    }
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
        let timer = self.metrics.packs.store_seconds.start_timer();
        let mut attempt = 1;
        let (id, size, entries) = loop {
            // A new name for each attempt: one that failed may still have left its object, and
            // names are never used twice.
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
                    self.metrics.packs.retries.with_label_values(&["object"]).inc();
                    log_retry("pack", id, &error, attempt);
                    back_off(attempt).await;
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
                    self.metrics.packs.bytes.observe(size as f64);
                    return Ok(rows);
                }
                Err(error @ dormer_index::Error::Unavailable { .. }) if attempt < TRIES => {
                    self.metrics.packs.retries.with_label_values(&["rows"]).inc();
                    log_retry("pack row", id, &error, attempt);
                    back_off(attempt).await;
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

fn log_retry(what: &str, id: PackId, error: &(dyn std::error::Error + Send + Sync + 'static), attempt: u32) {
    tracing::warn!(pack.id = %id, attempt, error = with_causes(error), "failed to store {what}, trying again");
}

#[cfg(test)]
mod tests {
    use dormer_blobs::StoreBlobs;
    use dormer_format::{Encoder, RawChunk};
    use dormer_index::{SqliteIndex, SqliteOptions};

    use super::*;
    use crate::clock::SystemClock;

    fn encoded(contents: &[u8]) -> StoredChunk {
        let chunk = RawChunk { bytes: contents.to_vec(), holes: Vec::new(), fills: Vec::new() };
        Encoder::new(1).unwrap().encode_as(chunk.id(), &chunk).unwrap()
    }

    async fn store(packer: &Packer, contents: &[u8]) -> Result<ChunkId> {
        let mut upload = packer.begin();
        let chunk = encoded(contents);
        let id = chunk.id;
        let Claim::Yours(claimed) = packer.claim(id) else { panic!("no other upload has this chunk") };
        let pending = Arc::clone(claimed.pending());
        packer.add(PackSlot { stream: 0, position: 1 }, chunk, claimed).await;
        upload.end_stream();
        packer.wait_for([&pending].into_iter()).await;
        pending.row().expect("it was waited for").map(|row| row.id)
    }

    #[tokio::test]
    async fn after_a_panic_of_the_packing_task_waiting_uploads_fail_and_later_ones_succeed() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("index.sqlite");
        let index = SqliteIndex::open(&path, SqliteOptions::default()).await.unwrap();
        let storage = Storage {
            index: Arc::new(index),
            blobs: Arc::new(StoreBlobs::default()),
            clock: Arc::new(SystemClock),
            metrics: Arc::new(EngineMetrics::new()),
            proven_packs: Remembered::new(16),
        };
        let metrics = Arc::clone(&storage.metrics);
        let packer = Packer::start(storage, Duration::from_millis(5), 1024);
        store(&packer, b"before").await.unwrap();

        // This upload streams on, so nothing seals its chunk before the panic.
        let _streaming = packer.begin();
        let Claim::Yours(undelivered) = packer.claim(encoded(b"undelivered").id) else { panic!("it is new") };
        let pending = Arc::clone(undelivered.pending());
        assert!(packer.queue.send(Message::Panic).await.is_ok());
        let in_time = tokio::time::timeout(Duration::from_secs(10), packer.wait_for([&pending].into_iter()));
        in_time.await.expect("the panic fails the upload");
        let lost = pending.row().unwrap().unwrap_err();
        assert!(lost.to_string().contains("the packing task panicked"), "{lost}");
        assert!(!packer.is_running());
        assert_eq!(metrics.packs.packer_restarts.get(), 1);

        drop(undelivered);
        let stored = tokio::time::timeout(Duration::from_secs(10), store(&packer, b"undelivered")).await;
        assert_eq!(stored.expect("the task runs again").unwrap(), encoded(b"undelivered").id);
        assert!(packer.is_running());
    }
}
