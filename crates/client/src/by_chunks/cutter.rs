//! Reads a NAR from the local store and cuts it into chunks, once, in a thread of its own.
//!
//! Invariants
//! - A NAR that ends well has the hash and the size that Nix told.
//! - A chunk waits in the thread until the push has room for its bytes. The thread itself holds at
//!   most the chunker's buffer and the chunks of one piece of input.

use std::path::PathBuf;
use std::sync::Arc;

use dormer_format::{ChunkId, ChunkParams, Chunker, NarManifest, RawChunk, RecipeBuilder};
use dormer_nix::{NarHash, NarHasher};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::numbers::PathNumber;
use crate::dump::{CaseHack, DumpError, ReaderGone, dump_nar};

/// A NAR to cut.
#[derive(Debug)]
pub(super) struct CutJob {
    /// The path's number in the push.
    pub(super) path: PathNumber,
    /// Where its files are.
    pub(super) file: PathBuf,
    pub(super) case_hack: CaseHack,
    pub(super) nar_hash: NarHash,
    pub(super) nar_size: u64,
    pub(super) params: ChunkParams,
    /// The folder below which store paths become holes.
    pub(super) store_dir: String,
}

/// What a cutting thread tells. The chunks of a NAR come in order, and before its end.
#[derive(Debug)]
pub(super) enum CutEvent {
    Chunk(CutChunk),
    End { path: PathNumber, outcome: Result<NarManifest, DumpError> },
}

/// A chunk that was cut.
#[derive(Debug)]
pub(super) struct CutChunk {
    pub(super) path: PathNumber,
    pub(super) id: ChunkId,
    pub(super) chunk: RawChunk,
    /// The room that the bytes take.
    pub(super) room: OwnedSemaphorePermit,
}

impl CutJob {
    /// Cuts the NAR. `room` counts bytes.
    pub(super) fn run(self, room: &Arc<Semaphore>, runtime: &Handle, events: &mpsc::Sender<CutEvent>) {
        let outcome = self.cut(|path, id, chunk| {
            let bytes = u32::try_from(chunk.bytes.len()).expect("a chunk has some MiB at most");
            let room = Arc::clone(room).acquire_many_owned(bytes);
            let room = runtime.block_on(room).map_err(|_closed| ReaderGone)?;
            let cut = CutEvent::Chunk(CutChunk { path, id, chunk, room });
            events.blocking_send(cut).map_err(|_| ReaderGone)
        });
        // If nobody listens, the push is over.
        let _ = events.blocking_send(CutEvent::End { path: self.path, outcome });
    }

    fn cut(
        &self,
        mut take: impl FnMut(PathNumber, ChunkId, RawChunk) -> Result<(), ReaderGone>,
    ) -> Result<NarManifest, DumpError> {
        let mut hasher = NarHasher::new();
        let mut chunker = Chunker::new(self.params, &self.store_dir);
        let (mut chunks, mut fills) = (Vec::new(), RecipeBuilder::new());
        let mut cut = Vec::new();
        let mut hand_over = |cut: &mut Vec<RawChunk>| {
            for chunk in cut.drain(..) {
                let id = chunk.id();
                chunks.push(id);
                chunk.fills.iter().for_each(|fill| fills.push_fill(fill));
                take(self.path, id, chunk)?;
            }
            Ok(())
        };
        dump_nar(&self.file, self.case_hack, |bytes| {
            hasher.update(bytes);
            chunker.push(bytes, &mut cut);
            hand_over(&mut cut)
        })?;
        chunker.finish(&mut cut);
        hand_over(&mut cut).map_err(|ReaderGone| DumpError::ReaderGone)?;
        let (actual, actual_size) = hasher.finish();
        if (actual, actual_size) != (self.nar_hash, self.nar_size) {
            let (expected, expected_size) = (self.nar_hash, self.nar_size);
            return Err(DumpError::Damaged { expected, expected_size, actual, actual_size });
        }
        Ok(NarManifest { chunks, fills: fills.finish() })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use dormer_nix::nar::{Node, encode_tree};

    use super::*;

    const PARAMS: ChunkParams = ChunkParams { min: 1024, avg: 4096, max: 16 * 1024 };

    fn job(file: PathBuf, nar: &[u8]) -> CutJob {
        CutJob {
            path: 7,
            file,
            case_hack: CaseHack::Keep,
            nar_hash: NarHash::digest(nar),
            nar_size: nar.len() as u64,
            params: PARAMS,
            store_dir: "/nix/store".to_owned(),
        }
    }

    fn contents() -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in 0..20_000_u32 {
            bytes.extend_from_slice(&number.wrapping_mul(2_654_435_761).to_le_bytes());
            if number % 5000 == 0 {
                bytes.extend_from_slice(b"/nix/store/0123456789abcdfghijklmnpqrsvwxyz-x/bin\0");
            }
        }
        bytes
    }

    #[tokio::test]
    async fn the_chunks_and_the_manifest_are_the_nar_within_the_room() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, contents()).unwrap();
        let nar = encode_tree(&Node::File { executable: false, contents: contents() });
        // Room for one chunk and a bit.
        let room = Arc::new(Semaphore::new(20 * 1024));
        let (sender, mut receiver) = mpsc::channel(2);
        let (runtime, cutter_room) = (Handle::current(), Arc::clone(&room));
        let job = job(file, &nar);
        let thread = tokio::task::spawn_blocking(move || job.run(&cutter_room, &runtime, &sender));
        let (mut restored, mut ids, mut fills) = (Vec::new(), Vec::new(), Vec::new());
        let manifest = loop {
            match receiver.recv().await.unwrap() {
                CutEvent::Chunk(cut) => {
                    assert_eq!((cut.path, cut.id), (7, cut.chunk.id()));
                    ids.push(cut.id);
                    fills.extend(cut.chunk.fills.iter().copied());
                    restored.extend(cut.chunk.restore());
                }
                CutEvent::End { outcome, .. } => break outcome.unwrap(),
            }
        };
        thread.await.unwrap();
        assert_eq!(restored, nar);
        assert_eq!(manifest.chunks, ids);
        assert_eq!(manifest.fills.hole_fills().copied().collect::<Vec<_>>(), fills);
        assert_eq!(fills.len(), 4);
        assert_eq!(room.available_permits(), 20 * 1024, "all room is free again");
    }

    #[tokio::test]
    async fn a_damaged_path_and_a_push_that_is_over_end_the_thread() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, contents()).unwrap();
        let room = Arc::new(Semaphore::new(1 << 20));
        let (sender, mut receiver) = mpsc::channel(1000);
        let runtime = Handle::current();
        let (damaged, given_up) = (job(file.clone(), b"another"), job(file, b""));
        let (runtime_too, room_too) = (runtime.clone(), Arc::clone(&room));
        tokio::task::spawn_blocking(move || damaged.run(&room_too, &runtime_too, &sender)).await.unwrap();
        let mut last = None;
        while let Some(event) = receiver.recv().await {
            last = Some(event);
        }
        assert!(matches!(last, Some(CutEvent::End { outcome: Err(DumpError::Damaged { .. }), .. })));

        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        tokio::task::spawn_blocking(move || given_up.run(&room, &runtime, &sender)).await.unwrap();
    }
}
