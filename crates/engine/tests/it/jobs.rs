//! The deletion of a cache as a job: a crash at every step, other processes that take over, and
//! pushes and reads beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::{
    Installation, create_cache, create_main, decompress, engine_over, ingest, path, push, served, settings,
};
use async_trait::async_trait;
use dormer_engine::{Clock, JobRunner, JobSettings, OutboxLimits, SystemClock};
use dormer_index::{
    CacheActivity, CacheId, CounterIndex as _, Day, Error, ExpiryDefaults, HistoryDay, Index, Job,
    JobBacklog, JobId, JobIndex, JobKind, JobLease, JobStep, JobsByNeed, OutboxIndex as _, OutboxPosition,
    Result, SqlIndex, TargetId, UnixSeconds,
};
use dormer_testkit::{Random, check_invariants, package_nar};
use prometheus::core::Collector as _;

/// A clock that tests move.
#[derive(Debug)]
pub(crate) struct TestClock(pub(crate) AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> UnixSeconds {
        self.0.load(Ordering::SeqCst)
    }
}

pub(crate) fn clock_at(now: UnixSeconds) -> Arc<TestClock> {
    Arc::new(TestClock(AtomicI64::new(now)))
}

/// Jobs in a process that dies at its call number `crash_at`, with that call's effect kept or
/// dropped.
#[derive(Debug)]
pub(crate) struct FaultJobs {
    inner: Arc<SqlIndex>,
    calls: AtomicU64,
    crash_at: u64,
    effect_kept: bool,
    pub(crate) crashed: AtomicBool,
}

impl FaultJobs {
    pub(crate) fn crash_at(inner: Arc<SqlIndex>, crash_at: u64, effect_kept: bool) -> Arc<Self> {
        Arc::new(Self {
            inner,
            calls: AtomicU64::new(0),
            crash_at,
            effect_kept,
            crashed: AtomicBool::new(false),
        })
    }

    async fn call<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        // The kind of error does not matter: nobody lives to see it.
        let dead = || Err(Error::CacheGone);
        if self.crashed.load(Ordering::SeqCst) {
            return dead();
        }
        if self.calls.fetch_add(1, Ordering::SeqCst) == self.crash_at {
            self.crashed.store(true, Ordering::SeqCst);
            if self.effect_kept {
                work.await?;
            }
            return dead();
        }
        work.await
    }
}

