//! Random histories of everything that brings, keeps, damages and frees bytes. After every event,
//! what policy keeps alive reads back byte for byte, and each invariant of docs/STORAGE.md holds;
//! in the end, nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dormer_blobs::BlobKey;
use dormer_engine::{
    Clock, Engine, ErrorClass, FULL_PPM, JobRunner, JobSettings, Journal, JournalSettings, MasterKey,
    Recovery, RecoveryIndex, ScrubOptions, Scrubber,
};
use dormer_index::{
    Cache, ExpiryDefaults, Index, JobKind, JournalIndex, NarQuery, Pin, Removal, UnixSeconds,
};
use dormer_nix::NarHash;
use dormer_testkit::{
    FaultBlobs, FaultIndex, FaultJournal, FaultScrub, Faults, Lie, Violation, object_for, rebuilt,
};
use futures::TryStreamExt as _;
use proptest::prelude::*;

use crate::collect::{ANSWERS, DAY, HOUR, Lab, NEVER, Process, RacingPush, beginning, nars};
use crate::common::{create_main, hash_of, ingest, path, settings};

/// How long a path stays unused before an expire job removes it.
const RETENTION: i64 = 20 * DAY;

/// What was used within this time stays, whatever the quota.
const SPARED: i64 = 2 * HOUR;

/// How long the NAR of a removed path stays readable.
const GRACE: i64 = 3 * DAY;

/// Paths of a history.
const PATHS: u8 = 4;

/// What may happen to an installation.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// A path is pushed, with one of a few NARs that share chunks, and with a crash at a step, if
    /// the push has so many. The cache may lack what it refers to.
    Push { path: u8, nar: u8, reference: Option<u8>, crash: Crash },
    /// A client pulls a path, which renews its use.
    Pull { path: u8 },
    /// An object goes, with a crash at a step, if it has so many.
    Remove { path: u8, how: Removed, crash: Crash },
    /// A path is pinned, or its pin is removed.
    Pin { path: u8, is_added: bool },
    /// What was not used for long expires, and what a quota of nothing does not need. The process
    /// may end after so many small steps of the job.
    Expire { is_over_quota: bool, ends_after: Option<u32> },
    /// Hours pass.
    Pass { hours: i64 },
    /// A collection, with a crash at a step, if it has so many, and with a push beside it.
    Collect { crash_at: Option<u64>, effect_kept: bool, beside: Option<Beside> },
    /// A chunk of a path goes bad, and a scrub finds it, with a crash at a step, if it has so many;
    /// then the next process goes on. Clients push what is missing, or not.
    Damage { path: u8, chunk: u8, is_healed: bool, crash: Crash },
    /// The journal is written, with a crash at a step, if it has so many.
    Journal { crash_at: Option<u64>, effect_kept: bool },
    /// The journal is written, the database is lost, and a new one is recovered from the store.
    Recover,
}

/// Where a process crashes, and whether the step has its effect.
#[derive(Debug, Clone, Copy)]
struct Crash {
    at: Option<u64>,
    effect_kept: bool,
}

impl Crash {
    const NEVER: Self = Self { at: None, effect_kept: false };

    fn faults(self) -> Arc<Faults> {
        Faults::crash_at(self.at.unwrap_or(NEVER), self.effect_kept)
    }
}

/// How an object goes.
#[derive(Debug, Clone, Copy)]
enum Removed {
    ForCause,
    WithGrace,
    /// For cause, with its bytes.
    WithBytes,
}

/// A push that commits before a call of a collection, if it has so many.
#[derive(Debug, Clone, Copy)]
struct Beside {
    at: u64,
    path: u8,
    nar: u8,
    /// Whether it looked its chunks up before the collection.
    has_begun: bool,
}

fn beside() -> impl Strategy<Value = Option<Beside>> {
    let push = (0..30_u64, 0..PATHS, 0..5_u8, any::<bool>());
    prop::option::of(push.prop_map(|(at, path, nar, has_begun)| Beside { at, path, nar, has_begun }))
}

