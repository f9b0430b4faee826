//! A target and publishing's memory that crash, by the same script as the store and the index of
//! [`faults`](crate::faults), and a memory between whose calls the lab changes.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormer_blobs::{FileEntry, FileKind, FileUpload, Files, Stored};
use dormer_format::EncodingTag;
use dormer_index::{
    AbsentPage, CacheId, CacheScan, Error as IndexError, FoundObject, Lease, NotedFrom, PendingObject,
    PendingVerdicts, PublishBacklog, PublishCounts, PublishDone, PublishIndex, PublishIntent, PublishTarget,
    PublishedCache, PublishedNar, PublishedObject, ReferrersTaken, RemovablePage, TargetId, UnixSeconds,
};
use dormer_nix::{NarHash, StorePathHash};
use futures::future::BoxFuture;

use crate::faults::{Fate, Faults};

/// A tree of files that crashes.
#[derive(Debug)]
pub struct FaultFiles {
    inner: Arc<dyn Files>,
    faults: Arc<Faults>,
}

impl FaultFiles {
    /// Wraps a tree.
    pub fn new(inner: Arc<dyn Files>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

fn dead_files() -> dormer_blobs::Error {
    // Of a kind that nobody tries again.
    dormer_blobs::Error::NotFound { key: "anything: the process has crashed".to_owned() }
}

fn dead_index() -> IndexError {
    IndexError::Corrupt { table: "all", what: "the process has crashed".to_owned() }
}

macro_rules! write_step {
    ($self:ident, $dead:ident, $call:expr) => {
        match $self.faults.step() {
            Fate::Run => $call.await,
            Fate::Die { effect_kept } => {
                if effect_kept {
                    let _ = $call.await;
                }
                Err($dead())
            }
            Fate::Dead => Err($dead()),
        }
    };
}

macro_rules! read_step {
    ($self:ident, $dead:ident, $call:expr) => {
        if $self.faults.crashed() { Err($dead()) } else { $call.await }
    };
}

#[async_trait]
impl Files for FaultFiles {
    fn location(&self) -> String {
        self.inner.location()
    }
    fn single_put_max(&self) -> u64 {
        self.inner.single_put_max()
    }
    async fn put(&self, name: &str, kind: &FileKind, parts: Vec<Bytes>) -> dormer_blobs::Result<Stored> {
        write_step!(self, dead_files, self.inner.put(name, kind, parts.clone()))
    }
    async fn begin_upload(
        &self,
        name: &str,
        kind: &FileKind,
        size: u64,
    ) -> dormer_blobs::Result<Box<dyn FileUpload>> {
        let upload = write_step!(self, dead_files, self.inner.begin_upload(name, kind, size))?;
        Ok(Box::new(FaultUpload { upload: Some(upload), faults: Arc::clone(&self.faults) }))
    }
    async fn get(&self, name: &str) -> dormer_blobs::Result<Option<Bytes>> {
        read_step!(self, dead_files, self.inner.get(name))
    }
    async fn delete(&self, name: &str) -> dormer_blobs::Result<()> {
        write_step!(self, dead_files, self.inner.delete(name))
    }
    async fn list_page(
        &self,
        folder: &str,
        after: Option<&str>,
        limit: usize,
    ) -> dormer_blobs::Result<Vec<FileEntry>> {
        read_step!(self, dead_files, self.inner.list_page(folder, after, limit))
    }
    async fn delete_abandoned(&self, folder: &str) -> dormer_blobs::Result<u64> {
        write_step!(self, dead_files, self.inner.delete_abandoned(folder))
    }
    async fn is_public(&self, name: &str) -> dormer_blobs::Result<Option<bool>> {
        read_step!(self, dead_files, self.inner.is_public(name))
    }
    fn requests(&self) -> (u64, u64) {
        self.inner.requests()
    }
}

#[derive(Debug)]
struct FaultUpload {
    /// Until it is finished or given up.
    upload: Option<Box<dyn FileUpload>>,
    faults: Arc<Faults>,
}

impl FaultUpload {
    fn inner(&mut self) -> &mut Box<dyn FileUpload> {
        self.upload.as_mut().expect("it is not finished yet")
    }
}

#[async_trait]
impl FileUpload for FaultUpload {
    fn part_bytes(&self) -> usize {
        self.upload.as_ref().expect("it is not finished yet").part_bytes()
    }
    async fn put_part(&mut self, part: Vec<Bytes>) -> dormer_blobs::Result<()> {
        write_step!(self, dead_files, self.inner().put_part(part.clone()))
    }
    async fn finish(mut self: Box<Self>) -> dormer_blobs::Result<Stored> {
        let upload = self.upload.take().expect("it is not finished yet");
        write_step!(self, dead_files, upload.finish())
    }
    async fn abort(mut self: Box<Self>) {
        // The dead give nothing up.
        if let Some(upload) = self.upload.take().filter(|_| !self.faults.crashed()) {
            upload.abort().await;
        }
    }
}

/// A tree of files whose writes take a while. It counts what is under way, and one of its writes
/// fails.
#[derive(Debug)]
pub struct SlowFiles {
    inner: Arc<dyn Files>,
    pause: Duration,
    counts: Arc<SlowCounts>,
}

#[derive(Debug)]
struct SlowCounts {
    /// Number of the write that fails, from 0.
    fail_at: u64,
    writes: AtomicU64,
    under_way: AtomicU64,
    /// Uploads in parts that were neither finished nor given up.
    open_uploads: AtomicU64,
}

impl SlowFiles {
    /// Wraps a tree. Each write takes at least `pause`; number `fail_at` fails.
    pub fn new(inner: Arc<dyn Files>, pause: Duration, fail_at: u64) -> Self {
        let counts = SlowCounts {
            fail_at,
            writes: AtomicU64::new(0),
            under_way: AtomicU64::new(0),
            open_uploads: AtomicU64::new(0),
        };
        Self { inner, pause, counts: Arc::new(counts) }
    }

    /// Writes so far.
    pub fn writes(&self) -> u64 {
        self.counts.writes.load(Ordering::SeqCst)
    }

    /// Writes that are under way, and uploads that are open.
    pub fn unfinished(&self) -> (u64, u64) {
        (self.counts.under_way.load(Ordering::SeqCst), self.counts.open_uploads.load(Ordering::SeqCst))
    }
}

impl SlowCounts {
    /// A write: counted as under way until it has ended, even if nobody waits for it any more.
    async fn write(self: &Arc<Self>, pause: Duration) -> dormer_blobs::Result<()> {
        let number = self.writes.fetch_add(1, Ordering::SeqCst);
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let counts = Arc::clone(self);
        let write = tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            counts.under_way.fetch_sub(1, Ordering::SeqCst);
        });
        write.await.expect("a pause does not panic");
        if number == self.fail_at { Err(dead_files()) } else { Ok(()) }
    }
}

