//! From raw bytes to a recipe: chunks, deduplicates, compresses and packs one stream of bytes.
//!
//! Algorithm, for each batch of chunks (3 MiB, or the rest at the end): hash the chunks on the CPU
//! pool; ask the packer for chunks that are on their way, then the index for the others; claim,
//! compress and hand to the packer the chunks that are nowhere. The sink builds the recipe, the
//! encoding tag and the size in order, as far as the chunks' rows are known. It keeps what it knows
//! of a chunk only until the chunk's pack is stored, so memory does not grow with the NAR.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use dormer_format::{
    ChunkId, ChunkShape, Chunker, EncodingTag, HoleFill, RawChunk, Recipe, RecipeBuilder, ShapeChunker,
    TagBuilder,
};
use dormer_index::{ChunkRow, Index, PackNumber};
use tokio::task::JoinSet;

use crate::budget::BudgetShare;
use crate::cpu::CpuPool;
use crate::metrics::{Deduplicated, EngineMetrics};
use crate::packer::{Claim, ClaimedChunk, PackSlot, Packer, PendingChunk};
use crate::{Error, Result};

/// Raw bytes of a NAR looked up at once: one statement for up to 96 chunks of 32 KiB. Two batches
/// are the largest part of an upload's memory.
pub(crate) const BATCH_BYTES: usize = 3 * 1024 * 1024;

/// Memory for chunks that cannot join the recipe yet. A known chunk is queued while a chunk before
/// it is on its way into a pack. When this is full, the upload waits for that pack.
const QUEUED_BYTES_MAX: usize = 512 * 1024;

/// Memory of one queued chunk without its fills: its row and the structures around it.
const QUEUED_CHUNK_BYTES: usize = 256;

/// Chunks looked up at once, for settings that make them much smaller: the index takes 16,384 in
/// one call.
const BATCH_CHUNKS: usize = 4_096;

/// Raw bytes compressed in one job: 3 to 15 ms of work.
const JOB_BYTES_MAX: usize = 768 * 1024;

/// Bytes of the noise that is stored for a caller that brings nothing new and must not learn it. A
/// pack of this size takes about as long to store as one of a part.
const DECOY_BYTES: usize = 64 * 1024;

/// What all uploads need.
#[derive(Debug, Clone)]
pub(crate) struct IngestContext {
    pub(crate) index: Arc<dyn Index>,
    pub(crate) cpu: CpuPool,
    pub(crate) packer: Packer,
    pub(crate) metrics: Arc<EngineMetrics>,
}

impl IngestContext {
    /// Stores noise, as if a caller had brought a new chunk. No recipe ever names it, so the next
    /// collection removes it.
    pub(crate) async fn store_decoy(&self, slot: PackSlot) -> Result<Option<Arc<PendingChunk>>> {
        let noise =
            || (0..DECOY_BYTES / 8).flat_map(|_| rand::random::<u64>().to_le_bytes()).collect::<Vec<u8>>();
        let chunk = RawChunk { bytes: self.cpu.run(noise).await, holes: Vec::new(), fills: Vec::new() };
        let mut stored = self.cpu.encode(vec![(chunk.id(), chunk)]).await?;
        let Some(chunk) = stored.pop() else { return Ok(None) };
        let Claim::Yours(claimed) = self.packer.claim(chunk.id) else { return Ok(None) };
        let pending = Arc::clone(claimed.pending());
        self.packer.add(slot, chunk, claimed).await;
        Ok(Some(pending))
    }
}

/// A stored stream of bytes: all its packs are durable and in the index.
#[derive(Debug)]
pub(crate) struct StoredStream {
    pub(crate) recipe: Recipe,
    pub(crate) tag: EncodingTag,
    pub(crate) file_size: u64,
    /// Raw bytes in chunks with holes.
    pub(crate) holed_bytes: u64,
    pub(crate) packs: BTreeSet<PackNumber>,
    /// Raw bytes in all chunks.
    pub(crate) chunk_bytes: u64,
    /// Raw bytes in chunks that this stream was the first to bring.
    pub(crate) new_chunk_bytes: u64,
}

enum Source {
    Known(Box<ChunkRow>),
    Pending(Arc<PendingChunk>),
}

