//! Compresses chunks on several threads, in batches, with contexts that are used again.

use std::sync::{Mutex, PoisonError};

use dormer_format::{ChunkId, Encoder, RawChunk, StoredChunk};
use tokio::sync::OwnedSemaphorePermit;

use super::TargetSet;

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
