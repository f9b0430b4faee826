//! Small schemas of the kinds that operators bring: every field that the manifests set, and its
//! type. They are closed, because Kubernetes drops a misspelt field of such a kind in silence.
//!
//! Pure. Each line is a path, in which `[]` stands for any element and `*` for any key, and a type.

use serde_json::Value;

use crate::manifests::{text, title};

type Schema = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const SCHEMAS: [Schema; 11] = [
    (
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        &[
            ("parentRefs[].group", "text"),
            ("parentRefs[].kind", "text"),
            ("parentRefs[].name", "text"),
            ("parentRefs[].namespace", "text"),
            ("parentRefs[].sectionName", "text"),
            ("hostnames[]", "text"),
            ("rules[].matches[].path.type", "text"),
            ("rules[].matches[].path.value", "text"),
            ("rules[].timeouts.request", "text"),
            ("rules[].timeouts.backendRequest", "text"),
            ("rules[].backendRefs[].group", "text"),
            ("rules[].backendRefs[].kind", "text"),
            ("rules[].backendRefs[].name", "text"),
            ("rules[].backendRefs[].port", "number"),
            ("rules[].backendRefs[].weight", "number"),
        ],
    ),
    (
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        &[
            ("jobLabel", "text"),
            ("selector.matchLabels.*", "text"),
            ("endpoints[].port", "text"),
            ("endpoints[].path", "text"),
            ("endpoints[].interval", "text"),
            ("endpoints[].scrapeTimeout", "text"),
        ],
    ),
    (
        "monitoring.coreos.com/v1",
        "PrometheusRule",
        &[
            ("groups[].name", "text"),
            ("groups[].rules[].alert", "text"),
            ("groups[].rules[].expr", "text"),
            ("groups[].rules[].for", "text"),
            ("groups[].rules[].labels.*", "text"),
            ("groups[].rules[].annotations.*", "text"),
        ],
    ),
    (
        "postgresql.cnpg.io/v1",
        "Cluster",
        &[
            ("instances", "number"),
            ("imageName", "text"),
            ("imagePullSecrets[].name", "text"),
            ("storage.size", "text"),
            ("bootstrap.initdb.database", "text"),
            ("bootstrap.initdb.owner", "text"),
            ("bootstrap.recovery.source", "text"),
            ("bootstrap.recovery.database", "text"),
            ("bootstrap.recovery.owner", "text"),
            ("externalClusters[].name", "text"),
            ("externalClusters[].plugin.name", "text"),
            ("externalClusters[].plugin.parameters.*", "text"),
            ("postgresql.synchronous.method", "text"),
            ("postgresql.synchronous.number", "number"),
            ("postgresql.synchronous.dataDurability", "text"),
            ("postgresql.parameters.*", "text"),
            ("affinity.enablePodAntiAffinity", "flag"),
            ("affinity.topologyKey", "text"),
            ("resources.requests.*", "text"),
            ("resources.limits.*", "text"),
            ("plugins[].name", "text"),
            ("plugins[].isWALArchiver", "flag"),
            ("plugins[].parameters.*", "text"),
        ],
    ),
    (
        "postgresql.cnpg.io/v1",
        "ScheduledBackup",
        &[
            ("schedule", "text"),
            ("immediate", "flag"),
            ("backupOwnerReference", "text"),
            ("cluster.name", "text"),
            ("method", "text"),
            ("pluginConfiguration.name", "text"),
        ],
    ),
    (
        "barmancloud.cnpg.io/v1",
        "ObjectStore",
        &[
            ("retentionPolicy", "text"),
            ("configuration.destinationPath", "text"),
            ("configuration.endpointURL", "text"),
            ("configuration.s3Credentials.accessKeyId.name", "text"),
            ("configuration.s3Credentials.accessKeyId.key", "text"),
            ("configuration.s3Credentials.secretAccessKey.name", "text"),
            ("configuration.s3Credentials.secretAccessKey.key", "text"),
            ("configuration.wal.compression", "text"),
            ("configuration.data.compression", "text"),
        ],
    ),
    (
        "objectbucket.io/v1alpha1",
        "ObjectBucketClaim",
        &[("generateBucketName", "text"), ("storageClassName", "text")],
    ),
    (
        "external-secrets.io/v1",
        "ExternalSecret",
        &[
            ("refreshInterval", "text"),
            ("secretStoreRef.kind", "text"),
            ("secretStoreRef.name", "text"),
            ("target.name", "text"),
            ("target.creationPolicy", "text"),
            ("target.deletionPolicy", "text"),
            ("dataFrom[].extract.key", "text"),
        ],
    ),
    (
        "bitnami.com/v1alpha1",
        "SealedSecret",
        &[
            ("encryptedData.*", "text"),
            ("template.metadata.name", "text"),
            ("template.metadata.namespace", "text"),
            ("template.type", "text"),
        ],
    ),
    (
        "fleet.cattle.io/v1alpha1",
        "GitRepo",
        &[("repo", "text"), ("branch", "text"), ("bundles[].base", "text"), ("bundles[].options", "text")],
    ),
    // A file that such a bundle names has these fields at its top.
    (
        "fleet.cattle.io/v1alpha1",
        "FleetYAML",
        &[
            ("name", "text"),
            ("defaultNamespace", "text"),
            ("dependsOn[].name", "text"),
            ("kustomize.dir", "text"),
            ("helm.takeOwnership", "flag"),
            ("targetCustomizations[].name", "text"),
            ("targetCustomizations[].clusterSelector.matchLabels.*", "text"),
            ("targetCustomizations[].defaultNamespace", "text"),
            ("targetCustomizations[].kustomize.dir", "text"),
            ("targetCustomizations[].doNotDeploy", "flag"),
        ],
    ),
];

