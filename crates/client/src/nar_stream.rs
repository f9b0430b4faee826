//! A NAR on its way to the network: a blocking thread reads and checks it, and hands it over in
//! pieces.
//!
//! Invariants
//! - A NAR that ends without an error has exactly the expected hash and size. The stream holds the
//!   last piece back until both are known.
//! - At most [`NAR_STREAM_BYTES_MAX`] bytes lie between the reading thread and the network.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use dormer_nix::{NarHash, NarHasher};
use futures::Stream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::dump::{CaseHack, DumpError, PIECE_BYTES, ReaderGone, dump_nar};
use crate::fetch_error::FetchError;

/// Number of pieces that wait for the network.
pub(crate) const PIECES_WAITING: usize = 4;

/// Most bytes of one NAR in memory, 2.25 MiB: the waiting pieces, the read buffer, one piece being
/// filled, one held back, one without room in the channel and one being sent.
pub const NAR_STREAM_BYTES_MAX: usize = (PIECES_WAITING + 5) * PIECE_BYTES;

/// A NAR on the disk, which can be read repeatedly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarSource {
    /// The full path.
    pub path: PathBuf,
    /// The expected hash.
    pub nar_hash: NarHash,
    /// The expected size in bytes.
    pub nar_size: u64,
    /// How the file names are read.
    pub case_hack: CaseHack,
}

/// A NAR that can be sent, again and again if connections break.
pub trait OpenNar: Send + Sync {
    /// Its name in messages.
    fn name(&self) -> String;
    /// Starts to read the NAR in a thread or task. That ends when the caller awaits or drops the
    /// outcome, even if a stalled connection still holds the stream.
    fn open(&self) -> (NarStream, NarOutcome);
}

/// Why a NAR could not be read to its end.
#[derive(Debug)]
pub enum NarFailure {
    /// The local store.
    Dump(DumpError),
    /// A static cache.
    Fetch(FetchError),
}

impl OpenNar for NarSource {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn open(&self) -> (NarStream, NarOutcome) {
        let (sender, receiver) = mpsc::channel(PIECES_WAITING);
        let source = self.clone();
        let thread = tokio::task::spawn_blocking(move || source.read_into(&sender).map_err(NarFailure::Dump));
        NarStream::new(receiver, thread)
    }
}

impl NarSource {
    fn read_into(&self, sender: &mpsc::Sender<io::Result<Bytes>>) -> Result<(), DumpError> {
        let outcome = self.read_pieces(|piece| sender.blocking_send(Ok(piece)).map_err(|_| ReaderGone));
        if let Err(error) = &outcome {
            // Breaks the request off instead of ending it. If nobody listens, the request is
            // already broken.
            let _ = sender.blocking_send(Err(io::Error::other(error.to_string())));
        }
        outcome
    }

    fn read_pieces(&self, mut send: impl FnMut(Bytes) -> Result<(), ReaderGone>) -> Result<(), DumpError> {
        let mut hasher = NarHasher::new();
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let mut held_back: Option<Bytes> = None;
        dump_nar(&self.path, self.case_hack, |mut bytes| {
            hasher.update(bytes);
            while !bytes.is_empty() {
                let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - piece.len()));
                piece.extend_from_slice(now);
                bytes = later;
                if piece.len() == PIECE_BYTES {
                    let full = std::mem::replace(&mut piece, Vec::with_capacity(PIECE_BYTES));
                    if let Some(previous) = held_back.replace(full.into()) {
                        send(previous)?;
                    }
                }
            }
            Ok(())
        })?;
        let (actual, actual_size) = hasher.finish();
        if (actual, actual_size) != (self.nar_hash, self.nar_size) {
            return Err(DumpError::Damaged {
                expected: self.nar_hash,
                expected_size: self.nar_size,
                actual,
                actual_size,
            });
        }
        for last in held_back.into_iter().chain(Some(piece.into())) {
            if !last.is_empty() {
                send(last).map_err(|ReaderGone| DumpError::ReaderGone)?;
            }
        }
        Ok(())
    }
}

/// The source of the pieces, until it is closed.
type Pieces = Arc<Mutex<Option<mpsc::Receiver<io::Result<Bytes>>>>>;

/// The pieces of a NAR, as they are read. Ends with an error if the NAR is not the expected one, or
/// if it was given up.
#[derive(Debug)]
pub struct NarStream {
    pieces: Pieces,
}

impl NarStream {
    /// A stream of what the reader sends, and the reader's outcome.
    pub(crate) fn new(
        receiver: mpsc::Receiver<io::Result<Bytes>>,
        reader: JoinHandle<Result<(), NarFailure>>,
    ) -> (Self, NarOutcome) {
        let pieces: Pieces = Arc::new(Mutex::new(Some(receiver)));
        (Self { pieces: Arc::clone(&pieces) }, NarOutcome { reader, closer: Closer(pieces) })
    }
}

