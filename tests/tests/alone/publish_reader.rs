//! A reader that never stops: while paths with closures are pushed, changed and removed, and
//! `dormer publish` is started, stopped and killed, a reader that finds a published path finds all
//! of its closure, and every byte is right.
//!
//! A reader walks as Nix does: a narinfo, its NAR, the narinfos of what it refers to. What it finds
//! missing counts unless the path that named it is gone, or is another one, by then: that is asked
//! again before and after, three times.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dormer_nix::{NarHash, NarInfo, StoreDir};
use dormer_testkit::services::SeaweedFs;
use dormer_tests::{Lab, LabOptions, Nix, Run, http, nars, times};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

/// Paths of the lab. Each may refer to those before it.
const PATHS: usize = 24;

/// What another cache has, and ours never.
const UPSTREAM: &str = "/nix/store/zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-upstream";

/// Far more than a run takes; for one that hangs.
const PATIENCE: Duration = Duration::from_mins(10);

fn store_path(number: usize) -> String {
    format!("/nix/store/{}-package-{number}", &NarHash::digest(&number.to_le_bytes()).to_nix32()[..32])
}

fn hash_of(path: &str) -> &str {
    &path["/nix/store/".len()..][..32]
}

/// What happens meanwhile, counted.
#[derive(Default)]
struct Counts {
    pushes: AtomicUsize,
    removals: AtomicUsize,
    kills: AtomicUsize,
    runs: AtomicUsize,
    walks: AtomicUsize,
    closures: AtomicUsize,
    by_nix: AtomicUsize,
}

fn count(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::Relaxed)
}

struct Story {
    lab: Lab,
    s3: SeaweedFs,
    bucket: String,
    counts: Counts,
    stopped: AtomicBool,
    begin: Instant,
}

impl Story {
    fn start() -> Self {
        let s3 = SeaweedFs::start_readable_by_anybody();
        let bucket = s3.new_bucket();
        let access = s3.access();
        let settings = format!(
            "[[edge]]\nname = \"edge\"\ntype = \"s3\"\nbucket = {bucket:?}\nregion = {:?}\nendpoint = {:?}\n\
             caches = [\"main\"]\nsettle-time = \"1s\"\nlease = \"3s\"\ntimeout = \"2s\"\n\
             [edge.credentials]\naccess_key_id = {:?}\nsecret_access_key = {:?}\n",
            access.region, access.endpoint, access.access_key_id, access.secret_access_key
        );
        let lab = Lab::start_with(LabOptions { settings: Some(settings), ..LabOptions::default() });
        lab.login();
        Self {
            lab,
            s3,
            bucket,
            counts: Counts::default(),
            stopped: AtomicBool::new(false),
            begin: Instant::now(),
        }
    }

    /// Whether to go on. Panics when it takes too long.
    fn goes_on(&self) -> bool {
        assert!(self.begin.elapsed() < PATIENCE * u32::try_from(times(1)).unwrap(), "it takes too long");
        !self.stopped.load(Ordering::Relaxed)
    }

    fn push(&self, number: usize, references: &[usize], upstream: bool, salt: u64) {
        let nar = nars::file(&[&salt.to_le_bytes()[..], &vec![b'x'; 20_000 * (number % 5) + 10]].concat());
        let path = store_path(number);
        let mut refs: Vec<String> = references.iter().map(|number| store_path(*number)).collect();
        refs.extend(upstream.then(|| UPSTREAM.to_owned()));
        let refs: Vec<&str> = refs.iter().map(|path| &path["/nix/store/".len()..]).collect();
        let info = json!({
            "cache": "main", "store_path_hash": hash_of(&path), "store_path": path, "references": refs,
            "system": null, "deriver": null, "sigs": [], "ca": null,
            "nar_hash": nars::nar_hash_hex(&nar), "nar_size": nar.len(),
        });
        let authorization = format!("Bearer {}", self.lab.admin_token());
        let headers = [("Authorization", authorization.as_str()), ("X-Attic-Nar-Info", &info.to_string())];
        let reply = http::request(self.lab.address(), "PUT", "/_api/v1/upload-path", &headers, &nar);
        assert_eq!(reply.status, 200, "{reply:?}");
        self.counts.pushes.fetch_add(1, Ordering::Relaxed);
    }

