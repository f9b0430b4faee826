//! The journal and recovery: what is recovered equals what was there, whichever step crashes and
//! wherever a file is cut, also when two processes write at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dormer_blobs::{BlobKey, Blobs, Store, StoreBlobs};
use dormer_engine::{
    Clock, CollectSettings, Collector, ComparedPasts, Engine, Journal, JournalSettings, KEEP_SECONDS,
    MasterKey, Recovered, Recovery, RecoveryEvent, RecoveryIndex, Result, SystemClock, find_missing,
    keep_journal, kept_journals, rekey, release_kept_journals, stored_journals,
};
use dormer_format::{
    JournalCache, JournalFile, JournalHeader, JournalKind, JournalName, JournalPin, JournalRecord,
    JournalWriter, PackBuilder, PackId, StoredChunk,
};
use dormer_index::{
    Alias, Cache, CacheId, FoundObject, Inventory, JobIndex, JournalIndex, JournaledDocument,
    MASTER_KEY_PROOF, ObjectOrder, Pin, PostgresIndex, PostgresOptions, SqlIndex, SqliteIndex, SqliteOptions,
    StoredListing, UnixSeconds,
};
use dormer_nix::nar::{Node, encode_tree};
use dormer_nix::{BuildTrace, NarHash, StorePath, StorePathHash, TraceKey};
use dormer_testkit::services::Postgres;
use dormer_testkit::{
    FaultCollect, FaultIndex, FaultJournal, Faults, MemoryTarget, Random, SlowWrites, check_invariants,
    create_postgres_index, find_leaks, object_for, package_nar, place_sqlite_index,
};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::collect::TestClock;
use crate::common::{
    create_cache, create_main, debug_nar, decompress, engine_over, hash_of, ingest, path, push, served,
    settings,
};

const ANSWERS: &str = "nothing is wrong";

/// An index, and all that belongs to it.
struct Database {
    contracts: RecoveryIndex,
    jobs: Arc<dyn JobIndex>,
    opened: Arc<SqlIndex>,
    folder: Option<TempDir>,
}

impl Database {
    async fn empty(on_postgres: bool) -> Self {
        if on_postgres {
            let url = create_postgres_index(Postgres::shared()).await;
            let options = PostgresOptions { connections_max: 2, ..PostgresOptions::default() };
            let index = Arc::new(PostgresIndex::open(&url, options).await.expect(ANSWERS));
            let contracts =
                RecoveryIndex { index: index.clone(), journal: index.clone(), collect: index.clone() };
            return Self { contracts, jobs: index.clone(), opened: index, folder: None };
        }
        let folder = TempDir::new().expect("a temporary folder");
        let path = folder.path().join("index.sqlite");
        place_sqlite_index(&path).await;
        let index = Arc::new(SqliteIndex::open(&path, SqliteOptions::default()).await.expect(ANSWERS));
        Self::over_sqlite(index, folder)
    }

    fn over_sqlite(index: Arc<SqlIndex>, folder: TempDir) -> Self {
        let contracts =
            RecoveryIndex { index: index.clone(), journal: index.clone(), collect: index.clone() };
        Self { contracts, jobs: index.clone(), opened: index, folder: Some(folder) }
    }

    async fn inventory(&self) -> Inventory {
        self.opened.inventory().await.expect(ANSWERS)
    }
}

/// An installation with a journal, in one store.
struct Lab {
    database: Database,
    engine: Engine,
    files: MemoryTarget,
    blobs: Arc<dyn Blobs>,
    on_postgres: bool,
}

/// Every write is followed by snapshots, and any lease can be taken at once.
fn restless() -> JournalSettings {
    JournalSettings {
        segment_bytes_min: 0,
        snapshot_weight: 0,
        lease_seconds: 0,
        ..JournalSettings::default()
    }
}

/// Steps between two crashes of the usual run.
fn stride(on_postgres: bool) -> usize {
    match (std::env::var_os("DORMER_TEST_LONG"), on_postgres) {
        (Some(_), _) => 1,
        (None, false) => 3,
        (None, true) => 7,
    }
}

impl Lab {
    async fn new(on_postgres: bool) -> Self {
        let database = Database::empty(on_postgres).await;
        let files = MemoryTarget::new();
        let blobs: Arc<dyn Blobs> = Arc::new(StoreBlobs::new(files.store()));
        let engine = engine_over(database.contracts.index.clone(), Arc::clone(&blobs), settings());
        Self { database, engine, files, blobs, on_postgres }
    }

    /// Another database over the same store.
    fn over(&self, database: Database) -> Self {
        let (files, blobs) = (self.files.clone(), Arc::clone(&self.blobs));
        let engine = engine_over(database.contracts.index.clone(), Arc::clone(&blobs), settings());
        Self { database, engine, files, blobs, on_postgres: self.on_postgres }
    }

    fn journal(&self, settings: JournalSettings) -> Journal {
        self.journal_over(self.database.contracts.journal.clone(), self.files.store(), settings)
    }

    fn journal_over(
        &self,
        journal: Arc<dyn JournalIndex>,
        store: Store,
        settings: JournalSettings,
    ) -> Journal {
        let (index, blobs) = (self.database.contracts.index.clone(), Arc::clone(&self.blobs));
        Journal::new(index, journal, blobs, store, Arc::new(SystemClock), "test".to_owned(), settings)
    }

    /// Recovers into an empty index.
    async fn recover(&self) -> (Database, Recovered) {
        let database = Database::empty(self.on_postgres).await;
        let report = self.recover_into(&database.contracts).await.expect(ANSWERS);
        (database, report)
    }

    async fn recover_into(&self, into: &RecoveryIndex) -> Result<Recovered> {
        Recovery::open(self.files.store()).await?.run(into, &SystemClock, &|_| ()).await
    }

    /// Recovers, and compares everything.
    async fn check(&self, when: &str) -> Recovered {
        let (recovered, report) = self.recover().await;
        assert_eq!(contents(&recovered).await, contents(&self.database).await, "{when}");
        assert_eq!((report.lost, report.cut_journal_files), (0, 0), "{when}: {report:?}");
        assert!(report.journal_files > 0, "{when}");
        self.check_invariants(&recovered, when).await;
        recovered.contracts.index.close().await.expect(ANSWERS);
        report
    }

    /// Whatever was recovered is whole: every invariant holds, and no pack is a stray.
    async fn check_invariants(&self, recovered: &Database, when: &str) {
        let leaks = find_leaks(&recovered.inventory().await, &*self.blobs).await.expect(ANSWERS);
        assert_eq!(leaks.packs, 0, "{when}: a pack without a row");
        assert_eq!(check_invariants(recovered.inventory().await, &*self.blobs, &[], &[]).await, [], "{when}");
    }

    /// Something of every kind changes.
    async fn change(&self, cache: &Cache, number: u8) {
        let index = &self.database.contracts.index;
        let nar = nar(number);
        let mut object = object_for(&path(number), &[path(200)]);
        object.deriver = Some(derivation(number).to_string());
        let ingested = ingest(&self.engine, &nar).await.expect(ANSWERS);
        self.engine.commit_object(cache, ingested, object).await.expect(ANSWERS);
        let pin =
            Pin { name: "newest".to_owned(), path: path(number), created_at: 1_700_000_000, ends_at: None };
        index.add_pin(cache.id, &pin, Some(2)).await.expect(ANSWERS);
        let ingested = ingest(&self.engine, &nar).await.expect(ANSWERS);
        let name = format!("{number}.nar.xz");
        self.engine.commit_alias(cache, ingested, &name, "xz").await.expect(ANSWERS);
        let log = format!("building {number}").into_bytes();
        self.engine.put_log(cache, derivation(number), log).await.expect(ANSWERS);
        self.engine.put_trace(cache, trace(number)).await.expect(ANSWERS);
        if let Some(old) = number.checked_sub(3) {
            // For cause, which takes alias, log and trace too.
            self.engine.remove_object(cache, &path(old).hash(), None).await.expect(ANSWERS);
        }
    }

    /// Collects at this time, and lists the store in any case.
    async fn collect(&self, at: UnixSeconds) -> dormer_engine::CollectionReport {
        self.collect_with(at, CollectSettings { listing_seconds: 0, ..CollectSettings::default() }).await
    }

    async fn collect_with(
        &self,
        at: UnixSeconds,
        settings: CollectSettings,
    ) -> dormer_engine::CollectionReport {
        // A compaction is put on the list of doomed packs through the wrapper's contract only.
        let collect = Arc::clone(&self.database.contracts.collect);
        let faults = Faults::crash_at(u64::MAX, false);
        let collect = Arc::new(FaultCollect::new(collect, Arc::clone(&self.blobs), faults));
        let collector = Collector::new(collect, Arc::clone(&self.blobs), Arc::new(At(at)), settings)
            .with_journal(self.files.store(), Arc::clone(&self.database.contracts.journal));
        collector
            .run_now(&*self.database.jobs, "test", 30)
            .await
            .expect(ANSWERS)
            .expect("nobody else collects")
    }
}

/// A clock that stands still.
#[derive(Debug)]
struct At(UnixSeconds);

impl Clock for At {
    fn now(&self) -> UnixSeconds {
        self.0
    }
}

fn derivation(number: u8) -> StorePath {
    StorePath::new(path(number).hash(), "package.drv").expect("a good name")
}

