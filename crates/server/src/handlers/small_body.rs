//! Bodies that are read whole: JSON, narinfos, `nix-cache-info`.

use std::io;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;

use crate::app::App;
use crate::call::Call;
use crate::codec::{self, Compression, WindowTooLarge};
use crate::decoder::Input;
use crate::failure::Failure;
use crate::request_body::{BodyError, RequestBody};

/// Most memory for decoding a `Content-Encoding`, in bytes: more than any encoder's default needs.
pub(crate) const CONTENT_DECODER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Memory that acting on a body takes, in its own length: the body, what is read from it, and what
/// is answered.
const COPIES: u64 = 4;

/// How long a body that is read whole, or the metadata before a NAR, may take to come: 4 MiB over
/// half a Mbit/s. While it comes, others wait for the memory that it has.
pub(crate) const WHOLE_BODY_TIMEOUT: Duration = Duration::from_mins(1);

/// The contents of a body, with the memory that handling it may take.
pub(crate) struct Buffered<T> {
    pub(crate) value: T,
    pub(crate) memory: OwnedSemaphorePermit,
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

/// Memory to decode a `Content-Encoding` whose stream begins so.
pub(crate) fn content_decoder_bytes(coding: Compression, head: &[u8]) -> Result<u64, Failure> {
    let needed = coding.decoder_bytes(head)?;
    if needed > CONTENT_DECODER_BYTES_MAX { Err(WindowTooLarge(needed).into()) } else { Ok(needed) }
}

/// The whole body, decoded, if it is not longer than `max`.
pub(crate) async fn read(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    what: &'static str,
    max: usize,
) -> Result<Buffered<Vec<u8>>, Failure> {
    let max = max as u64;
    let too_long = Failure::TooLong { what, max };
    let coding = content_encoding(call)?;
    let declared = call.header(CONTENT_LENGTH).and_then(|value| value.parse::<u64>().ok());
    if declared.is_some_and(|length| length > max) {
        return Err(too_long);
    }
    body.hurry(WHOLE_BODY_TIMEOUT);
    let fail = |error| decoding_failure(coding, error);
    let input: Input<'_> = body.map_err(io::Error::from).boxed();
    let (head, input) = codec::peek(input).await.map_err(fail)?;
    let decoder_bytes = content_decoder_bytes(coding, &head)?;
    let expected = if coding == Compression::None { declared.unwrap_or(max) } else { max };
    let memory = app.reserve_buffer(COPIES * expected + decoder_bytes).await?;
    let mut decoder = coding.decode(input, decoder_bytes, app.engine.cpu());
    let mut bytes = Vec::new();
    while let Some(piece) = decoder.next().await.map_err(fail)? {
        if (bytes.len() + piece.len()) as u64 > max {
            return Err(too_long);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Buffered { value: bytes, memory })
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
