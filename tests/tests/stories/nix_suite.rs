//! What Nix's own functional tests ask of a binary cache over HTTP, beyond the stories in
//! `nix_copy` and `documents`. docs/HTTP-API.md lists which story covers which of them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use dormer_tests::{Lab, Machine, Nix};
use serde_json::Value;

fn pusher(lab: &Lab, nix: Nix) -> Machine {
    let machine = lab.machine(&format!("pusher-{}", nix.name()), nix);
    machine.set_netrc(lab.address(), &lab.token(&["--pull", "main", "--push", "main"]));
    machine.configure(&[lab.public_key("main")]);
    machine
}

/// A machine that trusts the cache and has nothing.
fn reader(lab: &Lab, nix: Nix) -> Machine {
    let machine = lab.machine(&format!("reader-{}", nix.name()), nix);
    machine.configure(&[lab.public_key("main")]);
    machine
}

/// The value of the first field with this name, wherever the versions of Nix put it.
fn field<'a>(json: &'a Value, name: &str) -> Option<&'a Value> {
    match json {
        Value::Object(fields) => {
            fields.get(name).or_else(|| fields.values().find_map(|value| field(value, name)))
        }
        Value::Array(values) => values.iter().find_map(|value| field(value, name)),
        _ => None,
    }
}

/// nar-access.sh, path-info.sh and repair.sh over HTTP.
#[test]
fn paths_are_looked_into_and_repaired_from_the_cache_by_every_nix() {
    let lab = Lab::start();
    let url = lab.cache_url("main");
    for nix in Nix::ALL {
        let machine = pusher(&lab, nix);
        let salt = format!("look-{}", nix.name());
        let (library, tool) =
            (machine.build("library", &[("salt", &salt)]), machine.build("tool", &[("salt", &salt)]));
        machine.run("nix", &["copy", "--to", &url, &tool]).succeeds();
        let reader = reader(&lab, nix);
        let data = format!("{library}/lib/data");
        let contents = format!("data of {salt}\n");

        assert_eq!(reader.run("nix", &["store", "cat", "--store", &url, &data]).succeeds(), contents);
        let listed = reader.run("nix", &["store", "ls", "--store", &url, "-lR", &library]).succeeds();
        assert!(listed.contains("link -> data") && listed.contains("numbers"), "{listed}");
        let missing = format!("{library}/lib/missing");
        reader.run("nix", &["store", "cat", "--store", &url, &missing]).fails();

        let info = ["path-info", "--json", "--closure-size", "--store", &url, &tool];
        let info: Value = serde_json::from_str(&reader.run("nix", &info).succeeds()).expect("JSON");
        let size = |name| field(&info, name).and_then(Value::as_u64).expect("a size");
        assert!(size("closureSize") > size("narSize"), "{info}");
        let signatures = field(&info, "signatures").and_then(Value::as_array).expect("signatures");
        assert_eq!(signatures.len(), 1, "{info}");

        reader.substitute(&url, &tool).succeeds();
        let file = reader.host_path(&data);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("it is there");
        fs::write(&file, "damaged").expect("it can be damaged");
        reader.run("nix", &["store", "verify", &library]).fails();
        let repair = ["store", "repair", "--option", "substituters", &url, &library];
        reader.run("nix", &repair).succeeds();
        assert_eq!(fs::read_to_string(&file).expect("it is there"), contents);
        reader.verify_all();
    }
}

