//! Publishing's memory that crashes, by the same script as the store and the index of
//! [`faults`](crate::faults), that fails once, or between whose calls the lab changes.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use dormer_format::EncodingTag;
use dormer_index::{
    AbsentPage, CacheId, CacheScan, Follower, FoundObject, Lease, NotedFrom, OwnedDocument, PendingObject,
    PendingVerdicts, PublishBacklog, PublishCounts, PublishDone, PublishIndex, PublishIntent, PublishTarget,
    PublishedCache, PublishedDocument, PublishedNar, PublishedObject, ReferrersTaken, RemovablePage,
    TargetId, UnixSeconds,
};
use dormer_nix::{BuildId, DocumentName, NarHash, StorePathHash};
use futures::future::BoxFuture;

use crate::faults::{Faults, Lie, dead_index, read_step, write_step};
use crate::memory_target::SlowWrites;

/// Publishing's memory of which one write fails while the process lives on. It looks at the target
/// when the lease is given back.
#[derive(Debug)]
pub struct FailingPublish {
    inner: Arc<dyn PublishIndex>,
    target: Arc<SlowWrites>,
    fail_at: u64,
    writes: AtomicU64,
    at_release: Mutex<Option<(u64, u64)>>,
}

impl FailingPublish {
    /// Wraps it. Write number `fail_at`, from 0, fails.
    pub fn new(inner: Arc<dyn PublishIndex>, target: Arc<SlowWrites>, fail_at: u64) -> Self {
        Self { inner, target, fail_at, writes: AtomicU64::new(0), at_release: Mutex::new(None) }
    }

    /// Writes so far.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// What was [unfinished](SlowWrites::unfinished) when the lease was given back, if it was.
    pub fn at_release(&self) -> Option<(u64, u64)> {
        *self.at_release.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn before_write(&self, call: &str) -> Outcome<()> {
        if call == "release_lease" {
            *self.at_release.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.target.unfinished());
        }
        let fails = self.writes.fetch_add(1, Ordering::SeqCst) == self.fail_at;
        if fails { Err(dead_index()) } else { Ok(()) }
    }
}

/// Publishing's memory that crashes.
#[derive(Debug)]
pub struct FaultPublish {
    inner: Arc<dyn PublishIndex>,
    faults: Arc<Faults>,
}

