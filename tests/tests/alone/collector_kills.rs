//! The replica that collects is killed at random points, again and again, while clients push to and
//! pull from both replicas, over PostgreSQL and S3.
//!
//! - Acknowledged paths are never lost.
//! - The other replica takes the collection over.
//! - When everything has expired, the bucket and the tables are empty.
//!
//! Days pass in the database: every time in it moves back. No upload and no collection runs at that
//! moment, because an upload never takes days.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::fmt::Write as _;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dormer_nix::NarHash;
use dormer_tests::{Lab, LabOptions, times};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::outages::{PATIENCE, Seen, SetOnDrop, push, read};

const PUSHERS: u64 = 2;
const READERS: u64 = 2;
const DAY: i64 = 86_400;

/// More than a pack's grace and the longest upload.
const OLD: i64 = 3 * DAY;

/// More than the grace of a removed path, and than what the outbox keeps.
const VERY_OLD: i64 = 40 * DAY;

/// About as long as a collection of this test takes.
const COLLECTION_MS: u64 = 200;

/// Every column that holds a time which a collection looks at.
const TIMES: [(&str, &[&str]); 10] = [
    ("packs", &["created_at", "used_at", "condemned_at"]),
    ("objects", &["created_at", "last_used_at", "pushed_at"]),
    ("graces", &["ends_at"]),
    ("aliases", &["used_at"]),
    ("doomed_packs", &["not_before"]),
    ("purges", &["asked_at", "tried_at"]),
    ("last_collection", &["opened_at", "ended_at", "listed_at"]),
    ("caches", &["expired_at"]),
    ("outbox", &["at"]),
    ("journal", &["lease_ends_at"]),
];

/// Tables that hold no path, and nothing of one but a count or an account of what was done.
const KEPT: [&str; 13] = [
    "_sqlx_migrations",
    "audit",
    "cache_days",
    "cache_keys",
    "caches",
    "counter_changes",
    "counter_state",
    "counters",
    "journal",
    "last_collection",
    "last_scrub",
    "outbox_base",
    "settings",
];

/// Lets so many seconds pass, unless a collection is open. Whether they passed.
fn try_pass(lab: &Lab, seconds: i64) -> bool {
    let mut statement =
        "WITH idle AS (SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE kind = 'collect'))".to_owned();
    for (table, columns) in TIMES {
        let sets: Vec<String> =
            columns.iter().map(|column| format!("{column} = {column} - {seconds}")).collect();
        write!(statement, ", {table}_moved AS (UPDATE {table} SET {} FROM idle)", sets.join(", ")).unwrap();
    }
    statement.push_str(" SELECT count(*) FROM idle");
    lab.sql(&statement).trim() == "1"
}

fn pass(lab: &Lab, seconds: i64) {
    until("no collection is open", || try_pass(lab, seconds));
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}: it never comes true");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The process that collects now.
fn collector(lab: &Lab) -> Option<u32> {
    let holder = lab.sql("SELECT holder FROM jobs WHERE kind = 'collect' AND holder IS NOT NULL");
    holder.trim().strip_prefix("process ")?.split(' ').next()?.parse().ok()
}

/// Kills the replica that collects, and waits until the other one has done its work. `false` if the
/// collection ended before the kill.
fn kill_the_collector(lab: &mut Lab, random: &mut SmallRng) -> bool {
    let mut killed = None;
    until("a replica collects", || {
        let holder = collector(lab);
        killed = lab.process_ids().iter().position(|id| Some(*id) == holder).zip(holder);
        killed.is_some()
    });
    let (number, process) = killed.unwrap();
    thread::sleep(Duration::from_millis(random.random_range(0..COLLECTION_MS)));
    lab.kill_one(number);
    // The leases of a dead process end by themselves; the time of that passes at once.
    let left = lab.sql(&format!(
        "WITH ended AS (UPDATE jobs SET lease_ends_at = 0 WHERE holder LIKE 'process {process} on %' \
         RETURNING id, kind) SELECT id FROM ended WHERE kind = 'collect'"
    ));
    let left = left.trim();
    if !left.is_empty() {
        until("the other replica takes the collection over and ends it", || {
            lab.sql(&format!("SELECT count(*) FROM jobs WHERE id = {left}")).trim() == "0"
        });
    }
    lab.restart();
    !left.is_empty()
}

/// The tables that are not empty, besides those that stay.
fn tables_with_rows(lab: &Lab) -> String {
    let tables = lab.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'");
    let selects: Vec<String> = tables
        .lines()
        .filter(|table| !KEPT.contains(table))
        .map(|table| format!("SELECT '{table}' WHERE EXISTS (SELECT 1 FROM {table})"))
        .collect();
    assert!(selects.len() > 15, "{tables}");
    lab.sql(&selects.join(" UNION ALL "))
}

