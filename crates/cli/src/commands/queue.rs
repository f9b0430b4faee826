//! `dormer queue`: what waits for its push.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::{Args, Subcommand};
use dormer_client::queue::{DeadLetter, QueueEntry, QueuedCache, Spool};
use dormer_client::{
    ApiClient, CacheRef, NixStore, PushOptions, ResolvedServer, plan_push, process_variables,
};
use dormer_nix::StorePath;
use serde_json::json;

use crate::context::{Context, EndpointArgs};
use crate::error::{Error, Result};
use crate::queue_drain::{Queue, QueuePushArgs, outcome};
use crate::queue_folder::QueueDirArgs;
use crate::settings::units::parse_duration;
use crate::signals::stop_signal;

const EXIT_CODES: &str = "\
Exit codes:
  0  done: what was queued is in the caches, or was there, or is left out by a filter
  1  failed; 2  wrong usage, nothing was tried
  3  an entry was given up, or waits for a later try
  4  the server refuses the token, or requires one; 5  it does not answer; the entries wait";

/// How often a wait looks at the queue.
const POLL: Duration = Duration::from_millis(300);

/// Show and push what waits for a cache
///
/// `dormer hook`, `dormer watch` and `dormer exec` put builds into the queue, a folder on the disk.
/// One process for each user pushes them. An entry waits for as long as the server is away. An
/// entry whose paths fail is tried 8 times in about an hour and is then given up, with the reason.
#[derive(Debug, Subcommand)]
#[command(verbatim_doc_comment)]
pub(crate) enum QueueCommand {
    List(ListArgs),
    Retry(RetryArgs),
    Drop(DropArgs),
    Drain(DrainArgs),
    WaitFor(WaitForArgs),
}

/// List the entries that wait, and those that were given up
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    queue: QueueDirArgs,
}

/// Try entries again at once, also those that were given up
///
/// Examples:
///   dormer queue retry --all
///   dormer queue retry /nix/store/…-hello
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RetryArgs {
    #[command(flatten)]
    chosen: ChosenArgs,
    /// Push to the servers that the names of the caches stand for now, also what was queued for
    /// others
    #[arg(long)]
    to_present_server: bool,
    #[command(flatten)]
    queue: QueueDirArgs,
}

/// Drop entries without a push
///
/// Examples:
///   dormer queue drop --dead
///   dormer queue drop 01764400000123456789-9f86d081
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct DropArgs {
    #[command(flatten)]
    chosen: ChosenArgs,
    #[command(flatten)]
    queue: QueueDirArgs,
}

/// Which entries are meant.
#[derive(Debug, Args)]
struct ChosenArgs {
    /// An entry's name, or a store path
    #[arg(value_name = "ENTRY", required_unless_present_any = ["all", "dead"])]
    entries: Vec<String>,
    /// All entries
    #[arg(long, conflicts_with = "entries")]
    all: bool,
    /// All entries that were given up
    #[arg(long, conflicts_with_all = ["entries", "all"])]
    dead: bool,
}

impl ChosenArgs {
    fn has(&self, name: &str, entry: Option<&QueueEntry>, is_dead: bool) -> bool {
        if self.all || self.dead {
            return self.all || is_dead;
        }
        let is_named = |text: &String| text == name || entry.is_some_and(|entry| entry.concerns(text));
        self.entries.iter().any(is_named)
    }
}

/// Push what is in the queue
///
/// Ends when nothing is left that can be pushed now. If another process drains the queue, waits
/// until what was queued is gone. With --watch, goes on for ever, as a service does; `dormer
/// install-hook` makes one.
///
/// Each entry goes to the server that it was queued for. --endpoint lets the token of the variables
/// count for its server, and stands for the default server where an entry names none.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub(crate) struct DrainArgs {
    /// Push what comes from now on, too
    #[arg(long, conflicts_with = "timeout")]
    watch: bool,
    /// Try failures again for this long
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    timeout: Option<Duration>,
    #[command(flatten)]
    push: QueuePushArgs,
    #[command(flatten)]
    queue: QueueDirArgs,
    #[command(flatten)]
    server: EndpointArgs,
}

