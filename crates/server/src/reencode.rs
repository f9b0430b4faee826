//! An upload given back in the compression that it came with, because the pusher's own Nix
//! remembers the name it gave it.
//!
//! Invariants
//! - What comes out depends on the NAR alone, not on when its parts arrive: an encoder is handed
//!   pieces and never sees a pause. (Encoders that pull from a stream flush whenever it pauses, as
//!   it does over an object store. That costs ratio everywhere, and makes lz4 end a block early:
//!   later ones then refer to more than the block before them, which libarchive, Nix's decoder,
//!   does not keep.)
//! - Compressing happens on a thread that may block; how many do so at once is
//!   `limits.reencodings`.
//! - Nothing ends as if it were whole when the NAR could not be read: the error is passed on.

use std::io;

use async_compression::Level;
use async_compression::tokio::write::{
    BrotliEncoder, BzEncoder, GzipEncoder, Lz4Encoder, LzmaEncoder, XzEncoder,
};
use bytes::Bytes;
use futures::{FutureExt as _, Stream, TryStreamExt as _, future, stream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use crate::codec::Compression;

/// Bytes of the NAR that are compressed at a time: some milliseconds of work.
const PIECE_BYTES: usize = 256 * 1024;

/// Compresses a NAR, as fast as the format allows: the answer is read once, by the machine that
/// sent the same NAR.
pub(crate) fn reencode(
    nar: impl AsyncRead + Send + Unpin + 'static,
    compression: Compression,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let begin = Some((nar, encoder(compression)));
    stream::try_unfold(begin, async |state| {
        let Some((mut nar, mut encoder)) = state else { return Ok(None) };
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        (&mut nar).take(PIECE_BYTES as u64).read_to_end(&mut piece).await?;
        let is_last = piece.len() < PIECE_BYTES;
        let work = tokio::task::spawn_blocking(move || {
            let mut out = encoder.push(piece)?;
            if is_last {
                out.append(&mut encoder.finish()?);
            }
            Ok::<_, io::Error>((encoder, out))
        });
        let (encoder, out) = work.await.map_err(io::Error::other)??;
        Ok(Some((Bytes::from(out), (!is_last).then_some((nar, encoder)))))
    })
    // An encoder may take in more than one piece before it gives anything.
    .try_filter(|out| future::ready(!out.is_empty()))
}

/// One of the encoders, from memory to memory.
trait Encode: Send {
    /// Takes a piece, gives what is ready.
    fn push(&mut self, piece: Vec<u8>) -> io::Result<Vec<u8>>;

    /// Gives the rest.
    fn finish(&mut self) -> io::Result<Vec<u8>>;
}

fn encoder(compression: Compression) -> Box<dyn Encode> {
    const FAST: Level = Level::Precise(1);
    match compression {
        // zstd is never asked for: such an alias is served as it is stored.
        Compression::None | Compression::Zstd => Box::new(AsItIs),
        Compression::Xz => Box::new(XzEncoder::with_quality(Vec::new(), Level::Precise(0))),
        Compression::Lzma => Box::new(LzmaEncoder::with_quality(Vec::new(), Level::Precise(0))),
        Compression::Bzip2 => Box::new(BzEncoder::with_quality(Vec::new(), FAST)),
        Compression::Gzip => Box::new(GzipEncoder::with_quality(Vec::new(), FAST)),
        Compression::Brotli => Box::new(BrotliEncoder::with_quality(Vec::new(), FAST)),
        Compression::Lz4 => Box::new(Lz4Encoder::with_quality(Vec::new(), FAST)),
    }
}

struct AsItIs;

impl Encode for AsItIs {
    fn push(&mut self, piece: Vec<u8>) -> io::Result<Vec<u8>> {
        Ok(piece)
    }

    fn finish(&mut self) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }
}

/// Writing to memory never waits.
const NEVER_WAITS: &str = "a write to memory is ready at once";

