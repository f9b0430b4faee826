//! `dormer adopt`.

use std::io::IsTerminal as _;

use clap::Args;
use serde_json::json;

use crate::context::{Context, SettingsArgs};
use crate::error::{Error, Result};
use crate::installation::{adopt_store, open_claims, open_index_beside};
use crate::settings::Settings;

/// Declare that this database and this store belong together
///
/// A database and its store carry the same random id. A server, `dormer publish` and `dormer gc`
/// refuse a store with another one, because two databases over one store delete each other's packs.
/// This command makes the store carry the id of the database, and no other. It is needed after the
/// packs were copied without the folder installation/, and when a database is to take over the
/// store of another one for good. It changes neither packs nor the database.
///
/// A server that runs with the other database goes on until its next start: stop it first.
///
/// Examples:
///   dormer adopt --config /etc/dormer.toml
///   dormer adopt --no-confirm
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct AdoptArgs {
    /// Adopt without asking
    #[arg(long)]
    no_confirm: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) async fn run(args: AdoptArgs, context: &Context) -> Result<()> {
    let (settings, _) = Settings::load(&context.environment, &args.settings.to_flags())?;
    let index = open_index_beside(&settings).await?.index;
    if !args.no_confirm {
        let (claims, store) = open_claims(&settings)?;
        let carried: Vec<String> = claims.list().await?.iter().map(ToString::to_string).collect();
        confirm(context, &store, &carried)?;
    }
    let (store, id, before) = adopt_store(&settings, &*index).await?;
    index.close().await?;
    let before: Vec<String> = before.iter().map(ToString::to_string).collect();
    context.printer.message(&json!({
        "message_type": "store_adopted", "store": store, "installation": id.to_string(), "before": before,
    }))?;
    context.printer.conclude(&format!("{store} carries the id of this database now: {id}"));
    Ok(())
}

fn confirm(context: &Context, store: &str, carried: &[String]) -> Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Error::usage(
            "there is nobody to ask whether to adopt the store",
            "--no-confirm adopts it without asking",
        ));
    }
    let carried =
        if carried.is_empty() { "no id".to_owned() } else { format!("the id {}", carried.join(", ")) };
    context.printer.warn(&format!(
        "{store} carries {carried}; once adopted, any other database that uses it is refused, and packs that this database \
         does not know can be deleted"
    ));
    context.printer.ask("type adopt to go on:");
    let mut line = String::new();
    let read = stdin.read_line(&mut line);
    read.map_err(|source| Error::Io { attempt: "read the answer".to_owned(), source })?;
    if line.trim() == "adopt" { Ok(()) } else { Err(Error::Aborted) }
}
