//! Decodes a stream step by step, each step bounded, without any I/O.
//!
//! A few bytes can cost a decoder much work: an empty bzip2 member has 14 bytes and makes its
//! decoder set up megabytes. So a caller runs each step where it may block.
//!
//! Layer: format (pure).
//!
//! Invariants
//! - A step takes at most [`STEP_INPUT_BYTES`], gives at most [`STEP_OUTPUT_BYTES`] and ends at
//!   most [`STEP_MEMBERS_MAX`] members.
//! - At most [`EMPTY_MEMBERS_MAX`] members or frames in a row decode to nothing.
//! - Several members one after the other are one stream (brotli knows none); anything else after
//!   the end is an error.

use std::io;

use bytes::Bytes;
use compression_codecs::DecodeV2;
use compression_codecs::core::util::{PartialBuffer, WriteBuffer};

/// Most bytes that one step takes.
const STEP_INPUT_BYTES: usize = 64 * 1024;

/// Most bytes that one step gives, and so the memory of a piece beside the decoder's own.
pub const STEP_OUTPUT_BYTES: usize = 128 * 1024;

/// Most members that one step ends: 10 ms of the most expensive ones.
const STEP_MEMBERS_MAX: usize = 100;

/// Most members or frames in a row that decode to nothing. Some tools write one or two (BGZF ends
/// with one, pzstd puts one before each frame); nobody needs a thousand.
const EMPTY_MEMBERS_MAX: usize = 1000;

/// What one step gives.
#[derive(Debug, PartialEq, Eq)]
pub enum DecodeStep {
    /// These bytes, at least one.
    Bytes(Bytes),
    /// Nothing yet.
    Nothing,
    /// The stream has ended well.
    End,
}

/// A stream being decoded.
pub struct StreamDecoder {
    /// What came and is not decoded yet.
    piece: Bytes,
    is_end: bool,
    /// `None` for bytes that are what they are.
    members: Option<MemberDecoder>,
    has_failed: bool,
}

impl std::fmt::Debug for StreamDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamDecoder").field("is_end", &self.is_end).finish_non_exhaustive()
    }
}

impl StreamDecoder {
    /// Gives the bytes as they come.
    pub(crate) fn plain() -> Self {
        Self { piece: Bytes::new(), is_end: false, members: None, has_failed: false }
    }

    /// Decodes with `codec`, again and again if the format `has_members`.
    pub(crate) fn of(codec: impl DecodeV2 + Send + 'static, has_members: bool) -> Self {
        let members = MemberDecoder {
            codec: Box::new(codec),
            has_members,
            phase: Phase::Decoding,
            member_bytes: 0,
            empty_members: 0,
        };
        Self { members: Some(members), ..Self::plain() }
    }

    /// Whether a step costs nothing, because the bytes are what they are.
    pub fn is_plain(&self) -> bool {
        self.members.is_none()
    }

    /// Whether the next step needs more of the stream.
    pub fn wants_input(&self) -> bool {
        self.piece.is_empty() && !self.is_end
    }

    /// Takes the next bytes of the stream, or its end.
    pub fn feed(&mut self, piece: Option<Bytes>) {
        match piece {
            Some(piece) => self.piece = piece,
            None => self.is_end = true,
        }
    }

    /// Goes on with what came. An error is final.
    pub fn step(&mut self) -> io::Result<DecodeStep> {
        if self.has_failed {
            return Err(io::Error::other("the decoder has failed before"));
        }
        let step = self.next_step();
        self.has_failed = step.is_err();
        step
    }

    fn next_step(&mut self) -> io::Result<DecodeStep> {
        let end = if self.is_end { DecodeStep::End } else { DecodeStep::Nothing };
        let Some(members) = &mut self.members else {
            let piece = std::mem::take(&mut self.piece);
            return Ok(if piece.is_empty() { end } else { DecodeStep::Bytes(piece) });
        };
        if members.phase == Phase::Done {
            if self.piece.is_empty() {
                return Ok(end);
            }
            return Err(invalid("there is something behind the end"));
        }
        let input = &self.piece[..self.piece.len().min(STEP_INPUT_BYTES)];
        let (read, out) = members.step(input, self.is_end)?;
        drop(self.piece.split_to(read));
        Ok(if out.is_empty() { DecodeStep::Nothing } else { DecodeStep::Bytes(out.into()) })
    }
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
