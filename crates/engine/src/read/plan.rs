//! Plans reads: which chunks are read together, one read at a time. Pure: nothing here waits.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use dormer_format::{ChunkRun, EncodingTag, HoleFill, PackId, Recipe, TagBuilder};
use dormer_index::{ChunkRow, NarId, PackNumber};
use dormer_nix::NarHash;

/// Chunk rows loaded at once: 128 MiB of NAR at 128 KiB a chunk, about 200 KiB of memory.
pub(super) const ROWS_MAX: usize = 1_024;

/// About the memory of one chunk's row, in bytes.
const ROW_BYTES: usize = 192;

/// About the memory of one pack's id in a set, in bytes.
const PACK_BYTES: usize = 32;

/// How to read a NAR, remembered between reads.
#[derive(Debug)]
pub(crate) struct ReadPlan {
    pub(super) nar: NarId,
    pub(super) hash: NarHash,
    pub(super) size: u64,
    pub(super) file_size: u64,
    pub(super) tag: EncodingTag,
    pub(super) recipe: Recipe,
    pub(super) packs: BTreeSet<PackId>,
    pub(super) chunks: Chunks,
}

/// The chunks of a NAR.
#[derive(Debug)]
pub(super) enum Chunks {
    /// The rows, if they are few.
    Rows(Arc<[ChunkRow]>),
    /// How to load the rows, and how to see that they are still the same.
    Windows(Vec<Window>),
}

impl ReadPlan {
    /// About the bytes of this plan, for the bound on remembered plans.
    pub(crate) fn weight(&self) -> u32 {
        let recipe =
            self.recipe.runs.len() * 16 + self.recipe.hashes.len() * 32 + self.recipe.fills.len() * 8;
        let chunks = match &self.chunks {
            Chunks::Rows(rows) => rows.len() * ROW_BYTES,
            Chunks::Windows(windows) => windows.len() * 64 + self.recipe.runs.len() * 16,
        };
        u32::try_from(256 + recipe + chunks + self.packs.len() * PACK_BYTES).unwrap_or(u32::MAX)
    }

    /// Memory that a stream holds from beginning to end, in bytes: the plan, and the rows that it
    /// loads, a window that is being read and the next one.
    pub(super) fn stream_bytes(&self) -> u64 {
        let loaded = match &self.chunks {
            Chunks::Rows(_) => 0,
            Chunks::Windows(_) => 2 * ROWS_MAX * ROW_BYTES,
        };
        u64::from(self.weight()) + loaded as u64
    }
}

/// Limits of one read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Stored bytes.
    pub(super) bytes: u64,
    /// Stored bytes and copies of chunks with holes.
    pub(super) memory_bytes: u64,
    /// Most unused bytes between two chunks that one fetch covers.
    pub(super) gap_bytes: u64,
    /// Parts of packs.
    pub(super) fetches: usize,
}

/// A part of one pack that is fetched in one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fetch {
    pub(super) pack: PackNumber,
    pub(super) pack_id: PackId,
    pub(super) bytes: Range<u64>,
}

impl Fetch {
    /// The bytes of one chunk.
    pub(super) fn of(row: &ChunkRow) -> Self {
        Self { pack: row.pack, pack_id: row.pack_id, bytes: row.offset..end_of(row) }
    }

