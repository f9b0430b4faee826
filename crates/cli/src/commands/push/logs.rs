//! The build logs of `dormer push --with-logs`.

use dormer_api::CacheName;
use dormer_client::{ApiClient, BuildLogs, PlannedDeriver};
use futures::StreamExt as _;

use super::report::PushPrinter;
use crate::error::{Error, Result};

/// Build logs that are sent at once.
const LOGS_AT_ONCE: usize = 8;

/// Uploads the logs that are here of these builds. A log that cannot be uploaded is reported and
/// does not stop the others; the first reason is the answer. A log that is too long is left out: no
/// later push could bring it, and the paths can do without.
pub(super) async fn push_logs(
    api: &ApiClient,
    cache: &CacheName,
    derivers: &[PlannedDeriver],
    printer: &PushPrinter<'_>,
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
            Ok(LogEnd::Kept) => printer.log(derivation, "kept", None)?,
            Ok(LogEnd::Pushed) => {
                printer.log(derivation, "pushed", None)?;
                pushed += 1;
            }
            Err(error) if is_too_long(&error) => {
                printer.log(derivation, "too-long", Some(&error))?;
                too_long += 1;
            }
            Err(error) => {
                printer.log(derivation, "failed", Some(&error))?;
                first_failure.get_or_insert(error);
            }
        }
    }
    printer.printer.say(&format!("pushed {pushed} build logs"));
    if too_long > 0 {
        printer.printer.hint(
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
