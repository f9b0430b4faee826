//! One step of the job.

use super::cursor::{Cursor, Phase};
use super::policy::{POLICY, Policy, read_policy};
use crate::Result;
use crate::contract::{CacheId, UnixSeconds};
use crate::jobs::contract::{ExpiryDefaults, JobLease, JobStep};
use crate::jobs::work::{advance_job, finish_job, hold_job};
use crate::sql::Argument::Number;
use crate::sql::{Sql, Transaction, both};

const NOTE_EXPIRED: Sql = both!("UPDATE caches SET expired_at = $2 WHERE id = $1");

/// The arguments of every step.
pub(super) struct Step {
    pub(super) cache: CacheId,
    pub(super) policy: Policy,
    pub(super) defaults: ExpiryDefaults,
    pub(super) limit: u32,
    pub(super) now: UnixSeconds,
}

/// What a step leads to.
pub(super) struct Outcome {
    /// `None`: the job is done.
    pub(super) next: Option<Cursor>,
    /// Rows that it changed.
    pub(super) rows: u64,
}

impl Outcome {
    /// Whatever came before, documents come last.
    fn unless_documents_follow(self, phase: Phase) -> Self {
        match self.next {
            None if phase != Phase::Documents => Self { next: Some(Cursor::at(Phase::Documents, 0)), ..self },
            _ => self,
        }
    }
}

/// Runs one step. The caller holds the cache's lock.
pub(crate) async fn expire_cache_step(
    tx: &mut Transaction,
    lease: &JobLease,
    defaults: &ExpiryDefaults,
    limit: u32,
    at: UnixSeconds,
    ends_at: UnixSeconds,
) -> Result<JobStep> {
    let progress = hold_job(tx, lease).await?;
    let cache = lease.cache()?;
    let cursor = progress.cursor.as_deref().map(Cursor::decode).transpose()?;
    let cursor = cursor.unwrap_or(Cursor::at(Phase::Rules, 0));
    let Outcome { next, rows } = match tx.optional(POLICY, &[Number(cache.0)]).await? {
        None => Outcome { next: None, rows: 0 },
        Some(row) => {
            let policy = read_policy(&row, defaults)?;
            let step = Step { cache, policy, defaults: *defaults, limit: limit.max(1), now: at };
            match cursor.phase {
                Phase::Rules | Phase::Quota => step.remove_page(tx, cursor).await?,
                Phase::SumObjects => step.sum_objects(tx, cursor).await?,
                Phase::SumGraces => step.sum_graces(tx, cursor).await?,
                Phase::CutGraces => step.cut_graces(tx, cursor).await?,
                Phase::Documents => step.remove_documents(tx, cursor).await?,
            }
            .unless_documents_follow(cursor.phase)
        }
    };
    if let Some(cursor) = next {
        advance_job(tx, lease, &cursor.encode(), rows, at, ends_at).await?;
    } else {
        tx.run(NOTE_EXPIRED, &[Number(cache.0), Number(at)]).await?;
        finish_job(tx, lease).await?;
    }
    Ok(JobStep { rows, is_last: next.is_none() })
}
