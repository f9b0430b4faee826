//! A publishing target in memory. It remembers every change, and each of its writes can crash, take
//! a while or fail.
//!
//! The faults lie below [`Store`], in the library's contract, so publishing runs with the
//! same store as in production.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormer_stores::Store;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    Attribute, CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result, UploadPart,
};

use crate::faults::{Fate, Faults, Lie};

/// Something that changed the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileEvent {
    /// A file was written, with this content.
    Put(String, Bytes),
    /// A file was deleted.
    Delete(String),
}

/// A target in memory. Its stores share the files and the events.
#[derive(Debug, Clone)]
pub struct MemoryTarget {
    location: String,
    part_bytes: Option<u64>,
    is_public: bool,
    files: Arc<Files>,
}

#[derive(Debug, Default)]
struct Files {
    memory: InMemory,
    now: Mutex<Now>,
    /// Whether a PUT with a condition is refused, as by some S3 servers.
    refuses_conditions: bool,
}

#[derive(Debug, Default)]
struct Now {
    contents: BTreeMap<String, Bytes>,
    events: Vec<FileEvent>,
}

impl Default for MemoryTarget {
    fn default() -> Self {
        Self::at("memory")
    }
}

impl MemoryTarget {
    /// An empty target that cannot be read without credentials.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty target with this location.
    pub fn at(location: &str) -> Self {
        Self { location: location.to_owned(), part_bytes: None, is_public: false, files: Arc::default() }
    }

    /// An empty target that takes files over so many bytes in parts of as many.
    pub fn in_parts_of(bytes: u64) -> Self {
        Self { part_bytes: Some(bytes), ..Self::default() }
    }

    /// An empty target that can be read without credentials.
    pub fn readable_by_anybody() -> Self {
        Self { is_public: true, ..Self::default() }
    }

    /// An empty target that takes no PUT with a condition, as some S3 servers.
    pub fn without_conditions() -> Self {
        let files = Files { refuses_conditions: true, ..Files::default() };
        Self { files: Arc::new(files), ..Self::default() }
    }

    /// All files.
    pub fn files(&self) -> BTreeMap<String, Bytes> {
        self.files.lock().contents.clone()
    }

    /// All changes so far.
    pub fn events(&self) -> Vec<FileEvent> {
        self.files.lock().events.clone()
    }

    /// The `Cache-Control` that was written with a file.
    pub async fn cache_control(&self, name: &str) -> Option<String> {
        let found = self.files.memory.get_opts(&Path::from(name), GetOptions::default()).await.ok()?;
        found.attributes.get(&Attribute::CacheControl).map(|value| value.as_ref().to_owned())
    }

    /// The target, without faults.
    pub fn store(&self) -> Store {
        self.store_with(Fault::None)
    }

    /// The target of a process that crashes by the script of `faults`.
    pub fn crashing(&self, faults: &Arc<Faults>) -> Store {
        self.store_with(Fault::Crash(Arc::clone(faults)))
    }

    /// The target of a process that stands still in one of its writes, as one does that is stopped
    /// or whose machine is frozen.
    pub fn freezing(&self, freeze: &Arc<Freeze>) -> Store {
        self.store_with(Fault::Freeze(Arc::clone(freeze)))
    }

    /// The target, whose writes take as long as `writes` says, and one of whose writes fails.
    pub fn slow(&self, writes: &Arc<SlowWrites>) -> Store {
        self.store_with(Fault::Slow(Arc::clone(writes)))
    }

    fn store_with(&self, fault: Fault) -> Store {
        let with = |fault| Arc::new(FaultyStore { files: Arc::clone(&self.files), fault });
        let anonymous = if self.is_public { Fault::None } else { Fault::Denied };
        let store = Store::over(with(fault), &self.location).seen_without_credentials_as(with(anonymous));
        match self.part_bytes {
            Some(bytes) => store.in_parts_of(bytes),
            None => store,
        }
    }
}

impl Files {
    fn lock(&self) -> MutexGuard<'_, Now> {
        // No code panics half-way through a change, so a poisoned map is whole.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn note_put(&self, location: &Path) -> Result<()> {
        let content = self.memory.get(location).await?.bytes().await?;
        let mut now = self.lock();
        now.events.push(FileEvent::Put(location.to_string(), content.clone()));
        now.contents.insert(location.to_string(), content);
        Ok(())
    }

    fn note_delete(&self, location: &Path) {
        let mut now = self.lock();
        now.events.push(FileEvent::Delete(location.to_string()));
        now.contents.remove(location.as_ref());
    }
}

/// Counts the writes of a target. Each takes a while, and one fails.
#[derive(Debug)]
pub struct SlowWrites {
    pause: Duration,
    fail_at: u64,
    writes: AtomicU64,
    under_way: AtomicU64,
    open_uploads: AtomicU64,
}

impl SlowWrites {
    /// Each write takes at least `pause`. Number `fail_at`, from 0, fails.
    pub fn new(pause: Duration, fail_at: u64) -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        Arc::new(Self { pause, fail_at, writes: zero(), under_way: zero(), open_uploads: zero() })
    }

    /// Writes so far.
    pub fn count(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// Writes that are under way, and uploads in parts that are neither finished nor given up.
    pub fn unfinished(&self) -> (u64, u64) {
        (self.under_way.load(Ordering::SeqCst), self.open_uploads.load(Ordering::SeqCst))
    }

    /// A write. It counts as under way until it has ended, even if nothing waits for it any more.
    async fn write(self: &Arc<Self>) -> Result<()> {
        let number = self.writes.fetch_add(1, Ordering::SeqCst);
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let writes = Arc::clone(self);
        let write = tokio::spawn(async move {
            tokio::time::sleep(writes.pause).await;
            writes.under_way.fetch_sub(1, Ordering::SeqCst);
        });
        write.await.expect("a pause does not panic");
        if number == self.fail_at { Err(refused()) } else { Ok(()) }
    }
}

