//! The listing of an incoming NAR. A small listing is kept in a row; a larger one is stored as
//! chunks while it is written.
//!
//! Memory: at most [`GATHERED_BYTES_MAX`] of JSON, or a chunker and two small batches, whatever the
//! NAR holds.

use std::sync::Arc;

use dormer_format::{ChunkParams, Chunker};

use crate::budget::BudgetShare;
use crate::chunk_sink::{ChunkSink, Cutting, IngestContext};
use crate::{Error, Result};

/// Most JSON that the sink gathers to compress it at once. 1 MiB lists some 10,000 files.
pub(crate) const GATHERED_BYTES_MAX: usize = 1024 * 1024;

/// Largest compressed listing kept in a row; larger ones are stored as chunks.
const INLINE_BYTES_MAX: usize = 64 * 1024;

/// Listings compress well at any level. Level 3 costs at most a tenth of the rest of an upload's
/// work.
const ZSTD_LEVEL: i32 = 3;

/// Raw bytes of a listing's chunks that are looked up at once.
const BATCH_BYTES: usize = 512 * 1024;

/// Takes the JSON of a listing as it is written.
pub(crate) struct ListingSink {
    context: IngestContext,
    stream: u64,
    chunk_params: ChunkParams,
    store_dir: String,
    memory: Arc<BudgetShare>,
    gathered: Vec<u8>,
    /// Bytes that went into `chunks`.
    size: u64,
    chunks: Option<Box<ChunkSink>>,
}

/// A listing whose chunks, if any, are all with the packer.
pub(crate) enum PendingListing {
    Inline(Vec<u8>),
    Chunks { sink: Box<ChunkSink>, size: u64 },
}

impl PendingListing {
    /// Stands for a listing that is not kept.
    pub(crate) fn none() -> Self {
        Self::Inline(Vec::new())
    }
}

impl ListingSink {
    pub(crate) fn new(
        context: IngestContext,
        stream: u64,
        chunk_params: ChunkParams,
        store_dir: &str,
        memory: &Arc<BudgetShare>,
    ) -> Self {
        let (store_dir, memory) = (store_dir.to_owned(), Arc::clone(memory));
        Self { context, stream, chunk_params, store_dir, memory, gathered: Vec::new(), size: 0, chunks: None }
    }

    /// Takes the next bytes; waits while too much is being compressed or stored.
    pub(crate) async fn write(&mut self, json: &[u8]) -> Result<()> {
        if self.chunks.is_none() {
            self.gathered.extend_from_slice(json);
            if self.gathered.len() <= GATHERED_BYTES_MAX {
                return Ok(());
            }
            return self.store_gathered().await;
        }
        self.store(json).await
    }

    /// Takes the last bytes and hands everything to the packer.
    pub(crate) async fn finish_chunks(mut self, rest: &[u8]) -> Result<PendingListing> {
        self.write(rest).await?;
        if self.chunks.is_none() {
            let json = std::mem::take(&mut self.gathered);
            let compress = move || (zstd::bulk::compress(&json, ZSTD_LEVEL), json);
            let (compressed, json) = self.context.cpu.run(compress).await;
            let compressed = compressed.map_err(Error::CompressListing)?;
            if compressed.len() <= INLINE_BYTES_MAX {
                return Ok(PendingListing::Inline(compressed));
            }
            self.gathered = json;
            self.store_gathered().await?;
        }
        let mut sink = self.chunks.expect("store_gathered makes it, here or earlier");
        sink.finish_chunks().await?;
        Ok(PendingListing::Chunks { sink, size: self.size })
    }

    async fn store_gathered(&mut self) -> Result<()> {
        let context = self.context.clone();
        let cutting = Cutting::Chunks(Chunker::new(self.chunk_params, &self.store_dir));
        let sink = ChunkSink::new(context, self.stream, cutting, BATCH_BYTES, &self.memory);
        self.chunks = Some(Box::new(sink));
        let gathered = std::mem::take(&mut self.gathered);
        self.store(&gathered).await
    }

    async fn store(&mut self, json: &[u8]) -> Result<()> {
        let Some(sink) = &mut self.chunks else { return Ok(()) };
        self.size += json.len() as u64;
        // In pieces, so that a batch stays a batch.
        for piece in json.chunks(BATCH_BYTES / 4) {
            sink.write(piece).await?;
        }
        Ok(())
    }
}
