//! The Helm chart makes the same objects as the kustomize base and its components, and refuses
//! values that make no sense. Helm is the real one, from `scripts/get-services.sh`.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use dormer_testkit::services::free_port;
use dormer_tests::manifests::{containers, items, pod_template, problems, pull_secrets, text, title};
use dormer_tests::{Run, part, workspace_root};
use serde_json::{Value, json};

use crate::deploy::{KUSTOMIZATIONS, folder, made_elsewhere, new_secret, render};

const REPOSITORY: &str = "image.repository=registry.example.org/dormer";

fn chart() -> PathBuf {
    workspace_root().join("deploy/helm/dormer")
}

fn helm(arguments: &[&str]) -> Run {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(part("helm/bin/helm"));
    // It would keep settings and caches there.
    Run::of(command.args(arguments).env("HOME", home.path()).env_remove("KUBECONFIG"))
}

fn template(sets: &[&str]) -> Run {
    let chart = chart().display().to_string();
    let mut arguments = vec!["template", "dormer", &chart, "--namespace", "dormer"];
    for set in sets {
        arguments.extend(["--set", set]);
    }
    helm(&arguments)
}

fn parse(yaml: &str) -> Vec<Value> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), yaml).unwrap();
    let script = "import json, sys, yaml\n\
                  print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))";
    let mut python = Command::new(part("deploy-tools/bin/python3"));
    serde_json::from_str(&Run::of(python.args(["-c", script]).arg(file.path())).succeeds()).unwrap()
}

/// The base with components, as an overlay would have them.
pub(super) fn kustomized(components: &[&str]) -> Vec<Value> {
    let work = tempfile::tempdir().unwrap();
    let from = workspace_root().join("deploy/kubernetes");
    Run::of(Command::new("cp").arg("-r").arg(from).arg(work.path())).succeeds();
    let overlay = work.path().join("kubernetes/overlays/compared");
    fs::create_dir(&overlay).unwrap();
    let lines: Vec<_> = components.iter().map(|name| format!("  - ../../components/{name}\n")).collect();
    let lines = lines.concat();
    let list = if components.is_empty() { String::new() } else { format!("components:\n{lines}") };
    let kustomization = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: dormer\n\
         resources:\n  - ../../base\n{list}images:\n  - name: dormer\n    \
         newName: registry.example.org/dormer\n    newTag: {}\n",
        env!("CARGO_PKG_VERSION")
    );
    fs::write(overlay.join("kustomization.yaml"), kustomization).unwrap();
    let mut kubectl = Command::new(part("deploy-tools/bin/kubectl"));
    parse(&Run::of(kubectl.arg("kustomize").arg(&overlay)).succeeds())
}

/// The chart with these values, and the settings of an overlay.
fn template_like(overlay: &str, namespace: &str, sets: &[&str]) -> Vec<Value> {
    let (chart, settings) = (chart(), folder().join(overlay).join("dormer.toml"));
    let (chart, settings) = (chart.display().to_string(), format!("settings={}", settings.display()));
    let mut arguments = vec!["template", "dormer", &chart, "--namespace", namespace, "--set-file", &settings];
    for set in sets.iter().chain([&REPOSITORY]) {
        arguments.extend(["--set", set]);
    }
    parse(&helm(&arguments).succeeds())
}

