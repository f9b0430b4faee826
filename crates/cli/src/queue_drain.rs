//! What the commands around the queue share: the caches of the settings, one process that drains,
//! and the words for what it does.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use clap::Args;
use dormer_api::CacheName;
use dormer_client::queue::{
    DrainEnd, DrainReporter, DrainScope, DrainTarget, DrainTargets, Drainer, DrainerLock, DrainerOptions,
    EntryId, QueuedCache, RootEnd, Spool, Standing, WatchReporter,
};
use dormer_client::{
    Error as ClientError, NixStore, PushOptions, PushReporter, RateLimit, Retry, TransferId, TransferOptions,
};
use dormer_nix::{StoreDir, StorePath};
use serde_json::json;
use tokio::sync::watch;

use crate::context::{Context, retry_line};
use crate::error::{Error, Result};
use crate::printer::Printer;
use crate::progress::fallback_line;
use crate::push_transfer::TransferArgs;
use crate::settings::units::human_duration;

/// How often a process looks whether another one still drains.
const LOCK_POLL: Duration = Duration::from_millis(300);

/// Pause after the queue's own disk failed.
const DISK_PAUSE: Duration = Duration::from_secs(10);

/// How the commands around the queue push, with the flags of `dormer push`.
#[derive(Debug, Args)]
pub(crate) struct QueuePushArgs {
    /// Number of concurrent uploads
    #[arg(short, long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    #[command(flatten)]
    transfer: TransferArgs,
}

/// A queue with what it takes to drain it.
pub(crate) struct Queue {
    pub(crate) spool: Spool,
    pub(crate) store: NixStore,
    targets: Arc<SettingsTargets>,
    pub(crate) reporter: Arc<QueuePrinter>,
}

impl Queue {
    pub(crate) async fn open(folder: &Path, push: &QueuePushArgs, context: &Context) -> Result<Self> {
        let spool = Spool::open(folder)?;
        let store = NixStore::open(&dormer_client::process_variables).await?;
        // A service has no home, so the sessions are beside the entries.
        let transfer =
            TransferOptions { session_folder: Some(spool.session_folder()), ..push.transfer.options() };
        let (context_of_targets, rate_limit) = (context.clone(), push.transfer.rate_limit());
        let targets =
            SettingsTargets { context: context_of_targets, jobs: push.jobs.into(), transfer, rate_limit };
        let targets = Arc::new(targets);
        let (printer, store_dir) = (context.printer.clone(), store.store_dir().clone());
        Ok(Self { spool, store, targets, reporter: Arc::new(QueuePrinter { printer, store_dir }) })
    }

    fn drainer(&self, lock: DrainerLock) -> Drainer {
        Drainer::new(
            self.spool.clone(),
            lock,
            self.store.clone(),
            Arc::clone(&self.targets) as Arc<dyn DrainTargets>,
            Arc::clone(&self.reporter) as Arc<dyn DrainReporter>,
            DrainerOptions::default(),
        )
    }

