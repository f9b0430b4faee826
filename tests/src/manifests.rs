//! What the schemas of Kubernetes do not check: quantities, names, cron strings, and whether what a
//! resource names is there.
//!
//! Pure: rendered resources in, sentences out, one for each mistake. Whatever is named and is no
//! part of the rendered resources must be handed in with them (a Secret that is made by hand, for
//! example).

use std::collections::BTreeMap;

use serde_json::Value;

/// Everything that is wrong with `resources`, which are applied together.
pub fn problems(resources: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    for resource in resources {
        let mut report = |problem: String| found.push(format!("{}: {problem}", title(resource)));
        check_name(resource, &mut report);
        check_label_values(resource, &mut report);
        match text(resource, "/kind") {
            "Service" => check_service(resource, resources, &mut report),
            "Ingress" => check_ingress(resource, resources, &mut report),
            "HTTPRoute" => check_http_route(resource, resources, &mut report),
            "ServiceMonitor" => check_service_monitor(resource, resources, &mut report),
            "HorizontalPodAutoscaler" => check_autoscaler(resource, resources, &mut report),
            "PodDisruptionBudget" => {
                check_selects(resource, "/spec/selector/matchLabels", resources, &mut report);
            }
            "NetworkPolicy" => check_network_policy(resource, resources, &mut report),
            "CronJob" => {
                let schedule = text(resource, "/spec/schedule");
                if !is_cron(schedule) {
                    report(format!("\"{schedule}\" is no schedule"));
                }
            }
            // CloudNativePG's pods.
            "Cluster" => {
                check_pull_secrets(resource, "/spec/imagePullSecrets", resource, resources, &mut report);
            }
            "ServiceAccount" => {
                check_pull_secrets(resource, "/imagePullSecrets", resource, resources, &mut report);
            }
            _ => {}
        }
        if let Some(pod) = pod_template(resource) {
            check_pod(resource, pod, resources, &mut report);
        }
    }
    found
}

/// `Deployment dormer`.
pub fn title(resource: &Value) -> String {
    format!("{} {}", text(resource, "/kind"), name(resource))
}

/// The template of the pods that a resource makes.
pub fn pod_template(resource: &Value) -> Option<&Value> {
    match text(resource, "/kind") {
        "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => resource.pointer("/spec/template"),
        "CronJob" => resource.pointer("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

/// All containers of a pod's template, those that run first included.
pub fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["/spec/initContainers", "/spec/containers"].into_iter().flat_map(move |pointer| items(pod, pointer))
}

/// The text at a JSON pointer, or nothing.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The elements of the list at a JSON pointer.
pub fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// The resource of this kind and name, in the namespace of `of`.
pub fn find<'a>(resources: &'a [Value], kind: &str, wanted: &str, of: &Value) -> Option<&'a Value> {
    resources.iter().find(|resource| {
        text(resource, "/kind") == kind
            && name(resource) == wanted
            && text(resource, "/metadata/namespace") == text(of, "/metadata/namespace")
    })
}

/// The Secrets with which a resource's pods pull their images: those of the pod, else those of its
/// ServiceAccount.
pub fn pull_secrets<'a>(of: &'a Value, resources: &'a [Value]) -> Vec<&'a str> {
    let names = |holder: &'a Value, pointer: &str| -> Vec<&'a str> {
        items(holder, pointer).map(|secret| text(secret, "/name")).collect()
    };
    let Some(pod) = pod_template(of) else { return Vec::new() };
    let own = names(pod, "/spec/imagePullSecrets");
    let account = find(resources, "ServiceAccount", text(pod, "/spec/serviceAccountName"), of);
    match account {
        Some(account) if own.is_empty() => names(account, "/imagePullSecrets"),
        _ => own,
    }
}

type Report<'a> = &'a mut dyn FnMut(String);

fn name(resource: &Value) -> &str {
    text(resource, "/metadata/name")
}

fn check_name(resource: &Value, report: Report<'_>) {
    let (name, kind) = (name(resource), text(resource, "/kind"));
    // Services become DNS labels; of a CronJob's name, Jobs and pods take a part of their own.
    let length_max = match kind {
        "Service" | "Namespace" => 63,
        "CronJob" => 52,
        _ => 253,
    };
    if !is_dns_name(name) || name.len() > length_max || (length_max < 253 && name.contains('.')) {
        report(format!("\"{name}\" is no name for a {kind}"));
    }
}

/// Lower-case letters, digits and dashes between dots, as in a host's name.
fn is_dns_name(name: &str) -> bool {
    !name.is_empty() && name.split('.').all(is_dns_label)
}

fn is_dns_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
}

