//! Where a scrub is and what it found: the cursor of its job.

use dormer_index::UnixSeconds;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Findings that a report names; the log has all of them.
const NAMED_MAX: usize = 100;

/// What a scrub looks at.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScrubOptions {
    /// The share of packs and NARs, in millionths.
    pub share_ppm: u32,
    /// Most stored bytes read in a second; `None` for no limit but the pauses.
    pub bytes_per_second: Option<u64>,
}

/// Everything.
pub const FULL_PPM: u32 = 1_000_000;

/// What a scrub found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Packs that were read.
    pub packs: u64,
    /// Packs that are missing or truncated in the store.
    pub packs_lost: u64,
    /// Packs whose header, table or trailer is wrong.
    pub packs_damaged: u64,
    /// Chunks that were checked in packs.
    pub chunks: u64,
    /// Chunks that are damaged, known or new.
    pub chunks_damaged: u64,
    /// NARs that were rebuilt.
    pub nars: u64,
    /// NARs that did not come back as they were pushed.
    pub nars_damaged: u64,
    /// Stored bytes that were read.
    pub bytes_read: u64,
    /// The first findings, for people.
    pub findings: Vec<String>,
}

impl ScrubReport {
    /// Whether anything is damaged.
    pub fn found_damage(&self) -> bool {
        self.packs_lost + self.packs_damaged + self.chunks_damaged + self.nars_damaged > 0
    }

    pub(super) fn note(&mut self, finding: String) {
        tracing::error!(finding, "a scrub found damage");
        if self.findings.len() < NAMED_MAX {
            self.findings.push(finding);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    Packs,
    Nars,
}

/// Where a run is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScrubState {
    pub(super) options: ScrubOptions,
    /// Chooses the sample.
    seed: u64,
    pub(super) phase: Phase,
    /// The last pack or NAR.
    pub(super) after: i64,
    /// What the run found so far.
    pub report: ScrubReport,
}

impl ScrubState {
    pub(super) fn new(options: ScrubOptions, seed: u64) -> Self {
        Self { options, seed, phase: Phase::Packs, after: 0, report: ScrubReport::default() }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and texts are JSON")
    }

    /// Reads a job's cursor.
    pub fn decode(cursor: &[u8]) -> Result<Self> {
        serde_json::from_slice(cursor).map_err(|error| {
            Error::Index(dormer_index::Error::Corrupt { table: "jobs", what: error.to_string() })
        })
    }

    pub(super) fn takes(&self, number: i64) -> bool {
        if self.options.share_ppm >= FULL_PPM {
            return true;
        }
        let key = [self.seed.to_le_bytes(), number.to_le_bytes()].concat();
        // Below a million in 64 bits: the remainder is even enough.
        dormer_format::checksum(&key) % u64::from(FULL_PPM) < u64::from(self.options.share_ppm)
    }
}

/// The last scrub that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedScrub {
    /// When it ended.
    pub ended_at: UnixSeconds,
    /// What it found.
    pub report: ScrubReport,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(share_ppm: u32, seed: u64) -> ScrubState {
        ScrubState::new(ScrubOptions { share_ppm, bytes_per_second: None }, seed)
    }

    #[test]
    fn a_sample_takes_about_its_share_and_each_seed_takes_others() {
        let taken = |state: &ScrubState| (0..10_000).filter(|n| state.takes(*n)).collect::<Vec<i64>>();
        let (one, other) = (taken(&state(50_000, 1)), taken(&state(50_000, 2)));
        assert!((400..600).contains(&one.len()), "{}", one.len());
        assert_ne!(one, other);
        assert_eq!(taken(&state(FULL_PPM, 1)).len(), 10_000);
        assert_eq!(one, taken(&ScrubState::decode(&state(50_000, 1).encode()).unwrap()));
    }

    #[test]
    fn a_cursor_that_is_cut_short_is_an_error() {
        let encoded = state(5, 6).encode();
        assert!(ScrubState::decode(&encoded[..encoded.len() - 1]).is_err());
    }
}
