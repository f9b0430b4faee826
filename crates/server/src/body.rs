//! Bodies of answers, and the small answers themselves.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use dormer_engine::NarStream;
use dormer_nix::NarHash;
use futures::{Stream, StreamExt};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body::{Frame, SizeHint};
use serde::Serialize;

/// An answer's body.
pub(crate) enum Body {
    /// Nothing, or one piece.
    Full(Option<Bytes>),
    /// A NAR, or a part of it, as it is stored: pieces go from the store to the socket uncopied.
    Nar(Box<NarBody>),
    /// Bytes whose number is not known in advance.
    Stream(Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>),
    /// For HEAD: nothing, without a length.
    Unknown,
}

/// A NAR being sent.
pub(crate) struct NarBody {
    pub(crate) stream: NarStream,
    /// Bytes still to come.
    pub(crate) left: u64,
    pub(crate) nar_hash: NarHash,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full",
            Self::Nar(_) => "Nar",
            Self::Stream(_) => "Stream",
            Self::Unknown => "Unknown",
        })
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Nar(nar) => nar.poll(context).map(|next| next.map(|piece| piece.map(Frame::data))),
            Self::Stream(stream) => {
                stream.poll_next_unpin(context).map(|next| next.map(|piece| piece.map(Frame::data)))
            }
            Self::Unknown => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Nar(nar) => nar.left == 0,
            Self::Stream(_) | Self::Unknown => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Nar(nar) => SizeHint::with_exact(nar.left),
            Self::Stream(_) | Self::Unknown => SizeHint::default(),
        }
    }
}

impl NarBody {
    /// An error cuts the connection short of the promised length. The client resumes or reports,
    /// but never takes a part for the whole.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let failure = match self.stream.poll_next_unpin(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(piece))) => {
                self.left = self.left.saturating_sub(piece.len() as u64);
                return Poll::Ready(Some(Ok(piece)));
            }
            Poll::Ready(None) if self.left == 0 => return Poll::Ready(None),
            Poll::Ready(None) => "the stored bytes ended early".to_owned(),
            Poll::Ready(Some(Err(error))) => error.to_string(),
        };
        tracing::error!(nar.hash = %self.nar_hash, error = failure, "cut an answer short");
        Poll::Ready(Some(Err(io::Error::other(failure))))
    }
}

/// 200 without a body.
pub(crate) fn empty() -> Response<Body> {
    Response::new(Body::Full(None))
}

/// 204.
pub(crate) fn no_content() -> Response<Body> {
    let mut response = empty();
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// A body of this type.
pub(crate) fn document(content_type: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Full(Some(bytes.into())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Plain text with a status.
pub(crate) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = document("text/plain; charset=utf-8", text);
    *response.status_mut() = status;
    response
}

/// JSON with a status.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let bytes = serde_json::to_vec(value).expect("our answers are plain structs of strings and numbers");
    let mut response = document("application/json", bytes);
    *response.status_mut() = status;
    response
}
