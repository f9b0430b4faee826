//! From settings, an address or a path to a [`Store`]. Nothing is sent to a store yet.

use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig};
use reqwest::Certificate;
use url::Url;

use crate::counters::Counters;
use crate::exchange::Connector;
use crate::settings::{RemoteKind, RemoteSettings, check_endpoint, without_secrets};
use crate::store::{CallPolicy, Medium, Parts, Store};

/// Why a store could not be opened. Nothing was sent to it yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file of certificates cannot be read.
    #[error("failed to read the certificates in {path}")]
    ReadCertificates {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file holds no certificates: a private key, or something else altogether.
    #[error("{path} holds no certificates in PEM")]
    NoCertificates {
        /// The file.
        path: PathBuf,
    },
    /// The file holds certificates that cannot be parsed.
    #[error("failed to read the certificates in {path} as PEM")]
    ParseCertificates {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: reqwest::Error,
    },
    /// The settings do not fit together.
    #[error("the settings of the store {store} do not work")]
    Settings {
        /// Name of the store.
        store: String,
        /// Why it failed.
        #[source]
        source: object_store::Error,
    },
    /// The address names no bucket, or its settings do not work.
    #[error("'{url}' is not a bucket that can be opened")]
    Address {
        /// The address.
        url: String,
        /// Why it failed.
        #[source]
        source: object_store::Error,
    },
    /// The address of a store's server has a secret in it, which errors of the library would show.
    #[error(
        "{variable} must have no user name, password or parameters in it; other variables are for credentials"
    )]
    SecretInEndpoint {
        /// The variable of the environment.
        variable: String,
    },
    /// The folder cannot be used.
    #[error("{} is not a folder that can be read", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Idle connections that are kept: as many as requests run at once by default.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// Servers drop idle connections after 15 s (SeaweedFS) to 60 s. Ours are dropped first, so that no
/// request meets a dead connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection to a store with an address may take.
const ADDRESS_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a request to a store with an address may take, its body included. A slow reader of a
/// large NAR takes hours; the program that serves the NAR bounds every single wait.
const ADDRESS_REQUEST_TIMEOUT: Duration = Duration::from_hours(24);

/// Settings that a store's own tools read from variables begin with one of these. The library also
/// knows bare names, such as `token` and `endpoint`, that can mean anything in an environment.
const VARIABLE_PREFIXES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

impl Store {
    /// Opens a bucket by settings.
    pub fn open(settings: &RemoteSettings, policy: &CallPolicy) -> Result<Self, OpenError> {
        let settings = &settings.clone().with_endpoint_of_environment()?;
        let name = settings.name();
        let counters = Arc::new(Counters::default());
        let certificates = certificates(settings)?;
        let connect = |retries| {
            let connector = Connector { counters: Arc::clone(&counters), certificates: certificates.clone() };
            build(settings, Access::WithCredentials, connector, &name, retries)
        };
        let anonymous = if settings.kind == RemoteKind::Azure && settings.credentials.is_none() {
            // The name of the account is not known here.
            None
        } else {
            let retries = RetryConfig { max_retries: 2, ..RetryConfig::default() };
            let connector = Connector { certificates: certificates.clone(), ..Connector::default() };
            Some(build(settings, Access::Anonymous, connector, &name, retries)?)
        };
        Ok(Self::new(
            Parts {
                store: connect(no_retries())?,
                resuming: connect(retries_of_library(policy, settings.request_timeout))?,
                anonymous,
                medium: Medium::Bucket,
                prefix: Path::from(settings.prefix.trim_matches('/')),
                location: name.clone(),
            },
            policy,
            counters,
        ))
    }

