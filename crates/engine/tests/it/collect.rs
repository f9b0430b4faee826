//! Collections: what nothing needs is freed, and everything else reads back. With a crash at every
//! step, with pushes before every step, and with planted defects. Random histories are in
//! `histories`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::common::{
    Installation, create_main, decompress, hash_of, ingest, new_database, path, push, served, settings,
};
use crate::jobs::until;
use crate::odd_store::OddStore;
use dormer_blobs::{BlobKey, Blobs};
use dormer_engine::{
    Clock, CollectSettings, CollectionReport, Collector, CompactionTotals, Engine, EngineSettings,
    ErrorClass, Ingested, JobRunner, JobSettings, MasterKey,
};
use dormer_format::PackId;
use dormer_index::{
    Cache, CollectIndex, Index, Inventory, JobIndex, JournalIndex, NarQuery, PackNumber, PostgresIndex,
    PostgresOptions, Removal, ScrubIndex, SqlIndex, UnixSeconds,
};
use dormer_nix::{NarHash, StorePath};
use dormer_testkit::{
    FaultBlobs, FaultCollect, Faults, Lie, Random, Violation, check_invariants, find_leaks, object_for,
    package_nar, rebuilt,
};
use futures::TryStreamExt as _;
use futures::future::BoxFuture;

pub(crate) const HOUR: i64 = 3_600;
pub(crate) const DAY: i64 = 24 * HOUR;

/// When a pack that no upload uses any more may be condemned: longest upload, a day, and a bit.
pub(crate) const OLD: i64 = 2 * DAY + HOUR;

/// When a condemned pack may go.
pub(crate) const CONDEMNED: i64 = DAY + 2 * HOUR;

/// Of calls that no fault touches.
pub(crate) const ANSWERS: &str = "nothing is wrong";

/// No crash.
pub(crate) const NEVER: u64 = u64::MAX;

/// A clock that tests move.
#[derive(Debug)]
pub(crate) struct TestClock(AtomicI64);

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(1_800_000_000)))
    }

    pub(crate) fn pass(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> UnixSeconds {
        self.0.load(Ordering::SeqCst)
    }
}

/// One index, by its contracts.
#[derive(Clone)]
pub(crate) struct Contracts {
    pub(crate) index: Arc<dyn Index>,
    pub(crate) collect: Arc<dyn CollectIndex>,
    pub(crate) jobs: Arc<dyn JobIndex>,
    pub(crate) journal: Arc<dyn JournalIndex>,
    pub(crate) scrub: Arc<dyn ScrubIndex>,
    audited: Arc<SqlIndex>,
}

impl Contracts {
    fn new(index: SqlIndex) -> Self {
        let index = Arc::new(index);
        Self {
            index: index.clone(),
            collect: index.clone(),
            jobs: index.clone(),
            journal: index.clone(),
            scrub: index.clone(),
            audited: index,
        }
    }
}

/// An installation, and its time.
pub(crate) struct Lab {
    pub(crate) installation: Installation,
    postgres: Option<String>,
    pub(crate) clock: Arc<TestClock>,
    /// Collections recompress cold packs at this level.
    pub(crate) recompress_level: Option<u8>,
}

impl Lab {
    pub(crate) async fn new(on_postgres: bool) -> Self {
        let postgres = new_database(on_postgres).await;
        let clock = TestClock::new();
        Self { installation: Installation::new(), postgres, clock, recompress_level: None }
    }

    /// From now on there is an empty one.
    pub(crate) async fn lose_database(&mut self) {
        if self.postgres.is_some() {
            self.postgres = new_database(true).await;
        } else {
            self.installation.lose_database().await;
        }
    }

    async fn postgres(url: &str) -> SqlIndex {
        let options = PostgresOptions { connections_max: 4, ..PostgresOptions::default() };
        PostgresIndex::open(url, options).await.expect(ANSWERS)
    }

    async fn sqlite(&self) -> SqlIndex {
        self.installation.index().await
    }

    pub(crate) async fn open(&self) -> Process {
        self.open_with(|index| index).await
    }

    /// A process whose engine sees the index through `wrap`.
    pub(crate) async fn open_with(&self, wrap: impl FnOnce(Arc<dyn Index>) -> Arc<dyn Index>) -> Process {
        let contracts = match &self.postgres {
            Some(url) => Contracts::new(Self::postgres(url).await),
            None => Contracts::new(self.sqlite().await),
        };
        let engine = self.engine(wrap(Arc::clone(&contracts.index)));
        Process { engine, contracts }
    }

    /// An engine that remembers nothing yet.
    pub(crate) fn engine(&self, index: Arc<dyn Index>) -> Engine {
        Engine::new(
            index,
            Arc::clone(&self.installation.blobs),
            MasterKey::from_bytes([9; 32]),
            settings(),
            Arc::clone(&self.clock) as Arc<dyn Clock>,
        )
    }

    pub(crate) async fn inventory(&self) -> Inventory {
        match &self.postgres {
            Some(url) => Self::postgres(url).await.inventory().await,
            None => self.sqlite().await.inventory().await,
        }
        .expect(ANSWERS)
    }

    pub(crate) fn pass(&self, seconds: i64) {
        self.clock.pass(seconds);
    }

    pub(crate) fn collector(&self, index: Arc<dyn CollectIndex>, blobs: Arc<dyn Blobs>) -> Collector {
        // Every collection lists.
        let settings = CollectSettings {
            listing_seconds: 0,
            recompress_level: self.recompress_level,
            ..CollectSettings::default()
        };
        Collector::new(index, blobs, Arc::clone(&self.clock) as Arc<dyn Clock>, settings)
    }

    /// Collects with faults until it ends or crashes.
    pub(crate) async fn collect_with(
        &self,
        process: &Process,
        faults: &Arc<Faults>,
    ) -> dormer_engine::Result<Option<CollectionReport>> {
        self.collect_racing(process, faults, None).await
    }

    /// The same, while somebody pushes.
    pub(crate) async fn collect_racing(
        &self,
        process: &Process,
        faults: &Arc<Faults>,
        racing: Option<&Arc<RacingPush>>,
    ) -> dormer_engine::Result<Option<CollectionReport>> {
        let blobs = Arc::clone(&self.installation.blobs);
        let blobs: Arc<dyn Blobs> = Arc::new(FaultBlobs::new(blobs, Arc::clone(faults)));
        let collect = Arc::clone(&process.contracts.collect);
        let mut index = FaultCollect::new(collect, Arc::clone(&blobs), Arc::clone(faults));
        if let Some(racing) = racing {
            index = index.with_meanwhile(racing.before_call());
        }
        self.collector(Arc::new(index), blobs).run_now(&*process.contracts.jobs, "test", 30).await
    }

