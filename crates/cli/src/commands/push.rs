//! `dormer push`.

use std::io::BufRead as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use dormer_api::v2::AddPinRequest;
use dormer_api::{CacheName, PinName};
use dormer_client::{
    AddressedOutput, ApiClient, BuildLogs, ByteSize, CacheRef, NamePattern, NixStore, PathDone,
    PlannedDeriver, PushFilter, PushOptions, PushPlan, PushSummary, PushTarget, TraceSummary,
    execute_push_to, plan_push, push_traces,
};
use dormer_nix::{DocumentName, StoreDir, StorePath};
use futures::StreamExt as _;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::context::{Context, EndpointArgs};
use crate::error::{self, Error, Result};
use crate::printer::Printer;
use crate::progress::PushProgress;
use crate::push_transfer::{TransferArgs, no_path, split_targets};
use crate::settings::units::{human_duration, human_size};

const EXIT_CODES: &str = "\
Exit codes:
  0  every path is now in the cache, or upstream
  2  wrong usage; nothing was tried
  3  some paths could not be pushed, the others were
  4  the server refuses the token, or requires one; 5  it does not answer
  1  any other failure; 130  interrupted, acknowledged paths stay in the cache";

/// Build logs that are sent at once.
const LOGS_AT_ONCE: usize = 8;

/// Push store paths with their closures
///
/// Skips paths that the cache already has or that an upstream cache has signed (-v names each one).
/// A PATH may be a link such as ./result, or lie inside a store path. Each path is sent after its
/// references, so the cache never shows half a closure. Run the same command again to complete an
/// interrupted push.
///
/// Sends only the chunks that a cache lacks, compressed, if the server can take them (--api). With
/// several caches, each NAR is read once. Every argument before the first path is a cache; an
/// argument with a / is a path, and so is one that names a file here.
///
/// --exclude and --exclude-larger keep paths out, also inside closures; [push] in the settings does
/// so for every push. A path that refers to one that is kept out is not pushed either, and the
/// command ends with 3, unless --allow-incomplete is given.
///
/// A service needs no settings and no home: DORMER_ENDPOINT and DORMER_TOKEN are enough, or a file
/// /etc/dormer/config.toml. To push every build, see `dormer hook`, `dormer watch` and `dormer
/// exec`.
///
/// Examples:
///   dormer push main ./result
///   nix build --print-out-paths .#a .#b | dormer push lab:team --stdin -j 8
///   dormer push main lab2:team ./result --limit-rate 20M
///   dormer push main ./result --dry-run
///   dormer push main ./result --exclude '*-source' --exclude-larger 2G
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of Attic's command line")]
pub(crate) struct PushArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    /// More caches, and then the paths to push
    #[arg(value_name = "PATH", required_unless_present = "stdin")]
    paths: Vec<PathBuf>,
    /// Also read paths from standard input, one a line
    #[arg(long)]
    stdin: bool,
    /// Push only the given paths, without their closures
    #[arg(long)]
    no_closure: bool,
    /// Also push paths that an upstream cache has signed
    #[arg(long)]
    ignore_upstream_cache_filter: bool,
    #[command(flatten)]
    transfer: TransferArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Number of concurrent uploads to each cache
    #[arg(short, long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Send metadata in front of each NAR instead of in a header, for proxies that limit headers
    #[arg(long)]
    force_preamble: bool,
    /// Pin the given paths under this name once they are pushed
    #[arg(long, value_name = "NAME")]
    pin: Option<PinName>,
    /// Also upload the logs of the builds that Nix keeps on this machine
    #[arg(long)]
    with_logs: bool,
    /// Print what would be pushed, and push nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(crate) server: EndpointArgs,
}

/// What stays out of the cache.
#[derive(Debug, Clone, Args)]
struct FilterArgs {
    /// Leave out paths whose names match this pattern, such as '*-source'; may be repeated
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<NamePattern>,
    /// Leave out paths whose NARs are larger, such as 2G
    #[arg(long, value_name = "SIZE")]
    exclude_larger: Option<ByteSize>,
    /// Also push paths that refer to paths that were left out
    #[arg(long)]
    allow_incomplete: bool,
}

