//! From settings to a store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig};

use super::RemoteBlobs;
use super::exchange::Connector;
use crate::counters::Counters;
use crate::retrying::RetryPolicy;

/// Which protocol a store speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteKind {
    /// Amazon S3 and compatible ones: MinIO, Ceph RGW, SeaweedFS, Garage, R2.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

impl RemoteKind {
    fn scheme(self) -> &'static str {
        match self {
            RemoteKind::S3 => "s3",
            RemoteKind::Gcs => "gs",
            RemoteKind::Azure => "az",
        }
    }
}

/// An access key. Neither half is ever printed.
#[derive(Clone)]
pub struct Credentials {
    /// Name of the key (S3), or of the account (Azure).
    pub access_key_id: String,
    /// Its secret half.
    pub secret_access_key: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// Where a store is and how to talk to it.
#[derive(Debug, Clone)]
pub struct RemoteSettings {
    /// Its protocol.
    pub kind: RemoteKind,
    /// Bucket, or container.
    pub bucket: String,
    /// Goes before every object's name, with `/` between.
    pub prefix: String,
    /// URL of the server; without it the provider's own.
    pub endpoint: Option<String>,
    /// S3's region.
    pub region: Option<String>,
    /// Without them the provider's environment variables, files and instance roles are asked.
    pub credentials: Option<Credentials>,
    /// Whether the bucket stands in the path (`endpoint/bucket`) or in the host name (`bucket.endpoint`). S3 only.
    pub path_style: bool,
    /// PEM file with certificates to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How long a request may take in all.
    pub request_timeout: Duration,
}

impl RemoteSettings {
    /// S3's endpoint may stand in the environment, by the names that Amazon's tools and libraries give it. Such a server has the
    /// bucket in the path, as one from the settings has by default.
    fn with_endpoint_of_environment(self) -> Self {
        if self.kind != RemoteKind::S3 || self.endpoint.is_some() {
            return self;
        }
        let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        match ENDPOINT_VARIABLES.into_iter().find_map(variable) {
            Some(endpoint) => {
                Self { endpoint: Some(endpoint.trim_end_matches('/').to_owned()), path_style: true, ..self }
            }
            None => self,
        }
    }
}

/// The first that is set counts.
const ENDPOINT_VARIABLES: [&str; 3] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];

/// Why a store could not be set up. Nothing was sent to it yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file of certificates cannot be read.
    #[error("failed to read the certificates in {path}")]
    ReadCertificates {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file holds no certificates: a private key, or something else altogether.
    #[error("{path} holds no certificates in PEM")]
    NoCertificates {
        /// The file.
        path: PathBuf,
    },
    /// The file holds certificates that cannot be read.
    #[error("failed to read the certificates in {path} as PEM")]
    ParseCertificates {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: object_store::Error,
    },
    /// The settings do not fit together.
    #[error("the settings of the store {store} do not work")]
    Settings {
        /// Its name.
        store: String,
        /// Why.
        #[source]
        source: object_store::Error,
    },
}

/// Idle connections that are kept. As many as requests run at once by default.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// Servers drop idle connections after 15 s (SeaweedFS) to 60 s; ours go first, so that no request meets a dead one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

impl RemoteBlobs {
    /// Sets a store up. Nothing is sent to it yet.
    pub fn open(settings: &RemoteSettings) -> Result<Self, OpenError> {
        let settings = &settings.clone().with_endpoint_of_environment();
        let bucket = &settings.bucket;
        let mut name = format!("{}://{bucket}", settings.kind.scheme());
        let prefix = settings.prefix.trim_matches('/');
        if !prefix.is_empty() {
            name = format!("{name}/{prefix}");
        }
        if let Some(endpoint) = &settings.endpoint {
            name = format!("{name} at {endpoint}");
        }
        let counters = Arc::new(Counters::default());
        let store = build(settings, Connector(Arc::clone(&counters)), &name, no_retries())?;
        Ok(Self { store, prefix: Path::from(prefix), name: name.into(), counters })
    }
}

/// The same store for uploads in parts. A part keeps its place while it is tried again, which only the library can do.
pub(super) fn build_for_uploads(
    settings: &RemoteSettings,
    policy: &RetryPolicy,
    of: &RemoteBlobs,
) -> Result<Arc<dyn ObjectStore>, OpenError> {
    let settings = &settings.clone().with_endpoint_of_environment();
    let retries = RetryConfig {
        backoff: BackoffConfig { init_backoff: policy.first_pause, max_backoff: policy.pause_max, base: 2.0 },
        max_retries: policy.tries_max.saturating_sub(1) as usize,
        retry_timeout: policy.time_max,
    };
    build(settings, Connector(Arc::clone(&of.counters)), &of.name, retries)
}

fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