    /// Collects in a store that does not do all that it is asked for.
    pub(crate) async fn collect_in(&self, process: &Process, store: &Arc<OddStore>) -> CollectionReport {
        let collector = self.collector(Arc::clone(&process.contracts.collect), Arc::clone(store) as _);
        let outcome = collector.run_now(&*process.contracts.jobs, "test", 30).await;
        outcome.expect(ANSWERS).expect("no other process collects")
    }

    pub(crate) async fn collect(&self, process: &Process) -> CollectionReport {
        let outcome = self.collect_with(process, &Faults::crash_at(NEVER, false)).await;
        outcome.expect(ANSWERS).expect("no other process collects")
    }

    /// Collects as often as it takes to free everything that can be.
    pub(crate) async fn collect_all(&self, process: &Process) {
        for _ in 0..5 {
            self.pass(OLD);
            self.collect(process).await;
        }
    }

    pub(crate) async fn violations(&self, acknowledged: &[NarHash], deleted: &[BlobKey]) -> Vec<Violation> {
        check_invariants(self.inventory().await, &*self.installation.blobs, acknowledged, deleted).await
    }

    /// The same, while a process has the database.
    pub(crate) async fn violations_beside(
        &self,
        process: &Process,
        acknowledged: &[NarHash],
    ) -> Vec<Violation> {
        let audit = process.contracts.audited.inventory().await.expect(ANSWERS);
        check_invariants(audit, &*self.installation.blobs, acknowledged, &[]).await
    }

    /// Everything is gone: the bucket, and all rows about paths, bytes and jobs. The job that
    /// forgets damaged chunks may have to run.
    pub(crate) async fn is_empty(&self, when: &str) {
        if self.inventory().await.leftovers.contains_key("jobs") {
            let jobs = self.open().await.contracts.jobs;
            let settings = JobSettings { poll: Duration::from_millis(5), ..JobSettings::default() };
            let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
            let runner = JobRunner::new(Arc::clone(&jobs), clock, "last".to_owned(), settings);
            let is_done = async || jobs.list_jobs(None, 1).await.expect(ANSWERS).is_empty();
            runner.run(until("no job is open", is_done)).await;
        }
        assert_eq!(self.inventory().await.leftovers, BTreeMap::new(), "{when}");
        assert_eq!(self.installation.blobs.list().await.expect(ANSWERS), [], "{when}");
    }
}

/// A server, while it runs.
pub(crate) struct Process {
    pub(crate) engine: Engine,
    pub(crate) contracts: Contracts,
}

impl Process {
    pub(crate) async fn cache(&self) -> Arc<Cache> {
        self.engine.find_cache("main").await.expect(ANSWERS).expect("it was made before")
    }

    /// The bytes of a NAR, if the cache serves it.
    pub(crate) async fn read(&self, nar: &[u8]) -> Option<Vec<u8>> {
        let cache = self.cache().await;
        let mut bytes = served(&self.engine, &cache, nar, None).await;
        if let Err(dormer_engine::Error::Reencoded { .. }) = bytes {
            // The engine remembers places for 1.5 s, in which the time of these tests passes by
            // days. Clients repeat such a read.
            bytes = served(&self.engine, &cache, nar, None).await;
        }
        let bytes = bytes.expect(ANSWERS);
        bytes.map(|bytes| decompress(&bytes))
    }

    pub(crate) async fn reads_back(&self, nar: &[u8], when: &str) {
        assert!(self.read(nar).await.is_some_and(|bytes| bytes == nar), "{when}");
    }

    /// Numbers of the packs that a NAR needs although no upload may use them.
    async fn live_condemned_packs(&self, audit: &Inventory) -> Vec<PackNumber> {
        let runs = audit.nars.iter().flat_map(|nar| &nar.recipe.runs);
        let live: HashSet<u64> = runs.flat_map(|run| run.first..run.first + u64::from(run.count)).collect();
        let live: HashSet<PackNumber> =
            audit.chunks.iter().filter(|row| live.contains(&row.number)).map(|row| row.pack).collect();
        let packs = self.contracts.collect.page_packs(PackNumber(0), 10_000).await.expect(ANSWERS);
        let condemned = packs.iter().filter(|pack| pack.condemned_at.is_some());
        condemned.map(|pack| pack.number).filter(|number| live.contains(number)).collect()
    }
}

/// The beginning of the first of [`nars`]: fewer than half of its chunks, and one of its own.
pub(crate) fn beginning() -> Vec<u8> {
    package_nar(&mut Random::new(42), 14_000, &[])
}

/// One with a reference, one without, and the first after a rebuild: the same chunks.
pub(crate) fn nars() -> [Vec<u8>; 3] {
    let mut random = Random::new(42);
    let first = package_nar(&mut random, 40_000, &[path(100)]);
    let second = package_nar(&mut random, 20_000, &[]);
    let third = rebuilt(&first, &path(100), &path(101));
    [first, second, third]
}

