//! How far edge targets are behind the lab, as the index knows it: `dormer publish` is another
//! process, and gone most of the time.
//!
//! Invariants
//! - However many read the page, the database is asked by one question at a time, and while it
//!   answers for a twentieth of the time at most.
//! - The page waits for it no longer than [`ASK_TIMEOUT`]. What could not be asked for is not
//!   shown: an old lag would look like a small one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormer_engine::Engine;
use dormer_index::{Follower, PublishBacklog, PublishIndex};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts};
use tokio::time::Instant;

/// How long the database may take for all questions: Prometheus gives up after 10 s by default.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// An answer is remembered for this long at least.
const REMEMBERED_MIN: Duration = Duration::from_secs(2);

/// And for this many times as long as it took.
const REMEMBERED_FACTOR: u32 = 20;

/// Most targets that gauges show, by name.
const TARGETS_MAX: usize = 50;

/// Most caches in targets that are read one by one: gauges have two series for each. What a target
/// has in all is read for each target, however many caches it has.
const CACHES_MAX: u32 = 1_000;

/// Lag and backlog of publishing.
#[derive(Debug, Clone)]
pub(crate) struct PublishMetrics {
    inner: Arc<Inner>,
    /// Held while the database is asked.
    last: Arc<tokio::sync::Mutex<Option<Answer>>>,
}

#[derive(Debug)]
struct Inner {
    engine: Engine,
    state: Arc<dyn PublishIndex>,
    lag: IntGaugeVec,
    pending: IntGaugeVec,
    published: IntGaugeVec,
    /// Held while the gauges are written or read, so that nobody sees half of them.
    gauges: Mutex<()>,
    /// What the gauges show, with its reasons; `None` if the database did not say.
    shown: Mutex<Option<Arc<Vec<TargetBacklog>>>>,
}

/// An edge target, and how far it is behind.
#[derive(Debug, Clone)]
pub(crate) struct TargetBacklog {
    /// The target, and all of its caches in numbers.
    pub(crate) follower: Follower,
    /// Age of the oldest change that it does not have yet.
    pub(crate) lag_seconds: i64,
    /// The first of its caches, by name.
    pub(crate) caches: Vec<PublishBacklog>,
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    at: Instant,
    remembered: Duration,
}

impl PublishMetrics {
    pub(crate) fn new(engine: Engine, state: Arc<dyn PublishIndex>) -> Self {
        let gauge = |name, help, labels: &[&str]| {
            IntGaugeVec::new(Opts::new(name, help), labels).expect("well-formed names")
        };
        let inner = Inner {
            engine,
            state,
            lag: gauge(
                "dormer_publish_lag_seconds",
                "Age of the oldest change that an edge target does not have yet, whether it was not looked at or waits",
                &["target"],
            ),
            pending: gauge(
                "dormer_publish_pending_paths",
                "Paths of which a change is not in an edge target yet, or that wait for another path",
                &["target", "cache"],
            ),
            published: gauge(
                "dormer_publish_published_paths",
                "Paths that are in an edge target",
                &["target", "cache"],
            ),
            gauges: Mutex::new(()),
            shown: Mutex::default(),
        };
        Self { inner: Arc::new(inner), last: Arc::default() }
    }

    /// What the gauges show, as of the last refresh.
    pub(crate) fn shown(&self) -> Option<Arc<Vec<TargetBacklog>>> {
        self.inner.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Brings the gauges up to date, unless they are still remembered.
    pub(crate) async fn refresh(&self) {
        // A scrape that comes during a query waits here for the answer, at most as long as the
        // query may take.
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if last.is_some_and(|answer| answer.at.elapsed() < answer.remembered) {
            return;
        }
        let inner = Arc::clone(&self.inner);
        // A task of its own: a reader that leaves does not make the next one ask again.
        let asked = tokio::spawn(async move {
            let begin = Instant::now();
            let is_known = inner.ask().await;
            // A failure is no reason to show nothing for long after the database answers again.
            let factor = if is_known { REMEMBERED_FACTOR } else { 0 };
            let remembered = (begin.elapsed() * factor).max(REMEMBERED_MIN);
            *last = Some(Answer { at: Instant::now(), remembered });
        });
        // It neither panics nor is it aborted, unless the run time ends.
        let _ = asked.await;
    }
}

impl Inner {
    /// Returns whether the database answered.
    async fn ask(&self) -> bool {
        let found = match tokio::time::timeout(ASK_TIMEOUT, self.read()).await {
            Ok(Ok(targets)) => Some(targets),
            Ok(Err(error)) => {
                tracing::warn!(
                    error = dormer_nix::with_causes(&error),
                    "failed to read how far edge targets are behind"
                );
                None
            }
            Err(_) => {
                tracing::warn!(
                    "the database does not say within {} s how far edge targets are behind",
                    ASK_TIMEOUT.as_secs()
                );
                None
            }
        };
        self.write(found.as_deref().unwrap_or_default());
        let is_known = found.is_some();
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = found.map(Arc::new);
        is_known
    }

    /// Two statements, however many targets there are.
    async fn read(&self) -> dormer_index::Result<Vec<TargetBacklog>> {
        let followers = self.state.list_followers().await?;
        if followers.is_empty() {
            return Ok(Vec::new());
        }
        let mut backlogs: HashMap<_, Vec<PublishBacklog>> = HashMap::new();
        for backlog in self.state.publish_backlog(CACHES_MAX).await? {
            backlogs.entry(backlog.target).or_default().push(backlog);
        }
        let now = self.engine.now();
        let targets = followers.into_iter().map(|follower| {
            let caches = backlogs.remove(&follower.target.id).unwrap_or_default();
            let oldest = [follower.target.unseen_since, follower.pending_since].into_iter().flatten().min();
            let lag_seconds = oldest.map_or(0, |oldest| (now - oldest).max(0));
            TargetBacklog { follower, lag_seconds, caches }
        });
        Ok(targets.collect())
    }

    fn write(&self, targets: &[TargetBacklog]) {
        let _held = self.hold_gauges();
        for gauge in self.all() {
            gauge.reset();
        }
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        for TargetBacklog { follower, lag_seconds, caches } in targets.iter().take(TARGETS_MAX) {
            let target = follower.target.name.as_str();
            self.lag.with_label_values(&[target]).set(*lag_seconds);
            for backlog in caches {
                // Added, since what is left of a deleted cache has its name too.
                let labels = [target, backlog.cache.as_str()];
                self.pending.with_label_values(&labels).add(count(backlog.pending));
                self.published.with_label_values(&labels).add(count(backlog.published));
            }
        }
    }

    fn hold_gauges(&self) -> MutexGuard<'_, ()> {
        self.gauges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> [&IntGaugeVec; 3] {
        [&self.lag, &self.pending, &self.published]
    }
}

impl Collector for PublishMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.inner.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _held = self.inner.hold_gauges();
        self.inner.all().into_iter().flat_map(Collector::collect).collect()
    }
}
