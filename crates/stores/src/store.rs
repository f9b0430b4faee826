//! A tree of named objects in a bucket, in a folder, or in memory.
//!
//! Invariants
//! - "Not there" is only said by a store that knows the bucket: a missing bucket is a refusal,
//!   never a missing object.
//! - A put is atomic: a reader sees the whole old object or the whole new one. After `Ok` the
//!   object survives a crash. After `Err` the new object may be there, whole, or arrive a moment
//!   later.
//! - Payloads are signed with their SHA-256, so a store never keeps a body that changed on its way.
//! - No call relies on conditional requests: S3 servers differ too much in them. One call is better
//!   with them ([`Store::create`]).

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::time::UNIX_EPOCH;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, Error as StoreError, GetOptions, GetRange, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMode, PutOptions, PutPayload, PutResult,
};

use crate::counters::{Counters, Method};
use crate::exchange::{Exchange, TryRules, watched};
use crate::failure::Attempt;
use crate::limit::Limit;
use crate::retry::{Retries, RetryPolicy};
use crate::window::WriteWindow;
use crate::{Error, Result};

/// Bytes of a part, unless the object is so large that there would be too many parts. All parts but
/// the last one are equal, as R2 demands. Larger objects than this are uploaded in parts, because
/// one put holds the whole object in memory.
pub(crate) const PART_BYTES: u64 = 16 * 1024 * 1024;

/// Longest name of a file, in bytes. File systems take 255, and the library writes a file beside
/// its place first, under the name with `#` and a number behind it.
const FOLDER_NAME_BYTES_MAX: usize = 250;

/// Longest name of an object in a bucket, in bytes.
const BUCKET_NAME_BYTES_MAX: usize = 1_024;

/// How a store is called.
#[derive(Debug, Clone, Default)]
pub struct CallPolicy {
    /// How often and how long a call is repeated.
    pub retries: RetryPolicy,
    /// Upper bound of the calls that run at once. The number adapts to the load that the store
    /// bears. `None`: no limit.
    pub requests_max: Option<usize>,
    /// Longest wait for a turn. `None`: as long as a call is repeated. A program that sends large
    /// files over a slow line waits for all that were there first.
    pub turn_wait: Option<Duration>,
}

impl CallPolicy {
    /// Tries everything once and at once.
    pub fn once() -> Self {
        Self { retries: RetryPolicy::once(), requests_max: None, turn_wait: None }
    }
}

/// What a file is, for the programs that serve it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileKind {
    /// `Content-Type`.
    pub content_type: &'static str,
    /// `Cache-Control`.
    pub cache_control: String,
}

/// What a store says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMeta {
    /// Size in bytes.
    pub size: u64,
    /// Tag of the content. A folder's tag is made of time and size.
    pub etag: Option<String>,
    /// `Cache-Control` that the store keeps with it. A folder keeps none.
    pub cache_control: Option<String>,
}

/// What a store said of an object that was written, to be compared with what a listing says later.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    /// The store's tag of the content. A folder gives none: times say nothing of damage.
    pub etag: Option<String>,
    /// SHA-256 of the whole object, if the request was signed over it. A caller that needs the hash
    /// need not hash again.
    pub sha256: Option<[u8; 32]>,
}

/// A tree of named objects. Clones share the connections, the limit and the counters.
#[derive(Clone)]
pub struct Store {
    parts: Arc<Parts>,
    retries: Retries,
    limit: Option<Arc<Limit>>,
    counters: Arc<Counters>,
    /// Calls to a store that is not reached over a network: writes and deletions, listings.
    local_calls: Arc<[AtomicU64; 2]>,
    part_bytes: Option<u64>,
    /// When writes may begin; `None`: always.
    window: Option<Arc<WriteWindow>>,
}

/// The library's stores behind a [`Store`].
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    /// One request a call.
    pub(crate) store: Arc<dyn ObjectStore>,
    /// The same store, with the library's retries: for uploads in parts and for streams.
    pub(crate) resuming: Arc<dyn ObjectStore>,
    /// The same store without credentials, if it can be asked so.
    pub(crate) anonymous: Option<Arc<dyn ObjectStore>>,
    pub(crate) medium: Medium,
    /// Precedes every name.
    pub(crate) prefix: Path,
    /// What the store is called in messages.
    pub(crate) location: String,
}

