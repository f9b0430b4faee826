//! Why a NAR was refused, and at which byte.

/// Longest part of a name that a message shows, in bytes.
const EXCERPT_BYTES: usize = 80;

/// A NAR that breaks the format or a limit. `offset` is the position of the byte, or of the
/// string's length field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NarError {
    /// The NAR does not begin with the magic.
    #[error("not a NAR: the magic is missing")]
    BadMagic,
    /// The NAR ends before its tree does.
    #[error("the NAR ends at byte {offset}, before its tree does")]
    Truncated {
        /// Number of bytes in the NAR.
        offset: u64,
    },
    /// Bytes follow the tree.
    #[error("bytes follow the end of the NAR at byte {offset}")]
    TrailingBytes {
        /// The end of the NAR.
        offset: u64,
    },
    /// The padding of a string is not zero.
    #[error("nonzero padding at byte {offset} of the NAR")]
    BadPadding {
        /// Position of the byte.
        offset: u64,
    },
    /// The format requires another word here.
    #[error("expected {expected} at byte {offset} of the NAR, found {found:?}")]
    UnexpectedToken {
        /// Position of the word.
        offset: u64,
        /// What the format requires here.
        expected: &'static str,
        /// What the NAR has here.
        found: String,
    },
    /// A length that exceeds the limit for a string here.
    #[error("a string of {len} bytes at byte {offset} of the NAR, where {expected} has at most {max}")]
    TokenTooLong {
        /// Position of the string.
        offset: u64,
        /// What the format requires here.
        expected: &'static str,
        /// The length.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// A file, or the whole NAR, is longer than the limit.
    #[error("the NAR is longer than {max} bytes: found at byte {offset}")]
    TooLarge {
        /// Position at which this became clear.
        offset: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// The name of an entry is empty, is `.` or `..`, or contains a slash or NUL.
    #[error("{name:?} at byte {offset} of the NAR is not a valid name for a directory entry")]
    BadName {
        /// Position of the name.
        offset: u64,
        /// The name.
        name: String,
    },
    /// The name of an entry does not come after the previous name: the entries are unsorted, or an
    /// entry appears twice.
    #[error("the entry {name:?} at byte {offset} of the NAR follows {previous:?}: names must ascend")]
    NameNotAscending {
        /// Position of the name.
        offset: u64,
        /// The previous entry's name.
        previous: String,
        /// The name.
        name: String,
    },
    /// The target of a symbolic link is empty or contains NUL.
    #[error("{target:?} at byte {offset} of the NAR is not a valid target for a symbolic link")]
    BadTarget {
        /// Position of the target.
        offset: u64,
        /// The target.
        target: String,
    },
    /// Directories are nested too deeply.
    #[error("directories are nested deeper than {max} at byte {offset} of the NAR")]
    TooDeep {
        /// Position of the directory.
        offset: u64,
        /// The limit in levels.
        max: usize,
    },
    /// A path is too long as a whole.
    #[error("a path of more than {max} bytes at byte {offset} of the NAR")]
    PathTooLong {
        /// Position of the path's last name.
        offset: u64,
        /// The limit in bytes.
        max: usize,
    },
}

/// A name for a message, as text and shortened.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    match bytes.get(..EXCERPT_BYTES) {
        Some(start) if bytes.len() > EXCERPT_BYTES => format!("{}…", String::from_utf8_lossy(start)),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}
