//! A blocking HTTP/1.1 client over one socket, as small as possible.
//!
//! The reader must cost less than the measured servers, and the pusher must send the same as
//! Attic's client: chunked bodies over a kept connection. A general client would do both, but its
//! own costs would be in every figure.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::error::{Context, Error, Result};

/// Bytes to read at once, so that a NAR costs few system calls.
const BUFFER_BYTES: usize = 256 * 1024;
/// One piece of a chunked body.
const PIECE_BYTES: usize = 64 * 1024;
/// Time limit for a silent server. After it, the benchmark fails.
const SILENCE_MAX: Duration = Duration::from_mins(2);

/// A kept connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    host: String,
    bearer: Option<String>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// The start of an answer.
#[derive(Debug, Clone, Copy)]
struct Head {
    status: u16,
    body: Body,
}

#[derive(Debug, Clone, Copy)]
enum Body {
    Length(u64),
    Chunked,
}

impl Connection {
    /// Connects. Every request sends `bearer`.
    pub(crate) fn open(address: SocketAddr, bearer: Option<&str>) -> Result<Self> {
        let stream = TcpStream::connect(address).context(|| format!("connect to {address}"))?;
        stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(SILENCE_MAX)))
            .and_then(|()| stream.set_write_timeout(Some(SILENCE_MAX)))
            .context(|| "set socket options".to_owned())?;
        Ok(Self {
            stream,
            host: address.to_string(),
            bearer: bearer.map(str::to_owned),
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
        })
    }

    fn head(&self, method: &str, path: &str, headers: &str) -> String {
        let authorization =
            self.bearer.as_ref().map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
        format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{authorization}{headers}\r\n", self.host)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context(|| "send".to_owned())
    }

    /// GET; counts and discards the body. Returns status and body bytes.
    pub(crate) fn get_discarding(&mut self, path: &str) -> Result<(u16, u64)> {
        let head = self.head("GET", path, "");
        self.write(head.as_bytes())?;
        let mut bytes = 0;
        let status = self.answer(|piece| bytes += piece.len() as u64)?;
        Ok((status, bytes))
    }

    /// GET of a page, as a browser asks for it.
    pub(crate) fn get_page(&mut self, path: &str) -> Result<(u16, Vec<u8>)> {
        let head = self.head("GET", path, "Accept: text/html\r\n");
        self.write(head.as_bytes())?;
        self.collect()
    }

    /// GET with the whole body.
    pub(crate) fn get(&mut self, path: &str) -> Result<(u16, Vec<u8>)> {
        let head = self.head("GET", path, "");
        self.write(head.as_bytes())?;
        self.collect()
    }

    /// POST of a JSON document.
    pub(crate) fn post_json(&mut self, path: &str, json: &[u8]) -> Result<(u16, Vec<u8>)> {
        let headers = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", json.len());
        let head = self.head("POST", path, &headers);
        self.write(head.as_bytes())?;
        self.write(json)?;
        self.collect()
    }

    /// PUT with a chunked body: `preamble`, then all bytes of `body`.
    pub(crate) fn put_chunked(
        &mut self,
        path: &str,
        headers: &str,
        preamble: &[u8],
        body: &mut dyn Read,
    ) -> Result<(u16, Vec<u8>)> {
        let head = self.head("PUT", path, &format!("{headers}Transfer-Encoding: chunked\r\n"));
        let sent = self.write(head.as_bytes()).and_then(|()| self.send_chunks(preamble, body));
        match sent {
            Ok(()) => self.collect(),
            // A server may refuse before it has read everything. Its answer says more than the
            // broken pipe.
            Err(error) => self.collect().map_err(|_| error),
        }
    }

    fn send_chunks(&mut self, preamble: &[u8], body: &mut dyn Read) -> Result<()> {
        if !preamble.is_empty() {
            self.write(format!("{:x}\r\n", preamble.len()).as_bytes())?;
            self.write(preamble)?;
            self.write(b"\r\n")?;
        }
        let mut piece = vec![0; PIECE_BYTES];
        let mut framed = Vec::with_capacity(PIECE_BYTES + 16);
        loop {
            let count = body.read(&mut piece).context(|| "read the body".to_owned())?;
            if count == 0 {
                return self.write(b"0\r\n\r\n");
            }
            framed.clear();
            framed.extend_from_slice(format!("{count:x}\r\n").as_bytes());
            framed.extend_from_slice(&piece[..count]);
            framed.extend_from_slice(b"\r\n");
            self.write(&framed)?;
        }
    }

    fn collect(&mut self) -> Result<(u16, Vec<u8>)> {
        let mut body = Vec::new();
        let status = self.answer(|piece| body.extend_from_slice(piece))?;
        Ok((status, body))
    }

    /// Reads one answer and hands its body to `take`.
    fn answer(&mut self, mut take: impl FnMut(&[u8])) -> Result<u16> {
        let head = self.read_head()?;
        match head.body {
            Body::Length(length) => self.read_exactly(length, &mut take)?,
            Body::Chunked => loop {
                let line = self.read_line()?;
                let length = u64::from_str_radix(line.trim(), 16)
                    .context(|| format!("read the chunk length {line:?}"))?;
                self.read_exactly(length, &mut take)?;
                self.read_line()?;
                if length == 0 {
                    break;
                }
            },
        }
        Ok(head.status)
    }

    fn read_head(&mut self) -> Result<Head> {
        let line = self.read_line()?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| Error::new(format!("not an HTTP answer: {line:?}")))?;
        let mut body = Body::Length(0);
        loop {
            let line = self.read_line()?;
            if line.is_empty() {
                return Ok(Head { status, body });
            }
            let Some((name, value)) = line.split_once(':') else { continue };
            if name.eq_ignore_ascii_case("content-length") {
                body = Body::Length(value.trim().parse().context(|| format!("read {line:?}"))?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                body = Body::Chunked;
            }
        }
    }

    fn fill(&mut self) -> Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let count =
            self.stream.read(&mut self.buffer[self.end..]).context(|| "read the answer".to_owned())?;
        if count == 0 {
            return Err(Error::new("the server closed the connection in the middle of an answer"));
        }
        self.end += count;
        Ok(())
    }

    /// A line without its end.
    fn read_line(&mut self) -> Result<String> {
        loop {
            let unread = &self.buffer[self.start..self.end];
            if let Some(length) = unread.iter().position(|&byte| byte == b'\n') {
                let line = String::from_utf8_lossy(&unread[..length]).trim_end_matches('\r').to_owned();
                self.start += length + 1;
                return Ok(line);
            }
            if unread.len() == self.buffer.len() {
                return Err(Error::new("a header line of the answer is too long"));
            }
            self.fill()?;
        }
    }

    fn read_exactly(&mut self, mut length: u64, take: &mut impl FnMut(&[u8])) -> Result<()> {
        while length > 0 {
            if self.start == self.end {
                self.fill()?;
            }
            let available = (self.end - self.start).min(usize::try_from(length).unwrap_or(usize::MAX));
            take(&self.buffer[self.start..self.start + available]);
            self.start += available;
            length -= available as u64;
        }
        Ok(())
    }
}
