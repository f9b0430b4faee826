//! Unusual machines: services without a home, stores in other places.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use dormer_tests::{Lab, Machine, Nix, Run};

/// What the hook of a daemon finds: neither a home nor a search path, only what `settings` gives.
/// The daemon runs the hook after the build that a client asks for.
fn build_by_daemon(lab: &Lab, nix: Nix, name: &str, daemon_environment: &str, etc: &str) -> (bool, String) {
    let machine = lab.machine(&format!("{name}-{}", nix.name()), nix);
    let folder = machine.home();
    let hook = folder.join("hook");
    let dormer = machine.dormer_path();
    // Nix 2.8.0 leaves OUT_PATHS empty.
    let paths = "${OUT_PATHS:-$(nix-store --query --outputs $DRV_PATH)}";
    let text = format!("#!/bin/busybox sh\nset -eu\n[ -z \"${{HOME-}}\" ]\n{dormer} push main {paths}\n");
    fs::write(&hook, text).expect("the hook can be written");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("the hook can be made executable");
    let etc_file = folder.join("etc.toml");
    fs::write(&etc_file, etc).expect("the settings can be written");
    let script = format!(
        r#"set -eu
        b=/bin/busybox
        $b mkdir -p /etc/dormer
        if [ -s {etc} ]; then (umask 077; $b cp {etc} /etc/dormer/config.toml); fi
        $b env -i NIX_CONF_DIR="$NIX_CONF_DIR" PATH=/usr/bin:/bin {daemon_environment} nix-daemon --option post-build-hook {hook} &
        daemon=$!
        trap 'kill $daemon' EXIT
        for _ in $($b seq 100); do [ -S /nix/var/nix/daemon-socket/socket ] && break; $b sleep 0.1; done
        NIX_REMOTE=daemon nix-build {expression} --no-out-link -A tool --argstr salt {name}-{nix}
        "#,
        etc = etc_file.display(),
        hook = hook.display(),
        expression = folder.parent().expect("a home is in a folder").join("closure.nix").display(),
        nix = nix.name(),
    );
    let built = machine.run("/bin/busybox", &["sh", "-c", &script]);
    (
        built.is_success(),
        if built.is_success() { built.stdout().trim().to_owned() } else { built.to_string() },
    )
}

#[test]
fn a_post_build_hook_of_the_daemon_pushes_without_a_home() {
    let lab = Lab::start();
    let (url, token) = (lab.url(), lab.admin_token());
    let variables = format!("DORMER_ENDPOINT={url} DORMER_TOKEN={token}");
    let etc = format!("[servers.lab]\nendpoint = \"{url}\"\ntoken = \"{token}\"\n");
    for nix in Nix::ALL {
        for (name, variables, etc) in [("variables", variables.as_str(), ""), ("etc", "", etc.as_str())] {
            let (succeeded, path) = build_by_daemon(&lab, nix, name, variables, etc);
            assert!(succeeded, "{name}: {path}");
            let narinfo = format!("/main/{}.narinfo", &path["/nix/store/".len()..][..32]);
            assert_eq!(lab.get(&narinfo).status, 200, "{name}: {path}");
        }
        let (succeeded, said) = build_by_daemon(&lab, nix, "nothing", "", "");
        assert!(!succeeded && said.contains("DORMER_ENDPOINT"), "the hook fails and says what to do: {said}");
    }
}

fn is_in(lab: &Lab, path: &str) -> bool {
    lab.get(&format!("/main/{}.narinfo", &path["/nix/store/".len()..][..32])).status == 200
}

#[test]
fn a_derivation_is_pushed_as_itself_alone_and_in_a_list() {
    let lab = Lab::start();
    for nix in Nix::ALL {
        let machine = lab.machine(nix.name(), nix);
        machine.login(&lab);
        let salt = format!("drv-{}", nix.name());
        let tool = machine.build("tool", &[("salt", &salt)]);
        let empty = machine.build("empty", &[("salt", &salt)]);
        let derivation = |path: &str| {
            machine.run("nix-store", &["--query", "--deriver", path]).succeeds().trim().to_owned()
        };
        let (of_tool, of_empty) = (derivation(&tool), derivation(&empty));

        machine.dormer(&["push", "main", &of_tool]).succeeds();
        assert!(is_in(&lab, &of_tool) && !is_in(&lab, &tool), "{}: only what was asked for", nix.name());
        machine.dormer(&["push", "main", &of_empty, &tool, "--no-closure"]).succeeds();
        assert!(is_in(&lab, &of_empty) && is_in(&lab, &tool) && !is_in(&lab, &empty), "{}", nix.name());
    }
}

