//! The object store: object naming, the contract that every store meets, and its adapters. Layer: port.
//!
//! ```text
//! Blobs ◄── LocalBlobs   a folder, durable by fsync
//!       ◄── MemoryBlobs  for tests
//! ```
//!
//! [`conformance`] states what the contract promises as code; every adapter and every wrapper runs it.

mod buffer_pool;
pub mod conformance;
mod contract;
mod error;
mod local;
mod memory;

pub use contract::{BlobKey, Blobs};
pub use error::{Error, Result};
pub use local::LocalBlobs;
pub use memory::MemoryBlobs;
