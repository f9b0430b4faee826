//! Pushes by chunks in progress.

use async_trait::async_trait;
use dormer_format::ChunkRun;

use super::{CacheId, ObjectPlace, PackNumber, UnixSeconds};
use crate::Result;

/// The name of a session: random bytes that its client chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

/// A session to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSession {
    /// Its name.
    pub id: SessionId,
    /// The cache that it pushes to.
    pub cache: CacheId,
    /// Subject of the caller's token; empty if the token has none.
    pub subject: String,
    /// Now.
    pub created_at: UnixSeconds,
    /// When it ends.
    pub ends_at: UnixSeconds,
}

/// A session that lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionEnd {
    /// When it ends.
    pub ends_at: UnixSeconds,
}

/// What opening a session did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionOpened {
    /// It is open, since now or since before.
    Open(SessionEnd),
    /// The name is that of another caller, cache or time.
    NotYours,
    /// The subject has too many sessions that last, and all are young.
    TooMany,
}

/// A part that a session received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionPart {
    /// The digest of its bytes.
    pub digest: [u8; 32],
    /// The numbers of its chunks, ascending.
    pub chunks: Vec<ChunkRun>,
}

/// What an object of a cache is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRecipe {
    /// The object's place in the order of age.
    pub place: ObjectPlace,
    /// The chunks of its NAR.
    pub runs: Vec<ChunkRun>,
}

/// Sessions: pushes by chunks in progress.
#[async_trait]
pub trait SessionIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Opens a session, or finds it open. A subject has at most `sessions_max` that last; racing
    /// openings may pass this by a few. At the limit the subject's oldest session ends, if it is
    /// an hour old. [`Error::CacheGone`](crate::Error::CacheGone) if the cache
    /// is not there. Opening twice is the same as once.
    async fn open_session(&self, session: &NewSession, sessions_max: u32) -> Result<SessionOpened>;
    /// Finds a session of this cache and subject that lasts. One statement.
    async fn find_session(
        &self,
        session: &SessionId,
        cache: CacheId,
        subject: &str,
        now: UnixSeconds,
    ) -> Result<Option<SessionEnd>>;
    /// Notes that a session received a part, whose chunks are stored. `false`: it has ended.
    async fn add_part(&self, session: &SessionId, part: &SessionPart, now: UnixSeconds) -> Result<bool>;
    /// Finds a part that a session received. One statement.
    async fn find_part(&self, session: &SessionId, digest: &[u8; 32]) -> Result<Option<SessionPart>>;
    /// A page of the parts of a session, by digest, after one of them.
    async fn parts_after(
        &self,
        session: &SessionId,
        after: Option<&[u8; 32]>,
        limit: u32,
    ) -> Result<Vec<SessionPart>>;
    /// A page of what the objects of a cache are made of, the oldest first, after a place. Objects
    /// may appear before a place that was read: their commit took a while.
    async fn recipes_after(
        &self,
        cache: CacheId,
        after: Option<ObjectPlace>,
        limit: u32,
    ) -> Result<Vec<CacheRecipe>>;
    /// Marks chunks that could not be read, and that lie in this pack still, so that they are not
    /// reused; the job that this opens looks which NARs need them. Returns how many were sound
    /// before.
    async fn mark_chunks_damaged(&self, pack: PackNumber, chunks: &[u64], at: UnixSeconds) -> Result<u64>;
}
