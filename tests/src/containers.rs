//! Machines for containers, with a real podman or a real Kubernetes, of which nothing is left when
//! they are dropped.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::machine::{Machine, Run};
use crate::{Nix, part, parts};

/// Making name spaces takes milliseconds; busy machines are slow at times.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Longer than the kernel takes to end the processes of a namespace.
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// A running `scripts/container-host.sh` or `scripts/kubernetes-host.sh`, joined to this machine by
/// one cable.
#[derive(Debug)]
pub struct ContainerHost {
    process: Child,
    /// Number of its first process.
    id: u32,
    folder: TempDir,
}

impl ContainerHost {
    /// Starts one with podman. Wants root, or a sudo that asks for nothing.
    pub fn start() -> Self {
        Self::of_script("container-host.sh", &part("podman"))
    }

    /// Starts what a script makes of a Debian tree.
    pub(crate) fn of_script(script: &str, tree: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("containers-").tempdir_in(parts::scratch_folder());
        let folder = folder.expect("a folder");
        for name in ["bin", "machines"] {
            fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        let inside = folder.path().join("bin/dormer");
        // A link is free; another file system needs the copy.
        if fs::hard_link(parts::binary(), &inside).is_err() {
            fs::copy(parts::binary(), &inside).expect("the binary under test can be copied");
        }
        let log = folder.path().join("host.log");
        let output = File::create(&log).expect("the folder is new");
        let mut command = as_root(parts::workspace_root().join("scripts").join(script));
        let mut process = command
            .arg(tree)
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("a file handle can be cloned"))
            .stderr(output)
            .spawn()
            .expect("the script starts");
        let begin = Instant::now();
        let id = loop {
            let said = fs::read_to_string(&log).unwrap_or_default();
            // The line must be whole: half a number is a number too.
            if let Some((_, rest)) = said.split_once("ready ")
                && let Some((id, _)) = rest.split_once('\n')
            {
                break id.parse().expect("a number of a process");
            }
            let ended = process.try_wait().expect("our own child can be waited for");
            assert!(
                ended.is_none() && begin.elapsed() < READY_TIMEOUT,
                "no container host: {ended:?}\n{said}"
            );
            thread::sleep(Duration::from_millis(20));
        };
        let host = Self { process, id, folder };
        host.connect();
        host
    }

    /// Joins the two networks. The cable goes when either end does.
    fn connect(&self) {
        let (near, far) = (format!("dormer{}", self.id), "outside");
        let ip = |words: &str| {
            Run::of(as_root("ip").args(words.split_whitespace())).succeeds();
        };
        ip(&format!("link add {near} type veth peer name {far} netns {}", self.id));
        ip(&format!("address add {}/30 dev {near}", self.ip(1)));
        ip(&format!("link set {near} up"));
        for words in [format!("address add {}/30 dev {far}", self.ip(2)), format!("link set {far} up")] {
            let mut command = self.in_network("ip");
            Run::of(command.args(words.split_whitespace())).succeeds();
        }
    }

    /// One of four addresses that no other running host has. The block is the one for tests of
    /// networks (RFC 2544).
    fn ip(&self, number: u32) -> String {
        let place = self.id % (1 << 14) * 4 + number;
        format!("198.18.{}.{}", place >> 8, place & 255)
    }

    /// Where this machine reaches what listens on all addresses there.
    pub fn address(&self) -> String {
        self.ip(2)
    }

    /// A folder that containers' builds see as `/host`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs podman. A command that takes longer than two minutes has failed.
    pub fn podman(&self, arguments: &[&str]) -> Run {
        // Its timers would need systemd; the test asks for the health of containers itself.
        let variables = ["DISABLE_HC_SYSTEMD=true", "PODMAN_IGNORE_CGROUPSV1_WARNING=1"];
        self.inside(&variables, &[&["podman"], arguments].concat())
    }

    /// Runs a program of the machine, with nothing but these variables. One that takes longer than
    /// two minutes has failed.
    pub(crate) fn inside(&self, variables: &[&str], words: &[&str]) -> Run {
        let mut command = as_root("env");
        command.args([
            "-i",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root",
        ]);
        command.args(variables);
        command.args(["timeout", "120", "nsenter", &format!("--target={}", self.id)]);
        command.args(["--mount", "--pid", "--net", "--ipc", "--uts", "--root", "--wdns=/"]);
        Run::of(command.args(words))
    }

    /// A command that has the files of this machine and the network there. It ends with the host.
    pub fn in_network(&self, program: impl AsRef<Path>) -> Command {
        let mut command = as_root("nsenter");
        command.arg(format!("--target={}", self.id)).args(["--net", "--pid", "--"]).arg(program.as_ref());
        command
    }

    /// Writes a file below [`folder`](Self::folder), and returns the path that podman sees.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder().join(name);
        fs::create_dir_all(path.parent().expect("a file has a folder")).expect("a folder");
        let mut file = File::create(path).expect("our own folder can be written");
        file.write_all(text.as_bytes()).expect("our own folder can be written");
        format!("/host/{name}")
    }

    /// A machine with Nix, on this side of the cable.
    pub fn machine(&self, name: &str, nix: Nix) -> Machine {
        Machine::new(self.folder(), name, nix)
    }
}

impl Drop for ContainerHost {
    fn drop(&mut self) {
        // It lives as long as its input.
        drop(self.process.stdin.take());
        let begin = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) && begin.elapsed() < END_TIMEOUT {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The groups of containers outlive them. Only empty ones can be removed.
        for name in ["*/libpod_parent*", "*/kubepods*"] {
            let mut groups = as_root("find");
            groups.args(["/sys/fs/cgroup", "-depth", "-type", "d", "-path", name]);
            let _ = groups.args(["-exec", "rmdir", "{}", ";"]).stderr(Stdio::null()).status();
        }
        // Store paths are read-only: only root could remove them.
        let _ = Command::new("chmod").args(["-R", "u+w"]).arg(self.folder().join("machines")).status();
    }
}

/// A command that runs as root.
fn as_root(program: impl Into<PathBuf>) -> Command {
    let program = program.into();
    if fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("--non-interactive").arg(program);
    command
}
