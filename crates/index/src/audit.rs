//! What checks of a whole installation look at.

use dormer_format::PackId;
use dormer_nix::NarHash;

use crate::contract::{ChunkRow, Nar};

/// NARs that are in no cache, neither as an object, nor in its grace, nor as an alias.
pub(crate) const UNNAMED_NARS: &str = "
    SELECT n.hash FROM nars AS n
    WHERE NOT EXISTS (SELECT 1 FROM objects AS o WHERE o.nar = n.id)
        AND NOT EXISTS (SELECT 1 FROM graces AS g WHERE g.nar = n.id)
        AND NOT EXISTS (SELECT 1 FROM aliases AS a WHERE a.nar = n.id)";

/// Every pack's id.
pub(crate) const PACKS: &str = "SELECT id FROM packs ORDER BY number";

/// All packs, chunks and NARs.
#[derive(Debug, Clone, PartialEq)]
pub struct Audit {
    /// Every pack row, by number.
    pub packs: Vec<PackId>,
    /// Every chunk row, by number.
    pub chunks: Vec<ChunkRow>,
    /// Numbers of the chunks that a read found damaged and no push has healed yet, in order.
    pub damaged_chunks: Vec<u64>,
    /// Every NAR row, by number.
    pub nars: Vec<Nar>,
    /// NARs that nothing names any more, or yet.
    pub unnamed_nars: Vec<NarHash>,
}