#[async_trait]
impl JobIndex for FaultJobs {
    async fn open_job(
        &self,
        kind: JobKind,
        cache: Option<CacheId>,
        target: Option<TargetId>,
        at: UnixSeconds,
    ) -> Result<JobId> {
        self.call(self.inner.open_job(kind, cache, target, at)).await
    }
    async fn list_jobs(&self, after: Option<JobId>, limit: u32) -> Result<Vec<Job>> {
        self.call(self.inner.list_jobs(after, limit)).await
    }
    async fn list_jobs_by_need(&self, now: UnixSeconds, limit: u32) -> Result<JobsByNeed> {
        self.call(self.inner.list_jobs_by_need(now, limit)).await
    }
    async fn find_job(&self, kind: JobKind) -> Result<Option<JobId>> {
        self.call(self.inner.find_job(kind)).await
    }
    async fn job_backlog(&self, now: UnixSeconds) -> Result<Vec<JobBacklog>> {
        self.call(self.inner.job_backlog(now)).await
    }
    async fn lease_job(
        &self,
        kind: JobKind,
        holder: &str,
        now: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<Option<JobLease>> {
        self.call(self.inner.lease_job(kind, holder, now, ends_at)).await
    }
    async fn release_job(&self, lease: &JobLease) -> Result<()> {
        self.call(self.inner.release_job(lease)).await
    }
    async fn fail_job(&self, lease: &JobLease, error: &str, retry_at: UnixSeconds) -> Result<()> {
        self.call(self.inner.fail_job(lease, error, retry_at)).await
    }
    async fn delete_cache_step(
        &self,
        lease: &JobLease,
        limit: u32,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<JobStep> {
        self.call(self.inner.delete_cache_step(lease, limit, at, ends_at)).await
    }
    async fn open_expire_jobs(
        &self,
        defaults: &ExpiryDefaults,
        at: UnixSeconds,
        since: UnixSeconds,
    ) -> Result<u64> {
        self.call(self.inner.open_expire_jobs(defaults, at, since)).await
    }
    async fn expire_cache_step(
        &self,
        lease: &JobLease,
        defaults: &ExpiryDefaults,
        limit: u32,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<JobStep> {
        self.call(self.inner.expire_cache_step(lease, defaults, limit, at, ends_at)).await
    }
    async fn spread_damage_step(
        &self,
        lease: &JobLease,
        limit: u32,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<JobStep> {
        self.call(self.inner.spread_damage_step(lease, limit, at, ends_at)).await
    }
    async fn tend_counters(&self, at: UnixSeconds, since: UnixSeconds) -> Result<bool> {
        self.call(self.inner.tend_counters(at, since)).await
    }
    async fn add_activity(&self, day: Day, activity: &[CacheActivity]) -> Result<()> {
        self.call(self.inner.add_activity(day, activity)).await
    }
    async fn record_sizes(&self, day: Day, after: CacheId, limit: u32) -> Result<Option<CacheId>> {
        self.call(self.inner.record_sizes(day, after, limit)).await
    }
    async fn trim_history(&self, day: Day, limit: u32) -> Result<u64> {
        self.call(self.inner.trim_history(day, limit)).await
    }
    async fn trim_outbox(
        &self,
        keep_since: UnixSeconds,
        give_up_before: UnixSeconds,
        limit: u32,
    ) -> Result<u64> {
        self.call(self.inner.trim_outbox(keep_since, give_up_before, limit)).await
    }
    async fn sweep_sessions(&self, now: UnixSeconds, limit: u32) -> Result<u64> {
        self.call(self.inner.sweep_sessions(now, limit)).await
    }
    async fn recount_step(
        &self,
        lease: &JobLease,
        limit: u32,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<JobStep> {
        self.call(self.inner.recount_step(lease, limit, at, ends_at)).await
    }
}

/// Two rows a step, so that a small cache has many steps.
fn runner(jobs: Arc<dyn JobIndex>, clock: Arc<dyn Clock>) -> JobRunner {
    let settings = JobSettings {
        lease_seconds: 30,
        poll: Duration::from_millis(2),
        step_rows_max: 2,
        ..JobSettings::default()
    };
    JobRunner::new(jobs, clock, "test".to_owned(), settings)
}

pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < Duration::from_mins(1), "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) async fn has_no_job(jobs: &SqlIndex) -> bool {
    jobs.list_jobs(None, 1).await.expect("the index answers").is_empty()
}

/// The cache `main` with 5 paths and an upload alias, deleted; the cache `other` with one of the
/// paths.
async fn deleted_cache(installation: &Installation) -> (Arc<SqlIndex>, dormer_engine::Engine, Vec<Vec<u8>>) {
    let index = Arc::new(installation.index().await);
    let engine =
        engine_over(Arc::clone(&index) as Arc<dyn Index>, Arc::clone(&installation.blobs), settings());
    let (main, other) = (create_main(&engine).await, create_cache(&engine, "other").await);
    let mut random = Random::new(3);
    let nars: Vec<Vec<u8>> = (0..6).map(|_| package_nar(&mut random, 5_000, &[])).collect();
    for (number, nar) in (0..5).zip(&nars) {
        push(&engine, &main, &path(number), nar).await.expect("nothing crashes yet");
    }
    let ingested = ingest(&engine, &nars[5]).await.expect("nothing crashes yet");
    engine.commit_alias(&main, ingested, "f.nar.xz", "xz").await.expect("nothing crashes yet");
    push(&engine, &other, &path(0), &nars[0]).await.expect("nothing crashes yet");
    engine.delete_cache(&main, None).await.expect("nothing crashes yet");
    (index, engine, nars)
}

#[tokio::test]
async fn a_crash_at_any_call_of_a_deletion_is_survived() {
    for effect_kept in [false, true] {
        for crash_at in 0.. {
            let when = format!("after a crash at call {crash_at}, effect kept: {effect_kept}");
            let installation = Installation::new();
            let (index, engine, nars) = deleted_cache(&installation).await;
            let faults = FaultJobs::crash_at(Arc::clone(&index), crash_at, effect_kept);
            let clock = clock_at(1_800_000_000);
            runner(faults.clone(), clock.clone())
                .run(until("it crashes or ends", async || {
                    faults.crashed.load(Ordering::SeqCst) || has_no_job(&index).await
                }))
                .await;
            // The next process waits until the lease ends.
            clock.0.fetch_add(31, Ordering::SeqCst);
            runner(index.clone(), clock).run(until("it is done", async || has_no_job(&index).await)).await;
            let audit = index.inventory().await.expect("the index answers");
            assert_eq!(audit.unnamed_nars.len(), 5, "the other cache names one of 6 NARs, {when}");
            assert_eq!(check_invariants(audit, &*installation.blobs, &[], &[]).await, [], "{when}");
            let other = engine.find_cache("other").await.unwrap().expect("it is there");
            let bytes = served(&engine, &other, &nars[0], None).await.unwrap();
            assert!(bytes.is_some_and(|bytes| decompress(&bytes) == nars[0]), "{when}");
            if !faults.crashed.load(Ordering::SeqCst) {
                assert!(crash_at >= 6, "the deletion has only {crash_at} calls");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_runner_that_stops_gives_its_job_back() {
    let installation = Installation::new();
    let (index, _engine, _) = deleted_cache(&installation).await;
    let now = 1_800_000_000;
    let first = async || index.list_jobs(None, 1).await.unwrap().pop();
    let begun = Instant::now();
    runner(index.clone(), clock_at(now))
        .run(until("it has begun", async || first().await.is_none_or(|job| job.rows_done > 0)))
        .await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    if let Some(job) = first().await {
        assert_eq!(job.holder, None, "any process may take it up at once");
        runner(index.clone(), clock_at(now))
            .run(until("it is done", async || has_no_job(&index).await))
            .await;
    }
    assert_eq!(index.inventory().await.unwrap().unnamed_nars.len(), 5);
}

#[tokio::test]
async fn a_runner_counts_anew_and_trims_the_outbox() {
    let installation = Installation::new();
    let (index, _engine, _) = deleted_cache(&installation).await;
    let settings = JobSettings {
        poll: Duration::from_millis(2),
        step_rows_max: 2,
        recount_seconds: Some(1),
        outbox: Some(OutboxLimits { keep_seconds: 100, give_up_seconds: 200 }),
        ..JobSettings::default()
    };
    let runner = JobRunner::new(index.clone(), clock_at(1_800_000_000), "test".to_owned(), settings);
    let runner = runner.with_counters(index.clone());
    let trimmed = async || index.outbox_after(OutboxPosition::START, 1).await.unwrap().is_empty();
    assert!(!trimmed().await);
    let before = index.stored_counts().await.unwrap();
    runner.run(until("both are done", async || trimmed().await && has_no_job(&index).await)).await;
    let after = index.stored_counts().await.unwrap();
    assert_eq!((before.paths.paths, after.paths.paths), (6, 1), "five are gone with their cache");
    assert_eq!((after.is_complete, after.nars, after.pack_bytes), (true, 6, before.pack_bytes));
    assert!(!runner.stored_metrics().collect().is_empty());
    let due = index.tend_counters(1_800_000_001, 1_799_999_999).await.unwrap();
    assert!(!due && has_no_job(&index).await, "the last recount is of now");
}

/// What happened in memory and what the counters say is written down by day, also by a runner that
/// is told to stop, and goes with its cache.
#[tokio::test]
async fn a_runner_writes_the_history_down() {
    let installation = Installation::new();
    let index = Arc::new(installation.index().await);
    let engine =
        engine_over(Arc::clone(&index) as Arc<dyn Index>, Arc::clone(&installation.blobs), settings());
    let main = create_main(&engine).await;
    let mut random = Random::new(5);
    for number in 0..3 {
        push(&engine, &main, &path(number), &package_nar(&mut random, 2_000, &[])).await.unwrap();
    }
    engine.note_pull(&main);
    let clock = clock_at(1_800_000_000);
    let today = Day::of(1_800_000_000);
    let with_history = || runner(index.clone(), clock.clone()).with_history(engine.activity());
    let of_main = async || index.history(Some(main.id), today.before(9)).await.unwrap();
    let seen = "sizes and activity are written";
    let is_written = async || of_main().await.iter().any(|day| day.counts.is_some() && day.pushes > 0);
    with_history().run(until(seen, is_written)).await;
    let counts = index.path_counts(main.id).await.unwrap();
    let first = HistoryDay { day: today, counts: Some(counts), stored_bytes: None, pushes: 3, pulls: 1 };
    assert_eq!(of_main().await, [first]);

    // The next day, a runner that stops at once writes what was counted.
    clock.0.fetch_add(86_400, Ordering::SeqCst);
    let stopping = with_history();
    stopping.run(async { engine.note_pull(&main) }).await;
    let days = of_main().await;
    assert_eq!((days.len(), days[1].counts, days[1].pulls), (2, None, 1), "nothing else changed: {days:?}");
    let all = index.history(None, today.before(9)).await.unwrap();
    assert_eq!(all[0].counts, Some(counts));
    assert!(all[0].stored_bytes.is_some_and(|bytes| bytes > 0), "{all:?}");

    engine.delete_cache(&main, None).await.unwrap();
    engine.note_pull(&main);
    with_history().run(until("it is deleted", async || has_no_job(&index).await)).await;
    assert_eq!(of_main().await, [], "the history goes with its cache, and none begins");
}

/// A holder that was silent for longer than its lease finds out by its next step, and changes
/// nothing.
#[tokio::test]
async fn two_runners_share_the_work_and_remove_everything_once() {
    let installation = Installation::new();
    let (index, _engine, _) = deleted_cache(&installation).await;
    let now = 1_800_000_000;
    let silent = index.lease_job(JobKind::DeleteCache, "silent", now, now + 30).await.unwrap().unwrap();
    index.delete_cache_step(&silent, 2, now, now + 30).await.unwrap();
    let done = || until("it is done", async || has_no_job(&index).await);
    let (a, b) = (runner(index.clone(), clock_at(now + 30)), runner(index.clone(), clock_at(now + 30)));
    tokio::join!(a.run(done()), b.run(done()));
    let step = index.delete_cache_step(&silent, 2, now, now + 30).await;
    assert!(matches!(step, Err(Error::JobLeaseLost)), "{step:?}");
    assert_eq!(index.inventory().await.unwrap().unnamed_nars.len(), 5);
}

#[tokio::test]
async fn a_step_that_fails_is_noted_and_tried_again() {
    let installation = Installation::new();
    let (index, _engine, _) = deleted_cache(&installation).await;
    // A job that fails for good: it is about no cache.
    let broken = index.open_job(JobKind::DeleteCache, None, None, 1).await.unwrap();
    let clock = clock_at(1_800_000_000);
    let only_broken = async || {
        let jobs = index.list_jobs(None, 10).await.unwrap();
        jobs.len() == 1 && jobs[0].id == broken && jobs[0].failures > 0
    };
    runner(index.clone(), clock.clone()).run(until("the other job is done", only_broken)).await;
    let job = index.list_jobs(None, 10).await.unwrap().remove(0);
    assert_eq!((job.failures, job.holder), (1, None));
    assert!(job.error.is_some_and(|error| error.contains("no cache")));
    assert_eq!(job.lease_ends_at, 1_800_000_002, "it is not tried again before");
    clock.0.fetch_add(2, Ordering::SeqCst);
    let failed_again = async || index.list_jobs(None, 10).await.unwrap()[0].failures == 2;
    runner(index.clone(), clock).run(until("it is tried again", failed_again)).await;
    assert_eq!(index.list_jobs(None, 10).await.unwrap()[0].lease_ends_at, 1_800_000_006);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_and_reads_beside_a_deletion_see_no_error() {
    let installation = Installation::new();
    let (index, engine, nars) = deleted_cache(&installation).await;
    let again = create_main(&engine).await;
    let jobs = runner(index.clone(), Arc::new(SystemClock));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(async move { jobs.run(async { drop(stopped.await) }).await });
    for (number, nar) in (0..6).zip(&nars) {
        push(&engine, &again, &path(number), nar).await.expect("a push beside a deletion");
        let bytes = served(&engine, &again, nar, None).await.expect("a read beside a deletion");
        assert!(bytes.is_some());
    }
    until("the deletion is done", async || has_no_job(&index).await).await;
    let begun = Instant::now();
    drop(stop);
    running.await.expect("no panic");
    assert!(begun.elapsed() < Duration::from_secs(1), "it stops at once");
    assert_eq!(index.inventory().await.unwrap().unnamed_nars.len(), 0, "the new cache names all of them");
}
