//! The alerts and the dashboard speak of metrics that the server has, fire when they should, and
//! lead to a page that says what to do.
//!
//! `promtool` is the real one, from `scripts/get-services.sh`.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use dormer_tests::manifests::{items, text};
use dormer_tests::{part, workspace_root};
use serde_json::Value;

use crate::deploy::{parse, render};

fn folder() -> PathBuf {
    workspace_root().join("deploy/kubernetes/components/monitoring")
}

fn read(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

fn yaml(name: &str) -> Value {
    let script = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let mut command = Command::new(part("deploy-tools/bin/python3"));
    let output = command.args(["-c", script]).arg(folder().join(name)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs promtool; what it said, and whether it was content.
fn promtool(arguments: &[&str]) -> (String, bool) {
    let mut command = Command::new(part("prometheus/usr/bin/promtool"));
    let output = command.args(arguments).current_dir(folder()).output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (said, output.status.success())
}

fn alerts() -> Vec<Value> {
    items(&yaml("alerts.yaml"), "/groups").flat_map(|group| items(group, "/rules")).cloned().collect()
}

/// Every expression of the dashboard, as Prometheus gets it from Grafana.
fn dashboard_expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    items(&dashboard, "/panels")
        .flat_map(|panel| items(panel, "/targets"))
        .map(|target| text(target, "/expr").replace("$__rate_interval", "5m").replace("$job", ".+"))
        .collect()
}

#[test]
fn every_alert_fires_when_it_should_and_only_then() {
    let (said, success) = promtool(&["check", "rules", "alerts.yaml"]);
    assert!(success, "{said}");
    let (said, success) = promtool(&["test", "rules", "alerts.test.yaml"]);
    assert!(success, "{said}");
    let tests = yaml("alerts.test.yaml");
    let tested: BTreeSet<&str> = items(&tests, "/tests").map(|test| text(test, "/name")).collect();
    let alerts = alerts();
    assert_eq!(tested, alerts.iter().map(|alert| text(alert, "/alert")).collect());
    for test in items(&tests, "/tests") {
        // Quiet first, then loud.
        let fires: Vec<usize> =
            items(test, "/alert_rule_test").map(|at| items(at, "/exp_alerts").count()).collect();
        assert_eq!(fires, [0, 1], "{}", text(test, "/name"));
    }
}

#[test]
fn the_operator_gets_the_same_rules() {
    let plain = read("alerts.yaml");
    let rules: String = plain
        .lines()
        .skip_while(|line| *line != "groups:")
        .map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") })
        .collect();
    let resource = read("prometheusrule.yaml");
    let (head, _) = resource.split_once("spec:\n").unwrap();
    let wanted = format!("{head}spec:\n{rules}");
    if std::env::var_os("DORMER_RENEW").is_some() {
        fs::write(folder().join("prometheusrule.yaml"), &wanted).unwrap();
    }
    assert!(resource == wanted, "DORMER_RENEW=1 renews prometheusrule.yaml");
}

#[test]
fn every_alert_has_an_entry_in_the_runbook() {
    let runbook = fs::read_to_string(workspace_root().join("docs/RUNBOOK.md")).unwrap();
    let entries: Vec<&str> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let alerts = alerts();
    assert_eq!(entries, alerts.iter().map(|alert| text(alert, "/alert")).collect::<Vec<_>>());
    let rule = yaml("prometheusrule.yaml");
    let page = text(&rule, "/metadata/annotations/runbook-page");
    for alert in &alerts {
        assert_eq!(text(alert, "/annotations/runbook_url"), link(page, alert));
        assert!(["critical", "warning"].contains(&text(alert, "/labels/severity")));
        assert!(!text(alert, "/annotations/summary").is_empty());
    }
    // Links inside the page lead to entries.
    for link in runbook.split("](#").skip(1).filter_map(|rest| rest.split_once(')')) {
        assert!(entries.iter().any(|entry| entry.to_lowercase() == link.0), "#{}", link.0);
    }
}

/// The entry of the runbook, in the book as in a forge's view of the page.
fn link(page: &str, alert: &Value) -> String {
    format!("{page}#{}", text(alert, "/alert").to_lowercase())
}

/// A place names its page once.
#[test]
fn every_alert_of_an_overlay_links_to_the_page_that_the_overlay_names() {
    for (overlay, page) in [
        ("overlays/lab", "https://book.lab.example.org/RUNBOOK.html"),
        ("overlays/production", "https://book.example.org/RUNBOOK.html"),
    ] {
        let resources = parse(&render(overlay));
        let rule = resources.iter().find(|one| text(one, "/kind") == "PrometheusRule").unwrap();
        assert_eq!(text(rule, "/metadata/annotations/runbook-page"), page);
        let alerts: Vec<&Value> =
            items(rule, "/spec/groups").flat_map(|group| items(group, "/rules")).collect();
        assert!(alerts.len() > 20, "{}", alerts.len());
        for alert in alerts {
            assert_eq!(text(alert, "/annotations/runbook_url"), link(page, alert));
        }
    }
}

/// Metrics of the server and their labels, from the page that is made from the code.
fn metrics() -> BTreeMap<String, BTreeSet<String>> {
    let page = fs::read_to_string(workspace_root().join("docs/METRICS.md")).unwrap();
    let (_, table) = page.split_once("<!-- from here on").unwrap();
    let mut metrics = BTreeMap::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        metrics.insert(cells[1].trim_matches('`').to_owned(), words(cells[2]));
    }
    // kube-state-metrics has these of the publisher.
    for name in ["kube_cronjob_created", "kube_cronjob_status_last_successful_time"] {
        metrics.insert(name.to_owned(), ["namespace", "cronjob"].map(str::to_owned).into());
    }
    let of_deployment = ["namespace", "deployment"].map(str::to_owned).into();
    metrics.insert("kube_deployment_status_replicas_available".to_owned(), of_deployment);
    assert!(metrics.len() > 50);
    metrics
}

/// What an expression names that is not there: metrics, and labels of its metrics. Prometheus finds
/// neither: such an expression has no result, for ever.
fn unknown_names(expression: &str, metrics: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut unknown = Vec::new();
    let mut labels_of_all: BTreeSet<String> =
        ["job", "namespace", "instance", "le"].map(str::to_owned).into();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut rest = expression;
    let mut named = 0;
    while let Some(at) = ["dormer_", "process_", "kube_"].iter().filter_map(|start| rest.find(start)).min() {
        let word_end = rest[at..].find(|c| !is_word(c)).map_or(rest.len(), |end| at + end);
        let word = &rest[at..word_end];
        rest = &rest[word_end..];
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
        let Some(labels) = metrics.get(word).or_else(|| metrics.get(histogram?)) else {
            unknown.push(word.to_owned());
            continue;
        };
        named += 1;
        labels_of_all.extend(labels.iter().cloned());
        if let Some(matchers) = rest.strip_prefix('{') {
            // Values in quotes may hold braces.
            for (index, part) in matchers.split('"').enumerate() {
                if index % 2 == 0 {
                    let name = part.trim_start_matches(',').trim_end_matches(['=', '~', '!']);
                    let name = name.split('}').next().unwrap();
                    if !name.is_empty() && !labels.contains(name) && !["job", "instance"].contains(&name) {
                        unknown.push(format!("{word}{{{name}}}"));
                    }
                    if part.contains('}') {
                        break;
                    }
                }
            }
            // The values are no names of metrics.
            let mut quoted = false;
            let end = matchers.find(|c| {
                quoted ^= c == '"';
                c == '}' && !quoted
            });
            rest = &matchers[end.unwrap()..];
        }
    }
    for grouped in expression.split("by (").skip(1).filter_map(|part| part.split_once(')')) {
        for label in grouped.0.split(',').map(str::trim) {
            if !labels_of_all.contains(label) {
                unknown.push(format!("by ({label})"));
            }
        }
    }
    if named == 0 {
        unknown.push("no metric at all".to_owned());
    }
    unknown
}

#[test]
fn alerts_and_dashboard_name_only_what_the_server_has() {
    let metrics = metrics();
    let alerts = alerts();
    let mut expressions: Vec<String> = alerts.iter().map(|one| text(one, "/expr").to_owned()).collect();
    expressions.extend(dashboard_expressions());
    assert!(expressions.len() > 60, "{}", expressions.len());
    for expression in &expressions {
        let unknown = unknown_names(expression, &metrics);
        assert!(unknown.is_empty(), "{expression}: {unknown:?}");
    }
    // It sees.
    for (wrong, found) in [
        ("dormer_http_request_total", "dormer_http_request_total"),
        ("dormer_jobs{sort=\"x\"}", "dormer_jobs{sort}"),
        ("dormer_jobs{job=\"}{\",sort=~\"x\"}", "dormer_jobs{sort}"),
        ("sum by (kind, root) (dormer_jobs)", "by (root)"),
        ("up == 0", "no metric at all"),
    ] {
        assert!(unknown_names(wrong, &metrics).iter().any(|name| name == found), "{wrong}");
    }
}

#[test]
fn every_expression_of_the_dashboard_parses() {
    let rules: Vec<Value> = dashboard_expressions()
        .iter()
        .map(|expression| serde_json::json!({"record": "a:b", "expr": expression}))
        .collect();
    // Each is a recording rule; one group for each, because a group may have no two alike.
    let groups: Vec<Value> = rules
        .iter()
        .enumerate()
        .map(|(index, rule)| serde_json::json!({"name": format!("panel-{index}"), "rules": [rule]}))
        .collect();
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    fs::write(file.path(), serde_json::json!({ "groups": groups }).to_string()).unwrap();
    let (said, success) = promtool(&["check", "rules", "--lint=none", file.path().to_str().unwrap()]);
    assert!(success && said.contains(&format!("{} rules found", rules.len())), "{said}");
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let ids: BTreeSet<u64> =
        items(&dashboard, "/panels").map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), items(&dashboard, "/panels").count(), "each panel has an id of its own");
}
