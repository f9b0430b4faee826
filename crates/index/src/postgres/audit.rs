//! Everything that claims bytes, for checks of a whole installation. Not part of the contract: it reads it all at once.

use sqlx::query;

use super::PostgresIndex;
use crate::audit::{PACKS, UNNAMED_NARS};
use crate::rows::{read_chunk, read_chunk_number, read_nar, read_nar_hash, read_pack_id};
use crate::{Audit, Result};

const CHUNKS: &str = "
    SELECT 0::bigint, c.number, c.id, c.pack, p.id, c.start, c.checksum, c.layout
    FROM chunks AS c JOIN packs AS p ON p.number = c.pack ORDER BY c.number";

const DAMAGED_CHUNKS: &str = "SELECT number FROM chunks WHERE damaged_at IS NOT NULL ORDER BY number";

const NARS: &str = "SELECT id, hash, size, file_size, tag, damaged_at, recipe FROM nars ORDER BY id";

impl PostgresIndex {
    /// Reads all packs, chunks and NARs. For checks and tests: it needs memory for all of them.
    pub async fn audit(&self) -> Result<Audit> {
        let mut read = self.read("read everything").await?;
        let chunks = read.all(query(CHUNKS)).await?.iter().map(read_chunk).collect::<Result<_>>()?;
        let damaged = read.all(query(DAMAGED_CHUNKS)).await?;
        let damaged_chunks = damaged.iter().map(read_chunk_number).collect::<Result<_>>()?;
        let nars = read.all(query(NARS)).await?.iter().map(read_nar).collect::<Result<_>>()?;
        let packs = read.all(query(PACKS)).await?.iter().map(read_pack_id).collect::<Result<_>>()?;
        let unnamed = read.all(query(UNNAMED_NARS)).await?;
        let unnamed_nars = unnamed.iter().map(read_nar_hash).collect::<Result<_>>()?;
        read.end().await?;
        Ok(Audit { packs, chunks, damaged_chunks, nars, unnamed_nars })
    }
}
