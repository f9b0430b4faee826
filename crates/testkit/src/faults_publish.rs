//! Publishing's memory that crashes, by the same script as the store and the index of
//! [`faults`](crate::faults), that fails once, or between whose calls the lab changes.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use dormer_format::EncodingTag;
use dormer_index::{
    AbsentPage, BringIndex, CacheId, CacheScan, CompareIndex, DocumentRows, Drift, Follower, Forget,
    FoundObject, LabDocuments, Lease, NarRows, NotedFrom, ObjectRows, PendingIndex, PendingObject,
    PendingVerdicts, PublishBacklog, PublishCounts, PublishDone, PublishIndex, PublishIntent, PublishTarget,
    PublishedCache, PublishedCacheIndex, PublishedDocument, PublishedDocumentIndex, PublishedIndex,
    PublishedNar, PublishedObject, ReferrersTaken, RemovablePage, Removals, RemovalsBegun, RemoveIndex,
    TargetId, TargetIndex, UnixSeconds,
};
use dormer_nix::{DocumentName, NarHash, StorePathHash};
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

    async fn before_call(&self) {
        (self.meanwhile)(self.calls.fetch_add(1, Ordering::SeqCst)).await;
    }
}

impl fmt::Debug for BusyPublish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusyPublish").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// The wrappers' methods of one topic. A method that one of them treats in its own way is written
/// out for each of the three.
macro_rules! publish_calls {
    (
        $topic:ident
        read { $(fn $read:ident($($read_arg:ident: $read_type:ty),*) -> $read_out:ty;)* }
        write { $(fn $write:ident($($write_arg:ident: $write_type:ty),*) -> $write_out:ty;)* }
        $(fault { $($fault:tt)* } failing { $($failing:tt)* } busy { $($busy:tt)* })?
    ) => {
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl $topic for FaultPublish {
            $(async fn $read(&self, $($read_arg: $read_type),*) -> Outcome<$read_out> {
                read_step!(self, self.inner.$read($($read_arg),*))
            })*
            $(async fn $write(&self, $($write_arg: $write_type),*) -> Outcome<$write_out> {
                write_step!(self, self.inner.$write($($write_arg),*))
            })*
            $($($fault)*)?
        }

        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl $topic for FailingPublish {
            $(async fn $read(&self, $($read_arg: $read_type),*) -> Outcome<$read_out> {
                self.inner.$read($($read_arg),*).await
            })*
            $(async fn $write(&self, $($write_arg: $write_type),*) -> Outcome<$write_out> {
                self.before_write(stringify!($write))?;
                self.inner.$write($($write_arg),*).await
            })*
            $($($failing)*)?
        }

        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl $topic for BusyPublish {
            $(async fn $read(&self, $($read_arg: $read_type),*) -> Outcome<$read_out> {
                self.before_call().await;
                self.inner.$read($($read_arg),*).await
            })*
            $(async fn $write(&self, $($write_arg: $write_type),*) -> Outcome<$write_out> {
                self.before_call().await;
                self.inner.$write($($write_arg),*).await
            })*
            $($($busy)*)?
        }
    };
}

publish_calls! {
    TargetIndex
    read {
        fn list_targets() -> Vec<PublishTarget>;
        fn list_followers() -> Vec<Follower>;
    }
    write {
        fn open_target(name: &str, location: &str) -> PublishTarget;
        fn renew_lease(lease: &Lease) -> ();
        fn release_lease(lease: &Lease, at: UnixSeconds, error: Option<&str>) -> ();
        fn move_target(lease: &Lease, location: &str, compared: bool) -> ();
        fn clear_missed_changes(lease: &Lease) -> ();
    }
    fault {
        async fn acquire_lease(
            &self, target: TargetId, holder: &str, now: UnixSeconds, ends_at: UnixSeconds,
        ) -> Outcome<Option<Lease>> {
            // By then every lease has ended.
            let now = if self.faults.lies(Lie::LeaseIgnored) { UnixSeconds::MAX } else { now };
            write_step!(self, self.inner.acquire_lease(target, holder, now, ends_at))
        }
    }
    failing {
        async fn acquire_lease(
            &self, target: TargetId, holder: &str, now: UnixSeconds, ends_at: UnixSeconds,
        ) -> Outcome<Option<Lease>> {
            self.before_write("acquire_lease")?;
            self.inner.acquire_lease(target, holder, now, ends_at).await
        }
    }
    busy {
        async fn acquire_lease(
            &self, target: TargetId, holder: &str, now: UnixSeconds, ends_at: UnixSeconds,
        ) -> Outcome<Option<Lease>> {
            self.before_call().await;
            self.inner.acquire_lease(target, holder, now, ends_at).await
        }
    }
}

