//! The Markdown of each benchmark's results.

use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::beside::BesideAll;
use crate::chunks::Chunks;
use crate::edge::Edge;
use crate::error::Result;
use crate::floors::{Floors, REFERENCE_LEVEL};
use crate::gc::{PlanCosts, Recompression};
use crate::hook::Hook;
use crate::ingest::{Configuration, Ingest, Push};
use crate::levels::Row;
use crate::measure::Samples;
use crate::memory::{ClientMemory, Memory};
use crate::pages::PageCosts;
use crate::production::{Production, Pull, Push as ProductionPush};
use crate::reads::Reads;
use crate::recover::Recovery;
use crate::report::{Table, load, megabytes};
use crate::worker::WorkerCpu;

/// All tables with results.
pub(crate) fn all(results: &Path) -> Result<String> {
    let mut text = String::new();
    if let Some(levels) = load::<Levels>(results, "levels")? {
        text += "## Levels and chunk sizes\n\n";
        text += &levels.markdown();
    }
    if let Some(ingest) = load::<Ingest>(results, "ingest")? {
        text += "## Ingest\n\n";
        text += &ingest.markdown();
    }
    if let Some(chunks) = load::<Chunks>(results, "chunks")? {
        text += "## Push by chunks\n\n";
        text += &chunks.markdown();
    }
    if let Some(reads) = load::<Reads>(results, "pull")? {
        text += "## Pull\n\n";
        text += &reads.pull_markdown();
    }
    if let Some(reads) = load::<Reads>(results, "narinfo")? {
        text += "## Narinfos\n\n";
        text += &reads.narinfo_markdown();
    }
    if let Some(production) = load::<Production>(results, "production")? {
        text += "## PostgreSQL and S3\n\n";
        text += &production.markdown();
    }
    if let Some(edge) = load::<Edge>(results, "edge")? {
        text += "## Publishing\n\n";
        text += &edge.markdown();
    }
    if let Some(worker) = load::<WorkerCpu>(results, "worker")? {
        text += "## The Worker\n\n";
        text += &worker.markdown();
    }
    if let Some(memory) = load::<Memory>(results, "memory")? {
        text += "## Memory\n\n";
        text += &memory.markdown();
    }
    for name in ["beside", "beside-pages"] {
        if let Some(beside) = load::<BesideAll>(results, name)? {
            text += "## Beside collections and pages\n\n";
            text += &beside.markdown();
        }
    }
    for name in ["client-memory", "client-memory-slow"] {
        if let Some(memory) = load::<ClientMemory>(results, name)? {
            text += &memory.markdown();
        }
    }
    if let Some(hook) = load::<Hook>(results, "hook")? {
        text += "## The hook\n\n";
        text += &hook.markdown();
    }
    if let Some(recovery) = load::<Recovery>(results, "recover")? {
        text += "## Recovery\n\n";
        text += &recovery.markdown();
    }
    if let Some(costs) = load::<PlanCosts>(results, "gc")? {
        text += "## Planning a collection\n\n";
        text += &costs.markdown();
    }
    if let Some(costs) = load::<PageCosts>(results, "pages")? {
        text += "## Pages\n\n";
        text += &costs.markdown();
    }
    if let Some(recompression) = load::<Recompression>(results, "recompress")? {
        text += "## Recompression\n\n";
        text += &recompression.markdown();
    }
    Ok(text)
}

/// Results of `levels`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Levels {
    /// Floors of the first generation.
    pub(crate) floors: Floors,
    pub(crate) rows: Vec<Row>,
}

impl Levels {
    pub(crate) fn markdown(&self) -> String {
        let reference = self.floors.zstd_bytes.get(&REFERENCE_LEVEL).copied().unwrap_or_default();
        let sha256 = self.floors.sha256.median();
        let text = format!(
            "First generation: {} MB of NARs. Floors in CPU seconds: sha256 {sha256:.2}, blake3 {:.2}, zstd −3 of whole \
             NARs {:.2}. zstd −3 of whole NARs makes {} MB.\n\n",
            megabytes(self.floors.nar_bytes),
            self.floors.blake3.median(),
            self.floors.zstd.get(&REFERENCE_LEVEL).map_or(f64::NAN, Samples::median),
            megabytes(reference),
        );
        let mut table = Table::new(&[
            "chunks",
            "level",
            "CPU first: cut",
            "ids",
            "zstd",
            "with sha256",
            "CPU zstd second",
            "MB first",
            "MB both",
            "+ rebuild",
            "first / zstd −3",
            "both / zstd −3",
            "chunks first",
            "new in rebuild",
        ]);
        for row in &self.rows {
            let [first, second, rebuild] = row.generations.as_slice() else { continue };
            let all = sha256 + first.chunking.median() + first.ids.median() + first.encoding.median();
            table.row(&[
                format!("{} KiB", row.avg_kib),
                row.level.to_string(),
                format!("{:.2}", first.chunking.median()),
                format!("{:.2}", first.ids.median()),
                format!("{:.2}", first.encoding.median()),
                format!("{all:.2}"),
                format!("{:.2}", second.encoding.median()),
                megabytes(row.pack_bytes(1)),
                megabytes(row.pack_bytes(2)),
                megabytes(rebuild.pack_bytes),
                format!("{:.3}", row.pack_bytes(1) as f64 / reference as f64),
                format!("{:.3}", row.pack_bytes(2) as f64 / reference as f64),
                first.chunks.to_string(),
                format!("{} of {}", rebuild.new_chunks, rebuild.chunks),
            ]);
        }
        text + &table.finish()
    }
}

