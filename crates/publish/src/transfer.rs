//! Sending NARs: spliced by the engine, hashed on the way, in one PUT or in parts, within a bound
//! of memory and bandwidth.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dormer_edge::{Caching, EdgeKey, NarFile, Visibility, caching};
use dormer_engine::{Budget, BudgetShare, Engine, ErrorClass, OpenNar};
use dormer_format::EncodingTag;
use dormer_index::{Cache, NarQuery, PublishedNar};
use dormer_nix::{Backoff, NarHash, NarHasher, RateSchedule, StorePathHash};
use dormer_stores::{FileKind, FileMeta, Store, Stored};
use futures::StreamExt as _;
use tokio::time::{Instant, sleep_until};

use crate::Result;
use crate::recompress::{self, Pieces};
use crate::settings::TargetSettings;

/// Largest listing that is published, in bytes.
const LISTING_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Tries of an upload in parts, which fails as a whole, and of a call of a folder. A remote store
/// has repeated all other calls itself.
const UPLOAD_TRIES: u32 = 3;

/// The pauses between these tries.
const UPLOAD_PAUSE: Backoff = Backoff { first: Duration::from_secs(2), max: Duration::from_secs(8) };

/// A NAR to be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NarToSend {
    /// Its hash, and the tag that it has in the lab.
    pub(crate) nar: (NarHash, EncodingTag),
    /// Bytes of the archive.
    pub(crate) size: u64,
    /// The tag that it is published under.
    pub(crate) published_tag: EncodingTag,
}

impl NarToSend {
    /// What names it in the target.
    pub(crate) fn published(&self) -> (NarHash, EncodingTag) {
        (self.nar.0, self.published_tag)
    }
}

/// Where a file goes, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilePlace {
    /// Its name in the target.
    pub(crate) name: String,
    /// Its headers.
    pub(crate) kind: FileKind,
}

impl FilePlace {
    /// In an edge target, where each cache has a folder.
    pub(crate) fn in_target(key: &EdgeKey, is_public: bool) -> Self {
        Self { name: key.to_string(), kind: kind(key, is_public) }
    }

    /// In a place that holds one cache alone.
    pub(crate) fn at_root(key: &EdgeKey, is_public: bool) -> Self {
        let name = key.to_string();
        let below = key.cache().and_then(|cache| name.strip_prefix(&format!("{cache}/")).map(str::to_owned));
        Self { name: below.unwrap_or(name), kind: kind(key, is_public) }
    }

    /// Whether the store keeps these headers with a file that is there. A folder keeps none.
    pub(crate) fn has_its_headers(&self, store: &Store, there: &FileMeta) -> bool {
        store.is_folder() || there.cache_control.as_ref() == Some(&self.kind.cache_control)
    }

    /// Writes a small file there.
    pub(crate) async fn put_small(&self, store: &Store, content: Vec<u8>) -> Result<Stored> {
        Ok(store.put(&self.name, &self.kind, vec![Bytes::from(content)]).await?)
    }
}

/// The result of sending a NAR.
pub(crate) enum Sent {
    /// It is there.
    Done(PublishedNar),
    /// It was there already.
    Found(PublishedNar),
    /// It cannot be read, or is another one by now: what to say of the paths that have it.
    Unreadable,
}

/// What all uploads of a target share.
#[derive(Debug)]
pub(crate) struct Sender {
    memory: Budget,
    recompress_level: Option<i32>,
    /// When this sender was made.
    begin: Instant,
    /// When bytes may be sent, as time since then; `None`: at once.
    bandwidth: Option<Mutex<RateSchedule>>,
}

impl Sender {
    pub(crate) fn new(settings: &TargetSettings) -> Self {
        Self {
            memory: Budget::of_memory("send_memory", settings.memory_bytes, Duration::MAX, "files"),
            recompress_level: settings.recompress_level,
            begin: Instant::now(),
            bandwidth: NonZeroU64::new(settings.bandwidth)
                .map(|bytes_per_second| Mutex::new(RateSchedule::new(bytes_per_second))),
        }
    }

