//! `dormer exec`: pushes what a command builds.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use dormer_client::queue::{DrainEnd, DrainScope, QueuedCache, StoreWatch};
use dormer_client::{CacheRef, Error as ClientError, NixConfig, nix_program, process_variables};
use dormer_nix::NarHash;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use super::hook::chosen_caches;
use super::install_hook::hook_script;
use super::nix_settings::write_whole;
use super::queue::parse_time;
use crate::context::{Context, EndpointArgs};
use crate::error::{Error, Result};
use crate::queue_drain::{Queue, QueuePushArgs, outcome};
use crate::queue_folder::QueueDirArgs;

const EXIT_CODES: &str = "\
Exit codes:
  those of COMMAND, and 128 and the signal's number if a signal ended it, whatever became of the push
  1, 2  the command could not be started";

/// Run a command, and push what it builds
///
/// Builds are pushed while COMMAND runs and after it, also if it fails: what was built before a
/// failure is in the cache. Where Nix trusts this user, a post-build hook for COMMAND alone queues
/// what is built. Elsewhere, or if Nix has another hook, everything that appears in the store
/// meanwhile is pushed. Filters of the settings ([push]) apply.
///
/// The exit code is that of COMMAND, which runs also if nothing can be queued or watched: then what
/// is new is looked for after it. Paths that could not be pushed stay in the queue: `dormer queue
/// list` shows them, and `dormer queue drain` pushes them. Signals go to COMMAND; a signal after
/// its end stops the push.
///
/// Examples:
///   dormer exec main -- nix build .#a .#b
///   dormer exec lab:team -- make check
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES)]
pub(crate) struct ExecArgs {
    /// [SERVER:]CACHE; without any, the caches of [queue] in the settings
    #[arg(value_name = "CACHE")]
    caches: Vec<CacheRef>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// How builds are noticed
    #[arg(long, value_enum, default_value_t = By::Auto)]
    by: By,
    /// How long failed pushes are tried again after COMMAND
    #[arg(long, value_name = "TIME", default_value = "10min", value_parser = parse_time)]
    drain_timeout: Duration,
    #[command(flatten)]
    push: QueuePushArgs,
    #[command(flatten)]
    queue: QueueDirArgs,
    #[command(flatten)]
    pub(super) server: EndpointArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// By a hook where Nix obeys one of this user, else by the store
    Auto,
    /// A post-build hook in NIX_CONFIG
    Hook,
    /// New paths of the store
    Store,
}

pub(super) async fn run(args: ExecArgs, context: &Context) -> Result<ExitCode> {
    // First of all, so that no signal is lost during the start.
    let mut signals = listen()?;
    let caches = context.queued_caches(&chosen_caches(&args.caches)?)?;
    let since = SystemTime::now();
    let mut command = Command::new(&args.command[0]);
    command.args(&args.command[1..]);
    let program = Path::new(&args.command[0]);
    let start = |command: &mut Command| command.spawn().map_err(Error::io("start", program));
    // What is wrong with the push keeps no command from its work.
    let Some(ExecQueue { queue, is_own }) = open_queue(&args, context).await else {
        let status =
            wait(start(&mut command)?, &mut signals).await.map_err(Error::io("wait for", program))?;
        context.printer.error("nothing of what the command built is pushed");
        return Ok(ExitCode::from(exit_code(status)));
    };
    let by_hook = match args.by {
        // A script outlives its command, and this queue may not.
        _ if is_own => false,
        By::Auto => is_hook_obeyed(&queue).await,
        by => by == By::Hook,
    };
    let hook = if by_hook { told(write_hook(queue.spool.folder(), &caches), context) } else { None };
    let scope = DrainScope { since, caches: caches.clone() };
    let mut store_watch = None;
    if let Some(hook) = hook {
        command.env("NIX_CONFIG", with_hook(process_variables("NIX_CONFIG").as_deref(), &hook));
    } else {
        let (store, spool) = (&queue.store, &queue.spool);
        let begun = StoreWatch::start(store.clone(), spool.clone(), caches.clone());
        let unwatched = || StoreWatch::unwatched(store.clone(), spool.clone(), caches);
        store_watch = Some(told(begun.map_err(Error::from), context).unwrap_or_else(unwatched));
    }
    let child = start(&mut command)?;

    let (command_ended, ended) = watch::channel(false);
    let mut draining = Box::pin(queue.drain_during(ended, args.drain_timeout, &scope));
    let mut drained = None;
    let status = {
        let mut waiting = Box::pin(wait(child, &mut signals));
        let mut watching = Box::pin(async {
            match &mut store_watch {
                Some(watch) => watch.run(&*queue.reporter).await,
                None => std::future::pending().await,
            }
        });
        loop {
            tokio::select! {
                status = &mut waiting => break status,
                end = &mut draining, if drained.is_none() => drained = Some(end),
                () = &mut watching => {}
            }
        }
    };
    let status = status.map_err(Error::io("wait for", program))?;
    if let Some(watch) = &mut store_watch
        && let Err(error) = watch.finish(since, &*queue.reporter).await
    {
        context.printer.error(&format!("what was built is not queued: {}", Error::from(error).chain()));
    }
    // The drainer listens for as long as it runs.
    let _ = command_ended.send(true);
    let end = match drained {
        // It failed while the command ran, and may succeed now.
        Some(Err(_)) => {
            let again = queue.drain(Some(args.drain_timeout), Some(&scope));
            stoppable(again, &mut signals).await
        }
        Some(end) => end,
        None => stoppable(draining, &mut signals).await,
    };
    let folder = queue.spool.folder();
    let option = if is_own { format!(" --queue-dir {}", folder.display()) } else { String::new() };
    match end.and_then(outcome) {
        // Best effort: a folder of temporary files may keep an empty queue.
        Ok(()) if is_own => drop(fs::remove_dir_all(folder)),
        Ok(()) => {}
        Err(error) => {
            context.printer.error(&error.chain());
            context.printer.hint(&format!(
                "what is not pushed stays in the queue: dormer queue list{option} shows it, dormer queue drain{option} pushes it",
            ));
        }
    }
    Ok(ExitCode::from(exit_code(status)))
}

