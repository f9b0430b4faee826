//! One host for every HTTP listener of Dormer: the lab's, the edge's and the one of the metrics.
//!
//! Layer: shell. The host knows hyper and sockets, and nothing of caches: a [`Service`] answers.
//!
//! Invariants
//! - At most `connections_max` connections are served. [`REFUSED_MAX`] more are told so with 503;
//!   the rest wait in the kernel's queue.
//! - No peer holds a connection for nothing: a head, a write and a stop each have a time limit, and
//!   when all connections are taken, the oldest one that waits for a head makes room.
//! - A reader that takes next to nothing is cut as soon as others wait for what it holds, its place
//!   included.
//! - A stop fails no request: readiness ends first, then new connections, then the requests in
//!   flight.
//! - Probes are answered on every listener, also when all connections are taken.

mod brief;
mod host;
mod listener;
mod peer;
mod places;
mod probes;
mod socket;

pub use brief::{FOREIGN_BYTES_MAX, brief};
pub use host::{Error, HostSettings, OthersWait, REFUSED_MAX, Service, serve};
pub use listener::{ListenAddress, Listener, ParseAddressError, SocketFile};
pub use peer::Peer;
pub use probes::{CheckFuture, NotReady, Probe, Probes, text};
