//! The drainer of the queue, against a scripted server and a program in place of `nix`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use dormer_client::queue::{
    DrainEnd, DrainReporter, DrainScope, DrainTarget, DrainTargets, Drainer, DrainerOptions, EntryId,
    QueueEntry, QueuedCache, RootEnd, Spool, Standing,
};
use dormer_client::{
    ApiClient, Error, HttpSettings, NixStore, PushApi, PushFilter, PushOptions, PushReporter, RetryPolicy,
    Silent, TransferOptions,
};
use dormer_nix::StorePath;

use super::push::Store;
use super::support::{Server, Step};

const UPLOADED: &str = r#"{"kind":"Uploaded"}"#;

/// Servers of caches, by the caches' names.
struct Targets {
    addresses: BTreeMap<String, String>,
    filter: PushFilter,
    api: PushApi,
}

#[async_trait]
impl DrainTargets for Targets {
    async fn connect(
        &self,
        cache: &QueuedCache,
        _store: &NixStore,
    ) -> Result<DrainTarget, Box<dyn std::error::Error + Send + Sync>> {
        let address = self.addresses.get(&cache.to_string()).ok_or("no such server")?;
        let retry = RetryPolicy { tries_max: 1, ..RetryPolicy::default() };
        let settings = HttpSettings { retry, ..HttpSettings::default() };
        let api = ApiClient::new(address.parse()?, None, settings)?;
        let options = PushOptions { filter: self.filter.clone(), ..PushOptions::default() };
        let transfer = TransferOptions { api: self.api, ..TransferOptions::default() };
        Ok(DrainTarget { api, cache: cache.cache.cache.clone(), options, transfer })
    }
}

/// Records what the drainer says, and the seconds of the longest pause.
#[derive(Default)]
struct Log(Mutex<Vec<String>>, AtomicUsize);

impl Log {
    fn write(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    fn take(&self) -> Vec<String> {
        let mut lines = std::mem::take(&mut *self.0.lock().unwrap());
        lines.sort_unstable();
        lines
    }
}

impl DrainReporter for Log {
    fn push_reporter(&self, _cache: &QueuedCache) -> Arc<dyn PushReporter> {
        Arc::new(Silent)
    }

    fn root_ended(&self, cache: &QueuedCache, path: &StorePath, end: &RootEnd) {
        let end = match end {
            RootEnd::Pushed => "pushed",
            RootEnd::Present => "present",
            RootEnd::LeftOut(_) => "left out",
            RootEnd::Gone => "gone",
            RootEnd::Failed(_) => "failed",
        };
        self.write(format!("{cache} {} {end}", path.name()));
    }

    fn entries_revived(&self, count: usize) {
        self.write(format!("{count} revived"));
    }

    fn entry_unreadable(&self, _id: &EntryId, _reason: &str) {
        self.write("unreadable".to_owned());
    }

    fn entry_failed(&self, cache: &QueuedCache, _id: &EntryId, standing: &Standing) {
        self.write(format!("{cache} try {}", standing.tries));
    }

    fn entry_dead(&self, cache: &QueuedCache, _id: &EntryId, _reason: &str) {
        self.write(format!("{cache} dead"));
    }

