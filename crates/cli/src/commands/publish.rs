//! `dormer publish`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use dormer_api::CacheName;
use dormer_nix::{Backoff, StorePath, StorePathHash};
use dormer_publish::{Mode, Outcome, Publisher, Reporter};
use dormer_stores::{CallPolicy, RetryPolicy, Store};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::context::{Context, SettingsArgs};
use crate::error::{self, Error, Result};
use crate::holder::holder;
use crate::installation::{Follower, open_beside};
use crate::printer::Printer;
use crate::service_manager::{State, notify, stopping_after};
use crate::settings::units::{ago, human_duration, human_size};
use crate::settings::{EdgePlace, EdgeTarget, Settings};
use crate::signals::stop_signal;

/// Bring caches to edge targets: buckets or folders that anything can serve to Nix
///
/// Targets stand in the settings file under [[edge]]; docs/EDGE.md explains them. A run brings over
/// what changed since the last one; it may run beside `dormer serve`, on SQLite too, and be killed
/// at any moment: the next one goes on from there. Only one run at a time writes to a target.
///
/// Examples:
///   dormer publish                         # every target, once: for a timer
///   dormer publish r2 --watch              # and again whenever something changed
///   dormer publish r2 --dry-run            # say what would be done
///   dormer publish r2 --reconcile          # compare with a listing, and repair
///   dormer publish status                  # what is published, and what waits for what
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, args_conflicts_with_subcommands = true)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub(crate) struct PublishArgs {
    #[command(subcommand)]
    command: Option<PublishCommand>,
    /// Name of a target; all of them without it
    target: Option<String>,
    /// Do what there is to do and end (the default)
    #[arg(long, conflicts_with = "watch")]
    once: bool,
    /// Go on until stopped: look for changes every few seconds
    #[arg(long)]
    watch: bool,
    /// Say what would be done, and do nothing
    #[arg(short = 'n', long, conflicts_with_all = ["watch", "reconcile"])]
    dry_run: bool,
    /// Compare with a listing first: write anew what is missing or damaged, remove what is not
    /// ours, adopt a target that moved
    #[arg(long, conflicts_with = "watch")]
    reconcile: bool,
    /// Remove a cache from the target that --reconcile has reported as unknown; may be repeated
    #[arg(long, value_name = "CACHE", requires_all = ["reconcile", "target"])]
    remove_unknown: Vec<CacheName>,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, Subcommand)]
enum PublishCommand {
    Status(PublishStatusArgs),
}

