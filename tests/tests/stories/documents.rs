//! Build logs, build traces and the spelling of addresses, as every Nix has them.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dormer_nix::SecretKey;
use dormer_tests::edge::{Host, Published, Workerd, WorkerdOptions};
use dormer_tests::{Lab, LabOptions, Machine, Nix, Proxy, binary};

fn pusher(lab: &Lab, name: &str, nix: Nix, cache: &str) -> Machine {
    let machine = lab.machine(name, nix);
    machine.set_netrc(lab.address(), &lab.token(&["--pull", cache, "--push", cache]));
    machine.configure(&[lab.public_key(cache)]);
    machine
}

fn deriver(machine: &Machine, path: &str) -> String {
    machine.run("nix-store", &["--query", "--deriver", path]).succeeds().trim().to_owned()
}

/// Major and minor version of the machine's Nix.
fn version(machine: &Machine) -> (u32, u32) {
    let text = machine.run("nix", &["--version"]).succeeds();
    let numbers = text.trim().rsplit(' ').next().expect("a word");
    let mut numbers = numbers.split('.').map(|number| number.parse().expect("a number"));
    (numbers.next().expect("a major version"), numbers.next().expect("a minor version"))
}

/// `nix store copy-log`, with every compression of logs; then `nix log` on a machine that has
/// neither the path nor its derivation.
#[test]
fn logs_are_copied_and_read_by_every_nix() {
    let lab = Lab::start();
    for nix in Nix::ALL {
        let machine = pusher(&lab, &format!("pusher-{}", nix.name()), nix, "main");
        let reader = lab.machine(&format!("reader-{}", nix.name()), nix);
        for coding in ["none", "xz", "zstd", "br", "gzip", "bzip2"] {
            let salt = format!("{coding}-{}", nix.name());
            let talker = machine.build("talker", &[("salt", &salt)]);
            machine.run("nix", &["copy", "--to", &lab.cache_url("main"), &talker]).succeeds();
            let derivation = deriver(&machine, &talker);
            let target = format!("{}?log-compression={coding}", lab.cache_url("main"));
            machine.run("nix", &["store", "copy-log", "--to", &target, &derivation]).succeeds();

            let log = format!("a word from {salt}\n");
            let address = format!("/main/log/{}", &derivation["/nix/store/".len()..]);
            let reply = lab.get(&address);
            assert_eq!((reply.status, reply.text()), (200, log.clone()), "{salt}");
            let read =
                reader.run("nix", &["log", "--option", "substituters", &lab.cache_url("main"), &talker]);
            assert_eq!(read.succeeds(), log, "{salt}");
            if coding == "none" {
                // A log that should not have been there goes by the path of its derivation.
                machine.login(&lab);
                let removed = machine.dormer(&["cache", "remove-path", "main", &derivation]);
                removed.succeeds();
                assert!(removed.stderr().contains("removed the build log of "), "{removed}");
                assert_eq!(lab.get(&address).status, 404, "{salt}");
            }
        }
    }
}

/// A log that is longer than the server takes: a clear 413 to `nix store copy-log`, and a warning
/// of `dormer push --with-logs`, which has pushed what it was asked for.
#[test]
fn a_log_that_is_too_long_costs_no_push() {
    let settings = "[limits]\nlog-size = \"1 KiB\"\n".to_owned();
    let lab = Lab::start_with(LabOptions { settings: Some(settings), ..LabOptions::default() });
    let limit = "the build log is longer than 1024 bytes, the limit";
    for nix in Nix::ALL {
        let machine = pusher(&lab, &format!("pusher-{}", nix.name()), nix, "main");
        machine.login(&lab);
        let salt = "long".repeat(300) + nix.name();
        let file = machine.home().join("long.nix");
        let text = format!(
            "derivation {{ name = \"long\"; system = builtins.currentSystem; builder = \"/bin/busybox\"; \
             args = [ \"sh\" \"-c\" \"echo {salt}; echo > $out\" ]; }}"
        );
        std::fs::write(&file, text).expect("it can be written");
        let file = file.to_str().expect("our folders are UTF-8");
        let long = machine.run("nix-build", &["--no-out-link", file]).succeeds().trim().to_owned();
        let derivation = deriver(&machine, &long);

        let pushed = machine.dormer(&["push", "main", "--with-logs", "--json", &long]);
        let lines = pushed.succeeds();
        let said = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        let log = said.into_iter().find(|line| line["message_type"] == "log").expect("a line for the log");
        assert_eq!((log["state"].as_str(), log["path"].as_str()), (Some("too-long"), Some(&*derivation)));
        let text = machine.dormer(&["push", "main", "--with-logs", &long]);
        text.succeeds();
        for words in
            ["warning: left out a build log", limit, "pushed 0 build logs", "hint: ", "limits.log-size"]
        {
            assert!(text.stderr().contains(words), "{words}: {text}");
        }
        assert_eq!(lab.get(&format!("/main/{}.narinfo", &long["/nix/store/".len()..][..32])).status, 200);

        let target = lab.cache_url("main");
        let refused = machine.run("nix", &["store", "copy-log", "--to", &target, &derivation]).fails();
        assert!(refused.contains("413") && refused.contains(limit), "{refused}");
        let address = format!("/main/log/{}", &derivation["/nix/store/".len()..]);
        assert_eq!(lab.get(&address).status, 404);
    }
}

