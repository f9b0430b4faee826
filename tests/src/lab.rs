//! A running lab: the embedded default, or, under `DORMER_TEST_LAB=production`, two replicas over
//! PostgreSQL and S3.
//!
//! The same tests run on both. In production they talk to a [`Balancer`], which gives each
//! connection to the next replica: a client's requests are spread over both, and nothing may depend
//! on which one answers.

use std::env;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use dormer_testkit::Inspection;
use dormer_testkit::services::{Postgres, S3Access, SeaweedFs};
use serde_json::Value;
use tempfile::TempDir;

use crate::balancer::Balancer;
use crate::http::{self, Reply};
use crate::machine::{Machine, Run};
use crate::{Nix, parts};

/// A start in an empty folder makes keys and a database; on a busy two-core machine that was seen
/// to take a second.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a server that is asked to stop may take: longer than its own limits for it.
const STOP_TIMEOUT: Duration = Duration::from_mins(10);

/// Replicas of a lab in production.
const REPLICAS: usize = 2;

/// How a lab differs from the default one.
#[derive(Debug, Clone, Default)]
pub struct LabOptions {
    /// Environment of the server.
    pub environment: Vec<(String, String)>,
    /// Its settings file; `LAB` in it stands for the lab's folder, which machines see too.
    pub settings: Option<String>,
    /// Memory that the server may use in all, enforced by a control group where this machine lets
    /// us make one.
    pub memory_bytes_max: Option<u64>,
    /// The data folder of the embedded default is a disk of this size.
    pub disk_bytes: Option<u64>,
}

/// A running `dormer serve`, or several.
#[derive(Debug)]
pub struct Lab {
    folder: TempDir,
    environment: Vec<(String, String)>,
    /// Whether it keeps everything in its data folder.
    embedded: bool,
    servers: Vec<Server>,
    balancer: Option<Balancer>,
    admin_token: OnceLock<String>,
    control_group: Option<PathBuf>,
    disk: Option<Disk>,
}

/// A file system of its own where the data folder is. A process holds it, so it outlives the
/// server.
#[derive(Debug)]
struct Disk {
    holder: Child,
}

/// One replica. Its log is in the lab's folder.
#[derive(Debug)]
struct Server {
    name: String,
    /// Port 0 before the first start; later the one that was given.
    address: String,
    process: Option<Child>,
}

impl Lab {
    /// Starts a lab that holds nothing yet, on free ports.
    pub fn start() -> Self {
        Self::start_with(LabOptions::default())
    }

    /// Starts two replicas over PostgreSQL and S3, whatever the environment says.
    pub fn start_production() -> Self {
        Self::start_production_with(LabOptions::default())
    }

    /// The same, with `options`: an environment that names another database or store replaces the
    /// shared one.
    pub fn start_production_with(options: LabOptions) -> Self {
        Self::start_as(false, options)
    }

    /// Starts a lab that differs from the default in `options`.
    pub fn start_with(options: LabOptions) -> Self {
        let embedded = match env::var("DORMER_TEST_LAB").as_deref() {
            Err(_) | Ok("embedded") => true,
            Ok("production") => false,
            Ok(other) => panic!("DORMER_TEST_LAB is `embedded` or `production`, not `{other}`"),
        };
        Self::start_as(embedded, options)
    }

    fn start_as(embedded: bool, options: LabOptions) -> Self {
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
        let mut environment = if embedded { Vec::new() } else { production_environment() };
        // A test that brings its own secret for tokens replaces ours: one may be set.
        if options.environment.iter().any(|(name, _)| name.contains("TOKEN_")) {
            environment.retain(|(name, _)| !name.contains("TOKEN_"));
        }
        environment.extend(options.environment);
        if let Some(text) = options.settings {
            let path = folder.path().join("dormer.toml");
            let lab = folder.path().to_str().expect("our folders are UTF-8");
            fs::write(&path, text.replace("LAB", lab)).expect("the folder is new");
            environment.push(("DORMER_CONFIG".to_owned(), path.display().to_string()));
        }
        let disk = options.disk_bytes.map(|bytes| Disk::mount(bytes, &folder.path().join("data")));
        let replicas = if embedded { 1 } else { REPLICAS };
        let servers = (1..=replicas)
            .map(|number| Server {
                name: format!("server-{number}"),
                address: "127.0.0.1:0".to_owned(),
                process: None,
            })
            .collect();
        let mut lab = Self {
            folder,
            environment,
            embedded,
            servers,
            balancer: None,
            admin_token: OnceLock::new(),
            control_group,
            disk,
        };
        lab.restart();
        if !embedded {
            lab.balancer =
                Some(Balancer::new(lab.servers.iter().map(|server| server.address.clone()).collect()));
        }
        lab
    }