/// Where a store keeps its objects.
#[derive(Debug, Clone)]
pub(crate) enum Medium {
    Bucket,
    Folder {
        root: Arc<FilePath>,
        /// Whether a missing folder is an error.
        must_exist: bool,
    },
    Memory,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.parts.location).finish()
    }
}

impl Store {
    pub(crate) fn new(parts: Parts, policy: &CallPolicy, counters: Arc<Counters>) -> Self {
        let limit = policy.requests_max.map(|max| {
            Arc::new(Limit::new(
                max,
                policy.turn_wait.unwrap_or(policy.retries.time_max),
                Arc::clone(&counters),
            ))
        });
        Self {
            parts: Arc::new(parts),
            retries: Retries::new(policy.retries.clone(), Arc::clone(&counters)),
            limit,
            counters,
            local_calls: Arc::default(),
            part_bytes: None,
            window: None,
        }
    }

    /// The same store, which tries everything once and at once.
    pub fn bare(&self) -> Self {
        let parts = Parts { resuming: Arc::clone(&self.parts.store), ..(*self.parts).clone() };
        let retries = Retries::new(RetryPolicy::once(), Arc::clone(&self.counters));
        Self { parts: Arc::new(parts), retries, limit: None, ..self.clone() }
    }

    /// The same store, to which nothing is written once the window is closed. Each try of a call,
    /// and each part of an upload, looks at the window.
    #[must_use]
    pub fn within(&self, window: &Arc<WriteWindow>) -> Self {
        Self { window: Some(Arc::clone(window)), ..self.clone() }
    }

    /// The rules for tries of requests that the library repeats.
    pub(crate) fn try_rules(&self) -> TryRules {
        TryRules { window: self.window.clone(), limit: self.limit.clone() }
    }

    /// Fails if nothing may be written any more.
    pub(crate) fn check_window(&self, attempt: &'static str, key: &str) -> Result<()> {
        self.window.as_ref().map_or(Ok(()), |window| window.check(attempt, key))
    }

    /// The same store, called by another policy: for tests of wrapped stores.
    #[must_use]
    pub fn with_policy(self, policy: &CallPolicy) -> Self {
        Self { part_bytes: self.part_bytes, ..Self::new((*self.parts).clone(), policy, self.counters) }
    }

    /// The same store, which takes objects over so many bytes in parts of as many: for tests with
    /// small objects.
    #[must_use]
    pub fn in_parts_of(self, bytes: u64) -> Self {
        Self { part_bytes: Some(bytes), ..self }
    }

