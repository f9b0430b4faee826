//! Why publishing failed.

/// Result of publishing.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why publishing failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another program is at it.
    #[error(
        "target '{target}' is being published to by {holder}; its lease ends in {seconds} s unless it is renewed"
    )]
    Busy {
        /// The target.
        target: String,
        /// Who.
        holder: String,
        /// When its lease ends.
        seconds: i64,
    },
    /// The settings name another place than the one that was published to.
    #[error("target '{target}' was published to {before}, and is {now} in the settings")]
    Moved {
        /// The target.
        target: String,
        /// Where it was.
        before: String,
        /// Where it is.
        now: String,
    },
    /// A run that was to compare everything with what is at the target's new place did not end.
    #[error("target '{target}' is {now} now, and what is there was not compared to its end")]
    Moving {
        /// The target.
        target: String,
        /// Where it is.
        now: String,
    },
    /// A private cache would be readable by anybody.
    #[error("cache '{cache}' is private, but anybody can read {location}: nothing of it is published")]
    PublicTarget {
        /// The cache.
        cache: String,
        /// The target's place.
        location: String,
    },
    /// A name of a cache that the edge cannot have.
    #[error("the cache's name '{name}' cannot be published")]
    CacheName {
        /// The name.
        name: String,
    },
    /// A NAR cannot be recompressed: a defect, since its frames were verified.
    #[error("failed to recompress a NAR")]
    Recompress(#[source] std::io::Error),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] dormer_engine::Error),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] dormer_index::Error),
    /// The target failed.
    #[error(transparent)]
    Target(#[from] dormer_blobs::Error),
}
