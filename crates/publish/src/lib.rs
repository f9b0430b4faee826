//! Publishing: from the outbox to edge targets.
//!
//! Layer: above the engine, beside the server. A [`Publisher`] writes the caches of one target
//! there, in the layout of `dormer-edge`, and removes what the lab removed. docs/STORAGE.md,
//! "Publishing", states the orders and why they hold. docs/PUBLISHING.md is for operators.
//!
//! A run takes the lease (`target`), notes what changed (`follow`) and does the work over whole
//! caches that is due (`scan`, `reconcile`). Then, page by page, it plans (`plan`, pure), brings
//! (`bring`) and removes (`remove`), and writes the documents about each cache (`documents`). Each
//! of these returns what it changed; `rounds` adds that up, and remembers how far the run has come
//! with each cache.
//!
//! [`export`] writes one cache to any folder or bucket, without a row in the index. It shares the
//! plan, the transfers and the documents with publishing.
//!
//! Invariants
//! - The publisher writes a narinfo after its NAR and after the narinfos of its references, and
//!   removes it before them. So a reader always finds whole closures; what is missing is an
//!   upstream's.
//! - Before the publisher writes or deletes a file, a row says that the file may be there or may be
//!   gone. So after a crash a row knows of every file, and the next run finishes the work.
//! - One program at a time writes to a target. Every write to the index checks the lease. A run
//!   gives its lease back when none of its requests is under way; otherwise the next run waits for
//!   the longest request.
//! - A run costs what changed: one request for each NAR and each narinfo, and a few for each cache.
//!   Only a reconciliation lists.

mod bring;
mod bring_documents;
mod documents;
mod error;
mod export;
mod follow;
mod in_flight;
mod owned_documents;
mod place;
mod plan;
mod publisher;
mod recompress;
mod reconcile;
mod remove;
mod report;
mod rounds;
mod scan;
mod settings;
mod status;
mod target;
mod transfer;
mod turn;
mod unknown;

pub use error::{Error, Result};
pub use export::{ExportOutcome, ExportSettings, export};
pub use publisher::{Mode, Publisher};
pub use report::{CacheOutcome, Outcome, Preview, Reporter, Silent};
pub use settings::{REVOKED_BYTES_MAX, TargetSettings};
pub use status::{CacheStatus, TargetStatus, WaitingPath, status};
