//! What podman can play of a manifest for Kubernetes.
//!
//! podman knows Deployments of one replica, Jobs, Secrets, ConfigMaps and claims. The function here
//! does what controllers and the kubelet would do beside that, and changes nothing else: images,
//! commands, variables, users, read-only roots, capabilities, memory limits, init containers and
//! volumes are those of the manifest.

use serde_json::{Value, json};

use crate::manifests::{items, pod_template, text};

/// Seconds that a wedged container has between the two signals. podman has one such time for all
/// reasons to stop, so a test that stops a pod gives the manifest's own.
const GRACE_SECONDS: u32 = 2;

/// Probes that have to fail before a restart. Each waits for its whole time-out.
const FAILURES: u32 = 1;

/// The documents for `podman kube play` that run this Deployment, StatefulSet or CronJob once,
/// under the name `name`, with the ConfigMaps among `resources` that the pod mounts.
///
/// - A StatefulSet is a Deployment whose claims are made from its templates.
/// - A CronJob is the Job of one run.
/// - An `emptyDir` on the disk is a claim of its own, because podman gives only claims to the pod's
///   group.
/// - Of the probes, the one for liveness stays. podman runs HTTP probes with a shell and `curl`,
///   which the image lacks, so `dormer check` asks instead.
/// - Services are `services`, addresses with their names, in the pod's file of hosts: podman's own
///   server of names loses questions while pods come and go. Hooks are left to the test.
pub fn playable(resource: &Value, name: &str, resources: &[Value], services: &[(&str, &str)]) -> Vec<Value> {
    let mut pod = pod_template(resource).expect("a resource that runs pods").clone();
    let mut documents = Vec::new();
    let claim = |volume: &str| format!("{volume}-{name}");
    let mut volumes: Vec<Value> = items(&pod, "/spec/volumes").cloned().collect();
    for volume in &mut volumes {
        let title = text(volume, "/name").to_owned();
        if volume.get("emptyDir").is_some_and(|folder| text(folder, "/medium") != "Memory") {
            *volume = json!({"name": title, "persistentVolumeClaim": {"claimName": claim(&title)}});
            documents.push(claim_of(&claim(&title), &json!({"resources": {"requests": {"storage": "1Gi"}}})));
        }
        let map = text(volume, "/configMap/name");
        documents.extend(
            resources
                .iter()
                .filter(|one| text(one, "/kind") == "ConfigMap" && text(one, "/metadata/name") == map)
                .cloned(),
        );
    }
    for template in items(resource, "/spec/volumeClaimTemplates") {
        let title = text(template, "/metadata/name");
        volumes.push(json!({"name": title, "persistentVolumeClaim": {"claimName": claim(title)}}));
        documents.push(claim_of(&claim(title), &template["spec"]));
    }
    pod["spec"]["volumes"] = volumes.into();
    let hosts = services.iter().map(|(address, name)| json!({"ip": address, "hostnames": [name]}));
    pod["spec"]["hostAliases"] = hosts.collect();
    pod["spec"]["terminationGracePeriodSeconds"] = GRACE_SECONDS.into();
    for container in pod["spec"]["containers"].as_array_mut().expect("a pod has containers") {
        let liveness = liveness(container);
        let container = container.as_object_mut().expect("a container is an object");
        for unplayable in ["startupProbe", "readinessProbe", "livenessProbe", "lifecycle"] {
            container.remove(unplayable);
        }
        if let Some(probe) = liveness {
            container.insert("livenessProbe".to_owned(), probe);
        }
    }
    let (version, kind) = match text(resource, "/kind") {
        "CronJob" => ("batch/v1", "Job"),
        _ => ("apps/v1", "Deployment"),
    };
    let labels = pod["metadata"]["labels"].clone();
    let mut spec = json!({"template": pod});
    if kind == "Deployment" {
        spec["replicas"] = 1.into();
        spec["selector"] = json!({"matchLabels": labels});
    }
    let metadata = json!({"name": name, "labels": labels});
    documents.push(json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}));
    documents
}

/// The probe for liveness, as a command. Panics if the probe asks for something that the command
/// does not ask.
fn liveness(container: &Value) -> Option<Value> {
    let mut probe = container.get("livenessProbe")?.clone();
    assert_eq!(text(&probe, "/httpGet/path"), "/healthz");
    assert_eq!(text(&probe, "/httpGet/port"), "metrics");
    let arguments = items(container, "/args").filter_map(Value::as_str);
    let settings = arguments.filter(|word| word.starts_with("--config="));
    let command: Vec<&str> = ["/bin/dormer", "check"].into_iter().chain(settings).collect();
    let fields = probe.as_object_mut().expect("a probe is an object");
    fields.remove("httpGet");
    fields.remove("terminationGracePeriodSeconds");
    fields.insert("exec".to_owned(), json!({"command": command}));
    fields.insert("failureThreshold".to_owned(), FAILURES.into());
    Some(probe)
}

fn claim_of(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": spec["resources"]}})
}
