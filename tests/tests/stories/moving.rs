//! Moving a cache: exports that real Nix reads without Dormer, imports of what real Nix, Dormer and
//! nginx hold, and a new master key while the server runs.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use dormer_testkit::services::{S3Access, SeaweedFs};
use dormer_tests::{Lab, LabOptions, Machine, Nix, Run, StaticServer};
use serde_json::Value;

/// A machine that signs what it builds, and its public key.
fn signing_builder(lab: &Lab, name: &str) -> (Machine, String) {
    let machine = lab.machine(name, Nix::NEWEST);
    let (secret, public) = (machine.home().join("secret-key"), machine.home().join("public-key"));
    let (secret_path, public_path) = (secret.to_str().unwrap(), public.to_str().unwrap());
    machine
        .run("nix-store", &["--generate-binary-cache-key", "builder-1", secret_path, public_path])
        .succeeds();
    let public_key = fs::read_to_string(public_path).unwrap().trim().to_owned();
    machine.configure(std::slice::from_ref(&public_key));
    machine.sign_builds(&secret);
    (machine, public_key)
}

/// A new machine that trusts this key fetches the path from a cache, with its closure.
fn fetches(lab: &Lab, name: &str, key: &str, cache_url: &str, path: &str) {
    let reader = lab.machine(name, Nix::NEWEST);
    reader.configure(&[key.to_owned()]);
    reader.substitute(cache_url, path).succeeds();
    reader.verify_all();
}

/// A new machine that trusts this key reads the log of a path from a cache, and gets a
/// content-addressed path of which it has only the expression.
fn reads_documents(lab: &Lab, name: &str, key: &str, cache_url: &str, talker: &str, floater: &str) {
    let reader = lab.machine(name, Nix::NEWEST);
    reader.configure(&[key.to_owned()]);
    reader.allow_content_addressed();
    let log = reader.run("nix", &["log", "--option", "substituters", cache_url, talker]);
    assert_eq!(log.succeeds(), "a word from export\n", "{cache_url}");
    let expression = reader.expression();
    let build = ["--no-out-link", "--argstr", "salt", "export", "-A", "floater", "--max-jobs", "0"];
    let build = [&[expression.as_str()][..], &build, &["--option", "substituters", cache_url]].concat();
    assert_eq!(reader.run("nix-build", &build).succeeds().trim(), floater, "{cache_url}");
    reader.verify_all();
}

/// The line of JSON of this type.
fn message(run: &Run, message_type: &str) -> Value {
    let stdout = run.stdout();
    let mut lines = stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let found = lines.rfind(|line| line["message_type"] == message_type);
    found.unwrap_or_else(|| panic!("no {message_type}: {run}"))
}

/// The hash part of a store path.
fn hash_of(path: &str) -> &str {
    &path["/nix/store/".len()..][..32]
}

fn with_credentials(command: &mut Command, access: &S3Access) -> Run {
    command
        .env("AWS_ACCESS_KEY_ID", &access.access_key_id)
        .env("AWS_SECRET_ACCESS_KEY", &access.secret_access_key)
        .env("AWS_REGION", &access.region);
    Run::of(command)
}

