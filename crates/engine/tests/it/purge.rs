//! Purges (`remove-path --now`): the bytes that only a removed path needed leave the store at once,
//! and everything else reads back. With a crash at every step.

use std::sync::Arc;
use std::time::Duration;

use dormer_blobs::{BlobKey, Blobs};
use dormer_engine::{Clock, CollectSettings, CollectionReport, Collector, CompactionTotals};
use dormer_format::PackId;
use dormer_index::{Cache, JobKind, NarQuery, PackNumber, PurgeCounts, PurgeId};
use dormer_nix::NarHash;
use dormer_testkit::{FaultCollect, Faults, Random, find_leaks, package_nar};
use futures::future::BoxFuture;

use crate::collect::{ANSWERS, CONDEMNED, DAY, HOUR, Lab, NEVER, OLD, Process, beginning, nars};
use crate::common::{create_main, hash_of, path, push};
use crate::odd_store::OddStore;

const NONE: PurgeCounts = PurgeCounts { waiting: 0, untried: 0 };

/// The stored bytes of each chunk of a NAR.
async fn stored_chunks(lab: &Lab, process: &Process, cache: &Cache, nar: &[u8]) -> Vec<Vec<u8>> {
    let index = &process.contracts.index;
    let found = index.find_nar_in_cache(cache.id, &NarQuery::Hash(hash_of(nar)), 0).await.expect(ANSWERS);
    let rows = index.load_chunks(&found.expect("it is there").recipe.runs).await.expect(ANSWERS);
    let mut chunks = Vec::new();
    for row in rows {
        let bytes = row.offset..row.offset + u64::from(row.layout.stored_len());
        let stored = lab.installation.blobs.get_range(&BlobKey::Pack(row.pack_id), bytes).await;
        chunks.push(stored.expect(ANSWERS).to_vec());
    }
    chunks
}

/// How many of these bytes lie in any object of the store.
async fn count_in_store(lab: &Lab, chunks: &[Vec<u8>]) -> usize {
    let mut objects = Vec::new();
    for key in lab.installation.blobs.list().await.expect(ANSWERS) {
        let size = lab.installation.blobs.head(&key).await.expect(ANSWERS);
        objects.push(lab.installation.blobs.get_range(&key, 0..size).await.expect(ANSWERS));
    }
    let is_there = |chunk: &&Vec<u8>| {
        objects.iter().any(|object| object.windows(chunk.len()).any(|part| part == **chunk))
    };
    chunks.iter().filter(is_there).count()
}

async fn counts(process: &Process, cache: &Cache) -> PurgeCounts {
    process.contracts.index.count_purges(cache.id, None).await.expect(ANSWERS)
}

/// Pushes a secret, and a path that shares the beginning of its pack. Returns the stored bytes of
/// the secret's own chunks.
async fn push_secret(lab: &Lab, process: &Process, cache: &Cache) -> Vec<Vec<u8>> {
    let [secret, ..] = nars();
    push(&process.engine, cache, &path(1), &secret).await.expect(ANSWERS);
    push(&process.engine, cache, &path(2), &beginning()).await.expect(ANSWERS);
    let kept = stored_chunks(lab, process, cache, &beginning()).await;
    let mut own = stored_chunks(lab, process, cache, &secret).await;
    let all = own.len();
    own.retain(|chunk| !kept.contains(chunk));
    assert!(own.len() < all, "they share some");
    own
}

async fn purged_bytes_leave(on_postgres: bool) {
    let lab = Lab::new(on_postgres).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let own = push_secret(&lab, &process, &cache).await;
    assert_eq!(count_in_store(&lab, &own).await, own.len());
    let removed = process.engine.purge_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    assert_eq!((removed.was_there, removed.is_purged), (true, true));
    assert_eq!(counts(&process, &cache).await, PurgeCounts { waiting: 1, untried: 1 });
    assert!(!process.contracts.jobs.list_jobs(None, 9).await.expect(ANSWERS).is_empty(), "a job is open");

    // Everything is a second old.
    lab.pass(1);
    let report = lab.collect(&process).await;
    assert_eq!((report.purged, report.removed.packs), (1, 1));
    assert_eq!(count_in_store(&lab, &own).await, 0);
    assert_eq!(counts(&process, &cache).await, NONE);
    process.reads_back(&beginning(), "it shares chunks").await;
    let [secret, ..] = nars();
    push(&process.engine, &cache, &path(1), &secret).await.expect("it may come again");
    process.reads_back(&secret, "it came again").await;
    drop((process, cache));
    assert_eq!(lab.violations(&[hash_of(&secret), hash_of(&beginning())], &[]).await, []);
}

