//! Reading: a NAR is served by splicing stored frames and hole frames. No codec runs here.
//!
//! Algorithm: the recipe's chunk rows are loaded (16,384 at a time for a large NAR), neighbours in a pack are read
//! together, one read ahead; every chunk is checked against its XXH3-64 before any of its bytes leave.
//!
//! Invariants
//! - Before the caller gets a stream, every pack it needs is known to exist and the first read is verified.
//! - Bytes under a tag never change: the tag is recomputed from the rows that are served. When healing re-encoded a chunk,
//!   the NAR gets its new tag here, and callers that ask by the old one are told so by [`OpenNar::tag`].
//! - A stream ends early only with an error; the NAR is then marked damaged if bytes are missing or changed, and is
//!   missing to everybody until it is pushed again. A store that is merely unreachable marks nothing.

use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dormer_blobs::BlobKey;
use dormer_format::{ChunkRun, EncodingTag, HoleFill, PackId, Recipe, TagBuilder, checksum, splice};
use dormer_index::{Cache, ChunkRow, Nar, NarId, NarKey};
use dormer_nix::NarHash;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, Stream};
use futures::{FutureExt, StreamExt};
use tokio::sync::OwnedSemaphorePermit;

use crate::{Engine, Error, Result};

/// Chunk rows loaded at once: 2 GiB of NAR at 128 KiB a chunk, about 2 MiB of memory.
const ROWS_MAX: usize = 16_384;

/// Largest single read. Past 1 MiB a local read gains nothing and falls out of the second-level cache.
const READ_BYTES_MAX: u64 = 1024 * 1024;

/// Smallest limit for a read, however many readers there are.
const READ_BYTES_MIN: u64 = 64 * 1024;

/// Reads under way for one stream: one being sent, one ahead.
const READS_AHEAD: usize = 2;

/// Unused bytes between two chunks that are read over rather than read apart.
const GAP_BYTES_MAX: u64 = 64 * 1024;

/// Tries of one read before it counts as damaged or unavailable.
const TRIES: u32 = 3;

/// A NAR that can be read: its packs were there a moment ago.
#[derive(Debug, Clone)]
pub struct OpenNar {
    engine: Engine,
    plan: Arc<Plan>,
}

/// What is remembered of a NAR between reads.
#[derive(Debug)]
pub(crate) struct Plan {
    nar: NarId,
    hash: NarHash,
    size: u64,
    file_size: u64,
    tag: EncodingTag,
    recipe: Recipe,
    /// All rows, if they are few.
    rows: Option<Arc<[ChunkRow]>>,
}

impl Plan {
    /// About how many bytes this plan takes, for the bound on those remembered.
    pub(crate) fn weight(&self) -> u32 {
        let rows = self.rows.as_ref().map_or(0, |rows| rows.len() * 192);
        let recipe =
            self.recipe.runs.len() * 16 + self.recipe.hashes.len() * 32 + self.recipe.fills.len() * 8;
        u32::try_from(256 + rows + recipe).unwrap_or(u32::MAX)
    }
}

/// What a read is asked for by.
pub(crate) type PlanKey = (dormer_index::CacheId, NarKey);

impl Engine {
    /// Opens a NAR of a cache. `None` when the cache has none by this key, or when its bytes are found missing.
    pub async fn open_nar(&self, cache: &Cache, key: &NarKey) -> Result<Option<OpenNar>> {
        let plan_key = (cache.id, key.clone());
        if let Some(plan) = self.remembered_plans().get(&plan_key) {
            return Ok(Some(OpenNar { engine: self.clone(), plan }));
        }
        let Some(nar) = self.index().find_nar_in_cache(cache.id, key, self.now()).await? else {
            return Ok(None);
        };
        let Some(open) = self.open(nar).await? else { return Ok(None) };
        self.remembered_plans().insert(plan_key, Arc::clone(&open.plan));
        Ok(Some(open))
    }

    /// Opens the NAR behind an upload alias, with the compression that its name promises.
    pub async fn open_alias(&self, cache: &Cache, file_name: &str) -> Result<Option<(String, OpenNar)>> {
        let Some(alias) = self.find_alias(cache, file_name).await? else { return Ok(None) };
        let key = NarKey::Hash(alias.nar.hash);
        Ok(self.open_nar(cache, &key).await?.map(|open| (alias.compression, open)))
    }

