//! The scrub finds what is damaged, every path that needs it is missing then, and one push heals
//! all of them. With a crash at every write, on SQLite and on PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormer_blobs::{BlobKey, Blobs};
use dormer_engine::{
    Clock, CollectSettings, Collector, Engine, FULL_PPM, JobRunner, JobSettings, MasterKey, ScrubOptions,
    ScrubReport, Scrubber, SystemClock,
};
use dormer_index::{
    Cache, Index, JobIndex, JobKind, JobLease, PackNumber, PostgresIndex, PostgresOptions, ScrubIndex,
};
use dormer_testkit::{FaultScrub, Faults, Random, package_nar, rebuilt};

use crate::common::{
    Installation, create_main, decompress, engine_over, new_database, path, push, served, settings,
};
use crate::jobs::until;
use crate::odd_store::OddStore;

const ANSWERS: &str = "nothing is wrong";
const FULL: ScrubOptions = ScrubOptions { share_ppm: FULL_PPM, bytes_per_second: None };
/// Each slice checks one pack or NAR, and the lease goes back after it.
const SLICE: Duration = Duration::ZERO;

struct Lab {
    installation: Installation,
    index: Arc<dyn Index>,
    scrub: Arc<dyn ScrubIndex>,
    jobs: Arc<dyn JobIndex>,
    engine: Engine,
    cache: Arc<Cache>,
}

impl Lab {
    async fn new(on_postgres: bool) -> Self {
        let installation = Installation::new();
        if let Some(url) = new_database(on_postgres).await {
            let options = PostgresOptions { connections_max: 4, ..PostgresOptions::default() };
            Self::over(installation, PostgresIndex::open(&url, options).await.expect(ANSWERS)).await
        } else {
            let index = installation.index().await;
            Self::over(installation, index).await
        }
    }

    async fn over<I: Index + ScrubIndex + JobIndex>(installation: Installation, index: I) -> Self {
        let index = Arc::new(index);
        let clock = Arc::new(SystemClock);
        let key = MasterKey::from_bytes([9; 32]);
        let engine = Engine::new(index.clone(), Arc::clone(&installation.blobs), key, settings(), clock);
        let cache = create_main(&engine).await;
        Self { installation, index: index.clone(), scrub: index.clone(), jobs: index, engine, cache }
    }

    fn scrubber(&self, faults: Option<&Arc<Faults>>) -> Scrubber {
        let scrub: Arc<dyn ScrubIndex> = match faults {
            Some(faults) => Arc::new(FaultScrub::new(Arc::clone(&self.scrub), Arc::clone(faults))),
            None => Arc::clone(&self.scrub),
        };
        let blobs = Arc::clone(&self.installation.blobs);
        Scrubber::new(Arc::clone(&self.index), scrub, blobs, Arc::new(SystemClock))
    }

    /// Scrubs to the end, in slices.
    async fn scrub(&self, options: ScrubOptions) -> ScrubReport {
        self.scrub_with(&self.scrubber(None), options).await.expect(ANSWERS)
    }

    async fn scrub_with(
        &self,
        scrubber: &Scrubber,
        options: ScrubOptions,
    ) -> dormer_engine::Result<ScrubReport> {
        let (job, _) = scrubber.open(options).await?;
        while scrubber.state(job).await?.is_some() {
            assert!(scrubber.work_now(&*self.jobs, "test", 30, SLICE).await?, "nobody else has the lease");
        }
        Ok(scrubber.report(job).await?.expect("it ended"))
    }

