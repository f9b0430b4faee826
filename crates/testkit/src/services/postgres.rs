//! A real PostgreSQL with a fresh data folder, a free port, and durability on as in production.
//!

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::OnceCell;

use super::certificates::Certificates;
use super::daemon::{Daemon, free_port, wait_until};
use super::folder::own_folder;

/// Name of the superuser; connections from 127.0.0.1 need no password.
pub(super) const USER: &str = "dormer";

/// Time limit for starting and stopping on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// A running server. Dropping the value removes its data.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    folder: PathBuf,
    port: u16,
    settings: Vec<String>,
    daemon: Mutex<Option<Daemon>>,
    databases: AtomicU32,
    index_template: OnceCell<String>,
}

impl Postgres {
    /// Starts a server with an empty data folder.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with additional settings, such as `fsync=off`.
    pub fn start_with(settings: &[&str]) -> Self {
        let server = Self::prepare(settings);
        server.launch(&[]);
        server
    }

    fn prepare(settings: &[&str]) -> Self {
        let folder = own_folder("postgres").keep();
        let server = Self {
            programs: programs(),
            folder,
            port: free_port(),
            settings: settings.iter().map(|setting| (*setting).to_owned()).collect(),
            daemon: Mutex::new(None),
            databases: AtomicU32::new(0),
            index_template: OnceCell::const_new(),
        };
        server.make_cluster();
        server
    }

    /// One server for all tests of this program. Each test makes its own database.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// The URL of a database on this server.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    /// The port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Number of the server's first process, the parent of all others. Panics if the server does
    /// not run.
    pub fn process_id(&self) -> u32 {
        self.daemon().as_ref().expect("it runs").id()
    }

    /// A new, empty database; returns its URL.
    pub fn create_database(&self) -> String {
        self.create_database_like("template1")
    }

