//! Journals of another past that stay in the store for a while.
//!
//! A database that went back in time writes a journal of its own, and knows less than the journal
//! before it. The same is true of a recovery that found bytes missing. A *mark* in the store keeps
//! the older journal: its generations, from the newest whole snapshot on. `dormer recover` can read
//! them for [`KEEP_SECONDS`]. The mark is an object without content, so it survives the database.
//!
//! Invariants
//! - A mark is stored before the new lineage's first file, and so before anything is deleted.
//! - No more than [`KEPT_MAX`] marks stay: the newest ones.
//! - While a mark counts, collections leave what only the kept journal may need (`collect`).

use std::collections::BTreeMap;

use dormer_blobs::Store;
use dormer_format::{JournalFile, JournalKind, JournalName, KEPT_FOLDER, KeptJournal};
use dormer_index::{JournalIndex, JournalState, UnixSeconds};

use super::files::{list, list_entries, read_header};
use crate::Result;

/// How long a journal of another past stays, from the change of lineage on.
pub const KEEP_SECONDS: i64 = 30 * 86_400;

/// Journals of another past that stay at most. An operator that looks for the right backup restores
/// several in a row; a machine that restores at every start must not fill the store.
const KEPT_MAX: usize = 16;

/// Marks in one page of a listing; there are hardly ever more than [`KEPT_MAX`].
const MARKS_PAGE: usize = 100;

/// A journal in the store that a recovery can begin with: one lineage with a whole snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredJournal {
    /// Random number of the database's past.
    pub lineage: u64,
    /// The generation of its newest whole snapshot.
    pub first: u64,
    /// Its last generation.
    pub through: u64,
    /// When its newest file was written, by the store's clock.
    pub written_at: UnixSeconds,
    /// Since when a mark keeps it.
    pub kept_since: Option<UnixSeconds>,
}

/// The marks that the store has, those of the newest generations first.
pub async fn kept_journals(store: &Store) -> Result<Vec<KeptJournal>> {
    let page = store.list_page(KEPT_FOLDER, None, MARKS_PAGE).await?;
    let mut kept: Vec<KeptJournal> =
        page.iter().filter_map(|entry| KeptJournal::parse(&entry.name)).collect();
    kept.sort_unstable_by(|a, b| b.cmp(a));
    Ok(kept)
}

/// When the last of the marks that count was made; `UnixSeconds::MAX` if one is due, because a
/// database that went back in time collects before its journal has had a turn.
pub(crate) async fn kept_before(
    memory: &dyn JournalIndex,
    store: &Store,
    now: UnixSeconds,
) -> Result<Option<UnixSeconds>> {
    if ComparedPasts::read(memory, store).await?.is_database_older {
        return Ok(Some(UnixSeconds::MAX));
    }
    let kept = kept_journals(store).await?;
    Ok(kept.iter().filter(|kept| is_live(kept, now)).map(|kept| kept.since).max())
}

/// Whether a mark still counts.
pub(super) fn is_live(kept: &KeptJournal, now: UnixSeconds) -> bool {
    now < ends_at(kept)
}

pub(super) fn ends_at(kept: &KeptJournal) -> UnixSeconds {
    kept.since.saturating_add(KEEP_SECONDS)
}

/// Marks these generations. Their time begins anew if they are marked already.
pub async fn keep_journal(store: &Store, first: u64, through: u64, now: UnixSeconds) -> Result<()> {
    let mark = KeptJournal { first, through, since: now };
    store.put(&mark.to_string(), None, []).await?;
    let is_other = |kept: &&KeptJournal| (kept.first, kept.through) != (first, through);
    let kept = kept_journals(store).await?;
    let others: Vec<&KeptJournal> = kept.iter().filter(is_other).collect();
    let older = kept.iter().filter(|kept| !is_other(kept) && kept.since != now);
    // The newest ones, this one among them.
    let surplus = others.into_iter().skip(KEPT_MAX - 1);
    for mark in surplus.clone().filter(|mark| is_live(mark, now)) {
        tracing::warn!(
            kept.since = mark.since,
            most = KEPT_MAX,
            "the oldest journal of another past goes before its time: the store keeps no more of them"
        );
    }
    for mark in older.chain(surplus) {
        store.delete(&mark.to_string()).await?;
    }
    Ok(())
}

/// Lets the time of all marks that count begin anew: a database that is recovered now gets new rows
/// for all packs.
pub async fn renew_kept_journals(store: &Store, now: UnixSeconds) -> Result<()> {
    for kept in kept_journals(store).await?.iter().filter(|kept| is_live(kept, now)) {
        keep_journal(store, kept.first, kept.through, now).await?;
    }
    Ok(())
}