    /// Runs the job that looks which NARs need damaged chunks.
    async fn spread(&self) {
        let settings = JobSettings { poll: Duration::from_millis(5), ..JobSettings::default() };
        let clock = Arc::new(SystemClock);
        let runner = JobRunner::new(Arc::clone(&self.jobs), clock, "test".to_owned(), settings);
        let done = async {
            let is_open = |jobs: Vec<dormer_index::Job>| {
                jobs.iter().any(|job| job.kind == JobKind::SpreadDamage.as_str())
            };
            while is_open(self.jobs.list_jobs(None, 100).await.expect(ANSWERS)) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        runner.run(done).await;
    }

    /// Numbers of the paths that are missing, by narinfo and by the question of a client. A fresh
    /// engine remembers no narinfo.
    async fn missing(&self, paths: std::ops::RangeInclusive<u8>) -> Vec<u8> {
        let blobs = Arc::clone(&self.installation.blobs);
        let engine = engine_over(Arc::clone(&self.index), blobs, settings());
        let mut missing = Vec::new();
        for number in paths {
            let hash = path(number).hash();
            let has_narinfo = engine.narinfo(&self.cache, &hash).await.expect(ANSWERS).is_some();
            let asked = engine.missing_paths(&self.cache, &[hash]).await.expect(ANSWERS);
            assert_eq!(has_narinfo, asked.is_empty(), "path {number}");
            if !has_narinfo {
                missing.push(number);
            }
        }
        missing
    }

    async fn reads_back(&self, nar: &[u8]) {
        let bytes = served(&self.engine, &self.cache, nar, None).await.expect(ANSWERS).expect("it is there");
        assert!(decompress(&bytes) == nar);
    }

    /// Replaces the bytes of all packs; `None` deletes a pack.
    async fn change_packs(&self, change: impl Fn(&mut [u8]) -> bool) {
        for key in self.installation.blobs.list().await.expect(ANSWERS) {
            let size = self.installation.blobs.head(&key).await.expect(ANSWERS);
            let mut bytes = self.installation.blobs.get_range(&key, 0..size).await.expect(ANSWERS).to_vec();
            self.installation.blobs.delete(&key).await.expect(ANSWERS);
            if change(&mut bytes) {
                self.installation.blobs.put(&key, &[Bytes::from(bytes)]).await.expect(ANSWERS);
            }
        }
    }

    /// Paths 1 to 3 share all their chunks, path 4 shares none.
    async fn push_all(&self) -> Vec<Vec<u8>> {
        let first = package_nar(&mut Random::new(1), 30_000, &[path(100)]);
        let nars = vec![
            first.clone(),
            rebuilt(&first, &path(100), &path(101)),
            rebuilt(&first, &path(100), &path(102)),
            package_nar(&mut Random::new(2), 30_000, &[]),
        ];
        for (number, nar) in (1..).zip(&nars) {
            push(&self.engine, &self.cache, &path(number), nar).await.expect(ANSWERS);
        }
        nars
    }
}

/// The first byte behind the header: in the first chunk of the pack.
fn flip(bytes: &mut [u8]) -> bool {
    bytes[40] ^= 1;
    true
}

async fn finds_and_heals(on_postgres: bool, change: impl Fn(&mut [u8]) -> bool) {
    let lab = Lab::new(on_postgres).await;
    let nars = lab.push_all().await;
    let sound = lab.scrub(FULL).await;
    assert!(!sound.found_damage(), "{sound:?}");
    assert_eq!(sound.nars, 4);
    assert!(sound.packs > 0 && sound.chunks > 4 && sound.bytes_read > 60_000, "{sound:?}");

    lab.change_packs(change).await;
    let found = lab.scrub(FULL).await;
    assert!(found.found_damage() && found.chunks_damaged > 0, "{found:?}");
    assert!(!found.findings.is_empty());
    lab.spread().await;
    assert_eq!(lab.missing(1..=4).await, [1, 2, 3, 4]);

    // One of the three that share their chunks, and not the first.
    push(&lab.engine, &lab.cache, &path(2), &nars[1]).await.expect(ANSWERS);
    assert_eq!(lab.missing(1..=4).await, [4]);
    for nar in &nars[..3] {
        lab.reads_back(nar).await;
    }
    push(&lab.engine, &lab.cache, &path(4), &nars[3]).await.expect(ANSWERS);
    lab.spread().await;
    assert_eq!(lab.missing(1..=4).await, [0_u8; 0]);
    lab.reads_back(&nars[3]).await;
    let healed = lab.scrub(FULL).await;
    assert!(!healed.found_damage(), "{healed:?}");
}

#[tokio::test]
async fn a_flipped_byte_in_every_pack_is_found_and_healed_on_sqlite() {
    finds_and_heals(false, flip).await;
}

#[tokio::test]
async fn a_flipped_byte_in_every_pack_is_found_and_healed_on_postgresql() {
    finds_and_heals(true, flip).await;
}

#[tokio::test]
async fn deleted_packs_are_found_and_healed_on_sqlite() {
    finds_and_heals(false, |_| false).await;
}

#[tokio::test]
async fn deleted_packs_are_found_and_healed_on_postgresql() {
    finds_and_heals(true, |_| false).await;
}

/// No chunk is damaged, so nothing is missing; but a lost index could not be rebuilt from the pack.
#[tokio::test]
async fn a_damaged_table_is_reported_and_no_path_goes_missing() {
    let lab = Lab::new(false).await;
    lab.push_all().await;
    lab.change_packs(|bytes| {
        let last = bytes.len() - 100;
        bytes[last] ^= 1;
        true
    })
    .await;
    let found = lab.scrub(FULL).await;
    assert!(found.found_damage() && found.packs_damaged > 0, "{found:?}");
    assert_eq!((found.chunks_damaged, found.nars_damaged), (0, 0));
    assert_eq!(lab.missing(1..=4).await, [0_u8; 0]);
}

/// Two chunks of one NAR change places in its recipe: every chunk is sound, and the NAR is not.
#[tokio::test]
async fn a_nar_that_is_wrong_although_its_chunks_are_sound_is_found() {
    let lab = Lab::new(false).await;
    let nars = lab.push_all().await;
    let page = lab.scrub.scrub_nars(dormer_index::NarId(0), 10).await.expect(ANSWERS);
    let (wrong, other) = (&page[3], &page[0]);
    let commit = dormer_index::NarCommit {
        cache: lab.cache.id,
        nar: dormer_index::NarSource::New(Box::new(dormer_index::NewNar {
            hash: wrong.hash,
            size: wrong.size,
            file_size: other.file_size,
            tag: other.tag,
            holed_bytes: 0,
            recipe: other.recipe.clone(),
            listing: dormer_index::StoredListing::Inline(Vec::new()),
            build_ids: Vec::new(),
            packs: vec![],
        })),
        target: dormer_index::CommitTarget::Object(dormer_testkit::object_for(&path(4), &[])),
        at: 1_800_000_000,
        grace_seconds: 0,
        known_keys: Vec::new(),
    };
    // Only a damaged NAR is replaced.
    assert!(lab.scrub.mark_nar(wrong.id, &wrong.tag, 1).await.expect(ANSWERS));
    lab.index.commit_nar(&commit).await.expect(ANSWERS);
    let found = lab.scrub(FULL).await;
    assert_eq!((found.chunks_damaged, found.nars_damaged), (0, 1), "{found:?}");
    assert_eq!(lab.missing(1..=4).await, [4]);
    push(&lab.engine, &lab.cache, &path(4), &nars[3]).await.expect(ANSWERS);
    assert_eq!(lab.missing(1..=4).await, [0_u8; 0]);
    assert!(!lab.scrub(FULL).await.found_damage());
}

#[tokio::test]
async fn a_store_that_is_away_damages_nothing() {
    let lab = Lab::new(false).await;
    lab.push_all().await;
    let away: Arc<dyn Blobs> = Arc::new(Away);
    let scrubber = Scrubber::new(Arc::clone(&lab.index), Arc::clone(&lab.scrub), away, Arc::new(SystemClock));
    let (job, _) = scrubber.open(FULL).await.expect(ANSWERS);
    let outcome = scrubber.work_now(&*lab.jobs, "test", 30, SLICE).await;
    assert!(outcome.is_err(), "{outcome:?}");
    assert_eq!(lab.missing(1..=4).await, [0_u8; 0]);
    let open = lab.jobs.list_jobs(None, 10).await.expect(ANSWERS);
    assert!(open.iter().any(|open| open.id == job && open.error.is_some()), "{open:?}");
    assert!(!lab.scrub(FULL).await.found_damage(), "it goes on when the store is back");
}

/// One sector of a disk does not come back: the scrub marks the chunk that lies there, and goes on.
#[tokio::test]
async fn a_bad_sector_damages_one_chunk_and_stops_no_scrub() {
    let lab = Lab::new(false).await;
    let nars = lab.push_all().await;
    let packs = lab.scrub.scrub_packs(PackNumber(0), 9).await.expect(ANSWERS);
    let rows = lab.scrub.chunks_of_pack(packs[0].number).await.expect(ANSWERS);
    let store = OddStore::over(&lab.installation.blobs);
    store.break_at(BlobKey::Pack(packs[0].id), rows[1].offset + 1);
    let scrubber = Scrubber::new(
        Arc::clone(&lab.index),
        Arc::clone(&lab.scrub),
        Arc::clone(&store) as _,
        Arc::new(SystemClock),
    );
    // The whole disk may be away: a write tells.
    store.refuse_puts(true);
    let outcome = lab.scrub_with(&scrubber, FULL).await;
    assert!(outcome.is_err(), "{outcome:?}");
    lab.spread().await;
    assert_eq!(lab.missing(1..=4).await, [0_u8; 0]);
    store.refuse_puts(false);
    let report = lab.scrub_with(&scrubber, FULL).await.expect(ANSWERS);
    assert_eq!((report.packs, report.packs_damaged, report.packs_lost), (packs.len() as u64, 1, 0));
    assert_eq!(report.chunks_damaged, 1, "{report:?}");
    lab.spread().await;
    assert_eq!(lab.missing(1..=4).await, [1, 2, 3]);
    push(&lab.engine, &lab.cache, &path(1), &nars[0]).await.expect(ANSWERS);
    assert_eq!(lab.missing(1..=4).await, [0_u8; 0], "a push heals all of them");
}

/// A store that cannot be reached.
#[derive(Debug)]
struct Away;

#[async_trait::async_trait]
impl Blobs for Away {
    async fn put(&self, key: &BlobKey, _: &[Bytes]) -> dormer_blobs::Result<()> {
        Err(away(key))
    }
    async fn get_range(&self, key: &BlobKey, _: std::ops::Range<u64>) -> dormer_blobs::Result<Bytes> {
        Err(away(key))
    }
    async fn head(&self, key: &BlobKey) -> dormer_blobs::Result<u64> {
        Err(away(key))
    }
    async fn delete(&self, key: &BlobKey) -> dormer_blobs::Result<()> {
        Err(away(key))
    }
    async fn list(&self) -> dormer_blobs::Result<Vec<BlobKey>> {
        Ok(Vec::new())
    }
}

fn away(key: &BlobKey) -> dormer_blobs::Error {
    dormer_blobs::Error::Unavailable { attempt: "read", key: key.to_string(), source: "away".into() }
}

/// Whatever step a crash takes, the scrub that goes on finds all of the damage, and everything
/// heals. Each round has an installation of its own: what a round leaves would be more steps for
/// the next one.
async fn crashes_at_every_step(on_postgres: bool, stride: usize) {
    for step in (0..).step_by(stride) {
        assert!(step < 60, "a scrub of four NARs has fewer steps");
        for effect_kept in [false, true] {
            let lab = Lab::new(on_postgres).await;
            let nars = lab.push_all().await;
            lab.change_packs(flip).await;
            let faults = Faults::crash_at(step, effect_kept);
            let crashing = lab.scrubber(Some(&faults));
            let outcome = lab.scrub_with(&crashing, FULL).await;
            assert_eq!(outcome.is_err(), faults.crashed(), "{outcome:?}");
            // Another process takes the run up, or begins one if none was open.
            let report = lab.scrub(FULL).await;
            lab.spread().await;
            assert_eq!(lab.missing(1..=4).await, [1, 2, 3, 4], "step {step}: {report:?}");
            for number in [2, 4] {
                let nar = &nars[usize::from(number - 1)];
                push(&lab.engine, &lab.cache, &path(number), nar).await.expect(ANSWERS);
            }
            lab.spread().await;
            assert_eq!(lab.missing(1..=4).await, [0_u8; 0], "step {step}");
            for nar in &nars {
                lab.reads_back(nar).await;
            }
            if !faults.crashed() {
                assert!(step > 5, "there are several steps");
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_scrub_forgets_no_damage_on_sqlite() {
    crashes_at_every_step(false, 1).await;
}

#[tokio::test]
async fn a_crash_at_some_steps_of_a_scrub_forgets_no_damage_on_postgresql() {
    crashes_at_every_step(true, 5).await;
}

#[tokio::test]
async fn a_sample_reads_a_part_and_a_full_scrub_everything() {
    let lab = Lab::new(false).await;
    for number in 1..=40 {
        let nar = package_nar(&mut Random::new(u64::from(number)), 2_000, &[]);
        push(&lab.engine, &lab.cache, &path(number), &nar).await.expect(ANSWERS);
    }
    let full = lab.scrub(FULL).await;
    let half = lab.scrub(ScrubOptions { share_ppm: FULL_PPM / 2, ..FULL }).await;
    assert_eq!(full.nars, 40);
    assert!((5..=35).contains(&half.nars), "{half:?}");
    assert!(half.packs < full.packs && half.bytes_read < full.bytes_read, "{half:?} {full:?}");
}

/// A command scrubs, and the gauges of the servers tell of it.
#[tokio::test]
async fn the_last_scrub_shows_in_the_gauges_of_another_process() {
    let lab = Lab::new(false).await;
    lab.push_all().await;
    lab.change_packs(|bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        true
    })
    .await;
    let report = lab.scrub(FULL).await;
    assert!(report.chunks_damaged > 0, "{report:?}");
    let server = lab.scrubber(None);
    let metrics = server.metrics();
    let damaged = || {
        let families = prometheus::core::Collector::collect(&metrics);
        let family = families.iter().find(|family| family.name() == "dormer_scrub_last_damaged");
        let series = family.expect("it is a metric").get_metric().iter();
        let count = series.map(|metric| metric.get_gauge().get_value()).sum::<f64>();
        count > 0.0
    };
    assert!(!damaged(), "it has not looked yet");
    let settings = JobSettings { poll: Duration::from_millis(5), ..JobSettings::default() };
    let clock = Arc::new(SystemClock);
    let runner = JobRunner::new(Arc::clone(&lab.jobs), clock, "server".to_owned(), settings);
    runner.with_scrubber(server).run(until("the damage shows", async || damaged())).await;
}

/// A request takes longer than a lease lasts. The process renews the lease meanwhile, so that no
/// other replica begins the same work again.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_request_does_not_cost_the_lease() {
    const LEASE: i64 = 3;
    let slow = Duration::from_secs(5);
    let scrubs = async {
        let lab = Lab::new(false).await;
        push(&lab.engine, &lab.cache, &path(1), &package_nar(&mut Random::new(1), 2_000, &[]))
            .await
            .expect(ANSWERS);
        let blobs = OddStore::slow(&lab.installation.blobs, slow);
        let (index, scrub) = (Arc::clone(&lab.index), Arc::clone(&lab.scrub));
        let scrubber = Scrubber::new(index, scrub, blobs, Arc::new(SystemClock))
            .renewing(Duration::from_millis(200), Duration::from_mins(1));
        scrubber.open(FULL).await.expect(ANSWERS);
        let (done, other) = tokio::join!(
            scrubber.work_now(&*lab.jobs, "one", LEASE, SLICE),
            lease_later(&*lab.jobs, JobKind::Scrub)
        );
        assert!(done.expect("the lease was not lost") && other.is_none(), "{other:?}");
    };
    let collects = async {
        let lab = crate::collect::Lab::new(false).await;
        let process = lab.open().await;
        let cache = create_main(&process.engine).await;
        push(&process.engine, &cache, &path(1), &package_nar(&mut Random::new(1), 2_000, &[]))
            .await
            .expect(ANSWERS);
        process.engine.remove_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
        lab.pass(crate::collect::OLD);
        lab.collect(&process).await;
        let settings =
            CollectSettings { renew_after: Duration::from_millis(200), ..CollectSettings::default() };
        let blobs = OddStore::slow(&lab.installation.blobs, slow);
        let later = Arc::new(Later(SystemClock.now(), lab.clock.now() + crate::collect::OLD));
        let collector =
            Collector::new(Arc::clone(&process.contracts.collect), blobs, later.clone(), settings);
        let (done, other) = tokio::join!(collector.run_now(&*process.contracts.jobs, "one", LEASE), async {
            tokio::time::sleep(slow.mul_f64(0.9)).await;
            let now = later.now();
            process.contracts.jobs.lease_job(JobKind::Collect, "other", now, now + 9).await.expect(ANSWERS)
        });
        let report = done.expect("the lease was not lost").expect("nobody else collects");
        assert!(report.objects_deleted == 1 && other.is_none(), "{report:?} {other:?}");
    };
    tokio::join!(scrubs, collects);
}

/// One process hangs in a call to its folder. It does not keep its lease for ever, so another one,
/// whose folder answers, does the work.
#[tokio::test]
async fn a_call_that_hangs_gives_the_lease_to_another_process() {
    const LEASE: i64 = 30;
    let (renew_after, stuck_after) = (Duration::from_millis(2), Duration::from_millis(200));
    let lab = crate::collect::Lab::new(false).await;
    let process = lab.open().await;
    let jobs = &*process.contracts.jobs;
    let cache = create_main(&process.engine).await;
    let nar = package_nar(&mut Random::new(1), 2_000, &[]);
    push(&process.engine, &cache, &path(1), &nar).await.expect(ANSWERS);
    let hangs: Arc<dyn Blobs> = OddStore::slow(&lab.installation.blobs, Duration::from_hours(9));
    let answers = &lab.installation.blobs;

    let scrubber = |blobs: &Arc<dyn Blobs>| {
        let (index, scrub) = (Arc::clone(&process.contracts.index), Arc::clone(&process.contracts.scrub));
        Scrubber::new(index, scrub, Arc::clone(blobs), Arc::clone(&lab.clock) as _)
            .renewing(renew_after, stuck_after)
    };
    let (stuck, other) = (scrubber(&hangs), scrubber(answers));
    let (job, _) = stuck.open(FULL).await.expect(ANSWERS);
    let waited = tokio::select! {
        done = stuck.work_now(jobs, "stuck", LEASE, Duration::MAX) => panic!("its store hangs: {done:?}"),
        waited = after_the_lease(&lab, jobs, async || {
            other.work_now(jobs, "other", LEASE, Duration::MAX).await.expect(ANSWERS)
        }) => waited,
    };
    assert!(waited >= stuck_after, "the lease was kept for a while: {waited:?}");
    let report = other.report(job).await.expect(ANSWERS).expect("the other one scrubbed to the end");
    assert_eq!((report.packs, report.nars, report.found_damage()), (1, 1, false));

    process.engine.remove_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    lab.pass(crate::collect::OLD);
    lab.collect(&process).await;
    lab.pass(crate::collect::OLD);
    let collector = |blobs: &Arc<dyn Blobs>| {
        let settings = CollectSettings { renew_after, stuck_after, ..CollectSettings::default() };
        let collect = Arc::clone(&process.contracts.collect);
        Collector::new(collect, Arc::clone(blobs), Arc::clone(&lab.clock) as _, settings)
    };
    let (stuck, other) = (collector(&hangs), collector(answers));
    let waited = tokio::select! {
        done = stuck.run_now(jobs, "stuck", LEASE) => panic!("its store hangs: {done:?}"),
        waited = after_the_lease(&lab, jobs, async || {
            other.run_now(jobs, "other", LEASE).await.expect(ANSWERS).is_some()
        }) => waited,
    };
    assert!(waited >= stuck_after, "the lease was kept for a while: {waited:?}");
    assert_eq!(lab.installation.blobs.list().await.expect(ANSWERS), [], "the other one deleted the pack");
}

/// When a process that hangs has the lease, lets time pass and tries to work in another process
/// until that works. Returns how long it took.
async fn after_the_lease(
    lab: &crate::collect::Lab,
    jobs: &dyn JobIndex,
    mut works: impl AsyncFnMut() -> bool,
) -> Duration {
    let is_held = async || {
        let open = jobs.list_jobs(None, 9).await.expect(ANSWERS);
        open.iter().any(|job| job.holder.as_deref() == Some("stuck"))
    };
    until("the lease is held", is_held).await;
    let begun = std::time::Instant::now();
    while !works().await {
        // A renewal may be late by as long as the lease lasts: 300 ms.
        lab.pass(1);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    begun.elapsed()
}

/// What another replica gets that asks for a lease while the request runs.
async fn lease_later(jobs: &dyn JobIndex, kind: JobKind) -> Option<JobLease> {
    tokio::time::sleep(Duration::from_millis(4_500)).await;
    let now = SystemClock.now();
    jobs.lease_job(kind, "other", now, now + 9).await.expect(ANSWERS)
}

/// A clock that goes on from a later time.
#[derive(Debug)]
struct Later(i64, i64);

impl Clock for Later {
    fn now(&self) -> i64 {
        SystemClock.now() - self.0 + self.1
    }
}
