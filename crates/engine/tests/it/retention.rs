//! Retention: a crash at every step of an expire job, and what people ask and do by hand.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dormer_engine::{
    Clock, CollectSettings, Collector, Engine, EngineSettings, ExpiryTotals, JobRunner, JobSettings,
    MasterKey, UpdateCache,
};
use dormer_index::{
    Cache, ExpiryDefaults, Index, JobIndex, JobKind, Object, ObjectIndex as _, Pin, RetentionIndex as _,
    SqlIndex,
};
use dormer_nix::{StorePath, StorePathHash};
use dormer_testkit::{Random, check_invariants, object_for, package_nar};

use crate::common::{Installation, create_main, decompress, ingest, path, served, settings};
use crate::jobs::{FaultJobs, clock_at, has_no_job, until};

const START: i64 = 1_800_000_000;
const DAY: i64 = 86_400;

/// What each path refers to: 0 → 1 → 2, 3 → 2, 4 → 5, and 6.
const REFERENCES: [&[u8]; 7] = [&[1], &[2], &[], &[2], &[5], &[], &[]];

/// The cache `main`, which keeps an unused path for a day, with all paths; 3 was used a day later.
async fn daily_cache(installation: &Installation) -> (Arc<SqlIndex>, Engine, Arc<Cache>, Vec<Vec<u8>>) {
    let index = Arc::new(installation.index().await);
    let clock: Arc<dyn Clock> = clock_at(START);
    let blobs = Arc::clone(&installation.blobs);
    let key = MasterKey::from_bytes([9; 32]);
    let engine_settings = EngineSettings { grace_seconds: 30 * DAY, ..settings() };
    let engine = Engine::new(Arc::clone(&index) as Arc<dyn Index>, blobs, key, engine_settings, clock);
    let main = create_main(&engine).await;
    let daily = UpdateCache { retention_seconds: Some(Some(DAY)), ..UpdateCache::default() };
    engine.update_cache(&main, daily).await.expect("the cache is there");
    let mut random = Random::new(7);
    let nars: Vec<Vec<u8>> = REFERENCES.iter().map(|_| package_nar(&mut random, 5_000, &[])).collect();
    for (number, nar) in (0_u8..7).zip(&nars).rev() {
        let ingested = ingest(&engine, nar).await.expect("nothing crashes");
        let references: Vec<_> = REFERENCES[usize::from(number)].iter().map(|other| path(*other)).collect();
        let object = object_for(&path(number), &references);
        engine.commit_object(&main, ingested, object).await.expect("nothing crashes");
    }
    let used = [path(3).hash()];
    index.touch_objects(main.id, &used, dormer_index::Use::Pull, START + DAY).await.expect("it is written");
    (index, engine, main, nars)
}

/// Two rows a step, so that a small cache has many steps.
fn runner(jobs: Arc<dyn JobIndex>, clock: Arc<dyn Clock>) -> JobRunner {
    let settings = JobSettings {
        lease_seconds: 30,
        poll: Duration::from_millis(2),
        step_rows_max: 2,
        expiry_defaults: ExpiryDefaults {
            retention_seconds: 0,
            quota_bytes: 0,
            grace_seconds: 30 * DAY,
            log_retention_seconds: 0,
        },
        ..JobSettings::default()
    };
    JobRunner::new(jobs, clock, "test".to_owned(), settings)
}

/// What a plan says.
async fn plan(installation: &Installation, index: &Arc<SqlIndex>, now: i64) -> ExpiryTotals {
    let blobs = Arc::clone(&installation.blobs);
    let collector = Collector::new(index.clone(), blobs, clock_at(now), CollectSettings::default());
    collector.plan_expiry().await.expect("nothing crashes")
}

async fn live(index: &SqlIndex, cache: &Cache) -> Vec<u8> {
    let mut live = Vec::new();
    for number in 0..7 {
        if index.find_object(cache.id, &path(number).hash()).await.expect("the index answers").is_some() {
            live.push(number);
        }
    }
    live
}

fn is_whole(live: &[u8]) -> bool {
    live.iter().all(|number| REFERENCES[usize::from(*number)].iter().all(|other| live.contains(other)))
}

