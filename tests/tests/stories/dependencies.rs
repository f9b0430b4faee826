//! What we link may be linked into an Apache-2.0 program, comes from the public registry, and
//! brings one TLS stack only.
//!
//! The rules are those of deny.toml, so that `cargo deny` and this test agree.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use dormer_tests::workspace_root;
use serde_json::Value;
use spdx::{Expression, ParseMode};

/// The only place that code of others comes from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn rules() -> toml::Table {
    fs::read_to_string(workspace_root().join("deny.toml")).unwrap().parse().unwrap()
}

fn texts<'a>(rules: &'a toml::Table, section: &str, key: &str) -> Vec<&'a str> {
    rules[section][key].as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect()
}

/// Every package of the lock files that a platform of the rules compiles; the Worker has a lock
/// file of its own.
fn packages(rules: &toml::Table) -> Vec<Value> {
    let mut packages = Vec::new();
    let mut seen = BTreeSet::new();
    let platforms = texts(rules, "graph", "targets").into_iter().map(|platform| (platform, "."));
    for (platform, folder) in platforms.chain([("wasm32-unknown-unknown", "worker")]) {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", platform])
            .current_dir(workspace_root().join(folder))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
        for package in metadata["packages"].as_array().unwrap() {
            if seen.insert(package["id"].as_str().unwrap().to_owned()) {
                packages.push(package.clone());
            }
        }
    }
    packages
}

#[test]
fn an_audit_looks_at_all_that_is_shipped_and_every_exception_has_a_reason() {
    let rules = rules();
    assert_eq!(rules["advisories"]["yanked"].as_str(), Some("deny"));
    for exception in rules["advisories"]["ignore"].as_array().unwrap() {
        let text = |key: &str| exception.get(key).and_then(toml::Value::as_str).unwrap_or_default();
        assert!(!text("id").is_empty() && text("reason").len() > 20, "{exception}");
    }
    let recipes = fs::read_to_string(workspace_root().join("justfile")).unwrap();
    let (_, audit) = recipes.split_once("\naudit:\n").expect("there is `just audit`");
    let commands: Vec<&str> = audit.lines().take_while(|line| line.starts_with("    ")).collect();
    for (lock_file, selected) in [("Cargo.lock", None), ("worker/Cargo.lock", Some("worker/Cargo.toml"))] {
        assert!(workspace_root().join(lock_file).exists());
        let is_checked = commands.iter().any(|command| {
            let words: Vec<&str> = command.split_whitespace().collect();
            let manifest = words.iter().skip_while(|word| **word != "--manifest-path").nth(1).copied();
            words.starts_with(&["cargo", "deny"]) && words.ends_with(&["advisories"]) && manifest == selected
        });
        assert!(is_checked, "`just audit` does not look at {lock_file}: {commands:?}");
    }
    let security = fs::read_to_string(workspace_root().join("docs/SECURITY.md")).unwrap();
    assert!(security.contains("`just audit`"), "SECURITY.md says how to run it");
}

/// A licence or an alternative of one is allowed.
fn is_allowed(license: &str, allowed: &[&str]) -> bool {
    // Older manifests write `MIT/Apache-2.0`.
    Expression::parse_mode(license, ParseMode::LAX).is_ok_and(|expression| {
        expression.evaluate(|required| allowed.contains(&required.to_string().as_str()))
    })
}

#[test]
fn every_dependency_is_licensed_and_comes_from_the_registry() {
    let rules = rules();
    let allowed = texts(&rules, "licenses", "allow");
    let banned: Vec<&str> =
        rules["bans"]["deny"].as_array().unwrap().iter().map(|ban| ban["crate"].as_str().unwrap()).collect();
    let mut wrong = Vec::new();
    let packages = packages(&rules);
    for package in &packages {
        let name = format!("{} {}", package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        match package["source"].as_str() {
            None if package["manifest_path"]
                .as_str()
                .unwrap()
                .starts_with(workspace_root().to_str().unwrap()) => {}
            Some(REGISTRY) => {}
            source => wrong.push(format!("{name} comes from {source:?}")),
        }
        let license = package["license"].as_str().unwrap_or("(none given)");
        if !is_allowed(license, &allowed) {
            wrong.push(format!("{name} is licensed as {license}"));
        }
        if banned.contains(&package["name"].as_str().unwrap()) {
            wrong.push(format!("{name} is banned"));
        }
    }
    assert!(packages.len() > 100, "{} packages", packages.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn licences_are_read_as_they_are_meant() {
    let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"];
    for license in [
        "MIT",
        "MIT OR GPL-3.0-only",
        "MIT/Apache-2.0",
        "(MIT OR GPL-3.0-only) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(is_allowed(license, &allowed), "{license}");
    }
    for license in
        ["GPL-3.0-only", "MIT AND GPL-3.0-only", "(none given)", "", "MIT WITH Classpath-exception-2.0"]
    {
        assert!(!is_allowed(license, &allowed), "{license}");
    }
}
