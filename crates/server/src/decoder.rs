//! Decodes a body step by step, on threads that may block.
//!
//! A few bytes can cost a decoder much work: an empty bzip2 member has 14 bytes and makes its
//! decoder set up megabytes. So no decoder runs on a thread that answers requests.
//!
//! Invariants
//! - All decoding happens in jobs of the engine's CPU pool. A job takes at most
//!   [`STEP_INPUT_BYTES`], gives at most [`STEP_OUTPUT_BYTES`] and ends at most
//!   [`STEP_MEMBERS_MAX`] members.
//! - At most [`EMPTY_MEMBERS_MAX`] members or frames in a row decode to nothing.
//! - Several members one after the other are one stream (brotli knows none); anything else after
//!   the end is an error.

use std::io;

use async_compression::codecs::DecodeV2;
use async_compression::core::util::{PartialBuffer, WriteBuffer};
use bytes::Bytes;
use dormer_engine::CpuPool;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};

/// Most bytes that one step takes.
const STEP_INPUT_BYTES: usize = 64 * 1024;

/// Most bytes that one step gives, and so the memory of a piece beside the decoder's own.
pub(crate) const STEP_OUTPUT_BYTES: usize = 128 * 1024;

/// Most members that one step ends: 10 ms of the most expensive ones.
const STEP_MEMBERS_MAX: usize = 100;

/// Most members or frames in a row that decode to nothing. Some tools write one or two (BGZF ends
/// with one, pzstd puts one before each frame); nobody needs a thousand.
const EMPTY_MEMBERS_MAX: usize = 1000;

/// Bytes to decode, as they come.
pub(crate) type Input<'a> = BoxStream<'a, io::Result<Bytes>>;

/// A stream being decoded.
pub(crate) struct Decoder<'a> {
    input: Input<'a>,
    /// What came and is not decoded yet.
    piece: Bytes,
    is_end: bool,
    work: Work,
    cpu: CpuPool,
}

enum Work {
    /// The bytes are what they are.
    Plain,
    Members(Box<MemberDecoder>),
    /// An error has ended the work, or a job that nobody waited for.
    Over,
}

impl<'a> Decoder<'a> {
    /// Gives the input as it is.
    pub(crate) fn plain(input: Input<'a>, cpu: &CpuPool) -> Self {
        Self::new(input, cpu, Work::Plain)
    }

    /// Decodes the input with `codec`, again and again if the format `has_members`.
    pub(crate) fn of(
        input: Input<'a>,
        cpu: &CpuPool,
        codec: impl DecodeV2 + Send + 'static,
        has_members: bool,
    ) -> Self {
        let members = MemberDecoder {
            codec: Box::new(codec),
            has_members,
            phase: Phase::Decoding,
            member_bytes: 0,
            empty_members: 0,
        };
        Self::new(input, cpu, Work::Members(Box::new(members)))
    }

    fn new(input: Input<'a>, cpu: &CpuPool, work: Work) -> Self {
        Self { input, piece: Bytes::new(), is_end: false, work, cpu: cpu.clone() }
    }

    /// The next decoded bytes, at least one; `None` when the stream has ended well.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.piece.is_empty() && !self.is_end {
                match self.input.next().await.transpose()? {
                    Some(piece) => self.piece = piece,
                    None => self.is_end = true,
                }
            }
            let members = match std::mem::replace(&mut self.work, Work::Over) {
                Work::Plain => {
                    self.work = Work::Plain;
                    if self.piece.is_empty() && !self.is_end {
                        continue;
                    }
                    return Ok(Some(std::mem::take(&mut self.piece)).filter(|piece| !piece.is_empty()));
                }
                Work::Over => return Err(io::Error::other("the decoder has failed before")),
                Work::Members(members) => members,
            };
            if members.phase == Phase::Done {
                if !self.piece.is_empty() {
                    return Err(invalid("there is something behind the end"));
                }
                self.work = Work::Members(members);
                if self.is_end {
                    return Ok(None);
                }
                continue;
            }
            let out = self.step(members).await?;
            if !out.is_empty() {
                return Ok(Some(out.into()));
            }
        }
    }

    async fn step(&mut self, mut members: Box<MemberDecoder>) -> io::Result<Vec<u8>> {
        let input = self.piece.slice(..self.piece.len().min(STEP_INPUT_BYTES));
        let is_end = self.is_end;
        let job = move || members.step(&input, is_end).map(|(read, out)| (members, read, out));
        let (members, read, out) = self.cpu.run(job).await?;
        drop(self.piece.split_to(read));
        self.work = Work::Members(members);
        Ok(out)
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

/// One member or frame after the other.
struct MemberDecoder {
    codec: Box<dyn DecodeV2 + Send>,
    has_members: bool,
    phase: Phase,
    /// Bytes that the present member has decoded to so far.
    member_bytes: usize,
    /// Members in a row that decoded to nothing.
    empty_members: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A member has ended; another one may begin.
    Between,
    Decoding,
    /// The member's last bytes were read, but not all that it decodes to has left.
    Finishing,
    Done,
}

impl MemberDecoder {
    /// Decodes until the input or the room for output is used up. Returns how much was read, and
    /// what came out.
    fn step(&mut self, input: &[u8], is_end: bool) -> io::Result<(usize, Vec<u8>)> {
        let mut out = vec![0; STEP_OUTPUT_BYTES];
        let mut input = PartialBuffer::new(input);
        let mut output = WriteBuffer::new_initialized(&mut out);
        let mut ended = 0;
        while !output.has_no_spare_space() && ended < STEP_MEMBERS_MAX {
            let (read_before, written_before) = (input.written_len(), output.written_len());
            let is_dry = input.unwritten().is_empty();
            match self.phase {
                Phase::Between if !is_dry => self.phase = Phase::Decoding,
                Phase::Between if is_end => self.phase = Phase::Done,
                Phase::Between | Phase::Done => break,
                Phase::Decoding => {
                    match self.codec.decode(&mut input, &mut output) {
                        Ok(true) => self.phase = Phase::Finishing,
                        Ok(false) => {}
                        // Without input this only asks for what a decoder still holds. Some
                        // decoders have an error for "nothing".
                        Err(_) if is_dry => {}
                        Err(error) => return Err(error),
                    }
                    let written = output.written_len() - written_before;
                    self.member_bytes += written;
                    let is_stuck = written == 0 && input.written_len() == read_before;
                    match (self.phase, is_dry, is_end) {
                        // If the member is not complete, the decoder says so now.
                        (Phase::Decoding, true, true) if is_stuck => self.phase = Phase::Finishing,
                        (Phase::Decoding, true, false) if is_stuck => break,
                        (Phase::Decoding, false, _) if is_stuck => {
                            return Err(invalid("the decoder makes no progress"));
                        }
                        _ => {}
                    }
                }
                Phase::Finishing => {
                    let is_finished = self.codec.finish(&mut output)?;
                    let written = output.written_len() - written_before;
                    self.member_bytes += written;
                    if is_finished {
                        self.end_member()?;
                        ended += 1;
                    } else if written == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
        let (read, written) = (input.written_len(), output.written_len());
        out.truncate(written);
        Ok((read, out))
    }

    fn end_member(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.member_bytes) > 0 {
            self.empty_members = 0;
        } else {
            self.empty_members += 1;
            if self.empty_members > EMPTY_MEMBERS_MAX {
                return Err(invalid("more than 1000 members or frames in a row decode to nothing"));
            }
        }
        if !self.has_members {
            self.phase = Phase::Done;
            return Ok(());
        }
        self.phase = Phase::Between;
        self.codec.reinit()
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
