//! Many clients at once, for a minute (ten under `./test --long`): no error but "come back later",
//! and memory that stays flat. Then the same clients at half the rate that this was, each request
//! at its own time whatever became of the one before.
//!
//! What is counted is asserted, what is timed is only printed: machines are noisy.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use dormer_nix::NarHash;
use dormer_tests::http::{Connection, Reply};
use dormer_tests::{Lab, http, nars, times};
use rand::{RngExt as _, SeedableRng as _};

const CLIENTS: u32 = 200;
/// Of a hundred requests, so many are for narinfos; the others read NARs or push.
const SMALL: u32 = 85;
/// Largest NAR; the mean is half of it.
const NAR_BYTES_MAX: usize = 2_000_000;
/// What a replica may take in all.
const MEMORY_BYTES_MAX: u64 = 384 * 1024 * 1024;
/// How much more it may take in the second half of the time at saturation than in the first, while
/// the caches fill.
const MEMORY_GROWTH_MAX: u64 = 48 * 1024 * 1024;
/// One request in so many may be told to come back later (429, 503): two hundred clients at once
/// are within the default limits.
const REFUSED_AT_SATURATION: usize = 20;
const REFUSED_AT_HALF: usize = 100;

/// A path that was pushed and acknowledged.
#[derive(Debug, Clone)]
struct Pushed {
    path_hash: String,
    nar_hash: NarHash,
    url: String,
}

#[derive(Debug, Default)]
struct Tally {
    /// Answers by what was asked and their status.
    answers: BTreeMap<(&'static str, u16), usize>,
    /// Seconds of the narinfo hits.
    hits: Vec<f64>,
    failures: Vec<String>,
}

struct Client<'a> {
    lab: &'a Lab,
    token: &'a str,
    random: rand::rngs::SmallRng,
    connection: Option<Connection>,
    tally: Tally,
}

