//! The outbox: which objects changed, in an order that followers can rely on.
//!
//! On PostgreSQL transactions end in another order than they draw numbers in. A follower that only
//! remembered the highest number would miss rows that become visible later. So a row carries its
//! transaction's id, rows are read in the order (transaction, number), and only those of
//! transactions that are older than every running one: below them nothing can show up any more. On
//! SQLite one connection writes, so numbers alone are in order.

use async_trait::async_trait;
use dormer_nix::StorePathHash;

use crate::Result;
use crate::changes::Changes;
use crate::contract::{CacheId, NarId, OutboxIndex, OutboxPosition, OutboxRow, UnixSeconds};
use crate::rows::read_outbox;
use crate::sql::Argument::{List, Number, OptionalBytes};
use crate::sql::{Sql, Transaction, both};
use crate::sql_index::SqlIndex;
use crate::topics::damage;

const INSERT: Sql = Sql {
    sqlite: "INSERT INTO outbox (cache, hash, at) VALUES ($1, $2, $3)",
    postgres: "
        INSERT INTO outbox (transaction, cache, hash, at)
        SELECT b.base + pg_current_xact_id()::text::bigint, $1, $2, $3 FROM outbox_base AS b",
};

const INSERT_MANY: Sql = Sql {
    sqlite: "
        INSERT INTO outbox (cache, hash, at) SELECT $1, unhex(k.value), $2 FROM json_each($3) AS k",
    postgres: "
        INSERT INTO outbox (transaction, cache, hash, at)
        SELECT b.base + pg_current_xact_id()::text::bigint, $1, k.item, $2
        FROM unnest($3::bytea[]) AS k (item) CROSS JOIN outbox_base AS b",
};

/// Objects of one NAR whose change one statement notes. Empty outputs of many builds are one NAR,
/// so it may have as many objects as a cache has paths.
pub(crate) const NAR_PAGE: u32 = 256;

/// A page of the objects with a NAR.
pub(crate) const OBJECTS_OF_NAR: Sql = both!(
    "SELECT cache, id FROM objects WHERE nar = $1 AND (cache, id) > ($2, $3) ORDER BY cache, id LIMIT $4"
);
const INSERT_FOR_NAR: Sql = Sql {
    sqlite: "
        INSERT INTO outbox (cache, hash, at)
        SELECT o.cache, o.hash, $2 FROM objects AS o JOIN caches AS c ON c.id = o.cache
        WHERE o.nar = $1 AND (o.cache, o.id) > ($3, $4) AND (o.cache, o.id) <= ($5, $6)
            AND c.deleted_at IS NULL",
    postgres: "
        INSERT INTO outbox (transaction, cache, hash, at)
        SELECT b.base + pg_current_xact_id()::text::bigint, o.cache, o.hash, $2
        FROM objects AS o JOIN caches AS c ON c.id = o.cache CROSS JOIN outbox_base AS b
        WHERE o.nar = $1 AND (o.cache, o.id) > ($3, $4) AND (o.cache, o.id) <= ($5, $6)
            AND c.deleted_at IS NULL",
};

pub(crate) const AFTER: Sql = Sql {
    sqlite: "SELECT $1, number, cache, hash, at FROM outbox WHERE number > $2 ORDER BY number LIMIT $3",
    postgres: "
        SELECT o.transaction, o.number, o.cache, o.hash, o.at FROM outbox AS o
        WHERE (o.transaction, o.number) > ($1, $2)
            AND o.transaction < (SELECT base FROM outbox_base)
                + pg_snapshot_xmin(pg_current_snapshot())::text::bigint
        ORDER BY o.transaction, o.number LIMIT $3",
};

const SLOWEST: Sql = both!(
    "SELECT followed.cursor_transaction, followed.cursor_number FROM (
         SELECT cursor_transaction, cursor_number FROM publish_targets
         UNION ALL SELECT cursor_transaction, cursor_number FROM journal WHERE lineage <> 0) AS followed
     ORDER BY followed.cursor_transaction, followed.cursor_number LIMIT 1"
);
const NOTE_MISSED: Sql = both!(
    "UPDATE publish_targets SET missed_changes = 1 WHERE (cursor_transaction, cursor_number) < ($1, $2)"
);
// As `journal::ASK_FOR_SNAPSHOT`.
const NOTE_MISSED_BY_JOURNAL: Sql = both!(
    "UPDATE journal SET segment_bytes = 4611686018427387904, fence = fence + 1, holder = NULL, lease_ends_at = 0
     WHERE lineage <> 0 AND (cursor_transaction, cursor_number) < ($1, $2)"
);
pub(crate) const DELETE_THROUGH: Sql = Sql {
    sqlite: "DELETE FROM outbox WHERE number <= $2",
    postgres: "DELETE FROM outbox WHERE (transaction, number) <= ($1, $2)",
};