    fn cache_paused(&self, cache: &QueuedCache, _reason: &str, pause: Duration) {
        self.write(format!("{cache} paused"));
        self.1.fetch_max(usize::try_from(pause.as_secs()).unwrap(), Ordering::SeqCst);
    }
}

/// A queue in a folder of its own, and what it takes to drain it.
struct Queue {
    _folder: tempfile::TempDir,
    spool: Spool,
    store: Store,
    log: Arc<Log>,
    filter: PushFilter,
    options: DrainerOptions,
    api: PushApi,
}

impl Queue {
    fn new(store: Store) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path().join("queue")).unwrap();
        // No pauses, so that a test decides when something is tried again.
        let entry_retry = RetryPolicy { wait_first: Duration::ZERO, tries_max: 3, ..RetryPolicy::default() };
        let options = DrainerOptions { entry_retry, ..DrainerOptions::default() };
        store.invalidate(&[]);
        let (log, filter, api) = (Arc::default(), PushFilter::default(), PushApi::Attic);
        Self { _folder: folder, spool, store, log, filter, options, api }
    }

    fn add(&self, caches: &[&str], numbers: &[usize]) -> EntryId {
        let caches: Vec<QueuedCache> = caches.iter().map(|cache| cache.parse().unwrap()).collect();
        let full = |number: &usize| self.store.paths[*number].to_absolute(self.store.nix.store_dir());
        let now = SystemTime::now();
        self.spool.enqueue(&QueueEntry::new(&caches, numbers.iter().map(full).collect(), now), now).unwrap()
    }

    async fn drain(&self, servers: &[(&str, &Server)]) -> DrainEnd {
        self.drainer(servers).drain(None).await.unwrap()
    }

    fn drainer(&self, servers: &[(&str, &Server)]) -> Drainer {
        let addresses = servers.iter().map(|(cache, server)| ((*cache).to_owned(), server.address.clone()));
        let targets = Targets { addresses: addresses.collect(), filter: self.filter.clone(), api: self.api };
        let lock = self.spool.try_lock_drainer().unwrap().unwrap();
        let (log, options) = (Arc::clone(&self.log) as Arc<dyn DrainReporter>, self.options.clone());
        let store = self.store.nix.clone();
        Drainer::new(self.spool.clone(), lock, store, Arc::new(targets), log, options)
    }

    fn waiting(&self) -> Vec<QueueEntry> {
        self.spool.entries().unwrap().into_iter().filter_map(|(_, entry)| entry.ok()).collect()
    }
}

/// A server that lacks the paths of these numbers and answers uploads with `upload`.
async fn server(missing: &[usize], upload: impl Fn(usize) -> Step + Send + Sync + 'static) -> Server {
    let hashes: Vec<String> = missing.iter().map(|number| format!("\"{number:032}\"")).collect();
    let missing = format!("{{\"missing_paths\":[{}]}}", hashes.join(","));
    let uploads = AtomicUsize::new(0);
    Server::answering(move |_, line| {
        if line.starts_with("POST /_api/v1/get-missing-paths") {
            Step::Answer(200, "", missing.clone())
        } else if line.starts_with("GET ") {
            Step::Answer(200, "", "{}".to_owned())
        } else {
            upload(uploads.fetch_add(1, Ordering::Relaxed))
        }
    })
    .await
}

fn uploaded(_: usize) -> Step {
    Step::Answer(200, "", UPLOADED.to_owned())
}

fn count(server: &Server, start: &str) -> usize {
    server.requests().iter().filter(|request| request.line.starts_with(start)).count()
}

#[tokio::test]
async fn many_entries_are_one_plan_and_a_path_is_sent_once() {
    let queue = Queue::new(Store::new(&[("a", 10, None), ("b", 20, None), ("c", 30, None)]));
    let server = server(&[0, 1], uploaded).await;
    for numbers in [&[0][..], &[0, 1], &[1, 2], &[2]] {
        queue.add(&["main"], numbers);
    }
    let end = queue.drain(&[("main", &server)]).await;
    assert_eq!((end.waiting, end.dead), (0, 0));
    assert_eq!((count(&server, "POST "), count(&server, "PUT ")), (1, 2));
    assert_eq!(queue.log.take(), ["main a pushed", "main b pushed", "main c present"]);
    assert!(queue.waiting().is_empty());
}

#[tokio::test]
async fn what_the_cache_has_is_not_sent() {
    let queue = Queue::new(Store::new(&[("a", 10, None)]));
    let server = server(&[], uploaded).await;
    queue.add(&["main"], &[0]);
    queue.drain(&[("main", &server)]).await;
    assert_eq!((count(&server, "POST "), count(&server, "PUT ")), (1, 0));
    assert!(queue.waiting().is_empty());
}

