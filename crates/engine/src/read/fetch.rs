//! Executes a read: fetches, verifies and splices bytes, and marks bytes that cannot be read.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use dormer_blobs::BlobKey;
use dormer_format::{ChunkRun, PackId, checksum, splice};
use dormer_index::{ChunkRow, PackNumber};
use futures::future::try_join_all;

use super::block_cache;
use super::plan::{Fetch, Read, ReadPlan, gather};
use crate::budget::{BudgetShare, hold};
use crate::pace::tried;
use crate::{Engine, Error, Result};

/// Attempts of one fetch before its bytes count as damaged or unavailable.
const TRIES: u32 = 3;

impl Engine {
    /// Reads, verifies and splices.
    pub(super) async fn read(self, plan: Arc<ReadPlan>, read: Read) -> Result<VecDeque<Bytes>> {
        let rows = &read.rows[read.chunks.clone()];
        let fetched_bytes: u64 = read.fetches.iter().map(|fetch| self.fetch_memory_bytes(fetch)).sum();
        let mut memory = self.read_memory().take(fetched_bytes + read.copied_bytes).await?;
        let engine = &self;
        let fetches = read.fetches.iter().map(|fetch| {
            let rows = rows.iter().filter(|row| fetch.holds(row)).collect::<Vec<_>>();
            async move { engine.fetch(fetch, &rows).await }
        });
        let failure = match try_join_all(fetches).await {
            Ok(stored) => {
                let kept_bytes: u64 = read.fetches.iter().map(|fetch| self.kept_bytes(fetch)).sum();
                memory.shrink_to(kept_bytes + read.copied_bytes);
                let memory = Arc::new(memory);
                let stored: Vec<Bytes> = stored.into_iter().map(|bytes| hold(bytes, &memory)).collect();
                match splice_read(&read, &stored, &memory) {
                    Ok(pieces) => return Ok(pieces),
                    Err(number) => ReadFailure::Damaged(vec![number]),
                }
            }
            Err(failure) => failure,
        };
        let is_damaged = match failure {
            ReadFailure::Unavailable(error) => return Err(error.into()),
            ReadFailure::PackLost(pack) => {
                // A truncated pack exists, and counts as lost all the same.
                let mut lost = self.lost_packs(&plan.recipe).await?;
                lost.insert(pack);
                self.mark_lost_packs(plan.nar, &plan.hash, &plan.recipe, &lost).await
            }
            ReadFailure::Damaged(chunks) => {
                let damaged = self.still_there(&read.rows, chunks).await;
                let is_damaged = !damaged.is_empty();
                if is_damaged {
                    self.mark_damaged(plan.nar, &plan.hash, vec![damaged]).await;
                }
                is_damaged
            }
        };
        if is_damaged {
            return Err(Error::Damaged { nar: plan.hash });
        }
        // The chunk moved meanwhile, or the index cannot tell: that is no "not here".
        self.forget_plans();
        Err(Error::Reencoded { nar: plan.hash })
    }

    /// Those of the damaged chunks that still lie where a read looked for them. A slow reader may
    /// hold positions from before a healing push, and must not mark what that push healed.
    pub(crate) async fn still_there(&self, seen: &[ChunkRow], mut chunks: Vec<u64>) -> Vec<u64> {
        let runs: Vec<ChunkRun> = chunks.iter().map(|number| ChunkRun { first: *number, count: 1 }).collect();
        if let Ok(present) = self.index().load_chunks(&runs).await {
            let seen_at: HashMap<u64, (PackNumber, u64)> =
                seen.iter().map(|row| (row.number, (row.pack, row.offset))).collect();
            let moved: HashSet<u64> = present
                .iter()
                .filter(|row| seen_at.get(&row.number) != Some(&(row.pack, row.offset)))
                .map(|row| row.number)
                .collect();
            chunks.retain(|number| !moved.contains(number));
        }
        chunks
    }

    /// Stored bytes of the first of these chunks, as many as one read takes and at least one, each
    /// equal to its checksum. The bytes keep their share of the memory for reads.
    pub(crate) async fn fetch_chunks(&self, rows: &[ChunkRow]) -> Result<Vec<Bytes>, FetchFailure> {
        self.fetch_chunks_beside(rows, 0).await.map(|(stored, _)| stored)
    }

