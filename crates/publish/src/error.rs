//! Why publishing failed.

/// Result of publishing.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why publishing failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another program has the target's lease.
    #[error(
        "target '{target}' is being published to by {holder}; its lease ends in {seconds} s unless it is renewed"
    )]
    Busy {
        /// The target.
        target: String,
        /// That program.
        holder: String,
        /// When its lease ends.
        seconds: i64,
    },
    /// The settings name another location than the last run published to.
    #[error("target '{target}' was published to {before}, and is {now} in the settings")]
    Moved {
        /// The target.
        target: String,
        /// The old location.
        before: String,
        /// The location in the settings.
        now: String,
    },
    /// No run has compared all rows with what is at the target's new location.
    #[error("target '{target}' is {now} now, and what is there was not compared to its end")]
    Moving {
        /// The target.
        target: String,
        /// The location in the settings.
        now: String,
    },
    /// Another lab publishes there.
    #[error(
        "target '{target}' is another lab's: {location} has the mark of lab {lab}, and this is lab {own}"
    )]
    OtherLab {
        /// The target.
        target: String,
        /// Its location.
        location: String,
        /// The id of that lab.
        lab: String,
        /// The id of this one.
        own: String,
    },
    /// Other users of the machine may read the folder of a private cache, and this one may not take
    /// that away.
    #[error(
        "the cache '{cache}' is private, and its folder is open to all users of this machine; \
         let its owner close it (chmod o-rwx)"
    )]
    OpenFolder {
        /// The cache.
        cache: String,
        /// Why it cannot be closed.
        #[source]
        error: dormer_stores::Error,
    },
    /// The mark of the lab that publishes there cannot be read.
    #[error("the mark of the lab that publishes to {location} cannot be read")]
    Mark {
        /// The target's location.
        location: String,
        /// Why.
        #[source]
        source: dormer_edge::Error,
    },
    /// Something was published there, and the database does not know of it.
    #[error(
        "{location} holds what was published before, and the database knows nothing of it for target '{target}'"
    )]
    Unknown {
        /// The target.
        target: String,
        /// Its location.
        location: String,
    },
    /// Anybody could read a private cache.
    #[error("cache '{cache}' is private, but anybody can read {location}: nothing of it is published")]
    PublicTarget {
        /// The cache.
        cache: String,
        /// The target's location.
        location: String,
    },
    /// The place of an export holds a cache of another store folder.
    #[error("{location} holds a cache of {there}, and this one is of {store_dir}")]
    OtherStoreDir {
        /// The place.
        location: String,
        /// The store folder of the cache.
        store_dir: String,
        /// The store folder of what is there.
        there: String,
    },
    /// The edge cannot have a cache of this name.
    #[error("the cache's name '{name}' cannot be published")]
    CacheName {
        /// The name.
        name: String,
    },
    /// Recompressing a NAR failed. That is a defect: its frames were verified before.
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
    Target(#[from] dormer_stores::Error),
}
