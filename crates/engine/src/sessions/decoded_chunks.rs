//! Keeps the decoded chunks of parts until the checks of their NARs want them, so that a first push
//! decodes each chunk once.
//!
//! The memory is what uploads leave free. A check that finds a chunk gone reads and decodes the
//! stored one.
//!
//! Invariants
//! - All kept chunks together take at most three quarters of the memory for uploads, and those of
//!   one session at most half. A task that wants memory gets theirs at once, the latest first:
//!   checks come in about the order of the parts.
//! - A chunk is kept for [`KEPT`] at most, and for one check: the check takes it.
//! - A session gets only what it sent itself, whether that was stored before or not. So a check
//!   takes no longer or shorter for what another tenant has.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormer_format::ChunkId;
use dormer_index::SessionId;
use tokio::time::Instant;

use crate::budget::{Budget, BudgetShare, Lent, large_bytes_max};

/// How long a chunk is kept: a client commits a path some seconds after its last chunk.
const KEPT: Duration = Duration::from_secs(30);

/// The chunk of a session.
type Key = (SessionId, ChunkId);

/// The kept chunks.
#[derive(Debug, Default)]
pub(crate) struct DecodedChunks {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// By their numbers, which ascend in time.
    chunks: BTreeMap<u64, KeptChunk>,
    numbers: HashMap<Key, u64>,
    bytes_of_sessions: HashMap<SessionId, u64>,
    bytes: u64,
    next_number: u64,
}

/// A decoded chunk, with its share of the memory for uploads.
#[derive(Debug)]
pub(super) struct KeptChunk {
    key: Key,
    /// The blanked bytes.
    pub(super) raw: Vec<u8>,
    kept_at: Instant,
    memory: BudgetShare,
}

impl DecodedChunks {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a chunk's blanked bytes, if `memory` has some to spare.
    pub(super) fn keep(&self, memory: &Budget, session: SessionId, chunk: ChunkId, raw: Vec<u8>) {
        let bytes = raw.len() as u64;
        let mut kept = self.lock();
        if !kept.has_room(memory, session, bytes) || kept.numbers.contains_key(&(session, chunk)) {
            return;
        }
        // Under the lock: a task that waits for memory has seen every chunk that was kept before.
        if let Some(memory) = memory.try_lend(bytes) {
            kept.add(KeptChunk { key: (session, chunk), raw, kept_at: Instant::now(), memory });
        }
    }

    /// Whether a session's chunk is kept.
    pub(super) fn has(&self, session: SessionId, chunk: ChunkId) -> bool {
        self.lock().numbers.contains_key(&(session, chunk))
    }

    /// Takes a session's chunk, if it is kept.
    pub(super) fn take(&self, session: SessionId, chunk: ChunkId) -> Option<KeptChunk> {
        let mut kept = self.lock();
        let number = kept.numbers.get(&(session, chunk)).copied()?;
        kept.remove(number)
    }

    /// Gives up what is kept now and still is after [`KEPT`].
    pub(super) fn forget_later(self: &Arc<Self>) {
        if self.lock().chunks.is_empty() {
            return;
        }
        let kept = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            if let Some(kept) = kept.upgrade() {
                kept.lock().forget_old();
            }
        });
    }
}

impl Lent for DecodedChunks {
    fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    fn give_back(&self, bytes: u64) -> bool {
        let mut kept = self.lock();
        let before = kept.bytes;
        while before - kept.bytes < bytes
            && let Some(number) = kept.chunks.last_key_value().map(|(number, _)| *number)
        {
            kept.remove(number);
        }
        kept.bytes < before
    }
}

impl Kept {
    fn has_room(&mut self, memory: &Budget, session: SessionId, bytes: u64) -> bool {
        self.forget_old();
        let limit = memory.limit();
        let of_session = self.bytes_of_sessions.get(&session).copied().unwrap_or(0);
        self.bytes + bytes <= large_bytes_max(limit) && of_session + bytes <= limit / 2
    }

    fn forget_old(&mut self) {
        while let Some((number, chunk)) = self.chunks.first_key_value()
            && chunk.kept_at.elapsed() >= KEPT
        {
            let number = *number;
            self.remove(number);
        }
    }

    fn add(&mut self, chunk: KeptChunk) {
        let bytes = chunk.memory.amount();
        self.bytes += bytes;
        *self.bytes_of_sessions.entry(chunk.key.0).or_default() += bytes;
        self.numbers.insert(chunk.key, self.next_number);
        self.chunks.insert(self.next_number, chunk);
        self.next_number += 1;
    }