/// Show what is published, what waits and why
///
/// Asks the index alone, not the targets.
#[derive(Debug, Args)]
struct PublishStatusArgs {
    /// Name of a target; all of them without it
    target: Option<String>,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Between two looks for changes.
const WATCH_PAUSE: Duration = Duration::from_secs(3);

/// After failures.
const FAILURE_BACKOFF: Backoff = Backoff { first: WATCH_PAUSE, max: Duration::from_mins(2) };

/// Paths named in the status of a cache.
const WAITING_SHOWN: u32 = 10;

pub(super) async fn run(args: PublishArgs, context: &Context) -> Result<ExitCode> {
    if let Some(PublishCommand::Status(args)) = args.command {
        status(args, context).await?;
        return Ok(ExitCode::SUCCESS);
    }
    // First of all, so that a signal during the start ends the command as well as a later one.
    let mut stop = Box::pin(stop_signal()?);
    let (settings, _) = Settings::load(&context.environment, &args.settings.to_flags())?;
    for note in &settings.notes {
        context.printer.warn(note);
    }
    let targets = chosen(&settings, args.target.as_deref())?;
    let follower = tokio::select! {
        follower = open_beside(&settings) => follower?,
        () = &mut stop => return Ok(ExitCode::SUCCESS),
    };
    let done = publish(&args, &targets, &follower, stop, &context.printer).await;
    follower.index.close().await?;
    done
}

async fn publish(
    args: &PublishArgs,
    targets: &[&EdgeTarget],
    follower: &Follower,
    mut stop: impl Future<Output = ()> + Send + Unpin + 'static,
    printer: &Printer,
) -> Result<ExitCode> {
    let mut publishers = Vec::new();
    let mut failures = Failures { printer, last: None };
    for target in targets {
        let files = match open_location(target) {
            Ok(files) => files,
            Err(error) => {
                failures.add(&target.target.name, error);
                continue;
            }
        };
        let progress = Arc::new(PublishProgress::new(printer, &target.target.name));
        let publisher = Publisher::new(
            follower.engine.clone(),
            Arc::clone(&follower.publish),
            files,
            target.target.clone(),
            holder(),
            Arc::clone(&progress) as Arc<dyn Reporter>,
        );
        let publisher = publisher.of_lab(follower.id.clone()).removing(args.remove_unknown.clone());
        publishers.push((Arc::new(publisher), progress, target.target.name.clone()));
    }
    if args.dry_run {
        for (publisher, _, name) in &publishers {
            tokio::select! {
                previewed = preview(publisher, name, printer) => previewed?,
                () = &mut stop => break,
            }
        }
        failures.conclude()?;
        return Ok(ExitCode::SUCCESS);
    }
    let all: Vec<Arc<Publisher>> = publishers.iter().map(|(publisher, ..)| Arc::clone(publisher)).collect();
    let (stopped, mut stopping) = tokio::sync::watch::channel(false);
    let voice = printer.clone();
    tokio::spawn(async move {
        stopping_after(stop).await;
        voice.say("stopping after what is under way");
        for publisher in &all {
            publisher.stop_soon();
        }
        // Nobody listens when everything is done already.
        let _ = stopped.send(true);
    });
    if args.watch {
        notify(State::Ready);
        failures.say_last();
        let watches = publishers
            .iter()
            .map(|(publisher, progress, name)| watch(publisher, progress, name, printer, stopping.clone()));
        futures::future::try_join_all(watches).await?;
        failures.conclude()?;
        return Ok(ExitCode::SUCCESS);
    }
    let mode = if args.reconcile { Mode::Reconcile } else { Mode::Follow };
    let mut refused = 0;
    for (publisher, progress, name) in publishers {
        if *stopping.borrow_and_update() {
            break;
        }
        let begin = Instant::now();
        let outcome = publisher.run(mode).await;
        progress.finish();
        match outcome {
            Ok(outcome) => refused += report(&outcome, &name, begin.elapsed(), printer)?,
            Err(error) => failures.add(&name, error.into()),
        }
    }
    failures.conclude()?;
    if refused > 0 { Err(Error::NotPublished { caches: refused }) } else { Ok(ExitCode::SUCCESS) }
}

/// Targets that failed. The others are published all the same; the last error is the command's.
struct Failures<'a> {
    printer: &'a Printer,
    last: Option<(String, Error)>,
}

impl Failures<'_> {
    fn add(&mut self, target: &str, error: Error) {
        self.say_last();
        self.last = Some((target.to_owned(), error));
    }

    fn say_last(&self) {
        if let Some((target, error)) = &self.last {
            self.printer.error(&format!("{target}: {}", Error::chain_of(error)));
        }
    }

    fn conclude(self) -> Result<()> {
        self.last.map_or(Ok(()), |(_, error)| Err(error))
    }
}

