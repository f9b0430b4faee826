//! Pushes by chunks from a store of files, against a server that checks and counts.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::chunk_server::{ChunkServer, Fault};
use super::support::{Server, Step};
use dormer_api::v2::{SESSION_FORMAT, SessionResponse};
use dormer_client::{
    ApiClient, CaseHack, Error, HttpSettings, PathInfo, PushApi, PushOptions, PushPlan, PushReporter,
    PushSummary, PushTarget, RetryPolicy, Silent, TransferId, TransferOptions, dump_nar, execute_push_to,
};
use dormer_format::{ChunkParams, Chunker, RawChunk};
use dormer_nix::{NarHasher, StoreDir, StorePath};
use dormer_testkit::Random;

/// A store of files, without Nix.
struct Files {
    folder: tempfile::TempDir,
    infos: Vec<PathInfo>,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), infos: Vec::new() }
    }

    fn store_dir(&self) -> StoreDir {
        self.folder.path().to_str().unwrap().parse().unwrap()
    }

    fn hash_of(number: usize) -> String {
        format!("{number:032}")
    }

    /// Adds a path with these contents, and returns its number.
    fn add(&mut self, contents: &[u8], references: &[usize]) -> usize {
        let number = self.infos.len();
        let path: StorePath = format!("{}-p{number}", Self::hash_of(number)).parse().unwrap();
        let file = self.folder.path().join(path.to_string());
        std::fs::write(&file, contents).unwrap();
        let mut hasher = NarHasher::new();
        dump_nar(&file, CaseHack::Keep, |bytes| {
            hasher.update(bytes);
            Ok(())
        })
        .unwrap();
        let (nar_hash, nar_size) = hasher.finish();
        self.infos.push(PathInfo {
            store_dir: self.store_dir(),
            path,
            nar_hash,
            nar_size,
            references: references.iter().map(|number| self.infos[*number].path.clone()).collect(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
            system: None,
            extra: Vec::new(),
        });
        number
    }

    /// Contents of half noise that name a path of this store.
    fn contents(&self, seed: u64, bytes: usize, named: usize) -> Vec<u8> {
        let mut contents = Random::new(seed).bytes(bytes);
        let name = format!("{}/{}-x\0", self.folder.path().display(), Self::hash_of(named));
        let middle = contents.len() / 2;
        contents.splice(middle..middle, name.into_bytes());
        contents
    }

    fn plan(&self) -> PushPlan {
        PushPlan {
            cache: "main".parse().unwrap(),
            missing: self.infos.clone(),
            present: Vec::new(),
            upstream: Vec::new(),
            derivers: Vec::new(),
            addressed: Vec::new(),
            invalid: Vec::new(),
            excluded: Vec::new(),
            incomplete: Vec::new(),
        }
    }

    /// Some paths that share chunks, refer to each other, and fill several windows of questions.
    fn some() -> Self {
        let mut files = Self::new();
        let shared = Random::new(99).bytes(150_000);
        for number in 0..12 {
            let mut contents = files.contents(number as u64, 120_000, number / 2);
            contents.extend_from_slice(&shared);
            let references: Vec<usize> = (0..number).filter(|other| (number * other) % 3 == 1).collect();
            files.add(&contents, &references);
        }
        files.add(b"", &[3]);
        files
    }
}

fn limits(store_dir: StoreDir) -> SessionResponse {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    SessionResponse {
        format: SESSION_FORMAT,
        store_dir,
        chunk_min: 1024,
        chunk_avg: 4096,
        chunk_max: 16 * 1024,
        level: 1,
        part_bytes_max: 128 * 1024,
        part_chunks_max: 4_096,
        missing_chunks_max: 100,
        commit_bytes_max: 24 * 1024 * 1024,
        commit_paths_max: 5,
        ends_at: i64::try_from(now).unwrap() + 86_400,
    }
}

fn api(address: &str, tries_max: u32) -> ApiClient {
    let retry = RetryPolicy {
        tries_max,
        wait_first: Duration::from_millis(1),
        wait_first_busy: Duration::from_millis(1),
        wait_max: Duration::from_millis(5),
        ..RetryPolicy::default()
    };
    let settings = HttpSettings { retry, ..HttpSettings::default() };
    ApiClient::new(address.parse().unwrap(), None, settings).unwrap()
}

fn transfer(folder: Option<PathBuf>) -> TransferOptions {
    TransferOptions { threads: 2, session_folder: folder, ..TransferOptions::default() }
}

