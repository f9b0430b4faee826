//! Real services for tests, each on free ports of 127.0.0.1, from the packages that
//! `scripts/get-services.sh` installs.
//!
//! A service lives as long as its value. [`Daemon`] ensures that no service outlives the test
//! program, however the program ends.

mod ceph;
mod certificates;
mod daemon;
mod fault_proxy;
mod folder;
mod parts;
mod pgbouncer;
mod postgres;
mod s3;
mod seaweedfs;

pub use ceph::CephRgw;
pub use certificates::Certificates;
pub use daemon::{Daemon, free_port, wait_until};
pub use fault_proxy::{Fate, FaultProxy};
pub use pgbouncer::{PgBouncer, PoolMode};
pub use postgres::Postgres;
pub use s3::S3Access;
pub use seaweedfs::SeaweedFs;
