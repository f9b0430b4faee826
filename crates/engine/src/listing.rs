//! Reads listings back as JSON.
//!
//! A small listing comes from its row in one piece, a large one in reads of many chunks, within the
//! memory for reads. Unlike NARs, listings are decompressed here, in jobs of the CPU pool: clients
//! ask for them rarely, and as JSON.
//!
//! A listing that cannot be read harms nothing else: the engine forgets it, its NAR stays readable,
//! and the next push of a path with this NAR brings it back.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use dormer_format::{ChunkRun, Decoder, HoleFill, PackId, Recipe};
use dormer_index::{Cache, ChunkRow, NarSummary, StoredListing};
use dormer_nix::{NarHash, StorePathHash};
use futures::stream::{BoxStream, Stream};
use futures::{StreamExt, TryStreamExt};

use crate::budget::{BudgetShare, hold};
use crate::ingest_listing::GATHERED_BYTES_MAX;
use crate::read::{FetchFailure, ReadFailure, windows};
use crate::{Engine, Error, Result};

/// A listing as JSON in Nix's `.ls` form, piece by piece. An error means that the answer must be
/// cut off.
pub struct ListingStream {
    /// Bytes in all.
    pub size: u64,
    /// The NAR that it lists.
    pub nar: NarHash,
    /// Whether it is read chunk by chunk, and holds memory for reads meanwhile. Another one is one
    /// piece, whose memory its reader counts.
    pub is_in_chunks: bool,
    pieces: BoxStream<'static, Result<Bytes>>,
}

impl Stream for ListingStream {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pieces.poll_next_unpin(context)
    }
}

impl Engine {
    /// The listing of a path's NAR. `None` when the cache lacks the path, or when the listing was
    /// larger than the server keeps. The first bytes are verified when this returns.
    pub async fn listing(&self, cache: &Cache, hash: &StorePathHash) -> Result<Option<ListingStream>> {
        let Some(found) = self.index().find_object(cache.id, hash).await? else { return Ok(None) };
        // For as long as it is read and decoded. No client can make that last.
        let memory = self.read_memory().take(2 * GATHERED_BYTES_MAX as u64).await?;
        match self.index().find_listing(found.nar.id).await? {
            None => Ok(None),
            Some(StoredListing::Inline(bytes)) if bytes.is_empty() => Ok(None),
            Some(StoredListing::Inline(bytes)) => {
                let decode = move || zstd::bulk::decompress(&bytes, GATHERED_BYTES_MAX);
                let Ok(json) = self.cpu().run(decode).await else {
                    self.forget_listing(&found.nar, &[]).await;
                    return Err(Error::Damaged { nar: found.nar.hash });
                };
                let size = json.len() as u64;
                let pieces = futures::stream::iter([Ok(json.into())]).boxed();
                Ok(Some(ListingStream { size, nar: found.nar.hash, is_in_chunks: false, pieces }))
            }
            Some(StoredListing::Chunks { recipe, size }) => {
                drop(memory);
                self.chunked_listing(found.nar, recipe, size).await.map(Some)
            }
        }
    }

    async fn chunked_listing(&self, nar: NarSummary, recipe: Recipe, size: u64) -> Result<ListingStream> {
        let recipe_bytes = recipe.runs.len() * 16 + recipe.hashes.len() * 32 + recipe.fills.len() * 8;
        let memory = self.stream_memory().take(ROWS_BYTES + recipe_bytes as u64).await?;
        let nar_hash = nar.hash;
        let mut groups = windows(&recipe.runs);
        groups.reverse();
        let state = ListingReader {
            engine: self.clone(),
            nar,
            recipe,
            groups,
            rows: VecDeque::new(),
            fetched: VecDeque::new(),
            holes_done: 0,
            decoder: Some(Decoder::new().map_err(Error::Encode)?),
            left: size,
            _memory: memory,
        };
        let mut pieces = futures::stream::try_unfold(state, async |mut state| match state.next().await? {
            Some(piece) => Ok(Some((piece, state))),
            None => Ok(None),
        })
        .boxed();
        let first = pieces.try_next().await?;
        let pieces = futures::stream::iter(first.map(Ok)).chain(pieces).boxed();
        Ok(ListingStream { size, nar: nar_hash, is_in_chunks: true, pieces })
    }

    /// A failure is only logged: the caller already answers with an error, and the next read finds
    /// the damage again.
    async fn forget_listing(&self, nar: &NarSummary, chunks: &[u64]) {
        tracing::error!(nar.hash = %nar.hash, chunk.numbers = ?chunks, "a NAR's listing is damaged");
        if let Err(error) = self.index().mark_listing_lost(nar.id, chunks, self.now()).await {
            tracing::error!(nar.hash = %nar.hash, %error, "failed to forget a damaged listing");
        }
    }
}

