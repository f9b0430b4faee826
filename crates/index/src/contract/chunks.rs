//! Chunks and packs.

use async_trait::async_trait;
use dormer_format::{ChunkId, ChunkLayout, ChunkRun, PackId};

use super::{NarId, PackNumber, UnixSeconds};
use crate::Result;

/// Where a chunk lives and how it is cut into frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRow {
    /// Its number, which recipes name; it never changes.
    pub number: u64,
    /// Its identity.
    pub id: ChunkId,
    /// The pack that holds it now.
    pub pack: PackNumber,
    /// That pack's id, from which the object's name follows.
    pub pack_id: PackId,
    /// First byte of its frames in the pack.
    pub offset: u64,
    /// Raw length, hole offsets and frame lengths.
    pub layout: ChunkLayout,
    /// XXH3-64 of its stored bytes.
    pub checksum: u64,
}

/// A stored pack, to be made known together with its chunks.
#[derive(Debug, Clone)]
pub struct NewPack {
    /// Its id.
    pub id: PackId,
    /// Size of the whole object in bytes.
    pub size: u64,
    /// Its chunks, in the order in which they lie in it; at most 65,536.
    pub chunks: Vec<NewChunk>,
    /// Now.
    pub created_at: UnixSeconds,
}

/// One chunk of a new pack.
#[derive(Debug, Clone)]
pub struct NewChunk {
    /// Its identity.
    pub id: ChunkId,
    /// First byte of its frames in the pack.
    pub offset: u64,
    /// Raw length, hole offsets and frame lengths.
    pub layout: ChunkLayout,
    /// XXH3-64 of its stored bytes.
    pub checksum: u64,
}

/// Chunks and packs.
#[async_trait]
pub trait ChunkIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Finds chunks that may be reused: known, not damaged, in no condemned pack. One answer for
    /// each id, in order. At most 16,384 ids a call; at most one statement (none when an in-memory
    /// filter rules all of them out).
    async fn find_chunks(&self, ids: &[ChunkId]) -> Result<Vec<Option<ChunkRow>>>;
    /// Loads the chunks of runs, in order, whatever their state. At most 16,384 chunks a call.
    /// [`Error::ChunkGone`](crate::Error::ChunkGone) when a number is unknown.
    async fn load_chunks(&self, runs: &[ChunkRun]) -> Result<Vec<ChunkRow>>;
    /// Makes a stored pack and its chunks known, in one transaction, and returns for each chunk, in
    /// the order given, the row that now stands for its id: its own, or that of a racing pack which
    /// came first. The row of a chunk that was marked damaged, or lies in a condemned pack, is
    /// pointed at this pack and is sound again. Numbers of new rows follow the order given and are
    /// consecutive. Repeating a commit whose answer was lost returns the same rows.
    async fn commit_pack(&self, pack: &NewPack) -> Result<Vec<ChunkRow>>;
    /// Marks a NAR damaged, and those of its chunks that could not be read, so that neither is
    /// reused.
    async fn mark_damaged(&self, nar: NarId, chunks: &[u64], at: UnixSeconds) -> Result<()>;
    /// Forgets a NAR's listing that cannot be read, and marks those of its chunks that could not be
    /// read, so that they are not reused. The NAR itself stays readable, but counts as one that has
    /// to be stored again: see `find_nar`, `present_objects` and [`NarSource::New`](crate::NarSource::New).
    async fn mark_listing_lost(&self, nar: NarId, chunks: &[u64], at: UnixSeconds) -> Result<()>;
}
