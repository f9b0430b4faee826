//! A real Kubernetes of one node, in namespaces of its own. `scripts/get-kubernetes.sh` builds it.

use std::path::PathBuf;

use crate::{ContainerHost, Run, part, parts};

/// Longer than any wait that a test asks `kubectl` for.
const KUBECTL_TIMEOUT_SECONDS: &str = "400";

/// Says in the folder of the host where the API listens, and with which token.
const SETTINGS_FILE: &str = "kubeconfig";

/// A running node (`scripts/kubernetes-host.sh` and `scripts/kubernetes-node.sh`).
#[derive(Debug)]
pub struct Kubernetes {
    host: ContainerHost,
    /// What pods can resolve: `NAME=ADDRESS`.
    names: Vec<String>,
}

impl Kubernetes {
    /// Starts a node without pods. `names` are the Services whose names pods can resolve, with the
    /// addresses that the test gives them. Wants root, or a sudo that asks for nothing.
    pub fn start(names: &[(&str, &str)]) -> Self {
        let host = ContainerHost::of_script("kubernetes-host.sh", &built());
        let names = names.iter().map(|(name, address)| format!("{name}={address}")).collect();
        let node = Self { host, names };
        node.boot();
        node
    }

    fn boot(&self) {
        let mut words = vec!["/local/bin/node", "start"];
        words.extend(self.names.iter().map(String::as_str));
        self.host.inside(&[], &words).succeeds();
    }

    /// Ends all processes of the node at once, and boots it. Its disk is what it was.
    pub fn restart(&self) {
        self.host.inside(&[], &["/local/bin/node", "cut"]).succeeds();
        self.boot();
    }

    /// The machine that the node is.
    pub fn host(&self) -> &ContainerHost {
        &self.host
    }

    /// Loads an archive of images, which lies in the folder of the host.
    pub fn load_images(&self, name: &str) {
        self.host.inside(&[], &["/local/bin/node", "images", &format!("/host/{name}")]).succeeds();
    }

    /// Runs Kubernetes' own client, as administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Run {
        let folder = self.host.folder();
        let mut command = self.host.in_network("env");
        // This Kubernetes is older than commands over WebSockets.
        command.arg("KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false").args(["timeout", KUBECTL_TIMEOUT_SECONDS]);
        command.arg(part("deploy-tools/bin/kubectl"));
        command.arg("--kubeconfig").arg(folder.join(SETTINGS_FILE));
        command.arg("--cache-dir").arg(folder.join("kubectl-cache"));
        Run::of(command.args(arguments))
    }

    /// What the programs of the node said, shortened.
    pub fn logs(&self) -> String {
        let show = "tail -n 25 /var/log/node/*.log";
        self.host.inside(&[], &["/usr/bin/bash", "-c", show]).to_string()
    }
}

/// The tree with the programs. Panics if they were not built.
fn built() -> PathBuf {
    let tree = parts::parts_folder().join("kubernetes");
    assert!(
        tree.join("usr/local/bin/kubelet").exists(),
        "no {}: run ./test --long, or scripts/get-kubernetes.sh {}",
        tree.display(),
        parts::parts_folder().display()
    );
    tree
}
