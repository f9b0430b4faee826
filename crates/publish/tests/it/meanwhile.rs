//! A change in the lab between any two steps of a run: whatever the run saw before it, a reader
//! sees whole closures all the way, and the next run brings what is left.

use std::sync::Arc;

use crate::common::{Lab, SETTLE, on_both_databases, stride};
use dormer_publish::Mode;

/// What others do in the lab meanwhile.
#[derive(Debug, Clone, Copy)]
enum Change {
    Remove(u8),
    RemoveForCause(u8),
    /// A path's number, the seed of its contents, and its references.
    Push(u8, u64, &'static [u8]),
}

impl Change {
    async fn happens(self, lab: &Lab) {
        match self {
            Self::Remove(number) => lab.remove(number).await,
            Self::RemoveForCause(number) => lab.remove_for_cause(number).await,
            Self::Push(number, seed, references) => lab.push(number, seed, references).await,
        }
    }
}

/// 3, 4 and 6 are published. 1 waited for 9, which is upstream's and settled by now, and 2 for 1; 5
/// is new, and 6 has changed.
async fn prepare() -> Lab {
    let lab = Lab::new().await;
    lab.push(1, 1, &[9]).await;
    lab.push(2, 2, &[1]).await;
    lab.push(3, 3, &[]).await;
    lab.push(4, 4, &[3]).await;
    lab.push(6, 6, &[4]).await;
    let first = lab.publish().await.expect("nothing is in the way");
    assert_eq!((first.caches[0].published, first.waiting()), (3, 2));
    lab.clock.advance(SETTLE);
    lab.push(5, 5, &[3, 2]).await;
    lab.push(6, 66, &[3]).await;
    lab
}

/// `published`: what is there in the end, whenever the changes happened.
async fn at_any_moment(changes: &'static [Change], published: &[u8]) {
    for moment in (0..).step_by(stride()) {
        let lab = Arc::new(prepare().await);
        let busy = Arc::clone(&lab);
        let (publisher, index) = lab.publisher_meanwhile(Box::new(move |call| {
            let lab = Arc::clone(&busy);
            Box::pin(async move {
                if call == moment {
                    for change in changes {
                        change.happens(&lab).await;
                    }
                }
            })
        }));
        let what = format!("{changes:?} before call {moment}");
        publisher.run(Mode::Follow).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        lab.check_every_moment(&[9], &what);
        let calls = index.calls();
        if moment >= calls {
            assert!(calls > 20, "only {calls} calls: the test no longer sees them");
            return;
        }
        lab.clock.advance(SETTLE);
        lab.publish().await.unwrap_or_else(|error| panic!("{what}: {error}"));
        lab.check_every_moment(&[9], &format!("{what}, and a run after it"));
        lab.check_counts(&what).await;
        assert_eq!(lab.published().into_iter().collect::<Vec<_>>(), published, "{what}");
    }
}

async fn what_goes_while_its_referrers_wait_takes_none_of_them_along() {
    at_any_moment(&[Change::Remove(1)], &[3, 4, 6]).await;
    at_any_moment(&[Change::RemoveForCause(1)], &[3, 4, 6]).await;
}

async fn what_goes_while_its_referrers_are_published_takes_them_back() {
    at_any_moment(&[Change::Remove(3)], &[1, 2]).await;
    at_any_moment(&[Change::RemoveForCause(3)], &[1, 2]).await;
}

async fn what_goes_and_comes_again_is_there() {
    at_any_moment(&[Change::Remove(1), Change::Push(1, 11, &[3])], &[1, 2, 3, 4, 5, 6]).await;
    at_any_moment(&[Change::RemoveForCause(3), Change::Push(3, 33, &[])], &[1, 2, 3, 4, 5, 6]).await;
}

async fn what_comes_meanwhile_is_there() {
    at_any_moment(&[Change::Push(8, 8, &[7]), Change::Push(7, 7, &[5])], &[1, 2, 3, 4, 5, 6, 7, 8]).await;
    at_any_moment(&[Change::Push(9, 9, &[])], &[1, 2, 3, 4, 5, 6, 9]).await;
    at_any_moment(&[Change::Push(4, 44, &[2]), Change::Push(2, 22, &[])], &[1, 2, 3, 4, 5, 6]).await;
}

on_both_databases! {
    what_goes_while_its_referrers_wait_takes_none_of_them_along,
    what_goes_while_its_referrers_are_published_takes_them_back,
    what_goes_and_comes_again_is_there,
    what_comes_meanwhile_is_there,
}
