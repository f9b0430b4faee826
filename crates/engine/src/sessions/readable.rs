//! Which chunks the objects of a cache use, as bitmaps in memory.
//!
//! No table says which caches use a chunk: a row for each pair would be the largest table of all.
//! The recipes of the cache's objects say it. Each replica reads them in pages when somebody asks
//! for the first time, and keeps the chunk numbers in a bitmap: the numbers of one upload are
//! consecutive, so a bitmap takes a few bytes for each upload (docs/adr/0025).
//!
//! Algorithm: objects are read by age, from a place that moves on. A question reads what is new
//! since the last one, so a chunk is found a second after the commit that named it. A bitmap
//! forgets what was removed when it is made anew: every [`REBUILD`], or a minute after a removal
//! was noticed.
//!
//! Invariants
//! - A bitmap never holds a chunk that no object of its cache used since the bitmap was begun. So
//!   lag tells nothing: a chunk that is not there yet is sent once more.
//! - One question reads for at most [`READ_MAX`](super::READ_MAX), then answers with what it knows. The next one
//!   goes on from there.
//! - All bitmaps together take at most [`BITMAP_BYTES_MAX`]; a single one may take more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use dormer_index::{CacheId, CacheVisibility, Index, ObjectPlace};
use roaring::RoaringTreemap;
use tokio::time::Instant;

use crate::Result;

/// Memory for all bitmaps, in bytes: some 100,000 packs of chunks.
const BITMAP_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Recipes in one page: about 100 KiB.
const PAGE_RECIPES: u32 = 1_024;

/// A bitmap that was brought up to date within this time is taken as it is.
const FRESH: Duration = Duration::from_secs(1);

/// How far a question looks back: a commit takes its time first and shows up later.
const LOOK_BACK_SECONDS: i64 = 60;

/// A bitmap is made anew after this time, and after [`REBUILD_AFTER_REMOVAL`] if something was
/// removed.
const REBUILD: Duration = Duration::from_mins(10);
const REBUILD_AFTER_REMOVAL: Duration = Duration::from_mins(1);

/// How long the list of caches is remembered.
const CACHES_REMEMBERED: Duration = Duration::from_secs(2);

/// The bitmaps of all caches that were asked for.
#[derive(Debug, Default)]
pub(crate) struct ReadableChunks {
    caches: Mutex<HashMap<CacheId, Kept>>,
    list: tokio::sync::Mutex<Option<CacheList>>,
}

#[derive(Debug)]
struct Kept {
    chunks: Arc<CacheChunks>,
    used_at: Instant,
}

#[derive(Debug)]
struct CacheList {
    read_at: Instant,
    caches: Arc<Vec<(CacheId, CacheVisibility)>>,
}

/// The chunks that the objects of a cache use.
#[derive(Debug)]
pub(super) struct CacheChunks {
    cache: CacheId,
    bits: RwLock<RoaringTreemap>,
    /// One task at a time reads recipes.
    progress: tokio::sync::Mutex<Progress>,
    removed: std::sync::atomic::AtomicBool,
}

#[derive(Debug)]
struct Progress {
    /// Objects up to here are in the bitmap.
    place: Option<ObjectPlace>,
    read_at: Option<Instant>,
    begun_at: Instant,
    /// A bitmap that is being made anew, and how far it is.
    next: Option<(RoaringTreemap, Option<ObjectPlace>)>,
}

impl CacheChunks {
    fn new(cache: CacheId) -> Self {
        let progress = Progress { place: None, read_at: None, begun_at: Instant::now(), next: None };
        Self {
            cache,
            bits: RwLock::default(),
            progress: tokio::sync::Mutex::new(progress),
            removed: std::sync::atomic::AtomicBool::new(false),
        }
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.bits.read().unwrap_or_else(PoisonError::into_inner).contains(number)
    }

    fn bytes(&self) -> u64 {
        self.bits.read().unwrap_or_else(PoisonError::into_inner).serialized_size() as u64
    }

