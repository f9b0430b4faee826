//! `dormer import`.

use std::io::BufRead as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use clap::Args;
use dormer_api::Secret;
use dormer_client::{
    CacheRef, Endpoint, Error as ClientError, FetchError, FileStream, ImportOptions, ImportReporter,
    ImportSource, ImportSummary, PathDone, PushReporter, Retry, StaticCache, TransferId, WebCache,
    file_name_in_cache, import,
};
use dormer_nix::{DocumentName, PublicKey, StorePath, StorePathHash};
use dormer_stores::{Opened, Store};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::context::{Context, EndpointArgs, retry_line};
use crate::error::EXIT_INTERRUPTED;
use crate::error::{self, Error, Result};
use crate::printer::Printer;
use crate::settings::units::{human_duration, human_size};
use crate::signals::stop_signal;
use crate::static_place::StaticPlace;

const EXIT_CODES: &str = "\
Exit codes:
  0  every path is now in the cache, or upstream, and so are its build traces and logs
  2  wrong usage; nothing was tried
  3  some paths, build traces or logs could not be imported, the others were
  4  the server refuses the token, or requires one; 5  it does not answer
  1  any other failure; 130  interrupted, acknowledged paths stay in the cache

Environment:
  DORMER_SOURCE_TOKEN  token for a source on the web that wants one";

/// The token for a source on the web.
const SOURCE_TOKEN: &str = "DORMER_SOURCE_TOKEN";

/// Bring paths of a static cache into a cache of a server
///
/// The source is a folder or bucket in Nix's own layout: what `nix copy --to file://` or `s3://`
/// wrote, what `dormer export` or `dormer publish` wrote, or any cache on the web. A folder or
/// bucket is listed, or give paths; of a cache on the web, give the paths, and their closures are
/// imported. All compressions of Nix are read. Upstream signatures are kept. Build traces come
/// along from a folder or bucket, but a cache on the web does not list them. Build logs need
/// --logs.
///
/// The server signs what it serves with the cache's key. So only a path is imported that a
/// --trusted-public-key signed, or that proves itself by its content address, and only a build
/// trace that such a key signed; everything else needs --allow-unsigned. Nobody signs logs. Run the
/// same command again to complete an interrupted import: it skips what the cache has.
///
/// A bucket's credentials come from the usual variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
/// AWS_REGION.
///
/// Examples:
///   dormer import main --from /srv/nix-cache --trusted-public-key 'cache.example-1:…'
///   dormer import main --from 's3://old-cache?region=eu-central-1' --trusted-public-key 'old-1:…'
///   nix-store -qR ./result | dormer import main --from https://me.cachix.org --stdin --trusted-public-key 'me.cachix.org-1:…'
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub(crate) struct ImportArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    /// Folder, bucket and prefix, or web address of the source: DIR, s3://BUCKET/PREFIX, https://…
    #[arg(long, value_name = "PLACE")]
    from: StaticPlace,
    /// The paths to import with their closures, in full or their hashes alone; without any, all
    /// that a listing finds
    #[arg(value_name = "PATH")]
    paths: Vec<String>,
    /// Also read paths from standard input, one a line
    #[arg(long)]
    stdin: bool,
    /// Key whose signatures are trusted, as in Nix's trusted-public-keys; may be repeated
    #[arg(long, value_name = "KEY")]
    trusted_public_key: Vec<PublicKey>,
    /// Also import paths and build traces that no trusted key signed: the server will sign them
    #[arg(long)]
    allow_unsigned: bool,
    /// Also import paths that an upstream cache has signed
    #[arg(long)]
    ignore_upstream_cache_filter: bool,
    /// Also import build logs: all of a listing, or with PATHs those of the imported paths
    #[arg(long)]
    logs: bool,
    /// Import no build traces, with which Nix substitutes content-addressed derivations
    #[arg(long)]
    no_traces: bool,
    /// Number of concurrent uploads
    #[arg(short, long, value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// Print what would be imported, and import nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(crate) server: EndpointArgs,
}