/// Runs again and again. After a failure, prints it and waits longer.
async fn watch(
    publisher: &Publisher,
    progress: &PublishProgress,
    name: &str,
    printer: &Printer,
    mut stopping: tokio::sync::watch::Receiver<bool>,
) -> Result<()> {
    let mut failures = 0;
    let mut noted: HashMap<String, String> = HashMap::new();
    // The settings may be others than the last run's.
    let mut is_first = true;
    printer.say(&format!("{name}: watching for changes"));
    loop {
        let begin = Instant::now();
        let has_work = if is_first { Ok(true) } else { publisher.has_work().await };
        let outcome = match has_work {
            Ok(true) => publisher.run(Mode::Follow).await.map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        let pause;
        match outcome {
            Ok(outcome) => {
                is_first = false;
                failures = 0;
                pause = WATCH_PAUSE;
                if let Some(mut outcome) = outcome {
                    // What was refused once is not said every few seconds.
                    outcome.caches.retain(|cache| {
                        let said = cache.error.clone().or_else(|| cache.note.clone()).unwrap_or_default();
                        cache.changed()
                            || noted.insert(cache.cache.clone(), said.clone()).unwrap_or_default() != said
                    });
                    if !outcome.caches.is_empty() {
                        progress.clear();
                        report(&outcome, name, begin.elapsed(), printer)?;
                    }
                }
            }
            Err(error) => {
                progress.clear();
                failures += 1;
                pause = FAILURE_BACKOFF.bound(failures);
                printer.warn(&format!(
                    "{name}: {}; trying again in {}",
                    Error::chain_of(&error),
                    human_duration(pause)
                ));
            }
        }
        let jitter = rand::random_range(0.8..1.2);
        tokio::select! {
            () = tokio::time::sleep(pause.mul_f64(jitter)) => {}
            _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
        }
    }
}

fn chosen<'a>(settings: &'a Settings, name: Option<&str>) -> Result<Vec<&'a EdgeTarget>> {
    if settings.edges.is_empty() {
        return Err(Error::usage(
            "there is no edge target in the settings",
            "add a table [[edge]] to the settings file; docs/EDGE.md shows how, `dormer config reference` explains every key",
        ));
    }
    let Some(name) = name else { return Ok(settings.edges.iter().collect()) };
    let found: Vec<&EdgeTarget> = settings.edges.iter().filter(|edge| edge.target.name == name).collect();
    if found.is_empty() {
        let known: Vec<&str> = settings.edges.iter().map(|edge| edge.target.name.as_str()).collect();
        return Err(Error::usage(
            format!("there is no edge target '{name}' in the settings"),
            format!("there are: {}", known.join(", ")),
        ));
    }
    Ok(found)
}

fn open_location(target: &EdgeTarget) -> Result<Store> {
    Ok(match &target.place {
        EdgePlace::Folder(path) => Store::folder(path)?,
        EdgePlace::Bucket(store, retries) => {
            Store::open(store, &policy(target.target.concurrency, store.request_timeout, retries))?
        }
    })
}

/// How a bucket is called.
fn policy(concurrency: usize, request_timeout: Duration, retries: &RetryPolicy) -> CallPolicy {
    // All turns before this one may be used up by requests that end by their time-out.
    let requests = u32::try_from(concurrency).unwrap_or(u32::MAX);
    let turn_wait = Some(request_timeout.saturating_mul(requests));
    // Fewer at once when the line or the store does not bear as many.
    CallPolicy { retries: retries.clone(), requests_max: Some(concurrency), turn_wait }
}

async fn preview(publisher: &Publisher, name: &str, printer: &Printer) -> Result<()> {
    for preview in publisher.preview().await? {
        printer.message(&json!({
            "message_type": "publish_preview", "target": name, "cache": preview.cache, "publish": preview.publish,
            "bytes": preview.bytes, "remove": preview.remove,
        }))?;
        if !printer.json {
            let publish = error::paths(usize::try_from(preview.publish).unwrap_or(usize::MAX));
            printer.data(&format!(
                "{name}: {}: would look at {publish} to publish (up to {}), and remove {}",
                preview.cache,
                human_size(preview.bytes),
                preview.remove
            ))?;
        }
    }
    Ok(())
}

/// Prints what a run did; returns how many caches were refused.
fn report(outcome: &Outcome, name: &str, elapsed: Duration, printer: &Printer) -> Result<usize> {
    for cache in &outcome.caches {
        printer.message(&json!({
            "message_type": "publish_cache", "target": name, "cache": cache.cache, "published": cache.published,
            "unchanged": cache.unchanged, "removed": cache.removed, "nars_uploaded": cache.nars_uploaded,
            "bytes_uploaded": cache.bytes_uploaded, "nars_deleted": cache.nars_deleted, "waiting": cache.waiting,
            "repaired": cache.repaired, "left_out": cache.left_out, "note": cache.note, "error": cache.error,
        }))?;
        if let Some(error) = &cache.error {
            printer.error(&format!("{name}: {error}"));
        }
        if let Some(note) = &cache.note {
            printer.warn(&format!("{name}: cache {} {note}", cache.cache));
        }
        if cache.left_out > 0 {
            printer.warn(&format!(
                "{name}: cache {}: {} documents are left out, because their names are too long for this place",
                cache.cache, cache.left_out
            ));
        }
        printer.detail(&format!("{name}: {}", one_cache(cache)));
    }
    printer.message(&json!({
        "message_type": "publish", "target": name, "writes": outcome.writes, "reads": outcome.listings,
        "waiting": outcome.waiting(), "seconds": elapsed.as_secs_f64(),
        "unknown_caches": outcome.unknown.iter().map(CacheName::as_str).collect::<Vec<_>>(),
    }))?;
    if !outcome.unknown.is_empty() {
        let caches: Vec<&str> = outcome.unknown.iter().map(CacheName::as_str).collect();
        printer.warn(&format!(
            "{name}: caches lie there that this lab does not publish there: {}",
            caches.join(", ")
        ));
        printer.hint(&format!(
            "unless another lab owns it, `dormer publish {name} --reconcile --remove-unknown CACHE` removes one"
        ));
    }
    printer.conclude(&last_line(outcome, name, elapsed));
    if outcome.waiting() > 0 {
        printer.hint("`dormer publish status` says what they wait for");
    }
    Ok(outcome.caches.iter().filter(|cache| cache.error.is_some()).count())
}