/// Objects by their titles, without what only Helm adds (its labels, and its way to roll the pods
/// when the settings change), and in one form where two mean the same.
fn comparable(objects: Vec<Value>) -> BTreeMap<String, Value> {
    const OF_HELM: [&str; 4] = [
        "app.kubernetes.io/instance",
        "app.kubernetes.io/managed-by",
        "app.kubernetes.io/version",
        "helm.sh/chart",
    ];
    fn clean(value: &mut Value) {
        match value {
            Value::Object(map) => {
                if let Some(Value::Object(labels)) = map.get_mut("labels") {
                    labels.retain(|name, _| !OF_HELM.contains(&name.as_str()));
                }
                if let Some(Value::Object(annotations)) = map.get_mut("annotations") {
                    annotations.remove("checksum/settings");
                }
                let is_empty = |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
                map.retain(|name, value| name != "annotations" || !is_empty(value));
                map.retain(|name, value| name != "optional" || value != false);
                // Their order counts only where one uses another, which `problems` checks.
                if let Some(Value::Array(variables)) = map.get_mut("env") {
                    variables.sort_by(|one, other| text(one, "/name").cmp(text(other, "/name")));
                }
                map.values_mut().for_each(clean);
            }
            Value::Array(list) => list.iter_mut().for_each(clean),
            Value::String(name) => {
                // dormer-b267c2dbfb
                let digest = name.strip_prefix("dormer-").unwrap_or_default();
                if digest.len() == 10
                    && digest.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
                {
                    "dormer".clone_into(name);
                }
            }
            _ => {}
        }
    }
    objects
        .into_iter()
        // Helm makes the namespace, or the administrator does.
        .filter(|object| text(object, "/kind") != "Namespace")
        .map(|mut object| {
            clean(&mut object);
            // `dormer-metrics` and `dormer-publisher` are names, not digests.
            (title(&object), object)
        })
        .collect()
}

/// What the chart leaves to others.
const DATABASES_AND_STORES: [&str; 6] = [
    "postgres",
    "postgres-cnpg",
    "postgres-cnpg-restore",
    "storage-ceph",
    "storage-garage",
    "storage-seaweedfs",
];

fn assert_same(made: &BTreeMap<String, Value>, expected: &BTreeMap<String, Value>) {
    assert_eq!(made.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, object) in expected {
        assert!(made[name] == *object, "{name}\nchart: {:#}\nbase: {object:#}", made[name]);
    }
}

#[test]
fn the_chart_makes_the_same_objects_as_the_base_and_its_components() {
    let components: [(&[&str], &[&str]); 4] = [
        (&[], &[REPOSITORY]),
        (&["ingress"], &[REPOSITORY, "ingress.enabled=true"]),
        (
            &["publisher", "gateway", "autoscaling", "monitoring"],
            &[
                REPOSITORY,
                "publisher.enabled=true",
                "gateway.enabled=true",
                "autoscaling.enabled=true",
                "monitoring.enabled=true",
            ],
        ),
        (
            &["publisher-watch", "network-policy", "private-registry"],
            &[
                REPOSITORY,
                "publisher.enabled=true",
                "publisher.watch=true",
                "networkPolicy.enabled=true",
                "imagePullSecrets[0].name=dormer-registry",
            ],
        ),
    ];
    for (components, sets) in components {
        let expected = comparable(kustomized(components));
        assert_same(&comparable(parse(&template(sets).succeeds())), &expected);
        assert!(expected.len() >= 6, "{:?}", expected.keys());
    }
    let all = fs::read_dir(folder().join("components")).unwrap();
    let all: BTreeSet<String> = all.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let compared = components.iter().flat_map(|(components, _)| components.iter());
    let known: BTreeSet<String> =
        compared.chain(&DATABASES_AND_STORES).map(|&name| name.to_owned()).collect();
    assert_eq!(all, known, "a component that neither the chart has nor others bring");
}

/// An overlay, its components that the chart does not have, and values for the rest.
type Place = (&'static str, &'static [&'static str], &'static [&'static [&'static str]]);

