//! Which connections a network allows that enforces policies, as
//! <https://kubernetes.io/docs/concepts/services-networking/network-policies/> has it.
//!
//! Pure: rendered resources in, answers out. No network of the tests enforces policies, so this is
//! a reading of that page. It knows the fields that the policies here use, and panics at others.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::manifests::{items, text};

/// One end of a connection.
#[derive(Debug, Clone, Copy)]
pub enum Peer<'a> {
    /// A pod.
    Pod {
        /// The name of its namespace. Policies choose namespaces by the label with the name.
        namespace: &'a str,
        /// Those of the template that the pod is made from.
        labels: &'a Value,
    },
    /// A process of a node, or a host outside. Selectors fit pods alone.
    Address(IpAddr),
}

/// Where a connection leads to.
#[derive(Debug, Clone, Copy)]
pub struct Port<'a> {
    /// `TCP` or `UDP`.
    pub protocol: &'a str,
    /// What the pod itself listens on, whatever its Service has.
    pub number: u16,
    /// The name that the pod gives the port.
    pub name: &'a str,
}

/// The label that Kubernetes gives each namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

#[derive(Clone, Copy)]
struct Way {
    policy_type: &'static str,
    rules: &'static str,
    peers: &'static str,
}

const IN: Way = Way { policy_type: "Ingress", rules: "/spec/ingress", peers: "from" };
const OUT: Way = Way { policy_type: "Egress", rules: "/spec/egress", peers: "to" };

/// Whether one end may open a connection to the other: neither end's policies refuse.
pub fn may_connect(resources: &[Value], from: Peer<'_>, to: Peer<'_>, port: Port<'_>) -> bool {
    allows(resources, OUT, from, to, port) && allows(resources, IN, to, from, port)
}

fn allows(resources: &[Value], way: Way, own: Peer<'_>, other: Peer<'_>, port: Port<'_>) -> bool {
    // Policies are about pods.
    let Peer::Pod { namespace, labels } = own else { return true };
    let mut policies = resources
        .iter()
        .filter(|one| text(one, "/kind") == "NetworkPolicy" && text(one, "/metadata/namespace") == namespace)
        .filter(|one| {
            assert!(one["spec"]["policyTypes"].is_array(), "teach this module policies without types");
            items(one, "/spec/policyTypes").any(|named| named == way.policy_type)
        })
        .filter(|one| fits(&one["spec"]["podSelector"], labels))
        .peekable();
    // A pod that no policy selects is open.
    policies.peek().is_none()
        || policies.flat_map(|policy| items(policy, way.rules)).any(|rule| {
            only_known(rule, &[way.peers, "ports"]);
            any_or_absent(rule, way.peers, |peer| is_peer(peer, other, namespace))
                && any_or_absent(rule, "ports", |named| is_port(named, port))
        })
}

/// A list that is absent or empty allows everything.
fn any_or_absent(rule: &Value, list: &str, allows: impl FnMut(&Value) -> bool) -> bool {
    let list = rule[list].as_array();
    list.is_none_or(Vec::is_empty) || list.into_iter().flatten().any(allows)
}

/// `namespace` is the policy's own.
fn is_peer(named: &Value, peer: Peer<'_>, namespace: &str) -> bool {
    match peer {
        Peer::Address(address) => {
            only_known(named, &["ipBlock", "podSelector", "namespaceSelector"]);
            named.get("ipBlock").is_some_and(|block| {
                only_known(block, &["cidr"]);
                is_within(address, text(block, "/cidr"))
            })
        }
        // An address behind a selector of pods is of no pod.
        Peer::Pod { .. } if named.get("ipBlock").is_some() => false,
        Peer::Pod { namespace: other, labels } => {
            let is_there = named.get("namespaceSelector").map_or(other == namespace, |selector| {
                only_known(&selector["matchLabels"], &[NAMESPACE_NAME]);
                fits(selector, &json!({ NAMESPACE_NAME: other }))
            });
            is_there && named.get("podSelector").is_none_or(|selector| fits(selector, labels))
        }
    }
}

fn is_port(named: &Value, port: Port<'_>) -> bool {
    only_known(named, &["port", "protocol"]);
    let is_same = match &named["port"] {
        // All ports of the protocol.
        Value::Null => true,
        Value::String(name) => name == port.name,
        number => *number == port.number,
    };
    is_same && named["protocol"].as_str().unwrap_or("TCP") == port.protocol
}

fn fits(selector: &Value, labels: &Value) -> bool {
    only_known(selector, &["matchLabels"]);
    let wanted = selector["matchLabels"].as_object();
    wanted.into_iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
}

fn is_within(address: IpAddr, network: &str) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(four) => u128::from(u32::from(four)) << 96,
        IpAddr::V6(six) => u128::from(six),
    };
    let (first, length) = network.split_once('/').expect("a network with its length");
    let first: IpAddr = first.parse().expect("an address");
    let length: u32 = length.parse().expect("a number of bits");
    assert!(length > 0, "{network} is every address");
    first.is_ipv4() == address.is_ipv4() && (bits(first) ^ bits(address)) >> (128 - length) == 0
}

#[track_caller]
fn only_known(value: &Value, known: &[&str]) {
    let keys = value.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    let unknown: Vec<&str> = keys.filter(|key| !known.contains(key)).collect();
    assert!(unknown.is_empty(), "teach this module {unknown:?} of {value}");
}
