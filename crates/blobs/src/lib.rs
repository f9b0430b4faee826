//! Packs in an object store: their names, the contract that every store meets, and its adapters.
//! Layer: port.
//!
//! ```text
//! Blobs ◄── LocalBlobs   a folder, durable by fsync
//!       ◄── StoreBlobs   a bucket, by the crate `stores`; or memory, for tests
//! ```
//!
//! `conformance` states what the contract promises as code; every adapter and every wrapper runs
//! it. It is there with the feature `conformance`.
//!
//! [`StoreClaims`] keeps two installations out of one store.

mod buffer_pool;
mod claims;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod contract;
mod local;
mod store_blobs;

pub use buffer_pool::FREE_BYTES_MAX as IDLE_BUFFER_BYTES_MAX;
pub use claims::{Claim, InstallationId, StoreClaims, UnprovenBlobs};
pub use contract::{BlobKey, Blobs};
pub use dormer_stores::{Cause, Counters, Error, Method, Result, Store};
pub use local::LocalBlobs;
pub use store_blobs::StoreBlobs;
