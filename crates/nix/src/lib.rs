//! Nix's own formats, without I/O: store paths, hashes, nix-base32, narinfo, signatures, NAR reader, writer and listing.
//!
//! Layer: pure. Nothing here opens a file, a socket or a clock, and nothing needs C, so the crate also builds for wasm32.
//!
//! Rules
//! - Parse once at the edge: every identity is a type whose values are valid by construction.
//! - `parse(display(x)) = x` for every type here; the properties are checked in each module's tests.
//! - Foreign bytes never panic and never make us allocate more than a stated bound; [`fuzz_targets`] holds one checked
//!   property per parser.

mod error;
pub mod fuzz_targets;
mod hash;
pub mod nar;
mod narinfo;
pub mod nix32;
mod signature;
mod store_path;
#[cfg(any(test, feature = "strategies"))]
pub mod strategies;
mod text;

pub use error::{Error, Result};
pub use hash::{NarHash, NarHasher};
pub use narinfo::{NARINFO_BYTES_MAX, NarInfo};
pub use signature::{PublicKey, SecretKey, Signature, check_key_name, fingerprint};
pub use store_path::{STORE_PATH_NAME_BYTES_MAX, StoreDir, StorePath, StorePathHash};
