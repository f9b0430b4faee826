//! Unusual machines: services without a home, stores in other places.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use dormer_tests::{Lab, Nix};

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