    /// Opens a bucket by its address (`s3://bucket/prefix`, `gs://…`, `az://…`), with settings as
    /// the stores' own tools know them (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, …). Other variables
    /// have no effect.
    pub fn open_address(
        url: &str,
        variables: impl IntoIterator<Item = (String, String)>,
        policy: &CallPolicy,
    ) -> Result<Self, OpenError> {
        let wrong = |source| OpenError::Address { url: without_secrets(url), source };
        let invalid =
            |source| wrong(object_store::Error::Generic { store: "address", source: Box::new(source) });
        let parsed = Url::parse(url).map_err(invalid)?;
        let (scheme, prefix) =
            ObjectStoreScheme::parse(&parsed).map_err(|error| wrong(object_store::Error::from(error)))?;
        let variables: Vec<(String, String)> = variables
            .into_iter()
            .filter(|(name, _)| VARIABLE_PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .collect();
        for (name, value) in variables.iter().filter(|(name, _)| name.contains("endpoint")) {
            check_endpoint(&name.to_ascii_uppercase(), value)?;
        }
        // An administrator that names an address without TLS means it. The library needs a second
        // setting for it.
        let is_http =
            variables.iter().any(|(name, value)| name.contains("endpoint") && value.starts_with("http://"));
        let client = client_options(is_http, ADDRESS_CONNECT_TIMEOUT, ADDRESS_REQUEST_TIMEOUT);
        let counters = Arc::new(Counters::default());
        let connect = |retries| {
            let connector = Connector { counters: Arc::clone(&counters), ..Connector::default() };
            build_address(&scheme, url, &variables, client.clone(), connector, retries).map_err(wrong)
        };
        Ok(Self::new(
            Parts {
                store: connect(no_retries())?,
                resuming: connect(retries_of_library(policy, Duration::ZERO))?,
                anonymous: None,
                medium: Medium::Bucket,
                prefix,
                location: without_secrets(url),
            },
            policy,
            counters,
        ))
    }

    /// Opens a folder to write to. It is made when the first object is written. Written files and
    /// their folders are synced.
    pub fn folder(path: impl AsRef<FilePath>) -> Result<Self, OpenError> {
        Self::open_folder(path.as_ref(), false)
    }

    /// Opens a folder to read from, which has to exist. If the folder is gone later, calls fail
    /// with [`Error::FolderGone`](crate::Error::FolderGone) instead of reporting that files are
    /// missing.
    pub fn existing_folder(path: impl AsRef<FilePath>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        std::fs::read_dir(path).map_err(|source| OpenError::Folder { path: path.to_owned(), source })?;
        Self::open_folder(path, true)
    }

    fn open_folder(path: &FilePath, must_exist: bool) -> Result<Self, OpenError> {
        let unusable = |source| OpenError::Folder { path: path.to_owned(), source };
        let root = std::path::absolute(path).map_err(unusable)?;
        let prefix = Path::from_absolute_path(&root)
            .map_err(|error| unusable(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        // The library resolves a folder that it is opened on, so that folder would have to exist.
        let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new().with_fsync(true));
        let parts = Parts {
            resuming: Arc::clone(&store),
            store,
            anonymous: None,
            medium: Medium::Folder { root: root.into(), must_exist },
            prefix,
            location: format!("folder {}", path.display()),
        };
        Ok(Self::new(parts, &CallPolicy::once(), Arc::default()))
    }

    /// An empty store in memory.
    pub fn in_memory() -> Self {
        Self::over(Arc::new(InMemory::new()), "memory")
    }

    /// Uses a store of the library that is not reached over a network: for tests that wrap one.
    pub fn over(store: Arc<dyn ObjectStore>, location: &str) -> Self {
        let parts = Parts {
            resuming: Arc::clone(&store),
            store,
            anonymous: None,
            medium: Medium::Memory,
            prefix: Path::default(),
            location: location.to_owned(),
        };
        Self::new(parts, &CallPolicy::once(), Arc::default())
    }
}

/// Calls are repeated by this crate, which respects `Retry-After`, so the library repeats nothing.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// Parts of an upload and bodies that are streamed keep their place while they are tried again,
/// which only the library can do. The tries of a part that all run into their time-out halve the
/// limit each time, so there is time for some.
fn retries_of_library(policy: &CallPolicy, request_timeout: Duration) -> RetryConfig {
    let policy = &policy.retries;
    let some_tries = if policy.time_max.is_zero() { Duration::ZERO } else { 4 * request_timeout };
    RetryConfig {
        backoff: BackoffConfig { init_backoff: policy.first_pause, max_backoff: policy.pause_max, base: 2.0 },
        max_retries: policy.tries_max.saturating_sub(1) as usize,
        retry_timeout: policy.time_max.max(some_tries),
    }
}

fn client_options(is_http: bool, connect_timeout: Duration, request_timeout: Duration) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(is_http)
        // One request at a time on each connection: a slow reader delays no other request.
        .with_http1_only()
        .with_connect_timeout(connect_timeout)
        .with_timeout(request_timeout)
        .with_pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .with_pool_idle_timeout(IDLE_TIMEOUT)
}

/// Whose requests a store gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Those of the settings' credentials.
    WithCredentials,
    /// Those of everybody, without a signature: to see whether everybody can read the bucket.
    Anonymous,
}

