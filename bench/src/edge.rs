//! Publishing: requests, wall time and CPU of `dormer publish`, compared with rclone syncing the
//! same files.
//!
//! This compares two ways to keep a bucket up to date. `dormer publish` follows the outbox. rclone
//! compares a folder, to which the same paths were published, with a listing of its bucket
//! (`--checksum`, so that it requests only the listing). Both write to buckets of one SeaweedFS,
//! which counts the requests.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use dormer_testkit::services::SeaweedFs;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::corpus::{Entry, Generation};
use crate::error::{Context, Error, Result};
use crate::http::Connection;
use crate::measure::{Samples, process_cpu_seconds, wall_of};
use crate::push::{self, in_parallel};
use crate::report::{Table, note};
use crate::server::Server;

/// Paths in the published cache. Each is a file of some bytes, because requests matter here.
const PATHS: usize = 20_000;
const PATHS_QUICK: usize = 400;

/// One path in this many is new in the last step.
const NEW_SHARE: usize = 100;

const CONNECTIONS: usize = 16;

/// The cost of one way to keep a bucket up to date.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Way {
    requests: Samples,
    wall: Samples,
    cpu: Samples,
}

/// One step, done in both ways.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Step {
    name: String,
    /// Number of new paths.
    paths: usize,
    publish: Way,
    rclone: Way,
}

/// Results of `edge`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Edge {
    paths: usize,
    steps: Vec<Step>,
    /// The first generation of the corpus, as stored.
    corpus: Way,
    corpus_rclone: Way,
    corpus_paths: usize,
    corpus_nar_bytes: u64,
    corpus_file_bytes: Samples,
}

/// Takes all steps, `runs` times.
pub(crate) fn measure(
    binary: &Path,
    work: &Path,
    generation: &Generation,
    quick: bool,
    runs: usize,
) -> Result<Edge> {
    let paths = if quick { PATHS_QUICK } else { PATHS };
    let new = paths / NEW_SHARE;
    generation.warm()?;
    let store = SeaweedFs::start();
    let mut result = Edge {
        paths,
        steps: [("all new", paths), ("nothing new", 0), ("1 % new", new)]
            .map(|(name, paths)| Step { name: name.to_owned(), paths, ..Step::default() })
            .to_vec(),
        corpus_paths: generation.entries.len(),
        corpus_nar_bytes: generation.bytes(),
        ..Edge::default()
    };
    for run in 0..runs {
        let lab = Lab::start(binary, work, &store)?;
        for (place, range) in [(0, 0..paths), (1, 0..0), (2, paths..paths + new)] {
            push_small(&lab.server, range)?;
            let step = &mut result.steps[place];
            // In turns, so that neither way always finds the store as the other left it.
            let publish = |way: &mut Way| lab.measured(way, || lab.publish("bucket").map(drop));
            if run % 2 == 0 {
                publish(&mut step.publish)?;
            }
            lab.publish("folder")?;
            lab.measured(&mut step.rclone, || lab.rclone())?;
            if run % 2 == 1 {
                publish(&mut step.publish)?;
            }
        }
        drop(lab);
        let lab = Lab::start(binary, work, &store)?;
        push::generation(&lab.server, generation, 5)?;
        let mut bytes = 0;
        lab.publish("folder")?;
        let mut publish =
            || lab.measured(&mut result.corpus, || lab.publish("bucket").map(|sent| bytes = sent));
        if run % 2 == 0 {
            publish()?;
        }
        lab.measured(&mut result.corpus_rclone, || lab.rclone())?;
        if run % 2 == 1 {
            publish()?;
        }
        result.corpus_file_bytes.push(bytes as f64);
        note(&format!("run {} of {runs} is done", run + 1));
    }
    Ok(result)
}

/// A server with two targets, and a bucket for rclone.
struct Lab<'a> {
    binary: &'a Path,
    store: &'a SeaweedFs,
    server: Server,
    settings: std::path::PathBuf,
    folder: std::path::PathBuf,
    rclone_bucket: String,
}

impl<'a> Lab<'a> {
    fn start(binary: &'a Path, work: &Path, store: &'a SeaweedFs) -> Result<Self> {
        let (data, folder, settings) = (work.join("edge"), work.join("edge-folder"), work.join("edge.toml"));
        if folder.exists() {
            fs::remove_dir_all(&folder).context(|| format!("empty {}", folder.display()))?;
        }
        let (access, bucket) = (store.access(), store.new_bucket());
        let text = format!(
            "[[edge]]\nname = \"folder\"\ntype = \"local\"\npath = \"{}\"\ncaches = [\"main\"]\nsettle-time = \"0s\"\n\
             [[edge]]\nname = \"bucket\"\ntype = \"s3\"\nbucket = {bucket:?}\nregion = {:?}\nendpoint = {:?}\ncaches = [\"main\"]\n\
             settle-time = \"0s\"\ncredentials.access_key_id = {:?}\ncredentials.secret_access_key = {:?}\n",
            folder.display(),
            access.region,
            access.endpoint,
            access.access_key_id,
            access.secret_access_key,
        );
        fs::create_dir_all(work).context(|| format!("make {}", work.display()))?;
        fs::write(&settings, text).context(|| format!("write {}", settings.display()))?;
        let environment = [("DORMER_CONFIG", settings.display().to_string())];
        let server = Server::start(binary, &data, true, &environment)?;
        Ok(Self { binary, store, server, settings, folder, rclone_bucket: store.new_bucket() })
    }

