//! Retention as users see it: what is unused goes, what is pinned stays, and real Nix agrees.

use std::thread;
use std::time::{Duration, Instant};

use dormer_nix::NarHash;
use dormer_tests::{Lab, LabOptions, Machine, Nix, http, nars};

/// The part of a narinfo's address that names a path.
fn hash(path: &str) -> &str {
    &path["/nix/store/".len()..][..32]
}

/// What `dormer cache ls` names. Listing is no use.
fn listed(machine: &Machine) -> String {
    machine.dormer(&["cache", "ls", "main"]).succeeds()
}

#[test]
fn a_log_goes_before_its_path_in_the_lab_and_at_the_edge() {
    let settings = "[garbage-collection]\ninterval = \"1s\"\nlog-retention-period = \"1d\"\n[[edge]]\n\
                    name = \"edge\"\nsettle-time = \"0s\"\ntype = \"local\"\npath = \"LAB/edge\"\n\
                    caches = [\"main\"]\nlogs = true\n";
    let mut lab =
        Lab::start_with(LabOptions { settings: Some(settings.to_owned()), ..LabOptions::default() });
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let talker = builder.build("talker", &[("salt", "old-log")]);
    builder.dormer(&["push", "main", "--with-logs", &talker]).succeeds();
    let derivation = builder.run("nix-store", &["--query", "--deriver", &talker]).succeeds();
    let log = derivation.trim().replace("/nix/store/", "main/log/");
    let narinfo = format!("main/{}.narinfo", hash(&talker));
    let edge = lab.folder().join("edge");
    lab.server_command(&["publish", "edge"]).succeeds();
    assert!(edge.join(&log).exists() && edge.join(&narinfo).exists());

    // Two days pass.
    lab.kill();
    lab.sql("UPDATE documents SET written_at = written_at - 172800");
    // What this statement itself told followers is done.
    lab.server_command(&["publish", "edge"]).succeeds();
    assert!(edge.join(&log).exists());
    lab.restart();
    let begun = Instant::now();
    while lab.get(&format!("/{log}")).status != 404 {
        assert!(begun.elapsed() < Duration::from_mins(1), "it never expires: {}", lab.log());
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(lab.get(&format!("/{narinfo}")).status, 200);
    lab.server_command(&["publish", "edge"]).succeeds();
    assert!(!edge.join(&log).exists() && edge.join(&narinfo).exists());
}

#[test]
fn an_unused_closure_expires_and_a_pinned_one_stays() {
    let settings = "[garbage-collection]\ninterval = \"1s\"\n".to_owned();
    let mut lab = Lab::start_with(LabOptions { settings: Some(settings), ..LabOptions::default() });
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let pinned = builder.build("all", &[("salt", "pinned")]);
    let unused = builder.build("all", &[("salt", "unused")]);
    let closure = builder.closure(&pinned);
    builder.dormer(&["push", "main", &pinned, "--pin", "release"]).succeeds();
    builder.dormer(&["push", "main", &unused]).succeeds();
    builder.dormer(&["cache", "configure", "main", "--retention-period", "1d"]).succeeds();
    let pins = builder.dormer(&["pin", "list", "main"]).succeeds();
    assert!(pins.starts_with("release  ") && pins.contains(hash(&pinned)), "{pins}");
    let narinfo = lab.get(&format!("/main/{}.narinfo", hash(&unused)));
    let url = narinfo.text().lines().find_map(|line| line.strip_prefix("URL: ").map(str::to_owned));
    let nar = format!("/main/{}", url.expect("a narinfo has a URL"));
    assert!(listed(&builder).contains(hash(&unused)));
    // This client has the closure, and remembers its narinfos when it has deleted it.
    let remembers = lab.machine("remembers", Nix::NEWEST);
    remembers.configure(&[lab.public_key("main")]);
    let forgotten = builder.closure(&unused);
    remembers.substitute(&lab.cache_url("main"), &unused).succeeds();
    remembers.delete(&forgotten);

    // Two days pass.
    lab.kill();
    lab.sql("UPDATE objects SET last_used_at = last_used_at - 172800, pushed_at = pushed_at - 172800");
    lab.restart();
    let begun = Instant::now();
    while listed(&builder).contains(hash(&unused)) {
        assert!(begun.elapsed() < Duration::from_mins(1), "it never expires: {}", lab.log());
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(lab.get(&format!("/main/{}.narinfo", hash(&unused))).status, 404);
    lab.server_command(&["gc"]).succeeds();
    assert_eq!(lab.get(&nar).status, 200, "the NAR is readable during its grace");
    remembers.substitute(&lab.cache_url("main"), &unused).succeeds();
    assert_eq!(remembers.closure(&unused), forgotten);
    remembers.delete(&forgotten);
    // A month passes: the grace is over.
    lab.kill();
    lab.sql(
        "UPDATE graces SET ends_at = ends_at - 2678400;
         UPDATE packs SET created_at = created_at - 2678400, used_at = used_at - 2678400",
    );
    lab.restart();
    lab.server_command(&["gc"]).succeeds();
    assert_eq!(lab.get(&nar).status, 404);
    let refused = remembers.substitute(&lab.cache_url("main"), &unused).fails();
    assert!(refused.contains("404") || refused.contains("does not exist"), "{refused}");

    for nix in Nix::ALL {
        let machine = lab.machine(nix.name(), nix);
        machine.configure(&[lab.public_key("main")]);
        machine.substitute(&lab.cache_url("main"), &pinned).succeeds();
        assert_eq!(machine.closure(&pinned), closure);
        machine.verify_all();
        machine.substitute(&lab.cache_url("main"), &unused).fails();
    }

    // By hand, with what refers to it, pinned or not: a leaked secret must go.
    let library = closure.iter().find(|path| path.contains("library")).expect("the closure has a library");
    builder.dormer(&["cache", "remove-path", "main", library, "--with-referrers"]).succeeds();
    let left = listed(&builder);
    assert!(!left.contains(hash(library)) && !left.contains(hash(&pinned)), "{left}");
    builder.dormer(&["pin", "remove", "main", "release"]).succeeds();
    assert_eq!(builder.dormer(&["pin", "list", "main"]).succeeds(), "");
    builder.dormer(&["push", "main", &pinned]).succeeds();
    assert!(listed(&builder).contains(hash(library)));
}

/// Bytes that do not compress, so that a pack holds them as they are.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = dormer_testkit::Random::new(seed);
    (0..length.div_ceil(8)).flat_map(|_| random.next_u64().to_le_bytes()).take(length).collect()
}

/// How many files below a folder hold these bytes.
fn count_files_with(folder: &std::path::Path, bytes: &[u8]) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            count += count_files_with(&path, bytes);
        } else if std::fs::read(&path).is_ok_and(|file| file.windows(bytes.len()).any(|part| part == bytes)) {
            count += 1;
        }
    }
    count
}

