//! `dormer config show`.

use clap::Args;

use crate::context::{Context, SettingsArgs};
use crate::error::Result;
use crate::settings::{Settings, show};

/// Print the server's settings and where each comes from
///
/// Secrets are redacted. The output is itself a settings file, in which keys without a value are
/// comments. With --json, the output is one object, with sizes in bytes and times in seconds.
///
/// Examples:
///   dormer config show
///   DORMER_CHUNKS_ZSTD_LEVEL=9 dormer config show --config /etc/dormer.toml
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ConfigShowArgs {
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) fn run(args: &ConfigShowArgs, context: &Context) -> Result<()> {
    let (settings, raw) = Settings::load(&context.environment, &args.settings.to_flags())?;
    for note in &settings.notes {
        context.printer.warn(note);
    }
    if context.printer.json {
        return context.printer.json_data(&show::to_json(&raw));
    }
    context.printer.data_lines(show::to_toml(&raw).trim_end())
}
