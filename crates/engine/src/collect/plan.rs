//! What a collection does with each pack: a pure function of rows, marks and times.

use std::collections::HashMap;
use std::ops::Range;

use dormer_index::{ChunkRow, PackNumber, PackRow, StampLimits, UnixSeconds};
use roaring::RoaringTreemap;
use serde::{Deserialize, Serialize};

use super::recompress::Recompression;

/// Most chunks of a pack. A chunk that never moved lies in the pack `number / PACK_CHUNKS`.
pub(crate) const PACK_CHUNKS: u64 = 65_536;

/// How far a stamp may lag behind the commit that it stands for: ten minutes that a fresh stamp is
/// left as it is, the longest commit with its repetitions, and the difference between the clocks of
/// two replicas. The rest of the hour is reserve.
const STAMP_LAG_SECONDS: i64 = 3_600;

/// What is young is live: an upload may have looked up a chunk just before the chunk moved into a
/// new pack, and commits without a stamp there.
const YOUNG_SECONDS: i64 = 86_400;

/// What a condemned pack waits for beyond the longest upload: a reader that has its place still
/// reads on.
const CONDEMNED_SECONDS: i64 = 3_600;

/// The times by which a collection judges packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackLimits {
    pub(crate) stamps: StampLimits,
    /// A pack that was condemned before may go.
    pub(crate) condemned_before: UnixSeconds,
    /// Packs that were there by then stay: a journal that is kept may need them.
    pub(crate) kept_before: Option<UnixSeconds>,
}

impl PackLimits {
    /// For marks that were begun at `marked_at`.
    pub(crate) fn new(marked_at: UnixSeconds, upload_seconds_max: i64) -> Self {
        Self {
            stamps: StampLimits {
                created_before: marked_at - upload_seconds_max - YOUNG_SECONDS,
                used_before: marked_at - STAMP_LAG_SECONDS,
            },
            condemned_before: marked_at - upload_seconds_max - CONDEMNED_SECONDS,
            kept_before: None,
        }
    }

    /// Whether a pack stays for a journal that is kept.
    pub(crate) fn keeps(&self, pack: &PackRow) -> bool {
        self.kept_before.is_some_and(|before| pack.created_at <= before)
    }
}

/// How long an object of the store without a row stays, from the first listing that finds it.
pub(crate) fn stray_seconds(upload_seconds_max: i64) -> i64 {
    upload_seconds_max + YOUNG_SECONDS
}

/// What becomes of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PackVerdict {
    Keep,
    /// No NAR needs it: uploads may not use it any more.
    Condemn,
    /// Condemned, and its grace is not over.
    Wait,
    /// Condemned although a NAR needs it. No order of calls leads here; a wrong clock may.
    Spare,
    Remove,
}

impl PackVerdict {
    pub(crate) fn new(pack: &PackRow, is_live: bool, limits: &PackLimits) -> Self {
        match pack.condemned_at {
            None if is_live => Self::Keep,
            None => {
                let is_old = pack.created_at < limits.stamps.created_before;
                let is_unused = pack.used_at < limits.stamps.used_before;
                if is_old && is_unused { Self::Condemn } else { Self::Keep }
            }
            Some(_) if is_live => Self::Spare,
            Some(at) if at < limits.condemned_before && !limits.keeps(pack) => Self::Remove,
            Some(_) => Self::Wait,
        }
    }
}

/// The chunks that NARs need, by number.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    chunks: RoaringTreemap,
    /// By pack: how many more marked chunks it holds than their numbers tell, or fewer.
    moved: HashMap<u64, i64>,
}

impl Marks {
    pub(crate) fn add(&mut self, runs: &[dormer_format::ChunkRun]) {
        for run in runs {
            self.chunks.insert_range(run.first..run.first + u64::from(run.count));
        }
    }

    /// Says that a chunk lies in another pack than its number tells.
    pub(crate) fn note_moved(&mut self, chunk: u64, pack: PackNumber) {
        if self.chunks.contains(chunk) {
            *self.moved.entry(chunk / PACK_CHUNKS).or_default() -= 1;
            *self.moved.entry(pack.0.unsigned_abs()).or_default() += 1;
        }
    }

