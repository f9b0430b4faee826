//! Compaction: writes the live chunks of old packs into new ones.
//!
//! Order of writes, for each new pack: note its id as doomed; store it; move the chunk rows to it
//! in one transaction, which also takes it off the list; condemn the packs that have no live chunk
//! any more. They live out their grace like any condemned pack, so readers that know the old places
//! read on. docs/STORAGE.md argues why this loses nothing.
//!
//! Invariants
//! - Stored bytes are copied verbatim, unless a cold pack is recompressed ([`super::recompress`]).
//!   Each chunk's checksum is compared before it is written.
//! - A new pack is in memory once, with one read of an old pack: [`COMPACTION_BYTES_MAX`] in all.
//! - A crash leaves a pack on the list of doomed packs at most.
//! - A store that fails twice in a row stops the compactions of this collection, and nothing else
//!   of it: each attempt may take minutes, in which no other job runs. A pack that alone cannot be
//!   read stops its group.

use std::time::Instant;

use bytes::Bytes;
use dormer_blobs::BlobKey;
use dormer_format::{ChunkLayout, Pack, PackBuilder, PackId, checksum};
use dormer_index::{ChunkMove, ChunkRow, CompactedPack, PackNumber, PackRow, PackedChunk};
use dormer_nix::with_causes;

use super::collection_run::CollectionRun;
use super::collector::Collector;
use super::judge::numbers;
use super::plan::{
    CompactionTotals, Live, PackLimits, REWRITE_BYTES_MAX, REWRITE_CHUNKS_MAX, RewriteGroup, plan_reads,
};
use super::recompress::{self, Recompressor};
use super::report::CollectionReport;
use crate::Result;
use crate::pace::tried;

/// Memory of a compaction, in bytes: a new pack, a read, and rows. The zstd contexts of a
/// recompression come on top.
pub(crate) const COMPACTION_BYTES_MAX: u64 = 24 << 20;

/// Bytes that one collection writes at most. Another one goes on, so a large compaction keeps no
/// other job waiting for long.
const RUN_BYTES_MAX: u64 = 4 << 30;

/// How long a new pack that got no row stays, in seconds.
pub(super) const DOOMED_SECONDS: i64 = 2 * 86_400;

/// A new pack gets its row only if its object stays for so long at least, in seconds. So a process
/// that was suspended cannot move chunks to an object that is gone.
const DOOMED_MARGIN_SECONDS: i64 = 86_400;

/// Rows of chunks read at once.
const PAGE_CHUNKS: u32 = 4_096;

/// Attempts of a read before its bytes count as damaged.
const TRIES: u32 = 3;

/// Chunks that go into one new pack, by the pack that holds them.
#[derive(Default)]
pub(super) struct OpenPack {
    sources: Vec<Vec<ChunkRow>>,
    chunks: usize,
    bytes: u64,
    frames: Frames,
}

/// What becomes of the frames of chunks that move.
#[derive(Debug, Clone, Copy)]
enum Frames {
    /// They stay. The least level that the old packs were recompressed at.
    Kept(u8),
    /// They are made anew, at this level.
    New(u8),
}

impl Default for Frames {
    fn default() -> Self {
        Self::Kept(0)
    }
}

impl OpenPack {
    pub(super) fn has_room_for(&self, row: &ChunkRow) -> bool {
        self.chunks == 0
            || self.chunks < REWRITE_CHUNKS_MAX
                && self.bytes + u64::from(row.layout.stored_len()) <= REWRITE_BYTES_MAX
    }

    pub(super) fn chunks(&self) -> usize {
        self.chunks
    }

    pub(super) fn add(&mut self, row: ChunkRow) {
        self.chunks += 1;
        self.bytes += u64::from(row.layout.stored_len());
        match self.sources.last_mut() {
            Some(rows) if rows[0].pack == row.pack => rows.push(row),
            _ => self.sources.push(vec![row]),
        }
    }

    /// What writing it costs.
    fn cost(&self) -> CompactionTotals {
        let mut cost = CompactionTotals { packs_written: 1, requests: 1, ..Default::default() };
        for rows in &self.sources {
            for (bytes, _) in plan_reads(rows) {
                cost.requests += 1;
                cost.bytes_read += bytes.end - bytes.start;
            }
        }
        cost.chunks = self.chunks as u64;
        cost.bytes_written = self.bytes;
        cost
    }
}

