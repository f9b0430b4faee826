//! Ingest: receives a NAR, verifies it and makes its bytes durable. Nothing is visible before
//! [`commit`](crate::commit).
//!
//! Invariants
//! - [`Ingest::finish`] succeeds only for a NAR that was read whole, parsed, and has the announced
//!   hash and size.
//! - A known NAR is read, parsed and hashed as an unknown one: only a pusher that has the bytes may
//!   name them, and no error tells a pusher whether some tenant has them.
//! - An [`Ingest`] that is dropped leaves at most chunks behind. These are valid on their own, and
//!   later uploads use them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dormer_format::{Chunker, ShapeChunker};
use dormer_index::{CacheVisibility, ChunkRow, NarId, NarSource, NewNar, StoredListing};
use dormer_nix::nar::{Listing, NarLimits, NarReader};
use dormer_nix::{NarHash, NarHasher};

use crate::budget::{Budget, BudgetShare};
use crate::chunk_sink::{BATCH_BYTES, ChunkSink, Cutting, IngestContext, StoredStream};
use crate::ingest_listing::{ListingSink, PendingListing};
use crate::metrics::Deduplicated;
use crate::packer::CountedUpload;
use crate::settings::UPLOAD_BYTES;
use crate::{Engine, Error, Result};

/// Bytes of a NAR that are parsed before the listing is emptied, so that little of the listing
/// gathers.
const PIECE_BYTES: usize = 64 * 1024;

/// Bytes of a listing that are handed on at once.
const LISTING_PIECE_BYTES: usize = 64 * 1024;

/// Longest name and longest link target in a NAR, in bytes. Linux allows 255 and 4,095.
const NAME_BYTES_MAX: usize = 16 * 1024;

/// Longest path in a NAR, in bytes. Linux allows 4,095.
const PATH_BYTES_MAX: usize = 64 * 1024;

/// What an upload announces.
#[derive(Debug, Clone)]
pub struct IngestRequest {
    /// Store folder of the cache; store paths below it become holes.
    pub store_dir: String,
    /// Announced hash and size, if any.
    pub expected: Option<(NarHash, u64)>,
    /// Memory that the caller needs in addition to the engine's (a decoder's window), in bytes.
    pub extra_memory_bytes: u64,
}

/// A verified NAR whose bytes are durable. Commit it under a name to make it visible.
#[derive(Debug)]
pub struct Ingested {
    /// SHA-256 of the archive.
    pub nar_hash: NarHash,
    /// Bytes of the archive.
    pub nar_size: u64,
    /// Bytes that readers will get.
    pub file_size: u64,
    /// Raw bytes in all of its chunks.
    pub chunk_bytes: u64,
    /// Raw bytes in chunks that this upload brought first.
    pub new_chunk_bytes: u64,
    /// Whether the server already had the whole NAR.
    pub known: bool,
    pub(crate) source: NarSource,
    /// Held until the commit, so that memory and packs in flight stay accounted for.
    memory: Arc<BudgetShare>,
}

/// A share of the memory for uploads, which grows. It returns when it is dropped.
#[derive(Debug)]
pub struct UploadMemory {
    budget: Budget,
    share: Option<BudgetShare>,
}

impl UploadMemory {
    /// Takes more when there is more, however long that takes. A call that is dropped takes
    /// nothing. The caller needs another way on: several shares that grow may wait for each other.
    pub async fn grow(&mut self, bytes: u64) {
        let more = self.budget.take_at_last(bytes).await;
        match &mut self.share {
            Some(share) => share.merge(more),
            None => self.share = Some(more),
        }
    }
}

/// An upload in progress.
pub struct Ingest {
    context: IngestContext,
    request: IngestRequest,
    nar_bytes_max: u64,
    hasher: NarHasher,
    /// On the heap, because every upload's future would carry its size.
    reader: Box<NarReader>,
    received: u64,
    work: Work,
    /// Whether the bytes must be cut into chunks that the caller named. Then a known NAR is cut as
    /// an unknown one: no error tells whether the server has it.
    checks_cuts: bool,
    /// Whether a known NAR also takes the time of an unknown one: the caller must not learn that
    /// the server has it.
    hides_known: bool,
    memory: Arc<BudgetShare>,
}

