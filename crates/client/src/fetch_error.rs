//! Why a file of a static cache could not be read, or must not be imported.

use std::io;
use std::time::Duration;

use dormer_format::SUPPORTED_COMPRESSIONS;
use dormer_nix::NarHash;

use crate::retry::Passing;

/// Why something of a static cache could not be read, or must not be imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The source failed.
    #[error("failed to read {name} from the source")]
    Source {
        /// The file.
        name: String,
        /// Whether a later try may work.
        is_passing: bool,
        /// The error of the source.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The source answered with a status that says nothing of the file.
    #[error("the source answered {status} for {name}")]
    Status {
        /// The file.
        name: String,
        /// The HTTP status.
        status: u16,
        /// When the source wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// Nothing came for this long.
    #[error("nothing of {name} came from the source for {seconds} seconds")]
    Stalled {
        /// The file.
        name: String,
        /// The time-out.
        seconds: u64,
    },
    /// The source does not have the file.
    #[error("the source has no {name}")]
    Missing {
        /// The file.
        name: String,
    },
    /// The file is longer than any of its kind.
    #[error("{name} is longer than {max} bytes")]
    TooLarge {
        /// The file.
        name: String,
        /// The limit in bytes.
        max: usize,
    },
    /// A narinfo cannot be read.
    #[error("the narinfo cannot be read")]
    Narinfo(#[source] dormer_nix::Error),
    /// A narinfo is not text.
    #[error("the narinfo is not UTF-8")]
    NotText,
    /// A narinfo describes another path than its name says.
    #[error("the narinfo describes another path, {path}")]
    OtherPath {
        /// That path.
        path: String,
    },
    /// A narinfo names a file outside of its cache.
    #[error("the narinfo names {url}, which does not belong to the source")]
    Foreign {
        /// The address in the narinfo.
        url: String,
    },
    /// The compression is unknown.
    #[error("the compression {name:?} is not one of these: {SUPPORTED_COMPRESSIONS}")]
    Compression {
        /// Its name in the narinfo.
        name: String,
    },
    /// Nothing proves that the path is what its name promises.
    #[error("no trusted key signed the path, and it does not prove itself by its content")]
    Unsigned,
    /// A build trace cannot be read.
    #[error("the build trace cannot be read")]
    Trace(#[source] dormer_nix::Error),
    /// Nothing proves that a build trace is true.
    #[error("no trusted key signed the build trace")]
    UnsignedTrace,
    /// The file cannot be decompressed.
    #[error("failed to decompress {name}")]
    Decode {
        /// The file.
        name: String,
        /// The error of the decoder.
        source: io::Error,
    },
    /// The NAR is another one than the narinfo says.
    #[error(
        "the NAR is not the one of the narinfo: it should have hash {expected} and {expected_size} bytes, but has {actual} and \
         {actual_size}"
    )]
    Damaged {
        /// The hash in the narinfo.
        expected: NarHash,
        /// The size in the narinfo.
        expected_size: u64,
        /// The hash of what came.
        actual: NarHash,
        /// The size of what came; at least that, if it is larger than expected.
        actual_size: u64,
    },
    /// The contents are not those that the path's name follows from.
    #[error("the contents are not those that the content address of the path promises")]
    OtherContents,
    /// The receiver of the bytes takes no more of them.
    #[error("the reader went away")]
    ReaderGone,
    /// The reading task panicked.
    #[error("the task that reads the source failed")]
    Task(#[source] tokio::task::JoinError),
}

impl FetchError {
    /// What a later try is worth; `None` if it would fail in the same way.
    pub(crate) fn passing(&self) -> Option<Passing> {
        match self {
            Self::Source { is_passing: true, .. } | Self::Stalled { .. } => Some(Passing::Broken),
            Self::Status { status, retry_after, .. } => Passing::of_status(*status, *retry_after),
            _ => None,
        }
    }
}
