//! `dormer export`.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use dormer_api::CacheName;
use dormer_nix::StorePath;
use dormer_publish::{ExportOutcome, ExportSettings, Reporter, export};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::context::{Context, SettingsArgs};
use crate::error::EXIT_INTERRUPTED;
use crate::error::{self, Error, Result};
use crate::installation::open_beside;
use crate::printer::Printer;
use crate::settings::Settings;
use crate::settings::units::{human_duration, human_size};
use crate::signals::stop_signal;
use crate::static_place::StaticPlace;

const EXIT_CODES: &str = "\
Exit codes:
  0  every path of the cache is in the place
  2  wrong usage; nothing was tried
  3  some paths could not be exported, the others were
  1  any other failure; 130  interrupted, whole closures stay in the place";

/// Write a cache to a folder or bucket, as a static cache that needs no Dormer
///
/// The place holds nix-cache-info, narinfos with FileHash, NARs (.nar.zst), listings (.ls) and
/// build traces, and with --logs and --debug-info those too, for any web server and for Nix itself.
/// Each path follows its references, so a reader finds whole closures at every moment. Run the same
/// command again to complete an interrupted export, or to bring what is new: it writes only what is
/// missing or wrong. It deletes nothing.
///
/// The command runs where the server's settings are, also beside `dormer serve`. A bucket's
/// credentials come from the usual variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION.
/// A private cache is not written to a bucket that anybody can read.
///
/// Examples:
///   dormer export main --to /srv/nix-cache
///   dormer export main --to 's3://backup/main?region=eu-central-1'
///   nix copy --from file:///srv/nix-cache /nix/store/…
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub(crate) struct ExportArgs {
    /// Name of the cache
    cache: CacheName,
    /// Folder, or bucket and prefix: DIR, s3://BUCKET/PREFIX?endpoint=URL&region=R, gs://…, az://…
    #[arg(long, value_name = "PLACE")]
    to: StaticPlace,
    /// Write no listings (.ls), which only some tools read
    #[arg(long)]
    no_listings: bool,
    /// Write no build traces, with which Nix substitutes content-addressed derivations
    #[arg(long)]
    no_traces: bool,
    /// Also write build logs, for `nix log`
    #[arg(long)]
    logs: bool,
    /// Also write links to debug info, for debuggers
    #[arg(long)]
    debug_info: bool,
    /// Number of concurrent requests
    #[arg(short, long, value_name = "NUMBER", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) async fn run(args: ExportArgs, context: &Context) -> Result<ExitCode> {
    let started = Instant::now();
    let Some(store) = args.to.open_to_write()? else {
        return Err(Error::usage(
            "an export cannot be written to a web address",
            "give a folder or a bucket; to push into a cache over HTTP: nix copy --to, or dormer push",
        ));
    };
    let mut stop = Box::pin(stop_signal()?);
    let (settings, _) = Settings::load(&context.environment, &args.settings.to_flags())?;
    let follower = open_beside(&settings).await?;
    let Some(cache) = follower.engine.current_cache(args.cache.as_str()).await? else {
        return Err(Error::NoCache { name: args.cache.to_string() });
    };
    if !cache.is_public {
        // The files of a private cache are for this user alone.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    }
    let export_settings = ExportSettings {
        listings: !args.no_listings,
        logs: args.logs,
        traces: !args.no_traces,
        debug_info: args.debug_info,
        concurrency: args.jobs.into(),
        ..ExportSettings::default()
    };
    let progress = ExportProgress::new(&context.printer, args.cache.as_str());
    let work = export(&follower.engine, &*follower.publish, &store, &cache, &export_settings, &progress);
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = &mut stop => {
            progress.clear();
            context.printer.conclude("interrupted; whole closures stay; run the same command again to export the rest");
            return Ok(ExitCode::from(EXIT_INTERRUPTED));
        }
    };
    progress.clear();
    follower.index.close().await?;
    let outcome = outcome?;
    report(&outcome, &args, started.elapsed(), &context.printer)?;
    if outcome.failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let tried = outcome.failed + outcome.exported + outcome.unchanged;
    let count = |paths| usize::try_from(paths).unwrap_or(usize::MAX);
    Err(Error::NotExported { lost: count(outcome.failed), tried: count(tried) })
}