pub(super) async fn run(args: ImportArgs, context: &Context) -> Result<ExitCode> {
    let mut named = args.paths;
    if args.stdin {
        for line in std::io::stdin().lock().lines() {
            let attempt = "read paths from standard input".to_owned();
            named.push(line.map_err(|source| Error::Io { attempt, source })?);
        }
    }
    let hashes = named
        .iter()
        .map(|text| text.trim())
        .filter(|text| !text.is_empty())
        .map(hash_of)
        .collect::<Result<Vec<StorePathHash>>>()?;
    let source = open_source(&args.from)?;
    let paths = match (hashes.is_empty(), source.list().is_some()) {
        (true, true) if !args.stdin => ImportSource::All,
        // Perhaps no path at all came from standard input.
        (false, _) | (true, true) => ImportSource::Closures(hashes),
        (true, false) => return Err(ClientError::NotListed { location: source.location() }.into()),
    };
    let (_, api) = context.connect_to_cache(&args.cache)?;
    let mut stop = Box::pin(stop_signal()?);
    let config = api.get_cache_config(&args.cache.cache).await?;
    let options = ImportOptions {
        trusted_keys: args.trusted_public_key,
        allow_unsigned: args.allow_unsigned,
        traces: !args.no_traces,
        logs: args.logs,
        ignore_upstream: args.ignore_upstream_cache_filter,
        jobs: args.jobs.into(),
        dry_run: args.dry_run,
    };
    if options.traces && source.list().is_none() {
        context.printer.detail("build traces stay behind: a cache on the web does not list them");
    }
    let has_keys = !options.trusted_keys.is_empty();
    let progress = Arc::new(ImportProgress::new(&context.printer));
    let reporter = Arc::clone(&progress) as Arc<dyn ImportReporter>;
    let work = import(&api, source, &args.cache.cache, &config, paths, options, reporter);
    let summary = tokio::select! {
        summary = work => summary,
        () = &mut stop => {
            progress.finish();
            context.printer.conclude(&format!(
                "interrupted: {} imported; they stay; run the same command again to import the rest",
                progress.done.load(Ordering::Relaxed)
            ));
            return Ok(ExitCode::from(EXIT_INTERRUPTED));
        }
    };
    progress.finish();
    let summary = summary?;
    report(&summary, args.dry_run, &context.printer)?;
    outcome(summary, has_keys).map_or(Ok(ExitCode::SUCCESS), Err)
}

/// If nothing could be imported because of the server, its answer is the best explanation, with its
/// own exit code and hints.
fn outcome(summary: ImportSummary, has_keys: bool) -> Option<Error> {
    let lost = summary.failed + summary.not_tried;
    if lost + summary.documents_failed == 0 {
        return None;
    }
    if let Some(error) = summary.stopped_by.filter(|_| summary.imported + summary.kept == 0) {
        return Some(error.into());
    }
    let count = |paths| usize::try_from(paths).unwrap_or(usize::MAX);
    if lost == 0 {
        return Some(Error::DocumentsNotImported { lost: count(summary.documents_failed) });
    }
    Some(Error::NotImported {
        lost: count(lost),
        tried: count(lost + summary.imported + summary.kept),
        unsigned: count(summary.unsigned),
        has_keys,
    })
}

/// The hash of a store path in full, of its base name, or alone.
fn hash_of(text: &str) -> Result<StorePathHash> {
    let base_name = text.rsplit('/').next().unwrap_or_default();
    let hash = match base_name.parse::<StorePath>() {
        Ok(path) => Ok(path.hash()),
        Err(_) => base_name.parse::<StorePathHash>(),
    };
    hash.map_err(|_| {
        let text: String = text.chars().take(200).collect();
        Error::usage(
            format!("{text:?} is not a store path"),
            "give paths such as /nix/store/f223…-hello, or their hashes alone",
        )
    })
}

fn open_source(place: &StaticPlace) -> Result<Arc<dyn StaticCache>> {
    Ok(match place {
        StaticPlace::Web(url) => {
            let base: Endpoint = url.as_str().parse()?;
            let token = std::env::var(SOURCE_TOKEN).ok().filter(|token| !token.is_empty()).map(Secret::new);
            Arc::new(WebCache::new(base, token.as_ref())?)
        }
        place => Arc::new(StoredCache(place.open_to_read()?)),
    })
}

/// A static cache in a folder or bucket.
#[derive(Debug)]
struct StoredCache(Store);

impl StoredCache {
    fn failed(name: &str, error: dormer_stores::Error) -> FetchError {
        // The store has tried again by itself.
        FetchError::Source { name: name.to_owned(), is_passing: false, source: Box::new(error) }
    }
}

#[async_trait]
impl StaticCache for StoredCache {
    fn location(&self) -> String {
        self.0.location().to_owned()
    }

