//! What other work leaves to pushes and reads: their rate beside a server that collects all the
//! time, and beside people that look at its pages; and what the record of uses adds to reads.
//!
//! The database holds as many objects as a large cache, filled by the database itself, and the
//! corpus beside them. Each run starts from a copy, so that every push is new. People come and go
//! within a run, in slices (`slices.rs`): what they take is less than two runs differ by.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use dormer_testkit::services::Postgres;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Connection as _, raw_sql};

use crate::corpus::Generation;
use crate::error::{Context, Error, Result};
use crate::gc::{Scale, runtime};
use crate::http::Connection;
use crate::measure::{Samples, tree_cpu_seconds, wall_of};
use crate::memory;
use crate::push::{self, in_parallel};
use crate::reads::{fetch, nar_url, pull};
use crate::replicas::Replicas;
use crate::report::{Table, note};
use crate::server::CACHE;
use crate::slices::{self, Slices};

/// Connections of pushes and pulls.
const CONNECTIONS: usize = 5;

/// How often a run pulls the first generation.
const PASSES: usize = 40;

/// Longest wait for the end of a collection.
const COLLECTION_MAX: Duration = Duration::from_mins(5);

/// Narinfos that a run asks for, each once.
const NARINFOS: usize = 50_000;

/// Time between two pages, over all people that look at them: four pages a second are a page each
/// four seconds for sixteen people.
const PAGE_PAUSE: Duration = Duration::from_millis(250);

/// Pairs of slices for each run.
const PAIRS_PER_RUN: usize = 10;

/// A path that is pushed beside pages: 256 KiB, half of it text.
const PUSHED_BLOCKS: u64 = 4;

/// The largest NAR that is pulled beside pages: a slice sees hundreds of them.
const PULLED_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Wall seconds of the same work.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Rates {
    /// Of pushing the second generation.
    push: Samples,
    /// Of pulling the first generation.
    pull: Samples,
}

/// The rate beside other work, as a share of the rate alone. Both samples are times.
fn rate(alone: &Samples, beside: &Samples) -> String {
    format!("{:.2}", alone.median() / beside.median())
}

/// One database.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Beside {
    database: String,
    objects: u64,
    alone: Rates,
    with_collections: Rates,
    /// Collections that ended during pushes and pulls, and the one that ended next.
    collections: Samples,
    /// Paths pushed a second, in slices with and without people that look at pages.
    pushes_with_pages: Slices,
    /// Bytes pulled a second, in slices with and without people that look at pages.
    pulls_with_pages: Slices,
    /// CPU seconds of the server for all narinfos, without a use to record.
    narinfos: Samples,
    /// The same with a use to record for each.
    narinfos_with_uses: Samples,
    narinfo_count: usize,
    /// CPU seconds of the server for the narinfos and the NARs of the first generation.
    pull_cpu: Samples,
    paths: usize,
}

/// All databases.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct BesideAll(Vec<Beside>);

impl BesideAll {
    pub(crate) fn markdown(&self) -> String {
        let mut rates = Table::new(&["database", "objects", "what", "beside", "alone s", "beside s", "rate"]);
        let mut pages =
            Table::new(&["database", "objects", "what", "pages", "slices", "rate", "rate by CPU"]);
        let mut uses =
            Table::new(&["database", "narinfo, no use due, µs", "use due, µs", "a path pulled, µs", "share"]);
        for one in &self.0 {
            for (what, slices) in [("pushes", &one.pushes_with_pages), ("pulls", &one.pulls_with_pages)] {
                pages.row(&[
                    one.database.clone(),
                    one.objects.to_string(),
                    what.to_owned(),
                    slices.beside_count.to_string(),
                    slices.count().to_string(),
                    slices.rate(),
                    slices.rate_by_cpu(),
                ]);
            }
            if one.alone.push.count() == 0 {
                // Only pages were measured.
                continue;
            }
            let (alone, beside) = (&one.alone, &one.with_collections);
            for (what, alone, beside) in
                [("pushes", &alone.push, &beside.push), ("pulls", &alone.pull, &beside.pull)]
            {
                rates.row(&[
                    one.database.clone(),
                    one.objects.to_string(),
                    what.to_owned(),
                    format!("{:.0} collections", one.collections.median()),
                    alone.spread(2),
                    beside.spread(2),
                    rate(alone, beside),
                ]);
            }
            let each = |seconds: f64, count: usize| seconds * 1e6 / count as f64;
            let (without, with) = (one.narinfos.median(), one.narinfos_with_uses.median());
            let path = each(one.pull_cpu.median(), one.paths);
            let added = each(with - without, one.narinfo_count);
            uses.row(&[
                one.database.clone(),
                format!("{:.1}", each(without, one.narinfo_count)),
                format!("{:.1}", each(with, one.narinfo_count)),
                format!("{path:.0}"),
                format!("{:.2} %", 100.0 * added / path),
            ]);
        }
        rates.finish() + &pages.finish() + &uses.finish()
    }
}