impl Ingest {
    pub(crate) fn markdown(&self) -> String {
        self.floors_markdown() + &self.pushes_markdown()
    }

    fn floors_markdown(&self) -> String {
        let mut table = Table::new(&["floor, first generation", "CPU seconds", "MB out"]);
        table.row(&["sha256".to_owned(), self.floors.sha256.spread(2), String::new()]);
        table.row(&["blake3".to_owned(), self.floors.blake3.spread(2), String::new()]);
        for (level, seconds) in &self.floors.zstd {
            let bytes = self.floors.zstd_bytes.get(level).copied().unwrap_or_default();
            table.row(&[format!("zstd −{level} of whole NARs"), seconds.spread(2), megabytes(bytes)]);
        }
        table.finish()
    }

    fn pushes_markdown(&self) -> String {
        let mut table = Table::new(&[
            "level",
            "connections",
            "pushed",
            "NAR MB",
            "server CPU s",
            "÷ floor",
            "wall s",
            "packs",
            "MB in packs",
            "÷ zstd −3 of first",
            "chunks new",
            "database MB",
            "… without listings",
            "statements a NAR",
        ]);
        for configuration in &self.configurations {
            for (number, push) in configuration.pushes.iter().enumerate() {
                let earlier = number.checked_sub(1).and_then(|number| configuration.pushes.get(number));
                table.row(&self.push_row(configuration, push, earlier));
            }
        }
        let mut text = table.finish();
        for configuration in &self.configurations {
            let _ = writeln!(
                text,
                "Peak memory of the server at level {}, {} connections: {} MiB.",
                configuration.level,
                configuration.connections,
                mebibytes(configuration.peak_memory.median())
            );
        }
        text + "\n"
    }

    fn push_row(&self, configuration: &Configuration, push: &Push, earlier: Option<&Push>) -> Vec<String> {
        let reference = self.floors.zstd_bytes.get(&REFERENCE_LEVEL).copied().unwrap_or_default() as f64;
        let new_chunks = push.chunks.median() - earlier.map_or(0.0, |earlier| earlier.chunks.median());
        let listings = push.listing_bytes.median();
        let floor = match earlier {
            None => format!("{:.2}", push.cpu.median() / self.floors.total(configuration.level)),
            Some(_) => String::new(),
        };
        vec![
            configuration.level.to_string(),
            configuration.connections.to_string(),
            push.name.clone(),
            megabytes(push.nar_bytes),
            push.cpu.spread(2),
            floor,
            push.wall.spread(1),
            format!("{:.0}", push.packs.median()),
            format!("{:.1}", push.pack_bytes.median() / 1e6),
            format!("{:.3}", push.pack_bytes.median() / reference),
            format!("{new_chunks:.0}"),
            format!("{:.2}", push.database_bytes.median() / 1e6),
            format!("{:.2}", (push.database_bytes.median() - listings) / 1e6),
            if push.statements.count() == 0 {
                "–".to_owned()
            } else {
                format!("{:.1}", push.statements.median() / push.nars as f64)
            },
        ]
    }
}

impl Reads {
    pub(crate) fn pull_markdown(&self) -> String {
        let mut text = format!(
            "A run reads {} NARs, {} MB on the wire ({} MB of NARs).\n\n",
            self.nars,
            megabytes(self.wire_bytes),
            megabytes(self.nar_bytes)
        );
        let mut table = Table::new(&[
            "",
            "Dormer wall s",
            "nginx wall s",
            "nginx ÷ Dormer",
            "Dormer MB/s",
            "nginx MB/s",
            "Dormer CPU s",
            "nginx CPU s",
        ]);
        for comparison in &self.comparisons {
            let (dormer, nginx) = (&comparison.dormer.figure, &comparison.nginx.figure);
            let speed = |wall: &Samples| format!("{:.0}", self.wire_bytes as f64 / 1e6 / wall.median());
            table.row(&[
                comparison.name.clone(),
                dormer.spread(3),
                nginx.spread(3),
                format!("{:.2}", nginx.median() / dormer.median()),
                speed(dormer),
                speed(nginx),
                format!("{:.2}", comparison.dormer.cpu.median()),
                format!("{:.2}", comparison.nginx.cpu.median()),
            ]);
        }
        text += &table.finish();
        text
    }

