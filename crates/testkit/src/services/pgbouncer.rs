//! PgBouncer in front of a real PostgreSQL, as in most managed databases.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::daemon::{Daemon, free_port, wait_until};
use super::folder::own_folder;
use super::postgres::{Postgres, USER, give_away, user_options};

/// Time limit for starting on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// How long a client has a connection to the server for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// As long as the client is connected.
    Session,
    /// From `BEGIN` to `COMMIT`. Another client then gets the connection, with its settings and
    /// listeners.
    Transaction,
}

/// A running pooler. Dropping the value kills it.
#[derive(Debug)]
pub struct PgBouncer {
    // Dropped before its folder.
    daemon: Option<Daemon>,
    folder: TempDir,
    port: u16,
}

impl PgBouncer {
    /// Starts a pooler in front of a server. By transaction, all clients share four connections per
    /// database. By session, each client gets its own.
    pub fn start(server: &Postgres, mode: PoolMode) -> Self {
        let folder = own_folder("pgbouncer");
        let port = free_port();
        let (mode, size) = match mode {
            PoolMode::Session => ("session", 60),
            PoolMode::Transaction => ("transaction", 4),
        };
        let users = folder.path().join("users");
        fs::write(&users, format!("\"{USER}\" \"\"\n")).expect("the folder is writable");
        // Idle connections of a database end after a second, because tests make many databases.
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = {mode}\ndefault_pool_size = {size}\n\
             max_client_conn = 900\nserver_idle_timeout = 1\nserver_login_retry = 1\n",
            server.port(),
            users.display(),
        );
        fs::write(folder.path().join("settings"), settings).expect("the folder is writable");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("the folder is ours");
        give_away(&users);
        let mut pooler = Self { folder, port, daemon: None };
        pooler.restart();
        pooler
    }

    /// The URL of a database through the pooler. `url` is the URL from [`Postgres`].
    pub fn url(&self, url: &str) -> String {
        let (_, database) = url.rsplit_once('/').expect("a URL with a database");
        format!("postgresql://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    /// Kills the pooler at once, with all connections through it.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// Starts the pooler again on the same port, and waits until it accepts connections.
    pub fn restart(&mut self) {
        self.kill();
        let settings = self.folder.path().join("settings").display().to_string();
        let program = Path::new("/usr/sbin/pgbouncer");
        assert!(program.exists(), "PgBouncer is missing: run scripts/get-services.sh");
        let log = self.folder.path().join("log");
        let daemon = self.daemon.insert(Daemon::spawn(&user_options(), program, &[&settings], &log));
        wait_until("PgBouncer takes connections", PATIENCE, || {
            assert!(daemon.is_running(), "PgBouncer ended: {}", daemon.log_tail());
            std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }
}