    async fn get(&self, name: &str, bytes_max: usize) -> std::result::Result<Option<Bytes>, FetchError> {
        let opened = self.0.open_object(name, None).await.map_err(|error| Self::failed(name, error))?;
        let Some(Opened::Found(meta, mut stream)) = opened else { return Ok(None) };
        let too_large = || FetchError::TooLarge { name: name.to_owned(), max: bytes_max };
        let size = usize::try_from(meta.size).ok().filter(|size| *size <= bytes_max).ok_or_else(too_large)?;
        let mut bytes = Vec::with_capacity(size);
        while let Some(piece) = stream.next().await {
            let broken = |error: std::io::Error| FetchError::Source {
                name: name.to_owned(),
                is_passing: false,
                source: Box::new(error),
            };
            bytes.extend_from_slice(&piece.map_err(broken)?);
            if bytes.len() > bytes_max {
                return Err(too_large());
            }
        }
        Ok(Some(bytes.into()))
    }

    async fn open(&self, url: &str) -> std::result::Result<FileStream, FetchError> {
        let name = file_name_in_cache(url)?;
        let opened = self.0.open_object(name, None).await.map_err(|error| Self::failed(name, error))?;
        let Some(Opened::Found(_, stream)) = opened else {
            return Err(FetchError::Missing { name: name.to_owned() });
        };
        let aborted = |error| std::io::Error::new(std::io::ErrorKind::ConnectionAborted, error);
        Ok(stream.map_err(aborted).boxed())
    }

    fn list(&self) -> Option<BoxStream<'static, std::result::Result<StorePathHash, FetchError>>> {
        let hashes = self.0.list("").try_filter_map(async |entry| {
            let stem = entry.name.strip_suffix(".narinfo");
            Ok(stem.and_then(|stem| stem.parse::<StorePathHash>().ok()))
        });
        Some(hashes.map_err(|error| Self::failed("the listing", error)).boxed())
    }

    fn list_documents(
        &self,
        folder: &str,
    ) -> Option<BoxStream<'static, std::result::Result<DocumentName, FetchError>>> {
        // What is no name of a document lies there for another reason.
        let names = self.0.list(folder.trim_end_matches('/'));
        let names = names.try_filter_map(async |entry| Ok(entry.name.parse::<DocumentName>().ok()));
        Some(names.map_err(|error| Self::failed("the listing", error)).boxed())
    }
}

fn report(summary: &ImportSummary, is_dry: bool, printer: &Printer) -> Result<()> {
    for failure in &summary.failures {
        let state = if failure.not_tried { "not_tried" } else { "failed" };
        printer.message(&json!({
            "message_type": "path", "path": failure.path, "state": state, "error": failure.reason,
        }))?;
        if failure.not_tried {
            printer.detail(&format!("not tried: {}: {}", failure.path, failure.reason));
        }
    }
    printer.message(&json!({
        "message_type": "import", "dry_run": is_dry, "imported": summary.imported, "kept": summary.kept,
        "present": summary.present, "upstream": summary.upstream, "failed": summary.failed,
        "unsigned": summary.unsigned, "not_tried": summary.not_tried, "bytes_read": summary.bytes_read,
        "bytes_sent": summary.bytes_sent, "bytes_saved": summary.bytes_saved, "traces": summary.traces,
        "traces_without_path": summary.traces_without_path, "logs": summary.logs,
        "logs_too_long": summary.logs_too_long,
        "documents_kept": summary.documents_kept, "documents_failed": summary.documents_failed,
        "seconds": summary.elapsed.as_secs_f64(),
    }))?;
    printer.conclude(&last_line(summary, is_dry));
    Ok(())
}

