//! The object store: object naming, the contract that every store meets, and its adapters. Layer: port.

mod contract;
mod error;

pub use contract::{BlobKey, Blobs};
pub use error::{Error, Result};