/// What one machine built is substituted on another that has only the expression: copied by Nix
/// with the trace of the derivation as it was written, or pushed with the traces of those that were
/// built.
#[test]
fn content_addressed_paths_are_substituted_by_every_nix() {
    let lab = Lab::start();
    let key = lab.public_key("main");
    // Of the same name.
    let name = key.split(':').next().expect("a name");
    let wrong_key = SecretKey::generate(name, [5; 32]).expect("a key").public_key().to_string();
    for nix in Nix::ALL {
        let machine = pusher(&lab, &format!("pusher-{}", nix.name()), nix, "main");
        machine.login(&lab);
        machine.allow_content_addressed();
        let salts = ["copied", "pushed"].map(|how| format!("{how}-{}", nix.name()));
        let floaters = salts.each_ref().map(|salt| machine.build("floater", &[("salt", salt)]));
        let expression = machine.expression();
        let installable = ["--file", &expression, "--argstr", "salt", &salts[0], "floater"];
        let target = lab.cache_url("main");
        let copy = [&["copy", "--to", &target][..], &installable].concat();
        machine.run("nix", &copy).succeeds();
        let pushed = machine.dormer(&["push", "main", &floaters[1]]);
        pushed.succeeds();
        assert!(pushed.stderr().contains("pushed 2 build traces"), "{pushed}");
        let again = machine.dormer(&["push", "main", &floaters[1]]);
        again.succeeds();
        assert!(!again.stderr().contains("build traces"), "the cache has them: {again}");
        let mut built: Vec<(&str, String)> = salts.iter().map(String::as_str).zip(floaters).collect();
        if nix == Nix::NEWEST {
            // By a hook and the queue.
            let build = [expression.as_str(), "--no-out-link", "--argstr", "salt", "queued", "-A", "floater"];
            let exec = [&["exec", "main", "--", "nix-build"][..], &build].concat();
            built.push(("queued", machine.dormer(&exec).succeeds().trim().to_owned()));
        }

        let reader = lab.machine(&format!("reader-{}", nix.name()), nix);
        reader.configure(std::slice::from_ref(&key));
        reader.allow_content_addressed();
        let proxy = Proxy::watching(lab.address());
        for (salt, floater) in &built {
            let expression = reader.expression();
            let build = ["--no-out-link", "--argstr", "salt", salt, "-A", "floater", "--max-jobs", "0"];
            let cache = proxy.cache_url("main");
            let from = [&[expression.as_str()][..], &build, &["--option", "substituters", &cache]].concat();
            assert_eq!(reader.run("nix-build", &from).succeeds().trim(), floater, "{salt}");
            assert_eq!(reader.closure(floater), machine.closure(floater));
        }
        reader.verify_all();
        let traces = proxy.seen().into_iter().filter(|seen| seen.line.contains(".doi"));
        let traces: Vec<String> = traces.map(|seen| seen.line).collect();
        let kind = if version(&machine) >= (2, 35) { "build-trace-v2" } else { "realisations" };
        assert!(traces.iter().any(|line| line.starts_with(&format!("GET /main/{kind}/"))), "{traces:?}");

        // A build takes a trace whatever its signatures are. A copy looks at them. The paths need
        // none: their names follow from their contents.
        // Newer versions of Nix copy the derivation into the store that they copy from.
        let checker = pusher(&lab, &format!("checker-{}", nix.name()), nix, "main");
        checker.allow_content_addressed();
        let copy = [&["copy", "--from", &target][..], &installable].concat();
        let copy_with =
            |key: &str| checker.run("nix", &[&copy[..], &["--option", "trusted-public-keys", key]].concat());
        let refused = copy_with(&wrong_key).fails();
        assert!(refused.contains("cannot register realisation"), "{refused}");
        copy_with(&key).succeeds();
    }
}

/// Puts the files of a folder into the Worker's bucket.
fn put_all(worker: &Workerd, target: &Path, folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            put_all(worker, target, &path);
        } else {
            let key = path.strip_prefix(target).expect("it lies there").to_str().expect("our names are text");
            worker.put(key, &path);
        }
    }
}

