//! Progress of a push. On a terminal: one status line, and a bar per large transfer. Elsewhere: one
//! line per large transfer.
//!
//! A transfer below [`LARGE_BYTES`] ends before anybody could read its bar.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dormer_api::CacheName;
use dormer_client::{Error as ClientError, PathDone, PushPlan, PushReporter, Retry, TransferId};
use dormer_nix::{StoreDir, StorePath};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::context::retry_line;
use crate::error::Error;
use crate::printer::Printer;
use crate::settings::units::human_size;
use crate::terminal::SilentKeys;

/// A transfer of at least this size gets its own bar or line.
const LARGE_BYTES: u64 = 8 * 1024 * 1024;

/// Draws a push.
#[derive(Debug)]
pub(crate) struct PushProgress {
    printer: Printer,
    store_dir: StoreDir,
    path_count: usize,
    acknowledged: AtomicUsize,
    /// How many of these the cache did not take, because it keeps what it has.
    kept: AtomicUsize,
    /// This lock guards everything on the terminal, so that nothing is drawn after the end.
    screen: Mutex<Bars>,
}

#[derive(Debug)]
struct Bars {
    drawn: Option<Drawn>,
    transfers: HashMap<TransferId, Transfer>,
    bytes_sent: u64,
    bytes_saved: u64,
    /// Whether the push told of single chunks that it need not send.
    spares_chunks: bool,
    finished: bool,
}

#[derive(Debug)]
struct Drawn {
    all: MultiProgress,
    status: ProgressBar,
    /// Active until the end, because a key would move the cursor away from the expected position.
    silent_keys: Option<SilentKeys>,
}

#[derive(Debug, Default)]
struct Transfer {
    bytes: u64,
    bar: Option<ProgressBar>,
}

impl PushProgress {
    /// Progress of a push by these plans, one for each cache.
    pub(crate) fn new(printer: Printer, store_dir: StoreDir, plans: &[&PushPlan]) -> Self {
        let path_count = plans.iter().map(|plan| plan.missing.len()).sum();
        let drawn = printer.progress_target().filter(|_| path_count > 0).map(|target| {
            let silent_keys = SilentKeys::on_stderr();
            let all = MultiProgress::with_draw_target(target);
            let status = all.add(ProgressBar::new(bytes_to_read(plans)));
            status.set_style(style(
                "{elapsed_precise}  {prefix}  {bytes} / {total_bytes} read{msg}  {bytes_per_sec}  ETA {eta}",
            ));
            status.set_prefix(format!("0/{path_count} paths"));
            status.enable_steady_tick(Duration::from_millis(200));
            Drawn { all, status, silent_keys }
        });
        let screen = Bars {
            drawn,
            transfers: HashMap::new(),
            bytes_sent: 0,
            bytes_saved: 0,
            spares_chunks: false,
            finished: false,
        };
        let (acknowledged, kept) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { printer, store_dir, path_count, acknowledged, kept, screen: Mutex::new(screen) }
    }

    /// Number of acknowledged paths that are in the cache as this push sent them.
    pub(crate) fn pushed(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed).saturating_sub(self.kept.load(Ordering::Relaxed))
    }

    /// Clears the screen. Later reports of aborted transfers are not shown.
    pub(crate) fn finish(&self) {
        self.on_screen(|screen| {
            screen.finished = true;
            if let Some(drawn) = &mut screen.drawn {
                drawn.status.disable_steady_tick();
                // Best effort, because the terminal may be gone.
                let _ = drawn.all.clear();
                drawn.all.set_draw_target(ProgressDrawTarget::hidden());
                drawn.silent_keys = None;
            }
        });
    }

    fn on_screen(&self, draw: impl FnOnce(&mut Bars)) {
        // A panic under the lock leaves at worst a bar in a wrong place.
        let mut screen = self.screen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !screen.finished {
            draw(&mut screen);
        }
    }
}

impl Bars {
    /// Prints a message above the bars.
    fn above(&self, say: impl FnOnce()) {
        match &self.drawn {
            Some(drawn) => drawn.all.suspend(say),
            None => say(),
        }
    }

    /// Adds to a transfer's bytes, or resets them to zero.
    fn count(&mut self, id: TransferId, bytes: Option<u64>) {
        let transfer = self.transfers.entry(id).or_default();
        match (bytes, &self.drawn) {
            (Some(bytes), Some(drawn)) => drawn.status.inc(bytes),
            (None, Some(drawn)) => drawn.status.dec(transfer.bytes),
            (_, None) => {}
        }
        transfer.bytes = bytes.map_or(0, |bytes| transfer.bytes + bytes);
        if let Some(bar) = &transfer.bar {
            bar.set_position(transfer.bytes);
        }
    }

    /// Shows what was sent, and what need not be.
    fn show_bytes(&self) {
        if let Some(drawn) = &self.drawn {
            let spared = match self.bytes_saved {
                0 => String::new(),
                bytes => format!(", {} spared", human_size(bytes)),
            };
            drawn.status.set_message(format!(", {} sent{spared}", human_size(self.bytes_sent)));
        }
    }

    fn end(&mut self, id: TransferId) {
        if let Some(Transfer { bar: Some(bar), .. }) = self.transfers.remove(&id) {
            bar.finish_and_clear();
        }
    }
}