fn build(
    settings: &RemoteSettings,
    connector: Connector,
    name: &str,
    retries: RetryConfig,
) -> Result<Arc<dyn ObjectStore>, OpenError> {
    let wrong = |source| OpenError::Settings { store: name.to_owned(), source };
    let is_http = settings.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http:"));
    let mut client = ClientOptions::new()
        .with_allow_http(is_http)
        // One request a connection at a time: what a slow reader holds up is its own.
        .with_http1_only()
        .with_connect_timeout(settings.connect_timeout)
        .with_timeout(settings.request_timeout)
        .with_pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .with_pool_idle_timeout(IDLE_TIMEOUT);
    for certificate in certificates(settings)? {
        client = client.with_root_certificate(certificate);
    }
    match settings.kind {
        RemoteKind::S3 => {
            let mut builder = s3_from_env(settings.credentials.is_some())
                .with_bucket_name(&settings.bucket)
                .with_virtual_hosted_style_request(!settings.path_style)
                .with_client_options(client)
                .with_retry(retries)
                .with_http_connector(connector);
            if let Some(region) = &settings.region {
                builder = builder.with_region(region);
            }
            if let Some(endpoint) = &settings.endpoint {
                builder = builder.with_endpoint(bucket_endpoint(settings, endpoint)).with_allow_http(is_http);
            }
            if let Some(credentials) = &settings.credentials {
                builder = builder
                    .with_access_key_id(&credentials.access_key_id)
                    .with_secret_access_key(&credentials.secret_access_key);
            }
            Ok(Arc::new(builder.build().map_err(wrong)?))
        }
        RemoteKind::Gcs => {
            let mut builder = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(&settings.bucket)
                .with_client_options(client)
                .with_retry(retries)
                .with_http_connector(connector);
            if let Some(endpoint) = &settings.endpoint {
                builder = builder.with_base_url(endpoint);
            }
            Ok(Arc::new(builder.build().map_err(wrong)?))
        }
        RemoteKind::Azure => {
            let mut builder = MicrosoftAzureBuilder::from_env()
                .with_container_name(&settings.bucket)
                .with_client_options(client)
                .with_retry(retries)
                .with_http_connector(connector);
            if let Some(endpoint) = &settings.endpoint {
                builder = builder.with_endpoint(endpoint.clone()).with_allow_http(is_http);
            }
            if let Some(credentials) = &settings.credentials {
                builder = builder
                    .with_account(&credentials.access_key_id)
                    .with_access_key(&credentials.secret_access_key);
            }
            Ok(Arc::new(builder.build().map_err(wrong)?))
        }
    }
}

/// The same store without credentials: to see whether anybody can read what is in it. `None` where that cannot be asked.
pub(super) fn build_anonymous(settings: &RemoteSettings) -> Result<Option<Arc<dyn ObjectStore>>, OpenError> {
    let settings = &settings.clone().with_endpoint_of_environment();
    let wrong = |source| OpenError::Settings { store: settings.bucket.clone(), source };
    let connector = || Connector(Arc::default());
    let retries = || RetryConfig { max_retries: 2, ..RetryConfig::default() };
    let is_http = settings.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http:"));
    let mut client = ClientOptions::new()
        .with_allow_http(is_http)
        .with_connect_timeout(settings.connect_timeout)
        .with_timeout(settings.request_timeout);
    for certificate in certificates(settings)? {
        client = client.with_root_certificate(certificate);
    }
    let store: Arc<dyn ObjectStore> = match settings.kind {
        RemoteKind::S3 => {
            let mut builder = AmazonS3Builder::new()
                .with_bucket_name(&settings.bucket)
                .with_virtual_hosted_style_request(!settings.path_style)
                .with_client_options(client)
                .with_retry(retries())
                .with_http_connector(connector())
                .with_skip_signature(true);
            if let Some(region) = &settings.region {
                builder = builder.with_region(region);
            }
            if let Some(endpoint) = &settings.endpoint {
                builder = builder.with_endpoint(bucket_endpoint(settings, endpoint)).with_allow_http(is_http);
            }
            Arc::new(builder.build().map_err(wrong)?)
        }
        RemoteKind::Gcs => {
            let mut builder = GoogleCloudStorageBuilder::new()
                .with_bucket_name(&settings.bucket)
                .with_client_options(client)
                .with_retry(retries())
                .with_http_connector(connector())
                .with_skip_signature(true);
            if let Some(endpoint) = &settings.endpoint {
                builder = builder.with_base_url(endpoint);
            }
            Arc::new(builder.build().map_err(wrong)?)
        }
        RemoteKind::Azure => {
            let Some(credentials) = &settings.credentials else { return Ok(None) };
            let mut builder = MicrosoftAzureBuilder::new()
                .with_account(&credentials.access_key_id)
                .with_container_name(&settings.bucket)
                .with_client_options(client)
                .with_retry(retries())
                .with_http_connector(connector())
                .with_skip_signature(true);
            if let Some(endpoint) = &settings.endpoint {
                builder = builder.with_endpoint(endpoint.clone()).with_allow_http(is_http);
            }
            Arc::new(builder.build().map_err(wrong)?)
        }
    };
    Ok(Some(store))
}

/// What the environment says of S3. Its keys and its session token belong together, so none of them stands beside a key from the
/// settings.
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
        // One DELETE for each object: the request that deletes many carries a checksum header, which some servers reject.
        .with_disable_bulk_delete(true)
}

/// With the bucket in the host name, the library wants it in the endpoint.
fn bucket_endpoint(settings: &RemoteSettings, endpoint: &str) -> String {
    match endpoint.split_once("://") {
        Some((scheme, host)) if !settings.path_style => format!("{scheme}://{}.{host}", settings.bucket),
        _ => endpoint.to_owned(),
    }
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
