//! What one server does at this moment.

use serde::{Deserialize, Serialize};

/// Answer to GET `status`. Counters begin with the start of the server that answers; the rest is as
/// of now. Behind a load balancer, each answer is of another server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusResponse {
    /// The process that answers, as leases name it.
    pub process: String,
    /// Its version.
    pub version: String,
    /// When it started, in seconds since 1970.
    pub started_at: i64,
    /// Now, in seconds since 1970.
    pub now: i64,
    /// Why it is not ready; absent while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<String>,
    /// Requests and connections.
    pub requests: RequestStatus,
    /// What readers got.
    pub reads: ReadStatus,
    /// What came from pushers.
    pub pushes: PushStatus,
    /// What tasks and requests take turns at.
    pub queues: Vec<QueueStatus>,
    /// Open jobs of the whole installation: those that fail first, then those that run, then the
    /// oldest.
    pub jobs: Vec<JobEntry>,
    /// Whether the database named the jobs; absent from servers that do not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jobs_known: Option<bool>,
    /// Whether there are more jobs than the answer names.
    pub more_jobs: bool,
    /// How many jobs there are; absent if the database did not name them, and from servers that do
    /// not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_counts: Option<JobCounts>,
    /// Edge targets of the whole installation, by name.
    pub targets: Vec<TargetEntry>,
    /// Whether the database named the targets; absent from servers that do not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets_known: Option<bool>,
}

impl StatusResponse {
    /// The open jobs; `None` if the database did not name them.
    pub fn known_jobs(&self) -> Option<&[JobEntry]> {
        self.known(self.jobs_known, &self.jobs)
    }

    /// The edge targets; `None` if the database did not name them.
    pub fn known_targets(&self) -> Option<&[TargetEntry]> {
        self.known(self.targets_known, &self.targets)
    }

    /// An earlier server that is not ready may have left a list empty because it could not ask.
    fn known<'a, T>(&self, is_known: Option<bool>, list: &'a [T]) -> Option<&'a [T]> {
        is_known.unwrap_or(self.not_ready.is_none() || !list.is_empty()).then_some(list)
    }
}

/// Requests and connections of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestStatus {
    /// Requests that were answered.
    pub answered: u64,
    /// Those of them that were answered with a 5xx.
    pub failed: u64,
    /// Those that were refused because of a limit.
    pub refused: u64,
    /// Requests being answered now.
    pub in_flight: u64,
    /// Open connections now.
    pub connections: u64,
    /// Bytes of requests' bodies.
    pub received_bytes: u64,
    /// Bytes of answers' bodies.
    pub sent_bytes: u64,
}

/// What readers got from a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadStatus {
    /// Narinfos that were there.
    pub narinfos: u64,
    /// Narinfos that were not.
    pub missing: u64,
    /// NARs, and ranges of them.
    pub nars: u64,
}

/// What came to a server from pushers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushStatus {
    /// NARs that were received whole and verified.
    pub nars: u64,
    /// Their bytes, uncompressed.
    pub nar_bytes: u64,
    /// Bytes of chunks that were new, uncompressed.
    pub new_bytes: u64,
    /// Uploads whose bytes come now.
    pub uploading: u64,
}

/// Something that tasks or requests take turns at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Its name, as the metrics have it.
    pub name: String,
    /// Tasks that wait for it.
    pub waiting: u64,
    /// How much of it is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_use: Option<u64>,
    /// How much there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// Open jobs in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCounts {
    /// All open jobs.
    pub open: u64,
    /// Those of them that a process runs now.
    pub running: u64,
    /// Those of them whose last step failed.
    pub failing: u64,
}

/// An open job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEntry {
    /// Its number.
    pub id: i64,
    /// What it does.
    pub kind: String,
    /// The cache that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// The edge target that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Rows so far.
    pub rows_done: u64,
    /// The process that runs it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// When it was opened, in seconds since 1970.
    pub created_at: i64,
    /// When its last good step ended, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stepped_at: Option<i64>,
    /// Failed steps since the last good one.
    pub failures: u64,
    /// Why the last step failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// An edge target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetEntry {
    /// Its name.
    pub name: String,
    /// Age of the oldest change that it does not have yet, in seconds.
    pub lag_seconds: u64,
    /// Paths that are there.
    pub published: u64,
    /// Paths to look at.
    pub pending: u64,
    /// Why the last run failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
