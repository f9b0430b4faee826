//! The compressions that uploads come in, which `dormer_format` knows; here with the streams and
//! threads of the server.

use std::io;

use dormer_format::COMPRESSED_HEAD_BYTES;
pub(crate) use dormer_format::{Compression, SUPPORTED_COMPRESSIONS as SUPPORTED, WindowTooLarge};

use crate::decoder::{self, Input};

/// Reads what is needed to know a stream, and puts it back.
pub(crate) async fn peek(input: Input<'_>) -> io::Result<(Vec<u8>, Input<'_>)> {
    decoder::peek(input, COMPRESSED_HEAD_BYTES).await
}

#[cfg(test)]
mod tests {
    use dormer_engine::CpuPool;
    use futures::{StreamExt as _, TryStreamExt as _};
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::decoder::Decoder;
    use crate::reencode::reencode;

    async fn encoded(compression: Compression, plain: &'static [u8]) -> Vec<u8> {
        if compression == Compression::Zstd {
            let mut encoder = async_compression::tokio::bufread::ZstdEncoder::new(plain);
            let mut bytes = Vec::new();
            encoder.read_to_end(&mut bytes).await.unwrap();
            return bytes;
        }
        let pieces: Vec<bytes::Bytes> = reencode(plain, compression).try_collect().await.unwrap();
        pieces.concat()
    }

