//! Bodies that are read whole: JSON, narinfos, `nix-cache-info`.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::header::CONTENT_ENCODING;
use serde::de::DeserializeOwned;

use crate::app::{App, BufferShare};
use crate::body_memory::{CONTENT_DECODER_BYTES_MAX, COPIES, LAST_RESORT_TIMEOUT};
use crate::call::Call;
use crate::codec::{Compression, WindowTooLarge};
use crate::decoder::{Decoder, Input};
use crate::failure::Failure;
use crate::request_body::{BodyError, RequestBody};

/// How long a body that is read whole, or the metadata before a NAR, may take to come: 4 MiB over
/// half a Mbit/s.
pub(crate) const WHOLE_BODY_TIMEOUT: Duration = Duration::from_mins(1);

/// The contents of a body, with the memory that handling it may take.
pub(crate) struct Buffered<T> {
    pub(crate) value: T,
    pub(crate) memory: BufferShare,
}

/// The compression that `Content-Encoding` names.
pub(crate) fn content_encoding(call: &Call) -> Result<Compression, Failure> {
    let mut values = call.headers().get_all(CONTENT_ENCODING).iter();
    let Some(value) = values.next() else { return Ok(Compression::None) };
    let value = value.to_str().unwrap_or("?");
    let unsupported = || Failure::ContentEncoding(value.to_owned());
    if values.next().is_some() {
        return Err(unsupported());
    }
    Compression::from_content_encoding(value).ok_or_else(unsupported)
}

/// Refuses a body with a `Content-Encoding`, before anything of it is read.
pub(crate) fn refuse_coding(call: &Call, why: &'static str) -> Result<(), Failure> {
    if content_encoding(call)? == Compression::None { Ok(()) } else { Err(Failure::Coded(why)) }
}

/// Memory to decode a `Content-Encoding` whose stream begins so.
pub(crate) fn content_decoder_bytes(coding: Compression, head: &[u8]) -> Result<u64, Failure> {
    let needed = coding.decoder_bytes(head)?;
    if needed > CONTENT_DECODER_BYTES_MAX { Err(WindowTooLarge(needed).into()) } else { Ok(needed) }
}

/// The whole body, decoded, if it is not longer than `max`. Decoding begins when all of the body
/// has come, so a decoder never waits for a client.
pub(crate) async fn read(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    what: &'static str,
    max: usize,
) -> Result<Buffered<Vec<u8>>, Failure> {
    let max = max as u64;
    let coding = content_encoding(call)?;
    // Bytes that do not compress grow by less than a sixteenth in any of the formats.
    let coded_max = if coding == Compression::None { max } else { max + max / 16 + 1024 };
    body.limit(coded_max).map_err(|_| Failure::TooLong { what, max })?;
    body.hurry(WHOLE_BODY_TIMEOUT);
    let mut memory = app.begin_buffer(call);
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await.map_err(|error| match error {
        BodyError::TooLong { .. } => Failure::TooLong { what, max },
        error => Failure::Body(error),
    })? {
        if memory.grow(piece.len() as u64).await? {
            body.hurry(LAST_RESORT_TIMEOUT);
        }
        bytes.extend_from_slice(&piece);
    }
    if coding != Compression::None {
        bytes = decode(app, &mut memory, coding, bytes, Failure::TooLong { what, max }, max).await?;
    }
    memory.grow((COPIES - 1) * bytes.len() as u64).await?;
    Ok(Buffered { value: bytes, memory })
}

async fn decode(
    app: &App,
    memory: &mut BufferShare,
    coding: Compression,
    bytes: Vec<u8>,
    too_long: Failure,
    max: u64,
) -> Result<Vec<u8>, Failure> {
    let fail = |error| decoding_failure(coding, error);
    let decoder_bytes = content_decoder_bytes(coding, &bytes)?;
    memory.grow(decoder_bytes).await?;
    let input: Input<'_> = stream::iter([Ok(Bytes::from(bytes))]).boxed();
    let mut decoder = Decoder::of(coding, input, decoder_bytes, app.engine.cpu());
    let mut plain = Vec::new();
    while let Some(piece) = decoder.next().await.map_err(fail)? {
        if (plain.len() + piece.len()) as u64 > max {
            return Err(too_long);
        }
        memory.grow(piece.len() as u64).await?;
        plain.extend_from_slice(&piece);
    }
    Ok(plain)
}

/// The body as a JSON document.
pub(crate) async fn read_json<T: DeserializeOwned>(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
) -> Result<Buffered<T>, Failure> {
    let Buffered { value: bytes, memory } =
        read(app, call, body, "the JSON body", app.settings.json_bytes_max).await?;
    let value = serde_json::from_slice(&bytes)
        .map_err(|error| Failure::BadRequest(format!("reading the JSON body: {error}")))?;
    Ok(Buffered { value, memory })
}

/// The body as text.
pub(crate) async fn read_text(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    what: &'static str,
) -> Result<Buffered<String>, Failure> {
    let Buffered { value: bytes, memory } =
        read(app, call, body, what, app.settings.narinfo_bytes_max).await?;
    let value = String::from_utf8(bytes).map_err(|_| Failure::BadRequest(format!("{what} is not text")))?;
    Ok(Buffered { value, memory })
}

/// What an error of a decoder is: the client's connection, or the client's bytes.
pub(crate) fn decoding_failure(compression: Compression, error: io::Error) -> Failure {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<BodyError>()) {
        Some(error) => Failure::Body(*error),
        None => Failure::Decode { compression: compression.name(), source: error },
    }
}
