//! The edge, without I/O: how published caches lie in a bucket, and what is answered from there.
//!
//! Layer: pure. The publisher writes this layout, the Worker and `dormer edge serve` answer from
//! it; all three take names, content types, lives and rules from here, so they cannot disagree.
//! Nothing here knows a socket, a clock or a runtime, and nothing needs C: the crate also builds
//! for wasm32. Only the feature `verify`, which the Worker leaves off, adds the cryptography that
//! verifies tokens.
//!
//! A host answers a request in four steps, of which only the second and the last do I/O:
//!
//! 1. [`plan`]: method and path. A request outside of the protocol is answered here, and nothing is
//!    read for it.
//! 2. Read the cache's state document (hosts keep it for [`STATE_SECONDS`]) and verify the
//!    signature of [`Visit::token`], if there is one and [`Visit::needs_token`] says so.
//! 3. [`Visit::admit`]: whether the caller may read. Only then may anything be looked up, in a
//!    bucket or in any cache.
//! 4. Look for [`Read::key`] and send the answer of [`Read::respond`]. A page about a path is made
//!    of two documents at most, which are read in the same way ([`PageRead`]).
//!
//! A private cache, a cache that does not exist and a name that no cache can have get the same
//! answer, byte for byte.

mod answer;
mod caching;
mod conditions;
mod error;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz_targets;
mod layout;
mod page;
#[cfg(test)]
mod page_tests;
mod route;
mod rules;
mod spelling;
mod state;
mod token;
#[cfg(feature = "verify")]
mod verify;

pub use answer::{Answer, Body};
pub use caching::{AnswerKind, Caching, Visibility, caching};
pub use conditions::{Part, client_has, wanted_part};
pub use error::{Error, Result};
pub use layout::{EdgeKey, MISS_SECONDS, NARINFO_BYTES_MAX, NarFile, STATE_SECONDS, document_type};
pub use page::{
    Home, LOG_PAGE_BYTES_MAX, PageRead, PageStep, foreign_signatures, hash_in, is_plain_origin, key_names,
    listed_folder, provenance,
};
pub use rules::{Admission, ObjectMeta, Read, Request, RequestPlan, Visit, plan};
pub use spelling::{decode_file_path, decode_form, decode_path, split_files};
pub use state::{CacheState, Catalog, LabMark, STATE_BYTES_MAX};
pub use token::{Algorithm, HS256_SECRET_BYTES_MIN, SignedToken, may_read};
#[cfg(feature = "verify")]
pub use verify::{KeyError, TokenKey, TokenVerifier, check_secret};
