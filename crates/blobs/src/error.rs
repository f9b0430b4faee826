//! Why an object-store call failed.

/// Result of an object-store call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an object-store call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such object.
    #[error("object {key} is not there")]
    NotFound {
        /// Its name.
        key: String,
    },
    /// The object is shorter than the range that was asked for: it is damaged.
    #[error("object {key} is cut short")]
    Truncated {
        /// Its name.
        key: String,
    },
    /// The store is out of space.
    #[error("no space left while trying to {attempt} {key}")]
    NoSpace {
        /// What was tried.
        attempt: &'static str,
        /// On which object.
        key: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Anything else: the same call may work later.
    #[error("failed to {attempt} {key}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// On which object.
        key: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
