//! Targets, and the right to write to one.

use async_trait::async_trait;

use super::contract::{Follower, Lease, PublishTarget, TargetId, TargetIndex};
use crate::columns::{corrupt, unsigned};
use crate::contract::{OutboxPosition, UnixSeconds};
use crate::rows::Row;
use crate::sql::{Argument, Sql, Transaction, both};
use crate::sql_index::SqlIndex;
use crate::{Error, Result};

use Argument::{Number, OptionalNumber, OptionalText, Text};

const TABLE: &str = "publish_targets";

/// Targets, as [`read_target`] reads them. The oldest change that a target has not followed is the
/// end of an index: one step for each target.
macro_rules! targets {
    ($more:expr, $which:literal) => {
        Sql {
            sqlite: concat!(
                "SELECT t.id, t.name, t.location, t.cursor_transaction, t.cursor_number, t.holder, t.lease_ends_at,
                    t.ran_at, t.error, t.error_at, t.compared, t.missed_changes,
                    (SELECT o.at FROM outbox AS o WHERE o.number > t.cursor_number ORDER BY o.number LIMIT 1) ",
                $more,
                " FROM publish_targets AS t ",
                $which
            ),
            postgres: concat!(
                "SELECT t.id, t.name, t.location, t.cursor_transaction, t.cursor_number, t.holder, t.lease_ends_at,
                    t.ran_at, t.error, t.error_at, t.compared, t.missed_changes,
                    (SELECT o.at FROM outbox AS o
                        WHERE (o.transaction, o.number) > (t.cursor_transaction, t.cursor_number)
                            AND o.transaction < (SELECT base FROM outbox_base)
                                + pg_snapshot_xmin(pg_current_snapshot())::text::bigint
                        ORDER BY o.transaction, o.number LIMIT 1) ",
                $more,
                " FROM publish_targets AS t ",
                $which
            ),
        }
    };
}