/// What becomes of the bytes. The checks of the bytes are the same for both.
enum Work {
    /// The server has the NAR: only check that the pusher has it, too.
    Verify {
        id: NarId,
        file_size: u64,
    },
    Store(Box<Storing>),
}

struct Storing {
    sink: ChunkSink,
    listing: ListingSink,
    upload: CountedUpload,
}

impl Engine {
    /// Begins an upload as soon as there is memory for it. [`Error::Busy`] if the wait for memory
    /// times out.
    pub async fn begin_ingest(&self, request: IngestRequest) -> Result<Ingest> {
        self.begin_ingest_of(request, false).await
    }

    /// Begins an upload. With `checks_cuts`, the NAR must be cut into exactly the stored chunks of
    /// [`Ingest::expect`] ([`Error::CutMismatch`]).
    pub(crate) async fn begin_ingest_of(&self, request: IngestRequest, checks_cuts: bool) -> Result<Ingest> {
        let settings = self.settings();
        if let Some((_, size)) = request.expected
            && size > settings.nar_bytes_max
        {
            return Err(Error::NarTooLarge { limit: settings.nar_bytes_max });
        }
        let memory = Arc::new(self.upload_memory().take(self.upload_bytes(&request)?).await?);
        let known = match &request.expected {
            Some((hash, _)) if !checks_cuts => self.index().find_nar(hash).await?.filter(|nar| !nar.damaged),
            _ => None,
        };
        let work = match known {
            Some(nar) => Work::Verify { id: nar.id, file_size: nar.file_size },
            None => self.begin_storing(&request, checks_cuts, &memory),
        };
        Ok(Ingest {
            context: self.ingest_context().clone(),
            nar_bytes_max: settings.nar_bytes_max,
            reader: Box::new(NarReader::new(self.nar_limits(&request))),
            request,
            hasher: NarHasher::new(),
            received: 0,
            work,
            checks_cuts,
            hides_known: false,
            memory,
        })
    }

    fn nar_limits(&self, request: &IngestRequest) -> NarLimits {
        let settings = self.settings();
        NarLimits {
            listing_bytes_max: settings.listing_bytes_max,
            nar_bytes_max: request.expected.map_or(settings.nar_bytes_max, |(_, size)| size),
            name_bytes_max: NAME_BYTES_MAX,
            target_bytes_max: NAME_BYTES_MAX,
            path_bytes_max: PATH_BYTES_MAX,
            ..NarLimits::default()
        }
    }

    fn begin_storing(&self, request: &IngestRequest, checks_cuts: bool, memory: &Arc<BudgetShare>) -> Work {
        let settings = self.settings();
        // The order in packs: the NAR's chunks, then its listing's.
        let stream = self.streams_begun().fetch_add(2, Ordering::Relaxed);
        let (params, store_dir) = (settings.chunk_params, &request.store_dir);
        let context = self.ingest_context().clone();
        let cutting = if checks_cuts {
            Cutting::Shapes(ShapeChunker::new(params, store_dir))
        } else {
            Cutting::Chunks(Chunker::new(params, store_dir))
        };
        let sink = ChunkSink::new(context, stream, cutting, BATCH_BYTES, memory);
        Work::Store(Box::new(Storing {
            sink,
            listing: ListingSink::new(self.ingest_context().clone(), stream + 1, params, store_dir, memory),
            upload: self.ingest_context().packer.begin(),
        }))
    }

    /// Memory for an upload that is no NAR: nothing, to grow.
    pub fn begin_upload_memory(&self) -> UploadMemory {
        UploadMemory { budget: self.upload_memory().clone(), share: None }
    }

    /// Memory that an upload takes, in bytes. [`Error::DecoderTooLarge`] if one upload may not have
    /// that much.
    pub fn upload_bytes(&self, request: &IngestRequest) -> Result<u64> {
        // Small NARs need little more than a MiB of overhead, so many of them fit at once.
        let needed = request.expected.map_or(UPLOAD_BYTES, |(_, size)| {
            UPLOAD_BYTES.min(size.saturating_add(size / 2).saturating_add(1024 * 1024))
        });
        let limit = self.settings().upload_bytes_max();
        let bytes = needed.saturating_add(request.extra_memory_bytes);
        if bytes > limit.max(UPLOAD_BYTES) {
            return Err(Error::DecoderTooLarge { needed: bytes, limit });
        }
        Ok(bytes)
    }
}