#[async_trait]
impl Files for SlowFiles {
    fn location(&self) -> String {
        self.inner.location()
    }
    fn single_put_max(&self) -> u64 {
        self.inner.single_put_max()
    }
    async fn put(&self, name: &str, kind: &FileKind, parts: Vec<Bytes>) -> dormer_blobs::Result<Stored> {
        self.counts.write(self.pause).await?;
        self.inner.put(name, kind, parts).await
    }
    async fn begin_upload(
        &self,
        name: &str,
        kind: &FileKind,
        size: u64,
    ) -> dormer_blobs::Result<Box<dyn FileUpload>> {
        let upload = self.inner.begin_upload(name, kind, size).await?;
        self.counts.open_uploads.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(SlowUpload { upload, pause: self.pause, counts: Arc::clone(&self.counts) }))
    }
    async fn get(&self, name: &str) -> dormer_blobs::Result<Option<Bytes>> {
        self.inner.get(name).await
    }
    async fn delete(&self, name: &str) -> dormer_blobs::Result<()> {
        self.counts.write(self.pause).await?;
        self.inner.delete(name).await
    }
    async fn list_page(
        &self,
        folder: &str,
        after: Option<&str>,
        limit: usize,
    ) -> dormer_blobs::Result<Vec<FileEntry>> {
        self.inner.list_page(folder, after, limit).await
    }
    async fn delete_abandoned(&self, folder: &str) -> dormer_blobs::Result<u64> {
        self.inner.delete_abandoned(folder).await
    }
    async fn is_public(&self, name: &str) -> dormer_blobs::Result<Option<bool>> {
        self.inner.is_public(name).await
    }
    fn requests(&self) -> (u64, u64) {
        self.inner.requests()
    }
}