#[tokio::test]
async fn what_a_drainer_of_an_older_version_gave_up_unread_is_pushed() {
    let queue = Queue::new(Store::new(&[("a", 10, None)]));
    let server = server(&[0], uploaded).await;
    let id = queue.add(&["main"], &[0]);
    let shard = id.as_str().chars().next_back().unwrap().to_string();
    let [file, dead] = [format!("pending/{shard}/{id}.json"), format!("dead/{id}.json")];
    std::fs::rename(queue.spool.folder().join(file), queue.spool.folder().join(dead)).unwrap();
    queue.drain(&[("main", &server)]).await;
    assert_eq!(queue.log.take(), ["1 revived", "main a pushed"]);
    assert!(queue.waiting().is_empty() && queue.spool.dead().unwrap().is_empty());
}

#[tokio::test]
async fn a_server_that_is_away_costs_no_try() {
    let queue = Queue::new(Store::new(&[("a", 10, None), ("b", 10, None)]));
    let away = Arc::new(AtomicBool::new(true));
    let is_away = Arc::clone(&away);
    let server = Server::answering(move |_, line| {
        if is_away.load(Ordering::SeqCst) {
            Step::HangUp
        } else if line.starts_with("POST ") {
            Step::Answer(200, "", format!("{{\"missing_paths\":[\"{:032}\",\"{:032}\"]}}", 0, 1))
        } else if line.starts_with("GET ") {
            Step::Answer(200, "", "{}".to_owned())
        } else {
            Step::Answer(200, "", UPLOADED.to_owned())
        }
    })
    .await;
    queue.add(&["main"], &[0]);
    queue.add(&["main"], &[1]);
    let before = queue.waiting();
    for _ in 0..5 {
        let end = queue.drain(&[("main", &server)]).await;
        assert_eq!((end.waiting, end.dead), (2, 0));
        assert!(matches!(end.paused_by.as_deref(), Some(Error::Unreachable { .. })), "{:?}", end.paused_by);
        assert_eq!(queue.waiting(), before, "no entry changes");
    }
    assert_eq!(queue.log.take(), ["main paused"; 5]);
    away.store(false, Ordering::SeqCst);
    assert_eq!(queue.drain(&[("main", &server)]).await.waiting, 0);
    assert_eq!(queue.log.take(), ["main a pushed", "main b pushed"]);
}

/// The server goes away in the middle of a plan.
#[tokio::test]
async fn what_was_acknowledged_leaves_the_queue_and_the_rest_stays() {
    let queue = Queue::new(Store::with_references(&[("a", 10, None), ("b", 10, None)], &[(0, 1)]));
    let server =
        server(
            &[0, 1],
            |number| if number == 0 { uploaded(0) } else { Step::Answer(503, "", String::new()) },
        )
        .await;
    queue.add(&["main"], &[0]);
    queue.add(&["main"], &[1]);
    let end = queue.drain(&[("main", &server)]).await;
    assert!(matches!(end.paused_by.as_deref(), Some(Error::Unavailable { .. })), "{:?}", end.paused_by);
    assert_eq!(queue.log.take(), ["main b pushed", "main paused"]);
    let waiting = queue.waiting();
    assert_eq!(waiting.len(), 1);
    assert!(
        waiting[0].paths[0].ends_with("-a") && waiting[0].caches.values().all(|standing| standing.tries == 0)
    );
}

#[tokio::test]
async fn a_path_that_fails_is_given_up_after_its_last_try_and_stops_no_other() {
    let contents = [("top", 10, None), ("bad", 10, None), ("good", 20, None)];
    let queue = Queue::new(Store::with_references(&contents, &[(0, 1)]));
    // Its upload fails here, whatever the server says.
    let store_dir = std::path::PathBuf::from(queue.store.nix.store_dir().as_str());
    std::fs::remove_file(store_dir.join(queue.store.paths[1].to_string())).unwrap();
    let server = server(&[0, 1, 2], uploaded).await;
    for number in [0, 1, 2] {
        queue.add(&["main"], &[number]);
    }
    let end = queue.drain(&[("main", &server)]).await;
    assert_eq!((end.waiting, end.dead), (0, 2));
    let log = queue.log.take();
    let told = |line: &str| log.iter().filter(|one| *one == line).count();
    assert_eq!((told("main good pushed"), told("main try 1"), told("main try 2")), (1, 2, 2), "{log:?}");
    assert_eq!(told("main dead"), 2, "{log:?}");
    let dead = queue.spool.dead().unwrap();
    let reasons: Vec<String> = dead
        .iter()
        .flat_map(|letter| letter.entry.as_ref().unwrap().caches.values())
        .map(|standing| standing.error.clone().unwrap())
        .collect();
    assert!(reasons[0].contains("its reference") && reasons[0].contains("-bad failed"), "{reasons:?}");
    assert!(reasons[1].contains("-bad: reading "), "{reasons:?}");
}