    /// The same store, where requests without credentials go to this one: for tests.
    #[must_use]
    pub fn seen_without_credentials_as(self, anonymous: Arc<dyn ObjectStore>) -> Self {
        let parts = Parts { anonymous: Some(anonymous), ..(*self.parts).clone() };
        Self { parts: Arc::new(parts), ..self }
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    pub(crate) fn retries(&self) -> &Retries {
        &self.retries
    }

    /// Where the store is, for people, without secrets: such as
    /// `s3://bucket/prefix at https://s3.example.org`.
    pub fn location(&self) -> &str {
        &self.parts.location
    }

    /// Whether a call is a request over a network.
    pub fn is_remote(&self) -> bool {
        matches!(self.parts.medium, Medium::Bucket)
    }

    /// Requests so far. Only requests over a network are counted.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Calls so far: (writes and deletions, listings). A bucket counts requests, so its second
    /// number includes reads.
    pub fn requests(&self) -> (u64, u64) {
        if self.is_remote() {
            let writes =
                [Method::Put, Method::Delete, Method::Post].map(|method| self.counters.requests(method));
            (writes.iter().sum(), self.counters.requests(Method::Get))
        } else {
            let [writes, listings] = &*self.local_calls;
            (writes.load(Ordering::Relaxed), listings.load(Ordering::Relaxed))
        }
    }

    pub(crate) fn count_write(&self) {
        self.local_calls[0].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_listing(&self) {
        self.local_calls[1].fetch_add(1, Ordering::Relaxed);
    }

    /// Largest object that one [`Store::put`] should take, in bytes: a put holds the whole object
    /// in memory.
    pub fn single_put_max(&self) -> u64 {
        self.part_bytes.unwrap_or(PART_BYTES)
    }

    /// Writes an object made of these parts, one after the other.
    pub async fn put<'a>(
        &self,
        name: &str,
        kind: impl Into<Option<&'a FileKind>>,
        parts: impl IntoIterator<Item = Bytes>,
    ) -> Result<Stored> {
        let payload: PutPayload = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let attributes = self.attributes(kind.into());
        self.count_write();
        let options = PutOptions { attributes, ..PutOptions::default() };
        self.call(Method::Put, "write", name, || async {
            let (stored, exchange) = self.put_once(name, options.clone(), payload.clone()).await?;
            let stored = stored.map_err(|error| self.failed("write", name, error, &exchange))?;
            Ok(Stored { etag: self.etag_of(stored), sha256: exchange.body_sha256 })
        })
        .await
    }

    /// Writes a small object unless one of this name is there. If two programs do so at once, the
    /// first one wins where the store takes a condition, and the last one does elsewhere. So the
    /// caller reads the object afterwards.
    pub async fn create<'a>(
        &self,
        name: &str,
        kind: impl Into<Option<&'a FileKind>>,
        content: Bytes,
    ) -> Result<()> {
        let attributes = self.attributes(kind.into());
        self.count_write();
        let options = PutOptions { attributes, mode: PutMode::Create, ..PutOptions::default() };
        self.call(Method::Put, "write", name, || async {
            let (created, exchange) = self.put_once(name, options.clone(), content.clone().into()).await?;
            match created {
                Ok(_) | Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(()),
                // Servers that know no condition, and file systems that know no hard link, take the
                // same without it.
                Err(error)
                    if matches!(error, StoreError::NotImplemented { .. })
                        || matches!(exchange.status, Some(400 | 501))
                        || self.is_folder() =>
                {
                    if found(self.head_once(name).await)?.is_some() {
                        return Ok(());
                    }
                    let options = PutOptions { mode: PutMode::Overwrite, ..options.clone() };
                    let (stored, exchange) = self.put_once(name, options, content.clone().into()).await?;
                    stored.map(drop).map_err(|error| self.failed("write", name, error, &exchange))
                }
                Err(error) => Err(self.failed("write", name, error, &exchange)),
            }
        })
        .await
    }

    /// One PUT, unless nothing may be written any more.
    async fn put_once(
        &self,
        name: &str,
        options: PutOptions,
        payload: PutPayload,
    ) -> Result<(Result<PutResult, StoreError>, Exchange)> {
        self.check_window("write", name)?;
        let length = payload.content_length();
        let path = self.path(name);
        let (stored, exchange) = watched(self.parts.store.put_opts(&path, payload, options)).await;
        if stored.is_ok() {
            self.counters.sent(length);
        }
        Ok((stored, exchange))
    }

    /// Folders have nowhere to keep attributes, and the library refuses them there.
    pub(crate) fn attributes(&self, kind: Option<&FileKind>) -> Attributes {
        match (kind, &self.parts.medium) {
            (Some(kind), Medium::Bucket | Medium::Memory) => Attributes::from_iter([
                (Attribute::ContentType, kind.content_type.to_owned()),
                (Attribute::CacheControl, kind.cache_control.clone()),
            ]),
            _ => Attributes::new(),
        }
    }

    pub(crate) fn etag_of(&self, stored: PutResult) -> Option<String> {
        // Ceph sends an empty tag for an object in parts when it is finished.
        stored.e_tag.filter(|etag| !etag.is_empty() && !self.is_folder())
    }

