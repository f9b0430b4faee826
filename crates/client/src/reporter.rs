//! The events of requests and pushes, for a caller that draws them. Every method has an empty
//! default, and must not block for long.

use std::time::Duration;

use dormer_api::{CacheName, UploadPathResultKind};
use dormer_nix::StorePath;

use crate::error::Error;
use crate::push_plan::PushPlan;

/// A request that failed and is tried again after a pause.
#[derive(Debug)]
pub struct Retry<'a> {
    /// The attempted action.
    pub action: &'a str,
    /// Tries so far.
    pub tries: u32,
    /// Most tries in all.
    pub tries_max: u32,
    /// The pause before the next try.
    pub wait: Duration,
    /// The error of the last try.
    pub error: &'a Error,
}

/// Receives the requests that are tried again.
pub trait RetryReporter: Send + Sync {
    /// A pause begins.
    fn retrying(&self, _retry: &Retry<'_>) {}
}

/// Receives the events of one upload.
pub trait UploadReporter: Send + Sync {
    /// The connection took this many more bytes of the NAR.
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
    /// Size of the path's NAR in bytes.
    pub nar_size: u64,
    /// What the server did with the NAR.
    pub kind: UploadPathResultKind,
    /// Size of the NAR on the server as it is served, if the server said so.
    pub file_size: Option<u64>,
    /// Part of the NAR, 0 to 1, that the server already had, as far as this is known. By chunks,
    /// it is the part that was not sent.
    pub frac_deduplicated: Option<f64>,
    /// Whether the cache kept the path that it had, with another NAR or other references, instead
    /// of this one.
    pub kept: bool,
}

/// Receives the events of a push. Calls come from several threads; the calls of one transfer come
/// in order.
pub trait PushReporter: Send + Sync {
    /// The plan is complete. Nothing was sent yet.
    fn plan_made(&self, _plan: &PushPlan) {}
    /// Every NAR goes to `cache` whole, by Attic's API, although the server has push by chunks.
    fn falls_back(&self, _cache: &CacheName, _reason: &str) {}
    /// An upload begins.
    fn path_started(&self, _id: TransferId, _path: &StorePath, _nar_size: u64) {}
    /// This many more bytes of the NAR were read. With Attic's API, the connection took them.
    fn path_progress(&self, _id: TransferId, _bytes: u64) {}
    /// The connections took this many more bytes, of all paths.
    fn sent(&self, _bytes: u64) {}
    /// This many more NAR bytes need not be sent, because the server has them, or gets them with
    /// another path.
    fn spared(&self, _bytes: u64) {}
    /// A part of a push by chunks is sent again after a pause.
    fn part_retrying(&self, _retry: &Retry<'_>) {}
    /// The upload starts again from its first byte after a pause.
    fn path_retrying(&self, _id: TransferId, _retry: &Retry<'_>) {}
    /// The server acknowledged an upload.
    fn path_done(&self, _id: TransferId, _done: &PathDone) {}
    /// An upload failed for good.
    fn path_failed(&self, _id: TransferId, _path: &StorePath, _error: &Error) {}
}

/// Ignores all events.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl RetryReporter for Silent {}
impl UploadReporter for Silent {}
impl PushReporter for Silent {}
