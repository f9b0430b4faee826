//! Retries and the limit over a scripted call, on a clock that stands still while a task runs.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use proptest::prelude::*;
use tokio::time::{Instant, sleep};

use crate::counters::{Counters, Method};
use crate::limit::Limit;
use crate::retry::{Retries, RetryPolicy};
use crate::{CallPolicy, Error, Result, Store};

const KEY: &str = "packs/07/07070707070707070707070707070707.pack";

/// What a scripted call does after its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Work,
    Unavailable,
    Busy(Option<u64>),
    Refuse,
    NotFound,
}

/// Answers by a script, and succeeds once that is over. Sees how many calls are under way.
#[derive(Debug, Default)]
struct Scripted {
    script: Mutex<VecDeque<Act>>,
    times: Mutex<Vec<Instant>>,
    work: Duration,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Scripted {
    fn new(acts: impl IntoIterator<Item = Act>, work: Duration) -> Arc<Self> {
        Arc::new(Self { script: Mutex::new(acts.into_iter().collect()), work, ..Self::default() })
    }

    /// Pauses between the calls.
    fn pauses(&self) -> Vec<Duration> {
        self.times
            .lock()
            .unwrap()
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).saturating_sub(self.work))
            .collect()
    }

    async fn call(&self) -> Result<u64> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        let _under_way = UnderWay(&self.now);
        self.most.fetch_max(now, Ordering::SeqCst);
        self.times.lock().unwrap().push(Instant::now());
        sleep(self.work).await;
        let act = self.script.lock().unwrap().pop_front().unwrap_or(Act::Work);
        let (attempt, key, source) = ("find", KEY.to_owned(), "by the script".into());
        match act {
            Act::Work => Ok(1),
            Act::Unavailable => Err(Error::Unavailable { attempt, key, source }),
            Act::Busy(seconds) => {
                Err(Error::Busy { attempt, key, retry_after: seconds.map(Duration::from_secs), source })
            }
            Act::Refuse => Err(Error::Refused { attempt, key, store: "s3://b".to_owned(), source }),
            Act::NotFound => Err(Error::NotFound { key }),
        }
    }
}

/// One call fewer is under way, however the call ends.
struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Retrying {
    store: Arc<Scripted>,
    retries: Retries,
}

impl Retrying {
    async fn head(&self) -> Result<u64> {
        self.retries.run(Method::Head, || self.store.call()).await
    }
}

fn retrying(store: &Arc<Scripted>, policy: RetryPolicy) -> (Retrying, Arc<Counters>) {
    let counters = Arc::new(Counters::default());
    let retries = Retries::new(policy, Arc::clone(&counters));
    (Retrying { store: Arc::clone(store), retries }, counters)
}

struct Limited {
    store: Arc<Scripted>,
    limit: Limit,
}

impl Limited {
    async fn head(&self) -> Result<u64> {
        self.limit.run("find", KEY, self.store.call()).await
    }
}

fn limited(store: &Arc<Scripted>, max: usize, wait: Duration) -> Arc<Limited> {
    Arc::new(Limited { store: Arc::clone(store), limit: Limit::new(max, wait, Arc::default()) })
}

