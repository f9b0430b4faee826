//! The other end of a connection.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The other end of the connection, as an extension of each request. A proxy in between hides the
/// client's own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// An address.
    Tcp(SocketAddr),
    /// A program on this machine, through a Unix socket.
    Unix,
}

impl Peer {
    /// Whether it is on this machine.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix => true,
        }
    }

    /// What counts as one client: an IPv4 address, or the network that a site gets of IPv6, in
    /// which its clients choose their addresses. `None` for a Unix socket.
    pub fn network(&self) -> Option<IpAddr> {
        let Self::Tcp(address) = self else { return None };
        Some(match address.ip().to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_one_client() {
        let network = |text: &str| Peer::Tcp(text.parse().unwrap()).network().unwrap().to_string();
        assert_eq!(network("192.0.2.7:1"), "192.0.2.7");
        assert_eq!(network("[::ffff:192.0.2.7]:1"), "192.0.2.7");
        assert_eq!(network("[2001:db8:1:2:3:4:5:6]:1"), "2001:db8:1:2::");
        assert_eq!(network("[2001:db8:1:2::9]:2"), "2001:db8:1:2::");
        assert_eq!(Peer::Unix.network(), None);
    }
}
