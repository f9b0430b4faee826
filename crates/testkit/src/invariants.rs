//! The invariants of docs/STORAGE.md, in the same order, as a check over a whole installation.

use std::collections::{HashMap, HashSet};
use std::fmt;

use dormer_blobs::{BlobKey, Blobs};
use dormer_format::{Decoder, HoleFill, checksum};
use dormer_index::{ChunkRow, Inventory};
use dormer_nix::{NarHash, NarHasher};

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Number of the invariant in docs/STORAGE.md.
    pub invariant: u8,
    /// What the check found.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invariant {}: {}", self.invariant, self.what)
    }
}

/// What a crash may leave behind: stored bytes without a reference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leaks {
    /// Objects in the store that the index does not know. The crash came between a pack's PUT and
    /// its rows.
    pub packs: usize,
    /// Chunks that no NAR uses. The crash came between a pack's rows and those of the NAR. The next
    /// push of the same bytes uses the chunks. Chunks of large listings count, too.
    pub chunks: usize,
    /// NARs that nothing names. Only removals for cause leave them; commits never do.
    pub nars: usize,
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packs, chunks, nars } = self;
        write!(f, "{packs} packs without a row, {chunks} chunks without a NAR, {nars} NARs without a name")
    }
}

/// Counts what nothing refers to. A pack that the store lacks is a violation of invariant 1.
pub async fn find_leaks(inventory: &Inventory, blobs: &dyn Blobs) -> Result<Leaks, Violation> {
    let violated = |what| Violation { invariant: 1, what };
    let stored = blobs.list().await.map_err(|error| violated(error.to_string()))?;
    let stored: HashSet<BlobKey> = stored.into_iter().collect();
    let known: HashSet<BlobKey> = inventory.packs.iter().copied().map(BlobKey::Pack).collect();
    if let Some(lost) = known.difference(&stored).next() {
        return Err(violated(format!("{lost} has a row and is not stored")));
    }
    let runs = inventory.nars.iter().flat_map(|nar| &nar.recipe.runs);
    let used: HashSet<u64> = runs.flat_map(|run| run.first..run.first + u64::from(run.count)).collect();
    Ok(Leaks {
        packs: stored.difference(&known).count(),
        chunks: inventory.chunks.iter().filter(|row| !used.contains(&row.number)).count(),
        nars: inventory.unnamed_nars.len(),
    })
}

/// Checks invariants 1 to 5 over everything that is stored.
///
/// `acknowledged` are the NARs with a successful commit: all of them must be committed and read
/// back. `deleted` are the objects that the process itself deleted. A chunk that a read found
/// damaged, through no fault of the writer, is missing for everybody until a push heals it. It is
/// not a violation.
pub async fn check_invariants(
    inventory: Inventory,
    blobs: &dyn Blobs,
    acknowledged: &[NarHash],
    deleted: &[BlobKey],
) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut broken = |invariant, what: String| violations.push(Violation { invariant, what });

    // 1. A chunk row exists only if its pack is durably stored. 4. A pack's object is deleted only
    //    after its row is gone.
    let damaged: HashSet<u64> = inventory.damaged_chunks.into_iter().collect();
    let mut chunks: HashMap<u64, (ChunkRow, Option<Vec<u8>>)> = HashMap::new();
    for row in inventory.chunks {
        let end = row.offset + u64::from(row.layout.stored_len());
        let key = BlobKey::Pack(row.pack_id);
        let stored = blobs.get_range(&key, row.offset..end).await;
        let sound = stored.as_ref().is_ok_and(|stored| checksum(stored) == row.checksum);
        if deleted.contains(&key) {
            broken(4, format!("chunk {} has a row, and its pack was deleted", row.number));
        } else if !sound && !damaged.contains(&row.number) {
            let what = stored.as_ref().map_or_else(ToString::to_string, |_| "other bytes".to_owned());
            broken(1, format!("chunk {} has a row and no sound bytes: {what}", row.number));
        }
        chunks.insert(row.number, (row, stored.ok().filter(|_| sound).map(|stored| stored.to_vec())));
    }

    // 2. A NAR row exists only if all its chunks do. 3. Nothing is visible before the whole NAR was
    //    verified.
    let mut sound = HashSet::new();
    let mut decoder = Decoder::new().expect("zstd sets up");
    'nars: for nar in inventory.nars.into_iter().filter(|nar| !nar.damaged) {
        let mut hasher = NarHasher::new();
        let mut fills = nar.recipe.hole_fills();
        for run in &nar.recipe.runs {
            for number in run.first..run.first + u64::from(run.count) {
                let Some((row, stored)) = chunks.get(&number) else {
                    broken(2, format!("NAR {} needs chunk {number}, which has no row", nar.hash));
                    continue 'nars;
                };
                let own: Vec<HoleFill> = fills.by_ref().take(row.layout.holes.len()).copied().collect();
                let Some(stored) = stored else { continue 'nars };
                match decoder.decode(stored, &row.layout, &own) {
                    Ok(raw) => hasher.update(&raw),
                    Err(error) => {
                        broken(3, format!("NAR {}: chunk {number} does not decode: {error}", nar.hash));
                        continue 'nars;
                    }
                }
            }
        }
        let (hash, size) = hasher.finish();
        if hash == nar.hash && size == nar.size {
            sound.insert(hash);
        } else {
            broken(3, format!("NAR {} reads back as {hash}", nar.hash));
        }
    }

    // 5. Acknowledged NARs are never lost.
    for hash in acknowledged {
        if !sound.contains(hash) {
            broken(5, format!("NAR {hash} was acknowledged and cannot be read back"));
        }
    }
    violations
}
