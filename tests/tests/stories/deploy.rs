//! What lies in `deploy/` is fit to be applied: it renders, fits the schemas of Kubernetes, names
//! nothing that is not there, and its settings are ones that the binary takes.
//!
//! The tools are the real ones, from `scripts/get-services.sh`.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use dormer_tests::custom_kinds;
use dormer_tests::manifests::{
    containers, find, items, pod_template, problems, pull_secrets, quantity, text, title,
};
use dormer_tests::network_policies::{Peer, Port, may_connect};
use dormer_tests::{binary, part, workspace_root};
use serde_json::{Value, json};

/// Everything that can be applied by itself.
pub(super) const KUSTOMIZATIONS: [&str; 6] = [
    "base",
    "overlays/lab",
    "overlays/production",
    "overlays/garage",
    "overlays/ceph",
    "overlays/edge-publisher",
];

/// What neither the repository nor `dormer secrets init` brings: certificates, and what operators
/// make from the resources here.
const MADE_BY_OTHERS: [(&str, &str, &[&str]); 5] = [
    ("Secret", "dormer-tls", &[]),
    // CloudNativePG, from the Cluster.
    ("Secret", "dormer-db-app", &["uri"]),
    ("Secret", "dormer-backup", &["access-key-id", "secret-access-key"]),
    // Rook, from the ObjectBucketClaim.
    ("Secret", "dormer-bucket", &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]),
    ("ConfigMap", "dormer-bucket", &["BUCKET_HOST", "BUCKET_PORT", "BUCKET_NAME"]),
];

pub(super) fn folder() -> PathBuf {
    workspace_root().join("deploy/kubernetes")
}

/// Runs one of the tools over `input`; its output, and whether it succeeded.
fn run(program: &str, arguments: &[&str], input: &str) -> (String, bool) {
    let mut child = Command::new(part("deploy-tools/bin").join(program))
        .args(arguments)
        .current_dir(folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    // A tool that reads nothing closes the pipe.
    let _ = writer.join().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (said, output.status.success())
}

pub(super) fn render(kustomization: &str) -> String {
    let (rendered, success) = run("kubectl", &["kustomize", kustomization], "");
    assert!(success, "{rendered}");
    rendered
}

pub(super) fn parse(yaml: &str) -> Vec<Value> {
    let script = "import json, sys, yaml\nprint(json.dumps([d for d in yaml.safe_load_all(sys.stdin) if d]))";
    let (output, success) = run("python3", &["-c", script], yaml);
    assert!(success, "{output}");
    serde_json::from_str(&output).unwrap()
}

/// What runs in a cluster after everything was done that the documents say.
fn applied(kustomization: &str) -> Vec<Value> {
    let mut resources = parse(&render(kustomization));
    let namespace = text(workload(&resources), "/metadata/namespace").to_owned();
    resources.extend(made_elsewhere(&namespace));
    if kustomization == "overlays/edge-publisher" {
        // It runs beside the server.
        resources.push(json!({"kind": "Namespace", "metadata": {"name": namespace}}));
    }
    resources
}

/// The Secret that `dormer secrets init` makes, and what others make.
pub(super) fn made_elsewhere(namespace: &str) -> Vec<Value> {
    let mut made = parse(&new_secret(namespace));
    for (kind, name, keys) in MADE_BY_OTHERS {
        let data: serde_json::Map<String, Value> =
            keys.iter().map(|&key| (key.to_owned(), example(key).into())).collect();
        made.push(json!({"apiVersion": "v1", "kind": kind,
            "metadata": {"name": name, "namespace": namespace}, "data": data}));
    }
    made
}

/// The Secret of a server with an edge.
pub(super) fn new_secret(namespace: &str) -> String {
    let edge_key = tempfile::NamedTempFile::new().unwrap();
    fs::write(edge_key.path(), "key-of-the-edge\n").unwrap();
    let mut command = Command::new(binary());
    command.args(["secrets", "init", "--namespace", namespace]);
    for key in ["edge-access-key-id", "edge-secret-access-key"] {
        command.arg("--from-file").arg(format!("{key}={}", edge_key.path().display()));
    }
    let output = command.env_clear().output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What stands in a Secret or ConfigMap of others.
fn example(key: &str) -> &'static str {
    match key {
        "uri" => "postgresql://dormer:hidden@dormer-db-rw.dormer:5432/dormer",
        "BUCKET_HOST" => "rook-ceph-rgw-store.rook-ceph.svc",
        "BUCKET_PORT" => "80",
        "BUCKET_NAME" => "dormer-1f0c",
        _ => "not-to-be-shown",
    }
}

fn has_server(kustomization: &str) -> bool {
    kustomization != "overlays/edge-publisher"
}

/// The kustomizations with a server.
fn servers() -> impl Iterator<Item = &'static str> {
    KUSTOMIZATIONS.into_iter().filter(|name| has_server(name))
}

