//! Hosting a published layout: the same answers as the Worker's, from a folder or any bucket.
//!
//! Layer: shell over `dormer-edge`, which decides every answer. This crate adds files, buckets,
//! memory and connections. It needs nothing of the lab, neither its index nor its secrets.
//!
//! Invariants
//! - Nothing of a cache is looked up, in the store or in memory, before the caller may read it.
//! - Memory is keyed by the object's own name, and keeps nothing for longer than the layout's lives
//!   say.
//! - A store that does not answer is 503 and never "not here".
//! - Memory and disk are bounded whatever is asked for.

mod disk;
mod host;
mod source;

pub use disk::{DiskCache, DiskCacheError};
pub use dormer_api::TokenBounds;
pub use dormer_edge::{
    HS256_SECRET_BYTES_MIN, KeyError, TokenKey, TokenVerifier, check_secret, is_plain_origin,
};
pub use host::{EdgeServer, EdgeSettings};
pub use source::{Source, SourceError};