fn build(
    settings: &RemoteSettings,
    access: Access,
    connector: Connector,
    name: &str,
    retries: RetryConfig,
) -> Result<Arc<dyn ObjectStore>, OpenError> {
    let wrong = |source| OpenError::Settings { store: name.to_owned(), source };
    let is_anonymous = access == Access::Anonymous;
    let is_http = settings.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http:"));
    let client = client_options(is_http, settings.connect_timeout, settings.request_timeout);
    let store: Arc<dyn ObjectStore> = match settings.kind {
        RemoteKind::S3 => {
            let builder = match access {
                Access::WithCredentials => s3_from_env(settings.credentials.is_some()),
                Access::Anonymous => AmazonS3Builder::new(),
            };
            let mut builder = builder
                .with_bucket_name(&settings.bucket)
                .with_virtual_hosted_style_request(!settings.path_style)
                .with_client_options(client)
                .with_retry(retries)
                .with_http_connector(connector);
            if is_anonymous {
                builder = builder.with_skip_signature(true);
            }
            if let Some(region) = &settings.region {
                builder = builder.with_region(region);
            }
            if let Some(endpoint) = settings.bucket_endpoint() {
                builder = builder.with_endpoint(endpoint).with_allow_http(is_http);
            }
            if let (Some(credentials), false) = (&settings.credentials, is_anonymous) {
                builder = builder
                    .with_access_key_id(&credentials.access_key_id)
                    .with_secret_access_key(&credentials.secret_access_key);
            }
            Arc::new(builder.build().map_err(wrong)?)
        }
        RemoteKind::Gcs => {
            let builder = match access {
                Access::WithCredentials => GoogleCloudStorageBuilder::from_env(),
                Access::Anonymous => GoogleCloudStorageBuilder::new().with_skip_signature(true),
            };
            let mut builder = builder
                .with_bucket_name(&settings.bucket)
                .with_client_options(client)
                .with_retry(retries)
                .with_http_connector(connector);
            if let Some(endpoint) = &settings.endpoint {
                builder = builder.with_base_url(endpoint);
            }
            Arc::new(builder.build().map_err(wrong)?)
        }
        RemoteKind::Azure => {
            let builder = match access {
                Access::WithCredentials => MicrosoftAzureBuilder::from_env(),
                Access::Anonymous => MicrosoftAzureBuilder::new().with_skip_signature(true),
            };
            let mut builder = builder
                .with_container_name(&settings.bucket)
                .with_client_options(client)
                .with_retry(retries)
                .with_http_connector(connector);
            if let Some(endpoint) = &settings.endpoint {
                builder = builder.with_endpoint(endpoint.clone()).with_allow_http(is_http);
            }
            if let Some(credentials) = &settings.credentials {
                builder = builder.with_account(&credentials.access_key_id);
                if !is_anonymous {
                    builder = builder.with_access_key(&credentials.secret_access_key);
                }
            }
            Arc::new(builder.build().map_err(wrong)?)
        }
    };
    Ok(store)
}

