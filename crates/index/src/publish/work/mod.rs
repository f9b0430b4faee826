//! The work of publishing's contract, in a transaction of either database.
//!
//! Invariants
//! - Every writing function begins with [`hold_lease`]: it locks the target's row, so a lease cannot change hands under it.
//! - A NAR row loses its deadline when something names it and gets one when nothing does any more; "names" is a row of
//!   `publish_objects`, whatever its state, or an intent that has begun.

mod caches;
mod look_ups;
mod pending;
mod removing;
mod targets;
mod writing;

use dormer_format::EncodingTag;
use dormer_nix::{NarHash, StorePathHash};

pub(crate) use self::caches::{
    forget_published_cache, publish_backlog, publish_counts, published_caches, write_published_cache,
};
pub(crate) use self::look_ups::{
    due_nars, find_objects, find_published, find_published_nars, list_published, list_published_nars,
    nars_left_by,
};
pub(crate) use self::pending::{
    drop_pending, find_removed, forget_removed, note_all_pending, note_lost, note_pending, note_removed,
    note_waiting, pending_absent, pending_objects,
};
pub(crate) use self::removing::{
    begin_deleting_nars, begin_removing, finish_removing, forget_nars, note_drift, removable,
    set_nar_deadline,
};
pub(crate) use self::targets::{
    acquire_lease, list_targets, move_target, open_target, release_lease, renew_lease,
};
pub(crate) use self::writing::{begin_publishing, finish_publishing, note_uploaded};
use crate::columns::{array, corrupt, nar_hash, tag, unsigned};
use crate::contract::{CacheId, OutboxPosition};
use crate::publish::contract::{Lease, PublishState, PublishTarget, PublishedNar, PublishedObject, TargetId};
use crate::publish::sql::{Argument, Sql, Transaction, both};
use crate::{Error, Result};

use Argument::{Bytes, Number};

/// Most keys in one call.
const KEYS_MAX: usize = 16_384;

/// Rows looked at together where there may be any number.
const PAGE: i64 = 1_000;

const HOLD: Sql =
    both!("UPDATE publish_targets SET fence = fence WHERE id = $1 AND fence = $2 AND holder IS NOT NULL");
const NOTE_PENDING: Sql = both!(
    "INSERT INTO publish_pending (target, cache, hash, since) VALUES ($1, $2, $3, $4)
     ON CONFLICT (target, cache, hash) DO NOTHING"
);
const DROP_PENDING: Sql = both!(
    "DELETE FROM publish_pending WHERE target = $1 AND cache = $2 AND hash IN",
    list 3,
    ""
);
const FIND_NAR_OF: Sql =
    both!("SELECT nar, tag FROM publish_objects WHERE target = $1 AND cache = $2 AND hash = $3");

type Place = (TargetId, CacheId);

/// Fails unless the lease is the one that counts, and keeps it so until the transaction ends.
async fn hold_lease(tx: &mut impl Transaction, lease: &Lease) -> Result<()> {
    let held = tx.run(HOLD, &[Number(lease.target.0), Number(lease.fence)]).await?;
    if held == 1 { Ok(()) } else { Err(Error::LeaseLost) }
}

async fn for_each_nar(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    nars: &[(NarHash, EncodingTag)],
    sql: Sql,
) -> Result<()> {
    for (nar, tag) in nars {
        let arguments =
            [Number(lease.target.0), Number(cache.0), Bytes(nar.as_bytes()), Bytes(tag.as_bytes())];
        tx.run(sql, &arguments).await?;
    }
    Ok(())
}

async fn nar_of(
    tx: &mut impl Transaction,
    (target, cache): Place,
    hash: &StorePathHash,
) -> Result<Option<(NarHash, EncodingTag)>> {
    let rows = tx.rows(FIND_NAR_OF, &[Number(target.0), Number(cache.0), Bytes(hash.as_bytes())]).await?;
    rows.first().map(|row| read_nar(row, 0)).transpose()
}

async fn one<T: Transaction>(tx: &mut T, sql: Sql, arguments: &[Argument<'_>]) -> Result<T::Row> {
    let row = tx.rows(sql, arguments).await?.pop();
    row.ok_or_else(|| corrupt("publish_objects", "a count gave no row"))
}

fn keys(hashes: &[StorePathHash]) -> Vec<&[u8]> {
    hashes.iter().map(|hash| hash.as_bytes().as_slice()).collect()
}

/// Before all hashes, if there is none.
fn after_bytes(after: Option<&StorePathHash>) -> &[u8] {
    after.map_or(&[], |hash| hash.as_bytes().as_slice())
}

fn read_hash(row: &impl crate::rows::Row, column: usize, table: &'static str) -> Result<StorePathHash> {
    Ok(StorePathHash::from_bytes(array(table, row.column(column, table)?)?))
}

fn read_nar(row: &impl crate::rows::Row, first: usize) -> Result<(NarHash, EncodingTag)> {
    let table = "publish_nars";
    Ok((nar_hash(row.column(first, table)?)?, tag(row.column(first + 1, table)?)?))
}

fn read_target(row: &impl crate::rows::Row) -> Result<PublishTarget> {
    let table = "publish_targets";
    let (error, error_at): (Option<String>, Option<i64>) = (row.column(8, table)?, row.column(9, table)?);
    Ok(PublishTarget {
        id: TargetId(row.column(0, table)?),
        name: row.column(1, table)?,
        location: row.column(2, table)?,
        cursor: OutboxPosition { transaction: row.column(3, table)?, number: row.column(4, table)? },
        holder: row.column(5, table)?,
        lease_ends_at: row.column(6, table)?,
        ran_at: row.column(7, table)?,
        error: error.zip(error_at),
    })
}

fn read_published(row: &impl crate::rows::Row) -> Result<PublishedObject> {
    let table = "publish_objects";
    let state = match row.column::<i64>(1, table)? {
        0 => PublishState::Writing,
        1 => PublishState::Published,
        2 => PublishState::Removing,
        other => return Err(corrupt(table, format_args!("state {other}"))),
    };
    let upstream: i64 = row.column(6, table)?;
    Ok(PublishedObject {
        hash: read_hash(row, 0, table)?,
        state,
        nar: read_nar(row, 2)?,
        digest: row.column(4, table)?,
        etag: row.column(5, table)?,
        upstream: upstream != 0,
    })
}

fn read_published_nar(row: &impl crate::rows::Row) -> Result<PublishedNar> {
    let table = "publish_nars";
    let uploaded: i64 = row.column(2, table)?;
    let file_hash: Option<&[u8]> = row.column(4, table)?;
    Ok(PublishedNar {
        nar: read_nar(row, 0)?,
        uploaded: uploaded != 0,
        file_size: unsigned(table, row.column(3, table)?)?,
        file_hash: file_hash.map(nar_hash).transpose()?,
        etag: row.column(5, table)?,
        delete_after: row.column(6, table)?,
    })
}