/// The queue of a command.
struct ExecQueue {
    queue: Queue,
    /// Whether it is for this command alone.
    is_own: bool,
}

/// The queue of this user, else one of the command's own among the temporary files: a full disk or
/// a missing home costs no build. `None` if nothing can be queued at all.
async fn open_queue(args: &ExecArgs, context: &Context) -> Option<ExecQueue> {
    let queue = match args.queue.folder(&process_variables) {
        Ok(folder) => Queue::open(&folder, &args.push, context).await,
        Err(error) => Err(error),
    };
    let is_of_nix =
        |error: &Error| !matches!(error, Error::Client(ClientError::Queue { .. }) | Error::Usage { .. });
    match queue {
        Ok(queue) => return Some(ExecQueue { queue, is_own: false }),
        // Without Nix, nobody can tell what was built.
        Err(error) if is_of_nix(&error) => return told(Err(error), context),
        Err(error) => drop(told::<()>(Err(error), context)),
    }
    let folder = std::env::temp_dir().join(format!("dormer-queue-{:016x}", rand::random::<u64>()));
    let queue = told(Queue::open(&folder, &args.push, context).await, context)?;
    context.printer.warn(&format!("what the command builds is queued in {}", folder.display()));
    Some(ExecQueue { queue, is_own: true })
}

/// The value; else says why the push gets harder, and what helps.
fn told<T>(outcome: Result<T>, context: &Context) -> Option<T> {
    let error = match outcome {
        Ok(value) => return Some(value),
        Err(error) => error,
    };
    context.printer.warn(&format!("the command runs all the same: {}", error.chain()));
    for hint in error.hints() {
        context.printer.hint(&hint);
    }
    None
}

/// A drain, until a signal comes.
async fn stoppable(
    drain: impl Future<Output = Result<DrainEnd>>,
    signals: &mut mpsc::Receiver<ReceivedSignal>,
) -> Result<DrainEnd> {
    let ending = async { while signals.recv().await.is_some_and(|came| !ENDING.contains(&came.signal)) {} };
    tokio::select! {
        end = drain => end,
        () = ending => Err(Error::QueueInterrupted),
    }
}

/// Whether Nix runs a hook that this user sets, and has none of its own that this would replace.
async fn is_hook_obeyed(queue: &Queue) -> bool {
    let Ok(config) = NixConfig::read(nix_program(&process_variables)).await else { return false };
    let has_hook = config.text("post-build-hook").is_some_and(|hook| !hook.is_empty());
    !has_hook && queue.store.trusts_this_user().await
}

/// `NIX_CONFIG` with a hook.
fn with_hook(before: Option<&str>, hook: &Path) -> String {
    let line = format!("post-build-hook = {}\n", hook.display());
    before.map_or(line.clone(), |before| format!("{before}\n{line}"))
}

