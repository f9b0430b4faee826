//! The signals that ask a process to stop.

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Error, Result};

/// Resolves at the first SIGTERM, SIGINT or SIGHUP. A SIGTERM or SIGINT after it ends the process
/// at once.
///
/// SIGHUP comes when the terminal or the session goes away; the requests in flight finish then,
/// too. A process that was started to survive this (`nohup`) ignores SIGHUP, and goes on to do so.
pub(crate) fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static> {
    let failed = |source| Error::Io { attempt: "wait for signals".to_owned(), source };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hangup =
        if ignores_hangup() { None } else { Some(signal(SignalKind::hangup()).map_err(failed)?) };
    let (stop, stopped) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hung_up => {}
        }
        // The receiver is gone only if the server is gone.
        let _ = stop.send(());
        // A closing terminal sends SIGHUP twice, from the kernel and from the shell.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(130);
    });
    Ok(async move {
        // An error means that the task above ended, which is also a reason to stop.
        let _ = stopped.await;
    })
}

/// Whether the process was started with SIGHUP ignored. Only Linux tells.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored_signals(&status).is_some_and(|signals| signals & 1 != 0)
}

/// The ignored signals of `/proc/self/status`: the lowest bit is signal 1, SIGHUP.
fn ignored_signals(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}
