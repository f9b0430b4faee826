//! The outbox: which objects changed, in an order that followers can rely on.
//!
//! Transactions end in another order than they draw numbers in. A follower that only remembered the highest number would
//! miss rows that become visible later. So a row carries its transaction's id, rows are read in the order (transaction,
//! number), and only those of transactions that are older than every running one: below them nothing can show up any more.

use dormer_nix::StorePathHash;
use sqlx::query;

use super::PostgresIndex;
use super::session::Statement;
use crate::Result;
use crate::contract::{CacheId, NarId, OutboxPosition, OutboxRow, UnixSeconds};
use crate::rows::read_outbox;

const INSERT: &str = "
    INSERT INTO outbox (transaction, cache, hash, at)
    SELECT b.base + pg_current_xact_id()::text::bigint, $1, $2, $3 FROM outbox_base AS b";

const INSERT_FOR_NAR: &str = "
    INSERT INTO outbox (transaction, cache, hash, at)
    SELECT b.base + pg_current_xact_id()::text::bigint, o.cache, o.hash, $2
    FROM objects AS o CROSS JOIN outbox_base AS b WHERE o.nar = $1";

pub(super) const AFTER: &str = "
    SELECT o.transaction, o.number, o.cache, o.hash, o.at FROM outbox AS o
    WHERE (o.transaction, o.number) > ($1, $2)
        AND o.transaction < (SELECT base FROM outbox_base)
            + pg_snapshot_xmin(pg_current_snapshot())::text::bigint
    ORDER BY o.transaction, o.number LIMIT $3";

/// Lifts the base above every transaction that wrote a row, if this server's ids have not reached them yet: a dump was
/// restored into it.
pub(super) const LIFT_BASE: &str = "
    UPDATE outbox_base SET base = newest.transaction
    FROM (SELECT transaction FROM outbox ORDER BY transaction DESC LIMIT 1) AS newest
    WHERE newest.transaction >= base + pg_snapshot_xmax(pg_current_snapshot())::text::bigint";

/// Notes that an object changed, or with `None` the cache itself.
pub(super) fn insert(cache: CacheId, hash: Option<&StorePathHash>, at: UnixSeconds) -> Statement<'_> {
    query(INSERT).bind(cache.0).bind(hash.map(|hash| hash.as_bytes().as_slice())).bind(at)
}

/// Notes that all objects with a NAR changed, in every cache: their narinfos name its new tag.
pub(super) fn insert_for_nar(nar: NarId, at: UnixSeconds) -> Statement<'static> {
    query(INSERT_FOR_NAR).bind(nar.0).bind(at)
}

impl PostgresIndex {
    pub(super) async fn outbox_rows_after(
        &self,
        position: OutboxPosition,
        limit: u32,
    ) -> Result<Vec<OutboxRow>> {
        let mut read = self.read("read the outbox").await?;
        let after = query(AFTER).bind(position.transaction).bind(position.number).bind(i64::from(limit));
        let rows = read.all(after).await?;
        read.end().await?;
        rows.iter().map(read_outbox).collect()
    }
}
