//! The row of a job, in a transaction of either database.
//!
//! Invariants
//! - A step begins with [`hold_job`] and ends with [`advance_job`] or [`finish_job`], in one
//!   transaction. Holding locks the row of the job, so the lease cannot change hands before the
//!   commit.
//! - A cursor only moves together with the work that it stands for.

use super::contract::{Job, JobBacklog, JobId, JobKind, JobLease, JobsByNeed};
use crate::columns::{corrupt, signed, unsigned};
use crate::contract::{CacheId, UnixSeconds};
use crate::publish::TargetId;
use crate::rows::Row;
use crate::sql::{Argument, Sql, Transaction, both};
use crate::{Error, Result};

use Argument::{Bytes, Number, OptionalNumber, Text};

const TABLE: &str = "jobs";

// The update changes nothing; without it there would be no row to return.
const OPEN: Sql = both!(
    "INSERT INTO jobs (kind, cache, target, done, fence, lease_ends_at, failures, created_at)
     VALUES ($1, $2, $3, 0, 0, 0, 0, $4)
     ON CONFLICT (kind, coalesce(cache, 0), coalesce(target, 0)) DO UPDATE SET kind = excluded.kind
     RETURNING id"
);
const LIST: Sql = both!(
    "SELECT j.id, j.kind, j.cache, c.name, j.target, t.name, j.done, coalesce(j.holder, t.holder),
         CASE WHEN t.id IS NULL THEN j.lease_ends_at ELSE t.lease_ends_at END, j.failures,
         j.created_at, j.stepped_at, j.error
     FROM jobs AS j LEFT JOIN caches AS c ON c.id = j.cache LEFT JOIN publish_targets AS t ON t.id = j.target
     WHERE j.id > $1 ORDER BY j.id LIMIT $2"
);
// A window counts what the limit leaves out.
const LIST_BY_NEED: Sql = both!(
    "SELECT o.*, count(*) OVER (), CAST(sum(o.runs) OVER () AS BIGINT), CAST(sum(o.fails) OVER () AS BIGINT)
     FROM (SELECT j.id, j.kind, j.cache, c.name AS cache_name, j.target, t.name AS target_name, j.done,
             coalesce(j.holder, t.holder) AS holder,
             CASE WHEN t.id IS NULL THEN j.lease_ends_at ELSE t.lease_ends_at END AS lease_ends_at, j.failures,
             j.created_at, j.stepped_at, j.error,
             CASE WHEN coalesce(j.holder, t.holder) IS NOT NULL
                 AND CASE WHEN t.id IS NULL THEN j.lease_ends_at ELSE t.lease_ends_at END > $1 THEN 1 ELSE 0 END AS runs,
             CASE WHEN j.failures > 0 THEN 1 ELSE 0 END AS fails
         FROM jobs AS j LEFT JOIN caches AS c ON c.id = j.cache
             LEFT JOIN publish_targets AS t ON t.id = j.target) AS o
     ORDER BY o.fails DESC, o.runs DESC, o.id LIMIT $2"
);
/// Columns of a job in it. The counts of all jobs follow.
const COUNTS: usize = 15;
const FIND: Sql =
    both!("SELECT id FROM jobs WHERE kind = $1 AND coalesce(cache, 0) = 0 AND coalesce(target, 0) = 0");