    /// Starts every server that does not run, on the address it had.
    pub fn restart(&mut self) {
        assert!(self.servers.iter().any(|server| server.process.is_none()), "all servers run already");
        // All at once: a first start must bear company.
        let stopped: Vec<usize> =
            (0..self.servers.len()).filter(|&number| self.servers[number].process.is_none()).collect();
        let log_ends: Vec<u64> = stopped.iter().map(|&number| self.spawn(number)).collect();
        for (number, log_end) in stopped.into_iter().zip(log_ends) {
            self.servers[number].address = self.wait_until_ready(number, log_end);
            if let Some(balancer) = &self.balancer {
                balancer.set_resting(number, false);
            }
        }
    }

    /// Starts a server and returns where its log ended before.
    fn spawn(&mut self, number: usize) -> u64 {
        let log = File::options().create(true).append(true).open(self.log_path(&self.servers[number]));
        let log = log.expect("the log can be written");
        let old_log_len = log.metadata().expect("the log is a file").len();
        let mut command = match &self.control_group {
            // The shell joins the group before it becomes the server, so that no byte escapes the
            // limit.
            Some(group) => {
                let mut command = Command::new("sh");
                command.arg("-c").arg(r#"echo $$ >"$0" && exec "$@""#).arg(group.join("cgroup.procs"));
                command.arg(self.binary());
                command
            }
            None => match &self.disk {
                Some(disk) => disk.command(&self.binary()),
                None => Command::new(self.binary()),
            },
        };
        command.arg("serve").args(["--listen", &self.servers[number].address]);
        if self.embedded {
            command.arg("--data-dir").arg(self.folder.path().join("data"));
        }
        command
            .env_clear()
            .env("HOME", self.folder.path().join("home"))
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            // The default address is for one server on a machine.
            .env("DORMER_METRICS_LISTEN", "off")
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle can be cloned"))
            .stderr(log);
        self.servers[number].process = Some(command.spawn().expect("the binary under test starts"));
        old_log_len
    }

    /// Waits for the line with the address, and for the port to answer.
    fn wait_until_ready(&mut self, number: usize, log_offset: u64) -> String {
        let start = Instant::now();
        let log_path = self.log_path(&self.servers[number]);
        loop {
            let server = self.servers[number].process.as_mut().expect("the server was started");
            if let Some(status) = server.try_wait().expect("our own child can be waited for") {
                panic!("the server ended with {status} before it listened:\n{}", self.log());
            }
            assert!(start.elapsed() < READY_TIMEOUT, "the server does not listen:\n{}", self.log());
            let mut log = File::open(&log_path).expect("the log exists");
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

    /// Kills every server as a power cut would, as far as a process can be: no signal handler runs.
    pub fn kill(&mut self) {
        for server in &mut self.servers {
            let mut process = server.process.take().expect("the server runs");
            process.kill().expect("our own child can be killed");
            process.wait().expect("our own child can be waited for");
        }
    }

    /// Kills one replica (SIGKILL); the balancer spares it until [`restart`](Self::restart).
    pub fn kill_one(&mut self, number: usize) {
        let mut process = self.servers[number].process.take().expect("the server runs");
        process.kill().expect("our own child can be killed");
        process.wait().expect("our own child can be waited for");
        self.balancer.as_ref().expect("a lab in production").set_resting(number, true);
    }

    /// Restarts one replica after the other as an update does: asked to stop, it says that it is
    /// not ready, the balancer spares it, it ends by itself and well, and comes back. Panics if a
    /// replica does not do its part.
    pub fn restart_in_turn(&mut self) {
        for number in 0..self.servers.len() {
            let address = self.servers[number].address.clone();
            let balancer = self.balancer.as_ref().expect("a lab in production");
            let process = self.servers[number].process.as_mut().expect("the server runs");
            Run::of(Command::new("kill").args(["-TERM", &process.id().to_string()])).succeeds();
            let begin = Instant::now();
            while http::get(&address, "/readyz", None).status != 503 {
                assert!(begin.elapsed() < READY_TIMEOUT, "asked to stop, it says that it is ready");
                thread::sleep(Duration::from_millis(20));
            }
            balancer.set_resting(number, true);
            let status = loop {
                if let Some(status) = process.try_wait().expect("our own child can be waited for") {
                    break status;
                }
                assert!(begin.elapsed() < STOP_TIMEOUT, "asked to stop, it runs on");
                thread::sleep(Duration::from_millis(20));
            };
            assert!(status.success(), "asked to stop, it ended with {status}");
            self.servers[number].process = None;
            self.restart();
        }
    }

    /// Whether every server still runs.
    pub fn is_alive(&mut self) -> bool {
        self.servers.iter_mut().all(|server| {
            let process = server.process.as_mut().expect("the server was started");
            process.try_wait().expect("our own child can be waited for").is_none()
        })
    }

    /// Process ids of the servers, which must all run.
    pub fn process_ids(&self) -> Vec<u32> {
        let processes = self.servers.iter().map(|server| server.process.as_ref());
        processes.map(|process| process.expect("the server runs").id()).collect()
    }

    /// Addresses of the servers themselves.
    pub fn replicas(&self) -> Vec<&str> {
        self.servers.iter().map(|server| server.address.as_str()).collect()
    }

    /// Host and port that clients use.
    pub fn address(&self) -> &str {
        self.balancer.as_ref().map_or(self.servers[0].address.as_str(), Balancer::address)
    }

    /// The lab's URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// A cache's URL, as it stands in nix.conf.
    pub fn cache_url(&self, cache: &str) -> String {
        format!("{}/{cache}", self.url())
    }

    /// A token that may do everything: the one that the first start wrote, or, where nothing is
    /// written to a disk, one made as its hint says.
    pub fn admin_token(&self) -> String {
        let token = self.admin_token.get_or_init(|| {
            let path = self.data_folder().join("admin-token");
            if self.embedded {
                return fs::read_to_string(&path)
                    .unwrap_or_else(|error| panic!("no admin token at {}: {error}", path.display()))
                    .trim()
                    .to_owned();
            }
            let everything = ["pull", "push", "delete", "create-cache", "configure-cache"];
            let more = ["configure-cache-retention", "destroy-cache"];
            let flags: Vec<String> =
                everything.iter().chain(&more).map(|what| format!("--{what}=*")).collect();
            self.token(&flags.iter().map(String::as_str).collect::<Vec<_>>())
        });
        token.clone()
    }

    /// A token made offline by `dormer token create` with these further arguments.
    pub fn token(&self, arguments: &[&str]) -> String {
        let data_folder = self.data_folder();
        let data_folder = data_folder.to_str().expect("our folders are UTF-8");
        let mut all = vec!["token", "create", "--sub", "test", "--validity", "1d"];
        if self.embedded {
            all.extend(["--data-dir", data_folder]);
        }
        all.extend(arguments);
        let mut command = self.command(&all);
        command.envs(self.environment.iter().cloned());
        Run::of(&mut command).succeeds().trim().to_owned()
    }

    /// Runs the client outside of all machines, with a home of its own.
    pub fn dormer(&self, arguments: &[&str]) -> Run {
        Run::of(&mut self.command(arguments))
    }

    /// The same, not started yet.
    pub fn client_process(&self, arguments: &[&str]) -> Command {
        self.command(arguments)
    }

    /// Runs a command that reads the server's settings, such as `publish`, with those that the
    /// servers were started with.
    pub fn server_command(&self, arguments: &[&str]) -> Run {
        Run::of(&mut self.server_process(arguments))
    }

    /// The same, not started yet.
    pub fn server_process(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.disk {
            // SQLite follows links, and would end behind the disk.
            Some(disk) => self.configured(disk.command(&self.binary()), arguments),
            None => self.command(arguments),
        };
        if self.embedded {
            command.env("DORMER_DATA_DIR", self.folder.path().join("data"));
        }
        command.envs(self.environment.iter().cloned());
        command
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.configured(Command::new(self.binary()), arguments)
    }

    fn configured(&self, mut command: Command, arguments: &[&str]) -> Command {
        let home = self.folder.path().join("home");
        command
            .args(arguments)
            .env_clear()
            .env("HOME", &home)
            .env("PATH", "/usr/bin:/bin")
            .env("NO_COLOR", "1");
        command
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
        http::get(self.address(), path, Some(&self.admin_token()))
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

    /// The most memory that a server had at once, in bytes, as the kernel counts it.
    pub fn peak_memory_bytes(&self) -> u64 {
        self.servers.iter().map(Server::peak_memory_bytes).max().expect("a lab has a server")
    }

    /// The lab's folder, which machines see too.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where an embedded lab keeps everything.
    pub fn data_folder(&self) -> PathBuf {
        let folder = self.folder.path().join("data");
        match &self.disk {
            // Only its holder and the server see the disk.
            Some(disk) => {
                let root = PathBuf::from(format!("/proc/{}/root", disk.holder.id()));
                root.join(folder.strip_prefix("/").expect("it is absolute"))
            }
            None => folder,
        }
    }

    /// Whether it runs on the embedded default.
    pub fn is_embedded(&self) -> bool {
        self.embedded
    }

    /// The pack files of an embedded lab.
    pub fn packs(&self) -> Vec<PathBuf> {
        packs(&self.data_folder())
    }

    /// Bytes of all packs.
    pub fn stored_bytes(&self) -> u64 {
        if self.embedded {
            let bytes = |pack: PathBuf| pack.metadata().expect("the pack is there").len();
            return self.packs().into_iter().map(bytes).sum();
        }
        let mut command = Command::new("psql");
        let sum = "SELECT COALESCE(SUM(size), 0) FROM packs";
        command.args([self.database_url(), "-X", "-A", "-t", "-c", sum]);
        Run::of(&mut command).succeeds().trim().parse().expect("a number")
    }

    /// The PostgreSQL database of a lab in production.
    fn database_url(&self) -> &str {
        let found = self.environment.iter().find(|(name, _)| name == "DORMER_DATABASE_URL");
        &found.expect("a lab in production").1
    }

    /// Runs a statement in its database, behind the servers' back, and returns its rows. An
    /// embedded lab must not run.
    pub fn sql(&self, statement: &str) -> String {
        let mut command = if self.embedded {
            // SQLite follows links, and would end behind the disk.
            let mut command = match &self.disk {
                Some(disk) => disk.command(Path::new("sqlite3")),
                None => Command::new("sqlite3"),
            };
            command.arg(self.folder.path().join("data/index.sqlite")).arg(statement);
            command
        } else {
            let mut command = Command::new("psql");
            command.args([self.database_url(), "-X", "-q", "-A", "-t", "-c", statement]);
            command
        };
        Run::of(&mut command).succeeds()
    }

    /// Its database and its store, behind the servers' back.
    pub fn inspection(&self) -> Inspection {
        if self.embedded {
            return Inspection::of_folder(&self.data_folder());
        }
        // What a test set itself stands behind what it replaces.
        let value = |wanted: &str| {
            let found = self.environment.iter().rev().find(|(name, _)| name == wanted);
            found.unwrap_or_else(|| panic!("{wanted} is set")).1.clone()
        };
        let access = S3Access {
            endpoint: value("DORMER_STORAGE_ENDPOINT"),
            region: value("DORMER_STORAGE_REGION"),
            access_key_id: value("DORMER_STORAGE_CREDENTIALS_ACCESS_KEY_ID"),
            secret_access_key: value("DORMER_STORAGE_CREDENTIALS_SECRET_ACCESS_KEY"),
        };
        Inspection::of_services(&value("DORMER_DATABASE_URL"), &access, &value("DORMER_STORAGE_BUCKET"))
    }

    /// What the servers said so far, one after the other.
    pub fn log(&self) -> String {
        self.servers
            .iter()
            .map(|server| {
                String::from_utf8_lossy(&fs::read(self.log_path(server)).unwrap_or_default()).into_owned()
            })
            .collect()
    }

    fn log_path(&self, server: &Server) -> PathBuf {
        self.folder.path().join(format!("{}.log", server.name))
    }

    fn binary(&self) -> PathBuf {
        self.folder.path().join("bin/dormer")
    }
}

impl Disk {
    fn mount(bytes: u64, folder: &Path) -> Self {
        fs::create_dir_all(folder).expect("a folder");
        let mut command = Command::new("unshare");
        if !is_root() {
            command.arg("--map-root-user");
        }
        command.args(["--mount", "--propagation", "private", "sh", "-euc"]);
        command.arg(r#"mount -t tmpfs -o "size=$0" tmpfs "$1"; echo mounted; exec sleep infinity"#);
        command.arg(bytes.to_string()).arg(folder).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("unshare starts");
        let mut said = [0; 8];
        let out = holder.stdout.as_mut().expect("it is piped");
        out.read_exact(&mut said).expect("the disk is mounted");
        Self { holder }
    }

    /// A command that sees the disk.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.holder.id())).arg("--mount");
        // Root needs no other name space of users.
        if !is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg(program);
        command
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

impl Server {
    fn peak_memory_bytes(&self) -> u64 {
        let process = self.process.as_ref().expect("the server runs");
        let status = fs::read_to_string(format!("/proc/{}/status", process.id())).expect("the server runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux counts it");
        let kib: u64 =
            line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number of KiB");
        kib * 1024
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for process in self.servers.iter_mut().filter_map(|server| server.process.as_mut()) {
            // It may be dead already, which is what the test then reports.
            let _ = process.kill();
            let _ = process.wait();
        }
        if thread::panicking() {
            show_log_end(&self.log());
        }
        if let Some(group) = &self.control_group {
            let _ = fs::remove_dir(group);
        }
        // Store paths are read-only: only root could remove them.
        let _ = Command::new("chmod").args(["-R", "u+w"]).arg(self.folder.path().join("machines")).status();
    }
}

#[expect(clippy::print_stderr, reason = "a failed test is read by a person")]
fn show_log_end(log: &str) {
    let lines: Vec<&str> = log.lines().collect();
    let end = lines[lines.len().saturating_sub(40)..].join("\n");
    eprintln!("--- end of the server's log\n{end}\n---");
}

/// All packs below a folder.
fn packs(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .expect("the folder can be read")
        .map(|entry| entry.expect("the folder can be read").path())
        .flat_map(|path| match path.extension() {
            _ if path.is_dir() => packs(&path),
            Some(extension) if extension == "pack" => vec![path],
            _ => Vec::new(),
        })
        .collect()
}

/// A database and a bucket of their own, in services that the test program's labs share, and the
/// keys that replicas share.
fn production_environment() -> Vec<(String, String)> {
    static STORE: OnceLock<SeaweedFs> = OnceLock::new();
    let store = STORE.get_or_init(SeaweedFs::start);
    [
        ("DORMER_DATABASE_URL", Postgres::shared().create_database()),
        ("DORMER_STORAGE_TYPE", "s3".to_owned()),
        ("DORMER_STORAGE_ENDPOINT", store.endpoint().to_owned()),
        ("DORMER_STORAGE_BUCKET", store.new_bucket()),
        ("DORMER_STORAGE_REGION", "us-east-1".to_owned()),
        ("DORMER_STORAGE_CREDENTIALS_ACCESS_KEY_ID", store.access().access_key_id.clone()),
        ("DORMER_STORAGE_CREDENTIALS_SECRET_ACCESS_KEY", store.access().secret_access_key.clone()),
        ("DORMER_MASTER_KEY", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=".to_owned()),
        (
            "DORMER_JWT_SIGNING_TOKEN_HS256_SECRET_BASE64",
            "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=".to_owned(),
        ),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// The address in a line such as `listening on http://127.0.0.1:41234`.
fn find_address(log: &str) -> Option<String> {
    // The line must be whole: half a port is a port too.
    let (_, rest) = log.split_once("listening on http://")?;
    let (line, _) = rest.split_once('\n')?;
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || ".:[]".contains(c))).unwrap_or(line.len());
    Some(line[..end].to_owned())
}

/// A control group with a memory limit, in either version of the interface; none where we may not
/// make one. Then only the kernel's count of the process's memory speaks, which the tests check in
/// any case.
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
