//! The port of jobs. Its conventions are those of [`Index`](crate::Index): every method is one
//! transaction, and time is an argument.

use async_trait::async_trait;

use crate::contract::{CacheActivity, CacheId, Day, UnixSeconds};
use crate::publish::TargetId;
use crate::{Error, Result};

/// Number of a job's row; never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub i64);

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobKind {
    /// Removes the objects, graces and aliases of a deleted cache. The holder of the job's lease
    /// runs it.
    DeleteCache,
    /// Removes what a cache keeps no longer by its retention, quota and pins. The holder of the
    /// job's lease runs it.
    ExpireCache,
    /// Publishing's work over a whole cache ([`CacheScan`](crate::CacheScan)): compares the cache
    /// with a target's listing, and notes all of it as pending. The holder of the target's lease
    /// runs it.
    ScanCache,
    /// Frees what nothing needs ([`CollectIndex`](crate::CollectIndex)). The holder of the job's
    /// lease runs it.
    Collect,
    /// Looks which NARs need a chunk that was found damaged, so that each of them counts as
    /// damaged, and tells followers of those that were healed. The holder of the job's lease runs
    /// it.
    SpreadDamage,
    /// Reads stored bytes again and checks their hashes ([`ScrubIndex`](crate::ScrubIndex)). The
    /// holder of the job's lease runs it, and gives the lease back now and then, so that other jobs
    /// get their turn.
    Scrub,
    /// Counts everything anew ([`CounterIndex`](crate::CounterIndex)). The holder of the job's lease
    /// runs it.
    Recount,
}

impl JobKind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::DeleteCache,
        Self::ExpireCache,
        Self::ScanCache,
        Self::Collect,
        Self::SpreadDamage,
        Self::Scrub,
        Self::Recount,
    ];

    /// The kind in the table, in `dormer jobs` and as a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DeleteCache => "delete-cache",
            Self::ExpireCache => "expire-cache",
            Self::ScanCache => "scan-cache",
            Self::Collect => "collect",
            Self::SpreadDamage => "spread-damage",
            Self::Scrub => "scrub",
            Self::Recount => "recount",
        }
    }
}

/// A job as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Row number.
    pub id: JobId,
    /// [`JobKind::as_str`]; a text, because a newer Dormer may know more kinds.
    pub kind: String,
    /// The cache that the job is about, deleted or not.
    pub cache: Option<CacheId>,
    /// The cache's name.
    pub cache_name: Option<String>,
    /// The edge target that the job is about.
    pub target: Option<TargetId>,
    /// The target's name.
    pub target_name: Option<String>,
    /// Rows so far.
    pub rows_done: u64,
    /// The process that took the lease last and has not given it back. A job of a target has the
    /// target's lease.
    pub holder: Option<String>,
    /// Nobody else may take the lease before; without a holder, the next try is not before.
    pub lease_ends_at: UnixSeconds,
    /// Failed steps since the last good one.
    pub failures: u64,
    /// When it was opened.
    pub created_at: UnixSeconds,
    /// When the last good step ended.
    pub stepped_at: Option<UnixSeconds>,
    /// Why the last step failed; `None` after a good one.
    pub error: Option<String>,
}

/// Open jobs, those first that an operator should see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobsByNeed {
    /// The first of them.
    pub jobs: Vec<Job>,
    /// How many are open.
    pub open: u64,
    /// Those of them whose lease a process holds.
    pub running: u64,
    /// Those of them whose last step failed.
    pub failing: u64,
}

/// The jobs of a kind, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobBacklog {
    /// [`JobKind::as_str`].
    pub kind: String,
    /// Jobs whose lease a process holds.
    pub running: u64,
    /// The others.
    pub waiting: u64,
    /// Rows that these jobs have done so far.
    pub rows_done: u64,
    /// When the oldest was opened.
    pub oldest_created_at: UnixSeconds,
    /// The most steps that failed in a row for one of them.
    pub failures_max: u64,
}

/// The right to run a job's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobLease {
    /// The job.
    pub job: JobId,
    /// Grows with every lease of the job; an older one is worth nothing.
    pub fence: i64,
    /// The cache that the job is about.
    pub cache: Option<CacheId>,
    /// The edge target that the job is about.
    pub target: Option<TargetId>,
    /// Failed steps since the last good one.
    pub failures: u64,
}

impl JobLease {
    /// The cache of a job that cannot be without one.
    pub(crate) fn cache(&self) -> Result<CacheId> {
        self.cache.ok_or_else(|| Error::Corrupt { table: "jobs", what: "no cache".to_owned() })
    }
}

/// What the server keeps where a cache says nothing, and the grace of what goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpiryDefaults {
    /// How long an unused object is kept; 0 means for ever.
    pub retention_seconds: i64,
    /// Most bytes of the NARs of a cache, as served; 0 means no quota.
    pub quota_bytes: u64,
    /// How long the NAR of an expired object stays readable.
    pub grace_seconds: i64,
    /// How long a build log is kept after it came; 0 means as long as the objects of its build.
    pub log_retention_seconds: i64,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobStep {
    /// Rows that it changed.
    pub rows: u64,
    /// Whether it was the last one. Then the job's row is gone.
    pub is_last: bool,
}