#[test]
fn a_leaked_secret_leaves_the_bucket_and_what_shared_its_pack_stays() {
    let lab = Lab::start();
    let token = lab.admin_token();
    let bearer = format!("Bearer {token}");
    let shared = noise(1, 1 << 20);
    let secret = noise(2, 300_000);
    let leaked = nars::file(&[shared.as_slice(), &secret].concat());
    let kept = nars::file(&[shared.as_slice(), b"nothing to hide"].concat());
    let upload = |nar: &[u8], name: &str| {
        let info = nars::attic_info("main", nar, name);
        let headers = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info", info.as_str())];
        http::request(lab.address(), "PUT", "/_api/v1/upload-path", &headers, nar)
    };
    assert_eq!(upload(&leaked, "leaked").status, 200);
    assert_eq!(upload(&kept, "kept").status, 200);
    let bucket = lab.data_folder().join("storage");
    // The middle of the secret, which no chunk border cuts everywhere.
    let parts: Vec<&[u8]> = secret.chunks(50_000).map(|part| &part[..64]).collect();
    let found = |parts: &[&[u8]]| parts.iter().filter(|part| count_files_with(&bucket, part) > 0).count();
    assert!(found(&parts) >= parts.len() - 1, "the bucket holds the secret");

    lab.login();
    let path = format!("/nix/store/{}-leaked", nars::path_hash(&leaked));
    let run = lab.dormer(&["cache", "remove-path", "main", &path, "--now"]);
    let said = run.stderr();
    run.succeeds();
    assert!(said.contains("gone from the store"), "{said}");
    assert_eq!(found(&parts), 0, "no file holds a part of the secret");
    assert_eq!(lab.get(&format!("/main/{}.narinfo", nars::path_hash(&leaked))).status, 404);
    let leaks = lab.inspection().check(&[NarHash::digest(&kept)]);
    assert_eq!((leaks.packs, leaks.nars), (0, 0), "{leaks}");
    let run = lab.dormer(&["cache", "remove-path", "main", &path, "--now"]);
    let said = run.stderr();
    run.fails();
    assert!(said.contains("push it again, then remove it with --now"), "{said}");
    assert!(!said.contains("gone from the store"), "{said}");

    // It comes again, and is removed without its bytes first.
    assert_eq!(upload(&leaked, "leaked").status, 200, "it can come again");
    assert!(found(&parts) >= parts.len() - 1, "the bucket holds the secret");
    lab.dormer(&["cache", "remove-path", "main", &path]).succeeds();
    let run = lab.dormer(&["cache", "remove-path", "main", &path, "--now"]);
    let said = run.stderr();
    run.succeeds();
    assert!(said.contains("gone from the store"), "{said}");
    assert_eq!(found(&parts), 0, "no file holds a part of the secret");
}