    /// How many bytes there are.
    pub(super) fn len(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    pub(super) fn holds(&self, row: &ChunkRow) -> bool {
        self.pack == row.pack && self.bytes.start <= row.offset && end_of(row) <= self.bytes.end
    }

    /// The range grown to hold a chunk, if the chunk is near enough.
    fn grown(&self, row: &ChunkRow, gap_bytes_max: u64) -> Option<Range<u64>> {
        let is_near = row.offset <= self.bytes.end.saturating_add(gap_bytes_max)
            && self.bytes.start <= end_of(row).saturating_add(gap_bytes_max);
        (self.pack == row.pack && is_near)
            .then(|| self.bytes.start.min(row.offset)..self.bytes.end.max(end_of(row)))
    }
}

/// A read while it is being put together.
#[derive(Default)]
struct Gathered {
    fetches: Vec<Fetch>,
    fetched_bytes: u64,
    copied_bytes: u64,
}

impl Gathered {
    /// Adds a chunk, if it fits; the first one always does.
    fn add(&mut self, row: &ChunkRow, limits: &Limits) -> bool {
        let near = self
            .fetches
            .iter()
            .enumerate()
            .find_map(|(number, fetch)| Some((number, fetch.grown(row, limits.gap_bytes)?)));
        let fetched_bytes = match &near {
            Some((number, grown)) => {
                self.fetched_bytes - self.fetches[*number].len() + (grown.end - grown.start)
            }
            None => self.fetched_bytes + Fetch::of(row).len(),
        };
        let copied_bytes = self.copied_bytes + copied_bytes(row);
        let fits = fetched_bytes <= limits.bytes
            && fetched_bytes + copied_bytes <= limits.memory_bytes
            && (near.is_some() || self.fetches.len() < limits.fetches);
        if !fits && !self.fetches.is_empty() {
            return false;
        }
        match near {
            Some((number, grown)) => self.fetches[number].bytes = grown,
            None => self.fetches.push(Fetch::of(row)),
        }
        (self.fetched_bytes, self.copied_bytes) = (fetched_bytes, copied_bytes);
        true
    }
}

/// What one read fetches of the first of these chunks, and how many of them that is: at least one.
pub(super) fn gather(rows: &[ChunkRow], limits: &Limits) -> (Vec<Fetch>, usize) {
    let mut gathered = Gathered::default();
    let count = rows.iter().take_while(|row| gathered.add(row, limits)).count();
    (gathered.fetches, count)
}

/// A chunk with holes is sent as a copy.
fn copied_bytes(row: &ChunkRow) -> u64 {
    if row.layout.holes.is_empty() { 0 } else { row.layout.spliced_len() }
}

/// Chunks whose rows are loaded together, and what the plan knows of them without the rows.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) runs: Vec<ChunkRun>,
    /// Digest of the parts of the rows that decide which bytes are served.
    digest: EncodingTag,
    served_bytes: u64,
    /// Bytes of the archive.
    pub(super) raw_bytes: u64,
    holes: usize,
}

impl Window {
    /// A window as its rows are now.
    pub(super) fn new(runs: Vec<ChunkRun>, rows: &[ChunkRow]) -> Self {
        Self {
            runs,
            digest: digest(rows),
            served_bytes: rows.iter().map(|row| row.layout.spliced_len()).sum(),
            raw_bytes: rows.iter().map(|row| u64::from(row.layout.raw_len)).sum(),
            holes: rows.iter().map(|row| row.layout.holes.len()).sum(),
        }
    }