#[tokio::test]
async fn a_path_that_was_deleted_is_given_up_unless_the_cache_has_it() {
    let queue = Queue::new(Store::new(&[("gone", 10, None), ("there", 10, None), ("good", 10, None)]));
    let server = server(&[0, 2], uploaded).await;
    queue.store.invalidate(&[0, 1]);
    for number in [0, 1, 2] {
        queue.add(&["main"], &[number]);
    }
    let end = queue.drain(&[("main", &server)]).await;
    assert_eq!((end.waiting, end.dead), (0, 1));
    assert_eq!(queue.log.take(), ["main dead", "main gone gone", "main good pushed", "main there present"]);
    let letter = queue.spool.dead().unwrap().pop().unwrap().entry.unwrap();
    assert!(
        letter.caches.values().next().unwrap().error.as_ref().unwrap().contains("not in the store any more")
    );
}

#[tokio::test]
async fn what_a_filter_leaves_out_leaves_the_queue() {
    let contents = [("top", 10, None), ("x-source", 10, None), ("good", 10, None)];
    let mut queue = Queue::new(Store::with_references(&contents, &[(0, 1)]));
    queue.filter.exclude = vec!["*-source".parse().unwrap()];
    let server = server(&[0, 1, 2], uploaded).await;
    queue.add(&["main"], &[0, 1, 2]);
    let end = queue.drain(&[("main", &server)]).await;
    assert_eq!((end.waiting, end.dead), (0, 0));
    assert_eq!(queue.log.take(), ["main good pushed", "main top left out", "main x-source left out"]);
    assert_eq!(count(&server, "PUT "), 1);
}

#[tokio::test]
async fn a_cache_that_is_away_does_not_hold_up_the_others() {
    let queue = Queue::new(Store::new(&[("a", 10, None)]));
    let good = server(&[0], uploaded).await;
    let away = Server::scripted([Step::HangUp]).await;
    queue.add(&["good", "away", "lab:unknown"], &[0]);
    let end = queue.drain(&[("good", &good), ("away", &away)]).await;
    assert_eq!((end.waiting, end.dead), (1, 0));
    assert_eq!(queue.log.take(), ["away paused", "good a pushed", "lab:unknown paused"]);
    let left: Vec<String> = queue.waiting()[0].caches.keys().map(ToString::to_string).collect();
    assert_eq!(left, ["away", "lab:unknown"]);
}