impl FilterArgs {
    /// The filter of the settings with these arguments: patterns add up, and the limit of the
    /// command line counts.
    fn added_to(self, settings: PushFilter) -> PushFilter {
        PushFilter {
            exclude: [settings.exclude, self.exclude].concat(),
            exclude_larger: self.exclude_larger.map(u64::from).or(settings.exclude_larger),
            allow_incomplete: self.allow_incomplete || settings.allow_incomplete,
        }
    }
}

pub(super) async fn run(args: PushArgs, context: &Context) -> Result<ExitCode> {
    let started = Instant::now();
    let store = NixStore::open(&dormer_client::process_variables).await?;
    let (caches, mut arguments) = split_targets(args.cache, args.paths);
    if args.stdin {
        arguments.extend(read_paths()?);
    } else if arguments.is_empty() {
        return Err(no_path(&caches));
    }
    let said = Said { printer: &context.printer, store_dir: store.store_dir() };
    let (roots, unresolved) = resolve_all(&store, &arguments, &said)?;

    let rate_limit = args.transfer.rate_limit();
    let options = PushOptions {
        closure: !args.no_closure,
        ignore_upstream: args.ignore_upstream_cache_filter,
        jobs: args.jobs.into(),
        case_hack: store.case_hack(),
        real_store_dir: Some(store.real_dir().to_owned()),
        filter: PushFilter::default(),
    };
    let plan = async |cache: &CacheRef| {
        let (server, api) = context.connect_to_cache(cache)?;
        let api = api.with_forced_preamble(args.force_preamble).with_rate_limit(rate_limit.clone());
        let config = api.get_cache_config(&cache.cache).await?;
        context.printer.detail(&format!("asking {} which paths {} lacks", server.name, cache.cache));
        let filter = args.filter.clone().added_to(context.push_filter(cache, &server)?);
        let options = PushOptions { filter, ..options.clone() };
        let plan = plan_push(&api, &store, &cache.cache, &config, &roots, &options).await?;
        said.plan(cache, &plan)?;
        Ok::<_, Error>(PushTarget { api, plan })
    };
    let (mut targets, mut planned_caches, mut first_failure) = (Vec::new(), Vec::new(), None);
    for cache in &caches {
        match plan(cache).await {
            Ok(target) => {
                targets.push(target);
                planned_caches.push(cache);
            }
            Err(error) if caches.len() == 1 => return Err(error),
            // One cache does not stop the others.
            Err(error) => {
                context.printer.warn(&format!("nothing is pushed to {cache}: {}", error.chain()));
                first_failure.get_or_insert(error);
            }
        }
    }
    if args.dry_run {
        let (mut lost, mut tried, mut incomplete) = (unresolved, unresolved, 0);
        for (cache, PushTarget { plan, .. }) in planned_caches.into_iter().zip(&targets) {
            said.dry_run(cache, plan)?;
            lost += plan.invalid.len() + plan.incomplete.len();
            tried += plan.path_count();
            incomplete += plan.incomplete.len();
        }
        return match (first_failure, lost) {
            (Some(error), _) => Err(error),
            (None, 0) => Ok(ExitCode::SUCCESS),
            (None, lost) => Err(Error::PathsLost { lost, tried, advice: Vec::new(), incomplete }),
        };
    }

    let planned: Vec<Planned> = planned_caches
        .into_iter()
        .zip(&targets)
        .map(|(cache, target)| Planned::new(cache, target, unresolved))
        .collect();
    let missing: usize = targets.iter().map(|target| target.plan.missing.len()).sum();
    // Listens before anything is drawn. Otherwise an early interrupt would leave the bars on the
    // screen.
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|source| Error::Io { attempt: "listen for Ctrl-C".to_owned(), source })?;
    let plans: Vec<&PushPlan> = targets.iter().map(|target| &target.plan).collect();
    let progress = Arc::new(PushProgress::new(context.printer.clone(), store.store_dir().clone(), &plans));
    let transfer = args.transfer.options();
    let push = execute_push_to(targets, &options, &transfer, progress.clone());
    let summaries = tokio::select! {
        summaries = push => summaries,
        _ = interrupts.recv() => {
            progress.finish();
            let pushed = progress.pushed();
            context.printer.conclude(&format!(
                "interrupted: {pushed} of {} pushed; they stay; run the same command again to push the rest",
                error::paths(missing)
            ));
            return Ok(ExitCode::from(error::EXIT_INTERRUPTED));
        }
    };
    progress.finish();
    for (target, summary) in planned.iter().zip(summaries) {
        said.summary(target.cache, &summary, target.left_out, target.paths, started.elapsed())?;
        let finished = match outcome(summary, target.left_out, unresolved, target.tried) {
            Some(error) => Err(error),
            None => target.finish(&store, args.with_logs, args.pin.as_ref(), &roots, &said, context).await,
        };
        if let Err(error) = finished {
            if first_failure.is_some() {
                context.printer.error(&format!("{}: {}", target.cache, error.chain()));
            }
            first_failure.get_or_insert(error);
        }
    }
    first_failure.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// What a push to one cache began with.