#[tokio::test]
async fn purged_bytes_leave_the_store_at_once_on_sqlite() {
    purged_bytes_leave(false).await;
}

#[tokio::test]
async fn purged_bytes_leave_the_store_at_once_on_postgresql() {
    purged_bytes_leave(true).await;
}

/// The order of an operator that learns later how bad it is.
#[tokio::test]
async fn bytes_of_a_path_that_was_removed_before_leave_when_asked_for() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let own = push_secret(&lab, &process, &cache).await;
    let purge = async || {
        let removed = process.engine.purge_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
        (removed.was_there, removed.is_purged)
    };
    assert!(process.engine.remove_object(&cache, &path(1).hash(), None).await.expect(ANSWERS).was_there);
    assert_eq!(counts(&process, &cache).await, NONE);
    lab.pass(1);
    let report = lab.collect(&process).await;
    assert_eq!((report.nars, report.purged), (1, 0));
    assert_eq!(count_in_store(&lab, &own).await, own.len(), "they wait for their grace");

    assert_eq!(purge().await, (false, true));
    assert_eq!(counts(&process, &cache).await, PurgeCounts { waiting: 1, untried: 1 });
    lab.pass(1);
    assert_eq!(lab.collect(&process).await.purged, 1);
    assert_eq!(count_in_store(&lab, &own).await, 0);
    process.reads_back(&beginning(), "it shares chunks").await;
    assert_eq!(purge().await, (false, false), "the cache knows nothing of it any more");
}

#[tokio::test]
async fn what_a_removed_path_was_made_of_is_forgotten_with_its_bytes() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let [secret, ..] = nars();
    push(&process.engine, &cache, &path(1), &secret).await.expect(ANSWERS);
    assert!(process.engine.remove_object(&cache, &path(1).hash(), None).await.expect(ANSWERS).was_there);
    let notes = async || process.contracts.collect.purge_notes(PurgeId(0), 9).await.expect(ANSWERS).len();
    lab.pass(OLD);
    lab.collect(&process).await;
    lab.pass(CONDEMNED);
    assert_eq!(notes().await, 1, "its pack is condemned");
    // The object cannot be deleted: its bytes are still there.
    let store = OddStore::new(&lab);
    store.keep(lab.installation.blobs.list().await.expect(ANSWERS));
    let report = lab.collect_in(&process, &store).await;
    assert_eq!((report.removed.packs, report.objects_deleted), (1, 0));
    assert_eq!(notes().await, 1);
    lab.collect(&process).await;
    assert_eq!(notes().await, 0);
}

#[tokio::test]
async fn bytes_that_another_path_needs_stay() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let [first, _, third] = nars();
    push(&process.engine, &cache, &path(1), &first).await.expect(ANSWERS);
    push(&process.engine, &cache, &path(3), &third).await.expect(ANSWERS);
    process.engine.purge_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    lab.pass(1);
    let report = lab.collect(&process).await;
    assert_eq!((report.purged, report.removed.packs, report.compacted), (1, 0, CompactionTotals::default()));
    process.reads_back(&third, "it has the same chunks").await;
}

/// Old copies of the bytes in packs that were compacted go too. Chunks that a compaction moved less
/// than the longest upload ago may be known to an upload by their old place: the purge waits.
#[tokio::test]
async fn a_purge_after_a_compaction_waits_for_the_longest_upload() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let own = push_secret(&lab, &process, &cache).await;
    // The secret's pack is less than half alive, and is compacted with the beginning of it.
    process.engine.remove_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    lab.pass(OLD);
    assert_eq!(lab.collect(&process).await.compacted.packs, 1);
    let shared = stored_chunks(&lab, &process, &cache, &beginning()).await;
    process.engine.purge_object(&cache, &path(2).hash(), None).await.expect(ANSWERS);
    lab.pass(1);
    let report = lab.collect(&process).await;
    assert_eq!((report.purged, report.removed.packs), (0, 2), "both packs of before go");
    assert_eq!(count_in_store(&lab, &own).await, 0);
    assert_eq!(counts(&process, &cache).await, PurgeCounts { waiting: 1, untried: 0 });
    lab.pass(DAY);
    assert_eq!(lab.collect(&process).await.purged, 1);
    assert_eq!(count_in_store(&lab, &shared).await, 0);
    assert_eq!(counts(&process, &cache).await, NONE);
}

