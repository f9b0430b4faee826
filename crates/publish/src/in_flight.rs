//! Several requests at once, of which none is left behind.
//!
//! The target may still carry out a request that the publisher no longer waits for. If the lease
//! were given back meanwhile, the next holder could write something newer first. So after a failure
//! nothing more begins, and the publisher waits for what is under way, at most as long as the
//! longest request. If something is under way even then, the run does not give its lease back: the
//! next holder finds a lease that ran out, and waits for the longest request itself.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dormer_stores::WriteWindow;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, timeout_at};

use crate::{Error, Result};

/// What all requests of a run share.
#[derive(Debug)]
pub(crate) struct InFlight {
    concurrency: usize,
    /// Longest that a request may be under way after a failure.
    request_timeout: Duration,
    /// When requests may begin; `None`: always.
    window: Option<Arc<WriteWindow>>,
    left_behind: AtomicBool,
}

impl InFlight {
    pub(crate) fn new(concurrency: usize, request_timeout: Duration) -> Self {
        let left_behind = AtomicBool::new(false);
        Self { concurrency: concurrency.max(1), request_timeout, window: None, left_behind }
    }

    /// The same, where no request begins once the window is closed.
    pub(crate) fn within(self, window: &Arc<WriteWindow>) -> Self {
        Self { window: Some(Arc::clone(window)), ..self }
    }

    /// Whether a request is under way that nobody waits for.
    pub(crate) fn left_behind(&self) -> bool {
        self.left_behind.load(Ordering::Relaxed)
    }

    /// Runs one.
    pub(crate) async fn one<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut done = self.all([work]).await?;
        Ok(done.pop().expect("what did not fail is done"))
    }

    /// Runs all; the first error, once everything that had begun is over.
    pub(crate) async fn all<T>(
        &self,
        work: impl IntoIterator<Item = impl Future<Output = Result<T>>>,
    ) -> Result<Vec<T>> {
        let mut work = work.into_iter();
        let mut requests = Requests::new(self);
        let mut done = Vec::new();
        loop {
            while requests.has_room()
                && let Some(next) = work.next()
            {
                requests.begin(next);
            }
            match requests.next().await {
                Some(one) => done.push(one),
                None => return requests.end().map(|()| done),
            }
        }
    }
}

/// Requests that are under way.
pub(crate) struct Requests<'a, F, T> {
    rules: &'a InFlight,
    under_way: FuturesUnordered<F>,
    /// What ended while the publisher waited for something else.
    ended: VecDeque<Result<T>>,
    failure: Option<(Error, Instant)>,
}

impl<'a, T, F: Future<Output = Result<T>>> Requests<'a, F, T> {
    pub(crate) fn new(rules: &'a InFlight) -> Self {
        Self { rules, under_way: FuturesUnordered::new(), ended: VecDeque::new(), failure: None }
    }

    /// Whether one more may begin.
    pub(crate) fn has_room(&mut self) -> bool {
        if self.rules.window.as_ref().is_some_and(|window| !window.is_open()) {
            self.fail(dormer_index::Error::LeaseLost.into());
        }
        self.failure.is_none() && self.under_way.len() + self.ended.len() < self.rules.concurrency
    }

    /// Begins one.
    pub(crate) fn begin(&mut self, request: F) {
        self.under_way.push(request);
    }

    /// Lets nothing more begin. The first failure is the one that counts.
    pub(crate) fn fail(&mut self, error: Error) {
        self.failure.get_or_insert_with(|| (error, Instant::now() + self.rules.request_timeout));
    }

    /// The next one that is done; `None` when nothing is under way that is worth waiting for.
    pub(crate) async fn next(&mut self) -> Option<T> {
        loop {
            let next = match &self.failure {
                _ if !self.ended.is_empty() => self.ended.pop_front(),
                None => self.under_way.next().await,
                Some((_, deadline)) => {
                    if let Ok(next) = timeout_at(*deadline, self.under_way.next()).await {
                        next
                    } else {
                        self.rules.left_behind.store(true, Ordering::Relaxed);
                        self.under_way.clear();
                        None
                    }
                }
            };
            match next? {
                Ok(done) => return Some(done),
                Err(error) => self.fail(error),
            }
        }
    }

