//! The lab overlay and its publisher in a real Kubernetes of one node: its own controllers,
//! scheduler, kubelet and Services do what the story in `pods` does by hand.
//!
//! `./test --long` builds that Kubernetes and runs this. It is version 1.20, because Debian has the
//! sources of that one. `for_this_kubernetes` has all that differs from the rendered manifests.
//! What stands for what:
//! - HAProxy on the node is the Gateway; it sends all requests to the Service.
//! - The images are those of `pods`.
//! - dnsmasq is the server of names (scripts/kubernetes-node.sh).

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use dormer_tests::manifests::{items, text, title};
use dormer_tests::{ContainerHost, HttpProxy, Kubernetes, Machine, Nix, Run, http, part};
use serde_json::{Value, json};

use crate::pods::{build_images, machine, rendered, secret, while_clients_ask};

/// Everything in the node starts in half a minute; busy machines are slow at times.
const READY_TIMEOUT: Duration = Duration::from_mins(4);

const NAMESPACE: &str = "dormer-lab";

/// The Services that pods look for by name, and the addresses that they get here.
const SERVICES: [(&str, &str); 2] = [("postgres", "10.96.0.20"), ("s3", "10.96.0.21")];

/// Kinds of operators, which a bare Kubernetes does not know.
const OF_OPERATORS: [&str; 3] = ["HTTPRoute", "ServiceMonitor", "PrometheusRule"];

/// Selects the pods of the server.
const SERVERS: &str = "app.kubernetes.io/component=server";

const PUBLISHER: &str = "app.kubernetes.io/component=publisher";

#[test]
fn the_lab_overlay_runs_in_kubernetes() {
    let node = node_with_images();
    apply_the_lab(&node);
    the_claims_are_bound(&node);
    let service = get(&node, &["service", "dormer"]);
    let upstream = format!("{}:80", text(&service, "/spec/clusterIP"));
    let proxy = HttpProxy::haproxy_of_service(node.host(), &upstream);

    let token = token(&node);
    let builder = machine(node.host(), "builder", Nix::NEWEST, &token);
    let all = builder.build("all", &[("salt", "kubernetes")]);
    builder.dormer(&["push", "main", &all]).succeeds();
    let puller = machine(node.host(), "puller", Nix::MIDDLE, &token);
    let cache = format!("http://{}/main", proxy.address());
    puller.substitute(&cache, &all).succeeds();
    puller.verify_all();

    a_rolling_update_fails_no_request(&node, &proxy, &builder, &token, &all);
    the_cron_job_publishes_and_its_label_shows_the_log(&node, &builder.closure(&all));
    the_budget_keeps_one_replica(&node);

    // The proxy is a process of the node too.
    drop(proxy);
    node.restart();
    let proxy = HttpProxy::haproxy_of_service(node.host(), &upstream);
    the_node_comes_back(&node, &proxy, &token);
    let late = machine(node.host(), "late", Nix::OLDEST, &token);
    late.substitute(&cache, &all).succeeds();
    let more = late.build("all", &[("salt", "after-the-restart")]);
    late.dormer(&["push", "main", &more]).succeeds();
}

/// A node, and all images that its pods name: nothing can be pulled.
fn node_with_images() -> Kubernetes {
    let named: Vec<(String, &str)> =
        SERVICES.iter().map(|(name, ip)| (format!("{name}.{NAMESPACE}.svc.cluster.local"), *ip)).collect();
    let named: Vec<(&str, &str)> = named.iter().map(|(name, ip)| (name.as_str(), *ip)).collect();
    let node = Kubernetes::start(&named);
    let podman = ContainerHost::start();
    build_images(&podman);
    // What holds the namespaces of a pod.
    podman.write(
        "pause/Containerfile",
        "FROM scratch\nCOPY catatonit /pause\nENTRYPOINT [\"/pause\", \"-P\"]\n",
    );
    fs::copy(part("podman/usr/bin/catatonit"), podman.folder().join("pause/catatonit")).unwrap();
    podman.podman(&["build", "--quiet", "--tag", "localhost/pause:1", "/host/pause"]).succeeds();
    let images = [
        "localhost/pause:1",
        "registry.example.org/dormer:0.1.0",
        "docker.io/library/postgres:17.7-bookworm",
        "docker.io/chrislusf/seaweedfs:4.48",
    ];
    let save = ["save", "--quiet", "--format=docker-archive", "--multi-image-archive", "--output"];
    podman.podman(&[&save[..], &["/host/images.tar"], &images].concat()).succeeds();
    fs::rename(podman.folder().join("images.tar"), node.host().folder().join("images.tar")).unwrap();
    node.load_images("images.tar");
    node
}

