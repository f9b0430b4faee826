//! A stream that must have a known length.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Fails if the stream has fewer or more bytes than its length.
pub(crate) struct Exact<R> {
    inner: R,
    left: u64,
}

impl<R> Exact<R> {
    pub(crate) fn new(inner: R, length: u64) -> Self {
        Self { inner, left: length }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Exact<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        let read = (buffer.filled().len() - before) as u64;
        let what = match self.left.checked_sub(read) {
            Some(left) if read > 0 || left == 0 => {
                self.left = left;
                return Poll::Ready(Ok(()));
            }
            Some(_) => "there are fewer bytes than there should be",
            None => "there are more bytes than there should be",
        };
        // A read that fails has read nothing.
        buffer.set_filled(before);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn only_the_right_length_ends_well() {
        for (length, is_right) in [(0, false), (4, false), (5, true), (6, false), (u64::MAX, false)] {
            let mut read = Vec::new();
            let outcome = Exact::new(&b"bytes"[..], length).read_to_end(&mut read).await;
            assert_eq!(outcome.is_ok(), is_right, "{length}");
        }
    }
}
