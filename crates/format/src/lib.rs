//! Bytes at rest: holes, chunks, frames, packs, recipes and the splicer; and the decoders of what
//! comes compressed otherwise. Pure.
//!
//! The contract is docs/STORAGE.md; code follows it. The flow of data through this crate:
//!
//! ```text
//! NAR bytes ─ Chunker ─► RawChunk ─ Encoder ─► StoredChunk ─ PackBuilder ─► Pack
//!                │ fills                │ id, checksum, layout
//!                ▼                      ▼
//!          RecipeBuilder            TagBuilder
//!
//! stored bytes + ChunkLayout + fills ─ splice ─► one zstd stream of the NAR, without any codec
//! ```

mod chunker;
mod codec;
mod compression;
mod cutter;
mod error;
mod frame;
mod frame_size;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz_targets;
mod ids;
mod journal;
mod layout;
mod manifest;
mod pack;
mod recipe;
mod shape_chunker;
mod stream_decoder;
mod tag;
mod wire;

pub use chunker::{BLANK, ChunkParams, Chunker, RawChunk};
pub use codec::{Decoder, Encoder, StoredChunk, checksum, encoder_bytes_max};
pub use compression::{COMPRESSED_HEAD_BYTES, Compression, SUPPORTED_COMPRESSIONS, WindowTooLarge};
pub use error::{Error, Malformed, Result};
pub use frame::{hole_frame, splice, validate_frame};
pub use frame_size::HOLE_FRAME_BYTES;
pub use ids::{ChunkId, EncodingTag, HOLE_BYTES, HoleFill, PackId};
pub use journal::{
    JOURNAL_BODY_BYTES_MAX, JOURNAL_FOLDER, JournalAlias, JournalCache, JournalContent, JournalDocument,
    JournalFile, JournalHeader, JournalKey, JournalKind, JournalListing, JournalName, JournalNar,
    JournalObject, JournalPath, JournalPin, JournalRecord, JournalWriter, KEPT_FOLDER, KeptJournal,
};
pub use layout::{CHUNK_BYTES_MAX, ChunkLayout, HOLES_MAX, STREAM_HOLES_MAX};
pub use manifest::NarManifest;
pub use pack::{
    PACK_BYTES_MAX, PACK_CHUNKS_MAX, PACK_HEADER_BYTES, PACK_TRAILER_BYTES, Pack, PackBuilder, PackEntry,
    PackTrailer, read_header, read_pack, read_table, read_trailer,
};
pub use recipe::{ChunkRun, FillRun, HoleFills, Recipe, RecipeBuilder};
pub use shape_chunker::{ChunkShape, ShapeChunker};
pub use stream_decoder::{DecodeStep, STEP_OUTPUT_BYTES, StreamDecoder};
pub use tag::TagBuilder;

/// Version of everything here: cuts, ids, frames, packs, recipes, tags. The same version gives the
/// same bytes everywhere.
pub const FORMAT_VERSION: u16 = 1;