/// `dormer push --with-logs`, `dormer publish`, and then `nix log` and a build from `dormer edge
/// serve` and from the folder itself.
#[test]
fn logs_and_traces_are_read_at_the_edge() {
    let settings = "[[edge]]\nname = \"edge\"\nsettle-time = \"0s\"\ntype = \"local\"\npath = \"LAB/edge\"\n\
                    caches = [\"main\"]\nlogs = true\n";
    let lab = Lab::start_with(LabOptions { settings: Some(settings.to_owned()), ..LabOptions::default() });
    let machine = pusher(&lab, "pusher", Nix::NEWEST, "main");
    machine.login(&lab);
    let talker = machine.build("talker", &[("salt", "edge")]);
    let said = machine.dormer(&["push", "main", "--with-logs", &talker]);
    said.succeeds();
    assert!(said.stderr().contains("pushed 1 build logs"), "{said}");
    // The log of a path that the cache has may be that of a later build.
    let again = machine.dormer(&["push", "main", "--with-logs", "--json", &talker]);
    assert!(again.succeeds().contains("\"state\":\"kept\""), "{again}");
    assert!(again.stderr().contains("pushed 0 build logs"), "{again}");
    machine.allow_content_addressed();
    let floater = machine.build("floater", &[("salt", "edge")]);
    let expression = machine.expression();
    let installable = ["--file", &expression, "--argstr", "salt", "edge", "floater"];
    let target = lab.cache_url("main");
    machine.run("nix", &[&["copy", "--to", &target][..], &installable].concat()).succeeds();
    lab.server_command(&["publish", "edge"]).succeeds();

    let folder = lab.folder().join("edge");
    // A folder has no tags of files: what is written there is compared itself.
    let log = deriver(&machine, &talker).replace("/nix/store/", "main/log/");
    std::fs::write(folder.join(&log), "not how it was built").expect("the log is published");
    std::fs::write(folder.join(log.replace("talker", "stranger")), "not ours").expect("a file");
    lab.server_command(&["publish", "edge", "--reconcile"]).succeeds();
    assert!(!folder.join(log.replace("talker", "stranger")).exists());
    let host = Host::start(Command::new(binary()).args(["edge", "serve", "--dir"]).arg(&folder));
    let secret = ("TOKEN_HS256_SECRET_BASE64".to_owned(), STANDARD.encode([9; 32]));
    let options = WorkerdOptions { variables: vec![secret], ..WorkerdOptions::default() };
    let worker = Workerd::start(&Published::new(), &options);
    put_all(&worker, &folder, &folder);
    for nix in Nix::ALL {
        let caches = [
            format!("http://{}/main", host.address()),
            format!("http://{}/main", worker.address()),
            format!("file://{}/main", folder.display()),
        ];
        for (number, cache) in caches.iter().enumerate() {
            let reader = lab.machine(&format!("reader-{}-{number}", nix.name()), nix);
            reader.configure(&[lab.public_key("main")]);
            reader.allow_content_addressed();
            let log = reader.run("nix", &["log", "--option", "substituters", cache, &talker]);
            assert_eq!(log.succeeds(), "a word from edge\n", "{cache}");
            let expression = reader.expression();
            let build = ["--no-out-link", "--argstr", "salt", "edge", "-A", "floater", "--max-jobs", "0"];
            let from = [&[expression.as_str()][..], &build, &["--option", "substituters", cache]].concat();
            assert_eq!(reader.run("nix-build", &from).succeeds().trim(), floater, "{cache}");
            reader.verify_all();
        }
    }
}

/// The build id in a program, in its note.
fn build_id(elf: &[u8]) -> Option<String> {
    // Lengths of name and id, the type of the note, and the name.
    let note = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0";
    let start = elf.windows(note.len()).position(|window| window == note)? + note.len();
    let digits = elf.get(start..start + 20)?.iter().map(|byte| format!("{byte:02x}"));
    elf.starts_with(b"\x7fELF").then(|| digits.collect())
}

