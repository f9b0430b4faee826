//! What a proxy in front says about the address that its clients use.
//!
//! A proxy that passes a request on may replace scheme, host and path. It reports the original ones
//! in `Forwarded` (RFC 7239) or in `X-Forwarded-Proto`, `X-Forwarded-Host` and
//! `X-Forwarded-Prefix`. With several proxies in a row, each appends to the list, so the first item
//! is what the client used. Anybody can send these headers, so the server reads them only from the
//! networks in its settings, and ignores every item that is not well-formed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use dormer_http_host::Peer;
use http::HeaderMap;
use http::uri::Authority;

/// A range of addresses: `10.0.0.0/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix_bits: u32,
}

/// The text is not a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an address such as 192.0.2.1, or a network such as 10.0.0.0/8")]
pub struct NetworkError;

impl Network {
    /// The networks of this machine alone, where a proxy often runs.
    pub fn loopback() -> Vec<Self> {
        let network = |address: IpAddr, prefix_bits| Self { address, prefix_bits };
        vec![network(Ipv4Addr::new(127, 0, 0, 0).into(), 8), network(Ipv6Addr::LOCALHOST.into(), 128)]
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                same_start(ours.to_bits().into(), theirs.to_bits().into(), self.prefix_bits, 32)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                same_start(ours.to_bits(), theirs.to_bits(), self.prefix_bits, 128)
            }
            _ => false,
        }
    }
}

/// Whether two numbers of `bits` bits agree in the first `prefix_bits`.
fn same_start(one: u128, other: u128, prefix_bits: u32, bits: u32) -> bool {
    // Shifting by all 128 bits is not a number, and means that nothing is compared.
    (one ^ other).checked_shr(bits - prefix_bits).unwrap_or(0) == 0
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix_bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().map_err(|_| NetworkError)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NetworkError)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = prefix_bits.unwrap_or(bits);
        if prefix_bits > bits { Err(NetworkError) } else { Ok(Self { address, prefix_bits }) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

/// Whether a trusted proxy sent the request. What speaks through our Unix socket runs on this
/// machine, and is trusted.
pub(crate) fn is_trusted(peer: Option<Peer>, trusted: &[Network]) -> bool {
    match peer {
        Some(Peer::Tcp(address)) => trusted.iter().any(|network| network.contains(address.ip())),
        Some(Peer::Unix) => true,
        None => false,
    }
}

/// The parts of the client's address that a proxy reported.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Forwarded {
    is_https: Option<bool>,
    host: Option<String>,
    /// Begins with a slash and does not end with one.
    prefix: Option<String>,
}

impl Forwarded {
    /// Reads the headers of a trusted proxy. `Forwarded` takes precedence.
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let first = |name: &str| {
            let value = headers.get(name)?.to_str().ok()?;
            value.split(',').next().map(str::trim)
        };
        let standard = headers.get("forwarded").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let parameter = |name: &str| forwarded_parameter(standard, name);
        let proto = parameter("proto").or_else(|| first("x-forwarded-proto"));
        let host = parameter("host").or_else(|| first("x-forwarded-host"));
        Self {
            is_https: proto.and_then(parse_proto),
            host: host.and_then(parse_host),
            prefix: first("x-forwarded-prefix").and_then(parse_prefix),
        }
    }

    /// The address that the client used, with a slash at the end. `host` is the request's own.
    pub(crate) fn address(&self, host: &str) -> String {
        let scheme = if self.is_https == Some(true) { "https" } else { "http" };
        let host = self.host.as_deref().unwrap_or(host);
        format!("{scheme}://{host}{}/", self.prefix.as_deref().unwrap_or_default())
    }
}

/// A parameter of the first item: `for=192.0.2.1;proto=https;host="cache.example.org"`.
fn forwarded_parameter<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = header;
    loop {
        let (key, value) = rest.split_once('=')?;
        // A comma before the equals sign means that this is the next item.
        if key.contains(',') {
            return None;
        }
        let (value, after) = if let Some(quoted) = value.strip_prefix('"') {
            let (value, after) = quoted.split_once('"')?;
            // Hosts and schemes need no escapes.
            if value.contains('\\') {
                return None;
            }
            (value, after.trim_start())
        } else {
            let end = value.find([';', ',']).unwrap_or(value.len());
            (value[..end].trim(), &value[end..])
        };
        if key.trim().eq_ignore_ascii_case(name) {
            return Some(value);
        }
        rest = after.strip_prefix(';')?;
    }
}