/// binary-cache.sh, signing.sh, nar-access.sh and logging.sh: the other commands that they run,
/// with the cache as their store.
#[test]
fn the_cache_is_a_store_for_the_commands_of_every_nix() {
    let lab = Lab::start();
    let url = lab.cache_url("main");
    for nix in Nix::ALL {
        let machine = pusher(&lab, nix);
        let salt = format!("store-{}", nix.name());
        let library = machine.build("library", &[("salt", &salt)]);
        let tool = machine.build("tool", &[("salt", &salt)]);
        let key = machine.home().join("copier").to_str().expect("our folders are UTF-8").to_owned();
        let public = format!("{key}.public");
        machine.run("nix-store", &["--generate-binary-cache-key", "copier-1", &key, &public]).succeeds();
        let target = format!("{url}?secret-key={key}&write-nar-listing=1&compression=zstd");
        machine.run("nix", &["copy", "--to", &target, &tool]).succeeds();
        let narinfo = |path: &str| format!("/main/{}.narinfo", &path["/nix/store/".len()..][..32]);
        assert!(lab.get(&narinfo(&tool)).text().contains("\nSig: copier-1:"), "what signs a copy");

        let about = if nix == Nix::OLDEST { "ping" } else { "info" };
        machine.run("nix", &["store", about, "--store", &url]).succeeds();
        // This Nix's `nix-store` crashes at its end if its store is any server's.
        if nix != Nix::NEWEST {
            for what in ["--size", "--hash", "--references", "--requisites", "--deriver"] {
                let lines = |store: &[&str]| -> BTreeSet<String> {
                    let query = machine.run("nix-store", &[store, &["--query", what, &tool]].concat());
                    query.succeeds().lines().map(str::to_owned).collect()
                };
                assert_eq!(lines(&["--store", &url]), lines(&[]), "{what}");
            }
            machine.run("nix-store", &["--store", &url, "--check-validity", &tool, &library]).succeeds();
            machine.run("nix-store", &["--store", &url, "--verify-path", &tool, &library]).succeeds();
        }
        let dumped = machine.run("nix", &["store", "dump-path", "--store", &url, &library]).succeeds();
        assert_eq!(dumped, machine.run("nix-store", &["--dump", &library]).succeeds());
        let listed =
            machine.run("nix", &["store", "ls", "--json", "-R", "--store", &url, &library]).succeeds();
        let listed: Value = serde_json::from_str(&listed).expect("JSON");
        assert_eq!(listed["entries"]["lib"]["entries"]["link"]["target"], "data", "{listed}");
        machine.forget_caches();
        let shown = machine.run("nix", &["path-info", "--sigs", "--recursive", "--store", &url, &tool]);
        assert_eq!(shown.succeeds().matches("main:").count(), 2, "{shown}");

        // A log by the path that was built.
        let talker = machine.build("talker", &[("salt", &salt)]);
        machine.run("nix", &["copy", "--to", &url, &talker]).succeeds();
        machine.run("nix", &["log", "--store", &url, &talker]).fails();
        machine.run("nix", &["store", "copy-log", "--to", &url, &talker]).succeeds();
        let log = machine.run("nix", &["log", "--store", &url, &talker]).succeeds();
        assert_eq!(log, format!("a word from {salt}\n"));

        let text = machine.home().join("text");
        fs::write(&text, &salt).expect("it can be written");
        let text = text.to_str().expect("our folders are UTF-8");
        let added = machine.run("nix", &["store", "add-path", "--store", &url, text]).succeeds();
        assert!(lab.get(&narinfo(added.trim())).text().contains("\nCA: fixed:r:sha256:"), "{added}");

        // What no binary cache does is refused, and changes nothing.
        machine.run("nix", &["store", "delete", "--store", &url, &tool]).fails();
        machine.run("nix", &["store", "gc", "--store", &url]).fails();
        assert_eq!(lab.get(&narinfo(&tool)).status, 200);
    }
}