/// Each place can be had by either way. The publisher by itself is no matter of the chart, which
/// always has a server.
#[test]
fn values_make_what_each_overlay_has_beside_its_database_and_store() {
    const GATEWAY: [&str; 3] =
        ["gateway.enabled=true", "gateway.parentRef.name=public", "networkPolicy.enabled=true"];
    const WATCH: [&str; 2] = ["publisher.enabled=true", "publisher.watch=true"];
    const CLUSTER: [&str; 2] = ["database.secretName=dormer-db-app", "database.secretKey=uri"];
    let overlays: [Place; 4] = [
        (
            "overlays/lab",
            &["postgres", "storage-seaweedfs"],
            &[
                &GATEWAY,
                &["gateway.host=cache.lab.example.org", "monitoring.enabled=true"],
                &["monitoring.runbookPage=https://book.lab.example.org/RUNBOOK.html"],
            ],
        ),
        (
            "overlays/production",
            &["postgres-cnpg"],
            &[&GATEWAY, &WATCH, &CLUSTER, &["autoscaling.enabled=true", "monitoring.enabled=true"]],
        ),
        (
            "overlays/garage",
            &["postgres", "storage-garage"],
            &[
                &["ingress.enabled=true", "ingress.className=traefik", "publisher.enabled=true"],
                &["networkPolicy.enabled=true", "networkPolicy.gatewayNamespace=traefik"],
            ],
        ),
        (
            "overlays/ceph",
            &["postgres-cnpg", "storage-ceph"],
            &[&GATEWAY, &WATCH, &CLUSTER, &["objectBucketClaim=dormer-bucket"]],
        ),
    ];
    let mut known: Vec<&str> = overlays.iter().map(|(overlay, ..)| *overlay).collect();
    known.extend(["base", "overlays/edge-publisher"]);
    assert_eq!(known.iter().collect::<BTreeSet<_>>(), KUSTOMIZATIONS.iter().collect());
    let of_base = comparable(kustomized(&[]));
    for (overlay, others, sets) in overlays {
        let objects = parse(&render(overlay));
        let namespace = objects.iter().find(|object| text(object, "/kind") == "Namespace").unwrap();
        let namespace = text(namespace, "/metadata/name").to_owned();
        let of_others = comparable(kustomized(others));
        let (by_others, expected): (BTreeMap<_, _>, BTreeMap<_, _>) = comparable(objects)
            .into_iter()
            .partition(|(name, _)| of_others.contains_key(name) && !of_base.contains_key(name));
        let mut made = template_like(overlay, &namespace, &sets.concat());
        assert_same(&comparable(made.clone()), &expected);
        // Together, everything that is named is there.
        assert!(by_others.len() >= 4, "{overlay}: {:?}", by_others.keys());
        made.extend(by_others.into_values());
        made.extend(made_elsewhere(&namespace));
        assert_eq!(problems(&made), Vec::<String>::new(), "{overlay}");
    }
}

/// Pods read their settings once.
#[test]
fn new_settings_roll_every_deployment() {
    let sums = |overlay: &str| -> Vec<String> {
        let objects = template_like(overlay, "dormer", &["publisher.enabled=true", "publisher.watch=true"]);
        let deployments = objects.iter().filter(|object| text(object, "/kind") == "Deployment");
        let sum = "/spec/template/metadata/annotations/checksum~1settings";
        deployments.map(|object| text(object, sum).to_owned()).collect()
    };
    let (of_base, of_lab) = (sums("base"), sums("overlays/lab"));
    assert_eq!((of_base.len(), of_lab.len()), (2, 2));
    assert!(of_base.iter().zip(&of_lab).all(|(one, other)| one.len() == 64 && one != other));
}

/// Helm reads nothing outside of a chart.
#[test]
fn the_chart_has_the_settings_the_alerts_and_the_dashboard_of_the_base_and_its_components() {
    for file in
        ["base/dormer.toml", "components/monitoring/alerts.yaml", "components/monitoring/dashboard.json"]
    {
        let origin = workspace_root().join("deploy/kubernetes").join(file);
        let copy = chart().join(origin.file_name().unwrap());
        if std::env::var_os("DORMER_RENEW").is_some() {
            fs::copy(&origin, &copy).unwrap();
        }
        assert!(
            fs::read(&copy).unwrap() == fs::read(&origin).unwrap(),
            "DORMER_RENEW=1 renews {}",
            copy.display()
        );
    }
}

