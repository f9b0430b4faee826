//! Why something of the edge cannot be read.

/// Result of reading something of the edge.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something of the edge cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No object of the layout is named so.
    #[error("'{text}' is no name of the published layout")]
    Key {
        /// The beginning of the name.
        text: String,
    },
    /// A document is larger than any that is published.
    #[error("{what} has {bytes} bytes, more than {max}")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// What it has.
        bytes: usize,
        /// What it may have.
        max: usize,
    },
    /// A document is not of its form.
    #[error("{what} cannot be read")]
    Malformed {
        /// Which document.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A narinfo is not of its form, or not that of the path that it is published for.
    #[error("the published narinfo of {hash} cannot be read: {reason}")]
    Narinfo {
        /// The hash of the path.
        hash: dormer_nix::StorePathHash,
        /// What is wrong with it.
        reason: String,
    },
    /// A document was written by a newer publisher, and reading it half would be wrong.
    #[error("{what} has version {found}; this program knows {known}")]
    TooNew {
        /// Which document.
        what: &'static str,
        /// What it has.
        found: u32,
        /// What we know.
        known: u32,
    },
}
