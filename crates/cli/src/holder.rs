//! The name of this process in the database, beside the work that it has taken.

/// Names this process, for others that find the target or the job taken.
pub(crate) fn holder() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("process {} on {host}", std::process::id())
}