/// Memory for a window of rows, in bytes.
const ROWS_BYTES: u64 = 256 * 1024;

/// The state of a listing stream.
struct ListingReader {
    engine: Engine,
    nar: NarSummary,
    recipe: Recipe,
    /// Runs whose rows have to be loaded, the next ones last.
    groups: Vec<Vec<ChunkRun>>,
    /// Chunks that come next.
    rows: VecDeque<ChunkRow>,
    /// Stored bytes of the first of them.
    fetched: VecDeque<(Bytes, Arc<BudgetShare>)>,
    holes_done: usize,
    /// `None` while a job decodes with it, and after a job that nobody waited for.
    decoder: Option<Decoder>,
    /// Bytes of JSON that follow.
    left: u64,
    _memory: BudgetShare,
}

impl ListingReader {
    /// The next chunk.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.rows.is_empty() {
            match self.groups.pop() {
                Some(runs) => self.rows = self.engine.index().load_chunks(&runs).await?.into(),
                None if self.left == 0 => return Ok(None),
                None => return Err(self.damaged(&[]).await),
            }
        }
        if self.fetched.is_empty() {
            self.fetch().await?;
        }
        match (self.rows.pop_front(), self.fetched.pop_front()) {
            (Some(row), Some((stored, memory))) => self.decode(&row, stored, &memory).await.map(Some),
            _ => Err(self.damaged(&[]).await),
        }
    }

    /// Reads as many of the next chunks as one read takes. A listing's chunks lie between those of
    /// its NAR: with a NAR of small files close to each other, else in several packs.
    async fn fetch(&mut self) -> Result<()> {
        let rows = self.rows.make_contiguous();
        // What is decoded is asked for piece by piece: one is sent while the next one is made.
        let decoded = rows.iter().map(|row| u64::from(row.layout.raw_len)).max().unwrap_or(0) * 2;
        let failure = match self.engine.fetch_chunks_beside(rows, decoded).await {
            Ok((stored, memory)) => {
                self.fetched = stored.into_iter().map(|stored| (stored, Arc::clone(&memory))).collect();
                return Ok(());
            }
            Err(FetchFailure::Busy(error)) => return Err(error),
            Err(FetchFailure::Read(failure)) => failure,
        };
        let lost = match failure {
            ReadFailure::Unavailable(error) => return Err(error.into()),
            ReadFailure::Damaged(chunks) => {
                self.engine.still_there(self.rows.make_contiguous(), chunks).await
            }
            ReadFailure::PackLost(pack) => self.chunks_in(pack).await?,
        };
        if lost.is_empty() {
            // A push healed the chunk meanwhile: a repeated request succeeds.
            return Err(Error::Reencoded { nar: self.nar.hash });
        }
        Err(self.damaged(&lost).await)
    }

    /// The listing's chunks that lie in this pack, or in other packs that are missing now.
    async fn chunks_in(&self, pack: PackId) -> Result<Vec<u64>> {
        let mut lost = self.engine.lost_packs(&self.recipe).await?;
        lost.insert(pack);
        let mut chunks = Vec::new();
        for runs in windows(&self.recipe.runs) {
            let rows = self.engine.index().load_chunks(&runs).await?;
            chunks.extend(rows.iter().filter(|row| lost.contains(&row.pack_id)).map(|row| row.number));
        }
        Ok(chunks)
    }

    async fn decode(&mut self, row: &ChunkRow, stored: Bytes, memory: &Arc<BudgetShare>) -> Result<Bytes> {
        let holes = row.layout.holes.len();
        let fills: Vec<HoleFill> =
            self.recipe.hole_fills().skip(self.holes_done).take(holes).copied().collect();
        self.holes_done += holes;
        let mut decoder = match self.decoder.take() {
            Some(decoder) => decoder,
            None => Decoder::new().map_err(Error::Encode)?,
        };
        let layout = row.layout.clone();
        let decode = move || (decoder.decode(&stored, &layout, &fills).ok(), decoder);
        let (raw, decoder) = self.engine.cpu().run(decode).await;
        self.decoder = Some(decoder);
        let Some(raw) = raw.filter(|raw| raw.len() as u64 <= self.left) else {
            return Err(self.damaged(&[row.number]).await);
        };
        self.left -= raw.len() as u64;
        Ok(hold(raw.into(), memory))
    }

    async fn damaged(&self, chunks: &[u64]) -> Error {
        self.engine.forget_listing(&self.nar, chunks).await;
        Error::Damaged { nar: self.nar.hash }
    }
}
