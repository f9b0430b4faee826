//! Checks a NAR that a client describes by its chunks: hands their bytes to an upload of the usual
//! kind. These are what a part has left in memory, or are read back and decoded.
//!
//! So the same code parses, cuts and hashes the NAR as if it had been uploaded whole, and makes the
//! same recipe, tag and listing of it. The cuts and holes must be those of the manifest's chunks,
//! which are then the chunks themselves: they are neither hashed nor looked up again.
//!
//! Invariants
//! - Only chunks that the session may name are read, and whether another chunk is stored changes
//!   nothing: it counts as missing.
//! - Chunks in memory are those that their ids name: a part has compared them.
//! - Stored bytes that cannot be read are marked damaged and count as missing, so that the client
//!   sends the chunks again.
//! - Memory: that of an upload, the manifest, and the reads in progress.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use dormer_format::{Decoder, HoleFill, NarManifest, RawChunk};
use dormer_index::{ChunkRow, PackNumber};

use super::decoded_chunks::KeptChunk;
use super::{Allowed, ChunkedPath, LOOK_CHUNKS, PushSession, Reader};
use crate::ingest::{Ingest, IngestRequest, Ingested};
use crate::read::{FetchFailure, ReadFailure};
use crate::settings::UPLOAD_BYTES;
use crate::{Engine, Error, Result};

/// Most positions of missing chunks in an answer.
const POSITIONS_MAX: usize = 1_000;

/// Chunk rows loaded at once while a NAR is read: 128 MiB of NAR.
const READ_ROWS: usize = 1_024;

/// Raw bytes decoded in one job of the CPU pool.
const JOB_BYTES: usize = 1024 * 1024;

/// What decodes the chunks of a NAR, one job after another.
struct Decoding {
    decoder: Decoder,
    /// The bytes of the last job, and perhaps some of earlier ones behind them.
    raw: Vec<u8>,
}

/// What a check found.
pub(super) enum Verified {
    /// The NAR is what it was said to be.
    Sound(Box<Ingested>),
    /// The session may not use the chunks at these positions.
    Missing(Vec<u64>),
}

impl Engine {
    /// What the check of a path needs.
    pub(super) fn check_request(&self, session: &PushSession, path: &ChunkedPath) -> IngestRequest {
        let most = self.settings().upload_bytes_max().saturating_sub(UPLOAD_BYTES);
        // One that cannot be decoded fails in its check.
        let needed = NarManifest::memory_bytes(&path.manifest).unwrap_or(0);
        IngestRequest {
            store_dir: session.cache.store_dir.clone(),
            expected: Some((path.nar_hash, path.nar_size)),
            extra_memory_bytes: most.min(needed),
        }
    }

    /// Checks the NAR of a manifest, by a [`check_request`](Self::check_request).
    pub(super) async fn verify(
        &self,
        session: &PushSession,
        reader: &Reader,
        manifest: &Bytes,
        request: IngestRequest,
    ) -> Result<Verified> {
        let nar_size = request.expected.map_or(0, |(_, size)| size);
        let mut ingest = self.begin_ingest_of(request, true).await?;
        let manifest = {
            let manifest = manifest.clone();
            self.cpu().run(move || NarManifest::decode(&manifest)).await.map_err(Error::MalformedManifest)?
        };
        let allowed = self.allowed(session, reader).await?;
        if let Some(missing) = self.look_through(&allowed, &manifest, nar_size).await? {
            return Ok(Verified::Missing(missing));
        }
        if !allowed.everything {
            ingest.hide_known();
        }
        let mut fills = manifest.fills.hole_fills();
        let mut decoding = Decoding { decoder: Decoder::new().map_err(Error::Encode)?, raw: Vec::new() };
        for (window, ids) in manifest.chunks.chunks(READ_ROWS).enumerate() {
            let found = self.index().find_chunks(ids).await?;
            let mut rows = Vec::with_capacity(found.len());
            for (position, row) in found.into_iter().enumerate() {
                // It was there a moment ago.
                let Some(row) = row else {
                    return Ok(Verified::Missing(vec![(window * READ_ROWS + position) as u64]));
                };
                rows.push(row);
            }
            // What was read of the next rows that no part has left in memory.
            let mut read: VecDeque<(usize, Bytes)> = VecDeque::new();
            let mut place = 0;
            while place < rows.len() {
                if read.front().is_some_and(|(next, _)| *next == place) {
                    let mut stored = Vec::new();
                    let begin = place;
                    while let Some((_, bytes)) = read.pop_front_if(|(next, _)| *next == place) {
                        stored.push(bytes);
                        place += 1;
                    }
                    let now = &rows[begin..place];
                    decoding = self.hand_on(&mut ingest, decoding, now, stored, &mut fills).await?;
                    continue;
                }
                if let Some(kept) = self.decoded_chunks().take(session.id, rows[place].id) {
                    self.hand_on_kept(&mut ingest, &rows[place], kept, &mut fills).await?;
                    place += 1;
                    continue;
                }
                // Reads go on behind chunks in memory: a request for each gap would be slow. A
                // chunk that was given up since is read alone.
                let has = |row: &ChunkRow| self.decoded_chunks().has(session.id, row.id);
                let end = if read.is_empty() { rows.len() } else { place + 1 };
                let places: Vec<usize> = (place..end).filter(|at| *at == place || !has(&rows[*at])).collect();
                let wanted: Vec<ChunkRow> = places.iter().map(|at| rows[*at].clone()).collect();
                let stored = match self.fetch_chunks(&wanted).await {
                    Ok(stored) => stored,
                    Err(FetchFailure::Busy(error)) => return Err(error),
                    Err(FetchFailure::Read(failure)) => {
                        return self.missing_after(failure, &rows, window * READ_ROWS).await;
                    }
                };
                for one in places.into_iter().zip(stored).rev() {
                    read.push_front(one);
                }
            }
        }
        let mut ingested = ingest.finish().await?;
        ingested.shrink_memory();
        Ok(Verified::Sound(Box::new(ingested)))
    }

