//! Push by chunks beside Attic's API: `dormer push` itself, on one server program, directly and
//! over a slow link. Bytes, requests, CPU of both sides, wall time, memory of the client.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::corpus::Generation;
use crate::error::{Context, Error, Result};
use crate::floors::Floors;
use crate::ingest::level_setting;
use crate::link::{DIRECT, Gap, Link, LinkKind, SLOW, Traffic};
use crate::local_store::LocalStore;
use crate::measure::{Samples, children_cpu_seconds, peak_memory_bytes};
use crate::report::{Table, megabytes, note};
use crate::server::{CACHE, Server};

/// The words of `--api`.
const APIS: [&str; 2] = ["v2", "attic"];
/// The pushes of one round, by the name of the generation. The last one finds everything there.
const PUSHES: [(&str, &str); 4] =
    [("gen1", "all new"), ("gen2", "second generation"), ("rebuild", "mass rebuild"), ("gen1", "all known")];
/// Background work of the server after the last answer belongs to the push too.
const SETTLE: Duration = Duration::from_millis(500);

/// One push by one API over one link.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct ClientPush {
    pub(crate) api: String,
    pub(crate) link: String,
    pub(crate) what: String,
    pub(crate) nars: usize,
    pub(crate) nar_bytes: u64,
    pub(crate) sent: Samples,
    pub(crate) received: Samples,
    pub(crate) requests: Samples,
    /// Bytes that the packs grew by.
    pub(crate) pack_bytes: Samples,
    pub(crate) server_cpu: Samples,
    pub(crate) client_cpu: Samples,
    pub(crate) client_memory: Samples,
    pub(crate) wall: Samples,
}

/// Results of `chunks`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Chunks {
    pub(crate) level: i32,
    /// Floors of the first generation.
    pub(crate) floors: Floors,
    pub(crate) pushes: Vec<ClientPush>,
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cases {
    /// Only over the slow link.
    pub(crate) only_slow: bool,
    /// Only by chunks.
    pub(crate) only_chunks: bool,
}

/// Pushes all generations by both APIs over both links, `runs` times, in turns.
pub(crate) fn measure(
    binary: &Path,
    work: &Path,
    generations: &[Generation],
    cases: Cases,
    level: i32,
    runs: usize,
) -> Result<Chunks> {
    let links: &[LinkKind] = if cases.only_slow { &[SLOW] } else { &[DIRECT, SLOW] };
    let apis: &[&str] = if cases.only_chunks { &APIS[..1] } else { &APIS };
    let stores = generations
        .iter()
        .map(|generation| LocalStore::unpack(&work.join("stores").join(&generation.name), generation))
        .collect::<Result<Vec<_>>>()?;
    let mut result = Chunks { level, ..Chunks::default() };
    for run in 0..runs {
        result.floors.measure(&generations[0], &[level])?;
        let mut place = 0;
        for &link in links {
            for &api in apis {
                let server = Server::start(binary, &work.join("chunks"), true, &[level_setting(level)])?;
                let state = work.join("client-state");
                // A session of the last server would cost a request.
                let _ = fs::remove_dir_all(&state);
                for (name, what) in PUSHES {
                    let number = generations.iter().position(|generation| generation.name == name);
                    let number = number.ok_or_else(|| Error::new(format!("no generation {name}")))?;
                    if result.pushes.len() == place {
                        result.pushes.push(ClientPush {
                            api: api.to_owned(),
                            link: link.name.to_owned(),
                            what: what.to_owned(),
                            nars: generations[number].entries.len(),
                            nar_bytes: generations[number].bytes(),
                            ..ClientPush::default()
                        });
                    }
                    let push = &mut result.pushes[place];
                    let gaps = measure_push(binary, &server, link, &stores[number], &state, push)?;
                    note(&format!(
                        "run {} of {runs}: {what} by {api}, {}: {:.2} s",
                        run + 1,
                        link.name,
                        push.wall.median()
                    ));
                    note_gaps(&gaps);
                    place += 1;
                }
            }
        }
    }
    Ok(result)
}