/// Pushers and readers at work while `kills` runs. What they hold while they work is `at_work`.
fn beside_traffic<T>(
    lab: &mut Lab,
    seen: &Seen,
    seed: u64,
    at_work: &RwLock<()>,
    kills: impl FnOnce(&mut Lab) -> T,
) -> T {
    let (address, token) = (lab.address().to_owned(), lab.admin_token());
    let clients = (address.as_str(), token.as_str());
    push(clients, &mut SmallRng::seed_from_u64(seed), seen);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = SetOnDrop(&done);
        let done = &done;
        for number in 1..=PUSHERS {
            scope.spawn(move || {
                let mut random = SmallRng::seed_from_u64(seed.wrapping_add(number));
                while !done.load(Ordering::SeqCst) {
                    let working = at_work.read();
                    push(clients, &mut random, seen);
                    drop(working);
                    thread::sleep(Duration::from_millis(100));
                }
            });
        }
        for number in 1..=READERS {
            scope.spawn(move || {
                let mut random = SmallRng::seed_from_u64(seed.wrapping_sub(number));
                while !done.load(Ordering::SeqCst) {
                    let working = at_work.read();
                    let all = seen.safe();
                    if !all.is_empty() {
                        read(clients.0, &all[random.random_range(0..all.len())], seen);
                    }
                    drop(working);
                    thread::sleep(Duration::from_millis(50));
                }
            });
        }
        kills(lab)
    })
}

#[test]
fn the_collector_is_killed_and_nothing_is_lost_or_left() {
    let _turn = crate::turn(file!());
    let settings = "[garbage-collection]\ninterval = \"1s\"\n[journal]\ninterval = \"1s\"\n".to_owned();
    let mut lab =
        Lab::start_production_with(LabOptions { settings: Some(settings), ..LabOptions::default() });
    lab.login();
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let (seen, at_work) = (Seen::default(), RwLock::new(()));
    let rounds = if times(1) > 1 { 30 } else { 2 };
    let (tried, removed) = beside_traffic(&mut lab, &seen, seed, &at_work, |lab| {
        let (mut interrupted, mut tried, mut removed) = (0, 0, 0);
        while interrupted < rounds {
            tried += 1;
            assert!(tried <= 4 * rounds, "{interrupted} of {tried} kills interrupted a collection");
            let before = seen.safe().len();
            until("clients push", || seen.safe().len() >= before + 5);
            {
                let _no_client = at_work.write();
                let mut safe = seen.safe.lock().unwrap();
                let half = safe.len() / 2;
                let gone: Vec<String> =
                    safe.drain(..half).map(|safe| format!("/nix/store/{}-pushed", safe.path_hash)).collect();
                let mut arguments = vec!["cache", "remove-path", "main"];
                arguments.extend(gone.iter().map(String::as_str));
                lab.dormer(&arguments).succeeds();
                removed += gone.len();
                pass(lab, OLD);
            }
            interrupted += usize::from(kill_the_collector(lab, &mut random));
            assert_eq!(*seen.wrong.lock().unwrap(), Vec::<String>::new());
        }
        (tried, removed)
    });
    let safe = seen.safe();
    for safe in &safe {
        until("acknowledged paths read back", || read(lab.address(), safe, &seen));
    }
    assert_eq!(*seen.wrong.lock().unwrap(), Vec::<String>::new());
    lab.dormer(&["cache", "configure", "main", "--retention-period", "1d"]).succeeds();
    lab.kill();
    let acknowledged: Vec<NarHash> = safe.iter().map(|safe| safe.nar_hash).collect();
    let leaks = lab.inspection().check(&acknowledged);
    println!(
        "{rounds} of {tried} kills interrupted a collection; {removed} paths were removed, {} are there; {leaks}",
        safe.len()
    );

    // Objects expire, their graces end, their packs are condemned and go, and what crashes left in
    // the bucket is listed and goes.
    lab.restart();
    let mut turns = 0;
    while !(lab.inspection().packs().is_empty()
        && lab
            .sql("SELECT 1 FROM packs UNION ALL SELECT 1 FROM objects UNION ALL SELECT 1 FROM doomed_packs")
            .is_empty())
    {
        turns += 1;
        assert!(turns <= 8, "something stays: {}", tables_with_rows(&lab));
        pass(&lab, VERY_OLD);
        let begun = lab.sql("SELECT extract(epoch FROM now())::bigint");
        let begun = begun.trim();
        until("caches are looked through and a collection ends", || {
            let is_done = format!(
                "SELECT 1 FROM last_collection WHERE opened_at > {begun} AND ended_at >= opened_at \
                 AND NOT EXISTS (SELECT 1 FROM caches WHERE coalesce(expired_at, 0) < {begun})"
            );
            !lab.sql(&is_done).is_empty()
        });
    }
    // A server trims the outbox when it starts, and then every minute.
    until("the journal has every change", || lab.sql("SELECT 1 FROM journal_notes").is_empty());
    pass(&lab, VERY_OLD);
    lab.kill();
    lab.restart();
    until("the tables are empty", || tables_with_rows(&lab).is_empty());
    assert!(!lab.log().contains("condemned packs hold live chunks"), "no time passed during an upload");
}
