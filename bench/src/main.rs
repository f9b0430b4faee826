//! dormer-bench: what Dormer costs on a realistic corpus, compared with the floors of the same
//! work.
//!
//! Each subcommand measures one thing, writes its samples to RESULTS/NAME.json and its table to
//! stdout. `report` prints all tables of a results folder as Markdown. `bench/run` calls the
//! subcommands in order. Method: docs/PERFORMANCE.md.
#![expect(clippy::cast_precision_loss, reason = "counts become figures in tables; 2^53 is far away")]

mod beside;
mod chunks;
mod corpus;
mod edge;
mod error;
mod floors;
mod gc;
mod hook;
mod http;
mod ingest;
mod levels;
mod link;
mod local_store;
mod measure;
mod memory;
mod nginx;
mod pages;
mod production;
mod push;
mod reads;
mod recover;
mod replicas;
mod report;
mod server;
mod slices;
mod tables;
mod worker;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::corpus::Generation;
use crate::error::{Context as _, Result};
use crate::report::{note, print, save};

#[derive(Debug, Parser)]
#[command(about = "Benchmarks of Dormer on a realistic corpus, beside their floors.")]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Common {
    /// Folder for the corpus, scratch data and results; needs about 20 GB. Outside the repository.
    #[arg(long, env = "DORMER_BENCH_DIR", global = true, default_value = "/var/tmp/dormer-bench")]
    dir: PathBuf,
    /// Every twelfth path and little else: checks that the benchmarks work. The figures mean
    /// nothing.
    #[arg(long, global = true)]
    quick: bool,
    /// Runs of each measurement, taken in turns.
    #[arg(long, global = true, default_value_t = 5)]
    runs: usize,
    /// The program to measure, a release build.
    #[arg(long, global = true, default_value = "target/release/dormer")]
    dormer: PathBuf,
    /// The server's default zstd level.
    #[arg(long, global = true, default_value_t = 6)]
    default_level: i32,
}

impl Common {
    fn corpus(&self) -> PathBuf {
        self.dir.join("corpus")
    }

