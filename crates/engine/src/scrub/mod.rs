//! The scrub: reads stored bytes again and checks every hash.
//!
//! Algorithm
//! 1. *Packs*, one after another: read the whole object; compare its BLAKE3, its table, and for
//!    each chunk of the index that lies in it the XXH3-64, and the BLAKE3 of what decodes.
//! 2. *NARs*: rebuild each from its recipe, window by window, and compare size and SHA-256. This
//!    finds recipes, fills and rows that are wrong although all chunks are sound.
//!
//! A sample takes a share of the packs and NARs, chosen by their numbers and the seed of the run:
//! each run takes others, and a run that goes on in another process takes the same.
//!
//! Damage is marked at once. A chunk is marked at the place that was read, so a chunk that a push
//! healed meanwhile is not marked. A store that cannot be reached marks nothing: the run stops and
//! is taken up again later. Where a disk has bad sectors, the chunks are read one by one, and those
//! that do not come are damaged, if the store as a whole answers.
//!
//! Invariants
//! - The state of a run ([`ScrubState`]) is the cursor of its job. It moves after each pack and
//!   each page of NARs, so a crash repeats one of them at most.
//! - Memory: one pack, its rows, and one decoded chunk; or a window of rows and the bytes of one
//!   fetch.
//! - Most of the time belongs to others ([`pause_after`](crate::pace::pause_after)), and no more
//!   bytes are read than the limit allows.

mod check;
mod metrics;
mod nars;
mod packs;
mod reads;
mod scrub_run;
mod scrubber;
mod state;

pub use self::metrics::ScrubMetrics;
pub use self::scrubber::Scrubber;
pub use self::state::{EndedScrub, FULL_PPM, ScrubOptions, ScrubReport, ScrubState};