    /// Whether the store is a folder. It keeps no [`FileKind`], and its tags say nothing of damage.
    pub fn is_folder(&self) -> bool {
        matches!(self.parts.medium, Medium::Folder { .. })
    }

    /// Whether the store can hold an object of this name, as far as the length tells.
    pub fn takes_name(&self, name: &str) -> bool {
        let path = self.path(name);
        if self.is_folder() {
            path.parts().all(|part| part.as_ref().len() <= FOLDER_NAME_BYTES_MAX)
        } else {
            path.as_ref().len() <= BUCKET_NAME_BYTES_MAX
        }
    }

    /// Reads a small object; `None` if it is not there.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        found(self.call(Method::Get, "read", name, || self.get_once(name)).await)
    }

    async fn get_once(&self, name: &str) -> Result<Bytes> {
        let path = self.path(name);
        let (read, exchange) = watched(async { self.parts.store.get(&path).await?.bytes().await }).await;
        let bytes = read.map_err(|error| self.failed("read", name, error, &exchange))?;
        self.counters.received(bytes.len());
        Ok(bytes)
    }

    /// Reads a non-empty range, or what there is of it: less if the object ends before the range
    /// does. `NotFound` without the object, `Truncated` if the object ends before the range begins.
    pub async fn get_up_to(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        self.call(Method::Get, "read", name, || self.get_up_to_once(name, range.clone())).await
    }

    async fn get_up_to_once(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        let unavailable = |what: String, exchange| {
            let error = StoreError::Generic { store: "store", source: what.into() };
            Err(self.failed("read", name, error, exchange))
        };
        let (got, exchange) = self.get_announced(name, range.clone()).await;
        match got {
            Ok((_, announced)) if announced.start != range.start || announced.end > range.end => {
                unavailable(format!("bytes {}..{} came", announced.start, announced.end), &exchange)
            }
            Ok((bytes, announced)) if bytes.len() as u64 == announced.end - announced.start => Ok(bytes),
            // Bytes that were announced and did not come say something of the connection, and
            // nothing of the object.
            Ok((bytes, _)) => unavailable(format!("{} bytes came", bytes.len()), &exchange),
            // The range begins behind the end.
            Err(_) if exchange.status == Some(416) => Err(Error::Truncated { key: name.to_owned() }),
            Err(error @ StoreError::NotFound { .. }) => Err(self.failed("read", name, error, &exchange)),
            // Some servers send the whole of an empty object instead of a range, which the library
            // takes for a defect. Other media have no status.
            Err(error) if exchange.status == Some(200) || !self.is_remote() => {
                match self.head_once(name).await {
                    Ok(meta) if meta.size <= range.start => Err(Error::Truncated { key: name.to_owned() }),
                    _ => Err(self.failed("read", name, error, &exchange)),
                }
            }
            Err(error) => Err(self.failed("read", name, error, &exchange)),
        }
    }

    /// A range, and the range that the store announced: it is shorter when the object ends early.
    async fn get_announced(
        &self,
        name: &str,
        range: Range<u64>,
    ) -> (Result<(Bytes, Range<u64>), StoreError>, Exchange) {
        let path = self.path(name);
        watched(async {
            let options =
                GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
            let answer = self.parts.store.get_opts(&path, options).await?;
            let announced = answer.range.clone();
            let mut stream = answer.into_stream();
            // Usually the body comes in many pieces. The range is bounded by the memory that the
            // caller has.
            let mut bytes = BytesMut::with_capacity(usize::try_from(range.end - range.start).unwrap_or(0));
            while let Some(piece) = stream.try_next().await? {
                self.counters.received(piece.len());
                bytes.extend_from_slice(&piece);
            }
            Ok((bytes.freeze(), announced))
        })
        .await
    }

    /// Size and tag of an object; `None` if it is not there.
    pub async fn head(&self, name: &str) -> Result<Option<FileMeta>> {
        found(self.call(Method::Head, "find", name, || self.head_once(name)).await)
    }

    async fn head_once(&self, name: &str) -> Result<FileMeta> {
        let path = self.path(name);
        let ask = || async {
            let options = GetOptions::new().with_head(true);
            let (found, exchange) = watched(self.parts.store.get_opts(&path, options)).await;
            (found.map(|found| self.meta(&found.meta, &found.attributes)), exchange)
        };
        match ask().await {
            (Ok(meta), _) => Ok(meta),
            // An answer to HEAD has no body, so a missing bucket looks like a missing object. The
            // answer to a GET tells them apart.
            (Err(StoreError::NotFound { .. }), _) if self.is_remote() => {
                match self.get_announced(name, 0..1).await {
                    // The object arrived in between.
                    (Ok(_), _) | (Err(_), Exchange { status: Some(416), .. }) => {
                        let (found, exchange) = ask().await;
                        found.map_err(|error| self.failed("find", name, error, &exchange))
                    }
                    (Err(error), exchange) => Err(self.failed("find", name, error, &exchange)),
                }
            }
            (Err(error), exchange) => Err(self.failed("find", name, error, &exchange)),
        }
    }

    pub(crate) fn meta(&self, meta: &ObjectMeta, attributes: &Attributes) -> FileMeta {
        let etag = if self.is_folder() {
            // Not the library's tag, which holds the number of the inode: copies of a folder on
            // several hosts must agree.
            let changed = std::time::SystemTime::from(meta.last_modified);
            let changed = changed.duration_since(UNIX_EPOCH).unwrap_or_default();
            Some(format!("\"{:x}-{:x}\"", changed.as_nanos(), meta.size))
        } else {
            meta.e_tag.clone()
        };
        let cache_control = attributes.get(&Attribute::CacheControl).map(|value| value.as_ref().to_owned());
        FileMeta { size: meta.size, etag, cache_control }
    }

    /// Deletes an object. Deleting a missing object is `Ok`.
    pub async fn delete(&self, name: &str) -> Result<()> {
        self.count_write();
        found(self.call(Method::Delete, "delete", name, || self.delete_once(name)).await).map(|_| ())
    }

    async fn delete_once(&self, name: &str) -> Result<()> {
        self.check_window("delete", name)?;
        let path = self.path(name);
        let (deleted, exchange) = watched(self.parts.store.delete(&path)).await;
        deleted.map_err(|error| self.failed("delete", name, error, &exchange))?;
        match &self.parts.medium {
            // The library syncs what it writes, and not what it deletes.
            Medium::Folder { root, .. } => sync_parent(root, name).await.map_err(|source| Error::Io {
                attempt: "delete",
                key: name.to_owned(),
                source,
            }),
            Medium::Bucket | Medium::Memory => Ok(()),
        }
    }

    /// Closes what is below a name to other users of the machine, if the store is a folder. The
    /// user and the group keep their rights. A folder that is made here is for the user alone. The
    /// files of a closed folder keep their mode.
    pub async fn close_to_others(&self, name: &str) -> Result<()> {
        let Medium::Folder { root, .. } = &self.parts.medium else { return Ok(()) };
        let (root, folder) = (Arc::clone(root), root.join(name));
        let closed = tokio::task::spawn_blocking(move || close_folder(&root, &folder)).await;
        closed.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|source| Error::Io {
            attempt: "close to other users",
            key: name.to_owned(),
            source,
        })
    }

    /// Whether this object, which is there, can be read without credentials; `None` if that cannot
    /// be told.
    pub async fn is_public(&self, name: &str) -> Result<Option<bool>> {
        let Some(anonymous) = &self.parts.anonymous else { return Ok(None) };
        let path = self.path(name);
        let (read, exchange) = watched(anonymous.get(&path)).await;
        match read {
            Ok(_) => Ok(Some(true)),
            // R2 says 400, Azure 409, and some stores hide what is private behind a 404. Any other
            // status is about something else: too many requests say nothing of the answer to one
            // more.
            Err(_) if matches!(exchange.status, Some(400 | 401 | 403 | 404 | 409)) => Ok(Some(false)),
            Err(StoreError::PermissionDenied { .. }) if !self.is_remote() => Ok(Some(false)),
            Err(error) => Err(self.failed("read without credentials", name, error, &exchange)),
        }
    }

    /// Makes a call by the policy.
    pub(crate) async fn call<T, F>(
        &self,
        method: Method,
        attempt: &'static str,
        key: &str,
        once: impl Fn() -> F + Send + Sync,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let outcome = self
            .retries
            .run(method, || async {
                match &self.limit {
                    Some(limit) => limit.run(attempt, key, once()).await,
                    None => once().await,
                }
            })
            .await;
        self.checked(outcome).await
    }

    /// Tells a missing file from a missing folder.
    pub(crate) async fn checked<T>(&self, outcome: Result<T>) -> Result<T> {
        match (&outcome, &self.parts.medium) {
            (Err(Error::NotFound { .. }), Medium::Folder { root, must_exist: true }) => {
                match tokio::fs::metadata(root).await {
                    Ok(meta) if meta.is_dir() => outcome,
                    _ => Err(Error::FolderGone { path: root.display().to_string() }),
                }
            }
            _ => outcome,
        }
    }

    pub(crate) fn path(&self, name: &str) -> Path {
        name.split('/').filter(|part| !part.is_empty()).fold(self.parts.prefix.clone(), Path::join)
    }

    /// The name of an object below the prefix, from its path.
    pub(crate) fn name_of(&self, path: &Path) -> Option<String> {
        let parts = path.prefix_match(&self.parts.prefix)?;
        Some(parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"))
    }

    pub(crate) fn failed(
        &self,
        verb: &'static str,
        key: &str,
        error: StoreError,
        exchange: &Exchange,
    ) -> Error {
        let attempt = Attempt { verb, key, store: &self.parts.location };
        if self.is_remote() { attempt.failed(error, exchange) } else { attempt.failed_locally(error) }
    }
}

