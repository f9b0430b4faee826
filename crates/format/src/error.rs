//! Errors about bytes at rest.

use std::io;

/// A failed attempt and its context.
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
        /// Average chunk, in bytes.
        avg: u32,
        /// Largest chunk, in bytes.
        max: u32,
    },
    /// zstd refused the settings of the compressor.
    #[error("could not set up a zstd compressor at level {level}")]
    SetUpCompressor {
        /// The requested level.
        level: i32,
        /// The error of zstd.
        source: io::Error,
    },
    /// zstd could not make a decompressor.
    #[error("could not set up a zstd decompressor")]
    SetUpDecompressor {
        /// The error of zstd.
        source: io::Error,
    },
    /// Compressing a segment failed.
    #[error("could not compress a segment of {segment_bytes} bytes")]
    Compress {
        /// Length of the segment.
        segment_bytes: usize,
        /// The error of zstd.
        source: io::Error,
    },
    /// The chunk cannot be stored: it is empty, too large, or has invalid holes.
    #[error("could not encode a chunk")]
    EncodeChunk {
        /// What is wrong with the chunk.
        source: Malformed,
    },
    /// The content of a frame is not valid zstd, or does not have the length of its segment.
    #[error("could not decompress frame {frame}")]
    Decompress {
        /// Position of the frame in the chunk, from zero.
        frame: usize,
        /// The error of zstd.
        source: io::Error,
    },
    /// The stored bytes, the layout and the fills of a chunk do not fit together.
    #[error("could not put a chunk together")]
    Chunk {
        /// What does not fit.
        source: Malformed,
    },
    /// A zstd frame does not have the one form that Dormer stores.
    #[error("could not accept a zstd frame")]
    Frame {
        /// What is wrong with the frame.
        source: Malformed,
    },
    /// A chunk layout cannot be read.
    #[error("could not decode a chunk layout")]
    Layout {
        /// What is wrong with the layout.
        source: Malformed,
    },
    /// A recipe cannot be read.
    #[error("could not decode a recipe")]
    Recipe {
        /// What is wrong with the recipe.
        source: Malformed,
    },
    /// A NAR manifest cannot be read.
    #[error("could not decode a NAR manifest")]
    Manifest {
        /// What is wrong with the manifest.
        source: Malformed,
    },
    /// A pack, or a part of a pack, cannot be read.
    #[error("could not read a pack")]
    Pack {
        /// What is wrong with the pack.
        source: Malformed,
    },
    /// A chunk in a pack does not match its table entry.
    #[error("could not read chunk {position} of a pack")]
    PackChunk {
        /// Position of the chunk in the pack, from zero.
        position: usize,
        /// What is wrong with the chunk.
        source: Malformed,
    },
    /// A journal file cannot be read.
    #[error("could not read a journal file")]
    Journal {
        /// What is wrong with the file.
        source: Malformed,
    },
    /// A text is not a valid id.
    #[error("could not parse {what}: expected {expected}")]
    ParseId {
        /// The kind of id.
        what: &'static str,
        /// The form of such an id.
        expected: &'static str,
    },
}

/// Why bytes were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The bytes end too early.
    #[error("the bytes end too early")]
    UnexpectedEnd,
    /// Bytes follow the end.
    #[error("{bytes} bytes follow the end")]
    TrailingBytes {
        /// Number of these bytes.
        bytes: usize,
    },
    /// A number is too large, or is written with more bytes than it needs.
    #[error("a variable-length number is not in its shortest form or too large")]
    Varint,
    /// A magic number is wrong.
    #[error("the {part} magic is wrong")]
    Magic {
        /// The part of the file.
        part: &'static str,
    },
    /// This code does not read the version.
    #[error("format version {version} is not known")]
    Version {
        /// The version found.
        version: u16,
    },
    /// Bytes that must be zero are not.
    #[error("reserved bits are set")]
    Reserved,
    /// A value lies outside its bounds.
    #[error("{what} is out of bounds")]
    OutOfBounds {
        /// The value.
        what: &'static str,
    },
    /// Two values that must agree do not agree.
    #[error("{what} does not match")]
    Mismatch {
        /// The two values.
        what: &'static str,
    },
    /// A hash or checksum does not match its bytes.
    #[error("the {what} does not match its bytes")]
    Checksum {
        /// The kind of hash or checksum.
        what: &'static str,
    },
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
