//! From the file system to NAR bytes: read by a blocking thread, checked while it reads, handed over in pieces.
//!
//! `nix-store --dump` would do the first half, at the price of a process and a pipe for each path.
//!
//! Invariants
//! - A NAR that ends without an error has exactly the expected hash and size; its last piece is held back until that is
//!   known.
//! - Between the reading thread and the network lie at most [`NAR_STREAM_BYTES_MAX`] bytes.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use dormer_nix::nar::{NarWriteError, NarWriter};
use dormer_nix::{NarHash, NarHasher};
use futures::Stream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Bytes in one piece: large enough that a piece's overhead (a wake-up, a chunk header) does not count.
const PIECE_BYTES: usize = 256 * 1024;

/// Pieces that wait for the network.
const PIECES_WAITING: usize = 4;

/// Most bytes of one NAR in memory, 2.25 MiB: the pieces that wait, the read buffer, one piece being filled, one held back,
/// one that finds no room and one being sent.
pub const NAR_STREAM_BYTES_MAX: usize = (PIECES_WAITING + 5) * PIECE_BYTES;

/// What Nix on macOS appends to names that differ from another only in case.
const CASE_HACK_SUFFIX: &[u8] = b"~nix~case~hack~";

/// Whether the store's file system holds Nix's case hack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaseHack {
    /// Names are what they are.
    Keep,
    /// `~nix~case~hack~N` at the end of a name is Nix's own and not part of the NAR.
    Strip,
}

impl Default for CaseHack {
    /// What Nix does by itself on this system.
    fn default() -> Self {
        if cfg!(target_os = "macos") { Self::Strip } else { Self::Keep }
    }
}

/// Why a path could not be turned into its NAR.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The file system failed.
    #[error("reading {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A device, a socket or a pipe.
    #[error("{} is neither a file, a folder nor a symbolic link", path.display())]
    FileType {
        /// What it is.
        path: PathBuf,
    },
    /// Two names are the same once the case hack is taken off.
    #[error("{} and another name are the same without the case hack", path.display())]
    CaseHackCollision {
        /// One of the two.
        path: PathBuf,
    },
    /// A file changed its size while it was read, or a name or a target is impossible.
    #[error("packing {}", path.display())]
    Pack {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        source: NarWriteError<ReaderGone>,
    },
    /// What is on the disk is not what the store's database says: the path is damaged.
    #[error(
        "the path is damaged: it should have hash {expected} and {expected_size} bytes, but has {actual} and {actual_size}"
    )]
    Damaged {
        /// Hash in the database.
        expected: NarHash,
        /// Size in the database.
        expected_size: u64,
        /// Hash of what was read.
        actual: NarHash,
        /// Size of what was read.
        actual_size: u64,
    },
    /// Whoever took the bytes does not want any more.
    #[error("the reader went away")]
    ReaderGone,
    /// The reading thread panicked.
    #[error("the thread that reads the store failed")]
    Thread(#[source] tokio::task::JoinError),
}

/// The sink does not take more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the reader went away")]
pub struct ReaderGone;

/// Writes the NAR of `path` into `sink`, piece by piece, and says how many bytes it has.
pub fn dump_nar(
    path: &Path,
    case_hack: CaseHack,
    sink: impl FnMut(&[u8]) -> Result<(), ReaderGone>,
) -> Result<u64, DumpError> {
    let mut dump = Dump {
        writer: NarWriter::new(sink),
        case_hack,
        path: path.to_owned(),
        buffer: vec![0; PIECE_BYTES].into_boxed_slice(),
    };
    dump.node()?;
    let Dump { writer, path, .. } = dump;
    writer.finish().map_err(|source| packing(&path, source))
}

struct Dump<F> {
    writer: NarWriter<F>,
    case_hack: CaseHack,
    /// What is being read; names are pushed and popped as the walk goes.
    path: PathBuf,
    buffer: Box<[u8]>,
}

impl<F: FnMut(&[u8]) -> Result<(), ReaderGone>> Dump<F> {
    /// Recursion is bounded: the system refuses paths of more than 4,096 bytes, which is 2,048 folders.
    fn node(&mut self) -> Result<(), DumpError> {
        let metadata = fs::symlink_metadata(&self.path).map_err(|source| self.reading(source))?;
        let file_type = metadata.file_type();
        if file_type.is_dir() {
            self.directory()
        } else if file_type.is_symlink() {
            let target = fs::read_link(&self.path).map_err(|source| self.reading(source))?;
            let written = self.writer.symlink(target.as_os_str().as_encoded_bytes());
            self.pack(written)
        } else if file_type.is_file() {
            self.file()
        } else {
            Err(DumpError::FileType { path: self.path.clone() })
        }
    }