/// The script that Nix runs after each build, one for each set of caches. It stays: the command may
/// leave processes behind that keep `NIX_CONFIG`, and Nix fails a build whose hook is gone.
fn write_hook(folder: &Path, caches: &[QueuedCache]) -> Result<PathBuf> {
    let text = hook_script(folder, caches)?;
    let digest = NarHash::digest(text.as_bytes()).to_hex();
    let path = folder.join(format!("exec-{}", &digest[..16]));
    if fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(path);
    }
    // Another process may run the script, so it appears with its whole text.
    write_whole(&path, &text, 0o700, false).map_err(Error::io("write", &path))?;
    Ok(path)
}

/// The signals with which people and service managers end programs.
const ENDING: [Signal; 4] = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT];

/// The signals that end a program that does not expect them.
const PASSED_ON: [Signal; 7] =
    [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::ALARM];

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ReceivedSignal {
    signal: Signal,
    /// Whether a process sent it. Keys of a terminal have no sender.
    has_sender: bool,
}

/// The signals of [`PASSED_ON`], each as it comes.
fn listen() -> Result<mpsc::Receiver<ReceivedSignal>> {
    let failed = |source| Error::Io { attempt: "listen for signals".to_owned(), source };
    let (sender, signals) = mpsc::channel(16);
    let mut coming = SignalsInfo::<WithOrigin>::new(PASSED_ON.map(Signal::as_raw)).map_err(failed)?;
    let pass_on = move || {
        for origin in coming.forever() {
            let Some(signal) = Signal::from_named_raw(origin.signal) else { continue };
            // macOS names a process 0 for keys.
            let has_sender = origin.process.is_some_and(|process| process.pid > 0);
            // More than a few at once say nothing new.
            let _ = sender.try_send(ReceivedSignal { signal, has_sender });
        }
    };
    // The thread waits until the process ends.
    std::thread::Builder::new().name("signals".to_owned()).spawn(pass_on).map_err(failed)?;
    Ok(signals)
}

/// Waits for the command, and passes signals on to it. A key of the terminal reaches the command by
/// itself, and a second signal would tell many programs to end at once.
async fn wait(mut child: Child, signals: &mut mpsc::Receiver<ReceivedSignal>) -> std::io::Result<ExitStatus> {
    let process = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    loop {
        tokio::select! {
            status = child.wait() => return status,
            Some(ReceivedSignal { signal, has_sender }) = signals.recv() => {
                let is_key = !has_sender && matches!(signal, Signal::INT | Signal::QUIT) && is_in_foreground();
                if let Some(process) = process.filter(|_| !is_key) {
                    // The command may have ended meanwhile.
                    let _ = kill_process(process, signal);
                }
            }
        }
    }
}

/// Whether keys such as Ctrl-C reach the command by themselves, as one of the terminal's processes.
fn is_in_foreground() -> bool {
    let Ok(terminal) = fs::File::open("/dev/tty") else { return false };
    rustix::termios::tcgetpgrp(terminal).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// The command's exit code, as a shell gives it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(crate::error::EXIT_FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(exit_code(ExitStatus::from_raw(0)), 0);
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(15)), 143);
    }

    /// Processes that outlive the command keep its NIX_CONFIG.
    #[test]
    fn the_script_of_a_set_of_caches_stays_and_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let write = |caches: &[&str]| {
            let caches: Vec<QueuedCache> = caches.iter().map(|cache| cache.parse().unwrap()).collect();
            write_hook(folder.path(), &caches).unwrap()
        };
        let first = write(&["main"]);
        assert_eq!(write(&["main"]), first);
        assert_ne!(write(&["lab:team"]), first);
        assert_ne!(write(&["main@http://lab"]), first, "the daemon has no DORMER_ENDPOINT");
        fs::write(&first, "half").unwrap();
        assert_eq!(write(&["main"]), first, "a damaged script is written again");
        let ran = std::process::Command::new(&first).arg("x").env_clear().output().unwrap();
        assert!(ran.status.success(), "{ran:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn the_settings_of_the_user_stay() {
        let hook = Path::new("/q/exec-1");
        assert_eq!(with_hook(None, hook), "post-build-hook = /q/exec-1\n");
        assert_eq!(with_hook(Some("cores = 1"), hook), "cores = 1\npost-build-hook = /q/exec-1\n");
    }
}