fn report(outcome: &ExportOutcome, args: &ExportArgs, elapsed: Duration, printer: &Printer) -> Result<()> {
    for (hash, reason) in &outcome.failures {
        printer.message(&json!({
            "message_type": "path", "path": hash.to_string(), "state": "failed", "error": reason,
        }))?;
        printer.error(&format!("{hash}: {reason}"));
    }
    printer.message(&json!({
        "message_type": "export", "cache": args.cache.as_str(), "exported": outcome.exported,
        "unchanged": outcome.unchanged, "nars_uploaded": outcome.nars_uploaded,
        "bytes_uploaded": outcome.bytes_uploaded, "documents": outcome.documents, "left_out": outcome.left_out,
        "failed": outcome.failed, "seconds": elapsed.as_secs_f64(),
    }))?;
    if outcome.left_out > 0 {
        printer.warn(&format!(
            "{} documents are left out, because their names are too long for this place",
            outcome.left_out
        ));
    }
    printer.conclude(&last_line(outcome, elapsed));
    Ok(())
}

/// One line that stands alone.
fn last_line(outcome: &ExportOutcome, elapsed: Duration) -> String {
    let count = |paths| error::paths(usize::try_from(paths).unwrap_or(usize::MAX));
    let mut line = format!("exported {}", count(outcome.exported));
    if outcome.unchanged > 0 {
        line = format!("{line} ({} there already)", outcome.unchanged);
    }
    if outcome.failed > 0 {
        line = format!("{line}, {} failed", outcome.failed);
    }
    let sent = human_size(outcome.bytes_uploaded);
    line = format!("{line}, {} NARs written, {sent}", outcome.nars_uploaded);
    if outcome.documents > 0 {
        line = format!("{line}, {} documents written", outcome.documents);
    }
    format!("{line}, {}", human_duration(elapsed))
}

/// One line that counts, on a terminal; with `-v`, a line for each path.
struct ExportProgress {
    printer: Printer,
    bar: Mutex<Option<ProgressBar>>,
    exported: AtomicU64,
    bytes: AtomicU64,
}

impl ExportProgress {
    fn new(printer: &Printer, cache: &str) -> Self {
        let bar = printer.progress_target().map(|target| {
            let bar = ProgressBar::with_draw_target(None, target);
            let style = ProgressStyle::with_template("{elapsed_precise}  {prefix}  {msg}");
            bar.set_style(style.expect("our template is well formed"));
            bar.set_prefix(cache.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self {
            printer: printer.clone(),
            bar: Mutex::new(bar),
            exported: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    fn draw(&self) {
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            let exported = self.exported.load(Ordering::Relaxed);
            let bytes = human_size(self.bytes.load(Ordering::Relaxed));
            bar.set_message(format!("{exported} exported, {bytes} written"));
        }
    }

    fn clear(&self) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}

impl Reporter for ExportProgress {
    fn nar_uploaded(&self, _cache: &str, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.draw();
    }

    fn path_published(&self, _cache: &str, path: &StorePath) {
        self.exported.fetch_add(1, Ordering::Relaxed);
        self.draw();
        self.printer.detail(&format!("exported {path}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_stands_alone() {
        let mut outcome =
            ExportOutcome { exported: 1, nars_uploaded: 1, bytes_uploaded: 3 << 20, ..Default::default() };
        let elapsed = Duration::from_millis(9_420);
        assert_eq!(last_line(&outcome, elapsed), "exported 1 path, 1 NARs written, 3.0 MiB, 9.4 s");
        (outcome.unchanged, outcome.failed, outcome.documents) = (4, 2, 7);
        assert_eq!(
            last_line(&outcome, elapsed),
            "exported 1 path (4 there already), 2 failed, 1 NARs written, 3.0 MiB, 7 documents written, 9.4 s"
        );
    }
}