    /// As [`fetch_chunks`](Self::fetch_chunks), with a share for so many bytes more of that memory:
    /// a caller that holds the chunks cannot wait for more.
    pub(crate) async fn fetch_chunks_beside(
        &self,
        rows: &[ChunkRow],
        more_bytes: u64,
    ) -> Result<(Vec<Bytes>, Arc<BudgetShare>), FetchFailure> {
        let (fetches, count) = gather(rows, &self.read_limits());
        let rows = &rows[..count];
        let fetched_bytes: u64 = fetches.iter().map(|fetch| self.fetch_memory_bytes(fetch)).sum();
        let memory = self.read_memory().take(fetched_bytes + more_bytes).await.map_err(FetchFailure::Busy)?;
        let memory = Arc::new(memory);
        let reads = fetches.iter().map(|fetch| {
            let rows = rows.iter().filter(|row| fetch.holds(row)).collect::<Vec<_>>();
            async move { self.fetch(fetch, &rows).await }
        });
        let stored = try_join_all(reads).await.map_err(FetchFailure::Read)?;
        let of = |row: &ChunkRow| {
            let number = fetches.iter().position(|fetch| fetch.holds(row)).expect("each row has a fetch");
            hold(stored[number].slice(within(row, fetches[number].bytes.start)), &memory)
        };
        Ok((rows.iter().map(of).collect(), memory))
    }

    /// Part of a pack, in which each of these chunks is equal to its checksum.
    async fn fetch(&self, fetch: &Fetch, rows: &[&ChunkRow]) -> Result<Bytes, ReadFailure> {
        let attempt = |number| {
            if number > 1 {
                self.metrics().reads.retries.inc();
            }
            self.fetch_once(fetch, rows, number == 1)
        };
        tried(TRIES, attempt, |outcome| match outcome {
            Ok(_) => true,
            // The store's own retries have waited for it already.
            Err(ReadFailure::Unavailable(error)) => !error.is_worth_a_retry(),
            Err(_) => false,
        })
        .await
    }

    /// Fetches once. The checksums are compared whether the bytes come from the store or from the
    /// block cache.
    async fn fetch_once(
        &self,
        fetch: &Fetch,
        rows: &[&ChunkRow],
        from_memory: bool,
    ) -> Result<Bytes, ReadFailure> {
        let got = if from_memory && self.is_small(fetch) {
            self.block_cache().read(&**self.blobs(), fetch.pack_id, fetch.bytes.clone()).await
        } else {
            self.blobs().get_range(&BlobKey::Pack(fetch.pack_id), fetch.bytes.clone()).await
        };
        let stored = match got {
            Ok(stored) => stored,
            Err(dormer_blobs::Error::NotFound { .. } | dormer_blobs::Error::Truncated { .. }) => {
                self.proven_packs().invalidate(&fetch.pack_id);
                return Err(ReadFailure::PackLost(fetch.pack_id));
            }
            Err(error) => return Err(ReadFailure::Unavailable(error)),
        };
        self.note_proof(fetch.pack_id);
        let damaged: Vec<u64> = rows
            .iter()
            .filter(|row| checksum(&stored[within(row, fetch.bytes.start)]) != row.checksum)
            .map(|row| row.number)
            .collect();
        if damaged.is_empty() {
            return Ok(stored);
        }
        if self.is_small(fetch) {
            self.block_cache().forget(fetch.pack_id, &fetch.bytes).await;
        }
        Err(ReadFailure::Damaged(damaged))
    }

    fn is_small(&self, fetch: &Fetch) -> bool {
        self.blobs().is_remote() && block_cache::is_small(&fetch.bytes)
    }

    /// Memory of a fetch in progress, in bytes.
    fn fetch_memory_bytes(&self, fetch: &Fetch) -> u64 {
        match self.blobs().is_remote() {
            true if block_cache::is_small(&fetch.bytes) => block_cache::BLOCK_BYTES + fetch.len(),
            true => fetch.len(),
            // Local reads come in buffers that are powers of two.
            false => fetch.len().next_power_of_two(),
        }
    }

