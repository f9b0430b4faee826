//! Planning reads: which chunks are read together, one read at a time. Pure; nothing is waited for here.

use std::ops::Range;
use std::sync::Arc;

use dormer_format::{ChunkRun, EncodingTag, HoleFill, TagBuilder};
use dormer_index::ChunkRow;

use super::open::{Chunks, Plan};

/// Chunk rows loaded at once: 128 MiB of NAR at 128 KiB a chunk, about 200 KiB of memory.
pub(super) const ROWS_MAX: usize = 1_024;

/// Unused bytes between two chunks that are read over rather than read apart.
const GAP_BYTES_MAX: u64 = 64 * 1024;

/// Chunks whose rows are loaded together, and what has to be known of them without the rows.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) runs: Vec<ChunkRun>,
    /// Digest of the rows, as far as they decide the bytes that are served.
    digest: EncodingTag,
    served_bytes: u64,
    holes: usize,
}

impl Window {
    /// A window as its rows are now.
    pub(super) fn new(runs: Vec<ChunkRun>, rows: &[ChunkRow]) -> Self {
        Self {
            runs,
            digest: digest(rows),
            served_bytes: rows.iter().map(|row| row.layout.spliced_len()).sum(),
            holes: rows.iter().map(|row| row.layout.holes.len()).sum(),
        }
    }

    /// Whether these rows serve the same bytes.
    pub(super) fn is_of(&self, rows: &[ChunkRow]) -> bool {
        self.digest == digest(rows)
    }
}

fn digest(rows: &[ChunkRow]) -> EncodingTag {
    let mut tag = TagBuilder::new();
    for row in rows {
        tag.push_chunk(&row.id, row.checksum, &row.layout);
    }
    tag.finish()
}

/// Cuts runs into groups of at most [`ROWS_MAX`] chunks.
pub(crate) fn windows(runs: &[ChunkRun]) -> Vec<Vec<ChunkRun>> {
    let mut windows = Vec::new();
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
                windows.push(std::mem::take(&mut window));
                room = ROWS_MAX;
            }
        }
    }
    if !window.is_empty() {
        windows.push(window);
    }
    windows
}

pub(super) enum Next {
    Read(Read),
    /// The rows of this window of the plan have to be loaded and added.
    NeedsRows(usize),
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

impl Read {
    /// Memory that carrying it out takes, in bytes: what is read, in buffers that are powers of two, and copies of chunks
    /// with holes.
    pub(super) fn memory_bytes(&self) -> u64 {
        let rows = &self.rows[self.chunks.clone()];
        let stored = rows.last().map_or(0, end_of) - rows.first().map_or(0, |row| row.offset);
        let copied = rows.iter().filter(|row| !row.layout.holes.is_empty());
        stored.next_power_of_two() + copied.map(|row| row.layout.spliced_len()).sum::<u64>()
    }
}

/// Plans the reads of a stream, one at a time.
pub(super) struct ReadSource {
    /// The window that is loaded next.
    window: usize,
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
        let rows = match &plan.chunks {
            Chunks::Rows(rows) => Arc::clone(rows),
            Chunks::Windows(_) => Arc::from([]),
        };
        let mut source = Self {
            window: 0,
            waiting_for_rows: false,
            rows,
            row: 0,
            plan: Arc::clone(plan),
            fill_run: 0,
            fill_done: 0,
            skip: range.start,
            take: range.end - range.start,
        };
        source.skip_windows();
        source
    }

    /// Windows before the range are not loaded; only their fills count.
    fn skip_windows(&mut self) {
        let plan = Arc::clone(&self.plan);
        let Chunks::Windows(windows) = &plan.chunks else { return };
        for window in windows {
            if self.skip < window.served_bytes {
                return;
            }
            self.skip -= window.served_bytes;
            self.window += 1;
            self.take_fills(window.holes, None);
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
            let Chunks::Windows(windows) = &self.plan.chunks else { return Next::End };
            if self.window == windows.len() {
                return Next::End;
            }
            self.window += 1;
            self.waiting_for_rows = true;
            return Next::NeedsRows(self.window - 1);
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