fn check_label_values(resource: &Value, report: Report<'_>) {
    let own = resource.pointer("/metadata/labels");
    let of_pods = pod_template(resource).and_then(|pod| pod.pointer("/metadata/labels"));
    for (key, value) in [own, of_pods].into_iter().flatten().filter_map(Value::as_object).flatten() {
        let value = value.as_str().unwrap_or("?");
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
        let bytes = value.as_bytes();
        if value.len() > 63 || !value.bytes().all(plain) || !edge(bytes.first()) || !edge(bytes.last()) {
            report(format!("\"{value}\" is no value for the label {key}"));
        }
    }
}

fn check_service(service: &Value, resources: &[Value], report: Report<'_>) {
    if text(service, "/spec/type") == "ExternalName" {
        let host = text(service, "/spec/externalName");
        if !is_dns_name(host) {
            report(format!("\"{host}\" is no host name"));
        }
        return;
    }
    let pods = check_selects(service, "/spec/selector", resources, report);
    for port in items(service, "/spec/ports") {
        let Some(target) = port.pointer("/targetPort").and_then(Value::as_str) else { continue };
        for pod in &pods {
            if !has_port(pod, target) {
                report(format!("the pods that it selects have no port {target}"));
            }
        }
    }
}

fn check_http_route(route: &Value, resources: &[Value], report: Report<'_>) {
    for host in items(route, "/spec/hostnames").filter_map(Value::as_str) {
        if !is_dns_name(host) {
            report(format!("\"{host}\" is no host name"));
        }
    }
    for backend in items(route, "/spec/rules").flat_map(|rule| items(rule, "/backendRefs")) {
        let (name, port) = (text(backend, "/name"), &backend["port"]);
        let service = find(resources, "Service", name, route);
        let leads_there =
            service.is_some_and(|service| items(service, "/spec/ports").any(|own| own["port"] == *port));
        if !leads_there {
            report(format!("there is no Service {name} with a port {port}"));
        }
    }
}

fn check_service_monitor(monitor: &Value, resources: &[Value], report: Report<'_>) {
    let selector = monitor.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    let services: Vec<&Value> = resources
        .iter()
        .filter(|other| text(other, "/kind") == "Service")
        .filter(|service| {
            let labels = service.pointer("/metadata/labels");
            selector.is_some_and(|wanted| {
                wanted.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
            })
        })
        .collect();
    if services.len() != 1 {
        report(format!("it selects {} Services", services.len()));
    }
    for endpoint in items(monitor, "/spec/endpoints") {
        let port = text(endpoint, "/port");
        let is_port = |service: &&Value| items(service, "/spec/ports").any(|own| text(own, "/name") == port);
        if !services.iter().any(is_port) {
            report(format!("no Service that it selects has a port {port}"));
        }
    }
}

fn check_autoscaler(autoscaler: &Value, resources: &[Value], report: Report<'_>) {
    let (kind, name) =
        (text(autoscaler, "/spec/scaleTargetRef/kind"), text(autoscaler, "/spec/scaleTargetRef/name"));
    match find(resources, kind, name, autoscaler) {
        None => report(format!("there is no {kind} {name}")),
        Some(scaled) if scaled.pointer("/spec/replicas").is_some() => {
            report(format!("{kind} {name} sets its replicas too"));
        }
        Some(_) => {}
    }
}

/// The templates of the pods that a selector fits. None at all is a mistake.
fn check_selects<'a>(
    resource: &Value,
    pointer: &str,
    resources: &'a [Value],
    report: Report<'_>,
) -> Vec<&'a Value> {
    let pods: Vec<&Value> = resources
        .iter()
        .filter(|other| text(other, "/metadata/namespace") == text(resource, "/metadata/namespace"))
        .filter_map(pod_template)
        .filter(|pod| fits(resource.pointer(pointer), pod))
        .collect();
    if pods.is_empty() {
        report(format!("{pointer} selects no pod"));
    }
    pods
}

fn fits(selector: Option<&Value>, pod: &Value) -> bool {
    let wanted = selector.and_then(Value::as_object);
    let labels = pod.pointer("/metadata/labels");
    wanted.is_some_and(|wanted| {
        wanted.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    })
}

fn has_port(pod: &Value, name: &str) -> bool {
    containers(pod).flat_map(|container| items(container, "/ports")).any(|port| text(port, "/name") == name)
}