#[tokio::test]
async fn a_crash_at_any_call_of_an_expire_job_leaves_closures_whole() {
    for effect_kept in [false, true] {
        for crash_at in 0.. {
            let when = format!("after a crash at call {crash_at}, effect kept: {effect_kept}");
            let installation = Installation::new();
            let (index, engine, main, nars) = daily_cache(&installation).await;
            let now = START + DAY + DAY / 2;
            index.open_job(JobKind::ExpireCache, Some(main.id), None, now).await.expect("it is opened");
            let faults = FaultJobs::crash_at(Arc::clone(&index), crash_at, effect_kept);
            let clock = clock_at(now);
            runner(faults.clone(), clock.clone())
                .run(until("it crashes or ends", async || {
                    faults.crashed.load(Ordering::SeqCst) || has_no_job(&index).await
                }))
                .await;
            let left = live(&index, &main).await;
            assert!(is_whole(&left) && left.contains(&3), "{left:?} {when}");
            // The next process waits until the lease ends.
            clock.0.fetch_add(31, Ordering::SeqCst);
            runner(index.clone(), clock).run(until("it is done", async || has_no_job(&index).await)).await;
            assert_eq!(live(&index, &main).await, [2, 3], "{when}");
            let audit = index.inventory().await.expect("the index answers");
            assert_eq!(audit.unnamed_nars.len(), 0, "graces name what expired, {when}");
            assert_eq!(check_invariants(audit, &*installation.blobs, &[], &[]).await, [], "{when}");
            for nar in &nars {
                let bytes = served(&engine, &main, nar, None).await.expect("a read");
                assert!(bytes.is_some_and(|bytes| decompress(&bytes) == *nar), "readable in grace, {when}");
            }
            if !faults.crashed.load(Ordering::SeqCst) {
                assert!(crash_at >= 4, "the job has only {crash_at} calls");
                break;
            }
        }
    }
}

#[tokio::test]
async fn what_expired_is_missing_and_what_is_told_present_stays() {
    let installation = Installation::new();
    let (index, engine, main, _) = daily_cache(&installation).await;
    let now = START + DAY + DAY / 2;
    assert_eq!(plan(&installation, &index, START + DAY).await, ExpiryTotals::default());
    let planned = plan(&installation, &index, now).await;
    assert_eq!((planned.caches, planned.paths), (1, 5), "all but 3 and what it needs");
    index.open_job(JobKind::ExpireCache, Some(main.id), None, now).await.expect("it is opened");
    runner(index.clone(), clock_at(now)).run(until("it is done", async || has_no_job(&index).await)).await;
    assert_eq!(live(&index, &main).await, [2, 3]);
    assert_eq!(plan(&installation, &index, now).await, ExpiryTotals::default());
    let asked: Vec<StorePathHash> = (0..4).map(|number| path(number).hash()).collect();
    assert_eq!(engine.missing_paths(&main, &asked).await.unwrap(), asked[..2]);
    assert!(engine.narinfo(&main, &path(0).hash()).await.unwrap().is_none());
    assert!(engine.narinfo(&main, &path(3).hash()).await.unwrap().is_some());
}

/// For each quota, the job removes as many paths as the plan says.
#[tokio::test]
async fn a_plan_knows_what_a_quota_lets_go() {
    let now = START + DAY + DAY / 2;
    for quota in [0_u64, 1, 12_000, 20_000, 33_000, 1 << 30] {
        let installation = Installation::new();
        let (index, engine, main, _) = daily_cache(&installation).await;
        let rules = UpdateCache {
            retention_seconds: Some(None),
            quota_bytes: Some(Some(quota)),
            ..UpdateCache::default()
        };
        engine.update_cache(&main, rules).await.expect("the cache is there");
        let planned = plan(&installation, &index, now).await;
        index.open_job(JobKind::ExpireCache, Some(main.id), None, now).await.expect("it is opened");
        runner(index.clone(), clock_at(now))
            .run(until("it is done", async || has_no_job(&index).await))
            .await;
        let left = live(&index, &main).await.len() as u64;
        assert_eq!(planned.paths, 7 - left, "a quota of {quota} bytes");
    }
}