/// Pushed by Nix with links of its own, and by `dormer push` without any.
#[test]
fn debug_info_leads_to_a_file_with_this_build_id() {
    let settings = "[[edge]]\nname = \"edge\"\nsettle-time = \"0s\"\ntype = \"local\"\npath = \"LAB/edge\"\n\
                    caches = [\"main\"]\ndebug-info = true\n";
    let lab = Lab::start_with(LabOptions { settings: Some(settings.to_owned()), ..LabOptions::default() });
    let elf = std::fs::read("/bin/true").expect("every system has one");
    let id = build_id(&elf).expect("a linker wrote a build id");
    let file = format!("{}.debug", &id[2..]);
    let folder = format!("lib/debug/.build-id/{}", &id[..2]);
    let target = format!("{}?index-debug-info=true", lab.cache_url("main"));
    let mut archives = Vec::new();
    for nix in Nix::ALL {
        for by_nix in [true, false] {
            let machine = pusher(&lab, &format!("pusher-{}-{by_nix}", nix.name()), nix, "main");
            let tree = machine.home().join("debug");
            std::fs::create_dir_all(tree.join(&folder)).expect("a folder");
            std::fs::write(tree.join(&folder).join(&file), &elf).expect("a file");
            std::fs::write(tree.join("salt"), format!("{}-{by_nix}", nix.name())).expect("a file");
            let path = machine.run("nix-store", &["--add", &tree.to_string_lossy()]).succeeds();
            let path = path.trim();
            if by_nix {
                machine.run("nix", &["copy", "--to", &target, path]).succeeds();
            } else {
                machine.login(&lab);
                machine.dormer(&["push", "main", path]).succeeds();
            }
            let link = lab.get(&format!("/main/debuginfo/{id}")).json();
            assert_eq!(link["member"], format!("{folder}/{file}"));
            let archive = link["archive"].as_str().expect("a text").trim_start_matches("../");
            let hash = &path["/nix/store/".len()..][..32];
            let narinfo = lab.get(&format!("/main/{hash}.narinfo")).text();
            assert!(narinfo.contains(archive), "{archive} is not of the newest path: {narinfo}");
            let nar = zstd::decode_all(&*lab.get(&format!("/main/{archive}")).body).expect("a NAR");
            let listing = lab.get(&format!("/main/{hash}.ls")).json();
            let mut node = &listing["root"];
            for name in folder.split('/').chain([file.as_str()]) {
                node = &node["entries"][name];
            }
            let number = |key: &str| usize::try_from(node[key].as_u64().expect("a number")).expect("small");
            let found = &nar[number("narOffset")..][..number("size")];
            assert_eq!(build_id(found).as_ref(), Some(&id));
            archives.push(link["archive"].clone());
        }
    }
    lab.server_command(&["publish", "edge"]).succeeds();
    let host =
        Host::start(Command::new(binary()).args(["edge", "serve", "--dir"]).arg(lab.folder().join("edge")));
    let get = |path: &str| dormer_tests::http::get(host.address(), path, None);
    let link = get(&format!("/main/debuginfo/{id}")).json();
    assert_eq!(link["member"], format!("{folder}/{file}"));
    assert!(archives.contains(&link["archive"]), "any of these has the file: {link}");
    let archive = link["archive"].as_str().expect("a text").trim_start_matches("../");
    assert_eq!(get(&format!("/main/{archive}")).status, 200);
}

/// Nix 2.34 escapes the `+`, and earlier ones do not.
#[test]
fn a_cache_with_a_plus_in_its_name_works_with_every_nix() {
    let lab = Lab::start();
    lab.create_cache("a+b", &["--public"]);
    for nix in Nix::ALL {
        let machine = pusher(&lab, &format!("pusher-{}", nix.name()), nix, "a+b");
        let all = machine.build("all", &[("salt", &format!("plus-{}", nix.name()))]);
        machine.run("nix", &["copy", "--to", &lab.cache_url("a+b"), &all]).succeeds();
        let reader = lab.machine(&format!("reader-{}", nix.name()), nix);
        reader.configure(&[lab.public_key("a+b")]);
        reader.substitute(&lab.cache_url("a+b"), &all).succeeds();
        assert_eq!(reader.closure(&all), machine.closure(&all));
        reader.verify_all();
    }
}

/// `dormer cat` and `dormer cache show`, of a path that came by `nix copy`.
#[test]
fn a_path_of_a_private_cache_is_looked_into_without_fetching_it() {
    let lab = Lab::start();
    lab.create_cache("team", &[]);
    let machine = pusher(&lab, "pusher", Nix::NEWEST, "team");
    let tool = machine.build("tool", &[("salt", "cat")]);
    machine.run("nix", &["copy", "--to", &lab.cache_url("team"), &tool]).succeeds();
    let file = format!("{tool}/self");
    assert_eq!(lab.dormer(&["cat", "team", &file]).succeeds(), format!("{tool}\n"));
    let missing = format!("{tool}/missing");
    assert!(lab.dormer(&["cat", "team", &missing]).fails().contains("the cache does not have this"));
    assert!(lab.dormer(&["cat", "team", &format!("{tool}/bin")]).fails().contains("a folder"));
    let shown = lab.dormer(&["cache", "show", "team", &tool]).succeeds();
    assert!(
        shown.contains(&tool["/nix/store/".len()..]) && shown.contains("closure        2 paths"),
        "{shown}"
    );
}