/// Whether Kubernetes itself does not know this kind.
pub fn is_custom(resource: &Value) -> bool {
    // Kubernetes' own groups have no dot, or end in k8s.io; the Gateway API does so too.
    let group = text(resource, "/apiVersion").split_once('/').map_or("", |(group, _)| group);
    group == "gateway.networking.k8s.io" || (group.contains('.') && !group.ends_with("k8s.io"))
}

/// What a resource of such a kind has that its schema does not.
pub fn problems(resource: &Value) -> Vec<String> {
    let is_its =
        |schema: &&Schema| schema.0 == text(resource, "/apiVersion") && schema.1 == text(resource, "/kind");
    let Some((_, _, fields)) = SCHEMAS.iter().find(is_its) else {
        return vec![format!("{}: there is no schema for it", title(resource))];
    };
    let mut found = Vec::new();
    walk(&resource["spec"], "", &mut |path, value| {
        let kind = match value {
            Value::String(_) => "text",
            Value::Number(_) => "number",
            Value::Bool(_) => "flag",
            _ => "nothing",
        };
        if !fields.iter().any(|(field, wanted)| fits(field, path) && *wanted == kind) {
            found.push(format!("{}: {path} ({kind}) is no field", title(resource)));
        }
    });
    found
}

fn fits(field: &str, path: &str) -> bool {
    field == path || field.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

/// Calls `see` with every leaf.
fn walk(value: &Value, path: &str, see: &mut dyn FnMut(&str, &Value)) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                walk(inner, &format!("{path}{dot}{name}"), see);
            }
        }
        Value::Array(elements) => {
            for inner in elements {
                walk(inner, &format!("{path}[]"), see);
            }
        }
        leaf => see(path, leaf),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn misspelt_fields_and_wrong_types_are_found() {
        let claim = |spec: Value| {
            json!({"apiVersion": "objectbucket.io/v1alpha1", "kind": "ObjectBucketClaim",
            "metadata": {"name": "x"}, "spec": spec})
        };
        assert!(is_custom(&claim(json!({}))) && !is_custom(&json!({"apiVersion": "apps/v1"})));
        assert!(!is_custom(&json!({"apiVersion": "networking.k8s.io/v1"})));
        assert!(problems(&claim(json!({"storageClassName": "x"}))).is_empty());
        assert_eq!(problems(&claim(json!({"storageClass": "x", "generateBucketName": 1}))).len(), 2);
        assert_eq!(problems(&json!({"apiVersion": "x.y/v1", "kind": "Z", "spec": {}})).len(), 1);
    }
}
