//! Which chunks, NARs and objects may be stored: most look-ups of a first push ask for keys that
//! nothing has, and need no statement.
//!
//! Invariants
//! - "No" is certain, "maybe" costs a statement. Until all stored keys are read the answer is
//!   always "maybe".
//! - A key is added before the transaction that stores it commits. So "no" holds only in a process
//!   that alone adds keys; any other process uses [`KnownKeys::unknown`].
//! - The keys can be read again at any time, for instance after a collection removed many: keys
//!   that are added meanwhile go into the old filters and into the new ones.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use dormer_format::ChunkId;
use dormer_nix::{NarHash, StorePathHash};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::contract::CacheId;
use crate::key_filter::{KeyFilter, id_key, object_key};

/// What may be stored, and the task that reads it.
#[derive(Debug)]
pub(crate) struct KnownKeys {
    /// `None`: another process may add keys.
    filters: Option<Arc<LoadedFilters>>,
    loader: Mutex<Option<JoinHandle<()>>>,
}

/// Filters that are ready, and filters that are being loaded.
#[derive(Debug)]
pub(crate) struct LoadedFilters {
    ready: RwLock<Option<Arc<Filters>>>,
    loading: RwLock<Option<Arc<Filters>>>,
    /// How often all keys were read.
    loads: watch::Sender<u64>,
    /// Held while keys are read.
    turn: tokio::sync::Mutex<()>,
}

/// A filter for each kind of key.
#[derive(Debug)]
pub(crate) struct Filters {
    pub(crate) chunks: KeyFilter,
    pub(crate) nars: KeyFilter,
    pub(crate) objects: KeyFilter,
}

impl KnownKeys {
    /// For a database that other processes add keys to: every answer is "maybe".
    pub(crate) fn unknown() -> Self {
        Self { filters: None, loader: Mutex::new(None) }
    }

    /// For a process that alone adds keys: every answer is "maybe" until the keys are loaded.
    pub(crate) fn to_be_loaded() -> Self {
        let filters = LoadedFilters {
            ready: RwLock::new(None),
            loading: RwLock::new(None),
            loads: watch::Sender::new(0),
            turn: tokio::sync::Mutex::new(()),
        };
        Self { filters: Some(Arc::new(filters)), loader: Mutex::new(None) }
    }

    pub(crate) fn filters(&self) -> Option<Arc<LoadedFilters>> {
        self.filters.clone()
    }

    /// Keeps the task that loads the keys, to stop it with the index.
    pub(crate) fn keep_loader(&self, loader: JoinHandle<()>) {
        *self.loader.lock().unwrap_or_else(PoisonError::into_inner) = Some(loader);
    }

    /// Ends the task that loads the keys, if it still runs, and waits for its end.
    pub(crate) async fn stop_loading(&self) {
        let loader = self.loader.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(loader) = loader {
            loader.abort();
            // An abort is the expected outcome.
            let _ = loader.await;
        }
    }

    pub(crate) fn may_have_chunk(&self, id: &ChunkId) -> bool {
        self.may_have(|filters| filters.chunks.may_contain(id_key(id.as_bytes())))
    }

    pub(crate) fn may_have_nar(&self, hash: &NarHash) -> bool {
        self.may_have(|filters| filters.nars.may_contain(id_key(hash.as_bytes())))
    }

    pub(crate) fn may_have_object(&self, cache: CacheId, hash: &StorePathHash) -> bool {
        self.may_have(|filters| filters.objects.may_contain(object_key(cache.0, hash.as_bytes())))
    }

    fn may_have(&self, look: impl Fn(&Filters) -> bool) -> bool {
        let Some(filters) = &self.filters else { return true };
        filters.ready.read().unwrap_or_else(PoisonError::into_inner).as_deref().is_none_or(look)
    }

    pub(crate) fn add_chunks<'k>(&self, ids: impl Iterator<Item = &'k ChunkId>) {
        self.add(|filters: &[Arc<Filters>]| {
            for id in ids {
                for filters in filters {
                    filters.chunks.insert(id_key(id.as_bytes()));
                }
            }
        });
    }

    pub(crate) fn add_nar(&self, hash: &NarHash) {
        self.add(|filters| filters.iter().for_each(|filters| filters.nars.insert(id_key(hash.as_bytes()))));
    }

    pub(crate) fn add_object(&self, cache: CacheId, hash: &StorePathHash) {
        let key = object_key(cache.0, hash.as_bytes());
        self.add(|filters| filters.iter().for_each(|filters| filters.objects.insert(key)));
    }

    fn add(&self, add: impl FnOnce(&[Arc<Filters>])) {
        let Some(filters) = &self.filters else { return };
        // In this order: filters that become ready in between are met twice, never missed.
        let loading = filters.loading.read().unwrap_or_else(PoisonError::into_inner).clone();
        let ready = filters.ready.read().unwrap_or_else(PoisonError::into_inner).clone();
        let both: Vec<Arc<Filters>> = loading.into_iter().chain(ready).collect();
        add(&both);
    }
}

impl Drop for KnownKeys {
    fn drop(&mut self) {
        let loader = self.loader.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(loader) = loader {
            loader.abort();
        }
    }
}

impl LoadedFilters {
    /// Loads all keys into new filters, which then replace the old ones. `read` gets the filters to
    /// fill. Before it reads the first key it must wait for every transaction that began earlier:
    /// those add to the old filters only.
    pub(crate) async fn load<E>(&self, read: impl AsyncFnOnce(&Filters) -> Result<(), E>) -> Result<(), E> {
        let _turn = self.turn.lock().await;
        let filters = Filters {
            chunks: KeyFilter::with_room_for(0),
            nars: KeyFilter::with_room_for(0),
            objects: KeyFilter::with_room_for(0),
        };
        let filters = Arc::new(filters);
        *self.loading.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&filters));
        let outcome = read(&filters).await;
        if outcome.is_ok() {
            *self.ready.write().unwrap_or_else(PoisonError::into_inner) = Some(filters);
            self.loads.send_modify(|loads| *loads += 1);
        }
        *self.loading.write().unwrap_or_else(PoisonError::into_inner) = None;
        outcome
    }

    /// Waits until all keys were loaded once.
    pub(crate) async fn loaded(&self) {
        // The sender lives as long as this does.
        let _ = self.loads.subscribe().wait_for(|loads| *loads > 0).await;
    }
}
