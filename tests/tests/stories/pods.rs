//! The image is built and the rendered lab overlay runs, in a real podman: PostgreSQL, SeaweedFS,
//! two replicas behind a proxy, and the publisher.
//!
//! What stands for what:
//! - `playable` in `dormer_tests::pods` says what podman takes of a manifest. The test does the
//!   work of Kubernetes' controllers: it makes pods, replaces them, and asks for their health.
//! - The image has the layout of deploy/Containerfile, with the binary under test and its libraries
//!   in place of a static one. `./test --long` builds the static binary.
//! - The images of PostgreSQL and SeaweedFS bear the manifests' names and hold this machine's
//!   programs (tests/images).

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::fs;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dormer_tests::manifests::{containers, items, pod_template, text, title};
use dormer_tests::pods::playable;
use dormer_tests::{ContainerHost, HttpProxy, Machine, Nix, Run, binary, http, part, workspace_root};
use serde_json::Value;

use crate::deploy::{new_secret, parse, render};

/// Containers start in a second; busy machines are slow at times.
const READY_TIMEOUT: Duration = Duration::from_mins(1);

/// Where replicas may be. One more than there are: a new replica starts before an old one stops.
const PLACES: [&str; 3] = ["10.89.0.11", "10.89.0.12", "10.89.0.13"];

/// Where the Services of the database and the store are.
const SERVICES: [(&str, &str); 2] = [("10.89.0.2", "postgres"), ("10.89.0.3", "s3")];

const SETTINGS: &str = "--config=/etc/dormer/dormer.toml";

/// The lab overlay in containers.
struct Lab {
    // In the order of dropping: the proxy ends before the host of its network.
    proxy: HttpProxy,
    host: ContainerHost,
    resources: Vec<Value>,
}

impl Lab {
    fn start() -> Self {
        let host = ContainerHost::start();
        build_images(&host);
        host.podman(&["network", "create", "--disable-dns", "--subnet", "10.89.0.0/24", "lab"]).succeeds();
        let resources = rendered(&host.address());
        let proxy = HttpProxy::haproxy_of_containers(&host, &PLACES.map(str::to_owned));
        let lab = Self { proxy, host, resources };
        let secrets = lab.host.write("plays/secrets.json", &secret().to_string());
        lab.host.podman(&["kube", "play", &secrets]).succeeds();
        lab.play("StatefulSet postgres", "postgres", SERVICES[0].0);
        lab.play("StatefulSet seaweedfs", "seaweedfs", SERVICES[1].0);
        lab.wait_for("PostgreSQL", || {
            let probe = lab.container("StatefulSet postgres");
            let probe: Vec<&str> =
                items(probe, "/readinessProbe/exec/command").filter_map(Value::as_str).collect();
            lab.exec("postgres-pod-postgres", &probe).is_success()
        });
        let store = lab.container("StatefulSet seaweedfs");
        let hook: Vec<&str> =
            items(store, "/lifecycle/postStart/exec/command").filter_map(Value::as_str).collect();
        lab.exec("seaweedfs-pod-seaweedfs", &hook).succeeds();
        lab
    }

    fn resource(&self, wanted: &str) -> &Value {
        self.resources.iter().find(|one| title(one) == wanted).unwrap()
    }

    /// The first container that a resource runs for long.
    fn container(&self, wanted: &str) -> &Value {
        &pod_template(self.resource(wanted)).unwrap()["spec"]["containers"][0]
    }

    /// Runs a resource in a pod `NAME-pod`.
    fn play(&self, resource: &str, name: &str, address: &str) {
        let documents = playable(self.resource(resource), name, &self.resources, &SERVICES);
        let documents: Vec<String> = documents.iter().map(ToString::to_string).collect();
        let file = self.host.write(&format!("plays/{name}.json"), &documents.join("\n---\n"));
        let network = format!("lab:ip={address}");
        let said = self.host.podman(&["kube", "play", "--build=false", "--network", &network, &file]);
        assert!(said.is_success(), "{said}\n{}", self.logs(name));
    }

    /// Runs a replica of the server, and waits until it is ready.
    fn play_replica(&self, name: &str, place: usize) {
        self.play("Deployment dormer", name, PLACES[place]);
        let check = ["/bin/dormer", "check", "--ready", SETTINGS];
        self.wait_for(name, || self.exec(&server_of(name), &check).is_success());
    }

