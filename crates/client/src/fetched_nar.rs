//! A NAR from a static cache on its way to a server: fetched, decompressed, checked, and handed
//! over in pieces.
//!
//! Invariants
//! - A NAR that ends without an error has exactly the hash and size of its narinfo, and the
//!   contents that a content address promises. The stream holds the last piece back until all is
//!   known.
//! - No more than the size in the narinfo is decompressed. The decoders' windows are bounded: 128
//!   MiB for xz and zstd, which is what `xz -9` and `zstd --long` need.

use std::sync::Arc;

use async_compression::tokio::bufread::{
    BrotliDecoder, BzDecoder, GzipDecoder, Lz4Decoder, XzDecoder, ZstdDecoder,
};
use async_compression::zstd::DParameter;
use bytes::Bytes;
use dormer_nix::{ContentProof, FileContentsHasher, NarHash, NarHasher};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use crate::dump::PIECE_BYTES;
use crate::fetch_error::FetchError;
use crate::nar_stream::{NarFailure, NarOutcome, NarStream, OpenNar, PIECES_WAITING};
use crate::static_cache::{FileStream, IDLE_TIMEOUT, StaticCache};

/// Largest window of a decoder: 27 bits.
const WINDOW_LOG_MAX: u32 = 27;

/// A NAR in a static cache. It can be fetched repeatedly.
#[derive(Debug, Clone)]
pub(crate) struct FetchedNar {
    pub(crate) cache: Arc<dyn StaticCache>,
    /// URL of the file in the narinfo.
    pub(crate) url: String,
    /// Its compression in the narinfo.
    pub(crate) compression: String,
    pub(crate) nar_hash: NarHash,
    pub(crate) nar_size: u64,
    /// What the contents have to be for a path that nobody signed.
    pub(crate) proof: Option<ContentProof>,
}

impl OpenNar for FetchedNar {
    fn name(&self) -> String {
        self.url.clone()
    }

    fn open(&self) -> (NarStream, NarOutcome) {
        let (sender, receiver) = mpsc::channel(PIECES_WAITING);
        let nar = self.clone();
        let task = tokio::spawn(async move {
            let outcome = nar.fetch_into(&sender).await;
            if let Err(error) = &outcome {
                // Breaks the request off instead of ending it. If nobody listens, the request is
                // already broken.
                let _ = sender.send(Err(std::io::Error::other(error.to_string()))).await;
            }
            outcome.map_err(NarFailure::Fetch)
        });
        NarStream::new(receiver, task)
    }
}

impl FetchedNar {
    async fn fetch_into(&self, sender: &mpsc::Sender<std::io::Result<Bytes>>) -> Result<(), FetchError> {
        let mut reader = self.decode(self.cache.open(&self.url).await?)?;
        let mut hasher = NarHasher::new();
        let mut contents = FileContentsHasher::default();
        let mut held_back: Option<Bytes> = None;
        loop {
            let piece = self.read_piece(&mut reader).await?;
            hasher.update(&piece);
            if matches!(self.proof, Some(ContentProof::File(_))) {
                contents.update(&piece);
            }
            let is_last = piece.len() < PIECE_BYTES;
            // Nothing goes before the piece behind it is read: the last one waits for the verdict.
            if !piece.is_empty()
                && let Some(previous) = held_back.replace(piece.into())
            {
                sender.send(Ok(previous)).await.map_err(|_| FetchError::ReaderGone)?;
            }
            if is_last || hasher.size() > self.nar_size {
                break;
            }
        }
        let (actual, actual_size) = hasher.finish();
        if (actual, actual_size) != (self.nar_hash, self.nar_size) {
            return Err(FetchError::Damaged {
                expected: self.nar_hash,
                expected_size: self.nar_size,
                actual,
                actual_size,
            });
        }
        let proven = match self.proof {
            None => true,
            Some(ContentProof::Nar(hash)) => hash == actual,
            Some(ContentProof::File(hash)) => contents.finish() == Some(hash),
        };
        if !proven {
            return Err(FetchError::OtherContents);
        }
        match held_back {
            Some(last) => sender.send(Ok(last)).await.map_err(|_| FetchError::ReaderGone),
            None => Ok(()),
        }
    }

    /// Reads until a piece is full or the NAR ends.
    async fn read_piece(&self, reader: &mut Reader) -> Result<Vec<u8>, FetchError> {
        let mut piece = vec![0; PIECE_BYTES];
        let mut filled = 0;
        while filled < piece.len() {
            let read = tokio::time::timeout(IDLE_TIMEOUT, reader.read(&mut piece[filled..])).await;
            let stalled = |_| FetchError::Stalled { name: self.url.clone(), seconds: IDLE_TIMEOUT.as_secs() };
            match read.map_err(stalled)? {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {
                    return Err(FetchError::Source {
                        name: self.url.clone(),
                        is_passing: true,
                        source: Box::new(error),
                    });
                }
                Err(source) => return Err(FetchError::Decode { name: self.url.clone(), source }),
            }
        }
        piece.truncate(filled);
        Ok(piece)
    }

    fn decode(&self, stream: FileStream) -> Result<Reader, FetchError> {
        let input = StreamReader::new(stream);
        macro_rules! members {
            ($decoder:expr) => {{
                let mut decoder = $decoder;
                decoder.multiple_members(true);
                Box::new(decoder) as Reader
            }};
        }
        Ok(match self.compression.as_str() {
            "none" | "" => Box::new(input),
            "xz" => members!(XzDecoder::with_mem_limit(input, 1 << (WINDOW_LOG_MAX + 1))),
            "zstd" => {
                members!(ZstdDecoder::with_params(input, &[DParameter::window_log_max(WINDOW_LOG_MAX)]))
            }
            "bzip2" => members!(BzDecoder::new(input)),
            "gzip" => members!(GzipDecoder::new(input)),
            "br" => Box::new(BrotliDecoder::new(input)),
            "lz4" => members!(Lz4Decoder::new(input)),
            name => return Err(FetchError::Compression { name: name.to_owned() }),
        })
    }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
