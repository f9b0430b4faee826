//! Production: pushes the corpus to servers over PostgreSQL and S3, and reads it back, compared
//! with rclone.
//!
//! This measures what operators pay for: requests to the object store, CPU of every part, bytes in
//! the database. The server itself counts its requests. The database and the store are real and run
//! on this machine, so their CPU is measured too.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use dormer_testkit::services::{Postgres, SeaweedFs};
use serde::{Deserialize, Serialize};

use crate::corpus::Generation;
use crate::error::{Context, Error, Result};
use crate::measure::{Samples, tree_cpu_seconds, wall_of};
use crate::push::{self, in_parallel};
use crate::reads::{check_nar, fetch, nar_url, pull};
use crate::replicas::{Replicas, Scrape};
use crate::report::note;
use crate::server::CACHE;

/// Background work of the parts after the last answer belongs to the push too.
const SETTLE: Duration = Duration::from_secs(2);

/// The folder for rclone's downloads. It is in memory, because the server's readers discard what
/// they read.
const RCLONE_FOLDER: &str = "/dev/shm/dormer-bench-rclone";

/// CPU seconds of every part.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Cpu {
    pub(crate) servers: Samples,
    pub(crate) database: Samples,
    pub(crate) store: Samples,
}

/// One generation's push over this many connections. Stored figures are totals after the push, not
/// differences.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Push {
    pub(crate) name: String,
    pub(crate) connections: usize,
    pub(crate) nars: usize,
    pub(crate) nar_bytes: u64,
    pub(crate) wall: Samples,
    pub(crate) cpu: Cpu,
    pub(crate) puts: Samples,
    pub(crate) put_bytes: Samples,
    /// GET, HEAD and DELETE together. A push should make none.
    pub(crate) other_requests: Samples,
    pub(crate) retries: Samples,
    pub(crate) statements: Samples,
    /// Growth of the database since the creation of its schema.
    pub(crate) database_bytes: Samples,
    /// The part of that growth for listings.
    pub(crate) listing_bytes: Samples,
}

/// A pull of the first generation from a server that has just started.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Pull {
    pub(crate) connections: usize,
    pub(crate) wire_bytes: Samples,
    pub(crate) wall: Samples,
    pub(crate) cpu: Cpu,
    pub(crate) gets: Samples,
    pub(crate) heads: Samples,
    pub(crate) received_bytes: Samples,
    pub(crate) statements: Samples,
}

/// The download of the packs by rclone.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Rclone {
    pub(crate) bytes: Samples,
    pub(crate) wall: Samples,
    pub(crate) cpu_store: Samples,
}

/// Results of `production`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Production {
    pub(crate) replicas: usize,
    pub(crate) pushes: Vec<Push>,
    pub(crate) pulls: Vec<Pull>,
    pub(crate) rclone: Rclone,
    /// Largest resident memory of a replica.
    pub(crate) peak_memory: Samples,
}

/// The services that all runs share.
#[derive(Debug)]
struct Services {
    database: Postgres,
    store: SeaweedFs,
}

/// Connections of the pulls.
const PULL_CONNECTIONS: [usize; 2] = [1, 8];

/// Pushes all generations over this many connections, and pulls the first one. Does this `runs`
/// times, each time in a new database and a new bucket.
pub(crate) fn measure(
    binary: &Path,
    work: &Path,
    generations: &[Generation],
    connections: &[usize],
    replicas: usize,
    runs: usize,
) -> Result<Production> {
    generations.iter().try_for_each(Generation::warm)?;
    let services = Services { database: Postgres::start(), store: SeaweedFs::start() };
    let mut result = Production { replicas, ..Production::default() };
    for &connections in connections {
        result.pushes.extend(generations.iter().map(|generation| Push {
            name: generation.name.clone(),
            connections,
            nars: generation.entries.len(),
            nar_bytes: generation.bytes(),
            ..Push::default()
        }));
    }
    result.pulls = PULL_CONNECTIONS.map(|connections| Pull { connections, ..Pull::default() }).to_vec();
    for run in 0..runs {
        for (place, &connections) in connections.iter().enumerate() {
            let mut lab = Lab::start(&services, binary, work, replicas)?;
            let pushes = &mut result.pushes[place * generations.len()..][..generations.len()];
            for (generation, push) in generations.iter().zip(pushes) {
                lab.push(generation, connections, push)?;
                let is_first = generation.name == generations[0].name;
                if is_first && place == 0 {
                    lab.read_back(generation, &mut result.pulls, &mut result.rclone, run == 0)?;
                }
            }
            result.peak_memory.push(lab.replicas.peak_memory_bytes()? as f64);
            let first = &result.pushes[place * generations.len()];
            note(&format!(
                "run {} of {runs}: {connections} connections: {:.0} PUTs, {:.1} CPU-s, database {:.1}",
                run + 1,
                first.puts.median(),
                first.cpu.servers.median(),
                first.cpu.database.median(),
            ));
        }
    }
    Ok(result)
}