#[tokio::test]
async fn a_pin_says_what_its_closure_lacks() {
    let installation = Installation::new();
    let (index, engine, main, _) = daily_cache(&installation).await;
    let pin = |number| Pin { name: "p".to_owned(), path: path(number), created_at: START, ends_at: None };
    let missing = async |number: u8| {
        let missing = engine.add_pin(&main, &pin(number), None).await.unwrap();
        assert!(missing.is_complete);
        missing.paths
    };
    assert_eq!(missing(0).await, [] as [StorePath; 0]);
    assert_eq!(missing(9).await, [path(9)], "it need not be there");
    assert!(engine.remove_object(&main, &path(2).hash(), None).await.unwrap().was_there);
    assert_eq!(missing(0).await, [path(2)]);
    assert_eq!(index.list_pins(main.id, None, START, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_removal_by_hand_takes_all_referrers_along_and_can_be_repeated() {
    let installation = Installation::new();
    let (index, engine, main, nars) = daily_cache(&installation).await;
    assert!(engine.remove_object(&main, &path(2).hash(), Some("ada")).await.unwrap().was_there);
    assert_eq!(live(&index, &main).await, [0, 1, 3, 4, 5, 6], "at once, and alone");
    assert!(served(&engine, &main, &nars[2], None).await.unwrap().is_none());
    assert_eq!(
        engine.remove_referrers(&main, &path(2).hash(), Some("ada"), false).await.unwrap(),
        (3, false)
    );
    assert_eq!(live(&index, &main).await, [4, 5, 6]);
    assert_eq!(
        engine.remove_referrers(&main, &path(2).hash(), Some("ada"), false).await.unwrap(),
        (0, false)
    );
    let audit = index.audit_after(0, 10).await.unwrap();
    assert_eq!(audit.len(), 4);
    assert!(audit.iter().all(|entry| entry.subject.as_deref() == Some("ada")));
}

/// Nix makes no circles, but a server takes them.
#[tokio::test]
async fn a_circle_can_be_removed_by_hand() {
    let installation = Installation::new();
    let (index, engine, main, nars) = daily_cache(&installation).await;
    for (number, other) in [(4, 5), (5, 4)] {
        let ingested = ingest(&engine, &nars[usize::from(number)]).await.unwrap();
        let object = object_for(&path(number), &[path(other)]);
        engine.commit_object(&main, ingested, object).await.unwrap();
    }
    let (removed, more) = engine.remove_referrers(&main, &path(5).hash(), None, false).await.unwrap();
    assert!((removed, more) == (2, false), "{removed}");
    assert_eq!(live(&index, &main).await, [0, 1, 2, 3, 6]);
}

/// Of paths with as many references as the metadata of a path may hold, a look-up reads those of a
/// few.
#[tokio::test]
async fn a_closure_of_paths_with_most_references_is_read_in_pieces() {
    const LONG: u32 = 3;
    const EACH: u32 = 29_000;
    let installation = Installation::new();
    let engine = installation.engine().await;
    let main = create_main(&engine).await;
    let nar = package_nar(&mut Random::new(3), 1_000, &[]);
    let place = |number: u32| {
        let mut hash = [0; 20];
        hash[..4].copy_from_slice(&number.to_le_bytes());
        StorePath::new(StorePathHash::from_bytes(hash), "x").unwrap()
    };
    let commit = async |path: &StorePath, references: Vec<StorePath>| {
        let ingested = ingest(&engine, &nar).await.unwrap();
        let object = Object { references, ..object_for(path, &[]) };
        engine.commit_object(&main, ingested, object).await.unwrap();
    };
    let root = path(1);
    for number in 0..LONG {
        commit(&place(number), (0..EACH).map(|other| place(1_000 + number * EACH + other)).collect()).await;
    }
    commit(&root, (0..LONG).map(place).collect()).await;

    let hashes: Vec<StorePathHash> = (0..LONG).map(|number| place(number).hash()).collect();
    let found = engine.index().find_references(main.id, &hashes, 1_000_000).await.unwrap();
    assert_eq!(found.len(), LONG as usize);
    assert_eq!(found.iter().filter(|found| found.references.is_some()).count(), 2, "of 638 kB each");

    let closure = engine.closure(&main, &root, 1_000_000).await.unwrap();
    assert_eq!(closure.paths, u64::from(1 + LONG));
    assert_eq!(closure.missing.paths.len(), (LONG * EACH) as usize);
    assert!(closure.missing.is_complete);
    let part = engine.closure(&main, &root, 1_000).await.unwrap();
    assert!(!part.missing.is_complete && part.missing.paths.len() < 1_000, "{}", part.missing.paths.len());
}
