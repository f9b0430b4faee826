//! From raw bytes to a recipe: chunking, deduplication, compression and packing of one stream of bytes.
//!
//! Algorithm, for each batch of chunks (3 MiB, or what is left at the end): hash them on the CPU pool; ask the packer for
//! those that are on their way, then the index for the others; reserve, compress and hand to the packer what nobody has.
//! The recipe, the encoding tag and the size are built in order, as far as the chunks' rows are known; so what is kept
//! for each chunk is kept only until its pack is stored, and memory does not grow with the NAR.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use dormer_format::{
    ChunkId, ChunkParams, Chunker, EncodingTag, HoleFill, RawChunk, Recipe, RecipeBuilder, TagBuilder,
};
use dormer_index::{ChunkRow, Index, PackNumber};
use tokio::task::JoinSet;

use crate::Result;
use crate::cpu::CpuPool;
use crate::memory;
use crate::metrics::{Deduplicated, EngineMetrics};
use crate::packer::{Packer, Pending, Place, Reservation, Reserved};

/// Raw bytes of a NAR looked up at once: one statement for up to 96 chunks of 32 KiB. Two batches are the largest part of an
/// upload's memory.
pub(crate) const BATCH_BYTES: usize = 3 * 1024 * 1024;

/// Memory for what is known of chunks whose places in the recipe are not reached yet. A known chunk waits there while one
/// before it is on its way into a pack; when this is full, the upload waits for that pack.
const SLOT_BYTES_MAX: usize = 512 * 1024;

/// What one chunk takes there beside its fills: its row and the places that hold it.
const SLOT_BYTES: usize = 256;

/// Chunks looked up at once, for settings that make them much smaller: the index takes 16,384 in one call.
const BATCH_CHUNKS: usize = 4_096;

/// Raw bytes compressed in one job: 3 to 15 ms of work.
const JOB_BYTES_MAX: usize = 768 * 1024;

/// What sinks share.
#[derive(Debug, Clone)]
pub(crate) struct Workshop {
    pub(crate) index: Arc<dyn Index>,
    pub(crate) cpu: CpuPool,
    pub(crate) packer: Packer,
    pub(crate) metrics: Arc<EngineMetrics>,
}

/// A stored stream of bytes: all of its packs are durable and known to the index.
#[derive(Debug)]
pub(crate) struct StoredStream {
    pub(crate) recipe: Recipe,
    pub(crate) tag: EncodingTag,
    pub(crate) file_size: u64,
    pub(crate) packs: BTreeSet<PackNumber>,
    /// Raw bytes in all chunks.
    pub(crate) chunk_bytes: u64,
    /// Raw bytes in chunks that this stream was the first to bring.
    pub(crate) new_chunk_bytes: u64,
}

enum Source {
    Known(Box<ChunkRow>),
    Pending(Arc<Pending>),
}

struct Slot {
    source: Source,
    fills: Vec<HoleFill>,
}

impl Slot {
    fn memory_bytes(&self) -> usize {
        SLOT_BYTES + self.fills.len() * size_of::<HoleFill>()
    }
}

/// A chunk that nobody has, and this upload's right to store it.
struct NewChunk {
    place: Place,
    chunk: RawChunk,
    reserved: Reserved,
}

pub(crate) struct ChunkSink {
    workshop: Workshop,
    /// Orders this upload's chunks in packs.
    upload: u64,
    position: u64,
    chunker: Option<Chunker>,
    batch: Vec<RawChunk>,
    batch_bytes: usize,
    /// A batch is looked up when it has so many raw bytes.
    batch_bytes_max: usize,
    slots: VecDeque<Slot>,
    slot_bytes: usize,
    jobs: JoinSet<()>,
    /// Held by every job, too: an upload that is given up leaves them behind.
    memory: Arc<memory::Reservation>,
    recipe: RecipeBuilder,
    tag: TagBuilder,
    stored: StoredCounts,
}

#[derive(Default)]
struct StoredCounts {
    file_size: u64,
    packs: BTreeSet<PackNumber>,
    chunk_bytes: u64,
    new_chunk_bytes: u64,
}