impl Stream for NarStream {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut *lock(&self.pieces) {
            Some(receiver) => receiver.poll_recv(context),
            // Never a clean end, which would turn a part into a whole body.
            None => Poll::Ready(Some(Err(io::ErrorKind::BrokenPipe.into()))),
        }
    }
}

/// The outcome of the reading. Await it when nobody needs the stream any more.
#[derive(Debug)]
pub struct NarOutcome {
    reader: JoinHandle<Result<(), NarFailure>>,
    closer: Closer,
}

impl NarOutcome {
    /// The error of the disk or of the source. A reader that went away is not an error.
    pub(crate) async fn failure(self) -> Option<NarFailure> {
        drop(self.closer);
        match self.reader.await {
            Ok(
                Ok(())
                | Err(NarFailure::Dump(DumpError::ReaderGone) | NarFailure::Fetch(FetchError::ReaderGone)),
            ) => None,
            Ok(Err(error)) => Some(error),
            Err(error) => Some(NarFailure::Dump(DumpError::Thread(error))),
        }
    }
}

/// Takes the pieces away from the stream. If the peer stops reading, an HTTP connection keeps its
/// body. The thread would then wait for room in the channel, and the process could not end.
#[derive(Debug)]
struct Closer(Pieces);

impl Drop for Closer {
    fn drop(&mut self) {
        *lock(&self.0) = None;
    }
}

fn lock(pieces: &Pieces) -> MutexGuard<'_, Option<mpsc::Receiver<io::Result<Bytes>>>> {
    // No code in here panics half-way.
    pieces.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;

    use dormer_nix::nar::{Node, encode_tree};
    use futures::StreamExt as _;

    use super::*;

    fn nar_of(contents: &[u8]) -> Vec<u8> {
        encode_tree(&Node::File { executable: false, contents: contents.to_vec() })
    }

    fn source(path: &Path, nar: &[u8]) -> NarSource {
        NarSource {
            path: path.to_owned(),
            nar_hash: NarHash::digest(nar),
            nar_size: nar.len() as u64,
            case_hack: CaseHack::Keep,
        }
    }

    async fn collect(source: &NarSource) -> (Vec<u8>, Option<io::Error>, Option<NarFailure>) {
        let (mut stream, outcome) = source.open();
        let (mut nar, mut broken) = (Vec::new(), None);
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(piece) => nar.extend_from_slice(&piece),
                Err(error) => broken = Some(error),
            }
        }
        (nar, broken, outcome.failure().await)
    }

    #[tokio::test]
    async fn a_stream_has_the_whole_nar_whatever_its_size() {
        let folder = tempfile::tempdir().unwrap();
        // Lengths around the limits of pieces. A NAR of one file adds 112 bytes and padding.
        for length in [0, 1, PIECE_BYTES - 113, PIECE_BYTES - 112, PIECE_BYTES, PIECE_BYTES * 5 + 3] {
            let path = folder.path().join(length.to_string());
            fs::write(&path, vec![3; length]).unwrap();
            let nar = nar_of(&vec![3; length]);
            let (got, broken, failure) = collect(&source(&path, &nar)).await;
            assert!(got == nar && broken.is_none() && failure.is_none(), "{length}: {broken:?} {failure:?}");
        }
    }

    #[tokio::test]
    async fn a_damaged_path_is_named_and_never_arrives_whole() {
        let folder = tempfile::tempdir().unwrap();
        for length in [10, PIECE_BYTES - 112, PIECE_BYTES * 3] {
            let path = folder.path().join(length.to_string());
            let mut contents = vec![3; length];
            let nar = nar_of(&contents);
            contents[length / 2] ^= 1;
            fs::write(&path, &contents).unwrap();
            let (got, broken, failure) = collect(&source(&path, &nar)).await;
            assert!(got.len() < nar.len(), "{length}: all bytes were sent");
            assert!(broken.is_some());
            let expected = NarHash::digest(&nar);
            assert!(
                matches!(failure, Some(NarFailure::Dump(DumpError::Damaged { expected: e, .. })) if e == expected),
                "{failure:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_dropped_stream_ends_the_thread_without_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        let large = File::create(&path).unwrap();
        large.set_len(1 << 40).unwrap();
        let source =
            NarSource { path, nar_hash: NarHash::digest(b""), nar_size: 0, case_hack: CaseHack::Keep };
        let (mut stream, outcome) = source.open();
        assert!(stream.next().await.unwrap().is_ok());
        drop(stream);
        assert!(outcome.failure().await.is_none());
    }

    #[tokio::test]
    async fn a_stream_that_is_given_up_ends_the_thread_and_not_cleanly() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let source =
            NarSource { path, nar_hash: NarHash::digest(b""), nar_size: 0, case_hack: CaseHack::Keep };
        let (mut stream, outcome) = source.open();
        assert!(stream.next().await.unwrap().is_ok());
        assert!(outcome.failure().await.is_none());
        assert!(stream.next().await.unwrap().is_err());
    }
}
