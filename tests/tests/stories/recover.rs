//! A lost database: it is made anew from the packs and the journal, or comes back from a backup,
//! and real Nix substitutes every path from it. And a store that is older than its database: the
//! doctor says what is lost.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dormer_testkit::services::Postgres;
use dormer_tests::{Lab, LabOptions, Machine, Nix, Run, http, nars, workspace_root};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

const LOG: &str = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-hello.drv";

/// How many files of the journal were written.
fn journal_files(lab: &Lab) -> usize {
    if !lab.is_embedded() {
        return lab.sql("SELECT sequence FROM journal").trim().parse().unwrap();
    }
    let folder = lab.data_folder().join("storage/journal");
    let Ok(generations) = fs::read_dir(folder) else { return 0 };
    generations.flatten().filter_map(|entry| fs::read_dir(entry.path()).ok()).flatten().count()
}

/// Waits until what was changed before is in the journal: a later change has got a file.
fn journalled(lab: &Lab) {
    static CREATED: AtomicUsize = AtomicUsize::new(0);
    for name in ["later", "last"] {
        let before = journal_files(lab);
        lab.create_cache(&format!("{name}-{}", CREATED.fetch_add(1, Ordering::Relaxed)), &[]);
        let begun = Instant::now();
        while journal_files(lab) <= before {
            assert!(begun.elapsed() < Duration::from_mins(1), "no journal is written: {}", lab.log());
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn drop_database(lab: &mut Lab) {
    lab.kill();
    if !lab.is_embedded() {
        lab.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public");
        return;
    }
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(lab.data_folder().join(format!("index.sqlite{suffix}")));
    }
}

fn start() -> Lab {
    let settings = "[journal]\ninterval = \"1s\"\n".to_owned();
    Lab::start_with(LabOptions { settings: Some(settings), ..LabOptions::default() })
}

/// Changes a byte of the pack that has these bytes. `false` if none has.
fn spoil(folder: &Path, bytes: &[u8]) -> bool {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).any(|path| {
        if path.is_dir() {
            return spoil(&path, bytes);
        }
        let mut pack = fs::read(&path).unwrap();
        let Some(place) = pack.windows(bytes.len()).position(|part| part == bytes) else { return false };
        pack[place] ^= 1;
        fs::write(&path, pack).unwrap();
        true
    })
}

/// Bytes that cannot be compressed.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    SmallRng::seed_from_u64(seed).fill(&mut noise[..]);
    noise
}

/// Real Nix on a new machine gets the path from the cache, with its whole closure.
fn substitutes(lab: &Lab, machine: &str, path: &str, closure: &[String]) {
    let machine = lab.machine(machine, Nix::NEWEST);
    machine.configure(&[lab.public_key("main")]);
    machine.substitute(&lab.cache_url("main"), path).succeeds();
    assert_eq!(machine.closure(path), closure);
    machine.verify_all();
}