    /// Counts the marked chunks of each pack. All moved chunks were noted before.
    pub(crate) fn into_live(self) -> Live {
        let Self { chunks, moved: mut packs } = self;
        let (mut pack, mut count) = (0, 0);
        for chunk in &chunks {
            let home = chunk / PACK_CHUNKS;
            if home != pack {
                *packs.entry(pack).or_default() += count;
                (pack, count) = (home, 0);
            }
            count += 1;
        }
        *packs.entry(pack).or_default() += count;
        packs.retain(|_, count| *count > 0);
        Live { chunks, packs }
    }
}

/// What NARs need: the chunks, and how many of them each pack holds.
#[derive(Debug)]
pub(crate) struct Live {
    chunks: RoaringTreemap,
    packs: HashMap<u64, i64>,
}

impl Live {
    /// Whether a NAR needs the chunk.
    pub(crate) fn has_chunk(&self, number: u64) -> bool {
        self.chunks.contains(number)
    }

    /// Chunks of a pack that NARs need.
    pub(crate) fn in_pack(&self, pack: PackNumber) -> u64 {
        self.packs.get(&pack.0.unsigned_abs()).map_or(0, |count| count.unsigned_abs())
    }
}

/// Shares of a pack are counted in so many parts.
const SHARES: usize = 64;

/// A pack is compacted when more than this share of its chunks is dead, whatever the others are.
const HALF: usize = SHARES / 2;

/// A pack with a smaller dead share is never compacted for it. So a compaction writes at most seven
/// bytes for each byte that it frees, and less than an eighth of what is stored stays dead.
const LEAST_SHARE: usize = SHARES / 8;

/// The dead bytes of packs, by the share of the pack that they are. Bytes are estimated by the
/// count of chunks.
#[derive(Debug)]
pub(crate) struct DeadBytes {
    live: u64,
    by_share: [u64; SHARES],
}

impl Default for DeadBytes {
    fn default() -> Self {
        Self { live: 0, by_share: [0; SHARES] }
    }
}

impl DeadBytes {
    /// Counts a pack that may be compacted.
    pub(crate) fn add(&mut self, pack: &PackRow, live: u64, chunks: u64) {
        let dead = chunks.saturating_sub(live);
        self.live += pack.size * (chunks - dead) / chunks.max(1);
        if dead > 0 {
            // Packs of this place are above the threshold of the same number.
            let place = (dead * SHARES as u64).div_ceil(chunks.max(1)) - 1;
            let place = usize::try_from(place).unwrap_or(SHARES).min(SHARES - 1);
            self.by_share[place] += pack.size * dead / chunks.max(1);
        }
    }

    /// The dead share above which packs are compacted: half, or less if more than a seventh of the
    /// live bytes would stay dead beside them. The deadest packs go first: they cost least.
    pub(crate) fn threshold(&self) -> DeadShare {
        let mut threshold = HALF;
        let mut left: u64 = self.by_share[..HALF].iter().sum();
        while threshold > LEAST_SHARE && left * 7 > self.live {
            threshold -= 1;
            left -= self.by_share[threshold];
        }
        DeadShare(threshold as u64)
    }
}

/// A share of a pack's chunks that are dead. Packs above it are compacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeadShare(u64);

impl DeadShare {
    fn is_exceeded(self, live: u64, chunks: u64) -> bool {
        chunks.saturating_sub(live) * SHARES as u64 > self.0 * chunks
    }
}

/// Whether a pack may be rewritten when so many of its chunks are live. What is young may hold
/// chunks of uploads that no NAR needs yet.
pub(crate) fn may_be_rewritten(pack: &PackRow, live: u64, limits: &PackLimits) -> bool {
    let is_old = pack.created_at < limits.stamps.created_before;
    live > 0 && pack.condemned_at.is_none() && is_old && !limits.keeps(pack)
}

/// By which a collection chooses the packs that it rewrites.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RewriteRules {
    pub(crate) limits: PackLimits,
    pub(crate) dead_share: DeadShare,
    pub(crate) recompression: Option<Recompression>,
}

