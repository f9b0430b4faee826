//! Answers of one long piece: narinfos, logs, listings, JSON and pages of more than
//! [`UNCOUNTED_BYTES_MAX`].
//!
//! A reader that takes nothing keeps such a piece in memory. So each of them counts as memory for
//! reads until it was sent: all together at most a quarter of that, and those of one caller three
//! quarters of the quarter. One that is longer than its share counts as the whole share. Readers of
//! NARs have the rest.
//!
//! Invariants
//! - A reading request that waits for this memory holds no answer: the answer is made again when
//!   there is room for it.
//! - The answer to any other request waits in memory for bodies, as a part of its caller's share.
//!   If there is no room for it, the client is told to come back. So a client with many connections
//!   cannot make the server hold more.
//! - While others wait, the host cuts readers that take next to nothing.

use bytes::Bytes;
use dormer_engine::AnswerMemory;
use futures::FutureExt as _;
use http::Response;

use crate::app::App;
use crate::body::Body;
use crate::call::Call;
use crate::failure::Failure;
use crate::shares::Share;

/// Longest piece that is not counted: nearly all are shorter. Each connection can hold one.
const UNCOUNTED_BYTES_MAX: usize = 16 * 1024;

/// A long piece, and the memory that it holds.
struct Counted {
    bytes: Bytes,
    _memory: (Share, AnswerMemory),
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The bytes of an answer that must be counted. HEAD sends none.
pub(crate) fn long_bytes(call: &Call, answer: &Response<Body>) -> Option<u64> {
    match answer.body() {
        Body::Full(Some(bytes)) if bytes.len() > UNCOUNTED_BYTES_MAX && !call.is_head() => {
            Some(bytes.len() as u64)
        }
        _ => None,
    }
}

impl App {
    /// Counts a long answer. A request that only reads drops its answer while it waits, and makes
    /// it `again`.
    pub(crate) async fn count_long(
        &self,
        call: &Call,
        bytes: u64,
        answer: Response<Body>,
        again: impl AsyncFnOnce() -> Result<Response<Body>, Failure>,
    ) -> Result<Response<Body>, Failure> {
        let at_once = self.long_answer_memory(call, bytes).now_or_never();
        let (memory, answer) = match at_once {
            Some(memory) => (memory?, answer),
            None if call.is_read() => {
                drop(answer);
                let memory = self.long_answer_memory(call, bytes).await?;
                let answer = again().await?;
                // It may have grown meanwhile.
                match long_bytes(call, &answer).filter(|now| *now > bytes) {
                    Some(now) => {
                        drop(memory);
                        let memory = self.long_answer_memory(call, now).now_or_never();
                        (memory.ok_or(Failure::Busy("long answers"))??, answer)
                    }
                    None => (memory, answer),
                }
            }
            None => {
                let room = self.waiting_answer_memory(call, bytes).ok_or(Failure::Busy("long answers"))?;
                let memory = self.long_answer_memory(call, bytes).await?;
                drop(room);
                (memory, answer)
            }
        };
        let (mut parts, body) = answer.into_parts();
        let Body::Full(Some(bytes)) = body else { return Ok(Response::from_parts(parts, body)) };
        parts.extensions.insert(memory.0.others_wait());
        let counted = Counted { bytes, _memory: memory };
        Ok(Response::from_parts(parts, Body::Full(Some(Bytes::from_owner(counted)))))
    }
}
