//! The store of the settings, and whether the keys for it fit together.

use dormer_stores::{Credentials, RemoteKind, RemoteSettings, RetryPolicy};

use super::error::Result;
use super::keys::{self, Key};
use super::origin::Origin;
use super::raw::Raw;
use super::values::{boolean, count, duration, integer, optional_text, path, text, wrong};

/// A store over the network.
#[derive(Debug, Clone)]
pub(crate) struct RemoteStorage {
    pub(crate) store: RemoteSettings,
    pub(crate) requests_max: usize,
    pub(crate) retries: RetryPolicy,
}

/// The keys that describe a store: those of `[storage]` or those of an edge target.
pub(super) struct StoreKeys {
    pub(super) section: &'static str,
    pub(super) kind: Key,
    pub(super) region: Key,
    pub(super) bucket: Key,
    pub(super) endpoint: Key,
    pub(super) prefix: Key,
    pub(super) path_style: Key,
    pub(super) ca_file: Key,
    pub(super) access_key_id: Key,
    pub(super) secret_access_key: Key,
    pub(super) connect_timeout: Key,
    pub(super) timeout: Key,
    pub(super) retry_time: Key,
}

const STORAGE: StoreKeys = StoreKeys {
    section: "storage",
    kind: keys::STORAGE_TYPE,
    region: keys::STORAGE_REGION,
    bucket: keys::STORAGE_BUCKET,
    endpoint: keys::STORAGE_ENDPOINT,
    prefix: keys::STORAGE_PREFIX,
    path_style: keys::STORAGE_PATH_STYLE,
    ca_file: keys::STORAGE_CA_FILE,
    access_key_id: keys::STORAGE_ACCESS_KEY_ID,
    secret_access_key: keys::STORAGE_SECRET_ACCESS_KEY,
    connect_timeout: keys::STORAGE_CONNECT_TIMEOUT,
    timeout: keys::STORAGE_TIMEOUT,
    retry_time: keys::STORAGE_RETRY_TIME,
};

impl StoreKeys {
    /// Keys that have no effect on a folder.
    fn remote(&self) -> [&Key; 8] {
        [
            &self.region,
            &self.bucket,
            &self.endpoint,
            &self.prefix,
            &self.path_style,
            &self.ca_file,
            &self.access_key_id,
            &self.secret_access_key,
        ]
    }
}

/// The remote store of the settings. `None` if packs are kept in a folder.
pub(super) fn remote_storage(raw: &Raw, notes: &mut Vec<String>) -> Result<Option<RemoteStorage>> {
    let Some((store, retries)) = remote_store(raw, &STORAGE, notes)? else { return Ok(None) };
    let requests_max = count(integer(raw, &keys::STORAGE_REQUESTS).unsigned_abs());
    Ok(Some(RemoteStorage { store, requests_max, retries }))
}

/// The store that these keys describe. `None` for a folder.
pub(super) fn remote_store(
    raw: &Raw,
    keys: &StoreKeys,
    notes: &mut Vec<String>,
) -> Result<Option<(RemoteSettings, RetryPolicy)>> {
    let kind = match text(raw, &keys.kind) {
        "s3" => RemoteKind::S3,
        "gcs" => RemoteKind::Gcs,
        "azure" => RemoteKind::Azure,
        _ => {
            note_keys_without_effect(raw, keys, notes);
            return Ok(None);
        }
    };
    let Some(bucket) = optional_text(raw, &keys.bucket).filter(|bucket| !bucket.is_empty()) else {
        return Err(wrong(raw, &keys.kind, format!("needs {} too", keys.bucket.path)));
    };
    let access_key_id = optional_text(raw, &keys.access_key_id);
    let secret_access_key = optional_text(raw, &keys.secret_access_key);
    let credentials = match (access_key_id, secret_access_key) {
        (Some(access_key_id), Some(secret_access_key)) => {
            Some(Credentials { access_key_id, secret_access_key })
        }
        (None, None) => None,
        (Some(_), None) => {
            let problem = format!("needs {} too", keys.secret_access_key.path);
            return Err(wrong(raw, &keys.access_key_id, problem));
        }
        (None, Some(_)) => {
            let problem = format!("needs {} too", keys.access_key_id.path);
            return Err(wrong(raw, &keys.secret_access_key, problem));
        }
    };
    // Names in the wrong place would be quoted by the store's errors, with a password in them.
    for key in [&keys.bucket, &keys.prefix, &keys.region] {
        if optional_text(raw, key).is_some_and(|text| text.contains("://")) {
            return Err(wrong(raw, key, format!("must be a name; {} is for addresses", keys.endpoint.path)));
        }
    }
    let endpoint = optional_text(raw, &keys.endpoint).map(|url| url.trim_end_matches('/').to_owned());
    // The library that speaks to the store quotes the whole address in its errors.
    if endpoint.as_deref().is_some_and(is_more_than_an_address) {
        let problem = format!(
            "must have no user name, password or parameters in it; {} and {} are for credentials",
            keys.access_key_id.path, keys.secret_access_key.path
        );
        return Err(wrong(raw, &keys.endpoint, problem));
    }
    // R2's name for its one region. Amazon has none of that name, and the host of that name would
    // not be found.
    if endpoint.is_none() && optional_text(raw, &keys.region).as_deref() == Some("auto") {
        let problem = format!(
            "`auto` is R2's and needs {}: https://ACCOUNT.r2.cloudflarestorage.com",
            keys.endpoint.path
        );
        return Err(wrong(raw, &keys.region, problem));
    }
    // Self-hosted servers rarely have a wildcard in their DNS.
    let path_style =
        raw.find(&keys.path_style).map_or(endpoint.is_some(), |_| boolean(raw, &keys.path_style));
    let store = RemoteSettings {
        kind,
        bucket,
        prefix: optional_text(raw, &keys.prefix).unwrap_or_default(),
        endpoint,
        region: optional_text(raw, &keys.region),
        credentials,
        path_style,
        ca_file: raw.find(&keys.ca_file).map(|_| path(raw, &keys.ca_file)),
        connect_timeout: duration(raw, &keys.connect_timeout),
        request_timeout: duration(raw, &keys.timeout),
    };
    let retries = RetryPolicy { time_max: duration(raw, &keys.retry_time), ..RetryPolicy::default() };
    Ok(Some((store, retries)))
}

fn is_more_than_an_address(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    authority.contains('@') || url.contains(['?', '#'])
}

fn note_keys_without_effect(raw: &Raw, keys: &StoreKeys, notes: &mut Vec<String>) {
    let set: Vec<&str> = keys
        .remote()
        .into_iter()
        .filter(|key| raw.find(key).is_some_and(|setting| setting.origin != Origin::Default))
        .map(|key| key.path)
        .collect();
    if !set.is_empty() {
        notes.push(format!("without effect: {} ({}.type is \"local\")", set.join(", "), keys.section));
    }
}
