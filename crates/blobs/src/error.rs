//! Why an object-store call failed.

use std::time::Duration;

/// Why a remote store failed, in its library's words.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

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
    /// The folder of a local store is not there, or is not the one that was opened: an unmounted file system, most likely.
    /// Nothing is known of any object.
    #[error(
        "the folder of the packs, {path}, is not there or is another one: it lacks its file {marker}. Is its file system mounted?"
    )]
    StoreGone {
        /// The folder.
        path: String,
        /// Name of the file that marks it.
        marker: &'static str,
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
    /// The store asks to be left alone for a while, or more was asked of it at once than it bears.
    #[error("the store is too busy to {attempt} {key}")]
    Busy {
        /// What was tried.
        attempt: &'static str,
        /// On which object.
        key: String,
        /// When to come back, if the store said so.
        retry_after: Option<Duration>,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The store does not answer, or failed on its side: the same call may work later.
    #[error("the store failed to {attempt} {key}")]
    Unavailable {
        /// What was tried.
        attempt: &'static str,
        /// On which object.
        key: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The store understood and said no. Somebody has to change the settings.
    #[error(
        "{store} refuses to {attempt} {key}: check bucket, region, endpoint, credentials and their rights"
    )]
    Refused {
        /// What was tried.
        attempt: &'static str,
        /// On which object.
        key: String,
        /// Which store.
        store: String,
        /// Why.
        #[source]
        source: Cause,
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

impl Error {
    /// Whether a caller has reason to make the call again himself. Not what a remote store failed at:
    /// [`Retrying`](crate::Retrying) has done so for as long as was wanted.
    pub fn is_worth_a_retry(&self) -> bool {
        matches!(self, Self::Io { .. })
    }
}
