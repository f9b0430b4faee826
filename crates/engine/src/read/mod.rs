//! Reading: serves a NAR by splicing stored frames and hole frames. No codec runs here.
//!
//! Algorithm: load the recipe's chunk rows (1,024 at a time for a large NAR), read neighbours in a
//! pack together, one read ahead, and check every chunk against its XXH3-64 before any of its bytes
//! leave. Over a network, where a request costs money and a round trip, reads are larger and gather
//! chunks from several packs. Small reads bring their surroundings along, which are kept for the
//! next small read.
//!
//! Invariants
//! - Before the caller gets a stream, every pack that it needs is known to exist, and the first
//!   read is verified. Over a network, a pack that was stored or read within a minute is known to
//!   exist, and no request asks for that alone if a read will tell.
//! - Memory is reserved before it is used: a stream's own state when the stream begins, each read
//!   before it starts, until its last byte is sent. Streams read ahead only while memory is
//!   plentiful, so reading ahead never delays others.
//! - No read waits for a database write, and none fails because the database takes no writes.
//! - Bytes under a tag never change: the tag is computed from the rows that are served, and rows
//!   that are loaded later must be the same. After healing re-encoded a chunk, the NAR gets its new
//!   tag when it is opened, and [`OpenNar::tag`] shows it to callers that asked by the old one.
//! - A stream ends early only with an error. If bytes are missing or changed, the NAR is then
//!   marked damaged and counts as missing until it is pushed again. A store that cannot be reached
//!   marks nothing.

mod block_cache;
mod fetch;
mod nar_stream;
mod open;
mod plan;

pub(crate) use self::block_cache::BlockCache;
pub(crate) use self::fetch::{FetchFailure, ReadFailure};
pub use self::nar_stream::NarStream;
pub use self::open::{OpenNar, PartStream};
pub(crate) use self::plan::{ReadPlan, windows};
