//! A lab in this process, a target in memory, and the reader's eye on it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use dormer_blobs::{Blobs, StoreBlobs};
use dormer_edge::EdgeKey;
use dormer_engine::{Clock, CreateCache, Engine, EngineSettings, IngestRequest, MasterKey, UpdateCache};
use dormer_index::{
    Cache, Index, JobIndex, NarRows, ObjectRows, PostgresIndex, PostgresOptions, PublishCounts, PublishIndex,
    PublishState, Removal, SqlIndex, SqliteIndex, SqliteOptions,
};
use dormer_nix::nar::{Node, encode_tree};
use dormer_nix::{BuildTrace, DocumentName, NarHash, NarInfo, StoreDir, StorePath, StorePathHash, TraceKey};
use dormer_publish::{Mode, Outcome, Publisher, Result, Silent, TargetSettings};
use dormer_stores::{FileKind, Store};
use dormer_testkit::services::Postgres;
use dormer_testkit::{
    BusyPublish, FaultPublish, Faults, FileEvent, Meanwhile, MemoryTarget, Random, create_postgres_index,
    object_for, package_nar, place_sqlite_index,
};
use tempfile::TempDir;

/// A clock that stands until it is moved.
#[derive(Debug, Default)]
pub(crate) struct HandClock(AtomicI64);

impl HandClock {
    pub(crate) fn advance(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> i64 {
        1_800_000_000 + self.0.load(Ordering::SeqCst)
    }
}

pub(crate) const SETTLE: i64 = 300;
pub(crate) const GRACE: i64 = 30 * 86_400;

/// The contracts of an index that publishing meets.
pub(crate) trait LabIndex: Index + PublishIndex + JobIndex {}

impl<T: Index + PublishIndex + JobIndex> LabIndex for T {}

/// PostgreSQL servers of this program. A test has one of them for itself.
const SERVERS: usize = 2;

thread_local! {
    static SERVER: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Lets the labs of this test have PostgreSQL, and returns the turn of the test. Tests on a server
/// take turns: a follower sees an outbox row when no older transaction of the whole server runs, so
/// a transaction of another lab would delay what a test expects at once.
pub(crate) async fn on_postgres() -> tokio::sync::MutexGuard<'static, ()> {
    static TURNS: [tokio::sync::Mutex<()>; SERVERS] = [const { tokio::sync::Mutex::const_new(()) }; SERVERS];
    let (turn, server) = tokio::select! {
        turn = TURNS[0].lock() => (turn, 0),
        turn = TURNS[1].lock() => (turn, 1),
    };
    SERVER.set(Some(server));
    turn
}

/// Of the steps of a sweep, every such one is taken in the usual run: on PostgreSQL, a lab costs a
/// tenth of a second. The long run takes all.
pub(crate) fn stride() -> usize {
    let is_usual = std::env::var_os("DORMER_TEST_LONG").is_none();
    if is_usual && SERVER.get().is_some() { 7 } else { 1 }
}

/// Makes two tests of each function: one with SQLite, one with PostgreSQL.
macro_rules! on_both_databases {
    ($($test:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test] async fn $test() { super::$test().await; })+
        }
        mod on_postgresql {
            $(#[tokio::test] async fn $test() {
                let _turn = crate::common::on_postgres().await;
                super::$test().await;
            })+
        }
    };
}
pub(crate) use on_both_databases;

/// A database of one lab; it goes with the value.
struct LabDatabase {
    server: &'static Postgres,
    url: String,
}

impl LabDatabase {
    /// `None`: the test runs on SQLite.
    async fn create() -> Option<Self> {
        // They sync what they acknowledge, because the index refuses a server that does not.
        static STARTED: [OnceLock<Postgres>; SERVERS] = [const { OnceLock::new() }; SERVERS];
        let number = SERVER.get()?;
        let server = STARTED[number].get_or_init(|| Postgres::start_with(&["max_connections=300"]));
        Some(Self { server, url: create_postgres_index(server).await })
    }