/// Wait until paths are in the cache
///
/// Waits while an entry has a PATH, and then asks each cache. Fails if an entry with the path was
/// given up, or if a cache lacks the path although nothing waits. A path that no push brings,
/// because an upstream key of the cache signed it or the filter of the settings leaves it out, is
/// named and is no failure.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub(crate) struct WaitForArgs {
    /// The paths, or links to them
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// [SERVER:]CACHE that must have the paths; by default those of [queue] in the settings
    #[arg(long = "cache", value_name = "CACHE")]
    caches: Vec<CacheRef>,
    /// Longest wait
    #[arg(long, value_name = "TIME", default_value = "10min", value_parser = parse_time)]
    timeout: Duration,
    #[command(flatten)]
    queue: QueueDirArgs,
    #[command(flatten)]
    server: EndpointArgs,
}

impl QueueCommand {
    /// The server of the command line. Only pushes and questions need one.
    pub(super) fn server(&self) -> Option<&EndpointArgs> {
        match self {
            Self::List(_) | Self::Retry(_) | Self::Drop(_) => None,
            Self::Drain(args) => Some(&args.server),
            Self::WaitFor(args) => Some(&args.server),
        }
    }
}

pub(super) fn parse_time(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a time such as 60s, 10min or 2h".to_owned())
}

