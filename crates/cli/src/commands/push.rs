//! `dormer push`.

mod logs;
mod report;

use std::io::BufRead as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use dormer_api::PinName;
use dormer_api::v2::AddPinRequest;
use dormer_client::{
    AddressedOutput, ApiClient, ByteSize, CacheRef, NamePattern, NixStore, PlannedDeriver, PushFilter,
    PushOptions, PushPlan, PushSummary, PushTarget, RateLimit, execute_push_to, plan_push, push_traces,
};
use dormer_nix::StorePath;
use tokio::signal::unix::{SignalKind, signal};

use self::logs::push_logs;
use self::report::{LeftOut, PushPrinter};
use crate::context::{Context, EndpointArgs};
use crate::error::{self, Error, Result};
use crate::progress::PushProgress;
use crate::push_transfer::{TransferArgs, no_path, split_targets};

const EXIT_CODES: &str = "\
Exit codes:
  0  every path is now in the cache, or upstream
  2  wrong usage; nothing was tried
  3  some paths could not be pushed, the others were
  4  the server refuses the token, or requires one; 5  it does not answer
  1  any other failure; 130  interrupted, acknowledged paths stay in the cache";

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
    let (caches, mut arguments) = split_targets(args.cache.clone(), args.paths.clone());
    if args.stdin {
        arguments.extend(read_paths()?);
    } else if arguments.is_empty() {
        return Err(no_path(&caches));
    }
    let printer = PushPrinter { printer: &context.printer, store_dir: store.store_dir() };
    let (roots, unresolved) = resolve_all(&store, &arguments, &printer)?;
    let push = Push { args: &args, context, store: &store, printer, roots, unresolved, started };
    let plans = push.plan_all(&caches).await?;
    if args.dry_run { push.preview(plans) } else { push.execute(plans).await }
}

/// What the command line asks for.
struct Push<'a> {
    args: &'a PushArgs,
    context: &'a Context,
    store: &'a NixStore,
    printer: PushPrinter<'a>,
    roots: Vec<StorePath>,
    /// Arguments that lead to no path.
    unresolved: usize,
    started: Instant,
}

/// The plans for the caches that can be asked.
#[derive(Default)]
struct CachePlans<'a> {
    targets: Vec<PushTarget>,
    /// The cache of each target.
    caches: Vec<&'a CacheRef>,
    /// Why another cache has no plan.
    first_failure: Option<Error>,
}

impl Push<'_> {
    fn options(&self, filter: PushFilter) -> PushOptions {
        PushOptions {
            closure: !self.args.no_closure,
            ignore_upstream: self.args.ignore_upstream_cache_filter,
            jobs: self.args.jobs.into(),
            case_hack: self.store.case_hack(),
            real_store_dir: Some(self.store.real_dir().to_owned()),
            filter,
        }
    }

    async fn plan_all<'c>(&self, caches: &'c [CacheRef]) -> Result<CachePlans<'c>> {
        let rate_limit = self.args.transfer.rate_limit();
        let mut plans = CachePlans::default();
        for cache in caches {
            match self.plan(cache, rate_limit.clone()).await {
                Ok(target) => {
                    plans.targets.push(target);
                    plans.caches.push(cache);
                }
                Err(error) if caches.len() == 1 => return Err(error),
                // One cache does not stop the others.
                Err(error) => {
                    let printer = &self.context.printer;
                    printer.warn(&format!("nothing is pushed to {cache}: {}", error.chain()));
                    plans.first_failure.get_or_insert(error);
                }
            }
        }
        Ok(plans)
    }

    async fn plan(&self, cache: &CacheRef, rate_limit: Option<Arc<RateLimit>>) -> Result<PushTarget> {
        let (server, api) = self.context.connect_to_cache(cache)?;
        let api = api.with_forced_preamble(self.args.force_preamble).with_rate_limit(rate_limit);
        let config = api.get_cache_config(&cache.cache).await?;
        let printer = &self.context.printer;
        printer.detail(&format!("asking {} which paths {} lacks", server.name, cache.cache));
        let filter = self.args.filter.clone().added_to(self.context.push_filter(cache, &server)?);
        let options = self.options(filter);
        let plan = plan_push(&api, self.store, &cache.cache, &config, &self.roots, &options).await?;
        self.printer.plan(cache, &plan)?;
        Ok(PushTarget { api, plan })
    }

    /// Prints the plans, and pushes nothing.
    fn preview(&self, plans: CachePlans<'_>) -> Result<ExitCode> {
        let (mut lost, mut tried, mut incomplete) = (self.unresolved, self.unresolved, 0);
        for (cache, PushTarget { plan, .. }) in plans.caches.into_iter().zip(&plans.targets) {
            self.printer.dry_run(cache, plan)?;
            lost += plan.invalid.len() + plan.incomplete.len();
            tried += plan.path_count();
            incomplete += plan.incomplete.len();
        }
        match (plans.first_failure, lost) {
            (Some(error), _) => Err(error),
            (None, 0) => Ok(ExitCode::SUCCESS),
            (None, lost) => Err(Error::PathsLost { lost, tried, advice: Vec::new(), incomplete }),
        }
    }

    async fn execute(&self, plans: CachePlans<'_>) -> Result<ExitCode> {
        let CachePlans { targets, caches, mut first_failure } = plans;
        let planned = caches.into_iter().zip(&targets);
        let planned: Vec<PlannedCache<'_>> =
            planned.map(|(cache, target)| PlannedCache::new(cache, target, self.unresolved)).collect();
        let Some(summaries) = self.transfer(targets).await? else {
            return Ok(ExitCode::from(error::EXIT_INTERRUPTED));
        };
        for (target, summary) in planned.iter().zip(summaries) {
            let (left_out, elapsed) = (target.left_out, self.started.elapsed());
            self.printer.summary(target.cache, &summary, left_out, target.paths, elapsed)?;
            let finished = match outcome(summary, left_out, self.unresolved, target.tried) {
                Some(error) => Err(error),
                None => self.finish(target).await,
            };
            if let Err(error) = finished {
                if first_failure.is_some() {
                    self.context.printer.error(&format!("{}: {}", target.cache, error.chain()));
                }
                first_failure.get_or_insert(error);
            }
        }
        first_failure.map_or(Ok(ExitCode::SUCCESS), Err)
    }

    /// Sends what the caches lack. `None` if the user interrupted it.
    async fn transfer(&self, targets: Vec<PushTarget>) -> Result<Option<Vec<PushSummary>>> {
        let missing: usize = targets.iter().map(|target| target.plan.missing.len()).sum();
        // Listens before anything is drawn. Otherwise an early interrupt would leave the bars on
        // the screen.
        let mut interrupts = signal(SignalKind::interrupt())
            .map_err(|source| Error::Io { attempt: "listen for Ctrl-C".to_owned(), source })?;
        let (printer, store_dir) = (&self.context.printer, self.store.store_dir());
        let plans: Vec<&PushPlan> = targets.iter().map(|target| &target.plan).collect();
        let progress = Arc::new(PushProgress::new(printer.clone(), store_dir.clone(), &plans));
        // Each plan has applied its own filter.
        let (options, transfer) = (self.options(PushFilter::default()), self.args.transfer.options());
        let push = execute_push_to(targets, &options, &transfer, progress.clone());
        let summaries = tokio::select! {
            summaries = push => Some(summaries),
            _ = interrupts.recv() => None,
        };
        progress.finish();
        if summaries.is_none() {
            let pushed = progress.pushed();
            printer.conclude(&format!(
                "interrupted: {pushed} of {} pushed; they stay; run the same command again to push the rest",
                error::paths(missing)
            ));
        }
        Ok(summaries)
    }

    /// What comes after a push without failures.
    async fn finish(&self, target: &PlannedCache<'_>) -> Result<()> {
        // A log that is refused must not cost the paths their pin.
        if let Some(name) = &self.args.pin {
            for root in &self.roots {
                let store_path = root.to_string();
                let request = AddPinRequest { store_path, keep_for_seconds: None, keep: None };
                super::pin::pin(&target.api, target.cache, name, &request, self.context).await?;
            }
        }
        let cache = &target.cache.cache;
        let traces = push_traces(&target.api, self.store, cache, &target.addressed, target.is_known).await?;
        let traces = self.printer.traces(traces);
        if self.args.with_logs {
            push_logs(&target.api, cache, &target.derivers, &self.printer).await?;
        }
        traces
    }
}

