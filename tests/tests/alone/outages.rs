//! What a lab in production does while its database or its store fails under load: real PostgreSQL
//! and real SeaweedFS are killed, restarted, made slow and made to lie, while pushers push and
//! readers read.
//!
//! In each story a client may be told to come back (503 or 429 with Retry-After) or be cut off. It
//! is never told that something is missing that was acknowledged, never given wrong bytes as if
//! they were whole, and never a 500; and when the fault is over, everything that was acknowledged
//! reads back and pushes are taken. docs/RELIABILITY.md has the table.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dormer_nix::NarHash;
use dormer_testkit::services::{Fate, FaultProxy, Postgres, SeaweedFs};
use dormer_tests::http::{self, Connection, Reply};
use dormer_tests::{Lab, LabOptions, nars, times};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

const PUSHERS: u64 = 4;
const PUSHERS_USIZE: usize = 4;
const READERS: u64 = 3;

/// How long a lab may take to be well again once its parts are.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// A lab whose parts are this test's own.
struct Site {
    lab: Lab,
    store: SeaweedFs,
    /// Between the replicas and the store.
    network: FaultProxy,
    database: Postgres,
}

impl Site {
    fn start() -> Self {
        let store = SeaweedFs::start();
        let network = FaultProxy::start(store.endpoint());
        let database = Postgres::start();
        let environment = [
            ("DORMER_DATABASE_URL", database.create_database()),
            ("DORMER_STORAGE_ENDPOINT", network.endpoint()),
            ("DORMER_STORAGE_BUCKET", store.new_bucket()),
            ("DORMER_LIMITS_DRAIN_DELAY", "2s".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
        let lab = Lab::start_production_with(LabOptions { environment, ..LabOptions::default() });
        Self { lab, store, network, database }
    }
}

/// A path that its pusher was told is safe.
#[derive(Debug, Clone)]
pub(crate) struct Safe {
    pub(crate) path_hash: String,
    pub(crate) nar_hash: NarHash,
}

/// What clients saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) safe: Mutex<Vec<Safe>>,
    /// How many answers of each kind; what must not be is named in full.
    answers: Mutex<BTreeMap<String, u64>>,
    pub(crate) wrong: Mutex<Vec<String>>,
    read: AtomicU64,
}

impl Seen {
    fn count(&self, what: &str) {
        *self.answers.lock().unwrap().entry(what.to_owned()).or_default() += 1;
    }

    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    /// Sorts out what a server may say at any time. Gives the answers that need a closer look.
    fn usual(&self, kind: &str, answer: std::io::Result<Reply>) -> Option<Reply> {
        match answer {
            Err(_) => self.count(&format!("{kind}: cut off")),
            Ok(reply) if reply.status == 200 => return Some(reply),
            Ok(reply) if matches!(reply.status, 429 | 503) && reply.header("retry-after").is_some() => {
                self.count(&format!("{kind}: {} with Retry-After", reply.status));
            }
            Ok(reply) => self.wrong(format!("{kind}: {reply:?}")),
        }
        None
    }