    /// Bytes that come in the given pieces.
    fn pieces(bytes: &[u8], piece: usize) -> Input<'static> {
        let pieces: Vec<io::Result<bytes::Bytes>> =
            bytes.chunks(piece).map(|piece| Ok(bytes::Bytes::copy_from_slice(piece))).collect();
        futures::stream::iter(pieces).boxed()
    }

    /// What a whole stream decodes to; an error also for bytes that are left over.
    async fn decoded(compression: Compression, bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let (head, input) = peek(pieces(bytes, piece)).await?;
        let limit =
            compression.decoder_bytes(&head).map_err(|error| io::Error::other(format!("{error:?}")))?;
        let decoder = Decoder::of(compression, input, limit, &CpuPool::new(1, 1));
        let plain: Vec<bytes::Bytes> = decoder.into_stream().try_collect().await?;
        Ok(plain.concat())
    }

    const PLAIN: &[u8] = include_bytes!("codec.rs");

    /// Every codec there is.
    fn compressed() -> impl Iterator<Item = Compression> {
        Compression::ALL.into_iter().filter(|compression| *compression != Compression::None)
    }

    #[tokio::test]
    async fn every_compression_is_decoded_however_it_is_cut() {
        for compression in Compression::ALL {
            let bytes = encoded(compression, PLAIN).await;
            for piece in [1, 7, 4096, usize::MAX] {
                assert_eq!(
                    decoded(compression, &bytes, piece).await.unwrap(),
                    PLAIN,
                    "{compression:?} {piece}"
                );
            }
        }
    }

    #[tokio::test]
    async fn several_members_are_one_stream() {
        for compression in compressed() {
            let one = encoded(compression, PLAIN).await;
            let two = [one.as_slice(), &one].concat();
            for piece in [1, 4096, usize::MAX, one.len()] {
                let plain = decoded(compression, &two, piece).await;
                if compression == Compression::Brotli {
                    assert!(plain.is_err(), "brotli has no members");
                } else {
                    assert_eq!(plain.unwrap(), [PLAIN, PLAIN].concat(), "{compression:?} {piece}");
                }
            }
        }
    }

    #[tokio::test]
    async fn garbage_after_the_end_is_an_error_however_it_is_cut() {
        for compression in compressed() {
            let mut bytes = encoded(compression, PLAIN).await;
            let end = bytes.len();
            bytes.extend_from_slice(b"garbage behind the end");
            for piece in [1, 4096, usize::MAX, end] {
                assert!(decoded(compression, &bytes, piece).await.is_err(), "{compression:?} {piece}");
            }
        }
    }

    #[tokio::test]
    async fn a_cut_stream_is_an_error_wherever_it_is_cut() {
        for compression in compressed() {
            let bytes = encoded(compression, PLAIN).await;
            for end in [1, 5, 11, 20, bytes.len() / 2, bytes.len() - 1] {
                assert!(decoded(compression, &bytes[..end], 4096).await.is_err(), "{compression:?} {end}");
            }
        }
    }

    #[tokio::test]
    async fn a_later_frame_takes_what_the_first_announced_and_not_more() {
        use async_compression::zstd::CParameter;
        let frame = async |window_log| {
            let parameters = [CParameter::window_log(window_log)];
            let mut encoder = async_compression::tokio::bufread::ZstdEncoder::with_quality_and_params(
                PLAIN,
                async_compression::Level::Fastest,
                &parameters,
            );
            let mut bytes = Vec::new();
            encoder.read_to_end(&mut bytes).await.unwrap();
            bytes
        };
        let (small, large, larger) = (frame(10).await, frame(24).await, frame(25).await);
        assert!(decoded(Compression::Zstd, &[small.as_slice(), &large].concat(), 4096).await.is_err());
        assert!(decoded(Compression::Zstd, &[large.as_slice(), &larger].concat(), 4096).await.is_err());
        for frames in [[&large, &small], [&large, &large], [&larger, &large]] {
            let plain = decoded(Compression::Zstd, &frames.map(Vec::as_slice).concat(), 4096).await;
            assert_eq!(plain.unwrap(), [PLAIN, PLAIN].concat());
        }
    }

    #[tokio::test]
    async fn a_thousand_members_in_a_row_may_decode_to_nothing_and_no_more() {
        for compression in compressed().filter(|compression| *compression != Compression::Brotli) {
            let (empty, some) = (encoded(compression, b"").await, encoded(compression, b"x").await);
            let most = [empty.repeat(1000), some.clone()].concat();
            for piece in [777, usize::MAX] {
                let twice = most.repeat(2);
                assert_eq!(decoded(compression, &twice, piece).await.unwrap(), b"xx", "{compression:?}");
                let error =
                    decoded(compression, &[&empty, most.as_slice()].concat(), piece).await.unwrap_err();
                assert!(error.to_string().contains("decode to nothing"), "{compression:?}: {error}");
            }
        }
    }

    /// Without a turn no codec does anything, so none decodes on the thread that asks.
    #[tokio::test]
    async fn every_codec_decodes_in_turns_of_the_cpu_pool_only() {
        for compression in compressed() {
            let bytes = encoded(compression, PLAIN).await;
            let limit = compression.decoder_bytes(&bytes).unwrap();
            let cpu = CpuPool::new(1, 1);
            let (end, may_end) = std::sync::mpsc::channel::<()>();
            let (begun, has_begun) = tokio::sync::oneshot::channel();
            let other_work = tokio::spawn({
                let cpu = cpu.clone();
                async move {
                    cpu.run(move || {
                        begun.send(()).unwrap();
                        may_end.recv().unwrap();
                    })
                    .await;
                }
            });
            has_begun.await.unwrap();
            let mut decoder = Decoder::of(compression, pieces(&bytes, usize::MAX), limit, &cpu);
            let first = tokio::spawn(async move { decoder.next().await });
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert!(!first.is_finished(), "{compression:?} decodes without a turn");
            end.send(()).unwrap();
            other_work.await.unwrap();
            assert!(PLAIN.starts_with(&first.await.unwrap().unwrap().unwrap()), "{compression:?}");
        }
    }

    /// The work that costs most for its bytes: members of nothing, as many as there may be.
    #[tokio::test]
    async fn timers_are_on_time_beside_every_codec() {
        use std::time::{Duration, Instant};
        const TICK: Duration = Duration::from_millis(2);
        for compression in compressed() {
            let (empty, some) = (encoded(compression, b"").await, encoded(compression, PLAIN).await);
            let costly = match compression {
                Compression::Brotli => some,
                _ => [empty.repeat(1000), some].concat().repeat(5),
            };
            let decoding = tokio::spawn(async move { decoded(compression, &costly, usize::MAX).await });
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
