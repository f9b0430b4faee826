//! Real services for tests, each on free ports of 127.0.0.1, from the packages that `scripts/get-services.sh` installs.
//!
//! A service lives as long as its value; [`Daemon`] sees to it that none outlives the test program, however it ends.

mod daemon;

pub use daemon::{Daemon, free_port, wait_until};