#[derive(Debug)]
struct SlowUpload {
    upload: Box<dyn FileUpload>,
    pause: Duration,
    counts: Arc<SlowCounts>,
}

#[async_trait]
impl FileUpload for SlowUpload {
    fn part_bytes(&self) -> usize {
        self.upload.part_bytes()
    }
    async fn put_part(&mut self, part: Vec<Bytes>) -> dormer_blobs::Result<()> {
        self.counts.write(self.pause).await?;
        self.upload.put_part(part).await
    }
    async fn finish(self: Box<Self>) -> dormer_blobs::Result<Stored> {
        // Finished or failed: a store's upload that cannot be finished gives itself up.
        self.counts.open_uploads.fetch_sub(1, Ordering::SeqCst);
        self.counts.write(self.pause).await?;
        self.upload.finish().await
    }
    async fn abort(self: Box<Self>) {
        self.counts.open_uploads.fetch_sub(1, Ordering::SeqCst);
        self.upload.abort().await;
    }
}

/// Publishing's memory of which one write fails while the process lives on. It looks at the target
/// when the lease is given back.
#[derive(Debug)]
pub struct FailingPublish {
    inner: Arc<dyn PublishIndex>,
    files: Arc<SlowFiles>,
    fail_at: u64,
    writes: AtomicU64,
    at_release: Mutex<Option<(u64, u64)>>,
}

impl FailingPublish {
    /// Wraps it. Write number `fail_at`, from 0, fails.
    pub fn new(inner: Arc<dyn PublishIndex>, files: Arc<SlowFiles>, fail_at: u64) -> Self {
        Self { inner, files, fail_at, writes: AtomicU64::new(0), at_release: Mutex::new(None) }
    }