// A job of a target runs while the target's lease does. PostgreSQL sums to numeric, so it casts.
const BACKLOG: Sql = both!(
    "SELECT j.kind,
         CAST(sum(CASE WHEN j.holder IS NOT NULL AND j.lease_ends_at > $1
             OR t.holder IS NOT NULL AND t.lease_ends_at > $1 THEN 1 ELSE 0 END) AS BIGINT),
         count(*), CAST(sum(j.done) AS BIGINT), min(j.created_at), max(j.failures)
     FROM jobs AS j LEFT JOIN publish_targets AS t ON t.id = j.target GROUP BY j.kind ORDER BY j.kind"
);
// Replicas that look at the same moment do not wait for each other.
const LEASE: Sql = Sql {
    sqlite: "UPDATE jobs SET holder = $2, fence = fence + 1, lease_ends_at = $4
         WHERE id = (SELECT id FROM jobs WHERE kind = $1 AND lease_ends_at <= $3 ORDER BY id LIMIT 1)
         RETURNING id, fence, cache, target, failures",
    postgres: "UPDATE jobs SET holder = $2, fence = fence + 1, lease_ends_at = $4
         WHERE id = (SELECT id FROM jobs WHERE kind = $1 AND lease_ends_at <= $3 ORDER BY id LIMIT 1
             FOR UPDATE SKIP LOCKED)
         RETURNING id, fence, cache, target, failures",
};
const RELEASE: Sql = both!(
    "UPDATE jobs SET holder = NULL, lease_ends_at = 0 WHERE id = $1 AND fence = $2 AND holder IS NOT NULL"
);
const FAIL: Sql = both!(
    "UPDATE jobs SET holder = NULL, lease_ends_at = $4, failures = failures + 1, error = $3
     WHERE id = $1 AND fence = $2 AND holder IS NOT NULL"
);
// The update changes nothing; it locks the row.
const HOLD: Sql = both!(
    "UPDATE jobs SET fence = fence WHERE id = $1 AND fence = $2 AND holder IS NOT NULL RETURNING cursor, done"
);
const ADVANCE: Sql = both!(
    "UPDATE jobs SET cursor = $2, done = done + $3, stepped_at = $4, lease_ends_at = $5, failures = 0, error = NULL
     WHERE id = $1"
);
const TRY_NOW: Sql =
    both!("UPDATE jobs SET lease_ends_at = 0, failures = 0, error = NULL WHERE id = $1 AND holder IS NULL");
const FINISH: Sql = both!("DELETE FROM jobs WHERE id = $1");
/// Where a job stands, at the beginning of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JobProgress {
    /// The job.
    pub(crate) job: JobId,
    /// Where the step begins; `None` is the start.
    pub(crate) cursor: Option<Vec<u8>>,
    /// Rows so far.
    pub(crate) rows_done: u64,
}

/// Opens a job, or finds the open one of the same kind, cache and target.
pub(crate) async fn open_job(
    tx: &mut Transaction,
    kind: JobKind,
    cache: Option<CacheId>,
    target: Option<TargetId>,
    at: UnixSeconds,
) -> Result<JobId> {
    let arguments = [
        Text(kind.as_str()),
        OptionalNumber(cache.map(|cache| cache.0)),
        OptionalNumber(target.map(|target| target.0)),
        Number(at),
    ];
    let rows = tx.rows(OPEN, &arguments).await?;
    let row = rows.first().ok_or_else(|| corrupt(TABLE, "a row that was just made is gone"))?;
    Ok(JobId(row.column(0, TABLE)?))
}

/// Forgets the failures of a job, and lets it be taken up at once, unless it is held.
pub(crate) async fn try_now(tx: &mut Transaction, job: JobId) -> Result<()> {
    tx.run(TRY_NOW, &[Number(job.0)]).await.map(drop)
}

pub(crate) async fn list_jobs(tx: &mut Transaction, after: Option<JobId>, limit: u32) -> Result<Vec<Job>> {
    let arguments = [Number(after.map_or(0, |job| job.0)), Number(i64::from(limit))];
    tx.rows(LIST, &arguments).await?.iter().map(read_job).collect()
}

pub(crate) async fn list_jobs_by_need(
    tx: &mut Transaction,
    now: UnixSeconds,
    limit: u32,
) -> Result<JobsByNeed> {
    let rows = tx.rows(LIST_BY_NEED, &[Number(now), Number(i64::from(limit))]).await?;
    let count = |place: usize| match rows.first() {
        Some(row) => unsigned(TABLE, row.column(COUNTS + place, TABLE)?),
        None => Ok(0),
    };
    Ok(JobsByNeed {
        open: count(0)?,
        running: count(1)?,
        failing: count(2)?,
        jobs: rows.iter().map(read_job).collect::<Result<_>>()?,
    })
}

pub(crate) async fn find_job(tx: &mut Transaction, kind: JobKind) -> Result<Option<JobId>> {
    let row = tx.optional(FIND, &[Text(kind.as_str())]).await?;
    row.map(|row| Ok(JobId(row.column(0, TABLE)?))).transpose()
}

pub(crate) async fn job_backlog(tx: &mut Transaction, now: UnixSeconds) -> Result<Vec<JobBacklog>> {
    tx.rows(BACKLOG, &[Number(now)]).await?.iter().map(read_backlog).collect()
}