/// What a push to one cache began with.
struct PlannedCache<'a> {
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

impl<'a> PlannedCache<'a> {
    fn new(cache: &'a CacheRef, target: &PushTarget, unresolved: usize) -> Self {
        let PushTarget { api, plan } = target;
        let left_out = LeftOut { excluded: plan.excluded.len(), incomplete: plan.incomplete.len() };
        let tried = plan.missing.len() + plan.invalid.len() + left_out.incomplete + unresolved;
        let (derivers, paths) = (plan.derivers.clone(), plan.path_count());
        let (addressed, is_known) = (plan.addressed.clone(), plan.missing.is_empty());
        Self { cache, api: api.clone(), derivers, addressed, is_known, paths, tried, left_out }
    }
}

/// The store paths of the arguments, and the number of arguments that lead to none. Those are
/// reported, and do not stop the others. If no argument leads to a path, the first reason is the
/// answer.
fn resolve_all(
    store: &NixStore,
    arguments: &[PathBuf],
    printer: &PushPrinter<'_>,
) -> Result<(Vec<StorePath>, usize)> {
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
        printer.unresolved(&argument.display().to_string(), error)?;
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

#[cfg(test)]
mod tests {
    use dormer_client::{FailedPath, NotTriedPath, PathDone};

    use super::*;

    fn path(name: &str) -> StorePath {
        format!("f22352qy5d2vfxv22w7q3n7gz1ia47nx-{name}").parse().unwrap()
    }

    #[test]
    fn paths_that_would_be_incomplete_are_lost_and_excluded_ones_are_not() {
        let (only_excluded, both) =
            (LeftOut { excluded: 2, incomplete: 0 }, LeftOut { excluded: 2, incomplete: 1 });
        assert!(outcome(PushSummary::default(), only_excluded, 0, 0).is_none());
        let error = outcome(PushSummary::default(), both, 0, 1).unwrap();
        assert_eq!(error.exit_code(), error::EXIT_PATHS_LOST);
        assert!(error.hints().iter().any(|hint| hint.contains("--allow-incomplete")), "{:?}", error.hints());
    }

    #[test]
    fn a_path_that_the_cache_kept_as_it_was_is_not_lost() {
        let done = PathDone {
            path: path("a"),
            nar_size: 1,
            kind: dormer_api::UploadPathResultKind::Uploaded,
            file_size: None,
            frac_deduplicated: None,
            kept: true,
        };
        let summary = PushSummary { kept: vec![done], ..PushSummary::default() };
        assert!(outcome(summary, LeftOut::default(), 0, 1).is_none());
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
