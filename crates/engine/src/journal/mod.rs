//! The journal: what the index holds, as compact objects beside the packs, so that a lost index can
//! be made anew.
//!
//! Algorithm
//! - A *segment* holds the present state of what changed since the segment before: paths that the
//!   outbox names, and caches, pins, upload aliases and documents that notes name. It also has the
//!   settings.
//! - A *snapshot* holds the present state of everything, in parts, and an end. It is written in
//!   pages with a cursor, while segments go on. When the segments since the last snapshot weigh as
//!   much as the snapshot, a new one begins; once it is whole, all older files go. So the journal
//!   never takes more than about three times what it describes.
//! - A segment ends at some MiB, and so does a part. A large change is several segments.
//!
//! Invariants
//! - One holder of the lease writes at a time. The lease only saves work: every file has its own
//!   name, and its place is (fence, sequence). A process that lost its lease may still write a
//!   file, but the place of that file is before all files of its successor. The successor begins
//!   where the last *saved* file ended, and so writes again all that the lost file has.
//!   The lease is renewed while a turn gets on, however slow the store or the database is: else a
//!   slow store would let every turn lose its lease, and nothing would ever be saved. A turn that
//!   is stuck in one call keeps the lease for some minutes, and no longer.
//! - A file is stored before the index says so. A crash in between writes it again.
//! - A snapshot's place is fixed before its first page is read: every state in it is as new as that
//!   place, and what changes later is in a segment with a later place.
//! - A database that goes on from an earlier state of itself (it was restored from a copy) begins a
//!   new lineage. Its first turn shows that: the store then has files of fences that this database
//!   has not given yet. The journal that it has forgotten is kept for a while ([`kept`]). If the
//!   store went back, and lacks the last file, the lineage is a new one too.
//! - A process compares database and store once. After that, without a change nothing is requested
//!   of the store, and nothing is written to the index.

mod files;
mod kept;
mod metrics;
mod records;
mod recover;
mod schedule;
mod settings;
mod snapshot;
mod turn;
mod writer;

pub(crate) use self::kept::kept_before;
pub use self::kept::{
    ComparedPasts, KEEP_SECONDS, StoredJournal, keep_journal, kept_journals, release_kept_journals,
    renew_kept_journals, stored_journals,
};
pub use self::metrics::JournalMetrics;
pub use self::recover::{Recovered, Recovery, RecoveryEvent, RecoveryIndex};
pub use self::settings::JournalSettings;
pub use self::writer::Journal;