fn event() -> impl Strategy<Value = Event> {
    let crash = || (prop::option::weighted(0.3, 0..20_u64), any::<bool>());
    let early = |steps| {
        let at = prop::option::weighted(0.2, 0..steps);
        (at, any::<bool>()).prop_map(|(at, effect_kept)| Crash { at, effect_kept })
    };
    let how = prop::sample::select(vec![Removed::ForCause, Removed::WithGrace, Removed::WithBytes]);
    prop_oneof![
        6 => (0..PATHS, 0..5_u8, prop::option::of(0..PATHS), early(8_u64))
            .prop_map(|(path, nar, reference, crash)| Event::Push { path, nar, reference, crash }),
        2 => (0..PATHS).prop_map(|path| Event::Pull { path }),
        5 => (0..PATHS, how, early(2)).prop_map(|(path, how, crash)| Event::Remove { path, how, crash }),
        1 => (0..PATHS, any::<bool>()).prop_map(|(path, is_added)| Event::Pin { path, is_added }),
        1 => (any::<bool>(), prop::option::weighted(0.3, 0..12_u32))
            .prop_map(|(is_over_quota, ends_after)| Event::Expire { is_over_quota, ends_after }),
        4 => prop::sample::select(vec![1, 27, 50, 800]).prop_map(|hours| Event::Pass { hours }),
        6 => (crash(), beside()).prop_map(|((crash_at, effect_kept), beside)| Event::Collect {
            crash_at,
            effect_kept,
            beside,
        }),
        2 => (0..PATHS, any::<u8>(), any::<bool>(), early(20))
            .prop_map(|(path, chunk, is_healed, crash)| Event::Damage { path, chunk, is_healed, crash }),
        1 => crash().prop_map(|(crash_at, effect_kept)| Event::Journal { crash_at, effect_kept }),
        2 => Just(Event::Recover),
    ]
}

/// A path that policy keeps alive.
#[derive(Debug, Clone, Copy)]
struct Live {
    nar: u8,
    reference: Option<u8>,
    used_at: UnixSeconds,
}

/// An installation in the middle of its history.
struct History {
    lab: Lab,
    process: Process,
    nars: [Vec<u8>; 5],
    live: BTreeMap<u8, Live>,
    pinned: BTreeSet<u8>,
    /// Paths that needed damaged bytes when they were looked at last.
    missing: BTreeSet<u8>,
    /// Whether any byte ever went bad.
    was_damaged: bool,
    /// Closures that an expiry broke.
    broken: Vec<Violation>,
}

impl History {
    async fn begin(on_postgres: bool) -> Self {
        Self::begin_with(on_postgres, |index| index).await
    }

    /// The first process sees the index through `wrap`.
    async fn begin_with(on_postgres: bool, wrap: impl FnOnce(Arc<dyn Index>) -> Arc<dyn Index>) -> Self {
        let lab = Lab::new(on_postgres).await;
        let [first, second, third] = nars();
        let fourth = rebuilt(&first, &path(100), &path(102));
        let nars = [first, second, third, fourth, beginning()];
        let process = lab.open_with(wrap).await;
        create_main(&process.engine).await;
        lab.collect(&process).await;
        let (live, pinned, missing, broken) = Default::default();
        Self { lab, process, nars, live, pinned, missing, was_damaged: false, broken }
    }

