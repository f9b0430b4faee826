//! Carrying out a read: bytes are fetched, verified and spliced; what cannot be read is marked.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dormer_blobs::BlobKey;
use dormer_format::{ChunkRun, checksum, splice};
use dormer_index::ChunkRow;

use super::open::Plan;
use super::plan::{Read, end_of};
use crate::{Engine, Error, Result};

/// Tries of one read before it counts as damaged or unavailable.
const TRIES: u32 = 3;

impl Engine {
    /// Reads, verifies and splices.
    pub(super) async fn read(self, plan: Arc<Plan>, read: Read) -> Result<VecDeque<Bytes>> {
        let mut attempt = 1;
        loop {
            let failure = match self.read_once(&read).await {
                Ok(pieces) => return Ok(pieces),
                Err(failure) => failure,
            };
            if attempt == TRIES {
                return Err(match failure {
                    ReadFailure::Damaged(chunks) => {
                        self.mark_if_still_there(&plan, &read, chunks).await;
                        Error::Damaged { nar: plan.hash }
                    }
                    ReadFailure::Unavailable(error) => error.into(),
                });
            }
            self.metrics().read_retries.inc();
            tokio::time::sleep(Duration::from_millis(20 * 4u64.pow(attempt))).await;
            attempt += 1;
        }
    }

    /// Marks those of the damaged chunks that still lie where this read looked for them. A slow reader may hold places from
    /// before a healing push, and must not take back what that push was acknowledged for.
    async fn mark_if_still_there(&self, plan: &Plan, read: &Read, mut chunks: Vec<u64>) {
        let runs: Vec<ChunkRun> = chunks.iter().map(|number| ChunkRun { first: *number, count: 1 }).collect();
        if let Ok(present) = self.index().load_chunks(&runs).await {
            chunks.retain(|number| {
                let moved = |row: &&ChunkRow| {
                    row.number == *number
                        && !read.rows.iter().any(|seen| {
                            seen.number == row.number && seen.pack == row.pack && seen.offset == row.offset
                        })
                };
                !present.iter().any(|row| moved(&row))
            });
        }
        if chunks.is_empty() {
            self.remembered_plans().invalidate_all();
        } else {
            self.mark_damaged(plan.nar, &plan.hash, &chunks).await;
        }
    }

    async fn read_once(&self, read: &Read) -> Result<VecDeque<Bytes>, ReadFailure> {
        let rows = &read.rows[read.chunks.clone()];
        let (first, last) = (&rows[0], &rows[rows.len() - 1]);
        let start = first.offset;
        let stored = match self.blobs().get_range(&BlobKey::Pack(first.pack_id), start..end_of(last)).await {
            Ok(stored) => stored,
            Err(dormer_blobs::Error::NotFound { .. } | dormer_blobs::Error::Truncated { .. }) => {
                self.proven_packs().invalidate(&first.pack_id);
                // All that lies in the same pack is gone with it: one push heals the whole NAR.
                let lost = read.rows.iter().filter(|row| row.pack == first.pack);
                return Err(ReadFailure::Damaged(lost.map(|row| row.number).collect()));
            }
            Err(error) => return Err(ReadFailure::Unavailable(error)),
        };
        let damaged: Vec<u64> = rows
            .iter()
            .filter(|row| checksum(&stored[within(row, start)]) != row.checksum)
            .map(|row| row.number)
            .collect();
        if damaged.is_empty() { splice_read(read, &stored) } else { Err(ReadFailure::Damaged(damaged)) }
    }
}

enum ReadFailure {
    /// These chunks are missing or changed.
    Damaged(Vec<u64>),
    Unavailable(dormer_blobs::Error),
}

/// Where a chunk lies in bytes that were read from `start` on.
fn within(row: &ChunkRow, start: u64) -> Range<usize> {
    let offset = usize::try_from(row.offset - start).expect("a read is at most a few MiB");
    offset..offset + row.layout.stored_len() as usize
}

fn splice_read(read: &Read, stored: &Bytes) -> Result<VecDeque<Bytes>, ReadFailure> {
    let rows = &read.rows[read.chunks.clone()];
    let start = rows[0].offset;
    let mut pieces = VecDeque::new();
    // Neighbours without holes leave as one piece, straight from what was read.
    let mut plain: Range<usize> = 0..0;
    let mut fills = read.fills.as_slice();
    let mut parts = Vec::new();
    for row in rows {
        let place = within(row, start);
        if row.layout.holes.is_empty() {
            if plain.end != place.start {
                push_piece(&mut pieces, stored.slice(plain));
                plain = place.start..place.start;
            }
            plain.end = place.end;
            continue;
        }
        push_piece(&mut pieces, stored.slice(std::mem::take(&mut plain)));
        // Sound bytes with a layout or fills that do not fit: the row is what is damaged.
        let damaged = || ReadFailure::Damaged(vec![row.number]);
        let (own, rest) = fills.split_at_checked(row.layout.holes.len()).ok_or_else(damaged)?;
        fills = rest;
        // Frames between holes are small; sending them one by one costs more than copying them together.
        parts.clear();
        splice(&stored.slice(place), &row.layout, own, &mut parts).map_err(|_| damaged())?;
        let length = parts.iter().map(Bytes::len).sum();
        let mut joined = BytesMut::with_capacity(length);
        for part in &parts {
            joined.extend_from_slice(part);
        }
        push_piece(&mut pieces, joined.freeze());
    }
    push_piece(&mut pieces, stored.slice(plain));
    trim(&mut pieces, read.skip, read.take);
    Ok(pieces)
}

fn push_piece(pieces: &mut VecDeque<Bytes>, piece: Bytes) {
    if !piece.is_empty() {
        pieces.push_back(piece);
    }
}

/// Cuts the pieces to `take` bytes after the first `skip`.
fn trim(pieces: &mut VecDeque<Bytes>, mut skip: u64, mut take: u64) {
    pieces.retain_mut(|piece| {
        let skipped = skip.min(piece.len() as u64);
        skip -= skipped;
        let kept = take.min(piece.len() as u64 - skipped);
        take -= kept;
        let start = usize::try_from(skipped).expect("at most the piece's length");
        let end = start + usize::try_from(kept).expect("at most the piece's length");
        *piece = piece.slice(start..end);
        !piece.is_empty()
    });
}