/// Counts the writes of a target. In one of them, the whole process stands still, and others go on.
pub struct Freeze {
    at: u64,
    meanwhile: Box<dyn Fn() + Send + Sync>,
    writes: AtomicU64,
}

impl fmt::Debug for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Freeze").field("at", &self.at).field("writes", &self.writes).finish_non_exhaustive()
    }
}

impl Freeze {
    /// Write number `at`, from 0, has its effect. Its answer comes after `meanwhile`, which blocks
    /// the thread: the connection is lost by then.
    pub fn new(at: u64, meanwhile: Box<dyn Fn() + Send + Sync>) -> Arc<Self> {
        Arc::new(Self { at, meanwhile, writes: AtomicU64::new(0) })
    }

    /// Writes so far.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }
}

#[derive(Debug, Clone)]
enum Fault {
    None,
    Freeze(Arc<Freeze>),
    Crash(Arc<Faults>),
    Slow(Arc<SlowWrites>),
    /// No read succeeds, as without credentials.
    Denied,
}

/// An error that no caller tries again.
fn refused() -> Error {
    let source = "the process has crashed, or this write fails by the script".into();
    Error::PermissionDenied { path: String::new(), source }
}

impl Fault {
    /// A write, which the fault may keep from happening, or from being acknowledged.
    async fn write<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        match self {
            Self::None => call.await,
            Self::Denied => Err(refused()),
            Self::Slow(writes) => {
                writes.write().await?;
                call.await
            }
            Self::Freeze(freeze) => {
                let freezes = freeze.writes.fetch_add(1, Ordering::SeqCst) == freeze.at;
                let done = call.await?;
                if freezes {
                    (freeze.meanwhile)();
                    let source = "the connection was lost while the process stood still".into();
                    return Err(Error::Generic { store: "memory", source });
                }
                Ok(done)
            }
            Self::Crash(faults) => match faults.step() {
                Fate::Run => call.await,
                Fate::Die { effect_kept } => {
                    if effect_kept {
                        let _ = call.await;
                    }
                    Err(refused())
                }
                Fate::Dead => Err(refused()),
            },
        }
    }

    fn drops_puts(&self) -> bool {
        matches!(self, Self::Crash(faults) if faults.lies(Lie::PutsDropped))
    }

    fn check_read(&self) -> Result<()> {
        match self {
            Self::Denied => Err(refused()),
            Self::Crash(faults) if faults.crashed() => Err(refused()),
            _ => Ok(()),
        }
    }
}

#[derive(Debug)]
struct FaultyStore {
    files: Arc<Files>,
    fault: Fault,
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a target in memory")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if self.files.refuses_conditions && options.mode != PutMode::Overwrite {
            let operation = "a condition".to_owned();
            return Err(Error::NotImplemented { operation, implementer: self.to_string() });
        }
        let put = async {
            let put = self.files.memory.put_opts(location, payload, options).await?;
            if self.fault.drops_puts() && location.as_ref().contains("/nar/") {
                self.files.memory.delete(location).await?;
            } else {
                self.files.note_put(location).await?;
            }
            Ok(put)
        };
        self.fault.write(put).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let begin = self.files.memory.put_multipart_opts(location, options);
        let upload = match &self.fault {
            // Only parts take a while.
            Fault::Slow(writes) => {
                let upload = begin.await?;
                writes.open_uploads.fetch_add(1, Ordering::SeqCst);
                upload
            }
            fault => fault.write(begin).await?,
        };
        let (files, fault) = (Arc::clone(&self.files), self.fault.clone());
        Ok(Box::new(FaultyUpload { upload, location: location.clone(), files, fault, has_ended: false }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.fault.check_read()?;
        self.files.memory.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (files, fault) = (Arc::clone(&self.files), self.fault.clone());
        let delete = move |location: Path| {
            let (files, fault) = (Arc::clone(&files), fault.clone());
            async move {
                let delete = async {
                    files.memory.delete(&location).await?;
                    files.note_delete(&location);
                    Ok(())
                };
                fault.write(delete).await.map(|()| location)
            }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.fault.check_read() {
            Ok(()) => self.files.memory.list(prefix),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.fault.check_read() {
            Ok(()) => self.files.memory.list_with_offset(prefix, offset),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.fault.check_read()?;
        self.files.memory.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> Result<()> {
        Err(Error::NotImplemented { operation: "copy".to_owned(), implementer: self.to_string() })
    }
}

#[derive(Debug)]
struct FaultyUpload {
    upload: Box<dyn MultipartUpload>,
    location: Path,
    files: Arc<Files>,
    fault: Fault,
    /// Finished or given up.
    has_ended: bool,
}

impl FaultyUpload {
    fn end(&mut self) {
        if !std::mem::replace(&mut self.has_ended, true)
            && let Fault::Slow(writes) = &self.fault
        {
            writes.open_uploads.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        let (put, fault) = (self.upload.put_part(part), self.fault.clone());
        Box::pin(async move { fault.write(put).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let (files, location, fault) = (Arc::clone(&self.files), self.location.clone(), self.fault.clone());
        let complete = async {
            let put = self.upload.complete().await?;
            files.note_put(&location).await?;
            Ok(put)
        };
        let completed = fault.write(complete).await?;
        self.end();
        Ok(completed)
    }

    async fn abort(&mut self) -> Result<()> {
        self.end();
        match &self.fault {
            // The dead give nothing up.
            Fault::Crash(faults) if faults.crashed() => Ok(()),
            _ => self.upload.abort().await,
        }
    }
}