/// Removes marks. The files go when a later snapshot is whole.
pub async fn release_kept_journals(store: &Store, is_released: impl Fn(&KeptJournal) -> bool) -> Result<u64> {
    let mut released = 0;
    for kept in kept_journals(store).await?.iter().filter(|kept| is_released(kept)) {
        store.delete(&kept.to_string()).await?;
        released += 1;
    }
    Ok(released)
}

/// The journals in the store, the newest first.
pub async fn stored_journals(store: &Store) -> Result<Vec<StoredJournal>> {
    let mut generations: BTreeMap<u64, Vec<(JournalName, UnixSeconds)>> = BTreeMap::new();
    for (name, modified_at) in list_entries(store).await? {
        generations.entry(name.generation).or_default().push((name, modified_at));
    }
    let kept = kept_journals(store).await?;
    let mut journals: Vec<StoredJournal> = Vec::new();
    for (generation, files) in generations.into_iter().rev() {
        let Some((lineage, is_snapshot)) = lineage_of(store, &files).await? else { continue };
        let written_at = files.iter().map(|(_, at)| *at).max().unwrap_or(0);
        let known = journals.iter_mut().find(|journal| journal.lineage == lineage);
        let journal = if let Some(known) = known {
            known
        } else {
            let (first, through) = (0, generation);
            journals.push(StoredJournal { lineage, first, through, written_at, kept_since: None });
            journals.last_mut().expect("it was pushed")
        };
        journal.written_at = journal.written_at.max(written_at);
        if is_snapshot && journal.first == 0 {
            journal.first = generation;
            journal.kept_since = kept.iter().find(|kept| kept.has(generation)).map(|kept| kept.since);
        }
    }
    journals.retain(|journal| journal.first > 0);
    Ok(journals)
}

/// The lineage of a generation, and whether its snapshot is whole. `None` if no file can be read.
async fn lineage_of(store: &Store, files: &[(JournalName, UnixSeconds)]) -> Result<Option<(u64, bool)>> {
    for (name, _) in files.iter().filter(|(name, _)| name.kind == JournalKind::End) {
        let bytes = store.get(&name.to_string()).await?.unwrap_or_default();
        if let Ok(end) = JournalFile::read(&bytes)
            && end.is_whole
        {
            return Ok(Some((end.header.lineage, true)));
        }
    }
    for (name, _) in files {
        if let Some(header) = read_header(store, name).await? {
            return Ok(Some((header.lineage, false)));
        }
    }
    Ok(None)
}

/// What a database and the journal in its store say of each other's past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ComparedPasts {
    /// The store has a journal that this database has not written, or has forgotten.
    pub is_database_older: bool,
    /// The store lacks the last file that the database has noted.
    pub is_store_older: bool,
}

impl ComparedPasts {
    /// Compares them, also beside a server that writes the journal.
    pub async fn read(journal: &dyn JournalIndex, store: &Store) -> Result<Self> {
        let before = journal.journal_state().await?;
        let names = list(store).await?;
        let after = journal.journal_state().await?;
        // A file of this database that the listing has was stored under a lease that it knows now.
        let is_database_older = Self::new(&names, &after, after.fence + 1).is_database_older;
        // A snapshot that became whole meanwhile may have taken the last file away.
        let is_store_older = before.generation == after.generation
            && Self::new(&names, &before, before.fence + 1).is_store_older;
        Ok(Self { is_database_older, is_store_older: is_store_older && !is_database_older })
    }

    /// Under a lease with this fence. If the database went back to an earlier state of itself, the
    /// store has a file of this fence or a later one, of a later generation, or two segments that
    /// the database did not note; a process that lost its lease has an earlier fence, and stored
    /// one segment at most before it noted it. If the store went back, it lacks the last file that
    /// the database noted.
    pub(super) fn new(names: &[JournalName], state: &JournalState, fence: i64) -> Self {
        if state.lineage == 0 {
            return Self { is_database_older: !names.is_empty(), is_store_older: false };
        }
        let (fence, generation) = (fence.cast_unsigned(), state.generation.cast_unsigned());
        let sequence = state.sequence.cast_unsigned();
        let is_later = |name: &JournalName| {
            name.generation > generation
                || name.generation == generation
                    && (name.position.0 >= fence || name.position.1 > sequence + 1)
        };
        let is_database_older = names.iter().any(is_later);
        let is_store_older = !is_database_older && !names.iter().any(|name| name.position.1 == sequence);
        Self { is_database_older, is_store_older }
    }
}