impl Client<'_> {
    fn new<'a>(lab: &'a Lab, token: &'a str, seed: u64) -> Client<'a> {
        let random = rand::rngs::SmallRng::seed_from_u64(seed);
        Client { lab, token, random, connection: None, tally: Tally::default() }
    }

    /// One request; what must not happen is noted, and `None` returned.
    fn ask(&mut self, what: &'static str, expected: u16, request: &[u8]) -> Option<Reply> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => match Connection::open(self.lab.address()) {
                Ok(connection) => connection,
                Err(error) => return self.fail(format!("{what}: connect: {error}")),
            },
        };
        let reply = match connection.exchange(request) {
            Ok(reply) => reply,
            Err(error) => return self.fail(format!("{what}: {error}")),
        };
        if !connection.is_closed() {
            self.connection = Some(connection);
        }
        *self.tally.answers.entry((what, reply.status)).or_default() += 1;
        match reply.status {
            429 | 503 => {
                let wait = reply.header("retry-after").and_then(|text| text.parse::<u64>().ok());
                match wait {
                    Some(seconds) => thread::sleep(Duration::from_secs(seconds.min(2))),
                    None => return self.fail(format!("{what}: no Retry-After: {reply:?}")),
                }
                None
            }
            status if status == expected => Some(reply),
            _ => self.fail(format!("{what}: {reply:?}")),
        }
    }

    fn fail(&mut self, failure: String) -> Option<Reply> {
        self.tally.failures.push(failure);
        None
    }

    fn get(&mut self, what: &'static str, expected: u16, path: &str) -> Option<Reply> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.lab.address());
        self.ask(what, expected, request.as_bytes())
    }

    /// `begin` is when it should have begun: a client that waits for an earlier request also waits
    /// for this one.
    fn hit(&mut self, pushed: &Pushed, begin: Instant) {
        if self.get("hit", 200, &format!("/main/{}.narinfo", pushed.path_hash)).is_some() {
            self.tally.hits.push(begin.elapsed().as_secs_f64());
        }
    }

    fn miss(&mut self) {
        let nobody = nars::path_hash(&self.random.random::<[u8; 16]>());
        self.get("miss", 404, &format!("/main/{nobody}.narinfo"));
    }

    fn read(&mut self, pushed: &Pushed) {
        let Some(reply) = self.get("nar", 200, &format!("/main/{}", pushed.url)) else { return };
        let nar = zstd::decode_all(reply.body.as_slice());
        if !nar.as_ref().is_ok_and(|nar| NarHash::digest(nar) == pushed.nar_hash) {
            self.fail(format!("other bytes than were pushed: {pushed:?}"));
        }
    }

    /// One request of the mix, a range of 0 to 100, or a push and a look at what it made.
    fn act(&mut self, pushed: &Mutex<Vec<Pushed>>, mix: Range<u32>, begin: Instant) {
        let known = {
            let pushed = pushed.lock().unwrap();
            pushed[self.random.random_range(0..pushed.len())].clone()
        };
        match self.random.random_range(mix) {
            0..60 => self.hit(&known, begin),
            60..SMALL => self.miss(),
            SMALL..97 => self.read(&known),
            _ => {
                if let Some(new) = self.push() {
                    pushed.lock().unwrap().push(new);
                }
            }
        }
    }

    fn push(&mut self) -> Option<Pushed> {
        // Half of it is in every NAR.
        let size = self.random.random_range(1..NAR_BYTES_MAX / 2);
        let mut contents: Vec<u8> = (0_u32..).flat_map(u32::to_le_bytes).take(size).collect();
        let mut own = vec![0; size];
        self.random.fill(&mut own[..]);
        contents.append(&mut own);
        let nar = nars::file(&contents);
        let head = format!(
            "PUT /_api/v1/upload-path HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nX-Attic-Nar-Info: {}\r\n\
             Content-Length: {}\r\n\r\n",
            self.lab.address(),
            self.token,
            nars::attic_info("main", &nar, "load"),
            nar.len()
        );
        self.ask("push", 200, &[head.as_bytes(), &nar].concat())?;
        let path_hash = nars::path_hash(&nar);
        let narinfo = self.get("hit", 200, &format!("/main/{path_hash}.narinfo"))?.text();
        let url = narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap().to_owned();
        Some(Pushed { path_hash, nar_hash: NarHash::digest(&nar), url })
    }
}

/// How requests follow each other.
#[derive(Debug, Clone, Copy)]
enum Pace {
    /// Each client asks as soon as it was answered.
    Saturation,
    /// So many requests a second of all clients together, at random times that no answer moves.
    PerSecond(f64),
}

