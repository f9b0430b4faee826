//! Keeps the decoded chunks of parts until the checks of their NARs want them, so that a first push
//! decodes each chunk once.
//!
//! The memory is what uploads leave free. A check that finds a chunk gone reads and decodes the
//! stored one.
//!
//! Invariants
//! - All kept chunks together take at most three quarters of the memory for uploads, and those of
//!   one session at most half: more than a commit of a client waits for, and a server with little
//!   memory stays within its own. A task that wants memory gets theirs at once.
//! - The pusher that holds most makes room for tasks, and for pushers that hold less, however many
//!   sessions it has and whether they go on or not. Its latest chunks go first: checks come in
//!   about the order of the parts.
//! - A chunk is kept for [`KEPT`] at most, and for one check: the check takes it.
//! - A session gets only what it sent itself, whether that was stored before or not. So a check
//!   takes no longer or shorter for what another tenant has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    of_pushers: HashMap<Arc<str>, OfPusher>,
    bytes_of_sessions: HashMap<SessionId, u64>,
    bytes: u64,
    next_number: u64,
}

/// What is kept for one pusher.
#[derive(Debug, Default)]
struct OfPusher {
    bytes: u64,
    numbers: BTreeSet<u64>,
}

/// A decoded chunk, with its share of the memory for uploads.
#[derive(Debug)]
pub(super) struct KeptChunk {
    key: Key,
    pusher: Arc<str>,
    /// The blanked bytes.
    pub(super) raw: Vec<u8>,
    kept_at: Instant,
    memory: BudgetShare,
}

impl DecodedChunks {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a chunk's blanked bytes, if `memory` has some to spare, or if another pusher has more
    /// of it.
    pub(super) fn keep(
        &self,
        memory: &Budget,
        pusher: &Arc<str>,
        session: SessionId,
        chunk: ChunkId,
        raw: Vec<u8>,
    ) {
        let bytes = raw.len() as u64;
        let bytes_max = large_bytes_max(memory.limit());
        let fits = |kept: &Kept| kept.bytes + bytes <= bytes_max;
        let mut kept = self.lock();
        kept.forget_old();
        let of_session = kept.bytes_of_sessions.get(&session).copied().unwrap_or(0);
        if of_session + bytes > memory.limit() / 2 || kept.numbers.contains_key(&(session, chunk)) {
            return;
        }
        // Under the lock: a task that waits for memory has seen every chunk that was kept before.
        let memory = loop {
            if fits(&kept)
                && let Some(memory) = memory.try_lend(bytes)
            {
                break memory;
            }
            // What others give up would not come here.
            if memory.is_waited_for() {
                return;
            }
            let Some(number) = kept.latest_of_heavier(pusher, bytes) else { return };
            kept.remove(number);
        };
        let (key, pusher) = ((session, chunk), Arc::clone(pusher));
        kept.add(KeptChunk { key, pusher, raw, kept_at: Instant::now(), memory });
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
            && let Some(number) = kept.heaviest().and_then(OfPusher::latest)
        {
            kept.remove(number);
        }
        kept.bytes < before
    }
}

impl OfPusher {
    fn latest(&self) -> Option<u64> {
        self.numbers.last().copied()
    }
}

impl Kept {
    /// What the pusher has that holds most.
    fn heaviest(&self) -> Option<&OfPusher> {
        self.of_pushers.values().max_by_key(|of| of.bytes)
    }