fn trace(number: u8) -> BuildTrace {
    BuildTrace {
        key: TraceKey::Derivation { derivation: derivation(number), output: "out".to_owned() },
        out_path: path(number),
        dependents: BTreeMap::new(),
        sigs: Vec::new(),
        is_keyed: false,
    }
}

fn nar(number: u8) -> Vec<u8> {
    package_nar(&mut Random::new(number.into()), 9_000, &[path(200)])
}

/// Build ids of debug files: the first lies in a small NAR, the second among so many files that the
/// listing is in chunks.
const BUILD_IDS: [&str; 2] = ["00ab", "00cd"];

async fn push_debug_files(engine: &Engine, cache: &Cache) {
    push(engine, cache, &path(60), &debug_nar(BUILD_IDS[0], [])).await.expect(ANSWERS);
    let mut random = Random::new(60);
    let files =
        (0..5_000).map(|_| (format!("{:x}{:x}", random.next_u64(), random.next_u64()), Node::file("")));
    push(engine, cache, &path(61), &debug_nar(BUILD_IDS[1], files)).await.expect(ANSWERS);
    let found = engine.index().find_object(cache.id, &path(61).hash()).await.expect(ANSWERS);
    let listing = engine.index().find_listing(found.expect("it was pushed").nar.id).await.expect(ANSWERS);
    assert!(matches!(listing, Some(StoredListing::Chunks { .. })), "a large listing");
}

/// All that a user can see of an index, by cache and name.
#[derive(Debug, Default, PartialEq)]
struct Contents {
    caches: Vec<Cache>,
    objects: BTreeMap<String, (FoundObject, i64, Option<StoredListing>)>,
    referrers: BTreeMap<String, Vec<dormer_nix::StorePathHash>>,
    pins: BTreeMap<String, Vec<Pin>>,
    aliases: BTreeMap<String, Alias>,
    documents: BTreeMap<String, JournaledDocument>,
    /// Which NAR has the debug file of a build id.
    debug_files: BTreeMap<String, NarHash>,
}

async fn contents(database: &Database) -> Contents {
    let RecoveryIndex { index, journal, .. } = &database.contracts;
    let mut all = Contents::default();
    for mut cache in index.list_caches().await.expect(ANSWERS) {
        let id = cache.id;
        for listed in index.list_objects(id, ObjectOrder::Age, None, 1_000).await.expect(ANSWERS) {
            let mut found =
                index.find_object(id, &listed.path.hash()).await.expect(ANSWERS).expect("it is listed");
            let listing = index.find_listing(found.nar.id).await.expect(ANSWERS);
            // Recovered listings in chunks have other numbers.
            let listing = listing.filter(|listing| matches!(listing, StoredListing::Inline(_)));
            found.nar.id = dormer_index::NarId(0);
            found.last_used_at = 0;
            all.objects
                .insert(format!("{}/{}", cache.name, listed.path), (found, listed.created_at, listing));
        }
        let pins = index.list_pins(id, None, 0, 1_000).await.expect(ANSWERS);
        all.pins.insert(cache.name.clone(), pins);
        let referrers = index.find_referrers(id, &path(200).hash(), 1_000).await.expect(ANSWERS);
        all.referrers.insert(cache.name.clone(), referrers);
        let documents = journal.journaled_documents_after(0, 1_000).await.expect(ANSWERS);
        for document in documents.into_iter().filter(|document| document.cache == id) {
            let name = format!("{}/{}", cache.name, document.name);
            all.documents.insert(name, JournaledDocument { cache: CacheId(0), id: 0, ..document });
        }
        for build_id in BUILD_IDS {
            let wanted = build_id.parse().expect("a build id");
            if let Some((nar, _)) = index.find_debug_nar(id, &wanted).await.expect(ANSWERS) {
                all.debug_files.insert(format!("{}/{build_id}", cache.name), nar);
            }
        }
        for alias in journal.journaled_aliases_after((id, ""), 1_000).await.expect(ANSWERS) {
            if alias.cache == id {
                let mut found =
                    index.find_alias(id, &alias.file_name, 0).await.expect(ANSWERS).expect("it is there");
                found.nar.id = dormer_index::NarId(0);
                all.aliases.insert(format!("{}/{}", cache.name, alias.file_name), found);
            }
        }
        cache.id = dormer_index::CacheId(0);
        all.caches.push(cache);
    }
    all
}

