//! Test parts that the workspace shares: faults around real stores, NARs to push, and the
//! invariants as code.
//!
//! Layer: development only; no shipped crate depends on it.

mod chunked;
mod faults;
mod faults_collect;
mod faults_journal;
mod faults_publish;
mod faults_scrub;
mod fresh_index;
mod fuzz;
mod inspection;
mod invariants;
mod memory_target;
mod nars;
pub mod services;

pub use chunked::{ChunkedNar, digest_of, part_of};
pub use faults::{FaultBlobs, FaultIndex, Faults, Lie};
pub use faults_collect::FaultCollect;
pub use faults_journal::FaultJournal;
pub use faults_publish::{BusyPublish, FailingPublish, FaultPublish, Meanwhile};
pub use faults_scrub::FaultScrub;
pub use fresh_index::{create_postgres_index, place_sqlite_index};
pub use fuzz::run_over_corpus;
pub use inspection::Inspection;
pub use invariants::{Leaks, Violation, check_invariants, find_leaks};
pub use memory_target::{FileEvent, Freeze, MemoryTarget, SlowWrites};
pub use nars::{Random, farm_nar, object_for, package_nar, rebuilt};