/// The first resource that runs something.
fn workload(resources: &[Value]) -> &Value {
    resources.iter().find(|resource| pod_template(resource).is_some()).unwrap()
}

fn deployment(resources: &[Value]) -> &Value {
    resources.iter().find(|resource| title(resource) == "Deployment dormer").unwrap()
}

fn server(resources: &[Value]) -> &Value {
    containers(pod_template(deployment(resources)).unwrap())
        .find(|container| text(container, "/name") == "dormer")
        .unwrap()
}

/// Every container that runs `dormer`, with what it belongs to.
fn dormers(resources: &[Value]) -> Vec<(&Value, &Value)> {
    let of = |resource| containers(pod_template(resource).unwrap()).map(move |one| (resource, one));
    let workloads = resources.iter().filter(|resource| pod_template(resource).is_some());
    workloads.flat_map(of).filter(|(_, one)| text(one, "/image").contains("dormer")).collect()
}

/// Kubernetes' own schemas, and for kinds of others those of their projects, where a registry has
/// them, and the closed ones of `custom_kinds`.
#[test]
fn everything_renders_and_fits_the_schemas_of_kubernetes() {
    let mut rendered: Vec<String> = KUSTOMIZATIONS.iter().map(|name| render(name)).collect();
    rendered.push(super::helm::with_many_values());
    for file in
        ["base/secret.template.yaml", "secrets/external-secret.yaml", "secrets/sealed-secret.template.yaml"]
    {
        rendered.push(fs::read_to_string(folder().join(file)).unwrap());
    }
    let all: Vec<Value> = rendered.iter().flat_map(|yaml| parse(yaml)).collect();
    let (custom, own): (Vec<&Value>, Vec<&Value>) = all.iter().partition(|one| custom_kinds::is_custom(one));
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    let documents: Vec<String> = own.iter().map(ToString::to_string).collect();
    fs::write(file.path(), documents.join("\n---\n")).unwrap();
    let (said, success) = run("kubernetes-validate", &["--strict", file.path().to_str().unwrap()], "");
    assert!(success && !said.contains("Couldn't find schema"), "{said}");
    assert_eq!(said.matches(" passed for resource ").count(), own.len(), "{said}");

    assert!(custom.len() >= 15, "{}", custom.len());
    let found: Vec<String> = custom.iter().flat_map(|one| custom_kinds::problems(one)).collect();
    assert!(found.is_empty(), "{found:#?}");
    assert_eq!(fits_their_projects(&custom), Ok(11));
    // The validator of others' schemas sees.
    let mut route = (*custom.iter().find(|one| text(one, "/kind") == "HTTPRoute").unwrap()).clone();
    route["spec"]["rules"][0]["matches"][0]["path"]["type"] = "Prefix".into();
    assert!(fits_their_projects(&[&route]).unwrap_err().contains("path/type"));
}