impl FaultPublish {
    /// Wraps it.
    pub fn new(inner: Arc<dyn PublishIndex>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

type Outcome<T> = dormer_index::Result<T>;
type Nar = (NarHash, EncodingTag);

/// What happens in the lab just before a call; told the call's number, from 0.
pub type Meanwhile = Box<dyn Fn(u64) -> BoxFuture<'static, ()> + Send + Sync>;

/// Publishing's memory, while others are at work: something happens before each of its calls, as it
/// may between any two.
pub struct BusyPublish {
    inner: Arc<dyn PublishIndex>,
    calls: AtomicU64,
    meanwhile: Meanwhile,
}

impl BusyPublish {
    /// Wraps it.
    pub fn new(inner: Arc<dyn PublishIndex>, meanwhile: Meanwhile) -> Self {
        Self { inner, calls: AtomicU64::new(0), meanwhile }
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for BusyPublish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusyPublish").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// A document and an object that it belongs to.
type Document = (StorePathHash, DocumentName);

macro_rules! publish_calls {
    (
        read { $(fn $read:ident($($read_arg:ident: $read_type:ty),*) -> $read_out:ty;)* }
        write { $(fn $write:ident($($write_arg:ident: $write_type:ty),*) -> $write_out:ty;)* }
    ) => {
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl PublishIndex for FaultPublish {
            $(async fn $read(&self, $($read_arg: $read_type),*) -> Outcome<$read_out> {
                read_step!(self, self.inner.$read($($read_arg),*))
            })*
            $(async fn $write(&self, $($write_arg: $write_type),*) -> Outcome<$write_out> {
                write_step!(self, self.inner.$write($($write_arg),*))
            })*
            async fn acquire_lease(
                &self, target: TargetId, holder: &str, now: UnixSeconds, ends_at: UnixSeconds,
            ) -> Outcome<Option<Lease>> {
                // By then every lease has ended.
                let now = if self.faults.lies(Lie::LeaseIgnored) { UnixSeconds::MAX } else { now };
                write_step!(self, self.inner.acquire_lease(target, holder, now, ends_at))
            }
        }

        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl PublishIndex for FailingPublish {
            $(async fn $read(&self, $($read_arg: $read_type),*) -> Outcome<$read_out> {
                self.inner.$read($($read_arg),*).await
            })*
            $(async fn $write(&self, $($write_arg: $write_type),*) -> Outcome<$write_out> {
                self.before_write(stringify!($write))?;
                self.inner.$write($($write_arg),*).await
            })*
            async fn acquire_lease(
                &self, target: TargetId, holder: &str, now: UnixSeconds, ends_at: UnixSeconds,
            ) -> Outcome<Option<Lease>> {
                self.before_write("acquire_lease")?;
                self.inner.acquire_lease(target, holder, now, ends_at).await
            }
        }

        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl PublishIndex for BusyPublish {
            $(async fn $read(&self, $($read_arg: $read_type),*) -> Outcome<$read_out> {
                (self.meanwhile)(self.calls.fetch_add(1, Ordering::SeqCst)).await;
                self.inner.$read($($read_arg),*).await
            })*
            $(async fn $write(&self, $($write_arg: $write_type),*) -> Outcome<$write_out> {
                (self.meanwhile)(self.calls.fetch_add(1, Ordering::SeqCst)).await;
                self.inner.$write($($write_arg),*).await
            })*
            async fn acquire_lease(
                &self, target: TargetId, holder: &str, now: UnixSeconds, ends_at: UnixSeconds,
            ) -> Outcome<Option<Lease>> {
                (self.meanwhile)(self.calls.fetch_add(1, Ordering::SeqCst)).await;
                self.inner.acquire_lease(target, holder, now, ends_at).await
            }
        }
    };
}

publish_calls! {
    read {
        fn list_targets() -> Vec<PublishTarget>;
        fn list_followers() -> Vec<Follower>;
        fn pending_objects(target: TargetId, cache: CacheId, after: Option<(UnixSeconds, StorePathHash)>, limit: u32) -> Vec<PendingObject>;
        fn pending_absent(target: TargetId, cache: CacheId, after: Option<StorePathHash>, limit: u32) -> AbsentPage;
        fn find_removed(target: TargetId, cache: CacheId, hashes: &[StorePathHash]) -> Vec<StorePathHash>;
        fn published_caches(target: TargetId) -> Vec<PublishedCache>;
        fn publish_counts(target: TargetId, cache: CacheId) -> PublishCounts;
        fn publish_backlog(limit: u32) -> Vec<PublishBacklog>;
        fn find_objects(cache: CacheId, hashes: &[StorePathHash]) -> Vec<FoundObject>;
        fn find_served_nars(cache: CacheId, nars: &[NarHash], now: UnixSeconds) -> Vec<NarHash>;
        fn find_owned_documents(cache: CacheId, owners: &[StorePathHash], limit: u32) -> Vec<OwnedDocument>;
        fn find_build_ids(cache: CacheId, objects: &[StorePathHash], limit: u32) -> Vec<(StorePathHash, BuildId)>;
        fn find_published_documents(target: TargetId, cache: CacheId, hashes: &[StorePathHash]) -> Vec<PublishedDocument>;
        fn list_published_documents(target: TargetId, cache: CacheId, after: (&str, Option<StorePathHash>), through: &str, limit: u32) -> Vec<PublishedDocument>;
        fn find_needed_documents(target: TargetId, cache: CacheId, documents: &[Document]) -> Vec<Document>;
        fn find_published(target: TargetId, cache: CacheId, hashes: &[StorePathHash]) -> Vec<PublishedObject>;
        fn list_published(target: TargetId, cache: CacheId, bytes: RangeInclusive<u8>, after: Option<StorePathHash>, limit: u32) -> Vec<PublishedObject>;
        fn find_published_nars(target: TargetId, cache: CacheId, nars: &[NarHash]) -> Vec<PublishedNar>;
        fn list_published_nars(target: TargetId, cache: CacheId, bytes: RangeInclusive<u8>, after: Option<(NarHash, EncodingTag)>, limit: u32) -> Vec<PublishedNar>;
        fn due_nars(target: TargetId, cache: CacheId, now: UnixSeconds, limit: u32) -> Vec<PublishedNar>;
        fn removable(target: TargetId, cache: CacheId, any: bool, after: Option<StorePathHash>, limit: u32) -> RemovablePage;
    }
    write {
        fn open_target(name: &str, location: &str) -> PublishTarget;
        fn renew_lease(lease: &Lease) -> ();
        fn release_lease(lease: &Lease, at: UnixSeconds, error: Option<&str>) -> ();
        fn move_target(lease: &Lease, location: &str, compared: bool) -> ();
        fn clear_missed_changes(lease: &Lease) -> ();
        fn note_pending(lease: &Lease, objects: &[(CacheId, StorePathHash, UnixSeconds)], from: NotedFrom) -> ();
        fn note_cache_step(lease: &Lease, cache: CacheId, scan: CacheScan, limit: u32, at: UnixSeconds) -> Option<CacheScan>;
        fn forget_removed(lease: &Lease, cache: CacheId, before: UnixSeconds, limit: u32) -> u64;
        fn settle_pending(lease: &Lease, cache: CacheId, verdicts: &PendingVerdicts, at: UnixSeconds) -> ();
        fn write_published_cache(lease: &Lease, cache: &PublishedCache, at: UnixSeconds) -> ();
        fn forget_pending(lease: &Lease, cache: CacheId, limit: u32) -> bool;
        fn forget_published_cache(lease: &Lease, cache: CacheId, limit: u32) -> bool;
        fn begin_publishing(lease: &Lease, cache: CacheId, intents: &[PublishIntent]) -> ();
        fn note_uploaded(lease: &Lease, cache: CacheId, nars: &[PublishedNar]) -> ();
        fn finish_publishing(lease: &Lease, cache: CacheId, done: &[PublishDone], delete_after: UnixSeconds) -> ();
        fn begin_removing(lease: &Lease, cache: CacheId, hashes: &[StorePathHash]) -> ();
        fn take_referrers(lease: &Lease, cache: CacheId, at: UnixSeconds) -> ReferrersTaken;
        fn write_published_documents(lease: &Lease, cache: CacheId, documents: &[PublishedDocument]) -> ();
        fn note_document_drift(lease: &Lease, cache: CacheId, documents: &[Document], at: UnixSeconds, scan: Option<CacheScan>) -> ();
        fn forget_published_documents(lease: &Lease, cache: CacheId, documents: &[Document]) -> ();
        fn finish_removing(lease: &Lease, cache: CacheId, removed: &[(StorePathHash, UnixSeconds)]) -> ();
        fn end_graces(lease: &Lease, cache: CacheId, hashes: &[StorePathHash], at: UnixSeconds) -> u64;
        fn note_found_nars(lease: &Lease, cache: CacheId, nars: &[(Nar, u64)], delete_after: UnixSeconds) -> ();
        fn note_found_narinfos(lease: &Lease, cache: CacheId, intents: &[PublishIntent], found: &[PublishDone], at: UnixSeconds) -> ();
        fn begin_deleting_nars(lease: &Lease, cache: CacheId, nars: &[Nar]) -> ();
        fn forget_nars(lease: &Lease, cache: CacheId, nars: &[Nar]) -> ();
        fn note_other_headers(lease: &Lease, cache: CacheId, nars: &[Nar], at: UnixSeconds, scan: CacheScan) -> ();
        fn note_drift(lease: &Lease, cache: CacheId, objects: &[StorePathHash], nars: &[Nar], at: UnixSeconds, scan: CacheScan) -> ();
    }
}
