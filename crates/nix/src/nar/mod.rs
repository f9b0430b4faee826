//! NAR, Nix's archive format: a reader that checks every byte and keeps almost none, a listing, and
//! a writer.
//!
//! A NAR is a sequence of strings, each a length (u64, little endian), the bytes, and zeros up to a
//! multiple of 8:
//!
//! ```text
//! nar       = "nix-archive-1" node
//! node      = "(" "type" ( regular | symlink | directory ) ")"
//! regular   = "regular" [ "executable" "" ] "contents" bytes
//! symlink   = "symlink" "target" bytes
//! directory = "directory" { "entry" "(" "name" bytes "node" node ")" }
//! ```
//!
//! One tree has exactly one NAR: names ascend strictly by their bytes, and everything has one
//! spelling. Therefore [`NarReader`] accepts exactly what [`NarWriter`] can write.

mod error;
mod listing;
mod listing_build_ids;
mod listing_search;
mod reader;
mod tree;
mod writer;

pub use error::NarError;
pub use listing::Listing;
pub use listing_build_ids::listed_build_ids;
pub use listing_search::{ENTRIES_BYTES_MAX, FolderEntry, FolderPage, ListedNode, ListingSearch};
pub use reader::NarReader;
pub use tree::{Node, encode_tree};
pub use writer::{NarWriteError, NarWriter};

/// The first string of every NAR.
const MAGIC: &[u8] = b"nix-archive-1";

/// Longest name of a directory entry in bytes. The format has no limit; Linux has 255 bytes. This
/// limit only keeps a length field from causing a large allocation.
pub const NAME_BYTES_MAX: usize = 1024 * 1024;

/// Longest target of a symbolic link in bytes. The limit of Linux is 4,095.
pub const TARGET_BYTES_MAX: usize = 1024 * 1024;

/// Longest path inside a NAR in bytes: the sum of the lengths of its components' names.
pub const PATH_BYTES_MAX: usize = 1024 * 1024;

/// Deepest nesting of directories. Linux limits a path to 4,096 bytes, which is 2,048 levels of one
/// letter. Real packages stay below 40 levels.
pub const DEPTH_MAX: usize = 1024;

/// Largest listing that the reader keeps. At about 90 bytes an entry, 16 MiB cover 180,000 files;
/// all of TeX Live has 150,000.
pub const LISTING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Most build ids that the reader keeps until they are taken. The debug info of a large package has
/// some hundred files.
pub const BUILD_IDS_MAX: usize = 16 * 1024;

/// The limits of a [`NarReader`]. Its memory is at most the larger of `name_bytes_max` and
/// `target_bytes_max`, plus `path_bytes_max`, plus `listing_bytes_max`, plus 8 bytes for each level
/// of `depth_max`, plus the build ids ([`BUILD_IDS_MAX`], some 60 bytes each). Growing vectors may
/// double that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarLimits {
    /// Longest NAR in bytes.
    pub nar_bytes_max: u64,
    /// Deepest nesting of directories.
    pub depth_max: usize,
    /// Longest name of a directory entry in bytes.
    pub name_bytes_max: usize,
    /// Longest target of a symbolic link in bytes.
    pub target_bytes_max: usize,
    /// Longest sum of the names in a path, in bytes.
    pub path_bytes_max: usize,
    /// Largest listing in bytes. A NAR with a larger listing is valid, and its listing is
    /// [`Listing::TooLarge`]. 0 turns the listing off.
    pub listing_bytes_max: usize,
}

impl Default for NarLimits {
    fn default() -> Self {
        Self {
            nar_bytes_max: i64::MAX as u64,
            depth_max: DEPTH_MAX,
            name_bytes_max: NAME_BYTES_MAX,
            target_bytes_max: TARGET_BYTES_MAX,
            path_bytes_max: PATH_BYTES_MAX,
            listing_bytes_max: LISTING_BYTES_MAX,
        }
    }
}

/// Whether a directory entry can have this name: one component of a path, which does not lead
/// upwards.
fn is_entry_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// Whether a symbolic link can have this target on any file system.
fn is_target(target: &[u8]) -> bool {
    !target.is_empty() && !target.contains(&0)
}

/// Number of zeros after a string of `len` bytes.
fn padding(len: u64) -> usize {
    // The remainder is below 8.
    ((8 - len % 8) % 8) as usize
}
