//! NAR, Nix's archive format: a reader that checks every byte and keeps none, a listing, a writer.
//!
//! A NAR is a sequence of strings, each a length (u64, little endian), the bytes, and zeros up to a multiple of 8:
//!
//! ```text
//! nar       = "nix-archive-1" node
//! node      = "(" "type" ( regular | symlink | directory ) ")"
//! regular   = "regular" [ "executable" "" ] "contents" bytes
//! symlink   = "symlink" "target" bytes
//! directory = "directory" { "entry" "(" "name" bytes "node" node ")" }
//! ```
//!
//! One tree has one NAR: names ascend strictly by their bytes, and there is one spelling of everything. So what
//! [`NarReader`] accepts is exactly what [`NarWriter`] can write.

mod error;
mod listing;
mod reader;
mod tree;
mod writer;

pub use error::NarError;
pub use listing::Listing;
pub use reader::NarReader;
pub use tree::{Node, encode_tree};
pub use writer::{NarWriteError, NarWriter};

/// What a NAR begins with.
const MAGIC: &[u8] = b"nix-archive-1";

/// Longest name of a directory entry in bytes. The format has no limit and Linux one of 255 bytes; this one only keeps a
/// length field from making us allocate.
pub const NAME_BYTES_MAX: usize = 1024 * 1024;

/// Longest target of a symbolic link in bytes; Linux has a limit of 4,095.
pub const TARGET_BYTES_MAX: usize = 1024 * 1024;

/// Longest path inside a NAR in bytes: the names of a path's components together.
pub const PATH_BYTES_MAX: usize = 1024 * 1024;

/// How deep directories may be nested. Linux stops at paths of 4,096 bytes, which is 2,048 levels of one letter; real
/// packages stay below 40.
pub const DEPTH_MAX: usize = 1024;

/// Largest listing we keep. At about 90 bytes an entry, 16 MiB cover 180,000 files; the whole of TeX Live has 150,000.
pub const LISTING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What a [`NarReader`] accepts. Its memory is bounded by `name_bytes_max` or `target_bytes_max`, plus `path_bytes_max`,
/// plus `listing_bytes_max`, plus 8 bytes for each of `depth_max`; growing vectors may double that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarLimits {
    /// Longest NAR in bytes.
    pub nar_bytes_max: u64,
    /// How deep directories may be nested.
    pub depth_max: usize,
    /// Longest name of a directory entry in bytes.
    pub name_bytes_max: usize,
    /// Longest target of a symbolic link in bytes.
    pub target_bytes_max: usize,
    /// Longest sum of a path's names in bytes.
    pub path_bytes_max: usize,
    /// Largest listing in bytes. A NAR with a larger one is valid, its listing is [`Listing::TooLarge`]. 0 turns the
    /// listing off.
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

/// Whether a directory entry may be called so: a single component of a path that does not lead upwards.
fn is_entry_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// Whether a symbolic link can have this target on any file system.
fn is_target(target: &[u8]) -> bool {
    !target.is_empty() && !target.contains(&0)
}

/// Zeros that follow a string of `len` bytes.
fn padding(len: u64) -> usize {
    // The remainder is below 8.
    ((8 - len % 8) % 8) as usize
}
