//! The row of a job that the holder of its target's lease runs: the job has no lease of its own.
//!
//! Invariant
//! - A step begins with [`hold_target_job`] and ends with [`advance_target_job`] or
//!   [`finish_target_job`], in one transaction. Holding locks the row of the target, so its lease
//!   cannot change hands before the commit.

#![cfg_attr(not(test), expect(dead_code, reason = "for the jobs of publishing"))]

use super::contract::{JobId, JobKind};
use super::work::JobProgress;
use crate::columns::{corrupt, signed, unsigned};
use crate::contract::{CacheId, UnixSeconds};
use crate::publish::Lease;
use crate::rows::Row as _;
use crate::sql::{Argument, Sql, Transaction, both};
use crate::{Error, Result};

use Argument::{Bytes, Number, OptionalNumber, Text};

const TABLE: &str = "jobs";

const FIND_JOB: Sql = both!(
    "SELECT j.id, j.cursor, j.done FROM jobs AS j
     WHERE j.kind = $1 AND coalesce(j.cache, 0) = coalesce($2, 0) AND coalesce(j.target, 0) = $3"
);
const HOLD_TARGET: Sql =
    both!("UPDATE publish_targets SET fence = fence WHERE id = $1 AND fence = $2 AND holder IS NOT NULL");
const ADVANCE: Sql = both!(
    "UPDATE jobs SET cursor = $3, done = done + $4, stepped_at = $5, failures = 0, error = NULL
     WHERE id = $1 AND target = $2"
);
const FINISH: Sql = both!("DELETE FROM jobs WHERE id = $1 AND target = $2");

/// Begins a step of a job that the holder of its target's lease runs: fails with
/// [`Error::LeaseLost`] unless that lease is the one that counts, and keeps it so until the
/// transaction ends. `None` if no such job is open.
pub(crate) async fn hold_target_job(
    tx: &mut impl Transaction,
    lease: &Lease,
    kind: JobKind,
    cache: Option<CacheId>,
) -> Result<Option<JobProgress>> {
    let held = tx.run(HOLD_TARGET, &[Number(lease.target.0), Number(lease.fence)]).await?;
    if held != 1 {
        return Err(Error::LeaseLost);
    }
    let arguments = [Text(kind.as_str()), OptionalNumber(cache.map(|cache| cache.0)), Number(lease.target.0)];
    let rows = tx.rows(FIND_JOB, &arguments).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(JobProgress {
        job: JobId(row.column(0, TABLE)?),
        cursor: row.column(1, TABLE)?,
        rows_done: unsigned(TABLE, row.column(2, TABLE)?)?,
    }))
}

/// Ends a step that is not the last one: moves the cursor and counts `rows`. The target's lease is
/// not renewed here. Only after [`hold_target_job`] in the same transaction.
pub(crate) async fn advance_target_job(
    tx: &mut impl Transaction,
    lease: &Lease,
    job: JobId,
    cursor: &[u8],
    rows: u64,
    at: UnixSeconds,
) -> Result<()> {
    let arguments = [Number(job.0), Number(lease.target.0), Bytes(cursor), Number(signed(rows)), Number(at)];
    let moved = tx.run(ADVANCE, &arguments).await?;
    if moved == 1 { Ok(()) } else { Err(corrupt(TABLE, "a job that is held is gone")) }
}

/// Ends the last step: the job is no more. Only after [`hold_target_job`] in the same transaction.
pub(crate) async fn finish_target_job(tx: &mut impl Transaction, lease: &Lease, job: JobId) -> Result<()> {
    tx.run(FINISH, &[Number(job.0), Number(lease.target.0)]).await.map(drop)
}
