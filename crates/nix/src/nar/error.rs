//! Why a NAR was refused, and where.

/// Longest piece of a name in a message, in bytes.
const EXCERPT_BYTES: usize = 80;

/// A NAR that breaks the format or a limit. `offset` is the position of the string (its length field) or of the byte.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NarError {
    /// It does not begin as a NAR does.
    #[error("not a NAR: the magic is missing")]
    BadMagic,
    /// It ends before its tree does.
    #[error("the NAR ends at byte {offset}, before its tree does")]
    Truncated {
        /// Bytes there were.
        offset: u64,
    },
    /// Bytes follow the tree.
    #[error("bytes follow the end of the NAR at byte {offset}")]
    TrailingBytes {
        /// Where the NAR ends.
        offset: u64,
    },
    /// A string is not followed by zeros.
    #[error("nonzero padding at byte {offset} of the NAR")]
    BadPadding {
        /// Position of the byte.
        offset: u64,
    },
    /// The format has another word here.
    #[error("expected {expected} at byte {offset} of the NAR, found {found:?}")]
    UnexpectedToken {
        /// Where.
        offset: u64,
        /// What the format has here.
        expected: &'static str,
        /// What stands here.
        found: String,
    },
    /// A length that no string may have here.
    #[error("a string of {len} bytes at byte {offset} of the NAR, where {expected} has at most {max}")]
    TokenTooLong {
        /// Where.
        offset: u64,
        /// What the format has here.
        expected: &'static str,
        /// The length.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// A file, or the whole, is longer than a NAR may be.
    #[error("the NAR is longer than {max} bytes, as byte {offset} shows")]
    TooLarge {
        /// Where this became clear.
        offset: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// An entry called `.` or `..`, with a slash or NUL in it, or nothing.
    #[error("{name:?} at byte {offset} of the NAR is no name for a directory entry")]
    BadName {
        /// Where.
        offset: u64,
        /// The name.
        name: String,
    },
    /// An entry that is not behind the one before it: unsorted, or there twice.
    #[error("the entry {name:?} at byte {offset} of the NAR follows {previous:?}: names must ascend")]
    NameNotAscending {
        /// Where.
        offset: u64,
        /// The entry before it.
        previous: String,
        /// The name.
        name: String,
    },
    /// A symbolic link to nothing, or with NUL in its target.
    #[error("{target:?} at byte {offset} of the NAR is no target for a symbolic link")]
    BadTarget {
        /// Where.
        offset: u64,
        /// The target.
        target: String,
    },
    /// Directories nested too deeply.
    #[error("directories are nested deeper than {max} at byte {offset} of the NAR")]
    TooDeep {
        /// Where.
        offset: u64,
        /// The limit in levels.
        max: usize,
    },
    /// A path that is too long as a whole.
    #[error("a path of more than {max} bytes at byte {offset} of the NAR")]
    PathTooLong {
        /// Where.
        offset: u64,
        /// The limit in bytes.
        max: usize,
    },
}

/// A name for a message: made text, and cut short.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    match bytes.get(..EXCERPT_BYTES) {
        Some(start) if bytes.len() > EXCERPT_BYTES => format!("{}…", String::from_utf8_lossy(start)),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}