pub(super) async fn run(command: QueueCommand, context: &Context) -> Result<ExitCode> {
    match command {
        QueueCommand::List(args) => list(&args, context)?,
        QueueCommand::Retry(args) => retry(&args, context)?,
        QueueCommand::Drop(args) => drop_entries(&args, context)?,
        QueueCommand::Drain(args) => drain(&args, context).await?,
        QueueCommand::WaitFor(args) => wait_for(&args, context).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn open(queue: &QueueDirArgs) -> Result<Spool> {
    Ok(Spool::open(queue.folder(&process_variables)?)?)
}

fn list(args: &ListArgs, context: &Context) -> Result<()> {
    let spool = open(&args.queue)?;
    let (entries, dead) = (spool.entries()?, spool.dead()?);
    for (id, entry) in &entries {
        show_entry(id.as_str(), "waiting", entry.as_ref().map_err(Error::chain_of_client), context)?;
    }
    for DeadLetter { name, entry } in &dead {
        show_entry(name, "dead", entry.as_ref().ok_or_else(|| "it cannot be read".to_owned()), context)?;
    }
    let (refused, drainer) = (spool.refused(), spool.drainer()?);
    let printer = &context.printer;
    printer.message(&json!({
        "message_type": "queue", "folder": spool.folder().display().to_string(), "waiting": entries.len(),
        "dead": dead.len(), "refused": refused.count, "drainer": drainer,
    }))?;
    if refused.count > 0 {
        printer.warn(&format!(
            "{} builds could not be queued; the last one: {}",
            refused.count, refused.last_reason
        ));
    }
    let state = match drainer {
        Some(process) => format!("process {process} pushes them"),
        None => "nothing pushes them now".to_owned(),
    };
    printer.conclude(&format!("{} waiting, {} given up; {state}", entries.len(), dead.len()));
    if drainer.is_none() && !entries.is_empty() {
        printer.hint("dormer queue drain pushes them; dormer install-hook makes a service that always does");
    }
    Ok(())
}

/// Shows an entry, or why it cannot be read.
fn show_entry(
    name: &str,
    state: &str,
    entry: std::result::Result<&QueueEntry, String>,
    context: &Context,
) -> Result<()> {
    let printer = &context.printer;
    let entry = match entry {
        Ok(entry) => entry,
        Err(error) => {
            printer.message(
                &json!({ "message_type": "queue_entry", "entry": name, "state": state, "error": error }),
            )?;
            return if printer.json { Ok(()) } else { printer.data(&format!("{name}  {state}: {error}")) };
        }
    };
    for (QueuedCache { cache, endpoint }, standing) in &entry.caches {
        let endpoint = endpoint.as_ref().map(ToString::to_string);
        if printer.json {
            printer.message(&json!({
                "message_type": "queue_entry", "entry": name, "state": state, "cache": cache.to_string(),
                "endpoint": endpoint, "paths": entry.paths, "derivation": entry.derivation, "queued_at": entry.queued_at,
                "tries": standing.tries, "not_before": standing.not_before, "error": standing.error,
            }))?;
            continue;
        }
        let queued_at = SystemTime::UNIX_EPOCH + Duration::from_secs(entry.queued_at);
        let age = queued_at.elapsed().unwrap_or_default().as_secs();
        let age = dormer_pages::span(age.cast_signed());
        let error = standing.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        let server = endpoint.map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
        printer.data(&format!("{name}  {state} for {cache}{server}, queued {age} ago{error}"))?;
        for path in entry.paths.iter().chain(&entry.derivation) {
            printer.data(&format!("  {path}"))?;
        }
    }
    Ok(())
}

fn retry(args: &RetryArgs, context: &Context) -> Result<()> {
    let spool = open(&args.queue)?;
    let mut retried = 0;
    // Entries that wait go first: a revived one becomes one of them.
    for (id, entry) in spool.entries()? {
        // The drainer looks again and again at one that cannot be read.
        if entry.is_ok() && args.chosen.has(id.as_str(), entry.as_ref().ok(), false) {
            retried += usize::from(spool.hasten(&id, args.to_present_server, SystemTime::now())?);
        }
    }
    for letter in spool.dead()? {
        if args.chosen.has(&letter.name, letter.entry.as_ref(), true) {
            retried += usize::from(spool.revive(&letter, args.to_present_server, SystemTime::now())?);
        }
    }
    conclude("queue_retried", "retried", retried, &args.chosen, context)
}

fn drop_entries(args: &DropArgs, context: &Context) -> Result<()> {
    let spool = open(&args.queue)?;
    let mut dropped = 0;
    for (id, entry) in spool.entries()? {
        if args.chosen.has(id.as_str(), entry.as_ref().ok(), false) {
            dropped += usize::from(spool.drop_entry(&id)?);
        }
    }
    for letter in spool.dead()? {
        if args.chosen.has(&letter.name, letter.entry.as_ref(), true) {
            dropped += usize::from(spool.drop_dead(&letter)?);
        }
    }
    if args.chosen.all || args.chosen.dead {
        spool.forget_refused()?;
    }
    conclude("queue_dropped", "dropped", dropped, &args.chosen, context)
}

/// Reports a change. Naming an entry that is not there is a mistake.
fn conclude(
    message_type: &str,
    done: &str,
    count: usize,
    chosen: &ChosenArgs,
    context: &Context,
) -> Result<()> {
    if count == 0 && !chosen.entries.is_empty() {
        return Err(Error::usage(
            "no entry of the queue has this name or path",
            "`dormer queue list` shows all entries",
        ));
    }
    context.printer.message(&json!({ "message_type": message_type, "entries": count }))?;
    context.printer.conclude(&format!("{count} entries {done}"));
    Ok(())
}

async fn drain(args: &DrainArgs, context: &Context) -> Result<()> {
    let mut stop = Box::pin(stop_signal()?);
    let folder = args.queue.folder(&process_variables)?;
    let queue = Queue::open(&folder, &args.push, context).await?;
    if args.watch {
        context.printer.say(&format!("pushing what comes into {}", folder.display()));
        tokio::select! {
            ended = queue.drain_forever() => ended?,
            () = &mut stop => context.printer.conclude("stopped; what is queued stays there"),
        }
        return Ok(());
    }
    tokio::select! {
        end = queue.drain(args.timeout, None) => outcome(end?),
        () = &mut stop => Err(Error::QueueInterrupted),
    }
}

async fn wait_for(args: &WaitForArgs, context: &Context) -> Result<()> {
    let spool = open(&args.queue)?;
    let store = NixStore::open(&process_variables).await?;
    let paths = args.paths.iter().map(|path| Ok(store.resolve(path)?)).collect::<Result<Vec<StorePath>>>()?;
    let absolute: Vec<String> = paths.iter().map(|path| path.to_absolute(store.store_dir())).collect();
    let caches = super::hook::chosen_caches(&args.caches)?;
    let queued = context.queued_caches(&caches)?;
    let is_meant = |cache: &QueuedCache| {
        // An entry without an address goes to what its name stands for, whatever the command line
        // says; that stands in for the default server only.
        let may_have_none = args.server.endpoint.is_none() || cache.cache.server.is_none();
        let is_same = |one: &QueuedCache| {
            one == cache || (may_have_none && cache.endpoint.is_none() && one.cache == cache.cache)
        };
        queued.iter().any(is_same)
    };
    let until = Instant::now() + args.timeout;
    let concerns = |entry: &QueueEntry| {
        let is_for_cache = entry.caches.keys().any(&is_meant);
        is_for_cache && (entry.derivation.is_some() || absolute.iter().any(|path| entry.concerns(path)))
    };
    let mut has_said = false;
    loop {
        let waiting =
            spool.entries()?.into_iter().filter_map(|(_, entry)| entry.ok()).filter(concerns).count();
        if waiting == 0 {
            break;
        }
        if Instant::now() >= until {
            return Err(Error::QueueNotEmpty { waiting, dead: 0, paused_by: None });
        }
        if !has_said && spool.drainer()?.is_none() {
            context.printer.warn("nothing pushes what is in the queue now");
            context.printer.hint("dormer queue drain pushes it");
        }
        has_said = true;
        tokio::time::sleep(POLL).await;
    }
    let mut is_all_there = true;
    for cache in &caches {
        let (server, api) = context.connect_to_cache(cache)?;
        let hashes = paths.iter().map(StorePath::hash).collect();
        let lacking = api.get_missing_paths(&cache.cache, hashes).await?;
        let lacking = paths.iter().filter(|path| lacking.contains(&path.hash())).cloned().collect();
        let lacking = sort_lacking(lacking, cache, (&server, &api), &store, context).await?;
        is_all_there &= lacking.skipped == 0;
        if let Some(lost) = lacking.lost.first() {
            let path = lost.to_absolute(store.store_dir());
            let dead = spool.dead()?.into_iter().filter_map(|letter| letter.entry);
            let dead = dead.filter(|entry| entry.concerns(&path));
            let standings = dead.flat_map(|entry| entry.caches).filter(|(dead, _)| is_meant(dead));
            let standings = standings.filter(|(dead, _)| dead.cache == *cache);
            let reason = standings.filter_map(|(_, standing)| standing.error).next_back();
            return Err(Error::NotInCache { path, cache: cache.to_string(), reason });
        }
    }
    context.printer.message(&json!({ "message_type": "queue_done", "paths": absolute }))?;
    context.printer.conclude(if is_all_there {
        "all of them are in the cache"
    } else {
        "what a push would bring is in the cache"
    });
    Ok(())
}

/// Paths that a cache lacks.
#[derive(Default)]
struct Lacking {
    /// Those that a push would have brought.
    lost: Vec<StorePath>,
    /// The number of those that no push brings.
    skipped: usize,
}

/// Sorts paths that a cache lacks, and tells of those that no push from here brings: an upstream
/// key signed them, or the filter of the settings leaves them out.
async fn sort_lacking(
    paths: Vec<StorePath>,
    cache: &CacheRef,
    (server, api): (&ResolvedServer, &ApiClient),
    store: &NixStore,
    context: &Context,
) -> Result<Lacking> {
    let invalid = store.invalid_paths(&paths).await?;
    let valid: Vec<StorePath> = paths.iter().filter(|path| !invalid.contains(path)).cloned().collect();
    let mut reasons: BTreeMap<StorePath, (&str, String)> = BTreeMap::new();
    if !valid.is_empty() {
        let config = api.get_cache_config(&cache.cache).await?;
        let filter = context.push_filter(cache, server)?;
        let options = PushOptions { filter, ..PushOptions::default() };
        let plan = plan_push(api, store, &cache.cache, &config, &valid, &options).await?;
        let left_out = plan.left_out().into_iter();
        reasons.extend(left_out.map(|(path, reason)| (path, ("left_out", reason))));
        let signed = |path| (path, ("upstream", "an upstream key of the cache signed it".to_owned()));
        reasons.extend(plan.upstream.into_iter().map(signed));
    }
    let mut lacking = Lacking::default();
    for path in paths {
        let Some((state, reason)) = reasons.get(&path) else {
            lacking.lost.push(path);
            continue;
        };
        lacking.skipped += 1;
        let path = path.to_absolute(store.store_dir());
        context.printer.say(&format!("left out of {cache}: {path}, because {reason}"));
        context.printer.message(&json!({
            "message_type": "queue_path", "cache": cache.to_string(), "path": path, "state": state, "reason": reason,
        }))?;
    }
    Ok(lacking)
}