const FIND_TARGET: Sql = targets!("", "WHERE t.name = $1");
const LIST_TARGETS: Sql = targets!("", "ORDER BY t.name");
/// The oldest path that waits is the end of an index too: a step for each cache in each target.
macro_rules! behind {
    () => {
        ", (SELECT count(*) FROM publish_caches AS c WHERE c.target = t.id),
            (SELECT CAST(coalesce(sum(k.published), 0) AS BIGINT) FROM publish_caches AS c
                JOIN publish_counts AS k ON k.target = c.target AND k.cache = c.cache WHERE c.target = t.id),
            (SELECT CAST(coalesce(sum(k.pending), 0) AS BIGINT) FROM publish_caches AS c
                JOIN publish_counts AS k ON k.target = c.target AND k.cache = c.cache WHERE c.target = t.id),
            (SELECT min((SELECT min(p.since) FROM publish_pending AS p WHERE p.target = c.target AND p.cache = c.cache))
                FROM publish_caches AS c WHERE c.target = t.id)"
    };
}
pub(super) const LIST_FOLLOWERS: Sql = targets!(behind!(), "ORDER BY t.name");
/// The columns of [`LIST_FOLLOWERS`] behind those of a target.
const CACHES: usize = 13;
const PUBLISHED: usize = 14;
const PENDING: usize = 15;
const PENDING_SINCE: usize = 16;
// What is there may have been published by a database that was lost, or under another name.
const CREATE_TARGET: Sql = both!(
    "INSERT INTO publish_targets (name, location, fence, lease_ends_at, cursor_transaction, cursor_number, compared)
     VALUES ($1, $2, 0, 0, 0, 0, 0) ON CONFLICT (name) DO NOTHING"
);
const HOLD: Sql = both!(
    "UPDATE publish_targets SET lease_ends_at = CASE WHEN lease_ends_at < $3 THEN $3 ELSE lease_ends_at END
     WHERE id = $1 AND fence = $2 AND holder IS NOT NULL"
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

#[async_trait]
impl TargetIndex for SqlIndex {
    async fn open_target(&self, name: &str, location: &str) -> Result<PublishTarget> {
        self.write("open a target", async |mut tx| {
            tx.run(CREATE_TARGET, &[Text(name), Text(location)]).await?;
            let row = tx.optional(FIND_TARGET, &[Text(name)]).await?;
            read_target(&row.ok_or_else(|| corrupt(TABLE, "a row that was just made is gone"))?)
        })
        .await
    }

    async fn list_targets(&self) -> Result<Vec<PublishTarget>> {
        self.read("list targets", async |mut tx| {
            tx.rows(LIST_TARGETS, &[]).await?.iter().map(read_target).collect()
        })
        .await
    }

    async fn list_followers(&self) -> Result<Vec<Follower>> {
        self.read("list targets and what they lack", async |mut tx| {
            tx.rows(LIST_FOLLOWERS, &[]).await?.iter().map(read_follower).collect()
        })
        .await
    }

    async fn acquire_lease(
        &self,
        target: TargetId,
        holder: &str,
        now: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<Option<Lease>> {
        // Not repeated: a second call is refused by the lease of the first, whose answer was lost.
        self.write("take a target's lease", async |mut tx| {
            let row = tx.optional(FIND_HOLDER, &[Number(target.0)]).await?;
            let before: Option<String> = row.ok_or(Error::LeaseLost)?.column(0, TABLE)?;
            let arguments = [Number(target.0), Text(holder), Number(now), Number(ends_at)];
            let Some(row) = tx.optional(ACQUIRE, &arguments).await? else { return Ok(None) };
            Ok(Some(Lease { target, fence: row.column(0, TABLE)?, was_released: before.is_none(), ends_at }))
        })
        .await
    }

    async fn renew_lease(&self, lease: &Lease) -> Result<()> {
        self.write("renew a target's lease", async |mut tx| hold_lease(&mut tx, lease).await).await
    }

    async fn release_lease(&self, lease: &Lease, at: UnixSeconds, error: Option<&str>) -> Result<()> {
        self.write("give a target's lease back", async |mut tx| {
            hold_lease(&mut tx, lease).await?;
            let arguments =
                [Number(lease.target.0), Number(at), OptionalText(error), OptionalNumber(error.map(|_| at))];
            tx.run(RELEASE, &arguments).await.map(drop)
        })
        .await
    }

    async fn move_target(&self, lease: &Lease, location: &str, compared: bool) -> Result<()> {
        self.write("move a target", async |mut tx| {
            hold_lease(&mut tx, lease).await?;
            let target = Number(lease.target.0);
            let row = tx.optional(FIND_LOCATION, &[target]).await?;
            let before: Option<String> = row.map(|row| row.column(0, TABLE)).transpose()?;
            if before.as_deref() != Some(location) {
                tx.run(FORGET_SCANS, &[target]).await?;
            }
            tx.run(MOVE, &[target, Text(location), Number(i64::from(compared))]).await.map(drop)
        })
        .await
    }

    async fn clear_missed_changes(&self, lease: &Lease) -> Result<()> {
        self.write("note what a target missed", async |mut tx| {
            hold_lease(&mut tx, lease).await?;
            tx.run(CLEAR_MISSED, &[Number(lease.target.0)]).await.map(drop)
        })
        .await
    }
}

/// Fails unless the lease is the one that counts, and keeps it so until the transaction ends.
pub(super) async fn hold_lease(tx: &mut Transaction, lease: &Lease) -> Result<()> {
    let held = tx.run(HOLD, &[Number(lease.target.0), Number(lease.fence), Number(lease.ends_at)]).await?;
    if held == 1 { Ok(()) } else { Err(Error::LeaseLost) }
}

fn read_follower(row: &Row) -> Result<Follower> {
    let counts = "publish_counts";
    Ok(Follower {
        target: read_target(row)?,
        caches: unsigned("publish_caches", row.column(CACHES, "publish_caches")?)?,
        published: unsigned(counts, row.column(PUBLISHED, counts)?)?,
        pending: unsigned(counts, row.column(PENDING, counts)?)?,
        pending_since: row.column(PENDING_SINCE, "publish_pending")?,
    })
}

fn read_target(row: &Row) -> Result<PublishTarget> {
    let (error, error_at): (Option<String>, Option<i64>) = (row.column(8, TABLE)?, row.column(9, TABLE)?);
    Ok(PublishTarget {
        id: TargetId(row.column(0, TABLE)?),
        name: row.column(1, TABLE)?,
        location: row.column(2, TABLE)?,
        cursor: OutboxPosition { transaction: row.column(3, TABLE)?, number: row.column(4, TABLE)? },
        holder: row.column(5, TABLE)?,
        lease_ends_at: row.column(6, TABLE)?,
        ran_at: row.column(7, TABLE)?,
        error: error.zip(error_at),
        compared: row.column::<i64>(10, TABLE)? != 0,
        missed_changes: row.column::<i64>(11, TABLE)? != 0,
        unseen_since: row.column(12, "outbox")?,
    })
}
