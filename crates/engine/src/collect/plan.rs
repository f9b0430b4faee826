//! What a collection does with each pack: a pure function of rows, marks and times.

use dormer_index::{PackNumber, PackRow, StampLimits, UnixSeconds};
use roaring::RoaringTreemap;
use serde::{Deserialize, Serialize};

/// Most chunks of a pack. A chunk that never moved lies in the pack `number / PACK_CHUNKS`.
const PACK_CHUNKS: u64 = 65_536;

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
        }
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
            Some(at) if at < limits.condemned_before => Self::Remove,
            Some(_) => Self::Wait,
        }
    }
}

/// The chunks that NARs need, by number.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    chunks: RoaringTreemap,
    packs: RoaringTreemap,
}

impl Marks {
    pub(crate) fn add(&mut self, runs: &[dormer_format::ChunkRun]) {
        for run in runs {
            self.chunks.insert_range(run.first..run.first + u64::from(run.count));
        }
    }

    /// Says that a chunk lies in another pack than its number tells.
    pub(crate) fn note_moved(&mut self, chunk: u64, pack: PackNumber) {
        if self.chunks.remove(chunk) {
            self.packs.insert(pack.0.unsigned_abs());
        }
    }

    /// The packs that hold a marked chunk. All moved chunks were noted before.
    pub(crate) fn into_packs(self) -> RoaringTreemap {
        let Self { chunks, mut packs } = self;
        packs.extend(chunks.iter().map(|chunk| chunk / PACK_CHUNKS));
        packs
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
        assert_eq!(marks.into_packs().iter().collect::<Vec<_>>(), [3, 8, 9], "no NAR needs what moved to 10");
    }
}