/// signing.sh and repair.sh: signatures come from the cache, and are wanted.
#[test]
fn signatures_are_fetched_counted_and_wanted_by_every_nix() {
    let lab = Lab::start();
    let url = lab.cache_url("main");
    for nix in Nix::ALL {
        let machine = pusher(&lab, nix);
        let salt = format!("signed-{}", nix.name());
        let library = machine.build("library", &[("salt", &salt)]);
        machine.run("nix", &["copy", "--to", &url, &library]).succeeds();
        // It remembers its own narinfo, which nobody signed.
        machine.forget_caches();

        // What this machine built itself needs no signature, unless one is asked for.
        let verify = |machine: &Machine, options: &[&str]| {
            machine.run("nix", &[&["store", "verify"], options, &[&library]].concat())
        };
        verify(&machine, &[]).succeeds();
        verify(&machine, &["--sigs-needed", "1"]).fails();
        verify(&machine, &["--sigs-needed", "1", "--substituter", &url]).succeeds();
        verify(&machine, &["--sigs-needed", "2", "--substituter", &url]).fails();
        verify(&machine, &["--sigs-needed", "1", "--store", &url]).succeeds();
        machine.run("nix", &["store", "copy-sigs", "--substituter", &url, &library]).succeeds();
        verify(&machine, &["--sigs-needed", "1"]).succeeds();

        let stranger = lab.machine(&format!("stranger-{}", nix.name()), nix);
        let refused = stranger.run("nix", &["copy", "--from", &url, &library]).fails();
        assert!(refused.contains("signature"), "{refused}");
        stranger.run("nix-store", &["--check-validity", &library]).fails();
        stranger.run("nix", &["copy", "--no-check-sigs", "--from", &url, &library]).succeeds();
        verify(&stranger, &[]).fails();
        verify(&stranger, &["--no-trust"]).succeeds();
        let key = lab.public_key("main");
        verify(&stranger, &["--option", "trusted-public-keys", &key]).succeeds();

        let file = stranger.host_path(&format!("{library}/lib/data"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("it is there");
        fs::write(&file, "damaged").expect("it can be damaged");
        let check = ["--verify", "--check-contents"];
        stranger.run("nix-store", &check).fails();
        let repair = ["--repair", "--option", "substituters", &url, "--option", "trusted-public-keys", &key];
        stranger.run("nix-store", &[&check[..], &repair].concat()).succeeds();
        assert_eq!(fs::read_to_string(&file).expect("it is there"), format!("data of {salt}\n"));
    }
}

/// binary-cache.sh: a NAR that is gone although the reader remembers its narinfo, and one whose
/// stored bytes are damaged, which only `--fallback` forgives. Both are built.
#[test]
fn what_the_cache_lost_is_built_by_every_nix() {
    let lab = Lab::start();
    let url = lab.cache_url("main");
    lab.login();
    for nix in Nix::ALL {
        let machine = pusher(&lab, nix);
        // Only the files of an embedded lab can be damaged.
        for is_damaged in [false, true].into_iter().take(1 + usize::from(lab.is_embedded())) {
            let salt = format!("lost-{is_damaged}-{}", nix.name());
            let library = machine.build("library", &[("salt", &salt)]);
            machine.run("nix", &["copy", "--to", &url, &library]).succeeds();
            let reader = lab.machine(&format!("reader-{is_damaged}-{}", nix.name()), nix);
            reader.configure(&[lab.public_key("main")]);
            let expression = reader.expression();
            let options = ["--argstr", "salt", &salt, "-A", "library", "--option", "substituters", &url];
            let build = |more: &[&str]| {
                let of = [&[expression.as_str(), "--no-out-link"], &options[..], more].concat();
                reader.run("nix-build", &of)
            };
            let planned = build(&["--dry-run"]);
            planned.succeeds();
            assert!(planned.stderr().contains("will be fetched"), "{planned}");
            if is_damaged {
                for pack in lab.packs() {
                    let mut bytes = fs::read(&pack).expect("a pack");
                    bytes.iter_mut().skip(16).for_each(|byte| *byte ^= 0x55);
                    fs::write(&pack, bytes).expect("it can be damaged");
                }
            } else {
                let hash = &library["/nix/store/".len()..][..32];
                lab.dormer(&["cache", "remove-path", "main", hash]).succeeds();
            }
            let fallback: &[&str] = if is_damaged { &["--fallback"] } else { &[] };
            assert_eq!(build(fallback).succeeds().trim(), library);
            reader.verify_all();
            // A push mends what the cache found damaged.
            machine.forget_caches();
            machine.run("nix", &["copy", "--to", &url, &library]).succeeds();
        }
    }
}

/// multiple-outputs.sh: each output is substituted alone, or with what it needs.
#[test]
fn outputs_are_substituted_one_by_one_by_every_nix() {
    let lab = Lab::start();
    let url = lab.cache_url("main");
    for nix in Nix::ALL {
        let machine = pusher(&lab, nix);
        let salt = format!("pair-{}", nix.name());
        let out = machine.build("pair", &[("salt", &salt)]);
        machine.run("nix", &["copy", "--to", &url, &out]).succeeds();
        let reader = reader(&lab, nix);
        let expression = reader.expression();
        let build = |attribute: &str| {
            let arguments = [&expression, "--no-out-link", "--argstr", "salt", &salt, "-A", attribute];
            let options = ["--max-jobs", "0", "--option", "substituters", &url];
            reader.run("nix-build", &[&arguments[..], &options].concat()).succeeds().trim().to_owned()
        };
        assert!(build("pair.lib").ends_with(&format!("-pair-{salt}-lib")));
        reader.run("nix-store", &["--check-validity", &out]).fails();
        assert_eq!(build("pair"), out);
        assert_eq!(reader.closure(&out), machine.closure(&out));
        reader.verify_all();
    }
}

/// binary-cache-build-remote.sh, signing.sh and parts of binary-cache.sh: the cache as the store of
/// derivations, builds and signatures, and as one that has lost a path.
#[test]
fn the_cache_is_built_into_signed_and_mended_by_every_nix() {
    let lab = Lab::start();
    let url = lab.cache_url("main");
    for nix in Nix::ALL {
        let machine = pusher(&lab, nix);
        let salt = format!("into-{}", nix.name());
        let library = machine.build("library", &[("salt", &salt)]);
        let tool = machine.build("tool", &[("salt", &salt)]);
        machine.run("nix", &["copy", "--to", &url, &tool]).succeeds();

        let key = machine.home().join("signer").to_str().expect("our folders are UTF-8").to_owned();
        let public = format!("{key}.public");
        machine.run("nix-store", &["--generate-binary-cache-key", "signer-1", &key, &public]).succeeds();
        machine.run("nix", &["store", "sign", "--store", &url, "--key-file", &key, &tool]).succeeds();
        let narinfo = lab.get(&format!("/main/{}.narinfo", &tool["/nix/store/".len()..][..32])).text();
        assert!(narinfo.contains("\nSig: signer-1:") && narinfo.contains("\nSig: main:"), "{narinfo}");

        // Derivations go into the cache, and what this machine builds of them. Nix would remember
        // for an hour that the cache lacks the outputs.
        let (expression, into) = (machine.expression(), format!("{salt}-2"));
        let build = |options: &[&str]| {
            let of = ["--store", &url, &expression, "--no-out-link", "--argstr", "salt", &into, "-A", "tool"];
            let ttl = ["--option", "narinfo-cache-negative-ttl", "0", "--max-jobs", "0"];
            machine.run("nix-build", &[&of[..], &ttl, options].concat())
        };
        build(&[]).fails();
        let built = build(&["--builders", "auto - - 1 1"]).succeeds().trim().to_owned();
        assert_eq!(build(&[]).succeeds().trim(), built, "nothing is left to do");

        let reader = reader(&lab, nix);
        reader.run("nix", &["store", "verify", "--store", &url, "--recursive", &built]).succeeds();
        let simple = "{ a = derivation { name = \"simple\"; system = builtins.currentSystem; builder = \"/bin/busybox\"; \
                      args = [ \"sh\" \"-c\" \"echo > $out\" ]; }; }";
        let file = machine.home().join("simple.nix");
        fs::write(&file, simple).expect("it can be written");
        let file = file.to_str().expect("our folders are UTF-8");
        let simple = machine.run("nix-build", &["--no-out-link", file, "-A", "a"]).succeeds();
        machine.run("nix", &["copy", "--to", &url, simple.trim()]).succeeds();
        let query = ["--option", "substituters", &url, "--file", file, "--query", "--available", "--status"];
        let status = reader.run("nix-env", &[&query[..], &["*"]].concat()).succeeds();
        assert!(status.starts_with("--S"), "{status}");

        // A referrer outlives what it refers to: the rest is built.
        let hash = &library["/nix/store/".len()..][..32];
        lab.login();
        lab.dormer(&["cache", "remove-path", "main", hash]).succeeds();
        let expression = reader.expression();
        let options =
            ["--no-out-link", "--argstr", "salt", &salt, "-A", "tool", "--option", "substituters", &url];
        let rebuilt = reader.run("nix-build", &[&[expression.as_str()][..], &options].concat());
        assert_eq!(rebuilt.succeeds().trim(), tool);
        reader.verify_all();
    }
}

/// fetchClosure.sh: an expression names a path of the cache, and may want it content-addressed.
/// Every version has `fetchClosure`. Up to 2.16, a path is taken as it is where evaluation is
/// impure; later, `inputAddressed` asks for it.
#[test]
fn an_expression_fetches_a_closure_from_the_cache() {
    let lab = Lab::start();
    let url = lab.cache_url("main");
    for nix in Nix::ALL {
        let machine = pusher(&lab, nix);
        let salt = format!("closure-{}", nix.name());
        let library = machine.build("library", &[("salt", &salt)]);
        machine.run("nix", &["copy", "--to", &url, &library]).succeeds();
        let addressed =
            machine.run("nix", &["store", "make-content-addressed", "--json", &library]).succeeds();
        let addressed: Value = serde_json::from_str(&addressed).expect("JSON");
        let addressed = addressed["rewrites"][&library].as_str().expect("a path").to_owned();
        let features = ["--extra-experimental-features", "fetch-closure"];
        let eval = |reader: &Machine, mode: &[&str], expression: &str| {
            let words = [&["eval", "--raw"][..], &features, mode, &["--expr", expression]].concat();
            reader.run("nix", &words).succeeds()
        };
        let (mode, as_it_is): (&[&str], _) = match nix {
            Nix::OLDEST => (&["--impure"], ""),
            // It reads no file of a path that it fetched while evaluation is pure.
            Nix::MIDDLE => (&["--impure"], "inputAddressed = true;"),
            _ => (&[], "inputAddressed = true;"),
        };
        let expression = format!(
            "builtins.readFile \"${{builtins.fetchClosure {{ fromStore = \"{url}\"; fromPath = {library}; \
             {as_it_is} }}}}/lib/data\""
        );
        let reader = reader(&lab, nix);
        assert_eq!(eval(&reader, mode, &expression), format!("data of {salt}\n"));
        reader.verify_all();

        let rewritten = format!(
            "builtins.fetchClosure {{ fromStore = \"{url}\"; fromPath = {library}; toPath = {addressed}; }}"
        );
        let other = lab.machine(&format!("other-{}", nix.name()), nix);
        other.configure(&[lab.public_key("main")]);
        assert_eq!(eval(&other, &[], &rewritten), addressed);
        // A content-addressed path needs no signature that the reader trusts.
        machine.run("nix", &["copy", "--to", &url, &addressed]).succeeds();
        let stranger = lab.machine(&format!("stranger-{}", nix.name()), nix);
        let expression =
            format!("builtins.fetchClosure {{ fromStore = \"{url}\"; fromPath = {addressed}; }}");
        assert_eq!(eval(&stranger, &[], &expression), addressed);
        stranger.verify_all();
    }
}

/// ca/post-hook.sh: a hook that copies each path that was built, content-addressed ones too. Nix
/// 2.8 tells its hook no paths, and a derivation alone does not say which they are.
#[test]
fn a_hook_copies_content_addressed_paths() {
    let lab = Lab::start();
    let url = lab.cache_url("main");
    for nix in [Nix::MIDDLE, Nix::NEWEST] {
        let machine = pusher(&lab, nix);
        machine.allow_content_addressed();
        let hook = machine.home().join("hook");
        let text = format!("#!/bin/busybox sh\nset -eu\nexec nix copy --to {url} $OUT_PATHS\n");
        fs::write(&hook, text).expect("the hook can be written");
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("it can be made executable");
        let expression = machine.expression();
        let salt = format!("hook-{}", nix.name());
        let hook = hook.to_str().expect("our folders are UTF-8");
        let build = ["--no-out-link", "--argstr", "salt", &salt, "-A", "floater"];
        let option = ["--option", "post-build-hook", hook];
        let floater = machine.run("nix-build", &[&[expression.as_str()][..], &build, &option].concat());
        let floater = floater.succeeds().trim().to_owned();
        for path in machine.closure(&floater) {
            let narinfo = format!("/main/{}.narinfo", &path["/nix/store/".len()..][..32]);
            assert_eq!(lab.get(&narinfo).status, 200, "{path}");
        }
    }
}