/// What the CustomResourceDefinitions of the projects say; the number of resources that they knew.
fn fits_their_projects(resources: &[&Value]) -> Result<usize, String> {
    let script = workspace_root().join("tests/kubernetes-models/validate.js");
    let mut child = Command::new("node")
        .arg(script)
        .arg(part("kubernetes-models"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input = serde_json::to_vec(resources).unwrap();
    child.stdin.take().unwrap().write_all(&input).unwrap();
    let output = child.wait_with_output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse().unwrap())
}

#[test]
fn nothing_is_named_that_is_not_there() {
    for name in KUSTOMIZATIONS {
        let found = problems(&applied(name));
        assert!(found.is_empty(), "{name}: {found:#?}");
    }
}

/// Both restores and first starts come from one `Cluster`, so the restore must follow its changes.
#[test]
fn a_cluster_of_cloudnativepg_is_restored_into_an_archive_of_its_own() {
    let resources = super::helm::kustomized(&["postgres-cnpg", "postgres-cnpg-restore"]);
    let cluster = resources.iter().find(|one| text(one, "/kind") == "Cluster").unwrap();
    assert_eq!(custom_kinds::problems(cluster), [""; 0]);
    fits_their_projects(&[cluster]).unwrap();
    assert!(cluster.pointer("/spec/bootstrap/initdb").is_none(), "either a new database or an old one");
    let source = text(cluster, "/spec/bootstrap/recovery/source");
    let origin =
        items(cluster, "/spec/externalClusters").find(|origin| text(origin, "/name") == source).unwrap();
    let store = |of: &Value, path: &str| text(of, &format!("{path}/barmanObjectName")).to_owned();
    let (read, written) = ("/plugin/parameters", "/spec/plugins/0/parameters");
    assert_eq!(store(origin, read), store(cluster, written), "one bucket");
    assert!(find(&resources, "ObjectStore", &store(origin, read), cluster).is_some());
    // The first cluster archives under its own name.
    assert_eq!(text(origin, "/plugin/parameters/serverName"), text(cluster, "/metadata/name"));
    assert_ne!(
        text(cluster, "/spec/plugins/0/parameters/serverName"),
        text(origin, "/plugin/parameters/serverName"),
        "the plugin refuses to write where another cluster did"
    );
    // What the guide applies alone.
    let alone =
        |resource: &&Value| text(resource, "/metadata/labels/app.kubernetes.io~1component") == "database";
    let mut kinds: Vec<&str> = resources.iter().filter(alone).map(|one| text(one, "/kind")).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["Cluster", "NetworkPolicy", "ObjectStore", "ScheduledBackup"]);
}

/// The checks see: each mistake, planted into what is right, is reported.
#[test]
fn planted_mistakes_are_found() {
    type Plant = fn(&mut Vec<Value>);
    fn by_kind<'a>(resources: &'a mut [Value], kind: &str) -> &'a mut Value {
        resources.iter_mut().find(|resource| text(resource, "/kind") == kind).unwrap()
    }
    fn set(resources: &mut [Value], kind: &str, pointer: &str, value: Value) {
        *by_kind(resources, kind).pointer_mut(pointer).unwrap() = value;
    }
    const SERVER: &str = "/spec/template/spec/containers/0";
    const ROUTE: &str = "/spec/rules/0/backendRefs/0";
    let plants: [(Plant, &str); 18] = [
        (
            |all| set(all, "Deployment", &format!("{SERVER}/resources/limits/memory"), "512MB".into()),
            "no quantity",
        ),
        (
            |all| set(all, "Deployment", &format!("{SERVER}/resources/limits/memory"), "1Mi".into()),
            "more memory",
        ),
        (|all| set(all, "Deployment", "/metadata/name", "Dormer".into()), "is no name"),
        (
            |all| set(all, "Deployment", &format!("{SERVER}/volumeMounts/0/name"), "cfg".into()),
            "no volume cfg",
        ),
        (
            |all| set(all, "Deployment", &format!("{SERVER}/env/0/valueFrom/secretKeyRef/key"), "url".into()),
            "no key url",
        ),
        (
            |all| set(all, "Deployment", "/spec/template/spec/volumes/0/configMap/name", "x".into()),
            "no ConfigMap x",
        ),
        (
            |all| set(all, "Deployment", "/spec/template/spec/serviceAccountName", "x".into()),
            "no ServiceAccount x",
        ),
        (
            |all| set(all, "Deployment", &format!("{SERVER}/readinessProbe/httpGet/port"), "web".into()),
            "no port web",
        ),
        (|all| set(all, "Service", "/spec/ports/0/targetPort", "web".into()), "have no port web"),
        (
            |all| set(all, "PodDisruptionBudget", "/spec/selector/matchLabels", json!({"a": "b"})),
            "selects no pod",
        ),
        (|all| set(all, "HTTPRoute", &format!("{ROUTE}/port"), 81.into()), "a port 81"),
        (|all| set(all, "HTTPRoute", "/spec/hostnames/0", "a_b".into()), "is no host name"),
        (|all| set(all, "ServiceMonitor", "/spec/endpoints/0/port", "web".into()), "has a port web"),
        (
            |all| set(all, "ServiceMonitor", "/spec/selector/matchLabels", json!({"a": "b"})),
            "selects 0 Services",
        ),
        (
            |all| set(all, "HorizontalPodAutoscaler", "/spec/scaleTargetRef/name", "x".into()),
            "no Deployment x",
        ),
        (
            |all| {
                let value = json!({"name": "DORMER_LISTEN", "value": "$(HOST):80"});
                set(all, "Deployment", &format!("{SERVER}/env/0"), value);
            },
            "uses HOST",
        ),
        (|all| all.retain(|one| title(one) != "Secret dormer"), "no Secret dormer"),
        (|all| by_kind(all, "ServiceAccount")["imagePullSecrets"] = json!([{"name": "x"}]), "no Secret x"),
    ];
    for (plant, words) in plants {
        let mut resources = applied("overlays/production");
        plant(&mut resources);
        let found = problems(&resources);
        assert!(found.iter().any(|problem| problem.contains(words)), "{words}: {found:?}");
    }
}

