//! One request to an address, as any client on this machine would send it: without retries and
//! without Dormer's token.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use dormer_api::{RedactedUrl, Secret};
use futures::StreamExt as _;
use reqwest::header::{DATE, WWW_AUTHENTICATE};

use crate::certificates::http_client;
use crate::error::{Error, Result};
use crate::redirects;
use crate::settings::process_variables;

/// Longest part of an answer that is kept.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// The answer.
#[derive(Debug, Clone)]
pub struct ProbeAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The server's clock, to the second.
    pub date: Option<SystemTime>,
    /// Whether the answer asks for a token in Dormer's words.
    pub is_dormers_challenge: bool,
    /// The body, at most one mebibyte of it.
    pub body: Bytes,
}

/// Sends a GET and reads the answer, whatever its status. Sends `password` with Basic, if there is
/// one, as Nix does with the password of a netrc file. The whole request may take `timeout`.
pub async fn probe(url: &str, password: Option<&Secret>, timeout: Duration) -> Result<ProbeAnswer> {
    let action = "probing the address".to_owned();
    let builder = http_client(!url.starts_with("http:"), &process_variables)?
        .redirect(match password {
            Some(_) => redirects::to_same_origin(),
            None => redirects::without_secrets(),
        })
        .timeout(timeout);
    let http = builder.build().map_err(Error::HttpClient)?;
    let mut request = http.get(url);
    if let Some(password) = password {
        request = request.basic_auth("dormer", Some(password.expose()));
    }
    let unreachable = |source: reqwest::Error| Error::Unreachable {
        action: action.clone(),
        endpoint: RedactedUrl::new(url).to_string(),
        tries: 1,
        // The library would show the address with its secrets.
        source: source.without_url(),
    };
    let response = request.send().await.map_err(unreachable)?;
    let status = response.status().as_u16();
    let date = response.headers().get(DATE).and_then(|value| value.to_str().ok());
    let date = date.and_then(|text| httpdate::parse_http_date(text).ok());
    let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
    let is_dormers_challenge =
        challenges.filter_map(|value| value.to_str().ok()).any(|text| text.contains("realm=\"dormer\""));
    let mut body = Vec::new();
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        body.extend_from_slice(&piece.map_err(unreachable)?);
        if body.len() >= BODY_BYTES_MAX {
            body.truncate(BODY_BYTES_MAX);
            break;
        }
    }
    Ok(ProbeAnswer { status, date, is_dormers_challenge, body: body.into() })
}