/// The live chunks of a pack.
struct LiveChunks {
    /// Those that can be moved, by offset.
    rows: Vec<ChunkRow>,
    /// Whether these are all.
    is_all: bool,
}

impl Collector {
    /// What compacting a group costs. Reads rows only.
    pub(super) async fn plan_group(
        &self,
        group: &RewriteGroup,
        live: &Live,
        totals: &mut CompactionTotals,
    ) -> Result<()> {
        let mut open = OpenPack::default();
        for pack in &group.packs {
            totals.packs += 1;
            totals.bytes += pack.size;
            for row in self.live_chunks(pack.number, live).await?.rows {
                if !open.has_room_for(&row) {
                    totals.add(&std::mem::take(&mut open).cost());
                }
                open.add(row);
            }
        }
        if open.chunks > 0 {
            totals.add(&open.cost());
        }
        Ok(())
    }

    /// Whether this collection has done as much for such a group as it may.
    pub(super) fn is_compaction_over(report: &CollectionReport, group: &RewriteGroup) -> bool {
        match group.level {
            None => report.compacted.bytes_written >= RUN_BYTES_MAX,
            // What turned out to be hardly smaller took as long.
            Some(_) => report.recompressed.bytes_read >= recompress::RUN_BYTES_MAX,
        }
    }

    /// Compacts a group: rewrites its packs, and condemns those that can go then.
    pub(super) async fn compact_group(
        &self,
        collection: &mut CollectionRun<'_>,
        group: &RewriteGroup,
        live: &Live,
        limits: &PackLimits,
        report: &mut CollectionReport,
    ) -> Result<()> {
        let frames = match group.level {
            Some(level) => Frames::New(level),
            None => Frames::Kept(group.packs.iter().map(|pack| pack.recompressed_level).min().unwrap_or(0)),
        };
        let empty = || OpenPack { frames, ..OpenPack::default() };
        let mut open = empty();
        // Live chunks that are still in their packs.
        let mut left: Vec<(PackRow, u64)> = Vec::new();
        let mut moved = Vec::new();
        for pack in &group.packs {
            let begun = Instant::now();
            let chunks = self.live_chunks(pack.number, live).await?;
            collection.step(begun, 0).await?;
            left.push((*pack, chunks.rows.len() as u64 + u64::from(!chunks.is_all)));
            for row in chunks.rows {
                if !open.has_room_for(&row) {
                    let Some(more) =
                        self.write_pack(collection, std::mem::replace(&mut open, empty()), report).await?
                    else {
                        return Ok(());
                    };
                    moved.extend(more);
                }
                open.add(row);
            }
        }
        if open.chunks > 0 {
            let Some(more) = self.write_pack(collection, open, report).await? else { return Ok(()) };
            moved.extend(more);
        }
        for (pack, left) in &mut left {
            *left -= moved.iter().filter(|source| **source == pack.number).count() as u64;
        }
        if let Some(level) = group.level {
            // Whatever became of their chunks, another run at this level would do the same.
            self.index.note_recompressed(&numbers(&group.packs), level).await?;
        }
        let empty: Vec<PackRow> =
            left.into_iter().filter(|(_, left)| *left == 0).map(|(pack, _)| pack).collect();
        let begun = Instant::now();
        // These marks saw every NAR, but for those of commits whose stamps are looked at here.
        let (numbers, now) = (numbers(&empty), self.clock.now());
        let condemned = self.index.condemn_packs(&numbers, limits.stamps, now).await?;
        let totals = if group.level.is_some() { &mut report.recompressed } else { &mut report.compacted };
        for pack in empty.iter().filter(|pack| condemned.contains(&pack.number)) {
            totals.packs += 1;
            totals.bytes += pack.size;
        }
        collection.step(begun, condemned.len() as u64).await
    }

