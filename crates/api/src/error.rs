//! Why a foreign text was refused before anybody acted on it.

/// A text from the wire that is not what it was read as.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A cache's name.
    #[error(
        "{text:?} is not the name of a cache: expected 1 to 50 of A-Z a-z 0-9 - _ +, first a letter or digit"
    )]
    CacheName {
        /// What was read, shortened.
        text: String,
    },
    /// The name of a pin.
    #[error(
        "{text:?} is not the name of a pin: expected 1 to 50 of A-Z a-z 0-9 - _ +, first a letter or digit"
    )]
    PinName {
        /// What was read, shortened.
        text: String,
    },
    /// A pattern of cache names.
    #[error("{text:?} is not a pattern of cache names: expected 1 to 50 of A-Z a-z 0-9 - _ + *")]
    CacheNamePattern {
        /// What was read, shortened.
        text: String,
    },
    /// The name of a session or of a part of one.
    #[error("{text:?} is not the name of a session or part: expected lower-case hexadecimal digits")]
    SessionName {
        /// What was read, shortened.
        text: String,
    },
    /// The body of a commit cannot be divided into paths.
    #[error("could not read the body of a commit: {what}")]
    CommitBody {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The preamble's length is not a decimal number.
    #[error("{text:?} is not the length of a preamble")]
    PreambleSize {
        /// What was read, shortened.
        text: String,
    },
    /// The metadata of an upload is over the limit.
    #[error("upload metadata of {bytes} bytes is over the limit of {max}")]
    NarInfoTooLarge {
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// The metadata of an upload is not the JSON document it should be.
    #[error("reading the upload metadata")]
    NarInfoJson(#[source] serde_json::Error),
    /// A path in the metadata of an upload.
    #[error("reading {field} of the upload metadata")]
    NarInfoPath {
        /// The field.
        field: &'static str,
        /// What was wrong with it.
        source: dormer_nix::Error,
    },
    /// The metadata names two different store path hashes.
    #[error("upload metadata is for hash {declared}, but its store path has hash {actual}")]
    NarInfoHash {
        /// `store_path_hash`.
        declared: dormer_nix::StorePathHash,
        /// The hash in `store_path`.
        actual: dormer_nix::StorePathHash,
    },
    /// A token's claims are not the JSON document they should be.
    #[error("reading the token's claims")]
    TokenClaims(#[source] serde_json::Error),
}

/// What this crate's parsers return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The start of a foreign string, short enough for an error message.
pub(crate) fn excerpt(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
