//! A recovery: what the journal says of settings and caches, and the order in which an index is
//! filled.

use std::collections::HashMap;

use dormer_blobs::Store;
use dormer_format::{JournalCache, JournalFile, JournalName, JournalRecord};
use dormer_index::Pin;

use super::cache_states::{CacheStates, PinStates, restored_cache};
use super::report::{Recovered, RecoveryEvent, RecoveryIndex, Tell};
use super::seen::Seen;
use crate::journal::files::list;
use crate::{Clock, Result};

/// A store to recover from.
#[derive(Debug)]
pub struct Recovery {
    pub(super) store: Store,
    /// The only lineage that counts, if the operator chose one.
    pub(super) wanted: Option<u64>,
    /// That of the files.
    pub(super) lineage: Option<u64>,
    /// The newest first.
    names: Vec<JournalName>,
    settings: Vec<(String, Vec<u8>)>,
    /// By label, without their pins; `None` for one that is gone.
    pub(super) caches: HashMap<u64, Option<JournalCache>>,
    /// The pins of each cache, by label.
    pins: HashMap<u64, PinStates>,
    pub(super) is_snapshot_whole: bool,
    pub(super) report: Recovered,
}

impl Recovery {
    /// Reads from the journal what is to be recovered: its files, settings and caches. Changes
    /// nothing. The lineage with the newest whole snapshot counts.
    pub async fn open(store: Store) -> Result<Self> {
        Self::open_lineage(store, None).await
    }

    /// The same for a lineage that the operator chose.
    pub async fn open_lineage(store: Store, wanted: Option<u64>) -> Result<Self> {
        let names = list(&store).await?;
        let mut this = Self {
            store,
            wanted,
            lineage: None,
            names: Vec::new(),
            settings: Vec::new(),
            caches: HashMap::new(),
            pins: HashMap::new(),
            is_snapshot_whole: false,
            report: Recovered::default(),
        };
        this.names = this.choose(names).await?;
        let mut settings: Option<Vec<(String, Vec<u8>)>> = None;
        for name in this.names.clone() {
            let Some(file) = this.read(&name, true).await? else { continue };
            let mut own_settings = Vec::new();
            let mut own_caches: HashMap<u64, CacheStates> = HashMap::new();
            for record in file.records {
                match record {
                    JournalRecord::Setting { name, value } => own_settings.push((name, value)),
                    JournalRecord::Cache(cache) => {
                        own_caches.insert(cache.cache, CacheStates::of_cache(cache));
                    }
                    JournalRecord::CacheGone { cache } => {
                        own_caches.insert(cache, CacheStates::of_gone());
                    }
                    JournalRecord::Pins { cache, pins } => {
                        own_caches.entry(cache).or_default().add_pins(pins);
                    }
                    JournalRecord::Pin { cache, pin } => {
                        own_caches.entry(cache).or_default().add_pins(vec![pin]);
                    }
                    JournalRecord::PinGone { cache, name, hash } => {
                        own_caches.entry(cache).or_default().pins.insert((name, hash), None);
                    }
                    _ => {}
                }
            }
            for (label, own) in own_caches {
                this.add_older(label, own);
            }
            // A file that has settings has all that there were.
            if !own_settings.is_empty() {
                settings.get_or_insert(own_settings);
            }
        }
        this.settings = settings.unwrap_or_default();
        this.settings.sort_unstable();
        this.keep_newest_of_each_name();
        Ok(this)
    }

    /// Adds what a file says of a cache to what later files say.
    fn add_older(&mut self, label: u64, own: CacheStates) {
        // The record of a cache has all its pins, so nothing older counts.
        if self.caches.contains_key(&label) {
            return;
        }
        let pins = self.pins.entry(label).or_default();
        for (key, state) in own.pins {
            pins.entry(key).or_insert(state);
        }
        if own.has_cache {
            self.caches.insert(label, own.cache);
        }
    }

