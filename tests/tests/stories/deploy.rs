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

use dormer_tests::manifests::{containers, find, items, pod_template, problems, quantity, text, title};
use dormer_tests::{binary, part, workspace_root};
use serde_json::{Value, json};

/// Everything that can be applied by itself.
const KUSTOMIZATIONS: [&str; 2] = ["base", "overlays/lab"];

/// Secrets that neither the repository nor its template brings: certificates.
const SECRETS_OF_OTHERS: [&str; 1] = ["dormer-tls"];

/// Kinds without a schema in Kubernetes itself. None is used.
const CUSTOM_KINDS: [&str; 0] = [];

fn folder() -> PathBuf {
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

fn render(kustomization: &str) -> String {
    let (rendered, success) = run("kubectl", &["kustomize", kustomization], "");
    assert!(success, "{rendered}");
    rendered
}

fn parse(yaml: &str) -> Vec<Value> {
    let script = "import json, sys, yaml\nprint(json.dumps([d for d in yaml.safe_load_all(sys.stdin) if d]))";
    let (output, success) = run("python3", &["-c", script], yaml);
    assert!(success, "{output}");
    serde_json::from_str(&output).unwrap()
}

/// What runs in a cluster after everything was done that the documents say: a kustomization and the
/// Secrets made by hand.
fn applied(kustomization: &str) -> Vec<Value> {
    let mut resources = parse(&render(kustomization));
    let namespace = text(deployment(&resources), "/metadata/namespace").to_owned();
    let template = fs::read_to_string(folder().join("base/secret.template.yaml")).unwrap();
    let mut secrets = parse(&template);
    for name in SECRETS_OF_OTHERS {
        secrets.push(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}));
    }
    for mut secret in secrets {
        secret["metadata"]["namespace"] = namespace.as_str().into();
        resources.push(secret);
    }
    resources
}

fn deployment(resources: &[Value]) -> &Value {
    resources.iter().find(|resource| text(resource, "/kind") == "Deployment").unwrap()
}

fn server(resources: &[Value]) -> &Value {
    containers(pod_template(deployment(resources)).unwrap()).next().unwrap()
}

#[test]
fn everything_renders_and_fits_the_schemas_of_kubernetes() {
    let template = fs::read_to_string(folder().join("base/secret.template.yaml")).unwrap();
    let rendered = KUSTOMIZATIONS.iter().map(|name| render(name)).chain([template]);
    for yaml in rendered {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        fs::write(file.path(), &yaml).unwrap();
        let (said, success) = run("kubernetes-validate", &["--strict", file.path().to_str().unwrap()], "");
        assert!(success, "{said}");
        let unknown: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("Couldn't find schema"))
            .filter(|line| !CUSTOM_KINDS.iter().any(|kind| line.contains(kind)))
            .collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        assert_eq!(said.matches(" passed for resource ").count(), parse(&yaml).len(), "{said}");
    }
}

#[test]
fn nothing_is_named_that_is_not_there() {
    for name in KUSTOMIZATIONS {
        let found = problems(&applied(name));
        assert!(found.is_empty(), "{name}: {found:#?}");
    }
}

/// The checks see: each mistake, planted into what is right, is the only one that is reported.
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
    let plants: [(Plant, &str); 14] = [
        (|all| set(all, "CronJob", "/spec/schedule", "*/5 * * *".into()), "is no schedule"),
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
        (
            |all| set(all, "Ingress", "/spec/rules/0/http/paths/0/backend/service/port/name", "x".into()),
            "a port x",
        ),
        (
            |all| set(all, "Ingress", "/spec/rules/0/host", "other.example.org".into()),
            "no certificate for other",
        ),
        (|all| all.retain(|one| title(one) != "Secret dormer-tls"), "no Secret dormer-tls"),
    ];
    for (plant, words) in plants {
        let mut resources = applied("base");
        plant(&mut resources);
        let found = problems(&resources);
        assert!(found.iter().any(|problem| problem.contains(words)), "{words}: {found:?}");
    }
}

#[test]
fn every_pod_fits_the_restricted_standard_and_writes_nothing() {
    for name in KUSTOMIZATIONS {
        let resources = applied(name);
        let pods: Vec<&Value> = resources.iter().filter_map(pod_template).collect();
        assert_eq!(pods.len(), 2);
        for pod in pods {
            assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true);
            assert_ne!(pod["spec"]["securityContext"]["runAsUser"], 0);
            assert_eq!(pod["spec"]["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
            assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
            for container in containers(pod) {
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false);
                assert_eq!(context["readOnlyRootFilesystem"], true);
                assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
                assert!(quantity(text(container, "/resources/limits/memory")).is_some());
                assert!(container["image"].as_str().unwrap().contains("dormer"));
            }
        }
        let namespace = resources.iter().find(|resource| text(resource, "/kind") == "Namespace").unwrap();
        assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
    }
}

#[test]
fn the_repository_holds_no_secret() {
    let resources = applied("base");
    let secret = find(&resources, "Secret", "dormer", deployment(&resources)).unwrap();
    let values = secret["stringData"].as_object().unwrap();
    assert!(values.len() >= 5 && values.values().all(|value| value == "REPLACE"), "{values:?}");
    for name in KUSTOMIZATIONS {
        let kinds: Vec<String> = parse(&render(name)).iter().map(title).collect();
        assert!(!kinds.iter().any(|title| title.starts_with("Secret ")), "{kinds:?}");
    }
}

