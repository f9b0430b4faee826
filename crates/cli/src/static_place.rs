//! Where a static cache lies: a folder, a bucket, or an address on the web. `dormer export --to`
//! and `dormer import --from` name places in the same way as Nix names its stores.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use dormer_api::RedactedUrl;
use dormer_stores::{CallPolicy, RemoteKind, RemoteSettings, RetryPolicy, Store};
use reqwest::Url;

use crate::error::Result;

/// How long a connection to a bucket may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a request to a bucket may take, its body included: a part of a large NAR over a slow
/// line.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(10);

/// Most requests to a bucket at once. The number adapts to what the bucket bears.
const REQUESTS_MAX: usize = 32;

/// A place of a static cache.
#[derive(Debug, Clone)]
pub(crate) enum StaticPlace {
    /// A folder.
    Folder(PathBuf),
    /// A bucket, perhaps with a prefix.
    Bucket(Box<RemoteSettings>),
    /// An address on the web. It has no listing.
    Web(Url),
}

impl FromStr for StaticPlace {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return if text.is_empty() {
                Err("it is empty".to_owned())
            } else {
                Ok(Self::Folder(text.into()))
            };
        };
        let kind = match scheme {
            "file" => {
                // Nix's parameters of a store, such as `?compression=xz`, are no part of the path.
                let path = rest.split('?').next().unwrap_or_default();
                return match path.strip_prefix("localhost/") {
                    Some(path) => Ok(Self::Folder(format!("/{path}").into())),
                    None if path.starts_with('/') => Ok(Self::Folder(path.into())),
                    None => Err("a file:// address needs a full path".to_owned()),
                };
            }
            "http" | "https" => {
                let url = Url::parse(text).map_err(|error| error.to_string())?;
                return Ok(Self::Web(url));
            }
            "s3" => RemoteKind::S3,
            "gs" => RemoteKind::Gcs,
            "az" => RemoteKind::Azure,
            _ => {
                let scheme = RedactedUrl::new(scheme);
                return Err(format!(
                    "{scheme}:// is unknown: expected a folder, s3://, gs://, az:// or http(s)://"
                ));
            }
        };
        bucket(kind, rest).map(|settings| Self::Bucket(Box::new(settings)))
    }
}

/// Reads `bucket/prefix?endpoint=…&region=…`, as Nix writes it.
fn bucket(kind: RemoteKind, rest: &str) -> std::result::Result<RemoteSettings, String> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
    if bucket.is_empty() || bucket.contains('@') {
        return Err("it names no bucket: expected s3://BUCKET/PREFIX".to_owned());
    }
    let (mut endpoint, mut region, mut scheme) = (None, None, "https".to_owned());
    // Only the form of a query is wanted of this address.
    let query = Url::parse(&format!("http://query/?{query}")).map_err(|error| error.to_string())?;
    for (name, value) in query.query_pairs() {
        match &*name {
            "endpoint" => endpoint = Some(value.trim_end_matches('/').to_owned()),
            "region" => region = Some(value.into_owned()),
            "scheme" => scheme = value.into_owned(),
            _ => {
                let name = RedactedUrl::new(&*name);
                return Err(format!("the parameter {name} is unknown: expected endpoint, region or scheme"));
            }
        }
    }
    // Nix writes a host, and the scheme apart.
    let endpoint: Option<String> = endpoint
        .map(|endpoint| if endpoint.contains("://") { endpoint } else { format!("{scheme}://{endpoint}") });
    Ok(RemoteSettings {
        kind,
        bucket: bucket.to_owned(),
        prefix: prefix.trim_matches('/').to_owned(),
        path_style: endpoint.is_some(),
        endpoint,
        region,
        credentials: None,
        ca_file: std::env::var_os("NIX_SSL_CERT_FILE")
            .or_else(|| std::env::var_os("SSL_CERT_FILE"))
            .map(PathBuf::from),
        connect_timeout: CONNECT_TIMEOUT,
        request_timeout: REQUEST_TIMEOUT,
    })
}

/// Opens a bucket with the credentials of the environment.
fn open_bucket(settings: &RemoteSettings) -> Result<Store> {
    let policy =
        CallPolicy { retries: RetryPolicy::default(), requests_max: Some(REQUESTS_MAX), turn_wait: None };
    Ok(Store::open(settings, &policy)?)
}

impl StaticPlace {
    /// Opens a folder, which has to exist, or a bucket, to read from.
    ///
    /// # Panics
    ///
    /// For an address on the web, which is no store.
    pub(crate) fn open_to_read(&self) -> Result<Store> {
        match self {
            Self::Folder(path) => Ok(Store::existing_folder(path)?),
            Self::Bucket(settings) => open_bucket(settings),
            Self::Web(_) => unreachable!("a client reads from the web"),
        }
    }

    /// Opens the place to write to. `None` for an address on the web.
    pub(crate) fn open_to_write(&self) -> Result<Option<Store>> {
        Ok(match self {
            Self::Folder(path) => Some(Store::folder(path)?),
            Self::Bucket(settings) => Some(open_bucket(settings)?),
            Self::Web(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_as_nix_writes_them() {
        let folder = |text: &str| match text.parse::<StaticPlace>() {
            Ok(StaticPlace::Folder(path)) => path.display().to_string(),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(folder("out"), "out");
        assert_eq!(folder("/srv/cache"), "/srv/cache");
        assert_eq!(folder("file:///srv/cache?compression=xz"), "/srv/cache");
        let bucket = |text: &str| match text.parse::<StaticPlace>() {
            Ok(StaticPlace::Bucket(settings)) => {
                (settings.bucket, settings.prefix, settings.endpoint, settings.region)
            }
            other => panic!("{text}: {other:?}"),
        };
        let text = str::to_owned;
        assert_eq!(bucket("s3://nix/"), (text("nix"), text(""), None, None));
        assert_eq!(
            bucket("s3://nix/a/b?region=eu-1&endpoint=localhost:9000&scheme=http"),
            (text("nix"), text("a/b"), Some(text("http://localhost:9000")), Some(text("eu-1")))
        );
        assert_eq!(bucket("s3://nix?endpoint=https://s3.example").2, Some(text("https://s3.example")));
        assert!(matches!("https://cache.example/main".parse(), Ok(StaticPlace::Web(_))));
        for wrong in ["", "s3://", "s3:///a", "file://relative", "ftp://a/b", "s3://a?profil=x", "s3://k@b"] {
            assert!(wrong.parse::<StaticPlace>().is_err(), "{wrong}");
        }
    }
}