struct Planned<'a> {
    cache: &'a CacheRef,
    api: ApiClient,
    derivers: Vec<PlannedDeriver>,
    addressed: Vec<AddressedOutput>,
    /// Whether the cache has all of it already.
    is_known: bool,
    /// All paths of the plan.
    paths: usize,
    /// Those that are not in the cache or upstream.
    tried: usize,
    left_out: LeftOut,
}

impl<'a> Planned<'a> {
    fn new(cache: &'a CacheRef, target: &PushTarget, unresolved: usize) -> Self {
        let PushTarget { api, plan } = target;
        let left_out = LeftOut { excluded: plan.excluded.len(), incomplete: plan.incomplete.len() };
        let tried = plan.missing.len() + plan.invalid.len() + left_out.incomplete + unresolved;
        let (derivers, paths) = (plan.derivers.clone(), plan.path_count());
        let (addressed, is_known) = (plan.addressed.clone(), plan.missing.is_empty());
        Self { cache, api: api.clone(), derivers, addressed, is_known, paths, tried, left_out }
    }

    /// What comes after a push without failures.
    async fn finish(
        &self,
        store: &NixStore,
        with_logs: bool,
        pin: Option<&PinName>,
        roots: &[StorePath],
        said: &Said<'_>,
        context: &Context,
    ) -> Result<()> {
        // A log that is refused must not cost the paths their pin.
        if let Some(name) = pin {
            for root in roots {
                let store_path = root.to_string();
                let request = AddPinRequest { store_path, keep_for_seconds: None, keep: None };
                super::pin::pin(&self.api, self.cache, name, &request, context).await?;
            }
        }
        let cache = &self.cache.cache;
        let traces = push_traces(&self.api, store, cache, &self.addressed, self.is_known).await?;
        let traces = said.traces(traces);
        if with_logs {
            push_logs(&self.api, &self.cache.cache, &self.derivers, said).await?;
        }
        traces
    }
}

/// Uploads the logs that are here of these builds. A log that cannot be uploaded is reported and
/// does not stop the others; the first reason is the answer. A log that is too long is left out: no
/// later push could bring it, and the paths can do without.
async fn push_logs(
    api: &ApiClient,
    cache: &CacheName,
    derivers: &[PlannedDeriver],
    said: &Said<'_>,
) -> Result<()> {
    let logs = BuildLogs::from_variables(&dormer_client::process_variables);
    let uploads = derivers
        .iter()
        .map(|deriver| async { (&deriver.derivation, push_log(api, cache, &logs, deriver).await) });
    let mut uploads = futures::stream::iter(uploads).buffer_unordered(LOGS_AT_ONCE);
    let (mut pushed, mut too_long, mut first_failure) = (0, 0_u64, None);
    while let Some((derivation, uploaded)) = uploads.next().await {
        match uploaded {
            Ok(LogEnd::Absent) => {}
            Ok(LogEnd::Kept) => said.log(derivation, "kept", None)?,
            Ok(LogEnd::Pushed) => {
                said.log(derivation, "pushed", None)?;
                pushed += 1;
            }
            Err(error) if is_too_long(&error) => {
                said.log(derivation, "too-long", Some(&error))?;
                too_long += 1;
            }
            Err(error) => {
                said.log(derivation, "failed", Some(&error))?;
                first_failure.get_or_insert(error);
            }
        }
    }
    said.printer.say(&format!("pushed {pushed} build logs"));
    if too_long > 0 {
        said.printer.hint(
            "the server's setting limits.log-size is the longest log that a cache takes, up to 32 MiB; a proxy \
             before the server may take less",
        );
    }
    first_failure.map_or(Ok(()), Err)
}

