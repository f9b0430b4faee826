//! Targets, and the right to write to one.

use super::{hold_lease, read_target};
use crate::columns::{corrupt, unsigned};
use crate::contract::UnixSeconds;
use crate::publish::contract::{Follower, Lease, PublishTarget, TargetId};
use crate::rows::Row;
use crate::sql::{Argument, Sql, Transaction, both};
use crate::{Error, Result};

use Argument::{Number, OptionalNumber, OptionalText, Text};

const FIND_TARGET: Sql = both!(
    "SELECT id, name, location, cursor_transaction, cursor_number, holder, lease_ends_at, ran_at, error, error_at,
        compared, missed_changes
     FROM publish_targets WHERE name = $1"
);
const LIST_TARGETS: Sql = both!(
    "SELECT id, name, location, cursor_transaction, cursor_number, holder, lease_ends_at, ran_at, error, error_at,
        compared, missed_changes
     FROM publish_targets ORDER BY name"
);
/// The oldest change is the end of an index: one step for each target. The oldest path that waits
/// is one too: a step for each cache in each target.
pub(super) const LIST_FOLLOWERS: Sql = Sql {
    sqlite: "
        SELECT t.id, t.name, t.location, t.cursor_transaction, t.cursor_number, t.holder, t.lease_ends_at, t.ran_at,
            t.error, t.error_at, t.compared, t.missed_changes,
            (SELECT o.at FROM outbox AS o WHERE o.number > t.cursor_number ORDER BY o.number LIMIT 1),
            (SELECT count(*) FROM publish_caches AS c WHERE c.target = t.id),
            (SELECT CAST(coalesce(sum(k.published), 0) AS BIGINT) FROM publish_caches AS c
                JOIN publish_counts AS k ON k.target = c.target AND k.cache = c.cache WHERE c.target = t.id),
            (SELECT CAST(coalesce(sum(k.pending), 0) AS BIGINT) FROM publish_caches AS c
                JOIN publish_counts AS k ON k.target = c.target AND k.cache = c.cache WHERE c.target = t.id),
            (SELECT min((SELECT min(p.since) FROM publish_pending AS p WHERE p.target = c.target AND p.cache = c.cache))
                FROM publish_caches AS c WHERE c.target = t.id)
        FROM publish_targets AS t ORDER BY t.name",
    postgres: "
        SELECT t.id, t.name, t.location, t.cursor_transaction, t.cursor_number, t.holder, t.lease_ends_at, t.ran_at,
            t.error, t.error_at, t.compared, t.missed_changes,
            (SELECT o.at FROM outbox AS o
                WHERE (o.transaction, o.number) > (t.cursor_transaction, t.cursor_number)
                    AND o.transaction < (SELECT base FROM outbox_base)
                        + pg_snapshot_xmin(pg_current_snapshot())::text::bigint
                ORDER BY o.transaction, o.number LIMIT 1),
            (SELECT count(*) FROM publish_caches AS c WHERE c.target = t.id),
            (SELECT CAST(coalesce(sum(k.published), 0) AS BIGINT) FROM publish_caches AS c
                JOIN publish_counts AS k ON k.target = c.target AND k.cache = c.cache WHERE c.target = t.id),
            (SELECT CAST(coalesce(sum(k.pending), 0) AS BIGINT) FROM publish_caches AS c
                JOIN publish_counts AS k ON k.target = c.target AND k.cache = c.cache WHERE c.target = t.id),
            (SELECT min((SELECT min(p.since) FROM publish_pending AS p WHERE p.target = c.target AND p.cache = c.cache))
                FROM publish_caches AS c WHERE c.target = t.id)
        FROM publish_targets AS t ORDER BY t.name",
};
/// The columns of [`LIST_FOLLOWERS`] behind those of a target.
const UNSEEN_SINCE: usize = 12;
const CACHES: usize = 13;
const PUBLISHED: usize = 14;
const PENDING: usize = 15;
const PENDING_SINCE: usize = 16;
// What is there may have been published by a database that was lost, or under another name.
const CREATE_TARGET: Sql = both!(
    "INSERT INTO publish_targets (name, location, fence, lease_ends_at, cursor_transaction, cursor_number, compared)
     VALUES ($1, $2, 0, 0, 0, 0, 0) ON CONFLICT (name) DO NOTHING"
);
const FIND_HOLDER: Sql = both!("SELECT holder FROM publish_targets WHERE id = $1");
// Looks again at what the row says by now: another one may have been faster.
const ACQUIRE: Sql = both!(
    "UPDATE publish_targets SET holder = $2, fence = fence + 1, lease_ends_at = $4
     WHERE id = $1 AND (holder IS NULL OR lease_ends_at <= $3) RETURNING fence"
);
const RELEASE: Sql = both!(
    "UPDATE publish_targets SET holder = NULL, lease_ends_at = 0, ran_at = $2, error = $3, error_at = $4 WHERE id = $1"
);
const MOVE: Sql = both!("UPDATE publish_targets SET location = $2, compared = $3 WHERE id = $1");
const CLEAR_MISSED: Sql = both!("UPDATE publish_targets SET missed_changes = 0 WHERE id = $1");
const FIND_LOCATION: Sql = both!("SELECT location FROM publish_targets WHERE id = $1");
const FORGET_SCANS: Sql = both!("DELETE FROM jobs WHERE kind = 'scan-cache' AND target = $1");

