//! The contract over SQL, topic by topic. Each statement stands once; where the dialects differ,
//! both texts stand side by side.

pub(crate) mod caches;
pub(crate) mod chunks;
pub(crate) mod counters;
pub(crate) mod damage;
pub(crate) mod documents;
pub(crate) mod history;
mod installation;
#[cfg(any(test, feature = "inventory"))]
pub(crate) mod inventory;
pub(crate) mod journal;
pub(crate) mod journal_notes;
pub(crate) mod nars;
pub(crate) mod objects;
pub(crate) mod outbox;
pub(crate) mod retention;
pub(crate) mod sessions;
mod settings;
mod stored_counts;

/// Most keys in one call.
pub(crate) const KEYS_MAX: usize = 16_384;