/// Each way to list a cache, and what it names; and the settings that go back to the server's.
#[test]
fn a_cache_is_listed_by_name_use_and_size_and_its_rules_go_back_to_the_servers() {
    let mut lab = Lab::start();
    let bearer = format!("Bearer {}", lab.admin_token());
    let nars = [("small-1", 1_000), ("large-1", 90_000), ("large-2", 30_000)]
        .map(|(name, bytes)| (name, nars::file(&noise(bytes, bytes.try_into().expect("it is small")))));
    for (name, nar) in &nars {
        let info = nars::attic_info("main", nar, name);
        let headers = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info", info.as_str())];
        let pushed = http::request(lab.address(), "PUT", "/_api/v1/upload-path", &headers, nar);
        assert_eq!(pushed.status, 200, "{pushed:?}");
    }
    // Each came so many days ago, and was used so many days ago.
    lab.kill();
    for (name, came_days, used_days) in [("small-1", 60, 10), ("large-1", 40, 35), ("large-2", 50, 0)] {
        lab.sql(&format!(
            "UPDATE objects SET created_at = created_at - {came_days} * 86400,
                 last_used_at = last_used_at - {used_days} * 86400 WHERE name = '{name}'"
        ));
    }
    lab.restart();
    lab.login();
    for (arguments, expected) in [
        (&[][..], &["large-1", "small-1", "large-2"][..]),
        (&["--sort", "used"], &["large-1", "small-1", "large-2"]),
        (&["--sort", "size"], &["large-1", "large-2", "small-1"]),
        (&["--sort", "age"], &["small-1", "large-2", "large-1"]),
        (&["--name", "large-*", "--sort", "age"], &["large-2", "large-1"]),
        (&["--name", "large"], &[]),
        (&["--unused-for", "30d"], &["large-1"]),
        (&["--unused-for", "5d", "--sort", "size"], &["large-1", "small-1"]),
        (&["--unused-for", "5d", "--name", "small-1"], &["small-1"]),
    ] {
        let listed = lab.dormer(&[&["cache", "ls", "main"], arguments].concat()).succeeds();
        let names: Vec<&str> = listed
            .lines()
            .filter_map(|line| nars.iter().map(|(name, _)| *name).find(|name| line.contains(name)))
            .collect();
        assert_eq!(names, expected, "{arguments:?}: {listed}");
    }

    for (arguments, retention, quota) in [
        (
            &["--retention-period", "30d", "--quota", "1GB"][..],
            r#"{"Period":2592000}"#,
            r#"{"Bytes":1000000000}"#,
        ),
        (&["--reset-retention-period"], r#""Global""#, r#"{"Bytes":1000000000}"#),
        (&["--retention-period", "0d", "--reset-quota"], r#"{"Period":0}"#, "null"),
        (&["--reset-retention-period", "--quota", "0"], r#""Global""#, r#"{"Bytes":0}"#),
    ] {
        lab.dormer(&[&["cache", "configure", "main"], arguments].concat()).succeeds();
        let config = lab.cache_config("main");
        let found = ["retention_period", "quota"].map(|key| config[key].to_string());
        assert_eq!(found, [retention, quota], "{arguments:?}");
    }
    let both = ["cache", "configure", "main", "--quota", "1GB", "--reset-quota"];
    assert_eq!(lab.dormer(&both).code(), Some(2), "one of them");
}
