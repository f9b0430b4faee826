//! The wire between Dormer's server and its clients: types, route and header names, error names,
//! tokens.
//!
//! Layer: pure. Shared by the server, the client and the edge; nothing here knows a socket, a clock
//! or a runtime.
//!
//! `/_api/v1/` and the tokens are Attic's, byte for byte, so that `attic` and tokens made for
//! `atticd` work unchanged. The golden texts in `tests/it/golden.rs` check this. `/_api/v2/` is
//! ours. docs/HTTP-API.md describes both.

mod error;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz_targets;
pub mod headers;
mod names;
mod permissions;
mod redacted_url;
pub mod routes;
mod secret;
mod token;
mod unique_keys;
mod v1;
pub mod v2;
mod wire_error;

pub use error::{Error, Result};
pub use names::{CACHE_NAME_BYTES_MAX, CacheName, CacheNamePattern, PinName};
pub use permissions::{Permission, Permissions};
pub use redacted_url::RedactedUrl;
pub use secret::Secret;
pub use token::{
    AccessClaim, Audience, CLAIM_NAMESPACE, CLOCK_LEEWAY_SECONDS, TOKEN_BYTES_MAX, TokenBounds, TokenClaims,
    presented_token,
};
pub use v1::{
    CacheConfig, CreateCacheRequest, GetMissingPathsRequest, GetMissingPathsResponse, Keypair,
    NAR_INFO_BYTES_MAX, NAR_INFO_PREAMBLE_THRESHOLD_BYTES, NarInfoForm, Quota, ResolvedNarInfo,
    RetentionPeriod, UploadPathNarInfo, UploadPathResult, UploadPathResultKind,
};
pub use wire_error::{ErrorBody, ErrorName};
