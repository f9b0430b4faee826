//! Publishing, followed to its end: what `dormer publish` brings to a folder or a bucket, real Nix
//! substitutes from there without any program of ours.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use dormer_nix::NarHash;
use dormer_testkit::services::SeaweedFs;
use dormer_tests::{Lab, LabOptions, Machine, Nix, Run, StaticServer, http, nars};
use serde_json::Value;

/// A lab with one edge target.
struct Published {
    lab: Lab,
}

impl Published {
    /// `target` are the lines of `[[edge]]` behind its name.
    fn start(target: &str) -> Self {
        let settings = format!("[[edge]]\nname = \"edge\"\nsettle-time = \"0s\"\n{target}\n");
        let environment = vec![("DORMER_METRICS_LISTEN".to_owned(), "127.0.0.1:0".to_owned())];
        let settings = Some(settings);
        Self { lab: Lab::start_with(LabOptions { settings, environment, ..LabOptions::default() }) }
    }

    fn in_folder(caches: &str) -> Self {
        Self::start(&format!("type = \"local\"\npath = \"LAB/edge\"\ncaches = {caches}"))
    }

    fn edge(&self) -> PathBuf {
        self.lab.folder().join("edge")
    }

    fn publish(&self, arguments: &[&str]) -> Run {
        let mut all = vec!["publish"];
        all.extend(arguments);
        self.lab.server_command(&all)
    }

    /// What each replica's page of metrics says of publishing.
    fn metrics(&self) -> Vec<String> {
        let log = self.lab.log();
        let found =
            log.lines().filter_map(|line| line.split_once("metrics on http://")?.1.strip_suffix("/metrics"));
        let pages: Vec<String> = found.map(|address| http::get(address, "/metrics", None).text()).collect();
        assert!(!pages.is_empty(), "{log}");
        pages
    }

    fn status(&self) -> Value {
        let said = self.publish(&["status", "--json"]).succeeds();
        serde_json::from_str(said.lines().next().unwrap()).unwrap()
    }
}

fn hash_of(path: &str) -> &str {
    &path["/nix/store/".len()..][..32]
}

/// Substitutes into an empty store, with signatures required, and verifies everything.
fn fetches(machine: &Machine, url: &str, path: &str) {
    machine.substitute(url, path).succeeds();
    machine.verify_all();
}

#[test]
fn a_published_folder_is_a_cache_to_every_nix() {
    let published = Published::in_folder("[\"main\"]");
    let lab = &published.lab;
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(lab);
    let all = builder.build("all", &[("salt", "edge")]);
    builder.dormer(&["push", "main", &all]).succeeds();

    let dry = published.publish(&["--dry-run"]).succeeds();
    assert!(dry.contains("6 paths"), "{dry}");
    assert!(!published.edge().exists(), "not even the folder is made");
    let first = published.publish(&["edge"]);
    first.succeeds();
    assert!(first.stderr().contains("published 6 paths"), "{first}");
    let narinfo =
        fs::read_to_string(published.edge().join(format!("main/{}.narinfo", hash_of(&all)))).unwrap();
    for field in ["FileHash: sha256:", "FileSize: ", "URL: nar/", "Compression: zstd", "Sig: main:"] {
        assert!(narinfo.contains(field), "{narinfo}");
    }

    // While the server runs and after it: nothing of ours is needed to read.
    let server = StaticServer::start(&published.edge());
    let key = lab.public_key("main");
    for nix in Nix::ALL {
        let urls = [format!("file://{}/main", published.edge().display()), server.url("main")];
        for (number, url) in urls.iter().enumerate() {
            let machine = lab.machine(&format!("puller-{}-{number}", nix.name()), nix);
            machine.configure(std::slice::from_ref(&key));
            fetches(&machine, url, &all);
            assert_eq!(machine.closure(&all).len(), 6);
        }
    }

    let again = published.publish(&["edge"]);
    again.succeeds();
    assert!(again.stderr().contains("published 0 paths"), "{again}");
    let status = published.status();
    assert_eq!(status["caches"][0]["published"], 6, "{status}");
    assert_eq!(status["caches"][0]["pending"], 0, "{status}");
    let place = "{cache=\"main\",target=\"edge\"}";
    for page in published.metrics() {
        for line in [
            format!("dormer_publish_published_paths{place} 6"),
            format!("dormer_publish_pending_paths{place} 0"),
            "dormer_publish_lag_seconds{target=\"edge\"} 0".to_owned(),
        ] {
            assert!(page.lines().any(|shown| shown == line), "{line} is not in\n{page}");
        }
    }
}