    /// The chunk that makes room for so many bytes of a pusher: the latest of the pusher that holds
    /// most, if this one holds less with them.
    fn latest_of_heavier(&self, pusher: &str, bytes: u64) -> Option<u64> {
        let own = self.of_pushers.get(pusher).map_or(0, |of| of.bytes);
        self.heaviest().filter(|of| of.bytes > own + bytes)?.latest()
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
        let (number, bytes) = (self.next_number, chunk.memory.amount());
        self.next_number += 1;
        self.bytes += bytes;
        let of_pusher = self.of_pushers.entry(Arc::clone(&chunk.pusher)).or_default();
        of_pusher.bytes += bytes;
        of_pusher.numbers.insert(number);
        *self.bytes_of_sessions.entry(chunk.key.0).or_default() += bytes;
        self.numbers.insert(chunk.key, number);
        self.chunks.insert(number, chunk);
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
        if let Some(of_pusher) = self.of_pushers.get_mut(&chunk.pusher) {
            of_pusher.bytes -= bytes;
            of_pusher.numbers.remove(&number);
            if of_pusher.numbers.is_empty() {
                self.of_pushers.remove(&chunk.pusher);
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

    /// Keeps chunks of a KiB of a session, and returns which of them are kept.
    fn keep_for(
        pusher: &str,
        kept: &DecodedChunks,
        memory: &Budget,
        of: u8,
        numbers: std::ops::Range<u8>,
    ) -> Vec<u8> {
        for number in numbers.clone() {
            kept.keep(memory, &pusher.into(), session(of), chunk(number), vec![number; 1024]);
        }
        has(kept, of, numbers)
    }

    fn keep(kept: &DecodedChunks, memory: &Budget, of: u8, numbers: std::ops::Range<u8>) -> Vec<u8> {
        keep_for("ada", kept, memory, of, numbers)
    }

    /// Which chunks of a session are kept.
    fn has(kept: &DecodedChunks, of: u8, numbers: std::ops::Range<u8>) -> Vec<u8> {
        numbers.filter(|number| kept.has(session(of), chunk(*number))).collect()
    }

    #[tokio::test]
    async fn all_chunks_have_three_quarters_of_what_is_free() {
        let (budget, kept) = budget(16);
        assert_eq!(keep(&kept, &budget, 1, 0..20), (0..8).collect::<Vec<_>>(), "a session has half");
        assert_eq!(keep(&kept, &budget, 2, 0..20), (0..4).collect::<Vec<_>>());
        assert_eq!((kept.bytes(), budget.free()), (12 * KIB, 16 * KIB), "it counts as free");
        let taken = kept.take(session(1), chunk(3)).expect("it is kept");
        assert_eq!((&taken.raw[..], budget.free()), (&[3; 1024][..], 15 * KIB));
        assert!(kept.take(session(1), chunk(3)).is_none(), "one check takes it");
        drop(taken);
        keep(&kept, &budget, 1, 3..4);
        keep(&kept, &budget, 1, 3..4);
        assert_eq!(kept.bytes(), 12 * KIB, "once");
    }

    #[tokio::test]
    async fn idle_sessions_of_one_pusher_keep_no_memory_from_another() {
        let (budget, kept) = budget(16);
        for of in 1..4 {
            keep_for("ada", &kept, &budget, of, 0..4);
        }
        assert_eq!(kept.bytes(), 12 * KIB, "sessions of ada hold all that there is to lend");
        assert_eq!(keep_for("bob", &kept, &budget, 4, 0..20), (0..6).collect::<Vec<_>>());
        assert_eq!(kept.bytes(), 12 * KIB);
        let of_ada = [1, 2, 3].map(|of| has(&kept, of, 0..4).len());
        assert_eq!(of_ada, [4, 2, 0], "the latest chunks went");
        assert_eq!(keep_for("cy", &kept, &budget, 5, 0..20), (0..4).collect::<Vec<_>>());
        // A task takes from all of them alike, and not from those that came last.
        let _share = budget.take(10 * KIB).await.unwrap();
        let left = [has(&kept, 1, 0..4), has(&kept, 4, 0..20), has(&kept, 5, 0..20)];
        assert_eq!(left, [vec![0, 1], vec![0, 1], vec![0, 1]]);
        // So does a pusher when uploads have the rest.
        assert_eq!(keep_for("dee", &kept, &budget, 6, 0..20), [0]);
    }

    /// Nothing is lent while a task waits, so what others give up would help nobody.
    #[tokio::test]
    async fn no_pusher_makes_room_while_a_task_waits() {
        // A budget that cannot take back what it lent, as while a large task waits for its turn.
        let budget = Budget::of_memory("tests", 16 * KIB, Duration::from_secs(5), "tests");
        let kept = DecodedChunks::default();
        keep_for("ada", &kept, &budget, 1, 0..6);
        keep_for("ada", &kept, &budget, 3, 0..6);
        let rest = budget.take(4 * KIB).await.unwrap();
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.take(KIB).await.map(drop) }
        });
        while budget.present_use().waiting == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(keep_for("bob", &kept, &budget, 2, 0..4), [0_u8; 0]);
        let of_ada = [1, 3].map(|of| has(&kept, of, 0..6).len());
        assert_eq!(of_ada, [6, 6], "the chunks of ada are still there");
        drop(rest);
        waiting.await.unwrap().unwrap();
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
