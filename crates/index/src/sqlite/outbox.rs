//! The outbox: which objects changed, in order.

use dormer_nix::StorePathHash;
use sqlx::query;

use super::session::Statement;
use super::{SqliteIndex, get};
use crate::Result;
use crate::columns::array;
use crate::contract::{CacheId, NarId, OutboxRow, UnixSeconds};

const INSERT: &str = "INSERT INTO outbox (cache, hash, at) VALUES ($1, $2, $3)";

const INSERT_FOR_NAR: &str = "
    INSERT INTO outbox (cache, hash, at)
    SELECT cache, hash, coalesce($2, (SELECT max(at) FROM outbox), 0) FROM objects WHERE nar = $1";

const AFTER: &str = "SELECT number, cache, hash, at FROM outbox WHERE number > $1 ORDER BY number LIMIT $2";

/// Notes that an object changed, or with `None` the cache itself.
pub(super) fn insert(cache: CacheId, hash: Option<&StorePathHash>, at: UnixSeconds) -> Statement<'_> {
    query(INSERT).bind(cache.0).bind(hash.map(|hash| hash.as_bytes().as_slice())).bind(at)
}

/// Notes that all objects with a NAR changed, in every cache: their narinfos name its new tag. Without a time
/// the rows are dated like the newest one.
pub(super) fn insert_for_nar(nar: NarId, at: Option<UnixSeconds>) -> Statement<'static> {
    query(INSERT_FOR_NAR).bind(nar.0).bind(at)
}

impl SqliteIndex {
    pub(super) async fn outbox_rows_after(&self, number: i64, limit: u32) -> Result<Vec<OutboxRow>> {
        let mut read = self.read("read the outbox").await?;
        let rows = read.all(query(AFTER).bind(number).bind(limit)).await?;
        let table = "outbox";
        rows.iter()
            .map(|row| {
                let hash: Option<&[u8]> = get(row, 2, table)?;
                Ok(OutboxRow {
                    number: get(row, 0, table)?,
                    cache: CacheId(get(row, 1, table)?),
                    store_path_hash: hash
                        .map(|hash| array(table, hash).map(StorePathHash::from_bytes))
                        .transpose()?,
                    at: get(row, 3, table)?,
                })
            })
            .collect()
    }
}