impl Ingest {
    /// Makes the upload of a NAR that the server has take as long as any other.
    pub(crate) fn hide_known(&mut self) {
        self.hides_known = true;
    }

    /// Names the stored chunk that the next bytes were decoded from, before they are written.
    pub(crate) fn expect(&mut self, row: ChunkRow) {
        if let Work::Store(storing) = &mut self.work {
            storing.sink.expect(row);
        }
    }

    /// Takes the next bytes of the NAR. An error is final: drop the upload.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.received += bytes.len() as u64;
        if self.received > self.nar_bytes_max {
            return Err(Error::NarTooLarge { limit: self.nar_bytes_max });
        }
        if let Some((_, expected)) = self.request.expected
            && self.received > expected
        {
            return Err(Error::SizeMismatch { expected, got: self.received });
        }
        self.hasher.update(bytes);
        for piece in bytes.chunks(PIECE_BYTES) {
            self.reader.feed(piece).map_err(Error::MalformedNar)?;
            let json = self.reader.take_listing(LISTING_PIECE_BYTES);
            if let (Some(json), Work::Store(storing)) = (json, &mut self.work) {
                storing.listing.write(&json).await?;
            }
        }
        match &mut self.work {
            Work::Verify { .. } => Ok(()),
            Work::Store(storing) => storing.sink.write(bytes).await,
        }
    }

    /// Ends the upload: checks the NAR and waits until its bytes are durable.
    pub async fn finish(self) -> Result<Ingested> {
        let metrics = Arc::clone(&self.context.metrics);
        // Boxed: the future is large, and every upload would carry it from its first byte on.
        let ingested = Box::pin(self.finish_uncounted()).await?;
        metrics.pushes.nars.with_label_values(&[if ingested.known { "true" } else { "false" }]).inc();
        metrics.pushes.nar_bytes.inc_by(ingested.nar_size);
        Ok(ingested)
    }

    async fn finish_uncounted(mut self) -> Result<Ingested> {
        let (nar_hash, nar_size) = self.hasher.finish();
        let build_ids = self.reader.take_build_ids();
        let rest = self.reader.finish().map_err(Error::MalformedNar)?;
        check_expected(self.request.expected, nar_hash, nar_size)?;
        let Storing { mut sink, listing, mut upload } = match self.work {
            Work::Verify { id, file_size } => {
                // (A known NAR that was not announced, below, was counted chunk by chunk.)
                self.context.metrics.pushes.count_deduplicated(Deduplicated::Nar, nar_size);
                return Ok(Ingested::known(nar_hash, nar_size, file_size, id, self.memory));
            }
            Work::Store(storing) => *storing,
        };
        if self.checks_cuts {
            sink.finish_chunks().await?;
        }
        let is_sound = |nar: &dormer_index::NarSummary| !nar.damaged;
        if (self.request.expected.is_none() || self.checks_cuts)
            && !self.hides_known
            && let Some(nar) = self.context.index.find_nar(&nar_hash).await?.filter(is_sound)
        {
            return Ok(Ingested::known(nar_hash, nar_size, nar.file_size, nar.id, self.memory));
        }
        sink.finish_chunks().await?;
        let listing = match rest {
            Listing::Json(rest) => listing.finish_chunks(&rest).await?,
            Listing::TooLarge => PendingListing::none(),
        };
        let decoy = match &listing {
            PendingListing::Chunks { sink, .. } if self.hides_known => sink.store_decoy_if_known().await?,
            _ => None,
        };
        upload.end_stream();
        self.context.packer.wait_for(decoy.iter()).await;

        let mut stored = sink.finish().await?;
        let listing = match listing {
            PendingListing::Inline(bytes) => StoredListing::Inline(bytes),
            PendingListing::Chunks { sink, size } => {
                let StoredStream { recipe, packs, .. } = sink.finish().await?;
                stored.packs.extend(packs);
                StoredListing::Chunks { recipe, size }
            }
        };
        if self.hides_known
            && let Some(nar) = self.context.index.find_nar(&nar_hash).await?.filter(is_sound)
        {
            return Ok(Ingested::known(nar_hash, nar_size, nar.file_size, nar.id, self.memory));
        }
        Ok(Ingested {
            nar_hash,
            nar_size,
            file_size: stored.file_size,
            chunk_bytes: stored.chunk_bytes,
            new_chunk_bytes: stored.new_chunk_bytes,
            known: false,
            source: NarSource::New(Box::new(NewNar {
                hash: nar_hash,
                size: nar_size,
                file_size: stored.file_size,
                tag: stored.tag,
                recipe: stored.recipe,
                holed_bytes: stored.holed_bytes,
                listing,
                build_ids,
                packs: stored.packs.into_iter().collect(),
            })),
            memory: self.memory,
        })
    }
}

