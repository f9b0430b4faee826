//! The arrows between crates, checked by machine.
//!
//! nix ← {stores, format}; format ← {blobs, index} ← engine ← {publish, server}; nix ← api ← edge ←
//! {server, edge-host, publish}; pages ← {edge, server}; stores ← {blobs, publish, edge-host};
//! http-host ← {server, edge-host}; {api, format} ← client; everything ← cli. The pure crates (nix,
//! format, api, edge, pages) do no I/O and know no runtime: their dependencies are searched for
//! one, and their clippy.toml must ban the parts of std that would still compile.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use dormer_tests::workspace_root;
use serde_json::Value;

/// What each crate uses of the others outside of its tests, and may use. A new crate must take its
/// place here.
const ARROWS: [(&str, &[&str]); 18] = [
    ("dormer-nix", &[]),
    ("dormer-format", &["dormer-nix"]),
    ("dormer-api", &["dormer-nix"]),
    ("dormer-edge", &["dormer-nix", "dormer-api", "dormer-pages"]),
    ("dormer-pages", &[]),
    ("dormer-stores", &["dormer-nix"]),
    ("dormer-blobs", &["dormer-format", "dormer-stores"]),
    ("dormer-index", &["dormer-nix", "dormer-format"]),
    ("dormer-engine", &["dormer-nix", "dormer-format", "dormer-blobs", "dormer-index"]),
    (
        "dormer-server",
        &[
            "dormer-nix",
            "dormer-format",
            "dormer-api",
            "dormer-index",
            "dormer-engine",
            "dormer-edge",
            "dormer-pages",
            "dormer-http-host",
        ],
    ),
    ("dormer-http-host", &[]),
    ("dormer-edge-host", &["dormer-api", "dormer-edge", "dormer-http-host", "dormer-stores"]),
    ("dormer-client", &["dormer-nix", "dormer-api", "dormer-format"]),
    (
        "dormer-publish",
        &[
            "dormer-nix",
            "dormer-format",
            "dormer-api",
            "dormer-stores",
            "dormer-index",
            "dormer-engine",
            "dormer-edge",
        ],
    ),
    (
        "dormer",
        &[
            "dormer-nix",
            "dormer-format",
            "dormer-api",
            "dormer-stores",
            "dormer-blobs",
            "dormer-index",
            "dormer-engine",
            "dormer-server",
            "dormer-pages",
            "dormer-edge-host",
            "dormer-http-host",
            "dormer-client",
            "dormer-publish",
        ],
    ),
    // Development only: no shipped crate may depend on these.
    (
        "dormer-testkit",
        &["dormer-nix", "dormer-format", "dormer-stores", "dormer-blobs", "dormer-index", "dormer-engine"],
    ),
    (
        "dormer-tests",
        &[
            "dormer-nix",
            "dormer-format",
            "dormer-api",
            "dormer-edge",
            "dormer-client",
            "dormer-server",
            "dormer-testkit",
        ],
    ),
    (
        "dormer-bench",
        &["dormer-nix", "dormer-format", "dormer-blobs", "dormer-index", "dormer-engine", "dormer-testkit"],
    ),
];

/// Crates without I/O, and the folders they live in.
const PURE: [(&str, &str); 5] = [
    ("dormer-nix", "crates/nix"),
    ("dormer-format", "crates/format"),
    ("dormer-api", "crates/api"),
    ("dormer-edge", "crates/edge"),
    ("dormer-pages", "crates/pages"),
];

/// Crates that bring a runtime, a socket or HTTP. None may stand anywhere below a pure crate.
const IMPURE: [&str; 16] = [
    "tokio",
    "async-std",
    "smol",
    "async-executor",
    "futures",
    "futures-util",
    "mio",
    "socket2",
    "http",
    "http-body",
    "hyper",
    "reqwest",
    "axum",
    "tower",
    "sqlx",
    "object_store",
];

/// What a pure crate's clippy.toml must ban, because it compiles everywhere and does I/O all the
/// same.
const BANNED: [&str; 10] = [
    "std::fs::File",
    "std::fs::OpenOptions",
    "std::fs::read",
    "std::fs::write",
    "std::fs::read_to_string",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::time::SystemTime",
    "std::time::Instant",
];

/// The manifests of the workspace. `--no-deps` matters: without it, Cargo also reads the manifests
/// of crates that only other platforms compile, and a fresh Cargo home does not have those crates.
fn cargo_metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline", "--locked"])
        .current_dir(workspace_root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Names of the crates that a package depends on, by kind: normal and build dependencies, or
/// development ones.
fn dependencies(package: &Value, development: bool) -> BTreeSet<&str> {
    package["dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|dependency| (dependency["kind"].as_str() == Some("dev")) == development)
        .map(|dependency| dependency["name"].as_str().unwrap())
        .collect()
}

fn workspace_packages(metadata: &Value) -> BTreeMap<&str, &Value> {
    let members: BTreeSet<&str> =
        metadata["workspace_members"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|package| members.contains(package["id"].as_str().unwrap()))
        .map(|package| (package["name"].as_str().unwrap(), package))
        .collect()
}

#[test]
fn crates_depend_only_on_the_layers_below_them() {
    let metadata = cargo_metadata();
    let packages = workspace_packages(&metadata);
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    for (name, package) in &packages {
        let allowed = arrows.get(name).unwrap_or_else(|| panic!("{name} has no place among the layers"));
        let used = dependencies(package, false);
        for dependency in used.iter().filter(|dependency| packages.contains_key(*dependency)) {
            assert!(allowed.contains(dependency), "{name} must not depend on {dependency}");
        }
        for arrow in *allowed {
            assert!(used.contains(arrow), "{name} does not use {arrow}: the arrow goes");
        }
    }
    for name in arrows.keys() {
        assert!(packages.contains_key(name), "{name} has a place among the layers but does not exist");
    }
}

#[test]
fn the_test_kit_is_never_shipped() {
    let metadata = cargo_metadata();
    for (name, package) in workspace_packages(&metadata) {
        if !["dormer-testkit", "dormer-tests", "dormer-bench"].contains(&name) {
            assert!(
                !dependencies(package, false).contains("dormer-testkit"),
                "{name} may use dormer-testkit in its tests only"
            );
        }
    }
}

#[test]
fn nothing_below_a_pure_crate_knows_a_runtime_or_a_socket() {
    for (pure, _) in PURE {
        // The tree, not the metadata: that one also holds what other platforms would need.
        let output = Command::new(env!("CARGO"))
            .args([
                "tree",
                "--offline",
                "--locked",
                "--package",
                pure,
                "--edges",
                "normal,build",
                "--prefix",
                "none",
            ])
            .current_dir(workspace_root())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let reached: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(reached.contains(pure) && reached.len() > 3, "this tree is not whole: {reached:?}");
        for impure in IMPURE {
            assert!(!reached.contains(impure), "{pure} reaches {impure}");
        }
    }
}

#[test]
fn pure_crates_ban_the_io_of_std() {
    for (name, folder) in PURE {
        let path = workspace_root().join(folder).join("clippy.toml");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for banned in BANNED {
            assert!(text.contains(&format!("\"{banned}\"")), "{name} must ban {banned} in its clippy.toml");
        }
        // Clippy reads the nearest file only, so what holds for all crates must be repeated there.
        let root = fs::read_to_string(workspace_root().join("clippy.toml")).unwrap();
        for line in root.lines() {
            assert!(text.contains(line), "{} lacks this line of the root's: {line}", path.display());
        }
    }
}