/// What this Kubernetes is older than, or what a node in a test lacks. All else is as rendered.
fn for_this_kubernetes(resources: &mut Vec<Value>) {
    let before = resources.len();
    resources.retain(|one| !OF_OPERATORS.contains(&text(one, "/kind")));
    assert_eq!(before - resources.len(), OF_OPERATORS.len(), "one of each");
    for resource in resources {
        match title(resource).as_str() {
            "PodDisruptionBudget dormer" => resource["apiVersion"] = "policy/v1beta1".into(),
            "CronJob dormer-publisher" => {
                resource["apiVersion"] = "batch/v1beta1".into();
                // Nobody waits a quarter of an hour; and its bucket is not there yet.
                resource["spec"]["schedule"] = "* * * * *".into();
                resource["spec"]["suspend"] = true.into();
            }
            // There is no server of names that knows pods.
            "Service postgres" | "Service s3" => {
                let name = text(resource, "/metadata/name").to_owned();
                let (_, address) = SERVICES.iter().find(|(known, _)| *known == name).unwrap();
                resource["spec"]["clusterIP"] = (*address).into();
            }
            "Deployment dormer" => {
                let server = &mut resource["spec"]["template"]["spec"]["containers"][0];
                // 1.20 gives a hanging server the pod's own time to end.
                let probe = server["livenessProbe"].as_object_mut().unwrap();
                probe.remove("terminationGracePeriodSeconds").unwrap();
                // An update runs four replicas for a while, on a node that may have two cores.
                server["resources"]["requests"]["cpu"] = "100m".into();
            }
            _ => {}
        }
    }
}

/// Two volumes on the node's own disk, as an administrator makes them.
fn volumes() -> Vec<Value> {
    let volume = |(name, size): (&str, &str)| {
        let here = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": ["node1"]});
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
            "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
            "local": {"path": format!("/var/lib/volumes/{name}")},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}}}})
    };
    [("small", "20Gi"), ("large", "100Gi")].map(volume).into()
}

/// Does what the guide says: the namespace, the Secret, then everything at once.
fn apply_the_lab(node: &Kubernetes) {
    let mut resources = rendered(&node.host().address());
    for_this_kubernetes(&mut resources);
    let (namespace, rest): (Vec<Value>, Vec<Value>) =
        resources.into_iter().partition(|one| text(one, "/kind") == "Namespace");
    apply(node, "first", &[namespace, volumes()].concat());
    apply(node, "secret", &[secret()]);
    apply(node, "rest", &rest);
    for workload in ["statefulset/postgres", "statefulset/seaweedfs", "deployment/dormer"] {
        rolled_out(node, workload);
    }
}

fn apply(node: &Kubernetes, name: &str, resources: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": resources});
    let file = format!("{name}.json");
    node.host().write(&file, &list.to_string());
    let path = node.host().folder().join(&file).display().to_string();
    // The client is newer than what the server can check. `--server-side`, as in the guide, wants
    // the protocol of each port of a Service from 1.20.
    node.kubectl(&["apply", "--validate=false", "--filename", &path]).succeeds();
}

fn in_namespace(node: &Kubernetes, arguments: &[&str]) -> Run {
    node.kubectl(&[&["--namespace", NAMESPACE], arguments].concat())
}

fn get(node: &Kubernetes, what: &[&str]) -> Value {
    let said = in_namespace(node, &[&["get", "--output=json"], what].concat()).succeeds();
    serde_json::from_str(&said).unwrap()
}

#[track_caller]
fn rolled_out(node: &Kubernetes, workload: &str) {
    let said = in_namespace(node, &["rollout", "status", workload, "--timeout=240s"]);
    assert!(said.is_success(), "{said}\n{}", state(node));
}

/// What helps to see why something does not start.
fn state(node: &Kubernetes) -> String {
    let of = |arguments: &[&str]| in_namespace(node, arguments).to_string();
    [
        of(&["get", "pods,persistentvolumeclaims,jobs,endpoints", "--output=wide"]),
        of(&["get", "events", "--sort-by=.lastTimestamp"]),
        of(&["logs", "--selector", SERVERS, "--all-containers", "--tail=20"]),
        of(&["logs", "--selector", PUBLISHER, "--tail=20"]),
        node.logs(),
    ]
    .join("\n")
}

#[track_caller]
fn wait_for(node: &Kubernetes, what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < READY_TIMEOUT, "no {what}\n{}", state(node));
        thread::sleep(Duration::from_millis(500));
    }
}

fn the_claims_are_bound(node: &Kubernetes) {
    let claims = get(node, &["persistentvolumeclaims"]);
    let phases: Vec<&str> = items(&claims, "/items").map(|one| text(one, "/status/phase")).collect();
    assert_eq!(phases, ["Bound", "Bound"]);
}