#[test]
fn an_export_is_read_by_nix_from_files_and_nginx_and_imported_from_a_bucket() {
    let lab = Lab::start();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let all = builder.build("all", &[("salt", "export")]);
    builder.dormer(&["push", "main", &all]).succeeds();
    let count = builder.closure(&all).len() as u64;
    let key = lab.public_key("main");

    let folder = lab.folder().join("exported/main");
    let to = folder.to_str().unwrap();
    let exported = lab.server_command(&["export", "main", "--to", to, "--json"]);
    exported.succeeds();
    let said = message(&exported, "export");
    assert_eq!((&said["exported"], &said["failed"]), (&count.into(), &0.into()), "{said}");
    let narinfo = fs::read_to_string(folder.join(format!("{}.narinfo", hash_of(&all)))).unwrap();
    assert!(narinfo.contains("\nFileHash: sha256:") && narinfo.contains("\nFileSize: "), "{narinfo}");
    assert!(folder.join(format!("{}.ls", hash_of(&all))).exists());
    let nginx = StaticServer::start(&lab.folder().join("exported"));
    fetches(&lab, "from-nginx", &key, &nginx.url("main"), &all);
    fetches(&lab, "from-files", &key, &format!("file://{to}"), &all);

    // Again, and after other pushes: only what is new, with a log and build traces.
    let talker = builder.build("talker", &[("salt", "export")]);
    builder.dormer(&["push", "main", "--with-logs", &talker]).succeeds();
    builder.set_netrc(lab.address(), &lab.token(&["--pull", "main", "--push", "main"]));
    builder.allow_content_addressed();
    let floater = builder.build("floater", &[("salt", "export")]);
    let expression = builder.expression();
    let (target, floating) = (lab.cache_url("main"), ["--argstr", "salt", "export", "floater"]);
    let copy = [&["copy", "--to", &target, "--file", &expression][..], &floating].concat();
    builder.run("nix", &copy).succeeds();
    let paths: BTreeSet<String> =
        [&all, &talker, &floater].into_iter().flat_map(|path| builder.closure(path)).collect();
    let total = paths.len() as u64;
    let again = lab.server_command(&["export", "main", "--to", to, "--logs", "--json"]);
    again.succeeds();
    let said = message(&again, "export");
    assert_eq!((&said["exported"], &said["unchanged"]), (&(total - count).into(), &count.into()), "{said}");
    // A log and a trace: a newer Nix tells no trace of what an output refers to.
    assert!(said["documents"].as_u64().unwrap() >= 2, "{said}");
    reads_documents(&lab, "documents-from-files", &key, &format!("file://{to}"), &talker, &floater);
    assert_eq!(lab.server_command(&["export", "none", "--to", to]).code(), Some(1));

    // To a bucket, and from there into another cache.
    let s3 = SeaweedFs::start();
    let access = s3.access();
    let bucket = s3.new_bucket();
    let place = format!("s3://{bucket}/a/prefix?endpoint={}&region={}", access.endpoint, access.region);
    let mut export = lab.server_process(&["export", "main", "--to", &place, "--logs", "--json"]);
    let exported = with_credentials(&mut export, access);
    exported.succeeds();
    assert_eq!(message(&exported, "export")["documents"], said["documents"], "{exported}");
    lab.create_cache("copy", &["--public"]);
    let import = ["import", "copy", "--from", &place, "--trusted-public-key", &key, "--logs", "--json"];
    let imported = with_credentials(&mut lab.client_process(&import), access);
    imported.succeeds();
    let (documents, said) = (said["documents"].as_u64().unwrap(), message(&imported, "import"));
    assert_eq!((&said["imported"], &said["failed"]), (&total.into(), &0.into()), "{said}");
    assert_eq!((&said["traces"], &said["logs"]), (&(documents - 1).into(), &1.into()), "{said}");
    fetches(&lab, "from-copy", &lab.public_key("copy"), &lab.cache_url("copy"), &all);
    let (copy_key, copy_url) = (lab.public_key("copy"), lab.cache_url("copy"));
    reads_documents(&lab, "documents-from-copy", &copy_key, &copy_url, &talker, &floater);
    // The signature of the cache that it comes from stays.
    let narinfo = lab.get(&format!("/copy/{}.narinfo", hash_of(&all))).text();
    assert_eq!(narinfo.matches("\nSig: ").count(), 2, "{narinfo}");
}

#[test]
fn whatever_nix_copied_to_files_is_imported_in_every_compression() {
    let lab = Lab::start();
    let (builder, key) = signing_builder(&lab, "builder");
    lab.create_cache("moved", &["--public"]);
    let mut tools = Vec::new();
    for compression in ["xz", "zstd", "bzip2", "gzip", "br", "lz4", "none"] {
        let tool = builder.build("tool", &[("salt", &format!("moved-{compression}"))]);
        let folder = lab.folder().join(format!("theirs-{compression}"));
        let to = format!("file://{}?compression={compression}", folder.display());
        builder.run("nix", &["copy", "--to", &to, &tool]).succeeds();
        let narinfo = fs::read_to_string(folder.join(format!("{}.narinfo", hash_of(&tool)))).unwrap();
        assert!(narinfo.contains(&format!("Compression: {compression}\n")), "{narinfo}");
        let from = folder.to_str().unwrap();
        let run = lab.dormer(&["import", "moved", "--from", from, "--trusted-public-key", &key, "--json"]);
        run.succeeds();
        let said = message(&run, "import");
        assert_eq!((&said["imported"], &said["failed"]), (&2.into(), &0.into()), "{compression}: {said}");
        tools.push(tool);
    }
    let folder = lab.folder().join("theirs-none");
    let again = ["import", "moved", "--from", folder.to_str().unwrap(), "--trusted-public-key", &key];
    let info = folder.join("nix-cache-info");
    fs::write(&info, "Future: x\nno colon\nStoreDir:/nix/store \r\n").unwrap();
    lab.dormer(&again).succeeds();
    fs::write(&info, "StoreDir: /gnu/store\n").unwrap();
    let refused = lab.dormer(&again).fails();
    assert!(refused.contains("/gnu/store"), "{refused}");

    let reader = lab.machine("reader", Nix::NEWEST);
    reader.configure(&[lab.public_key("moved")]);
    for tool in &tools {
        reader.substitute(&lab.cache_url("moved"), tool).succeeds();
    }
    reader.verify_all();
}

