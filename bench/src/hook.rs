//! `dormer hook`: what it adds to each build. Calls one after the other, each a process of its own.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::measure::{children_cpu_seconds, wall_of};
use crate::server::CACHE;

/// Results of `hook`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Hook {
    pub(crate) calls: usize,
    pub(crate) cpu_seconds: f64,
    pub(crate) wall_seconds: f64,
}

/// Queues `calls` paths as Nix's hook does, in a queue that is empty at first.
pub(crate) fn measure(binary: &Path, work: &Path, calls: usize) -> Result<Hook> {
    let folder = work.join("hook");
    if folder.exists() {
        fs::remove_dir_all(&folder).context(|| format!("empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).context(|| format!("make {}", folder.display()))?;
    let queue = folder.join("queue");
    let cpu_before = children_cpu_seconds()?;
    let (wall_seconds, ()) = wall_of(|| (0..calls).try_for_each(|number| call(binary, &queue, number)))?;
    let cpu_seconds = children_cpu_seconds()? - cpu_before;
    let queued = waiting(binary, &queue)?;
    if queued != calls {
        return Err(Error::new(format!("{queued} of {calls} paths are in the queue")));
    }
    Ok(Hook { calls, cpu_seconds, wall_seconds })
}

fn call(binary: &Path, queue: &Path, number: usize) -> Result<()> {
    let status = Command::new(binary)
        .args(["hook", CACHE, "--queue-dir"])
        .arg(queue)
        .env_clear()
        .env("OUT_PATHS", format!("/nix/store/{number:0>32}-hook"))
        .stdin(Stdio::null())
        .status()
        .context(|| format!("start {}", binary.display()))?;
    if status.success() { Ok(()) } else { Err(Error::new(format!("`dormer hook` ended with {status}"))) }
}

/// Paths in the queue.
fn waiting(binary: &Path, queue: &Path) -> Result<usize> {
    let listed = Command::new(binary)
        .args(["queue", "list", "--json", "--queue-dir"])
        .arg(queue)
        .env_clear()
        .output()
        .context(|| format!("start {}", binary.display()))?;
    let text = String::from_utf8_lossy(&listed.stdout);
    Ok(text.lines().filter(|line| line.contains("\"waiting\"") && line.contains("queue_entry")).count())
}

impl Hook {
    pub(crate) fn markdown(&self) -> String {
        let each = |seconds: f64| seconds * 1000.0 / self.calls as f64;
        format!(
            "{} calls in a row: {:.1} ms CPU and {:.1} ms each.\n\n",
            self.calls,
            each(self.cpu_seconds),
            each(self.wall_seconds)
        )
    }
}