    /// Reads what is new, as far as there is time, and makes the bitmap anew if that is due.
    pub(super) async fn refresh(&self, index: &dyn Index, until: Instant) -> Result<()> {
        let mut progress = self.progress.lock().await;
        if progress.read_at.is_some_and(|read_at| read_at.elapsed() < FRESH) {
            return Ok(());
        }
        let look_back = |place: ObjectPlace| ObjectPlace { value: place.value - LOOK_BACK_SECONDS, id: 0 };
        let mut place = progress.place.map(look_back);
        loop {
            let mut page = RoaringTreemap::new();
            let (next, is_last) = self.read_page(index, place, &mut page).await?;
            *self.bits.write().unwrap_or_else(PoisonError::into_inner) |= page;
            place = next.or(place);
            // Never backwards, although each question begins a little earlier.
            if place.map(|place| (place.value, place.id))
                > progress.place.map(|place| (place.value, place.id))
            {
                progress.place = place;
            }
            if is_last {
                break;
            }
            if Instant::now() >= until {
                return Ok(());
            }
        }
        progress.read_at = Some(Instant::now());
        let rebuild = if self.removed.load(std::sync::atomic::Ordering::Relaxed) {
            REBUILD_AFTER_REMOVAL
        } else {
            REBUILD
        };
        if progress.next.is_none() && progress.begun_at.elapsed() < rebuild {
            return Ok(());
        }
        if progress.next.is_none() {
            self.removed.store(false, std::sync::atomic::Ordering::Relaxed);
        }
        let (mut bits, mut place) = progress.next.take().unwrap_or_default();
        loop {
            let (next, is_last) = self.read_page(index, place, &mut bits).await?;
            place = next.or(place);
            if is_last {
                bits.optimize();
                *self.bits.write().unwrap_or_else(PoisonError::into_inner) = bits;
                progress.begun_at = Instant::now();
                progress.place = place;
                return Ok(());
            }
            if Instant::now() >= until {
                progress.next = Some((bits, place));
                return Ok(());
            }
        }
    }

    /// Adds a page of recipes; returns its last place and whether no more follow.
    async fn read_page(
        &self,
        index: &dyn Index,
        after: Option<ObjectPlace>,
        bits: &mut RoaringTreemap,
    ) -> Result<(Option<ObjectPlace>, bool)> {
        let page = index.recipes_after(self.cache, after, PAGE_RECIPES).await?;
        for run in page.iter().flat_map(|recipe| &recipe.runs) {
            bits.insert_range(run.first..run.first.saturating_add(run.count.into()));
        }
        Ok((page.last().map(|recipe| recipe.place), page.len() < PAGE_RECIPES as usize))
    }
}

impl ReadableChunks {
    pub(super) fn of(&self, cache: CacheId) -> Arc<CacheChunks> {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = caches
            .entry(cache)
            .or_insert_with(|| Kept { chunks: Arc::new(CacheChunks::new(cache)), used_at: Instant::now() });
        kept.used_at = Instant::now();
        Arc::clone(&kept.chunks)
    }

    /// Forgets the longest unused bitmaps beyond the memory for them.
    pub(super) fn shrink(&self) {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes: u64 = caches.values().map(|kept| kept.chunks.bytes()).sum();
        while bytes > BITMAP_BYTES_MAX && caches.len() > 1 {
            let oldest = caches.iter().min_by_key(|(_, kept)| kept.used_at).map(|(cache, _)| *cache);
            let Some(gone) = oldest.and_then(|cache| caches.remove(&cache)) else { return };
            bytes -= gone.chunks.bytes();
        }
    }

    /// Notes that an object of a cache may be gone, or with `None` that any may be.
    pub(crate) fn note_removal(&self, cache: Option<CacheId>) {
        let caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, kept) in caches.iter().filter(|(id, _)| cache.is_none_or(|cache| cache == **id)) {
            kept.chunks.removed.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    pub(super) async fn list(&self, index: &dyn Index) -> Result<Arc<Vec<(CacheId, CacheVisibility)>>> {
        let mut list = self.list.lock().await;
        match &*list {
            Some(list) if list.read_at.elapsed() < CACHES_REMEMBERED => Ok(Arc::clone(&list.caches)),
            _ => {
                let caches = index.list_caches().await?.into_iter();
                let caches = caches.map(|cache| {
                    (cache.id, CacheVisibility { name: cache.name, is_public: cache.is_public })
                });
                let caches = Arc::new(caches.collect());
                *list = Some(CacheList { read_at: Instant::now(), caches: Arc::clone(&caches) });
                Ok(caches)
            }
        }
    }
}