    /// Publishes to a target once. Returns the bytes of the sent NARs.
    fn publish(&self, target: &str) -> Result<u64> {
        let output = Command::new(self.binary)
            .args(["publish", target, "--json", "--data-dir"])
            .arg(&self.server.data)
            .env("DORMER_CONFIG", &self.settings)
            .stdin(Stdio::null())
            .output()
            .context(|| "run dormer publish".to_owned())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::new(format!("dormer publish ended with {}: {said}", output.status)));
        }
        let lines = String::from_utf8_lossy(&output.stdout);
        let of_caches = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        Ok(of_caches.filter_map(|line| line["bytes_uploaded"].as_u64()).sum())
    }

    fn rclone(&self) -> Result<()> {
        let access = self.store.access();
        let output = Command::new("rclone")
            .args(["sync", "-q", "--config", "/dev/null", "--transfers", "8", "--checkers", "8"])
            .args(["--fast-list", "--checksum", "--s3-no-check-bucket", "--s3-no-head"])
            .args(["--s3-provider", "Other", "--s3-endpoint", &access.endpoint])
            .args(["--s3-access-key-id", &access.access_key_id])
            .args(["--s3-secret-access-key", &access.secret_access_key])
            .arg(&self.folder)
            .arg(format!(":s3:{}", self.rclone_bucket))
            // With this variable, rclone's S3 library ends at once.
            .env_remove("AWS_CA_BUNDLE")
            .output()
            .context(|| "run rclone".to_owned())?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Error::new(format!("rclone ended with {}: {said}", output.status)))
    }

    /// Runs a program and records its cost.
    fn measured(&self, way: &mut Way, work: impl FnOnce() -> Result<()>) -> Result<()> {
        // A parent gets the CPU time of a child after waiting for it. This process waits.
        let (cpu, requests) = (process_cpu_seconds(std::process::id())?, self.requests()?);
        let (wall, ()) = wall_of(work)?;
        way.wall.push(wall);
        way.cpu.push(process_cpu_seconds(std::process::id())? - cpu);
        way.requests.push(self.requests()? - requests);
        Ok(())
    }

    /// Requests that the store has answered over S3 so far.
    fn requests(&self) -> Result<f64> {
        let (status, page) = Connection::open(self.store.metrics_address(), None)?.get("/metrics")?;
        if status != 200 {
            return Err(Error::new(format!("the store's metrics were answered {status}")));
        }
        let page = String::from_utf8_lossy(&page);
        let counts = page.lines().filter(|line| line.starts_with("SeaweedFS_s3_request_total{"));
        Ok(counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
    }
}

/// Pushes paths of a few bytes each.
fn push_small(server: &Server, numbers: std::ops::Range<usize>) -> Result<()> {
    let next = std::sync::atomic::AtomicUsize::new(numbers.start);
    in_parallel(CONNECTIONS, |_| {
        let mut connection = server.connect()?;
        loop {
            let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if number >= numbers.end {
                return Ok(());
            }
            let nar = small_nar(number);
            let hash = format!("{number:0>32}");
            let entry = Entry {
                store_path: format!("/nix/store/{hash}-small"),
                hash,
                nar: String::new(),
                nar_hash_hex: hex::encode(Sha256::digest(&nar)),
                nar_size: nar.len() as u64,
                references: Vec::new(),
            };
            push::upload(&mut connection, &entry, &mut nar.as_slice())?;
        }
    })
}

/// A NAR of one file that contains this number.
fn small_nar(number: usize) -> Vec<u8> {
    let contents = format!("small file number {number}, which nobody else has\n").repeat(8);
    let mut nar = Vec::new();
    for word in ["nix-archive-1", "(", "type", "regular", "contents", &contents, ")"] {
        nar.extend_from_slice(&(word.len() as u64).to_le_bytes());
        nar.extend_from_slice(word.as_bytes());
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    nar
}

impl Edge {
    pub(crate) fn markdown(&self) -> String {
        let mut table = Table::new(&["", "requests", "for each new path", "wall s", "CPU s"]);
        for step in &self.steps {
            for (program, way) in [("dormer publish", &step.publish), ("rclone sync", &step.rclone)] {
                let each = match step.paths {
                    0 => "–".to_owned(),
                    paths => format!("{:.2}", way.requests.median() / paths as f64),
                };
                table.row(&[
                    format!("{} paths, {}: {program}", self.paths, step.name),
                    way.requests.spread(0),
                    each,
                    way.wall.spread(2),
                    way.cpu.spread(2),
                ]);
            }
        }
        let gigabytes = self.corpus_file_bytes.median() / 1e9;
        let (mut per_nar, mut per_sent) = (Vec::new(), Vec::new());
        for (program, way) in [("dormer publish", &self.corpus), ("rclone sync", &self.corpus_rclone)] {
            table.row(&[
                format!("the corpus, {} paths, {gigabytes:.2} GB sent: {program}", self.corpus_paths),
                way.requests.spread(0),
                format!("{:.2}", way.requests.median() / self.corpus_paths as f64),
                way.wall.spread(2),
                way.cpu.spread(2),
            ]);
            per_nar.push(format!("{:.2}", way.cpu.median() / (self.corpus_nar_bytes as f64 / 1e9)));
            per_sent.push(format!("{:.2}", way.cpu.median() / gigabytes));
        }
        let (per_nar, per_sent) = (per_nar.join(" / "), per_sent.join(" / "));
        table.finish()
            + &format!(
                "CPU for a GB of NARs: {per_nar} s; for a GB sent: {per_sent} s (publish / rclone).\n\n"
            )
    }
}