async fn frees_what_nothing_names(on_postgres: bool) {
    let lab = Lab::new(on_postgres).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let [first, second, third] = nars();
    lab.collect(&process).await;
    push(&process.engine, &cache, &path(1), &first).await.expect(ANSWERS);
    push(&process.engine, &cache, &path(2), &second).await.expect(ANSWERS);
    push(&process.engine, &cache, &path(3), &third).await.expect(ANSWERS);
    let uploaded = package_nar(&mut Random::new(7), 9_000, &[]);
    let ingested = ingest(&process.engine, &uploaded).await.expect(ANSWERS);
    process.engine.commit_alias(&cache, ingested, "f.nar.xz", "xz").await.expect(ANSWERS);

    lab.pass(OLD);
    let report = lab.collect(&process).await;
    assert_eq!(report, CollectionReport::default(), "everything is named");

    // The second goes for cause. The first shares its chunks with the third, and has a grace.
    let grace = Removal::WithGraceUntil(lab.clock.now() + 10 * DAY);
    process
        .contracts
        .index
        .remove_object(cache.id, &path(1).hash(), grace, lab.clock.now())
        .await
        .expect(ANSWERS);
    assert!(process.engine.remove_object(&cache, &path(2).hash(), None).await.expect(ANSWERS).was_there);
    let plan = {
        let (index, blobs) = (Arc::clone(&process.contracts.collect), Arc::clone(&lab.installation.blobs));
        lab.collector(index, blobs).plan().await.expect(ANSWERS)
    };
    let report = lab.collect(&process).await;
    assert_eq!((report.nars, report.condemned.packs), (1, 1));
    assert_eq!((plan.nars, plan.nar_bytes), (report.nars, report.nar_bytes));
    assert_eq!(plan.condemn, report.condemned, "the plan said so");
    assert!(report.condemned.bytes > 0 && report.condemned.chunks > 0);
    assert!(process.read(&second).await.is_none());

    // A pack that is condemned waits for the longest upload.
    lab.pass(DAY);
    let report = lab.collect(&process).await;
    assert_eq!((report.waiting.packs, report.removed.packs), (1, 0));
    lab.pass(CONDEMNED - DAY);
    let report = lab.collect(&process).await;
    assert_eq!((report.removed.packs, report.objects_deleted), (1, 1));
    for nar in [&first, &third, &uploaded] {
        process.reads_back(nar, "it is named").await;
    }

    // The grace ends; its chunks are the third's.
    lab.pass(10 * DAY);
    let report = lab.collect(&process).await;
    assert_eq!((report.graces, report.nars, report.condemned.packs), (1, 1, 0));
    assert_eq!(process.contracts.index.find_nar(&hash_of(&first)).await.expect(ANSWERS), None);
    process.reads_back(&third, "its chunks stay").await;

    // The alias ends 30 days after its upload.
    lab.pass(20 * DAY);
    let report = lab.collect(&process).await;
    assert_eq!((report.aliases, report.nars, report.condemned.packs), (1, 1, 1));

    assert!(process.engine.remove_object(&cache, &path(3).hash(), None).await.expect(ANSWERS).was_there);
    lab.collect_all(&process).await;
    drop((process, cache));
    lab.is_empty("everything was removed").await;
}

#[tokio::test]
async fn what_nothing_names_is_freed_on_sqlite() {
    frees_what_nothing_names(false).await;
}

#[tokio::test]
async fn what_nothing_names_is_freed_on_postgresql() {
    frees_what_nothing_names(true).await;
}

/// The chunks of a large listing are live as long as their NAR.
#[tokio::test]
async fn a_large_listing_stays_and_goes_with_its_nar() {
    use dormer_nix::nar::{Node, encode_tree};
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let file = |n: u32| (format!("{n:0>64}").into_bytes(), Node::file(Vec::new()));
    let nar = encode_tree(&Node::Directory((0..12_000).map(file).collect::<BTreeMap<_, _>>()));
    push(&process.engine, &cache, &path(1), &nar).await.expect(ANSWERS);
    let before = crate::common::listing(&process.engine, &cache, &path(1)).await.expect(ANSWERS);
    assert!(before.as_ref().is_some_and(|json| json.len() > 1_100_000));
    lab.collect_all(&process).await;
    assert_eq!(crate::common::listing(&process.engine, &cache, &path(1)).await.expect(ANSWERS), before);
    process.reads_back(&nar, "it is named").await;
    process.engine.remove_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    lab.collect_all(&process).await;
    drop((process, cache));
    lab.is_empty("it was removed").await;
}

/// A crash between a pack's PUT and its row leaves an object that nothing knows. A listing finds
/// it, and a later collection deletes it. Packs that were there before the first listing may be
/// another database's: they stay.
#[tokio::test]
async fn packs_without_a_row_are_found_and_removed() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let put = async |number: u8| {
        let key = BlobKey::Pack(PackId::from_bytes([number; 16]));
        lab.installation.blobs.put(&key, &[bytes::Bytes::from_static(b"a pack")]).await.expect(ANSWERS);
        key
    };
    let foreign = put(1).await;
    let report = lab.collect(&process).await;
    assert_eq!((report.strays_found, report.strays_kept), (0, 1));
    let lost = put(2).await;
    assert_eq!(lab.collect(&process).await.strays_found, 1);
    lab.pass(2 * DAY - 1);
    assert_eq!(lab.collect(&process).await.objects_deleted, 0, "its row may still come");
    assert!(lab.installation.blobs.list().await.expect(ANSWERS).contains(&lost));
    lab.pass(1);
    assert_eq!(lab.collect(&process).await.objects_deleted, 1);
    lab.pass(365 * DAY);
    lab.collect(&process).await;
    assert_eq!(lab.installation.blobs.list().await.expect(ANSWERS), [foreign]);
    delete_strays(&lab, &process).await;
}

/// Lets the packs without a row go, as an operator does, and waits until a row of them cannot come
/// any more.
async fn delete_strays(lab: &Lab, process: &Process) {
    let blobs = Arc::clone(&lab.installation.blobs);
    let collector = lab.collector(Arc::clone(&process.contracts.collect), blobs);
    let strays = collector.find_strays().await.expect(ANSWERS);
    let count = (strays.new.len() + strays.kept.len()) as u64;
    assert_eq!(strays.listed, count, "nothing else is there");
    assert_eq!(collector.doom_strays(&strays).await.expect(ANSWERS), 2 * DAY);
    let left = collector.find_strays().await.expect(ANSWERS);
    assert_eq!((left.new, left.kept), (Vec::new(), Vec::new()), "they are to be deleted");
    lab.pass(2 * DAY - 1);
    assert_eq!(lab.collect(process).await.objects_deleted, 0, "their rows may still come");
    lab.pass(1);
    assert_eq!(lab.collect(process).await.objects_deleted, count);
    assert_eq!(lab.installation.blobs.list().await.expect(ANSWERS), []);
}

#[tokio::test]
async fn a_store_full_of_unknown_packs_is_left_alone() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    lab.collect(&process).await;
    for number in 0..101_u8 {
        let key = BlobKey::Pack(PackId::from_bytes([number; 16]));
        lab.installation.blobs.put(&key, &[bytes::Bytes::from_static(b"a pack")]).await.expect(ANSWERS);
    }
    let report = lab.collect(&process).await;
    assert_eq!((report.strays_found, report.strays_kept), (0, 101));
    lab.collect_all(&process).await;
    assert_eq!(lab.installation.blobs.list().await.expect(ANSWERS).len(), 101);
    delete_strays(&lab, &process).await;
    assert_eq!(lab.collect(&process).await.strays_kept, 0);
}