    async fn open(&self) -> SqlIndex {
        let options = PostgresOptions { connections_max: 3, ..PostgresOptions::default() };
        PostgresIndex::open(&self.url, options).await.expect("a new index opens")
    }
}

impl Drop for LabDatabase {
    fn drop(&mut self) {
        let name = self.url.rsplit('/').next().expect("a name");
        self.server.sql("postgres", &format!("DROP DATABASE {name} WITH (FORCE)"));
    }
}

/// A lab with a cache `main`, and a target.
pub(crate) struct Lab {
    _folder: TempDir,
    _database: Option<LabDatabase>,
    pub(crate) clock: Arc<HandClock>,
    pub(crate) index: Arc<dyn LabIndex>,
    pub(crate) engine: Engine,
    pub(crate) cache: Arc<Cache>,
    pub(crate) target: MemoryTarget,
    pub(crate) settings: TargetSettings,
}

impl Lab {
    pub(crate) async fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let database = LabDatabase::create().await;
        let index: Arc<dyn LabIndex> = if let Some(database) = &database {
            Arc::new(database.open().await)
        } else {
            let path = folder.path().join("index.sqlite");
            place_sqlite_index(&path).await;
            Arc::new(SqliteIndex::open(path, SqliteOptions::default()).await.expect("a new index opens"))
        };
        let clock = Arc::new(HandClock::default());
        let settings = EngineSettings {
            chunk_params: dormer_format::ChunkParams { min: 1024, avg: 4096, max: 16 * 1024 },
            zstd_level: 1,
            cpu_threads: 1,
            pack_wait: Duration::from_millis(1),
            ..EngineSettings::default()
        };
        let engine = Engine::new(
            Arc::clone(&index) as Arc<dyn Index>,
            Arc::new(StoreBlobs::in_memory()) as Arc<dyn Blobs>,
            MasterKey::from_bytes([9; 32]),
            settings,
            Arc::clone(&clock) as Arc<dyn Clock>,
        );
        let cache = create_cache(&engine, "main", true).await;
        let settings = TargetSettings {
            name: "edge".to_owned(),
            caches: vec!["*".parse().expect("a pattern")],
            request_timeout: Duration::ZERO,
            ..TargetSettings::default()
        };
        Self {
            _folder: folder,
            _database: database,
            clock,
            index,
            engine,
            cache,
            target: MemoryTarget::new(),
            settings,
        }
    }

    pub(crate) fn publisher(&self) -> Publisher {
        self.publisher_of(Arc::clone(&self.index) as Arc<dyn PublishIndex>, self.target.store())
    }

    pub(crate) fn crashing(&self, faults: &Arc<Faults>) -> Publisher {
        let index = FaultPublish::new(Arc::clone(&self.index) as Arc<dyn PublishIndex>, Arc::clone(faults));
        self.publisher_of(Arc::new(index), self.target.crashing(faults))
    }

    /// A publisher in a lab where something happens before each call of publishing's memory.
    pub(crate) fn publisher_meanwhile(&self, meanwhile: Meanwhile) -> (Publisher, Arc<BusyPublish>) {
        let index = BusyPublish::new(Arc::clone(&self.index) as Arc<dyn PublishIndex>, meanwhile);
        let index = Arc::new(index);
        let publisher = self.publisher_of(Arc::clone(&index) as Arc<dyn PublishIndex>, self.target.store());
        (publisher, index)
    }

    /// A run of another program, beside one that is under way.
    pub(crate) async fn publish_beside(self: Arc<Self>) -> Result<Outcome> {
        let store = self.target.store();
        self.run_beside(store, Mode::Follow).await
    }

    /// The same to this place.
    pub(crate) async fn run_beside(self: Arc<Self>, target: Store, mode: Mode) -> Result<Outcome> {
        let publisher = self.publisher_of(Arc::clone(&self.index) as Arc<dyn PublishIndex>, target);
        run_in_thread(publisher, mode).await
    }

    pub(crate) fn publisher_of(&self, index: Arc<dyn PublishIndex>, target: Store) -> Publisher {
        self.publisher_with(index, target, self.settings.clone())
    }

    /// A publisher with other settings than the lab's.
    pub(crate) fn publisher_with(
        &self,
        index: Arc<dyn PublishIndex>,
        target: Store,
        settings: TargetSettings,
    ) -> Publisher {
        Publisher::new(self.engine.clone(), index, target, settings, "test".to_owned(), Arc::new(Silent))
    }

    pub(crate) async fn publish(&self) -> Result<Outcome> {
        self.publisher().run(Mode::Follow).await
    }

    /// Pushes package `number`, whose contents are those of `seed`, with references.
    pub(crate) async fn push(&self, number: u8, seed: u64, references: &[u8]) {
        let references: Vec<StorePath> = references.iter().map(|number| path(*number)).collect();
        let nar = package_nar(&mut Random::new(seed), 3_000, &references);
        self.push_nar(number, &nar, &references, &[]).await;
    }

    pub(crate) async fn push_nar(&self, number: u8, nar: &[u8], references: &[StorePath], sigs: &[&str]) {
        let request = IngestRequest {
            store_dir: "/nix/store".to_owned(),
            expected: Some((NarHash::digest(nar), nar.len() as u64)),
            extra_memory_bytes: 0,
        };
        let mut ingest = self.engine.begin_ingest(request).await.expect("there is memory");
        ingest.write(nar).await.expect("a good NAR");
        let ingested = ingest.finish().await.expect("a whole NAR");
        let mut object = object_for(&path(number), references);
        object.deriver = Some(derivation().to_string());
        object.sigs = sigs.iter().map(|sig| (*sig).to_owned()).collect();
        self.engine.commit_object(&self.cache, ingested, object).await.expect("a commit");
    }

    /// Pushes package `number`, which holds debug info, with references.
    pub(crate) async fn push_debug(&self, number: u8, references: &[u8]) {
        self.push_debug_of(number, number, references).await;
    }

    /// Pushes package `number` with debug info of the program in package `program`.
    pub(crate) async fn push_debug_of(&self, number: u8, program: u8, references: &[u8]) {
        let references: Vec<StorePath> = references.iter().map(|number| path(*number)).collect();
        let file = Node::directory([(format!("ab{program:02x}.debug"), Node::file([number; 100]))]);
        let folders = ["lib", "debug", ".build-id", "00"];
        let tree = folders.iter().rev().fold(file, |node, name| Node::directory([(*name, node)]));
        self.push_nar(number, &encode_tree(&tree), &references, &[]).await;
    }

    /// Stores a log of the derivation that all packages come from.
    pub(crate) async fn put_log(&self, log: &str) {
        self.engine.put_log(&self.cache, derivation(), log.as_bytes().to_vec()).await.expect("a log");
    }

    /// Stores a trace of package `number`.
    pub(crate) async fn put_trace(&self, number: u8) {
        let trace = BuildTrace {
            key: trace_key(number),
            out_path: path(number),
            dependents: BTreeMap::new(),
            sigs: Vec::new(),
            is_keyed: false,
        };
        self.engine.put_trace(&self.cache, trace).await.expect("a trace");
    }

    pub(crate) async fn remove(&self, number: u8) {
        let until = self.clock.now() + GRACE;
        let hash = path(number).hash();
        self.index
            .remove_object(self.cache.id, &hash, Removal::WithGraceUntil(until), self.clock.now())
            .await
            .expect("a removal");
    }

    pub(crate) async fn remove_for_cause(&self, number: u8) {
        self.engine.remove_object(&self.cache, &path(number).hash(), None).await.expect("a removal");
    }

    pub(crate) async fn set_public(&self, is_public: bool) {
        let update = UpdateCache { is_public: Some(is_public), ..UpdateCache::default() };
        self.engine.update_cache(&self.cache, update).await.expect("an update");
    }

    /// Puts package `number` into the target, as if a lab had published it that is lost: neither
    /// the rows nor this lab know of it. Its NAR holds what that of package 1 does, which has to be
    /// there.
    pub(crate) async fn put_unknown(&self, number: u8) {
        let (files, nar) = (self.target.files(), self.unknown_nar());
        let known = &published_in(&files)[&path(1).hash()];
        let text = std::str::from_utf8(&files[&format!("main/{}.narinfo", path(1).hash())]).expect("text");
        let url = nar.strip_prefix("main/").expect("it is of this cache");
        let text = text.replace(&path(1).to_string(), &path(number).to_string()).replace(&known.url, url);
        let kind = FileKind { content_type: "x", cache_control: String::new() };
        let content = files[&format!("main/{}", known.url)].clone();
        let store = self.target.store();
        store.put(&nar, &kind, [content]).await.expect("memory");
        let narinfo = format!("main/{}.narinfo", path(number).hash());
        store.put(&narinfo, &kind, [text.into()]).await.expect("memory");
    }

    /// The name in the target of the NAR of an unknown package.
    pub(crate) fn unknown_nar(&self) -> String {
        let mut url = published_in(&self.target.files())[&path(1).hash()].url.clone();
        let other = if url.as_bytes()[10] == b'0' { "1" } else { "0" };
        url.replace_range(10..11, other);
        format!("main/{url}")
    }

    /// Fails if a reader can see a narinfo without its closure now.
    #[track_caller]
    pub(crate) fn check_now(&self, what: &str) {
        if let Err(why) = check(&self.target.files(), &BTreeSet::new()) {
            panic!("{what}: {why}");
        }
    }

    /// Fails if the counts of what is published differ from the rows.
    pub(crate) async fn check_counts(&self, what: &str) {
        const ALL: u32 = 1_000;
        for target in self.index.list_targets().await.expect("the index answers") {
            let (id, cache) = (target.id, self.cache.id);
            let page = ObjectRows::Page { bytes: 0..=255, after: None, limit: ALL };
            let objects = self.index.published_objects(id, cache, page).await.expect("a page");
            let page = NarRows::Page { bytes: 0..=255, after: None, limit: ALL };
            let nars = self.index.published_nars(id, cache, page).await.expect("a page");
            let nars: Vec<_> = nars.iter().filter(|nar| nar.uploaded).collect();
            let pending = self.index.pending_objects(id, cache, None, ALL).await.expect("a page");
            let rows = PublishCounts {
                published: objects.iter().filter(|object| object.state == PublishState::Published).count()
                    as u64,
                pending: pending.len() as u64,
                pending_since: pending.first().map(|object| object.since),
                nars: nars.len() as u64,
                file_bytes: nars.iter().map(|nar| nar.file_size).sum(),
            };
            let counts = self.index.publish_counts(id, cache).await.expect("the index answers");
            assert_eq!(counts, rows, "{what}");
        }
    }

    /// Numbers of the paths that are published now.
    pub(crate) fn published(&self) -> BTreeSet<u8> {
        published_in(&self.target.files()).keys().map(|hash| hash.as_bytes()[0]).collect()
    }

    pub(crate) fn nar_count(&self) -> usize {
        self.target.files().keys().filter(|name| name.contains("/nar/")).count()
    }

    /// Fails if a reader could ever have seen a narinfo without its closure. `upstream`: what
    /// another cache has.
    #[track_caller]
    pub(crate) fn check_every_moment(&self, upstream: &[u8], what: &str) {
        let upstream: BTreeSet<StorePathHash> = upstream.iter().map(|number| path(*number).hash()).collect();
        let mut files = BTreeMap::new();
        for (number, event) in self.target.events().into_iter().enumerate() {
            let name = match event {
                FileEvent::Put(name, content) => {
                    files.insert(name.clone(), content);
                    name
                }
                FileEvent::Delete(name) => {
                    files.remove(&name);
                    name
                }
            };
            if let Err(why) = check(&files, &upstream) {
                panic!("{what}: after event {number} ({name}): {why}");
            }
        }
    }
}