/// What became of a build log.
enum LogEnd {
    Pushed,
    /// The cache has one, which may be that of a later build.
    Kept,
    /// This machine keeps none.
    Absent,
}

/// Uploads the log of a build. The log of what this push brought counts more than the one that the
/// cache has.
async fn push_log(
    api: &ApiClient,
    cache: &CacheName,
    logs: &BuildLogs,
    PlannedDeriver { derivation, is_new }: &PlannedDeriver,
) -> Result<LogEnd> {
    let found = logs.find(derivation).map_err(|source| {
        let attempt = format!("read the build log of {derivation}");
        Error::Io { attempt, source }
    });
    let Some(log) = found? else { return Ok(LogEnd::Absent) };
    if *is_new {
        api.put_log(cache, derivation, log).await?;
        return Ok(LogEnd::Pushed);
    }
    let is_added = !api.has_log(cache, derivation).await? && api.add_log(cache, derivation, log).await?;
    Ok(if is_added { LogEnd::Pushed } else { LogEnd::Kept })
}

/// Whether a log was not uploaded because of its length: the server's limit, a proxy's, or that of
/// this command.
fn is_too_long(error: &Error) -> bool {
    match error {
        Error::Client(dormer_client::Error::Refused { status, .. }) => *status == 413,
        Error::Io { source, .. } => source.kind() == std::io::ErrorKind::FileTooLarge,
        _ => false,
    }
}

/// The store paths of the arguments, and the number of arguments that lead to none. Those are
/// reported, and do not stop the others. If no argument leads to a path, the first reason is the
/// answer.
fn resolve_all(store: &NixStore, arguments: &[PathBuf], said: &Said<'_>) -> Result<(Vec<StorePath>, usize)> {
    let (mut roots, mut failures) = (Vec::new(), Vec::new());
    for argument in arguments {
        match store.resolve(argument) {
            Ok(root) => roots.push(root),
            Err(error) => failures.push((argument, Error::from(error))),
        }
    }
    if roots.is_empty() && !failures.is_empty() {
        return Err(failures.swap_remove(0).1);
    }
    for (argument, error) in &failures {
        said.unresolved(&argument.display().to_string(), error)?;
    }
    Ok((roots, failures.len()))
}

fn read_paths() -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line
            .map_err(|source| Error::Io { attempt: "read paths from standard input".to_owned(), source })?;
        if !line.trim().is_empty() {
            paths.push(PathBuf::from(line.trim()));
        }
    }
    Ok(paths)
}

/// How many paths the filter left out.
#[derive(Debug, Clone, Copy, Default)]
struct LeftOut {
    excluded: usize,
    /// Those that refer to an excluded one.
    incomplete: usize,
}

/// If every path failed, the first reason is the best explanation, with its own exit code and
/// hints. The user did not ask to leave out paths that would be incomplete, so they count as lost.
fn outcome(mut summary: PushSummary, left_out: LeftOut, unresolved: usize, tried: usize) -> Option<Error> {
    let LeftOut { incomplete, .. } = left_out;
    let lost = summary.failed.len() + summary.not_tried.len() + incomplete + unresolved;
    if lost == 0 {
        return None;
    }
    let explains = summary.pushed.is_empty()
        && summary.kept.is_empty()
        && summary.failed.iter().all(|failed| failed.error.is_fatal_for_push());
    if explains && !summary.failed.is_empty() {
        return Some(summary.failed.swap_remove(0).error.into());
    }
    let advice = error::advice(summary.failed.iter().map(|failed| &failed.error));
    Some(Error::PathsLost { lost, tried, advice, incomplete })
}

/// Prints what a push reports, apart from its progress.
struct Said<'a> {
    printer: &'a Printer,
    store_dir: &'a StoreDir,
}