    /// The lab's users: they push what refers to something behind it, change paths, and remove any
    /// of them at any time.
    fn use_the_lab(&self, mut random: StdRng) {
        let mut live: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        while self.goes_on() {
            let number = random.random_range(0..PATHS);
            if random.random_ratio(1, 6) {
                if live.remove(&number).is_some() {
                    self.lab.dormer(&["cache", "remove-path", "main", &store_path(number)]).succeeds();
                    self.counts.removals.fetch_add(1, Ordering::Relaxed);
                }
            } else {
                let references: Vec<usize> = (0..number).filter(|_| random.random_ratio(1, 5)).collect();
                for reference in &references {
                    if !live.contains_key(reference) {
                        self.push(*reference, &[], false, 0);
                        live.insert(*reference, Vec::new());
                    }
                }
                self.push(number, &references, random.random_ratio(1, 8), random.random_range(0..3));
                live.insert(number, references);
            }
            thread::sleep(Duration::from_millis(random.random_range(0..60)));
        }
    }

    fn spawn_publish(&self, arguments: &[&str]) -> Child {
        let mut all = vec!["publish", "edge"];
        all.extend(arguments);
        let mut command = self.lab.server_process(&all);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Runs that end by themselves, ones that go on until they are asked to stop, and ones that are
    /// killed.
    fn keep_publishing(&self, mut random: StdRng) {
        while self.goes_on() {
            match random.random_range(0..4) {
                0 => {
                    let watching = self.spawn_publish(&["--watch"]);
                    thread::sleep(Duration::from_millis(random.random_range(500..3_000)));
                    Run::of(Command::new("kill").args(["-TERM", &watching.id().to_string()])).succeeds();
                    Run::wait_for(watching).succeeds();
                }
                1 => {
                    let mut killed = self.spawn_publish(&[]);
                    thread::sleep(Duration::from_millis(random.random_range(20..300)));
                    let ended = killed.try_wait().unwrap().is_some();
                    killed.kill().unwrap();
                    killed.wait().unwrap();
                    self.counts.kills.fetch_add(usize::from(!ended), Ordering::Relaxed);
                }
                _ => {
                    Run::wait_for(self.spawn_publish(&[])).succeeds();
                }
            }
            self.counts.runs.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn get(&self, name: &str) -> http::Reply {
        let address = self.s3.endpoint().trim_start_matches("http://");
        http::get(address, &format!("/{}/main/{name}", self.bucket), None)
    }

    /// A narinfo and what tells this writing of it from another one.
    fn narinfo(&self, path: &str) -> Option<(NarInfo, Vec<String>)> {
        let reply = self.get(&format!("{}.narinfo", hash_of(path)));
        if reply.status == 404 || !reply.complete {
            return None;
        }
        assert_eq!(reply.status, 200, "{reply:?}");
        let version = ["etag", "last-modified"].map(|name| reply.header(name).unwrap_or_default().to_owned());
        Some((NarInfo::parse(&reply.text(), &StoreDir::default()).unwrap(), version.to_vec()))
    }

    /// Whether something that this very narinfo names is missing, and the narinfo is there all the
    /// time.
    fn is_missing_under(&self, path: &str, version: &[String], is_there: impl Fn() -> bool) -> bool {
        let same = || self.narinfo(path).is_some_and(|(_, now)| now == version);
        (0..3).all(|_| same() && !is_there() && same())
    }

    /// The bytes behind a narinfo, checked as Nix does.
    fn check_nar(&self, path: &str, narinfo: &NarInfo, version: &[String]) -> bool {
        let reply = self.get(&narinfo.url);
        if reply.status != 200 || !reply.complete {
            let missing = self.is_missing_under(path, version, || {
                let again = self.get(&narinfo.url);
                again.status == 200 && again.complete
            });
            assert!(!missing, "{path} is published and {} is not there: {reply:?}", narinfo.url);
            return false;
        }
        assert_eq!(narinfo.file_size, Some(reply.body.len() as u64), "{path}");
        assert_eq!(narinfo.file_hash, Some(NarHash::digest(&reply.body)), "{path}");
        let nar = zstd::decode_all(reply.body.as_slice()).unwrap();
        assert_eq!((NarHash::digest(&nar), nar.len() as u64), (narinfo.nar_hash, narinfo.nar_size), "{path}");
        true
    }

    /// Walks the closure of a path. `None` if it was not there, or went away on the way; else
    /// whether all of it is ours.
    fn walk(&self, root: &str) -> Option<bool> {
        let mut ours = true;
        let mut seen = BTreeSet::from([root.to_owned()]);
        let mut open = vec![(root.to_owned(), self.narinfo(root)?)];
        while let Some((path, (narinfo, version))) = open.pop() {
            self.counts.walks.fetch_add(1, Ordering::Relaxed);
            if !self.check_nar(&path, &narinfo, &version) {
                return None;
            }
            for reference in &narinfo.references {
                let reference = format!("/nix/store/{reference}");
                if reference == UPSTREAM {
                    ours = false;
                    continue;
                }
                if !seen.insert(reference.clone()) {
                    continue;
                }
                let Some(found) = self.narinfo(&reference) else {
                    let missing =
                        self.is_missing_under(&path, &version, || self.narinfo(&reference).is_some());
                    assert!(!missing, "{path} is published, and {reference}, which it refers to, is not");
                    return None;
                };
                open.push((reference, found));
            }
        }
        Some(ours)
    }

    fn read(&self, mut random: StdRng) {
        while self.goes_on() {
            match self.walk(&store_path(random.random_range(0..PATHS))) {
                Some(_) => _ = self.counts.closures.fetch_add(1, Ordering::Relaxed),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Real Nix, with signatures required, each time into an empty store.
    fn read_by_nix(&self, mut random: StdRng) {
        let url = format!("{}/{}/main", self.s3.endpoint(), self.bucket);
        let machine = self.lab.machine("reader", Nix::NEWEST);
        machine.configure(&[self.lab.public_key("main")]);
        while self.goes_on() {
            let root = store_path(random.random_range(0..PATHS));
            // Paths with something of upstream's would send Nix to a cache that is not there.
            if self.walk(&root) != Some(true) {
                continue;
            }
            let Some((_, before)) = self.narinfo(&root) else { continue };
            machine.forget_caches();
            let fetched = machine.substitute(&url, &root);
            if fetched.is_success() {
                machine.delete(&machine.closure(&root));
                self.counts.by_nix.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            // It may have gone, or have another closure, by now.
            let after = self.narinfo(&root);
            let unchanged = after.is_some_and(|(_, now)| now == before) && self.walk(&root) == Some(true);
            if unchanged {
                machine.forget_caches();
                let again = machine.substitute(&url, &root);
                let still = self.narinfo(&root).is_some_and(|(_, now)| now == before);
                assert!(again.is_success() || !still, "{fetched}\n{again}");
            }
            machine.run("nix-store", &["--gc"]);
        }
    }
}

#[test]
fn a_reader_that_never_stops_finds_every_closure_whole() {
    let _turn = crate::turn(file!());
    let seed: u64 =
        env::var("DORMER_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("DORMER_TEST_SEED={seed} repeats its choices");
    let story = Story::start();
    let random = |stream: u64| StdRng::seed_from_u64(seed ^ (stream << 32));
    thread::scope(|scope| {
        let story = &story;
        let threads = [
            scope.spawn(move || story.use_the_lab(random(1))),
            scope.spawn(move || story.keep_publishing(random(2))),
            scope.spawn(move || story.read(random(3))),
            scope.spawn(move || story.read_by_nix(random(4))),
        ];
        let counts = &story.counts;
        let closures = if env::var_os("DORMER_TEST_LONG").is_some() { 10_000 } else { 500 };
        let (by_nix, kills) = (times(50), times(4));
        while story.goes_on() {
            let enough = count(&counts.closures) >= closures
                && count(&counts.by_nix) >= by_nix
                && count(&counts.kills) >= kills;
            let failed = threads.iter().any(thread::ScopedJoinHandle::is_finished);
            if enough || failed {
                story.stopped.store(true, Ordering::Relaxed);
            }
            thread::sleep(Duration::from_millis(100));
        }
    });
    let counts = &story.counts;
    println!(
        "{} closures ({} paths) and {} by Nix read whole, during {} pushes, {} removals, {} runs of publish of which {} were killed, in {} s",
        count(&counts.closures),
        count(&counts.walks),
        count(&counts.by_nix),
        count(&counts.pushes),
        count(&counts.removals),
        count(&counts.runs),
        count(&counts.kills),
        story.begin.elapsed().as_secs(),
    );
    // With nobody at work any more, one run brings everything that can be there.
    thread::sleep(Duration::from_secs(1));
    story.lab.server_command(&["publish", "edge"]).succeeds();
    let left = (0..PATHS).filter(|number| story.walk(&store_path(*number)).is_some()).count();
    assert!(left > 0);
}
