//! What a drainer needs, and what it tells: servers, patience, events, its end.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use dormer_api::CacheName;
use dormer_nix::StorePath;

use super::entry::{EntryId, QueueEntry, QueuedCache, Standing};
use crate::api::ApiClient;
use crate::by_chunks::TransferOptions;
use crate::error::{Error, Result};
use crate::nix_store::NixStore;
use crate::push::{PushOptions, PushSummary};
use crate::reporter::PushReporter;
use crate::retry::RetryPolicy;

/// A cache with everything that a push to it needs.
pub struct DrainTarget {
    /// The server.
    pub api: ApiClient,
    /// The cache.
    pub cache: CacheName,
    /// How to push, and what stays out.
    pub options: PushOptions,
    /// How chunks are sent.
    pub transfer: TransferOptions,
}

/// Finds the server of a cache. Settings may change while a drainer runs, so it asks for each plan.
#[async_trait]
pub trait DrainTargets: Send + Sync {
    /// The cache, or why it cannot be reached.
    async fn connect(
        &self,
        cache: &QueuedCache,
        store: &NixStore,
    ) -> Result<DrainTarget, Box<dyn std::error::Error + Send + Sync>>;
}

/// What became of a path in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootEnd {
    /// The cache has it now.
    Pushed,
    /// The cache, or an upstream cache, had it already.
    Present,
    /// The filter keeps it out.
    LeftOut(String),
    /// It is not in the store any more, and the cache lacks it.
    Gone,
    /// It could not be pushed.
    Failed(String),
}

/// Receives what a drainer does.
pub trait DrainReporter: Send + Sync {
    /// Receives the events of a push to `cache`.
    fn push_reporter(&self, cache: &QueuedCache) -> Arc<dyn PushReporter>;
    /// A plan for `cache` was carried out.
    fn pushed(&self, _cache: &QueuedCache, _summary: &PushSummary) {}
    /// The fate of one queued path.
    fn root_ended(&self, _cache: &QueuedCache, _path: &StorePath, _end: &RootEnd) {}
    /// A build trace could not be sent. Its path is in the cache.
    fn trace_failed(&self, _cache: &QueuedCache, _name: &str, _reason: &str) {}
    /// So many entries are queued again that an older version gave up unread.
    fn entries_revived(&self, _count: usize) {}
    /// An entry cannot be read, and is looked at again.
    fn entry_unreadable(&self, _id: &EntryId, _reason: &str) {}
    /// An entry rests until it is tried again.
    fn entry_failed(&self, _cache: &QueuedCache, _id: &EntryId, _standing: &Standing) {}
    /// An entry became a dead letter.
    fn entry_dead(&self, _cache: &QueuedCache, _id: &EntryId, _reason: &str) {}
    /// A cache is not tried before the end of this pause.
    fn cache_paused(&self, _cache: &QueuedCache, _reason: &str, _pause: Duration) {}
}

/// How patient a drainer is.
#[derive(Debug, Clone)]
pub struct DrainerOptions {
    /// Pauses of a cache whose server fails. The number of tries does not count.
    pub cache_retry: RetryPolicy,
    /// Pauses of an entry whose paths fail.
    pub entry_retry: RetryPolicy,
}

impl Default for DrainerOptions {
    /// A cache is tried after 5 s, and then up to every 10 minutes, or as late as its server asks
    /// for, up to an hour. An entry is tried 8 times in about an hour.
    fn default() -> Self {
        Self {
            cache_retry: RetryPolicy {
                tries_max: u32::MAX,
                wait_first: Duration::from_secs(5),
                wait_first_busy: Duration::from_secs(5),
                wait_max: Duration::from_mins(10),
                retry_after_max: Duration::from_hours(1),
            },
            entry_retry: RetryPolicy {
                tries_max: 8,
                wait_first: Duration::from_secs(30),
                wait_first_busy: Duration::from_secs(30),
                wait_max: Duration::from_mins(30),
                ..RetryPolicy::default()
            },
        }
    }
}

/// The entries that a drain waits for.
#[derive(Debug, Clone)]
pub struct DrainScope {
    /// Those queued at this time or later,
    pub since: SystemTime,
    /// for one of these caches.
    pub caches: Vec<QueuedCache>,
}

impl DrainScope {
    pub(super) fn is_since(&self, id: &EntryId) -> bool {
        *id >= EntryId::new(self.since, 0)
    }

    /// Whether an entry is one of them.
    pub fn has(&self, id: &EntryId, entry: &QueueEntry) -> bool {
        self.is_since(id) && self.caches.iter().any(|cache| entry.caches.contains_key(cache))
    }
}

/// What a drainer leaves behind.
#[derive(Debug, Default)]
pub struct DrainEnd {
    /// Entries that wait.
    pub waiting: usize,
    /// Entries that became dead letters.
    pub dead: usize,
    /// The failure that keeps a cache waiting, if one does.
    pub paused_by: Option<Arc<Error>>,
}