impl Said<'_> {
    fn full(&self, path: &StorePath) -> String {
        path.to_absolute(self.store_dir)
    }

    /// An argument that leads to no path, before anything is pushed.
    fn unresolved(&self, argument: &str, error: &Error) -> Result<()> {
        self.printer.message(&json!({
            "message_type": "path", "path": argument, "state": "failed", "error": error.chain(),
        }))?;
        self.printer.error(&error.chain());
        for hint in error.hints() {
            self.printer.hint(&hint);
        }
        Ok(())
    }

    fn log(&self, derivation: &StorePath, state: &str, error: Option<&Error>) -> Result<()> {
        let path = self.full(derivation);
        let error = error.map(Error::chain);
        self.printer
            .message(&json!({ "message_type": "log", "path": path, "state": state, "error": error }))?;
        match error {
            Some(error) if state == "too-long" => {
                self.printer.warn(&format!("left out a build log: {error}"));
            }
            Some(error) => self.printer.error(&error),
            None if state == "kept" => {
                self.printer.detail(&format!("the cache has a build log already: {path}"));
            }
            None => self.printer.detail(&format!("build log: {path}")),
        }
        Ok(())
    }

    /// Build traces. The first reason for which one was refused is the answer.
    fn traces(&self, traces: TraceSummary) -> Result<()> {
        let TraceSummary { sent, kept, is_unsupported, failed } = traces;
        let line = |name: &DocumentName, state: &str, error: Option<&str>| {
            let name = name.to_string();
            self.printer.message(
                &json!({ "message_type": "trace", "document": name, "state": state, "error": error }),
            )
        };
        for name in &sent {
            line(name, "pushed", None)?;
        }
        for name in &kept {
            line(name, "kept", None)?;
            self.printer.detail(&format!("{name}: the cache has another path for this output"));
        }
        for (name, error) in &failed {
            let error = dormer_nix::with_causes(error);
            line(name, "failed", Some(&error))?;
            self.printer.error(&error);
        }
        if !sent.is_empty() {
            self.printer.say(&format!("pushed {} build traces", sent.len()));
        }
        if is_unsupported {
            self.printer.detail("this server takes no build traces");
        }
        if failed.is_empty() { Ok(()) } else { Err(Error::TracesLost { count: failed.len() }) }
    }

    fn plan(&self, cache: &CacheRef, plan: &PushPlan) -> Result<()> {
        for path in &plan.invalid {
            let path = self.full(path);
            self.printer.error(&Error::from(dormer_client::Error::InvalidPath { path }).chain());
        }
        self.printer.message(&json!({
            "message_type": "plan", "cache": plan.cache.as_str(), "paths": plan.path_count(),
            "missing": plan.missing.len(), "missing_bytes": plan.missing_bytes(),
            "present": plan.present.len(), "upstream": plan.upstream.len(), "invalid": plan.invalid.len(),
            "excluded": plan.excluded.len(), "incomplete": plan.incomplete.len(),
        }))?;
        self.left_out(cache, plan)?;
        for (paths, state, label) in [
            (&plan.present, "present", "already there"),
            (&plan.upstream, "upstream", "skipped, upstream has it"),
        ] {
            for path in paths {
                self.printer.message(&json!({
                    "message_type": "path", "cache": cache.to_string(), "path": self.full(path), "state": state,
                }))?;
                self.printer.detail(&format!("{label}: {}", self.full(path)));
            }
        }
        Ok(())
    }

    /// What the filter keeps out: as asked for, and because of a reference.
    fn left_out(&self, cache: &CacheRef, plan: &PushPlan) -> Result<()> {
        for excluded in &plan.excluded {
            let (path, reason) = (self.full(&excluded.path), excluded.exclusion.to_string());
            self.printer.message(&json!({
                "message_type": "path", "cache": cache.to_string(), "path": path, "state": "excluded",
                "nar_size": excluded.nar_size, "reason": reason,
            }))?;
            self.printer.detail(&format!("excluded: {path}, because {reason}"));
        }
        for incomplete in &plan.incomplete {
            let (path, reference) = (self.full(&incomplete.path), self.full(&incomplete.excluded_reference));
            self.printer.message(&json!({
                "message_type": "path", "cache": cache.to_string(), "path": path, "state": "incomplete",
                "excluded_reference": reference,
            }))?;
            self.printer.warn(&format!("not pushed: {path} refers to {reference}, which is excluded"));
        }
        Ok(())
    }

    fn dry_run(&self, cache: &CacheRef, plan: &PushPlan) -> Result<()> {
        for info in &plan.missing {
            let path = self.full(&info.path);
            if self.printer.json {
                self.printer.message(&json!({
                    "message_type": "path", "cache": cache.to_string(), "path": path, "state": "missing",
                    "nar_size": info.nar_size,
                }))?;
            } else {
                self.printer.data(&path)?;
            }
        }
        self.printer.conclude(&format!(
            "would push {} of {}{}, {}",
            plan.missing.len(),
            error::paths(plan.path_count()),
            others(&[
                (plan.present.len(), "already there"),
                (plan.upstream.len(), "upstream"),
                (plan.excluded.len(), "excluded"),
                (plan.incomplete.len(), "incomplete"),
            ]),
            human_size(plan.missing_bytes()),
        ));
        Ok(())
    }

    fn summary(
        &self,
        cache: &CacheRef,
        summary: &PushSummary,
        left_out: LeftOut,
        planned: usize,
        elapsed: Duration,
    ) -> Result<()> {
        let cache = cache.to_string();
        for done in summary.pushed.iter().chain(&summary.kept) {
            self.printer.message(&done_message(&cache, &self.full(&done.path), done))?;
        }
        for failed in &summary.failed {
            self.printer.message(&json!({
                "message_type": "path", "cache": cache, "path": self.full(&failed.path), "state": "failed",
                "error": failed.error.to_string(),
            }))?;
        }
        for skipped in &summary.not_tried {
            let path = self.full(&skipped.path);
            let reference = skipped.failed_reference.as_ref().map(|reference| self.full(reference));
            self.printer.message(&json!({
                "message_type": "path", "cache": cache, "path": path, "state": "not_tried",
                "failed_reference": reference,
            }))?;
            match reference {
                Some(reference) => {
                    self.printer.say(&format!("not tried: {path}, because it refers to {reference}"));
                }
                None => self.printer.detail(&format!("not tried: {path}")),
            }
        }
        self.printer.message(&json!({
            "message_type": "summary", "cache": cache, "api": api_name(summary),
            "paths": planned, "pushed": summary.pushed.len(),
            "kept": summary.kept.len(), "present": summary.present.len(), "upstream": summary.upstream.len(),
            "failed": summary.failed.len(), "not_tried": summary.not_tried.len(),
            "excluded": left_out.excluded, "incomplete": left_out.incomplete,
            "bytes_read": summary.bytes_read, "bytes_sent": summary.bytes_sent, "bytes_saved": summary.bytes_saved,
            "seconds": elapsed.as_secs_f64(),
        }))?;
        self.printer.conclude(&last_line(summary, left_out, planned, elapsed));
        Ok(())
    }
}

