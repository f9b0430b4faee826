//! Checks the server's own address: whether a server answers there, and whether it has our key.

use std::time::{Duration, SystemTime};

use dormer_api::{CacheName, Permission, RedactedUrl};
use dormer_client::{ApiClient, Endpoint, HttpSettings, RetryPolicy};
use dormer_http_host::ListenAddress;

use super::clock::Clocks;
use super::finding::Finding;
use super::probe_timeout::PROBE_TIMEOUT;
use crate::commands::serve;
use crate::error::Error;
use crate::settings::{Settings, SigningKey};
use crate::tokens;

const SUBJECT: &str = "endpoint";

/// Asks `api-endpoint`, or without this setting the address that the server listens on.
pub(super) async fn check(settings: &Settings, clocks: &mut Clocks) -> Vec<Finding> {
    let is_public = settings.api_endpoint.is_some();
    if let (false, ListenAddress::Unix(_)) = (is_public, &settings.listen) {
        return vec![Finding::warn(
            SUBJECT,
            format!("the server listens on {}, which this check cannot ask", settings.listen),
            ["set api-endpoint to the address that the proxy gives to its users"],
        )];
    }
    let url = serve::own_url(settings, &settings.listen);
    let seen = match dormer_client::probe(&format!("{}/healthz", url.expose()), None, PROBE_TIMEOUT).await {
        Ok(seen) => seen,
        Err(error) if is_public => {
            return vec![Finding::fail(
                SUBJECT,
                Error::from(error).chain(),
                [
                    "does the server run, does the name lead here, is the certificate valid? Try it: curl -v URL/healthz",
                ],
            )];
        }
        // Without api-endpoint, the server need not be running.
        Err(_) => {
            return vec![Finding::warn(
                SUBJECT,
                format!("no server answers at {url}"),
                [
                    "start it: dormer serve; behind a proxy, set api-endpoint to the address that its users see",
                ],
            )];
        }
    };
    if let Some(date) = seen.date.filter(|_| is_public) {
        clocks.saw("api-endpoint", date);
    }
    if seen.status != 200 {
        return vec![Finding::fail(
            SUBJECT,
            format!("{url}/healthz answers {}", seen.status),
            ["is it the proxy that answers? It must pass all paths on, and the Host header"],
        )];
    }
    vec![ask_as_ourselves(settings, &url).await]
}

/// Sends our own token for a cache that does not exist. A server with our key answers that there is
/// no such cache. Any other server refuses the token.
async fn ask_as_ourselves(settings: &Settings, url: &RedactedUrl) -> Finding {
    let answers = format!("{url} answers");
    let Ok(key) = tokens::signing_key(settings) else {
        return Finding::warn(
            SUBJECT,
            format!("{answers}, but there is no key here to recognise the server by"),
            [],
        );
    };
    if matches!(key, SigningKey::Rs256Public(_)) {
        return Finding::ok(
            SUBJECT,
            format!("{answers}; tokens are made elsewhere, so its key was not tried"),
        );
    }
    let name = format!("doctor-{:016x}", rand::random::<u64>());
    let cache: CacheName = name.parse().expect("letters, digits and a dash");
    let asked = async {
        let wish = tokens::Wish {
            subject: "doctor".to_owned(),
            validity: Duration::from_mins(5),
            grants: vec![(name.parse().expect("a name is a pattern"), Permission::Pull)],
            operates: false,
        };
        let token = tokens::sign(&key, &tokens::claims(&wish, &settings.jwt, SystemTime::now()))?;
        let endpoint: Endpoint = url.expose().parse()?;
        let patience = HttpSettings {
            connect_timeout: PROBE_TIMEOUT,
            idle_timeout: PROBE_TIMEOUT,
            retry: RetryPolicy { tries_max: 1, ..RetryPolicy::default() },
        };
        ApiClient::new(endpoint, Some(&token), patience)?.get_cache_config(&cache).await.map_err(Error::from)
    };
    match asked.await {
        Err(Error::Client(dormer_client::Error::NoSuchCache { .. })) => {
            Finding::ok(SUBJECT, format!("{answers}, and accepts our tokens"))
        }
        Err(Error::Client(dormer_client::Error::Unauthorized { .. })) => Finding::fail(
            SUBJECT,
            format!("{answers}, but refuses a token made here"),
            ["another server answers there, or this one runs with another token secret, issuer or audience"],
        ),
        Ok(_) => Finding::fail(
            SUBJECT,
            format!("{answers}, but claims to have a cache that cannot exist: this is not a Dormer server"),
            ["what listens at this address?"],
        ),
        Err(error) => Finding::error(SUBJECT, &error),
    }
}