    pub(crate) fn narinfo_markdown(&self) -> String {
        let mut table = Table::new(&[
            "",
            "Dormer answers/s",
            "nginx answers/s",
            "Dormer ÷ nginx",
            "Dormer CPU s",
            "nginx CPU s",
        ]);
        for comparison in &self.comparisons {
            table.row(&[
                comparison.name.clone(),
                comparison.dormer.figure.spread(0),
                comparison.nginx.figure.spread(0),
                format!("{:.2}", comparison.dormer.figure.median() / comparison.nginx.figure.median()),
                format!("{:.2}", comparison.dormer.cpu.median()),
                format!("{:.2}", comparison.nginx.cpu.median()),
            ]);
        }
        table.finish()
    }
}

impl Production {
    pub(crate) fn markdown(&self) -> String {
        let mut table = Table::new(&[
            "pushed",
            "connections",
            "NAR MB",
            "PUTs",
            "… per GB",
            "other requests",
            "server CPU s",
            "database CPU s",
            "both per GB",
            "store CPU s",
            "wall s",
            "database MB after it",
            "… without listings",
            "statements a NAR",
        ]);
        for (number, push) in self.pushes.iter().enumerate() {
            let before = number.checked_sub(1).map(|number| &self.pushes[number]);
            let before = before.filter(|before| before.connections == push.connections);
            table.row(&production_push_row(push, before));
        }
        let mut text = format!("Servers: {}.\n\n", self.replicas);
        text += &table.finish();
        let mut table = Table::new(&[
            "read back",
            "GETs",
            "HEADs",
            "MB served",
            "MB read",
            "wall s",
            "MB/s",
            "server CPU s",
            "database CPU s",
            "store CPU s",
            "statements",
        ]);
        for pull in &self.pulls {
            table.row(&pull_row(pull));
        }
        let rclone = &self.rclone;
        let speed = rclone.bytes.median() / 1e6 / rclone.wall.median();
        table.row(&[
            "rclone, all packs, 8 connections".to_owned(),
            String::new(),
            String::new(),
            String::new(),
            format!("{:.1}", rclone.bytes.median() / 1e6),
            rclone.wall.spread(2),
            format!("{speed:.0}"),
            String::new(),
            String::new(),
            format!("{:.2}", rclone.cpu_store.median()),
            String::new(),
        ]);
        text += &table.finish();
        let _ = writeln!(text, "Peak memory of a server: {} MiB.\n", mebibytes(self.peak_memory.median()));
        text
    }
}

fn production_push_row(push: &ProductionPush, before: Option<&ProductionPush>) -> Vec<String> {
    let gigabytes = push.nar_bytes as f64 / 1e9;
    let both = push.cpu.servers.median() + push.cpu.database.median();
    let grown = push.database_bytes.median() - before.map_or(0.0, |before| before.database_bytes.median());
    let listings = push.listing_bytes.median() - before.map_or(0.0, |before| before.listing_bytes.median());
    vec![
        push.name.clone(),
        push.connections.to_string(),
        megabytes(push.nar_bytes),
        push.puts.spread(0),
        format!("{:.0}", push.puts.median() / gigabytes),
        format!("{:.0}", push.other_requests.median()),
        push.cpu.servers.spread(1),
        push.cpu.database.spread(1),
        format!("{:.1}", both / gigabytes),
        push.cpu.store.spread(1),
        push.wall.spread(1),
        format!("{:.2} (+ {:.2} per GB)", push.database_bytes.median() / 1e6, grown / 1e6 / gigabytes),
        format!(
            "{:.2} (+ {:.2} per GB)",
            (push.database_bytes.median() - push.listing_bytes.median()) / 1e6,
            (grown - listings) / 1e6 / gigabytes
        ),
        format!("{:.1}", push.statements.median() / push.nars as f64),
    ]
}

fn pull_row(pull: &Pull) -> Vec<String> {
    vec![
        format!("{} connection{}", pull.connections, if pull.connections == 1 { "" } else { "s" }),
        pull.gets.spread(0),
        pull.heads.spread(0),
        format!("{:.1}", pull.wire_bytes.median() / 1e6),
        format!("{:.1}", pull.received_bytes.median() / 1e6),
        pull.wall.spread(2),
        format!("{:.0}", pull.wire_bytes.median() / 1e6 / pull.wall.median()),
        pull.cpu.servers.spread(2),
        pull.cpu.database.spread(2),
        pull.cpu.store.spread(2),
        format!("{:.0}", pull.statements.median()),
    ]
}

impl ClientMemory {
    pub(crate) fn markdown(&self) -> String {
        format!(
            "A push by chunks of {} paths of {} MiB, {}: peak memory of the client {} MiB, {:.1} s.\n\n",
            self.paths,
            self.bytes_each / 1024 / 1024,
            self.link,
            mebibytes(self.peak_memory_bytes as f64),
            self.wall_seconds,
        )
    }
}

impl Memory {
    pub(crate) fn markdown(&self) -> String {
        format!(
            "{} pushes of {} MiB at once: peak memory of the server {} MiB, {:.1} CPU seconds, {:.1} s.\n\n",
            self.pushes,
            self.bytes_each / (1024 * 1024),
            mebibytes(self.peak_memory_bytes as f64),
            self.cpu_seconds,
            self.wall_seconds
        )
    }
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.1}", bytes / f64::from(1024 * 1024))
}
