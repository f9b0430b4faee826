//! The parts of which the end-to-end tests are made: the real server, machines with real nix,
//! literal HTTP, a proxy that cuts connections.
//!
//! - [`Lab`]: a running `dormer serve` with a data folder of its own, or two replicas over
//!   PostgreSQL and S3 behind a [`Balancer`]; it is killed, and the folder removed, on drop. After
//!   a failed test it shows the end of the servers' logs.
//! - [`Machine`]: a `/nix`, a home and a Nix version; nothing is shared between machines but the
//!   network.
//! - [`ContainerHost`]: a real podman in namespaces of its own; [`pods`]: what it can play of a
//!   manifest.
//! - [`Kubernetes`]: a real Kubernetes of one node, for `./test --long`.
//! - [`edge`]: a published layout, the Worker in workerd, and the attacks on whatever serves it.
//! - [`http`]: requests as bytes on a socket, for clients other than Nix.
//! - [`HttpProxy`]: a real nginx, HAProxy or Varnish before a host.
//! - [`manifests`]: checks of what is applied to a Kubernetes; [`network_policies`]: which
//!   connections its policies allow.
//! - [`Proxy`]: sees every request line between a machine and the lab, and cuts connections when
//!   told to.
//!
//! Nothing is skipped when a part is missing: the test fails and names the command that brings the
//! part.

mod balancer;
mod containers;
pub mod custom_kinds;
pub mod edge;
mod files;
pub mod http;
mod http_proxy;
mod kubernetes;
mod lab;
mod machine;
pub mod manifests;
pub mod nars;
pub mod network_policies;
mod parts;
pub mod pods;
mod proxy;

pub use balancer::Balancer;
pub use containers::ContainerHost;
pub use files::StaticServer;
pub use http_proxy::HttpProxy;
pub use kubernetes::Kubernetes;
pub use lab::{Lab, LabOptions};
pub use machine::{Machine, Run};
pub use parts::{Nix, binary, part, times, workspace_root};
pub use proxy::{Proxy, Seen};