    /// Pushes what is in the queue. If another process drains it, waits until what was in the queue
    /// at the start has left it. `patience` is how long failures are tried again, and how long the
    /// other process may take. With a `scope`, nothing else is waited for.
    pub(crate) async fn drain(
        &self,
        patience: Option<Duration>,
        scope: Option<&DrainScope>,
    ) -> Result<DrainEnd> {
        /// How long another process may take, if nothing else is said.
        const FOLLOW_MAX: Duration = Duration::from_mins(10);
        let until = Instant::now() + patience.unwrap_or(FOLLOW_MAX);
        let mut followed = Followed::start(&self.spool, scope)?;
        let mut has_said = false;
        loop {
            if let Some(lock) = self.spool.try_lock_drainer()? {
                let left = patience.map(|_| until.saturating_duration_since(Instant::now()));
                let (_, ended) = watch::channel(true);
                let end = self.drainer(lock).drain_after(ended, left, scope).await?;
                // The other process may have given some up.
                return Ok(DrainEnd { dead: end.dead.max(followed.dead(&self.spool)?), ..end });
            }
            let waiting = followed.waiting(&self.spool)?;
            if waiting == 0 || Instant::now() >= until {
                return Ok(DrainEnd { waiting, dead: followed.dead(&self.spool)?, paused_by: None });
            }
            if !has_said {
                self.reporter.printer.say("another process drains this queue; waiting for it");
                has_said = true;
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    /// Pushes what comes until `ended` becomes true, and then drains with this patience.
    pub(crate) async fn drain_during(
        &self,
        mut ended: watch::Receiver<bool>,
        patience: Duration,
        scope: &DrainScope,
    ) -> Result<DrainEnd> {
        loop {
            if let Some(lock) = self.spool.try_lock_drainer()? {
                return Ok(self.drainer(lock).drain_after(ended, Some(patience), Some(scope)).await?);
            }
            if *ended.borrow_and_update() {
                return self.drain(Some(patience), Some(scope)).await;
            }
            tokio::select! {
                () = tokio::time::sleep(LOCK_POLL) => {}
                _ = ended.changed() => {}
            }
        }
    }

    /// Pushes what comes, until the future is dropped. While another process drains the queue, this
    /// one stands by.
    pub(crate) async fn drain_forever(&self) -> Result<()> {
        let mut has_said = false;
        loop {
            if let Some(lock) = self.spool.try_lock_drainer()? {
                let mut drainer = self.drainer(lock);
                loop {
                    if let Err(error) = drainer.watch().await {
                        self.reporter.printer.error(&Error::from(error).chain());
                        tokio::time::sleep(DISK_PAUSE).await;
                    }
                }
            }
            if !has_said {
                self.reporter.printer.say("another process drains this queue; standing by");
                has_said = true;
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }
}

/// The entries whose end one process awaits while another one pushes them.
struct Followed<'a> {
    scope: Option<&'a DrainScope>,
    /// In seconds since 1970, as in the entries.
    started_at: u64,
    ids: BTreeSet<EntryId>,
    /// Entries that were looked at and are not followed.
    others: BTreeSet<EntryId>,
    dead_before: BTreeSet<String>,
}

impl<'a> Followed<'a> {
    fn start(spool: &Spool, scope: Option<&'a DrainScope>) -> Result<Self> {
        let started_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let dead_before = spool.dead()?.into_iter().map(|letter| letter.name).collect();
        let (ids, others) = (BTreeSet::new(), BTreeSet::new());
        let mut followed = Self { scope, started_at: started_at.as_secs(), ids, others, dead_before };
        followed.waiting(spool)?;
        Ok(followed)
    }

    /// How many of them wait. An entry that `dormer queue retry` gave a new name is the same one.
    fn waiting(&mut self, spool: &Spool) -> Result<usize> {
        let now = spool.ids()?;
        for id in &now {
            if self.ids.contains(id) || self.others.contains(id) {
                continue;
            }
            // One that cannot be read now is looked at again.
            let Ok(Some(entry)) = spool.read(id) else { continue };
            let is_ours =
                entry.queued_at <= self.started_at && self.scope.is_none_or(|scope| scope.has(id, &entry));
            let known = if is_ours { &mut self.ids } else { &mut self.others };
            known.insert(id.clone());
        }
        Ok(now.iter().filter(|id| self.ids.contains(id)).count())
    }

    /// How many of them were given up since the start, each for one cache.
    fn dead(&self, spool: &Spool) -> Result<usize> {
        let is_new = |name: &String| !self.dead_before.contains(name);
        let names = spool.dead()?.into_iter().map(|letter| letter.name).filter(is_new);
        let is_ours = |name: &String| {
            let id = name.split_once('.').map_or(name.as_str(), |(id, _)| id);
            id.parse().is_ok_and(|id: EntryId| self.ids.contains(&id))
        };
        Ok(names.filter(is_ours).count())
    }
}

/// What a drain means for the exit code.
pub(crate) fn outcome(end: DrainEnd) -> Result<()> {
    match end {
        DrainEnd { waiting: 0, dead: 0, .. } => Ok(()),
        DrainEnd { waiting, dead, paused_by } => Err(Error::QueueNotEmpty { waiting, dead, paused_by }),
    }
}

/// The servers of the settings.
struct SettingsTargets {
    context: Context,
    jobs: usize,
    transfer: TransferOptions,
    /// All caches share it.
    rate_limit: Option<Arc<RateLimit>>,
}

#[async_trait]
impl DrainTargets for SettingsTargets {
    async fn connect(
        &self,
        cache: &QueuedCache,
        store: &NixStore,
    ) -> Result<DrainTarget, Box<dyn std::error::Error + Send + Sync>> {
        // The drainer knows what to make of an error of the client.
        self.connect_to(cache, store).map_err(|error| match error {
            Error::Client(error) => error.into(),
            error => error.into(),
        })
    }
}

impl SettingsTargets {
    fn connect_to(&self, cache: &QueuedCache, store: &NixStore) -> Result<DrainTarget> {
        let server = self.context.queued_server(cache)?;
        let api = self.context.queue_client_for(&server)?.with_rate_limit(self.rate_limit.clone());
        let options = PushOptions {
            jobs: self.jobs,
            case_hack: store.case_hack(),
            real_store_dir: Some(store.real_dir().to_owned()),
            filter: self.context.push_filter(&cache.cache, &server)?,
            ..PushOptions::default()
        };
        Ok(DrainTarget { api, cache: cache.cache.cache.clone(), options, transfer: self.transfer.clone() })
    }
}

/// Prints what a drainer and a watcher do, a line for each path.
pub(crate) struct QueuePrinter {
    printer: Printer,
    store_dir: StoreDir,
}

impl DrainReporter for QueuePrinter {
    fn push_reporter(&self, _cache: &QueuedCache) -> Arc<dyn PushReporter> {
        Arc::new(UploadPrinter { printer: self.printer.clone() })
    }

    fn root_ended(&self, cache: &QueuedCache, path: &StorePath, end: &RootEnd) {
        let (path, cache) = (path.to_absolute(&self.store_dir), &cache.cache);
        let (state, reason) = match end {
            RootEnd::Pushed => ("pushed", None),
            RootEnd::Present => ("present", None),
            RootEnd::LeftOut(reason) => ("left_out", Some(reason)),
            RootEnd::Gone => ("gone", None),
            RootEnd::Failed(reason) => ("failed", Some(reason)),
        };
        // A reader that went away does not stop the drainer.
        let _ = self.printer.message(&json!({
            "message_type": "queue_path", "cache": cache.to_string(), "path": path, "state": state, "reason": reason,
        }));
        match end {
            RootEnd::Pushed => self.printer.say(&format!("pushed to {cache}: {path}")),
            RootEnd::Present => self.printer.detail(&format!("already in {cache}: {path}")),
            RootEnd::LeftOut(reason) => {
                self.printer.say(&format!("left out of {cache}: {path}, because {reason}"));
            }
            // The entry's own line says more.
            RootEnd::Gone | RootEnd::Failed(_) => {}
        }
    }

    fn entries_revived(&self, count: usize) {
        self.printer.say(&format!("{count} entries that an older version could not read are queued again"));
    }

    fn entry_unreadable(&self, id: &EntryId, reason: &str) {
        self.printer.error(&format!("entry {id} waits, because it cannot be read: {reason}"));
    }

    fn entry_failed(&self, cache: &QueuedCache, id: &EntryId, standing: &Standing) {
        let reason = standing.error.as_deref().unwrap_or_default();
        self.printer.warn(&format!(
            "{}: entry {id} failed {} times and is tried later: {reason}",
            cache.cache, standing.tries
        ));
    }

    fn trace_failed(&self, cache: &QueuedCache, name: &str, reason: &str) {
        self.printer.warn(&format!("{}: {name} is not sent: {reason}", cache.cache));
    }

    fn entry_dead(&self, cache: &QueuedCache, id: &EntryId, reason: &str) {
        self.printer.error(&format!("{}: entry {id} is given up: {reason}", cache.cache));
    }

    fn cache_paused(&self, cache: &QueuedCache, reason: &str, pause: Duration) {
        let (cache, pause) = (&cache.cache, human_duration(pause));
        self.printer.warn(&format!("{cache} waits, and is tried again in {pause}: {reason}"));
    }
}

impl WatchReporter for QueuePrinter {
    fn queued(&self, paths: &[String]) {
        for path in paths {
            self.printer.detail(&format!("queued: {path}"));
        }
    }

    fn failed(&self, error: &ClientError) {
        self.printer.warn(&format!("not queued yet: {}", Error::chain_of(error)));
    }
}

/// Prints why a push takes longer.
struct UploadPrinter {
    printer: Printer,
}

impl PushReporter for UploadPrinter {
    fn falls_back(&self, cache: &CacheName, reason: &str) {
        self.printer.warn(&fallback_line(cache, reason));
    }

    fn path_retrying(&self, _id: TransferId, retry: &Retry<'_>) {
        self.printer.warn(&retry_line(retry));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use dormer_client::queue::QueueEntry;

    use super::*;

    fn add(spool: &Spool, cache: &str) -> EntryId {
        let now = SystemTime::now();
        spool.enqueue(&QueueEntry::new(&[cache.parse().unwrap()], vec!["/x".to_owned()], now), now).unwrap()
    }

    /// Gives an entry up, as another process does.
    fn give_up(spool: &Spool, id: &EntryId) {
        let shard = id.as_str().chars().next_back().unwrap().to_string();
        let from = spool.folder().join("pending").join(shard).join(format!("{id}.json"));
        fs::rename(from, spool.folder().join("dead").join(format!("{id}.main.json"))).unwrap();
    }

    #[test]
    fn an_entry_that_another_process_gave_up_is_not_done() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path().join("queue")).unwrap();
        give_up(&spool, &add(&spool, "main"));
        let [pushed, given_up] = [(); 2].map(|()| add(&spool, "main"));
        let mut followed = Followed::start(&spool, None).unwrap();
        assert_eq!((followed.waiting(&spool).unwrap(), followed.dead(&spool).unwrap()), (2, 0));
        spool.drop_entry(&pushed).unwrap();
        give_up(&spool, &given_up);
        assert_eq!((followed.waiting(&spool).unwrap(), followed.dead(&spool).unwrap()), (0, 1));
    }

    #[test]
    fn an_entry_that_is_retried_is_still_awaited() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path().join("queue")).unwrap();
        let id = add(&spool, "main");
        let mut followed = Followed::start(&spool, None).unwrap();
        assert!(spool.hasten(&id, false, SystemTime::now()).unwrap());
        assert_eq!(followed.waiting(&spool).unwrap(), 1);
        give_up(&spool, &spool.ids().unwrap()[0]);
        assert_eq!((followed.waiting(&spool).unwrap(), followed.dead(&spool).unwrap()), (0, 1));
    }

    #[test]
    fn a_scope_awaits_its_own_entries() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path().join("queue")).unwrap();
        add(&spool, "main");
        let scope = DrainScope { since: SystemTime::now(), caches: vec!["main".parse().unwrap()] };
        add(&spool, "other");
        let mut followed = Followed::start(&spool, Some(&scope)).unwrap();
        assert_eq!(followed.waiting(&spool).unwrap(), 0);
        add(&spool, "main");
        assert_eq!(Followed::start(&spool, Some(&scope)).unwrap().waiting(&spool).unwrap(), 1);
    }
}