    /// Proves the packs and recomputes the tag.
    async fn open(&self, nar: Nar) -> Result<Option<OpenNar>> {
        if nar.damaged {
            return Ok(None);
        }
        let mut proof = Proof::default();
        let windows = windows(&nar.recipe.runs);
        let mut kept = None;
        let mut fills = nar.recipe.hole_fills();
        let only_one = windows.len() <= 1;
        for window in windows {
            let rows = self.index().load_chunks(&window).await?;
            proof.add(&rows, &mut fills);
            if only_one {
                kept = Some(Arc::from(rows));
            }
        }
        let missing = self.missing_packs(&proof.packs).await?;
        if !missing.is_empty() {
            tracing::error!(nar.hash = %nar.hash, pack.count = missing.len(), "packs of a NAR are missing");
            self.mark_lost_packs(&nar, &missing).await;
            return Ok(None);
        }
        let tag = proof.tag.finish();
        if tag != nar.tag || proof.file_size != nar.file_size {
            self.index().update_encoding(nar.id, &tag, proof.file_size).await?;
            self.forget_narinfos();
        }
        let plan = Plan {
            nar: nar.id,
            hash: nar.hash,
            size: nar.size,
            file_size: proof.file_size,
            tag,
            recipe: nar.recipe,
            rows: kept,
        };
        Ok(Some(OpenNar { engine: self.clone(), plan: Arc::new(plan) }))
    }