fn one_cache(cache: &dormer_publish::CacheOutcome) -> String {
    format!(
        "{}: {} published, {} unchanged, {} removed, {} NARs sent, {} deleted, {} waiting",
        cache.cache,
        cache.published,
        cache.unchanged,
        cache.removed,
        cache.nars_uploaded,
        cache.nars_deleted,
        cache.waiting
    )
}

/// One line that stands alone.
fn last_line(outcome: &Outcome, name: &str, elapsed: Duration) -> String {
    let sum = |of: fn(&dormer_publish::CacheOutcome) -> u64| outcome.caches.iter().map(of).sum::<u64>();
    let published = usize::try_from(sum(|cache| cache.published)).unwrap_or(usize::MAX);
    let mut line = format!("{name}: published {}", error::paths(published));
    for (count, what) in [
        (sum(|cache| cache.removed), "removed"),
        (sum(|cache| cache.repaired), "repaired"),
        (outcome.waiting(), "waiting"),
    ] {
        if count > 0 {
            let _ = write!(line, ", {count} {what}");
        }
    }
    let _ = write!(
        line,
        ", {} sent in {} NARs, {} requests, {}",
        human_size(sum(|cache| cache.bytes_uploaded)),
        sum(|cache| cache.nars_uploaded),
        outcome.writes + outcome.listings,
        human_duration(elapsed)
    );
    line
}

