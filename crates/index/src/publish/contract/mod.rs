//! What publishing records: which changes a run has followed, what is in a target, and what is
//! still to be brought there.
//!
//! Layer: port; the conventions are those of [`Index`](crate::Index). One program at a time may
//! write for a target. Every writing method takes the program's [`Lease`] and renews it. Once
//! another lease was given out, the method fails with [`Error::LeaseLost`](crate::Error::LeaseLost)
//! and changes nothing. The publisher writes rows *before* it writes to the target (as "may be
//! there") and again afterwards, so after a crash a row knows of every file in the target.
//!
//! The contract is a state machine, and each writing method is one transition of it, for a batch:
//!
//! ```text
//! object    (changed) ── note_pending, note_cache_step ──► pending
//!           pending ── settle_pending ──► settled, or waiting with a reason
//!           pending ── begin_publishing ──► writing ── finish_publishing ──► published
//!           published ── begin_removing, take_referrers ──► removing ── finish_removing ──► (gone)
//!           published ── note_drift ──► writing, pending
//!           (found in the target) ── note_drift ──► published, pending
//! NAR file  begin_publishing ──► named ── note_uploaded ──► there
//!           there ── finish_publishing, finish_removing ──► in grace, once nothing names it
//!           in grace ── begin_publishing ──► named
//!           in grace ── begin_removing ──► due, if the lab no longer serves it
//!           due ── begin_deleting_nars, finish_deleting_nars ──► (gone)
//! document  begin_publishing ──► may be there ── finish_publishing ──► there
//!           there ── take_documents ──► may be gone
//!           may be gone ── finish_publishing, finish_removing ──► (gone)
//! ```
//!
//! Each topic has a file with its trait and what the trait speaks of. The files beside this folder
//! have the statements.

mod bringing;
mod caches;
mod comparing;
mod documents;
mod pending;
mod published;
mod removing;
mod targets;

pub use bringing::*;
pub use caches::*;
pub use comparing::*;
pub use documents::*;
pub use pending::*;
pub use published::*;
pub use removing::*;
pub use targets::*;

/// What publishing remembers: all topics. A `dyn PublishIndex` has the methods of every topic.
pub trait PublishIndex:
    TargetIndex
    + PublishedCacheIndex
    + PendingIndex
    + PublishedIndex
    + PublishedDocumentIndex
    + BringIndex
    + RemoveIndex
    + CompareIndex
{
}

impl<T> PublishIndex for T where
    T: TargetIndex
        + PublishedCacheIndex
        + PendingIndex
        + PublishedIndex
        + PublishedDocumentIndex
        + BringIndex
        + RemoveIndex
        + CompareIndex
{
}
