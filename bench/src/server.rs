//! A real `dormer serve` of the release build, with its own data folder.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use dormer_testkit::services::free_port;
use serde::Deserialize;

use crate::error::{Context, Error, Result};
use crate::http::Connection;
use crate::measure::{peak_memory_bytes, process_cpu_seconds};

/// The first cache of every installation.
pub(crate) const CACHE: &str = "main";
/// Time limit for a server to start or to end. After it, the benchmark fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// A running server. Dropping the value ends it.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) data: PathBuf,
    pub(crate) token: String,
}

/// The contents of a data folder.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stored {
    pub(crate) packs: u64,
    pub(crate) pack_bytes: u64,
    pub(crate) chunks: u64,
    /// The database file, including its WAL.
    pub(crate) database_bytes: u64,
    /// The part of the database for listings, including their indexes.
    pub(crate) listing_bytes: u64,
}

/// An address that nobody listens on.
pub(crate) fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// Asks a child to end, and waits for it.
pub(crate) fn terminate(child: &mut Child) {
    let asked = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status();
    let deadline = Instant::now() + PATIENCE;
    while asked.is_ok() && Instant::now() < deadline {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        sleep(Duration::from_millis(20));
    }
    // If even that fails, nothing is left to do: the benchmark is over.
    let _ = child.kill();
    let _ = child.wait();
}

impl Server {
    /// Starts a server on `data`, which is emptied first if `fresh`. `environment` holds its
    /// settings.
    pub(crate) fn start(
        binary: &Path,
        data: &Path,
        fresh: bool,
        environment: &[(&str, String)],
    ) -> Result<Self> {
        if fresh && data.exists() {
            fs::remove_dir_all(data).context(|| format!("empty {}", data.display()))?;
        }
        fs::create_dir_all(data).context(|| format!("make {}", data.display()))?;
        let address = free_address();
        let log_path = data.with_extension("log");
        let log = File::create(&log_path).context(|| format!("make {}", log_path.display()))?;
        let errors = log.try_clone().context(|| "share the log".to_owned())?;
        let child = Command::new(binary)
            .arg("serve")
            .arg("--data-dir")
            .arg(data)
            .arg("--listen")
            .arg(address.to_string())
            .env("DORMER_STATS", "true")
            .envs(environment.iter().map(|(name, value)| (*name, value.as_str())))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .context(|| format!("start {}", binary.display()))?;
        let mut server = Self { child, address, data: data.to_owned(), token: String::new() };
        server.wait_until_ready(&log_path)?;
        let token = data.join("admin-token");
        fs::read_to_string(&token)
            .context(|| format!("read {}", token.display()))?
            .trim()
            .clone_into(&mut server.token);
        Ok(server)
    }

    fn wait_until_ready(&mut self, log: &Path) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let answer = Connection::open(self.address, None)
                .and_then(|mut one| one.get(&format!("/{CACHE}/nix-cache-info")));
            if matches!(answer, Ok((200, _))) {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(Error::new(format!("the server ended with {status}; see {}", log.display())));
            }
            sleep(Duration::from_millis(20));
        }
        Err(Error::new(format!("the server does not answer; see {}", log.display())))
    }

    /// A connection with the administrator's token.
    pub(crate) fn connect(&self) -> Result<Connection> {
        Connection::open(self.address, Some(&self.token))
    }

    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        process_cpu_seconds(self.child.id())
    }

    pub(crate) fn peak_memory_bytes(&self) -> Result<u64> {
        peak_memory_bytes(self.child.id())
    }

    /// SQL statements so far, if the server counts them.
    pub(crate) fn index_statements(&self) -> Result<Option<u64>> {
        #[derive(Deserialize)]
        struct Stats {
            index_statements: u64,
        }
        let (status, body) = self.connect()?.get("/_dormer/stats")?;
        if status != 200 {
            return Ok(None);
        }
        let stats: Stats =
            serde_json::from_slice(&body).context(|| "read the server's counters".to_owned())?;
        Ok(Some(stats.index_statements))
    }

    /// The stored bytes now. The server must be idle, because this first writes its write-ahead log
    /// into the database.
    pub(crate) fn stored(&self) -> Result<Stored> {
        let mut stored = Stored::default();
        let mut database = None;
        let mut folders = vec![self.data.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).context(|| format!("list {}", folder.display()))? {
                let path = entry.context(|| format!("list {}", folder.display()))?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "pack") {
                    stored.packs += 1;
                    stored.pack_bytes +=
                        path.metadata().context(|| format!("look at {}", path.display()))?.len();
                } else if is_database(&path) {
                    database = Some(path);
                }
            }
        }
        let database =
            database.ok_or_else(|| Error::new(format!("no database in {}", self.data.display())))?;
        sqlite(&database, "PRAGMA wal_checkpoint(TRUNCATE);")?;
        stored.chunks = sqlite(&database, "SELECT count(*) FROM chunks;")?;
        stored.listing_bytes = sqlite(
            &database,
            "SELECT coalesce(sum(pgsize), 0) FROM dbstat WHERE name IN \
             (SELECT name FROM sqlite_master WHERE tbl_name LIKE '%listing%');",
        )?;
        stored.database_bytes =
            database.metadata().context(|| format!("look at {}", database.display()))?.len();
        Ok(stored)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        terminate(&mut self.child);
    }
}

fn is_database(path: &Path) -> bool {
    let mut magic = [0; 16];
    let read = File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
    read.is_ok() && &magic == b"SQLite format 3\0"
}

/// Runs SQL with the `sqlite3` shell and returns the number at the start of its last line (0 if
/// there is none).
fn sqlite(database: &Path, sql: &str) -> Result<u64> {
    let output = Command::new("sqlite3")
        .arg("-cmd")
        .arg(".timeout 20000")
        .arg(database)
        .arg(sql)
        .output()
        .context(|| "run sqlite3".to_owned())?;
    if !output.status.success() {
        return Err(Error::new(format!("sqlite3 {sql}: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .last()
        .and_then(|line| line.split('|').next())
        .and_then(|field| field.parse().ok())
        .unwrap_or(0))
}
