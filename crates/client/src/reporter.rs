//! What happens, told to whoever draws it. Every method has an empty default; none may block for long.

use std::time::Duration;

use dormer_api::UploadPathResultKind;
use dormer_nix::StorePath;

use crate::Error;
use crate::push::PushPlan;

/// A request that failed and is tried again after a pause.
#[derive(Debug)]
pub struct Retry<'a> {
    /// What was attempted.
    pub action: &'a str,
    /// Tries so far.
    pub tries: u32,
    /// Tries in all, at most.
    pub tries_max: u32,
    /// The pause before the next one.
    pub wait: Duration,
    /// Why the last one failed.
    pub error: &'a Error,
}

/// Told of requests that are tried again.
pub trait RetryReporter: Send + Sync {
    /// A pause begins.
    fn retrying(&self, _retry: &Retry<'_>) {}
}

/// Told how one upload goes.
pub trait UploadReporter: Send + Sync {
    /// So many more bytes of the NAR were handed to the connection.
    fn progress(&self, _bytes: u64) {}
    /// The upload failed and starts again from its first byte after a pause.
    fn retrying(&self, _retry: &Retry<'_>) {}
}

/// Number of a transfer within one push, from 0 in the order in which they start.
pub type TransferId = usize;

/// How an upload ended.
#[derive(Debug, Clone, PartialEq)]
pub struct PathDone {
    /// The path.
    pub path: StorePath,
    /// Size of its NAR in bytes.
    pub nar_size: u64,
    /// What the server did with it.
    pub kind: UploadPathResultKind,
    /// Bytes the NAR takes on the server as it is served, if it said so.
    pub file_size: Option<u64>,
    /// Part of the NAR, 0 to 1, that the server had already, if it said so.
    pub frac_deduplicated: Option<f64>,
}

/// Told how a push goes. Calls come from several threads; those of one transfer come in order.
pub trait PushReporter: Send + Sync {
    /// The plan is made; nothing was sent yet.
    fn plan_made(&self, _plan: &PushPlan) {}
    /// An upload begins.
    fn path_started(&self, _id: TransferId, _path: &StorePath, _nar_size: u64) {}
    /// So many more bytes of the NAR were handed to the connection.
    fn path_progress(&self, _id: TransferId, _bytes: u64) {}
    /// The upload starts again from its first byte after a pause.
    fn path_retrying(&self, _id: TransferId, _retry: &Retry<'_>) {}
    /// An upload was acknowledged.
    fn path_done(&self, _id: TransferId, _done: &PathDone) {}
    /// An upload failed for good.
    fn path_failed(&self, _id: TransferId, _path: &StorePath, _error: &Error) {}
}

/// Draws nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl RetryReporter for Silent {}
impl UploadReporter for Silent {}
impl PushReporter for Silent {}
