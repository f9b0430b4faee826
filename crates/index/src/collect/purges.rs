//! Purges: removed paths whose bytes have to leave the store.

use super::contract::{Purge, PurgeId};
use crate::Result;
use crate::columns::{recipe, unsigned};
use crate::contract::PackNumber;
use crate::rows::Row;
use crate::sql::{Sql, both};

// Those that were never tried come first, then those that waited longest: no purge stays untried
// because others have to wait.
pub(super) const OPEN_PURGES: Sql = both!(
    "SELECT id, asked_at, recipe, listing FROM purges WHERE is_asked = 1
     ORDER BY coalesce(tried_at, 0), id LIMIT $1"
);
pub(super) const PURGE_NOTES: Sql = both!(
    "SELECT id, asked_at, recipe, listing FROM purges WHERE is_asked = 0 AND id > $1 ORDER BY id LIMIT $2"
);
pub(crate) const FIND_PLACES: Sql =
    both!("SELECT number, pack FROM chunks WHERE number > $1 AND number <= $2 ORDER BY number LIMIT $3");
pub(super) const UNTRIED_PURGE: Sql =
    both!("SELECT 1 FROM purges WHERE is_asked = 1 AND tried_at IS NULL LIMIT 1");
pub(super) const CLOSE_PURGES: Sql = Sql {
    sqlite: "DELETE FROM purges WHERE id IN (SELECT value FROM json_each($1))",
    postgres: "DELETE FROM purges WHERE id = ANY ($1)",
};
// One that was asked for meanwhile stays.
pub(super) const FORGET_NOTES: Sql = Sql {
    sqlite: "DELETE FROM purges WHERE is_asked = 0 AND id IN (SELECT value FROM json_each($1))",
    postgres: "DELETE FROM purges WHERE is_asked = 0 AND id = ANY ($1)",
};
pub(super) const NOTE_TRIED: Sql = Sql {
    sqlite: "UPDATE purges SET tried_at = $2 WHERE id IN (SELECT value FROM json_each($1))",
    postgres: "UPDATE purges SET tried_at = $2 WHERE id = ANY ($1)",
};

/// Columns: number, time, recipe, recipe of the listing.
pub(super) fn read_purge(row: &Row) -> Result<Purge> {
    let mut runs = recipe("purges", row.column(2, "purges")?)?.runs;
    if let Some(listing) = row.column::<Option<&[u8]>>(3, "purges")? {
        runs.extend(recipe("purges", listing)?.runs);
    }
    Ok(Purge { id: PurgeId(row.column(0, "purges")?), removed_at: row.column(1, "purges")?, runs })
}

/// Columns: number of a chunk, its pack.
pub(super) fn read_place(row: &Row) -> Result<(u64, PackNumber)> {
    Ok((unsigned("chunks", row.column(0, "chunks")?)?, PackNumber(row.column(1, "chunks")?)))
}