    /// Waits for something else while what is under way goes on.
    ///
    /// A request may hold what `other` waits for, such as a connection to the database, and gives
    /// it back only if it is polled.
    pub(crate) async fn meanwhile<O>(&mut self, other: impl Future<Output = O>) -> O {
        let mut other = pin!(other);
        loop {
            tokio::select! {
                biased;
                done = &mut other => return done,
                Some(ended) = self.under_way.next() => self.ended.push_back(ended),
            }
        }
    }

    /// Its result.
    pub(crate) fn end(self) -> Result<()> {
        self.failure.map_or(Ok(()), |(error, _)| Err(error))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn after_a_failure_nothing_begins_and_what_had_begun_ends() {
        let (begun, ended) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let work = (0..9_u64).map(|number| {
            let (begun, ended) = (&begun, &ended);
            async move {
                begun.borrow_mut().push(number);
                if number == 1 {
                    return Err(Error::CacheName { name: "planted".to_owned() });
                }
                for _ in 0..10 - number {
                    tokio::task::yield_now().await;
                }
                ended.borrow_mut().push(number);
                Ok(number)
            }
        });
        let rules = InFlight::new(3, Duration::from_mins(1));
        assert!(matches!(rules.all(work).await, Err(Error::CacheName { .. })));
        assert_eq!((begun.into_inner(), ended.into_inner()), (vec![0, 1, 2], vec![2, 0]));
        assert!(!rules.left_behind());
        let rules = InFlight::new(2, Duration::ZERO);
        assert_eq!(rules.all((0..9).map(|number| async move { Ok(number) })).await.unwrap().len(), 9);
    }

    #[tokio::test]
    async fn what_is_under_way_goes_on_while_something_else_is_waited_for() {
        let rules = InFlight::new(3, Duration::from_mins(1));
        let connections = tokio::sync::Semaphore::new(2);
        let mut requests = Requests::new(&rules);
        for number in 0..3 {
            let connections = &connections;
            requests.begin(async move {
                let _connection = if number == 0 { None } else { Some(connections.acquire().await) };
                for _ in 0..=4 * number {
                    tokio::task::yield_now().await;
                }
                Ok(number)
            });
        }
        let mut done = vec![requests.next().await.unwrap()];
        assert_eq!(connections.available_permits(), 0, "the others hold all connections");
        let noted = requests.meanwhile(connections.acquire());
        let noted = tokio::time::timeout(Duration::from_mins(1), noted).await.expect("they give one back");
        drop(noted);
        while let Some(number) = requests.next().await {
            done.push(number);
        }
        done.sort_unstable();
        assert_eq!(done, [0, 1, 2]);
        requests.end().unwrap();
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_and_a_closed_window_lets_nothing_begin() {
        let rules = InFlight::new(2, Duration::from_millis(10));
        let work = (0..2).map(|number| async move {
            if number == 0 {
                return Err(Error::CacheName { name: "planted".to_owned() });
            }
            std::future::pending::<Result<()>>().await
        });
        assert!(matches!(rules.all(work).await, Err(Error::CacheName { .. })));
        assert!(rules.left_behind());
        let window = Arc::new(WriteWindow::until(Instant::now() + Duration::from_mins(1)));
        let rules = InFlight::new(2, Duration::ZERO).within(&window);
        rules.one(async { Ok(()) }).await.unwrap();
        window.close();
        let lost = rules.all([async { panic!("it begins") as Result<()> }]).await;
        assert!(matches!(lost, Err(Error::Index(dormer_index::Error::LeaseLost))), "{lost:?}");
    }
}
