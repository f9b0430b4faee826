//! Why a call to a store failed.

use std::io;
use std::time::Duration;

/// Why a remote store failed, in the words of its library.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Result of a call to a store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call to a store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store is there, and it holds no such object.
    #[error("object {key} is not there")]
    NotFound {
        /// Name of the object.
        key: String,
    },
    /// The object is shorter than the requested range, so it is damaged.
    #[error("object {key} is cut short")]
    Truncated {
        /// Name of the object.
        key: String,
    },
    /// The folder of the packs is not there, or another folder is in its place. Most likely its
    /// file system is not mounted. Nothing is known of any object.
    #[error(
        "the folder of the packs, {path}, is not there or is another one: it lacks its file {marker}. Is its file system mounted?"
    )]
    StoreGone {
        /// The folder.
        path: String,
        /// Name of the file that marks the folder.
        marker: &'static str,
    },
    /// The folder that files are read from is not there. Nothing is known of any file.
    #[error("the folder {path} is not there. Is its file system mounted?")]
    FolderGone {
        /// The folder.
        path: String,
    },
    /// The store belongs to another installation. Nothing was read or written.
    #[error(
        "{store} belongs to another installation: it carries the id {other}, and the database has another one"
    )]
    ForeignStore {
        /// Where the store is.
        store: String,
        /// The id of the other installation.
        other: String,
    },
    /// The store is out of space.
    #[error("no space left while trying to {attempt} {key}")]
    NoSpace {
        /// What was tried.
        attempt: &'static str,
        /// Name of the object.
        key: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The store asks for fewer requests, or too many of ours are under way.
    #[error("the store is too busy to {attempt} {key}")]
    Busy {
        /// What was tried.
        attempt: &'static str,
        /// Name of the object.
        key: String,
        /// When to come back, if the store named a time.
        retry_after: Option<Duration>,
        /// Why it failed.
        #[source]
        source: Cause,
    },
    /// The store does not answer, or failed on its side. The same call may work later.
    #[error("the store failed to {attempt} {key}")]
    Unavailable {
        /// What was tried.
        attempt: &'static str,
        /// Name of the object.
        key: String,
        /// Why it failed.
        #[source]
        source: Cause,
    },
    /// The store understood the request and refused it. The settings have to change.
    #[error(
        "{store} refuses to {attempt} {key}: check bucket, region, endpoint, credentials and their rights"
    )]
    Refused {
        /// What was tried.
        attempt: &'static str,
        /// Name of the object.
        key: String,
        /// Which store.
        store: String,
        /// Why it failed.
        #[source]
        source: Cause,
    },
    /// The time in which this process may write is over: it stood still, or another one has its
    /// lease. Nothing was sent.
    #[error("the right to write ended before the attempt to {attempt} {key}")]
    WindowClosed {
        /// What was to be tried.
        attempt: &'static str,
        /// Name of the object.
        key: String,
    },
    /// Any other failure of a file system. The same call may work later.
    #[error("failed to {attempt} {key}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// Name of the object.
        key: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether a caller has reason to repeat the call. Failures of a remote store are excluded:
    /// [`Store`](crate::Store) has repeated those calls for as long as its policy allows.
    pub fn is_worth_a_retry(&self) -> bool {
        matches!(self, Self::Io { .. })
    }

    /// Whether work that [`Store`](crate::Store) does not repeat as a whole may succeed later: an
    /// [`Upload`](crate::Upload), which fails with any of its parts.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Unavailable { .. } | Self::Io { .. })
    }
}