async fn survives_a_crash_at_any_step(on_postgres: bool, kept: &[bool]) {
    for &effect_kept in kept {
        for step in 0.. {
            let when = format!("after a crash at step {step}, effect kept: {effect_kept}");
            let lab = Lab::new(on_postgres).await;
            let faults = Faults::crash_at(step, effect_kept);
            let hashes: [NarHash; 1] = [hash_of(&beginning())];
            let own = {
                let process = lab.open().await;
                let cache = create_main(&process.engine).await;
                let own = push_secret(&lab, &process, &cache).await;
                process.engine.purge_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
                lab.pass(1);
                let outcome = lab.collect_with(&process, &faults).await;
                assert_eq!(outcome.is_err(), faults.crashed(), "{when}");
                own
            };
            assert_eq!(lab.violations(&hashes, &faults.deleted()).await, [], "{when}");
            // Another process goes on at the next collection. Before that, a new pack that the
            // crash left might still reach the store.
            let process = lab.open().await;
            let cache = process.cache().await;
            lab.pass(HOUR);
            lab.collect(&process).await;
            assert_eq!(count_in_store(&lab, &own).await, 0, "{when}");
            assert_eq!(counts(&process, &cache).await, NONE, "{when}");
            process.reads_back(&beginning(), &when).await;
            // What the crash left without a row goes later.
            lab.pass(OLD);
            lab.collect(&process).await;
            drop((process, cache));
            let leaks = find_leaks(&lab.inventory().await, &*lab.installation.blobs).await;
            let leaks = leaks.expect("no pack is lost");
            assert_eq!((leaks.packs, leaks.nars, leaks.chunks), (0, 0, 0), "{when}");
            assert_eq!(lab.violations(&hashes, &faults.deleted()).await, [], "{when}");
            if !faults.crashed() {
                assert!(step >= 10, "the purge has only {step} steps");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_purge_is_survived_on_sqlite() {
    survives_a_crash_at_any_step(false, &[false, true]).await;
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_purge_is_survived_on_postgresql() {
    // A database for each step takes its time.
    let both = std::env::var_os("DORMER_TEST_LONG").is_some();
    survives_a_crash_at_any_step(true, if both { &[false, true] } else { &[true] }).await;
}

#[tokio::test]
async fn a_store_that_does_not_delete_keeps_a_purge_open() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    push_secret(&lab, &process, &cache).await;
    process.engine.purge_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    lab.pass(1);
    let blobs = Arc::new(dormer_testkit::FaultBlobs::new(
        Arc::clone(&lab.installation.blobs),
        // The new pack is stored; the first deletion fails, as all later calls do.
        Faults::crash_at(1, false),
    ));
    let collector = lab.collector(Arc::clone(&process.contracts.collect), blobs);
    let report = collector.run_now(&*process.contracts.jobs, "test", 30).await.expect(ANSWERS);
    let report = report.expect("it ran");
    assert_eq!((report.removed.packs, report.objects_deleted, report.purged), (1, 0, 0));
    assert_eq!(counts(&process, &cache).await, PurgeCounts { waiting: 1, untried: 0 });
    drop(collector);
    assert_eq!(lab.collect(&process).await.purged, 1);
    assert_eq!(counts(&process, &cache).await, NONE);
}

/// One object that the store never deletes, say under a lock, keeps neither other objects nor the
/// purges of other paths from going.
#[tokio::test]
async fn one_object_that_stays_holds_up_no_other() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let [_, second, _] = nars();
    push(&process.engine, &cache, &path(3), &second).await.expect(ANSWERS);
    let store = OddStore::new(&lab);
    store.keep(lab.installation.blobs.list().await.expect(ANSWERS));
    process.engine.purge_object(&cache, &path(3).hash(), None).await.expect(ANSWERS);
    lab.pass(1);
    let report = lab.collect_in(&process, &store).await;
    assert_eq!((report.removed.packs, report.objects_deleted, report.purged), (1, 0, 0));
    assert!(report.objects_left > 0);
    assert_eq!(counts(&process, &cache).await, PurgeCounts { waiting: 1, untried: 0 });

    lab.pass(DAY);
    let own = push_secret(&lab, &process, &cache).await;
    process.engine.purge_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    lab.pass(1);
    let report = lab.collect_in(&process, &store).await;
    assert_eq!((report.objects_deleted, report.purged), (1, 1));
    assert_eq!(count_in_store(&lab, &own).await, 0);
    assert_eq!(counts(&process, &cache).await, PurgeCounts { waiting: 1, untried: 0 }, "the first one");
    let of = async |number| {
        let paths = [path(number).hash()];
        process.contracts.index.count_purges(cache.id, Some(&paths)).await.expect(ANSWERS)
    };
    assert_eq!([of(1).await, of(3).await], [NONE, PurgeCounts { waiting: 1, untried: 0 }]);
    store.keep([]);
    assert_eq!(lab.collect_in(&process, &store).await.purged, 1);
    assert_eq!(counts(&process, &cache).await, NONE);
}

/// A store that deletes nothing is left alone after some attempts, and the attempts of the next
/// pass are others.
#[tokio::test]
async fn a_store_that_deletes_nothing_is_not_asked_for_everything() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let strays: Vec<PackId> = (1..=40).map(|byte| PackId::from_bytes([byte; 16])).collect();
    process.contracts.collect.doom_packs(&strays, Some(0)).await.expect(ANSWERS);
    let store = OddStore::new(&lab);
    let last = BlobKey::Pack(strays[39]);
    store.keep(strays[..39].iter().map(|pack| BlobKey::Pack(*pack)));
    let collector = lab.collector(Arc::clone(&process.contracts.collect), store.clone());
    for deleted in [0, 0, 1] {
        let report = collector.run_now(&*process.contracts.jobs, "test", 30).await.expect(ANSWERS);
        let report = report.expect("it ran");
        assert_eq!(
            (report.objects_left, report.objects_deleted),
            (if deleted == 0 { 16 } else { 15 }, deleted)
        );
    }
    assert!(store.deletions().iter().filter(|key| **key == last).count() == 1);
}

/// More purges that have to wait than one collection takes up: each gets its turn, and when all had
/// theirs, no other collection is opened.
#[tokio::test]
async fn purges_that_wait_neither_starve_others_nor_collect_for_ever() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let [nar, ..] = nars();
    push(&process.engine, &cache, &path(1), &nar).await.expect(ANSWERS);
    let store = OddStore::new(&lab);
    store.keep(lab.installation.blobs.list().await.expect(ANSWERS));
    for _ in 0..257 {
        push(&process.engine, &cache, &path(1), &nar).await.expect(ANSWERS);
        process.engine.purge_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    }
    let open = async || !process.contracts.jobs.list_jobs(None, 9).await.expect(ANSWERS).is_empty();
    for (untried, is_open) in [(1, true), (0, false), (0, false)] {
        lab.pass(1);
        assert_eq!(lab.collect_in(&process, &store).await.purged, 0);
        assert_eq!(counts(&process, &cache).await, PurgeCounts { waiting: 257, untried });
        assert_eq!(open().await, is_open);
    }
    store.keep([]);
    for purged in [256, 1] {
        assert_eq!(lab.collect_in(&process, &store).await.purged, purged);
    }
    assert_eq!(counts(&process, &cache).await, NONE);
}

/// Each attempt may take minutes, in which no other job runs.
#[tokio::test]
async fn a_store_that_fails_is_asked_for_few_new_packs() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    for number in 0..6_u8 {
        for (place, size) in [(1, 40_000), (101, 14_000)] {
            let nar = package_nar(&mut Random::new(number.into()), size, &[]);
            push(&process.engine, &cache, &path(place + number), &nar).await.expect(ANSWERS);
        }
    }
    // A pack that is less than half alive, and others whose bytes are to leave at once. Some of
    // these hold nothing else, and need no new pack.
    process.engine.remove_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    lab.pass(OLD);
    // One in a young pack of its own.
    let alone = package_nar(&mut Random::new(99), 14_000, &[]);
    push(&process.engine, &cache, &path(50), &alone).await.expect(ANSWERS);
    let alone = stored_chunks(&lab, &process, &cache, &alone).await;
    for number in [2, 3, 4, 5, 6, 50] {
        process.engine.purge_object(&cache, &path(number).hash(), None).await.expect(ANSWERS);
    }
    let store = OddStore::new(&lab);
    store.refuse_puts(true);
    let report = lab.collect_in(&process, &store).await;
    assert_eq!((report.compacted.packs, store.puts()), (0, 2));
    let left = counts(&process, &cache).await.waiting;
    assert!(left >= 3, "each of {left} would have been an attempt");
    assert_eq!(count_in_store(&lab, &alone).await, 0, "nothing had to move for these bytes to go");
    store.refuse_puts(false);
    // A new pack that was refused may have reached the store all the same.
    lab.pass(HOUR);
    assert_eq!(lab.collect_in(&process, &store).await.purged, left);
}