/// A chunk that the recipe has not reached yet.
struct QueuedChunk {
    source: Source,
    fills: Vec<HoleFill>,
}

impl QueuedChunk {
    fn memory_bytes(&self) -> usize {
        QUEUED_CHUNK_BYTES + self.fills.len() * size_of::<HoleFill>()
    }
}

/// A chunk that is stored nowhere, with this upload's claim to store it.
struct NewChunk {
    slot: PackSlot,
    chunk: RawChunk,
    claimed: ClaimedChunk,
}

/// How a stream is cut.
pub(crate) enum Cutting {
    /// Into chunks, which are stored.
    Chunks(Chunker),
    /// Into exactly the stored chunks of [`ChunkSink::expect`] ([`Error::CutMismatch`]).
    Shapes(ShapeChunker),
    /// The stream has ended.
    Ended,
}

pub(crate) struct ChunkSink {
    context: IngestContext,
    /// Orders this stream's chunks in packs.
    stream: u64,
    position: u64,
    cutting: Cutting,
    /// If the stream must be cut into stored chunks: those that its next bytes were decoded from.
    expected: VecDeque<ChunkRow>,
    batch: Vec<RawChunk>,
    batch_bytes: usize,
    /// A batch is looked up when it has so many raw bytes.
    batch_bytes_max: usize,
    queued: VecDeque<QueuedChunk>,
    queued_bytes: usize,
    jobs: JoinSet<()>,
    /// Every job holds it too: jobs go on when their upload is abandoned.
    memory: Arc<BudgetShare>,
    recipe: RecipeBuilder,
    tag: TagBuilder,
    stored: StoredCounts,
}

#[derive(Default)]
struct StoredCounts {
    file_size: u64,
    holed_bytes: u64,
    packs: BTreeSet<PackNumber>,
    chunk_bytes: u64,
    new_chunk_bytes: u64,
}

impl ChunkSink {
    pub(crate) fn new(
        context: IngestContext,
        stream: u64,
        cutting: Cutting,
        batch_bytes_max: usize,
        memory: &Arc<BudgetShare>,
    ) -> Self {
        Self {
            context,
            stream,
            position: 0,
            cutting,
            expected: VecDeque::new(),
            batch: Vec::new(),
            batch_bytes: 0,
            batch_bytes_max,
            queued: VecDeque::new(),
            queued_bytes: 0,
            jobs: JoinSet::new(),
            memory: Arc::clone(memory),
            recipe: RecipeBuilder::new(),
            tag: TagBuilder::new(),
            stored: StoredCounts::default(),
        }
    }

    /// Names the chunk that the next bytes were decoded from, before they are written.
    pub(crate) fn expect(&mut self, row: ChunkRow) {
        self.expected.push_back(row);
    }