/// Adds a folder to a store of this machine. The paths of all stores have the same form.
fn add(machine: &Machine, variables: &[(&str, &str)], name: &str) -> String {
    let source = machine.home().join(name);
    fs::create_dir_all(&source).expect("a folder");
    // Names that differ only in case, which `use-case-hack` writes differently.
    for file in ["Data", "data"] {
        fs::write(source.join(file), format!("{file} of {name}\n")).expect("a file");
    }
    let source = source.to_str().expect("our folders are UTF-8");
    let mut command = machine.command("nix-store", &["--add", source]);
    Run::of(command.envs(variables.iter().copied())).succeeds().trim().to_owned()
}

#[test]
fn stores_with_a_root_of_their_own_are_pushed_from() {
    let lab = Lab::start();
    for nix in Nix::ALL {
        let machine = lab.machine(nix.name(), nix);
        machine.login(&lab);
        let root = machine.home().join("root");
        let root = root.to_str().expect("our folders are UTF-8");
        let uri = format!("local?root={root}");
        let setting = format!("store = {root}");
        for (number, (name, value)) in
            [("NIX_REMOTE", uri.as_str()), ("NIX_REMOTE", root), ("NIX_CONFIG", &setting)]
                .into_iter()
                .enumerate()
        {
            let path = add(&machine, &[(name, value)], &format!("in-a-root-{number}-{}", nix.name()));
            let file = format!("{root}{path}");
            assert!(fs::exists(&file).expect("a readable folder") && !machine.host_path(&path).exists());
            // By its name, or by its file.
            let argument = if number == 1 { &file } else { &path };
            let pushed = Run::of(
                machine.command(&machine.dormer_path(), &["push", "main", argument]).env(name, value),
            );
            pushed.succeeds();
            assert!(is_in(&lab, &path), "{name}={value}: {pushed}");
        }
    }
}

#[test]
fn the_case_hack_set_by_hand_is_respected() {
    let lab = Lab::start();
    for nix in Nix::ALL {
        let machine = lab.machine(nix.name(), nix);
        machine.login(&lab);
        let hack = [("NIX_CONFIG", "use-case-hack = true")];
        let path = add(&machine, &hack, &format!("cases-{}", nix.name()));
        let hacked = machine.host_path(&path).join("data~nix~case~hack~1");
        assert!(hacked.exists(), "{}: Nix does what we expect of it", nix.name());
        let mut push = machine.command(&machine.dormer_path(), &["push", "main", &path]);
        Run::of(push.envs(hack)).succeeds();
        assert!(is_in(&lab, &path));
    }
}

/// A private cache works after `dormer use`, wherever the settings of Nix come from.
#[test]
fn use_sets_up_the_nix_of_machines_with_unusual_settings() {
    let lab = Lab::start();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    builder.dormer(&["cache", "create", "team"]).succeeds();
    let path = builder.build("empty", &[("salt", "unusual")]);
    builder.dormer(&["push", "team", &path]).succeeds();
    for nix in Nix::ALL {
        for place in ["include", "NIX_CONFIG", "default"] {
            let machine = lab.machine(&format!("{place}-{}", nix.name()), nix);
            machine.login(&lab);
            let netrc = machine.home().join("somewhere/netrc");
            let line = format!("netrc-file = {}\n", netrc.display());
            let folder = machine.home().parent().expect("a home is in a folder").join("conf");
            let conf = fs::read_to_string(folder.join("nix.conf")).expect("nix.conf was written");
            let conf = conf.replace("netrc-file = ", "# netrc-file = ");
            let mut variables = Vec::new();
            let conf = match place {
                "include" => {
                    fs::write(folder.join("more.conf"), &line).expect("an included file");
                    format!("{conf}!include more.conf\n")
                }
                "NIX_CONFIG" => {
                    variables.push(("NIX_CONFIG", line.as_str()));
                    conf
                }
                // Somebody made an entry that fits every host.
                _ => {
                    fs::create_dir_all(netrc.parent().expect("a folder")).expect("a folder");
                    fs::write(&netrc, "default login a password b\n").expect("a netrc file");
                    fs::set_permissions(&netrc, fs::Permissions::from_mode(0o600)).expect("our own file");
                    format!("{conf}{line}")
                }
            };
            fs::write(folder.join("nix.conf"), conf).expect("nix.conf can be written");
            let run = |program: &str, words: &[&str]| {
                Run::of(machine.command(program, words).envs(variables.iter().copied()))
            };
            let used = run(&machine.dormer_path(), &["use", "team"]);
            used.succeeds();
            assert!(!used.stderr().contains("warning"), "{place}: {used}");
            assert!(
                fs::read_to_string(&netrc).expect("a netrc file").contains("dormer use"),
                "{place}: {used}"
            );
            run("nix-store", &["--realise", &path]).succeeds();
            assert!(machine.host_path(&path).exists());
            run(&machine.dormer_path(), &["doctor", "--client"]).succeeds();
        }
    }
}
