//! What publishing remembers: the contract, and the statements behind it, topic by topic.
//!
//! Invariants
//! - Every writing method calls [`hold_lease`](targets::hold_lease) before it changes anything: that
//!   locks the target's row, so a lease cannot change hands under it, and puts the lease's end off.
//! - No statement touches more rows than its caller bounds: a page of rows or keys.
//! - A NAR row loses its deadline when something names it and gets one when nothing does any more;
//!   "names" is a row of `publish_objects`, whatever its state, or an intent that has begun.

mod bringing;
#[cfg(test)]
mod bulk_tests;
mod caches;
mod comparing;
mod contract;
mod documents;
mod pending;
#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod plans;
mod published;
pub(crate) mod records;
mod removing;
mod rows;
mod targets;

pub use contract::*;

/// Most keys in one call.
const KEYS_MAX: usize = 16_384;