/// A command collects and lists. The gauges of the servers tell of it, and a server that collects
/// next, without a listing, still knows what stays.
#[tokio::test]
async fn the_last_collection_shows_in_the_gauges_of_another_process() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let key = BlobKey::Pack(PackId::from_bytes([1; 16]));
    lab.installation.blobs.put(&key, &[bytes::Bytes::from_static(b"a pack")]).await.expect(ANSWERS);
    lab.collect(&process).await;
    let [first, ..] = nars();
    push(&process.engine, &cache, &path(1), &first).await.expect(ANSWERS);
    process.engine.remove_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    lab.pass(OLD);
    let report = lab.collect(&process).await;
    assert_eq!((report.condemned.packs, report.strays_kept), (1, 1));

    let server = Collector::new(
        Arc::clone(&process.contracts.collect),
        Arc::clone(&lab.installation.blobs),
        Arc::clone(&lab.clock) as Arc<dyn Clock>,
        CollectSettings { interval_seconds: None, ..CollectSettings::default() },
    );
    let metrics = server.metrics();
    let gauge = |name: &str| {
        let families = prometheus::core::Collector::collect(&metrics);
        let family = families.iter().find(|family| family.name() == name).expect("it is a metric");
        family.get_metric()[0].get_gauge().get_value()
    };
    let shown = || (gauge("dormer_gc_strays_kept"), gauge("dormer_gc_condemned_bytes") > 0.0);
    assert_eq!(shown(), (0.0, false), "it has not looked yet");
    let settings = JobSettings { poll: std::time::Duration::from_millis(5), ..JobSettings::default() };
    let clock = Arc::clone(&lab.clock) as Arc<dyn Clock>;
    let runner = JobRunner::new(Arc::clone(&process.contracts.jobs), clock, "server".to_owned(), settings)
        .with_collector(server.clone());
    runner.run(until("the last collection shows", async || shown() == (1.0, true))).await;

    let collect = async || server.run_now(&*process.contracts.jobs, "server", 30).await.expect(ANSWERS);
    lab.pass(CONDEMNED);
    assert_eq!(collect().await.expect("it ran").strays_kept, 1, "it lists nothing");
    assert_eq!(shown(), (1.0, false));
    let command = lab.collector(Arc::clone(&process.contracts.collect), Arc::clone(&lab.installation.blobs));
    let strays = command.find_strays().await.expect(ANSWERS);
    command.doom_strays(&strays).await.expect(ANSWERS);
    assert_eq!(collect().await.expect("it ran").strays_kept, 0, "it lists again");
    assert_eq!(shown(), (0.0, false));
}

/// A store that does not delete keeps its packs on the list.
#[tokio::test]
async fn a_pack_that_cannot_be_deleted_is_tried_again() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let [first, ..] = nars();
    push(&process.engine, &cache, &path(1), &first).await.expect(ANSWERS);
    process.engine.remove_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    lab.pass(OLD);
    assert_eq!(lab.collect(&process).await.condemned.packs, 1);
    lab.pass(CONDEMNED);
    // The store is dead, the index is not.
    let blobs = Arc::clone(&lab.installation.blobs);
    let dead = Arc::new(FaultBlobs::new(blobs, Faults::crash_at(0, false)));
    let collector = lab.collector(Arc::clone(&process.contracts.collect), dead);
    // The run ends well all the same: a later one deletes, and lists again.
    let report =
        collector.run_now(&*process.contracts.jobs, "test", 30).await.expect(ANSWERS).expect("it ran");
    assert_eq!((report.removed.packs, report.objects_deleted), (1, 0));
    let last = process.contracts.collect.last_collection().await.expect(ANSWERS);
    let listed_at = last.listed_at.expect("the first collection listed the store");
    assert!(listed_at < last.ended_at.expect("this one ended"), "a listing that failed does not count");
    let (audit, listed) =
        (process.contracts.collect.page_packs(PackNumber(0), 9).await, lab.installation.blobs.list().await);
    assert_eq!((audit.expect(ANSWERS).len(), listed.expect(ANSWERS).len()), (0, 1));
    let report = lab.collect(&process).await;
    assert_eq!((report.removed.packs, report.objects_deleted), (0, 1));
}

/// What happened before the collections that crash: two paths stay, one by its grace alone; one
/// went for cause, with chunks of its own.
async fn prepare(lab: &Lab) -> Vec<Vec<u8>> {
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    lab.collect(&process).await;
    let [first, second, third] = nars();
    for (number, nar) in (1..).zip([&first, &second, &third]) {
        push(&process.engine, &cache, &path(number), nar).await.expect(ANSWERS);
    }
    let graced = package_nar(&mut Random::new(8), 12_000, &[]);
    push(&process.engine, &cache, &path(4), &graced).await.expect(ANSWERS);
    let grace = Removal::WithGraceUntil(lab.clock.now() + 30 * DAY);
    process
        .contracts
        .index
        .remove_object(cache.id, &path(4).hash(), grace, lab.clock.now())
        .await
        .expect(ANSWERS);
    // A pack of which less than half stays.
    let [long, short] = [50_000, 18_000].map(|bytes| package_nar(&mut Random::new(11), bytes, &[]));
    push(&process.engine, &cache, &path(5), &long).await.expect(ANSWERS);
    push(&process.engine, &cache, &path(6), &short).await.expect(ANSWERS);
    for gone in [1, 2, 5] {
        process.engine.remove_object(&cache, &path(gone).hash(), None).await.expect(ANSWERS);
    }
    vec![third, graced, short]
}

/// Three collections, with all that they are for; `Err` when the process died.
async fn collect_thrice(lab: &Lab, process: &Process, faults: &Arc<Faults>) -> dormer_engine::Result<()> {
    for _ in 0..3 {
        lab.pass(OLD);
        lab.collect_with(process, faults).await?;
    }
    Ok(())
}

async fn survives_a_crash_at_any_step(on_postgres: bool, kept: &[bool]) {
    for &effect_kept in kept {
        for step in 0.. {
            let when = format!("after a crash at step {step}, effect kept: {effect_kept}");
            let lab = Lab::new(on_postgres).await;
            let alive = prepare(&lab).await;
            let hashes: Vec<NarHash> = alive.iter().map(|nar| hash_of(nar)).collect();
            let faults = Faults::crash_at(step, effect_kept);
            {
                let process = lab.open().await;
                let outcome = collect_thrice(&lab, &process, &faults).await;
                assert_eq!(outcome.is_err(), faults.crashed(), "{when}");
            }
            assert_eq!(lab.violations(&hashes, &faults.deleted()).await, [], "{when}");

            // Another process collects when the lease has ended, and nothing stays behind.
            let process = lab.open().await;
            lab.pass(HOUR);
            for _ in 0..3 {
                lab.pass(OLD);
                lab.collect(&process).await;
            }
            for nar in &alive {
                process.reads_back(nar, &when).await;
            }
            let audit = lab_audit(&lab, process).await;
            let leaks = find_leaks(&audit, &*lab.installation.blobs).await.expect("no pack is lost");
            assert_eq!((leaks.packs, leaks.nars), (0, 0), "{when}");
            assert_eq!(leaks.chunks, 0, "{when}");
            assert_eq!(lab.violations(&hashes, &faults.deleted()).await, [], "{when}");
            if !faults.crashed() {
                assert!(step >= 18, "the collections have only {step} steps");
                break;
            }
        }
    }
}