/// `None` for an object that is not there.
fn found<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn close_folder(root: &FilePath, folder: &FilePath) -> io::Result<()> {
    match is_open_to_others(folder) {
        Ok(is_open) if is_open || any_folder_is_open(folder)? => close_folders(folder),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(root)?;
            std::fs::DirBuilder::new().mode(0o700).create(folder)
        }
        Err(error) => Err(error),
    }
}

/// Closes a folder, and then all folders in it: a process whose working folder is one of them needs
/// no right in those above it. One that cannot be closed keeps no other one open.
fn close_folders(folder: &FilePath) -> io::Result<()> {
    close_one(folder)?;
    folders_in(folder)?.iter().map(|inner| close_from_inside(inner)).fold(Ok(()), io::Result::and)
}

/// Closes a folder after those in it: while one of these is open, it is open too, and the next run
/// goes on.
fn close_from_inside(folder: &FilePath) -> io::Result<()> {
    folders_in(folder)?.iter().map(|inner| close_from_inside(inner)).fold(Ok(()), io::Result::and)?;
    close_one(folder)
}

fn close_one(folder: &FilePath) -> io::Result<()> {
    if !is_open_to_others(folder)? {
        return Ok(());
    }
    let mode = std::fs::metadata(folder)?.permissions().mode();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode & 0o7777 & !OF_OTHERS))
}

/// Whether a folder directly in this one is open: a run that closed this one was interrupted, or
/// closed only this one.
fn any_folder_is_open(folder: &FilePath) -> io::Result<bool> {
    for inner in folders_in(folder)? {
        if is_open_to_others(&inner)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn folders_in(folder: &FilePath) -> io::Result<Vec<std::path::PathBuf>> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

/// The rights of users that neither own a file nor are in its group.
const OF_OTHERS: u32 = 0o007;

fn is_open_to_others(folder: &FilePath) -> io::Result<bool> {
    Ok(std::fs::metadata(folder)?.permissions().mode() & OF_OTHERS != 0)
}

/// Syncs the folder that an entry lies in.
async fn sync_parent(root: &FilePath, name: &str) -> io::Result<()> {
    match root.join(name).parent() {
        Some(folder) => tokio::fs::File::open(folder).await?.sync_all().await,
        None => Ok(()),
    }
}