    /// Bytes that are served of it.
    pub(super) fn served_bytes(&self) -> u64 {
        self.served_bytes
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

/// Chunks that are read together: neighbours in the NAR, in one part of a pack or in several.
pub(super) struct Read {
    pub(super) rows: Arc<[ChunkRow]>,
    /// Which of the rows.
    pub(super) chunks: Range<usize>,
    /// Each chunk lies in one of these.
    pub(super) fetches: Vec<Fetch>,
    /// Memory for copies of chunks with holes, beside the fetched bytes.
    pub(super) copied_bytes: u64,
    pub(super) fills: Vec<HoleFill>,
    /// Bytes to skip at the front of the spliced chunks, and bytes to send after them.
    pub(super) skip: u64,
    pub(super) take: u64,
}

/// Plans the reads of a stream, one at a time.
pub(super) struct ReadSource {
    /// The window that is loaded next.
    window: usize,
    waiting_for_rows: bool,
    rows: Arc<[ChunkRow]>,
    row: usize,
    plan: Arc<ReadPlan>,
    /// Position among the recipe's fills, as (run of fills, position in it).
    fill_run: usize,
    fill_done: u32,
    /// Served bytes before the range that are not skipped yet, and bytes of the range that are not
    /// read yet.
    skip: u64,
    take: u64,
}

impl ReadSource {
    pub(super) fn new(plan: &Arc<ReadPlan>, range: Range<u64>) -> Self {
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

    /// Skips windows before the range without loading them; only their fills count.
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

    pub(super) fn next_read(&mut self, limits: &Limits) -> Next {
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
        let mut gathered = Gathered::default();
        let mut spliced = 0;
        while spliced < self.skip + self.take
            && let Some(row) = self.rows.get(self.row)
            && gathered.add(row, limits)
        {
            spliced += row.layout.spliced_len();
            let holes = row.layout.holes.len();
            self.take_fills(holes, Some(&mut fills));
            self.row += 1;
        }
        let skip = std::mem::take(&mut self.skip);
        let take = (spliced - skip).min(self.take);
        self.take -= take;
        let Gathered { fetches, copied_bytes, .. } = gathered;
        let (rows, chunks) = (Arc::clone(&self.rows), first..self.row);
        Next::Read(Read { rows, chunks, fetches, copied_bytes, fills, skip, take })
    }

    fn take_fills(&mut self, count: usize, mut into: Option<&mut Vec<HoleFill>>) {
        for _ in 0..count {
            // A recipe has as many fills as its chunks have holes: opening recomputed the tag,
            // which covers both.
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

#[cfg(test)]
mod tests {
    use dormer_format::{ChunkId, ChunkLayout};
    use proptest::prelude::*;

    use super::*;

    fn row(pack: u8, offset: u64, len: u32, hole_count: u32) -> ChunkRow {
        let holes: Vec<u32> = (0..hole_count).map(|hole| hole * 40).collect();
        let frames = vec![len / (hole_count + 1); hole_count as usize + 1];
        ChunkRow {
            number: 1,
            id: ChunkId::from_bytes([0; 32]),
            pack: PackNumber(i64::from(pack)),
            pack_id: PackId::from_bytes([pack; 16]),
            offset,
            layout: ChunkLayout { raw_len: len, holes, frames },
            checksum: 0,
        }
    }

    const DISK: Limits = Limits { bytes: 1000, memory_bytes: 2000, gap_bytes: 50, fetches: 1 };
    const NETWORK: Limits = Limits { bytes: 1000, memory_bytes: 1000, gap_bytes: 100, fetches: 3 };

    /// What one read fetches of these rows, and how many of them it takes in.
    fn gather(rows: &[ChunkRow], limits: &Limits) -> (Vec<(i64, Range<u64>)>, usize) {
        let mut gathered = Gathered::default();
        let count = rows.iter().take_while(|row| gathered.add(row, limits)).count();
        (gathered.fetches.iter().map(|fetch| (fetch.pack.0, fetch.bytes.clone())).collect(), count)
    }

    #[test]
    fn neighbours_and_near_ones_are_fetched_together() {
        let rows = [row(1, 0, 100, 0), row(1, 100, 100, 0), row(1, 240, 100, 0), row(1, 400, 100, 0)];
        assert_eq!(gather(&rows, &DISK), (vec![(1, 0..340)], 3));
        assert_eq!(gather(&rows, &NETWORK), (vec![(1, 0..500)], 4));
    }

    #[test]
    fn packs_in_turns_are_one_request_each_over_a_network() {
        let rows = [row(1, 0, 100, 0), row(2, 500, 100, 0), row(1, 100, 100, 0), row(2, 450, 50, 0)];
        assert_eq!(gather(&rows, &DISK), (vec![(1, 0..100)], 1));
        assert_eq!(gather(&rows, &NETWORK), (vec![(1, 0..200), (2, 450..600)], 4));
        let far = [row(1, 0, 10, 0), row(1, 5000, 10, 0), row(2, 0, 10, 0), row(3, 0, 10, 0)];
        assert_eq!(gather(&far, &NETWORK).1, 3, "at most three requests");
    }

    #[test]
    fn the_first_chunk_is_always_taken_and_copies_count() {
        assert_eq!(gather(&[row(1, 0, 5000, 2), row(1, 5000, 1, 0)], &NETWORK).1, 1);
        let holey = vec![row(1, 0, 400, 1); 9];
        assert_eq!(gather(&holey, &DISK).1, 3, "the same bytes, and a copy each time");
        let plain = vec![row(1, 0, 400, 0); 9];
        assert_eq!(gather(&plain, &DISK).1, 9);
    }

    proptest! {
        #[test]
        fn every_chunk_lies_in_a_fetch_and_limits_hold(
            rows in prop::collection::vec((1..4_u8, 0..3000_u64, 1..400_u32, 0..3_u32), 1..40),
            network in any::<bool>(),
        ) {
            let limits = if network { NETWORK } else { DISK };
            let rows: Vec<ChunkRow> =
                rows.into_iter().map(|(pack, offset, len, holes)| row(pack, offset, len + 8, holes)).collect();
            let mut gathered = Gathered::default();
            let count = rows.iter().take_while(|row| gathered.add(row, &limits)).count();
            prop_assert!(count >= 1);
            for row in &rows[..count] {
                prop_assert!(gathered.fetches.iter().any(|fetch| fetch.holds(row)));
            }
            let fetched: u64 = gathered.fetches.iter().map(Fetch::len).sum();
            prop_assert_eq!(fetched, gathered.fetched_bytes);
            prop_assert!(gathered.fetches.len() <= limits.fetches);
            if count > 1 {
                prop_assert!(fetched <= limits.bytes);
                prop_assert!(fetched + gathered.copied_bytes <= limits.memory_bytes);
            }
        }
    }
}