fn parse_proto(text: &str) -> Option<bool> {
    match text {
        _ if text.eq_ignore_ascii_case("https") => Some(true),
        _ if text.eq_ignore_ascii_case("http") => Some(false),
        _ => None,
    }
}

fn parse_host(text: &str) -> Option<String> {
    let authority: Authority = text.parse().ok()?;
    let is_plain = !text.contains('@') && !authority.host().is_empty();
    is_plain.then(|| text.to_owned())
}

fn parse_prefix(text: &str) -> Option<String> {
    let path = text.trim_end_matches('/');
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/+".contains(&byte);
    let is_path = path.starts_with('/') && !path.contains("//") && path.bytes().all(allowed);
    let climbs = path.split('/').any(|segment| matches!(segment, "." | ".."));
    (is_path && !climbs).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(headers: &[(&'static str, &str)]) -> String {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        Forwarded::read(&headers).address("inner:8080")
    }

    #[test]
    fn the_first_item_of_each_list_counts() {
        const PROTO: &str = "x-forwarded-proto";
        const HOST: &str = "x-forwarded-host";
        const PREFIX: &str = "x-forwarded-prefix";
        for (headers, expected) in [
            (&[][..], "http://inner:8080/"),
            (&[(PROTO, "https")], "https://inner:8080/"),
            (&[(PROTO, "HTTPS, http"), (HOST, "a.example, b.example")], "https://a.example/"),
            (&[(HOST, "a.example:8443"), (PREFIX, "/cache/")], "http://a.example:8443/cache/"),
            (&[(PREFIX, "/a, /b")], "http://inner:8080/a/"),
            (&[(HOST, "[2001:db8::1]:80")], "http://[2001:db8::1]:80/"),
            (&[("forwarded", "for=192.0.2.1;proto=https;host=a.example")], "https://a.example/"),
            (&[("forwarded", "Host=\"a.example:1\"; PROTO=https, host=b.example")], "https://a.example:1/"),
            (&[("forwarded", "for=1.2.3.4, host=b.example;proto=https")], "http://inner:8080/"),
            (&[("forwarded", "for=\"a,b;host=x\";host=a.example")], "http://a.example/"),
            (&[("forwarded", "host=a.example"), (HOST, "b.example"), (PROTO, "https")], "https://a.example/"),
            // The server ignores a malformed value.
            (&[(PROTO, "ftp"), (HOST, "ada:x@h"), (PREFIX, "cache")], "http://inner:8080/"),
            (&[(HOST, "a b"), (PREFIX, "//evil")], "http://inner:8080/"),
            (&[(HOST, "a/b?trusted=1"), (PREFIX, "/x?trusted=1")], "http://inner:8080/"),
            (&[(HOST, ""), (PREFIX, "/a/../b"), (PROTO, "")], "http://inner:8080/"),
            (&[("forwarded", "host=\"a\\\\b\""), ("forwarded", "nonsense")], "http://inner:8080/"),
        ] {
            assert_eq!(address(headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn networks_contain_their_addresses() {
        for (network, address, expected) in [
            ("127.0.0.0/8", "127.9.9.9", true),
            ("127.0.0.0/8", "::ffff:127.0.0.1", true),
            ("127.0.0.0/8", "128.0.0.1", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::1", "::1", true),
        ] {
            let network: Network = network.parse().unwrap();
            let peer = Peer::Tcp((address.parse::<IpAddr>().unwrap(), 80).into());
            assert_eq!(is_trusted(Some(peer), &[network]), expected, "{network} {address}");
        }
        assert!(!is_trusted(None, &["0.0.0.0/0".parse().unwrap()]));
        assert!(is_trusted(Some(Peer::Unix), &[]));
        for text in ["", "localhost", "10.0.0.0/33", "10.0.0.0/-1", "::1/129", "10.0.0.0/"] {
            assert_eq!(text.parse::<Network>(), Err(NetworkError), "{text}");
        }
    }

    proptest! {
        /// Whatever a proxy passes on, the answer is a plain address.
        #[test]
        fn every_address_is_plain(forwarded in "[ -~]{0,40}", host in "[ -~]{0,20}", prefix in "[ -~]{0,20}") {
            let address = address(&[("forwarded", &forwarded), ("x-forwarded-host", &host), ("x-forwarded-prefix", &prefix)]);
            let url: http::Uri = address.parse().unwrap();
            prop_assert!(url.query().is_none() && url.path().ends_with('/'));
            prop_assert!(!address.contains(['@', '#', ' ', '"']), "{}", address);
        }
    }
}