#[test]
fn every_pod_fits_the_restricted_standard_and_writes_only_to_volumes() {
    for name in KUSTOMIZATIONS {
        let resources = applied(name);
        let pods: Vec<&Value> = resources.iter().filter_map(pod_template).collect();
        assert!(!pods.is_empty());
        for pod in pods {
            assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true);
            assert!(pod["spec"]["securityContext"]["runAsUser"].as_u64().unwrap() > 0);
            assert_eq!(pod["spec"]["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
            assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
            for container in containers(pod) {
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false);
                assert_eq!(context["readOnlyRootFilesystem"], true);
                assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
                assert!(quantity(text(container, "/resources/limits/memory")).is_some());
                let image = text(container, "/image");
                let tag = image.rsplit('/').next().unwrap().split_once(':').map(|(_, tag)| tag);
                // The base names no image: the overlay does.
                assert!(name == "base" || tag.is_some_and(|tag| tag != "latest"), "{name}: {image}");
            }
        }
        let namespace = resources.iter().find(|resource| text(resource, "/kind") == "Namespace").unwrap();
        if has_server(name) {
            assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
        }
    }
}

/// Every component, with the one for a private registry after it.
#[test]
fn every_pod_can_pull_from_a_private_registry() {
    let mut pods = 0;
    for component in fs::read_dir(folder().join("components")).unwrap() {
        let component = component.unwrap().file_name().into_string().unwrap();
        let mut resources = super::helm::kustomized(&[&component, "private-registry"]);
        let clusters = resources.iter().filter(|one| text(one, "/kind") == "Cluster");
        for cluster in clusters {
            assert_eq!(cluster["spec"]["imagePullSecrets"], json!([{"name": "dormer-registry"}]));
            assert_eq!(custom_kinds::problems(cluster), [""; 0]);
        }
        for of in resources.iter().filter(|one| pod_template(one).is_some()) {
            assert_eq!(pull_secrets(of, &resources), ["dormer-registry"], "{component}: {}", title(of));
            pods += 1;
        }
        let named =
            |found: &[Value]| problems(found).iter().any(|one| one.contains("Secret dormer-registry"));
        assert!(named(&resources), "{component}: the check does not see the Secret's name");
        resources.push(json!({"kind": "Secret",
            "metadata": {"name": "dormer-registry", "namespace": "dormer"}}));
        assert!(!named(&resources), "{component}");
    }
    assert!(pods > 16, "{pods}");
}

