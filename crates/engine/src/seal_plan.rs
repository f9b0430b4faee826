//! Decides when the open pack is sealed. Pure: the packer's state goes in, the decision comes out.
//!
//! A full pack is sealed as soon as it can be stored. A pack that is not full is sealed early when
//! every upload in flight waits for it, or some time after the first upload began to wait, so one
//! slow uploader delays nobody for long. This time is one `pack_wait` for each upload that may
//! still add chunks, up to [`WAIT_SHARES_MAX`] of them: one `pack_wait` with one slow uploader,
//! more with many uploads, because more of them share the pack.
//!
//! Uploads that an early pack acknowledged return with their next NARs within milliseconds, but not
//! at the same moment. The next early pack therefore waits a little until as many uploads have
//! added chunks.
//!
//! Early packs are stored one at a time: while one is being stored, the next one collects more.

use std::time::Duration;

use dormer_format::{PACK_BYTES_MAX, PACK_CHUNKS_MAX};

/// Packs that are stored at once. Two keep the store busy while the next one fills.
pub(crate) const STORING_MAX: usize = 2;

/// A pack is full at this size. Larger packs, up to the format's limit, would save few requests and
/// cost memory three times.
pub(crate) const PACK_BYTES: u64 = 24 * 1024 * 1024;
const _: () = assert!(PACK_BYTES <= PACK_BYTES_MAX);

/// Space that the table and the trailer may take in a pack, so that frames stop short of its limit.
/// The entry of a chunk takes less than 64 bytes, except for chunks with many holes, and a full
/// pack has about 300 chunks of 100 KiB.
const TABLE_BYTES: u64 = 1024 * 1024;

/// How many uploads lengthen the wait for an early pack: 8 × 50 ms by default.
const WAIT_SHARES_MAX: u32 = 8;

/// The part of a `pack_wait` that an early pack waits for uploads to return: 10 ms by default. A
/// client that pushes one path at a time never waits for it.
const RETURN_SHARE: u32 = 5;

/// What never changes while the packer runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SealLimits {
    pub(crate) pack_wait: Duration,
    /// Stored bytes of the largest chunk: the room that an open pack needs.
    pub(crate) chunk_bytes_max: u64,
}

/// The packer's state, as far as it decides when to seal.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PackerState {
    /// Stored bytes and chunks in the open pack.
    pub(crate) bytes: u64,
    pub(crate) chunks: usize,
    /// Uploads that have chunks in the open pack.
    pub(crate) uploads: usize,
    /// How long the first upload has waited for the open pack. `None` if none waits.
    pub(crate) waited: Option<Duration>,
    /// Uploads that may still add chunks.
    pub(crate) streaming: usize,
    /// Uploads that were in flight when the last early pack was sealed, and are likely to return.
    pub(crate) returning: usize,
    /// Packs that are being stored, and those of them that were sealed early.
    pub(crate) storing: usize,
    pub(crate) storing_early: usize,
}

/// What the packer does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SealPlan {
    /// Seals the full pack.
    SealFull,
    /// Seals the pack although it is not full.
    SealEarly,
    /// Takes no more chunks until a pack is stored.
    AwaitStore,
    /// Takes more chunks. If nothing happens within this time, the decision is due again.
    Collect(Option<Duration>),
}

impl SealPlan {
    pub(crate) fn new(state: &PackerState, limits: &SealLimits) -> Self {
        let can_store = state.storing < STORING_MAX;
        let is_full = state.bytes + TABLE_BYTES + limits.chunk_bytes_max > PACK_BYTES
            || state.chunks >= PACK_CHUNKS_MAX;
        match (is_full, can_store) {
            (true, true) => return Self::SealFull,
            (true, false) => return Self::AwaitStore,
            (false, _) => {}
        }
        let Some(waited) = state.waited.filter(|_| can_store && state.storing_early == 0) else {
            return Self::Collect(None);
        };
        let shares = u32::try_from(state.streaming).unwrap_or(u32::MAX).min(WAIT_SHARES_MAX);
        let patience = if shares == 0 && state.uploads < state.returning {
            limits.pack_wait / RETURN_SHARE
        } else {
            limits.pack_wait * shares
        };
        match patience.checked_sub(waited) {
            None | Some(Duration::ZERO) => Self::SealEarly,
            Some(rest) => Self::Collect(Some(rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_decision_for_each_kind_of_state() {
        use SealPlan::{AwaitStore, Collect, SealEarly, SealFull};
        let limits = SealLimits { pack_wait: 50 * MS, chunk_bytes_max: 576 * 1024 };
        let full = PACK_BYTES - TABLE_BYTES - limits.chunk_bytes_max + 1;
        let idle = PackerState::default();
        let waiting =
            |waited: u32| PackerState { bytes: 1, chunks: 1, uploads: 1, waited: Some(waited * MS), ..idle };
        let table = [
            ("nothing to do", idle, Collect(None)),
            (
                "a chunk, and nobody waits",
                PackerState { bytes: 1, chunks: 1, uploads: 1, ..idle },
                Collect(None),
            ),
            ("the last byte fits", PackerState { bytes: full - 1, chunks: 9, ..idle }, Collect(None)),
            ("full by bytes", PackerState { bytes: full, chunks: 9, ..idle }, SealFull),
            ("full by chunks", PackerState { bytes: 9, chunks: PACK_CHUNKS_MAX, ..idle }, SealFull),
            (
                "full beside one pack",
                PackerState { bytes: full, storing: 1, storing_early: 1, ..idle },
                SealFull,
            ),
            ("full beside two packs", PackerState { bytes: full, storing: 2, ..idle }, AwaitStore),
            ("every upload waits", waiting(0), SealEarly),
            ("one upload streams", PackerState { streaming: 1, ..waiting(20) }, Collect(Some(30 * MS))),
            ("one upload streams for too long", PackerState { streaming: 1, ..waiting(50) }, SealEarly),
            ("three uploads stream", PackerState { streaming: 3, ..waiting(50) }, Collect(Some(100 * MS))),
            (
                "a hundred uploads stream",
                PackerState { streaming: 100, ..waiting(0) },
                Collect(Some(400 * MS)),
            ),
            ("a hundred stream for too long", PackerState { streaming: 100, ..waiting(401) }, SealEarly),
            ("others are expected back", PackerState { returning: 3, ..waiting(4) }, Collect(Some(6 * MS))),
            ("others did not come back", PackerState { returning: 3, ..waiting(10) }, SealEarly),
            ("all came back", PackerState { uploads: 3, returning: 3, ..waiting(0) }, SealEarly),
            ("beside a full pack", PackerState { storing: 1, ..waiting(0) }, SealEarly),
            (
                "beside an early pack",
                PackerState { storing: 1, storing_early: 1, ..waiting(99) },
                Collect(None),
            ),
            ("beside two packs", PackerState { storing: 2, ..waiting(99) }, Collect(None)),
        ];
        for (case, state, expected) in table {
            assert_eq!(SealPlan::new(&state, &limits), expected, "{case}");
        }
    }
}
