//! Damage: which chunks are damaged, and which NARs need one of them.
//!
//! `chunks.damaged_at` says that a chunk is damaged, and nothing else does. `damaged_nars` says
//! which NARs need the chunk. A NAR is damaged while one of its rows there names a damaged chunk
//! ([`damaged`](crate::sql::damaged)), or while `nars.damaged_at` is set: then its chunks are
//! sound and the NAR is not. So the push that stores a chunk again heals every NAR that needs the
//! chunk, in one write.
//!
//! A row with the chunk [`TELL`] says that followers are still to be told of objects with the NAR,
//! whose tag is new.
//!
//! Invariants
//! - The transaction that marks a chunk leaves an open job
//!   ([`JobKind::SpreadDamage`](crate::JobKind::SpreadDamage)), unless a job looked for the NARs of
//!   this chunk already.
//! - Locks are taken in the order job, packs, chunks, NARs: a healing upload locks chunks before
//!   NARs too. A commit that leaves the rest of a NAR's objects to the job opens the job last. If a
//!   step is in the way, one of the two is repeated.

use crate::Result;
use crate::changes::Change;
use crate::columns::signed;
use crate::contract::{NarId, PackNumber, UnixSeconds};
use crate::jobs::{JobKind, work};
use crate::rows::Row;
use crate::sql::Argument::{Number, Numbers};
use crate::sql::{Sql, Transaction, both};

const MARK_NAR: Sql = both!("UPDATE nars SET damaged_at = $2 WHERE id = $1 AND damaged_at IS NULL");

/// Gives the numbers of those that were sound.
pub(crate) const MARK_CHUNKS: Sql = Sql {
    sqlite: "
        UPDATE chunks SET damaged_at = $2
        WHERE number IN (SELECT value FROM json_each($1)) AND damaged_at IS NULL
        RETURNING number",
    postgres: "
        WITH held AS MATERIALIZED (
            SELECT c.number FROM chunks AS c
            WHERE c.number = ANY ($1) AND c.damaged_at IS NULL
            ORDER BY c.id FOR NO KEY UPDATE)
        UPDATE chunks SET damaged_at = $2 FROM held WHERE chunks.number = held.number
        RETURNING chunks.number",
};
/// The same for those that lie in this pack still.
pub(crate) const MARK_CHUNKS_OF_PACK: Sql = Sql {
    sqlite: "
        UPDATE chunks SET damaged_at = $2
        WHERE number IN (SELECT value FROM json_each($1)) AND damaged_at IS NULL AND +pack = $3
        RETURNING number",
    postgres: "
        WITH held AS MATERIALIZED (
            SELECT c.number FROM chunks AS c
            WHERE c.number = ANY ($1) AND c.damaged_at IS NULL AND c.pack = $3
            ORDER BY c.id FOR NO KEY UPDATE)
        UPDATE chunks SET damaged_at = $2 FROM held WHERE chunks.number = held.number
        RETURNING chunks.number",
};
// A chunk that was damaged before, and healed, may have other NARs by now.
const NOTE_CHUNKS: Sql = Sql {
    sqlite: "
        INSERT INTO damaged_chunks (chunk, walked) SELECT value, 0 FROM json_each($1) WHERE true
        ON CONFLICT (chunk) DO UPDATE SET walked = 0",
    postgres: "
        INSERT INTO damaged_chunks (chunk, walked) SELECT k.chunk, 0 FROM unnest($1) AS k (chunk)
        ON CONFLICT (chunk) DO UPDATE SET walked = 0",
};
// A NAR that is gone has no row.
const NOTE_NAR: Sql = Sql {
    sqlite: "
        INSERT INTO damaged_nars (nar, chunk)
        SELECT n.id, k.value FROM nars AS n CROSS JOIN json_each($2) AS k WHERE n.id = $1
        ON CONFLICT (nar, chunk) DO NOTHING",
    postgres: "
        INSERT INTO damaged_nars (nar, chunk)
        SELECT n.id, k.chunk FROM (SELECT id FROM nars WHERE id = $1 FOR SHARE) AS n
            CROSS JOIN unnest($2) AS k (chunk)
        ON CONFLICT (nar, chunk) DO NOTHING",
};
const FORGET_NAR: Sql = both!("DELETE FROM damaged_nars WHERE nar = $1 AND chunk >= 0");
/// In the place of a chunk's number. The job takes it for a chunk that was healed.
pub(crate) const TELL: i64 = -1;
// The update takes the row's lock: a step that forgets the row at this moment does so before this
// transaction looks, or tells of the NAR after this transaction ended.
const TELL_LATER: Sql = both!(
    "INSERT INTO damaged_nars (nar, chunk) VALUES ($1, $2)
     ON CONFLICT (nar, chunk) DO UPDATE SET chunk = excluded.chunk"
);
const FORGET_LISTINGS: Sql = Sql {
    sqlite: "DELETE FROM listings WHERE nar IN (SELECT value FROM json_each($1))",
    postgres: "DELETE FROM listings WHERE nar = ANY ($1)",
};
// Chunks also move out of condemned packs, and then nothing was damaged.
const NOTE_HEALED: Sql = both!(
    "INSERT INTO jobs (kind, cache, target, done, fence, lease_ends_at, failures, created_at)
     SELECT 'spread-damage', NULL, NULL, 0, 0, 0, 0, $1 WHERE EXISTS (SELECT 1 FROM damaged_chunks)
     ON CONFLICT (kind, coalesce(cache, 0), coalesce(target, 0)) DO NOTHING"
);

