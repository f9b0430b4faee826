//! A compressed file of a static cache, decoded step by step on threads that may block.
//!
//! The source chooses the bytes, so the bounds are those of the server for uploads
//! ([`dormer_format::StreamDecoder`]): a window of 128 MiB, and at most a thousand members in a row
//! that decode to nothing.

use std::io;

use bytes::Bytes;
use dormer_format::{COMPRESSED_HEAD_BYTES, Compression, DecodeStep, StreamDecoder};
use futures::StreamExt as _;

use crate::fetch_error::FetchError;
use crate::static_cache::{FileStream, IDLE_TIMEOUT};

/// A file being decoded.
pub(crate) struct DecodedFile {
    name: String,
    compressed: FileStream,
    /// `None` while a job decodes, and after a job that nobody waited for.
    decoder: Option<StreamDecoder>,
}

impl DecodedFile {
    /// Reads the head of the file, and begins to decode.
    pub(crate) async fn open(
        name: &str,
        compressed: FileStream,
        compression: Compression,
    ) -> Result<Self, FetchError> {
        let mut file = Self { name: name.to_owned(), compressed, decoder: None };
        let mut head = Vec::new();
        while compression != Compression::None && head.len() < COMPRESSED_HEAD_BYTES {
            let Some(piece) = file.receive().await? else { break };
            head.extend_from_slice(&piece);
        }
        let bytes =
            compression.decoder_bytes(&head).map_err(|error| file.undecodable(io::Error::other(error)))?;
        let mut decoder = compression.decoder(bytes);
        if !head.is_empty() {
            decoder.feed(Some(head.into()));
        }
        file.decoder = Some(decoder);
        Ok(file)
    }

    /// The next decoded bytes, at least one; `None` when the file has ended well.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            let given_up = || io::Error::other("the decoder was given up");
            let Some(mut decoder) = self.decoder.take() else { return Err(self.undecodable(given_up())) };
            if decoder.wants_input() {
                decoder.feed(self.receive().await?);
            }
            let step = if decoder.is_plain() {
                decoder.step()
            } else {
                let job = tokio::task::spawn_blocking(move || (decoder.step(), decoder));
                let (step, back) = job.await.map_err(FetchError::Task)?;
                decoder = back;
                step
            };
            self.decoder = Some(decoder);
            match step.map_err(|error| self.undecodable(error))? {
                DecodeStep::Bytes(bytes) => return Ok(Some(bytes)),
                DecodeStep::Nothing => {}
                DecodeStep::End => return Ok(None),
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, FetchError> {
        let stalled = |_| FetchError::Stalled { name: self.name.clone(), seconds: IDLE_TIMEOUT.as_secs() };
        let piece = tokio::time::timeout(IDLE_TIMEOUT, self.compressed.next()).await.map_err(stalled)?;
        piece.transpose().map_err(|error| {
            if error.kind() == io::ErrorKind::ConnectionAborted {
                FetchError::Source { name: self.name.clone(), is_passing: true, source: Box::new(error) }
            } else {
                self.undecodable(error)
            }
        })
    }

    fn undecodable(&self, source: io::Error) -> FetchError {
        FetchError::Decode { name: self.name.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use futures::stream;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const PLAIN: &[u8] = include_bytes!("decoded_file.rs");

    /// With each codec, as `dormer import` knows it by its name in a narinfo.
    async fn encoded(compression: Compression, plain: &[u8]) -> Vec<u8> {
        use async_compression::tokio::write::{
            BrotliEncoder, BzEncoder, GzipEncoder, Lz4Encoder, LzmaEncoder, XzEncoder, ZstdEncoder,
        };
        macro_rules! with {
            ($encoder:ident) => {{
                let mut encoder = $encoder::new(Vec::new());
                encoder.write_all(plain).await.unwrap();
                encoder.shutdown().await.unwrap();
                encoder.into_inner()
            }};
        }
        match compression {
            Compression::None => plain.to_vec(),
            Compression::Xz => with!(XzEncoder),
            Compression::Zstd => with!(ZstdEncoder),
            Compression::Bzip2 => with!(BzEncoder),
            Compression::Gzip => with!(GzipEncoder),
            Compression::Brotli => with!(BrotliEncoder),
            Compression::Lz4 => with!(Lz4Encoder),
            Compression::Lzma => with!(LzmaEncoder),
        }
    }

    async fn decoded(compression: Compression, bytes: Vec<u8>) -> Result<Vec<u8>, FetchError> {
        let pieces: Vec<_> = bytes.chunks(10_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let stream = stream::iter(pieces).boxed();
        let mut file = DecodedFile::open("nar/x", stream, compression).await?;
        let mut plain = Vec::new();
        while let Some(piece) = file.next().await? {
            plain.extend_from_slice(&piece);
        }
        Ok(plain)
    }

    #[tokio::test]
    async fn every_compression_is_decoded_within_the_bounds_of_the_server() {
        for compression in Compression::ALL {
            let bytes = encoded(compression, PLAIN).await;
            assert_eq!(decoded(compression, bytes.clone()).await.unwrap(), PLAIN, "{compression:?}");
            if compression == Compression::None {
                continue;
            }
            let cut = bytes[..bytes.len() - 1].to_vec();
            assert!(decoded(compression, cut).await.is_err(), "{compression:?}");
            if compression == Compression::Brotli {
                continue;
            }
            let empty = encoded(compression, b"").await;
            let error = decoded(compression, [empty.repeat(1001), bytes].concat()).await.unwrap_err();
            let FetchError::Decode { source, .. } = error else { panic!("{compression:?}: {error}") };
            assert!(source.to_string().contains("decode to nothing"), "{compression:?}: {source}");
        }
        // A zstd frame with a window of 256 MiB.
        let error = decoded(Compression::Zstd, b"\x28\xb5\x2f\xfd\x00\x90".to_vec()).await.unwrap_err();
        assert!(dormer_nix::with_causes(&error).contains("more than allowed"), "{error:?}");
    }

    /// The run time of these tests has one thread.
    #[tokio::test]
    async fn timers_are_on_time_beside_every_codec() {
        const TICK: Duration = Duration::from_millis(2);
        for compression in Compression::ALL {
            let (empty, some) = (encoded(compression, b"").await, encoded(compression, PLAIN).await);
            let costly = match compression {
                Compression::Brotli | Compression::None => some,
                _ => [empty.repeat(1000), some].concat().repeat(5),
            };
            let decoding = tokio::spawn(decoded(compression, costly));
            let mut latest = Duration::ZERO;
            while !decoding.is_finished() {
                let due = Instant::now() + TICK;
                tokio::time::sleep(TICK).await;
                latest = latest.max(due.elapsed());
            }
            decoding.await.unwrap().unwrap();
            assert!(latest < Duration::from_millis(250), "{compression:?}: a timer was {latest:?} late");
        }
    }
}