#[test]
fn a_lost_database_is_recovered_and_nix_substitutes_every_path() {
    let mut lab = start();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let pushed = builder.build("all", &[("salt", "pushed")]);
    let closure = builder.closure(&pushed);
    builder.dormer(&["cache", "create", "private"]).succeeds();
    builder.dormer(&["push", "main", &pushed, "--pin", "release"]).succeeds();
    let bearer = format!("Bearer {}", lab.admin_token());
    let headers = [("Authorization", bearer.as_str())];
    let logged = http::request(lab.address(), "PUT", &format!("/main/log/{LOG}"), &headers, b"it was built");
    assert!(logged.status < 300, "{logged:?}");
    let key = lab.public_key("main");
    let noise = noise(3, 50_000);
    let spoilt = nars::file(&noise);
    push(&lab, &spoilt, "spoilt");
    journalled(&lab);
    drop_database(&mut lab);
    assert!(spoil(&lab.data_folder().join("storage/packs"), &noise[25_000..25_064]));

    let refused = lab.server_command(&["serve", "--listen", "127.0.0.1:0"]).fails();
    assert!(refused.contains("belongs to another installation") && refused.contains("recover"), "{refused}");
    let report = lab.server_command(&["recover", "--from-store", "--json"]).succeeds();
    assert!(report.contains("\"lost\":0") && report.contains("\"documents\":1"), "{report}");
    let again = lab.server_command(&["recover", "--from-store"]).fails();
    assert!(again.contains("is not empty"), "{again}");
    lab.restart();
    // The new database does not know of the damage. The server looks by itself.
    let begun = Instant::now();
    while lab.get(&format!("/main/{}.narinfo", nars::path_hash(&spoilt))).status != 404 {
        assert!(begun.elapsed() < Duration::from_mins(1), "nobody finds the damage: {}", lab.log());
        thread::sleep(Duration::from_millis(50));
    }

    assert_eq!(lab.public_key("main"), key, "the cache signs with the same key");
    let caches = builder.dormer(&["cache", "list"]).succeeds();
    assert!(["main", "private", "later"].iter().all(|name| caches.contains(name)), "{caches}");
    let pins = builder.dormer(&["pin", "list", "main"]).succeeds();
    assert!(pins.starts_with("release  "), "{pins}");
    assert_eq!(lab.get(&format!("/main/log/{LOG}")).text(), "it was built");
    substitutes(&lab, "reader", &pushed, &closure);
    // A push of the same path finds everything there.
    let again = builder.dormer(&["push", "main", &pushed, "--json"]).succeeds();
    assert!(again.contains("\"pushed\":0"), "{again}");
    let doctor = lab.server_command(&["doctor"]).succeeds();
    assert!(doctor.contains("store and database carry the same id"), "{doctor}");
    assert!(doctor.contains("packs of the database"), "{doctor}");
}

#[test]
fn a_lost_postgresql_database_is_recovered_from_its_bucket() {
    let settings = "[journal]\ninterval = \"1s\"\n".to_owned();
    let mut lab =
        Lab::start_production_with(LabOptions { settings: Some(settings), ..LabOptions::default() });
    let nars: Vec<Vec<u8>> = (0..20_u8).map(|number| nars::file(&[number; 9_000])).collect();
    for nar in &nars {
        push(&lab, nar, "pushed");
    }
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let built = builder.build("all", &[("salt", "recovered")]);
    let closure = builder.closure(&built);
    builder.dormer(&["push", "main", &built]).succeeds();
    let key = lab.public_key("main");
    journalled(&lab);
    drop_database(&mut lab);
    let report = lab.server_command(&["recover", "--from-store", "--json"]).succeeds();
    let paths = format!("\"paths\":{}", nars.len() + closure.len());
    assert!(report.contains("\"lost\":0") && report.contains(&paths), "{report}");
    lab.restart();
    assert_eq!(lab.public_key("main"), key, "the cache signs with the same key");
    substitutes(&lab, "reader", &built, &closure);
    for nar in &nars {
        let narinfo = lab.get(&format!("/main/{}.narinfo", nars::path_hash(nar))).text();
        let url = narinfo
            .lines()
            .find_map(|line| line.strip_prefix("URL: "))
            .unwrap_or_else(|| panic!("{narinfo}"));
        assert_eq!(zstd::decode_all(&*lab.get(&format!("/main/{url}")).body).unwrap(), *nar);
    }
}

/// The pack that has these bytes.
fn pack_with(folder: &Path, bytes: &[u8]) -> Option<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).find_map(|path| {
        if path.is_dir() {
            return pack_with(&path, bytes);
        }
        let has_bytes = fs::read(&path).unwrap().windows(bytes.len()).any(|part| part == bytes);
        has_bytes.then_some(path)
    })
}