async fn status(args: PublishStatusArgs, context: &Context) -> Result<()> {
    let (settings, _) = Settings::load(&context.environment, &args.settings.to_flags())?;
    let follower = open_beside(&settings).await?;
    let statuses = dormer_publish::status(&*follower.index, &*follower.publish, WAITING_SHOWN).await;
    let now = follower.engine.now();
    follower.index.close().await?;
    let statuses = statuses?;
    let printer = &context.printer;
    let wanted =
        statuses.iter().filter(|status| args.target.as_ref().is_none_or(|name| *name == status.name));
    let mut any = false;
    for target in wanted {
        any = true;
        let lag = |since: Option<i64>| since.map_or(0, |since| (now - since).max(0));
        printer.message(&json!({
            "message_type": "publish_target", "target": target.name, "location": target.location,
            "holder": target.holder, "ran_at": target.ran_at, "unseen": target.unseen,
            "lag_seconds": lag(target.unseen_since),
            "error": target.error.as_ref().map(|(error, _)| error),
            "error_at": target.error.as_ref().map(|(_, at)| at),
            "caches": target.caches.iter().map(|cache| json!({
                "cache": cache.name, "published": cache.published, "file_bytes": cache.file_bytes,
                "pending": cache.pending, "lag_seconds": lag(cache.pending_since), "published_at": cache.published_at,
                "waiting": cache.waiting.iter().map(|waiting| json!({
                    "hash": waiting.hash.to_string(), "since": waiting.since, "reason": waiting.reason,
                })).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
        }))?;
        if printer.json {
            continue;
        }
        printer.data(&format!("{} ({})", target.name, target.location))?;
        let ran = target.ran_at.map_or("never".to_owned(), |at| ago(now, at));
        printer.data(&format!("  last run: {ran}"))?;
        if let Some(holder) = &target.holder {
            printer.data(&format!("  being published to by {holder}"))?;
        }
        if let Some((error, at)) = &target.error {
            printer.data(&format!("  last error, {}: {error}", ago(now, *at)))?;
        }
        if target.unseen > 0 {
            let since =
                target.unseen_since.map_or(String::new(), |at| format!(", the oldest from {}", ago(now, at)));
            printer.data(&format!("  {} changes not looked at yet{since}", target.unseen))?;
        }
        for cache in &target.caches {
            printer.data(&format!(
                "  {}: {} published, {}, {} pending; last changed {}",
                cache.name,
                error::paths(usize::try_from(cache.published).unwrap_or(usize::MAX)),
                human_size(cache.file_bytes),
                cache.pending,
                ago(now, cache.published_at)
            ))?;
            for waiting in &cache.waiting {
                let reason = waiting.reason.as_deref().unwrap_or("not looked at yet");
                printer.data(&format!(
                    "    {} waits since {}: {reason}",
                    waiting.hash,
                    ago(now, waiting.since)
                ))?;
            }
            let more = cache.pending.saturating_sub(cache.waiting.len() as u64);
            if more > 0 {
                printer.data(&format!("    and {more} more"))?;
            }
        }
    }
    if !any && !printer.json {
        printer.say("nothing was published yet");
    }
    Ok(())
}

/// One line that counts, on a terminal; with `-v`, a line for each path.
struct PublishProgress {
    printer: Printer,
    target: String,
    bar: Mutex<Option<ProgressBar>>,
    /// To be looked at in the caches so far, where that takes a while; nothing is known of those
    /// behind them.
    backlog: AtomicU64,
    published: AtomicU64,
    removed: AtomicU64,
    bytes: AtomicU64,
}

impl PublishProgress {
    fn new(printer: &Printer, target: &str) -> Self {
        Self {
            printer: printer.clone(),
            target: target.to_owned(),
            bar: Mutex::new(None),
            backlog: AtomicU64::new(0),
            published: AtomicU64::new(0),
            removed: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    fn draw(&self) {
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if bar.is_none() {
            *bar = self.printer.progress_target().map(|target| {
                let bar = ProgressBar::with_draw_target(None, target);
                let style = ProgressStyle::with_template("{elapsed_precise}  {prefix}  {msg}");
                bar.set_style(style.expect("our template is well formed"));
                bar.set_prefix(self.target.clone());
                bar.enable_steady_tick(Duration::from_millis(200));
                bar
            });
        }
        if let Some(bar) = &*bar {
            let published = self.published.load(Ordering::Relaxed);
            let of = match self.backlog.load(Ordering::Relaxed) {
                backlog if backlog > published => format!(" of {backlog}"),
                _ => String::new(),
            };
            bar.set_message(format!(
                "{published}{of} published, {} removed, {} sent",
                self.removed.load(Ordering::Relaxed),
                human_size(self.bytes.load(Ordering::Relaxed))
            ));
        }
    }

    /// Takes the line from the screen; it comes back when something happens.
    fn clear(&self) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }

    fn finish(&self) {
        self.clear();
    }
}

impl Reporter for PublishProgress {
    fn backlog(&self, _cache: &str, pending: u64) {
        self.backlog.store(self.published.load(Ordering::Relaxed) + pending, Ordering::Relaxed);
        self.draw();
    }

    fn nar_uploaded(&self, _cache: &str, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.draw();
    }

    fn path_published(&self, cache: &str, path: &StorePath) {
        self.published.fetch_add(1, Ordering::Relaxed);
        self.draw();
        self.printer.detail(&format!("{}: {cache}: published {path}", self.target));
    }

    fn path_removed(&self, cache: &str, hash: &StorePathHash) {
        self.removed.fetch_add(1, Ordering::Relaxed);
        self.draw();
        self.printer.detail(&format!("{}: {cache}: removed {hash}", self.target));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_waits_for_its_turn_for_as_long_as_those_before_it_may_take() {
        let timeout = Duration::from_mins(10);
        let policy = policy(8, timeout, &RetryPolicy::default());
        assert!(policy.turn_wait.is_some_and(|wait| wait >= 7 * timeout), "{policy:?}");
    }
}
