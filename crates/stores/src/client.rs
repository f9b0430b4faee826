//! The HTTP client of a store. It follows no redirect: a request carries a signature, a session
//! token and often an object, and the store's address may be named by nobody but its operator.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use http::header::LOCATION;
use object_store::client::HttpResponse;
use object_store::{ClientConfigKey as Key, ClientOptions, Error, Result};
use rand::seq::SliceRandom as _;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, NoProxy, Proxy};
use url::Url;

/// Longest name of a region in a message, in bytes.
const REGION_BYTES_MAX: usize = 40;

/// A client with these options, and with certificates of a store's own authority.
pub(crate) fn client(options: &ClientOptions, certificates: &[Certificate]) -> Result<Client> {
    let mut builder = Client::builder()
        .redirect(Policy::none())
        .user_agent(text(options, Key::UserAgent).unwrap_or_else(|| "dormer".to_owned()))
        // A compressed answer would have another length than the object.
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .https_only(!is_set(options, Key::AllowHttp))
        .danger_accept_invalid_certs(is_set(options, Key::AllowInvalidCertificates));
    builder = if is_set(options, Key::NoSystemCertificates) {
        builder.tls_certs_only(certificates.iter().cloned())
    } else {
        builder.tls_certs_merge(certificates.iter().cloned())
    };
    if let Some(url) = text(options, Key::ProxyUrl) {
        let mut proxy = Proxy::all(url).map_err(unusable)?;
        if let Some(pem) = text(options, Key::ProxyCaCertificate) {
            let certificate = Certificate::from_pem(pem.as_bytes()).map_err(unusable)?;
            builder = builder.tls_certs_merge([certificate]);
        }
        if let Some(excludes) = text(options, Key::ProxyExcludes) {
            proxy = proxy.no_proxy(NoProxy::from_string(&excludes));
        }
        builder = builder.proxy(proxy);
    }
    if let Some(time) = duration(options, Key::Timeout)? {
        builder = builder.timeout(time);
    }
    if let Some(time) = duration(options, Key::ConnectTimeout)? {
        builder = builder.connect_timeout(time);
    }
    if let Some(time) = duration(options, Key::ReadTimeout)? {
        builder = builder.read_timeout(time);
    }
    if let Some(time) = duration(options, Key::PoolIdleTimeout)? {
        builder = builder.pool_idle_timeout(time);
    }
    if let Some(count) = text(options, Key::PoolMaxIdlePerHost) {
        builder = builder.pool_max_idle_per_host(count.parse().map_err(unusable)?);
    }
    if is_set(options, Key::Http1Only) {
        builder = builder.http1_only();
    }
    if is_set(options, Key::RandomizeAddresses) {
        builder = builder.dns_resolver(ShuffledAddresses);
    }
    builder.build().map_err(unusable)
}

fn text(options: &ClientOptions, key: Key) -> Option<String> {
    options.get_config_value(&key)
}

fn is_set(options: &ClientOptions, key: Key) -> bool {
    text(options, key).is_some_and(|value| bool::from_str(&value).unwrap_or(value == "1"))
}

fn duration(options: &ClientOptions, key: Key) -> Result<Option<Duration>> {
    text(options, key).map(|value| humantime::parse_duration(&value).map_err(unusable)).transpose()
}

fn unusable(source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic { store: "HTTP client", source: Box::new(source) }
}

/// Spreads connections over all addresses of a store.
struct ShuffledAddresses;

impl Resolve for ShuffledAddresses {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut addresses: Vec<SocketAddr> = found.collect();
            addresses.shuffle(&mut rand::rng());
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// The store names another address for an object.
#[derive(Debug, thiserror::Error)]
#[error("it answers {status} and sends requests elsewhere{}{}, which Dormer does not follow: set the region and \
         the endpoint of the bucket", named("to", address.as_deref()), named("in the region", region.as_deref()))]
pub(crate) struct Redirected {
    status: u16,
    /// Scheme, host and port. The rest may hold a signature.
    address: Option<String>,
    region: Option<String>,
}

impl Redirected {
    /// The redirect that an answer is, if it is one.
    pub(crate) fn of(answer: &HttpResponse) -> Option<Self> {
        let status = answer.status();
        if !status.is_redirection() || status.as_u16() == 304 {
            return None;
        }
        let header = |name: &str| answer.headers().get(name)?.to_str().ok();
        let address = header(LOCATION.as_str())
            .and_then(|location| Url::parse(location).ok())
            .map(|url| url.origin().ascii_serialization());
        let is_region = |text: &&str| {
            text.len() <= REGION_BYTES_MAX
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let region = header("x-amz-bucket-region").filter(is_region).map(str::to_owned);
        Some(Self { status: status.as_u16(), address, region })
    }
}

fn named(what: &str, name: Option<&str>) -> String {
    name.map(|name| format!(" {what} {name}")).unwrap_or_default()
}
