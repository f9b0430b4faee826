//! Sessions: pushes by chunks. A client sends the chunks that the server asks for, and then says of
//! which chunks its NARs are made.
//!
//! Algorithm: [`part`] receives packs of chunks and stores them as uploads store theirs; [`verify`]
//! reads a NAR's chunks back and hands their bytes to [`Ingest`](crate::Ingest), which checks, cuts
//! and hashes them as those of any upload; [`commits`] runs these checks in the background and
//! makes checked NARs visible in order. [`decoded_chunks`] spares a check what a part has decoded.
//!
//! What a caller may learn (docs/SECURITY.md, "Push by chunks")
//! - A chunk counts as present for a session only if the session received it, or if the caller may
//!   read it: an object of a cache that the caller may pull uses the chunk ([`readable`]), or the
//!   caller may pull every cache that exists or existed.
//! - Other stored chunks are missing, for every answer. A client sends them, and the server does
//!   not store them again.
//! - A caller that may not read everything gets its answers on a grid of time, and a part waits for
//!   a pack whether its chunks were stored or not ([`part`]).
//!
//! Invariants
//! - A session belongs to a cache and a caller. To others it does not exist.
//! - A chunk may be named only while the rule above holds: it is looked at anew for every commit.

mod commits;
mod decoded_chunks;
mod part;
mod readable;
mod verify;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dormer_format::ChunkId;
use dormer_index::{Cache, CacheId, CacheVisibility, NewSession, SessionId, SessionOpened, UnixSeconds};
use roaring::RoaringTreemap;
use tokio::time::Instant;

pub(crate) use commits::Verifications;
pub use commits::{AdmitCheck, CheckHold, ChunkedPath, CommittedPath, PathOutcome};
pub(crate) use decoded_chunks::DecodedChunks;
pub use part::{PART_BYTES_MAX, PART_CHUNKS_MAX, PART_RAW_BYTES_MAX, part_memory_bytes};
pub(crate) use readable::ReadableChunks;

use crate::{Engine, Error, Result};

/// Most sessions of one caller that have not ended: a machine runs a few at once, and those of
/// killed clients end within a day.
const SESSIONS_MAX: u32 = 256;

/// Most chunks in one question for missing ones: 8 GiB of NARs. Each takes 32 bytes of the body.
pub const MISSING_CHUNKS_MAX: usize = 65_536;

/// Chunks in one look-up, at most what the index takes.
const LOOK_CHUNKS: usize = 16_384;

/// Parts of a session in one look-up. The runs of one take 64 KiB at most.
const LOOK_PARTS: u32 = 32;

/// Most caches that are looked at for one question, the session's own first.
const CACHES_MAX: usize = 32;

/// How long one question may read recipes.
const READ_MAX: Duration = Duration::from_secs(2);

/// What a caller may read.
#[derive(Clone)]
pub struct Reader {
    /// Whether the caller may read every cache that exists, existed or will exist.
    everything: bool,
    may_read: Arc<dyn Fn(&CacheVisibility) -> bool + Send + Sync>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("everything", &self.everything).finish_non_exhaustive()
    }
}

impl Reader {
    /// A caller that may read every cache, whatever its name.
    pub fn of_everything() -> Self {
        Self { everything: true, may_read: Arc::new(|_| true) }
    }

    /// A caller that may read the caches for which `may_read` says so.
    pub fn of_some(may_read: impl Fn(&CacheVisibility) -> bool + Send + Sync + 'static) -> Self {
        Self { everything: false, may_read: Arc::new(may_read) }
    }
}

/// An open session, as one request sees it.
#[derive(Debug, Clone)]
pub struct PushSession {
    id: SessionId,
    cache: Arc<Cache>,
    /// The caller that it belongs to.
    subject: Arc<str>,
    ends_at: UnixSeconds,
}

impl PushSession {
    /// The cache that it pushes to.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// When it ends.
    pub fn ends_at(&self) -> UnixSeconds {
        self.ends_at
    }
}

/// The chunks that a session may name.
#[derive(Debug)]
struct Allowed {
    everything: bool,
    /// What the session received.
    received: RoaringTreemap,
    /// What caches use that the caller may read.
    readable: Vec<Arc<readable::CacheChunks>>,
}

impl Allowed {
    fn holds(&self, number: u64) -> bool {
        self.everything
            || self.received.contains(number)
            || self.readable.iter().any(|cache| cache.contains(number))
    }
}

impl Engine {
    /// Opens a session, or joins it again. [`Error::NoSession`] if the name is another caller's, or
    /// that of a session which has ended.
    pub async fn open_session(&self, cache: Arc<Cache>, id: SessionId, subject: &str) -> Result<PushSession> {
        let now = self.now();
        let ends_at = now.saturating_add(self.settings().session_seconds);
        let new = NewSession { id, cache: cache.id, subject: subject.to_owned(), created_at: now, ends_at };
        match self.index().open_session(&new, SESSIONS_MAX).await? {
            SessionOpened::Open(end) => {
                Ok(PushSession { id, cache, subject: subject.into(), ends_at: end.ends_at })
            }
            SessionOpened::NotYours => Err(Error::NoSession),
            SessionOpened::TooMany => Err(Error::TooManySessions { max: SESSIONS_MAX }),
        }
    }