/// Neither a server that is silent while a plan is made, nor one that is silent during an upload,
/// keeps another cache waiting: its entries are pushed, those that come meanwhile too.
#[tokio::test]
async fn a_slow_server_does_not_hold_up_the_others() {
    let queue = Queue::new(Store::new(&[("a", 10, None), ("b", 10, None)]));
    let good = server(&[0, 1], uploaded).await;
    let silent = Server::scripted([Step::Stall]).await;
    let stuck = server(&[0], |_| Step::Stall).await;
    queue.add(&["good", "silent", "stuck"], &[0]);
    let mut drainer = queue.drainer(&[("good", &good), ("silent", &silent), ("stuck", &stuck)]);
    let uploads = async |least: usize| {
        while count(&good, "PUT ") < least || count(&silent, "GET ") == 0 || count(&stuck, "PUT ") == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let others = async {
        uploads(1).await;
        queue.add(&["good"], &[1]);
        uploads(2).await;
        while queue.waiting().len() > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = async {
        tokio::select! {
            end = drainer.watch() => panic!("it watches for ever: {end:?}"),
            () = others => {}
        }
    };
    tokio::time::timeout(Duration::from_secs(10), in_time).await.expect("the others are held up");
    let left: Vec<String> = queue.waiting()[0].caches.keys().map(ToString::to_string).collect();
    assert_eq!(left, ["silent", "stuck"]);
}

#[tokio::test]
async fn an_entry_of_another_store_is_given_up_alone() {
    let queue = Queue::new(Store::new(&[("a", 10, None)]));
    let server = server(&[0], uploaded).await;
    queue.add(&["main"], &[0]);
    let now = SystemTime::now();
    let foreign = vec![format!("/elsewhere/{:032}-b", 0)];
    queue.spool.enqueue(&QueueEntry::new(&["main".parse().unwrap()], foreign, now), now).unwrap();
    let end = queue.drain(&[("main", &server)]).await;
    assert_eq!((end.waiting, end.dead), (0, 1));
    assert_eq!(queue.log.take(), ["main a pushed", "main dead"]);
}

/// The queue's disk fails while results are written down, and then works again.
#[tokio::test]
async fn every_cache_is_pushed_again_after_the_disk_failed() {
    let queue = Queue::new(Store::new(&[("a", 10, None)]));
    let [one, other] = [server(&[0], uploaded).await, server(&[0], uploaded).await];
    queue.add(&["one", "other"], &[0]);
    let mut drainer = queue.drainer(&[("one", &one), ("other", &other)]);
    let lock = queue.spool.folder().join("edit.lock");
    std::fs::remove_file(&lock).unwrap();
    std::fs::create_dir(&lock).unwrap();
    let failed = drainer.drain(None).await;
    assert!(matches!(failed, Err(Error::Queue { .. })), "{failed:?}");
    std::fs::remove_dir(&lock).unwrap();
    let end = drainer.drain(None).await.unwrap();
    assert_eq!((end.waiting, end.dead), (0, 0));
}

/// A server that is there, and fails each session.
#[tokio::test]
async fn a_server_that_fails_as_a_whole_costs_no_try() {
    for (status, paths) in [(500, 2), (500, 1), (400, 2)] {
        let mut queue = Queue::new(Store::new(&[("a", 10, None), ("b", 10, None)]));
        queue.api = PushApi::Best;
        let server = Server::answering(move |_, line| {
            if line.contains("/_api/v2/") {
                Step::Answer(status, "", String::new())
            } else if line.starts_with("POST ") {
                Step::Answer(200, "", format!("{{\"missing_paths\":[\"{:032}\",\"{:032}\"]}}", 0, 1))
            } else {
                Step::Answer(200, "", "{}".to_owned())
            }
        })
        .await;
        for number in 0..paths {
            queue.add(&["main"], &[number]);
        }
        let before = queue.waiting();
        for _ in 0..5 {
            let end = queue.drain(&[("main", &server)]).await;
            assert_eq!((end.waiting, end.dead), (paths, 0));
            assert!(end.paused_by.is_some(), "{status}");
            assert_eq!(queue.waiting(), before, "{status}: no entry changes");
        }
        assert_eq!(queue.log.take(), ["main paused"; 5], "{status}");
    }
}

/// The server takes sessions, and fails every request of one kind: no path is to blame.
#[tokio::test]
async fn a_server_that_fails_one_kind_of_request_costs_no_try() {
    for (api, status, failing) in [
        (PushApi::Chunks, 500, "/parts/"),
        (PushApi::Chunks, 502, "/parts/"),
        (PushApi::Chunks, 500, "/missing"),
        (PushApi::Chunks, 500, "/commit"),
        (PushApi::Attic, 500, "PUT /_api/v1/upload-path"),
        // An answer of another program.
        (PushApi::Attic, 200, "PUT /_api/v1/upload-path"),
    ] {
        let mut queue = Queue::new(Store::new(&[("a", 10, None), ("b", 10, None)]));
        queue.api = api;
        let store_dir = queue.store.nix.store_dir().clone();
        let server = Server::answering(move |_, line| {
            if line.contains(failing) {
                Step::Answer(status, "", String::new())
            } else if line.contains("/missing") {
                // All of them: one bit for each of the two chunks, at most.
                Step::Answer(200, "", "\u{1}".to_owned())
            } else if line.contains("/_api/v2/") {
                let limits = format!(
                    r#"{{"format":1,"store_dir":"{store_dir}","chunk_min":32768,"chunk_avg":131072,"chunk_max":524288,
                    "level":1,"part_bytes_max":8388608,"missing_chunks_max":1,"commit_bytes_max":25165824,
                    "commit_paths_max":512,"ends_at":99999999999}}"#
                );
                Step::Answer(200, "", limits)
            } else if line.starts_with("POST ") {
                Step::Answer(200, "", format!("{{\"missing_paths\":[\"{:032}\",\"{:032}\"]}}", 0, 1))
            } else {
                Step::Answer(200, "", "{}".to_owned())
            }
        })
        .await;
        queue.add(&["main"], &[0]);
        queue.add(&["main"], &[1]);
        let before = queue.waiting();
        for _ in 0..2 {
            let end = queue.drain(&[("main", &server)]).await;
            assert_eq!((end.waiting, end.dead), (2, 0), "{failing} {status}");
            assert!(end.paused_by.is_some(), "{failing} {status}");
            assert_eq!(queue.waiting(), before, "{failing} {status}: no entry changes");
        }
        assert!(count(&server, "P") > 2, "{failing}");
        assert_eq!(queue.log.take(), ["main paused"; 2], "{failing} {status}");
    }
}