    /// A new database with what is in another one, to which nothing may be connected; returns its
    /// URL.
    pub(crate) fn create_database_like(&self, template: &str) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name} TEMPLATE {template}"));
        self.url(&name)
    }

    /// Name of the database with an index and no rows, once a test has needed one.
    pub(crate) fn index_template(&self) -> &OnceCell<String> {
        &self.index_template
    }

    /// Runs SQL as the superuser, and returns the rows as lines with `|` between columns.
    /// `database` is a name or a URL.
    pub fn sql(&self, database: &str, statements: &str) -> String {
        let url = if database.contains("://") { database.to_owned() } else { self.url(database) };
        let output = Command::new(self.programs.join("psql"))
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", &url, "-c", statements])
            .output()
            .expect("psql starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{statements}: {errors}\n{}", self.log_tail());
        String::from_utf8(output.stdout).expect("psql prints UTF-8").trim_end().to_owned()
    }

    /// Stops the server in an orderly way: it closes connections and writes everything. Its data
    /// stays.
    pub fn stop(&self) {
        let mut daemon = self.daemon();
        let Some(running) = daemon.as_mut() else { return };
        // "Fast shutdown".
        signal(running.id(), "INT");
        wait_until("PostgreSQL stops", PATIENCE, || !running.is_running());
        *daemon = None;
    }

    /// Kills the server at once, like a crash. Its data stays.
    pub fn kill(&self) {
        if let Some(mut running) = self.daemon().take() {
            running.kill();
        }
    }

    /// Starts the server again with the same data and port, after [`stop`](Self::stop),
    /// [`kill`](Self::kill) or while it runs.
    pub fn restart(&self) {
        self.restart_with(&[]);
    }

    /// Restarts with settings that hold until the next restart.
    pub fn restart_with(&self, settings: &[&str]) {
        self.stop();
        self.launch(settings);
    }

    /// Restarts the server as a standby without a primary, as after a failover that has not ended:
    /// it can be read and takes no writes. `SELECT pg_promote()` makes it a primary again.
    pub fn restart_as_standby(&self) {
        self.stop();
        let signal = self.data().join("standby.signal");
        fs::write(&signal, []).expect("the folder is ours");
        give_away(&signal);
        self.launch(&[]);
    }

    /// Starts a server with an empty data folder that offers TLS with this certificate, and also
    /// accepts connections without TLS.
    pub fn start_with_tls(certificates: &Certificates) -> Self {
        let mut server = Self::prepare(&[]);
        let hand_over = |from: PathBuf, name: &str| {
            let to = server.folder.join(name);
            fs::copy(from, &to).expect("the folder is ours");
            // The server refuses a key that other users may read.
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("the file is ours");
            give_away(&to);
            to.display().to_string()
        };
        let certificate = hand_over(certificates.certificate(), "server.pem");
        let key = hand_over(certificates.key(), "server.key");
        server.settings.push("ssl=on".to_owned());
        server.settings.push(format!("ssl_cert_file={certificate}"));
        server.settings.push(format!("ssl_key_file={key}"));
        server.launch(&[]);
        server
    }

    fn make_cluster(&self) {
        let data = self.data();
        let arguments =
            ["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--username", USER];
        give_away(&self.folder);
        let mut command = Command::new("setpriv");
        command.args(user_options()).arg("--").arg(self.programs.join("initdb"));
        // Other users may not enter root's home.
        command.args(arguments).arg("-D").arg(&data).current_dir("/");
        let output = command.stdin(Stdio::null()).output().expect("setpriv starts");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn launch(&self, more: &[&str]) {
        let data = self.data().display().to_string();
        let port = self.port.to_string();
        let sockets = format!("unix_socket_directories={}", self.folder.display());
        let mut arguments =
            vec!["-D", &data, "-p", &port, "-c", "listen_addresses=127.0.0.1", "-c", &sockets];
        // Small, because several servers run beside the tests. No shared setting affects
        // durability.
        arguments.extend(["-c", "max_connections=200", "-c", "shared_buffers=32MB"]);
        for setting in self.settings.iter().map(String::as_str).chain(more.iter().copied()) {
            arguments.extend(["-c", setting]);
        }
        let options = user_options();
        let mut daemon = self.daemon();
        let log = self.folder.join("log");
        wait_until("PostgreSQL accepts connections", PATIENCE, || {
            // After a crash, processes of the previous server may hold its memory for a moment, so
            // this starts it again.
            let running = daemon.as_mut().is_some_and(Daemon::is_running);
            if !running {
                *daemon = Some(Daemon::spawn(&options, &self.programs.join("postgres"), &arguments, &log));
            }
            self.accepts_connections()
        });
    }

    fn accepts_connections(&self) -> bool {
        let mut command = Command::new(self.programs.join("pg_isready"));
        command.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
        command.status().expect("pg_isready starts").success()
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn log_tail(&self) -> String {
        self.daemon().as_ref().map(Daemon::log_tail).unwrap_or_default()
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut running) = self.daemon().take() {
            // "Immediate shutdown": makes no checkpoint, but waits for its processes, which write
            // into the folder.
            let _ = Command::new("kill").args(["-s", "QUIT", &running.id().to_string()]).status();
            for _ in 0..100 {
                if !running.is_running() {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
        // If files remain, the start of the next server removes them.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The folder of the newest PostgreSQL that Debian installed.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = versions
        .filter_map(|version| Some((version.file_name().to_str()?.parse().ok()?, version.path().join("bin"))))
        .filter(|(_, programs)| programs.join("postgres").exists())
        .collect();
    versions.sort();
    versions.pop().expect("PostgreSQL must be installed: run scripts/get-services.sh").1
}

/// Makes the server's user the owner of a file or folder, if the server runs as another user.
pub(super) fn give_away(path: &Path) {
    if !user_options().is_empty() {
        let status = Command::new("chown").arg("postgres:postgres").arg(path).status();
        assert!(status.expect("chown starts").success(), "root may give files away");
    }
}

/// Options of `setpriv`, because neither the server nor its pooler runs as root.
pub(super) fn user_options() -> Vec<&'static str> {
    let own = fs::metadata("/proc/self").expect("there is a /proc").uid();
    if own != 0 {
        return Vec::new();
    }
    vec!["--reuid=postgres", "--regid=postgres", "--init-groups"]
}

fn signal(process: u32, signal: &str) {
    let status = Command::new("kill").args(["-s", signal, &process.to_string()]).status();
    assert!(status.expect("kill starts").success(), "the process is there");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_survives_stopping_and_crashing() {
        let server = Postgres::start();
        let url = server.create_database();
        assert_eq!(server.sql(&url, "SHOW fsync"), "on");
        server.sql(&url, "CREATE TABLE t (n INTEGER); INSERT INTO t VALUES (1)");
        server.restart();
        server.sql(&url, "INSERT INTO t VALUES (2)");
        server.kill();
        server.restart();
        assert_eq!(server.sql(&url, "SELECT n FROM t ORDER BY n"), "1\n2");
        assert_ne!(server.create_database(), url);
        let folder = server.folder.clone();
        drop(server);
        assert!(!folder.join("data").exists());
    }
}