/// The API that sent something, in the words of `--api`.
fn api_name(summary: &PushSummary) -> Option<&'static str> {
    let idle = summary.pushed.is_empty() && summary.kept.is_empty() && summary.bytes_sent == 0;
    (!idle).then_some(if summary.by_chunks { "v2" } else { "attic" })
}

/// The line of JSON for a path that the server acknowledged.
fn done_message(cache: &str, path: &str, done: &PathDone) -> serde_json::Value {
    json!({
        "message_type": "path", "cache": cache, "path": path,
        "state": if done.kept { "kept" } else { "pushed" },
        "nar_size": done.nar_size, "file_size": done.file_size, "deduplicated": done.frac_deduplicated,
    })
}

/// ` (400 already there, 19 upstream)`, without zero counts.
fn others(counts: &[(usize, &str)]) -> String {
    let said: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if said.is_empty() { String::new() } else { format!(" ({})", said.join(", ")) }
}

/// The last line, which is complete by itself.
fn last_line(summary: &PushSummary, left_out: LeftOut, planned: usize, elapsed: Duration) -> String {
    let lost = summary.failed.len() + summary.not_tried.len();
    format!(
        "pushed {} of {}{}, {} read, {} sent, {} deduplicated, {}",
        summary.pushed.len(),
        error::paths(planned),
        others(&[
            (summary.kept.len(), "not replaced"),
            (summary.present.len(), "already there"),
            (summary.upstream.len(), "upstream"),
            (left_out.excluded, "excluded"),
            (left_out.incomplete, "incomplete"),
            (lost, "lost")
        ]),
        human_size(summary.bytes_read),
        human_size(summary.bytes_sent),
        human_size(summary.bytes_saved),
        human_duration(elapsed),
    )
}

