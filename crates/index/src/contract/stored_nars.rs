//! NARs as the index knows them.

use dormer_format::{EncodingTag, Recipe};
use dormer_nix::NarHash;

use super::NarId;

/// A NAR as the index knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Nar {
    /// Row number.
    pub id: NarId,
    /// SHA-256 of the archive.
    pub hash: NarHash,
    /// Bytes of the archive.
    pub size: u64,
    /// Bytes served: all frames and the frames of the holes.
    pub file_size: u64,
    /// Names the exact bytes that are served.
    pub tag: EncodingTag,
    /// How to rebuild it.
    pub recipe: Recipe,
    /// Set while a part of it is known to be unreadable.
    pub damaged: bool,
}

/// What a narinfo says of a NAR, without its recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarSummary {
    /// Row number.
    pub id: NarId,
    /// SHA-256 of the archive.
    pub hash: NarHash,
    /// Bytes of the archive.
    pub size: u64,
    /// Bytes served.
    pub file_size: u64,
    /// Names the exact bytes that are served.
    pub tag: EncodingTag,
    /// Set while a part of it is known to be unreadable.
    pub damaged: bool,
}