/// Copies of the bytes in objects that no row knows: the purge is over only when they are gone. One
/// that a compaction left goes soon; the row of one that an upload stored might still come.
#[tokio::test]
async fn a_purge_waits_for_copies_without_a_row() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    // Packs that a later listing finds are this database's.
    lab.collect(&process).await;
    let own = push_secret(&lab, &process, &cache).await;
    let copy = async |number| {
        let pack = PackId::from_bytes([number; 16]);
        let bytes = [bytes::Bytes::from(own.concat())];
        lab.installation.blobs.put(&BlobKey::Pack(pack), &bytes).await.expect(ANSWERS);
        pack
    };
    let compacted = copy(1).await;
    process.contracts.collect.doom_new_pack(compacted, lab.clock.now() + 2 * DAY).await.expect(ANSWERS);
    process.engine.purge_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    let removed_at = lab.clock.now();
    lab.pass(1);
    let store = OddStore::new(&lab);
    // None of these is due for its weekly listing.
    let collect = async || {
        let collect = Arc::clone(&process.contracts.collect);
        let clock = Arc::clone(&lab.clock) as Arc<dyn Clock>;
        let collector = Collector::new(collect, store.clone(), clock, CollectSettings::default());
        let outcome = collector.run_now(&*process.contracts.jobs, "test", 30).await;
        outcome.expect(ANSWERS).expect("no other process collects")
    };
    store.refuse_lists(true);
    let report = collect().await;
    assert_eq!((report.purged, report.purges_left, report.removed.packs), (0, 1, 1));
    assert_eq!((count_in_store(&lab, &own).await, store.lists()), (own.len(), 1));
    store.refuse_lists(false);
    lab.pass(1);
    assert_eq!((collect().await.purges_left, store.lists()), (1, 2), "the first listing failed");
    copy(2).await;
    lab.pass(1);
    assert_eq!((collect().await.purges_left, store.lists()), (1, 2), "it waits for an object that is known");
    lab.pass(HOUR);
    let report = collect().await;
    assert_eq!((report.objects_deleted, report.strays_found, store.lists()), (1, 1, 3));
    assert_eq!((report.purged, report.purges_left), (0, 1), "an upload left a copy");
    assert_eq!(report.oldest_purge, Some(removed_at));
    assert_eq!(counts(&process, &cache).await, PurgeCounts { waiting: 1, untried: 0 });
    lab.pass(2 * DAY);
    let report = collect().await;
    assert_eq!((report.purged, report.purges_left, report.oldest_purge), (1, 0, None));
    assert_eq!(count_in_store(&lab, &own).await, 0);
    process.reads_back(&beginning(), "it shares chunks").await;
}

