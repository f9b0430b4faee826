//! What checks of a whole installation look at.

use crate::contract::{ChunkRow, Nar};

/// All chunks and all NARs.
#[derive(Debug, Clone, PartialEq)]
pub struct Audit {
    /// Every chunk row, by number.
    pub chunks: Vec<ChunkRow>,
    /// Every NAR row, by number.
    pub nars: Vec<Nar>,
}