async fn every_kind_of_thing_is_recovered(on_postgres: bool) {
    let lab = Lab::new(on_postgres).await;
    let RecoveryIndex { index, journal: settings_of, .. } = &lab.database.contracts;
    let main = create_main(&lab.engine).await;
    let other = create_cache(&lab.engine, "other").await;
    let key = MasterKey::from_bytes([9; 32]);
    index.create_setting(MASTER_KEY_PROOF, &key.proof()).await.expect(ANSWERS);
    index.create_setting("first-start", b"done").await.expect(ANSWERS);
    for number in 0..5 {
        lab.change(&main, number).await;
    }
    let mut object = object_for(&path(1), &[path(3), path(1)]);
    object.deriver = Some(format!("{}.drv", path(9)));
    object.sigs = vec!["a-key:AAAA".to_owned()];
    let ingested = ingest(&lab.engine, &nar(1)).await.expect(ANSWERS);
    lab.engine.commit_object(&other, ingested, object).await.expect(ANSWERS);
    push_debug_files(&lab.engine, &other).await;
    let gone = create_cache(&lab.engine, "gone").await;
    push(&lab.engine, &gone, &path(7), &nar(7)).await.expect(ANSWERS);

    let journal = lab.journal(JournalSettings::default());
    assert!(journal.write().await.expect(ANSWERS) >= 2, "a snapshot");
    lab.check("after a snapshot").await;
    lab.engine.delete_cache(&gone, None).await.expect(ANSWERS);
    lab.change(&main, 5).await;
    index.remove_pins(main.id, "newest", Some(&path(4).hash())).await.expect(ANSWERS);
    // A log that comes before its path, and another master key.
    lab.engine.put_log(&other, derivation(50), b"early".to_vec()).await.expect(ANSWERS);
    let key = MasterKey::from_bytes([8; 32]).with_previous(Some([9; 32]));
    let sealed_before = sealed_secrets(&lab);
    rekey(&**index, &key).await.expect(ANSWERS);
    assert!(journal.write().await.expect(ANSWERS) >= 3, "a segment, and a snapshot");
    let sealed = sealed_secrets(&lab);
    assert!(
        !sealed.is_empty() && sealed.is_disjoint(&sealed_before),
        "the old key opens nothing in the store"
    );
    // Nothing changed, so nothing is asked of the store.
    let (requests, statements) = (lab.files.store().requests(), index.statement_count());
    let events = lab.files.events().len();
    assert_eq!(journal.write().await.expect(ANSWERS), 0);
    assert_eq!((lab.files.store().requests(), lab.files.events().len()), (requests, events));
    assert!(index.statement_count() <= statements + 9, "three look-ups");

    let report = lab.check("after a snapshot and a segment").await;
    assert_eq!((report.caches, report.pins, report.unreadable_packs), (2, 1, 0), "{report:?}");
    assert_eq!(report.documents, 7, "{report:?}");
    let (recovered, _) = lab.recover().await;
    let debug_files = contents(&recovered).await.debug_files;
    assert_eq!(debug_files.keys().collect::<Vec<_>>(), ["other/00ab", "other/00cd"]);
    let engine = engine_over(recovered.contracts.index.clone(), Arc::clone(&lab.blobs), settings());
    for (name, path, bytes) in [("main", path(5), nar(5)), ("other", path(1), nar(1))] {
        let cache = engine.find_cache(name).await.expect(ANSWERS).expect("it is there");
        let bytes_served = served(&engine, &cache, &bytes, None).await.expect(ANSWERS).expect("it is there");
        assert_eq!(decompress(&bytes_served), bytes, "{path}");
    }
    let mut expected = settings_of.settings().await.expect(ANSWERS);
    expected.retain(|(name, _)| name != "first-start");
    assert_eq!(recovered.contracts.journal.settings().await.expect(ANSWERS), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_thing_is_recovered_on_sqlite() {
    Box::pin(every_kind_of_thing_is_recovered(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_thing_is_recovered_on_postgres() {
    Box::pin(every_kind_of_thing_is_recovered(true)).await;
}

/// The journal crashes at a step; another process goes on. Then the same with a later step.
async fn a_crash_at_any_step_of_the_journal_loses_nothing(on_postgres: bool) {
    let lab = Lab::new(on_postgres).await;
    let cache = create_main(&lab.engine).await;
    let mut number = 0;
    // On PostgreSQL, the usual run keeps the effect of the last step: that is the harder half.
    let is_short = on_postgres && stride(on_postgres) > 1;
    for effect_kept in [false, true].into_iter().filter(|kept| *kept || !is_short) {
        for step in (0_u64..).step_by(stride(on_postgres)) {
            lab.change(&cache, number).await;
            number += 1;
            let faults = Faults::crash_at(step, effect_kept);
            let inner = lab.database.contracts.journal.clone();
            let journal = Arc::new(FaultJournal::new(inner, Arc::clone(&faults)));
            let store = lab.files.crashing(&faults);
            let outcome = lab.journal_over(journal, store, restless()).write().await;
            assert_eq!(outcome.is_err(), faults.crashed(), "step {step}: {outcome:?}");
            let when = format!("step {step}, effect kept: {effect_kept}");
            // What is in the store now is whole: some earlier state, or the present one.
            let (recovered, _) = lab.recover().await;
            lab.check_invariants(&recovered, &when).await;
            lab.journal(restless()).write().await.expect(ANSWERS);
            lab.check(&when).await;
            if !faults.crashed() {
                assert!(step > 5, "{step} steps: a segment, a snapshot, deletions");
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_of_the_journal_loses_nothing_on_sqlite() {
    Box::pin(a_crash_at_any_step_of_the_journal_loses_nothing(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_of_the_journal_loses_nothing_on_postgres() {
    Box::pin(a_crash_at_any_step_of_the_journal_loses_nothing(true)).await;
}

/// Recovery crashes at a step and begins again.
async fn a_recovery_that_crashes_at_any_step_begins_again(on_postgres: bool) {
    let lab = Lab::new(on_postgres).await;
    let cache = create_main(&lab.engine).await;
    for number in 0..4 {
        lab.change(&cache, number).await;
    }
    lab.journal(JournalSettings::default()).write().await.expect(ANSWERS);
    let expected = contents(&lab.database).await;
    for step in (0_u64..).step_by(stride(on_postgres)) {
        let database = Database::empty(on_postgres).await;
        let faults = Faults::crash_at(step, step % 2 == 0);
        let RecoveryIndex { index, journal, collect } = database.contracts.clone();
        let dying = RecoveryIndex {
            index: Arc::new(FaultIndex::new(index, Arc::clone(&faults))),
            journal: Arc::new(FaultJournal::new(journal, Arc::clone(&faults))),
            collect: Arc::new(FaultCollect::new(collect, Arc::clone(&lab.blobs), Arc::clone(&faults))),
        };
        let outcome = lab.recover_into(&dying).await;
        assert_eq!(outcome.is_err(), faults.crashed(), "step {step}: {outcome:?}");
        // Something took the rest for strays meanwhile.
        let packs: Vec<_> =
            lab.blobs.list().await.expect(ANSWERS).into_iter().map(|BlobKey::Pack(pack)| pack).collect();
        database.contracts.collect.doom_packs(&packs, Some(0)).await.expect(ANSWERS);
        let report = lab.recover_into(&database.contracts).await.expect(ANSWERS);
        assert_eq!(report.packs, report.packs_found, "step {step}: {report:?}");
        assert_eq!(contents(&database).await, expected, "step {step}");
        lab.check_invariants(&database, &format!("step {step}")).await;
        database.contracts.index.close().await.expect(ANSWERS);
        if !faults.crashed() {
            assert!(step > 10, "{step} steps");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_that_crashes_at_any_step_begins_again_on_sqlite() {
    Box::pin(a_recovery_that_crashes_at_any_step_begins_again(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_that_crashes_at_any_step_begins_again_on_postgres() {
    Box::pin(a_recovery_that_crashes_at_any_step_begins_again(true)).await;
}

/// Two processes that both believe they hold the lease write at once, while clients push.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_that_write_the_journal_at_once_lose_nothing() {
    let lab = Lab::new(true).await;
    let cache = create_main(&lab.engine).await;
    let (first, second) = (lab.journal(restless()), lab.journal(restless()));
    for number in 0..8 {
        let pushes = lab.change(&cache, number);
        let (first, second, ()) = tokio::join!(first.write(), second.write(), pushes);
        // Which of them wrote does not matter; one that lost its lease is no failure.
        first.expect(ANSWERS);
        second.expect(ANSWERS);
    }
    lab.journal(restless()).write().await.expect(ANSWERS);
    lab.check("in the end").await;
}

/// What the loss of a database may lose at the default settings, in seconds.
const LOSS_WINDOW: i64 = 60;

/// A replica that writes the journal whenever its turn is, by the clock of the test.
struct Replica<'a> {
    name: &'static str,
    lab: &'a Lab,
    clock: Arc<TestClock>,
    turn_at: UnixSeconds,
}

impl Replica<'_> {
    /// A turn, with a crash at a step.
    async fn turn(&mut self, faults: &Arc<Faults>) {
        let contracts = &self.lab.database.contracts;
        let journal = Journal::new(
            contracts.index.clone(),
            Arc::new(FaultJournal::new(contracts.journal.clone(), Arc::clone(faults))),
            Arc::clone(&self.lab.blobs),
            self.lab.files.crashing(faults),
            Arc::clone(&self.clock) as Arc<dyn Clock>,
            self.name.to_owned(),
            JournalSettings::default(),
        );
        let pause = journal.turn().await;
        self.turn_at = self.clock.now() + i64::try_from(pause.as_secs()).expect("less than an hour");
    }
}

/// Two replicas write the journal, and one of them dies while it has the lease, at the worst
/// moment. Whenever the database is lost, it loses nothing that was acknowledged more than a minute
/// ago.
async fn a_lost_database_loses_a_minute_at_most(on_postgres: bool) {
    let lab = Lab::new(on_postgres).await;
    let cache = create_main(&lab.engine).await;
    let clock = TestClock::new();
    let begun_at = clock.now();
    let replica =
        |name, turn_at| Replica { name, lab: &lab, clock: Arc::clone(&clock), turn_at: begun_at + turn_at };
    // The lease of the dead one ends a second after a turn of the other.
    let (mut lives, mut dies) = (replica("lives", 0), Some(replica("dies", 11)));
    let well = Faults::crash_at(u64::MAX, false);
    let mut acknowledged: Vec<(u8, UnixSeconds)> = Vec::new();
    let mut oldest_lost = 0;
    for second in 0..120 {
        let now = clock.now();
        if let Some(mut replica) = dies.take() {
            if replica.turn_at <= now && second > 20 {
                replica.turn(&Faults::crash_at(0, true)).await;
            } else {
                if replica.turn_at <= now {
                    replica.turn(&well).await;
                }
                dies = Some(replica);
            }
        }
        if lives.turn_at <= now {
            // Before a turn, most is lost.
            let is_checked = second > 0 && (!on_postgres || dies.is_none());
            if is_checked {
                let (recovered, _) = lab.recover().await;
                let index = &recovered.contracts.index;
                let main = index.find_cache("main").await.expect(ANSWERS).expect("it is there");
                for (number, at) in &acknowledged {
                    if index.find_object(main.id, &path(*number).hash()).await.expect(ANSWERS).is_none() {
                        oldest_lost = oldest_lost.max(now - at);
                        assert!(now - at <= LOSS_WINDOW, "{} s old at {second} s", now - at);
                    }
                }
                index.close().await.expect(ANSWERS);
            }
            lives.turn(&well).await;
        }
        if second % 3 == 0 {
            let number = u8::try_from(second / 3).expect("it is small");
            push(&lab.engine, &cache, &path(number), &nar(number)).await.expect(ANSWERS);
            acknowledged.push((number, now));
        }
        clock.pass(1);
    }
    assert!(dies.is_none() && oldest_lost > 40, "the dead replica delayed the other: {oldest_lost} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_loses_a_minute_at_most_on_sqlite() {
    Box::pin(a_lost_database_loses_a_minute_at_most(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_loses_a_minute_at_most_on_postgres() {
    Box::pin(a_lost_database_loses_a_minute_at_most(true)).await;
}

/// How far the journal is behind, as its metric says.
fn lag(journal: &Journal) -> f64 {
    let families = prometheus::core::Collector::collect(&journal.metrics());
    let found = families.iter().find(|family| family.name() == "dormer_journal_lag_seconds");
    found.expect("it is a metric").get_metric()[0].get_gauge().get_value()
}

/// A transaction that was left open hides every later change from the journal. The lag says so.
#[tokio::test(flavor = "multi_thread")]
async fn the_lag_grows_while_a_long_transaction_hides_changes() {
    let url = create_postgres_index(Postgres::shared()).await;
    let options = PostgresOptions { connections_max: 2, ..PostgresOptions::default() };
    let index = Arc::new(PostgresIndex::open(&url, options).await.expect(ANSWERS));
    let (clock, files) = (TestClock::new(), MemoryTarget::new());
    let blobs: Arc<dyn Blobs> = Arc::new(StoreBlobs::new(files.store()));
    let key = MasterKey::from_bytes([9; 32]);
    let at = || Arc::clone(&clock) as Arc<dyn Clock>;
    let engine = Engine::new(index.clone(), Arc::clone(&blobs), key, settings(), at());
    let holder = "test".to_owned();
    let journal =
        Journal::new(index.clone(), index, blobs, files.store(), at(), holder, JournalSettings::default());
    let cache = create_main(&engine).await;
    journal.write().await.expect(ANSWERS);

    let statements = "BEGIN; SELECT pg_current_xact_id(); SELECT pg_sleep(600); COMMIT";
    let long_url = url.clone();
    let long = std::thread::spawn(move || Postgres::shared().sql(&long_url, statements));
    let is_running = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                      AND backend_xid IS NOT NULL AND wait_event = 'PgSleep'";
    while Postgres::shared().sql(&url, is_running) != "1" {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    push(&engine, &cache, &path(1), &nar(1)).await.expect(ANSWERS);
    clock.pass(90);
    journal.write().await.expect(ANSWERS);
    assert!((lag(&journal) - 90.0).abs() < 0.5, "{}", lag(&journal));
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE datname = current_database() AND wait_event = 'PgSleep'";
    assert_eq!(Postgres::shared().sql(&url, end), "1");
    assert!(long.join().is_err(), "its connection was ended");
    // Tests beside this one hide changes for a moment.
    let begun = std::time::Instant::now();
    while lag(&journal) > 0.0 {
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "the lag stays");
        journal.write().await.expect(ANSWERS);
    }
    let recovered = Recovery::open(files.store()).await.expect(ANSWERS);
    let database = Database::empty(false).await;
    let report = recovered.run(&database.contracts, &SystemClock, &|_| ()).await.expect(ANSWERS);
    assert_eq!((report.paths, report.lost), (1, 0));
}

/// The file of the newest segment, and its name.
fn newest_segment(files: &MemoryTarget) -> (String, Bytes) {
    let files = files.files().into_iter().filter(|(name, _)| name.contains("segment"));
    files.max_by_key(|(name, _)| name.clone()).expect("a segment")
}

#[tokio::test]
async fn a_file_that_is_cut_gives_what_was_before_the_cut() {
    let lab = Lab::new(false).await;
    let cache = create_main(&lab.engine).await;
    let journal = lab.journal(JournalSettings::default());
    lab.change(&cache, 0).await;
    journal.write().await.expect(ANSWERS);
    lab.change(&cache, 1).await;
    journal.write().await.expect(ANSWERS);
    let (name, whole) = newest_segment(&lab.files);
    let store = lab.files.store();
    for length in [0, 1, 55, 56, 57, 80, whole.len() / 2, whole.len() - 17, whole.len() - 1] {
        store.put(&name, None, [whole.slice(..length)]).await.expect(ANSWERS);
        let (recovered, report) = lab.recover().await;
        assert_eq!(report.cut_journal_files, 1, "{length} of {} bytes", whole.len());
        lab.check_invariants(&recovered, &format!("{length} bytes")).await;
        let paths: Vec<StorePath> =
            contents(&recovered).await.objects.into_values().map(|(found, ..)| found.object.path).collect();
        let has_second = length >= whole.len() - 16;
        assert_eq!(
            (paths.contains(&path(0)), paths.contains(&path(1))),
            (true, has_second),
            "{length} bytes"
        );
    }
    // The snapshot's end is gone: all there is of the lineage counts.
    store.put(&name, None, [whole]).await.expect(ANSWERS);
    let end = lab.files.files().into_keys().find(|name| name.contains("/end-")).expect("a whole snapshot");
    store.delete(&end).await.expect(ANSWERS);
    lab.check("without the snapshot's end").await;
}

/// Cuts any files of a journal of several segments anywhere. Nothing that is recovered was never
/// so: each path that is there has the bytes that it always had, and reads back.
#[test]
fn a_journal_that_is_cut_anywhere_recovers_to_something_that_was() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect(ANSWERS);
    let lab = runtime.block_on(async {
        let lab = Lab::new(false).await;
        let cache = create_main(&lab.engine).await;
        let journal = lab.journal(JournalSettings::default());
        for number in 0..5 {
            lab.change(&cache, number).await;
            journal.write().await.expect(ANSWERS);
        }
        lab
    });
    let whole: Vec<(String, Bytes)> =
        lab.files.files().into_iter().filter(|(name, _)| name.starts_with("journal/")).collect();
    let cases = if std::env::var_os("DORMER_TEST_LONG").is_some() { 200 } else { 8 };
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let cuts = proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..4);
    proptest::test_runner::TestRunner::new(config)
        .run(&cuts, |cuts| {
            runtime.block_on(async {
                let store = lab.files.store();
                for (file, length) in &cuts {
                    let (name, bytes) = &whole[file.index(whole.len())];
                    let cut = bytes.slice(..length.index(bytes.len()));
                    store.put(name, None, [cut]).await.expect(ANSWERS);
                }
                let (recovered, report) = lab.recover().await;
                assert!(report.cut_journal_files > 0 || report.journal_files == 0, "{report:?}");
                lab.check_invariants(&recovered, "cut").await;
                let engine =
                    engine_over(recovered.contracts.index.clone(), Arc::clone(&lab.blobs), settings());
                if let Some(cache) = engine.find_cache("main").await.expect(ANSWERS) {
                    for number in 0..5 {
                        let found = recovered
                            .contracts
                            .index
                            .find_object(cache.id, &path(number).hash())
                            .await
                            .expect(ANSWERS);
                        let Some(found) = found else { continue };
                        assert_eq!(found.nar.hash, hash_of(&nar(number)));
                        let bytes = served(&engine, &cache, &nar(number), None).await.expect(ANSWERS);
                        assert!(decompress(&bytes.expect("it is there")) == nar(number));
                    }
                }
                for (name, bytes) in &whole {
                    store.put(name, None, [bytes.clone()]).await.expect(ANSWERS);
                }
            });
            Ok(())
        })
        .expect(ANSWERS);
    runtime.block_on(lab.check("whole again"));
}

#[tokio::test]
async fn paths_whose_packs_are_gone_are_named_and_the_others_recovered() {
    let lab = Lab::new(false).await;
    let cache = create_main(&lab.engine).await;
    push(&lab.engine, &cache, &path(0), &nar(0)).await.expect(ANSWERS);
    let old: Vec<_> = lab.blobs.list().await.expect(ANSWERS);
    push(&lab.engine, &cache, &path(1), &nar(1)).await.expect(ANSWERS);
    lab.journal(JournalSettings::default()).write().await.expect(ANSWERS);
    for key in lab.blobs.list().await.expect(ANSWERS) {
        if !old.contains(&key) {
            lab.blobs.delete(&key).await.expect(ANSWERS);
        }
    }
    let (recovered, report) = lab.recover().await;
    assert_eq!((report.paths, report.lost), (1, 1), "{report:?}");
    assert_eq!(report.lost_paths, [format!("main/{}", path(1))]);
    assert_eq!(contents(&recovered).await.objects.len(), 1);
    // The lost index would name the same path.
    let until = std::time::Instant::now() + std::time::Duration::from_mins(1);
    let missing = find_missing(&lab.database.contracts, &lab.files.store(), until).await.expect(ANSWERS);
    assert_eq!((missing.packs_known, missing.packs.len(), missing.paths), (2, 1, 1), "{missing:?}");
    assert_eq!(missing.first_paths, [(cache.id, path(1))]);
    let missing = find_missing(&recovered.contracts, &lab.files.store(), until).await.expect(ANSWERS);
    assert_eq!((missing.packs_known, missing.packs.len(), missing.is_whole), (1, 0, true));
}

/// A recovery counts as the first listing of the store. What it cannot read stays, and what an
/// upload leaves that crashes before the first collection goes.
#[tokio::test]
async fn packs_that_a_recovery_cannot_read_stay_and_those_of_later_crashes_go() {
    let lab = Lab::new(false).await;
    let cache = create_main(&lab.engine).await;
    push(&lab.engine, &cache, &path(0), &nar(0)).await.expect(ANSWERS);
    lab.journal(JournalSettings::default()).write().await.expect(ANSWERS);
    let of_path = lab.blobs.list().await.expect(ANSWERS);
    let [unreadable, stray] = [71, 72].map(|number| PackId::from_bytes([number; 16]));
    let garbage = [Bytes::from_static(&[1; 5_000])];
    lab.blobs.put(&BlobKey::Pack(unreadable), &garbage).await.expect(ANSWERS);
    let (recovered, report) = lab.recover().await;
    assert_eq!((report.packs_found, report.packs, report.unreadable_packs), (2, 1, 1), "{report:?}");
    lab.blobs.put(&BlobKey::Pack(stray), &garbage).await.expect(ANSWERS);

    let second = lab.over(recovered);
    second.journal(JournalSettings::default()).of_recovered().write().await.expect(ANSWERS);
    let now = SystemClock.now();
    let first = second.collect_with(now, CollectSettings::default()).await;
    assert_eq!((first.strays_kept, first.strays_found), (1, 1), "{first:?}");
    second.collect_with(now + 3 * 86_400, CollectSettings::default()).await;
    let mut left = lab.blobs.list().await.expect(ANSWERS);
    left.retain(|key| !of_path.contains(key));
    assert_eq!(left, [BlobKey::Pack(unreadable)]);
}

/// The numbers of packs that hold a chunk of a NAR, by the index.
async fn packs_of(database: &Database, cache: &str) -> Vec<BlobKey> {
    let RecoveryIndex { index, journal, .. } = &database.contracts;
    let id = index.find_cache(cache).await.expect(ANSWERS).expect("it is there").id;
    let mut packs = Vec::new();
    for object in journal.journaled_objects_after(None, 100).await.expect(ANSWERS) {
        if object.cache == id {
            let rows = index.load_chunks(&object.nar.recipe.runs).await.expect(ANSWERS);
            packs.extend(rows.iter().map(|row| BlobKey::Pack(row.pack_id)));
        }
    }
    packs.sort_unstable_by_key(ToString::to_string);
    packs.dedup();
    packs
}

/// A compaction moved chunks: they lie in two packs until the old one goes. Whether it is there or
/// not, a chunk is recovered once, where the lost index had it.
#[tokio::test]
async fn chunks_that_moved_to_another_pack_are_recovered_there() {
    let lab = Lab::new(false).await;
    let cache = create_main(&lab.engine).await;
    for number in 0..8 {
        push(&lab.engine, &cache, &path(number), &nar(number)).await.expect(ANSWERS);
    }
    let old = packs_of(&lab.database, "main").await;
    let day = 86_400;
    let later = SystemClock.now() + 3 * day;
    assert_eq!(lab.collect(later).await.compacted.packs, 8);
    let new = packs_of(&lab.database, "main").await;
    assert!(old.len() == 8 && new.len() == 1 && !old.contains(&new[0]), "{old:?} {new:?}");
    lab.journal(JournalSettings::default()).write().await.expect(ANSWERS);
    assert_eq!(lab.blobs.list().await.expect(ANSWERS).len(), 9);
    lab.check("both are there").await;
    let (recovered, report) = lab.recover().await;
    assert_eq!((packs_of(&recovered, "main").await, report.packs), (new.clone(), 9));
    assert_eq!(lab.collect(later + 3 * day).await.removed.packs, 8);
    lab.check("the old packs are gone").await;
    let (recovered, report) = lab.recover().await;
    assert_eq!((packs_of(&recovered, "main").await, report.packs), (new, 1));
}

/// A push healed damaged chunks: their old bytes are still in the old pack.
#[tokio::test]
async fn a_healed_chunk_is_recovered_from_the_pack_that_healed_it() {
    let lab = Lab::new(false).await;
    let cache = create_main(&lab.engine).await;
    push(&lab.engine, &cache, &path(0), &nar(0)).await.expect(ANSWERS);
    let store = lab.files.store();
    let key = lab.blobs.list().await.expect(ANSWERS)[0].to_string();
    let mut bytes = store.get(&key).await.expect(ANSWERS).expect("it is there").to_vec();
    bytes[50] ^= 1;
    store.put(&key, None, [Bytes::from(bytes)]).await.expect(ANSWERS);
    assert!(served(&lab.engine, &cache, &nar(0), None).await.is_err(), "it is damaged");
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    push(&lab.engine, &cache, &path(0), &nar(0)).await.expect(ANSWERS);
    lab.journal(JournalSettings::default()).write().await.expect(ANSWERS);
    let (recovered, _) = lab.recover().await;
    let engine = engine_over(recovered.contracts.index.clone(), Arc::clone(&lab.blobs), settings());
    let main = engine.find_cache("main").await.expect(ANSWERS).expect("it is there");
    let bytes = served(&engine, &main, &nar(0), None).await.expect(ANSWERS).expect("it is there");
    assert!(decompress(&bytes) == nar(0));
}

/// A deleted cache does not come back under the rights of a later one of its name, also if the
/// record of its deletion is lost.
#[tokio::test]
async fn paths_of_a_deleted_cache_do_not_appear_in_a_later_one_of_its_name() {
    let lab = Lab::new(false).await;
    let secret = create_main(&lab.engine).await;
    push(&lab.engine, &secret, &path(0), &nar(0)).await.expect(ANSWERS);
    let journal = lab.journal(JournalSettings::default());
    journal.write().await.expect(ANSWERS);
    lab.engine.delete_cache(&secret, None).await.expect(ANSWERS);
    journal.write().await.expect(ANSWERS);
    let (deletion, _) = newest_segment(&lab.files);
    let later = create_main(&lab.engine).await;
    push(&lab.engine, &later, &path(1), &nar(1)).await.expect(ANSWERS);
    journal.write().await.expect(ANSWERS);
    lab.check("everything is there").await;
    lab.files.store().delete(&deletion).await.expect(ANSWERS);
    let (recovered, report) = lab.recover().await;
    assert_eq!((report.caches, report.paths), (1, 1), "{report:?}");
    assert!(contents(&recovered).await.objects.keys().all(|name| name.ends_with(&path(1).to_string())));
}

/// A database that was restored from a copy knows less than the journal does. What it journals
/// next must not be mixed with what it has forgotten.
#[tokio::test]
async fn a_database_that_went_back_in_time_begins_a_new_lineage() {
    let lab = Lab::new(false).await;
    let cache = create_main(&lab.engine).await;
    push(&lab.engine, &cache, &path(0), &nar(0)).await.expect(ANSWERS);
    let journal = lab.journal(JournalSettings::default());
    journal.write().await.expect(ANSWERS);
    // The same files would be there if a copy of the database had been taken here.
    let future: BTreeMap<String, Bytes> = {
        let other = Lab::new(false).await;
        let main = create_main(&other.engine).await;
        push(&other.engine, &main, &path(9), &nar(9)).await.expect(ANSWERS);
        let journal = other.journal(JournalSettings::default());
        for number in 0..4 {
            push(&other.engine, &main, &path(10 + number), &nar(10 + number)).await.expect(ANSWERS);
            journal.write().await.expect(ANSWERS);
        }
        other.files.files()
    };
    let store = lab.files.store();
    for (name, bytes) in future.into_iter().filter(|(name, _)| name.contains("/segment-")) {
        store.put(&name, None, [bytes]).await.expect(ANSWERS);
    }
    push(&lab.engine, &cache, &path(1), &nar(1)).await.expect(ANSWERS);
    // The next process of this database.
    assert!(lab.journal(JournalSettings::default()).write().await.expect(ANSWERS) >= 2, "a snapshot");
    lab.check("after the restore").await;
    let generations = |lab: &Lab| {
        let files =
            journal_files(&lab.files).into_iter().filter(|(name, _)| !name.starts_with("journal/kept/"));
        files
            .map(|(name, _)| name.split('/').nth(1).map(str::to_owned))
            .collect::<std::collections::HashSet<_>>()
    };
    assert_eq!(generations(&lab).len(), 2, "what was forgotten stays for a while");
    let store = lab.files.store();
    assert_eq!(release_kept_journals(&store, |_| true).await.expect(ANSWERS), 1);
    lab.database.contracts.journal.ask_for_snapshot().await.expect(ANSWERS);
    lab.journal(JournalSettings::default()).write().await.expect(ANSWERS);
    assert_eq!(generations(&lab).len(), 1, "it is gone");
    lab.check("after the loss was accepted").await;
}

/// The names of all files of the journal.
fn journal_files(files: &MemoryTarget) -> Vec<(String, Bytes)> {
    files.files().into_iter().filter(|(name, _)| name.starts_with("journal/")).collect()
}

/// The sealed signing keys in all files of the journal.
fn sealed_secrets(lab: &Lab) -> std::collections::HashSet<Vec<u8>> {
    let records = journal_files(&lab.files)
        .into_iter()
        .filter_map(|(_, bytes)| JournalFile::read(&bytes).ok())
        .flat_map(|file| file.records);
    let keys = records.flat_map(|record| match record {
        JournalRecord::Cache(cache) => cache.keys,
        _ => Vec::new(),
    });
    keys.map(|key| key.sealed_secret).collect()
}

/// A volume snapshot of a day ago comes back, and the server starts, without a change. What was
/// pushed since the snapshot can be recovered from the journal for a while, whatever collections
/// do. Then it goes.
#[tokio::test]
async fn what_a_database_that_went_back_in_time_has_forgotten_can_be_recovered_for_a_while() {
    let lab = Lab::new(false).await;
    let cache = create_main(&lab.engine).await;
    push(&lab.engine, &cache, &path(0), &nar(0)).await.expect(ANSWERS);
    let journal = lab.journal(JournalSettings::default());
    journal.write().await.expect(ANSWERS);
    // Without an earlier listing, packs that nobody knows would stay for ever.
    lab.collect(SystemClock.now()).await;
    let folder = TempDir::new().expect("a temporary folder");
    let copy = folder.path().join("index.sqlite");
    let original = lab.database.folder.as_ref().expect("it is on SQLite").path().join("index.sqlite");
    SqliteIndex::back_up(&original, &copy).await.expect(ANSWERS);
    let packs_then = lab.blobs.list().await.expect(ANSWERS);
    for number in 1..=3 {
        push(&lab.engine, &cache, &path(number), &nar(number)).await.expect(ANSWERS);
        journal.write().await.expect(ANSWERS);
    }
    let store = lab.files.store();
    let pasts =
        async |journal: &Arc<dyn JournalIndex>| ComparedPasts::read(&**journal, &store).await.expect(ANSWERS);
    assert!(!pasts(&lab.database.contracts.journal).await.is_database_older, "it has written all of it");

    let index = Arc::new(SqliteIndex::open(&copy, SqliteOptions::default()).await.expect(ANSWERS));
    let database = Database::over_sqlite(index, folder);
    assert!(pasts(&database.contracts.journal).await.is_database_older);
    let old = lab.over(database);
    // A compaction had noted a new pack when the copy was made, and moved chunks there afterwards.
    // A collection comes before the journal's first turn.
    let packs_now = lab.blobs.list().await.expect(ANSWERS);
    let BlobKey::Pack(moved_to) =
        *packs_now.iter().find(|key| !packs_then.contains(key)).expect("a new pack");
    old.database.contracts.collect.doom_new_pack(moved_to, 1).await.expect(ANSWERS);
    old.collect(SystemClock.now()).await;
    assert_eq!(
        lab.blobs.list().await.expect(ANSWERS),
        packs_now,
        "nothing goes while no mark says what may go"
    );
    assert!(old.journal(JournalSettings::default()).write().await.expect(ANSWERS) >= 2, "a snapshot");
    let journals = stored_journals(&store).await.expect(ANSWERS);
    let kept = journals[1];
    assert!(
        journals.len() == 2 && journals[0].kept_since.is_none() && kept.kept_since.is_some(),
        "{journals:?}"
    );
    old.check("the newest snapshot is that of the old state").await;

    // It goes on for days: more snapshots, and collections that find strays.
    let now = SystemClock.now();
    for day in [0, 3, 6, 29] {
        old.database.contracts.journal.ask_for_snapshot().await.expect(ANSWERS);
        assert!(old.journal(JournalSettings::default()).write().await.expect(ANSWERS) >= 2, "a snapshot");
        old.collect(now + day * 86_400).await;
    }
    let recover_kept = async || {
        let recovered = Database::empty(false).await;
        let recovery = Recovery::open_lineage(store.clone(), Some(kept.lineage)).await.expect(ANSWERS);
        let report = recovery.run(&recovered.contracts, &SystemClock, &|_| ()).await.expect(ANSWERS);
        assert_eq!((report.paths, report.lost), (4, 0), "{report:?}");
        assert_eq!(contents(&recovered).await, contents(&lab.database).await, "nothing of the day is lost");
        old.check_invariants(&recovered, "recovered from the kept journal").await;
    };
    recover_kept().await;

    let later = now + KEEP_SECONDS + 60;
    let (index, memory) = (old.database.contracts.index.clone(), old.database.contracts.journal.clone());
    let journal = Journal::new(
        index,
        memory,
        Arc::clone(&old.blobs),
        store.clone(),
        Arc::new(At(later)),
        "later".to_owned(),
        JournalSettings::default(),
    );
    journal.write().await.expect(ANSWERS);
    assert_eq!(kept_journals(&store).await.expect(ANSWERS), []);
    assert_eq!(stored_journals(&store).await.expect(ANSWERS).len(), 1, "its time is over");
    for day in 0..4 {
        old.collect(later + day * 86_400).await;
    }
    assert_eq!(lab.blobs.list().await.expect(ANSWERS).len(), 1, "the packs of the day are gone too");
    old.check("the old state").await;
}

/// Packs that were there before a recovery with losses stay as long as its journal, although no
/// path needs them: a lost path may need them once its missing pack is copied back.
#[tokio::test]
async fn collections_leave_the_packs_of_paths_that_a_recovery_lost() {
    let lab = Lab::new(false).await;
    let cache = create_main(&lab.engine).await;
    // The second path needs a chunk of the first pack too.
    let shared = package_nar(&mut Random::new(70), 30_000, &[path(200)]);
    push(&lab.engine, &cache, &path(0), &shared).await.expect(ANSWERS);
    let first = lab.blobs.list().await.expect(ANSWERS);
    let larger = encode_tree(&Node::Directory(BTreeMap::from([
        (b"a".to_vec(), Node::file(shared.clone())),
        (b"b".to_vec(), Node::file(package_nar(&mut Random::new(71), 30_000, &[]))),
    ])));
    push(&lab.engine, &cache, &path(1), &larger).await.expect(ANSWERS);
    lab.engine.remove_object(&cache, &path(0).hash(), None).await.expect(ANSWERS);
    lab.journal(JournalSettings::default()).write().await.expect(ANSWERS);
    let store = lab.files.store();
    let mut missing = lab.blobs.list().await.expect(ANSWERS);
    missing.retain(|key| !first.contains(key));
    let bytes = store.get(&missing[0].to_string()).await.expect(ANSWERS).expect("it is there");
    lab.blobs.delete(&missing[0]).await.expect(ANSWERS);

    let (recovered, report) = lab.recover().await;
    assert_eq!((report.paths, report.lost, report.has_losses()), (0, 1, true), "{report:?}");
    let journals = stored_journals(&store).await.expect(ANSWERS);
    keep_journal(&store, journals[0].first, journals[0].through, SystemClock.now()).await.expect(ANSWERS);
    let second = lab.over(recovered);
    second.journal(JournalSettings::default()).of_recovered().write().await.expect(ANSWERS);
    let now = SystemClock.now();
    for day in [3, 6, 9, 12] {
        second.collect(now + day * 86_400).await;
    }
    assert_eq!(lab.blobs.list().await.expect(ANSWERS), first, "no path needs it, and it stays");
    // The missing pack turns up. The database is emptied, and recovered again.
    store.put(&missing[0].to_string(), None, [bytes]).await.expect(ANSWERS);
    let again = Database::empty(false).await;
    let recovery = Recovery::open_lineage(store.clone(), Some(journals[0].lineage)).await.expect(ANSWERS);
    let report = recovery.run(&again.contracts, &SystemClock, &|_| ()).await.expect(ANSWERS);
    assert_eq!((report.paths, report.lost), (1, 0), "{report:?}");
    assert_eq!(contents(&again).await, contents(&lab.database).await);
    // The loss is accepted after all: the packs go.
    release_kept_journals(&store, |_| true).await.expect(ANSWERS);
    for day in [20, 22, 24] {
        second.collect(now + day * 86_400).await;
    }
    assert_eq!(lab.blobs.list().await.expect(ANSWERS), []);
}

/// A copy of a bucket that was interrupted: a file in the middle is not there.
#[tokio::test]
async fn a_segment_that_is_not_there_counts_as_a_loss() {
    let lab = Lab::new(false).await;
    let cache = create_main(&lab.engine).await;
    let journal = lab.journal(JournalSettings::default());
    for number in 0..5 {
        push(&lab.engine, &cache, &path(number), &nar(number)).await.expect(ANSWERS);
        journal.write().await.expect(ANSWERS);
    }
    let is_segment = |name: &JournalName| name.kind == JournalKind::Segment;
    let mut segments: Vec<(JournalName, Bytes)> = journal_files(&lab.files)
        .into_iter()
        .filter_map(|(name, bytes)| Some((JournalName::parse(&name).filter(is_segment)?, bytes)))
        .collect();
    segments.sort_unstable_by_key(|(name, _)| name.position);
    segments.pop().expect("the last one, which leaves no gap");
    assert!(segments.len() >= 3, "{segments:?}");
    let store = lab.files.store();
    for (name, bytes) in segments {
        store.delete(&name.to_string()).await.expect(ANSWERS);
        let (_, report) = lab.recover().await;
        assert!(report.has_losses() && report.cut_journal_files == 1, "{name}: {report:?}");
        store.put(&name.to_string(), None, [bytes]).await.expect(ANSWERS);
    }
    lab.check("everything is back").await;
}

/// The same with a part of the snapshot, which a crash may have written twice.
#[tokio::test]
async fn a_part_of_a_snapshot_that_is_not_there_counts_as_a_loss() {
    let lab = Lab::new(false).await;
    let cache = create_main(&lab.engine).await;
    // Documents fill parts faster than anything else.
    for number in 0..6 {
        lab.change(&cache, number).await;
        let log = Random::new(number.into()).bytes(3_000_000);
        lab.engine.put_log(&cache, derivation(number), log).await.expect(ANSWERS);
    }
    let parts = |lab: &Lab| -> Vec<(String, Bytes)> {
        journal_files(&lab.files).into_iter().filter(|(name, _)| name.contains("/part-")).collect()
    };
    // A stop writes what changed, and leaves the parts.
    lab.journal(JournalSettings::default()).run(async {}).await;
    assert_eq!(parts(&lab), []);
    // The first part is stored, but not noted.
    for step in 0.. {
        let faults = Faults::crash_at(step, false);
        let memory = Arc::new(FaultJournal::new(lab.database.contracts.journal.clone(), faults));
        lab.journal_over(memory, lab.files.store(), JournalSettings::default())
            .write()
            .await
            .expect_err("it crashes");
        if !parts(&lab).is_empty() {
            break;
        }
    }
    lab.journal(JournalSettings::default()).write().await.expect(ANSWERS);
    let (_, whole) = lab.recover().await;
    assert_eq!((whole.paths, whole.documents, whole.has_losses()), (6, 6, false), "{whole:?}");

    let store = lab.files.store();
    let number = |bytes: &Bytes| JournalFile::read(bytes).expect("it is whole").header.number;
    let all = parts(&lab);
    let count = all.iter().map(|(_, bytes)| number(bytes)).max().expect("a snapshot has parts");
    assert!(count >= 3 && all.len() == count as usize + 1, "{count} numbers of {} parts", all.len());
    for missing in 1..=count {
        let gone: Vec<_> = all.iter().filter(|(_, bytes)| number(bytes) == missing).collect();
        for (name, _) in &gone {
            store.delete(name).await.expect(ANSWERS);
        }
        let (_, report) = lab.recover().await;
        assert!(report.has_losses() && report.cut_journal_files == 1, "part {missing}: {report:?}");
        for (name, bytes) in gone {
            store.put(name, None, [bytes.clone()]).await.expect(ANSWERS);
        }
    }
    assert_eq!(lab.recover().await.1, whole, "everything is back");
}

/// Pins are split into records of a bounded size, however many a cache has.
#[tokio::test]
async fn more_pins_than_a_record_holds_are_recovered() {
    let lab = Lab::new(false).await;
    let cache = create_main(&lab.engine).await;
    let name = |number: u32| format!("{number:06}-{}", "long".repeat(50));
    let pin = |number: u32| {
        let hash = Random::new(number.into()).bytes(20).try_into().expect("20 bytes");
        let path = StorePath::new(StorePathHash::from_bytes(hash), &name(number)).expect("a good name");
        Pin { name: name(number), path, created_at: 1_700_000_000, ends_at: None }
    };
    for number in 0..2_500 {
        lab.database.contracts.index.add_pin(cache.id, &pin(number), None).await.expect(ANSWERS);
    }
    lab.journal(JournalSettings::default()).write().await.expect(ANSWERS);
    let records: Vec<usize> = journal_files(&lab.files)
        .iter()
        .flat_map(|(_, bytes)| JournalFile::read(bytes).expect("it is whole").records)
        .filter_map(|record| match record {
            JournalRecord::Cache(cache) => Some(cache.pins.len()),
            JournalRecord::Pins { pins, .. } => Some(pins.len()),
            _ => None,
        })
        .collect();
    // In a segment, and in the snapshot.
    assert_eq!(records, [1_000, 1_000, 500].repeat(2));
    let (recovered, report) = lab.recover().await;
    assert_eq!((report.pins, report.has_losses()), (2_500, false), "{report:?}");
    let pins_of = async |database: &Database| {
        let index = &database.contracts.index;
        let main = index.find_cache("main").await.expect(ANSWERS).expect("it is there");
        index.list_pins(main.id, None, 0, 10_000).await.expect(ANSWERS)
    };
    assert_eq!(pins_of(&recovered).await, pins_of(&lab.database).await);

    // A change writes the pins that changed, however many the cache has.
    lab.database.contracts.index.add_pin(cache.id, &pin(2_500), None).await.expect(ANSWERS);
    let gone = pin(0).path.hash();
    lab.database.contracts.index.remove_pins(cache.id, &name(0), Some(&gone)).await.expect(ANSWERS);
    lab.journal(JournalSettings::default()).write().await.expect(ANSWERS);
    let mut records = JournalFile::read(&newest_segment(&lab.files).1).expect("it is whole").records;
    records.retain(|record| !matches!(record, JournalRecord::Setting { .. }));
    records.sort_by_key(|record| matches!(record, JournalRecord::PinGone { .. }));
    let label = cache.id.0.cast_unsigned();
    assert_eq!(
        records,
        [
            JournalRecord::Pin { cache: label, pin: journal_pin(pin(2_500)) },
            JournalRecord::PinGone { cache: label, name: name(0), hash: gone },
        ]
    );
    lab.check("after a change of few pins").await;
}

fn journal_pin(pin: Pin) -> JournalPin {
    JournalPin { name: pin.name, path: pin.path, created_at: pin.created_at, ends_at: pin.ends_at }
}

/// Earlier versions wrote a cache with all its pins whenever one of them changed. A journal may
/// have segments of both kinds, in any order.
#[tokio::test]
async fn segments_with_all_pins_of_a_cache_and_with_single_ones_are_recovered() {
    let lab = Lab::new(false).await;
    create_main(&lab.engine).await;
    lab.journal(JournalSettings::default()).write().await.expect(ANSWERS);
    let newest = JournalFile::read(&newest_segment(&lab.files).1).expect("it is whole");
    let cache = newest.records.iter().find_map(|record| match record {
        JournalRecord::Cache(cache) => Some(cache.clone()),
        _ => None,
    });
    let cache = cache.expect("the segment has the new cache");
    let label = cache.cache;
    let pin = |number: u8, ends_at| JournalPin {
        name: "release".to_owned(),
        path: path(number),
        created_at: 1_700_000_000,
        ends_at,
    };
    let whole = |numbers: &[u8]| {
        let pins = numbers.iter().map(|number| pin(*number, None)).collect();
        JournalRecord::Cache(JournalCache { pins, ..cache.clone() })
    };
    let more = |number| JournalRecord::Pins { cache: label, pins: vec![pin(number, None)] };
    let set = |number, ends_at| JournalRecord::Pin { cache: label, pin: pin(number, ends_at) };
    let gone = |number| {
        let (name, hash) = ("release".to_owned(), path(number).hash());
        JournalRecord::PinGone { cache: label, name, hash }
    };
    let end = Some(1_900_000_000);
    let mut header = newest.header;
    for (segment, expected) in [
        (vec![whole(&[1]), more(2)], vec![(1, None), (2, None)]),
        (vec![gone(1), set(3, None), set(2, end)], vec![(2, end), (3, None)]),
        // Of two records in a file, the later one counts.
        (vec![set(4, None), gone(4), gone(3), set(3, end)], vec![(2, end), (3, end)]),
        (vec![set(5, None), whole(&[1, 6]), gone(6)], vec![(1, None)]),
        (vec![set(7, None)], vec![(1, None), (7, None)]),
        (vec![whole(&[])], vec![]),
    ] {
        header.position.1 += 1;
        let mut writer = JournalWriter::new(&header);
        for record in &segment {
            writer.push(record).expect("it is small");
        }
        let JournalHeader { generation, kind, position, .. } = header;
        let name = JournalName { generation, kind, position, random: 1 }.to_string();
        let bytes = writer.finish().expect("it is small");
        lab.files.store().put(&name, None, [Bytes::from(bytes)]).await.expect(ANSWERS);

        let (recovered, report) = lab.recover().await;
        assert_eq!((report.pins, report.has_losses()), (expected.len() as u64, false), "{report:?}");
        let mut expected: Vec<JournalPin> = expected.into_iter().map(|(at, end)| pin(at, end)).collect();
        expected.sort_by_key(|pin| pin.path.hash());
        let found = contents(&recovered).await.pins.remove("main").expect("the cache is there");
        assert_eq!(found.into_iter().map(journal_pin).collect::<Vec<_>>(), expected, "{segment:?}");
    }
}

/// Every request takes longer than a lease lasts, and another process looks for its turn all the
/// time. The first one goes on, and the other one writes nothing.
#[tokio::test]
async fn a_turn_keeps_its_lease_however_slow_the_store_is() {
    let lab = Lab::new(false).await;
    let cache = create_main(&lab.engine).await;
    for number in 0..3 {
        lab.change(&cache, number).await;
    }
    let clock = TestClock::new();
    let writes = SlowWrites::new(Duration::from_millis(200), u64::MAX);
    let store = lab.files.slow(&writes);
    let journal = |holder: &str| {
        let RecoveryIndex { index, journal, .. } = lab.database.contracts.clone();
        let (blobs, at) = (Arc::clone(&lab.blobs), Arc::clone(&clock) as Arc<dyn Clock>);
        let settings =
            JournalSettings { renew_after: Duration::from_millis(2), ..JournalSettings::default() };
        Journal::new(index, journal, blobs, store.clone(), at, holder.to_owned(), settings)
    };
    let lease_seconds = JournalSettings::default().lease_seconds;
    let (slow, other) = (journal("slow"), journal("other"));
    let (is_over, begun_at) = (AtomicBool::new(false), clock.now());
    let work = async {
        let files = slow.write().await.expect(ANSWERS);
        is_over.store(true, Ordering::Relaxed);
        files
    };
    let meanwhile = async {
        let mut written = 0;
        while writes.count() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        while !is_over.load(Ordering::Relaxed) {
            written += other.write().await.expect(ANSWERS);
            clock.pass(lease_seconds / 3);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        written
    };
    let patient = async {
        while writes.count() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let is_given_up = !other.write_within(Duration::from_millis(1)).await.expect(ANSWERS);
        (is_given_up, other.write_within(Duration::from_mins(1)).await.expect(ANSWERS))
    };
    let (files, by_other, (is_given_up, is_written)) = tokio::join!(work, meanwhile, patient);
    assert!(is_given_up && is_written, "a process that needs the journal written waits for it");
    assert!(files >= 3 && by_other == 0, "{files} files, {by_other} by the other");
    assert!(clock.now() - begun_at > 2 * lease_seconds, "the turn outlives its lease");
    lab.check("in the end").await;
}

/// One process hangs in a call to its folder. It does not keep its lease for ever, so another one,
/// whose folder answers, writes everything.
#[tokio::test]
async fn a_turn_that_is_stuck_gives_its_lease_to_another_process() {
    let lab = Lab::new(false).await;
    let cache = create_main(&lab.engine).await;
    lab.change(&cache, 0).await;
    let clock = TestClock::new();
    let hangs = SlowWrites::new(Duration::from_hours(1), u64::MAX);
    let journal = |holder: &str, store: Store, stuck_after: Duration| {
        let RecoveryIndex { index, journal, .. } = lab.database.contracts.clone();
        let (blobs, at) = (Arc::clone(&lab.blobs), Arc::clone(&clock) as Arc<dyn Clock>);
        let renew_after = Duration::from_millis(2);
        let settings = JournalSettings { renew_after, stuck_after, ..JournalSettings::default() };
        Journal::new(index, journal, blobs, store, at, holder.to_owned(), settings)
    };
    let lease_seconds = JournalSettings::default().lease_seconds;
    let stuck_after = Duration::from_millis(200);
    let stuck = journal("stuck", lab.files.slow(&hangs), stuck_after);
    let other = journal("other", lab.files.store(), stuck_after);
    let turn_of_other = async {
        while hangs.count() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let begun = std::time::Instant::now();
        loop {
            let files = other.write().await.expect(ANSWERS);
            if files > 0 {
                return (files, begun.elapsed());
            }
            clock.pass(lease_seconds / 3);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (files, waited) = tokio::select! {
        written = stuck.write() => panic!("its store hangs: {written:?}"),
        files = turn_of_other => files,
    };
    assert!(files >= 3, "a segment and a snapshot: {files} files");
    assert!(waited >= stuck_after / 2, "the lease was kept for a while: {waited:?}");
    lab.check("written by the other process").await;
}

/// Sixteen marks stay at most: the newest ones.
#[tokio::test]
async fn no_more_than_sixteen_journals_are_kept() {
    let store = MemoryTarget::new().store();
    for first in 1..=18 {
        keep_journal(&store, first * 10, first * 10 + 5, 100).await.expect(ANSWERS);
    }
    keep_journal(&store, 180, 185, 200).await.expect(ANSWERS);
    let kept = kept_journals(&store).await.expect(ANSWERS);
    let kept: Vec<_> = kept.iter().map(|kept| (kept.first, kept.through, kept.since)).collect();
    let older = (3..18).rev().map(|first| (first * 10, first * 10 + 5, 100));
    assert_eq!(kept, std::iter::once((180, 185, 200)).chain(older).collect::<Vec<_>>());
}

/// A store that was restored from a copy lacks what the journal wrote since. The database has it.
#[tokio::test]
async fn a_store_that_went_back_in_time_gets_everything_again() {
    let lab = Lab::new(false).await;
    let cache = create_main(&lab.engine).await;
    let journal = lab.journal(JournalSettings::default());
    for number in 0..3 {
        push(&lab.engine, &cache, &path(number), &nar(number)).await.expect(ANSWERS);
        assert!(journal.write().await.expect(ANSWERS) > 0);
    }
    assert_eq!(lab.journal(JournalSettings::default()).write().await.expect(ANSWERS), 0, "nothing is due");
    let (newest, _) = newest_segment(&lab.files);
    lab.files.store().delete(&newest).await.expect(ANSWERS);
    push(&lab.engine, &cache, &path(3), &nar(3)).await.expect(ANSWERS);
    assert!(lab.journal(JournalSettings::default()).write().await.expect(ANSWERS) >= 2, "a snapshot");
    lab.check("all four are there").await;
}

/// What a journal costs beside packs of ordinary software, at the default sizes of chunks: after
/// a mass rebuild and after many small changes, each with a file of its own.
#[tokio::test]
async fn the_journal_takes_few_bytes_beside_the_packs() {
    let database = Database::empty(false).await;
    let files = MemoryTarget::new();
    let blobs: Arc<dyn Blobs> = Arc::new(StoreBlobs::new(files.store()));
    let settings = dormer_engine::EngineSettings::default();
    let engine = engine_over(database.contracts.index.clone(), Arc::clone(&blobs), settings);
    let lab = Lab { database, engine, files, blobs, on_postgres: false };
    let cache = create_main(&lab.engine).await;
    let journal = lab.journal(JournalSettings::default());
    // Store paths of nixpkgs have some 2 MB on average, and most have far less.
    for number in 0_u8..60 {
        let bytes = if number % 10 == 0 { 4_000_000 } else { 200_000 };
        let references: Vec<StorePath> =
            (0..6).map(|reference| path(number.saturating_sub(reference))).collect();
        let nar = package_nar(&mut Random::new(number.into()), bytes, &references);
        let ingested = ingest(&lab.engine, &nar).await.expect(ANSWERS);
        lab.engine
            .commit_object(&cache, ingested, object_for(&path(number), &references))
            .await
            .expect(ANSWERS);
        if number % 3 == 0 {
            journal.write().await.expect(ANSWERS);
        }
    }
    let sizes = |folder: &str| -> usize {
        let files = lab.files.files().into_iter().filter(|(name, _)| name.starts_with(folder));
        files.map(|(_, bytes)| bytes.len()).sum()
    };
    let (packs, journal) = (sizes("packs/"), sizes("journal/"));
    println!("{packs} bytes of packs, {journal} of the journal, {} / 10,000", journal * 10_000 / packs);
    // With a snapshot beside all segments, and another one under way, it is three times as much.
    assert!(journal * 3 * 100 <= packs * 3, "{journal} bytes beside {packs}");
}

/// Gives the chunks of the NARs and those of the listings packs of their own; returns the key of
/// the listings' pack.
async fn part_listing_from_nar(lab: &Lab) -> BlobKey {
    let RecoveryIndex { index, journal, .. } = &lab.database.contracts;
    let found = journal.journaled_objects_after(None, 9).await.expect(ANSWERS).remove(0);
    let StoredListing::Chunks { recipe, .. } = found.nar.listing.expect("it has one") else {
        panic!("the listing is small")
    };
    let old = lab.blobs.list().await.expect(ANSWERS);
    let mut keys = Vec::new();
    for (byte, runs) in [(1, found.nar.recipe.runs), (2, recipe.runs)] {
        let id = PackId::from_bytes([byte; 16]);
        let mut builder = PackBuilder::new(id);
        for row in index.load_chunks(&runs).await.expect(ANSWERS) {
            let range = row.offset..row.offset + u64::from(row.layout.stored_len());
            let bytes = lab.blobs.get_range(&BlobKey::Pack(row.pack_id), range).await.expect(ANSWERS);
            builder.add(StoredChunk { id: row.id, layout: row.layout, checksum: row.checksum, bytes });
        }
        let pack = builder.finish();
        lab.blobs.put(&BlobKey::Pack(id), &pack.parts).await.expect(ANSWERS);
        keys.push(BlobKey::Pack(id));
    }
    for key in old {
        lab.blobs.delete(&key).await.expect(ANSWERS);
    }
    keys[1]
}

/// A listing is made again by the next push of its NAR. Without it, the NAR is served.
#[tokio::test]
async fn a_lost_listing_loses_no_path_and_stops_no_recovery() {
    let lab = Lab::new(false).await;
    let cache = create_main(&lab.engine).await;
    let mut random = Random::new(60);
    let files = (0..6_000)
        .map(|_| (format!("{:x}{:x}", random.next_u64(), random.next_u64()).into_bytes(), Node::file("")));
    let nar = encode_tree(&Node::Directory(files.collect::<BTreeMap<_, _>>()));
    push(&lab.engine, &cache, &path(0), &nar).await.expect(ANSWERS);
    lab.journal(JournalSettings::default()).write().await.expect(ANSWERS);
    let listings = part_listing_from_nar(&lab).await;
    let served_without_listing = async |recovered: &Database, report: Recovered| {
        assert_eq!((report.paths, report.lost), (1, 0), "{report:?}");
        let engine = engine_over(recovered.contracts.index.clone(), Arc::clone(&lab.blobs), settings());
        let main = engine.find_cache("main").await.expect(ANSWERS).expect("it is there");
        let bytes = served(&engine, &main, &nar, None).await.expect(ANSWERS).expect("it is there");
        assert!(decompress(&bytes) == nar);
        let found = engine.index().find_object(main.id, &path(0).hash()).await.expect(ANSWERS);
        let nar = found.expect("it is there").nar.id;
        assert_eq!(engine.index().find_listing(nar).await.expect(ANSWERS), None, "it is marked as lost");
        let present = engine.index().present_objects(main.id, &[path(0).hash()]).await.expect(ANSWERS);
        assert_eq!(present, [], "so the next push brings it");
    };
    // The pack goes when its table has been read.
    let database = Database::empty(false).await;
    let recovery = Recovery::open(lab.files.store()).await.expect(ANSWERS);
    let lose = |event: RecoveryEvent<'_>| {
        if matches!(event, RecoveryEvent::Progress(report) if report.packs == 2) {
            let deleted = futures::FutureExt::now_or_never(lab.blobs.delete(&listings));
            deleted.expect("memory answers at once").expect(ANSWERS);
        }
    };
    let report = recovery.run(&database.contracts, &SystemClock, &lose).await.expect(ANSWERS);
    assert_eq!(lab.blobs.list().await.expect(ANSWERS).len(), 1);
    served_without_listing(&database, report).await;
    // The pack was gone before.
    let (recovered, report) = lab.recover().await;
    served_without_listing(&recovered, report).await;
}

/// The database is recovered and lost again before its first snapshot was whole: the recovery falls
/// back to the snapshot of before, and says what it leaves out.
#[tokio::test]
async fn a_second_loss_before_the_first_snapshot_is_told() {
    let lab = Lab::new(false).await;
    let cache = create_main(&lab.engine).await;
    push(&lab.engine, &cache, &path(0), &nar(0)).await.expect(ANSWERS);
    lab.journal(JournalSettings::default()).write().await.expect(ANSWERS);
    let (second, report) = lab.recover().await;
    assert_eq!((report.ignored_journal_files, report.ignored_lineages.len()), (0, 0));
    let second = {
        let engine = engine_over(second.contracts.index.clone(), Arc::clone(&lab.blobs), settings());
        Lab {
            database: second,
            engine,
            files: MemoryTarget::new(),
            blobs: Arc::clone(&lab.blobs),
            on_postgres: false,
        }
    };
    let main = second.engine.find_cache("main").await.expect(ANSWERS).expect("it is there");
    push(&second.engine, &main, &path(1), &nar(1)).await.expect(ANSWERS);
    // Its first file is stored, and then the process ends.
    let faults = Faults::crash_at(1, false);
    let journal = second.database.contracts.journal.clone();
    second
        .journal_over(journal, lab.files.crashing(&faults), JournalSettings::default())
        .of_recovered()
        .write()
        .await
        .expect_err("it crashes");
    let (third, report) = lab.recover().await;
    assert_eq!(report.paths, 1, "{report:?}");
    assert!(report.ignored_journal_files > 0 && report.ignored_lineages.len() == 1, "{report:?}");
    // With its first snapshot, all of it counts.
    third.contracts.index.close().await.expect(ANSWERS);
    second
        .journal_over(
            second.database.contracts.journal.clone(),
            lab.files.store(),
            JournalSettings::default(),
        )
        .of_recovered()
        .write()
        .await
        .expect(ANSWERS);
    let (_, report) = lab.recover().await;
    assert_eq!((report.paths, report.ignored_journal_files), (2, 0), "{report:?}");
}