/// The chart with values that change each kind of object.
pub(super) fn with_many_values() -> String {
    let settings = tempfile::NamedTempFile::new().unwrap();
    fs::write(settings.path(), "listen = \"0.0.0.0:8080\"\n").unwrap();
    let digest = format!("image.digest=sha256:{}", "a".repeat(64));
    let path = chart().display().to_string();
    let file = format!("settings={}", settings.path().display());
    let set = [
        "replicas=3",
        "secretName=vault",
        "serviceAccount.annotations.role=cache",
        "nodeSelector.disk=ssd",
        "tolerations[0].operator=Exists",
        "priorityClassName=high",
        "imagePullSecrets[0].name=registry",
        "extraEnv[0].name=DORMER_STATS",
        "extraEnv[0].value=yes",
        "publisher.enabled=true",
        "publisher.edge=my-edge",
        "monitoring.enabled=true",
        "monitoring.labels.release=prometheus",
        "monitoring.runbookPage=https://git.example.org/dormer/docs/RUNBOOK.md",
        "networkPolicy.enabled=true",
        "networkPolicy.monitoringNamespace=prometheus",
        "ingress.enabled=true",
        "ingress.className=traefik",
        "ingress.tlsSecret=certificate",
    ];
    let mut arguments = vec!["template", "cache", &path, "--namespace", "lab", "--set-file", &file];
    for one in set.iter().copied().chain([REPOSITORY, &digest]) {
        arguments.extend(["--set", one]);
    }
    helm(&arguments).succeeds()
}

#[test]
fn values_reach_the_objects_and_nothing_names_what_is_not_there() {
    let mut objects = parse(&with_many_values());
    let deployment = objects.iter().find(|object| title(object) == "Deployment dormer").unwrap();
    assert_eq!(deployment["spec"]["replicas"], 3);
    let pod = &pod_template(deployment).unwrap()["spec"];
    assert_eq!(pod["nodeSelector"], json!({"disk": "ssd"}));
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    for of in objects.iter().filter(|object| pod_template(object).is_some()) {
        assert_eq!(pull_secrets(of, &objects), ["registry"], "{}", title(of));
    }
    for container in containers(pod_template(deployment).unwrap()) {
        assert!(text(container, "/image").starts_with("registry.example.org/dormer@sha256:aaa"));
        assert!(
            container["env"].as_array().unwrap().contains(&json!({"name": "DORMER_STATS", "value": "yes"}))
        );
    }
    let map = objects.iter().find(|object| title(object) == "ConfigMap dormer").unwrap();
    assert_eq!(map["data"]["dormer.toml"], "listen = \"0.0.0.0:8080\"\n");
    assert!(objects.iter().all(|object| object["metadata"]["namespace"] == "lab"));
    let ingress = objects.iter().find(|object| title(object) == "Ingress dormer").unwrap();
    assert_eq!(ingress["spec"]["ingressClassName"], "traefik");
    for wanted in ["ServiceMonitor dormer", "PrometheusRule dormer"] {
        let selected = objects.iter().find(|object| title(object) == wanted).unwrap();
        assert_eq!(selected["metadata"]["labels"]["release"], "prometheus", "{wanted}");
    }
    let rules = objects.iter().find(|object| title(object) == "PrometheusRule dormer").unwrap();
    let links: Vec<&str> =
        items(rules, "/spec/groups/0/rules").map(|alert| text(alert, "/annotations/runbook_url")).collect();
    assert!(links.len() > 20, "{links:?}");
    for link in links {
        assert!(link.starts_with("https://git.example.org/dormer/docs/RUNBOOK.md#dormer"), "{link}");
    }
    let policy = objects.iter().find(|object| title(object) == "NetworkPolicy dormer-server").unwrap();
    let scraper = "/spec/ingress/1/from/0/namespaceSelector/matchLabels/kubernetes.io~1metadata.name";
    assert_eq!(text(policy, scraper), "prometheus");
    let publisher = objects.iter().find(|object| text(object, "/kind") == "CronJob").unwrap();
    let of_publisher = &pod_template(publisher).unwrap()["spec"];
    for key in ["nodeSelector", "tolerations", "priorityClassName"] {
        assert!(!pod[key].is_null() && of_publisher[key] == pod[key], "{key}");
    }
    let variables = publisher.to_string();
    assert!(variables.contains("DORMER_EDGE_MY_EDGE_CREDENTIALS_SECRET_ACCESS_KEY"));

    // With the Secret of `dormer secrets init`, every name leads somewhere.
    let mut secret = parse(&new_secret("lab"));
    secret[0]["metadata"]["name"] = "vault".into();
    objects.extend(secret);
    for name in ["registry", "certificate"] {
        objects.push(json!({"kind": "Secret", "metadata": {"name": name, "namespace": "lab"}}));
    }
    assert_eq!(problems(&objects), Vec::<String>::new());
}

