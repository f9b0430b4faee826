//! Memory that a body of a request may take beyond its own bytes.

use std::time::Duration;

/// How long the rest of a body may take to come, and an upload with it may wait for its turn, while
/// others wait for this body alone: 4 MiB over 4 Mbit/s.
pub(crate) const LAST_RESORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Most memory for decoding a `Content-Encoding`, in bytes: more than any encoder's default needs.
pub(crate) const CONTENT_DECODER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Memory that acting on a body takes, in its own length: the body, what is read from it, and what
/// is answered.
pub(crate) const COPIES: u64 = 4;

/// Most memory that one body of this length takes: while it is decoded, or while it is acted on.
/// One body at a time may take it beside the budget ([`crate::shares`], the last resort).
pub(crate) const fn handling_bytes(body_bytes: u64) -> u64 {
    let (decoding, acting) = (2 * body_bytes + CONTENT_DECODER_BYTES_MAX, COPIES * body_bytes);
    if decoding > acting { decoding } else { acting }
}
