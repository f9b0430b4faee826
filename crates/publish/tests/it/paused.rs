//! A process stands still in the middle of a write, for longer than its lease, and another one
//! publishes meanwhile: when the first one goes on, it writes nothing more.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::Lab;
use dormer_index::PublishIndex;
use dormer_publish::Mode;
use dormer_stores::{CallPolicy, RetryPolicy};
use dormer_testkit::{Freeze, MemoryTarget};

/// Long enough for the writes of a dozen publishers on a machine that has other things to do.
const LEASE: Duration = Duration::from_secs(6);

/// Returns how many writes there were.
async fn writes_nothing_after_a_pause(at: u64) -> u64 {
    let mut lab = Lab::new().await;
    // One NAR in parts; everything else goes at once.
    lab.target = MemoryTarget::in_parts_of(2_000);
    lab.push(1, 1, &[]).await;
    lab.publish().await.expect("nothing is in the way");
    lab.push(2, 2, &[1]).await;
    lab.remove(1).await;
    lab.push(1, 11, &[]).await;
    // The priority goes into two documents of the cache.
    let update = dormer_engine::UpdateCache { priority: Some(7), ..dormer_engine::UpdateCache::default() };
    lab.engine.update_cache(&lab.cache, update).await.expect("an update");
    let mut paused = lab.settings.clone();
    paused.lease = LEASE;
    let lab = Arc::new(lab);
    let events = Arc::new(Mutex::new(None));
    let (other, seen) = (Arc::clone(&lab), Arc::clone(&events));
    let freeze = Freeze::new(
        at,
        Box::new(move || {
            std::thread::sleep(LEASE);
            other.clock.advance(60);
            let lab = Arc::clone(&other);
            let run = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(lab.publish())
            });
            run.join().expect("it does not panic").expect("the lease has run out");
            *seen.lock().expect("no panic") = Some(other.target.events().len());
        }),
    );
    let retries = RetryPolicy { first_pause: Duration::from_millis(1), ..RetryPolicy::default() };
    let store = lab.target.freezing(&freeze).with_policy(&CallPolicy {
        retries,
        requests_max: None,
        turn_wait: None,
    });
    let index = Arc::clone(&lab.index) as Arc<dyn PublishIndex>;
    let outcome = lab.publisher_with(index, store, paused).run(Mode::Follow).await;
    let is_frozen = freeze.writes() > at;
    assert_eq!(outcome.is_err(), is_frozen, "write {at}: {outcome:?}");
    if let Some(events) = *events.lock().expect("no panic") {
        let later = lab.target.events().split_off(events);
        assert!(later.is_empty(), "after a pause in write {at}: {later:?}");
    }
    lab.check_every_moment(&[], &format!("a pause in write {at}"));
    assert_eq!(lab.published().into_iter().collect::<Vec<_>>(), [1, 2]);
    freeze.writes()
}

fn run(at: u64) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(writes_nothing_after_a_pause(at))
}

/// Each write has a thread: most of the time they stand still.
#[test]
fn a_process_that_stood_still_writes_nothing_more() {
    let writes = run(u64::MAX);
    assert!(writes > 8, "only {writes} writes: the test no longer sees them");
    let threads: Vec<_> = (0..writes).map(|at| std::thread::spawn(move || run(at))).collect();
    for thread in threads {
        thread.join().expect("it writes nothing more");
    }
}