/// Why a pack is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rewrite {
    /// Too many of its chunks are dead.
    Dead,
    /// It is small, and of this size class; it joins others of the class.
    Small(usize),
    /// It is cold, and its chunks can be compressed at this level.
    Cold(u8),
}

/// Bytes below which a pack belongs to each size class of small packs. A merge makes packs of the
/// next class or larger ones, so a byte is merged three times at most.
const SMALL_BYTES: [u64; 3] = [32 << 10, 256 << 10, 2 << 20];

/// The least packs that a merge makes one of.
pub(crate) const MERGE_PACKS_MIN: usize = 8;

impl Rewrite {
    /// Whether a pack that stays is rewritten, when so many of its `chunks` are live.
    pub(crate) fn new(pack: &PackRow, live: u64, chunks: u64, rules: &RewriteRules) -> Option<Self> {
        if !may_be_rewritten(pack, live, &rules.limits) {
            return None;
        }
        if rules.dead_share.is_exceeded(live, chunks) {
            return Some(Self::Dead);
        }
        // Before small packs are merged: cold ones are merged while they are recompressed.
        if let Some(Recompression { level, cold_before }) = rules.recompression
            && pack.created_at < cold_before
            && pack.used_at < cold_before
            && pack.recompressed_level < level
        {
            return Some(Self::Cold(level));
        }
        SMALL_BYTES.iter().position(|bytes| pack.size < *bytes).map(Self::Small)
    }
}

/// Packs that are rewritten together.
#[derive(Debug, Default)]
pub(crate) struct RewriteGroup {
    pub(crate) packs: Vec<PackRow>,
    /// The level that their chunks are compressed at; `None`: they stay as they are.
    pub(crate) level: Option<u8>,
    /// About the bytes that stay.
    bytes: u64,
}

/// Most packs that are rewritten together: as many are read, each with one request or more.
const GROUP_PACKS_MAX: usize = 256;

/// The packs to rewrite, gathered until a new pack is full: those of each size class, and those
/// with many dead chunks.
#[derive(Debug, Default)]
pub(crate) struct RewriteGroups {
    dead: RewriteGroup,
    small: [RewriteGroup; SMALL_BYTES.len()],
    cold: RewriteGroup,
}

impl RewriteGroups {
    /// Adds a pack; returns a group that is full with it.
    pub(crate) fn add(
        &mut self,
        why: Rewrite,
        pack: PackRow,
        live: u64,
        chunks: u64,
    ) -> Option<RewriteGroup> {
        let group = match why {
            Rewrite::Dead => &mut self.dead,
            Rewrite::Small(class) => &mut self.small[class],
            Rewrite::Cold(level) => {
                self.cold.level = Some(level);
                &mut self.cold
            }
        };
        group.bytes += pack.size * live / chunks.max(1);
        group.packs.push(pack);
        let is_full = group.bytes >= REWRITE_BYTES_MAX || group.packs.len() >= GROUP_PACKS_MAX;
        is_full.then(|| std::mem::take(group))
    }

    /// The groups that are worth a new pack although it is not full.
    pub(crate) fn rest(self) -> Vec<RewriteGroup> {
        let merges = self.small.into_iter().filter(|group| group.packs.len() >= MERGE_PACKS_MIN);
        let others = [self.dead, self.cold].into_iter().filter(|group| !group.packs.is_empty());
        others.chain(merges).collect()
    }
}

/// Stored bytes of a pack that a compaction writes: it is in memory until it is stored.
pub(crate) const REWRITE_BYTES_MAX: u64 = 16 << 20;

/// Chunks of a pack that a compaction writes. They move in one transaction.
pub(crate) const REWRITE_CHUNKS_MAX: usize = 4_096;

/// Bytes of one read of a compaction.
const READ_BYTES_MAX: u64 = 4 << 20;

/// Most bytes that nobody needs between two chunks of one read. A request costs about as much as
/// reading them.
const READ_GAP_BYTES: u64 = 128 << 10;