impl PushReporter for PushProgress {
    fn falls_back(&self, cache: &CacheName, reason: &str) {
        self.on_screen(|screen| screen.above(|| self.printer.warn(&fallback_line(cache, reason))));
    }

    fn path_started(&self, id: TransferId, path: &StorePath, nar_size: u64) {
        self.on_screen(|screen| {
            let mut transfer = Transfer::default();
            if let Some(drawn) = screen.drawn.as_ref().filter(|_| nar_size >= LARGE_BYTES) {
                let bar = drawn.all.add(ProgressBar::new(nar_size));
                bar.set_style(style("  {bar:24}  {bytes:>10} / {total_bytes:<10}  {prefix}"));
                bar.set_prefix(short_name(path));
                transfer.bar = Some(bar);
            }
            screen.transfers.insert(id, transfer);
        });
    }

    fn path_progress(&self, id: TransferId, bytes: u64) {
        self.on_screen(|screen| screen.count(id, Some(bytes)));
    }

    fn sent(&self, bytes: u64) {
        self.on_screen(|screen| {
            screen.bytes_sent += bytes;
            screen.show_bytes();
        });
    }

    fn spared(&self, bytes: u64) {
        self.on_screen(|screen| {
            screen.bytes_saved += bytes;
            screen.spares_chunks = true;
            screen.show_bytes();
        });
    }

    fn part_retrying(&self, retry: &Retry<'_>) {
        self.on_screen(|screen| screen.above(|| self.printer.warn(&retry_line(retry))));
    }

    fn path_retrying(&self, id: TransferId, retry: &Retry<'_>) {
        self.on_screen(|screen| {
            screen.count(id, None);
            screen.above(|| self.printer.warn(&retry_line(retry)));
        });
    }

    fn path_done(&self, id: TransferId, done: &PathDone) {
        let number = self.acknowledged.fetch_add(1, Ordering::Relaxed) + 1;
        self.kept.fetch_add(usize::from(done.kept), Ordering::Relaxed);
        let path = done.path.to_absolute(&self.store_dir);
        let line = done_line(&path, done, number, self.path_count);
        self.on_screen(|screen| {
            screen.end(id);
            // A push by chunks told of each chunk.
            if !screen.spares_chunks {
                screen.bytes_saved += saved_bytes(done);
                screen.show_bytes();
            }
            if done.kept {
                screen.above(|| self.printer.warn(&line));
            }
            match &screen.drawn {
                Some(drawn) => {
                    drawn.status.set_prefix(format!("{number}/{} paths", self.path_count));
                }
                None if done.kept => {}
                None if done.nar_size >= LARGE_BYTES => self.printer.say(&line),
                None => self.printer.detail(&line),
            }
        });
    }

    fn path_failed(&self, id: TransferId, path: &StorePath, error: &ClientError) {
        let path = path.to_absolute(&self.store_dir);
        self.on_screen(|screen| {
            screen.end(id);
            screen.above(|| self.printer.error(&format!("{path}: {}", Error::chain_of(error))));
        });
    }
}

/// Bytes of the NARs that some cache lacks. Each is read once.
/// Explains why a push sends more than it has to.
pub(crate) fn fallback_line(cache: &CacheName, reason: &str) -> String {
    format!("every NAR goes to {cache} whole: {reason}")
}

fn bytes_to_read(plans: &[&PushPlan]) -> u64 {
    let infos = plans.iter().flat_map(|plan| &plan.missing);
    let sizes: HashMap<&StorePath, u64> = infos.map(|info| (&info.path, info.nar_size)).collect();
    sizes.values().sum()
}

/// The line about a path that the server acknowledged: a warning if the cache kept what it had.
fn done_line(path: &str, done: &PathDone, number: usize, count: usize) -> String {
    if done.kept {
        format!("not pushed: {path}: the cache keeps the one it has, with another NAR or other references")
    } else {
        format!("pushed {path} ({}), {number}/{count}", human_size(done.nar_size))
    }
}

/// Computed like the summary: the part that the server says it already had.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a figure for people between 0 and the NAR's size"
)]
fn saved_bytes(done: &PathDone) -> u64 {
    let fraction = done.frac_deduplicated.unwrap_or_else(|| {
        if done.kind == dormer_api::UploadPathResultKind::Deduplicated { 1.0 } else { 0.0 }
    });
    (done.nar_size as f64 * fraction.clamp(0.0, 1.0)).round() as u64
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("our templates are well formed").progress_chars("━╸─")
}

/// The name of a path without its hash, for people.
fn short_name(path: &StorePath) -> String {
    let text = path.to_string();
    text.split_once('-').map_or(text.as_str(), |(_, name)| name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_the_cache_kept_as_it_was_is_a_warning() {
        let done = |kept| PathDone {
            path: "f22352qy5d2vfxv22w7q3n7gz1ia47nx-a".parse().unwrap(),
            nar_size: 1,
            kind: dormer_api::UploadPathResultKind::Uploaded,
            file_size: None,
            frac_deduplicated: None,
            kept,
        };
        assert_eq!(done_line("/p", &done(false), 1, 2), "pushed /p (1 B), 1/2");
        assert!(done_line("/p", &done(true), 1, 2).starts_with("not pushed: /p: the cache keeps"));
    }
}