    /// Positions of the chunks that the session may not name, if there are any. Checks what the
    /// rows alone tell: that the fills fit the holes, and the sizes.
    async fn look_through(
        &self,
        allowed: &Allowed,
        manifest: &NarManifest,
        nar_size: u64,
    ) -> Result<Option<Vec<u64>>> {
        let mut missing = Vec::new();
        let (mut holes, mut bytes) = (0, 0);
        for (window, ids) in manifest.chunks.chunks(LOOK_CHUNKS).enumerate() {
            for (position, row) in self.index().find_chunks(ids).await?.iter().enumerate() {
                match row.as_ref().filter(|row| allowed.holds(row.number)) {
                    Some(row) => {
                        holes += row.layout.holes.len() as u64;
                        bytes += u64::from(row.layout.raw_len);
                    }
                    None if missing.len() < POSITIONS_MAX => {
                        missing.push((window * LOOK_CHUNKS + position) as u64);
                    }
                    None => {}
                }
            }
        }
        if !missing.is_empty() {
            return Ok(Some(missing));
        }
        let fills = manifest.fills.hole_count();
        if fills != holes {
            return Err(Error::FillMismatch { fills, holes });
        }
        if bytes != nar_size {
            return Err(Error::SizeMismatch { expected: nar_size, got: bytes });
        }
        Ok(None)
    }

    /// Gives the bytes of a kept chunk to the upload.
    async fn hand_on_kept(
        &self,
        ingest: &mut Ingest,
        row: &ChunkRow,
        mut kept: KeptChunk,
        fills: &mut impl Iterator<Item = &HoleFill>,
    ) -> Result<()> {
        let holes = row.layout.holes.clone();
        let fills = fills.take(holes.len()).copied().collect();
        let bytes = RawChunk { bytes: std::mem::take(&mut kept.raw), holes, fills }.into_restored();
        ingest.expect(row.clone());
        self.metrics().sessions.checked_bytes.with_label_values(&["memory"]).inc_by(bytes.len() as u64);
        ingest.write(&bytes).await
    }

    /// Decodes chunks and gives their bytes to the upload.
    async fn hand_on(
        &self,
        ingest: &mut Ingest,
        mut decoding: Decoding,
        rows: &[ChunkRow],
        stored: Vec<Bytes>,
        fills: &mut impl Iterator<Item = &HoleFill>,
    ) -> Result<Decoding> {
        let mut chunks = rows.iter().zip(stored).peekable();
        while chunks.peek().is_some() {
            let (mut job, mut raw_bytes) = (Vec::new(), 0);
            while raw_bytes < JOB_BYTES
                && let Some((row, stored)) = chunks.next()
            {
                raw_bytes += row.layout.raw_len as usize;
                let fills: Vec<HoleFill> = fills.by_ref().take(row.layout.holes.len()).copied().collect();
                ingest.expect(row.clone());
                job.push((row.layout.clone(), stored, fills));
            }
            let decode = move || {
                let Decoding { decoder, raw } = &mut decoding;
                raw.resize(raw.len().max(raw_bytes), 0);
                let mut rest = &mut raw[..raw_bytes];
                let decoded = job.iter().try_for_each(|(layout, stored, fills)| {
                    let (now, later) = std::mem::take(&mut rest).split_at_mut(layout.raw_len as usize);
                    rest = later;
                    decoder.decode_into(stored, layout, fills, now)
                });
                (decoding, decoded)
            };
            let decoded;
            (decoding, decoded) = self.cpu().run(decode).await;
            // Its checksum matched, and it was decoded when it came.
            decoded.map_err(Error::Encode)?;
            self.metrics().sessions.checked_bytes.with_label_values(&["store"]).inc_by(raw_bytes as u64);
            ingest.write(&decoding.raw[..raw_bytes]).await?;
        }
        Ok(decoding)
    }

    /// Marks what could not be read, and says where it lies among the chunks of a window.
    async fn missing_after(&self, failure: ReadFailure, rows: &[ChunkRow], first: usize) -> Result<Verified> {
        let lost: BTreeSet<u64> = match failure {
            ReadFailure::Unavailable(error) => return Err(error.into()),
            ReadFailure::Damaged(numbers) => numbers.into_iter().collect(),
            ReadFailure::PackLost(pack) => {
                rows.iter().filter(|row| row.pack_id == pack).map(|row| row.number).collect()
            }
        };
        // By the pack that was read: a push or a collection may have put a chunk elsewhere since.
        let mut damaged: BTreeMap<PackNumber, Vec<u64>> = BTreeMap::new();
        for row in rows.iter().filter(|row| lost.contains(&row.number)) {
            damaged.entry(row.pack).or_default().push(row.number);
        }
        for (pack, chunks) in damaged {
            let marked = self.index().mark_chunks_damaged(pack, &chunks, self.now()).await?;
            tracing::error!(chunk.numbers = ?chunks, marked, "stored bytes of a push by chunks are damaged");
        }
        self.forget_nars();
        let positions = (first..).zip(rows).filter(|(_, row)| lost.contains(&row.number));
        Ok(Verified::Missing(positions.map(|(position, _)| position as u64).take(POSITIONS_MAX).collect()))
    }
}