/// By Attic's API each path has its own request, and a server that takes others works.
#[tokio::test]
async fn a_path_that_breaks_a_working_server_is_given_up_alone() {
    let queue = Queue::new(Store::new(&[("bad", 10, None), ("good", 20, None), ("fine", 30, None)]));
    let server = server(&[0, 1, 2], |number| match number {
        0 => Step::Answer(500, "", String::new()),
        _ => uploaded(number),
    })
    .await;
    for number in [0, 1, 2] {
        queue.add(&["main"], &[number]);
    }
    let _ = queue.drain(&[("main", &server)]).await;
    let log = queue.log.take();
    assert!(log.contains(&"main try 1".to_owned()), "{log:?}");
}

/// A server that is busy for long is not asked again before its time.
#[tokio::test]
async fn a_busy_server_is_left_alone_for_as_long_as_it_says() {
    for (after, seconds) in [("Retry-After: 1200\r\n", 1200), ("Retry-After: 999999\r\n", 3_600)] {
        for failing in ["GET ", "POST ", "PUT "] {
            let queue = Queue::new(Store::new(&[("a", 10, None)]));
            let server = Server::answering(move |_, line| {
                if line.starts_with(failing) {
                    Step::Answer(503, after, String::new())
                } else if line.starts_with("POST ") {
                    Step::Answer(200, "", format!("{{\"missing_paths\":[\"{:032}\"]}}", 0))
                } else {
                    Step::Answer(200, "", "{}".to_owned())
                }
            })
            .await;
            queue.add(&["main"], &[0]);
            assert_eq!(queue.drain(&[("main", &server)]).await.waiting, 1);
            assert_eq!(queue.log.1.load(Ordering::SeqCst), seconds, "{failing}");
        }
    }
}

/// The same name at two addresses is two caches: neither gets the builds of the other.
#[tokio::test]
async fn builds_for_one_server_never_go_to_another_of_the_same_name() {
    let queue = Queue::new(Store::new(&[("a", 10, None)]));
    let [one, other] = [server(&[0], uploaded).await, server(&[0], uploaded).await];
    let [here, there] = [&one, &other].map(|server| format!("main@{}/", server.address));
    queue.add(&[&here], &[0]);
    queue.add(&[&there], &[0]);
    // The second server is not known to this drainer.
    let end = queue.drain(&[(&here, &one)]).await;
    assert_eq!((end.waiting, end.dead), (1, 0), "{end:?} {:?}", queue.log.take());
    let log = queue.log.take();
    assert!(log.len() == 2 && log.contains(&format!("{here} a pushed")), "{log:?}");
    assert!(log.contains(&format!("{there} paused")), "{log:?}");
    assert_eq!((count(&one, "PUT "), count(&other, "PUT ")), (1, 0));
    let end = queue.drain(&[(&here, &one), (&there, &other)]).await;
    assert_eq!((end.waiting, count(&one, "PUT "), count(&other, "PUT ")), (0, 1, 1));
}