#[test]
fn recompressed_nars_are_smaller_and_as_good() {
    let published =
        Published::start("type = \"local\"\npath = \"LAB/edge\"\ncaches = [\"main\"]\nrecompress-level = 19");
    let lab = &published.lab;
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(lab);
    let all = builder.build("all", &[("salt", "recompressed")]);
    // Large enough to go in parts.
    let noise = builder.build("noise", &[("salt", "recompressed"), ("megabytes", "20")]);
    builder.dormer(&["push", "main", &all, &noise]).succeeds();
    published.publish(&["edge"]).succeeds();
    for path in [&all, &noise] {
        let narinfo = format!("main/{}.narinfo", hash_of(path));
        let in_lab = lab.get(&format!("/{narinfo}")).text();
        let at_edge = fs::read_to_string(published.edge().join(narinfo)).unwrap();
        let url = |narinfo: &str| narinfo.lines().find(|line| line.starts_with("URL: ")).map(str::to_owned);
        assert_ne!(url(&in_lab), url(&at_edge), "other bytes have another name");
        let machine = lab.machine(&format!("puller-{}", hash_of(path)), Nix::NEWEST);
        machine.configure(&[lab.public_key("main")]);
        fetches(&machine, &format!("file://{}/main", published.edge().display()), path);
    }
    let again = published.publish(&["edge"]);
    again.succeeds();
    assert!(again.stderr().contains("published 0 paths"), "{again}");
    assert!(published.publish(&["edge", "--reconcile"]).succeeds().is_empty(), "nothing drifted");
}

#[test]
fn updates_and_removals_come_to_the_edge_and_drift_is_repaired() {
    let published = Published::in_folder("[\"*\"]");
    let lab = &published.lab;
    lab.login();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(lab);
    let first = builder.build("all", &[("salt", "one")]);
    builder.dormer(&["push", "main", &first]).succeeds();
    published.publish(&["--once"]).succeeds();
    let narinfo = |path: &str| published.edge().join(format!("main/{}.narinfo", hash_of(path)));
    assert!(narinfo(&first).exists());

    let second = builder.build("all", &[("salt", "two")]);
    builder.dormer(&["push", "main", &second]).succeeds();
    lab.dormer(&["cache", "remove-path", "main", &first]).succeeds();
    published.publish(&[]).succeeds();
    assert!(narinfo(&second).exists() && !narinfo(&first).exists());
    let server = StaticServer::start(&published.edge());
    let machine = lab.machine("by-http", Nix::NEWEST);
    machine.configure(&[lab.public_key("main")]);
    machine.substitute(&server.url("main"), &first).fails();
    fetches(&machine, &server.url("main"), &second);
    let gone = fs::read_dir(published.edge().join("main/nar")).unwrap().count();
    published.publish(&[]).succeeds();
    assert_eq!(fs::read_dir(published.edge().join("main/nar")).unwrap().count(), gone, "nothing more to do");

    // A new signing key signs what is published.
    let before = fs::read_to_string(narinfo(&second)).unwrap();
    lab.dormer(&["cache", "configure", "main", "--regenerate-keypair"]).succeeds();
    published.publish(&[]).succeeds();
    assert_ne!(fs::read_to_string(narinfo(&second)).unwrap(), before);

    // Missing, damaged, extra.
    let nar = fs::read_dir(published.edge().join("main/nar")).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&nar).unwrap();
    fs::write(&nar, &whole[..whole.len() / 2]).unwrap();
    fs::write(narinfo(&second), "StorePath: damaged\n").unwrap();
    let stranger = published.edge().join("main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5.narinfo");
    fs::write(&stranger, "not ours").unwrap();
    // What a write left that was killed two days ago, and what another one may still be writing.
    let (abandoned, fresh) = (nar.with_extension("zst#1"), nar.with_extension("zst#2"));
    for staged in [&abandoned, &fresh] {
        fs::write(staged, "half").unwrap();
    }
    let two_days = Duration::from_hours(48);
    fs::File::options()
        .write(true)
        .open(&abandoned)
        .unwrap()
        .set_modified(SystemTime::now() - two_days)
        .unwrap();
    let repaired = published.publish(&["--reconcile"]);
    repaired.succeeds();
    assert_eq!(fs::read(&nar).unwrap(), whole, "{repaired}");
    assert!(!stranger.exists(), "{repaired}");
    assert!(!abandoned.exists() && fresh.exists(), "{repaired}");
    let machine = lab.machine("puller", Nix::NEWEST);
    machine.configure(&[lab.public_key("main")]);
    fetches(&machine, &format!("file://{}/main", published.edge().display()), &second);
}