    /// Memory of the fetched bytes, in bytes.
    fn kept_bytes(&self, fetch: &Fetch) -> u64 {
        if self.is_small(fetch) { fetch.len() } else { self.fetch_memory_bytes(fetch) }
    }
}

/// Why chunks could not be fetched.
pub(crate) enum FetchFailure {
    /// No memory was free in time.
    Busy(Error),
    /// Their bytes could not be read.
    Read(ReadFailure),
}

/// Why stored bytes could not be read.
pub(crate) enum ReadFailure {
    /// These chunks are changed.
    Damaged(Vec<u64>),
    /// The pack is missing or truncated.
    PackLost(PackId),
    /// The store cannot be reached, so the state of the bytes is unknown.
    Unavailable(dormer_blobs::Error),
}

/// Where a chunk lies in bytes that were read from `start` on.
fn within(row: &ChunkRow, start: u64) -> Range<usize> {
    let offset = usize::try_from(row.offset - start).expect("a read is at most a few MiB");
    offset..offset + row.layout.stored_len() as usize
}

/// Makes the pieces to send from the bytes of the read's fetches. An error is the number of a chunk
/// whose layout or fills do not fit: its row is damaged.
fn splice_read(read: &Read, stored: &[Bytes], memory: &Arc<BudgetShare>) -> Result<VecDeque<Bytes>, u64> {
    let mut pieces = VecDeque::new();
    // Neighbours without holes are sent as one piece, without a copy.
    let mut plain = Plain { fetch: 0, bytes: 0..0 };
    let mut fills = read.fills.as_slice();
    let mut parts = Vec::new();
    for row in &read.rows[read.chunks.clone()] {
        let number = read.fetches.iter().position(|fetch| fetch.holds(row)).ok_or(row.number)?;
        let position = within(row, read.fetches[number].bytes.start);
        if row.layout.holes.is_empty() {
            if plain.fetch != number || plain.bytes.end != position.start {
                push_piece(&mut pieces, plain.take(stored));
                plain = Plain { fetch: number, bytes: position.start..position.start };
            }
            plain.bytes.end = position.end;
            continue;
        }
        push_piece(&mut pieces, plain.take(stored));
        let (own, rest) = fills.split_at_checked(row.layout.holes.len()).ok_or(row.number)?;
        fills = rest;
        // Frames between holes are small: sending them one by one costs more than copying them
        // together.
        parts.clear();
        splice(&stored[number].slice(position), &row.layout, own, &mut parts).map_err(|_| row.number)?;
        let length = parts.iter().map(Bytes::len).sum();
        let mut joined = BytesMut::with_capacity(length);
        for part in &parts {
            joined.extend_from_slice(part);
        }
        push_piece(&mut pieces, hold(joined.freeze(), memory));
    }
    push_piece(&mut pieces, plain.take(stored));
    trim(&mut pieces, read.skip, read.take);
    Ok(pieces)
}

/// Chunks without holes that lie behind each other in a fetch.
struct Plain {
    fetch: usize,
    bytes: Range<usize>,
}

impl Plain {
    fn take(&mut self, stored: &[Bytes]) -> Bytes {
        stored[self.fetch].slice(std::mem::take(&mut self.bytes))
    }
}

fn push_piece(pieces: &mut VecDeque<Bytes>, piece: Bytes) {
    if !piece.is_empty() {
        pieces.push_back(piece);
    }
}

/// Cuts the pieces to `take` bytes after the first `skip`.
fn trim(pieces: &mut VecDeque<Bytes>, mut skip: u64, mut take: u64) {
    pieces.retain_mut(|piece| {
        let skipped = skip.min(piece.len() as u64);
        skip -= skipped;
        let kept = take.min(piece.len() as u64 - skipped);
        take -= kept;
        let start = usize::try_from(skipped).expect("at most the piece's length");
        let end = start + usize::try_from(kept).expect("at most the piece's length");
        *piece = piece.slice(start..end);
        !piece.is_empty()
    });
}
