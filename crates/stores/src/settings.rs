//! Where a bucket is and how to talk to its store.

use std::path::PathBuf;
use std::time::Duration;

use crate::open::OpenError;

/// Which protocol a store speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteKind {
    /// Amazon S3 and compatible stores: MinIO, Ceph RGW, SeaweedFS, Garage, R2.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

impl RemoteKind {
    pub(crate) fn scheme(self) -> &'static str {
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
    /// The secret half of the key.
    pub secret_access_key: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// Where a bucket is and how to talk to its store.
#[derive(Debug, Clone)]
pub struct RemoteSettings {
    /// Protocol of the store.
    pub kind: RemoteKind,
    /// Bucket, or container.
    pub bucket: String,
    /// Precedes the name of every object, with `/` between.
    pub prefix: String,
    /// URL of the server. The default is the provider's own.
    pub endpoint: Option<String>,
    /// Region, for S3.
    pub region: Option<String>,
    /// Without credentials, the provider's environment variables, files and instance roles are
    /// asked.
    pub credentials: Option<Credentials>,
    /// Whether the bucket stands in the path (`endpoint/bucket`) or in the host name
    /// (`bucket.endpoint`). S3 only.
    pub path_style: bool,
    /// PEM file with certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How long a request may take in all.
    pub request_timeout: Duration,
}

impl RemoteSettings {
    /// Takes S3's endpoint from the environment if the settings name none, by the names that
    /// Amazon's tools and libraries know. Such a server has the bucket in the path, as a server
    /// from the settings has by default.
    pub(crate) fn with_endpoint_of_environment(self) -> Result<Self, OpenError> {
        if self.kind != RemoteKind::S3 || self.endpoint.is_some() {
            return Ok(self);
        }
        let variable = |name| Some((name, std::env::var(name).ok().filter(|value| !value.is_empty())?));
        let Some((name, endpoint)) = ENDPOINT_VARIABLES.into_iter().find_map(variable) else {
            return Ok(self);
        };
        check_endpoint(name, &endpoint)?;
        Ok(Self { endpoint: Some(endpoint.trim_end_matches('/').to_owned()), path_style: true, ..self })
    }

    /// The endpoint as the library wants it: with the bucket in the host name, unless the bucket
    /// stands in the path.
    pub(crate) fn bucket_endpoint(&self) -> Option<String> {
        let endpoint = self.endpoint.as_ref()?;
        Some(match endpoint.split_once("://") {
            Some((scheme, host)) if !self.path_style => format!("{scheme}://{}.{host}", self.bucket),
            _ => endpoint.clone(),
        })
    }

    /// What to call the store in messages.
    pub(crate) fn name(&self) -> String {
        let mut name = format!("{}://{}", self.kind.scheme(), self.bucket);
        let prefix = self.prefix.trim_matches('/');
        if !prefix.is_empty() {
            name = format!("{name}/{prefix}");
        }
        match &self.endpoint {
            Some(endpoint) => format!("{name} at {}", without_secrets(endpoint)),
            None => name,
        }
    }
}

/// Refuses an address with user info, parameters or a fragment: errors of the library show it.
pub(crate) fn check_endpoint(variable: &str, address: &str) -> Result<(), OpenError> {
    if address.contains(['@', '?', '#']) {
        return Err(OpenError::SecretInEndpoint { variable: variable.to_owned() });
    }
    Ok(())
}

/// An address without user info and query, which may hold a password. Even the last `@` counts.
pub(crate) fn without_secrets(address: &str) -> String {
    let address = match (address.split_once("://"), address.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        (_, None) => address.to_owned(),
    };
    address.split(['?', '#']).next().unwrap_or_default().to_owned()
}

/// The first variable that is set counts.
const ENDPOINT_VARIABLES: [&str; 3] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
