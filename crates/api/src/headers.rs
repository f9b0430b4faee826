//! Names of headers beyond HTTP's own, in lower case as HTTP libraries want them.

/// Names a request: on every answer, in the server's log, and on a request if its sender has a name
/// for it already.
pub const REQUEST_ID: &str = "x-request-id";

/// Metadata of an upload as JSON ([`crate::UploadPathNarInfo`]), when it is short.
pub const NAR_INFO: &str = "x-attic-nar-info";

/// Length in bytes of the same JSON at the start of the body, when it is long.
pub const NAR_INFO_PREAMBLE_SIZE: &str = "x-attic-nar-info-preamble-size";

/// [`NAR_INFO`] under the name of Celler, which follows Attic's protocol.
pub const CELLER_NAR_INFO: &str = "x-celler-nar-info";

/// [`NAR_INFO_PREAMBLE_SIZE`] under the name of Celler.
pub const CELLER_NAR_INFO_PREAMBLE_SIZE: &str = "x-celler-nar-info-preamble-size";

/// `public` on every answer about a public cache.
pub const CACHE_VISIBILITY: &str = "x-attic-cache-visibility";

/// The only value of [`CACHE_VISIBILITY`].
pub const CACHE_VISIBILITY_PUBLIC: &str = "public";