    /// Writes so far.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// What was [unfinished](SlowFiles::unfinished) when the lease was given back, if it was.
    pub fn at_release(&self) -> Option<(u64, u64)> {
        *self.at_release.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn before_write(&self, call: &str) -> Outcome<()> {
        if call == "release_lease" {
            *self.at_release.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.files.unfinished());
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

macro_rules! publish_calls {
    (
        read { $(fn $read:ident($($read_arg:ident: $read_type:ty),*) -> $read_out:ty;)* }
        write { $(fn $write:ident($($write_arg:ident: $write_type:ty),*) -> $write_out:ty;)* }
    ) => {
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl PublishIndex for FaultPublish {
            $(async fn $read(&self, $($read_arg: $read_type),*) -> Outcome<$read_out> {
                read_step!(self, dead_index, self.inner.$read($($read_arg),*))
            })*
            $(async fn $write(&self, $($write_arg: $write_type),*) -> Outcome<$write_out> {
                write_step!(self, dead_index, self.inner.$write($($write_arg),*))
            })*
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
        }
    };
}

publish_calls! {
    read {
        fn list_targets() -> Vec<PublishTarget>;
        fn pending_objects(target: TargetId, cache: CacheId, after: Option<(UnixSeconds, StorePathHash)>, limit: u32) -> Vec<PendingObject>;
        fn pending_absent(target: TargetId, cache: CacheId, after: Option<StorePathHash>, limit: u32) -> AbsentPage;
        fn find_removed(target: TargetId, cache: CacheId, hashes: &[StorePathHash]) -> Vec<StorePathHash>;
        fn published_caches(target: TargetId) -> Vec<PublishedCache>;
        fn publish_counts(target: TargetId, cache: CacheId) -> PublishCounts;
        fn publish_backlog(limit: u32) -> Vec<PublishBacklog>;
        fn find_objects(cache: CacheId, hashes: &[StorePathHash]) -> Vec<FoundObject>;
        fn find_published(target: TargetId, cache: CacheId, hashes: &[StorePathHash]) -> Vec<PublishedObject>;
        fn list_published(target: TargetId, cache: CacheId, bytes: RangeInclusive<u8>, after: Option<StorePathHash>, limit: u32) -> Vec<PublishedObject>;
        fn find_published_nars(target: TargetId, cache: CacheId, nars: &[NarHash]) -> Vec<PublishedNar>;
        fn list_published_nars(target: TargetId, cache: CacheId, bytes: RangeInclusive<u8>, after: Option<(NarHash, EncodingTag)>, limit: u32) -> Vec<PublishedNar>;
        fn due_nars(target: TargetId, cache: CacheId, now: UnixSeconds, limit: u32) -> Vec<PublishedNar>;
        fn removable(target: TargetId, cache: CacheId, any: bool, after: Option<StorePathHash>, limit: u32) -> RemovablePage;
    }
    write {
        fn open_target(name: &str, location: &str) -> PublishTarget;
        fn acquire_lease(target: TargetId, holder: &str, now: UnixSeconds, ends_at: UnixSeconds) -> Option<Lease>;
        fn renew_lease(lease: &Lease) -> ();
        fn release_lease(lease: &Lease, at: UnixSeconds, error: Option<&str>) -> ();
        fn move_target(lease: &Lease, location: &str, compared: bool) -> ();
        fn note_pending(lease: &Lease, objects: &[(CacheId, StorePathHash, UnixSeconds)], from: NotedFrom) -> ();
        fn note_cache_step(lease: &Lease, cache: CacheId, scan: CacheScan, limit: u32, at: UnixSeconds) -> Option<CacheScan>;
        fn forget_removed(lease: &Lease, cache: CacheId, before: UnixSeconds, limit: u32) -> u64;
        fn settle_pending(lease: &Lease, cache: CacheId, verdicts: &PendingVerdicts, at: UnixSeconds) -> ();
        fn write_published_cache(lease: &Lease, cache: &PublishedCache, at: UnixSeconds) -> ();
        fn forget_published_cache(lease: &Lease, cache: CacheId, limit: u32) -> bool;
        fn begin_publishing(lease: &Lease, cache: CacheId, intents: &[PublishIntent]) -> ();
        fn note_uploaded(lease: &Lease, cache: CacheId, nars: &[PublishedNar]) -> ();
        fn finish_publishing(lease: &Lease, cache: CacheId, done: &[PublishDone], delete_after: UnixSeconds) -> ();
        fn begin_removing(lease: &Lease, cache: CacheId, hashes: &[StorePathHash]) -> ();
        fn take_referrers(lease: &Lease, cache: CacheId, at: UnixSeconds) -> ReferrersTaken;
        fn finish_removing(lease: &Lease, cache: CacheId, removed: &[(StorePathHash, UnixSeconds)]) -> ();
        fn end_graces(lease: &Lease, cache: CacheId, hashes: &[StorePathHash], at: UnixSeconds) -> u64;
        fn begin_deleting_nars(lease: &Lease, cache: CacheId, nars: &[Nar]) -> ();
        fn forget_nars(lease: &Lease, cache: CacheId, nars: &[Nar]) -> ();
        fn note_drift(lease: &Lease, cache: CacheId, objects: &[StorePathHash], nars: &[Nar], at: UnixSeconds, scan: CacheScan) -> ();
    }
}
