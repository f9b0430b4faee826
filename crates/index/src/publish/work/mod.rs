//! The work of publishing's contract, in a transaction of either database.
//!
//! Invariants
//! - Every writing function calls [`hold_lease`] before it changes anything: that locks the
//!   target's row, so a lease cannot change hands under it, and puts the lease's end off.
//! - No statement touches more rows than its caller bounds: a page of rows or keys.
//! - A NAR row loses its deadline when something names it and gets one when nothing does any more;
//!   "names" is a row of `publish_objects`, whatever its state, or an intent that has begun.

mod caches;
mod documents;
mod look_ups;
mod pending;
#[cfg(test)]
pub(crate) mod plans;
mod removing;
mod targets;
mod writing;

use dormer_format::EncodingTag;
use dormer_nix::{NarHash, StorePathHash};

pub(crate) use self::caches::{
    forget_pending, forget_published_cache, publish_backlog, publish_counts, published_caches,
    write_published_cache,
};
pub(crate) use self::documents::{
    find_build_ids, find_needed_documents, find_owned_documents, find_published_documents,
    forget_published_documents, list_published_documents, note_document_drift, write_published_documents,
};
pub(crate) use self::look_ups::{
    due_nars, find_objects, find_published, find_published_nars, find_served_nars, list_published,
    list_published_nars,
};
pub(crate) use self::pending::{
    find_removed, forget_removed, note_cache_step, note_pending, pending_absent, pending_objects,
    settle_pending,
};
pub(crate) use self::removing::{
    begin_deleting_nars, begin_removing, end_graces, finish_removing, forget_nars, note_drift,
    note_other_headers, removable, take_referrers,
};
pub(crate) use self::targets::{
    acquire_lease, clear_missed_changes, list_followers, list_targets, move_target, open_target,
    release_lease, renew_lease,
};
pub(crate) use self::writing::{
    begin_publishing, finish_publishing, note_found_narinfos, note_found_nars, note_uploaded,
};
use crate::columns::{array, corrupt, nar_hash, tag, unsigned};
use crate::contract::{CacheId, OutboxPosition};
use crate::publish::contract::{Lease, PublishState, PublishTarget, PublishedNar, PublishedObject, TargetId};
use crate::publish::records::Records;
use crate::rows::Row;
use crate::sql::{Argument, Sql, Transaction, both};
use crate::{Error, Result};

use Argument::{List, Number};

/// Greater than every key.
const AFTER_ALL_KEYS: &[u8] = &[0xff; 33];

/// Most keys in one call.
const KEYS_MAX: usize = 16_384;

/// Rows looked at together where there may be any number.
const PAGE: i64 = 4_000;

const HOLD: Sql = both!(
    "UPDATE publish_targets SET lease_ends_at = CASE WHEN lease_ends_at < $3 THEN $3 ELSE lease_ends_at END
     WHERE id = $1 AND fence = $2 AND holder IS NOT NULL"
);
const DROP_PENDING: Sql = both!(
    "DELETE FROM publish_pending WHERE (target, cache, hash) IN
         (SELECT k.target, k.cache, k.item FROM",
    keyed 3,
    "AS k)"
);
const FIND_NARS_OF: Sql = both!(
    "SELECT o.hash, o.nar, o.tag FROM", keyed 3, "AS k CROSS JOIN publish_objects AS o
     WHERE o.target = k.target AND o.cache = k.cache AND o.hash = k.item"
);

/// A NAR and its encoding.
type NarKey = (NarHash, EncodingTag);

/// Fails unless the lease is the one that counts, and keeps it so until the transaction ends.
async fn hold_lease(tx: &mut Transaction, lease: &Lease) -> Result<()> {
    let held = tx.run(HOLD, &[Number(lease.target.0), Number(lease.fence), Number(lease.ends_at)]).await?;
    if held == 1 { Ok(()) } else { Err(Error::LeaseLost) }
}

/// NARs as rows of a parameter: `nar`, `tag`.
fn nar_records(nars: &[NarKey]) -> String {
    let mut records = Records::default();
    for (nar, tag) in nars {
        records.row().bytes(nar.as_bytes()).bytes(tag.as_bytes());
    }
    records.finish()
}

/// The NARs that the rows of these objects name.
async fn nars_of(
    tx: &mut Transaction,
    (target, cache): (TargetId, CacheId),
    hashes: &[&[u8]],
) -> Result<Vec<(StorePathHash, NarKey)>> {
    let rows = tx.rows(FIND_NARS_OF, &[Number(target.0), Number(cache.0), List(hashes)]).await?;
    rows.iter().map(|row| Ok((read_hash(row, 0, "publish_objects")?, read_nar(row, 1)?))).collect()
}

fn keys(hashes: &[StorePathHash]) -> Vec<&[u8]> {
    hashes.iter().map(|hash| hash.as_bytes().as_slice()).collect()
}

/// Before all hashes, if there is none.
fn after_bytes(after: Option<&StorePathHash>) -> &[u8] {
    after.map_or(&[], |hash| hash.as_bytes().as_slice())
}

fn read_hash(row: &Row, column: usize, table: &'static str) -> Result<StorePathHash> {
    Ok(StorePathHash::from_bytes(array(table, row.column(column, table)?)?))
}

fn read_nar(row: &Row, first: usize) -> Result<(NarHash, EncodingTag)> {
    let table = "publish_nars";
    Ok((nar_hash(row.column(first, table)?)?, tag(row.column(first + 1, table)?)?))
}

fn read_target(row: &Row) -> Result<PublishTarget> {
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
        compared: row.column::<i64>(10, table)? != 0,
        missed_changes: row.column::<i64>(11, table)? != 0,
    })
}

fn read_published(row: &Row) -> Result<PublishedObject> {
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

fn read_published_nar(row: &Row) -> Result<PublishedNar> {
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
