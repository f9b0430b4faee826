//! Crash at every step of an ingest, with the lost call's effect kept and dropped; and planted defects that these checks
//! are shown to catch.

mod common;

use std::sync::Arc;

use common::{Installation, create_main, engine_over, hash_of, path, push, served, settings};
use dormer_nix::NarHash;
use dormer_testkit::{
    FaultBlobs, FaultIndex, Faults, Lie, Random, Violation, check_invariants, package_nar, rebuilt,
};

/// Pushed in this order: plain ones, one that shares chunks with the first, and one again.
fn nars() -> Vec<Vec<u8>> {
    let mut random = Random::new(42);
    let first = package_nar(&mut random, 90_000, &[path(100)]);
    let second = package_nar(&mut random, 30_000, &[]);
    let third = rebuilt(&first, &path(100), &path(101));
    vec![first.clone(), second, third, first]
}

/// Pushes everything until the crash. Returns what was acknowledged.
async fn push_until_crash(installation: &Installation, faults: &Arc<Faults>) -> Vec<NarHash> {
    {
        let engine = installation.engine().await;
        create_main(&engine).await;
    }
    let index = installation.index().await;
    let blobs = Arc::new(FaultBlobs::new(Arc::clone(&installation.blobs), Arc::clone(faults)));
    let index = Arc::new(FaultIndex::new(Arc::new(index), Arc::clone(faults)));
    let engine = engine_over(index, blobs, settings());
    let mut acknowledged = Vec::new();
    let Ok(Some(cache)) = engine.find_cache("main").await else { return acknowledged };
    for (number, nar) in (0..).zip(nars()) {
        if push(&engine, &cache, &path(number), &nar).await.is_ok() {
            acknowledged.push(hash_of(&nar));
        }
    }
    acknowledged
}

async fn violations_after(installation: &Installation, acknowledged: &[NarHash]) -> Vec<Violation> {
    let index = installation.index().await;
    check_invariants(&index, &*installation.blobs, acknowledged).await
}

#[tokio::test]
async fn invariants_hold_after_a_crash_at_any_step_and_a_push_again_heals() {
    for effect_kept in [false, true] {
        for step in 0.. {
            let installation = Installation::new();
            let faults = Faults::crash_at(step, effect_kept);
            let acknowledged = push_until_crash(&installation, &faults).await;
            let all_steps_tried = !faults.crashed();
            assert_eq!(
                violations_after(&installation, &acknowledged).await,
                [],
                "crash at step {step}, effect kept: {effect_kept}"
            );

            let engine = installation.engine().await;
            let cache = engine.find_cache("main").await.unwrap().expect("it was made before");
            let mut pushed = Vec::new();
            for (number, nar) in (0..).zip(nars()) {
                push(&engine, &cache, &path(number), &nar).await.expect("a push again succeeds");
                assert!(served(&engine, &cache, &nar, None).await.unwrap().is_some());
                pushed.push(hash_of(&nar));
            }
            drop(engine);
            assert_eq!(violations_after(&installation, &pushed).await, [], "healed after step {step}");
            if all_steps_tried {
                assert!(step >= 8, "only {step} steps: the test no longer sees the writes");
                break;
            }
        }
    }
}

/// Every planted defect is caught, by the invariant that it breaks, at some step.
async fn is_caught(lie: Lie, invariants: &[u8]) {
    let mut caught = Vec::new();
    for effect_kept in [false, true] {
        for step in 0..16 {
            let installation = Installation::new();
            let faults = Faults::crash_at_with(step, effect_kept, lie);
            let acknowledged = push_until_crash(&installation, &faults).await;
            caught.extend(
                violations_after(&installation, &acknowledged).await.into_iter().map(|v| v.invariant),
            );
        }
    }
    for invariant in invariants {
        assert!(caught.contains(invariant), "{lie:?} should break invariant {invariant}, found {caught:?}");
    }
}

#[tokio::test]
async fn a_store_that_answers_before_it_is_durable_is_caught() {
    is_caught(Lie::PutBeforeDurable, &[1]).await;
}

#[tokio::test]
async fn chunk_rows_written_after_the_nar_row_are_caught() {
    is_caught(Lie::PackRowsAfterNar, &[2]).await;
}

#[tokio::test]
async fn a_nar_made_visible_under_an_unverified_hash_is_caught() {
    is_caught(Lie::UnverifiedHash, &[3]).await;
}

#[tokio::test]
async fn a_pack_deleted_before_its_rows_is_caught() {
    is_caught(Lie::DeleteBeforeUnreference, &[1, 5]).await;
}

#[tokio::test]
async fn an_acknowledged_commit_that_was_not_made_is_caught() {
    is_caught(Lie::CommitLost, &[5]).await;
}
