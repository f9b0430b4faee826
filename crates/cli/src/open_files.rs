//! The limit of open files. Debian's soft limit is 1,024, which dates from `select`; the hard limit
//! is a thousand times that.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Open files other than connections and what they read: index, logs, listeners, and connections
/// that are being refused.
const OTHERS: u64 = 64 + dormer_server::REFUSED_MAX as u64;

/// Files for each connection: its socket, and a pack that the connection reads or writes.
const PER_CONNECTION: u64 = 2;

/// Fewer connections than this are of no use.
const CONNECTIONS_MIN: usize = 16;

/// Raises the soft limit to the hard limit. Returns how many of `wanted` connections it allows.
pub(crate) fn connections_within_limit(wanted: usize) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum;
    if limit.current != hard {
        limit.current = hard;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "failed to raise the limit of open files");
        }
    }
    match getrlimit(Resource::Nofile).current {
        None => wanted,
        Some(files) => connections_within(files, wanted),
    }
}

fn connections_within(files: u64, wanted: usize) -> usize {
    let possible = usize::try_from(files.saturating_sub(OTHERS) / PER_CONNECTION).unwrap_or(usize::MAX);
    wanted.min(possible.max(CONNECTIONS_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_the_files_that_they_read() {
        assert_eq!(connections_within(1_048_576, 1024), 1024);
        assert_eq!(connections_within(1024, 1024), 448);
        assert_eq!(connections_within(1024, 100), 100);
        assert_eq!(connections_within(10, 1024), CONNECTIONS_MIN);
    }
}
