//! Checks the caches that this machine uses: what Nix reads from nix.conf, whether each cache
//! answers, and whether its signatures verify.

use std::fs;
use std::time::{Duration, SystemTime};

use dormer_api::{CacheConfig, RedactedUrl, Secret};
use dormer_client::{NixConfig, host_of, netrc_password};
use dormer_nix::{CacheInfo, NarInfo, PublicKey, Signature, StoreDir, StorePath};

use super::finding::Finding;
use super::nix::ClientFiles;
use super::probe_timeout::PROBE_TIMEOUT;
use crate::commands::use_cache::lost_setting;
use crate::context::{Context, variables_of_settings};
use crate::error::{Error, Result};

const CACHE: &str = "cache";
const SERVER: &str = "server";
/// A token that is valid for a shorter time is worth a warning.
const TOKEN_TIME_MIN: Duration = Duration::from_hours(14 * 24);
/// Most paths of the local store to ask for, until the cache has one with a signature to check.
const PATHS_TRIED_MAX: usize = 64;

/// Something to check.
pub(super) enum CheckTarget {
    /// A cache from `dormer use`.
    Cache { name: String, url: String, key: PublicKey },
    /// A server from `dormer login`.
    Server(Box<dormer_client::ResolvedServer>),
    /// An entry that makes no sense, and what to do about it.
    Broken(Finding),
}

/// Everything that this machine uses, according to its files.
pub(super) fn check_targets(files: &ClientFiles, context: &Context) -> Result<Vec<CheckTarget>> {
    let mut targets = servers(context)?;
    for place in &files.all {
        for name in place.conf.names() {
            let lines = place.conf.lines_of(name);
            let value = |key: &str| {
                lines
                    .iter()
                    .find_map(|line| line.split_once(" = ").filter(|(name, _)| *name == key))
                    .map(|(_, value)| value)
            };
            // Nix's settings for the store are no part of its address.
            let url = value("extra-substituters").and_then(|url| url.split('?').next());
            let key = value("extra-trusted-public-keys").and_then(|key| key.parse().ok());
            targets.push(match (url, key) {
                (Some(url), Some(key)) => {
                    CheckTarget::Cache { name: name.to_owned(), url: url.to_owned(), key }
                }
                _ => CheckTarget::Broken(Finding::fail(
                    CACHE,
                    format!("the lines of {name} in {} were changed", place.conf_path.display()),
                    ["remove and recreate them: dormer unuse CACHE, dormer use CACHE"],
                )),
            });
        }
    }
    if targets.is_empty() {
        targets.push(CheckTarget::Broken(Finding::warn(
            CACHE,
            "this machine uses no cache of Dormer",
            ["dormer login NAME URL --token-file FILE, then dormer use CACHE"],
        )));
    }
    Ok(targets)
}

/// The server of the command line, else those of the variables and the settings.
fn servers(context: &Context) -> Result<Vec<CheckTarget>> {
    let one = |server| CheckTarget::Server(Box::new(server));
    if let Some(server) = context.server_of_command_line(None) {
        return Ok(vec![one(server)]);
    }
    let mut targets: Vec<CheckTarget> = Context::server_of_environment()?.map(one).into_iter().collect();
    let settings = Context::client_settings()?;
    for name in settings.settings.servers.keys() {
        targets.push(match settings.resolve_server(Some(name), &variables_of_settings) {
            Ok(server) => one(server),
            Err(error) => CheckTarget::Broken(Finding::error(SERVER, &Error::from(error))),
        });
    }
    Ok(targets)
}

/// Checks one of them.
pub(super) async fn check(
    target: &CheckTarget,
    files: &ClientFiles,
    nix: Option<&NixConfig>,
) -> Vec<Finding> {
    match target {
        CheckTarget::Broken(finding) => vec![finding.clone()],
        CheckTarget::Server(server) => {
            let mut findings = vec![check_server(server).await];
            let name = server.name.as_str();
            let token = server.token.as_ref();
            findings.extend(token.and_then(|token| check_expiry(SERVER, name, token, SystemTime::now())));
            findings
        }
        CheckTarget::Cache { name, url, key } => {
            let mut findings: Vec<Finding> =
                nix.map(|nix| check_settings(nix, name, url, key)).into_iter().collect();
            let host = host_of(url);
            let netrc = fs::read_to_string(files.netrc_path(nix)).unwrap_or_default();
            let password = netrc_password(&netrc, host).map(Secret::new);
            // The netrc file has a copy, which can be older than the token of `dormer login`.
            let place = format!("{name} in the netrc file");
            let token = password.as_ref();
            findings.extend(token.and_then(|token| check_expiry(CACHE, &place, token, SystemTime::now())));
            match check_address(name, url, password.as_ref()).await {
                Ok(finding) => findings.push(finding),
                Err(finding) => {
                    findings.push(finding);
                    return findings;
                }
            }
            findings.extend(check_key(name, url, key, password.as_ref()).await);
            findings.push(check_signature(name, url, key, nix, password.as_ref()).await);
            findings
        }
    }
}