macro_rules! encoders {
    ($($encoder:ident)*) => {$(
        impl Encode for $encoder<Vec<u8>> {
            fn push(&mut self, piece: Vec<u8>) -> io::Result<Vec<u8>> {
                self.write_all(&piece).now_or_never().expect(NEVER_WAITS)?;
                Ok(std::mem::take(self.get_mut()))
            }

            fn finish(&mut self) -> io::Result<Vec<u8>> {
                self.shutdown().now_or_never().expect(NEVER_WAITS)?;
                Ok(std::mem::take(self.get_mut()))
            }
        }
    )*};
}

encoders!(XzEncoder LzmaEncoder BzEncoder GzipEncoder BrotliEncoder Lz4Encoder);

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use futures::StreamExt as _;
    use tokio::io::ReadBuf;

    use super::*;

    /// Gives a few bytes and then nothing for a while, again and again, as an object store does.
    struct Halting<'a> {
        rest: &'a [u8],
        piece: usize,
        halts: bool,
    }

    impl AsyncRead for Halting<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.halts = !self.halts;
            if self.halts {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let (now, rest) = self.rest.split_at(self.piece.min(self.rest.len()).min(buffer.remaining()));
            buffer.put_slice(now);
            self.rest = rest;
            Poll::Ready(Ok(()))
        }
    }

    /// 600 KB that compress, but not to nothing: numbers in text.
    fn plain() -> &'static [u8] {
        let mut text = String::new();
        for n in 0..60_000_u64 {
            writeln!(text, "{:09x}", n * n * 40_503).unwrap();
        }
        text.into_bytes().leak()
    }

    async fn whole(stream: impl Stream<Item = io::Result<Bytes>>) -> io::Result<Vec<u8>> {
        let pieces: Vec<Bytes> = stream.try_collect().await?;
        Ok(pieces.concat())
    }

    #[tokio::test]
    async fn what_comes_out_does_not_depend_on_pauses() {
        let plain = plain();
        for compression in Compression::ALL {
            let at_once = whole(reencode(plain, compression)).await.unwrap();
            for piece in [1_000, 65_536, 100_000] {
                let halting = Halting { rest: plain, piece, halts: false };
                let with_pauses = whole(reencode(halting, compression)).await.unwrap();
                assert!(with_pauses == at_once, "{compression:?} in pieces of {piece}");
            }
            let limit = compression.decoder_bytes(&at_once).unwrap();
            if compression != Compression::Zstd {
                let input = stream::iter([Ok(Bytes::from(at_once))]).boxed();
                let decoder = crate::decoder::Decoder::of(
                    compression,
                    input,
                    limit,
                    &dormer_engine::CpuPool::new(1, 1),
                );
                assert!(whole(decoder.into_stream()).await.unwrap() == plain, "{compression:?}");
            }
        }
    }

    /// Blocks of lz4 are 64 KiB but for the last: what one refers to is in itself and in the one
    /// before it.
    #[tokio::test]
    async fn lz4_blocks_are_whole() {
        // Bytes that do not compress are stored as they are, so that a block's length can be read
        // off its head.
        let mut state = 1_u64;
        let plain: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .take(300_000)
        .collect();
        let halting = Halting { rest: plain.leak(), piece: 10_000, halts: false };
        let bytes = whole(reencode(halting, Compression::Lz4)).await.unwrap();
        // Magic, FLG, BD, header checksum: no content size, no dictionary.
        let mut rest = &bytes[7..];
        let mut blocks = Vec::new();
        loop {
            let (head, after) = rest.split_at(4);
            let head = u32::from_le_bytes(head.try_into().unwrap());
            if head == 0 {
                break;
            }
            assert_eq!(head >> 31, 1, "stored as it is");
            let length = (head & 0x7fff_ffff) as usize;
            blocks.push(length);
            rest = &after[length..];
        }
        assert_eq!(blocks, [65_536, 65_536, 65_536, 65_536, 300_000 - 4 * 65_536]);
    }

    #[tokio::test]
    async fn a_nar_that_cannot_be_read_ends_in_an_error() {
        let broken = plain().chain(tokio_util::io::StreamReader::new(stream::iter([Err::<Bytes, _>(
            io::Error::other("gone"),
        )])));
        assert_eq!(whole(reencode(broken, Compression::Xz)).await.unwrap_err().to_string(), "gone");
    }
}