/// Collects in a store while something happens before each call of the collector.
async fn collect_meanwhile(
    lab: &Lab,
    process: &Process,
    blobs: Arc<dyn Blobs>,
    settings: CollectSettings,
    meanwhile: impl Fn(u64) -> BoxFuture<'static, ()> + Send + Sync + 'static,
) -> CollectionReport {
    let faults = Faults::crash_at(NEVER, false);
    let index = FaultCollect::new(Arc::clone(&process.contracts.collect), Arc::clone(&blobs), faults)
        .with_meanwhile(meanwhile);
    let clock = Arc::clone(&lab.clock) as Arc<dyn Clock>;
    let collector = Collector::new(Arc::new(index), blobs, clock, settings);
    let outcome = collector.run_now(&*process.contracts.jobs, "test", 30).await;
    outcome.expect(ANSWERS).expect("no other process collects")
}

/// Every collection lists.
fn listing() -> CollectSettings {
    CollectSettings { listing_seconds: 0, ..CollectSettings::default() }
}

/// A path that shared chunks with the secret goes while the purge runs. These chunks were moved by
/// a compaction before, so an older object has copies of them.
#[tokio::test]
async fn a_purge_that_comes_to_more_chunks_waits_for_their_copies_too() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    push_secret(&lab, &process, &cache).await;
    let store = OddStore::new(&lab);
    store.keep(lab.installation.blobs.list().await.expect(ANSWERS));
    process.engine.remove_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    lab.pass(OLD);
    assert_eq!(lab.collect(&process).await.compacted.packs, 1);
    lab.pass(CONDEMNED);
    let report = lab.collect_in(&process, &store).await;
    assert_eq!((report.removed.packs, report.objects_deleted), (1, 0));
    // The secret comes again, and finds what it shares in the new pack.
    lab.pass(HOUR);
    let [secret, ..] = nars();
    push(&process.engine, &cache, &path(3), &secret).await.expect(ANSWERS);
    let others = stored_chunks(&lab, &process, &cache, &beginning()).await;
    let mut shared = stored_chunks(&lab, &process, &cache, &secret).await;
    shared.retain(|chunk| others.contains(chunk));
    assert!(!shared.is_empty());
    process.engine.purge_object(&cache, &path(3).hash(), None).await.expect(ANSWERS);
    lab.pass(1);
    let meanwhile = {
        let (engine, cache, collect) =
            (process.engine.clone(), Arc::clone(&cache), Arc::clone(&process.contracts.collect));
        move |_| -> BoxFuture<'static, ()> {
            let (engine, cache, collect) = (engine.clone(), Arc::clone(&cache), Arc::clone(&collect));
            Box::pin(async move {
                let packs = collect.page_packs(PackNumber(0), 99).await.expect(ANSWERS);
                // The first round is over.
                if packs.iter().any(|pack| pack.condemned_at.is_some()) {
                    engine.remove_object(&cache, &path(2).hash(), None).await.expect(ANSWERS);
                }
            })
        }
    };
    let report = collect_meanwhile(&lab, &process, store.clone(), listing(), meanwhile).await;
    assert_eq!((report.purged, report.purges_left), (0, 1));
    assert_eq!(count_in_store(&lab, &shared).await, shared.len(), "in the object that stays");
    store.keep([]);
    assert_eq!(lab.collect_in(&process, &store).await.purged, 1);
    assert_eq!(count_in_store(&lab, &shared).await, 0);
}

