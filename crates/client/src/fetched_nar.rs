//! A NAR from a static cache on its way to a server: fetched, decompressed, checked, and handed
//! over in pieces.
//!
//! Invariants
//! - A NAR that ends without an error has exactly the hash and size of its narinfo, and the
//!   contents that a content address promises. The stream holds the last piece back until all is
//!   known.
//! - No more than the size in the narinfo is decompressed, within the bounds of
//!   [`crate::decoded_file`].

use std::sync::Arc;

use bytes::Bytes;
use dormer_format::Compression;
use dormer_nix::{ContentProof, FileContentsHasher, NarHash, NarHasher};
use tokio::sync::mpsc;

use crate::decoded_file::DecodedFile;
use crate::fetch_error::FetchError;
use crate::nar_stream::{NarFailure, NarOutcome, NarStream, OpenNar, PIECES_WAITING};
use crate::static_cache::StaticCache;

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
        let mut file = self.open_file().await?;
        let mut hasher = NarHasher::new();
        let mut contents = FileContentsHasher::default();
        let mut held_back: Option<Bytes> = None;
        while hasher.size() <= self.nar_size
            && let Some(piece) = file.next().await?
        {
            hasher.update(&piece);
            if matches!(self.proof, Some(ContentProof::File(_))) {
                contents.update(&piece);
            }
            // Nothing goes before the piece behind it is read: the last one waits for the verdict.
            if let Some(previous) = held_back.replace(piece) {
                sender.send(Ok(previous)).await.map_err(|_| FetchError::ReaderGone)?;
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

    async fn open_file(&self) -> Result<DecodedFile, FetchError> {
        let name = if self.compression.is_empty() { "none" } else { &self.compression };
        let unknown = || FetchError::Compression { name: self.compression.clone() };
        let compression = Compression::from_name(name).ok_or_else(unknown)?;
        DecodedFile::open(&self.url, self.cache.open(&self.url).await?, compression).await
    }
}
