//! `dormer rekey`.

use std::time::{Duration, Instant};

use clap::Args;
use dormer_engine::{Journal, kept_journals, rekey};
use dormer_index::{JournalIndex, SNAPSHOT_WANTED};
use serde_json::json;

use crate::context::{Context, SettingsArgs};
use crate::error::Result;
use crate::installation::{master_key_beside, open_index_beside, open_journal_beside};
use crate::settings::Settings;

/// Replace the master key, while servers run
///
/// The master key seals the caches' signing keys in the database. This command seals them with
/// `master-key` in place of `previous-master-key`. The signing keys stay the same, so nothing
/// changes for clients.
///
/// First give every server both keys, and restart them one by one: they open what either key
/// sealed. Then run this command where the settings are. At its end it writes the journal in the
/// store anew, because the old one has the signing keys as the previous key sealed them. When it
/// says that this is done, remove the previous key from the settings. The command can be killed at
/// any moment: run it again to finish. A server with the previous key alone does not start any
/// more, and one that runs goes on with the signing keys that it has in memory alone.
///
/// Examples:
///   openssl rand -base64 32 >master-key.new
///   DORMER_MASTER_KEY_FILE=master-key.new DORMER_PREVIOUS_MASTER_KEY_FILE=master-key dormer rekey
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RekeyArgs {
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) async fn run(args: RekeyArgs, context: &Context) -> Result<()> {
    let (settings, _) = Settings::load(&context.environment, &args.settings.to_flags())?;
    let opened = open_index_beside(&settings).await?;
    let key = master_key_beside(&settings, &*opened.index).await?;
    let (journal, store) = open_journal_beside(&settings, &opened).await?;
    let report = rekey(&*opened.index, &key).await?;
    let is_journaled = write_journal(&journal, &*opened.journal, context).await?;
    let kept = kept_journals(&store).await?.len();
    opened.index.close().await?;
    context.printer.message(&json!({
        "message_type": "rekey", "resealed": report.resealed, "unchanged": report.unchanged,
        "journal_written": is_journaled, "kept_journals": kept,
    }))?;
    let keys =
        |count: u64| if count == 1 { "1 signing key".to_owned() } else { format!("{count} signing keys") };
    let line = match report.resealed {
        0 => format!("{} sealed with this master key before", keys(report.unchanged)),
        _ => format!("sealed {} with the new master key", keys(report.resealed)),
    };
    context.printer.conclude(&line);
    if !is_journaled {
        context.printer.warn(
            "the journal in the store still has signing keys as the previous master key sealed them: keep that key, and \
             run this command again in a while",
        );
        return Ok(());
    }
    if kept > 0 {
        context.printer.warn(
            "the store keeps a journal of another past, which needs the previous master key: keep that key until \
             `dormer doctor` names no such journal",
        );
    }
    if settings.previous_master_key.is_some() || settings.previous_master_key_file.is_some() {
        context.printer.hint("remove the previous master key from the settings of every server");
    }
    Ok(())
}

/// How long the command waits for a server that writes the journal itself.
const JOURNAL_WAIT: Duration = Duration::from_mins(2);

/// Between two looks whether the server has written it.
const JOURNAL_LOOK: Duration = Duration::from_secs(1);

/// Writes the snapshot that the rekey asked for, or waits until a server has. `false` if it is not
/// whole yet, and so the older files are still there.
async fn write_journal(journal: &Journal, state: &dyn JournalIndex, context: &Context) -> Result<bool> {
    context.printer.say("writing a snapshot of the database to the journal");
    let begun = Instant::now();
    loop {
        journal.write().await?;
        let found = state.journal_state().await?;
        if found.lineage != 0 && found.snapshot.is_none() && found.segment_bytes < SNAPSHOT_WANTED {
            return Ok(true);
        }
        if begun.elapsed() > JOURNAL_WAIT {
            return Ok(false);
        }
        tokio::time::sleep(JOURNAL_LOOK).await;
    }
}
