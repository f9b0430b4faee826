//! The Worker in workerd, compared with a handwritten passthrough in JavaScript in another workerd
//! of the same version.
//!
//! CPU is that of the whole process tree: Node, which starts workerd; workerd; and the R2 that
//! miniflare simulates in it. This part is the same for both. Every answer comes from R2, because
//! miniflare's cache keeps nothing here. Both are measured with the cache off, and with a cache
//! that never hits, as for requests that a data centre sees for the first time.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Context, Error, Result};
use crate::http::Connection;
use crate::measure::{Samples, tree_cpu_seconds};
use crate::report::{Table, note};

/// Size of one NAR. Large enough for its bytes to count, small enough for the simulated R2.
const NAR_BYTES: usize = 20_000_000;

/// Requests of one run.
const NARS: usize = 20;
const NARINFOS: usize = 3_000;

/// Names that the Worker's rules accept: a store hash, and a NAR's hash and tag.
const NARINFO: &str = "main/11111111111111111111111111111111.narinfo";

/// Results of `worker`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct WorkerCpu {
    /// Without the data centre's cache.
    plain: Pair,
    /// Filling the data centre's cache.
    caching: Pair,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Pair {
    worker: Side,
    script: Side,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Side {
    /// CPU seconds per GB of NARs.
    nar: Samples,
    /// CPU microseconds per narinfo.
    narinfo: Samples,
}

/// Measures both in turns. `root` is the repository with the built Worker.
pub(crate) fn measure(root: &Path, work: &Path, runs: usize) -> Result<WorkerCpu> {
    let nar = format!("main/nar/{}-{}.nar.zst", "1".repeat(52), "1".repeat(26));
    // Miniflare compares paths as text.
    let entry = root.join("worker/dist/index.js").canonicalize();
    let entry = entry.context(|| "find worker/dist/index.js: run scripts/build-worker.sh".to_owned())?;
    fs::create_dir_all(work).context(|| format!("make {}", work.display()))?;
    let work = &work.canonicalize().context(|| format!("find {}", work.display()))?;
    let script = work.join("passthrough/index.js");
    write(&script, include_bytes!("passthrough.js"))?;
    let mut all = Vec::new();
    for switch in ["off", "on"] {
        for script in [&entry, &script] {
            all.push(Workerd::start(root, work, script, switch)?);
        }
    }
    let file = work.join("object");
    let state = json!({
        "version": 1, "cache": "main", "public": true, "store_dir": "/nix/store", "priority": 41, "public_keys": [],
        "object_count": 1, "file_bytes": NAR_BYTES, "published_at": 0, "revoked": [],
    });
    let mut noise = Vec::with_capacity(NAR_BYTES);
    let mut word = 1_u64;
    while noise.len() < NAR_BYTES {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        noise.extend_from_slice(&word.to_be_bytes()[..4]);
    }
    for (name, bytes) in [
        ("main/dormer-state.json", state.to_string().as_bytes()),
        (NARINFO, &[b'x'; 700][..]),
        (nar.as_str(), noise.as_slice()),
    ] {
        write(&file, bytes)?;
        all.iter_mut().try_for_each(|one| one.put(name, &file))?;
    }
    let mut result = WorkerCpu::default();
    // The first round warms both up: isolates, the compiled module, connections.
    for run in 0..=runs {
        let (plain, caching) = (&mut result.plain, &mut result.caching);
        let sides = [&mut plain.worker, &mut plain.script, &mut caching.worker, &mut caching.script];
        for (workerd, side) in all.iter().zip(sides) {
            let nar_seconds = workerd.cpu_of(&nar, NARS, NAR_BYTES)?;
            let narinfo_seconds = workerd.cpu_of(NARINFO, NARINFOS, 700)?;
            if run > 0 {
                side.nar.push(nar_seconds / (NARS * NAR_BYTES) as f64 * 1e9);
                side.narinfo.push(narinfo_seconds / NARINFOS as f64 * 1e6);
            }
        }
        note(&format!("run {run} of {runs} is done"));
    }
    Ok(result)
}

impl WorkerCpu {
    pub(crate) fn markdown(&self) -> String {
        let mut table = Table::new(&["", "Worker", "JavaScript", "Worker ÷ JavaScript"]);
        for (how, pair) in [("", &self.plain), (", filling the cache", &self.caching)] {
            for (name, of, digits) in [
                ("CPU s for a GB of NARs (20 MB each)", (|side| &side.nar) as fn(&Side) -> &Samples, 3),
                ("CPU µs for a narinfo", |side| &side.narinfo, 0),
            ] {
                let (ours, theirs) = (of(&pair.worker), of(&pair.script));
                let ratio = format!("{:.2}", ours.median() / theirs.median());
                table.row(&[format!("{name}{how}"), ours.spread(digits), theirs.spread(digits), ratio]);
            }
        }
        table.finish()
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).context(|| format!("make {}", folder.display()))?;
    fs::write(path, bytes).context(|| format!("write {}", path.display()))
}

/// A workerd with a bucket, started like in the tests.
#[derive(Debug)]
struct Workerd {
    address: SocketAddr,
    process: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Workerd {
    fn start(root: &Path, work: &Path, entry: &Path, edge_cache: &str) -> Result<Self> {
        let settings = work.join("workerd.json");
        let text = json!({ "script": entry, "variables": { "EDGE_CACHE": edge_cache }, "cache": false, "count": false }).to_string();
        write(&settings, text.as_bytes())?;
        let parts = std::env::var_os("DORMER_PARTS").map_or_else(|| root.join("target/parts"), PathBuf::from);
        let mut process = Command::new("node")
            .arg(root.join("worker/test/serve.mjs"))
            .arg(&settings)
            .env("DORMER_NODE_MODULES", parts.join("worker-node/node_modules"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context(|| "start node".to_owned())?;
        let stdin = process.stdin.take();
        let stdout = process.stdout.take().ok_or_else(|| Error::new("node has no output"))?;
        let mut stdout = BufReader::new(stdout);
        let url = read_line(&mut stdout)?["url"].as_str().unwrap_or_default().to_owned();
        let address = url.trim_start_matches("http://").trim_end_matches('/').parse();
        let address = address.context(|| format!("read the address {url:?}"))?;
        Ok(Self { address, process, stdin, stdout })
    }

    fn put(&mut self, name: &str, file: &Path) -> Result<()> {
        let stdin = self.stdin.as_mut().ok_or_else(|| Error::new("node has no input"))?;
        writeln!(stdin, "{}", json!({ "put": name, "file": file })).context(|| "write to node".to_owned())?;
        let answer = read_line(&mut self.stdout)?;
        if answer["error"].is_null() { Ok(()) } else { Err(Error::new(format!("{name}: {answer}"))) }
    }

    /// CPU seconds for answering this many requests, one after another.
    fn cpu_of(&self, name: &str, count: usize, bytes: usize) -> Result<f64> {
        let mut connection = Connection::open(self.address, None)?;
        let before = tree_cpu_seconds(self.process.id())?;
        for _ in 0..count {
            let (status, got) = connection.get_discarding(&format!("/{name}"))?;
            if (status, got) != (200, bytes as u64) {
                return Err(Error::new(format!("GET /{name} was answered {status} with {got} bytes")));
            }
        }
        Ok(tree_cpu_seconds(self.process.id())? - before)
    }
}

impl Drop for Workerd {
    fn drop(&mut self) {
        // workerd ends with its input. This program need not repair what remains.
        self.stdin.take();
        let _ = self.process.wait();
    }
}

fn read_line(stdout: &mut BufReader<ChildStdout>) -> Result<Value> {
    let mut line = String::new();
    stdout.read_line(&mut line).context(|| "read from node".to_owned())?;
    serde_json::from_str(&line).context(|| format!("read {line:?}"))
}
