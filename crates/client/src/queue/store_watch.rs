//! Queues what appears in the local store.
//!
//! One watch on the folder of the store, whatever its size. A name in the folder is a candidate
//! only: Nix may still be building it, and registers it when it is complete. So each candidate is
//! checked with `nix-store --check-validity`, all due candidates in one call: soon after it
//! appeared, when Nix removes its lock, and then at longer and longer pauses, for as long as the
//! file exists.
//!
//! Derivations (`.drv`) are left out: an evaluation writes thousands, and nobody substitutes them.
//!
//! Events may be lost: the kernel's queue is bounded, and the watcher may be down. Nix gives all
//! files one time of modification, but the kernel's time of change stays, so a look through the
//! folder finds what is new since a moment. A file `watched-…` in the queue's folder, one for each
//! set of caches, has the moment up to which everything is queued for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use dormer_nix::{NarHash, StorePath};
use notify::{EventKind, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::entry::{QueueEntry, QueuedCache, seconds};
use super::spool::Spool;
use crate::error::{Error, Result};
use crate::nix_store::NixStore;

/// First pause before the check of a candidate. A build registers its outputs together, within
/// this time.
const SETTLE: Duration = Duration::from_millis(300);

/// Longest pause between two checks of a candidate.
const CHECK_MAX: Duration = Duration::from_mins(1);

/// Most paths of one entry: some 100 KB.
const ENTRY_PATHS_MAX: usize = 1_000;

/// How long a failure of `nix` or of the queue's disk delays the next try.
const FAILURE_PAUSE: Duration = Duration::from_secs(10);

/// What appeared while no watcher ran is queued if it is not older.
const CATCH_UP_MAX: Duration = Duration::from_hours(24);

/// What is not valid this long after its file appeared, such as the leftover of a failed build,
/// does not hold the mark back. If Nix registers it all the same, it changes the file.
const LEFTOVER_AGE: Duration = Duration::from_hours(1);

/// The kernel's clock for files may be this much behind, with room to spare.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

/// How often the mark is renewed at least.
const MARK_EVERY: Duration = Duration::from_secs(10);

/// Waiting events. More are counted as lost, and the folder is looked through.
const EVENTS_MAX: usize = 65_536;

/// Receives what a watcher does.
pub trait WatchReporter: Send + Sync {
    /// These absolute paths were queued.
    fn queued(&self, _paths: &[String]) {}
    /// Something failed, and is tried again.
    fn failed(&self, _error: &Error) {}
}

/// Watches the store of this machine.
pub struct StoreWatch {
    store: NixStore,
    spool: Spool,
    caches: Vec<QueuedCache>,
    events: mpsc::Receiver<StoreEvent>,
    /// Set when an event found no room.
    overflowed: Arc<AtomicBool>,
    _source: EventSource,
    candidates: BTreeMap<StorePath, Candidate>,
    /// Everything that appeared before is queued, or was when this watcher began.
    queued_until: SystemTime,
    /// Whether the mark may be renewed: what appeared before this watcher began is a candidate.
    has_caught_up: bool,
}

/// What sends the events. The channel is open for as long as this lives.
enum EventSource {
    /// The system.
    Watcher { _watcher: notify::RecommendedWatcher },
    /// Nothing: what is new is found at the end ([`StoreWatch::unwatched`]).
    Nothing { _sender: mpsc::Sender<StoreEvent> },
}

#[derive(Debug, PartialEq, Eq)]
enum StoreEvent {
    /// A name appeared in the folder, or the lock of the name went.
    Changed(StorePath),
    /// Events were lost.
    Lost,
}

#[derive(Debug)]
struct Candidate {
    seen_at: SystemTime,
    check_at: Instant,
    pause: Duration,
}

impl StoreWatch {
    /// Begins to watch. What appears from now on is queued by [`StoreWatch::run`].
    pub fn start(store: NixStore, spool: Spool, caches: Vec<QueuedCache>) -> Result<Self> {
        let overflowed = Arc::new(AtomicBool::new(false));
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let folder = store.real_dir().to_owned();
        let failed = |source| Error::Watch { folder: folder.clone(), source };
        let lost = Arc::clone(&overflowed);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            for event in store_events(event) {
                if sender.try_send(event).is_err() {
                    lost.store(true, Ordering::Release);
                }
            }
        })
        .map_err(failed)?;
        watcher.watch(&folder, RecursiveMode::NonRecursive).map_err(failed)?;
        let source = EventSource::Watcher { _watcher: watcher };
        Ok(Self { overflowed, ..Self::with_source(store, spool, caches, events, source) })
    }

    /// The same without a watch, for a system that has none to give. Only [`StoreWatch::finish`]
    /// finds anything.
    pub fn unwatched(store: NixStore, spool: Spool, caches: Vec<QueuedCache>) -> Self {
        let (sender, events) = mpsc::channel(1);
        Self::with_source(store, spool, caches, events, EventSource::Nothing { _sender: sender })
    }

    fn with_source(
        store: NixStore,
        spool: Spool,
        caches: Vec<QueuedCache>,
        events: mpsc::Receiver<StoreEvent>,
        source: EventSource,
    ) -> Self {
        Self {
            store,
            spool,
            caches,
            events,
            overflowed: Arc::new(AtomicBool::new(false)),
            _source: source,
            candidates: BTreeMap::new(),
            queued_until: SystemTime::now(),
            has_caught_up: false,
        }
    }

    /// Also queues what appeared since the last watcher for these caches ended, at most a day ago,
    /// and lets the next one begin where this one ends.
    pub fn catch_up(&mut self, now: SystemTime) -> Result<()> {
        let marked_at = |path: PathBuf| fs::metadata(path).and_then(|file| file.modified());
        // Of a watcher of before, whose caches had no addresses in the name of its mark.
        let without_addresses = || marked_at(self.spool.folder().join(mark_name_of(&self.cache_names())));
        let marked = marked_at(self.mark_path()).or_else(|_| without_addresses());
        if let Ok(marked) = marked {
            self.queued_until = marked.max(now - CATCH_UP_MAX).min(now);
            self.add_since(self.queued_until)?;
        }
        self.has_caught_up = true;
        Ok(())
    }

    /// Queues what appears, until the future is dropped.
    pub async fn run(&mut self, reporter: &dyn WatchReporter) {
        let mut mark_at = Instant::now();
        loop {
            let next_check = self.candidates.values().map(|candidate| candidate.check_at).min();
            let wake = next_check.map_or(mark_at, |at| at.min(mark_at));
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(StoreEvent::Changed(path)) => self.add(path, SystemTime::now()),
                    Some(StoreEvent::Lost) => self.overflowed.store(true, Ordering::Release),
                    // The watcher lives as long as this does.
                    None => return,
                },
                () = tokio::time::sleep_until(wake) => {}
            }
            if let Err(error) = self.find_lost() {
                reporter.failed(&error);
                self.postpone(FAILURE_PAUSE);
            } else {
                self.queue_due(reporter).await;
            }
            if Instant::now() >= mark_at {
                self.mark();
                mark_at = Instant::now() + MARK_EVERY;
            }
        }
    }

    /// Queues everything that appeared since `since` and is valid now. For a command that ended: no
    /// later event can belong to it.
    pub async fn finish(&mut self, since: SystemTime, reporter: &dyn WatchReporter) -> Result<()> {
        self.add_since(since)?;
        let due = self.candidates.keys().cloned().collect();
        let queued = self.check(due).await?;
        reporter.queued(&queued);
        Ok(())
    }

    /// Looks through the folder after events were lost.
    fn find_lost(&mut self) -> Result<()> {
        if !self.overflowed.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let added = self.add_since(self.queued_until);
        if added.is_err() {
            self.overflowed.store(true, Ordering::Release);
        }
        added
    }

    async fn queue_due(&mut self, reporter: &dyn WatchReporter) {
        let now = Instant::now();
        if !self.candidates.values().any(|candidate| candidate.check_at <= now) {
            return;
        }
        // Those that are nearly due save a call.
        let due = self.candidates.iter().filter(|(_, candidate)| candidate.check_at <= now + SETTLE);
        let due: Vec<StorePath> = due.map(|(path, _)| path.clone()).collect();
        match self.check(due).await {
            Ok(queued) if queued.is_empty() => {}
            Ok(queued) => reporter.queued(&queued),
            Err(error) => {
                reporter.failed(&error);
                self.postpone(FAILURE_PAUSE);
            }
        }
    }

    /// Queues those of `due` that are valid. The others wait longer, unless their files are gone.
    async fn check(&mut self, due: Vec<StorePath>) -> Result<Vec<String>> {
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let invalid = self.store.invalid_paths(&due).await?;
        let valid: Vec<&StorePath> = due.iter().filter(|path| !invalid.contains(path)).collect();
        let mut queued = Vec::with_capacity(valid.len());
        for part in valid.chunks(ENTRY_PATHS_MAX) {
            let paths: Vec<String> =
                part.iter().map(|path| path.to_absolute(self.store.store_dir())).collect();
            let now = SystemTime::now();
            self.spool.enqueue(&QueueEntry::new(&self.caches, paths.clone(), now), now)?;
            for path in part {
                self.candidates.remove(path);
            }
            queued.extend(paths);
        }
        for path in invalid {
            if fs::symlink_metadata(self.store.real_dir().join(path.to_string())).is_err() {
                self.candidates.remove(&path);
            } else if let Some(candidate) = self.candidates.get_mut(&path) {
                candidate.pause = (candidate.pause * 2).min(CHECK_MAX);
                candidate.check_at = Instant::now() + candidate.pause;
            }
        }
        Ok(queued)
    }

    fn add(&mut self, path: StorePath, seen_at: SystemTime) {
        let check_at = Instant::now() + SETTLE;
        let candidate = self.candidates.entry(path).or_insert(Candidate { seen_at, check_at, pause: SETTLE });
        candidate.check_at = candidate.check_at.min(check_at);
    }

    fn add_since(&mut self, since: SystemTime) -> Result<()> {
        let folder = self.store.real_dir().to_owned();
        let found = changed_since(&folder, since - CLOCK_SLACK).map_err(|source| Error::Queue {
            attempt: "look through",
            path: folder,
            source,
        })?;
        for (path, at) in found {
            self.add(path, at);
        }
        Ok(())
    }

    fn postpone(&mut self, pause: Duration) {
        let at = Instant::now() + pause;
        for candidate in self.candidates.values_mut() {
            candidate.check_at = candidate.check_at.max(at);
        }
    }

    fn cache_names(&self) -> BTreeSet<String> {
        self.caches.iter().map(|cache| cache.cache.to_string()).collect()
    }

    fn mark_path(&self) -> PathBuf {
        self.spool.folder().join(mark_name(&self.caches))
    }

    /// Notes up to when everything is queued. Best effort: an older mark only means more to look
    /// at.
    fn mark(&mut self) {
        if self.overflowed.load(Ordering::Acquire) || !self.events.is_empty() {
            return;
        }
        let seen_at = self.candidates.values().map(|candidate| candidate.seen_at);
        self.queued_until = queued_until(seen_at, SystemTime::now());
        if self.has_caught_up {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let _ = options.open(self.mark_path()).and_then(|file| file.set_modified(self.queued_until));
        }
    }
}