/// Where a run finds its database and packs.
struct Place<'a> {
    postgres: Option<&'a Postgres>,
    /// Data folders, one for the copy of each run.
    work: &'a Path,
    /// What every run starts from: a folder, and the URL of a database if there is one.
    template: (std::path::PathBuf, Option<String>),
}

impl Place<'_> {
    fn environment(folder: &Path, url: Option<&str>, interval: &str) -> Vec<(String, String)> {
        let mut environment = vec![
            ("DORMER_DATA_DIR".to_owned(), folder.display().to_string()),
            ("DORMER_GARBAGE_COLLECTION_INTERVAL".to_owned(), interval.to_owned()),
        ];
        environment.extend(url.map(|url| ("DORMER_DATABASE_URL".to_owned(), url.to_owned())));
        environment
    }

    /// CPU seconds of the server and of its database so far.
    fn cpu_seconds(&self, server: &Replicas) -> Result<f64> {
        let database = self.postgres.map_or(Ok(0.0), |postgres| tree_cpu_seconds(postgres.process_id()))?;
        Ok(server.cpu_seconds()? + database)
    }

    /// Waits for the end of the next collection, and returns how many have ended. The next one
    /// begins seconds later, so what runs between two waits runs beside collections.
    fn wait_for_collection(&self, server: &Replicas) -> Result<f64> {
        let ended = || Ok::<f64, Error>(server.scrape()?.sum("dormer_gc_runs_total"));
        let (before, deadline) = (ended()?, Instant::now() + COLLECTION_MAX);
        while Instant::now() < deadline {
            let now = ended()?;
            if now > before {
                return Ok(now);
            }
            sleep(Duration::from_millis(100));
        }
        Err(Error::new(format!("no collection ends; see {}", self.work.display())))
    }

    /// Makes a copy, lets `prepare` change its database by SQL, and starts a server on it.
    fn start(&self, binary: &Path, interval: &str, prepare: &str) -> Result<Replicas> {
        let folder = self.work.join("run");
        let _ = fs::remove_dir_all(&folder);
        copy_folder(&self.template.0, &folder)?;
        let mut url = None;
        if let (Some(postgres), Some(template)) = (self.postgres, &self.template.1) {
            let name = template.rsplit('/').next().unwrap_or_default();
            postgres.sql(&postgres.url("postgres"), "DROP DATABASE IF EXISTS run");
            postgres.sql(&postgres.url("postgres"), &format!("CREATE DATABASE run TEMPLATE {name}"));
            url = Some(postgres.url("run"));
        }
        match (&url, self.postgres) {
            (Some(url), Some(postgres)) => drop(postgres.sql(url, prepare)),
            _ => runtime()?.block_on(sqlite(&folder.join("index.sqlite"), prepare))?,
        }
        Replicas::start(
            binary,
            &self.work.join("logs"),
            Self::environment(&folder, url.as_deref(), interval),
            1,
        )
    }
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    objects: u64,
    runs: usize,
    only_pages: bool,
}

