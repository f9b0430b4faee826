//! What a recovery fills, and what it tells.

use std::collections::BTreeSet;
use std::sync::Arc;

use dormer_index::{CollectIndex, Index, JournalIndex};
use serde::Serialize;

/// An empty index, by each of its contracts.
#[derive(Debug, Clone)]
pub struct RecoveryIndex {
    /// The index.
    pub index: Arc<dyn Index>,
    /// The same.
    pub journal: Arc<dyn JournalIndex>,
    /// The same.
    pub collect: Arc<dyn CollectIndex>,
}

/// What a recovery did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Recovered {
    /// Packs in the store.
    pub packs_found: u64,
    /// Packs that have a row now.
    pub packs: u64,
    /// Chunks in those of them that this run read.
    pub chunks: u64,
    /// Packs whose tables could not be read.
    pub unreadable_packs: u64,
    /// Files of the journal that count.
    pub journal_files: u64,
    /// Files that are missing their end, or could not be read at all, and segments and parts that
    /// are not there.
    pub cut_journal_files: u64,
    /// Files that do not count although they are newer: another lineage wrote them, and no snapshot
    /// of it is whole.
    pub ignored_journal_files: u64,
    /// These lineages.
    pub ignored_lineages: BTreeSet<String>,
    /// Caches.
    pub caches: u64,
    /// Paths.
    pub paths: u64,
    /// Upload aliases.
    pub aliases: u64,
    /// Pins.
    pub pins: u64,
    /// Documents: build logs and build traces.
    pub documents: u64,
    /// Paths and aliases whose bytes are not in the store.
    pub lost: u64,
    /// The first of them, with their caches.
    pub lost_paths: Vec<String>,
}

impl Recovered {
    /// Whether something is missing that the journal or the packs once had.
    pub fn has_losses(&self) -> bool {
        self.lost + self.unreadable_packs + self.cut_journal_files > 0
    }
}

/// What a recovery tells while it runs.
#[derive(Debug, Clone, Copy)]
pub enum RecoveryEvent<'a> {
    /// What was done so far.
    Progress(&'a Recovered),
    /// A path or an alias whose bytes are not in the store, with its cache.
    Lost(&'a str),
}

/// Is told what happens.
pub(super) type Tell<'a> = &'a (dyn Fn(RecoveryEvent<'_>) + Send + Sync);