fn measure_push(
    binary: &Path,
    server: &Server,
    kind: LinkKind,
    store: &LocalStore,
    state: &Path,
    push: &mut ClientPush,
) -> Result<Vec<Gap>> {
    let packs_before = server.stored()?.pack_bytes;
    let link = Link::start(server.address, kind)?;
    let (server_cpu, client_cpu) = (server.cpu_seconds()?, children_cpu_seconds()?);
    let (wall, memory) = push_from(binary, store, state, &push.api, &link, &server.token)?;
    push.wall.push(wall);
    sleep(SETTLE);
    let Traffic { sent, received, requests } = link.traffic();
    push.sent.push(sent as f64);
    push.received.push(received as f64);
    push.requests.push(requests as f64);
    push.client_cpu.push(children_cpu_seconds()? - client_cpu);
    push.server_cpu.push(server.cpu_seconds()? - server_cpu);
    push.client_memory.push(memory as f64);
    push.pack_bytes.push(server.stored()?.pack_bytes.saturating_sub(packs_before) as f64);
    Ok(link.gaps())
}

/// When the line had nothing to carry. The last byte of a push ends the last gap, so the time to
/// the last answer is in none.
fn note_gaps(gaps: &[Gap]) {
    if gaps.is_empty() {
        return;
    }
    let seconds: f64 = gaps.iter().map(|gap| gap.length.as_secs_f64()).sum();
    let gap = |gap: &Gap| format!(" {:.2}+{:.2}", gap.begin.as_secs_f64(), gap.length.as_secs_f64());
    let gaps: String = gaps.iter().map(gap).collect();
    note(&format!("  the line was idle for {seconds:.2} s:{gaps}"));
}

/// Runs `dormer push` of a whole store. Returns its wall seconds and the most memory that it had.
pub(crate) fn push_from(
    binary: &Path,
    store: &LocalStore,
    state: &Path,
    api: &str,
    link: &Link,
    token: &str,
) -> Result<(f64, u64)> {
    let paths = File::open(&store.list).context(|| "open the list of paths".to_owned())?;
    let search_path = format!("{}:/usr/bin:/bin", store.programs.display());
    let begun = Instant::now();
    let mut child = Command::new(binary)
        .args(["push", CACHE, "--stdin", "--no-progress", "--quiet", "--api", api])
        .env_clear()
        .env("PATH", search_path)
        .env("HOME", state)
        .env("XDG_STATE_HOME", state)
        .env("DORMER_ENDPOINT", format!("http://{}", link.address))
        .env("DORMER_TOKEN", token)
        .stdin(Stdio::from(paths))
        .spawn()
        .context(|| format!("start {}", binary.display()))?;
    let mut memory = 0;
    let status = loop {
        // The figure is gone with the process.
        memory = peak_memory_bytes(child.id()).unwrap_or(memory).max(memory);
        if let Some(status) = child.try_wait().context(|| "wait for the push".to_owned())? {
            break status;
        }
        sleep(Duration::from_millis(10));
    };
    let wall = begun.elapsed().as_secs_f64();
    if status.success() {
        Ok((wall, memory))
    } else {
        Err(Error::new(format!("`dormer push` ended with {status}")))
    }
}

impl Chunks {
    /// The table, with the floors of the first generation.
    pub(crate) fn markdown(&self) -> String {
        let mut table = Table::new(&[
            "link",
            "push",
            "API",
            "NARs",
            "MB of NARs",
            "MB sent",
            "sent / packs added",
            "requests",
            "server CPU",
            "client CPU",
            "client MiB",
            "wall",
        ]);
        for push in &self.pushes {
            let (sent, packs) = (push.sent.median(), push.pack_bytes.median());
            let ratio = if packs > 0.0 { format!("{:.3}", sent / packs) } else { "–".to_owned() };
            table.row(&[
                push.link.clone(),
                push.what.clone(),
                push.api.clone(),
                push.nars.to_string(),
                megabytes(push.nar_bytes),
                format!("{:.2}", sent / 1e6),
                ratio,
                format!("{:.0}", push.requests.median()),
                format!("{:.2} s", push.server_cpu.median()),
                format!("{:.2} s", push.client_cpu.median()),
                format!("{:.0}", push.client_memory.median() / 1_048_576.0),
                format!("{:.2} s", push.wall.median()),
            ]);
        }
        format!(
            "Level {}. sha256 + blake3 + zstd of the first generation: {:.2} CPU-seconds.\n\n{}",
            self.level,
            self.floors.total(self.level),
            table.finish()
        )
    }
}