#[tokio::test]
async fn a_derivation_rests_after_a_failure_and_waits_for_nix() {
    let mut queue = Queue::new(Store::new(&[("a", 10, None)]));
    queue.options.entry_retry.wait_first = Duration::from_hours(1);
    queue.options.entry_retry.wait_max = Duration::from_hours(1);
    let server = server(&[0], uploaded).await;
    let out = queue.store.paths[0].to_absolute(queue.store.nix.store_dir());
    let now = SystemTime::now();
    let entry = QueueEntry::of_derivation(&["main".parse().unwrap()], format!("{out}.drv"), now);
    let before = queue.spool.enqueue(&entry, now).unwrap();
    // Nix does not work.
    queue.store.replace_nix_store("exit 1");
    for _ in 0..2 {
        let end = queue.drain(&[("main", &server)]).await;
        assert_eq!((end.waiting, end.dead), (1, 0));
        assert!(end.paused_by.is_some());
    }
    assert_eq!(queue.log.take(), ["main paused"; 2]);
    assert_eq!(queue.waiting()[0].caches.values().next().unwrap().tries, 0);
    // Nix works, but not for this derivation.
    queue.store.replace_nix_store("[ \"$1\" = --check-validity ]");
    for _ in 0..3 {
        assert_eq!(queue.drain(&[("main", &server)]).await.waiting, 1);
    }
    assert_eq!(queue.log.take(), ["main try 1"]);
    assert!(queue.spool.hasten(&before, false, SystemTime::now()).unwrap());
    queue.store.replace_nix_store(&format!("[ \"$1\" = --check-validity ] || echo {out}"));
    assert_eq!(queue.drain(&[("main", &server)]).await.waiting, 0);
    assert_eq!(queue.log.take(), ["main a pushed"]);
}

#[tokio::test]
async fn a_drain_with_a_scope_waits_for_nothing_else() {
    let mut queue = Queue::new(Store::new(&[("bad", 10, None), ("good", 10, None)]));
    queue.options.entry_retry.wait_first = Duration::from_hours(1);
    queue.options.entry_retry.wait_max = Duration::from_hours(1);
    let store_dir = std::path::PathBuf::from(queue.store.nix.store_dir().as_str());
    std::fs::remove_file(store_dir.join(queue.store.paths[0].to_string())).unwrap();
    let good = server(&[0, 1], uploaded).await;
    let away = Server::scripted([Step::HangUp]).await;
    // It fails, and rests.
    queue.add(&["good"], &[0]);
    assert_eq!(queue.drain(&[("good", &good)]).await.waiting, 1);
    let scope = DrainScope { since: SystemTime::now(), caches: vec!["good".parse().unwrap()] };
    queue.add(&["good", "away"], &[1]);
    let mut drainer = queue.drainer(&[("good", &good), ("away", &away)]);
    let (_, ended) = tokio::sync::watch::channel(true);
    let end = drainer.drain_after(ended, Some(Duration::from_hours(1)), Some(&scope));
    let end = tokio::time::timeout(Duration::from_mins(1), end).await.expect("it waits for others").unwrap();
    assert_eq!((end.waiting, end.dead), (0, 0));
    assert!(end.paused_by.is_none() && queue.waiting().len() == 2);
}