    /// Sends a NAR. If it `may_be_there`, it is looked for first.
    pub(crate) async fn send_nar(
        &self,
        engine: &Engine,
        store: &Store,
        cache: &Cache,
        place: &FilePlace,
        nar: NarToSend,
        may_be_there: bool,
    ) -> Result<Sent> {
        for attempt in 1.. {
            let mut in_parts = false;
            let outcome = async {
                if may_be_there && let Some(found) = self.find_nar(engine, store, cache, place, nar).await? {
                    return Ok(Sent::Found(found));
                }
                self.send_once(engine, store, cache, place, nar, &mut in_parts).await
            }
            .await;
            match outcome {
                Err(crate::Error::Target(error))
                    if (in_parts && error.may_pass() || error.is_worth_a_retry())
                        && attempt < UPLOAD_TRIES =>
                {
                    tracing::warn!(file.name = place.name, attempt, %error, "failed to send a NAR, trying again");
                    tokio::time::sleep(UPLOAD_PAUSE.pause(attempt, rand::random())).await;
                }
                // The lab's bytes are gone or damaged: that is about this path, and not about the
                // target.
                Err(crate::Error::Engine(error)) if error.class() == ErrorClass::Missing => {
                    return Ok(Sent::Unreadable);
                }
                outcome => return outcome,
            }
        }
        unreachable!("the loop ends by returning");
    }

    /// Looks for a NAR's file in the target. Its name stands for its bytes, so a file of the right
    /// size is the one. What it is hashed to follows from the lab's own bytes. A file with other
    /// headers is not found: they may be those of a time when the cache had other readers.
    async fn find_nar(
        &self,
        engine: &Engine,
        store: &Store,
        cache: &Cache,
        place: &FilePlace,
        nar: NarToSend,
    ) -> Result<Option<PublishedNar>> {
        let there = store.head(&place.name).await?;
        let Some(there) = there.filter(|there| place.has_its_headers(store, there)) else { return Ok(None) };
        let Some(open) = engine.open_nar(cache, &NarQuery::Hash(nar.nar.0)).await? else { return Ok(None) };
        let is_other = self.recompress_level.is_none() && open.file_size() != there.size;
        if open.tag() != nar.nar.1 || is_other {
            return Ok(None);
        }
        let extra = self.recompress_level.map_or(0, |_| recompress::memory_bytes(nar.size));
        let _memory = self.reserve(extra).await;
        let mut pieces = self.pieces(open, nar).await?;
        let mut hasher = NarHasher::new();
        while let Some(bytes) = pieces.next().await {
            hasher.update(&bytes?);
        }
        let (file_hash, file_size) = hasher.finish();
        Ok((file_size == there.size).then(|| PublishedNar {
            nar: nar.published(),
            uploaded: true,
            file_size,
            file_hash: Some(file_hash),
            // That of a folder says nothing of damage.
            etag: there.etag.filter(|_| !store.is_folder()),
            delete_after: None,
        }))
    }

    /// The bytes of a NAR as they are published.
    async fn pieces(&self, open: OpenNar, nar: NarToSend) -> Result<Pieces> {
        let frames = open.stream(None).await?;
        Ok(match self.recompress_level {
            None => frames.map(|bytes| Ok(bytes?)).boxed(),
            Some(level) => recompress::recompress(frames, level, nar.size),
        })
    }