    async fn take(mut self, event: Event, when: &str) -> Self {
        let cache = self.process.cache().await;
        let now = self.lab.clock.now();
        let index = Arc::clone(&self.process.contracts.index);
        match event {
            Event::Push { path: place, nar, reference, crash: Crash { at: None, .. } } => {
                self.push(&cache, place, nar, reference, when).await;
            }
            Event::Push { path: place, nar, reference, crash } => {
                // Another engine pushes, so this process has to forget what it knows.
                self.push_crashing(&cache, place, nar, reference, &crash.faults(), when).await;
                drop((cache, index));
                return self.restart().await;
            }
            Event::Pull { path: place } => self.pull(&cache, place, when).await,
            Event::Remove { path: place, how, crash } => {
                let (faults, hash) = (crash.faults(), path(place).hash());
                let dying: Arc<dyn Index> =
                    Arc::new(FaultIndex::new(Arc::clone(&index), Arc::clone(&faults)));
                // Another engine removes only if it may crash: this process would have to forget.
                let dies = crash.at.is_some();
                let engine =
                    if dies { self.lab.engine(Arc::clone(&dying)) } else { self.process.engine.clone() };
                let is_answered = match how {
                    Removed::ForCause => engine.remove_object(&cache, &hash, None).await.is_ok(),
                    Removed::WithBytes => engine.purge_object(&cache, &hash, None).await.is_ok(),
                    Removed::WithGrace => {
                        let grace = Removal::WithGraceUntil(now + GRACE);
                        dying.remove_object(cache.id, &hash, grace, now).await.is_ok()
                    }
                };
                assert_eq!(is_answered, !faults.crashed(), "{when}");
                // What was not answered may have happened.
                if is_answered || index.find_object(cache.id, &hash).await.expect(when).is_none() {
                    self.live.remove(&place);
                }
                if dies {
                    drop((cache, index, dying, engine));
                    return self.restart().await;
                }
            }
            Event::Pin { path: place, is_added: true } => {
                let pin =
                    Pin { name: format!("pin {place}"), path: path(place), created_at: now, ends_at: None };
                index.add_pin(cache.id, &pin, None).await.expect(when);
                self.pinned.insert(place);
            }
            Event::Pin { path: place, is_added: false } => {
                index.remove_pins(cache.id, &format!("pin {place}"), None).await.expect(when);
                self.pinned.remove(&place);
            }
            Event::Expire { is_over_quota, ends_after } => {
                let is_cut_short = self.expire(&cache, is_over_quota, ends_after, when).await;
                if is_cut_short {
                    drop((cache, index));
                    return self.restart().await;
                }
            }
            Event::Pass { hours } => self.lab.pass(hours * HOUR),
            Event::Collect { crash_at, effect_kept, beside } => {
                let faults = Faults::crash_at(crash_at.unwrap_or(NEVER), effect_kept);
                self.collect(&cache, &faults, beside, when).await;
                if faults.crashed() {
                    drop((cache, index));
                    return self.restart().await;
                }
            }
            Event::Damage { path: place, chunk, is_healed, crash } => {
                let Some(damaged) = self.live.get(&place).copied() else { return self };
                if self.missing.contains(&place) {
                    return self;
                }
                self.damage(&cache, damaged.nar, chunk).await;
                self.was_damaged = true;
                let faults = crash.faults();
                let is_found = self.scrub_crashing(&faults, when).await;
                if faults.crashed() {
                    drop(index);
                    self = self.restart().await;
                    // What the crashed process marked is no finding of the next one.
                    self.scrub(when).await;
                } else {
                    assert!(is_found, "{when}");
                }
                let cache = self.process.cache().await;
                self.look_for_missing(&cache).await;
                assert!(self.missing.contains(&place), "the scrub found the damage, {when}");
                if is_healed {
                    self.heal(&cache, when).await;
                }
            }
            Event::Journal { crash_at, effect_kept } => {
                let faults = Faults::crash_at(crash_at.unwrap_or(NEVER), effect_kept);
                let outcome = self.journal(&faults, effect_kept).write().await;
                assert_eq!(outcome.is_err(), faults.crashed(), "{when}");
                if faults.crashed() {
                    drop((cache, index));
                    return self.restart().await;
                }
            }
            Event::Recover => {
                // A new database does not know what is damaged.
                self.heal(&cache, when).await;
                drop((cache, index));
                return Box::pin(self.recover(when)).await;
            }
        }
        self
    }

