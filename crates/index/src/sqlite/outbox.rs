//! The outbox: which objects changed, in order.

use dormer_nix::StorePathHash;
use sqlx::query;

use super::SqliteIndex;
use super::session::Statement;
use crate::Result;
use crate::contract::{CacheId, NarId, OutboxPosition, OutboxRow, UnixSeconds};
use crate::rows::read_outbox;

const INSERT: &str = "INSERT INTO outbox (cache, hash, at) VALUES ($1, $2, $3)";

const INSERT_FOR_NAR: &str = "
    INSERT INTO outbox (cache, hash, at)
    SELECT cache, hash, $2 FROM objects WHERE nar = $1";

// One connection writes, so numbers alone are in order.
const AFTER: &str =
    "SELECT 0, number, cache, hash, at FROM outbox WHERE number > $1 ORDER BY number LIMIT $2";

/// Notes that an object changed, or with `None` the cache itself.
pub(super) fn insert(cache: CacheId, hash: Option<&StorePathHash>, at: UnixSeconds) -> Statement<'_> {
    query(INSERT).bind(cache.0).bind(hash.map(|hash| hash.as_bytes().as_slice())).bind(at)
}

/// Notes that all objects with a NAR changed, in every cache: their narinfos name its new tag.
pub(super) fn insert_for_nar(nar: NarId, at: UnixSeconds) -> Statement<'static> {
    query(INSERT_FOR_NAR).bind(nar.0).bind(at)
}

impl SqliteIndex {
    pub(super) async fn outbox_rows_after(
        &self,
        position: OutboxPosition,
        limit: u32,
    ) -> Result<Vec<OutboxRow>> {
        let mut read = self.read("read the outbox").await?;
        let rows = read.all(query(AFTER).bind(position.number).bind(limit)).await?;
        rows.iter().map(read_outbox).collect()
    }
}
