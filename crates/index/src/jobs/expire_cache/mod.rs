//! The job that removes what a cache keeps no longer: first what is too old, or not among the
//! newest of its name, then the least recently used until the rest fits the quota. At the end, the
//! documents that belong to no object any more, and the logs that are too old. A cache that keeps
//! everything keeps the logs of no object too: somebody may have copied them there alone.
//!
//! Algorithm
//! - An object may go only when no object of the cache refers to it (`object_refs` has a row for
//!   each reference). So referrers go first, and closures are whole after every step, with no mark
//!   to keep right between steps. A root is nothing but an object that may not go: used lately, or
//!   pinned.
//! - A pass walks the objects in the order of their last use. Removing an object frees its
//!   references, and the same step looks at these. One pass is therefore enough, unless a step
//!   frees more objects than it may remove; then another pass follows.
//! - For the quota, two passes add up the bytes of the objects and graces. If they are too many,
//!   graces are cut to a day first, and objects go after that, with a grace of a day.
//!
//! Invariants
//! - A step holds the cache's lock: no commit adds a referrer between its look and its removals. A
//!   use that is recorded meanwhile keeps its object: the removal looks at the time again.
//! - Memory: one page of objects, and those that it frees; nothing grows with the cache.
//!
//! Objects that refer to each other in a circle keep each other. Nix makes no such paths; they can
//! be removed by hand.

mod cursor;
pub(crate) mod documents;
mod due;
pub(crate) mod examined;
pub(crate) mod objects;
mod policy;
pub(crate) mod quota;
mod step;

pub(crate) use due::{caches_with_rules, examine_one, examine_page, open_due};
pub(crate) use step::expire_cache_step;