fn check_ingress(ingress: &Value, resources: &[Value], report: Report<'_>) {
    let mut hosts: Vec<&str> =
        items(ingress, "/spec/tls").flat_map(|tls| items(tls, "/hosts")).filter_map(Value::as_str).collect();
    for rule in items(ingress, "/spec/rules") {
        let host = text(rule, "/host");
        if !hosts.contains(&host) {
            report(format!("there is no certificate for {host}"));
        }
        hosts.push(host);
        for path in items(rule, "/http/paths") {
            let (name, port) =
                (text(path, "/backend/service/name"), text(path, "/backend/service/port/name"));
            let service = find(resources, "Service", name, ingress);
            let leads_there = service
                .is_some_and(|service| items(service, "/spec/ports").any(|own| text(own, "/name") == port));
            if !leads_there {
                report(format!("there is no Service {name} with a port {port}"));
            }
        }
    }
    for host in hosts {
        if !is_dns_name(host) {
            report(format!("\"{host}\" is no host name"));
        }
    }
    for tls in items(ingress, "/spec/tls") {
        check_secret(text(tls, "/secretName"), None, ingress, resources, report);
    }
}

fn check_network_policy(policy: &Value, resources: &[Value], report: Report<'_>) {
    let selector = policy.pointer("/spec/podSelector/matchLabels");
    if selector.is_none() {
        return; // all pods
    }
    // The pods of a database that an operator makes from a resource of its own.
    if let Some(cluster) = selector.and_then(|labels| labels.get("cnpg.io/cluster")).and_then(Value::as_str) {
        if find(resources, "Cluster", cluster, policy).is_none() {
            report(format!("there is no Cluster {cluster}"));
        }
        return;
    }
    let pods = check_selects(policy, "/spec/podSelector/matchLabels", resources, report);
    let ports = items(policy, "/spec/ingress").flat_map(|rule| items(rule, "/ports"));
    for port in ports.filter_map(|port| port.pointer("/port").and_then(Value::as_str)) {
        if !pods.iter().any(|pod| has_port(pod, port)) {
            report(format!("no pod that it selects has a port {port}"));
        }
    }
}

fn check_pod(resource: &Value, pod: &Value, resources: &[Value], report: Report<'_>) {
    if let Some(selector) = resource.pointer("/spec/selector/matchLabels")
        && !fits(Some(selector), pod)
    {
        report("its selector does not fit its own pods".to_owned());
    }
    for constraint in items(pod, "/spec/topologySpreadConstraints") {
        if !fits(constraint.pointer("/labelSelector/matchLabels"), pod) {
            report("a topologySpreadConstraint does not fit its own pods".to_owned());
        }
    }
    check_pull_secrets(pod, "/spec/imagePullSecrets", resource, resources, report);
    let account = text(pod, "/spec/serviceAccountName");
    if !account.is_empty() && find(resources, "ServiceAccount", account, resource).is_none() {
        report(format!("there is no ServiceAccount {account}"));
    }
    let mut volumes = BTreeMap::new();
    for volume in items(pod, "/spec/volumes") {
        volumes.insert(text(volume, "/name"), false);
        if let Some(source) = volume.pointer("/configMap") {
            check_config_map(text(source, "/name"), None, resource, resources, report);
        }
        if let Some(source) = volume.pointer("/secret") {
            check_secret(text(source, "/secretName"), None, resource, resources, report);
        }
    }
    for claim in items(resource, "/spec/volumeClaimTemplates") {
        volumes.insert(text(claim, "/metadata/name"), false);
    }
    for container in containers(pod) {
        check_container(container, resource, resources, report);
        for mount in items(container, "/volumeMounts") {
            match volumes.get_mut(text(mount, "/name")) {
                Some(is_used) => *is_used = true,
                None => report(format!("there is no volume {}", text(mount, "/name"))),
            }
        }
    }
    for (volume, _) in volumes.into_iter().filter(|(_, is_used)| !is_used) {
        report(format!("volume {volume} is mounted nowhere"));
    }
}

fn check_container(container: &Value, resource: &Value, resources: &[Value], report: Report<'_>) {
    for kind in ["requests", "limits"] {
        let amounts = container.pointer(&format!("/resources/{kind}")).and_then(Value::as_object);
        for (what, amount) in amounts.into_iter().flatten() {
            let amount = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned);
            if quantity(&amount).is_none() {
                report(format!("\"{amount}\" of {what} is no quantity"));
            }
        }
    }
    for what in ["cpu", "memory"] {
        let request = quantity(text(container, &format!("/resources/requests/{what}")));
        let limit = quantity(text(container, &format!("/resources/limits/{what}")));
        if limit.is_some_and(|limit| request.is_some_and(|request| request > limit)) {
            report(format!("it requests more {what} than its limit"));
        }
    }
    let mut seen = Vec::new();
    for variable in items(container, "/env") {
        let name = text(variable, "/name");
        if seen.contains(&name) {
            report(format!("{name} is set twice"));
        }
        let value = text(variable, "/value");
        for used in value.split("$(").skip(1).filter_map(|rest| rest.split_once(')')) {
            if !seen.contains(&used.0) {
                report(format!("{name} uses {}, which is not set before it", used.0));
            }
        }
        seen.push(name);
        for (kind, check) in [
            ("secretKeyRef", check_secret as fn(&str, Option<&str>, &Value, &[Value], Report<'_>)),
            ("configMapKeyRef", check_config_map),
        ] {
            if let Some(source) = variable.pointer(&format!("/valueFrom/{kind}"))
                && source.pointer("/optional") != Some(&Value::Bool(true))
            {
                check(text(source, "/name"), Some(text(source, "/key")), resource, resources, report);
            }
        }
    }
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        if let Some(port) = container.pointer(&format!("/{probe}/httpGet/port")).and_then(Value::as_str)
            && !items(container, "/ports").any(|own| text(own, "/name") == port)
        {
            report(format!("{probe}: there is no port {port}"));
        }
    }
    for port in items(container, "/ports") {
        let name = text(port, "/name");
        if !is_dns_label(name) || name.len() > 15 {
            report(format!("\"{name}\" is no name for a port"));
        }
    }
}