publish_calls! {
    PublishedCacheIndex
    read {
        fn published_caches(target: TargetId) -> Vec<PublishedCache>;
        fn publish_counts(target: TargetId, cache: CacheId) -> PublishCounts;
        fn publish_backlog(limit: u32) -> Vec<PublishBacklog>;
    }
    write {
        fn write_published_cache(lease: &Lease, cache: &PublishedCache, at: UnixSeconds) -> ();
        fn forget_rows(lease: &Lease, cache: CacheId, rows: Forget, limit: u32) -> bool;
    }
}

publish_calls! {
    PendingIndex
    read {
        fn pending_objects(target: TargetId, cache: CacheId, after: Option<(UnixSeconds, StorePathHash)>, limit: u32) -> Vec<PendingObject>;
        fn pending_absent(target: TargetId, cache: CacheId, after: Option<StorePathHash>, limit: u32) -> AbsentPage;
        fn find_removed(target: TargetId, cache: CacheId, hashes: &[StorePathHash]) -> Vec<StorePathHash>;
    }
    write {
        fn note_pending(lease: &Lease, objects: &[(CacheId, StorePathHash, UnixSeconds)], from: NotedFrom) -> ();
        fn note_cache_step(lease: &Lease, cache: CacheId, scan: CacheScan, limit: u32, at: UnixSeconds) -> Option<CacheScan>;
        fn settle_pending(lease: &Lease, cache: CacheId, verdicts: &PendingVerdicts, at: UnixSeconds) -> ();
    }
}

publish_calls! {
    PublishedIndex
    read {
        fn find_objects(cache: CacheId, hashes: &[StorePathHash]) -> Vec<FoundObject>;
        fn published_objects(target: TargetId, cache: CacheId, rows: ObjectRows<'_>) -> Vec<PublishedObject>;
        fn published_nars(target: TargetId, cache: CacheId, rows: NarRows<'_>) -> Vec<PublishedNar>;
    }
    write {}
}

publish_calls! {
    PublishedDocumentIndex
    read {
        fn find_lab_documents(cache: CacheId, owners: &[StorePathHash], objects: &[StorePathHash], limit: u32) -> LabDocuments;
        fn published_documents(target: TargetId, cache: CacheId, rows: DocumentRows<'_>) -> Vec<PublishedDocument>;
    }
    write {
        fn take_documents(lease: &Lease, cache: CacheId, documents: &[(StorePathHash, DocumentName)], at: UnixSeconds) -> Vec<DocumentName>;
    }
}

publish_calls! {
    BringIndex
    read {}
    write {
        fn begin_publishing(lease: &Lease, cache: CacheId, intents: &[PublishIntent]) -> ();
        fn note_uploaded(lease: &Lease, cache: CacheId, nars: &[PublishedNar]) -> ();
        fn finish_publishing(lease: &Lease, cache: CacheId, done: &[PublishDone], delete_after: UnixSeconds) -> ();
    }
}

publish_calls! {
    RemoveIndex
    read {
        fn removable(target: TargetId, cache: CacheId, any: bool, after: Option<StorePathHash>, limit: u32) -> RemovablePage;
    }
    write {
        fn begin_removing(lease: &Lease, cache: CacheId, removals: &Removals, at: UnixSeconds) -> RemovalsBegun;
        fn take_referrers(lease: &Lease, cache: CacheId, at: UnixSeconds) -> ReferrersTaken;
        fn finish_removing(lease: &Lease, cache: CacheId, hashes: &[StorePathHash], grace_ends_at: UnixSeconds, at: UnixSeconds) -> ();
        fn begin_deleting_nars(lease: &Lease, cache: CacheId, nars: &[Nar]) -> ();
        fn finish_deleting_nars(lease: &Lease, cache: CacheId, nars: &[Nar]) -> ();
    }
}

publish_calls! {
    CompareIndex
    read {}
    write {
        fn note_drift(lease: &Lease, cache: CacheId, drift: &Drift, at: UnixSeconds, scan: Option<CacheScan>) -> ();
    }
}