/// On SQLite one process has the database at a time.
async fn lab_audit(lab: &Lab, process: Process) -> Inventory {
    drop(process);
    lab.inventory().await
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_collection_is_survived_on_sqlite() {
    survives_a_crash_at_any_step(false, &[false, true]).await;
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_collection_is_survived_on_postgresql() {
    // A database for each step takes its time.
    let both = std::env::var_os("DORMER_TEST_LONG").is_some();
    survives_a_crash_at_any_step(true, if both { &[false, true] } else { &[true] }).await;
}

#[tokio::test]
async fn an_object_deleted_before_its_row_is_caught() {
    let mut caught = Vec::new();
    for step in 0..40 {
        let lab = Lab::new(false).await;
        let alive = prepare(&lab).await;
        let hashes: Vec<NarHash> = alive.iter().map(|nar| hash_of(nar)).collect();
        let faults = Faults::crash_at_with(step, false, Lie::ObjectBeforeRow);
        let process = lab.open().await;
        let _ = collect_thrice(&lab, &process, &faults).await;
        drop(process);
        caught.extend(lab.violations(&hashes, &faults.deleted()).await.into_iter().map(|v| v.invariant));
        if !faults.crashed() {
            break;
        }
    }
    assert!(caught.contains(&4), "found {caught:?}");
}

#[tokio::test]
async fn graces_that_are_forgotten_as_roots_are_caught() {
    let lab = Lab::new(false).await;
    let alive = prepare(&lab).await;
    let hashes: Vec<NarHash> = alive.iter().map(|nar| hash_of(nar)).collect();
    let faults = Faults::crash_at_with(NEVER, false, Lie::GracesForgotten);
    let process = lab.open().await;
    collect_thrice(&lab, &process, &faults).await.expect(ANSWERS);
    drop(process);
    let broken: Vec<u8> =
        lab.violations(&hashes, &faults.deleted()).await.into_iter().map(|v| v.invariant).collect();
    assert!(broken.contains(&2) && broken.contains(&5), "found {broken:?}");
}

/// The collector's compaction: what is less than half alive is rewritten, with the plan's cost;
/// nothing changes for readers.
async fn rewrites_half_dead_packs(on_postgres: bool) {
    let lab = Lab::new(on_postgres).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let [first, ..] = nars();
    let short = beginning();
    push(&process.engine, &cache, &path(1), &first).await.expect(ANSWERS);
    push(&process.engine, &cache, &path(2), &short).await.expect(ANSWERS);
    process.engine.remove_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    let key = NarQuery::Hash(hash_of(&short));
    let before = process.contracts.index.find_nar_in_cache(cache.id, &key, 0).await.expect(ANSWERS);
    let packs_before = process.contracts.collect.page_packs(PackNumber(0), 9).await.expect(ANSWERS);
    assert_eq!(packs_before.len(), 2);
    assert_eq!(lab.collect(&process).await.compacted.packs, 0, "the pack is too young");
    lab.pass(OLD);

    // A reader that knows the old places.
    let opened = process.engine.open_nar(&cache, &key).await.expect(ANSWERS).expect("it is there");
    let plan = {
        let (index, blobs) = (Arc::clone(&process.contracts.collect), Arc::clone(&lab.installation.blobs));
        lab.collector(index, blobs).plan().await.expect(ANSWERS)
    };
    let report = lab.collect(&process).await;
    assert_eq!(report.compacted, plan.compact, "the plan said so");
    let CompactionTotals { packs, bytes, packs_written, chunks, bytes_read, bytes_written, requests } =
        report.compacted;
    assert_eq!((packs, packs_written, bytes), (1, 1, packs_before[0].size));
    assert!(chunks > 0 && requests >= 2);
    assert!(bytes_written <= bytes_read && bytes_written * 2 < bytes, "{report:?}");
    assert_eq!(report.condemned.packs, 0, "it is counted once");

    let old_pieces: Vec<bytes::Bytes> =
        opened.stream(None).await.expect(ANSWERS).try_collect().await.expect("the old pack is there");
    assert_eq!(decompress(&old_pieces.concat()), short);
    process.reads_back(&short, "from the new pack").await;
    let after = process.contracts.index.find_nar_in_cache(cache.id, &key, 0).await.expect(ANSWERS);
    assert_eq!(after, before, "recipe and tag stay");

    // A push reuses the chunks where they lie now, and stores those again that are condemned.
    let ingested = ingest(&process.engine, &first).await.expect(ANSWERS);
    assert!(ingested.new_chunk_bytes > 0 && ingested.new_chunk_bytes < first.len() as u64 - 8_000);
    drop(ingested);

    lab.pass(CONDEMNED);
    let report = lab.collect(&process).await;
    assert_eq!((report.removed.packs, report.compacted.packs), (1, 0));
    process.reads_back(&short, "the old pack is gone").await;
    let packs = process.contracts.collect.page_packs(PackNumber(0), 9).await.expect(ANSWERS);
    assert!(!packs.contains(&packs_before[0]));
    process.engine.remove_object(&cache, &path(2).hash(), None).await.expect(ANSWERS);
    lab.collect_all(&process).await;
    drop((process, cache));
    lab.is_empty("everything was removed").await;
}

#[tokio::test]
async fn packs_that_are_less_than_half_alive_are_rewritten_on_sqlite() {
    rewrites_half_dead_packs(false).await;
}

#[tokio::test]
async fn packs_that_are_less_than_half_alive_are_rewritten_on_postgresql() {
    rewrites_half_dead_packs(true).await;
}

/// Eight small packs become one; seven wait.
#[tokio::test]
async fn small_packs_are_merged() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let nars: Vec<Vec<u8>> = (0..8).map(|seed| package_nar(&mut Random::new(seed), 5_000, &[])).collect();
    for (number, nar) in (1..).zip(&nars[..7]) {
        push(&process.engine, &cache, &path(number), nar).await.expect(ANSWERS);
    }
    lab.pass(OLD);
    assert_eq!(lab.collect(&process).await.compacted, CompactionTotals::default());
    push(&process.engine, &cache, &path(8), &nars[7]).await.expect(ANSWERS);
    lab.pass(OLD);
    let compacted = lab.collect(&process).await.compacted;
    assert_eq!((compacted.packs, compacted.packs_written, compacted.requests), (8, 1, 9));
    lab.pass(OLD);
    let report = lab.collect(&process).await;
    assert_eq!((report.removed.packs, report.compacted.packs), (8, 0));
    for nar in &nars {
        process.reads_back(nar, "it was merged").await;
    }
    let hashes: Vec<NarHash> = nars.iter().map(|nar| hash_of(nar)).collect();
    drop((process, cache));
    assert_eq!(lab.inventory().await.packs.len(), 1);
    assert_eq!(lab.violations(&hashes, &[]).await, []);
}

/// A chunk whose bytes are gone is marked, and the others move. The next push heals it.
#[tokio::test]
async fn a_compaction_leaves_damaged_chunks_for_the_next_push() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let [first, ..] = nars();
    let short = beginning();
    push(&process.engine, &cache, &path(1), &first).await.expect(ANSWERS);
    let rows = process.contracts.collect.page_packs(PackNumber(0), 9).await.expect(ANSWERS);
    push(&process.engine, &cache, &path(2), &short).await.expect(ANSWERS);
    process.engine.remove_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    lab.pass(OLD);
    let key = BlobKey::Pack(rows[0].id);
    let stored = lab.installation.blobs.get_range(&key, 0..rows[0].size).await.expect(ANSWERS);
    let nar = NarQuery::Hash(hash_of(&short));
    let nar = process.contracts.index.find_nar_in_cache(cache.id, &nar, 0).await.expect(ANSWERS);
    let chunks = process.contracts.index.load_chunks(&nar.expect("there").recipe.runs).await.expect(ANSWERS);
    let shared: Vec<_> = chunks.iter().filter(|chunk| chunk.pack == rows[0].number).collect();
    assert!(shared.len() >= 2, "{shared:?}");
    let mut spoiled = stored.to_vec();
    spoiled[usize::try_from(shared[0].offset).expect("small")] ^= 1;
    lab.installation.blobs.put(&key, &[spoiled.into()]).await.expect(ANSWERS);

    let report = lab.collect(&process).await;
    assert_eq!((report.compacted.packs, report.compacted.chunks), (0, shared.len() as u64 - 1));
    assert_eq!(lab.collect(&process).await.compacted, CompactionTotals::default(), "nothing is left to move");
    push(&process.engine, &cache, &path(3), &rebuilt_tail(&short)).await.expect(ANSWERS);
    process.reads_back(&short, "the push of another NAR healed the chunk").await;
    lab.collect_all(&process).await;
    process.reads_back(&short, "the old pack is gone").await;
    drop((process, cache));
    assert_eq!(lab.violations(&[hash_of(&short)], &[]).await, []);
}

