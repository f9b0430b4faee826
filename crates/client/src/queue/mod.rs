//! The queue between builds and caches: builds reach the caches by themselves, and later if the
//! server is away.
//!
//! ```text
//! dormer hook ───────┐
//! store_watch ───────┼─► Spool (a folder) ─► Drainer ─► plan_push, execute_push_to
//! dormer exec ───────┘                        │
//!                                             └─► dead letters, with a reason
//! ```
//!
//! `docs/adr/0028-a-spool-folder-for-builds.md` argues the form of the queue.

mod drain_contract;
mod drainer;
mod entry;
mod failure_pause;
mod push_batch;
mod spool;
mod store_watch;

pub use drain_contract::{
    DrainEnd, DrainReporter, DrainScope, DrainTarget, DrainTargets, DrainerOptions, RootEnd,
};
pub use drainer::Drainer;
pub use entry::{ENTRY_BYTES_MAX, EntryId, QueueEntry, QueuedCache, Standing};
pub use spool::{DeadLetter, DrainerLock, Refused, Spool};
pub use store_watch::{StoreWatch, WatchReporter};