async fn push_with(
    server: &ChunkServer,
    files: &Files,
    transfer: &TransferOptions,
    reporter: Arc<dyn PushReporter>,
) -> PushSummary {
    let target = PushTarget { api: api(&server.address, 40), plan: files.plan() };
    let mut summaries = execute_push_to(vec![target], &PushOptions::default(), transfer, reporter).await;
    summaries.remove(0)
}

async fn push(server: &ChunkServer, files: &Files) -> PushSummary {
    push_with(server, files, &transfer(None), Arc::new(Silent)).await
}

async fn server_for(files: &Files) -> ChunkServer {
    ChunkServer::start(limits(files.store_dir()), false).await
}

/// Every path is there once, whole, and after its references.
fn assert_all_there(server: &ChunkServer, files: &Files) {
    let state = server.state();
    let names: Vec<&str> = state.committed.iter().map(|(path, _)| path.as_str()).collect();
    for info in &files.infos {
        let full = info.absolute_path();
        let place = names.iter().position(|name| *name == full).unwrap_or_else(|| panic!("{full} is lost"));
        assert_eq!(state.committed[place].1.len() as u64, info.nar_size);
        for reference in &info.references {
            let reference = reference.to_absolute(&info.store_dir);
            assert!(names[..place].contains(&reference.as_str()), "{full} came before {reference}");
        }
    }
    assert_eq!(names.len(), files.infos.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_arrive_whole_in_order_and_each_chunk_once() {
    let files = Files::some();
    let server = server_for(&files).await;
    let summary = push(&server, &files).await;
    assert!(summary.is_complete() && summary.by_chunks, "{summary:?}");
    assert_eq!(summary.pushed.len(), files.infos.len());
    assert_all_there(&server, &files);
    let state = server.state();
    assert!(state.arrivals.values().all(|times| *times == 1), "a chunk was sent twice");
    let nar_bytes: u64 = files.infos.iter().map(|info| info.nar_size).sum();
    assert_eq!(summary.bytes_read, nar_bytes);
    // The shared part is half of the bytes, and the other half compresses to little more than half.
    assert!(summary.bytes_saved > nar_bytes / 3 && summary.bytes_saved < nar_bytes * 2 / 3, "{summary:?}");
    assert_eq!(summary.bytes_sent, state.bytes() as u64);
    assert!(summary.bytes_sent < nar_bytes / 2, "{summary:?}");
    assert!(state.seen.iter().all(|seen| seen.length == Some(seen.bytes) || seen.bytes == 0));
    assert!(
        state.count("/commit") <= 4,
        "paths are committed in batches of five: {}",
        state.count("/commit")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_do_not_wait_for_each_other_and_chunks_keep_their_order() {
    let mut files = Files::new();
    files.add(&files.contents(1, 3_000_000, 0), &[]);
    let server = server_for(&files).await;
    // A hundred chunks of 4 KiB in a question. The first one is answered last.
    server.fail(|number, line| {
        (number == 1 && line.contains("/missing")).then_some(Fault::HoldUntil("/missing", 4))
    });
    let target = PushTarget { api: api(&server.address, 1), plan: files.plan() };
    let options = PushOptions { jobs: 1, ..PushOptions::default() };
    let summaries = execute_push_to(vec![target], &options, &transfer(None), Arc::new(Silent)).await;
    assert!(summaries[0].is_complete(), "{summaries:?}");
    let state = server.state();
    assert_eq!((state.held, state.held_in_vain), (1, 0), "no question waited for the first answer");
    let mut chunker =
        Chunker::new(ChunkParams::new(1024, 4096, 16 * 1024).unwrap(), &files.store_dir().to_string());
    let mut chunks = Vec::new();
    chunker.push(&state.committed[0].1, &mut chunks);
    chunker.finish(&mut chunks);
    assert_eq!(state.arrived, chunks.iter().map(RawChunk::id).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_ready_is_committed_beside_the_last_parts() {
    let mut files = Files::new();
    // Enough bytes for a commit, although nearly none are sent.
    files.add(&vec![7; 17 << 20], &[]);
    files.add(&files.contents(1, 300_000, 0), &[]);
    let server = server_for(&files).await;
    // One part after the other, and the chunks of the large path in the first.
    let parts = AtomicUsize::new(0);
    server.fail(move |_, line| {
        let is_later = line.contains("/parts/") && parts.fetch_add(1, Ordering::Relaxed) > 0;
        is_later.then_some(Fault::HoldUntil("/commit", 1))
    });
    let target = PushTarget { api: api(&server.address, 40), plan: files.plan() };
    let options = PushOptions { jobs: 1, ..PushOptions::default() };
    let transfer = TransferOptions { threads: 1, ..transfer(None) };
    let summaries = execute_push_to(vec![target], &options, &transfer, Arc::new(Silent)).await;
    assert!(summaries[0].is_complete(), "{summaries:?}");
    assert_all_there(&server, &files);
    let state = server.state();
    assert!(state.held > 0, "there was one part alone");
    assert_eq!(state.held_in_vain, 0, "the commit waited for the last part");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mass_rebuild_sends_next_to_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Files::new();
    for number in 0..10 {
        files.add(&files.contents(number, 200_000, 1), &[]);
    }
    let server = server_for(&files).await;
    let transfer = transfer(Some(folder.path().to_owned()));
    push_with(&server, &files, &transfer, Arc::new(Silent)).await;
    let (before, parts_before) = {
        let state = server.state();
        (state.bytes(), state.count("/parts/"))
    };
    // The same store with other hashes: the next push is in the session of the first.
    for number in 0..10 {
        let contents = files.contents(number, 200_000, 2);
        let reference = files.add(&contents, &[]);
        assert_eq!(files.infos[reference].nar_size, files.infos[0].nar_size);
    }
    let mut rebuilt = Files { infos: files.infos.split_off(10), folder: files.folder };
    let summary = push_with(&server, &rebuilt, &transfer, Arc::new(Silent)).await;
    assert!(summary.is_complete(), "{summary:?}");
    rebuilt.infos.splice(0..0, files.infos);
    assert_all_there(&server, &rebuilt);
    let sent = server.state().bytes() - before;
    assert_eq!(server.state().opened.len(), 1);
    // Ids and metadata: 64 bytes for each 4 KiB, 400 for each path.
    assert!(sent < 2_000_000 * 64 / 3000 + 10 * 400, "{sent}");
    assert_eq!(server.state().count("/parts/"), parts_before, "no chunk was new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_connections_and_busy_servers_cost_one_part_each() {
    for seed in 0..4 {
        let files = Files::some();
        let server = server_for(&files).await;
        let cuts = Arc::new(AtomicUsize::new(0));
        let (random, counted) = (Mutex::new(Random::new(seed)), Arc::clone(&cuts));
        server.fail(move |_, line| {
            let fault = match random.lock().unwrap().next_u64() % 10 {
                0 | 1 => Fault::Status(503),
                2 => Fault::CutAfter(30_000),
                3 => Fault::LoseAnswer,
                _ => return None,
            };
            if line.contains("/parts/") {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Some(fault)
        });
        let summary = push(&server, &files).await;
        assert!(summary.is_complete(), "seed {seed}: {summary:?}");
        assert_all_there(&server, &files);
        let state = server.state();
        let parts: BTreeSet<&str> = state
            .seen
            .iter()
            .filter(|seen| seen.line.contains("/parts/"))
            .map(|seen| seen.line.as_str())
            .collect();
        assert_eq!(state.count("/parts/"), parts.len() + cuts.load(Ordering::Relaxed), "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_was_killed_is_joined_and_sends_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let transfer = transfer(Some(folder.path().to_owned()));
    let files = Files::some();
    let server = server_for(&files).await;
    for kill_at in [2, 4, 6, 9] {
        let stop = Arc::new(tokio::sync::Notify::new());
        let (notify, base) = (Arc::clone(&stop), server.state().seen.len());
        server.fail(move |number, _| {
            if number - base >= kill_at {
                notify.notify_one();
                return Some(Fault::Status(503));
            }
            None
        });
        tokio::select! {
            summary = push_with(&server, &files, &transfer, Arc::new(Silent)) => panic!("it was not killed: {summary:?}"),
            () = stop.notified() => {}
        }
    }
    server.fail(|_, _| None);
    let summary = push_with(&server, &files, &transfer, Arc::new(Silent)).await;
    assert!(summary.is_complete(), "{summary:?}");
    assert_all_there(&server, &files);
    let state = server.state();
    assert_eq!(state.opened.len(), 1, "each push joined the session of the one before");
    assert!(state.arrivals.values().all(|times| *times == 1), "chunks that had arrived were sent again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ends_is_followed_by_another() {
    for ends_at in [2, 3, 5, 8] {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::some();
        let server = server_for(&files).await;
        server.fail(move |number, _| (number == ends_at).then_some(Fault::EndSessions));
        let summary =
            push_with(&server, &files, &transfer(Some(folder.path().to_owned())), Arc::new(Silent)).await;
        assert!(summary.is_complete(), "{ends_at}: {summary:?}");
        assert_all_there(&server, &files);
        assert_eq!(server.state().opened.len(), 2);
    }
    // If every session ends at once, the push ends too.
    let files = Files::some();
    let server = server_for(&files).await;
    server
        .fail(|_, line| (!line.starts_with("PUT") || line.contains("/parts/")).then_some(Fault::EndSessions));
    let summary = push(&server, &files).await;
    assert!(matches!(summary.failed[0].error, Error::SessionEnded { .. }), "{summary:?}");
    assert_eq!(summary.failed.len() + summary.not_tried.len(), files.infos.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_the_server_lost_are_read_and_sent_again() {
    let files = Files::some();
    let server = server_for(&files).await;
    let losing = server.clone();
    let commits = AtomicUsize::new(0);
    server.fail(move |_, line| {
        if line.contains("/commit") && commits.fetch_add(1, Ordering::Relaxed) == 0 {
            let mut state = losing.state();
            let lost: Vec<_> = state.chunks.keys().copied().collect();
            for id in lost.into_iter().step_by(3) {
                state.chunks.remove(&id);
            }
        }
        None
    });
    // The server names two chunks of a path. The client asks about the others of the path itself.
    let summary = push(&server, &files).await;
    assert!(summary.is_complete(), "{summary:?}");
    assert_all_there(&server, &files);
    assert!(server.state().arrivals.values().all(|times| *times <= 2));

    // A server that loses everything before each commit gets an end, not a loop.
    let losing = server.clone();
    server.state().committed.clear();
    server.fail(move |_, line| {
        if line.contains("/commit") {
            losing.state().chunks.clear();
        }
        None
    });
    let summary = push(&server, &files).await;
    assert!(summary.pushed.is_empty(), "{summary:?}");
    assert!(matches!(summary.failed[0].error, Error::ChunksLost { .. }), "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_removed_comes_back_with_a_later_push_in_the_same_session() {
    let folder = tempfile::tempdir().unwrap();
    let transfer = transfer(Some(folder.path().to_owned()));
    let files = Files::some();
    let server = server_for(&files).await;
    for _ in 0..2 {
        server.state().committed.clear();
        let summary = push_with(&server, &files, &transfer, Arc::new(Silent)).await;
        assert!(summary.is_complete(), "{summary:?}");
        assert_all_there(&server, &files);
    }
    assert_eq!(server.state().opened.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_is_refused_stops_only_the_paths_that_wait_for_it() {
    let mut files = Files::new();
    let contents = files.contents(1, 60_000, 0);
    for _ in 0..2 {
        files.add(&contents, &[]);
    }
    // One path at a time: the first has to be sent again when the second is not yet asked for.
    let limits = SessionResponse { commit_paths_max: 1, ..limits(files.store_dir()) };
    let server = ChunkServer::start(limits, false).await;
    let (losing, parts) = (server.clone(), AtomicUsize::new(0));
    server.fail(move |_, line| {
        let mut state = losing.state();
        if line.contains("/commit") && state.count("/commit") == 1 {
            state.chunks.clear();
        }
        let is_again = line.contains("/parts/") && state.count("/commit") > 0;
        (is_again && parts.fetch_add(1, Ordering::Relaxed) == 0).then_some(Fault::Status(413))
    });
    let summary = push(&server, &files).await;
    assert_eq!((summary.failed.len(), summary.pushed.len()), (1, 1), "{summary:?}");
    let Error::Shared(error) = &summary.failed[0].error else { panic!("{summary:?}") };
    assert!(matches!(**error, Error::Refused { status: 413, .. }), "{summary:?}");
    assert_eq!(server.state().committed.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_all_paths_that_fails_is_no_failure_of_one_path() {
    let is_opening = |line: &str| line.starts_with("PUT") && !line.contains("/parts/");
    let is_question = |line: &str| line.contains("/missing");
    let is_commit = |line: &str| line.contains("/commit");
    for request in [is_opening as fn(&str) -> bool, is_question, is_commit] {
        // The answer of 200 is empty, so it is malformed.
        for status in [500, 400, 200] {
            let files = Files::some();
            let server = server_for(&files).await;
            server.fail(move |_, line| request(line).then_some(Fault::Status(status)));
            let target = PushTarget { api: api(&server.address, 3), plan: files.plan() };
            let (options, transfer) = (PushOptions::default(), transfer(None));
            let summaries = execute_push_to(vec![target], &options, &transfer, Arc::new(Silent)).await;
            let [summary] = &summaries[..] else { panic!("{summaries:?}") };
            assert_eq!(summary.failed.len(), 1, "{summary:?}");
            let error = &summary.failed[0].error;
            assert!(error.is_fatal_for_push(), "{summary:?}");
            let Error::WholePush(error) = error else { panic!("{summary:?}") };
            match status {
                500 => assert!(matches!(**error, Error::Unavailable { status: 500, .. }), "{error:?}"),
                400 => assert!(matches!(**error, Error::Refused { status: 400, .. }), "{error:?}"),
                _ => assert!(matches!(**error, Error::Answer { .. }), "{error:?}"),
            }
            assert_eq!(summary.not_tried.len(), files.infos.len() - 1);
            assert!(summary.not_tried.iter().all(|skipped| skipped.failed_reference.is_none()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_still_verifies_is_asked_again() {
    let files = Files::some();
    let server = ChunkServer::start(limits(files.store_dir()), true).await;
    let summary = push(&server, &files).await;
    assert!(summary.is_complete(), "{summary:?}");
    // A path may be committed before one that is still verified, so the order is not checked here.
    assert_eq!(server.state().committed.len(), files.infos.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_path_stops_only_its_referrers() {
    let mut files = Files::new();
    let good = files.add(&files.contents(1, 100_000, 0), &[]);
    let damaged = files.add(&files.contents(2, 100_000, 0), &[good]);
    let referrer = files.add(&files.contents(3, 100_000, 0), &[damaged]);
    let other = files.add(&files.contents(4, 100_000, 0), &[good]);
    let file = files.folder.path().join(files.infos[damaged].path.to_string());
    std::fs::write(file, files.contents(5, 100_000, 0)).unwrap();
    let server = server_for(&files).await;
    let summary = push(&server, &files).await;
    let names =
        |paths: &[usize]| paths.iter().map(|path| files.infos[*path].path.clone()).collect::<BTreeSet<_>>();
    assert_eq!(
        summary.pushed.iter().map(|done| done.path.clone()).collect::<BTreeSet<_>>(),
        names(&[good, other])
    );
    assert_eq!(summary.failed[0].path, files.infos[damaged].path);
    assert!(matches!(summary.failed[0].error, Error::Dump { .. }), "{summary:?}");
    assert_eq!(summary.not_tried.len(), 1);
    assert_eq!(summary.not_tried[0].path, files.infos[referrer].path);
    assert_eq!(summary.not_tried[0].failed_reference.as_ref(), Some(&files.infos[damaged].path));
    assert_eq!(server.state().committed.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_stops_one_target_and_not_the_other() {
    #[derive(Default)]
    struct Reads(AtomicU64, Mutex<Vec<TransferId>>);
    impl PushReporter for Reads {
        fn path_started(&self, id: TransferId, _: &StorePath, _: u64) {
            self.1.lock().unwrap().push(id);
        }
        fn path_progress(&self, _: TransferId, bytes: u64) {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
    }
    let files = Files::some();
    let nar_bytes: u64 = files.infos.iter().map(|info| info.nar_size).sum();
    let (one, two) = (server_for(&files).await, server_for(&files).await);
    let both = |reads: &Arc<Reads>| {
        let target = |server: &ChunkServer| PushTarget { api: api(&server.address, 3), plan: files.plan() };
        let reads: Arc<dyn PushReporter> = reads.clone();
        let targets = vec![target(&one), target(&two)];
        async move { execute_push_to(targets, &PushOptions::default(), &transfer(None), reads).await }
    };
    two.fail(|_, line| line.contains("/parts/").then_some(Fault::Status(403)));
    let reads = Arc::new(Reads::default());
    let summaries = both(&reads).await;
    assert!(summaries[0].is_complete(), "{:?}", summaries[0]);
    assert_all_there(&one, &files);
    assert!(matches!(summaries[1].failed[0].error, Error::Forbidden { .. }), "{:?}", summaries[1]);
    assert_eq!(summaries[1].failed.len() + summaries[1].not_tried.len(), files.infos.len());
    assert_eq!(reads.0.load(Ordering::Relaxed), nar_bytes, "each NAR was read once");

    two.fail(|_, _| None);
    let reads = Arc::new(Reads::default());
    let summaries = both(&reads).await;
    assert!(summaries.iter().all(PushSummary::is_complete), "{summaries:?}");
    assert_all_there(&two, &files);
    assert_eq!(reads.0.load(Ordering::Relaxed), nar_bytes);
    assert_eq!(reads.1.lock().unwrap().len(), files.infos.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_hacked_names_are_pushed_without_the_hack() {
    let mut files = Files::new();
    files.add(b"", &[]);
    let info = &mut files.infos[0];
    let folder = files.folder.path().join(info.path.to_string());
    std::fs::remove_file(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    for name in ["A", "a~nix~case~hack~1", "ab"] {
        std::fs::write(folder.join(name), Random::new(name.len() as u64).bytes(50_000)).unwrap();
    }
    let mut hasher = NarHasher::new();
    let mut nar = Vec::new();
    dump_nar(&folder, CaseHack::Strip, |bytes| {
        hasher.update(bytes);
        nar.extend_from_slice(bytes);
        Ok(())
    })
    .unwrap();
    (info.nar_hash, info.nar_size) = hasher.finish();
    let server = server_for(&files).await;
    let options = PushOptions { case_hack: CaseHack::Strip, ..PushOptions::default() };
    let target = PushTarget { api: api(&server.address, 3), plan: files.plan() };
    let summaries = execute_push_to(vec![target], &options, &transfer(None), Arc::new(Silent)).await;
    assert!(summaries[0].is_complete(), "{summaries:?}");
    assert_eq!(server.state().committed[0].1, nar);
}

/// Counts how often a push says that it sends whole NARs.
#[derive(Default)]
struct Fallbacks(AtomicUsize);

impl PushReporter for Fallbacks {
    fn falls_back(&self, _cache: &dormer_api::CacheName, reason: &str) {
        assert!(reason.contains("no"), "{reason}");
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A push that is faster than the server allows waits, and sends chunks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_is_too_fast_waits_and_sends_chunks_all_the_same() {
    let files = Files::some();
    let server = server_for(&files).await;
    server.fail(|number, _| (number < 2).then_some(Fault::Status(429)));
    let summary = push(&server, &files).await;
    assert!(summary.is_complete() && summary.by_chunks, "{summary:?}");
    assert_all_there(&server, &files);
}

#[tokio::test]
async fn a_server_without_the_route_gets_attics_api_unless_the_user_says_otherwise() {
    let mut files = Files::new();
    files.add(&files.contents(1, 1000, 0), &[]);
    // 200 stands for a server that speaks a later format, of any form.
    for status in [404, 405, 429, 200] {
        let server = Server::answering(move |_, line| {
            if status == 200 && line.contains("/_api/v2/") {
                Step::Answer(200, "", r#"{"format":2,"chunk_min":"none","cuts":[]}"#.to_owned())
            } else if line.contains("/_api/v2/") {
                let name = if status == 429 { "TooManySessions" } else { "NotFound" };
                Step::Answer(status, "", format!(r#"{{"code":{status},"error":"{name}","message":"no"}}"#))
            } else {
                Step::Answer(200, "", r#"{"kind":"Uploaded"}"#.to_owned())
            }
        })
        .await;
        let reporter = Arc::new(Fallbacks::default());
        let push = |choice| {
            let target = PushTarget { api: api(&server.address, 1), plan: files.plan() };
            let transfer = TransferOptions { api: choice, ..transfer(None) };
            let reporter = Arc::clone(&reporter);
            async move {
                execute_push_to(vec![target], &PushOptions::default(), &transfer, reporter).await.remove(0)
            }
        };
        let summary = push(PushApi::Best).await;
        assert!(summary.is_complete() && !summary.by_chunks, "{summary:?}");
        let lines: Vec<String> = server.requests().into_iter().map(|request| request.line).collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("PUT /_api/v2/caches/main/sessions/"));
        assert!(lines[1].starts_with("PUT /_api/v1/upload-path"));
        // Only what this server could do otherwise is worth a word.
        let is_told = matches!(status, 429 | 200);
        assert_eq!(reporter.0.load(Ordering::SeqCst), usize::from(is_told), "{status}");
        assert!(push(PushApi::Attic).await.is_complete());
        assert_eq!(server.requests().len(), 3);
        let summary = push(PushApi::Chunks).await;
        let error = &summary.failed[0].error;
        match status {
            429 => assert!(matches!(error, Error::Unavailable { status: 429, .. }), "{summary:?}"),
            _ => assert!(matches!(error, Error::NoChunkApi { .. }), "{summary:?}"),
        }
    }
}
