//! One write fails at each step of a run, in the index or in the target, and the process lives on:
//! when the lease is given back, nothing is under way in the target, and no upload in parts is
//! open.

use std::sync::Arc;
use std::time::Duration;

use crate::common::Lab;
use dormer_index::PublishIndex;
use dormer_publish::Mode;
use dormer_testkit::{FailingPublish, MemoryTarget, SlowWrites};

/// What fails.
#[derive(Debug, Clone, Copy)]
enum Failing {
    Index(u64),
    Target(u64),
}

async fn prepare() -> Lab {
    let mut lab = Lab::new().await;
    lab.settings.concurrency = 4;
    lab.settings.request_timeout = Duration::from_secs(20);
    // NARs of three parts; everything else goes at once.
    lab.target = MemoryTarget::in_parts_of(1_000);
    for number in 1..=6 {
        lab.push(number, number.into(), &[]).await;
    }
    lab
}

/// Returns whether there was such a step.
async fn fails_cleanly(failing: Failing) -> bool {
    let lab = prepare().await;
    let (index_at, target_at) = match failing {
        Failing::Index(step) => (step, u64::MAX),
        Failing::Target(step) => (u64::MAX, step),
    };
    let pause = Duration::from_millis(3);
    let writes = SlowWrites::new(pause, target_at);
    let index =
        FailingPublish::new(Arc::clone(&lab.index) as Arc<dyn PublishIndex>, Arc::clone(&writes), index_at);
    let index = Arc::new(index);
    let publisher = lab.publisher_of(Arc::clone(&index) as Arc<dyn PublishIndex>, lab.target.slow(&writes));
    let outcome = publisher.run(Mode::Follow).await;
    let failed = index.writes() > index_at || writes.count() > target_at;
    assert_eq!(outcome.is_err(), failed, "{failing:?}: {outcome:?}");
    if let Some(unfinished) = index.at_release() {
        assert_eq!(unfinished, (0, 0), "{failing:?}: under way, and open");
    }
    // The next run needs to wait for nothing, and ends what was begun.
    let given_back =
        lab.index.list_targets().await.expect("it answers").iter().all(|target| target.holder.is_none());
    if !given_back {
        lab.clock.advance(60);
    }
    tokio::time::sleep(pause * 2).await;
    let mut lab = lab;
    lab.settings.request_timeout = Duration::ZERO;
    lab.publish().await.expect("nothing is in the way");
    lab.check_every_moment(&[], &format!("{failing:?}"));
    assert_eq!(lab.published().len(), 6, "{failing:?}");
    failed
}

#[tokio::test]
async fn a_failing_index_leaves_no_request_behind() {
    let mut step = 0;
    while fails_cleanly(Failing::Index(step)).await {
        step += 1;
    }
    assert!(step > 10, "only {step} steps: the test no longer sees the writes");
}

#[tokio::test]
async fn a_failing_target_leaves_no_request_and_no_upload_behind() {
    let mut step = 0;
    while fails_cleanly(Failing::Target(step)).await {
        step += 1;
    }
    assert!(step > 20, "only {step} steps: the test no longer sees the writes");
}