/// Nothing pushes the damaged chunk again: what is noted of it goes with it.
#[tokio::test]
async fn a_damaged_chunk_that_no_push_heals_leaves_nothing_behind() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let [first, ..] = nars();
    push(&process.engine, &cache, &path(1), &first).await.expect(ANSWERS);
    let index = &process.contracts.index;
    let key = NarQuery::Hash(hash_of(&first));
    let nar = index.find_nar_in_cache(cache.id, &key, 0).await.expect(ANSWERS).expect("it was pushed");
    let chunks = index.load_chunks(&nar.recipe.runs).await.expect(ANSWERS);
    index.mark_damaged(nar.id, &[chunks[0].number], 0).await.expect(ANSWERS);
    process.engine.remove_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    lab.collect_all(&process).await;
    drop((process, cache));
    lab.is_empty("it was removed").await;
}

/// A NAR with the same chunks but for the last ones.
fn rebuilt_tail(nar: &[u8]) -> Vec<u8> {
    let mut nar = nar.to_vec();
    // The symlink's target, near the end of the archive.
    let at = nar.windows(7).rposition(|window| window == b"bin/run").expect("every package has one");
    nar[at..at + 7].copy_from_slice(b"bin/ran");
    nar
}

/// What is done to the chunks of a compaction, before one of its calls: a read finds them damaged,
/// and a push heals them with other bytes.
async fn heals_before(at: u64, faults: &Arc<Faults>) -> Option<Vec<Violation>> {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let [first, ..] = nars();
    let short = beginning();
    push(&process.engine, &cache, &path(1), &first).await.expect(ANSWERS);
    push(&process.engine, &cache, &path(2), &short).await.expect(ANSWERS);
    process.engine.remove_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    lab.pass(OLD);
    let healer = Engine::new(
        Arc::clone(&process.contracts.index),
        Arc::clone(&lab.installation.blobs),
        MasterKey::from_bytes([9; 32]),
        EngineSettings { zstd_level: 19, ..settings() },
        Arc::clone(&lab.clock) as Arc<dyn Clock>,
    );
    let healed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let meanwhile = {
        let (cache, short, healed) = (Arc::clone(&cache), short.clone(), Arc::clone(&healed));
        move |call: u64| -> futures::future::BoxFuture<'static, ()> {
            let (healer, cache, short, healed) =
                (healer.clone(), Arc::clone(&cache), short.clone(), Arc::clone(&healed));
            Box::pin(async move {
                if call != at {
                    return;
                }
                healed.store(true, Ordering::SeqCst);
                let index = healer.index();
                let key = NarQuery::Hash(hash_of(&short));
                let nar = index.find_nar_in_cache(cache.id, &key, 0).await.expect(ANSWERS).expect("there");
                let runs = nar.recipe.runs.iter();
                let chunks: Vec<u64> =
                    runs.flat_map(|run| run.first..run.first + u64::from(run.count)).collect();
                index.mark_damaged(nar.id, &chunks, 0).await.expect(ANSWERS);
                push(&healer, &cache, &path(2), &short).await.expect("it heals");
            })
        }
    };
    let blobs: Arc<dyn Blobs> =
        Arc::new(FaultBlobs::new(Arc::clone(&lab.installation.blobs), Arc::clone(faults)));
    let index =
        FaultCollect::new(Arc::clone(&process.contracts.collect), Arc::clone(&blobs), Arc::clone(faults))
            .with_meanwhile(meanwhile);
    let collector = lab.collector(Arc::new(index), blobs);
    collector.run_now(&*process.contracts.jobs, "test", 30).await.expect(ANSWERS);
    drop((collector, process, cache));
    let violations = lab.violations(&[hash_of(&short)], &[]).await;
    healed.load(Ordering::SeqCst).then_some(violations)
}

#[tokio::test]
async fn a_chunk_that_changed_since_it_was_read_is_not_moved() {
    let faults = Faults::crash_at(NEVER, false);
    for at in 0.. {
        let Some(violations) = heals_before(at, &faults).await else {
            assert!(at > 10, "the collection has only {at} calls");
            break;
        };
        assert_eq!(violations, [], "healed before call {at}");
    }
}

