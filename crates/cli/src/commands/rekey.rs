//! `dormer rekey`.

use clap::Args;
use dormer_engine::rekey;
use serde_json::json;

use crate::context::{Context, SettingsArgs};
use crate::error::Result;
use crate::installation::{master_key_beside, open_index_beside};
use crate::settings::Settings;

/// Replace the master key, while servers run
///
/// The master key seals the caches' signing keys in the database. This command seals them with
/// `master-key` in place of `previous-master-key`. The signing keys stay the same, so nothing
/// changes for clients.
///
/// First give every server both keys, and restart them one by one: they open what either key
/// sealed. Then run this command where the settings are. Afterwards remove the previous key from
/// the settings. The command can be killed at any moment: run it again to finish. A server with the
/// previous key alone does not start any more, and one that runs goes on with the signing keys that
/// it has in memory alone.
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
    let done = rekey(&*opened.index, &key).await;
    opened.index.close().await?;
    let report = done?;
    context.printer.message(&json!({
        "message_type": "rekey", "resealed": report.resealed, "unchanged": report.unchanged,
    }))?;
    let keys =
        |count: u64| if count == 1 { "1 signing key".to_owned() } else { format!("{count} signing keys") };
    let line = match report.resealed {
        0 => format!("{} sealed with this master key before", keys(report.unchanged)),
        _ => format!("sealed {} with the new master key", keys(report.resealed)),
    };
    context.printer.conclude(&line);
    if settings.previous_master_key.is_some() || settings.previous_master_key_file.is_some() {
        context.printer.hint("remove the previous master key from the settings of every server");
    }
    Ok(())
}
