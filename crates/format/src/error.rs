//! What can go wrong with bytes at rest.

use std::io;

/// A failed attempt, with what is known about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Chunk sizes that FastCDC cannot work with.
    #[error(
        "invalid chunk sizes {min}/{avg}/{max}: they must be even and ascend, min in 64..=1048576, \
         avg in 256..=2097152, max in 1024..=4194304"
    )]
    ChunkParams {
        /// Smallest chunk, in bytes.
        min: u32,
        /// Aimed-at chunk, in bytes.
        avg: u32,
        /// Largest chunk, in bytes.
        max: u32,
    },
    /// The compressor refused its settings.
    #[error("could not set up a zstd compressor at level {level}")]
    SetUpCompressor {
        /// The level asked for.
        level: i32,
        /// What zstd says.
        source: io::Error,
    },
    /// The decompressor could not be made.
    #[error("could not set up a zstd decompressor")]
    SetUpDecompressor {
        /// What zstd says.
        source: io::Error,
    },
    /// Compressing a segment failed.
    #[error("could not compress a segment of {segment_bytes} bytes")]
    Compress {
        /// Length of the segment.
        segment_bytes: usize,
        /// What zstd says.
        source: io::Error,
    },
    /// A chunk that cannot be stored: empty, too large, or with holes that lie wrong.
    #[error("could not encode a chunk")]
    EncodeChunk {
        /// What is wrong with it.
        source: Malformed,
    },
    /// A frame's content is not valid zstd, or not of the length that its segment has.
    #[error("could not decompress frame {frame}")]
    Decompress {
        /// Which frame of the chunk, from zero.
        frame: usize,
        /// What zstd says.
        source: io::Error,
    },
    /// Stored bytes, layout and fills of a chunk do not belong together.
    #[error("could not put a chunk together")]
    Chunk {
        /// What does not fit.
        source: Malformed,
    },
    /// A zstd frame is not of the one form that is stored.
    #[error("could not accept a zstd frame")]
    Frame {
        /// What is wrong with it.
        source: Malformed,
    },
    /// A chunk's layout could not be read.
    #[error("could not decode a chunk layout")]
    Layout {
        /// What is wrong with it.
        source: Malformed,
    },
    /// A recipe could not be read.
    #[error("could not decode a recipe")]
    Recipe {
        /// What is wrong with it.
        source: Malformed,
    },
    /// A pack, or a part of one, could not be read.
    #[error("could not read a pack")]
    Pack {
        /// What is wrong with it.
        source: Malformed,
    },
    /// A chunk in a pack is not of the form its table entry says.
    #[error("could not read chunk {position} of a pack")]
    PackChunk {
        /// Its position in the pack, from zero.
        position: usize,
        /// What is wrong with it.
        source: Malformed,
    },
    /// A text is not the id it should be.
    #[error("could not parse {what}: expected {expected}")]
    ParseId {
        /// Which kind of id.
        what: &'static str,
        /// How one looks.
        expected: &'static str,
    },
}

/// Why bytes are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// They end too early.
    #[error("the bytes end too early")]
    UnexpectedEnd,
    /// Something follows the end.
    #[error("{bytes} bytes follow the end")]
    TrailingBytes {
        /// How many.
        bytes: usize,
    },
    /// A number is written with more bytes than it needs, or is too large.
    #[error("a variable-length number is not in its shortest form or too large")]
    Varint,
    /// A magic number is another.
    #[error("the {part} magic is wrong")]
    Magic {
        /// Which part of the file.
        part: &'static str,
    },
    /// A version that this code does not read.
    #[error("format version {version} is not known")]
    Version {
        /// The version found.
        version: u16,
    },
    /// Bytes that must be zero are not.
    #[error("reserved bits are set")]
    Reserved,
    /// A value lies outside what is allowed.
    #[error("{what} is out of bounds")]
    OutOfBounds {
        /// Which value.
        what: &'static str,
    },
    /// Two things that must agree do not.
    #[error("{what} does not match")]
    Mismatch {
        /// Which two.
        what: &'static str,
    },
    /// A hash or checksum does not match its bytes.
    #[error("the {what} does not match its bytes")]
    Checksum {
        /// Which one.
        what: &'static str,
    },
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
