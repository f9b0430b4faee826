//! Receives a part: a pack of chunks that a client compressed.
//!
//! Algorithm: check the pack, its digest and the form of its frames; decode each chunk on the CPU
//! pool, compare its id and keep it for the check of its NAR, if there is memory; claim the chunks
//! that are stored nowhere, and hand their frames to the packer as they came; wait for the packs;
//! write down what the session received.
//!
//! Invariants
//! - Frames are stored only after they were decoded and their chunk's id compared, and not if they
//!   are hardly compressed although they could be: every tenant gets the frames that came first.
//! - A part that was answered is durable: its chunks' packs first, then the note about the part.
//! - A part whose chunks are all stored waits for a pack as well, if its caller may not know that
//!   they are: it stores a chunk of noise, which the next collection removes.
//! - Memory: the part, which the caller accounts for, and a decoded chunk. The packer gets slices
//!   of the part, because the part waits for its packs anyway. A part that fails between two
//!   look-ups leaves some of them to the packer, and so all of its memory, until their pack is
//!   stored; only an index that cannot be reached makes it fail there.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use dormer_format::{
    ChunkId, ChunkLayout, ChunkRun, Decoder, Encoder, HOLE_BYTES, PACK_TRAILER_BYTES, PackEntry, PackTrailer,
    RecipeBuilder, StoredChunk, read_pack, read_trailer,
};
use dormer_index::{Error as IndexError, SessionPart};
use tokio::time::Instant;

use super::{PushSession, Reader};
use crate::commit::finish;
use crate::packer::{Claim, PackSlot, PendingChunk};
use crate::read::windows;
use crate::{Engine, Error, Result};

/// Largest part, in bytes. Proxies often refuse bodies over 32 MB, and a part should be answered
/// within seconds also over a slow line.
pub const PART_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Most raw bytes of the chunks of a part: half a second of decoding and hashing. Software
/// compresses to a third; a part of larger chunks than this is a bomb.
pub const PART_RAW_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Most chunks of a part. 8 MiB of software are some hundred chunks; only chunks that compress to
/// nearly nothing come near this.
pub const PART_CHUNKS_MAX: usize = 4_096;

/// Memory of a part beside its bytes: a decoded chunk and small things.
const PART_MEMORY_BYTES: u64 = 2 * 1024 * 1024;

/// Memory of a chunk of a part, until the part is written down: its entry, its row, and what waits
/// for its pack. A chunk with as many holes as there can be takes twice as much.
const CHUNK_MEMORY_BYTES: u64 = 1024;

/// The least bytes of a chunk in a part: the frame's head, and an entry of the table.
const CHUNK_BYTES_MIN: u64 = 48;

/// Chunks of a part in one look-up.
const LOOK_PART_CHUNKS: usize = 1_024;

/// Raw bytes decoded in one job of the CPU pool: 1 to 3 ms of work.
const JOB_BYTES: u64 = 1024 * 1024;

/// Memory to receive a part of so many bytes, in bytes, those of the part included.
pub fn part_memory_bytes(part_bytes: u64) -> u64 {
    let chunks = (part_bytes / CHUNK_BYTES_MIN).min(PART_CHUNKS_MAX as u64);
    part_bytes + PART_MEMORY_BYTES + chunks * CHUNK_MEMORY_BYTES
}

impl Engine {
    /// Takes a part of a session. When this returns, every chunk of the part is durable, and the
    /// session may name it. Repeating a part costs a look-up.
    ///
    /// The work goes on when the caller leaves. `hold` is kept until it has ended: the caller's
    /// share of the memory that `part` takes.
    pub async fn receive_part(
        &self,
        session: &PushSession,
        reader: &Reader,
        digest: [u8; 32],
        part: Bytes,
        hold: impl Send + 'static,
    ) -> Result<()> {
        let begun = Instant::now();
        if let Some(known) = self.index().find_part(&session.id, &digest).await?
            && self.are_sound(&known).await?
        {
            return Ok(());
        }
        let (engine, session, reader) = (self.clone(), session.clone(), reader.clone());
        finish(async move {
            let may_tell = engine.reads_everything(&reader).await?;
            let received = engine.store_part(&session, &reader, may_tell, digest, part).await;
            drop(hold);
            engine.answer_on_grid(begun, may_tell).await;
            received
        })
        .await
    }