impl ChunkSink {
    pub(crate) fn new(
        workshop: Workshop,
        upload: u64,
        params: ChunkParams,
        store_dir: &str,
        batch_bytes_max: usize,
        memory: &Arc<memory::Reservation>,
    ) -> Self {
        Self {
            workshop,
            upload,
            position: 0,
            chunker: Some(Chunker::new(params, store_dir)),
            batch: Vec::new(),
            batch_bytes: 0,
            batch_bytes_max,
            slots: VecDeque::new(),
            slot_bytes: 0,
            jobs: JoinSet::new(),
            memory: Arc::clone(memory),
            recipe: RecipeBuilder::new(),
            tag: TagBuilder::new(),
            stored: StoredCounts::default(),
        }
    }

    /// Takes more bytes; waits while too much is being compressed or stored.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let chunker = self.chunker.as_mut().expect("write is not called after finish");
        let before = self.batch.len();
        chunker.push(bytes, &mut self.batch);
        self.batch_bytes += self.batch[before..].iter().map(|chunk| chunk.bytes.len()).sum::<usize>();
        if self.batch_bytes >= self.batch_bytes_max || self.batch.len() >= BATCH_CHUNKS {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// Ends the stream: everything is handed to the packer.
    pub(crate) async fn finish_chunks(&mut self) -> Result<()> {
        if let Some(chunker) = self.chunker.take() {
            chunker.finish(&mut self.batch);
        }
        self.flush().await?;
        self.finish_jobs().await;
        Ok(())
    }

    /// Waits until what was reserved is with the packer.
    async fn finish_jobs(&mut self) {
        while let Some(job) = self.jobs.join_next().await {
            if let Err(error) = job
                && let Ok(panic) = error.try_into_panic()
            {
                std::panic::resume_unwind(panic);
            }
        }
    }

    /// Waits for the packs and returns how to read the stream back.
    pub(crate) async fn finish(mut self) -> Result<StoredStream> {
        let pending: Vec<_> = self
            .slots
            .iter()
            .filter_map(|slot| match &slot.source {
                Source::Pending(pending) => Some(Arc::clone(pending)),
                Source::Known(_) => None,
            })
            .collect();
        self.workshop.packer.wait_for(pending.iter()).await;
        self.drain_settled()?;
        assert!(self.slots.is_empty(), "every chunk was waited for");
        Ok(StoredStream {
            recipe: self.recipe.finish(),
            tag: self.tag.finish(),
            file_size: self.stored.file_size,
            packs: self.stored.packs,
            chunk_bytes: self.stored.chunk_bytes,
            new_chunk_bytes: self.stored.new_chunk_bytes,
        })
    }

    async fn flush(&mut self) -> Result<()> {
        let chunks = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        if chunks.is_empty() {
            return Ok(());
        }
        // At most two batches of an upload are in memory: one being compressed, one being gathered.
        self.finish_jobs().await;
        let chunks = self.hash(chunks).await;
        let mut on_their_way: Vec<Option<Arc<Pending>>> =
            chunks.iter().map(|(id, _)| self.workshop.packer.find_pending(id)).collect();
        let unknown: Vec<ChunkId> = chunks
            .iter()
            .zip(&on_their_way)
            .filter(|(_, pending)| pending.is_none())
            .map(|((id, _), _)| *id)
            .collect();
        let mut rows = self.workshop.index.find_chunks(&unknown).await?.into_iter();

        // Nothing is waited for from here on, so that what the look-ups did not find cannot be stored by another meanwhile and
        // be stored twice.
        let mut new = Vec::new();
        for ((id, mut chunk), pending) in chunks.into_iter().zip(&mut on_their_way) {
            self.position += 1;
            self.stored.chunk_bytes += chunk.bytes.len() as u64;
            let fills = std::mem::take(&mut chunk.fills);
            let (bytes, by) = (chunk.bytes.len() as u64, deduplicated_by(&fills));
            let new_before = self.stored.new_chunk_bytes;
            let source = match pending.take() {
                Some(pending) => Source::Pending(pending),
                None => match rows.next().flatten() {
                    Some(row) => Source::Known(Box::new(row)),
                    None => Source::Pending(self.reserve(id, chunk, &mut new)),
                },
            };
            if self.stored.new_chunk_bytes == new_before {
                self.workshop.metrics.count_deduplicated(by, bytes);
            }
            let slot = Slot { source, fills };
            self.slot_bytes += slot.memory_bytes();
            self.slots.push_back(slot);
        }
        self.encode(new);
        self.drain_settled()?;
        self.wait_for_room().await
    }

    /// Waits for the packs of the first chunks until what is known of the others fits its memory.
    async fn wait_for_room(&mut self) -> Result<()> {
        while self.slot_bytes > SLOT_BYTES_MAX {
            let Some(Slot { source: Source::Pending(first), .. }) = self.slots.front() else { break };
            let first = Arc::clone(first);
            // What this upload reserved has to reach the packer before it can wait for it.
            self.finish_jobs().await;
            self.workshop.packer.wait_for([&first].into_iter()).await;
            self.drain_settled()?;
        }
        Ok(())
    }

    async fn hash(&self, chunks: Vec<RawChunk>) -> Vec<(ChunkId, RawChunk)> {
        self.workshop.cpu.run(move || chunks.into_iter().map(|chunk| (chunk.id(), chunk)).collect()).await
    }

    fn reserve(&mut self, id: ChunkId, chunk: RawChunk, new: &mut Vec<NewChunk>) -> Arc<Pending> {
        let reserved = match self.workshop.packer.reserve(id) {
            Reservation::Taken(pending) => return pending,
            Reservation::Yours(reserved) => reserved,
        };
        self.stored.new_chunk_bytes += chunk.bytes.len() as u64;
        self.workshop.metrics.new_chunk_bytes.inc_by(chunk.bytes.len() as u64);
        let pending = Arc::clone(reserved.pending());
        new.push(NewChunk { place: (self.upload, self.position), chunk, reserved });
        pending
    }

    /// Starts compressing a batch's new chunks, in jobs large enough to be worth a wake-up and small enough for every thread
    /// of the pool to have some.
    fn encode(&mut self, new: Vec<NewChunk>) {
        let job_bytes = (BATCH_BYTES / (2 * self.workshop.cpu.threads())).min(JOB_BYTES_MAX);
        let (mut job, mut bytes) = (Vec::new(), 0);
        let mut new = new.into_iter().peekable();
        while let Some(chunk) = new.next() {
            bytes += chunk.chunk.bytes.len();
            job.push(chunk);
            if bytes >= job_bytes || new.peek().is_none() {
                bytes = 0;
                // A task of its own: the packer counts on reserved chunks even when this upload is abandoned, and JoinSet
                // would abort what it holds.
                let memory = Arc::clone(&self.memory);
                let work =
                    tokio::spawn(encode_and_add(self.workshop.clone(), std::mem::take(&mut job), memory));
                self.jobs.spawn(async move {
                    if let Err(error) = work.await
                        && let Ok(panic) = error.try_into_panic()
                    {
                        std::panic::resume_unwind(panic);
                    }
                });
            }
        }
    }

    /// Moves what is known by now from the slots into recipe and tag.
    fn drain_settled(&mut self) -> Result<()> {
        while let Some(slot) = self.slots.front() {
            let row = match &slot.source {
                Source::Known(row) => &**row,
                Source::Pending(pending) => match pending.row() {
                    None => break,
                    Some(row) => row?,
                },
            };
            self.recipe.push_chunk(row.number);
            self.tag.push_chunk(&row.id, row.checksum, &row.layout);
            for fill in &slot.fills {
                self.recipe.push_fill(fill);
                self.tag.push_fill(fill);
            }
            self.stored.file_size += row.layout.spliced_len();
            self.stored.packs.insert(row.pack);
            self.slot_bytes -= slot.memory_bytes();
            self.slots.pop_front();
        }
        Ok(())
    }
}

fn deduplicated_by(fills: &[HoleFill]) -> Deduplicated {
    if fills.is_empty() { Deduplicated::PlainChunk } else { Deduplicated::ChunkWithHoles }
}

async fn encode_and_add(workshop: Workshop, new: Vec<NewChunk>, _memory: Arc<memory::Reservation>) {
    let mut chunks = Vec::with_capacity(new.len());
    let mut reservations = Vec::with_capacity(new.len());
    for NewChunk { place, chunk, reserved } in new {
        chunks.push((reserved.id(), chunk));
        reservations.push((place, reserved));
    }
    match workshop.cpu.encode(chunks).await {
        Ok(stored) => {
            for (chunk, (place, reserved)) in stored.into_iter().zip(reservations) {
                workshop.packer.add(place, chunk, reserved).await;
            }
        }
        Err(error) => {
            for (_, reserved) in reservations {
                reserved.fail(error.to_string());
            }
        }
    }
}