/// Servers with their own database and bucket.
struct Lab<'a> {
    services: &'a Services,
    database_url: String,
    bucket: String,
    /// Size of the database with only its schema.
    database_bytes_empty: f64,
    replicas: Replicas,
}

/// CPU seconds so far.
struct Clocks {
    servers: f64,
    database: f64,
    store: f64,
}

impl<'a> Lab<'a> {
    fn start(services: &'a Services, binary: &Path, work: &Path, replicas: usize) -> Result<Self> {
        let database_url = services.database.create_database();
        let bucket = services.store.new_bucket();
        let access = services.store.access();
        let environment = [
            ("DORMER_DATABASE_URL", database_url.clone()),
            ("DORMER_STORAGE_TYPE", "s3".to_owned()),
            ("DORMER_STORAGE_ENDPOINT", access.endpoint.clone()),
            ("DORMER_STORAGE_BUCKET", bucket.clone()),
            ("DORMER_STORAGE_REGION", access.region.clone()),
            ("DORMER_STORAGE_CREDENTIALS_ACCESS_KEY_ID", access.access_key_id.clone()),
            ("DORMER_STORAGE_CREDENTIALS_SECRET_ACCESS_KEY", access.secret_access_key.clone()),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let replicas = Replicas::start(binary, &work.join("production"), environment, replicas)?;
        let mut lab = Self { services, database_url, bucket, database_bytes_empty: 0.0, replicas };
        lab.database_bytes_empty = lab.sql_number("SELECT pg_database_size(current_database())")?;
        Ok(lab)
    }

    fn sql_number(&self, sql: &str) -> Result<f64> {
        let text = self.services.database.sql(&self.database_url, sql);
        text.parse().context(|| format!("read what the database says: {text:?}"))
    }

    fn clocks(&self) -> Result<Clocks> {
        Ok(Clocks {
            servers: self.replicas.cpu_seconds()?,
            database: tree_cpu_seconds(self.services.database.process_id())?,
            store: tree_cpu_seconds(self.services.store.process_id())?,
        })
    }

    fn push(&mut self, generation: &Generation, connections: usize, push: &mut Push) -> Result<()> {
        let (scrape, clocks) = (self.replicas.scrape()?, self.clocks()?);
        let connect = |number| self.replicas.connect(number);
        let (wall, ()) = wall_of(|| push::generation_over(&connect, generation, connections))?;
        sleep(SETTLE);
        push.wall.push(wall);
        push.cpu.add(&clocks, &self.clocks()?);
        let made = self.replicas.scrape()?.since(&scrape);
        push.puts.push(made.requests("put"));
        push.put_bytes.push(made.of("dormer_store_sent_bytes_total"));
        push.other_requests.push(["get", "head", "delete"].iter().map(|method| made.requests(method)).sum());
        push.retries.push(made.sum("dormer_store_retries_total"));
        push.statements.push(made.of("dormer_index_statements_total"));
        // A later vacuum and checkpoint would do the same. The size must not depend on when they
        // come.
        self.services.database.sql(&self.database_url, "VACUUM ANALYZE");
        self.services.database.sql(&self.database_url, "CHECKPOINT");
        let size = self.sql_number("SELECT pg_database_size(current_database())")?;
        push.database_bytes.push(size - self.database_bytes_empty);
        push.listing_bytes.push(self.sql_number("SELECT pg_total_relation_size('listings')")?);
        Ok(())
    }

    /// Reads the generation back with rclone and the servers in turns.
    fn read_back(
        &mut self,
        generation: &Generation,
        pulls: &mut [Pull],
        rclone: &mut Rclone,
        verify: bool,
    ) -> Result<()> {
        let urls = self.nar_urls(generation)?;
        // The store's page cache holds what was just written. This ensures the same state for both.
        self.rclone()?;
        for one in pulls {
            let before = tree_cpu_seconds(self.services.store.process_id())?;
            let (wall, bytes) = self.rclone()?;
            if one.connections > 1 {
                rclone.wall.push(wall);
                rclone.bytes.push(bytes as f64);
                rclone.cpu_store.push(tree_cpu_seconds(self.services.store.process_id())? - before);
            }
            self.pull(&urls, one)?;
        }
        if verify { self.verify(generation, &urls) } else { Ok(()) }
    }

    fn nar_urls(&self, generation: &Generation) -> Result<Vec<String>> {
        let mut connection = self.replicas.connect(0)?;
        generation
            .entries
            .iter()
            .map(|entry| {
                let url = format!("/{CACHE}/{}.narinfo", entry.hash);
                nar_url(&url, &fetch(&mut connection, &url)?)
            })
            .collect()
    }

    fn pull(&mut self, urls: &[String], one: &mut Pull) -> Result<()> {
        // A new process remembers no pack, no plan and no block.
        self.replicas.restart()?;
        let (scrape, clocks) = (self.replicas.scrape()?, self.clocks()?);
        let connect = |number| self.replicas.connect(number);
        let (wall, bytes) = wall_of(|| pull(&connect, urls, 1, one.connections))?;
        one.cpu.add(&clocks, &self.clocks()?);
        let made = self.replicas.scrape()?.since(&scrape);
        one.wall.push(wall);
        one.wire_bytes.push(bytes as f64);
        one.gets.push(made.requests("get"));
        one.heads.push(made.requests("head"));
        one.received_bytes.push(made.of("dormer_store_received_bytes_total"));
        one.statements.push(made.of("dormer_index_statements_total"));
        Ok(())
    }

    /// Verifies the NARs that were read, because a fast wrong answer is not a figure.
    fn verify(&self, generation: &Generation, urls: &[String]) -> Result<()> {
        let next = std::sync::atomic::AtomicUsize::new(0);
        in_parallel(2, |number| {
            let mut connection = self.replicas.connect(number)?;
            loop {
                let place = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let (Some(entry), Some(url)) = (generation.entries.get(place), urls.get(place)) else {
                    return Ok(());
                };
                check_nar(entry, &fetch(&mut connection, url)?)?;
            }
        })
    }

    /// Downloads the bucket over 8 connections. Returns wall seconds and bytes.
    fn rclone(&self) -> Result<(f64, u64)> {
        let folder = Path::new(RCLONE_FOLDER);
        if folder.exists() {
            fs::remove_dir_all(folder).context(|| format!("empty {RCLONE_FOLDER}"))?;
        }
        let access = self.services.store.access();
        let mut command = Command::new("rclone");
        command
            .args(["copy", "-q", "--config", "/dev/null", "--transfers", "8", "--checkers", "8"])
            // Checksums would only cost rclone time; those of the server are XXH3.
            .args(["--ignore-checksum", "--s3-provider", "Other", "--s3-endpoint", &access.endpoint])
            .args(["--s3-access-key-id", &access.access_key_id])
            .args(["--s3-secret-access-key", &access.secret_access_key])
            .arg(format!(":s3:{}", self.bucket))
            .arg(folder)
            // With this variable, rclone's S3 library ends at once.
            .env_remove("AWS_CA_BUNDLE");
        let (wall, status) = wall_of(|| command.status().context(|| "run rclone".to_owned()))?;
        if !status.success() {
            return Err(Error::new(format!("rclone ended with {status}")));
        }
        let bytes = folder_bytes(folder)?;
        fs::remove_dir_all(folder).context(|| format!("empty {RCLONE_FOLDER}"))?;
        Ok((wall, bytes))
    }
}

impl Cpu {
    fn add(&mut self, before: &Clocks, after: &Clocks) {
        self.servers.push(after.servers - before.servers);
        self.database.push(after.database - before.database);
        self.store.push(after.store - before.store);
    }
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).context(|| format!("list {}", folder.display()))? {
            let path = entry.context(|| format!("list {}", folder.display()))?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                sum += path.metadata().context(|| format!("look at {}", path.display()))?.len();
            }
        }
    }
    Ok(sum)
}

impl Scrape {
    fn requests(&self, method: &str) -> f64 {
        self.of(&format!("dormer_store_requests_total{{method=\"{method}\"}}"))
    }
}