/// Marks chunks damaged, and opens the job that looks which NARs need them. Comes before any NAR
/// in its transaction.
pub(crate) async fn mark_chunks(tx: &mut Transaction, chunks: &[u64], at: UnixSeconds) -> Result<u64> {
    if chunks.is_empty() {
        return Ok(0);
    }
    // First, so that a step of the job comes wholly before this transaction or wholly after it.
    work::open_job(tx, JobKind::SpreadDamage, None, None, at).await?;
    let numbers: Vec<i64> = chunks.iter().map(|number| signed(*number)).collect();
    let marked = tx.rows(MARK_CHUNKS, &[Numbers(&numbers), Number(at)]).await?;
    note_chunks(tx, &marked).await
}

/// Marks those of these chunks that lie in a pack still, where their bytes were read. Meanwhile a
/// push may have stored a chunk again, or a collection may have moved it: then it is sound.
pub(crate) async fn mark_chunks_of_pack(
    tx: &mut Transaction,
    pack: PackNumber,
    chunks: &[u64],
    at: UnixSeconds,
) -> Result<u64> {
    if chunks.is_empty() {
        return Ok(0);
    }
    // First, as in `mark_chunks`.
    work::open_job(tx, JobKind::SpreadDamage, None, None, at).await?;
    let numbers: Vec<i64> = chunks.iter().map(|number| signed(*number)).collect();
    let marks = [Numbers(&numbers), Number(at), Number(pack.0)];
    let marked = tx.rows(MARK_CHUNKS_OF_PACK, &marks).await?;
    tx.announce(Change::Everything).await?;
    note_chunks(tx, &marked).await
}

/// Notes chunks that a statement just marked: their numbers are the first column.
pub(crate) async fn note_chunks(tx: &mut Transaction, marked: &[Row]) -> Result<u64> {
    let marked = marked.iter().map(|row| row.column(0, "chunks")).collect::<Result<Vec<i64>>>()?;
    if !marked.is_empty() {
        tx.run(NOTE_CHUNKS, &[Numbers(&marked)]).await?;
    }
    Ok(marked.len() as u64)
}

/// Marks those chunks of a NAR damaged that could not be read; without any, the NAR itself.
pub(crate) async fn mark_nar(
    tx: &mut Transaction,
    nar: NarId,
    chunks: &[u64],
    at: UnixSeconds,
) -> Result<()> {
    if chunks.is_empty() {
        tx.run(MARK_NAR, &[Number(nar.0), Number(at)]).await?;
    } else {
        mark_chunks(tx, chunks, at).await?;
        note_nar(tx, nar, chunks).await?;
    }
    tx.announce(Change::Everything).await
}

/// Notes that a NAR needs these chunks, some of which are damaged.
pub(crate) async fn note_nar(tx: &mut Transaction, nar: NarId, chunks: &[u64]) -> Result<()> {
    let numbers: Vec<i64> = chunks.iter().map(|number| signed(*number)).collect();
    tx.run(NOTE_NAR, &[Number(nar.0), Numbers(&numbers)]).await.map(drop)
}

/// Forgets the damage of a NAR that was just stored again.
pub(crate) async fn forget_nar(tx: &mut Transaction, nar: NarId) -> Result<()> {
    tx.run(FORGET_NAR, &[Number(nar.0)]).await.map(drop)
}

/// Has the job tell followers that all objects with a NAR changed.
pub(crate) async fn tell_later(tx: &mut Transaction, nar: NarId, at: UnixSeconds) -> Result<()> {
    tx.run(TELL_LATER, &[Number(nar.0), Number(TELL)]).await?;
    work::open_job(tx, JobKind::SpreadDamage, None, None, at).await.map(drop)
}

/// Forgets listings that cannot be read.
pub(crate) async fn forget_listings(tx: &mut Transaction, nars: &[NarId]) -> Result<()> {
    let nars: Vec<i64> = nars.iter().map(|nar| nar.0).collect();
    tx.run(FORGET_LISTINGS, &[Numbers(&nars)]).await.map(drop)
}

/// After chunks were stored again, or have gone: opens the job that tells followers of the NARs
/// that this healed, and that forgets the chunks.
pub(crate) async fn note_healed(tx: &mut Transaction, at: UnixSeconds) -> Result<()> {
    tx.run(NOTE_HEALED, &[Number(at)]).await.map(drop)
}