    /// Sends a NAR, and sets `in_parts` when an upload in parts begins.
    async fn send_once(
        &self,
        engine: &Engine,
        store: &Store,
        cache: &Cache,
        place: &FilePlace,
        nar: NarToSend,
        in_parts: &mut bool,
    ) -> Result<Sent> {
        let (hash, tag) = nar.nar;
        let Some(open) = engine.open_nar(cache, &NarQuery::Hash(hash)).await? else {
            return Ok(Sent::Unreadable);
        };
        if open.tag() != tag {
            return Ok(Sent::Unreadable);
        }
        // Recompressed, its size is known when it was sent.
        let (size, extra) = match self.recompress_level {
            None => (open.file_size(), 0),
            Some(_) => (recompress::size_max(nar.size), recompress::memory_bytes(nar.size)),
        };
        *in_parts = size > store.single_put_max();
        let mut upload =
            if *in_parts { Some(store.begin_upload(&place.name, &place.kind, size).await?) } else { None };
        let piece_bytes = upload.as_ref().map_or(size, |upload| upload.part_bytes() as u64);
        let _memory = self.reserve(piece_bytes + extra).await;
        let capacity = usize::try_from(piece_bytes).unwrap_or(usize::MAX);
        // One PUT is signed over its body, so its hash is known by then; parts are signed one by
        // one.
        let mut hasher = upload.is_some().then(NarHasher::new);
        let mut buffer = BytesMut::with_capacity(capacity);
        let outcome = async {
            let mut stream = self.pieces(open, nar).await?;
            while let Some(bytes) = stream.next().await {
                // A copy: the engine's pieces hold a share of its memory for reads for as long as
                // they live.
                let mut bytes = bytes?;
                if let Some(hasher) = &mut hasher {
                    hasher.update(&bytes);
                }
                while let Some(upload) = &mut upload
                    && buffer.len() + bytes.len() >= capacity
                {
                    buffer.extend_from_slice(&bytes.split_to(capacity - buffer.len()));
                    let part = std::mem::replace(&mut buffer, BytesMut::with_capacity(capacity)).freeze();
                    self.throttle(part.len() as u64).await;
                    upload.put_part(vec![part]).await?;
                }
                buffer.extend_from_slice(&bytes);
            }
            if let Some(upload) = &mut upload
                && !buffer.is_empty()
            {
                self.throttle(buffer.len() as u64).await;
                upload.put_part(vec![buffer.split().freeze()]).await?;
            }
            Ok::<_, crate::Error>(())
        }
        .await;
        let (stored, (file_hash, sent)): (Stored, (NarHash, u64)) = match (outcome, upload) {
            (Ok(()), Some(upload)) => {
                let hashed = hasher.expect("an upload in parts is hashed on the way").finish();
                (upload.finish().await?, hashed)
            }
            (Ok(()), None) => {
                let content = buffer.freeze();
                let sent = content.len() as u64;
                self.throttle(sent).await;
                let stored = store.put(&place.name, &place.kind, vec![content.clone()]).await?;
                let hash = stored.sha256.map_or_else(|| NarHash::digest(&content), NarHash::from_bytes);
                (stored, (hash, sent))
            }
            (Err(error), upload) => {
                if let Some(upload) = upload {
                    upload.abort().await;
                }
                return Err(error);
            }
        };
        debug_assert!(sent == size || extra > 0, "the engine sends what it announced or fails");
        Ok(Sent::Done(PublishedNar {
            nar: (hash, nar.published_tag),
            uploaded: true,
            file_size: sent,
            file_hash: Some(file_hash),
            etag: stored.etag,
            delete_after: None,
        }))
    }

    /// Sends the listing of a path. A listing that cannot be read is left out: Nix can do without.
    pub(crate) async fn send_listing(
        &self,
        engine: &Engine,
        store: &Store,
        cache: &Cache,
        hash: &StorePathHash,
        place: &FilePlace,
    ) -> Result<()> {
        let listing = match engine.listing(cache, hash).await {
            Ok(Some(listing)) if listing.size <= LISTING_BYTES_MAX => listing,
            Ok(_) => return Ok(()),
            Err(error) => {
                tracing::warn!(path = %hash, %error, "a listing cannot be read");
                return Ok(());
            }
        };
        let _memory = self.reserve(listing.size).await;
        let mut json = Vec::with_capacity(usize::try_from(listing.size).unwrap_or_default());
        let mut pieces = listing;
        while let Some(piece) = pieces.next().await {
            match piece {
                Ok(piece) => json.extend_from_slice(&piece),
                Err(error) => {
                    tracing::warn!(path = %hash, %error, "a listing cannot be read to its end");
                    return Ok(());
                }
            }
        }
        self.throttle(json.len() as u64).await;
        place.put_small(store, json).await.map(drop)
    }

    /// Waits until there is memory. One that needs more than all of it gets all of it.
    pub(crate) async fn reserve(&self, bytes: u64) -> BudgetShare {
        self.memory.take_at_last(bytes).await
    }

    /// Waits until so many bytes may be sent.
    pub(crate) async fn throttle(&self, bytes: u64) {
        let Some(bandwidth) = &self.bandwidth else { return };
        let turn = {
            let mut schedule = bandwidth.lock().unwrap_or_else(PoisonError::into_inner);
            schedule.take_turn(self.begin.elapsed(), bytes)
        };
        sleep_until(self.begin + turn).await;
    }
}

/// The headers of a file of the layout. Proxies in front of a plain bucket see them, so a private
/// file says that it is private.
fn kind(key: &EdgeKey, is_public: bool) -> FileKind {
    let visibility = if is_public { Visibility::Public } else { Visibility::Private };
    let Caching { cache_control, .. } = caching(key.answer_kind(), visibility, 200);
    FileKind { content_type: key.content_type(), cache_control: cache_control.to_owned() }
}

/// The name of a NAR's file.
pub(crate) fn nar_file((hash, tag): (NarHash, EncodingTag)) -> NarFile {
    NarFile { hash, tag: *tag.as_bytes() }
}

/// A small file.
pub(crate) async fn put_small(
    store: &Store,
    key: &EdgeKey,
    is_public: bool,
    content: Vec<u8>,
) -> Result<Stored> {
    FilePlace::in_target(key, is_public).put_small(store, content).await
}