/// Warns before a token expires: since Nix 2.35, a token that does not count stops builds.
fn check_expiry(subject: &'static str, name: &str, token: &Secret, now: SystemTime) -> Option<Finding> {
    let left = dormer_client::token_expiry(token)?.duration_since(now).unwrap_or_default();
    if left > TOKEN_TIME_MIN {
        return None;
    }
    let when = match left.as_secs() / 86_400 {
        _ if left.is_zero() => "has expired".to_owned(),
        0 => "expires within a day".to_owned(),
        days => format!("expires in {days} days"),
    };
    Some(Finding::warn(
        subject,
        format!("the token for {name} {when}"),
        ["get a new one: log in with it (dormer login), then dormer unuse and dormer use each private cache"],
    ))
}

async fn check_server(server: &dormer_client::ResolvedServer) -> Finding {
    let patience = dormer_client::HttpSettings {
        connect_timeout: PROBE_TIMEOUT,
        idle_timeout: PROBE_TIMEOUT,
        retry: dormer_client::RetryPolicy { tries_max: 1, ..dormer_client::RetryPolicy::default() },
    };
    let asked = async {
        dormer_client::ApiClient::new(server.endpoint.clone(), server.token.as_ref(), patience)?
            .list_caches()
            .await
    };
    let name = &server.name;
    match asked.await {
        Ok(answer) => {
            let count = answer.caches.len();
            let caches = if count == 1 { "1 cache".to_owned() } else { format!("{count} caches") };
            if count == 0 && server.token.is_some() {
                return Finding::warn(
                    SERVER,
                    format!("{name} answers, but shows no cache to this token"),
                    ["the token may have expired: log in with a new one (dormer login)"],
                );
            }
            Finding::ok(SERVER, format!("{name} answers, with {caches}"))
        }
        Err(error) => Finding::error(SERVER, &Error::from(error)),
    }
}

/// Whether Nix applies what nix.conf says. A later line of a setting undoes an earlier one.
fn check_settings(nix: &NixConfig, name: &str, url: &str, key: &PublicKey) -> Finding {
    let Some(lost) = lost_setting(nix, url, key) else {
        return Finding::ok(CACHE, format!("{name}: Nix has its address and its key"));
    };
    Finding::fail(
        CACHE,
        format!("{name} is in nix.conf, but not in Nix's {lost}"),
        [
            "a later line replaces the list: make that an `extra-` line or move it up (`nix config show` shows the result)",
        ],
    )
}

/// Asks the cache in the way of Nix. `Err` means that no further check is possible.
async fn check_address(name: &str, url: &str, password: Option<&Secret>) -> Result<Finding, Finding> {
    let seen = dormer_client::probe(&format!("{url}/nix-cache-info"), password, PROBE_TIMEOUT).await;
    let seen = seen.map_err(|error| Finding::error(CACHE, &Error::from(error)))?;
    match (seen.status, password) {
        (200, _) => {}
        (401 | 403, None) => {
            return Err(Finding::fail(
                CACHE,
                format!("{name} wants a token, and Nix has none for {}", host_of(url)),
                ["run `dormer use` again: it puts the token into the netrc file"],
            ));
        }
        (401 | 403, Some(_)) => {
            return Err(Finding::fail(
                CACHE,
                format!("{name} does not accept the token in the netrc file"),
                [
                    "the token may have expired: log in with a new one (dormer login), then dormer unuse and dormer use",
                ],
            ));
        }
        (status, _) => {
            return Err(Finding::fail(
                CACHE,
                format!("{name}: {}/nix-cache-info answers {status}", RedactedUrl::new(url)),
                ["does the cache still exist? dormer cache list"],
            ));
        }
    }
    let info = CacheInfo::parse(&seen.body);
    let own = std::env::var("NIX_STORE_DIR").unwrap_or_else(|_| StoreDir::default().to_string());
    match &info.store_dir {
        Some(store) if *store != own => Err(Finding::fail(
            CACHE,
            format!("{name} is for the store {store}, and this machine's is {own}"),
            ["Nix ignores it here; make a cache for this store"],
        )),
        None if info.is_empty() => Err(Finding::fail(
            CACHE,
            format!("the program at {} is not a binary cache", RedactedUrl::new(url)),
            ["is there another program at this address, or a proxy's login page?"],
        )),
        // Nix takes a cache that names no store as one of its own.
        Some(_) | None => Ok(Finding::ok(CACHE, format!("{name} answers at {}", RedactedUrl::new(url)))),
    }
}