    /// Collects, perhaps beside a push.
    async fn collect(
        &mut self,
        cache: &Arc<Cache>,
        faults: &Arc<Faults>,
        beside: Option<Beside>,
        when: &str,
    ) {
        let mut racing = None;
        if let Some(Beside { at, path: place, nar, has_begun }) = beside {
            let (engine, nar) = (self.process.engine.clone(), self.nars[usize::from(nar)].clone());
            let ingested = if has_begun { Some(ingest(&engine, &nar).await.expect(when)) } else { None };
            racing = Some(Arc::new(RacingPush {
                engine,
                cache: Arc::clone(cache),
                path: path(place),
                nar,
                ingested: Mutex::new(ingested),
                at,
                outcome: Mutex::new(None),
            }));
        }
        let outcome = self.lab.collect_racing(&self.process, faults, racing.as_ref()).await;
        assert_eq!(outcome.is_err(), faults.crashed(), "{when}");
        let answered = racing.and_then(|racing| racing.outcome.lock().expect(ANSWERS).take());
        let (Some(answered), Some(Beside { path: place, nar, .. })) = (answered, beside) else { return };
        match answered {
            Ok(()) => {
                self.live.insert(place, Live { nar, reference: None, used_at: self.lab.clock.now() });
            }
            Err(error) => {
                assert_eq!(error.class(), ErrorClass::Unavailable, "{error} {when}");
                // The client pushes again.
                self.push(cache, place, nar, None, when).await;
            }
        }
    }

    async fn push(&mut self, cache: &Cache, place: u8, nar: u8, reference: Option<u8>, when: &str) {
        let references: Vec<_> = reference.into_iter().map(path).collect();
        let object = object_for(&path(place), &references);
        let engine = &self.process.engine;
        let ingested = ingest(engine, &self.nars[usize::from(nar)]).await.expect(when);
        engine.commit_object(cache, ingested, object).await.expect(when);
        self.live.insert(place, Live { nar, reference, used_at: self.lab.clock.now() });
    }