    /// Scratch data: data folders, static copies. Results are elsewhere, so this folder may be
    /// deleted at any time.
    fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    fn results(&self) -> PathBuf {
        self.dir.join("results")
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// zstd levels and chunk sizes, in process: CPU against bytes.
    Levels {
        /// zstd levels.
        #[arg(long, value_delimiter = ',', default_value = "1,2,3,4,5,6,7,8,9")]
        levels: Vec<i32>,
        /// Average chunk sizes in KiB. The smallest chunk is a quarter, the largest four times the
        /// average.
        #[arg(long, value_delimiter = ',', default_value = "128,256")]
        sizes: Vec<u32>,
    },
    /// Pushes of all generations to a real server, over Attic's API.
    Ingest {
        /// Connections to compare.
        #[arg(long, value_delimiter = ',', default_value = "5,32")]
        connections: Vec<usize>,
    },
    /// `dormer push` by chunks beside Attic's API, directly and over a slow link: bytes, requests,
    /// CPU of both sides.
    Chunks {
        /// Only over the slow link.
        #[arg(long)]
        only_slow: bool,
        /// Only by chunks, without Attic's API.
        #[arg(long)]
        only_chunks: bool,
    },
    /// Pulls of everything by a reader that discards the bytes, compared with nginx.
    Pull,
    /// Narinfo requests by wrk, compared with nginx.
    Narinfo {
        /// Seconds of one run.
        #[arg(long, default_value_t = 4)]
        seconds: u32,
    },
    /// Many large pushes at once: the server's peak memory.
    Memory {
        /// Number of concurrent pushes.
        #[arg(long, default_value_t = 8)]
        pushes: usize,
        /// Size of each push in MiB.
        #[arg(long, default_value_t = 1024)]
        mebibytes: u64,
    },
    /// One `dormer push` by chunks of many large paths: the client's peak memory.
    ClientMemory {
        /// Number of paths.
        #[arg(long, default_value_t = 10)]
        paths: usize,
        /// Size of each path in MiB.
        #[arg(long, default_value_t = 1024)]
        mebibytes: u64,
        /// Over the slow link of `chunks`.
        #[arg(long)]
        slow: bool,
    },
    /// `dormer hook`, one call after the other: CPU and wall time of each.
    Hook {
        /// Number of calls.
        #[arg(long, default_value_t = 1000)]
        calls: usize,
    },
    /// Pushes and pulls over PostgreSQL and S3, compared with rclone: requests, CPU of every part,
    /// bytes in the database.
    Production {
        /// Connections to compare; reads are measured after the first.
        #[arg(long, value_delimiter = ',', default_value = "5,32")]
        connections: Vec<usize>,
        /// Number of servers.
        #[arg(long, default_value_t = 1)]
        replicas: usize,
    },
    /// Publishing to a bucket, compared with rclone syncing the same files: requests, wall time,
    /// CPU.
    Edge,
    /// The Worker in workerd, compared with a passthrough in JavaScript. Run from the repository's
    /// root, after scripts/build-worker.sh.
    Worker,
    /// Planning a collection over a large index, on SQLite and PostgreSQL: CPU and peak memory.
    Gc {
        /// Objects in the index.
        #[arg(long, default_value_t = 1_000_000)]
        objects: u64,
        /// Chunks in the index; a multiple of the objects.
        #[arg(long, default_value_t = 5_000_000)]
        chunks: u64,
        /// SQLite only.
        #[arg(long)]
        no_postgres: bool,
    },
    /// Plans a collection over a database, and prints what that cost this process as JSON.
    #[command(hide = true)]
    GcPlan {
        /// A file, or the URL of a PostgreSQL database.
        database: String,
    },
    /// Pages for people, of a cache with many paths, on SQLite and PostgreSQL: CPU, statements,
    /// bytes.
    Pages {
        /// Paths in the cache.
        #[arg(long, default_value_t = 1_000_000)]
        objects: u64,
        /// SQLite only.
        #[arg(long)]
        no_postgres: bool,
    },
    /// Recompression of cold packs: bytes saved against CPU.
    Recompress {
        /// zstd levels, each compared with the server's default level.
        #[arg(long, value_delimiter = ',', default_value = "9,12,19")]
        levels: Vec<u8>,
    },
    /// The database is lost and recovered from the store: wall time and CPU.
    Recover,
    /// Pushes and pulls beside collections and beside pages, over a large index, and what the
    /// record of uses costs.
    Beside {
        /// Objects in the index, beside the corpus.
        #[arg(long, default_value_t = 1_000_000)]
        objects: u64,
        /// Only what pages take: ten pairs of slices for each run.
        #[arg(long)]
        only_pages: bool,
        /// SQLite only.
        #[arg(long)]
        no_postgres: bool,
    },
    /// All tables of the results, as Markdown.
    Report,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("dormer-bench: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let common = &cli.common;
    match &cli.command {
        Command::Levels { levels, sizes } => run_levels(common, levels, sizes),
        Command::Ingest { connections } => run_ingest(common, connections),
        Command::Chunks { only_slow, only_chunks } => {
            let generations = Generation::load_all(&common.corpus(), common.quick)?;
            let (work, level) = (common.work(), common.default_level);
            let cases = chunks::Cases { only_slow: *only_slow, only_chunks: *only_chunks };
            let chunks = chunks::measure(&common.dormer, &work, &generations, cases, level, common.runs)?;
            let name = if *only_slow || *only_chunks { "chunks-some" } else { "chunks" };
            save(&common.results(), name, &chunks)?;
            print(&chunks.markdown())
        }
        Command::Pull => {
            let reads = pair(common)?.pull(common.runs)?;
            save(&common.results(), "pull", &reads)?;
            print(&reads.pull_markdown())
        }
        Command::Narinfo { seconds } => {
            let reads = pair(common)?.narinfos(common.runs, if common.quick { 1 } else { *seconds })?;
            save(&common.results(), "narinfo", &reads)?;
            print(&reads.narinfo_markdown())
        }
        Command::Memory { pushes, mebibytes } => {
            let mebibytes = if common.quick { mebibytes / 16 } else { *mebibytes };
            let memory = memory::measure(&common.dormer, &common.work(), *pushes, mebibytes)?;
            save(&common.results(), "memory", &memory)?;
            print(&memory.markdown())
        }
        Command::ClientMemory { paths, mebibytes, slow } => {
            let mebibytes = if common.quick { mebibytes / 16 } else { *mebibytes };
            let (name, kind) =
                if *slow { ("client-memory-slow", link::SLOW) } else { ("client-memory", link::DIRECT) };
            let memory = memory::measure_client(&common.dormer, &common.work(), *paths, mebibytes, kind)?;
            save(&common.results(), name, &memory)?;
            print(&memory.markdown())
        }
        Command::Hook { calls } => {
            let hook = hook::measure(&common.dormer, &common.work(), *calls)?;
            save(&common.results(), "hook", &hook)?;
            print(&hook.markdown())
        }
        Command::Production { connections, replicas } => {
            let mut generations = Generation::load_all(&common.corpus(), common.quick)?;
            generations.truncate(2);
            let work = common.work();
            let production = production::measure(
                &common.dormer,
                &work,
                &generations,
                connections,
                *replicas,
                common.runs,
            )?;
            save(&common.results(), "production", &production)?;
            print(&production.markdown())
        }
        Command::Edge => {
            let generation = Generation::load(&common.corpus(), "gen1", common.quick)?;
            let edge = edge::measure(&common.dormer, &common.work(), &generation, common.quick, common.runs)?;
            save(&common.results(), "edge", &edge)?;
            print(&edge.markdown())
        }
        Command::Worker => {
            let cpu = worker::measure(Path::new("."), &common.work(), common.runs)?;
            save(&common.results(), "worker", &cpu)?;
            print(&cpu.markdown())
        }
        Command::Gc { objects, chunks, no_postgres } => {
            let (objects, chunks) =
                if common.quick { (objects / 100, chunks / 100) } else { (*objects, *chunks) };
            let costs = gc::measure(&common.work(), objects, chunks, !no_postgres)?;
            save(&common.results(), "gc", &costs)?;
            print(&costs.markdown())
        }
        Command::GcPlan { database } => {
            let cost = gc::plan(database)?;
            print(&serde_json::to_string(&cost).context(|| "encode the cost".to_owned())?)
        }
        Command::Pages { objects, no_postgres } => {
            let objects = if common.quick { objects / 100 } else { *objects };
            let costs = pages::measure(&common.dormer, &common.work(), objects, !no_postgres)?;
            save(&common.results(), "pages", &costs)?;
            print(&costs.markdown())
        }
        Command::Recompress { levels } => {
            let generation = Generation::load(&common.corpus(), "gen1", common.quick)?;
            let done = gc::recompress(&generation, &common.work(), common.default_level, levels)?;
            save(&common.results(), "recompress", &done)?;
            print(&done.markdown())
        }
        Command::Recover => {
            let generations = Generation::load_all(&common.corpus(), common.quick)?;
            let recovery = recover::measure(&common.dormer, &common.work(), &generations, common.runs)?;
            save(&common.results(), "recover", &recovery)?;
            print(&recovery.markdown())
        }
        Command::Beside { objects, only_pages, no_postgres } => {
            let generations = Generation::load_all(&common.corpus(), common.quick)?;
            let objects = if common.quick { objects / 100 } else { *objects };
            let beside = beside::measure(
                &common.dormer,
                &common.work(),
                &generations,
                objects,
                !no_postgres,
                *only_pages,
                common.runs,
            )?;
            save(&common.results(), if *only_pages { "beside-pages" } else { "beside" }, &beside)?;
            print(&beside.markdown())
        }
        Command::Report => print(&tables::all(&common.results())?),
    }
}

fn pair(common: &Common) -> Result<reads::Pair> {
    let generation = Generation::load(&common.corpus(), "gen1", common.quick)?;
    reads::Pair::start(&common.dormer, &common.work(), &generation, common.default_level)
}

fn run_ingest(common: &Common, connections: &[usize]) -> Result<()> {
    let generations = Generation::load_all(&common.corpus(), common.quick)?;
    let mut levels = vec![floors::REFERENCE_LEVEL];
    if common.default_level != floors::REFERENCE_LEVEL {
        levels.push(common.default_level);
    }
    let ingest = ingest::measure(
        &common.dormer,
        &common.work(),
        &generations,
        &levels,
        common.default_level,
        connections,
        common.runs,
    )?;
    save(&common.results(), "ingest", &ingest)?;
    print(&ingest.markdown())
}

fn run_levels(common: &Common, levels: &[i32], sizes: &[u32]) -> Result<()> {
    let generations = Generation::load_all(&common.corpus(), common.quick)?;
    let mut floors = floors::Floors::default();
    for _ in 0..common.runs {
        floors.measure(&generations[0], &[floors::REFERENCE_LEVEL])?;
    }
    let rows = levels::measure(&generations, sizes, levels, common.runs, |row| {
        note(&format!("{} KiB, level {}: done", row.avg_kib, row.level));
    })?;
    let result = tables::Levels { floors, rows };
    save(&common.results(), "levels", &result)?;
    print(&result.markdown())
}