/// Where policies are enforced, nothing is allowed that no policy names.
#[test]
fn the_network_is_closed_by_default() {
    for name in servers().filter(|name| *name != "base") {
        let resources = applied(name);
        let denies_all = |policy: &&Value| {
            policy["spec"]["podSelector"] == json!({})
                && policy["spec"]["policyTypes"] == json!(["Ingress", "Egress"])
                && policy["spec"]["ingress"].is_null()
                && policy["spec"]["egress"].is_null()
        };
        let policies: Vec<&Value> =
            resources.iter().filter(|one| text(one, "/kind") == "NetworkPolicy").collect();
        assert_eq!(policies.iter().copied().filter(|one| denies_all(one)).count(), 1, "{name}");
        // The server may ask for itself, by the address that leads to where requests come from.
        let policy =
            |wanted: &str| policies.iter().find(|one| text(one, "/metadata/name") == wanted).unwrap();
        let way_in = &policy("dormer-server")["spec"]["ingress"][0];
        assert_eq!(way_in["ports"], json!([{"port": "http"}]), "{name}");
        let mut rules = items(policy("dormer-egress"), "/spec/egress");
        assert!(rules.any(|rule| rule["to"] == way_in["from"] && rule["ports"].is_null()), "{name}");
        // No rule without a sender: it would let everybody in.
        for rule in policies.iter().flat_map(|policy| items(policy, "/spec/ingress")) {
            assert!(items(rule, "/from").count() > 0 && items(rule, "/ports").count() > 0, "{name}: {rule}");
        }
    }
}

/// With pods that answer, with NodeLocal DNSCache, and by IPv6.
#[test]
fn every_pod_resolves_names_and_asks_no_host_of_the_internet_for_them() {
    let address = |text: &str| Peer::Address(text.parse().unwrap());
    let no_labels = json!({});
    let resolvers = [
        Peer::Pod { namespace: "kube-system", labels: &no_labels },
        // NodeLocal DNSCache listens here, and here, if kube-proxy uses iptables.
        address("169.254.20.10"),
        address("10.96.0.10"),
        address("fd00:10:96::a"),
    ];
    let strangers = [address("8.8.8.8"), address("172.32.0.1"), address("2001:4860:4860::8888")];
    for name in servers().filter(|name| *name != "base") {
        let resources = applied(name);
        for (of, pod) in pods_of(&resources) {
            let of = title(of);
            let may = |peer: Peer<'_>, protocol, number| {
                may_connect(&resources, pod, peer, Port { protocol, number, name: "" })
            };
            for protocol in ["UDP", "TCP"] {
                assert!(resolvers.iter().all(|peer| may(*peer, protocol, 53)), "{name}: {of}");
                assert!(!strangers.iter().any(|peer| may(*peer, protocol, 53)), "{name}: {of}");
            }
            // The addresses are for names only. (The server and the publisher speak S3 to any.)
            let is_dormer = of.ends_with(" dormer") || of.ends_with(" dormer-publisher");
            for port in [80, 443, 6443] {
                let may = may(address("10.96.0.1"), "TCP", port);
                assert_eq!(may, is_dormer && port != 6443, "{name}: {of} {port}");
            }
        }
    }
}

/// Every pod that the resources make, with what makes it.
fn pods_of(resources: &[Value]) -> Vec<(&Value, Peer<'_>)> {
    let pod = |of| {
        let labels = &pod_template(of)?["metadata"]["labels"];
        Some((of, Peer::Pod { namespace: text(of, "/metadata/namespace"), labels }))
    };
    resources.iter().filter_map(pod).collect()
}