/// One line that stands alone.
fn last_line(summary: &ImportSummary, is_dry: bool) -> String {
    let imported = error::paths(usize::try_from(summary.imported).unwrap_or(usize::MAX));
    let others: Vec<String> = [
        (summary.kept, "not replaced"),
        (summary.present, "already there"),
        (summary.upstream, "upstream"),
        (summary.failed, "failed"),
        (summary.not_tried, "not tried"),
        (summary.traces, "build traces"),
        (summary.logs, "build logs"),
        (summary.logs_too_long, "build logs too long"),
        (summary.documents_failed, "documents failed"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    let others = if others.is_empty() { String::new() } else { format!(" ({})", others.join(", ")) };
    if is_dry {
        return format!("would import {imported}{others}");
    }
    format!(
        "imported {imported}{others}, {} read, {} deduplicated, {}",
        human_size(summary.bytes_read),
        human_size(summary.bytes_saved),
        human_duration(summary.elapsed)
    )
}

/// One line that counts, on a terminal; with `-v`, a line for each path.
struct ImportProgress {
    printer: Printer,
    bar: Mutex<Option<ProgressBar>>,
    done: AtomicU64,
    skipped: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
}

impl ImportProgress {
    fn new(printer: &Printer) -> Self {
        let bar = printer.progress_target().map(|target| {
            let bar = ProgressBar::with_draw_target(None, target);
            let style = ProgressStyle::with_template("{elapsed_precise}  {msg}");
            bar.set_style(style.expect("our template is well formed"));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self {
            printer: printer.clone(),
            bar: Mutex::new(bar),
            done: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    fn with_bar(&self, draw: impl FnOnce(Option<&ProgressBar>)) {
        draw(self.bar.lock().unwrap_or_else(PoisonError::into_inner).as_ref());
    }

    fn draw(&self) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        self.with_bar(|bar| {
            let Some(bar) = bar else { return };
            bar.set_message(format!(
                "{} imported, {} already there or upstream, {} failed, {} sent",
                load(&self.done),
                load(&self.skipped),
                load(&self.failed),
                human_size(load(&self.bytes))
            ));
        });
    }

    /// Prints above the line.
    fn above(&self, say: impl FnOnce()) {
        self.with_bar(|bar| match bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        });
    }

    fn finish(&self) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}

impl PushReporter for ImportProgress {
    fn path_progress(&self, _id: TransferId, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.draw();
    }

    fn path_retrying(&self, _id: TransferId, retry: &Retry<'_>) {
        self.above(|| self.printer.warn(&retry_line(retry)));
    }

    fn path_done(&self, _id: TransferId, done: &PathDone) {
        if done.kept {
            let line = format!("not imported: {}: the cache keeps the one it has", done.path);
            self.above(|| self.printer.warn(&line));
        } else {
            self.done.fetch_add(1, Ordering::Relaxed);
            self.above(|| self.printer.detail(&format!("imported {}", done.path)));
        }
        self.draw();
    }

    fn path_failed(&self, _id: TransferId, path: &StorePath, error: &ClientError) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.above(|| self.printer.error(&format!("{path}: {}", Error::chain_of(error))));
        self.draw();
    }
}

impl ImportReporter for ImportProgress {
    fn path_planned(&self, path: &StorePath, nar_size: u64) {
        let message = json!({
            "message_type": "path", "path": path.to_string(), "state": "missing", "nar_size": nar_size,
        });
        // A reader that went away shows at the summary.
        self.above(|| {
            let _ = if self.printer.json {
                self.printer.message(&message)
            } else {
                self.printer.data(&path.to_string())
            };
        });
    }

    fn path_refused(&self, path: &str, error: &FetchError) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.above(|| self.printer.error(&format!("{path}: {}", Error::chain_of(error))));
        self.draw();
    }

    fn paths_skipped(&self, count: u64) {
        self.skipped.fetch_add(count, Ordering::Relaxed);
        self.draw();
    }

    fn document_failed(&self, name: &DocumentName, reason: &str) {
        self.above(|| self.printer.error(&format!("{name}: {reason}")));
    }

    fn document_left_out(&self, name: &DocumentName, reason: &str) {
        self.above(|| self.printer.warn(&format!("left out {name}: {reason}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_stands_alone() {
        let mut summary = ImportSummary {
            imported: 2,
            bytes_read: 3 << 20,
            elapsed: Duration::from_millis(9_420),
            ..ImportSummary::default()
        };
        assert_eq!(last_line(&summary, false), "imported 2 paths, 3.0 MiB read, 0 B deduplicated, 9.4 s");
        (summary.present, summary.failed, summary.logs) = (5, 1, 3);
        assert_eq!(
            last_line(&summary, true),
            "would import 2 paths (5 already there, 1 failed, 3 build logs)"
        );
    }

    #[test]
    fn paths_are_named_in_full_or_by_their_hash() {
        const HASH: &str = "f22352qy5d2vfxv22w7q3n7gz1ia47nx";
        for text in [HASH.to_owned(), format!("{HASH}-a"), format!("/nix/store/{HASH}-a")] {
            assert_eq!(hash_of(&text).unwrap().to_string(), HASH, "{text}");
        }
        for text in ["", "hello", "/nix/store/", "/nix/store/f22352qy-a"] {
            assert!(matches!(hash_of(text), Err(Error::Usage { .. })), "{text}");
        }
    }

    #[test]
    fn an_unsigned_source_is_explained() {
        let summary = ImportSummary { failed: 2, unsigned: 2, ..ImportSummary::default() };
        let error = outcome(summary, false).unwrap();
        assert_eq!(error.exit_code(), error::EXIT_PATHS_LOST);
        assert!(error.hints().concat().contains("--trusted-public-key"));
        assert!(outcome(ImportSummary { imported: 2, ..ImportSummary::default() }, false).is_none());
        let summary = ImportSummary { imported: 2, documents_failed: 1, ..ImportSummary::default() };
        assert_eq!(outcome(summary, true).unwrap().exit_code(), error::EXIT_PATHS_LOST);
    }
}
