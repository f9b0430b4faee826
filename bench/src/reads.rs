//! Reads: pulls of everything by a reader that discards the bytes, and narinfo requests by wrk.
//! Both run in turns with nginx, which serves the same bytes as files.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::corpus::{Entry, Generation};
use crate::error::{Context, Error, Result};
use crate::http::Connection;
use crate::ingest::level_setting;
use crate::measure::{Samples, wall_of};
use crate::nginx::Nginx;
use crate::push::{self, in_parallel};
use crate::report::note;
use crate::server::{CACHE, Server};

/// How often one run pulls everything: a single pass takes nginx a fraction of a second.
const PASSES: usize = 3;
/// Connections of wrk.
const WRK_CONNECTIONS: usize = 16;

/// One side of a comparison.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Side {
    /// Wall seconds (pull) or answers per second (narinfos).
    pub(crate) figure: Samples,
    /// CPU seconds of the server, over the whole run.
    pub(crate) cpu: Samples,
}

/// Dormer compared with nginx.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) name: String,
    pub(crate) dormer: Side,
    pub(crate) nginx: Side,
}

/// Results of `pull` and `narinfo`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Reads {
    pub(crate) nars: usize,
    /// Bytes on the wire in one run.
    pub(crate) wire_bytes: u64,
    /// Bytes of the NARs in these bytes.
    pub(crate) nar_bytes: u64,
    pub(crate) comparisons: Vec<Comparison>,
}

/// A filled server, and nginx over a copy of everything that it serves.
#[derive(Debug)]
pub(crate) struct Pair {
    dormer: Server,
    nginx: Nginx,
    folder: PathBuf,
    nar_urls: Vec<String>,
    narinfo_urls: Vec<String>,
    wire_bytes: u64,
    nar_bytes: u64,
}

impl Pair {
    /// Pushes the generation and copies everything that its narinfos name. Verifies each NAR.
    pub(crate) fn start(binary: &Path, work: &Path, generation: &Generation, level: i32) -> Result<Self> {
        let dormer = Server::start(binary, &work.join("reads"), true, &[level_setting(level)])?;
        push::generation(&dormer, generation, 5)?;
        let root = work.join("static");
        if root.exists() {
            fs::remove_dir_all(&root).context(|| format!("empty {}", root.display()))?;
        }
        let nars = root.join(CACHE).join("nar");
        fs::create_dir_all(&nars).context(|| format!("make {}", nars.display()))?;
        let mut connection = dormer.connect()?;
        let (mut nar_urls, mut narinfo_urls, mut wire_bytes) = (Vec::new(), Vec::new(), 0);
        for entry in &generation.entries {
            let narinfo_url = format!("/{CACHE}/{}.narinfo", entry.hash);
            let narinfo = fetch(&mut connection, &narinfo_url)?;
            write_below(&root, &narinfo_url, &narinfo)?;
            let nar_url = nar_url(&narinfo_url, &narinfo)?;
            let nar = fetch(&mut connection, &nar_url)?;
            check_nar(entry, &nar)?;
            write_below(&root, &nar_url, &nar)?;
            wire_bytes += nar.len() as u64;
            nar_urls.push(nar_url);
            narinfo_urls.push(narinfo_url);
        }
        let nginx = Nginx::start(&work.join("nginx"), &root)?;
        let nar_bytes = generation.bytes();
        Ok(Self { dormer, nginx, folder: work.to_owned(), nar_urls, narinfo_urls, wire_bytes, nar_bytes })
    }

    /// Pulls everything over 1 and over 8 connections.
    pub(crate) fn pull(&self, runs: usize) -> Result<Reads> {
        let mut comparisons = Vec::new();
        for connections in [1, 8] {
            let name =
                format!("pull of all, {connections} connection{}", if connections == 1 { "" } else { "s" });
            let wire_bytes = self.wire_bytes * PASSES as u64;
            comparisons.push(self.compare(name, runs, |address| {
                let connect = |_| Connection::open(address, None);
                let (wall, bytes) = wall_of(|| pull(&connect, &self.nar_urls, PASSES, connections))?;
                if bytes == wire_bytes {
                    Ok(wall)
                } else {
                    Err(Error::new(format!("{bytes} bytes came, {wire_bytes} were expected")))
                }
            })?);
        }
        Ok(Reads {
            nars: self.nar_urls.len() * PASSES,
            wire_bytes: self.wire_bytes * PASSES as u64,
            nar_bytes: self.nar_bytes * PASSES as u64,
            comparisons,
        })
    }

    /// Requests existing and missing narinfos.
    pub(crate) fn narinfos(&self, runs: usize, seconds: u32) -> Result<Reads> {
        // Numbers instead of hashes: no path has these hashes, and wrk's count of errors proves it.
        let misses: Vec<String> =
            (0..self.narinfo_urls.len()).map(|n| format!("/{CACHE}/{n:0>31}z.narinfo")).collect();
        let mut comparisons = Vec::new();
        for (name, urls, hit) in
            [("narinfo hits", &self.narinfo_urls, true), ("narinfo misses", &misses, false)]
        {
            let list = self.folder.join("wrk-paths");
            fs::write(&list, urls.join("\n")).context(|| "write the paths for wrk".to_owned())?;
            comparisons
                .push(self.compare(name.to_owned(), runs, |address| self.wrk(address, &list, hit, seconds))?);
        }
        Ok(Reads { comparisons, ..Reads::default() })
    }