/// The outputs that arrived leave the queue, and their build traces are sent before, whatever
/// became of the rest of the batch.
#[tokio::test]
async fn build_traces_are_sent_before_their_paths_leave_the_queue() {
    let mut queue = Queue::new(Store::new(&[("a", 10, None), ("bad", 20, None)]));
    queue.store.trace(0);
    queue.options.entry_retry.tries_max = 1;
    let store_dir = std::path::PathBuf::from(queue.store.nix.store_dir().as_str());
    std::fs::remove_file(store_dir.join(queue.store.paths[1].to_string())).unwrap();
    let healthy = server(&[0, 1], uploaded).await;
    queue.add(&["main"], &[0]);
    queue.add(&["main"], &[1]);
    let end = queue.drain(&[("main", &healthy)]).await;
    assert_eq!((end.waiting, end.dead), (0, 1));
    assert!(queue.log.take().contains(&"main a pushed".to_owned()));
    assert_eq!(count(&healthy, "PUT /main/realisations/"), 1);

    // The server goes away after the first path: that one stays until its trace is sent.
    let mut queue = Queue::new(Store::new(&[("a", 20, None), ("b", 10, None)]));
    queue.store.trace(0);
    let away = |number| if number == 0 { uploaded(0) } else { Step::Answer(503, "", String::new()) };
    let dying = server(&[0, 1], away).await;
    queue.add(&["main"], &[0]);
    queue.add(&["main"], &[1]);
    assert_eq!(queue.drain(&[("main", &dying)]).await.waiting, 2);
    let healthy = server(&[1], uploaded).await;
    assert_eq!(queue.drain(&[("main", &healthy)]).await.waiting, 0);
    assert_eq!(count(&healthy, "PUT /main/realisations/"), 1);
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_stops_no_other() {
    let queue = Queue::new(Store::new(&[("a", 10, None)]));
    let server = server(&[0], uploaded).await;
    let broken = queue.add(&["main"], &[0]);
    queue.add(&["main"], &[0]);
    let shard =
        queue.spool.folder().join("pending").join(broken.as_str().chars().last().unwrap().to_string());
    let file = shard.join(format!("{broken}.json"));
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let mut drainer = queue.drainer(&[("main", &server)]);
    let drained = drainer.drain(Some(Duration::from_hours(1)));
    let end = tokio::time::timeout(Duration::from_mins(1), drained).await.expect("it waits in vain").unwrap();
    assert_eq!((end.waiting, end.dead), (1, 0));
    assert_eq!(queue.log.take(), ["main a pushed", "unreadable"]);
}

/// A token that has expired meanwhile does not hold up the end of a job, and one that was renewed
/// is used.
#[tokio::test]
async fn a_server_that_refuses_this_client_is_not_waited_for() {
    for (status, is_renewed) in [(401, false), (403, false), (401, true)] {
        let queue = Queue::new(Store::new(&[("a", 10, None)]));
        let refuses = Arc::new(AtomicBool::new(true));
        let is_refusing = Arc::clone(&refuses);
        let server = Server::answering(move |_, line| {
            if is_refusing.load(Ordering::SeqCst) {
                Step::Answer(status, "", String::new())
            } else if line.starts_with("POST ") {
                Step::Answer(200, "", format!("{{\"missing_paths\":[\"{:032}\"]}}", 0))
            } else if line.starts_with("GET ") {
                Step::Answer(200, "", "{}".to_owned())
            } else {
                uploaded(0)
            }
        })
        .await;
        queue.add(&["main"], &[0]);
        let mut drainer = queue.drainer(&[("main", &server)]);
        let (command_ended, ended) = tokio::sync::watch::channel(false);
        let command = async {
            while count(&server, "GET ") == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            refuses.store(!is_renewed, Ordering::SeqCst);
            command_ended.send(true).unwrap();
        };
        let drained = drainer.drain_after(ended, Some(Duration::from_hours(1)), None);
        let both = async { tokio::join!(drained, command).0 };
        let end =
            tokio::time::timeout(Duration::from_mins(1), both).await.expect("it waits in vain").unwrap();
        assert_eq!((end.waiting, end.dead), (usize::from(!is_renewed), 0), "{status}");
        assert_eq!(end.paused_by.is_some_and(|error| error.is_refusal()), !is_renewed, "{status}");
    }
}
