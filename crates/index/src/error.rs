//! Why an index call failed.

/// Result of an index call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an index call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is taken.
    #[error("cache '{name}' exists already")]
    CacheExists {
        /// The name.
        name: String,
    },
    /// The cache was deleted.
    #[error("cache is gone")]
    CacheGone,
    /// The cache has objects, so its store folder cannot change.
    #[error("cache has objects of its present store folder")]
    CacheNotEmpty,
    /// The secrets are sealed with another master key by now, or are being sealed with another one.
    #[error("the master key of the database was replaced")]
    MasterKeyReplaced,
    /// A pack that a commit reuses was condemned or deleted meanwhile, or a chunk in it was found
    /// damaged; storing the chunks again heals it.
    #[error("a reused pack is gone or damaged")]
    PackGone,
    /// A NAR that a commit reuses was removed or damaged meanwhile; storing it again heals it.
    #[error("a reused NAR is gone")]
    NarGone,
    /// Another program may write to the target now.
    #[error("the lease of the target was lost to another program")]
    LeaseLost,
    /// Another process runs the job now, or has finished it.
    #[error("the lease of the job was lost to another process")]
    JobLeaseLost,
    /// A recipe names a chunk that has no row.
    #[error("chunk {number} has no row")]
    ChunkGone {
        /// The number.
        number: u64,
    },
    /// A stored value cannot be read back.
    #[error("row of {table} is corrupt: {what}")]
    Corrupt {
        /// Table.
        table: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The database was written by a newer Dormer.
    #[error("database has schema version {found}, this binary knows up to {known}")]
    SchemaTooNew {
        /// Version found.
        found: i64,
        /// Newest known.
        known: i64,
    },
    /// The database is in use by an older Dormer.
    #[error("database has schema version {found} and is in use; this binary needs {known}")]
    SchemaTooOld {
        /// Version found.
        found: i64,
        /// What is needed.
        known: i64,
    },
    /// The file is a database of another program (Attic's, for one).
    #[error("{path} is a database of {owner}, not Dormer's")]
    ForeignDatabase {
        /// Where.
        path: String,
        /// Whose.
        owner: String,
    },
    /// The database server must not be used as it is set up.
    #[error("the PostgreSQL server cannot be used: {what}")]
    ServerUnfit {
        /// What is wrong with it.
        what: String,
    },
    /// A pooler gives every transaction another connection, and the settings say that there is
    /// none.
    #[error("a pooler between here and PostgreSQL gives every transaction another connection")]
    UnsaidPooler,
    /// No connection to the database server that its URL allows: its certificate, or that it has
    /// none.
    #[error("the database server is not to be trusted")]
    Untrusted {
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// Another process holds the data folder.
    #[error("{path} is in use by another process")]
    Locked {
        /// Where.
        path: String,
    },
    /// The database is unreachable, busy for too long, or out of space: the same call may work
    /// later.
    #[error("database unavailable while trying to {attempt}")]
    Unavailable {
        /// What was tried.
        attempt: &'static str,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The database refused a statement: a defect of ours.
    #[error("database failed to {attempt}")]
    Database {
        /// What was tried.
        attempt: &'static str,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
}
