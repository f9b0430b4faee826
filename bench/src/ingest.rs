//! Ingest: the cost for the real server to receive the corpus over HTTP, and the stored bytes.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::corpus::Generation;
use crate::error::Result;
use crate::floors::Floors;
use crate::measure::{Samples, wall_of};
use crate::push;
use crate::report::note;
use crate::server::Server;

/// Background work of the server after the last answer belongs to the push too.
const SETTLE: Duration = Duration::from_millis(500);

/// One generation's push in one configuration. Stored figures are totals after the push, not
/// differences.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Push {
    pub(crate) name: String,
    pub(crate) nars: usize,
    pub(crate) nar_bytes: u64,
    pub(crate) cpu: Samples,
    pub(crate) wall: Samples,
    pub(crate) packs: Samples,
    pub(crate) pack_bytes: Samples,
    pub(crate) chunks: Samples,
    pub(crate) database_bytes: Samples,
    pub(crate) listing_bytes: Samples,
    /// Empty if the server does not count statements.
    pub(crate) statements: Samples,
}

/// One configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Configuration {
    pub(crate) level: i32,
    pub(crate) connections: usize,
    pub(crate) pushes: Vec<Push>,
    /// Largest resident memory of the server over all pushes.
    pub(crate) peak_memory: Samples,
}

/// Results of `ingest`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ingest {
    /// Floors of the first generation.
    pub(crate) floors: Floors,
    pub(crate) default_level: i32,
    pub(crate) configurations: Vec<Configuration>,
}

/// The environment variable for a server's level.
pub(crate) fn level_setting(level: i32) -> (&'static str, String) {
    ("DORMER_CHUNKS_ZSTD_LEVEL", level.to_string())
}

/// Pushes all generations one after another, in every configuration, `runs` times in turns with the
/// floors.
pub(crate) fn measure(
    binary: &Path,
    work: &Path,
    generations: &[Generation],
    levels: &[i32],
    default_level: i32,
    connections: &[usize],
    runs: usize,
) -> Result<Ingest> {
    let mut configurations: Vec<Configuration> = Vec::new();
    for &level in levels {
        for &connections in connections {
            let pushes = generations
                .iter()
                .map(|generation| Push {
                    name: generation.name.clone(),
                    nars: generation.entries.len(),
                    nar_bytes: generation.bytes(),
                    ..Push::default()
                })
                .collect();
            configurations.push(Configuration {
                level,
                connections,
                pushes,
                peak_memory: Samples::default(),
            });
        }
    }
    let mut result = Ingest { default_level, configurations, ..Ingest::default() };
    generations.iter().try_for_each(Generation::warm)?;
    for run in 0..runs {
        result.floors.measure(&generations[0], levels)?;
        for configuration in &mut result.configurations {
            measure_once(binary, work, generations, configuration)?;
            note(&format!(
                "run {} of {runs}: level {}, {} connections: first generation {:.2} CPU-s",
                run + 1,
                configuration.level,
                configuration.connections,
                configuration.pushes[0].cpu.median()
            ));
        }
    }
    Ok(result)
}

fn measure_once(
    binary: &Path,
    work: &Path,
    generations: &[Generation],
    configuration: &mut Configuration,
) -> Result<()> {
    let server = Server::start(binary, &work.join("ingest"), true, &[level_setting(configuration.level)])?;
    for (generation, push) in generations.iter().zip(&mut configuration.pushes) {
        let statements = server.index_statements()?;
        let cpu = server.cpu_seconds()?;
        let (wall, ()) = wall_of(|| push::generation(&server, generation, configuration.connections))?;
        sleep(SETTLE);
        push.cpu.push(server.cpu_seconds()? - cpu);
        push.wall.push(wall);
        if let (Some(before), Some(after)) = (statements, server.index_statements()?) {
            push.statements.push((after - before) as f64);
        }
        let stored = server.stored()?;
        push.packs.push(stored.packs as f64);
        push.pack_bytes.push(stored.pack_bytes as f64);
        push.chunks.push(stored.chunks as f64);
        push.database_bytes.push(stored.database_bytes as f64);
        push.listing_bytes.push(stored.listing_bytes as f64);
    }
    configuration.peak_memory.push(server.peak_memory_bytes()? as f64);
    Ok(())
}