/// The reads that bring these chunks of one pack: the bytes, and which of the chunks lie in them.
/// The chunks are in the order of their offsets.
pub(crate) fn plan_reads(chunks: &[ChunkRow]) -> Vec<(Range<u64>, Range<usize>)> {
    let mut reads: Vec<(Range<u64>, Range<usize>)> = Vec::new();
    for (place, chunk) in chunks.iter().enumerate() {
        let end = chunk.offset + u64::from(chunk.layout.stored_len());
        match reads.last_mut() {
            Some((bytes, places))
                if chunk.offset <= bytes.end + READ_GAP_BYTES && end - bytes.start <= READ_BYTES_MAX =>
            {
                (bytes.end, places.end) = (bytes.end.max(end), place + 1);
            }
            _ => reads.push((chunk.offset..end, place..place + 1)),
        }
    }
    reads
}

/// What compacting packs costs, and what it frees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CompactionTotals {
    /// Packs that are rewritten.
    pub packs: u64,
    /// Their bytes in the store. They are freed after their grace.
    pub bytes: u64,
    /// Packs that are written.
    pub packs_written: u64,
    /// Chunks that move to them.
    pub chunks: u64,
    /// Bytes that are read.
    pub bytes_read: u64,
    /// Bytes that are written.
    pub bytes_written: u64,
    /// Reads and writes, each a request over a network.
    pub requests: u64,
}

impl CompactionTotals {
    pub(crate) fn add(&mut self, other: &Self) {
        self.packs += other.packs;
        self.bytes += other.bytes;
        self.packs_written += other.packs_written;
        self.chunks += other.chunks;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.requests += other.requests;
    }
}

/// Packs, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackTotals {
    /// Packs.
    pub packs: u64,
    /// Their bytes in the store.
    pub bytes: u64,
    /// Their chunk rows.
    pub chunks: u64,
}

#[cfg(test)]
mod tests {
    use dormer_format::{ChunkRun, PackId};

    use super::PackVerdict::{Condemn, Keep, Remove, Spare, Wait};
    use super::*;

    const HOUR: i64 = 3_600;
    const DAY: i64 = 24 * HOUR;
    const NOW: i64 = 1_800_000_000;

    fn pack(age: i64, unused_for: i64, condemned_for: Option<i64>) -> PackRow {
        PackRow {
            number: PackNumber(7),
            id: PackId::from_bytes([7; 16]),
            size: 1,
            created_at: NOW - age,
            used_at: NOW - unused_for,
            condemned_at: condemned_for.map(|seconds| NOW - seconds),
            chunks: Some(100),
            recompressed_level: 0,
        }
    }

    #[test]
    fn a_pack_is_judged_by_its_chunks_its_age_and_its_stamps() {
        let limits = PackLimits::new(NOW, DAY);
        let verdict = |pack: &PackRow, is_live| PackVerdict::new(pack, is_live, &limits);
        for (pack, is_live, expected) in [
            (pack(90 * DAY, 90 * DAY, None), true, Keep),
            (pack(90 * DAY, 90 * DAY, None), false, Condemn),
            (pack(2 * DAY, 2 * DAY, None), false, Keep),
            (pack(2 * DAY + 1, 2 * DAY, None), false, Condemn),
            (pack(90 * DAY, HOUR, None), false, Keep),
            (pack(90 * DAY, HOUR + 1, None), false, Condemn),
            (pack(90 * DAY, 90 * DAY, Some(DAY + HOUR)), false, Wait),
            (pack(90 * DAY, 90 * DAY, Some(DAY + HOUR + 1)), false, Remove),
            (pack(90 * DAY, 90 * DAY, Some(30 * DAY)), true, Spare),
        ] {
            assert_eq!(verdict(&pack, is_live), expected, "{pack:?}, live: {is_live}");
        }
    }

