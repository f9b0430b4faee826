//! Jobs: work over a whole cache or target, in steps that any process can continue.
//!
//! [`contract`] states the port, and [`work`] holds the statements that keep a job's row.
//! [`delete_cache`], [`expire_cache`], [`recount`] and [`spread_damage`] are jobs. Publishing's
//! scans are jobs too; their steps run under the lease of their target (`publish/caches.rs`).
//! A topic that has a job of its own runs its step in one transaction: it holds the job, does its
//! work, and advances or finishes the job before it commits.

mod contract;
mod delete_cache;
pub(crate) mod expire_cache;
pub(crate) mod recount;
pub(crate) mod spread_damage;
pub(crate) mod work;

pub use contract::{
    ExpiryDefaults, Job, JobBacklog, JobId, JobIndex, JobKind, JobLease, JobStep, JobsByNeed,
};
use delete_cache::delete_cache_step;

use async_trait::async_trait;

use crate::Result;
use crate::contract::{CacheActivity, CacheId, Day, OutboxIndex as _, OutboxPosition, UnixSeconds};
use crate::publish::TargetId;
use crate::sql_index::{Lock, SqlIndex, Write};
use crate::topics::{counters, history, outbox, sessions};

#[async_trait]
impl JobIndex for SqlIndex {
    async fn open_job(
        &self,
        kind: JobKind,
        cache: Option<CacheId>,
        target: Option<TargetId>,
        at: UnixSeconds,
    ) -> Result<JobId> {
        self.write("open a job", async |mut tx| work::open_job(&mut tx, kind, cache, target, at).await).await
    }

    async fn list_jobs(&self, after: Option<JobId>, limit: u32) -> Result<Vec<Job>> {
        self.read("list jobs", async |mut tx| work::list_jobs(&mut tx, after, limit).await).await
    }

    async fn list_jobs_by_need(&self, now: UnixSeconds, limit: u32) -> Result<JobsByNeed> {
        self.read("list jobs by need", async |mut tx| work::list_jobs_by_need(&mut tx, now, limit).await)
            .await
    }

    async fn find_job(&self, kind: JobKind) -> Result<Option<JobId>> {
        self.read("find a job", async |mut tx| work::find_job(&mut tx, kind).await).await
    }

    async fn job_backlog(&self, now: UnixSeconds) -> Result<Vec<JobBacklog>> {
        self.read("count jobs", async |mut tx| work::job_backlog(&mut tx, now).await).await
    }

    async fn lease_job(
        &self,
        kind: JobKind,
        holder: &str,
        now: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<Option<JobLease>> {
        self.write(Write::from("take a job's lease").unless_done(), async |mut tx| {
            work::lease_job(&mut tx, kind, holder, now, ends_at).await
        })
        .await
    }

    async fn release_job(&self, lease: &JobLease) -> Result<()> {
        self.write(Write::from("give a job's lease back").unless_done(), async |mut tx| {
            work::release_job(&mut tx, lease).await
        })
        .await
    }

    async fn fail_job(&self, lease: &JobLease, error: &str, retry_at: UnixSeconds) -> Result<()> {
        self.write(Write::from("note why a job failed").unless_done(), async |mut tx| {
            work::fail_job(&mut tx, lease, error, retry_at).await
        })
        .await
    }

    async fn delete_cache_step(
        &self,
        lease: &JobLease,
        limit: u32,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<JobStep> {
        self.write(Write::from("delete what a deleted cache left").unless_done(), async |mut tx| {
            delete_cache_step(&mut tx, lease, limit, at, ends_at).await
        })
        .await
    }

    async fn open_expire_jobs(
        &self,
        defaults: &ExpiryDefaults,
        at: UnixSeconds,
        since: UnixSeconds,
    ) -> Result<u64> {
        self.write("open expire jobs", async |mut tx| {
            expire_cache::open_due(&mut tx, defaults, at, since).await
        })
        .await
    }

    async fn expire_cache_step(
        &self,
        lease: &JobLease,
        defaults: &ExpiryDefaults,
        limit: u32,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<JobStep> {
        let locks = [Lock::Cache(lease.cache()?.0)];
        let write = Write::from("remove what a cache keeps no longer").unless_done().with_locks(&locks);
        self.write(write, async |mut tx| {
            expire_cache::expire_cache_step(&mut tx, lease, defaults, limit, at, ends_at).await
        })
        .await
    }

    async fn spread_damage_step(
        &self,
        lease: &JobLease,
        limit: u32,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<JobStep> {
        self.write(Write::from("look which NARs need damaged chunks").unless_done(), async |mut tx| {
            spread_damage::spread_damage_step(&mut tx, lease, limit, at, ends_at).await
        })
        .await
    }

    async fn tend_counters(&self, at: UnixSeconds, since: UnixSeconds) -> Result<bool> {
        self.write(Write::from("tend the counters").unless_done(), async |mut tx| {
            let is_more = counters::fold(&mut tx).await?;
            counters::open_recount_if_due(&mut tx, at, since).await?;
            Ok(is_more)
        })
        .await
    }

    async fn add_activity(&self, day: Day, activity: &[CacheActivity]) -> Result<()> {
        if activity.is_empty() {
            return Ok(());
        }
        self.write(Write::from("write down pushes and pulls").unless_done(), async |mut tx| {
            history::add_activity(&mut tx, day, activity).await
        })
        .await
    }

    async fn record_sizes(&self, day: Day, after: CacheId, limit: u32) -> Result<Option<CacheId>> {
        self.write("write down what caches hold", async |mut tx| {
            history::record_sizes(&mut tx, day, after, limit).await
        })
        .await
    }

    async fn trim_history(&self, day: Day, limit: u32) -> Result<u64> {
        self.write("trim the history", async |mut tx| history::trim(&mut tx, day, limit).await).await
    }

    async fn trim_outbox(
        &self,
        keep_since: UnixSeconds,
        give_up_before: UnixSeconds,
        limit: u32,
    ) -> Result<u64> {
        // Most calls find nothing, and then write nothing.
        let oldest = self.outbox_after(OutboxPosition::START, 1).await?;
        if oldest.first().is_none_or(|row| row.at >= keep_since) {
            return Ok(0);
        }
        self.write(Write::from("trim the outbox").unless_done(), async |mut tx| {
            outbox::trim(&mut tx, keep_since, give_up_before, limit).await
        })
        .await
    }

    async fn sweep_sessions(&self, now: UnixSeconds, limit: u32) -> Result<u64> {
        self.write("sweep sessions", async |mut tx| sessions::sweep(&mut tx, now, limit).await).await
    }

    async fn recount_step(
        &self,
        lease: &JobLease,
        limit: u32,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<JobStep> {
        self.write(Write::from("count what is stored").unless_done(), async |mut tx| {
            recount::recount_step(&mut tx, lease, limit, at, ends_at).await
        })
        .await
    }
}