/// A run of another program.
pub(crate) async fn run_in_thread(publisher: Publisher, mode: Mode) -> Result<Outcome> {
    let (done, outcome) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let _ = done.send(runtime.expect("a runtime").block_on(publisher.run(mode)));
    });
    outcome.await.expect("the other program ends")
}

pub(crate) async fn create_cache(engine: &Engine, name: &str, is_public: bool) -> Arc<Cache> {
    let new = CreateCache {
        name: name.to_owned(),
        is_public,
        store_dir: "/nix/store".to_owned(),
        priority: 41,
        upstream_cache_key_names: vec!["upstream-1".to_owned()],
        secret_key: None,
        allow_replacement: true,
    };
    engine.create_cache(new).await.expect("a new cache")
}

pub(crate) fn path(number: u8) -> StorePath {
    let hash = dormer_nix::nix32::encode(&[number; 20]);
    format!("{hash}-package-{number}").parse().expect("a store path")
}

/// What all packages come from.
pub(crate) fn derivation() -> StorePath {
    format!("{}-package.drv", dormer_nix::nix32::encode(&[200; 20])).parse().expect("a store path")
}

fn trace_key(number: u8) -> TraceKey {
    TraceKey::Derivation { derivation: derivation(), output: format!("out-{number}") }
}