/// Sets what the variables say and finishes a builder. The three builders share these methods, and
/// no trait.
macro_rules! build_with {
    ($builder:expr, $url:expr, $variables:expr, $client:expr, $connector:expr, $retries:expr) => {{
        let mut builder = $builder.with_url($url).with_client_options($client);
        for (name, value) in $variables {
            if let Ok(key) = name.parse() {
                builder = builder.with_config(key, value);
            }
        }
        Arc::new(builder.with_http_connector($connector).with_retry($retries).build()?)
            as Arc<dyn ObjectStore>
    }};
}

fn build_address(
    scheme: &ObjectStoreScheme,
    url: &str,
    variables: &[(String, String)],
    client: ClientOptions,
    connector: Connector,
    retries: RetryConfig,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    Ok(match scheme {
        ObjectStoreScheme::AmazonS3 => {
            build_with!(AmazonS3Builder::new(), url, variables, client, connector, retries)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            build_with!(GoogleCloudStorageBuilder::new(), url, variables, client, connector, retries)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            build_with!(MicrosoftAzureBuilder::new(), url, variables, client, connector, retries)
        }
        _ => {
            let source = "this address names no store of S3, Google Cloud Storage or Azure".into();
            return Err(object_store::Error::NotSupported { source });
        }
    })
}

/// What the environment says of S3. Its keys and its session token belong together, so none of them
/// stands beside a key from the settings.
fn s3_from_env(has_own_key: bool) -> AmazonS3Builder {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty());
    let mut builder = AmazonS3Builder::new();
    for (name, value) in environment {
        let Ok(key) = name.to_ascii_lowercase().parse() else { continue };
        let is_key = matches!(
            key,
            AmazonS3ConfigKey::AccessKeyId | AmazonS3ConfigKey::SecretAccessKey | AmazonS3ConfigKey::Token
        );
        if !(has_own_key && is_key) {
            builder = builder.with_config(key, value);
        }
    }
    builder
        // One DELETE for each object: the request that deletes many carries a checksum header,
        // which some servers reject.
        .with_disable_bulk_delete(true)
}

fn certificates(settings: &RemoteSettings) -> Result<Vec<Certificate>, OpenError> {
    let Some(path) = &settings.ca_file else { return Ok(Vec::new()) };
    let pem =
        std::fs::read(path).map_err(|source| OpenError::ReadCertificates { path: path.clone(), source })?;
    let certificates = Certificate::from_pem_bundle(&pem)
        .map_err(|source| OpenError::ParseCertificates { path: path.clone(), source })?;
    if certificates.is_empty() {
        return Err(OpenError::NoCertificates { path: path.clone() });
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(variables: &[(&str, &str)]) -> String {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let store = Store::open_address("s3://bucket/prefix", variables, &CallPolicy::default()).unwrap();
        format!("{:?}", store.parts().store)
    }

    #[test]
    fn only_a_stores_own_variables_are_its_settings() {
        let own =
            [("AWS_REGION", "own-region"), ("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "secret")];
        let stray =
            [("TOKEN", "stray-value"), ("region", "stray-value"), ("OTEL_ENDPOINT", "http://stray-value")];
        let text = open(&[own.as_slice(), &stray].concat());
        assert!(text.contains("own-region"), "{text}");
        assert!(!text.contains("stray-value"), "{text}");
    }

    #[test]
    fn an_endpoint_with_a_secret_in_it_is_refused_and_not_shown() {
        for (name, value) in [
            ("AWS_ENDPOINT", "http://ada:MARKER@127.0.0.1:9"),
            ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9/?token=MARKER"),
            ("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:9/#MARKER"),
        ] {
            let variables = [(name.to_owned(), value.to_owned())];
            let error = Store::open_address("s3://bucket", variables, &CallPolicy::default()).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(name) && !shown.contains("MARKER"), "{shown}");
        }
    }

    #[test]
    fn an_address_that_names_no_bucket_is_refused() {
        for url in ["", "bucket", "ftp://bucket", "https://example.org/bucket", "file:///srv", "memory:///"] {
            let error = Store::open_address(url, Vec::new(), &CallPolicy::default()).unwrap_err();
            assert!(matches!(error, OpenError::Address { .. }), "{url}: {error:?}");
        }
    }
}