    pub(crate) fn safe(&self) -> Vec<Safe> {
        self.safe.lock().unwrap().clone()
    }
}

fn exchange(address: &str, head: &str, body: &[u8]) -> std::io::Result<Reply> {
    let mut connection = Connection::open(address)?;
    connection.exchange(&[head.as_bytes(), body].concat())
}

fn get(address: &str, path: &str) -> std::io::Result<Reply> {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"), b"")
}

/// Pushes one NAR, a part of which all NARs have.
pub(crate) fn push(lab: (&str, &str), random: &mut SmallRng, seen: &Seen) {
    let (address, token) = lab;
    let mut contents = vec![0; random.random_range(1..700_000)];
    random.fill(&mut contents[..]);
    contents.extend((0..50_000_u32).flat_map(u32::to_le_bytes));
    let nar = nars::file(&contents);
    let info = nars::attic_info("main", &nar, "pushed");
    let head = format!(
        "PUT /_api/v1/upload-path HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
         X-Attic-Nar-Info: {info}\r\nContent-Length: {}\r\n\r\n",
        nar.len()
    );
    if seen.usual("push", exchange(address, &head, &nar)).is_some() {
        seen.count("push: 200");
        let safe = Safe { path_hash: nars::path_hash(&nar), nar_hash: NarHash::digest(&nar) };
        seen.safe.lock().unwrap().push(safe);
    }
}

/// Reads one path that was acknowledged. Whether it came back whole.
pub(crate) fn read(address: &str, safe: &Safe, seen: &Seen) -> bool {
    let narinfo = format!("/main/{}.narinfo", safe.path_hash);
    let Some(narinfo) = seen.usual("narinfo", get(address, &narinfo)) else { return false };
    seen.count("narinfo: 200");
    let text = narinfo.text();
    let url = text.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
    let Some(nar) = seen.usual("NAR", get(address, &format!("/main/{url}"))) else { return false };
    let nar = zstd::decode_all(nar.body.as_slice()).map(|nar| NarHash::digest(&nar));
    if nar.as_ref().ok() != Some(&safe.nar_hash) {
        seen.wrong(format!("a whole answer with other bytes for {safe:?}: {nar:?}"));
        return false;
    }
    seen.count("NAR: 200");
    seen.read.fetch_add(1, Ordering::SeqCst);
    true
}

/// Pushers and readers at work while `fault` does its worst; then everything that was acknowledged
/// must be there, and pushes be taken. Prints what clients saw, and returns what they were told is
/// safe.
#[expect(clippy::print_stdout, reason = "figures, and a seed to repeat a failure with")]
fn survives(name: &str, site: &mut Site, fault: impl FnOnce(&mut Site, &Seen)) -> Vec<Safe> {
    let (address, token) = (site.lab.address().to_owned(), site.lab.admin_token());
    let lab = (address.as_str(), token.as_str());
    let seed = rand::random::<u64>();
    println!("{name}: seed {seed}");
    let seen = Seen::default();
    push(lab, &mut SmallRng::seed_from_u64(seed), &seen);
    assert_eq!(seen.safe().len(), 1, "well before the fault: {seen:?}");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        // Set also when the fault panics: the test would otherwise wait for its pushers for ever.
        let _end = SetOnDrop(&done);
        let (seen, done) = (&seen, &done);
        for number in 1..=PUSHERS {
            scope.spawn(move || {
                let mut random = SmallRng::seed_from_u64(seed.wrapping_add(number));
                while !done.load(Ordering::SeqCst) {
                    push(lab, &mut random, seen);
                    thread::sleep(Duration::from_millis(50));
                }
            });
        }
        for number in 1..=READERS {
            scope.spawn(move || {
                let mut random = SmallRng::seed_from_u64(seed.wrapping_sub(number));
                while !done.load(Ordering::SeqCst) {
                    let all = seen.safe();
                    read(lab.0, &all[random.random_range(0..all.len())], seen);
                    thread::sleep(Duration::from_millis(20));
                }
            });
        }
        thread::sleep(Duration::from_secs(1));
        fault(site, seen);
        thread::sleep(Duration::from_secs(1));
    });
    let before = seen.safe().len();
    let begin = Instant::now();
    let mut random = SmallRng::seed_from_u64(!seed);
    while seen.safe().len() == before {
        assert!(begin.elapsed() < PATIENCE, "{name}: pushes are not taken again: {:?}", seen.answers);
        push(lab, &mut random, &seen);
        thread::sleep(Duration::from_millis(200));
    }
    for safe in seen.safe() {
        while !read(lab.0, &safe, &seen) {
            assert!(begin.elapsed() < PATIENCE, "{name}: acknowledged and not readable: {safe:?}");
            assert_eq!(*seen.wrong.lock().unwrap(), Vec::<String>::new(), "{name}");
            thread::sleep(Duration::from_millis(200));
        }
    }
    assert_eq!(*seen.wrong.lock().unwrap(), Vec::<String>::new(), "{name}");
    let mut report = format!("{name}: {} paths acknowledged, all there;", seen.safe().len());
    for (what, count) in seen.answers.lock().unwrap().iter() {
        write!(report, " {what} × {count};").unwrap();
    }
    println!("{report}");
    seen.safe()
}

/// Sets the flag at the end of a scope, also when the test panics there.
pub(crate) struct SetOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Longer under `./test --long`.
fn seconds(usual: u64) -> Duration {
    Duration::from_secs(if times(1) > 1 { usual * 4 } else { usual })
}

#[test]
fn the_store_goes_away_and_comes_back() {
    let _turn = crate::turn(file!());
    let mut site = Site::start();
    survives("store killed and restarted", &mut site, |site, _| {
        site.store.kill();
        thread::sleep(seconds(5));
        site.store.restart();
    });
    survives("store unreachable", &mut site, |site, _| {
        site.network.set_plan(|_, _| Fate::Drop);
        thread::sleep(seconds(5));
        site.network.set_plan(|_, _| Fate::Pass);
    });
}