    /// A push by a process that may crash. An acknowledged one is there; another one may be.
    async fn push_crashing(
        &mut self,
        cache: &Cache,
        place: u8,
        nar: u8,
        reference: Option<u8>,
        faults: &Arc<Faults>,
        when: &str,
    ) {
        let index = Arc::clone(&self.process.contracts.index);
        let seen = Arc::new(FaultIndex::new(Arc::clone(self.process.engine.index()), Arc::clone(faults)));
        let blobs = Arc::clone(&self.lab.installation.blobs);
        let blobs = Arc::new(FaultBlobs::new(blobs, Arc::clone(faults)));
        let clock = Arc::clone(&self.lab.clock) as Arc<dyn Clock>;
        let references: Vec<_> = reference.into_iter().map(path).collect();
        let bytes = &self.nars[usize::from(nar)];
        let object = object_for(&path(place), &references);
        let (into, nar_bytes, crash) = (cache.clone(), bytes.clone(), Arc::clone(faults));
        // All tasks of the process end with it, on a runtime of its own.
        let process = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let pushed = async {
                let engine = Engine::new(seen, blobs, MasterKey::from_bytes([9; 32]), settings(), clock);
                let ingested = ingest(&engine, &nar_bytes).await?;
                engine.commit_object(&into, ingested, object).await
            };
            let crashed = async {
                while !crash.crashed() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            runtime.expect("it starts").block_on(async {
                tokio::select! {
                    biased;
                    pushed = pushed => pushed.is_ok(),
                    () = crashed => false,
                }
            })
        });
        let is_acknowledged = process.await.expect(when);
        assert!(is_acknowledged || faults.crashed(), "{when}");
        let found = index.find_object(cache.id, &path(place).hash()).await.expect(when);
        let is_new = found
            .as_ref()
            .is_some_and(|found| found.nar.hash == hash_of(bytes) && found.object.references == references);
        assert!(is_new || !is_acknowledged, "{when}");
        if is_new {
            self.live.insert(place, Live { nar, reference, used_at: self.lab.clock.now() });
        }
    }

    /// Pulls from a replica that remembers nothing, and waits until the use is written.
    async fn pull(&mut self, cache: &Arc<Cache>, place: u8, when: &str) {
        let index = &self.process.contracts.index;
        let (hash, now) = (path(place).hash(), self.lab.clock.now());
        let is_there = self.live.contains_key(&place) && !self.missing.contains(&place);
        let replica = self.lab.engine(Arc::clone(index));
        let found = replica.narinfo(cache, &hash).await.expect(when);
        assert_eq!(found.is_some(), is_there, "path {place} {when}");
        drop(replica);
        let Some(live) = self.live.get_mut(&place).filter(|_| is_there) else { return };
        let written = async {
            loop {
                let found = index.find_object(cache.id, &hash).await.expect(when);
                let used_at = found.expect("it was just pulled").last_used_at;
                // Written at most once an hour.
                if used_at >= now - HOUR {
                    return used_at;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        live.used_at = tokio::time::timeout(Duration::from_secs(30), written).await.expect(when);
    }

    /// The process has crashed; another one begins when its leases have ended.
    async fn restart(self) -> Self {
        drop(self.process);
        self.lab.pass(60);
        let process = self.lab.open().await;
        Self { process, ..self }
    }

    /// Runs the jobs that are open, with a quota or without (0).
    async fn run_jobs(&self, quota_bytes: u64) {
        let jobs = &self.process.contracts.jobs;
        let settings = JobSettings {
            poll: Duration::from_millis(1),
            expiry_defaults: expiry_defaults(quota_bytes),
            ..JobSettings::default()
        };
        let clock = Arc::clone(&self.lab.clock) as Arc<dyn Clock>;
        let runner = JobRunner::new(Arc::clone(jobs), clock, "test".to_owned(), settings);
        let kinds = [JobKind::SpreadDamage, JobKind::ExpireCache].map(JobKind::as_str);
        let done = async {
            while jobs
                .list_jobs(None, 100)
                .await
                .expect(ANSWERS)
                .iter()
                .any(|job| kinds.contains(&job.kind.as_str()))
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        runner.run(done).await;
    }

    /// What was used lately or is pinned must stay, with all that it refers to. Clients that ask
    /// what is missing use what is there, so more may stay.
    /// Returns whether the process ended before the job did.
    async fn expire(
        &mut self,
        cache: &Cache,
        is_over_quota: bool,
        ends_after: Option<u32>,
        when: &str,
    ) -> bool {
        let contracts = &self.process.contracts;
        let (now, jobs) = (self.lab.clock.now(), &contracts.jobs);
        jobs.open_job(JobKind::ExpireCache, Some(cache.id), None, now).await.expect(when);
        let quota_bytes = u64::from(is_over_quota);
        let mut is_cut_short = false;
        if let Some(steps) = ends_after {
            let lease = jobs.lease_job(JobKind::ExpireCache, "dies", now, now + 30).await.expect(when);
            let (lease, defaults) = (lease.expect("it is open"), expiry_defaults(quota_bytes));
            is_cut_short = true;
            for _ in 0..steps {
                let step = jobs.expire_cache_step(&lease, &defaults, 1, now, now + 30).await.expect(when);
                if step.is_last {
                    is_cut_short = false;
                    break;
                }
            }
        } else {
            self.run_jobs(quota_bytes).await;
        }
        let spared = if is_over_quota { SPARED } else { RETENTION };
        let mut gone = Vec::new();
        for (place, live) in &self.live {
            let found = contracts.index.find_object(cache.id, &path(*place).hash()).await.expect(when);
            if found.is_none() {
                let may_go = live.used_at <= now - spared && !self.pinned.contains(place);
                assert!(may_go, "path {place} expired {when}");
                gone.push(*place);
            }
        }
        self.live.retain(|place, _| !gone.contains(place));
        for (place, live) in &self.live {
            if let Some(reference) = live.reference.filter(|reference| gone.contains(reference)) {
                let what = format!("path {reference} expired, and path {place} refers to it, {when}");
                self.broken.push(Violation { invariant: 6, what });
            }
        }
        is_cut_short
    }

    /// Changes a byte of a chunk that a NAR needs, where the index has the chunk. Recovery reads
    /// the newest pack first, and a bad disk changes no times: all packs keep their order.
    async fn damage(&self, cache: &Cache, nar: u8, chunk: u8) {
        let index = &self.process.contracts.index;
        let key = NarQuery::Hash(hash_of(&self.nars[usize::from(nar)]));
        let found = index.find_nar_in_cache(cache.id, &key, 0).await.expect(ANSWERS).expect("it is there");
        let rows = index.load_chunks(&found.recipe.runs).await.expect(ANSWERS);
        // A chunk of holes alone has no bytes.
        let rows: Vec<_> = rows.into_iter().filter(|row| row.layout.stored_len() > 0).collect();
        let row = &rows[usize::from(chunk) % rows.len()];
        let damaged = BlobKey::Pack(row.pack_id).to_string();
        let store = self.lab.installation.files.store();
        let mut packs: Vec<(i64, String)> = store
            .list("packs")
            .try_collect::<Vec<_>>()
            .await
            .expect(ANSWERS)
            .into_iter()
            .map(|entry| (entry.modified_at, entry.name))
            .collect();
        packs.sort_unstable();
        for (_, name) in packs {
            let mut bytes = store.get(&name).await.expect(ANSWERS).expect("it is listed").to_vec();
            if name == damaged {
                bytes[usize::try_from(row.offset).expect("a small pack")] ^= 1;
            }
            store.put(&name, None, [Bytes::from(bytes)]).await.expect(ANSWERS);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Scrubs everything, and looks which NARs need what is damaged. Whether anything is.
    async fn scrub(&self, when: &str) -> bool {
        self.scrub_crashing(&Crash::NEVER.faults(), when).await
    }

    /// The same by a process that may crash.
    async fn scrub_crashing(&self, faults: &Arc<Faults>, when: &str) -> bool {
        let found = self.scrub_until_crash(faults, when).await;
        assert!(found.is_some() || faults.crashed(), "{when}");
        if found.is_some() {
            self.run_jobs(0).await;
        }
        found == Some(true)
    }

    /// `None` if it crashed.
    async fn scrub_until_crash(&self, faults: &Arc<Faults>, when: &str) -> Option<bool> {
        let contracts = &self.process.contracts;
        let index = Arc::new(FaultIndex::new(Arc::clone(&contracts.index), Arc::clone(faults)));
        let scrub = Arc::new(FaultScrub::new(Arc::clone(&contracts.scrub), Arc::clone(faults)));
        let blobs = Arc::new(FaultBlobs::new(Arc::clone(&self.lab.installation.blobs), Arc::clone(faults)));
        let scrubber = Scrubber::new(index, scrub, blobs, Arc::clone(&self.lab.clock) as Arc<dyn Clock>);
        let options = ScrubOptions { share_ppm: FULL_PPM, bytes_per_second: None };
        let (job, _) = scrubber.open(options).await.ok()?;
        while scrubber.state(job).await.ok()?.is_some() {
            let slice = Duration::from_mins(1);
            let is_leased = scrubber.work_now(&*contracts.jobs, "test", 30, slice).await.ok()?;
            assert!(is_leased || faults.crashed(), "{when}");
        }
        let report = scrubber.report(job).await.ok()?.expect("it ended");
        Some(report.found_damage())
    }

    /// Asks as a client does.
    async fn look_for_missing(&mut self, cache: &Cache) {
        let places: Vec<u8> = self.live.keys().copied().collect();
        let hashes: Vec<_> = places.iter().map(|place| path(*place).hash()).collect();
        let missing = self.process.engine.missing_paths(cache, &hashes).await.expect(ANSWERS);
        let places = places.into_iter().zip(hashes).filter(|(_, hash)| missing.contains(hash));
        self.missing = places.map(|(place, _)| place).collect();
    }

    /// Clients push what is missing.
    async fn heal(&mut self, cache: &Cache, when: &str) {
        self.look_for_missing(cache).await;
        while let Some(place) = self.missing.first().copied() {
            let before = self.missing.len();
            let Live { nar, reference, .. } = self.live[&place];
            self.push(cache, place, nar, reference, when).await;
            self.look_for_missing(cache).await;
            assert!(self.missing.len() < before, "a push heals, {when}");
        }
    }

    /// A journal; a restless one writes a snapshot after every change.
    fn journal(&self, faults: &Arc<Faults>, is_restless: bool) -> Journal {
        let contracts = &self.process.contracts;
        let memory: Arc<dyn JournalIndex> =
            Arc::new(FaultJournal::new(Arc::clone(&contracts.journal), Arc::clone(faults)));
        let settings = if is_restless {
            JournalSettings { segment_bytes_min: 0, snapshot_weight: 0, ..JournalSettings::default() }
        } else {
            JournalSettings::default()
        };
        let files = &self.lab.installation.files;
        Journal::new(
            Arc::clone(&contracts.index),
            memory,
            Arc::clone(&self.lab.installation.blobs),
            files.crashing(faults),
            Arc::clone(&self.lab.clock) as Arc<dyn Clock>,
            "test".to_owned(),
            settings,
        )
    }

    /// Loses the database after the journal was written. What policy keeps alive is there again,
    /// and what was removed is not.
    async fn recover(self, when: &str) -> Self {
        self.journal(&Faults::crash_at(NEVER, false), false).write().await.expect(when);
        let Self { mut lab, process, nars, live, pinned, missing, was_damaged, broken } = self;
        drop(process);
        lab.lose_database().await;
        let process = lab.open().await;
        let contracts = &process.contracts;
        let into = RecoveryIndex {
            index: Arc::clone(&contracts.index),
            journal: Arc::clone(&contracts.journal),
            collect: Arc::clone(&contracts.collect),
        };
        let recovery = Recovery::open(lab.installation.files.store()).await.expect(when);
        let report = recovery.run(&into, &*lab.clock, &|_| ()).await.expect(when);
        assert_eq!((report.lost, report.unreadable_packs), (0, 0), "{when}: {report:?}");
        let cache = process.cache().await;
        for place in (0..PATHS).filter(|place| !live.contains_key(place)) {
            let found = contracts.index.find_object(cache.id, &path(place).hash()).await.expect(when);
            assert!(found.is_none(), "path {place} was removed and is back, {when}");
        }
        let pins = contracts.index.list_pins(cache.id, None, 0, 100).await.expect(when);
        let pins: BTreeSet<String> = pins.into_iter().map(|pin| pin.name).collect();
        assert_eq!(pins, pinned.iter().map(|place| format!("pin {place}")).collect(), "{when}");
        let recovered = Self { lab, process, nars, live, pinned, missing, was_damaged, broken };
        if was_damaged {
            // Bytes that no path needs may be damaged. A push must not use them.
            recovered.scrub(when).await;
        }
        recovered
    }

    /// What policy keeps alive reads back, unless it is known to be damaged, and each invariant
    /// holds.
    async fn check(&mut self, when: &str) {
        if !self.missing.is_empty() {
            let before = self.missing.clone();
            let cache = self.process.cache().await;
            self.look_for_missing(&cache).await;
            assert!(self.missing.is_subset(&before), "{:?} is missing {when}", self.missing);
        }
        let (index, cache) = (&self.process.contracts.index, self.process.cache().await);
        for place in self.live.keys() {
            let found = index.find_object(cache.id, &path(*place).hash()).await.expect(when);
            assert!(found.is_some(), "path {place} is gone {when}");
        }
        let mut acknowledged: Vec<NarHash> = Vec::new();
        for (_, live) in self.live.iter().filter(|(place, _)| !self.missing.contains(place)) {
            let nar = &self.nars[usize::from(live.nar)];
            self.process.reads_back(nar, when).await;
            acknowledged.push(hash_of(nar));
        }
        assert_eq!(self.lab.violations_beside(&self.process, &acknowledged).await, [], "{when}");
        assert_eq!(self.broken, [], "{when}");
    }

    /// Everything is removed, and nothing is left.
    async fn end(self) {
        let Self { lab, process, live, .. } = self;
        let cache = process.cache().await;
        for place in live.keys() {
            process.engine.remove_object(&cache, &path(*place).hash(), None).await.expect(ANSWERS);
        }
        lab.pass(40 * DAY);
        lab.collect_all(&process).await;
        drop((process, cache));
        lab.is_empty("at the end").await;
    }
}

async fn live_through(events: &[Event], on_postgres: bool) {
    let mut history = History::begin(on_postgres).await;
    for (number, event) in events.iter().enumerate() {
        let when = format!("after event {number}, {event:?}");
        history = Box::pin(history.take(*event, &when)).await;
        history.check(&when).await;
    }
    history.end().await;
}

fn expiry_defaults(quota_bytes: u64) -> ExpiryDefaults {
    ExpiryDefaults {
        retention_seconds: RETENTION,
        quota_bytes,
        grace_seconds: GRACE,
        log_retention_seconds: 0,
    }
}

/// A path stays for the one that refers to it. An index that forgets references is found out.
#[tokio::test]
async fn references_that_are_forgotten_are_caught() {
    let events = [
        Event::Push { path: 0, nar: 0, reference: None, crash: Crash::NEVER },
        Event::Push { path: 1, nar: 1, reference: Some(0), crash: Crash::NEVER },
        Event::Pass { hours: 800 },
        Event::Pull { path: 1 },
        Event::Expire { is_over_quota: false, ends_after: None },
    ];
    Box::pin(live_through(&events, false)).await;
    let faults = Faults::crash_at_with(NEVER, false, Lie::ReferencesForgotten);
    let mut history = History::begin_with(false, |index| Arc::new(FaultIndex::new(index, faults))).await;
    for event in events {
        history = Box::pin(history.take(event, "with a lie")).await;
    }
    let broken: Vec<u8> = history.broken.iter().map(|violation| violation.invariant).collect();
    assert_eq!(broken, [6]);
}

/// The first collection of a recovered database takes what a crash after the recovery left.
#[tokio::test]
async fn a_push_that_crashes_right_after_a_recovery_leaves_nothing() {
    let crash = Crash { at: Some(0), effect_kept: true };
    let events = [Event::Recover, Event::Push { path: 0, nar: 0, reference: None, crash }];
    Box::pin(live_through(&events, false)).await;
}

/// A history of the long run is longer, and there are more of them.
fn extent() -> (u32, usize) {
    if std::env::var_os("DORMER_TEST_LONG").is_some() { (400, 60) } else { (24, 24) }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: extent().0,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    })]
    #[test]
    fn random_histories_lose_nothing_and_leave_nothing(
        events in prop::collection::vec(event(), 1..extent().1),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("it starts");
        runtime.block_on(live_through(&events, false));
    }
}

/// The same on PostgreSQL: one short history, and many in the long run.
fn extent_on_postgresql() -> (u32, usize) {
    if std::env::var_os("DORMER_TEST_LONG").is_some() { (60, 40) } else { (1, 12) }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: extent_on_postgresql().0,
        max_shrink_iters: 50,
        ..ProptestConfig::default()
    })]
    #[test]
    fn random_histories_on_postgresql_lose_nothing_and_leave_nothing(
        events in prop::collection::vec(event(), 1..extent_on_postgresql().1),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("it starts");
        runtime.block_on(live_through(&events, true));
    }
}
