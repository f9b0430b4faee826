//! One look at an address, as any client on this machine sees it: one request, no retries, no token of ours.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use dormer_api::Secret;
use futures::StreamExt as _;
use reqwest::header::DATE;

use crate::error::{Error, Result};

/// Longest part of an answer that is kept.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// What came back.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The HTTP status.
    pub status: u16,
    /// The server's clock, to the second.
    pub date: Option<SystemTime>,
    /// The body, at most a mebibyte of it.
    pub body: Bytes,
}

/// Sends a GET, with `password` as Basic if there is one (as Nix sends what stands in a netrc file), and reads the answer,
/// whatever its status. Everything together may take `timeout`.
pub async fn look(url: &str, password: Option<&Secret>, timeout: Duration) -> Result<Seen> {
    let action = "looking there".to_owned();
    let builder = reqwest::Client::builder()
        .user_agent(concat!("dormer/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::limited(3))
        .timeout(timeout);
    let builder = if url.starts_with("http:") { builder.tls_certs_only([]) } else { builder };
    let http = builder.build().map_err(Error::HttpClient)?;
    let mut request = http.get(url);
    if let Some(password) = password {
        request = request.basic_auth("dormer", Some(password.expose()));
    }
    let unreachable =
        |source| Error::Unreachable { action: action.clone(), endpoint: url.to_owned(), tries: 1, source };
    let response = request.send().await.map_err(unreachable)?;
    let status = response.status().as_u16();
    let date = response.headers().get(DATE).and_then(|value| value.to_str().ok());
    let date = date.and_then(|text| httpdate::parse_http_date(text).ok());
    let mut body = Vec::new();
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        body.extend_from_slice(&piece.map_err(unreachable)?);
        if body.len() >= BODY_BYTES_MAX {
            body.truncate(BODY_BYTES_MAX);
            break;
        }
    }
    Ok(Seen { status, date, body: body.into() })
}