fn check_pull_secrets(holder: &Value, pointer: &str, of: &Value, resources: &[Value], report: Report<'_>) {
    for secret in items(holder, pointer) {
        check_secret(text(secret, "/name"), None, of, resources, report);
    }
}

fn check_secret(name: &str, key: Option<&str>, of: &Value, resources: &[Value], report: Report<'_>) {
    check_keyed("Secret", name, key, of, resources, report);
}

fn check_config_map(name: &str, key: Option<&str>, of: &Value, resources: &[Value], report: Report<'_>) {
    check_keyed("ConfigMap", name, key, of, resources, report);
}

fn check_keyed(
    kind: &str,
    name: &str,
    key: Option<&str>,
    of: &Value,
    resources: &[Value],
    report: Report<'_>,
) {
    let Some(found) = find(resources, kind, name, of) else {
        report(format!("there is no {kind} {name}"));
        return;
    };
    if let Some(key) = key
        && !["/data", "/stringData"]
            .into_iter()
            .any(|pointer| found.pointer(pointer).is_some_and(|data| data.get(key).is_some()))
    {
        report(format!("{kind} {name} has no key {key}"));
    }
}

/// An amount such as `500m`, `384Mi` or `2`; thousandths of its unit, so that they compare.
pub fn quantity(text: &str) -> Option<u128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor: u128 = match suffix {
        "m" => 1,
        "" => 1_000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "Ki" => 1_000 << 10,
        "Mi" => 1_000 << 20,
        "Gi" => 1_000 << 30,
        "Ti" => 1_000 << 40,
        _ => return None,
    };
    // Fractions are legal and nobody needs them here; what is not a number is nothing.
    number.parse::<u128>().ok()?.checked_mul(factor)
}

/// Five fields of numbers, ranges, lists and steps. Names of days and months are legal too, but not
/// used here.
fn is_cron(schedule: &str) -> bool {
    const RANGES: [(u32, u32); 5] = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)];
    let fields: Vec<&str> = schedule.split(' ').collect();
    fields.len() == RANGES.len()
        && fields
            .iter()
            .zip(RANGES)
            .all(|(field, range)| field.split(',').all(|part| is_cron_part(part, range)))
}

fn is_cron_part(part: &str, (min, max): (u32, u32)) -> bool {
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| (min..=max).contains(number));
    let (range, step) = part.split_once('/').unwrap_or((part, "1"));
    let range_is_sound = match range.split_once('-') {
        None => range == "*" || number(range).is_some(),
        Some((from, to)) => number(from).zip(number(to)).is_some_and(|(from, to)| from <= to),
    };
    range_is_sound && step.parse::<u32>().is_ok_and(|step| step > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_quantities_and_names_are_told_from_nonsense() {
        for schedule in ["*/5 * * * *", "0 3 * * 0", "0,30 8-18/2 1 1-3 *"] {
            assert!(is_cron(schedule), "{schedule}");
        }
        for schedule in ["", "* * * *", "60 * * * *", "*/0 * * * *", "5-1 * * * *", "a * * * *", "* * 0 * *"]
        {
            assert!(!is_cron(schedule), "{schedule}");
        }
        for amount in ["500m", "2", "384Mi", "10G"] {
            assert!(quantity(amount).is_some(), "{amount}");
        }
        for amount in ["", "384MB", "2 Gi", "500mi", "-1", "Mi"] {
            assert!(quantity(amount).is_none(), "{amount}");
        }
        assert!(quantity("1Gi") > quantity("1000Mi") && quantity("1") > quantity("999m"));
        assert!(is_dns_name("cache.example.org") && is_dns_name("dormer-7h2"));
        assert!(!is_dns_name("Dormer") && !is_dns_name("a..b") && !is_dns_name("-a") && !is_dns_name("a_b"));
    }
}
