//! Decodes a body step by step, on threads that may block.
//!
//! Invariants
//! - All decoding happens in jobs of the engine's CPU pool, one job for each bounded step
//!   ([`StreamDecoder`]), so no decoder runs on a thread that answers requests.

use std::io;

use bytes::Bytes;
use dormer_engine::CpuPool;
use dormer_format::{Compression, DecodeStep, StreamDecoder};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};

/// Bytes to decode, as they come.
pub(crate) type Input<'a> = BoxStream<'a, io::Result<Bytes>>;

/// A stream being decoded.
pub(crate) struct Decoder<'a> {
    input: Input<'a>,
    /// `None` while a job decodes, and after a job that nobody waited for.
    steps: Option<StreamDecoder>,
    cpu: CpuPool,
}

impl<'a> Decoder<'a> {
    /// Decodes within the memory that [`Compression::decoder_bytes`] named.
    pub(crate) fn of(compression: Compression, input: Input<'a>, decoder_bytes: u64, cpu: &CpuPool) -> Self {
        Self { input, steps: Some(compression.decoder(decoder_bytes)), cpu: cpu.clone() }
    }

    /// The next decoded bytes, at least one; `None` when the stream has ended well.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let decoder = self.steps.as_mut().ok_or_else(lost)?;
            if decoder.wants_input() {
                decoder.feed(self.input.next().await.transpose()?);
            }
            let step = if decoder.is_plain() { decoder.step() } else { self.step_in_a_job().await };
            match step? {
                DecodeStep::Bytes(bytes) => return Ok(Some(bytes)),
                DecodeStep::Nothing => {}
                DecodeStep::End => return Ok(None),
            }
        }
    }

    async fn step_in_a_job(&mut self) -> io::Result<DecodeStep> {
        let mut decoder = self.steps.take().ok_or_else(lost)?;
        let (step, decoder) = self.cpu.run(move || (decoder.step(), decoder)).await;
        self.steps = Some(decoder);
        step
    }

    /// The decoded bytes as a stream, for another reader.
    pub(crate) fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'a {
        stream::try_unfold(self, async |mut decoder| {
            decoder.next().await.map(|piece| piece.map(|piece| (piece, decoder)))
        })
    }
}

/// Reads at least the first `bytes`, if there are as many, and puts them back.
pub(crate) async fn peek(mut input: Input<'_>, bytes: usize) -> io::Result<(Vec<u8>, Input<'_>)> {
    let mut head = Vec::new();
    while head.len() < bytes {
        let Some(piece) = input.try_next().await? else { break };
        head.extend_from_slice(&piece);
    }
    let whole = stream::iter([Ok(Bytes::from(head.clone()))]).chain(input);
    Ok((head, whole.boxed()))
}

/// Nobody waited for the last step.
fn lost() -> io::Error {
    io::Error::other("the decoder was given up")
}
