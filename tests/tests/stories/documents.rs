//! Build logs, build traces and the spelling of addresses, as every Nix has them.

use dormer_tests::{Lab, Machine, Nix, Proxy};

fn pusher(lab: &Lab, name: &str, nix: Nix, cache: &str) -> Machine {
    let machine = lab.machine(name, nix);
    machine.set_netrc(lab.address(), &lab.token(&["--pull", cache, "--push", cache]));
    machine.configure(&[lab.public_key(cache)]);
    machine
}

fn deriver(machine: &Machine, path: &str) -> String {
    machine.run("nix-store", &["--query", "--deriver", path]).succeeds().trim().to_owned()
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
        }
    }
}

/// What one machine built is substituted on another that has only the expression.
#[test]
fn content_addressed_paths_are_substituted_by_every_nix() {
    let lab = Lab::start();
    for nix in Nix::ALL {
        let machine = pusher(&lab, &format!("pusher-{}", nix.name()), nix, "main");
        machine.allow_content_addressed();
        let salt = format!("ca-{}", nix.name());
        let expression = machine.expression();
        let floater = machine.build("floater", &[("salt", &salt)]);
        let closure = machine.closure(&floater);
        let installable = ["--file", &expression, "--argstr", "salt", &salt, "floater"];
        let target = lab.cache_url("main");
        let copy = [&["copy", "--to", &target][..], &installable].concat();
        machine.run("nix", &copy).succeeds();

        let reader = lab.machine(&format!("reader-{}", nix.name()), nix);
        reader.configure(&[lab.public_key("main")]);
        reader.allow_content_addressed();
        let proxy = Proxy::watching(lab.address());
        let build = |keys: &str| {
            let expression = reader.expression();
            reader.run(
                "nix-build",
                &[
                    &expression,
                    "--no-out-link",
                    "--argstr",
                    "salt",
                    &salt,
                    "-A",
                    "floater",
                    "--max-jobs",
                    "0",
                    "--option",
                    "substituters",
                    &proxy.cache_url("main"),
                    "--option",
                    "trusted-public-keys",
                    keys,
                ],
            )
        };
        assert_eq!(build(&lab.public_key("main")).succeeds().trim(), floater, "{salt}");
        assert_eq!(reader.closure(&floater), closure);
        reader.verify_all();
        let traces = proxy.seen().into_iter().filter(|seen| seen.line.contains(".doi"));
        let traces: Vec<String> = traces.map(|seen| seen.line).collect();
        assert!(traces.iter().any(|line| line.starts_with("GET /main/realisations/")), "{traces:?}");
    }
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
