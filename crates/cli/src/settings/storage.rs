//! Which store the settings name, and whether what belongs to it is there.

use dormer_blobs::remote::{Credentials, RemoteKind};
use dormer_blobs::{RemoteSettings, RetryPolicy};

use super::error::Result;
use super::keys::{self, Key};
use super::raw::{Origin, Raw};
use super::resolve::{boolean, count, duration, integer, optional_text, path, text, wrong};

/// A store over a network.
#[derive(Debug, Clone)]
pub(crate) struct RemoteStorage {
    pub(crate) store: RemoteSettings,
    pub(crate) requests_max: usize,
    pub(crate) retries: RetryPolicy,
}

/// Keys that mean nothing for a folder.
const REMOTE_KEYS: [&Key; 8] = [
    &keys::STORAGE_REGION,
    &keys::STORAGE_BUCKET,
    &keys::STORAGE_ENDPOINT,
    &keys::STORAGE_PREFIX,
    &keys::STORAGE_PATH_STYLE,
    &keys::STORAGE_CA_FILE,
    &keys::STORAGE_ACCESS_KEY_ID,
    &keys::STORAGE_SECRET_ACCESS_KEY,
];

/// `None`: packs are kept in a folder.
pub(super) fn remote_storage(raw: &Raw, notes: &mut Vec<String>) -> Result<Option<RemoteStorage>> {
    let kind = match text(raw, &keys::STORAGE_TYPE) {
        "s3" => RemoteKind::S3,
        "gcs" => RemoteKind::Gcs,
        "azure" => RemoteKind::Azure,
        _ => {
            note_keys_without_effect(raw, notes);
            return Ok(None);
        }
    };
    let Some(bucket) = optional_text(raw, &keys::STORAGE_BUCKET).filter(|bucket| !bucket.is_empty()) else {
        return Err(wrong(raw, &keys::STORAGE_TYPE, "needs storage.bucket beside it".to_owned()));
    };
    let access_key_id = optional_text(raw, &keys::STORAGE_ACCESS_KEY_ID);
    let secret_access_key = optional_text(raw, &keys::STORAGE_SECRET_ACCESS_KEY);
    let credentials = match (access_key_id, secret_access_key) {
        (Some(access_key_id), Some(secret_access_key)) => {
            Some(Credentials { access_key_id, secret_access_key })
        }
        (None, None) => None,
        (Some(_), None) => {
            let problem = "needs storage.credentials.secret_access_key beside it".to_owned();
            return Err(wrong(raw, &keys::STORAGE_ACCESS_KEY_ID, problem));
        }
        (None, Some(_)) => {
            let problem = "needs storage.credentials.access_key_id beside it".to_owned();
            return Err(wrong(raw, &keys::STORAGE_SECRET_ACCESS_KEY, problem));
        }
    };
    let endpoint =
        optional_text(raw, &keys::STORAGE_ENDPOINT).map(|url| url.trim_end_matches('/').to_owned());
    // Servers of one's own rarely have a wildcard in their DNS.
    let path_style = raw
        .find(&keys::STORAGE_PATH_STYLE)
        .map_or(endpoint.is_some(), |_| boolean(raw, &keys::STORAGE_PATH_STYLE));
    Ok(Some(RemoteStorage {
        store: RemoteSettings {
            kind,
            bucket,
            prefix: optional_text(raw, &keys::STORAGE_PREFIX).unwrap_or_default(),
            endpoint,
            region: optional_text(raw, &keys::STORAGE_REGION),
            credentials,
            path_style,
            ca_file: raw.find(&keys::STORAGE_CA_FILE).map(|_| path(raw, &keys::STORAGE_CA_FILE)),
            connect_timeout: duration(raw, &keys::STORAGE_CONNECT_TIMEOUT),
            request_timeout: duration(raw, &keys::STORAGE_TIMEOUT),
        },
        requests_max: count(integer(raw, &keys::STORAGE_REQUESTS).unsigned_abs()),
        retries: RetryPolicy { time_max: duration(raw, &keys::STORAGE_RETRY_TIME), ..RetryPolicy::default() },
    }))
}

fn note_keys_without_effect(raw: &Raw, notes: &mut Vec<String>) {
    let set: Vec<&str> = REMOTE_KEYS
        .iter()
        .filter(|key| raw.find(key).is_some_and(|setting| setting.origin != Origin::Default))
        .map(|key| key.path)
        .collect();
    if !set.is_empty() {
        notes.push(format!("without effect: {} (storage.type is \"local\")", set.join(", ")));
    }
}
