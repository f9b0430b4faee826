//! Each cluster of Rancher Fleet gets the bundles of its label, and no bundle waits for one that
//! its cluster does not get.
//!
//! Fleet does not run here. `deployed` and `is_awaited` repeat its rules, as its documents have
//! them (<https://fleet.rancher.io/gitrepo-targets>, <https://fleet.rancher.io/ref-fleet-yaml>).
//! What these do not know, the closed schemas of `custom_kinds` refuse.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use dormer_tests::custom_kinds;
use dormer_tests::manifests::{items, pod_template, text, title};
use dormer_tests::workspace_root;
use serde_json::{Value, json};

use crate::deploy::{KUSTOMIZATIONS, folder, parse, render};

/// What a cluster gets: the bundle's name, its folder and its namespace.
type Got = (&'static str, &'static str, &'static str);
/// Labels of a cluster, and what it gets.
type Cluster = (&'static [(&'static str, &'static str)], &'static [Got]);

const CLUSTERS: [Cluster; 4] = [
    (&[], &[]),
    (&[("dormer", "elsewhere"), ("env", "lab")], &[]),
    (
        &[("dormer", "lab"), ("env", "test")],
        &[
            ("dormer-edge-publisher", "overlays/edge-publisher", "dormer-lab"),
            ("dormer-lab", "overlays/lab", "dormer-lab"),
        ],
    ),
    (&[("dormer", "production")], &[("dormer-lab", "overlays/production", "dormer")]),
];

/// The bundles by the names of their files: a new file is one more.
fn bundles() -> BTreeMap<String, Value> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap());
    let named = files.map(|file| (file.file_name().into_string().unwrap(), file.path()));
    named
        .filter(|(name, _)| name.starts_with("fleet"))
        .map(|(name, path)| (name, parse(&fs::read_to_string(path).unwrap()).remove(0)))
        .collect()
}

fn has(labels: &BTreeMap<&str, &str>, wanted: &Value) -> bool {
    let mut wanted = wanted.as_object().into_iter().flatten();
    wanted.all(|(key, value)| labels.get(key.as_str()).copied() == value.as_str())
}

/// What a cluster gets of a bundle. The first customization that fits the cluster counts. The
/// selector `{}` fits every cluster, and no selector fits none. A cluster without a fitting
/// customization gets the bundle as it is.
fn deployed<'a>(bundle: &'a Value, labels: &BTreeMap<&str, &str>) -> Option<(&'a str, &'a str)> {
    let fits = |target: &&Value| {
        let selector = &target["clusterSelector"];
        selector.is_object() && has(labels, &selector["matchLabels"])
    };
    let target = items(bundle, "/targetCustomizations").find(fits).unwrap_or(&Value::Null);
    let value =
        |pointer| [target, bundle].map(|part| text(part, pointer)).into_iter().find(|v| !v.is_empty());
    (target["doNotDeploy"] != true)
        .then(|| (value("/kustomize/dir").unwrap(), value("/defaultNamespace").unwrap()))
}

/// Whether a dependency means this bundle. Fleet looks among those of the same cluster, and does
/// not deploy while it finds none.
fn is_awaited(dependency: &Value, bundle: &Value) -> bool {
    text(dependency, "/name") == text(bundle, "/name")
}

#[test]
fn the_fleet_bundles_name_overlays_that_exist_and_wait_for_each_other() {
    let bundles = bundles();
    for (labels, expected) in CLUSTERS {
        let labels = labels.iter().copied().collect();
        let here: Vec<&Value> =
            bundles.values().filter(|bundle| deployed(bundle, &labels).is_some()).collect();
        let mut owned = BTreeSet::new();
        let mut got = Vec::new();
        for bundle in &here {
            let (overlay, namespace) = deployed(bundle, &labels).unwrap();
            got.push((text(bundle, "/name"), overlay, namespace));
            assert!(KUSTOMIZATIONS.contains(&overlay), "{overlay} is not among those that are checked");
            for resource in parse(&render(overlay)) {
                if pod_template(&resource).is_some() {
                    assert_eq!(text(&resource, "/metadata/namespace"), namespace, "{overlay}");
                }
                let name = (text(&resource, "/metadata/namespace").to_owned(), title(&resource));
                assert!(owned.insert(name.clone()), "two bundles own {name:?}");
            }
            for dependency in items(bundle, "/dependsOn") {
                let awaited = here.iter().filter(|other| is_awaited(dependency, other)).count();
                assert_eq!(awaited, 1, "{labels:?}: {dependency}");
            }
        }
        assert_eq!(got, expected, "{labels:?}");
    }
    // The clusters above have each label that a bundle asks for.
    let known: BTreeSet<(&str, &str)> = CLUSTERS.iter().flat_map(|(labels, _)| *labels).copied().collect();
    for target in bundles.values().flat_map(|bundle| items(bundle, "/targetCustomizations")) {
        let asked = target.pointer("/clusterSelector/matchLabels").and_then(Value::as_object);
        for (key, value) in asked.into_iter().flatten() {
            assert!(known.contains(&(key.as_str(), value.as_str().unwrap())), "{key}: {value}");
        }
    }
    assert!(items(&bundles["fleet-edge-publisher.yaml"], "/dependsOn").count() == 1);
}

#[test]
fn the_git_repo_names_every_bundle_and_fleet_knows_every_field() {
    let bundles = bundles();
    let mut names = BTreeSet::new();
    for (file, bundle) in &bundles {
        let options = json!({"apiVersion": "fleet.cattle.io/v1alpha1", "kind": "FleetYAML", "spec": bundle});
        assert_eq!(custom_kinds::problems(&options), [""; 0], "{file}");
        // The name that Fleet makes by itself begins with the GitRepo's, which dependencies cannot
        // know. The bundle's release of Helm has the name too.
        let name = text(bundle, "/name");
        assert!((1..=53).contains(&name.len()) && names.insert(name), "{file}: {name}");
    }
    let comment = fs::read_to_string(folder().join("fleet-lab.yaml")).unwrap();
    let comment: Vec<&str> = comment.lines().filter_map(|line| line.strip_prefix("#   ")).collect();
    let page = fs::read_to_string(workspace_root().join("docs/DEPLOYING.md")).unwrap();
    let block = page.split("```yaml\n").find(|block| block.starts_with("kind: GitRepo\n")).unwrap();
    for repository in [comment.join("\n").as_str(), block.split("```").next().unwrap()] {
        let repository = &parse(repository)[0];
        assert_eq!(custom_kinds::problems(repository), [""; 0]);
        // Without targets, it reaches only the clusters of the group `default`.
        assert_eq!(repository["spec"]["targets"], json!([{"clusterSelector": {}}]));
        let named: BTreeSet<(&str, &str)> = items(repository, "/spec/bundles")
            .map(|bundle| (text(bundle, "/base"), text(bundle, "/options")))
            .collect();
        assert_eq!(named, bundles.keys().map(|file| ("deploy/kubernetes", file.as_str())).collect());
    }
}
