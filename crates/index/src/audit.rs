//! What checks of a whole installation look at.

use crate::contract::{ChunkRow, Nar};

/// All chunks and all NARs.
#[derive(Debug, Clone, PartialEq)]
pub struct Audit {
    /// Every chunk row, by number.
    pub chunks: Vec<ChunkRow>,
    /// Numbers of the chunks that a read found damaged and no push has healed yet, in order.
    pub damaged_chunks: Vec<u64>,
    /// Every NAR row, by number.
    pub nars: Vec<Nar>,
}
