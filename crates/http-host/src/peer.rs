//! The other end of a connection.

use std::net::SocketAddr;

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
}
