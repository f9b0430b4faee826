//! What operators look at beside requests: jobs, collections and scrubs.
//!
//! Invariants
//! - A plan of a collection reads the recipes of all paths, so no look at a page makes one. An
//!   operator asks for it with a form; one is made at a time, and one a minute at most.
//! - A plan changes nothing, and ends after [`PLAN_MAX`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormer_engine::{CollectionPlan, Collector, ExpiryTotals, Scrubber};
use dormer_index::{JobIndex, UnixSeconds};
use dormer_nix::with_causes;

/// Longest time for a plan.
const PLAN_MAX: Duration = Duration::from_mins(10);

/// For so many seconds after a plan was begun, no other one is made.
const PLAN_SECONDS: UnixSeconds = 60;

/// The parts of an installation that operators look at.
#[derive(Debug)]
pub struct Operations {
    name: String,
    jobs: Arc<dyn JobIndex>,
    collector: Collector,
    scrubber: Scrubber,
    plan: Arc<Mutex<Plan>>,
}

/// A plan of a collection.
#[derive(Debug, Clone, Default)]
pub(crate) enum Plan {
    /// Nobody asked for one.
    #[default]
    None,
    /// One is being made, since then.
    Running(UnixSeconds),
    /// The last one: when it was begun, and what it says or why it failed.
    Ended(UnixSeconds, Result<Box<CompletePlan>, String>),
}

/// What `dormer gc --dry-run` says, too.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CompletePlan {
    pub(crate) expiry: ExpiryTotals,
    pub(crate) collection: CollectionPlan,
}

impl Operations {
    /// `name` is that of this process in leases.
    pub fn new(name: String, jobs: Arc<dyn JobIndex>, collector: Collector, scrubber: Scrubber) -> Self {
        Self { name, jobs, collector, scrubber, plan: Arc::default() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn jobs(&self) -> &dyn JobIndex {
        &*self.jobs
    }

    pub(crate) fn collector(&self) -> &Collector {
        &self.collector
    }

    pub(crate) fn scrubber(&self) -> &Scrubber {
        &self.scrubber
    }

    /// The last plan.
    pub(crate) fn plan(&self) -> Plan {
        hold(&self.plan).clone()
    }

    /// Begins a plan, unless one is being made or is fresh.
    pub(crate) fn begin_plan(&self, now: UnixSeconds) {
        let mut plan = hold(&self.plan);
        let is_fresh = matches!(&*plan, Plan::Ended(at, _) if (*at..*at + PLAN_SECONDS).contains(&now));
        if is_fresh || matches!(&*plan, Plan::Running(_)) {
            return;
        }
        *plan = Plan::Running(now);
        let (collector, place) = (self.collector.clone(), Arc::clone(&self.plan));
        // Two tasks, so that a plan that panics has ended, too.
        let making = tokio::spawn(tokio::time::timeout(PLAN_MAX, async move {
            let expiry = collector.plan_expiry().await?;
            Ok::<_, dormer_engine::Error>(CompletePlan { expiry, collection: collector.plan().await? })
        }));
        tokio::spawn(async move {
            let outcome = match making.await {
                Ok(Ok(Ok(plan))) => Ok(Box::new(plan)),
                Ok(Ok(Err(error))) => {
                    tracing::warn!(error = with_causes(&error), "failed to plan a collection");
                    // The log has the causes, which may name what pages do not tell.
                    Err("the database does not answer as it should; the log has more".to_owned())
                }
                Ok(Err(_)) => Err(format!("it took longer than {} minutes", PLAN_MAX.as_secs() / 60)),
                Err(_) => Err("a defect: the log has more".to_owned()),
            };
            *hold(&place) = Plan::Ended(now, outcome);
        });
    }
}

fn hold(plan: &Mutex<Plan>) -> MutexGuard<'_, Plan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner)
}