/// The name of the mark for a set of caches.
fn mark_name(caches: &[QueuedCache]) -> String {
    mark_name_of(&caches.iter().map(ToString::to_string).collect())
}

fn mark_name_of(names: &BTreeSet<String>) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let digest = NarHash::digest(names.join(" ").as_bytes()).to_hex();
    format!("watched-{}", &digest[..16])
}

/// The moment before which everything is queued, if the candidates that wait were seen at these
/// times.
fn queued_until(seen_at: impl Iterator<Item = SystemTime>, now: SystemTime) -> SystemTime {
    let fresh = seen_at.filter(|at| now.duration_since(*at).unwrap_or_default() < LEFTOVER_AGE);
    fresh.min().unwrap_or(now).min(now) - CLOCK_SLACK
}

/// What an event of the folder means for us.
fn store_events(event: notify::Result<notify::Event>) -> Vec<StoreEvent> {
    let Ok(event) = event else { return vec![StoreEvent::Lost] };
    if event.need_rescan() {
        return vec![StoreEvent::Lost];
    }
    if matches!(event.kind, EventKind::Access(_)) {
        return Vec::new();
    }
    let names = event.paths.iter().filter_map(|path| path.file_name()?.to_str());
    names
        .filter_map(|name| changed_path(name, matches!(event.kind, EventKind::Remove(_))))
        .map(StoreEvent::Changed)
        .collect()
}

