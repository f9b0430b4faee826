//! The object store: object naming, the contract that every store meets, and its adapters. Layer: port.
//!
//! ```text
//! Blobs ◄── LocalBlobs   a folder, durable by fsync
//!       ◄── RemoteBlobs  S3, Google Cloud Storage, Azure Blob Storage
//!       ◄── MemoryBlobs  for tests
//!       ◄── Retrying     tries again what may pass
//!       ◄── Limited      asks no more at once than the store bears
//!
//! Files ◄── RemoteFiles, FolderFiles, MemoryFiles   trees of named files: what is published to
//! ```
//!
//! [`conformance`] states what the contract promises as code; every adapter and every wrapper runs it.

mod buffer_pool;
pub mod conformance;
mod contract;
mod counters;
mod error;
pub mod files;
mod limited;
mod local;
mod memory;
pub mod remote;
mod retrying;

pub use buffer_pool::FREE_BYTES_MAX as IDLE_BUFFER_BYTES_MAX;
pub use contract::{BlobKey, Blobs};
pub use counters::{Counters, Failure, LATENCY_BOUNDS, Method};
pub use error::{Cause, Error, Result};
pub use files::{FileEntry, FileEvent, FileKind, FileUpload, Files, FolderFiles, MemoryFiles, Stored};
pub use limited::Limited;
pub use local::LocalBlobs;
pub use memory::MemoryBlobs;
pub use remote::{RemoteBlobs, RemoteFiles, RemoteSettings};
pub use retrying::{RetryPolicy, Retrying};