/// The lineage that the store keeps from before, as a recovery that asks for one names it.
fn kept_lineage(lab: &Lab) -> String {
    let asked = lab.server_command(&["recover", "--from-store"]).fails();
    assert!(asked.contains("the store has 2 journals"), "{asked}");
    let line =
        asked.lines().find(|line| line.contains("kept from before")).unwrap_or_else(|| panic!("{asked}"));
    let (_, rest) = line.split_once("--lineage ").unwrap();
    rest[..16].to_owned()
}

fn status(lab: &Lab, nar: &[u8]) -> u16 {
    lab.get(&format!("/main/{}.narinfo", nars::path_hash(nar))).status
}

/// Packs are missing at a recovery, turn up later, and the recovery is repeated: nothing is lost.
#[test]
fn a_recovery_with_losses_is_repeated_when_the_packs_are_back() {
    let mut lab = start();
    let (first, second) = (nars::file(&noise(5, 9_000)), nars::file(&noise(6, 9_000)));
    push(&lab, &first, "first");
    push(&lab, &second, "second");
    journalled(&lab);
    drop_database(&mut lab);
    let pack = pack_with(&lab.data_folder().join("storage/packs"), &noise(6, 9_000)[4_000..4_064]).unwrap();
    let aside = lab.folder().join("missing.pack");
    fs::rename(&pack, &aside).unwrap();
    let report = lab.server_command(&["recover", "--from-store", "--json"]).succeeds();
    let lost = format!("{{\"message_type\":\"lost\",\"path\":\"main/{}-second\"}}", nars::path_hash(&second));
    assert!(report.contains("\"lost\":1") && report.contains(&lost), "{report}");
    lab.restart();
    assert_eq!((status(&lab, &first), status(&lab, &second)), (200, 404));
    journalled(&lab);

    drop_database(&mut lab);
    fs::rename(&aside, &pack).unwrap();
    let lineage = kept_lineage(&lab);
    let report = lab.server_command(&["recover", "--from-store", "--lineage", &lineage, "--json"]).succeeds();
    assert!(report.contains("\"lost\":0"), "{report}");
    lab.restart();
    assert_eq!((status(&lab, &first), status(&lab, &second)), (200, 200));
    // What the database in between knew stays too, until somebody says that it is not needed.
    let kept = "the store keeps a journal of another past";
    let doctor = lab.server_command(&["doctor"]).succeeds();
    assert!(doctor.contains(kept) && doctor.contains("--accept-loss"), "{doctor}");
    lab.server_command(&["recover", "--accept-loss"]).succeeds();
    let doctor = lab.server_command(&["doctor"]).succeeds();
    assert!(!doctor.contains(kept), "{doctor}");
}