/// All connections by TCP among the pods of a place, to the ports that they declare, and from pods
/// without labels, from a server of another namespace, from nodes and from outside.
#[test]
fn only_the_pods_that_need_it_reach_the_database_the_store_and_the_metrics() {
    const POSTGRES: &str = "StatefulSet postgres:5432";
    const CLUSTER: &str = "Cluster dormer-db:5432";
    const JOB: &str = "CronJob dormer-publisher";
    const WATCHER: &str = "Deployment dormer-publisher";
    for (name, way_in, publisher, needed) in [
        ("overlays/lab", "gateway", JOB, &[POSTGRES, "StatefulSet seaweedfs:8333"][..]),
        ("overlays/garage", "traefik", JOB, &[POSTGRES, "StatefulSet garage:3900"]),
        ("overlays/production", "gateway", WATCHER, &[CLUSTER]),
        ("overlays/ceph", "gateway", WATCHER, &[CLUSTER]),
    ] {
        let mut resources = applied(name);
        if name == "overlays/lab" {
            resources.extend(parse(&render("overlays/edge-publisher")));
        }
        let mut expected = vec![
            format!("{way_in} -> Deployment dormer:8080"),
            "monitoring -> Deployment dormer:9464".to_owned(),
        ];
        for of in ["Deployment dormer", publisher] {
            expected.extend(needed.iter().map(|to| format!("{of} -> {to}")));
        }
        if needed.contains(&CLUSTER) {
            for of in ["Cluster dormer-db", "cnpg-system"] {
                expected.extend([5432, 8000].map(|port| format!("{of} -> Cluster dormer-db:{port}")));
            }
        }
        expected.sort();
        assert_eq!(connections(&resources), expected, "{name}");
    }
}

