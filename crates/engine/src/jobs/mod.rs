//! The job runner: takes up open jobs one after another, and runs their steps beside pushes and
//! reads.
//!
//! Invariants
//! - A step runs only under the job's lease, and renews the lease in its own transaction. A process
//!   that lost the lease changes nothing more.
//! - Most of the time belongs to others: a pause follows each step, four times as long but 5 s at
//!   most. The size of a step follows the time that steps take (`StepSize`), so a writer on SQLite
//!   waits for one short step at most.
//! - The runner stops at once when it is told to: a step in flight is rolled back, and the lease is
//!   given back.
//!
//! Any number of processes may run one over the same index: each job has one holder, and a job
//! whose holder is gone is taken up again when its lease ends.

mod metrics;
mod runner;
mod settings;
mod upkeep;

pub use self::metrics::JobMetrics;
pub use self::runner::JobRunner;
pub use self::settings::{ExpirySchedule, JobSettings, OutboxLimits};