pub(crate) async fn open_target(tx: &mut Transaction, name: &str, location: &str) -> Result<PublishTarget> {
    tx.run(CREATE_TARGET, &[Text(name), Text(location)]).await?;
    let rows = tx.rows(FIND_TARGET, &[Text(name)]).await?;
    read_target(rows.first().ok_or_else(|| corrupt("publish_targets", "a row that was just made is gone"))?)
}

pub(crate) async fn list_targets(tx: &mut Transaction) -> Result<Vec<PublishTarget>> {
    tx.rows(LIST_TARGETS, &[]).await?.iter().map(read_target).collect()
}

pub(crate) async fn list_followers(tx: &mut Transaction) -> Result<Vec<Follower>> {
    tx.rows(LIST_FOLLOWERS, &[]).await?.iter().map(read_follower).collect()
}

fn read_follower(row: &Row) -> Result<Follower> {
    let counts = "publish_counts";
    Ok(Follower {
        target: read_target(row)?,
        unseen_since: row.column(UNSEEN_SINCE, "outbox")?,
        caches: unsigned("publish_caches", row.column(CACHES, "publish_caches")?)?,
        published: unsigned(counts, row.column(PUBLISHED, counts)?)?,
        pending: unsigned(counts, row.column(PENDING, counts)?)?,
        pending_since: row.column(PENDING_SINCE, "publish_pending")?,
    })
}

pub(crate) async fn acquire_lease(
    tx: &mut Transaction,
    target: TargetId,
    holder: &str,
    now: UnixSeconds,
    ends_at: UnixSeconds,
) -> Result<Option<Lease>> {
    let rows = tx.rows(FIND_HOLDER, &[Number(target.0)]).await?;
    let before: Option<String> = match rows.first() {
        Some(row) => row.column(0, "publish_targets")?,
        None => return Err(Error::LeaseLost),
    };
    let taken = tx.rows(ACQUIRE, &[Number(target.0), Text(holder), Number(now), Number(ends_at)]).await?;
    let Some(row) = taken.first() else { return Ok(None) };
    Ok(Some(Lease {
        target,
        fence: row.column(0, "publish_targets")?,
        was_released: before.is_none(),
        ends_at,
    }))
}

pub(crate) async fn renew_lease(tx: &mut Transaction, lease: &Lease) -> Result<()> {
    hold_lease(tx, lease).await
}

pub(crate) async fn release_lease(
    tx: &mut Transaction,
    lease: &Lease,
    at: UnixSeconds,
    error: Option<&str>,
) -> Result<()> {
    hold_lease(tx, lease).await?;
    let arguments =
        [Number(lease.target.0), Number(at), OptionalText(error), OptionalNumber(error.map(|_| at))];
    tx.run(RELEASE, &arguments).await.map(drop)
}

pub(crate) async fn move_target(
    tx: &mut Transaction,
    lease: &Lease,
    location: &str,
    compared: bool,
) -> Result<()> {
    hold_lease(tx, lease).await?;
    let target = Number(lease.target.0);
    let rows = tx.rows(FIND_LOCATION, &[target]).await?;
    let before: Option<String> = rows.first().map(|row| row.column(0, "publish_targets")).transpose()?;
    if before.as_deref() != Some(location) {
        tx.run(FORGET_SCANS, &[target]).await?;
    }
    tx.run(MOVE, &[target, Text(location), Number(i64::from(compared))]).await.map(drop)
}

pub(crate) async fn clear_missed_changes(tx: &mut Transaction, lease: &Lease) -> Result<()> {
    hold_lease(tx, lease).await?;
    tx.run(CLEAR_MISSED, &[Number(lease.target.0)]).await.map(drop)
}