/// The name of a trace in the target.
pub(crate) fn trace_name(number: u8) -> String {
    format!("main/{}", DocumentName::Trace(trace_key(number)))
}

/// The name of the link to the debug info of package `number` in the target.
pub(crate) fn debug_name(number: u8) -> String {
    format!("main/debuginfo/00ab{number:02x}.debug")
}

/// The name of the log in the target.
pub(crate) fn log_name() -> String {
    format!("main/{}", DocumentName::Log(derivation()))
}

pub(crate) fn published_in(files: &BTreeMap<String, Bytes>) -> BTreeMap<StorePathHash, NarInfo> {
    files
        .iter()
        .filter_map(|(name, content)| match EdgeKey::parse(name) {
            Ok(EdgeKey::Narinfo(_, hash)) => {
                let text = std::str::from_utf8(content).expect("a narinfo is text");
                Some((hash, NarInfo::parse(text, &StoreDir::default()).expect("a good narinfo")))
            }
            _ => None,
        })
        .collect()
}

/// As Nix reads: every narinfo's NAR is there as it says, and everything it refers to.
pub(crate) fn check(
    files: &BTreeMap<String, Bytes>,
    upstream: &BTreeSet<StorePathHash>,
) -> std::result::Result<(), String> {
    let narinfos = published_in(files);
    for (name, content) in files {
        let belongs = match EdgeKey::parse(name) {
            Ok(EdgeKey::Document(_, DocumentName::Log(derivation))) => {
                narinfos.values().any(|narinfo| narinfo.deriver.as_ref() == Some(&derivation))
            }
            Ok(EdgeKey::Document(_, DocumentName::Trace(key))) => {
                let trace = BuildTrace::parse(&key, content).expect("a good trace");
                narinfos.contains_key(&trace.out_path.hash())
            }
            Ok(EdgeKey::Document(_, DocumentName::DebugInfo(_))) => {
                let link: serde_json::Value = serde_json::from_slice(content).expect("a good link");
                let nar = link["archive"].as_str().and_then(|archive| archive.strip_prefix("../"));
                files.contains_key(&format!("main/{}", nar.expect("a NAR beside it")))
            }
            _ => true,
        };
        if !belongs {
            return Err(format!("{name} belongs to nothing that is there"));
        }
    }
    for (hash, narinfo) in &narinfos {
        let Some(nar) = files.get(&format!("main/{}", narinfo.url)) else {
            return Err(format!("{hash} names {}, which is not there", narinfo.url));
        };
        if narinfo.file_size != Some(nar.len() as u64) || narinfo.file_hash != Some(NarHash::digest(nar)) {
            return Err(format!("{hash} says another size or hash than {} has", narinfo.url));
        }
        for reference in &narinfo.references {
            let reference = reference.hash();
            if !narinfos.contains_key(&reference) && !upstream.contains(&reference) {
                return Err(format!("{hash} refers to {reference}, which is not there"));
            }
        }
    }
    Ok(())
}