/// Whether the cache still has the key that this machine trusts. Not every host of a cache can
/// tell.
async fn check_key(name: &str, url: &str, key: &PublicKey, password: Option<&Secret>) -> Option<Finding> {
    let seen =
        dormer_client::probe(&format!("{url}/attic-cache-info"), password, PROBE_TIMEOUT).await.ok()?;
    let config: CacheConfig = serde_json::from_slice(&seen.body).ok()?;
    let theirs = config.public_key?;
    (theirs != key.to_string()).then(|| {
        Finding::warn(
            CACHE,
            format!("{name} now has another signing key: {theirs}"),
            ["if this was intended: dormer unuse CACHE, dormer use CACHE"],
        )
    })
}

/// Verifies the signature of any path that both this machine and the cache have.
async fn check_signature(
    name: &str,
    url: &str,
    key: &PublicKey,
    nix: Option<&NixConfig>,
    password: Option<&Secret>,
) -> Finding {
    let store_dir: StoreDir =
        std::env::var("NIX_STORE_DIR").ok().and_then(|dir| dir.parse().ok()).unwrap_or_default();
    let paths = local_paths(&store_dir);
    for path in &paths {
        let narinfo = format!("{url}/{}.narinfo", path.hash());
        let Ok(seen) = dormer_client::probe(&narinfo, password, PROBE_TIMEOUT).await else { break };
        if seen.status != 200 {
            continue;
        }
        let text = String::from_utf8_lossy(&seen.body).into_owned();
        let info = match NarInfo::parse(&text, &store_dir) {
            Ok(info) => info,
            Err(error) => {
                return Finding::fail(
                    CACHE,
                    format!("{name}: {}: {error}", RedactedUrl::new(&narinfo)),
                    ["the narinfo of this cache is damaged"],
                );
            }
        };
        let trusted: Vec<PublicKey> = nix
            .map(|nix| nix.list("trusted-public-keys").iter().filter_map(|key| key.parse().ok()).collect())
            .unwrap_or_default();
        let message = info.fingerprint(&store_dir);
        // Ignores signatures of unknown forms, as Nix does.
        let signatures: Vec<Signature> = info.sigs.iter().filter_map(|text| text.parse().ok()).collect();
        let verifies = |key: &PublicKey| signatures.iter().any(|one| key.verify(&message, one).is_ok());
        if verifies(key) || trusted.iter().any(verifies) {
            return Finding::ok(CACHE, format!("{name}: the signature of {path} verifies"));
        }
        return Finding::fail(
            CACHE,
            format!("{name}: no trusted key has signed {path}"),
            [
                "Nix refuses such paths; if the cache's signing key changed: dormer unuse CACHE, dormer use CACHE",
            ],
        );
    }
    Finding::ok(
        CACHE,
        format!("{name} has none of {} paths of this machine, so no signature was verified", paths.len()),
    )
}

fn local_paths(store_dir: &StoreDir) -> Vec<StorePath> {
    let entries = fs::read_dir(store_dir.as_str()).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    // Sorted by hash, so that every run tries the same sample.
    names.sort_unstable();
    names.iter().filter_map(|name| name.parse().ok()).take(PATHS_TRIED_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_warned_about_before_it_expires() {
        // `{"exp":784111777}`
        let token = Secret::new("e30.eyJleHAiOjc4NDExMTc3N30.c2ln");
        let expiry = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let at = |before: Duration| {
            check_expiry(SERVER, "lab", &token, expiry - before).map(|finding| finding.message)
        };
        assert_eq!(at(Duration::from_hours(15 * 24)), None);
        assert_eq!(at(Duration::from_hours(49)).as_deref(), Some("the token for lab expires in 2 days"));
        assert_eq!(at(Duration::from_hours(1)).as_deref(), Some("the token for lab expires within a day"));
        assert_eq!(at(Duration::ZERO).as_deref(), Some("the token for lab has expired"));
        assert_eq!(check_expiry(SERVER, "lab", &Secret::new("opaque"), expiry), None);
    }
}