/// Waits until something is so.
fn comes(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_mins(1), "not within a minute: {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn what_changes_while_it_watches_comes_by_itself() {
    let published = Published::in_folder("[\"main\"]");
    let lab = &published.lab;
    lab.login();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(lab);
    let first = builder.build("all", &[("salt", "first")]);
    builder.dormer(&["push", "main", &first]).succeeds();
    let mut command = lab.server_process(&["publish", "--watch"]);
    let watching =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let is_there = |path: &str| published.edge().join(format!("main/{}.narinfo", hash_of(path))).exists();
    let count = || state_of_main(&published).map(|state| state["object_count"].as_u64().unwrap());
    comes("a first run", || count() == Some(6));
    assert!(is_there(&first));

    let second = builder.build("all", &[("salt", "second")]);
    builder.dormer(&["push", "main", &second]).succeeds();
    comes("a push", || is_there(&second));
    lab.dormer(&["cache", "remove-path", "main", &first]).succeeds();
    comes("a removal", || !is_there(&first));
    Run::of(Command::new("kill").args(["-TERM", &watching.id().to_string()])).succeeds();
    Run::wait_for(watching).succeeds();
}

/// What the target says of the cache `main`.
fn state_of_main(published: &Published) -> Option<Value> {
    let json = fs::read(published.edge().join("main/dormer-state.json")).ok()?;
    Some(serde_json::from_slice(&json).unwrap())
}

/// A lab whose target is a bucket of this server.
fn in_bucket(s3: &SeaweedFs, bucket: &str) -> Published {
    let access = s3.access();
    Published::start(&format!(
        "type = \"s3\"\nbucket = {bucket:?}\nregion = {:?}\nendpoint = {:?}\nprefix = \"caches\"\n\
         caches = [\"main\", \"secret\"]\n\
         [edge.credentials]\naccess_key_id = {:?}\nsecret_access_key = {:?}",
        access.region, access.endpoint, access.access_key_id, access.secret_access_key
    ))
}

/// What `publish --json` said of a cache, and of the target.
fn said_of(run: &Run, cache: &str) -> (Value, Value) {
    let lines: Vec<Value> = run.stdout().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str, cache: Option<&str>| {
        let found = lines
            .iter()
            .find(|line| line["message_type"] == kind && cache.is_none_or(|name| line["cache"] == name));
        found.unwrap_or_else(|| panic!("{run}")).clone()
    };
    (of("publish_cache", Some(cache)), of("publish", None))
}

#[test]
fn a_public_bucket_is_a_cache_to_nix_by_s3_and_by_http_and_takes_no_private_cache() {
    let s3 = SeaweedFs::start_readable_by_anybody();
    let bucket = s3.new_bucket();
    let published = in_bucket(&s3, &bucket);
    let lab = &published.lab;
    lab.create_cache("secret", &[]);
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(lab);
    let all = builder.build("all", &[("salt", "s3")]);
    for cache in ["main", "secret"] {
        builder.dormer(&["push", cache, &all]).succeeds();
    }
    let run = published.publish(&["--json"]);
    assert!(run.fails().contains("is private, but anybody can read"), "{run}");
    let (main, target) = said_of(&run, "main");
    assert_eq!((main["published"].as_u64(), main["error"].as_str()), (Some(6), None), "{run}");
    // Six narinfos, six NARs, two documents of the cache of which one is written twice, the
    // catalogue, and the mark of the lab.
    assert!(target["writes"].as_u64().unwrap() <= 17, "{run}");
    let (secret, _) = said_of(&run, "secret");
    assert_eq!(secret["published"], 0, "{run}");

    let (endpoint, region) = (s3.endpoint(), &s3.access().region);
    let by_s3 =
        format!("s3://{bucket}/caches/main?endpoint={endpoint}&region={region}&addressing-style=path");
    let by_http = format!("{endpoint}/{bucket}/caches/main");
    let key = lab.public_key("main");
    for nix in Nix::ALL {
        let machine = lab.machine(&format!("by-http-{}", nix.name()), nix);
        machine.configure(std::slice::from_ref(&key));
        fetches(&machine, &by_http, &all);
    }
    // Older ones of Debian were built without S3.
    let machine = lab.machine("by-s3", Nix::NEWEST);
    machine.configure(std::slice::from_ref(&key));
    fetches(&machine, &by_s3, &all);

    // An update and a removal.
    let next = builder.build("all", &[("salt", "s3-later")]);
    builder.dormer(&["push", "main", &next]).succeeds();
    lab.login();
    lab.dormer(&["cache", "remove-path", "main", &all]).succeeds();
    published.publish(&[]).fails();
    for (name, url) in [("by-http", &by_http), ("by-s3", &by_s3)] {
        let machine = lab.machine(&format!("{name}-later"), Nix::NEWEST);
        machine.configure(std::slice::from_ref(&key));
        machine.substitute(url, &all).fails();
        fetches(&machine, url, &next);
    }
    let secret = format!("{endpoint}/{bucket}/caches/secret");
    let machine = lab.machine("curious", Nix::NEWEST);
    machine.configure(&[lab.public_key("secret")]);
    machine.substitute(&secret, &all).fails();
}

