//! A lost database: how long `dormer recover` takes to make it anew from the packs and the journal
//! of the corpus.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::corpus::Generation;
use crate::error::{Context, Error, Result};
use crate::measure::{Samples, children_cpu_seconds};
use crate::push;
use crate::report::{Table, megabytes, note};
use crate::server::Server;

/// Connections of the pushes before the loss.
const CONNECTIONS: usize = 5;

/// What recoveries cost.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Recovery {
    paths: u64,
    packs: u64,
    chunks: u64,
    pack_bytes: u64,
    journal_bytes: u64,
    wall_seconds: Samples,
    cpu_seconds: Samples,
}

/// The part of the program's report that is shown.
#[derive(Debug, Deserialize)]
struct Report {
    packs: u64,
    chunks: u64,
    paths: u64,
    lost: u64,
}

impl Recovery {
    pub(crate) fn markdown(&self) -> String {
        let mut table =
            Table::new(&["paths", "packs", "chunks", "MB of packs", "MB of the journal", "wall s", "CPU s"]);
        table.row(&[
            self.paths.to_string(),
            self.packs.to_string(),
            self.chunks.to_string(),
            megabytes(self.pack_bytes),
            megabytes(self.journal_bytes),
            format!("{:.2}", self.wall_seconds.median()),
            format!("{:.2}", self.cpu_seconds.median()),
        ]);
        table.finish()
    }
}

/// Pushes the generations, and then loses and recovers the database `runs` times.
pub(crate) fn measure(
    dormer: &Path,
    work: &Path,
    generations: &[Generation],
    runs: usize,
) -> Result<Recovery> {
    let data = work.join("recover");
    let server = Server::start(dormer, &data, true, &[("DORMER_JOURNAL_INTERVAL", "1s".to_owned())])?;
    for generation in generations {
        push::generation(&server, generation, CONNECTIONS)?;
        note(&format!("{}: pushed", generation.name));
    }
    let pack_bytes = server.stored()?.pack_bytes;
    // The server writes the last changes to the journal when it ends.
    drop(server);
    let mut hashes: Vec<&str> =
        generations.iter().flat_map(|generation| &generation.entries).map(|entry| &*entry.hash).collect();
    hashes.sort_unstable();
    hashes.dedup();
    let mut recovery = Recovery {
        paths: hashes.len() as u64,
        packs: 0,
        chunks: 0,
        pack_bytes,
        journal_bytes: folder_bytes(&data.join("storage/journal"))?,
        wall_seconds: Samples::default(),
        cpu_seconds: Samples::default(),
    };
    for _ in 0..runs {
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(data.join(format!("index.sqlite{suffix}")));
        }
        let (begun, cpu) = (Instant::now(), children_cpu_seconds()?);
        let report = recover(dormer, &data)?;
        recovery.wall_seconds.push(begun.elapsed().as_secs_f64());
        recovery.cpu_seconds.push(children_cpu_seconds()? - cpu);
        if (report.paths, report.lost) != (recovery.paths, 0) {
            return Err(Error::new(format!("not all of {} paths are recovered: {report:?}", recovery.paths)));
        }
        (recovery.packs, recovery.chunks) = (report.packs, report.chunks);
    }
    fs::remove_dir_all(&data).context(|| format!("remove {}", data.display()))?;
    Ok(recovery)
}

fn recover(dormer: &Path, data: &Path) -> Result<Report> {
    let output = Command::new(dormer)
        .args(["recover", "--from-store", "--json"])
        .env("DORMER_DATA_DIR", data)
        .stderr(Stdio::inherit())
        .output()
        .context(|| format!("start {}", dormer.display()))?;
    if !output.status.success() {
        return Err(Error::new(format!("the recovery ended with {}", output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).context(|| "read the report of the recovery".to_owned())
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).context(|| format!("list {}", folder.display()))? {
        let path = entry.context(|| format!("list {}", folder.display()))?.path();
        bytes += if path.is_dir() {
            folder_bytes(&path)?
        } else {
            path.metadata().context(|| format!("look at {}", path.display()))?.len()
        };
    }
    Ok(bytes)
}