    async fn missing_packs(&self, packs: &BTreeSet<PackId>) -> Result<BTreeSet<PackId>> {
        let mut missing = BTreeSet::new();
        for pack in packs {
            if self.proven_packs().contains_key(pack) {
                continue;
            }
            match self.blobs().head(&BlobKey::Pack(*pack)).await {
                Ok(_) => self.proven_packs().insert(*pack, ()),
                Err(dormer_blobs::Error::NotFound { .. }) => {
                    missing.insert(*pack);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(missing)
    }

    async fn mark_lost_packs(&self, nar: &Nar, missing: &BTreeSet<PackId>) {
        for window in windows(&nar.recipe.runs) {
            match self.index().load_chunks(&window).await {
                Ok(rows) => {
                    let lost: Vec<u64> = rows
                        .iter()
                        .filter(|row| missing.contains(&row.pack_id))
                        .map(|row| row.number)
                        .collect();
                    self.mark_damaged(nar.id, &nar.hash, &lost).await;
                }
                Err(error) => tracing::error!(nar.hash = %nar.hash, %error, "failed to mark a NAR damaged"),
            }
        }
    }

    /// Marks damage. Failing to do so is logged only: the caller already answers with an error, and the next read finds it again.
    async fn mark_damaged(&self, nar: NarId, hash: &NarHash, chunks: &[u64]) {
        tracing::error!(nar.hash = %hash, chunk.numbers = ?chunks, "stored bytes are damaged");
        if let Err(error) = self.index().mark_damaged(nar, chunks, self.now()).await {
            tracing::error!(nar.hash = %hash, %error, "failed to mark a NAR damaged");
        }
        self.forget_narinfos();
        self.remembered_plans().invalidate_all();
    }
}

#[derive(Default)]
struct Proof {
    tag: TagBuilder,
    file_size: u64,
    packs: BTreeSet<PackId>,
}

impl Proof {
    fn add<'a>(&mut self, rows: &[ChunkRow], fills: &mut impl Iterator<Item = &'a HoleFill>) {
        for row in rows {
            self.tag.push_chunk(&row.id, row.checksum, &row.layout);
            for fill in fills.by_ref().take(row.layout.holes.len()) {
                self.tag.push_fill(fill);
            }
            self.file_size += row.layout.spliced_len();
            self.packs.insert(row.pack_id);
        }
    }
}

/// Cuts runs into groups of at most [`ROWS_MAX`] chunks.
fn windows(runs: &[ChunkRun]) -> VecDeque<Vec<ChunkRun>> {
    let mut windows = VecDeque::new();
    let mut window = Vec::new();
    let mut room = ROWS_MAX;
    for run in runs {
        let mut rest = *run;
        while rest.count > 0 {
            let count = rest.count.min(u32::try_from(room).unwrap_or(u32::MAX));
            window.push(ChunkRun { first: rest.first, count });
            rest = ChunkRun { first: rest.first + u64::from(count), count: rest.count - count };
            room -= count as usize;
            if room == 0 {
                windows.push_back(std::mem::take(&mut window));
                room = ROWS_MAX;
            }
        }
    }
    if !window.is_empty() {
        windows.push_back(window);
    }
    windows
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

    /// Starts reading all bytes, or a range of them. The first read is verified when this returns.
    pub async fn stream(self, range: Option<Range<u64>>) -> Result<NarStream> {
        let size = self.plan.file_size;
        let range = range.unwrap_or(0..size);
        if range.start > range.end || range.end > size {
            return Err(Error::RangeOutside { start: range.start, end: range.end, size });
        }
        let turn = self.engine.read_turn().await?;
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
        };
        if let Some(first) = stream.next().await {
            stream.ready.push_front(first?);
        }
        Ok(stream)
    }
}

/// The bytes of a NAR as they are served. An error means that the answer must be cut off, never ended cleanly.
pub struct NarStream {
    engine: Engine,
    plan: Arc<Plan>,
    source: ReadSource,
    /// Reads under way, in order.
    reading: FuturesOrdered<BoxFuture<'static, Result<VecDeque<Bytes>>>>,
    /// The next window of rows under way.
    loading: Option<BoxFuture<'static, Result<Vec<ChunkRow>>>>,
    ready: VecDeque<Bytes>,
    ended: bool,
    _active: Active,
    _turn: OwnedSemaphorePermit,
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
            while this.reading.len() < READS_AHEAD {
                match this.source.next_read(this.engine.read_bytes()) {
                    Next::Read(read) => {
                        let read = this.engine.clone().read(Arc::clone(&this.plan), read);
                        this.reading.push_back(read.boxed());
                    }
                    Next::NeedsRows(window) => {
                        let index = Arc::clone(this.engine.index());
                        let load = async move { Ok(index.load_chunks(&window).await?) };
                        this.loading = Some(load.boxed());
                    }
                    Next::Loading | Next::End => break,
                }
            }
            if let Some(loading) = &mut this.loading
                && let Poll::Ready(rows) = loading.as_mut().poll(context)
            {
                this.loading = None;
                match rows {
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
    fn fail(&mut self, error: Error) -> Poll<Option<Result<Bytes>>> {
        self.ended = true;
        Poll::Ready(Some(Err(error)))
    }
}

enum Next {
    Read(Read),
    NeedsRows(Vec<ChunkRun>),
    Loading,
    End,
}

/// Chunks that are read together.
struct Read {
    rows: Arc<[ChunkRow]>,
    /// Which of the rows.
    chunks: Range<usize>,
    fills: Vec<HoleFill>,
    /// Bytes to leave out at the front and at the end of what these chunks splice to.
    skip: u64,
    take: u64,
}

/// Plans the reads of a stream, one at a time.
struct ReadSource {
    windows: VecDeque<Vec<ChunkRun>>,
    waiting_for_rows: bool,
    rows: Arc<[ChunkRow]>,
    row: usize,
    plan: Arc<Plan>,
    /// Position among the recipe's fills, as (run of fills, position in it).
    fill_run: usize,
    fill_done: u32,
    /// Served bytes that are still before the range, and those of it that are still to come.
    skip: u64,
    take: u64,
}

impl ReadSource {
    fn new(plan: &Arc<Plan>, range: Range<u64>) -> Self {
        let windows = if plan.rows.is_some() { VecDeque::new() } else { windows(&plan.recipe.runs) };
        Self {
            windows,
            waiting_for_rows: false,
            rows: plan.rows.clone().unwrap_or_else(|| Arc::from([])),
            row: 0,
            plan: Arc::clone(plan),
            fill_run: 0,
            fill_done: 0,
            skip: range.start,
            take: range.end - range.start,
        }
    }

    fn add_rows(&mut self, rows: Arc<[ChunkRow]>) {
        self.waiting_for_rows = false;
        self.rows = rows;
        self.row = 0;
    }

    fn next_read(&mut self, bytes_max: u64) -> Next {
        if self.take == 0 {
            return Next::End;
        }
        if self.waiting_for_rows {
            return Next::Loading;
        }
        // Chunks before the range are stepped over; only their fills count.
        while let Some(row) = self.rows.get(self.row)
            && row.layout.spliced_len() <= self.skip
        {
            self.skip -= row.layout.spliced_len();
            let holes = row.layout.holes.len();
            self.row += 1;
            self.take_fills(holes, None);
        }
        if self.row == self.rows.len() {
            return match self.windows.pop_front() {
                Some(window) => {
                    self.waiting_for_rows = true;
                    Next::NeedsRows(window)
                }
                None => Next::End,
            };
        }
        let first = self.row;
        let mut fills = Vec::new();
        let mut spliced = 0;
        let start = self.rows[first].offset;
        loop {
            let row = &self.rows[self.row];
            spliced += row.layout.spliced_len();
            let (end, pack, holes) = (end_of(row), row.pack, row.layout.holes.len());
            self.take_fills(holes, Some(&mut fills));
            self.row += 1;
            let neighbour = self.rows.get(self.row).is_some_and(|next| {
                next.pack == pack
                    && next.offset >= end
                    && next.offset - end <= GAP_BYTES_MAX
                    && end_of(next) - start <= bytes_max
            });
            if !neighbour || spliced >= self.skip + self.take {
                break;
            }
        }
        let skip = std::mem::take(&mut self.skip);
        let take = (spliced - skip).min(self.take);
        self.take -= take;
        Next::Read(Read { rows: Arc::clone(&self.rows), chunks: first..self.row, fills, skip, take })
    }

    fn take_fills(&mut self, count: usize, mut into: Option<&mut Vec<HoleFill>>) {
        for _ in 0..count {
            // A recipe has as many fills as its chunks have holes: the tag, which covers both, was recomputed at opening.
            let Some(run) = self.plan.recipe.fills.get(self.fill_run) else { return };
            if let Some(into) = into.as_deref_mut() {
                into.push(self.plan.recipe.hashes[run.hash as usize]);
            }
            self.fill_done += 1;
            if self.fill_done == run.count {
                self.fill_run += 1;
                self.fill_done = 0;
            }
        }
    }
}

fn end_of(row: &ChunkRow) -> u64 {
    row.offset + u64::from(row.layout.stored_len())
}

impl Engine {
    /// Reads, verifies and splices.
    async fn read(self, plan: Arc<Plan>, read: Read) -> Result<VecDeque<Bytes>> {
        let mut attempt = 1;
        loop {
            let failure = match self.read_once(&read).await {
                Ok(pieces) => return Ok(pieces),
                Err(failure) => failure,
            };
            if attempt == TRIES {
                return Err(match failure {
                    ReadFailure::Damaged(chunks) => {
                        self.mark_if_still_there(&plan, &read, chunks).await;
                        Error::Damaged { nar: plan.hash }
                    }
                    ReadFailure::Unavailable(error) => error.into(),
                });
            }
            tokio::time::sleep(Duration::from_millis(20 * 4u64.pow(attempt))).await;
            attempt += 1;
        }
    }

    /// Marks those of the damaged chunks that still lie where this read looked for them. A slow reader may hold places from
    /// before a healing push, and must not take back what that push was acknowledged for.
    async fn mark_if_still_there(&self, plan: &Plan, read: &Read, mut chunks: Vec<u64>) {
        let runs: Vec<ChunkRun> = chunks.iter().map(|number| ChunkRun { first: *number, count: 1 }).collect();
        if let Ok(present) = self.index().load_chunks(&runs).await {
            chunks.retain(|number| {
                let moved = |row: &&ChunkRow| {
                    row.number == *number
                        && !read.rows.iter().any(|seen| {
                            seen.number == row.number && seen.pack == row.pack && seen.offset == row.offset
                        })
                };
                !present.iter().any(|row| moved(&row))
            });
        }
        if chunks.is_empty() {
            self.remembered_plans().invalidate_all();
        } else {
            self.mark_damaged(plan.nar, &plan.hash, &chunks).await;
        }
    }

    async fn read_once(&self, read: &Read) -> Result<VecDeque<Bytes>, ReadFailure> {
        let rows = &read.rows[read.chunks.clone()];
        let (first, last) = (&rows[0], &rows[rows.len() - 1]);
        let start = first.offset;
        let stored = match self.blobs().get_range(&BlobKey::Pack(first.pack_id), start..end_of(last)).await {
            Ok(stored) => stored,
            Err(dormer_blobs::Error::NotFound { .. } | dormer_blobs::Error::Truncated { .. }) => {
                self.proven_packs().invalidate(&first.pack_id);
                // All that lies in the same pack is gone with it: one push heals the whole NAR.
                let lost = read.rows.iter().filter(|row| row.pack == first.pack);
                return Err(ReadFailure::Damaged(lost.map(|row| row.number).collect()));
            }
            Err(error) => return Err(ReadFailure::Unavailable(error)),
        };
        let damaged: Vec<u64> = rows
            .iter()
            .filter(|row| checksum(&stored[within(row, start)]) != row.checksum)
            .map(|row| row.number)
            .collect();
        if damaged.is_empty() { splice_read(read, &stored) } else { Err(ReadFailure::Damaged(damaged)) }
    }
}

enum ReadFailure {
    /// These chunks are missing or changed.
    Damaged(Vec<u64>),
    Unavailable(dormer_blobs::Error),
}

/// Where a chunk lies in bytes that were read from `start` on.
fn within(row: &ChunkRow, start: u64) -> Range<usize> {
    let offset = usize::try_from(row.offset - start).expect("a read is at most a few MiB");
    offset..offset + row.layout.stored_len() as usize
}

fn splice_read(read: &Read, stored: &Bytes) -> Result<VecDeque<Bytes>, ReadFailure> {
    let rows = &read.rows[read.chunks.clone()];
    let start = rows[0].offset;
    let mut pieces = VecDeque::new();
    // Neighbours without holes leave as one piece, straight from what was read.
    let mut plain: Range<usize> = 0..0;
    let mut fills = read.fills.as_slice();
    let mut parts = Vec::new();
    for row in rows {
        let place = within(row, start);
        if row.layout.holes.is_empty() {
            if plain.end != place.start {
                push_piece(&mut pieces, stored.slice(plain));
                plain = place.start..place.start;
            }
            plain.end = place.end;
            continue;
        }
        push_piece(&mut pieces, stored.slice(std::mem::take(&mut plain)));
        // Sound bytes with a layout or fills that do not fit: the row is what is damaged.
        let damaged = || ReadFailure::Damaged(vec![row.number]);
        let (own, rest) = fills.split_at_checked(row.layout.holes.len()).ok_or_else(damaged)?;
        fills = rest;
        // Frames between holes are small; sending them one by one costs more than copying them together.
        parts.clear();
        splice(&stored.slice(place), &row.layout, own, &mut parts).map_err(|_| damaged())?;
        let length = parts.iter().map(Bytes::len).sum();
        let mut joined = BytesMut::with_capacity(length);
        for part in &parts {
            joined.extend_from_slice(part);
        }
        push_piece(&mut pieces, joined.freeze());
    }
    push_piece(&mut pieces, stored.slice(plain));
    trim(&mut pieces, read.skip, read.take);
    Ok(pieces)
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

impl Engine {
    /// How much one read may take at present.
    fn read_bytes(&self) -> u64 {
        let readers = self.active_reads().load(Ordering::Relaxed).max(1) as u64;
        let share = self.settings().read_memory_bytes / readers / (READS_AHEAD as u64 + 1);
        share.clamp(READ_BYTES_MIN, READ_BYTES_MAX)
    }

    async fn read_turn(&self) -> Result<OwnedSemaphorePermit> {
        let turn = Arc::clone(self.read_turns()).acquire_owned();
        match tokio::time::timeout(self.settings().read_wait, turn).await {
            Ok(permit) => Ok(permit.expect("the semaphore is never closed")),
            Err(_) => Err(Error::Busy { what: "downloads" }),
        }
    }
}
