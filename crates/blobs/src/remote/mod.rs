//! Object stores over HTTP: S3 and everything that speaks like it, Google Cloud Storage, Azure Blob Storage.
//!
//! Translates the contract to the `object_store` library, one request a call, and its failures to ours. Retries and limits are
//! in wrappers of their own, so the library's are off: each request is counted once, where it is made.
//!
//! Invariants
//! - A pack is one PUT. There are no multipart uploads, so none to clean up, and no conditional requests.
//! - "Not there" is only said by a store that knows the bucket: a bucket that is missing is a refusal, never `NotFound`.
//! - Payloads are signed with their SHA-256, so a store never keeps a body that changed on its way.

mod exchange;
mod files;
mod open;
mod probe;

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::{
    Error as StoreError, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, PutOptions, PutPayload,
};

use self::exchange::{Exchange, watched};
pub use self::files::RemoteFiles;
pub use self::open::{Credentials, OpenError, RemoteKind, RemoteSettings};
pub use self::probe::{Probe, Right};
use crate::contract::{BlobKey, Blobs};
use crate::counters::Counters;
use crate::{Error, Result};

/// An object store over HTTP.
#[derive(Clone)]
pub struct RemoteBlobs {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// What to call it in messages: scheme, bucket, and where it is.
    name: Arc<str>,
    counters: Arc<Counters>,
}