    /// Measures both sides in turns.
    fn compare(
        &self,
        name: String,
        runs: usize,
        measure: impl Fn(SocketAddr) -> Result<f64>,
    ) -> Result<Comparison> {
        let mut comparison = Comparison { name, ..Comparison::default() };
        for _ in 0..runs {
            let before = self.dormer.cpu_seconds()?;
            comparison.dormer.figure.push(measure(self.dormer.address)?);
            comparison.dormer.cpu.push(self.dormer.cpu_seconds()? - before);
            let before = self.nginx.cpu_seconds()?;
            comparison.nginx.figure.push(measure(self.nginx.address)?);
            comparison.nginx.cpu.push(self.nginx.cpu_seconds()? - before);
        }
        note(&format!(
            "{}: dormer {:.2}, nginx {:.2}",
            comparison.name,
            comparison.dormer.figure.median(),
            comparison.nginx.figure.median()
        ));
        Ok(comparison)
    }

    /// Answers per second, as counted by wrk.
    fn wrk(&self, address: SocketAddr, list: &Path, hit: bool, seconds: u32) -> Result<f64> {
        let script = self.folder.join("wrk.lua");
        fs::write(&script, wrk_script(list)).context(|| "write wrk's script".to_owned())?;
        let output = Command::new("wrk")
            .args(["-t", "2", "-c", &WRK_CONNECTIONS.to_string(), "-d", &format!("{seconds}s"), "-s"])
            .arg(&script)
            .arg(format!("http://{address}"))
            .output()
            .context(|| "run wrk".to_owned())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut fields =
            text.lines().find_map(|line| line.strip_prefix("dormer-bench ")).unwrap_or("").split(' ');
        let mut next = || fields.next().and_then(|field| field.parse::<f64>().ok());
        let (Some(requests), Some(microseconds), Some(not_found), Some(broken)) =
            (next(), next(), next(), next())
        else {
            return Err(Error::new(format!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr))));
        };
        let expected = if hit { 0.0 } else { requests };
        if broken > 0.0 || (not_found - expected).abs() > 0.5 {
            return Err(Error::new(format!(
                "{not_found} of {requests} answers were errors, {broken} broken: {text}"
            )));
        }
        Ok(requests / microseconds * 1e6)
    }
}

/// Walks through the paths, and reports in a form that is easy to parse.
fn wrk_script(list: &Path) -> String {
    const SCRIPT: &str = "local requests, next_one = {}, 0
init = function()
  for path in io.lines('LIST') do requests[#requests + 1] = wrk.format('GET', path) end
end
request = function()
  next_one = next_one % #requests + 1
  return requests[next_one]
end
done = function(summary)
  local e = summary.errors
  local broken = e.connect + e.read + e.write + e.timeout
  print(string.format('dormer-bench %d %d %d %d', summary.requests, summary.duration, e.status, broken))
end
";
    SCRIPT.replace("LIST", &list.display().to_string())
}

/// The URL of the NAR in a narinfo.
pub(crate) fn nar_url(narinfo_url: &str, narinfo: &[u8]) -> Result<String> {
    let text = String::from_utf8_lossy(narinfo);
    let url = text.lines().find_map(|line| line.strip_prefix("URL: "));
    let url = url.ok_or_else(|| Error::new(format!("{narinfo_url} has no URL")))?;
    Ok(format!("/{CACHE}/{url}"))
}

pub(crate) fn fetch(connection: &mut Connection, url: &str) -> Result<Vec<u8>> {
    let (status, body) = connection.get(url)?;
    if status == 200 { Ok(body) } else { Err(Error::new(format!("GET {url} was answered {status}"))) }
}

fn write_below(root: &Path, url: &str, bytes: &[u8]) -> Result<()> {
    let path = root.join(url.trim_start_matches('/'));
    fs::write(&path, bytes).context(|| format!("write {}", path.display()))
}

/// Verifies the served NAR, because a fast wrong answer is not a figure.
pub(crate) fn check_nar(entry: &Entry, compressed: &[u8]) -> Result<()> {
    let nar = zstd::decode_all(compressed).context(|| format!("decompress {}", entry.store_path))?;
    if hex::encode(Sha256::digest(&nar)) == entry.nar_hash_hex {
        Ok(())
    } else {
        Err(Error::new(format!("{} came back with another hash", entry.store_path)))
    }
}

/// Pulls all URLs `passes` times. Each connection takes the next free URL. Returns the received
/// bytes.
pub(crate) fn pull(
    connect: &(dyn Fn(usize) -> Result<Connection> + Sync),
    urls: &[String],
    passes: usize,
    connections: usize,
) -> Result<u64> {
    let next = AtomicUsize::new(0);
    let read = AtomicU64::new(0);
    in_parallel(connections, |number| {
        let mut connection = connect(number)?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= urls.len() * passes {
                return Ok(());
            }
            let url = &urls[number % urls.len()];
            let (status, bytes) = connection.get_discarding(url)?;
            if status != 200 {
                return Err(Error::new(format!("GET {url} was answered {status}")));
            }
            read.fetch_add(bytes, Ordering::Relaxed);
        }
    })?;
    Ok(read.into_inner())
}