    /// Whether the chunks of a part are all still there. If not, the part is to be stored again.
    async fn are_sound(&self, part: &SessionPart) -> Result<bool> {
        for runs in windows(&part.chunks) {
            let rows = match self.index().load_chunks(&runs).await {
                Ok(rows) => rows,
                Err(IndexError::ChunkGone { .. }) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            let ids: Vec<ChunkId> = rows.iter().map(|row| row.id).collect();
            if self.index().find_chunks(&ids).await?.iter().any(Option::is_none) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn store_part(
        &self,
        session: &PushSession,
        reader: &Reader,
        may_tell: bool,
        digest: [u8; 32],
        part: Bytes,
    ) -> Result<()> {
        let entries = self.read_part(digest, &part).await?;
        let checked = self.check_chunks(session, &part, &entries).await;
        self.decoded_chunks().forget_later();
        checked?;

        let mut upload = self.ingest_context().packer.begin();
        let stream = self.streams_begun().fetch_add(2, Ordering::Relaxed);
        let mut numbers = Vec::with_capacity(entries.len());
        let mut pending: Vec<Arc<PendingChunk>> = Vec::new();
        let mut stored_before = Vec::new();
        let mut is_any_new = false;
        for (batch, entries) in entries.chunks(LOOK_PART_CHUNKS).enumerate() {
            let ids: Vec<ChunkId> = entries.iter().map(|entry| entry.id).collect();
            let mut on_their_way: Vec<_> =
                ids.iter().map(|id| self.ingest_context().packer.find_pending(id)).collect();
            let rows = self.index().find_chunks(&ids).await?;
            // No await until everything is claimed: otherwise another upload could store a chunk
            // after the look-up missed it, and the chunk would be stored twice.
            let mut claims = Vec::new();
            for (position, row) in rows.into_iter().enumerate() {
                match (on_their_way[position].take(), row) {
                    (Some(taken), _) => pending.push(taken),
                    (None, Some(row)) => {
                        stored_before.push(row.number);
                        numbers.push(row.number);
                    }
                    (None, None) => match self.ingest_context().packer.claim(ids[position]) {
                        Claim::Taken(taken) => pending.push(taken),
                        Claim::Yours(claimed) => {
                            pending.push(Arc::clone(claimed.pending()));
                            claims.push((position, claimed));
                        }
                    },
                }
            }
            is_any_new |= !claims.is_empty();
            for (position, claimed) in claims {
                let chunk = stored_chunk(&part, &entries[position]);
                self.metrics().pushes.new_chunk_bytes.inc_by(chunk.layout.raw_len.into());
                let slot = PackSlot { stream, position: (batch * LOOK_PART_CHUNKS + position) as u64 };
                self.ingest_context().packer.add(slot, chunk, claimed).await;
            }
        }
        if !is_any_new && pending.is_empty() && !may_tell {
            let allowed = self.allowed(session, reader).await?;
            if stored_before.iter().any(|number| !allowed.holds(*number)) {
                pending.extend(self.ingest_context().store_decoy(PackSlot { stream, position: 0 }).await?);
            }
        }
        upload.end_stream();
        self.ingest_context().packer.wait_for(pending.iter()).await;
        for pending in &pending {
            let row =
                pending.row().unwrap_or_else(|| Err(Error::PackLost("it was not settled".to_owned())))?;
            numbers.push(row.number);
        }
        numbers.sort_unstable();
        numbers.dedup();
        let part_row = SessionPart { digest, chunks: runs(&numbers) };
        if !self.index().add_part(&session.id, &part_row, self.now()).await? {
            return Err(Error::NoSession);
        }
        self.metrics().sessions.parts.inc();
        self.metrics().sessions.part_bytes.inc_by(part.len() as u64);
        Ok(())
    }

    /// Checks a part as a pack, and that it is the one that its address names.
    async fn read_part(&self, digest: [u8; 32], part: &Bytes) -> Result<Vec<PackEntry>> {
        let max = u64::from(self.settings().chunk_params.max) + HOLE_BYTES as u64;
        let part = part.clone();
        self.cpu()
            .run(move || {
                let trailer: &[u8; PACK_TRAILER_BYTES] = part.last_chunk().ok_or(Error::PartDigest)?;
                let trailer = read_trailer(trailer, part.len() as u64).map_err(Error::MalformedPart)?;
                if trailer.hash != digest {
                    return Err(Error::PartDigest);
                }
                // Before the table is read, whose entries take memory.
                let chunks = count_chunks(&part, &trailer);
                if chunks > PART_CHUNKS_MAX as u64 {
                    return Err(Error::PartChunks { chunks, max: PART_CHUNKS_MAX as u64 });
                }
                let (_, entries) = read_pack(&part).map_err(Error::MalformedPart)?;
                let is_large = |entry: &PackEntry| u64::from(entry.layout.raw_len) > max;
                if let Some(position) = entries.iter().position(is_large) {
                    return Err(Error::PartChunk {
                        position,
                        what: "is larger than any that this server cuts",
                    });
                }
                let bytes = entries.iter().map(|entry| u64::from(entry.layout.raw_len)).sum();
                if bytes > PART_RAW_BYTES_MAX {
                    return Err(Error::PartTooLarge { bytes, max: PART_RAW_BYTES_MAX });
                }
                Ok(entries)
            })
            .await
    }

    /// Decodes the chunks and compares their ids. Keeps them for the check of their NAR.
    async fn check_chunks(&self, session: &PushSession, part: &Bytes, entries: &[PackEntry]) -> Result<()> {
        let mut check = ChunkCheck::new()?;
        let mut first = 0;
        while first < entries.len() {
            let mut bytes = 0;
            let count = entries[first..]
                .iter()
                .take_while(|entry| {
                    let fits = bytes < JOB_BYTES;
                    bytes += u64::from(entry.layout.raw_len);
                    fits
                })
                .count();
            let (part, job) = (part.clone(), entries[first..first + count].to_vec());
            let (kept, memory) = (Arc::clone(self.decoded_chunks()), self.upload_memory().clone());
            let (session, pusher) = (session.id, Arc::clone(&session.subject));
            let work = move || {
                let checked = job.iter().enumerate().try_for_each(|(position, entry)| -> Result<()> {
                    let raw = check
                        .decode(&part[range(entry)], entry)?
                        .map_err(|what| Error::PartChunk { position: first + position, what })?;
                    kept.keep(&memory, &pusher, session, entry.id, raw);
                    Ok(())
                });
                (check, checked)
            };
            let checked;
            (check, checked) = self.cpu().run(work).await;
            checked?;
            first += count;
        }
        Ok(())
    }
}

/// Checks chunks of a part, one after another with the same contexts.
struct ChunkCheck {
    decoder: Decoder,
    /// zstd's fastest level, made when a chunk is hardly compressed.
    trial: Option<Encoder>,
}

impl ChunkCheck {
    fn new() -> Result<Self> {
        Ok(Self { decoder: Decoder::new().map_err(Error::Encode)?, trial: None })
    }

    /// Returns the blanked bytes of a chunk, or what is wrong with it.
    fn decode(&mut self, stored: &[u8], entry: &PackEntry) -> Result<Result<Vec<u8>, &'static str>> {
        let PackEntry { layout, id, .. } = entry;
        let Ok(raw) = self.decoder.decode_blanked(stored, layout) else {
            return Ok(Err("cannot be decoded"));
        };
        if ChunkId::compute(&raw, &layout.holes) != *id {
            return Ok(Err("has another id than it is sent under"));
        }
        let is_wasteful = is_wasteful(&mut self.trial, &raw, layout)?;
        Ok(if is_wasteful { Err("is hardly compressed") } else { Ok(raw) })
    }
}

/// Whether a chunk that was hardly compressed takes a third more than zstd's fastest level makes of
/// it. Other chunks are not tried, so this costs little.
fn is_wasteful(trial: &mut Option<Encoder>, raw: &[u8], layout: &ChunkLayout) -> Result<bool> {
    let stored = u64::from(layout.stored_len());
    if stored < u64::from(layout.raw_len) / 8 * 7 {
        return Ok(false);
    }
    let encoder = match trial {
        Some(encoder) => encoder,
        None => trial.insert(Encoder::new(1).map_err(Error::Encode)?),
    };
    let tried = encoder.stored_bytes(raw, &layout.holes).map_err(Error::Encode)?;
    Ok(4 * tried < 3 * stored)
}

/// How many chunks a pack's table says that there are.
fn count_chunks(pack: &[u8], trailer: &PackTrailer) -> u64 {
    let table = usize::try_from(trailer.table_offset).ok().and_then(|start| pack.get(start..));
    // A table without a count is refused when it is read.
    table.and_then(|table| table.first_chunk()).map_or(0, |count| u32::from_le_bytes(*count).into())
}

fn range(entry: &PackEntry) -> std::ops::Range<usize> {
    let start = usize::try_from(entry.offset).expect("the pack was read, and its entries lie in it");
    start..start + entry.layout.stored_len() as usize
}

/// A chunk as the packer takes it: its frames in the part, exactly as they came.
fn stored_chunk(part: &Bytes, entry: &PackEntry) -> StoredChunk {
    StoredChunk {
        id: entry.id,
        layout: entry.layout.clone(),
        checksum: entry.checksum,
        bytes: part.slice(range(entry)),
    }
}

/// Ascending numbers as runs.
fn runs(numbers: &[u64]) -> Vec<ChunkRun> {
    let mut recipe = RecipeBuilder::new();
    for number in numbers {
        recipe.push_chunk(*number);
    }
    recipe.finish().runs
}

#[cfg(test)]
mod tests {
    use dormer_format::{PackBuilder, PackId, RawChunk};

    use super::*;

    #[test]
    fn the_packer_gets_the_bytes_of_the_part_and_no_copies() {
        let mut encoder = Encoder::new(1).unwrap();
        let mut pack = PackBuilder::new(PackId::from_bytes([1; 16]));
        let chunks = [b"first".repeat(100), b"second".repeat(100)]
            .map(|bytes| encoder.encode(&RawChunk { bytes, holes: Vec::new(), fills: Vec::new() }).unwrap());
        for chunk in &chunks {
            pack.add(chunk.clone());
        }
        let part = Bytes::from(pack.finish().parts.concat());
        let (_, entries) = read_pack(&part).unwrap();
        for (entry, chunk) in entries.iter().zip(&chunks) {
            let stored = stored_chunk(&part, entry);
            assert_eq!(stored, *chunk);
            assert!(part.as_ptr_range().contains(&stored.bytes.as_ptr()), "it is a copy");
        }
    }
}