    /// Stops a replica as Kubernetes does. It has to end by itself, and well.
    ///
    /// The server stops before its pod: podman takes the network of a pod away with the first
    /// container that ends, and Kubernetes with the last one.
    fn stop_replica(&self, name: &str) {
        let pod = pod_template(self.resource("Deployment dormer")).unwrap();
        let grace = pod["spec"]["terminationGracePeriodSeconds"].to_string();
        let server = server_of(name);
        self.host.podman(&["stop", "--time", &grace, &server]).succeeds();
        assert_eq!(self.inspect(&server, "{{.State.ExitCode}}"), "0", "{}", self.logs(name));
        self.host.podman(&["pod", "rm", "--force", "--time", "1", &format!("{name}-pod")]).succeeds();
    }

    fn exec(&self, container: &str, command: &[&str]) -> Run {
        self.host.podman(&[&["exec", container], command].concat())
    }

    fn inspect(&self, container: &str, format: &str) -> String {
        self.host.podman(&["inspect", "--format", format, container]).succeeds().trim().to_owned()
    }

    /// What the containers of a pod said.
    fn logs(&self, name: &str) -> String {
        let pod = format!("{name}-pod");
        let names =
            self.host.podman(&["ps", "--all", "--filter", &format!("pod={pod}"), "--format", "{{.Names}}"]);
        let stdout = names.stdout();
        stdout.lines().map(|name| self.host.podman(&["logs", name]).to_string()).collect()
    }

