//! Compresses chunks on several threads, in batches, with contexts that are used again.

use std::sync::{Mutex, PoisonError};

use dormer_format::{ChunkId, Encoder, RawChunk, StoredChunk, encoder_bytes_max};
use tokio::sync::OwnedSemaphorePermit;

use super::numbers::TargetSet;

/// Most bytes that the contexts of all threads take, unless one alone takes more.
const CONTEXT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How many of `threads` threads may compress at once, so that their contexts fit.
pub(super) fn encoding_threads(threads: usize, level: i32, chunk_max: u32) -> usize {
    threads.min(CONTEXT_BYTES_MAX / encoder_bytes_max(level, chunk_max)).max(1)
}

/// A chunk that some targets lack.
#[derive(Debug)]
pub(super) struct LackedChunk {
    pub(super) id: ChunkId,
    pub(super) chunk: RawChunk,
    pub(super) targets: TargetSet,
    /// The room that the raw bytes take.
    pub(super) room: OwnedSemaphorePermit,
}

/// The contexts that no thread uses now.
#[derive(Debug)]
pub(super) struct Encoders {
    level: i32,
    idle: Mutex<Vec<Encoder>>,
}

impl Encoders {
    pub(super) fn new(level: i32) -> Self {
        Self { level, idle: Mutex::new(Vec::new()) }
    }

    /// Compresses a batch. The room of a chunk's raw bytes is free when the chunk is compressed.
    pub(super) fn encode(
        &self,
        batch: Vec<LackedChunk>,
    ) -> Result<Vec<(StoredChunk, TargetSet)>, dormer_format::Error> {
        let idle = self.lock().pop();
        let mut encoder = match idle {
            Some(encoder) => encoder,
            None => Encoder::new(self.level)?,
        };
        let encode = |LackedChunk { id, chunk, targets, room }| {
            let stored = encoder.encode_as(id, &chunk)?;
            drop((chunk, room));
            Ok((stored, targets))
        };
        let encoded = batch.into_iter().map(encode).collect();
        self.lock().push(encoder);
        encoded
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Encoder>> {
        // A push or a pop cannot panic half-way.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_threads_compress_if_each_takes_more_memory() {
        const CHUNK_MAX: u32 = 512 * 1024;
        assert_eq!(encoding_threads(4, 6, CHUNK_MAX), 4, "the usual case is not held back");
        assert_eq!(encoding_threads(1, 22, 4 * 1024 * 1024), 1);
        assert_eq!(encoding_threads(256, 22, 4 * 1024 * 1024), 1, "one alone may take more");
        for level in 1..=22 {
            let threads = encoding_threads(256, level, CHUNK_MAX);
            assert!(threads >= 2 && threads * encoder_bytes_max(level, CHUNK_MAX) <= CONTEXT_BYTES_MAX);
        }
    }
}