pub(crate) async fn lease_job(
    tx: &mut Transaction,
    kind: JobKind,
    holder: &str,
    now: UnixSeconds,
    ends_at: UnixSeconds,
) -> Result<Option<JobLease>> {
    let arguments = [Text(kind.as_str()), Text(holder), Number(now), Number(ends_at)];
    let rows = tx.rows(LEASE, &arguments).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(JobLease {
        job: JobId(row.column(0, TABLE)?),
        fence: row.column(1, TABLE)?,
        cache: row.column::<Option<i64>>(2, TABLE)?.map(CacheId),
        target: row.column::<Option<i64>>(3, TABLE)?.map(TargetId),
        failures: unsigned(TABLE, row.column(4, TABLE)?)?,
    }))
}

pub(crate) async fn release_job(tx: &mut Transaction, lease: &JobLease) -> Result<()> {
    let released = tx.run(RELEASE, &[Number(lease.job.0), Number(lease.fence)]).await?;
    if released == 1 { Ok(()) } else { Err(Error::JobLeaseLost) }
}

pub(crate) async fn fail_job(
    tx: &mut Transaction,
    lease: &JobLease,
    error: &str,
    retry_at: UnixSeconds,
) -> Result<()> {
    let arguments = [Number(lease.job.0), Number(lease.fence), Text(error), Number(retry_at)];
    let noted = tx.run(FAIL, &arguments).await?;
    if noted == 1 { Ok(()) } else { Err(Error::JobLeaseLost) }
}

/// Begins a step: fails with [`Error::JobLeaseLost`] unless the lease is the one that counts, and
/// keeps it so until the transaction ends.
pub(crate) async fn hold_job(tx: &mut Transaction, lease: &JobLease) -> Result<JobProgress> {
    let rows = tx.rows(HOLD, &[Number(lease.job.0), Number(lease.fence)]).await?;
    let row = rows.first().ok_or(Error::JobLeaseLost)?;
    Ok(JobProgress {
        job: lease.job,
        cursor: row.column(0, TABLE)?,
        rows_done: unsigned(TABLE, row.column(1, TABLE)?)?,
    })
}

/// Ends a step that is not the last one: moves the cursor, counts `rows` and renews the lease until
/// `ends_at`. Only after [`hold_job`] in the same transaction.
pub(crate) async fn advance_job(
    tx: &mut Transaction,
    lease: &JobLease,
    cursor: &[u8],
    rows: u64,
    at: UnixSeconds,
    ends_at: UnixSeconds,
) -> Result<()> {
    let arguments = [Number(lease.job.0), Bytes(cursor), Number(signed(rows)), Number(at), Number(ends_at)];
    tx.run(ADVANCE, &arguments).await.map(drop)
}

/// Ends the last step: the job is no more. Only after [`hold_job`] in the same transaction.
pub(crate) async fn finish_job(tx: &mut Transaction, lease: &JobLease) -> Result<()> {
    tx.run(FINISH, &[Number(lease.job.0)]).await.map(drop)
}

fn read_job(row: &Row) -> Result<Job> {
    Ok(Job {
        id: JobId(row.column(0, TABLE)?),
        kind: row.column(1, TABLE)?,
        cache: row.column::<Option<i64>>(2, TABLE)?.map(CacheId),
        cache_name: row.column(3, TABLE)?,
        target: row.column::<Option<i64>>(4, TABLE)?.map(TargetId),
        target_name: row.column(5, TABLE)?,
        rows_done: unsigned(TABLE, row.column(6, TABLE)?)?,
        holder: row.column(7, TABLE)?,
        lease_ends_at: row.column(8, TABLE)?,
        failures: unsigned(TABLE, row.column(9, TABLE)?)?,
        created_at: row.column(10, TABLE)?,
        stepped_at: row.column(11, TABLE)?,
        error: row.column(12, TABLE)?,
    })
}

fn read_backlog(row: &Row) -> Result<JobBacklog> {
    let (running, all) = (unsigned(TABLE, row.column(1, TABLE)?)?, unsigned(TABLE, row.column(2, TABLE)?)?);
    Ok(JobBacklog {
        kind: row.column(0, TABLE)?,
        running,
        waiting: all - running,
        rows_done: unsigned(TABLE, row.column(3, TABLE)?)?,
        oldest_created_at: row.column(4, TABLE)?,
        failures_max: unsigned(TABLE, row.column(5, TABLE)?)?,
    })
}