#[test]
fn values_that_make_no_sense_are_refused() {
    for (set, words) in [
        ("replicas=3", "repository"), // none is given
        ("image.repository=x,replicas=0", "replicas"),
        ("image.repository=x,image.tag=latest", "tag"),
        ("image.repository=x,image.digest=sha256:short", "digest"),
        ("image.repository=x,replica=2", "replica"),
        ("image.repository=x,publisher.schedule=hourly", "schedule"),
        ("image.repository=x,gateway.host=Cache_1", "host"),
        ("image.repository=x,ingress.host=Cache_1", "host"),
        ("image.repository=x,monitoring.labels.release=1", "release"),
        ("image.repository=x,monitoring.runbookPage=docs/RUNBOOK.md", "runbookPage"),
        ("image.repository=x,networkPolicy.gatewayNamespace=Gateway_1", "gatewayNamespace"),
        ("image.repository=x,objectBucketClaim=Bucket_1", "objectBucketClaim"),
        ("image.repository=x,database.secretKey=a:b", "secretKey"),
        ("image.repository=x,resources.limits.memory=1GB", "memory"),
        ("image.repository=x,resources.limits.memory=null", "memory"),
        ("image.repository=x,extraEnv[0].name=a-b", "name"),
    ] {
        let said = template(&[set]).fails();
        assert!(
            said.contains("don't meet the specifications of the schema") && said.contains(words),
            "{set}: {said}"
        );
    }
    let chart = chart().display().to_string();
    helm(&["lint", "--strict", &chart, "--set", REPOSITORY]).succeeds();
}

/// A registry without users, in a folder of its own. It ends on drop.
struct Registry {
    process: Child,
    address: String,
}

impl Registry {
    fn start(folder: &Path) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let settings = json!({"version": 0.1, "http": {"addr": address},
            "storage": {"filesystem": {"rootdirectory": folder.join("registry")}}});
        let file = folder.join("registry.json");
        fs::write(&file, settings.to_string()).unwrap();
        let mut command = Command::new(part("docker-registry/usr/bin/docker-registry"));
        command.arg("serve").arg(file).stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Self { process: command.spawn().unwrap(), address };
        let begin = Instant::now();
        while TcpStream::connect(&registry.address).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(30), "the registry does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the release workflow does with the chart, and what its users do then.
#[test]
fn the_chart_is_installed_from_a_registry() {
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start(work.path());
    let (folder, version) = (work.path().display().to_string(), env!("CARGO_PKG_VERSION"));
    helm(&["package", &chart().display().to_string(), "--destination", &folder]).succeeds();
    let charts = format!("oci://{}/charts", registry.address);
    let archive = format!("{folder}/dormer-{version}.tgz");
    let pushed = helm(&["push", &archive, &charts, "--plain-http"]);
    assert!(pushed.is_success(), "{pushed}");
    // The workflow signs what this line names.
    let digest = |run: &Run| {
        let said = format!("{}{}", run.stdout(), run.stderr());
        said.lines().find_map(|line| line.strip_prefix("Digest: ").map(str::to_owned))
    };
    let of_push = digest(&pushed);
    assert!(of_push.as_ref().is_some_and(|digest| digest.starts_with("sha256:")), "{pushed}");
    let from = format!("{charts}/dormer");
    let rendered = helm(&[
        "template",
        "dormer",
        &from,
        "--version",
        version,
        "--plain-http",
        "--namespace",
        "dormer",
        "--set",
        REPOSITORY,
    ]);
    assert_eq!(parse(&rendered.succeeds()), parse(&template(&[REPOSITORY]).succeeds()));
    assert_eq!(digest(&rendered), of_push);
}

/// The files that name the version of a release agree, and a tag of another version is refused.
#[test]
fn one_version_is_named_everywhere() {
    let version = env!("CARGO_PKG_VERSION");
    let check =
        |tag: &str| Run::of(Command::new(workspace_root().join("scripts/release-version.sh")).arg(tag));
    assert_eq!(check(&format!("v{version}")).succeeds(), format!("version={version}\n"));
    assert!(check("v9.9.9").fails().contains("but Cargo.toml has version"));
}