#[cfg(test)]
mod tests {
    use dormer_client::{FailedPath, NotTriedPath};

    use super::*;

    fn path(name: &str) -> StorePath {
        format!("f22352qy5d2vfxv22w7q3n7gz1ia47nx-{name}").parse().unwrap()
    }

    #[test]
    fn the_last_line_stands_alone() {
        let mut summary = PushSummary {
            present: vec![path("a")],
            upstream: vec![path("b"), path("c")],
            bytes_read: 40_055_603,
            bytes_sent: 40_055_603,
            bytes_saved: 12 << 20,
            ..PushSummary::default()
        };
        let elapsed = Duration::from_millis(9_420);
        insta::assert_snapshot!(last_line(&summary, LeftOut::default(), 3, elapsed), @"pushed 0 of 3 paths (1 already there, 2 upstream), 38.2 MiB read, 38.2 MiB sent, 12.0 MiB deduplicated, 9.4 s");
        summary.not_tried = vec![NotTriedPath { path: path("d"), failed_reference: None }];
        insta::assert_snapshot!(last_line(&summary, LeftOut::default(), 4, elapsed), @"pushed 0 of 4 paths (1 already there, 2 upstream, 1 lost), 38.2 MiB read, 38.2 MiB sent, 12.0 MiB deduplicated, 9.4 s");
    }

    #[test]
    fn a_path_that_the_cache_kept_as_it_was_is_not_called_pushed() {
        let done = |kept| PathDone {
            path: path("a"),
            nar_size: 1,
            kind: dormer_api::UploadPathResultKind::Uploaded,
            file_size: None,
            frac_deduplicated: None,
            kept,
        };
        assert_eq!(done_message("main", "/p", &done(false))["state"], "pushed");
        assert_eq!(done_message("main", "/p", &done(true))["state"], "kept");
        let summary = PushSummary { kept: vec![done(true)], ..PushSummary::default() };
        insta::assert_snapshot!(last_line(&summary, LeftOut::default(), 1, Duration::from_millis(100)), @"pushed 0 of 1 path (1 not replaced), 0 B read, 0 B sent, 0 B deduplicated, 0.1 s");
        assert!(outcome(summary, LeftOut::default(), 0, 1).is_none());
    }

    #[test]
    fn paths_that_would_be_incomplete_are_lost_and_excluded_ones_are_not() {
        let (only_excluded, both) =
            (LeftOut { excluded: 2, incomplete: 0 }, LeftOut { excluded: 2, incomplete: 1 });
        assert!(outcome(PushSummary::default(), only_excluded, 0, 0).is_none());
        let error = outcome(PushSummary::default(), both, 0, 1).unwrap();
        assert_eq!(error.exit_code(), error::EXIT_PATHS_LOST);
        assert!(error.hints().iter().any(|hint| hint.contains("--allow-incomplete")), "{:?}", error.hints());
        insta::assert_snapshot!(last_line(&PushSummary::default(), both, 3, Duration::from_millis(100)), @"pushed 0 of 3 paths (2 excluded, 1 incomplete), 0 B read, 0 B sent, 0 B deduplicated, 0.1 s");
    }

    #[test]
    fn a_lost_path_is_never_a_success() {
        let failed = |error| FailedPath { path: path("a"), error };
        assert!(outcome(PushSummary::default(), LeftOut::default(), 0, 0).is_none());
        assert_eq!(
            outcome(PushSummary::default(), LeftOut::default(), 1, 1).unwrap().exit_code(),
            error::EXIT_PATHS_LOST
        );
        let damaged = dormer_client::Error::InvalidPath { path: "x".to_owned() };
        let summary = PushSummary { failed: vec![failed(damaged)], ..PushSummary::default() };
        assert_eq!(outcome(summary, LeftOut::default(), 0, 1).unwrap().exit_code(), error::EXIT_PATHS_LOST);
        let refused = dormer_client::Error::Forbidden { action: "x".to_owned(), message: "y".to_owned() };
        let summary = PushSummary {
            failed: vec![failed(refused)],
            not_tried: vec![NotTriedPath { path: path("b"), failed_reference: None }],
            ..PushSummary::default()
        };
        assert_eq!(outcome(summary, LeftOut::default(), 0, 2).unwrap().exit_code(), error::EXIT_UNAUTHORIZED);
    }
}