    /// A deleted cache whose name another one has now: should the record of its deletion be lost,
    /// it is still not to come back, least of all under the rights of the other one.
    fn keep_newest_of_each_name(&mut self) {
        let mut newest: HashMap<String, u64> = HashMap::new();
        for (label, cache) in &self.caches {
            if let Some(cache) = cache {
                let kept = newest.entry(cache.name.clone()).or_insert(*label);
                *kept = (*kept).max(*label);
            }
        }
        for (label, cache) in &mut self.caches {
            if cache.as_ref().is_some_and(|cache| newest[&cache.name] != *label) {
                *cache = None;
            }
        }
    }

    /// Whether there is a journal at all.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether the journal has a snapshot that was finished. Without one, paths from before it may
    /// be missing.
    pub fn is_snapshot_whole(&self) -> bool {
        self.is_snapshot_whole
    }

    /// The lineage that is recovered.
    pub fn lineage(&self) -> Option<u64> {
        self.lineage
    }

    /// The generations that are recovered, the first and the last.
    pub fn generations(&self) -> Option<(u64, u64)> {
        let generations = self.names.iter().map(|name| name.generation);
        Some((generations.clone().min()?, generations.max()?))
    }

    /// A named value of the lost installation.
    pub fn setting(&self, name: &str) -> Option<&[u8]> {
        self.settings.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_slice())
    }

    /// What is known before anything is recovered.
    pub fn report(&self) -> &Recovered {
        &self.report
    }

    /// Reads a file as far as it goes. With `counts`, a file that is cut is counted and told.
    pub(super) async fn read(&mut self, name: &JournalName, counts: bool) -> Result<Option<JournalFile>> {
        let text = name.to_string();
        let Some(bytes) = self.store.get(&text).await? else { return Ok(None) };
        let read = JournalFile::read(&bytes);
        let is_whole = read.as_ref().is_ok_and(|file| file.is_whole);
        if counts {
            self.report.journal_files += 1;
            self.report.cut_journal_files += u64::from(!is_whole);
            if !is_whole {
                tracing::warn!(
                    journal.file = text,
                    "a file of the journal is cut short; the rest of it is lost"
                );
            }
        }
        Ok(read.ok())
    }

    /// Fills the index, which has to be empty or half recovered, and returns what was done.
    /// `tell` is told what was done so far, now and then, and each path that is lost.
    pub async fn run(mut self, into: &RecoveryIndex, clock: &dyn Clock, tell: Tell<'_>) -> Result<Recovered> {
        let now = clock.now();
        let RecoveryIndex { index, journal, collect } = into;
        self.recover_packs(into, now, tell).await?;
        for (name, value) in &self.settings {
            journal.restore_setting(name, value).await?;
        }
        let mut ids = HashMap::new();
        let mut labels: Vec<&u64> = self.caches.keys().collect();
        labels.sort_unstable();
        for label in labels {
            let Some(cache) = &self.caches[label] else { continue };
            let id = journal.restore_cache(&restored_cache(cache)).await?;
            ids.insert(*label, id);
            self.report.caches += 1;
            // Of a name, the pin that was added last is the newest.
            let mut pins: Vec<_> = self.pins[label].values().flatten().collect();
            pins.sort_by_key(|pin| pin.created_at);
            for pin in pins {
                let (name, path) = (pin.name.clone(), pin.path.clone());
                let pin = Pin { name, path, created_at: pin.created_at, ends_at: pin.ends_at };
                index.add_pin(id, &pin, None).await?;
                self.report.pins += 1;
            }
        }
        let mut seen = Seen::default();
        for name in self.names.clone() {
            let Some(file) = self.read(&name, false).await? else { continue };
            self.recover_file(index, file, &ids, &mut seen, now, tell).await?;
            tell(RecoveryEvent::Progress(&self.report));
        }
        // A pack without a row that a collection finds from now on came later: an upload that
        // crashed left it, and it goes like any other.
        collect.note_first_listing().await?;
        Ok(self.report)
    }
}