/// All clients at work for a while; what they saw, together.
fn at_work(lab: &Lab, pushed: &Mutex<Vec<Pushed>>, seed: u64, time: Duration, pace: Pace) -> Tally {
    let token = lab.admin_token();
    let begin = Instant::now();
    let tallies: Vec<Tally> = thread::scope(|scope| {
        let clients: Vec<_> = (1..=CLIENTS)
            .map(|number| {
                let token = token.as_str();
                scope.spawn(move || {
                    let mut client = Client::new(lab, token, seed.wrapping_add(number.into()));
                    let mut due = begin;
                    // Narinfo readers keep their own pace and wait for nothing else: a push of
                    // their own would delay them.
                    let asks_small = number <= CLIENTS * SMALL / 100;
                    let mix = match pace {
                        Pace::Saturation => 0..100,
                        Pace::PerSecond(_) if asks_small => 0..SMALL,
                        Pace::PerSecond(_) => SMALL..100,
                    };
                    while begin.elapsed() < time {
                        if let Pace::PerSecond(rate) = pace {
                            // Exponential pauses: the clients are independent of each other.
                            let pause = -client.random.random_range(f64::EPSILON..1.0).ln()
                                * f64::from(CLIENTS)
                                / rate;
                            due += Duration::from_secs_f64(pause);
                            if due.duration_since(begin) >= time {
                                break;
                            }
                            thread::sleep(due.saturating_duration_since(Instant::now()));
                        } else {
                            due = Instant::now();
                        }
                        client.act(pushed, mix.clone(), due);
                    }
                    client.tally
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let mut all = Tally::default();
    for tally in tallies {
        for (key, count) in tally.answers {
            *all.answers.entry(key).or_default() += count;
        }
        all.hits.extend(tally.hits);
        all.failures.extend(tally.failures);
    }
    all.hits.sort_by(f64::total_cmp);
    all
}

impl Tally {
    /// Requests a second.
    fn rate(&self, time: Duration) -> f64 {
        let requests: usize = self.answers.values().sum();
        f64::from(u32::try_from(requests).unwrap()) / time.as_secs_f64()
    }

    /// Prints the figures and fails on what must not be, and on more than one refusal (429, 503) in
    /// so many requests.
    #[expect(clippy::print_stdout, reason = "figures")]
    fn conclude(&self, name: &str, time: Duration, refused_one_in: usize) {
        let percentile = |part: usize| {
            self.hits.get(self.hits.len().saturating_sub(1) * part / 100).map_or(0.0, |took| took * 1000.0)
        };
        println!(
            "{name}: {:.0} requests a second; a narinfo hit took {:.1} / {:.1} ms (p50 / p99); {:?}",
            self.rate(time),
            percentile(50),
            percentile(99),
            self.answers
        );
        let failures = &self.failures;
        assert!(
            failures.is_empty(),
            "{} failures: {:#?}",
            failures.len(),
            &failures[..failures.len().min(5)]
        );
        let count = |is_counted: fn(u16) -> bool| -> usize {
            self.answers.iter().filter(|((_, status), _)| is_counted(*status)).map(|(_, count)| count).sum()
        };
        let (refused, all) = (count(|status| matches!(status, 429 | 503)), count(|_| true));
        assert!(refused * refused_one_in <= all, "{name}: {refused} of {all} requests were refused");
    }
}

#[test]
fn two_hundred_clients_see_no_error_and_memory_stays_flat() {
    let _turn = crate::turn(file!());
    let lab = Lab::start();
    let token = lab.admin_token();
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut first = Client::new(&lab, &token, seed);
    let pushed: Mutex<Vec<Pushed>> = Mutex::new((0..40).filter_map(|_| first.push()).collect());
    assert_eq!(first.tally.failures, [] as [String; 0]);

    let long = u32::try_from(times(1)).unwrap();
    let time = Duration::from_secs(30) * long;
    let [(_, early), (saturated, late)] = ["at saturation", "at saturation still"].map(|name| {
        let seed = rand::random();
        let tally = at_work(&lab, &pushed, seed, time, Pace::Saturation);
        let peak = lab.peak_memory_bytes();
        println!("seed {seed}, memory up to {} MiB", peak >> 20);
        tally.conclude(name, time, REFUSED_AT_SATURATION);
        (tally, peak)
    });
    for what in ["hit", "nar", "push"] {
        assert!(saturated.answers.contains_key(&(what, 200)), "no {what}: {:?}", saturated.answers);
    }
    assert!(late <= early + MEMORY_GROWTH_MAX, "memory grew from {early} to {late} bytes");
    let half = saturated.rate(time) / 2.0;
    let time = Duration::from_secs(10) * long;
    let paced = at_work(&lab, &pushed, !seed, time, Pace::PerSecond(half));
    paced.conclude("at half of saturation", time, REFUSED_AT_HALF);

    println!("peak memory {} MiB", lab.peak_memory_bytes() >> 20);
    assert!(lab.peak_memory_bytes() <= MEMORY_BYTES_MAX, "{} bytes", lab.peak_memory_bytes());
    // What was acknowledged under load is there after it.
    for pushed in pushed.into_inner().unwrap() {
        let narinfo = http::get(lab.address(), &format!("/main/{}.narinfo", pushed.path_hash), None);
        assert_eq!(narinfo.status, 200, "{pushed:?}");
    }
}