/// Which part of an upload the server already had.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Deduplication {
    /// The whole NAR is in a cache that the pusher may read.
    Whole,
    /// This part of the bytes, 0 to 1, was in chunks that the server had. The pusher may read every
    /// cache.
    Part(f64),
    /// The server does not tell: the pusher may not read every cache, and the bytes may be in one
    /// of the others.
    Untold,
}

impl Engine {
    /// What the server may tell a pusher about deduplication. `may_read` says which caches the
    /// pusher may read.
    ///
    /// The whole NAR counts if one of these caches has it. The index does not know which caches a
    /// single chunk is in, so the server tells about chunks only if the pusher may read every cache
    /// that exists or existed.
    pub async fn deduplication(
        &self,
        ingested: &Ingested,
        may_read: impl Fn(&CacheVisibility) -> bool + Send,
    ) -> Result<Deduplication> {
        if let NarSource::Known(nar) = ingested.source {
            let caches = self.index().list_caches_of_nar(nar, self.now()).await?;
            if caches.iter().any(&may_read) {
                return Ok(Deduplication::Whole);
            }
        }
        let may_read_all = self.index().list_visibilities().await?.iter().all(may_read);
        Ok(if may_read_all { ingested.deduplication() } else { Deduplication::Untold })
    }
}

impl Ingested {
    /// Which part the server already had, for a pusher that may read every cache.
    pub fn deduplication(&self) -> Deduplication {
        if self.known {
            return Deduplication::Whole;
        }
        if self.chunk_bytes == 0 {
            return Deduplication::Part(0.0);
        }
        #[expect(clippy::cast_precision_loss, reason = "a fraction for humans")]
        let new = self.new_chunk_bytes as f64 / self.chunk_bytes as f64;
        Deduplication::Part((1.0 - new).clamp(0.0, 1.0))
    }

    /// Gives back the memory that checking the NAR took, and keeps what it takes until the commit.
    pub(crate) fn shrink_memory(&mut self) {
        let kept = match &self.source {
            NarSource::Known(_) => 0,
            NarSource::New(nar) => {
                let listing = match &nar.listing {
                    StoredListing::Inline(body) => body.len(),
                    StoredListing::Chunks { recipe, .. } => recipe.runs.len() * 16,
                };
                let recipe = &nar.recipe;
                let recipe = recipe.runs.len() * 16 + recipe.hashes.len() * 32 + recipe.fills.len() * 8;
                listing + recipe + nar.packs.len() * 8
            }
        };
        // A job that still holds the memory returns it when the job ends.
        if let Some(memory) = Arc::get_mut(&mut self.memory) {
            memory.shrink_to(1024 + kept as u64);
        }
    }

    /// The memory that it holds of that for uploads.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory.amount()
    }

    fn known(hash: NarHash, size: u64, file_size: u64, id: NarId, memory: Arc<BudgetShare>) -> Self {
        Self {
            nar_hash: hash,
            nar_size: size,
            file_size,
            chunk_bytes: size,
            new_chunk_bytes: 0,
            known: true,
            source: NarSource::Known(id),
            memory,
        }
    }
}

fn check_expected(expected: Option<(NarHash, u64)>, hash: NarHash, size: u64) -> Result<()> {
    match expected {
        Some((_, expected)) if expected != size => Err(Error::SizeMismatch { expected, got: size }),
        Some((expected, _)) if expected != hash => Err(Error::HashMismatch { expected, got: hash }),
        _ => Ok(()),
    }
}
