//! Publishing: from the outbox to edge targets.
//!
//! Layer: above the engine, beside the server. A [`Publisher`] brings the caches of one target there, as the layout of
//! `dormer-edge` has them, and takes back what the lab took back. docs/STORAGE.md, "Publishing", has the orders and why they
//! hold; docs/EDGE.md is for those who run it.
//!
//! Invariants
//! - A narinfo is written after its NAR and after the narinfos of what it refers to, and removed before them: whatever a
//!   reader finds in a target at any moment, its closure is there, or is upstream's.
//! - Before anything is written or deleted in a target, a row says that it may be there or may be gone; so after a crash
//!   nothing lies there that no row knows of, and the next run finishes it.
//! - One program at a time writes to a target: its lease is checked in the transaction before each batch, and a successor
//!   waits out the longest request of one that ended without a word.
//! - The cost is that of what changed: one request for each NAR and each narinfo, a few for each cache. Nothing is listed but by
//!   a reconciliation.

mod all_of;
mod documents;
mod error;
mod page;
mod plan;
mod publisher;
mod recompress;
mod reconcile;
mod removal;
mod report;
mod settings;
mod status;
mod upload;

pub use error::{Error, Result};
pub use publisher::{Mode, Publisher};
pub use report::{CacheOutcome, Outcome, Preview, Reporter, Silent};
pub use settings::TargetSettings;
pub use status::{CacheStatus, TargetStatus, Waiting, status};