#[test]
fn the_store_refuses_a_third_and_cuts_and_loses_answers() {
    let _turn = crate::turn(file!());
    let mut site = Site::start();
    survives("store answers 503 to 30 %", &mut site, |site, _| {
        site.network.set_plan(|_, number| match number % 10 {
            0 | 3 | 7 => Fate::Answer { status: 503, retry_after: None },
            _ => Fate::Pass,
        });
        thread::sleep(seconds(5));
        site.network.set_plan(|_, _| Fate::Pass);
    });
    survives("bodies cut, answers lost", &mut site, |site, _| {
        site.network.set_plan(|line, number| match number % 3 {
            0 if line.starts_with("GET ") => Fate::CutAnswer(10_000),
            0 => Fate::LoseAnswer,
            _ => Fate::Pass,
        });
        thread::sleep(seconds(5));
        site.network.set_plan(|_, _| Fate::Pass);
    });
}

#[test]
fn the_database_is_restarted_and_killed() {
    let _turn = crate::turn(file!());
    let mut site = Site::start();
    for round in 0..times(2) {
        survives(&format!("database restarted, round {round}"), &mut site, |site, _| {
            site.database.restart();
        });
    }
    survives("database killed, and away for a while", &mut site, |site, _| {
        site.database.kill();
        thread::sleep(seconds(3));
        site.database.restart();
    });
}

/// After each round the database and the bucket themselves are looked at: the invariants of
/// docs/STORAGE.md hold, and what the dead left behind is room to which nothing refers. In the end
/// what was acknowledged in any round is read back.
#[test]
fn replicas_are_killed_in_mid_push() {
    let _turn = crate::turn(file!());
    let mut site = Site::start();
    let mut random = SmallRng::seed_from_u64(rand::random());
    let mut all: Vec<Safe> = Vec::new();
    for round in 0..times(3) {
        let wait = Duration::from_millis(random.random_range(0..1500));
        // All of them, and every other time one of the two: the other goes on.
        let name = if round % 2 == 0 { "replicas killed" } else { "one replica killed" };
        all.extend(survives(&format!("{name}, round {round}"), &mut site, |site, seen| {
            thread::sleep(wait);
            if round % 2 == 0 {
                site.lab.kill();
            } else {
                site.lab.kill_one(random.random_range(0..2));
                let (before, begin) = (seen.safe().len(), Instant::now());
                while seen.safe().len() < before + PUSHERS_USIZE {
                    assert!(begin.elapsed() < PATIENCE, "the other replica takes no pushes");
                    thread::sleep(Duration::from_millis(20));
                }
            }
            site.lab.restart();
        }));
        let acknowledged: Vec<NarHash> = all.iter().map(|safe| safe.nar_hash).collect();
        let leaks = site.lab.inspection().check(&acknowledged);
        println!("round {round}: invariants 1 to 5 hold for {} paths; {leaks}", all.len());
        assert_eq!(leaks.nars, 0, "a NAR's row and its name are one commit");
        // What was under way when they were killed, and no more: each pusher fills at most one pack
        // with others.
        let killed = round + 1;
        assert!(leaks.packs <= killed * PUSHERS_USIZE, "{leaks} after {killed} rounds");
    }
    let seen = Seen::default();
    for safe in &all {
        assert!(read(site.lab.address(), safe, &seen), "{safe:?}: {seen:?}");
    }
}

#[test]
fn replicas_restart_in_turn_and_no_request_fails() {
    let _turn = crate::turn(file!());
    let mut site = Site::start();
    for round in 0..times(1) {
        survives(&format!("replicas restarted in turn, round {round}"), &mut site, |site, seen| {
            // A silent client, or one that sent half a request, delays no other client.
            let held: Vec<_> = site
                .lab
                .replicas()
                .into_iter()
                .map(|replica| {
                    let mut kept = Connection::open(replica).unwrap();
                    let ask = b"GET /main/nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n";
                    assert_eq!(kept.exchange(ask).unwrap().status, 200);
                    let mut half = http::connect(replica);
                    half.write_all(b"GET /main/nix-cache-info HTTP/1.1\r\nHos").unwrap();
                    (http::connect(replica), kept, half)
                })
                .collect();
            site.lab.restart_in_turn();
            drop(held);
            assert!(
                !site.lab.log().contains("did not end in time"),
                "nothing had to be cut:\n{}",
                site.lab.log()
            );
            let answers = seen.answers.lock().unwrap();
            assert!(answers.keys().all(|what| what.ends_with(": 200")), "{answers:?}");
        });
    }
}
