//! Journal files: what the index holds, beside the packs, so that a lost index can be made anew.
//!
//! Layer: format (pure). Byte tables and the order of writes: docs/STORAGE.md, "Journal".
//!
//! Invariants
//! - A record says what *is*, never what changed. Of two records about the same thing, the one of
//!   the file with the later position counts, whichever process wrote it.
//! - Records name chunks by id, never by the index's numbers. Caches have a label, which is the
//!   same for all files of a lineage.
//! - A cache's record has all its pins. A pin that changes later has a record of its own.
//! - A path's or alias's NAR stands in the same file, so each file is useful by itself.
//! - A file that is cut at any byte gives the records of all blocks before the cut.
//! - Reading never trusts a length before checking it against the bytes it was given.

mod decode;
mod encode;
mod file;
mod header;
mod names;
mod records;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use self::decode::read_records;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use self::encode::put_record;
pub use self::file::{JOURNAL_BODY_BYTES_MAX, JournalFile, JournalWriter};
pub use self::header::{JournalHeader, JournalKind};
pub use self::names::{JOURNAL_FOLDER, JournalName, KEPT_FOLDER, KeptJournal};
pub use self::records::{
    JournalAlias, JournalCache, JournalContent, JournalDocument, JournalKey, JournalListing, JournalNar,
    JournalObject, JournalPath, JournalPin, JournalRecord,
};
