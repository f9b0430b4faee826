//! What Nix's own functional tests ask of a binary cache over HTTP, beyond the stories in
//! `nix_copy` and `documents`. docs/HTTP-API.md lists which story covers which of them.

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
