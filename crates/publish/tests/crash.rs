//! Crash at every step of a run, with the lost call's effect kept and dropped: a reader sees whole closures all the way, and
//! the next run finishes what was begun and leaves nothing behind.

mod common;

use common::Lab;
use dormer_testkit::Faults;

/// Before the run that crashes. With `later`, much is published already, and then changed in every way.
async fn prepare(later: bool) -> Lab {
    let lab = Lab::new().await;
    for (number, references) in [(1, vec![]), (2, vec![1]), (3, vec![2]), (4, vec![]), (5, vec![4])] {
        lab.push(number, number.into(), &references).await;
    }
    if later {
        lab.publish().await.expect("nothing is in the way");
        lab.push(6, 6, &[3]).await;
        // Another NAR, other references; an orderly removal; one for cause that takes a referrer along.
        lab.push(3, 33, &[1]).await;
        lab.remove(2).await;
        lab.remove_for_cause(4).await;
        lab.push(7, 7, &[]).await;
    }
    lab
}

async fn survives(later: bool, published: &[u8], nars: usize) {
    for effect_kept in [false, true] {
        for step in 0.. {
            let lab = prepare(later).await;
            let faults = Faults::crash_at(step, effect_kept);
            let outcome = lab.crashing(&faults).run(dormer_publish::Mode::Follow).await;
            let crashed = faults.crashed();
            assert!(crashed || outcome.is_ok(), "{outcome:?}");
            let what = format!("crash at step {step}, effect kept: {effect_kept}, later: {later}");
            lab.check_every_moment(&[], &what);
            // The lease of the dead has to run out.
            lab.clock.advance(60);
            lab.publish().await.unwrap_or_else(|error| panic!("{what}: {error}"));
            lab.check_every_moment(&[], &format!("{what}, and a run after it"));
            assert_eq!(lab.published().into_iter().collect::<Vec<_>>(), published, "{what}");
            assert_eq!(lab.nar_count(), nars, "{what}: NARs");
            if !crashed {
                assert!(step > 10, "only {step} steps: the test no longer sees the writes");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_first_run_survives_a_crash_at_any_step() {
    survives(false, &[1, 2, 3, 4, 5], 5).await;
}

#[tokio::test]
async fn a_run_that_updates_and_removes_survives_a_crash_at_any_step() {
    // 5 waits for 4, which was removed for cause. In grace: 2, the old 3, and 5.
    survives(true, &[1, 3, 6, 7], 4 + 3).await;
}
