//! What examples/ holds is fit to be pasted: workflows pass actionlint, nix.conf passes Nix.

use std::fs;
use std::path::Path;
use std::process::Command;

use dormer_tests::{Lab, Nix, Run, part, workspace_root};
use serde_json::Value;

/// What actionlint says of a file.
fn findings(path: &Path) -> Vec<Value> {
    let mut lint = Command::new(part("actionlint/bin/actionlint"));
    let said = Run::of(lint.args(["-format", "{{json .}}"]).arg(path));
    serde_json::from_str(&said.stdout()).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[test]
fn the_workflow_passes_actionlint() {
    let path = workspace_root().join("examples/github-actions.yml");
    assert_eq!(findings(&path), Vec::<Value>::new());
    // And it would be told otherwise.
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong.yml");
    fs::write(&wrong, fs::read_to_string(&path).unwrap().replace("github.sha", "github.shaa")).unwrap();
    assert_eq!(findings(&wrong).len(), 1, "a misspelt name was not found");
}

#[test]
fn every_nix_reads_the_example_of_nix_conf() {
    let lab = Lab::start();
    let path = lab.folder().join("example.conf");
    fs::copy(workspace_root().join("examples/nix.conf"), &path).unwrap();
    for nix in Nix::ALL {
        let machine = lab.machine(nix.name(), nix);
        let mut show = machine.command("nix", &["show-config"]);
        show.env("NIX_USER_CONF_FILES", &path);
        let shown = Run::of(&mut show);
        let text = shown.succeeds();
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        assert!(value("substituters = ").contains("https://cache.example.org/main"), "{shown}");
        assert!(value("trusted-public-keys = ").contains("main:kK3q"), "{shown}");
        assert!(!shown.stderr().contains("unknown setting"), "{shown}");
    }
}