/// A token that may do everything, made as the guide says.
fn token(node: &Kubernetes) -> String {
    let mut words = vec!["exec", "deployment/dormer", "--container=dormer", "--", "/bin/dormer"];
    words.extend(["token", "create", "--config=/etc/dormer/dormer.toml", "--sub", "ada", "--validity", "1d"]);
    for permission in ["--pull", "--push", "--create-cache", "--configure-cache"] {
        words.extend([permission, "*"]);
    }
    in_namespace(node, &words).succeeds().trim().to_owned()
}

fn pods(node: &Kubernetes, selector: &str) -> Vec<Value> {
    items(&get(node, &["pods", "--selector", selector]), "/items").cloned().collect()
}

fn name(resource: &Value) -> &str {
    text(resource, "/metadata/name")
}

/// New pods, and the old ones are gone, while clients ask and push.
fn a_rolling_update_fails_no_request(
    node: &Kubernetes,
    proxy: &HttpProxy,
    builder: &Machine,
    token: &str,
    path: &str,
) {
    let old: Vec<Value> = pods(node, SERVERS);
    assert_eq!(old.len(), 2);
    while_clients_ask(proxy, builder, token, path, || {
        in_namespace(node, &["rollout", "restart", "deployment/dormer"]).succeeds();
        rolled_out(node, "deployment/dormer");
        wait_for(node, "end of the old pods", || {
            pods(node, SERVERS).iter().all(|pod| !old.iter().any(|one| name(one) == name(pod)))
        });
    });
    assert_eq!(pods(node, SERVERS).len(), 2);
}

/// The controller makes the Job by itself.
fn the_cron_job_publishes_and_its_label_shows_the_log(node: &Kubernetes, closure: &[String]) {
    shell_of_store(node, "s3.bucket.create -name dormer-edge");
    let suspend = |is_suspended: bool| {
        let patch = json!({"spec": {"suspend": is_suspended}}).to_string();
        in_namespace(node, &["patch", "cronjobs", "dormer-publisher", "--patch", &patch]).succeeds();
    };
    suspend(false);
    wait_for(node, "finished run of the publisher", || {
        items(&get(node, &["jobs"]), "/items").any(|job| job["status"]["succeeded"] == 1)
    });
    suspend(true);
    let log = in_namespace(node, &["logs", "--selector", PUBLISHER, "--tail=-1"]).succeeds();
    assert!(log.contains("r2: "), "{log}");
    let listed = shell_of_store(node, "fs.ls /buckets/dormer-edge/main");
    for path in closure {
        let narinfo = format!("{}.narinfo", &path["/nix/store/".len()..][..32]);
        assert!(listed.contains(&narinfo), "{narinfo}: {listed}\n{log}");
    }
}

fn shell_of_store(node: &Kubernetes, line: &str) -> String {
    let words = format!("echo '{line}' | timeout 20 weed shell -master=127.0.0.1:9333");
    in_namespace(node, &["exec", "statefulset/seaweedfs", "--", "sh", "-c", &words]).succeeds()
}

/// Draining a node evicts pods. The second one waits until the first has a successor.
fn the_budget_keeps_one_replica(node: &Kubernetes) {
    wait_for(node, "allowed disruption", || {
        let budget = get(node, &["poddisruptionbudgets.v1beta1.policy", "dormer"]);
        budget["status"]["disruptionsAllowed"] == 1
    });
    let evict = |pod: &Value| {
        let metadata = json!({"name": name(pod), "namespace": NAMESPACE});
        let eviction = json!({"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": metadata});
        node.host().write("eviction.json", &eviction.to_string());
        let file = node.host().folder().join("eviction.json").display().to_string();
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}/eviction", name(pod));
        node.kubectl(&["create", "--raw", &path, "--filename", &file])
    };
    let [first, second] = &pods(node, SERVERS)[..] else { panic!("two replicas\n{}", state(node)) };
    evict(first).succeeds();
    let refused = evict(second).fails();
    assert!(refused.contains("disruption budget"), "{refused}");
    rolled_out(node, "deployment/dormer");
}

/// The node was cut off; all pods were started again on the same volumes.
fn the_node_comes_back(node: &Kubernetes, proxy: &HttpProxy, token: &str) {
    wait_for(node, "answer after the restart of the node", || {
        http::get(proxy.address(), "/_api/v1/cache-config/main", Some(token)).status == 200
    });
    let restarts = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
    wait_for(node, "restarted database", || {
        restarts(&get(node, &["pod", "postgres-0"])).is_some_and(|count| count >= 1)
    });
    for workload in ["statefulset/postgres", "statefulset/seaweedfs", "deployment/dormer"] {
        rolled_out(node, workload);
    }
}
