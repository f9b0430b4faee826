//! The port of the scrub. Its conventions are those of [`Index`](crate::Index): every method is one
//! transaction, and time is an argument.

use async_trait::async_trait;
use dormer_format::EncodingTag;

use crate::Result;
use crate::collect::PackRow;
use crate::contract::{ChunkRow, Nar, NarId, PackNumber, UnixSeconds};
use crate::jobs::{JobId, JobLease};

/// The last scrub that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastScrub {
    /// Its job; `None` before the first.
    pub job: Option<JobId>,
    /// When it ended.
    pub ended_at: Option<UnixSeconds>,
    /// What it found, as JSON.
    pub report: String,
}

/// What a scrub asks of the index.
#[async_trait]
pub trait ScrubIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Opens the job of a scrub ([`JobKind::Scrub`](crate::JobKind::Scrub)) that begins at
    /// `cursor`. `false` if one is open already: it goes on as it was, and at once if it failed and
    /// waits.
    async fn open_scrub(&self, cursor: &[u8], at: UnixSeconds) -> Result<(JobId, bool)>;
    /// Where a scrub is; `None` if its job is done.
    async fn scrub_cursor(&self, job: JobId) -> Result<Option<Vec<u8>>>;
    /// Moves the cursor, counts `rows` and renews the lease until `ends_at`.
    /// [`Error::JobLeaseLost`](crate::Error::JobLeaseLost) if another process has taken the lease.
    async fn advance_scrub(
        &self,
        lease: &JobLease,
        cursor: &[u8],
        rows: u64,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<()>;
    /// Ends the job and keeps its report. [`Error::JobLeaseLost`](crate::Error::JobLeaseLost) as
    /// above.
    async fn finish_scrub(&self, lease: &JobLease, report: &str, at: UnixSeconds) -> Result<()>;
    /// What is known of the last scrub.
    async fn last_scrub(&self) -> Result<LastScrub>;

    /// A page of packs after one, by number, without condemned ones.
    async fn scrub_packs(&self, after: PackNumber, limit: u32) -> Result<Vec<PackRow>>;
    /// The chunks that lie in a pack now, by their places.
    async fn chunks_of_pack(&self, pack: PackNumber) -> Result<Vec<ChunkRow>>;
    /// A page of NARs after one, by number, with damaged ones.
    async fn scrub_nars(&self, after: NarId, limit: u32) -> Result<Vec<Nar>>;
    /// Marks chunks damaged that lie in this pack still, and opens the job that looks which NARs
    /// need them; returns how many were sound before.
    async fn mark_chunks(&self, pack: PackNumber, chunks: &[u64], at: UnixSeconds) -> Result<u64>;
    /// Marks a NAR damaged whose chunks are sound and whose hash is not, if it has this tag still.
    async fn mark_nar(&self, nar: NarId, tag: &EncodingTag, at: UnixSeconds) -> Result<bool>;
}
