//! PgBouncer before a real PostgreSQL: what most managed databases put between a server and its users.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::daemon::{Daemon, free_port, wait_until};
use super::folder::own_folder;
use super::postgres::{Postgres, USER, give_away, user_options};

/// How long starting may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// For how long a client has a connection of the server for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// As long as it is connected.
    Session,
    /// From `BEGIN` to `COMMIT`; what was set or listened to before belongs to somebody else afterwards.
    Transaction,
}

/// A running pooler. Dropped, it is killed.
#[derive(Debug)]
pub struct PgBouncer {
    // Goes before its folder.
    daemon: Option<Daemon>,
    folder: TempDir,
    port: u16,
}

impl PgBouncer {
    /// Starts one before a server. By transaction, four connections a database are shared by all; by session, everybody gets one.
    pub fn start(server: &Postgres, mode: PoolMode) -> Self {
        let folder = own_folder("pgbouncer");
        let port = free_port();
        let (mode, size) = match mode {
            PoolMode::Session => ("session", 60),
            PoolMode::Transaction => ("transaction", 4),
        };
        let users = folder.path().join("users");
        fs::write(&users, format!("\"{USER}\" \"\"\n")).expect("the folder is writable");
        // Connections of databases that nobody uses any more go after a second: tests make many.
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = {mode}\ndefault_pool_size = {size}\n\
             max_client_conn = 900\nserver_idle_timeout = 1\nserver_login_retry = 1\n",
            server.port(),
            users.display(),
        );
        fs::write(folder.path().join("settings"), settings).expect("the folder is writable");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        give_away(&users);
        let mut pooler = Self { folder, port, daemon: None };
        pooler.restart();
        pooler
    }

    /// How a client names a database here. `url` is what [`Postgres`] calls it.
    pub fn url(&self, url: &str) -> String {
        let (_, database) = url.rsplit_once('/').expect("a URL with a database");
        format!("postgresql://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    /// Ends it at once, with all connections through it.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// Starts it again on the same port, and waits until it takes connections.
    pub fn restart(&mut self) {
        self.kill();
        let settings = self.folder.path().join("settings").display().to_string();
        let program = Path::new("/usr/sbin/pgbouncer");
        assert!(program.exists(), "PgBouncer is installed: scripts/get-services.sh brings it");
        let log = self.folder.path().join("log");
        let daemon = self.daemon.insert(Daemon::spawn(&user_options(), program, &[&settings], &log));
        wait_until("PgBouncer takes connections", PATIENCE, || {
            assert!(daemon.is_running(), "PgBouncer ended: {}", daemon.log_tail());
            std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }
}
