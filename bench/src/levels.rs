//! zstd levels and chunk sizes: CPU against bytes, in this process, with the code of the server.
//!
//! The generations run one after another, and only chunks that no earlier generation had are
//! compressed. Packs are really assembled, so the bytes are those on disk. CPU is that of this
//! thread only.

use std::collections::HashSet;

use dormer_format::{ChunkId, ChunkParams, Chunker, Encoder, PackBuilder, PackId, RawChunk, StoredChunk};
use serde::{Deserialize, Serialize};

use crate::corpus::Generation;
use crate::error::{Context, Result};
use crate::measure::{Samples, cpu_of};

/// Bytes for the chunker at once, like the pieces of a body.
const FEED_BYTES: usize = 64 * 1024;

/// The cost of one generation on top of the earlier ones.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct GenerationCost {
    pub(crate) name: String,
    pub(crate) nar_bytes: u64,
    pub(crate) chunks: u64,
    pub(crate) new_chunks: u64,
    pub(crate) new_raw_bytes: u64,
    /// CPU seconds to blank holes and cut.
    pub(crate) chunking: Samples,
    /// CPU seconds to hash all chunks.
    pub(crate) ids: Samples,
    /// CPU seconds to compress the new chunks.
    pub(crate) encoding: Samples,
    /// Bytes of the packs with the new chunks.
    pub(crate) pack_bytes: u64,
    pub(crate) packs: u64,
}

/// One row: a chunk size and a level.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) avg_kib: u32,
    pub(crate) level: i32,
    pub(crate) generations: Vec<GenerationCost>,
}

impl Row {
    /// Bytes in packs after the first `count` generations.
    pub(crate) fn pack_bytes(&self, count: usize) -> u64 {
        self.generations.iter().take(count).map(|generation| generation.pack_bytes).sum()
    }
}

/// The chunk sizes to compare: a quarter of the average, the average, four times the average.
pub(crate) fn params(avg_kib: u32) -> Result<ChunkParams> {
    let avg = avg_kib * 1024;
    ChunkParams::new(avg / 4, avg, avg * 4).context(|| format!("cut to {avg_kib} KiB"))
}

/// The new chunks of a generation, kept in memory (up to 1 GB) so that levels differ only in the
/// level.
struct Cut {
    cost: GenerationCost,
    new: Vec<(ChunkId, RawChunk)>,
}

fn cut(generation: &Generation, params: ChunkParams, seen: &mut HashSet<ChunkId>) -> Result<Cut> {
    let mut cost = GenerationCost {
        name: generation.name.clone(),
        nar_bytes: generation.bytes(),
        ..GenerationCost::default()
    };
    let (mut chunking, mut ids) = (0.0, 0.0);
    let mut new = Vec::new();
    let mut nar = Vec::new();
    for entry in &generation.entries {
        generation.read(entry, &mut nar)?;
        let mut chunks = Vec::new();
        chunking += cpu_of(|| {
            let mut chunker = Chunker::new(params, "/nix/store");
            nar.chunks(FEED_BYTES).for_each(|piece| chunker.push(piece, &mut chunks));
            chunker.finish(&mut chunks);
            Ok(())
        })?
        .0;
        let (seconds, named) = cpu_of(|| Ok(chunks.iter().map(RawChunk::id).collect::<Vec<_>>()))?;
        ids += seconds;
        cost.chunks += chunks.len() as u64;
        for (id, chunk) in named.into_iter().zip(chunks) {
            if seen.insert(id) {
                cost.new_raw_bytes += chunk.bytes.len() as u64;
                new.push((id, chunk));
            }
        }
    }
    cost.new_chunks = new.len() as u64;
    cost.chunking.push(chunking);
    cost.ids.push(ids);
    Ok(Cut { cost, new })
}

/// Compresses the new chunks at `level`. The time for assembling packs does not count as encoding.
fn encode(cut: &Cut, level: i32, pack_number: &mut u128) -> Result<GenerationCost> {
    let mut encoder = Encoder::new(level).context(|| format!("make an encoder of level {level}"))?;
    let (seconds, stored) = cpu_of(|| {
        cut.new
            .iter()
            .map(|(id, chunk)| encoder.encode_as(*id, chunk).context(|| format!("encode at level {level}")))
            .collect::<Result<Vec<StoredChunk>>>()
    })?;
    let mut cost = cut.cost.clone();
    cost.encoding.push(seconds);
    let mut next_pack = || {
        *pack_number += 1;
        PackBuilder::new(PackId::from_bytes(pack_number.to_le_bytes()))
    };
    let mut builder = next_pack();
    let mut seal = |builder: PackBuilder| {
        if !builder.is_empty() {
            cost.packs += 1;
            cost.pack_bytes += builder.finish().size;
        }
    };
    for chunk in stored {
        if !builder.has_room_for(&chunk) {
            seal(std::mem::replace(&mut builder, next_pack()));
        }
        builder.add(chunk);
    }
    seal(builder);
    Ok(cost)
}

/// Measures every level at every chunk size, `runs` times in turns. Calls `done` with each finished
/// row.
pub(crate) fn measure(
    generations: &[Generation],
    sizes: &[u32],
    levels: &[i32],
    runs: usize,
    mut done: impl FnMut(&Row),
) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for &avg_kib in sizes {
        let mut seen = HashSet::new();
        let params = params(avg_kib)?;
        let mut cuts = generations
            .iter()
            .map(|generation| cut(generation, params, &mut seen))
            .collect::<Result<Vec<_>>>()?;
        for _ in 1..runs {
            recut(generations, params, &mut cuts)?;
        }
        let first = rows.len();
        rows.extend(levels.iter().map(|&level| Row { avg_kib, level, generations: Vec::new() }));
        for run in 0..runs {
            for row in &mut rows[first..] {
                let mut pack_number = 0;
                let costs = cuts
                    .iter()
                    .map(|cut| encode(cut, row.level, &mut pack_number))
                    .collect::<Result<Vec<_>>>()?;
                if run == 0 {
                    row.generations = costs;
                } else {
                    for (known, cost) in row.generations.iter_mut().zip(costs) {
                        known.encoding.push(cost.encoding.median());
                    }
                }
                if run + 1 == runs {
                    done(row);
                }
            }
        }
    }
    Ok(rows)
}

/// Measures cutting and hashing once more.
fn recut(generations: &[Generation], params: ChunkParams, cuts: &mut [Cut]) -> Result<()> {
    let mut seen = HashSet::new();
    for (generation, known) in generations.iter().zip(cuts) {
        let again = cut(generation, params, &mut seen)?.cost;
        known.cost.chunking.push(again.chunking.median());
        known.cost.ids.push(again.ids.median());
    }
    Ok(())
}
