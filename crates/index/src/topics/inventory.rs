//! Everything that claims bytes, for checks of a whole installation by tests. Not part of the
//! contract: it reads all rows at once. It is there with the feature `inventory`.

use std::collections::BTreeMap;

use dormer_format::PackId;
use dormer_nix::NarHash;

use crate::Result;
use crate::columns::{nar_hash, unsigned};
use crate::contract::{ChunkRow, Nar};
use crate::rows::{Row, read_chunk, read_nar, read_pack_id};
use crate::sql::{Sql, both, damaged};
use crate::sql_index::SqlIndex;

const CHUNKS: Sql = both!(
    "SELECT CAST(0 AS BIGINT), c.number, c.id, c.pack, p.id, c.start, c.checksum, c.layout
     FROM chunks AS c JOIN packs AS p ON p.number = c.pack ORDER BY c.number"
);
const DAMAGED_CHUNKS: Sql = both!("SELECT number FROM chunks WHERE damaged_at IS NOT NULL ORDER BY number");
const NARS: Sql = both!(concat!(
    "SELECT n.id, n.hash, n.size, n.file_size, n.tag, ",
    damaged!("n"),
    ", n.recipe FROM nars AS n ORDER BY n.id"
));
const PACKS: Sql = both!("SELECT id FROM packs ORDER BY number");

/// NARs that are in no cache, neither as an object, nor in its grace, nor as an alias.
const UNNAMED_NARS: Sql = both!(
    "SELECT n.hash FROM nars AS n
     WHERE NOT EXISTS (SELECT 1 FROM objects AS o WHERE o.nar = n.id)
         AND NOT EXISTS (SELECT 1 FROM graces AS g WHERE g.nar = n.id)
         AND NOT EXISTS (SELECT 1 FROM aliases AS a WHERE a.nar = n.id)"
);

/// Rows that are about paths and their bytes, by table.
const LEFTOVERS: Sql = both!(
    "SELECT 'aliases', count(*) FROM aliases
     UNION ALL SELECT 'build_ids', count(*) FROM build_ids
     UNION ALL SELECT 'chunks', count(*) FROM chunks
     UNION ALL SELECT 'damaged_chunks', count(*) FROM damaged_chunks
     UNION ALL SELECT 'damaged_nars', count(*) FROM damaged_nars
     UNION ALL SELECT 'documents', count(*) FROM documents
     UNION ALL SELECT 'doomed_packs', count(*) FROM doomed_packs
     UNION ALL SELECT 'graces', count(*) FROM graces
     UNION ALL SELECT 'jobs', count(*) FROM jobs
     UNION ALL SELECT 'listings', count(*) FROM listings
     UNION ALL SELECT 'nars', count(*) FROM nars
     UNION ALL SELECT 'object_refs', count(*) FROM object_refs
     UNION ALL SELECT 'objects', count(*) FROM objects
     UNION ALL SELECT 'packs', count(*) FROM packs
     UNION ALL SELECT 'purges', count(*) FROM purges
     UNION ALL SELECT 'session_parts', count(*) FROM session_parts
     UNION ALL SELECT 'sessions', count(*) FROM sessions"
);

/// All packs, chunks and NARs.
#[derive(Debug, Clone, PartialEq)]
pub struct Inventory {
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
    /// The tables of paths, bytes, pushes and jobs that have rows, and how many.
    pub leftovers: BTreeMap<String, i64>,
}

impl SqlIndex {
    /// Reads all packs, chunks and NARs. It needs memory for all of them.
    pub async fn inventory(&self) -> Result<Inventory> {
        self.read("read everything", async |mut tx| {
            let chunks = tx.rows(CHUNKS, &[]).await?.iter().map(read_chunk).collect::<Result<_>>()?;
            let damaged = tx.rows(DAMAGED_CHUNKS, &[]).await?;
            let damaged_chunks = damaged.iter().map(read_chunk_number).collect::<Result<_>>()?;
            let nars = tx.rows(NARS, &[]).await?.iter().map(read_nar).collect::<Result<_>>()?;
            let packs = tx.rows(PACKS, &[]).await?.iter().map(read_pack_id).collect::<Result<_>>()?;
            let unnamed = tx.rows(UNNAMED_NARS, &[]).await?;
            let unnamed_nars = unnamed.iter().map(read_nar_hash).collect::<Result<_>>()?;
            let mut leftovers = BTreeMap::new();
            for row in tx.rows(LEFTOVERS, &[]).await? {
                leftovers.insert(row.column(0, "tables")?, row.column(1, "tables")?);
            }
            leftovers.retain(|_, rows| *rows > 0);
            Ok(Inventory { packs, chunks, damaged_chunks, nars, unnamed_nars, leftovers })
        })
        .await
    }
}

fn read_chunk_number(row: &Row) -> Result<u64> {
    unsigned("chunks", row.column(0, "chunks")?)
}

fn read_nar_hash(row: &Row) -> Result<NarHash> {
    nar_hash(row.column(0, "nars")?)
}