    #[track_caller]
    fn wait_for(&self, what: &str, is_ready: impl Fn() -> bool) {
        let begin = Instant::now();
        while !is_ready() {
            assert!(begin.elapsed() < READY_TIMEOUT, "{what} is not ready\n{}", self.logs(what));
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// A token that may do everything, made as the guide says.
    fn token(&self, replica: &str) -> String {
        let mut words = vec!["/bin/dormer", "token", "create", SETTINGS, "--sub", "ada", "--validity", "1d"];
        for permission in ["--pull", "--push", "--create-cache", "--configure-cache"] {
            words.extend([permission, "*"]);
        }
        self.exec(&server_of(replica), &words).succeeds().trim().to_owned()
    }

    fn shell_of_store(&self, line: &str) -> String {
        let words = format!("echo '{line}' | timeout 20 weed shell -master=127.0.0.1:9333");
        self.exec("seaweedfs-pod-seaweedfs", &["sh", "-c", &words]).succeeds()
    }
}

/// The server's container of a replica.
fn server_of(replica: &str) -> String {
    format!("{replica}-pod-dormer")
}

/// Builds the images under the names that the manifests use.
pub(super) fn build_images(host: &ContainerHost) {
    let root = workspace_root();
    // Symbols for a debugger are most of a debug build.
    let slim = host.folder().join("slim");
    Run::of(Command::new("strip").args(["--strip-debug", "-o"]).arg(&slim).arg(binary())).succeeds();
    let prepared = host.folder().join("build/image");
    Run::of(Command::new(root.join("scripts/image-root.sh")).arg(&slim).arg(prepared)).succeeds();
    let recipe =
        host.write("image/Containerfile", &fs::read_to_string(root.join("deploy/Containerfile")).unwrap());
    host.podman(&[
        "build",
        "--quiet",
        "--build-context=build=/host/build",
        "--build-arg=REVISION=of-this-test",
        "--tag=registry.example.org/dormer:0.1.0",
        &format!("--file={recipe}"),
        "/host/image",
    ])
    .succeeds();

    let mut roots = Command::new(root.join("tests/images/roots.sh"));
    roots
        .arg(part("podman/usr/bin/busybox"))
        .arg(part("seaweedfs/bin/weed"))
        .arg(host.folder().join("parts"));
    Run::of(&mut roots).succeeds();
    for (name, tag, entry) in [
        ("postgres", "docker.io/library/postgres:17.7-bookworm", "ENTRYPOINT [\"/bin/entry\"]\n"),
        ("seaweedfs", "docker.io/chrislusf/seaweedfs:4.48", ""),
    ] {
        let recipe = format!("FROM scratch\nCOPY root /\nENV PATH=/usr/bin:/bin\n{entry}");
        host.write(&format!("parts/{name}/Containerfile"), &recipe);
        host.podman(&["build", "--quiet", "--tag", tag, &format!("/host/parts/{name}")]).succeeds();
    }
}

/// The lab and its publisher, at another address. The edge is in reach, and the store is smaller.
pub(super) fn rendered(address: &str) -> Vec<Value> {
    let mut resources = parse(&render("overlays/lab"));
    resources.extend(parse(&render("overlays/edge-publisher")));
    let mut replaced = 0;
    for settings in resources.iter_mut().filter_map(|one| one.pointer_mut("/data/dormer.toml")) {
        let text = settings.as_str().unwrap();
        for (theirs, ours) in [
            ("https://cache.lab.example.org/", format!("http://{address}/")),
            ("https://ACCOUNT.r2.cloudflarestorage.com", "http://s3:8333".to_owned()),
        ] {
            if text.contains(theirs) {
                *settings = text.replace(theirs, &ours).into();
                replaced += 1;
                break;
            }
        }
    }
    assert_eq!(replaced, 2, "one settings file each");
    // The test has 3 GB for everything, and SeaweedFS takes seven volumes for a bucket.
    let store = resources.iter_mut().find(|one| title(one) == "StatefulSet seaweedfs").unwrap();
    let arguments = store["spec"]["template"]["spec"]["containers"][0]["args"].as_array_mut().unwrap();
    let size = arguments.iter_mut().find(|one| *one == "-master.volumeSizeLimitMB=1024").unwrap();
    *size = "-master.volumeSizeLimitMB=64".into();
    resources
}

/// The Secret that the guide makes. The edge is a bucket of the same store.
pub(super) fn secret() -> Value {
    let mut secret = parse(&new_secret("dormer-lab")).remove(0);
    let values = secret["stringData"].as_object_mut().unwrap();
    for key in ["access-key-id", "secret-access-key"] {
        let value = values[&format!("s3-{key}")].clone();
        values.insert(format!("edge-{key}"), value);
    }
    secret
}

/// A machine whose Nix trusts the cache `main` of the lab behind port 80 of `host`.
pub(super) fn machine(host: &ContainerHost, name: &str, nix: Nix, token: &str) -> Machine {
    let machine = host.machine(name, nix);
    let url = format!("http://{}", host.address());
    machine.dormer(&["login", "lab", &url, token, "--set-default"]).succeeds();
    let address = format!("{}:80", host.address());
    let config = http::get(&address, "/_api/v1/cache-config/main", Some(token)).json();
    machine.configure(&[text(&config, "/public_key").to_owned()]);
    machine
}

/// Everything in one story, because the start costs the most.
#[test]
fn the_lab_overlay_runs() {
    let lab = Lab::start();
    // Both upgrade the schema; one of them does the work.
    thread::scope(|scope| {
        scope.spawn(|| lab.play_replica("first", 0));
        scope.spawn(|| lab.play_replica("second", 1));
    });
    the_pods_are_what_the_manifest_says(&lab);

    let token = lab.token("first");
    let builder = machine(&lab.host, "builder", Nix::NEWEST, &token);
    let all = builder.build("all", &[("salt", "pods")]);
    builder.dormer(&["push", "main", &all]).succeeds();
    let puller = machine(&lab.host, "puller", Nix::MIDDLE, &token);
    let cache = format!("http://{}/main", lab.proxy.address());
    puller.substitute(&cache, &all).succeeds();
    puller.verify_all();

    a_rolling_replacement_fails_no_request(&lab, &builder, &token, &all);
    the_publisher_brings_the_cache_to_the_edge(&lab, &builder.closure(&all));
    a_wedged_server_is_restarted(&lab);

    let late = machine(&lab.host, "late", Nix::OLDEST, &token);
    late.substitute(&cache, &all).succeeds();
}

/// podman took over what the manifest says of the server.
fn the_pods_are_what_the_manifest_says(lab: &Lab) {
    let server = server_of("first");
    assert_eq!(lab.inspect(&server, "{{.Config.User}}"), "65532:65532");
    assert_eq!(lab.inspect(&server, "{{.HostConfig.ReadonlyRootfs}}"), "true");
    assert_eq!(lab.inspect(&server, "{{.EffectiveCaps}}"), "[]");
    assert_eq!(lab.inspect(&server, "{{.HostConfig.Memory}}"), (512 * 1024 * 1024).to_string());
    let revision = "{{index .Config.Labels \"org.opencontainers.image.revision\"}}";
    assert_eq!(lab.inspect(&server, revision), "of-this-test");
    let pod = pod_template(lab.resource("Deployment dormer")).unwrap();
    let images: Vec<&str> = containers(pod).map(|one| text(one, "/image")).collect();
    let image = lab.inspect(&server, "{{.ImageName}}");
    assert_eq!(images, [image.as_str(); 2]);
}

/// A new replica answers before an old one is asked to stop, as `maxUnavailable: 0` says.
fn a_rolling_replacement_fails_no_request(lab: &Lab, builder: &Machine, token: &str, path: &str) {
    let strategy = &lab.resource("Deployment dormer")["spec"]["strategy"]["rollingUpdate"];
    assert_eq!((strategy["maxSurge"].as_u64(), strategy["maxUnavailable"].as_u64()), (Some(1), Some(0)));
    while_clients_ask(&lab.proxy, builder, token, path, || {
        lab.play_replica("third", 2);
        lab.stop_replica("first");
        lab.play_replica("fourth", 0);
        lab.stop_replica("second");
    });
}

/// Does something while a client asks for `path` without pause, and `builder` pushes. No request
/// and no push may fail.
pub(super) fn while_clients_ask(
    proxy: &HttpProxy,
    builder: &Machine,
    token: &str,
    path: &str,
    change: impl FnOnce(),
) {
    let address = proxy.address();
    let hash = &path["/nix/store/".len()..][..32];
    let narinfo = format!("/main/{hash}.narinfo");
    let described = http::get(address, &narinfo, None).text();
    let nar = described.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
    let nar = format!("/main/{nar}");
    let (done, failures, answers) = (AtomicBool::new(false), Mutex::new(Vec::new()), Mutex::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                for path in [narinfo.as_str(), nar.as_str(), "/_api/v1/cache-config/main"] {
                    let reply = http::get(address, path, Some(token));
                    *answers.lock().unwrap() += 1;
                    if reply.status != 200 || !reply.complete {
                        failures.lock().unwrap().push(format!("{path}: {reply:?}"));
                    }
                }
                thread::sleep(Duration::from_millis(10));
            }
        });
        scope.spawn(|| {
            // Pushes go on, too.
            for salt in ["roll-1", "roll-2", "roll-3"] {
                let pushed = builder.build("all", &[("salt", salt)]);
                builder.dormer(&["push", "main", &pushed]).succeeds();
            }
        });
        // Also after a failure: the asking thread would never end.
        let _end = SetOnDrop(&done);
        change();
    });
    let (failures, answers) = (failures.into_inner().unwrap(), answers.into_inner().unwrap());
    assert!(failures.is_empty(), "of {answers} requests failed {failures:#?}\n{}", proxy.output());
    assert!(answers > 100, "{answers}");
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The Job of the CronJob, once, as `kubectl create job --from=cronjob/…` would.
fn the_publisher_brings_the_cache_to_the_edge(lab: &Lab, closure: &[String]) {
    lab.shell_of_store("s3.bucket.create -name dormer-edge");
    lab.play("CronJob dormer-publisher", "publisher", "10.89.0.4");
    let container = "publisher-pod-publish";
    let code = lab.host.podman(&["wait", container]).succeeds();
    assert_eq!(code.trim(), "0", "{}", lab.logs("publisher"));
    // What the guide's `kubectl logs -l …` selects.
    let label = "label=app.kubernetes.io/component=publisher";
    let selected = lab.host.podman(&["ps", "--all", "--filter", label, "--format", "{{.Names}}"]);
    assert!(selected.succeeds().lines().any(|name| name == container), "{selected}");
    let listed = lab.shell_of_store("fs.ls /buckets/dormer-edge/main");
    for path in closure {
        let narinfo = format!("{}.narinfo", &path["/nix/store/".len()..][..32]);
        assert!(listed.contains(&narinfo), "{narinfo}: {listed}\n{}", lab.logs("publisher"));
    }
}

/// The test asks the probe in place of the kubelet; podman does the rest.
fn a_wedged_server_is_restarted(lab: &Lab) {
    let server = server_of("third");
    lab.host.podman(&["healthcheck", "run", &server]).succeeds();
    let process = |container: &str| lab.inspect(container, "{{.State.Pid}}");
    let before = process(&server);
    lab.host.podman(&["kill", "--signal", "STOP", &server]).succeeds();
    lab.host.podman(&["healthcheck", "run", &server]).fails();
    lab.wait_for("third", || {
        let check = ["/bin/dormer", "check", "--ready", SETTINGS];
        process(&server) != before && lab.exec(&server, &check).is_success()
    });
    assert_eq!(lab.inspect(&server, "{{.RestartCount}}"), "1");
    assert_eq!(lab.inspect(&server_of("fourth"), "{{.RestartCount}}"), "0");
}