#[test]
fn a_bucket_that_nobody_else_can_read_takes_private_caches_too() {
    let s3 = SeaweedFs::start();
    let bucket = s3.new_bucket();
    let published = in_bucket(&s3, &bucket);
    let lab = &published.lab;
    lab.create_cache("secret", &[]);
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(lab);
    let all = builder.build("all", &[("salt", "private")]);
    builder.dormer(&["push", "secret", &all]).succeeds();
    let run = published.publish(&["--json"]);
    run.succeeds();
    assert_eq!(said_of(&run, "secret").0["published"], 6, "{run}");
    // A change costs what changed, and nothing is listed.
    let more = builder.build("empty", &[("salt", "more")]);
    builder.dormer(&["push", "secret", &more]).succeeds();
    let run = published.publish(&["--json"]);
    run.succeeds();
    let (secret, target) = said_of(&run, "secret");
    assert_eq!(secret["published"], 1, "{run}");
    assert!(target["writes"].as_u64().unwrap() <= 3, "narinfo, NAR, state: {run}");
    let run = published.publish(&["--json"]);
    run.succeeds();
    assert_eq!(said_of(&run, "secret").1["writes"], 0, "{run}");
}

#[test]
fn a_large_nar_goes_in_parts_and_a_run_that_is_killed_in_the_middle_is_done_again() {
    let s3 = SeaweedFs::start_readable_by_anybody();
    let (bucket, access) = (s3.new_bucket(), s3.access());
    let published = Published::start(&format!(
        "type = \"s3\"\nbucket = {bucket:?}\nregion = {:?}\nendpoint = {:?}\ncaches = [\"main\"]\n\
         lease = \"3s\"\ntimeout = \"5s\"\nbandwidth = \"8 MiB\"\n\
         [edge.credentials]\naccess_key_id = {:?}\nsecret_access_key = {:?}",
        access.region, access.endpoint, access.access_key_id, access.secret_access_key
    ));
    let lab = &published.lab;
    // Four parts, and nothing to compress.
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()
    })
    .flat_map(|bytes| [bytes[0], bytes[1], bytes[2], bytes[3]])
    .take(56 * 1024 * 1024)
    .collect();
    let nar = nars::file(&noise);
    let authorization = format!("Bearer {}", lab.admin_token());
    let info = nars::attic_info("main", &nar, "large");
    let headers = [("Authorization", authorization.as_str()), ("X-Attic-Nar-Info", info.as_str())];
    let reply = http::request(lab.address(), "PUT", "/_api/v1/upload-path", &headers, &nar);
    assert_eq!(reply.status, 200, "{reply:?}");

    let narinfo = format!("/{bucket}/main/{}.narinfo", nars::path_hash(&nar));
    let endpoint = s3.endpoint().trim_start_matches("http://");
    let mut command = lab.server_process(&["publish", "edge"]);
    let mut killed = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // At that rate all of it takes seven seconds.
    thread::sleep(Duration::from_secs(3));
    assert!(killed.try_wait().unwrap().is_none(), "it had time enough");
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(http::get(endpoint, &narinfo, None).status, 404);

    let mut command = lab.server_process(&["publish", "edge", "--json"]);
    let run = Run::of(command.env("DORMER_EDGE_EDGE_BANDWIDTH", "0"));
    run.succeeds();
    let (main, target) = said_of(&run, "main");
    assert_eq!((main["published"].as_u64(), main["nars_uploaded"].as_u64()), (Some(1), Some(1)), "{run}");
    // Begin, four parts, end; the narinfo; documents.
    assert!((7..=12).contains(&target["writes"].as_u64().unwrap()), "{run}");
    let text = http::get(endpoint, &narinfo, None).text();
    let url = text.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
    let file = http::get(endpoint, &format!("/{bucket}/main/{url}"), None);
    assert_eq!((file.status, file.complete), (200, true), "{:?}", file.headers);
    let read = zstd::decode_all(file.body.as_slice()).unwrap();
    assert!(NarHash::digest(&read) == NarHash::digest(&nar));
}