impl fmt::Debug for RemoteBlobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteBlobs")
            .field("name", &self.name)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl RemoteBlobs {
    /// What was asked of the store so far.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What the store is called in messages, such as `s3://bucket/prefix at https://s3.example.org`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether Attic left something below the prefix: `<uuid>.chunk` objects. One page of a listing is looked at.
    pub async fn holds_attic_chunks(&self) -> Result<bool> {
        self.first_page_has(self.list_prefix(), |name| name.extension() == Some("chunk")).await
    }

    /// Whether there are packs below the prefix, whoever wrote them. One page of a listing is looked at.
    pub async fn holds_packs(&self) -> Result<bool> {
        let packs = self.prefix.clone().join(PACKS);
        self.first_page_has(Some(&packs), |name| name.extension() == Some("pack")).await
    }

    async fn first_page_has(&self, prefix: Option<&Path>, is_one: impl Fn(&Path) -> bool) -> Result<bool> {
        let attempt = Attempt { verb: "list", key: String::new(), name: &self.name };
        let (found, exchange) = watched(async {
            let mut entries = self.store.list(prefix);
            for _ in 0..ENTRIES_SEARCHED_MAX {
                match entries.try_next().await? {
                    Some(entry) if is_one(&entry.location) => return Ok(true),
                    Some(_) => {}
                    None => break,
                }
            }
            Ok(false)
        })
        .await;
        found.map_err(|error| attempt.failed(error, &exchange))
    }

    fn path(&self, key: &BlobKey) -> Path {
        let key = key.to_string();
        key.split('/').fold(self.prefix.clone(), Path::join)
    }

    fn list_prefix(&self) -> Option<&Path> {
        Some(&self.prefix).filter(|prefix| !prefix.as_ref().is_empty())
    }

    fn attempt(&self, verb: &'static str, key: &BlobKey) -> Attempt<'_> {
        Attempt { verb, key: key.to_string(), name: &self.name }
    }

    /// A range, and the one that the store announced: it is shorter when the object ends early.
    async fn get(
        &self,
        key: &BlobKey,
        range: Range<u64>,
    ) -> (Result<(Bytes, Range<u64>), StoreError>, Exchange) {
        let path = self.path(key);
        watched(async {
            let options =
                GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
            let answer = self.store.get_opts(&path, options).await?;
            let announced = answer.range.clone();
            let mut stream = answer.into_stream();
            // Usually the body comes in many pieces; the range is bounded by what the caller has memory for.
            let mut bytes = BytesMut::with_capacity(usize::try_from(range.end - range.start).unwrap_or(0));
            while let Some(piece) = stream.try_next().await? {
                self.counters.received(piece.len());
                bytes.extend_from_slice(&piece);
            }
            Ok((bytes.freeze(), announced))
        })
        .await
    }

    /// A range, or what there is of it.
    async fn read(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        let attempt = self.attempt("read", key);
        let (got, exchange) = self.get(key, range.clone()).await;
        match got {
            Ok((_, announced)) if announced.start != range.start || announced.end > range.end => {
                let source = format!("bytes {}..{} came", announced.start, announced.end).into();
                Err(attempt.failed(StoreError::Generic { store: "store", source }, &exchange))
            }
            Ok((bytes, announced)) if bytes.len() as u64 == announced.end - announced.start => Ok(bytes),
            // Announced and not sent: that is the connection, and not the object.
            Ok((bytes, _)) => {
                let source = format!("{} bytes came", bytes.len()).into();
                Err(attempt.failed(StoreError::Generic { store: "store", source }, &exchange))
            }
            // The range begins behind the end.
            Err(_) if exchange.status == Some(416) => Err(Error::Truncated { key: attempt.key }),
            // Of an empty object some servers send all of it instead of a range, which the library takes for a defect.
            Err(error) if exchange.status == Some(200) => match self.head(key).await {
                Ok(size) if size < range.end => Err(Error::Truncated { key: attempt.key }),
                _ => Err(attempt.failed(error, &exchange)),
            },
            Err(error) => Err(attempt.failed(error, &exchange)),
        }
    }
}

/// Where names of packs begin.
const PACKS: &str = "packs";

/// One page of a listing.
const ENTRIES_SEARCHED_MAX: usize = 1_000;

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Blobs for RemoteBlobs {
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> Result<()> {
        let attempt = self.attempt("store", key);
        let path = self.path(key);
        let payload = parts.iter().filter(|part| !part.is_empty()).cloned().collect::<PutPayload>();
        let length = payload.content_length();
        let (stored, exchange) = watched(self.store.put_opts(&path, payload, PutOptions::default())).await;
        stored.map_err(|error| attempt.failed(error, &exchange))?;
        self.counters.sent(length);
        Ok(())
    }

    async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        let size = range.end - range.start;
        let bytes = self.read(key, range).await?;
        if bytes.len() as u64 == size { Ok(bytes) } else { Err(Error::Truncated { key: key.to_string() }) }
    }

    async fn get_up_to(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        self.read(key, range).await
    }

    async fn head(&self, key: &BlobKey) -> Result<u64> {
        let attempt = self.attempt("find", key);
        let path = self.path(key);
        let (found, exchange) = watched(self.store.head(&path)).await;
        match found {
            Ok(meta) => Ok(meta.size),
            // An answer to HEAD has no body, so a missing bucket looks like a missing object. A GET's answer tells.
            Err(StoreError::NotFound { .. }) => match self.get(key, 0..1).await {
                // It came in between.
                (Ok(_), _) | (Err(_), Exchange { status: Some(416), .. }) => {
                    let (found, exchange) = watched(self.store.head(&path)).await;
                    found.map(|meta| meta.size).map_err(|error| attempt.failed(error, &exchange))
                }
                (Err(error), exchange) => Err(attempt.failed(error, &exchange)),
            },
            Err(error) => Err(attempt.failed(error, &exchange)),
        }
    }

    async fn delete(&self, key: &BlobKey) -> Result<()> {
        let attempt = self.attempt("delete", key);
        let path = self.path(key);
        let (deleted, exchange) = watched(self.store.delete(&path)).await;
        match deleted.map_err(|error| attempt.failed(error, &exchange)) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn list(&self) -> Result<Vec<BlobKey>> {
        let attempt = Attempt { verb: "list", key: String::new(), name: &self.name };
        let (listed, exchange) = watched(async {
            let mut keys = Vec::new();
            let mut entries = self.store.list(self.list_prefix());
            while let Some(entry) = entries.try_next().await? {
                let name = entry
                    .location
                    .prefix_match(&self.prefix)
                    .map(|parts| parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"));
                keys.extend(name.and_then(|name| BlobKey::parse(&name)));
            }
            Ok(keys)
        })
        .await;
        listed.map_err(|error| attempt.failed(error, &exchange))
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn counters(&self) -> Option<&Counters> {
        Some(&*self.counters)
    }
}

/// What was tried, for the message of its failure.
struct Attempt<'a> {
    verb: &'static str,
    key: String,
    name: &'a str,
}

impl Attempt<'_> {
    fn failed(&self, error: StoreError, exchange: &Exchange) -> Error {
        let (attempt, key, store) = (self.verb, self.key.clone(), self.name.to_owned());
        let no_bucket = || {
            let text = error.to_string();
            ["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"]
                .iter()
                .any(|code| text.contains(code))
        };
        match exchange.status {
            Some(404) if no_bucket() => Error::Refused { attempt, key, store, source: Box::new(error) },
            Some(404) if !key.is_empty() && is_missing(&error) => Error::NotFound { key },
            // Of something else on the way: a proxy without a backend, a service that gives credentials. That says nothing of the object.
            Some(404) => Error::Unavailable { attempt, key, source: Box::new(error) },
            _ if is_full(exchange.status, &error) => {
                Error::NoSpace { attempt, key, source: io::Error::new(io::ErrorKind::StorageFull, error) }
            }
            // A store that does not answer in time has too much to do, too.
            None if is_timeout(&error) => {
                Error::Busy { attempt, key, retry_after: None, source: Box::new(error) }
            }
            Some(429 | 503) => {
                Error::Busy { attempt, key, retry_after: exchange.retry_after, source: Box::new(error) }
            }
            // A body that came too slowly, or not whole: AWS says so with a 400.
            Some(400) if is_cut(&error) => Error::Unavailable { attempt, key, source: Box::new(error) },
            // 408 is a time-out; 409 is a race that the store lost with itself.
            Some(408 | 409) => Error::Unavailable { attempt, key, source: Box::new(error) },
            Some(301 | 307 | 308 | 400..=499) => {
                Error::Refused { attempt, key, store, source: Box::new(error) }
            }
            _ => match error {
                // No credentials to be had, or none that could be read.
                error @ (StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. }) => {
                    Error::Refused { attempt, key, store, source: Box::new(error) }
                }
                error => Error::Unavailable { attempt, key, source: Box::new(error) },
            },
        }
    }
}

/// Whether the store itself says that the object is not there. Only that may make a pack count as lost.
fn is_missing(error: &StoreError) -> bool {
    // S3 and Google's XML; Azure; Google's JSON.
    const CODES: [&str; 4] = ["NoSuchKey", "BlobNotFound", "No such object", "NoSuchObject"];
    let text = error.to_string();
    matches!(error, StoreError::NotFound { .. }) && CODES.iter().any(|code| text.contains(code))
}

fn is_cut(error: &StoreError) -> bool {
    let text = error.to_string();
    ["<Code>RequestTimeout<", "<Code>IncompleteBody<"].iter().any(|code| text.contains(code))
}

/// A quota or a disk that is full: waiting does not mend that. Stores disagree on the status, so the code counts.
fn is_full(status: Option<u16>, error: &StoreError) -> bool {
    let text = || error.to_string();
    status == Some(507)
        || (matches!(status, Some(400..=599))
            && ["<Code>QuotaExceeded<", "<Code>XMinioStorageFull<"].iter().any(|code| text().contains(code)))
}

fn is_timeout(error: &StoreError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return http.kind() == HttpErrorKind::Timeout;
        }
        cause = error.source();
    }
    false
}