/// Deletes the first rows, as far as nobody needs them
/// ([`JobIndex::trim_outbox`](crate::JobIndex::trim_outbox)).
///
/// Only rows that followers may see go, and nothing appears before those any more. A target whose
/// cursor moves meanwhile is told needlessly at worst.
pub(crate) async fn trim(
    tx: &mut Transaction,
    keep_since: UnixSeconds,
    give_up_before: UnixSeconds,
    limit: u32,
) -> Result<u64> {
    let slowest = match tx.optional(SLOWEST, &[]).await? {
        Some(row) => {
            let table = "publish_targets";
            Some(OutboxPosition { transaction: row.column(0, table)?, number: row.column(1, table)? })
        }
        None => None,
    };
    let page = [Number(0), Number(0), Number(limit.into())];
    let mut last = None;
    for row in tx.rows(AFTER, &page).await? {
        let row = read_outbox(&row)?;
        let is_followed = slowest.is_none_or(|slowest| row.position <= slowest);
        if row.at >= keep_since || !is_followed && row.at >= give_up_before {
            break;
        }
        last = Some((row.position, is_followed));
    }
    let Some((OutboxPosition { transaction, number }, is_followed)) = last else { return Ok(0) };
    let through = [Number(transaction), Number(number)];
    if !is_followed {
        tx.run(NOTE_MISSED, &through).await?;
        tx.run(NOTE_MISSED_BY_JOURNAL, &through).await?;
    }
    tx.run(DELETE_THROUGH, &through).await
}

/// Notes that an object changed, or with `None` the cache itself.
pub(crate) async fn note_change(
    tx: &mut Transaction,
    cache: CacheId,
    hash: Option<&StorePathHash>,
    at: UnixSeconds,
) -> Result<()> {
    let hash = OptionalBytes(hash.map(|hash| hash.as_bytes().as_slice()));
    tx.run(INSERT, &[Number(cache.0), hash, Number(at)]).await.map(drop)
}

/// Notes that these objects changed.
pub(crate) async fn note_changes(
    tx: &mut Transaction,
    cache: CacheId,
    hashes: &[&[u8]],
    at: UnixSeconds,
) -> Result<()> {
    tx.run(INSERT_MANY, &[Number(cache.0), Number(at), List(hashes)]).await.map(drop)
}

/// Notes that all objects with a NAR changed, in every cache: their narinfos name its new tag. If
/// they are more than a page, [`JobKind::SpreadDamage`](crate::JobKind::SpreadDamage) notes the
/// others.
pub(crate) async fn note_new_tag(tx: &mut Transaction, nar: NarId, at: UnixSeconds) -> Result<()> {
    match note_page(tx, nar, (0, 0), NAR_PAGE, at).await?.next {
        Some(_) => damage::tell_later(tx, nar, at).await,
        None => Ok(()),
    }
}

/// A page of the objects with a NAR.
pub(crate) struct NotedPage {
    /// How many objects it had.
    pub(crate) objects: u32,
    /// After which (cache, object) the next page begins, if there may be one.
    pub(crate) next: Option<(i64, i64)>,
}

/// Notes that a page of the objects with a NAR changed: at most `limit` after (cache, object).
pub(crate) async fn note_page(
    tx: &mut Transaction,
    nar: NarId,
    after: (i64, i64),
    limit: u32,
    at: UnixSeconds,
) -> Result<NotedPage> {
    let table = "objects";
    let page = [Number(nar.0), Number(after.0), Number(after.1), Number(limit.into())];
    let page = tx.rows(OBJECTS_OF_NAR, &page).await?;
    let Some(last) = page.last() else { return Ok(NotedPage { objects: 0, next: None }) };
    let last = (last.column(0, table)?, last.column(1, table)?);
    let range = [Number(nar.0), Number(at), Number(after.0), Number(after.1), Number(last.0), Number(last.1)];
    tx.run(INSERT_FOR_NAR, &range).await?;
    let objects = u32::try_from(page.len()).unwrap_or(u32::MAX);
    Ok(NotedPage { objects, next: (objects >= limit).then_some(last) })
}

#[async_trait]
impl OutboxIndex for SqlIndex {
    async fn outbox_after(&self, position: OutboxPosition, limit: u32) -> Result<Vec<OutboxRow>> {
        self.read("read the outbox", async |mut tx| {
            let after = [Number(position.transaction), Number(position.number), Number(limit.into())];
            tx.rows(AFTER, &after).await?.iter().map(read_outbox).collect()
        })
        .await
    }

    fn changes(&self) -> Changes {
        self.database.changes()
    }
}