#[test]
fn an_import_takes_only_what_is_trusted_and_one_bad_path_stops_its_referrers_alone() {
    let lab = Lab::start();
    let builder = lab.machine("builder", Nix::NEWEST);
    lab.create_cache("moved", &["--public"]);
    let folder = lab.folder().join("theirs");
    let to = format!("file://{}?compression=xz", folder.display());
    let from = folder.to_str().unwrap();
    // Nobody signs here. Three paths prove themselves by their content.
    let all = builder.build("all", &[("salt", "unsigned")]);
    let file = lab.folder().join("hello");
    fs::write(&file, "hello\n").unwrap();
    let file = file.to_str().unwrap();
    let mut proven = vec![
        builder.run("nix-store", &["--add", file]).succeeds().trim().to_owned(),
        builder.run("nix-store", &["--add-fixed", "sha256", file]).succeeds().trim().to_owned(),
    ];
    let text = builder.run(
        "nix-instantiate",
        &["--eval", "--read-write-mode", "--expr", "builtins.toFile \"note\" \"a note\\n\""],
    );
    proven.push(text.succeeds().trim().trim_matches('"').to_owned());
    let mut copy = vec!["copy", "--to", &to, &all];
    copy.extend(proven.iter().map(String::as_str));
    builder.run("nix", &copy).succeeds();

    // Nobody signed the trace of one of them either, and another trace leads to no path.
    let documents = folder.join("realisations");
    fs::create_dir_all(&documents).unwrap();
    for (digit, path) in [("1", &proven[0]["/nix/store/".len()..]), ("2", &format!("{}-x", "0".repeat(32)))] {
        let id = format!("sha256:{}!out", digit.repeat(64));
        let trace =
            format!(r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{path}","signatures":[]}}"#);
        fs::write(documents.join(format!("{id}.doi")), trace).unwrap();
    }
    fs::write(documents.join("notes.txt"), "no document").unwrap();
    let log = format!("log/{}-talker.drv", "1".repeat(32));
    fs::create_dir_all(folder.join("log")).unwrap();
    fs::write(folder.join(&log), zstd::encode_all(&b"compressed\n"[..], 3).unwrap()).unwrap();

    // Logs that Nix compressed with lzma, and that are longer than the server takes.
    let [old_log, long_log] = ["2", "3"].map(|digit| log.replace('1', digit));
    let mut lzma = Command::new("sh");
    lzma.args(["-c", "echo lzma | xz --format=lzma > \"$0\""]).arg(folder.join(&old_log));
    Run::of(&mut lzma).succeeds();
    fs::write(folder.join(&long_log), vec![b'x'; 5 << 20]).unwrap();

    // A field that no signature covers and that Dormer does not know.
    let described = folder.join(format!("{}.narinfo", hash_of(&proven[0])));
    let narinfo = fs::read_to_string(&described).unwrap();
    fs::write(&described, format!("{narinfo}Provenance: {{\"type\":\"flake\"}}\n")).unwrap();

    let refused = lab.dormer(&["import", "moved", "--from", from, "--json"]);
    assert_eq!(refused.code(), Some(3), "{refused}");
    assert!(refused.stderr().contains("no trusted key signed the build trace"), "{refused}");
    assert_eq!(message(&refused, "import")["documents_failed"], 2, "{refused}");
    assert!(refused.stderr().contains("--trusted-public-key"), "{refused}");
    let said = message(&refused, "import");
    let closure = builder.closure(&all);
    assert_eq!((&said["imported"], &said["unsigned"]), (&3.into(), &closure.len().into()), "{said}");
    for path in &proven {
        assert_eq!(lab.get(&format!("/moved/{}.narinfo", hash_of(path))).status, 200, "{path}");
    }
    assert_eq!(lab.get(&format!("/moved/{}.narinfo", hash_of(&all))).status, 404);
    let moved = lab.get(&format!("/moved/{}.narinfo", hash_of(&proven[0]))).text();
    assert!(moved.ends_with("Provenance: {\"type\":\"flake\"}\n"), "{moved}");

    // One that claims to prove itself, and does not.
    let narinfo_path = |path: &str| folder.join(format!("{}.narinfo", hash_of(path)));
    let narinfo = fs::read_to_string(narinfo_path(&all)).unwrap();
    let nar_hash = narinfo.lines().find_map(|line| line.strip_prefix("NarHash: ")).unwrap().to_owned();
    fs::write(narinfo_path(&all), format!("{narinfo}CA: fixed:r:{nar_hash}\n")).unwrap();
    let refused = lab.dormer(&["import", "moved", "--from", from, "--json"]);
    let said = message(&refused, "import");
    assert_eq!((&said["imported"], &said["unsigned"]), (&0.into(), &closure.len().into()), "{said}");
    fs::write(narinfo_path(&all), narinfo).unwrap();

    // A NAR that was cut: its referrers are not tried, the others come.
    let library = closure.iter().find(|path| path.contains("-library-")).unwrap();
    let narinfo = fs::read_to_string(narinfo_path(library)).unwrap();
    let url = narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
    let whole = fs::read(folder.join(url)).unwrap();
    fs::write(folder.join(url), &whole[..whole.len() / 2]).unwrap();
    let partly = lab.dormer(&["import", "moved", "--from", from, "--allow-unsigned", "--json"]);
    assert_eq!(partly.code(), Some(3), "{partly}");
    let said = message(&partly, "import");
    assert_eq!((&said["failed"], &said["imported"]), (&1.into(), &1.into()), "only the empty file: {said}");
    assert_eq!(lab.get(&format!("/moved/{}.narinfo", hash_of(library))).status, 404);
    fs::write(folder.join(url), &whole).unwrap();
    let rest = lab.dormer(&["import", "moved", "--from", from, "--allow-unsigned", "--logs", "--json"]);
    rest.succeeds();
    let said = message(&rest, "import");
    assert_eq!((&said["traces"], &said["traces_without_path"]), (&1.into(), &1.into()), "{said}");
    assert_eq!((&said["logs"], &said["logs_too_long"]), (&2.into(), &1.into()), "{said}");
    assert_eq!(lab.get(&format!("/moved/{log}")).text(), "compressed\n");
    assert_eq!(lab.get(&format!("/moved/{old_log}")).text(), "lzma\n");
    assert!(rest.stderr().contains("warning: left out log/"), "{rest}");
    assert_eq!((&said["imported"], &said["present"]), (&(closure.len() - 1).into(), &4.into()), "{said}");
    fetches(&lab, "reader", &lab.public_key("moved"), &lab.cache_url("moved"), &all);
    assert_eq!(lab.dormer(&["import", "moved", "--from", "/nowhere"]).code(), Some(1));
}

#[test]
fn an_edge_and_a_cache_on_the_web_are_imported_by_closure() {
    let settings = "[[edge]]\nname = \"edge\"\nsettle-time = \"0s\"\ntype = \"local\"\npath = \"LAB/edge\"\ncaches = [\"main\"]\n";
    let lab = Lab::start_with(LabOptions { settings: Some(settings.to_owned()), ..LabOptions::default() });
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let all = builder.build("all", &[("salt", "web")]);
    let other = builder.build("library", &[("salt", "web-other")]);
    builder.dormer(&["push", "main", &all, &other]).succeeds();
    lab.server_command(&["publish", "edge"]).succeeds();
    let nginx = StaticServer::start(&lab.folder().join("edge"));
    let (url, key) = (nginx.url("main"), lab.public_key("main"));

    lab.create_cache("web", &["--public"]);
    let import = |cache: &str, from: &str, more: &[&str]| {
        let mut all = vec!["import", cache, "--from", from, "--trusted-public-key", &key, "--json"];
        all.extend(more);
        lab.dormer(&all)
    };
    let unnamed = import("web", &url, &[]);
    assert_eq!(unnamed.code(), Some(2), "{unnamed}");
    assert!(unnamed.stderr().contains("--stdin"), "{unnamed}");
    let dry = import("web", &url, &[&all, "--dry-run"]);
    dry.succeeds();
    let count = builder.closure(&all).len();
    assert_eq!(message(&dry, "import")["imported"], count, "{dry}");
    let imported = import("web", &url, &[&all]);
    imported.succeeds();
    assert_eq!(message(&imported, "import")["imported"], count, "{imported}");
    fetches(&lab, "reader", &lab.public_key("web"), &lab.cache_url("web"), &all);
    // What nobody asked for stays there; the other closure is the other path alone.
    assert_eq!(lab.get(&format!("/web/{}.narinfo", hash_of(&other))).status, 404);
    let absent = import("web", &url, &[&"0".repeat(32)]);
    assert_eq!(absent.code(), Some(3), "{absent}");
    // The published folder, by its listing.
    let folder = lab.folder().join("edge/main");
    let listed = import("web", folder.to_str().unwrap(), &[]);
    listed.succeeds();
    let said = message(&listed, "import");
    assert_eq!((&said["imported"], &said["present"]), (&1.into(), &count.into()), "{said}");
    // The folder above holds no cache itself.
    let above = import("web", lab.folder().join("edge").to_str().unwrap(), &[]);
    assert!(above.fails().contains("nix-cache-info"), "{above}");
}

fn write_settings(path: &Path, keys: &[(&str, &Path)]) {
    let lines = keys.iter().map(|(key, file)| format!("{key} = \"{}\"\n", file.display()));
    fs::write(path, lines.collect::<String>()).unwrap();
}

#[test]
fn a_new_master_key_takes_over_beside_the_server() {
    let mut lab = Lab::start_with(LabOptions { settings: Some(String::new()), ..LabOptions::default() });
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let library = builder.build("library", &[("salt", "rekey")]);
    builder.dormer(&["push", "main", &library]).succeeds();
    let (settings, new) = (lab.folder().join("dormer.toml"), lab.folder().join("new-key"));
    let old = lab.folder().join("old-key");
    let in_folder = lab.data_folder().join("master-key");
    assert!(
        in_folder.exists(),
        "a lab in production has its master key in the environment: not for this story"
    );
    fs::copy(&in_folder, &old).unwrap();
    fs::write(&new, "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=\n").unwrap();

    let (current, previous) = ("master-key-file", "previous-master-key-file");
    write_settings(&settings, &[(current, &new), (previous, &old)]);
    lab.kill();
    lab.restart();
    let public_key = lab.public_key("main");
    // Beside the server, which has both keys.
    let run = lab.server_command(&["rekey", "--json"]);
    run.succeeds();
    assert_eq!(message(&run, "rekey")["resealed"], 1, "{run}");
    lab.create_cache("later", &["--public"]);

    write_settings(&settings, &[(current, &old)]);
    let refused = lab.server_command(&["export", "main", "--to", lab.folder().join("x").to_str().unwrap()]);
    assert!(refused.fails().contains("dormer rekey"), "{refused}");
    write_settings(&settings, &[(current, &new)]);
    lab.kill();
    lab.restart();
    assert_eq!(lab.public_key("main"), public_key, "nothing changes for clients");
    fetches(&lab, "reader", &public_key, &lab.cache_url("main"), &library);
    let run = lab.server_command(&["rekey", "--json"]);
    run.succeeds();
    assert_eq!((message(&run, "rekey")["unchanged"]).as_u64(), Some(2), "{run}");
    assert_eq!(message(&run, "rekey")["journal_written"], true, "{run}");
    // The old key is deleted, and then the database is lost: the new key is all that it takes.
    fs::remove_file(&old).unwrap();
    lab.kill();
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(lab.data_folder().join(format!("index.sqlite{suffix}")));
    }
    lab.server_command(&["recover", "--from-store"]).succeeds();
    lab.restart();
    assert_eq!(lab.public_key("main"), public_key, "the cache signs with the same key");
}