    /// The live chunks of a pack. A damaged one stays where it is until a push heals it.
    async fn live_chunks(&self, pack: PackNumber, live: &Live) -> Result<LiveChunks> {
        let mut chunks = LiveChunks { rows: Vec::new(), is_all: true };
        let mut after = None;
        loop {
            let page = self.index.pack_chunks(pack, after, PAGE_CHUNKS).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.row.number);
            let is_last = page.len() < PAGE_CHUNKS as usize;
            for PackedChunk { row, is_damaged } in page {
                if !live.has_chunk(row.number) {
                    continue;
                }
                if is_damaged {
                    chunks.is_all = false;
                } else {
                    chunks.rows.push(row);
                }
            }
            if is_last {
                break;
            }
        }
        chunks.rows.sort_unstable_by_key(|row| row.offset);
        Ok(chunks)
    }

    /// Writes a new pack and moves its chunks; returns the old pack of each moved chunk. `None` if
    /// the store failed, which the run counts.
    pub(super) async fn write_pack(
        &self,
        collection: &mut CollectionRun<'_>,
        open: OpenPack,
        report: &mut CollectionReport,
    ) -> Result<Option<Vec<PackNumber>>> {
        let written = self.try_write_pack(collection, open, report).await?;
        collection.store_failures = if written.is_some() { 0 } else { collection.store_failures + 1 };
        Ok(written)
    }

    async fn try_write_pack(
        &self,
        collection: &mut CollectionRun<'_>,
        open: OpenPack,
        report: &mut CollectionReport,
    ) -> Result<Option<Vec<PackNumber>>> {
        let begun = Instant::now();
        let id = PackId::from_bytes(rand::random());
        let mut builder = PackBuilder::new(id);
        let mut rows = Vec::with_capacity(open.chunks);
        let mut damaged: Vec<(PackNumber, u64)> = Vec::new();
        let mut cost = open.cost();
        let mut recompressor = match open.frames {
            Frames::Kept(_) => None,
            Frames::New(level) => Some(Recompressor::new(level)?),
        };
        let mut new_frames = Vec::new();
        for source in open.sources {
            let key = BlobKey::Pack(source[0].pack_id);
            for (bytes, places) in plan_reads(&source) {
                collection.keep().await?;
                let chunks = &source[places];
                let read = self.read_chunks(&key, bytes.start..bytes.end, chunks);
                match collection.while_renewing(read).await? {
                    Ok(stored) => {
                        let mut sound = Vec::with_capacity(chunks.len());
                        for (row, stored) in chunks.iter().zip(stored) {
                            match stored {
                                Some(bytes) => sound.push((row.clone(), bytes)),
                                None => damaged.push((row.pack, row.number)),
                            }
                        }
                        rows.extend(sound.iter().map(|(row, _)| row.clone()));
                        if let Some(contexts) = recompressor.take() {
                            let (contexts, shrunk) =
                                recompress::recompress(collection, contexts, sound).await?;
                            recompressor = Some(contexts);
                            for chunk in shrunk {
                                new_frames.push((chunk.checksum, chunk.layout.clone()));
                                builder.add(chunk);
                            }
                        } else {
                            for (row, bytes) in sound {
                                builder.add(recompress::as_stored(&row, bytes));
                            }
                        }
                    }
                    Err(error) => {
                        let error = with_causes(&error);
                        tracing::warn!(error, "a pack cannot be read; a later collection compacts");
                        return Ok(None);
                    }
                }
            }
        }
        for of_pack in damaged.chunk_by(|one, other| one.0 == other.0) {
            let chunks: Vec<u64> = of_pack.iter().map(|(_, chunk)| *chunk).collect();
            let marked = self.index.mark_chunks_damaged(of_pack[0].0, &chunks, self.clock.now()).await?;
            tracing::error!(chunk.numbers = ?chunks, marked, "a compaction found damaged chunks");
        }
        if rows.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let pack = builder.finish();
        let frames = match open.frames {
            Frames::Kept(_) => None,
            Frames::New(_) => {
                let before: u64 = rows.iter().map(|row| u64::from(row.layout.stored_len())).sum();
                let after: u64 = new_frames.iter().map(|(_, layout)| u64::from(layout.stored_len())).sum();
                if !recompress::is_worth(before, after) {
                    let cost = CompactionTotals { bytes_read: cost.bytes_read, ..Default::default() };
                    report.recompressed.add(&cost);
                    return Ok(Some(Vec::new()));
                }
                cost.bytes_written = after;
                Some(new_frames)
            }
        };
        if !self.store_pack(collection, &pack).await? {
            return Ok(None);
        }
        collection.keep().await?;
        let totals = if frames.is_some() { &mut report.recompressed } else { &mut report.compacted };
        let moved = self.move_to(&pack, &rows, open.frames, frames).await?;
        totals.add(&CompactionTotals { chunks: moved.len() as u64, ..cost });
        collection.step(begun, moved.len() as u64).await?;
        Ok(Some(moved))
    }

    /// Notes a pack as doomed and stores it. `false` if the store failed.
    async fn store_pack(&self, collection: &mut CollectionRun<'_>, pack: &Pack) -> Result<bool> {
        self.index.doom_new_pack(pack.id, self.clock.now() + DOOMED_SECONDS).await?;
        let key = BlobKey::Pack(pack.id);
        let stored = collection.while_renewing(self.blobs.put(&key, &pack.parts)).await?;
        if let Err(error) = &stored {
            let error = with_causes(error);
            tracing::warn!(pack.id = %pack.id, error, "a pack cannot be stored; a later collection compacts");
        }
        Ok(stored.is_ok())
    }

    /// Moves chunks to a stored pack; returns the old pack of each that moved.
    async fn move_to(
        &self,
        pack: &Pack,
        rows: &[ChunkRow],
        frames: Frames,
        new_frames: Option<Vec<(u64, ChunkLayout)>>,
    ) -> Result<Vec<PackNumber>> {
        let moves = rows.iter().zip(&pack.entries).map(|(row, entry)| ChunkMove {
            number: row.number,
            from: row.pack,
            from_offset: row.offset,
            checksum: row.checksum,
            offset: entry.offset,
        });
        let compacted = CompactedPack {
            id: pack.id,
            size: pack.size,
            raw_bytes: rows.iter().map(|row| u64::from(row.layout.raw_len)).sum(),
            holed_bytes: rows.iter().map(|row| row.layout.holed_bytes()).sum(),
            recompressed_level: match frames {
                Frames::Kept(level) | Frames::New(level) => level,
            },
            chunks: moves.collect(),
            new_frames,
        };
        let now = self.clock.now();
        let moved = self.index.move_chunks(&compacted, now, now + DOOMED_MARGIN_SECONDS).await?;
        let moved: std::collections::HashSet<u64> = moved.into_iter().collect();
        Ok(rows.iter().filter(|row| moved.contains(&row.number)).map(|row| row.pack).collect())
    }

    /// The stored bytes of chunks that lie in one range of a pack; `None` for each that is changed
    /// or missing, also when it is read again.
    async fn read_chunks(
        &self,
        key: &BlobKey,
        bytes: std::ops::Range<u64>,
        chunks: &[ChunkRow],
    ) -> Result<Vec<Option<Bytes>>, dormer_blobs::Error> {
        let bytes = &bytes;
        let attempt = |_| async move {
            match self.blobs.get_range(key, bytes.clone()).await {
                Ok(read) => Ok(chunks.iter().map(|row| sound(&read, bytes.start, row)).collect::<Vec<_>>()),
                Err(dormer_blobs::Error::NotFound { .. } | dormer_blobs::Error::Truncated { .. }) => {
                    Ok(vec![None; chunks.len()])
                }
                Err(error) => Err(error),
            }
        };
        tried(TRIES, attempt, |outcome| match outcome {
            Ok(found) => found.iter().all(Option::is_some),
            Err(error) => !error.is_worth_a_retry(),
        })
        .await
    }
}

/// A copy of a chunk's stored bytes, so that the rest of the read does not stay in memory. `None`
/// if they are not those of its checksum.
fn sound(read: &Bytes, start: u64, row: &ChunkRow) -> Option<Bytes> {
    let offset = usize::try_from(row.offset - start).ok()?;
    let stored = read.get(offset..offset + row.layout.stored_len() as usize)?;
    (checksum(stored) == row.checksum).then(|| Bytes::copy_from_slice(stored))
}