#[tokio::test]
async fn a_compaction_that_moves_changed_chunks_is_caught() {
    let faults = Faults::crash_at_with(NEVER, false, Lie::MovesUnchecked);
    for at in 0.. {
        let violations = heals_before(at, &faults).await.expect("no chunk was moved unchecked");
        if violations.iter().any(|violation| violation.invariant == 1) {
            return;
        }
    }
}

/// A second collector runs from beginning to end before a call of the first, which does not know.
#[tokio::test]
async fn two_collectors_at_once_lose_nothing() {
    for at in (0..).step_by(if is_long() { 1 } else { 3 }) {
        let when = format!("a collection before call {at}");
        let lab = Lab::new(false).await;
        let alive = prepare(&lab).await;
        let hashes: Vec<NarHash> = alive.iter().map(|nar| hash_of(nar)).collect();
        let process = lab.open().await;
        lab.pass(OLD);
        let blobs = Arc::clone(&lab.installation.blobs);
        let second = Arc::new(lab.collector(Arc::clone(&process.contracts.collect), Arc::clone(&blobs)));
        let (jobs, clock) = (Arc::clone(&process.contracts.jobs), Arc::clone(&lab.clock));
        let ran = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let meanwhile = {
            let ran = Arc::clone(&ran);
            move |call: u64| -> futures::future::BoxFuture<'static, ()> {
                let (second, jobs, clock, ran) =
                    (Arc::clone(&second), Arc::clone(&jobs), Arc::clone(&clock), Arc::clone(&ran));
                Box::pin(async move {
                    if call == at {
                        ran.store(true, Ordering::SeqCst);
                        // The first one's lease ends.
                        clock.0.fetch_add(60, Ordering::SeqCst);
                        second.run_now(&*jobs, "second", 30).await.expect(ANSWERS);
                    }
                })
            }
        };
        let index = FaultCollect::new(
            Arc::clone(&process.contracts.collect),
            Arc::clone(&blobs),
            Faults::crash_at(NEVER, false),
        )
        .with_meanwhile(meanwhile);
        let first = lab.collector(Arc::new(index), blobs);
        // The second one's end is the end of the job.
        let _ = first.run_now(&*process.contracts.jobs, "test", 30).await;
        drop(first);
        let is_last = !ran.load(Ordering::SeqCst);
        for _ in 0..2 {
            lab.pass(OLD);
            lab.collect(&process).await;
        }
        for nar in &alive {
            process.reads_back(nar, &when).await;
        }
        let audit = lab_audit(&lab, process).await;
        let leaks = find_leaks(&audit, &*lab.installation.blobs).await.expect("no pack is lost");
        assert_eq!((leaks.packs, leaks.nars), (0, 0), "{when}");
        assert_eq!(lab.violations(&hashes, &[]).await, [], "{when}");
        if is_last {
            assert!(at > 15, "the collection has only {at} calls");
            break;
        }
    }
}

/// What a pusher does at a certain call of the collections.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Racer {
    /// Commits an upload that looked its chunks up before the first collection, and a part of them
    /// is live: their packs are compacted.
    CommitsCompacted,
    /// Commits an upload that looked its chunks up before the first collection.
    CommitsChunks,
    /// The same, and the path that brought the chunks is removed with its bytes.
    CommitsPurged,
    /// Names a NAR that the index had when the upload began.
    CommitsKnownNar,
    /// Pushes from the beginning.
    Pushes,
}

/// A push that commits just before a certain call of a collection.
pub(crate) struct RacingPush {
    pub(crate) engine: Engine,
    pub(crate) cache: Arc<Cache>,
    pub(crate) path: StorePath,
    pub(crate) nar: Vec<u8>,
    /// The upload until its commit, if it began before the collection.
    pub(crate) ingested: Mutex<Option<Ingested>>,
    pub(crate) at: u64,
    /// What the server answered; `None` before.
    pub(crate) outcome: Mutex<Option<dormer_engine::Result<()>>>,
}

impl RacingPush {
    /// For [`FaultCollect::with_meanwhile`].
    pub(crate) fn before_call(
        self: &Arc<Self>,
    ) -> impl Fn(u64) -> BoxFuture<'static, ()> + Send + Sync + use<> {
        let racing = Arc::clone(self);
        move |call: u64| -> BoxFuture<'static, ()> {
            let racing = Arc::clone(&racing);
            Box::pin(async move {
                if call == racing.at {
                    let outcome = racing.push().await;
                    *racing.outcome.lock().expect(ANSWERS) = Some(outcome);
                }
            })
        }
    }

    async fn push(&self) -> dormer_engine::Result<()> {
        let ingested = self.ingested.lock().expect(ANSWERS).take();
        match ingested {
            Some(ingested) => {
                let object = object_for(&self.path, &[]);
                self.engine.commit_object(&self.cache, ingested, object).await.map(drop)
            }
            None => push(&self.engine, &self.cache, &self.path, &self.nar).await,
        }
    }
}

/// What became of a race at every call.
#[derive(Default)]
struct Races {
    committed: u32,
    refused: u32,
    live_condemned: usize,
}

