//! Real `dormer serve` processes that share a database and a bucket, and their counters.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::http::Connection;
use crate::measure::{peak_memory_bytes, process_cpu_seconds};
use crate::server::{CACHE, free_address, terminate};

/// Time limit for a server to start. After it, the benchmark fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// The master key of every server over PostgreSQL.
pub(crate) const MASTER_KEY: (&str, &str) =
    ("DORMER_MASTER_KEY", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=");

/// The shared secrets of the replicas. They do not outlive the benchmark.
const SHARED: [(&str, &str); 2] = [
    MASTER_KEY,
    ("DORMER_JWT_SIGNING_TOKEN_HS256_SECRET_BASE64", "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="),
];

/// Running servers. Dropping the value ends them.
#[derive(Debug)]
pub(crate) struct Replicas {
    binary: PathBuf,
    folder: PathBuf,
    environment: Vec<(String, String)>,
    running: Vec<Replica>,
    token: String,
}

#[derive(Debug)]
struct Replica {
    child: Child,
    address: SocketAddr,
    metrics: SocketAddr,
}

/// Counters of all replicas, added up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scrape(HashMap<String, f64>);

impl Replicas {
    /// Starts this many servers. `folder` holds their logs.
    pub(crate) fn start(
        binary: &Path,
        folder: &Path,
        environment: Vec<(String, String)>,
        count: usize,
    ) -> Result<Self> {
        fs::create_dir_all(folder).context(|| format!("make {}", folder.display()))?;
        let (binary, folder) = (binary.to_owned(), folder.to_owned());
        let mut all = Self { binary, folder, environment, running: Vec::new(), token: String::new() };
        all.launch(count.max(1))?;
        all.token = all.make_token()?;
        Ok(all)
    }

    /// Ends all servers and starts the same number of new ones.
    pub(crate) fn restart(&mut self) -> Result<()> {
        let count = self.running.len();
        self.running.clear();
        self.launch(count)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.envs(SHARED).envs(self.environment.iter().cloned()).stdin(Stdio::null());
        command
    }

    fn launch(&mut self, count: usize) -> Result<()> {
        for number in 0..count {
            let (address, metrics) = (free_address(), free_address());
            let log_path = self.folder.join(format!("replica-{number}.log"));
            let log = File::create(&log_path).context(|| format!("make {}", log_path.display()))?;
            let errors = log.try_clone().context(|| "share the log".to_owned())?;
            let child = self
                .command()
                .args(["serve", "--listen", &address.to_string()])
                .env("DORMER_METRICS_LISTEN", metrics.to_string())
                .stdout(log)
                .stderr(errors)
                .spawn()
                .context(|| format!("start {}", self.binary.display()))?;
            self.running.push(Replica { child, address, metrics });
            self.wait_until_ready(&log_path)?;
        }
        Ok(())
    }

    fn wait_until_ready(&mut self, log: &Path) -> Result<()> {
        let replica = self.running.last_mut().ok_or_else(|| Error::new("no server was started"))?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let answer = Connection::open(replica.address, None)
                .and_then(|mut one| one.get(&format!("/{CACHE}/nix-cache-info")));
            if matches!(answer, Ok((200, _))) {
                return Ok(());
            }
            if let Ok(Some(status)) = replica.child.try_wait() {
                return Err(Error::new(format!("the server ended with {status}; see {}", log.display())));
            }
            sleep(Duration::from_millis(20));
        }
        Err(Error::new(format!("the server does not answer; see {}", log.display())))
    }

    fn make_token(&self) -> Result<String> {
        let output = self
            .command()
            .args(["token", "create", "--sub", "bench", "--validity", "1d", "--pull", "*", "--push", "*"])
            .output()
            .context(|| "make a token".to_owned())?;
        if !output.status.success() {
            return Err(Error::new(format!("no token: {}", String::from_utf8_lossy(&output.stderr))));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Opens a connection. Consecutive numbers go to the replicas in turn.
    pub(crate) fn connect(&self, number: usize) -> Result<Connection> {
        let replica = &self.running[number % self.running.len()];
        Connection::open(replica.address, Some(&self.token))
    }

    /// CPU seconds of all replicas so far.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        self.running.iter().map(|replica| process_cpu_seconds(replica.child.id())).sum()
    }

    /// The largest memory of any replica.
    pub(crate) fn peak_memory_bytes(&self) -> Result<u64> {
        let peaks = self.running.iter().map(|replica| peak_memory_bytes(replica.child.id()));
        Ok(peaks.collect::<Result<Vec<u64>>>()?.into_iter().max().unwrap_or(0))
    }

    /// The counters so far.
    pub(crate) fn scrape(&self) -> Result<Scrape> {
        let mut all = Scrape::default();
        for replica in &self.running {
            let (status, page) = Connection::open(replica.metrics, None)?.get("/metrics")?;
            if status != 200 {
                return Err(Error::new(format!("/metrics was answered {status}")));
            }
            let page = String::from_utf8_lossy(&page);
            for line in page.lines().filter(|line| !line.starts_with('#')) {
                if let Some((name, value)) = line.rsplit_once(' ') {
                    let value: f64 = value.parse().context(|| format!("read {line:?}"))?;
                    *all.0.entry(name.to_owned()).or_default() += value;
                }
            }
        }
        Ok(all)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        terminate(&mut self.child);
    }
}

impl Scrape {
    /// The counts since `before`.
    pub(crate) fn since(mut self, before: &Self) -> Self {
        for (name, value) in &mut self.0 {
            *value -= before.0.get(name).copied().unwrap_or(0.0);
        }
        self
    }

    /// One series; 0 if it does not exist.
    pub(crate) fn of(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }

    /// The sum of all series with a name.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        let is_of = |series: &str| {
            series == name || series.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))
        };
        self.0.iter().filter(|(series, _)| is_of(series)).map(|(_, value)| value).sum()
    }
}