/// Those that the policies allow, by TCP: `SENDER -> TARGET:PORT`.
fn connections(resources: &[Value]) -> Vec<String> {
    let namespace = text(workload(resources), "/metadata/namespace");
    let of_server = &pod_template(deployment(resources)).unwrap()["metadata"]["labels"];
    let (no_labels, of_database) = (json!({}), json!({"cnpg.io/cluster": "dormer-db"}));
    let without = |name: &str, namespace| (name.to_owned(), Peer::Pod { namespace, labels: &no_labels });
    let mut senders = vec![
        without("pod without labels", namespace),
        ("server of elsewhere".to_owned(), Peer::Pod { namespace: "elsewhere", labels: of_server }),
    ];
    for address in ["10.0.0.1", "192.168.0.1", "8.8.8.8"] {
        senders.push((address.to_owned(), Peer::Address(address.parse().unwrap())));
    }
    senders.extend(
        ["gateway", "traefik", "monitoring", "cnpg-system", "kube-system"].map(|name| without(name, name)),
    );
    let mut targets = Vec::new();
    for (of, pod) in pods_of(resources) {
        senders.push((title(of), pod));
        for port in containers(pod_template(of).unwrap()).flat_map(|container| items(container, "/ports")) {
            let number = u16::try_from(port["containerPort"].as_u64().unwrap()).unwrap();
            targets.push((title(of), pod, Port { protocol: "TCP", number, name: text(port, "/name") }));
        }
    }
    // The operator makes these pods, so there is no template.
    if resources.iter().any(|one| title(one) == "Cluster dormer-db") {
        let (title, pod) = ("Cluster dormer-db".to_owned(), Peer::Pod { namespace, labels: &of_database });
        for (name, number) in [("postgresql", 5432), ("status", 8000)] {
            targets.push((title.clone(), pod, Port { protocol: "TCP", number, name }));
        }
        senders.push((title, pod));
    }
    let mut found = Vec::new();
    for (sender, from) in &senders {
        for (target, to, port) in &targets {
            if may_connect(resources, *from, *to, *port) {
                found.push(format!("{sender} -> {target}:{}", port.number));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_repository_holds_no_secret() {
    let keys = |yaml: &str| -> BTreeMap<String, String> {
        let secret = &parse(yaml)[0];
        let values = secret["stringData"].as_object().unwrap();
        values.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect()
    };
    let template = keys(&fs::read_to_string(folder().join("base/secret.template.yaml")).unwrap());
    assert!(template.values().all(|value| value == "REPLACE"), "{template:?}");
    // The form, and what the command makes, have the same keys.
    let made = keys(&new_secret("dormer"));
    assert_eq!(template.keys().collect::<Vec<_>>(), made.keys().collect::<Vec<_>>());
    assert!(made.values().all(|value| value.len() > 8 && value != "REPLACE"));
    for name in KUSTOMIZATIONS {
        let kinds: Vec<String> = parse(&render(name)).iter().map(title).collect();
        assert!(!kinds.iter().any(|title| title.starts_with("Secret ")), "{kinds:?}");
    }
}

#[test]
fn the_host_of_the_route_is_the_address_that_the_server_gives_its_clients() {
    for name in servers().filter(|name| *name != "base") {
        let resources = applied(name);
        let hosts: Vec<&str> = resources
            .iter()
            .filter_map(|resource| match text(resource, "/kind") {
                "Ingress" => Some(text(resource, "/spec/rules/0/host")),
                "HTTPRoute" => Some(text(resource, "/spec/hostnames/0")),
                _ => None,
            })
            .collect();
        let [host] = hosts[..] else { panic!("{name}: one way in, not {hosts:?}") };
        let endpoint = format!("api-endpoint = \"https://{host}/\"");
        let settings = settings_file(&resources, deployment(&resources), server(&resources));
        assert!(settings.contains(&endpoint), "{name}: {settings}");
    }
}

/// The settings file that a container is started with.
fn settings_file(resources: &[Value], of: &Value, container: &Value) -> String {
    let argument =
        items(container, "/args").filter_map(Value::as_str).find_map(|word| word.strip_prefix("--config="));
    let path = argument.unwrap();
    let file =
        path.strip_prefix(text(container, "/volumeMounts/0/mountPath")).unwrap().trim_start_matches('/');
    let pod = pod_template(of).unwrap();
    let map = find(resources, "ConfigMap", text(pod, "/spec/volumes/0/configMap/name"), of).unwrap();
    map["data"][file].as_str().unwrap().to_owned()
}

/// The environment that a container has there: the image's, and what the manifest adds.
fn environment(resources: &[Value], of: &Value, container: &Value) -> BTreeMap<String, String> {
    let recipe = fs::read_to_string(workspace_root().join("deploy/Containerfile")).unwrap();
    let (_, image) = recipe.split_once("\nENV ").unwrap();
    let image = image.lines().map_while(|line| line.trim().trim_end_matches(" \\").split_once('='));
    let mut environment: BTreeMap<String, String> =
        image.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    assert_eq!(environment.len(), 3, "{environment:?}");
    for variable in items(container, "/env") {
        let mut value = text(variable, "/value").to_owned();
        for (kind, source) in [("Secret", "secretKeyRef"), ("ConfigMap", "configMapKeyRef")] {
            if let Some(source) = variable.pointer(&format!("/valueFrom/{source}")) {
                let found = find(resources, kind, text(source, "/name"), of).unwrap();
                let key = text(source, "/key");
                let mut data =
                    ["data", "stringData"].into_iter().filter_map(|part| found[part][key].as_str());
                data.next().unwrap().clone_into(&mut value);
            }
        }
        for (known, content) in &environment {
            value = value.replace(&format!("$({known})"), content);
        }
        environment.insert(text(variable, "/name").to_owned(), value);
    }
    environment
}

/// The binary reads what each of its containers is given, without a remark: it says so when it does
/// not know a key or a variable.
#[test]
fn the_settings_of_every_place_are_ones_that_the_binary_takes() {
    for name in KUSTOMIZATIONS {
        let resources = applied(name);
        for (of, container) in dormers(&resources) {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), settings_file(&resources, of, container)).unwrap();
            let environment = environment(&resources, of, container);
            let mut command = Command::new(binary());
            command.args(["config", "show", "--json", "--config"]).arg(file.path());
            let output = command.env_clear().envs(&environment).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "{name}: {}: {said}", title(of));
            let shown = String::from_utf8(output.stdout).unwrap();
            assert!(!shown.contains("hidden@"), "{shown}");
            for (variable, value) in &environment {
                let is_secret = variable.contains("KEY") || variable.contains("SECRET");
                assert!(!is_secret || !shown.contains(value.as_str()), "{variable} is shown");
                // Others' variables are only there to make ours of.
                let is_used = |(_, other): (&String, &String)| other.contains(value.as_str());
                let of_ours = ["DORMER_", "AWS_", "SSL_"].iter().any(|prefix| variable.starts_with(prefix));
                let uses = environment.iter().filter(|(other, _)| *other != variable);
                assert!(of_ours || uses.filter(|one| is_used(*one)).count() > 0, "{name}: {variable}");
            }
            check_settings(name, &resources, of, container, &serde_json::from_str(&shown).unwrap());
        }
    }
}

fn check_settings(name: &str, resources: &[Value], of: &Value, container: &Value, shown: &Value) {
    let value = |key: &str| &shown[key]["value"];
    assert!(
        ["s3", "gcs", "azure"].contains(&value("storage.type").as_str().unwrap()),
        "replicas share no folder"
    );
    // A store or database in the same namespace is one that is there, at that port.
    for address in ["storage.endpoint", "database.url"] {
        let Some(url) = value(address).as_str() else { continue };
        let host = url.split("://").nth(1).unwrap().rsplit('@').next().unwrap();
        let host = host.split(['/', '?']).next().unwrap();
        let (host, port) = host.split_once(':').unwrap_or((host, "5432"));
        if !host.contains('.') && name != "base" && has_server(name) {
            let service = find(resources, "Service", host, of);
            let port: u16 = port.parse().unwrap();
            let mut ports = service.into_iter().flat_map(|service| items(service, "/spec/ports"));
            assert!(ports.any(|own| own["port"] == port), "{name}: nothing is at {url}");
        }
    }
    // Kubernetes kills later than a process gives up waiting.
    let pod = pod_template(of).unwrap();
    let waits = |needed: f64| {
        let grace = pod["spec"]["terminationGracePeriodSeconds"].as_f64().unwrap();
        assert!(needed + 10.0 <= grace, "{name}: {needed} s are needed and {grace} s are given");
    };
    if items(container, "/args").any(|word| word == "publish") {
        assert!(items(shown, "/edge").count() > 0, "{name}: there is nothing to publish to");
        // For a request under way.
        items(shown, "/edge").for_each(|edge| waits(edge["edge.timeout"]["value"].as_f64().unwrap()));
    }
    if !items(container, "/args").any(|word| word == "serve") {
        return;
    }
    let seconds = |key: &str| value(key).as_f64().unwrap();
    waits(seconds("limits.drain-delay") + seconds("limits.shutdown-timeout"));
    // The ports of the pod are those that the server listens on.
    for (port, key) in [("http", "listen"), ("metrics", "metrics.listen")] {
        let port = items(container, "/ports").find(|one| text(one, "/name") == port).unwrap();
        let address = value(key).as_str().unwrap();
        assert!(address.ends_with(&format!(":{}", port["containerPort"])), "{name}: {key} is {address}");
        assert!(!address.starts_with("127."), "{name}: {key} is {address}");
    }
    let metrics = &pod["metadata"]["annotations"]["prometheus.io/port"];
    assert!(value("metrics.listen").as_str().unwrap().ends_with(metrics.as_str().unwrap()));
}

/// The tests build the image from a folder (pods.rs). What a builder would copy is checked to be
/// there.
#[test]
fn the_image_is_built_from_files_that_exist() {
    let folder = workspace_root().join("deploy");
    let ignore = fs::read_to_string(folder.join("Containerfile.dockerignore")).unwrap();
    let kept: Vec<&str> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    for path in &kept {
        assert!(workspace_root().join(path).exists(), "{path}");
    }
    let recipe = fs::read_to_string(folder.join("Containerfile")).unwrap();
    for script in ["scripts/static-binary.sh", "scripts/image-root.sh"] {
        assert!(recipe.contains(script) && kept.contains(&script), "{script}");
    }
    // An image says what it is, and which source it was built from.
    for label in ["title", "description", "licenses", "source", "version", "revision", "created"] {
        assert!(recipe.contains(&format!("org.opencontainers.image.{label}=")), "{label}");
    }
    let version = env!("CARGO_PKG_VERSION");
    assert!(recipe.contains(&format!("\nARG VERSION={version}\n")), "the image is of another version");
    // Every member of the workspace: Cargo reads all manifests.
    let manifest = fs::read_to_string(workspace_root().join("Cargo.toml")).unwrap();
    assert!(
        manifest.contains(r#"members = ["crates/*", "tests", "bench"]"#),
        "tell Containerfile.dockerignore"
    );
    // The user of the image is the one that the pods run as.
    for resource in applied("base").iter().filter_map(pod_template) {
        let user = resource["spec"]["securityContext"]["runAsUser"].as_u64().unwrap();
        assert!(recipe.contains(&format!("USER {user}:{user}")));
    }
}