#[test]
fn the_host_of_the_ingress_is_the_address_that_the_server_gives_its_clients() {
    for name in KUSTOMIZATIONS {
        let resources = applied(name);
        let ingress = resources.iter().find(|resource| text(resource, "/kind") == "Ingress").unwrap();
        let host = text(ingress, "/spec/rules/0/host");
        let endpoint = format!("api-endpoint = \"https://{host}/\"");
        let (_, settings) = settings_file(&resources);
        assert!(settings.contains(&endpoint), "{name}: {settings}");
        assert_eq!(items(ingress, "/spec/rules").count(), 1);
    }
}

/// Name and content of the settings file that the server is started with.
fn settings_file(resources: &[Value]) -> (String, String) {
    let argument = items(server(resources), "/args")
        .filter_map(Value::as_str)
        .find_map(|word| word.strip_prefix("--config="));
    let path = argument.unwrap();
    let file = path
        .strip_prefix(text(server(resources), "/volumeMounts/0/mountPath"))
        .unwrap()
        .trim_start_matches('/');
    let pod = pod_template(deployment(resources)).unwrap();
    let map =
        find(resources, "ConfigMap", text(pod, "/spec/volumes/0/configMap/name"), deployment(resources))
            .unwrap();
    (file.to_owned(), map["data"][file].as_str().unwrap().to_owned())
}

/// The environment that the server has there: the image's, and what the Deployment adds, with
/// secrets that look like real ones.
fn environment(resources: &[Value]) -> BTreeMap<String, String> {
    let recipe = fs::read_to_string(workspace_root().join("deploy/Containerfile")).unwrap();
    let (_, image) = recipe.split_once("\nENV ").unwrap();
    let image = image.lines().map_while(|line| line.trim().trim_end_matches(" \\").split_once('='));
    let mut environment: BTreeMap<String, String> =
        image.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    assert_eq!(environment.len(), 3, "{environment:?}");
    for variable in items(server(resources), "/env") {
        let value = match text(variable, "/valueFrom/secretKeyRef/key") {
            "database-url" => "postgresql://dormer:secret@postgres/dormer",
            "master-key" => "MDEyMzQ1Njc4OWFiY2RlZmdoaWprbG1ub3BxcnN0dXY=",
            "token-secret" => {
                "MDEyMzQ1Njc4OWFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVotKw=="
            }
            "s3-access-key-id" | "s3-secret-access-key" => "secret",
            other => panic!("what does {other} look like?"),
        };
        environment.insert(text(variable, "/name").to_owned(), value.to_owned());
    }
    environment
}

#[test]
fn the_settings_of_every_place_are_ones_that_the_binary_takes() {
    for name in KUSTOMIZATIONS {
        let resources = applied(name);
        let (_, settings) = settings_file(&resources);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), settings).unwrap();
        let mut command = Command::new(binary());
        command.args(["config", "show", "--json", "--config"]).arg(file.path());
        let output = command.env_clear().envs(environment(&resources)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{name}: {said}");
        let shown = String::from_utf8(output.stdout).unwrap();
        assert!(!shown.contains("secret@"), "{shown}");
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let value = |key: &str| &shown[key]["value"];

        // Kubernetes kills later than the server gives up waiting.
        let pod = pod_template(deployment(&resources)).unwrap();
        let grace = pod["spec"]["terminationGracePeriodSeconds"].as_f64().unwrap();
        let needed = value("limits.drain-delay").as_f64().unwrap()
            + value("limits.shutdown-timeout").as_f64().unwrap();
        assert!(needed + 10.0 <= grace, "{name}: {needed} s are needed and {grace} s are given");
        // The ports of the pod are those that the server listens on.
        for (port, key) in [("http", "listen"), ("metrics", "metrics.listen")] {
            let port = items(server(&resources), "/ports").find(|one| text(one, "/name") == port).unwrap();
            let address = value(key).as_str().unwrap();
            assert!(address.ends_with(&format!(":{}", port["containerPort"])), "{name}: {key} is {address}");
            assert!(!address.starts_with("127."), "{name}: {key} is {address}");
        }
        let metrics = &pod["metadata"]["annotations"]["prometheus.io/port"];
        assert!(value("metrics.listen").as_str().unwrap().ends_with(metrics.as_str().unwrap()));
        assert!(
            ["s3", "gcs", "azure"].contains(&value("storage.type").as_str().unwrap()),
            "replicas share no folder"
        );
    }
}

#[test]
fn the_fleet_bundle_names_overlays_that_exist() {
    let bundle = parse(&fs::read_to_string(folder().join("fleet.yaml")).unwrap());
    let [bundle] = &bundle[..] else { panic!("one document") };
    let folders: Vec<&str> = items(bundle, "/targetCustomizations")
        .chain([bundle])
        .map(|part| text(part, "/kustomize/dir"))
        .filter(|folder| !folder.is_empty())
        .collect();
    assert!(folders.len() >= 2);
    for overlay in folders {
        assert!(KUSTOMIZATIONS.contains(&overlay), "{overlay} is not among those that are checked");
        let resources = parse(&render(overlay));
        assert_eq!(bundle["defaultNamespace"], deployment(&resources)["metadata"]["namespace"]);
    }
}

/// No builder of images runs in the tests; what it would copy is checked to be there.
#[test]
fn the_image_is_built_from_files_that_exist() {
    let folder = workspace_root().join("deploy");
    let ignore = fs::read_to_string(folder.join("Containerfile.dockerignore")).unwrap();
    let kept: Vec<&str> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    for path in &kept {
        assert!(workspace_root().join(path).exists(), "{path}");
    }
    let recipe = fs::read_to_string(folder.join("Containerfile")).unwrap();
    assert!(recipe.contains("scripts/static-binary.sh") && kept.contains(&"scripts/static-binary.sh"));
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