    #[test]
    fn a_moved_chunk_keeps_the_pack_that_holds_it() {
        let mut marks = Marks::default();
        marks.add(&[ChunkRun { first: 3 * PACK_CHUNKS, count: 2 }]);
        marks.add(&[ChunkRun { first: 5 * PACK_CHUNKS + 65_535, count: 1 }]);
        marks.note_moved(5 * PACK_CHUNKS + 65_535, PackNumber(9));
        marks.note_moved(3 * PACK_CHUNKS, PackNumber(8));
        marks.note_moved(4 * PACK_CHUNKS, PackNumber(10));
        let live = marks.into_live();
        let packs = [3, 4, 5, 8, 9, 10].map(|pack| live.in_pack(PackNumber(pack)));
        assert_eq!(packs, [1, 0, 0, 1, 1, 0], "no NAR needs what moved to 10");
        assert!(live.has_chunk(3 * PACK_CHUNKS) && !live.has_chunk(4 * PACK_CHUNKS));
    }

    fn rules(recompression: Option<Recompression>) -> RewriteRules {
        let dead_share = DeadBytes::default().threshold();
        RewriteRules { limits: PackLimits::new(NOW, DAY), dead_share, recompression }
    }

    #[test]
    fn the_deadest_packs_are_compacted_until_little_is_dead() {
        // Packs of a MiB with a hundred chunks each, so many of which are dead.
        let exceeded = |dead: &[u64], of: u64| {
            let mut bytes = DeadBytes::default();
            for dead in dead {
                bytes.add(&PackRow { size: 1 << 20, ..pack(90 * DAY, 0, None) }, 100 - dead, 100);
            }
            bytes.threshold().is_exceeded(100 - of, 100)
        };
        // Little is dead: only what is half dead goes.
        for (dead, expected) in [(50, false), (51, true), (100, true)] {
            assert_eq!(exceeded(&[0, 0, 0, 0, 10], dead), expected, "{dead} %");
        }
        // What is left is below a seventh of the live bytes when the deadest has gone.
        assert!(exceeded(&[0, 0, 0, 30, 40], 40) && !exceeded(&[0, 0, 0, 30, 40], 30));
        assert!(exceeded(&[40, 40, 40, 40], 40) && exceeded(&[14; 9], 14));
        // A pack with less than an eighth is never worth it.
        assert!(!exceeded(&[40, 40, 40, 40], 12) && !exceeded(&[12; 9], 12));
        assert!(!DeadBytes::default().threshold().is_exceeded(0, 0), "no chunk is dead");
    }