/// For the marks of a collection, a path that is removed while it runs is alive. They do not tell
/// that nothing is left of it.
#[tokio::test]
async fn a_note_of_a_removal_during_a_collection_stays() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let mut removals = 0;
    for at in 0.. {
        let removed = path(u8::try_from(at + 1).expect("a collection has few calls"));
        let nar = package_nar(&mut Random::new(at), 2_000, &[]);
        push(&process.engine, &cache, &removed, &nar).await.expect(ANSWERS);
        let meanwhile = {
            let (engine, cache, removed) = (process.engine.clone(), Arc::clone(&cache), removed.clone());
            move |call| -> BoxFuture<'static, ()> {
                let (engine, cache, removed) = (engine.clone(), Arc::clone(&cache), removed.clone());
                Box::pin(async move {
                    if call == at {
                        engine.remove_object(&cache, &removed.hash(), None).await.expect(ANSWERS);
                    }
                })
            }
        };
        // Half an hour: all packs are young, so no bytes go.
        lab.pass(HOUR / 2);
        let blobs = Arc::clone(&lab.installation.blobs);
        collect_meanwhile(&lab, &process, blobs, CollectSettings::default(), meanwhile).await;
        let index = &process.contracts.index;
        if index.find_object(cache.id, &removed.hash()).await.expect(ANSWERS).is_some() {
            break;
        }
        removals += 1;
        let notes = process.contracts.collect.purge_notes(PurgeId(0), 9).await.expect(ANSWERS);
        let [note] = &notes[..] else { panic!("removed before call {at}: {notes:?}") };
        // Or the collections would have more and more calls.
        process.contracts.collect.forget_purge_notes(&[note.id]).await.expect(ANSWERS);
    }
    assert!(removals > 10, "the collection has only {removals} calls");
}