/// The path that a name in the store's folder stands for: itself, or the path whose lock went.
fn changed_path(name: &str, is_removed: bool) -> Option<StorePath> {
    let name = if is_removed { name.strip_suffix(".lock")? } else { name };
    let path: StorePath = name.parse().ok()?;
    (!path.is_derivation()).then_some(path)
}

/// The store paths in a folder whose files changed at `since` or later, with the time of the
/// change.
fn changed_since(folder: &Path, since: SystemTime) -> io::Result<Vec<(StorePath, SystemTime)>> {
    let since = seconds(since);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Some(path) = entry.file_name().to_str().and_then(|name| changed_path(name, false)) else {
            continue;
        };
        // The path may go meanwhile.
        let Ok(file) = entry.metadata() else { continue };
        let changed = u64::try_from(file.ctime()).unwrap_or(0);
        if changed >= since {
            found.push((path, SystemTime::UNIX_EPOCH + Duration::from_secs(changed)));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    const A: &str = "f22352qy5d2vfxv22w7q3n7gz1ia47nx-a";

    #[test]
    fn names_in_the_store_stand_for_paths() {
        let changed = |name: &str, is_removed| changed_path(name, is_removed).map(|path| path.to_string());
        assert_eq!(changed(A, false).as_deref(), Some(A));
        assert_eq!(changed(A, true), None, "a removed path is nothing to push");
        assert_eq!(changed(&format!("{A}.lock"), true).as_deref(), Some(A));
        // A lock, or a path of this name: the check tells.
        assert_eq!(changed(&format!("{A}.lock"), false), Some(format!("{A}.lock")));
        for name in [".links", "trash", "tmp-1-2", &format!("{A}.drv"), &format!(".tmp-link-{A}")] {
            assert_eq!(changed(name, false), None, "{name}");
        }
        assert_eq!(changed(&format!("{A}.drv.lock"), true), None);
    }

    #[test]
    fn each_set_of_caches_has_its_own_mark() {
        let name = |texts: &[&str]| {
            let caches: Vec<QueuedCache> = texts.iter().map(|text| text.parse().unwrap()).collect();
            mark_name(&caches)
        };
        assert_eq!(name(&["main", "lab:team"]), name(&["lab:team", "main"]));
        let names = [name(&["main"]), name(&["lab:main"]), name(&["main", "team"]), name(&["maint"])];
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
    }

    #[test]
    fn a_leftover_holds_the_mark_back_for_an_hour_only() {
        let now = SystemTime::now();
        let until = |ages: &[u64]| {
            let seen_at = ages.iter().map(|age| now - Duration::from_mins(*age));
            now.duration_since(queued_until(seen_at, now) + CLOCK_SLACK).unwrap()
        };
        assert_eq!(until(&[]), Duration::ZERO);
        assert_eq!(until(&[5, 59, 1]), Duration::from_mins(59));
        assert_eq!(until(&[5, 60, 10_000]), Duration::from_mins(5));
    }

    const CACHE: &str = "main";

    fn watch(store: &Path, spool: &Spool, cache: &str) -> StoreWatch {
        let nix = NixStore::new("/nowhere/nix", store.to_str().unwrap().parse().unwrap());
        StoreWatch::start(nix, spool.clone(), vec![cache.parse().unwrap()]).unwrap()
    }

    #[tokio::test]
    async fn what_appeared_while_no_watcher_ran_is_found_whatever_else_ran() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().canonicalize().unwrap().join("store");
        fs::create_dir(&store).unwrap();
        let spool = Spool::open(folder.path().join("queue")).unwrap();
        let candidates = |now: SystemTime, cache| {
            let mut watch = watch(&store, &spool, cache);
            watch.catch_up(now).unwrap();
            watch.candidates.len()
        };
        let now = SystemTime::now();
        assert_eq!(candidates(now, CACHE), 0, "there is no mark yet");
        let mut first = watch(&store, &spool, CACHE);
        first.catch_up(now).unwrap();
        first.mark();
        let mark = File::options().write(true).open(first.mark_path()).unwrap();
        drop(first);
        File::create(store.join(A)).unwrap();
        // A watcher that did not catch up, as `dormer exec` has, and one for another cache.
        let hour_ago = now - Duration::from_hours(1);
        mark.set_modified(hour_ago).unwrap();
        let (mut of_exec, mut other) = (watch(&store, &spool, CACHE), watch(&store, &spool, "other"));
        other.catch_up(now).unwrap();
        of_exec.mark();
        other.mark();
        assert_eq!(mark.metadata().unwrap().modified().unwrap(), hour_ago);
        assert_eq!(candidates(SystemTime::now(), CACHE), 1);
        // A mark that is older than a day stands for the last day.
        mark.set_modified(now - 2 * CATCH_UP_MAX).unwrap();
        assert_eq!(candidates(SystemTime::now(), CACHE), 1);
        assert_eq!(candidates(SystemTime::now() + 2 * CATCH_UP_MAX, CACHE), 0);
    }

    #[tokio::test]
    async fn no_mark_is_made_while_events_wait() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().canonicalize().unwrap().join("store");
        fs::create_dir(&store).unwrap();
        let spool = Spool::open(folder.path().join("queue")).unwrap();
        let mut watch = watch(&store, &spool, CACHE);
        watch.catch_up(SystemTime::now()).unwrap();
        File::create(store.join(A)).unwrap();
        while watch.events.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        watch.mark();
        assert!(!watch.mark_path().exists());
        while watch.events.try_recv().is_ok() {}
        watch.mark();
        assert!(watch.mark_path().exists());
    }

    #[test]
    fn what_changed_since_a_moment_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let before = SystemTime::now();
        let file = File::create(folder.path().join(A)).unwrap();
        // As Nix does.
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1)).unwrap();
        File::create(folder.path().join(".links")).unwrap();
        let found = changed_since(folder.path(), before).unwrap();
        assert_eq!(found.iter().map(|(path, _)| path.to_string()).collect::<Vec<_>>(), [A]);
        let later = SystemTime::now() + Duration::from_mins(1);
        assert!(changed_since(folder.path(), later).unwrap().is_empty());
    }
}