/// Fills an index on each database, and measures.
pub(crate) fn measure(
    binary: &Path,
    work: &Path,
    generations: &[Generation],
    objects: u64,
    on_postgres: bool,
    only_pages: bool,
    runs: usize,
) -> Result<BesideAll> {
    let work = work.join("beside");
    let _ = fs::remove_dir_all(&work);
    let mut all = BesideAll::default();
    let sizes = Sizes { objects, runs, only_pages };
    all.0.push(measure_on("SQLite", None, binary, &work.join("sqlite"), generations, sizes)?);
    if on_postgres {
        let server = Postgres::start_with(&["max_wal_size=4GB", "shared_buffers=256MB"]);
        let folder = work.join("postgresql");
        all.0.push(measure_on("PostgreSQL", Some(&server), binary, &folder, generations, sizes)?);
    }
    fs::remove_dir_all(&work).context(|| format!("remove {}", work.display()))?;
    Ok(all)
}

fn measure_on(
    database: &str,
    postgres: Option<&Postgres>,
    binary: &Path,
    work: &Path,
    generations: &[Generation],
    Sizes { objects, runs, only_pages }: Sizes,
) -> Result<Beside> {
    let [first, second, ..] = generations else { return Err(Error::new("two generations are needed")) };
    let folder = work.join("template");
    fs::create_dir_all(&folder).context(|| format!("make {}", folder.display()))?;
    let url = postgres.map(Postgres::create_database);
    let environment = Place::environment(&folder, url.as_deref(), "0s");
    // The first server makes the cache.
    drop(Replicas::start(binary, &work.join("logs"), environment.clone(), 1)?);
    note(&format!("filling {database} with {objects} objects"));
    let scale = Scale { objects, chunks: 5 };
    match (postgres, &url) {
        (Some(postgres), Some(url)) => runtime()?.block_on(scale.fill_postgres(postgres, url))?,
        _ => runtime()?.block_on(scale.fill_sqlite(&folder.join("index.sqlite")))?,
    }
    let server = Replicas::start(binary, &work.join("logs"), environment, 1)?;
    push::generation_over(&|number| server.connect(number), first, CONNECTIONS)?;
    drop(server);
    let place = Place { postgres, work, template: (folder, url) };
    let mut result =
        Beside { database: database.to_owned(), objects, paths: first.entries.len(), ..Beside::default() };
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    for run in 0..if only_pages { 0 } else { runs } {
        // No side is always the first: what a run leaves to be written slows the next one.
        for collects in if run % 2 == 0 { [false, true] } else { [true, false] } {
            let interval = if collects { "1s" } else { "0s" };
            let server = place.start(binary, interval, "SELECT 1")?;
            let collections = if collects { place.wait_for_collection(&server)? } else { 0.0 };
            let connect = |number| server.connect(number);
            let (push, ()) = wall_of(|| push::generation_over(&connect, second, CONNECTIONS))?;
            let cpu = place.cpu_seconds(&server)?;
            let nars = nars_of(&server, first, u64::MAX)?;
            let (pull, _) = wall_of(|| pull(&connect, &nars, PASSES, CONNECTIONS))?;
            let rates = if collects {
                result.collections.push(place.wait_for_collection(&server)? - collections);
                &mut result.with_collections
            } else {
                // One pass of the NARs has its share of the CPU of all passes.
                result.pull_cpu.push((place.cpu_seconds(&server)? - cpu) / PASSES as f64);
                &mut result.alone
            };
            rates.push.push(push);
            rates.pull.push(pull);
        }
        for is_due in [false, true] {
            let last_use = if is_due { now - 86_400 } else { now };
            let server =
                place.start(binary, "0s", &format!("UPDATE objects SET last_used_at = {last_use}"))?;
            let cpu = place.cpu_seconds(&server)?;
            let narinfos = NARINFOS.min(usize::try_from(objects).unwrap_or(NARINFOS) / 2);
            result.narinfo_count = narinfos;
            in_parallel(CONNECTIONS, |number| {
                let mut connection = server.connect(number)?;
                for place in (number..narinfos).step_by(CONNECTIONS) {
                    fetch(&mut connection, &format!("/{CACHE}/{}.narinfo", Scale::path_hash(place as u64)))?;
                }
                Ok(())
            })?;
            // The uses are written a moment later.
            sleep(Duration::from_secs(3));
            let seconds = place.cpu_seconds(&server)? - cpu;
            if is_due { &mut result.narinfos_with_uses } else { &mut result.narinfos }.push(seconds);
        }
        note(&format!(
            "{database}, run {} of {runs}, beside collections: pushes {}, pulls {} of the rate alone",
            run + 1,
            rate(&result.alone.push, &result.with_collections.push),
            rate(&result.alone.pull, &result.with_collections.pull)
        ));
    }
    beside_pages(&place, binary, first, PAIRS_PER_RUN * runs, &mut result)?;
    Ok(result)
}

