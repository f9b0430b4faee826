//! The collector: frees what nothing needs.
//!
//! Algorithm, in the order of a run:
//! 1. Delete the objects of packs whose rows are gone; a run that was cut short may have left some.
//! 2. Remove graces that are over, and upload aliases that no longer resolve.
//! 3. Mark: read all NARs in pages. Those without a name are removed; the chunks of all others join
//!    a bitmap. It takes at most two bytes for a chunk, so 20 million chunks take 40 MB.
//! 4. Judge each pack ([`plan::PackVerdict`]): condemn it, wait, or remove its row and then its
//!    object. Packs with many dead chunks and small packs are compacted ([`compact`]).
//! 5. Remove the bytes of paths that were removed together with them ([`purge`]).
//! 6. Now and then, and for each purge, list the store and note the packs without a row.
//!
//! docs/STORAGE.md argues why no order of these steps and those of uploads loses a live chunk.
//!
//! Invariants
//! - An object is deleted only after the transaction that removed its row, which also noted the
//!   object as doomed.
//! - A pack goes only if it was condemned before the marks of this run began. So no commit could
//!   use the pack since, and the marks saw every NAR that used the pack before.
//! - Marks live in memory: a process that takes over a run begins again. What was freed stays
//!   freed.
//! - While the store keeps a journal of another past, the packs from before stay, and so do those
//!   without a row: only that journal may say what they hold. Purges go before it.

mod collection_run;
mod collector;
mod compact;
mod delete;
mod expiry;
mod judge;
mod mark;
mod metrics;
mod plan;
mod preview;
mod progress;
mod purge;
mod recompress;
mod report;
mod run;
mod settings;
mod strays;

pub use self::collector::Collector;
pub(crate) use self::compact::COMPACTION_BYTES_MAX;
pub use self::expiry::ExpiryTotals;
pub use self::metrics::CollectMetrics;
pub use self::plan::{CompactionTotals, PackTotals};
pub use self::progress::{CollectionPhase, CollectionProgress};
pub use self::report::{CollectionPlan, CollectionReport, EndedCollection};
pub use self::settings::CollectSettings;
pub use self::strays::Strays;
