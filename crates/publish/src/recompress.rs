//! NARs as one frame of another zstd level: smaller at the edge, for CPU that is spent once.
//!
//! Bytes under a NAR's URL never change, so what is recompressed has a tag of its own: it follows
//! from the lab's tag, the level and zstd's version. Another level or a newer zstd is another file.

use std::io::{self, Write as _};
use std::pin::Pin;

use bytes::Bytes;
use dormer_format::EncodingTag;
use dormer_nix::NarHash;
use futures::{Stream, StreamExt as _};
use zstd::stream::write::{Decoder, Encoder};

use crate::{Error, Result};

/// Bytes to be sent.
pub(crate) type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// Largest window of levels up to 19, in bytes.
const WINDOW_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// What level 19 takes for each byte of its window (measured: 93 MiB at 8 MiB); others take less.
const BYTES_PER_WINDOW_BYTE: u64 = 13;

/// The tag of a NAR that has this one in the lab.
pub(crate) fn recompressed_tag(tag: EncodingTag, level: i32) -> EncodingTag {
    let named = format!("dormer recompressed {tag} at {level} by zstd {}", zstd::zstd_safe::version_number());
    let digest = NarHash::digest(named.as_bytes());
    EncodingTag::from_bytes(*digest.as_bytes().first_chunk().expect("32 bytes have 16"))
}

/// Memory that recompressing a NAR of this size takes, in bytes.
pub(crate) fn memory_bytes(nar_size: u64) -> u64 {
    // And the decoder's windows and buffers.
    BYTES_PER_WINDOW_BYTE * nar_size.clamp(1, WINDOW_BYTES_MAX).next_power_of_two() + 2 * 1024 * 1024
}

/// The most that a NAR of this size can come to, in bytes: incompressible blocks are stored with
/// three bytes each.
pub(crate) fn size_max(nar_size: u64) -> u64 {
    nar_size + nar_size / 256 + 1024
}

/// Decodes zstd frames and encodes what was in them as one frame.
pub(crate) fn recompress(
    frames: impl Stream<Item = dormer_engine::Result<Bytes>> + Send + 'static,
    level: i32,
    nar_size: u64,
) -> Pieces {
    let begin = async move {
        let recompressor = Recompressor::new(level, nar_size)?;
        Ok::<_, Error>(futures::stream::try_unfold(Some((Box::pin(frames), recompressor)), step))
    };
    futures::stream::once(begin)
        .map(|begun| match begun {
            Ok(pieces) => pieces.boxed(),
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        })
        .flatten()
        .boxed()
}

type State<S> = Option<(Pin<Box<S>>, Recompressor)>;

async fn step<S>(state: State<S>) -> Result<Option<(Bytes, State<S>)>>
where
    S: Stream<Item = dormer_engine::Result<Bytes>> + Send,
{
    let Some((mut frames, mut recompressor)) = state else { return Ok(None) };
    match frames.next().await.transpose()? {
        Some(bytes) => {
            // Up to a second of work at high levels: leases are renewed on the same threads.
            let work = move || recompressor.push(&bytes).map(|piece| (piece, recompressor));
            let (piece, recompressor) = blocking(work).await?;
            Ok(Some((piece, Some((frames, recompressor)))))
        }
        None => Ok(Some((blocking(move || recompressor.finish()).await?, None))),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Error::Recompress),
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

struct Recompressor {
    decoder: Decoder<'static, Encoder<'static, Vec<u8>>>,
}

impl Recompressor {
    fn new(level: i32, nar_size: u64) -> Result<Self> {
        let encoder = || {
            let mut encoder = Encoder::new(Vec::new(), level)?;
            encoder.set_pledged_src_size(Some(nar_size))?;
            Decoder::new(encoder)
        };
        Ok(Self { decoder: encoder().map_err(Error::Recompress)? })
    }

    fn push(&mut self, frames: &[u8]) -> io::Result<Bytes> {
        self.decoder.write_all(frames)?;
        Ok(std::mem::take(self.decoder.get_mut().get_mut()).into())
    }

    fn finish(mut self) -> io::Result<Bytes> {
        self.decoder.flush()?;
        self.decoder.into_inner().finish().map(Bytes::from)
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;

    async fn recompressed(frames: &[u8], piece: usize, level: i32, size: u64) -> Result<Vec<u8>> {
        let pieces: Vec<_> = frames.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let pieces: Vec<Bytes> = recompress(futures::stream::iter(pieces), level, size).try_collect().await?;
        Ok(pieces.concat())
    }

    #[tokio::test]
    async fn many_frames_become_one_however_they_are_cut() {
        let text: Vec<u8> = (0..40_000_u32).flat_map(|n| (n / 7).to_string().into_bytes()).collect();
        let frames: Vec<u8> =
            text.chunks(5_000).flat_map(|piece| zstd::bulk::compress(piece, 1).unwrap()).collect();
        let whole = recompressed(&frames, usize::MAX, 19, text.len() as u64).await.unwrap();
        assert_eq!(zstd::bulk::decompress(&whole, text.len()).unwrap(), text);
        let frame = zstd::zstd_safe::find_frame_compressed_size(&whole).unwrap();
        assert_eq!(frame, whole.len(), "one frame");
        assert!(whole.len() < frames.len() && whole.len() as u64 <= size_max(text.len() as u64));
        for piece in [1, 777] {
            let other = recompressed(&frames, piece, 19, text.len() as u64).await.unwrap();
            assert!(other == whole, "the same bytes, cut at {piece}");
        }
    }

    #[tokio::test]
    async fn garbage_and_another_size_are_errors() {
        let frame = zstd::bulk::compress(&[7; 10_000], 1).unwrap();
        for (frames, size) in [(&b"garbage"[..], 7), (&frame, 9_999), (&frame, 10_001)] {
            let outcome = recompressed(frames, 100, 3, size).await;
            assert!(matches!(outcome, Err(Error::Recompress(_))), "{size}: {outcome:?}");
        }
    }

    #[test]
    fn every_level_has_its_tag() {
        let tag = EncodingTag::from_bytes([1; 16]);
        assert_eq!(recompressed_tag(tag, 19), recompressed_tag(tag, 19));
        assert_ne!(recompressed_tag(tag, 19), recompressed_tag(tag, 18));
        assert_ne!(recompressed_tag(tag, 19), recompressed_tag(EncodingTag::from_bytes([2; 16]), 19));
        assert_ne!(recompressed_tag(tag, 19), tag);
    }
}
