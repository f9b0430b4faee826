//! One way to a bucket or a folder, over the `object_store` library. Layer: port.
//!
//! [`Store`] is a tree of named objects: in a bucket (S3, Google Cloud Storage, Azure Blob
//! Storage), in a folder, or in memory. Packs, publishing and `dormer edge serve` all use it, so
//! each of these exists once:
//!
//! - opening from settings ([`Store::open`]) or from an address ([`Store::open_address`]);
//! - error classification: a missing bucket is never a missing object, see [`Error`];
//! - retries with back-off, and a limit that adapts to the load that the store bears, see
//!   [`CallPolicy`];
//! - [`Counters`], which are metrics;
//! - [`Store::probe`], which tries out the rights that a key has.
//!
//! `conformance` states the contract as code. It is there with the feature `conformance`.

mod abandoned;
mod client;
mod counters;
mod error;
mod exchange;
mod failure;
mod folder_walk;
mod limit;
mod list;
mod open;
mod probe;
#[cfg(test)]
mod redirect_tests;
mod retry;
#[cfg(test)]
mod scripted_tests;
mod settings;
#[cfg(test)]
mod slow_line_tests;
mod store;
mod stream;
mod upload;
mod window;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;

pub use counters::{Counters, Failure, Method};
pub use error::{Cause, Error, Result};
pub use list::FileEntry;
pub use object_store::GetRange;
pub use open::OpenError;
pub use probe::{Probe, Right};
pub use retry::RetryPolicy;
pub use settings::{Credentials, RemoteKind, RemoteSettings};
pub use store::{CallPolicy, FileKind, FileMeta, Store, Stored};
pub use stream::{ByteStream, Opened};
pub use upload::Upload;
pub use window::WriteWindow;