/// Many notes take a while, in which no other process may take the collection over.
#[tokio::test]
async fn the_lease_stays_while_notes_are_looked_through() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    for number in 1..=40 {
        let nar = package_nar(&mut Random::new(number.into()), 2_000, &[]);
        push(&process.engine, &cache, &path(number), &nar).await.expect(ANSWERS);
        process.engine.remove_object(&cache, &path(number).hash(), None).await.expect(ANSWERS);
    }
    lab.pass(HOUR);
    let meanwhile = {
        let (jobs, clock) = (Arc::clone(&process.contracts.jobs), Arc::clone(&lab.clock));
        move |call| -> BoxFuture<'static, ()> {
            let (jobs, clock) = (Arc::clone(&jobs), Arc::clone(&clock));
            Box::pin(async move {
                clock.pass(1);
                let now = clock.now();
                let taken = jobs.lease_job(JobKind::Collect, "thief", now, now + 30).await.expect(ANSWERS);
                assert_eq!(taken, None, "before call {call}");
            })
        }
    };
    let settings = CollectSettings { renew_after: Duration::ZERO, ..CollectSettings::default() };
    collect_meanwhile(&lab, &process, Arc::clone(&lab.installation.blobs), settings, meanwhile).await;
    let notes = process.contracts.collect.purge_notes(PurgeId(0), 99).await.expect(ANSWERS);
    assert_eq!(notes.len(), 40, "all had to be looked at");
}

/// A path that stays shares a pack with the secret, and its chunk there is damaged. It cannot move,
/// and no collection says so by waiting alone: the report does. A push ends it.
#[tokio::test]
async fn a_purge_beside_a_damaged_chunk_of_a_live_path_says_what_it_waits_for() {
    let lab = Lab::new(false).await;
    let process = lab.open().await;
    let cache = create_main(&process.engine).await;
    let own = push_secret(&lab, &process, &cache).await;
    let index = &process.contracts.index;
    let key = NarQuery::Hash(hash_of(&beginning()));
    let live = index.find_nar_in_cache(cache.id, &key, 0).await.expect(ANSWERS).expect("it is there");
    let [secret, ..] = nars();
    let key = NarQuery::Hash(hash_of(&secret));
    let removed = index.find_nar_in_cache(cache.id, &key, 0).await.expect(ANSWERS).expect("it is there");
    let of_secret = index.load_chunks(&removed.recipe.runs).await.expect(ANSWERS);
    let rows = index.load_chunks(&live.recipe.runs).await.expect(ANSWERS);
    let shared = rows.iter().find(|row| of_secret.iter().any(|other| other.number == row.number));
    let damaged = shared.expect("they share some").number;
    index.mark_damaged(live.id, &[damaged], lab.clock.now()).await.expect(ANSWERS);
    process.engine.purge_object(&cache, &path(1).hash(), None).await.expect(ANSWERS);
    for pause in [1, OLD] {
        lab.pass(pause);
        let report = lab.collect(&process).await;
        let purges = (report.purged, report.purges_left, report.purge_packs_damaged);
        assert_eq!(purges, (0, 1, 1), "after {pause} s: {report:?}");
        assert_eq!(count_in_store(&lab, &own).await, own.len());
    }
    push(&process.engine, &cache, &path(2), &beginning()).await.expect(ANSWERS);
    lab.pass(1);
    let report = lab.collect(&process).await;
    assert_eq!((report.purged, report.purges_left, report.purge_packs_damaged), (1, 0, 0));
    assert_eq!(count_in_store(&lab, &own).await, 0);
    process.reads_back(&beginning(), "it was healed").await;
}
