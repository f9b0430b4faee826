//! Recovery: an empty index is filled from the packs and the journal.
//!
//! Algorithm
//! 1. The newest whole snapshot is chosen, with all segments after it.
//! 2. The tables of all packs are read, and packs and chunks become rows.
//! 3. The files are read from the newest to the oldest. The first record about a thing counts;
//!    caches first, then paths, aliases and documents.
//!
//! A chunk may lie in several packs: a compaction moved it, or a push healed it. The newest pack is
//! read first, because its copy is the one that the lost index named, and the chunk gets one row.
//!
//! Everything goes through the same calls as a push, so every invariant of the index holds at every
//! moment, and an interrupted recovery simply begins again: what is there already stays, and packs
//! that have a row are not read again.
//!
//! Memory: one file of the journal, all caches with their pins, the keys of the segments' records,
//! the ids of all packs, and one listing.

mod cache_states;
mod choose;
mod nars;
mod packs;
mod records;
mod recovery;
mod report;
mod seen;

pub use self::recovery::Recovery;
pub use self::report::{Recovered, RecoveryEvent, RecoveryIndex};
