//! A running server, with a data folder of its own.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::http::{self, Reply};
use crate::machine::{Machine, Run};
use crate::{Nix, parts};

/// A start in an empty folder makes keys and a database; on a busy two-core machine that was seen to take a second.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How a lab differs from the default one.
#[derive(Debug, Clone, Default)]
pub struct LabOptions {
    /// Environment of the server.
    pub environment: Vec<(String, String)>,
    /// Memory that the server may use in all, enforced by a control group where this machine lets us make one.
    pub memory_bytes_max: Option<u64>,
}

/// A running `dormer serve`.
#[derive(Debug)]
pub struct Lab {
    folder: TempDir,
    options: LabOptions,
    server: Option<Child>,
    address: String,
    control_group: Option<PathBuf>,
}

impl Lab {
    /// Starts a server on the embedded default, in an empty folder, on a free port.
    pub fn start() -> Self {
        Self::start_with(LabOptions::default())
    }

    /// Starts a server that differs from the default in `options`.
    pub fn start_with(options: LabOptions) -> Self {
        let folder =
            tempfile::Builder::new().prefix("lab-").tempdir_in(parts::scratch_folder()).expect("a folder");
        for name in ["bin", "home", "machines"] {
            fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        let inside = folder.path().join("bin/dormer");
        // The trees see only this folder. A link is free; another file system needs the copy.
        if fs::hard_link(parts::binary(), &inside).is_err() {
            fs::copy(parts::binary(), &inside).expect("the binary under test can be copied");
        }
        let control_group =
            options.memory_bytes_max.and_then(|limit| make_control_group(folder.path(), limit));
        let mut lab =
            Self { folder, options, server: None, address: "127.0.0.1:0".to_owned(), control_group };
        lab.restart();
        lab
    }

    /// Starts the server again, on the address it had, after [`Lab::kill`].
    pub fn restart(&mut self) {
        assert!(self.server.is_none(), "the server runs already");
        let log_path = self.log_path();
        let log = File::options().create(true).append(true).open(&log_path).expect("the log can be written");
        let old_log_len = log.metadata().expect("the log is a file").len();
        let mut command = match &self.control_group {
            // The shell joins the group before it becomes the server, so that no byte escapes the limit.
            Some(group) => {
                let mut command = Command::new("sh");
                command.arg("-c").arg(r#"echo $$ >"$0" && exec "$@""#).arg(group.join("cgroup.procs"));
                command.arg(self.binary());
                command
            }
            None => Command::new(self.binary()),
        };
        command
            .arg("serve")
            .arg("--data-dir")
            .arg(self.data_folder())
            .args(["--listen", &self.address])
            .env_clear()
            .env("HOME", self.folder.path().join("home"))
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            // The default address is for one server on a machine.
            .env("DORMER_METRICS_LISTEN", "off")
            .envs(self.options.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle can be cloned"))
            .stderr(log);
        self.server = Some(command.spawn().expect("the binary under test starts"));
        self.address = self.wait_until_ready(old_log_len);
    }

    /// Waits for the line with the address, and for the port to answer.
    fn wait_until_ready(&mut self, log_offset: u64) -> String {
        let start = Instant::now();
        loop {
            let server = self.server.as_mut().expect("the server was started");
            if let Some(status) = server.try_wait().expect("our own child can be waited for") {
                panic!("the server ended with {status} before it listened:\n{}", self.log());
            }
            assert!(start.elapsed() < READY_TIMEOUT, "the server does not listen:\n{}", self.log());
            let mut log = File::open(self.log_path()).expect("the log exists");
            log.seek(SeekFrom::Start(log_offset)).expect("the log only grows");
            let mut text = Vec::new();
            log.read_to_end(&mut text).expect("the log can be read");
            if let Some(address) = find_address(&String::from_utf8_lossy(&text))
                && TcpStream::connect(&address).is_ok()
            {
                return address;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills the server as a power cut would, as far as a process can be: no signal handler runs.
    pub fn kill(&mut self) {
        let mut server = self.server.take().expect("the server runs");
        server.kill().expect("our own child can be killed");
        server.wait().expect("our own child can be waited for");
    }

    /// Whether the server still runs.
    pub fn is_alive(&mut self) -> bool {
        let server = self.server.as_mut().expect("the server was started");
        server.try_wait().expect("our own child can be waited for").is_none()
    }

    /// Host and port of the server.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The server's URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A cache's URL, as it stands in nix.conf.
    pub fn cache_url(&self, cache: &str) -> String {
        format!("http://{}/{cache}", self.address)
    }

    /// A token that may do everything, as the first start wrote it.
    pub fn admin_token(&self) -> String {
        let path = self.data_folder().join("admin-token");
        fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("no admin token at {}: {error}", path.display()))
            .trim()
            .to_owned()
    }

    /// A token made offline by `dormer token create` with these further arguments.
    pub fn token(&self, arguments: &[&str]) -> String {
        let data_folder = self.data_folder();
        let data_folder = data_folder.to_str().expect("our folders are UTF-8");
        let mut all = vec!["token", "create", "--data-dir", data_folder, "--sub", "test", "--validity", "1d"];
        all.extend(arguments);
        self.dormer(&all).succeeds().trim().to_owned()
    }

    /// Runs the client outside of all machines, with a home of its own.
    pub fn dormer(&self, arguments: &[&str]) -> Run {
        let home = self.folder.path().join("home");
        let mut command = Command::new(self.binary());
        command
            .args(arguments)
            .env_clear()
            .env("HOME", &home)
            .env("PATH", "/usr/bin:/bin")
            .env("NO_COLOR", "1");
        Run::of(&mut command)
    }

    /// Logs the client in as the administrator, outside of all machines.
    pub fn login(&self) {
        self.dormer(&["login", "lab", &self.url(), &self.admin_token(), "--set-default"]).succeeds();
    }

    /// Logs in and creates a cache with these further arguments.
    pub fn create_cache(&self, cache: &str, arguments: &[&str]) {
        self.login();
        let mut all = vec!["cache", "create", cache];
        all.extend(arguments);
        self.dormer(&all).succeeds();
    }

    /// A new machine with an empty store.
    pub fn machine(&self, name: &str, nix: Nix) -> Machine {
        Machine::new(self.folder.path(), name, nix)
    }

    /// A GET with the administrator's token.
    pub fn get(&self, path: &str) -> Reply {
        http::get(&self.address, path, Some(&self.admin_token()))
    }

    /// What `GET cache-config` says of a cache.
    pub fn cache_config(&self, cache: &str) -> Value {
        let reply = self.get(&format!("/_api/v1/cache-config/{cache}"));
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    }

    /// The public key of a cache, as it stands in nix.conf.
    pub fn public_key(&self, cache: &str) -> String {
        self.cache_config(cache)["public_key"].as_str().expect("a cache has a public key").to_owned()
    }

    /// The most memory that the server had at once, in bytes, as the kernel counts it.
    pub fn peak_memory_bytes(&self) -> u64 {
        let server = self.server.as_ref().expect("the server runs");
        let status = fs::read_to_string(format!("/proc/{}/status", server.id())).expect("the server runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux counts it");
        let kib: u64 =
            line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number of KiB");
        kib * 1024
    }

    /// Where the server keeps everything.
    pub fn data_folder(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What the server said so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    fn binary(&self) -> PathBuf {
        self.folder.path().join("bin/dormer")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            // It may be dead already, which is what the test then reports.
            let _ = server.kill();
            let _ = server.wait();
        }
        if thread::panicking() {
            show_log_end(&self.log());
        }
        if let Some(group) = &self.control_group {
            let _ = fs::remove_dir(group);
        }
        // Store paths are read-only; who is not root could not remove them.
        let _ = Command::new("chmod").args(["-R", "u+w"]).arg(self.folder.path().join("machines")).status();
    }
}

#[expect(clippy::print_stderr, reason = "a failed test is read by a person")]
fn show_log_end(log: &str) {
    let lines: Vec<&str> = log.lines().collect();
    let end = lines[lines.len().saturating_sub(40)..].join("\n");
    eprintln!("--- end of the server's log\n{end}\n---");
}

/// The address in a line such as `listening on http://127.0.0.1:41234`.
fn find_address(log: &str) -> Option<String> {
    // The line must be whole: half a port is a port too.
    let (_, rest) = log.split_once("listening on http://")?;
    let (line, _) = rest.split_once('\n')?;
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || ".:[]".contains(c))).unwrap_or(line.len());
    Some(line[..end].to_owned())
}

/// A control group with a memory limit, in either version of the interface; none where we may not make one. Then only the
/// kernel's count of the process's memory speaks, which the tests check in any case.
fn make_control_group(folder: &Path, limit: u64) -> Option<PathBuf> {
    let name = format!("dormer-{}", folder.file_name()?.to_str()?);
    for (parent, file) in
        [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
    {
        let group = Path::new(parent).join(&name);
        if fs::create_dir(&group).is_err() {
            continue;
        }
        if fs::write(group.join(file), limit.to_string()).is_ok() {
            return Some(group);
        }
        let _ = fs::remove_dir(&group);
    }
    None
}
