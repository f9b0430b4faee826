//! Nix's own formats, without I/O: store paths, hashes, nix-base32, narinfo, `nix-cache-info`,
//! signatures, and the NAR reader, writer and listing.
//!
//! Layer: pure. The crate opens no file, no socket and no clock, and needs no C code, so it also
//! builds for wasm32.
//!
//! Rules
//! - Parse once, at the boundary: every identity is a type with values that are valid by
//!   construction.
//! - `parse(display(x)) = x` for every type here. Each module's tests check this property.
//! - Foreign bytes never cause a panic, and never an allocation beyond a stated bound.
//!   `fuzz_targets` (feature `fuzz`) holds one checked property per parser.

mod backoff;
mod build_id;
mod build_trace;
mod cache_info;
mod content_address;
mod document_name;
mod error;
mod error_causes;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz_targets;
mod hash;
pub mod nar;
mod narinfo;
pub mod nix32;
mod rate_schedule;
mod signature;
mod store_path;
#[cfg(any(test, feature = "strategies"))]
pub mod strategies;
mod text;

pub use backoff::Backoff;
pub use build_id::{BuildId, DebugLink};
pub use build_trace::{BUILD_TRACE_BYTES_MAX, BuildTrace};
pub use cache_info::CacheInfo;
pub use content_address::{ContentAddress, ContentProof, FileContentsHasher};
pub use document_name::{DocumentName, TraceKey};
pub use error::{Error, Result};
pub use error_causes::with_causes;
pub use hash::{NarHash, NarHasher};
pub use narinfo::{NARINFO_BYTES_MAX, NarInfo};
pub use rate_schedule::RateSchedule;
pub use signature::{PublicKey, SecretKey, Signature, check_key_name, fingerprint, signature_key_name};
pub use store_path::{STORE_PATH_NAME_BYTES_MAX, StoreDir, StorePath, StorePathHash};