/// So many calls at once.
async fn calls(store: &Arc<Limited>, count: usize) -> Vec<Result<u64>> {
    join_all((0..count).map(|_| store.head())).await
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_may_pass_is_repeated_until_it_has_passed() {
    let store = Scripted::new([Act::Unavailable, Act::Busy(None), Act::Unavailable], Duration::ZERO);
    let (retrying, counters) = retrying(&store, RetryPolicy::default());
    assert_eq!(retrying.head().await.unwrap(), 1);
    assert_eq!(counters.retries(Method::Head), 3);
    assert_eq!(counters.retries(Method::Get), 0);
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_does_not_pass_is_tried_once() {
    for act in [Act::Refuse, Act::NotFound] {
        let store = Scripted::new([act], Duration::ZERO);
        let (retrying, counters) = retrying(&store, RetryPolicy::default());
        retrying.head().await.unwrap_err();
        assert_eq!(store.times.lock().unwrap().len(), 1);
        assert_eq!(counters.retries(Method::Head), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_a_store_that_is_away_for_twenty_seconds() {
    // Whatever the jitter: a hundred clients.
    for _ in 0..100 {
        let store = Scripted::new([], Duration::ZERO);
        let (retrying, _) = retrying(&store, RetryPolicy::default());
        let back = Instant::now() + Duration::from_secs(20);
        store.script.lock().unwrap().extend([Act::Unavailable; 1_000]);
        let comes_back = async {
            tokio::time::sleep_until(back).await;
            store.script.lock().unwrap().clear();
        };
        let (got, ()) = tokio::join!(retrying.head(), comes_back);
        assert_eq!(got.unwrap(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_says_when_to_come_back_is_not_called_before() {
    let store = Scripted::new([Act::Busy(Some(5)), Act::Busy(Some(3_600))], Duration::ZERO);
    let policy = RetryPolicy::default();
    let pause_max = policy.pause_max;
    let (retrying, _) = retrying(&store, policy);
    retrying.head().await.unwrap();
    let pauses = store.pauses();
    assert!(pauses[0] >= Duration::from_secs(5), "{pauses:?}");
    assert!(pauses[1] <= pause_max + Duration::from_millis(1), "no call waits for an hour: {pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn pauses_are_spread_over_the_whole_time_from_nothing() {
    let mut first = Vec::new();
    for _ in 0..400 {
        let store = Scripted::new([Act::Unavailable], Duration::ZERO);
        let (retrying, _) = retrying(&store, RetryPolicy::default());
        retrying.head().await.unwrap();
        first.extend(store.pauses());
    }
    // Of 400 draws the chance of none in a given tenth is below 10⁻¹⁸.
    for tenth in 0..10u64 {
        let (from, to) = (Duration::from_millis(tenth * 10), Duration::from_millis(tenth * 10 + 11));
        assert!(first.iter().any(|pause| (from..to).contains(pause)), "no pause within {from:?} to {to:?}");
    }
}

/// A program that sends large files over a slow line waits for all that were there first.
#[tokio::test(start_paused = true)]
async fn calls_wait_for_their_turn_for_longer_than_a_call_is_repeated() {
    let config = ThrottleConfig { wait_put_per_call: Duration::from_secs(10), ..ThrottleConfig::default() };
    let slow = Arc::new(ThrottledStore::new(InMemory::new(), config));
    for (turn_wait, all_end) in [(Some(Duration::from_mins(1)), true), (None, false)] {
        let retries =
            RetryPolicy { tries_max: 1, time_max: Duration::from_secs(15), ..RetryPolicy::default() };
        let policy = CallPolicy { retries, requests_max: Some(1), turn_wait };
        let store = Store::over(Arc::clone(&slow) as _, "slow").with_policy(&policy);
        let puts = ["a", "b", "c", "d"].map(|name| store.put(name, None, ["x".into()]));
        let outcomes = join_all(puts).await;
        assert_eq!(outcomes.iter().all(Result::is_ok), all_end, "{turn_wait:?}: {outcomes:?}");
    }
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

proptest! {
    #[test]
    fn tries_and_time_are_bounded(tries_max in 1u32..20, seconds in 0u64..100, first in 1u64..5_000, pause in 1u64..20) {
        paused().block_on(async {
            let policy = RetryPolicy {
                tries_max,
                time_max: Duration::from_secs(seconds),
                first_pause: Duration::from_millis(first),
                pause_max: Duration::from_secs(pause),
            };
            let store = Scripted::new([Act::Unavailable; 100], Duration::ZERO);
            let (retrying, counters) = retrying(&store, policy.clone());
            let begin = Instant::now();
            let error = retrying.head().await.unwrap_err();
            assert!(matches!(error, Error::Unavailable { .. }));
            assert!(!error.is_worth_a_retry(), "a repeated call is not worth repeating");
            let tries = store.times.lock().unwrap().len();
            assert!(tries <= tries_max as usize);
            assert_eq!(counters.retries(Method::Head) + 1, tries as u64);
            // The clock of a paused run time has a resolution of a millisecond.
            let tick = Duration::from_millis(1);
            let longest_pause = policy.pause_max.max(policy.first_pause);
            // A second try comes even if the time is over by then, unless nothing is to be
            // repeated.
            let most = if seconds == 0 { Duration::ZERO } else { policy.time_max.max(longest_pause) };
            assert!(begin.elapsed() <= most + tick * tries_max);
            assert!(seconds > 0 || tries == 1);
            assert!(store.pauses().iter().all(|pause| *pause <= longest_pause + tick));
        });
    }

    /// Whatever the outcomes of the calls: never more at once than the limit, no turn is lost, no
    /// limit is out of bounds.
    #[test]
    fn turns_are_neither_lost_nor_made(
        max in 1usize..20,
        acts in proptest::collection::vec(
            prop_oneof![3 => Just(Act::Work), 1 => Just(Act::Busy(None)), 1 => Just(Act::Unavailable), 1 => Just(Act::NotFound)],
            0..200,
        ),
        abandoned in 0usize..5,
    ) {
        paused().block_on(async {
            let count = acts.len();
            let store = Scripted::new(acts, Duration::from_millis(10));
            let limited = limited(&store, max, Duration::from_mins(10));
            for _ in 0..abandoned {
                // Dropped while under way, or while waiting.
                let _ = tokio::time::timeout(Duration::from_millis(5), calls(&limited, max + 1)).await;
            }
            calls(&limited, count).await;
            assert!(store.most.load(Ordering::SeqCst) <= max);
            let limit = limited.limit.now();
            assert!((1..=max).contains(&limit), "{limit}");
            // Exactly as many calls as the limit says run at once, so every turn is there.
            store.most.store(0, Ordering::SeqCst);
            calls(&limited, limit).await;
            assert_eq!(store.most.load(Ordering::SeqCst), limit);
            for _ in 0..max * 2 {
                calls(&limited, max).await;
            }
            assert_eq!(limited.limit.now(), max, "the limit returns to its maximum while calls succeed");
            store.most.store(0, Ordering::SeqCst);
            calls(&limited, max * 3).await;
            assert_eq!(store.most.load(Ordering::SeqCst), max);
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_store_halves_the_limit_once_for_all_that_were_under_way() {
    let store = Scripted::new([Act::Busy(None); 32], Duration::from_millis(10));
    let limited = limited(&store, 32, Duration::from_mins(1));
    calls(&limited, 32).await;
    assert_eq!(limited.limit.now(), 16);
    // A store that stays busy gets one request at a time in the end.
    store.script.lock().unwrap().extend([Act::Busy(None); 200]);
    calls(&limited, 200).await;
    assert_eq!(limited.limit.now(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_turn_has_an_end() {
    let store = Scripted::new([], Duration::from_hours(1));
    let limited = limited(&store, 2, Duration::from_secs(30));
    let begin = Instant::now();
    let last = async {
        sleep(Duration::from_millis(1)).await;
        let error = limited.head().await.unwrap_err();
        (error, begin.elapsed())
    };
    let (done, (error, waited)) = tokio::join!(calls(&limited, 2), last);
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
    assert!(waited < Duration::from_secs(31), "{waited:?}");
    assert!(done.iter().all(Result::is_ok));
}