    #[test]
    fn so_little_stays_dead_whatever_the_packs_are() {
        let mut random = 7_u64;
        for _ in 0..200 {
            let mut packs: Vec<u64> = Vec::new();
            let mut bytes = DeadBytes::default();
            for _ in 0..50 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let dead = (random >> 33) % ((random >> 60) * 6 + 1);
                let row = PackRow { size: 1 << 20, ..pack(90 * DAY, 0, None) };
                bytes.add(&row, 100 - dead, 100);
                packs.push(dead);
            }
            let threshold = bytes.threshold();
            let live: u64 = packs.iter().map(|dead| 100 - dead).sum();
            let dead: u64 = packs.iter().filter(|dead| !threshold.is_exceeded(100 - **dead, 100)).sum();
            assert!(dead * 100 <= live * 15, "{dead} dead beside {live} live");
        }
    }

    #[test]
    fn what_is_half_dead_or_small_is_rewritten_when_it_is_old() {
        let rules = rules(None);
        let why = |size, age, live| {
            let pack = PackRow { size, ..pack(age, 0, None) };
            Rewrite::new(&pack, live, 100, &rules)
        };
        for (size, age, live, expected) in [
            (20 << 20, 90 * DAY, 49, Some(Rewrite::Dead)),
            (20 << 20, 90 * DAY, 50, None),
            (20 << 20, 90 * DAY, 0, None),
            (20 << 20, 2 * DAY, 1, None),
            (9, 2 * DAY, 100, None),
            (9, 90 * DAY, 49, Some(Rewrite::Dead)),
            (9, 90 * DAY, 100, Some(Rewrite::Small(0))),
            (32 << 10, 90 * DAY, 100, Some(Rewrite::Small(1))),
            ((2 << 20) - 1, 90 * DAY, 100, Some(Rewrite::Small(2))),
            (2 << 20, 90 * DAY, 100, None),
        ] {
            assert_eq!(why(size, age, live), expected, "{size} bytes, {age} s old, {live} live");
        }
        let condemned = pack(90 * DAY, 0, Some(1));
        assert_eq!(Rewrite::new(&condemned, 1, 100, &rules), None);
    }

    #[test]
    fn what_is_cold_is_recompressed_once_at_each_level() {
        let rules = rules(Some(Recompression { level: 9, cold_before: NOW - 30 * DAY }));
        let why = |age, unused_for, recompressed_level, live| {
            let pack = PackRow { size: 20 << 20, recompressed_level, ..pack(age, unused_for, None) };
            Rewrite::new(&pack, live, 100, &rules)
        };
        for (age, unused_for, level, live, expected) in [
            (31 * DAY, 31 * DAY, 0, 100, Some(Rewrite::Cold(9))),
            (31 * DAY, 31 * DAY, 8, 100, Some(Rewrite::Cold(9))),
            (31 * DAY, 31 * DAY, 9, 100, None),
            (31 * DAY, 31 * DAY, 19, 100, None),
            (31 * DAY, 29 * DAY, 0, 100, None),
            (30 * DAY, 30 * DAY, 0, 100, None),
            (31 * DAY, 31 * DAY, 0, 49, Some(Rewrite::Dead)),
        ] {
            assert_eq!(why(age, unused_for, level, live), expected, "{age} s old, level {level}");
        }
        let small = PackRow { size: 9, ..pack(31 * DAY, 31 * DAY, None) };
        assert_eq!(Rewrite::new(&small, 100, 100, &rules), Some(Rewrite::Cold(9)));
        let mut groups = RewriteGroups::default();
        let cold = pack(90 * DAY, 90 * DAY, None);
        assert!(groups.add(Rewrite::Cold(9), cold, 100, 100).is_none());
        let rest = groups.rest();
        assert_eq!((rest.len(), rest[0].level), (1, Some(9)), "one is enough");
    }

    #[test]
    fn groups_are_full_by_bytes_or_packs_and_small_ones_wait_for_eight() {
        let sized = |size| PackRow { size, ..pack(90 * DAY, 0, None) };
        let mut groups = RewriteGroups::default();
        assert!(groups.add(Rewrite::Dead, sized(30 << 20), 40, 100).is_none());
        let full = groups.add(Rewrite::Dead, sized(30 << 20), 40, 100).expect("12 MiB and 12 MiB");
        assert_eq!(full.packs.len(), 2);
        for _ in 0..MERGE_PACKS_MIN - 1 {
            assert!(groups.add(Rewrite::Small(0), sized(1_000), 100, 100).is_none());
        }
        groups.add(Rewrite::Dead, sized(1_000), 1, 100);
        for _ in 0..MERGE_PACKS_MIN {
            assert!(groups.add(Rewrite::Small(2), sized(1 << 20), 100, 100).is_none());
        }
        let rest: Vec<usize> = groups.rest().iter().map(|group| group.packs.len()).collect();
        assert_eq!(rest, [1, MERGE_PACKS_MIN]);
    }

    #[test]
    fn chunks_that_lie_near_each_other_are_read_at_once() {
        let chunk = |offset, len| ChunkRow {
            number: offset,
            id: dormer_format::ChunkId::from_bytes([0; 32]),
            pack: PackNumber(1),
            pack_id: PackId::from_bytes([1; 16]),
            offset,
            layout: dormer_format::ChunkLayout { raw_len: len, holes: Vec::new(), frames: vec![len] },
            checksum: 0,
        };
        let near = [chunk(32, 100), chunk(1_000, 100), chunk(1_100 + READ_GAP_BYTES + 1, 50)];
        let far = 1_101 + READ_GAP_BYTES;
        assert_eq!(plan_reads(&near), [(32..1_100, 0..2), (far..far + 50, 2..3)]);
        let large = [chunk(32, 3 << 20), chunk(32 + (3 << 20), 2 << 20)];
        assert_eq!(plan_reads(&large).len(), 2, "at most 4 MiB at once");
        assert_eq!(plan_reads(&[]), []);
    }
}
