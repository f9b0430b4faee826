//! Planning reads: which chunks are read together, one read at a time. Pure; nothing is waited for here.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use dormer_format::{ChunkRun, HoleFill};
use dormer_index::ChunkRow;

use super::open::Plan;

/// Chunk rows loaded at once: 2 GiB of NAR at 128 KiB a chunk, about 2 MiB of memory.
const ROWS_MAX: usize = 16_384;

/// Unused bytes between two chunks that are read over rather than read apart.
const GAP_BYTES_MAX: u64 = 64 * 1024;

/// Cuts runs into groups of at most [`ROWS_MAX`] chunks.
pub(super) fn windows(runs: &[ChunkRun]) -> VecDeque<Vec<ChunkRun>> {
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

pub(super) enum Next {
    Read(Read),
    NeedsRows(Vec<ChunkRun>),
    Loading,
    End,
}

/// Chunks that are read together.
pub(super) struct Read {
    pub(super) rows: Arc<[ChunkRow]>,
    /// Which of the rows.
    pub(super) chunks: Range<usize>,
    pub(super) fills: Vec<HoleFill>,
    /// Bytes to leave out at the front and at the end of what these chunks splice to.
    pub(super) skip: u64,
    pub(super) take: u64,
}

/// Plans the reads of a stream, one at a time.
pub(super) struct ReadSource {
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
    pub(super) fn new(plan: &Arc<Plan>, range: Range<u64>) -> Self {
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

    pub(super) fn add_rows(&mut self, rows: Arc<[ChunkRow]>) {
        self.waiting_for_rows = false;
        self.rows = rows;
        self.row = 0;
    }

    pub(super) fn next_read(&mut self, bytes_max: u64) -> Next {
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

pub(super) fn end_of(row: &ChunkRow) -> u64 {
    row.offset + u64::from(row.layout.stored_len())
}
