//! A target and publishing's memory that crash, by the same script as the store and the index of [`faults`](crate::faults), and a
//! memory between whose calls the lab changes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use dormer_blobs::{FileEntry, FileKind, FileUpload, Files, Stored};
use dormer_format::EncodingTag;
use dormer_index::{
    CacheId, Error as IndexError, FoundObject, Lease, OutboxPosition, PendingObject, PublishBacklog,
    PublishCounts, PublishDone, PublishIndex, PublishIntent, PublishTarget, PublishedCache, PublishedNar,
    PublishedObject, TargetId, UnixSeconds,
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

/// Publishing's memory, while others are at work: something happens before each of its calls, as it may between any two.
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
        fn pending_absent(target: TargetId, cache: CacheId, after: Option<StorePathHash>, limit: u32) -> Vec<StorePathHash>;
        fn find_removed(target: TargetId, cache: CacheId, hashes: &[StorePathHash]) -> Vec<StorePathHash>;
        fn published_caches(target: TargetId) -> Vec<PublishedCache>;
        fn publish_counts(target: TargetId, cache: CacheId) -> PublishCounts;
        fn publish_backlog(limit: u32) -> Vec<PublishBacklog>;
        fn find_objects(cache: CacheId, hashes: &[StorePathHash]) -> Vec<FoundObject>;
        fn find_published(target: TargetId, cache: CacheId, hashes: &[StorePathHash]) -> Vec<PublishedObject>;
        fn list_published(target: TargetId, cache: CacheId, after: Option<StorePathHash>, limit: u32) -> Vec<PublishedObject>;
        fn find_published_nars(target: TargetId, cache: CacheId, nars: &[NarHash]) -> Vec<PublishedNar>;
        fn list_published_nars(target: TargetId, cache: CacheId, after: Option<(NarHash, EncodingTag)>, limit: u32) -> Vec<PublishedNar>;
        fn nars_left_by(target: TargetId, cache: CacheId, hashes: &[StorePathHash]) -> Vec<PublishedNar>;
        fn due_nars(target: TargetId, cache: CacheId, now: UnixSeconds, limit: u32) -> Vec<PublishedNar>;
        fn removable(target: TargetId, cache: CacheId, any: bool, limit: u32) -> Vec<StorePathHash>;
    }
    write {
        fn open_target(name: &str, location: &str) -> PublishTarget;
        fn acquire_lease(target: TargetId, holder: &str, now: UnixSeconds, ends_at: UnixSeconds) -> Option<Lease>;
        fn renew_lease(lease: &Lease, ends_at: UnixSeconds) -> ();
        fn release_lease(lease: &Lease, at: UnixSeconds, error: Option<&str>) -> ();
        fn move_target(lease: &Lease, location: &str) -> ();
        fn note_pending(lease: &Lease, objects: &[(CacheId, StorePathHash, UnixSeconds)], cursor: Option<OutboxPosition>) -> ();
        fn note_all_pending(lease: &Lease, cache: CacheId, at: UnixSeconds) -> ();
        fn note_lost(lease: &Lease, cache: CacheId, lost: &[(StorePathHash, StorePathHash)]) -> ();
        fn note_removed(lease: &Lease, cache: CacheId, hashes: &[StorePathHash], at: UnixSeconds) -> ();
        fn forget_removed(lease: &Lease, cache: CacheId, before: UnixSeconds) -> ();
        fn note_waiting(lease: &Lease, cache: CacheId, reasons: &[(StorePathHash, String)]) -> ();
        fn drop_pending(lease: &Lease, cache: CacheId, hashes: &[StorePathHash]) -> ();
        fn write_published_cache(lease: &Lease, cache: &PublishedCache) -> ();
        fn forget_published_cache(lease: &Lease, cache: CacheId) -> ();
        fn begin_publishing(lease: &Lease, cache: CacheId, intents: &[PublishIntent]) -> ();
        fn note_uploaded(lease: &Lease, cache: CacheId, nars: &[PublishedNar]) -> ();
        fn finish_publishing(lease: &Lease, cache: CacheId, done: &[PublishDone], delete_after: UnixSeconds) -> ();
        fn begin_removing(lease: &Lease, cache: CacheId, hashes: &[StorePathHash], at: UnixSeconds) -> u64;
        fn finish_removing(lease: &Lease, cache: CacheId, removed: &[(StorePathHash, UnixSeconds)]) -> ();
        fn set_nar_deadline(lease: &Lease, cache: CacheId, nars: &[Nar], at: UnixSeconds) -> ();
        fn begin_deleting_nars(lease: &Lease, cache: CacheId, nars: &[Nar]) -> ();
        fn forget_nars(lease: &Lease, cache: CacheId, nars: &[Nar]) -> ();
        fn note_drift(lease: &Lease, cache: CacheId, objects: &[StorePathHash], nars: &[Nar], at: UnixSeconds) -> ();
    }
}