    /// Finds an open session of this caller ([`Error::NoSession`]).
    pub async fn find_session(&self, cache: Arc<Cache>, id: SessionId, subject: &str) -> Result<PushSession> {
        let found = self.index().find_session(&id, cache.id, subject, self.now()).await?;
        let end = found.ok_or(Error::NoSession)?;
        Ok(PushSession { id, cache, subject: subject.into(), ends_at: end.ends_at })
    }

    /// Which of these chunks the session has to send, in order. At most [`MISSING_CHUNKS_MAX`].
    pub async fn missing_chunks(
        &self,
        session: &PushSession,
        reader: &Reader,
        ids: &[ChunkId],
    ) -> Result<Vec<bool>> {
        let begun = Instant::now();
        let allowed = self.allowed(session, reader).await?;
        let mut missing = Vec::with_capacity(ids.len());
        for ids in ids.chunks(LOOK_CHUNKS) {
            let rows = self.index().find_chunks(ids).await?;
            missing.extend(rows.iter().map(|row| !row.as_ref().is_some_and(|row| allowed.holds(row.number))));
        }
        let count = |label, is_missing| {
            let count = missing.iter().filter(|missing| **missing == is_missing).count();
            self.metrics().sessions.chunks.with_label_values(&[label]).inc_by(count as u64);
        };
        count("missing", true);
        count("present", false);
        self.answer_on_grid(begun, allowed.everything).await;
        Ok(missing)
    }

    /// The chunks that a session may name now.
    async fn allowed(&self, session: &PushSession, reader: &Reader) -> Result<Allowed> {
        if self.reads_everything(reader).await? {
            return Ok(Allowed { everything: true, received: RoaringTreemap::new(), readable: Vec::new() });
        }
        let received = self.received(session).await?;
        let readable = self.readable_chunks(&session.cache, reader).await?;
        Ok(Allowed { everything: false, received, readable })
    }

    /// What the caches use that a caller may read, the session's own first.
    async fn readable_chunks(&self, own: &Cache, reader: &Reader) -> Result<Vec<Arc<readable::CacheChunks>>> {
        let index = &**self.index();
        let all = self.readable().list(index).await?;
        let mut caches: Vec<CacheId> =
            all.iter().filter(|(_, cache)| (reader.may_read)(cache)).map(|(id, _)| *id).collect();
        // A stable sort: the others stay in the order of their names.
        caches.sort_by_key(|id| *id != own.id);
        caches.truncate(CACHES_MAX);
        let until = Instant::now() + READ_MAX;
        let mut readable = Vec::with_capacity(caches.len());
        for cache in caches {
            let chunks = self.readable().of(cache);
            if Instant::now() < until {
                chunks.refresh(index, until).await?;
            }
            readable.push(chunks);
        }
        self.readable().shrink();
        Ok(readable)
    }

    /// Whether a caller may read every cache that exists or existed.
    async fn reads_everything(&self, reader: &Reader) -> Result<bool> {
        Ok(reader.everything
            || self.index().list_visibilities().await?.iter().all(|cache| (reader.may_read)(cache)))
    }

    /// The numbers of the chunks that a session received.
    async fn received(&self, session: &PushSession) -> Result<RoaringTreemap> {
        let mut received = RoaringTreemap::new();
        let mut after = None;
        let mut left = self.settings().session_parts_max;
        loop {
            let parts = self.index().parts_after(&session.id, after.as_ref(), LOOK_PARTS).await?;
            for run in parts.iter().flat_map(|part| &part.chunks) {
                received.insert_range(run.first..run.first.saturating_add(run.count.into()));
            }
            left = left.checked_sub(parts.len()).ok_or(Error::NoSession)?;
            match parts.last() {
                Some(last) if parts.len() == LOOK_PARTS as usize => after = Some(last.digest),
                _ => return Ok(received),
            }
        }
    }
}

impl Engine {
    /// Waits until an answer may leave that must not tell how long it took.
    async fn answer_on_grid(&self, begun: Instant, may_tell: bool) {
        if !may_tell {
            tokio::time::sleep_until(begun + on_grid(begun.elapsed(), self.settings().session_grid)).await;
        }
    }
}

/// The first multiple of `grid` after so much time.
fn on_grid(elapsed: Duration, grid: Duration) -> Duration {
    let steps = elapsed.as_micros() / grid.as_micros().max(1) + 1;
    grid.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_leave_at_multiples_of_the_grid() {
        let millis = Duration::from_millis;
        for (elapsed, leaves) in [(0, 250), (1, 250), (249, 250), (250, 500), (260, 500), (1_700, 1_750)] {
            assert_eq!(on_grid(millis(elapsed), millis(250)), millis(leaves), "{elapsed}");
        }
        assert_eq!(on_grid(millis(3), Duration::ZERO), Duration::ZERO, "no grid");
    }
}
