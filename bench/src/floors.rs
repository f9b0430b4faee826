//! Floors: the work on the same bytes that no server can avoid if it verifies, deduplicates and
//! compresses.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::corpus::Generation;
use crate::error::{Context, Result};
use crate::measure::{Samples, cpu_of};

/// The reference level for bytes: a plain cache of `.nar.zst` files would hold its whole-NAR
/// output.
pub(crate) const REFERENCE_LEVEL: i32 = 3;

/// CPU seconds of the unavoidable work for one generation.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Floors {
    pub(crate) nar_bytes: u64,
    pub(crate) sha256: Samples,
    pub(crate) blake3: Samples,
    /// By level: each NAR as one frame, with a reused context.
    pub(crate) zstd: BTreeMap<i32, Samples>,
    /// Compressed bytes, by level.
    pub(crate) zstd_bytes: BTreeMap<i32, u64>,
}

impl Floors {
    /// sha256 + blake3 + zstd at `level`, in CPU seconds (medians).
    pub(crate) fn total(&self, level: i32) -> f64 {
        let zstd = self.zstd.get(&level).map_or(f64::NAN, Samples::median);
        self.sha256.median() + self.blake3.median() + zstd
    }

    /// Measures each part once more.
    pub(crate) fn measure(&mut self, generation: &Generation, levels: &[i32]) -> Result<()> {
        self.nar_bytes = generation.bytes();
        let mut sha256 = 0.0;
        let mut blake3 = 0.0;
        let mut nar = Vec::new();
        let mut compressors = levels
            .iter()
            .map(|&level| {
                let compressor = zstd::bulk::Compressor::new(level)
                    .context(|| format!("make a zstd encoder of level {level}"))?;
                Ok((level, compressor, 0.0, 0_u64))
            })
            .collect::<Result<Vec<_>>>()?;
        let mut compressed = Vec::new();
        for entry in &generation.entries {
            generation.read(entry, &mut nar)?;
            sha256 += cpu_of(|| Ok(Sha256::digest(&nar)))?.0;
            blake3 += cpu_of(|| Ok(blake3::hash(&nar)))?.0;
            for (level, compressor, seconds, bytes) in &mut compressors {
                compressed.clear();
                compressed.reserve(zstd::zstd_safe::compress_bound(nar.len()));
                let (took, size) = cpu_of(|| {
                    compressor
                        .compress_to_buffer(&nar, &mut compressed)
                        .context(|| format!("compress {} at level {level}", entry.nar))
                })?;
                *seconds += took;
                *bytes += size as u64;
            }
        }
        self.sha256.push(sha256);
        self.blake3.push(blake3);
        for (level, _, seconds, bytes) in compressors {
            self.zstd.entry(level).or_default().push(seconds);
            self.zstd_bytes.insert(level, bytes);
        }
        Ok(())
    }
}