/// A volume snapshot comes back under the server. The doctor and the log say so, and what was
/// pushed since is recovered from the journal that the store keeps.
#[test]
fn what_a_restored_volume_has_forgotten_is_recovered_from_the_journal() {
    let mut lab = start();
    let (before, after) = (nars::file(&noise(7, 9_000)), nars::file(&noise(8, 9_000)));
    push(&lab, &before, "before");
    journalled(&lab);
    lab.kill();
    let database = |suffix: &str| lab.data_folder().join(format!("index.sqlite{suffix}"));
    let snapshot = lab.folder().join("snapshot");
    fs::create_dir(&snapshot).unwrap();
    let files: Vec<(PathBuf, PathBuf)> = ["", "-wal", "-shm"]
        .map(|suffix| (database(suffix), snapshot.join(format!("index{suffix}"))))
        .into_iter()
        .filter(|(file, _)| file.exists())
        .collect();
    for (file, copy) in &files {
        fs::copy(file, copy).unwrap();
    }
    lab.restart();
    push(&lab, &after, "after");
    journalled(&lab);
    drop_database(&mut lab);
    for (file, copy) in &files {
        fs::copy(copy, file).unwrap();
    }
    let newer = "the journal in the store is newer than this database";
    let doctor = lab.server_command(&["doctor"]).succeeds();
    assert!(doctor.contains(newer), "{doctor}");
    lab.restart();
    let begun = Instant::now();
    while !lab.log().contains(newer) {
        assert!(begun.elapsed() < Duration::from_mins(1), "nobody is told: {}", lab.log());
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!((status(&lab, &before), status(&lab, &after)), (200, 404));
    journalled(&lab);
    drop_database(&mut lab);
    let lineage = kept_lineage(&lab);
    lab.server_command(&["recover", "--from-store", "--lineage", &lineage]).succeeds();
    lab.restart();
    assert_eq!((status(&lab, &before), status(&lab, &after)), (200, 200));
}

/// Checks that the lab has what was pushed and pinned before a backup, and nothing that came after.
fn assert_is_back(lab: &Lab, builder: &Machine, before: &str, after: &str) {
    substitutes(lab, "reader", before, &builder.closure(before));
    let pins = builder.dormer(&["pin", "list", "main"]).succeeds();
    assert!(pins.starts_with("release  "), "{pins}");
    let narinfo = format!("/main/{}.narinfo", &after["/nix/store/".len()..][..32]);
    assert_eq!(lab.get(&narinfo).status, 404, "the backup is older");
}

/// The drill of docs/OPERATING.md, "Backups".
#[test]
fn a_backup_beside_a_serving_server_brings_back_what_it_had() {
    let mut lab = start();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let [before, after] = ["before", "after"].map(|salt| builder.build("all", &[("salt", salt)]));
    builder.dormer(&["push", "main", &before, "--pin", "release"]).succeeds();
    let large = nars::file(&noise(4, 20_000_000));
    let backup = lab.folder().join("backup.sqlite");
    let backup = backup.to_str().unwrap();
    // An upload is under way at that moment.
    thread::scope(|threads| {
        let upload = threads.spawn(|| push(&lab, &large, "meanwhile"));
        lab.server_command(&["backup", backup]).succeeds();
        upload.join().unwrap();
    });
    builder.dormer(&["push", "main", &after]).succeeds();
    drop_database(&mut lab);
    lab.server_command(&["restore", backup]).succeeds();
    lab.restart();

    assert_is_back(&lab, &builder, &before, &after);
    lab.server_command(&["doctor"]).succeeds();
    // Both can be pushed again, on top of packs that the database does not know any more.
    builder.dormer(&["push", "main", &after]).succeeds();
    push(&lab, &large, "meanwhile");
    substitutes(&lab, "later-reader", &after, &builder.closure(&after));
}

/// The commands in docs/OPERATING.md that begin with this word, as they stand there.
fn documented(program: &str) -> String {
    let page = fs::read_to_string(workspace_root().join("docs/OPERATING.md")).unwrap();
    let (_, rest) = page.split_once(&format!("```sh,example\n{program} ")).unwrap();
    format!("{program} {}", rest.split_once("```").unwrap().0)
}

#[test]
fn a_dump_of_postgresql_beside_serving_replicas_brings_back_what_it_had() {
    let settings = "[journal]\ninterval = \"1s\"\n[[edge]]\nname = \"edge\"\ntype = \"local\"\n\
        path = \"LAB/edge\"\ncaches = [\"main\"]\nsettle-time = \"0s\"\n";
    let settings = Some(settings.to_owned());
    // The doctor refuses the secret of all labs: it can be guessed.
    let secret = "cG93ZXItY3V0cy1hbmQtZmxvb2RzLWFuZC1maXJlcy1hbmQtbWljZS1hbmQtbWlzdGFrZXM=";
    let environment = vec![("DORMER_JWT_SIGNING_TOKEN_HS256_SECRET_BASE64".to_owned(), secret.to_owned())];
    let mut lab = Lab::start_production_with(LabOptions { settings, environment, ..LabOptions::default() });
    let (database, server) = (lab.sql("SELECT current_database()").trim().to_owned(), Postgres::shared());
    let run = |lab: &Lab, commands: &str| {
        let commands = commands
            .replace("/backups", lab.folder().to_str().unwrap())
            .replace("$(date +%F)", "2026-11-28")
            .replace("--owner=dormer dormer\n", &format!("--owner=dormer {database}\n"));
        // The settings of the servers count for every command.
        let settings = lab.server_process(&[]);
        let mut shell = Command::new("sh");
        let path = format!("{}:/usr/bin:/bin", lab.folder().join("bin").display());
        shell.args(["-euc", &commands]).env_clear();
        shell.envs(settings.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.env("PATH", path).env("ADMIN_URL", server.url("postgres"));
        Run::of(&mut shell).succeeds()
    };
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let [before, after] = ["before", "after"].map(|salt| builder.build("all", &[("salt", salt)]));
    builder.dormer(&["push", "main", &before, "--pin", "release"]).succeeds();
    lab.server_command(&["publish"]).succeeds();
    let large = nars::file(&noise(4, 8_000_000));
    // An upload is under way at that moment.
    thread::scope(|threads| {
        let upload = threads.spawn(|| push(&lab, &large, "meanwhile"));
        run(&lab, &documented("pg_dump"));
        upload.join().unwrap();
    });
    builder.dormer(&["push", "main", &after]).succeeds();
    lab.kill();
    server.sql("postgres", &format!("DROP DATABASE {database} WITH (FORCE)"));
    let doctor = run(&lab, &documented("createdb"));
    assert!(doctor.contains("store and database carry the same id"), "{doctor}");
    lab.restart();

    assert_is_back(&lab, &builder, &before, &after);
    let refused = lab.server_command(&["publish"]).fails();
    assert!(refused.contains("--reconcile"), "{refused}");
    lab.server_command(&["publish", "--reconcile"]).succeeds();
    // Both can be pushed again, on top of packs that the database does not know any more.
    builder.dormer(&["push", "main", &after]).succeeds();
    push(&lab, &large, "meanwhile");
    substitutes(&lab, "later-reader", &after, &builder.closure(&after));
    // The journal goes on, too.
    journalled(&lab);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn push(lab: &Lab, nar: &[u8], name: &str) {
    let bearer = format!("Bearer {}", lab.admin_token());
    let info = nars::attic_info("main", nar, name);
    let headers = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info", info.as_str())];
    let reply = http::request(lab.address(), "PUT", "/_api/v1/upload-path", &headers, nar);
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[test]
fn an_older_store_than_its_database_is_told_and_the_next_push_heals() {
    let mut lab = start();
    let (old, new) = (nars::file(b"in the copy"), nars::file(&[7; 9_000]));
    push(&lab, &old, "old");
    let (storage, saved) = (lab.data_folder().join("storage"), lab.folder().join("saved"));
    copy(&storage, &saved);
    push(&lab, &new, "new");
    lab.kill();
    fs::remove_dir_all(&storage).unwrap();
    copy(&saved, &storage);
    lab.restart();

    let doctor = lab.server_command(&["doctor"]).fails();
    let lost = format!("{}-new", nars::path_hash(&new));
    assert!(doctor.contains("the store lacks 1 of 2 packs of the database"), "{doctor}");
    assert!(doctor.contains(&format!("1 paths cannot be read: main/{lost}")), "{doctor}");
    assert!(!doctor.contains("-old"), "{doctor}");
    assert!(doctor.contains("scrub --full"), "{doctor}");

    assert_eq!(lab.get(&format!("/main/{}.narinfo", nars::path_hash(&old))).status, 200);
    push(&lab, &old, "old");
    lab.server_command(&["scrub", "--full"]).fails();
    push(&lab, &new, "new");
    let doctor = lab.server_command(&["doctor"]);
    assert!(doctor.stdout().contains("no path needs them"), "{}", doctor.stdout());
}