    fn remove(&mut self, number: u64) -> Option<KeptChunk> {
        let chunk = self.chunks.remove(&number)?;
        let bytes = chunk.memory.amount();
        self.bytes -= bytes;
        self.numbers.remove(&chunk.key);
        if let Some(of_session) = self.bytes_of_sessions.get_mut(&chunk.key.0) {
            *of_session -= bytes;
            if *of_session == 0 {
                self.bytes_of_sessions.remove(&chunk.key.0);
            }
        }
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    fn budget(kib: u64) -> (Budget, Arc<DecodedChunks>) {
        let kept: Arc<DecodedChunks> = Arc::default();
        let budget = Budget::of_memory("tests", kib * KIB, Duration::from_secs(5), "tests");
        (budget.with_lent(Arc::clone(&kept) as Arc<dyn Lent>), kept)
    }

    fn session(number: u8) -> SessionId {
        SessionId([number; 16])
    }

    fn chunk(number: u8) -> ChunkId {
        ChunkId::from_bytes([number; 32])
    }

    /// Keeps chunks of a KiB, and returns which of them are kept.
    fn keep(kept: &DecodedChunks, memory: &Budget, of: u8, numbers: std::ops::Range<u8>) -> Vec<u8> {
        for number in numbers.clone() {
            kept.keep(memory, session(of), chunk(number), vec![number; 1024]);
        }
        numbers.filter(|number| kept.has(session(of), chunk(*number))).collect()
    }

    #[tokio::test]
    async fn a_session_has_half_and_all_have_three_quarters_of_what_is_free() {
        let (budget, kept) = budget(16);
        assert_eq!(keep(&kept, &budget, 1, 0..20), (0..8).collect::<Vec<_>>());
        assert_eq!(keep(&kept, &budget, 2, 0..20), (0..4).collect::<Vec<_>>());
        assert_eq!((kept.bytes(), budget.free()), (12 * KIB, 16 * KIB), "it counts as free");
        let taken = kept.take(session(1), chunk(3)).expect("it is kept");
        assert_eq!((&taken.raw[..], budget.free()), (&[3; 1024][..], 15 * KIB));
        assert!(kept.take(session(1), chunk(3)).is_none(), "one check takes it");
        drop(taken);
        keep(&kept, &budget, 1, 3..4);
        kept.keep(&budget, session(1), chunk(3), vec![0; 1024]);
        assert_eq!(kept.bytes(), 12 * KIB, "once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_wants_memory_waits_for_no_chunk_and_the_first_ones_stay() {
        let (budget, kept) = budget(16);
        keep(&kept, &budget, 1, 0..8);
        let share = budget.take(10 * KIB).await.unwrap();
        assert_eq!(keep(&kept, &budget, 1, 0..8), (0..6).collect::<Vec<_>>());
        let all = tokio::spawn({
            let budget = budget.clone();
            async move { budget.take(16 * KIB).await.map(drop) }
        });
        while budget.present_use().waiting == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(keep(&kept, &budget, 1, 0..8), [0_u8; 0], "nothing is kept while a task waits");
        drop(share);
        all.await.unwrap().unwrap();
        assert_eq!(budget.free(), 16 * KIB);
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_check_wants_is_given_up() {
        let (budget, kept) = budget(16);
        keep(&kept, &budget, 1, 0..1);
        kept.forget_later();
        tokio::time::sleep(KEPT / 2).await;
        keep(&kept, &budget, 1, 1..2);
        tokio::time::sleep(KEPT / 2 + Duration::from_secs(1)).await;
        assert!(!kept.has(session(1), chunk(0)) && kept.has(session(1), chunk(1)));
        assert_eq!((kept.bytes(), budget.free()), (KIB, 16 * KIB));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn tasks_that_want_memory_at_once_all_get_it() {
        let (budget, kept) = budget(64);
        let tasks: Vec<_> = (0..8_u8)
            .map(|of| {
                let (budget, kept) = (budget.clone(), Arc::clone(&kept));
                tokio::spawn(async move {
                    for _ in 0..200 {
                        keep(&kept, &budget, of, 0..16);
                        drop(budget.take(48 * KIB).await.expect("nobody keeps what others wait for"));
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(budget.free(), 64 * KIB);
    }
}