/// Pushes and pulls while people look at pages of the cache, and while they do not.
fn beside_pages(
    place: &Place<'_>,
    binary: &Path,
    generation: &Generation,
    pairs: usize,
    result: &mut Beside,
) -> Result<()> {
    let server = place.start(binary, "0s", "SELECT 1")?;
    let hash = Scale::path_hash(1);
    let addresses =
        ["/".to_owned(), format!("/{CACHE}/"), format!("/{CACHE}/paths"), format!("/{CACHE}/{hash}")];
    let visit = |number: usize| {
        let address = &addresses[number % addresses.len()];
        let (status, _) = server.connect(0)?.get_page(address)?;
        if status == 200 { Ok(()) } else { Err(Error::new(format!("{address} is answered with {status}"))) }
    };
    let next = AtomicUsize::new(0);
    let push_next = |connection: &mut Connection| {
        let number = next.fetch_add(1, Ordering::Relaxed);
        memory::upload_generated(connection, number, PUSHED_BLOCKS).map(|()| 1)
    };
    let connect = |number| server.connect(number);
    let cpu = || place.cpu_seconds(&server);
    let measure = |load: &(dyn Fn(&mut Connection) -> Result<u64> + Sync)| {
        slices::measure(&connect, CONNECTIONS, load, PAGE_PAUSE, &visit, &cpu, pairs)
    };
    result.pushes_with_pages = measure(&push_next)?;
    let nars = nars_of(&server, generation, PULLED_BYTES_MAX)?;
    let pull_next = |connection: &mut Connection| {
        let nar = &nars[next.fetch_add(1, Ordering::Relaxed) % nars.len()];
        match connection.get_discarding(nar)? {
            (200, bytes) => Ok(bytes),
            (status, _) => Err(Error::new(format!("GET {nar} was answered {status}"))),
        }
    };
    result.pulls_with_pages = measure(&pull_next)?;
    note(&format!(
        "{}, beside pages: pushes {} ({} by CPU), pulls {} ({} by CPU) of the rate alone",
        result.database,
        result.pushes_with_pages.rate(),
        result.pushes_with_pages.rate_by_cpu(),
        result.pulls_with_pages.rate(),
        result.pulls_with_pages.rate_by_cpu()
    ));
    Ok(())
}

/// The addresses of the NARs of a generation with at most this many bytes.
fn nars_of(server: &Replicas, generation: &Generation, bytes_max: u64) -> Result<Vec<String>> {
    let mut connection = server.connect(0)?;
    let mut urls = Vec::new();
    for entry in generation.entries.iter().filter(|entry| entry.nar_size <= bytes_max) {
        let narinfo_url = format!("/{CACHE}/{}.narinfo", entry.hash);
        urls.push(nar_url(&narinfo_url, &fetch(&mut connection, &narinfo_url)?)?);
    }
    Ok(urls)
}

async fn sqlite(file: &Path, sql: &str) -> Result<()> {
    let attempt = || format!("change {}", file.display());
    let mut database =
        sqlx::SqliteConnection::connect(&format!("sqlite://{}", file.display())).await.context(attempt)?;
    raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut database).await.context(attempt)?;
    database.close().await.context(attempt)
}

/// Copies a folder with all that it holds.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let attempt = || format!("copy {}", from.display());
    fs::create_dir_all(to).context(attempt)?;
    for entry in fs::read_dir(from).context(attempt)? {
        let path = entry.context(attempt)?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_folder(&path, &target)?;
        } else {
            fs::copy(&path, &target).context(attempt)?;
        }
    }
    Ok(())
}