    fn directory(&mut self) -> Result<(), DumpError> {
        let names = self.names()?;
        let written = self.writer.start_directory();
        self.pack(written)?;
        for (entry_name, file_name) in names {
            let written = self.writer.entry(&entry_name);
            self.pack(written)?;
            self.path.push(file_name);
            self.node()?;
            self.path.pop();
        }
        let written = self.writer.end_directory();
        self.pack(written)
    }

    /// Names in the NAR and names on the disk, in the order of the former.
    fn names(&self) -> Result<Vec<(Vec<u8>, OsString)>, DumpError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(|source| self.reading(source))? {
            let file_name = entry.map_err(|source| self.reading(source))?.file_name();
            names.push((self.entry_name(file_name.as_encoded_bytes()).to_vec(), file_name));
        }
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(DumpError::CaseHackCollision { path: self.path.join(&pair[1].1) }),
            None => Ok(names),
        }
    }

    /// Nix cuts a name at the first occurrence of the suffix, whatever follows it.
    fn entry_name<'n>(&self, file_name: &'n [u8]) -> &'n [u8] {
        let hack = match self.case_hack {
            CaseHack::Keep => None,
            CaseHack::Strip => {
                file_name.windows(CASE_HACK_SUFFIX.len()).position(|window| window == CASE_HACK_SUFFIX)
            }
        };
        hack.map_or(file_name, |end| &file_name[..end])
    }

    fn file(&mut self) -> Result<(), DumpError> {
        let mut file = File::open(&self.path).map_err(|source| self.reading(source))?;
        // Of the opened file: the name may lead elsewhere by now.
        let metadata = file.metadata().map_err(|source| self.reading(source))?;
        let written = self.writer.start_file(metadata.len(), is_executable(&metadata));
        self.pack(written)?;
        // To the end of the file, not to its announced size: the writer notices one that grew or shrank.
        loop {
            match file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => {
                    let written = self.writer.contents(&self.buffer[..read]);
                    self.pack(written)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.reading(source)),
            }
        }
        let written = self.writer.end_file();
        self.pack(written)
    }

    fn reading(&self, source: io::Error) -> DumpError {
        DumpError::Read { path: self.path.clone(), source }
    }

    fn pack(&self, written: Result<(), NarWriteError<ReaderGone>>) -> Result<(), DumpError> {
        written.map_err(|source| packing(&self.path, source))
    }
}

fn packing(path: &Path, source: NarWriteError<ReaderGone>) -> DumpError {
    match source {
        NarWriteError::Sink(ReaderGone) => DumpError::ReaderGone,
        source => DumpError::Pack { path: path.to_owned(), source },
    }
}

#[cfg(unix)]
fn is_executable(metadata: &Metadata) -> bool {
    // As Nix: the owner's bit alone.
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o100 != 0
}

#[cfg(not(unix))]
fn is_executable(_: &Metadata) -> bool {
    false
}

/// A NAR to be read from the disk, as often as it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarSource {
    /// The full path.
    pub path: PathBuf,
    /// Hash that it must have.
    pub nar_hash: NarHash,
    /// Size that it must have, in bytes.
    pub nar_size: u64,
    /// How names are read.
    pub case_hack: CaseHack,
}

impl NarSource {
    /// Starts a thread that reads the NAR. The thread ends by itself when the stream is dropped.
    pub(crate) fn open(&self) -> (NarStream, NarOutcome) {
        let (sender, receiver) = mpsc::channel(PIECES_WAITING);
        let source = self.clone();
        let thread = tokio::task::spawn_blocking(move || source.read_into(&sender));
        (NarStream { receiver }, NarOutcome { thread })
    }

    fn read_into(&self, sender: &mpsc::Sender<io::Result<Bytes>>) -> Result<(), DumpError> {
        let outcome = self.read_pieces(|piece| sender.blocking_send(Ok(piece)).map_err(|_| ReaderGone));
        if let Err(error) = &outcome {
            // Breaks the request off instead of ending it; if nobody listens, it is broken already.
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

/// The pieces of a NAR as they are read. Ends with an error if the NAR is not what it should be.
pub(crate) struct NarStream {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
}

impl Stream for NarStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(context)
    }
}

/// How the reading ended; to be asked for after the stream is gone.
pub(crate) struct NarOutcome {
    thread: JoinHandle<Result<(), DumpError>>,
}

impl NarOutcome {
    /// The error that is the disk's fault; that the reader went away is not.
    pub(crate) async fn failure(self) -> Option<DumpError> {
        match self.thread.await {
            Ok(Ok(()) | Err(DumpError::ReaderGone)) => None,
            Ok(Err(error)) => Some(error),
            Err(error) => Some(DumpError::Thread(error)),
        }
    }
}