    /// Takes more bytes; waits while too much is being compressed or stored.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let chunker = match &mut self.cutting {
            Cutting::Chunks(chunker) => chunker,
            Cutting::Shapes(chunker) => {
                let mut shapes = Vec::new();
                chunker.push(bytes, &mut shapes);
                return self.compare(shapes);
            }
            Cutting::Ended => unreachable!("write is not called after finish"),
        };
        let before = self.batch.len();
        chunker.push(bytes, &mut self.batch);
        self.batch_bytes += self.batch[before..].iter().map(|chunk| chunk.bytes.len()).sum::<usize>();
        if self.batch_bytes >= self.batch_bytes_max || self.batch.len() >= BATCH_CHUNKS {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// Ends the stream: hands everything to the packer.
    pub(crate) async fn finish_chunks(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.cutting, Cutting::Ended) {
            Cutting::Chunks(chunker) => chunker.finish(&mut self.batch),
            Cutting::Shapes(chunker) => {
                let mut shapes = Vec::new();
                chunker.finish(&mut shapes);
                self.compare(shapes)?;
                if !self.expected.is_empty() {
                    return Err(Error::CutMismatch { position: self.position });
                }
            }
            Cutting::Ended => {}
        }
        self.flush().await?;
        self.finish_jobs().await;
        Ok(())
    }

    /// Waits until the packer has every claimed chunk.
    async fn finish_jobs(&mut self) {
        while let Some(job) = self.jobs.join_next().await {
            if let Err(error) = job
                && let Ok(panic) = error.try_into_panic()
            {
                std::panic::resume_unwind(panic);
            }
        }
    }

    /// Stores noise if the whole stream, whose chunks are finished, is stored already: then its end
    /// waits for the store as that of any other stream.
    pub(crate) async fn store_decoy_if_known(&self) -> Result<Option<Arc<PendingChunk>>> {
        let waits = self.queued.iter().any(|chunk| matches!(chunk.source, Source::Pending(_)));
        if waits || self.stored.new_chunk_bytes > 0 {
            return Ok(None);
        }
        self.context.store_decoy(PackSlot { stream: self.stream, position: self.position }).await
    }

    /// Waits for the packs and returns how to read the stream back.
    pub(crate) async fn finish(mut self) -> Result<StoredStream> {
        let pending: Vec<_> = self
            .queued
            .iter()
            .filter_map(|chunk| match &chunk.source {
                Source::Pending(pending) => Some(Arc::clone(pending)),
                Source::Known(_) => None,
            })
            .collect();
        self.context.packer.wait_for(pending.iter()).await;
        self.drain_settled()?;
        assert!(self.queued.is_empty(), "every chunk was waited for");
        Ok(StoredStream {
            recipe: self.recipe.finish(),
            tag: self.tag.finish(),
            file_size: self.stored.file_size,
            holed_bytes: self.stored.holed_bytes,
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
        let mut in_flight: Vec<Option<Arc<PendingChunk>>> =
            chunks.iter().map(|(id, _)| self.context.packer.find_pending(id)).collect();
        let unknown: Vec<ChunkId> = chunks
            .iter()
            .zip(&in_flight)
            .filter(|(_, pending)| pending.is_none())
            .map(|((id, _), _)| *id)
            .collect();
        let mut rows = self.context.index.find_chunks(&unknown).await?.into_iter();

        // No await from here on: otherwise another upload could store a chunk after the look-up
        // missed it, and the chunk would be stored twice.
        let mut new = Vec::new();
        for ((id, mut chunk), pending) in chunks.into_iter().zip(&mut in_flight) {
            self.position += 1;
            self.stored.chunk_bytes += chunk.bytes.len() as u64;
            let fills = std::mem::take(&mut chunk.fills);
            let (bytes, by) = (chunk.bytes.len() as u64, deduplicated_by(&fills));
            let new_before = self.stored.new_chunk_bytes;
            let source = match pending.take() {
                Some(pending) => Source::Pending(pending),
                None => match rows.next().flatten() {
                    Some(row) => Source::Known(Box::new(row)),
                    None => Source::Pending(self.claim(id, chunk, &mut new)),
                },
            };
            if self.stored.new_chunk_bytes == new_before {
                self.context.metrics.pushes.count_deduplicated(by, bytes);
            }
            let chunk = QueuedChunk { source, fills };
            self.queued_bytes += chunk.memory_bytes();
            self.queued.push_back(chunk);
        }
        self.encode(new);
        self.drain_settled()?;
        self.wait_for_room().await
    }

    /// Puts chunks that are the expected ones into the recipe.
    ///
    /// A chunk was decoded from a stored one. So it is that one if it begins and ends where that
    /// one does and has its holes: its id needs no second hash, and its row no second look-up.
    fn compare(&mut self, shapes: Vec<ChunkShape>) -> Result<()> {
        for shape in shapes {
            let is_same = |row: &ChunkRow| {
                row.layout.raw_len as usize == shape.raw_len && row.layout.holes == shape.holes
            };
            let Some(row) = self.expected.pop_front().filter(is_same) else {
                return Err(Error::CutMismatch { position: self.position });
            };
            self.position += 1;
            let bytes = shape.raw_len as u64;
            self.stored.chunk_bytes += bytes;
            self.context.metrics.pushes.count_deduplicated(deduplicated_by(&shape.fills), bytes);
            self.add_to_recipe(&row, &shape.fills);
        }
        Ok(())
    }

    /// Waits for the packs of the first queued chunks until the others fit their memory.
    async fn wait_for_room(&mut self) -> Result<()> {
        while self.queued_bytes > QUEUED_BYTES_MAX {
            let Some(QueuedChunk { source: Source::Pending(first), .. }) = self.queued.front() else { break };
            let first = Arc::clone(first);
            // The packer must have this upload's chunks before the upload can wait for them.
            self.finish_jobs().await;
            self.context.packer.wait_for([&first].into_iter()).await;
            self.drain_settled()?;
        }
        Ok(())
    }

    async fn hash(&self, chunks: Vec<RawChunk>) -> Vec<(ChunkId, RawChunk)> {
        self.context.cpu.run(move || chunks.into_iter().map(|chunk| (chunk.id(), chunk)).collect()).await
    }

    fn claim(&mut self, id: ChunkId, chunk: RawChunk, new: &mut Vec<NewChunk>) -> Arc<PendingChunk> {
        let claimed = match self.context.packer.claim(id) {
            Claim::Taken(pending) => return pending,
            Claim::Yours(claimed) => claimed,
        };
        self.stored.new_chunk_bytes += chunk.bytes.len() as u64;
        self.context.metrics.pushes.new_chunk_bytes.inc_by(chunk.bytes.len() as u64);
        let pending = Arc::clone(claimed.pending());
        let slot = PackSlot { stream: self.stream, position: self.position };
        new.push(NewChunk { slot, chunk, claimed });
        pending
    }

    /// Starts compressing a batch's new chunks, in jobs that are large enough to be worth a wake-up
    /// and small enough that every thread of the pool gets some.
    fn encode(&mut self, new: Vec<NewChunk>) {
        let job_bytes = (BATCH_BYTES / (2 * self.context.cpu.threads())).min(JOB_BYTES_MAX);
        let (mut job, mut bytes) = (Vec::new(), 0);
        let mut new = new.into_iter().peekable();
        while let Some(chunk) = new.next() {
            bytes += chunk.chunk.bytes.len();
            job.push(chunk);
            if bytes >= job_bytes || new.peek().is_none() {
                bytes = 0;
                // A task of its own: the packer relies on claimed chunks also when this upload is
                // abandoned, and a JoinSet aborts its tasks.
                let memory = Arc::clone(&self.memory);
                let work =
                    tokio::spawn(encode_and_add(self.context.clone(), std::mem::take(&mut job), memory));
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

    /// Moves queued chunks whose rows are known into recipe and tag.
    fn drain_settled(&mut self) -> Result<()> {
        while let Some(chunk) = self.queued.front() {
            let row = match &chunk.source {
                Source::Known(row) => &**row,
                Source::Pending(pending) => match pending.row() {
                    None => break,
                    Some(row) => row?,
                },
            };
            let row = row.clone();
            if let Some(chunk) = self.queued.pop_front() {
                self.queued_bytes -= chunk.memory_bytes();
                self.add_to_recipe(&row, &chunk.fills);
            }
        }
        Ok(())
    }

    fn add_to_recipe(&mut self, row: &ChunkRow, fills: &[HoleFill]) {
        self.recipe.push_chunk(row.number);
        self.tag.push_chunk(&row.id, row.checksum, &row.layout);
        for fill in fills {
            self.recipe.push_fill(fill);
            self.tag.push_fill(fill);
        }
        self.stored.file_size += row.layout.spliced_len();
        self.stored.holed_bytes += row.layout.holed_bytes();
        self.stored.packs.insert(row.pack);
    }
}

fn deduplicated_by(fills: &[HoleFill]) -> Deduplicated {
    if fills.is_empty() { Deduplicated::PlainChunk } else { Deduplicated::ChunkWithHoles }
}

async fn encode_and_add(context: IngestContext, new: Vec<NewChunk>, _memory: Arc<BudgetShare>) {
    let mut chunks = Vec::with_capacity(new.len());
    let mut claims = Vec::with_capacity(new.len());
    for NewChunk { slot, chunk, claimed } in new {
        chunks.push((claimed.id(), chunk));
        claims.push((slot, claimed));
    }
    match context.cpu.encode(chunks).await {
        Ok(stored) => {
            for (chunk, (slot, claimed)) in stored.into_iter().zip(claims) {
                context.packer.add(slot, chunk, claimed).await;
            }
        }
        Err(error) => {
            for (_, claimed) in claims {
                claimed.fail(error.to_string());
            }
        }
    }
}