/// Jobs.
#[async_trait]
pub trait JobIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Opens a job; there is at most one of each (kind, cache, target). An open one is returned as
    /// it is, so repeating this call is harmless.
    async fn open_job(
        &self,
        kind: JobKind,
        cache: Option<CacheId>,
        target: Option<TargetId>,
        at: UnixSeconds,
    ) -> Result<JobId>;
    /// Open jobs after one, oldest first.
    async fn list_jobs(&self, after: Option<JobId>, limit: u32) -> Result<Vec<Job>>;
    /// At most `limit` open jobs, and how many there are: first those whose last step failed, then
    /// those that a process runs at `now`, then the others, and the oldest of each first. One
    /// statement, which reads all open jobs.
    async fn list_jobs_by_need(&self, now: UnixSeconds, limit: u32) -> Result<JobsByNeed>;
    /// The open job of a kind whose jobs belong to no cache and no target. One statement.
    async fn find_job(&self, kind: JobKind) -> Result<Option<JobId>>;
    /// How many jobs of each kind are open; a kind without any is left out. One statement.
    async fn job_backlog(&self, now: UnixSeconds) -> Result<Vec<JobBacklog>>;
    /// Takes, for `holder`, the lease of the oldest job of a kind whose last lease has ended at
    /// `now`, until `ends_at`. `None` if no job is free, or if another process takes that job at
    /// the same moment. Two calls never get the same lease. A lease whose answer was lost has to
    /// run out.
    async fn lease_job(
        &self,
        kind: JobKind,
        holder: &str,
        now: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<Option<JobLease>>;
    /// Gives a lease back, so that any process may take the job up at once. [`Error::JobLeaseLost`]
    /// if it was lost.
    async fn release_job(&self, lease: &JobLease) -> Result<()>;
    /// Gives a lease back after a failed step, notes why, and lets nobody take the job up before
    /// `retry_at`. [`Error::JobLeaseLost`] if it was lost.
    async fn fail_job(&self, lease: &JobLease, error: &str, retry_at: UnixSeconds) -> Result<()>;

    /// One step of [`JobKind::DeleteCache`]: removes at most about `limit` rows, moves the cursor
    /// past them and renews the lease until `ends_at`, all in one transaction. The last step
    /// removes the job's row in the same transaction. [`Error::JobLeaseLost`], and no effect, if
    /// another process has taken the lease or the job is done.
    async fn delete_cache_step(
        &self,
        lease: &JobLease,
        limit: u32,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<JobStep>;

    /// Opens a job of [`JobKind::ExpireCache`] for each cache that does not keep everything or has
    /// documents, and whose last one ended at `since` or before; returns how many it opened.
    async fn open_expire_jobs(
        &self,
        defaults: &ExpiryDefaults,
        at: UnixSeconds,
        since: UnixSeconds,
    ) -> Result<u64>;
    /// One step of [`JobKind::ExpireCache`]: looks at `limit` objects, and removes those that may
    /// go and what they free, at most about five times `limit`. Each leaves a grace and an outbox
    /// row. After every step each reference that an object of the cache had in it is still there.
    /// Like [`JobIndex::delete_cache_step`] otherwise.
    async fn expire_cache_step(
        &self,
        lease: &JobLease,
        defaults: &ExpiryDefaults,
        limit: u32,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<JobStep>;

    /// One step of [`JobKind::SpreadDamage`]: looks at the recipes of `limit` NARs, or at `limit`
    /// rows of damage. After the last step every NAR that needs a damaged chunk counts as damaged.
    /// Like [`JobIndex::delete_cache_step`] otherwise.
    async fn spread_damage_step(
        &self,
        lease: &JobLease,
        limit: u32,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<JobStep>;

    /// Sums up a page of the changes of counters that pushes left (PostgreSQL), and opens a job of
    /// [`JobKind::Recount`] if the last one ended at `since` or before. Returns whether changes may
    /// be left for another call.
    async fn tend_counters(&self, at: UnixSeconds, since: UnixSeconds) -> Result<bool>;
    /// Adds pushes and pulls to a day of their caches and of the installation. Those of a cache
    /// that is gone are counted for the installation alone. Not repeated if it may have had its
    /// effect.
    async fn add_activity(&self, day: Day, activity: &[CacheActivity]) -> Result<()>;
    /// Writes down what the next `limit` caches hold on a day, for the history; the first page,
    /// after cache 0, also what the installation holds. Returns the last cache of the page, and
    /// `None` if no cache is left.
    async fn record_sizes(&self, day: Day, after: CacheId, limit: u32) -> Result<Option<CacheId>>;
    /// Deletes at most `limit` rows of the history that are [`HISTORY_DAYS`](crate::HISTORY_DAYS)
    /// older than a day, or more. Returns how many are gone.
    async fn trim_history(&self, day: Day, limit: u32) -> Result<u64>;
    /// Deletes the first rows of the outbox, at most `limit`, as far as nobody needs them. Rows
    /// since `keep_since` stay: a cache that is new to a target looks through them for what it had
    /// before. Older ones stay while a target or the journal has not followed them, unless they are
    /// from before `give_up_before`. The targets that miss them are told
    /// ([`PublishTarget::missed_changes`](crate::PublishTarget)), and the journal writes a new
    /// snapshot. Returns how many rows are gone.
    async fn trim_outbox(
        &self,
        keep_since: UnixSeconds,
        give_up_before: UnixSeconds,
        limit: u32,
    ) -> Result<u64>;
    /// Deletes the rows of sessions that ended a while ago: at most `limit` parts, or else
    /// sessions. Returns how many rows are gone. The rows are their own cursor: what is left is
    /// what is to be done.
    async fn sweep_sessions(&self, now: UnixSeconds, limit: u32) -> Result<u64>;
    /// One step of [`JobKind::Recount`]: counts at most `limit` objects, NARs or packs. The
    /// counters are right after every step. Like [`JobIndex::delete_cache_step`] otherwise.
    async fn recount_step(
        &self,
        lease: &JobLease,
        limit: u32,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<JobStep>;
}