/// Runs three collections; before call `at`, a pusher uses the chunks that are being collected.
/// `None` when there are fewer calls.
async fn race(
    on_postgres: bool,
    racer: Racer,
    at: u64,
    faults: Arc<Faults>,
    races: &mut Races,
) -> Option<()> {
    let when = format!("{racer:?} before call {at}");
    let lab = Lab::new(on_postgres).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let [first, _, third] = nars();
    push(&process.engine, &cache, &path(1), &first).await.expect(ANSWERS);
    if [Racer::CommitsCompacted, Racer::CommitsPurged].contains(&racer) {
        push(&process.engine, &cache, &path(2), &beginning()).await.expect(ANSWERS);
    }
    if racer == Racer::CommitsPurged {
        process.engine.purge_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    } else {
        process.engine.remove_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
        lab.pass(OLD);
    }
    // The third has the first's chunks and another hash.
    let raced = if racer == Racer::CommitsKnownNar { first.clone() } else { third.clone() };
    let ingested = match racer {
        Racer::Pushes => None,
        _ => Some(ingest(&process.engine, &raced).await.expect(ANSWERS)),
    };
    if let Some(ingested) = &ingested {
        assert_eq!(ingested.new_chunk_bytes, 0, "it only reuses");
    }
    let racing = Arc::new(RacingPush {
        engine: process.engine.clone(),
        cache: Arc::clone(&cache),
        path: path(9),
        nar: raced.clone(),
        ingested: Mutex::new(ingested),
        at,
        outcome: Mutex::new(None),
    });
    let blobs: Arc<dyn Blobs> =
        Arc::new(FaultBlobs::new(Arc::clone(&lab.installation.blobs), Arc::clone(&faults)));
    let index = FaultCollect::new(Arc::clone(&process.contracts.collect), Arc::clone(&blobs), faults)
        .with_meanwhile(racing.before_call());
    let collector = lab.collector(Arc::new(index), blobs);
    for _ in 0..3 {
        collector.run_now(&*process.contracts.jobs, "test", 30).await.expect(ANSWERS);
        // SQLite's file has one reader of everything at a time.
        if let Some(url) = &lab.postgres {
            let audit = Lab::postgres(url).await.inventory().await.expect(ANSWERS);
            races.live_condemned += process.live_condemned_packs(&audit).await.len();
        }
        lab.pass(CONDEMNED);
    }
    let outcome = racing.outcome.lock().expect(ANSWERS).take();
    // They have the database open.
    drop((collector, racing));
    let outcome = outcome?;
    match outcome {
        Ok(()) => races.committed += 1,
        Err(error) => {
            races.refused += 1;
            assert_eq!(error.class(), ErrorClass::Unavailable, "{error} {when}");
            push(&process.engine, &cache, &path(9), &raced).await.expect("the client pushes again");
        }
    }
    process.reads_back(&raced, &when).await;
    lab.collect_all(&process).await;
    process.reads_back(&raced, &format!("{when}, after more collections")).await;
    if [Racer::CommitsCompacted, Racer::CommitsPurged].contains(&racer) {
        process.reads_back(&beginning(), &when).await;
    }
    drop((process, cache));
    assert_eq!(lab.violations(&[hash_of(&raced)], &[]).await, [], "{when}");
    Some(())
}

fn is_long() -> bool {
    std::env::var_os("DORMER_TEST_LONG").is_some()
}

async fn races_lose_nothing(on_postgres: bool, racer: Racer) {
    let mut races = Races::default();
    // A database for each call takes its time.
    let all = !on_postgres || is_long();
    let has_many = [Racer::CommitsCompacted, Racer::CommitsPurged].contains(&racer);
    let step = match (all, on_postgres) {
        (true, true) => 1,
        (true, false) => 1 + 2 * usize::from(has_many && !is_long()),
        (false, _) => 4 + 4 * usize::from(has_many),
    };
    for at in (0..).step_by(step) {
        let faults = Faults::crash_at(NEVER, false);
        if race(on_postgres, racer, at, faults, &mut races).await.is_none() {
            assert!(at > 20, "the collections have only {at} calls");
            break;
        }
    }
    assert!(races.committed > 0, "some pushes come in time");
    assert_eq!(races.live_condemned, 0, "a pack that a NAR needs is never condemned");
    assert_eq!(races.refused > 0, racer != Racer::Pushes, "some uploads come too late");
}

#[tokio::test]
async fn a_commit_before_any_call_of_a_collection_loses_nothing() {
    races_lose_nothing(false, Racer::CommitsChunks).await;
}

#[tokio::test]
async fn a_commit_before_any_call_of_a_compaction_loses_nothing() {
    races_lose_nothing(false, Racer::CommitsCompacted).await;
}

#[tokio::test]
async fn a_commit_before_any_call_of_a_compaction_loses_nothing_on_postgresql() {
    races_lose_nothing(true, Racer::CommitsCompacted).await;
}

#[tokio::test]
async fn a_commit_before_any_call_of_a_purge_loses_nothing() {
    races_lose_nothing(false, Racer::CommitsPurged).await;
}

#[tokio::test]
async fn a_commit_before_any_call_of_a_purge_loses_nothing_on_postgresql() {
    races_lose_nothing(true, Racer::CommitsPurged).await;
}

#[tokio::test]
async fn a_known_nar_named_before_any_call_of_a_collection_is_not_lost() {
    races_lose_nothing(false, Racer::CommitsKnownNar).await;
}

#[tokio::test]
async fn a_push_before_any_call_of_a_collection_loses_nothing() {
    races_lose_nothing(false, Racer::Pushes).await;
}

#[tokio::test]
async fn pushes_before_any_call_of_a_collection_lose_nothing_on_postgresql() {
    races_lose_nothing(true, Racer::CommitsChunks).await;
    if std::env::var_os("DORMER_TEST_LONG").is_some() {
        races_lose_nothing(true, Racer::CommitsKnownNar).await;
        races_lose_nothing(true, Racer::Pushes).await;
    }
}

#[tokio::test]
async fn a_collector_that_skips_the_stamps_is_caught() {
    let mut races = Races::default();
    for at in 0.. {
        let faults = Faults::crash_at_with(NEVER, false, Lie::StampsIgnored);
        let raced = race(true, Racer::CommitsChunks, at, faults, &mut races).await;
        if races.live_condemned > 0 {
            return;
        }
        assert!(raced.is_some(), "no live pack was condemned");
    }
}

/// The runner opens collections when they are due; of two runners, one runs each.
#[tokio::test]
async fn a_collection_runs_at_its_interval_and_once() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let runner = || {
        let collector =
            lab.collector(Arc::clone(&process.contracts.collect), Arc::clone(&lab.installation.blobs));
        let settings = JobSettings { poll: std::time::Duration::from_millis(2), ..JobSettings::default() };
        JobRunner::new(
            Arc::clone(&process.contracts.jobs),
            Arc::clone(&lab.clock) as Arc<dyn Clock>,
            "test".to_owned(),
            settings,
        )
        .with_collector(collector)
    };
    let ended_at = async |expected: i64| {
        for _ in 0..5_000 {
            let last = process.contracts.collect.last_collection().await.expect(ANSWERS);
            if last.ended_at == Some(expected) {
                assert_eq!(last.opened_at, expected);
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        panic!("no collection ended at {expected}");
    };
    let test = async {
        let start = lab.clock.now();
        ended_at(start).await;
        lab.pass(HOUR - 1);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let last = process.contracts.collect.last_collection().await.expect(ANSWERS);
        assert_eq!(last.opened_at, start, "it is not due yet");
        lab.pass(1);
        ended_at(start + HOUR).await;
    };
    let (stop_a, stopped_a) = tokio::sync::oneshot::channel::<()>();
    let (stop_b, stopped_b) = tokio::sync::oneshot::channel::<()>();
    let (a, b) = (runner(), runner());
    tokio::join!(a.run(async { drop(stopped_a.await) }), b.run(async { drop(stopped_b.await) }), async {
        test.await;
        drop((stop_a, stop_b));
    });
}
