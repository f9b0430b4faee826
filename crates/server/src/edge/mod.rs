//! Hosting a published layout: the same answers as the Worker's, from a folder or any bucket.
//!
//! Layer: shell over `dormer-edge`, which decides every answer; here are files, buckets, memory and connections. Nothing of
//! the lab is needed, neither its index nor its secrets.
//!
//! Invariants
//! - Nothing of a cache is looked up, in the store or in anything remembered of it, before the caller may read it.
//! - What is remembered is remembered by the object's own name, and no longer than the layout's lives say.
//! - A store that does not answer is 503 and never "not here".
//! - Memory and disk are bounded whatever is asked for.

mod disk;
mod host;
mod source;

pub use disk::{DiskCache, DiskCacheError};
pub use host::{EdgeServer, EdgeSettings};
pub use source::{Source, SourceError};
